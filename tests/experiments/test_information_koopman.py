import numpy as np
import pandas as pd
import pytest
import torch

from szilard.experiments.information_koopman import (
    DMD,
    METHOD,
    PENDULUM,
    PERSISTENCE,
    experiment,
    load,
    networks,
    pendulum,
    pictures,
)

SMOKE = experiment.presets["smoke"].model_copy(update={"systems": (PENDULUM,)})


def silent(*_) -> None:
    pass


@pytest.fixture(scope="module")
def smoke() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {**row, "arm": arm, "seed": seed}
            for seed in range(SMOKE.seeds)
            for arm in experiment.arms(SMOKE)
            for row in experiment.run(SMOKE, arm, seed, silent)
        ]
    )


def test_smoke_ends_with_every_claim_and_figure(smoke):
    claims = experiment.claims(SMOKE, smoke)
    assert len(claims) == 6
    assert all(claim.measured is not None for claim in claims)
    figures = experiment.figures(SMOKE, smoke)
    assert len(figures) == 3
    assert all(len(figure.plot.data) > 0 for figure in figures)


def test_a_unit_is_a_pure_function_of_config_arm_and_seed(smoke):
    again = pd.DataFrame(experiment.run(SMOKE, METHOD, 1, silent))
    before = smoke[(smoke.arm == METHOD) & (smoke.seed == 1)]
    np.testing.assert_array_equal(again.value, before.value)


def test_the_pendulum_keeps_its_energy():
    angle, velocity = pendulum(np.random.default_rng(0), 20, 60)
    assert angle.shape == (20, 61)
    energy = velocity**2 / 2 - np.cos(angle)
    # Runge-Kutta of fourth order at a step of 0.02 errs by less than 1e-7 over 20 time units.
    np.testing.assert_allclose(energy, energy[:, :1] * np.ones(61), atol=1e-6)


def test_a_picture_shows_the_bob_now_and_before():
    frames = pictures(np.array([[0.0, np.pi / 2]]))
    assert frames.shape == (1, 1, 288)
    now, before = frames[0, 0].reshape(2, 12, 12)
    grid = np.linspace(-1.3, 1.3, 12)
    row, column = np.unravel_index(now.argmax(), now.shape)
    assert grid[column] == pytest.approx(1, abs=0.12)  # half a pixel
    assert grid[row] == pytest.approx(0, abs=0.12)
    row, column = np.unravel_index(before.argmax(), before.shape)
    assert grid[row] == pytest.approx(-1, abs=0.12)


def test_regressions_forecast_a_linear_flow_and_persistence_does_not(tmp_path):
    rng = np.random.default_rng(0)
    A = 0.99 * np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    x = [rng.standard_normal((30, 2))]
    for _ in range(59):
        x.append(x[-1] @ A.T)
    path = tmp_path / "spiral.npy"
    np.save(path, np.stack(x, 1))
    config = SMOKE.model_copy(update={"trajectories": path})
    errors = {
        arm: [r["value"] for r in experiment.run(config, arm, 0, silent) if r["metric"] == "error"]
        for arm in (DMD, PERSISTENCE)
    }
    assert max(errors[DMD]) < 1e-3
    assert min(errors[PERSISTENCE]) > 0.2
    rows = experiment.run(config, METHOD, 0, silent)
    assert {row["system"] for row in rows} == {"spiral"}


def test_fields_go_through_convolutions(tmp_path):
    config = SMOKE.model_copy(update={"latent_dim": 4})
    encoder, decoder = networks(config, torch.zeros(2, 16, 32))
    z = encoder(torch.zeros(3, 2, 16, 32))
    assert z.shape == (3, 4)
    assert decoder(z).shape == (3, 2, 16, 32)


def test_a_chaotic_system_is_integrated_once_and_unknown_ones_are_refused(tmp_path):
    config = SMOKE.model_copy(update={"systems": ("Lorenz",)})
    data = load(config, "Lorenz", 0)
    assert data.train.shape == (8, 40, 3)
    assert abs(float(data.train.mean())) < 1e-5
    with pytest.raises(ValueError, match="systems must be"):
        load(config, "Nowhere", 0)
    path = tmp_path / "bad.npy"
    np.save(path, np.full((5, 50, 2), np.nan))
    with pytest.raises(ValueError, match="trajectories must be finite"):
        load(SMOKE.model_copy(update={"trajectories": path}), "bad", 0)
