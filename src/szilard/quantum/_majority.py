"""Clusters of bit strings around centroids whose bits are the majority of their members'."""

from __future__ import annotations

import numpy as np
import torch

from szilard.kernels import bitstrings, codes
from szilard.quantum.counts import Shots


def majority_clusters(
    shots: Shots, centres: np.ndarray, radius: int, max_iter: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clusters around centroids whose bits are the majority of their members' (step 2).

    Args:
        shots: strings and their weights.
        centres: to begin with, (k, words).
        radius: the farthest that a string may be from its centroid.
        max_iter: most rounds of votes.

    Returns:
        Centroids, those that coincide once; the cluster of each string, the first of several as near
        and -1 beyond the radius; and the distance to the nearest centroid.
    """
    for _ in range(max_iter):
        labels, _ = _nearest(shots, centres, radius)
        voted = _vote(shots, centres, labels)
        if (voted == centres).all():
            break
        centres = voted
    first = np.unique(codes.equal_rows(centres))
    centres = np.ascontiguousarray(centres[first])
    return centres, *_nearest(shots, centres, radius)


def _nearest(shots: Shots, centres: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    apart, index = codes.nearest(shots.words, centres, 1, torch.get_num_threads())
    return np.where(apart[:, 0] <= radius, index[:, 0], -1), apart[:, 0]


def _vote(shots: Shots, centres: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The majority of every bit, 1 where there is none; a cluster without members stays."""
    mass, differing = bitstrings.votes(shots.words, shots.weights, centres, labels)
    bits = bitstrings.unpack(centres, 64 * centres.shape[1])
    ones = np.where(bits == 1, mass[:, None] - differing, differing)
    voted = bitstrings.pack(ones >= mass[:, None] - ones)
    return np.where(mass[:, None] > 0, voted, centres)
