import math
from itertools import permutations

import antropy
import numpy as np
import ordpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from peccary import peccary as reference
from peccary.utils import calcHCplane

from szilard.measures.ordinal import (
    entropy_complexity,
    entropy_complexity_bounds,
    hc_envelope,
    missing_patterns,
    ordinal_distribution,
    ordinal_patterns,
    ordinal_statistics,
    pattern_ranks,
    permutation_entropy,
    statistical_complexity,
)

BANDT_POMPE = np.array([4.0, 7.0, 9.0, 10.0, 6.0, 11.0, 3.0])
# All values different: peers and we must agree whatever they do with ties.
tie_free = st.builds(
    lambda seed, size: np.random.default_rng(seed).permutation(size).astype(np.float64),
    st.integers(0, 2**32 - 1),
    st.integers(60, 300),
)
distributions = hnp.arrays(
    np.float64, st.integers(2, 30), elements=st.floats(0, 1, allow_subnormal=False)
).filter(lambda w: w.sum() > 1e-3)


def by_definition(x: np.ndarray, dimension: int, delay: int) -> list[int]:
    """Index of each window's rank vector among all permutations, window by window."""
    index = {ranks: k for k, ranks in enumerate(permutations(range(dimension)))}
    span = delay * (dimension - 1)
    windows = [x[i : i + span + 1 : delay] for i in range(len(x) - span)]
    return [index[tuple(w.argsort(kind="stable").argsort().tolist())] for w in windows]


def probability(x: np.ndarray, name: str) -> float:
    ranks = [int(digit) - 1 for digit in name]
    k = pattern_ranks(len(name)).tolist().index(ranks)
    return float(ordinal_distribution(x, dimension=len(name))[k])


# --- closed forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("dimension", "bits"), [(2, 0.918296), (3, 1.521928)])
def test_entropy_of_bandt_and_pompes_example(dimension, bits):
    assert float(permutation_entropy(BANDT_POMPE, dimension, base=2)) == pytest.approx(
        bits, abs=5e-7
    )


def test_patterns_of_the_logistic_map_have_their_exact_probabilities():
    # Invariant density sampled exactly: x = sin^2(pi u / 2) conjugates the map to the tent map.
    u = np.random.default_rng(0).random(400_000)
    x0 = np.sin(np.pi * u / 2) ** 2
    x1 = 4 * x0 * (1 - x0)
    x2 = 4 * x1 * (1 - x1)
    p = ordinal_distribution(np.stack([x0, x1, x2], -1), dimension=3).mean(0)
    exact = np.array([1 / 3, 1 / 15, 2 / 15, 4 / 15, 1 / 5, 0])
    np.testing.assert_allclose(p, exact, atol=4e-3)  # five standard errors of 4e5 draws
    assert p[5] == 0  # 321 is forbidden
    h, c = entropy_complexity(exact)
    assert float(h) == pytest.approx(0.831445, abs=5e-7)
    assert float(c) == pytest.approx(0.165767, abs=5e-7)


def test_rank_vector_names_the_pattern_not_its_inverse():
    assert probability(np.array([2.0, 3.0, 1.0]), "231") == 1  # x3 < x1 < x2
    assert probability(np.array([3.0, 1.0, 2.0]), "312") == 1


def test_gaussian_random_walk_has_monotone_patterns_twice_as_likely():
    h, c = entropy_complexity(np.array([1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 8, 1 / 4]))
    assert (float(h), float(c)) == (
        pytest.approx(0.967132, abs=5e-7),
        pytest.approx(0.030602, abs=5e-7),
    )
    walk = np.random.default_rng(0).standard_normal(400_000).cumsum()
    found = ordinal_statistics(walk, dimension=3)
    assert float(found.entropy) == pytest.approx(0.967132, abs=1e-3)  # sampling error of the walk


@pytest.mark.parametrize(
    ("tau", "h", "c"), [(0.4, 0.509915, 0.392236), (4 / 7, 0.551240, 0.417096)]
)
def test_densely_sampled_sine_has_its_exact_entropy_and_complexity(tau, h, c):
    n, delay = 5, 1000
    period = (n - 1) * delay / tau
    # An irrational number of periods samples the phase densely.
    x = np.sin(2 * np.pi * (np.arange(400_000) + 0.3) / (period * (1 + 1e-9)))
    found = ordinal_statistics(x, n, delay)
    # Phase is sampled in steps of 1 / period ~ 1e-4, over windows that are no whole number of periods.
    assert float(found.entropy) == pytest.approx(h, abs=2e-3)
    assert float(found.complexity) == pytest.approx(c, abs=3e-3)
    assert int(found.distinct) == 14
    p = np.zeros(120)
    p[:2] = 1 / 2 - (n - 2) * tau / (n - 1)
    p[2:14] = tau / (2 * (n - 1))
    exact = entropy_complexity(p)
    assert float(exact.entropy) == pytest.approx(h, abs=5e-7)
    assert float(exact.complexity) == pytest.approx(c, abs=5e-7)


def test_two_equal_patterns_of_five_points():
    h, c = entropy_complexity(np.array([0.5, 0.5] + [0.0] * 118))
    assert float(h) == pytest.approx(0.144783, abs=5e-7)
    assert float(c) == pytest.approx(0.140803, abs=5e-7)


@pytest.mark.parametrize("outcomes", [2, 6, 120, 5040])
def test_certainty_and_uniformity_have_no_complexity(outcomes):
    delta = np.eye(outcomes)[0]
    uniform = np.full(outcomes, 1 / outcomes)
    h, c = entropy_complexity(np.stack([delta, uniform]))
    np.testing.assert_allclose(h, [0, 1], atol=1e-13)
    np.testing.assert_allclose(c, [0, 0], atol=1e-12)
    assert c[0] == 0


# --- definition, peers, invariances ---------------------------------------------------------------


@pytest.mark.parametrize("dimension", range(2, 9))
@pytest.mark.parametrize("delay", [1, 3])
def test_indices_follow_the_definition_window_by_window(dimension, delay):
    x = np.random.default_rng(dimension).integers(0, 12, 90).astype(np.float64)  # with ties
    assert ordinal_patterns(x, dimension, delay).tolist() == by_definition(x, dimension, delay)


@given(tie_free, st.integers(3, 6), st.integers(1, 9))
def test_agrees_with_three_peers_on_tie_free_series(x, dimension, delay):
    h, c, _ = ordinal_statistics(x, dimension, delay)
    assert np.allclose((h, c), reference(x, n=dimension).calcHC(delay), atol=1e-12, rtol=0)
    assert np.allclose(
        (h, c), ordpy.complexity_entropy(x, dx=dimension, taux=delay), atol=1e-12, rtol=0
    )
    peer = antropy.perm_entropy(x, order=dimension, delay=delay, normalize=True)
    assert float(h) == pytest.approx(peer, abs=1e-12)


@given(tie_free, st.integers(2, 6), st.integers(1, 5))
def test_unchanged_by_increasing_maps(x, dimension, delay):
    p = ordinal_distribution(x, dimension, delay)
    scaled = (x - x.mean()) / x.std()
    for image in (np.exp(scaled), scaled**3, 1e6 + 3 * x):
        np.testing.assert_array_equal(ordinal_distribution(image, dimension, delay), p)


@given(tie_free, st.integers(2, 6), st.integers(1, 5))
def test_reversing_time_reverses_every_pattern(x, dimension, delay):
    ranks = pattern_ranks(dimension)
    p, reverse = (ordinal_distribution(v, dimension, delay) for v in (x, x[::-1]))
    order = {tuple(r): k for k, r in enumerate(ranks.tolist())}
    mirrored = [order[tuple(r[::-1])] for r in ranks.tolist()]
    np.testing.assert_array_equal(reverse[mirrored], p)
    forward, backward = (ordinal_statistics(v, dimension, delay) for v in (x, x[::-1]))
    assert float(forward.entropy) == pytest.approx(float(backward.entropy), abs=1e-12)
    assert float(forward.complexity) == pytest.approx(float(backward.complexity), abs=1e-12)


@given(tie_free, st.integers(2, 7), st.integers(1, 4))
def test_one_pass_equals_the_functional_of_the_distribution(x, dimension, delay):
    p = ordinal_distribution(x, dimension, delay)
    assert p.sum() == pytest.approx(1, abs=1e-12)
    h, c = entropy_complexity(p)
    found = ordinal_statistics(x, dimension, delay)
    assert float(found.entropy) == pytest.approx(float(h), abs=1e-12)
    assert float(found.complexity) == pytest.approx(float(c), abs=1e-12)
    assert int(found.distinct) == (p > 0).sum()
    assert int(missing_patterns(x, dimension, delay)) == (p == 0).sum()
    assert float(statistical_complexity(x, dimension, delay)) == float(found.complexity)


@given(distributions)
def test_every_point_lies_between_the_two_bounds(weights):
    h, c = entropy_complexity(weights / weights.sum())
    low, high = entropy_complexity_bounds(np.atleast_1d(h), len(weights))
    # The bounds are steep in H near 0 and 1: rounding H by an ulp moves them by many.
    assert low[0] - 1e-9 <= float(c) <= high[0] + 1e-9


@pytest.mark.parametrize("dimension", [3, 4])
def test_bounds_pass_through_the_peers_envelope(dimension):
    h_low, c_low, h_high, c_high = calcHCplane(dimension, 100)
    patterns = math.factorial(dimension)
    low = entropy_complexity_bounds(np.clip(h_low, 0, 1), patterns)[0]
    high = entropy_complexity_bounds(np.clip(h_high, 0, 1), patterns)[1]
    np.testing.assert_allclose(low, c_low, atol=1e-12)
    np.testing.assert_allclose(high, c_high, atol=1e-12)


@pytest.mark.parametrize(
    ("dimension", "most", "equal"), [(3, 0.29145, 3), (4, 0.35409, 6), (5, 0.42482, 19)]
)
def test_greatest_complexity_is_that_of_some_equal_patterns(dimension, most, equal):
    patterns = math.factorial(dimension)
    h = np.log(equal) / np.log(patterns)
    assert entropy_complexity_bounds(np.array([h]), patterns)[1][0] == pytest.approx(most, abs=6e-6)
    # The plotted envelope has this cusp between two of its points.
    assert hc_envelope(dimension).upper.max() == pytest.approx(most, abs=2e-4)


def test_units_are_nats_unless_a_base_is_given():
    nats = permutation_entropy(BANDT_POMPE, 3)
    assert float(permutation_entropy(BANDT_POMPE, 3, base=2)) == pytest.approx(
        float(nats) / math.log(2)
    )
    assert float(permutation_entropy(BANDT_POMPE, 3, normalize=True)) == pytest.approx(
        float(nats) / math.log(6)
    )


# --- ties, dtypes, batches, devices ---------------------------------------------------------------


def test_stable_ties_rise_and_dithered_ties_are_white():
    flat = np.zeros(20_000)
    assert float(permutation_entropy(flat, 3)) == 0
    dithered = permutation_entropy(
        flat, 3, normalize=True, ties="dither", rng=np.random.default_rng(0)
    )
    assert float(dithered) == pytest.approx(1, abs=1e-3)


@given(tie_free, st.integers(2, 5))
def test_dither_never_reorders_different_values(x, dimension):
    plain = ordinal_distribution(x * 1e-300, dimension)
    dithered = ordinal_distribution(
        x * 1e-300, dimension, ties="dither", rng=np.random.default_rng(0)
    )
    np.testing.assert_array_equal(plain, dithered)


def test_series_with_equal_rows_and_their_batch_agree():
    x = np.random.default_rng(0).standard_normal((2, 3, 500))
    batch = ordinal_statistics(x, 4, 2)
    assert batch.entropy.shape == (2, 3)
    for i in np.ndindex(2, 3):
        one = ordinal_statistics(x[i], 4, 2)
        assert float(one.entropy) == batch.entropy[i]
        assert float(one.complexity) == batch.complexity[i]
    np.testing.assert_array_equal(ordinal_patterns(x, 4, 2)[1, 2], ordinal_patterns(x[1, 2], 4, 2))


def test_an_empty_batch_gives_an_empty_batch():
    x = np.empty((0, 50))
    assert ordinal_distribution(x, 3).shape == (0, 6)
    assert ordinal_statistics(x, 3).entropy.shape == (0,)
    assert ordinal_patterns(torch.empty(2, 0, 50), 3).shape == (2, 0, 48)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int16, np.int64, np.uint8, ">f8"])
def test_order_is_all_that_counts_whatever_the_dtype(dtype):
    x = np.random.default_rng(0).permutation(200)
    np.testing.assert_array_equal(
        ordinal_distribution(x.astype(dtype), 4), ordinal_distribution(x.astype(np.float64), 4)
    )


def test_neighbouring_large_integers_keep_their_order():
    x = 2**60 + np.random.default_rng(0).permutation(100)  # float64 can't tell them apart
    np.testing.assert_array_equal(ordinal_patterns(x, 4), ordinal_patterns(x - 2**60, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tensors_give_the_tensors_that_arrays_give(dtype):
    x = torch.from_numpy(np.random.default_rng(0).permutation(256).astype(np.float64)).to(dtype)
    found = ordinal_statistics(x, 4)
    expected = ordinal_statistics(x.double().numpy(), 4)
    assert all(isinstance(part, torch.Tensor) for part in found)
    assert float(found.entropy) == float(expected.entropy)
    assert torch.equal(
        ordinal_patterns(x, 4), torch.from_numpy(ordinal_patterns(x.double().numpy(), 4))
    )
    assert ordinal_distribution(x, 4).dtype == torch.float64


def test_strided_views_are_read_in_their_own_order():
    x = np.random.default_rng(0).standard_normal((300, 2))
    np.testing.assert_array_equal(
        ordinal_patterns(x.T, 3), np.stack([ordinal_patterns(column.copy(), 3) for column in x.T])
    )


def test_entropy_and_complexity_have_gradients():
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: tuple(entropy_complexity(v.softmax(-1))), (logits,))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("function", [ordinal_patterns, ordinal_distribution, ordinal_statistics])
def test_values_without_rank_are_refused(function, bad):
    x = np.arange(50.0)
    x[-1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        function(x, 3)
    with pytest.raises(ValueError, match="NaN or infinite"):
        function(torch.from_numpy(x), 3)
    with pytest.raises(ValueError, match="NaN or infinite"):
        function(x, 3, ties="dither", rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dimension": 1}, "dimension: got 1"),
        ({"dimension": 11}, "dimension: got 11"),
        ({"delay": 0}, "delay: got 0"),
        ({"dimension": 4, "delay": 4}, "got 12 points, .* takes 13"),
        ({"ties": "dither"}, "rng"),
        ({"ties": "first"}, "ties: got 'first'"),
    ],
)
@pytest.mark.usefixtures("unhooked")
def test_impossible_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ordinal_patterns(np.arange(12.0), **arguments)


def test_empty_series_are_refused():
    with pytest.raises(ValueError, match="got 0 points"):
        ordinal_distribution(np.array([]))


def test_a_normalised_entropy_has_no_base():
    with pytest.raises(ValueError, match="base"):
        permutation_entropy(BANDT_POMPE, 3, base=2, normalize=True)


@pytest.mark.parametrize("p", [[0.5, 0.6], [-0.5, 1.5], [np.nan, 1.0], [1.0]])
def test_what_is_no_distribution_is_refused(p):
    with pytest.raises(ValueError, match="p"):
        entropy_complexity(np.array(p))


@pytest.mark.parametrize(("h", "outcomes"), [(-0.1, 6), (1.1, 6), (np.nan, 6), (0.5, 1)])
def test_bounds_exist_only_inside_the_plane(h, outcomes):
    with pytest.raises(ValueError, match=r"entropy|outcomes"):
        entropy_complexity_bounds(np.array([h]), outcomes)
