"""Entropy-based activation function optimisation: how much entropy an activation's output has, and which
change of the activation lowers it.

X has density p, f increases strictly, y is its inverse and q the density of f(X). Everything is written
in the input u = y(x), where f' and f'' come from automatic differentiation and no inverse is needed:

    H            = h(X) + E[ln f'(X)]                                   differential entropy of f(X)
    eta(f(u))    = -q'(x) / y'(x) = (p(u) f''(u) / f'(u) - p'(u)) / f'(u)        the correction
    f_new(u)     = f(u) - eps f'(u) eta(f(u))                                    an EAFO step
    dH / d eps   = -int eta(x)^2 dx

Differential entropy knows the scale: 2 f has ln 2 more of it. Compare activations with the same bounds.

Source: Sun et al. (2024), "A Method on Searching Better Activation Functions", arXiv 2405.12954. The second
form of eta, and with it the slope of H, are derived here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from szilard.measures._checks import log_base

Function = Callable[[Tensor], Tensor]
"""Element by element on tensors, differentiable by torch: `torch.sigmoid`, a module, a lambda."""

_PANELS, _ORDER = 96, 16  # Gauss-Legendre panels on the support, and points of each
_HALVINGS = 80
_BINS_PER_BANDWIDTH = 8


@dataclass(frozen=True)
class Density:
    """A density on a finite interval that holds (nearly) all of its mass.

    Args:
        pdf: the density, differentiable by torch.
        low: where the interval begins.
        high: where it ends.
        cdf: the distribution function; None integrates pdf.

    Raises:
        ValueError: the interval is empty or infinite, or the density is negative or not normalised
            (its integral is off by more than 1e-3).

    Examples:
        >>> half = Density(lambda u: 2 * torch.exp(-u * u / 2) / math.sqrt(2 * math.pi), 0, 9)
        >>> half.cdf(torch.tensor([1.0], dtype=torch.float64))
        tensor([0.6827], dtype=torch.float64)
    """

    pdf: Function
    low: float
    high: float
    cdf: Function = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if not (-math.inf < self.low < self.high < math.inf):
            raise ValueError(
                f"low < high must both be finite, but they are {self.low!r} and {self.high!r}"
            )
        u, weights = self.nodes()
        values = self.pdf(u)
        if not bool((values >= 0).all()):
            worst = float(u[values.nan_to_num(-math.inf).argmin()])
            raise ValueError(f"pdf must be at least 0, but is not at {worst:.4g}")
        mass = float(values @ weights)
        if not abs(mass - 1) <= 1e-3:
            raise ValueError(
                f"pdf must integrate to 1 on [low, high], but integrates to {mass:.6g}"
            )
        if self.cdf is None:
            object.__setattr__(self, "cdf", self._integral)

    def nodes(self) -> tuple[Tensor, Tensor]:
        """Points and weights of the quadrature on the support, float64."""
        t, weights = _unit_nodes()
        return self.low + (self.high - self.low) * t, (self.high - self.low) * weights

    def _integral(self, u: Tensor) -> Tensor:
        t, weights = _unit_nodes()
        length = u.clamp(self.low, self.high).to(torch.float64) - self.low
        return (length * (self.pdf(self.low + length[..., None] * t) @ weights)).to(u.dtype)


@lru_cache(maxsize=1)
def _unit_nodes() -> tuple[Tensor, Tensor]:
    """Composite Gauss-Legendre points and weights on [0, 1]; a panel ends in the middle."""
    t, weights = np.polynomial.legendre.leggauss(_ORDER)
    starts = np.arange(_PANELS)[:, None]
    points = (starts + (t + 1) / 2) / _PANELS
    return (
        torch.from_numpy(points.ravel()),
        torch.from_numpy(np.tile(weights / (2 * _PANELS), _PANELS)),
    )


Input = Literal["normal", "logistic"] | Density | Float[Tensor, " n"] | Float[np.ndarray, " n"]
"""Where the input of an activation comes from: a density, or samples (recorded pre-activations)."""


def density(p: Input) -> Density:
    """The density behind the argument p of this module's functions.

    Args:
        p: `"normal"` (standard), `"logistic"` (standard), a density as it is, or samples, whose Gaussian
            kernel density estimate with Scott's bandwidth is taken.

    Raises:
        ValueError: an unknown name; fewer than two samples, or samples that are equal or not finite.

    Examples:
        >>> density("normal").pdf(torch.zeros(1))
        tensor([0.3989])
    """
    if isinstance(p, Density):
        return p
    if isinstance(p, str):
        # Beyond these ends the mass is below 1e-10, and 1 - tanh(u)^2 still has digits.
        if p == "normal":
            return Density(
                lambda u: torch.exp(-0.5 * u * u) / math.sqrt(2 * math.pi),
                -9.0,
                9.0,
                torch.special.ndtr,
            )
        if p == "logistic":
            return Density(
                lambda u: torch.sigmoid(u) * torch.sigmoid(-u), -25.0, 25.0, torch.sigmoid
            )
        raise ValueError(f"p must be 'normal', 'logistic', a Density or samples, but is {p!r}")
    return _kernel_estimate(np.asarray(torch.as_tensor(p).detach().cpu().double()))


def _kernel_estimate(samples: np.ndarray) -> Density:
    if samples.ndim != 1 or len(samples) < 2 or not np.isfinite(samples).all():
        raise ValueError(
            f"p: samples must be two or more finite numbers on one axis, but shape {samples.shape}"
            + ("" if np.isfinite(samples).all() else ", NaN or infinity among them")
        )
    width = samples.std(ddof=1) * len(samples) ** -0.2
    if not width > 0:
        raise ValueError("p: samples must differ, but all are equal")
    # A kernel a bin, not a sample: bins of an eighth of the bandwidth widen it by 0.1 %.
    step = width / _BINS_PER_BANDWIDTH
    bins, counts = np.unique(np.round(samples / step), return_counts=True)
    centres = torch.from_numpy(bins * step)
    weights = torch.from_numpy(counts / len(samples))

    def pdf(u: Tensor) -> Tensor:
        z = (u[..., None].double() - centres) / width
        kernels = torch.exp(-0.5 * z * z) / (width * math.sqrt(2 * math.pi))
        return (kernels @ weights).to(u.dtype)

    def cdf(u: Tensor) -> Tensor:
        z = (u[..., None].double() - centres) / width
        return (torch.special.ndtr(z) @ weights).to(u.dtype)

    reach = 9 * width
    return Density(pdf, float(samples.min() - reach), float(samples.max() + reach), cdf)


def derivative(f: Function) -> Function:
    """f', itself a function that can be differentiated.

    Examples:
        >>> derivative(derivative(torch.square))(torch.tensor([3.0]))
        tensor([2.])
    """
    return torch.func.grad(lambda u: f(u).sum())


def output_entropy(f: Function, p: Input = "normal", *, base: float | None = None) -> float:
    """Differential entropy of f(X): h(X) + E[ln f'(X)].

    Args:
        f: a strictly increasing activation.
        p: the input's density or samples.
        base: base of the logarithms; None for nats, 2 for bits.

    Returns:
        The entropy, negative where f(X) is concentrated.

    Raises:
        ValueError: f does not increase strictly where p lives, or has no finite derivative there (the
            message says where); p or base is out of range.

    Examples:
        >>> round(output_entropy(torch.tanh), 6)
        0.669804

    Source: section "Method" of arXiv 2405.12954.
    """
    unit = log_base(base)
    source = density(p)
    u, weights = source.nodes()
    mass = source.pdf(u)
    slope = _checked_slope(f, u, mass)
    expected = mass * torch.where(mass > 0, slope, 1.0).log()
    return unit * float((torch.special.entr(mass) + expected) @ weights)


def entropy_slope(f: Function, p: Input = "normal") -> float:
    """Slope of the entropy along an EAFO step, dH / d eps = -int eta(x)^2 dx.

    Args:
        f: a strictly increasing activation.
        p: the input's density or samples.

    Returns:
        The slope in nats, 0 exactly for the worst activation and negative for every other.

    Raises:
        ValueError: as in `output_entropy`.

    Examples:
        >>> round(entropy_slope(lambda u: u), 6), round(-1 / (4 * math.sqrt(math.pi)), 6)
        (-0.141047, -0.141047)
    """
    source = density(p)
    u, weights = source.nodes()
    slope = _checked_slope(f, u, source.pdf(u))
    # dx = f'(u) du
    return -float((_change(f, source, u).square() / slope) @ weights)


def correction(
    f: Function | None = None, *, inverse: Function | None = None, p: Input = "normal"
) -> Function:
    """The correction eta on the output's axis: minus the entropy's gradient with respect to f's inverse.

    Args:
        f: a strictly increasing activation; give it, or
        inverse: its inverse.
        p: the input's density or samples.

    Returns:
        eta(x) for outputs x of f, on any tensor, computed in float64. Where no input in the support of p
        gives x, it is 0.

    Raises:
        ValueError: both or none of f and inverse; f as in `output_entropy`, and so the inverse, at the
            outputs that eta is called with.

    Examples:
        >>> eta = correction(lambda u: u)
        >>> x = torch.linspace(-2, 2, 5)
        >>> torch.allclose(eta(x), x * density("normal").pdf(x))  # -p'(x)
        True

    Source: the Euler-Lagrange correction of arXiv 2405.12954.
    """
    if (f is None) == (inverse is None):
        raise ValueError("correction: give exactly one of f and inverse")
    source = density(p)
    if inverse is not None:
        return lambda x: _correction_of_inverse(inverse, source, x)
    assert f is not None
    u, _ = source.nodes()
    _checked_slope(f, u, source.pdf(u))

    def eta(x: Tensor) -> Tensor:
        wanted = x.detach().double()
        low = torch.full_like(wanted, source.low)
        high = torch.full_like(wanted, source.high)
        with torch.no_grad():
            inside = (f(low) <= wanted) & (wanted <= f(high))
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                below = f(middle) < wanted
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        value = _change(f, source, low) / derivative(f)(low)
        return torch.where(inside, value, 0.0).detach().to(x.dtype)

    return eta


def _correction_of_inverse(inverse: Function, source: Density, x: Tensor) -> Tensor:
    at = x.detach().double()
    u = inverse(at)
    first = derivative(inverse)
    slope = first(at)
    inside = (u >= source.low) & (u <= source.high)
    _refuse(inside & ~(slope > 0), at, "inverse must increase strictly")
    value = -(derivative(source.pdf)(u) * slope + source.pdf(u) * derivative(first)(at) / slope)
    return torch.where(inside, value, 0.0).detach().to(x.dtype)


def step(f: Function, eps: float, p: Input = "normal") -> Function:
    """One EAFO step, f_new(u) = f(u) - eps f'(u) eta(f(u)): to first order, it lowers the entropy by
    eps int eta^2.

    The positive branch of ReLU under half of a normal density becomes that of CRReLU.

    Args:
        f: a strictly increasing activation.
        eps: size of the step; negative steps raise the entropy.
        p: the input's density or samples.

    Returns:
        The new activation, to which the next step applies; f itself outside the support of p.

    Raises:
        ValueError: as in `output_entropy`, or eps is not finite.

    Examples:
        >>> better = step(torch.sigmoid, 1e-3)
        >>> output_entropy(better) < output_entropy(torch.sigmoid)
        True

    Source: arXiv 2405.12954; the inverse of y + eps eta to first order.
    """
    if not math.isfinite(eps):
        raise ValueError(f"eps must be finite, but is {eps!r}")
    source = density(p)
    u, _ = source.nodes()
    _checked_slope(f, u, source.pdf(u))

    def corrected(u: Tensor) -> Tensor:
        inside = (u > source.low) & (u < source.high)
        safe = torch.where(inside, u, (source.low + source.high) / 2)
        return f(u) - eps * torch.where(inside, _change(f, source, safe), 0.0)

    return corrected


def wafbc(p: Input = "normal", low: float = 0.0, high: float = 1.0) -> Function:
    """The worst activation with fixed bounds, low + (high - low) CDF(u): of all increasing ones it has the
    output of most entropy, uniform on [low, high], ln(high - low) nats.

    Args:
        p: the input's density or samples.
        low: lower bound.
        high: upper bound.

    Returns:
        The activation; its correction vanishes.

    Raises:
        ValueError: low is not below high, or one is not finite; p as in `density`.

    Examples:
        >>> wafbc(low=-1)(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.6827,  0.0000,  0.6827])

    Source: the worst activation function with boundary conditions (WAFBC) of arXiv 2405.12954.
    """
    if not (-math.inf < low < high < math.inf):
        raise ValueError(f"low < high must both be finite, but they are {low!r} and {high!r}")
    source = density(p)
    return lambda u: low + (high - low) * source.cdf(u)


def _change(f: Function, source: Density, u: Tensor) -> Tensor:
    """f'(u) eta(f(u)) = p f'' / f' - p'."""
    first = derivative(f)
    return source.pdf(u) * derivative(first)(u) / first(u) - derivative(source.pdf)(u)


def _checked_slope(f: Function, u: Tensor, mass: Tensor) -> Tensor:
    slope = derivative(f)(u)
    _refuse((mass > 0) & ~slope.isfinite(), u, "f must have a finite derivative")
    _refuse((mass > 0) & ~(slope > 0), u, "f must increase strictly")
    return slope


def _refuse(wrong: Tensor, where: Tensor, rule: str) -> None:
    if bool(wrong.any()):
        places = where[wrong]
        raise ValueError(
            f"{rule}, but does not at {len(places)} of {where.numel()} points, from "
            f"{float(places.min()):.4g} to {float(places.max()):.4g}"
        )
