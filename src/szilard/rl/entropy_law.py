"""The exchange of entropy for reward in RL: R = -a exp(H) + b."""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float
from numpy import ndarray

_FEW = 8


class EntropyLaw:
    """Least-squares fit of a run's reward against its policy entropy, R = -a e^H + b.

    Linear in (a, b), hence closed form. The ceiling b - a is the reward the law extrapolates to at H = 0;
    it was found on runs without any entropy intervention, and one pair (a, b) need not hold across arms.

    Attributes:
        a_: reward units per unit of e^H; 0 or more where reward is paid for with entropy.
        b_: reward units.
        ceiling_: b - a, the reward at zero entropy.
        rmse_: root mean square residual, reward units.
        r2_: share of the reward's variance explained (NaN when all rewards are equal).

    Examples:
        >>> H = np.linspace(0.1, 1.0, 10)
        >>> law = EntropyLaw().fit(H, -0.21 * np.exp(H) + 0.74)
        >>> round(law.a_, 6), round(law.b_, 6), round(law.ceiling_, 6)
        (0.21, 0.74, 0.53)

    Source: arXiv 2505.22617, eq. 1 and section 2.4.
    """

    a_: float
    b_: float
    ceiling_: float
    rmse_: float
    r2_: float

    def fit(
        self, entropy: Float[ndarray, "points"], reward: Float[ndarray, "points"]
    ) -> EntropyLaw:
        """Fits (a, b) to a run's evaluations.

        Args:
            entropy: mean token entropy of each evaluation, nats.
            reward: reward of each evaluation.

        Returns:
            The fitted law.

        Raises:
            ValueError: shapes that differ, fewer than 3 points, values that are not finite, or entropies
                that are all equal.

        Warns:
            UserWarning: fewer than 8 points; such a fit says little.
        """
        entropy, reward = (
            np.asarray(entropy, dtype=np.float64),
            np.asarray(reward, dtype=np.float64),
        )
        if entropy.ndim != 1 or entropy.shape != reward.shape:
            raise ValueError(
                f"entropy, reward: shapes {entropy.shape} and {reward.shape}; must be equal and one-dimensional"
            )
        if len(entropy) < 3:
            raise ValueError(f"entropy: {len(entropy)} points; two parameters need at least 3")
        for name, values in (("entropy", entropy), ("reward", reward)):
            if not np.isfinite(values).all():
                raise ValueError(f"{name}: holds values that are not finite")
        if np.ptp(entropy) == 0:
            raise ValueError(
                f"entropy: every value is {entropy[0]}; the fit needs at least two levels"
            )
        if len(entropy) < _FEW:
            warnings.warn(
                f"EntropyLaw fitted on {len(entropy)} points; use {_FEW} or more", stacklevel=2
            )
        design = np.column_stack([-np.exp(entropy), np.ones_like(entropy)])
        (a, b), *_ = np.linalg.lstsq(design, reward, rcond=None)
        self.a_, self.b_ = float(a), float(b)
        self.ceiling_ = self.b_ - self.a_
        residual = reward - self.predict(entropy)
        self.rmse_ = float(np.sqrt(np.mean(residual**2)))
        variance = float(np.var(reward))
        self.r2_ = 1.0 - self.rmse_**2 / variance if variance > 0 else float("nan")
        return self

    def predict(self, entropy: Float[ndarray, "*points"]) -> Float[ndarray, "*points"]:
        """Reward of the fitted law at the given entropies (nats).

        Raises:
            AttributeError: the law is not fitted yet.
        """
        if not hasattr(self, "a_"):
            raise AttributeError("EntropyLaw is not fitted: call fit(entropy, reward) first")
        return -self.a_ * np.exp(np.asarray(entropy, dtype=np.float64)) + self.b_
