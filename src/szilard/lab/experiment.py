"""What an experiment is: a pure function of (config, arm, seed), and the claims judged on its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Preset = Literal["smoke", "quick", "paper"]
Row = Mapping[str, Any]
"""One tidy observation: `metric` (str), `value` (float) and any further keys (step, prompt, ...)."""
Log = Callable[[float, str], None]
"""`log(fraction, message)` moves the unit's progress bar; fraction in [0, 1]."""


class ExperimentConfig(BaseModel):
    """Base of every experiment's knobs. Frozen and closed: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    seeds: int = Field(default=3, ge=1, description="number of seeds; seed i runs as i")


class Verdict(StrEnum):
    HOLDS = "holds"
    FAILS = "fails"
    NOT_MEASURABLE = "not measurable at this scale"


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value with its confidence interval (low == high == value where it is exact)."""

    value: float
    low: float
    high: float
    level: float = 0.95

    @classmethod
    def exact(cls, value: float) -> Interval:
        return cls(float(value), float(value), float(value), 1.0)


@dataclass(frozen=True, slots=True)
class Claim:
    """One falsifiable statement of the paper beside what was measured here.

    Attributes:
        statement: what is claimed, one sentence.
        paper: the paper's own figure (or its direction, where it gives none).
        measured: the measured quantity, None where this scale can't measure it.
        quantity: what `measured` is, with its unit ("REP(greedy) - REP(typical 0.2)").
        criterion: the test in words, fixed before the run ("> 0.2").
        verdict: holds, fails, or not measurable at this scale.
        note: what a reader must know to judge it (scaled doses, noise, confounds).
    """

    statement: str
    paper: str
    measured: Interval | None
    quantity: str
    criterion: str
    verdict: Verdict
    note: str = ""

    @classmethod
    def judge(
        cls,
        statement: str,
        *,
        paper: str,
        measured: Interval,
        quantity: str,
        above: float | None = None,
        below: float | None = None,
        note: str = "",
    ) -> Claim:
        """Judges `measured` against one threshold.

        Holds when the whole interval lies on the claimed side; fails when the value itself lies on
        the other side (or is not finite); in between the value agrees but its interval does not exclude
        the opposite, and the claim is not measurable at this scale.

        Examples:
            >>> Claim.judge("x is positive", paper="-", measured=Interval(1.0, 0.5, 1.5), quantity="x",
            ...             above=0).verdict.value
            'holds'
            >>> Claim.judge("x is positive", paper="-", measured=Interval(1.0, -0.5, 1.5), quantity="x",
            ...             above=0).verdict.value
            'not measurable at this scale'
        """
        if (above is None) == (below is None):
            raise ValueError("judge: give exactly one of above= and below=")
        if above is not None:
            value_ok, all_ok = measured.value > above, measured.low > above
            criterion = f"> {above:g}"
        else:
            assert below is not None
            value_ok, all_ok = measured.value < below, measured.high < below
            criterion = f"< {below:g}"
        verdict = (
            Verdict.HOLDS
            if value_ok and all_ok
            else Verdict.NOT_MEASURABLE
            if value_ok
            else Verdict.FAILS
        )
        return cls(statement, paper, measured, quantity, criterion, verdict, note)

    @classmethod
    def not_measurable(cls, statement: str, *, paper: str, quantity: str, note: str) -> Claim:
        """A claim this scale can't speak about; `note` says why and which preset can."""
        return cls(statement, paper, None, quantity, "", Verdict.NOT_MEASURABLE, note)


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot a person would look at, with the sentence that says what to see in it."""

    title: str
    caption: str
    plot: go.Figure


class Experiment(Protocol):
    """A paper's claims against its baselines. One module in `szilard.experiments` a method, which
    ends with `experiment = TheClass()`.
    """

    Config: ClassVar[type[ExperimentConfig]]
    presets: ClassVar[Mapping[Preset, ExperimentConfig]]

    def arms(self, config: Any) -> Sequence[str]:
        """Names of the method and its baselines, the method first."""
        ...

    def run(self, config: Any, arm: str, seed: int, log: Log) -> Sequence[Row]:
        """One unit of work: picklable, pure in (config, arm, seed), returns tidy rows."""
        ...

    def claims(self, config: Any, table: pd.DataFrame) -> Sequence[Claim]:
        """The paper's claims judged on all rows (columns: arm, seed, metric, value, and the rows' own)."""
        ...

    def figures(self, config: Any, table: pd.DataFrame) -> Sequence[Figure]:
        """What a person would rather look at."""
        ...
