"""Independent bit flips: what they do to a distribution, and the rate that explains what was measured.

Source: Patil, Baron, Zhou, Q-Cluster: Quantum Error Mitigation Through Noise-Aware Unsupervised
Learning (IEEE QCE 2025; arXiv 2504.10801).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from szilard.kernels import bitstrings, codes
from szilard.quantum._majority import majority_clusters
from szilard.quantum.counts import Shots, read_counts, unpacked

LARGEST_RATE = 0.495
"""Beyond it a flipped bit says next to nothing: its information is below 1e-4 bit."""

_DENSE = 24  # bits up to which a distribution over all strings is held
_BLOCK = 1 << 16  # shots drawn at a time
_ENOUGH = 16_384  # shots that an estimate of one rate is made from


def check_rate(p: float) -> None:
    """Raises unless p is a rate of bit flips."""
    if not 0 <= p < 0.5:
        raise ValueError(f"p must be at least 0 and below 0.5, but is {p}")


def bitflip(
    distribution: Any,
    p: float,
    shots: int | None = None,
    rng: np.random.Generator | None = None,
) -> dict[str, float]:
    """A distribution of bit strings after every bit was flipped with probability p, independently.

    Args:
        distribution: counts or probabilities, as `read_counts` takes them.
        p: rate, in [0, 0.5).
        shots: measured shots; None for the exact probabilities, up to 24 bits.
        rng: draws the shots.

    Returns:
        Probabilities, or counts where `shots` is given, by string in ascending order.

    Raises:
        ValueError: p out of range, more than 24 bits without `shots`, or `shots` without `rng`.

    Examples:
        >>> bitflip({"00": 1}, 0.1)["00"]
        0.81
    """
    check_rate(p)
    ideal = read_counts(distribution)
    n = ideal.width
    if shots is not None:
        if shots < 1:
            raise ValueError(f"shots must be at least 1, but is {shots}")
        if rng is None:
            raise ValueError("rng must be given to draw shots")
        return _as_dict(_drawn(ideal, p, shots, rng))
    if n > _DENSE:
        raise ValueError(f"shots must be given beyond {_DENSE} bits, but there are {n}")
    flipped = np.zeros(1 << n)
    flipped[ideal.words[:, 0].astype(np.intp)] = ideal.probabilities
    for bit in range(n):
        halves = flipped.reshape(1 << bit, 2, -1)
        halves[:] = (1 - p) * halves + p * halves[:, ::-1]
    where = np.flatnonzero(flipped)
    words = where.astype(np.uint64)[:, None]
    return dict(zip(unpacked(words, n), flipped[where].tolist(), strict=True))


def _drawn(ideal: Shots, p: float, shots: int, rng: np.random.Generator) -> Shots:
    drawn = np.repeat(ideal.words, rng.multinomial(shots, ideal.probabilities), axis=0)
    for start in range(0, shots, _BLOCK):
        part = drawn[start : start + _BLOCK]
        part ^= bitstrings.pack(rng.random((len(part), ideal.width)) < p)
    return Shots(*bitstrings.distinct(drawn, np.ones(shots)), ideal.width)


def _as_dict(shots: Shots) -> dict[str, float]:
    return dict(zip(shots.strings(), shots.weights.astype(int).tolist(), strict=True))


def table(width: int, p: float) -> np.ndarray:
    """Probability that flips at rate p lead to one given string at each distance, (width + 1,)."""
    distance = np.arange(width + 1)
    return np.asarray(p**distance * (1 - p) ** (width - distance))


def effective_rate(ideal: Any, noisy: Any, *, step: float = 0.005) -> float:
    """The rate at which flipping the bits of the ideal distribution comes closest to a measured one.

    Args:
        ideal: what a faultless device would give, as `read_counts` takes it.
        noisy: what was measured.
        step: of the grid over [0, 0.5) that is searched; of equals the lowest rate is taken.

    Returns:
        The rate with the largest Hellinger fidelity.

    Raises:
        ValueError: of different widths, a step outside (0, 0.5), or as `read_counts`.

    Examples:
        >>> effective_rate({"000": 1, "111": 1}, bitflip({"000": 1, "111": 1}, 0.1))
        0.1
    """
    if not 0 < step < 0.5:
        raise ValueError(f"step must be between 0 and 0.5, but is {step}")
    truth, seen = read_counts(ideal), read_counts(noisy)
    if truth.width != seen.width:
        raise ValueError(
            f"ideal and noisy must have the same width, but have {truth.width} and {seen.width}"
        )
    spectra = _spectra(seen.words, truth.words, truth.probabilities, truth.width)
    root = np.sqrt(seen.probabilities)
    rates = [step * i for i in range(math.ceil(0.5 / step - 1e-9))]
    fidelity = [float(root @ np.sqrt(spectra @ table(truth.width, p))) for p in rates]
    return round(rates[int(np.argmax(fidelity))], 12)


def _spectra(rows: np.ndarray, centres: np.ndarray, weights: np.ndarray, width: int) -> np.ndarray:
    """Weight of the centres at every distance from 0 to width of each row, (n, width + 1)."""
    out = np.zeros((len(rows), width + 1))
    for block in np.array_split(np.arange(len(centres)), -(-len(centres) // 64)):
        apart = codes.distances(rows, centres[block], 1)
        np.add.at(out, (np.arange(len(rows))[:, None], apart), weights[block])
    return out


def mixture_rate(counts: Any, *, max_clusters: int = 16) -> float:
    """The rate of bit flips that counts show by themselves, without circuit, device or ideal result.

    Strings are described as one of k centres with flipped bits. For every k, centres are found by
    majority votes and their weights and the rate by expectation maximisation; the k with the shortest
    description is taken: minus log-likelihood, n ln 2 for each centre, ln(M)/2 for each other number.
    Coin tosses, without a centre, take n ln 2 a shot. Of more than 16,384 shots, as many are taken at equal steps through the ordered strings.

    Args:
        counts: whole numbers of shots, as `read_counts` takes them.
        max_clusters: the most centres that are tried.

    Returns:
        The rate, at most 0.495; 0 where coin tosses describe the shots best, so that there is nothing
        to mitigate. Errors that are no independent flips, and a tail of the ideal distribution that
        has no centre of its own, count as flips.

    Raises:
        ValueError: probabilities in place of counts, whose number of shots is not known.

    Examples:
        >>> noisy = bitflip({"00000000": 1, "11111111": 1}, 0.1, 4096, np.random.default_rng(0))
        >>> bool(abs(mixture_rate(noisy) - 0.1) < 0.005)
        True
    """
    if max_clusters < 1:
        raise ValueError(f"max_clusters must be at least 1, but is {max_clusters}")
    shots = read_counts(counts)
    if (shots.weights != np.round(shots.weights)).any():
        raise ValueError(
            "counts must be whole numbers of shots for the rate of bit flips to be estimated, but "
            f"sum to {shots.total:g}: give p"
        )
    shots = _thinned(shots)
    n, m = shots.width, shots.total
    order = np.argsort(-shots.weights, kind="stable")
    shortest, rate = m * n * math.log(2), 0.0
    for k in range(1, min(max_clusters, len(order)) + 1):
        centres = majority_clusters(shots, shots.words[order[:k]], n, 300)[0]
        found, likelihood = _flip_mixture(shots, codes.distances(shots.words, centres, 1))
        length = len(centres) * (n * math.log(2) + math.log(m) / 2) - likelihood
        if length < shortest:
            shortest, rate = length, found
    return float(min(rate, LARGEST_RATE))


def _thinned(shots: Shots) -> Shots:
    if shots.total <= _ENOUGH:
        return shots
    edges = np.cumsum(shots.weights)
    taken = np.searchsorted(edges, (np.arange(_ENOUGH) + 0.5) * edges[-1] / _ENOUGH)
    rows, weights = np.unique(taken, return_counts=True)
    return Shots(shots.words[rows], weights.astype(float), shots.width)


def _flip_mixture(shots: Shots, apart: np.ndarray) -> tuple[float, float]:
    """Rate and log-likelihood of a mixture of flips around given centres, by EM."""
    w, n = shots.weights, shots.width
    p = float(w @ apart.min(1)) / (n * w.sum())
    p = min(max(p, 0.5 / (n * w.sum())), 0.5)
    shares = np.full(apart.shape[1], 1 / apart.shape[1])
    before = -math.inf
    while True:
        with np.errstate(divide="ignore"):  # a centre may lose all its weight
            joint = np.log(shares) + apart * math.log(p / (1 - p)) + n * math.log1p(-p)
        top = joint.max(1, keepdims=True)
        each = np.exp(joint - top)
        total = each.sum(1)
        likelihood = float(w @ (np.log(total) + top[:, 0]))
        if likelihood - before <= 1e-7 * abs(likelihood):
            return p, likelihood
        before = likelihood
        posterior = each * (w / total)[:, None]
        shares = posterior.sum(0) / w.sum()
        p = min(max(float((posterior * apart).sum()) / (n * w.sum()), 1e-12), 0.5)
