"""Runs an experiment's units, resuming what is stored, then judges and reports."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from szilard.catalog import Method
from szilard.lab import machine
from szilard.lab.experiment import Claim, ExperimentConfig
from szilard.lab.report import render_report
from szilard.lab.results import Results, judge
from szilard.lab.settings import difference
from szilard.lab.store import Failure, Run, Unit, Warn, canonical_json, now
from szilard.lab.units import checked_arms, code_digest, load_experiment, run_unit
from szilard.lab.workers import (
    Event,
    Failed,
    Finished,
    Progressed,
    Started,
    compute,
    describe,
)


class Observer(Protocol):
    """Watches a run: a progress display, or nothing at all."""

    def begin(self, units: Sequence[Unit], reused: int) -> None:
        """`units` are to be computed; `reused` others are already in the store."""
        ...

    def event(self, event: Event) -> None:
        """A unit started, progressed, finished or failed."""
        ...

    def warn(self, message: str) -> None:
        """Something in the store was refused, or a claim could not be computed."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    run: Run
    results: Results
    computed: int
    reused: int

    @property
    def failures(self) -> Sequence[Failure]:
        return self.results.failures

    @property
    def claims(self) -> Sequence[Claim]:
        return self.results.claims

    @property
    def ok(self) -> bool:
        """Every unit finished and the claims could be judged."""
        return not self.failures and not self.results.errors


def run_experiment(
    method: Method,
    config: ExperimentConfig,
    *,
    preset: str,
    root: Path,
    observer: Observer,
    workers: int = 0,
    fresh: bool = False,
) -> Outcome:
    """Computes what is missing of a run, judges its claims and writes its report.

    Args:
        method: whose experiment.
        config: its configuration.
        preset: name of the preset that the configuration started from.
        root: the folder of all runs.
        observer: watches.
        workers: processes to use; 0 computes in this one.
        fresh: forget what is stored.

    Raises:
        StoreError: the folder can't be written, or another process is writing it.
    """
    experiment = load_experiment(method.experiment)
    units = [
        Unit(arm, seed) for seed in range(config.seeds) for arm in checked_arms(experiment, config)
    ]
    code = code_digest(method)
    run = Run.of(root, method.slug, config)
    run.prepare()
    with run.lock():
        for path in run.foreign_files():
            observer.warn(f"{path}: no unit of szilard's, or damaged; it is left out")
        if fresh:
            run.forget_units()
        missing = [
            unit for unit in units if run.read_unit(unit, code=code, warn=observer.warn) is None
        ]
        reused = len(units) - len(missing)
        manifest: dict[str, Any] = {
            "slug": method.slug,
            "name": method.name,
            "run": run.name,
            "preset": preset,
            "changed": difference(experiment.presets[preset], config),  # type: ignore[index]
            "config": config.model_dump(mode="json"),
            "arms": list(experiment.arms(config)),
            "seeds": list(range(config.seeds)),
            "code": code,
            "versions": machine.versions(),
            "hardware": machine.hardware(),
            "started": now(),
            "finished": None,
            "status": "running",
            "workers": workers,
        }
        run.write_json("manifest.json", manifest)
        observer.begin(missing, reused)
        began = time.monotonic()
        config_json = canonical_json(config)
        events = (
            compute(method.experiment, config_json, missing, min(workers, len(missing)))
            if workers
            else _compute_here(method.experiment, config_json, missing, observer)
        )
        failures: list[Failure] = []
        for event in events:
            if isinstance(event, Finished):
                run.write_unit(event.unit, event.table, code=code, seconds=event.seconds)
            elif isinstance(event, Failed):
                run.write_failure(event.failure)
                failures.append(event.failure)
            observer.event(event)
        results = judge(experiment, config, run, units, failures, observer.warn)
        manifest |= {
            "finished": now(),
            "status": "failed" if failures or results.errors else "finished",
            "seconds": round(time.monotonic() - began, 3),
            "units": {
                "computed": len(missing) - len(failures),
                "reused": reused,
                "failed": len(failures),
            },
        }
        run.write_json("manifest.json", manifest)
        run.write_json("results.json", results.to_json())
        run.write_report(render_report(method, manifest, results))
    return Outcome(run, results, len(missing) - len(failures), reused)


def rebuild_report(method: Method, run: Run, warn: Warn) -> Results:
    """Judges the claims again on the rows in the store and writes the report anew.

    Raises:
        StoreError: the run has no finished unit.
        ValueError: its configuration is not one of the present experiment.
    """
    manifest = run.read_json("manifest.json") or {}
    experiment = load_experiment(method.experiment)
    config = experiment.Config.model_validate(manifest["config"])
    units = [Unit(arm, seed) for seed in manifest["seeds"] for arm in manifest["arms"]]
    with run.lock():
        code = code_digest(method)
        if manifest.get("code") != code:
            warn("the method's code has changed since this run; `szilard run` computes it anew")
        results = judge(experiment, config, run, units, run.read_failures(units), warn)
        run.write_json("results.json", results.to_json())
        run.write_report(render_report(method, manifest, results))
    return results


def _compute_here(
    module: str, config_json: str, units: Sequence[Unit], observer: Observer
) -> Iterator[Event]:
    """Computes units one after the other in this process."""
    for unit in units:
        yield Started(unit)

        def log(fraction: float, message: str = "", unit: Unit = unit) -> None:
            observer.event(Progressed(unit, float(fraction), str(message)))

        started = time.monotonic()
        try:
            table = run_unit(module, config_json, unit.arm, unit.seed, log)
        except (Exception, SystemExit) as error:
            yield Failed(unit, Failure(unit, describe(error), traceback.format_exc()))
        else:
            yield Finished(unit, table, time.monotonic() - started)
