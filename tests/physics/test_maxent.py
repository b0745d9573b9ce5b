import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from szilard.physics import (
    BoundaryWarning,
    InfeasibleError,
    MaxEnt,
    TreeMaxEnt,
    canonical,
    divergence,
    grand_canonical,
    isothermal_isobaric,
    product_states,
    push_forward,
    quadrature,
)

EYES = np.arange(1.0, 7.0)
DIE = [0.05435, 0.07877, 0.11416, 0.16545, 0.23977, 0.34749]


def random_problem(seed: int, states: int = 12, features: int = 4):
    """Features, prior and the exact averages of a positive distribution."""
    rng = np.random.default_rng(seed)
    truth = rng.dirichlet(np.full(states, 2.0))
    f = rng.standard_normal((states, features)) * [1.0, 10.0, 0.1, 3.0][:features]
    return f, rng.uniform(0.2, 2.0, states), truth


# --- oracles --------------------------------------------------------------------------------------


def test_the_die_of_mean_4_5_is_jaynes_die():
    model = MaxEnt({"eyes": EYES}).fit([4.5])
    np.testing.assert_allclose(model.p, DIE, atol=6e-6)  # the figures' own rounding
    assert model.multipliers[0] == pytest.approx(-0.371049, abs=1e-6)
    assert model.entropy == pytest.approx(1.613581, abs=1e-6)


def test_a_fair_mean_gives_the_fair_die_and_mirrored_means_give_mirrored_dice():
    fair = MaxEnt({"eyes": EYES}).fit([3.5])
    np.testing.assert_allclose(fair.p, 1 / 6, rtol=1e-12)
    assert fair.multipliers[0] == 0
    low, high = (MaxEnt({"eyes": EYES}).fit([mean]) for mean in (2.5, 4.5))
    np.testing.assert_allclose(low.p, high.p[::-1], rtol=1e-9)


@pytest.mark.parametrize("occupancy", [0.01, 0.3, 0.5, 0.999])
def test_a_two_state_site_fills_by_langmuirs_isotherm(occupancy):
    model = MaxEnt({"occupied": np.array([0.0, 1.0])}).fit([occupancy])
    assert 1 / (1 + math.exp(model.multipliers[0])) == pytest.approx(occupancy, rel=1e-9)


def test_a_mean_gives_the_exponential_and_a_variance_the_normal_density():
    x, dx = quadrature(0, 60, 400)
    exponential = MaxEnt({"x": x}, dx).fit([2.0])
    # Its tail beyond 60 is exp(-30).
    np.testing.assert_allclose(exponential.p / dx, np.exp(-x / 2) / 2, rtol=1e-9)
    x, dx = quadrature(-12, 14, 400)
    normal = MaxEnt({"x": x, "x^2": x**2}, dx).fit([1.0, 1.0 + 2.25])
    expected = np.exp(-((x - 1) ** 2) / 4.5) / math.sqrt(2 * math.pi * 2.25)
    np.testing.assert_allclose(normal.p / dx, expected, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_the_dual_gives_means_covariances_and_the_entropy(seed):
    f, _, truth = random_problem(seed)
    model = MaxEnt(f).fit(truth @ f)

    def log_z(lam):
        return torch.logsumexp(-torch.from_numpy(f) @ lam, 0)

    lam = torch.from_numpy(model.multipliers)
    slope = torch.func.jacrev(log_z)(lam).numpy()
    curvature = torch.func.hessian(log_z)(lam).numpy()
    np.testing.assert_allclose(-slope, model.means, rtol=1e-10)
    np.testing.assert_allclose(curvature, model.covariance, atol=1e-10)
    assert model.entropy == pytest.approx(
        model.log_partition + model.multipliers @ model.means, rel=1e-12
    )


def test_multipliers_move_with_averages_as_the_sensitivity_says():
    f, prior, truth = random_problem(3)
    problem, h = MaxEnt(f, prior), 1e-5
    averages = truth @ f
    model = problem.fit(averages)
    for k in range(f.shape[1]):
        up, down = averages.copy(), averages.copy()
        up[k] += h
        down[k] -= h
        numeric = (problem.fit(up).multipliers - problem.fit(down).multipliers) / (2 * h)
        # Central differences of order h^2, against multipliers of order 10 for the smallest feature.
        np.testing.assert_allclose(model.sensitivity[:, k], numeric, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_generic_optimiser_of_the_entropy_finds_the_same_distribution(seed):
    f, prior, truth = random_problem(seed, states=8, features=2)
    model = MaxEnt(f, prior).fit(truth @ f)
    g = prior / prior.sum()
    found = optimize.minimize(
        lambda p: float((p * np.log(np.maximum(p, 1e-300) / g)).sum()),
        g,
        jac=lambda p: np.log(np.maximum(p, 1e-300) / g) + 1,
        bounds=[(1e-12, 1)] * 8,
        constraints=optimize.LinearConstraint(
            np.vstack([f.T, np.ones(8)]), np.append(truth @ f, 1), np.append(truth @ f, 1)
        ),
        method="trust-constr",
        options={"gtol": 1e-9, "maxiter": 2000},
    )
    np.testing.assert_allclose(found.x, model.p, atol=1e-4)  # the peer's own accuracy
    assert model.divergence <= found.fun + 1e-7


# --- successive information -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_gains_add_up_to_the_divergence_and_pythagoras_holds_for_the_truth(seed):
    f, prior, truth = random_problem(seed)
    averages = truth @ f
    model = MaxEnt(f[:, :1], prior, ["0"]).fit(averages[:1])
    gains, left = [model.gain], [divergence(truth, model.p)]
    for k in range(1, 4):
        model = model.extend({str(k): f[:, k]}, averages[k : k + 1])
        gains.append(model.gain)
        left.append(divergence(truth, model.p))
    assert all(gain >= 0 for gain in gains)
    assert all(after < before for before, after in pairwise(left))
    assert sum(gains) == pytest.approx(model.divergence, abs=1e-9)
    assert divergence(truth, prior) == pytest.approx(left[-1] + model.divergence, abs=1e-9)


def test_the_order_of_measurements_changes_gains_and_never_the_end():
    f, prior, truth = random_problem(1, features=2)
    averages = truth @ f
    ends, gains = [], []
    for order in ([0, 1], [1, 0]):
        first = MaxEnt({str(order[0]): f[:, order[0]]}, prior).fit([averages[order[0]]])
        second = first.extend({str(order[1]): f[:, order[1]]}, [averages[order[1]]])
        ends.append(second.p)
        gains.append((first.gain, second.gain))
    np.testing.assert_allclose(*ends, atol=1e-9)
    assert sum(gains[0]) == pytest.approx(sum(gains[1]), abs=1e-9)
    assert gains[0][0] != pytest.approx(gains[1][0], rel=1e-3)


@given(st.integers(0, 10_000))
def test_no_other_distribution_with_the_averages_says_less(seed):
    f, prior, truth = random_problem(seed, states=6, features=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = MaxEnt(f, prior).fit(truth @ f)
    np.testing.assert_allclose(model.means, truth @ f, atol=1e-8)
    assert model.divergence <= divergence(truth, prior) + 1e-9


# --- what cannot be, what almost cannot be ----------------------------------------------------------


def test_an_impossible_average_is_refused_with_a_proof():
    f = np.column_stack([EYES, EYES**2])
    with pytest.raises(InfeasibleError, match=r"averages.*eyes") as caught:
        MaxEnt(f, names=["eyes", "squares"]).fit([3.5, 10.0])  # below 3.5^2
    error = caught.value
    assert (f @ error.direction).max() == pytest.approx(error.bound)
    assert error.direction @ [3.5, 10.0] == pytest.approx(error.asked)
    assert error.asked > error.bound


@given(st.integers(0, 10_000))
def test_what_is_impossible_is_refused_and_a_direction_proves_it(seed):
    rng = np.random.default_rng(seed)
    f = rng.standard_normal((7, 3))
    target = 1.5 * rng.standard_normal(3)
    weights = np.vstack([f.T, np.ones(7)])
    possible = optimize.linprog(np.zeros(7), A_eq=weights, b_eq=np.append(target, 1)).status == 0
    if possible:
        np.testing.assert_allclose(MaxEnt(f).fit(target).means, target, atol=1e-7)
        return
    with pytest.raises(InfeasibleError) as caught:
        MaxEnt(f).fit(target)
    direction = caught.value.direction
    assert direction @ target > (f @ direction).max()


def test_contradicting_dependent_averages_are_refused_and_agreeing_ones_are_reported():
    f = {"eyes": EYES, "twice": 2 * EYES + 1}
    model = MaxEnt(f).fit([4.5, 10.0])
    assert model.dropped == ("twice",)
    np.testing.assert_allclose(model.p, DIE, atol=6e-6)
    assert model.multipliers[1] == 0
    with pytest.raises(InfeasibleError, match="twice"):
        MaxEnt(f).fit([4.5, 10.1])


def test_on_the_boundary_the_face_carries_everything_and_says_so():
    f = np.column_stack([EYES, EYES == 6])
    with pytest.warns(BoundaryWarning, match="1 of 6 states"):
        model = MaxEnt(f).fit([2.5, 0.0])
    assert model.p[5] == 0
    assert not model.support[5]
    np.testing.assert_allclose(model.p[:5], MaxEnt(EYES[:5, None]).fit([2.5]).p, rtol=1e-8)


def test_errors_of_the_averages_keep_multipliers_finite_and_shrink_towards_the_prior():
    exact = MaxEnt({"eyes": EYES}).fit([4.5])
    noisy = MaxEnt({"eyes": EYES}).fit([4.5], [0.5])
    assert 0 < -noisy.multipliers[0] < -exact.multipliers[0]
    # The optimum of the dual with its Gaussian term: F - <f> + sigma^2 lambda = 0.
    assert 4.5 - noisy.means[0] + 0.25 * noisy.multipliers[0] == pytest.approx(0, abs=1e-9)
    assert noisy.multiplier_errors[0] == pytest.approx(0.5 / (noisy.covariance[0, 0] + 0.25))
    extreme = MaxEnt({"eyes": EYES}).fit([6.5], [0.1])  # even beyond the hull
    assert np.isfinite(extreme.multipliers).all()


def test_inequalities_bind_only_where_they_must():
    problem = MaxEnt({"eyes": EYES})
    idle = problem.fit([4.5], relations=["<="])
    np.testing.assert_allclose(idle.p, 1 / 6)
    binding = problem.fit([4.5], relations=[">="])
    np.testing.assert_allclose(binding.p, DIE, atol=6e-6)
    with pytest.raises(InfeasibleError):
        problem.fit([0.5], relations=["<="])
    both = MaxEnt({"eyes": EYES, "odd": EYES % 2}).fit([4.5, 0.4], relations=["==", "<="])
    assert both.means[1] == pytest.approx(0.4, abs=1e-9)
    assert both.multipliers[1] > 0


def test_states_of_weight_zero_never_occur():
    model = MaxEnt({"eyes": EYES}, prior=np.array([1, 1, 1, 1, 1, 0.0])).fit([4.0])
    assert model.p[5] == 0
    assert model.entropy == pytest.approx(MaxEnt(EYES[:5, None]).fit([4.0]).entropy)


def test_huge_and_tiny_features_are_solved_alike():
    model = MaxEnt({"eyes": EYES}).fit([4.5])
    for scale, shift in ((1e9, 0.0), (1e-9, 0.0), (1.0, 1e6)):
        other = MaxEnt({"eyes": scale * EYES + shift}).fit([scale * 4.5 + shift])
        np.testing.assert_allclose(other.p, model.p, rtol=1e-6)  # 1e6 leaves ten digits of the eyes


def test_tensors_in_tensors_out():
    model = MaxEnt(torch.from_numpy(EYES)[:, None]).fit(torch.tensor([4.5]))
    assert isinstance(model.p, torch.Tensor)
    assert isinstance(model.multipliers, torch.Tensor)
    np.testing.assert_allclose(model.p.numpy(), DIE, atol=6e-6)
    extended = model.extend({"odd": torch.from_numpy(EYES % 2)}, [0.4])
    assert isinstance(extended.p, torch.Tensor)


def test_noise_may_come_at_any_stage():
    model = MaxEnt({"eyes": EYES}).fit([4.5], [0.1]).extend({"odd": EYES % 2}, [0.4])
    np.testing.assert_allclose(model.sigma, [0.1, 0.0])
    assert model.means[1] == pytest.approx(0.4, abs=1e-8)


@pytest.mark.parametrize(
    ("features", "more", "averages", "fit", "message"),
    [
        (EYES, {}, [4.5], {}, "features must have the shape"),
        ({"eyes": EYES * np.nan}, {}, [4.5], {}, r"features must be finite, but \['eyes'\]"),
        ({"eyes": EYES}, {"prior": np.ones(5)}, [4.5], {}, "prior must have one weight"),
        (
            {"eyes": EYES},
            {"prior": -np.ones(6)},
            [4.5],
            {},
            "prior must be finite and not negative",
        ),
        ({"eyes": EYES}, {"prior": np.zeros(6)}, [4.5], {}, "prior must give"),
        ({"eyes": EYES}, {}, [4.5, 1.0], {}, "averages must have one entry"),
        ({"eyes": EYES}, {}, [np.nan], {}, "averages must be finite"),
        ({"eyes": EYES}, {}, [4.5], {"sigma": [-1.0]}, "sigma must not be negative"),
        ({"eyes": EYES}, {}, [4.5], {"relations": ["<"]}, "relations must be"),
        (EYES[:, None], {"names": ["a", "b"]}, [4.5], {}, "names must name 1"),
        ({}, {}, [], {}, "features must hold"),
    ],
)
def test_bad_input_is_refused_by_name(features, more, averages, fit, message, unhooked):
    with pytest.raises(ValueError, match=message):
        MaxEnt(features, **more).fit(averages, **fit)


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match=r"new names, but \['eyes'\]"):
        MaxEnt({"eyes": EYES}).fit([4.5]).extend({"eyes": EYES}, [4.5])


def test_a_plot_shows_states_and_multipliers():
    figure = MaxEnt({"eyes": EYES}).fit([4.5]).plot([f"{eyes:.0f}" for eyes in EYES])
    assert figure.data[0].x[0] == "6"
    assert len(figure.data) == 3


# --- counting -------------------------------------------------------------------------------------


def test_the_factorial_of_gibbs_comes_from_labels_that_were_summed_out():
    total, share = 6, 0.1
    labelled = product_states(*[[0, 1]] * total)
    inside = labelled.sum(1).astype(int)
    prior = share**inside * (1 - share) ** (total - inside)
    counts, weights = push_forward(prior, inside)
    assert counts == list(range(total + 1))
    expected = [math.comb(total, n) * share**n * (1 - share) ** (total - n) for n in counts]
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


def test_push_forward_takes_a_function_and_refuses_too_few_labels():
    assert push_forward(np.ones(3), lambda i: i % 2)[1].tolist() == [2.0, 1.0]
    with pytest.raises(ValueError, match="label must have one entry"):
        push_forward(np.ones(3), [0, 1])


@pytest.mark.parametrize("arguments", [(1, 0), (0, np.inf), (0, 1, 1)])
def test_a_quadrature_needs_an_interval_and_points(arguments):
    with pytest.raises(ValueError, match=r"low must|points must"):
        quadrature(*arguments)


# --- ensembles ------------------------------------------------------------------------------------


def test_the_canonical_ensemble_is_boltzmanns():
    energies, degeneracies = np.array([0.0, 1.0, 1.5, 4.0]), np.array([1, 3, 3, 5.0])
    weights = degeneracies * np.exp(-0.7 * energies)
    p = weights / weights.sum()
    found = canonical(energies, p @ energies, degeneracies)
    assert found.beta == pytest.approx(0.7, rel=1e-9)
    np.testing.assert_allclose(found.p, p, rtol=1e-9)
    assert found.free_energy == pytest.approx(-math.log(weights.sum()) / 0.7, rel=1e-9)
    variance = p @ energies**2 - (p @ energies) ** 2
    assert found.heat_capacity == pytest.approx(0.49 * variance, rel=1e-8)
    assert found.entropy == pytest.approx(-(p * np.log(p / degeneracies)).sum(), rel=1e-9)
    with pytest.raises(ValueError, match="canonical ensemble has not a pressure"):
        _ = found.pressure
    with pytest.raises(ValueError, match="not a chemical potential"):
        _ = found.chemical_potential


def test_the_grand_canonical_ensemble_finds_the_chemical_potential():
    states = product_states([0, 1], [0, 1], [0, 1])
    energies, numbers = states @ [0.1, 0.4, 0.9] + states[:, 0] * states[:, 1], states.sum(1)
    weights = np.exp(-2.0 * (energies - 0.3 * numbers))
    p = weights / weights.sum()
    found = grand_canonical(energies, numbers, p @ energies, p @ numbers)
    assert found.chemical_potential == pytest.approx(0.3, rel=1e-8)
    assert found.temperature == pytest.approx(0.5, rel=1e-8)


def test_an_ideal_gas_in_the_isothermal_isobaric_ensemble_obeys_its_law():
    # One dimension: states are a momentum and a volume, whose weight is V^N for N particles.
    particles, beta, pressure = 3, 0.8, 1.7
    volume, dv = quadrature(0, 60, 300)
    energy, de = quadrature(0, 60, 300)
    # Density of states of the kinetic energy: E^(N/2 - 1).
    weights = np.outer(de * energy ** (particles / 2 - 1), dv * volume**particles).ravel()
    grid_e, grid_v = np.repeat(energy, 300), np.tile(volume, 300)
    mean_energy, mean_volume = particles / (2 * beta), (particles + 1) / (beta * pressure)
    found = isothermal_isobaric(grid_e, grid_v, mean_energy, mean_volume, weights)
    # E^(1/2) at its end point costs the quadrature digits.
    assert found.beta == pytest.approx(beta, rel=1e-4)
    assert found.pressure == pytest.approx(pressure, rel=1e-4)


# --- chains and trees -----------------------------------------------------------------------------


def enumerated(site: np.ndarray, pair: np.ndarray, parents: list[int]):
    _, sites, levels = site.shape
    states = product_states(*[range(levels)] * sites).astype(int)
    columns = sum(site[:, i, states[:, i]] for i in range(sites))
    for child, parent in enumerate(parents, start=1):
        columns = columns + pair[:, child - 1, states[:, child], states[:, parent]]
    return states, columns.T


@pytest.mark.parametrize("parents", [None, [0, 0, 1, 1]])
def test_a_tree_gives_what_enumeration_gives(parents):
    rng = np.random.default_rng(5)
    site, pair = rng.standard_normal((3, 5, 3)), rng.standard_normal((3, 4, 3, 3))
    states, features = enumerated(site, pair, parents or [0, 1, 2, 3])
    averages = rng.dirichlet(np.ones(len(features))) @ features
    whole, tree = MaxEnt(features).fit(averages), TreeMaxEnt(site, pair, parents).fit(averages)
    np.testing.assert_allclose(tree.multipliers, whole.multipliers, atol=1e-7)
    np.testing.assert_allclose(tree.covariance, whole.covariance, atol=1e-7)
    np.testing.assert_allclose(tree.sensitivity, whole.sensitivity, rtol=1e-5, atol=1e-7)
    assert tree.log_partition == pytest.approx(whole.log_partition, rel=1e-10)
    assert tree.entropy == pytest.approx(whole.entropy, rel=1e-9)
    for i in range(5):
        expected = [whole.p[states[:, i] == level].sum() for level in range(3)]
        np.testing.assert_allclose(tree.site_marginals[i], expected, atol=1e-9)
    np.testing.assert_allclose(tree.pair_marginals.sum((1, 2)), 1, rtol=1e-12)


def test_a_tree_without_pairs_is_sites_on_their_own():
    site = np.zeros((1, 3, 2))
    site[0, :, 1] = 1
    model = TreeMaxEnt(site).fit([0.9])
    np.testing.assert_allclose(model.site_marginals[:, 1], 0.3, atol=1e-10)
    noisy = TreeMaxEnt(site).fit([0.9], [0.5])
    assert 0.9 < noisy.means[0] < 1.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"site": np.ones((2, 3))}, "site must have the shape"),
        ({"site": np.ones((1, 3, 2)), "pair": np.ones((1, 3, 2, 2))}, "pair must have the shape"),
        ({"site": np.full((1, 3, 2), np.inf)}, "site must be finite"),
        ({"site": np.ones((1, 3, 2)), "parents": [0, 2]}, "parents must name"),
    ],
)
def test_a_tree_refuses_bad_input_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        TreeMaxEnt(**arguments)


def test_a_tree_refuses_impossible_averages():
    site = np.zeros((1, 3, 2))
    site[0, :, 1] = 1
    tree = TreeMaxEnt(site)
    with pytest.raises(InfeasibleError, match="averages"):
        tree.fit([3.5])
    with pytest.raises(ValueError, match="averages must be 1 finite"):
        tree.fit([np.nan])
    with pytest.raises(ValueError, match="sigma must not"):
        tree.fit([1.0], [-1.0])
