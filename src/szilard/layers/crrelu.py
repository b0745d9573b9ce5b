"""CRReLU: ReLU with one trainable, entropy-guided correction, and what puts it into a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from szilard._extras import require

_FAR = 13.0  # 13 exp(-13^2 / 2) = 3e-36: nothing beside 1, yet a normal float32
MONOTONE_EPS = (-1.0, math.exp(1.5) / 2)
"""Between these, the positive branch of CRReLU increases."""


def crrelu(
    x: Float[Tensor, "*shape"], eps: Float[Tensor, "..."] | float
) -> Float[Tensor, "*shape"]:
    """max(0, x) + eps x exp(-x^2 / 2), element by element.

    Only x is kept for the backward pass, which computes the exponential again; both run in float32
    or better whatever the dtype of x. At 0, ReLU's derivative counts as 0.

    Args:
        x: any shape and floating dtype.
        eps: size of the correction; broadcasts to x.

    Returns:
        The activations, in the dtype of x.

    Raises:
        TypeError: x is not floating.
        ValueError: eps is NaN or does not broadcast to x.

    Examples:
        >>> crrelu(torch.tensor([-1.0, 0.0, 1.0]), 0.01)
        tensor([-0.0061,  0.0000,  1.0061])

    Source:
        Sun et al. (2024), "A Method on Searching Better Activation Functions", arXiv 2405.12954.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must have a floating-point dtype, but has {x.dtype}")
    if not isinstance(eps, Tensor):
        if math.isnan(eps):
            raise ValueError("eps must be a number, but is nan")
        eps = torch.tensor(eps, dtype=_wide(x.dtype), device=x.device)
    if not _broadcasts(eps.shape, x.shape):
        raise ValueError(
            f"eps must broadcast to x of shape {tuple(x.shape)}, but has shape {tuple(eps.shape)}"
        )
    return _CRReLU.apply(x, eps)


class _CRReLU(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, eps: Tensor) -> Tensor:
        near, _, bell = _bell(x)
        bump = bell.mul_(near)
        return torch.addcmul(x.relu().to(bump.dtype), bump, eps.to(bump.dtype)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, eps = ctx.saved_tensors
        near, square, bell = _bell(x)
        gradient = gradients[0].to(bell.dtype)
        of_x = of_eps = None
        if ctx.needs_input_grad[0]:
            bend = (1 - square) * bell
            slope = torch.addcmul((x > 0).to(bell.dtype), bend, eps.to(bell.dtype))
            of_x = (gradient * slope).to(x.dtype)
        if ctx.needs_input_grad[1]:
            of_eps = (gradient * (near * bell)).sum_to_size(eps.shape).to(eps.dtype)
        return of_x, of_eps


def _bell(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x, kept where exp(-x^2 / 2) matters so that no product of them is inf * 0; x^2; exp(-x^2 / 2)."""
    near = x.to(_wide(x.dtype)).clamp(-_FAR, _FAR)
    square = near.square()
    return near, square, (-0.5 * square).exp_()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    trailing = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(a in (1, b) for a, b in trailing)


class CRReLU(nn.Module):
    """CRReLU(x) = max(0, x) + eps x exp(-x^2 / 2) with a trainable eps, one an activation module.

    Stands wherever ReLU or GELU stood. For standard normal input a positive eps raises the entropy
    of the output at first and a negative one lowers it (by 0.35 nats a unit of eps); training
    decides.

    Args:
        eps_init: where eps starts; the paper's start is 0.01.
        channels: None for one eps a module; else one for each of so many channels.
        channel_axis: axis of the channels: -1 in transformers, 1 in convolutional networks.
        trainable: False keeps eps where it starts.
        inplace: taken because builders pass it to every activation; the input is never overwritten.

    Raises:
        ValueError: eps_init is not finite, or channels is below 1.

    Examples:
        >>> activation = CRReLU()
        >>> activation(torch.tensor([-1.0, 3.0])).tolist()
        [-0.0060653..., 3.00033...]
        >>> [name for name, _ in activation.named_parameters()]
        ['eps']

    Source:
        Sun et al. (2024), "A Method on Searching Better Activation Functions", arXiv 2405.12954.
    """

    def __init__(
        self,
        eps_init: float = 0.01,
        *,
        channels: int | None = None,
        channel_axis: int = -1,
        trainable: bool = True,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        if not math.isfinite(eps_init):
            raise ValueError(f"eps_init must be finite, but is {eps_init!r}")
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be None or at least 1, but is {channels}")
        shape = () if channels is None else (channels,)
        self.channel_axis = channel_axis
        self.eps = nn.Parameter(torch.full(shape, float(eps_init)), requires_grad=trainable)

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Applies the activation; the dtype of x is kept.

        Raises:
            TypeError: x is not floating.
            ValueError: x does not have as many channels.
        """
        eps: Tensor = self.eps
        if eps.ndim:
            behind = (
                x.ndim - 1 - self.channel_axis if self.channel_axis >= 0 else ~self.channel_axis
            )
            eps = eps.view(-1, *[1] * behind)
        return crrelu(x, eps)

    def extra_repr(self) -> str:
        if self.eps.ndim:
            return f"channels={len(self.eps)}, channel_axis={self.channel_axis}"
        return f"eps={self.eps.item():.4g}"

    @classmethod
    def convert(
        cls, model: nn.Module, kinds: Iterable[type[nn.Module]] | None = None, **options: Any
    ) -> nn.Module:
        """Puts a CRReLU of its own in place of every activation module of `model`.

        Args:
            model: changed in place.
            kinds: as in `replace_activation`.
            **options: arguments of every CRReLU.

        Returns:
            The model.

        Raises:
            ValueError: there is nothing to replace.

        Examples:
            >>> CRReLU.convert(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), eps_init=0.0)[1]
            CRReLU(eps=0)
        """
        return replace_activation(model, kinds, lambda: cls(**options))[0]


def replace_activation(
    model: nn.Module,
    kinds: Iterable[type[nn.Module]] | None = None,
    build: Callable[[], nn.Module] = CRReLU,
) -> tuple[nn.Module, list[str]]:
    """Puts a new activation in place of every activation module of the given kinds.

    A module that stands under several names is replaced under each by one of its own. What a
    `forward` calls as a function (`F.gelu(x)`) is no module: `functional_activations` finds it.

    Args:
        model: changed in place, training mode and device included.
        kinds: classes to replace; None for ReLU, GELU and their variants in transformers.
        build: makes a new activation.

    Returns:
        The model (the new activation if the model was one) and the names replaced.

    Raises:
        ValueError: no module is of these kinds.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 2), nn.GELU())
        >>> replace_activation(model)[1]
        ['1', '3']
    """
    chosen = tuple(_relu_like() if kinds is None else kinds)
    found = [
        (name, module)
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, chosen)
    ]
    if not found:
        raise ValueError(
            f"model has no module of the kinds {[kind.__name__ for kind in chosen]}; what its forward "
            "calls as a function can't be replaced"
        )
    weight = next(model.parameters(), None)
    for name, module in found:
        new = build().train(module.training)
        if weight is not None:
            new = new.to(weight.device)
        if not name:
            return new, [name]
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
    return model, [name for name, _ in found]


def _relu_like() -> set[type[nn.Module]]:
    kinds: set[type[nn.Module]] = {nn.ReLU, nn.GELU}
    try:
        registry = require("transformers.activations", extra="language").ACT2CLS
    except ImportError:
        return kinds
    entries = [entry for name, entry in registry.items() if name == "relu" or "gelu" in name]
    return kinds | {entry[0] if isinstance(entry, tuple) else entry for entry in entries}


_FUNCTIONS = {
    getattr(home, name): name
    for home in (nn.functional, torch, torch.Tensor)
    for name in ("relu", "relu_", "gelu", "silu", "mish", "elu", "celu", "leaky_relu", "prelu")
    if hasattr(home, name)
}


def functional_activations(model: nn.Module, *inputs: Any, **named: Any) -> list[tuple[str, str]]:
    """Activations that the model's own modules call as functions, so that no module stands for them.

    Args:
        model: run once, without gradients.
        *inputs: its arguments.
        **named: its keyword arguments.

    Returns:
        (name of the module whose forward makes the call, function), each once, in the order of the
        calls. What modules of `torch.nn` and the kinds of `replace_activation` call is theirs.

    Examples:
        >>> class Block(nn.Module):
        ...     def forward(self, x):
        ...         return nn.functional.gelu(x)
        >>> functional_activations(nn.Sequential(Block(), nn.ReLU()), torch.zeros(1))
        [('0', 'gelu')]
    """
    running: list[tuple[str, nn.Module]] = []
    found: dict[tuple[str, str], None] = {}
    known: tuple[type[nn.Module], ...] = (CRReLU, *_relu_like())

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func in _FUNCTIONS and running:
                name, module = running[-1]
                if not (
                    isinstance(module, known) or type(module).__module__.startswith("torch.nn")
                ):
                    found[name, _FUNCTIONS[func]] = None
            return func(*args, **(kwargs or {}))

    handles = []
    try:
        for name, module in model.named_modules():
            enter = lambda module, _, name=name: running.append((name, module))  # noqa: E731
            handles.append(module.register_forward_pre_hook(enter))
            leave = lambda *_: (running.pop(), None)[1]  # noqa: E731
            handles.append(module.register_forward_hook(leave, always_call=True))
        with torch.no_grad(), Watch():
            model(*inputs, **named)
    finally:
        for handle in handles:
            handle.remove()
    return list(found)


def register_activations() -> None:
    """Lets transformers build models with `"crrelu"` as their activation, one eps an MLP.

    Afterwards `hidden_act="crrelu"` (`activation_function` in GPT-2) works in any configuration, and
    `from_pretrained` restores what was learned. Weights that were trained with another activation hold
    no eps, and transformers leaves what a checkpoint lacks unset: load them as they are, then
    `CRReLU.convert(model)` and name "crrelu" in `model.config`.

    Raises:
        ImportError: transformers is not installed.

    Examples:
        >>> register_activations()
        >>> from transformers.activations import ACT2FN
        >>> ACT2FN["crrelu"]
        CRReLU(eps=0.01)
    """
    # The class, not an instance: transformers makes a new one at every look-up.
    require("transformers.activations", extra="language").ACT2FN["crrelu"] = CRReLU


def learned_eps(model: nn.Module) -> dict[str, Tensor]:
    """The eps of every CRReLU in `model` by the module's name, detached.

    Examples:
        >>> learned_eps(nn.Sequential(nn.Linear(2, 2), CRReLU(0.5)))
        {'1': tensor(0.5000)}
    """
    return {
        name: module.eps.detach()
        for name, module in model.named_modules()
        if isinstance(module, CRReLU)
    }


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimiser that decays every trainable parameter but the eps of CRReLU.

    Args:
        model: its parameters are taken, each once.
        weight_decay: of all parameters other than eps, which decay would pull to 0.

    Returns:
        Two groups: decayed, and not.

    Raises:
        ValueError: weight_decay is negative or NaN.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), CRReLU())
        >>> [len(group["params"]) for group in parameter_groups(model, weight_decay=0.1)]
        [2, 1]
    """
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be at least 0, but is {weight_decay!r}")
    spared = {id(module.eps) for module in model.modules() if isinstance(module, CRReLU)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in spared], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in spared], "weight_decay": 0.0},
    ]
