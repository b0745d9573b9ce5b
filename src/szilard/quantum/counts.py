"""Counts of measured bit strings, in whatever form they come, as packed rows and weights.

Bits keep the order in which they are written (in Qiskit qubit 0 is the rightmost). Nothing here
imports Qiskit: its results are known by what they can do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt64

from szilard.kernels import bitstrings


@dataclass(frozen=True)
class Shots:
    """Distinct bit strings in ascending order, and how often each was seen.

    Attributes:
        words: the strings, 64 bits a word, shape (strings, words).
        weights: counts, or probabilities, all positive.
        width: bits of a string.

    Examples:
        >>> shots = read_counts({"01 1": 3, "000": 1})
        >>> shots.strings(), shots.weights.tolist(), shots.width
        (['000', '011'], [1.0, 3.0], 3)
    """

    words: UInt64[np.ndarray, "strings words"]
    weights: Float[np.ndarray, " strings"]
    width: int

    @property
    def total(self) -> float:
        """Number of shots."""
        return float(self.weights.sum())

    @property
    def probabilities(self) -> Float[np.ndarray, " strings"]:
        """Weights that sum to 1."""
        return self.weights / self.total

    def strings(self) -> list[str]:
        """The strings, in the order of the rows."""
        return unpacked(self.words, self.width)


def unpacked(words: np.ndarray, width: int) -> list[str]:
    """Rows of words as strings of zeros and ones."""
    letters = np.ascontiguousarray(bitstrings.unpack(words, width) + ord("0"))
    return [bytes(row).decode() for row in letters.view(f"S{width}").ravel().tolist()]


def read_counts(counts: Any, width: int | None = None) -> Shots:
    """Counts in any of the forms in which they come, checked.

    Args:
        counts: a mapping from bit strings to counts or probabilities (a dict, Qiskit's `Counts`, the
            result of another method); spaces between registers are dropped, and keys may be integers
            or hexadecimal where `width` says how many bits they have. Or a Qiskit `BitArray`, or a
            result of its sampler, whose registers are joined.
        width: bits of a string; checked where the strings have one.

    Returns:
        The distinct strings that were seen, in ascending order, and their weights.

    Raises:
        ValueError: no shots, a negative or non-finite count, strings of different widths or with
            other characters than 0 and 1, or integer keys without a width or beyond it.
        TypeError: something else altogether.

    Examples:
        >>> read_counts({"0x5": 2, "0x0": 1}, width=4).strings()
        ['0000', '0101']
    """
    if width is not None and width < 1:
        raise ValueError(f"width must be at least 1, but is {width}")
    if isinstance(counts, Shots):
        shots = counts
    elif isinstance(counts, Mapping):
        shots = _from_mapping(counts, width)
    else:
        joined = counts.join_data() if hasattr(counts, "join_data") else counts
        if not (hasattr(joined, "array") and hasattr(joined, "num_bits")):
            raise TypeError(
                "counts must be a mapping from bit strings, a BitArray or a result of the sampler, "
                f"but is {type(counts).__name__}"
            )
        rows = np.asarray(joined.array, dtype=np.uint8)
        rows = rows.reshape(-1, rows.shape[-1])
        if not len(rows):
            raise ValueError("counts must hold shots, but there are none")
        words = bitstrings.pack_bytes(rows)
        shots = Shots(*bitstrings.distinct(words, np.ones(len(words))), int(joined.num_bits))
    if width is not None and shots.width != width:
        raise ValueError(f"counts must be of strings of {width} bits, but they have {shots.width}")
    return shots


def _from_mapping(counts: Mapping[Any, Any], width: int | None) -> Shots:
    if not counts:
        raise ValueError("counts must hold shots, but are empty")
    try:
        weights = np.array(list(counts.values()), dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("counts must be numbers") from None
    wrong = ~np.isfinite(weights) | (weights < 0)
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(
            f"counts must be finite and not negative, but that of {list(counts)[at]!r} is {weights[at]}"
        )
    if not weights.any():
        raise ValueError("counts must hold shots, but all are 0")
    keys = [_as_string(key, width) for key in counts]
    size = len(keys[0])
    for key in keys:
        if len(key) != size or not size:
            raise ValueError(
                f"counts must be of strings of one width, but hold {keys[0]!r} and {key!r}"
            )
    letters = np.frombuffer("".join(keys).encode("ascii", "replace"), np.uint8).reshape(-1, size)
    bits = letters - np.uint8(ord("0"))
    if (bits > 1).any():
        bad = keys[int((bits > 1).any(1).argmax())]
        raise ValueError(f"counts must be of strings of 0 and 1, but hold {bad!r}")
    seen = weights > 0
    return Shots(*bitstrings.distinct(bitstrings.pack(bits[seen]), weights[seen]), size)


def _as_string(key: Any, width: int | None) -> str:
    if isinstance(key, str) and not key.startswith(("0x", "0X")):
        return key.replace(" ", "")
    try:
        number = int(key, 16) if isinstance(key, str) else int(key)
    except (TypeError, ValueError):
        raise ValueError(f"counts must have bit strings for keys, but hold {key!r}") from None
    if width is None:
        raise ValueError(f"width must be given where keys are numbers, such as {key!r}")
    if not 0 <= number < 1 << width:
        raise ValueError(f"counts hold {key!r}, which does not have {width} bits")
    return f"{number:0{width}b}"


def hellinger_fidelity(a: Any, b: Any) -> float:
    """Hellinger fidelity of two distributions of bit strings, (sum_s sqrt(a_s b_s))^2, in [0, 1].

    Args:
        a: counts or probabilities, as `read_counts` takes them.
        b: likewise, of strings of the same width.

    Raises:
        ValueError: of different widths, or as `read_counts`.

    Examples:
        >>> round(hellinger_fidelity({"0": 1, "1": 1}, {"0": 1}), 12)
        0.5
    """
    first, second = read_counts(a), read_counts(b)
    if first.width != second.width:
        raise ValueError(
            f"a and b must have the same width, but have {first.width} and {second.width}"
        )
    words = np.concatenate([first.words, second.words])
    none, there = np.zeros(len(first.words)), np.zeros(len(second.words))
    p = bitstrings.distinct(words, np.concatenate([first.probabilities, there]))[1]
    q = bitstrings.distinct(words, np.concatenate([none, second.probabilities]))[1]
    return min(1.0, float(np.sqrt(p * q).sum()) ** 2)


def normalized_entropy(counts: Any) -> float:
    """Shannon entropy of a distribution of bit strings over its largest, H / (n ln 2), in [0, 1].

    Args:
        counts: as `read_counts` takes them.

    Examples:
        >>> normalized_entropy({"00": 500, "11": 500})
        0.5
    """
    shots = read_counts(counts)
    p = shots.probabilities
    return min(1.0, max(0.0, -float((p * np.log2(p)).sum()) / shots.width))


def binary_entropy(p: float) -> float:
    """Entropy of a bit that is 1 with probability p, in bits."""
    return 0.0 if p in (0.0, 1.0) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)
