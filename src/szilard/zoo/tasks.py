"""Text with a known entropy rate, and arithmetic whose answers can be checked exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def _choose(choices: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return choices[rng.integers(len(choices), size=shape)]


def _strings(characters: np.ndarray) -> list[str]:
    return ["".join(row) for row in characters]


@dataclass(frozen=True)
class FreeOrderSum:
    """Adding numbers in any order: one answer, and as many correct ways to it as there are orders.

    A prompt `d1 d2 d3 d4 =` holds the operands, digits below the modulus. A completion adds them
    one a step, in whatever order; a step is three characters: which operand (`a` is the first), its
    digit, and the sum so far modulo the modulus. There is no space, and four operands take twelve
    characters. Every one of the `operands!` orders earns the same reward, so the entropy over
    orders can be kept at no loss of accuracy.

    Args:
        modulus: of the sums, 2 to 10; digits are below it.
        operands: how many numbers are added, 1 to 26.

    Raises:
        ValueError: modulus or operands out of range.

    >>> task = FreeOrderSum()
    >>> task.reward("3142=", "b11d23a31c40"), task.order("b11d23a31c40")
    (1.0, (1, 3, 0, 2))
    >>> task.reward("3142=", "b11b12a30c44"), task.order("b11b12a30c44")
    (0.0, None)
    """

    modulus: int = 5
    operands: int = 4

    def __post_init__(self) -> None:
        if not 2 <= self.modulus <= 10:
            raise ValueError(f"modulus must lie between 2 and 10; it was {self.modulus}")
        if not 1 <= self.operands <= 26:
            raise ValueError(f"operands must lie between 1 and 26; it was {self.operands}")

    @property
    def digits(self) -> str:
        """The digits that operands and sums are made of."""
        return "0123456789"[: self.modulus]

    @property
    def indices(self) -> str:
        """The letters that name the operands."""
        return "abcdefghijklmnopqrstuvwxyz"[: self.operands]

    @property
    def alphabet(self) -> str:
        """Every character of prompts and completions."""
        return self.digits + self.indices + "="

    @property
    def completion_length(self) -> int:
        """Characters in a full completion; the end-of-sequence token comes on top."""
        return 3 * self.operands

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """Returns the character tokenizer of this alphabet; it pads on the left and adds `<bos>`."""
        from szilard.zoo.language import character_tokenizer

        return character_tokenizer(self.alphabet)

    def prompts(self, n: int, rng: np.random.Generator) -> list[str]:
        """Draws `n` prompts, operands uniform and independent."""
        if n < 0:
            raise ValueError(f"n must not be negative; it was {n}")
        drawn = _choose(np.array(list(self.digits)), (n, self.operands), rng)
        return [row + "=" for row in _strings(drawn)]

    def values(self, prompt: str) -> tuple[int, ...]:
        """Returns the operands of a prompt.

        Raises:
            ValueError: the text is not a prompt of this task.
        """
        body = prompt[:-1]
        if prompt[-1:] != "=" or len(body) != self.operands or set(body) - set(self.digits):
            raise ValueError(
                f"prompt must be {self.operands} digits of {self.digits!r} followed by '='; "
                f"it was {prompt!r}"
            )
        return tuple(map(int, body))

    def traces(
        self, prompts: Sequence[str], rng: np.random.Generator, corrupt: float = 0.0
    ) -> list[str]:
        """Writes one completion a prompt, in an order drawn uniformly.

        Args:
            prompts: texts from `prompts`.
            rng: draws the orders and the corruptions.
            corrupt: probability that a running sum is replaced by a digit drawn uniformly from all
                (the right one included). The next steps go on from what is written, so that a
                completion's last sum is right with probability
                1/m + (1 - 1/m)(1 - corrupt)^operands.

        Raises:
            ValueError: `corrupt` outside [0, 1], or a text that is no prompt of this task.
        """
        if not 0 <= corrupt <= 1:
            raise ValueError(f"corrupt must lie in [0, 1]; it was {corrupt}")
        values = np.array([self.values(prompt) for prompt in prompts]).reshape(-1, self.operands)
        order = rng.permuted(np.tile(np.arange(self.operands), (len(values), 1)), axis=1)
        terms = np.take_along_axis(values, order, axis=1)
        wrong = rng.random(terms.shape) < corrupt
        noise = rng.integers(self.modulus, size=terms.shape)
        total = np.zeros(len(values), dtype=np.int64)
        digits, letters = np.array(list(self.digits)), np.array(list(self.indices))
        columns = []
        for step in range(self.operands):
            total = (total + terms[:, step]) % self.modulus
            total = np.where(wrong[:, step], noise[:, step], total)
            columns += [letters[order[:, step]], digits[terms[:, step]], digits[total]]
        return _strings(np.stack(columns, axis=1))

    def trace(self, prompt: str, rng: np.random.Generator, corrupt: float = 0.0) -> str:
        """Writes one completion; see `traces`."""
        return self.traces([prompt], rng, corrupt)[0]

    def order(self, completion: str) -> tuple[int, ...] | None:
        """Returns the operands in the order of the steps, or None if it is no permutation.

        Whatever follows `<eos>` is ignored. A completion of the wrong length has no order.
        """
        text = completion.split("<eos>")[0]
        if len(text) != self.completion_length:
            return None
        steps = tuple(self.indices.find(letter) for letter in text[::3])
        return steps if sorted(steps) == list(range(self.operands)) else None

    def reward(self, prompt: str, completion: str) -> float:
        """Returns 1 if every operand occurs once and the last sum is right, else 0.

        Raises:
            ValueError: `prompt` is no prompt of this task.
        """
        answer = str(sum(self.values(prompt)) % self.modulus)
        last = completion.split("<eos>")[0][-1:]
        return float(self.order(completion) is not None and last == answer)
