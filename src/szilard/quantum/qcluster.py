"""Q-Cluster: measured bit strings reshaped by clusters as wide as bit flips make them.

With n bits, M shots and a rate p of bit flips:

1. Radius T = 2 n p (1 - p), twice the variance of the number of flips. Strings farther than T from
   every centroid are outliers.
2. k centroids, at first the most frequent strings: every string joins the nearest within T, every
   bit of a centroid is the majority of its members', until nothing changes.
3. Mass pi_j: the share of shots in cluster j.
4. Every other string s keeps max(0, P(s) - sum_j pi_j p^d(s,c_j) (1 - p)^(n - d(s,c_j))), what the
   centroids' flips do not explain; a centroid gets pi_j. All is normalised to D_k.
5. k grows from 1 until D_k differs no more from D_(k-1), in Hellinger fidelity; D_(k-1) is the result.

Source: Patil, Baron, Zhou, Q-Cluster: Quantum Error Mitigation Through Noise-Aware Unsupervised
Learning (IEEE QCE 2025; arXiv 2504.10801).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator

from szilard.kernels import bitstrings
from szilard.quantum._majority import majority_clusters
from szilard.quantum.bit_flips import check_rate, mixture_rate, table
from szilard.quantum.counts import Shots, binary_entropy, read_counts, unpacked

_LOW_ENTROPY = 0.6


class HighEntropyWarning(UserWarning):
    """The ideal distribution cannot have been one of few strings: there is nothing to sharpen."""


class QCluster(BaseEstimator):
    """Mitigates errors of measured bit strings by clustering them, from the counts alone.

    For circuits whose ideal result has few strings (normalised entropy up to 0.6). The result does
    not depend on the order of the counts, nor on their scale.

    Args:
        p: probability that a bit is flipped, in [0, 0.5), from `effective_rate` on a circuit like
            this one or from a trained `EffectiveErrorRate`; "auto" estimates it from the counts
            (`mixture_rate`).
        n_clusters: k, where it is known; None lets it grow until the result settles.
        tol: Hellinger fidelity of successive results at which k is large enough, in (0, 1].
        radius_mul: radius of a cluster over n p (1 - p).
        max_clusters: the largest k that is tried.
        max_iter: most rounds of votes for one k.

    Attributes:
        p_: the rate that was used.
        radius_: T, in bits; below 1 every cluster is a single string.
        n_clusters_: k; clusters whose centroids came to coincide count once in `centroids_`.
        centroids_: their strings.
        masses_: their share of the shots; outliers have the rest.
        strings_: the distinct strings measured, ascending.
        labels_: the cluster of each, -1 for an outlier.
        distribution_: mitigated probability by string, ascending; sums to 1.
        history_: (k, Hellinger fidelity to the result of k - 1) for every k that was tried from 2 on.

    Raises:
        ValueError: an argument out of its range.

    Examples:
        >>> from szilard.quantum import bitflip, hellinger_fidelity
        >>> ideal = {"0101010101": 3, "1111111111": 1}
        >>> counts = bitflip(ideal, 0.1, 8192, np.random.default_rng(0))
        >>> mitigated = QCluster(p=0.1).mitigate(counts)
        >>> hellinger_fidelity(ideal, counts) < 0.4 < 0.7 < hellinger_fidelity(ideal, mitigated)
        True

    Source: Patil, Baron, Zhou, Q-Cluster: Quantum Error Mitigation Through Noise-Aware Unsupervised
    Learning (IEEE QCE 2025; arXiv 2504.10801).
    """

    def __init__(
        self,
        p: float | Literal["auto"] = "auto",
        n_clusters: int | None = None,
        *,
        tol: float = 0.95,
        radius_mul: float = 2.0,
        max_clusters: int = 1024,
        max_iter: int = 300,
    ) -> None:
        self.p = p
        self.n_clusters = n_clusters
        self.tol = tol
        self.radius_mul = radius_mul
        self.max_clusters = max_clusters
        self.max_iter = max_iter

    def fit(self, counts: Any, width: int | None = None) -> QCluster:
        """Clusters counts and works out their mitigated distribution.

        Args:
            counts: a mapping from bit strings, Qiskit's `Counts` or `BitArray`, or a result of its
                sampler; probabilities will do where p is given.
            width: bits of a string, where keys are numbers.

        Raises:
            ValueError: as `read_counts`; more clusters than distinct strings; p to be estimated from
                probabilities.
        """
        self._check()
        shots = read_counts(counts, width)
        if self.n_clusters is not None and self.n_clusters > len(shots.words):
            raise ValueError(
                f"n_clusters must be at most the number of distinct strings, {len(shots.words)}, "
                f"but is {self.n_clusters}"
            )
        self.p_ = mixture_rate(shots) if self.p == "auto" else float(self.p)
        self.radius_ = self.radius_mul * shots.width * self.p_ * (1 - self.p_)
        self._shots = shots
        self.history_: list[tuple[int, float]] = []
        found = self._reshaped(self.n_clusters) if self.n_clusters else self._grown()
        self.n_clusters_ = found.k
        self.centroids_ = unpacked(found.centres, shots.width)
        self.masses_ = found.masses
        self.labels_ = found.labels
        self.distribution_ = found.distribution(shots)
        self._warn(found)
        return self

    def mitigate(self, counts: Any, width: int | None = None) -> dict[str, float]:
        """The mitigated distribution of counts: fits them and returns `distribution_`."""
        return self.fit(counts, width).distribution_

    @property
    def strings_(self) -> list[str]:
        """The distinct strings measured, ascending."""
        return self._shots.strings()

    def plot(self, top: int = 30) -> Any:
        """The most probable strings before and after, and how the result settled as k grew.

        Args:
            top: how many strings are shown.

        Returns:
            A plotly Figure.
        """
        from plotly.subplots import make_subplots

        before = dict(zip(self.strings_, self._shots.probabilities, strict=True))
        after = self.distribution_
        weight = {s: max(before.get(s, 0.0), after.get(s, 0.0)) for s in {*before, *after}}
        shown = sorted(weight, key=lambda s: (-weight[s], s))[:top]
        figure = make_subplots(
            1, 2, column_widths=[0.7, 0.3], subplot_titles=("probability", "growing k")
        )
        # Strings of digits would be taken for numbers.
        figure.update_xaxes(type="category", row=1, col=1)
        for name, values in (("measured", before), ("mitigated", after)):
            figure.add_bar(x=shown, y=[values.get(s, 0.0) for s in shown], name=name, row=1, col=1)
        figure.add_scatter(
            x=[k for k, _ in self.history_],
            y=[fidelity for _, fidelity in self.history_],
            mode="lines+markers",
            showlegend=False,
            row=1,
            col=2,
        )
        figure.update_xaxes(title="clusters k", row=1, col=2)
        figure.update_yaxes(title="fidelity to the result of k - 1", row=1, col=2)
        return figure

    def _check(self) -> None:
        if isinstance(self.p, str):
            if self.p != "auto":
                raise ValueError(f"p must be a rate or 'auto', but is {self.p!r}")
        else:
            check_rate(self.p)
        if not 0 < self.tol <= 1:
            raise ValueError(f"tol must be above 0 and at most 1, but is {self.tol}")
        if not (math.isfinite(self.radius_mul) and self.radius_mul >= 0):
            raise ValueError(f"radius_mul must not be negative, but is {self.radius_mul}")
        for name in ("n_clusters", "max_clusters", "max_iter"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")

    def _grown(self) -> _Reshaped:
        """Step 5."""
        best = self._reshaped(1)
        for k in range(2, min(self.max_clusters, len(self._shots.words)) + 1):
            found = self._reshaped(k)
            self.history_.append((k, best.fidelity(found)))
            if self.history_[-1][1] >= self.tol:
                break
            best = found
        return best

    def _reshaped(self, k: int) -> _Reshaped:
        """Steps 2 to 4."""
        shots = self._shots
        # A product that is a whole number must not fall below it by rounding.
        radius = math.floor(self.radius_ + 1e-9)
        order = np.argsort(-shots.weights, kind="stable")[:k]
        centres, labels, apart = majority_clusters(shots, shots.words[order], radius, self.max_iter)
        members = labels >= 0
        p = shots.probabilities
        masses = np.bincount(labels[members], p[members], len(centres))
        leaked = bitstrings.leakage(shots.words, centres, masses, table(shots.width, self.p_))
        left = np.maximum(p - leaked, 0)
        here = apart == 0
        left[here] = masses[labels[here]]
        unseen = masses.copy()
        unseen[labels[here]] = 0
        total = left.sum() + unseen.sum()
        return _Reshaped(k, centres, labels, masses, left / total, unseen / total)

    def _warn(self, found: _Reshaped) -> None:
        shots, n = self._shots, self._shots.width
        p = shots.probabilities
        entropy = -float(p @ np.log2(p)) / n
        # Flips at rate p add at most their own entropy.
        least = entropy - binary_entropy(self.p_)
        rest = (1 - found.masses.sum()) * 2.0**-n
        flips = table(n, self.p_)
        model = rest + bitstrings.leakage(shots.words, found.centres, found.masses, flips)
        with np.errstate(divide="ignore"):
            clusters = -float(p @ np.log2(np.maximum(model, 0))) / n
        if least > _LOW_ENTROPY or (self.p_ > 0 and clusters >= 1):
            reason = (
                f"its normalised entropy is at least {least:.2f}"
                if least > _LOW_ENTROPY
                else "the clusters describe the shots no better than coin tosses"
            )
            warnings.warn(
                f"the ideal distribution does not look like one of few strings ({reason}): "
                "mitigation may make it worse",
                HighEntropyWarning,
                stacklevel=3,
            )


@dataclass(frozen=True)
class _Reshaped:
    """D_k: `left` of every measured string, and of centroids that were never measured."""

    k: int
    centres: np.ndarray
    labels: np.ndarray
    masses: np.ndarray
    left: np.ndarray
    unseen: np.ndarray

    def fidelity(self, other: _Reshaped) -> float:
        mine = dict(zip(map(bytes, self.centres), self.unseen, strict=True))
        overlap = float(np.sqrt(self.left * other.left).sum())
        for centre, mass in zip(map(bytes, other.centres), other.unseen, strict=True):
            overlap += math.sqrt(mine.get(centre, 0.0) * mass)
        return overlap**2

    def distribution(self, shots: Shots) -> dict[str, float]:
        rows = np.concatenate([shots.words[self.left > 0], self.centres[self.unseen > 0]])
        values = np.concatenate([self.left[self.left > 0], self.unseen[self.unseen > 0]])
        rows, values = bitstrings.distinct(rows, values)
        return dict(zip(unpacked(rows, shots.width), values.tolist(), strict=True))
