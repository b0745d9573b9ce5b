"""Attention kernels, compiled and in torch, against the full maps in float64."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from szilard.kernels import attention, attention_cpu
from szilard.kernels.attention import (
    Scores,
    map_gradient,
    map_rows,
    score_entropies,
    score_entropy_gradients,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def entr(weights: Tensor, mask: Tensor | None = None) -> Tensor:
    p = weights.double() if mask is None else torch.where(mask, weights.double(), 0)
    return -torch.xlogy(p, p).sum(-1)


def maps(keys: int, spread: float) -> Tensor:
    weights = (spread * randn(2, 3, 5, keys, seed=keys)).softmax(-1)
    weights[0, 0] = 1 / keys
    weights[0, 1] = torch.nn.functional.one_hot(torch.tensor(keys - 1), keys).double()
    return weights


@pytest.fixture(params=["compiled", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "compiled":
        monkeypatch.setattr(attention, "_SMALL_HEAD", 0)
    else:
        # Where there is no compiled path: any device but the CPU.
        monkeypatch.setattr(attention, "_compiles", lambda *_: False)
    return str(request.param)


# --- maps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", [1, 2, 7, 1023, 1025, 4096])
@pytest.mark.parametrize("spread", [1e-4, 1.0, 8.0])
def test_rows_of_maps_match_float64(
    path: str, dtype: torch.dtype, keys: int, spread: float
) -> None:
    weights = maps(keys, spread).to(dtype)
    rows = map_rows(weights, None)
    # The logarithm's own 2e-7, and lanes of 128 float32 terms.
    torch.testing.assert_close(rows.entropy.double(), entr(weights), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(rows.total, weights.double().sum(-1), rtol=1e-6, atol=0)
    assert torch.equal(rows.lowest, weights.double().amin(-1))
    assert (rows.visible == keys).all()


def test_nearly_certain_rows_keep_their_digits() -> None:
    rest = torch.logspace(-7, -1, 25)
    weights = torch.stack((1 - rest, rest), -1)[None, None]
    got = map_rows(weights, None).entropy
    torch.testing.assert_close(got, entr(weights), rtol=1e-6, atol=0)


def test_no_weight_is_too_small() -> None:
    tiny = torch.tensor([0.0, 1e-45, 1e-40, torch.finfo(torch.float32).tiny, 1e-30])
    weights = torch.cat((tiny, torch.ones(1)))[None, None]
    entropy = map_rows(weights, None).entropy
    torch.testing.assert_close(entropy, entr(weights), rtol=1e-6, atol=1e-36)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape",
    [(2, 3, 5, 1300), (3, 5, 1300), (5, 1300), (1300,), (2, 1, 1, 1300), (5, 1), (2, 1, 5, 1)],
)
def test_masks_that_broadcast_hide_what_they_hide(
    path: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    weights, mask = maps(1300, 2.0).to(dtype), randn(*shape, seed=1) > -0.5
    whole = mask.expand(weights.shape)
    dirty = torch.where(whole, weights, torch.nan)
    rows = map_rows(dirty, mask)
    torch.testing.assert_close(rows.entropy.double(), entr(weights, mask), rtol=1e-6, atol=1e-12)
    assert torch.equal(rows.visible.long(), whole.sum(-1))
    assert torch.equal(rows.entropy, map_rows(weights, mask).entropy)


def test_what_is_wrong_with_a_row_shows(path: str) -> None:
    weights = maps(2000, 1.0).float()
    weights[0, 0, 0, 1500], weights[0, 0, 1, 3], weights[1, 2, 4, 1999] = (
        torch.nan,
        -1e-3,
        torch.inf,
    )
    rows = map_rows(weights, None)
    assert rows.total.isnan().nonzero().tolist() == [[0, 0, 0]]
    assert rows.lowest[0, 0, 1].item() == pytest.approx(-1e-3)
    assert rows.total[1, 2, 4] == torch.inf
    assert (map_rows(torch.tensor([[[-0.0, 1.0]]]), None).lowest >= 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_layouts_of_maps_do_not_matter(dtype: torch.dtype) -> None:
    weights = maps(60, 1.0).to(dtype)
    exact = map_rows(weights.contiguous(), None).entropy
    for same in (
        weights.transpose(0, 2).contiguous().transpose(0, 2),
        weights.mT.contiguous().mT,
        torch.cat((weights, weights), -1)[..., :60],
        torch.cat((weights, weights), 1)[:, :3],
    ):
        assert not same.is_contiguous()
        assert torch.equal(map_rows(same, None).entropy, exact)
    repeated = weights[:, :1].expand(2, 7, 5, 60)
    assert torch.equal(map_rows(repeated, None).entropy, exact[:, :1].expand(2, 7, 5))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_maps_are_those_of_entr(dtype: torch.dtype, masked: bool) -> None:
    weights, mask = maps(9, 1.0).to(dtype), None
    if masked:
        mask = randn(5, 9, seed=2) > 0
    grad = randn(2, 3, 5, seed=3).to(torch.promote_types(dtype, torch.float32))
    leaf = weights.double().requires_grad_()
    seen = leaf if mask is None else torch.where(mask, leaf, 0)
    torch.special.entr(seen).sum(-1).backward(grad.double())
    assert leaf.grad is not None
    got = map_gradient(weights, mask, grad)
    assert got.dtype == dtype
    torch.testing.assert_close(got, leaf.grad.to(dtype), atol=1e-6, rtol=2 * torch.finfo(dtype).eps)


# --- products -----------------------------------------------------------------------------------


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(
    ("rows", "depth", "columns"), [(16, 1, 16), (16, 64, 48), (64, 300, 32), (32, 600, 16)]
)
def test_products_match_float64(rows: int, depth: int, columns: int, add: bool) -> None:
    a, b = randn(rows, depth).float(), randn(depth, 3 * columns, seed=1).float()
    out = torch.full((rows, 2 * columns), torch.nan)
    if add:
        out = randn(rows, 2 * columns, seed=2).float()
    exact = a.double() @ b[:, :columns].double() + (out[:, :columns].double() if add else 0)
    beside = out[:, columns:].clone()
    attention_cpu.multiply(
        a.T.contiguous().numpy().T.copy(), b[:, :columns].numpy(), out[:, :columns].numpy(), add
    )
    torch.testing.assert_close(out[:, :columns].double(), exact, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(out[:, columns:], beside, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_choose_rows_and_round_to_the_nearest(dtype: torch.dtype) -> None:
    x = randn(6, 5).to(dtype)
    out = torch.zeros(8, 16)
    attention_cpu.copy(x, out.T[:5].T, 0.5, torch.tensor([4, 0]), None)
    assert torch.equal(out[:2, :5], x[[4, 0]].float() * 0.5)
    assert (out[2:] == 0).all()
    back = torch.zeros(6, 5, dtype=dtype)
    wide = randn(5, 3, seed=1).float()
    attention_cpu.copy(wide.T, back, 1.0, None, torch.tensor([5, 1, 2]))
    assert torch.equal(back[[5, 1, 2]], wide.T.to(dtype))
    assert (back[[0, 3, 4]] == 0).all()


# --- query and key ------------------------------------------------------------------------------


def scores_of(
    query: Tensor, key: Tensor, causal: bool = False, padding: Tensor | None = None
) -> tuple[Scores, Tensor]:
    """The scores, and the mask that says the same."""
    queries, keys = query.shape[2], key.shape[2]
    mask = torch.ones(len(query), queries, keys, dtype=torch.bool)
    if causal:
        mask = mask.tril(keys - queries)
    if padding is not None:
        mask = mask & padding[:, None]
    return Scores(query, key, 0.3, mask.sum(-1), padding), mask[:, None]


def plain(scores: Scores, mask: Tensor) -> Tensor:
    per_key = scores.query.shape[1] // scores.key.shape[1]
    key = scores.key.double().repeat_interleave(per_key, 1)
    z = torch.where(mask, scores.query.double() @ key.mT * scores.scale, -torch.inf)
    weights = torch.where(mask.any(-1, keepdim=True), z, 0).softmax(-1)
    return torch.special.entr(torch.where(mask, weights, 0)).sum(-1)


SHAPES = [
    # batch, heads, key heads, queries, keys, width
    (1, 1, 1, 1, 1, 1),
    (2, 4, 2, 7, 7, 3),
    (1, 2, 1, 50, 300, 17),
    (2, 2, 2, 130, 40, 16),
    (1, 3, 1, 33, 2100, 8),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masks", ["none", "causal", "padding", "both"])
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_and_their_gradients_match_the_full_maps(
    path: str,
    dtype: torch.dtype,
    masks: str,
    shape: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "_BLOCK_ELEMENTS", 4000)
    batch, heads, key_heads, queries, keys, width = shape
    query = randn(batch, heads, queries, width).to(dtype).requires_grad_()
    key = randn(batch, key_heads, keys, width, seed=1).to(dtype).requires_grad_()
    padding = randn(batch, keys, seed=2) > -0.5 if masks in {"padding", "both"} else None
    scores, mask = scores_of(query, key, masks in {"causal", "both"}, padding)
    exact = plain(scores, mask)
    detached = scores._replace(query=query.detach(), key=key.detach())
    got = score_entropies(detached)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    # Scores are rounded to float32: 1e-7 of their few units.
    torch.testing.assert_close(got.double(), exact.detach(), rtol=1e-5, atol=1e-6)
    grad = randn(batch, heads, queries, seed=3).to(got.dtype)
    exact.backward(grad.double())
    for g, x in zip(score_entropy_gradients(detached, grad), (query, key), strict=True):
        assert x.grad is not None
        assert g.dtype == dtype
        resolution = 3 * torch.finfo(dtype).eps
        torch.testing.assert_close(g, x.grad, rtol=max(1e-4, resolution), atol=1e-5)


def test_a_length_says_how_many_keys_are_seen_whatever_stands_behind(path: str) -> None:
    query, key = randn(1, 2, 20, 8).float(), randn(1, 2, 30, 8, seed=1).float()
    padding = torch.ones(1, 30, dtype=torch.bool)
    padding[0, :12] = padding[0, 20] = False
    scores, _ = scores_of(query, key, causal=True, padding=padding)
    assert (scores.lengths[0, :2] == 0).all()
    exact = score_entropies(scores)
    gradients = score_entropy_gradients(scores, torch.ones(1, 2, 20))
    key[:, :, :12] = key[:, :, 20] = torch.nan
    query[:, :, :2] = torch.inf
    assert torch.equal(score_entropies(scores), exact)
    for got, clean in zip(
        score_entropy_gradients(scores, torch.ones(1, 2, 20)), gradients, strict=True
    ):
        assert torch.equal(got, clean)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e38, -1e38])
def test_scores_that_are_not_finite_give_nan(path: str, bad: float) -> None:
    query, key = torch.full((1, 1, 20, 8), 10.0), torch.full((1, 1, 30, 8), 2.0)
    key[0, 0, 25] = bad
    scores, _ = scores_of(query, key, causal=True)
    got = score_entropies(scores)[0, 0]
    # Query i sees keys 0 .. i + 10: from 15 on, the bad one.
    torch.testing.assert_close(got[:15], torch.arange(11, 26).log(), rtol=1e-6, atol=0)
    assert got[15:].isnan().all()


def test_any_layout_of_query_and_key_and_empty_ones(path: str) -> None:
    query, key = randn(2, 20, 3, 8).float(), randn(2, 3, 8, 30, seed=1).float()
    scores, _ = scores_of(query.transpose(1, 2), key.mT)
    clean, _ = scores_of(query.transpose(1, 2).contiguous(), key.mT.contiguous())
    assert torch.equal(score_entropies(scores), score_entropies(clean))
    for query, key in (
        (torch.zeros(0, 3, 4, 8), torch.zeros(0, 3, 5, 8)),
        (torch.zeros(2, 3, 0, 8), torch.zeros(2, 3, 5, 8)),
        (torch.zeros(2, 0, 4, 8), torch.zeros(2, 1, 5, 8)),
    ):
        scores, _ = scores_of(query, key)
        assert score_entropies(scores).shape == query.shape[:3]
        g = score_entropy_gradients(scores, torch.zeros(query.shape[:3]))
        assert [x.shape for x in g] == [query.shape, key.shape]


def test_threads_share_the_work_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_BLOCK_ELEMENTS", 3000)
    query, key = randn(2, 4, 60, 8).float(), randn(2, 2, 70, 8, seed=1).float()
    scores, _ = scores_of(query, key, causal=True)
    grad = randn(2, 4, 60, seed=2).float()
    exact = score_entropies(scores), *score_entropy_gradients(scores, grad)
    monkeypatch.setattr(attention, "_SERIAL", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)

    def again(_: int) -> tuple[Tensor, ...]:
        return score_entropies(scores), *score_entropy_gradients(scores, grad)

    with ThreadPoolExecutor(3) as pool:
        for got in pool.map(again, range(6)):
            for ours, alone in zip(got, exact, strict=True):
                assert torch.equal(ours, alone)


def test_an_error_in_a_thread_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_SERIAL", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(attention, "row_moments", lambda *_: np.linalg.cholesky(-np.eye(2)))
    scores, _ = scores_of(torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 5, 8))
    with pytest.raises(np.linalg.LinAlgError):
        score_entropies(scores)
