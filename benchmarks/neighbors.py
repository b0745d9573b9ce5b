"""Nearest-neighbour estimates of entropy and mutual information against infomeasure and scikit-learn.

Normal points, third neighbours. Everyone gets the same arrays, without noise or rescaling:
infomeasure adds noise of 1e-10 unless told not to, and scikit-learn's public
`mutual_info_regression` rescales and adds noise, so the bare estimator behind it (`_compute_mi_cc`,
numbers against numbers) is what is timed; that it cuts negative estimates off at 0 does not show on
dependent variables. All of them sum the same terms over the same neighbours. Szilard uses as many
threads as torch does; its peers have no such choice.

infomeasure takes minutes for 100,000 points in ten dimensions. It is timed there on 10,000, and
Szilard alone on all; with `BENCH=full` in the environment infomeasure too.
"""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import infomeasure
import numpy as np
from sklearn.feature_selection._mutual_info import _compute_mi_cc

from harness import Case, Contender
from szilard.measures import kozachenko_leonenko, ksg_mutual_information

K = 3
POINTS = 100_000
FULL = os.environ.get("BENCH") == "full"
FEWER = POINTS if FULL else 10_000


def cases() -> Iterator[Case]:
    for n in (1_000, 10_000, POINTS):
        yield entropy(n, 2, sweep=("points (entropy, 2 dimensions)", n))
    yield entropy(POINTS, 5)
    yield entropy(FEWER, 10)
    for n in (1_000, 10_000, POINTS):
        yield information(n, 1, sweep=("points (information, 1 + 1 dimensions)", n))
    yield information(POINTS, 2)
    yield information(FEWER, 5)
    if not FULL:
        yield entropy(POINTS, 10, alone=True)
        yield information(POINTS, 5, alone=True)


def entropy(n: int, d: int, *, alone: bool = False, **more: Any) -> Case:
    x = np.random.default_rng(0).normal(size=(n, d))
    infomeasures = partial(infomeasure.entropy, x, approach="kl", k=K, minkowski_p=2, noise_level=0)
    return case(
        f"Kozachenko-Leonenko, {n:,} points in {d} dimensions",
        partial(kozachenko_leonenko, x, K),
        {} if alone else {"infomeasure": infomeasures},
        x.nbytes,
        **more,
    )


def information(n: int, d: int, *, alone: bool = False, **more: Any) -> Case:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d))
    y = x + rng.normal(size=(n, d))
    peers: dict[str, Contender] = {
        "infomeasure": partial(
            infomeasure.mutual_information, x, y, approach="ksg", k=K, noise_level=0
        )
    }
    if d == 1:
        peers["scikit-learn"] = partial(_compute_mi_cc, x[:, 0], y[:, 0], K)
    return case(
        f"KSG, {n:,} points in {d} + {d} dimensions",
        partial(ksg_mutual_information, x, y, K),
        {} if alone else peers,
        2 * x.nbytes,
        **more,
    )


def case(work: str, ours: Contender, peers: dict[str, Contender], size: int, **more: Any) -> Case:
    return Case(
        "neighbors",
        work,
        ours,
        peers,
        error=lambda ours, theirs: abs(ours - float(theirs)),
        tolerance=1e-9,
        faster_than=dict.fromkeys(peers, 2),
        # A few times the points; of less than a megabyte the allocator takes its own.
        at_most_memory=max(6 * size, 2**22),
        **more,
    )
