"""How well a score separates two kinds: ROC and precision-recall with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class Estimate(NamedTuple):
    """A number and its percentile-bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Separation:
    """Curves of one score, larger for positives.

    Attributes:
        fpr: false-positive rate at every threshold, ascending from 0 to 1.
        tpr: true-positive rate there.
        precision: at every threshold, from the most certain on.
        recall: there.
        auc: area under the ROC curve; ties count half.
        average_precision: area under the precision-recall curve, as a step function.
        tpr_at: true-positive rate at given false-positive rates: that of the largest threshold set whose
            false-positive rate is not above it.
        missing: observations without a score, which were left out.
    """

    fpr: Float[np.ndarray, " points"]
    tpr: Float[np.ndarray, " points"]
    precision: Float[np.ndarray, " thresholds"]
    recall: Float[np.ndarray, " thresholds"]
    auc: Estimate
    average_precision: Estimate
    tpr_at: dict[float, Estimate]
    missing: int

    def plot(self) -> Figure:
        """The ROC curve: a plotly Figure."""
        import plotly.graph_objects as go

        low, high = self.auc.low, self.auc.high
        name = f"AUC {self.auc.value:.3f} [{low:.3f}, {high:.3f}]"
        figure = go.Figure(go.Scatter(x=self.fpr, y=self.tpr, mode="lines", name=name))
        figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line_dash="dot", showlegend=False)
        figure.update_layout(
            xaxis_title="false-positive rate", yaxis_title="true-positive rate", showlegend=True
        )
        return figure


def separation(
    positive: ArrayLike,
    score: ArrayLike,
    *,
    at: Sequence[float] = (0.01, 0.05),
    level: float = 0.95,
    resamples: int = 1000,
    rng: np.random.Generator | None = None,
) -> Separation:
    """ROC and precision-recall of a score, with intervals over observations.

    The bootstrap resamples positives and negatives apart, as many of each as there are.

    Args:
        positive: True for what the score should be large for, (n,).
        score: one number an observation; NaN where there is none.
        at: false-positive rates.
        level: of the intervals.
        resamples: of the bootstrap.
        rng: draws them; seeded with 0 when None.

    Raises:
        ValueError: lengths that differ, or fewer than one scored observation of each kind.

    Examples:
        >>> found = separation([True, True, False, False], [0.9, 0.4, 0.5, 0.1])
        >>> found.auc.value, round(found.average_precision.value, 4)
        (0.75, 0.8333)

    Source: Fawcett, Pattern Recognition Letters 27, 861 (2006); Efron & Tibshirani (1993), chapter 13.
    """
    labels, values = np.asarray(positive), np.asarray(score, dtype=float)
    if labels.shape != values.shape or labels.ndim != 1:
        raise ValueError(f"score must have shape {labels.shape}, but has {values.shape}")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("positive must hold True and False only")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level, resamples: got {level}, {resamples}, must be in (0, 1) and >= 1")
    if not all(0 <= rate <= 1 for rate in at):
        raise ValueError(f"at must hold rates from 0 to 1, but is {tuple(at)}")
    there = ~np.isnan(values)
    labels, values = labels[there].astype(bool), values[there]
    yes, no = values[labels], values[~labels]
    if not len(yes) or not len(no):
        raise ValueError(
            f"positive must have both kinds among what has a score, but has {len(yes)} and {len(no)}"
        )
    # Every threshold is a distinct score; counts of each kind at or above it are all that is needed.
    distinct = np.unique(values)[::-1]
    place_yes, place_no = (np.searchsorted(-distinct, -kind) for kind in (yes, no))
    rng = np.random.default_rng(0) if rng is None else rng
    k = len(distinct)
    weights_yes = np.bincount(place_yes, minlength=k)[None]
    weights_no = np.bincount(place_no, minlength=k)[None]
    tp, fp = weights_yes.cumsum(-1), weights_no.cumsum(-1)
    point = _summaries(weights_yes, weights_no, at)
    drawn = [
        _summaries(_resampled(place_yes, k, size, rng), _resampled(place_no, k, size, rng), at)
        for size in _blocks(resamples, k)
    ]
    tails = (1 - level) / 2, (1 + level) / 2
    estimates = [
        Estimate(float(value[0]), *(float(q) for q in np.quantile(np.concatenate(many), tails)))
        for value, *many in zip(point, *drawn, strict=True)
    ]
    return Separation(
        fpr=np.append(0.0, fp[0] / len(no)),
        tpr=np.append(0.0, tp[0] / len(yes)),
        precision=tp[0] / (tp[0] + fp[0]),
        recall=tp[0] / len(yes),
        auc=estimates[0],
        average_precision=estimates[1],
        tpr_at=dict(zip(at, estimates[2:], strict=True)),
        missing=int((~there).sum()),
    )


def _blocks(resamples: int, k: int) -> list[int]:
    size = max(1, 2_000_000 // max(k, 1))
    return [min(size, resamples - at) for at in range(0, resamples, size)]


def _resampled(place: np.ndarray, k: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Counts at each threshold of `size` bootstrap samples, (size, k)."""
    drawn = place[rng.integers(len(place), size=(size, len(place)))]
    flat = drawn + k * np.arange(size)[:, None]
    return np.bincount(flat.ravel(), minlength=size * k).reshape(size, k)


def _summaries(yes: np.ndarray, no: np.ndarray, at: Sequence[float]) -> list[np.ndarray]:
    """AUC, average precision and rates, of rows of counts by descending threshold."""
    tp, fp = yes.cumsum(-1), no.cumsum(-1)
    positives, negatives = tp[:, -1:], fp[:, -1:]
    auc = ((negatives - fp + no / 2) * yes).sum(-1) / (positives * negatives)[:, 0]
    precision = tp / np.maximum(tp + fp, 1)
    average = (precision * yes).sum(-1) / positives[:, 0]
    rates = [np.where(fp / negatives <= rate, tp / positives, 0).max(-1) for rate in at]
    return [auc, average, *rates]


def prediction_rejection_ratio(correct: ArrayLike, uncertainty: ArrayLike) -> float:
    """How much of what an oracle gains by rejecting wrong answers first an uncertainty gains: at most 1.

    The area between the error left after rejecting the most uncertain answers and that of random
    rejection, over the same area of the oracle. Ties are rejected together.

    Args:
        correct: quality of each answer, 0 to 1.
        uncertainty: larger for what should be rejected first.

    Raises:
        ValueError: lengths that differ, NaN, or qualities that are all the same.

    Examples:
        >>> prediction_rejection_ratio([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9])
        1.0

    Source: Malinin & Gales, Uncertainty Estimation in Autoregressive Structured Prediction (ICLR 2021),
    section 5.
    """
    quality, rank = np.asarray(correct, dtype=float), np.asarray(uncertainty, dtype=float)
    if quality.shape != rank.shape or quality.ndim != 1:
        raise ValueError(f"uncertainty must have shape {quality.shape}, but has {rank.shape}")
    if not (np.isfinite(quality).all() and np.isfinite(rank).all()):
        raise ValueError("correct and uncertainty must be finite")
    if np.ptp(quality) == 0:
        raise ValueError("correct must differ between answers: there is nothing to gain")

    def area(order_by: np.ndarray) -> float:
        # Expected quality of what is kept, among equals in any order.
        _, place, counts = np.unique(order_by, return_inverse=True, return_counts=True)
        mean = np.bincount(place, weights=quality)[place] / counts[place]
        kept = mean[np.argsort(order_by, kind="stable")].cumsum()
        return float((kept / np.arange(1, len(kept) + 1)).mean())

    chance = float(quality.mean())
    return (area(rank) - chance) / (area(-quality) - chance)
