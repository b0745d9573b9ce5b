"""Token scores of many texts under one causal language model, at the price of its forward passes.

Texts of similar length share a batch, so that little is padding; what the model's head reads is kept,
and the head's product with it is reduced block by block (`linear_token_statistics`): nothing of size
tokens x vocabulary is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from szilard.measures import linear_token_statistics, token_statistics

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Statistics = Callable[[Tensor, Tensor], Mapping[str, Tensor]]
"""Takes logits (rows, vocab) and the tokens that came (rows,); gives tensors whose first axis is rows."""

BLOCK = 1 << 24
"""Logits held at once where a caller's own statistics ask for them."""


@dataclass(frozen=True)
class TokenScores:
    """What a model says of each token of a text, given all before it.

    Attributes:
        ids: the tokens that were predicted, (tokens,).
        logprob: log p(token), nats.
        entropy: of the model's law at each token, nats.
        varentropy: variance of log p under that law, nats^2.
        spans: characters of the text that each token stands for, (tokens, 2); None for given ids and
            tokenizers that don't say.
        more: what the caller's own statistics gave, by name, (tokens, ...).
    """

    ids: Int[np.ndarray, " tokens"]
    logprob: Float[np.ndarray, " tokens"]
    entropy: Float[np.ndarray, " tokens"]
    varentropy: Float[np.ndarray, " tokens"]
    spans: Int[np.ndarray, "tokens 2"] | None = None
    more: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


def score_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str | Sequence[int]],
    *,
    contexts: Sequence[str | Sequence[int]] | None = None,
    statistics: Statistics | None = None,
    max_tokens: int | None = None,
    batch_tokens: int = 4096,
    progress: bool = False,
) -> list[TokenScores]:
    """Log-probability, entropy and varentropy of every token of every text.

    The law is the model's at temperature 1, in float32 whatever the weights' type. A tokenizer that
    begins texts with a special token predicts the first one from it; where there is none, and no
    context, the first token is context only.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        texts: strings, or token ids as they were sampled (re-tokenising a sampled text can give others).
        contexts: what comes before each text and is not scored, strings or ids; special tokens that the
            tokenizer begins with come before a context.
        statistics: more numbers of each token's law, from blocks of logits.
        max_tokens: of a text, later ones are left out.
        batch_tokens: padded tokens of a batch.
        progress: shows a progress bar.

    Returns:
        In the order of the texts.

    Raises:
        ValueError: no text, or one that is empty; one with nothing to predict; lengths that differ; an
            id outside the vocabulary; a text longer than the model's context.

    Examples:
        >>> from szilard.zoo.language import character_tokenizer, tiny_language_model
        >>> tokenizer = character_tokenizer("ab ")
        >>> model = tiny_language_model(vocab=tokenizer, hidden=8, layers=1, heads=1)
        >>> [len(scores) for scores in score_texts(model, tokenizer, ["abba", "a b"])]
        [4, 3]
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, but is {batch_tokens}")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, but is {max_tokens}")
    rows = _tokenised(model, tokenizer, texts, contexts, max_tokens)
    head = _Head(model, rows[0].ids)
    scores: list[TokenScores | None] = [None] * len(rows)
    for batch in _batches([len(row.ids) for row in rows], batch_tokens, progress):
        for index, found in zip(
            batch, _scored(model, head, [rows[i] for i in batch], statistics), strict=True
        ):
            scores[index] = found
    return [found for found in scores if found is not None]


@dataclass(frozen=True)
class _Row:
    ids: list[int]
    first: int  # the first token that is scored
    spans: np.ndarray | None


def _tokenised(
    model: Any, tokenizer: Any, texts: Any, contexts: Any, max_tokens: int | None
) -> list[_Row]:
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"texts must be a list of one text at least, but is {texts!r}")
    if contexts is not None and len(contexts) != len(texts):
        raise ValueError(
            f"contexts must be as many as texts, {len(texts)}, but are {len(contexts)}"
        )
    begin = _beginning(tokenizer)
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    rows = []
    for i, text in enumerate(texts):
        ids, spans = _ids(tokenizer, text, f"texts[{i}]")
        ids = ids[:max_tokens]
        context = [] if contexts is None else _ids(tokenizer, contexts[i], f"contexts[{i}]")[0]
        before = [*begin, *context]
        skipped = 0 if before else 1  # without anything before it the first token has no law
        if len(ids) <= skipped:
            raise ValueError(
                f"texts[{i}] must have two tokens at least where nothing comes before it, but has {len(ids)}"
            )
        whole = [*before, *ids]
        if not (min(whole) >= 0 and max(whole) < config.vocab_size):
            raise ValueError(
                f"texts[{i}] must have ids below the model's vocabulary of {config.vocab_size}: "
                "the tokenizer is another model's"
            )
        if longest is not None and len(whole) > longest:
            raise ValueError(
                f"texts[{i}] has {len(whole)} tokens, but the model reads {longest} at most: "
                "give max_tokens"
            )
        if spans is not None:
            spans = spans[skipped : len(ids)]
        rows.append(_Row(whole, len(before) + skipped, spans))
    return rows


def _beginning(tokenizer: Any) -> list[int]:
    """Special tokens that the tokenizer puts before a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    found = tokenizer("a", return_special_tokens_mask=True)
    whole, special = found["input_ids"], found["special_tokens_mask"]
    # A text of unknown words may itself be what some tokenizers count as special.
    most = len(whole) - len(plain)
    return [
        token
        for token, _ in takewhile(lambda pair: pair[1], zip(whole[:most], special, strict=False))
    ]


def _ids(tokenizer: Any, text: Any, name: str) -> tuple[list[int], np.ndarray | None]:
    if not isinstance(text, str):
        ids = [int(token) for token in text]
        if not ids:
            raise ValueError(f"{name} must not be empty")
        return ids, None
    if not text:
        raise ValueError(f"{name} must not be empty")
    fast = bool(getattr(tokenizer, "is_fast", False))
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    if not found["input_ids"]:
        raise ValueError(f"{name} must have tokens, but {text!r} has none")
    spans = np.array(found["offset_mapping"], dtype=np.int64) if fast else None
    return list(found["input_ids"]), spans


def _batches(lengths: Sequence[int], batch_tokens: int, progress: bool) -> Iterator[list[int]]:
    """Rows of similar length together, the longest first, so that what does not fit shows at once."""
    from rich.progress import Progress

    order = np.argsort(-np.asarray(lengths), kind="stable")
    edges, at = [0], 0
    while at < len(order):
        at += max(1, batch_tokens // lengths[order[at]])
        edges.append(min(at, len(order)))
    with Progress(disable=not progress) as bar:
        task = bar.add_task("scoring texts", total=len(order))
        for a, b in pairwise(edges):
            yield order[a:b].tolist()
            bar.update(task, advance=b - a)


class _Head:
    """A model's body and the linear map after it, where its logits are nothing else."""

    def __init__(self, model: Any, probe: list[int]) -> None:
        self.body = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
        self.softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        head = model.get_output_embeddings()
        self.linear = head if isinstance(head, nn.Linear) else None
        if self.linear is not None and not self._is_all(model, probe[:8]):
            self.linear = None

    @torch.no_grad()
    def _is_all(self, model: Any, probe: list[int]) -> bool:
        """Some models scale their logits by other means: a few tokens tell."""
        ids = torch.tensor([probe], device=model.device)
        if not isinstance(self.body, nn.Module):
            return False
        said = model(input_ids=ids, use_cache=False).logits[0].float()
        hidden = self.body(input_ids=ids, use_cache=False).last_hidden_state[0]
        assert self.linear is not None
        ours = self.linear(hidden).float()
        if self.softcap is not None:
            ours = self.softcap * torch.tanh(ours / self.softcap)
        return said.shape == ours.shape and torch.allclose(said, ours, rtol=1e-2, atol=1e-2)

    def logits(self, hidden: Tensor) -> Tensor:
        assert self.linear is not None
        found = self.linear(hidden).float()
        return found if self.softcap is None else self.softcap * torch.tanh(found / self.softcap)


@torch.no_grad()
def _scored(
    model: Any, head: _Head, rows: list[_Row], statistics: Statistics | None
) -> list[TokenScores]:
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    wanted = torch.zeros(len(rows), longest - 1, dtype=torch.bool)
    for i, row in enumerate(rows):
        # On the right no token ever sees padding, and positions are a row's own.
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
        wanted[i, row.first - 1 : len(row.ids) - 1] = True
    ids, mask, wanted = (part.to(model.device) for part in (ids, mask, wanted))
    targets = ids[:, 1:][wanted]
    inputs = {"input_ids": ids, "use_cache": False}
    if not bool(mask.all()):
        inputs["attention_mask"] = mask
    if head.linear is None:
        logits = model(**inputs).logits[:, :-1][wanted].float()
        found = token_statistics(logits, targets)
        more = dict(statistics(logits, targets)) if statistics else {}
    else:
        hidden = head.body(**inputs).last_hidden_state[:, :-1][wanted]
        found = linear_token_statistics(
            hidden, head.linear.weight, targets, head.linear.bias, head.softcap
        )
        more = {}
        if statistics:
            step = max(1, BLOCK // head.linear.weight.shape[0])
            parts = [
                statistics(head.logits(hidden[at : at + step]), targets[at : at + step])
                for at in range(0, len(hidden), step)
            ]
            more = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    assert found.logprob is not None
    fields = {"logprob": found.logprob, "entropy": found.entropy, "varentropy": found.varentropy}
    numbers = {name: value.double().cpu().numpy() for name, value in (fields | more).items()}
    out, at = [], 0
    for row in rows:
        here = slice(at, at := at + len(row.ids) - row.first)
        out.append(
            TokenScores(
                ids=np.array(row.ids[row.first :]),
                logprob=numbers["logprob"][here],
                entropy=numbers["entropy"][here],
                varentropy=numbers["varentropy"][here],
                spans=row.spans,
                more={name: numbers[name][here] for name in more},
            )
        )
    return out
