"""Ordinal patterns of many series at once: compiled on the CPU, plain torch on other devices.

A window's pattern is the Lehmer code of its rank vector, sum over m of m! c_m(i + (n-1-m) l), where
c_m(i) counts which of the next m points, l steps apart, lie below point i. c_m is c_{m-1} plus one
comparison, and all windows through a point share it: n-1 comparisons a point, whatever n and l.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from numba import njit
from torch import Tensor

Array = np.ndarray | Tensor
Job = tuple[int, int, int, int]
"""First and last series, first and last window."""

_CHUNK = 4096  # windows coded at a time: their points, digits and codes stay in the inner cache
_LANES = 120  # patterns up to which counting is interleaved
_TABLE = 4096  # counts below it have their entropy terms tabulated
_SERIAL = 1 << 16  # windows below which starting threads costs more than it saves
_BLOCK = 1 << 24  # elements a block of the torch path may hold


def pattern_indices(x: Array, dimension: int, delay: int) -> tuple[Array, bool]:
    """Lexicographic index of every window's rank vector.

    Args:
        x: (series, time), contiguous along time.
        dimension: points of a window.
        delay: steps between two of them.

    Returns:
        (series, windows) int32, and whether all of x is finite.

    Source: Bandt & Pompe, Phys. Rev. Lett. 88, 174102 (2002).
    """
    windows = x.shape[-1] - delay * (dimension - 1)
    if isinstance(x, Tensor) and x.device.type != "cpu":
        out = torch.empty((len(x), windows), dtype=torch.int32, device=x.device)
        for rows, start, stop in _blocks(x, windows, 1):
            out[rows, start:stop] = _codes_torch(x[rows], start, stop, dimension, delay)
        return out, _finite(x)
    values = np.asarray(x)
    indices = np.empty((len(values), windows), dtype=np.int32)
    finite = _spread(
        _jobs(len(values), windows), lambda _, job: _fill(values, *job, dimension, delay, indices)
    )
    return _like(x, indices), finite


def pattern_counts(x: Array, dimension: int, delay: int) -> tuple[Array, bool]:
    """How often every pattern occurs: (series, dimension!) int64, and whether all of x is finite."""
    windows = x.shape[-1] - delay * (dimension - 1)
    patterns = math.factorial(dimension)
    if isinstance(x, Tensor) and x.device.type != "cpu":
        return _counts_torch(x, dimension, delay), _finite(x)
    values = np.asarray(x)
    jobs = _jobs(len(values), windows)
    # Threads that share a series count apart.
    parts = 1 if _whole_series(jobs, windows) else len(jobs)
    counts = np.zeros((parts, len(values), patterns), dtype=np.int64)
    finite = _spread(
        jobs, lambda j, job: _count(values, *job, dimension, delay, counts[j if parts > 1 else 0])
    )
    return _like(x, counts[0] if parts == 1 else counts.sum(0)), finite


def pattern_entropies(x: Array, dimension: int, delay: int) -> tuple[Array, bool]:
    """Entropies of the pattern distributions, which are never held together.

    Returns:
        (series, 3) float64: the entropy and the entropy of the mixture with the uniform law (nats),
        the number of distinct patterns; and whether all of x is finite.
    """
    windows = x.shape[-1] - delay * (dimension - 1)
    patterns = math.factorial(dimension)
    if isinstance(x, Tensor) and x.device.type != "cpu":
        out = torch.empty((len(x), 3), dtype=torch.float64, device=x.device)
        step = max(1, _BLOCK // patterns)
        for first in range(0, len(x), step):
            rows = slice(first, first + step)
            out[rows] = entropies_of_counts(_counts_torch(x[rows], dimension, delay))
        return out, _finite(x)
    values = np.asarray(x)
    jobs = _jobs(len(values), windows)
    if not _whole_series(jobs, windows):
        counts, finite = pattern_counts(values, dimension, delay)
        return _like(x, entropies_of_counts(torch.as_tensor(counts)).numpy()), finite
    k = np.arange(min(windows, _TABLE - 1) + 1)
    p = k / windows
    q = (p + 1 / patterns) / 2
    terms = np.stack([-p * np.log(np.where(k > 0, p, 1.0)), -q * np.log(q)])
    entropies = np.empty((len(values), 3))
    finite = _spread(
        jobs,
        lambda _, job: _entropies(values, *job, dimension, delay, patterns, terms, entropies),
    )
    return _like(x, entropies), finite


def entropies_of_counts(counts: Tensor) -> Tensor:
    """(series, patterns) counts to the three columns of `pattern_entropies`."""
    p = counts.double() / counts.sum(-1, keepdim=True)
    mixture = (p + 1 / p.shape[-1]) / 2
    return torch.stack(
        [torch.special.entr(p).sum(-1), torch.special.entr(mixture).sum(-1), (p > 0).sum(-1)], -1
    )


def _like(x: Array, result: np.ndarray) -> Array:
    return torch.from_numpy(result) if isinstance(x, Tensor) else result


def _finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())


# --- threads ------------------------------------------------------------------------------------


def _jobs(series: int, windows: int) -> list[Job]:
    """Splits the series among threads or, where they are fewer, the windows of each."""
    threads = torch.get_num_threads() if series * windows > _SERIAL else 1
    if series >= threads:
        edges = np.linspace(0, series, threads + 1).astype(int).tolist()
        return [(a, b, 0, windows) for a, b in pairwise(edges)]
    edges = np.linspace(0, windows, threads + 1).astype(int).tolist()
    return [(0, series, a, b) for a, b in pairwise(edges)]


def _whole_series(jobs: list[Job], windows: int) -> bool:
    return jobs[0][3] == windows


def _spread(jobs: list[Job], work: Callable[[int, Job], bool]) -> bool:
    if len(jobs) == 1:
        return work(0, jobs[0])
    with ThreadPoolExecutor(len(jobs)) as pool:
        return all(list(pool.map(work, range(len(jobs)), jobs)))


# --- compiled -----------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _codes(x, start, stop, n, delay, digit, code):  # type: ignore[no-untyped-def]
    """Lehmer codes of windows start..stop of one series; says whether their points are finite."""
    count = stop - start
    points = x[start : stop + (n - 1) * delay]
    infinite = 0
    for i in range(points.size):
        infinite += points[i] - points[i] != 0
    digit[: count + (n - 2) * delay] = 0
    code[:count] = 0
    weight = 1
    for m in range(1, n):
        weight *= m
        shift = (n - 1 - m) * delay
        near, far = points[: count + shift], points[m * delay : m * delay + count + shift]
        for i in range(near.size):
            # Strictly above: of two equal points the earlier one ranks lower.
            digit[i] += near[i] > far[i]
        shifted = digit[shift : shift + count]
        for i in range(count):
            code[i] += weight * shifted[i]
    return infinite == 0


@njit(cache=True, nogil=True)
def _scratch(n, delay):  # type: ignore[no-untyped-def]
    # A chunk also reads the (n-2) l points past it: long delays need longer chunks to pay for that.
    chunk = max(_CHUNK, 4 * (n - 2) * delay)
    return np.empty(chunk + (n - 2) * delay, np.uint8), np.empty(chunk, np.uint32)


@njit(cache=True, nogil=True)
def _tally(code, total, counts, lanes):  # type: ignore[no-untyped-def]
    """Adds the codes to counts; four interleaved tallies, since equal neighbours would wait on one."""
    if lanes.shape[1] < counts.size:
        for i in range(total):
            counts[code[i]] += 1
        return
    patterns = counts.size
    lanes[:, :patterns] = 0
    even = total - total % 4
    for i in range(0, even, 4):
        lanes[0, code[i]] += 1
        lanes[1, code[i + 1]] += 1
        lanes[2, code[i + 2]] += 1
        lanes[3, code[i + 3]] += 1
    for i in range(even, total):
        lanes[0, code[i]] += 1
    for k in range(patterns):
        counts[k] += lanes[0, k] + lanes[1, k] + lanes[2, k] + lanes[3, k]


@njit(cache=True, nogil=True)
def _fill(x, first, last, start, stop, n, delay, out):  # type: ignore[no-untyped-def]
    digit, code = _scratch(n, delay)
    finite = True
    for row in range(first, last):
        for at in range(start, stop, code.size):
            to = min(at + code.size, stop)
            finite &= _codes(x[row], at, to, n, delay, digit, code)
            out[row, at:to] = code[: to - at]
    return finite


@njit(cache=True, nogil=True)
def _count(x, first, last, start, stop, n, delay, counts):  # type: ignore[no-untyped-def]
    digit, code = _scratch(n, delay)
    lanes = np.empty((4, _LANES), np.uint32)
    finite = True
    for row in range(first, last):
        for at in range(start, stop, code.size):
            to = min(at + code.size, stop)
            finite &= _codes(x[row], at, to, n, delay, digit, code)
            _tally(code, to - at, counts[row], lanes)
    return finite


@njit(cache=True, nogil=True)
def _entropies(x, first, last, start, stop, n, delay, patterns, terms, out):  # type: ignore[no-untyped-def]
    digit, code = _scratch(n, delay)
    lanes = np.empty((4, _LANES), np.uint32)
    counts = np.zeros(patterns, np.uint32)
    total = stop - start
    unseen = -math.log(0.5 / patterns) * 0.5 / patterns
    finite = True
    for row in range(first, last):
        for at in range(start, stop, code.size):
            to = min(at + code.size, stop)
            finite &= _codes(x[row], at, to, n, delay, digit, code)
            _tally(code, to - at, counts, lanes)
        # A series that fits one chunk visits only its own patterns; a longer one, all of them.
        visits = total if total <= min(code.size, patterns) else patterns
        entropy, mixture, distinct = 0.0, 0.0, 0
        for i in range(visits):
            pattern = code[i] if visits == total else i
            k = counts[pattern]
            if k == 0:
                continue
            counts[pattern] = 0
            distinct += 1
            if k < terms.shape[1]:
                entropy += terms[0, k]
                mixture += terms[1, k]
            else:
                p = k / total
                q = (p + 1 / patterns) / 2
                entropy -= p * math.log(p)
                mixture -= q * math.log(q)
        out[row, 0] = entropy
        out[row, 1] = mixture + (patterns - distinct) * unseen
        out[row, 2] = distinct
    return finite


# --- torch --------------------------------------------------------------------------------------


def _blocks(x: Tensor, windows: int, row_size: int) -> list[tuple[slice, int, int]]:
    """Rows and windows of blocks of at most `_BLOCK` elements."""
    span = min(windows, _BLOCK)
    step = max(1, _BLOCK // max(span, row_size))
    return [
        (slice(row, row + step), start, min(start + span, windows))
        for row in range(0, len(x), step)
        for start in range(0, windows, span)
    ]


def _codes_torch(x: Tensor, start: int, stop: int, n: int, delay: int) -> Tensor:
    count = stop - start
    digit = torch.zeros((len(x), count + (n - 2) * delay), dtype=torch.uint8, device=x.device)
    code = torch.zeros((len(x), count), dtype=torch.int32, device=x.device)
    for m in range(1, n):
        shift = (n - 1 - m) * delay
        near = x[:, start : stop + shift]
        far = x[:, start + m * delay : stop + m * delay + shift]
        digit[:, : count + shift] += near > far
        code.add_(digit[:, shift : shift + count], alpha=math.factorial(m))
    return code


def _counts_torch(x: Tensor, n: int, delay: int) -> Tensor:
    patterns = math.factorial(n)
    windows = x.shape[-1] - delay * (n - 1)
    counts = torch.zeros((len(x), patterns), dtype=torch.int64, device=x.device)
    one = counts.new_ones(())
    for rows, start, stop in _blocks(x, windows, patterns):
        code = _codes_torch(x[rows], start, stop, n, delay).long()
        counts[rows].scatter_add_(1, code, one.expand_as(code))
    return counts
