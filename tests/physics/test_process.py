import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from szilard.physics import InfeasibleError, Process

RING = np.array([np.roll([0.2, 0.6, 0.2, 0.0], k - 1) for k in range(4)])
STEP = np.array([[[0, 1, 0, -1][(b - a) % 4] for b in range(4)] for a in range(4)])
EVEN = np.full(4, 0.25)


def random_process(seed: int, causal: bool, observables: int = 2, states: int = 4):
    rng = np.random.default_rng(seed)
    process = Process(
        rng.dirichlet(np.ones(states), states),
        rng.standard_normal((states, states, observables)),
        rng.dirichlet(np.ones(states)),
        causal,
    )
    return process, rng.standard_normal((5, observables))


def numeric_response(process: Process, lam: np.ndarray, h: float = 1e-5) -> np.ndarray:
    columns = []
    for index in np.ndindex(lam.shape):
        up, down = lam.copy(), lam.copy()
        up[index] += h
        down[index] -= h
        columns.append((process.run(up).means - process.run(down).means) / (2 * h))
    stacked = np.stack(columns, axis=-1).reshape(*lam.shape, *lam.shape)
    return stacked if lam.ndim == 1 else stacked.transpose(0, 2, 1, 3)


# --- oracles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_a_driven_ring_has_the_closed_form(causal):
    process = Process(RING, STEP, EVEN, causal)
    run = process.run([-1.0, -1.0, -1.0])
    z = 0.6 + 0.4 * math.cosh(1)
    mean = 0.4 * math.sinh(1) / z
    assert mean == pytest.approx(0.386188, abs=1e-6)
    np.testing.assert_allclose(run.means, mean, rtol=1e-12)
    assert run.caliber / 3 == pytest.approx(0.189608, abs=1e-6)
    assert run.free_energy == pytest.approx(-3 * math.log(z), rel=1e-12)
    np.testing.assert_allclose(np.diag(process.response([-1.0] * 3)), -0.357937, atol=1e-6)
    loss = process.information_loss([-1.0] * 3)
    np.testing.assert_allclose(loss.total, 2 * mean, rtol=1e-10)
    assert 2 * mean == pytest.approx(0.772376, abs=1e-6)


def test_a_gaussian_reference_gives_einsteins_relation_and_the_onsager_machlup_weight():
    x, dx = np.linspace(-12, 12, 241, retstep=True)
    diffusion, force = 0.5, 0.8  # 2 D dt = 1, lambda = -beta f / 2
    kernel = np.exp(-((x[None] - x[:, None]) ** 2) / (4 * diffusion)) * dx
    start = np.zeros(241)
    start[120] = 1
    process = Process(
        kernel / kernel.sum(1, keepdims=True), x[None] - x[:, None], start, causal=True
    )
    run = process.run([-force / 2])
    # The grid's tails are cut at 12 standard deviations: exact to rounding.
    assert run.means[0] == pytest.approx(diffusion * force, rel=1e-9)
    assert run.free_energy == pytest.approx(-diffusion * (force / 2) ** 2, rel=1e-9)
    driven = np.exp(-((x - diffusion * force) ** 2) / (4 * diffusion))
    np.testing.assert_allclose(run.marginals[1], driven / driven.sum(), atol=1e-12)


@given(st.integers(0, 10_000), st.booleans())
def test_the_response_is_the_derivative_of_the_means_at_any_drive(seed, causal):
    process, lam = random_process(seed, causal)
    # Central differences err by h^2 and by rounding over h, both near 1e-10.
    np.testing.assert_allclose(process.response(lam), numeric_response(process, lam), atol=3e-9)


@given(st.integers(0, 10_000))
def test_causes_precede_effects_only_in_the_causal_ensemble(seed):
    causal, lam = random_process(seed, True, observables=1)
    chi = causal.response(lam)[:, :, 0, 0]
    assert np.abs(np.triu(chi, 1)).max() == 0
    whole, _ = random_process(seed, False, observables=1)
    chi = whole.response(lam)[:, :, 0, 0]
    np.testing.assert_allclose(chi, chi.T, rtol=1e-12)
    assert np.linalg.eigvalsh(chi).max() < 1e-12  # minus a covariance


def test_the_ensembles_agree_over_one_step_from_a_known_state_and_differ_beyond():
    start = np.array([1.0, 0, 0, 0])
    rng = np.random.default_rng(2)
    kernel, g = rng.dirichlet(np.ones(4), 4), rng.standard_normal((4, 4))
    causal, whole = (Process(kernel, g, start, kind) for kind in (True, False))
    np.testing.assert_allclose(causal.run([0.7]).means, whole.run([0.7]).means, rtol=1e-12)
    drive = [0.7, -1.2]
    assert causal.run(drive).means[0] != pytest.approx(whole.run(drive).means[0], abs=1e-3)
    assert (causal.run(drive).mode, whole.run(drive).mode) == ("causal", "whole-path")


@given(st.integers(0, 10_000), st.booleans())
def test_the_caliber_is_the_divergence_of_paths(seed, causal):
    process, lam = random_process(seed, causal, states=3)
    reference = process.run(np.zeros_like(lam))
    run = process.run(lam)
    p, q = run.transitions, reference.transitions
    path = np.einsum("tx,txy,txy->", run.marginals[:-1], p, np.log(p) - np.log(q))
    first = (run.marginals[0] * np.log(run.marginals[0] / reference.marginals[0])).sum()
    assert run.caliber == pytest.approx(path + first, abs=1e-10)
    assert reference.caliber == pytest.approx(0, abs=1e-14)


def test_the_whole_path_ensemble_is_the_enumerated_one():
    process, lam = random_process(4, False, observables=1, states=3)
    kernel, g = process._reference, process._g[:, :, 0]
    weights, steps = {}, lam[:3, 0]
    for path in np.ndindex(3, 3, 3, 3):
        weight = process._start[path[0]]
        for t in range(3):
            a, b = path[t], path[t + 1]
            weight *= kernel[a, b] * math.exp(-steps[t] * g[a, b])
        weights[path] = weight
    z = sum(weights.values())
    run = process.run(steps[:, None])
    assert run.free_energy == pytest.approx(-math.log(z), rel=1e-12)
    for t in range(3):
        mean = sum(w * g[path[t], path[t + 1]] for path, w in weights.items()) / z
        assert run.means[t, 0] == pytest.approx(mean, rel=1e-10)


@pytest.mark.parametrize("causal", [True, False])
def test_a_thousand_steps_neither_overflow_nor_vanish(causal):
    run = Process(RING, 50.0 * STEP, EVEN, causal).run(np.full(1000, -3.0))
    np.testing.assert_allclose(run.means, 50, rtol=1e-12)
    np.testing.assert_allclose(run.marginals.sum(1), 1, rtol=1e-9)
    assert run.caliber / 1000 == pytest.approx(math.log(5), rel=1e-9)  # the step of chance 0.2


# --- fitting --------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.booleans())
def test_fitting_undoes_running(seed, causal):
    process, lam = random_process(seed, causal)
    found = process.fit(process.run(lam).means)
    # Means are met to 1e-10; multipliers to that over the smallest covariance.
    np.testing.assert_allclose(process.run(found).means, process.run(lam).means, atol=1e-9)


@pytest.mark.parametrize("causal", [True, False])
def test_a_mean_beyond_every_step_is_refused(causal):
    with pytest.raises(InfeasibleError, match="targets"):
        Process(RING, STEP, EVEN, causal).fit([0.5, 1.1])


# --- information loss -----------------------------------------------------------------------------


@given(st.integers(0, 10_000))
def test_no_step_gains_information(seed):
    process, lam = random_process(seed, True)
    loss = process.information_loss(lam)
    assert (loss.exchange + loss.system >= -1e-12).all()
    np.testing.assert_allclose(loss.total, loss.exchange + loss.system, atol=1e-12)


def test_nothing_is_lost_at_rest_and_only_there():
    rest = Process(RING, STEP, EVEN)
    np.testing.assert_allclose(rest.information_loss(np.zeros(3)).total, 0, atol=1e-15)
    relaxing = Process(RING, STEP, [0.7, 0.1, 0.1, 0.1])
    assert (relaxing.information_loss(np.zeros(3)).total > 1e-3).all()
    turning = Process(
        np.roll(np.eye(3), 1, 1) * 0.6 + np.eye(3) * 0.4, np.zeros((3, 3)), np.ones(3) / 3
    )
    assert turning.information_loss(np.zeros(2)).total.tolist() == [np.inf, np.inf]


def test_odd_variables_are_flipped_in_the_reversal():
    # A particle that moves on with its velocity: states (site, velocity) on a ring of three.
    sites, move = 3, np.zeros((6, 6))
    for site in range(sites):
        for v, sign in ((0, 1), (1, -1)):
            move[2 * site + v, 2 * ((site + sign) % sites) + v] = 1
    flip = [2 * (s // 2) + 1 - s % 2 for s in range(6)]
    process = Process(move, np.zeros((6, 6)), np.full(6, 1 / 6))
    np.testing.assert_allclose(
        process.information_loss(np.zeros(2), parity=flip).total, 0, atol=1e-15
    )
    assert np.isinf(process.information_loss(np.zeros(2)).total).all()


def test_a_reference_that_changes_in_time_is_followed():
    kernels = np.stack([RING, np.eye(4), RING])
    process = Process(kernels, STEP, [1.0, 0, 0, 0])
    run = process.run(np.zeros(3))
    np.testing.assert_allclose(run.marginals[2], run.marginals[1])
    reverse = process.information_loss(np.zeros(3), reverse=kernels).total
    np.testing.assert_allclose(reverse, process.information_loss(np.zeros(3)).total)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"W": RING[:3]}, "W must have the shape"),
        ({"W": 0.9 * RING}, "W must sum to 1"),
        ({"W": 2 * np.eye(4) - np.roll(np.eye(4), 1, 1)}, "W must not be negative"),
        ({"g": STEP[:2]}, "g must have the shape"),
        ({"g": STEP * np.nan}, "g must be finite"),
        ({"p0": np.ones(3) / 3}, "p0 must have the shape"),
        ({"p0": np.ones(4)}, "p0 must sum to 1"),
    ],
)
def test_a_process_refuses_bad_input_by_name(changed, message):
    with pytest.raises(ValueError, match=message):
        Process(**({"W": RING, "g": STEP, "p0": EVEN} | changed))


def test_drives_are_checked():
    process = Process(RING, STEP, EVEN)
    for bad in ([], [[0.0]], [np.nan]):
        with pytest.raises(ValueError, match="multipliers must"):
            process.run(bad)
    with pytest.raises(ValueError, match="targets must"):
        process.fit([np.inf])
    with pytest.raises(ValueError, match="3 steps of W"):
        Process(np.stack([RING] * 3), STEP, EVEN).run([0.0])
    with pytest.raises(ValueError, match="reverse must"):
        process.information_loss([0.0], reverse=np.eye(3))
    with pytest.raises(ValueError, match="parity must"):
        process.information_loss([0.0], parity=[1, 2, 3, 0])


def test_a_plot_shows_probabilities_and_means():
    assert len(Process(RING, STEP, EVEN).run([0.0, 1.0]).plot().data) == 2
