import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from scipy.stats import kstest

from szilard.representations.pretraining_curves import (
    fit_power_law,
    half_rise,
    log_schedule,
    noise,
    permutation_p_value,
    progress,
    rise,
    shape_distance,
)

GRID = np.geomspace(1, 1000, 12)
# In thousandths, so that no affine change makes two of them equal.
rising = st.lists(st.integers(0, 1000), min_size=11, max_size=11).map(
    lambda y: np.array([*y, 1200]) / 1000
)


def step_at(x: float) -> tuple[np.ndarray, np.ndarray]:
    """0 below x, 1 from x on, over [1, 1000]."""
    return np.array([1, x * (1 - 1e-12), x, 1000]), np.array([0.0, 0.0, 1.0, 1.0])


def test_half_rise_of_a_power_curve():
    x = np.geomspace(1, 100, 200)
    g = progress(x, 0.9 - 0.5 / x)
    # Exact curve: 2 / (1 + 1 / 100); the grid's linear pieces move it by less than 1 %.
    assert half_rise(x, g) == pytest.approx(1.980198, rel=0.01)


def test_steps_two_decades_apart_in_three_are_a_third_apart():
    assert shape_distance(*step_at(10.0), *step_at(100.0)) == pytest.approx(1 / 3, abs=1e-9)


@given(rising)
def test_progress_never_falls_and_goes_from_0_to_1(y):
    g = progress(GRID, y)
    assert g[0] == 0
    assert g[-1] == 1
    assert (np.diff(g) >= 0).all()


@given(rising, st.floats(0.1, 10), st.floats(-5, 5), st.floats(0.01, 100))
def test_progress_does_not_depend_on_units(y, scale, shift, unit):
    np.testing.assert_allclose(
        progress(GRID * unit, scale * y + shift), progress(GRID, y), atol=1e-9
    )


@given(rising, rising, rising)
def test_shape_distance_is_a_metric_on_one_grid(y_a, y_b, y_c):
    a, b, c = (progress(GRID, y) for y in (y_a, y_b, y_c))

    def d(one, other):
        return shape_distance(GRID, one, GRID, other)

    assert d(a, a) == 0
    assert 0 <= d(a, b) <= 1
    assert d(a, b) == pytest.approx(d(b, a), abs=1e-15)
    assert d(a, c) <= d(a, b) + d(b, c) + 1e-12


def test_shape_distance_compares_where_both_were_measured():
    x = np.array([1.0, 10.0, 100.0, 1000.0])
    g = np.array([0.0, 0.2, 0.8, 1.0])
    assert shape_distance(x, g, x[1:], g[1:]) == 0
    with pytest.raises(ValueError, match="share a range"):
        shape_distance(x[:2], g[:2], x[2:], g[2:])


def test_an_early_dip_does_not_count_as_a_rise():
    x = np.array([1.0, 2, 4, 8, 50, 100])
    y = np.array([0.21, 0.25, 0.17, 0.2, 0.3, 0.37])
    np.testing.assert_allclose(progress(x, y), [0, 0, 0, 0.15, 0.65, 1])


def test_a_late_dip_is_not_taken_for_the_start():
    x = np.array([1.0, 2, 4, 8, 50, 100])
    y = np.array([0.0, 0.2, 0.4, 0.6, -0.1, 1.0])
    np.testing.assert_allclose(progress(x, y), [0, 0.2, 0.4, 0.6, 0.6, 1])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2, 2], [0, 1, 2], "increase"),
        ([0, 1, 2], [0, 1, 2], "positive"),
        ([1, 2, 3], [0, math.nan, 2], "finite"),
        ([1, 2, 3], [3, 2, 1], "rise"),
    ],
)
def test_curves_without_a_course_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        progress(np.array(x, float), np.array(y, float))


def test_a_power_law_is_recovered_from_eight_points_without_noise():
    x = np.geomspace(0.02, 1, 8)
    law = fit_power_law(x, (0.8 - 0.2 * x**-0.5)[None])
    np.testing.assert_allclose([law.a[0], law.b[0], law.c[0]], [0.8, 0.2, 0.5], atol=1e-4)


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.booleans())
def test_no_descent_from_four_starts_finds_a_better_power_law(seed, bounded):
    rng = np.random.default_rng(seed)
    x, w = np.sort(rng.uniform(0.02, 1, 6)), rng.uniform(0.5, 2, 6)
    y = 0.7 - 0.1 * x ** -rng.uniform(0.1, 1) + 0.02 * rng.normal(size=6)
    top = 0.6 if bounded else 5.0
    law = fit_power_law(x, y[None], weights=w, limits=(0.0, top))

    def residual(p):
        return np.sqrt(w) * (p[0] - p[1] * x ** -p[2] - y)

    ours = (residual([law.a[0], law.b[0], law.c[0]]) ** 2).sum()
    box = [0, 0, 0.02], [top, np.inf, 3]
    theirs = min(
        2 * least_squares(residual, [0.5, 0.1, c], bounds=box).cost for c in (0.1, 0.3, 0.6, 1)
    )
    assert ours <= theirs * (1 + 1e-6) + 1e-12
    assert 0 <= law.a[0] <= top
    assert law.b[0] >= 0
    assert 0.02 <= law.c[0] <= 3


def test_many_curves_are_fitted_as_each_alone():
    rng = np.random.default_rng(0)
    x, y = np.geomspace(0.05, 1, 7), np.sort(rng.uniform(size=(5, 7)), 1)
    together = fit_power_law(x, y, limits=(0.0, 1.0))
    for i in range(5):
        alone = fit_power_law(x, y[i : i + 1], limits=(0.0, 1.0))
        np.testing.assert_allclose(together(x)[i], alone(x)[0], rtol=1e-12)


def test_a_power_law_needs_three_points():
    with pytest.raises(ValueError, match="at least 3"):
        fit_power_law(np.array([1.0, 2.0]), np.array([[0.0, 1.0]]))


def test_p_values_of_shuffled_labels_are_uniform():
    rng = np.random.default_rng(1)
    p = []
    for _ in range(200):
        points = rng.normal(size=(4, 6, 3))  # no label means anything
        flat = points.reshape(24, 3)
        distances = np.abs(flat[:, None] - flat).mean(-1).reshape(4, 6, 4, 6)
        p.append(permutation_p_value(distances, 300, rng))
    assert kstest(p, "uniform").pvalue > 0.01


def test_labels_that_mean_everything_have_the_least_p_value():
    labels = np.tile(np.arange(6.0), (4, 1)).ravel()
    distances = np.abs(labels[:, None] - labels).reshape(4, 6, 4, 6)
    # The identity comes once in 720^3 shuffles.
    assert permutation_p_value(distances, 999, np.random.default_rng(0)) == 1 / 1000


def test_noise_without_standard_errors_is_read_from_the_curve():
    rng = np.random.default_rng(0)
    y = np.concatenate([np.zeros(20), np.linspace(0, 1, 5), np.ones(200)])
    y += 0.01 * rng.normal(size=len(y))
    # The median of 220 second differences is known to some 10 %.
    assert noise(y, np.full(len(y), np.nan)) == pytest.approx(0.01, rel=0.25)
    assert noise(y, np.full(len(y), 0.03)) == pytest.approx(0.03)


def test_a_rise_is_from_the_first_to_the_last_points():
    assert rise(np.array([0.0, 1, 0, 1, 9, 2, 3, 4])) == 2.5
    assert rise(np.array([0.0, 1, 1, 1])) == 1


def test_a_schedule_is_logarithmic_and_holds_both_ends():
    assert log_schedule(14, 1000, first=3)[0] == 3
    assert log_schedule(14, 1000, first=3)[-1] == 1000
    assert log_schedule(10, 5) == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="n must be"):
        log_schedule(1, 10)
    with pytest.raises(ValueError, match="first"):
        log_schedule(3, 10, first=11)
