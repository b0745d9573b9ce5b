"""Shapes of learning curves, and a power law through them: the arithmetic of pretraining dynamics."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

DIP = 1 / 11
"""Share of a run in which a metric may dip below chance before it rises."""
EXPONENTS = (0.02, 3.0)
"""Range of the power law's exponent."""


def log_schedule(n: int, last: int, first: int = 1) -> list[int]:
    """Steps at which to look, equally spaced on a logarithmic scale.

    Args:
        n: how many; equal ones after rounding count once.
        last: the last step.
        first: the first step.

    Raises:
        ValueError: n below 2, or not 1 <= first <= last.

    Examples:
        >>> log_schedule(5, 1000)
        [1, 6, 32, 178, 1000]
    """
    if n < 2:
        raise ValueError(f"n must be at least 2, but is {n}")
    if not 1 <= first <= last:
        raise ValueError(f"1 <= first <= last must hold, but first is {first} and last is {last}")
    return sorted({round(step) for step in np.geomspace(first, last, n).tolist()})


def progress(
    x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"], *, dip: float = DIP
) -> Float[np.ndarray, "n"]:
    """How much of its rise a curve has behind it, at each of its points.

    The lowest point of the first `dip` of the run stands for all before it (some benchmarks fall below
    chance before they rise); then the running maximum, scaled to [0, 1]. Affine changes of y and changes
    of the unit of x leave it as it is.

    Args:
        x: tokens or steps, increasing, positive.
        y: the metric; higher is better.
        dip: share of the run in which the curve may fall first.

    Returns:
        Non-decreasing, from 0 to 1.

    Raises:
        ValueError: x does not increase or is not positive, a NaN, or a curve that never rises.

    Examples:
        >>> progress(np.array([1.0, 2.0, 11.0, 22.0]), np.array([0.3, 0.2, 0.7, 0.6])).tolist()
        [0.0, 0.0, 1.0, 1.0]
    """
    _check_curve(x, y)
    # Rounding must not cut off a point that lies on the boundary.
    early = x <= dip * x[-1] * (1 + 1e-9)
    lowest = int(np.argmin(y[early])) if early.any() else 0
    z = np.maximum.accumulate(np.where(np.arange(len(y)) < lowest, y[lowest], y))
    if z[-1] == z[0]:
        raise ValueError("y must rise, but has no point above its early minimum")
    return (z - z[0]) / (z[-1] - z[0])


def half_rise(x: Float[np.ndarray, "n"], g: Float[np.ndarray, "n"]) -> float:
    """Where a curve has half of its rise behind it, interpolated in ln x; in the unit of x.

    Args:
        x: tokens or steps, increasing, positive.
        g: progress at x.

    Examples:
        >>> round(half_rise(np.array([1.0, 100.0]), np.array([0.0, 1.0])), 9)
        10.0
    """
    i = int(np.argmax(g >= 0.5))
    share = (0.5 - g[i - 1]) / (g[i] - g[i - 1])
    return math.exp(math.log(x[i - 1]) + share * math.log(x[i] / x[i - 1]))


def shape_distance(
    x_a: Float[np.ndarray, "n"],
    g_a: Float[np.ndarray, "n"],
    x_b: Float[np.ndarray, "m"],
    g_b: Float[np.ndarray, "m"],
) -> float:
    """Mean distance of two progress curves over ln x: 0 for one shape, at most 1.

    Trapezoids on the union of both grids, within the range that both cover.

    Args:
        x_a: points of the first curve, increasing, positive.
        g_a: its progress.
        x_b: points of the second curve.
        g_b: its progress.

    Raises:
        ValueError: the ranges do not overlap.

    Examples:
        >>> x, g = np.array([1.0, 10.0, 100.0]), np.array([0.0, 0.5, 1.0])
        >>> round(shape_distance(x, g, x, g**2), 9)
        0.125
    """
    u = common_grid(x_a, x_b)
    gap = np.abs(np.interp(u, np.log(x_a), g_a) - np.interp(u, np.log(x_b), g_b))
    return float(np.trapezoid(gap, u) / (u[-1] - u[0]))


def common_grid(*grids: Float[np.ndarray, "_"]) -> Float[np.ndarray, "n"]:
    """Logarithms of the points of all grids, within the range that all of them cover.

    Args:
        grids: increasing positive points.

    Raises:
        ValueError: the ranges do not overlap.
    """
    low, high = max(grid[0] for grid in grids), min(grid[-1] for grid in grids)
    if not low < high:
        raise ValueError("the curves must share a range of tokens, but do not overlap")
    points = np.unique(np.concatenate(grids))
    return np.log(points[(points >= low) & (points <= high)])


def noise(y: Float[np.ndarray, "n"], stderr: Float[np.ndarray, "n"]) -> float:
    """Standard error of a metric near its last points.

    The mean of the last three standard errors; where they are not known, that of independent noise
    which would give the second differences of the curve's later half their median.

    Args:
        y: the metric.
        stderr: its standard errors, NaN where not known.
    """
    last = stderr[-3:]
    if not np.isnan(last).any():
        return float(last.mean())
    # Var(y1 - 2 y2 + y3) = 6 se^2; the median keeps the few steps of a steep rise out.
    later = y[-max(9, len(y) // 2) :]
    return float(np.median(np.abs(np.diff(later, 2))) / (0.6745 * math.sqrt(6)))


def rise(y: Float[np.ndarray, "n"]) -> float:
    """Mean of the last three points less the mean of the first ones (four, if so many remain).

    Examples:
        >>> rise(np.array([0.0, 0, 0, 0, 1, 2, 3]))
        2.0
    """
    return float(y[-3:].mean() - y[: max(1, min(4, len(y) - 3))].mean())


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """y = a - b x^(-c), for one curve or many.

    Attributes:
        a: what y tends to.
        b: how far below a it is at x = 1.
        c: how fast it gets there.
    """

    a: Float[np.ndarray, "*batch"]
    b: Float[np.ndarray, "*batch"]
    c: Float[np.ndarray, "*batch"]

    def __call__(self, x: Float[np.ndarray, "n"]) -> Float[np.ndarray, "*batch n"]:
        """Values at x."""
        return self.a[..., None] - self.b[..., None] * x ** -self.c[..., None]


def fit_power_law(
    x: Float[np.ndarray, "n"],
    y: Float[np.ndarray, "curves n"],
    *,
    weights: Float[np.ndarray, "n"] | None = None,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> PowerLaw:
    """The least-squares power laws through curves, with a within limits, b >= 0, 0.02 <= c <= 3.

    For a given c the problem is a convex one in a and b whose solution is known; c is searched on a
    grid that is refined around its best point. The result is the global minimum, not that of a start.

    Args:
        x: points, positive.
        y: one curve a row.
        weights: of the squares, 1 by default.
        limits: lowest and highest a.

    Raises:
        ValueError: fewer than three points.

    Examples:
        >>> x = np.geomspace(0.01, 1, 8)
        >>> law = fit_power_law(x, (0.8 - 0.2 * x**-0.5)[None])
        >>> [round(float(p[0]), 5) for p in (law.a, law.b, law.c)]
        [0.8, 0.2, 0.5]
    """
    if len(x) < 3:
        raise ValueError(f"x must hold at least 3 points, but holds {len(x)}")
    w = np.ones_like(x) if weights is None else weights
    w = w / w.sum()
    low, high = EXPONENTS
    ratio = (high / low) ** (1 / 64)
    c = np.geomspace(low, high, 65)[None].repeat(len(y), 0)
    rows = np.arange(len(y))
    for zoom in range(10):
        a, b, loss = _amplitudes(np.log(x), y, w, c, limits)
        best = loss.argmin(1)
        law = PowerLaw(a[rows, best], b[rows, best], c[rows, best])
        reach = np.linspace(-1, 1, 9) * math.log(ratio) / 4**zoom
        c = np.clip(law.c[:, None] * np.exp(reach), low, high)
    return law


def _amplitudes(
    u: Float[np.ndarray, "n"],
    y: Float[np.ndarray, "curves n"],
    w: Float[np.ndarray, "n"],
    c: Float[np.ndarray, "curves k"],
    limits: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best a and b for each exponent, and the loss: the inner optimum, or that of an edge."""
    p = np.exp(-c[..., None] * u)
    mean_p, mean_y = p @ w, (y @ w)[:, None]
    spread = ((p - mean_p[..., None]) ** 2) @ w
    covariance = np.einsum("rkn,rn,n->rk", p - mean_p[..., None], y, w)
    slope = np.divide(-covariance, spread, out=np.zeros_like(spread), where=spread > 0)
    candidates = [
        (mean_y + slope * mean_p, slope),
        (np.clip(mean_y, *limits) + 0 * slope, 0 * slope),
    ]
    for edge in filter(math.isfinite, limits):
        on_edge = ((edge * mean_p) - np.einsum("rkn,rn,n->rk", p, y, w)) / (p**2 @ w)
        candidates.append((np.full_like(slope, edge), np.maximum(on_edge, 0)))
    a, b = (np.stack(values) for values in zip(*candidates, strict=True))
    residual = y[None, :, None] - a[..., None] + b[..., None] * p
    loss = residual**2 @ w
    loss[(b < 0) | (a < limits[0]) | (a > limits[1])] = math.inf
    best = loss.argmin(0)[None]
    return tuple(np.take_along_axis(v, best, 0)[0] for v in (a, b, loss))


def permutation_p_value(
    distances: Float[np.ndarray, "models tasks models tasks"],
    n: int,
    rng: np.random.Generator,
) -> float:
    """How often shuffled task labels bring the curves of one label as close together as the true ones.

    Labels are shuffled within each model, which keeps every distance within a model as it is.

    Args:
        distances: between the curves of all models and tasks.
        n: permutations.
        rng: draws them.

    Returns:
        (1 + permutations at or below the observed mean) / (1 + n).
    """
    models, tasks = distances.shape[:2]
    shuffled = rng.permuted(np.tile(np.arange(tasks), (n, models, 1)), axis=-1)
    observed = _mean_same(distances, np.tile(np.arange(tasks), (1, models, 1)))
    # Sums of the same terms in another order differ by rounding.
    below = _mean_same(distances, shuffled) <= observed + 1e-12
    return float((1 + below.sum()) / (1 + n))


def _mean_same(
    distances: Float[np.ndarray, "models tasks models tasks"],
    labels: Int[np.ndarray, "n models tasks"],
) -> Float[np.ndarray, "n"]:
    a, b = np.triu_indices(distances.shape[0], 1)
    return distances[a[:, None], labels[:, a], b[:, None], labels[:, b]].mean((1, 2))


def _check_curve(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> None:
    if x.shape != y.shape or len(x) < 2:
        raise ValueError(f"x and y must be two or more pairs, but are {len(x)} and {len(y)} long")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("x and y must be finite, but hold a NaN or an infinity")
    if x[0] <= 0 or (np.diff(x) <= 0).any():
        raise ValueError("x must be positive and increase from point to point, but does not")
