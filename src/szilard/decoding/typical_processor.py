"""Locally typical sampling as a logits processor of transformers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from szilard._extras import require
from szilard.decoding.typical import (
    Ties,
    check_mass,
    check_min_tokens_to_keep,
    check_ties,
    typical_mask,
)

if TYPE_CHECKING:
    from transformers import LogitsProcessor
else:
    LogitsProcessor = require("transformers", extra="language").LogitsProcessor


class TypicalLogitsProcessor(LogitsProcessor):
    """Removes all but the locally typical tokens at each step of `generate`.

    Which distribution the entropy belongs to:

    - `entropy_from="input"`: that of the scores the processor is handed. `generate` runs its
      `logits_processor` list after penalties and bans but before temperature, top-k and top-p, so
      the entropy is that of the untempered model. To measure after the temperature instead, put a
      `TemperatureLogitsWarper` before this processor in the list and leave `temperature` at 1.
      (`generate(typical_p=...)` comes last, after `temperature` and `top_k`, whose default is 50
      tokens: set `top_k=0`.)
    - `entropy_from="raw"`: that of the logits as the model put them out, before every penalty, ban
      or temperature that stands in front. A logits processor never sees those, so generation runs
      inside `with processor.reading(model):`, which reads them from the model's forward pass. Raw
      surprisals and raw entropy order the tokens; the mass is counted under the scores that are
      sampled, so the kept set always holds `mass` of what can still be drawn.

    Args:
        mass: tau, the probability to collect, in (0, 1).
        min_tokens_to_keep: tokens kept whatever the mass; beam sampling wants one more than there
            are end-of-sequence tokens.
        ties: "all" or "minimal", see `typical_mask`.
        filter_value: score of a removed token.
        entropy_from: "input" or "raw".

    Raises:
        ValueError: an argument out of its range.

    Examples:
        >>> processor = TypicalLogitsProcessor(mass=0.2)
        >>> scores = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
        >>> processor(torch.tensor([[0]]), scores).exp()
        tensor([[0.0000, 0.2500, 0.0000, 0.0000]])

    Source: Meister, Pimentel, Wiher, Cotterell, Locally Typical Sampling (TACL 2023; arXiv
        2202.00666), section 5.
    """

    def __init__(
        self,
        mass: float = 0.2,
        min_tokens_to_keep: int = 1,
        ties: Ties = "all",
        filter_value: float = -float("inf"),
        entropy_from: Literal["input", "raw"] = "input",
    ) -> None:
        check_mass(mass)
        check_min_tokens_to_keep(min_tokens_to_keep)
        check_ties(ties)
        if entropy_from not in ("input", "raw"):
            raise ValueError(f"entropy_from must be 'input' or 'raw', but is {entropy_from!r}")
        self.mass = mass
        self.min_tokens_to_keep = min_tokens_to_keep
        self.ties: Ties = ties
        self.filter_value = filter_value
        self.entropy_from = entropy_from
        self._raw: Tensor | None = None

    def __call__(
        self, input_ids: Integer[Tensor, "batch tokens"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """The scores with every token outside the typical set at `filter_value`.

        Args:
            input_ids: the text so far; not used.
            scores: log-scores of the next token; left as they are.

        Returns:
            A new tensor of the dtype and device of `scores`.

        Raises:
            ValueError: scores that define no distribution, more tokens to keep than there are, or
                raw logits asked for and not of this step.
        """
        logits, sampled = (scores, None) if self.entropy_from == "input" else (self._raw, scores)
        if logits is None or logits.shape != scores.shape:
            seen = "none were read" if logits is None else f"those read are {tuple(logits.shape)}"
            raise ValueError(
                f"entropy_from='raw' needs the model's logits for scores {tuple(scores.shape)}, but "
                f"{seen}: call generate inside `with processor.reading(model):`"
            )
        kept = typical_mask(
            logits,
            self.mass,
            self.ties,
            min_tokens_to_keep=self.min_tokens_to_keep,
            sampled=sampled,
        )
        return torch.where(kept, scores, self.filter_value)

    @contextmanager
    def reading(self, model: torch.nn.Module) -> Iterator[None]:
        """Reads the logits of `model`'s forward passes for `entropy_from="raw"`, while it is open.

        Args:
            model: the model whose `generate` is called inside the `with` block.
        """

        def remember(_module: torch.nn.Module, _args: Any, output: Any) -> None:
            self._raw = output.logits[:, -1].detach()

        handle = model.register_forward_hook(remember)
        try:
            yield
        finally:
            handle.remove()
            self._raw = None
