"""Softmax moments of softcap(hidden @ weight.T + bias) and their gradient, logits made block by block.

A block of tokens by words of the vocabulary is multiplied, reduced, and its memory used for the next
one: it stays in the last-level cache, and no page is asked of the system twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from szilard.kernels import tokens as kernels
from szilard.kernels.tokens import RowMoments

_BLOCK_ELEMENTS = 1 << 21
"""Numbers in a block of logits, of weight, of hidden that is converted (8 MiB in float32)."""
_BLOCK_TOKENS = 2048
"""Tokens in a block at most: enough to make the traffic of the weight negligible."""


@dataclass(frozen=True, slots=True)
class Head:
    """What turns hidden states into scaled logits: scale * softcap(hidden @ weight.T + bias).

    Attributes:
        hidden: (rows, width).
        weight: (vocab, width), vocab > 0.
        bias: (vocab,).
        softcap: c > 0 squashes the logits z to c tanh(z / c).
        scale: factor on the logits (inverse temperature).
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    scale: float

    @property
    def dtype(self) -> torch.dtype:
        """Of the products: float32 or better."""
        both = torch.promote_types(self.hidden.dtype, self.weight.dtype)
        return torch.promote_types(both, torch.float32)

    def token_blocks(self) -> Iterator[slice]:
        return _blocks(len(self.hidden), self._tall)

    def word_blocks(self) -> Iterator[slice]:
        return _blocks(len(self.weight), _BLOCK_ELEMENTS // max(self._tall, self.weight.shape[1]))

    @property
    def _tall(self) -> int:
        copied = self.hidden.dtype != self.dtype
        most = _BLOCK_ELEMENTS // self.weight.shape[1] if copied else _BLOCK_TOKENS
        return max(1, min(len(self.hidden), _BLOCK_TOKENS, most))

    def logits(self, h: Tensor, w: Tensor, words: slice, room: _Room) -> Tensor:
        """A block of the logits before the scale, written to the room."""
        z = room.of(len(h), len(w))
        if self.bias is None:
            torch.mm(h, w.T, out=z)
        else:
            torch.addmm(self.bias[words].to(z.dtype), h, w.T, out=z)
        return z if self.softcap is None else z.div_(self.softcap).tanh_().mul_(self.softcap)

    def room(self) -> _Room:
        return _Room(self.hidden.new_empty(0, dtype=self.dtype))


class _Room:
    """Memory for one block after the other."""

    def __init__(self, flat: Tensor) -> None:
        self.flat = flat

    def of(self, rows: int, columns: int) -> Tensor:
        size = rows * columns
        if self.flat.numel() < size:
            self.flat = self.flat.new_empty(size)
        return self.flat[:size].view(rows, columns)

    def holding(self, x: Tensor) -> Tensor:
        """The block in the dtype of the products: itself where it has that already."""
        return x if x.dtype == self.flat.dtype else self.of(*x.shape).copy_(x)


def moments(head: Head, targets: Tensor | None) -> tuple[RowMoments, Tensor]:
    """Moments of each row's softmax, and the target's logit before the scale (0 without targets)."""
    if kernels.triton_for(head.hidden, head.weight):
        from szilard.kernels import linear_triton

        return linear_triton.moments(head, targets)
    h_room, w_room, z_room = (head.room() for _ in range(3))
    rows, found = [], []
    for tokens in head.token_blocks():
        h = h_room.holding(head.hidden[tokens])
        whole, chosen = None, h.new_zeros(len(h))
        for words in head.word_blocks():
            z = head.logits(h, w_room.holding(head.weight[words]), words, z_room)
            part = kernels.row_moments(z, head.scale, None)
            whole = part if whole is None else kernels.merge(whole, part, head.scale, words.start)
            if targets is not None:
                here, at = _inside(targets[tokens], words)
                chosen = torch.where(here, z.gather(-1, at[:, None])[:, 0], chosen)
        rows.append(whole)
        found.append(chosen)
    columns = (
        torch.cat([getattr(part, field.name) for part in rows]) for field in fields(RowMoments)
    )
    return RowMoments(*columns), torch.cat(found)


def gradients(
    head: Head,
    moments: RowMoments,
    coefficients: Tensor,
    index: Tensor,
    entries: Tensor,
    needed: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients to hidden, weight and bias from those to the logits, which are made once more.

    The gradient to a row's logits, soft-capped but not scaled, is p (a + b d + c d^2), except where
    it is given.

    Args:
        head: as given to `moments`.
        moments: what `moments` returned.
        coefficients: a, b, c of each row, (3, rows), as of `softmax_polynomial`.
        index: token ids whose gradient is given, (rows, k).
        entries: these gradients, (rows, k); equal where ids are.
        needed: whether hidden, weight and bias want theirs; the others get None.
    """
    if kernels.triton_for(head.hidden, head.weight):
        from szilard.kernels import linear_triton

        return linear_triton.gradients(head, moments, coefficients, index, entries, needed)
    hidden, weight, bias, dtype = head.hidden, head.weight, head.bias, head.dtype
    need_hidden, need_weight, need_bias = needed
    grad_hidden = hidden.new_empty(hidden.shape, dtype=dtype) if need_hidden else None
    grad_weight = torch.empty_like(weight) if need_weight else None
    grad_bias = torch.empty_like(bias) if bias is not None and need_bias else None
    h_room, w_room, z_room, g_room, gw_room = (head.room() for _ in range(5))
    # Vocabulary outside, so that a block of the weight's gradient is summed in full precision and
    # then stored once in the weight's own dtype.
    for words in head.word_blocks():
        w = w_room.holding(weight[words])
        gw, gb = None, torch.zeros(len(w), dtype=dtype, device=w.device)
        if grad_weight is not None:
            gw = grad_weight[words] if weight.dtype == dtype else gw_room.of(*w.shape)
        for tokens in head.token_blocks():
            h = h_room.holding(hidden[tokens])
            z = head.logits(h, w, words, z_room)
            rows = RowMoments(*(getattr(moments, f.name)[tokens] for f in fields(RowMoments)))
            g = g_room.of(*z.shape)
            kernels.softmax_polynomial(z, head.scale, rows, coefficients[:, tokens], None, g)
            here, at = _inside(index[tokens], words)
            row, column = here.nonzero(as_tuple=True)
            g[row, at[row, column]] = entries[tokens][row, column].to(dtype)
            if head.softcap is not None:
                g.addcmul_(g, z.div_(head.softcap).square_(), value=-1)
            # With beta = 0, what the memory held before is not read.
            if grad_hidden is not None:
                grad_hidden[tokens].addmm_(g, w, beta=int(words.start > 0))
            if gw is not None:
                gw.addmm_(g.T, h, beta=int(tokens.start > 0))
            if grad_bias is not None:
                gb += g.sum(0)
        if grad_weight is not None and gw is not None and gw.dtype != weight.dtype:
            grad_weight[words] = gw
        if grad_bias is not None:
            grad_bias[words] = gb
    return None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight, grad_bias


def _blocks(size: int, step: int) -> Iterator[slice]:
    """Slices that cover an axis; one empty slice for an empty axis."""
    step = max(1, step)
    return (slice(i, min(i + step, size)) for i in range(0, max(1, size), step))


def _inside(index: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Which token ids lie in the block of vocabulary, and their place there (0 for the others)."""
    here = (index >= words.start) & (index < words.stop)
    return here, torch.where(here, index - words.start, 0)
