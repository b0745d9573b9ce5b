"""Compiled loops of attention entropies: a read of float32 or bfloat16 maps, products in cache.

The products are our own because the BLAS that torch calls keeps its threads spinning for
milliseconds after each, on the cores that the next pass over the block needs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from torch import Tensor

from szilard.kernels.compiled import (
    _as_bits,
    _as_float,
    _compiled,
    _larger,
    _layout,
    _numbers,
    _spread,
    _stored,
)

f32, f64 = np.float32, np.float64

_BLOCK = 1024  # weights summed in float32 lanes before they join a float64 sum

# p = 2^e (1 + f) with 1 + f in [2/3, 4/3); log (1 + f) = f q(f), the least largest relative error in
# float32: 1.7e-7. No constant is added to f q(f) near p = 1, so that it is relative there too.
_TWO_THIRDS = np.int32(0x3F2AAAAB)
_LOG_2 = f32(math.log(2))
_Q0, _Q1, _Q2, _Q3, _Q4, _Q5, _Q6, _Q7 = (
    f32(c)
    for c in (
        0.9999998362153127,
        -0.49999937760173613,
        0.33337988684486525,
        -0.25007621712373457,
        0.19795037541577576,
        -0.16420086683195081,
        0.1711118116160637,
        -0.15365692734790512,
    )
)
_ONE = f32(1)

_REORDER = {"reassoc", "contract", "nsz"}


@_compiled(fastmath={"contract"})
def _log(p: Any) -> Any:
    """Logarithm of a normal p > 0; finite at 0, and of no use below 0, where a sum must catch it."""
    bits = _as_bits(p)
    e = np.int32(np.int32(bits - _TWO_THIRDS) >> np.int32(23))
    f = _as_float(np.int32(bits - np.int32(e << np.int32(23)))) - _ONE
    q = ((((((_Q7 * f + _Q6) * f + _Q5) * f + _Q4) * f + _Q3) * f + _Q2) * f + _Q1) * f + _Q0
    return f32(e) * _LOG_2 + f * q


@_compiled(fastmath=_REORDER)
def _sums(x: Any) -> Any:
    """Sums of -p log p and p, and the largest -p (which says nothing where the sum is NaN)."""
    h, s, below = f32(0), f32(0), f32(-np.inf)
    for i in range(x.size):
        p = _as_float(x[i])
        h -= p * _log(p)
        s += p
        below = _larger(-p, below)
    return h, s, below


@_compiled(fastmath=_REORDER)
def _masked_sums(x: Any, seen: Any) -> Any:
    h, s, below, count = f32(0), f32(0), f32(-np.inf), f32(0)
    for i in range(x.size):
        counts = f32(seen[i])
        p = _as_float(x[i])
        p = p if counts > f32(0) else f32(0)
        h -= p * _log(p)
        s += p
        below = _larger(-p, below)
        count += counts
    return h, s, below, count


@_compiled()
def _entropies(
    flat: Any,
    offsets: Any,
    keys: int,
    seen: Any,
    seen_offsets: Any,
    out: Any,
    begin: int,
    end: int,
) -> None:
    """Rows begin..end of out = (entropy, sum, minimum, visible keys)."""
    for row in range(begin, end):
        first = offsets[row]
        entropy, total, below, visible = 0.0, 0.0, -np.inf, 0
        for start in range(0, keys, _BLOCK):
            stop = min(start + _BLOCK, keys)
            x = flat[first + start : first + stop]
            if seen.size:
                at = seen_offsets[row]
                h, s, b, count = _masked_sums(x, seen[at + start : at + stop])
                visible += int(count)
            else:
                h, s, b = _sums(x)
                visible += stop - start
            entropy += f64(h)
            total += f64(s)
            below = max(below, f64(b))
        out[0, row], out[1, row], out[2, row], out[3, row] = entropy, total, -below, visible


def map_rows(weights: Tensor, mask: Tensor | None) -> Tensor:
    """Entropy, sum, minimum and number of visible keys of each row, (4, rows) float64."""
    flat, offsets, _ = _layout(weights, None)
    seen, seen_offsets = np.empty(0, np.uint8), offsets
    if mask is not None:
        # The mask as given, not as it broadcasts: only its last axis must lie in memory.
        mask = mask.expand(*mask.shape[:-1], weights.shape[-1]).contiguous()
        seen, seen_offsets, _ = _layout(mask.view(torch.uint8).expand(weights.shape), None)
    out = np.empty((4, len(offsets)))
    _spread(_entropies, weights, flat, offsets, weights.shape[-1], seen, seen_offsets, out)
    return torch.from_numpy(out)


# --- products -----------------------------------------------------------------------------------

_VECTOR, _COLUMNS, _ROWS = 8, 16, 4  # a tile: 4 rows of 2 vectors, 8 sums that stay in registers
_DEPTH = 256  # products a tile adds up at a time: its panel of 16 KiB stays in the inner cache


@intrinsic
def _tile(
    _context: Any, a: Any, i: Any, p: Any, panel: Any, depth: Any, out: Any, j: Any, add: Any
) -> Any:
    """Rows i.., columns j.. of out: a[i : i + 4, p : p + depth] @ panel, or that added."""

    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, i, p, _, depth, _, j, add = args
        vector, word = ir.VectorType(ir.FloatType(), _VECTOR), ir.IntType(64)

        def array(which: int) -> Any:
            return make_array(signature.args[which])(context, builder, args[which])

        def rows(which: int, column: Any) -> list[Any]:
            x = array(which)
            stride = builder.sdiv(builder.extract_value(x.strides, 0), ir.Constant(word, 4))
            start = builder.add(builder.mul(i, stride), column)
            return [
                builder.gep(x.data, [builder.add(start, builder.mul(stride, ir.Constant(word, r)))])
                for r in range(_ROWS)
            ]

        def vectors(base: Any) -> list[Any]:
            return [
                builder.bitcast(builder.gep(base, [ir.Constant(word, c)]), vector.as_pointer())
                for c in range(0, _COLUMNS, _VECTOR)
            ]

        def spread(x: Any) -> Any:
            nothing = ir.Constant(vector, ir.Undefined)
            one = builder.insert_element(nothing, x, ir.Constant(ir.IntType(32), 0))
            everywhere = ir.Constant(ir.VectorType(ir.IntType(32), _VECTOR), [0] * _VECTOR)
            return builder.shuffle_vector(one, nothing, everywhere)

        left, right = rows(0, p), array(3).data
        cells = [cell for row in rows(5, j) for cell in vectors(row)]
        sums = [cgutils.alloca_once(builder, vector) for _ in cells]
        with builder.if_else(add) as (on_top, anew):
            with on_top:
                for cell, total in zip(cells, sums, strict=True):
                    builder.store(builder.load(cell, align=4), total)
            with anew:
                for total in sums:
                    builder.store(ir.Constant(vector, [0.0] * _VECTOR), total)
        with cgutils.for_range(builder, depth) as loop:
            first = builder.mul(loop.index, ir.Constant(word, _COLUMNS))
            factors = [builder.load(v, align=4) for v in vectors(builder.gep(right, [first]))]
            scalars = [spread(builder.load(builder.gep(row, [loop.index]))) for row in left]
            pairs = [(x, y) for x in scalars for y in factors]
            for (x, y), total in zip(pairs, sums, strict=True):
                product = builder.fmul(x, y, flags=("contract",))
                term = builder.fadd(product, builder.load(total), flags=("contract",))
                builder.store(term, total)
        for cell, total in zip(cells, sums, strict=True):
            builder.store(builder.load(total), cell, align=4)
        return context.get_dummy_value()

    word = types.int64
    return types.void(a, word, word, panel, word, out, word, types.boolean), lower


@_compiled()
def multiply(a: Any, b: Any, out: Any, add: bool) -> None:
    """Writes a @ b into out, or adds it: float32, a multiple of 4 rows and of 16 columns of out.

    The last axis of all three must lie in memory.
    """
    panel = np.empty(_DEPTH * _COLUMNS, np.float32)
    for p in range(0, b.shape[0], _DEPTH):
        depth = min(_DEPTH, b.shape[0] - p)
        for j in range(0, out.shape[1], _COLUMNS):
            for k in range(depth):
                for c in range(_COLUMNS):
                    panel[k * _COLUMNS + c] = b[p + k, j + c]
            for i in range(0, out.shape[0], _ROWS):
                _tile(a, i, p, panel, depth, out, j, add or p > 0)


@_compiled()
def fill(x: Any, lengths: Any, value: float) -> None:
    """Sets what lies beyond each row's length to the value."""
    for i in range(x.shape[0]):
        x[i, lengths[i] :] = value


@_compiled()
def _copy(x: Any, of: Any, out: Any, into: Any, factor: float, rows: int) -> None:
    scale = f32(factor)
    for i in range(rows):
        source = of[i] if of.size else i
        target = into[i] if into.size else i
        for j in range(x.shape[1]):
            out[target, j] = _stored(_as_float(x[source, j]) * scale, out[target, j])


def copy(x: Tensor, out: Tensor, factor: float, of: Tensor | None, into: Tensor | None) -> None:
    """Writes factor * x, or its rows `of`, to the first rows of out, or its rows `into`."""
    every = np.empty(0, np.int64)
    rows = len(x) if of is None else len(of)
    _copy(
        _numbers(x.detach()),
        every if of is None else of.numpy(),
        _numbers(out),
        every if into is None else into.numpy(),
        factor,
        rows,
    )
