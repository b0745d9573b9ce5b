import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.spatial
import torch
from torch import Tensor

from szilard.kernels.spectral import entropy_estimate

N = 400
TOLERANCE = 1e-3


def operator(points: np.ndarray, sigma: float) -> Tensor:
    squared = scipy.spatial.distance.cdist(points, points, "sqeuclidean")
    kernel = np.exp(-squared / (2 * sigma**2))
    degree = kernel.sum(1)
    return torch.from_numpy(kernel / np.sqrt(np.outer(degree, degree)))


def exact(matrix: Tensor, t: float) -> float:
    weights = np.linalg.eigvalsh(matrix.numpy()).clip(0) ** t
    p = weights / weights.sum()
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def normal(d: int, sigma: float, scale: float = 1.0) -> Tensor:
    return operator(np.random.default_rng(0).normal(scale=scale, size=(N, d)), sigma)


def two_clusters() -> Tensor:
    points = np.random.default_rng(0).normal(scale=0.3, size=(N, 16))
    points[: N // 2, 0] += 1e3
    return operator(points, 1.0)


def swiss_roll() -> Tensor:
    rng = np.random.default_rng(0)
    angle, height = rng.uniform(1.5 * np.pi, 4.5 * np.pi, N), rng.uniform(0, 20, N)
    return operator(np.stack([angle * np.cos(angle), height, angle * np.sin(angle)], 1), 1.0)


def duplicates() -> Tensor:
    points = np.random.default_rng(0).normal(size=(N // 2, 8))
    return operator(np.concatenate([points, points]), 1.0)


def scales() -> Tensor:
    rng = np.random.default_rng(0)
    return operator(rng.normal(size=(N, 64)) / np.arange(1, 65), 0.5)


# From a spectrum of one eigenvalue, over decays of every kind, to one that is flat.
REGIMES: dict[str, Callable[[], Tensor]] = {
    "one tight cluster": lambda: normal(16, 1.0, 0.01),
    "one loose cluster": lambda: normal(64, 1.0, 0.1),
    "two far clusters": two_clusters,
    "a plateau": lambda: normal(512, 10.0),
    "the identity": lambda: normal(512, 5.0),
    "a surface": swiss_roll,
    "duplicates": duplicates,
    "decaying scales": scales,
    "8 dimensions": lambda: normal(8, 1.0),
    "8 dimensions, wide": lambda: normal(8, 5.0),
    "64 dimensions": lambda: normal(64, 4.0),
}


def estimates(matrix: Tensor, t: float, seeds: int, tolerance: float = TOLERANCE):
    return [
        entropy_estimate(matrix, t, tolerance, np.random.default_rng(i), max_products=64)
        for i in range(seeds)
    ]


@pytest.mark.parametrize("t", [1, 1.5, 2, 10])
@pytest.mark.parametrize("regime", REGIMES)
def test_error_covers_the_distance_to_the_eigenvalues_entropy(regime, t):
    matrix = REGIMES[regime]()
    entropy = exact(matrix, t)
    for estimate in estimates(matrix, t, 4):
        wrong = abs(estimate.entropy - entropy)
        # Three standard errors, 32 probes and more: one in a few hundred lies just outside.
        assert wrong <= 1.2 * estimate.error + 1e-14 * N
        if estimate.meets(TOLERANCE, N):
            assert wrong <= max(TOLERANCE * entropy, 1e-14 * N)


@pytest.mark.parametrize("regime", REGIMES)
def test_tolerance_is_met_at_one_step_of_diffusion_in_every_regime(regime):
    matrix = REGIMES[regime]()
    assert all(estimate.meets(TOLERANCE, N) for estimate in estimates(matrix, 1, 4))


def test_standard_error_is_that_of_repeated_estimates():
    # Random signs decide here: bounds of the truncations are a tenth of the error.
    matrix = normal(8, 1.0)
    entropy = exact(matrix, 10)
    found = estimates(matrix, 10, 30, tolerance=0.1)
    ratios = np.array([(e.entropy - entropy) / e.error for e in found])
    # A normal error has 1/3; 30 draws know their spread to 13 %, and the truncations add to it.
    assert 0.05 < ratios.std() < 0.5
    assert abs(ratios.mean()) < 0.5


def test_a_stricter_tolerance_costs_more_products_and_less_error():
    matrix = swiss_roll()
    loose, strict = (estimates(matrix, 1, 1, tolerance)[0] for tolerance in (1e-2, 5e-4))
    assert loose.products < strict.products
    assert strict.error < loose.error


def test_too_few_products_are_confessed():
    matrix = swiss_roll()
    estimate = entropy_estimate(matrix, 1, 1e-9, np.random.default_rng(0), max_products=0)
    assert not estimate.meets(1e-9, N)
    assert abs(estimate.entropy - exact(matrix, 1)) <= estimate.error


def test_the_generator_decides():
    matrix = swiss_roll()
    first, second = estimates(matrix, 1, 2)
    again = estimates(matrix, 1, 1)[0]
    # The LAPACK behind it rounds by where its work arrays lie in memory.
    assert again.entropy == pytest.approx(first.entropy, rel=1e-12)
    assert again.products == first.products
    assert abs(second.entropy - first.entropy) > 1e-9


@pytest.mark.parametrize("n", [2, 3, 31, 64, 65])
@pytest.mark.parametrize("t", [1, 2])
def test_small_matrices_are_measured(n, t):
    matrix = operator(np.random.default_rng(1).normal(size=(n, 2)), 1.0)
    estimate = entropy_estimate(matrix, t, TOLERANCE, np.random.default_rng(0), max_products=64)
    assert abs(estimate.entropy - exact(matrix, t)) <= estimate.error + 1e-14 * n


def test_spectra_of_one_value_are_exact():
    rng = np.random.default_rng(0)
    eye = torch.eye(200, dtype=torch.float64)
    alike = torch.full((200, 200), 1 / 200, dtype=torch.float64)
    for t in (1, 2):
        full = entropy_estimate(eye, t, TOLERANCE, rng, max_products=64)
        none = entropy_estimate(alike, t, TOLERANCE, rng, max_products=64)
        assert full.entropy == pytest.approx(math.log(200), abs=1e-12)
        # Rounding of 200 eigenvalues that are zero.
        assert none.entropy == pytest.approx(0, abs=1e-12)
        assert full.meets(TOLERANCE, 200)
        assert none.meets(TOLERANCE, 200)


def test_a_low_rank_projector_counts_its_rank():
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(N, 37)))[0]
    estimate = estimates(torch.from_numpy(basis @ basis.T), 1, 1)[0]
    assert estimate.entropy == pytest.approx(math.log(37), rel=TOLERANCE)
    assert estimate.meets(TOLERANCE, N)
