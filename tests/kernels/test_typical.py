"""The weighted selection against a plain sort."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from szilard.kernels.typical import _sorted_threshold, weighted_threshold


def plain(keys, weights, share):
    order = np.argsort(keys, kind="stable")
    collected = weights[order].cumsum()
    reached = np.flatnonzero(collected >= share * (1 - 1e-9) * collected[-1])
    return keys[order][reached[0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(st.integers(1, 200), st.floats(0.001, 0.999), st.integers(0, 10_000), st.booleans())
def test_the_threshold_is_the_first_key_of_the_sorted_row_to_reach_the_share(
    dtype, size, share, seed, coarse
):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.rand(3, size, generator=generator, dtype=dtype) * 10
    keys = keys.round() if coarse else keys * 10 ** keys.round()
    # Integer weights sum exactly in any order, so both sides see the same masses.
    weights = torch.randint(0, 50, (3, size), generator=generator).to(dtype)
    weights[:, 0] += 1
    expected = [plain(k, w, share) for k, w in zip(keys.numpy(), weights.numpy(), strict=True)]
    assert weighted_threshold(keys, weights, share).tolist() == expected
    assert _sorted_threshold(keys, weights, share * (1 - 1e-9)).tolist() == expected


def test_keys_at_infinity_without_weight_are_never_chosen():
    keys = torch.tensor([[torch.inf, 2.0, 1.0, torch.inf]])
    weights = torch.tensor([[0.0, 0.5, 0.5, 0.0]])
    assert weighted_threshold(keys, weights, 0.9999999).item() == 2.0


def test_an_empty_batch_has_no_thresholds():
    assert weighted_threshold(torch.zeros(0, 5), torch.zeros(0, 5), 0.5).shape == (0,)


def test_zero_is_a_key_like_any_other():
    assert weighted_threshold(torch.zeros(1, 4), torch.ones(1, 4), 0.5).item() == 0.0
