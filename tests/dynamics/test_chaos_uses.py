import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from szilard.dynamics import (
    SparseFlow,
    SurrogateFeatures,
    chaotic_system,
    chosen_starts,
    dominant_period,
    importance_weights,
    nearby_trajectories,
    trajectory,
)


@given(arrays(float, 80, elements=st.floats(0, 1e3)))
def test_importance_is_a_distribution(errors):
    weights = importance_weights(errors)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1)


def test_importance_sharpens_the_smoothed_error():
    errors = np.full(300, 1.0)
    np.testing.assert_allclose(importance_weights(errors), 1 / 300)
    np.testing.assert_allclose(importance_weights(0 * errors), 1 / 300)
    errors[140:160] = 2.0
    sharp, blunt = importance_weights(errors), importance_weights(errors, power=1)
    assert 140 <= sharp.argmax() < 160
    np.testing.assert_allclose(sharp / sharp.max(), (blunt / blunt.max()) ** 4, rtol=1e-9)


def test_starts_are_drawn_by_their_weights_once_each():
    weights = np.zeros(50)
    weights[[3, 7, 11]] = 1 / 3
    chosen = chosen_starts(weights, 3, np.random.default_rng(0))
    assert sorted(chosen) == [3, 7, 11]


def test_nearby_trajectories_start_close_and_part():
    states = trajectory("Lorenz", 3, discard=5).x
    near = nearby_trajectories("Lorenz", states, 150, rng=np.random.default_rng(0), settle=0)
    assert near.shape == (3, 150, 3)
    assert np.abs(near[:, 0] - states).max() <= 0.005
    own = trajectory("Lorenz", 150, start=states[0]).x
    apart = np.abs(near[0] - own).max(-1)
    assert apart[:15].max() < 0.5 < apart.max()


def test_the_dominant_period_is_that_of_the_strongest_wave():
    t = np.arange(300)
    x = np.sin(2 * np.pi * t / 25) + 0.3 * np.sin(2 * np.pi * t / 6)
    assert dominant_period(x) == pytest.approx(25)
    assert dominant_period(np.stack([x, np.ones(300), x])) == pytest.approx(25)


def test_surrogate_features_depend_on_nothing_but_data_and_seed_nor_on_units():
    rng = np.random.default_rng(0)
    surrogates = np.sin(np.arange(400) * rng.uniform(0.3, 0.6, (10, 1)))
    data = np.sin(np.arange(120) * rng.uniform(0.1, 0.2, (5, 1)))
    make = {"features": 4, "windows": 256, "epochs": 3}
    first = SurrogateFeatures(surrogates, **make).fit_transform(data)
    assert first.shape == (5, 8)
    np.testing.assert_array_equal(SurrogateFeatures(surrogates, **make).fit_transform(data), first)
    np.testing.assert_allclose(
        SurrogateFeatures(surrogates, **make).fit_transform(3 * data + 7), first, atol=1e-4
    )  # float32 standardised anew


def test_lorenz_equations_are_found_and_fit_where_they_were_not_seen():
    found, later = trajectory("Lorenz", 400, 100), trajectory("Lorenz", 40, 15, discard=20)
    flow = SparseFlow().fit(found.x, found.t)
    assert flow.error(chaotic_system("Lorenz"), later.x) < 0.02
    assert flow.coefficients.shape == (3, 10)
    waves = SparseFlow("fourier").fit(found.x, found.t)
    assert waves.error(chaotic_system("Lorenz"), later.x) > 0.1
    assert waves.coefficients.shape == (3, 13)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="errors: got"):
        importance_weights(np.full(60, -1.0))
    with pytest.raises(ValueError, match="window: got 50"):
        importance_weights(np.ones(60), window=50)
    with pytest.raises(ValueError, match="weights: must be"):
        chosen_starts(np.ones(5), 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="count: got 3"):
        chosen_starts(np.array([0.5, 0.5]), 3, np.random.default_rng(0))
    with pytest.raises(ValueError, match="a delay equation"):
        nearby_trajectories("MackeyGlass", np.ones((1, 1)), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="states: got"):
        nearby_trajectories("Lorenz", np.ones((1, 2)), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="x: got constant"):
        dominant_period(np.ones(50))
    with pytest.raises(ValueError, match="x: got 3 points"):
        dominant_period(np.arange(3.0))
    with pytest.raises(ValueError, match="degree: got 0"):
        SparseFlow(degree=0)
    with pytest.raises(ValueError, match="t: must rise"):
        SparseFlow().fit(np.zeros((20, 2)), np.arange(20.0)[::-1].copy())
    with pytest.raises(ValueError, match="X: got"):
        SurrogateFeatures(np.ones((2, 100)), epochs=1).fit(np.full((2, 50), np.nan))
    with pytest.raises(ValueError, match="surrogates: got"):
        SurrogateFeatures(np.full((2, 100), np.nan), epochs=1).fit(
            np.random.default_rng(0).normal(size=(2, 50))
        )
