"""Averages of per-token values along a sequence, with masks: whole, windowed, prefix by prefix."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from szilard.measures._checks import check_floating, check_mask


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
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"window must be an integer of at least 1, but is {window!r}")
    if align not in {"causal", "centered"}:
        raise ValueError(f'align must be "causal" or "centered", but is {align!r}')
    kept, counts = _kept(values, mask)
    ahead = 0 if align == "causal" else (window - 1) // 2
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
