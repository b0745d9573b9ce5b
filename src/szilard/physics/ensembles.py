"""The ensembles of statistical mechanics, each from the averages that define it.

Nothing but maximum entropy is used: the mean energy alone gives the canonical ensemble, mean energy and
particle number the grand canonical one, mean energy and volume the isothermal-isobaric one. Their
multipliers are beta, -beta mu and beta P.

Units: k_B = 1, so temperatures are energies and heat capacities are in nats.

Source: Rogers, Beck, Rempe, Information Theory and Statistical Mechanics Revisited (arXiv 1105.5662, 2011).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from szilard.physics.maxent import MaxEnt, MaxEntModel


@dataclass(frozen=True)
class Ensemble:
    """An equilibrium ensemble, read off a maximum-entropy model.

    Attributes:
        kind: which one.
        model: its distribution, multipliers and covariances.
    """

    kind: Literal["canonical", "grand canonical", "isothermal-isobaric"]
    model: MaxEntModel

    @property
    def p(self) -> Float[np.ndarray, " states"]:
        """Probability of each state."""
        return np.asarray(self.model.p)

    @property
    def beta(self) -> float:
        """Inverse temperature, 1/energy."""
        return float(self.model.multipliers[0])

    @property
    def temperature(self) -> float:
        """1/beta, an energy; infinite where beta is 0 and negative for inverted populations."""
        return 1 / self.beta if self.beta else math.inf

    @property
    def chemical_potential(self) -> float:
        """Mu, an energy.

        Raises:
            ValueError: the ensemble has a fixed number of particles.
        """
        self._must_be("grand canonical", "a chemical potential")
        return -float(self.model.multipliers[1]) / self.beta

    @property
    def pressure(self) -> float:
        """P, energy over volume.

        Raises:
            ValueError: the ensemble has a fixed volume.
        """
        self._must_be("isothermal-isobaric", "a pressure")
        return float(self.model.multipliers[1]) / self.beta

    @property
    def free_energy(self) -> float:
        """-ln Z / beta: Helmholtz, grand potential or Gibbs energy by the ensemble's kind."""
        return -self.model.log_partition / self.beta

    @property
    def entropy(self) -> float:
        """Entropy with the microstates behind each state counted, ln Z + lambda . F, in nats."""
        return self.model.log_partition + float(self.model.multipliers @ self.model.means)

    @property
    def heat_capacity(self) -> float:
        """Variance of beta E plus the other multiplier's term, in nats.

        At fixed mu (grand canonical) or pressure (isothermal-isobaric).
        """
        multipliers = np.asarray(self.model.multipliers)
        return float(multipliers @ np.asarray(self.model.covariance) @ multipliers)

    def _must_be(self, kind: str, what: str) -> None:
        if self.kind != kind:
            raise ValueError(f"kind: a {self.kind} ensemble has not {what}; a {kind} one has")


def canonical(
    energies: ArrayLike, mean_energy: float, degeneracies: ArrayLike | None = None
) -> Ensemble:
    """The canonical ensemble: states of known energies, of which the mean is measured.

    Args:
        energies: of the states, shape (states,).
        mean_energy: its average, in the unit of `energies`.
        degeneracies: microstates of each state; 1 by default.

    Returns:
        The ensemble.

    Raises:
        InfeasibleError: a ValueError: no distribution on the states has the mean.
        ValueError: shapes that don't fit, or NaN.

    Examples:
        >>> two_level = canonical([0.0, 1.0], 0.25)
        >>> round(two_level.beta, 6), round(two_level.heat_capacity, 6)
        (1.098612, 0.226303)

    Source: Rogers et al. 2011 (arXiv 1105.5662).
    """
    return Ensemble("canonical", _model(degeneracies, {"energy": energies}, mean_energy))


def grand_canonical(
    energies: ArrayLike,
    numbers: ArrayLike,
    mean_energy: float,
    mean_number: float,
    degeneracies: ArrayLike | None = None,
) -> Ensemble:
    """The grand canonical ensemble: mean energy and mean number of particles are measured.

    Args:
        energies: of the states, shape (states,).
        numbers: particles in each state, shape (states,).
        mean_energy: in the unit of `energies`.
        mean_number: average number of particles.
        degeneracies: microstates of each state, 1/n! included where particles cannot be told apart
            (`push_forward` finds it from labelled ones); 1 by default.

    Returns:
        The ensemble.

    Raises:
        InfeasibleError: a ValueError: no distribution on the states has the means.
        ValueError: shapes that don't fit, or NaN.

    Examples:
        >>> site = grand_canonical([0.0, 0.5, 2.0], [0, 1, 2], 0.6, 0.8)
        >>> site.p.round(6).tolist()
        [0.4, 0.4, 0.2]

    Source: Rogers et al. 2011 (arXiv 1105.5662).
    """
    features = {"energy": energies, "number": numbers}
    return Ensemble("grand canonical", _model(degeneracies, features, mean_energy, mean_number))


def isothermal_isobaric(
    energies: ArrayLike,
    volumes: ArrayLike,
    mean_energy: float,
    mean_volume: float,
    degeneracies: ArrayLike | None = None,
) -> Ensemble:
    """The isothermal-isobaric ensemble: mean energy and mean volume are measured.

    Args:
        energies: of the states, shape (states,).
        volumes: of the states, shape (states,).
        mean_energy: in the unit of `energies`.
        mean_volume: in the unit of `volumes`.
        degeneracies: microstates of each state, such as V^N; 1 by default.

    Returns:
        The ensemble.

    Raises:
        InfeasibleError: a ValueError: no distribution on the states has the means.
        ValueError: shapes that don't fit, or NaN.

    Examples:
        >>> cell = isothermal_isobaric([1.0, 0.0, 0.2], [1.0, 2.0, 3.0], 0.3, 2.0)
        >>> cell.p.round(6).tolist()
        [0.25, 0.5, 0.25]

    Source: Rogers et al. 2011 (arXiv 1105.5662).
    """
    features = {"energy": energies, "volume": volumes}
    return Ensemble("isothermal-isobaric", _model(degeneracies, features, mean_energy, mean_volume))


def _model(
    degeneracies: ArrayLike | None, features: dict[str, ArrayLike], *averages: float
) -> MaxEntModel:
    columns = {name: np.asarray(values, dtype=np.float64) for name, values in features.items()}
    prior = None if degeneracies is None else np.asarray(degeneracies, dtype=np.float64)
    return MaxEnt(columns, prior).fit(averages)
