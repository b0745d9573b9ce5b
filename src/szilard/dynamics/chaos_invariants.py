"""How unpredictable a flow is: Lyapunov spectrum, entropies and dimensions, measured.

1. State and d tangent vectors are integrated together; the vectors are orthonormalised by QR ten times
   a period, and the logarithms of R's diagonal averaged (Benettin et al. 1980).
2. Pesin entropy is the sum of the positive exponents, Kaplan-Yorke dimension an interpolation of
   their cumulative sum; exponents within three standard errors of zero count as zero.
3. Correlation dimension (Grassberger & Procaccia 1983) and the entropies need the trajectory alone.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from szilard.dynamics.chaos_systems import (
    ChaoticSystem,
    chaotic_system,
    chaotic_systems,
    check_name,
    delay_steps,
    in_processes,
    key_of,
    published_annotations,
    trajectory,
)
from szilard.measures.ordinal import permutation_entropy

if TYPE_CHECKING:
    import pandas as pd

ORTHONORMAL_PER_PERIOD = 10
BLOCKS = 20


class LyapunovSpectrum(NamedTuple):
    """Exponents in nats a unit of time, descending, and their standard errors over blocks."""

    exponents: Float[np.ndarray, " exponents"]
    stderr: Float[np.ndarray, " exponents"]
    time: float


class Invariant(NamedTuple):
    """A measured number and its standard error (NaN where there is none)."""

    value: float
    stderr: float


def lyapunov_spectrum(
    system: str | ChaoticSystem,
    periods: int = 1000,
    *,
    discard: int = 50,
    start: Float[np.ndarray, " coordinates"] | None = None,
    rtol: float = 1e-8,
    atol: float = 1e-8,
    max_steps: int = 20_000_000,
) -> LyapunovSpectrum:
    """All Lyapunov exponents of a flow.

    Tangent vectors move by central differences of the equations in coordinates of equal spread, so
    no Jacobian is asked for. A delay equation has infinitely many exponents: the largest alone is
    given, from a second solution that is drawn back to the first after every delay.

    Args:
        system: the flow, or its name.
        periods: periods averaged over, at least 20.
        discard: periods before those.
        start: initial condition instead of the default one.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
        max_steps: steps of the whole; a flow too stiff for so few is averaged over what was reached.

    Raises:
        ValueError: a wrong argument.
        RuntimeError: the integration stops before 20 periods.

    Examples:
        >>> spectrum = lyapunov_spectrum("Lorenz", 300)
        >>> bool(abs(spectrum.exponents.sum() + 10 + 1 + 2.667) < 1e-3)
        True

    Source: Benettin, Galgani, Giorgilli & Strelcyn, Meccanica 15, 9 (1980).
    """
    from szilard.kernels.flows import DONE, integrate

    if periods < BLOCKS:
        raise ValueError(f"periods: got {periods}, must be at least {BLOCKS}")
    if discard < 0:
        raise ValueError(f"discard: got {discard}, must not be negative")
    system = chaotic_system(system) if isinstance(system, str) else system
    if system.delay:
        return _largest_of_delay(system, periods, discard, rtol, atol)
    d = system.dimension
    run_in = trajectory(
        system, 601, 30, start=start, discard=discard, rtol=rtol, atol=atol, bounded=False
    )
    scale = run_in.x.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    tau = system.period / ORTHONORMAL_PER_PERIOD
    total = periods * ORTHONORMAL_PER_PERIOD
    y = np.concatenate([run_in.x[-1], np.eye(d).ravel()])
    growth, ended = np.empty((total, d)), total
    out, step, left = np.empty((2, len(y))), tau / 100, max_steps
    begin = discard * system.period + run_in.t[-1]
    for i in range(-10 * ORTHONORMAL_PER_PERIOD, total):
        t = begin + (i + 10 * ORTHONORMAL_PER_PERIOD) * tau
        status, steps, step = integrate(
            system.rhs,
            y,
            np.array([t, t + tau]),
            scale,
            step,
            rtol,
            atol,
            left,
            out,
        )
        left -= steps
        if status != DONE or not np.isfinite(y).all():
            ended = max(i, 0)
            break
        q, r = np.linalg.qr(y[d:].reshape(d, d).T)
        if i >= 0:
            growth[i] = np.log(np.abs(np.diag(r)))
        y[d:] = np.ascontiguousarray(q.T).ravel()
    if ended < BLOCKS * ORTHONORMAL_PER_PERIOD:
        raise RuntimeError(
            f"{system.name}: integration stopped after {ended / ORTHONORMAL_PER_PERIOD:g} periods"
        )
    return _spectrum(growth[:ended], tau)


def _largest_of_delay(
    system: ChaoticSystem, periods: int, discard: int, rtol: float, atol: float
) -> LyapunovSpectrum:
    from szilard.kernels.flows import delay_interval

    steps = delay_steps(system, system.start, rtol, atol)
    h = system.delay / steps
    total = max(math.ceil(periods * system.period / system.delay), BLOCKS)
    early = math.ceil(discard * system.period / system.delay)
    x, slope = np.full(steps + 1, system.start[0]), np.zeros(steps + 1)
    moved, moved_slope = x.copy(), slope.copy()
    growth, before = np.zeros(total), 1.0
    for i in range(-early, total):
        ends = np.empty((4, steps + 1))
        t = (i + early) * system.delay
        delay_interval(system.rhs, x, slope, t, h, ends[0], ends[1])
        delay_interval(system.rhs, moved, moved_slope, t, h, ends[2], ends[3])
        x, slope, moved, moved_slope = ends
        apart = float(np.sqrt(((moved - x) ** 2).mean()))
        nearness = 1e-7 * max(float(np.abs(x).max()), 1.0)
        if apart == 0:
            moved, apart = x + nearness, nearness
        if i >= 0:
            growth[i] = np.log(apart / before)
        moved = x + (moved - x) * nearness / apart
        moved_slope = slope + (moved_slope - slope) * nearness / apart
        before = nearness
    return _spectrum(growth[:, None], system.delay)


def lyapunov_spectrum_of_map(
    step: Callable[[np.ndarray], np.ndarray],
    jacobian: Callable[[np.ndarray], np.ndarray],
    start: ArrayLike,
    iterations: int = 10_000,
    *,
    discard: int = 1000,
) -> LyapunovSpectrum:
    """All Lyapunov exponents of a map x -> step(x), in nats an iteration.

    Args:
        step: takes (d,) to (d,).
        jacobian: takes (d,) to (d, d).
        start: initial condition, (d,).
        iterations: averaged over, at least 20.
        discard: iterations before those.

    Raises:
        ValueError: too few iterations, or an orbit that leaves the finite numbers.

    Examples:
        >>> tent = lyapunov_spectrum_of_map(
        ...     lambda x: 1.9 * np.minimum(x, 1 - x), lambda x: np.where(x < 0.5, 1.9, -1.9)[None], [0.3])
        >>> round(float(np.exp(tent.exponents[0])), 6)
        1.9

    Source: Eckmann & Ruelle, Rev. Mod. Phys. 57, 617 (1985), section V.
    """
    if iterations < BLOCKS:
        raise ValueError(f"iterations: got {iterations}, must be at least {BLOCKS}")
    x = np.atleast_1d(np.array(start, dtype=float))
    q = np.eye(len(x))
    growth = np.empty((iterations, len(x)))
    for i in range(-discard, iterations):
        q, r = np.linalg.qr(np.atleast_2d(jacobian(x)) @ q)
        x = np.asarray(step(x))
        if not np.isfinite(x).all():
            raise ValueError(
                f"start: got {start!r}, from where the orbit leaves the finite numbers"
            )
        if i >= 0:
            with np.errstate(divide="ignore"):
                growth[i] = np.log(np.abs(np.diag(r)))
    return _spectrum(growth, 1.0)


def _spectrum(growth: np.ndarray, tau: float) -> LyapunovSpectrum:
    exponents = growth.mean(0) / tau
    blocks = np.stack([part.mean(0) for part in np.array_split(growth, BLOCKS)]) / tau
    stderr = blocks.std(0, ddof=1) / np.sqrt(BLOCKS)
    order = np.argsort(-exponents, kind="stable")
    return LyapunovSpectrum(exponents[order], stderr[order], len(growth) * tau)


def pesin_entropy(
    exponents: Float[np.ndarray, " exponents"],
    stderr: Float[np.ndarray, " exponents"] | None = None,
) -> float:
    """Sum of the positive exponents: the entropy rate in nats a unit of time.

    Args:
        exponents: Lyapunov exponents.
        stderr: standard errors; an exponent within three of them of zero counts as zero.

    Raises:
        ValueError: exponents that are NaN, or errors of another number.

    Examples:
        >>> pesin_entropy(np.array([0.9, 0.001, -14.5]), np.array([0.01, 0.001, 0.01]))
        0.9

    Source: Pesin, Russian Math. Surveys 32, 55 (1977).
    """
    exponents = _beyond_error(exponents, stderr)
    return float(exponents[exponents > 0].sum())


def kaplan_yorke_dimension(
    exponents: Float[np.ndarray, " exponents"],
    stderr: Float[np.ndarray, " exponents"] | None = None,
) -> float:
    """D = j + sum of the first j exponents over |exponent j + 1|, j the last with sum >= 0.

    Args:
        exponents: all Lyapunov exponents, in any order.
        stderr: standard errors; an exponent within three of them of zero counts as zero.

    Returns:
        The dimension; that of the whole space where volume doesn't shrink.

    Raises:
        ValueError: exponents that are NaN, or errors of another number.

    Examples:
        >>> round(kaplan_yorke_dimension(np.array([0.9056, 0.0, -14.572])), 3)
        2.062

    Source: Kaplan & Yorke, Lecture Notes in Mathematics 730, 204 (1979).
    """
    ordered = np.sort(_beyond_error(exponents, stderr))[::-1]
    total = np.cumsum(ordered)
    j = int((total >= 0).sum()) if total[0] >= 0 else 0
    if j == 0:
        return 0.0
    if j == len(ordered):
        return float(j)
    return float(j + total[j - 1] / abs(ordered[j]))


def _beyond_error(exponents: np.ndarray, stderr: np.ndarray | None) -> np.ndarray:
    if exponents.size == 0 or np.isnan(exponents).any():
        raise ValueError(f"exponents: got {exponents}, must be numbers, one at least")
    if stderr is None:
        return exponents
    if stderr.shape != exponents.shape:
        raise ValueError(f"stderr: got {stderr.shape}, must be {exponents.shape}")
    return np.where(np.abs(exponents) <= 3 * stderr, 0.0, exponents)


def correlation_dimension(
    x: Float[np.ndarray, "time coordinates"],
    *,
    window: int = 15,
    share: tuple[float, float] = (1e-4, 1e-2),
) -> float:
    """Slope of the logarithm of the share of pairs within r over that of r.

    Args:
        x: trajectory, at least 200 points.
        window: pairs closer in time than so many points don't count (Theiler).
        share: shares of pairs between which the slope is fitted.

    Raises:
        ValueError: NaN, too few points, an impossible window or range.

    Examples:
        >>> circle = np.exp(2j * np.pi * np.random.default_rng(0).random(2000))
        >>> round(correlation_dimension(np.stack([circle.real, circle.imag], -1)), 1)
        1.0

    Source: Grassberger & Procaccia, Physica D 9, 189 (1983); Theiler, Phys. Rev. A 34, 2427 (1986).
    """
    from szilard.kernels.flows import pair_histogram

    if len(x) < 200 or not np.isfinite(x).all():
        raise ValueError(f"x: got {len(x)} points, must be at least 200, all finite")
    if not 1 <= window < len(x) // 2:
        raise ValueError(f"window: got {window}, must be from 1 to {len(x) // 2 - 1}")
    if not 0 < share[0] < share[1] <= 1:
        raise ValueError(f"share: got {share}, must rise within (0, 1]")
    spread = float(np.sqrt(x.var(0).sum()))
    if spread == 0:
        return 0.0
    per_octave, octaves = 8, 40
    counts = np.zeros(per_octave * octaves, dtype=np.int64)
    low = spread * 4 / 2**octaves
    pair_histogram(np.ascontiguousarray(x, dtype=float), window, low, float(per_octave), counts)
    within = np.cumsum(counts) / (0.5 * (len(x) - window) * (len(x) - window + 1))
    fitted = (within >= share[0]) & (within <= share[1])
    if fitted.sum() < 3:
        return 0.0
    octave = np.flatnonzero(fitted) / per_octave
    return float(np.polyfit(octave, np.log2(within[fitted]), 1)[0])


def multiscale_entropy(
    x: Float[np.ndarray, " time"], *, scales: int = 20, m: int = 2, radius: float = 0.15
) -> float:
    """Composite multiscale fuzzy entropy, its mean over scales, in nats.

    At scale s the series is averaged over s points in a row, from each of s phases; the memberships of
    all phases are averaged, and ln of the quotient of those of m and m + 1 points is the entropy.

    Args:
        x: series, at least 10 scales (m + 1) points.
        scales: scales 1, ..., scales.
        m: points compared.
        radius: width of the membership, in standard deviations of the series.

    Raises:
        ValueError: NaN, a constant or too short series, or an impossible parameter.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> noise, cycle = rng.normal(size=400), np.sin(2 * np.pi * np.arange(400) / 50)
        >>> multiscale_entropy(noise, scales=5) > multiscale_entropy(cycle, scales=5)
        True

    Source: Costa, Goldberger & Peng, Phys. Rev. Lett. 89, 068102 (2002); Wu et al., Entropy 15, 1069
    (2013); Chen et al., IEEE Trans. Neural Syst. Rehabil. Eng. 15, 266 (2007).
    """
    from szilard.kernels.flows import fuzzy_matches

    if scales < 1 or m < 1 or not radius > 0:
        raise ValueError(f"scales, m, radius: got {scales}, {m}, {radius}, must be positive")
    if len(x) < 10 * scales * (m + 1) / 3 or not np.isfinite(x).all() or x.std() == 0:
        raise ValueError(
            f"x: got {len(x)} points, must be at least {10 * scales * (m + 1) // 3}, finite and not constant"
        )
    series = np.asarray((x - x.mean()) / x.std(), dtype=float)
    found = []
    for scale in range(1, scales + 1):
        phases = []
        for phase in range(scale):
            rows = (len(series) - phase) // scale
            coarse = series[phase : phase + rows * scale].reshape(rows, scale).mean(-1)
            phases.append(fuzzy_matches(coarse, m, radius))
        short, long = np.mean(phases, axis=0)
        if long > 0:
            found.append(np.log(short / long))
    return float(np.mean(found))


def invariants(
    system: str | ChaoticSystem,
    periods: int = 1000,
    *,
    points: int = 4000,
    max_steps: int = 20_000_000,
) -> dict[str, Invariant]:
    """Everything measured of one system.

    Args:
        system: the system, or its name.
        periods: periods the exponents are averaged over.
        points: points of the trajectories that dimension (5 a period) and entropies (15) are read from.
        max_steps: as in `lyapunov_spectrum`.

    Returns:
        lyapunov_1, lyapunov_2, ... (nats a unit of time), lyapunov_1_per_period, periods (those the
        exponents were averaged over), lyapunov_sum, pesin_entropy (nats a unit of
        time), bits_per_period, kaplan_yorke_dimension, correlation_dimension, permutation_entropy
        (dimension 4, over ln 4!) and multiscale_entropy (medians over coordinates). Of a delay
        equation, the largest exponent, correlation dimension and entropies.

    Raises:
        ValueError: unknown flow, or too few periods or points.
        RuntimeError: the integration stops early.

    Examples:
        >>> found = invariants("Rossler", 100, points=1000)
        >>> found["lyapunov_1"].value > 3 * found["lyapunov_1"].stderr
        True

    Source: Gilpin (2021), section on annotations.
    """
    system = chaotic_system(system) if isinstance(system, str) else system
    if points < 500:
        raise ValueError(f"points: got {points}, must be at least 500")
    spectrum = lyapunov_spectrum(system, periods, max_steps=max_steps)
    nan = float("nan")
    found = {
        f"lyapunov_{i + 1}": Invariant(float(value), float(error))
        for i, (value, error) in enumerate(zip(*spectrum[:2], strict=True))
    }
    found["lyapunov_1_per_period"] = Invariant(*(system.period * x for x in found["lyapunov_1"]))
    found["periods"] = Invariant(spectrum.time / system.period, nan)
    if not system.delay:
        positive = spectrum.exponents > 3 * spectrum.stderr
        error = float(np.sqrt((spectrum.stderr[positive] ** 2).sum()))
        entropy = pesin_entropy(*spectrum[:2])
        in_bits = system.period / math.log(2)
        found["lyapunov_sum"] = Invariant(float(spectrum.exponents.sum()), nan)
        found["pesin_entropy"] = Invariant(entropy, error)
        found["bits_per_period"] = Invariant(entropy * in_bits, error * in_bits)
        found["kaplan_yorke_dimension"] = Invariant(kaplan_yorke_dimension(*spectrum[:2]), nan)
    apart = _unfolded(system, trajectory(system, points, 5, discard=50).x, 5)
    found["correlation_dimension"] = Invariant(correlation_dimension(apart), nan)
    x = trajectory(system, points, 15, discard=50).x.T
    moving = np.ascontiguousarray(x[x.std(-1) > 0])
    ordinal = permutation_entropy(moving, 4, normalize=True)
    found["permutation_entropy"] = Invariant(float(np.median(ordinal)), nan)
    fuzzy = [multiscale_entropy(row[:1000]) for row in moving]
    found["multiscale_entropy"] = Invariant(float(np.median(fuzzy)), nan)
    return found


def _unfolded(system: ChaoticSystem, x: np.ndarray, points_per_period: float) -> np.ndarray:
    """States of a flow as they are; a delay equation's as ten values over one delay."""
    if not system.delay:
        return x
    lag = max(1, round(system.delay / 9 * points_per_period / system.period))
    return np.stack([x[i * lag : len(x) - (9 - i) * lag, 0] for i in range(10)], -1)


PUBLISHED = {
    "lyapunov_1": "maximum_lyapunov_estimated",
    "pesin_entropy": "pesin_entropy",
    "kaplan_yorke_dimension": "kaplan_yorke_dimension",
    "correlation_dimension": "correlation_dimension",
    "multiscale_entropy": "multiscale_entropy",
}


def annotation_table(
    systems: Iterable[str] | None = None,
    periods: int = 1000,
    *,
    points: int = 4000,
    max_steps: int = 20_000_000,
    cache: str | Path | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Measured invariants beside the published annotations: a row a system.

    Args:
        systems: names; all by default.
        periods: as in `invariants`.
        points: as in `invariants`.
        max_steps: as in `invariants`.
        cache: folder with a file a system, written as each one ends: a run that was stopped goes on.
        workers: processes; as many as cores by default.
        progress: shows a progress bar.

    Returns:
        Columns period, dimension (0 where delay makes it infinite), `<invariant>`,
        `<invariant>_stderr` and `<invariant>_published` where there is one. A system whose
        integration stops early has NaN and says why in `error`.

    Raises:
        ValueError: an unknown name.
    """
    import pandas as pd

    names = chaotic_systems() if systems is None else list(systems)
    for name in names:
        check_name(name)
    found = in_processes(
        _annotated,
        names,
        workers,
        progress,
        "measuring",
        cache=cache,
        arguments={"periods": periods, "points": points, "max_steps": max_steps},
    )
    rows = []
    for name in names:
        known = published_annotations(name)
        row = {"system": name, "period": known["period"], "error": ""}
        row["dimension"] = 0 if known["delay"] else known["embedding_dimension"]
        row |= {f"{key}_published": known.get(stored) for key, stored in PUBLISHED.items()}
        rows.append(row | found[name])
    return pd.DataFrame(rows).set_index("system")


def _annotated(name: str, *, cache: str | Path | None, arguments: dict[str, Any]) -> dict[str, Any]:
    path = None if cache is None else Path(cache) / f"{name}-{key_of(name, arguments)}.json"
    if path is not None and path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    row: dict[str, Any] = {}
    try:
        for key, (value, stderr) in invariants(name, **arguments).items():
            row[key] = value
            if np.isfinite(stderr):
                row[f"{key}_stderr"] = stderr
    except RuntimeError as stopped:
        row = {"error": str(stopped)}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(row), encoding="utf-8")
        partial.replace(path)
    return row
