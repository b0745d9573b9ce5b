"""Early stopping of `generate` by the entropy over the answer the model would give now."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int, Integer
from torch import Tensor

from szilard._extras import require
from szilard.decoding.reading import CachedReader, check_context, context_limit
from szilard.decoding.reasoning_utility import (
    LEAD_IN,
    Asked,
    ReasoningUtility,
    check_stopping,
    should_stop,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria
else:
    StoppingCriteria = require("transformers", extra="language").StoppingCriteria


# Tokens among which the end of a step is looked for.
_TAIL = 8


class UtilityStoppingCriteria(StoppingCriteria):
    r"""Ends a chain of thought when the model is certain of its answer, or further steps are of no use.

    Where a step ends, the model is asked for its answer; H_k is the mean entropy along it. The text
    stops after step k if H_k < h_stop, or if the last `patience` steps lowered H by no more than eps
    each. It says when to stop, not what: the answer it had then is in `answers`.

    Each row has a reader of its own beside `generate`'s cache, which reads each token once, at the end
    of its step, and forgets the questions. White space at the end of a step is read with the next, so
    that the lead-in follows text. A step after which the context has no room for the question is not
    asked about. One criterion serves one call of `generate`.

    Args:
        model: who is asked: the generating model, or a judge with its tokenizer.
        tokenizer: of the text that is generated.
        attention_mask: 0 where a token of the prompts is padding; needed where there is padding.
        h_stop: stops below this entropy, in nats; None never does.
        eps: a step of no more utility, in nats, is of no use.
        patience: stops after this many such steps in a row; None never does.
        lead_in: what asks for the answer.
        closing: what ends it.
        boundary: regular expression that the last few tokens match where a step ends; by default a line
            break. r"[.!?]\s*$" ends one at every sentence.
        answer_tokens: longest answer.
        min_steps: steps that are written in any case.

    Attributes:
        entropy: H_0..H_k of each row so far, nats.
        answers: the answers they were measured along.
        steps_at: for each row, how many tokens had been generated at the end of each step.
        stopped: the rows that it stopped.
        readers: the rows' readers, with their counts of forward passes and tokens.

    Raises:
        ValueError: a setting out of its range, or a model without a cache. When called: another number
            of rows, or a text that does not go on (beam search reorders rows: `num_beams` must be 1).

    Examples:
        >>> from szilard.zoo.language import character_tokenizer, tiny_language_model
        >>> tokenizer = character_tokenizer("ab {}")
        >>> model = tiny_language_model(vocab=tokenizer)
        >>> stop = UtilityStoppingCriteria(
        ...     model, tokenizer, h_stop=9, lead_in=" {", boundary="."
        ... )
        >>> text = model.generate(
        ...     torch.tensor([[1, 4, 5]]), max_new_tokens=20, do_sample=False, pad_token_id=0,
        ...     suppress_tokens=[0, 1, 2, 3], stopping_criteria=[stop],
        ... )
        >>> stop.stopped, len(stop.entropy[0]) - 1
        ([True], 1)

    Source: the conditional entropy of Guo 2025 (arXiv 2508.20395), along an answer of the model's own;
        the stopping rule is ours.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        attention_mask: Integer[Tensor, "batch prompt"] | None = None,
        *,
        h_stop: float | None = 0.05,
        eps: float = 0.01,
        patience: int | None = 3,
        lead_in: str = LEAD_IN,
        closing: str = "}",
        boundary: str = r"\n\s*$",
        answer_tokens: int = 16,
        min_steps: int = 1,
    ) -> None:
        check_stopping(h_stop, eps, patience)
        if min_steps < 1:
            raise ValueError(f"min_steps must be at least 1, but is {min_steps!r}")
        try:
            self._boundary = re.compile(boundary)
        except re.error as error:
            raise ValueError(
                f"boundary must be a regular expression, but is {boundary!r}: {error}"
            ) from None
        self._judge = ReasoningUtility(
            model, tokenizer, lead_in, closing=closing, answer_tokens=answer_tokens
        )
        self._rule = (h_stop, eps, patience)
        self._mask = attention_mask
        self._min_steps = min_steps
        self._text: Tensor | None = None
        self._prompt = 0
        self.entropy: list[list[float]] = []
        self.answers: list[list[str]] = []
        self.steps_at: list[list[int]] = []
        self.stopped: list[bool] = []
        self.readers: list[CachedReader] = []

    def __call__(
        self, input_ids: Int[Tensor, "batch tokens"], scores: Any = None, **others: Any
    ) -> Bool[Tensor, "batch"]:
        """Which rows have said enough."""
        if self._text is None:
            self._begin(input_ids)
        elif input_ids.shape[0] != len(self.readers) or not torch.equal(
            input_ids[:, :-1], self._text
        ):
            raise ValueError(
                "input_ids must go on from those of the step before, row by row: one criterion serves "
                "one call of generate, with num_beams=1"
            )
        self._text = input_ids.clone()
        for row in range(len(input_ids)):
            if not self.stopped[row]:
                self.stopped[row] = self._step_ends(row) and self._says_enough(row)
        return torch.tensor(self.stopped, device=input_ids.device)

    def _begin(self, input_ids: Tensor) -> None:
        rows, length = input_ids.shape
        self._prompt = length - 1
        if self._mask is not None and tuple(self._mask.shape) != (rows, self._prompt):
            raise ValueError(
                f"attention_mask must have the shape of the prompts, {(rows, self._prompt)}, but has "
                f"{tuple(self._mask.shape)}"
            )
        question = len(self._judge.lead_in_ids) + self._judge.answer_tokens
        check_context(self._judge.model, self._prompt + question)
        for row in range(rows):
            padding = 0 if self._mask is None else int((self._mask[row] == 0).sum())
            reader = CachedReader(self._judge.model, rewinds=True)
            reader.read(input_ids[[row], padding : self._prompt], keep=0)
            asked = self._judge.ask(reader)
            self.readers.append(reader)
            self.entropy.append([_mean(asked)])
            self.answers.append([asked.answer])
            self.steps_at.append([])
            self.stopped.append(False)

    def _step_ends(self, row: int) -> bool:
        """Whether a step that holds any text ends with the row's last token."""
        assert self._text is not None
        unread = self._text[row, self._read_up_to(row) :]
        if self._boundary.search(self._decode(unread[-_TAIL:])) is None:
            return False
        reader, judge = self.readers[row], self._judge
        question = len(judge.lead_in_ids) + judge.answer_tokens
        limit = context_limit(judge.model)
        if limit is not None and reader.length + len(unread) + question > limit:
            return False
        return bool(self._decode(unread).strip())

    def _says_enough(self, row: int) -> bool:
        assert self._text is not None
        new = self._text[row, self._read_up_to(row) :]
        while len(new) > 1 and not self._decode(new[-1:]).strip():
            new = new[:-1]
        reader = self.readers[row]
        reader.read(new[None], keep=0)
        asked = self._judge.ask(reader)
        self.entropy[row].append(_mean(asked))
        self.answers[row].append(asked.answer)
        self.steps_at[row].append(self._text.shape[-1] - self._prompt)
        enough = len(self.steps_at[row]) >= self._min_steps
        return enough and should_stop(self.entropy[row], *self._rule)

    def _read_up_to(self, row: int) -> int:
        """Where in the row its reader stands."""
        padding = 0 if self._mask is None else int((self._mask[row] == 0).sum())
        return padding + self.readers[row].length

    def _decode(self, ids: Tensor) -> str:
        return self._judge.tokenizer.decode(ids, skip_special_tokens=True)


def _mean(asked: Asked) -> float:
    return float(asked.entropy.double().mean())
