"""Maximum-entropy processes: driven Markov chains from mean currents, and how they respond.

A reference chain W(x'|x) is bent by multipliers lambda_t of observables g(x, x') of its steps, such as
displacement or charge moved:

- *causal*: at each time the step that is least informative relative to W given the present state,
  P_t(x'|x) = W(x'|x) exp(-lambda_t . g(x, x')) / Z_t(x);
- *whole-path*: one distribution over entire paths, P[x] ~ p0(x_0) prod_t W exp(-lambda_t . g), whose
  steps know of drives still to come.

They answer the same multipliers with different means, so every result names its mode.

Source: Rogers, Beck, Rempe (arXiv 1105.5662, 2011) and its companion on fluctuation-dissipation
theorems (arXiv 1105.5619). Discrete time and states are a reading of the continuous original.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from szilard.physics._dual import InfeasibleError, Point, minimise

Mode = Literal["causal", "whole-path"]


@dataclass(frozen=True)
class ProcessRun:
    """A driven process.

    Attributes:
        mode: "causal" or "whole-path".
        means: <g_t>, shape (steps,) or (steps, observables) as g has one or several.
        marginals: p_t(x) at every time, shape (steps + 1, states).
        transitions: P_t(x'|x), shape (steps, states, states).
        caliber: KL of the process from its reference, in nats, at least 0.
        free_energy: the process free energy Phi[lambda], in nats: the expected sum of -ln Z_t(x_t)
            where causal, -ln Z of all paths otherwise; caliber = Phi - sum_t lambda_t . <g_t>.
    """

    mode: Mode
    means: Float[np.ndarray, " steps"] | Float[np.ndarray, "steps observables"]
    marginals: Float[np.ndarray, "times states"]
    transitions: Float[np.ndarray, "steps states states"]
    caliber: float
    free_energy: float

    def plot(self) -> Any:
        """The distribution over states in time, and the mean observables: a plotly Figure."""
        from plotly.subplots import make_subplots

        figure = make_subplots(
            2, 1, shared_xaxes=True, subplot_titles=("probability of each state", "mean observable")
        )
        figure.add_heatmap(
            z=self.marginals.T, colorbar={"len": 0.45, "y": 0.8}, colorscale="Viridis", row=1, col=1
        )
        for k, column in enumerate(self.means.reshape(len(self.means), -1).T):
            figure.add_scatter(y=column, mode="lines+markers", name=f"g {k}", row=2, col=1)
        figure.update_xaxes(title_text="step", row=2, col=1)
        return figure


@dataclass(frozen=True)
class InformationLoss:
    """Entropy production of each step, shape (steps,), in nats.

    Attributes:
        total: KL between the step and its reversal, at least 0; +inf where a step has no reverse.
        system: change of the entropy of the states, S_{t+1} - S_t.
        exchange: what went to the surroundings, E[ln P_t(x'|x) / P~_t(x|x')].
    """

    total: Float[np.ndarray, " steps"]
    system: Float[np.ndarray, " steps"]
    exchange: Float[np.ndarray, " steps"]


class Process:
    """A reference Markov chain and the observables of its steps.

    Args:
        W: reference transitions, rows sum to 1, shape (states, states) or, where they change in time,
            (steps, states, states).
        g: observables of a step from x (row) to x' (column), shape (states, states) or (states,
            states, observables).
        p0: distribution at the start, shape (states,).
        causal: the causal ensemble; False for the one over whole paths.

    Raises:
        ValueError: shapes that don't fit, NaN, negative weights, rows that don't sum to 1.

    Examples:
        A particle on a ring of four sites, driven in one direction:

        >>> ring = np.array([np.roll([0.2, 0.6, 0.2, 0.0], k - 1) for k in range(4)])
        >>> step = np.array([[(b - a + 1) % 4 - 1 for b in range(4)] for a in range(4)])
        >>> process = Process(ring, step, np.full(4, 0.25))
        >>> run = process.run([-1.0, -1.0])
        >>> run.means.round(6), round(run.caliber / 2, 6)
        (array([0.386188, 0.386188]), 0.189608)

    Source: Rogers et al. 2011 (arXiv 1105.5662), process free energy and caliber; arXiv 1105.5619.
    """

    def __init__(self, W: ArrayLike, g: ArrayLike, p0: ArrayLike, causal: bool = True) -> None:
        reference, observables, start = (np.array(x, dtype=np.float64) for x in (W, g, p0))
        if reference.ndim not in (2, 3) or reference.shape[-1] != reference.shape[-2]:
            raise ValueError(
                "W must have the shape (states, states) or (steps, states, states), "
                f"but has {reference.shape}"
            )
        states = reference.shape[-1]
        if observables.ndim not in (2, 3) or observables.shape[:2] != (states, states):
            raise ValueError(
                f"g must have the shape ({states}, {states}) or ({states}, {states}, observables), "
                f"but has {observables.shape}"
            )
        if start.shape != (states,):
            raise ValueError(f"p0 must have the shape ({states},), but has {start.shape}")
        for name, x in (("W", reference), ("g", observables), ("p0", start)):
            if not np.isfinite(x).all():
                raise ValueError(f"{name} must be finite")
        for name, x in (("W", reference), ("p0", start)):
            if (x < 0).any():
                raise ValueError(f"{name} must not be negative")
            worst = np.abs(x.sum(-1) - 1).max()
            if worst > 1e-8:
                raise ValueError(
                    f"{name} must sum to 1 over its last axis, but is off by {worst:.2g}"
                )
        self.causal = causal
        self._reference = reference
        self._several = observables.ndim == 3
        self._g = observables if self._several else observables[:, :, None]
        self._start = start

    @property
    def mode(self) -> Mode:
        """Which ensemble: "causal" or "whole-path"."""
        return "causal" if self.causal else "whole-path"

    def run(self, multipliers: ArrayLike) -> ProcessRun:
        """The process that the multipliers drive.

        Args:
            multipliers: lambda, shape (steps,) or (steps, observables).

        Returns:
            Means, distributions, caliber and free energy.

        Raises:
            ValueError: a shape that doesn't fit, or NaN.
        """
        drive = self._drive("multipliers", multipliers)
        bent = self._driven(drive)
        means = np.einsum("tx,txy,xyk->tk", bent.marginals[:-1], bent.transitions, self._g)
        return ProcessRun(
            mode=self.mode,
            means=self._shaped(means),
            marginals=bent.marginals,
            transitions=bent.transitions,
            caliber=max(0.0, bent.free_energy - float((drive * means).sum())),
            free_energy=bent.free_energy,
        )

    def fit(self, targets: ArrayLike) -> Float[np.ndarray, "..."]:
        """The multipliers under which the observables have these means.

        Args:
            targets: means of g at each step, shape (steps,) or (steps, observables).

        Returns:
            lambda, of the shape of `targets`.

        Raises:
            InfeasibleError: a ValueError: a mean that no step can have from where the process is.
            ValueError: a shape that doesn't fit, or NaN.
        """
        wanted = self._drive("targets", targets)
        found = self._fit_forward(wanted) if self.causal else self._fit_paths(wanted)
        return self._shaped(found)

    def response(self, multipliers: ArrayLike) -> Float[np.ndarray, "..."]:
        """d<g_s>/d lambda_t at any drive: the fluctuation-dissipation theorem of the process.

        Causal: minus the covariance of g_s with what is new in g_t, g_t - E[g_t|x_t], and 0 for s < t.
        Whole-path: minus the covariance of g_s and g_t.

        Args:
            multipliers: lambda, shape (steps,) or (steps, observables).

        Returns:
            Shape (steps s, steps t), or (steps s, steps t, observables of s, observables of t).
        """
        drive = self._drive("multipliers", multipliers)
        chi = self._response(self._driven(drive))
        return chi if self._several else chi[:, :, 0, 0]

    def information_loss(
        self,
        multipliers: ArrayLike,
        *,
        reverse: ArrayLike | None = None,
        parity: Int[np.ndarray, " states"] | Sequence[int] | None = None,
    ) -> InformationLoss:
        """What each step forgets: the KL of a step from its reversal, an entropy production.

        Args:
            multipliers: lambda, shape (steps,) or (steps, observables).
            reverse: transitions P~_t of the reversed protocol, from x' (row) back to x (column), shape
                (states, states) or (steps, states, states); the process's own by default.
            parity: where states hold odd variables such as velocities, the state that each becomes
                when time is reversed.

        Returns:
            The loss of every step and its two parts.

        Raises:
            ValueError: shapes that don't fit, or a parity that is no involution.

        Source: Rogers et al. 2011, information loss in a process.
        """
        run = self.run(multipliers)
        forward, p = run.transitions, run.marginals
        back = forward if reverse is None else np.array(reverse, dtype=np.float64)
        if back.shape not in (forward.shape, forward.shape[1:]):
            raise ValueError(f"reverse must have the shape {forward.shape}, but has {back.shape}")
        back = np.broadcast_to(back, forward.shape)
        if parity is not None:
            flip = np.asarray(parity)
            if flip.shape != p.shape[1:] or not (flip[flip] == np.arange(len(flip))).all():
                raise ValueError("parity must map each state to another and that one back")
            back = back[:, flip][:, :, flip]
        joint = p[:-1, :, None] * forward
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.log(forward) - np.log(back.swapaxes(1, 2))
            exchange = np.where(joint > 0, joint * ratio, 0.0).sum((1, 2))
            entropy = -np.where(p > 0, p * np.log(p), 0.0).sum(-1)
        system = np.diff(entropy)
        total = exchange + system
        # A KL is not negative; what is below 0 is rounding.
        return InformationLoss(np.maximum(total, 0.0), system, exchange)

    def _drive(self, name: str, values: ArrayLike) -> Float[np.ndarray, "steps observables"]:
        x = np.array(values, dtype=np.float64)
        count = self._g.shape[-1]
        wanted = f"(steps, {count})" if self._several else "(steps,)"
        if x.ndim != (2 if self._several else 1) or (self._several and x.shape[1] != count):
            raise ValueError(f"{name} must have the shape {wanted}, but has {x.shape}")
        if len(x) == 0:
            raise ValueError(f"{name} must have at least one step")
        if self._reference.ndim == 3 and len(x) != len(self._reference):
            raise ValueError(
                f"{name} must have the {len(self._reference)} steps of W, but has {len(x)}"
            )
        if not np.isfinite(x).all():
            raise ValueError(f"{name} must be finite")
        return x if self._several else x[:, None]

    def _shaped(self, x: np.ndarray) -> np.ndarray:
        return x if self._several else x[:, 0]

    def _step(self, t: int) -> np.ndarray:
        return self._reference if self._reference.ndim == 2 else self._reference[t]

    def _bent(self, t: int, multipliers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """W exp(-lambda . g) with rows that sum to 1, and the logarithm of what they summed to."""
        exponent = -(self._g @ multipliers)
        # The largest exponent among possible steps, so that nothing overflows.
        top = np.where(self._step(t) > 0, exponent, -np.inf).max(-1, keepdims=True)
        weights = self._step(t) * np.exp(np.minimum(exponent - top, 0.0))
        z = weights.sum(-1, keepdims=True)
        return weights / z, (np.log(z) + top)[:, 0]

    def _driven(self, drive: np.ndarray) -> _Driven:
        steps, states = len(drive), len(self._start)
        transitions = np.empty((steps, states, states))
        marginals = np.empty((steps + 1, states))
        if self.causal:
            marginals[0] = self._start
            free_energy = 0.0
            for t in range(steps):
                transitions[t], log_z = self._bent(t, drive[t])
                free_energy -= float(marginals[t] @ log_z)
                marginals[t + 1] = marginals[t] @ transitions[t]
            return _Driven(transitions, marginals, free_energy)
        # Backward messages in logarithms: products of a thousand tilted matrices overflow.
        message = np.zeros(states)
        for t in reversed(range(steps)):
            step, log_z = self._bent(t, drive[t])
            top = message.max()
            weights = step * np.exp(message - top)
            sums = weights.sum(-1, keepdims=True)
            # A state from which the drive leaves nothing to go to is never entered.
            transitions[t] = np.divide(weights, sums, out=step.copy(), where=sums > 0)
            with np.errstate(divide="ignore"):
                message = np.log(sums[:, 0]) + log_z + top
        top = message.max()
        first = self._start * np.exp(message - top)
        marginals[0] = first / first.sum()
        for t in range(steps):
            marginals[t + 1] = marginals[t] @ transitions[t]
        return _Driven(transitions, marginals, -float(np.log(first.sum()) + top))

    def _response(
        self, driven: _Driven
    ) -> Float[np.ndarray, "steps steps observables observables"]:
        transitions, marginals = driven.transitions, driven.marginals
        steps, count = len(transitions), self._g.shape[-1]
        chi = np.zeros((steps, steps, count, count))
        # Rows of `carried` hold E[innovation of t; x_s = x] for every t before s at once.
        carried = np.zeros((steps, count, len(self._start)))
        for s in range(steps):
            expected = np.einsum("xy,xyk->xk", transitions[s], self._g)
            chi[s, :s] = -np.einsum("tkx,xl->tlk", carried[:s], expected)
            innovation = self._g - (expected[:, None] if self.causal else marginals[s] @ expected)
            joint = marginals[s][:, None] * transitions[s]
            chi[s, s] = -np.einsum("xy,xyk,xyl->lk", joint, innovation, self._g)
            carried[:s] = carried[:s] @ transitions[s]
            carried[s] = np.einsum("xy,xyk->ky", joint, innovation)
        if not self.causal:
            for s in range(steps):
                chi[:s, s] = chi[s, :s].swapaxes(-1, -2)
        return chi

    def _fit_forward(self, targets: np.ndarray) -> np.ndarray:
        """One convex problem a step: sum_x p_t(x) ln Z_t(x) + lambda . target."""
        found = np.zeros_like(targets)
        p = self._start
        for t, target in enumerate(targets):

            def local(
                lam: np.ndarray, t: int = t, p: np.ndarray = p, target: np.ndarray = target
            ) -> Point:
                step, log_z = self._bent(t, lam)
                mean = np.einsum("xy,xyk->xk", step, self._g)

                def hessian() -> np.ndarray:
                    new = self._g - mean[:, None]
                    return np.einsum("x,xy,xyk,xyl->kl", p, step, new, new)

                return Point(float(p @ log_z + lam @ target), target - p @ mean, hessian)

            found[t] = _fitted(local, found[t - 1] if t else found[t], f"targets at step {t}")
            p = p @ self._bent(t, found[t])[0]
        return found

    def _fit_paths(self, targets: np.ndarray) -> np.ndarray:
        shape = targets.shape

        def whole(lam: np.ndarray) -> Point:
            driven = self._driven(lam.reshape(shape))
            means = np.einsum("tx,txy,xyk->tk", driven.marginals[:-1], driven.transitions, self._g)

            def hessian() -> np.ndarray:
                chi = self._response(driven).transpose(0, 2, 1, 3)
                return -chi.reshape(lam.size, lam.size)

            value = float(lam @ targets.ravel()) - driven.free_energy
            return Point(value, (targets - means).ravel(), hessian)

        return _fitted(whole, np.zeros(targets.size), "targets").reshape(shape)


@dataclass(frozen=True)
class _Driven:
    transitions: np.ndarray
    marginals: np.ndarray
    free_energy: float


def _fitted(objective: Callable[[np.ndarray], Point], start: np.ndarray, name: str) -> np.ndarray:
    found = minimise(objective, start)
    if found is None:
        raise InfeasibleError(f"{name}: no process from this reference and start has these means")
    return found[0]
