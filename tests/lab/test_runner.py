import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from szilard.catalog import Method
from szilard.lab import store
from szilard.lab.experiment import Verdict
from szilard.lab.runner import Outcome, rebuild_report, run_experiment
from szilard.lab.settings import configure
from szilard.lab.store import Run, StoreError, Unit
from szilard.lab.units import code_digest, load_experiment


def execute(
    coin: Method, root: Path, observer: Any, *changes: str, seeds: int = 2, **options: Any
) -> Outcome:
    experiment = load_experiment(coin.experiment)
    config = configure(experiment, "smoke", changes, seeds)
    return run_experiment(coin, config, preset="smoke", root=root, observer=observer, **options)


def table_of(outcome: Outcome, seeds: int = 2) -> pd.DataFrame:
    units = [Unit(arm, seed) for seed in range(seeds) for arm in outcome.results.arms]
    return outcome.run.read_table(units, warn=lambda message: None)


def unit_bytes(run: Run) -> dict[str, bytes]:
    """Every unit's rows as Arrow IPC bytes: equal bytes are equal rows, types and order."""
    found = {}
    for path in sorted(run.path.glob("*.parquet")):
        table = pq.read_table(path).replace_schema_metadata(None)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        found[path.name] = sink.getvalue().to_pybytes()
    return found


def test_a_run_leaves_rows_claims_manifest_and_report(
    coin: Method, tmp_path: Path, observer: Any
) -> None:
    outcome = execute(coin, tmp_path, observer)
    assert outcome.ok
    assert outcome.computed == 4
    table = table_of(outcome)
    assert list(table.columns[:4]) == ["arm", "seed", "metric", "value"]
    assert set(table.arm) == {"biased / odd", "fair"}
    manifest = json.loads((outcome.run.path / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["config"]["flips"] == 10
    assert manifest["versions"]["torch"]
    page = outcome.run.report.read_text()
    assert "A biased coin shows more heads" in page
    assert "plotly.js v" in page
    assert 'src="http' not in page


def test_a_second_run_computes_nothing(coin: Method, tmp_path: Path, observer: Any) -> None:
    first = execute(coin, tmp_path, observer)
    again = execute(coin, tmp_path, observer)
    assert (again.computed, again.reused) == (0, 4)
    assert again.claims == first.claims


def test_more_seeds_extend_a_run(coin: Method, tmp_path: Path, observer: Any) -> None:
    execute(coin, tmp_path, observer, seeds=1)
    more = execute(coin, tmp_path, observer, seeds=3)
    assert (more.computed, more.reused) == (4, 2)
    fewer = execute(coin, tmp_path, observer, seeds=1)
    assert fewer.computed == 0
    assert set(table_of(fewer, seeds=1).seed) == {0}


def test_another_setting_is_another_run(coin: Method, tmp_path: Path, observer: Any) -> None:
    one = execute(coin, tmp_path, observer)
    other = execute(coin, tmp_path, observer, "flips=11")
    assert one.run.path != other.run.path
    assert other.computed == 4


def test_fresh_forgets_what_is_stored(coin: Method, tmp_path: Path, observer: Any) -> None:
    execute(coin, tmp_path, observer)
    assert execute(coin, tmp_path, observer, fresh=True).computed == 4


def test_workers_compute_what_one_process_does(coin: Method, tmp_path: Path, observer: Any) -> None:
    here = execute(coin, tmp_path / "here", observer)
    spread = execute(coin, tmp_path / "spread", observer, workers=2)
    assert spread.ok
    assert unit_bytes(here.run) == unit_bytes(spread.run)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_unit_that_raises_fails_alone(
    coin: Method, tmp_path: Path, observer: Any, workers: int
) -> None:
    outcome = execute(coin, tmp_path, observer, "fail=biased / odd", seeds=3, workers=workers)
    assert not outcome.ok
    assert [failure.unit for failure in outcome.failures] == [Unit("biased / odd", 1)]
    assert "rolled away" in outcome.failures[0].traceback
    assert outcome.computed == 5
    assert outcome.claims
    assert "rolled away" in outcome.run.report.read_text()
    # The next attempt runs the failed unit and no other.
    again = execute(coin, tmp_path, observer, "fail=biased / odd", seeds=3)
    assert again.reused == 5


def test_a_worker_that_is_killed_fails_its_unit_alone(
    coin: Method, tmp_path: Path, observer: Any
) -> None:
    outcome = execute(coin, tmp_path, observer, "fail=die", seeds=3, workers=2)
    assert [failure.unit for failure in outcome.failures] == [Unit("fair", 1)]
    assert "SIGKILL" in outcome.failures[0].error
    assert outcome.computed == 5


def test_claims_that_raise_lose_no_data(coin: Method, tmp_path: Path, observer: Any) -> None:
    outcome = execute(coin, tmp_path, observer, "claims_fail=true")
    assert not outcome.ok
    assert not outcome.claims
    assert outcome.results.errors[0].what == "claims"
    assert len(outcome.results.figures) == 1
    assert len(table_of(outcome)) == 44
    assert "no such column" in outcome.run.report.read_text()
    assert any("claims could not be computed" in warning for warning in observer.warnings)


def test_a_truncated_unit_is_named_and_computed_again(
    coin: Method, tmp_path: Path, observer: Any
) -> None:
    outcome = execute(coin, tmp_path, observer)
    before = unit_bytes(outcome.run)
    path = outcome.run.unit_path(Unit("fair", 0))
    path.write_bytes(path.read_bytes()[:-40])
    again = execute(coin, tmp_path, observer)
    assert (again.computed, again.reused) == (1, 3)
    assert any(path.name in warning for warning in observer.warnings)
    assert unit_bytes(again.run) == before


def test_a_flipped_byte_is_noticed(coin: Method, tmp_path: Path, observer: Any) -> None:
    outcome = execute(coin, tmp_path, observer)
    path = outcome.run.unit_path(Unit("fair", 0))
    content = bytearray(path.read_bytes())
    # Near the start lie the pages; their checksums see what the footer can't.
    content[60] ^= 0xFF
    path.write_bytes(content)
    assert execute(coin, tmp_path, observer).computed == 1


def test_a_foreign_parquet_file_under_a_units_name_is_replaced(
    coin: Method, tmp_path: Path, observer: Any
) -> None:
    outcome = execute(coin, tmp_path, observer)
    path = outcome.run.unit_path(Unit("fair", 1))
    pq.write_table(pa.table({"x": [1]}), path)
    assert execute(coin, tmp_path, observer).computed == 1
    assert any("not one of szilard's" in warning for warning in observer.warnings)


def test_a_foreign_file_beside_the_units_is_named_and_left_alone(
    coin: Method, tmp_path: Path, observer: Any
) -> None:
    outcome = execute(coin, tmp_path, observer)
    stranger = outcome.run.path / "notes.parquet"
    stranger.write_bytes(b"not parquet")
    again = execute(coin, tmp_path, observer, fresh=True)
    assert again.ok
    assert stranger.read_bytes() == b"not parquet"
    assert any("notes.parquet" in warning for warning in observer.warnings)


def test_a_unit_copied_over_another_is_noticed(coin: Method, tmp_path: Path, observer: Any) -> None:
    outcome = execute(coin, tmp_path, observer)
    before = unit_bytes(outcome.run)
    source, target = (outcome.run.unit_path(Unit("fair", seed)) for seed in (0, 1))
    target.write_bytes(source.read_bytes())
    again = execute(coin, tmp_path, observer)
    assert again.computed == 1
    assert any("not what its name says" in warning for warning in observer.warnings)
    assert unit_bytes(again.run) == before


def test_results_of_other_code_are_computed_again(
    coin: Method, tmp_path: Path, observer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(coin, tmp_path, observer)
    monkeypatch.setattr("szilard.lab.runner.code_digest", lambda method: "changed")
    assert execute(coin, tmp_path, observer).computed == 4
    assert sum("another version" in warning for warning in observer.warnings) == 4


def test_the_code_digest_covers_the_experiment_and_its_method(coin: Method) -> None:
    assert code_digest(coin) == code_digest(coin)
    planned = type(coin)("x", "x", "physics", "x", 2000, None, "x", "x")
    assert code_digest(planned) != code_digest(coin)


def test_an_unwritable_folder_is_refused_before_any_work(
    coin: Method, tmp_path: Path, observer: Any
) -> None:
    blocked = tmp_path / "runs"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(StoreError, match=r"can't be written.*--runs"):
        execute(coin, blocked, observer)
    assert not observer.events


def test_the_second_of_two_runs_is_told_who_holds_the_folder(
    coin: Method, tmp_path: Path, observer: Any
) -> None:
    outcome = execute(coin, tmp_path, observer)
    with (
        outcome.run.lock(),
        pytest.raises(StoreError, match=f"process {os.getpid()} on "),
    ):
        execute(coin, tmp_path, observer)


def test_killed_and_run_again_equals_undisturbed(
    coin: Method, tmp_path: Path, observer: Any
) -> None:
    counter = tmp_path / "counter"
    settings = ["flips=20", "pause=0.1", f"counter={counter}"]
    command = [
        sys.executable,
        str(Path(__file__).parent / "coin_cli.py"),
        "run",
        "coin",
        "--preset",
        "smoke",
    ]
    command += ["--seeds", "6", "--runs", str(tmp_path / "killed")]
    for setting in settings:
        command += ["--set", setting]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not counter.exists() or counter.read_text().count("\n") < 4:
            assert time.monotonic() < deadline, "the run never got to its fourth unit"
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    started = counter.read_text().splitlines()
    assert len(started) < 12

    outcome = execute(coin, tmp_path / "killed", observer, *settings, seeds=6)
    assert outcome.ok
    # All that were started had finished but the one that was under way.
    assert outcome.reused >= len(started) - 1 > 0
    assert outcome.computed == 12 - outcome.reused
    undisturbed = execute(coin, tmp_path / "undisturbed", observer, *settings, seeds=6)
    assert unit_bytes(outcome.run) == unit_bytes(undisturbed.run)
    assert outcome.claims == undisturbed.claims
    assert not list(outcome.run.path.glob(".*.tmp"))


def test_a_report_is_rebuilt_from_the_rows(coin: Method, tmp_path: Path, observer: Any) -> None:
    outcome = execute(coin, tmp_path, observer)
    outcome.run.report.unlink()
    (outcome.run.path / "results.json").write_text("{")
    results = rebuild_report(coin, outcome.run, observer.warn)
    assert results.claims == outcome.claims
    assert outcome.run.report.exists()


def test_results_survive_their_json(coin: Method, tmp_path: Path, observer: Any) -> None:
    results = execute(coin, tmp_path, observer, seeds=1).results
    assert results.claims[0].verdict is Verdict.NOT_MEASURABLE
    assert results.claims[0].measured is not None
    assert math.isinf(results.claims[0].measured.low)
    copy = type(results).from_json(json.loads(json.dumps(results.to_json())))
    assert copy == results


def test_sql_reads_across_runs(coin: Method, tmp_path: Path, observer: Any) -> None:
    outcome = execute(coin, tmp_path, observer)
    execute(coin, tmp_path, observer, "flips=11")
    (outcome.run.path / "broken.parquet").write_bytes(b"PAR1")
    counts = store.query(
        "select run, count(*) as n from units where metric = 'heads' and slug = 'coin' group by run",
        tmp_path,
    )
    assert sorted(counts.n) == [4, 4]
    assert outcome.run.name in set(counts.run)


def test_sql_on_an_empty_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no finished unit"):
        store.query("select * from units", tmp_path)


def test_the_code_digest_covers_what_experiments_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "lone_experiment.py").write_text("import _shared\n")

    class Lone(Method):
        @property
        def experiment(self) -> str:
            return "lone_experiment"

    method = Lone("lone", "x", "physics", "x", 2000, None, "x", "x")
    before = code_digest(method)
    (tmp_path / "_shared.py").write_text("x = 1\n")
    with_helper = code_digest(method)
    (tmp_path / "_shared.py").write_text("x = 2\n")
    assert len({before, with_helper, code_digest(method)}) == 3
