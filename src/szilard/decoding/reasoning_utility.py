"""Reasoning utility: how much each step of a chain of thought lowers a judge's entropy over the answer.

With X a problem, z_1..z_K the steps of a chain and Y = y_1..y_m an answer,

    H_k = 1/m sum_t H(p(. | X, z_1..z_k, lead-in, y_<t))        u_k = H_{k-1} - H_k

is the judge's entropy over the answer after k steps and the utility of step k; their sum H_0 - H_K
estimates the information I(Y; Z | X) of the chain. Entropy does not know whether the belief is right:
the cross entropy N_k = -1/m sum_t log p(y_t | ...) does, and is reported beside it.

Source: Guo, Measuring Reasoning Utility in LLMs via Conditional Entropy Reduction (2025; arXiv
2508.20395).
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from szilard.decoding.reading import CachedReader, check_context, check_model
from szilard.measures.tokens import token_statistics

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Splitter = Literal["auto", "paragraphs", "markers", "sentences", "lines"]

LEAD_IN = "\n\nThe final answer is \\boxed{"

# What lies between two steps.
_BETWEEN = {
    "paragraphs": re.compile(r"[ \t]*\n[ \t]*\n\s*"),
    "markers": re.compile(r"(?:(?<=[.!?:])\s+|\s*\n\s*)(?=\W{0,3}[Ss]tep\s+\d)"),
    "sentences": re.compile(r"(?<=[.!?])\s+"),
    "lines": re.compile(r"\s*\n\s*"),
}


# The definitions ----------------------------------------------------------------------------------


def answer_entropy(
    logits: Float[Tensor, "*states tokens vocab"], *, base: float | None = None
) -> Float[Tensor, "*states"]:
    """H_k: mean entropy of the answer's tokens along a given answer.

    A mean of entropies along one path, not the entropy of the answer as a whole: it may rise.

    Args:
        logits: those that predict each token of the answer, for every state of the chain.
        base: base of the logarithm, 2 for bits; nats by default.

    Raises:
        ValueError: logits that define no distribution.

    Examples:
        >>> p = torch.tensor([[[0.25, 0.25, 0.25, 0.25]], [[1.0, 0.0, 0.0, 0.0]]])
        >>> answer_entropy(p.log(), base=2)
        tensor([2., 0.])

    Source: arXiv 2508.20395, the conditional entropy of the answer span.
    """
    return token_statistics(logits, base=base).entropy.mean(-1)


def answer_nll(
    logits: Float[Tensor, "*states tokens vocab"],
    answer: Int[Tensor, "*states tokens"],
    *,
    base: float | None = None,
) -> Float[Tensor, "*states"]:
    """N_k: mean surprisal of the answer's tokens; what H_k would be if the judge were right.

    Args:
        logits: those that predict each token of the answer, for every state of the chain.
        answer: the answer's tokens.
        base: base of the logarithm, 2 for bits; nats by default.

    Raises:
        ValueError: logits that define no distribution, or a token outside the vocabulary.

    Examples:
        >>> p = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
        >>> answer_nll(p.log(), torch.tensor([0, 0]), base=2)
        tensor(1.5000)

    Source: the cross entropy beside arXiv 2508.20395's conditional entropy.
    """
    logprob = token_statistics(logits, answer, base=base).logprob
    assert logprob is not None
    return -logprob.mean(-1)


@dataclass(frozen=True)
class UtilityProfile:
    """A judge's uncertainty about the answer before and after each step, and the curve's shape.

    Positions along the chain are k / K, so that chains of any length compare.

    Attributes:
        token_entropy: H_{k,t}, a tensor for each k = 0..K.
        token_nll: -log p(y_t), likewise.
        steps: the K steps.
        answers: the answer each state was measured along: the reference in all of them, or what the
            judge itself would have answered there.

    Raises:
        ValueError: no steps, or columns that are not one longer.

    Examples:
        >>> curve = [torch.tensor([h]) for h in (2.0, 1.5, 1.5, 0.5)]
        >>> profile = UtilityProfile(curve, curve, ("a", "b", "c"))
        >>> profile.utility.tolist(), profile.total, profile.monotone
        ([0.5, 0.0, 1.0], 1.5, False)

    Source: arXiv 2508.20395; the shape statistics beyond slope and total are common ones.
    """

    token_entropy: Sequence[Float[Tensor, "_"]]
    token_nll: Sequence[Float[Tensor, "_"]]
    steps: Sequence[str]
    answers: Sequence[str] = ()

    def __post_init__(self) -> None:
        states = len(self.steps) + 1
        if states == 1:
            raise ValueError("steps must hold at least one step, but hold none")
        for name in ("token_entropy", "token_nll"):
            if len(getattr(self, name)) != states:
                raise ValueError(
                    f"{name} must have an entry before the first and after each of the "
                    f"{states - 1} steps, but has {len(getattr(self, name))}"
                )

    @property
    def entropy(self) -> Float[Tensor, "states"]:
        """H_k, k = 0..K."""
        return torch.stack([h.double().mean() for h in self.token_entropy])

    @property
    def entropy_sum(self) -> Float[Tensor, "states"]:
        """The sum over the answer's tokens instead of the mean."""
        return torch.stack([h.double().sum() for h in self.token_entropy])

    @property
    def nll(self) -> Float[Tensor, "states"]:
        """N_k, k = 0..K."""
        return torch.stack([n.double().mean() for n in self.token_nll])

    @property
    def utility(self) -> Float[Tensor, "steps"]:
        """u_k = H_{k-1} - H_k, k = 1..K; negative where a step confuses."""
        return self.entropy[:-1] - self.entropy[1:]

    @property
    def total(self) -> float:
        """U = H_0 - H_K."""
        return float(self.entropy[0] - self.entropy[-1])

    @property
    def nll_drop(self) -> float:
        """N_0 - N_K."""
        return float(self.nll[0] - self.nll[-1])

    @property
    def slope(self) -> float:
        """Least-squares slope of H_k on k / K."""
        x = self._positions - self._positions.mean()
        return float((x * self.entropy).sum() / (x * x).sum())

    @property
    def positive_share(self) -> float:
        """Share of steps with u_k > 0."""
        return float((self.utility > 0).double().mean())

    @property
    def monotone(self) -> bool:
        """Whether every step lowers the entropy."""
        return bool((self.utility > 0).all())

    @property
    def area(self) -> float:
        """Area under H_k over k / K, by trapezoids."""
        return float(torch.trapezoid(self.entropy, self._positions))

    @property
    def last_third(self) -> float:
        """Mean of H_k over k / K >= 2/3."""
        return float(
            self.entropy[3 * torch.arange(len(self.entropy)) >= 2 * len(self.steps)].mean()
        )

    def at(self, positions: Float[Tensor, "points"]) -> Float[Tensor, "points"]:
        """H at positions in [0, 1] along the chain, straight lines between steps."""
        exact = positions.double() * len(self.steps)
        low = exact.floor().long().clamp(0, len(self.steps) - 1)
        return torch.lerp(self.entropy[low], self.entropy[low + 1], exact - low)

    @property
    def _positions(self) -> Tensor:
        return torch.linspace(0, 1, len(self.steps) + 1, dtype=torch.float64)


# Steps --------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """A step of a chain, and where it stands in the chain's text."""

    text: str
    start: int
    end: int


def split_steps(chain: str, splitter: Splitter = "auto") -> list[Step]:
    """Splits a chain of thought into steps, none of them empty.

    Args:
        chain: the text.
        splitter: "paragraphs" (parted by blank lines), "markers" ("Step n" where a line or sentence
            begins), "sentences" or "lines"; "auto" takes the first of paragraphs, markers and
            sentences that finds more than one step.

    Raises:
        ValueError: a chain without text, or no such splitter.

    Examples:
        >>> [step.text for step in split_steps("Two and two. That is 4.")]
        ['Two and two.', 'That is 4.']
        >>> split_steps("Step 1: add. Step 2: halve.")[1]
        Step(text='Step 2: halve.', start=13, end=27)
    """
    check_splitter(splitter)
    if not chain.strip():
        raise ValueError("chain must hold at least one step, but holds no text")
    for name in ("paragraphs", "markers", "sentences") if splitter == "auto" else (splitter,):
        steps = _parted(chain, _BETWEEN[name])
        if len(steps) > 1:
            break
    return steps


def check_splitter(splitter: str) -> None:
    """Refuses a way of splitting there is not."""
    if splitter != "auto" and splitter not in _BETWEEN:
        raise ValueError(f"splitter must be one of auto, {', '.join(_BETWEEN)}, not {splitter!r}")


def _parted(chain: str, between: re.Pattern[str]) -> list[Step]:
    gaps = [match.span() for match in between.finditer(chain)]
    edges = [0, *(edge for gap in gaps for edge in gap), len(chain)]
    steps = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        text = chain[start:end].strip()
        if text:
            start = chain.index(text, start)
            steps.append(Step(text, start, start + len(text)))
    return steps


# Stopping -----------------------------------------------------------------------------------------


def should_stop(
    entropy: Sequence[float],
    h_stop: float | None = 0.05,
    eps: float = 0.01,
    patience: int | None = 3,
) -> bool:
    """Whether a chain has said enough: it is certain, or its last steps were of no use.

    Args:
        entropy: H_0..H_k so far, nats.
        h_stop: stops below this entropy, in nats; None never does.
        eps: a step of no more utility, in nats, is of no use.
        patience: stops after this many such steps in a row; None never does.

    Raises:
        ValueError: a setting out of its range.

    Examples:
        >>> should_stop([2.0, 0.7, 0.01]), should_stop([2.0, 0.7, 0.7, 0.7])
        (True, False)
        >>> should_stop([2.0, 0.7, 0.7, 0.7, 0.7])
        True
    """
    check_stopping(h_stop, eps, patience)
    if len(entropy) < 2:
        return False
    if h_stop is not None and entropy[-1] < h_stop:
        return True
    if patience is None or len(entropy) <= patience:
        return False
    late = entropy[-patience - 1 :]
    return all(a - b <= eps for a, b in pairwise(late))


def stopping_step(
    entropy: Sequence[float],
    h_stop: float | None = 0.05,
    eps: float = 0.01,
    patience: int | None = 3,
) -> int | None:
    """The first k after which `should_stop` holds; None if it never does.

    Examples:
        >>> stopping_step([2.0, 0.7, 0.01, 0.01])
        2
    """
    check_stopping(h_stop, eps, patience)
    return next(
        (k for k in range(1, len(entropy)) if should_stop(entropy[: k + 1], h_stop, eps, patience)),
        None,
    )


def check_stopping(h_stop: float | None, eps: float, patience: int | None) -> None:
    """Refuses a stopping rule that is none.

    Raises:
        ValueError: naming the argument.
    """
    if h_stop is not None and not 0 <= h_stop < math.inf:
        raise ValueError(f"h_stop must be None or finite and at least 0 nats, but is {h_stop!r}")
    if not math.isfinite(eps):
        raise ValueError(f"eps must be finite, but is {eps!r}")
    if patience is not None and patience < 1:
        raise ValueError(f"patience must be None or at least 1, but is {patience!r}")


# One forward pass ---------------------------------------------------------------------------------


def packed_profile(
    model: PreTrainedModel,
    prompt_ids: Int[Tensor, "prompt"],
    step_ids: Sequence[Int[Tensor, "_"]],
    lead_in_ids: Int[Tensor, "lead"],
    answer_ids: Int[Tensor, "tokens"],
    *,
    base: float | None = None,
) -> Float[Tensor, "states"]:
    """H_0..H_K from one forward pass: the chain once, and a branch with the answer after each step.

    A branch sees the chain up to its step and itself; its positions go on from there.

    Args:
        model: the judge; full attention in every layer, by "eager" or "sdpa".
        prompt_ids: the problem's tokens.
        step_ids: the tokens of each step.
        lead_in_ids: what asks for the answer.
        answer_ids: the answer.
        base: base of the logarithm, 2 for bits; nats by default.

    Raises:
        ValueError: no prompt, no step, no lead-in or no answer, a context that is too long, or a model
            that takes no mask of this form.

    Source: arXiv 2508.20395 for H_k.
    """
    logits = packed_logits(model, prompt_ids, step_ids, lead_in_ids, answer_ids)
    return answer_entropy(logits, base=base)


@torch.no_grad()
def packed_logits(
    model: PreTrainedModel,
    prompt_ids: Int[Tensor, "prompt"],
    step_ids: Sequence[Int[Tensor, "_"]],
    lead_in_ids: Int[Tensor, "lead"],
    answer_ids: Int[Tensor, "tokens"],
) -> Float[Tensor, "states tokens vocab"]:
    """As `packed_profile`: the logits that predict each token of the answer, after each step."""
    check_masks(model)
    for name, ids in (("prompt_ids", prompt_ids), ("lead_in_ids", lead_in_ids)):
        if len(ids) == 0:
            raise ValueError(f"{name} must hold at least one token, but hold none")
    _check_chain(len(step_ids), len(answer_ids))
    device = prompt_ids.device
    trunk = torch.cat([prompt_ids, *step_ids])
    # Tokens of the trunk that each branch sees: the prompt, then a step more each time.
    seen = torch.tensor([len(prompt_ids), *map(len, step_ids)], device=device).cumsum(0)
    branch = torch.cat([lead_in_ids, answer_ids[:-1]])
    check_context(model, len(trunk) + len(branch))
    inside = torch.arange(len(branch), device=device)
    at = torch.arange(len(trunk), device=device)

    positions = torch.cat([at, (seen[:, None] + inside).flatten()])
    owner = torch.arange(len(seen), device=device).repeat_interleave(len(branch))
    total, width = len(positions), len(trunk)
    visible = torch.zeros(total, total, dtype=torch.bool, device=device)
    visible[:, :width] = positions[:, None] >= at
    visible[width:, :width] = at < seen[owner][:, None]
    visible[width:, width:] = (owner[:, None] == owner) & (
        positions[width:, None] >= positions[width:]
    )
    mask = torch.zeros(1, 1, total, total, dtype=model.dtype, device=device)
    mask.masked_fill_(~visible, torch.finfo(model.dtype).min)
    # The V-wide head is applied where the answer is predicted and nowhere else.
    first = width + torch.arange(len(seen), device=device)[:, None] * len(branch)
    wanted = first + len(lead_in_ids) - 1 + torch.arange(len(answer_ids), device=device)
    logits = model(
        input_ids=torch.cat([trunk, branch.repeat(len(seen))])[None],
        attention_mask=mask,
        position_ids=positions[None],
        use_cache=False,
        logits_to_keep=wanted.flatten(),
    ).logits[0]
    return logits.unflatten(0, wanted.shape)


def check_masks(model: PreTrainedModel) -> None:
    """Refuses a model whose attention can't be told who sees what.

    Raises:
        ValueError: layers other than full attention, or an attention without masks.
    """
    config = model.config.get_text_config(decoder=True)
    other = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if getattr(config, "sliding_window", None) and getattr(config, "layer_types", None) is None:
        other = {"sliding_attention"}
    if other:
        raise ValueError(
            f"model must have full attention in every layer to read packed branches, but "
            f"{type(model).__name__} has {', '.join(sorted(other))}; read it with packed=False"
        )
    if config._attn_implementation not in ("eager", "sdpa"):
        raise ValueError(
            "model must attend by 'eager' or 'sdpa' to read packed branches, but attends by "
            f"{config._attn_implementation!r}; read it with packed=False"
        )


def _check_chain(steps: int, answer: int) -> None:
    if steps == 0:
        raise ValueError("chain must hold at least one step, but holds none")
    if answer == 0:
        raise ValueError("answer must hold at least one token, but holds none")


# Texts --------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """A judge's answer and its uncertainty along it."""

    entropy: Float[Tensor, "tokens"]
    nll: Float[Tensor, "tokens"]
    answer: str


class ReasoningUtility:
    """Measures a judge's uncertainty about the answer as it reads a chain of thought, step by step.

    The judge reads the chain once: after each step it is asked, by the lead-in and the answer, and
    forgets the question. Problem, steps and lead-in are encoded one by one, so that all contexts share
    their tokens, whichever way they are read.

    Args:
        model: the judge, a causal language model of transformers.
        tokenizer: its tokenizer.
        lead_in: what stands before the answer, the same after every step.
        closing: what ends an answer of the judge's own; braces inside the answer must balance.
        splitter: how a chain given as one text is split, see `split_steps`.
        separator: what parts the steps of a chain given as a list, and the problem from the first.
        answer_tokens: longest answer of the judge's own.
        packed: reads chain and questions in one forward pass where an answer is given, see
            `packed_profile`: faster on a GPU, for models with full attention in every layer.
        base: base of the logarithm, 2 for bits; nats by default.

    Raises:
        ValueError: a setting out of its range, an encoder-decoder model, or one without a cache.

    Examples:
        >>> from szilard.zoo.language import character_tokenizer, tiny_language_model
        >>> tokenizer = character_tokenizer("0123456789+=. A{}")
        >>> judge = ReasoningUtility(
        ...     tiny_language_model(vocab=tokenizer), tokenizer, lead_in=" A{", base=2
        ... )
        >>> profile = judge.profile("1+2+3. ", "1+2=3. 3+3=06.", answer="06")
        >>> profile.steps, profile.entropy.shape, profile.utility.shape
        (('1+2=3.', '3+3=06.'), torch.Size([3]), torch.Size([2]))

    Source: Guo, Measuring Reasoning Utility in LLMs via Conditional Entropy Reduction (2025; arXiv
        2508.20395). The early answers without a reference are ours.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        lead_in: str = LEAD_IN,
        splitter: Splitter = "auto",
        *,
        closing: str = "}",
        separator: str = "\n\n",
        answer_tokens: int = 16,
        packed: bool = False,
        base: float | None = None,
    ) -> None:
        check_model(model)
        check_splitter(splitter)
        if packed:
            check_masks(model)
        for name, text in (("lead_in", lead_in), ("closing", closing)):
            if not text:
                raise ValueError(f"{name} must not be empty")
        if answer_tokens < 1:
            raise ValueError(f"answer_tokens must be at least 1, but is {answer_tokens!r}")
        self.model = model
        self.tokenizer = tokenizer
        self.lead_in = lead_in
        self.splitter: Splitter = splitter
        self.closing = closing
        self.separator = separator
        self.answer_tokens = answer_tokens
        self.packed = packed
        self.base = base
        self.lead_in_ids = self._encode(lead_in)

    def profile(
        self, problem: str, chain: str | Sequence[str], answer: str | None = None
    ) -> UtilityProfile:
        """Reads one chain.

        Args:
            problem: what the chain is about; a chat template is applied beforehand. A text that begins
                with the tokenizer's own first token gets no second one.
            chain: the text that follows the problem, white space between them included, or its steps.
            answer: the reference answer; None lets the judge answer itself, greedily, after each step.

        Raises:
            ValueError: a chain without steps, an empty answer, an answer whose first token merges with
                the lead-in's last, a context that is too long, or logits that define no distribution.
        """
        steps, pieces = self._pieces(chain)
        prompt = self._prompt(problem)
        if answer is None:
            check_context(
                self.model,
                sum(map(len, (prompt, *pieces, self.lead_in_ids))) + self.answer_tokens,
            )
            asked = self._read(prompt, pieces, None)
            return self._assemble(steps, asked)
        target = self.answer_ids(answer)
        _check_chain(len(pieces), len(target))
        check_context(self.model, sum(map(len, (prompt, *pieces, self.lead_in_ids, target))) - 1)
        if self.packed:
            logits = packed_logits(self.model, prompt, pieces, self.lead_in_ids, target)
            asked = [self._along(row, target, answer) for row in logits]
        else:
            asked = self._read(prompt, pieces, target)
        return self._assemble(steps, asked)

    def profile_batch(
        self, items: Iterable[tuple[str, str | Sequence[str], str | None]]
    ) -> list[UtilityProfile]:
        """Reads several chains, (problem, chain, answer) each.

        Raises:
            ValueError: as `profile`.
        """
        return [self.profile(*item) for item in items]

    def ask(self, reader: CachedReader, answer: Int[Tensor, "tokens"] | None = None) -> Asked:
        """What the judge thinks of the answer where a reader stands; the reader forgets the question.

        Args:
            reader: of the judge, made to rewind.
            answer: the reference; None for the judge's own answer.

        Raises:
            ValueError: as `profile`.
        """
        if answer is None:
            return self._own_answer(reader)
        question = torch.cat([self.lead_in_ids, answer[:-1]])[None]
        logits = reader.ask(question, keep=len(answer)).logits[0]
        return self._along(logits, answer, self.tokenizer.decode(answer))

    def answer_ids(self, answer: str) -> Int[Tensor, "tokens"]:
        """The answer's tokens where it follows the lead-in.

        Raises:
            ValueError: an empty answer, or one whose first token merges with the lead-in's last.
        """
        if not answer:
            raise ValueError("answer must not be empty; None lets the judge answer itself")
        both, lead = self._encode(self.lead_in + answer), self.lead_in_ids
        if len(both) <= len(lead) or not torch.equal(both[: len(lead)], lead):
            raise ValueError(
                f"answer must begin with a token of its own, but {answer!r} merges with the end of "
                f"lead_in, {self.lead_in!r}"
            )
        if len(both) == len(lead) + 1:
            warnings.warn(
                f"the answer {answer!r} is a single token: a judge that believes a wrong chain looks "
                "as certain as one that believes a right one; look at nll as well",
                stacklevel=3,
            )
        return both[len(lead) :]

    def _read(self, prompt: Tensor, pieces: Sequence[Tensor], answer: Tensor | None) -> list[Asked]:
        reader = CachedReader(self.model, rewinds=True)
        asked = []
        for piece in (prompt, *pieces):
            reader.read(piece[None], keep=0)
            asked.append(self.ask(reader, answer))
        return asked

    @torch.no_grad()
    def _own_answer(self, reader: CachedReader) -> Asked:
        """Greedy from the lead-in to what closes the answer, a token at a time."""
        ends = self._end_tokens()
        rows: list[Tensor] = []
        tokens: list[int] = []
        text = ""
        with reader.aside():
            logits = reader.read(self.lead_in_ids[None]).logits[0, -1]
            while True:
                token = int(logits.argmax())
                longer, closed = text, token in ends
                if not closed:
                    longer, closed = self._until_closed(self.tokenizer.decode([*tokens, token]))
                # A token that only closes is no part of the answer, unless it is all there is.
                if not closed or len(longer) > len(text) or not tokens:
                    rows.append(logits)
                    tokens.append(token)
                text = longer
                if closed or len(tokens) == self.answer_tokens:
                    break
                step = torch.tensor([[token]], device=self.model.device)
                logits = reader.read(step).logits[0, -1]
        return self._along(torch.stack(rows), torch.tensor(tokens, device=logits.device), text)

    def _until_closed(self, text: str) -> tuple[str, bool]:
        """The text before what closes it, and whether anything does."""
        for match in re.finditer(re.escape(self.closing), text):
            before = text[: match.start()]
            if self.closing != "}" or before.count("{") == before.count("}"):
                return before, True
        return text, False

    def _end_tokens(self) -> set[int]:
        ends = {self.tokenizer.eos_token_id}
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ends |= set(configured) if isinstance(configured, list) else {configured}
        return {end for end in ends if end is not None}

    def _along(self, logits: Tensor, answer: Tensor, text: str) -> Asked:
        found = token_statistics(logits, answer, base=self.base)
        assert found.logprob is not None
        return Asked(found.entropy.cpu(), -found.logprob.cpu(), text)

    def _assemble(self, steps: Sequence[str], asked: Sequence[Asked]) -> UtilityProfile:
        entropy, nll, answers = zip(*asked, strict=True)
        return UtilityProfile(entropy, nll, tuple(steps), answers)

    def _pieces(self, chain: str | Sequence[str]) -> tuple[list[str], list[Tensor]]:
        """The steps, and the tokens of each with what parts it from the one before."""
        if isinstance(chain, str):
            found = split_steps(chain, self.splitter)
            steps = [step.text for step in found]
            starts = [0, *(step.end for step in found[:-1])]
            texts = [chain[a : step.end] for a, step in zip(starts, found, strict=True)]
        else:
            steps = [step for step in chain if step.strip()]
            texts = [self.separator + step for step in steps]
        if not steps:
            raise ValueError("chain must hold at least one step, but holds none")
        return steps, [self._encode(text) for text in texts]

    def _prompt(self, problem: str) -> Tensor:
        bos = self.tokenizer.bos_token
        bare = bos is not None and problem.startswith(bos)
        ids = self.tokenizer(problem, add_special_tokens=not bare)["input_ids"]
        if not ids:
            raise ValueError("problem must hold at least one token, but holds none")
        return torch.tensor(ids, device=self.model.device)

    def _encode(self, text: str) -> Tensor:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.long, device=self.model.device)
