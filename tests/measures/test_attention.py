"""Attention entropy against definitions, with every kind of mask."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical
from torch.utils._python_dispatch import TorchDispatchMode

from szilard.kernels import attention
from szilard.measures.attention import attention_entropy, attention_entropy_from_qk


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weights_of(
    query: Tensor, key: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    groups = query.shape[-3] // key.shape[-3]
    key = key.repeat_interleave(groups, -3)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = torch.where(mask, scores, -torch.inf)
    return scores.softmax(-1)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_BLOCK_ELEMENTS", 50)


def test_uniform_attention_has_the_logarithm_of_its_keys() -> None:
    weights = torch.full((2, 3, 4, 8), 1 / 8)
    for got, exact in (
        (attention_entropy(weights, base=2.0), 3),
        (attention_entropy(weights, normalize=True), 1),
    ):
        torch.testing.assert_close(got, torch.full((2, 3, 4), float(exact)), rtol=1e-6, atol=0)


def test_attention_to_one_key_has_no_entropy() -> None:
    weights = torch.eye(5).expand(2, 5, 5)
    assert (attention_entropy(weights) == 0).all()
    assert (attention_entropy(weights, normalize=True) == 0).all()


@given(st.integers(1, 9), st.integers(0, 10**6))
def test_entropy_matches_categorical_and_ignores_the_order_of_keys(keys: int, seed: int) -> None:
    weights = (3 * randn(2, 3, 4, keys, seed=seed)).softmax(-1)
    got = attention_entropy(weights)
    torch.testing.assert_close(got, Categorical(probs=weights).entropy())
    torch.testing.assert_close(got, attention_entropy(weights.flip(-1)))
    assert (got >= 0).all()
    assert (got <= math.log(keys) + 1e-12).all()


def test_masked_keys_are_never_read() -> None:
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    weights = weights_of(randn(2, 3, 5, 4), randn(2, 3, 5, 4, seed=1), mask)
    dirty = torch.where(mask, weights, torch.nan)
    torch.testing.assert_close(attention_entropy(dirty, mask), attention_entropy(weights))
    normalized = attention_entropy(dirty, mask, normalize=True)
    assert (normalized[..., 0] == 0).all()
    torch.testing.assert_close(normalized[..., 4], attention_entropy(weights)[..., 4] / math.log(5))


def test_a_query_that_sees_no_key_gives_zero() -> None:
    mask = torch.tensor([[False, False], [True, True]])
    weights = torch.full((1, 2, 2), 0.5)
    assert attention_entropy(weights, mask).tolist() == [[0.0, pytest.approx(math.log(2))]]
    padding = torch.tensor([False, True])
    query, key = randn(1, 2, 3).requires_grad_(), randn(1, 2, 3)
    got = attention_entropy_from_qk(query, key, causal=True, key_padding_mask=padding)
    assert got.tolist() == [[0.0, 0.0]]
    got.sum().backward()
    assert query.grad is not None
    assert query.grad.isfinite().all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (1, 7), (3, 7), (7, 3)])
def test_blocks_agree_with_the_full_maps(
    causal: bool, key_heads: int, queries: int, keys: int
) -> None:
    query, key = randn(2, 4, queries, 6), randn(2, key_heads, keys, 6, seed=1)
    padding = torch.ones(2, keys, dtype=torch.bool)
    padding[0, 0] = padding[1, -1] = False
    mask = padding[:, None, None].expand(2, 1, queries, keys)
    if causal:
        mask = mask & torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    weights = torch.nan_to_num(weights_of(query, key, mask, scale=0.7))
    for normalize in (False, True):
        got = attention_entropy_from_qk(
            query, key, causal=causal, key_padding_mask=padding, scale=0.7, normalize=normalize
        )
        exact = attention_entropy(weights, mask, normalize=normalize)
        torch.testing.assert_close(got, exact)


def test_gradients_pass_gradcheck() -> None:
    query, key = randn(2, 5, 3).requires_grad_(), randn(1, 5, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda q, k: attention_entropy_from_qk(q, k, causal=True), (query, key)
    )
    weights = randn(2, 3, 4, seed=2).softmax(-1).requires_grad_()
    # The sum to 1 is checked up to 1e-4, far above the steps of the finite differences.
    assert torch.autograd.gradcheck(attention_entropy, (weights,))


def test_results_are_float32_or_better() -> None:
    query, key = randn(2, 5, 4).bfloat16(), randn(2, 5, 4, seed=1).bfloat16()
    got = attention_entropy_from_qk(query, key)
    assert got.dtype == torch.float32
    exact = attention_entropy(weights_of(query.double(), key.double()))
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-6)
    # bfloat16 weights sum to 1 only within their own rounding.
    rounded = attention_entropy(weights_of(query.double(), key.double()).bfloat16())
    torch.testing.assert_close(rounded.double(), exact, rtol=2e-2, atol=2e-2)


def test_leading_axes_may_be_empty() -> None:
    assert attention_entropy(torch.zeros(0, 2, 3, 4)).shape == (0, 2, 3)
    assert attention_entropy_from_qk(torch.zeros(0, 2, 3, 4), torch.zeros(0, 2, 5, 4)).shape == (
        0,
        2,
        3,
    )


class LargestTensor(TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes())
        return out


def test_no_map_is_held_as_a_whole() -> None:
    query, key = (randn(4, 40, 8, seed=s, dtype=torch.float32).requires_grad_() for s in (0, 1))
    with LargestTensor() as mode:
        torch.autograd.grad(attention_entropy_from_qk(query, key).sum(), (query, key))
    # The inputs themselves are the largest tensors; one head's map would be 6400 bytes.
    assert mode.largest == query.untyped_storage().nbytes() == 5120


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda w: attention_entropy(w[0]), "weights must have axes"),
        (lambda w: attention_entropy(w * 2), "weights must sum to 1"),
        (lambda w: attention_entropy(w * torch.nan), "weights"),
        (lambda w: attention_entropy(w, torch.ones(3, dtype=torch.bool)), "mask must broadcast"),
        (lambda w: attention_entropy(w, base=-1.0), "base"),
        (lambda w: attention_entropy_from_qk(w, w[..., :3]), "key must have shape"),
        (lambda w: attention_entropy_from_qk(w, w[:, :0]), "key must have shape"),
        (lambda w: attention_entropy_from_qk(w, w, scale=math.nan), "scale must be finite"),
        (lambda w: attention_entropy_from_qk(w * torch.nan, w), "query and key give NaN"),
        (
            lambda w: attention_entropy_from_qk(
                w, w, key_padding_mask=torch.ones(3, dtype=torch.bool)
            ),
            "key_padding_mask must have",
        ),
    ],
)
@pytest.mark.usefixtures("unhooked")
def test_bad_arguments_are_named(call: Callable[[Tensor], Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call(torch.full((2, 4, 4), 0.25))
