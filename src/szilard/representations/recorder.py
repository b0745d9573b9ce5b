"""Activations of any module's layers, collected by forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Reduce = Callable[[Tensor], Tensor]
Fold = Callable[[Any, Tensor], Any]
"""`fold(state, batch)` takes a batch into a running state, which is None before the first."""


class ActivationRecorder:
    """Records what the named layers return while the context is open.

    The hooks are removed on leaving the context, also when the model raises. Memory is bounded by what
    `reduce` returns for each batch: it runs inside the forward pass, before anything is kept. With
    `fold` no batch is kept, only a running state of each layer, whatever number of batches run.

    Args:
        model: any module.
        layers: a dotted name as in `model.named_modules()` ("" is the model itself), or several.
        reduce: maps a layer's output for a batch to what is kept, one row an example; by default the
            output itself with all axes but the first flattened.
        fold: takes what `reduce` returned into a layer's running state, and returns the new state; the
            state is None before the first batch.
        device: where the kept tensors go; None leaves them where they are.

    Raises:
        ValueError: the model has no layer of that name, or no layer was named.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with ActivationRecorder(model, "1") as recorder:
        ...     for batch in torch.zeros(2, 5, 4):
        ...         _ = model(batch)
        >>> recorder["1"].shape
        torch.Size([10, 3])

        How often each unit was on, over any number of batches:

        >>> active = ActivationRecorder(
        ...     model, "1", reduce=lambda h: (h > 0).sum(0), fold=lambda s, n: n if s is None else s + n
        ... )
        >>> with active:
        ...     for batch in torch.zeros(2, 5, 4):
        ...         _ = model(batch)
        >>> active["1"].shape
        torch.Size([3])
    """

    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str],
        *,
        reduce: Reduce = lambda output: output.flatten(1),
        fold: Fold | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        names = [layers] if isinstance(layers, str) else list(layers)
        if not names:
            raise ValueError("layers must name at least one layer, but is empty")
        modules = dict(model.named_modules())
        for name in names:
            if name not in modules:
                near = get_close_matches(name, modules, n=3, cutoff=0.4) or [*modules][1:4]
                raise ValueError(f"layers: the model has no layer {name!r}; close: {near}")
        self._modules = {name: modules[name] for name in names}
        self._reduce = reduce
        self._device = device
        self._fold = fold
        self._kept: dict[str, list[Tensor]] = {name: [] for name in names}
        self._states: dict[str, Any] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> ActivationRecorder:
        if self._handles:
            raise RuntimeError("this recorder is open already")
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def __getitem__(self, layer: str) -> Any:
        """All that was kept of `layer`, batches concatenated along the first axis; or its folded state.

        Raises:
            KeyError: the layer is not recorded, or was not run since the last `clear`.
        """
        if not self._kept[layer] and layer not in self._states:
            raise KeyError(f"layer {layer!r} has not run while it was recorded")
        return torch.cat(self._kept[layer]) if self._fold is None else self._states[layer]

    def clear(self) -> None:
        """Forgets everything kept so far."""
        for kept in self._kept.values():
            kept.clear()
        self._states.clear()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            # The clone survives an in-place operation that follows the layer.
            kept = self._reduce(_first_tensor(output).detach()).clone()
            kept = kept if self._device is None else kept.to(self._device)
            if self._fold is None:
                self._kept[name].append(kept)
            else:
                self._states[name] = self._fold(self._states.get(name), kept)

        return keep


def _first_tensor(output: Any) -> Tensor:
    """The tensor itself, or the first in a tuple or a transformers output (the hidden states)."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output
    for value in values if isinstance(values, Sequence) else list(values):
        if isinstance(value, Tensor):
            return value
    raise TypeError(f"a recorded layer must return a tensor, but returned {type(output)}")
