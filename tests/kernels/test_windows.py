"""Entropies of sliding windows against counting every window anew."""

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from szilard.kernels import windows
from szilard.kernels.windows import window_entropies


def entropy(tokens: list[int]) -> float:
    counts, total = Counter(tokens).values(), len(tokens)
    return math.fsum(-n / total * math.log(n / total) for n in counts)


def plain(tokens: Tensor, mask: Tensor, window: int, ahead: int) -> Tensor:
    rows = []
    for row, counted in zip(tokens, mask, strict=True):
        inside = [
            slice(max(0, t + ahead + 1 - window), max(0, t + ahead + 1)) for t in range(len(row))
        ]
        rows.append([entropy(row[at][counted[at]].tolist()) for at in inside])
    return torch.tensor(rows, dtype=torch.float64)


def compiled(tokens: Tensor, mask: Tensor | None, window: int, ahead: int) -> Tensor:
    return window_entropies(tokens, mask, window, ahead)


def sorted_blocks(tokens: Tensor, mask: Tensor | None, window: int, ahead: int) -> Tensor:
    ids, distinct = windows._identities(tokens, mask)
    table, unit = windows._n_log_n(window)
    return windows._entropies_torch(ids, distinct, window, ahead, table, unit)


def text(rows: int, length: int, vocabulary: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(-3, vocabulary, (rows, length), generator=generator)
    return tokens, torch.rand(rows, length, generator=generator) < 0.7


@given(
    st.builds(text, st.integers(1, 3), st.integers(1, 40), st.integers(1, 9), st.integers(0, 99)),
    st.integers(1, 60),
    st.booleans(),
)
def test_every_window_has_the_entropy_of_its_counts(
    case: tuple[Tensor, Tensor], window: int, centered: bool
) -> None:
    tokens, mask = case
    ahead = (window - 1) // 2 if centered else 0
    for path in (compiled, sorted_blocks):
        for counted in (mask, None):
            got = path(tokens, counted, window, ahead)
            exact = plain(tokens, mask if counted is not None else mask | True, window, ahead)
            # Tabulated terms are off by 1e-16 of themselves.
            torch.testing.assert_close(got, exact, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_every_integer_dtype_and_ids_far_apart_count_the_same(dtype: torch.dtype) -> None:
    tokens, mask = text(2, 50, 6, 0)
    tokens = tokens + 3
    exact = window_entropies(tokens, mask, 8, 0)
    assert torch.equal(window_entropies(tokens.to(dtype), mask, 8, 0), exact)
    far = torch.tensor([0, 2**31 - 1, -(2**63), 2**63 - 1, 7, 1 << 40, 5, -1, 3])[tokens]
    assert torch.equal(window_entropies(far, mask, 8, 0), exact)


def test_a_padding_id_that_does_not_count_costs_no_memory() -> None:
    tokens, mask = text(1, 30, 5, 1)
    dirty = torch.where(mask, tokens, 2**62)
    assert windows._identities(dirty, mask)[1] < 10
    assert torch.equal(window_entropies(dirty, mask, 4, 0), window_entropies(tokens, mask, 4, 0))


def test_a_long_walk_leaves_no_trace() -> None:
    # The same 1,000 tokens again and again: every lap must repeat the first full one to the bit.
    lap = text(1, 1000, 300, 2)[0]
    got = window_entropies(lap.repeat(1, 2000), None, 256, 0).view(2000, 1000)
    assert torch.equal(got[2:], got[1:2].expand(1998, 1000))


def test_one_repeated_token_has_exactly_no_entropy() -> None:
    tokens = torch.full((1, 5000), 9)
    assert (window_entropies(tokens, None, 3000, 0) == 0).all()
    tokens = torch.arange(5000)[None]
    got = window_entropies(tokens, None, 3000, 0)[0, 2999:]
    torch.testing.assert_close(got, torch.full_like(got, math.log(3000)), rtol=1e-15, atol=0)


def test_steps_may_be_split_anywhere_and_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, _ = text(3, 700, 50, 3)
    exact = window_entropies(tokens, None, 33, 16)
    monkeypatch.setattr(windows, "_SERIAL", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert torch.equal(window_entropies(tokens, None, 33, 16), exact)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: window_entropies(tokens, None, 33, 16), range(8)):
            assert torch.equal(got, exact)
    out = torch.empty(tokens.shape, dtype=torch.float64)
    ids, distinct = windows._identities(tokens, None)
    table, unit = windows._n_log_n(33)
    arguments = (ids.numpy(), distinct, 33, 16, table.numpy(), unit, out.numpy())
    for begin, end in pairwise((0, 1, 350, 700, 1399, 1401, 2100)):
        windows._entropies(*arguments, begin, end)
    assert torch.equal(out, exact)


def test_strided_and_empty_batches_are_rows_like_any_other() -> None:
    tokens, mask = text(4, 60, 9, 4)
    exact = window_entropies(tokens.T.contiguous(), mask.T.contiguous(), 5, 0)
    assert torch.equal(window_entropies(tokens.T, mask.T, 5, 0), exact)
    assert window_entropies(tokens[:0], None, 5, 0).shape == (0, 60)
    assert (window_entropies(tokens, mask & False, 5, 0) == 0).all()
