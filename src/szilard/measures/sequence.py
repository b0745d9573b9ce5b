"""Along a sequence, with masks: averages of per-token values, and the entropy of its own tokens."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from szilard.measures._checks import check_floating, check_mask, log_base


def masked_mean(
    values: Float[Tensor, "*batch tokens"], mask: Bool[Tensor, "*batch tokens"] | None = None
) -> Float[Tensor, "*batch"]:
    """Mean of the positions that count; 0 where none does.

    Args:
        values: one number a token, any unit.
        mask: True where a token counts; what stands elsewhere (NaN) is never read.

    Returns:
        The means, float32 or better, in the unit of values.

    Raises:
        TypeError: values are not floating, mask not boolean.
        ValueError: no tokens at all, or shapes that differ.

    Examples:
        >>> import torch
        >>> masked_mean(torch.tensor([1.0, 3.0, 100.0]), torch.tensor([True, True, False]))
        tensor(2.)

    Source:
        Arithmetic mean.
    """
    kept, counts = _kept(values, mask)
    return _ratio(kept.sum(-1), counts.sum(-1), values.dtype)


def sliding_window_mean(
    values: Float[Tensor, "*batch tokens"],
    window: int,
    mask: Bool[Tensor, "*batch tokens"] | None = None,
    *,
    align: Literal["causal", "centered"] = "causal",
) -> Float[Tensor, "*batch tokens"]:
    """Mean over a window around each position, as long as the sequence itself.

    Args:
        values: one number a token, any unit.
        window: how many positions a window spans, >= 1. It is cut at the ends of the sequence, so
            that means near them are over fewer positions, never over padding.
        mask: True where a token counts; a position whose window holds no counted token gives 0.
        align: "causal" ends the window at its position (t - window + 1 .. t); "centered" spans
            t - window // 2 .. t + (window - 1) // 2, symmetric for odd windows.

    Returns:
        The means, float32 or better, in the unit of values.

    Raises:
        TypeError: values are not floating, mask not boolean.
        ValueError: no tokens at all, shapes that differ, window < 1, or an unknown align.

    Examples:
        >>> import torch
        >>> sliding_window_mean(torch.tensor([0.0, 2.0, 4.0, 6.0]), 2)
        tensor([0., 1., 3., 5.])
        >>> sliding_window_mean(torch.tensor([0.0, 2.0, 4.0, 6.0]), 3, align="centered")
        tensor([1., 2., 4., 5.])

    Source:
        Moving average by differences of cumulative sums, in float64.
    """
    ahead = _ahead(window, align)
    kept, counts = _kept(values, mask)
    tokens = values.shape[-1]
    at = torch.arange(tokens, device=values.device) + ahead + 1
    stop, start = at.clamp(max=tokens), (at - window).clamp(min=0, max=tokens)
    total, count = (_cumulative(x) for x in (kept, counts))
    return _ratio(
        total[..., stop] - total[..., start], count[..., stop] - count[..., start], values.dtype
    )


def running_mean(
    values: Float[Tensor, "*batch tokens"], mask: Bool[Tensor, "*batch tokens"] | None = None
) -> Float[Tensor, "*batch tokens"]:
    """Mean of every prefix: position t holds the mean of the counted positions 0 .. t.

    Args:
        values: one number a token, any unit.
        mask: True where a token counts; a prefix with no counted token gives 0.

    Returns:
        The means, float32 or better, in the unit of values.

    Raises:
        TypeError: values are not floating, mask not boolean.
        ValueError: no tokens at all, or shapes that differ.

    Examples:
        >>> import torch
        >>> running_mean(torch.tensor([1.0, 3.0, 5.0]))
        tensor([1., 2., 3.])

    Source:
        Cumulative sums, in float64.
    """
    kept, counts = _kept(values, mask)
    return _ratio(kept.cumsum(-1), counts.cumsum(-1), values.dtype)


def sliding_window_token_entropy(
    tokens: Integer[Tensor, "*batch tokens"],
    window: int,
    mask: Bool[Tensor, "*batch tokens"] | None = None,
    *,
    align: Literal["causal", "centered"] = "causal",
    base: float | None = None,
) -> Float[Tensor, "*batch tokens"]:
    """Entropy of the tokens themselves, by how often each occurs in a window around each position.

    0 where a text repeats one token, log(window) where no token of a window occurs twice. It is the
    entropy of what was written, not of the distribution it was drawn from.

    Args:
        tokens: token ids, any integers.
        window: how many positions a window spans, >= 1. It is cut at the ends of the sequence.
        mask: True where a token counts; a window holds the counted ones of its positions, and one
            that holds none gives 0.
        align: "causal" ends the window at its position (t - window + 1 .. t); "centered" spans
            t - window // 2 .. t + (window - 1) // 2, symmetric for odd windows.
        base: base of the logarithms; None for nats, 2 for bits.

    Returns:
        The entropies, float32. Counts are kept as integers: they do not drift along the sequence.

    Raises:
        TypeError: tokens are not integers, mask not boolean.
        ValueError: no tokens at all, shapes that differ, window < 1, an unknown align, or a base
            out of range.

    Examples:
        >>> import torch
        >>> tokens = torch.tensor([7, 7, 7, 8, 9, 7])
        >>> sliding_window_token_entropy(tokens, 4, base=2.0)
        tensor([0.0000, 0.0000, 0.0000, 0.8113, 1.5000, 1.5000])

    Source:
        Shannon (1948), section 6, of the empirical distribution in each window.
    """
    unit, ahead = log_base(base), _ahead(window, align)
    if not isinstance(tokens, Tensor):
        raise TypeError(f"tokens must be a torch.Tensor, but is {type(tokens)}")
    if tokens.dtype.is_floating_point or tokens.dtype.is_complex or tokens.dtype == torch.bool:
        raise TypeError(f"tokens must have an integer dtype, but has {tokens.dtype}")
    if tokens.ndim == 0 or tokens.shape[-1] == 0:
        raise ValueError(f"tokens must hold a token at least, but has shape {tuple(tokens.shape)}")
    if mask is not None:
        check_mask(mask, tokens.shape)
        mask = mask.reshape(-1, mask.shape[-1])
    from szilard.kernels.windows import window_entropies

    rows = tokens.reshape(-1, tokens.shape[-1])
    return (window_entropies(rows, mask, window, ahead) * unit).float().view(tokens.shape)


def _ahead(window: int, align: str) -> int:
    """How many positions a window goes on after the one it stands for."""
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"window must be an integer of at least 1, but is {window!r}")
    if align not in {"causal", "centered"}:
        raise ValueError(f'align must be "causal" or "centered", but is {align!r}')
    return 0 if align == "causal" else (window - 1) // 2


def _kept(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Values with 0 where they don't count, and 1 or 0 for how much they count, both wide."""
    check_floating(values, "values")
    if mask is not None:
        check_mask(mask, values.shape)
    wide = values.to(torch.float32 if values.device.type == "mps" else torch.float64)
    if mask is None:
        return wide, torch.ones_like(wide)
    return torch.where(mask, wide, 0), mask.to(wide.dtype)


def _cumulative(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x.cumsum(-1), (1, 0))


def _ratio(total: Tensor, count: Tensor, dtype: torch.dtype) -> Tensor:
    # Nothing counted: the total is rounding left over from the cumulative sums.
    mean = torch.where(count > 0, total, 0) / count.clamp(min=1)
    return mean.to(torch.promote_types(dtype, torch.float32))
