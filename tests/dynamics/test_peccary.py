import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peccary import peccary as reference
from peccary.utils import HmaxPer, HminPer, tNatApprox
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from szilard.dynamics import (
    Peccary,
    UndersampledWarning,
    delay_of_pattern_time,
    hc_curves,
    hc_region,
    natural_timescale,
    periodic_bounds,
    uniform_step,
)


def sine(periods: float, per_period: int = 200, phase: float = 0.0) -> np.ndarray:
    return np.sin(2 * np.pi * np.arange(round(periods * per_period)) / per_period + phase)


def logistic(length: int) -> np.ndarray:
    x = np.empty(length)
    x[0] = 0.1234
    for i in range(1, length):
        x[i] = 4 * x[i - 1] * (1 - x[i - 1])
    return x


def white(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(length)


# --- the plane ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", range(3, 9))
def test_periodic_bounds_are_the_peers(dimension):
    assert periodic_bounds(dimension) == pytest.approx(
        (HminPer(dimension), HmaxPer(dimension)), abs=1e-15
    )


def test_a_cycle_at_its_richest_is_still_regular():
    h_max = periodic_bounds(5)[1]
    p_region, periodic = hc_region(np.array([h_max]), np.array([0.4170965]))
    assert p_region[0] == "regular"
    assert periodic[0]


def test_known_systems_fall_into_their_regions():
    # Maps are their own clock: delay 1, as in the paper's figure.
    series = {"complex": logistic(20_000), "stochastic": white(20_000)}
    for region, x in series.items():
        h, c = (v[..., 0] for v in hc_curves(x, [1])[1:])
        assert hc_region(h, c)[0] == region


def test_the_threshold_moves_the_split_and_nothing_else():
    h, c = np.array([0.3, 0.8, 0.8]), np.array([0.2, 0.15, 0.34])
    strict, loose = (hc_region(h, c, complex_threshold=t)[0].tolist() for t in (1.0, 0.0))
    assert strict == ["regular", "stochastic", "stochastic"]
    assert loose == ["regular", "complex", "complex"]


# --- the clock ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ncross", "minavg", "maxavg"])
def test_clocks_are_the_peers_on_smooth_series_that_start_at_zero(method):
    t = np.arange(4000) * 0.01
    x = np.sin(t) + 0.3 * np.cos(1.7 * t + 0.4)
    assert float(natural_timescale(x, 0.01, method)) == pytest.approx(
        tNatApprox(t, x, method=method), rel=1e-12
    )


@pytest.mark.parametrize("method", ["minavg", "maxavg"])
def test_spacing_of_extrema_is_the_period(method):
    assert float(natural_timescale(sine(20.3, 77, 0.4), 0.5, method)) == pytest.approx(
        38.5, rel=1e-2
    )


def test_clock_does_not_care_when_time_starts():
    t = 1000 + np.arange(2000) / 200
    x = sine(10)
    late = Peccary().fit_transform(x[None], times=t)
    early = Peccary().fit_transform(x[None], times=t - 1000)
    assert late["t_nat"] == pytest.approx(early["t_nat"])


@pytest.mark.parametrize("method", ["ncross", "minavg", "maxavg"])
def test_clock_of_a_tensor_is_that_of_its_array(method):
    x = np.stack([sine(7.3), sine(3.1, 411, 1.0)[:1200].repeat(2)[:1460]])
    torch.testing.assert_close(
        natural_timescale(torch.from_numpy(x), 0.1, method),
        torch.from_numpy(natural_timescale(x, 0.1, method)),
    )


def test_a_float32_orbit_far_from_the_origin_keeps_its_clock():
    x = sine(10, 200, 0.3)
    far = (x + 1e4).astype(np.float32)
    assert float(natural_timescale(far)) == pytest.approx(float(natural_timescale(x)))


def test_delay_is_rounded_and_never_zero():
    assert delay_of_pattern_time(np.array([1e-9, 0.4, 4.0]), 0.01).tolist() == [1, 10, 100]


# --- the estimator --------------------------------------------------------------------------------


def test_recommended_call_is_its_steps_by_hand():
    x = sine(10) + 0.4 * sine(10, 130)[:2000].repeat(2)[:2000]
    row = Peccary(dt=0.005).fit_transform(x[None])[0]
    t_nat = float(natural_timescale(x, 0.005))
    delay = int(delay_of_pattern_time(0.4 * t_nat, 0.005))
    assert (row["t_nat"], row["delay"]) == (t_nat, delay)
    assert (row["H"], row["C"]) == pytest.approx(reference(x).calcHC(delay), abs=1e-12)
    assert row["n_patterns"] + row["n_forbidden"] == 120
    assert row["region"] == hc_region(np.array([row["H"]]), np.array([row["C"]]))[0][0]


def test_sines_are_periodic_and_white_noise_is_stochastic():
    series = [sine(10, 200, phase) for phase in (0.1, 1.1, 2.1)] + [white(20_000)]
    table = Peccary(dt=1 / 200).fit_transform(series)
    assert table["region"].tolist() == ["regular"] * 3 + ["stochastic"]
    assert table["periodic"].tolist() == [True] * 3 + [False]
    assert table["delay"][3] == 1  # a series faster than its samples
    assert table["n_patterns"].tolist() == [14] * 3 + [120]


def test_ragged_series_are_each_alone():
    series = [sine(10), white(3000), sine(12.5, 90), white(3000, 1)]
    together = Peccary(dt=0.1).fit_transform(series)
    alone = np.concatenate([Peccary(dt=0.1).fit_transform(x[None]) for x in series])
    assert together.tolist() == alone.tolist()
    times = [np.arange(len(x)) * 0.1 for x in series]
    timed = Peccary().fit_transform(series, times=times)
    np.testing.assert_allclose(timed["t_nat"], alone["t_nat"])


def test_arrays_tensors_and_single_series_give_the_same_table():
    x = np.stack([sine(10), white(2000)])
    table = Peccary().fit_transform(x)
    tensors = Peccary().fit_transform(torch.from_numpy(x))
    assert tensors["t_nat"] == pytest.approx(table["t_nat"], rel=1e-14)  # torch rounds a quotient
    assert tensors[["H", "C", "region"]].tolist() == table[["H", "C", "region"]].tolist()
    assert Peccary().fit_transform(x[0]).tolist() == table[:1].tolist()
    assert Peccary().predict(x).tolist() == table["region"].tolist()


def test_orbit_arrays_of_both_packages_fit():
    # galpy: orbit.x(t) is (orbits, times); gala: orbit.pos.x is (times, orbits).
    galpy_x = np.stack([sine(10, 200, phase) for phase in (0.0, 0.5)])
    gala_x = galpy_x.T
    assert Peccary().fit_transform(gala_x.T).tolist() == Peccary().fit_transform(galpy_x).tolist()


def test_a_series_shorter_than_one_and_a_half_periods_gets_numbers_but_no_label():
    table = Peccary(t_nat=200.0).fit_transform(sine(1.2)[None])
    assert table["region"][0] == "undetermined"
    assert np.isfinite(table["H"][0])
    assert Peccary(t_nat=200.0).predict(sine(1.6)[None])[0] == "regular"


def test_a_monotone_series_has_no_maxima_to_time_it():
    table = Peccary(t_nat="maxavg").fit_transform(np.arange(100.0)[None])
    assert table["region"][0] == "undetermined"
    assert np.isinf(table["t_nat"][0])
    assert np.isnan(table["H"][0])


def test_dither_tells_quantised_noise_from_plateaus():
    x = np.round(white(20_000)).clip(-1, 1)
    plain = Peccary().fit_transform(x[None])["H"][0]
    dithered = Peccary(ties="dither").fit_transform(x[None])["H"][0]
    assert plain < 0.95 < 0.99 < dithered


def test_an_undersampled_noise_warns_and_a_short_sine_does_not():
    with pytest.warns(UndersampledWarning, match="1 noisy series have fewer than 5 x 5! = 600"):
        Peccary().fit_transform(white(300)[None])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Peccary().fit_transform(sine(2)[None])


def test_curves_are_the_peers_and_default_to_99_delays():
    x = white(700).cumsum()
    h, c, delays = reference(x).calcHCcurves()
    curves = hc_curves(x)
    np.testing.assert_array_equal(curves.delay, delays)
    np.testing.assert_allclose(curves.entropy, h, atol=1e-12)
    np.testing.assert_allclose(curves.complexity, c, atol=1e-12)
    assert hc_curves(torch.from_numpy(x), [1, 5]).entropy.shape == (2,)


@given(st.integers(0, 2**32 - 1))
def test_increasing_maps_about_the_mean_change_nothing(seed):
    x = white(300, seed).cumsum()
    x -= x.mean()
    for t_nat in (37.0, "maxavg"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndersampledWarning)
            a, b = (Peccary(t_nat=t_nat).fit_transform(v[None]) for v in (x, np.exp(x / 10)))
        assert a.tolist() == b.tolist()


def test_follows_the_estimator_contract():
    estimator = Peccary(dimension=4, t_nat=12.0)
    assert clone(estimator).get_params() == estimator.get_params()
    assert estimator.fit(white(300)[None]) is estimator
    shifted = make_pipeline(FunctionTransformer(lambda x: x + 1), Peccary(dt=0.5))
    assert shifted.fit_transform(sine(10)[None])["region"][0] == "regular"
    frame = Peccary().set_output(transform="pandas").fit_transform(sine(10)[None])
    assert frame.columns.tolist() == Peccary().get_feature_names_out().tolist()
    assert frame["region"][0] == "regular"


def test_the_family_is_imported_only_when_used():
    import subprocess

    code = "import sys, szilard.dynamics; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    import szilard.dynamics

    assert "Peccary" in dir(szilard.dynamics)
    with pytest.raises(AttributeError, match="Pecary"):
        szilard.dynamics.Pecary  # noqa: B018


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("series", "message"),
    [
        (np.array([[1.0, np.nan, 2.0, 3.0, 4.0]]), "series 0: holds NaN"),
        ([sine(2), np.r_[sine(2), np.inf]], "series 1: holds NaN"),
        (np.ones((2, 50)), "series 0: is constant"),
        ([sine(2), np.zeros(400)], "series 1: is constant"),
        (np.arange(4.0)[None], "got 4 points, a pattern has 5"),
        (np.empty((0, 10)), "no series"),
        (np.empty((2, 0)), "no series"),
        (np.zeros((2, 2, 9)), "3 axes"),
        ([np.zeros((2, 9)), np.zeros(9)], "one series an item"),
        (np.array([["a", "b"]]), "real numbers"),
        (np.array([[1j, 2, 3, 4, 5]]), "real numbers"),
    ],
)
def test_bad_series_are_named(series, message):
    with pytest.raises(ValueError, match=message):
        Peccary().fit(series)
    with pytest.raises(ValueError, match=message):
        Peccary().fit_transform(series)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"dimension": 1}, "dimension: got 1"),
        ({"dimension": 9}, "dimension: got 9"),
        ({"t_pat_ratio": 0.0}, "t_pat_ratio"),
        ({"dt": -1.0}, "dt: got -1"),
        ({"t_nat": "fft"}, "t_nat: got 'fft'"),
        ({"t_nat": np.nan}, "t_nat: got nan"),
        ({"complex_threshold": 1.5}, "complex_threshold"),
        ({"t_nat": 1e4}, "one window of dimension 5"),
    ],
)
@pytest.mark.usefixtures("unhooked")
def test_impossible_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        Peccary(**parameters).fit_transform(sine(2)[None])


@pytest.mark.parametrize(
    "times",
    [
        np.r_[np.arange(399.0), 400.0],
        -np.arange(400.0),
        np.zeros(400),
        np.r_[np.nan, np.arange(399.0)],
        np.arange(399.0),
    ],
)
def test_a_clock_that_is_not_uniform_or_does_not_fit_is_refused(times):
    with pytest.raises(ValueError, match="times"):
        Peccary().fit_transform(sine(2)[None], times=times)


def test_ragged_times_must_match_their_series():
    with pytest.raises(ValueError, match="times"):
        Peccary().fit_transform([sine(2), sine(3)], times=[np.arange(400.0)])
    with pytest.raises(ValueError, match=r"times\[1\]"):
        Peccary().fit_transform([sine(2), sine(3)], times=[np.arange(400.0)] * 2)


def test_uniform_step_allows_rounding_and_no_more():
    t = 1e5 + np.arange(1000) * 0.01
    assert uniform_step(t) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="uniform"):
        uniform_step(np.r_[t, t[-1] + 0.010001])


@pytest.mark.parametrize("delays", [[], [0], [200]])
def test_curves_refuse_impossible_delays(delays):
    with pytest.raises(ValueError, match="delay"):
        hc_curves(sine(2), delays)
