"""Active particles: self-propelled, repelling each other, in a trap or on a torus.

    dx_i = [v0 g_i + k sum_j f_ij - A x_i] dt + sqrt(2 eps) dW
    dg_i = -gamma g_i dt + sqrt(2 gamma) dW'

with f_ij = softplus_beta(2 r - |x_ij|) x_ij / |x_ij|. The propulsion g is an Ornstein-Uhlenbeck
process of unit variance and correlation time 1/gamma.

Units: whatever x and t are measured in; k_B = 1 and mobilities are 1, so that eps is a temperature.

Source: Boffi & Vanden-Eijnden, Deep learning probability flows and entropy production rates in active
matter (PNAS 121, 2024; arXiv 2309.12991).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from szilard.kernels.cells import soft_repulsion

REACH = 16.0
"""beta times how far beyond contact the repulsion is followed; there it is 1.1e-7 k / beta."""


@dataclass(frozen=True)
class ActiveOU:
    """N self-propelled particles in d dimensions; a state is (x, g) of each particle, 2 d numbers.

    Args:
        N: particles.
        d: dimensions of space, 1 to 3.
        v0: speed of self-propulsion.
        A: stiffness of the trap, 0 for none.
        k: strength of the repulsion.
        gamma: rate at which g forgets.
        eps: translational noise; may be 0.
        beta: steepness of the repulsion.
        r: radius of a particle.
        phi: packing fraction; the particles then live on a torus. None: open space.
        half_width: w of the torus [-w, w]^d, in place of phi.

    Raises:
        ValueError: a number out of its range, both phi and half_width, or neither a trap nor a torus.

    Examples:
        >>> system = ActiveOU(N=16, A=0.05, v0=0.2, gamma=0.1, eps=0.1, k=2.5)
        >>> z = system.simulate(3, every=0.5, dt=0.05, burn_in=1.0, trajectories=2, rng=np.random.default_rng(0))
        >>> z.shape
        (2, 3, 16, 4)

    Source: Boffi & Vanden-Eijnden 2024 (arXiv 2309.12991), equations of motion of active particles.
    """

    N: int
    d: int = 2
    v0: float = 0.25
    A: float = 0.0
    k: float = 2.5
    gamma: float = 0.1
    eps: float = 0.1
    beta: float = 7.5
    r: float = 1.0
    phi: float | None = None
    half_width: float | None = None

    def __post_init__(self) -> None:
        if self.N < 1:
            raise ValueError(f"N must be at least 1, but is {self.N}")
        if self.d not in (1, 2, 3):
            raise ValueError(f"d must be 1, 2 or 3, but is {self.d}")
        for name in ("gamma", "beta", "r"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive, but is {getattr(self, name)}")
        for name in ("v0", "A", "k", "eps"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")
        if self.phi is not None and self.half_width is not None:
            raise ValueError("phi and half_width must not both be given")
        for name in ("phi", "half_width"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive, but is {value}")
        if self.A == 0 and self.w is None:
            raise ValueError("A must be positive in open space, or phi or half_width be given")

    @property
    def w(self) -> float | None:
        """Half the side of the torus; None in open space."""
        if self.phi is None:
            return self.half_width
        ball = math.pi ** (self.d / 2) / math.gamma(self.d / 2 + 1) * self.r**self.d
        return (self.N * ball / self.phi) ** (1 / self.d) / 2

    @property
    def D(self) -> Float[Tensor, " coordinates"]:
        """Diffusion of each coordinate: eps of x, gamma of g."""
        return torch.tensor([self.eps] * self.d + [self.gamma] * self.d, dtype=torch.float64)

    def repulsion(
        self, x: Float[np.ndarray, "*batch n d"]
    ) -> tuple[Float[np.ndarray, "*batch n d"], Float[np.ndarray, "*batch n d"]]:
        """Force k sum_j f_ij on each particle, and its derivative along each of its own coordinates."""
        if self.k == 0 or self.N == 1:
            return np.zeros(x.shape), np.zeros(x.shape)
        flat = np.ascontiguousarray(x, dtype=np.float64).reshape(-1, *x.shape[-2:])
        contact = 2 * self.r
        force, slope = soft_repulsion(
            flat,
            beta=self.beta,
            contact=contact,
            reach=contact + REACH / self.beta,
            box=2 * (self.w or 0.0),
        )
        return self.k * force.reshape(x.shape), self.k * slope.reshape(x.shape)

    def terms(
        self, z: Float[Tensor, "*batch n coordinates"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Drift b, d b_c / d z_c, equilibrium score, and its derivatives: each of the shape of z.

        The equilibrium score is that of v0 = 0: (k sum f - A x) / eps, and -g. Where eps = 0 its first
        part does not exist and is 0.
        """
        x, g = z[..., : self.d], z[..., self.d :]
        force, slope = (
            torch.from_numpy(part).to(z)
            for part in self.repulsion(x.detach().cpu().double().numpy())
        )
        pull, stiff = force - self.A * x, slope - self.A
        drift = torch.cat([self.v0 * g + pull, -self.gamma * g], -1)
        divergence = torch.cat([stiff, torch.full_like(g, -self.gamma)], -1)
        cold = self.eps == 0
        shift = torch.cat([torch.zeros_like(pull) if cold else pull / self.eps, -g], -1)
        own = torch.cat(
            [torch.zeros_like(pull) if cold else stiff / self.eps, torch.full_like(g, -1.0)], -1
        )
        return drift, divergence, shift, own

    def simulate(
        self,
        snapshots: int,
        *,
        every: float,
        dt: float,
        burn_in: float | None = None,
        trajectories: int = 1,
        start: Float[np.ndarray, "trajectories n coordinates"] | None = None,
        step: Literal["leimkuhler-matthews", "euler"] = "leimkuhler-matthews",
        rng: np.random.Generator,
        progress: Callable[[float, str], None] | None = None,
    ) -> Float[np.ndarray, "trajectories snapshots n coordinates"]:
        """Snapshots of stationary trajectories: exact in g, Euler-Maruyama or better in x.

        A stiff contact makes Euler steps produce entropy of their own, about k^2 dt / 2 a contact and
        coordinate. Leimkuhler and Matthews' step, which takes the mean of this step's noise and the
        last one's, samples the equilibrium of an additive noise to second order in dt at no cost.
        With either, simulate v0 = 0 with the same dt first, which must read about 0.

        Args:
            snapshots: of each trajectory.
            every: time between snapshots.
            dt: time step.
            burn_in: time before the first snapshot; by default 20 over the slowest of gamma and eps
                (and A) in a trap, 10 on a torus.
            trajectories: independent ones.
            start: a state to go on from, in place of a random one; the burn-in is then 0 by default.
            step: in x; "euler" is the paper's.
            rng: draws starts and noise.
            progress: called with the fraction done and a message.

        Raises:
            ValueError: an argument out of its range, or a start of another shape.
            FloatingPointError: the time step is too long, so that a particle is lost.
        """
        for name, value in (("every", every), ("dt", dt)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, but is {value}")
        if every < dt:
            raise ValueError(f"every must be at least dt = {dt}, but is {every}")
        if step not in ("leimkuhler-matthews", "euler"):
            raise ValueError(f"step must be 'leimkuhler-matthews' or 'euler', but is {step!r}")
        if snapshots < 1 or trajectories < 1:
            raise ValueError(
                f"snapshots and trajectories must be at least 1, but are {snapshots} and {trajectories}"
            )
        d, w = self.d, self.w
        shape = (trajectories, self.N, d)
        if start is None:
            g = rng.standard_normal(shape)
            x = self._scatter(shape, rng)
        else:
            if start.shape != (trajectories, self.N, 2 * d) or not np.isfinite(start).all():
                raise ValueError(
                    f"start must be finite and of the shape {(trajectories, self.N, 2 * d)}, "
                    f"but has {start.shape}"
                )
            x, g = start[..., :d].copy(), start[..., d:].copy()
        if burn_in is None:
            rates = [rate for rate in (self.gamma, self.eps, self.A) if rate > 0]
            burn_in = 0.0 if start is not None else (20 if w is None else 10) / min(rates)
        inner, before = max(1, round(every / dt)), round(burn_in / dt)
        keep, kick = math.exp(-self.gamma * dt), math.sqrt(-math.expm1(-2 * self.gamma * dt))
        found = np.empty((trajectories, snapshots, self.N, 2 * d))
        averaged = step == "leimkuhler-matthews" and self.eps > 0
        size = math.sqrt(2 * self.eps * dt)
        last = rng.standard_normal(shape) if averaged else np.zeros(1)
        total, done, shown = before + (snapshots - 1) * inner, 0, 0
        for s in range(snapshots):
            for _ in range(before if s == 0 else inner):
                force = self.repulsion(x)[0]
                x = x + dt * (self.v0 * g + force - self.A * x)
                if self.eps:
                    noise = rng.standard_normal(shape)
                    x += size * ((last + noise) / 2 if averaged else noise)
                    last = noise
                g = keep * g + kick * rng.standard_normal(shape)
                if w is not None:
                    x -= 2 * w * np.floor((x + w) / (2 * w))
                done += 1
                if progress is not None and 100 * done // total > shown:
                    shown = 100 * done // total
                    progress(done / total, f"time {done * dt:.4g}")
            if not np.isfinite(x).all():
                raise FloatingPointError(f"dt = {dt} is too long: positions diverged")
            found[:, s, :, :d], found[:, s, :, d:] = x, g
        return found

    def _scatter(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        if self.w is None:
            # The radius at which N discs lie side by side, or the trap's thermal one.
            thermal = math.sqrt((self.eps + self.v0**2 / (self.A + self.gamma)) / self.A)
            return max(thermal, self.r * self.N ** (1 / self.d) / 2) * rng.standard_normal(shape)
        if self.phi is None or self.phi < 0.25:
            return rng.uniform(-self.w, self.w, shape)
        x = rng.normal(0, self.w / 2, shape)
        return np.asarray((x + self.w) % (2 * self.w) - self.w)
