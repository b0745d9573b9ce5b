import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from szilard import __version__, catalog
from szilard.cli import app
from szilard.cli.console import UserError
from szilard.cli.doctor import Extra, extras

LAB = Path(__file__).parent / "lab"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def launch(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line as a user starts it, with the coin method in the catalogue."""
    return subprocess.run(
        [sys.executable, str(LAB / "coin_cli.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "100"},
    )


@pytest.fixture
def coin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> catalog.Method:
    monkeypatch.syspath_prepend(str(LAB))
    from coin_cli import COIN

    monkeypatch.setattr(catalog, "METHODS", (*catalog.METHODS, COIN))
    monkeypatch.setenv("SZILARD_RUNS", str(tmp_path / "runs"))
    method: catalog.Method = COIN
    return method


def test_the_version_is_the_packages() -> None:
    assert call("--version").output.strip() == f"szilard {__version__}"


def test_list_names_every_method_and_its_status() -> None:
    output = call("list").output
    assert all(method.slug in output for method in catalog.METHODS)
    assert "ready" in output
    assert "planned" in output


def test_list_narrows_to_a_family() -> None:
    output = call("list", "--family", "dynamics").output
    assert "peccary" in output
    assert "typical-sampling" not in output


def test_list_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['szilard', 'list']\n"
        "from szilard.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'pyarrow', 'plotly', 'duckdb', 'jinja2', 'scipy'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "typical-samplin"), "did you mean typical-sampling"),
        (("run", "pecary"), "did you mean peccary"),
        (("list", "--family", "dynamic"), "did you mean 'dynamics'"),
        (("run", "steer"), "steer is planned"),
        (("report", "steer"), "steer is planned"),
        (("run", "coin", "--preset", "quik"), "did you mean 'quick'"),
        (("run", "coin", "--set", "flip=1"), "did you mean 'flips'"),
        (("run", "coin", "--set", "flips=x"), "of type int"),
        (("run", "coin", "--allow-code-execution"), "coin runs no generated code"),
        (("report", "coin"), "holds no run of coin"),
        (("measure", " "), "no text"),
        (("measure", "x", "--base", "1"), "must be positive and not 1"),
        (("measure", "x", "--html", "/no/such/folder/x.html"), "no folder"),
    ],
)
def test_a_mistake_is_named_in_one_line(
    coin: catalog.Method, arguments: tuple[str, ...], message: str
) -> None:
    result = call(*arguments)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_a_mistake_exits_with_two_and_no_traceback(tmp_path: Path) -> None:
    done = launch("run", "coyn", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean coin?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_show_tells_the_settings(coin: catalog.Method) -> None:
    output = call("show", "coin").output
    assert "flips" in output
    assert "flips a unit" in output


def test_a_run_ends_with_its_claims_and_its_report(tmp_path: Path) -> None:
    done = launch("run", "coin", "--preset", "smoke", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "✓ holds" in done.stdout
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("report: ")
    assert (tmp_path / last.removeprefix("report: ")).exists()


def test_exit_codes_tell_a_failed_run_from_a_failed_claim(coin: catalog.Method) -> None:
    run = ("run", "coin", "--preset", "smoke")
    assert call(*run).exit_code == 0
    assert call(*run, "--set", "threshold=0.99").exit_code == 0
    assert call(*run, "--set", "threshold=0.99", "--strict").exit_code == 3
    assert call(*run, "--set", "fail=fair", "--strict").exit_code == 1
    assert call(*run, "--set", "claims_fail=true").exit_code == 1


def test_report_rebuilds_and_board_gathers(coin: catalog.Method, tmp_path: Path) -> None:
    assert call("run", "coin", "--preset", "smoke").exit_code == 0
    assert call("run", "coin", "--preset", "quick", "--set", "threshold=0.99").exit_code == 0
    assert "✗ fails" in call("report", "coin").output
    result = call("board", "--out", str(tmp_path / "board"))
    assert result.exit_code == 0
    index = (tmp_path / "board" / "index.html").read_text()
    # A changed preset stands below an unchanged one, however low that is.
    assert "smoke · 2 seeds" in index
    assert "1 claim holds" in index
    assert all(method.name.replace("&", "&amp;") in index for method in catalog.METHODS)
    assert "plotly.js v" not in index
    report = (tmp_path / "board" / "reports" / "coin.html").read_text()
    assert 'src="../plotly.min.js"' in report
    assert len(report) < 100_000


def test_a_run_folder_that_cannot_be_written_is_refused(
    coin: catalog.Method, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    result = call("run", "coin", "--preset", "smoke", "--runs", str(tmp_path / "file"))
    assert isinstance(result.exception, UserError)
    assert "can't be written" in str(result.exception)


def test_doctor_names_the_extras_and_the_devices() -> None:
    output = call("doctor").output
    assert "language" in output
    assert "cpu" in output


def test_doctor_gives_the_command_that_installs_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "szilard.cli.doctor.extras", lambda: [Extra("rl", ("trl>=1.16",)), Extra("dev", ("ruff",))]
    )
    output = call("doctor").output
    assert "lacks trl>=1.16" in output
    assert f"{sys.executable} -m pip install 'szilard[rl]'" in output.replace("\n", "")


def test_an_unmet_version_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from szilard.cli import doctor

    monkeypatch.setattr(
        "importlib.metadata.requires", lambda name: ['numpy>=999; extra == "language"']
    )
    doctor._missing.cache_clear()
    lacking = {extra.name: extra.missing for extra in extras()}
    doctor._missing.cache_clear()
    assert "numpy>=999" in lacking["language"][0]
