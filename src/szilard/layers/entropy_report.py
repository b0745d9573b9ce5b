"""Attention entropies that a converted model hands out while it runs, and what they say of its heads.

Source: Jha, Reagen, Entropy-Guided Attention for Private LLMs (PPAI workshop at AAAI 2025; arXiv
2501.03489).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from szilard.measures import attention_entropy_from_qk


class EntropyTap:
    """Entropies of each layer, with their gradients, from one forward of a model that hands them out.

    Args:
        training_only: look at modules in training mode alone.
    """

    def __init__(self, training_only: bool = False) -> None:
        self.training_only = training_only
        self.layers: dict[int, Tensor] = {}
        self.padding: Tensor | None = None

    def take(self, layer: int, entropy: Tensor, padding: Tensor | None) -> None:
        """Keeps what a layer's attention found.

        Args:
            layer: its number.
            entropy: nats, (batch, heads, queries).
            padding: True at keys that count, (batch, keys); None where all do.
        """
        self.layers[layer] = entropy
        self.padding = padding

    def clear(self) -> None:
        """Forgets."""
        self.layers.clear()
        self.padding = None


@torch.compiler.disable
def tap_entropies(
    module: Any, query: Tensor, key: Tensor, mask: Any, scaling: float | None
) -> None:
    """Gives the taps of an attention module the entropies of a call; without a tap that looks, nothing.

    Args:
        module: has `taps` and `layer_idx`.
        query: (batch, heads, queries, width), temperature included.
        key: (batch, heads, keys, width).
        mask: None for causal, or (batch, 1, queries, keys), boolean or additive.
        scaling: factor on the scores; None for 1 / sqrt(width).

    Raises:
        ValueError: the mask is not that of causal attention with padding.
    """
    taps = [tap for tap in module.taps if module.training or not tap.training_only]
    if not taps:
        return
    padding = _padding(mask, query.shape[-2], key.shape[-2])
    with torch.autocast(query.device.type, enabled=False):
        entropy = attention_entropy_from_qk(
            query, key, causal=True, key_padding_mask=padding, scale=scaling
        )
    for tap in taps:
        tap.take(module.layer_idx, entropy, padding)


class AttentionEntropyReport:
    """How near each head of a model is to collapse or to overload while the context is open.

    A head's ceiling is the mean over queries of the logarithm of the number of keys they see. Above 0.9
    of it a head is overloaded: it averages over everything. Below 0.1 it has collapsed. Padded queries
    do not count.

    It is also what `MeasureLogger` calls and opens: `MeasureLogger(report, recorder=report).callback()`
    logs the shares while a `transformers.Trainer` trains.

    Args:
        model: from `convert_softmax_only`.

    Raises:
        ValueError: the model was not converted: its attention does not hand out entropies.

    Examples:
        >>> from szilard.layers import convert_softmax_only
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=11, n_positions=16)
        >>> model = convert_softmax_only(GPT2LMHeadModel(config)).eval()
        >>> with AttentionEntropyReport(model) as report:
        ...     _ = model(torch.arange(10)[None])
        >>> report.ceiling.shape, report()["overload"]      # new heads average over everything
        (torch.Size([2, 2]), 1.0)

    Source: Jha and Reagen 2025 (arXiv 2501.03489), entropic overload and entropy collapse.
    """

    def __init__(self, model: nn.Module) -> None:
        self._attentions = attentions(model)
        self._sums: dict[int, Tensor] = {}
        self._open = False

    def __enter__(self) -> AttentionEntropyReport:
        if self._open:
            raise RuntimeError("this report is open already")
        self._open = True
        for attention in self._attentions:
            attention.taps.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open = False
        for attention in self._attentions:
            attention.taps[:] = [tap for tap in attention.taps if tap is not self]

    training_only = False

    @torch.no_grad()
    def take(self, layer: int, entropy: Tensor, padding: Tensor | None) -> None:
        """Adds a layer's entropies of one forward; see `EntropyTap`."""
        batch, heads, queries = entropy.shape
        keys = queries if padding is None else padding.shape[-1]
        if padding is None:
            padding = torch.ones(batch, keys, dtype=torch.bool, device=entropy.device)
        counted = padding[:, None, keys - queries :]
        seen = padding.cumsum(-1)[:, None, keys - queries :].clamp(min=1).double()
        context = torch.full_like(seen, keys)
        quantities = entropy.double(), context.log(), seen.log()
        sums = [(q * counted).sum((0, 2)).expand(heads) for q in quantities]
        self._sums[layer] = self._sums.get(layer, 0) + torch.stack(sums)

    def clear(self) -> None:
        """Forgets what was recorded."""
        self._sums.clear()

    @property
    def fill(self) -> Float[Tensor, "layers heads"]:
        """Mean entropy over the logarithm of the context's length.

        Raises:
            ValueError: nothing was recorded.
        """
        sums = self._stacked()
        return (sums[:, 0] / sums[:, 1]).float()

    @property
    def ceiling(self) -> Float[Tensor, "layers heads"]:
        """Mean entropy over the head's ceiling.

        Raises:
            ValueError: nothing was recorded.
        """
        sums = self._stacked()
        return (sums[:, 0] / sums[:, 2]).float()

    def __call__(self, step: int = 0) -> Mapping[str, float]:
        """Shares of all heads: in quarters of `fill`, and overloaded and collapsed ones by `ceiling`.

        Args:
            step: not used.

        Raises:
            ValueError: nothing was recorded.
        """
        fill, ceiling = self.fill, self.ceiling
        quarter = (4 * fill).long().clamp(0, 3)
        figures = {
            f"heads/{i}/4 to {i + 1}/4": float((quarter == i).float().mean()) for i in range(4)
        }
        figures["overload"] = float((ceiling > 0.9).float().mean())
        figures["collapse"] = float((ceiling < 0.1).float().mean())
        return figures

    def _stacked(self) -> Tensor:
        if not self._sums:
            raise ValueError(
                "nothing was recorded: the model has not run while the report was open"
            )
        return torch.stack([self._sums[layer] for layer in sorted(self._sums)])


def attentions(model: nn.Module) -> list[Any]:
    """The attention modules of a converted model, which have `taps`, in the order of layers.

    Raises:
        ValueError: there is none.
    """
    found = [module for module in model.modules() if hasattr(module, "taps")]
    if not found:
        raise ValueError(
            "model: its attention does not hand out entropies; convert it with convert_softmax_only"
        )
    return found


def _padding(mask: Any, queries: int, keys: int) -> Tensor | None:
    """Which keys count, (batch, keys), from the mask of causal attention."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError("attention mask of another kind: entropies need a causal one with padding")
    visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    visible = visible[:, 0, :, :keys]
    padding = visible.any(1)
    causal = padding[:, None].expand(-1, queries, -1).tril(keys - queries)
    counted = padding[:, keys - queries :, None]
    if bool(((visible != causal) & counted).any()):
        raise ValueError(
            "attention mask that is not causal with padding (packed sequences, a window): entropies of "
            "it are not supported"
        )
    return padding
