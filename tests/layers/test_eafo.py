import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import nn
from torch.nn import functional as F

from szilard.layers import CRReLU, crrelu, eafo
from szilard.layers.eafo import Density, correction, entropy_slope, output_entropy, step, wafbc

HALF_NORMAL = Density(lambda u: 2 * torch.exp(-u * u / 2) / math.sqrt(2 * math.pi), 0, 9)
IDENTITY = lambda u: u


def branch(eps):
    return lambda u: u + eps * u * torch.exp(-u * u / 2)


def grid(low, high, n=41):
    return torch.linspace(low, high, n, dtype=torch.float64)


# --- oracles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "entropy"),
    [
        (IDENTITY, 1.4189385332),
        (torch.sigmoid, -0.1931798335),
        (torch.tanh, 0.6698041182),
        (F.softplus, 0.6128793498),
        (torch.asinh, 1.1522119433),
        (wafbc(), 0.0),
        (wafbc(low=-1), math.log(2)),
        (wafbc(low=2, high=5), math.log(3)),
    ],
)
def test_output_entropies_under_a_normal_input(f, entropy):
    assert output_entropy(f) == pytest.approx(entropy, abs=1e-10)  # the digits given


def test_output_entropy_is_that_of_the_output_density():
    def integrand(u):
        density = stats.norm.pdf(u)
        slope = 1 / (1 + math.exp(-u)) / (1 + math.exp(u))
        return -density * math.log(density / slope)

    expected, _ = integrate.quad(integrand, -9, 9)
    assert output_entropy(torch.sigmoid) == pytest.approx(expected, abs=1e-9)
    assert output_entropy(torch.sigmoid, base=2) == pytest.approx(expected / math.log(2), abs=1e-9)


def test_the_sign_of_eps_that_lowers_the_entropy_is_negative():
    straight = output_entropy(IDENTITY)
    rise = lambda eps: output_entropy(branch(eps)) - straight
    assert rise(0.1) == pytest.approx(0.0335208411, abs=1e-10)
    assert rise(-0.1) == pytest.approx(-0.0373835134, abs=1e-10)
    slope = (rise(1e-4) - rise(-1e-4)) / 2e-4
    # A central difference of step h is off by h^2 times the third derivative.
    assert slope == pytest.approx(1 / (2 * math.sqrt(2)), abs=1e-7)
    assert rise(0.3) + rise(-0.3) < 0  # concave


def test_slope_of_the_entropy_along_the_correction_of_the_identity():
    assert entropy_slope(IDENTITY) == pytest.approx(-0.1410473959, abs=1e-10)


def test_the_correction_of_the_identity_is_minus_the_slope_of_the_density():
    x = grid(-4, 4)
    expected = x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    torch.testing.assert_close(correction(IDENTITY)(x), expected, rtol=0, atol=1e-12)


def test_the_worst_activations_have_no_correction():
    x = grid(0.01, 0.99)
    for f, p in ((wafbc(), "normal"), (torch.sigmoid, "logistic"), (wafbc("logistic"), "logistic")):
        torch.testing.assert_close(correction(f, p=p)(x), 0 * x, rtol=0, atol=1e-9)
        assert entropy_slope(f, p) == pytest.approx(0, abs=1e-12)
    assert output_entropy(torch.sigmoid, "logistic") == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("f", [torch.sigmoid, torch.tanh, F.softplus, torch.asinh])
def test_two_steps_each_lower_the_entropy_by_their_slope(f):
    eps = 1e-3
    for _ in range(2):
        corrected = step(f, eps)
        fallen = output_entropy(f) - output_entropy(corrected)
        # The second-order term is of relative size eps.
        assert fallen == pytest.approx(-eps * entropy_slope(f), rel=0.01)
        f = corrected


def test_relu_becomes_crrelu():
    u = grid(0, 6)
    eps = 0.1
    # Half of a normal density has twice its height: eps / sqrt(2 pi), doubled and with its sign.
    expected = crrelu(u, -2 * eps / math.sqrt(2 * math.pi))
    torch.testing.assert_close(step(torch.relu, eps, HALF_NORMAL)(u), expected)
    whole = step(IDENTITY, eps)(u)
    torch.testing.assert_close(whole, crrelu(u, -eps / math.sqrt(2 * math.pi)))


def test_the_correction_from_an_inverse_is_that_from_the_function():
    x = grid(-0.95, 0.95)
    torch.testing.assert_close(
        correction(inverse=torch.atanh)(x), correction(torch.tanh)(x), rtol=0, atol=1e-10
    )


def test_the_correction_is_the_gradient_of_the_entropy():
    # Against any direction n of the inverse, dH = -int eta n dx; here n moves the inverse of tanh.
    direction = lambda x: torch.sin(3 * x) * (1 - x * x) ** 2
    h = 1e-5

    x = grid(-1 + 1e-6, 1 - 1e-6, 40001)

    def entropy(eps):
        y = lambda x: torch.atanh(x) + eps * direction(x)
        q = torch.exp(-(y(x) ** 2) / 2) / math.sqrt(2 * math.pi) * eafo.derivative(y)(x)
        return torch.trapezoid(torch.special.entr(q), x).item()

    expected = -torch.trapezoid(correction(torch.tanh)(x) * direction(x), x)
    assert (entropy(h) - entropy(-h)) / (2 * h) == pytest.approx(expected.item(), rel=1e-4)


# --- properties -----------------------------------------------------------------------------------


@given(st.floats(0.1, 4), st.floats(-2, 2))
def test_every_sigmoid_has_less_entropy_than_the_uniform(gain, bias):
    f = lambda u: torch.sigmoid(gain * u + bias)
    assert output_entropy(f) < 0
    assert entropy_slope(f) < 0


@given(st.floats(0.05, 20), st.floats(-3, 3))
def test_scale_adds_its_logarithm_and_shift_nothing(scale, shift):
    f = lambda u: scale * torch.tanh(u) + shift
    expected = output_entropy(torch.tanh) + math.log(scale)
    assert output_entropy(f) == pytest.approx(expected, abs=1e-9)


@given(st.floats(-0.9, 2.2))
def test_a_step_lowers_the_entropy_of_every_increasing_crrelu_branch(eps):
    f = branch(eps)
    assert output_entropy(step(f, 1e-4)) < output_entropy(f)


# --- densities ------------------------------------------------------------------------------------


def test_samples_give_their_kernel_estimate():
    samples = np.random.default_rng(0).gamma(3.0, size=500)
    p = eafo.density(samples)
    peer = stats.gaussian_kde(samples)
    u = np.linspace(0, 9, 30)
    # Binning to an eighth of the bandwidth widens the kernel by 1 / 768.
    np.testing.assert_allclose(p.pdf(torch.from_numpy(u)), peer(u), rtol=3e-3, atol=2e-4)
    assert output_entropy(wafbc(p), p) == pytest.approx(0, abs=1e-9)
    assert output_entropy(wafbc(p, -1, 1), torch.from_numpy(samples)) == pytest.approx(
        math.log(2), abs=1e-9
    )


def test_normal_samples_lead_to_the_normal_worst_activation():
    samples = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    u = grid(-3, 3)
    # Sampling error 1 / sqrt(n) at most, and the kernel's variance.
    torch.testing.assert_close(wafbc(samples)(u), wafbc()(u), rtol=0, atol=0.015)


def test_a_density_integrates_itself():
    u = grid(0, 9)
    expected = 2 * torch.special.ndtr(u) - 1
    torch.testing.assert_close(HALF_NORMAL.cdf(u), expected, rtol=0, atol=1e-12)
    assert HALF_NORMAL.cdf(torch.tensor([-5.0, 50.0])).tolist() == pytest.approx([0, 1], abs=1e-6)


def test_a_step_leaves_the_activation_alone_where_the_density_is_not():
    u = torch.tensor([-40.0, 40.0])
    corrected = step(torch.tanh, 0.1)
    torch.testing.assert_close(corrected(u), torch.tanh(u))
    assert step(torch.tanh, 0.1)(torch.zeros(2, 3)).shape == (2, 3)
    at = torch.tensor([40.0, 0.5], requires_grad=True)
    corrected(at).sum().backward()
    assert at.grad.isfinite().all()


def test_the_correction_is_zero_beyond_the_range():
    assert correction(torch.tanh)(torch.tensor([-2.0, 2.0])).tolist() == [0.0, 0.0]


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [torch.relu, F.gelu, torch.sin, lambda u: -u, CRReLU()])
def test_an_activation_that_does_not_increase_is_refused_with_the_place(f):
    for use in (output_entropy, entropy_slope, correction, lambda f: step(f, 0.1)):
        with pytest.raises(ValueError, match=r"f must increase strictly, .* from -"):
            use(f)


def test_an_activation_without_a_finite_derivative_is_refused():
    with pytest.raises(ValueError, match="f must have a finite derivative"):
        output_entropy(torch.sqrt)


def test_an_inverse_that_falls_is_refused():
    with pytest.raises(ValueError, match="inverse must increase strictly"):
        correction(inverse=lambda x: -x)(torch.zeros(1))


def test_correction_takes_one_of_function_and_inverse():
    with pytest.raises(ValueError, match="exactly one"):
        correction()
    with pytest.raises(ValueError, match="exactly one"):
        correction(torch.tanh, inverse=torch.atanh)


def test_densities_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"integrates to 0\.5"):
        Density(lambda u: 0.05 + 0 * u, 0, 10)
    with pytest.raises(ValueError, match="at least 0, but is not at"):
        Density(torch.sin, -3, 3)
    with pytest.raises(ValueError, match="low < high must both be finite"):
        Density(torch.exp, -math.inf, 0)


def test_samples_that_have_no_density_are_refused(unhooked):
    for samples, message in (
        (np.array([1.0]), "two or more"),
        (np.array([1.0, math.nan]), "NaN or infinity"),
        (np.ones((3, 2)), "one axis"),
        (np.ones(5), "all are equal"),
    ):
        with pytest.raises(ValueError, match=message):
            output_entropy(torch.tanh, samples)
    with pytest.raises(ValueError, match="'normal', 'logistic'"):
        output_entropy(torch.tanh, "cauchy")


def test_sizes_and_bounds_out_of_range_are_refused():
    with pytest.raises(ValueError, match="eps must be finite"):
        step(torch.tanh, math.nan)
    with pytest.raises(ValueError, match="low < high"):
        wafbc(low=1, high=1)
    with pytest.raises(ValueError, match="base"):
        output_entropy(torch.tanh, base=1)


def test_modules_are_activations_too():
    assert output_entropy(nn.Tanh()) == output_entropy(torch.tanh)
