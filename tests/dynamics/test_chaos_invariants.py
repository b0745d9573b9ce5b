import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from szilard.dynamics import (
    ChaoticSystem,
    annotation_table,
    correlation_dimension,
    invariants,
    kaplan_yorke_dimension,
    lyapunov_spectrum,
    lyapunov_spectrum_of_map,
    multiscale_entropy,
    pesin_entropy,
)
from szilard.kernels import flows


@njit(flows.RHS)
def sinks(y, t, out):
    out[0] = -0.5 * y[0] + y[1]
    out[1] = -y[1]
    out[2] = -3 * y[2]
    return 0.0


@njit(flows.RHS)
def minus_a_delay_ago(y, t, out):
    out[0] = -y[1]
    return 0.0


# --- exponents ------------------------------------------------------------------------------------


def test_the_lorenz_spectrum_is_the_known_one():
    found = lyapunov_spectrum("Lorenz", 300)
    # beta is 2.667 in the database; .9056, 0, -14.572 are for 8/3.
    assert found.exponents.sum() == pytest.approx(-(10 + 1 + 2.667), abs=1e-4)
    for value, error, known in zip(*found[:2], (0.9056, 0.0, -14.572), strict=True):
        assert abs(value - known) < 4 * error
        assert error < 0.03
    assert kaplan_yorke_dimension(*found[:2]) == pytest.approx(2.062, abs=0.003)


def test_the_rossler_spectrum_is_the_known_one():
    found = lyapunov_spectrum("Rossler", 200)
    np.testing.assert_allclose(found.exponents, [0.0714, 0.0, -5.394], atol=0.03)
    assert abs(found.exponents[1]) < 4 * found.stderr[1]


def test_a_stable_linear_flow_has_its_eigenvalues_and_no_entropy():
    system = ChaoticSystem("sinks", np.array([1.0, 1.0, 1.0]), 1.0, {}, sinks, None)
    found = lyapunov_spectrum(system, 20, discard=0)
    np.testing.assert_allclose(found.exponents, [-0.5, -1.0, -3.0], atol=1e-5)
    assert pesin_entropy(*found[:2]) == 0
    assert kaplan_yorke_dimension(*found[:2]) == 0


def test_a_linear_delay_equation_has_its_rightmost_characteristic_root():
    system = ChaoticSystem("delay", np.array([1.0]), 1.0, {}, minus_a_delay_ago, None, 1.0)
    found = lyapunov_spectrum(system, 400, discard=20)
    # x = exp(s t) with s = -exp(-s): Re s = Re W(-1).
    assert found.exponents[0] == pytest.approx(-0.3181315, abs=0.01)


def test_maps_have_their_known_exponents():
    logistic = lyapunov_spectrum_of_map(
        lambda x: 4 * x * (1 - x), lambda x: (4 - 8 * x)[None], [0.3], 20_000
    )
    assert logistic.exponents[0] == pytest.approx(math.log(2), abs=0.01)
    assert pesin_entropy(*logistic[:2]) == logistic.exponents[0]
    henon = lyapunov_spectrum_of_map(
        lambda x: np.array([1 - 1.4 * x[0] ** 2 + x[1], 0.3 * x[0]]),
        lambda x: np.array([[-2.8 * x[0], 1.0], [0.3, 0.0]]),
        [0.1, 0.1],
    )
    assert henon.exponents[0] == pytest.approx(0.419, abs=0.01)
    assert henon.exponents.sum() == pytest.approx(math.log(0.3), abs=1e-9)


@given(st.floats(1.2, 1.99))
def test_a_tent_has_the_logarithm_of_its_slope(slope):
    found = lyapunov_spectrum_of_map(
        lambda x: slope * np.minimum(x, 1 - x),
        lambda x: np.where(x < 0.5, slope, -slope)[None],
        [0.3],
        100,
    )
    assert found.exponents[0] == pytest.approx(math.log(slope), abs=1e-9)


@given(st.lists(st.floats(-20, 5), min_size=1, max_size=8), st.floats(0.1, 10))
def test_entropy_and_dimension_scale_as_they_must(exponents, clock):
    values = np.array(exponents)
    assert pesin_entropy(values) >= 0
    assert pesin_entropy(clock * values) == pytest.approx(clock * pesin_entropy(values))
    dimension = kaplan_yorke_dimension(values)
    assert 0 <= dimension <= len(values)
    assert kaplan_yorke_dimension(clock * values) == pytest.approx(dimension, abs=1e-6)


def test_an_exponent_within_its_error_counts_as_zero():
    values, errors = np.array([0.9, 0.02, -14.5]), np.array([0.01, 0.01, 0.01])
    assert pesin_entropy(values) == pytest.approx(0.92)
    assert pesin_entropy(values, errors) == pytest.approx(0.9)
    assert kaplan_yorke_dimension(values, errors) == pytest.approx(2 + 0.9 / 14.5)


# --- from the trajectory --------------------------------------------------------------------------


def test_correlation_dimension_counts_the_coordinates_that_are_filled():
    rng = np.random.default_rng(0)
    square = rng.random((3000, 2))
    assert correlation_dimension(square) == pytest.approx(2, abs=0.1)
    flat = np.concatenate([square, square[:, :1]], -1)
    assert correlation_dimension(flat) == pytest.approx(2, abs=0.1)
    assert correlation_dimension(1e6 * square - 3) == pytest.approx(
        correlation_dimension(square), abs=0.05
    )


def test_multiscale_entropy_is_that_of_a_plain_reading_of_its_definition():
    rng = np.random.default_rng(1)
    x = np.cumsum(rng.normal(size=240))
    z = (x - x.mean()) / x.std()

    def matches(y, m):
        rows = np.stack([y[i : i + m] for i in range(len(y) - 2)])
        rows = rows - rows.mean(1, keepdims=True)
        i, j = np.triu_indices(len(rows), 1)
        return np.exp(-((np.abs(rows[i] - rows[j]).max(1) / 0.15) ** 2)).mean()

    expected = []
    for scale in (1, 2, 3):
        short, long = [], []
        for phase in range(scale):
            n = (len(z) - phase) // scale
            y = z[phase : phase + n * scale].reshape(n, scale).mean(-1)
            short.append(matches(y, 2))
            long.append(matches(y, 3))
        expected.append(math.log(np.mean(short) / np.mean(long)))
    assert multiscale_entropy(x, scales=3) == pytest.approx(np.mean(expected), rel=1e-12)


def test_everything_of_a_flow_comes_with_its_checks():
    found = invariants("Lorenz", 50, points=800)
    assert found["lyapunov_sum"].value == pytest.approx(-13.667, abs=1e-3)
    assert found["pesin_entropy"].value == found["lyapunov_1"].value
    bits = found["pesin_entropy"].value * 1.5008 / math.log(2)
    assert found["bits_per_period"].value == pytest.approx(bits)
    assert 1.8 < found["correlation_dimension"].value < 2.3
    assert 0.5 < found["permutation_entropy"].value < 0.8
    assert "kaplan_yorke_dimension" not in invariants("SprottDelay", 20, points=500)


def test_the_table_holds_measured_beside_published_and_goes_on_where_it_stopped(tmp_path):
    arguments = {"periods": 20, "points": 500, "cache": tmp_path, "workers": 1}
    table = annotation_table(["Lorenz", "SprottDelay"], **arguments)
    assert list(table.index) == ["Lorenz", "SprottDelay"]
    assert table.lyapunov_1_published["Lorenz"] == pytest.approx(0.8917, abs=1e-4)
    assert table.lyapunov_1_stderr["Lorenz"] > 0
    assert (table.error == "").all()
    assert table.dimension.tolist() == [3, 0]
    assert annotation_table(["Lorenz", "SprottDelay"], **arguments).equals(table)
    assert len(list(tmp_path.iterdir())) == 2


# --- bad input ------------------------------------------------------------------------------------


def test_a_wrong_argument_is_named():
    with pytest.raises(ValueError, match="periods: got 5"):
        lyapunov_spectrum("Lorenz", 5)
    with pytest.raises(ValueError, match="name: got"):
        lyapunov_spectrum("Lorentz")
    with pytest.raises(ValueError, match="exponents: got"):
        pesin_entropy(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="x: got 100 points"):
        correlation_dimension(np.zeros((100, 2)))
    with pytest.raises(ValueError, match="window: got 0"):
        correlation_dimension(np.random.default_rng(0).random((300, 2)), window=0)
    with pytest.raises(ValueError, match="share: got"):
        correlation_dimension(np.random.default_rng(0).random((300, 2)), share=(0.5, 0.1))
    with pytest.raises(ValueError, match="x: got 300 points"):
        multiscale_entropy(np.zeros(300))
    with pytest.raises(ValueError, match="scales, m, radius"):
        multiscale_entropy(np.arange(300.0), scales=0)
    with pytest.raises(ValueError, match="points: got 10"):
        invariants("Lorenz", points=10)
    with pytest.raises(ValueError, match="iterations: got 3"):
        lyapunov_spectrum_of_map(lambda x: x, lambda x: np.eye(1), [0.5], 3)
    with pytest.raises(ValueError, match="leaves the finite numbers"), np.errstate(all="ignore"):
        lyapunov_spectrum_of_map(lambda x: x * x, lambda x: 2 * x[None], [3.0], 50)


def test_errors_of_another_number_are_refused(unhooked):
    with pytest.raises(ValueError, match="stderr: got"):
        pesin_entropy(np.array([1.0, 2.0]), np.array([1.0]))
