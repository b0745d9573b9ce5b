"""Scores of stationary densities, learned from snapshots.

Source: Boffi & Vanden-Eijnden, Deep learning probability flows and entropy production rates in active
matter (PNAS 121, 2024; arXiv 2309.12991).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from szilard.physics.entropy_production import ScoreNetwork, System, _check


class Score:
    """A network on top of what the system knows of its score: maps states to the score and derivatives.

    Args:
        system: knows the equilibrium part.
        network: learns the rest.
    """

    def __init__(self, system: System, network: ScoreNetwork) -> None:
        self.system, self.network = system, network

    def __call__(self, z: Float[Tensor, "batch n coordinates"]) -> tuple[Tensor, Tensor]:
        """The score and d s_c / d z_c, each of the shape of z."""
        _, _, known, own = self.system.terms(z)
        weight = next(self.network.parameters())
        s, slope = self.network.with_divergence(z.to(weight))
        return known + s.detach().to(z), own + slope.detach().to(z)


class ScoreTrainer:
    """Trains a score network on stationary snapshots.

    The losses, with s = network + equilibrium score, averaged over coordinates:

    - "ism": |s|^2 + 2 div s, exact or, with `probes`, with Hutchinson's estimate of the divergence;
    - "dsm": z is perturbed by +-sigma xi, and |s|^2 + 2 s . xi / sigma is the loss. It learns the score
      of the smoothed density, biased by O(sigma^2), and needs no second derivatives.

    `stationarity` adds the squared residual (div v + v . s)^2 of the stationary Fokker-Planck equation,
    per coordinate, with v = b - D s; exact divergences only.

    Args:
        network: starts at 0 where its last layer does.
        system: drift, noise and equilibrium score.
        loss: "ism" or "dsm".
        stationarity: weight of the residual; 0 for none.
        sigma: size of the perturbation of "dsm".
        probes: Gaussian probes of Hutchinson's estimate; 0 for exact divergences.
        coordinates: which the loss reads; all with noise by default.
        learning_rate: peak of RAdam's.
        warm_up: share of the steps in which it rises; a cosine to 0 follows.
        decay: of the moving average of the weights, which is what `fit` returns.
        clip: largest norm of the gradient.

    Raises:
        ValueError: an argument out of its range, or a residual asked of a loss without exact divergences.

    Examples:
        >>> from szilard.physics import DiffusionSystem, ScoreMLP
        >>> _ = torch.manual_seed(0)
        >>> system = DiffusionSystem(lambda z: -z, torch.ones(1))
        >>> trainer = ScoreTrainer(ScoreMLP(1, (8,)), system, learning_rate=3e-2, decay=0.9)
        >>> score = trainer.fit(torch.randn(1000, 1, 1), steps=300, batch_size=200)
        >>> bool(abs(score(torch.ones(1, 1, 1))[0] + 1) < 0.3)
        True

    Source: Boffi & Vanden-Eijnden 2024 (arXiv 2309.12991), losses and stationarity terms.
    """

    def __init__(
        self,
        network: ScoreNetwork,
        system: System,
        *,
        loss: Literal["ism", "dsm"] = "ism",
        stationarity: float = 0.0,
        sigma: float = 0.1,
        probes: int = 0,
        coordinates: list[int] | None = None,
        learning_rate: float = 1e-4,
        warm_up: float = 0.04,
        decay: float = 0.9999,
        clip: float = 1.0,
    ) -> None:
        if loss not in ("ism", "dsm"):
            raise ValueError(f"loss must be 'ism' or 'dsm', but is {loss!r}")
        if stationarity < 0 or probes < 0:
            raise ValueError(
                f"stationarity and probes must not be negative, but are {stationarity} and {probes}"
            )
        if stationarity and (loss == "dsm" or probes):
            raise ValueError(
                "stationarity must be 0 unless the loss is 'ism' with exact divergences"
            )
        for name, value in (("sigma", sigma), ("learning_rate", learning_rate), ("clip", clip)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, but is {value}")
        if not 0 <= warm_up < 1 or not 0 <= decay < 1:
            raise ValueError(f"warm_up and decay must lie in [0, 1), but are {warm_up} and {decay}")
        self.network, self.system, self.loss = network, system, loss
        self.stationarity, self.sigma, self.probes = stationarity, sigma, probes
        self.learning_rate, self.warm_up = learning_rate, warm_up
        self.decay, self.clip = decay, clip
        noisy = (system.D > 0).nonzero().flatten().tolist()
        self.coordinates = noisy if coordinates is None else coordinates
        if not set(self.coordinates) <= set(noisy) or not self.coordinates:
            raise ValueError(f"coordinates must be some of those with noise, {noisy}")
        self.history_: list[float] = []

    def fit(
        self,
        snapshots: Float[Tensor, "batch n coordinates"] | Float[np.ndarray, "batch n coordinates"],
        *,
        steps: int,
        batch_size: int = 64,
        refresh: Callable[[int], Float[np.ndarray, "batch n coordinates"]] | None = None,
        refresh_every: int = 1,
        generator: torch.Generator | None = None,
        progress: Callable[[float, str], None] | None = None,
    ) -> Score:
        """Trains, and returns the score of the averaged weights.

        Args:
            snapshots: stationary states.
            steps: of the optimiser.
            batch_size: snapshots a step.
            refresh: called with the step every `refresh_every` steps for new snapshots: data that
                advance while the network trains.
            refresh_every: steps.
            generator: of batches and perturbations.
            progress: called with the fraction done and a message.

        Raises:
            ValueError: snapshots of another shape, a NaN, or steps below 1.
        """
        if steps < 1 or batch_size < 1:
            raise ValueError(
                f"steps and batch_size must be at least 1, but are {steps}, {batch_size}"
            )
        weight = next(self.network.parameters())
        terms = self._prepared(snapshots, weight)
        mean = copy.deepcopy(self.network)
        optimiser = torch.optim.RAdam(self.network.parameters(), lr=self.learning_rate)
        rise = max(1, round(self.warm_up * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser,
            lambda t: min((t + 1) / rise, 0.5 + 0.5 * math.cos(math.pi * max(0, t - rise) / steps)),
        )
        self.history_ = []
        for step in range(steps):
            if refresh is not None and step and step % refresh_every == 0:
                terms = self._prepared(refresh(step), weight)
            rows = torch.randint(len(terms[0]), (batch_size,), generator=generator).to(
                weight.device
            )
            loss = self._loss(*(part[rows] for part in terms), generator=generator)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
            optimiser.step()
            schedule.step()
            # Early on the average follows closely: it must not remember the start.
            keep = min(self.decay, (1 + step) / (10 + step))
            with torch.no_grad():
                for slow, fast in zip(mean.parameters(), self.network.parameters(), strict=True):
                    slow.lerp_(fast, 1 - keep)
            self.history_.append(float(loss.detach()))
            if progress is not None and (step + 1) % max(1, steps // 100) == 0:
                progress((step + 1) / steps, f"step {step + 1} of {steps}")
        return Score(self.system, mean.eval())

    def _prepared(self, snapshots: Tensor | np.ndarray, weight: Tensor) -> tuple[Tensor, ...]:
        z = torch.as_tensor(snapshots)
        _check(z, len(self.system.D), "snapshots")
        # Neither drift nor equilibrium score depends on the weights: once a snapshot is enough.
        return tuple(part.detach().to(weight) for part in (z, *self.system.terms(z)))

    def _loss(
        self,
        z: Tensor,
        b: Tensor,
        b_slope: Tensor,
        known: Tensor,
        known_slope: Tensor,
        *,
        generator: torch.Generator | None,
    ) -> Tensor:
        c = self.coordinates
        if self.loss == "dsm":
            return self._denoising(z, generator)
        if self.probes:
            return self._hutchinson(z, known, known_slope, generator)
        s, slope = self.network.with_divergence(z, create_graph=True)
        s, slope = s + known, slope + known_slope
        loss = (s**2 + 2 * slope)[..., c].mean()
        if self.stationarity:
            D = self.system.D.to(z)
            v = b - D * s
            residual = (b_slope - D * slope + v * s).sum((1, 2))
            loss = loss + self.stationarity * (residual**2).mean() / z[0].numel()
        return loss

    def _denoising(self, z: Tensor, generator: torch.Generator | None) -> Tensor:
        c, noise = self.coordinates, torch.randn(z.shape, generator=generator).to(z)
        loss = z.new_zeros(())
        for sign in (1, -1):
            moved = z + sign * self.sigma * noise
            s = self.network(moved) + self.system.terms(moved)[2]
            loss = loss + (s**2 + 2 * sign * s * noise / self.sigma)[..., c].mean() / 2
        return loss

    def _hutchinson(
        self, z: Tensor, known: Tensor, known_slope: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        c = self.coordinates
        leaf = z.detach().requires_grad_()
        s = self.network(leaf)
        divergence = z.new_zeros(())
        for _ in range(self.probes):
            probe = torch.zeros_like(z)
            probe[..., c] = torch.randn(probe[..., c].shape, generator=generator).to(z)
            (pulled,) = torch.autograd.grad((s * probe).sum(), leaf, create_graph=True)
            divergence = divergence + (pulled * probe).sum() / self.probes
        whole = s + known
        count = z[..., c].numel()
        return (whole[..., c] ** 2).mean() + 2 * (divergence / count + known_slope[..., c].mean())
