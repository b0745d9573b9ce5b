import itertools

import antropy
import numpy as np
import pandas as pd
import pytest

from szilard.experiments import _peccary_series as systems
from szilard.experiments.peccary import (
    CLASSES,
    auc,
    experiment,
    hindsight_accuracy,
    sample_entropy,
    spectral_entropy,
    zero_one_test,
)


def table_of(config) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {**row, "arm": arm, "seed": seed}
            for seed in range(config.seeds)
            for arm in experiment.arms(config)
            for row in experiment.run(config, arm, seed, lambda *_: None)
        ]
    )


@pytest.fixture(scope="module")
def smoke() -> pd.DataFrame:
    return table_of(experiment.presets["smoke"])


# --- the experiment -------------------------------------------------------------------------------


def test_smoke_ends_with_every_claim_and_figure(smoke):
    config = experiment.presets["smoke"]
    claims = experiment.claims(config, smoke)
    assert len(claims) == 9
    assert all(claim.measured is not None for claim in claims)
    figures = experiment.figures(config, smoke)
    assert len(figures) == 6
    assert all(len(figure.plot.data) > 0 for figure in figures)


def test_a_unit_is_a_pure_function_of_config_arm_and_seed(smoke):
    config = experiment.presets["smoke"]
    again = pd.DataFrame(experiment.run(config, "peccary", 1, lambda *_: None))
    before = smoke[(smoke.arm == "peccary") & (smoke.seed == 1)]
    np.testing.assert_array_equal(again.value, before.value)


def test_orbit_claims_need_both_kinds_of_orbit(smoke):
    config = experiment.presets["smoke"]
    regular = smoke[~smoke.chaotic.fillna(False).astype(bool)]
    last = experiment.claims(config, regular)[-1]
    assert last.verdict.value == "not measurable at this scale"
    assert experiment.figures(config, regular)


def test_the_paper_preset_starts_from_configuration_alone():
    paper = experiment.presets["paper"]
    tiny = type(paper)(
        **{
            **paper.model_dump(),
            "seeds": 1,
            "orbits": 4,
            "orbit_samples": 100,
            "exponent_time": 4,
            "orbit_block": 4,
            "device": "cpu",
        }
    )
    table = table_of(tiny)
    assert set(table.group) == set(systems.POTENTIALS)
    assert len(table) == len(experiment.arms(tiny)) * 4 * 4
    assert table.drift.max() < 1e-4
    assert experiment.claims(tiny, table)
    assert experiment.figures(tiny, table)


# --- systems --------------------------------------------------------------------------------------


def test_lorenz_has_its_lyapunov_exponent():
    series = systems.labelled_series(
        np.random.default_rng(0), per_kind=4, noises=1, samples=20_000, period=200
    )["Lorenz x"]
    exponent = series.growth[:, -1] / (20_000 * systems.LORENZ_PERIOD / 200)
    # 0.906 in the literature; the mean over 4 x 98 time units scatters by a few per cent.
    assert exponent.mean() == pytest.approx(0.906, abs=0.06)


def test_a_double_pendulum_keeps_its_energy():
    dt, g = 1e-3, 9.80665
    start = np.array([[2.1, 0.0, -0.2, 0.0]])
    states, _ = systems._integrate(systems._PENDULUM, start, dt, 4000)
    a, u, b, v = states[0].T
    energy = u**2 + v**2 / 2 + u * v * np.cos(a - b) - g * (2 * np.cos(a) + np.cos(b))
    np.testing.assert_allclose(energy, energy[0], rtol=1e-9)


@pytest.fixture(scope="module")
def orbits() -> systems.Orbits:
    return systems.henon_heiles(
        np.random.default_rng(0),
        energies=(1 / 12, 1 / 6),
        per_energy=5,
        time=100,
        dt=0.02,
        exponent_time=1000,
    )


def test_henon_heiles_conserves_energy_and_chaos_grows_with_it(orbits):
    assert orbits.drift.max() < 1e-10
    low, high = orbits.exponent[:5], orbits.exponent[5:]
    assert (np.abs(low) < 0.02).all()  # ln(1000) / 1000 = 0.007 for linear growth
    assert (high > 0.05).sum() >= 4  # nearly the whole surface at escape energy is chaotic


def test_orbits_start_on_the_section_and_stay_in_the_well(orbits):
    assert (orbits.x[:, 0] == 0).all()
    assert np.abs(orbits.x).max() < 1


@pytest.mark.parametrize("name", systems.POTENTIALS)
def test_accelerations_are_the_gradient_of_the_jacobi_integral(name):
    torch = pytest.importorskip("torch")
    potential = systems.POTENTIALS[name]
    state = torch.randn(
        6, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    total = systems._jacobi(state, potential).sum()
    gradient = torch.autograd.grad(total, state)[0]
    rate = systems._galactic_rhs(state, potential)
    # The integral is constant along the flow.
    drift = (gradient * rate).sum(0)
    torch.testing.assert_close(drift, torch.zeros_like(drift), atol=1e-12, rtol=0)


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_noise_has_its_spectrum(slope):
    x = systems.coloured_noise(np.random.default_rng(0), 200, 4096, slope)
    power = (np.abs(np.fft.rfft(x)) ** 2).mean(0)[1:-1]
    fitted = np.polyfit(np.log(np.arange(1, len(power) + 1)), np.log(power), 1)[0]
    assert fitted == pytest.approx(-2 * slope, abs=0.02)


# --- baselines ------------------------------------------------------------------------------------


def test_sample_entropy_is_the_peers():
    x = np.random.default_rng(0).standard_normal(500)
    # The peer's tolerance is the same 0.2 standard deviations.
    assert sample_entropy(x[None], 1)[0] == pytest.approx(antropy.sample_entropy(x), abs=0.02)


def test_spectral_entropy_of_one_line_and_of_white_noise():
    t = np.arange(1024)
    line = np.sin(2 * np.pi * t / 64)
    noise = np.random.default_rng(0).standard_normal(1024)
    one, flat = spectral_entropy(np.stack([line, noise]), 1)
    assert one == pytest.approx(0, abs=1e-12)
    # Exponentially distributed powers cost 1 - gamma nats of ln 512.
    assert flat == pytest.approx(1 - (1 - np.euler_gamma) / np.log(512), abs=0.02)


def test_zero_one_test_tells_the_logistic_map_from_a_sine():
    chaos = np.empty(1000)
    chaos[0] = 0.3
    for i in range(1, 1000):
        chaos[i] = 4 * chaos[i - 1] * (1 - chaos[i - 1])
    cycle = np.sin(2 * np.pi * np.arange(1000) / 7.3)
    k = zero_one_test(np.stack([cycle, chaos]), 1)
    assert k[0] < 0.1
    assert k[1] > 0.9


def test_auc_counts_pairs():
    scores = np.array([0.1, 0.4, 0.4, 0.8])
    positive = np.array([False, False, True, True])
    assert auc(scores, positive) == pytest.approx((0.5 + 1 + 1 + 1) / 4)
    assert np.isnan(auc(scores, np.ones(4, bool)))


def test_hindsight_accuracy_is_the_best_of_all_pairs_of_cuts():
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 8, 25).astype(float), rng.choice(CLASSES, 25)
    edges = [-1, *range(8)]
    best = max(
        (np.select([scores <= a, scores <= b], classes[:2], classes[2]) == truth).mean()
        for a, b in itertools.combinations_with_replacement(edges, 2)
        for classes in itertools.permutations(CLASSES)
    )
    assert hindsight_accuracy(scores, truth) == pytest.approx(best)
