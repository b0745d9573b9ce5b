"""Triton kernels over rows of bfloat16, float16 or float32 logits: every byte read once.

A row goes by in tiles whose elements are dealt to lanes, 32 or fewer to each: what a lane sums never
leaves its thread, so that nothing is exchanged before the row's end. A tile's moments are raw sums of
powers of 2 in float32 about the lane's maximum in it; there that maximum, at distance 0, has a weight
of at least 1/32, so that E[y^2] - E[y]^2 loses five bits at most. A lane keeps the tile with its
highest logit apart from its other tiles, which it merges in float32 (Chan, Golub & LeVeque 1983).
At the end the one tile that holds the row's maximum is read and summed again, exactly; lanes, and
then parts of a row, are merged in float64.
"""

# A kernel's parameters are pointers, numbers and blocks of Triton's, which have no types to name.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
_FLOOR = tl.constexpr(-200.0)
"""Lowest exponent of 2 in use: its power is 0 in float32, and 0 * -200 is 0 where 0 * -inf is NaN."""
_LOWEST = tl.constexpr(-3e38)
"""Stands for the exponent -inf, which has no differences."""
_INFINITY = tl.constexpr(float("inf"))
_NO_TOKEN = tl.constexpr(0x7FFFFFFF)

_PROGRAMS = 2048
"""Programs that fill the largest cards several times over."""
_MOST_PARTS = 1024
_WARPS, _NARROW = 4, 16_384
"""Warps that share a row; of many rows of up to so many logits, one warp takes each."""
_HELD = 32
"""Elements of a tile in a lane."""
_ALIGNMENT = tl.constexpr(16)
"""Bytes that a thread loads at once."""
_STAGES = 3
_TILE = 4096


@triton.jit
def _deal(CHUNKS: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr):
    """Places in a tile (chunks, lanes, wide): neighbours to a lane, lanes side by side."""
    chunk = tl.arange(0, CHUNKS)[:, None, None]
    lane = tl.arange(0, LANES)[None, :, None]
    return (chunk * LANES + lane) * WIDE + tl.arange(0, WIDE)[None, None, :]


@triton.jit
def _head(row, WIDE: tl.constexpr):
    """How many places after the last aligned address the row begins."""
    return ((row.to(tl.int64, bitcast=True) // (_ALIGNMENT // WIDE)) % WIDE).to(tl.int32)


@triton.jit
def _tanh(y):
    """Relative error near 5e-7: the series where 1 - 2 / (exp(2 |y|) + 1) would cancel."""
    s = y * y
    series = y * (
        1 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835 - s * (1382 / 155925)))))
    )
    size = tl.abs(y)
    far = 1 - 2 / (tl.exp2(size * (2 * _LOG2_E)) + 1)
    return tl.where(size < 0.25, series, tl.where(y < 0, -far, far))


@triton.jit
def _logits(
    row, at, inside, bias, softcap,
    CHECKED: tl.constexpr, BIAS: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Logits at these places in float32; -inf outside the row where that is checked."""
    x = tl.load(row + at, mask=inside, other=0.0) if CHECKED else tl.load(row + at)
    x = x.to(tl.float32)
    if BIAS:
        b = tl.load(bias + at, mask=inside, other=0.0) if CHECKED else tl.load(bias + at)
        x += b.to(tl.float32)
    if SOFTCAP:
        # A minimum, for a product might be fused with the subtraction of the maximum: then the
        # maximum's own distance would not be 0.
        x = tl.minimum(softcap * _tanh(x / softcap), softcap, propagate_nan=tl.PropagateNan.ALL)
    if CHECKED:
        x = tl.where(inside, x, -_INFINITY)
    return x


@triton.jit
def _sums(y, e):
    """A tile's mean and variance lane by lane, from the exponents and the powers of 2, and the total."""
    ey = e * y
    total = tl.sum(tl.sum(e, 2), 0)
    inverse = 1 / tl.where(total == 0, 1.0, total)
    mean = tl.sum(tl.sum(ey, 2), 0) * inverse
    second = tl.sum(tl.sum(ey * y, 2), 0) * inverse
    return total, mean, tl.maximum(second - mean * mean, 0.0)


@triton.jit
def _join(c1, total1, mean1, var1, c2, total2, mean2, var2):
    """Two sets of moments about the exponents c1 and c2 as one, about the larger."""
    c = tl.maximum(c1, c2)
    d1, d2 = tl.maximum(c1 - c, _FLOOR), tl.maximum(c2 - c, _FLOOR)
    w1 = total1 * tl.exp2(d1.to(tl.float32)).to(total1.dtype)
    w2 = total2 * tl.exp2(d2.to(tl.float32)).to(total2.dtype)
    total = w1 + w2
    inverse = 1 / tl.where(total == 0, 1.0, total)
    f1, f2 = w1 * inverse, w2 * inverse
    d1 += mean1
    d2 += mean2
    var = f1 * var1 + f2 * var2 + f1 * f2 * (d1 - d2) * (d1 - d2)
    return c, total, f1 * d1 + f2 * d2, var


@triton.jit
def _fold(x, start, rate, m, at, total, mean, var, c, others, others_mean, others_var):
    """A tile goes by: it becomes a lane's best, or joins the lane's others, as does who was best."""
    peak = tl.max(tl.max(x, 2), 0)
    # A rounded product would not do if some of its uses were fused with it: a maximum is not.
    centre, before = tl.maximum(peak * rate, _LOWEST), tl.maximum(m * rate, _LOWEST)
    y = tl.fma(x, rate, -centre[None, :, None])
    y = tl.maximum(y, _FLOOR, propagate_nan=tl.PropagateNan.ALL)
    t, t_mean, t_var = _sums(y, tl.exp2(y))
    better = peak > m
    c, others, others_mean, others_var = _join(
        c,
        others,
        others_mean,
        others_var,
        tl.where(better, before, centre),
        tl.where(better, total, t),
        tl.where(better, mean, t_mean),
        tl.where(better, var, t_var),
    )
    m, at = tl.where(better, peak, m), tl.where(better, start, at)
    total = tl.where(better, t, total)
    mean, var = tl.where(better, t_mean, mean), tl.where(better, t_var, var)
    return m, at, total, mean, var, c, others, others_mean, others_var


@triton.jit
def _merge(c, total, mean, var, reference):
    """Total, mean and variance about one exponent of all sets together, in float64."""
    drop = tl.maximum(c - reference, _FLOOR)
    weight = total * tl.exp2(drop.to(tl.float32)).to(tl.float64)
    s = tl.sum(weight, 0)
    share = weight / tl.where(s == 0, 1.0, s)
    mean += drop
    centre = tl.sum(share * mean, 0)
    return s, centre, tl.sum(share * (var + (mean - centre) * (mean - centre)), 0)


@triton.jit
def _store(argmax, fields, at, plane, token, m, total, mean, var):
    tl.store(argmax + at, token)
    tl.store(fields + at, m)
    tl.store(fields + plane + at, total)
    tl.store(fields + 2 * plane + at, mean)
    tl.store(fields + 3 * plane + at, var)


@triton.jit
def _moments(
    logits, counts, bias, targets, argmax, fields, chosen,
    rows, plane, inner, outer_stride, inner_stride, vocab, first_token, tiles, scale, softcap,
    MASK: tl.constexpr, BIAS: tl.constexpr, SOFTCAP: tl.constexpr, TARGETS: tl.constexpr,
    ALIGNED: tl.constexpr, STAGES: tl.constexpr,
    CHUNKS: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A part of a row: argmax[part, row] and (maximum, total, mean, variance) in fields[:, part, row]."""
    TILE: tl.constexpr = CHUNKS * LANES * WIDE
    scale, softcap = tl.cast(scale, tl.float32), tl.cast(softcap, tl.float32)
    rate = scale * _LOG2_E
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    offset = (row // inner) * outer_stride + (row % inner) * inner_stride
    # Tiles begin where a thread's load is aligned, `head` places before the row.
    head = 0
    if ALIGNED:
        here = logits + tl.multiple_of(offset, WIDE)
    else:
        head = _head(logits + offset, WIDE)
        here = tl.multiple_of(logits + offset - head, _ALIGNMENT)
    begin = part * tiles * TILE
    end = tl.minimum(begin + tiles * TILE, head + vocab)
    if MASK:
        counted = tl.load(counts + row) != 0
        end = tl.where(counted, end, begin)
    first = begin
    if not ALIGNED:
        first = tl.where((begin == 0) & (head > 0), TILE, begin)
    last = tl.maximum(first, end // TILE * TILE)

    tile = _deal(CHUNKS, LANES, WIDE)
    none = tl.zeros((LANES,), tl.float32)
    m, at = none - _INFINITY, tl.zeros((LANES,), tl.int32)
    total, mean, var = none, none, none
    c, others, others_mean, others_var = none + _LOWEST, none, none, none
    if not ALIGNED:
        for start in range(begin, tl.minimum(first, end), TILE):
            place = start + tile
            inside = (place >= head) & (place < end)
            x = _logits(here, place, inside, bias - head, softcap, True, BIAS, SOFTCAP)
            m, at, total, mean, var, c, others, others_mean, others_var = _fold(
                x, start, rate, m, at, total, mean, var, c, others, others_mean, others_var
            )
    for start in tl.range(first, last, TILE, num_stages=STAGES):
        place = start + tile
        x = _logits(here, place, place < end, bias - head, softcap, False, BIAS, SOFTCAP)
        m, at, total, mean, var, c, others, others_mean, others_var = _fold(
            x, start, rate, m, at, total, mean, var, c, others, others_mean, others_var
        )
    for start in range(last, end, TILE):
        place = start + tile
        x = _logits(here, place, place < end, bias - head, softcap, True, BIAS, SOFTCAP)
        m, at, total, mean, var, c, others, others_mean, others_var = _fold(
            x, start, rate, m, at, total, mean, var, c, others, others_mean, others_var
        )

    # The lanes that hold the maximum read again the tile where they met it.
    peak = tl.max(m, 0)
    place = at[None, :, None] + tile
    inside = (place >= head) & (place < end) & (m == peak)[None, :, None]
    x = _logits(here, place, inside, bias - head, softcap, True, BIAS, SOFTCAP)
    top = tl.max(tl.max(tl.max(x, 2), 1), 0)
    place = tl.where(inside & (x == top), place - head, _NO_TOKEN)
    token = tl.min(tl.min(tl.min(place, 2), 1), 0)
    token = tl.where(token == _NO_TOKEN, 0, token) + first_token

    # Their sums are made anew, about the maximum itself and without it: beside its 1, the small
    # rest that is all of a nearly certain row's entropy would have no digits.
    y = (x - tl.where(top == -_INFINITY, 0.0, top)) * rate
    y = tl.maximum(y, _FLOOR, propagate_nan=tl.PropagateNan.ALL)
    e = tl.exp2(y)
    one = tl.where(x == top, 1.0, 0.0)
    ones, rest = tl.sum(tl.sum(one, 2), 0), tl.sum(tl.sum(e - one, 2), 0)
    _, top_mean, top_var = _sums(y, e)
    best = (m == peak) & (m > -_INFINITY)
    reference = tl.maximum(top.to(tl.float64) * rate.to(tl.float64), _LOWEST)
    centre = tl.where(best, reference, tl.maximum(m * rate, _LOWEST).to(tl.float64))
    total64 = tl.where(best, ones.to(tl.float64) + rest.to(tl.float64), total.to(tl.float64))
    centre, total64, mean64, var64 = _join(
        centre,
        total64,
        tl.where(best, top_mean, mean).to(tl.float64),
        tl.where(best, top_var, var).to(tl.float64),
        c.to(tl.float64),
        others.to(tl.float64),
        others_mean.to(tl.float64),
        others_var.to(tl.float64),
    )
    row_total, row_mean, row_var = _merge(centre, total64, mean64, var64, reference)
    maximum = top.to(tl.float64)
    if MASK:
        # One certain outcome, in the first part.
        neutral = (not counted) & (part == 0)
        token = tl.where(counted, token, 0)
        maximum = tl.where(neutral, 0.0, maximum)
        row_total = tl.where(neutral, 1.0, row_total)
    _store(
        argmax, fields, part * rows + row, plane, token, maximum, row_total,
        row_mean * _LN_2, row_var * (_LN_2 * _LN_2),
    )  # fmt: skip
    if TARGETS:
        target = tl.load(targets + row) - first_token + head
        if (target >= tl.maximum(begin, head)) & (target < end):
            z = _logits(here, target, True, bias - head, softcap, False, BIAS, SOFTCAP)
            tl.store(chosen + row, z.to(tl.float64))


@triton.jit
def _merge_parts(
    argmax, fields, argmax_out, fields_out, rows, parts, plane_out, scale, LANES: tl.constexpr
):
    """Whole rows' argmax_out[row] and fields_out[:, row]."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, LANES)
    inside = part < parts
    at, plane = part * rows + row, parts * rows
    m = tl.load(fields + at, mask=inside, other=-_INFINITY)
    total = tl.load(fields + plane + at, mask=inside, other=0.0)
    mean = tl.load(fields + 2 * plane + at, mask=inside, other=0.0)
    var = tl.load(fields + 3 * plane + at, mask=inside, other=0.0)
    token = tl.load(argmax + at, mask=inside, other=_NO_TOKEN)
    rate = (tl.cast(scale, tl.float32) * _LOG2_E).to(tl.float64)
    peak = tl.max(m, 0)
    c, reference = tl.maximum(m * rate, _LOWEST), tl.maximum(peak * rate, _LOWEST)
    mean, var = mean * _LOG2_E, var * (_LOG2_E * _LOG2_E)
    total, mean, var = _merge(c, total, mean, var, reference)
    token = tl.min(tl.where(m == peak, token, _NO_TOKEN), 0)
    token = tl.where(token == _NO_TOKEN, 0, token)
    _store(
        argmax_out,
        fields_out,
        row,
        plane_out,
        token,
        peak,
        total,
        mean * _LN_2,
        var * (_LN_2 * _LN_2),
    )


@triton.jit
def _polynomial_tile(
    here, target, place, inside, readable, rows, row, token, scale, softcap,
    bias, index, at_index, coefficients,
    CHECKED: tl.constexpr, BIAS: tl.constexpr, SOFTCAP: tl.constexpr, INDICES: tl.constexpr,
):  # fmt: skip
    of_row = coefficients + row
    peak = tl.load(of_row).to(tl.float32)
    inverse = 1 / tl.load(of_row + rows).to(tl.float32)
    mean = tl.load(of_row + 2 * rows).to(tl.float32)
    a = tl.load(of_row + 3 * rows).to(tl.float32) * inverse
    b = tl.load(of_row + 4 * rows).to(tl.float32) * inverse
    c = tl.load(of_row + 5 * rows).to(tl.float32) * inverse
    x = _logits(here, place, readable, bias, softcap, CHECKED, BIAS, SOFTCAP)
    y = (x - peak) * (scale * _LOG2_E)
    y = tl.maximum(y, _FLOOR, propagate_nan=tl.PropagateNan.ALL)
    d = y * _LN_2 - mean
    value = tl.exp2(y) * (a + d * (b + d * c))
    for i in tl.static_range(INDICES):
        entry = tl.load(at_index + i * rows + row).to(tl.float32)
        value = tl.where(place + token == tl.load(index + i * rows + row), entry, value)
    if SOFTCAP:
        slope = x / softcap
        value *= 1 - slope * slope
    if CHECKED:
        tl.store(target + place, tl.where(readable, value, 0.0), mask=inside)
    else:
        tl.store(target + place, value)


@triton.jit
def _polynomials(
    logits, counts, bias, index, at_index, coefficients, out,
    rows, inner, outer_stride, inner_stride, out_stride, vocab, first_token, tiles, scale, softcap,
    MASK: tl.constexpr, BIAS: tl.constexpr, SOFTCAP: tl.constexpr, INDICES: tl.constexpr,
    ALIGNED: tl.constexpr, OUT_ALIGNED: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A tile of p (a + b d + c d^2), times the slope of the soft cap where there is one.

    `coefficients` holds maximum, total, mean, a, b, c of each row. at_index[i, row] takes the
    place of the polynomial at the token index[i, row].
    """
    scale, softcap = tl.cast(scale, tl.float32), tl.cast(softcap, tl.float32)
    program = tl.program_id(0)
    row, start = (program // tiles).to(tl.int64), (program % tiles) * TILE
    offset = (row // inner) * outer_stride + (row % inner) * inner_stride
    head = 0
    if ALIGNED:
        here = logits + tl.multiple_of(offset, WIDE)
    else:
        head = _head(logits + offset, WIDE)
        here = tl.multiple_of(logits + offset - head, _ALIGNMENT)
    out_offset = row * out_stride - head
    if OUT_ALIGNED:
        out_offset = tl.multiple_of(out_offset, WIDE)
    target = out + out_offset
    place, end = start + tl.arange(0, TILE), head + vocab
    inside = (place >= head) & (place < end)
    stop = end
    if MASK:
        stop = tl.where(tl.load(counts + row) != 0, end, head)
    readable = (place >= head) & (place < stop)
    if (start >= head) & (start + TILE <= stop):
        _polynomial_tile(
            here, target, place, inside, readable, rows, row, first_token - head, scale, softcap,
            bias - head, index, at_index, coefficients, False, BIAS, SOFTCAP, INDICES,
        )  # fmt: skip
    else:
        _polynomial_tile(
            here, target, place, inside, readable, rows, row, first_token - head, scale, softcap,
            bias - head, index, at_index, coefficients, True, BIAS, SOFTCAP, INDICES,
        )  # fmt: skip


def row_moments(logits: Tensor, scale: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Argmax (rows) and maximum, total, mean and variance (4, rows) of half or float32 logits."""
    rows, vocab = logits.shape[:-1].numel(), logits.shape[-1]
    argmax, fields = buffers(1, rows, logits.device)
    for begin, end, x in _planes(logits.detach()):
        parts = parts_of(end - begin, vocab, x.element_size())
        found = buffers(parts, end - begin, x.device)
        part_moments(x, scale, *found, mask=None if mask is None else mask[begin:end])
        merge_parts(*found, scale, argmax[0, begin:end], fields[:, 0, begin:end])
    return argmax[0], fields[:, 0]


def softmax_polynomial(
    logits: Tensor, scale: float, rows: Tensor, mask: Tensor | None, out: Tensor
) -> None:
    """Writes p (a + b d + c d^2) for rows = (maximum, total, mean, a, b, c).

    `out` is contiguous and has the logits' shape; it may be the logits themselves.
    """
    flat = out.view(rows.shape[1], logits.shape[-1])
    for begin, end, x in _planes(logits.detach()):
        counts = None if mask is None else mask[begin:end]
        polynomial(x, scale, rows[:, begin:end], flat[begin:end], mask=counts)


def buffers(parts: int, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Room for the argmax (parts, rows) and the moments (4, parts, rows) of parts of rows."""
    argmax = torch.empty(parts, rows, dtype=torch.long, device=device)
    return argmax, torch.empty(4, parts, rows, dtype=torch.float64, device=device)


def parts_of(rows: int, vocab: int, itemsize: int) -> int:
    """Into how many parts each row is cut, so that few rows still keep the whole card busy."""
    wide = _ALIGNMENT.value // itemsize
    warps, chunks = _tile(rows, vocab, wide)
    tiles = triton.cdiv(vocab, chunks * 32 * warps * wide)
    return max(1, min(triton.cdiv(_PROGRAMS, max(1, rows)), tiles, _MOST_PARTS))


def part_moments(
    logits: Tensor,
    scale: float,
    argmax: Tensor,
    fields: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    targets: Tensor | None = None,
    chosen: Tensor | None = None,
    first_token: int = 0,
) -> None:
    """Moments of consecutive parts of the rows, as many as `argmax` has room for.

    Args:
        logits: (outer, inner, vocab), tokens side by side in memory.
        scale: factor on the logits (inverse temperature).
        argmax: receives the token ids, (parts, outer * inner).
        fields: receives maximum, total, mean and variance, (4, parts, outer * inner).
        mask: which rows count; the others are one certain outcome.
        bias: added to the logits, (vocab,).
        softcap: c of c tanh(logits / c), after the bias.
        targets: token ids; where the logits hold them, `chosen` receives their logit.
        chosen: (outer * inner), float64.
        first_token: id of the first of these tokens.
    """
    (_, inner, vocab), (parts, rows) = logits.shape, argmax.shape
    wide = _ALIGNMENT.value // logits.element_size()
    warps, chunks = _tile(rows, vocab, wide)
    aligned = _aligned(logits, logits.stride()[:2])
    # Rows that begin `head` < `wide` places late may reach into one tile more.
    length = vocab if aligned else vocab + wide - 1
    if rows:
        with torch.cuda.device_of(logits):
            _moments[(rows, parts)](
                logits, _bytes(mask, logits), _given(bias, logits), _given(targets, logits),
                argmax, fields, _given(chosen, logits), rows, fields.stride(0), inner,
                logits.stride(0), logits.stride(1), vocab, first_token,
                triton.cdiv(triton.cdiv(length, chunks * 32 * warps * wide), parts),
                scale, 1.0 if softcap is None else softcap,
                MASK=mask is not None, BIAS=bias is not None, SOFTCAP=softcap is not None,
                TARGETS=targets is not None, ALIGNED=aligned, STAGES=_STAGES,
                CHUNKS=chunks, LANES=32 * warps, WIDE=wide, num_warps=warps,
            )  # fmt: skip


def merge_parts(
    argmax: Tensor, fields: Tensor, scale: float, argmax_out: Tensor, fields_out: Tensor
) -> None:
    """Moments of whole rows, (rows) and (4, rows), from those of their parts."""
    parts, rows = argmax.shape
    if rows:
        with torch.cuda.device_of(argmax):
            _merge_parts[(rows,)](
                argmax, fields, argmax_out, fields_out, rows, parts, fields_out.stride(0), scale,
                LANES=triton.next_power_of_2(parts), num_warps=1,
            )  # fmt: skip


def polynomial(
    logits: Tensor,
    scale: float,
    coefficients: Tensor,
    out: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    index: Tensor | None = None,
    at_index: Tensor | None = None,
    first_token: int = 0,
) -> None:
    """Gradient of logits (outer, inner, vocab) from p (a + b d + c d^2), into rows of `out`.

    Args:
        logits: as for `part_moments`, and so are scale, mask, bias, softcap and first_token.
        scale: factor on the logits.
        coefficients: maximum, total, mean, a, b, c of each row, (6, rows).
        out: (rows, vocab), tokens side by side; may be the logits' own memory.
        mask: rows with False give 0.
        bias: added to the logits.
        softcap: the result is then the gradient to the logits before the cap.
        index: token ids whose gradient is not the polynomial's, (n, rows).
        at_index: their gradients, before the cap, (n, rows).
        first_token: id of the first of these tokens.
    """
    outer, inner, vocab = logits.shape
    rows, wide = outer * inner, _ALIGNMENT.value // logits.element_size()
    aligned = _aligned(logits, logits.stride()[:2])
    # Less its head, a row of `out` is aligned where it begins as far from that as the logits' row.
    alike = logits.element_size() == out.element_size() and (
        (logits.data_ptr() - out.data_ptr()) % _ALIGNMENT.value == 0
        and (logits.stride(1) - out.stride(0)) % wide == 0
        and (outer == 1 or (logits.stride(0) - inner * out.stride(0)) % wide == 0)
    )
    alike = alike or (aligned and _aligned(out, out.stride()[:1]))
    tiles = triton.cdiv(vocab if aligned else vocab + wide - 1, _TILE)
    if rows:
        with torch.cuda.device_of(logits):
            _polynomials[(rows * tiles,)](
                logits, _bytes(mask, logits), _given(bias, logits), _given(index, logits),
                _given(at_index, logits), coefficients.contiguous(), out, rows, inner,
                logits.stride(0), logits.stride(1), out.stride(0), vocab, first_token, tiles,
                scale, 1.0 if softcap is None else softcap,
                MASK=mask is not None, BIAS=bias is not None, SOFTCAP=softcap is not None,
                INDICES=0 if index is None else len(index), ALIGNED=aligned, OUT_ALIGNED=alike,
                TILE=_TILE, WIDE=wide, num_warps=_WARPS,
            )  # fmt: skip


def _given(x: Tensor | None, stand_in: Tensor) -> Tensor:
    """A kernel's pointer must be one, also where it is not used."""
    return stand_in if x is None else x


def _bytes(mask: Tensor | None, stand_in: Tensor) -> Tensor:
    return stand_in if mask is None else mask.contiguous().view(torch.uint8)


def _tile(rows: int, vocab: int, wide: int) -> tuple[int, int]:
    """Warps that share a row, and pieces of a tile that a lane holds."""
    # Few rows must be shared out to many programs, and many short ones should end at little cost.
    chunks = 1 if rows < _PROGRAMS // 16 else _HELD // wide
    return (1 if vocab <= _NARROW and rows >= _PROGRAMS // 4 else _WARPS), chunks


def _aligned(x: Tensor, strides: tuple[int, ...]) -> bool:
    width = x.element_size()
    return all(
        place % _ALIGNMENT.value == 0 for place in (x.data_ptr(), *(s * width for s in strides))
    )


def _planes(logits: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """(begin, end, rows begin..end as (outer, inner, vocab)), without copying strided batches."""
    x = logits if logits.stride(-1) == 1 or logits.shape[-1] == 1 else logits.contiguous()
    begin = 0
    for piece in _three_axes(x):
        end = begin + piece.shape[:-1].numel()
        yield begin, end, piece
        begin = end


def _three_axes(x: Tensor) -> Iterator[Tensor]:
    if x.is_contiguous():
        yield x.view(1, -1, x.shape[-1]) if x.numel() else x.new_empty(1, 0, x.shape[-1])
    elif x.ndim <= 3:
        yield x[(None,) * (3 - x.ndim)]
    else:
        for part in x:
            yield from _three_axes(part)
