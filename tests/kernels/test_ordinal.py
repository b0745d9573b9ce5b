import math
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

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


@pytest.mark.parametrize("windows", [1, 31, 32, 33, 2047, 2049])
@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_counts_are_those_of_the_plain_codes_at_any_length(n, windows):
    x = np.random.default_rng(windows).integers(0, 9, (2, windows + n - 1)).astype(np.float64)
    expected = [np.bincount(row, minlength=math.factorial(n)) for row in plain(x, n, 1)]
    np.testing.assert_array_equal(ordinal.pattern_counts(x, n, 1)[0], expected)


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint64", "bool"])
def test_every_dtype_keeps_its_own_order(dtype):
    lowest = 0 if np.dtype(dtype).kind in "bu" else -4
    x = np.random.default_rng(0).integers(lowest, 2 if dtype == "bool" else 5, (2, 300))
    if dtype == "uint64":
        x += 2**62  # neighbours are one float64
    np.testing.assert_array_equal(
        ordinal.pattern_indices(x.astype(dtype), 4, 2)[0], plain(x.astype(dtype), 4, 2)
    )


def test_greatest_unsigned_integers_are_no_negative_ones():
    x = np.array([[0, 2**64 - 1, 1] * 50], dtype=np.uint64)
    np.testing.assert_array_equal(ordinal.pattern_indices(x, 3, 1)[0], plain(x, 3, 1))


def test_views_are_read_in_their_own_order():
    x = np.random.default_rng(0).standard_normal((600, 4))
    np.testing.assert_array_equal(
        ordinal.pattern_indices(x.T[::2, ::3], 3, 1)[0], plain(x.T[::2, ::3].copy(), 3, 1)
    )


@pytest.mark.parametrize("series", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_nothing_depends_on_the_number_of_threads(threads, series, count):
    x = np.random.default_rng(0).standard_normal((series, 300_000 // series))
    threads(1)
    expected = [f(x, 4, 3)[0] for f in (ordinal.pattern_indices, ordinal.pattern_counts)]
    entropies = ordinal.pattern_entropies(x, 4, 3)[0]
    threads(count)
    np.testing.assert_array_equal(ordinal.pattern_indices(x, 4, 3)[0], expected[0])
    np.testing.assert_array_equal(ordinal.pattern_counts(x, 4, 3)[0], expected[1])
    np.testing.assert_allclose(ordinal.pattern_entropies(x, 4, 3)[0], entropies, rtol=1e-13)


def test_callers_share_the_threads_without_mixing_their_series(threads):
    threads(2)
    x = np.random.default_rng(0).standard_normal((4, 300_000))
    expected = [ordinal.pattern_counts(row[None], 3, 1)[0] for row in x]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: ordinal.pattern_counts(row[None], 3, 1)[0], x))
    np.testing.assert_array_equal(found, expected)


def _counts_in_child(x, pipe):
    pipe.send(ordinal.pattern_counts(x, 3, 1)[0])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_starts_threads_of_its_own(threads):
    threads(2)
    x = np.random.default_rng(0).standard_normal((1, 300_000))
    expected = ordinal.pattern_counts(x, 3, 1)[0]  # on threads that the child doesn't have
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_counts_in_child, args=(x, there))
    child.start()
    assert here.poll(60)
    np.testing.assert_array_equal(here.recv(), expected)
    child.join()


def test_entropies_of_more_patterns_than_windows_are_found_from_those_met():
    x = np.random.default_rng(0).standard_normal((3, 5000))
    expected = [np.unique(row, return_counts=True)[1] / row.size for row in plain(x, 8, 1)]
    found = ordinal.pattern_entropies(x, 8, 1)[0]
    assert found[:, 2].tolist() == [p.size for p in expected]
    entropies = [-(p * np.log(p)).sum() for p in expected]
    np.testing.assert_allclose(found[:, 0], entropies, rtol=1e-12)


@pytest.mark.parametrize(
    ("n", "length"), [(3, 400), (5, 150), (6, 300), (7, 9000), (3, 20_000), (4, 400_000)]
)
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


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 2048, -1])
def test_a_value_without_rank_is_seen_wherever_it_stands(at, bad):
    x = np.zeros((2, 9000))
    x[1, at] = bad
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
