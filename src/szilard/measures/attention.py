"""Entropy of attention: how many keys each query of each head spreads over."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from szilard.measures._checks import check_floating, check_mask, check_probabilities, log_base

_BLOCK_ELEMENTS = 1 << 21
"""Scores that `attention_entropy_from_qk` holds at once (8 MiB in float32)."""


def attention_entropy(
    weights: Float[Tensor, "*batch heads queries keys"],
    mask: Bool[Tensor, "..."] | None = None,
    *,
    normalize: bool = False,
    base: float | None = None,
) -> Float[Tensor, "*batch heads queries"]:
    """Entropy of each query's attention weights, head by head.

    Args:
        weights: attention after the softmax; over the visible keys a row sums to 1.
        mask: True where a query may see a key; what stands elsewhere is never read. Broadcasts to
            weights. A query that sees no key gives 0.
        normalize: divide by the logarithm of the number of visible keys, to lie in 0..1; a query
            that sees one key gives 0.
        base: base of the logarithms; None for nats, 2 for bits. No effect with normalize.

    Returns:
        Entropies, float32 or better.

    Raises:
        TypeError: weights are not floating, mask not boolean.
        ValueError: visible weights that are negative, NaN or do not sum to 1; shapes that do not
            fit; a base out of range.

    Examples:
        >>> import torch
        >>> weights = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
        >>> attention_entropy(weights, base=2.0)
        tensor([[0., 1.]])

    Source:
        Zhai et al. (2023), "Stabilizing Transformer Training by Preventing Attention Entropy
        Collapse", section 3.
    """
    unit = log_base(base)
    check_floating(weights, "weights")
    if weights.ndim < 3:
        raise ValueError(
            f"weights must have axes (..., heads, queries, keys), but shape {tuple(weights.shape)}"
        )
    wide = weights.to(torch.promote_types(weights.dtype, torch.float32))
    visible = None
    if mask is not None:
        check_mask(mask, weights.shape, broadcast=True)
        wide = torch.where(mask, wide, 0)
        visible = mask.expand(weights.shape).sum(-1)
    _check_rows(wide.detach(), visible, weights.dtype)
    entropy = torch.special.entr(wide).sum(-1)
    if not normalize:
        return entropy * unit
    keys = torch.full_like(entropy, weights.shape[-1]) if visible is None else visible
    return _normalized(entropy, keys)


def attention_entropy_from_qk(
    query: Float[Tensor, "*batch heads queries width"],
    key: Float[Tensor, "*batch key_heads keys width"],
    *,
    causal: bool = False,
    key_padding_mask: Bool[Tensor, "*batch keys"] | None = None,
    scale: float | None = None,
    normalize: bool = False,
    base: float | None = None,
) -> Float[Tensor, "*batch heads queries"]:
    """Entropy of softmax(scale * query key^T), head by head, without all heads' maps in memory.

    Blocks of queries of one head are scored, reduced and forgotten; with gradients, the backward
    pass scores them again. Scores run in float32 or better.

    Args:
        query: queries after any position encoding.
        key: keys after any position encoding. Fewer heads than the queries' (grouped-query
            attention) must divide them; consecutive query heads share a key head.
        causal: query i sees keys 0 .. i + keys - queries: the last query sees all of them.
        key_padding_mask: True where a key may be seen. A query that sees no key gives 0.
        scale: factor on the scores; None for 1 / sqrt(width).
        normalize: divide by the logarithm of the number of visible keys, to lie in 0..1; a query
            that sees one key gives 0.
        base: base of the logarithms; None for nats, 2 for bits. No effect with normalize.

    Returns:
        Entropies, float32 or better.

    Raises:
        TypeError: query or key are not floating, the mask not boolean.
        ValueError: NaN or infinite scores between a query and a key it sees; shapes that do not
            fit; a scale or base out of range.

    Examples:
        >>> import torch
        >>> query, key = torch.zeros(1, 3, 4), torch.randn(1, 3, 4)
        >>> attention_entropy_from_qk(query, key, causal=True, base=2.0)
        tensor([[0.0000, 1.0000, 1.5850]])

    Source:
        Zhai et al. (2023), "Stabilizing Transformer Training by Preventing Attention Entropy
        Collapse", section 3.
    """
    unit = log_base(base)
    check_floating(query, "query")
    check_floating(key, "key")
    width, queries, keys = query.shape[-1], query.shape[-2], key.shape[-2]
    batch, heads, key_heads = query.shape[:-3], query.shape[-3], key.shape[-3]
    if key.shape[:-3] != batch or key.shape[-1] != width or heads % key_heads or keys == 0:
        raise ValueError(
            "key must have shape (*batch, heads that divide the query's, at least one key, width) "
            f"for query {tuple(query.shape)}, but has {tuple(key.shape)}"
        )
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale must be finite, but is {scale!r}")
    scale = 1 / math.sqrt(width) if scale is None else scale
    if key_padding_mask is not None:
        check_mask(key_padding_mask, (*batch, keys), "key_padding_mask")
        key_padding_mask = key_padding_mask.reshape(-1, keys)
    dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), torch.float32)
    q, k = query.reshape(-1, heads, queries, width), key.reshape(-1, key_heads, keys, width)
    last = torch.arange(queries, device=query.device) + keys - queries
    step = max(1, _BLOCK_ELEMENTS // keys)

    def block(
        q: Tensor, k: Tensor, padding: Tensor | None, last: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        scores = (q.to(dtype) * scale) @ k.to(dtype).T
        visible = torch.ones(1, keys, dtype=torch.bool, device=scores.device)
        if padding is not None:
            visible = visible & padding
        if last is not None:
            visible = visible & (torch.arange(keys, device=scores.device) <= last[:, None])
        return _entropy_of_scores(scores, visible)

    entropies, counts = [], []
    for b in range(len(q)):
        padding = None if key_padding_mask is None else key_padding_mask[b]
        for h in range(heads):
            for start in range(0, queries, step):
                rows = slice(start, start + step)
                entropy, count = checkpoint(
                    block,
                    q[b, h, rows],
                    k[b, h * key_heads // heads],
                    padding,
                    last[rows] if causal else None,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
                entropies.append(entropy)
                counts.append(count)
    shape = (*batch, heads, queries)
    if not entropies:
        return query.new_zeros(shape, dtype=dtype)
    total = torch.cat(entropies).view(shape)
    if bool(total.detach().isnan().any()):
        raise ValueError("query and key give NaN or infinite scores where a query sees a key")
    return _normalized(total, torch.cat(counts).view(shape)) if normalize else total * unit


def _entropy_of_scores(scores: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    count = visible.sum(-1).expand(scores.shape[:-1])
    # The lowest finite number rather than -inf: a row that sees nothing stays free of NaN.
    log_p = torch.where(visible, scores, torch.finfo(scores.dtype).min).log_softmax(-1)
    return 0 - torch.where(visible, log_p.exp() * log_p, 0).sum(-1), count


def _normalized(entropy: Tensor, keys: Tensor) -> Tensor:
    return torch.where(keys > 1, entropy / keys.clamp(min=2).to(entropy.dtype).log(), 0)


def _check_rows(weights: Tensor, visible: Tensor | None, dtype: torch.dtype) -> None:
    rows = weights if visible is None else weights[visible > 0]
    if rows.numel():
        # Weights rounded to a narrow dtype sum to 1 within the rounding of each of them.
        check_probabilities(rows, "weights", atol=max(1e-4, torch.finfo(dtype).eps))
