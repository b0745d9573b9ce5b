"""Compiled loops over rows of float32 or bfloat16 logits: one read of the memory, blocks in cache.

A row goes by in blocks that stay in the first-level cache: the block's maximum, then its sums in
float32 lanes relative to the row's maximum so far, then one float64 step that merges them into the
row's moments (Chan, Golub & LeVeque 1983). Two kinds of block are summed again in float64: those
where exp(0) = 1 would swallow the small rest that is all of the entropy, and those whose mean lies
many standard deviations from the running mean that the second moment was taken about.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic
from torch import Tensor

f32, f64 = np.float32, np.float64

_BLOCK = 1024  # 4 KiB of float32: a lane sums 128 terms, its rounding stays near 1e-6
_FEW = f64(4)  # sum of a block below which exp(0) = 1 dominates it
_FAR = f64(16)  # squared distance of the means, in variances, above which digits would cancel
_SERIAL = 1 << 18  # logits below which another thread costs more than it saves

# exp(t) = 2^n 2^f: adding _MAGIC rounds to the integer n and leaves n + 127 in the low bits.
_MAGIC = f32(1.5 * 2**23 + 127)
_LOG2_E = math.log2(math.e)
_FLOOR = -127 * math.log(2)  # from here down n = -127, whose exponent bits are those of 0
# 2^f = 1 + f q(f) on |f| <= 1/2, the least largest relative error in float32: 1.1e-7.
_Q1, _Q2, _Q3, _Q4, _Q5 = (
    f32(c)
    for c in (
        0.6931470036506653,
        0.24022242426872253,
        0.05550733581185341,
        0.009671512991189957,
        0.001326472731307149,
    )
)
_ONE = f32(1)

# Sums may be reordered (that is what lets them run in lanes); NaN and infinities keep their meaning.
_REORDER = {"reassoc", "contract", "nsz"}


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    def wrap(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # no folder to keep compiled code in is writable
            return numba.njit(nogil=True, **options)(function)

    return wrap


@intrinsic
def _as_float(_context: Any, x: Any) -> Any:
    """The float32 of these bits; 16 bits are the upper half, a bfloat16."""

    def lower(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        bits = args[0]
        if x == types.uint16:
            word = ir.IntType(32)
            bits = builder.shl(builder.zext(bits, word), ir.Constant(word, 16))
        return bits if x == types.float32 else builder.bitcast(bits, ir.FloatType())

    return (types.float32(x), lower) if x in {types.float32, types.uint16, types.int32} else None


@intrinsic
def _as_bits(_context: Any, x: Any) -> Any:
    def lower(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return (types.int32(x), lower) if x == types.float32 else None


@intrinsic
def _stored(_context: Any, value: Any, like: Any) -> Any:
    """A finite float32 in the form of `like`: itself, or rounded to the nearest even bfloat16."""

    def lower(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        if like == types.float32:
            return args[0]
        word = ir.IntType(32)
        bits, half = builder.bitcast(args[0], word), ir.Constant(word, 16)
        odd = builder.and_(builder.lshr(bits, half), ir.Constant(word, 1))
        up = builder.add(bits, builder.add(odd, ir.Constant(word, 0x7FFF)))
        return builder.trunc(builder.lshr(up, half), ir.IntType(16))

    legal = value == types.float32 and like in {types.float32, types.uint16}
    return (like(value, like), lower) if legal else None


@intrinsic
def _larger(_context: Any, x: Any, y: Any) -> Any:
    """max(x, y) in the one form that the compiler turns into a reduction in lanes."""

    def lower(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        real = ir.FloatType()
        function = builder.module.declare_intrinsic(
            "llvm.maxnum", [real], ir.FunctionType(real, [real, real])
        )
        return builder.call(function, args, fastmath=("nnan", "nsz"))

    both = x == types.float32 and y == types.float32
    return (types.float32(x, y), lower) if both else None


# Contraction only: reordering would cancel _MAGIC.
@_compiled(fastmath={"contract"})
def _exp2(y: Any, rate: Any) -> Any:
    """2^(y * rate) for y * rate in [-127, 0]; exactly 1 at 0 and exactly 0 at -127."""
    shifted = y * rate + _MAGIC
    f = y * rate - (shifted - _MAGIC)
    q = (((_Q5 * f + _Q4) * f + _Q3) * f + _Q2) * f + _Q1
    return (q * f + _ONE) * _as_float(np.int32(_as_bits(shifted) << np.int32(23)))


@_compiled(fastmath={*_REORDER, "nnan"})
def _block_max(x: Any) -> Any:
    m = f32(-np.inf)
    for i in range(x.size):
        m = _larger(_as_float(x[i]), m)
    return m


@_compiled(fastmath=_REORDER)
def _block_sums(x: Any, m: Any, rate: Any, floor: Any, centre: Any, zero: Any) -> Any:
    """Sums of e, e t and e (t - centre)^2 with t = x - m, e = 2^(t * rate), in zero's precision."""
    s, u, w = zero, zero, zero
    for i in range(x.size):
        t = _as_float(x[i]) - m
        t = floor if t < floor else t
        e = _exp2(t, rate)
        d = t - centre
        s += e
        u += e * t
        w += e * d * d
    return s, u, w


@_compiled()
def _position(x: Any, value: Any) -> int:
    for i in range(x.size):
        if _as_float(x[i]) == value:
            return i
    return 0


@_compiled()
def _has_nan(x: Any) -> bool:
    for i in range(x.size):
        value = _as_float(x[i])
        if value != value:
            return True
    return False


@_compiled()
def _moments(
    flat: Any,
    offsets: Any,
    counts: Any,
    vocab: int,
    scale: float,
    argmax: Any,
    out: Any,
    begin: int,
    end: int,
) -> None:
    """Rows begin..end: argmax, and out = (maximum, total, mean, variance)."""
    rate, floor = f32(scale * _LOG2_E), f32(_FLOOR / scale)
    for row in range(begin, end):
        if not counts[row]:
            argmax[row] = 0
            out[0, row], out[1, row], out[2, row], out[3, row] = 0.0, 1.0, 0.0, 0.0
            continue
        first = offsets[row]
        m, at = f32(-np.inf), 0
        total, mean, variance = 0.0, 0.0, 0.0
        for start in range(0, vocab, _BLOCK):
            x = flat[first + start : first + min(start + _BLOCK, vocab)]
            peak = _block_max(x)
            if peak > m:
                if total > 0:
                    drop = f64(m) - f64(peak)
                    total *= math.exp(drop * scale)
                    mean += drop
                m, at = peak, start
            if m == -np.inf:
                if _has_nan(x):
                    m = f32(np.nan)
                    break
                continue
            s32, u32, w32 = _block_sums(x, m, rate, floor, f32(mean), f32(0))
            s, u, w, centre = f64(s32), f64(u32), f64(w32), f64(f32(mean))
            if s == 0:
                continue
            far = (u / s - centre) ** 2
            if (peak == m and s < _FEW) or far > _FAR * (w / s - far):
                centre = f64(f32(u / s))
                s, u, w = _block_sums(x, m, rate, floor, f32(centre), 0.0)
            mu = u / s
            var = w / s - (mu - centre) ** 2
            # A NaN total must stay: no branch may drop it.
            total += s
            share = s / total
            variance += share * (var - variance + (1 - share) * (mu - mean) ** 2)
            mean += share * (mu - mean)
        if m != m:
            total = np.nan
        argmax[row] = at + _position(flat[first + at : first + min(at + _BLOCK, vocab)], m)
        out[0, row], out[1, row] = m, total
        out[2, row], out[3, row] = mean * scale, max(variance, 0.0) * scale**2


@_compiled(fastmath={"contract"})
def _row_polynomial(
    x: Any, m: Any, rate: Any, floor: Any, scale: Any, mean: Any, a: Any, b: Any, c: Any, out: Any
) -> None:
    for i in range(x.size):
        t = _as_float(x[i]) - m
        t = floor if t < floor else t
        d = t * scale - mean
        out[i] = _stored(_exp2(t, rate) * (a + d * (b + d * c)), x[i])


@_compiled()
def _polynomials(
    flat: Any,
    offsets: Any,
    counts: Any,
    vocab: int,
    scale: float,
    rows: Any,
    out: Any,
    begin: int,
    end: int,
) -> None:
    """Rows begin..end of p (a + b d + c d^2); `rows` holds (maximum, total, mean, a, b, c)."""
    rate, floor = f32(scale * _LOG2_E), f32(_FLOOR / scale)
    for row in range(begin, end):
        target = out[row * vocab : (row + 1) * vocab]
        if counts[row]:
            m, total, mean, a, b, c = rows[:, row]
            _row_polynomial(
                flat[offsets[row] : offsets[row] + vocab],
                f32(m),
                rate,
                floor,
                f32(scale),
                f32(mean),
                f32(a / total),
                f32(b / total),
                f32(c / total),
                target,
            )
        else:
            target[:] = 0


def row_moments(logits: Tensor, scale: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Argmax (rows) and maximum, total, mean and variance (4, rows) of float32/bfloat16 logits."""
    flat, offsets, counts = _layout(logits, mask)
    argmax, out = np.empty(len(offsets), np.int64), np.empty((4, len(offsets)))
    _spread(_moments, logits, flat, offsets, counts, logits.shape[-1], scale, argmax, out)
    return torch.from_numpy(argmax), torch.from_numpy(out)


def softmax_polynomial(
    logits: Tensor, scale: float, rows: Tensor, mask: Tensor | None, out: Tensor
) -> None:
    """Writes p (a + b d + c d^2) of rows = (maximum, total, mean, a, b, c), as float32/bfloat16."""
    flat, offsets, counts = _layout(logits, mask)
    target = _numbers(out.view(-1))
    values = rows.to(torch.float64).contiguous().numpy()
    _spread(_polynomials, logits, flat, offsets, counts, logits.shape[-1], scale, values, target)


def _layout(logits: Tensor, mask: Tensor | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The memory that logits span, where each row begins in it, and which rows count."""
    x = logits.detach()
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        x = x.contiguous()
    offsets = torch.zeros((), dtype=torch.long)
    for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        offsets = offsets[..., None] + torch.arange(size) * stride
    offsets = offsets.reshape(-1)
    span = int(offsets[-1]) + x.shape[-1] if offsets.numel() else 0
    counts = torch.ones(len(offsets), dtype=torch.bool) if mask is None else mask
    return _numbers(x.as_strided((span,), (1,))), offsets.numpy(), counts.numpy()


def _numbers(x: Tensor) -> np.ndarray:
    return x.view(torch.int16).numpy().view(np.uint16) if x.dtype == torch.bfloat16 else x.numpy()


def _spread(kernel: Callable[..., None], logits: Tensor, *args: Any) -> None:
    """Runs the kernel over all rows, on as many threads as torch uses and the work is worth.

    Threads of our own rather than the compiler's: those may neither be entered from two Python
    threads at once nor survive a fork.
    """
    rows = logits.shape[:-1].numel()
    threads = max(1, min(torch.get_num_threads(), rows, logits.numel() // _SERIAL))
    bounds = [rows * i // threads for i in range(threads + 1)]
    if threads == 1:
        kernel(*args, 0, rows)
        return
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(kernel, *args, begin, end) for begin, end in pairwise(bounds)]
        for job in jobs:
            job.result()
