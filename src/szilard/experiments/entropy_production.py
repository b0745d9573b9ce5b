"""Entropy production where it is known, in a crowd in a trap, and where a crowd separates.

Trap of one: a linear problem with a closed form. Ring: one coordinate that is pushed through a repulsive
centre, whose truth is a Fokker-Planck equation on a grid. Crowd: sixteen particles in a trap at several
speeds, a score learned at one, judged by the total that needs no score, also with more particles than
it was trained on. Separation: active discs on a torus, which cluster without attraction, as a map.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from szilard.lab.experiment import (
    Claim,
    ExperimentConfig,
    Figure,
    Interval,
    Log,
    Preset,
    Row,
)
from szilard.lab.figures import color
from szilard.lab.statistics import mean_interval
from szilard.physics import (
    ActiveOU,
    DiffusionSystem,
    EntropyProduction,
    LocalScoreTransformer,
    Score,
    ScoreMLP,
    ScoreTrainer,
    entropy_production,
    gaussian_entropy_production,
)
from szilard.physics.entropy_production import System

if TYPE_CHECKING:
    import pandas as pd

METHOD = "entropy-production"
PLAIN = "without the equilibrium part"
DENOISING = "denoising"
KERNEL = "kernel density"
FREE = "score-free total"
UNCERTAINTY = "uncertainty relation"
PAIRS = "pairs of states (NEEP)"
TRAP, RING, CROWD, SEPARATION = "trap of one", "ring", "crowd", "separation"

ONE = ActiveOU(N=1, d=1, v0=0.2, A=0.05, gamma=0.1, eps=0.1)
RING_WIDTH, RING_SPEED, RING_FORCE, RING_RATE, STEEP = 8.0, 0.25, 2.5, 0.1, 7.5


class EntropyProductionConfig(ExperimentConfig):
    samples: int = Field(default=100_000, ge=100, description="of the trap of one and of the ring")
    network_steps: int = Field(default=1_000, ge=1, description="of training in these two")
    network_batch: int = Field(default=1_024, ge=1, description="samples a step in these two")
    widths: tuple[int, ...] = Field(default=(64, 64, 64), description="of their network's layers")
    network_rate: float = Field(default=3e-3, gt=0, description="peak learning rate in these two")
    grid: tuple[int, int] = Field(
        default=(256, 128), description="cells of the ring's grid, x and g"
    )
    particles: int = Field(default=16, ge=4, description="of the crowd")
    larger: tuple[int, ...] = Field(
        default=(32, 64), description="numbers of particles the crowd's score is taken to"
    )
    speeds: tuple[float, ...] = Field(
        default=(0.0, 0.1, 0.2, 0.4), description="v0 of the crowd; the first is the calibration"
    )
    learned_speed: float = Field(
        default=0.2, ge=0, description="the v0 at which a score is learned"
    )
    time_step: float = Field(default=0.01, gt=0, description="of the crowd")
    trajectories: int = Field(
        default=96, ge=2, description="of the crowd, half of them to learn from"
    )
    burn_in: float = Field(default=60.0, ge=0, description="time before the crowd is measured")
    snapshots: int = Field(default=30, ge=1, description="of a trajectory, two units of time apart")
    neighbours: int = Field(default=10, ge=1, description="that a particle of the crowd sees")
    reach: float | None = Field(
        default=3.0,
        gt=0,
        description="of attention in the crowd; None attends to all neighbours alike",
    )
    width: int = Field(default=32, ge=4, description="of the local transformer")
    layers: int = Field(default=2, ge=1, description="of the local transformer")
    embedding_layers: int = Field(default=1, ge=1, description="hidden layers of its embeddings")
    crowd_steps: int = Field(default=1_000, ge=1, description="of training of the crowd's score")
    crowd_batch: int = Field(default=32, ge=1, description="snapshots a step")
    crowd_rate: float = Field(
        default=3e-3, gt=0, description="peak learning rate of the crowd's score"
    )
    discs: int = Field(default=400, ge=8, description="that separate on the torus")
    more_discs: int = Field(default=1_024, ge=8, description="the score is taken to")
    packing: float = Field(
        default=0.5, gt=0, lt=1, description="share of the torus that they cover"
    )
    disc_rate: float = Field(default=1e-3, gt=0, description="gamma of the discs")
    disc_speed: float = Field(default=0.025, gt=0, description="v0 of the discs")
    disc_step: float = Field(default=0.1, gt=0, description="time step of the discs")
    disc_burn_in: float = Field(default=4_000.0, ge=0, description="time before they are measured")
    disc_snapshots: int = Field(default=12, ge=2, description="half a unit of 1/gamma apart")
    disc_neighbours: int = Field(default=12, ge=1, description="that a disc sees")
    disc_steps: int = Field(default=250, ge=1, description="of training of the discs' score")
    noise: float = Field(default=0.1, gt=0, description="sigma of the denoising losses")


class EntropyProductionExperiment:
    Config: ClassVar[type[ExperimentConfig]] = EntropyProductionConfig
    presets: ClassVar[Mapping[Preset, ExperimentConfig]] = {
        "smoke": EntropyProductionConfig(
            seeds=2,
            samples=2_000,
            network_steps=10,
            network_batch=64,
            widths=(8,),
            grid=(48, 24),
            particles=8,
            larger=(12,),
            speeds=(0.0, 0.2),
            time_step=0.1,
            trajectories=4,
            burn_in=2.0,
            snapshots=2,
            neighbours=3,
            reach=3.0,
            width=8,
            layers=1,
            crowd_steps=3,
            crowd_batch=2,
            discs=30,
            more_discs=40,
            disc_burn_in=1.0,
            disc_rate=1.0,
            disc_snapshots=2,
            disc_neighbours=3,
            disc_steps=2,
        ),
        "quick": EntropyProductionConfig(),
        "paper": EntropyProductionConfig(
            samples=1_000_000,
            network_steps=200_000,
            network_batch=4_096,
            widths=(256, 256, 256, 256),
            network_rate=1e-4,
            grid=(512, 256),
            particles=64,
            larger=(128, 256),
            speeds=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
            time_step=1e-3,
            trajectories=512,
            burn_in=200.0,
            neighbours=63,
            reach=None,
            width=256,
            layers=4,
            embedding_layers=4,
            crowd_steps=250_000,
            crowd_batch=64,
            crowd_rate=1e-4,
            discs=4_096,
            more_discs=32_768,
            disc_rate=1e-4,
            disc_burn_in=1e5,
            disc_neighbours=64,
            disc_steps=500_000,
            noise=0.01,
        ),
    }

    def arms(self, config: EntropyProductionConfig) -> Sequence[str]:
        return [METHOD, PLAIN, DENOISING, KERNEL, FREE, UNCERTAINTY, PAIRS]

    def run(self, config: EntropyProductionConfig, arm: str, seed: int, log: Log) -> Sequence[Row]:
        return list(_ARMS[arm](config, seed, log))

    def claims(self, config: EntropyProductionConfig, table: pd.DataFrame) -> Sequence[Claim]:
        return _claims(config, table)

    def figures(self, config: EntropyProductionConfig, table: pd.DataFrame) -> Sequence[Figure]:
        return _figures(config, table)


experiment = EntropyProductionExperiment()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _part(fraction: tuple[float, float], name: str, log: Log) -> Callable[[float, str], None]:
    low, high = fraction
    return lambda done, message: log(low + (high - low) * done, f"{name}: {message}")


# --- the problems that are known ------------------------------------------------------------------


def _trap_samples(n: int, seed: int) -> Tensor:
    M = np.array([[-ONE.A, ONE.v0], [0.0, -ONE.gamma]])
    C = gaussian_entropy_production(M, np.array([ONE.eps, ONE.gamma]))[1]
    rng = np.random.default_rng([seed, 1])
    return torch.from_numpy(rng.multivariate_normal(np.zeros(2), C, n)).float()[:, None]


def _trap_truth() -> float:
    M = np.array([[-ONE.A, ONE.v0], [0.0, -ONE.gamma]])
    return gaussian_entropy_production(M, np.array([ONE.eps, ONE.gamma]))[0]


def _push(x: Any, log1p_exp: Callable[[Any], Any]) -> Any:
    """The centre's repulsion on the ring, as a multiple of sign(x)."""
    return RING_FORCE * log1p_exp(STEEP * (2 - abs(x))) / STEEP


def ring(*, shifted: bool = True) -> DiffusionSystem:
    """One coordinate on [-8, 8), pushed away from 0, with g as ever; noises and rates are 0.1."""

    def parts(z: Tensor) -> tuple[Tensor, Tensor]:
        x = z[..., :1]
        pull = x.sign() * _push(x, nn.functional.softplus)
        return pull, -RING_FORCE * torch.sigmoid(STEEP * (2 - x.abs()))

    def drift(z: Tensor) -> Tensor:
        g = z[..., 1:]
        return torch.cat([RING_SPEED * g + parts(z)[0], -RING_RATE * g], -1)

    def divergence(z: Tensor) -> Tensor:
        return torch.cat([parts(z)[1], torch.full_like(z[..., 1:], -RING_RATE)], -1)

    def shift(z: Tensor) -> tuple[Tensor, Tensor]:
        pull, slope = parts(z)
        g = z[..., 1:]
        return (
            torch.cat([pull / RING_RATE, -g], -1),
            torch.cat([slope / RING_RATE, -torch.ones_like(g)], -1),
        )

    D = torch.tensor([RING_RATE, RING_RATE], dtype=torch.float64)
    return DiffusionSystem(drift, D, divergence, shift if shifted else None)


@lru_cache(maxsize=4)
def ring_truth(cells: tuple[int, int]) -> dict[str, Any]:
    """Density and entropy production on the ring, from the Fokker-Planck equation on a grid.

    Fluxes through faces are Scharfetter and Gummel's, which keep densities positive and are exact in
    equilibrium.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import spsolve

    nx, ng = cells
    hx, hg = 2 * RING_WIDTH / nx, 10.0 / ng
    x = -RING_WIDTH + hx * (np.arange(nx) + 0.5)
    g = -5.0 + hg * (np.arange(ng) + 0.5)
    number = np.arange(nx * ng).reshape(nx, ng)

    def bernoulli(u: np.ndarray) -> np.ndarray:
        small = np.abs(u) < 1e-6
        safe = np.where(small, 1.0, u)
        return np.where(small, 1 - u / 2, safe / np.expm1(safe))

    edge = x + hx / 2  # the last one is both ends
    push = np.sign(edge) * _push(edge, lambda u: np.logaddexp(0, u))
    push[-1] = 0.0
    bx = RING_SPEED * g[None] + push[:, None]
    bg = np.broadcast_to(-RING_RATE * (g[:-1] + hg / 2), (nx, ng - 1))
    faces = [
        (number, np.roll(number, -1, 0), bx, hx),
        (number[:, :-1], number[:, 1:], bg, hg),
    ]
    rows, columns, values = [], [], []
    fluxes = []
    for left, right, b, h in faces:
        # J = D / h [B(-b h / D) rho_left - B(b h / D) rho_right].
        out = RING_RATE / h * bernoulli(-b * h / RING_RATE)
        back = RING_RATE / h * bernoulli(b * h / RING_RATE)
        fluxes.append((left, right, out, back, h))
        for cell, sign in ((left, -1 / h), (right, 1 / h)):
            rows += [cell.ravel(), cell.ravel()]
            columns += [left.ravel(), right.ravel()]
            values += [(sign * out).ravel(), (-sign * back).ravel()]
    shape = (nx * ng, nx * ng)
    entries = (np.concatenate(rows), np.concatenate(columns))
    operator = coo_matrix((np.concatenate(values), entries), shape).tolil()
    operator[0] = hx * hg  # one equation follows from the others; in its place the sum is 1
    right_hand = np.zeros(nx * ng)
    right_hand[0] = 1.0
    rho = spsolve(operator.tocsr(), right_hand)
    parts, local = [], np.zeros(nx * ng)
    for left, right, out, back, _ in fluxes:
        flux = out * rho[left] - back * rho[right]
        between = (rho[left] + rho[right]) / 2
        # Where nothing ever is, densities are the solver's rounding.
        there = between > 1e-12 * rho.max()
        dissipated = np.where(there, flux**2, 0) / (RING_RATE * np.where(there, between, 1))
        parts.append(float(dissipated.sum() * hx * hg))
        for cell in (left, right):
            np.add.at(local, cell.ravel(), (dissipated / 2).ravel())
    density = rho.reshape(nx, ng)
    return {
        "x": x,
        "g": g,
        "rho": density,
        "sigma": local.reshape(nx, ng) / np.maximum(density, 1e-12 * rho.max()),
        "x part": parts[0],
        "g part": parts[1],
    }


def _ring_samples(config: EntropyProductionConfig, seed: int) -> Tensor:
    """Draws from the grid's density, uniform within a cell."""
    truth, rng = ring_truth(config.grid), np.random.default_rng([seed, 2])
    weight = truth["rho"].clip(0).ravel()
    cell = rng.choice(len(weight), config.samples, p=weight / weight.sum())
    i, j = np.divmod(cell, len(truth["g"]))
    size = truth["x"][1] - truth["x"][0], truth["g"][1] - truth["g"][0]
    x = truth["x"][i] + size[0] * rng.uniform(-0.5, 0.5, len(cell))
    g = truth["g"][j] + size[1] * rng.uniform(-0.5, 0.5, len(cell))
    return torch.from_numpy(np.stack([x, g], -1)).float()[:, None]


def _learn_small(
    config: EntropyProductionConfig,
    problem: str,
    system: System,
    z: Tensor,
    seed: int,
    progress: Callable[[float, str], None],
    **how: Any,
) -> Score:
    period = (2 * RING_WIDTH, 0.0) if problem == RING else None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ScoreMLP(2, config.widths, period=period).to(_device())
    trainer = ScoreTrainer(network, system, learning_rate=config.network_rate, decay=0.99, **how)
    return trainer.fit(
        z,
        steps=config.network_steps,
        batch_size=config.network_batch,
        generator=_generator(seed),
        progress=progress,
    )


def _measured(system: Any, score: Any, z: Tensor | np.ndarray, **more: Any) -> EntropyProduction:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the total")  # both totals are reported
        return entropy_production(
            system, score, torch.as_tensor(z).float(), batch_size=4096, **more
        )


def _known(
    config: EntropyProductionConfig, seed: int, log: Log, until: float, *, shifted: bool, **how: Any
) -> Iterator[Row]:
    """Both problems that are known, with a learned score."""
    one: System = ONE
    if not shifted:
        one = DiffusionSystem(lambda z: ONE.terms(z)[0], ONE.D, lambda z: ONE.terms(z)[1])
    z = _trap_samples(config.samples, seed)
    progress = _part((0, until / 2), TRAP, log)
    found = _measured(one, _learn_small(config, TRAP, one, z, seed, progress, **how), z)
    yield _row(TRAP, "total", found.total)
    yield _row(TRAP, "v . s", found.v_dot_s)
    system, z = ring(shifted=shifted), _ring_samples(config, seed)
    progress = _part((until / 2, until), RING, log)
    score = _learn_small(config, RING, system, z, seed, progress, **how)
    found = _measured(system, score, z)
    yield _row(RING, "total", found.total)
    yield _row(RING, "x part", float(found.by_coordinate[0]))
    yield _row(RING, "g part", float(found.by_coordinate[1]))
    yield _row(RING, "v . s", found.v_dot_s)
    yield from _map_of_ring(config, system, score, seed)


def _map_of_ring(
    config: EntropyProductionConfig, system: Any, score: Any, seed: int
) -> Iterator[Row]:
    truth = ring_truth(config.grid)
    x, g = np.meshgrid(truth["x"], truth["g"], indexing="ij")
    z = torch.from_numpy(np.stack([x.ravel(), g.ravel()], -1)).float()[:, None]
    sigma = _measured(system, score, z).per_particle[:, 0].reshape(x.shape)
    weight = truth["rho"].clip(0)
    a, b = sigma - np.average(sigma, weights=weight), truth["sigma"]
    b = b - np.average(b, weights=weight)
    r = (weight * a * b).sum() / math.sqrt((weight * a**2).sum() * (weight * b**2).sum())
    yield _row(RING, "correlation of the map", float(r))
    if seed == 0:
        step = max(1, len(truth["x"]) // 64)
        for i in range(0, len(truth["x"]), step):
            for j in range(0, len(truth["g"]), max(1, len(truth["g"]) // 32)):
                if weight[i, j] < 1e-4 * weight.max():
                    continue
                place = {"x": float(truth["x"][i]), "g": float(truth["g"][j])}
                yield _row(RING, "map", float(sigma[i, j]), **place)
                yield _row(RING, "true map", float(truth["sigma"][i, j]), **place)


def _row(problem: str, metric: str, value: float, **more: Any) -> Row:
    return {"problem": problem, "metric": metric, "value": float(value), **more}


# --- the crowd ------------------------------------------------------------------------------------


def _crowd(config: EntropyProductionConfig, v0: float, n: int | None = None) -> ActiveOU:
    return ActiveOU(N=n or config.particles, v0=v0, A=0.05, k=2.5, gamma=0.1, eps=0.1)


@lru_cache(maxsize=8)
def _crowd_snapshots(
    config: EntropyProductionConfig, v0: float, n: int, trajectories: int, seed: int
) -> np.ndarray:
    return _crowd(config, v0, n).simulate(
        config.snapshots,
        every=2.0 if config.burn_in > 10 else config.time_step,
        dt=config.time_step,
        burn_in=config.burn_in,
        trajectories=trajectories,
        rng=np.random.default_rng([seed, 3, n, round(1e6 * v0)]),
    )


def _free(system: Any, z: np.ndarray) -> float:
    """The score-free total of snapshots (trajectories, snapshots, n, coordinates)."""
    return _measured(system, _zero_score, z.reshape(-1, *z.shape[2:])).score_free


def _zero_score(z: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(z), torch.zeros_like(z)


def _power(system: ActiveOU, z: np.ndarray) -> float:
    """v0 E[g . dx/dt] / eps a particle: what propulsion dissipates, known for these equations alone."""
    x, g = z[..., :2].astype(np.float64), z[..., 2:]
    speed = system.v0 * g + system.repulsion(x)[0] - system.A * x
    return float(system.v0 / system.eps * (g * speed).sum(-1).mean())


def _crowd_learned(
    config: EntropyProductionConfig, seed: int, log: Log, span: tuple[float, float], **how: Any
) -> Iterator[Row]:
    v0, n = config.learned_speed, config.particles
    system = _crowd(config, v0)
    z = _crowd_snapshots(config, v0, n, config.trajectories, seed).astype(np.float32)
    half = len(z) // 2
    learn, judge = (part.reshape(-1, *z.shape[2:]) for part in (z[:half], z[half:]))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = LocalScoreTransformer(
            2,
            config.neighbours,
            width=config.width,
            layers=config.layers,
            heads=2 if config.width < 64 else 4,
            embedding_layers=config.embedding_layers,
            reach=config.reach,
            contact=(2 * system.r, system.beta) if config.reach else None,
        ).to(_device())
    trainer = ScoreTrainer(network, system, learning_rate=config.crowd_rate, decay=0.995, **how)
    score = trainer.fit(
        learn,
        steps=config.crowd_steps,
        batch_size=config.crowd_batch,
        generator=_generator(seed),
        progress=_part(span, CROWD, log),
    )
    found = _measured(system, score, judge)
    yield _row(CROWD, "total", found.total / n, particles=n)
    yield _row(CROWD, "free", found.score_free / n, particles=n)
    yield _row(CROWD, "v . s", found.v_dot_s / n, particles=n)
    yield _row(CROWD, "power", _power(system, judge), particles=n)
    if how.get("stationarity"):
        return
    for larger in config.larger:
        trajectories = max(2, config.trajectories * n // (4 * larger))
        other = _crowd_snapshots(config, v0, larger, trajectories, seed).astype(np.float32)
        bigger = _measured(
            _crowd(config, v0, larger),
            Score(_crowd(config, v0, larger), score.network),
            other.reshape(-1, *other.shape[2:]),
        )
        yield _row(CROWD, "total", bigger.total / larger, particles=larger)
        yield _row(CROWD, "free", bigger.score_free / larger, particles=larger)
    # Where in the crowd: by how many others are within three radii.
    x = found.positions
    apart = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1)
    others = (apart < 3).sum(-1) - 1
    for count in range(int(others.max()) + 1):
        here = others == count
        if here.mean() > 0.005:
            yield _row(CROWD, "by density", found.per_particle[here].mean(), others=count)


# --- discs that separate --------------------------------------------------------------------------


def _separation(
    config: EntropyProductionConfig, seed: int, log: Log, span: tuple[float, float]
) -> Iterator[Row]:
    low, high = span
    found = {}
    network: Any = None
    for i, n in enumerate((config.discs, config.more_discs)):
        system = ActiveOU(
            N=n,
            v0=config.disc_speed,
            k=1.0,
            gamma=config.disc_rate,
            eps=0.0,
            phi=config.packing,
        )
        z = system.simulate(
            config.disc_snapshots if i == 0 else 2,
            every=0.5 / config.disc_rate,
            dt=config.disc_step,
            burn_in=config.disc_burn_in,
            rng=np.random.default_rng([seed, 4, n]),
            progress=_part(
                (low + i * (high - low) / 2, low + (i + 0.6) * (high - low) / 2), SEPARATION, log
            ),
        )[0].astype(np.float32)
        if network is None:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                network = LocalScoreTransformer(
                    2,
                    config.disc_neighbours,
                    half_width=system.w,
                    width=config.width,
                    layers=config.layers,
                    heads=2 if config.width < 64 else 4,
                    embedding_layers=config.embedding_layers,
                ).to(_device())
            trainer = ScoreTrainer(
                network,
                system,
                loss="dsm",
                sigma=config.noise,
                learning_rate=config.crowd_rate,
                decay=0.99,
            )
            network = trainer.fit(
                z,
                steps=config.disc_steps,
                batch_size=2,
                generator=_generator(seed),
                progress=_part(
                    (low + 0.6 * (high - low) / 2, low + (high - low) / 2), SEPARATION, log
                ),
            ).network
        network.half_width = system.w
        last = z[-1:]
        found[n] = _measured(system, Score(system, network), last, coordinates=[2, 3])
        crowding = _crowding(last[0, :, :2], float(system.w or 0))
        sigma = found[n].per_particle[0]
        r = float(np.corrcoef(sigma, crowding)[0, 1])
        yield _row(SEPARATION, "correlation with crowding", r, particles=n)
        yield _row(
            SEPARATION, "rate a particle over gamma", sigma.mean() / config.disc_rate, particles=n
        )
        yield _row(SEPARATION, "spread of crowding", crowding.std() / crowding.mean(), particles=n)
        if seed == 0:
            for (x, y), value in zip(last[0, :, :2].tolist(), sigma.tolist(), strict=True):
                yield _row(SEPARATION, "disc", value / config.disc_rate, particles=n, x=x, y=y)


def _crowding(x: np.ndarray, w: float, radius: float = 5.0) -> np.ndarray:
    """Others within five radii of each disc."""
    from scipy.spatial import cKDTree

    tree = cKDTree((x.astype(np.float64) + w) % (2 * w), boxsize=2 * w)
    return tree.query_ball_point(tree.data, radius, return_length=True) - 1


# --- arms -----------------------------------------------------------------------------------------


def _ours(config: EntropyProductionConfig, seed: int, log: Log) -> Iterator[Row]:
    yield from _known(config, seed, log, 0.2, shifted=True, stationarity=1.0)
    yield from _crowd_learned(config, seed, log, (0.2, 0.8), loss="dsm", sigma=config.noise)
    if seed == 0:
        yield from _separation(config, seed, log, (0.8, 1.0))


def _without_shift(config: EntropyProductionConfig, seed: int, log: Log) -> Iterator[Row]:
    yield from _known(config, seed, log, 1.0, shifted=False, stationarity=1.0)


def _denoising(config: EntropyProductionConfig, seed: int, log: Log) -> Iterator[Row]:
    yield from _known(config, seed, log, 0.4, shifted=True, loss="dsm", sigma=config.noise)
    # The crowd, whose score the method learns by denoising, is learned here by exact divergences.
    yield from _crowd_learned(config, seed, log, (0.4, 1.0), stationarity=1.0)


def _kernel(config: EntropyProductionConfig, seed: int, log: Log) -> Iterator[Row]:
    """The gradient of the logarithm of a Gaussian kernel density, Scott's width."""
    for problem, system, z in (
        (TRAP, ONE, _trap_samples(config.samples, seed)),
        (RING, ring(), _ring_samples(config, seed)),
    ):
        points, judged = z[:5_000, 0].double(), z[-1_000:]
        width = points.std(0) * len(points) ** (-1 / 6)

        def score(
            z: Tensor, points: Tensor = points, width: Tensor = width, problem: str = problem
        ) -> tuple[Tensor, Tensor]:
            gap = points - z.double()  # (batch, points, coordinates)
            if problem == RING:
                side = torch.tensor([2 * RING_WIDTH, math.inf])
                gap = gap - torch.where(
                    side.isinf(), 0.0, (gap / side).round() * side.nan_to_num(posinf=0.0)
                )
            weight = (-(gap / width).square().sum(-1) / 2).softmax(-1)[..., None]
            pull = gap / width**2
            mean = (weight * pull).sum(1, keepdim=True)
            spread = (weight * pull**2).sum(1, keepdim=True) - mean**2
            return mean.to(z), (spread - 1 / width**2).to(z)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the total")
            found = entropy_production(system, score, judged, batch_size=100)
        yield _row(problem, "total", found.total)
    log(1.0, "done")


def _score_free(config: EntropyProductionConfig, seed: int, log: Log) -> Iterator[Row]:
    yield _row(TRAP, "total", _free(ONE, _trap_samples(config.samples, seed)[None].numpy()))
    yield _row(RING, "total", _free(ring(), _ring_samples(config, seed)[None].numpy()))
    for i, v0 in enumerate(config.speeds):
        z = _crowd_snapshots(config, v0, config.particles, config.trajectories, seed)
        free = _free(_crowd(config, v0), z.astype(np.float32)) / config.particles
        yield _row(CROWD, "free at", free, v0=v0)
        log((i + 1) / len(config.speeds), f"v0 = {v0:g}")


def _uncertainty(config: EntropyProductionConfig, seed: int, log: Log) -> Iterator[Row]:
    """2 <J>^2 / (T Var J) of the area that (x, g) sweeps: a lower bound on the rate."""
    rng, dt, T = np.random.default_rng([seed, 5]), 0.02, 60.0
    rate, keep = ONE.gamma, math.exp(-ONE.gamma * dt)
    count = max(100, config.samples // 100)
    z = _trap_samples(count, seed)[:, 0].double().numpy()
    x, g, area = z[:, 0].copy(), z[:, 1].copy(), np.zeros(count)
    for _ in range(round(T / dt)):
        to_x = (
            x
            + dt * (ONE.v0 * g - ONE.A * x)
            + math.sqrt(2 * ONE.eps * dt) * rng.standard_normal(count)
        )
        to_g = keep * g + math.sqrt(-math.expm1(-2 * rate * dt)) * rng.standard_normal(count)
        area += (x + to_x) / 2 * (to_g - g) - (g + to_g) / 2 * (to_x - x)
        x, g = to_x, to_g
    yield _row(TRAP, "total", 2 * area.mean() ** 2 / (T * area.var()))
    log(1.0, "done")


def _pairs(config: EntropyProductionConfig, seed: int, log: Log) -> Iterator[Row]:
    """NEEP: the odd function f of a pair of states that maximises E[f - exp(-f)] + 1, over the lag."""
    lag, inner = 0.5, 50
    rng = np.random.default_rng([seed, 6])
    count = max(100, config.samples // 2)
    for problem, z, drift in (
        (TRAP, _trap_samples(count, seed), lambda z: ONE.terms(z)[0]),
        (RING, _ring_samples(config, seed)[:count], ring().drift),
    ):
        after = z.clone().double()
        for _ in range(inner):
            noise = torch.from_numpy(rng.standard_normal(after.shape))
            after = after + lag / inner * drift(after) + math.sqrt(0.2 * lag / inner) * noise
        pair = torch.cat([z[:, 0], after[:, 0].float()], -1)
        step = pair[:, 2:] - pair[:, :2]
        middle = pair[:, :2] + step / 2
        if problem == RING:
            angle = math.pi / RING_WIDTH * middle[:, :1]
            middle = torch.cat([angle.cos(), angle.sin(), middle[:, 1:]], -1)
        half = len(pair) // 2
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            sizes = (middle.shape[1], *config.widths)
            layers: list[nn.Module] = []
            for a, b in pairwise(sizes):
                layers += [nn.Linear(a, b), nn.GELU()]
            network = nn.Sequential(*layers, nn.Linear(sizes[-1], 2))
        optimiser = torch.optim.Adam(network.parameters(), lr=config.network_rate)

        def value(
            rows: Tensor | slice,
            middle: Tensor = middle,
            step: Tensor = step,
            network: nn.Module = network,
        ) -> Tensor:
            # Odd under reversal by construction: even in the midpoint, odd in the step.
            return (network(middle[rows]) * step[rows]).sum(-1)

        g = _generator(seed)
        for t in range(config.network_steps):
            rows = torch.randint(half, (config.network_batch,), generator=g)
            f = value(rows)
            loss = ((-f).exp() - f).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if t % 100 == 0:
                log(t / config.network_steps / 2 + (problem == RING) / 2, problem)
        with torch.no_grad():
            f = value(slice(half, None))
        yield _row(problem, "total", float((f - (-f).exp() + 1).mean()) / lag)


_ARMS: dict[str, Callable[[EntropyProductionConfig, int, Log], Iterator[Row]]] = {
    METHOD: _ours,
    PLAIN: _without_shift,
    DENOISING: _denoising,
    KERNEL: _kernel,
    FREE: _score_free,
    UNCERTAINTY: _uncertainty,
    PAIRS: _pairs,
}


# --- claims ---------------------------------------------------------------------------------------


def _of(table: pd.DataFrame, problem: str, metric: str, arm: str = METHOD, **equal: Any) -> Any:
    rows = table[(table.arm == arm) & (table.problem == problem) & (table.metric == metric)]
    for column, value in equal.items():
        rows = rows[rows[column] == value]
    return rows.sort_values("seed").value.to_numpy()


def _claims(config: EntropyProductionConfig, table: pd.DataFrame) -> Sequence[Claim]:
    truth, grid = _trap_truth(), ring_truth(config.grid)
    ring_total = grid["x part"] + grid["g part"]

    def miss(problem: str, metric: str, exact: float, arm: str = METHOD) -> Interval:
        return mean_interval(np.abs(_of(table, problem, metric, arm) / exact - 1))

    others = ", ".join(
        f"{arm} {_of(table, RING, 'total', arm).mean():.3f}"
        for arm in (PLAIN, DENOISING, KERNEL, PAIRS)
    )
    n = config.particles
    total, free = _of(table, CROWD, "total", particles=n), _of(table, CROWD, "free", particles=n)
    speeds = [_of(table, CROWD, "free at", FREE, v0=v0) for v0 in config.speeds]
    rising = np.min(np.diff(np.stack(speeds), axis=0), axis=0)
    bound, pairs = _of(table, TRAP, "total", UNCERTAINTY), _of(table, TRAP, "total", PAIRS)
    claims = [
        Claim.judge(
            "The learned total is the closed form's in a trap",
            paper="exact identity",
            measured=miss(TRAP, "total", truth),
            quantity=f"relative error of the entropy production rate {truth:.4f}",
            below=0.03,
            note=f"Uncertainty relation {bound.mean():.3f}, pairs of states {pairs.mean():.3f}, kernel "
            f"density {_of(table, TRAP, 'total', KERNEL).mean():.3f}.",
        ),
        Claim.judge(
            "The learned total is the grid's on a ring",
            paper="exact identity",
            measured=miss(RING, "total", ring_total),
            quantity=f"relative error of the entropy production rate {ring_total:.4f}",
            below=0.03,
            note=f"{_of(table, RING, 'total').mean():.4f}; {others}.",
        ),
        *(
            Claim.judge(
                f"So is its part of {name}",
                paper="exact identity",
                measured=miss(RING, f"{name} part", grid[f"{name} part"]),
                quantity=f"relative error of the part {grid[f'{name} part']:.4f}",
                below=0.08,
            )
            for name in ("x", "g")
        ),
        Claim.judge(
            "Entropy production is resolved in phase space",
            paper="maps",
            measured=mean_interval(_of(table, RING, "correlation of the map")),
            quantity="correlation of the learned map with the grid's, weighted by density",
            above=0.97,
        ),
        Claim.judge(
            "The time step of the crowd is short enough: in equilibrium nothing is produced",
            paper="-",
            measured=mean_interval(np.abs(speeds[0])),
            quantity=f"score-free rate a particle at v0 = {config.speeds[0]:g}",
            below=0.05,
            note=f"At v0 = {', '.join(f'{v:g}' for v in config.speeds)}: "
            f"{', '.join(f'{s.mean():.3f}' for s in speeds)} nats a particle and unit of time.",
        ),
        Claim.judge(
            "Entropy production of a crowd rises with the speed",
            paper="implied",
            measured=mean_interval(rising),
            quantity="least difference between neighbouring speeds, score-free",
            above=0,
        ),
        Claim.judge(
            f"A local transformer learns the crowd's total ({n} particles)",
            paper="-",
            measured=mean_interval(np.abs(total / free - 1)),
            quantity="relative gap to the score-free total on held-out trajectories",
            below=0.10,
            note=f"{total.mean():.3f} against {free.mean():.3f}; E[v.s] "
            f"{_of(table, CROWD, 'v . s', particles=n).mean():.3f}; exact divergences "
            f"{_of(table, CROWD, 'total', DENOISING).mean():.3f}; dissipated power "
            f"{_of(table, CROWD, 'power', particles=n).mean():.3f}.",
        ),
    ]
    for larger in config.larger:
        t = _of(table, CROWD, "total", particles=larger)
        f = _of(table, CROWD, "free", particles=larger)
        claims.append(
            Claim.judge(
                f"... and transfers to {larger} particles",
                paper="4,096 to 32,768 particles without retraining",
                measured=mean_interval(np.abs(t / f - 1)),
                quantity="relative gap to the score-free total",
                below=0.15,
                note=f"{t.mean():.3f} against {f.mean():.3f}.",
            )
        )
    r = _of(table, SEPARATION, "correlation with crowding", particles=config.discs)
    far = _of(table, SEPARATION, "correlation with crowding", particles=config.more_discs)
    said = ", ".join(f"{value:.2f}" for value in (*r, *far))
    claims.append(
        Claim.not_measurable(
            "Where active discs separate, departure from equilibrium has spatial structure",
            paper="maps as a function of N and packing fraction, no number",
            quantity="correlation of local entropy production with crowding",
            note=f"One seed; {said} with {config.discs} and {config.more_discs} discs: see the maps. "
            "The paper's persistence, 10,000 units of time, is preset paper.",
        )
    )
    return claims


# --- figures --------------------------------------------------------------------------------------


def _figures(config: EntropyProductionConfig, table: pd.DataFrame) -> Sequence[Figure]:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    grid = ring_truth(config.grid)
    figures = []
    plot = make_subplots(1, 2, subplot_titles=(TRAP, RING))
    for column, (problem, exact) in enumerate(
        ((TRAP, _trap_truth()), (RING, grid["x part"] + grid["g part"])), 1
    ):
        arms = [a for a in _ARMS if len(_of(table, problem, "total", a))]
        found = [mean_interval(_of(table, problem, "total", arm)) for arm in arms]
        plot.add_bar(
            x=arms,
            y=[i.value for i in found],
            error_y={
                "array": [i.high - i.value for i in found],
                "arrayminus": [i.value - i.low for i in found],
            },
            marker_color=color(column - 1),
            showlegend=False,
            row=1,
            col=column,
        )
        plot.add_hline(y=exact, line_dash="dot", row=1, col=column)
    plot.update_yaxes(title="nats / time", col=1)
    figures.append(
        Figure(
            "Where the answer is known",
            "The dotted line is the closed form, and the grid's solution. The uncertainty relation and pairs "
            "of states are lower bounds.",
            plot,
        )
    )
    plot = make_subplots(1, 2, subplot_titles=("learned", "grid"), shared_yaxes=True)
    rows = table[(table.arm == METHOD) & (table.problem == RING)]
    top = float(rows[rows.metric == "true map"].value.quantile(0.99))
    for column, metric in enumerate(("map", "true map"), 1):
        one = rows[rows.metric == metric]
        plot.add_scatter(
            x=one.x, y=one.g, mode="markers", showlegend=False, row=1, col=column,
            marker={"color": one.value, "cmin": 0, "cmax": top, "size": 6, "symbol": "square",
                    "colorscale": "Viridis", "colorbar": {"title": "nats / time"}},
        )  # fmt: skip
    plot.update_xaxes(title="x")
    plot.update_yaxes(title="g", col=1)
    figures.append(
        Figure(
            "Entropy production over the ring's phase space",
            "First seed. Most is dissipated where the particle pushes against the centre.",
            plot,
        )
    )
    plot = make_subplots(1, 2, subplot_titles=("score-free, by speed", "learned, by number"))
    values = [mean_interval(_of(table, CROWD, "free at", FREE, v0=v0)) for v0 in config.speeds]
    plot.add_scatter(
        x=list(config.speeds), y=[i.value for i in values], mode="lines+markers", name="score-free",
        error_y={"array": [i.high - i.value for i in values], "arrayminus": [i.value - i.low for i in values]},
        row=1, col=1,
    )  # fmt: skip
    sizes = [config.particles, *config.larger]
    for metric, name in (("total", "learned"), ("free", "score-free")):
        values = [mean_interval(_of(table, CROWD, metric, particles=n)) for n in sizes]
        plot.add_scatter(
            x=sizes, y=[i.value for i in values], mode="lines+markers", name=name,
            error_y={"array": [i.high - i.value for i in values], "arrayminus": [i.value - i.low for i in values]},
            row=1, col=2,
        )  # fmt: skip
    plot.update_xaxes(title="v0", col=1)
    plot.update_xaxes(title="particles", col=2)
    plot.update_yaxes(title="nats / (particle time)", col=1)
    figures.append(
        Figure(
            "A crowd in a trap",
            f"The score is learned with {config.particles} particles at v0 = {config.learned_speed:g} and not "
            "trained again.",
            plot,
        )
    )
    rows = table[(table.arm == METHOD) & (table.metric == "by density")]
    if len(rows):
        mean = rows.groupby("others").value.mean()
        plot = go.Figure(go.Scatter(x=mean.index, y=mean, mode="lines+markers"))
        plot.update_xaxes(title="others within three radii")
        plot.update_yaxes(title="nats / (particle time)", rangemode="tozero")
        figures.append(
            Figure("Where in the crowd", "Mean over held-out snapshots and seeds.", plot)
        )
    rows = table[(table.problem == SEPARATION) & (table.metric == "disc")]
    if len(rows):
        sizes = sorted(rows.particles.unique())
        plot = make_subplots(1, len(sizes), subplot_titles=[f"{n:g} discs" for n in sizes])
        top = float(rows.value.quantile(0.98))
        for column, n in enumerate(sizes, 1):
            one = rows[rows.particles == n]
            plot.add_scatter(
                x=one.x, y=one.y, mode="markers", showlegend=False, row=1, col=column,
                marker={"color": one.value, "cmin": 0, "cmax": top, "colorscale": "Viridis",
                        "size": max(3, 130 / len(one) ** 0.5), "colorbar": {"title": "gamma"}},
            )  # fmt: skip
            plot.update_yaxes(scaleanchor=f"x{column if column > 1 else ''}", row=1, col=column)
        figures.append(
            Figure(
                "Entropy production over configurations that separate",
                "Rate of each disc through its propulsion, in units of gamma; the score was learned with the "
                "smaller number.",
                plot,
            )
        )
    return figures
