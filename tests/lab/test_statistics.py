import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from szilard.lab.statistics import mean_interval, paired_difference

finite = st.floats(-1e6, 1e6, allow_nan=False)


def test_the_interval_agrees_with_the_normal_one_on_many_values() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.5, size=400)
    interval = mean_interval(values)
    error = stats.sem(values)
    assert interval.value == pytest.approx(values.mean())
    # Quantiles of 2000 resamples are themselves noisy by about 0.06 standard errors.
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        interval = mean_interval(rng.normal(size=40), resamples=300, level=0.9)
        covered += interval.low <= 0 <= interval.high
    # Binomial(300, 0.9) has standard deviation 0.017; the percentile bootstrap undercovers slightly.
    assert 0.83 <= covered / 300 <= 0.96


@given(st.lists(finite, min_size=2, max_size=30))
def test_the_interval_lies_within_the_range_of_the_values(values: list[float]) -> None:
    interval = mean_interval(values, resamples=50)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack


@given(st.lists(finite, min_size=2, max_size=20), st.floats(-1e3, 1e3))
def test_adding_a_constant_moves_the_interval_by_it(values: list[float], shift: float) -> None:
    moved = mean_interval(np.add(values, shift), resamples=50)
    still = mean_interval(values, resamples=50)
    # float64 sums of values up to 1e6.
    assert moved.low == pytest.approx(still.low + shift, abs=1e-6)
    assert moved.high == pytest.approx(still.high + shift, abs=1e-6)


def test_a_higher_level_gives_a_wider_interval() -> None:
    values = np.random.default_rng(1).normal(size=30)
    narrow, wide = mean_interval(values, level=0.5), mean_interval(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_resampling_whole_clusters_widens_the_interval_of_correlated_values() -> None:
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(8), 50)
    values = rng.normal(size=8)[clusters] + 0.1 * rng.normal(size=400)
    alone, clustered = mean_interval(values), mean_interval(values, groups=clusters)
    assert clustered.value == alone.value
    assert clustered.high - clustered.low > 3 * (alone.high - alone.low)


def test_labels_may_be_strings_and_each_its_own_group_changes_nothing() -> None:
    values = [1.0, 4.0, 2.0, 8.0]
    assert mean_interval(values, groups=["a", "b", "c", "d"]) == mean_interval(values)


def test_one_independent_unit_excludes_nothing() -> None:
    interval = mean_interval([4.0])
    assert (interval.value, interval.low, interval.high) == (4.0, -math.inf, math.inf)


def test_nan_propagates() -> None:
    interval = mean_interval([1.0, math.nan])
    assert all(math.isnan(x) for x in (interval.value, interval.low, interval.high))


def test_the_paired_difference_removes_what_the_pairs_share() -> None:
    rng = np.random.default_rng(2)
    shared = 100 * rng.normal(size=50)
    b = shared + 0.1 * rng.normal(size=50)
    interval = paired_difference(shared + 1.0, b)
    assert 0.9 < interval.low < 1.0 < interval.high < 1.1 or interval.value == pytest.approx(
        1, 0.05
    )
    assert interval.high - interval.low < 0.1


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [1.0, 2.0, 4.0]
    assert mean_interval(values, rng_seed=1) == mean_interval(values, rng_seed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": []}, "values"),
        ({"values": [[1.0]]}, "values"),
        ({"values": [1.0], "level": 1.0}, "level"),
        ({"values": [1.0], "resamples": 0}, "resamples"),
        ({"values": [1.0, 2.0], "groups": [1]}, "groups"),
    ],
)
def test_impossible_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_interval(**arguments)


def test_pairs_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 1"):
        paired_difference([1.0, 2.0], [1.0])
