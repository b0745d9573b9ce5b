"""Locally typical sampling: keep the tokens whose surprisal is closest to the conditional entropy.

With q the next-token distribution and H its entropy, tokens are taken in increasing order of
d_v = |-log q_v - H| until they hold the mass tau; the rest is never sampled. The kept set is a band
of probabilities around exp(-H), e^(-H-c) <= q_v <= e^(-H+c), which may leave out the mode.

Source: Meister, Pimentel, Wiher, Cotterell, Locally Typical Sampling (TACL 2023; arXiv 2202.00666).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from szilard.kernels.typical import SLACK, weighted_threshold
from szilard.measures._checks import check_logits, check_probabilities
from szilard.measures.tokens import token_statistics

Ties = Literal["all", "minimal"]

# Rows are handled a few MiB at a time: the temporaries then stay in cache and are reused.
_BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class LocalTypicality:
    """How far each token lies from what was expected of it, in the unit asked for.

    Attributes:
        surprisal: I_t = -log q(y_t), shape (*batch, tokens).
        entropy: H_t of the distribution y_t was drawn from, shape (*batch, tokens).
        epsilon: I_t - H_t, 0 in expectation under ancestral sampling, shape (*batch, tokens).
    """

    surprisal: Float[Tensor, "*batch tokens"]
    entropy: Float[Tensor, "*batch tokens"]
    epsilon: Float[Tensor, "*batch tokens"]


def local_typicality(
    logits: Float[Tensor, "*batch tokens vocab"],
    tokens: Int[Tensor, "*batch tokens"],
    mask: Bool[Tensor, "*batch tokens"] | None = None,
    *,
    base: float | None = None,
) -> LocalTypicality:
    """Surprisal, conditional entropy and their difference for every token of a text.

    Args:
        logits: the untruncated logits that predicted `tokens`, position by position (a causal
            model's logits shifted by one); `-inf` is legal.
        tokens: the tokens that were emitted.
        mask: True where a token counts; the other positions are not read and hold 0.
        base: base of the logarithm, 2 for bits; nats by default.

    Returns:
        The three quantities, each of the shape of `tokens`.

    Raises:
        ValueError: shapes that do not fit, NaN or +inf among the logits, a row of `-inf` alone, a
            token outside the vocabulary, or an impossible base.

    Examples:
        >>> q = torch.tensor([[0.5, 0.25, 0.125, 0.125]])
        >>> local_typicality(q.log(), torch.tensor([0]), base=2).epsilon
        tensor([-0.7500])

    Source: Meister et al. 2023, section 4 (the information content of a token against the entropy).
    """
    statistics = token_statistics(logits, tokens, mask=mask, base=base)
    assert statistics.logprob is not None
    surprisal = -statistics.logprob
    return LocalTypicality(surprisal, statistics.entropy, surprisal - statistics.entropy)


def typical_mask(
    logits: Float[Tensor, "*batch vocab"],
    mass: float,
    ties: Ties = "all",
    *,
    min_tokens_to_keep: int = 1,
    sampled: Float[Tensor, "*batch vocab"] | None = None,
) -> Bool[Tensor, "*batch vocab"]:
    """The locally typical set of each row: True for the tokens that may be sampled.

    Args:
        logits: unnormalised log-probabilities that give surprisals and entropy; `-inf` is legal and
            never kept. Half-precision logits are ranked in float32.
        mass: tau, the probability to collect, in (0, 1]; 1 keeps every token of positive
            probability.
        ties: "all" keeps every token as close to the entropy as the last one taken, so a uniform
            row is kept whole; "minimal" takes tied tokens in index order and stops at the mass.
        min_tokens_to_keep: this many tokens closest to the entropy are kept whatever the mass.
        sampled: logits of the distribution the mass is counted under where it is not that of
            `logits`; its tokens of probability 0 are never kept.

    Returns:
        The mask, of the shape of `logits`.

    Raises:
        ValueError: a mass, `ties` or `min_tokens_to_keep` out of its range, logits that define no
            distribution, or shapes that differ.

    Examples:
        >>> q = torch.tensor([0.5, 0.25, 0.125, 0.125])
        >>> typical_mask(q.log(), 0.2)
        tensor([False,  True, False, False])
        >>> typical_mask(q.log(), 0.5)
        tensor([ True,  True, False, False])

    Source: Meister et al. 2023, section 5 (the minimisation that defines the set).
    """
    check_mass(mass, one_is_legal=True)
    check_ties(ties)
    check_logits(logits)
    check_min_tokens_to_keep(min_tokens_to_keep, logits.shape[-1])
    if sampled is not None:
        check_logits(sampled, "sampled")
        if sampled.shape != logits.shape:
            raise ValueError(
                f"sampled must have the shape of logits, {tuple(logits.shape)}, "
                f"but has {tuple(sampled.shape)}"
            )
    support = logits if sampled is None else sampled
    if mass == 1:
        return support != -torch.inf
    vocab = logits.shape[-1]
    rows = logits.detach().reshape(-1, vocab)
    target = None if sampled is None else sampled.detach().reshape(-1, vocab)
    kept = torch.empty(rows.shape, dtype=torch.bool, device=logits.device)
    step = max(1, _BLOCK_ELEMENTS // vocab)
    for begin in range(0, rows.shape[0], step):
        block = slice(begin, begin + step)
        weighed = None if target is None else target[block]
        kept[block] = _typical_set(rows[block], weighed, mass, ties, min_tokens_to_keep)
    kept = kept.view(logits.shape)
    # The threshold is finite, so only tokens kept for another reason can have probability 0.
    if sampled is not None or min_tokens_to_keep > 1:
        kept &= support != -torch.inf
    return kept


def typical_sample(
    probs: Float[np.ndarray, "*batch vocab"],
    mass: float,
    rng: np.random.Generator,
) -> Int[np.ndarray, "*batch"]:
    """Draws one token a row from its locally typical set, renormalised.

    Args:
        probs: probabilities, each row summing to 1 within 1e-6.
        mass: tau, in (0, 1).
        rng: source of the draws, one uniform number a row.

    Returns:
        Token indices, int64.

    Raises:
        ValueError: a mass out of range, or rows that are not distributions.

    Examples:
        >>> int(typical_sample(np.array([0.4] + 10 * [0.06]), 0.5, np.random.default_rng(0)))
        7

    Source: Meister et al. 2023, section 5.
    """
    check_mass(mass)
    check_probabilities(probs)
    q = np.asarray(probs, dtype=np.float64)
    kept = typical_mask(torch.from_numpy(q).log(), mass).numpy()
    collected = np.where(kept, q, 0.0).cumsum(axis=-1)
    # Inverse CDF: u < 1 strictly, so the token lands on a step of positive height.
    u = rng.random(q.shape[:-1])[..., None] * collected[..., -1:]
    return np.asarray((collected <= u).sum(axis=-1))


def check_mass(mass: float, *, one_is_legal: bool = False) -> None:
    """Refuses a mass outside (0, 1), or outside (0, 1] where 1 is legal."""
    if not (0 < mass < 1 or (one_is_legal and mass == 1)):
        raise ValueError(f"mass must lie in (0, 1{']' if one_is_legal else ')'}, but is {mass!r}")


def check_ties(ties: str) -> None:
    """Refuses anything but the two ways to break ties."""
    if ties not in ("all", "minimal"):
        raise ValueError(f"ties must be 'all' or 'minimal', but is {ties!r}")


def check_min_tokens_to_keep(count: int, vocab: int | None = None) -> None:
    """Refuses a count below 1 or above the vocabulary."""
    if count < 1 or (vocab is not None and count > vocab):
        most = "" if vocab is None else f" and at most the vocabulary, {vocab}"
        raise ValueError(f"min_tokens_to_keep must be at least 1{most}, but is {count!r}")


def _typical_set(
    logits: Tensor, sampled: Tensor | None, mass: float, ties: Ties, min_tokens: int
) -> Tensor:
    logq = _at_least_float32(logits).log_softmax(dim=-1)
    q = logq.exp()
    # Finite where q is 0, so that 0 log 0 is 0.
    logq.clamp_(min=torch.finfo(logq.dtype).min)
    minus_entropy = torch.linalg.vecdot(logq, q)[:, None]
    distance = logq.sub_(minus_entropy).abs_()
    if sampled is not None:
        q = sampled.to(q.dtype).softmax(dim=-1)
    cutoff = weighted_threshold(distance, q, mass)[:, None]
    kept = distance <= cutoff
    if ties == "minimal":
        kept &= ~_surplus_ties(distance, q, cutoff, mass)
    if min_tokens > 1:
        kept |= _closest(distance, min_tokens)
    return kept


def _surplus_ties(distance: Tensor, q: Tensor, cutoff: Tensor, mass: float) -> Tensor:
    """Tokens tied with the cutoff that index order does not need to reach the mass."""
    q = q.double()
    inside = torch.where(distance < cutoff, q, 0).sum(dim=-1, keepdim=True)
    tied = distance == cutoff
    tied_q = torch.where(tied, q, 0)
    before = inside + tied_q.cumsum(dim=-1) - tied_q
    return tied & (before >= (1 - SLACK) * mass * q.sum(dim=-1, keepdim=True))


def _closest(distance: Tensor, count: int) -> Tensor:
    """The `count` smallest distances of each row, ties in index order."""
    last = distance.topk(count, largest=False).values.amax(dim=-1, keepdim=True)
    closer, tied = distance < last, distance == last
    room = count - closer.sum(dim=-1, keepdim=True)
    return closer | (tied & (tied.cumsum(dim=-1) <= room))


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
