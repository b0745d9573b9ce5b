"""Measured bit strings: as words that compare as the strings do, what leaks where, and how bits vote.

A string is a row of 64-bit words, its last bit the lowest of the last word: rows in ascending order
are strings in ascending order. Distances are those of `kernels.codes`, which do not depend on where a
bit lies. Every sum runs in the order of the rows, so that results are reproducible to the last bit.
"""

from __future__ import annotations

import numpy as np

from szilard.kernels.compiled import _compiled
from szilard.kernels.neighbors import _bits, _lowest, _without_lowest


def pack(bits: np.ndarray) -> np.ndarray:
    """Rows of zeros and ones, (n, width) uint8 or bool, as (n, words) uint64."""
    n, width = bits.shape
    padded = np.zeros((n, -(-width // 64) * 64), np.uint8)
    padded[:, padded.shape[1] - width :] = bits
    return pack_bytes(np.packbits(padded, axis=1))


def pack_bytes(packed: np.ndarray) -> np.ndarray:
    """Rows of bytes, the most significant first, as (n, words) uint64."""
    n, size = packed.shape
    padded = np.zeros((n, -(-size // 8) * 8), np.uint8)
    padded[:, padded.shape[1] - size :] = packed
    return padded.view(">u8").astype(np.uint64)


def unpack(words: np.ndarray, width: int) -> np.ndarray:
    """The last `width` bits of every row, (n, width) uint8."""
    bits = np.unpackbits(words.astype(">u8").view(np.uint8), axis=1)
    return bits[:, bits.shape[1] - width :]


def distinct(words: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows in ascending order, and the sum of their weights."""
    order = np.lexsort(words.T[::-1])
    rows = words[order]
    first = np.flatnonzero(np.append(True, (rows[1:] != rows[:-1]).any(1)))
    return rows[first], np.add.reduceat(weights[order], first)


def leakage(
    rows: np.ndarray, centres: np.ndarray, masses: np.ndarray, table: np.ndarray
) -> np.ndarray:
    """What every row receives of the centres: the sum of mass times table[distance], (n,) float64.

    Args:
        rows: (n, words) uint64.
        centres: (k, words) uint64.
        masses: (k,) float64.
        table: of the width and one more, float64.
    """
    out = np.empty(len(rows))
    _leakage(rows, centres, masses, table, out)
    return out


def votes(
    rows: np.ndarray, weights: np.ndarray, centres: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How much of every centre's rows there is, and how much of it differs from it in each bit.

    Args:
        rows: (n, words) uint64.
        weights: (n,) float64.
        centres: (k, words) uint64.
        labels: the centre of every row, negative for none, (n,).

    Returns:
        Weight (k,), and weight that differs (k, 64 words), the first bit of a row first.
    """
    mass = np.zeros(len(centres))
    differing = np.zeros((len(centres), 64 * rows.shape[1]))
    _votes(rows, weights, centres, labels, mass, differing)
    return mass, differing


@_compiled()
def _leakage(rows, centres, masses, table, out):  # type: ignore[no-untyped-def]
    for i in range(len(rows)):
        leaked = 0.0
        for j in range(len(centres)):
            total = 0
            for word in range(rows.shape[1]):
                total += _bits(rows[i, word] ^ centres[j, word])
            leaked += masses[j] * table[total]
        out[i] = leaked


@_compiled()
def _votes(rows, weights, centres, labels, mass, differing):  # type: ignore[no-untyped-def]
    for i in range(len(rows)):
        centre = labels[i]
        if centre >= 0:
            mass[centre] += weights[i]
            for word in range(rows.shape[1]):
                differ = rows[i, word] ^ centres[centre, word]
                while differ:
                    differing[centre, 64 * word + 63 - _lowest(differ)] += weights[i]
                    differ = _without_lowest(differ)
