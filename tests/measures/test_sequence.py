"""Means and entropies along a sequence against loops that read as their definitions."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from szilard.measures.sequence import (
    masked_mean,
    running_mean,
    sliding_window_mean,
    sliding_window_token_entropy,
)

Align = Literal["causal", "centered"]


def case(tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, tokens, generator=generator, dtype=torch.float64)
    return values, torch.rand(2, tokens, generator=generator) < 0.6


def mean(values: Tensor, mask: Tensor) -> float:
    kept = values[mask].tolist()
    return math.fsum(kept) / len(kept) if kept else 0.0


cases = st.builds(case, st.integers(1, 30), st.integers(0, 10**6))


@given(cases)
def test_masked_mean_is_the_mean_of_what_counts(given_case: tuple[Tensor, Tensor]) -> None:
    values, mask = given_case
    exact = torch.tensor([mean(v, m) for v, m in zip(values, mask, strict=True)])
    torch.testing.assert_close(masked_mean(values, mask), exact.double(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(masked_mean(values), values.mean(-1))


@given(cases, st.integers(1, 40), st.sampled_from(["causal", "centered"]))
def test_sliding_window_mean_is_the_mean_over_its_window(
    given_case: tuple[Tensor, Tensor], window: int, align: Align
) -> None:
    values, mask = given_case
    got = sliding_window_mean(values, window, mask, align=align)
    assert got.shape == values.shape
    ahead = 0 if align == "causal" else (window - 1) // 2
    for t in range(values.shape[-1]):
        rows = slice(max(0, t + ahead - window + 1), t + ahead + 1)
        for b in range(2):
            assert got[b, t].item() == pytest.approx(
                mean(values[b, rows], mask[b, rows]), rel=1e-9, abs=1e-12
            )


@given(cases)
def test_running_mean_is_a_causal_window_that_never_forgets(
    given_case: tuple[Tensor, Tensor],
) -> None:
    values, mask = given_case
    tokens = values.shape[-1]
    running = running_mean(values, mask)
    torch.testing.assert_close(running, sliding_window_mean(values, tokens, mask))
    torch.testing.assert_close(running[:, -1], masked_mean(values, mask))


@given(cases)
def test_a_window_of_one_gives_the_values_that_count(given_case: tuple[Tensor, Tensor]) -> None:
    values, mask = given_case
    for align in ("causal", "centered"):
        got = sliding_window_mean(values, 1, mask, align=align)
        torch.testing.assert_close(got, torch.where(mask, values, 0), rtol=0, atol=1e-12)


def test_a_centered_odd_window_commutes_with_reversal() -> None:
    values, mask = case(20, 0)
    forward = sliding_window_mean(values, 5, mask, align="centered")
    backward = sliding_window_mean(values.flip(-1), 5, mask.flip(-1), align="centered")
    torch.testing.assert_close(forward, backward.flip(-1))


def test_long_sequences_do_not_drift() -> None:
    # Differences of float32 cumulative sums would be off by 1e-2 here.
    values = torch.full((200_000,), 1000.1)
    got = sliding_window_mean(values, 8)
    assert got.dtype == torch.float32
    assert torch.equal(got, values)


def test_what_does_not_count_is_never_read() -> None:
    values, mask = case(12, 1)
    dirty = torch.where(mask, values, torch.nan).requires_grad_()
    for function in (masked_mean, running_mean, lambda v, m: sliding_window_mean(v, 3, m)):
        got = function(dirty, mask)
        assert torch.equal(got, function(values, mask))
        (gradient,) = torch.autograd.grad(got.sum(), dirty)
        assert gradient.isfinite().all()
        assert (gradient[~mask] == 0).all()


def test_gradients_pass_gradcheck() -> None:
    values, mask = case(7, 2)
    values.requires_grad_()
    for function in (
        lambda v: masked_mean(v, mask),
        lambda v: running_mean(v, mask),
        lambda v: sliding_window_mean(v, 3, mask),
        lambda v: sliding_window_mean(v, 4, align="centered"),
    ):
        assert torch.autograd.gradcheck(function, (values,))


def test_low_precision_comes_out_as_float32_and_batches_may_be_empty() -> None:
    assert running_mean(torch.ones(3, dtype=torch.bfloat16)).dtype == torch.float32
    assert masked_mean(torch.ones(0, 3)).shape == (0,)
    assert sliding_window_mean(torch.ones(0, 3), 2).shape == (0, 3)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.integers(1, 40),
    st.sampled_from(["causal", "centered"]),
)
def test_token_entropy_is_that_of_the_counts_in_the_window(
    tokens: list[int], window: int, align: Align
) -> None:
    got = sliding_window_token_entropy(torch.tensor(tokens), window, align=align, base=2.0)
    ahead = 0 if align == "causal" else (window - 1) // 2
    for t in range(len(tokens)):
        inside = tokens[max(0, t + ahead - window + 1) : t + ahead + 1]
        shares = [n / len(inside) for n in Counter(inside).values()]
        exact = -math.fsum(p * math.log2(p) for p in shares)
        assert got[t].item() == pytest.approx(exact, rel=1e-6, abs=1e-7)


def test_token_entropy_does_not_depend_on_the_names_of_tokens() -> None:
    tokens = torch.randint(0, 9, (2, 3, 40), generator=torch.Generator().manual_seed(0))
    renamed = torch.randperm(9, generator=torch.Generator().manual_seed(1))[tokens]
    got = sliding_window_token_entropy(tokens, 7)
    assert got.dtype == torch.float32
    assert torch.equal(got, sliding_window_token_entropy(renamed, 7))
    assert torch.equal(got[1, 2], sliding_window_token_entropy(tokens[1, 2], 7))


def test_token_entropy_looks_past_what_does_not_count() -> None:
    tokens = torch.tensor([1, -100, 1, 2, -100, -100, -100])
    got = sliding_window_token_entropy(tokens, 3, tokens >= 0, base=2.0)
    assert got.tolist() == [0, 0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda v: sliding_window_mean(v, 0), "window must be an integer of at least 1"),
        (lambda v: sliding_window_mean(v, True), "window must be an integer"),
        (lambda v: sliding_window_mean(v, 2, align="left"), "align must be"),  # type: ignore[arg-type]
        (lambda v: masked_mean(v, torch.ones(3, dtype=torch.bool)), "mask must have"),
        (lambda v: running_mean(v[:, :0]), "values is empty"),
        (lambda v: sliding_window_token_entropy(v.long(), 0), "window must be an integer"),
        (lambda v: sliding_window_token_entropy(v.long(), 2, align=0), "align must be"),  # type: ignore[arg-type]
        (lambda v: sliding_window_token_entropy(v.long(), 2, base=1.0), "base"),
        (lambda v: sliding_window_token_entropy(v[:, :0].long(), 2), "tokens must hold"),
        (
            lambda v: sliding_window_token_entropy(v.long(), 2, torch.ones(3, dtype=torch.bool)),
            "mask must have",
        ),
    ],
)
@pytest.mark.usefixtures("unhooked")
def test_bad_arguments_are_named(call: Callable[[Tensor], Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call(torch.zeros(2, 4))


@pytest.mark.usefixtures("unhooked")
def test_wrong_dtypes_are_named() -> None:
    with pytest.raises(TypeError, match="values must have a floating-point dtype"):
        masked_mean(torch.zeros(3, dtype=torch.long))
    with pytest.raises(TypeError, match="mask must be a boolean"):
        masked_mean(torch.zeros(3), torch.ones(3))
    with pytest.raises(TypeError, match="tokens must have an integer dtype"):
        sliding_window_token_entropy(torch.zeros(3), 2)
    with pytest.raises(TypeError, match=r"tokens must be a torch\.Tensor"):
        sliding_window_token_entropy([1, 2], 2)  # type: ignore[arg-type]
