"""Packed bit strings against strings, and sums over centres against a few lines of NumPy."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from szilard.kernels import bitstrings, codes


@st.composite
def bit_matrices(draw: st.DrawFn) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    width = draw(st.sampled_from([1, 7, 8, 63, 64, 65, 100, 128, 130]))
    bits = rng.random((draw(st.integers(1, 40)), width)) < 0.5
    return bits[rng.integers(len(bits), size=len(bits))]


def as_strings(bits: np.ndarray) -> list[str]:
    return ["".join(map(str, row)) for row in bits.astype(int)]


@given(bit_matrices())
def test_packing_is_undone_and_keeps_the_order_of_strings(bits: np.ndarray) -> None:
    words = bitstrings.pack(bits)
    np.testing.assert_array_equal(bitstrings.unpack(words, bits.shape[1]), bits)
    rows, weights = bitstrings.distinct(words, np.arange(len(bits)) + 1.0)
    strings = as_strings(bits)
    assert as_strings(bitstrings.unpack(rows, bits.shape[1])) == sorted(set(strings))
    for string, weight in zip(sorted(set(strings)), weights, strict=True):
        assert weight == sum(i + 1 for i, other in enumerate(strings) if other == string)


@given(bit_matrices())
def test_bytes_pack_like_the_bits_they_hold(bits: np.ndarray) -> None:
    size = -(-bits.shape[1] // 8)
    padded = np.pad(bits, ((0, 0), (8 * size - bits.shape[1], 0)))
    packed = bitstrings.pack_bytes(np.packbits(padded, axis=1))
    np.testing.assert_array_equal(packed, bitstrings.pack(bits))


@given(bit_matrices(), st.integers(1, 5))
def test_leakage_and_votes_are_the_plain_sums(bits: np.ndarray, k: int) -> None:
    rng = np.random.default_rng(k)
    centres = rng.random((k, bits.shape[1])) < 0.5
    rows, packed = bitstrings.pack(bits), bitstrings.pack(centres)
    apart = (bits[:, None] != centres[None]).sum(-1)
    np.testing.assert_array_equal(codes.distances(rows, packed, 1), apart)
    table, masses = rng.random(bits.shape[1] + 1), rng.random(k)
    # Sums of at most five positive numbers.
    np.testing.assert_allclose(
        bitstrings.leakage(rows, packed, masses, table), table[apart] @ masses, rtol=1e-14
    )
    labels, weights = rng.integers(-1, k, size=len(bits)), rng.integers(1, 9, len(bits)) + 0.0
    mass, differing = bitstrings.votes(rows, weights, packed, labels)
    pad = 64 * rows.shape[1] - bits.shape[1]
    assert not differing[:, :pad].any()
    for j in range(k):
        members = labels == j
        assert mass[j] == weights[members].sum()
        expected = weights[members] @ (bits[members] != centres[j])
        np.testing.assert_array_equal(differing[j, pad:], expected)
