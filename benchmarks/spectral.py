"""Diffusion spectral entropy to a relative error of 1e-3 against all eigenvalues by NumPy.

The peer is the plain form: distances by the Gram matrix, the kernel, its normalisation, `eigvalsh`. The
error is the relative error of the entropy. Below 2,000 points Szilard computes the eigenvalues too.
With `BENCH=full` in the environment 10,000 points are measured in 64 and 512 dimensions as well, at
minutes a run of the peer.
"""

import os
from collections.abc import Iterator

import numpy as np

from harness import Case
from szilard.measures import diffusion_spectral_entropy

LARGE = 10_000


def cases() -> Iterator[Case]:
    yield case(2_000, 512)
    for n in (500, 1_000, 2_000, LARGE):
        yield case(n, 128, sweep=True)
    if os.environ.get("BENCH") == "full":
        for d in (64, 512):
            yield case(LARGE, d)


def case(n: int, d: int, *, sweep: bool = False) -> Case:
    points = np.random.default_rng(0).normal(size=(n, d))
    # Half of the typical distance: the spectrum is neither one eigenvalue nor flat.
    sigma = 0.5 * float(np.sqrt(2 * d))
    return Case(
        "spectral",
        f"{n:,} points, {d} dimensions",
        lambda: diffusion_spectral_entropy(points, sigma, tolerance=1e-3),
        {"NumPy": lambda: plain(points, sigma)},
        error=lambda ours, theirs: abs(ours / theirs - 1),
        tolerance=1e-3,
        faster_than={"NumPy": 5} if n == LARGE else {},
        sweep=("points (128 dimensions)", n) if sweep else None,
    )


def plain(points: np.ndarray, sigma: float) -> float:
    squares = (points**2).sum(1)
    distances = np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0)
    kernel = np.exp(-distances / (2 * sigma**2))
    root = np.sqrt(kernel.sum(1))
    eigenvalues = np.abs(np.linalg.eigvalsh(kernel / root[:, None] / root))
    p = eigenvalues / eigenvalues.sum()
    return float(-(p * np.log(p, where=p > 0, out=np.zeros_like(p))).sum())
