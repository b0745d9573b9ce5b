"""Packed bits against booleans compared one by one."""

from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from szilard.kernels import codes

several_threads = mock.patch.multiple(codes, _SERIAL=1, _BLOCK=64)


def naive_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a[:, None] != b[None]).sum(-1)


def words_of(bits: np.ndarray) -> np.ndarray:
    return codes.words(np.packbits(bits, axis=1))


@st.composite
def bit_matrices(draw: st.DrawFn) -> np.ndarray:
    """Rows with many repetitions, few of them, or none that is not by chance."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, width = draw(st.integers(1, 60)), draw(st.sampled_from([1, 7, 8, 63, 64, 65, 200, 1500]))
    bits = rng.random((n, width)) < draw(st.sampled_from([0.02, 0.5]))
    return bits[rng.integers(draw(st.integers(1, n)), size=n)]


@given(bit_matrices())
def test_equal_rows_are_those_that_unique_finds(bits: np.ndarray) -> None:
    _, index, inverse = np.unique(bits, axis=0, return_index=True, return_inverse=True)
    np.testing.assert_array_equal(codes.equal_rows(words_of(bits)), index[inverse.ravel()])


@given(bit_matrices())
def test_rows_that_share_a_hash_are_told_apart(bits: np.ndarray) -> None:
    rows = words_of(bits)
    first = np.empty(len(rows), np.intp)
    same = np.zeros(len(rows), np.uint64)
    codes._first_equal(rows, same, np.arange(len(rows)), first)
    np.testing.assert_array_equal(first, codes.equal_rows(rows))


@given(bit_matrices(), st.integers(0, 2**32 - 1), st.sampled_from([1, 3]))
def test_distances_and_neighbours_are_those_of_all_pairs(
    bits: np.ndarray, seed: int, threads: int
) -> None:
    rng = np.random.default_rng(seed)
    queries = bits[rng.integers(len(bits), size=20)] ^ (rng.random((20, bits.shape[1])) < 0.1)
    k = int(rng.integers(1, len(bits) + 1))
    naive = naive_distances(queries, bits)
    a, b = words_of(queries), words_of(bits)
    with several_threads:
        np.testing.assert_array_equal(codes.distances(a, b, threads), naive)
        distance, index = codes.nearest(a, b, k, threads)
    # A stable sort leaves the first of equally near rows in front.
    order = np.argsort(naive, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(index, order)
    np.testing.assert_array_equal(distance, np.take_along_axis(naive, order, 1))


@given(bit_matrices())
def test_unpacking_gives_the_bits_back(bits: np.ndarray) -> None:
    out = np.full(bits.shape, np.nan, np.float32)
    codes.unpack(np.packbits(bits, axis=1), out)
    np.testing.assert_array_equal(out, bits.astype(np.float32))


def test_several_callers_at_once_do_not_disturb_each_other() -> None:
    rng = np.random.default_rng(0)
    rows = [words_of(rng.random((300, 500)) < 0.3) for _ in range(4)]
    alone = [codes.nearest(r[:50], r, 5, 1) for r in rows]
    with several_threads, ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda r: codes.nearest(r[:50], r, 5, 2), rows * 3))
    for ours, theirs in zip(together, alone * 3, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize("width", [1, 64, 100])
def test_packed_rows_are_only_read(width: int) -> None:
    packed = np.packbits(np.random.default_rng(1).random((20, width)) < 0.5, axis=1)
    packed.flags.writeable = False
    rows = codes.words(packed)
    rows.flags.writeable = False
    assert codes.distances(rows, rows, 1).trace() == 0
    assert (codes.nearest(rows, rows, 1, 1)[0] == 0).all()
    codes.unpack(packed, np.empty((20, width), np.float32))
