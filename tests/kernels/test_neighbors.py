"""Neighbours and counts against the comparison of all pairs, whatever the points and the threads."""

import math
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from szilard.kernels import neighbors


def all_pairs(x: np.ndarray, euclidean: bool) -> np.ndarray:
    apart = np.abs(x[:, None] - x[None])
    return np.sqrt((apart**2).sum(-1)) if euclidean else apart.max(-1)


def kth_of_all_pairs(x: np.ndarray, k: int, euclidean: bool) -> np.ndarray:
    """Sorted, a row begins with the 0 of the point itself."""
    return np.sort(all_pairs(x, euclidean), axis=1)[:, k]


def assert_equal_distances(ours: np.ndarray, theirs: np.ndarray, euclidean: bool) -> None:
    # Differences and maxima are exact; sums of squares may be rounded in another order.
    np.testing.assert_allclose(ours, theirs, rtol=1e-14 if euclidean else 0, atol=0)


@st.composite
def clouds(draw: st.DrawFn) -> np.ndarray:
    """Points on any scale, in a block or a few, spread out, on a grid (with ties) or on a line."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(2, 40) | st.integers(250, 330))
    x = rng.normal(size=(n, draw(st.integers(1, 7))))
    kind = draw(st.sampled_from(["spread", "grid", "line", "tails"]))
    if kind == "grid":
        x = np.round(x * draw(st.sampled_from([0.3, 1.0, 3.0])))
    elif kind == "line":
        x = np.cumsum(np.abs(x), axis=0)
    elif kind == "tails":
        x = np.sinh(5 * x)
    x = x * 10.0 ** draw(st.integers(-100, 100)) + draw(st.sampled_from([0.0, 1e6]))
    return np.asfortranarray(x) if draw(st.booleans()) else np.repeat(x, 2, axis=0)[::2]


several_threads = mock.patch.multiple(neighbors, _SERIAL=16, _PIECE=16)
norms = pytest.mark.parametrize("euclidean", [False, True])


@norms
@given(clouds(), st.data(), st.sampled_from([1, 3]))
def test_neighbours_are_those_of_all_pairs(
    euclidean: bool, x: np.ndarray, data: st.DataObject, threads: int
) -> None:
    k = data.draw(st.integers(1, min(len(x) - 1, 5)) | st.integers(1, len(x) - 1))
    with several_threads:
        distance = neighbors.kth_distances(x, k, euclidean, threads)
        again, index = neighbors.nearest(x, k, euclidean, threads)
    pairs = all_pairs(x, euclidean)
    np.fill_diagonal(pairs, np.inf)
    assert_equal_distances(distance, np.sort(pairs, axis=1)[:, k - 1], euclidean)
    assert_equal_distances(again, distance, euclidean)
    assert index.shape == (len(x), k)
    assert all(len(set(row)) == k for row in index)
    found = np.sort(np.take_along_axis(pairs, index, 1), axis=1)
    assert_equal_distances(found, np.sort(pairs, axis=1)[:, :k], euclidean)


@given(clouds(), st.integers(0, 2**32 - 1), st.sampled_from([1, 3]))
def test_counts_are_those_of_all_pairs_strictly_nearer(
    x: np.ndarray, seed: int, threads: int
) -> None:
    rng = np.random.default_rng(seed)
    pairs = all_pairs(x, euclidean=False)
    # Radii that are distances: whether a point on the border counts must be right.
    radius = pairs[np.arange(len(x)), rng.integers(len(x), size=len(x))]
    radius[rng.uniform(size=len(x)) < 0.1] = 0
    radius[rng.uniform(size=len(x)) < 0.1] = np.inf
    with several_threads:
        counts = neighbors.count_nearer(x, radius, threads)
    np.testing.assert_array_equal(counts, (pairs < radius[:, None]).sum(1))


@pytest.mark.parametrize(("n", "d"), [(4096, 2), (4097, 2), (20_000, 1), (20_000, 2), (5000, 6)])
@pytest.mark.parametrize("threads", [1, 2])
def test_trees_of_several_levels_agree_with_another_tree(n: int, d: int, threads: int) -> None:
    rng = np.random.default_rng(n + d)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d))
    theirs = cKDTree(x)
    for euclidean, p in ((False, math.inf), (True, 2)):
        distance = theirs.query(x, 5, p=p)[0][:, -1]
        assert_equal_distances(
            neighbors.kth_distances(x, 4, euclidean, threads), distance, euclidean
        )
        radius = 2 * distance
        counts = theirs.query_ball_point(x, np.nextafter(radius, 0), p=math.inf, return_length=True)
        np.testing.assert_array_equal(neighbors.count_nearer(x, radius, threads), counts)


@norms
@pytest.mark.parametrize("d", [1, 3])
def test_neither_order_nor_an_exact_translation_nor_scale_changes_a_distance(
    d: int, euclidean: bool
) -> None:
    rng = np.random.default_rng(0)
    # Multiples of 2^-20: adding an integer and doubling round nothing.
    x = np.round(rng.normal(size=(3000, d)) * 2**20) / 2**20
    distance = neighbors.kth_distances(x, 3, euclidean, 1)
    order = rng.permutation(len(x))
    for y, factor in ((x[order], 1), (x[order] + 64, 1), (8 * x[order], 8)):
        moved = neighbors.kth_distances(y, 3, euclidean, 1)
        assert_equal_distances(moved, factor * distance[order], euclidean)
        counts = neighbors.count_nearer(y, 2 * moved, 1)
        expected = neighbors.count_nearer(x, 2 * distance, 1)[order]
        if not euclidean:
            np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize(
    "series",
    [
        np.zeros(30_000),
        np.arange(30_000.0),
        np.concatenate([np.arange(15_000.0), np.arange(15_000.0)[::-1]]),
        np.sin(np.arange(30_000.0)),
        np.tile([0.0, 1.0], 15_000),
    ],
    ids=["constant", "rising", "tent", "sine", "two values"],
)
def test_ordered_and_repeated_points_are_searched_as_well(series: np.ndarray) -> None:
    x = np.column_stack([series, series[::-1]])
    theirs = np.array([np.sort(np.abs(x - x[i]).max(1))[2] for i in range(0, 30_000, 997)])
    ours = neighbors.kth_distances(x, 2, False, 1)
    np.testing.assert_array_equal(ours[::997], theirs)
    counts = neighbors.count_nearer(x, np.full(30_000, 0.5), 1)
    near = [(np.abs(x - x[i]).max(1) < 0.5).sum() for i in range(0, 30_000, 997)]
    np.testing.assert_array_equal(counts[::997], near)


@norms
def test_nothing_depends_on_the_number_of_threads_even_where_points_tie(euclidean: bool) -> None:
    x = np.random.default_rng(1).integers(0, 12, size=(4000, 3)).astype(float)
    one = neighbors.nearest(x, 4, euclidean, 1)
    for threads in (2, 5):
        for a, b in zip(one, neighbors.nearest(x, 4, euclidean, threads), strict=True):
            np.testing.assert_array_equal(a, b)


def test_several_callers_at_once_do_not_disturb_each_other() -> None:
    rng = np.random.default_rng(2)
    xs = [rng.normal(size=(3000, d)) for d in (1, 2, 3, 4)]
    alone = [neighbors.kth_distances(x, 3, True, 1) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: neighbors.kth_distances(x, 3, True, 2), xs * 3))
    for ours, theirs in zip(together, alone * 3, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("layout", ["C", "F"])
@pytest.mark.parametrize("d", [1, 2])
def test_points_are_only_read(d: int, layout: str) -> None:
    x = np.random.default_rng(3).normal(size=(100, d)).copy(layout)
    distance = neighbors.kth_distances(x, 3, False, 1)
    counts = neighbors.count_nearer(x, distance, 1)
    x.flags.writeable = False
    np.testing.assert_array_equal(neighbors.kth_distances(x, 3, False, 1), distance)
    np.testing.assert_array_equal(neighbors.nearest(x, 3, False, 1)[0], distance)
    np.testing.assert_array_equal(neighbors.count_nearer(x, distance, 1), counts)


def test_differences_beyond_the_largest_number_are_infinite() -> None:
    x = np.array([[-1e308, 0], [1e308, 0]])
    distance, index = neighbors.nearest(x, 1, False, 1)
    assert np.isinf(distance).all()
    assert ((index >= 0) & (index < 2)).all()
    np.testing.assert_array_equal(neighbors.count_nearer(x, distance, 1), [1, 1])
