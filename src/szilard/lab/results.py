"""What a run found: its claims, figures and summary, as the report and the board show them."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from szilard.lab.experiment import Claim, Experiment, Interval, Verdict
from szilard.lab.figures import plot_json
from szilard.lab.statistics import mean_interval
from szilard.lab.store import Failure, Run, StoreError, Unit, Warn
from szilard.lab.workers import describe

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure as JSON: title, caption and the plot's own JSON."""

    title: str
    caption: str
    plot: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Summary:
    """A metric's mean on every arm, in the arms' order; None where the arm has none."""

    metric: str
    means: Sequence[Interval | None]
    last_step: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the claims or the figures could not be computed."""

    what: str
    error: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Results:
    """Everything a report shows beside its manifest."""

    arms: Sequence[str]
    claims: Sequence[Claim]
    figures: Sequence[Drawing]
    summary: Sequence[Summary]
    failures: Sequence[Failure]
    errors: Sequence[Problem]

    def count(self, verdict: Verdict) -> int:
        return sum(claim.verdict == verdict for claim in self.claims)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Results:
        return cls(
            arms=content["arms"],
            claims=[
                Claim(
                    **{
                        **claim,
                        "measured": _interval(claim["measured"]),
                        "verdict": Verdict(claim["verdict"]),
                    }
                )
                for claim in content["claims"]
            ],
            figures=[Drawing(**drawing) for drawing in content["figures"]],
            summary=[
                Summary(line["metric"], [_interval(m) for m in line["means"]], line["last_step"])
                for line in content["summary"]
            ],
            failures=[
                Failure(Unit(**failure["unit"]), failure["error"], failure["traceback"])
                for failure in content["failures"]
            ],
            errors=[Problem(**problem) for problem in content["errors"]],
        )


def judge(
    experiment: Experiment,
    config: Any,
    run: Run,
    units: Sequence[Unit],
    failures: Sequence[Failure],
    warn: Warn,
) -> Results:
    """Judges the claims and draws the figures on the rows in the store.

    What raises here loses no data: it is recorded beside the results that could be had.
    """
    arms = list(dict.fromkeys(unit.arm for unit in units))
    try:
        table = run.read_table(units, warn=warn)
    except StoreError:
        return Results(arms, [], [], [], failures, [])
    claims: Sequence[Claim] = []
    figures: list[Drawing] = []
    errors: list[Problem] = []
    try:
        claims = list(experiment.claims(config, table))
    except Exception as error:
        errors.append(Problem("claims", describe(error), traceback.format_exc()))
    try:
        for figure in experiment.figures(config, table):
            plot = plot_json(figure.plot)
            figures.append(Drawing(figure.title, figure.caption, plot))
    except Exception as error:
        errors.append(Problem("figures", describe(error), traceback.format_exc()))
    for problem in errors:
        warn(f"the {problem.what} could not be computed: {problem.error}")
    return Results(arms, claims, figures, summarise(table, arms), failures, errors)


def summarise(table: pd.DataFrame, arms: Sequence[str]) -> list[Summary]:
    """Mean of every metric on every arm, with intervals over seeds.

    A metric that is a curve (its rows have a `step`) counts at each seed's last step alone; NaN
    values are left out.
    """
    lines = []
    for metric in table["metric"].unique():
        rows = table[table["metric"] == metric].dropna(subset=["value"])
        curve = "step" in rows and rows["step"].notna().any()
        if curve:
            last = rows.groupby(["arm", "seed"])["step"].transform("max")
            rows = rows[rows["step"] == last]
        means = []
        for arm in arms:
            own = rows[rows["arm"] == arm]
            means.append(
                mean_interval(own["value"].to_numpy(), groups=own["seed"].to_numpy())
                if len(own)
                else None
            )
        lines.append(Summary(str(metric), means, bool(curve)))
    return lines


def _interval(content: Mapping[str, float] | None) -> Interval | None:
    return None if content is None else Interval(**content)
