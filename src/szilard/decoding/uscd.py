"""USCD: where a model is unsure, subtract what it would write without the prompt's worked examples.

p and q are the next-token distributions after the standard prompt and after a "lame" one, the same
prompt without its examples, both followed by the same generated tokens. A peaked p is left alone;
otherwise

    keep the tokens with p_v >= eta / V
    r_v = p_v - alpha q_v
    p'_v = max(r_v, 0) / sum_w max(r_w, 0).

Peaked means a high standard deviation over the V entries of p. As (V - 1) std^2 + 1/V = sum_v p_v^2,
that is a threshold on the collision probability sum_v p_v^2, which does not depend on V.

Source: Wang, Ding, Shen, Luo, He, Yu, Tao, USCD: Improving Code Generation of LLMs by
Uncertainty-Aware Selective Contrastive Decoding (2024; arXiv 2409.05923).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from szilard.measures._checks import check_probabilities

# What starts a comment, by language; Python keeps its examples in docstrings.
_COMMENT = {
    **dict.fromkeys(("bash", "perl", "r", "ruby"), "#"),
    **dict.fromkeys(("cpp", "csharp", "d", "go", "java", "javascript", "php"), "//"),
    **dict.fromkeys(("rust", "scala", "swift", "typescript"), "//"),
    **dict.fromkeys(("haskell", "lua"), "--"),
    "racket": ";;",
}
_DOCSTRING = re.compile(r"(\"\"\"|''')(.*?)(?=\1)", re.DOTALL)
_DOCTEST = re.compile(r"\s*>>>")
_HEADING = re.compile(r"\s*(?:for |some )?exam[pb]les?\b\s*\d*\s*(?::|$)", re.IGNORECASE)
_ARROW = re.compile(r"=>|➞|⇒|→|[)'\"]\s*->")
_CALL = re.compile(
    r"\s*(?:[*-]\s*|#\s*|for\s+|assert\s+)?\w+\(.*\)\s*(?:==?\s|=>|->|➞|should\b|returns?\b)"
)


def uscd_combine(
    p: Float[Tensor, "*batch vocab"],
    q: Float[Tensor, "*batch vocab"],
    alpha: float = 0.7,
    eta: float = 1 / 3,
    collision: float = 0.8,
) -> tuple[Float[Tensor, "*batch vocab"], Bool[Tensor, "*batch"]]:
    """Subtracts q from p where p is not peaked.

    Args:
        p: next-token probabilities after the standard prompt.
        q: those after the lame prompt.
        alpha: weight of the subtracted distribution, 0 or more.
        eta: a token is kept where its p is at least eta times the mean of p, 1/V; 0 or more.
        collision: the gate is open where sum p^2 is at most this, in (0, 1]; 1 opens it everywhere.

    Returns:
        p' and the gate, True where it was open. A row with its gate closed is p, bit for bit; so is
        one of which nothing positive is left, which takes alpha of at least the mass kept.

    Raises:
        ValueError: alpha, eta or collision out of its range, rows that are no distributions, or
            shapes that differ.

    Examples:
        >>> p = torch.tensor([0.40, 0.30, 0.15, 0.10, 0.04, 0.01])
        >>> q = torch.tensor([0.60, 0.05, 0.20, 0.10, 0.04, 0.01])
        >>> uscd_combine(p, q)
        (tensor([0.0000, 0.8689, 0.0328, 0.0984, 0.0000, 0.0000]), tensor(True))

    Source: Wang et al. 2024 (arXiv 2409.05923), the selective contrast of section 3.
    """
    check_contrast(alpha, eta, collision)
    if p.shape != q.shape:
        raise ValueError(f"q must have the shape of p, {tuple(p.shape)}, but has {tuple(q.shape)}")
    check_probabilities(p, "p")
    check_probabilities(q, "q")
    gate = collision_probability(p) <= collision
    return torch.where(gate[..., None], contrast(p, q, alpha, eta)[0], p), gate


def contrast(
    p: Float[Tensor, "*batch vocab"], q: Float[Tensor, "*batch vocab"], alpha: float, eta: float
) -> tuple[Float[Tensor, "*batch vocab"], Bool[Tensor, "*batch vocab"]]:
    """The contrasted p' as if every gate were open, and which tokens were kept.

    Examples:
        >>> contrast(torch.tensor([0.5, 0.5]), torch.tensor([0.8, 0.2]), 0.5, 1.0)
        (tensor([0.2000, 0.8000]), tensor([True, True]))
    """
    kept = p >= eta / p.shape[-1]
    r = torch.where(kept, p - alpha * q, 0).clamp_(min=0)
    total = r.sum(-1, keepdim=True)
    return torch.where(total > 0, r / total, p), kept


def collision_probability(p: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """sum_v p_v^2 = exp(-H2): the chance that two draws from p agree, at most 1.

    Examples:
        >>> collision_probability(torch.tensor([0.5, 0.25, 0.25]))
        tensor(0.3750)

    Source: Renyi (1961), the entropy of order 2.
    """
    return torch.linalg.vecdot(p, p).clamp(max=1)


def divergence(
    p: Float[Tensor, "*batch vocab"], q: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """Jensen-Shannon divergence in nats, in the precision of p and q.

    In float32 that is some 1e-7, which a record can do with, at a tenth of the time of
    `szilard.measures.js_divergence`.

    Examples:
        >>> divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        tensor(0.6931)

    Source: Lin (1991), eq. 4.1 with equal weights.
    """
    middle = (p + q) / 2
    from_p, from_q = ((x * (x / middle).log()).nansum(-1) for x in (p, q))
    return ((from_p + from_q) / 2).clamp(min=0)


def std_to_collision(theta: float, vocabulary: int) -> float:
    """The collision probability of a distribution whose entries have standard deviation `theta`.

    Args:
        theta: sample standard deviation (ddof = 1) over the vocabulary, in [0, 1 / sqrt(V)).
        vocabulary: V, the number of tokens, 2 or more.

    Returns:
        (V - 1) theta^2 + 1/V.

    Raises:
        ValueError: an argument out of its range. No distribution over V tokens has a standard
            deviation above 1 / sqrt(V), so that such a gate would never close.

    Examples:
        >>> round(std_to_collision(0.0035, 32016), 5)
        0.39221

    Source: the variance of V numbers that sum to 1.
    """
    _check_vocabulary(vocabulary)
    if not 0 <= theta < 1 / math.sqrt(vocabulary):
        raise ValueError(
            f"theta must lie in [0, {1 / math.sqrt(vocabulary):.6g}), below 1/sqrt(V) for V = "
            f"{vocabulary} tokens, but is {theta!r}: a gate at or above it never closes "
            "(collision=1 asks for that)"
        )
    return (vocabulary - 1) * theta**2 + 1 / vocabulary


def collision_to_std(collision: float, vocabulary: int) -> float:
    """The standard deviation over the vocabulary that belongs to a collision probability.

    Args:
        collision: sum_v p_v^2, in [1/V, 1].
        vocabulary: V, the number of tokens, 2 or more.

    Returns:
        sqrt((collision - 1/V) / (V - 1)).

    Raises:
        ValueError: an argument out of its range.

    Examples:
        >>> round(collision_to_std(0.8, 32016), 8)
        0.00499873

    Source: the variance of V numbers that sum to 1.
    """
    _check_vocabulary(vocabulary)
    if not 1 / vocabulary <= collision <= 1:
        raise ValueError(
            f"collision must lie in [1/V, 1] for V = {vocabulary} tokens, but is {collision!r}"
        )
    return math.sqrt((collision - 1 / vocabulary) / (vocabulary - 1))


def check_contrast(alpha: float, eta: float, collision: float) -> None:
    """Refuses weights and thresholds out of their range.

    Raises:
        ValueError: naming the argument.
    """
    for name, value in (("alpha", alpha), ("eta", eta)):
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be 0 or more and finite, but is {value!r}")
    if not 0 < collision <= 1:
        raise ValueError(f"collision must lie in (0, 1], but is {collision!r}")


def _check_vocabulary(vocabulary: int) -> None:
    if vocabulary < 2:
        raise ValueError(f"vocabulary must be at least 2 tokens, but is {vocabulary!r}")


# The lame prompt ----------------------------------------------------------------------------------


def strip_examples(prompt: str, language: str = "python") -> str:
    r"""The prompt without the worked examples in its docstrings or comments.

    Examples are doctests with what they print, blocks under a heading such as "For example:", and
    single lines such as `f(2) => 4` or `f(2) == 4`. Whatever follows the docstring is kept, so that
    both prompts end in the same white space.

    Args:
        prompt: a function to complete: signature and description.
        language: "python", whose docstrings are searched, or a language whose line comments are:
            bash, cpp, csharp, d, go, haskell, java, javascript, lua, perl, php, r, racket, ruby,
            rust, scala, swift or typescript.

    Returns:
        The lame prompt; the prompt itself where no example is found.

    Raises:
        ValueError: another language.

    Examples:
        >>> strip_examples("def f(x):\n    '''Twice x.\n\n    >>> f(2)\n    4\n    '''\n")
        "def f(x):\n    '''Twice x.\n    '''\n"

    Source: Wang et al. 2024 (arXiv 2409.05923), whose prompts were stripped by hand.
    """
    if language == "python":
        return _DOCSTRING.sub(lambda found: found[1] + _strip_docstring(found[2]), prompt)
    if language not in _COMMENT:
        known = ", ".join(sorted({"python", *_COMMENT}))
        raise ValueError(f"language must be one of {known}, but is {language!r}")
    comment = re.compile(rf"\s*{re.escape(_COMMENT[language])} ?")
    lines = prompt.splitlines(keepends=True)
    found = [i for i, line in enumerate(lines) if comment.match(line)]
    kept = _without_examples([comment.sub("", lines[i], count=1) for i in found])
    dropped = {i for i, keep in zip(found, kept, strict=True) if not keep}
    return "".join(line for i, line in enumerate(lines) if i not in dropped)


def _strip_docstring(text: str) -> str:
    lines = text.split("\n")
    # The last line holds what stands before the closing quotes: their indentation, mostly.
    *body, last = lines if not lines[-1].strip() else (*lines, "")
    kept = _without_examples(body)
    if all(kept):
        return text
    return "\n".join([*(line for line, keep in zip(body, kept, strict=True) if keep), last])


def _without_examples(lines: Sequence[str]) -> list[bool]:
    """Which lines to keep: all but the examples and the blank lines that set them apart."""
    kept = [not example for example in _examples(lines)]
    if all(kept):
        return kept
    separates = False
    for i in reversed(range(len(lines))):
        if kept[i]:
            # Of the blank lines around an example one is left, before the text that follows.
            blank = not lines[i].strip()
            kept[i] = separates or not blank
            separates = not blank
    return kept


def _examples(lines: Sequence[str]) -> list[bool]:
    """Which lines belong to a worked example."""
    marked = []
    block: int | None = None  # Indentation of the heading whose examples are being read.
    doctest = new_paragraph = False
    for line in lines:
        if not line.strip():
            marked.append(block is not None)
            doctest, new_paragraph = False, True
            continue
        alike = bool(_CALL.match(line) or _ARROW.search(line))
        indent = len(line) - len(line.lstrip())
        if block is not None and new_paragraph and indent <= block and not alike:
            block = None
        if _HEADING.match(line):
            block = indent
        doctest = doctest or bool(_DOCTEST.match(line))
        marked.append(block is not None or doctest or alike)
        new_paragraph = False
    return marked
