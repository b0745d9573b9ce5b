"""A text as a language model reads it: surprisal and entropy of every token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from szilard.lab.templating import render

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LONGEST_WINDOW = 1024
# Logits of one window may take this many bytes in float32.
_LOGIT_BYTES = 2**29
_UNITS = {None: "nats", 2.0: "bits", 10.0: "dits"}


@dataclass(frozen=True, slots=True)
class TokenReading:
    """One token.

    Attributes:
        text: the piece of the text it stands for; the pieces joined are the text.
        surprisal: -log p(token | what came before); None for a first token nothing predicts.
        entropy: of the distribution the token was drawn from; None likewise.
    """

    text: str
    surprisal: float | None
    entropy: float | None


@dataclass(frozen=True, slots=True)
class Reading:
    """A text, token by token.

    Attributes:
        tokens: in order.
        unit: of surprisal and entropy.
        begins_with_bos: whether every window starts with the model's begin-of-text token, which
            then predicts the first token.
        window: tokens the model saw at once.
        stride: how many tokens windows move by.
    """

    tokens: Sequence[TokenReading]
    unit: str
    begins_with_bos: bool
    window: int
    stride: int

    @property
    def surprisals(self) -> list[float]:
        return [token.surprisal for token in self.tokens if token.surprisal is not None]

    @property
    def entropies(self) -> list[float]:
        return [token.entropy for token in self.tokens if token.entropy is not None]

    @property
    def characters(self) -> int:
        return sum(len(token.text) for token in self.tokens)

    @property
    def context(self) -> str:
        """How much each token could see, in words."""
        start = "begins with the model's begin-of-text token"
        if not self.begins_with_bos:
            start = "has no begin-of-text token, so the first token has no surprisal"
        if len(self.tokens) + self.begins_with_bos <= self.window:
            return f"The text fits in one window, which {start}."
        return (
            f"Windows of {self.window} tokens move by {self.stride}: a token sees at least the "
            f"{self.window - self.stride - self.begins_with_bos} before it. Each window {start}."
        )


def read_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    base: float | None = None,
    window: int | None = None,
    log: Callable[[float], None] = lambda fraction: None,
) -> Reading:
    """Reads a text with a causal language model.

    A text longer than the window is read in windows that overlap by half, and each token is taken
    from the window in which more came before it.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        text: what to read.
        base: of the logarithms; None for nats, 2 for bits.
        window: tokens at once; None for as many as the model and memory allow, at most 1024.
        log: told the fraction that is done.

    Returns:
        Surprisal and entropy of every token.

    Raises:
        ValueError: an empty text, or a window under 4 or beyond what the model can see.
    """
    import torch

    from szilard.measures.tokens import token_statistics

    pieces, ids = _tokenize(tokenizer, text)
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or LONGEST_WINDOW
    if window is None:
        window = max(4, min(LONGEST_WINDOW, limit, _LOGIT_BYTES // (4 * config.vocab_size)))
    if not 4 <= window <= limit:
        raise ValueError(f"window: got {window}, must lie in 4..{limit} for this model")
    bos = tokenizer.bos_token_id
    prefix = [] if bos is None else [bos]
    size = window - len(prefix)
    stride = window // 2
    surprisal: list[float | None] = [None] * len(ids)
    entropy: list[float | None] = [None] * len(ids)
    done = 0 if prefix else 1
    start = 0
    while done < len(ids):
        end = min(start + size, len(ids))
        tokens = torch.tensor([prefix + ids[start:end]], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=tokens, use_cache=False).logits
        # The logits at position i predict token i + 1.
        new = end - done
        statistics = token_statistics(logits[0, -new - 1 : -1], tokens[0, -new:], base=base)
        assert statistics.logprob is not None
        surprisal[done:end] = (-statistics.logprob).tolist()
        entropy[done:end] = statistics.entropy.tolist()
        done = end
        start += stride
        log(done / len(ids))
    readings = [TokenReading(*token) for token in zip(pieces, surprisal, entropy, strict=True)]
    return Reading(readings, _unit(base), bool(prefix), window, stride)


def reading_html(reading: Reading, model_name: str) -> str:
    """The reading as one page: the text coloured by surprisal or entropy, figures on hover."""
    mean_surprisal = _mean(reading.surprisals)
    return render(
        "reading.html.j2",
        reading=reading,
        model_name=model_name,
        mean_surprisal=mean_surprisal,
        mean_entropy=_mean(reading.entropies),
        per_character=sum(reading.surprisals) / max(1, reading.characters),
        tokens=[[token.text, token.surprisal, token.entropy] for token in reading.tokens],
    )


def _tokenize(tokenizer: Any, text: str) -> tuple[list[str], list[int]]:
    """Token ids and the piece of the text each stands for."""
    if not text:
        raise ValueError("text: is empty, must hold at least one character")
    if not tokenizer.is_fast:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        return [tokenizer.decode([i]) for i in ids], ids
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ends = [end for _, end in encoded["offset_mapping"]]
    if not ends:
        raise ValueError("text: the model's tokenizer makes no token of it")
    # Offsets may leave out spaces, and bytes of one character share an offset: pieces run from where
    # the one before ended, so that together they are the text.
    ends[-1] = len(text)
    pieces, begin = [], 0
    for end in ends:
        pieces.append(text[begin : max(begin, end)])
        begin = max(begin, end)
    return pieces, encoded["input_ids"]


def _unit(base: float | None) -> str:
    if base is None or math.isclose(base, math.e):
        return "nats"
    return _UNITS.get(base, f"units of log {base:g}")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
