"""PECCARY against a fixed delay, spectral and sample entropy, the 0-1 test and Lyapunov exponents.

Table 1: 61 series known to be regular, chaotic or noise, cut to several durations and sampled at several
fractions of their natural timescale. Table 2: Hénon-Heiles orbits, one coordinate each, against their
variational exponents. With `systems: galactic`, table 2 is drawn in galactic potentials instead.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.spatial import cKDTree
from scipy.special import entr
from scipy.stats import rankdata

from szilard.dynamics.peccary import (
    MIN_PERIODS,
    Clock,
    delay_of_pattern_time,
    hc_curves,
    hc_region,
    natural_timescale,
    periodic_bounds,
)
from szilard.experiments._peccary_series import (
    POTENTIALS,
    TRUTH,
    Orbits,
    Series,
    galactic_orbits,
    henon_heiles,
    labelled_series,
)
from szilard.lab.experiment import Claim, ExperimentConfig, Figure, Interval, Log, Preset, Row
from szilard.lab.statistics import mean_interval, paired_difference
from szilard.measures.ordinal import hc_envelope, ordinal_statistics

if TYPE_CHECKING:
    import pandas as pd

METHOD = "peccary"
CLOCKS: dict[str, Clock] = {METHOD: "ncross", "peccary-maxavg": "maxavg"}
FIXED = "fixed-delay"
LYAPUNOV = "lyapunov"
IDEAL, SHORT, LONG = 0.4, 1.5, 10.0  # t_pat / t_nat, and natural periods, that the claims compare
WINDOW = (0.3, 0.4, 0.5)
CLASSES = ("regular", "complex", "stochastic")
_KDTREE_POINTS = 1000  # sample entropy sees at most so many points of a series


class PeccaryConfig(ExperimentConfig):
    seeds: int = Field(default=5, ge=1, description="number of seeds; seed i runs as i")
    systems: Literal["benchmark", "galactic"] = Field(
        default="benchmark", description="labelled series and Hénon-Heiles, or galactic orbits"
    )
    dimension: int = Field(default=5, ge=4, le=8, description="points of a pattern")
    complex_threshold: float = Field(
        default=0.5, ge=0, le=1, description="relative height that splits complex from stochastic"
    )
    ratios: tuple[float, ...] = Field(
        default=(0.05, 0.2, 0.3, 0.4, 0.5, 1.0), description="t_pat / t_nat"
    )
    durations: tuple[float, ...] = Field(
        default=(1.5, 3.0, 10.0, 30.0), description="natural periods of the labelled series"
    )
    per_kind: int = Field(default=10, ge=1, description="series of each deterministic kind")
    noises: int = Field(default=7, ge=1, description="series of each colour of noise")
    samples_per_period: int = Field(default=200, ge=20, description="samples of a natural period")
    energies: tuple[float, ...] = Field(
        default=(1 / 12, 1 / 8, 1 / 6), description="of the Hénon-Heiles orbits"
    )
    orbits: int = Field(default=10, ge=2, description="orbits an energy, or a galactic potential")
    orbit_samples: int = Field(default=20_000, ge=100, description="samples of an orbit")
    orbit_dt: float = Field(default=0.02, gt=0, description="time step of an orbit's samples")
    exponent_time: float = Field(default=2000, gt=0, description="time the exponents average over")
    exponent_threshold: float = Field(
        default=0.02, gt=0, description="exponent from which an orbit counts as chaotic"
    )
    orbit_block: int = Field(default=10_000, ge=1, description="galactic orbits held at a time")
    device: str | None = Field(
        default=None, description="torch device of the galactic orbits; CUDA where there is one"
    )


class PeccaryExperiment:
    Config: ClassVar[type[ExperimentConfig]] = PeccaryConfig
    presets: ClassVar[Mapping[Preset, ExperimentConfig]] = {
        "smoke": PeccaryConfig(
            seeds=2,
            per_kind=2,
            noises=1,
            durations=(SHORT, LONG),
            ratios=(0.05, *WINDOW, 1.0),
            energies=(1 / 12, 1 / 6),
            orbits=3,
            orbit_samples=5000,
            exponent_time=300,
        ),
        "quick": PeccaryConfig(),
        "paper": PeccaryConfig(
            systems="galactic",
            seeds=5,
            orbits=10_000,
            orbit_samples=10_000,
            orbit_dt=0.05,
        ),
    }

    def arms(self, config: PeccaryConfig) -> Sequence[str]:
        if config.systems == "galactic":
            return [*CLOCKS, FIXED, "spectral-entropy"]
        return [*CLOCKS, FIXED, *SCORES, LYAPUNOV]

    def run(self, config: PeccaryConfig, arm: str, seed: int, log: Log) -> Sequence[Row]:
        if config.systems == "galactic":
            return _galactic_rows(config, arm, seed, log)
        log(0.0, "integrating")
        series, orbits = _benchmark(config, seed)
        rows = list(_series_rows(config, arm, series, log))
        if arm == METHOD and seed == 0:
            rows += _example_rows(config, series)
        log(0.8, "orbits")
        return rows + _orbit_rows(config, arm, orbits)

    def claims(self, config: PeccaryConfig, table: pd.DataFrame) -> list[Claim]:
        claims = [] if config.systems == "galactic" else _series_claims(config, table)
        return claims + _orbit_claims(config, table)

    def figures(self, config: PeccaryConfig, table: pd.DataFrame) -> list[Figure]:
        figures = []
        if config.systems == "benchmark":
            figures = [
                _plane_figure(config, table),
                _accuracy_figure(table),
                _baseline_figure(config, table),
                _curves_figure(config, table),
                _examples_figure(config, table),
            ]
        return [*figures, _orbits_figure(config, table)]


# --- one unit -------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _benchmark(config: PeccaryConfig, seed: int) -> tuple[dict[str, Series], Orbits]:
    """All series and orbits of a seed; the arms of a process share them."""
    rng = np.random.default_rng(seed)
    series = labelled_series(
        rng,
        per_kind=config.per_kind,
        noises=config.noises,
        samples=round(max(config.durations) * config.samples_per_period),
        period=config.samples_per_period,
    )
    orbits = henon_heiles(
        rng,
        energies=config.energies,
        per_energy=config.orbits,
        time=config.orbit_samples * config.orbit_dt,
        dt=config.orbit_dt,
        exponent_time=config.exponent_time,
    )
    return series, orbits


def _series_rows(
    config: PeccaryConfig, arm: str, series: dict[str, Series], log: Log
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step, duration in enumerate(config.durations):
        length = round(duration * config.samples_per_period)
        for kind, (x, growth) in series.items():
            cut = x[:, :length]
            label = {"kind": kind, "truth": TRUTH[kind], "duration": duration}
            if arm in CLOCKS:
                for ratio in config.ratios:
                    for found in _measure(config, cut, ratio, CLOCKS[arm]):
                        rows.append({**label, **found, "ratio": ratio})
            elif arm == FIXED:
                rows += [{**label, **found} for found in _measure(config, cut, None, "ncross")]
            else:
                if arm == LYAPUNOV:
                    scores = growth[:, length - 1] / duration
                else:
                    scores = SCORES[arm](cut, config.samples_per_period)
                rows += [{"metric": "score", "value": float(v), **label} for v in scores]
        log(0.1 + 0.7 * (step + 1) / len(config.durations), f"{duration:g} periods")
    return rows


def _measure(
    config: PeccaryConfig, x: Any, ratio: float | None, clock: Clock
) -> list[dict[str, Any]]:
    """H, C and region of every series at `ratio` of its own timescale; at delay 1 if None.

    Series too short for a label of the method get one too: `labelled` says that it would refuse.
    """
    n, time = config.dimension, x.shape[-1]
    t_nat = np.asarray(torch.as_tensor(natural_timescale(x, method=clock)).cpu())
    # Where there is no timescale, or no room for a pattern of it: the longest pattern that fits.
    t_nat = np.minimum(t_nat, 2.0 * time)
    delay = np.ones(len(t_nat), dtype=np.int64)
    if ratio is not None:
        delay = np.minimum(delay_of_pattern_time(ratio * t_nat, 1.0, n), (time - 1) // (n - 1))
    h, c = np.empty(len(delay)), np.empty(len(delay))
    distinct = np.empty(len(delay), dtype=np.int64)
    for step in np.unique(delay).tolist():
        chosen = delay == step
        found = ordinal_statistics(x[chosen], n, step)
        h[chosen], c[chosen], distinct[chosen] = (torch.as_tensor(part).cpu() for part in found)
    region = hc_region(h, c, n, config.complex_threshold)[0]
    return [
        {
            "metric": "H",
            "value": float(h[i]),
            "C": float(c[i]),
            "region": str(region[i]),
            "delay": int(delay[i]),
            "t_nat": float(t_nat[i]) / config.samples_per_period,
            "patterns": int(distinct[i]),
            "labelled": bool(time - 1 >= MIN_PERIODS * t_nat[i]),
        }
        for i in range(len(delay))
    ]


def _orbit_rows(config: PeccaryConfig, arm: str, orbits: Orbits) -> list[dict[str, Any]]:
    period = max(1, round(2 * np.pi / config.orbit_dt))  # both oscillators of the well
    if arm == LYAPUNOV:
        found = [{"value": float(value)} for value in orbits.exponent]
    elif arm in CLOCKS or arm == FIXED:
        ratio = IDEAL if arm in CLOCKS else None
        found = _measure(config, orbits.x, ratio, CLOCKS.get(arm, "ncross"))
    else:
        found = [{"value": float(value)} for value in SCORES[arm](orbits.x, period)]
    return [
        {
            **row,
            "metric": "orbit",
            "group": f"E = {group:.4g}",
            "exponent": float(exponent),
            "chaotic": bool(exponent > config.exponent_threshold),
            "drift": float(drift),
        }
        for row, exponent, group, drift in zip(
            found, orbits.exponent, orbits.group, orbits.drift, strict=True
        )
    ]


def _example_rows(config: PeccaryConfig, series: dict[str, Series]) -> list[dict[str, Any]]:
    """The first series of each kind: a stretch of it, and H and C over delays."""
    rows: list[dict[str, Any]] = []
    longest = series["sine"].x.shape[-1]
    delays = np.arange(1, min(100, (longest - 1) // (config.dimension - 1)))
    for kind, (x, _) in series.items():
        stretch = x[0, : round(4 * config.samples_per_period)]
        scaled = (stretch - stretch.mean()) / stretch.std()
        rows += [
            {"metric": "sample", "kind": kind, "step": i, "value": float(v)}
            for i, v in enumerate(scaled)
        ]
        curves = hc_curves(x[0], delays, config.dimension)
        rows += [
            {"metric": "curve", "kind": kind, "delay": int(d), "value": float(h), "C": float(c)}
            for d, h, c in zip(*curves, strict=True)
        ]
    return rows


def _galactic_rows(
    config: PeccaryConfig, arm: str, seed: int, log: Log
) -> Sequence[dict[str, Any]]:
    kept = _GALACTIC.get((config, seed))
    if kept is None:
        kept = {name: [] for name in PeccaryExperiment().arms(config)}
        blocks = [
            (name, first)
            for name in POTENTIALS
            for first in range(0, config.orbits, config.orbit_block)
        ]
        for done, (name, first) in enumerate(blocks):
            for key, rows in _galactic_block(
                config, name, first, seed, _part_of(log, name, done, len(blocks))
            ).items():
                kept[key] += rows
        _GALACTIC.clear()
        _GALACTIC[config, seed] = kept
    return kept[arm]


def _part_of(log: Log, message: str, done: int, parts: int) -> Callable[[float], None]:
    return lambda fraction: log((done + fraction) / parts, message)


# Rows of all arms of the last seed: integrating the orbits is the whole cost, and arms share them.
_GALACTIC: dict[tuple[PeccaryConfig, int], dict[str, list[dict[str, Any]]]] = {}


def _galactic_block(
    config: PeccaryConfig, name: str, first: int, seed: int, log: Callable[[float], None]
) -> dict[str, list[dict[str, Any]]]:
    x, exponent, drift = galactic_orbits(
        np.random.default_rng([seed, first, *name.encode()]),
        POTENTIALS[name],
        orbits=min(config.orbit_block, config.orbits - first),
        samples=config.orbit_samples,
        dt=config.orbit_dt,
        exponent_time=config.exponent_time,
        device=config.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        log=log,
    )
    found = {arm: _measure(config, x, IDEAL, clock) for arm, clock in CLOCKS.items()}
    found[FIXED] = _measure(config, x, None, "ncross")
    found["spectral-entropy"] = [{"value": float(v)} for v in spectral_entropy(x.cpu().numpy(), 1)]
    orbit = [
        {
            "metric": "orbit",
            "group": name,
            "exponent": float(value),
            "chaotic": bool(value > config.exponent_threshold),
            "drift": float(moved),
        }
        for value, moved in zip(exponent.cpu(), drift.cpu(), strict=True)
    ]
    return {
        arm: [{**row, **known} for row, known in zip(rows, orbit, strict=True)]
        for arm, rows in found.items()
    }


# --- baselines ------------------------------------------------------------------------------------


def spectral_entropy(x: np.ndarray, period: int) -> np.ndarray:
    """Shannon entropy of the periodogram over its maximum; `period` is of no use to it."""
    power = np.abs(np.fft.rfft(x - x.mean(-1, keepdims=True)))[:, 1:] ** 2
    p = power / power.sum(-1, keepdims=True)
    return entr(p).sum(-1) / np.log(p.shape[-1])


def sample_entropy(x: np.ndarray, period: int) -> np.ndarray:
    """-ln of the share of two-point matches that still match at three points; radius 0.2 sd.

    Richman & Moorman (2000), on every k-th point of a series so long that it holds more than 1000.
    """
    step = max(1, x.shape[-1] // _KDTREE_POINTS)
    return np.array([_sample_entropy(row[::step]) for row in x])


def _sample_entropy(x: np.ndarray) -> float:
    def matches(m: int) -> int:
        vectors = np.lib.stride_tricks.sliding_window_view(x, m)[: len(x) - 2]
        tree = cKDTree(vectors)
        return int(tree.count_neighbors(tree, 0.2 * x.std(), p=np.inf)) - len(vectors)

    longer, shorter = matches(3), matches(2)
    return float("nan") if longer == 0 else float(np.log(shorter / longer))


def zero_one_test(x: np.ndarray, period: int) -> np.ndarray:
    """K of the 0-1 test for chaos: near 0 for regular series, near 1 for chaotic ones and noise.

    Gottwald & Melbourne (2009), with the oscillatory term removed, median over 50 frequencies. It
    is blind to oversampled data: ten points of a natural period are kept.
    """
    x = x[:, :: max(1, period // 10)]
    n = x.shape[-1]
    lags = np.arange(1, max(3, n // 10 + 1))
    rng = np.random.default_rng(0)
    k = np.empty((50, len(x)))
    mean = x.mean(-1, keepdims=True)
    for i, frequency in enumerate(rng.uniform(np.pi / 5, 4 * np.pi / 5, 50)):
        walk = np.cumsum(x * np.exp(1j * frequency * np.arange(1, n + 1)), -1)
        spread = np.stack(
            [(np.abs(walk[:, lag:] - walk[:, :-lag]) ** 2).mean(-1) for lag in lags], -1
        )
        regular = mean**2 * (1 - np.cos(lags * frequency)) / (1 - np.cos(frequency))
        centred = spread - regular
        centred -= centred.mean(-1, keepdims=True)
        time = lags - lags.mean()
        scale = np.sqrt((centred**2).sum(-1) * (time**2).sum())
        k[i] = (centred * time).sum(-1) / np.where(scale > 0, scale, 1)
    return np.median(k, 0)


SCORES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "spectral-entropy": spectral_entropy,
    "sample-entropy": sample_entropy,
    "zero-one-test": zero_one_test,
}


# --- reading the table ----------------------------------------------------------------------------


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive scores above a negative; NaN without both."""
    ranks = rankdata(scores)
    up = int(positive.sum())
    down = len(positive) - up
    if up == 0 or down == 0:
        return float("nan")
    return float((ranks[positive].sum() - up * (up + 1) / 2) / (up * down))


def hindsight_accuracy(scores: np.ndarray, truth: np.ndarray) -> float:
    """Best three-way accuracy that two cuts on one score can reach, chosen knowing the labels."""
    finite = np.isfinite(scores)
    order = np.argsort(scores[finite], kind="stable")
    values, labels = scores[finite][order], truth[finite][order]
    # Cuts fall between different values only.
    cuts = np.concatenate([[True], np.diff(values) > 0, [True]])
    best = 0
    for classes in itertools.permutations(CLASSES):
        low, middle, high = (np.concatenate([[0], np.cumsum(labels == c)]) for c in classes)
        gain_low, gain_high = low - middle, middle - high
        gain_low, gain_high = gain_low[cuts], gain_high[cuts]
        # Correct = low[a] + middle[b] - middle[a] + high[end] - high[b], a <= b.
        best = max(best, int((np.maximum.accumulate(gain_low) + gain_high).max() + high[-1]))
    return best / len(scores)


def _correct(table: pd.DataFrame, arm: str) -> pd.DataFrame:
    rows = table[(table.metric == "H") & (table.arm == arm)].copy()
    rows["correct"] = (rows.region == rows.truth).astype(float)
    return rows


def _by_seed(rows: pd.DataFrame, column: str = "correct") -> pd.Series:
    return rows.groupby("seed")[column].mean()


def _at(rows: pd.DataFrame, **values: float) -> pd.DataFrame:
    for column, value in values.items():
        rows = rows[np.isclose(rows[column].astype(float), value)]
    return rows


def _orbit_auc(table: pd.DataFrame, arm: str) -> pd.Series:
    rows = table[(table.metric == "orbit") & (table.arm == arm)]
    values = {
        seed: auc(one.value.to_numpy(), one.chaotic.to_numpy(dtype=bool))
        for seed, one in rows.groupby("seed")
    }
    return _series(values)


def _series(values: Mapping[Any, float]) -> pd.Series:
    import pandas as pd

    return pd.Series(values, dtype=float)


# --- claims ---------------------------------------------------------------------------------------


def _series_claims(config: PeccaryConfig, table: pd.DataFrame) -> list[Claim]:
    rows = _correct(table, METHOD)
    ideal = _by_seed(_at(rows, duration=LONG, ratio=IDEAL))
    claims = [
        Claim.judge(
            "Series separate into regular, complex and stochastic in the entropy-complexity plane",
            paper="three regions; no accuracy given",
            measured=mean_interval(ideal),
            quantity=f"three-way accuracy at {LONG:g} periods, t_pat/t_nat = {IDEAL:g}",
            above=0.8,
            note="The regular boundary is the paper's; the complex-stochastic split is a "
            f"reconstruction (relative height {config.complex_threshold:g}).",
        )
    ]
    for duration in sorted({LONG, max(config.durations)}):
        best = _by_seed(_at(rows, duration=duration, ratio=IDEAL))
        for ratio, name in ((0.05, "short"), (1.0, "long")):
            other = _by_seed(_at(rows, duration=duration, ratio=ratio))
            claims.append(
                Claim.judge(
                    f"An ideal sampling exists: patterns too {name} lose accuracy",
                    paper="0.3 <~ t_pat/t_nat <~ 0.5",
                    measured=paired_difference(best, other),
                    quantity=f"accuracy at t_pat/t_nat {IDEAL:g} - at {ratio:g}, "
                    f"{duration:g} periods",
                    above=0.10,
                )
            )
    sines = rows[(rows.kind == "sine") & rows.ratio.isin(WINDOW)]
    outside = float((sines.region != "regular").sum())
    claims.append(
        Claim.judge(
            "A sine never leaves the regular region inside the window",
            paper="H <= H_per_max for periodic series",
            measured=Interval.exact(outside),
            quantity=f"sine series outside, of {len(sines)} (t_pat/t_nat 0.3-0.5, all durations)",
            below=0.5,
        )
    )
    fixed = _by_seed(_at(_correct(table, FIXED), duration=LONG))
    claims.append(
        Claim.judge(
            "The natural clock beats a fixed delay of one sample",
            paper="oversampled series all look regular",
            measured=paired_difference(ideal, fixed),
            quantity=f"accuracy at t_pat/t_nat {IDEAL:g} - at delay 1, {LONG:g} periods",
            above=0.0,
        )
    )
    short = _by_seed(_at(rows, duration=SHORT, ratio=IDEAL))
    recall = (
        _at(rows, duration=SHORT, ratio=IDEAL)
        .groupby("kind")["correct"]
        .mean()
        .sort_values()
        .map("{:.0%}".format)
    )
    claims.append(
        Claim.judge(
            "One and a half natural periods suffice",
            paper="t_dur/t_nat >= 1.5",
            measured=paired_difference(ideal, short),
            quantity=f"accuracy at {LONG:g} periods - at {SHORT:g}",
            below=0.10,
            note="Right at 1.5 periods: "
            + ", ".join(f"{kind} {share}" for kind, share in recall.items())
            + ". The estimator itself refuses a label where its own clock reads fewer.",
        )
    )
    longest = max(config.durations)
    last = _at(rows, duration=longest, ratio=IDEAL).copy()
    last["missing"] = 1 - last.patterns / math.factorial(config.dimension)
    chaos, noise = (
        _by_seed(last[last.truth == "complex"], "missing"),
        _by_seed(last[last.kind == "white noise"], "missing"),
    )
    claims.append(
        Claim.judge(
            "Patterns that never occur tell chaos from noise",
            paper="fewer than n! patterns ever occur",
            measured=paired_difference(chaos, noise),
            quantity=f"share of missing patterns, chaotic - white noise, {longest:g} periods",
            above=0.0,
            note="Regular series miss more still.",
        )
    )
    return claims


def _orbit_claims(config: PeccaryConfig, table: pd.DataFrame) -> list[Claim]:
    what = (
        "Hénon-Heiles orbits" if config.systems == "benchmark" else "orbits in galactic potentials"
    )
    ranking = f"H ranks chaotic above regular {what} from one coordinate"
    ours, fixed = _orbit_auc(table, METHOD).dropna(), _orbit_auc(table, FIXED).dropna()
    quantity = f"AUC of H at t_pat/t_nat {IDEAL:g} against the variational exponent"
    if ours.empty:
        note = "No seed drew both chaotic and regular orbits."
        return [
            Claim.not_measurable(ranking, paper="no figure given", quantity=quantity, note=note)
        ]
    rows = table[(table.metric == "orbit") & (table.arm == METHOD)]
    chaotic, regular = rows[rows.chaotic.astype(bool)], rows[~rows.chaotic.astype(bool)]
    note = (
        f"{len(chaotic)} chaotic orbits (exponent above {config.exponent_threshold:g}, mean H "
        f"{chaotic.value.mean():.3f}) and {len(regular)} regular ones (mean H "
        f"{regular.value.mean():.3f}); a weakly chaotic orbit's single coordinate is only slightly "
        f"richer than a regular one. Largest relative energy error {rows.drift.max():.1e}."
    )
    return [
        Claim.judge(
            ranking,
            paper="no figure given",
            measured=mean_interval(ours),
            quantity=quantity,
            above=0.85,
            note=note,
        ),
        Claim.judge(
            f"On {what}, too, the natural clock beats a fixed delay of one sample",
            paper="no figure given",
            measured=paired_difference(ours, np.maximum(fixed, 1 - fixed)),
            quantity="AUC at the natural clock - AUC at delay 1, read in its better direction",
            above=0.0,
            note=f"At delay 1 H puts chaotic orbits above regular ones with AUC {fixed.mean():.2f}.",
        ),
    ]


# --- figures --------------------------------------------------------------------------------------


def _plane_figure(config: PeccaryConfig, table: pd.DataFrame) -> Figure:
    import plotly.graph_objects as go

    envelope = hc_envelope(config.dimension, 600)
    plot = go.Figure()
    for curve in (envelope.lower, envelope.upper):
        plot.add_scatter(
            x=envelope.entropy,
            y=curve,
            mode="lines",
            line={"color": "gray", "width": 1.5},
            showlegend=False,
            hoverinfo="skip",
        )
    h_min, h_max = periodic_bounds(config.dimension)
    ends = np.interp([h_min, h_max], envelope.entropy, envelope.upper)
    floors = np.interp([h_min, h_max], envelope.entropy, envelope.lower)
    dash = {"color": "gray", "width": 1, "dash": "dash"}
    plot.add_scatter(
        x=[h_min, h_max, h_max],
        y=[ends[0], ends[1], floors[1]],
        mode="lines",
        line=dash,
        showlegend=False,
        hoverinfo="skip",
    )
    beyond = envelope.entropy >= h_max
    height = config.complex_threshold
    split = envelope.lower + height * (envelope.upper - envelope.lower)
    plot.add_scatter(
        x=envelope.entropy[beyond],
        y=split[beyond],
        mode="lines",
        line={**dash, "dash": "dot"},
        showlegend=False,
        hoverinfo="skip",
    )
    rows = _at(_correct(table, METHOD), duration=LONG, ratio=IDEAL)
    for i, (kind, one) in enumerate(rows.groupby("kind", sort=False)):
        plot.add_scatter(
            x=one.value,
            y=one.C,
            mode="markers",
            name=f"{kind} ({TRUTH[str(kind)]})",
            marker={"size": 7, "opacity": 0.75, "color": _color(i)},
        )
    for x, y, text in (
        (0.42, 0.24, "regular"),
        (0.64, 0.33, "complex"),
        (0.72, 0.23, "stochastic"),
    ):
        plot.add_annotation(x=x, y=y, text=f"<i>{text}</i>", showarrow=False)
    plot.add_annotation(x=0.36, y=0.305, ax=-60, ay=-25, text="<i>periodic</i>", arrowwidth=1)
    plot.update_layout(
        xaxis={"title": "permutation entropy H (share of its maximum)", "range": [0, 1.02]},
        yaxis={"title": "statistical complexity C (no unit)", "range": [0, 0.48]},
    )
    return Figure(
        "The entropy-complexity plane",
        f"Every labelled series at {LONG:g} natural periods and t_pat/t_nat = {IDEAL:g}, all seeds. "
        "Solid: no distribution lies outside. Dashed: the paper's regular and periodic boundaries. "
        "Dotted: the reconstructed split of complex from stochastic.",
        plot,
    )


def _accuracy_figure(table: pd.DataFrame) -> Figure:
    import plotly.graph_objects as go

    plot = go.Figure()
    rows = _correct(table, METHOD)
    for duration, one in rows.groupby("duration"):
        intervals = [mean_interval(_by_seed(at)) for _, at in one.groupby("ratio")]
        plot.add_scatter(
            x=sorted(one.ratio.unique()),
            y=[i.value for i in intervals],
            error_y=_bars(intervals),
            mode="lines+markers",
            name=f"{duration:g} periods",
        )
    plot.add_vrect(x0=WINDOW[0], x1=WINDOW[-1], opacity=0.12, fillcolor="gray", line_width=0)
    plot.update_layout(
        xaxis={
            "title": "pattern time / natural timescale, t_pat/t_nat",
            "type": "log",
            "tickvals": sorted(rows.ratio.unique()),
            "ticktext": [f"{r:g}" for r in sorted(rows.ratio.unique())],
        },
        yaxis={"title": "three-way accuracy (share of series)", "range": [0, 1]},
        legend={"title": "duration"},
    )
    return Figure(
        "Accuracy peaks where a pattern spans 0.3 to 0.5 of an oscillation",
        "Regular, complex or stochastic, by the regions of the plane; shaded, the paper's window. "
        "Bars: 95 % interval over seeds.",
        plot,
    )


def _baseline_figure(config: PeccaryConfig, table: pd.DataFrame) -> Figure:
    import plotly.graph_objects as go

    durations = [f"{d:g}" for d in config.durations]
    plot = go.Figure()
    arms = [arm for arm in table.arm.unique() if arm != LYAPUNOV]
    for arm in arms:
        rows = table[(table.arm == arm) & table.metric.isin(["H", "score"])]
        if arm in CLOCKS:
            rows = _at(rows, ratio=IDEAL)
        intervals = [
            mean_interval(
                [
                    hindsight_accuracy(one.value.to_numpy(), one.truth.to_numpy(dtype=str))
                    for _, one in at.groupby("seed")
                ]
            )
            for _, at in rows.groupby("duration")
        ]
        plot.add_bar(
            x=durations, y=[i.value for i in intervals], error_y=_bars(intervals), name=arm
        )
    plot.update_layout(
        barmode="group",
        xaxis={"title": "duration (natural periods)", "type": "category"},
        yaxis={"title": "best three-way accuracy of one score", "range": [0, 1]},
    )
    return Figure(
        "One number against one number",
        "What two cuts on a single score could reach if they were chosen knowing the labels: H at the "
        "natural clock, H at delay 1, and the baselines. A bound on each, not an achievable accuracy. "
        "Bars: 95 % interval over seeds. Lyapunov exponents are not defined for noise.",
        plot,
    )


def _curves_figure(config: PeccaryConfig, table: pd.DataFrame) -> Figure:
    from plotly.subplots import make_subplots

    plot = make_subplots(rows=1, cols=2, subplot_titles=("entropy H(l)", "complexity C(l)"))
    rows = table[table.metric == "curve"]
    scale = config.samples_per_period / (config.dimension - 1)
    for i, (kind, one) in enumerate(rows.groupby("kind", sort=False)):
        for column, values in ((1, one.value), (2, one.C)):
            plot.add_scatter(
                x=one.delay / scale,
                y=values,
                mode="lines",
                name=kind,
                legendgroup=kind,
                showlegend=column == 1,
                line={"color": _color(i)},
                row=1,
                col=column,
            )
    plot.add_hline(
        y=periodic_bounds(config.dimension)[1], line_dash="dash", line_color="gray", row=1, col=1
    )
    plot.update_xaxes(title="pattern time / nominal natural period")
    plot.update_yaxes(title="H (share of its maximum)", row=1, col=1)
    plot.update_yaxes(title="C (no unit)", row=1, col=2)
    return Figure(
        "Entropy and complexity over the sampling interval",
        "One series of each kind. Dashed: the most a one-maximum cycle can reach. Short patterns see "
        "only slopes, so every smooth series looks regular; long ones alias even a sine.",
        plot,
    )


def _examples_figure(config: PeccaryConfig, table: pd.DataFrame) -> Figure:
    from plotly.subplots import make_subplots

    rows = table[table.metric == "sample"]
    kinds = list(dict.fromkeys(rows.kind))
    plot = make_subplots(rows=len(kinds), cols=1, shared_xaxes=True, vertical_spacing=0.02)
    for i, kind in enumerate(kinds):
        one = rows[rows.kind == kind]
        plot.add_scatter(
            x=one.step / config.samples_per_period,
            y=one.value,
            mode="lines",
            name=f"{kind} ({TRUTH[kind]})",
            line={"width": 1.2, "color": _color(i)},
            row=i + 1,
            col=1,
        )
        plot.update_yaxes(showticklabels=False, row=i + 1, col=1)
    plot.update_yaxes(title="x (own mean and deviation)", row=(len(kinds) + 1) // 2, col=1)
    plot.update_xaxes(title="time (natural periods)", row=len(kinds), col=1)
    plot.update_layout(height=110 * len(kinds))
    return Figure(
        "What the labels are for",
        "Four nominal natural periods of one series of each kind, seed 0.",
        plot,
    )


def _orbits_figure(config: PeccaryConfig, table: pd.DataFrame) -> Figure:
    import plotly.graph_objects as go

    plot = go.Figure()
    rows = table[(table.metric == "orbit") & (table.arm == METHOD)]
    rows = rows.sample(min(len(rows), 5000), random_state=0)
    for group, one in sorted(rows.groupby("group"), key=lambda pair: pair[1].exponent.mean()):
        plot.add_scatter(
            # A decaying shadow gives a slightly negative exponent, which a log axis can't show.
            x=one.exponent.clip(lower=1e-4),
            y=one.value,
            mode="markers",
            name=str(group),
            marker={"size": 7, "opacity": 0.75},
        )
    plot.add_hline(
        y=periodic_bounds(config.dimension)[1],
        line_dash="dash",
        line_color="gray",
        annotation_text="regular below",
        annotation_position="bottom left",
    )
    plot.add_vline(x=config.exponent_threshold, line_dash="dot", line_color="gray")
    plot.add_annotation(
        x=math.log10(config.exponent_threshold),  # a log axis takes an annotation's exponent
        y=1,
        yref="paper",
        xanchor="left",
        text="chaotic to the right",
        showarrow=False,
    )
    areas = ", ".join(
        f"{arm} {mean_interval(values).value:.2f}"
        for arm in table.arm.unique()
        if arm != LYAPUNOV and len(values := _orbit_auc(table, arm).dropna())
    )
    plot.update_layout(
        xaxis={"title": "largest Lyapunov exponent (1 / time unit)", "type": "log"},
        yaxis={"title": f"H of x(t) at t_pat/t_nat = {IDEAL:g}"},
    )
    return Figure(
        "Entropy of one coordinate against the orbit's Lyapunov exponent",
        "All seeds. A weakly chaotic orbit's coordinate is only slightly richer than a regular one's. "
        f"Area under the curve, mean over seeds: {areas or 'not measurable, one class only'}.",
        plot,
    )


def _bars(intervals: Sequence[Interval]) -> dict[str, Any]:
    return {
        "array": [i.high - i.value for i in intervals],
        "arrayminus": [i.value - i.low for i in intervals],
    }


def _color(index: int) -> str:
    from szilard.lab.figures import color

    return color(index)


experiment = PeccaryExperiment()
