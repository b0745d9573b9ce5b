"""The contract every catalogue entry must meet; a new method gets these tests for free."""

import inspect
import math
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args

import pydantic
import pytest

from szilard.catalog import FAMILIES, METHODS, Method, UnknownMethodError, find
from szilard.lab.experiment import Claim, ExperimentConfig, Preset, Verdict
from szilard.lab.runner import run_experiment
from szilard.lab.units import load_experiment

ROOT = Path(__file__).resolve().parent.parent
READY = [method for method in METHODS if method.status == "ready"]


def by_slug(method: Method) -> str:
    return method.slug


class Silent:
    """An observer that keeps the warnings and shows nothing."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def begin(self, units: object, reused: int) -> None: ...

    def event(self, event: object) -> None: ...

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def test_the_catalogue_holds_forty_six_methods_each_once() -> None:
    assert len({method.slug for method in METHODS}) == len(METHODS) == 46


@pytest.mark.parametrize("method", METHODS, ids=by_slug)
def test_every_entry_is_complete(method: Method) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", method.slug)
    assert method.family in FAMILIES
    assert 1948 <= method.year <= 2030
    assert method.arxiv is None or re.fullmatch(r"\d{4}\.\d{4,5}", method.arxiv)
    assert all((method.name, method.paper, method.measures, method.acts))


def test_an_unknown_slug_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownMethodError, match="did you mean typical-sampling"):
        find("typical-samplin")


def test_the_catalogue_imports_nothing_heavy() -> None:
    heavy = "torch", "numpy", "transformers", "pandas", "plotly", "numba", "pydantic"
    code = f"import sys, szilard.catalog; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_generated_tables_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("method", READY, ids=by_slug)
def test_the_entry_point_imports_from_its_family_and_cites_its_paper(method: Method) -> None:
    assert method.entry_point is not None
    module, _, name = method.entry_point.partition(":")
    assert module == f"szilard.{method.family}"
    entry = getattr(import_module(module), name)
    assert callable(entry)
    text = inspect.getdoc(entry) or ""
    assert "Source" in text
    assert str(method.arxiv) in text, f"{method.entry_point} must cite arXiv {method.arxiv}"
    assert ">>>" in text, f"{method.entry_point} must show a doctest"


@pytest.mark.parametrize("method", READY, ids=by_slug)
def test_every_preset_is_there_and_a_wrong_key_is_refused(method: Method) -> None:
    experiment = load_experiment(method.experiment)
    assert set(experiment.presets) == set(get_args(Preset))
    assert issubclass(experiment.Config, ExperimentConfig)
    for config in experiment.presets.values():
        assert isinstance(config, experiment.Config)
        assert len(set(experiment.arms(config))) == len(experiment.arms(config)) >= 2
        assert experiment.Config.model_validate_json(config.model_dump_json()) == config
    for name, field in experiment.Config.model_fields.items():
        assert field.description, f"{method.slug}: knob {name} has no description"
    with pytest.raises(pydantic.ValidationError):
        experiment.Config(no_such_knob=1)
    assert experiment.presets["quick"].seeds >= 2, "a claim needs several seeds"


@pytest.mark.parametrize("method", READY, ids=by_slug)
def test_the_smoke_run_ends_with_its_claims_and_figures(method: Method, tmp_path: Path) -> None:
    experiment = load_experiment(method.experiment)
    config = experiment.presets["smoke"]
    observer = Silent()
    outcome = run_experiment(method, config, preset="smoke", root=tmp_path, observer=observer)
    assert outcome.ok, [failure.traceback for failure in outcome.failures] or [
        problem.traceback for problem in outcome.results.errors
    ]
    assert observer.warnings == []
    assert outcome.claims
    for claim in outcome.claims:
        assert isinstance(claim, Claim)
        assert claim.verdict in Verdict
        assert claim.statement
        assert claim.paper
        if claim.measured is not None:
            assert not math.isnan(claim.measured.value)
            assert claim.measured.low <= claim.measured.value <= claim.measured.high
    assert outcome.results.figures
    for figure in outcome.results.figures:
        assert figure.title
        assert figure.caption
        assert figure.plot["data"]
    assert outcome.run.report.stat().st_size > 10_000


@pytest.mark.parametrize("method", READY, ids=by_slug)
def test_the_docs_page_says_what_it_is_for_what_was_measured_and_where_it_ends(
    method: Method,
) -> None:
    page = (ROOT / "docs" / "methods" / f"{method.slug}.md").read_text()
    for heading in ("## Use", "## What the experiment shows", "## Limits", "## Source"):
        assert heading in page, f"docs/methods/{method.slug}.md lacks {heading!r}"
    assert f"methods/{method.slug}.md" in (ROOT / "mkdocs.yml").read_text()
