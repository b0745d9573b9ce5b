"""What a program that nobody vouches for can't do, tried in earnest."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from szilard.lab.sandbox import available, run_sandboxed

pytestmark = pytest.mark.skipif(not available(), reason="programs are contained on Linux alone")


def test_a_program_that_reaches_its_end_passes() -> None:
    outcome = run_sandboxed("import collections, math, re, typing\nassert math.isqrt(17) == 4\n")
    assert outcome.status == "passed"
    assert outcome.error == ""


def test_a_failed_assertion_fails_with_its_traceback() -> None:
    outcome = run_sandboxed("def f():\n    assert 1 + 1 == 3\nf()\n")
    assert outcome.status == "failed"
    assert "AssertionError" in outcome.error


@pytest.mark.parametrize("ending", ["import os; os._exit(0)", "raise SystemExit(0)", "exit()"])
def test_an_exit_before_the_last_line_does_not_pass(ending: str) -> None:
    assert run_sandboxed(f"{ending}\nassert False\n").status == "failed"


def test_a_fork_bomb_starts_no_process() -> None:
    outcome = run_sandboxed("import os\nwhile True:\n    os.fork()\n")
    assert outcome.status == "failed"
    assert "PermissionError" in outcome.error


@pytest.mark.parametrize(
    "spawn",
    [
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true') and 1 / 0",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import os; os.execv('/bin/true', ['true'])",
        "import threading; threading.Thread(target=print).start()",
    ],
)
def test_no_process_and_no_thread_starts(spawn: str) -> None:
    assert run_sandboxed(spawn).status == "failed"


def test_an_endless_loop_ends_at_its_cpu_time() -> None:
    outcome = run_sandboxed("while True: pass", cpu_seconds=1, wall_seconds=30)
    assert outcome.status == "timeout"
    assert outcome.seconds < 25


def test_a_program_that_waits_ends_at_its_wall_time() -> None:
    began = time.monotonic()
    outcome = run_sandboxed("import time; time.sleep(60)", wall_seconds=1)
    assert outcome.status == "timeout"
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "hoard", ["bytearray(100 * 2**30)", "[bytearray(1 << 20) for _ in range(100_000)]"]
)
def test_a_hundred_gigabytes_are_not_given(hoard: str) -> None:
    assert run_sandboxed(hoard).status == "memory"


def test_no_file_is_deleted_or_written(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    for attempt in (
        f"import os; os.remove({str(kept)!r})",
        f"import os; os.rename({str(kept)!r}, {str(tmp_path / 'moved')!r})",
        f"import os; os.truncate({str(kept)!r}, 0)",
        f"import os; os.chmod({str(kept)!r}, 0)",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        f"open({str(kept)!r}, 'w')",
        f"open({str(kept)!r}, 'a')",
        f"open({str(kept)!r}, 'r+')",
        f"open({str(tmp_path / 'new')!r}, 'x')",
        "open('here', 'w')",
        f"import os; os.mkdir({str(tmp_path / 'folder')!r})",
        f"import os; os.symlink('/', {str(tmp_path / 'link')!r})",
    ):
        outcome = run_sandboxed(attempt)
        assert outcome.status == "failed", attempt
        assert "PermissionError" in outcome.error, attempt
    assert kept.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_UNIX"])
def test_no_socket_opens(family: str) -> None:
    outcome = run_sandboxed(f"import socket; socket.socket(socket.{family})")
    assert outcome.status == "failed"
    assert "PermissionError" in outcome.error


def test_other_processes_are_out_of_reach() -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        outcome = run_sandboxed(f"import os; os.kill({bystander.pid}, 9)")
        assert "PermissionError" in outcome.error
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_the_bounds_can_not_be_lifted_from_inside() -> None:
    lift = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 50, 1 << 50))"
    assert run_sandboxed(lift).status == "failed"


def test_what_a_program_writes_is_bounded() -> None:
    outcome = run_sandboxed("import sys\nwhile True: sys.stderr.write('x' * 65536)")
    assert outcome.status == "failed"
    assert len(outcome.error) <= 1 << 16


def test_a_crash_of_the_interpreter_is_a_failure() -> None:
    assert run_sandboxed("import ctypes; ctypes.string_at(0)").status == "failed"


def test_the_caller_s_environment_is_not_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "42")
    assert run_sandboxed("import os; assert 'A_SECRET' not in os.environ").status == "passed"


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        ({"wall_seconds": 0.0}, "wall_seconds"),
        ({"cpu_seconds": 0}, "cpu_seconds"),
        ({"memory_bytes": 1000}, "memory_bytes"),
    ],
)
def test_a_limit_out_of_range_raises(limits: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        run_sandboxed("pass", **limits)  # type: ignore[arg-type]
