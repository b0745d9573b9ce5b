"""Text with a known entropy rate, and arithmetic whose answers can be checked exactly."""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from scipy.special import entr

from szilard._extras import require

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

# The largest table that the exact bounds of a hidden Markov source may fill: 32 MB.
_TABLE = 2**22


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

    Examples:
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


def _check_alphabet(alphabet: str) -> None:
    if len(set(alphabet)) != len(alphabet) or len(alphabet) < 2:
        raise ValueError(
            f"alphabet must hold at least two characters, each once; it was {alphabet!r}"
        )


def _check_sizes(n: int, length: int) -> None:
    if n < 0 or length < 1:
        raise ValueError(
            f"n must not be negative and length at least 1; they were {n} and {length}"
        )


def _encode(text: str, alphabet: str) -> Int[np.ndarray, " length"]:
    codes = np.array([alphabet.find(character) for character in text], dtype=np.int64)
    if np.any(codes < 0):
        raise ValueError(f"text must be made of {alphabet!r}; it was {text!r}")
    return codes


def _decode(codes: Int[np.ndarray, "n length"], alphabet: str) -> list[str]:
    return _strings(np.array(list(alphabet))[codes])


def _draw(
    probabilities: Float[np.ndarray, "n k"], rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """Draws one category a row."""
    bounds = probabilities.cumsum(axis=1)
    drawn = (bounds <= rng.random((len(bounds), 1)) * bounds[:, -1:]).sum(axis=1)
    return np.minimum(drawn, probabilities.shape[1] - 1)


def _stationary(
    step: Callable[[np.ndarray], np.ndarray],
    size: int,
    concentration: float,
    tolerance: float = 1e-14,
    most: int = 100_000,
) -> Float[np.ndarray, " states"]:
    """Finds the fixed point of a step of a Markov chain on distributions by power iteration."""
    distribution = np.full(size, 1 / size)
    for _ in range(most):
        # The average of staying and stepping has the same fixed point and no period.
        following = (distribution + step(distribution)) / 2
        following /= following.sum()
        if np.abs(following - distribution).sum() < tolerance:
            return following
        distribution = following
    raise ValueError(
        f"concentration must be large enough for the chain to mix; it was {concentration}"
    )


@dataclass(frozen=True)
class MarkovSource:
    """Stationary text from a Markov chain whose entropy rate is known exactly.

    The distribution of the next character depends on the `order` characters before it; for each
    such context it is drawn from a symmetric Dirichlet distribution.

    Args:
        order: length of the context; 0 for independent characters.
        alphabet: the characters.
        seed: of the transition probabilities.
        concentration: parameter of the Dirichlet distribution: towards 0 each context has one
            likely successor, towards infinity all are equally likely.

    Raises:
        ValueError: negative order, an alphabet with under two or repeated characters, a
            concentration that is not positive, or a table of over 2^22 probabilities.

    Examples:
        >>> coin = MarkovSource(order=0, alphabet="ht", seed=0, concentration=1e9)
        >>> round(coin.entropy_rate, 6)
        0.693147

    Source: T. Cover, J. Thomas, Elements of Information Theory (2006), eq. 4.27.
    """

    order: int = 2
    alphabet: str = "abcd"
    seed: int = 0
    concentration: float = 0.5

    def __post_init__(self) -> None:
        _check_alphabet(self.alphabet)
        if self.order < 0 or len(self.alphabet) ** (self.order + 1) > _TABLE:
            raise ValueError(
                f"order must not be negative, and len(alphabet)^(order + 1) at most {_TABLE}; "
                f"order was {self.order} for {len(self.alphabet)} characters"
            )
        if not self.concentration > 0:
            raise ValueError(f"concentration must be positive; it was {self.concentration}")

    @cached_property
    def transitions(self) -> Float[np.ndarray, "contexts k"]:
        """Probability of each next character; a context is a number whose last digit is newest."""
        k = len(self.alphabet)
        rng = np.random.default_rng(self.seed)
        return rng.dirichlet(np.full(k, self.concentration), size=k**self.order)

    @cached_property
    def stationary(self) -> Float[np.ndarray, " contexts"]:
        """Probability of each context in a long text."""
        k = len(self.alphabet)
        if self.order == 0:
            return np.ones(1)

        def step(contexts: np.ndarray) -> np.ndarray:
            # The new character comes in on the right, the oldest drops out on the left.
            joint = contexts[:, None] * self.transitions
            return joint.reshape(k, -1).sum(axis=0)

        return _stationary(step, k**self.order, self.concentration)

    @property
    def context_entropies(self) -> Float[np.ndarray, " contexts"]:
        """Entropy of the next character after each context, in nats."""
        return entr(self.transitions).sum(axis=1)

    @property
    def entropy_rate(self) -> float:
        """Entropy rate in nats per character."""
        return float(self.stationary @ self.context_entropies)

    def sample(self, n: int, length: int, rng: np.random.Generator) -> list[str]:
        """Draws `n` independent texts of `length` characters from the stationary process."""
        _check_sizes(n, length)
        k = len(self.alphabet)
        states = k**self.order
        context = rng.choice(states, size=n, p=self.stationary)
        # The first characters are those of the first context: the text is stationary throughout.
        columns = [context // k**i % k for i in reversed(range(self.order))]
        while len(columns) < length:
            drawn = _draw(self.transitions[context], rng)
            context = (context * k + drawn) % states
            columns.append(drawn)
        return _decode(np.stack(columns[:length], axis=1), self.alphabet)

    def next_probabilities(self, text: str) -> Float[np.ndarray, "positions k"]:
        """Returns the exact distribution of the next character after each prefix of a text.

        Args:
            text: at least `order` characters.

        Returns:
            `len(text) - order + 1` rows: after the first `order` characters, after one more, and
            so on; the last row is what follows the whole text.

        Raises:
            ValueError: the text is shorter than `order` or has a foreign character.
        """
        codes = _encode(text, self.alphabet)
        if len(codes) < self.order:
            raise ValueError(
                f"text must have at least {self.order} characters; it had {len(codes)}"
            )
        contexts = np.zeros(len(codes) - self.order + 1, dtype=np.int64)
        for i in range(self.order):
            contexts = contexts * len(self.alphabet) + codes[i : i + len(contexts)]
        return self.transitions[contexts]

    def surprisals(self, text: str) -> Float[np.ndarray, " positions"]:
        """Returns -log p of each character after the first `order`, in nats."""
        probabilities = self.next_probabilities(text)[:-1]
        following = _encode(text, self.alphabet)[self.order :]
        with np.errstate(divide="ignore"):
            return -np.log(probabilities[np.arange(len(following)), following])


@dataclass(frozen=True)
class HiddenMarkovSource:
    """Stationary text from a hidden Markov chain, with exact bounds on its entropy rate.

    A hidden state moves by a Markov chain and emits a character at each step; the text alone has
    infinite memory. Both tables are drawn from symmetric Dirichlet distributions.

    Args:
        states: number of hidden states.
        alphabet: the characters.
        seed: of the tables.
        concentration: parameter of the Dirichlet distributions.

    Raises:
        ValueError: no state, an alphabet with under two or repeated characters, or a concentration
            that is not positive.

    Examples:
        >>> source = HiddenMarkovSource(states=2, alphabet="ab", seed=1)
        >>> lower, upper = source.entropy_rate_bounds(12)
        >>> lower <= upper, upper - lower < 1e-2
        (True, True)

    Source: T. Cover, J. Thomas, Elements of Information Theory (2006), theorem 4.5.1.
    """

    states: int = 3
    alphabet: str = "abcd"
    seed: int = 0
    concentration: float = 0.5

    def __post_init__(self) -> None:
        _check_alphabet(self.alphabet)
        if self.states < 1:
            raise ValueError(f"states must be at least 1; it was {self.states}")
        if not self.concentration > 0:
            raise ValueError(f"concentration must be positive; it was {self.concentration}")

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        return (
            rng.dirichlet(np.full(self.states, self.concentration), size=self.states),
            rng.dirichlet(np.full(len(self.alphabet), self.concentration), size=self.states),
        )

    @property
    def transition(self) -> Float[np.ndarray, "states states"]:
        """Probability of the next state (column) given the state (row)."""
        return self._tables[0]

    @property
    def emission(self) -> Float[np.ndarray, "states k"]:
        """Probability of a character (column) given the state (row)."""
        return self._tables[1]

    @cached_property
    def stationary(self) -> Float[np.ndarray, " states"]:
        """Probability of each state in a long run."""
        return _stationary(lambda p: p @ self.transition, self.states, self.concentration)

    def entropy_rate_bounds(self, n: int | None = None) -> tuple[float, float]:
        """Returns exact lower and upper bounds on the entropy rate, in nats per character.

        H(Y_n | Y_1..Y_(n-1), X_1) <= rate <= H(Y_n | Y_1..Y_(n-1)); both sides are sums over all
        texts of n characters, and close in on the rate as n grows.

        Args:
            n: length of the texts; by default as long as a table of 2^22 numbers allows.

        Raises:
            ValueError: n below 1, or too long for the table.
        """
        k = len(self.alphabet)
        longest = int(np.log(_TABLE / self.states**2) / np.log(k) + 1e-9)
        n = longest if n is None else n
        if not 1 <= n <= longest:
            raise ValueError(f"n must lie between 1 and {longest} here; it was {n}")
        # joint[x1, y1..yt, xt]: probability of the first state, the text, and the state now.
        joint = np.diag(self.stationary)[:, None, :]
        given_text = given_state = 0.0
        for t in range(n):
            if t:
                joint = joint @ self.transition
            joint = (joint[:, :, None, :] * self.emission.T).reshape(self.states, -1, self.states)
            with_state = joint.sum(axis=2)
            before = given_text, given_state
            given_text = entr(with_state.sum(axis=0)).sum()
            given_state = entr(with_state).sum() - entr(self.stationary).sum()
        return float(given_state - before[1]), float(given_text - before[0])

    def sample(self, n: int, length: int, rng: np.random.Generator) -> list[str]:
        """Draws `n` independent texts of `length` characters from the stationary process."""
        _check_sizes(n, length)
        state = rng.choice(self.states, size=n, p=self.stationary)
        columns = []
        for _ in range(length):
            columns.append(_draw(self.emission[state], rng))
            state = _draw(self.transition[state], rng)
        return _decode(np.stack(columns, axis=1), self.alphabet)

    def next_probabilities(self, text: str) -> Float[np.ndarray, "positions k"]:
        """Returns the exact distribution of the next character after each prefix of a text.

        Returns:
            `len(text) + 1` rows; the first is before any character, the last after all.

        Raises:
            ValueError: the text has a foreign character, or cannot come from this source.
        """
        belief = self.stationary
        rows = [belief @ self.emission]
        for code in _encode(text, self.alphabet):
            belief = belief * self.emission[:, code]
            if not belief.sum() > 0:
                raise ValueError(f"text must be possible under the source; it was {text!r}")
            belief = belief / belief.sum() @ self.transition
            rows.append(belief @ self.emission)
        return np.stack(rows)

    def surprisals(self, text: str) -> Float[np.ndarray, " positions"]:
        """Returns -log p of each character given all before it, in nats."""
        codes = _encode(text, self.alphabet)
        return -np.log(self.next_probabilities(text)[np.arange(len(codes)), codes])


@dataclass(frozen=True)
class Arithmetic:
    """Arithmetic exercises of graded difficulty with an exact checker.

    A prompt such as `(12+7)*3=` is worked from left to right; parentheses make the usual
    precedence say the same. The completion is the answer, `57`, or with `chain` all the steps,
    `12+7=19;19*3=57`. With a modulus the last step takes the remainder: `((12+7)*3)%5=`.

    Args:
        digits: the numbers of digits an operand may have; one exercise uses one of them.
        steps: the numbers of operations an exercise may have.
        operations: which of `+`, `-` and `*`.
        modulus: of the final remainder, at least 2, or None.
        chain: whether completions show the steps.

    Raises:
        ValueError: empty or non-positive choices, another operation, or a modulus below 2.

    Examples:
        >>> Arithmetic.solution("(12+7)*3=", chain=True)
        '12+7=19;19*3=57'
        >>> Arithmetic.check("(12+7)*3=", "57"), Arithmetic.check("(12+7)*3=", "12+7=19;19*3=56")
        (True, False)
    """

    digits: tuple[int, ...] = (1, 2)
    steps: tuple[int, ...] = (1, 2, 3)
    operations: str = "+-"
    modulus: int | None = None
    chain: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("digits", self.digits), ("steps", self.steps)):
            if not choices or min(choices) < 1:
                raise ValueError(f"{name} must hold integers from 1 on; it was {choices}")
        if not self.operations or set(self.operations) - set("+-*"):
            raise ValueError(f"operations must be some of '+-*'; it was {self.operations!r}")
        if self.modulus is not None and self.modulus < 2:
            raise ValueError(f"modulus must be at least 2 or None; it was {self.modulus}")

    @property
    def alphabet(self) -> str:
        """Every character of prompts and completions, whatever the settings."""
        return "0123456789+-*%()=;"

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """Returns the character tokenizer of this alphabet; it pads on the left and adds `<bos>`."""
        from szilard.zoo.language import character_tokenizer

        return character_tokenizer(self.alphabet)

    def dataset(self, n: int, rng: np.random.Generator) -> "Dataset":
        """Draws `n` exercises as a `datasets.Dataset`.

        Returns:
            Columns `prompt`, `completion`, `answer` (as text) and `difficulty` (digits times
            steps); the numbers of digits and steps are drawn uniformly.
        """
        datasets = require("datasets", extra="language")
        if n < 0:
            raise ValueError(f"n must not be negative; it was {n}")
        drawn = [self._exercise(rng) for _ in range(n)]
        columns = {
            "prompt": [prompt for prompt, _ in drawn],
            "completion": [self.solution(prompt, self.chain) for prompt, _ in drawn],
            "answer": [self.solution(prompt) for prompt, _ in drawn],
            "difficulty": [difficulty for _, difficulty in drawn],
        }
        return datasets.Dataset.from_dict(columns)

    def _exercise(self, rng: np.random.Generator) -> tuple[str, int]:
        digits, steps = (int(rng.choice(choices)) for choices in (self.digits, self.steps))
        low = 0 if digits == 1 else 10 ** (digits - 1)
        text = str(rng.integers(low, 10**digits))
        loose = False
        for _ in range(steps):
            operation = str(rng.choice(list(self.operations)))
            if operation == "*" and loose:
                text = f"({text})"
            loose = operation != "*"
            text += operation + str(rng.integers(low, 10**digits))
        if self.modulus is not None:
            text = f"({text})%{self.modulus}"
        return text + "=", digits * steps

    @staticmethod
    def solution(prompt: str, chain: bool = False) -> str:
        """Returns the right answer to a prompt, or all the steps to it.

        Raises:
            ValueError: the prompt is not an exercise.
        """
        try:
            if not prompt.endswith("="):
                raise ValueError("there is no '=' at its end")
            lines: list[str] = []
            answer = _work(ast.parse(prompt[:-1], mode="eval").body, lines)
        except (SyntaxError, ValueError, ZeroDivisionError, RecursionError) as error:
            raise ValueError(
                f"prompt must be an exercise such as '(12+7)*3='; it was {prompt!r}: {error}"
            ) from error
        return ";".join(lines) if chain else str(answer)

    @classmethod
    def check(cls, prompt: str, completion: str, steps: bool = False) -> bool:
        """Says whether a completion ends in the right answer.

        Args:
            prompt: the exercise.
            completion: an answer, or steps joined by `;`; what follows `<eos>` is ignored.
            steps: whether every step must be the right one too.

        Raises:
            ValueError: the prompt is not an exercise.
        """
        text = completion.split("<eos>")[0].strip()
        if steps:
            return text == cls.solution(prompt, chain=True)
        return text.split(";")[-1].split("=")[-1] == cls.solution(prompt)


_OPERATIONS = {
    "+": (ast.Add, lambda a, b: a + b),
    "-": (ast.Sub, lambda a, b: a - b),
    "*": (ast.Mult, lambda a, b: a * b),
    "%": (ast.Mod, lambda a, b: a % b),
}


def _work(node: ast.expr, lines: list[str]) -> int:
    """Evaluates an expression of integers and writes down each operation."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp):
        left, right = _work(node.left, lines), _work(node.right, lines)
        for sign, (kind, compute) in _OPERATIONS.items():
            if isinstance(node.op, kind):
                value = compute(left, right)
                lines.append(f"{left}{sign}{right}={value}")
                return value
    raise ValueError(f"{ast.unparse(node)} is not made of integers and + - * %")
