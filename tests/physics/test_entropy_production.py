import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from szilard.kernels.cells import soft_repulsion
from szilard.physics import (
    ActiveOU,
    DiffusionSystem,
    LocalScoreTransformer,
    Score,
    ScoreMLP,
    ScoreTrainer,
    entropy_production,
    gaussian_entropy_production,
)
from szilard.physics.entropy_production import nearest

M = np.array([[-0.05, 0.2], [0.0, -0.1]])
D = np.array([0.1, 0.1])


def trap(**more) -> ActiveOU:
    return ActiveOU(**({"N": 1, "d": 1, "v0": 0.2, "A": 0.05, "gamma": 0.1, "eps": 0.1} | more))


def gaussian_samples(n: int, seed: int = 0) -> torch.Tensor:
    C = gaussian_entropy_production(M, D)[1]
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.multivariate_normal(np.zeros(2), C, n))[:, None]


def exact_gaussian_score(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    precision = torch.from_numpy(np.linalg.inv(gaussian_entropy_production(M, D)[1]))
    return -z @ precision, -precision.diagonal().expand_as(z)


def small_transformer(**more) -> LocalScoreTransformer:
    torch.manual_seed(0)
    sizes = {"d": 2, "neighbours": 4, "width": 16, "layers": 2, "heads": 2, "embedding_layers": 1}
    net = LocalScoreTransformer(**(sizes | more)).double()
    # Away from its start at 0, where nothing could be told apart.
    torch.nn.init.normal_(net.read.weight, std=0.3)
    return net


def all_pairs(x: np.ndarray, beta: float, contact: float, reach: float, box: float):
    gap = x[:, None] - x
    if box:
        gap -= box * np.round(gap / box)
    r = np.sqrt((gap**2).sum(-1))
    near = (r < reach) & ~np.eye(len(x), dtype=bool)
    safe = np.where(near, r, 1.0)
    push = np.where(near, np.logaddexp(0, beta * (contact - safe)) / beta, 0)
    fall = np.where(near, 1 / (1 + np.exp(beta * (safe - contact))), 0)
    along = gap**2 / safe[..., None] ** 2
    force = ((push / safe)[..., None] * gap).sum(1)
    slope = (-fall[..., None] * along + (push / safe)[..., None] * (1 - along)).sum(1)
    return force, slope


# --- closed forms ---------------------------------------------------------------------------------


def test_a_trapped_active_particle_has_the_entropy_production_of_its_linear_drift():
    rate, C = gaussian_entropy_production(M, D)
    # v0^2 gamma / (eps (A + gamma)).
    assert rate == pytest.approx(0.2**2 * 0.1 / (0.1 * 0.15), rel=1e-12)
    np.testing.assert_allclose(C, [[22 / 3, 4 / 3], [4 / 3, 1]], rtol=1e-12)


@given(st.integers(0, 10_000))
def test_a_drift_with_detailed_balance_produces_no_entropy(seed):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((3, 3))
    S = root @ root.T + 0.1 * np.eye(3)
    noise = rng.uniform(0.1, 2, 3)
    rate, C = gaussian_entropy_production(-noise[:, None] * S, noise)
    np.testing.assert_allclose(C @ S, np.eye(3), atol=1e-7)
    assert abs(rate) < 1e-9


def test_the_exact_score_gives_the_exact_total_and_no_mean_divergence():
    z = gaussian_samples(40_000)
    found = entropy_production(trap(), exact_gaussian_score, z)
    # Four standard errors of 40,000 independent samples.
    error = 4 * found.per_particle.std() / 200
    assert abs(found.total - 4 / 15) < error
    assert abs(found.score_free - 4 / 15) < 0.02
    np.testing.assert_allclose(found.system_part, 0, atol=1e-12)  # v is linear and traceless
    assert abs(found.v_dot_s) < 0.02
    assert found.by_coordinate.sum() == pytest.approx(found.total)


def test_a_generic_system_has_the_terms_of_the_active_one():
    system = trap()
    generic = DiffusionSystem(lambda z: z @ torch.from_numpy(M).mT, torch.from_numpy(D))
    z = gaussian_samples(10)
    for ours, theirs in zip(system.terms(z)[:2], generic.terms(z)[:2], strict=True):
        torch.testing.assert_close(ours, theirs)


# --- particles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("box", [0.0, 9.0, 14.0, 30.0])
@pytest.mark.parametrize("n", [1, 2, 40])
def test_cell_lists_meet_each_neighbour_once(d, box, n):
    rng = np.random.default_rng(d * n)
    x = rng.uniform(-8, 8, (n, d))
    if box:
        x = (x + box / 2) % box - box / 2
    settings = {"beta": 7.5, "contact": 2.0, "reach": 4.0, "box": box}
    other = x[::-1] / 3  # a second cloud of another extent
    found = soft_repulsion(np.stack([x, other]), **settings)
    for b, cloud in enumerate((x, other)):
        for part, expected in zip(found, all_pairs(cloud, **settings), strict=True):
            np.testing.assert_allclose(part[b], expected, rtol=1e-10, atol=1e-12)


@given(st.integers(0, 10_000))
def test_forces_sum_to_zero(seed):
    x = np.random.default_rng(seed).uniform(-5, 5, (30, 2))
    force, _ = ActiveOU(N=30, half_width=5.0).repulsion(x)
    np.testing.assert_allclose(force.sum(0), 0, atol=1e-11)


def test_one_far_particle_does_not_ask_for_memory():
    x = np.concatenate([np.random.default_rng(0).uniform(-5, 5, (30, 2)), [[1e9, -1e9]]])
    settings = {"beta": 7.5, "contact": 2.0, "reach": 4.0, "box": 0.0}
    np.testing.assert_allclose(
        soft_repulsion(x[None], **settings)[0][0], all_pairs(x, **settings)[0], atol=1e-10
    )


def test_divergences_are_those_of_autograd():
    system = ActiveOU(N=6, A=0.05, v0=0.3)
    z = torch.from_numpy(np.random.default_rng(1).normal(0, 1.5, (2, 6, 4)))

    def drift(z: torch.Tensor) -> torch.Tensor:
        x, g = z[..., :2], z[..., 2:]
        gap = x[:, :, None] - x[:, None]
        r = (gap.square().sum(-1) + torch.eye(6)).sqrt()
        push = torch.nn.functional.softplus(7.5 * (2 - r)) / 7.5 * (1 - torch.eye(6))
        force = 2.5 * ((push / r)[..., None] * gap).sum(2)
        return torch.cat([0.3 * g + force - 0.05 * x, -0.1 * g], -1)

    b, slope, shift, own = system.terms(z)
    b_, slope_, _, _ = DiffusionSystem(drift, system.D).terms(z)
    # Beyond its reach the force is 1e-7 k / beta.
    torch.testing.assert_close(b, b_, atol=1e-6, rtol=0)
    torch.testing.assert_close(slope, slope_, atol=1e-6, rtol=0)
    still = ActiveOU(N=6, A=0.05, v0=0.0).terms(z)
    torch.testing.assert_close(shift, still[0] / system.D)
    torch.testing.assert_close(own, still[1] / system.D)


def test_without_propulsion_an_untrained_network_sees_equilibrium():
    system = ActiveOU(N=8, v0=0.0, A=0.05)
    z = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (3, 8, 4)))
    net = LocalScoreTransformer(2, 4, width=16, layers=1, heads=2, embedding_layers=1).double()
    with pytest.warns(UserWarning, match="score-free"):  # these are no stationary snapshots
        found = entropy_production(system, Score(system, net), z)
    np.testing.assert_allclose(found.velocity, 0, atol=1e-14)
    assert found.total < 1e-25


def test_free_flight_has_the_moments_of_its_equations():
    system = trap(N=400, k=0.0)
    z = system.simulate(1, every=1, dt=0.1, rng=np.random.default_rng(0), trajectories=5)
    # 2,000 independent particles; the Euler step biases by O(dt).
    np.testing.assert_allclose(
        np.cov(z.reshape(-1, 2).T), [[22 / 3, 4 / 3], [4 / 3, 1]], rtol=0.12, atol=0.12
    )


def test_positions_stay_on_the_torus_and_discs_apart():
    system = ActiveOU(N=60, phi=0.5, gamma=1.0, eps=0.01, v0=0.05, k=10.0)
    z = system.simulate(2, every=1.0, dt=0.01, burn_in=5.0, rng=np.random.default_rng(0))
    x = z[0, -1, :, :2]
    assert np.abs(x).max() <= system.w
    assert math.isclose(60 * math.pi / (2 * system.w) ** 2, 0.5)
    gap = x[:, None] - x
    gap -= 2 * system.w * np.round(gap / (2 * system.w))
    r = np.sqrt((gap**2).sum(-1)) + 9 * np.eye(60)
    assert r.min() > 1.2


def test_a_simulation_goes_on_where_it_stopped():
    system, rng = ActiveOU(N=5, A=0.1), np.random.default_rng(3)
    how = {"every": 0.2, "dt": 0.1, "step": "euler"}
    whole = system.simulate(4, burn_in=0.5, rng=rng, **how)
    rng = np.random.default_rng(3)
    first = system.simulate(2, burn_in=0.5, rng=rng, **how)
    rest = system.simulate(2, burn_in=0.2, start=first[:, -1], rng=rng, **how)
    np.testing.assert_array_equal(np.concatenate([first, rest], 1), whole)


def test_averaged_noise_samples_a_harmonic_trap_exactly_at_any_time_step():
    system, dt = ActiveOU(N=50, d=1, v0=0.0, A=1.0, k=1e-12, eps=1.0, gamma=1.0), 0.5
    variance = {
        step: float(
            system.simulate(
                200, every=2.0, dt=dt, burn_in=20.0, trajectories=40, step=step,
                rng=np.random.default_rng(0),
            )[..., 0].var()
        )
        for step in ("leimkuhler-matthews", "euler")
    }  # fmt: skip
    # 400,000 values, nearly independent: five standard errors.
    assert variance["leimkuhler-matthews"] == pytest.approx(1, abs=0.02)
    assert variance["euler"] == pytest.approx(1 / (1 - dt / 2), abs=0.03)


@pytest.mark.usefixtures("unhooked")
def test_an_unknown_step_is_refused():
    with pytest.raises(ValueError, match="step must be"):
        ActiveOU(N=2, A=1.0).simulate(
            1, every=1.0, dt=0.1, step="heun", rng=np.random.default_rng(0)
        )


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("half_width", [None, 6.0])
def test_permuting_particles_permutes_the_score(half_width):
    net = small_transformer(half_width=half_width)
    z = torch.from_numpy(np.random.default_rng(0).uniform(-6, 6, (2, 9, 4)))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(z[:, order]), net(z)[:, order])


def test_what_is_beyond_the_reach_does_not_matter_and_entering_it_is_smooth():
    torch.manual_seed(0)
    net = LocalScoreTransformer(
        2, 3, width=16, layers=2, heads=2, embedding_layers=1, reach=2.0, contact=(2.0, 7.5)
    )
    torch.nn.init.normal_(net.read.weight)
    z = torch.zeros(1, 5, 4)
    z[0, :, 0] = torch.tensor([0.0, 1.0, 5.0, 6.0, 9.0])

    def at(x: float) -> torch.Tensor:
        moved = z.clone()
        moved[0, 4, 0] = x
        with torch.no_grad():
            return net(moved)[0, 0]

    # What is left of attention at the reach is a millionth.
    torch.testing.assert_close(at(-9.0), at(-2.01), atol=1e-3, rtol=0)
    assert (at(-2.01) - at(-1.99)).abs().max() < 1e-2
    assert (at(-9.0) - at(-0.5)).abs().max() > 1e-2


def test_the_divergence_counts_contacts_and_reach():
    torch.manual_seed(1)
    net = LocalScoreTransformer(
        2, 3, width=16, layers=1, heads=2, embedding_layers=1, reach=3.0, contact=(2.0, 7.5)
    ).double()
    torch.nn.init.normal_(net.read.weight)
    z = torch.from_numpy(np.random.default_rng(2).normal(size=(1, 5, 4)))
    _, slope = net.with_divergence(z)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x).flatten(), z)
    torch.testing.assert_close(slope.flatten(), jacobian.flatten(1).diagonal())


def test_moving_everything_on_the_torus_changes_nothing():
    net = small_transformer(half_width=6.0)
    z = torch.from_numpy(np.random.default_rng(0).uniform(-6, 6, (2, 9, 4)))
    moved = z.clone()
    moved[..., :2] = (moved[..., :2] + torch.tensor([3.3, -2.1]) + 6) % 12 - 6
    torch.testing.assert_close(net(moved), net(z))
    torch.testing.assert_close(net.with_divergence(moved)[1], net.with_divergence(z)[1])


def test_own_divergences_are_the_diagonal_of_the_jacobian():
    net = small_transformer()
    z = torch.from_numpy(np.random.default_rng(2).normal(0, 3, (1, 7, 4)))
    slope = net.with_divergence(z)[1]
    jacobian = torch.autograd.functional.jacobian(lambda z: net(z), z).reshape(28, 28)
    torch.testing.assert_close(slope.flatten(), jacobian.diagonal())


def test_the_divergence_in_a_loss_can_be_differentiated():
    net = small_transformer()
    z = torch.from_numpy(np.random.default_rng(2).normal(0, 3, (2, 7, 4)))
    s, slope = net.with_divergence(z, create_graph=True)
    (s**2 + 2 * slope).mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert net.embed_x[0].weight.grad.abs().max() > 0


def test_an_odd_network_is_odd():
    torch.manual_seed(0)
    net = ScoreMLP(2, (8,), period=(4.0, 0.0), odd=True).double()
    torch.nn.init.normal_(net.net[-1].weight)
    z = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (5, 1, 2)))
    torch.testing.assert_close(net(-z), -net(z))
    shifted = z + torch.tensor([4.0, 0.0])
    torch.testing.assert_close(net(shifted), net(z))


@pytest.mark.parametrize("half_width", [None, 4.0])
def test_nearest_others_are_nearest(half_width):
    x = torch.from_numpy(np.random.default_rng(0).uniform(-4, 4, (2, 12, 2)))
    x[0, 3] = x[0, 4] = x[0, 5]  # three at one place
    gap = x[:, :, None] - x[:, None]
    if half_width:
        gap = gap - 8 * (gap / 8).round()
    r = gap.norm(dim=-1) + 99 * torch.eye(12)
    near = nearest(x, 5, half_width)
    assert (near != torch.arange(12)[:, None]).all()
    torch.testing.assert_close(r.gather(2, near), r.sort(-1).values[..., :5])


# --- learning -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {"loss": "ism"},
        {"loss": "ism", "stationarity": 1.0},
        {"loss": "ism", "probes": 2},
        {"loss": "dsm", "sigma": 0.1},
    ],
    ids=["exact", "residual", "probes", "denoising"],
)
def test_the_score_of_the_trapped_particle_is_learned(how):
    system, z = trap(), gaussian_samples(20_000).float()
    torch.manual_seed(0)
    trainer = ScoreTrainer(ScoreMLP(2, (32, 32)), system, learning_rate=5e-3, decay=0.99, **how)
    score = trainer.fit(z, steps=300, batch_size=512, generator=torch.Generator().manual_seed(0))
    held_out = gaussian_samples(4_000, seed=1).float()
    exact = exact_gaussian_score(held_out.double())[0]
    found = score(held_out)[0]
    # Learned in 300 steps from 20,000 samples: a tenth, where the equilibrium score alone misses by
    # a third.
    assert float((found - exact).norm() / exact.norm()) < 0.12
    result = entropy_production(system, score, held_out)
    assert result.total == pytest.approx(4 / 15, rel=0.12)


def test_training_is_a_pure_function_of_its_generator_and_refreshes():
    system, calls = trap(), []

    def more(step: int) -> np.ndarray:
        calls.append(step)
        return gaussian_samples(50, seed=step).numpy()

    def weights() -> torch.Tensor:
        torch.manual_seed(0)
        trainer = ScoreTrainer(ScoreMLP(2, (8,)), system)
        score = trainer.fit(
            gaussian_samples(50), steps=5, batch_size=8, refresh=more, refresh_every=2,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return torch.nn.utils.parameters_to_vector(score.network.parameters())

    assert torch.equal(weights(), weights())
    assert calls == [2, 4, 2, 4]


def test_without_translational_noise_only_the_propulsion_counts():
    system = ActiveOU(N=6, phi=0.3, eps=0.0, gamma=1.0, v0=0.1, k=1.0)
    z = system.simulate(4, every=1.0, dt=0.1, burn_in=5.0, rng=np.random.default_rng(0))[0]
    torch.manual_seed(0)
    net = LocalScoreTransformer(
        2, 3, half_width=system.w, width=16, layers=1, heads=2, embedding_layers=1
    )
    score = ScoreTrainer(net, system, loss="dsm").fit(
        z.astype(np.float32), steps=3, batch_size=2, generator=torch.Generator().manual_seed(0)
    )
    with pytest.raises(ValueError, match=r"coordinates \[0, 1\] have no noise"):
        entropy_production(system, score, z)
    found = entropy_production(system, score, z, coordinates=[2, 3])
    assert found.per_particle.shape == (4, 6)
    assert len(found.by_coordinate) == 2
    assert len(found.plot(1).data) == 1


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ActiveOU(N=0), "N must"),
        (lambda: ActiveOU(N=2, d=4, phi=0.1), "d must"),
        (lambda: ActiveOU(N=2), "A must be positive in open space"),
        (lambda: ActiveOU(N=2, phi=0.5, half_width=3.0), "phi and half_width"),
        (lambda: ActiveOU(N=2, phi=-0.5), "phi must"),
        (lambda: ActiveOU(N=2, A=0.1, gamma=0.0), "gamma must"),
        (lambda: ActiveOU(N=2, A=0.1, eps=math.nan), "eps must"),
        (lambda: DiffusionSystem(lambda z: z, -torch.ones(2)), "D must"),
        (lambda: gaussian_entropy_production(np.eye(2), np.ones(2)), "M must"),
        (lambda: gaussian_entropy_production(M, np.zeros(2)), "D must"),
        (lambda: ScoreMLP(2, (4,), period=(1.0,)), "period must"),
        (lambda: LocalScoreTransformer(neighbours=0), "neighbours must"),
        (lambda: LocalScoreTransformer(width=10, heads=4), "width must"),
        (lambda: small_transformer()(torch.zeros(1, 4, 4).double()), "more than neighbours = 4"),
        (lambda: ScoreTrainer(ScoreMLP(2), trap(), loss="other"), "loss must"),
        (lambda: ScoreTrainer(ScoreMLP(2), trap(), loss="dsm", stationarity=1.0), "stationarity"),
        (lambda: ScoreTrainer(ScoreMLP(2), trap(), sigma=0.0), "sigma must"),
        (lambda: ScoreTrainer(ScoreMLP(2), trap(eps=0.0), coordinates=[0]), "coordinates must"),
        (lambda: ScoreTrainer(ScoreMLP(2), trap()).fit(gaussian_samples(4), steps=0), "steps"),
        (
            lambda: ScoreTrainer(ScoreMLP(2), trap()).fit(torch.full((3, 1, 2), math.nan), steps=1),
            "snapshots must be finite",
        ),
        (
            lambda: entropy_production(trap(), exact_gaussian_score, torch.zeros(3, 1, 3)),
            "snapshots must have the shape",
        ),
        (
            lambda: entropy_production(
                trap(), exact_gaussian_score, gaussian_samples(3), coordinates=[5]
            ),
            "coordinates must be some",
        ),
        (lambda: trap().simulate(1, every=1, dt=0.0, rng=np.random.default_rng()), "dt must"),
        (lambda: trap().simulate(1, every=0.1, dt=1.0, rng=np.random.default_rng()), "every must"),
        (lambda: trap().simulate(0, every=1, dt=0.1, rng=np.random.default_rng()), "snapshots"),
        (
            lambda: trap().simulate(
                1, every=1, dt=0.1, start=np.zeros((1, 2, 2)), rng=np.random.default_rng()
            ),
            "start must",
        ),
    ],
)
def test_bad_input_names_the_argument(call, message, unhooked):
    with pytest.raises(ValueError, match=message):
        call()
