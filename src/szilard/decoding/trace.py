"""What happened at each token of a generated text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from szilard._extras import require
from szilard.measures.tokens import token_statistics

if TYPE_CHECKING:
    from transformers import LogitsProcessor
else:
    LogitsProcessor = require("transformers", extra="language").LogitsProcessor


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """One text, token by token, and what the decoding rule did there.

    Attributes:
        token_ids: the generated tokens.
        entropy: nats, of the distribution the model put out before each of them.
        events: what the rule did, by name, one entry a token.

    Raises:
        ValueError: columns that are not as long as the text.
    """

    token_ids: Int[Tensor, "tokens"]
    entropy: Float[Tensor, "tokens"]
    events: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, column in {"entropy": self.entropy, **self.events}.items():
            if len(column) != len(self.token_ids):
                raise ValueError(
                    f"{name} must have an entry for each of the {len(self.token_ids)} tokens, "
                    f"but has {len(column)}"
                )


class EntropyRecorder(LogitsProcessor):
    """Records the next-token entropy at each step of `generate` and changes nothing.

    `generate` hands its `logits_processor` list the model's logits after penalties and bans and
    before temperature and truncation: first in that list, the recorder sees what the model thinks,
    whatever the rules behind it do. It holds one number a row and step, never the logits. One
    recorder serves one call of `generate`.

    Attributes:
        entropy: nats, (batch, steps).

    Examples:
        >>> recorder = EntropyRecorder()
        >>> scores = recorder(torch.tensor([[1, 2]]), torch.zeros(1, 8))
        >>> recorder.entropy
        tensor([[2.0794]])

    Source: Shannon (1948), section 6.
    """

    def __init__(self) -> None:
        self._steps: list[Tensor] = []

    @property
    def entropy(self) -> Float[Tensor, "batch steps"]:
        """What was recorded so far; no rows before the first step."""
        return torch.stack(self._steps, -1) if self._steps else torch.zeros(0, 0)

    def __call__(
        self, input_ids: Int[Tensor, "batch read"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Takes the entropy of each row and hands the scores on."""
        self._steps.append(token_statistics(scores.detach()).entropy)
        return scores

    def trace(
        self, generated: Int[Tensor, "batch tokens"], row: int = 0, **events: Sequence[Any]
    ) -> TokenTrace:
        """One row's text with its entropies.

        Args:
            generated: what `generate` returned, without the prompt.
            row: which text of the batch.
            **events: further columns, see `TokenTrace`.

        Raises:
            ValueError: as many tokens as steps recorded are needed.
        """
        steps = len(self._steps)
        if generated.shape[-1] != steps:
            raise ValueError(
                f"generated must hold the {steps} tokens that were recorded, "
                f"but holds {generated.shape[-1]}"
            )
        return TokenTrace(generated[row].cpu(), self.entropy[row].cpu(), events)
