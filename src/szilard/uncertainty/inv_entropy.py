"""Inv-Entropy: how unsure a black-box model is of an answer, from perturbed questions and two walks.

With N variants of a question, one answer of each, and similarities of questions and of answers:

1. P_x and P_y are the similarity matrices with rows normalised: random walks among questions and among
   answers. pi is uniform.
2. P(y_j) = (pi P_y)_j, and P(x_i | y_j) = (P_y P_x)_ji: from an answer to similar ones, and on to
   questions similar to theirs. P(x) = pi P_y P_y P_x; P(y | x) by Bayes.
3. Inv-Entropy is -sum_i c_i ln c_i with c_i = P(x_i | y_i), how surely an answer leads back to its own
   question. The c_i need not sum to 1: their size counts beside their spread.
4. Of r answers to each variant one is drawn at random, B times; the mean is the estimate.

Entropies are in nats.

Source: Song, Ji, Shi, Lai, Al Kontar, Inv-Entropy: A Fully Probabilistic Framework for Uncertainty
Quantification in Language Models (2025; arXiv 2506.09684).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator

from szilard.uncertainty.embedding import Embedder, embedder

Generate = Callable[[list[str], int, float], list[list[str]]]
"""Takes prompts, answers a prompt, and a temperature; gives the answers to each prompt."""
Perturb = Callable[[str, int, np.random.Generator], list[str]]
"""Takes a question, how many variants of it, and a generator; gives the variants."""

_FEW = 4
_BLOCK = 1 << 22  # similarities gathered at once


@dataclass(frozen=True)
class InvEntropyResult:
    """Measures of one joint distribution of questions and answers, or of a batch of them.

    Attributes:
        inv_entropy: -sum_i c_i ln c_i, c_i = P(x_i | y_i), (*batch).
        ni_entropy: the same of P(y_i | x_i), without the inversion, (*batch).
        wd: Wasserstein distance between the values of P(x) and those of P(y), (*batch).
        max_p_y_given_x: largest P(y_i | x_i), (*batch).
        max_p_y: largest P(y_j), (*batch).
        p_x: (*batch, n).
        p_y: (*batch, n).
        p_x_given_y: rows are y, (*batch, n, n).
        p_y_given_x: rows are x, (*batch, n, n).
    """

    inv_entropy: Float[np.ndarray, "*batch"]
    ni_entropy: Float[np.ndarray, "*batch"]
    wd: Float[np.ndarray, "*batch"]
    max_p_y_given_x: Float[np.ndarray, "*batch"]
    max_p_y: Float[np.ndarray, "*batch"]
    p_x: Float[np.ndarray, "*batch n"]
    p_y: Float[np.ndarray, "*batch n"]
    p_x_given_y: Float[np.ndarray, "*batch n n"]
    p_y_given_x: Float[np.ndarray, "*batch n n"]


def inv_entropy(
    S_x: Float[np.ndarray, "*batch_x n n"], S_y: Float[np.ndarray, "*batch n n"]
) -> InvEntropyResult:
    """Inv-Entropy and its relatives from similarities of questions and of answers.

    Args:
        S_x: similarities of the variants, not negative; axes before the last two broadcast.
        S_y: similarities of their answers.

    Returns:
        Measures in nats, float64.

    Raises:
        ValueError: shapes that don't fit, fewer than two variants, NaN or negative similarities, or a row
            of zeros.

    Examples:
        >>> alike = np.full((10, 10), 0.7) + 0.3 * np.eye(10)
        >>> round(float(inv_entropy(alike, np.ones((10, 10))).inv_entropy), 6)  # one answer: ln 10
        2.302585
        >>> round(float(inv_entropy(alike, np.eye(10)).inv_entropy), 6)
        2.723116

    Source: Song et al. 2025 (arXiv 2506.09684), probabilistic framework and measures.
    """
    P_x, P_y = _walk(S_x, "S_x"), _walk(S_y, "S_y")
    if P_x.shape[-1] != P_y.shape[-1]:
        raise ValueError(
            f"S_y must be of {P_x.shape[-1]} variants as S_x, but is of {P_y.shape[-1]}"
        )
    p_y = P_y.mean(-2)
    p_x_given_y = P_y @ P_x
    p_x = (p_y[..., None, :] @ p_x_given_y)[..., 0, :]
    p_y_given_x = np.swapaxes(p_x_given_y * p_y[..., :, None], -1, -2) / p_x[..., :, None]
    back, forth = (np.diagonal(p, axis1=-2, axis2=-1) for p in (p_x_given_y, p_y_given_x))
    # Of as many equal weights each, the distance is that of the sorted values.
    apart = np.abs(np.sort(p_x, -1) - np.sort(np.broadcast_to(p_y, p_x.shape), -1)).mean(-1)
    return InvEntropyResult(
        inv_entropy=_summed(back),
        ni_entropy=_summed(forth),
        wd=np.asarray(apart),
        max_p_y_given_x=np.asarray(forth.max(-1)),
        max_p_y=np.broadcast_to(p_y.max(-1), p_x.shape[:-1]),
        p_x=p_x,
        p_y=np.broadcast_to(p_y, p_x.shape),
        p_x_given_y=p_x_given_y,
        p_y_given_x=p_y_given_x,
    )


def _walk(S: np.ndarray, name: str) -> np.ndarray:
    S = np.asarray(S, dtype=np.float64)
    if S.ndim < 2 or S.shape[-1] != S.shape[-2]:
        raise ValueError(f"{name} must be square, but has shape {S.shape}")
    if S.shape[-1] < 2:
        raise ValueError(f"{name} must be of two variants at least, but is of {S.shape[-1]}")
    if not np.isfinite(S).all() or (S < 0).any():
        raise ValueError(f"{name} must be finite and not negative")
    total = S.sum(-1, keepdims=True)
    if (total == 0).any():
        raise ValueError(f"{name} must have no row of zeros")
    return S / total


def _summed(c: np.ndarray) -> np.ndarray:
    return np.asarray(-np.where(c > 0, c * np.log(np.where(c > 0, c, 1.0)), 0.0).sum(-1))


def bootstrapped(
    S_x: Float[np.ndarray, "n n"],
    S_y: Float[np.ndarray, "n r n r"],
    draws: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, " draws"]:
    """Inv-Entropy of `draws` random choices of one of r answers of each variant, nats.

    Only the diagonal of P_y P_x is needed, so that a draw costs n^2 operations.

    Args:
        S_x: similarities of the variants.
        S_y: similarities of answer a of variant i and answer b of variant j, [i, a, j, b].
        draws: with replacement.
        rng: draws them.

    Raises:
        ValueError: as `inv_entropy`, or no draws.

    Source: Song et al. 2025 (arXiv 2506.09684), bootstrap over replications.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, but is {draws}")
    n, r = S_y.shape[:2]
    if S_y.shape != (n, r, n, r) or S_x.shape != (n, n):
        raise ValueError(
            f"S_y must have shape (n, r, n, r) and S_x (n, n), but have {S_y.shape} and {S_x.shape}"
        )
    P_x = _walk(S_x, "S_x")
    i = np.arange(n)
    found = []
    for size in _sizes(draws, max(1, _BLOCK // (n * n))):
        answer = rng.integers(r, size=(size, n))
        chosen = S_y[i[:, None], answer[:, :, None], i[None, :], answer[:, None, :]]
        found.append(_summed(np.einsum("bij,ji->bi", _walk(chosen, "S_y"), P_x)))
    return np.concatenate(found)


def _sizes(total: int, most: int) -> list[int]:
    return [min(most, total - at) for at in range(0, total, most)]


@dataclass(frozen=True)
class InvEntropyDetails:
    """What one question's score was made from.

    Attributes:
        variants: the question and its perturbations, n.
        answers: of each variant, n lists of r.
        question_similarity: (n, n).
        answer_similarity: [i, a, j, b], (n, r, n, r).
        draws: Inv-Entropy of each draw, nats.
    """

    variants: list[str]
    answers: list[list[str]]
    question_similarity: Float[np.ndarray, "n n"]
    answer_similarity: Float[np.ndarray, "n r n r"]
    draws: Float[np.ndarray, " draws"]


class InvEntropy(BaseEstimator):
    """Uncertainty of a language model's answers, through its text alone.

    Args:
        generate: the model: takes prompts, how many answers to each, and a temperature.
        perturb: gives variants of a question: `Paraphrase`, `GAAP`, or any function of the question, how
            many, and a generator.
        embed: sentence embeddings: a name or folder that sentence-transformers loads, "all-MiniLM-L6-v2"
            from the `embeddings` extra without a download, or a function from texts to (texts, width).
        similarity: "cosine01" is (1 + cos) / 2, "abs_cosine" |cos|, as the authors' program has it; or a
            function of two lists of texts to their similarities, (a, b), not negative.
        n_perturb: variants beside the question; the same of every question, since values of different
            numbers are not comparable. Fewer are filled up with repetitions, more are thinned out.
        n_answers: sampled from each variant.
        n_bootstrap: draws.
        temperature: of the sampling.
        random_state: seed of perturbations and draws.

    Attributes:
        details_: what each score was made from, in the order of the questions.

    Raises:
        ValueError: an argument out of its range.

    Examples:
        >>> towns = {"France": "Paris", "Italy": "Rome"}
        >>> def generate(prompts, n, temperature):
        ...     return [[next(t for c, t in towns.items() if c in p)] * n for p in prompts]
        >>> def perturb(question, n, rng):
        ...     return [f"{question} Please." if i % 2 else f"Say: {question}" for i in range(n)]
        >>> def embed(texts):
        ...     return np.array([[len(t), t.count("e") + 1.0] for t in texts])
        >>> score = InvEntropy(generate, perturb, embed).score(["Capital of France?", "Capital of Italy?"])
        >>> score.shape
        (2,)

    Source: Song, Ji, Shi, Lai, Al Kontar, Inv-Entropy (2025; arXiv 2506.09684).
    """

    def __init__(
        self,
        generate: Generate,
        perturb: Perturb,
        embed: str | Embedder = "all-MiniLM-L6-v2",
        similarity: Literal["cosine01", "abs_cosine"]
        | Callable[[list[str], list[str]], np.ndarray] = "cosine01",
        n_perturb: int = 9,
        n_answers: int = 5,
        n_bootstrap: int = 30,
        temperature: float = 0.7,
        random_state: int = 0,
    ) -> None:
        self.generate = generate
        self.perturb = perturb
        self.embed = embed
        self.similarity = similarity
        self.n_perturb = n_perturb
        self.n_answers = n_answers
        self.n_bootstrap = n_bootstrap
        self.temperature = temperature
        self.random_state = random_state

    def score(self, questions: Sequence[str]) -> Float[np.ndarray, " questions"]:
        """Inv-Entropy of each question's answers in nats: higher is less certain.

        Raises:
            ValueError: no question or an empty one, or a model that answers in another number.
        """
        self._check(questions)
        details = []
        for index, question in enumerate(questions):
            rng = np.random.default_rng([self.random_state, index])
            variants = [question, *self._perturbed(question, rng)]
            answers = self.generate(variants, self.n_answers, self.temperature)
            details.append(self._detail(variants, answers, rng))
        self.details_ = details
        self._warn(details)
        return np.array([float(one.draws.mean()) for one in details])

    def score_answers(
        self, variants: Sequence[Sequence[str]], answers: Sequence[Sequence[Sequence[str]]]
    ) -> Float[np.ndarray, " questions"]:
        """The same of variants and answers that are there already.

        Args:
            variants: of each question, itself first.
            answers: of each variant.

        Raises:
            ValueError: ragged answers, or numbers that don't fit.
        """
        if len(variants) != len(answers):
            raise ValueError(
                f"answers must be of {len(variants)} questions, but are of {len(answers)}"
            )
        self.details_ = [
            self._detail(list(asked), said, np.random.default_rng([self.random_state, index]))
            for index, (asked, said) in enumerate(zip(variants, answers, strict=True))
        ]
        self._warn(self.details_)
        return np.array([float(one.draws.mean()) for one in self.details_])

    def _check(self, questions: Sequence[str]) -> None:
        if isinstance(questions, str) or not len(questions):
            raise ValueError("questions must be a list of one at least")
        for i, question in enumerate(questions):
            if not question.strip():
                raise ValueError(f"questions[{i}] must not be empty")
        for name in ("n_perturb", "n_answers", "n_bootstrap"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must not be negative, but is {self.temperature}")

    def _perturbed(self, question: str, rng: np.random.Generator) -> list[str]:
        found = [variant for variant in self.perturb(question, self.n_perturb, rng) if variant]
        if not found:
            raise ValueError(f"perturb must give variants, but gave none of {question!r}")
        if len(found) > self.n_perturb:
            return [found[i] for i in rng.choice(len(found), self.n_perturb, replace=False)]
        missing = rng.integers(len(found), size=self.n_perturb - len(found))
        return found + [found[i] for i in missing]

    def _detail(
        self, variants: list[str], answers: Sequence[Sequence[str]], rng: np.random.Generator
    ) -> InvEntropyDetails:
        said = [list(each) for each in answers]
        sizes = {len(each) for each in said}
        if len(said) != len(variants) or len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                f"answers must be as many of each of the {len(variants)} variants and one at least, "
                f"but are {[len(each) for each in said]}"
            )
        if any(not answer.strip() for each in said for answer in each):
            warnings.warn("answers hold empty ones, which count as an answer", stacklevel=3)
        n, r = len(variants), sizes.pop()
        S_x = self.similarities(variants)
        S_y = self.similarities([answer for each in said for answer in each]).reshape(n, r, n, r)
        draws = bootstrapped(S_x, S_y, self.n_bootstrap, rng)
        return InvEntropyDetails(variants, said, S_x, S_y, draws)

    def similarities(self, texts: Sequence[str]) -> Float[np.ndarray, "texts texts"]:
        """Similarities of texts, each distinct one embedded once."""
        distinct = list(dict.fromkeys(texts))
        place = {text: i for i, text in enumerate(distinct)}
        rows = np.array([place[text] for text in texts])
        if callable(self.similarity):
            S = np.asarray(self.similarity(distinct, distinct), dtype=np.float64)
        else:
            if self.similarity not in ("cosine01", "abs_cosine"):
                raise ValueError(
                    f"similarity must be 'cosine01', 'abs_cosine' or a function, but is {self.similarity!r}"
                )
            found = np.asarray(embedder(self.embed)(distinct), dtype=np.float64)
            length = np.linalg.norm(found, axis=-1, keepdims=True)
            unit = found / np.where(length > 0, length, 1.0)
            cosine = np.clip(unit @ unit.T, -1, 1)
            np.fill_diagonal(cosine, 1.0)
            S = (1 + cosine) / 2 if self.similarity == "cosine01" else np.abs(cosine)
        return S[np.ix_(rows, rows)]

    def _warn(self, details: Sequence[InvEntropyDetails]) -> None:
        if min(len(one.variants) for one in details) < _FEW:
            warnings.warn(
                f"with fewer than {_FEW} variants more dispersion can lower the measure",
                stacklevel=3,
            )
            return
        for one in details:
            P_x = _walk(one.question_similarity, "S_x")
            P_y = _walk(one.answer_similarity[:, 0, :, 0], "S_y")
            if np.einsum("ij,ji->i", P_y, P_x).max() > 1 / math.e:
                warnings.warn(
                    "an answer leads back to its own question with probability above 1/e, where the "
                    "measure falls with dispersion: take variants that are closer, or more of them",
                    stacklevel=3,
                )
                return

    def __sklearn_is_fitted__(self) -> bool:
        return True


def tsu(uncertainty: Float[np.ndarray, "questions temperatures"]) -> float:
    """Temperature sensitivity: share of questions whose uncertainty rises at every rise of temperature.

    It needs no labels. Noise scores 1/k! with k temperatures, a constant 0.

    Args:
        uncertainty: of each question at ascending temperatures.

    Raises:
        ValueError: fewer than two temperatures, no question, or NaN.

    Examples:
        >>> tsu(np.array([[1.0, 2, 3, 4], [1, 1, 2, 3], [4, 3, 2, 1], [1, 3, 2, 4]]))
        0.25

    Source: Song et al. 2025 (arXiv 2506.09684), temperature sensitivity of uncertainty.
    """
    if uncertainty.ndim != 2 or uncertainty.shape[1] < 2 or not len(uncertainty):
        raise ValueError(
            f"uncertainty must be (questions, two temperatures or more), but is {uncertainty.shape}"
        )
    if np.isnan(uncertainty).any():
        raise ValueError("uncertainty must not be NaN")
    return float((np.diff(uncertainty, axis=1) > 0).all(1).mean())


def plot_uncertainty(
    uncertainty: Float[np.ndarray, "questions temperatures"], temperatures: Sequence[float]
) -> Any:
    """Uncertainty over temperature, a line a question: a plotly Figure.

    Raises:
        ValueError: another number of temperatures.
    """
    import plotly.graph_objects as go

    if uncertainty.shape[1] != len(temperatures):
        raise ValueError(
            f"temperatures must be {uncertainty.shape[1]}, but are {len(temperatures)}"
        )
    figure = go.Figure()
    for row in uncertainty:
        rises = bool((np.diff(row) > 0).all())
        figure.add_scatter(
            x=list(temperatures),
            y=row,
            mode="lines",
            showlegend=False,
            opacity=0.9 if rises else 0.3,
        )
    figure.update_layout(xaxis_title="temperature", yaxis_title="uncertainty (nats)")
    return figure
