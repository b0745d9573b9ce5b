import math

import numpy as np
import pytest
import torch

from szilard.kernels import ordinal


@pytest.fixture
def threads():
    """A thread count for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def plain(x: np.ndarray, n: int, delay: int) -> np.ndarray:
    """Lehmer code of every window from all its pairs."""
    windows = np.lib.stride_tricks.sliding_window_view(x, delay * (n - 1) + 1, axis=-1)[
        ..., ::delay
    ]
    below = (windows[..., :, None] > windows[..., None, :]) & np.triu(np.ones((n, n), bool), 1)
    weights = np.array([math.factorial(n - 1 - j) for j in range(n)])
    return (below.sum(-1) * weights).sum(-1)


@pytest.mark.parametrize("n", [2, 3, 5, 7, 10])
@pytest.mark.parametrize("delay", [1, 10, 700])
def test_codes_are_the_plain_lehmer_codes_across_chunk_borders(n, delay):
    x = np.random.default_rng(n).standard_normal((2, 10_000))
    indices, finite = ordinal.pattern_indices(x, n, delay)
    assert finite
    np.testing.assert_array_equal(indices, plain(x, n, delay))


@pytest.mark.parametrize("series", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_nothing_depends_on_the_number_of_threads(threads, series, count):
    x = np.random.default_rng(0).standard_normal((series, 150_000 // series))
    threads(1)
    expected = [f(x, 4, 3)[0] for f in (ordinal.pattern_indices, ordinal.pattern_counts)]
    entropies = ordinal.pattern_entropies(x, 4, 3)[0]
    threads(count)
    np.testing.assert_array_equal(ordinal.pattern_indices(x, 4, 3)[0], expected[0])
    np.testing.assert_array_equal(ordinal.pattern_counts(x, 4, 3)[0], expected[1])
    np.testing.assert_allclose(ordinal.pattern_entropies(x, 4, 3)[0], entropies, rtol=1e-13)


@pytest.mark.parametrize(("n", "length"), [(3, 400), (5, 150), (6, 300), (7, 9000), (3, 20_000)])
def test_fused_entropies_are_those_of_the_counts(n, length):
    x = np.random.default_rng(n).standard_normal((3, length))
    counts, _ = ordinal.pattern_counts(x, n, 1)
    assert (counts.sum(-1) == length - n + 1).all()
    expected = ordinal.entropies_of_counts(torch.from_numpy(counts)).numpy()
    np.testing.assert_allclose(ordinal.pattern_entropies(x, n, 1)[0], expected, atol=1e-11)


@pytest.mark.parametrize("block", [1 << 24, 500])
@pytest.mark.parametrize("delay", [1, 4])
def test_the_torch_path_counts_what_the_compiled_one_does(monkeypatch, block, delay):
    # The path of other devices, run on the CPU: whole, and in blocks of rows and windows.
    monkeypatch.setattr(ordinal, "_BLOCK", block)
    x = torch.randn(7, 800, generator=torch.Generator().manual_seed(0))
    counts = ordinal._counts_torch(x, 4, delay)
    assert torch.equal(counts, ordinal.pattern_counts(x, 4, delay)[0])
    windows = x.shape[-1] - 3 * delay
    pieces = torch.empty(7, windows, dtype=torch.int32)
    for rows, start, stop in ordinal._blocks(x, windows, 1):
        pieces[rows, start:stop] = ordinal._codes_torch(x[rows], start, stop, 4, delay)
    assert torch.equal(pieces, ordinal.pattern_indices(x, 4, delay)[0])


@pytest.mark.parametrize("at", [0, 4096, -1])
def test_a_value_without_rank_is_seen_wherever_it_stands(at):
    x = np.zeros((2, 9000))
    x[1, at] = np.nan
    for function in (ordinal.pattern_indices, ordinal.pattern_counts, ordinal.pattern_entropies):
        assert not function(x, 3, 2)[1]


@pytest.mark.gpu
def test_the_accelerator_finds_the_same_patterns():
    x = torch.randn(50, 5000, generator=torch.Generator().manual_seed(0))
    for function in (ordinal.pattern_indices, ordinal.pattern_counts):
        assert torch.equal(function(x.cuda(), 5, 3)[0].cpu(), function(x, 5, 3)[0])
    torch.testing.assert_close(
        ordinal.pattern_entropies(x.cuda(), 5, 3)[0].cpu(), ordinal.pattern_entropies(x, 5, 3)[0]
    )
