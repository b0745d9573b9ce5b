"""How a measure moves with adversarial training, over layers and over studies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, slots=True)
class Effect:
    """An estimate with its standard error.

    Attributes:
        value: the estimate.
        error: its standard error.
    """

    value: float
    error: float

    @property
    def z(self) -> float:
        """The estimate in standard errors."""
        if self.error:
            return self.value / self.error
        return math.copysign(math.inf, self.value) if self.value else math.nan


def robustness_slope(
    eps: Float[np.ndarray, "runs"],
    features: Float[np.ndarray, "*layers runs"],
    parameters: Sequence[float] | None = None,
) -> Effect:
    """Relative change of the effective features per unit of adversarial training strength.

    Each layer's F is regressed on eps by least squares and divided by its mean at eps = 0; layers are
    averaged with the number of their parameters as weights, their errors taken as independent. At one
    eps there may be several runs: seeds, and measurements on clean and on attacked inputs.

    Args:
        eps: training strength of each run, 0 among them, at least two values, three runs.
        features: F of each run, of one layer or of several.
        parameters: weight of each layer; equal by default.

    Raises:
        ValueError: lengths differ, no run at 0, fewer than three runs or two strengths, not finite,
            or a mean of F at 0 that is not positive.

    Examples:
        >>> slope = robustness_slope(np.array([0.0, 0.1, 0.2, 0.3]), np.array([20.0, 18.0, 16.0, 14.0]))
        >>> round(slope.value, 9)
        -1.0

    Source: Bereska et al., Superposition as Lossy Compression (2025), arXiv 2512.13568, section on
    adversarial robustness.
    """
    x = np.asarray(eps, dtype=np.float64)
    y = np.atleast_2d(np.asarray(features, dtype=np.float64))
    if x.ndim != 1 or y.ndim != 2 or y.shape[1] != len(x):
        raise ValueError(
            f"features must have a value for each of the {x.size} eps, but has shape {y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("eps and features must be finite")
    if len(x) < 3 or len(np.unique(x)) < 2 or not (x == 0).any():
        raise ValueError(f"eps must hold 0, another strength and at least three runs, but is {x}")
    start = y[:, x == 0].mean(1)
    if not (start > 0).all():
        raise ValueError(f"features must have a positive mean at eps = 0, but has {start}")
    weights = np.ones(len(y)) if parameters is None else np.asarray(parameters, dtype=np.float64)
    if weights.shape != (len(y),) or not (weights >= 0).all() or not weights.sum() > 0:
        raise ValueError(f"parameters must be {len(y)} non-negative weights, but is {parameters}")
    centred = x - x.mean()
    spread = (centred**2).sum()
    slopes = y @ centred / spread
    left = y - y.mean(1, keepdims=True) - slopes[:, None] * centred
    errors = np.sqrt((left**2).sum(1) / (len(x) - 2) / spread)
    weights = weights / weights.sum()
    value = float(weights @ (slopes / start))
    return Effect(value, float(np.sqrt(((weights * errors / start) ** 2).sum())))


def combine_effects(effects: Sequence[Effect]) -> Effect:
    """Fixed-effect meta-analysis: the mean weighted by inverse variances, with its error.

    Raises:
        ValueError: no effects, or an error that is not positive and finite.

    Examples:
        >>> combine_effects([Effect(1.0, 1.0), Effect(4.0, 2.0)])
        Effect(value=1.6, error=0.8944271909999159)

    Source: Cochran (1954), The combination of estimates from different experiments.
    """
    if not effects:
        raise ValueError("effects must hold at least one effect, but is empty")
    for effect in effects:
        if not (effect.error > 0 and math.isfinite(effect.error) and math.isfinite(effect.value)):
            raise ValueError(f"effects must have positive finite errors, but one is {effect}")
    precision = [effect.error**-2 for effect in effects]
    value = sum(p * effect.value for p, effect in zip(precision, effects, strict=True))
    return Effect(value / sum(precision), sum(precision) ** -0.5)
