"""Closed forms, limits and invariances of the categorical measures."""

import math
from functools import partial

import mpmath
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from szilard.measures.categorical import (
    conditional_entropy,
    cross_entropy,
    entropy,
    js_divergence,
    kl_divergence,
    mutual_information,
    perplexity,
    renyi_entropy,
    tsallis_entropy,
)

# Double precision, sums of a few dozen terms of order one.
TIGHT = {"rtol": 1e-12, "atol": 1e-13}

SINGLE = {
    "entropy": entropy,
    "perplexity": perplexity,
    "renyi 0": partial(renyi_entropy, alpha=0),
    "renyi 0.5": partial(renyi_entropy, alpha=0.5),
    "renyi 0.95": partial(renyi_entropy, alpha=0.95),
    "renyi 1": partial(renyi_entropy, alpha=1),
    "renyi 1.05": partial(renyi_entropy, alpha=1.05),
    "renyi 2": partial(renyi_entropy, alpha=2),
    "renyi inf": partial(renyi_entropy, alpha=math.inf),
    "tsallis 0": partial(tsallis_entropy, q=0),
    "tsallis 0.5": partial(tsallis_entropy, q=0.5),
    "tsallis 1": partial(tsallis_entropy, q=1),
    "tsallis 2": partial(tsallis_entropy, q=2),
}
PAIR = {"cross": cross_entropy, "kl": kl_divergence, "js": js_divergence}
JOINT = {"conditional": conditional_entropy, "mutual": mutual_information}


def weights(*shape: int) -> st.SearchStrategy[np.ndarray]:
    """Non-negative weights, often zero."""
    element = st.one_of(st.just(0.0), st.floats(1e-9, 1))
    return hnp.arrays(np.float64, shape, elements=element)


@st.composite
def distributions(draw: st.DrawFn, n: int | None = None) -> np.ndarray:
    w = draw(weights(n or draw(st.integers(1, 12))))
    assume(w.sum() > 0)
    return w / w.sum()


@st.composite
def joints(draw: st.DrawFn) -> np.ndarray:
    w = draw(weights(draw(st.integers(1, 5)), draw(st.integers(1, 5))))
    assume(w.sum() > 0)
    return w / w.sum()


@st.composite
def tuples(draw: st.DrawFn, count: int) -> tuple[np.ndarray, ...]:
    n = draw(st.integers(1, 8))
    return tuple(draw(distributions(n)) for _ in range(count))


def log(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(p)


# Closed forms and peers


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
@pytest.mark.parametrize("alpha", [0, 0.3, 0.999, 1, 1.001, 2, 50, 1e300, math.inf])
def test_every_renyi_entropy_of_the_uniform_distribution_is_log_n(n: int, alpha: float) -> None:
    p = np.full(n, 1 / n)
    np.testing.assert_allclose(renyi_entropy(p, alpha=alpha), math.log(n), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(entropy(p), math.log(n), **TIGHT)
    np.testing.assert_allclose(perplexity(p), n, **TIGHT)


@pytest.mark.parametrize("measure", SINGLE.values(), ids=SINGLE)
def test_a_certain_outcome_has_no_entropy_and_no_minus_sign(measure) -> None:
    p = torch.tensor([0.0, 1.0, 0.0])
    expected = 1.0 if measure is perplexity else 0.0
    for value in (measure(p), measure(log_probs=p.log())):
        assert value.item() == expected
        assert not math.copysign(1, value.item()) < 0


@given(distributions())
def test_entropy_agrees_with_scipy_in_every_base(p: np.ndarray) -> None:
    for base in (None, 2, 10, 0.5, math.e):
        np.testing.assert_allclose(
            entropy(p, base=base), scipy.stats.entropy(p, base=base), **TIGHT
        )


@given(tuples(2))
def test_divergences_agree_with_scipy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    p, q = pair
    np.testing.assert_allclose(kl_divergence(p, q), scipy.stats.entropy(p, q), **TIGHT)
    # The square of a square root: the absolute error of the root is squared away.
    expected = scipy.spatial.distance.jensenshannon(p, q) ** 2
    np.testing.assert_allclose(js_divergence(p, q), expected, rtol=1e-9, atol=1e-13)


@given(distributions())
def test_orders_zero_two_and_inf_are_hartley_collision_and_min_entropy(p: np.ndarray) -> None:
    np.testing.assert_allclose(renyi_entropy(p, alpha=0), np.log((p > 0).sum()), **TIGHT)
    np.testing.assert_allclose(renyi_entropy(p, alpha=2), -np.log((p**2).sum()), **TIGHT)
    np.testing.assert_allclose(renyi_entropy(p, alpha=math.inf), -np.log(p.max()), **TIGHT)
    np.testing.assert_allclose(renyi_entropy(p, alpha=1e18), -np.log(p.max()), **TIGHT)
    np.testing.assert_allclose(tsallis_entropy(p, q=0), (p > 0).sum() - 1, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(tsallis_entropy(p, q=2), 1 - (p**2).sum(), **TIGHT)


REFERENCE = [1e-300, 1e-40, 1e-12, 0.001, 0.25]


@pytest.mark.parametrize("order", [1 + s * 10.0**-e for e in range(1, 16, 2) for s in (-1, 1)])
def test_orders_near_one_keep_full_precision(order: float) -> None:
    with mpmath.workdps(60):
        p = [mpmath.mpf(x) for x in REFERENCE]
        p.append(1 - sum(p))
        power = sum(x ** mpmath.mpf(order) for x in p)
        renyi = float(mpmath.log(power) / (1 - mpmath.mpf(order)))
        tsallis = float((1 - power) / (mpmath.mpf(order) - 1))
        probs = np.array([float(x) for x in p])
    np.testing.assert_allclose(renyi_entropy(probs, alpha=order), renyi, rtol=1e-14)
    np.testing.assert_allclose(tsallis_entropy(probs, q=order), tsallis, rtol=1e-14)
    single = torch.tensor(probs, dtype=torch.float32)
    # float32: eps 1.2e-7 on each of a handful of terms.
    assert renyi_entropy(single, alpha=order).item() == pytest.approx(renyi, rel=1e-6)
    assert tsallis_entropy(single, q=order).item() == pytest.approx(tsallis, rel=1e-6)


@pytest.mark.parametrize("order", [0.01, 0.5, 0.89, 0.91, 1.09, 1.11, 3, 200])
def test_orders_far_from_one_agree_with_arbitrary_precision(order: float) -> None:
    with mpmath.workdps(60):
        p = [mpmath.mpf(x) for x in REFERENCE]
        p.append(1 - sum(p))
        power = sum(x ** mpmath.mpf(order) for x in p)
        renyi = float(mpmath.log(power) / (1 - mpmath.mpf(order)))
        tsallis = float((1 - power) / (mpmath.mpf(order) - 1))
        probs = np.array([float(x) for x in p])
    np.testing.assert_allclose(renyi_entropy(probs, alpha=order), renyi, rtol=1e-13)
    np.testing.assert_allclose(tsallis_entropy(probs, q=order), tsallis, rtol=1e-13)


def test_probabilities_far_below_underflow_are_exact_from_their_logarithms() -> None:
    log_p = torch.tensor([-2e4, -1e4, 0.0], dtype=torch.float64)
    log_q = torch.tensor([0.0, -1e4, -2e4], dtype=torch.float64)
    assert kl_divergence(log_p=log_p, log_q=log_q).item() == 2e4
    assert cross_entropy(log_p=log_p, log_q=log_q).item() == 2e4
    assert js_divergence(log_p=log_p, log_q=log_q).item() == pytest.approx(math.log(2), rel=1e-15)
    assert entropy(log_probs=log_p).item() == 0
    # Σ p^α with α = 1e-4: e^-2 + e^-1 + 1.
    expected = math.log(math.exp(-2) + math.exp(-1) + 1) / (1 - 1e-4)
    assert renyi_entropy(log_probs=log_p, alpha=1e-4).item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_logits_of_ten_thousand_give_finite_exact_entropies(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, 1e4, -1e4, -1e4], [-1e4, -1e4, -1e4, -math.inf]], dtype=dtype)
    h = entropy(log_probs=torch.log_softmax(logits.float(), -1))
    torch.testing.assert_close(h, torch.tensor([2.0, 3.0]).log())


# Identities, bounds, invariances


@given(tuples(2))
def test_cross_entropy_is_entropy_plus_divergence(pair: tuple[np.ndarray, np.ndarray]) -> None:
    p, q = pair
    np.testing.assert_allclose(cross_entropy(p, q), entropy(p) + kl_divergence(p, q), **TIGHT)
    np.testing.assert_allclose(cross_entropy(p, p), entropy(p), **TIGHT)


@given(tuples(2))
def test_divergence_is_zero_only_from_itself_and_infinite_off_the_support(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    p, q = pair
    assert kl_divergence(p, p) == 0
    assert kl_divergence(p, q) >= 0
    assert np.isinf(kl_divergence(p, q)) == bool(((p > 0) & (q == 0)).any())
    # Pinsker: D >= (Σ |p - q|)² / 2.
    assert kl_divergence(p, q) >= np.abs(p - q).sum() ** 2 / 2 - 1e-13


@given(tuples(3))
def test_root_of_js_divergence_is_a_bounded_metric(triple: tuple[np.ndarray, ...]) -> None:
    p, q, r = triple
    d = lambda a, b: float(np.sqrt(js_divergence(a, b, base=2)))
    assert d(p, q) == pytest.approx(d(q, p), abs=1e-7)
    assert 0 <= d(p, q) <= 1 + 1e-12
    # The root of a rounding error of 1e-16 is 1e-8.
    assert d(p, r) <= d(p, q) + d(q, r) + 1e-7
    assert js_divergence(p, p) == 0


def test_js_divergence_of_disjoint_distributions_is_one_bit() -> None:
    p = torch.tensor([0.3, 0.7, 0.0, 0.0])
    torch.testing.assert_close(js_divergence(p, p.flip(-1), base=2), torch.tensor(1.0))


@given(distributions(), st.permutations(range(12)))
def test_entropies_do_not_depend_on_order_or_on_impossible_outcomes(
    p: np.ndarray, order: list[int]
) -> None:
    shuffled = np.append(p, np.zeros(12 - len(p)))[order]
    for measure in SINGLE.values():
        np.testing.assert_allclose(measure(shuffled), measure(p), **TIGHT)


@given(distributions())
def test_entropies_are_bounded_and_fall_with_the_order(p: np.ndarray) -> None:
    orders = [0, 0.2, 0.9, 0.95, 1, 1.05, 1.1, 2, 10, math.inf]
    h = np.array([renyi_entropy(p, alpha=a) for a in orders])
    assert (h >= 0).all()
    assert (h <= math.log(len(p)) + 1e-12).all()
    assert (np.diff(h) <= 1e-12).all()
    s = np.array([tsallis_entropy(p, q=a) for a in orders[:-1]])
    assert (s >= 0).all()
    assert (np.diff(s) <= 1e-12).all()


@given(distributions(), distributions(), st.sampled_from([0, 0.5, 0.97, 1, 1.03, 2, 7]))
def test_entropies_of_independent_pairs_add(p: np.ndarray, q: np.ndarray, order: float) -> None:
    pair = np.outer(p, q).ravel()
    together = renyi_entropy(pair, alpha=order)
    parts = renyi_entropy(p, alpha=order) + renyi_entropy(q, alpha=order)
    np.testing.assert_allclose(together, parts, rtol=1e-11, atol=1e-12)
    a, b = tsallis_entropy(p, q=order), tsallis_entropy(q, q=order)
    pseudo = a + b + (1 - order) * a * b
    np.testing.assert_allclose(tsallis_entropy(pair, q=order), pseudo, rtol=1e-11, atol=1e-12)


@given(joints())
def test_chain_rule_and_the_three_forms_of_mutual_information(joint: np.ndarray) -> None:
    h = entropy(joint.ravel())
    hx, hy = entropy(joint.sum(1)), entropy(joint.sum(0))
    information = mutual_information(joint)
    np.testing.assert_allclose(hx + conditional_entropy(joint), h, **TIGHT)
    np.testing.assert_allclose(hy + conditional_entropy(joint.T), h, **TIGHT)
    np.testing.assert_allclose(information, hx + hy - h, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(information, hy - conditional_entropy(joint), **TIGHT)
    np.testing.assert_allclose(information, mutual_information(joint.T), **TIGHT)
    product = np.outer(joint.sum(1), joint.sum(0)).ravel()
    product /= product.sum()
    np.testing.assert_allclose(information, kl_divergence(joint.ravel(), product), **TIGHT)
    assert 0 <= information <= min(hx, hy) + 1e-12


@given(distributions(), distributions())
def test_independent_variables_share_no_information(p: np.ndarray, q: np.ndarray) -> None:
    joint = np.outer(p, q)
    np.testing.assert_allclose(mutual_information(joint), 0, atol=1e-13)
    np.testing.assert_allclose(conditional_entropy(joint), entropy(q), **TIGHT)


@given(tuples(1))
def test_a_copy_shares_all_its_entropy(single: tuple[np.ndarray]) -> None:
    joint = np.diag(single[0])
    np.testing.assert_allclose(mutual_information(joint), entropy(single[0]), **TIGHT)
    assert conditional_entropy(joint) == 0


@given(joints(), st.integers(0, 2**32 - 1))
def test_a_noisy_channel_creates_no_information(joint: np.ndarray, seed: int) -> None:
    channel = np.random.default_rng(seed).dirichlet(np.ones(4), size=joint.shape[1])
    assert mutual_information(joint @ channel) <= mutual_information(joint) + 1e-12


# The two forms, arrays and tensors, dtypes, batches


@given(tuples(2))
def test_probabilities_and_log_probabilities_agree(pair: tuple[np.ndarray, np.ndarray]) -> None:
    p, q = pair
    for measure in SINGLE.values():
        np.testing.assert_allclose(measure(log_probs=log(p)), measure(p), rtol=1e-11, atol=1e-12)
    for measure in PAIR.values():
        expected = measure(p, q)
        for given_ in ({"p": p, "log_q": log(q)}, {"log_p": log(p), "log_q": log(q)}):
            np.testing.assert_allclose(measure(**given_), expected, rtol=1e-11, atol=1e-12)


@given(joints())
def test_joints_and_log_joints_agree(joint: np.ndarray) -> None:
    for measure in JOINT.values():
        value = measure(log_joint=log(joint))
        np.testing.assert_allclose(value, measure(joint), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_is_computed_in_single_and_double_stays(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.softmax(torch.randn(5, 300, generator=generator, dtype=torch.float64), -1).to(dtype)
    wide = p.double() / p.double().sum(-1, keepdim=True)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for measure in SINGLE.values():
        assert measure(p).dtype == expected
    # Off by the rounding of the input alone: its eps, relative.
    torch.testing.assert_close(
        entropy(p).double(), entropy(wide), rtol=torch.finfo(dtype).eps, atol=1e-12
    )
    log_p = wide.log().to(dtype)
    assert entropy(log_probs=log_p).dtype == expected
    assert kl_divergence(p, log_q=log_p).dtype == expected


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_give_what_tensors_give(dtype: type) -> None:
    rng = np.random.default_rng(1)
    p, q = (rng.dirichlet(np.ones(8), size=(2, 3)).astype(dtype) for _ in range(2))
    for measure in SINGLE.values():
        value = measure(p)
        assert isinstance(value, np.ndarray)
        np.testing.assert_array_equal(value, measure(torch.from_numpy(p)).numpy())
    for measure in PAIR.values():
        value = measure(p, q)
        assert isinstance(value, np.ndarray)
        assert value.shape == (2, 3)
    for measure in JOINT.values():
        assert measure((p / 3).astype(dtype)).shape == (2,)


def test_arrays_of_any_layout_are_read_and_left_alone() -> None:
    p = np.random.default_rng(2).dirichlet(np.ones(6), size=4)
    expected = entropy(p)
    frozen = p.copy()
    frozen.flags.writeable = False
    for view in (frozen, p[:, ::-1][:, ::-1], np.asfortranarray(p), p.astype(">f8")):
        np.testing.assert_array_equal(entropy(view), expected)


@pytest.mark.parametrize("lead", [(), (1,), (0,), (2, 0, 3), (2, 3)])
def test_leading_axes_are_batch_even_when_empty(lead: tuple[int, ...]) -> None:
    p = torch.softmax(torch.zeros(*lead, 4), -1)
    joint = torch.full((*lead, 2, 3), 1 / 6)
    for measure in SINGLE.values():
        assert measure(p).shape == lead
        assert measure(log_probs=p.log()).shape == lead
    for measure in PAIR.values():
        assert measure(p, p).shape == lead
        assert measure(p, torch.full((4,), 0.25)).shape == lead
    for measure in JOINT.values():
        assert measure(joint).shape == lead


def test_a_batch_is_its_rows() -> None:
    rng = np.random.default_rng(3)
    p, q = (rng.dirichlet(np.full(7, 0.3), size=5) for _ in range(2))
    for measure in SINGLE.values():
        np.testing.assert_allclose(measure(p), [measure(row) for row in p], **TIGHT)
    for measure in PAIR.values():
        table = measure(p[:, None], q[None])
        rows = [[measure(a, b) for b in q] for a in p]
        np.testing.assert_allclose(table, rows, **TIGHT)


def test_every_logarithmic_measure_scales_with_the_base() -> None:
    p, q = np.array([0.1, 0.2, 0.7]), np.array([0.3, 0.3, 0.4])
    joint = np.array([[0.1, 0.2], [0.3, 0.4]])
    values = [lambda b, f=f: f(p, base=b) for name, f in SINGLE.items() if name != "perplexity"]
    values += [lambda b, f=f: f(p, q, base=b) for f in PAIR.values()]
    values += [lambda b, f=f: f(joint, base=b) for f in JOINT.values()]
    for value in values:
        np.testing.assert_allclose(value(2) * math.log(2), value(None), **TIGHT)
    np.testing.assert_allclose(2 ** entropy(p, base=2), perplexity(p), **TIGHT)


# Gradients


def gradients(measure, logits: torch.Tensor, form: str) -> torch.Tensor:
    logits = logits.clone().requires_grad_()
    log_p = torch.log_softmax(logits, -1)
    value = measure(log_probs=log_p) if form == "log" else measure(log_p.exp())
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    return gradient


@pytest.mark.parametrize("form", ["log", "plain"])
@pytest.mark.parametrize("measure", SINGLE.values(), ids=SINGLE)
def test_gradients_are_those_of_finite_differences(measure, form: str) -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def value(z: torch.Tensor) -> torch.Tensor:
        log_p = torch.log_softmax(z, -1)
        return measure(log_probs=log_p) if form == "log" else measure(log_p.exp())

    assert torch.autograd.gradcheck(value, logits.requires_grad_())
    assert torch.autograd.gradgradcheck(value, logits)


@pytest.mark.parametrize("form", ["log", "plain"])
@pytest.mark.parametrize("measure", PAIR.values(), ids=PAIR)
def test_gradients_of_divergences_are_those_of_finite_differences(measure, form: str) -> None:
    generator = torch.Generator().manual_seed(5)
    a, b = (
        torch.randn(2, 4, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(2)
    )

    def value(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x, y = torch.log_softmax(x, -1), torch.log_softmax(y, -1)
        return measure(log_p=x, log_q=y) if form == "log" else measure(x.exp(), y.exp())

    assert torch.autograd.gradcheck(value, (a, b))
    assert torch.autograd.gradgradcheck(value, (a, b))


@pytest.mark.parametrize("measure", JOINT.values(), ids=JOINT)
def test_gradients_of_joint_measures_are_those_of_finite_differences(measure) -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)

    def value(z: torch.Tensor) -> torch.Tensor:
        return measure(torch.softmax(z.flatten(-2), -1).unflatten(-1, (3, 4)))

    def log_value(z: torch.Tensor) -> torch.Tensor:
        return measure(log_joint=torch.log_softmax(z.flatten(-2), -1).unflatten(-1, (3, 4)))

    logits.requires_grad_()
    assert torch.autograd.gradcheck(value, logits)
    assert torch.autograd.gradcheck(log_value, logits)


@pytest.mark.parametrize("form", ["log", "plain"])
@pytest.mark.parametrize("measure", SINGLE.values(), ids=SINGLE)
def test_an_impossible_outcome_leaves_the_other_gradients_exact(measure, form: str) -> None:
    rest = torch.randn(6, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    logits = torch.cat((torch.tensor([-math.inf]).double(), rest, torch.tensor([-2e4]).double()))
    gradient = gradients(measure, logits, form)
    expected = gradients(measure, rest, form)
    if measure is not SINGLE["tsallis 0"] and measure is not SINGLE["renyi 0"]:
        torch.testing.assert_close(gradient[1:-1], expected, rtol=1e-10, atol=1e-12)
    assert gradient.isfinite().all()
    assert gradient[0] == 0


@pytest.mark.parametrize("form", ["log", "plain"])
@pytest.mark.parametrize("measure", PAIR.values(), ids=PAIR)
def test_impossible_outcomes_of_both_leave_the_other_gradients_exact(measure, form: str) -> None:
    generator = torch.Generator().manual_seed(8)
    rest = [torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2)]

    def grads(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        x, y = torch.log_softmax(a, -1), torch.log_softmax(b, -1)
        value = measure(log_p=x, log_q=y) if form == "log" else measure(x.exp(), y.exp())
        return torch.autograd.grad(value, (a, b))

    hole = torch.tensor([-math.inf], dtype=torch.float64)
    for got, expected in zip(
        grads(torch.cat((hole, rest[0])), torch.cat((hole, rest[1]))), grads(*rest), strict=True
    ):
        torch.testing.assert_close(got[1:], expected, rtol=1e-10, atol=1e-12)
        assert got[0] == 0


def test_an_infinite_divergence_has_no_nan_in_its_gradients() -> None:
    p = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    for measure in (kl_divergence, cross_entropy):
        value = measure(p, q)
        assert value.item() == math.inf
        for gradient in torch.autograd.grad(value, (p, q)):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("measure", [kl_divergence, js_divergence])
def test_probability_zero_has_gradient_zero_where_the_slope_is_infinite(measure) -> None:
    p = torch.tensor([0.0, 0.4, 0.6], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64, requires_grad=True)
    at_p, at_q = torch.autograd.grad(measure(p, q), (p, q))
    assert at_p[0] == 0
    assert (at_p[1:] != 0).all()
    assert at_q.isfinite().all()
    if measure is js_divergence:
        assert torch.autograd.grad(measure(q, p), p)[0][0] == 0
        # d JS / d q = ln(q / m) / 2.
        m = (p + q) / 2
        torch.testing.assert_close(at_q[1:], (q / m).log()[1:] / 2)


def test_cross_entropy_is_linear_in_p_down_to_probability_zero() -> None:
    p = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.25, 0.75], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(cross_entropy(p, q), p)
    torch.testing.assert_close(gradient, -q.log())


def test_second_derivative_of_kl_at_its_minimum_is_the_fisher_information() -> None:
    logits = torch.randn(6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    log_p = torch.log_softmax(logits, -1)
    hessian = torch.autograd.functional.hessian(
        lambda z: kl_divergence(log_p=log_p, log_q=torch.log_softmax(z, -1)), logits
    )
    p = log_p.exp()
    torch.testing.assert_close(hessian, torch.diag(p) - torch.outer(p, p))


def test_rounding_below_zero_is_shown_as_zero_and_keeps_its_gradient() -> None:
    # One part in 1e7 above 1, as float32 rounding leaves it: -p ln p is negative.
    p = torch.tensor([1.0 + 2.4e-7, 0.0], requires_grad=True)
    h = entropy(p)
    assert h.item() == 0
    (gradient,) = torch.autograd.grad(h, p)
    torch.testing.assert_close(gradient, torch.tensor([-1.0, 0.0]))


# Bad input


@pytest.mark.parametrize("measure", SINGLE.values(), ids=SINGLE)
def test_exactly_one_form_must_be_given(measure) -> None:
    p = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="exactly one of probs and log_probs, but neither"):
        measure()
    with pytest.raises(ValueError, match="exactly one of probs and log_probs, but both"):
        measure(p, log_probs=p.log())


@pytest.mark.parametrize("measure", PAIR.values(), ids=PAIR)
def test_each_of_two_distributions_must_be_given_once(measure) -> None:
    p = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="exactly one of q and log_q, but neither"):
        measure(p)
    with pytest.raises(ValueError, match="exactly one of p and log_p, but both"):
        measure(p, p, log_p=p.log())
    with pytest.raises(TypeError, match="mixed"):
        measure(p, np.array([0.5, 0.5]))


@pytest.mark.parametrize("measure", PAIR.values(), ids=PAIR)
@pytest.mark.usefixtures("unhooked")
def test_distributions_over_different_outcomes_are_refused(measure) -> None:
    with pytest.raises(ValueError, match="as many outcomes"):
        measure(torch.tensor([0.5, 0.5]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="broadcast"):
        measure(torch.full((2, 4), 0.25), torch.full((3, 4), 0.25))


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        ([0.5, 0.6], "sum to 1"),
        ([1.2, -0.2], "non-negative"),
        ([math.nan, 1.0], "non-negative"),
        ([math.inf, 0.0], "sum to 1"),
        ([0.0, 0.0], "sum to 1"),
        ([], "empty"),
    ],
)
def test_what_is_no_distribution_is_refused(probs: list[float], message: str) -> None:
    for p in (torch.tensor(probs), np.array(probs)):
        with pytest.raises(ValueError, match=message):
            entropy(p)


@pytest.mark.parametrize(
    ("log_probs", "message"),
    [
        ([0.0, 0.0], "log_softmax"),
        ([0.5, 0.5], "log_softmax"),
        ([math.nan, 0.0], "NaN"),
        ([math.inf, 0.0], "inf"),
        ([-math.inf, -math.inf], "-inf alone"),
        ([], "empty"),
    ],
)
def test_what_is_no_log_distribution_is_refused(log_probs: list[float], message: str) -> None:
    for log_p in (torch.tensor(log_probs), np.array(log_probs)):
        with pytest.raises(ValueError, match=message):
            entropy(log_probs=log_p)


def test_probabilities_are_never_taken_for_logarithms() -> None:
    p = torch.softmax(torch.randn(100, generator=torch.Generator().manual_seed(0)), -1)
    with pytest.raises(ValueError, match="log_probs must be normalised"):
        entropy(log_probs=p)
    with pytest.raises(ValueError, match="probs must be non-negative"):
        entropy(p.log())


@pytest.mark.usefixtures("unhooked")
def test_integers_lists_and_scalars_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="probs must have a floating-point dtype"):
        entropy(torch.tensor([1, 0]))
    with pytest.raises(TypeError, match=r"probs must be a torch\.Tensor or numpy\.ndarray"):
        entropy([0.5, 0.5])
    with pytest.raises(ValueError, match="at least one axis"):
        entropy(torch.tensor(1.0))
    with pytest.raises(ValueError, match="joint must have 2 non-empty trailing axes"):
        mutual_information(torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="joint must have 2 non-empty trailing axes"):
        conditional_entropy(torch.zeros(0, 3))


@pytest.mark.parametrize("base", [0, 1, -2, math.nan, math.inf])
def test_a_base_that_is_no_base_is_refused(base: float) -> None:
    with pytest.raises(ValueError, match="base must be"):
        entropy(torch.tensor([0.5, 0.5]), base=base)


@pytest.mark.parametrize("order", [-1, -1e-9, math.nan])
def test_orders_below_zero_are_refused(order: float) -> None:
    p = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        renyi_entropy(p, alpha=order)
    with pytest.raises(ValueError, match="q must be finite and at least 0"):
        tsallis_entropy(p, q=order)
