"""The blocked linear loop on a GPU: products in cuBLAS, their blocks folded by Triton kernels.

Half precision multiplies as it is and adds in float32: products of halves are exact in float32, so
the logits are those of float32 operands. A block of them stays in the second-level cache until the
kernel has read it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from szilard.kernels import tokens_triton
from szilard.kernels.linear import Head
from szilard.kernels.tokens import RowMoments

_FORWARD = 1024, 8192
"""Tokens by words of a block: 32 MiB of logits, of 40 to 50 MiB that the second-level cache has."""
_BACKWARD = 4096, 4096
"""Larger and square, for each block is added to as many rows of both gradients as it has sides."""


def moments(head: Head, targets: Tensor | None) -> tuple[RowMoments, Tensor]:
    """As `linear.moments`: a block of vocabulary is some parts of every row, merged at the end."""
    hidden, weight, scale = head.hidden, head.weight, head.scale
    bias = None if head.bias is None else head.bias.contiguous()
    (rows, vocab), device = (len(hidden), len(weight)), hidden.device
    tall, wide = _block_shape(rows, _FORWARD)
    words = _blocks(vocab, wide)
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    room = _room(tall, wide, vocab, torch.float32, device)
    argmax, fields = tokens_triton.buffers(1, rows, device)
    chosen = torch.zeros(rows, dtype=torch.float64, device=device)
    for tokens in _blocks(rows, tall):
        h = hidden[tokens].to(dtype)
        parts = tokens_triton.parts_of(len(h), min(wide, vocab), room.element_size())
        found = tokens_triton.buffers(parts * len(words), len(h), device)
        for i, block in enumerate(words):
            z = _product(h, weight[block].to(dtype).T, _matrix(room, len(h), block))
            slot = slice(i * parts, (i + 1) * parts)
            tokens_triton.part_moments(
                z[None],
                scale,
                found[0][slot],
                found[1][:, slot],
                bias=None if bias is None else bias[block],
                softcap=head.softcap,
                targets=None if targets is None else targets[tokens],
                chosen=chosen[tokens],
                first_token=block.start,
            )
        tokens_triton.merge_parts(*found, scale, argmax[0, tokens], fields[:, 0, tokens])
    return RowMoments(argmax[0], *fields[:, 0]), chosen


def gradients(
    head: Head,
    moments: RowMoments,
    coefficients: Tensor,
    index: Tensor,
    entries: Tensor,
    needed: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As `linear.gradients`; gradients to logits are rounded to the operands' dtype for products."""
    hidden, weight, scale = head.hidden, head.weight, head.scale
    bias = None if head.bias is None else head.bias.contiguous()
    need_hidden, need_weight, need_bias = needed
    (rows, width), (vocab, device) = hidden.shape, (len(weight), hidden.device)
    tall, wide = _block_shape(rows, _BACKWARD)
    # Few tokens make no wider blocks here: one of the weight's gradient is held in float32.
    wide = min(wide, _BACKWARD[1])
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    room = _room(tall, wide, vocab, torch.float32, device)
    # In float32 the gradient takes the place of the logits.
    g_room = room if dtype == torch.float32 else _room(tall, wide, vocab, dtype, device)
    grad_hidden = torch.empty(rows, width, device=device) if need_hidden else None
    grad_weight = torch.empty_like(weight) if need_weight else None
    grad_bias = torch.empty_like(bias) if bias is not None and need_bias else None
    rounded = grad_weight is not None and weight.dtype != torch.float32
    gw_room = torch.empty(min(wide, vocab), width, device=device) if rounded else grad_weight
    of_row = torch.stack((moments.maximum, moments.total, moments.mean, *coefficients))
    blocks = _blocks(rows, tall)
    pieces = [
        [x[:, tokens].contiguous() for x in (of_row, index.T, entries.T)] for tokens in blocks
    ]
    for words in _blocks(vocab, wide):
        w = weight[words].to(dtype)
        gw = None if gw_room is None else gw_room[: len(w)] if rounded else gw_room[words]
        if gw is not None and not rows:
            gw.zero_()
        gb = torch.zeros(len(w), device=device)
        for tokens, (columns, at, values) in zip(blocks, pieces, strict=True):
            h = hidden[tokens].to(dtype)
            z = _product(h, w.T, _matrix(room, len(h), words))
            g = _matrix(g_room, len(h), words)
            tokens_triton.polynomial(
                z[None],
                scale,
                columns,
                g,
                bias=None if bias is None else bias[words],
                softcap=head.softcap,
                index=at,
                at_index=values,
                first_token=words.start,
            )
            if grad_hidden is not None:
                _product(g, w, grad_hidden[tokens], add=words.start > 0)
            if gw is not None:
                _product(g.T, h, gw, add=tokens.start > 0)
            if grad_bias is not None:
                gb += g.sum(0, dtype=torch.float32)
        if rounded and grad_weight is not None and gw is not None:
            grad_weight[words] = gw
        if grad_bias is not None:
            grad_bias[words] = gb
    return None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight, grad_bias


def _product(a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> Tensor:
    """The product a b, added to `out` or in its place, in float32 also for halves."""
    if a.dtype != torch.float32 and a.device.type == "cuda" and _HALVES_TO_FLOAT32:
        if add:
            return torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.addmm(out, a.float(), b.float(), beta=int(add), out=out)


_HALVES_TO_FLOAT32 = "dtype_out" in torch.ops.aten.mm.overloads()
"""Whether this version of torch has products of halves that are not rounded to halves."""


def _block_shape(rows: int, most: tuple[int, int]) -> tuple[int, int]:
    """As many tokens as there are, up to the most, by as many words as then make a block."""
    tall = max(1, min(rows, most[0]))
    return tall, most[0] * most[1] // tall // 8 * 8  # every row of a block begins aligned


def _room(tall: int, wide: int, vocab: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(tall * min(wide, vocab), dtype=dtype, device=device)


def _matrix(room: Tensor, rows: int, words: slice) -> Tensor:
    width = words.stop - words.start
    return room[: rows * width].view(rows, width)


def _blocks(size: int, step: int) -> list[slice]:
    return [slice(i, min(i + step, size)) for i in range(0, size, step)]
