"""Entropy and mutual information estimated from samples.

From counts of categorical outcomes: plug-in, Miller-Madow, Chao-Shen and Grassberger. From points
of a continuous distribution: Kozachenko-Leonenko (differential entropy) and
Kraskov-Stögbauer-Grassberger (mutual information), by nearest neighbours. Results are in nats, or
in the unit of `base`. They are estimates: differential entropies may be negative, and estimates of
a quantity near zero scatter on both sides of it and are not clipped.
"""

import math
import os
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Real
from scipy.special import digamma, gammaln
from torch import Tensor

from szilard.kernels import neighbors
from szilard.measures._checks import as_tensor, check_finite, log_base

A = TypeVar("A", Tensor, np.ndarray)


def entropy_from_counts(
    counts: Real[A, "*batch n"],
    method: Literal["plugin", "miller-madow", "chao-shen", "grassberger"] = "plugin",
    base: float | None = None,
) -> Float[A, "*batch"]:
    """Shannon entropy of the distribution that the counts were drawn from.

    With N the number of draws, n_i the counts and p_i = n_i / N:

    - `plugin`: -Σ p_i ln p_i, the maximum-likelihood estimate; biased low by about (m - 1) / 2N.
    - `miller-madow`: plus that first-order bias, m being the number of outcomes seen.
    - `chao-shen`: Horvitz-Thompson sum over the outcomes seen, with probabilities shrunk by the
      Good-Turing coverage C = 1 - f_1 / N: -Σ C p_i ln(C p_i) / (1 - (1 - C p_i)^N). Where all
      draws are singletons (C = 0), one of them is left out of f_1 so that the estimate exists.
    - `grassberger`: ln N - Σ n_i G(n_i) / N with G(n) = ψ(n) + (-1)^n (ψ((n+1)/2) - ψ(n/2)) / 2.

    Args:
        counts: how often each outcome was drawn, whole non-negative numbers of an integer or
            floating dtype; zeros (outcomes never seen) do not change any estimate.
        method: the estimator.
        base: unit of the result (2 for bits); nats by default.

    Returns:
        Entropies in float64.

    Raises:
        TypeError: counts is not a tensor or array of integer or floating dtype.
        ValueError: an unknown method, an empty last axis, negative, fractional or non-finite
            counts, a row without any count, or a bad base.

    Examples:
        >>> entropy_from_counts(np.array([[2, 2, 0], [4, 0, 0]]), base=2)
        array([1., 0.])
        >>> entropy_from_counts(torch.tensor([3, 1, 1]), method="miller-madow").item()
        1.150...

    Source: Miller (1955), Note on the bias of information estimates; Chao & Shen (2003),
    Nonparametric estimation of Shannon's index of diversity when there are unseen species in
    sample, eq. 6; Grassberger (2003), Entropy estimates from insufficient samplings,
    arXiv:physics/0307138, eq. 30-35.
    """
    if method not in _FROM_COUNTS:
        raise ValueError(f"method must be one of {', '.join(_FROM_COUNTS)}, but is {method!r}")
    unit = log_base(base)
    n = _read_counts(counts)
    h = _FROM_COUNTS[method](n, n.sum(-1, keepdim=True)) * unit
    result: Any = h.numpy() if isinstance(counts, np.ndarray) else h
    return result


def kozachenko_leonenko(
    x: Float[np.ndarray, "n *d"],
    k: int = 3,
    metric: Literal["euclidean", "chebyshev"] = "euclidean",
    base: float | None = None,
    *,
    dither: float = 0.0,
    rng: np.random.Generator | None = None,
    workers: int | None = None,
) -> float:
    """Differential entropy from k-th nearest neighbours, ψ(N) - ψ(k) + ln c_d + d ⟨ln ε⟩.

    ε is the distance from a point to its k-th neighbour and c_d the volume of the unit ball.

    Args:
        x: N points in d dimensions, or N numbers.
        k: which neighbour; a larger k has less variance and more bias.
        metric: the norm that distances are taken in. Both estimate the same entropy.
        base: unit of the result (2 for bits); nats by default.
        dither: standard deviation of the Gaussian noise added to every coordinate, as a fraction of
            that coordinate's own; 0 for none. For rounded data with repeated points, for which the
            estimate does not exist.
        rng: source of the noise; must be given with a positive `dither`.
        workers: threads of the neighbour search: as many as torch uses by default, -1 for all cores.
            The estimate does not depend on it.

    Returns:
        The estimate.

    Raises:
        TypeError: x is not an array of floating dtype, or k no integer.
        ValueError: NaN or inf, k not in [1, N - 1], a point that coincides with k others, an
            unknown metric, a negative dither, a dither without rng, or bad workers or base.

    Examples:
        >>> x = np.random.default_rng(0).uniform(0, 2, size=2000)
        >>> abs(kozachenko_leonenko(x, base=2) - 1) < 0.1
        True

    Source: Kozachenko & Leonenko (1987), Sample estimate of the entropy of a random vector; in the
    form of Kraskov, Stögbauer & Grassberger (2004), eq. 20.
    """
    unit = log_base(base)
    if metric not in ("euclidean", "chebyshev"):
        raise ValueError(f"metric must be one of euclidean, chebyshev, but is {metric!r}")
    threads = _threads(workers)
    points = _read_points(x, "x", k, dither, rng)
    n, d = points.shape
    radius = neighbors.kth_distances(points, k, metric == "euclidean", threads)
    _refuse_coinciding(radius, k)
    log_ball = (
        d * math.log(2)
        if metric == "chebyshev"
        else d / 2 * math.log(math.pi) - float(gammaln(1 + d / 2))
    )
    h = digamma(n) - digamma(k) + log_ball + d * np.log(radius).mean()
    return float(h) * unit


def ksg_mutual_information(
    x: Float[np.ndarray, "n *dx"],
    y: Float[np.ndarray, "n *dy"],
    k: int = 3,
    variant: Literal[1, 2] = 1,
    base: float | None = None,
    *,
    dither: float = 0.0,
    rng: np.random.Generator | None = None,
    workers: int | None = None,
) -> float:
    """Mutual information of two continuous variables by the KSG estimator, variant 1 or 2.

    The k-th neighbours are found in the joint space under the maximum norm, and points are counted
    in the two marginal spaces within the radius so found:

    - variant 1: ψ(k) + ψ(N) - ⟨ψ(n_x + 1) + ψ(n_y + 1)⟩, n_x the points strictly nearer in x than
      the k-th neighbour is in the joint space.
    - variant 2: ψ(k) - 1/k + ψ(N) - ⟨ψ(n_x) + ψ(n_y)⟩, n_x the points at most as far in x as the
      farthest in x of the k neighbours.

    The estimate is not invariant under rescaling x against y: bring them to similar scales first.

    Args:
        x: N points in any number of dimensions, or N numbers.
        y: N points paired with those of x, in any number of dimensions.
        k: which neighbour; a larger k has less variance and more bias.
        variant: 1 (less variance) or 2 (less bias in high dimensions).
        base: unit of the result (2 for bits); nats by default.
        dither: standard deviation of the Gaussian noise added to every coordinate, as a fraction of
            that coordinate's own; 0 for none. For rounded data with repeated points.
        rng: source of the noise; must be given with a positive `dither`.
        workers: threads of the neighbour search: as many as torch uses by default, -1 for all cores.
            The estimate does not depend on it.

    Returns:
        The estimate; independent variables scatter around 0.

    Raises:
        TypeError: x or y is not an array of floating dtype, or k no integer.
        ValueError: x and y differ in length, NaN or inf, k not in [1, N - 1], a joint point that
            coincides with k others, an unknown variant, a negative dither, a dither without rng, or
            bad workers or base.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=2000)
        >>> y = 0.8 * x + 0.6 * rng.normal(size=2000)
        >>> abs(ksg_mutual_information(x, y) + 0.5 * math.log(1 - 0.8**2)) < 0.1
        True

    Source: Kraskov, Stögbauer & Grassberger (2004), Estimating mutual information, eq. 8 and 9.
    """
    unit = log_base(base)
    if variant not in (1, 2):
        raise ValueError(f"variant must be 1 or 2, but is {variant!r}")
    threads = _threads(workers)
    if np.shape(x)[:1] != np.shape(y)[:1]:
        raise ValueError(
            f"x and y must hold as many points, but have shapes {np.shape(x)} and {np.shape(y)}"
        )
    a = _read_points(x, "x", k, dither, rng)
    b = _read_points(y, "y", k, dither, rng)
    joint = np.vstack((a.T, b.T)).T
    if variant == 1:
        radius = neighbors.kth_distances(joint, k, False, threads)
        _refuse_coinciding(radius, k)
        counts = [neighbors.count_nearer(z, radius, threads) for z in (a, b)]
        information = digamma(k) + digamma(len(a)) - sum(map(_mean_digamma, counts))
    else:
        radius, index = neighbors.nearest(joint, k, False, threads)
        _refuse_coinciding(radius, k)
        # At most as far is nearer than the next larger float.
        sides = ((z, np.nextafter(_farthest(z, index), math.inf)) for z in (a, b))
        counts = [neighbors.count_nearer(z, side, threads) - 1 for z, side in sides]
        information = digamma(k) - 1 / k + digamma(len(a)) - sum(map(_mean_digamma, counts))
    return float(information) * unit


def _plugin(n: Tensor, total: Tensor) -> Tensor:
    return torch.special.entr(n / total).sum(-1)


def _miller_madow(n: Tensor, total: Tensor) -> Tensor:
    return _plugin(n, total) + ((n > 0).sum(-1) - 1) / (2 * total.squeeze(-1))


def _chao_shen(n: Tensor, total: Tensor) -> Tensor:
    singletons = (n == 1).sum(-1, keepdim=True)
    singletons = torch.where(singletons == total, total - 1, singletons)
    p = (1 - singletons / total) * n / total
    seen = -torch.expm1(total * torch.log1p(-p))
    return (torch.special.entr(p) / torch.where(n > 0, seen, 1)).sum(-1)


def _grassberger(n: Tensor, total: Tensor) -> Tensor:
    # G(n) of eq. 30 takes equal values at 2m and 2m + 1 and there is ψ(m + 1/2) + ln 2.
    g = torch.special.digamma((n / 2).floor() + 0.5) + math.log(2)
    return total.squeeze(-1).log() - (n * g).sum(-1) / total.squeeze(-1)


_FROM_COUNTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plugin": _plugin,
    "miller-madow": _miller_madow,
    "chao-shen": _chao_shen,
    "grassberger": _grassberger,
}


def _read_counts(counts: Tensor | np.ndarray) -> Tensor:
    """Counts checked, in float64."""
    if not isinstance(counts, Tensor | np.ndarray):
        raise TypeError(f"counts must be a torch.Tensor or numpy.ndarray, but is {type(counts)}")
    if isinstance(counts, np.ndarray) and counts.dtype.kind not in "iuf":
        raise TypeError(f"counts must have an integer or floating dtype, but has {counts.dtype}")
    n = as_tensor(counts)
    if n.dtype == torch.bool or n.dtype.is_complex:
        raise TypeError(f"counts must have an integer or floating dtype, but has {n.dtype}")
    n = n.to(torch.float64)
    if n.ndim == 0 or n.shape[-1] == 0:
        raise ValueError(f"counts must have a non-empty last axis, but has shape {tuple(n.shape)}")
    if not bool(((n >= 0) & (n == n.floor()) & n.isfinite()).all()):
        raise ValueError("counts must be whole non-negative finite numbers, but some are not")
    if bool((n.sum(-1) == 0).any()):
        raise ValueError("counts must have a positive sum in every row, but a row is all zero")
    return n


def _read_points(
    x: np.ndarray,
    name: str,
    k: int,
    dither: float,
    rng: np.random.Generator | None,
) -> np.ndarray:
    """Points checked, as float64 of shape (n, d), with the noise asked for."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name} must be a numpy.ndarray, but is {type(x)}")
    check_finite(x, name)
    if x.ndim > 2:
        raise ValueError(f"{name} must have shape (n,) or (n, d), but has {x.shape}")
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise TypeError(f"k must be an integer, but is {type(k)}")
    if not 1 <= k < len(x):
        raise ValueError(f"k must be at least 1 and less than the {len(x)} points, but is {k}")
    if not (dither >= 0 and math.isfinite(dither)):
        raise ValueError(f"dither must be finite and at least 0, but is {dither!r}")
    points = np.asarray(x.reshape(len(x), -1), dtype=np.float64)
    if dither == 0:
        return points
    if rng is None:
        raise ValueError("a positive dither needs rng, a numpy.random.Generator, but it is None")
    return points + dither * points.std(0) * rng.standard_normal(points.shape)


def _threads(workers: int | None) -> int:
    if workers is None:
        return torch.get_num_threads()
    if workers == -1:
        return os.cpu_count() or 1
    if isinstance(workers, bool) or not isinstance(workers, int | np.integer) or workers < 1:
        raise ValueError(f"workers must be a positive integer, -1 or None, but is {workers!r}")
    return int(workers)


def _refuse_coinciding(radius: np.ndarray, k: int) -> None:
    if (radius == 0).any():
        raise ValueError(
            f"a point coincides with {k} others, so that no density can be told from their "
            "distance; take a larger k, or break ties with dither= and rng="
        )


def _farthest(points: np.ndarray, index: np.ndarray) -> np.ndarray:
    """How far in the maximum norm the farthest is of the points meant by each row of index."""
    farthest = np.zeros(len(points))
    for near in index.T:
        np.maximum(farthest, np.abs(points[near] - points).max(1), out=farthest)
    return farthest


def _mean_digamma(counts: np.ndarray) -> float:
    """⟨ψ(n)⟩ by the distinct n: the same for any order of the points."""
    times = np.bincount(counts)
    distinct = np.flatnonzero(times)
    return float(times[distinct] @ digamma(distinct) / len(counts))
