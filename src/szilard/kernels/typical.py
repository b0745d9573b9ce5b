"""Weighted selection: the threshold at which a given share of weight has been collected.

A radix selection on the bit patterns of the keys. Non-negative IEEE floats order as their bit
patterns do, so one histogram of weights over the leading bits tells which bin holds the threshold,
and the following bits refine it: a few passes over the row, no sort, no gather.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

# 14 bits resolve a float32 key to 1/32 of an octave in the first pass, which leaves few keys for
# the next, and their histogram (128 KiB) still fits a core's second-level cache.
_DIGIT_BITS = 14

SLACK = 1e-9
"""Weights that reach a share but for this part of it count as reaching it: sums of float64 stay
well within it, float32 probabilities are a hundred times coarser."""


@cache
def _compiled() -> Any:
    from numba import njit

    @njit(cache=True, nogil=True)
    def select(bits, key_bits, digit_bits, weight, share, threshold):  # type: ignore[no-untyped-def]
        rows, size = bits.shape
        histogram = np.empty(1 << digit_bits, dtype=np.float64)
        for row in range(rows):
            prefix = np.uint64(0)
            remaining = key_bits
            below = 0.0
            target = 0.0
            while remaining > 0:
                width = min(digit_bits, remaining)
                above = np.uint64(remaining)
                remaining -= width
                shift = np.uint64(remaining)
                low = np.uint64((1 << width) - 1)
                histogram[: 1 << width] = 0.0
                if target == 0.0:
                    for i in range(size):
                        histogram[np.uint64(bits[row, i]) >> shift] += weight[row, i]
                    target = share * histogram[: 1 << width].sum()
                else:
                    for i in range(size):
                        key = np.uint64(bits[row, i])
                        if key >> above == prefix:
                            histogram[(key >> shift) & low] += weight[row, i]
                chosen = 0
                passed = below
                for digit in range(1 << width):
                    if histogram[digit] > 0.0:
                        chosen = digit
                        below = passed
                        passed += histogram[digit]
                        if passed >= target:
                            break
                prefix = (prefix << np.uint64(width)) | np.uint64(chosen)
            threshold[row] = prefix

    return select


def weighted_threshold(
    keys: Float[Tensor, "rows size"], weights: Float[Tensor, "rows size"], share: float
) -> Float[Tensor, " rows"]:
    """The smallest key c of each row such that the keys <= c hold `share` of the row's weight.

    Args:
        keys: non-negative, may hold `+inf` where the weight is 0; float32 or float64.
        weights: non-negative, of the keys' dtype; need not sum to 1.
        share: in (0, 1).

    Returns:
        One of the row's own keys for each row, in the keys' dtype.

    Examples:
        >>> weighted_threshold(torch.tensor([[0.3, 0.1, 0.2]]), torch.tensor([[0.5, 0.1, 0.4]]), 0.4)
        tensor([0.2000])
    """
    share *= 1.0 - SLACK
    if keys.device.type != "cpu":
        return _sorted_threshold(keys, weights, share)
    unsigned = np.uint32 if keys.dtype == torch.float32 else np.uint64
    bits = keys.contiguous().numpy().view(unsigned)
    threshold = np.empty(keys.shape[0], dtype=unsigned)
    _compiled()(
        bits, 8 * bits.itemsize, _DIGIT_BITS, weights.contiguous().numpy(), share, threshold
    )
    return torch.from_numpy(threshold.view(f"f{bits.itemsize}"))


def _sorted_threshold(
    keys: Float[Tensor, "rows size"], weights: Float[Tensor, "rows size"], share: float
) -> Float[Tensor, " rows"]:
    """The same by a sort, for devices without the compiled selection."""
    ordered, order = keys.sort(dim=-1)
    collected = weights.gather(-1, order).double().cumsum(dim=-1)
    position = (collected < share * collected[:, -1:]).sum(dim=-1, keepdim=True)
    return ordered.gather(-1, position.clamp_(max=keys.shape[-1] - 1)).squeeze(-1)
