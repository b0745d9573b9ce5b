import numpy as np
import pytest
from numba import njit
from scipy.integrate import solve_ivp

from szilard.dynamics import (
    ChaoticSystem,
    chaotic_system,
    chaotic_systems,
    integrate_all,
    published_annotations,
    trajectory,
)
from szilard.dynamics.chaos_systems import _definitions
from szilard.kernels import flows


@njit(flows.RHS)
def spiral(y, t, out):
    out[0] = -0.1 * y[0] - y[1]
    out[1] = y[0] - 0.1 * y[1]
    return 0.0


@njit(flows.RHS)
def minus_a_delay_ago(y, t, out):
    out[0] = -y[1]
    return 0.0


def system_of(rhs, start, delay=0.0):
    return ChaoticSystem("own", np.array(start), 1.0, {}, rhs, None, delay)


# --- what there is --------------------------------------------------------------------------------


def test_there_are_135_systems_of_which_six_have_a_delay():
    every, flows_alone = chaotic_systems(), chaotic_systems(delay=False)
    assert len(every) == 135
    assert len(flows_alone) == 129
    assert all(published_annotations(name)["delay"] for name in set(every) - set(flows_alone))


# One of each way the equations are written: scalars, a method that unpacks, one that calculates with
# vectors, one that calls others, one with arrays of parameters, one with matrices, one uncompiled.
@pytest.mark.parametrize(
    "name", ["Lorenz", "MultiChua", "Lorenz96", "Colpitts", "BickleyJet", "MacArthur", "Hopfield"]
)
def test_compiled_equations_are_those_of_the_database(name):
    system, model = chaotic_system(name), _definitions()[name]()
    rng = np.random.default_rng(0)
    for t in (0.0, 0.7):
        x = system.start * rng.uniform(0.9, 1.1, system.dimension)
        expected = np.asarray(model.rhs(x, t), dtype=float).reshape(-1)
        np.testing.assert_allclose(system.velocity(x, t), expected, rtol=1e-12, atol=1e-14)


# --- integration ----------------------------------------------------------------------------------


def test_a_linear_flow_is_integrated_to_its_exact_solution():
    found = trajectory(system_of(spiral, [1.0, 0.0]), 200, 10, rtol=1e-10, atol=1e-12)
    decay = np.exp(-0.1 * found.t)
    exact = np.stack([decay * np.cos(found.t), decay * np.sin(found.t)], -1)
    # What every step may add, over the 20 units of time.
    np.testing.assert_allclose(found.x, exact, atol=2e-9)


@pytest.mark.parametrize("name", ["Lorenz", "Rossler", "Thomas"])
def test_a_trajectory_follows_scipys_until_chaos_parts_them(name):
    found = trajectory(name, 60, 30)
    system = chaotic_system(name)
    span = (0.0, found.t[-1])
    exact = solve_ivp(
        lambda t, x: system.velocity(x, t),
        span,
        system.start,
        "DOP853",
        found.t,
        rtol=1e-12,
        atol=1e-12,
    )
    # Two periods stretch the tolerance of a step, 1e-9, and that of the interpolant by e^3 and more.
    np.testing.assert_allclose(found.x, exact.y.T, atol=1e-4)
    assert found.method == "DOP853"


def test_an_error_falls_with_the_tolerance():
    exact = trajectory("Lorenz", 30, 15, rtol=1e-13, atol=1e-13).x
    errors = [
        np.abs(trajectory("Lorenz", 30, 15, rtol=tol, atol=tol).x - exact).max()
        for tol in (1e-4, 1e-7, 1e-10)
    ]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_the_first_point_is_the_start_and_all_is_the_same_bit_for_bit():
    first, again = trajectory("Lorenz", 50), trajectory("Lorenz", 50)
    np.testing.assert_array_equal(first.x[0], published_annotations("Lorenz")["initial_conditions"])
    np.testing.assert_array_equal(first.x, again.x)


def test_granularity_samples_the_same_orbit():
    coarse, fine = trajectory("Rossler", 20, 10), trajectory("Rossler", 191, 100)
    np.testing.assert_allclose(coarse.x, fine.x[::10], atol=1e-6)  # interpolants of two runs
    assert coarse.t[1] == pytest.approx(published_annotations("Rossler")["period"] / 10)


def test_discarded_periods_are_gone_and_a_start_of_ones_own_is_used():
    whole, rest = trajectory("Rossler", 61, 10), trajectory("Rossler", 11, 10, discard=5)
    np.testing.assert_allclose(rest.x, whole.x[50:], atol=1e-5)  # e^(.07 * 30) * 1e-7
    own = trajectory("Rossler", 3, start=np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(own.x[0], [1.0, 2.0, 3.0])


def test_phases_are_bounded_unless_asked_for_raw():
    assert np.abs(trajectory("Duffing", 400).x[:, 2]).max() <= 1
    assert trajectory("Duffing", 400, bounded=False).x[-1, 2] > 10


def test_a_delay_equation_follows_its_exact_polynomials():
    found = trajectory(system_of(minus_a_delay_ago, [1.0], delay=1.0), 31, 10)
    t = found.t
    exact = 1 - t + np.where(t > 1, (t - 1) ** 2 / 2, 0) - np.where(t > 2, (t - 2) ** 3 / 6, 0)
    np.testing.assert_allclose(found.x[:, 0], exact, atol=1e-12)
    assert found.method == "RK4"


def test_a_delay_equation_of_the_database_stays_where_it_was_published():
    found = trajectory("MackeyGlass", 600)
    assert found.x.shape == (600, 1)
    assert 0.2 < found.x.min() < found.x.max() < 1.5


# --- all of them ----------------------------------------------------------------------------------


def test_what_was_integrated_is_read_and_a_stopped_run_goes_on(tmp_path):
    first = integrate_all(["Lorenz", "Rossler"], 30, cache=tmp_path, workers=1)
    assert list(first) == ["Lorenz", "Rossler"]
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 2
    kept[1].unlink()
    stamp = kept[0].stat().st_mtime_ns
    again = integrate_all(["Lorenz", "Rossler"], 30, cache=tmp_path, workers=1)
    assert kept[0].stat().st_mtime_ns == stamp
    for name in first:
        np.testing.assert_array_equal(again[name].x, first[name].x)
    integrate_all(["Lorenz"], 31, cache=tmp_path, workers=1)
    assert len(list(tmp_path.iterdir())) == 3  # another length is another file


def test_processes_give_what_one_alone_gives():
    both = integrate_all(["Lorenz", "Rossler"], 30, workers=2)
    np.testing.assert_array_equal(both["Lorenz"].x, trajectory("Lorenz", 30, rtol=1e-9).x)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "arguments"),
    [
        ("n: got 1", {"n": 1}),
        ("points_per_period: got 0", {"points_per_period": 0}),
        ("rtol: got -1", {"rtol": -1.0}),
        ("discard: got nan", {"discard": float("nan")}),
        ("start: got", {"start": np.zeros(2)}),
        ("start: got", {"start": np.array([0.0, np.nan, 0.0])}),
    ],
)
def test_a_wrong_argument_is_named(match, arguments):
    with pytest.raises(ValueError, match=match):
        trajectory("Lorenz", **{"n": 10, **arguments})


def test_an_unknown_system_is_refused_before_any_work():
    with pytest.raises(ValueError, match="name: got 'Lorentz'"):
        integrate_all(["Lorenz", "Lorentz"])
    with pytest.raises(ValueError, match="name: got"):
        published_annotations("Lorentz")
    with pytest.raises(ValueError, match="workers: got 0"):
        integrate_all(["Lorenz"], workers=0)


def test_an_integration_that_cannot_end_says_so():
    @njit(flows.RHS)
    def blows_up(y, t, out):
        out[0] = y[0] * y[0]
        return 0.0

    with pytest.raises(RuntimeError, match="own: integration stopped near"):
        trajectory(system_of(blows_up, [1.0]), 30, 10)
