import itertools
import math
import warnings

import dse_dsmi
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from szilard.measures import spectral
from szilard.measures.spectral import (
    adjacency_spectral_entropy,
    binned_entropy,
    cluster_labels,
    diffusion_spectral_entropy,
    diffusion_spectral_mutual_information,
    diffusion_spectrum,
    effective_rank,
    gram_entropy,
    matrix_entry_entropy,
    size_matched_mutual_information,
    von_neumann_entropy,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:entropy within 2 %", "ignore:Graph is not fully connected"
)

# Eigenvalues come in float64 from matrices of at most a few hundred rows: rounding stays below this.
EXACT = 1e-10


def cloud(n: int = 60, d: int = 5, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=scale, size=(n, d))


def clusters(sizes: list[int], spread: float = 1e-4, seed: int = 0) -> np.ndarray:
    centres = np.eye(len(sizes)) * 1e3
    noise = cloud(sum(sizes), len(sizes), seed) * spread
    return np.repeat(centres, sizes, axis=0) + noise


def random_density(d: int, seed: int, dtype: torch.dtype = torch.complex128) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, dtype=dtype, generator=generator)
    rho = root @ root.mH
    return rho / rho.diagonal().sum()


class TestVonNeumann:
    def test_a_pure_state_has_no_entropy_and_the_maximally_mixed_has_log_d(self):
        ket = torch.tensor([3.0, 4.0j], dtype=torch.complex128) / 5
        assert von_neumann_entropy(torch.outer(ket, ket.conj())).item() == pytest.approx(
            0, abs=1e-12
        )
        assert von_neumann_entropy(np.eye(7) / 7) == pytest.approx(math.log(7))

    def test_diagonal_density_gives_shannon_entropy_in_the_unit_of_base(self):
        rho = torch.diag(torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64))
        assert von_neumann_entropy(rho, base=2).item() == pytest.approx(1.5, abs=1e-12)

    @given(seed=st.integers(0, 10_000), d=st.integers(1, 6))
    def test_is_additive_over_products_and_bounded(self, seed, d):
        a, b = random_density(d, seed), random_density(2, seed + 1)
        joint = von_neumann_entropy(torch.kron(a, b))
        torch.testing.assert_close(joint, von_neumann_entropy(a) + von_neumann_entropy(b))
        assert -1e-12 <= von_neumann_entropy(a) <= math.log(d) + 1e-12

    @given(seed=st.integers(0, 10_000))
    def test_is_invariant_under_unitaries_and_concave(self, seed):
        a, b = random_density(4, seed), random_density(4, seed + 1)
        unitary = torch.linalg.qr(random_density(4, seed + 2)).Q
        torch.testing.assert_close(
            von_neumann_entropy(unitary @ a @ unitary.mH), von_neumann_entropy(a)
        )
        mixed = von_neumann_entropy((a + b) / 2)
        assert mixed >= (von_neumann_entropy(a) + von_neumann_entropy(b)) / 2 - 1e-12

    def test_batches_are_independent_and_an_empty_batch_is_empty(self):
        rho = torch.stack([random_density(3, i, torch.float64) for i in range(4)])
        each = torch.stack([von_neumann_entropy(r) for r in rho])
        torch.testing.assert_close(von_neumann_entropy(rho), each)
        assert von_neumann_entropy(rho[:0]).shape == (0,)

    def test_gradient_is_exact_also_where_eigenvalues_coincide(self):
        def entropy(x: Tensor) -> Tensor:
            rho = torch.linalg.matrix_exp((x + x.mT) / 2)
            return von_neumann_entropy(rho / rho.trace())

        generic = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        degenerate = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64))
        for x in (generic, degenerate):
            assert torch.autograd.gradcheck(entropy, x.requires_grad_())

    def test_gradient_is_finite_on_a_rank_deficient_density(self):
        rho = torch.diag(torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)).requires_grad_()
        von_neumann_entropy(rho).backward()
        assert rho.grad is not None
        # -(log 0.5 + 1) on the support, nothing on the null space.
        expected = torch.diag(torch.tensor([math.log(2) - 1, math.log(2) - 1, 0.0]).double())
        torch.testing.assert_close(rho.grad, expected)

    @pytest.mark.parametrize(
        ("rho", "message"),
        [
            (np.eye(2), "trace 1"),
            (np.array([[0.5, 1.0], [0.0, 0.5]]), "Hermitian"),
            (np.diag([1.5, -0.5]), "positive semi-definite"),
            (np.array([[np.nan, 0.0], [0.0, 1.0]]), "finite"),
        ],
    )
    def test_refuses_what_is_no_density(self, rho, message):
        with pytest.raises(ValueError, match=message):
            von_neumann_entropy(rho)

    def test_refuses_a_rectangle_an_integer_dtype_and_a_list(self, unhooked):
        with pytest.raises(ValueError, match="square"):
            von_neumann_entropy(np.ones((2, 3)))
        with pytest.raises(TypeError, match="int64"):
            von_neumann_entropy(np.eye(1, dtype=np.int64))
        with pytest.raises(TypeError, match="density"):
            von_neumann_entropy([[1.0]])

    def test_float32_density_is_judged_at_its_own_resolution(self):
        rho = random_density(50, 0, torch.float64)
        low = von_neumann_entropy(rho.float())
        assert low.dtype == torch.float64
        assert low.item() == pytest.approx(von_neumann_entropy(rho).item(), rel=1e-5)


class TestGram:
    @given(alpha=st.sampled_from([0.3, 1.0, 1.01, 2.0, 5.0]), n=st.integers(1, 8))
    def test_identity_has_log_n_at_every_order_and_any_scale(self, alpha, n):
        assert gram_entropy(3.0 * np.eye(n), alpha=alpha) == pytest.approx(math.log(n), abs=EXACT)

    @given(seed=st.integers(0, 1000))
    def test_order_one_is_the_limit_and_entropy_falls_with_the_order(self, seed):
        gram = random_density(6, seed, torch.float64)
        near = gram_entropy(gram, alpha=1 + 1e-7)
        # The slope in alpha is -varentropy / 2, of order 1.
        assert near.item() == pytest.approx(gram_entropy(gram).item(), abs=1e-5)
        values = [gram_entropy(gram, alpha=a).item() for a in (0.5, 1.0, 2.0, 4.0)]
        assert values == sorted(values, reverse=True)
        assert gram_entropy(gram).item() == pytest.approx(von_neumann_entropy(gram).item())

    def test_order_two_is_minus_log_purity(self):
        gram = random_density(5, 3, torch.float64)
        purity = (gram**2).sum()
        torch.testing.assert_close(gram_entropy(gram, alpha=2), -purity.log())

    def test_gradient_is_finite_at_every_order_on_a_singular_gram(self):
        for alpha in (0.5, 1.0, 2.0):
            gram = torch.diag(torch.tensor([2.0, 1.0, 0.0])).requires_grad_()
            gram_entropy(gram, alpha=alpha).backward()
            assert gram.grad is not None
            assert gram.grad.isfinite().all()

    @pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
    def test_refuses_an_order_that_is_not_positive(self, alpha):
        with pytest.raises(ValueError, match="alpha"):
            gram_entropy(np.eye(2), alpha=alpha)

    def test_refuses_a_zero_trace(self):
        with pytest.raises(ValueError, match="positive trace"):
            gram_entropy(np.zeros((2, 2)))


class TestEffectiveRank:
    @given(rank=st.integers(1, 5), scale=st.floats(1e-3, 1e3))
    def test_equal_singular_values_count_exactly(self, rank, scale):
        left = np.linalg.qr(cloud(9, 5, 1))[0][:, :rank]
        right = np.linalg.qr(cloud(6, 5, 2))[0][:, :rank]
        # The null directions hold singular values of about 1e-16, which add up to 1e-14.
        assert effective_rank(scale * left @ right.T) == pytest.approx(rank, rel=1e-9)

    def test_covariance_ignores_the_mean_and_squares_the_singular_values(self):
        rng = np.random.default_rng(0)
        points = np.linalg.qr(rng.normal(size=(50, 3)) - 0.0)[0]
        points = points - points.mean(0)
        values = np.linalg.svd(points, compute_uv=False) ** 2
        p = values / values.sum()
        expected = math.exp(-(p * np.log(p)).sum())
        assert effective_rank(points + 7.0, of="covariance") == pytest.approx(expected)

    def test_nothing_varies_then_the_rank_is_zero(self):
        assert effective_rank(np.full((5, 3), 0.1), of="covariance") == 0.0
        assert effective_rank(torch.zeros(5, 3)).item() == 0.0

    def test_bad_input(self, unhooked):
        with pytest.raises(ValueError, match="of must be"):
            effective_rank(np.eye(2), of="trace")
        with pytest.raises(ValueError, match="rows and columns"):
            effective_rank(np.ones((0, 3)))
        with pytest.raises(ValueError, match="finite"):
            effective_rank(np.array([[np.inf, 1.0]]))


class TestDiffusionSpectralEntropy:
    def test_coinciding_points_have_no_entropy(self):
        for sigma in (10.0, "median", "mean_norm"):
            assert diffusion_spectral_entropy(np.full((8, 3), 0.1), sigma) == pytest.approx(
                0, abs=EXACT
            )
            assert diffusion_spectral_entropy(np.zeros((8, 3)), sigma) == pytest.approx(
                0, abs=EXACT
            )

    def test_points_far_apart_have_log_n(self):
        assert diffusion_spectral_entropy(np.eye(9) * 1e3) == pytest.approx(math.log(9), abs=EXACT)

    @pytest.mark.parametrize("sizes", [[45, 5], [10, 10, 10], [30, 5, 3, 2]])
    def test_tight_far_clusters_have_log_k_whatever_their_sizes(self, sizes):
        entropy = diffusion_spectral_entropy(clusters(sizes), base=2)
        # A spread of 1e-4 at sigma 10 leaves second eigenvalues of about 1e-10, 1e-8 bits each.
        assert entropy == pytest.approx(math.log2(len(sizes)), abs=1e-7)

    @pytest.mark.parametrize(("distance", "bits"), [(1.0, 0.7153491667), (2.0, 0.9867474300)])
    def test_two_points_follow_the_closed_form(self, distance, bits):
        pair = np.array([[0.0, 0.0], [0.0, distance]])
        g = math.exp(-(distance**2) / 2)
        values = diffusion_spectrum(pair, 1.0).eigenvalues.tolist()
        assert values == pytest.approx([1.0, (1 - g) / (1 + g)], abs=1e-12)
        assert diffusion_spectral_entropy(pair, 1.0, base=2) == pytest.approx(bits, abs=1e-10)

    @pytest.mark.parametrize(("t", "bits"), [(1, 3.0277776794), (2, 2.5014703247)])
    def test_points_on_a_circle_follow_the_fourier_transform(self, t, bits):
        angle = 2 * np.pi * np.arange(12) / 12
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        row = np.exp(-((circle - circle[0]) ** 2).sum(1) / (2 * 0.5**2))
        expected = np.sort(np.fft.fft(row).real / row.sum())[::-1]
        spectrum = diffusion_spectrum(circle, 0.5)
        np.testing.assert_allclose(spectrum.eigenvalues.numpy(), expected, atol=1e-12)
        assert spectrum.entropy(t, base=2).item() == pytest.approx(bits, abs=1e-10)

    @given(seed=st.integers(0, 1000), sigma=st.floats(0.2, 20.0))
    def test_spectrum_keeps_its_trace_its_norm_and_its_range(self, seed, sigma):
        points = cloud(30, 4, seed)
        squared = ((points[:, None] - points[None]) ** 2).sum(-1)
        kernel = np.exp(-squared / (2 * sigma**2))
        degree = kernel.sum(1)
        normalised = kernel / np.sqrt(np.outer(degree, degree))
        values = diffusion_spectrum(points, sigma).eigenvalues.numpy()
        assert values.sum() == pytest.approx((1 / degree).sum(), abs=1e-10)
        assert (values**2).sum() == pytest.approx((normalised**2).sum(), abs=1e-10)
        assert values[0] == pytest.approx(1, abs=1e-12)
        assert values.min() >= -1e-12
        assert (np.diff(values) <= 0).all()

    @given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
    def test_is_invariant_to_rigid_motion_permutation_and_joint_scale(self, seed, scale):
        rng = np.random.default_rng(seed)
        points = cloud(25, 4, seed)
        rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
        moved = (points @ rotation + rng.normal(size=4))[rng.permutation(25)]
        expected = diffusion_spectral_entropy(points, 1.5)
        assert diffusion_spectral_entropy(moved, 1.5) == pytest.approx(expected, abs=EXACT)
        scaled = diffusion_spectral_entropy(scale * points, scale * 1.5)
        assert scaled == pytest.approx(expected, abs=EXACT)
        for relative in ("median", "mean_norm"):
            assert diffusion_spectral_entropy(scale * points, relative) == pytest.approx(
                diffusion_spectral_entropy(points, relative), abs=EXACT
            )

    @given(seed=st.integers(0, 1000))
    def test_never_rises_with_t_and_stays_between_zero_and_log_n(self, seed):
        spectrum = diffusion_spectrum(cloud(30, 3, seed), 1.0)
        values = [spectrum.entropy(t).item() for t in (0.5, 1, 1.7, 2, 4, 50)]
        assert all(a >= b - 1e-12 for a, b in itertools.pairwise(values))
        assert values[-1] >= -1e-12
        assert values[0] <= math.log(30) + 1e-12

    def test_exact_duplicates_of_every_point_change_nothing(self):
        points = cloud(30)
        doubled = np.concatenate([points, points])
        assert diffusion_spectral_entropy(doubled, 1.0) == pytest.approx(
            diffusion_spectral_entropy(points, 1.0), abs=EXACT
        )

    @pytest.mark.parametrize("t", [1, 2])
    def test_agrees_with_the_published_implementation(self, t):
        points = cloud(150, 8, scale=5.0)
        reference = dse_dsmi.diffusion_spectral_entropy(points, gaussian_kernel_sigma=10, t=t)
        assert diffusion_spectral_entropy(points, t=t, base=2) == pytest.approx(reference, abs=1e-6)

    def test_the_text_s_normalisation_is_another_spectrum_than_the_code_s(self):
        points = cloud(200, 5)
        code = diffusion_spectral_entropy(points, 1.0, base=2)
        half = diffusion_spectral_entropy(points, 1.0, base=2, normalization="half")
        one = diffusion_spectral_entropy(points, 1.0, base=2, normalization="one")
        # 6.469 and 6.420 for one such sample; 0.1 is its spread over samples, the gap is not.
        assert code == pytest.approx(6.469, abs=0.1)
        assert code - half == pytest.approx(0.049, abs=0.02)
        assert one != pytest.approx(code, abs=1e-3)

    @pytest.mark.parametrize(("normalization", "power"), [("half", 0.5), ("one", 1.0)])
    def test_text_normalisations_have_the_eigenvalues_of_the_markov_matrix(
        self, normalization, power
    ):
        points = cloud(40, 3)
        kernel = np.exp(-((points[:, None] - points[None]) ** 2).sum(-1) / 2)
        scale = kernel.sum(1) ** -power
        kernel = scale[:, None] * kernel * scale
        markov = kernel / kernel.sum(1, keepdims=True)
        expected = np.sort(np.linalg.eigvals(markov).real)[::-1]
        values = diffusion_spectrum(points, 1.0, normalization=normalization).eigenvalues
        np.testing.assert_allclose(values.numpy(), expected, atol=1e-10)

    def test_median_bandwidth_is_the_median_positive_distance_and_is_reported(self):
        points = np.array([[0.0], [0.0], [1.0], [4.0]])
        # Positive distances: 1, 1, 3, 4, 4 (the lower middle of the pairs counted twice is 3).
        assert diffusion_spectrum(points, "median").sigma == pytest.approx(3.0)
        expected = 0.3 * np.abs(points).mean()
        assert diffusion_spectrum(points, "mean_norm").sigma == pytest.approx(expected)

    def test_low_precision_and_integers_are_measured_in_float64(self):
        points = cloud(40, 6, scale=10.0)
        exact = diffusion_spectral_entropy(points)
        for dtype, tolerance in [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)]:
            value = diffusion_spectral_entropy(torch.from_numpy(points).to(dtype))
            assert value.dtype == torch.float64
            assert value.item() == pytest.approx(exact, abs=tolerance)
        whole = points.round()
        assert diffusion_spectral_entropy(whole.astype(np.int64)) == diffusion_spectral_entropy(
            whole
        )

    def test_read_only_and_strided_arrays_are_measured_and_left_alone(self):
        points = cloud(40, 6)
        expected = diffusion_spectral_entropy(points[::2, ::-1].copy(), 1.0)
        points.setflags(write=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert diffusion_spectral_entropy(points[::2, ::-1], 1.0) == pytest.approx(expected)
            diffusion_spectral_entropy(points, 1.0)

    def test_near_duplicates_far_from_the_origin_are_told_apart_in_float64(self):
        points = np.array([[1e4, 0.0], [1e4, 1.0]])
        assert diffusion_spectral_entropy(points, 1.0, base=2) == pytest.approx(0.7153491667)

    def test_features_in_blocks_equal_features_at_once(self, monkeypatch):
        points = cloud(30, 10)
        at_once = diffusion_spectral_entropy(points, 2.0)
        monkeypatch.setattr(spectral, "_FEATURE_BLOCK", 3)
        assert diffusion_spectral_entropy(points, 2.0) == pytest.approx(at_once, abs=EXACT)

    def test_gradient_is_that_of_finite_differences(self):
        points = torch.from_numpy(cloud(6, 2)).requires_grad_()
        for normalization in ("code", "half", "one"):
            assert torch.autograd.gradcheck(
                lambda z, how=normalization: diffusion_spectral_entropy(
                    z, 1.0, 2, normalization=how
                ),
                points,
            )

    def test_subsampling_is_seeded_and_refused_without_a_seed(self):
        points = cloud(80, 3)
        kwargs = {"sigma": 1.0, "max_n": 50}
        first = diffusion_spectral_entropy(points, **kwargs, rng=1)
        assert diffusion_spectral_entropy(points, **kwargs, rng=1) == first
        assert diffusion_spectral_entropy(points, **kwargs, rng=2) != first
        assert diffusion_spectral_entropy(points, **kwargs, rng=np.random.default_rng(1)) == first
        with pytest.raises(ValueError, match="max_n=50"):
            diffusion_spectral_entropy(points, **kwargs, rng=None)
        assert diffusion_spectral_entropy(points, 1.0, rng=None) > first

    def test_global_seeds_are_left_alone(self):
        state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        diffusion_spectral_mutual_information(cloud(40), np.repeat([0, 1], 20), 1.0, max_n=30)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002

    @pytest.mark.filterwarnings("default:entropy within 2 %")
    def test_warns_where_sigma_does_not_resolve_the_points(self):
        with pytest.warns(UserWarning, match="within 2 % of 0"):
            diffusion_spectral_entropy(cloud(), 1e4)
        with pytest.warns(UserWarning, match="within 2 % of log n"):
            diffusion_spectral_entropy(cloud(), 1e-4)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            diffusion_spectral_entropy(cloud(), 1.0)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"sigma": 0.0}, "sigma"),
            ({"sigma": -1.0}, "sigma"),
            ({"sigma": math.nan}, "sigma"),
            ({"t": 0}, "t must"),
            ({"t": -1.0}, "t must"),
            ({"t": math.inf}, "t must"),
            ({"max_n": 1}, "max_n"),
            ({"base": 1}, "base"),
        ],
    )
    def test_refuses_bad_parameters(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            diffusion_spectral_entropy(cloud(), **kwargs)

    def test_refuses_unknown_names(self, unhooked):
        with pytest.raises(ValueError, match="'median' or 'mean_norm'"):
            diffusion_spectral_entropy(cloud(), "mode")
        with pytest.raises(ValueError, match="normalization must be one of code"):
            diffusion_spectral_entropy(cloud(), normalization="two")

    def test_refuses_bad_points(self, unhooked):
        for value in (np.nan, np.inf):
            with pytest.raises(ValueError, match="Z must be finite"):
                diffusion_spectral_entropy(np.array([[0.0], [value]]))
        for shape in ((1, 3), (0, 3), (4,), (4, 0)):
            with pytest.raises(ValueError, match="Z must be"):
                diffusion_spectral_entropy(np.ones(shape))
        with pytest.raises(TypeError, match="Z must be"):
            diffusion_spectral_entropy([[0.0], [1.0]])


class TestTolerance:
    """An estimate in place of the eigenvalues, from as few points as a test can afford."""

    @pytest.fixture(autouse=True)
    def estimates_from_300_points(self, monkeypatch):
        monkeypatch.setattr(spectral, "_ESTIMATE_FROM", 300)
        monkeypatch.setattr(spectral, "_ROWS_A_PRODUCT", 5)

    @pytest.mark.parametrize("normalization", ["code", "half", "one"])
    @pytest.mark.parametrize("t", [1, 2, 10])
    @pytest.mark.parametrize(("d", "sigma"), [(2, 0.3), (8, 1.0), (64, 5.0), (16, 50.0)])
    def test_entropy_is_within_the_tolerance_of_that_of_the_eigenvalues(
        self, normalization, t, d, sigma
    ):
        points, how = cloud(400, d), {"normalization": normalization}
        exact = diffusion_spectral_entropy(points, sigma, t, **how)
        value = diffusion_spectral_entropy(points, sigma, t, tolerance=1e-3, **how)
        # 400 eigenvalues in float64 round to about 1e-12 together.
        assert value == pytest.approx(exact, rel=1e-3, abs=4e-12)

    def test_an_estimate_that_misses_the_tolerance_gives_way_to_the_eigenvalues(self):
        points = cloud(400, 8)
        exact = diffusion_spectral_entropy(points, 1.0)
        assert diffusion_spectral_entropy(points, 1.0, tolerance=1e-3) != exact
        assert diffusion_spectral_entropy(points, 1.0, tolerance=1e-14) == exact

    def test_fewer_points_than_pay_are_measured_exactly(self):
        points = cloud(299, 8)
        exact = diffusion_spectral_entropy(points, 1.0)
        assert diffusion_spectral_entropy(points, 1.0, tolerance=1e-3) == exact

    def test_tensors_and_arrays_agree_and_the_seed_decides(self):
        points = cloud(400, 8)
        value = diffusion_spectral_entropy(points, 1.0, tolerance=1e-3)
        tensor = diffusion_spectral_entropy(torch.from_numpy(points), 1.0, tolerance=1e-3)
        # The same operations; LAPACK rounds by where its work arrays lie in memory.
        assert tensor.item() == pytest.approx(value, rel=1e-12)
        assert tensor.dtype == torch.float64
        default = diffusion_spectral_entropy(points, 1.0, tolerance=1e-3, rng=None)
        assert default == pytest.approx(value, rel=1e-12)
        other = diffusion_spectral_entropy(points, 1.0, tolerance=1e-3, rng=1)
        assert abs(other - value) > 1e-9

    def test_base_is_the_unit_and_points_are_left_alone(self):
        points = cloud(400, 8)
        before = points.copy()
        nats = diffusion_spectral_entropy(points, 1.0, tolerance=1e-3)
        bits = diffusion_spectral_entropy(points, 1.0, tolerance=1e-3, base=2)
        assert bits == pytest.approx(nats / math.log(2), rel=1e-12)
        assert (points == before).all()

    def test_mutual_information_is_within_the_tolerance_of_its_entropies(self):
        points, labels = cloud(700, 8), np.repeat([0, 1], 350)
        points[350:, 0] += 4.0
        exact = diffusion_spectral_mutual_information(points, labels, 1.0)
        value = diffusion_spectral_mutual_information(points, labels, 1.0, tolerance=1e-3)
        assert value.value != exact.value
        assert value.value == pytest.approx(exact.value, abs=2e-3 * math.log(350))

    @pytest.mark.filterwarnings("default:entropy within 2 %")
    def test_warns_where_sigma_does_not_resolve_the_points(self):
        with pytest.warns(UserWarning, match="within 2 % of 0"):
            diffusion_spectral_entropy(cloud(400), 1e4, tolerance=1e-3)

    @pytest.mark.parametrize("tolerance", [0.0, -1e-3, 1.0, math.nan, math.inf])
    def test_refuses_a_tolerance_outside_0_and_1(self, tolerance):
        with pytest.raises(ValueError, match="tolerance must be None or between 0 and 1"):
            diffusion_spectral_entropy(cloud(), tolerance=tolerance)
        with pytest.raises(ValueError, match="tolerance must be None or between 0 and 1"):
            diffusion_spectral_mutual_information(
                cloud(), np.zeros(60, dtype=int), tolerance=tolerance
            )

    def test_refuses_early_times_and_gradients(self):
        with pytest.raises(ValueError, match="t must be at least 1 with a tolerance"):
            diffusion_spectral_entropy(cloud(), t=0.5, tolerance=1e-3)
        points = torch.from_numpy(cloud()).requires_grad_()
        with pytest.raises(ValueError, match="Z must not require gradients"):
            diffusion_spectral_entropy(points, tolerance=1e-3)
        with torch.no_grad():
            diffusion_spectral_entropy(points, 1.0, tolerance=1e-3)


class TestDiffusionSpectralMutualInformation:
    def test_far_tight_clusters_with_their_labels_give_log_k_not_the_labels_entropy(self):
        points, labels = clusters([60, 40]), np.repeat([0, 1], [60, 40])
        result = diffusion_spectral_mutual_information(points, labels, base=2)
        # Shannon's label entropy would be 0.971.
        assert result.value == pytest.approx(1.0, abs=1e-7)
        assert result.per_class == pytest.approx([1.0, 1.0], abs=1e-7)

    def test_permuted_labels_tell_nothing(self):
        points = clusters([60, 40])
        labels = np.random.default_rng(0).permutation(np.repeat([0, 1], [60, 40]))
        assert diffusion_spectral_mutual_information(points, labels).value == pytest.approx(
            0, abs=1e-8
        )

    def test_one_class_holds_no_information(self):
        result = diffusion_spectral_mutual_information(cloud(), np.zeros(60, dtype=int), 1.0)
        assert result.value == pytest.approx(0, abs=EXACT)

    @pytest.mark.parametrize("t", [1, 2])
    def test_is_the_published_formula_on_its_own_draws(self, t):
        points, labels = cloud(90, 6, scale=5.0), np.repeat([3, 1, 7], [20, 30, 40])
        points += labels[:, None]
        expected = 0.0
        for c, size in zip(*np.unique(labels, return_counts=True), strict=True):
            rng = np.random.default_rng(0)
            draws = [rng.choice(90, size, replace=False) for _ in range(5)]
            h_s = np.mean([dse_dsmi.diffusion_spectral_entropy(points[i], t=t) for i in draws])
            h_c = dse_dsmi.diffusion_spectral_entropy(points[labels == c], t=t)
            expected += size / 90 * (h_s - h_c)
        result = diffusion_spectral_mutual_information(points, labels, t=t, base=2)
        assert result.value == pytest.approx(expected, abs=1e-6)
        assert result.classes.tolist() == [1, 3, 7]
        assert result.sizes.tolist() == [30, 20, 40]
        assert result.sigma == 10.0

    @pytest.mark.parametrize("t", [1, 2])
    def test_agrees_with_the_published_implementation_up_to_its_random_subsets(self, t):
        rng = np.random.default_rng(0)
        labels = np.repeat(np.arange(3), 60)
        points = rng.normal(size=(180, 8)) * 3 + 15 * labels[:, None]
        ours = diffusion_spectral_mutual_information(points, labels, t=t, repeats=20, base=2)
        reference = dse_dsmi.diffusion_spectral_mutual_information(
            points, labels, t=t, num_repetitions=20
        )[0]
        # Other random subsets: the standard error of either is about 0.01 bits.
        assert ours.value == pytest.approx(reference, abs=0.03)

    def test_chunks_of_subsets_equal_all_at_once(self, monkeypatch):
        points, labels = cloud(60), np.repeat([0, 1, 2], 20)
        whole = diffusion_spectral_mutual_information(points, labels, 1.0)
        monkeypatch.setattr(spectral, "_BATCH_ENTRIES", 1)
        assert diffusion_spectral_mutual_information(points, labels, 1.0).value == whole.value

    def test_torch_and_numpy_agree_and_the_seed_decides(self):
        points, labels = cloud(60), np.repeat([0, 1, 2], 20)
        value = diffusion_spectral_mutual_information(points, labels, 1.0).value
        tensors = torch.from_numpy(points).requires_grad_(), torch.from_numpy(labels)
        assert diffusion_spectral_mutual_information(*tensors, 1.0).value == value
        assert diffusion_spectral_mutual_information(points, labels, 1.0, rng=1).value != value

    def test_a_label_column_counts_as_labels_and_floats_are_binned(self):
        labels = np.repeat([0, 1, 2], 20)
        a = diffusion_spectral_mutual_information(cloud(60), labels, 1.0)
        b = diffusion_spectral_mutual_information(cloud(60), labels[:, None], 1.0)
        c = diffusion_spectral_mutual_information(
            cloud(60), labels.astype(float), 1.0, n_clusters=3
        )
        assert a.value == b.value == c.value

    def test_clusters_of_a_vector_y_are_returned_to_be_reused(self):
        inputs = clusters([40, 40, 40], spread=5.0)
        activations = clusters([40, 40, 40], spread=1.0, seed=1)
        first = diffusion_spectral_mutual_information(activations, inputs, n_clusters=3, base=2)
        assert first.value == pytest.approx(math.log2(3), abs=0.05)
        again = diffusion_spectral_mutual_information(activations, first.clusters, base=2)
        assert again.value == first.value

    def test_a_class_with_one_point_is_left_out_with_a_warning(self):
        points, labels = cloud(41), np.repeat([0, 1, 9], [20, 20, 1])
        with pytest.warns(UserWarning, match="left out: 9"):
            result = diffusion_spectral_mutual_information(points, labels, 1.0)
        assert result.classes.tolist() == [0, 1]
        assert result.value == pytest.approx(result.per_class.mean())

    def test_subsampling_takes_the_labels_along(self):
        labels = np.repeat([0, 1], [60, 40])
        result = diffusion_spectral_mutual_information(clusters([60, 40]), labels, max_n=50, base=2)
        assert result.value == pytest.approx(1.0, abs=1e-7)
        assert result.sizes.sum() == 50
        assert len(result.clusters) == 100

    @pytest.mark.filterwarnings("default:entropy within 2 %")
    def test_warns_where_random_subsets_saturate(self):
        with pytest.warns(UserWarning, match="within 2 % of log n"):
            diffusion_spectral_mutual_information(cloud(), np.repeat([0, 1], 30), 1e-4)

    def test_refuses_bad_labels(self, unhooked):
        with pytest.raises(ValueError, match="a row for each of Z's 60"):
            diffusion_spectral_mutual_information(cloud(60), np.zeros(59, dtype=int))
        with pytest.raises(ValueError, match="at least two points"):
            diffusion_spectral_mutual_information(cloud(4), np.arange(4))
        with pytest.raises(TypeError, match="Y must be"):
            diffusion_spectral_mutual_information(cloud(4), [0, 0, 1, 1])
        with pytest.raises(ValueError, match="repeats"):
            diffusion_spectral_mutual_information(cloud(4), np.zeros(4, dtype=int), repeats=0)
        with pytest.raises(ValueError, match="Y must be finite"):
            diffusion_spectral_mutual_information(cloud(4), np.array([0.0, 1.0, np.nan, 2.0]))
        with pytest.raises(ValueError, match="one column"):
            diffusion_spectral_mutual_information(cloud(4), np.zeros((4, 2)), discrete=True)


class TestClusterLabels:
    def test_bins_are_equal_in_width_and_the_maximum_belongs_to_the_last(self):
        values = np.array([0.0, *(0.05 + 0.1 * np.arange(10)), 1.0])
        assert cluster_labels(values * 8 - 3).tolist() == [0, *range(10), 9]
        assert cluster_labels(np.ones(4)).tolist() == [0, 0, 0, 0]

    def test_bins_are_those_of_the_published_code(self):
        values = np.random.default_rng(0).normal(size=(200, 1))
        _, reference = dse_dsmi.diffusion_spectral_mutual_information(
            cloud(200, 3), values, num_repetitions=1
        )
        assert (cluster_labels(values) == reference[:, 0] - 1).all()

    def test_booleans_and_names_are_labels(self):
        assert cluster_labels(np.array([True, False])).tolist() == [True, False]
        assert cluster_labels(np.array(["cat", "dog"])).tolist() == ["cat", "dog"]

    def test_refuses_too_few_vectors_and_bad_counts(self):
        with pytest.raises(ValueError, match="more rows than n_clusters"):
            cluster_labels(np.ones((5, 2)))
        with pytest.raises(ValueError, match="n_clusters"):
            cluster_labels(np.ones(5), n_clusters=0)
        with pytest.raises(ValueError, match="at least one row"):
            cluster_labels(np.ones((0, 2)))


class TestBaselines:
    def test_binned_entropy_counts_occupied_cells_and_saturates_in_high_dimension(self):
        assert binned_entropy(np.repeat(np.eye(4), 3, axis=0), base=2) == pytest.approx(2.0)
        assert binned_entropy(cloud(100, 64)) == pytest.approx(math.log(100))
        assert binned_entropy(np.ones((5, 2))) == 0.0

    @pytest.mark.parametrize("bins", [2, 5])
    def test_binned_entropy_agrees_with_the_published_code(self, bins):
        points = cloud(100, 4)
        reference = dse_dsmi.diffusion_spectral_entropy(
            points, classic_shannon_entropy=True, num_bins_per_dim=bins
        )
        assert binned_entropy(points, bins=bins, base=2) == pytest.approx(reference, abs=1e-6)

    def test_matrix_entry_entropy_agrees_with_the_published_code_and_its_bounds(self):
        points = cloud(50, 4, scale=5.0)
        reference = dse_dsmi.diffusion_spectral_entropy(points, matrix_entry_entropy=True)
        assert matrix_entry_entropy(points, base=2) == pytest.approx(reference, abs=1e-6)
        assert matrix_entry_entropy(np.eye(4) * 1e3, base=2) == pytest.approx(2.0)

    @pytest.mark.parametrize("neighbors", [None, 10])
    def test_adjacency_entropy_agrees_with_the_published_code(self, neighbors):
        points = cloud(50, 4, scale=5.0)
        reference = dse_dsmi.adjacency_spectral_entropy(points, use_knn=neighbors is not None)
        value = adjacency_spectral_entropy(points, neighbors=neighbors, base=2)
        assert value == pytest.approx(reference, abs=1e-6)

    def test_size_matching_with_diffusion_entropy_is_dsmi(self):
        points, labels = cloud(60), np.repeat([0, 1, 2], 20)
        generic = size_matched_mutual_information(
            lambda z: diffusion_spectral_entropy(z, 1.0), points, labels
        )
        direct = diffusion_spectral_mutual_information(points, labels, 1.0)
        assert generic.value == pytest.approx(direct.value, abs=EXACT)
        assert generic.sigma is None

    def test_bad_parameters(self):
        with pytest.raises(ValueError, match="bins"):
            binned_entropy(cloud(), bins=0)
        with pytest.raises(ValueError, match="neighbors"):
            adjacency_spectral_entropy(cloud(8), neighbors=9)
        with pytest.raises(ValueError, match="sigma"):
            matrix_entry_entropy(cloud(), -1.0)
