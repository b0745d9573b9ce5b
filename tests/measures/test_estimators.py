"""Exact values, closed forms and invariances of the sample estimators."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from scipy.special import digamma
from sklearn.feature_selection._mutual_info import _compute_mi_cc

from szilard.measures.categorical import entropy
from szilard.measures.estimators import (
    entropy_from_counts,
    kozachenko_leonenko,
    ksg_mutual_information,
)

METHODS = ["plugin", "miller-madow", "chao-shen", "grassberger"]

counts_rows = hnp.arrays(np.int64, st.integers(1, 12), elements=st.integers(0, 50)).filter(np.any)


def grassberger_g(n: int) -> float:
    """G by the recursion of the paper's eq. 31-35 in exact fractions, less its constant."""
    even = sum((Fraction(2, 2 * j + 1) for j in range(n // 2)), Fraction(0))
    return float(even) - float(mpmath.euler) - math.log(2)


def normal_pair(rng: np.random.Generator, n: int, rho: float) -> tuple[np.ndarray, np.ndarray]:
    x = rng.normal(size=n)
    return x, rho * x + math.sqrt(1 - rho**2) * rng.normal(size=n)


# Counts


def test_counts_worked_by_hand() -> None:
    counts = np.array([3, 1, 0])
    plugin = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert entropy_from_counts(counts) == pytest.approx(plugin, rel=1e-15)
    assert entropy_from_counts(counts, "miller-madow") == pytest.approx(plugin + 1 / 8, rel=1e-15)
    # Coverage 3/4: probabilities 9/16 and 3/16, each seen in four draws with 1 - (1 - p)^4.
    shen = sum(-p * math.log(p) / (1 - (1 - p) ** 4) for p in (9 / 16, 3 / 16))
    assert entropy_from_counts(counts, "chao-shen") == pytest.approx(shen, rel=1e-14)
    # G(1) = -γ - ln 2, G(3) = G(2) = G(1) + 2.
    g = math.log(4) + float(mpmath.euler) + math.log(2) - 3 / 4 * 2
    assert entropy_from_counts(counts, "grassberger") == pytest.approx(g, rel=1e-14)


@given(counts_rows)
def test_grassberger_agrees_with_the_recursion_and_the_digamma_form(n: np.ndarray) -> None:
    total = n.sum()
    value = entropy_from_counts(n, "grassberger")
    recursion = math.log(total) - sum(int(k) * grassberger_g(int(k)) for k in n) / total
    np.testing.assert_allclose(value, recursion, rtol=1e-12, atol=1e-13)
    seen = n[n > 0]
    g = digamma(seen) + (-1.0) ** seen / 2 * (digamma((seen + 1) / 2) - digamma(seen / 2))
    np.testing.assert_allclose(value, np.log(total) - (seen * g).sum() / total, atol=1e-12)


@given(counts_rows)
def test_plugin_is_the_entropy_of_the_frequencies(n: np.ndarray) -> None:
    np.testing.assert_allclose(entropy_from_counts(n), entropy(n / n.sum()), rtol=1e-13, atol=1e-14)


@given(counts_rows)
def test_corrections_raise_the_plugin_estimate(n: np.ndarray) -> None:
    plugin = entropy_from_counts(n)
    assert entropy_from_counts(n, "miller-madow") >= plugin
    # Without singletons the coverage is 1 and Chao-Shen only divides by what is at most 1.
    if not (n == 1).any():
        assert entropy_from_counts(n, "chao-shen") >= plugin - 1e-13


@pytest.mark.parametrize("method", METHODS)
@given(n=counts_rows, seed=st.integers(0, 2**32 - 1))
def test_estimates_ignore_order_unseen_outcomes_dtype_and_kind(
    method: str, n: np.ndarray, seed: int
) -> None:
    value = entropy_from_counts(n, method)
    shuffled = np.random.default_rng(seed).permutation(np.append(n, [0, 0, 0]))
    np.testing.assert_allclose(entropy_from_counts(shuffled, method), value, rtol=1e-12, atol=1e-13)
    bits = entropy_from_counts(n, method, base=2)
    np.testing.assert_allclose(bits * math.log(2), value, rtol=1e-12, atol=1e-13)
    for dtype in (np.uint8, np.int32, np.float32, np.float64):
        np.testing.assert_array_equal(entropy_from_counts(n.astype(dtype), method), value)
    tensor = entropy_from_counts(torch.from_numpy(n), method)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.dtype == torch.float64
    np.testing.assert_array_equal(tensor.numpy(), value)


@pytest.mark.parametrize("method", METHODS)
def test_leading_axes_of_counts_are_batch_even_when_empty(method: str) -> None:
    n = np.random.default_rng(0).integers(0, 9, size=(4, 3, 6)) + np.eye(6, dtype=np.int64)[:3]
    batched = entropy_from_counts(n, method)
    rows = [[entropy_from_counts(row, method) for row in block] for block in n]
    np.testing.assert_allclose(batched, rows, rtol=1e-13)
    assert entropy_from_counts(np.zeros((2, 0, 5), dtype=np.int64), method).shape == (2, 0)


@pytest.mark.parametrize("method", METHODS)
def test_one_outcome_seen_often_has_no_entropy(method: str) -> None:
    # Grassberger's correction at n = 10^6 is of order 1/n.
    assert entropy_from_counts(np.array([10**6, 0]), method) == pytest.approx(0, abs=2e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("counts", [[1], [1, 0], [1, 1, 1, 1]])
def test_singletons_alone_give_finite_estimates(method: str, counts: list[int]) -> None:
    assert np.isfinite(entropy_from_counts(np.array(counts), method))


def test_chao_shen_of_singletons_alone_leaves_one_out() -> None:
    # f_1 = N - 1: coverage 1/4, four probabilities of 1/16, each seen with 1 - (15/16)^4.
    expected = 4 * (1 / 16) * math.log(16) / (1 - (15 / 16) ** 4)
    value = entropy_from_counts(np.ones(4, dtype=np.int64), "chao-shen")
    assert value == pytest.approx(expected, rel=1e-13)


def test_miller_madow_bias_is_of_second_order_and_all_corrections_beat_the_plugin() -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(20))
    truth = entropy(p)
    samples = rng.multinomial(100, p, size=4000)
    bias = {m: entropy_from_counts(samples, m).mean() - truth for m in METHODS}
    # First-order bias (m - 1) / 2N = 0.095; the standard error of each mean is about 0.001.
    assert bias["plugin"] == pytest.approx(-19 / 200, abs=0.02)
    for method in METHODS[1:]:
        assert abs(bias[method]) < 0.03


def test_grassberger_is_nearly_unbiased_where_each_outcome_is_seen_about_once() -> None:
    rng = np.random.default_rng(2)
    samples = rng.multinomial(200, np.full(200, 1 / 200), size=500)
    truth = math.log(200)
    bias = {m: entropy_from_counts(samples, m).mean() - truth for m in METHODS}
    assert bias["plugin"] < -0.3
    # Paper, section 3: the remainder is below 0.1 at this mean occupation.
    assert abs(bias["grassberger"]) < 0.12
    assert abs(bias["chao-shen"]) < 0.12


def test_all_estimators_agree_in_the_limit_of_many_draws() -> None:
    p = np.array([0.5, 0.3, 0.2])
    n = (p * 10**8).astype(np.int64)
    for method in METHODS:
        assert entropy_from_counts(n, method) == pytest.approx(float(entropy(p)), abs=1e-7)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.array([1, -1]), "whole non-negative"),
        (np.array([0.5, 0.5]), "whole non-negative"),
        (np.array([math.nan, 1.0]), "whole non-negative"),
        (np.array([math.inf, 1.0]), "whole non-negative"),
        (np.array([[1, 2], [0, 0]]), "all zero"),
        (np.zeros((3, 0), dtype=np.int64), "non-empty"),
        (torch.zeros(0), "non-empty"),
    ],
)
def test_counts_that_are_no_counts_are_refused(counts, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entropy_from_counts(counts)


@pytest.mark.usefixtures("unhooked")
def test_other_types_of_counts_and_unknown_methods_are_refused() -> None:
    with pytest.raises(ValueError, match="method must be one of plugin, miller-madow"):
        entropy_from_counts(np.array([1, 2]), "jackknife")
    for wrong in (np.array([True]), torch.tensor([True]), np.array(["a"]), torch.tensor([1j])):
        with pytest.raises(TypeError, match="integer or floating dtype"):
            entropy_from_counts(wrong)
    with pytest.raises(TypeError, match=r"counts must be a torch\.Tensor"):
        entropy_from_counts([1, 2])
    with pytest.raises(ValueError, match="base"):
        entropy_from_counts(np.array([1, 2]), base=1)


# Kozachenko-Leonenko

CLOSED = {
    "uniform": (lambda rng, n: rng.uniform(-1, 3, size=n), math.log(4)),
    "normal": (lambda rng, n: 2 * rng.normal(size=n), 0.5 * math.log(2 * math.pi * math.e * 4)),
    "exponential": (lambda rng, n: rng.exponential(3, size=n), 1 + math.log(3)),
    "normal 3d": (lambda rng, n: rng.normal(size=(n, 3)), 1.5 * math.log(2 * math.pi * math.e)),
    "uniform 2d": (lambda rng, n: rng.uniform(0, 2, size=(n, 2)), math.log(4)),
}


@pytest.mark.parametrize("metric", ["euclidean", "chebyshev"])
@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("name", CLOSED)
def test_differential_entropies_of_known_densities(name: str, k: int, metric: str) -> None:
    draw, truth = CLOSED[name]
    rng = np.random.default_rng(3)
    # The bias depends on k / N alone: it is held at 1/500.
    n = 500 * max(k, 2)
    estimates = [kozachenko_leonenko(draw(rng, n), k, metric) for _ in range(20)]
    # Standard error of the mean of 20 x 1000 points is below 0.013; the rest is boundary bias.
    assert np.mean(estimates) == pytest.approx(truth, abs=0.06)


def test_differential_entropy_of_correlated_normals() -> None:
    cov = np.array([[1.0, 0.6], [0.6, 2.0]])
    x = np.random.default_rng(4).multivariate_normal(np.zeros(2), cov, size=8000)
    truth = 0.5 * math.log(np.linalg.det(2 * math.pi * math.e * cov))
    # Standard deviation about sqrt((d/2 + ψ'(k)) / N) = 0.013; four of them.
    assert kozachenko_leonenko(x) == pytest.approx(truth, abs=0.052)
    bits = kozachenko_leonenko(x, base=2)
    assert bits * math.log(2) == pytest.approx(kozachenko_leonenko(x), rel=1e-14)


@pytest.mark.parametrize("metric", ["euclidean", "chebyshev"])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_entropy_follows_the_formula_on_brute_force_distances(d: int, metric: str) -> None:
    x = np.random.default_rng(5).normal(size=(60, d))
    k = 4
    radius = np.sort(cdist(x, x, metric), axis=1)[:, k]
    ball = 2**d if metric == "chebyshev" else math.pi ** (d / 2) / math.gamma(d / 2 + 1)
    expected = digamma(60) - digamma(k) + math.log(ball) + d * np.log(radius).mean()
    assert kozachenko_leonenko(x, k, metric) == pytest.approx(expected, rel=1e-12)


@st.composite
def clouds(draw: st.DrawFn) -> np.ndarray:
    """Points without ties, on scales from a thousandth to a thousand."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(st.integers(6, 30), st.integers(1, 3)))
    return rng.normal(size=shape) * 10.0 ** draw(st.floats(-3, 3))


@given(clouds(), st.sampled_from([-4.0, 0.5, 3.7, 1e6]), st.sampled_from([1, 3]))
def test_scaling_shifts_the_entropy_by_exactly_its_logarithm(
    x: np.ndarray, scale: float, k: int
) -> None:
    expected = kozachenko_leonenko(x, k) + x.shape[1] * math.log(abs(scale))
    assert kozachenko_leonenko(scale * x, k) == pytest.approx(expected, abs=1e-10)


@given(clouds(), st.floats(-10, 10))
def test_translation_changes_nothing(x: np.ndarray, shift: float) -> None:
    # Translation rounds the coordinates: 1e-15 of a distance that is 1e-5 or more.
    assert kozachenko_leonenko(x + shift) == pytest.approx(kozachenko_leonenko(x), abs=1e-8)


@given(clouds(), st.integers(0, 2**32 - 1))
def test_estimates_do_not_depend_on_the_order_of_the_samples(x: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.normal(size=len(x)) + x.sum(1)
    order = rng.permutation(len(x))
    assert kozachenko_leonenko(x[order]) == pytest.approx(kozachenko_leonenko(x), abs=1e-12)
    for variant in (1, 2):
        value = ksg_mutual_information(x, y, variant=variant)
        shuffled = ksg_mutual_information(x[order], y[order], variant=variant)
        assert shuffled == pytest.approx(value, abs=1e-12)
        swapped = ksg_mutual_information(y, x, variant=variant)
        assert swapped == pytest.approx(value, abs=1e-12)
        # A power of two rounds nothing.
        assert ksg_mutual_information(4 * x, 4 * y, variant=variant) == value


# Kraskov-Stögbauer-Grassberger


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("rho", [0.0, 0.6, 0.95])
def test_variant_one_is_the_kernel_of_scikit_learn(rho: float, k: int) -> None:
    x, y = normal_pair(np.random.default_rng(6), 500, rho)
    ours = ksg_mutual_information(x, y, k)
    assert max(0.0, ours) == pytest.approx(_compute_mi_cc(x, y, k), abs=1e-12)


def brute_force_ksg(x: np.ndarray, y: np.ndarray, k: int, variant: int) -> float:
    """Equations 8 and 9 of the paper, point by point."""
    dx, dy = cdist(x, x, "chebyshev"), cdist(y, y, "chebyshev")
    psi = []
    for i in range(len(x)):
        others = np.arange(len(x)) != i
        near = np.argsort(np.where(others, np.maximum(dx, dy)[i], np.inf))[:k]
        if variant == 1:
            radius = np.maximum(dx, dy)[i, near[-1]]
            counts = [((d[i] < radius) & others).sum() + 1 for d in (dx, dy)]
        else:
            counts = [((d[i] <= d[i, near].max()) & others).sum() for d in (dx, dy)]
        psi.append(digamma(counts).sum())
    correction = 0 if variant == 1 else 1 / k
    return float(digamma(k) - correction + digamma(len(x)) - np.mean(psi))


@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize(("dx", "dy"), [(1, 1), (2, 1), (1, 3), (4, 2)])
def test_both_variants_follow_the_paper_in_any_dimensions(dx: int, dy: int, variant: int) -> None:
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(80, dx)), rng.normal(size=(80, dy))
    y[:, 0] += x[:, 0]
    for k in (1, 2, 5):
        value = ksg_mutual_information(x, y, k, variant)
        assert value == pytest.approx(brute_force_ksg(x, y, k, variant), abs=1e-12)


@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_information_of_correlated_normals(rho: float, variant: int) -> None:
    rng = np.random.default_rng(8)
    estimates = [ksg_mutual_information(*normal_pair(rng, 500, rho), 3, variant) for _ in range(30)]
    truth = -0.5 * math.log(1 - rho**2)
    # The paper's figure 4 shows a bias below 0.02 at N = 500; four standard errors beside it.
    error = 4 * np.std(estimates) / math.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(truth, abs=0.02 + error)


@pytest.mark.parametrize("variant", [1, 2])
def test_information_of_a_uniform_with_uniform_noise(variant: int) -> None:
    rng = np.random.default_rng(9)
    x = rng.uniform(size=4000)
    y = x + rng.uniform(0, 0.5, size=4000)
    # y is trapezoidal: h(y) - h(noise), h(y) = a/2 for widths 1 and a = 1/2.
    truth = 0.25 - math.log(0.5)
    assert ksg_mutual_information(x, y, variant=variant) == pytest.approx(truth, abs=0.06)


@pytest.mark.parametrize("variant", [1, 2])
def test_information_between_vectors_of_different_dimension(variant: int) -> None:
    rng = np.random.default_rng(10)
    x = rng.normal(size=(4000, 2))
    y = x.sum(1) + rng.normal(size=4000)
    truth = 0.5 * math.log(3)
    value = ksg_mutual_information(x, y, variant=variant)
    assert value == pytest.approx(truth, abs=0.08)
    column = ksg_mutual_information(x, y[:, None], variant=variant)
    assert column == value
    bits = ksg_mutual_information(x, y, variant=variant, base=2)
    assert bits * math.log(2) == pytest.approx(value, rel=1e-14)


@pytest.mark.parametrize("variant", [1, 2])
def test_single_precision_layout_and_the_number_of_workers_change_nothing(variant: int) -> None:
    x, y = normal_pair(np.random.default_rng(11), 3000, 0.7)
    x, y = x.astype(np.float32), np.column_stack([y, x * y]).astype(np.float32)
    wide = ksg_mutual_information(x.astype(np.float64), y.astype(np.float64), variant=variant)
    for left, right in ((x, y), (np.repeat(x, 2)[::2], np.asfortranarray(y))):
        for workers in (None, 1, 2, 7, -1):
            value = ksg_mutual_information(left, right, variant=variant, workers=workers)
            assert value == wide
    for points in (x, y, np.asfortranarray(y), y[::-1][::-1]):
        one = kozachenko_leonenko(points, workers=1)
        assert [kozachenko_leonenko(points, workers=n) for n in (None, 2, 7, -1)] == [one] * 4


@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize("d", [1, 2, 4])
def test_estimates_are_those_of_a_plain_tree_search(d: int, variant: int) -> None:
    rng = np.random.default_rng(16)
    x = rng.normal(size=(6000, d))
    y = x[:, :1] + rng.normal(size=(6000, d))
    k, n, joint = 4, len(x), np.hstack((x, y))
    distance, index = cKDTree(joint).query(joint, k + 1, p=math.inf)
    radius, near = distance[:, -1], index[:, 1:]
    psi = 0.0
    for z in (x, y):
        side = np.nextafter(radius, 0)
        if variant == 2:
            side = np.abs(z[near] - z[:, None]).max((1, 2))
        counts = cKDTree(z).query_ball_point(z, side, p=math.inf, return_length=True)
        psi += digamma(counts - (variant == 2)).mean()
    expected = digamma(k) - (variant == 2) / k + digamma(n) - psi
    assert ksg_mutual_information(x, y, k, variant) == pytest.approx(expected, abs=1e-12)
    entropy_ = digamma(n) - digamma(k) + 2 * d * (math.log(2) + np.log(radius).mean())
    assert kozachenko_leonenko(joint, k, "chebyshev") == pytest.approx(entropy_, abs=1e-12)


def test_all_other_points_may_be_the_neighbours() -> None:
    rng = np.random.default_rng(17)
    x, y = rng.normal(size=(40, 2)), rng.normal(size=40)
    value = ksg_mutual_information(x, y, 39)
    assert value == pytest.approx(brute_force_ksg(x, y[:, None], 39, 1), abs=1e-12)
    farthest = cdist(x, x).max(1)
    expected = digamma(40) - digamma(39) + math.log(math.pi) + 2 * np.log(farthest).mean()
    assert kozachenko_leonenko(x, 39) == pytest.approx(expected, abs=1e-12)


# Ties


def test_coinciding_points_are_refused_unless_dithered() -> None:
    rng = np.random.default_rng(12)
    x = np.round(rng.normal(size=2000), 1)
    y = np.round(x + 0.75 * rng.normal(size=2000), 1)
    with pytest.raises(ValueError, match="coincides with 3 others"):
        kozachenko_leonenko(x)
    with pytest.raises(ValueError, match="dither="):
        ksg_mutual_information(x, y)
    with pytest.raises(ValueError, match="needs rng"):
        ksg_mutual_information(x, y, dither=0.01)
    value = ksg_mutual_information(x, y, dither=0.03, rng=np.random.default_rng(0))
    assert value == pytest.approx(0.5 * math.log(1 + 1 / 0.75**2), abs=0.1)
    assert value == ksg_mutual_information(x, y, dither=0.03, rng=np.random.default_rng(0))


@pytest.mark.parametrize("variant", [1, 2])
def test_a_few_repeated_points_are_counted_as_the_paper_says(variant: int) -> None:
    rng = np.random.default_rng(13)
    x, y = rng.normal(size=(50, 1)), rng.normal(size=(50, 2))
    x[10:12], y[10:12] = x[0], y[0]
    value = ksg_mutual_information(x, y, 3, variant)
    assert value == pytest.approx(brute_force_ksg(x, y, 3, variant), abs=1e-12)
    # Points on a line: ties in x alone are no reason to refuse.
    x[:] = 1.0
    assert abs(ksg_mutual_information(x, y, 3, variant)) < 0.5


def test_dither_is_added_to_a_copy_and_leaves_global_randomness_alone() -> None:
    x = np.repeat(np.arange(10.0), 5)
    before, state = x.copy(), np.random.get_state()[1].copy()  # noqa: NPY002
    kozachenko_leonenko(x, dither=0.1, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


# Bad input


@pytest.mark.usefixtures("unhooked")
def test_points_that_make_no_sample_are_refused() -> None:
    x = np.random.default_rng(14).normal(size=20)
    with pytest.raises(ValueError, match="x and y must hold as many points"):
        ksg_mutual_information(x, x[:-1])
    with pytest.raises(ValueError, match="y must be finite"):
        ksg_mutual_information(x, np.where(x > 0, np.nan, x))
    with pytest.raises(ValueError, match="x must be finite"):
        kozachenko_leonenko(np.where(x > 0, np.inf, x))
    with pytest.raises(TypeError, match="x must have a floating-point dtype"):
        kozachenko_leonenko(np.arange(20))
    with pytest.raises(TypeError, match=r"x must be a numpy\.ndarray"):
        kozachenko_leonenko(list(x))
    with pytest.raises(ValueError, match=r"shape \(n,\) or \(n, d\)"):
        kozachenko_leonenko(x.reshape(5, 2, 2))
    for empty in (x[:0], np.zeros((0, 2)), np.zeros((5, 0))):
        with pytest.raises(ValueError, match=r"empty|points"):
            kozachenko_leonenko(empty)


@pytest.mark.usefixtures("unhooked")
def test_parameters_outside_their_range_are_refused() -> None:
    x = np.random.default_rng(15).normal(size=20)
    for k in (0, -1, 20, 100):
        with pytest.raises(ValueError, match="k must be at least 1 and less than the 20 points"):
            kozachenko_leonenko(x, k)
    for k in (2.0, True):
        with pytest.raises(TypeError, match="k must be an integer"):
            ksg_mutual_information(x, x, k)
    with pytest.raises(ValueError, match="metric must be one of euclidean, chebyshev"):
        kozachenko_leonenko(x, metric="cosine")
    with pytest.raises(ValueError, match="variant must be 1 or 2"):
        ksg_mutual_information(x, x, variant=3)
    with pytest.raises(ValueError, match="dither must be"):
        kozachenko_leonenko(x, dither=-1.0)
    with pytest.raises(ValueError, match="base must be"):
        kozachenko_leonenko(x, base=0)
    for workers in (0, -2, 1.5, True):
        with pytest.raises(ValueError, match="workers must be a positive integer, -1 or None"):
            kozachenko_leonenko(x, workers=workers)
        with pytest.raises(ValueError, match="workers must be a positive integer, -1 or None"):
            ksg_mutual_information(x, x, workers=workers)
