"""Checks that every measure runs on its arguments before any work is done."""

import math

import numpy as np
import torch
from torch import Tensor


def log_base(base: float | None) -> float:
    """The factor that turns nats into the unit of `base`: multiply by it.

    Args:
        base: base of the logarithm (2 for bits, 10 for hartleys); None for nats.

    Returns:
        1 / ln(base).

    Raises:
        ValueError: base is not a positive finite number other than 1.

    Examples:
        >>> round(log_base(2) * math.log(8), 12)
        3.0
    """
    if base is None:
        return 1.0
    if not (base > 0 and base != 1 and math.isfinite(base)):
        raise ValueError(f"base must be a positive finite number other than 1, but is {base!r}")
    return 1.0 / math.log(base)


def as_tensor(x: Tensor | np.ndarray) -> Tensor:
    """A tensor as it is; an array as a CPU tensor of its own, whatever its strides or byte order.

    Examples:
        >>> as_tensor(np.arange(3.0)[::-1])
        tensor([2., 1., 0.], dtype=torch.float64)
    """
    if isinstance(x, Tensor):
        return x
    return torch.from_numpy(np.array(x, dtype=x.dtype.newbyteorder("="), order="C"))


def check_floating(x: Tensor | np.ndarray, name: str) -> None:
    """Refuses anything but a real floating-point tensor or array with at least one axis.

    Raises:
        TypeError: x is no tensor or array, or its dtype is not floating.
        ValueError: x has no axis, or its last axis is empty.
    """
    if isinstance(x, Tensor):
        floating = x.dtype.is_floating_point
    elif isinstance(x, np.ndarray):
        floating = np.issubdtype(x.dtype, np.floating)
    else:
        raise TypeError(f"{name} must be a torch.Tensor or numpy.ndarray, but is {type(x)}")
    if not floating:
        raise TypeError(f"{name} must have a floating-point dtype, but has {x.dtype}")
    if x.ndim == 0:
        raise ValueError(f"{name} must have at least one axis, but is a scalar")
    if x.shape[-1] == 0:
        raise ValueError(f"the last axis of {name} is empty: its shape is {tuple(x.shape)}")


def check_finite(x: Tensor | np.ndarray, name: str) -> None:
    """Refuses NaN and infinities.

    Raises:
        TypeError: x is no tensor or array, or its dtype is not floating.
        ValueError: x has no axis, an empty last axis, or an entry that is not finite.
    """
    check_floating(x, name)
    finite = torch.isfinite(x) if isinstance(x, Tensor) else np.isfinite(x)
    if not bool(finite.all()):
        raise ValueError(f"{name} must be finite, but holds {int((~finite).sum())} NaN or inf")


def check_logits(logits: Tensor | np.ndarray, name: str = "logits") -> None:
    """Refuses logits that define no distribution; `-inf` (probability zero) is legal.

    Args:
        logits: unnormalised log-probabilities, the last axis is the distribution.
        name: the argument's name in the error.

    Raises:
        TypeError: logits is no tensor or array, or its dtype is not floating.
        ValueError: an empty last axis, NaN, +inf, or a row of `-inf` alone.
    """
    check_floating(logits, name)
    # NaN and +inf propagate through a maximum, and only an all -inf row has the maximum -inf:
    # one reduction sees all three.
    top = logits.detach().amax(-1) if isinstance(logits, Tensor) else as_tensor(logits.max(-1))
    if bool(torch.isfinite(top).all()):
        return
    what = (
        "NaN" if top.isnan().any() else "+inf" if (top == math.inf).any() else "a row of -inf alone"
    )
    raise ValueError(f"{name} must be finite or -inf with a finite entry a row, but holds {what}")


def check_probabilities(
    p: Tensor | np.ndarray,
    name: str = "probs",
    atol: float = 1e-6,
    axes: int = 1,
) -> None:
    """Refuses what is not a probability distribution over the last axis (or axes).

    Args:
        p: probabilities, the last `axes` axes are the distribution.
        name: the argument's name in the error.
        atol: how far a sum may be from 1. What the dtype and a softmax in it can do counts where
            it is coarser (bfloat16 probabilities cannot sum to 1 within 1e-6).
        axes: how many trailing axes one distribution spans (2 for a joint distribution).

    Raises:
        TypeError: p is no tensor or array, or its dtype is not floating.
        ValueError: an empty distribution, NaN, a negative entry, or a sum that is not 1.
    """
    check_floating(p, name)
    _check_axes(p, name, axes)
    p = as_tensor(p).detach()
    # The negation catches NaN too.
    if not bool((p >= 0).all()):
        raise ValueError(f"{name} must be non-negative and not NaN, but its minimum is {p.min()}")
    p = p.flatten(-axes)
    off = (p.sum(-1, dtype=torch.promote_types(p.dtype, torch.float32)) - 1).abs()
    if bool((off > max(atol, _resolution(p, 1))).any()):
        raise ValueError(f"{name} must sum to 1, but a sum is off by {off.max().item():.3g}")


def check_log_probabilities(
    log_p: Tensor | np.ndarray,
    name: str = "log_probs",
    atol: float = 1e-6,
    axes: int = 1,
) -> None:
    """Refuses what is not the logarithm of a distribution over the last axis (or axes).

    Args:
        log_p: natural logarithms of probabilities, `-inf` for probability zero.
        name: the argument's name in the error.
        atol: how far a logsumexp may be from 0. What the dtype and a log-softmax in it can do counts
            where it is coarser.
        axes: how many trailing axes one distribution spans (2 for a joint distribution).

    Raises:
        TypeError: log_p is no tensor or array, or its dtype is not floating.
        ValueError: an empty distribution, NaN, +inf, or a logsumexp that is not 0.
    """
    check_floating(log_p, name)
    _check_axes(log_p, name, axes)
    log_p = as_tensor(log_p).detach().flatten(-axes)
    check_logits(log_p, name)
    off = log_p.to(torch.promote_types(log_p.dtype, torch.float32)).logsumexp(-1).abs()
    # Rounding each log p by eps |log p| moves the sum by eps times the entropy, at most ln n.
    if bool((off > max(atol, _resolution(log_p, 1 + math.log(log_p.shape[-1])))).any()):
        raise ValueError(
            f"{name} must be normalised (logsumexp 0; see torch.log_softmax), "
            f"but a logsumexp is off by {off.max().item():.3g}"
        )


def _resolution(x: Tensor, roundings: float) -> float:
    """How far from 1 the sum of a normalised last axis can be: by so many roundings of x to its
    dtype, by its smallest step in each entry (6e-8 in float16), and by a softmax that adds the axis
    up in float32 or better, in no more than eight lanes.
    """
    kind, wide = torch.finfo(x.dtype), torch.finfo(torch.promote_types(x.dtype, torch.float32))
    step = kind.smallest_normal * kind.eps
    return kind.eps * roundings + x.shape[-1] * (step / 2 + wide.eps / 16)


def check_mask(
    mask: Tensor,
    shape: tuple[int, ...],
    name: str = "mask",
    *,
    broadcast: bool = False,
) -> None:
    """Refuses a mask that is not boolean or does not fit; True means the entry counts.

    Args:
        mask: the mask.
        shape: shape of what it masks.
        name: the argument's name in the error.
        broadcast: whether a mask that broadcasts to `shape` will do.

    Raises:
        TypeError: mask is no boolean tensor.
        ValueError: mask does not have (or broadcast to) `shape`.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        what = mask.dtype if isinstance(mask, Tensor) else type(mask)
        raise TypeError(f"{name} must be a boolean torch.Tensor (True = counts), but is {what}")
    shape = tuple(shape)
    fits = tuple(mask.shape) == shape
    if broadcast and not fits:
        try:
            fits = tuple(torch.broadcast_shapes(mask.shape, shape)) == shape
        except RuntimeError:
            fits = False
    if not fits:
        verb = "broadcast to" if broadcast else "have"
        raise ValueError(f"{name} must {verb} shape {shape}, but has shape {tuple(mask.shape)}")


def _check_axes(p: Tensor | np.ndarray, name: str, axes: int) -> None:
    if p.ndim < axes or 0 in p.shape[p.ndim - axes :]:
        raise ValueError(
            f"{name} must have {axes} non-empty trailing axes, but has shape {tuple(p.shape)}"
        )
