"""Capability curves of a language model's checkpoints: compared, ordered, predicted, read beside the loss."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import combinations, product
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from szilard.representations.pretraining_curves import (
    EXPONENTS,
    common_grid,
    fit_power_law,
    half_rise,
    noise,
    permutation_p_value,
    progress,
    rise,
    shape_distance,
)

COLUMNS = ("model", "n_params", "tokens", "task", "value", "stderr", "chance", "higher_is_better")
_OPTIONAL = {
    "n_params": math.nan,
    "stderr": math.nan,
    "chance": math.nan,
    "higher_is_better": True,
}
_PYTHIA_TOKENS_PER_STEP = 2_097_152
_PYTHIA_QUESTIONS = {
    "lambada": 5153,
    "piqa": 1838,
    "arc_easy": 2376,
    "sciq": 1000,
    "winogrande": 1267,
    "arc_challenge": 1172,
}


@dataclass(frozen=True, slots=True)
class SimilarityReport:
    """Curves of one task in different models against curves of different tasks in one model.

    Attributes:
        same: mean shape distance of the first kind.
        cross: mean shape distance of the second kind.
        auc: probability that a pair of the first kind is closer than one of the second.
        p: p-value of `same` under shuffled task labels.
        time_only: mean distance of all curves from the one monotone trend that fits them all best: what
            two curves share because both rise.
        same_rank: mean rank correlation of the values of the first kind, close to 1 whatever rises.
        cross_rank: idem of the second kind.
        rank_auc: probability that a pair of the first kind has the higher rank correlation.
        same_residual: mean rank correlation of the first kind with the common trend taken out.
        cross_residual: idem of the second kind.
        pairs: one row a pair: kind, model, task, other_model, other_task, distance, rank, residual.
    """

    same: float
    cross: float
    auc: float
    p: float
    time_only: float
    same_rank: float
    cross_rank: float
    rank_auc: float
    same_residual: float
    cross_residual: float
    pairs: pd.DataFrame


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a metric will be.

    Attributes:
        value: the forecast.
        low: lower end of its interval.
        high: upper end.
        params: a, b and c of y = a - b (tokens / end)^(-c); negated metrics where lower is better.
        at_bound: which of them lie on a bound of theirs. Trust the value then, not the parameter.
        reliable: the metric has signal by then, more than three points were fitted, neither b nor c is at
            a bound, and the fitted points do not accelerate over ln tokens, as they do before the rise: the
            middle of a parabola through them lies less than a standard error below its chord.
    """

    value: float
    low: float
    high: float
    params: tuple[float, float, float]
    at_bound: tuple[str, ...]
    reliable: bool


@dataclass(frozen=True, slots=True)
class UnseenPrediction:
    """A task's curve predicted from other tasks.

    Attributes:
        tokens: the target model's checkpoints.
        values: predicted metric there.
        mae: mean absolute error where the truth is known, else NaN.
        copy_mae: that of copying the source models' mean curve.
    """

    tokens: Float[np.ndarray, "n"]
    values: Float[np.ndarray, "n"]
    mae: float
    copy_mae: float


@dataclass(frozen=True, slots=True)
class _Curve:
    """A metric over tokens, negated where lower is better."""

    x: np.ndarray
    y: np.ndarray
    stderr: np.ndarray
    chance: float
    sign: int

    @property
    def noise(self) -> float:
        return noise(self.y, self.stderr)

    @property
    def has_signal(self) -> bool:
        return rise(self.y) > 3 * self.noise


class DynamicsTable:
    """Metrics of checkpoints of one or more training runs, and what they say together.

    Args:
        records: a frame with the columns model, tokens, task and value, and optionally n_params, stderr,
            chance (the metric of guessing) and higher_is_better (True by default); in any order. The
            loss is a task like others, with higher_is_better False.

    Attributes:
        records: the checked rows, sorted by model, task and tokens.
        models: names of the models, in the order given.
        tasks: names of the tasks, in the order given.

    Raises:
        ValueError: a column is missing or unknown, there is no row, a value is NaN or infinite, tokens
            are not positive, or a (model, task, tokens) comes twice.

    Examples:
        Pythia at 2.8 billion parameters, 41 % into its run:

        >>> table = DynamicsTable.pythia()
        >>> step = 2_097_152
        >>> forecast = table.forecast("pythia-2.8b", "lambada", upto=53_000 * step)
        >>> round(forecast.value, 3), round(table.value("pythia-2.8b", "lambada"), 3)
        (0.639, 0.646)
        >>> round(table.half_rise("pythia-2.8b", "sciq") / step)
        1620

    Source: Yang et al., The Fine Line: Navigating Large Language Model Pretraining with Down-streaming
    Capability Analysis (2024), arXiv 2404.01204. What it compares is the paper's; the signal test, the
    shape distance, the forecast and the null model are this library's.
    """

    def __init__(self, records: pd.DataFrame) -> None:
        self.records = _checked(records)
        self.models: list[str] = list(dict.fromkeys(records["model"]))
        self.tasks: list[str] = list(dict.fromkeys(records["task"]))
        self._groups = dict(iter(self.records.groupby(["model", "task"], sort=False)))

    def __repr__(self) -> str:
        rows, models, tasks = len(self.records), len(self.models), len(self.tasks)
        return f"DynamicsTable({rows} rows, {models} models, {tasks} tasks)"

    # --- where rows come from ---------------------------------------------------------------------

    @classmethod
    def from_records(cls, rows: Iterable[Mapping[str, Any]]) -> DynamicsTable:
        """A table of rows that are mappings with the keys of the columns.

        Examples:
            >>> DynamicsTable.from_records([{"model": "m", "tokens": 10, "task": "t", "value": 0.5}])
            DynamicsTable(1 rows, 1 models, 1 tasks)
        """
        return cls(pd.DataFrame(list(rows)))

    @classmethod
    def from_pandas(cls, frame: pd.DataFrame) -> DynamicsTable:
        """A table of the rows of a frame."""
        return cls(frame)

    @classmethod
    def from_jsonl(cls, *paths: str | PathLike[str]) -> DynamicsTable:
        """A table of files that `DynamicsCallback` wrote; a line still being written does not count."""
        rows = [row for path in paths for row in complete_lines(path)]
        return cls.from_records([{k: v for k, v in row.items() if k != "step"} for row in rows])

    @classmethod
    def from_lm_eval(
        cls,
        pattern: str,
        step_regex: str,
        *,
        model: str = "model",
        n_params: float = math.nan,
        tokens_per_step: float = 1,
        metric: str | Mapping[str, str] = "acc",
    ) -> DynamicsTable:
        """A table of result files of lm-evaluation-harness.

        Args:
            pattern: glob of the files, `**` included, relative to the working directory or absolute.
            step_regex: finds the step in a file's path, as group `step` or the first; a group `model`
                names the model.
            model: its name, where the path does not say it.
            n_params: its parameters.
            tokens_per_step: tokens a training step.
            metric: which one of a task's metrics, for all tasks or by task.

        Raises:
            ValueError: no file matches, a path has no step, or a file holds none of the metrics.
        """
        root = Path(pattern).anchor or "."
        paths = sorted(Path(root).glob(str(Path(pattern).relative_to(Path(pattern).anchor))))
        rows: list[dict[str, Any]] = []
        for path in paths:
            found = re.search(step_regex, path.as_posix())
            if found is None:
                raise ValueError(f"step_regex {step_regex!r} finds no step in {path.as_posix()!r}")
            named = found.groupdict()
            step = float(named["step"] if "step" in named else found.group(1))
            scores = lm_eval_scores(json.loads(path.read_text()), metric)
            if not scores:
                raise ValueError(f"metric {metric!r} is in no task of {path.as_posix()!r}")
            for task, (value, stderr, higher) in scores.items():
                rows.append(
                    {
                        "model": named.get("model", model),
                        "n_params": n_params,
                        "tokens": step * tokens_per_step,
                        "task": task,
                        "value": value,
                        "stderr": math.nan if stderr is None else stderr,
                        "higher_is_better": higher,
                    }
                )
        if not rows:
            raise ValueError(f"pattern must match result files, but {pattern!r} matches none")
        return cls.from_records(rows)

    @classmethod
    def pythia(cls) -> DynamicsTable:
        """Four models of the Pythia suite at 20 checkpoints: six tasks and LAMBADA's log-perplexity.

        Public zero-shot evaluations (EleutherAI/pythia, evals/pythia-v1, Apache-2.0), to three digits;
        standard errors are binomial, with each task's number of questions.

        Examples:
            >>> DynamicsTable.pythia()
            DynamicsTable(560 rows, 4 models, 7 tasks)
        """
        with (files("szilard.representations") / "data" / "pythia.csv").open() as file:
            wide = pd.read_csv(file, comment="#")
        tall = wide.melt(["model", "n_params", "task"], var_name="tokens")
        tall["tokens"] = tall["tokens"].astype(float) * _PYTHIA_TOKENS_PER_STEP
        tall["higher_is_better"] = tall["task"] != "lambada_log_perplexity"
        tall["value"] /= np.where(tall["higher_is_better"], 1000, 1)
        questions = tall["task"].map(_PYTHIA_QUESTIONS)
        tall["stderr"] = np.sqrt(tall["value"] * (1 - tall["value"]).clip(0) / (questions - 1))
        return cls(tall)

    # --- single curves ----------------------------------------------------------------------------

    def value(self, model: str, task: str, *, upto: float | None = None) -> float:
        """Mean metric of the last three checkpoints (up to a number of tokens)."""
        curve = self._curve(model, task, upto)
        return float(curve.sign * curve.y[-3:].mean())

    def signal(self, *, upto: float | None = None) -> pd.DataFrame:
        """Which tasks say something yet.

        Args:
            upto: tokens of the last checkpoint to look at.

        Returns:
            One row a model and task: checkpoints; rise (last three less first checkpoints); its noise
            (the metric's standard error near the end); has_signal (rise above three of them); drawdown
            (best value less the last three); above_chance, in standard errors, NaN where not known.
        """
        rows = []
        for model, task, curve in self._curves(upto):
            last, se = float(curve.y[-3:].mean()), curve.noise
            excess = last - curve.sign * curve.chance
            rows.append(
                {
                    "model": model,
                    "task": task,
                    "checkpoints": len(curve.x),
                    "rise": rise(curve.y),
                    "noise": se,
                    "has_signal": curve.has_signal,
                    "drawdown": float(curve.y.max() - last),
                    "above_chance": excess / se if se > 0 else math.nan,
                }
            )
        return pd.DataFrame(rows)

    def progress(self, model: str, task: str, *, force: bool = False) -> pd.Series:
        """How much of its rise a task has behind it, by tokens, in [0, 1].

        Args:
            model: whose curve.
            task: of which task.
            force: also where the task has no signal.

        Raises:
            ValueError: no such curve, fewer than four checkpoints, or no signal.
        """
        curve = self._curve(model, task)
        self._require_signal(curve, model, task, force)
        return pd.Series(progress(curve.x, curve.y), index=curve.x, name=task)

    def half_rise(self, model: str, task: str, *, force: bool = False) -> float:
        """Tokens at which a task has half of its rise behind it; arguments as `progress`."""
        g = self.progress(model, task, force=force)
        return half_rise(g.index.to_numpy(), g.to_numpy())

    def half_rises(
        self, tasks: Sequence[str] | None = None, models: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Half-rises in tokens, one row a task and one column a model; NaN where there is no signal.

        Rows are sorted by their geometric mean: what is learned first comes first.

        Args:
            tasks: all by default.
            models: all by default.
        """
        found = {
            model: {
                task: self.half_rise(model, task)
                if self._curve(model, task).has_signal
                else math.nan
                for task in self._chosen(tasks, self.tasks, "tasks")
            }
            for model in self._chosen(models, self.models, "models")
        }
        frame = pd.DataFrame(found)
        return frame.loc[np.log(frame).mean(axis=1).sort_values().index]

    def order_agreement(
        self, tasks: Sequence[str] | None = None, models: Sequence[str] | None = None
    ) -> float:
        """Mean Kendall tau between models of the order in which tasks are learned; 1: one order.

        Args:
            tasks: all by default.
            models: all by default; at least two.
        """
        from scipy.stats import kendalltau

        frame = self.half_rises(tasks, models).dropna()
        taus = [kendalltau(frame[a], frame[b]).statistic for a, b in combinations(frame, 2)]
        if not taus:
            raise ValueError(f"models must be at least two, but are {list(frame)}")
        return float(np.mean(taus))

    # --- curves beside each other -----------------------------------------------------------------

    def distance(self, a: tuple[str, str], b: tuple[str, str], *, force: bool = False) -> float:
        """Shape distance of two curves: 0 for one shape, at most 1.

        Args:
            a: model and task.
            b: model and task.
            force: also where a task has no signal.

        Raises:
            ValueError: as `progress`, or curves without a common range.
        """
        g_a, g_b = self.progress(*a, force=force), self.progress(*b, force=force)
        return shape_distance(
            g_a.index.to_numpy(), g_a.to_numpy(), g_b.index.to_numpy(), g_b.to_numpy()
        )

    def similarity(
        self,
        tasks: Sequence[str] | None = None,
        models: Sequence[str] | None = None,
        *,
        n_perm: int = 10_000,
        rng: int | np.random.Generator = 0,
        force: bool = False,
    ) -> SimilarityReport:
        """Do models share the shape of a task's curve more than tasks share that of a model?

        Two rising curves always correlate. Distances therefore come with a permutation test of the task
        labels and with what is left of correlations once the trend common to all curves is taken out.

        Args:
            tasks: all by default; at least two, each measured in every model.
            models: all by default; at least two.
            n_perm: permutations.
            rng: seed or generator of the permutations.
            force: also where a task has no signal.

        Raises:
            ValueError: fewer than two tasks or models, or as `distance`.
        """
        from scipy.stats import rankdata
        from sklearn.isotonic import IsotonicRegression

        tasks = self._chosen(tasks, self.tasks, "tasks", least=2)
        models = self._chosen(models, self.models, "models", least=2)
        shape = len(models), len(tasks)
        curves = []
        for model, task in product(models, tasks):
            curves.append(self._curve(model, task))
            self._require_signal(curves[-1], model, task, force)
        u = common_grid(*[curve.x for curve in curves])
        y = np.stack([np.interp(u, np.log(curve.x), curve.y) for curve in curves])
        g = np.stack([np.interp(u, np.log(c.x), progress(c.x, c.y)) for c in curves])
        span = u[-1] - u[0]
        distances = np.trapezoid(np.abs(g[:, None] - g), u) / span
        trend = IsotonicRegression().fit(np.tile(u, len(g)), g.ravel()).predict(u)
        ranks = np.corrcoef(rankdata(y, axis=1))
        residuals = np.corrcoef(rankdata(g - trend, axis=1))
        pairs = []
        for i, j in combinations(range(len(curves)), 2):
            (model_i, task_i), (model_j, task_j) = divmod(i, shape[1]), divmod(j, shape[1])
            if (model_i == model_j) == (task_i == task_j):
                continue
            pairs.append(
                {
                    "kind": "same" if task_i == task_j else "cross",
                    "model": models[model_i],
                    "task": tasks[task_i],
                    "other_model": models[model_j],
                    "other_task": tasks[task_j],
                    "distance": distances[i, j],
                    "rank": ranks[i, j],
                    "residual": residuals[i, j],
                }
            )
        frame = pd.DataFrame(pairs)
        same, cross = frame[frame.kind == "same"], frame[frame.kind == "cross"]
        return SimilarityReport(
            same=float(same.distance.mean()),
            cross=float(cross.distance.mean()),
            auc=_auc(same.distance, cross.distance),
            p=permutation_p_value(
                distances.reshape(*shape, *shape), n_perm, np.random.default_rng(rng)
            ),
            time_only=float(np.trapezoid(np.abs(g - trend), u).mean() / span),
            same_rank=float(same["rank"].mean()),
            cross_rank=float(cross["rank"].mean()),
            rank_auc=_auc(-same["rank"], -cross["rank"]),
            same_residual=float(same.residual.mean()),
            cross_residual=float(cross.residual.mean()),
            pairs=frame,
        )

    # --- predictions ------------------------------------------------------------------------------

    def forecast(
        self,
        model: str,
        task: str,
        *,
        upto: float | None = None,
        at: float | None = None,
        limits: tuple[float, float] | None = None,
        start: float = 0.02,
        level: float = 0.9,
        resamples: int = 200,
        rng: int | np.random.Generator = 0,
        force: bool = False,
    ) -> Forecast:
        """What a metric will be: a power law through the checkpoints so far.

        Runs whose learning rate decays at the end rise above a forecast from before the decay; compare
        equal schedules.

        Args:
            model: whose run.
            task: of which task.
            upto: tokens of the last checkpoint to use; all by default.
            at: tokens to forecast for; those of the curve's last checkpoint by default.
            limits: lowest and highest value that the metric can tend to; by default [0, 1] for metrics
                within it of which more is better, [0, inf) for other positive ones, else all.
            start: checkpoints before this share of the end are left out.
            level: of the interval, by a residual bootstrap that also adds a residual to the forecast.
            resamples: of the bootstrap.
            rng: its seed or generator.
            force: also where the task has no signal up to there.

        Raises:
            ValueError: no such curve, no signal, fewer than three checkpoints between start and upto, or
                a level outside (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, but is {level}")
        whole = self._curve(model, task)
        end = float(whole.x[-1] if at is None else at)
        used = (whole.x >= start * end) & (whole.x <= (math.inf if upto is None else upto))
        if used.sum() < 3:
            raise ValueError(
                f"upto must leave at least 3 checkpoints from {start:g} of the end on, "
                f"but leaves {used.sum()} of {model} on {task}"
            )
        so_far = self._curve(model, task, upto)
        self._require_signal(so_far, model, task, force)
        x, y, n = whole.x[used] / end, whole.y[used], int(used.sum())
        a_low, a_high = _limits(whole) if limits is None else limits
        bounds = (a_low, a_high) if whole.sign > 0 else (-a_high, -a_low)
        weights = _weights(whole.stderr[used])
        law = fit_power_law(x, y[None], weights=weights, limits=bounds)
        value = float(law(np.ones(1))[0, 0])
        low, high = -math.inf, math.inf
        if n > 3:
            generator = np.random.default_rng(rng)
            # Three parameters were fitted: the residuals are smaller than the noise by this factor.
            residuals = (y - law(x)[0]) * math.sqrt(n / (n - 3))
            drawn = law(x) + generator.choice(residuals, (resamples, n))
            again = fit_power_law(x, drawn, weights=weights, limits=bounds)(np.ones(1))[:, 0]
            again += generator.choice(residuals, again.shape)
            low, high = np.quantile(again, [(1 - level) / 2, (1 + level) / 2]).tolist()
        a, b, c = float(law.a[0]), float(law.b[0]), float(law.c[0])
        edges = {"a": (a, bounds), "b": (b, (0.0, math.inf)), "c": (c, EXPONENTS)}
        # A parabola's middle lies this far below its chord.
        sag = np.polynomial.polynomial.polyfit(np.log(x), y, 2)[2] * np.log(x[-1] / x[0]) ** 2 / 4
        at_bound = tuple(name for name, (v, edge) in edges.items() if np.isclose(v, edge).any())
        ends = sorted(whole.sign * v for v in (low, high))
        return Forecast(
            value=whole.sign * value,
            low=min(ends[0], whole.sign * value),
            high=max(ends[1], whole.sign * value),
            params=(a, b, c),
            at_bound=at_bound,
            reliable=bool(
                so_far.has_signal
                and n > 3
                and sag < so_far.noise
                and not {"b", "c"} & set(at_bound)
            ),
        )

    def predict_unseen(
        self,
        task: str,
        known: Sequence[str],
        source: str | Sequence[str],
        target: str,
        *,
        start: float = 0.005,
        ridge: float = 1e-3,
    ) -> UnseenPrediction:
        """A task's curve in a model that was never tested on it, from tasks that it was tested on.

        Ridge regression of the task on the known ones over the source models' checkpoints, applied to
        the target's. With the loss as the only known task it is the loss-only baseline.

        Args:
            task: the unseen one, measured in the sources.
            known: tasks measured in the sources and the target.
            source: one model or more.
            target: the model to predict for.
            start: checkpoints before this share of a run are left out.
            ridge: penalty of the squared coefficients; the intercept is free.

        Raises:
            ValueError: no known task, the task among them, no such curve, or no shared checkpoints.
        """
        known = list(known)
        if not known or task in known:
            raise ValueError(f"known must name tasks other than {task!r}, but is {known}")
        sources = [source] if isinstance(source, str) else list(source)
        tables = [self._wide(model, [*known, task], start) for model in sources]
        past = pd.concat(tables)
        features = self._wide(target, known, start)
        x, y = past[known].to_numpy(), past[task].to_numpy()
        centred = x - x.mean(0)
        penalty = ridge * np.eye(len(known))
        slope = np.linalg.solve(centred.T @ centred + penalty, centred.T @ (y - y.mean()))
        predicted = y.mean() + (features.to_numpy() - x.mean(0)) @ slope
        tokens = features.index.to_numpy(float)
        mae = copy_mae = math.nan
        if (target, task) in self._groups:
            truth = self._wide(target, [*known, task], start)[task]
            error = pd.Series(predicted, features.index).loc[truth.index] - truth
            u = np.log(truth.index.to_numpy(float))
            copies = [np.interp(u, np.log(t.index.to_numpy(float)), t[task]) for t in tables]
            mae = float(error.abs().mean())
            copy_mae = float(np.abs(np.mean(copies, 0) - truth.to_numpy()).mean())
        return UnseenPrediction(tokens, predicted, mae, copy_mae)

    def phases(
        self, model: str, *, upto: float | None = None, end: float | None = None
    ) -> pd.DataFrame:
        """What each task of a run is worth watching for now.

        Args:
            model: whose run.
            upto: tokens of its newest checkpoint; the last one by default.
            end: tokens at which the run will end; twice the newest by default.

        Returns:
            One row a task: phase ("no signal"; "saturated": less than a standard error to gain until the
            end; else "rising"), value, noise, gain (forecast less value, NaN where not forecast), noisy
            (the last eight differences past the half-rise spread over more than 1.5 standard errors), drawdown, and watch (True
            for the rising ones).
        """
        rows = []
        for task in self.tasks:
            if (model, task) not in self._groups:
                continue
            curve = self._curve(model, task, upto)
            last, se = float(curve.y[-3:].mean()), curve.noise
            gain, phase = math.nan, "no signal"
            if curve.has_signal:
                horizon = 2 * curve.x[-1] if end is None else end
                ahead = self.forecast(model, task, upto=upto, at=horizon, resamples=1)
                gain = curve.sign * ahead.value - last
                phase = "saturated" if gain < se else "rising"
            rows.append(
                {
                    "task": task,
                    "phase": phase,
                    "value": curve.sign * last,
                    "noise": se,
                    "gain": gain,
                    "noisy": _is_noisy(curve),
                    "drawdown": float(curve.y.max() - last),
                    "watch": phase == "rising",
                }
            )
        if not rows:
            raise ValueError(f"model must be one of {self.models}, but is {model!r}")
        return pd.DataFrame(rows)

    def against_loss(self, model: str, task: str, loss: str, *, flat: float = 0.05) -> pd.DataFrame:
        """A metric beside the loss, phase by phase: do they tell one story?

        Args:
            model: whose run.
            task: the metric.
            loss: the task that is the loss, in nats.
            flat: share of the loss's whole fall below which it counts as flat.

        Returns:
            One row a phase of the task's progress ("before" 0.1, "rise", "after" 0.9) that holds two
            checkpoints: tokens where it starts and ends, fallen (bits of loss), change (of the metric),
            per_bit, rank (Spearman of metric and -loss), and flag: "moves while the loss is flat",
            "still while the loss moves" or "".
        """
        from scipy.stats import spearmanr

        metric, other = self._curve(model, task), self._curve(model, loss)
        x = np.intersect1d(metric.x, other.x)
        y, bits = metric.y[np.isin(metric.x, x)], other.y[np.isin(other.x, x)] / math.log(2)
        g = progress(x, y)
        first, last = int((g < 0.1).sum()), int((g < 0.9).sum())
        edges = {"before": (0, first), "rise": (first - 1, last + 1), "after": (last, len(x))}
        rows = []
        for phase, (start, stop) in edges.items():
            part = slice(max(0, start), stop)
            if len(x[part]) < 2:
                continue
            change, fallen = y[part][-1] - y[part][0], bits[part][-1] - bits[part][0]
            moves, is_flat = abs(change) > 3 * metric.noise, abs(fallen) < flat * np.ptp(bits)
            flag = ""
            if moves and is_flat:
                flag = "moves while the loss is flat"
            elif not moves and not is_flat:
                flag = "still while the loss moves"
            constant = np.ptp(y[part]) == 0 or np.ptp(bits[part]) == 0
            rows.append(
                {
                    "phase": phase,
                    "from": x[part][0],
                    "to": x[part][-1],
                    "fallen": fallen,
                    "change": metric.sign * change,
                    "per_bit": metric.sign * change / fallen if fallen else math.nan,
                    "rank": math.nan if constant else spearmanr(y[part], bits[part]).statistic,
                    "flag": flag,
                }
            )
        return pd.DataFrame(rows)

    # ----------------------------------------------------------------------------------------------

    def _curve(self, model: str, task: str, upto: float | None = None) -> _Curve:
        rows = self._groups.get((model, task))
        if rows is None:
            raise ValueError(
                f"there is no curve of model {model!r} on task {task!r}; models are {self.models}, "
                f"tasks are {self.tasks}"
            )
        if upto is not None:
            rows = rows[rows["tokens"] <= upto]
        if len(rows) < 4:
            raise ValueError(
                f"a curve needs at least 4 checkpoints, but {model!r} on {task!r} has {len(rows)}"
            )
        sign = 1 if rows["higher_is_better"].iloc[0] else -1
        x, y, stderr = (rows[c].to_numpy(float) for c in ("tokens", "value", "stderr"))
        return _Curve(x, sign * y, stderr, float(rows["chance"].iloc[0]), sign)

    def _curves(self, upto: float | None) -> Iterator[tuple[str, str, _Curve]]:
        for model in self.models:
            for task in self.tasks:
                if (model, task) in self._groups:
                    yield model, task, self._curve(model, task, upto)

    def _wide(self, model: str, tasks: Sequence[str], start: float) -> pd.DataFrame:
        """Values at the checkpoints where all of the tasks were measured."""
        columns = {}
        for task in tasks:
            curve = self._curve(model, task)
            late = curve.x >= start * curve.x[-1]
            columns[task] = pd.Series(curve.sign * curve.y[late], curve.x[late])
        frame = pd.DataFrame(columns).dropna()
        if frame.empty:
            raise ValueError(f"{model!r} has no checkpoint with all of {list(tasks)}")
        return frame

    def _chosen(
        self, names: Sequence[str] | None, all_names: list[str], argument: str, least: int = 1
    ) -> list[str]:
        chosen = all_names if names is None else list(names)
        if len(set(chosen)) < least or len(set(chosen)) < len(chosen):
            raise ValueError(f"{argument} must be at least {least}, each once, but are {chosen}")
        return chosen

    @staticmethod
    def _require_signal(curve: _Curve, model: str, task: str, force: bool) -> None:
        if not (force or curve.has_signal):
            raise ValueError(
                f"{model!r} on {task!r} has no signal: it rises by {rise(curve.y):.3g} with a standard "
                f"error of {curve.noise:.3g}; force=True goes on regardless"
            )


def complete_lines(path: str | PathLike[str]) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; what follows the last line break is still being written."""
    text = Path(path).read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def lm_eval_scores(
    content: Mapping[str, Any], metric: str | Mapping[str, str] = "acc"
) -> dict[str, tuple[float, float | None, bool]]:
    """Value, standard error and direction of each task in a result of lm-evaluation-harness.

    Args:
        content: with the key `results`.
        metric: which one, for all tasks or by task; tasks without it are left out.

    Examples:
        >>> lm_eval_scores({"results": {"piqa": {"acc,none": 0.7, "acc_stderr,none": 0.01}}})
        {'piqa': (0.7, 0.01, True)}
    """
    found: dict[str, tuple[float, float | None, bool]] = {}
    for task, results in content["results"].items():
        wanted = metric if isinstance(metric, str) else metric.get(task, "")
        # Newer releases write "metric,filter", older ones "metric".
        by_name = {key.split(",")[0]: value for key, value in reversed(list(results.items()))}
        if not isinstance(by_name.get(wanted), int | float):
            continue
        stderr = by_name.get(f"{wanted}_stderr")
        directions = content.get("higher_is_better", {}).get(task, {})
        higher = directions.get(wanted, "perplexity" not in wanted and wanted != "loss")
        error = float(stderr) if isinstance(stderr, int | float) else None
        found[task] = float(by_name[wanted]), error, bool(higher)
    return found


def _checked(records: pd.DataFrame) -> pd.DataFrame:
    required = [column for column in COLUMNS if column not in _OPTIONAL]
    missing = [column for column in required if column not in records.columns]
    unknown = [column for column in records.columns if column not in COLUMNS]
    if missing or unknown:
        raise ValueError(
            f"records must have the columns {required} and may have {list(_OPTIONAL)}, but lack "
            f"{missing} and have {unknown}"
        )
    if records.empty:
        raise ValueError("records must hold at least one row, but are empty")
    frame = records.assign(**{k: v for k, v in _OPTIONAL.items() if k not in records.columns})
    frame = frame[list(COLUMNS)].astype({"tokens": float, "value": float, "stderr": float})
    frame["higher_is_better"] = frame["higher_is_better"].astype(bool)
    for column, ok in (
        ("value", np.isfinite(frame["value"])),
        ("tokens", np.isfinite(frame["tokens"]) & (frame["tokens"] > 0)),
    ):
        if not ok.all():
            row = frame[~ok].iloc[0]
            raise ValueError(
                f"{column} must be finite{' and positive' if column == 'tokens' else ''}, but is "
                f"{row[column]} for {row['model']!r} on {row['task']!r}"
            )
    twice = frame.duplicated(["model", "task", "tokens"])
    if twice.any():
        row = frame[twice].iloc[0]
        raise ValueError(
            f"{row['model']!r} has {row['task']!r} at {row['tokens']:g} tokens more than once"
        )
    return frame.sort_values(["model", "task", "tokens"], ignore_index=True)


def _auc(smaller: pd.Series, larger: pd.Series) -> float:
    """Probability that a draw of the first lies below one of the second; ties count half."""
    a, b = smaller.to_numpy()[:, None], larger.to_numpy()
    return float(((a < b) + 0.5 * (a == b)).mean())


def _is_noisy(curve: _Curve) -> bool:
    # The steep part of a rise is not noise.
    start = half_rise(curve.x, progress(curve.x, curve.y)) if curve.has_signal else 0.0
    steps = np.diff(curve.y[curve.x >= start])[-8:]
    return len(steps) > 2 and bool(steps.std(ddof=1) > 1.5 * curve.noise)


def _limits(curve: _Curve) -> tuple[float, float]:
    values = curve.sign * curve.y
    if values.min() < 0:
        return -math.inf, math.inf
    return 0.0, 1.0 if curve.sign > 0 and values.max() <= 1 else math.inf


def _weights(stderr: np.ndarray) -> np.ndarray | None:
    """1 / stderr^2; an accuracy of exactly 0 or 1 has no binomial error, and would outweigh all."""
    if np.isnan(stderr).any() or not stderr.any():
        return None
    return 1 / np.maximum(stderr, 0.1 * np.median(stderr[stderr > 0])) ** 2
