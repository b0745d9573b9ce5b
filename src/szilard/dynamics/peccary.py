"""PECCARY: a series' place in the entropy-complexity plane, sampled on its own clock.

1. Natural timescale t_nat of the series (mean crossings, or spacing of its extrema).
2. Delay l such that a pattern spans t_pat = l dt (n-1) = 0.4 t_nat.
3. Ordinal patterns of n = 5 points at that delay; their entropy H and complexity C.
4. Region of the plane: regular (periodic above the chord), complex or stochastic.

Hyman, Daniel & Schaffner, ApJ 987, 195 (2025), arXiv:2407.11970. The paper's sampling size n is
`dimension` here and its sampling interval l is `delay`, the names of the field.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real, Shaped
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin
from torch import Tensor

from szilard.measures.ordinal import (
    Array,
    Ties,
    entropy_complexity_bounds,
    ordinal_statistics,
)

Clock = Literal["ncross", "minavg", "maxavg"]
CLOCKS: tuple[Clock, ...] = ("ncross", "minavg", "maxavg")
MIN_PERIODS = 1.5  # natural periods below which a series gets no label
MAX_DIMENSION = 8
STEP_TOLERANCE = 1e-6  # relative spread of the time steps that still counts as uniform

TABLE = np.dtype(
    [
        ("H", np.float64),
        ("C", np.float64),
        ("delay", np.int64),
        ("t_nat", np.float64),
        ("n_patterns", np.int64),
        ("n_forbidden", np.int64),
        ("region", "U12"),
        ("periodic", np.bool_),
    ]
)
"""Columns of `Peccary.transform`; `pandas.DataFrame(table)` takes them as they are."""


class UndersampledWarning(UserWarning):
    """Too few windows for dimension! patterns: H is biased low and C high."""


class HCCurves(NamedTuple):
    """H(l) and C(l) over delays; the last axis is the delay."""

    delay: Int[np.ndarray, " delays"]
    entropy: Float[Array, "*batch delays"]
    complexity: Float[Array, "*batch delays"]


class Peccary(TransformerMixin, BaseEstimator):
    """Labels series regular, complex or stochastic by their ordinal patterns at their own timescale.

    Amplitude and any increasing rescaling of the values don't matter. A single coordinate of a weakly
    chaotic orbit is only slightly richer than that of a regular one: near the boundary trust H more
    than the label.

    Args:
        dimension: points of a pattern, 2 to 8 (the paper's sampling size n). Below 4 the regular
            region is the whole plane.
        t_pat_ratio: pattern time over natural timescale; the paper's window is 0.3 to 0.5.
        t_nat: how the natural timescale is estimated (`natural_timescale`), or its value in the unit
            of `dt`. "ncross" reads a two-lobed signal too slow; there, use "maxavg".
        complex_threshold: relative height between the plane's two bounding curves from which a
            series beyond the regular region is complex, not stochastic. The paper gives no number;
            0.5 is a reconstruction.
        dt: time step, in any unit.
        ties: what ranks equal values: "stable" (by time) or "dither" (at random, for quantised data).
        random_state: seed of that randomness.

    `fit` learns nothing. `transform` returns a structured array with a row a series (`TABLE`); the
    region alone is `predict`.

    Examples:
        >>> t = np.arange(2000) / 200
        >>> table = Peccary(dt=1 / 200).fit_transform(np.sin(2 * np.pi * t)[None])
        >>> str(table["region"][0]), bool(table["periodic"][0]), int(table["delay"][0])
        ('regular', True, 21)

    Source: Hyman, Daniel & Schaffner, ApJ 987, 195 (2025), arXiv:2407.11970.
    """

    def __init__(
        self,
        dimension: int = 5,
        t_pat_ratio: float = 0.4,
        t_nat: Clock | float = "ncross",
        complex_threshold: float = 0.5,
        dt: float = 1.0,
        ties: Ties = "stable",
        random_state: int = 0,
    ) -> None:
        self.dimension = dimension
        self.t_pat_ratio = t_pat_ratio
        self.t_nat = t_nat
        self.complex_threshold = complex_threshold
        self.dt = dt
        self.ties = ties
        self.random_state = random_state

    def fit(self, X: Any, y: None = None, *, times: Any = None) -> Peccary:
        """Checks parameters and series; learns nothing.

        Args:
            X: (n_series, T) array or tensor, one series, or a list of series of different lengths.
            y: ignored.
            times: (T,) times of all series, or a list with one vector a series, instead of `dt`.

        Raises:
            ValueError: an impossible parameter; NaN, empty, constant or too short series; times that
                are not uniform.
        """
        self._check_parameters()
        for _ in self._blocks(X, times):
            pass
        return self

    def transform(self, X: Any, *, times: Any = None) -> Any:
        """Steps 1 to 4 for every series.

        Args:
            X: (n_series, T) array or tensor (any device), one series, or a list of series of
                different lengths. Orbits come as their arrays: `orbit.x(t)` of galpy,
                `orbit.pos.x.value.T` of gala.
            times: (T,) times of all series, or a list with one vector a series, instead of `dt`.

        Returns:
            A structured array with a row a series (a DataFrame after
            `set_output(transform="pandas")`): H, C, delay, t_nat, n_patterns (distinct ones),
            n_forbidden (never seen), region and periodic. Region is "undetermined" where the series
            is shorter than 1.5 t_nat. Where it has fewer than two extrema to space ("minavg", "maxavg") t_nat is infinite, and
            H and C, which need a delay, are NaN.

        Raises:
            ValueError: as `fit`.

        Warns:
            UndersampledWarning: fewer than 5 n! windows in series richer than a regular one.
        """
        self._check_parameters()
        blocks = list(self._blocks(X, times))
        table = np.zeros(sum(len(rows) for rows, _, _ in blocks), dtype=TABLE)
        rng = np.random.default_rng(self.random_state)
        undersampled = 0
        patterns = math.factorial(self.dimension)
        h_regular = periodic_bounds(self.dimension)[1]
        for rows, series, dt in blocks:
            t_nat = self._timescale(series, dt)
            known = np.isfinite(t_nat)
            delay = np.zeros(len(rows), dtype=np.int64)
            delay[known] = delay_of_pattern_time(
                self.t_pat_ratio * t_nat[known], dt, self.dimension
            )
            h, c = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
            distinct = np.zeros(len(rows), dtype=np.int64)
            for step in np.unique(delay[known]).tolist():
                chosen = np.flatnonzero(known & (delay == step))
                found = ordinal_statistics(
                    series if len(chosen) == len(rows) else series[chosen],
                    self.dimension,
                    step,
                    ties=self.ties,
                    rng=rng,
                )
                h[chosen], c[chosen], distinct[chosen] = (_numpy(part) for part in found)
                windows = series.shape[-1] - step * (self.dimension - 1)
                if windows < 5 * patterns:
                    undersampled += int((h[chosen] > h_regular).sum())
            region, periodic = np.full(len(rows), "undetermined", dtype="U12"), h < -1
            region[known], periodic[known] = hc_region(
                h[known], c[known], self.dimension, self.complex_threshold
            )
            short = (series.shape[-1] - 1) * dt < MIN_PERIODS * t_nat
            region[short], periodic[short] = "undetermined", False
            for name, column in {
                "H": h,
                "C": c,
                "delay": delay,
                "t_nat": t_nat,
                "n_patterns": distinct,
                "n_forbidden": np.where(known, patterns - distinct, 0),
                "region": region,
                "periodic": periodic,
            }.items():
                table[name][rows] = column
        if undersampled:
            warnings.warn(
                f"{undersampled} noisy series have fewer than 5 x {self.dimension}! = {5 * patterns} "
                "windows: their H is biased low and their C high",
                UndersampledWarning,
                stacklevel=2,
            )
        return table

    def fit_transform(self, X: Any, y: None = None, *, times: Any = None) -> Any:
        """`transform`, which checks all that `fit` does."""
        return self.transform(X, times=times)

    def predict(self, X: Any, *, times: Any = None) -> Shaped[np.ndarray, " series"]:
        """Region of every series: "regular", "complex", "stochastic" or "undetermined"."""
        return np.asarray(self.transform(X, times=times)["region"], dtype="U12")

    def get_feature_names_out(self, input_features: object = None) -> np.ndarray:
        return np.array(TABLE.names, dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def _check_parameters(self) -> None:
        _check_dimension(self.dimension)
        for name in ("t_pat_ratio", "dt"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}: got {value}, must be positive and finite")
        if not 0 <= self.complex_threshold <= 1:
            raise ValueError(f"complex_threshold: got {self.complex_threshold}, must be in [0, 1]")
        if isinstance(self.t_nat, str):
            _check_clock(self.t_nat)
        elif not (self.t_nat > 0 and math.isfinite(self.t_nat)):
            raise ValueError(f"t_nat: got {self.t_nat}, must be positive or one of {CLOCKS}")

    def _timescale(self, series: Array, dt: float) -> np.ndarray:
        if isinstance(self.t_nat, str):
            return _numpy(natural_timescale(series, dt, self.t_nat))
        return np.full(len(series), float(self.t_nat))

    def _blocks(self, X: Any, times: Any) -> Iterator[tuple[np.ndarray, Array, float]]:
        """Series of equal length and step: their positions in X, themselves as (series, T), dt."""
        if isinstance(X, list | tuple) and any(np.ndim(x) for x in X):
            series = [_values(x, f"X[{i}]") for i, x in enumerate(X)]
            for i, x in enumerate(series):
                if x.ndim != 1:
                    raise ValueError(f"X[{i}]: got {x.ndim} axes, a list holds one series an item")
            steps = [self.dt] * len(series) if times is None else _steps(times, series)
            alike: dict[tuple[int, float], list[int]] = {}
            for i, (x, dt) in enumerate(zip(series, steps, strict=True)):
                alike.setdefault((len(x), dt), []).append(i)
            for (_, dt), rows in alike.items():
                block = np.stack([series[i] for i in rows])
                _check_series(block, self.dimension, rows)
                yield np.array(rows), block, dt
            return
        values: Array = X if isinstance(X, Tensor) else _values(X, "X")
        if values.ndim not in (1, 2):
            raise ValueError(f"X: got {values.ndim} axes, must be (n_series, T) or one series")
        every = values[None] if values.ndim == 1 else values
        dt = self.dt if times is None else uniform_step(times)
        if times is not None and np.size(times) != every.shape[-1]:
            raise ValueError(f"times: got {np.size(times)}, but series of {every.shape[-1]} points")
        _check_series(every, self.dimension, range(len(every)))
        yield np.arange(len(every)), every, dt


def natural_timescale(
    x: Real[Array, "*batch time"], dt: float = 1.0, method: Clock = "ncross"
) -> Float[Array, "*batch"]:
    """Typical time of one oscillation of a series.

    Args:
        x: series; the last axis is time.
        dt: time step.
        method: "ncross", twice the duration over the number of crossings of the mean; "minavg" or
            "maxavg", the mean spacing of local minima or maxima.

    Returns:
        The timescale in the unit of `dt`; infinite where a series has fewer than two extrema. The
        duration is that from first to last sample, wherever the clock starts.

    Raises:
        ValueError: unknown method, dt not positive, NaN or infinite values, a constant series.

    Examples:
        >>> x = np.sin(2 * np.pi * np.arange(1000) / 50)
        >>> round(float(natural_timescale(x, method="maxavg")))
        50

    Source: Hyman, Daniel & Schaffner (2025), section on natural timescales.
    """
    _check_clock(method)
    if not (dt > 0 and math.isfinite(dt)):
        raise ValueError(f"dt: got {dt}, must be positive and finite")
    rows: Any = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    _check_series(rows, 2, range(len(rows)))
    if method == "ncross":
        # The mean of float32 values far from zero needs more digits than they have.
        mean = rows.double().mean(-1) if isinstance(rows, Tensor) else rows.mean(-1, dtype=float)
        above = rows > mean[:, None]
        crossings = (above[:, 1:] ^ above[:, :-1]).sum(-1)
        duration = (x.shape[-1] - 1) * dt
        # The quotient of integers by torch is a float32.
        halves = crossings.double() if isinstance(crossings, Tensor) else crossings
        scale = 2 * duration / halves
    else:
        middle, before, after = rows[:, 1:-1], rows[:, :-2], rows[:, 2:]
        extreme = (
            (middle < before) & (middle <= after)
            if method == "minavg"
            else (middle > before) & (middle >= after)
        )
        scale = _mean_spacing(extreme) * dt
    return scale.reshape(x.shape[:-1])


def delay_of_pattern_time(
    t_pat: Float[np.ndarray, "*batch"] | float, dt: float = 1.0, dimension: int = 5
) -> Int[np.ndarray, "*batch"]:
    """Delay whose patterns span about t_pat: round(t_pat / (dt (dimension - 1))), at least 1.

    Args:
        t_pat: time from the first to the last point of a pattern, in the unit of `dt`.
        dt: time step.
        dimension: points of a pattern.

    Returns:
        The delay in steps.

    Raises:
        ValueError: a time that is not positive and finite, or a dimension out of range.

    Examples:
        >>> int(delay_of_pattern_time(0.4, dt=0.005))
        20

    Source: Hyman, Daniel & Schaffner (2025).
    """
    _check_dimension(dimension)
    spans = np.asarray(t_pat, dtype=np.float64)
    if not (dt > 0 and math.isfinite(dt)):
        raise ValueError(f"dt: got {dt}, must be positive and finite")
    if not (np.isfinite(spans) & (spans > 0)).all():
        raise ValueError(f"t_pat: got {t_pat}, must be positive and finite")
    return np.asarray(np.maximum(np.rint(spans / (dt * (dimension - 1))), 1), dtype=np.int64)


def periodic_bounds(dimension: int = 5) -> tuple[float, float]:
    """Least and greatest H of a cycle with one maximum and one minimum.

    It makes at least the two monotone patterns, and at most 2(2n-3): the n points of a pattern have
    2n-3 distinct midpoints of pairs, and the pattern changes as each crosses an extremum.

    Args:
        dimension: n, points of a pattern, 2 to 8.

    Returns:
        ln 2 / ln n! and ln(2(2n-3)) / ln n!.

    Raises:
        ValueError: dimension out of range.

    Examples:
        >>> [round(h, 4) for h in periodic_bounds(5)]
        [0.1448, 0.5512]

    Source: Hyman, Daniel & Schaffner (2025).
    """
    _check_dimension(dimension)
    most = math.log(math.factorial(dimension))
    return math.log(2) / most, math.log(2 * (2 * dimension - 3)) / most


def hc_region(
    entropy: Float[np.ndarray, "*batch"],
    complexity: Float[np.ndarray, "*batch"],
    dimension: int = 5,
    complex_threshold: float = 0.5,
) -> tuple[Shaped[np.ndarray, "*batch"], Bool[np.ndarray, "*batch"]]:
    """Region of points of the entropy-complexity plane.

    Regular up to the greatest H of a one-maximum cycle, and periodic there above the chord of the
    upper bound between that cycle's extremes. Beyond, r = (C - C_lo(H)) / (C_hi(H) - C_lo(H)) splits
    complex (r >= complex_threshold) from stochastic.

    Args:
        entropy: H in [0, 1].
        complexity: C.
        dimension: points of a pattern, 2 to 8.
        complex_threshold: the split; a reconstruction, since the paper only annotates the plane.

    Returns:
        "regular", "complex" or "stochastic" for every point, and whether it is periodic.

    Raises:
        ValueError: H outside [0, 1] or an impossible dimension or threshold.

    Examples:
        >>> hc_region(np.array([0.51, 0.75, 0.99]), np.array([0.392, 0.38, 0.013]))[0].tolist()
        ['regular', 'complex', 'stochastic']

    Source: Hyman, Daniel & Schaffner (2025).
    """
    if not 0 <= complex_threshold <= 1:
        raise ValueError(f"complex_threshold: got {complex_threshold}, must be in [0, 1]")
    h_min, h_max = periodic_bounds(dimension)
    patterns = math.factorial(dimension)
    h, c = np.asarray(entropy, dtype=np.float64), np.asarray(complexity, dtype=np.float64)
    low, high = entropy_complexity_bounds(h, patterns)
    room = high - low
    # At H = 1 the bounds meet and there is nothing but noise.
    height = np.where(room > 0, (c - low) / np.where(room > 0, room, 1), 0)
    regular = h <= h_max * (1 + 1e-12)  # rounding must not push a cycle's own limit over it
    ends = entropy_complexity_bounds(np.array([h_min, h_max]), patterns)[1]
    chord = np.interp(h, [h_min, h_max], ends)
    region = np.where(
        regular, "regular", np.where(height >= complex_threshold, "complex", "stochastic")
    )
    periodic = regular & (h >= h_min) & (c >= chord - 1e-12)
    return region.astype("U12"), np.asarray(periodic)


def hc_curves(
    x: Real[Array, "*batch time"],
    delays: Sequence[int] | Int[np.ndarray, " delays"] = range(1, 100),
    dimension: int = 5,
) -> HCCurves:
    """H(l) and C(l): where a series' structure shows, scale by scale.

    Args:
        x: series; the last axis is time.
        delays: delays in steps.
        dimension: points of a pattern, 2 to 8.

    Returns:
        The delays, H and C; the last axis is the delay.

    Raises:
        ValueError: NaN or infinite values, a series shorter than the longest window, no delays.

    Examples:
        >>> x = np.sin(2 * np.pi * np.arange(2000) / 200)
        >>> hc_curves(x, [1, 20]).entropy.round(2).tolist()
        [0.18, 0.52]

    Source: Hyman, Daniel & Schaffner (2025).
    """
    _check_dimension(dimension)
    steps = [int(delay) for delay in delays]
    if not steps:
        raise ValueError("delays: got none, must hold at least one")
    found = [ordinal_statistics(x, dimension, step) for step in steps]
    stack: Any = torch.stack if isinstance(x, Tensor) else np.stack
    return HCCurves(
        np.array(steps),
        stack([point.entropy for point in found], -1),
        stack([point.complexity for point in found], -1),
    )


def uniform_step(times: ArrayLike) -> float:
    """Step of uniform times.

    Args:
        times: increasing times, one axis.

    Returns:
        The mean step.

    Raises:
        ValueError: fewer than two times, NaN, or steps that spread by more than 1e-6 of their mean.

    Examples:
        >>> uniform_step([0.0, 0.5, 1.0])
        0.5
    """
    t = np.asarray(times, dtype=np.float64)
    if t.ndim != 1 or t.size < 2 or not np.isfinite(t).all():
        raise ValueError(
            f"times: got shape {t.shape}, must be at least two finite times on one axis"
        )
    steps = np.diff(t)
    mean = (t[-1] - t[0]) / (t.size - 1)
    if not (mean > 0 and np.ptp(steps) <= STEP_TOLERANCE * mean):
        raise ValueError(
            f"times: steps run from {steps.min():.6g} to {steps.max():.6g}, must be positive and "
            "uniform to 1e-6; interpolate the series onto a uniform clock first"
        )
    return float(mean)


def _mean_spacing(marks: Array) -> Array:
    """Mean distance between the marks of each row, infinite where there are fewer than two."""
    count = marks.sum(-1)
    last = marks.shape[-1] - 1
    if isinstance(marks, Tensor):
        first = marks.int().argmax(-1)
        final = last - marks.flip(-1).int().argmax(-1)
        return torch.where(count > 1, (final - first) / (count - 1).clip(1), torch.inf).double()
    first, final = marks.argmax(-1), last - marks[:, ::-1].argmax(-1)
    return np.where(count > 1, (final - first) / np.maximum(count - 1, 1), np.inf)


def _values(x: Any, name: str) -> np.ndarray:
    values = np.asarray(x)
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{name}: got dtype {values.dtype}, must be real numbers")
    return values


def _numpy(x: Array) -> np.ndarray:
    return x.cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def _steps(times: Any, series: list[np.ndarray]) -> list[float]:
    if len(times) != len(series):
        raise ValueError(f"times: got {len(times)} vectors for {len(series)} series")
    for i, (t, x) in enumerate(zip(times, series, strict=True)):
        if np.size(t) != len(x):
            raise ValueError(f"times[{i}]: got {np.size(t)} times for {len(x)} points")
    return [uniform_step(t) for t in times]


def _check_series(block: Any, dimension: int, names: Sequence[int]) -> None:
    if len(block) == 0 or block.shape[-1] == 0:
        raise ValueError(f"X: got shape {tuple(block.shape)}, there is no series in it")
    if block.shape[-1] < dimension:
        raise ValueError(
            f"series {names[0]}: got {block.shape[-1]} points, a pattern has {dimension}"
        )
    finite = _numpy((torch if isinstance(block, Tensor) else np).isfinite(block).all(-1))
    constant = _numpy((block == block[:, :1]).all(-1))
    if not finite.all():
        raise ValueError(f"series {names[int(np.argmin(finite))]}: holds NaN or infinite values")
    if constant.any():
        raise ValueError(
            f"series {names[int(np.argmax(constant))]}: is constant, zero variance has no timescale"
        )


def _check_dimension(dimension: int) -> None:
    if not 2 <= dimension <= MAX_DIMENSION:
        raise ValueError(f"dimension: got {dimension}, must be 2 to {MAX_DIMENSION}")


def _check_clock(method: str) -> None:
    if method not in CLOCKS:
        raise ValueError(f"t_nat: got {method!r}, must be a positive number or one of {CLOCKS}")
