"""The blocked linear loops against logits made as a whole, in float64."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from szilard.kernels import linear
from szilard.kernels.linear import Head
from szilard.kernels.tokens import RowMoments

ROWS, WIDTH, VOCAB, SCALE = 11, 5, 43, 1 / 0.7


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def head(dtype: torch.dtype, bias: bool = True, softcap: float | None = None) -> Head:
    b = randn(VOCAB, seed=2).to(dtype) if bias else None
    return Head(
        randn(ROWS, WIDTH).to(dtype), randn(VOCAB, WIDTH, seed=1).to(dtype), b, softcap, SCALE
    )


def logits(head: Head) -> Tensor:
    """Plain: all of them, in float64, before the scale."""
    z = head.hidden.double() @ head.weight.double().T
    z = z if head.bias is None else z + head.bias.double()
    return z if head.softcap is None else head.softcap * (z / head.softcap).tanh()


def plain_moments(z: Tensor) -> RowMoments:
    maximum, argmax = z.max(-1)
    t = (z - maximum[:, None]) * SCALE
    total, p = t.exp().sum(-1), t.softmax(-1)
    mean = (p * t).sum(-1)
    return RowMoments(argmax, maximum, total, mean, (p * (t - mean[:, None]).square()).sum(-1))


def plain_gradients(
    head: Head, coefficients: Tensor, index: Tensor, entries: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    z = logits(head)
    log_p = (z * SCALE).log_softmax(-1)
    d = log_p - (log_p.exp() * log_p).sum(-1, keepdim=True)
    a, b, c = coefficients[:, :, None]
    g = (log_p.exp() * (a + b * d + c * d.square())).scatter(-1, index, entries)
    if head.softcap is not None:
        g = g * (1 - (z / head.softcap).square())
    return g @ head.weight.double(), g.T @ head.hidden.double(), g.sum(0)


def upstream() -> tuple[Tensor, Tensor, Tensor]:
    index = torch.stack((torch.arange(ROWS) * 4 % VOCAB, torch.arange(ROWS) * 4 % VOCAB), -1)
    index[3:, 1] = VOCAB - 1  # rows 0..2 name one token twice
    index[0] = 0
    entries = randn(ROWS, 2, seed=4)
    entries[:3, 1] = entries[:3, 0]
    return randn(3, ROWS, seed=3), index, entries


def tolerance(dtype: torch.dtype) -> dict[str, Any]:
    # Sums of a few dozen float32 terms in another order; float64 gradients through exp.
    loose = {"rtol": 2e-5, "atol": 2e-5}
    return {"rtol": 1e-11, "atol": 1e-12} if dtype == torch.float64 else loose


@pytest.fixture(params=[(1 << 21, 2048), (60, 4), (15, 1)], ids=str)
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    elements, tokens = request.param
    monkeypatch.setattr(linear, "_BLOCK_ELEMENTS", elements)
    monkeypatch.setattr(linear, "_BLOCK_TOKENS", tokens)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("bias", "softcap"), [(False, None), (True, None), (True, 1.5)])
def test_moments_are_those_of_the_whole_logits(
    dtype: torch.dtype, bias: bool, softcap: float | None
) -> None:
    layer, targets = head(dtype, bias, softcap), torch.arange(ROWS) * 4 % VOCAB
    z = logits(layer)
    got, chosen = linear.moments(layer, targets)
    exact = plain_moments(z)
    assert torch.equal(got.argmax, exact.argmax)
    for name in ("maximum", "total", "mean", "variance"):
        torch.testing.assert_close(
            getattr(got, name).double(), getattr(exact, name), **tolerance(dtype), msg=name
        )
    assert chosen.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(
        chosen.double(), z.gather(-1, targets[:, None])[:, 0], **tolerance(dtype)
    )


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("bias", "softcap"), [(False, None), (True, None), (True, 1.5)])
def test_gradients_are_those_of_the_whole_logits(
    dtype: torch.dtype, bias: bool, softcap: float | None
) -> None:
    layer, (coefficients, index, entries) = head(dtype, bias, softcap), upstream()
    moments, _ = linear.moments(layer, None)
    needed = (True, True, True)
    got = linear.gradients(layer, moments, coefficients, index, entries, needed)
    exact = plain_gradients(layer, coefficients, index, entries)
    eps = torch.finfo(dtype).eps / 2  # each gradient is rounded to its dtype once
    allowed = {name: x + eps for name, x in tolerance(dtype).items()}
    for a, b in zip(got[: 2 + bias], exact, strict=False):
        assert a is not None
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, **allowed)
    assert bias or got[2] is None


def test_hidden_and_weight_may_differ_in_dtype_and_layout() -> None:
    even = head(torch.float32, softcap=2.0)
    odd = Head(
        even.hidden.T.contiguous().T,
        even.weight.bfloat16().repeat_interleave(2, 0)[::2],
        even.bias,
        2.0,
        SCALE,
    )
    same = Head(even.hidden, odd.weight.float(), even.bias, 2.0, SCALE)
    coefficients, index, entries = upstream()
    moments, chosen = linear.moments(odd, torch.arange(ROWS))
    expected, expected_chosen = linear.moments(same, torch.arange(ROWS))
    torch.testing.assert_close(moments.total, expected.total)
    torch.testing.assert_close(chosen, expected_chosen)
    needed = (True, True, True)
    a = linear.gradients(odd, moments, coefficients, index, entries, needed)
    b = linear.gradients(same, expected, coefficients, index, entries, needed)
    for x, y, dtype in zip(a, b, (torch.float32, torch.bfloat16, torch.float32), strict=True):
        assert x is not None
        assert y is not None
        assert x.dtype == dtype
        torch.testing.assert_close(x, y.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("alone", range(3))
def test_only_the_gradients_asked_for_are_made(alone: int) -> None:
    layer, (coefficients, index, entries) = head(torch.float32), upstream()
    moments, _ = linear.moments(layer, None)
    needed = (alone == 0, alone == 1, alone == 2)
    every = linear.gradients(layer, moments, coefficients, index, entries, (True, True, True))
    only = linear.gradients(layer, moments, coefficients, index, entries, needed)
    for i, (a, b) in enumerate(zip(only, every, strict=True)):
        assert (a is None) == (i != alone)
        assert a is None or (b is not None and torch.equal(a, b))


def test_no_tokens_give_no_gradient_rather_than_what_the_memory_held() -> None:
    full = head(torch.float32)
    layer = Head(full.hidden[:0], full.weight, full.bias, None, SCALE)
    coefficients, index, entries = upstream()
    moments, chosen = linear.moments(layer, torch.arange(0))
    assert len(moments.total) == len(chosen) == 0
    a, b, c = linear.gradients(
        layer, moments, coefficients[:, :0], index[:0], entries[:0], (True, True, True)
    )
    assert a is not None
    assert b is not None
    assert c is not None
    assert a.shape == (0, WIDTH)
    assert not b.any()
    assert not c.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 640, 2048, 16384])
@pytest.mark.parametrize("rows", [0, 1, 128, 2048, 100_000])
def test_blocks_cover_every_logit_once_and_stay_small(
    rows: int, width: int, dtype: torch.dtype
) -> None:
    hidden, weight = (torch.empty(n, width, device="meta", dtype=dtype) for n in (rows, 262_144))
    layer = Head(hidden, weight, None, None, 1.0)
    share = slice(1_000, 262_144)
    for blocks, whole in ((layer.token_blocks(), slice(rows)), (layer.word_blocks(share), share)):
        slices = list(blocks)
        assert [s.start for s in slices] == [whole.start or 0, *(s.stop for s in slices[:-1])]
        assert slices[-1].stop == whole.stop
    t, w = next(layer.token_blocks()), next(layer.word_blocks(share))
    tall, wide = t.stop - t.start, w.stop - w.start
    # Logits and their gradient; where copies are made also weight, its gradient, and hidden.
    copies = 0 if dtype == torch.float32 else 2 * wide * width + tall * width
    assert 4 * (2 * tall * wide + copies) <= 20 << 20


def test_shares_of_several_threads_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_BLOCK_ELEMENTS", 60)
    layer, (coefficients, index, entries) = head(torch.float64), upstream()
    targets = index[:, 0]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            moments, chosen = linear.moments(layer, targets)
            needed = (True, True, True)
            parts = linear.gradients(layer, moments, coefficients, index, entries, needed)
            found.append((moments.total, moments.variance, moments.argmax, chosen, *parts))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for alone, shared in zip(*found, strict=True):
        assert alone is not None
        torch.testing.assert_close(
            shared, alone, rtol=1e-12, atol=1e-12
        )  # float64 sums in another order


def test_shares_work_in_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_BLOCK_ELEMENTS", 60)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with torch.inference_mode():
        layer = head(torch.float32)
        moments, _ = linear.moments(layer, None)
    assert moments.total.isfinite().all()


def test_repeats_and_threads_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_BLOCK_ELEMENTS", 60)
    layer, (coefficients, index, entries) = head(torch.float32), upstream()

    def run(_: int) -> tuple[Tensor, ...]:
        moments, _chosen = linear.moments(layer, None)
        found = linear.gradients(layer, moments, coefficients, index, entries, (True, True, True))
        return (moments.total, moments.variance, *(x for x in found if x is not None))

    first = run(0)
    with ThreadPoolExecutor(4) as pool:
        for again in pool.map(run, range(8)):
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
