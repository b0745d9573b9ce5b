"""USCD as a logits processor of transformers, with a cache of its own for the lame prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor
from torch.nn.functional import pad

from szilard._extras import require
from szilard.decoding.reading import CachedReader, check_prompt
from szilard.decoding.uscd import (
    check_contrast,
    collision_probability,
    contrast,
    divergence,
    std_to_collision,
)
from szilard.measures._checks import check_logits

if TYPE_CHECKING:
    from transformers import LogitsProcessor, PreTrainedModel
else:
    LogitsProcessor = require("transformers", extra="language").LogitsProcessor


@dataclass(frozen=True, slots=True)
class USCDRecord:
    """What the rule saw and did, one column a generated token.

    Attributes:
        std: u, sample standard deviation over the vocabulary of p.
        collision: sum p^2.
        gate: True where the lame prompt's distribution was subtracted.
        divergence: Jensen-Shannon divergence of p and q, nats; NaN where the lame branch was not
            read.
        kept: tokens with p >= eta / V at an open gate, 0 at a closed one.
        negative: how many of those the subtraction removed.
    """

    std: Float[Tensor, "batch steps"]
    collision: Float[Tensor, "batch steps"]
    gate: Bool[Tensor, "batch steps"]
    divergence: Float[Tensor, "batch steps"]
    kept: Int[Tensor, "batch steps"]
    negative: Int[Tensor, "batch steps"]


class USCDLogitsProcessor(LogitsProcessor):
    """Subtracts what the model would write after a lame prompt, at the steps where it is unsure.

    `generate` runs its `logits_processor` list after penalties and bans and before temperature,
    top-k and top-p, so these act on the contrasted distribution. The lame branch keeps a cache of
    its own and reads every token once. One processor serves one call of `generate`; several samples
    of one prompt take as many rows of the lame prompt.

    Args:
        model: who reads the lame prompts: the generating model, or one with its vocabulary.
        lame_input_ids: the prompts without their examples, a row for each row that is generated,
            padded on the left.
        lame_attention_mask: 0 where a token is padding.
        alpha: weight of the subtracted distribution, 0 or more.
        eta: tokens with p below eta times the mean of p are never contrasted in, 0 or more.
        collision: contrast where sum p^2 is at most this, in (0, 1]; 1 contrasts everywhere.
        theta: the paper's threshold instead, a standard deviation over the vocabulary in
            [0, 1 / sqrt(V)); it sets `collision`.
        lazy: read the lame branch only when a row's gate is open, all waiting tokens in one forward
            pass; else at every step. The text is the same.
        vocabulary: V, the tokens that exist, where the logits are wider (padded embeddings). The
            others have no share in p and q.

    Attributes:
        lame: the lame branch's `CachedReader`, with its counts of forward passes and tokens.
        record: what happened so far, a `USCDRecord`.

    Raises:
        ValueError: an argument out of its range, an empty lame prompt or one padded on the right, a
            model without a cache. When called: rows that do not match the lame rows, a text that
            does not go on (beam search reorders rows: `num_beams` must be 1), another vocabulary.

    Examples:
        >>> from transformers import AutoModelForCausalLM, Qwen2Config
        >>> config = Qwen2Config(vocab_size=8, hidden_size=8, intermediate_size=8,
        ...     num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
        >>> model = AutoModelForCausalLM.from_config(config).eval()
        >>> rule = USCDLogitsProcessor(model, torch.tensor([[1, 2]]))
        >>> text = model.generate(torch.tensor([[1, 5, 5, 2]]), max_new_tokens=3, min_new_tokens=3,
        ...     do_sample=False, pad_token_id=0, logits_processor=[rule])
        >>> rule.record.gate
        tensor([[True, True, True]])

    Source: Wang, Ding, Shen, Luo, He, Yu, Tao, USCD (2024; arXiv 2409.05923), section 3.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        lame_input_ids: Integer[Tensor, "batch lame"],
        lame_attention_mask: Integer[Tensor, "batch lame"] | None = None,
        alpha: float = 0.7,
        eta: float = 1 / 3,
        collision: float = 0.8,
        theta: float | None = None,
        lazy: bool = True,
        *,
        vocabulary: int | None = None,
    ) -> None:
        check_contrast(alpha, eta, collision)
        check_prompt(model, lame_input_ids, lame_attention_mask, name="lame_")
        width = model.config.get_text_config(decoder=True).vocab_size
        if vocabulary is not None and not 2 <= vocabulary <= width:
            raise ValueError(
                f"vocabulary must lie in 2..{width}, the width of the logits, but is {vocabulary!r}"
            )
        self.vocabulary = width if vocabulary is None else vocabulary
        self.width = width
        self.alpha = alpha
        self.eta = eta
        self.collision = collision if theta is None else std_to_collision(theta, self.vocabulary)
        self.lazy = lazy
        self.model = model
        self.lame = CachedReader(model)
        ids = lame_input_ids.to(model.device)
        mask = torch.ones_like(ids) if lame_attention_mask is None else lame_attention_mask
        self._prompt = ids, mask.to(ids)
        self._queue, self._queue_mask = self._prompt
        self._text: Tensor | None = None
        self._pair: _Pair | None = None
        self._steps: list[tuple[Tensor, ...]] = []

    def __call__(
        self, input_ids: Integer[Tensor, "batch tokens"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """The scores, with log p' in the rows whose gate is open.

        Args:
            input_ids: the text so far, one token longer than at the last call.
            scores: log-scores of the next token; left as they are.

        Returns:
            `scores` itself where every gate is closed, else a new tensor.

        Raises:
            ValueError: as for the class.
        """
        self._check(input_ids, scores)
        self._append(input_ids)
        p = self._probabilities(scores)
        c = collision_probability(p)
        gate = c <= self.collision
        if self._pair is None and self.lazy and not gate.any():
            closed = torch.zeros_like(gate, dtype=torch.long)
            self._steps.append((c, gate, torch.full_like(c, torch.nan), closed, closed))
            return scores
        q = self._probabilities(self._read_lame().to(p.device))
        mixed, kept = contrast(p, q, self.alpha, self.eta)
        negative = kept & (p <= self.alpha * q)
        counts = (torch.where(gate, tokens.sum(-1), 0) for tokens in (kept, negative))
        self._steps.append((c, gate, divergence(p, q), *counts))
        contrasted = torch.full_like(scores, -torch.inf)
        contrasted[:, : self.vocabulary] = mixed.log()
        return torch.where(gate[:, None], contrasted, scores)

    def _check(self, input_ids: Tensor, scores: Tensor) -> None:
        check_logits(scores, "scores")
        rows = len(self._prompt[0])
        if len(scores) != rows:
            raise ValueError(
                f"lame_input_ids must have a row for each of the {len(scores)} that are generated, "
                f"but have {rows} (one prompt in several samples takes as many lame rows; num_beams "
                "must be 1)"
            )
        if scores.shape[-1] != self.width:
            raise ValueError(
                f"scores must be over the {self.width} tokens of the model that reads the lame "
                f"prompts, but are over {scores.shape[-1]}"
            )
        before = self._text
        if before is not None and not torch.equal(before, input_ids[:, :-1]):
            raise ValueError(
                "input_ids must go on from the last call by one token, but do not: a processor "
                "serves one call of generate, with num_beams = 1"
            )

    def _append(self, input_ids: Tensor) -> None:
        if self._text is not None:
            token = input_ids[:, -1:].to(self._queue)
            self._queue = torch.cat((self._queue, token), -1)
            self._queue_mask = torch.cat((self._queue_mask, torch.ones_like(token)), -1)
        self._text = input_ids

    def _read_lame(self) -> Tensor:
        """Logits of the lame branch; nothing waits to be read afterwards."""
        if self._pair is not None:
            return self._pair.logits
        logits = self.lame.read(self._queue, self._queue_mask).logits[:, -1]
        self._queue, self._queue_mask = self._queue[:, :0], self._queue_mask[:, :0]
        return logits

    def _probabilities(self, logits: Tensor) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        return logits[:, : self.vocabulary].to(wide).softmax(-1)

    @property
    def record(self) -> USCDRecord:
        """What happened so far; no rows before the first step."""
        if not self._steps:
            empty = torch.zeros(0, 0)
            count = empty.long()
            return USCDRecord(empty, empty, empty.bool(), empty, count, count)
        c, *others = (torch.stack(column, -1) for column in zip(*self._steps, strict=True))
        v = self.vocabulary
        return USCDRecord(((c - 1 / v).clamp(min=0) / (v - 1)).sqrt(), c, *others)

    @contextmanager
    def in_one_batch(self) -> Iterator[None]:
        """While it is open, the model's `generate` reads both prompts as one batch of twice the rows.

        Each forward pass reads the standard rows with the lame rows below them, which go on with the
        same tokens; `generate` sees the standard half alone, whether it samples, streams or takes
        the likeliest token. The text is that of the lame branch's own cache. One pass of twice the
        width a step against two: the better choice on a GPU when the gate is mostly open.

        Raises:
            ValueError: when generating, prompts narrower than the lame prompts (pad them on the
                left), other rows than theirs, or a forward pass without token ids or
                cache, or with an attention mask that is not two-dimensional.
        """
        pair = _Pair(*self._prompt)
        hooks = (
            self.model.register_forward_pre_hook(pair.join, with_kwargs=True),
            self.model.register_forward_hook(pair.part),
        )
        self._pair = pair
        try:
            yield
        finally:
            self._pair = None
            for hook in hooks:
                hook.remove()


class _Pair:
    """Forward hooks that put the lame rows below the standard ones, and take their logits off."""

    def __init__(self, ids: Tensor, mask: Tensor) -> None:
        self.ids, self.mask = ids, mask
        self.logits = torch.empty(0)
        self.begun = False

    def join(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        flat = mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)
        if ids is None or not flat or kwargs.get("use_cache") is False:
            raise ValueError(
                "in_one_batch needs generate with input_ids, an attention_mask that is None or "
                "two-dimensional, and use_cache=True"
            )
        if not self.begun:
            room = ids.shape[-1] - self.ids.shape[-1]
            if room < 0 or len(ids) != len(self.ids):
                raise ValueError(
                    f"input_ids must have the rows and at least the width of lame_input_ids, "
                    f"{tuple(self.ids.shape)}, but have shape {tuple(ids.shape)}: pad on the left"
                )
            below, self.mask = pad(self.ids, (room, 0)), pad(self.mask, (room, 0))
            self.begun = True
        else:
            below, self.mask = ids, pad(self.mask, (0, ids.shape[-1]), value=1)
        # Where nothing is padded generate leaves the mask out.
        standard = torch.ones_like(self.mask) if mask is None else mask.to(self.mask)
        mask = torch.cat((standard, self.mask))
        # A row reads as it would alone: padding takes no position.
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[-1] :]
        joined = {"input_ids": torch.cat((ids, below)), "attention_mask": mask}
        if kwargs.get("position_ids") is not None:
            joined["position_ids"] = positions
        return args, kwargs | joined

    def part(self, _: Any, _args: Any, output: Any) -> Any:
        rows = len(self.ids)
        self.logits = output.logits[rows:, -1]
        output.logits = output.logits[:rows]
        return output
