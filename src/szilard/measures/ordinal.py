"""Ordinal patterns of time series, their entropy and their statistical complexity.

A window of `dimension` points, `delay` steps apart, is replaced by the ranks of its values. What is
left of the series is the distribution over the dimension! rank vectors: it doesn't change under any
increasing map of the values, and needs no model of what made them.

The last axis is time; leading axes are a batch of series. Arrays in, arrays out; tensors in, tensors
out, on their device. Pattern k is the k-th rank vector in lexicographic order, `pattern_ranks`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import permutations
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from scipy.special import entr
from torch import Tensor

from szilard.measures._checks import as_tensor, check_probabilities, log_base

Array = np.ndarray | Tensor
Ties = Literal["stable", "dither"]

MAX_DIMENSION = 10  # 10! patterns is the largest table worth holding


class OrdinalStatistics(NamedTuple):
    """What one pass over a batch of series finds.

    Attributes:
        entropy: permutation entropy over its maximum, H in [0, 1].
        complexity: Jensen-Shannon statistical complexity C.
        distinct: how many of the dimension! patterns occur.
    """

    entropy: Float[Array, "*batch"]
    complexity: Float[Array, "*batch"]
    distinct: Int[Array, "*batch"]


class EntropyComplexity(NamedTuple):
    """A point of the entropy-complexity plane: H in [0, 1] and C, both without unit."""

    entropy: Float[Array, "*batch"]
    complexity: Float[Array, "*batch"]


class Envelope(NamedTuple):
    """Least and greatest complexity a distribution of entropy H can have."""

    entropy: Float[np.ndarray, " points"]
    lower: Float[np.ndarray, " points"]
    upper: Float[np.ndarray, " points"]


@lru_cache(maxsize=16)
def pattern_ranks(dimension: int) -> Int[np.ndarray, "patterns dimension"]:
    """Rank vectors of all patterns, in the order their probabilities come in.

    Args:
        dimension: points of a window, 2 to 10.

    Returns:
        (dimension!, dimension) ranks from 0; row k says where in the sorted window each point
        stands. Read-only. Its inverse permutation, the argsort of the window, is the other
        convention in use: it swaps the names of 231 and 312.

    Raises:
        ValueError: dimension out of range.

    Examples:
        >>> pattern_ranks(3).tolist()
        [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]

    Source: Bandt & Pompe, Phys. Rev. Lett. 88, 174102 (2002).
    """
    _check_dimension(dimension)
    ranks = np.array(list(permutations(range(dimension))), dtype=np.int8)
    ranks.flags.writeable = False
    return ranks


def ordinal_patterns(
    x: Real[Array, "*batch time"],
    dimension: int = 5,
    delay: int = 1,
    *,
    ties: Ties = "stable",
    rng: np.random.Generator | None = None,
) -> Int[Array, "*batch windows"]:
    """Index of every window's ordinal pattern.

    Args:
        x: series; the last axis is time.
        dimension: points of a window (the embedding dimension), 2 to 10.
        delay: steps between the points of a window.
        ties: "stable" ranks equal values by time, which turns plateaus into rising patterns;
            "dither" ranks them at random, the limit of a vanishing dither.
        rng: source of that randomness, required by "dither".

    Returns:
        Indices into `pattern_ranks(dimension)`, int32, for the time - delay (dimension - 1) windows.

    Raises:
        ValueError: NaN or infinite values, a series shorter than one window, an impossible
            dimension, delay or ties.

    Examples:
        >>> ordinal_patterns(np.array([4.0, 7.0, 9.0, 10.0, 6.0, 11.0, 3.0]), dimension=3).tolist()
        [0, 0, 3, 2, 3]

    Source: Bandt & Pompe, Phys. Rev. Lett. 88, 174102 (2002).
    """
    from szilard.kernels import ordinal

    series = _series(x, dimension, delay, ties, rng)
    indices, finite = ordinal.pattern_indices(series, dimension, delay)
    _check_finite(finite)
    return indices.reshape(*x.shape[:-1], indices.shape[-1])


def ordinal_distribution(
    x: Real[Array, "*batch time"],
    dimension: int = 5,
    delay: int = 1,
    *,
    ties: Ties = "stable",
    rng: np.random.Generator | None = None,
) -> Float[Array, "*batch patterns"]:
    """Relative frequency of every ordinal pattern; a pattern that never occurs counts 0.

    Args:
        x: series; the last axis is time.
        dimension: points of a window, 2 to 10.
        delay: steps between the points of a window.
        ties: what ranks equal values, as in `ordinal_patterns`.
        rng: as in `ordinal_patterns`.

    Returns:
        dimension! probabilities a series, in the order of `pattern_ranks`, float64.

    Raises:
        ValueError: as `ordinal_patterns`.

    Examples:
        >>> p = ordinal_distribution(np.array([4.0, 7.0, 9.0, 10.0, 6.0, 11.0, 3.0]), dimension=3)
        >>> p.tolist()
        [0.4, 0.0, 0.2, 0.4, 0.0, 0.0]
        >>> pattern_ranks(3)[p == 0].tolist()  # the missing patterns
        [[0, 2, 1], [2, 0, 1], [2, 1, 0]]

    Source: Bandt & Pompe, Phys. Rev. Lett. 88, 174102 (2002).
    """
    from szilard.kernels import ordinal

    series = _series(x, dimension, delay, ties, rng)
    counts, finite = ordinal.pattern_counts(series, dimension, delay)
    _check_finite(finite)
    windows = x.shape[-1] - delay * (dimension - 1)
    p = counts.double() / windows if isinstance(counts, Tensor) else counts / windows
    return p.reshape(*x.shape[:-1], p.shape[-1])


def ordinal_statistics(
    x: Real[Array, "*batch time"],
    dimension: int = 5,
    delay: int = 1,
    *,
    ties: Ties = "stable",
    rng: np.random.Generator | None = None,
) -> OrdinalStatistics:
    """Entropy, complexity and number of patterns of every series in one pass.

    The distributions themselves are never held: memory does not grow with dimension!.

    Args:
        x: series; the last axis is time.
        dimension: points of a window, 2 to 10.
        delay: steps between the points of a window.
        ties: what ranks equal values, as in `ordinal_patterns`.
        rng: as in `ordinal_patterns`.

    Returns:
        H and C without unit, and the number of distinct patterns.

    Raises:
        ValueError: as `ordinal_patterns`.

    Examples:
        >>> ordinal_statistics(np.array([4.0, 7.0, 9.0, 10.0, 6.0, 11.0, 3.0]), dimension=3).distinct
        array(3)

    Source: Bandt & Pompe (2002); Lamberti, Martin, Plastino & Rosso, Physica A 334, 119 (2004).
    """
    from szilard.kernels import ordinal

    series = _series(x, dimension, delay, ties, rng)
    rows, finite = ordinal.pattern_entropies(series, dimension, delay)
    _check_finite(finite)
    rows = rows.reshape(*x.shape[:-1], 3)
    h, c = _entropy_complexity(rows[..., 0], rows[..., 1], math.factorial(dimension))
    distinct = rows[..., 2]
    if isinstance(distinct, Tensor):
        return OrdinalStatistics(h, c, distinct.long())
    # np.asarray: a single series is an array without axes, not a NumPy scalar.
    return OrdinalStatistics(np.asarray(h), np.asarray(c), np.asarray(distinct, dtype=np.int64))


def permutation_entropy(
    x: Real[Array, "*batch time"],
    dimension: int = 5,
    delay: int = 1,
    *,
    base: float | None = None,
    normalize: bool = False,
    ties: Ties = "stable",
    rng: np.random.Generator | None = None,
) -> Float[Array, "*batch"]:
    """Shannon entropy of the ordinal patterns.

    Args:
        x: series; the last axis is time.
        dimension: points of a window, 2 to 10.
        delay: steps between the points of a window.
        base: base of the logarithm (2 for bits); nats by default.
        normalize: divides by ln(dimension!), the entropy of white noise; excludes `base`.
        ties: what ranks equal values, as in `ordinal_patterns`.
        rng: as in `ordinal_patterns`.

    Returns:
        The entropy of each series, float64.

    Raises:
        ValueError: as `ordinal_patterns`, or both base and normalize.

    Examples:
        >>> x = np.array([4.0, 7.0, 9.0, 10.0, 6.0, 11.0, 3.0])
        >>> round(float(permutation_entropy(x, dimension=3, base=2)), 6)
        1.521928

    Source: Bandt & Pompe, Phys. Rev. Lett. 88, 174102 (2002), eq. 1.
    """
    if normalize and base is not None:
        raise ValueError(f"base: got {base}, but a normalised entropy has no unit")
    factor = 1.0 if normalize else log_base(base) * math.log(math.factorial(dimension))
    entropy = ordinal_statistics(x, dimension, delay, ties=ties, rng=rng).entropy
    return entropy * factor if isinstance(entropy, Tensor) else np.asarray(entropy * factor)


def statistical_complexity(
    x: Real[Array, "*batch time"],
    dimension: int = 5,
    delay: int = 1,
    *,
    ties: Ties = "stable",
    rng: np.random.Generator | None = None,
) -> Float[Array, "*batch"]:
    """Jensen-Shannon statistical complexity of the ordinal patterns.

    Args:
        x: series; the last axis is time.
        dimension: points of a window, 2 to 10.
        delay: steps between the points of a window.
        ties: what ranks equal values, as in `ordinal_patterns`.
        rng: as in `ordinal_patterns`.

    Returns:
        C of each series, without unit, float64: 0 for a single pattern and for all equally likely.

    Raises:
        ValueError: as `ordinal_patterns`.

    Examples:
        >>> float(statistical_complexity(np.arange(100.0)))
        0.0

    Source: Lamberti et al., Physica A 334, 119 (2004); Rosso et al., PRL 99, 154102 (2007).
    """
    return ordinal_statistics(x, dimension, delay, ties=ties, rng=rng).complexity


def missing_patterns(
    x: Real[Array, "*batch time"],
    dimension: int = 5,
    delay: int = 1,
    *,
    ties: Ties = "stable",
    rng: np.random.Generator | None = None,
) -> Int[Array, "*batch"]:
    """How many of the dimension! patterns never occur.

    Of a chaotic map some patterns are forbidden however long the series; of noise, all appear in
    time. In a short series most missing patterns are merely not seen yet: compare with a shuffle.

    Args:
        x: series; the last axis is time.
        dimension: points of a window, 2 to 10.
        delay: steps between the points of a window.
        ties: what ranks equal values, as in `ordinal_patterns`.
        rng: as in `ordinal_patterns`.

    Returns:
        Number of missing patterns of each series.

    Raises:
        ValueError: as `ordinal_patterns`.

    Examples:
        >>> int(missing_patterns(np.arange(100.0), dimension=3))
        5

    Source: Amigó, Zambrano & Sanjuán, Europhys. Lett. 79, 50001 (2007).
    """
    distinct = ordinal_statistics(x, dimension, delay, ties=ties, rng=rng).distinct
    missing = math.factorial(dimension) - distinct
    return missing if isinstance(missing, Tensor) else np.asarray(missing)


def entropy_complexity(p: Float[Array, "*batch patterns"]) -> EntropyComplexity:
    """Normalised entropy H and Jensen-Shannon complexity C of distributions; differentiable.

    H = S(p) / ln N and C = Q0 JS(p, u) H, with u the uniform law on the N outcomes and
    1/Q0 = JS(delta, u), its greatest value.

    Args:
        p: probabilities, the last axis is the distribution over all N possible outcomes.

    Returns:
        H in [0, 1] and C, without unit.

    Raises:
        ValueError: p is no distribution, or has a single outcome.

    Examples:
        >>> h, c = entropy_complexity(np.array([0.5, 0.5, 0.0, 0.0, 0.0, 0.0]))
        >>> round(float(h), 4), round(float(c), 4)
        (0.3869, 0.2712)

    Source: Lamberti et al., Physica A 334, 119 (2004); Rosso et al., PRL 99, 154102 (2007).
    """
    check_probabilities(p, "p")
    n = p.shape[-1]
    if n < 2:
        raise ValueError(f"p: got {n} outcome, entropy over its maximum needs at least 2")
    values = as_tensor(p)
    if values.dtype != torch.float64:
        values = values.float()
    s, mixed = (torch.special.entr(v).sum(-1) for v in (values, (values + 1 / n) / 2))
    h, c = _entropy_complexity(s, mixed, n)
    return (
        EntropyComplexity(h, c)
        if isinstance(p, Tensor)
        else EntropyComplexity(h.numpy(), c.numpy())
    )


def entropy_complexity_bounds(
    entropy: Float[np.ndarray, "*batch"], outcomes: int
) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
    """Least and greatest complexity of a distribution on `outcomes` outcomes with entropy H.

    The lower curve is one probability a and all others equal; the upper, some zeros, one
    probability a and the rest equal. On each, H is monotone in a, and a is found by bisection.

    Args:
        entropy: H in [0, 1].
        outcomes: N, the number of possible outcomes (dimension! for ordinal patterns).

    Returns:
        Lower and upper bound of C.

    Raises:
        ValueError: H outside [0, 1] or fewer than 2 outcomes.

    Examples:
        >>> low, high = entropy_complexity_bounds(np.array([0.5, 1.0]), outcomes=120)
        >>> low.round(4).tolist(), high.round(4).tolist()
        ([0.2068, 0.0], [0.4005, 0.0])

    Source: Martin, Plastino & Rosso, Physica A 369, 439 (2006).
    """
    h = np.asarray(entropy, dtype=np.float64)
    if outcomes < 2:
        raise ValueError(f"outcomes: got {outcomes}, must be at least 2")
    if not ((h >= 0) & (h <= 1)).all():
        raise ValueError(f"entropy: got {h.min()} to {h.max()}, must lie in [0, 1]")
    log_n = math.log(outcomes)
    # Lower: H falls from 1 to 0 as a goes from 1/N to 1.
    lower = _on_curve(h, np.full(h.shape, outcomes - 1.0), np.ones(h.shape), 1 / outcomes, outcomes)
    # Upper: with `rest` equal probabilities beside a, H rises from ln(rest) to ln(rest + 1) as a goes
    # from 0 to 1 / (rest + 1).
    rest = np.clip(np.floor(np.exp(h * log_n) * (1 + 1e-12)), 1, outcomes - 1)
    upper = _on_curve(h, rest, np.zeros(h.shape), 1 / (rest + 1), outcomes)
    return np.asarray(lower), np.asarray(upper)


@lru_cache(maxsize=16)
def hc_envelope(dimension: int, points: int = 2001) -> Envelope:
    """The curves that enclose every point of the entropy-complexity plane, for plots.

    Args:
        dimension: points of a window, 2 to 10; the plane is that of dimension! patterns.
        points: how many values of H, equally spaced over [0, 1].

    Returns:
        H and the two bounds of C, read-only arrays.

    Raises:
        ValueError: dimension out of range or fewer than 2 points.

    Examples:
        >>> round(float(hc_envelope(5).upper.max()), 4)
        0.4248

    Source: Martin, Plastino & Rosso, Physica A 369, 439 (2006).
    """
    _check_dimension(dimension)
    if points < 2:
        raise ValueError(f"points: got {points}, must be at least 2")
    h = np.linspace(0, 1, points)
    curves = Envelope(h, *entropy_complexity_bounds(h, math.factorial(dimension)))
    for curve in curves:
        curve.flags.writeable = False
    return curves


def _on_curve(h: np.ndarray, rest: Any, poor: Any, rich: Any, n: int) -> Any:
    """C of (a, (1-a)/rest, ..., 0, ...) at entropy h; `poor` and `rich` are the a of least and most."""
    low, high = np.broadcast_arrays(poor, rich, h)[:2]
    for _ in range(60):  # halvings exhaust the 53 bits of a
        a = (low + high) / 2
        below = entr(a) + rest * entr((1 - a) / rest) < h * math.log(n)
        low, high = np.where(below, a, low), np.where(below, high, a)
    a = (low + high) / 2
    b = (1 - a) / rest
    mixed = entr((a + 1 / n) / 2) + rest * entr((b + 1 / n) / 2) + (n - 1 - rest) * entr(0.5 / n)
    return _entropy_complexity(entr(a) + rest * entr(b), mixed, n)[1]


def _entropy_complexity(s: Any, mixed: Any, n: int) -> tuple[Any, Any]:
    """H and C from S(p) and S((p + u) / 2), in nats."""
    log_n = math.log(n)
    greatest = -((n + 1) / n * math.log(n + 1) - 2 * math.log(2 * n) + log_n) / 2
    h = (s / log_n).clip(0, 1)
    # Rounding may put a divergence of zero a few ulps below it.
    js = (mixed - s / 2 - log_n / 2).clip(0)
    return h, js / greatest * h


def _series(
    x: Array, dimension: int, delay: int, ties: str, rng: np.random.Generator | None
) -> Array:
    """Checks the arguments and returns (series, time), contiguous, in an order-preserving dtype."""
    _check_dimension(dimension)
    if delay < 1:
        raise ValueError(f"delay: got {delay}, must be at least 1")
    if ties not in ("stable", "dither"):
        raise ValueError(f'ties: got {ties!r}, must be "stable" or "dither"')
    if ties == "dither" and rng is None:
        raise ValueError('rng: ties="dither" draws at random, pass a numpy.random.Generator')
    if x.ndim == 0:
        raise ValueError("x: got a scalar, the last axis must be time")
    needed = delay * (dimension - 1) + 1
    if x.shape[-1] < needed:
        raise ValueError(
            f"x: got {x.shape[-1]} points, one window of dimension {dimension} and delay {delay} "
            f"takes {needed}"
        )
    rows = math.prod(x.shape[:-1])
    if isinstance(x, Tensor):
        x = x.detach().reshape(rows, x.shape[-1]).contiguous()
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
    else:
        x = np.ascontiguousarray(x.reshape(rows, x.shape[-1]))
        if x.dtype.kind == "f" and x.dtype not in (np.float32, np.float64):
            x = x.astype(np.float32 if x.dtype.itemsize < 4 else np.float64)
        elif not x.dtype.isnative:
            x = x.astype(x.dtype.newbyteorder("="))
    if ties == "dither":
        assert rng is not None
        isfinite: Any = torch.isfinite if isinstance(x, Tensor) else np.isfinite
        _check_finite(bool(isfinite(x).all()))
        return _ranks(x, rng)
    return x


def _ranks(x: Array, rng: np.random.Generator) -> Array:
    """Ranks within each series, equal values in random order."""
    values = x if isinstance(x, Tensor) else torch.from_numpy(x)
    shuffle = torch.from_numpy(rng.random(tuple(x.shape))).argsort(-1).to(values.device)
    order = shuffle.gather(-1, values.gather(-1, shuffle).argsort(dim=-1, stable=True))
    ranks = torch.empty(x.shape, dtype=torch.int32, device=values.device)
    steps = torch.arange(x.shape[-1], dtype=torch.int32, device=values.device)
    ranks.scatter_(-1, order, steps.expand_as(order))
    return ranks if isinstance(x, Tensor) else ranks.numpy()


def _check_dimension(dimension: int) -> None:
    if not 2 <= dimension <= MAX_DIMENSION:
        raise ValueError(f"dimension: got {dimension}, must be 2 to {MAX_DIMENSION}")


def _check_finite(finite: bool) -> None:
    if not finite:
        raise ValueError("x: holds NaN or infinite values, which have no rank")
