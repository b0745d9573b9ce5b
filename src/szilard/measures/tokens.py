"""Per-token statistics of a next-token distribution, from logits or from the layer before them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from szilard.kernels import linear
from szilard.kernels import tokens as kernels
from szilard.kernels.tokens import RowMoments
from szilard.measures._checks import check_floating, check_mask, log_base


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """What the next-token distribution p says at each position; positions masked out hold 0.

    Attributes:
        logprob: log p(target); None without targets.
        entropy: H(p) = -sum p log p.
        varentropy: variance of log p under p, in squared units of the entropy.
        max_prob: probability of the likeliest token.
        top_k_mass: probability of the k likeliest tokens together; None without top_k.
        top_k_entropy: entropy of p restricted to the k likeliest tokens and renormalised. The
            entropy sum without renormalising is `mass * (top_k_entropy - log mass)`. None without
            top_k.
    """

    logprob: Float[Tensor, "*batch"] | None
    entropy: Float[Tensor, "*batch"]
    varentropy: Float[Tensor, "*batch"]
    max_prob: Float[Tensor, "*batch"]
    top_k_mass: Float[Tensor, "*batch"] | None = None
    top_k_entropy: Float[Tensor, "*batch"] | None = None


def token_statistics(
    logits: Float[Tensor, "*batch vocab"],
    targets: Int[Tensor, "*batch"] | None = None,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    mask: Bool[Tensor, "*batch"] | None = None,
    base: float | None = None,
) -> TokenStatistics:
    """Surprisal, entropy, varentropy and peak of softmax(logits / temperature), position by position.

    Sums over the vocabulary run in float64 where the device has it, results are float32 (float64 for
    float64 logits). Every field has its gradient; the backward pass keeps the logits themselves and a
    few numbers a row, nothing else of the logits' size.

    Args:
        logits: unnormalised log-probabilities; `-inf` is a token of probability 0.
        targets: token ids whose log-probability is asked for.
        temperature: divides the logits, > 0.
        top_k: how many of the likeliest tokens `top_k_mass` and `top_k_entropy` are about.
        mask: True where a position counts. The others give 0 in every field and in the gradient,
            whatever their logits (NaN) and targets (-100) are.
        base: base of the logarithms; None for nats, 2 for bits.

    Returns:
        One number a position in each field.

    Raises:
        TypeError: logits are not floating, targets not integer, mask not boolean.
        ValueError: a counted row of logits with NaN, +inf or nothing but -inf; a counted target
            outside the vocabulary; a temperature, top_k or base out of range; shapes that differ.

    Examples:
        >>> import torch
        >>> logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, -torch.inf, -torch.inf, -torch.inf]])
        >>> stats = token_statistics(logits, torch.tensor([1, 0]), base=2.0)
        >>> stats.entropy.tolist(), stats.logprob.tolist()
        ([2.0, 0.0], [-2.0, 0.0])

    Source:
        Shannon (1948), section 6; varentropy: Kontoyiannis & Verdu (2014), "Optimal Lossless Data
        Compression: Non-Asymptotics and Asymptotics", definition (16).
    """
    unit = log_base(base)
    check_floating(logits, "logits")
    shape, vocab = logits.shape[:-1], logits.shape[-1]
    scale = _inverse_temperature(temperature)
    if top_k is not None and not 1 <= top_k <= vocab:
        raise ValueError(f"top_k must lie in 1..{vocab} (the vocabulary), but is {top_k}")
    mask = _flat_mask(mask, shape)
    targets = _flat_targets(targets, shape, vocab, mask)
    top = None if top_k is None else kernels.top_indices(logits.detach(), top_k, mask)
    logprob, top_logprobs, entropy, varentropy = _SoftmaxStatistics.apply(
        logits, targets, top, scale, mask
    )
    mass = top_entropy = None
    if top_k is not None:
        log_mass = top_logprobs.logsumexp(-1)
        mass = log_mass.exp().clamp(max=1)
        top_entropy = _entropy_of_log_probabilities(top_logprobs - log_mass[:, None]) * unit
    return _statistics(
        logprob, top_logprobs, entropy, varentropy, mass, top_entropy, unit, mask, shape
    )


def linear_token_statistics(
    hidden: Float[Tensor, "*batch width"],
    weight: Float[Tensor, "vocab width"],
    targets: Int[Tensor, "*batch"] | None = None,
    bias: Float[Tensor, "vocab"] | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    mask: Bool[Tensor, "*batch"] | None = None,
    *,
    base: float | None = None,
) -> TokenStatistics:
    """`token_statistics` of the logits hidden @ weight.T + bias, which are never held as a whole.

    Blocks of tokens by blocks of vocabulary are multiplied, reduced and forgotten; the backward pass
    multiplies them again. Memory beyond the gradients does not grow with the vocabulary. Products
    run in float32 (float64 for float64 inputs), also for bfloat16 and float16.

    Args:
        hidden: what the language-model head reads.
        weight: the head's weight, a row a token of the vocabulary.
        targets: token ids whose log-probability is asked for.
        bias: the head's bias.
        softcap: c > 0 squashes the logits z to c tanh(z / c) before the temperature (Gemma 2).
        temperature: divides the logits, > 0.
        mask: True where a position counts; the others give 0 in every field and in the gradients,
            whatever they hold.
        base: base of the logarithms; None for nats, 2 for bits.

    Returns:
        One number a position in logprob, entropy, varentropy and max_prob, all with gradients to
        hidden, weight and bias.

    Raises:
        TypeError: an argument's dtype is not of the kind given above.
        ValueError: a counted position with NaN, +inf or only -inf among its logits; a counted target
            outside the vocabulary; a softcap, temperature or base out of range; shapes that differ.

    Examples:
        >>> import torch
        >>> hidden, weight = torch.eye(2), torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, -100.0]])
        >>> linear_token_statistics(hidden, weight, base=2.0).entropy
        tensor([1.5850, 1.0000])

    Source:
        Online merging of the softmax's normaliser: Milakov & Gimelshein (2018), "Online normalizer
        calculation for softmax", algorithm 3; of its moments: Chan, Golub & LeVeque (1983).
    """
    unit = log_base(base)
    for name, x in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if x is not None:
            check_floating(x, name)
    vocab, width = weight.shape
    if vocab == 0:
        raise ValueError("weight must have a row for each token of the vocabulary, but has none")
    if hidden.shape[-1] != width:
        raise ValueError(
            f"hidden must end in weight's width {width}, but has {tuple(hidden.shape)}"
        )
    if bias is not None and bias.shape != (vocab,):
        raise ValueError(f"bias must have shape ({vocab},), but has shape {tuple(bias.shape)}")
    if softcap is not None and not (softcap > 0 and math.isfinite(softcap)):
        raise ValueError(f"softcap must be positive and finite, but is {softcap!r}")
    scale, shape = _inverse_temperature(temperature), hidden.shape[:-1]
    mask = _flat_mask(mask, shape)
    targets = _flat_targets(targets, shape, vocab, mask)
    rows = hidden.reshape(-1, width)
    if mask is not None:
        rows = rows[mask]
        targets = None if targets is None else targets[mask]
    logprob, top_logprobs, entropy, varentropy = _LinearSoftmaxStatistics.apply(
        rows, weight, bias, targets, softcap, scale
    )
    if mask is not None:
        logprob, top_logprobs, entropy, varentropy = (
            None if x is None else x.new_zeros(len(mask), *x.shape[1:]).index_put((mask,), x)
            for x in (logprob, top_logprobs, entropy, varentropy)
        )
    return _statistics(logprob, top_logprobs, entropy, varentropy, None, None, unit, mask, shape)


class _SoftmaxStatistics(Function):
    """(logits) -> log p(target), log p(top), H, Var[log p]; rows are flattened.

    With d_i = log p_i + H the gradients to the logits z (times scale) are
        d log p_j / d z_i = [i = j] - p_i
        d H / d z_i       = -p_i d_i
        d Var / d z_i     = p_i (d_i^2 + 2 d_i - Var).
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor | None,
        top: Tensor | None,
        scale: float,
        mask: Tensor | None,
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        moments = kernels.row_moments(logits, scale, mask)
        _check_total(moments.total, "logits")
        top = moments.argmax[:, None] if top is None else top
        index = top if targets is None else torch.cat((targets[:, None], top), -1)
        chosen = logits.gather(-1, index.view(*logits.shape[:-1], index.shape[-1])).view(
            index.shape
        )
        if mask is not None:
            chosen = torch.where(mask[:, None], chosen, 0)
        ctx.save_for_backward(
            logits, targets, top, mask, *_tensors(moments), log_p := _log_p(chosen, moments, scale)
        )
        ctx.scale = scale
        return _outputs(log_p, moments, targets is not None, _result_dtype(logits.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, targets, top, mask, *fields, log_p = ctx.saved_tensors
        moments, scale = RowMoments(*fields), ctx.scale
        g_index, coefficients = _row_coefficients(grads, targets, top, moments)
        coefficients *= scale
        grad = kernels.softmax_polynomial(logits, scale, moments, coefficients, mask)
        # The entries at the indices are written anew rather than added to: in bfloat16, g - g p
        # with p near 1 would have no correct digit.
        index = top if targets is None else torch.cat((targets[:, None], top), -1)
        entry = g_index * scale + _polynomial(log_p, moments, coefficients)
        if mask is not None:
            entry = torch.where(mask[:, None], entry, 0)
        row = torch.arange(len(index), device=index.device)[:, None]
        # Not scatter_, which copies all of a bfloat16 tensor on the CPU.
        grad.view(-1, grad.shape[-1])[row, index] = entry.to(grad.dtype)
        return grad, None, None, None, None


class _LinearSoftmaxStatistics(Function):
    """(hidden, weight, bias) -> as `_SoftmaxStatistics`, the logits made block by block, twice."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor | None,
        softcap: float | None,
        scale: float,
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        head = linear.Head(hidden, weight, bias, softcap, scale)
        moments, chosen = linear.moments(head, targets)
        _check_total(moments.total, "hidden @ weight.T + bias (the logits)")
        columns = [] if targets is None else [chosen.to(moments.maximum.dtype)]
        log_p = _log_p(torch.stack([*columns, moments.maximum], -1), moments, scale)
        ctx.save_for_backward(hidden, weight, bias, targets, *_tensors(moments), log_p)
        ctx.softcap, ctx.scale = softcap, scale
        return _outputs(log_p, moments, targets is not None, head.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, *fields, log_p = ctx.saved_tensors
        head = linear.Head(hidden, weight, bias, ctx.softcap, ctx.scale)
        moments, top = RowMoments(*fields), fields[0][:, None]
        g_index, coefficients = _row_coefficients(grads, targets, top, moments)
        coefficients *= head.scale
        # As in `_SoftmaxStatistics`: what is left of 1 - p near p = 1 needs float64.
        entries = g_index * head.scale + _polynomial(log_p, moments, coefficients)
        index = top if targets is None else torch.cat((targets[:, None], top), -1)
        needed = ctx.needs_input_grad[:3]
        return (
            *linear.gradients(head, moments, coefficients, index, entries, needed),
            None,
            None,
            None,
        )


def _row_coefficients(
    grads: tuple[Tensor | None, ...],
    targets: Tensor | None,
    top: Tensor,
    moments: RowMoments,
) -> tuple[Tensor, Tensor]:
    """Gradients to the indexed log-probabilities, and a, b, c of p (a + b d + c d^2), (3, rows).

    The top tokens are distinct, but the target may be one of them: both columns then carry the sum.
    """
    zero = torch.zeros_like(moments.mean)
    g_target, g_top, g_entropy, g_varentropy = (
        zero if g is None else g.to(zero.dtype) for g in grads
    )
    g_top = g_top if g_top.ndim == 2 else zero[:, None].expand(top.shape)
    a = -g_top.sum(-1) - g_varentropy * moments.variance
    if targets is None:
        g_index = g_top
    else:
        a = a - g_target
        g_target = g_target[:, None]
        same = top == targets[:, None]
        g_index = torch.cat(
            (g_target + (g_top * same).sum(-1, keepdim=True), g_top + g_target * same), -1
        )
    return g_index, torch.stack((a, 2 * g_varentropy - g_entropy, g_varentropy))


def _polynomial(log_p: Tensor, moments: RowMoments, coefficients: Tensor) -> Tensor:
    a, b, c = coefficients[:, :, None]
    entropy = (moments.total.log() - moments.mean)[:, None]
    # A finite stand-in for log 0: its probability is 0 and 0 * inf would be NaN.
    d = log_p.clamp(min=-1e30) + entropy
    return torch.where(log_p == -torch.inf, 0, log_p.exp() * (a + d * (b + d * c)))


def _log_p(chosen: Tensor, moments: RowMoments, scale: float) -> Tensor:
    peak, log_total = moments.maximum[:, None], moments.total.log()[:, None]
    return (chosen.to(peak.dtype) - peak) * scale - log_total


def _outputs(
    log_p: Tensor, moments: RowMoments, with_target: bool, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    entropy = (moments.total.log() - moments.mean).to(dtype)
    # The top stays wide: the entropy among the likeliest is what is left of 1 - p.
    target, top = (log_p[:, 0].to(dtype), log_p[:, 1:]) if with_target else (None, log_p)
    return target, top, entropy, moments.variance.to(dtype)


def _statistics(
    logprob: Tensor | None,
    top_logprobs: Tensor,
    entropy: Tensor,
    varentropy: Tensor,
    mass: Tensor | None,
    top_entropy: Tensor | None,
    unit: float,
    mask: Tensor | None,
    shape: torch.Size,
) -> TokenStatistics:
    def place(x: Tensor) -> Tensor:
        return (x if mask is None else torch.where(mask, x, 0)).to(entropy.dtype).view(shape)

    return TokenStatistics(
        None if logprob is None else place(logprob * unit),
        place(entropy * unit),
        place(varentropy * unit**2),
        place(top_logprobs[:, 0].exp()),
        None if mass is None else place(mass),
        None if top_entropy is None else place(top_entropy),
    )


def _entropy_of_log_probabilities(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)


def _tensors(moments: RowMoments) -> tuple[Tensor, ...]:
    return moments.argmax, moments.maximum, moments.total, moments.mean, moments.variance


def _result_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _inverse_temperature(temperature: float) -> float:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive and finite, but is {temperature!r}")
    return 1.0 / temperature


def _flat_mask(mask: Tensor | None, shape: torch.Size) -> Tensor | None:
    if mask is None:
        return None
    check_mask(mask, shape)
    return mask.reshape(-1)


def _flat_targets(
    targets: Tensor | None, shape: torch.Size, vocab: int, mask: Tensor | None
) -> Tensor | None:
    if targets is None:
        return None
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"targets must be integer token ids, but have dtype {targets.dtype}")
    if targets.shape != shape:
        raise ValueError(f"targets must have shape {tuple(shape)}, but have {tuple(targets.shape)}")
    flat = targets.reshape(-1).long()
    flat = flat if mask is None else torch.where(mask, flat, 0)
    if flat.numel() and (int(flat.min()) < 0 or int(flat.max()) >= vocab):
        raise ValueError(
            f"targets must lie in 0..{vocab - 1} where they count, "
            f"but reach from {int(flat.min())} to {int(flat.max())}"
        )
    return flat


def _check_total(total: Tensor, name: str) -> None:
    legal = total > 0
    if not bool(legal.all()):
        raise ValueError(
            f"{name} must be finite or -inf with a finite entry a row, but "
            f"{int((~legal).sum())} counted rows hold NaN, +inf or -inf alone"
        )
