"""Maximum-entropy mechanics: an ion channel learned average by average, and what driven systems lose.

Channel: the states of a few sites that may hold potassium or sodium, their hidden energies, and six
stages of measured averages, exact and from samples. Response: a driven ring, the process's own
fluctuation-dissipation theorem against finite differences and against the equilibrium formula. Loss: a
particle in a potential that is moved fast and slowly. Counting: where the 1/n! comes from. Ensembles:
canonical, grand canonical and isothermal-isobaric ones from their averages alone.
"""

from __future__ import annotations

import csv
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field
from scipy import optimize, stats

from szilard.lab.experiment import (
    Claim,
    ExperimentConfig,
    Figure,
    Interval,
    Log,
    Preset,
    Row,
)
from szilard.lab.statistics import mean_interval, paired_difference
from szilard.physics import (
    BoundaryWarning,
    MaxEnt,
    MaxEntModel,
    Process,
    canonical,
    divergence,
    grand_canonical,
    isothermal_isobaric,
    product_states,
    push_forward,
)

if TYPE_CHECKING:
    import pandas as pd

METHOD = "maxent-mechanics"
UNIFORM = "uniform prior"
INDEPENDENT = "independent sites"
LEAST_SQUARES = "least-squares energies"
REWEIGHTED = "reweighted samples"
GENERIC = "generic optimiser"
EQUILIBRIUM = "equilibrium response"
STAGES = (
    "number of ions",
    "number of K",
    "dipole",
    "site occupancies",
    "neighbours",
    "next neighbours",
)
EMPTY, POTASSIUM, SODIUM = 0, 1, 2


class MaxEntConfig(ExperimentConfig):
    seeds: int = Field(default=20, ge=1, description="number of seeds; each draws its own samples")
    sites: int = Field(default=4, ge=3, description="of the channel, each empty, K or Na")
    counts: Path | None = Field(
        default=None,
        description="your own channel: a CSV file with a column of states (one digit a site: 0 empty, "
        "1 K, 2 Na) and a column of counts, in place of the hidden energies",
    )
    samples: tuple[int, ...] = Field(
        default=(200, 2_000, 20_000), description="sizes of the samples that give noisy averages"
    )
    drives: tuple[float, ...] = Field(
        default=(0.0, -1.0, -3.0), description="multipliers that drive the ring"
    )
    steps: int = Field(default=12, ge=2, description="length of the driven ring's process")
    taus: tuple[int, ...] = Field(
        default=(10, 30, 100, 300, 1_000, 3_000),
        description="steps in which the potential is moved",
    )
    line: int = Field(default=40, ge=30, description="states of the line the particle moves on")
    particles: tuple[int, ...] = Field(
        default=(10, 30, 100, 300, 1_000), description="labelled particles of the counting part"
    )


class MaxEntExperiment:
    Config: ClassVar[type[ExperimentConfig]] = MaxEntConfig
    presets: ClassVar[Mapping[Preset, ExperimentConfig]] = {
        "smoke": MaxEntConfig(seeds=2, samples=(200,), taus=(100, 300), particles=(10, 100)),
        "quick": MaxEntConfig(),
        "paper": MaxEntConfig(
            seeds=100,
            sites=6,
            samples=(200, 2_000, 20_000, 200_000),
            taus=(10, 30, 100, 300, 1_000, 3_000, 10_000),
        ),
    }

    def arms(self, config: MaxEntConfig) -> Sequence[str]:
        return [METHOD, UNIFORM, INDEPENDENT, LEAST_SQUARES, REWEIGHTED, GENERIC, EQUILIBRIUM]

    def run(self, config: MaxEntConfig, arm: str, seed: int, log: Log) -> Sequence[Row]:
        channel = Channel(config)
        if arm == METHOD:
            parts: list[Iterator[Row]] = [
                _stages(channel),
                _noisy(config, channel, seed),
                _response(config),
                _loss(config),
                _counting(config),
                _ensembles(seed),
            ]
        elif arm == EQUILIBRIUM:
            parts = [_equilibrium_response(config)]
        elif arm == GENERIC:
            parts = [_generic(channel)]
        else:
            parts = [_baseline(config, channel, arm, seed)]
        rows: list[Row] = []
        for done, part in enumerate(parts):
            rows += part
            log((done + 1) / len(parts), f"part {done + 1} of {len(parts)}")
        return rows

    def claims(self, config: MaxEntConfig, table: pd.DataFrame) -> Sequence[Claim]:
        return _claims(config, table)

    def figures(self, config: MaxEntConfig, table: pd.DataFrame) -> Sequence[Figure]:
        return _figures(config, table)


experiment = MaxEntExperiment()


# --- the channel ----------------------------------------------------------------------------------


class Channel:
    """States of the sites, what is measured on them stage by stage, and the truth behind."""

    def __init__(self, config: MaxEntConfig) -> None:
        self.states = product_states(*[range(3)] * config.sites).astype(int)
        sites = config.sites
        place = np.arange(1, sites + 1) / (sites + 1)
        full = self.states != EMPTY
        near = [full[:, i] & full[:, i + 1] for i in range(sites - 1)]
        next_near = [full[:, i] & full[:, i + 2] for i in range(sites - 2)]
        columns: list[list[np.ndarray]] = [
            [full.sum(1)],
            [(self.states == POTASSIUM).sum(1)],
            [full @ place],
            [*(self.states == POTASSIUM).T, *(self.states == SODIUM).T],
            near,
            next_near,
        ]
        self.stages = {
            stage: {f"{stage} {k + 1}": column.astype(float) for k, column in enumerate(found)}
            for stage, found in zip(STAGES, columns, strict=True)
        }
        self.features = {name: c for found in self.stages.values() for name, c in found.items()}
        self.matrix = np.column_stack(list(self.features.values()))
        self.truth = self._hidden(place) if config.counts is None else self._counted(config.counts)

    def _hidden(self, place: np.ndarray) -> np.ndarray:
        ends = np.isin(np.arange(len(place)), (0, len(place) - 1))
        energy = np.where(self.states == POTASSIUM, np.where(ends, -1.5, -2.0), 0.0).sum(1)
        energy += np.where(self.states == SODIUM, np.where(ends, -1.0, -0.2), 0.0).sum(1)
        energy += 0.8 * self.features["dipole 1"]
        energy += 2.5 * sum(self.stages["neighbours"].values())
        energy += 1.0 * sum(self.stages["next neighbours"].values())
        # What no stage measures: it is left over at the end.
        energy += 0.7 * ((self.states == POTASSIUM).any(1) & (self.states == SODIUM).any(1))
        weights = np.exp(-energy)
        return weights / weights.sum()

    def _counted(self, path: Path) -> np.ndarray:
        place = {"".join(map(str, state)): i for i, state in enumerate(self.states)}
        counts = np.zeros(len(self.states))
        with path.open(newline="") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                try:
                    state, count = row
                    if number == 1 and state not in place:
                        continue  # a header
                    value = float(count)
                    if not 0 <= value < math.inf:
                        raise ValueError
                    counts[place[state.strip()]] += value
                except (ValueError, KeyError):
                    raise ValueError(
                        f"counts: line {number} of {path} must be a state of "
                        f"{self.states.shape[1]} digits 0 to 2 and a count, but is {row}"
                    ) from None
        if not counts.sum():
            raise ValueError(f"counts: {path} holds no counts")
        return counts / counts.sum()

    def independent(self, p: np.ndarray) -> np.ndarray:
        """The product of the sites' own distributions."""
        product = np.ones(len(p))
        for site in self.states.T:
            product *= np.bincount(site, weights=p, minlength=3)[site]
        return product


def _stages(channel: Channel) -> Iterator[Row]:
    truth, prior = channel.truth, np.ones(len(channel.truth))
    yield {"metric": "kl", "value": divergence(truth, prior), "step": 0}
    model: MaxEntModel | None = None
    for step, (stage, features) in enumerate(channel.stages.items(), start=1):
        averages = np.array([truth @ column for column in features.values()])
        model = (
            MaxEnt(features).fit(averages) if model is None else model.extend(features, averages)
        )
        left = divergence(truth, model.p)
        for metric, value in (
            ("kl", left),
            ("gain", model.gain),
            ("newton steps", model.iterations),
            ("pythagoras", abs(divergence(truth, prior) - left - model.divergence)),
        ):
            yield {"metric": metric, "value": value, "step": step, "stage": stage}


def _sampled(channel: Channel, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies of a sample, and the features' averages with their standard errors.

    One pseudo-observation of the whole range is in the errors: a feature that was never seen to vary is
    not thereby known exactly.
    """
    rng = np.random.default_rng((seed, samples))
    drawn = rng.multinomial(samples, channel.truth) / samples
    means = drawn @ channel.matrix
    variances = drawn @ (channel.matrix - means) ** 2
    spread = np.ptp(channel.matrix, axis=0) ** 2 / samples
    return drawn, np.stack([means, np.sqrt((variances + spread) / samples)])


def _noisy(config: MaxEntConfig, channel: Channel, seed: int) -> Iterator[Row]:
    for samples in config.samples:
        _, (means, errors) = _sampled(channel, samples, seed)
        for sigma in (None, errors):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", BoundaryWarning)
                p = MaxEnt(channel.features).fit(means, sigma).p
            yield from _distances(channel, np.asarray(p), samples, sigma is not None)


def _distances(channel: Channel, p: np.ndarray, samples: int, sigma: bool) -> Iterator[Row]:
    left = divergence(channel.truth, p)
    keys = {"samples": samples, "sigma": sigma}
    yield {"metric": "impossible truth", "value": float(math.isinf(left)), **keys}
    if math.isfinite(left):
        yield {"metric": "sample kl", "value": left, **keys}
    distance = np.abs(channel.truth - p).sum() / 2
    yield {"metric": "total variation", "value": float(distance), **keys}


def _baseline(config: MaxEntConfig, channel: Channel, arm: str, seed: int) -> Iterator[Row]:
    states = len(channel.truth)
    if arm == INDEPENDENT:
        yield {
            "metric": "kl",
            "value": divergence(channel.truth, channel.independent(channel.truth)),
        }
    for samples in config.samples:
        drawn, (means, errors) = _sampled(channel, samples, seed)
        if arm == UNIFORM:
            p = np.full(states, 1 / states)
        elif arm == INDEPENDENT:
            p = channel.independent(drawn)
        elif arm == LEAST_SQUARES:
            # Energies are minus the logarithm of how often a state was seen, where it was.
            seen = drawn > 0
            design = np.column_stack([channel.matrix, np.ones(states)])
            weight = np.sqrt(drawn[seen])[:, None]
            energies = -np.log(drawn[seen])[:, None]
            fitted = np.linalg.lstsq(weight * design[seen], weight * energies, rcond=None)[0]
            p = np.exp(-(design @ fitted)[:, 0])
            p /= p.sum()
        else:
            # As many draws from the prior, reweighted until they have the averages.
            rng = np.random.default_rng((seed, samples, 1))
            prior = rng.multinomial(samples, np.full(states, 1 / states)).astype(float)
            p = np.asarray(MaxEnt(channel.features, prior).fit(means, errors).p)
        yield from _distances(channel, p, samples, arm == REWEIGHTED)


def _generic(channel: Channel) -> Iterator[Row]:
    """The same last stage by a generic constrained optimiser of the entropy itself."""
    averages = channel.truth @ channel.matrix
    began = time.perf_counter()
    exact = MaxEnt(channel.features).fit(averages)
    ours = time.perf_counter() - began
    states = len(channel.truth)
    kept = [i for i, name in enumerate(exact.names) if name not in exact.dropped]
    rows = np.vstack([channel.matrix[:, kept].T, np.ones(states)])
    right = np.append(averages[kept], 1.0)
    began = time.perf_counter()
    found = optimize.minimize(
        lambda p: float((p * np.log(np.maximum(p, 1e-300))).sum()),
        np.full(states, 1 / states),
        jac=lambda p: np.log(np.maximum(p, 1e-300)) + 1,
        hess=lambda p: np.diag(1 / np.maximum(p, 1e-12)),
        bounds=[(1e-12, 1)] * states,
        constraints=optimize.LinearConstraint(rows, right, right),
        method="trust-constr",
        options={"gtol": 1e-8, "xtol": 1e-10, "maxiter": 1000},
    )
    theirs = time.perf_counter() - began
    p = np.maximum(found.x, 0) / np.maximum(found.x, 0).sum()
    yield {"metric": "kl", "value": divergence(channel.truth, p)}
    yield {"metric": "difference", "value": float(np.abs(p - np.asarray(exact.p)).max())}
    yield {"metric": "times longer", "value": theirs / ours}


# --- motion ---------------------------------------------------------------------------------------

RING = np.array([np.roll([0.2, 0.6, 0.2, 0.0], k - 1) for k in range(4)])
STEP = np.array([[(0, 1, 0, -1)[(b - a) % 4] for b in range(4)] for a in range(4)], dtype=float)


def _ring(config: MaxEntConfig) -> tuple[Process, np.ndarray]:
    # An uneven start and an uneven ring: on an even one, steps at different times are independent.
    tilt = RING * np.exp(-0.3 * np.arange(4))[None]
    kernel = tilt / tilt.sum(1, keepdims=True)
    return Process(kernel, STEP, np.array([0.7, 0.1, 0.1, 0.1])), np.ones(config.steps)


def _slope(process: Process, drive: np.ndarray, h: float = 1e-4) -> np.ndarray:
    columns = []
    for t in range(len(drive)):
        e = np.zeros(len(drive))
        e[t] = h
        # Fourth order in h, so that neither truncation nor rounding reaches 1e-9.
        near = process.run(drive + e).means - process.run(drive - e).means
        far = process.run(drive + 2 * e).means - process.run(drive - 2 * e).means
        columns.append((8 * near - far) / (12 * h))
    return np.stack(columns, axis=1)


def _response(config: MaxEntConfig) -> Iterator[Row]:
    process, ones = _ring(config)
    even = Process(RING, STEP, np.full(4, 0.25))
    for drive in config.drives:
        slope = _slope(process, drive * ones)
        error = np.abs(process.response(drive * ones) - slope).max() / np.abs(slope).max()
        yield {"metric": "response error", "value": float(error), "drive": drive}
        run = even.run(drive * ones)
        yield {
            "metric": "response per step",
            "value": -float(even.response(drive * ones)[-1, -1]),
            "drive": drive,
        }
        yield {"metric": "caliber per step", "value": run.caliber / config.steps, "drive": drive}


def _equilibrium_response(config: MaxEntConfig) -> Iterator[Row]:
    process, ones = _ring(config)
    even = Process(RING, STEP, np.full(4, 0.25))
    at_rest = process.response(0 * ones)
    for drive in config.drives:
        slope = _slope(process, drive * ones)
        error = np.abs(at_rest - slope).max() / np.abs(slope).max()
        yield {"metric": "response error", "value": float(error), "drive": drive}
        yield {
            "metric": "response per step",
            "value": -float(even.response(0 * ones)[-1, -1]),
            "drive": drive,
        }


def moved(line: int, tau: int) -> tuple[np.ndarray, np.ndarray]:
    """Metropolis steps in a harmonic well that is moved over half the line in `tau` steps.

    Returns:
        The transitions of every step, shape (tau, line, line), and the start, at equilibrium.
    """
    place = np.arange(line)
    centres = line / 4 + line / 2 * np.arange(1, tau + 1) / tau
    energy = 0.08 * (place - centres[:, None]) ** 2
    kernels = np.zeros((tau, line, line))
    for shift in (-1, 1):
        a = place[max(0, -shift) : line - max(0, shift)]
        kernels[:, a, a + shift] = np.minimum(1, np.exp(energy[:, a] - energy[:, a + shift])) / 2
    kernels[:, place, place] = 1 - kernels.sum(-1)
    start = np.exp(-0.08 * (place - line / 4) ** 2)
    return kernels, start / start.sum()


def _loss(config: MaxEntConfig) -> Iterator[Row]:
    still = np.zeros((config.line, config.line))
    for tau in config.taus:
        kernels, start = moved(config.line, tau)
        loss = Process(kernels, still, start).information_loss(np.zeros(tau))
        yield {"metric": "information loss", "value": float(loss.total.sum()), "tau": tau}
        least = float((loss.system + loss.exchange).min())
        yield {"metric": "least loss of a step", "value": least, "tau": tau}


def _counting(config: MaxEntConfig, mean: float = 2.0) -> Iterator[Row]:
    for n in config.particles:
        # A particle is in or out with the prior's share; summing labels out convolves them.
        weights = np.ones(1)
        for _ in range(n):
            inside = np.concatenate([np.arange(len(weights)), np.arange(len(weights)) + 1])
            labelled = np.concatenate([weights * (1 - mean / n), weights * mean / n])
            _, weights = push_forward(labelled, inside.tolist())
        poisson = stats.poisson.pmf(np.arange(n + 1), mean)
        distance = (np.abs(weights - poisson).sum() + 1 - poisson.sum()) / 2
        yield {"metric": "distance from 1/n!", "value": float(distance), "particles": n}


def _ensembles(seed: int) -> Iterator[Row]:
    rng = np.random.default_rng((seed, 7))
    energies, other = rng.uniform(0, 3, 30), rng.integers(1, 6, 30).astype(float)
    degeneracies = rng.integers(1, 9, 30).astype(float)
    beta, potential, pressure = rng.uniform(0.3, 2.0, 3)
    for name, exponent, make in (
        ("canonical", energies, lambda p: canonical(energies, p @ energies, degeneracies)),
        (
            "grand canonical",
            energies - potential * other,
            lambda p: grand_canonical(energies, other, p @ energies, p @ other, degeneracies),
        ),
        (
            "isothermal-isobaric",
            energies + pressure * other,
            lambda p: isothermal_isobaric(energies, other, p @ energies, p @ other, degeneracies),
        ),
    ):
        weights = degeneracies * np.exp(-beta * exponent)
        p = weights / weights.sum()
        found = make(p)
        error = max(float(np.abs(found.p - p).max()), abs(found.beta / beta - 1))
        yield {"metric": "ensemble error", "value": error, "ensemble": name}


# --- claims and figures ---------------------------------------------------------------------------


def _of(table: pd.DataFrame, arm: str, metric: str) -> pd.DataFrame:
    return table[(table.arm == arm) & (table.metric == metric)]


def _claims(config: MaxEntConfig, table: pd.DataFrame) -> Sequence[Claim]:
    first = table[(table.arm == METHOD) & (table.seed == table.seed.min())]

    def exact(metric: str) -> pd.DataFrame:
        """Parts that draw nothing are the same for every seed."""
        return first[first.metric == metric]

    kl = exact("kl").sort_values("step").value.to_numpy()
    claims = [
        Claim.judge(
            "Averages can be added one after the other, and each refines the model",
            paper="ion-channel example, qualitative",
            measured=Interval.exact(float(-np.diff(kl).max())),
            quantity="smallest fall of KL(truth || model) over the stages, nats",
            above=0,
            note="KL after each stage: " + ", ".join(f"{value:.4f}" for value in kl),
        ),
        Claim.judge(
            "Information gains add up (Pythagoras)",
            paper="known for exact averages",
            measured=Interval.exact(float(exact("pythagoras").value.max())),
            quantity="largest difference of KL(truth || prior) from what is left plus what was gained, nats",
            below=1e-9,
        ),
        Claim.judge(
            "The ensembles follow from averages alone",
            paper="derivation",
            measured=Interval.exact(float(_of(table, METHOD, "ensemble error").value.max())),
            quantity="largest difference from Boltzmann's weights over seeds and three ensembles",
            below=1e-6,
        ),
        Claim.judge(
            "The response theorem of the process holds arbitrarily far from equilibrium",
            paper="identity",
            measured=Interval.exact(float(exact("response error").value.max())),
            quantity="largest relative difference from the means' derivative over all drives",
            below=1e-6,
        ),
    ]
    driven = min(config.drives)
    wrong = _of(table, EQUILIBRIUM, "response error")
    claims.append(
        Claim.judge(
            "The equilibrium theorem does not hold there",
            paper="implied",
            measured=Interval.exact(float(wrong[wrong.drive == driven].value.iloc[0])),
            quantity=f"its relative error at a drive of {driven:g}",
            above=0.1,
        )
    )
    claims.append(
        Claim.judge(
            "Information lost in a step is never negative",
            paper="inequality",
            measured=Interval.exact(float(exact("least loss of a step").value.min())),
            quantity="smallest loss of any step, nats",
            above=-1e-12,
            note="0 but for rounding counts as not negative",
        )
    )
    losses = exact("information loss").sort_values("tau")
    slow = losses.tail(2)
    scaled = slow.value.to_numpy() * slow.tau.to_numpy()
    claims.append(
        Claim.judge(
            "Moved slowly, a system loses as little as one over the time taken",
            paper="-",
            measured=Interval.exact(abs(scaled[1] / scaled[0] - 1)),
            quantity="change of loss x steps between the two slowest moves",
            below=0.05,
            note=", ".join(
                f"{t:g} steps {v:.3g}" for t, v in zip(losses.tau, losses.value, strict=True)
            ),
        )
    )
    counting = exact("distance from 1/n!")
    order = np.polyfit(np.log(counting.particles), np.log(counting.value), 1)[0]
    claims.append(
        Claim.judge(
            "Indistinguishability comes out of what is asked: counts of many labelled particles bring 1/n!",
            paper="qualitative",
            measured=Interval.exact(abs(float(order) + 1)),
            quantity="distance of the exponent of N in the total variation from Poisson's weights from -1",
            below=0.1,
        )
    )
    fewest = min(config.samples)
    noisy = _of(table, METHOD, "total variation")
    noisy = noisy[noisy.samples == fewest].sort_values("seed")
    left = _of(table, METHOD, "sample kl")
    left = left[left.samples == fewest].pivot(index="seed", columns="sigma", values="value")
    both = left.dropna() if len(left.columns) == 2 else left.iloc[:0]
    impossible = _of(table, METHOD, "impossible truth")
    impossible = impossible[(impossible.samples == fewest) & ~impossible.sigma.astype(bool)]
    note = f"without errors the model excludes true states in {int(impossible.value.sum())} of {len(impossible)} samples"
    if len(both):
        claims.append(
            Claim.judge(
                "Errors of the averages protect against few samples",
                paper="-",
                measured=paired_difference(both[False], both[True]),
                quantity=f"KL(truth || model) without errors - with errors, {fewest} samples, nats",
                above=0,
                note=note,
            )
        )
    for arm in (INDEPENDENT, LEAST_SQUARES, REWEIGHTED):
        other = _of(table, arm, "total variation")
        other = other[other.samples == fewest].sort_values("seed")
        with_errors = noisy[noisy.sigma.astype(bool)]
        claims.append(
            Claim.judge(
                f"Closer to the truth than {arm}",
                paper="-",
                measured=paired_difference(other.value, with_errors.value),
                quantity=f"total variation of {arm} - of the method, {fewest} samples",
                above=0,
            )
        )
    return claims


def _figures(config: MaxEntConfig, table: pd.DataFrame) -> Sequence[Figure]:
    import plotly.graph_objects as go

    first = table[(table.arm == METHOD) & (table.seed == table.seed.min())]
    stages = first[first.metric == "kl"].sort_values("step")
    plot = go.Figure()
    plot.add_bar(x=["prior", *STAGES], y=stages.value, name="left to know")
    gains = first[first.metric == "gain"].sort_values("step")
    plot.add_bar(x=gains.stage, y=gains.value, name="gained by this stage")
    for arm in (INDEPENDENT,):
        level = float(_of(table, arm, "kl").value.mean())
        plot.add_hline(level, line_dash="dot", annotation_text=arm)
    plot.update_layout(barmode="group", yaxis_title="nats")
    figures = [
        Figure(
            "An ion channel, average by average",
            "KL(truth || model) falls with every stage by exactly what the stage gained; the rest is the "
            "term of the hidden energies that no stage measures.",
            plot,
        )
    ]
    plot = go.Figure()
    for arm in (METHOD, UNIFORM, INDEPENDENT, LEAST_SQUARES, REWEIGHTED):
        rows = _of(table, arm, "total variation")
        for sigma, kind in rows.groupby("sigma"):
            found = [mean_interval(group.value) for _, group in kind.groupby("samples")]
            suffix = (", with errors" if sigma else ", exact averages") if arm == METHOD else ""
            plot.add_scatter(
                x=sorted(kind.samples.unique()),
                y=[interval.value for interval in found],
                error_y={
                    "type": "data",
                    "array": [i.high - i.value for i in found],
                    "arrayminus": [i.value - i.low for i in found],
                },
                name=arm + suffix,
            )
    plot.update_xaxes(type="log", title="samples")
    plot.update_yaxes(type="log", title="total variation from the truth")
    figures.append(
        Figure(
            "Averages from samples",
            "Means over seeds with 95 % intervals; all sixteen features are used, three of them determined by others.",
            plot,
        )
    )
    plot = go.Figure()
    for arm in (METHOD, EQUILIBRIUM):
        rows = _of(table, arm, "response per step")
        rows = rows[rows.seed == rows.seed.min()].sort_values("drive")
        plot.add_scatter(x=rows.drive, y=rows.value, mode="lines+markers", name=arm)
    plot.update_layout(xaxis_title="drive lambda", yaxis_title="-d<g>/d lambda of a step")
    figures.append(
        Figure(
            "Response of a driven ring",
            "The process's own theorem follows the saturation of the current; the equilibrium formula "
            "knows nothing of the drive.",
            plot,
        )
    )
    losses = first[first.metric == "information loss"].sort_values("tau")
    plot = go.Figure()
    plot.add_scatter(x=losses.tau, y=losses.value, mode="lines+markers", name="total loss")
    last = losses.iloc[-1]
    plot.add_scatter(
        x=losses.tau,
        y=last.value * last.tau / losses.tau,
        mode="lines",
        line={"dash": "dot"},
        name="1 / steps",
    )
    plot.update_xaxes(type="log", title="steps in which the well is moved")
    plot.update_yaxes(type="log", title="information loss, nats")
    figures.append(
        Figure(
            "What moving a well costs",
            "Loss rises while the particle cannot follow and falls as one over the time once it can.",
            plot,
        )
    )
    return figures
