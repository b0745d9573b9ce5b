"""How much a text repeats itself, and how its words are distributed: counts on token arrays.

Every measure looks at generated tokens only: leave the prompt out of the array, and say with `mask`
or `eos` which positions count. What does not count is skipped as if it had never been there. The
figures depend on the tokenizer; compare them within one only.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer


def rep_l(
    tokens: Integer[np.ndarray, "*batch tokens"],
    window: int,
    *,
    mask: Bool[np.ndarray, "*batch tokens"] | None = None,
    eos: int | None = None,
) -> Float[np.ndarray, "*batch"]:
    """rep/l: the share of tokens that occur among the `window` tokens before them.

    Args:
        tokens: token ids of generated text, prompt excluded.
        window: l, how many tokens to look back.
        mask: True where a token counts.
        eos: where given, everything after a text's first `eos` is left out.

    Returns:
        A share in [0, 1] a text; NaN for a text without tokens.

    Raises:
        ValueError: a window below 1, no axis, or a mask of another shape.

    Examples:
        >>> rep_l(np.array([1, 2, 3, 1, 1]), 2)
        array(0.2)

    Source: Welleck et al. 2020, Neural Text Generation with Unlikelihood Training, section 6.1.
    """
    return repetition(tokens, (window,), mask=mask, eos=eos)


def repetition(
    tokens: Integer[np.ndarray, "*batch tokens"],
    windows: Sequence[int] = (16, 32, 128),
    *,
    mask: Bool[np.ndarray, "*batch tokens"] | None = None,
    eos: int | None = None,
) -> Float[np.ndarray, "*batch"]:
    """REP: `rep_l` averaged over several windows.

    Args:
        tokens: token ids of generated text, prompt excluded.
        windows: the values of l.
        mask: True where a token counts.
        eos: where given, everything after a text's first `eos` is left out.

    Returns:
        A share in [0, 1] a text; NaN for a text without tokens.

    Raises:
        ValueError: no window, a window below 1, no axis, or a mask of another shape.

    Examples:
        >>> repetition(np.array([[7, 7, 7, 7], [1, 2, 3, 4]]))
        array([0.75, 0.  ])

    Source: Meister et al. 2023, Locally Typical Sampling, section 6 (REP).
    """
    if len(windows) == 0 or min(windows) < 1:
        raise ValueError(f"windows must be one or more integers >= 1, but are {tuple(windows)}")
    counts = _counting(tokens, mask, eos)
    rows, ids = np.nonzero(counts)[0], tokens.reshape(counts.shape)[counts]
    position = (counts.cumsum(axis=1) - 1)[counts]
    # Equal tokens of a row become neighbours, in the order they were written.
    order = np.lexsort((position, ids, rows))
    again = (np.diff(rows[order]) == 0) & (np.diff(ids[order]) == 0)
    gap, row = np.diff(position[order])[again], rows[order][1:][again]
    seen_again = (gap[:, None] <= np.asarray(windows)).sum(axis=1)
    repeats = np.bincount(row, weights=seen_again, minlength=len(counts))
    return _ratio(repeats, len(windows) * counts.sum(axis=1)).reshape(tokens.shape[:-1])


def ngram_diversity(
    tokens: Integer[np.ndarray, "*batch tokens"],
    longest: int = 4,
    *,
    mask: Bool[np.ndarray, "*batch tokens"] | None = None,
    eos: int | None = None,
) -> Float[np.ndarray, "*batch"]:
    """Distinct n-grams over all n-grams of a text, averaged over n = 1 .. `longest`.

    Args:
        tokens: token ids of generated text, prompt excluded.
        longest: largest n.
        mask: True where a token counts.
        eos: where given, everything after a text's first `eos` is left out.

    Returns:
        A share in (0, 1] a text, averaged over the n the text is long enough for; NaN for a text
        without tokens.

    Raises:
        ValueError: `longest` below 1, no axis, or a mask of another shape.

    Examples:
        >>> ngram_diversity(np.array([5, 5, 5, 5]), 2)
        array(0.29166667)

    Source: Meister et al. 2023, Locally Typical Sampling, section 6 (D, average n-gram diversity).
    """
    if longest < 1:
        raise ValueError(f"longest must be at least 1, but is {longest}")
    counts = _counting(tokens, mask, eos)
    lengths = counts.sum(axis=1)
    rows, ids = np.nonzero(counts)[0], tokens.reshape(counts.shape)[counts]
    position = (counts.cumsum(axis=1) - 1)[counts]
    gram, distinct_share, available = rows, np.zeros(len(counts)), np.zeros(len(counts))
    for n in range(1, longest + 1):
        # The n-gram at t is the (n-1)-gram at t followed by the token at t + n - 1; numbered
        # together with its row, equal grams of different texts stay apart.
        starts = position <= lengths[rows] - n
        pairs = np.stack([gram[starts], ids[np.flatnonzero(starts) + n - 1]])
        distinct, number = np.unique(pairs, axis=1, return_inverse=True)
        gram = np.full(len(ids), -1)
        gram[starts] = number.reshape(-1)
        first_row = np.zeros(distinct.shape[1], dtype=np.int64)
        first_row[gram[starts]] = rows[starts]
        total = np.maximum(lengths - n + 1, 0)
        unique = np.bincount(first_row, minlength=len(counts))
        distinct_share += np.divide(unique, total, out=np.zeros(len(counts)), where=total > 0)
        available += total > 0
    return _ratio(distinct_share, available).reshape(tokens.shape[:-1])


def zipf_coefficient(
    tokens: Integer[np.ndarray, "*batch tokens"],
    *,
    ranks: int = 5000,
    mask: Bool[np.ndarray, "*batch tokens"] | None = None,
    eos: int | None = None,
) -> float:
    """Exponent s of frequency ~ rank^-s, over all texts together (natural language: about 1).

    The slope of a least-squares line through log frequency against log rank.

    Args:
        tokens: token ids of generated text, prompt excluded.
        ranks: how many of the most frequent tokens the line goes through.
        mask: True where a token counts.
        eos: where given, everything after a text's first `eos` is left out.

    Returns:
        The exponent; 0 where all tokens are equally frequent.

    Raises:
        ValueError: fewer than two distinct tokens, `ranks` below 2, no axis, or a mask of another
            shape.

    Examples:
        >>> round(zipf_coefficient(np.repeat(np.arange(6), [60, 30, 20, 15, 12, 10])), 6)
        1.0

    Source: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, section 5.2.
    """
    if ranks < 2:
        raise ValueError(f"ranks must be at least 2, but is {ranks}")
    counts = _counting(tokens, mask, eos)
    frequency = np.unique(tokens.reshape(counts.shape)[counts], return_counts=True)[1]
    frequency = np.sort(frequency)[::-1][:ranks]
    if len(frequency) < 2:
        raise ValueError(f"tokens must hold two distinct tokens or more, but hold {len(frequency)}")
    log_rank = np.log(np.arange(1, len(frequency) + 1))
    log_rank -= log_rank.mean()
    return float(-(log_rank @ np.log(frequency)) / (log_rank @ log_rank))


def _counting(tokens: np.ndarray, mask: np.ndarray | None, eos: int | None) -> np.ndarray:
    """Which positions count, texts along the first axis."""
    if tokens.ndim == 0:
        raise ValueError("tokens must have at least one axis, but is a scalar")
    if mask is not None and mask.shape != tokens.shape:
        raise ValueError(
            f"mask must have the shape of tokens, {tokens.shape}, but has {mask.shape}"
        )
    shape = (int(np.prod(tokens.shape[:-1])), tokens.shape[-1])
    counts = np.ones(shape, dtype=bool) if mask is None else mask.reshape(shape).copy()
    if eos is not None:
        ended = counts & (tokens.reshape(shape) == eos)
        counts &= ended.cumsum(axis=1) - ended == 0
    return counts


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    nothing = np.full(len(denominator), np.nan)
    return np.divide(numerator, denominator, out=nothing, where=denominator > 0)
