"""Codes of networks: distinct codes, nearest codes and classifiers against NumPy and scikit-learn.

Random bits around a few thousand centres, as many units as a network of 4,096 hidden units has, or
fewer where a peer would take minutes. NumPy's `unique(axis=0)` gets the packed bytes; scikit-learn's
brute-force neighbours and torch's matrix product get the unpacked bits, each in the type that suits
it, unpacked before the clock starts. Of codes at the same distance others may be taken, so that
distances are compared. Logistic regression of all pairs of ten classes is timed against
scikit-learn's `OneVsOneClassifier`, both to the same tolerance.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsOneClassifier
from sklearn.neighbors import NearestNeighbors

from harness import Case, Contender
from szilard.representations import PackedCodes
from szilard.representations.categorization import PairwiseLogistic

K = 9
UNITS = 4096


def cases() -> Iterator[Case]:
    for n in (1_000, 10_000, 60_000):
        yield distinct(n, 512, sweep=("codes of 512 units (distinct)", n))
    yield distinct(60_000, UNITS, alone=True)
    for n in (1_000, 10_000):
        yield nearest(n, 500, 512, sweep=("codes of 512 units (500 queries)", n))
    yield nearest(60_000, 500, UNITS, alone=True)
    yield logistic(5_000, 512)


def codes(n: int, units: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = np.packbits(rng.random((min(n, 4_000), units)) < 0.3, axis=1)
    rng = np.random.default_rng([seed, n])
    packed = centres[rng.integers(len(centres), size=n)]
    flips = rng.integers(256, size=packed.shape, dtype=np.uint8)
    for _ in range(3):  # one bit in sixteen, of every second row
        flips &= rng.integers(256, size=packed.shape, dtype=np.uint8)
    packed[::2] ^= flips[::2]
    return packed


def distinct(n: int, units: int, *, alone: bool = False, **more: Any) -> Case:
    packed = codes(n, units)
    layers = {"": slice(0, units)}
    peers: dict[str, Contender] = {
        "numpy": lambda: np.unique(packed, axis=0, return_counts=True)[1]
    }
    return case(
        f"distinct codes among {n:,} of {units:,} units",
        lambda: PackedCodes(packed, units, layers).counts(),
        {} if alone else peers,
        lambda ours, theirs: float(np.abs(np.sort(ours) - np.sort(theirs)).max()),
        0,
        **more,
    )


def nearest(n: int, m: int, units: int, *, alone: bool = False, **more: Any) -> Case:
    layers = {"": slice(0, units)}
    train, test = (
        PackedCodes(codes(size, units, seed), units, layers) for seed, size in ((0, n), (1, m))
    )
    peers: dict[str, Contender] = {}
    if not alone:
        bits, queries = train.unpack(), test.unpack()
        brute = NearestNeighbors(n_neighbors=K, metric="hamming", algorithm="brute").fit(bits)
        peers["scikit-learn"] = lambda: brute.kneighbors(queries)[0] * units
        peers["torch"] = partial(
            by_product, torch.from_numpy(bits).float(), torch.from_numpy(queries).float()
        )
    return case(
        f"{K} nearest of {n:,} codes of {units:,} units, {m:,} queries",
        lambda: train.nearest(test, K)[0],
        peers,
        lambda ours, theirs: float(np.abs(ours - np.sort(theirs, axis=1)).max()),
        1e-3,
        **more,
    )


def by_product(train: torch.Tensor, test: torch.Tensor) -> np.ndarray:
    apart = test.sum(1)[:, None] + train.sum(1) - 2 * (test @ train.mT)
    return apart.topk(K, largest=False).values.numpy()


def logistic(n: int, units: int) -> Case:
    rng = np.random.default_rng(0)
    y = np.arange(n) % 10
    prototypes = rng.random((10, units)) < 0.5
    bits = prototypes[y] ^ (rng.random((n, units)) < 0.4)
    packed = PackedCodes.from_bits(bits)
    dense = bits.astype(np.float32)
    pairs = OneVsOneClassifier(LogisticRegression())
    return case(
        f"logistic regression of 10 classes, {n:,} codes of {units:,} units",
        lambda: PairwiseLogistic.fit(packed, y).predict(packed),
        {"scikit-learn": lambda: pairs.fit(dense, y).predict(dense)},
        lambda ours, theirs: float((ours != theirs).mean()),
        0.005,
    )


def case(
    work: str,
    ours: Contender,
    peers: dict[str, Contender],
    error: Any,
    tolerance: float,
    **more: Any,
) -> Case:
    return Case(
        "codes",
        work,
        ours,
        peers,
        error=error,
        tolerance=tolerance,
        # The product is fed floats, 32 times the memory: it must not win by that.
        faster_than={name: 1 if name == "torch" else 2 for name in peers},
        **more,
    )
