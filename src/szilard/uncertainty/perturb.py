"""Variants of a question: paraphrases by a language model, and GAAP's genetic search.

Source: Song, Ji, Shi, Lai, Al Kontar, Inv-Entropy: A Fully Probabilistic Framework for Uncertainty
Quantification in Language Models (2025; arXiv 2506.09684), perturbations and appendix C.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from szilard.uncertainty.embedding import EMBEDDED, Embedder, embedder

Substitutes = Callable[[str], list[str]]
"""Takes a word, gives words that may stand in its place."""

_PROMPT = (
    "Write {n} paraphrases of the following question, one a line, each with the same meaning and "
    "nothing else.\n\n{question}"
)
_NUMBERING = re.compile(r"^\s*(?:[-*•]|\(?\d+[.):])\s*")
_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
_ATTEMPTS = 3
# Endings of inflected words and what stands there instead, by WordNet's files.
_PARTS: dict[str, tuple[tuple[str, str], ...]] = {
    "noun": (("ses", "s"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"), ("ies", "y"), ("s", "")),
    "verb": (("ies", "y"), ("es", "e"), ("es", ""), ("s", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "adj": (("er", "e"), ("er", ""), ("est", "e"), ("est", "")),
    "adv": (),
}  # fmt: skip
_LETTERS = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}
_NEAR = ("@", "@i", "~", "~i")  # hypernyms and hyponyms, of classes and of instances


class Paraphrase:
    r"""Paraphrases by a language model, cleaned of numbering, preambles and repetitions.

    Args:
        generate: the model: takes prompts, how many answers to each, and a temperature.
        temperature: of the paraphrases.
        prompt: has {n} and {question}.

    Examples:
        >>> said = "Sure, here they are:\n1. Who wrote Emma?\n2) Emma is by whom?"
        >>> Paraphrase(lambda prompts, n, temperature: [[said]])("Emma's author?", 2, np.random.default_rng(0))
        ['Who wrote Emma?', 'Emma is by whom?']

    Source: Song et al. 2025 (arXiv 2506.09684), paraphrasing perturbation.
    """

    def __init__(
        self,
        generate: Callable[[list[str], int, float], list[list[str]]],
        temperature: float = 0.7,
        prompt: str = _PROMPT,
    ) -> None:
        if "{question}" not in prompt:
            raise ValueError("prompt must have {question} in it")
        self.generate, self.temperature, self.prompt = generate, temperature, prompt

    def __call__(self, question: str, n: int, rng: np.random.Generator) -> list[str]:
        """Up to n distinct paraphrases; the model is asked again where it gave too few."""
        found: dict[str, None] = {}
        for _ in range(_ATTEMPTS):
            asked = self.prompt.format(n=n, question=question)
            for line in self.generate([asked], 1, self.temperature)[0][0].splitlines():
                cleaned = _NUMBERING.sub("", line).strip().strip('"')
                # A line that ends in a colon announces the others.
                if cleaned and not cleaned.endswith(":") and cleaned != question:
                    found[cleaned] = None
            if len(found) >= n:
                break
        return list(found)[:n]


class WordNet:
    """Synonyms, hypernyms and hyponyms of a word, from WordNet's dictionary files.

    Args:
        folder: where `data.noun`, `index.noun` and their like lie (WordNet 3).

    Raises:
        ValueError: no dictionary there.

    Source: Miller, WordNet: A Lexical Database for English, Communications of the ACM 38, 39 (1995);
    the files' format is its manual page wndb(5WN), the rules for endings morphy(7WN).
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        missing = [name for name in _PARTS if not (self._folder / f"data.{name}").is_file()]
        if missing:
            raise ValueError(
                f"folder must hold WordNet's data.{missing[0]}, but {str(folder)!r} does not"
            )
        self._index: dict[str, dict[str, list[int]]] = {}
        self._data: dict[str, bytes] = {}

    def __call__(self, word: str) -> list[str]:
        """Words that may stand in its place, in the order of its senses; itself not among them."""
        found: dict[str, None] = {}
        for part, place in self._senses(word.lower().replace(" ", "_")):
            names, related = self._sense(part, place)
            for name in names:
                found[name] = None
            for other, at in related:
                for name in self._sense(other, at)[0]:
                    found[name] = None
        return [name for name in found if name.lower() != word.lower()]

    def _senses(self, word: str) -> list[tuple[str, int]]:
        found = []
        for part, rules in _PARTS.items():
            index = self._indexed(part)
            forms = [word] + [
                word.removesuffix(ending) + instead
                for ending, instead in rules
                if word.endswith(ending)
            ]
            base = next((form for form in forms if form in index), None)
            found += [(part, place) for place in index.get(base or "", [])]
        return found

    def _indexed(self, part: str) -> dict[str, list[int]]:
        if part not in self._index:
            self._data[part] = (self._folder / f"data.{part}").read_bytes()
            index = {}
            for line in (self._folder / f"index.{part}").read_text("utf-8").splitlines():
                if not line.startswith(" "):  # the licence is indented
                    fields = line.split()
                    index[fields[0]] = [int(place) for place in fields[-int(fields[2]) :]]
            self._index[part] = index
        return self._index[part]

    def _sense(self, part: str, place: int) -> tuple[list[str], list[tuple[str, int]]]:
        """Words of a sense, and the senses above and below it."""
        self._indexed(part)
        data = self._data[part]
        fields = data[place : data.index(b"\n", place)].decode("utf-8").split(" | ")[0].split()
        if int(fields[0]) != place:
            raise ValueError(f"folder holds an index.{part} that is not of its data.{part}")
        count = int(fields[3], 16)
        names = [
            re.sub(r"\(\w+\)$", "", word).replace("_", " ")
            for word in fields[4 : 4 + 2 * count : 2]
        ]
        at = 4 + 2 * count
        pointers = [fields[at + 1 + 4 * i : at + 5 + 4 * i] for i in range(int(fields[at]))]
        related = [
            (_LETTERS[letter], int(target))
            for symbol, target, letter, _ in pointers
            if symbol in _NEAR
        ]
        return names, related


@dataclass
class GAAP:
    """Genetic search for variants that drift from the question by substituting its key words.

    1. Key words are the share `rho` of the words whose embeddings are nearest the question's. SUB(t) are
       a key word's substitutes, and its deletion.
    2. The first population holds every substitution of a single key word.
    3. A generation: parents drawn by their similarity to the question, one-point crossover of random
       pairs, one random key word of each offspring substituted; parents, offspring and mutants go on.
    4. It ends after `generations`, or where the nearest is less similar than `delta`.
    5. Variants are drawn uniformly from every `every`-th population, the first one on: from those still
       close to those far away. None is the question, none comes twice.

    Args:
        substitutes: gives the substitutes of a word; `WordNet()` is the paper's.
        embed: as `InvEntropy`'s.
        rho: share of words that are key words, in (0, 1].
        delta: similarity at which the search ends.
        generations: at most.
        every: populations between those that variants are drawn from.
        population: largest; without it a population would grow without bound.

    Attributes:
        history_: similarity to the question of each population's members, after a call.

    Raises:
        ValueError: an argument out of its range.

    Source: Song et al. 2025 (arXiv 2506.09684), appendix C; rho, generations, every and population are
    not in the paper.
    """

    substitutes: Substitutes
    embed: str | Embedder = EMBEDDED
    rho: float = 0.4
    delta: float = 0.7
    generations: int = 10
    every: int = 1
    population: int = 50
    history_: list[np.ndarray] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.rho <= 1:
            raise ValueError(f"rho must lie in (0, 1], but is {self.rho}")
        for name in ("generations", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}")
        if self.population < 2:
            raise ValueError(f"population must be at least 2, but is {self.population}")

    def __call__(self, question: str, n: int, rng: np.random.Generator) -> list[str]:
        """Distinct variants, n or fewer where the substitutes don't allow for as many.

        Raises:
            ValueError: a question in which no key word has a substitute.
        """
        words = _WORD.findall(question)
        places = self._key_words(question, words)
        choices = {at: [*self.substitutes(words[at]), ""] for at in places}
        choices = {at: options for at, options in choices.items() if len(options) > 1}
        if not choices:
            raise ValueError(
                f"question must have a key word with a substitute, but {question!r} has none"
            )
        # An individual holds its words beside the places they came from, which mutations look up.
        original = tuple((word, at) for at, word in enumerate(words))
        first = [
            (*original[:at], (option, at), *original[at + 1 :])
            for at, options in choices.items()
            for option in options
        ]
        populations = [self._capped(first, rng)]
        self.history_ = [self._similarity(question, populations[0])]
        while len(populations) <= self.generations and self.history_[-1].max() >= self.delta:
            populations.append(self._next(populations[-1], self.history_[-1], choices, rng))
            self.history_.append(self._similarity(question, populations[-1]))
        return self._drawn(question, populations[:: self.every], n, rng)

    def _key_words(self, question: str, words: list[str]) -> list[int]:
        candidates = [at for at, word in enumerate(words) if word[0].isalnum()]
        if not candidates:
            raise ValueError(f"question must have words, but {question!r} has none")
        near = self._cosines(question, [words[at] for at in candidates])
        count = max(1, int(self.rho * len(words)))
        return [candidates[i] for i in np.argsort(-near, kind="stable")[:count]]

    def _cosines(self, question: str, texts: Sequence[str]) -> np.ndarray:
        found = np.asarray(embedder(self.embed)([question, *texts]), dtype=np.float64)
        unit = found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-300)
        return np.asarray(unit[1:] @ unit[0])

    def _similarity(self, question: str, population: Sequence[Any]) -> np.ndarray:
        return (1 + self._cosines(question, [_text(one) for one in population])) / 2

    def _next(
        self,
        population: list[Any],
        similarity: np.ndarray,
        choices: dict[int, list[str]],
        rng: np.random.Generator,
    ) -> list[Any]:
        size = len(population)
        drawn = rng.choice(size, size, p=similarity / similarity.sum())
        parents = [population[i] for i in drawn]
        offspring = []
        order = rng.permutation(size)
        for a, b in zip(order[::2], order[1::2], strict=False):
            one, two = parents[a], parents[b]
            shorter = min(len(one), len(two))
            if shorter < 2:
                continue
            cut = int(rng.integers(1, shorter))
            offspring += [one[:cut] + two[cut:], two[:cut] + one[cut:]]
        mutants = []
        for one in offspring:
            able = [i for i, (_, at) in enumerate(one) if at in choices]
            if able:
                i = able[rng.integers(len(able))]
                options = choices[one[i][1]]
                mutants.append(
                    (*one[:i], (options[rng.integers(len(options))], one[i][1]), *one[i + 1 :])
                )
        return self._capped([*parents, *offspring, *mutants], rng)

    def _capped(self, population: list[Any], rng: np.random.Generator) -> list[Any]:
        distinct = list({_text(one): one for one in population if _text(one)}.values())
        if len(distinct) <= self.population:
            return distinct
        return [distinct[i] for i in rng.choice(len(distinct), self.population, replace=False)]

    def _drawn(
        self, question: str, populations: Sequence[list[Any]], n: int, rng: np.random.Generator
    ) -> list[str]:
        asked = _text([(word, 0) for word in _WORD.findall(question)])
        pools = [
            [text for text in map(_text, population) if text not in (asked, question)]
            for population in populations
        ]
        found: dict[str, None] = {}
        at = 0
        while len(found) < n and any(pools):
            pool = pools[at % len(pools)]
            at += 1
            if pool:
                found[pool.pop(int(rng.integers(len(pool))))] = None
        return list(found)


def _text(individual: Sequence[tuple[str, int]]) -> str:
    text = " ".join(word for word, _ in individual if word)
    return re.sub(r"\s+([.,;:!?%)\]’'])", r"\1", text)
