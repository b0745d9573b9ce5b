"""Repetition, n-gram diversity and Zipf's exponent against hand counts and a plain reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from szilard.measures.repetition import ngram_diversity, rep_l, repetition, zipf_coefficient

texts = st.lists(st.integers(0, 5), min_size=1, max_size=40)


def plain_rep_l(tokens, window):
    repeats = [t in tokens[max(0, i - window) : i] for i, t in enumerate(tokens)]
    return sum(repeats) / len(tokens)


def plain_diversity(tokens, longest):
    shares = []
    for n in range(1, longest + 1):
        grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        if grams:
            shares.append(len(set(grams)) / len(grams))
    return sum(shares) / len(shares)


def padded(rows):
    width = max(map(len, rows))
    tokens = np.array([row + [0] * (width - len(row)) for row in rows])
    mask = np.array([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return tokens, mask


def test_rep_l_counts_tokens_seen_within_the_window():
    tokens = np.array([1, 2, 1, 3, 2])
    assert rep_l(tokens, 1) == 0
    assert rep_l(tokens, 2) == 1 / 5
    assert rep_l(tokens, 3) == 2 / 5


def test_a_constant_text_repeats_everywhere_but_at_its_start():
    assert repetition(np.full(10, 4)) == pytest.approx(0.9)


def test_a_text_of_distinct_tokens_does_not_repeat_and_is_fully_diverse():
    tokens = np.arange(50)
    assert repetition(tokens) == 0
    assert ngram_diversity(tokens) == 1


def test_rep_is_the_mean_over_windows():
    tokens = np.random.default_rng(0).integers(0, 60, 200)
    windows = (16, 32, 128)
    assert repetition(tokens, windows) == pytest.approx(
        np.mean([rep_l(tokens, window) for window in windows])
    )


@given(st.lists(texts, min_size=1, max_size=4), st.integers(1, 12))
def test_batched_figures_equal_the_plain_definition_text_by_text(rows, window):
    tokens, mask = padded(rows)
    np.testing.assert_allclose(
        rep_l(tokens, window, mask=mask), [plain_rep_l(row, window) for row in rows]
    )
    np.testing.assert_allclose(
        ngram_diversity(tokens, 4, mask=mask), [plain_diversity(row, 4) for row in rows]
    )


@given(texts, st.integers(1, 12))
def test_rep_l_grows_with_the_window_and_is_invariant_to_renaming_tokens(text, window):
    tokens = np.array(text)
    renamed = np.array([30, 10, 50, 20, 0, 40])[tokens]
    assert rep_l(tokens, window) <= rep_l(tokens, window + 1)
    assert rep_l(renamed, window) == rep_l(tokens, window)
    assert ngram_diversity(renamed) == pytest.approx(ngram_diversity(tokens))


@given(texts, st.integers(1, 12))
def test_masked_positions_are_as_if_never_written(text, window):
    tokens = np.array(text)
    mask = np.random.default_rng(len(text)).random(len(text)) < 0.6
    kept = tokens[mask]
    if len(kept):
        assert rep_l(tokens, window, mask=mask) == rep_l(kept, window)
        assert ngram_diversity(tokens, mask=mask) == pytest.approx(ngram_diversity(kept))


def test_everything_after_the_first_eos_is_left_out():
    tokens = np.array([[5, 6, 2, 5, 5], [5, 6, 7, 8, 9]])
    np.testing.assert_allclose(repetition(tokens, (16,), eos=2), [0, 0])
    np.testing.assert_allclose(
        ngram_diversity(tokens, eos=2),
        [ngram_diversity(tokens[0, :3]), ngram_diversity(tokens[1])],
    )


def test_an_eos_that_does_not_count_ends_nothing():
    tokens = np.array([2, 5, 5])
    mask = np.array([False, True, True])
    assert rep_l(tokens, 1, mask=mask, eos=2) == 0.5


def test_a_text_without_tokens_is_nan_beside_others():
    tokens, mask = np.array([[1, 1], [1, 1]]), np.array([[False, False], [True, True]])
    np.testing.assert_allclose(repetition(tokens, mask=mask), [np.nan, 0.5])
    np.testing.assert_allclose(ngram_diversity(tokens, mask=mask), [np.nan, 0.75])


def test_leading_axes_are_kept_also_when_empty():
    assert repetition(np.zeros((2, 3, 4), dtype=int)).shape == (2, 3)
    assert ngram_diversity(np.zeros((2, 0, 4), dtype=int)).shape == (2, 0)
    assert repetition(np.zeros(4, dtype=np.uint16)).shape == ()


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_zipf_exponent_of_an_exact_power_law_is_found(exponent):
    frequency = np.round(1e5 * np.arange(1, 9.0) ** -exponent).astype(int)
    tokens = np.repeat(np.arange(8), frequency)
    # Frequencies are rounded to integers of 1500 and more.
    assert zipf_coefficient(tokens) == pytest.approx(exponent, abs=1e-3)


def test_equally_frequent_tokens_have_exponent_zero():
    assert zipf_coefficient(np.arange(20)) == pytest.approx(0, abs=1e-12)


def test_zipf_pools_texts_and_obeys_mask_and_ranks():
    tokens = np.array([[1, 1, 2, 9], [1, 1, 2, 9]])
    mask = tokens != 9
    assert zipf_coefficient(tokens, mask=mask) == pytest.approx(np.log(2) / np.log(2))
    assert zipf_coefficient(tokens, ranks=2) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: repetition(np.arange(3), ()), "windows"),
        (lambda: rep_l(np.arange(3), 0), "windows"),
        (lambda: ngram_diversity(np.arange(3), 0), "longest"),
        (lambda: zipf_coefficient(np.arange(3), ranks=1), "ranks"),
        (lambda: zipf_coefficient(np.array([3, 3])), "distinct"),
        (
            lambda: zipf_coefficient(np.array([1, 2, 3]), mask=np.array([True, False, False])),
            "distinct",
        ),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


@pytest.mark.usefixtures("unhooked")
def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="mask"):
        repetition(np.arange(3), mask=np.array([True]))
    with pytest.raises(ValueError, match="axis"):
        repetition(np.array(3))
