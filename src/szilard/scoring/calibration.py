"""Scores with a test: what a null sample says of a new score, at its exact level.

1. `fit` scores a null sample of n texts.
2. The p-value of a new score s is (1 + #{null scores as extreme as s}) / (n + 1): for texts that are
   exchangeable with the sample it is at most alpha with probability at most alpha, whatever n and the
   score are.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

Tail = Literal["upper", "lower", "two-sided"]
ALL = "all"


class CalibratedTest(NamedTuple):
    """Scores, p-values and decisions; a text without a score has NaN and is not rejected."""

    score: Float[np.ndarray, " texts"]
    p_value: Float[np.ndarray, " texts"]
    reject: Bool[np.ndarray, " texts"]


class CalibratedScorer(BaseEstimator, ABC):
    """A scorer with `fit` on a null sample, `score`, and `test`. Subclasses say how to score.

    Attributes:
        tail: which scores speak against the null: "upper", "lower" or "two-sided".
        null_scores_: sorted scores of the null sample by group.

    Examples:
        >>> class Length(CalibratedScorer):
        ...     def score(self, texts):
        ...         return np.array([float(len(text)) for text in texts])
        >>> test = Length().fit(["a" * i for i in range(1, 100)]).test(["a" * 99, "a" * 50])
        >>> test.p_value.tolist(), test.reject.tolist()
        ([0.02, 0.51], [True, False])

    Source: Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World (2005), section 2.2.
    """

    tail: Tail = "upper"

    @abstractmethod
    def score(self, texts: Sequence[Any]) -> Float[np.ndarray, " texts"]:
        """One number a text, NaN where there is none."""

    def fit(
        self, null: Sequence[Any], groups: Sequence[Hashable] | None = None
    ) -> CalibratedScorer:
        """Calibrates on texts for which the null is true.

        Args:
            null: the sample.
            groups: label of each (its domain); every group is calibrated by itself.

        Raises:
            ValueError: no text, or a group without any score.
        """
        if not len(null):
            raise ValueError("null must hold one text at least")
        scores = np.asarray(self.score(null), dtype=float)
        labels = _labels(groups, len(null))
        self.null_scores_: dict[Hashable, np.ndarray] = {}
        for label in dict.fromkeys(labels):
            here = np.array([other == label for other in labels])
            kept = np.sort(scores[here & np.isfinite(scores)])
            if not len(kept):
                raise ValueError(f"null must have scores in every group, but {label!r} has none")
            self.null_scores_[label] = kept
        return self

    def test(
        self,
        texts: Sequence[Any],
        alpha: float = 0.05,
        groups: Sequence[Hashable] | None = None,
    ) -> CalibratedTest:
        """Tests whether texts are of the null's kind.

        Args:
            texts: to be tested.
            alpha: level, in (0, 1).
            groups: label of each, where the null had them.

        Raises:
            ValueError: a level out of range, or a group that was not calibrated.
            NotFittedError: before `fit`.
        """
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must lie between 0 and 1, but is {alpha}")
        check_is_fitted(self, "null_scores_")
        labels = _labels(groups, len(texts))
        unknown = [label for label in dict.fromkeys(labels) if label not in self.null_scores_]
        if unknown:
            raise ValueError(f"groups must be among those of fit, but hold {unknown[0]!r}")
        smallest = min(1 / (len(null) + 1) for null in self.null_scores_.values())
        if smallest * (1 + (self.tail == "two-sided")) > alpha:
            warnings.warn(
                f"nothing can be rejected at {alpha}: the null sample allows p-values from "
                f"{smallest:.3g} only",
                stacklevel=2,
            )
        scores = np.asarray(self.score(texts), dtype=float)
        p = np.array(
            [self._p_value(s, self.null_scores_[g]) for s, g in zip(scores, labels, strict=True)]
        )
        return CalibratedTest(scores, p, p <= alpha)

    def threshold(self, fpr: float, group: Hashable = ALL) -> float:
        """The score beyond which at most a share `fpr` of the null lies, by `test`.

        Raises:
            ValueError: a two-sided score, or an fpr that the null sample is too small for.
        """
        check_is_fitted(self, "null_scores_")
        if self.tail == "two-sided":
            raise ValueError("threshold needs a score with one tail, but it has two")
        null = self.null_scores_[group]
        beyond = int(np.floor(fpr * (len(null) + 1) + 1e-12)) - 1
        if beyond < 0:
            raise ValueError(
                f"fpr must be at least {1 / (len(null) + 1):.3g} with {len(null)} null texts, but is {fpr}"
            )
        ordered = null if self.tail == "lower" else null[::-1]
        return float(ordered[min(beyond, len(null) - 1)])

    def _p_value(self, score: float, null: np.ndarray) -> float:
        if np.isnan(score):
            return float("nan")
        above = (1 + len(null) - np.searchsorted(null, score, "left")) / (len(null) + 1)
        below = (1 + np.searchsorted(null, score, "right")) / (len(null) + 1)
        if self.tail == "two-sided":
            return float(min(1.0, 2 * min(above, below)))
        return float(above if self.tail == "upper" else below)


def _labels(groups: Sequence[Hashable] | None, n: int) -> list[Hashable]:
    if groups is None:
        return [ALL] * n
    if len(groups) != n:
        raise ValueError(f"groups must be as many as the texts, {n}, but are {len(groups)}")
    return list(groups)
