"""Compiled loops over rows of logits on the CPU: one read of the memory, in vectors, blocks in cache.

A row goes by in blocks that stay in the first-level cache: the block's maximum, then its sums in
lanes relative to the row's maximum so far, then one float64 step that merges them into the row's
moments (Chan, Golub & LeVeque 1983). Two things keep the digits that sums in float32 would lose. A
new maximum is left out of its block and merged by itself: exp(0) = 1 would swallow the small rest
that is all of the entropy of a nearly certain row. And second moments are taken about the mean so
far; where that lies too far off, the block is summed again about its own mean.

The loops are written in `Lanes`, vectors of eight numbers that LLVM maps to whatever registers the
machine has.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model
from torch import Tensor

from szilard.kernels.compiled import _compiled, _layout, _numbers, _spread

_WIDTH = 8
_PAIR = 2 * _WIDTH  # logits a step of a loop takes: two vectors hide each other's latency
_BLOCK = 2048  # 8 KiB of float32: a lane sums 128 terms
_AHEAD = 2 * _BLOCK  # logits from here to those that are fetched from memory meanwhile
_FAR = 16.0  # squared distance from the mean, in variances, above which digits would cancel
_PIECE = 1 << 16  # logits of a row that are reduced by themselves: threads may share a long row
_LOG2_E, _LN_2 = math.log2(math.e), math.log(2)


class Lanes(types.Type):
    """Eight float32 or float64 numbers that are added, multiplied and compared at once."""

    def __init__(self, real: types.Float) -> None:
        super().__init__(f"Lanes({real})")
        self.real = real


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(_real(fe_type), _WIDTH))


_F32, _F64 = Lanes(types.float32), Lanes(types.float64)
# How the elements of an array reach the lanes; two dtypes that NumPy lacks come as their bits.
_LANES = {
    types.float32: _F32,
    types.float64: _F64,
    types.uint16: _F32,  # bfloat16
    types.int16: _F32,  # float16
}
_MINUS_INFINITY = {
    types.float32: -math.inf,
    types.float64: -math.inf,
    types.uint16: 0xFF80,
    types.int16: 0xFC00,
}


def _real(lanes: Lanes) -> ir.Type:
    return ir.FloatType() if lanes.real == types.float32 else ir.DoubleType()


def _word(lanes: Lanes) -> ir.Type:
    return ir.VectorType(ir.IntType(lanes.real.bitwidth), _WIDTH)


def _constant(vector: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)


def _operator(function: Any, instruction: str) -> None:
    @intrinsic
    def apply(_context: Any, x: Any, y: Any) -> Any:
        def lower(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
            # A product and a sum may become one instruction where the machine has it.
            return getattr(builder, instruction)(*args, flags=("contract",))

        return (x(x, y), lower) if isinstance(x, Lanes) and x == y else None

    @overload(function)
    def typed(x: Any, y: Any) -> Any:
        def call(x: Any, y: Any) -> Any:
            return apply(x, y)

        return call if isinstance(x, Lanes) and x == y else None


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")


@intrinsic
def _larger(_context: Any, x: Any, y: Any) -> Any:
    """Lane by lane x where x > y, else y: also where one of them is NaN."""

    def lower(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return x(x, y), lower


@intrinsic
def _any_equal(_context: Any, x: Any, y: Any) -> Any:
    def lower(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        bits = builder.bitcast(builder.fcmp_ordered("==", *args), ir.IntType(_WIDTH))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(x, y), lower


@intrinsic
def _sum(_context: Any, x: Any) -> Any:
    """The sum over the lanes, in float64."""

    def lower(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        terms = [
            builder.extract_element(args[0], ir.Constant(ir.IntType(32), i)) for i in range(_WIDTH)
        ]
        if x == _F32:
            terms = [builder.fpext(term, ir.DoubleType()) for term in terms]
        while len(terms) > 1:
            terms = [builder.fadd(*pair) for pair in zip(terms[::2], terms[1::2], strict=True)]
        return terms[0]

    return types.float64(x), lower


@intrinsic
def _max(_context: Any, x: Any) -> Any:
    """The largest of the lanes, in float64."""

    def lower(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        result = builder.extract_element(args[0], ir.Constant(ir.IntType(32), 0))
        for i in range(1, _WIDTH):
            term = builder.extract_element(args[0], ir.Constant(ir.IntType(32), i))
            result = builder.select(builder.fcmp_ordered(">", term, result), term, result)
        return builder.fpext(result, ir.DoubleType()) if x == _F32 else result

    return types.float64(x), lower


def _broadcast(builder: Any, lanes: Lanes, value: Any) -> Any:
    scalar = value if lanes == _F64 else builder.fptrunc(value, ir.FloatType())
    vector = ir.Constant(ir.VectorType(_real(lanes), _WIDTH), ir.Undefined)
    index = ir.IntType(32)
    return builder.shuffle_vector(
        builder.insert_element(vector, scalar, ir.Constant(index, 0)),
        vector,
        ir.Constant(ir.VectorType(index, _WIDTH), [0] * _WIDTH),
    )


@intrinsic
def _splat(_context: Any, value: Any, like: Any) -> Any:
    """A number in every lane, in the arithmetic that the elements of the array `like` have."""
    lanes = _LANES[like.dtype]

    def lower(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        return _broadcast(builder, lanes, args[0])

    return lanes(types.float64, like), lower


@intrinsic
def _rounded(_context: Any, value: Any, like: Any) -> Any:
    """A float64 rounded to the arithmetic that the elements of the array `like` have."""

    def lower(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        if _LANES[like.dtype] == _F64:
            return args[0]
        return builder.fpext(builder.fptrunc(args[0], ir.FloatType()), ir.DoubleType())

    return types.float64(types.float64, like), lower


def _address(context: Any, builder: Any, array: Any, value: Any, at: Any) -> Any:
    data = context.make_array(array)(context, builder, value).data
    return builder.gep(data, [at])


def _elements(context: Any, array: Any) -> ir.VectorType:
    return ir.VectorType(context.get_data_type(array.dtype), _PAIR)


@intrinsic
def _load(_context: Any, array: Any, at: Any) -> Any:
    """Sixteen elements from `at` on, as two vectors. Which lane an element is in is left open."""

    def lower(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        vector = _elements(context, array)
        pointer = _address(context, builder, array, *args)
        pointer = builder.bitcast(pointer, vector.as_pointer())
        block = builder.load(pointer, align=array.dtype.bitwidth // 8)
        return context.make_tuple(builder, pair, _widen(builder, array.dtype, block))

    pair = types.UniTuple(_LANES[array.dtype], 2)
    return pair(array, types.intp), lower


@intrinsic
def _load_some(_context: Any, array: Any, at: Any, count: Any) -> Any:
    """`count` < 16 elements from `at` on, as `_load`, and -inf in the lanes that are left."""

    def lower(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        vector = _elements(context, array)
        source = _address(context, builder, array, *args[:2])
        buffer = cgutils.alloca_once(builder, vector)
        builder.store(_constant(vector, _MINUS_INFINITY[array.dtype]), buffer)
        target = builder.bitcast(buffer, vector.element.as_pointer())
        with cgutils.for_range(builder, args[2]) as loop:
            element = builder.load(builder.gep(source, [loop.index]))
            builder.store(element, builder.gep(target, [loop.index]))
        block = _widen(builder, array.dtype, builder.load(buffer))
        return context.make_tuple(builder, pair, block)

    pair = types.UniTuple(_LANES[array.dtype], 2)
    return pair(array, types.intp, types.intp), lower


def _widen(builder: Any, dtype: Any, block: Any) -> list[Any]:
    """Two vectors of lanes from sixteen elements."""
    if dtype in {types.float32, types.float64}:
        halves = [range(_WIDTH), range(_WIDTH, _PAIR)]
        index = ir.VectorType(ir.IntType(32), _WIDTH)
        return [
            builder.shuffle_vector(block, block, ir.Constant(index, list(half))) for half in halves
        ]
    # Two neighbours of 16 bits are one word of 32: its lower half moved up, and its upper half.
    word, real = _word(_F32), ir.VectorType(ir.FloatType(), _WIDTH)
    words = builder.bitcast(block, word)
    upper = [
        builder.shl(words, _constant(word, 16)),
        builder.and_(words, _constant(word, 0xFFFF0000)),
    ]
    if dtype == types.uint16:
        return [builder.bitcast(bits, real) for bits in upper]
    wide = []
    for bits in upper:
        # float16: 5 bits of exponent move to where float32 has 8, and 2^112 mends their bias.
        sign = builder.and_(bits, _constant(word, 0x80000000))
        rest = builder.lshr(builder.and_(bits, _constant(word, 0x7FFF0000)), _constant(word, 3))
        scaled = builder.fmul(builder.bitcast(rest, real), _constant(real, 2.0**112))
        special = builder.icmp_unsigned(">=", rest, _constant(word, 0x0F800000))
        number = builder.select(
            special,
            builder.or_(rest, _constant(word, 0x7F800000)),
            builder.bitcast(scaled, word),
        )
        wide.append(builder.bitcast(builder.or_(number, sign), real))
    return wide


def _narrow(builder: Any, dtype: Any, pair: list[Any]) -> Any:
    """Sixteen elements from two vectors of finite lanes, rounded to the nearest, ties to even."""
    if dtype in {types.float32, types.float64}:
        index = ir.VectorType(ir.IntType(32), _PAIR)
        return builder.shuffle_vector(*pair, ir.Constant(index, list(range(_PAIR))))
    word, real = _word(_F32), ir.VectorType(ir.FloatType(), _WIDTH)

    def rounded(bits: Any, dropped: int) -> Any:
        odd = builder.and_(builder.lshr(bits, _constant(word, dropped)), _constant(word, 1))
        half = _constant(word, (1 << dropped - 1) - 1)
        return builder.add(bits, builder.add(odd, half))

    upper = []
    for lanes in pair:
        bits = builder.bitcast(lanes, word)
        if dtype == types.uint16:
            upper.append(rounded(bits, 16))
            continue
        sign = builder.and_(bits, _constant(word, 0x80000000))
        bits = builder.and_(bits, _constant(word, 0x7FFFFFFF))
        # Below 2^-14 the spacing is 2^-24, which is that of the numbers from 1/2 to 1.
        moved = builder.fadd(builder.bitcast(bits, real), _constant(real, 0.5))
        tiny = builder.sub(builder.bitcast(moved, word), _constant(word, 0x3F000000))
        normal = builder.lshr(
            builder.sub(rounded(bits, 13), _constant(word, 112 << 23)), _constant(word, 13)
        )
        half = builder.select(
            builder.icmp_unsigned("<", bits, _constant(word, 113 << 23)), tiny, normal
        )
        infinite = builder.icmp_unsigned(">", half, _constant(word, 0x7C00))
        half = builder.select(infinite, _constant(word, 0x7C00), half)
        upper.append(builder.or_(builder.shl(half, _constant(word, 16)), sign))
    words = builder.or_(
        builder.lshr(upper[0], _constant(word, 16)),
        builder.and_(upper[1], _constant(word, 0xFFFF0000)),
    )
    return builder.bitcast(words, ir.VectorType(ir.IntType(16), _PAIR))


@intrinsic
def _store(_context: Any, array: Any, at: Any, pair: Any) -> Any:
    """Sixteen elements from `at` on, which `_load` would take to these lanes."""

    def lower(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        block = _narrow(builder, array.dtype, cgutils.unpack_tuple(builder, args[2]))
        pointer = _address(context, builder, array, *args[:2])
        pointer = builder.bitcast(pointer, block.type.as_pointer())
        builder.store(block, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, pair), lower


@intrinsic
def _store_some(_context: Any, array: Any, at: Any, pair: Any, count: Any) -> Any:
    """The first `count` < 16 of the elements that `_store` would write."""

    def lower(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        block = _narrow(builder, array.dtype, cgutils.unpack_tuple(builder, args[2]))
        target = _address(context, builder, array, *args[:2])
        buffer = cgutils.alloca_once_value(builder, block)
        source = builder.bitcast(buffer, block.type.element.as_pointer())
        with cgutils.for_range(builder, args[3]) as loop:
            element = builder.load(builder.gep(source, [loop.index]))
            builder.store(element, builder.gep(target, [loop.index]))
        return context.get_dummy_value()

    return types.void(array, types.intp, pair, types.intp), lower


@intrinsic
def _fetch(_context: Any, array: Any, at: Any) -> Any:
    """Asks for the cache line of element `at`, which may lie beyond the array."""

    def lower(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        word, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        pointer = builder.bitcast(_address(context, builder, array, *args), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [pointer, *(ir.Constant(word, v) for v in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.intp), lower


# What exp2 needs, by precision: the lowest exponent, a number that rounds to integers when added and
# leaves them in the low bits, and 2^f = 1 + f q(f) on |f| <= 1/2, highest power first. float32: the
# least largest relative error, 1.1e-7; float64: the exponential series to 4e-18. They reach the
# loops as an argument: constants that the compiler knows are loaded anew in every step.
_EXP2_F32 = np.array(
    [
        -127,
        1.5 * 2**23,
        0.001326472731307149,
        0.009671512991189957,
        0.05550733581185341,
        0.24022242426872253,
        0.6931470036506653,
        1,
    ]
)
_EXP2_F64 = np.array(
    [-1023, 1.5 * 2**52, *(math.log(2) ** k / math.factorial(k) for k in range(13, -1, -1))]
)


@intrinsic
def _exp2(_context: Any, y: Any, numbers: Any) -> Any:
    """2^y for y <= 0, exactly 1 at 0 and exactly 0 from the lowest exponent down; and y, bounded."""
    bits = 23 if y == _F32 else 52

    def lower(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        lowest, magic, power, *rest = cgutils.unpack_tuple(builder, args[1])
        x = builder.select(builder.fcmp_ordered("<", args[0], lowest), lowest, args[0])
        shifted = builder.fadd(x, magic)
        f = builder.fsub(x, builder.fsub(shifted, magic))
        for c in rest:
            product = builder.fmul(power, f, flags=("contract",))
            power = builder.fadd(product, c, flags=("contract",))
        word = _word(y)
        exponent = builder.shl(builder.bitcast(shifted, word), _constant(word, bits))
        e = builder.bitcast(builder.add(builder.bitcast(power, word), exponent), power.type)
        return context.make_tuple(builder, pair, [e, x])

    pair = types.UniTuple(y, 2)
    return pair(y, numbers), lower


@intrinsic
def _numbers_of(_context: Any, table: Any, x: Any) -> Any:
    """The entries of the table that `x` needs, each in every lane."""
    lanes = _LANES[x.dtype]
    count = len(_EXP2_F32 if lanes == _F32 else _EXP2_F64)

    def lower(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        data = context.make_array(table)(context, builder, args[0]).data
        entries = [
            builder.load(builder.gep(data, [ir.Constant(ir.IntType(64), i)])) for i in range(count)
        ]
        return context.make_tuple(builder, many, [_broadcast(builder, lanes, v) for v in entries])

    many = types.UniTuple(lanes, count)
    return many(table, x), lower


@_compiled()
def _largest(x: Any, begin: int, end: int) -> float:
    a = b = _splat(-np.inf, x)
    full = end - (end - begin) % _PAIR
    for i in range(begin, full, _PAIR):
        z, z2 = _load(x, i)
        a, b = _larger(z, a), _larger(z2, b)
    if full < end:
        z, z2 = _load_some(x, full, end - full)
        a, b = _larger(z, a), _larger(z2, b)
    return _max(_larger(a, b))


@_compiled()
def _position(x: Any, begin: int, end: int, value: float) -> int:
    """Where `value` comes first in begin..end; it is there."""
    wanted = _splat(value, x)
    step = begin
    while step + _PAIR <= end:
        z, z2 = _load(x, step)
        if _any_equal(z, wanted) or _any_equal(z2, wanted):
            break
        step += _PAIR
    for i in range(step, end):
        z, _ = _load_some(x, i, 1)
        if _max(z) == value:
            return i
    return step


@_compiled(forceinline=True)
def _add(sums: Any, pair: Any, m: Any, rate: Any, centre: Any, numbers: Any) -> Any:
    s, u, w = sums
    e, y = _exp2((pair[0] - m) * rate, numbers)
    d = y - centre
    ed = e * d
    s, u, w = s + e, u + ed, w + ed * d
    e, y = _exp2((pair[1] - m) * rate, numbers)
    d = y - centre
    ed = e * d
    return s + e, u + ed, w + ed * d


@_compiled()
def _sums(x: Any, begin: int, end: int, top: float, per: float, about: float, table: Any) -> Any:
    """Sums of e, e d and e d^2 with y = (x - top) per, e = 2^y and d = y - about."""
    m, rate, centre, zero = _splat(top, x), _splat(per, x), _splat(about, x), _splat(0.0, x)
    numbers = _numbers_of(table, x)
    sums = zero, zero, zero
    full = end - (end - begin) % _PAIR
    for i in range(begin, full, _PAIR):
        _fetch(x, i + _AHEAD)
        sums = _add(sums, _load(x, i), m, rate, centre, numbers)
    if full < end:
        sums = _add(sums, _load_some(x, full, end - full), m, rate, centre, numbers)
    s, u, w = sums
    return _sum(s), _sum(u), _sum(w)


@_compiled()
def _joined(
    total: float, mean: float, variance: float, s: float, mu: float, var: float
) -> tuple[float, float, float]:
    """Moments of two samples together: Chan, Golub & LeVeque (1983), equation (2.1)."""
    whole = total + s
    old, new = total / whole, s / whole
    between = old * new * (mean - mu) ** 2
    return whole, old * mean + new * mu, old * variance + new * var + between


@_compiled()
def _piece(x: Any, begin: int, end: int, rate: float, table: Any) -> Any:
    """Argmax, maximum, total, mean and variance of x[begin:end]; y = (x - maximum) rate, in bits."""
    m, at = -np.inf, begin
    total, mean, variance = 0.0, 0.0, 0.0
    for start in range(begin, end, _BLOCK):
        stop = min(start + _BLOCK, end)
        left = right = start
        peak = _largest(x, start, stop)
        if peak == np.inf:
            return at, np.nan, np.nan, mean, variance
        if peak > m:
            if total > 0:
                drop = (m - peak) * rate
                total *= math.exp(drop * _LN_2)
                mean += drop
            m, at = peak, _position(x, start, stop, peak)
            left, right = at, at + 1
            total, mean, variance = _joined(total, mean, variance, 1.0, 0.0, 0.0)
        top = m if m > -np.inf else 0.0
        for first, last in ((start, left), (right, stop)):
            if first == last:
                continue
            centre = _rounded(mean, x)
            s, u, w = _sums(x, first, last, top, rate, centre, table)
            if u != u:
                return at, np.nan, np.nan, mean, variance
            if s == 0:
                continue
            mu = u / s
            joined = _joined(total, mean, variance, s, centre + mu, w / s - mu * mu)
            if s * mu * mu > _FAR * joined[0] * joined[2]:
                centre = _rounded(centre + mu, x)
                s, u, w = _sums(x, first, last, top, rate, centre, table)
                mu = u / s
                joined = _joined(total, mean, variance, s, centre + mu, w / s - mu * mu)
            total, mean, variance = joined
    return at, m, total, mean, max(variance, 0.0)


@_compiled()
def _moments(
    flat: Any,
    offsets: Any,
    counts: Any,
    edges: Any,
    scale: float,
    table: Any,
    argmax: Any,
    out: Any,
    begin: int,
    end: int,
) -> None:
    """Pieces begin..end, row by row: argmax, and out = (maximum, total, mean, variance)."""
    pieces = edges.size - 1
    rate = _rounded(scale * _LOG2_E, flat)
    unit = scale / rate
    for j in range(begin, end):
        row, k = j // pieces, j % pieces
        if not counts[row]:
            argmax[j] = 0
            out[0, j], out[1, j], out[2, j], out[3, j] = 0.0, 1.0, 0.0, 0.0
            continue
        x = flat[offsets[row] : offsets[row] + edges[pieces]]
        at, m, total, mean, variance = _piece(x, edges[k], edges[k + 1], rate, table)
        argmax[j] = at
        out[0, j], out[1, j], out[2, j], out[3, j] = m, total, mean * unit, variance * unit**2


@_compiled()
def _rows_of_pieces(counts: Any, scale: float, at: Any, parts: Any, argmax: Any, out: Any) -> None:
    """Moments of whole rows from those of their pieces."""
    rows = counts.size
    pieces = at.size // rows
    for row in range(rows):
        m, total, mean, variance = parts[:, row * pieces]
        best = at[row * pieces]
        if counts[row]:
            for j in range(row * pieces + 1, (row + 1) * pieces):
                peak, s, mu, var = parts[:, j]
                if peak > m:
                    drop = (m - peak) * scale if total > 0 else 0.0
                    total *= math.exp(drop)
                    mean += drop
                    m, best = peak, at[j]
                if s != 0:
                    drop = (peak - m) * scale
                    total, mean, variance = _joined(
                        total, mean, variance, s * math.exp(drop), mu + drop, var
                    )
        if total != total:
            m = np.nan
        argmax[row] = best
        out[0, row], out[1, row], out[2, row], out[3, row] = m, total, mean, variance


@_compiled()
def _polynomial_piece(
    x: Any, begin: int, end: int, rate: float, unit: float, row: Any, table: Any, out: Any
) -> None:
    """Writes p (a + b d + c d^2) from begin to end; row = (maximum, total, mean, a, b, c)."""
    m, per, bits, mean = _splat(row[0], x), _splat(rate, x), _splat(unit, x), _splat(row[2], x)
    a, b, c = (
        _splat(row[3] / row[1], x),
        _splat(row[4] / row[1], x),
        _splat(row[5] / row[1], x),
    )
    numbers = _numbers_of(table, x)
    full = end - (end - begin) % _PAIR
    for i in range(begin, full, _PAIR):
        z, z2 = _load(x, i)
        e, y = _exp2((z - m) * per, numbers)
        e2, y2 = _exp2((z2 - m) * per, numbers)
        d, d2 = y * bits - mean, y2 * bits - mean
        _store(out, i, (e * (a + d * (b + d * c)), e2 * (a + d2 * (b + d2 * c))))
    if full < end:
        z, z2 = _load_some(x, full, end - full)
        e, y = _exp2((z - m) * per, numbers)
        e2, y2 = _exp2((z2 - m) * per, numbers)
        d, d2 = y * bits - mean, y2 * bits - mean
        pair = e * (a + d * (b + d * c)), e2 * (a + d2 * (b + d2 * c))
        _store_some(out, full, pair, end - full)


@_compiled()
def _polynomials(
    flat: Any,
    offsets: Any,
    counts: Any,
    edges: Any,
    scale: float,
    table: Any,
    rows: Any,
    out: Any,
    begin: int,
    end: int,
) -> None:
    """Pieces begin..end of p (a + b d + c d^2); `rows` holds (maximum, total, mean, a, b, c)."""
    pieces = edges.size - 1
    vocab = edges[pieces]
    rate = _rounded(scale * _LOG2_E, flat)
    for j in range(begin, end):
        row, k = j // pieces, j % pieces
        target = out[row * vocab : (row + 1) * vocab]
        if counts[row]:
            x = flat[offsets[row] : offsets[row] + vocab]
            _polynomial_piece(
                x, edges[k], edges[k + 1], rate, scale / rate, rows[row], table, target
            )
        else:
            target[edges[k] : edges[k + 1]] = 0


def row_moments(logits: Tensor, scale: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Argmax (rows) and maximum, total, mean and variance (4, rows) of softmax(scale * logits)."""
    flat, offsets, counts = _layout(logits, mask)
    edges, table = _edges(logits.shape[-1]), _table(logits)
    pieces = len(edges) - 1
    parts = np.empty(len(offsets) * pieces, np.int64), np.empty((4, len(offsets) * pieces))
    _spread(_moments, logits, flat, offsets, counts, edges, scale, table, *parts, pieces=pieces)
    if pieces > 1:
        whole = np.empty(len(offsets), np.int64), np.empty((4, len(offsets)))
        _rows_of_pieces(counts, scale, *parts, *whole)
        parts = whole
    return torch.from_numpy(parts[0]), torch.from_numpy(parts[1])


def softmax_polynomial(
    logits: Tensor, scale: float, rows: Tensor, mask: Tensor | None, out: Tensor
) -> None:
    """Writes p (a + b d + c d^2) for rows = (maximum, total, mean, a, b, c), in logits' dtype."""
    flat, offsets, counts = _layout(logits, mask)
    edges, table = _edges(logits.shape[-1]), _table(logits)
    values = rows.to(torch.float64).T.contiguous().numpy()
    target = _numbers(out.view(-1))
    args = flat, offsets, counts, edges, scale, table, values, target
    _spread(_polynomials, logits, *args, pieces=len(edges) - 1)


def _table(logits: Tensor) -> np.ndarray:
    return _EXP2_F64 if logits.dtype == torch.float64 else _EXP2_F32


def _edges(vocab: int) -> np.ndarray:
    """Where the pieces of a row begin and end. Threads do not enter: results must not depend on them."""
    return np.linspace(0, vocab, max(1, -(-vocab // _PIECE)) + 1).astype(np.int64)
