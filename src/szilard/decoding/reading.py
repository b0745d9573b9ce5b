"""Reading a text with a causal model piece by piece, every token once.

Methods that look at more than the next token need a model beside `generate`'s own: a second model
that takes over, a second prompt to contrast with, a judge that is asked what it would answer now.
`CachedReader` is that model with its key-value cache: it reads on from where it stands, and can be
asked something and forget the question.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Integer
from torch import Tensor

from szilard._extras import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutputWithPast


class CachedReader:
    """A causal model, the cache of what it has read, and nothing read twice.

    Rows of a batch are padded on the left of their first piece; every later piece is as long in all
    rows. Padding keeps no position: a row reads as it would alone.

    Args:
        model: a causal language model of transformers.
        rewinds: whether `ask` or `aside` will be called. Caches of sliding-window layers drop what
            left the window and must be told beforehand to keep it until the question is forgotten.

    Attributes:
        model: as given.
        cache: the model's key-value cache; hand it to `generate(past_key_values=...)` to go on there.
        attention_mask: 1 where a token was read, 0 for padding, (batch, read); None before.
        forwards: forward passes so far.
        fed: tokens fed to the model so far, in one row.

    Raises:
        ValueError: an encoder-decoder model, or a model that keeps no key-value cache.
    """

    def __init__(self, model: PreTrainedModel, *, rewinds: bool = False) -> None:
        DynamicCache = require("transformers", extra="language").DynamicCache
        check_model(model)
        self.model = model
        self.cache: Any = DynamicCache(config=model.config)
        self.attention_mask: Tensor | None = None
        self.forwards = 0
        self.fed = 0
        self._rewinds = rewinds
        self._aside = False
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    @property
    def length(self) -> int:
        """Tokens that stand in the cache, padding included."""
        return 0 if self.attention_mask is None else self.attention_mask.shape[-1]

    @torch.no_grad()
    def read(
        self,
        ids: Integer[Tensor, "batch tokens"],
        attention_mask: Integer[Tensor, "batch tokens"] | None = None,
        *,
        keep: int = 1,
        **forward: Any,
    ) -> CausalLMOutputWithPast:
        """Reads on, and says what may come next.

        Args:
            ids: the tokens that follow what was read.
            attention_mask: 0 where a token is padding, which only the first piece may begin with.
            keep: for how many of the last positions the output carries logits; for 0 the model's head
                is not run, and the output is that of its body.
            **forward: goes to the model's forward, `output_hidden_states=True` for example.

        Returns:
            The model's output, logits of shape (batch, keep, vocab).

        Raises:
            ValueError: no tokens, more of them than the model's context has room for, or a model that
                keeps no cache.
        """
        output = self._forward(ids, attention_mask, keep, forward)
        if self._rewinds and not self._aside and hasattr(self.cache, "activate_past_recording"):
            if self.forwards == 1:
                self.cache.activate_past_recording()
            # Lets sliding windows drop what they no longer need.
            self.cache.crop(0)
        return output

    def ask(
        self,
        ids: Integer[Tensor, "batch tokens"],
        *,
        keep: int = 1,
        **forward: Any,
    ) -> CausalLMOutputWithPast:
        """As `read`, and forgets these tokens again.

        Raises:
            ValueError: as `read` and `aside`.
        """
        with self.aside():
            return self.read(ids, keep=keep, **forward)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is read inside is forgotten at its end: a question and an answer of several tokens.

        Raises:
            ValueError: nothing was read yet, the reader was not made to rewind, or its model's state
                can't be put back (recurrent layers).
        """
        if not self._rewinds:
            raise ValueError("the reader was made with rewinds=False, so that it can't forget")
        before, length = self.attention_mask, self.length
        if before is None:
            raise ValueError("a reader must have read something before it is asked")
        if not getattr(self.cache, "is_croppable", True):
            raise ValueError(
                f"{type(self.model).__name__} has layers whose state can't be put back"
            )
        self._aside = True
        try:
            yield
        finally:
            self._aside = False
            self.cache.crop(length - self.length)
            self.attention_mask = before

    def select(self, rows: Integer[Tensor, "chosen"]) -> CachedReader:
        """A reader of some rows, a row as often as it is named, which goes on by itself from here.

        Raises:
            ValueError: nothing was read yet.
        """
        if self.attention_mask is None:
            raise ValueError("a reader must have read something before rows of it are selected")
        chosen = copy.copy(self)
        chosen.cache = copy.copy(self.cache)
        chosen.cache.layers = [_own(layer) for layer in self.cache.layers]
        chosen.cache.reorder_cache(rows)
        chosen.attention_mask = self.attention_mask[rows]
        chosen.forwards = chosen.fed = 0
        return chosen

    def _forward(
        self, ids: Tensor, attention_mask: Tensor | None, keep: int, forward: dict[str, Any]
    ) -> Any:
        count = ids.shape[-1]
        if count == 0:
            raise ValueError("ids must hold at least one token, but hold none")
        check_context(self.model, self.length + count)
        new = torch.ones_like(ids) if attention_mask is None else attention_mask.to(ids.dtype)
        before = self.attention_mask
        mask = new if before is None else torch.cat((before, new), -1)
        if self._takes_positions:
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -count:]
            forward = {"position_ids": positions, **forward}
        if keep:
            forward = {"logits_to_keep": keep, **forward}
        output = (self.model if keep else self.model.base_model)(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            **forward,
        )
        if self.cache.get_seq_length() != mask.shape[-1]:
            raise ValueError(
                f"model must keep a key-value cache, but {_name(self.model)} keeps none"
            )
        self.attention_mask = mask
        self.forwards += 1
        self.fed += count
        return output


def check_model(model: PreTrainedModel, name: str = "model") -> None:
    """Refuses what can't be read piece by piece.

    Raises:
        ValueError: an encoder-decoder model, or a forward without a cache.
    """
    if model.config.is_encoder_decoder:
        raise ValueError(f"{name} must be a causal language model, but {_name(model)} is not")
    accepted = inspect.signature(model.forward).parameters
    if "past_key_values" not in accepted:
        raise ValueError(f"{name} must keep a key-value cache, but {_name(model)} keeps none")


def check_prompt(
    model: PreTrainedModel,
    input_ids: Integer[Tensor, "batch tokens"],
    attention_mask: Integer[Tensor, "batch tokens"] | None = None,
    new_tokens: int = 0,
    *,
    name: str = "",
) -> None:
    """Refuses a prompt that nothing can be generated after.

    Args:
        model: who is to go on.
        input_ids: the prompts, padded on the left.
        attention_mask: 0 where a token is padding.
        new_tokens: how many tokens are to follow.
        name: what stands before "input_ids" and "attention_mask" in the errors.

    Raises:
        ValueError: no prompt, an empty one, padding on the right, or no room in the model's context.
    """
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise ValueError(
            f"{name}input_ids must hold at least one prompt of at least one token, "
            f"but have shape {tuple(input_ids.shape)}"
        )
    if attention_mask is not None:
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"{name}attention_mask must have the shape of {name}input_ids, {tuple(input_ids.shape)}, "
                f"but has {tuple(attention_mask.shape)}"
            )
        if not bool(attention_mask.any(-1).all()):
            raise ValueError(
                f"{name}input_ids must hold no empty prompt, but a row is padding alone"
            )
        if not bool(attention_mask[:, -1].all()):
            raise ValueError(
                f"{name}input_ids must be padded on the left, but a row ends in padding"
            )
    check_context(model, input_ids.shape[-1] + new_tokens)


def check_context(model: PreTrainedModel, tokens: int) -> None:
    """Refuses more tokens than the model has positions for.

    Raises:
        ValueError: naming both numbers.
    """
    limit = context_limit(model)
    if limit is not None and tokens > limit:
        raise ValueError(
            f"input_ids and what follows them must fit the {limit} tokens of {_name(model)}'s "
            f"context, but come to {tokens}"
        )


def _own(layer: Any) -> Any:
    """A cache layer whose states can be replaced without touching the original's."""
    layer = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict | list):
            setattr(layer, name, copy.copy(value))
    return layer


def context_limit(model: PreTrainedModel) -> int | None:
    """How many tokens a model has positions for; None where there is no limit."""
    config = model.config.get_text_config(decoder=True)
    return getattr(config, "max_position_embeddings", None)


def _name(model: PreTrainedModel) -> str:
    return model.config.name_or_path or type(model).__name__
