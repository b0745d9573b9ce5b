"""The unit of work: one (arm, seed) of an experiment, as a call that any process can make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from szilard.catalog import Method
from szilard.lab.experiment import Experiment, ExperimentConfig, Log
from szilard.lab.rows import to_table

if TYPE_CHECKING:
    from types import ModuleType


def load_experiment(module: str) -> Experiment:
    """Imports an experiment's module and returns its `experiment`."""
    loaded: ModuleType = import_module(module)
    experiment: Experiment = loaded.experiment
    return experiment


def silent(fraction: float, message: str) -> None:
    """A log that shows nothing."""


def run_unit(module: str, config_json: str, arm: str, seed: int, log: Log = silent) -> pa.Table:
    """Computes one unit. Pure in its first four arguments, all of them plain strings and numbers.

    Args:
        module: dotted name of the experiment's module.
        config_json: the configuration as JSON.
        arm: which arm.
        seed: which seed.
        log: moves a progress bar.

    Returns:
        The unit's rows, checked.
    """
    experiment = load_experiment(module)
    config = experiment.Config.model_validate(json.loads(config_json))
    return to_table(arm, seed, experiment.run(config, arm, seed, log))


def checked_arms(experiment: Experiment, config: ExperimentConfig) -> Sequence[str]:
    """The experiment's arms, each once."""
    arms = list(experiment.arms(config))
    if not arms or len(set(arms)) != len(arms):
        raise ValueError(f"arms: got {arms}, must be at least one and each only once")
    return arms


def code_digest(method: Method) -> str:
    """Names the state of the code that a method's results depend on.

    Covers the source of its experiment (with the private modules beside it), of the package that
    holds its entry point, and of what both stand on, so that a result is never mixed with one of
    other code.
    """
    modules = [method.experiment, "szilard.zoo", "szilard.measures", "szilard.kernels"]
    if method.entry_point is not None:
        modules.append(method.entry_point.partition(":")[0])
    digest = hashlib.sha256()
    for module in modules:
        for path in _sources(module):
            digest.update(f"{module}/{path.name}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _sources(module: str) -> list[Path]:
    spec = find_spec(module)
    if spec is None:
        raise ModuleNotFoundError(f"no module named {module!r}", name=module)
    if spec.submodule_search_locations:
        return sorted(
            path
            for folder in spec.submodule_search_locations
            for path in Path(folder).rglob("*.py")
        )
    if spec.origin is None:
        return []
    source = Path(spec.origin)
    # Experiments may share private modules beside them.
    return [source, *sorted(source.parent.glob("_[!_]*.py"))]
