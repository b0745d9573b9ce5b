import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from szilard.zoo import cache
from szilard.zoo.cache import cached


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SZILARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_verified", {})


class Builder:
    def __init__(self):
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "inner").mkdir()
        (folder / "inner" / "numbers.txt").write_text("3 1 4 1 5")
        (folder / "word.txt").write_text("entropy")


def test_an_entry_is_built_once_per_key_whatever_the_order_of_the_keys():
    build = Builder()
    first = cached("thing", {"a": 1, "b": [2, 3]}, build)
    assert cached("thing", {"b": [2, 3], "a": 1}, build) == first
    assert build.calls == 1
    assert (first / "inner" / "numbers.txt").read_text() == "3 1 4 1 5"
    assert cached("thing", {"a": 2, "b": [2, 3]}, build) != first
    assert build.calls == 2


def _truncate(folder):
    (folder / "word.txt").write_text("entr")


def _flip(folder):
    (folder / "inner" / "numbers.txt").write_text("3 1 4 1 6")


def _remove(folder):
    (folder / "word.txt").unlink()


def _spoil_manifest(folder):
    (folder / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_truncate, "word.txt has 4 bytes instead of 7"),
        (_flip, "checksum of inner/numbers.txt"),
        (_remove, "word.txt is missing"),
        (_spoil_manifest, "manifest.json cannot be read"),
    ],
)
@pytest.mark.parametrize("same_process", [True, False])
def test_a_damaged_entry_is_named_in_a_warning_and_built_again(damage, named, same_process):
    build = Builder()
    folder = cached("thing", {}, build)
    damage(folder)
    if not same_process or damage is _spoil_manifest:
        cache._verified.clear()
    with pytest.warns(UserWarning, match=named):
        again = cached("thing", {}, build)
    assert again == folder
    assert build.calls == 2
    assert (folder / "word.txt").read_text() == "entropy"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached("thing", {}, build)


def test_a_build_that_fails_leaves_nothing_and_can_be_tried_again(tmp_path):
    def fail(folder):
        (folder / "half.bin").write_bytes(b"0")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        cached("thing", {}, fail)
    assert not list((tmp_path / "cache" / "thing").glob("*[!k]/*"))
    build = Builder()
    assert (cached("thing", {}, build) / "word.txt").exists()
    assert build.calls == 1


def test_what_a_killed_build_left_is_not_taken_for_an_entry():
    build = Builder()
    folder = cached("thing", {}, build)
    folder.rename(folder.with_name(folder.name + ".partial"))
    (folder.with_name(folder.name + ".partial") / "foreign.txt").write_text("?")
    again = cached("thing", {}, build)
    assert build.calls == 2
    assert not (again / "foreign.txt").exists()


_ASK = """
import sys, time
from pathlib import Path
from szilard.zoo.cache import cached

log, start, me = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def build(folder):
    with log.open("a") as file:
        file.write("built\\n")
    (folder / "x").write_text("x" * 1000)

start.with_name(me).touch()
while not start.exists():
    time.sleep(0.001)
cached("thing", {"race": True}, build)
"""


def test_two_processes_that_ask_at_once_build_once(tmp_path):
    log, start = tmp_path / "log", tmp_path / "start"
    command = [sys.executable, "-c", _ASK, str(log), str(start)]
    pair = [subprocess.Popen([*command, f"ready-{i}"]) for i in range(2)]
    while not all((tmp_path / f"ready-{i}").exists() for i in range(2)):
        assert all(process.poll() is None for process in pair)
        time.sleep(0.01)
    start.touch()
    assert [process.wait(60) for process in pair] == [0, 0]
    assert log.read_text().splitlines() == ["built"]


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b"])
def test_a_name_that_is_no_plain_name_is_refused(name):
    with pytest.raises(ValueError, match="name must be"):
        cached(name, {}, Builder())


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, Path("x")])
def test_a_key_that_json_cannot_write_is_refused(value):
    with pytest.raises(ValueError, match="key must"):
        cached("thing", {"value": value}, Builder())


def test_a_build_that_writes_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one file"):
        cached("thing", {}, lambda folder: None)
