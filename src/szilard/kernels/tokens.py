"""Softmax moments of rows of logits and their gradient, without a temporary of the logits' size.

Everything a row's surprisal statistics need is in five numbers. With z the scaled logits, m their
maximum and e = exp(z - m):

    total = sum e,   mean = sum e (z - m) / total,   variance = sum e (z - m - mean)^2 / total

so that log p_i = z_i - m - log total, H = log total - mean (two non-negative terms, no
cancellation) and Var[log p] = variance, taken about the mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 20
"""Logits a temporary of the torch path holds at once."""

_NEGLIGIBLE = -1e4
"""Lowest z - m in use: exp of it is 0 in every dtype, and 0 * -1e4 is 0 where 0 * -inf is NaN."""


@dataclass(frozen=True, slots=True)
class RowMoments:
    """Softmax moments of each row, in the accumulation dtype.

    `total` is NaN or 0 where a row has no distribution: with NaN or +inf among its logits the
    maximum or the total is NaN, with nothing but -inf the maximum is -inf.
    """

    argmax: Tensor
    maximum: Tensor
    total: Tensor
    mean: Tensor
    variance: Tensor


def accumulator(device: torch.device) -> torch.dtype:
    """The dtype of sums over the vocabulary: float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def row_moments(logits: Tensor, scale: float, mask: Tensor | None) -> RowMoments:
    """Moments of softmax(scale * logits) along the last axis, one row each, flattened.

    Args:
        logits: floating, (*batch, vocab), any layout.
        scale: factor on the logits (inverse temperature).
        mask: boolean, as many entries as rows; a row with False is not read, its moments are those
            of a single certain outcome.
    """
    if _compiled_for(logits):
        from szilard.kernels import tokens_cpu

        argmax, columns = tokens_cpu.row_moments(logits, scale, mask)
        return RowMoments(argmax, *columns)
    if triton_for(logits):
        from szilard.kernels import tokens_triton

        argmax, columns = tokens_triton.row_moments(logits, scale, mask)
        return RowMoments(argmax, *columns)
    acc, rows = accumulator(logits.device), logits.shape[:-1].numel()
    argmax = torch.zeros(rows, dtype=torch.long, device=logits.device)
    maximum, mean, variance = (argmax.to(acc) for _ in range(3))
    total = torch.ones_like(mean)
    for begin, end, z in _row_blocks(logits):
        if mask is not None:
            z = torch.where(mask[begin:end, None], z, 0.0)
        peak, at = z.max(-1, keepdim=True)
        t = (z - peak).mul_(scale).clamp_(min=_NEGLIGIBLE)
        e = t.exp()
        s = e.sum(-1, dtype=acc)
        mu = (e * t).sum(-1, dtype=acc) / s
        t.sub_(mu[:, None].to(t.dtype)).square_().mul_(e)
        argmax[begin:end], maximum[begin:end], total[begin:end] = at[:, 0], peak[:, 0].to(acc), s
        mean[begin:end], variance[begin:end] = mu, t.sum(-1, dtype=acc) / s
    if mask is not None:
        argmax, maximum = (torch.where(mask, x, 0) for x in (argmax, maximum))
        total, mean, variance = (
            torch.where(mask, x, neutral) for x, neutral in ((total, 1), (mean, 0), (variance, 0))
        )
    return RowMoments(argmax, maximum, total, mean, variance)


def softmax_polynomial(
    logits: Tensor,
    scale: float,
    moments: RowMoments,
    coefficients: Tensor,
    mask: Tensor | None,
    out: Tensor | None = None,
) -> Tensor:
    """p_i (a + b d_i + c d_i^2) with d_i = log p_i + H, the form of every gradient of the moments.

    Args:
        logits: as given to `row_moments`.
        scale: as given to `row_moments`.
        moments: what `row_moments` returned.
        coefficients: a, b, c of each row, (3, rows).
        mask: as given to `row_moments`; rows with False give 0.
        out: where the result goes: contiguous, shape and dtype of `logits`, no memory in common.

    Returns:
        Contiguous, shape and dtype of `logits`.
    """
    rows = torch.stack((moments.maximum, moments.total, moments.mean, *coefficients))
    if out is None:
        out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if _compiled_for(logits):
        from szilard.kernels import tokens_cpu

        tokens_cpu.softmax_polynomial(logits, scale, rows, mask, out)
        return out
    if triton_for(logits):
        from szilard.kernels import tokens_triton

        tokens_triton.softmax_polynomial(logits, scale, rows, mask, out)
        return out
    flat = out.view(-1, logits.shape[-1])
    for begin, end, z in _row_blocks(logits):
        peak, total, mean, a, b, c = rows[:, begin:end, None].to(z.dtype)
        t = (z - peak).mul_(scale).clamp_(min=_NEGLIGIBLE)
        e = t.exp()
        d = t.sub_(mean)
        value = e.div_(total).mul_(a + d * (b + d * c))
        if mask is not None:
            value = torch.where(mask[begin:end, None], value, 0.0)
        flat[begin:end] = value
    return out


def top_indices(logits: Tensor, k: int, mask: Tensor | None) -> Tensor:
    """Indices of the k largest logits of each row, largest first, (rows, k)."""
    top = torch.zeros(logits.shape[:-1].numel(), k, dtype=torch.long, device=logits.device)
    for begin, end, z in _row_blocks(logits):
        top[begin:end] = z.topk(k).indices
    # A row not counted still needs k distinct legal indices.
    return top if mask is None else torch.where(mask[:, None], top, torch.arange(k).to(top))


def merge(left: RowMoments, right: RowMoments, scale: float, offset: int) -> RowMoments:
    """Moments of the rows whose vocabulary is left's and then right's, which begins at `offset`.

    Chan, Golub & LeVeque (1983), equation (2.1), after both are brought to the common maximum.
    A part with nothing but -inf counts as empty.
    """
    maximum = torch.maximum(left.maximum, right.maximum)
    parts = []
    for part in (left, right):
        empty = part.maximum == -torch.inf
        lower = torch.where(empty, _NEGLIGIBLE, (part.maximum - maximum) * scale)
        weight = torch.where(empty, 0, part.total * lower.exp())
        parts.append(
            (weight, torch.where(empty, 0, part.mean) + lower, torch.where(empty, 0, part.variance))
        )
    (w1, mean1, var1), (w2, mean2, var2) = parts
    total = w1 + w2
    f1, f2 = w1 / total, w2 / total
    mean = f1 * mean1 + f2 * mean2
    variance = f1 * var1 + f2 * var2 + f1 * f2 * (mean1 - mean2).square()
    argmax = torch.where(left.maximum >= right.maximum, left.argmax, right.argmax + offset)
    return RowMoments(argmax, maximum, total, mean, variance)


def triton_for(*operands: Tensor) -> bool:
    """Whether Triton's kernels serve these: on a GPU, float64 apart, which they would round."""
    halves_or_single = {torch.float32, torch.bfloat16, torch.float16}
    return all(x.device.type == "cuda" and x.dtype in halves_or_single for x in operands) and (
        _has_triton()
    )


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _compiled_for(logits: Tensor) -> bool:
    dtypes = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    return logits.device.type == "cpu" and logits.dtype in dtypes


def _row_blocks(logits: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """(begin, end, float rows) over blocks of rows, without copying a strided tensor as a whole."""
    vocab = logits.shape[-1]
    step = max(1, _BLOCK_ELEMENTS // max(1, vocab))
    begin = 0
    for piece in _matrices(logits):
        for rows in piece.split(step):
            if rows.numel():
                wide = rows if rows.dtype == torch.float64 else rows.float()
                yield begin, begin + len(rows), wide
                begin += len(rows)


def _matrices(logits: Tensor) -> Iterator[Tensor]:
    if logits.ndim == 1 or logits.is_contiguous():
        yield logits.reshape(-1, logits.shape[-1])
    elif logits.ndim == 2:
        yield logits
    else:
        for part in logits:
            yield from _matrices(part)
