"""Softmax moments of softcap(hidden @ weight.T + bias) and their gradient, logits made block by block.

A block of tokens by words of the vocabulary is multiplied, reduced, and its memory used for the next
one: it stays in the last-level cache, and no page is asked of the system twice. On the CPU each thread
has its own words and multiplies alone: where torch's threads share a product, they wait for each other
after every block, and those that spin hold the cores that the sums need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor

from szilard.kernels import tokens as kernels
from szilard.kernels.tokens import RowMoments

_BLOCK_ELEMENTS = 1 << 21
"""Logits in a block (8 MiB in float32); half where weight or hidden are converted block by block too."""
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

    def word_blocks(self, words: slice) -> Iterator[slice]:
        copied = self.weight.dtype != self.dtype
        widest = max(self._tall, self.weight.shape[1] if copied else 1)
        return _blocks(words.stop, self._elements // widest, words.start)

    @property
    def _tall(self) -> int:
        copied = self.hidden.dtype != self.dtype
        most = self._elements // self.weight.shape[1] if copied else _BLOCK_TOKENS
        return max(1, min(len(self.hidden), _BLOCK_TOKENS, most))

    @property
    def _elements(self) -> int:
        copied = {self.hidden.dtype, self.weight.dtype} != {self.dtype}
        return _BLOCK_ELEMENTS // 2 if copied else _BLOCK_ELEMENTS

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
    (_, whole, found), *rest = _shared(head, lambda words: _moments(head, targets, words))
    for words, part, chosen in rest:
        whole = kernels.merge(whole, part, head.scale, words.start)
        found = found + chosen
    return whole, found


def _moments(head: Head, targets: Tensor | None, share: slice) -> tuple[RowMoments, Tensor]:
    """Moments over a share of the words, and the target's logit where it is among them, else 0."""
    h_room, w_room, z_room = (head.room() for _ in range(3))
    rows, found = [], []
    for tokens in head.token_blocks():
        h = h_room.holding(head.hidden[tokens])
        whole, chosen = None, h.new_zeros(len(h))
        for words in head.word_blocks(share):
            z = head.logits(h, w_room.holding(head.weight[words]), words, z_room)
            part = kernels.row_moments(z, head.scale, None)
            at = words.start - share.start
            whole = part if whole is None else kernels.merge(whole, part, head.scale, at)
            if targets is not None:
                here, at_word = _inside(targets[tokens], words)
                chosen = torch.where(here, z.gather(-1, at_word[:, None])[:, 0], chosen)
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
    hidden, weight, bias = head.hidden, head.weight, head.bias
    need_hidden, need_weight, need_bias = needed
    grad_weight = torch.empty_like(weight) if need_weight else None
    grad_bias = torch.empty_like(bias) if bias is not None and need_bias else None

    def share(words: slice) -> Tensor | None:
        grad_hidden = hidden.new_empty(hidden.shape, dtype=head.dtype) if need_hidden else None
        into = grad_hidden, grad_weight, grad_bias
        _gradients(head, moments, coefficients, index, entries, words, into)
        return grad_hidden

    shares = [part for _, part in _shared(head, lambda words: (share(words),))]
    total = shares[0]
    for part in shares[1:]:
        if total is not None and part is not None:
            total += part
    return None if total is None else total.to(hidden.dtype), grad_weight, grad_bias


def _gradients(
    head: Head,
    moments: RowMoments,
    coefficients: Tensor,
    index: Tensor,
    entries: Tensor,
    share: slice,
    into: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> None:
    """Writes what a share of the words gives to hidden, and the gradients of its weight and bias."""
    hidden, weight, dtype = head.hidden, head.weight, head.dtype
    grad_hidden, grad_weight, grad_bias = into
    h_room, w_room, z_room, g_room, gw_room = (head.room() for _ in range(5))
    # Vocabulary outside, so that a block of the weight's gradient is summed in full precision and
    # then stored once in the weight's own dtype.
    for words in head.word_blocks(share):
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
                grad_hidden[tokens].addmm_(g, w, beta=int(words.start > share.start))
            if gw is not None:
                gw.addmm_(g.T, h, beta=int(tokens.start > 0))
            if grad_bias is not None:
                gb += g.sum(0)
        if grad_weight is not None and gw is not None and gw.dtype != weight.dtype:
            grad_weight[words] = gw
        if grad_bias is not None:
            grad_bias[words] = gb


def _shared(head: Head, work: Callable[[slice], tuple]) -> Iterator[tuple]:
    """(words, *what the work gives for them), with as many shares of the words as threads."""
    elements = len(head.hidden) * len(head.weight)
    threads = min(torch.get_num_threads(), len(head.weight), 2 * elements // _BLOCK_ELEMENTS)
    if threads < 2 or head.hidden.device.type != "cpu":
        whole = slice(0, len(head.weight))
        yield whole, *work(whole)
        return
    from szilard.kernels.compiled import single_threaded

    bounds = [len(head.weight) * i // threads for i in range(threads + 1)]
    shares = [slice(begin, end) for begin, end in pairwise(bounds)]
    for words, result in zip(shares, single_threaded(work, shares), strict=True):
        yield words, *result


def _blocks(stop: int, step: int, start: int = 0) -> Iterator[slice]:
    """Slices that cover an axis; one empty slice for an empty axis."""
    step = max(1, step)
    return (slice(i, min(i + step, stop)) for i in range(start, max(start + 1, stop), step))


def _inside(index: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Which token ids lie in the block of vocabulary, and their place there (0 for the others)."""
    here = (index >= words.start) & (index < words.stop)
    return here, torch.where(here, index - words.start, 0)
