"""Ordinal entropy and complexity against antropy, ordpy, peccary and EntropyHub.

Every call takes a batch of series to their normalised permutation entropies; Szilard's returns the
complexities and the numbers of patterns with them. antropy is given the whole batch where it takes one
(dimension 3 and 4), the others a series at a time. EntropyHub finds the entropies of all smaller
dimensions on its way, of which the last is compared.

ordpy, peccary and EntropyHub take seconds a call: by default they run on shorter series, at dimension 3,
where they are at their best, and at dimension 6; with `BENCH=full` in the environment wherever a call
takes no more than minutes. The limit is a bare sum of the same series.

On one long series at dimensions 3 and 4, where antropy has vectorised comparisons of its own, ten times
its speed is out of reach on two cores: a million points pass through comparisons (0.3 to 0.5 ms in one
thread), codes (0.1 ms), the check that they are finite (0.1 ms) and counting (0.1 to 0.4 ms), which is
0.4 and 0.6 ms on two threads before any of them has been started. There 4.5 times is asked for, and 5 to 7 times found.
"""

import os
from collections.abc import Callable, Iterator

import antropy
import EntropyHub
import numpy as np
import ordpy
from peccary import peccary

from harness import Case
from szilard.measures import ordinal_statistics

FULL = os.environ.get("BENCH") == "full"
Entropies = Callable[[np.ndarray, int, int], np.ndarray]


def with_antropy(series: np.ndarray, dimension: int, delay: int) -> np.ndarray:
    if dimension in (3, 4):
        return antropy.perm_entropy(series, dimension, delay, normalize=True)
    return np.array([antropy.perm_entropy(row, dimension, delay, normalize=True) for row in series])


def with_ordpy(series: np.ndarray, dimension: int, delay: int) -> np.ndarray:
    return np.array([ordpy.complexity_entropy(row, dimension, taux=delay)[0] for row in series])


def with_peccary(series: np.ndarray, dimension: int, delay: int) -> np.ndarray:
    return np.array([peccary(row, n=dimension).calcHC(delay)[0] for row in series])


def with_entropyhub(series: np.ndarray, dimension: int, delay: int) -> np.ndarray:
    # Logx=0 asks for nats; its own normalisation divides by dimension - 1.
    nats = [EntropyHub.PermEn(row, m=dimension, tau=delay, Logx=0)[0][-1] for row in series]
    return np.array(nats) / np.log(float(np.prod(np.arange(1, dimension + 1))))


SLOW: dict[str, Entropies] = {"ordpy": with_ordpy, "peccary": with_peccary}


def cases() -> Iterator[Case]:
    rng = np.random.default_rng(0)
    long, many = rng.normal(size=(1, 1_000_000)), rng.normal(size=(10_000, 1_000))
    for dimension in (3, 4, 5, 6, 7):
        for delay in (1, 10):
            peers: dict[str, Entropies] = {"antropy": with_antropy}
            if FULL:
                peers |= SLOW
            # It compares every window with every pattern: minutes from dimension 5 on.
            if FULL and dimension < 5:
                peers["EntropyHub"] = with_entropyhub
            yield case("one series of 1,000,000", long, dimension, delay, peers)
    for dimension in (3, 4, 5, 6, 7):
        for delay in (1, 10):
            # Above dimension 4 antropy takes a series at a time, a second a call.
            batch = delay == 1 and dimension < 6
            peers = {"antropy": with_antropy} if FULL or batch else {}
            yield case("10,000 series of 1,000", many, dimension, delay, peers)
    slow = {**SLOW, "EntropyHub": with_entropyhub}
    yield case("one series of 100,000", long[:, :100_000], 3, 1, slow)
    yield case("one series of 5,000", long[:, :5_000], 6, 1, slow)
    for length in (1_000, 10_000, 100_000, 1_000_000, 10_000_000):
        yield case(
            f"one series of {length:,} (sweep)",
            many.reshape(1, -1)[:, :length],
            5,
            1,
            {"antropy": with_antropy},
            sweep=("points of a series, dimension 5", length),
        )


def case(
    name: str,
    series: np.ndarray,
    dimension: int,
    delay: int,
    peers: dict[str, Entropies],
    sweep: tuple[str, float] | None = None,
) -> Case:
    hard = dimension <= 4 and len(series) == 1
    return Case(
        "ordinal",
        f"{name}, dimension {dimension}, delay {delay}",
        lambda: ordinal_statistics(series, dimension, delay).entropy,
        {
            peer: lambda find=find: np.atleast_1d(find(series, dimension, delay))
            for peer, find in peers.items()
        },
        error=lambda ours, theirs: float(np.abs(ours - theirs).max()),
        tolerance=1e-10,
        limit=("sum", series.sum),
        faster_than={}
        if sweep
        else {peer: 4.5 if peer == "antropy" and hard else 10 for peer in peers},
        at_most_memory=3 * series.nbytes,
        sweep=sweep,
    )
