"""What the shared argument checks let through and what they refuse."""

import math

import numpy as np
import pytest
import torch

from szilard.measures._checks import (
    check_finite,
    check_log_probabilities,
    check_logits,
    check_mask,
    check_probabilities,
    log_base,
)

INF = math.inf


@pytest.mark.parametrize(("base", "factor"), [(None, 1), (math.e, 1), (2, 1 / math.log(2))])
def test_base_factor_is_the_reciprocal_logarithm(base: float | None, factor: float) -> None:
    assert log_base(base) == pytest.approx(factor, rel=1e-15)


@pytest.mark.parametrize("base", [0, 1, 1.0, -3, math.nan, INF])
def test_no_logarithm_has_that_base(base: float) -> None:
    with pytest.raises(ValueError, match="base must be a positive finite number other than 1"):
        log_base(base)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_minus_infinity_and_extreme_logits_are_legal(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, -INF], [-INF, -INF, 0.0]], dtype=dtype)
    check_logits(logits)
    check_logits(logits.double().numpy())
    check_logits(logits[:0])
    check_logits(logits.requires_grad_())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.0, math.nan], "scores .* holds NaN"),
        ([0.0, INF], r"scores .* holds \+inf"),
        ([-INF, -INF], "scores .* holds a row of -inf alone"),
        ([], "the last axis of scores is empty"),
    ],
)
def test_logits_without_a_distribution_are_refused(row: list[float], message: str) -> None:
    for logits in (torch.tensor([row]), np.array([row])):
        with pytest.raises(ValueError, match=message):
            check_logits(logits, "scores")


def test_integer_logits_are_refused() -> None:
    for logits in (torch.tensor([1, 2]), np.array([1, 2])):
        with pytest.raises(TypeError, match="logits must have a floating-point dtype"):
            check_logits(logits)


def test_tolerance_follows_the_resolution_of_the_dtype() -> None:
    thirds = torch.full((3,), 1 / 3, dtype=torch.float64)
    check_probabilities(thirds.bfloat16())
    check_log_probabilities(torch.full((1000,), -math.log(1000)).bfloat16())
    logits = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    check_probabilities(logits.softmax(-1))
    check_log_probabilities(logits.log_softmax(-1))
    with pytest.raises(ValueError, match=r"probs must sum to 1, but a sum is off by 3e-06"):
        check_probabilities(thirds + 1e-6)
    check_probabilities(thirds + 1e-6, atol=1e-5)
    with pytest.raises(ValueError, match="log_probs must be normalised"):
        check_log_probabilities(thirds.log() + 1e-5)


def test_a_joint_distribution_spans_its_last_two_axes() -> None:
    joint = torch.full((2, 3, 4), 1 / 12)
    check_probabilities(joint, axes=2)
    check_log_probabilities(joint.log(), axes=2)
    with pytest.raises(ValueError, match="sum to 1"):
        check_probabilities(joint)
    with pytest.raises(ValueError, match="2 non-empty trailing axes"):
        check_probabilities(torch.zeros(0, 4), axes=2)


@pytest.mark.parametrize("value", [math.nan, INF, -INF])
def test_finite_means_neither_nan_nor_infinite(value: float) -> None:
    check_finite(np.ones(3), "series")
    for x in (torch.tensor([0.0, value]), np.array([0.0, value])):
        with pytest.raises(ValueError, match="series must be finite, but holds 1 NaN or inf"):
            check_finite(x, "series")


def test_masks_are_boolean_and_fit() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    check_mask(mask, (2, 3))
    check_mask(mask, (5, 2, 3), broadcast=True)
    check_mask(mask[:, :1], (2, 3), broadcast=True)
    with pytest.raises(TypeError, match=r"mask must be a boolean torch\.Tensor"):
        check_mask(mask.long(), (2, 3))
    with pytest.raises(ValueError, match=r"valid must have shape \(5, 2, 3\)"):
        check_mask(mask, (5, 2, 3), "valid")
    for shape in ((3,), (2, 4)):
        with pytest.raises(ValueError, match="mask must broadcast to shape"):
            check_mask(mask, shape, broadcast=True)
