"""Attention entropy of every head while a model runs or trains."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from szilard.measures._checks import log_base
from szilard.measures.attention import attention_entropy, attention_entropy_from_qk
from szilard.representations.training import MeasureLogger

if TYPE_CHECKING:
    from transformers import TrainerCallback


_EAGER = "eager_attention_forward"


class CollapseWarning(UserWarning):
    """Some head of some layer attends to next to one key, and has done so for a while."""


@dataclass(frozen=True, slots=True)
class HeadEntropy:
    """One layer's attention entropy, averaged over what was recorded.

    Attributes:
        entropy: mean over the counted queries, a value a head, in the unit of the recorder.
        ratio: mean of the entropy over the logarithm of the number of keys that the query sees, in
            [0, 1]; queries that see one key are left out. NaN where no query saw two.
    """

    entropy: Float[Tensor, "heads"]
    ratio: Float[Tensor, "heads"]


class AttentionEntropyRecorder:
    """Averages the attention entropy of each head while the context is open, and changes nothing.

    Queries and keys are looked at where they meet, block by block, so that no map is held longer than
    it takes to reduce it, and dropout does not show. Layers are the `nn.MultiheadAttention` modules
    of any model and the attention modules of transformers' models, whichever of their implementations
    runs. An attention function registered with transformers that changes queries or keys before it
    calls another one names that in an attribute `scored_by`; they are then looked at there. Padded
    queries and masked keys do not count. Everything is put back on leaving the context, also when the
    model raises.

    Args:
        model: any module with such layers.
        base: base of the logarithms; None for nats, 2 for bits.

    Raises:
        ValueError: the model has no such layer; a base out of range. While running: attention that
            scores other than by scaled products and a mask (position biases, soft caps, sinks).

    Examples:
        >>> layer = nn.MultiheadAttention(8, 2, batch_first=True)
        >>> x = torch.zeros(1, 4, 8)
        >>> with AttentionEntropyRecorder(nn.Sequential(layer), base=2) as recorder:
        ...     _ = layer(x, x, x)
        >>> recorder.layers["0"].entropy
        tensor([2., 2.])

    Source: Zhai et al. 2023 (arXiv 2303.06296), section 3.
    """

    def __init__(self, model: nn.Module, *, base: float | None = None) -> None:
        self._unit = log_base(base)
        self._torchs = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.MultiheadAttention)
        }
        self._transformers = {
            module: name for name, module in model.named_modules() if _is_transformers(module)
        }
        if not self._torchs and not self._transformers:
            raise ValueError(
                "model has no attention that can be recorded: no nn.MultiheadAttention and no "
                "attention module of a transformers model"
            )
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._open: ExitStack | None = None

    def __enter__(self) -> AttentionEntropyRecorder:
        if self._open is not None:
            raise RuntimeError("this recorder is open already")
        self._open = ExitStack()
        for name, module in self._torchs.items():
            handle = module.register_forward_pre_hook(self._from_torch(name), with_kwargs=True)
            self._open.callback(handle.remove)
        if self._transformers:
            self._open.enter_context(_wrapped(self._transformers, self._from_transformers))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    @property
    def layers(self) -> dict[str, HeadEntropy]:
        """What was recorded since the last `clear`, by the layer's name."""
        found = {}
        for name, (sums, counts) in self._sums.items():
            entropy, ratio = (sums / counts).float()
            found[name] = HeadEntropy(entropy * self._unit, ratio)
        return found

    @property
    def lowest(self) -> float:
        """The least mean entropy of any head of any layer: the early warning of a collapse.

        Raises:
            ValueError: nothing was recorded.
        """
        if not self._sums:
            raise ValueError("nothing was recorded: no layer has run while the recorder was open")
        return min(float(layer.entropy.min()) for layer in self.layers.values())

    def clear(self) -> None:
        """Forgets what was recorded."""
        self._sums.clear()

    def callback(
        self, *, every: int = 1, threshold: float = 0.1, patience: int = 3
    ) -> TrainerCallback:
        """A callback for `transformers.Trainer` and the trainers built on it.

        Every `every`-th optimiser step is recorded as it trains, and joins the log: each layer's mean
        and least head, and the least of all as `attention_entropy/min`.

        Args:
            every: steps from one recording to the next.
            threshold: a least entropy below this, in the recorder's unit, is low.
            patience: after this many low ones in a row there is a `CollapseWarning`.

        Raises:
            ImportError: transformers is not installed.
            ValueError: every or patience below 1.
        """
        if patience < 1:
            raise ValueError(f"patience must be at least 1, but is {patience}")
        low = 0

        def measure(step: int) -> dict[str, float]:
            nonlocal low
            figures = {"attention_entropy/min": self.lowest}
            for name, layer in self.layers.items():
                figures[f"attention_entropy/{name}/mean"] = float(layer.entropy.mean())
                figures[f"attention_entropy/{name}/min"] = float(layer.entropy.min())
            low = low + 1 if self.lowest < threshold else 0
            if low == patience:
                warnings.warn(
                    f"attention entropy has been below {threshold:g} in some head for {patience} "
                    f"recordings in a row: {self.lowest:.3g} at step {step}",
                    CollapseWarning,
                    stacklevel=2,
                )
            return figures

        return MeasureLogger(measure, every=every, recorder=self).callback()

    @torch.no_grad()
    def _add(
        self,
        name: str,
        query: Tensor,
        key: Tensor,
        scale: float | None,
        causal: bool,
        visible: Tensor | None,
    ) -> None:
        """Adds a call: query (batch, heads, queries, width), key, visible (batch, 1 or heads, queries, keys)."""
        query, key = query.detach(), key.detach()
        keys, queries = key.shape[-2], query.shape[-2]
        if visible is None:
            entropy = attention_entropy_from_qk(query, key, causal=causal, scale=scale)
            ends = torch.full((queries,), keys, device=query.device)
            if causal:
                ends = (ends - torch.arange(queries - 1, -1, -1, device=query.device)).clamp(min=0)
            seen = ends.expand(len(query), 1, queries)
            counted = seen > 0
        else:
            visible = visible.expand(len(query), -1, queries, keys)
            entropy = _masked_entropy(query, key, scale, visible)
            seen = visible.sum(-1)
            counted = seen > 0
            if keys >= queries:
                # A query's own key is masked where the query is padding.
                counted = counted & visible.diagonal(keys - queries, -2, -1)
        ratio = torch.where(seen > 1, entropy / seen.clamp(min=2).log(), 0)
        heads = entropy.shape[1]
        counts = torch.stack([counted, counted & (seen > 1)]).expand(2, -1, heads, -1)
        sums = torch.stack([entropy, ratio]).double() * counts
        totals = sums.sum((1, 3)), counts.sum((1, 3))
        before = self._sums.get(name)
        new = totals if before is None else (before[0] + totals[0], before[1] + totals[1])
        self._sums[name] = new

    def _from_torch(self, name: str) -> Callable[[nn.Module, tuple, dict], None]:
        def observe(module: nn.Module, args: tuple, kwargs: dict) -> None:
            given = dict(zip(("query", "key", "value", "key_padding_mask"), args, strict=False))
            given |= kwargs
            assert isinstance(module, nn.MultiheadAttention)
            query, key, mask = _projected(module, given)
            self._add(name, query, key, None, False, mask)

        return observe

    def _from_transformers(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, options: dict[str, Any]
    ) -> None:
        name = self._transformers[module]
        unknown = [k for k in ("position_bias", "softcap", "s_aux") if options.get(k) is not None]
        if unknown:
            raise ValueError(f"model: {name} scores with {unknown[0]}, which cannot be recorded")
        causal = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        causal = bool(causal) and query.shape[-2] > 1
        scale = options.get("scaling")
        if mask is None:
            self._add(name, query, key, scale, causal, None)
            return
        if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
            raise ValueError(f"model: {name} has a mask of another kind, which cannot be recorded")
        if mask.ndim == 2:  # of the keys alone, as for flash attention
            visible = mask.bool()[:, None, None, :].expand(-1, -1, query.shape[-2], -1)
            if causal:
                visible = visible.tril(key.shape[-2] - query.shape[-2])
        else:
            visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        self._add(name, query, key, scale, False, visible[..., : key.shape[-2]])


def _masked_entropy(query: Tensor, key: Tensor, scale: float | None, visible: Tensor) -> Tensor:
    """Entropies under any mask, one head's map at a time."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    groups = query.shape[1] // key.shape[1]
    heads = []
    for head in range(query.shape[1]):
        wide = torch.promote_types(query.dtype, torch.float32)
        scores = (query[:, head].to(wide) @ key[:, head // groups].to(wide).mT) * scale
        seen = visible[:, head if visible.shape[1] > 1 else 0]
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        heads.append(attention_entropy(weights[:, None], seen[:, None])[:, 0])
    return torch.stack(heads, 1)


def _projected(
    module: nn.MultiheadAttention, given: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Queries and keys of a call, (batch, heads, length, width), and which keys each query sees."""
    if module.bias_k is not None or module.add_zero_attn:
        raise ValueError("model: nn.MultiheadAttention with add_bias_kv or add_zero_attn")
    width = module.embed_dim
    if module.in_proj_weight is None:
        weights = module.q_proj_weight, module.k_proj_weight
    else:
        weights = module.in_proj_weight[:width], module.in_proj_weight[width : 2 * width]
    biases = (None, None) if module.in_proj_bias is None else module.in_proj_bias.chunk(3)[:2]
    projected = []
    for x, weight, bias in zip((given["query"], given["key"]), weights, biases, strict=True):
        out = nn.functional.linear(x, weight, bias)
        if out.ndim == 2:
            out = out[None]
        elif not module.batch_first:
            out = out.transpose(0, 1)
        projected.append(out.unflatten(-1, (module.num_heads, -1)).transpose(1, 2))
    query, key = projected
    visible = None
    padding, mask = given.get("key_padding_mask"), given.get("attn_mask")
    if mask is not None:
        seen = ~mask if mask.dtype == torch.bool else mask > -torch.inf
        if mask.is_floating_point() and bool((mask[seen] != 0).any()):
            raise ValueError("model: attn_mask adds to scores, which cannot be recorded")
        visible = seen.view(-1, module.num_heads, *seen.shape[-2:]) if mask.ndim == 3 else seen
        visible = (
            visible.expand(len(query), -1, -1, -1) if visible.ndim == 4 else visible[None, None]
        )
    if padding is not None:
        keep = ~padding if padding.dtype == torch.bool else padding > -torch.inf
        keep = keep.view(len(query), 1, 1, -1)
        visible = keep.expand(-1, -1, query.shape[-2], -1) if visible is None else visible & keep
    return query, key, visible


def _is_transformers(module: nn.Module) -> bool:
    """Whether the module calls an attention function of transformers."""
    home = sys.modules.get(type(module).__module__)
    return (
        type(module).__name__.endswith("Attention")
        and hasattr(module, "config")
        and hasattr(home, _EAGER)
    )


@contextmanager
def _wrapped(modules: dict[nn.Module, str], observe: Callable[..., None]) -> Iterator[None]:
    """Has `observe` look at queries and keys on their way into transformers' attention functions."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def attend(
            module: nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            mask: Any,
            *args: Any,
            **kw: Any,
        ) -> Any:
            if module in modules:
                observe(module, query, key, mask, kw)
            return function(module, query, key, value, mask, *args, **kw)

        return attend

    with ExitStack() as stack:
        named = {m.config._attn_implementation for m in modules} - {"eager"}  # type: ignore[union-attr]
        for name in {getattr(ALL_ATTENTION_FUNCTIONS[name], "scored_by", name) for name in named}:
            function = ALL_ATTENTION_FUNCTIONS[name]
            ALL_ATTENTION_FUNCTIONS.register(name, wrap(function))
            stack.callback(ALL_ATTENTION_FUNCTIONS.register, name, function)
        # The eager one is a function of each model's own file, looked up there at every call.
        for home in {sys.modules[type(module).__module__] for module in modules}:
            function = vars(home)[_EAGER]
            setattr(home, _EAGER, wrap(function))
            stack.callback(setattr, home, _EAGER, function)
        yield
