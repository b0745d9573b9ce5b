import math

import numpy as np
import pytest
import torch
from deeptime.decomposition import DMD
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from torch import nn

from szilard.dynamics import (
    InformationKoopman,
    InformationKoopmanLoss,
    effective_dimension,
    latent_entropy,
    linear_gaussian_information,
    ridge_operator,
    temporal_infonce,
    water_filling,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear_trajectories(
    A: torch.Tensor, n: int = 24, time: int = 40, seed: int = 0
) -> torch.Tensor:
    x = [normal(n, len(A), seed=seed)]
    for _ in range(time - 1):
        x.append(x[-1] @ A.T)
    return torch.stack(x, 1)


# --- coherence ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.07, 0.1, 1.0])
def test_a_constant_sequence_knows_only_how_many_are_near(tau):
    # Four positives among nine candidates.
    loss = temporal_infonce(torch.ones(1, 10, 3), k=2, tau=tau)
    assert loss.item() == pytest.approx(-math.log(4 / 9), abs=1e-5)


@given(st.integers(0, 1000), st.sampled_from(["sum", "mean"]), st.sampled_from(["inner", "all"]))
def test_the_loss_is_its_definition_anchor_by_anchor(seed, positives, valid):
    k, tau = 2, 0.3
    z = normal(3, 7, 4, seed=seed).double()
    u = z / z.norm(dim=-1, keepdim=True)
    losses = []
    for b in range(3):
        for n in range(k, 7 - k) if valid == "inner" else range(7):

            def score(c, m, b=b, n=n):
                return math.exp(float(u[b, n] @ u[c, m]) / tau)

            near = [m for m in range(7) if 0 < abs(m - n) <= k]
            own = sum(score(b, m) for m in range(7) if m != n)
            whole = sum(score(c, m) for c in range(3) for m in range(7) if (c, m) != (b, n))
            if positives == "sum":
                losses.append(-math.log(sum(score(b, m) for m in near) / own))
            else:
                losses.append(-np.mean([math.log(score(b, m) / whole) for m in near]))
    found = temporal_infonce(z, k, tau, positives, valid)
    assert found.item() == pytest.approx(np.mean(losses), rel=1e-9)


def test_contrastive_information_stays_below_the_true_one():
    K, Q = np.array([[0.95, 0.1], [0.0, 0.5]]), np.diag([0.1, 0.2])
    rng = np.random.default_rng(0)
    z = np.zeros((64, 40, 2))
    noise = rng.standard_normal((64, 140, 2)) * np.sqrt(np.diag(Q))
    state = np.zeros((64, 2))
    for t in range(140):
        state = state @ K.T + noise[:, t]
        if t >= 100:
            z[:, t - 100] = state
    # Candidates beyond the anchor bound what it can show.
    information = math.log(39 / 2) - temporal_infonce(torch.from_numpy(z), k=1, tau=1.0).item()
    assert 0 < information < linear_gaussian_information(K, Q, 1)


def test_information_of_a_linear_gaussian_latent_falls_with_the_lag():
    K, Q = np.array([[0.95, 0.1], [0.0, 0.5]]), np.diag([0.1, 0.2])
    found = [linear_gaussian_information(K, Q, lag) for lag in (1, 5, 20)]
    np.testing.assert_allclose(found, [1.342818, 0.474147, 0.070581], atol=1e-6)
    with pytest.raises(ValueError, match="unit circle"):
        linear_gaussian_information(np.eye(2), Q)
    with pytest.raises(ValueError, match="lag must"):
        linear_gaussian_information(K, Q, 0)


# --- entropy --------------------------------------------------------------------------------------


def test_entropy_and_dimension_of_known_latents():
    rows = torch.tensor([[3.0, 0, 0], [0, 2, 0], [0, 0, 1]], dtype=torch.float64)
    z = torch.cat([rows, -rows])
    assert latent_entropy(z).item() == pytest.approx(0.830472, abs=1e-6)
    assert effective_dimension(z).item() == pytest.approx(2.294401, abs=1e-6)
    isotropic = torch.cat([torch.eye(5), -torch.eye(5)]).double()
    assert latent_entropy(isotropic).item() == pytest.approx(math.log(5), abs=1e-6)
    line = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None] * torch.tensor([1.0, 2.0])
    assert latent_entropy(line).item() == pytest.approx(0, abs=1e-6)


@given(st.integers(0, 1000), st.floats(1e-4, 1e4))
def test_entropy_ignores_rotation_and_scale(seed, scale):
    z = normal(20, 4, seed=seed).double() * torch.tensor([3.0, 1, 0.3, 0.1])
    rotation = torch.linalg.qr(normal(4, 4, seed=seed + 1).double())[0]
    assert latent_entropy(scale * z @ rotation).item() == pytest.approx(
        latent_entropy(z).item(), abs=1e-9
    )


@pytest.mark.parametrize("spread", [[3.0, 1.0, 0.3], [1.0, 1.0, 1.0]])
def test_the_gradient_is_the_closed_form_also_at_equal_eigenvalues(spread):
    rows = torch.eye(3).double() * torch.tensor(spread).double()
    z = torch.cat([rows, -rows]).requires_grad_()
    latent_entropy(z).backward()
    covariance = z.detach().T @ z.detach() / 5
    p = covariance / covariance.trace()
    entropy = -(p.diagonal() * p.diagonal().log()).sum()
    slope = -(p.diagonal().log().diag() + entropy * torch.eye(3)) / covariance.trace()
    expected = 2 * z.detach() @ slope / 5  # through C = Z'Z/(n-1); the centring adds nothing here
    np.testing.assert_allclose(z.grad, expected, atol=1e-7)  # the ridge of 1e-8


# --- water filling ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gamma", "shares", "dimension"),
    [
        (0.0, [0.55, 0.45, 0, 0], 1.9900),
        (0.1, [0.529359, 0.443666, 0.024694, 0.002280], 2.2312),
        (0.5, None, 3.4234),
    ],
)
def test_information_alone_starves_weak_modes_and_entropy_feeds_them(gamma, shares, dimension):
    p = water_filling(np.array([10.0, 5, 1, 0.5]), gamma)
    if shares is not None:
        np.testing.assert_allclose(p, shares, atol=1e-6)
    assert math.exp(-(p[p > 0] * np.log(p[p > 0])).sum()) == pytest.approx(dimension, abs=1e-4)


@given(st.integers(0, 1000), st.floats(0, 1))
def test_no_other_shares_are_worth_more(seed, gamma):
    rng = np.random.default_rng(seed)
    g = rng.uniform(0.2, 20, 5)

    def worth(p):
        return (
            0.5 * np.log1p(g * p).sum()
            - gamma * np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0).sum()
        )

    best = worth(water_filling(g, gamma))
    assert all(worth(p) <= best + 1e-9 for p in rng.dirichlet(np.ones(5), 50))


# --- operators ------------------------------------------------------------------------------------


def test_without_a_ridge_an_exact_linear_system_is_recovered():
    A = torch.tensor([[0.9, 0.2, 0.0], [-0.2, 0.9, 0.1], [0.0, 0.0, 0.7]]).double()
    z = [normal(6, 3).double()]
    for _ in range(11):
        z.append(z[-1] @ A.T)
    K, B = ridge_operator(torch.stack(z, 1), ridge=0.0)
    assert B is None
    np.testing.assert_allclose(K, A, atol=1e-9)


def test_the_two_forms_of_the_ridge_are_one():
    z = normal(4, 9, 3, seed=2).double()
    wide = torch.cat([z, torch.zeros(4, 9, 12, dtype=torch.float64)], -1)  # 15 dimensions, 8 rows
    np.testing.assert_allclose(ridge_operator(wide)[0][:3, :3], ridge_operator(z)[0], atol=1e-10)


def test_actions_are_told_apart_from_dynamics():
    A, B = torch.tensor([[0.9, 0.1], [0.0, 0.8]]).double(), torch.tensor([[0.5], [1.0]]).double()
    actions, z = normal(8, 11, 1, seed=3).double(), [normal(8, 2).double()]
    for t in range(11):
        z.append(z[-1] @ A.T + actions[:, t] @ B.T)
    K, found = ridge_operator(torch.stack(z, 1), actions, ridge=0.0)
    np.testing.assert_allclose(K, A, atol=1e-9)
    np.testing.assert_allclose(found, B, atol=1e-9)


# --- the model ------------------------------------------------------------------------------------


def identity_model(dimension: int, **more) -> InformationKoopman:
    return InformationKoopman(nn.Identity(), nn.Identity(), dimension, alpha=0, gamma=0, **more)


def test_a_learned_operator_has_the_eigenvalues_that_dmd_finds():
    angle = 0.3
    A = 0.98 * torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    x = linear_trajectories(A)
    model = identity_model(2).fit(
        x,
        epochs=40,
        learning_rate=1e-2,
        schedule="cosine",
        generator=torch.Generator().manual_seed(0),
    )
    peer = DMD().fit_fetch((x[:, :-1].reshape(-1, 2).numpy(), x[:, 1:].reshape(-1, 2).numpy()))
    found = np.sort_complex(model.eigenvalues().numpy())
    np.testing.assert_allclose(found, np.sort_complex(peer.eigenvalues), atol=1e-2)
    ahead = model.forecast(x[:, 0], horizon=5)
    np.testing.assert_allclose(ahead, x[:, 1:6], atol=0.1)


def test_every_step_up_to_the_horizon_is_trained_on():
    torch.manual_seed(0)
    model = identity_model(2, control_dim=1, horizon=3)
    with torch.no_grad():
        model.K.copy_(torch.tensor([[0.9, 0.2], [-0.1, 0.8]]))
        model.B.copy_(torch.tensor([[0.5], [1.0]]))
    x, actions = torch.randn(4, 9, 2), torch.randn(4, 8, 1)
    one_step = (x[:, :-1] @ model.K.mT + actions @ model.B.mT - x[:, 1:]).square().mean()
    far = torch.stack(
        [
            model.forecast(x[:, t], 3, actions[:, t : t + 3]) - x[:, t + 1 : t + 4]
            for t in range(9 - 3)
        ]
    )
    # The identity decodes without error, so only forecasts are left.
    expected = one_step + far.square().mean()
    found = model.loss(x, actions)["reconstruction"]
    torch.testing.assert_close(found, expected)


def test_a_ridge_model_regresses_its_operator_from_all_windows():
    A = torch.tensor([[0.9, 0.2], [-0.2, 0.9]])
    x = 20 * linear_trajectories(A)  # large beside the ridge
    model = identity_model(2, operator="ridge")
    model.encoder, model.decoder = nn.Linear(2, 2), nn.Linear(2, 2)
    for layer in (model.encoder, model.decoder):
        layer.weight.data.copy_(torch.eye(2))
        layer.bias.data.zero_()
    model.fit(x, epochs=1, learning_rate=1e-6, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(model.K, A, atol=1e-2)
    assert not model.K.requires_grad


def test_controls_enter_the_forecast():
    model = identity_model(2, control_dim=1)
    with torch.no_grad():
        model.B.copy_(torch.tensor([[1.0], [0.0]]))
    found = model.forecast(torch.zeros(3, 2), 4, torch.ones(3, 4, 1))
    assert found[0, :, 0].tolist() == [1.0, 2.0, 3.0, 4.0]
    x, actions = normal(4, 20, 2), normal(4, 19, 1, seed=1)
    trained = identity_model(2, control_dim=1, horizon=3).fit(x, actions, epochs=1, window=8)
    assert trained.B.abs().max() > 0
    with pytest.raises(ValueError, match="actions must be given"):
        model.forecast(torch.zeros(3, 2), 4)
    with pytest.raises(ValueError, match="actions must have the shape"):
        model.forecast(torch.zeros(3, 2), 4, torch.ones(3, 3, 1))
    with pytest.raises(ValueError, match="actions must not be given"):
        identity_model(2).forecast(torch.zeros(3, 2), 4, torch.ones(3, 4, 1))


def test_the_entropy_term_fills_the_latent_and_its_opposite_empties_it():
    t = torch.linspace(0, 12, 60)
    phases = torch.linspace(0, 6, 24)[:, None]
    x = torch.stack([(t + phases).sin(), (t + phases).cos()], -1)
    used = {}
    for gamma in (-0.5, 0.0, 0.5):
        torch.manual_seed(0)
        model = InformationKoopman(
            nn.Linear(2, 6), nn.Linear(6, 2), 6, alpha=0, gamma=gamma, beta=0.1
        )
        model.fit(x, epochs=30, learning_rate=1e-2, generator=torch.Generator().manual_seed(0))
        used[gamma] = effective_dimension(model.encode(x.flatten(0, 1))).item()
    assert used[-0.5] < used[0.0] + 1e-3
    assert used[0.0] < used[0.5]


def test_a_probabilistic_model_trains_and_forecasts_with_means():
    A = torch.tensor([[0.9, 0.2], [-0.2, 0.9]])
    x = linear_trajectories(A)
    torch.manual_seed(0)
    model = InformationKoopman(
        nn.Linear(2, 8), nn.Linear(4, 2), 4, alpha=0.1, gamma=0.01, beta=0.1, probabilistic=True
    )
    model.fit(x, epochs=10, learning_rate=1e-2, generator=torch.Generator().manual_seed(0))
    first, last = model.history_[0], model.history_[-1]
    assert {"transition", "prior"} <= set(first)
    assert last["loss"] < first["loss"]
    assert torch.equal(model.forecast(x[:, 0], 3), model.forecast(x[:, 0], 3))


def test_the_best_epoch_on_held_out_trajectories_is_kept():
    x = linear_trajectories(torch.tensor([[0.9, 0.2], [-0.2, 0.9]]))
    model = identity_model(2)
    model.fit(
        x,
        epochs=50,
        learning_rate=0.3,
        validation=0.25,
        patience=3,
        generator=torch.Generator().manual_seed(0),
    )
    assert len(model.history_) < 50


def test_same_generator_same_model():
    x = linear_trajectories(torch.tensor([[0.9, 0.2], [-0.2, 0.9]]))
    kernels = [
        identity_model(2).fit(x, epochs=2, generator=torch.Generator().manual_seed(1)).K
        for _ in range(2)
    ]
    assert torch.equal(*kernels)


def test_state_is_saved_with_the_operator_and_its_eigenvalues_are_drawn():
    for operator in ("learned", "ridge"):
        model = identity_model(3, operator=operator)
        assert {"K", "B"} <= set(model.state_dict())
    assert len(model.plot().data) == 2


def test_warnings_name_growing_forecasts_and_too_few_latents():
    x = linear_trajectories(torch.eye(2) * 1.1, time=20)
    with pytest.warns(UserWarning, match="spectral radius"):
        identity_model(2).fit(x, epochs=30, learning_rate=1e-2, schedule="cosine")
    with pytest.warns(UserWarning, match="bias the entropy low"):
        InformationKoopmanLoss(alpha=0)(normal(1, 5, 3), normal(1, 4, 3), torch.tensor(0.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: temporal_infonce(torch.ones(1, 6, 2), k=3), "z must have more than 2 k = 6"),
        (lambda: temporal_infonce(torch.ones(1, 9, 2), k=0), "k must"),
        (lambda: temporal_infonce(torch.ones(1, 9, 2), tau=0), "tau must"),
        (lambda: latent_entropy(torch.ones(1, 3)), "two samples"),
        (lambda: latent_entropy(torch.ones(5, 1)), "two samples"),
        (lambda: ridge_operator(torch.ones(1, 5, 2), ridge=-1), "ridge must"),
        (lambda: water_filling(np.array([1.0, -1.0])), "gains must"),
        (lambda: water_filling(np.array([1.0]), -1), "gamma must"),
        (lambda: InformationKoopmanLoss(alpha=-1), "alpha and beta"),
        (lambda: identity_model(1), "latent_dim must"),
        (lambda: identity_model(2, horizon=0), "horizon must"),
        (lambda: identity_model(2, control_dim=-1), "control_dim must"),
        (lambda: identity_model(2).forecast(torch.ones(1, 2), 0), "horizon must"),
        (lambda: identity_model(2).fit(torch.ones(2, 9, 2)), "window = 16"),
        (
            lambda: identity_model(2).fit(torch.full((2, 20, 2), math.nan)),
            "trajectories must be finite",
        ),
        (lambda: identity_model(2).loss(torch.full((2, 20, 2), math.nan)), "x must be finite"),
        (lambda: identity_model(2, horizon=8).loss(torch.ones(2, 8, 2)), "horizon = 8"),
        (lambda: identity_model(2).fit(torch.ones(2, 20, 2), validation=1.0), "validation must"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_generic_optimiser_agrees_on_the_shares():
    g = np.array([4.0, 2.0, 0.7])
    found = optimize.minimize(
        lambda p: -(0.5 * np.log1p(g * p).sum() - 0.2 * (p * np.log(p)).sum()),
        np.full(3, 1 / 3),
        bounds=[(1e-9, 1)] * 3,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
    )
    np.testing.assert_allclose(water_filling(g, 0.2), found.x, atol=1e-4)  # SLSQP's own accuracy
