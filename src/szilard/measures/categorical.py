"""Entropies and divergences of categorical distributions.

Every function takes a distribution in one of two forms and never guesses which: probabilities in
the positional argument (`probs`, `p`, `q`, `joint`), natural logarithms of probabilities in the
keyword that starts with `log_`. Exactly one of the two must be given, and it must be normalised.
Logits are not probabilities: pass `log_probs=torch.log_softmax(logits, -1)`.

The last axis is the distribution (the last two for a joint one), leading axes are batch and
broadcast between two distributions. Tensors give tensors, arrays give arrays; float16 and bfloat16
are computed and returned in float32. Divergences, mutual information and conditional entropy, which
are small differences of large numbers, are computed in float64 where the device has it. Results are
in nats, or in the unit of `base`.

Rounding leaves no distribution normalised exactly (bfloat16 to 0.4 %, a float32 softmax over a
large vocabulary to 1e-4). Where a definition would amplify that, a form is used that is equal for a
normalised distribution and feels the rounding to second order only.

Gradients exist everywhere and follow one rule: an entry of probability exactly zero is outside the
support and has gradient zero wherever the true slope is infinite. Chained to a softmax this is the
exact gradient, also with `-inf` among the logits.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from szilard.kernels.tokens import accumulator
from szilard.measures._checks import (
    as_tensor,
    check_log_probabilities,
    check_probabilities,
    log_base,
)

A = TypeVar("A", Tensor, np.ndarray)


def entropy(
    probs: Float[A, "*batch n"] | None = None,
    *,
    log_probs: Float[A, "*batch n"] | None = None,
    base: float | None = None,
) -> Float[A, "*batch"]:
    """Shannon entropy H(p) = -Σ p ln p.

    Args:
        probs: probabilities; the last axis sums to 1.
        log_probs: natural logarithms of probabilities, instead of `probs`.
        base: unit of the result (2 for bits); nats by default.

    Returns:
        Entropies in [0, log n].

    Raises:
        TypeError: not a tensor or array of floating dtype.
        ValueError: none or both forms given, not normalised, NaN, empty last axis, or a bad base.

    Examples:
        >>> entropy(torch.tensor([0.5, 0.25, 0.25, 0.0]), base=2)
        tensor(1.5000)

    Source: Shannon (1948), A mathematical theory of communication, section 6.
    """
    unit = log_base(base)
    d = _read(probs, log_probs, "probs")
    return _give(_nonnegative(_shannon(d)) * unit, probs, log_probs)


def perplexity(
    probs: Float[A, "*batch n"] | None = None,
    *,
    log_probs: Float[A, "*batch n"] | None = None,
) -> Float[A, "*batch"]:
    """Perplexity exp(H(p)), the effective number of outcomes; it has no unit, hence no base.

    Args:
        probs: probabilities; the last axis sums to 1.
        log_probs: natural logarithms of probabilities, instead of `probs`.

    Returns:
        Effective numbers in [1, n]: n for the uniform distribution, 1 for a certain outcome.

    Raises:
        TypeError: not a tensor or array of floating dtype.
        ValueError: none or both forms given, not normalised, NaN or an empty last axis.

    Examples:
        >>> perplexity(np.array([0.25, 0.25, 0.25, 0.25, 0.0])).round(12)
        np.float64(4.0)

    Source: Jelinek et al. (1977), Perplexity: a measure of the difficulty of speech recognition
    tasks; Hill (1973), Diversity and evenness, number of order 1.
    """
    d = _read(probs, log_probs, "probs")
    return _give(_nonnegative(_shannon(d)).exp(), probs, log_probs)


def renyi_entropy(
    probs: Float[A, "*batch n"] | None = None,
    *,
    alpha: float,
    log_probs: Float[A, "*batch n"] | None = None,
    base: float | None = None,
) -> Float[A, "*batch"]:
    """Rényi entropy H_α(p) = ln(Σ p^α) / (1 - α), with its limits at α = 0, 1 and inf.

    Args:
        probs: probabilities; the last axis sums to 1.
        alpha: order, at least 0. 0 is the Hartley entropy (log of the support's size), 1 Shannon's,
            2 the collision entropy, `math.inf` the min-entropy. Accurate for any α near 1.
        log_probs: natural logarithms of probabilities, instead of `probs`.
        base: unit of the result (2 for bits); nats by default.

    Returns:
        Entropies in [0, log n], not increasing in α.

    Raises:
        TypeError: not a tensor or array of floating dtype.
        ValueError: α negative or NaN, none or both forms given, not normalised, NaN, empty last
            axis, or a bad base.

    Examples:
        >>> p = torch.tensor([0.5, 0.25, 0.25, 0.0])
        >>> [round(renyi_entropy(p, alpha=a, base=2).item(), 3) for a in (0, 1, 2, math.inf)]
        [1.585, 1.5, 1.415, 1.0]

    Source: Rényi (1961), On measures of entropy and information, eq. 1.21.
    """
    if not alpha >= 0:
        raise ValueError(f"alpha must be at least 0 (math.inf included), but is {alpha!r}")
    unit = log_base(base)
    d = _read(probs, log_probs, "probs")
    outside = ~d.support
    if alpha == 1:
        h = _shannon(d)
    # H_inf <= H_α <= α/(α - 1) H_inf: from here on the two agree to the last bit.
    elif alpha - 1 >= 1 / torch.finfo(d.p.dtype).eps:
        h = -d.log_p.masked_fill(outside, -math.inf).amax(-1)
    elif alpha < 1:
        h = _power_gap(d, alpha).log1p() / (1 - alpha)
    else:
        # The gap neither cancels nor amplifies the rounding of the normalisation, until it is so
        # large that its difference from 1 would.
        gap = _power_gap(d, alpha)
        far = (alpha * d.log_p).masked_fill(outside, -math.inf).logsumexp(-1)
        h = torch.where(gap < 0.5, (-gap.clamp(max=0.5)).log1p(), far) / (1 - alpha)
    return _give(_nonnegative(h) * unit, probs, log_probs)


def tsallis_entropy(
    probs: Float[A, "*batch n"] | None = None,
    *,
    q: float,
    log_probs: Float[A, "*batch n"] | None = None,
    base: float | None = None,
) -> Float[A, "*batch"]:
    """Tsallis entropy S_q(p) = k (1 - Σ p^q) / (q - 1), with its limit at q = 1.

    Args:
        probs: probabilities; the last axis sums to 1.
        q: order, finite and at least 0. 0 counts the support less one, 1 is Shannon's entropy,
            2 the Gini impurity. Accurate for any q near 1.
        log_probs: natural logarithms of probabilities, instead of `probs`.
        base: the constant k = 1 / ln(base), which makes q → 1 the Shannon entropy in that base;
            k = 1 by default.

    Returns:
        Entropies in [0, k (1 - n^(1-q)) / (q - 1)].

    Raises:
        TypeError: not a tensor or array of floating dtype.
        ValueError: q negative, infinite or NaN, none or both forms given, not normalised, NaN,
            empty last axis, or a bad base.

    Examples:
        >>> tsallis_entropy(torch.tensor([0.5, 0.5, 0.0]), q=2)
        tensor(0.5000)

    Source: Tsallis (1988), Possible generalization of Boltzmann-Gibbs statistics, eq. 1.
    """
    if not (q >= 0 and math.isfinite(q)):
        raise ValueError(f"q must be finite and at least 0, but is {q!r}")
    unit = log_base(base)
    d = _read(probs, log_probs, "probs")
    s = _shannon(d) if q == 1 else _power_gap(d, q) / abs(q - 1)
    return _give(_nonnegative(s) * unit, probs, log_probs)


def cross_entropy(
    p: Float[A, "*#batch n"] | None = None,
    q: Float[A, "*#batch n"] | None = None,
    *,
    log_p: Float[A, "*#batch n"] | None = None,
    log_q: Float[A, "*#batch n"] | None = None,
    base: float | None = None,
) -> Float[A, "*#batch"]:
    """Cross-entropy H(p, q) = -Σ p ln q: the mean surprisal under q of what p draws.

    Args:
        p: probabilities of the source.
        q: probabilities of the model.
        log_p: natural logarithms of the source's probabilities, instead of `p`.
        log_q: natural logarithms of the model's probabilities, instead of `q`.
        base: unit of the result (2 for bits); nats by default.

    Returns:
        Cross-entropies, at least H(p); `inf` where q gives 0 to what p does not.

    Raises:
        TypeError: not of floating dtype, or a tensor with an array.
        ValueError: none or both forms of one distribution given, not normalised, NaN, shapes or
            devices that do not fit, empty last axis, or a bad base.

    Examples:
        >>> cross_entropy(torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.75]), base=2)
        tensor(2.)

    Source: Cover & Thomas (2006), Elements of Information Theory, 2nd ed., eq. 5.42.
    """
    unit = log_base(base)
    source, model = _read_pair(p, q, log_p, log_q, difference=False)
    terms = (-source.p * model.log_p).masked_fill(source.support & ~model.support, math.inf)
    return _give(_nonnegative(terms.sum(-1)) * unit, p, q, log_p, log_q)


def kl_divergence(
    p: Float[A, "*#batch n"] | None = None,
    q: Float[A, "*#batch n"] | None = None,
    *,
    log_p: Float[A, "*#batch n"] | None = None,
    log_q: Float[A, "*#batch n"] | None = None,
    base: float | None = None,
) -> Float[A, "*#batch"]:
    """Kullback-Leibler divergence D(p ‖ q) = Σ p ln(p / q), in this order of arguments.

    Args:
        p: probabilities of the distribution the mean is taken under.
        q: probabilities of the reference.
        log_p: natural logarithms of probabilities, instead of `p`.
        log_q: natural logarithms of probabilities, instead of `q`.
        base: unit of the result (2 for bits); nats by default.

    Returns:
        Divergences, at least 0; `inf` where q gives 0 to what p does not.

    Raises:
        TypeError: not of floating dtype, or a tensor with an array.
        ValueError: none or both forms of one distribution given, not normalised, NaN, shapes or
            devices that do not fit, empty last axis, or a bad base.

    Examples:
        >>> kl_divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.75]), base=2)
        tensor(2.)

    Source: Kullback & Leibler (1951), On information and sufficiency, eq. 2.2.
    """
    unit = log_base(base)
    first, second = _read_pair(p, q, log_p, log_q)
    impossible = first.support & ~second.support
    divergence = _kl_terms(first, second).masked_fill(impossible, math.inf).sum(-1)
    return _give(_nonnegative(divergence) * unit, p, q, log_p, log_q)


def js_divergence(
    p: Float[A, "*#batch n"] | None = None,
    q: Float[A, "*#batch n"] | None = None,
    *,
    log_p: Float[A, "*#batch n"] | None = None,
    log_q: Float[A, "*#batch n"] | None = None,
    base: float | None = None,
) -> Float[A, "*#batch"]:
    """Jensen-Shannon divergence (D(p ‖ m) + D(q ‖ m)) / 2 from the mixture m = (p + q) / 2.

    Args:
        p: probabilities of one distribution.
        q: probabilities of the other.
        log_p: natural logarithms of probabilities, instead of `p`.
        log_q: natural logarithms of probabilities, instead of `q`.
        base: unit of the result (2 for bits); nats by default.

    Returns:
        Divergences in [0, log 2]; the square root is a metric.

    Raises:
        TypeError: not of floating dtype, or a tensor with an array.
        ValueError: none or both forms of one distribution given, not normalised, NaN, shapes or
            devices that do not fit, empty last axis, or a bad base.

    Examples:
        >>> js_divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), base=2)
        tensor(1.)

    Source: Lin (1991), Divergence measures based on the Shannon entropy, eq. 4.1 with equal
    weights.
    """
    unit = log_base(base)
    first, second = _read_pair(p, q, log_p, log_q)
    mixture = _from_probabilities((first.supported_p() + second.supported_p()) / 2)
    divergence = (_kl_terms(first, mixture) + _kl_terms(second, mixture)).sum(-1) / 2
    return _give(_nonnegative(divergence) * unit, p, q, log_p, log_q)


def conditional_entropy(
    joint: Float[A, "*batch x y"] | None = None,
    *,
    log_joint: Float[A, "*batch x y"] | None = None,
    base: float | None = None,
) -> Float[A, "*batch"]:
    """Conditional entropy H(Y | X) = -Σ p(x, y) ln p(y | x), Y along the last axis.

    Args:
        joint: p(x, y), X along the last axis but one; the last two axes sum to 1. Transpose them
            for H(X | Y).
        log_joint: natural logarithms of p(x, y), instead of `joint`.
        base: unit of the result (2 for bits); nats by default.

    Returns:
        Entropies in [0, H(Y)].

    Raises:
        TypeError: not a tensor or array of floating dtype.
        ValueError: fewer than two axes, none or both forms given, not normalised, NaN, an empty
            distribution, or a bad base.

    Examples:
        >>> conditional_entropy(torch.tensor([[0.25, 0.25], [0.5, 0.0]]), base=2)
        tensor(0.5000)

    Source: Cover & Thomas (2006), Elements of Information Theory, 2nd ed., eq. 2.10-2.13.
    """
    unit = log_base(base)
    d = _read(joint, log_joint, "joint", axes=2, difference=True)
    given_x = d.log_p - _marginal(d, -1).log_p
    h = -torch.where(d.support, d.p * given_x, 0).sum((-2, -1))
    return _give(_nonnegative(h) * unit, joint, log_joint)


def mutual_information(
    joint: Float[A, "*batch x y"] | None = None,
    *,
    log_joint: Float[A, "*batch x y"] | None = None,
    base: float | None = None,
) -> Float[A, "*batch"]:
    """Mutual information I(X; Y) = Σ p(x, y) ln(p(x, y) / (p(x) p(y))) of a joint distribution.

    Args:
        joint: p(x, y); the last two axes sum to 1.
        log_joint: natural logarithms of p(x, y), instead of `joint`.
        base: unit of the result (2 for bits); nats by default.

    Returns:
        Mutual informations in [0, min(H(X), H(Y))].

    Raises:
        TypeError: not a tensor or array of floating dtype.
        ValueError: fewer than two axes, none or both forms given, not normalised, NaN, an empty
            distribution, or a bad base.

    Examples:
        >>> mutual_information(torch.tensor([[0.5, 0.0], [0.0, 0.5]]), base=2)
        tensor(1.)

    Source: Cover & Thomas (2006), Elements of Information Theory, 2nd ed., eq. 2.28.
    """
    unit = log_base(base)
    d = _read(joint, log_joint, "joint", axes=2, difference=True)
    x, y = _marginal(d, -1), _marginal(d, -2)
    independent = _Distribution(x.p * y.p, x.log_p + y.log_p, x.support & y.support)
    information = _kl_terms(d, independent).sum((-2, -1))
    return _give(_nonnegative(information) * unit, joint, log_joint)


@dataclass(frozen=True)
class _Distribution:
    """Probabilities and their logarithms, the latter 0 outside the support so that both stay
    finite and p ln p is 0 there, with gradient 0.
    """

    p: Tensor
    log_p: Tensor
    support: Tensor

    def supported_p(self) -> Tensor:
        """The probabilities, without a gradient outside the support."""
        return torch.where(self.support, self.p, 0)


def _from_probabilities(p: Tensor) -> _Distribution:
    support = p > 0
    return _Distribution(p, torch.where(support, p, 1).log(), support)


def _from_log_probabilities(log_p: Tensor) -> _Distribution:
    support = log_p > -math.inf
    return _Distribution(log_p.exp(), torch.where(support, log_p, 0), support)


def _read(
    probs: Tensor | np.ndarray | None,
    log_probs: Tensor | np.ndarray | None,
    name: str,
    log_name: str | None = None,
    axes: int = 1,
    difference: bool = False,
) -> _Distribution:
    """The one form that was given, checked, in float32 or better (float64 for a difference)."""
    log_name = log_name or f"log_{name}"
    if (probs is None) == (log_probs is None):
        what = "neither was" if probs is None else "both were"
        raise ValueError(f"give exactly one of {name} and {log_name}, but {what} given")
    if probs is not None:
        check_probabilities(probs, name, axes=axes)
        return _from_probabilities(_widen(probs, difference))
    assert log_probs is not None
    check_log_probabilities(log_probs, log_name, axes=axes)
    return _from_log_probabilities(_widen(log_probs, difference))


def _read_pair(
    p: Tensor | np.ndarray | None,
    q: Tensor | np.ndarray | None,
    log_p: Tensor | np.ndarray | None,
    log_q: Tensor | np.ndarray | None,
    difference: bool = True,
) -> tuple[_Distribution, _Distribution]:
    """Two distributions over the same outcomes, of the same kind and on the same device."""
    first = _read(p, log_p, "p", difference=difference)
    second = _read(q, log_q, "q", difference=difference)
    kinds = {isinstance(x, Tensor) for x in (p, log_p, q, log_q) if x is not None}
    if len(kinds) > 1:
        raise TypeError("both distributions must be tensors or both arrays, but they are mixed")
    if first.p.device != second.p.device:
        raise ValueError(
            "both distributions must be on one device, "
            f"but are on {first.p.device} and {second.p.device}"
        )
    shapes = f"{tuple(first.p.shape)} and {tuple(second.p.shape)}"
    if first.p.shape[-1] != second.p.shape[-1]:
        raise ValueError(f"both distributions must have as many outcomes, but have shapes {shapes}")
    try:
        torch.broadcast_shapes(first.p.shape, second.p.shape)
    except RuntimeError:
        raise ValueError(f"leading axes must broadcast, but shapes are {shapes}") from None
    return first, second


def _widen(x: Tensor | np.ndarray, difference: bool) -> Tensor:
    x = as_tensor(x)
    least = accumulator(x.device) if difference else torch.float32
    return x.to(torch.promote_types(x.dtype, least))


def _give(value: Tensor, *given: Tensor | np.ndarray | None) -> Any:
    """The result as the kind of array that was given, in float32 or the widest dtype given."""
    dtype = torch.float32
    for x in given:
        if x is not None:
            dtype = torch.promote_types(dtype, as_tensor(x[:0]).dtype)
    value = value.to(dtype)
    return value.numpy() if any(isinstance(x, np.ndarray) for x in given) else value


def _nonnegative(x: Tensor) -> Tensor:
    """Zero for what rounding put below it; unlike a clamp this keeps the gradient."""
    return torch.where(x <= 0, x - x.detach(), x)


def _shannon(d: _Distribution) -> Tensor:
    return -(d.p * d.log_p).sum(-1)


def _kl_terms(p: _Distribution, q: _Distribution) -> Tensor:
    """Terms p ln(p / q) - p + q >= 0; over normalised distributions the additions sum to 0."""
    difference = q.supported_p() - p.supported_p()
    return torch.where(p.support, p.p * (p.log_p - q.log_p), 0) + difference


def _power_gap(d: _Distribution, q: float) -> Tensor:
    """|1 - Σ p^q| for a normalised p, as a sum of non-negative terms that never cancel."""
    return -((min(q, 1) * d.log_p).exp() * (abs(q - 1) * d.log_p).expm1()).sum(-1)


def _marginal(joint: _Distribution, axis: int) -> _Distribution:
    return _from_probabilities(joint.supported_p().sum(axis, keepdim=True))
