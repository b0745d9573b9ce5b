"""Ordinal patterns of many series at once: compiled on the CPU, plain torch on other devices.

A window's pattern is the Lehmer code of its rank vector, sum over m of m! c_m(i + (n-1-m) l), where
c_m(i) counts which of the next m points, l steps apart, lie below point i. c_m is c_{m-1} plus one
comparison, and all windows through a point share it: n-1 comparisons a point, whatever n and l.

On the CPU a chunk of a series stays in the innermost cache from its first comparison to the counts.
Comparisons, digits and codes go 32 points at a time, in the narrowest integers that hold them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

Array = np.ndarray | Tensor
Job = tuple[int, int, int, int]
"""First and last series, first and last window."""

_CHUNK = 2048  # windows coded at a time: points, digits, codes and counts fit 32 KiB
_WIDTH = 32  # points compared at a time
_FEW = 24  # patterns up to which each is searched for, which beats counting up
_TABLE = 4096  # counts below it have their entropy terms tabulated
_SERIAL = 1 << 18  # windows below which another thread costs more than it saves
_BLOCK = 1 << 24  # elements a block of the torch path may hold


def pattern_indices(x: Array, dimension: int, delay: int) -> tuple[Array, bool]:
    """Lexicographic index of every window's rank vector.

    Args:
        x: (series, time).
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
    values = np.ascontiguousarray(x)
    indices = np.empty((len(values), windows), dtype=np.int32)
    finite = _spread(
        _jobs(len(values), windows, 1),
        lambda _, job: _fill(values, *job, dimension, delay, *_scratch(dimension, delay), indices),
    )
    return _like(x, indices), finite


def pattern_counts(x: Array, dimension: int, delay: int) -> tuple[Array, bool]:
    """How often every pattern occurs: (series, dimension!) int64, and whether all of x is finite."""
    windows = x.shape[-1] - delay * (dimension - 1)
    patterns = math.factorial(dimension)
    if isinstance(x, Tensor) and x.device.type != "cpu":
        return _counts_torch(x, dimension, delay), _finite(x)
    values = np.ascontiguousarray(x)
    jobs = _jobs(len(values), windows, patterns)
    # Threads that share a series count apart.
    parts = len(jobs) if _share(jobs, windows) else 1
    counts = np.zeros((parts, len(values), patterns), dtype=np.int64)
    finite = _spread(
        jobs,
        lambda j, job: _count(
            values, *job, dimension, delay, *_scratch(dimension, delay), counts[j % parts]
        ),
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
    values = np.ascontiguousarray(x)
    jobs = _jobs(len(values), windows, patterns)
    entropies = np.empty((len(values), 3))
    # No longer than what is looked up at most.
    k = np.arange(min(windows + 1, _TABLE, len(values) * patterns))
    p = k / windows
    q = (p + 1 / patterns) / 2
    terms = np.stack([-p * np.log(np.maximum(p, 1 / windows)), -q * np.log(q)])
    if _share(jobs, windows):
        counts, finite = pattern_counts(values, dimension, delay)
        for row in range(len(values)):
            _summarise(counts[row], counts[row, :0], windows, terms, entropies[row])
    else:
        # Of a series with fewer windows than there are patterns, only the patterns met are visited.
        kept = windows if windows < patterns else 0
        finite = _spread(
            jobs,
            lambda _, job: _entropies(
                values, *job, dimension, delay, *_scratch(dimension, delay, kept), terms, entropies
            ),
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


def _jobs(series: int, windows: int, patterns: int) -> list[Job]:
    """Splits the series among threads or, where they are few and long, the windows of each."""
    threads = torch.get_num_threads() if series * windows > _SERIAL else 1
    # Tables of counts that outgrow the series are not worth one a thread.
    if series < threads and windows >= threads * patterns:
        return [(0, series, a, b) for a, b in _parts(windows, threads)]
    return [(a, b, 0, windows) for a, b in _parts(series, max(1, min(threads, series)))]


def _parts(total: int, parts: int) -> list[tuple[int, int]]:
    return list(pairwise(total * i // parts for i in range(parts + 1)))


def _share(jobs: list[Job], windows: int) -> bool:
    """Whether several threads work on one series."""
    return jobs[0][3] < windows


def _spread(jobs: list[Job], work: Callable[[int, Job], bool]) -> bool:
    """Does all jobs, the first on this thread, and those that no thread has begun by then too."""
    waiting = [_pool().submit(work, j, job) for j, job in enumerate(jobs) if j > 0]
    finite = work(0, jobs[0])
    for j, future in enumerate(waiting, 1):
        finite &= work(j, jobs[j]) if future.cancel() else future.result()
    return finite


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="szilard-ordinal")


if hasattr(os, "register_at_fork"):  # a forked child has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


# --- compiled -----------------------------------------------------------------------------------


def _lanes(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Pointer to `_WIDTH` items of an array at once."""
    data = context.make_array(array_type)(context, builder, array).data
    vector = ir.VectorType(context.get_data_type(array_type.dtype), _WIDTH)
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@intrinsic
def _add_above(_context: Any, x: Any, i: Any, j: Any, digit: Any) -> Any:
    """digit[i:i+32] += x[i:i+32] > x[j:j+32]."""

    def lower(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        values, i, j, digits = args
        near, far = (
            builder.load(_lanes(context, builder, x, values, at), align=1) for at in (i, j)
        )
        if isinstance(x.dtype, types.Float):
            above = builder.fcmp_ordered(">", near, far)
        elif isinstance(x.dtype, types.Integer) and x.dtype.signed:
            above = builder.icmp_signed(">", near, far)
        else:
            above = builder.icmp_unsigned(">", near, far)
        target = _lanes(context, builder, digit, digits, i)
        old = builder.load(target, align=1)
        builder.store(builder.add(old, builder.zext(above, old.type)), target, align=1)
        return context.get_dummy_value()

    return types.void(x, types.intp, types.intp, digit), lower


@intrinsic
def _matches(_context: Any, code: Any, i: Any, pattern: Any) -> Any:
    """How many of code[i:i+32] equal pattern."""

    def lower(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        codes, i, pattern = args
        found = builder.load(_lanes(context, builder, code, codes, i), align=1)
        same = ir.Constant(found.type, ir.Undefined)
        for lane in range(_WIDTH):
            same = builder.insert_element(same, pattern, ir.Constant(ir.IntType(32), lane))
        bits = builder.bitcast(builder.icmp_unsigned("==", found, same), ir.IntType(_WIDTH))
        return builder.zext(builder.ctpop(bits), ir.IntType(64))

    return types.int64(code, types.intp, code.dtype), lower


# Sums in any order: 0 times a value is 0 or, of what has no rank, NaN.
@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _is_finite(points):  # type: ignore[no-untyped-def]
    zero = points.dtype.type(0)
    total = zero
    for i in range(points.size):
        total += zero * points[i]
    return total == 0


@njit(cache=True, nogil=True)
def _codes(x, start, stop, n, delay, digit, code):  # type: ignore[no-untyped-def]
    """Lehmer codes of windows start..stop of one series; says whether their points are finite."""
    count = stop - start
    points = x[start : stop + (n - 1) * delay]
    finite = _is_finite(points)
    digit[: count + (n - 2) * delay] = 0
    code[:count] = 0
    weight = 1
    for m in range(1, n):
        weight *= m
        shift, far = (n - 1 - m) * delay, m * delay
        whole = (count + shift) // _WIDTH * _WIDTH
        # Strictly above: of two equal points the earlier one ranks lower.
        for i in range(0, whole, _WIDTH):
            _add_above(points, i, i + far, digit)
        for i in range(whole, count + shift):
            digit[i] += points[i] > points[i + far]
        shifted, factor = digit[shift : shift + count], code.dtype.type(weight)
        for i in range(count):
            code[i] += factor * shifted[i]
    return finite


def _scratch(n: int, delay: int, kept: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Room for the digits and the codes of a chunk, or for the codes of `kept` windows."""
    # A chunk also reads the (n-2) l points past it: long delays need longer chunks to pay for that.
    chunk = max(_CHUNK, 4 * (n - 2) * delay)
    narrowest = np.min_scalar_type(math.factorial(n) - 1)
    return (
        np.empty(chunk + (n - 2) * delay, np.uint8),
        np.empty(max(chunk, kept), narrowest),
    )


@njit(cache=True, nogil=True)
def _tally(code, total, counts):  # type: ignore[no-untyped-def]
    """Adds the first `total` codes to counts."""
    patterns = counts.size
    counted = 0
    if patterns <= _FEW:
        counted = total // _WIDTH * _WIDTH
        for k in range(patterns):
            found = 0
            for i in range(0, counted, _WIDTH):
                found += _matches(code, i, code.dtype.type(k))
            counts[k] += found
    for i in range(counted, total):
        counts[code[i]] += 1


@njit(cache=True, nogil=True)
def _fill(x, first, last, start, stop, n, delay, digit, code, out):  # type: ignore[no-untyped-def]
    finite = True
    for row in range(first, last):
        for at in range(start, stop, code.size):
            to = min(at + code.size, stop)
            finite &= _codes(x[row], at, to, n, delay, digit, code)
            out[row, at:to] = code[: to - at]
    return finite


@njit(cache=True, nogil=True)
def _count(x, first, last, start, stop, n, delay, digit, code, counts):  # type: ignore[no-untyped-def]
    finite = True
    for row in range(first, last):
        for at in range(start, stop, code.size):
            to = min(at + code.size, stop)
            finite &= _codes(x[row], at, to, n, delay, digit, code)
            _tally(code, to - at, counts[row])
    return finite


@njit(cache=True, nogil=True)
def _entropies(x, first, last, start, stop, n, delay, digit, code, terms, out):  # type: ignore[no-untyped-def]
    patterns = 1
    for m in range(2, n + 1):
        patterns *= m
    counts = np.zeros(patterns, np.uint32)
    chunk, total = digit.size - (n - 2) * delay, stop - start
    finite = True
    for row in range(first, last):
        for at in range(start, stop, chunk):
            to = min(at + chunk, stop)
            part = code[at:] if total <= code.size else code
            finite &= _codes(x[row], at, to, n, delay, digit, part)
            _tally(part, to - at, counts)
        visited = code[: total if total <= min(code.size, patterns) else 0]
        _summarise(counts, visited, total, terms, out[row])
    return finite


@njit(cache=True, nogil=True)
def _summarise(counts, visited, total, terms, out):  # type: ignore[no-untyped-def]
    """The three entropies of `pattern_entropies`; sets to 0 the counts of visited, if none is, all."""
    patterns = counts.size
    entropy, mixture, distinct = 0.0, 0.0, 0
    for i in range(visited.size if visited.size else patterns):
        pattern = visited[i] if visited.size else i
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
    out[0] = entropy
    out[1] = mixture - (patterns - distinct) * 0.5 / patterns * math.log(0.5 / patterns)
    out[2] = distinct


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
