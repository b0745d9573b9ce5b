"""Bit strings packed into words: which are equal, which are near, and their bits as numbers.

Rows are compared 64 bits at a time. Equal rows are found by sorting one hash a row; what shares a
hash is then compared in full, so that the result does not rest on the hash. Nearest rows are found
by comparing all pairs, block by block in the cache; a row is left as soon as it is farther than the
farthest that is kept, which most rows of structured data are after a fraction of their words.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from szilard.kernels.compiled import _compiled
from szilard.kernels.neighbors import _bits, _run

_SERIAL = 1 << 22  # pairs of words below which another thread costs more than it saves
_JOBS = 4  # a thread: whoever is done takes the next job
_BLOCK = 1 << 15  # words of the rows that all queries of a job meet before the next ones: 256 KiB
_STRIDE = 16  # words after which a comparison looks whether it can end
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(32)
_TABLE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32)


def words(packed: np.ndarray) -> np.ndarray:
    """Rows of bytes as rows of 64-bit words, filled up with zeros."""
    n, size = packed.shape
    padded = np.zeros((n, max(1, -(-size // 8)) * 8), np.uint8)
    padded[:, :size] = packed
    return padded.view(np.uint64)


def equal_rows(rows: np.ndarray) -> np.ndarray:
    """For every row of words, the number of the first row that equals it."""
    hashes = np.empty(len(rows), np.uint64)
    _hash(rows, hashes)
    first = np.empty(len(rows), np.intp)
    _first_equal(rows, hashes, np.argsort(hashes, kind="stable"), first)
    return first


def distances(a: np.ndarray, b: np.ndarray, threads: int) -> np.ndarray:
    """Bits in which rows of words differ, (rows of a, rows of b) int32."""
    out = np.empty((len(a), len(b)), np.int32)
    _spread(lambda begin, end: _distances(a, b, begin, end, out), a, b, threads)
    return out


def nearest(
    queries: np.ndarray, rows: np.ndarray, k: int, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows that differ from each query in the fewest bits.

    Args:
        queries: (m, words) uint64.
        rows: (n, words) uint64.
        k: from 1 to n.
        threads: how many search; the result does not depend on it.

    Returns:
        Distances (m, k) int32, ascending, and the rows meant (m, k); of rows at the same distance,
        the first come first.
    """
    distance = np.full((len(queries), k), np.iinfo(np.int32).max, np.int32)
    index = np.zeros((len(queries), k), np.intp)
    block = max(1, _BLOCK // rows.shape[1])
    _spread(
        lambda begin, end: _nearest(queries, rows, block, begin, end, distance, index),
        queries,
        rows,
        threads,
    )
    return distance, index


def unpack(packed: np.ndarray, out: np.ndarray) -> None:
    """Writes the bits of every row, the highest of a byte first, as 0 and 1 into float32 rows."""
    _unpack(packed, _TABLE, out)


def _spread(work, a, b, threads):  # type: ignore[no-untyped-def]
    """Splits the rows of a among threads, as far as the work is worth them."""
    threads = max(1, min(threads, len(a) * b.size // _SERIAL, len(a)))
    jobs = 1 if threads == 1 else min(len(a), _JOBS * threads)
    edges = np.linspace(0, len(a), jobs + 1).astype(int).tolist()
    _run(work, list(pairwise(edges)), threads)


@_compiled()
def _hash(rows, hashes):  # type: ignore[no-untyped-def]
    for i in range(len(rows)):
        h = _FACTOR
        for j in range(rows.shape[1]):
            h = (h ^ rows[i, j]) * _FACTOR
            h ^= h >> _SHIFT
        hashes[i] = h


@_compiled()
def _first_equal(rows, hashes, order, first):  # type: ignore[no-untyped-def]
    start = 0
    for i in range(len(order)):
        row = order[i]
        if hashes[row] != hashes[order[start]]:
            start = i
        first[row] = row
        for j in range(start, i):
            other = order[j]
            if first[other] == other:
                same = True
                for word in range(rows.shape[1]):
                    if rows[other, word] != rows[row, word]:
                        same = False
                        break
                if same:
                    first[row] = other
                    break


@_compiled()
def _distances(a, b, begin, end, out):  # type: ignore[no-untyped-def]
    for i in range(begin, end):
        for j in range(len(b)):
            total = 0
            for word in range(a.shape[1]):
                total += _bits(a[i, word] ^ b[j, word])
            out[i, j] = total


@_compiled()
def _nearest(queries, rows, block, begin, end, distance, index):  # type: ignore[no-untyped-def]
    size, last = rows.shape[1], distance.shape[1] - 1
    for first in range(0, len(rows), block):
        for i in range(begin, end):
            farthest = np.int64(distance[i, last])
            for j in range(first, min(first + block, len(rows))):
                total = 0
                for start in range(0, size, _STRIDE):
                    for word in range(start, min(start + _STRIDE, size)):
                        total += _bits(queries[i, word] ^ rows[j, word])
                    if total >= farthest:
                        break
                if total < farthest:
                    place = last
                    while place > 0 and distance[i, place - 1] > total:
                        distance[i, place] = distance[i, place - 1]
                        index[i, place] = index[i, place - 1]
                        place -= 1
                    distance[i, place], index[i, place] = total, j
                    farthest = np.int64(distance[i, last])


@_compiled()
def _unpack(packed, table, out):  # type: ignore[no-untyped-def]
    width = out.shape[1]
    for i in range(len(packed)):
        for j in range(width // 8):
            for bit in range(8):
                out[i, 8 * j + bit] = table[packed[i, j], bit]
        for at in range(width // 8 * 8, width):
            out[i, at] = table[packed[i, at // 8], at % 8]
