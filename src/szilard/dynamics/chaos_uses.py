"""What chaotic systems are good for beside forecasting: sampling, pretraining, finding equations.

Importance sampling: a forecaster's errors along a trajectory say where to integrate anew, close by.
Surrogates: an autoencoder that has learned the shapes of all systems, resampled to the period of some
other data, gives features of those data. Symbolic regression: sparse combinations of candidate terms
that give the velocity, scored against the true one.

Gilpin, NeurIPS Datasets and Benchmarks (2021), arXiv:2110.05266, section on applications.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, TransformerMixin

from szilard.dynamics.chaos_systems import ChaoticSystem, chaotic_system, trajectory

SMOOTHED, ORDER, POWER = (
    51,
    3,
    4,
)  # Savitzky-Golay window and polynomial; what the error is raised to
PERTURBED = 0.005


def importance_weights(
    errors: Float[np.ndarray, " time"],
    *,
    window: int = SMOOTHED,
    order: int = ORDER,
    power: float = POWER,
) -> Float[np.ndarray, " time"]:
    """Probability with which a point is worth sampling around: its smoothed squared error, sharpened.

    Args:
        errors: squared one-step errors of a forecaster along a trajectory.
        window: points smoothed over (Savitzky-Golay), odd.
        order: of the polynomial.
        power: the smoothed error is raised to it.

    Returns:
        Probabilities, even where no error is left.

    Raises:
        ValueError: errors that are negative or NaN, or fewer than the window.

    Examples:
        >>> errors = np.where(np.arange(200) // 20 == 4, 1.0, 0.01)
        >>> 80 <= int(importance_weights(errors).argmax()) < 100
        True

    Source: Gilpin (2021), section on importance sampling.
    """
    from scipy.signal import savgol_filter

    if not (np.isfinite(errors).all() and (errors >= 0).all()):
        raise ValueError("errors: got NaN or negative values, must be squared errors")
    if not order < window <= len(errors) or window % 2 == 0:
        raise ValueError(
            f"window: got {window}, must be odd, above {order} and at most {len(errors)}"
        )
    smooth = np.maximum(savgol_filter(errors, window, order), 0.0)
    if not smooth.any():
        return np.full(len(errors), 1 / len(errors))
    sharp = (smooth / smooth.max()) ** power
    return np.asarray(sharp / sharp.sum())


def nearby_trajectories(
    system: str | ChaoticSystem,
    states: Float[np.ndarray, "starts coordinates"],
    n: int = 150,
    points_per_period: float = 15,
    *,
    rng: np.random.Generator,
    size: float = PERTURBED,
    settle: int = 2,
) -> Float[np.ndarray, "starts time coordinates"]:
    """Trajectories from close to given states: new data where a forecaster is wrong.

    Args:
        system: the flow, or its name.
        states: raw states (`trajectory(..., bounded=False)`).
        n: points of each.
        points_per_period: samples a period.
        rng: draws the perturbations, uniform on +-size in every coordinate.
        size: in the flow's unit.
        settle: points left out first.

    Raises:
        ValueError: a delay equation, or states of another shape.

    Source: Gilpin (2021), section on importance sampling.
    """
    system = chaotic_system(system) if isinstance(system, str) else system
    if system.delay:
        raise ValueError(f"system: got {system.name}, a delay equation, whose state is a function")
    if states.ndim != 2 or states.shape[1] != system.dimension:
        raise ValueError(f"states: got {states.shape}, must be (starts, {system.dimension})")
    if size < 0 or settle < 0:
        raise ValueError(f"size, settle: got {size}, {settle}, must not be negative")
    moved = states + rng.uniform(-size, size, states.shape)
    found = [trajectory(system, n + settle, points_per_period, start=start) for start in moved]
    return np.stack([one.x[settle:] for one in found])


def dominant_period(x: Float[np.ndarray, "*batch time"]) -> float:
    """Points of one cycle of the strongest frequency, the median over series.

    Raises:
        ValueError: NaN, fewer than 8 points, or series that are all constant.

    Examples:
        >>> dominant_period(np.sin(2 * np.pi * np.arange(200) / 20))
        20.0
    """
    if x.shape[-1] < 8 or not np.isfinite(x).all():
        raise ValueError(f"x: got {x.shape[-1]} points, must be at least 8, all finite")
    rows = x.reshape(-1, x.shape[-1])
    rows = rows[rows.std(-1) > 0]
    if not len(rows):
        raise ValueError("x: got constant series, must vary")
    power = np.abs(np.fft.rfft(rows - rows.mean(-1, keepdims=True))) ** 2
    return float(np.median(x.shape[-1] / (1 + power[:, 1:].argmax(-1))))


class SurrogateFeatures(TransformerMixin, BaseEstimator):
    """Features of time series from an autoencoder that has only seen chaotic systems.

    `fit` looks at the data for their dominant period alone: the surrogates are resampled to it, cut
    into windows as long as the data (or `length`), and learned. `transform` standardises every series
    and gives the code's mean and spread over its windows; classify those with anything.

    Args:
        surrogates: (systems, time), 15 points a period and more: first coordinates of trajectories.
            Another source of shapes takes their place as it is, for comparison.
        points_per_period: of the surrogates.
        features: width of the code; `transform` returns twice as many columns.
        length: longest window.
        windows: drawn from the surrogates for training.
        epochs: passes over them.
        random_state: seed.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> waves = np.sin(np.arange(600) * rng.uniform(0.3, 0.6, (20, 1)))
        >>> data = np.sin(np.arange(100) * rng.uniform(0.1, 0.2, (6, 1)))
        >>> SurrogateFeatures(waves, features=4, windows=200, epochs=2).fit_transform(data).shape
        (6, 8)

    Source: Gilpin (2021), section on transfer learning.
    """

    def __init__(
        self,
        surrogates: np.ndarray,
        points_per_period: float = 15,
        features: int = 32,
        length: int = 100,
        windows: int = 10_000,
        epochs: int = 200,
        random_state: int = 0,
    ) -> None:
        self.surrogates = surrogates
        self.points_per_period = points_per_period
        self.features = features
        self.length = length
        self.windows = windows
        self.epochs = epochs
        self.random_state = random_state

    def fit(self, X: Float[np.ndarray, "series time"], y: Any = None) -> SurrogateFeatures:
        """Trains the autoencoder on surrogates of the data's dominant period.

        Raises:
            ValueError: data or surrogates with NaN or of other shapes.
        """
        import torch

        if X.ndim != 2 or not np.isfinite(X).all():
            raise ValueError(f"X: got {X.shape}, must be (series, time), all finite")
        surrogates = np.asarray(self.surrogates, dtype=float)
        if surrogates.ndim != 2 or not np.isfinite(surrogates).all():
            raise ValueError(
                f"surrogates: got {surrogates.shape}, must be (systems, time), all finite"
            )
        self.length_ = min(self.length, X.shape[1])
        self.period_ = dominant_period(X)
        rng = np.random.default_rng(self.random_state)
        drawn = torch.from_numpy(self._drawn(surrogates, rng))
        generator = torch.Generator().manual_seed(self.random_state)
        width = 4 * self.features
        self.encoder_ = _dense([self.length_, width, self.features], generator)
        decoder = _dense([self.features, width, self.length_], generator)
        optimiser = torch.optim.Adam([*self.encoder_.parameters(), *decoder.parameters()], lr=1e-3)
        batch = min(256, len(drawn))
        for _ in range(self.epochs):
            order = torch.randperm(len(drawn), generator=generator)
            for rows in order[: len(drawn) // batch * batch].reshape(-1, batch):
                x = drawn[rows]
                loss = ((decoder(self.encoder_(x)) - x) ** 2).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return self

    def transform(
        self, X: Float[np.ndarray, "series time"]
    ) -> Float[np.ndarray, "series features"]:
        """Mean and standard deviation of the code over every series' windows.

        Raises:
            ValueError: series shorter than those of `fit`, or with NaN.
        """
        import torch

        if X.ndim != 2 or X.shape[1] < self.length_ or not np.isfinite(X).all():
            raise ValueError(
                f"X: got {X.shape}, must be (series, time) of {self.length_} points or more, finite"
            )
        stride = max(1, self.length_ // 4)
        cut = np.lib.stride_tricks.sliding_window_view(X, self.length_, axis=1)[:, ::stride]
        with torch.no_grad():
            codes = self.encoder_(torch.from_numpy(_standardised(cut))).numpy()
        return np.concatenate([codes.mean(1), codes.std(1)], -1)

    def _drawn(self, surrogates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Windows at random, in which a period has as many points as in the data."""
        span = self.length_ * self.points_per_period / self.period_
        span = min(span, surrogates.shape[1] - 1)
        place = np.linspace(0, span, self.length_)
        starts = rng.uniform(0, surrogates.shape[1] - 1 - span, self.windows)
        rows = rng.integers(len(surrogates), size=self.windows)
        at = starts[:, None] + place
        i = np.minimum(at.astype(int), surrogates.shape[1] - 2)
        u = at - i
        row = rows[:, None]
        found = (1 - u) * surrogates[row, i] + u * surrogates[row, i + 1]
        return _standardised(found)


def _standardised(x: np.ndarray) -> np.ndarray:
    spread = x.std(-1, keepdims=True)
    scaled = (x - x.mean(-1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    return np.ascontiguousarray(scaled, dtype=np.float32)


def _dense(widths: Sequence[int], generator: Any) -> Any:
    import torch

    layers: list[Any] = []
    for a, b in pairwise(widths):
        layer = torch.nn.Linear(a, b)
        with torch.no_grad():
            for part in layer.parameters():
                part.uniform_(-1 / math.sqrt(a), 1 / math.sqrt(a), generator=generator)
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


class SparseFlow:
    """Equations of motion from a trajectory: few candidate terms that give its velocity (SINDy).

    Coordinates are standardised first, since sparsity depends on their units.

    Args:
        library: "polynomial" (up to `degree`) or "fourier" (sines and cosines of 1 to `degree` times
            each coordinate).
        degree: of the candidates.
        threshold: coefficients below it are dropped; those of standardised coordinates, where the
            fastest change is one a unit of time.

    Examples:
        >>> found = trajectory("Lorenz", 600, 100)
        >>> flow = SparseFlow().fit(found.x, found.t)
        >>> system = chaotic_system("Lorenz")
        >>> bool(flow.error(system, trajectory("Lorenz", 50, 15, discard=20).x) < 0.05)
        True

    Source: Brunton, Proctor & Kutz, PNAS 113, 3932 (2016); Gilpin (2021), section on symbolic regression.
    """

    def __init__(
        self,
        library: Literal["polynomial", "fourier"] = "polynomial",
        degree: int = 2,
        threshold: float = 0.02,
    ) -> None:
        if library not in ("polynomial", "fourier"):
            raise ValueError(f"library: got {library!r}, must be 'polynomial' or 'fourier'")
        if degree < 1:
            raise ValueError(f"degree: got {degree}, must be at least 1")
        if not threshold >= 0:
            raise ValueError(f"threshold: got {threshold}, must not be negative")
        self.library = library
        self.degree = degree
        self.threshold = threshold

    def fit(
        self, x: Float[np.ndarray, "time coordinates"], t: Float[np.ndarray, " time"]
    ) -> SparseFlow:
        """Fits velocities, central differences of fourth order, by sparse regression.

        Raises:
            ValueError: NaN, fewer than 10 points, or times that are not uniform and rising.
        """
        if len(x) < 10 or len(x) != len(t) or not np.isfinite(x).all():
            raise ValueError(f"x: got {len(x)} points at {len(t)} times, must be 10, all finite")
        steps = np.diff(t)
        if not (steps > 0).all() or np.ptp(steps) > 1e-6 * steps.mean():
            raise ValueError("t: must rise in equal steps")
        self._mean, spread = x.mean(0), x.std(0)
        self._spread = np.where(spread > 0, spread, 1.0)
        scaled = (x - self._mean) / self._spread
        velocity = (8 * (scaled[3:-1] - scaled[1:-3]) - (scaled[4:] - scaled[:-4])) / (
            12 * steps.mean()
        )
        # In the unit of the fastest change no coefficient is small for the sake of a slow clock.
        self._rate = float(np.abs(velocity).max()) or 1.0
        terms = _Candidates(self.library, self.degree).transform(scaled[2:-2])
        self._coefficients = _thresholded(terms, velocity / self._rate, self.threshold)
        return self

    @property
    def coefficients(self) -> Float[np.ndarray, "coordinates terms"]:
        """Of the standardised coordinates' velocities."""
        return self._coefficients * self._rate

    def velocity(
        self, x: Float[np.ndarray, "time coordinates"]
    ) -> Float[np.ndarray, "time coordinates"]:
        """dx/dt by the equations found."""
        terms = _Candidates(self.library, self.degree).transform((x - self._mean) / self._spread)
        return np.asarray(terms @ self.coefficients.T) * self._spread

    def error(
        self,
        system: ChaoticSystem,
        x: Float[np.ndarray, "points coordinates"],
        t: Float[np.ndarray, " points"] | None = None,
    ) -> float:
        """Root mean square of the velocity's error over that of the true velocity.

        Args:
            system: knows the truth; a flow.
            x: raw states at which to compare.
            t: their times, for equations that name the time.

        Raises:
            ValueError: a delay equation, or states of another shape.
        """
        times = np.zeros(len(x)) if t is None else t
        true = np.stack([system.velocity(*at) for at in zip(x, times.tolist(), strict=True)])
        wrong = (self.velocity(x) - true) / self._spread
        return float(np.sqrt((wrong**2).mean() / ((true / self._spread) ** 2).mean()))


def _thresholded(terms: np.ndarray, velocity: np.ndarray, threshold: float) -> np.ndarray:
    """Least squares on the terms whose coefficients stay above a threshold, (coordinates, terms)."""
    found = np.zeros((velocity.shape[1], terms.shape[1]))
    for row, target in zip(found, velocity.T, strict=True):
        kept = np.ones(len(row), dtype=bool)
        for _ in range(len(row)):
            row[:] = 0
            row[kept] = np.linalg.lstsq(terms[:, kept], target, rcond=None)[0]
            above = np.abs(row) >= threshold
            if not above.any() or (above == kept).all():
                break
            kept = above
        row[np.abs(row) < threshold] = 0
    return found


class _Candidates:
    """Values of a library's terms."""

    def __init__(self, library: str, degree: int) -> None:
        self.library, self.degree = library, degree

    def transform(self, x: np.ndarray) -> np.ndarray:
        if self.library == "polynomial":
            from sklearn.preprocessing import PolynomialFeatures

            return np.asarray(PolynomialFeatures(self.degree).fit_transform(x))
        waves = [f(k * x) for k in range(1, self.degree + 1) for f in (np.sin, np.cos)]
        return np.concatenate([np.ones((len(x), 1)), *waves], -1)


def chosen_starts(
    weights: Float[np.ndarray, " time"], count: int, rng: np.random.Generator
) -> Int[np.ndarray, " count"]:
    """Places drawn by their weights, each once.

    Raises:
        ValueError: weights that are no probabilities, or more places than have any.
    """
    if not (np.isfinite(weights).all() and (weights >= 0).all() and abs(weights.sum() - 1) < 1e-6):
        raise ValueError("weights: must be probabilities")
    if not 1 <= count <= (weights > 0).sum():
        raise ValueError(f"count: got {count}, must be from 1 to {(weights > 0).sum()}")
    return rng.choice(len(weights), count, replace=False, p=weights)
