"""Group-relative advantages."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def group_advantages(
    rewards: Float[Tensor, "*prompts samples"], eps: float = 1e-6
) -> Float[Tensor, "*prompts samples"]:
    """Rewards centred and scaled within each prompt's group of samples, `(r - mean) / (std + eps)`.

    A group whose rewards are all equal has advantage exactly 0: that is decided before dividing, since the
    rounding error of `r - mean` over that of `std` is noise of order one.

    Args:
        rewards: one row of samples a prompt.
        eps: added to the standard deviation (unbiased), reward units.

    Returns:
        Advantages, dimensionless, float32 or better.

    Raises:
        ValueError: fewer than two samples a group, or rewards that are not finite.

    Examples:
        >>> group_advantages(torch.tensor([[1.0, 0.0], [0.1, 0.1]]))
        tensor([[ 0.7071, -0.7071],
                [ 0.0000,  0.0000]])

    Source: Shao et al., arXiv 2402.03300, section 4.1.2 (GRPO, outcome supervision).
    """
    if rewards.dim() == 0 or rewards.shape[-1] < 2:
        raise ValueError(
            f"rewards: shape {tuple(rewards.shape)}; a group needs at least two samples"
        )
    if not rewards.isfinite().all():
        raise ValueError("rewards: holds values that are not finite")
    rewards = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    centred = rewards - rewards.mean(-1, keepdim=True)
    scaled = centred / (rewards.std(-1, keepdim=True) + eps)
    unanimous = rewards.amax(-1, keepdim=True) == rewards.amin(-1, keepdim=True)
    return scaled.masked_fill(unanimous, 0.0)
