"""Series of known nature for the PECCARY experiment: cycles, chaos, noise, orbits.

Every integrator advances all its systems together and carries a tangent vector, or a shadow
trajectory, for the largest Lyapunov exponent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

TRUTH = {
    "sine": "regular",
    "two-tone": "regular",
    "double pendulum": "complex",
    "Lorenz x": "complex",
    "white noise": "stochastic",
    "pink noise": "stochastic",
    "red noise": "stochastic",
}
# Mean spacing of the maxima of long runs: what a natural period of the two chaotic series is.
PENDULUM_PERIOD = 1.82  # seconds, horizontal position of the lower bob
LORENZ_PERIOD = 0.98
_PENDULUM, _LORENZ = 0, 1
_SHADOW = 1e-8  # distance of the shadow trajectory, renewed at every sample
_SUBSTEPS = 8  # Runge-Kutta steps a sample


class Series(NamedTuple):
    """Series of one kind.

    Attributes:
        x: (series, time), sampled alike.
        growth: (series, time) logarithm of the tangent's growth up to each sample; the exponent over a
            stretch is its slope. Zero for quasi-periodic series, NaN for noise.
    """

    x: np.ndarray
    growth: np.ndarray


class Orbits(NamedTuple):
    """Orbits with their variational exponents.

    Attributes:
        x: (orbits, time), one coordinate.
        exponent: largest Lyapunov exponent of each, per unit of time.
        group: what the orbits were drawn from (an energy, a potential), one label each.
        drift: greatest relative change of the conserved energy along each orbit.
    """

    x: np.ndarray
    exponent: np.ndarray
    group: np.ndarray
    drift: np.ndarray


# --- labelled series ------------------------------------------------------------------------------


def labelled_series(
    rng: np.random.Generator, *, per_kind: int, noises: int, samples: int, period: int
) -> dict[str, Series]:
    """The kinds of `TRUTH`, `period` samples a natural period.

    Args:
        rng: draws phases, initial states and noise.
        per_kind: series of each deterministic kind.
        noises: series of each noise.
        samples: length of every series.
        period: samples a natural period.
    """
    t = np.arange(samples) / period
    still = np.zeros((per_kind, samples))
    phase, second = rng.uniform(0, 2 * np.pi, (2, per_kind, 1))
    sine = np.sin(2 * np.pi * t + phase)
    amplitude = rng.uniform(0.2, 0.6, (per_kind, 1))
    frequency = rng.uniform(1.2, 1.9, (per_kind, 1))
    overtone = amplitude * np.sin(2 * np.pi * frequency * t + second)
    series = {
        "sine": Series(sine, still),
        "two-tone": Series(sine + overtone, still),
        "double pendulum": _double_pendulums(rng, per_kind, samples, PENDULUM_PERIOD / period),
        "Lorenz x": _lorenz(rng, per_kind, samples, LORENZ_PERIOD / period),
    }
    for name, slope in {"white noise": 0.0, "pink noise": 0.5, "red noise": 1.0}.items():
        x = coloured_noise(rng, noises, samples, slope)
        series[name] = Series(x, np.full(x.shape, np.nan))
    return series


def coloured_noise(rng: np.random.Generator, series: int, samples: int, slope: float) -> np.ndarray:
    """Gaussian noise with amplitude spectrum f^-slope."""
    spectrum = np.fft.rfft(rng.standard_normal((series, samples)))
    frequency = np.fft.rfftfreq(samples)
    frequency[0] = np.inf  # no power at zero frequency: the mean carries no pattern
    return np.fft.irfft(spectrum * frequency**-slope, samples)


def _double_pendulums(rng: np.random.Generator, series: int, samples: int, dt: float) -> Series:
    """Horizontal position of the lower of two unit masses on unit rods, released at rest."""
    upper, lower = np.radians([120.0, -10.0])[:, None] + np.radians(rng.uniform(-5, 5, (2, series)))
    start = np.stack([upper, np.zeros(series), lower, np.zeros(series)], -1)
    states, growth = _integrate(_PENDULUM, start, dt, samples)
    return Series(np.sin(states[..., 0]) + np.sin(states[..., 2]), growth)


def _lorenz(rng: np.random.Generator, series: int, samples: int, dt: float) -> Series:
    """First coordinate of the Lorenz system (10, 28, 8/3) on its attractor."""
    transient = round(20 / dt)
    start = rng.uniform(-10, 10, (series, 3)) + np.array([0.0, 0.0, 25.0])
    states, growth = _integrate(_LORENZ, start, dt, transient + samples)
    growth = growth[:, transient:] - growth[:, transient : transient + 1]
    return Series(states[:, transient:, 0], growth)


def _integrate(
    system: int, start: np.ndarray, dt: float, samples: int
) -> tuple[np.ndarray, np.ndarray]:
    states = np.empty((len(start), samples, start.shape[1]))
    growth = np.zeros((len(start), samples))
    _runge_kutta(system, start, dt / _SUBSTEPS, _SUBSTEPS, _SHADOW, states, growth)
    return states, growth


@njit(cache=True, nogil=True)
def _rhs(system, y, out):  # type: ignore[no-untyped-def]
    if system == _LORENZ:
        out[0] = 10 * (y[1] - y[0])
        out[1] = y[0] * (28 - y[2]) - y[1]
        out[2] = y[0] * y[1] - 8 / 3 * y[2]
        return
    g = 9.80665
    sin, cos = math.sin(y[2] - y[0]), math.cos(y[2] - y[0])
    upper, lower = g * math.sin(y[0]), g * math.sin(y[2])
    out[0], out[2] = y[1], y[3]
    out[1] = ((y[1] ** 2 * cos + y[3] ** 2) * sin + lower * cos - 2 * upper) / (2 - cos * cos)
    out[3] = (-(y[3] ** 2) * sin * cos + 2 * (upper * cos - y[1] ** 2 * sin - lower)) / (
        2 - cos * cos
    )


@njit(cache=True, nogil=True)
def _runge_kutta(system, start, h, substeps, shadow, states, growth):  # type: ignore[no-untyped-def]
    """Classical fourth order on every system and its shadow, which is pulled back at every sample."""
    count, samples, size = states.shape
    pair = np.empty((2, size))
    stage, slope, total = np.empty(size), np.empty(size), np.empty(size)
    for i in range(count):
        for j in range(size):
            pair[0, j] = start[i, j]
            pair[1, j] = start[i, j] + shadow / math.sqrt(size)
            states[i, 0, j] = start[i, j]
        for sample in range(1, samples):
            for step in range(2 * substeps):
                y = pair[step % 2]
                _rhs(system, y, slope)
                for j in range(size):
                    total[j] = slope[j]
                for k in range(1, 4):
                    reach = h if k == 3 else h / 2
                    for j in range(size):
                        stage[j] = y[j] + reach * slope[j]
                    _rhs(system, stage, slope)
                    for j in range(size):
                        total[j] += slope[j] if k == 3 else 2 * slope[j]
                for j in range(size):
                    y[j] += h / 6 * total[j]
            square = 0.0
            for j in range(size):
                square += (pair[1, j] - pair[0, j]) ** 2
            distance = math.sqrt(square)
            growth[i, sample] = growth[i, sample - 1] + math.log(distance / shadow)
            for j in range(size):
                pair[1, j] = pair[0, j] + (pair[1, j] - pair[0, j]) * (shadow / distance)
                states[i, sample, j] = pair[0, j]


# --- Hénon-Heiles ---------------------------------------------------------------------------------


def henon_heiles(
    rng: np.random.Generator,
    *,
    energies: tuple[float, ...],
    per_energy: int,
    time: float,
    dt: float,
    exponent_time: float,
) -> Orbits:
    """Orbits through random points of the section x = 0, at each energy.

    Args:
        rng: draws the section points.
        energies: up to 1/6, the escape energy.
        per_energy: orbits at each.
        time: how long x is recorded.
        dt: step of record and integration.
        exponent_time: how long the variational equations run.
    """
    starts = [_section_point(rng, energy) for energy in energies for _ in range(per_energy)]
    tangents = rng.standard_normal((len(starts), 4))
    tangents /= np.linalg.norm(tangents, axis=-1, keepdims=True)
    x = np.empty((len(starts), round(time / dt)))
    exponent, drift = np.empty(len(starts)), np.empty(len(starts))
    steps = max(round(exponent_time / dt), x.shape[1])
    _yoshida(np.array(starts), tangents, dt, steps, x, exponent, drift)
    return Orbits(x, exponent, np.repeat(np.array(energies), per_energy), drift)


def _section_point(rng: np.random.Generator, energy: float) -> np.ndarray:
    while True:
        y, p_y = rng.uniform(-0.6, 1.0), rng.uniform(-1, 1)
        kinetic = energy - (y * y / 2 - y**3 / 3)
        # Inside the well (y below its saddle at 1) and on the energy surface.
        if y < 1 and 2 * kinetic - p_y * p_y > 0:
            return np.array([0.0, y, math.sqrt(2 * kinetic - p_y * p_y), p_y])


@njit(cache=True, nogil=True)
def _yoshida(starts, tangents, dt, steps, x, exponent, drift):  # type: ignore[no-untyped-def]
    """Sixth-order symplectic composition (Yoshida 1990, solution A) with its tangent map."""
    w = np.array([-1.17767998417887, 0.235573213359357, 0.784513610477560])
    w0 = 1 - 2 * w.sum()
    weights = np.array([w[2], w[1], w[0], w0, w[0], w[1], w[2]])
    for orbit in range(len(starts)):
        q1, q2, p1, p2 = starts[orbit]
        d1, d2, e1, e2 = tangents[orbit]
        start = (p1 * p1 + p2 * p2 + q1 * q1 + q2 * q2) / 2 + q1 * q1 * q2 - q2**3 / 3
        worst, growth = 0.0, 0.0
        for step in range(steps):
            if step < x.shape[1]:
                x[orbit, step] = q1
            for weight in weights:
                h = weight * dt
                q1, q2 = q1 + h / 2 * p1, q2 + h / 2 * p2
                d1, d2 = d1 + h / 2 * e1, d2 + h / 2 * e2
                p1, p2 = p1 - h * (q1 + 2 * q1 * q2), p2 - h * (q2 + q1 * q1 - q2 * q2)
                e1, e2 = (
                    e1 - h * ((1 + 2 * q2) * d1 + 2 * q1 * d2),
                    e2 - h * (2 * q1 * d1 + (1 - 2 * q2) * d2),
                )
                q1, q2 = q1 + h / 2 * p1, q2 + h / 2 * p2
                d1, d2 = d1 + h / 2 * e1, d2 + h / 2 * e2
            norm = math.sqrt(d1 * d1 + d2 * d2 + e1 * e1 + e2 * e2)
            growth += math.log(norm)
            d1, d2, e1, e2 = d1 / norm, d2 / norm, e1 / norm, e2 / norm
            energy = (p1 * p1 + p2 * p2 + q1 * q1 + q2 * q2) / 2 + q1 * q1 * q2 - q2**3 / 3
            worst = max(worst, abs(energy / start - 1))
        exponent[orbit] = growth / (steps * dt)
        drift[orbit] = worst


# --- galactic orbits ------------------------------------------------------------------------------


class Potential(NamedTuple):
    """Logarithmic halo of unit circular speed, with a pattern that rotates.

    Phi = ln(rc^2 + x^2 + y^2/p^2 + z^2/q^2) / 2 + arm (R^2/r^2) cos(2 phi - 2 ln r / tan(pitch)) with
    r^2 = R^2 + rc^2, static in the frame that turns with the pattern.
    """

    core: float
    flattening_y: float
    flattening_z: float
    pattern_speed: float
    arm: float
    inclined: bool  # three-dimensional tracers rather than a disc


POTENTIALS = {
    "logarithmic": Potential(0.1, 1.0, 1.0, 0.0, 0.0, False),
    "bar": Potential(0.1, 0.8, 1.0, 0.6, 0.0, False),
    "spiral": Potential(0.1, 1.0, 1.0, 0.6, 0.05, False),
    "globular clusters": Potential(0.1, 1.0, 0.7, 0.0, 0.0, True),
}
_COT_PITCH = 1 / math.tan(math.radians(20))


def galactic_orbits(
    rng: np.random.Generator,
    potential: Potential,
    *,
    orbits: int,
    samples: int,
    dt: float,
    exponent_time: float,
    device: str,
    log: Callable[[float], None],
) -> tuple[Tensor, Tensor, Tensor]:
    """First coordinate of orbits in one potential, with shadow-trajectory exponents, on `device`.

    Args:
        rng: draws radii between 0.2 and 2 and velocities about the circular one.
        potential: where they move.
        orbits: how many.
        samples: recorded samples, `dt` apart.
        dt: sampling step; each takes `_SUBSTEPS` Runge-Kutta steps.
        exponent_time: how long the exponent is averaged.
        device: of torch.
        log: called with the fraction done.

    Returns:
        (orbits, samples) x in float64, (orbits,) exponents, (orbits,) relative drift of the Jacobi
        integral.
    """
    radius, turn = rng.uniform(0.2, 2.0, orbits), rng.uniform(0, 2 * np.pi, orbits)
    cos, sin = np.cos(turn), np.sin(turn)
    speed = radius / np.sqrt(potential.core**2 + radius**2)
    spread = 0.6 if potential.inclined else 0.3
    radial, across, up = rng.standard_normal((3, orbits)) * spread
    around = speed + across - potential.pattern_speed * radius
    up = up * potential.inclined
    zero = np.zeros(orbits)
    start = np.stack(
        [
            radius * cos,
            radius * sin,
            zero,
            radial * cos - around * sin,
            radial * sin + around * cos,
            up,
        ]
    )
    state = torch.from_numpy(start).to(device)
    apart = torch.from_numpy(rng.standard_normal(start.shape)).to(device)
    if not potential.inclined:
        apart[[2, 5]] = 0  # the disc's own exponent, not that of leaving it
    apart *= _SHADOW / apart.norm(dim=0)
    pair = torch.stack([state, state + apart], -1)
    initial = _jacobi(state, potential)
    x = torch.empty((orbits, samples), dtype=torch.float64, device=device)
    steps = max(samples, round(exponent_time / dt))
    growth = torch.zeros(orbits, dtype=torch.float64, device=device)
    drift = torch.zeros_like(growth)
    for sample in range(steps):
        if sample < samples:
            x[:, sample] = pair[0, :, 0]
        for _ in range(_SUBSTEPS):
            h = dt / _SUBSTEPS
            k1 = _galactic_rhs(pair, potential)
            k2 = _galactic_rhs(pair + h / 2 * k1, potential)
            k3 = _galactic_rhs(pair + h / 2 * k2, potential)
            k4 = _galactic_rhs(pair + h * k3, potential)
            pair = pair + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        apart = pair[..., 1] - pair[..., 0]
        distance = apart.norm(dim=0)
        growth += torch.log(distance / _SHADOW)
        pair[..., 1] = pair[..., 0] + apart * (_SHADOW / distance)
        if sample % 50 == 0:
            drift = torch.maximum(drift, (_jacobi(pair[..., 0], potential) - initial).abs())
            log(sample / steps)
    return x, growth / (steps * dt), drift / initial.abs().clamp(min=0.1)


def _galactic_rhs(state: Tensor, potential: Potential) -> Tensor:
    x, y, z, vx, vy, vz = state
    inner = potential.core**2 + x**2 + (y / potential.flattening_y) ** 2
    inner = inner + (z / potential.flattening_z) ** 2
    spin = potential.pattern_speed
    ax = -x / inner + 2 * spin * vy + spin**2 * x
    ay = -y / (potential.flattening_y**2 * inner) - 2 * spin * vx + spin**2 * y
    az = -z / (potential.flattening_z**2 * inner)
    if potential.arm:
        r2, cos, sin, along, turned = _arms(x, y, potential.core)
        inward = 2 * (_COT_PITCH * turned - along) / r2
        ax = ax - potential.arm / r2 * (2 * (x * cos + y * sin) + x * inward)
        ay = ay - potential.arm / r2 * (2 * (x * sin - y * cos) + y * inward)
    return torch.stack([vx, vy, vz, ax, ay, az])


def _arms(x: Tensor, y: Tensor, core: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """R^2 softened, cos and sin of the winding, R^2 cos(2 phi - winding) and R^2 sin(2 phi - winding)."""
    r2 = x**2 + y**2 + core**2
    winding = _COT_PITCH * torch.log(r2)
    cos, sin = torch.cos(winding), torch.sin(winding)
    difference, product = x**2 - y**2, 2 * x * y
    return r2, cos, sin, difference * cos + product * sin, product * cos - difference * sin


def _jacobi(state: Tensor, potential: Potential) -> Tensor:
    x, y, z, vx, vy, vz = state
    inner = potential.core**2 + x**2 + (y / potential.flattening_y) ** 2
    inner = inner + (z / potential.flattening_z) ** 2
    energy: Any = (vx**2 + vy**2 + vz**2 + torch.log(inner)) / 2
    if potential.arm:
        r2, _, _, along, _ = _arms(x, y, potential.core)
        energy = energy + potential.arm * along / r2
    return energy - potential.pattern_speed**2 * (x**2 + y**2) / 2
