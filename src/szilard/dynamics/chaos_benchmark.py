"""Forecasting tests on chaotic systems whose unpredictability is measured.

1. Every system is sampled on its own clock: `granularity` points a period, 12 periods a series. A
   tuning series and a test series come from the same attractor, apart by a gap.
2. Where a forecaster comes in several settings, each is fitted to the first 5/6 of the tuning series,
   and the one with the least sMAPE on the last 1/6 is kept.
3. It is refitted to the first 5/6 of the test series and forecasts the last 1/6 without seeing more.
4. Scores, their rank correlation with the measured invariants over systems, and ranks of the models.

Gilpin, NeurIPS Datasets and Benchmarks (2021), arXiv:2110.05266. All points of the forecast are scored.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from szilard.dynamics.chaos_systems import (
    POINTS_PER_PERIOD,
    chaotic_systems,
    check_name,
    integrate_all,
    published_annotations,
)

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FITTED, OF = 5, 6  # of six parts of a series, five are fitted
DISCARD, GAP = 7, 9  # periods before the tuning series, and between it and the test series
CLIP = 5.0  # standard deviations of the training part beyond which a forecast is cut
VALID = 0.4  # normalised error at which a forecast is no longer valid
BEST = "best of all"
METRICS = ("smape", "mae", "mse", "r2", "nrmse", "valid_time")
INVARIANTS = (
    "lyapunov_1",
    "lyapunov_1_per_period",
    "bits_per_period",
    "permutation_entropy",
    "multiscale_entropy",
    "correlation_dimension",
    "kaplan_yorke_dimension",
)


class Forecaster(Protocol):
    """What is benchmarked: anything that fits one series and continues it.

    With an attribute `batched = True` it is given all univariate series at once, as (systems, time),
    and returns (systems, steps).
    """

    def fit(self, y: np.ndarray) -> Any:
        """Takes a series (time,) or (time, coordinates)."""
        ...

    def predict(self, h: int) -> np.ndarray:
        """Its next h points, (h,) or (h, coordinates)."""
        ...


class Series(NamedTuple):
    """Training part, what follows it, and the system's name, period, dt, cycles and annotations."""

    train: Float[np.ndarray, "*train"]
    test: Float[np.ndarray, "*test"]
    meta: dict[str, Any]


class LagForecaster:
    """Any regressor of scikit-learn as a forecaster: the next point from the last ones, rolled out.

    Args:
        regressor: has fit(X, y) and predict(X).
        lags: points it sees.

    Examples:
        >>> from sklearn.linear_model import Ridge
        >>> wave = np.sin(2 * np.pi * np.arange(150) / 15)
        >>> forecast = LagForecaster(Ridge(1e-6), lags=5).fit(wave[:135]).predict(15)
        >>> bool(np.abs(forecast - wave[135:]).max() < 1e-3)
        True
    """

    def __init__(self, regressor: Any, lags: int = 10) -> None:
        if lags < 1:
            raise ValueError(f"lags: got {lags}, must be at least 1")
        self.regressor = regressor
        self.lags = lags

    def fit(self, y: Float[np.ndarray, "*series"]) -> LagForecaster:
        if len(y) <= self.lags + 1:
            raise ValueError(f"y: got {len(y)} points, must be more than {self.lags + 1}")
        from sklearn.base import clone

        rows = _rows(y)
        self._shape = y.shape[1:]
        self._mean, spread = rows.mean(0), rows.std(0)
        self._spread = np.where(spread > 0, spread, 1.0)
        scaled = (rows - self._mean) / self._spread
        windows = np.lib.stride_tricks.sliding_window_view(scaled, self.lags, axis=0)[:-1]
        target = scaled[self.lags :]
        self._fitted = clone(self.regressor).fit(
            windows.reshape(len(windows), -1), target[:, 0] if rows.shape[1] == 1 else target
        )
        self._last = scaled[-self.lags :]
        return self

    def predict(self, h: int) -> Float[np.ndarray, "*forecast"]:
        seen = np.concatenate([self._last, np.empty((h, self._last.shape[1]))])
        for i in range(h):
            # Coordinate by coordinate, as the windows of fit.
            x = seen[i : i + self.lags].T.reshape(1, -1)
            # What grows beyond all bounds is cut when it is scored; here it must stay a number.
            found = np.clip(np.asarray(self._fitted.predict(x)).reshape(-1), -1e6, 1e6)
            seen[i + self.lags] = found
        out = seen[self.lags :] * self._spread + self._mean
        return np.asarray(out.reshape(h, *self._shape))


class ChaosBenchmark:
    """Chaotic systems as forecasting tests: iterate it for the series, or `evaluate` forecasters.

    Args:
        systems: "all" or names out of `chaotic_systems()`.
        granularity: points a period: "coarse" (15), "fine" (100) or a number.
        periods: length of a series; 5/6 of it are fitted, 1/6 is forecast.
        task: "univariate" takes the first coordinate, "multivariate" all.
        noise: of the training part, in its standard deviations (Gaussian).
        segment: which stretch of the trajectory the series come from; another one is new data.
        cache: folder the trajectories are kept in.
        workers: processes that integrate; as many as cores by default.
        progress: shows progress bars.
        random_state: seed of the noise.

    Examples:
        >>> from sklearn.linear_model import Ridge
        >>> benchmark = ChaosBenchmark(["Lorenz", "Rossler"], workers=1)
        >>> results = benchmark.evaluate({"ridge": Ridge(1e-3)})
        >>> bool(results.smape["Rossler", "ridge"] < results.smape["Lorenz", "ridge"])
        True

    Source: Gilpin, Chaos as an interpretable benchmark for forecasting and data-driven modelling,
    NeurIPS Datasets and Benchmarks (2021), arXiv:2110.05266.
    """

    def __init__(
        self,
        systems: Literal["all"] | Sequence[str] = "all",
        granularity: Literal["coarse", "fine"] | float = 15,
        periods: int = 12,
        task: Literal["univariate", "multivariate"] = "univariate",
        noise: float = 0.0,
        *,
        segment: int = 0,
        cache: str | Path | None = None,
        workers: int | None = None,
        progress: bool = False,
        random_state: int = 0,
    ) -> None:
        if isinstance(systems, str) and systems != "all":
            raise ValueError(f"systems: got {systems!r}, must be 'all' or a list of names")
        self.systems = chaotic_systems() if isinstance(systems, str) else list(systems)
        if not self.systems:
            raise ValueError("systems: got none, must be at least one")
        for name in self.systems:
            check_name(name)
        if isinstance(granularity, str) and granularity not in POINTS_PER_PERIOD:
            raise ValueError(
                f"granularity: got {granularity!r}, must be a number or one of {tuple(POINTS_PER_PERIOD)}"
            )
        points = POINTS_PER_PERIOD[granularity] if isinstance(granularity, str) else granularity
        if not 2 <= points < math.inf:
            raise ValueError(f"granularity: got {granularity}, must be at least 2 points a period")
        if periods < OF:
            raise ValueError(f"periods: got {periods}, must be at least {OF}")
        if task not in ("univariate", "multivariate"):
            raise ValueError(f"task: got {task!r}, must be 'univariate' or 'multivariate'")
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise: got {noise}, must be finite and not negative")
        if segment < 0:
            raise ValueError(f"segment: got {segment}, must not be negative")
        self.points_per_period = points
        self.periods = periods
        self.task = task
        self.noise = noise
        self.segment = segment
        self.cache = cache
        self.workers = workers
        self.progress = progress
        self.random_state = random_state
        self._series: dict[str, list[Series]] = {}

    def __iter__(self) -> Iterator[Series]:
        yield from self.series("test")

    def __len__(self) -> int:
        return len(self.systems)

    def series(self, split: Literal["train", "test"] = "test") -> list[Series]:
        """The series of all systems: "train" to tune on, "test" to be scored on.

        Raises:
            ValueError: unknown split.
            RuntimeError: a system whose integration stops early.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split: got {split!r}, must be 'train' or 'test'")
        if not self._series:
            # A trajectory from the first segment on has the same points whichever is asked for.
            cycle = 2 * self.periods + GAP
            length = round((cycle * (self.segment + 1)) * self.points_per_period)
            trajectories = integrate_all(
                self.systems,
                length,
                self.points_per_period,
                discard=DISCARD,
                cache=self.cache,
                workers=self.workers,
                progress=self.progress,
            )
            n = round(self.periods * self.points_per_period)
            first = round(cycle * self.segment * self.points_per_period)
            second = first + round((self.periods + GAP) * self.points_per_period)
            for kind, begin in (("train", first), ("test", second)):
                self._series[kind] = [
                    self._cut(name, found.x[begin : begin + n], kind)
                    for name, found in trajectories.items()
                ]
        return self._series[split]

    def _cut(self, name: str, x: np.ndarray, kind: str) -> Series:
        y = x[:, 0] if self.task == "univariate" else x
        at = len(y) * FITTED // OF
        train = y[:at].copy()
        if self.noise:
            seed = [self.random_state, self.segment, int(kind == "test"), *name.encode()]
            drawn = np.random.default_rng(seed).normal(size=train.shape)
            train += self.noise * train.std(0) * drawn
        known = published_annotations(name)
        above = x[:, 0] > x[:, 0].mean()
        meta = {
            "system": name,
            "period": known["period"],
            "dt": known["period"] / self.points_per_period,
            "cycles_per_period": float((above[1:] ^ above[:-1]).sum() / 2 / self.periods),
            "annotations": known,
        }
        return Series(train, y[at:], meta)

    def evaluate(
        self, forecasters: Mapping[str, Any], *, progress: bool | None = None
    ) -> pd.DataFrame:
        """Scores forecasters on every system.

        Args:
            forecasters: by name: a forecaster (`fit(y)`, `predict(h)`), a regressor of scikit-learn,
                which becomes a `LagForecaster`, or a list of these, of which each system's tuning series
                chooses one.
            progress: shows a progress bar; as the benchmark's own by default.

        Returns:
            A row for each (system, model): smape (0 to 200), mae, mse, r2, nrmse, valid_time (periods
            until the normalised error exceeds 0.4), chosen (place in the list), clipped (cut at 5
            standard deviations of the training part), failed (a forecast with NaN: sMAPE 200, the rest
            NaN) and cycles_per_period.

        Raises:
            ValueError: no forecaster, or one that returns another number of points than asked for.
        """
        import pandas as pd
        from rich.progress import Progress

        if not forecasters:
            raise ValueError("forecasters: got none, must be at least one")
        shown = self.progress if progress is None else progress
        tests = self.series("test")
        rows: list[dict[str, Any]] = []
        with Progress(disable=not shown) as bar:
            task = bar.add_task("scoring", total=len(forecasters))
            for model, given in forecasters.items():
                candidates = given if isinstance(given, list) else [given]
                if not candidates:
                    raise ValueError(f"forecasters: {model!r} is an empty list")
                chosen = self._tuned(model, candidates)
                forecasts = self._forecasts(model, candidates, chosen, tests)
                for series, forecast, place in zip(tests, forecasts, chosen, strict=True):
                    scores = forecast_scores(
                        series.test, forecast, series.train, self.points_per_period
                    )
                    row = {"system": series.meta["system"], "model": model, "chosen": place}
                    row["cycles_per_period"] = series.meta["cycles_per_period"]
                    rows.append(row | scores)
                bar.update(task, advance=1, description=f"scored {model}")
        return pd.DataFrame(rows).set_index(["system", "model"])

    def _tuned(self, model: str, candidates: list[Any]) -> list[int]:
        if len(candidates) == 1:
            return [0] * len(self.systems)
        series = self.series("train")
        scores = np.empty((len(candidates), len(series)))
        for i in range(len(candidates)):
            forecasts = self._forecasts(model, candidates, [i] * len(series), series)
            for j, (one, forecast) in enumerate(zip(series, forecasts, strict=True)):
                scores[i, j] = forecast_scores(
                    one.test, forecast, one.train, self.points_per_period
                )["smape"]
        return [int(i) for i in scores.argmin(0)]

    def _forecasts(
        self, model: str, candidates: list[Any], chosen: Sequence[int], series: list[Series]
    ) -> list[np.ndarray]:
        found: list[np.ndarray] = [np.empty(0)] * len(series)
        for place in sorted(set(chosen)):
            rows = [i for i, choice in enumerate(chosen) if choice == place]
            candidate = candidates[place]
            h = len(series[0].test)
            if getattr(candidate, "batched", False):
                if self.task != "univariate":
                    raise ValueError(f"forecasters: {model!r} is batched; the task is multivariate")
                fitted = copy.deepcopy(candidate)
                fitted.fit(np.stack([series[i].train for i in rows]))
                forecasts = list(np.asarray(fitted.predict(h), dtype=float))
                if len(forecasts) != len(rows):
                    raise ValueError(
                        f"forecasters: {model!r} returned {len(forecasts)} series for {len(rows)}"
                    )
            else:
                forecasts = []
                for i in rows:
                    fitted = _as_forecaster(candidate)
                    fitted.fit(series[i].train)
                    forecasts.append(np.asarray(fitted.predict(h), dtype=float))
            for i, forecast in zip(rows, forecasts, strict=True):
                if forecast.shape != series[i].test.shape:
                    raise ValueError(
                        f"forecasters: {model!r} returned {forecast.shape} for "
                        f"{series[i].meta['system']}, must be {series[i].test.shape}"
                    )
                found[i] = forecast
        return found


def _as_forecaster(candidate: Any) -> Any:
    from sklearn.base import is_regressor

    fitted = copy.deepcopy(candidate)
    is_sklearn = hasattr(candidate, "__sklearn_tags__") and is_regressor(candidate)
    return LagForecaster(fitted) if is_sklearn else fitted


def _rows(y: np.ndarray) -> np.ndarray:
    return np.asarray(y, dtype=float).reshape(len(y), -1)


# --- scores ---------------------------------------------------------------------------------------


def smape(y: Float[np.ndarray, "*series"], forecast: Float[np.ndarray, "*series"]) -> float:
    """Symmetric mean absolute percentage error, 200 mean |y - f| / (|y| + |f|): 0 to 200.

    Args:
        y: what came.
        forecast: what was forecast; where both are 0 the error is 0.

    Raises:
        ValueError: shapes that differ, no points, or NaN.

    Examples:
        >>> round(smape(np.array([1, 2, -1, 4, 0.5]), np.array([1.1, 1.5, 1, 4, -0.5])), 4)
        87.619

    Source: Gilpin (2021), section on forecasting.
    """
    if y.shape != forecast.shape or y.size == 0:
        raise ValueError(f"forecast: got {forecast.shape}, must be {y.shape}, one point at least")
    if not (np.isfinite(y).all() and np.isfinite(forecast).all()):
        raise ValueError("y, forecast: got NaN or infinite values, must be finite")
    size = np.abs(y) + np.abs(forecast)
    return float(200 * (np.abs(y - forecast) / np.where(size > 0, size, 1.0)).mean())


def forecast_scores(
    y: Float[np.ndarray, "*series"],
    forecast: Float[np.ndarray, "*series"],
    train: Float[np.ndarray, "*train"],
    points_per_period: float = 15,
) -> dict[str, float]:
    """All scores of one forecast, which is first cut at 5 standard deviations of the training part.

    Args:
        y: what came, (time,) or (time, coordinates).
        forecast: what was forecast, of the same shape.
        train: what was fitted, for its mean and spread.
        points_per_period: samples a period.

    Returns:
        smape, mae, mse, r2, nrmse (over the training part's standard deviation), valid_time (periods),
        clipped and failed (0 or 1).

    Raises:
        ValueError: shapes that differ.
    """
    if y.shape != forecast.shape:
        raise ValueError(f"forecast: got {forecast.shape}, must be {y.shape}")
    if np.isnan(forecast).any():
        nothing = dict.fromkeys(METRICS, float("nan"))
        return nothing | {"smape": 200.0, "valid_time": 0.0, "clipped": 0.0, "failed": 1.0}
    actual, found, before = _rows(y), _rows(forecast), _rows(train)
    mean, spread = before.mean(0), before.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    cut = np.clip(found, mean - CLIP * spread, mean + CLIP * spread)
    squared = (actual - cut) ** 2
    variance = actual.var(0).sum()
    normalised = np.sqrt((squared / spread**2).mean(1))
    wrong = np.flatnonzero(normalised > VALID)
    valid = wrong[0] if len(wrong) else len(actual)
    return {
        "smape": smape(actual, cut),
        "mae": float(np.abs(actual - cut).mean()),
        "mse": float(squared.mean()),
        "r2": float(1 - squared.mean(0).sum() / variance) if variance > 0 else float("nan"),
        "nrmse": float(np.sqrt((squared / spread**2).mean())),
        "valid_time": float(valid / points_per_period),
        "clipped": float((cut != found).any()),
        "failed": 0.0,
    }


# --- over systems ---------------------------------------------------------------------------------


def correlate(
    results: pd.DataFrame,
    invariants: pd.DataFrame,
    *,
    metric: str = "smape",
    columns: Iterable[str] | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    random_state: int = 0,
) -> pd.DataFrame:
    """Spearman correlation of every model's score with every invariant, over systems.

    Args:
        results: as `ChaosBenchmark.evaluate` gives them.
        invariants: a row a system, as `annotation_table` gives them.
        metric: the score.
        columns: invariants; those measured by default.
        level: confidence level of the percentile bootstrap over systems.
        resamples: of that bootstrap.
        random_state: its seed.

    Returns:
        A row for each (model, invariant): spearman, low, high and systems. Beside the models there is
        "best of all", the least score of each system (the greatest for r2 and valid_time).

    Raises:
        ValueError: an unknown metric or column, or fewer than 4 systems in common.

    Source: Gilpin (2021), section on forecasting; Efron & Tibshirani (1993), chapter 13.
    """
    import pandas as pd

    if metric not in results.columns:
        raise ValueError(f"metric: got {metric!r}, must be one of {tuple(results.columns)}")
    wanted = list(columns) if columns is not None else [c for c in INVARIANTS if c in invariants]
    for column in wanted:
        if column not in invariants:
            raise ValueError(f"columns: got {column!r}, must be columns of the invariants")
    scores = results[metric].unstack("model")
    best = scores.max(axis=1) if metric in ("r2", "valid_time") else scores.min(axis=1)
    if len(scores.columns) > 1:
        scores[BEST] = best
    rows = []
    for column in wanted:
        for model in scores.columns:
            both = pd.concat([scores[model], invariants[column]], axis=1, join="inner").dropna()
            found = spearman_interval(
                both.iloc[:, 0].to_numpy(float),
                both.iloc[:, 1].to_numpy(float),
                level=level,
                resamples=resamples,
                random_state=random_state,
            )
            keys = dict(zip(("spearman", "low", "high"), found, strict=True))
            rows.append({"model": model, "invariant": column, **keys, "systems": len(both)})
    return pd.DataFrame(rows).set_index(["model", "invariant"])


def spearman_interval(
    a: Float[np.ndarray, " systems"],
    b: Float[np.ndarray, " systems"],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    random_state: int = 0,
) -> tuple[float, float, float]:
    """Spearman's rank correlation and its percentile-bootstrap interval.

    Raises:
        ValueError: fewer than 4 pairs, NaN, or an impossible level or number of resamples.

    Examples:
        >>> spearman_interval(np.arange(9.0), np.arange(9.0) ** 3)
        (1.0, 1.0, 1.0)
    """
    from scipy.stats import rankdata

    if len(a) != len(b) or len(a) < 4 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f"a, b: got {len(a)} and {len(b)} values, must be 4 finite pairs at least")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level, resamples: got {level}, {resamples}, must be in (0, 1) and >= 1")
    drawn = np.random.default_rng(random_state).integers(len(a), size=(resamples, len(a)))
    drawn = np.vstack([np.arange(len(a)), drawn])
    x, y = (rankdata(values[drawn], axis=-1) for values in (a, b))
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    size = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    rho = (x * y).sum(-1) / np.where(size > 0, size, np.inf)
    low, high = np.quantile(rho[1:], [(1 - level) / 2, (1 + level) / 2])
    return float(rho[0]), float(low), float(high)


class Ranking(NamedTuple):
    """Mean ranks by model, best first, and the least difference of two that means something."""

    ranks: pd.Series
    critical_difference: float


def rank_models(results: pd.DataFrame, *, metric: str = "smape", level: float = 0.95) -> Ranking:
    """Mean rank of every model over systems with Nemenyi's critical difference.

    Args:
        results: as `ChaosBenchmark.evaluate` gives them, two models at least.
        metric: the score.
        level: confidence level.

    Raises:
        ValueError: an unknown metric, or fewer than two models.

    Source: Demsar, J. Machine Learning Research 7, 1 (2006), section 3.2.2.
    """
    from scipy.stats import studentized_range

    if metric not in results.columns:
        raise ValueError(f"metric: got {metric!r}, must be one of {tuple(results.columns)}")
    scores = results[metric].unstack("model").dropna()
    n, k = scores.shape
    if k < 2 or n < 1:
        raise ValueError(f"results: got {k} models on {n} systems, must be 2 models at least")
    larger_is_better = metric in ("r2", "valid_time")
    ranks = scores.rank(axis=1, ascending=not larger_is_better).mean().sort_values()
    # The studentized range of infinitely many degrees of freedom, over the root of two.
    q = float(studentized_range.ppf(level, k, np.inf)) / math.sqrt(2)
    return Ranking(ranks, q * math.sqrt(k * (k + 1) / (6 * n)))


def plot_errors(
    results: pd.DataFrame,
    invariants: pd.DataFrame,
    *,
    metric: str = "smape",
    against: str = "lyapunov_1_per_period",
) -> go.Figure:
    """Every system's score against its degree of chaos, a colour a model.

    Raises:
        ValueError: an unknown metric or invariant.
    """
    import plotly.graph_objects as go

    if metric not in results.columns:
        raise ValueError(f"metric: got {metric!r}, must be one of {tuple(results.columns)}")
    if against not in invariants:
        raise ValueError(f"against: got {against!r}, must be a column of the invariants")
    plot = go.Figure()
    for model, rows in results[metric].groupby(level="model"):
        values = rows.droplevel("model")
        plot.add_scatter(
            x=invariants[against].reindex(values.index),
            y=values,
            text=values.index,
            mode="markers",
            name=str(model),
        )
    plot.update_layout(xaxis_title=against.replace("_", " "), yaxis_title=metric)
    return plot
