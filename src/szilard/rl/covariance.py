"""Restrain the few tokens whose log-probability and advantage co-vary most (Clip-Cov, KL-Cov).

Notation of Cui et al., arXiv 2505.22617, over the N unmasked tokens of a batch:

    d_t = log pi_theta(y_t) - log pi_old(y_t),   r_t = exp(d_t)
    c_t = (A_t - mean A) (log pi_theta(y_t) - mean log pi_theta)          token covariance
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Reduction = Literal["token_mean", "sequence_mean", "sum", "none"]
_REDUCTIONS = ("token_mean", "sequence_mean", "sum", "none")


class _Tokens(NamedTuple):
    """Checked inputs, exactly 0 outside the mask; `adv` already one value a token."""

    logp: Tensor
    old_logp: Tensor
    adv: Tensor
    mask: Tensor
    total: int


def token_covariance(
    logp: Float[Tensor, "batch tokens"],
    adv: Float[Tensor, "batch"] | Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, "batch tokens"]:
    """Each token's share of the covariance of advantage and log-probability.

    Its mean over the mask is the population covariance of the two, the meter that says whether the next
    policy-gradient step raises (negative) or lowers (positive) the policy's entropy.

    Args:
        logp: log-probabilities of the sampled tokens under the current policy, nats. Not differentiated.
        adv: advantages, one a sequence (broadcast over its tokens) or one a token.
        mask: True where a token counts.

    Returns:
        `c_t` in nats times advantage units, float32 or better, 0 outside the mask.

    Raises:
        ValueError: shapes that differ, an all-False mask, values inside the mask that are not finite.

    Examples:
        >>> logp = torch.tensor([[-0.1, -2.0, -0.5], [-3.0, -0.2, -1.0]])
        >>> mask = torch.tensor([[True, True, True], [True, True, False]])
        >>> token_covariance(logp, torch.tensor([1.0, -1.0]), mask)
        tensor([[ 0.8480, -0.6720,  0.5280],
                [ 2.2080, -1.1520,  0.0000]])

    Source: arXiv 2505.22617, section 4.1 (token-wise centred cross-product).
    """
    return _covariance(_checked(logp, logp, adv, mask))


def clip_cov_select(
    logp: Float[Tensor, "batch tokens"],
    old_logp: Float[Tensor, "batch tokens"],
    adv: Float[Tensor, "batch"] | Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    ratio: float = 2e-4,
    bounds: tuple[float, float] = (1.0, 5.0),
    eps: tuple[float, float] = (1.0, 1.0),
    generator: torch.Generator | None = None,
    *,
    count: int | None = None,
) -> Bool[Tensor, "batch tokens"]:
    """Tokens that Clip-Cov takes out of the loss, drawn at random among those with large covariance.

    Candidates have `bounds[0] < c_t < bounds[1]` and are not already clipped by the ratio clip.

    Args:
        logp: log-probabilities under the current policy, nats.
        old_logp: log-probabilities under the policy that sampled, nats.
        adv: advantages, one a sequence or one a token.
        mask: True where a token counts.
        ratio: share of the N unmasked tokens to draw: `max(int(ratio N), 1)`, never more than candidates.
        bounds: open interval of covariances, in units of c_t.
        eps: ratio clip `[1 - eps[0], 1 + eps[1]]` of the surrogate.
        generator: source of the draw, on the tensors' device.
        count: how many tokens to draw, instead of `ratio`, when the batch is a piece of a larger one and
            the number was decided on the whole (see `SelectionBudget`); 0 is legal.

    Returns:
        True where a token is removed.

    Raises:
        ValueError: as `token_covariance`; `ratio` outside (0, 1], `bounds` not increasing, `eps` negative.

    Examples:
        >>> logp = torch.tensor([[-0.1, -2.0, -0.5], [-3.0, -0.2, -1.0]])
        >>> mask = torch.tensor([[True, True, True], [True, True, False]])
        >>> clip_cov_select(logp, logp, torch.tensor([1.0, -1.0]), mask)
        tensor([[False, False, False],
                [ True, False, False]])

    Source: arXiv 2505.22617, eq. 10-11.
    """
    _check_clip_cov(ratio, bounds, eps)
    tokens = _checked(logp, old_logp, adv, mask)
    return _clip_cov_select(tokens, _size(tokens.total, ratio, count), bounds, eps, generator)


def kl_cov_select(
    logp: Float[Tensor, "batch tokens"],
    adv: Float[Tensor, "batch"] | Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    fraction: float = 2e-3,
    *,
    count: int | None = None,
) -> Bool[Tensor, "batch tokens"]:
    """Tokens that KL-Cov holds near the old policy: those of largest covariance.

    Args:
        logp: log-probabilities under the current policy, nats.
        adv: advantages, one a sequence or one a token.
        mask: True where a token counts.
        fraction: share of the N unmasked tokens: `max(int(fraction N), 1)` (a fraction, not per cent).
        count: how many tokens instead of `fraction`, decided on a larger batch; 0 is legal.

    Returns:
        True where a token is penalised.

    Raises:
        ValueError: as `token_covariance`; `fraction` outside (0, 1].

    Examples:
        >>> logp = torch.tensor([[-0.1, -2.0, -0.5], [-3.0, -0.2, -1.0]])
        >>> mask = torch.tensor([[True, True, True], [True, True, False]])
        >>> kl_cov_select(logp, torch.tensor([1.0, -1.0]), mask, fraction=0.4)
        tensor([[ True, False, False],
                [ True, False, False]])

    Source: arXiv 2505.22617, eq. 12.
    """
    _check_share("fraction", fraction)
    tokens = _checked(logp, logp, adv, mask)
    return _kl_cov_select(tokens, _size(tokens.total, fraction, count))


def clip_cov_loss(
    logp: Float[Tensor, "batch tokens"],
    old_logp: Float[Tensor, "batch tokens"],
    adv: Float[Tensor, "batch"] | Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    ratio: float = 2e-4,
    bounds: tuple[float, float] = (1.0, 5.0),
    eps: tuple[float, float] = (1.0, 1.0),
    generator: torch.Generator | None = None,
    *,
    count: int | None = None,
    reduction: Reduction = "token_mean",
) -> tuple[Float[Tensor, "*shape"], dict[str, Tensor]]:
    """Clipped surrogate loss with the tokens of `clip_cov_select` detached (value and gradient 0).

    `u_t = max(-A r, -A clip(r, 1 - eps[0], 1 + eps[1]))`; the removed tokens still count in N.

    Args:
        logp: log-probabilities under the current policy, nats; differentiated.
        old_logp: log-probabilities under the policy that sampled, nats.
        adv: advantages, one a sequence or one a token.
        mask: True where a token counts.
        ratio: share of tokens removed, as in `clip_cov_select`.
        bounds: covariances between which a token may be removed.
        eps: ratio clip; the paper's (1, 1) clips r to [0, 2].
        generator: source of the draw.
        count: number of tokens to remove instead of `ratio`.
        reduction: "token_mean" over the batch (the paper's), "sequence_mean" (mean of the sequences' token
            means), "sum", or "none" (per token, 0 outside the mask).

    Returns:
        The loss and the metrics of `selection_metrics`.

    Raises:
        ValueError: as `clip_cov_select`; an unknown `reduction`.

    Examples:
        >>> logp = torch.tensor([[-0.1, -2.0, -0.5], [-3.0, -0.2, -1.0]])
        >>> mask = torch.tensor([[True, True, True], [True, True, False]])
        >>> loss, metrics = clip_cov_loss(logp, logp, torch.tensor([1.0, -1.0]), mask)
        >>> round(loss.item(), 4), round(metrics["selected_in/unlikely_bad"].item(), 1)
        (-0.4, 1.0)

    Source: arXiv 2505.22617, eq. 10-11.
    """
    _check_reduction(reduction)
    _check_clip_cov(ratio, bounds, eps)
    tokens = _checked(logp, old_logp, adv, mask)
    selected = _clip_cov_select(tokens, _size(tokens.total, ratio, count), bounds, eps, generator)
    surrogate, clipped = _surrogates(tokens, eps)
    loss = torch.maximum(surrogate, clipped).masked_fill(selected, 0.0)
    return _reduce(loss, tokens, reduction), _metrics(tokens, selected)


def kl_cov_loss(
    logp: Float[Tensor, "batch tokens"],
    old_logp: Float[Tensor, "batch tokens"],
    adv: Float[Tensor, "batch"] | Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    fraction: float = 2e-3,
    beta: float = 1.0,
    *,
    count: int | None = None,
    reduction: Reduction = "token_mean",
) -> tuple[Float[Tensor, "*shape"], dict[str, Tensor]]:
    """Unclipped surrogate loss plus `beta |d_t|` on the tokens of `kl_cov_select`.

    `|d_t|` at the sampled token stands for the divergence of the old from the new policy. It is 0, with
    gradient 0, until the policy has left the one that sampled: with a single optimiser step a rollout this
    loss is plain policy gradient.

    Args:
        logp: log-probabilities under the current policy, nats; differentiated.
        old_logp: log-probabilities under the policy that sampled, nats.
        adv: advantages, one a sequence or one a token.
        mask: True where a token counts.
        fraction: share of tokens penalised, as in `kl_cov_select`; the paper's is 2e-3 at 7B, 2e-4 at 32B.
        beta: weight of the penalty, advantage units per nat.
        count: number of tokens to penalise instead of `fraction`.
        reduction: as in `clip_cov_loss`.

    Returns:
        The loss and the metrics of `selection_metrics`, with `kl_penalty`, the part of the token-mean
        loss that the penalty makes.

    Raises:
        ValueError: as `kl_cov_select`; `beta` negative, an unknown `reduction`.

    Examples:
        >>> logp = torch.tensor([[-0.1, -2.0, -0.5], [-3.0, -0.2, -1.0]])
        >>> old = torch.tensor([[-0.2, -1.8, -0.5], [-2.7, -0.4, -1.3]])
        >>> mask = torch.tensor([[True, True, True], [True, True, False]])
        >>> loss, metrics = kl_cov_loss(logp, old, torch.tensor([1.0, -1.0]), mask, fraction=0.4)
        >>> round(loss.item(), 7), round(metrics["kl_penalty"].item(), 2)
        (-0.1123361, 0.08)

    Source: arXiv 2505.22617, eq. 12-13.
    """
    _check_reduction(reduction)
    _check_share("fraction", fraction)
    if not beta >= 0:
        raise ValueError(f"beta: {beta!r}; must be 0 or more")
    tokens = _checked(logp, old_logp, adv, mask)
    selected = _kl_cov_select(tokens, _size(tokens.total, fraction, count))
    distance = (tokens.logp - tokens.old_logp).abs()
    penalty = torch.where(selected, beta * distance, 0.0)
    loss = -tokens.adv * (tokens.logp - tokens.old_logp).exp() + penalty
    metrics = _metrics(tokens, selected)
    metrics["kl_penalty"] = penalty.detach().sum() / tokens.total
    return _reduce(loss, tokens, reduction), metrics


def selection_metrics(
    logp: Float[Tensor, "batch tokens"],
    old_logp: Float[Tensor, "batch tokens"],
    adv: Float[Tensor, "batch"] | Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    selected: Bool[Tensor, "batch tokens"],
) -> dict[str, Tensor]:
    """What to log about a selection: the covariance meter, how many tokens it took, and which.

    Args:
        logp: log-probabilities under the current policy, nats.
        old_logp: log-probabilities under the policy that sampled, nats.
        adv: advantages, one a sequence or one a token.
        mask: True where a token counts.
        selected: True where a token was removed or penalised.

    Returns:
        Detached scalars, on the tensors' device: `covariance` (mean c_t, nats times advantage units),
        `selected` (share of the tokens), `abs_log_ratio` (mean |d_t|, nats) and four `selected_in/...`, the shares
        of the selection by quadrant: likely or unlikely (log-probability above the mean or not), good or
        bad (advantage above the mean or not); all four are 0 when nothing was selected.

    Raises:
        ValueError: as `token_covariance`.

    Examples:
        >>> logp = torch.tensor([[-0.1, -2.0, -0.5], [-3.0, -0.2, -1.0]])
        >>> mask = torch.tensor([[True, True, True], [True, True, False]])
        >>> adv = torch.tensor([1.0, -1.0])
        >>> metrics = selection_metrics(logp, logp, adv, mask, kl_cov_select(logp, adv, mask, 0.4))
        >>> [name for name, value in metrics.items() if value == 0.5]
        ['selected_in/likely_good', 'selected_in/unlikely_bad']

    Source: arXiv 2505.22617, section 4.1 (the covariance's sign by quadrant is read off its factors).
    """
    return _metrics(_checked(logp, old_logp, adv, mask), selected)


def first_order_entropy_change(
    logits: Float[Tensor, "*batch actions"],
    adv: Float[Tensor, "*batch actions"],
    eta: float,
    kind: Literal["pg", "npg"] = "pg",
) -> Float[Tensor, "*batch"]:
    """Entropy change of a tabular softmax policy after one gradient step, to first order in its size.

    Policy gradient moves the logits by `eta pi A`, natural policy gradient by `eta A`; either way the
    entropy moves by minus the covariance, under pi, of log pi and the move.

    Args:
        logits: unnormalised log-probabilities of every action; -inf is an action never taken.
        adv: advantage of every action.
        eta: step size.
        kind: "pg" or "npg".

    Returns:
        The change of entropy in nats.

    Raises:
        ValueError: shapes that differ, an unknown `kind`, logits that are NaN, +inf or all -inf.

    Examples:
        >>> first_order_entropy_change(torch.tensor([1.0, 0.0]), torch.tensor([1.0, -1.0]), 0.1, "npg")
        tensor(-0.0393)

    Source: arXiv 2505.22617, theorem 1 and corollary 1 (policy gradient), theorem 2 (natural).
    """
    if logits.shape != adv.shape:
        raise ValueError(
            f"adv: shape {tuple(adv.shape)}; must be that of logits, {tuple(logits.shape)}"
        )
    if kind not in ("pg", "npg"):
        raise ValueError(f"kind: {kind!r}; must be 'pg' or 'npg'")
    highest = logits.amax(-1)
    if not (torch.isfinite(highest).all() and not logits.isnan().any()):
        raise ValueError(
            "logits: holds NaN, +inf or a row of -inf; needs a finite value in every row"
        )
    log_pi = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    pi = log_pi.exp()
    move = eta * (pi * adv if kind == "pg" else adv.to(pi.dtype))
    centred = torch.where(pi > 0, log_pi, 0.0)
    centred = centred - (pi * centred).sum(-1, keepdim=True)
    return -(pi * centred * move).sum(-1)


class SelectionBudget:
    """How many tokens to select in each piece of a batch, so that the pieces add up to the whole's dose.

    The losses' floor of one token makes a small micro-batch's dose far larger than the nominal one. A budget
    carries the unspent remainder instead: after N tokens in any number of pieces, it has handed out
    `int(fraction N)`.

    Args:
        fraction: share of tokens to select.

    Examples:
        >>> budget = SelectionBudget(0.01)
        >>> [budget.take(40) for _ in range(5)]
        [0, 0, 1, 0, 1]

    Source: arXiv 2505.22617, section 4.2, where the share is that of the whole training batch.
    """

    def __init__(self, fraction: float) -> None:
        _check_share("fraction", fraction)
        self.fraction = fraction
        self._seen = 0
        self._given = 0

    def take(self, tokens: int) -> int:
        """Number to select in a piece of `tokens` unmasked tokens."""
        self._seen += tokens
        # 0.29 * 100 is 28.999999999999996 in floating point: rounding must not lose the 29th token.
        due = int(self.fraction * self._seen * (1 + 1e-12))
        count, self._given = due - self._given, due
        return count


def _checked(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor) -> _Tokens:
    if logp.dim() != 2:
        raise ValueError(f"logp: shape {tuple(logp.shape)}; must be (batch, tokens)")
    if old_logp.shape != logp.shape:
        raise ValueError(f"old_logp: shape {tuple(old_logp.shape)}; must be {tuple(logp.shape)}")
    if mask.shape != logp.shape:
        raise ValueError(f"mask: shape {tuple(mask.shape)}; must be {tuple(logp.shape)}")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask: dtype {mask.dtype}; must be torch.bool, True where a token counts")
    if adv.shape not in (logp.shape, logp.shape[:1]):
        raise ValueError(
            f"adv: shape {tuple(adv.shape)}; must be {tuple(logp.shape[:1])} or {tuple(logp.shape)}"
        )
    adv = adv.unsqueeze(-1).expand_as(logp) if adv.dim() == 1 else adv
    # One transfer to the host for every check and for N: a synchronisation each would stall the device.
    counts = torch.stack(
        [mask.sum(), *((mask & ~x.isfinite()).sum() for x in (logp, old_logp, adv))]
    ).tolist()
    if counts[0] == 0:
        raise ValueError("mask: no True entry; at least one token must count")
    for name, bad in zip(("logp", "old_logp", "adv"), counts[1:], strict=True):
        if bad:
            raise ValueError(f"{name}: {bad} values inside the mask are not finite")
    dtype = torch.promote_types(logp.dtype, torch.float32)
    current, old, advantage = (
        torch.where(mask, x.to(dtype), 0.0) for x in (logp, old_logp.detach(), adv.detach())
    )
    return _Tokens(current, old, advantage, mask, counts[0])


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name}: {value!r}; must be a fraction in (0, 1]")


def _check_clip_cov(ratio: float, bounds: tuple[float, float], eps: tuple[float, float]) -> None:
    _check_share("ratio", ratio)
    if not bounds[0] < bounds[1]:
        raise ValueError(f"bounds: {bounds!r}; must increase")
    if not (eps[0] >= 0 and eps[1] >= 0):
        raise ValueError(f"eps: {eps!r}; both must be 0 or more")


def _check_reduction(reduction: str) -> None:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction: {reduction!r}; must be one of {', '.join(_REDUCTIONS)}")


def _size(tokens: int, share: float, count: int | None) -> int:
    if count is None:
        return max(int(share * tokens), 1)
    if not 0 <= count <= tokens:
        raise ValueError(f"count: {count!r}; must be between 0 and the {tokens} tokens of the mask")
    return count


def _centred(tokens: _Tokens) -> tuple[Tensor, Tensor]:
    """A - mean A and log pi - mean log pi over the mask, 0 outside it."""
    logp = tokens.logp.detach()
    adv_c, logp_c = (
        torch.where(tokens.mask, x - x.sum() / tokens.total, 0.0) for x in (tokens.adv, logp)
    )
    return adv_c, logp_c


def _covariance(tokens: _Tokens) -> Tensor:
    adv, logp = _centred(tokens)
    return adv * logp


def _surrogates(tokens: _Tokens, eps: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """-A r and -A clip(r)."""
    r = (tokens.logp - tokens.old_logp).exp()
    return -tokens.adv * r, -tokens.adv * r.clamp(1 - eps[0], 1 + eps[1])


def _clip_cov_select(
    tokens: _Tokens,
    count: int,
    bounds: tuple[float, float],
    eps: tuple[float, float],
    generator: torch.Generator | None,
) -> Tensor:
    covariance = _covariance(tokens)
    with torch.no_grad():
        surrogate, clipped = _surrogates(tokens, eps)
    candidates = (
        tokens.mask & (covariance > bounds[0]) & (covariance < bounds[1]) & (clipped <= surrogate)
    )
    # The largest of independent uniform keys are a draw without replacement, and never leave the device.
    keys = torch.rand(covariance.shape, generator=generator, device=covariance.device)
    return _top(keys.masked_fill(~candidates, -1.0), count) & candidates


def _kl_cov_select(tokens: _Tokens, count: int) -> Tensor:
    return _top(_covariance(tokens).masked_fill(~tokens.mask, -torch.inf), count)


def _top(values: Tensor, count: int) -> Tensor:
    chosen = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    chosen[values.flatten().topk(count).indices] = True
    return chosen.view_as(values)


def _metrics(tokens: _Tokens, selected: Tensor) -> dict[str, Tensor]:
    adv, logp = _centred(tokens)
    total = selected.sum()
    quadrants = {
        "likely_good": (logp > 0) & (adv > 0),
        "likely_bad": (logp > 0) & (adv <= 0),
        "unlikely_good": (logp <= 0) & (adv > 0),
        "unlikely_bad": (logp <= 0) & (adv <= 0),
    }
    return {
        "covariance": (adv * logp).sum() / tokens.total,
        "selected": total / tokens.total,
        "abs_log_ratio": (tokens.logp - tokens.old_logp).detach().abs().sum() / tokens.total,
        **{
            f"selected_in/{name}": (selected & where).sum() / total.clamp(min=1)
            for name, where in quadrants.items()
        },
    }


def _reduce(loss: Tensor, tokens: _Tokens, reduction: Reduction) -> Tensor:
    """Reduces a per-token loss that is already 0 outside the mask."""
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "token_mean":
        return loss.sum() / tokens.total
    return (loss.sum(-1) / tokens.mask.sum(-1).clamp(min=1)).mean()
