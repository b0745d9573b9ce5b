"""A folder of things that are slow to make: built once, checked on every use."""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

_MANIFEST = "manifest.json"

# Entries whose checksums this process has already compared, with the sizes and times they had.
_verified: dict[Path, tuple[tuple[str, int, int], ...]] = {}


def cache_folder() -> Path:
    """Returns the folder that holds every cache entry.

    It is the user's cache folder, or `$SZILARD_CACHE` where that is set.
    """
    override = os.environ.get("SZILARD_CACHE")
    return Path(override).expanduser() if override else user_cache_path("szilard")


def cached(name: str, key: Mapping[str, object], build: Callable[[Path], None]) -> Path:
    """Returns the folder that `build` fills for this key, building it only if it is not there.

    Two processes that ask for one entry build it once. A build that fails or is killed leaves no
    entry. Every file is compared with its recorded SHA-256 the first time a process asks for the
    entry, and by size and time afterwards; a damaged entry is named in a warning and built again.

    Args:
        name: what the entry is, for people: letters, digits, `.`, `_` and `-`.
        key: everything the content depends on, as values that JSON can write.
        build: fills the empty folder it is given.

    Returns:
        The folder of the entry; treat it as read-only.

    Raises:
        ValueError: `name` is not a plain name, `key` is not JSON, or `build` wrote no file.

    Examples:
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     os.environ["SZILARD_CACHE"] = folder
        ...     path = cached("greeting", {"to": "Leo"}, lambda p: (p / "a").write_text("hi") and None)
        ...     print((path / "a").read_text())
        ...     del os.environ["SZILARD_CACHE"]
        hi
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(
            f"name must be letters, digits, '.', '_' and '-', starting with a letter or digit; "
            f"it was {name!r}"
        )
    try:
        canonical = json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"key must hold only values that JSON can write: {error}") from error
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:20]
    entry = cache_folder() / name / digest
    entry.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(entry.with_name(f"{digest}.lock")):
        if entry.exists():
            damage = _damage(entry)
            if damage is None:
                return entry
            warnings.warn(
                f"the cache entry {entry} is damaged ({damage}); it is built again", stacklevel=2
            )
            shutil.rmtree(entry)
        partial = entry.with_name(f"{digest}.partial")
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        try:
            build(partial)
            files = _describe(partial)
            if not files:
                raise ValueError(f"build must write at least one file for {name!r}; it wrote none")
            record = {"key": json.loads(canonical), "files": files}
            (partial / _MANIFEST).write_text(json.dumps(record, indent=1, sort_keys=True))
            partial.rename(entry)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _verified[entry] = _stamps(entry)
    return entry


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _MANIFEST)


def _describe(folder: Path) -> dict[str, dict[str, object]]:
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
        for path in _files(folder)
    }


def _stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    return tuple(
        (path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for path in _files(folder)
    )


def _damage(entry: Path) -> str | None:
    """Says what is wrong with an entry, or None."""
    stamps = _stamps(entry)
    if _verified.get(entry) == stamps:
        return None
    try:
        recorded = json.loads((entry / _MANIFEST).read_text())["files"]
        wanted = {str(file): (facts["bytes"], facts["sha256"]) for file, facts in recorded.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} cannot be read"
    sizes = {file: size for file, size, _ in stamps}
    for file, (size, digest) in wanted.items():
        if file not in sizes:
            return f"{file} is missing"
        if sizes[file] != size:
            return f"{file} has {sizes[file]} bytes instead of {size}"
        if _sha256(entry / file) != digest:
            return f"the checksum of {file} is wrong"
    _verified[entry] = stamps
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
