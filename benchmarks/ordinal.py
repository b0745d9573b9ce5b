"""Ordinal entropy and complexity against antropy, ordpy and peccary."""

from collections.abc import Iterator

import antropy
import numpy as np
import ordpy
from peccary import peccary

from harness import Case
from szilard.measures import ordinal_statistics


def cases() -> Iterator[Case]:
    rng = np.random.default_rng(0)
    long, many = rng.normal(size=1_000_000), rng.normal(size=(10_000, 1_000))
    for dimension in (3, 5, 7):
        for delay in (1, 10):
            yield case("one series of 1,000,000", long, dimension, delay, everyone=delay == 1)
    for dimension in (3, 5):
        yield case("10,000 series of 1,000", many, dimension, 1, everyone=False)


def case(name: str, x: np.ndarray, dimension: int, delay: int, *, everyone: bool = True) -> Case:
    series = np.atleast_2d(x)
    peers = {
        "antropy": lambda: np.array(
            [antropy.perm_entropy(row, dimension, delay, normalize=True) for row in series]
        )
    }
    # Hundreds of times slower: they are timed on one long series at delay 1 alone.
    if everyone:
        peers["ordpy"] = lambda: np.array(
            [ordpy.complexity_entropy(row, dx=dimension, taux=delay)[0] for row in series]
        )
        peers["peccary"] = lambda: np.array(
            [peccary(row, n=dimension).calcHC(delay)[0] for row in series]
        )
    return Case(
        "ordinal",
        f"{name}, dimension {dimension}, delay {delay}",
        lambda: ordinal_statistics(series, dimension, delay).entropy,
        peers,
        error=lambda ours, theirs: float(np.abs(ours - theirs).max()),
        tolerance=1e-10,
        limit=("sum", series.sum),
        faster_than=dict.fromkeys(peers, 10),
    )
