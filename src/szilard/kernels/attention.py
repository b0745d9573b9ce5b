"""Entropy of attention rows: of maps in one read of them, of query and key without a map at all.

Scores are made in blocks: some queries of one head times the keys they see, in buffers a thread
keeps. On the CPU in float32 everything in between is compiled, and threads of our own share the
blocks, or for the gradients the key heads. Small heads, and all off the CPU, are scored many at a
time by one batched product.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from szilard.kernels.tokens import accumulator, row_moments, softmax_polynomial

_BLOCK_ELEMENTS = (1 << 19) - 1
"""Scores a thread holds at once (2 MiB in float32), weights in a temporary of the torch path. As many
as `row_moments` still goes through alone: its threads would get in the way of those here."""
_LEAST_ROWS = 16
"""Queries below which a block would spend its time on reading the keys."""
_SERIAL = 1 << 17
"""Scores below which another thread costs more than it saves."""
_SMALL_HEAD = 1 << 16
"""Scores of a head below which heads are better scored together than one by one."""
_DEVICE_ELEMENTS = 1 << 24
"""Scores held at once off the CPU (64 MiB in float32)."""
_TILE = 16
"""What rows and columns of a product are multiples of."""


class MapRows(NamedTuple):
    """What the weights of each row of a map come to, (*batch, queries) in the accumulation dtype."""

    entropy: Tensor
    total: Tensor
    lowest: Tensor
    visible: Tensor


def map_rows(weights: Tensor, mask: Tensor | None) -> MapRows:
    """-sum p log p, sum, minimum and number of visible keys of each row.

    Args:
        weights: floating, (*batch, queries, keys), any layout.
        mask: boolean, broadcasts to weights; where it is False stands a 0, whatever the weight is.

    Returns:
        A NaN among the weights is one in the total; the other fields of its row say nothing.
    """
    shape = weights.shape[:-1]
    if _compiles(weights):
        from szilard.kernels import attention_cpu

        return MapRows(*attention_cpu.map_rows(weights, mask).view(4, *shape))
    acc = accumulator(weights.device)
    rows = MapRows(*torch.zeros(4, *shape, dtype=acc, device=weights.device))
    mask = None if mask is None else mask.expand(weights.shape)
    for at in _pieces(weights.shape):
        p = _wide(weights[at])
        if mask is not None:
            p = torch.where(mask[at], p, 0)
        rows.entropy[at] = torch.special.entr(p).sum(-1, dtype=acc)
        rows.total[at], rows.lowest[at] = p.sum(-1, dtype=acc), p.amin(-1).to(acc)
        rows.visible[at] = weights.shape[-1] if mask is None else mask[at].sum(-1)
    return rows


def map_gradient(weights: Tensor, mask: Tensor | None, grad: Tensor) -> Tensor:
    """The rows' grad times d entropy / d p = -log p - 1, 0 where the mask is False."""
    out = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
    mask = None if mask is None else mask.expand(weights.shape)
    for at in _pieces(weights.shape):
        slope = _wide(weights[at]).log().add_(1).mul_(-grad[at][..., None])
        out[at] = slope if mask is None else torch.where(mask[at], slope, 0)
    return out


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _pieces(shape: Sequence[int]) -> Iterator[tuple[int | slice, ...]]:
    """Indices of blocks of rows of one map, which no layout makes a copy of."""
    step = max(1, _BLOCK_ELEMENTS // shape[-1])
    for index in product(*map(range, shape[:-2])):
        for start in range(0, shape[-2], step):
            yield (*index, slice(start, start + step))


class Scores(NamedTuple):
    """scale * query key^T, of which each query sees the first `lengths` keys that count.

    Attributes:
        query: (batch, heads, queries, width).
        key: (batch, key heads, keys, width).
        scale: factor on the products.
        lengths: (batch, queries) on the CPU, never falling along the queries.
        padding: boolean, (batch, keys); True counts.
    """

    query: Tensor
    key: Tensor
    scale: float
    lengths: Tensor
    padding: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        both = torch.promote_types(self.query.dtype, self.key.dtype)
        return torch.promote_types(both, torch.float32)

    def key_head(self, head: int) -> int:
        return head * self.key.shape[1] // self.query.shape[1]


class Block(NamedTuple):
    """Queries start..stop of one head, of which the first sees `least` keys, the last `keys`."""

    batch: int
    head: int
    start: int
    stop: int
    least: int
    keys: int


def score_entropies(scores: Scores) -> Tensor:
    """Entropy of softmax(scores), (batch, heads, queries).

    Queries that see no key give 0, those with a NaN or infinite score NaN.
    """
    out = scores.query.new_zeros(scores.query.shape[:-1], dtype=scores.dtype)
    finite = _surely_finite(scores)
    if _together(scores):
        for group in _groups(scores):
            _, _, z, visible = _scored_together(scores, group)
            moments = row_moments(z.flatten(0, -2), 1.0, None)
            entropy = (moments.total.log() - moments.mean).view(z.shape[:-1])
            if not finite:
                entropy[((z.isfinite() | ~visible).sum(-1)) != z.shape[-1]] = torch.nan
            entropy = entropy.masked_fill(~visible.any(-1), 0.0)
            out[group] = entropy.flatten(1, 2).to(out.dtype)
        return out

    def work(blocks: Sequence[Block]) -> None:
        buffers = _Buffers(scores)
        for block in blocks:
            z = buffers.scored(block)
            moments = row_moments(z, 1.0, None)
            entropy = moments.total.log() - moments.mean
            if not finite:
                entropy[z.isfinite().sum(-1) != buffers.lengths(block)] = torch.nan
            out[block.batch, block.head, block.start : block.stop] = entropy

    _share(work, list(_blocks(scores)), scores)
    return out


def score_entropy_gradients(scores: Scores, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of score_entropies to query and key: dH / dz = -p (log p + H), z scored again."""
    grad_query, grad_key = torch.zeros_like(scores.query), torch.zeros_like(scores.key)
    if _together(scores):
        return _gradients_together(scores, grad, grad_query)
    heads: dict[tuple[int, int], list[Block]] = {}
    for block in _blocks(scores):
        heads.setdefault((block.batch, scores.key_head(block.head)), []).append(block)

    def work(key_heads: Sequence[list[Block]]) -> None:
        buffers = _Buffers(scores, gradients=True)
        for blocks in key_heads:
            for block in blocks:
                z = buffers.scored(block)
                moments = row_moments(z, 1.0, None)
                slope = -grad[block.batch, block.head, block.start : block.stop]
                linear = torch.zeros(3, len(slope)).to(moments.total)
                linear[1] = slope
                slopes = softmax_polynomial(z, 1.0, moments, linear, None, buffers.slopes(block))
                buffers.multiply_back(block, slopes, grad_query)
            buffers.store_key_gradient(blocks[-1], grad_key)

    _share(work, list(heads.values()), scores)
    return grad_query, grad_key


def _together(scores: Scores) -> bool:
    """Whether heads are scored many at a time: small ones, and all where nothing is compiled."""
    small = scores.query.shape[2] * scores.key.shape[2] <= _SMALL_HEAD
    return small or not _compiles(scores.query, scores.key)


def _groups(scores: Scores) -> Iterator[tuple[slice, slice, slice]]:
    """Batch, heads and queries of what is scored at a time; heads are always whole."""
    batch, heads, queries = scores.query.shape[:3]
    row = max(1, heads * scores.key.shape[2])
    room = _BLOCK_ELEMENTS if scores.query.device.type == "cpu" else _DEVICE_ELEMENTS
    step = max(1, min(queries, room // row))
    many = max(1, room // (row * step))
    for first in range(0, batch, many):
        for start in range(0, queries, step):
            yield slice(first, first + many), slice(None), slice(start, start + step)


class _Together(NamedTuple):
    """Operands and scores of a group, (batch, key heads, heads a key head, queries, ...).

    Keys and queries that nobody looks at are 0, whatever they were. Scores that are not visible are
    -inf, but 0 where a query sees nothing.
    """

    query: Tensor
    key: Tensor
    z: Tensor
    visible: Tensor


def _scored_together(scores: Scores, group: tuple[slice, slice, slice]) -> _Together:
    device, keys = scores.query.device, scores.key.shape[2]
    lengths = scores.lengths[group[0], group[2]].to(device)[..., None]
    if scores.padding is None:
        visible = torch.arange(1, keys + 1, device=device) <= lengths
    else:
        counts = scores.padding[group[0]][:, None]
        visible = counts & (counts.cumsum(-1) <= lengths)
    blind = lengths == 0
    key = scores.key[group[0]].to(scores.dtype)
    key = key.masked_fill(~visible.any(1)[:, None, :, None], 0.0)[:, :, None]
    query = scores.query[group].to(scores.dtype).masked_fill(blind[:, None], 0.0)
    query = query.unflatten(1, (key.shape[1], -1))
    z = scores.scale * query @ key.mT
    visible = visible[:, None, None].expand_as(z)
    z.masked_fill_(~visible, -torch.inf).masked_fill_(blind[:, None, None], 0.0)
    return _Together(query, key, z, visible)


def _gradients_together(scores: Scores, grad: Tensor, grad_query: Tensor) -> tuple[Tensor, Tensor]:
    grad_key = torch.zeros_like(scores.key, dtype=scores.dtype)
    for group in _groups(scores):
        query, key, z, _ = _scored_together(scores, group)
        rows = z.flatten(0, -2)
        moments = row_moments(rows, 1.0, None)
        linear = torch.zeros(3, len(rows), device=rows.device).to(moments.total)
        linear[1] = -grad[group].flatten()
        slopes = torch.empty_like(rows)
        slopes = softmax_polynomial(rows, 1.0, moments, linear, None, slopes).view(z.shape)
        grad_query[group] = (scores.scale * slopes @ key).flatten(1, 2).to(grad_query.dtype)
        grad_key[group[0]] += scores.scale * (slopes.mT @ query).sum(2)
    return grad_query, grad_key.to(scores.key.dtype)


def _blocks(scores: Scores) -> Iterator[Block]:
    """All blocks but for the queries that see no key."""
    heads, queries, keys = *scores.query.shape[1:3], scores.key.shape[2]
    step = max(_LEAST_ROWS, _BLOCK_ELEMENTS // keys)
    for batch, lengths in enumerate(scores.lengths.tolist()):
        sighted = bisect_left(lengths, 1)
        for head in range(heads):
            for start in range(sighted, queries, step):
                stop = min(start + step, queries)
                yield Block(batch, head, start, stop, lengths[start], lengths[stop - 1])


def _surely_finite(scores: Scores) -> bool:
    """Whether no product can overflow or meet a NaN, by the largest entries alone."""
    bound = abs(scores.scale) * scores.query.shape[-1]
    for x in (scores.query, scores.key):
        if x.numel() == 0:
            return True
        low, high = x.aminmax()
        bound *= max(-float(low), float(high), 1.0)
        if low.isnan():
            return False
    return bound < torch.finfo(scores.dtype).max


def _share(work: Callable[[Sequence], None], items: list, scores: Scores) -> None:
    """Deals the items out to threads, one item in turn to each."""
    elements = scores.query.shape[:-1].numel() * scores.key.shape[-2]
    threads = max(1, min(torch.get_num_threads(), len(items), elements // _SERIAL))
    if threads == 1:
        work(items)
        return
    with ThreadPoolExecutor(threads) as pool:
        for job in [pool.submit(work, items[i::threads]) for i in range(threads)]:
            job.result()


class _Buffers:
    """What one thread multiplies in; every extent is rounded up to whole tiles of the product.

    Keys of a head stand in `key_t` in columns, in order and without those that don't count. Scores
    beyond what a query sees are -inf.
    """

    def __init__(self, scores: Scores, gradients: bool = False) -> None:
        self._scores, self._gradients, self._head = scores, gradients, (-1, -1)
        keys, width = _whole(scores.key.shape[2]), _whole(scores.key.shape[3])
        rows = _whole(max(_LEAST_ROWS, _BLOCK_ELEMENTS // scores.key.shape[2]))
        rows = min(rows, _whole(scores.query.shape[2]))

        def buffer(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=scores.dtype)

        self._query, self._key_t, self._z = (
            buffer(rows, width),
            buffer(width, keys),
            buffer(rows * keys),
        )
        if gradients:
            self._key, self._grad_key_t = buffer(keys, width), buffer(width, keys)
            self._query_t, self._grad_query = buffer(width, rows), buffer(rows, width)
            self._slopes = buffer(rows * keys)

    def lengths(self, block: Block) -> Tensor:
        return self._scores.lengths[block.batch, block.start : block.stop]

    def scored(self, block: Block) -> Tensor:
        """Scores of the block's queries, (queries, keys rounded up)."""
        query, scale = self._scores.query, self._scores.scale
        self._load_key(block)
        rows = slice(block.start, block.stop)
        _copy(query[block.batch, block.head, rows], self._query, scale)
        if self._gradients:
            _copy(query[block.batch, block.head, rows], self._query_t.T, scale)
        z = self._view(self._z, block)
        width, (tall, wide) = query.shape[-1], z.shape
        _multiply(self._query[:tall, :width], self._key_t[:width, :wide], z)
        z = z[: block.stop - block.start]
        if block.least < z.shape[1]:
            _fill(z, self._scores.lengths[block.batch, rows], -torch.inf)
        return z

    def slopes(self, block: Block) -> Tensor:
        """Where gradients to the block's scores go."""
        return self._view(self._slopes, block)[: block.stop - block.start]

    def multiply_back(self, block: Block, slopes: Tensor, grad_query: Tensor) -> None:
        """Gradients to the block's queries, and to its keys on top of what is there."""
        rows, wide = slopes.shape
        tall = self._view(self._slopes, block)
        out = self._grad_query[: len(tall)]
        _multiply(tall, self._key[:wide], out)
        target = grad_query[block.batch, block.head, block.start : block.stop]
        _copy(out[:rows, : target.shape[1]], target, self._scores.scale)
        _multiply(self._query_t[:, :rows], slopes, self._grad_key_t[:, :wide], add=True)

    def store_key_gradient(self, block: Block, grad_key: Tensor) -> None:
        """Writes the gradient to the keys of the block's head and starts a new one."""
        target = grad_key[block.batch, self._scores.key_head(block.head)]
        counts, width = self._counts(block), target.shape[1]
        keys = len(target) if counts is None else len(counts)
        _copy(self._grad_key_t[:width, :keys].T, target, 1.0, into=counts)
        _fill(self._grad_key_t, torch.zeros(len(self._grad_key_t), dtype=torch.long), 0)

    def _load_key(self, block: Block) -> None:
        head = (block.batch, self._scores.key_head(block.head))
        if head == self._head:
            return
        self._head = head
        key, counts = self._scores.key[head], self._counts(block)
        _copy(key, self._key_t.T, 1.0, of=counts)
        if self._gradients:
            _copy(key, self._key, 1.0, of=counts)

    def _counts(self, block: Block) -> Tensor | None:
        padding = self._scores.padding
        return None if padding is None else padding[block.batch].nonzero()[:, 0]

    def _view(self, flat: Tensor, block: Block) -> Tensor:
        tall, wide = _whole(block.stop - block.start), _whole(block.keys)
        return flat[: tall * wide].view(tall, wide)


def _whole(extent: int) -> int:
    return -(-extent // _TILE) * _TILE


def _compiles(*tensors: Tensor) -> bool:
    return all(
        x.device.type == "cpu" and x.dtype in {torch.float32, torch.bfloat16} for x in tensors
    )


def _copy(
    x: Tensor,
    out: Tensor,
    factor: float,
    of: Tensor | None = None,
    into: Tensor | None = None,
) -> None:
    """Writes factor * x, or its rows `of`, to the first rows of out, or its rows `into`."""
    from szilard.kernels import attention_cpu

    attention_cpu.copy(x, out, factor, of, into)


def _multiply(a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> None:
    """Writes a @ b into out, or adds it; rows and columns of out fill whole tiles."""
    from szilard.kernels import attention_cpu

    attention_cpu.multiply(a.numpy(), b.numpy(), out.numpy(), add)


def _fill(x: Tensor, lengths: Tensor, value: float) -> None:
    """Sets what lies beyond each row's length to the value."""
    from szilard.kernels import attention_cpu

    attention_cpu.fill(x.numpy(), lengths.numpy(), value)
