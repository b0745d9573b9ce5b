"""Uncertainties of sampled answers that need nothing but the answers: what others are compared with.

All take the similarities of r answers, (r, r) with 1 on the diagonal, or the answers themselves, and are
higher for less certain answers. Entropies are in nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def semantic_entropy(
    answers: Sequence[str],
    similarity: Float[np.ndarray, "r r"] | None = None,
    *,
    alike: float = 0.5,
) -> float:
    """Entropy of the meanings among sampled answers.

    Args:
        answers: samples.
        similarity: of each pair, such as the smaller of the probabilities of entailment; answers that
            are linked by similarities above `alike` mean the same. None takes equal strings, without
            case and outer spaces.
        alike: in that case.

    Raises:
        ValueError: no answer, or similarities of another number.

    Examples:
        >>> round(semantic_entropy(["Rome", "rome ", "Paris", "Paris"]), 6)
        0.693147

    Source: Kuhn, Gal & Farquhar, Semantic Uncertainty (ICLR 2023), discrete form of Farquhar et al.,
    Nature 630, 625 (2024).
    """
    if not len(answers):
        raise ValueError("answers must hold one at least")
    if similarity is None:
        labels = np.unique([answer.strip().lower() for answer in answers], return_inverse=True)[1]
    else:
        from scipy.sparse.csgraph import connected_components

        S = _checked(similarity)
        if len(S) != len(answers):
            raise ValueError(f"similarity must be of {len(answers)} answers, but is of {len(S)}")
        labels = connected_components(alike < S, directed=False)[1]
    shares = np.bincount(labels) / len(labels)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum()) + 0.0


def degree_uncertainty(similarity: Float[np.ndarray, "r r"]) -> float:
    """DegMat: trace of 1 - D / r, one minus the mean similarity of all pairs.

    Raises:
        ValueError: similarities that are no square matrix of finite numbers.

    Examples:
        >>> degree_uncertainty(np.ones((4, 4)))
        0.0

    Source: Lin, Trivedi & Sun, Generating with Confidence (TMLR 2024), U_Deg.
    """
    return float(1 - _checked(similarity).mean())


def kernel_language_entropy(similarity: Float[np.ndarray, "r r"], *, time: float = 0.3) -> float:
    """Von Neumann entropy of the heat kernel of the graph of answers, nats.

    Args:
        similarity: weights of the graph's edges.
        time: of the diffusion.

    Raises:
        ValueError: as `degree_uncertainty`, or a negative time.

    Examples:
        >>> round(kernel_language_entropy(np.eye(4)), 6)  # four that are apart: ln 4
        1.386294

    Source: Nikitin, Kossen, Gal & Marttinen, Kernel Language Entropy (NeurIPS 2024), heat kernel.
    """
    if not time >= 0:
        raise ValueError(f"time must not be negative, but is {time}")
    S = _checked(similarity)
    W = (S + S.T) / 2
    np.fill_diagonal(W, 0.0)
    spectrum = np.linalg.eigvalsh(np.diag(W.sum(1)) - W)
    weight = np.exp(-time * spectrum)
    p = weight / weight.sum()
    return float(-(p * np.log(np.where(p > 0, p, 1.0))).sum())


def lexical_dissimilarity(answers: Sequence[str]) -> float:
    """One minus the mean ROUGE-L (F1 of the longest common subsequence of words) of pairs.

    Raises:
        ValueError: fewer than two answers.

    Examples:
        >>> lexical_dissimilarity(["in Rome", "in Paris"])
        0.5

    Source: Fomicheva et al., Unsupervised Quality Estimation for Neural Machine Translation (TACL 2020),
    lexical similarity, with Lin's ROUGE-L (2004).
    """
    if len(answers) < 2:
        raise ValueError(f"answers must be two at least, but are {len(answers)}")
    words = [answer.lower().split() for answer in answers]
    scores = [
        _rouge_l(words[i], words[j]) for i in range(len(words)) for j in range(i + 1, len(words))
    ]
    return 1 - float(np.mean(scores))


def _rouge_l(a: list[str], b: list[str]) -> float:
    if not a or not b:
        return float(a == b)
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for j, other in enumerate(b):
            kept = row[j + 1]
            row[j + 1] = before + 1 if word == other else max(row[j + 1], row[j])
            before = kept
    return 2 * row[-1] / (len(a) + len(b))


def _checked(similarity: np.ndarray) -> np.ndarray:
    S = np.array(similarity, dtype=np.float64)
    if S.ndim != 2 or S.shape[0] != S.shape[1] or not len(S) or not np.isfinite(S).all():
        raise ValueError(f"similarity must be square and finite, but has shape {S.shape}")
    return S
