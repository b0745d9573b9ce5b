"""Entropy of attention: how many keys each query of each head spreads over."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer, Real
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from szilard.kernels import attention as kernels
from szilard.kernels.attention import Scores
from szilard.measures._checks import check_floating, check_mask, log_base


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
    if mask is not None:
        check_mask(mask, weights.shape, broadcast=True)
    entropy, visible = _MapEntropy.apply(weights, mask)
    return _normalized(entropy, visible) if normalize else entropy * unit


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

    Blocks of queries of one head are scored against the keys they see, reduced and forgotten; the
    backward pass scores them again. Scores run in float32 or better.

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
    q, k = query.reshape(-1, heads, queries, width), key.reshape(-1, key_heads, keys, width)
    lengths = _visible_keys(len(q), queries, keys, causal, key_padding_mask)
    entropy = _ScoreEntropy.apply(q, k, scale, lengths, key_padding_mask)
    if bool(entropy.detach().isnan().any()):
        raise ValueError("query and key give NaN or infinite scores where a query sees a key")
    if normalize:
        entropy = _normalized(entropy, lengths[:, None].to(entropy.device))
    else:
        entropy = entropy * unit
    return entropy.view(*batch, heads, queries)


def attention_entropy_floor(
    norm: Real[Tensor, "*shape"],
    keys: Integer[Tensor, "*shape"] | int,
    *,
    base: float | None = None,
) -> Float[Tensor, "*shape"]:
    """The least entropy that a softmax over some keys can have, given the norm of its logits.

    With s the norm, n keys and b = exp(-s sqrt(n / (n - 1))),

        H >= log(1 + (n - 1) b) + s sqrt(n (n - 1)) b / (1 + (n - 1) b),

    which one key at s sqrt((n - 1) / n) and the others at -s / sqrt(n (n - 1)) attain. It falls as
    n s exp(-s): a bound on the logits keeps attention from collapsing.

    Args:
        norm: Euclidean norm of the logits less their mean, scale included, 0 or more. A larger one
            gives a bound that holds too, among them the paper's product of spectral norms.
        keys: visible keys, at least 1.
        base: base of the logarithms; None for nats, 2 for bits.

    Returns:
        The bound, float32 or better; 0 for one key.

    Raises:
        ValueError: a norm that is negative or NaN, a query without a key, a base out of range.

    Examples:
        >>> import torch
        >>> attention_entropy_floor(torch.tensor([0.0, 1.0, 8.0]), 16, base=2.0)
        tensor([4.0000, 3.9195, 0.0515])

    Source:
        Zhai et al. (2023), "Stabilizing Transformer Training by Preventing Attention Entropy
        Collapse", theorem 3.1.
    """
    unit = log_base(base)
    s = norm.to(torch.promote_types(norm.dtype, torch.float32))
    n = torch.as_tensor(keys, device=s.device).to(s.dtype)
    if not bool((s >= 0).all()):
        raise ValueError(f"norm must be 0 or more, but its minimum is {s.min().item()}")
    if not bool((n >= 1).all()):
        raise ValueError(f"keys must be at least 1, but their minimum is {n.min().item():g}")
    others = (n - 1).clamp(min=1)
    gap = s * (n / others).sqrt()
    rest = others * (-gap).exp()
    # gap exp(-gap) is 0 at infinity, where the product of its factors is not a number.
    spread = torch.where(gap.isinf(), 0, gap * rest) / (1 + rest)
    return torch.where(n > 1, rest.log1p() + spread, 0) * unit


class _MapEntropy(Function):
    """(weights) -> entropy, number of visible keys; dH / dp = -log p - 1."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        rows = kernels.map_rows(weights, mask)
        # Weights rounded to a narrow dtype sum to 1 within the rounding of each of them.
        tolerance = max(1e-4, torch.finfo(weights.dtype).eps)
        _check_rows(rows.total, rows.lowest, rows.visible > 0, tolerance)
        ctx.save_for_backward(weights, mask)
        ctx.mark_non_differentiable(rows.visible)
        return rows.entropy.to(torch.promote_types(weights.dtype, torch.float32)), rows.visible

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        weights, mask = ctx.saved_tensors
        return kernels.map_gradient(weights, mask, grad), None


class _ScoreEntropy(Function):
    """(query, key) -> entropy of softmax(scale query key^T) over the keys that each query sees."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        scale: float,
        lengths: Tensor,
        padding: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(query, key, lengths, padding)
        ctx.scale = scale
        return kernels.score_entropies(
            Scores(query.detach(), key.detach(), scale, lengths, padding)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, lengths, padding = ctx.saved_tensors
        scores = Scores(query.detach(), key.detach(), ctx.scale, lengths, padding)
        return *kernels.score_entropy_gradients(scores, grad), None, None, None


def _visible_keys(
    batch: int, queries: int, keys: int, causal: bool, padding: Tensor | None
) -> Tensor:
    """How many keys each query sees, (batch, queries) on the CPU."""
    last = torch.full((queries,), keys)
    if causal:
        last = (torch.arange(queries) + keys - queries + 1).clamp(min=0)
    if padding is None:
        return last.expand(batch, -1)
    return torch.nn.functional.pad(padding.cpu().cumsum(-1), (1, 0))[:, last]


def _normalized(entropy: Tensor, keys: Tensor) -> Tensor:
    return torch.where(keys > 1, entropy / keys.clamp(min=2).to(entropy.dtype).log(), 0)


def _check_rows(total: Tensor, lowest: Tensor, counts: Tensor, tolerance: float) -> None:
    if bool((total.isnan() | (lowest < 0)).any()):
        worst = torch.nan if total.isnan().any() else lowest.min().item()
        raise ValueError(f"weights must be non-negative and not NaN, but their minimum is {worst}")
    off = torch.where(counts, total - 1, 0).abs()
    if bool((off > tolerance).any()):
        raise ValueError(f"weights must sum to 1, but a sum is off by {off.max().item():.3g}")
