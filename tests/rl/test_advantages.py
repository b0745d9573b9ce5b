import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from szilard.rl import group_advantages


@given(st.floats(-1e3, 1e3), st.integers(2, 32))
def test_a_unanimous_group_has_advantage_exactly_zero(reward, samples):
    assert not group_advantages(torch.full((3, samples), reward)).any()


def test_groups_are_standardised_one_by_one():
    rewards = torch.rand(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    advantages = group_advantages(rewards, eps=0.0)
    torch.testing.assert_close(
        advantages.mean(-1), torch.zeros(5, dtype=torch.float64), atol=1e-14, rtol=0
    )
    torch.testing.assert_close(advantages.std(-1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(group_advantages(3 * rewards - 7, eps=0.0), advantages)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [(torch.ones(4, 1), "two samples"), (torch.tensor([[1.0, math.nan]]), "not finite")],
)
def test_bad_input_is_named(rewards, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(rewards)
