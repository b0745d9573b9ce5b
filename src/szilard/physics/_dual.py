"""Newton's method on a convex dual: what every maximum-entropy problem comes down to."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

TOLERANCE = 1e-10
MAX_STEPS = 200
_ARMIJO = 1e-4
_HALVINGS = 50


class InfeasibleError(ValueError):
    """No distribution, or no process, has the averages that were asked for.

    Attributes:
        direction: where it can be proved by one, a combination c of the features, shape (features,):
            on every state c . f is at most `bound`, while the averages would have to reach `asked`.
        bound: the largest value of c . f over the states.
        asked: the value of c . F.
    """

    def __init__(
        self,
        message: str,
        direction: np.ndarray | None = None,
        bound: float | None = None,
        asked: float | None = None,
    ) -> None:
        super().__init__(message)
        self.direction = direction
        self.bound = bound
        self.asked = asked


class Point(NamedTuple):
    """The dual at some multipliers; the Hessian is worked out only where a step starts."""

    value: float
    gradient: np.ndarray
    hessian: Callable[[], np.ndarray]


def minimise(
    objective: Callable[[np.ndarray], Point],
    start: np.ndarray,
    one_sided: np.ndarray | None = None,
) -> tuple[np.ndarray, int] | None:
    """Newton with backtracking (Armijo) until no entry of the gradient reaches `TOLERANCE`.

    Args:
        objective: the dual, convex.
        start: multipliers to begin with, shape (features,).
        one_sided: True where a multiplier must not be negative.

    Returns:
        The multipliers and the number of steps; None where they run away.
    """
    held = np.zeros(start.shape, dtype=bool) if one_sided is None else one_sided
    lam = np.where(held, np.maximum(start, 0.0), start)
    here = objective(lam)
    for steps in range(MAX_STEPS + 1):
        # A one-sided constraint that already holds leaves its multiplier at 0.
        free = ~(held & (lam == 0) & (here.gradient >= 0))
        if (np.abs(here.gradient[free]) < TOLERANCE).all():
            return lam, steps
        step = np.zeros_like(lam)
        hessian = here.hessian()[np.ix_(free, free)]
        step[free] = -np.linalg.lstsq(hessian, here.gradient[free], rcond=1e-14)[0]
        slope, size = float(step @ here.gradient), 1.0
        for _ in range(_HALVINGS):
            trial = lam + size * step
            trial = np.where(held, np.maximum(trial, 0.0), trial)
            there = objective(trial)
            # Near the end the dual no longer resolves the decrease that is left.
            if there.value <= here.value + _ARMIJO * size * slope + 1e-14 * abs(here.value):
                break
            size /= 2
        else:
            return None
        lam, here = trial, there
    return None
