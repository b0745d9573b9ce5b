"""Confidence intervals for claims: percentile bootstrap over independent units."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from szilard.lab.experiment import Interval


def mean_interval(
    values: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    rng_seed: int = 0,
    groups: ArrayLike | None = None,
) -> Interval:
    """Mean of `values` with its percentile-bootstrap confidence interval.

    A single independent unit says nothing about its own spread, so its interval is the whole line and
    no claim can hold on it. Few units say too little: the interval of n units stays within their range,
    which covers at most about `1 - 2**(1 - n)` of the time (75 % for three). A NaN among the values
    makes the interval NaN, on which every claim fails.

    Args:
        values: observations, one axis.
        level: confidence level in (0, 1).
        resamples: bootstrap resamples.
        rng_seed: seed of the resampling.
        groups: label of the independent unit each value belongs to (its seed, say); units are
            resampled as a whole. By default every value is a unit.

    Returns:
        The mean of all values and the interval of that mean.

    Raises:
        ValueError: no values, more than one axis, labels of another length, or an impossible level.

    Examples:
        >>> mean_interval([1.0, 1.0, 1.0])
        Interval(value=1.0, low=1.0, high=1.0, level=0.95)
        >>> mean_interval([0.0, 2.0], groups=[7, 7]).low
        -inf

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 13 and section 8.6.
    """
    data = _one_axis(values, "values")
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}, must lie between 0 and 1")
    if resamples < 1:
        raise ValueError(f"resamples: got {resamples}, must be at least 1")
    sums, counts = _units(data, groups)
    mean = float(data.mean())
    if not np.isfinite(mean):
        return Interval(mean, float("nan"), float("nan"), level)
    units = len(sums)
    if units == 1:
        return Interval(mean, -np.inf, np.inf, level)
    if (data == data[0]).all():
        return Interval(mean, mean, mean, level)
    rng = np.random.default_rng(rng_seed)
    # Blocks of about a million draws bound the memory without a Python loop over resamples.
    block = max(1, 1_000_000 // units)
    means = np.empty(resamples)
    for start in range(0, resamples, block):
        drawn = rng.integers(units, size=(min(block, resamples - start), units))
        means[start : start + block] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), level)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    rng_seed: int = 0,
    groups: ArrayLike | None = None,
) -> Interval:
    """Mean of `a - b` over pairs (the same prompt, the same seed) with its bootstrap interval.

    Args:
        a: observations, one axis.
        b: observations paired with `a`, in the same order.
        level: confidence level in (0, 1).
        resamples: bootstrap resamples of the pairs.
        rng_seed: seed of the resampling.
        groups: label of the independent unit each pair belongs to, as in `mean_interval`.

    Returns:
        The mean difference and its interval.

    Raises:
        ValueError: lengths differ, or as in `mean_interval`.

    Examples:
        >>> paired_difference([3.0, 4.0, 5.0], [2.0, 3.0, 4.0]).value
        1.0

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 13.
    """
    first, second = _one_axis(a, "a"), _one_axis(b, "b")
    if len(first) != len(second):
        raise ValueError(f"a and b are pairs: got {len(first)} and {len(second)} values")
    return mean_interval(
        first - second, level=level, resamples=resamples, rng_seed=rng_seed, groups=groups
    )


def _one_axis(values: ArrayLike, name: str) -> np.ndarray:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0:
        raise ValueError(f"{name}: got shape {data.shape}, must be a non-empty vector")
    return data


def _units(data: np.ndarray, groups: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count of the values of each independent unit."""
    if groups is None:
        return data, np.ones_like(data)
    labels = np.asarray(groups)
    if labels.shape != data.shape:
        raise ValueError(f"groups: got shape {labels.shape}, must be that of values {data.shape}")
    _, unit = np.unique(labels, return_inverse=True)
    return np.bincount(unit, weights=data), np.bincount(unit).astype(np.float64)
