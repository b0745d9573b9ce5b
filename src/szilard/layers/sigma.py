r"""Sigma-reparametrisation: weights whose spectral norm is one learned number.

Every linear map is used as

    W_hat = gamma / sigma(W) W

with sigma(W) the largest singular value of W and gamma a parameter, so that no update can make the
logits of attention large faster than gamma grows. sigma(W) = u^T W v is followed by one power
iteration a training step, u = W v / |W v| and v = W^T u / |W^T u|, which are constants to the
gradient, whereas W is not:

    dL/dW = gamma / sigma (G - <G, W> / sigma u v^T),   dL/dgamma = <G, W> / sigma,   G = dL/dW_hat.

Source: Zhai, Likhomanenko, Littwin, Busbridge, Ramapuram, Zhang, Gu, Susskind, Stabilizing Transformer
Training by Preventing Attention Entropy Collapse (ICML 2023; arXiv 2303.06296), section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any, Literal, TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

GammaInit = Literal["one", "spectral"]
Model = TypeVar("Model", bound=nn.Module)

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, nn.RMSNorm)
_STD = 0.02


class SigmaReparam(nn.Module):
    """The parametrisation of one weight, for `torch.nn.utils.parametrize`.

    In training each use of the weight takes the power iteration on from where it stood; in evaluation
    it starts from there and forgets, so that outputs do not depend on what was run before. A pass that
    is computed again for its gradient (activation checkpointing) must see the same sigma: with
    `advance=False` only `update_sigma` takes the iteration on, once after each optimiser step.

    Args:
        weight: the weight, (out, in, ...); all axes but the first form the input.
        gamma_init: gamma is 1 ("one"), or sigma(W), which leaves the weight as it is ("spectral").
        power_iters: power iterations a use, 1 or more.
        parts: maps that are stacked along the output, each with a sigma and a gamma of its own.
        transposed: the weight is (in, out), as in the `Conv1D` of transformers.
        advance: whether uses in training take the iteration on.
        stats_only: follow sigma, but use the weight as it is.

    Attributes:
        sigma_scale: gamma, (parts,). Weight decay has no business with it.
        right: v, (parts, in).

    Raises:
        TypeError: a weight of whole numbers.
        ValueError: a weight with fewer than two axes, an output that does not divide into the parts,
            entries that are not finite, a part that is zero; another argument out of its range.

    Examples:
        >>> layer = nn.Linear(4, 3)
        >>> _ = parametrize.register_parametrization(layer, "weight", SigmaReparam(layer.weight))
        >>> round(torch.linalg.matrix_norm(layer.weight, 2).item(), 5)
        1.0

    Source: Zhai et al. 2023 (arXiv 2303.06296), section 3.2 and algorithm 1.
    """

    def __init__(
        self,
        weight: Tensor,
        gamma_init: GammaInit = "one",
        power_iters: int = 1,
        *,
        parts: int = 1,
        transposed: bool = False,
        advance: bool = True,
        stats_only: bool = False,
    ) -> None:
        super().__init__()
        _check_options(gamma_init, power_iters, parts)
        _check_weight(weight, parts, transposed, "weight")
        self.power_iters = power_iters
        self.parts = parts
        self.transposed = transposed
        self.advance = advance
        self.stats_only = stats_only
        self.right: Tensor
        with torch.no_grad():
            matrices = self._matrices(weight)
            sigma, right = _top_singular(matrices)
        self.register_buffer("right", right)
        start = torch.ones_like(sigma) if gamma_init == "one" else sigma
        self.sigma_scale = nn.Parameter(start, requires_grad=not stats_only)

    def forward(self, weight: Tensor) -> Tensor:
        """W_hat, with the shape and dtype of the weight."""
        with torch.autocast(weight.device.type, enabled=False):
            matrices = self._matrices(weight)
            sigma, right = self._sigma(matrices)
            if self.training and self.advance:
                with torch.no_grad():
                    self.right.copy_(right)
            if self.stats_only:
                return weight
            scaled = matrices * (self.sigma_scale.to(sigma) / sigma)[:, None, None]
        return self._shaped(scaled, weight)

    def sigma(self, weight: Tensor) -> Float[Tensor, "parts"]:
        """The estimate of the spectral norm of each part; never above it."""
        return self._sigma(self._matrices(weight))[0]

    @torch.no_grad()
    def update(self, weight: Tensor, *, exact: bool = False) -> None:
        """Takes the power iteration on, or to its end."""
        matrices = self._matrices(weight)
        found = _top_singular(matrices) if exact else self._sigma(matrices)
        self.right.copy_(found[1])

    def _sigma(self, matrices: Tensor) -> tuple[Tensor, Tensor]:
        """u^T W v of each part, differentiable in W, and v."""
        with torch.no_grad():
            right = self.right.to(matrices)
            for _ in range(self.power_iters):
                left = _unit(_times(matrices, right))
                right = _unit(_times(matrices.mT, left))
        return (left * _times(matrices, right)).sum(-1), right

    def _matrices(self, weight: Tensor) -> Tensor:
        """(parts, out, in) in float32 or better."""
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        flat = wide.T if self.transposed else wide.flatten(1)
        return flat.unflatten(0, (self.parts, -1))

    def _shaped(self, matrices: Tensor, weight: Tensor) -> Tensor:
        flat = matrices.flatten(0, 1)
        return (flat.T if self.transposed else flat.view_as(weight)).to(weight.dtype)

    def extra_repr(self) -> str:
        """What differs between layers."""
        return f"parts={self.parts}, power_iters={self.power_iters}, stats_only={self.stats_only}"


class SigmaLinear(nn.Linear):
    """A linear layer whose weight has the spectral norm gamma.

    Weights start as a normal of standard deviation 0.02 cut off at two of them, the bias at 0.

    Args:
        in_features: as of `torch.nn.Linear`.
        out_features: as of `torch.nn.Linear`.
        bias: as of `torch.nn.Linear`.
        device: as of `torch.nn.Linear`.
        dtype: as of `torch.nn.Linear`.
        gamma_init: as of `SigmaReparam`.
        power_iters: as of `SigmaReparam`.

    Raises:
        ValueError: as `SigmaReparam`.

    Examples:
        >>> layer = SigmaLinear(8, 4)
        >>> round(torch.linalg.matrix_norm(layer.weight, 2).item(), 5)
        1.0

    Source: Zhai et al. 2023 (arXiv 2303.06296), section 3.2.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        gamma_init: GammaInit = "one",
        power_iters: int = 1,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        _start(self, gamma_init, power_iters)


class SigmaConv2d(nn.Conv2d):
    """A convolution whose kernel, viewed as (out, in * height * width), has the spectral norm gamma.

    That is the norm of the map from a patch to the outputs, and of the whole convolution only where
    patches do not overlap. Takes what `torch.nn.Conv2d` takes; weights start as in `SigmaLinear`.

    Args:
        *args: as of `torch.nn.Conv2d`.
        gamma_init: as of `SigmaReparam`.
        power_iters: as of `SigmaReparam`.
        **kwargs: as of `torch.nn.Conv2d`.

    Raises:
        ValueError: as `SigmaReparam`.

    Examples:
        >>> patches = SigmaConv2d(3, 16, kernel_size=4, stride=4)
        >>> round(torch.linalg.matrix_norm(patches.weight.flatten(1), 2).item(), 5)
        1.0

    Source: Zhai et al. 2023 (arXiv 2303.06296), section 3.2.
    """

    def __init__(
        self, *args: Any, gamma_init: GammaInit = "one", power_iters: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        _start(self, gamma_init, power_iters)


def sigma_reparam(
    model: Model,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = ("lm_head",),
    gamma_init: GammaInit = "one",
    power_iters: int = 1,
    remove_norms: bool = False,
    split_fused: Mapping[str, int] | None = None,
    advance: bool = True,
    stats_only: bool = False,
) -> Model:
    """Reparametrises every linear map of a model, in place.

    Those are `nn.Linear`, `nn.Conv2d`, the `Conv1D` of transformers and the weights that
    `nn.MultiheadAttention` holds itself, of which queries, keys and values have a sigma each.
    Embeddings stay as they are. Names are matched whole, by their last part, or as patterns
    ("*.mlp.*").

    Args:
        model: any module, changed in place. One that is trained already keeps its outputs with
            `gamma_init="spectral"`.
        include: names of modules to take; None takes all.
        exclude: names of modules to leave.
        gamma_init: as of `SigmaReparam`.
        power_iters: as of `SigmaReparam`.
        remove_norms: put `nn.Identity` where a layer, batch, group, instance or RMS norm was.
        split_fused: how many maps are stacked in the weight of a module, by name: {"qkv": 3} gives
            queries, keys and values a sigma each.
        advance: as of `SigmaReparam`.
        stats_only: as of `SigmaReparam`.

    Returns:
        The model.

    Raises:
        TypeError: as `SigmaReparam`.
        ValueError: no weight to take, one that is tied to another module's or reparametrised already,
            or as `SigmaReparam`; the model is then unchanged.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(5, 4)
        >>> before = model(x)
        >>> torch.allclose(sigma_reparam(model, gamma_init="spectral")(x), before, atol=1e-5)
        True

    Source: Zhai et al. 2023 (arXiv 2303.06296), section 3.2.
    """
    _check_options(gamma_init, power_iters, 1)
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    chosen = []
    for name, module in model.named_modules():
        if any(_matches(name, pattern) for pattern in exclude) or not (
            include is None or any(_matches(name, pattern) for pattern in include)
        ):
            continue
        for tensor, parts in _weights(module):
            if parametrize.is_parametrized(module, tensor):
                raise ValueError(f"model: {name}.{tensor} is reparametrised already")
            weight = getattr(module, tensor)
            if len(owners[id(weight)]) > 1:
                raise ValueError(
                    f"model: {name}.{tensor} is tied ({', '.join(owners[id(weight)])}); exclude it"
                )
            for pattern, count in (split_fused or {}).items():
                parts = count if _matches(name, pattern) else parts
            transposed = _is_conv1d(module)
            _check_options(gamma_init, power_iters, parts)
            _check_weight(weight, parts, transposed, f"model: {name}.{tensor}")
            chosen.append((module, tensor, parts, transposed))
    if not chosen:
        raise ValueError("model has no linear map that include takes and exclude leaves")
    for module, tensor, parts, transposed in chosen:
        parametrization = SigmaReparam(
            getattr(module, tensor),
            gamma_init,
            power_iters,
            parts=parts,
            transposed=transposed,
            advance=advance,
            stats_only=stats_only,
        )
        parametrization.train(module.training)
        parametrize.register_parametrization(module, tensor, parametrization)
    if remove_norms:
        _remove_norms(model)
    return model


def update_sigma(model: nn.Module, *, exact: bool = False) -> None:
    """Takes the power iteration of every reparametrised weight on by one use.

    For models made with `advance=False`: call it after each optimiser step, or once and for all
    `optimizer.register_step_post_hook(lambda *_: update_sigma(model))`.

    Args:
        model: what `sigma_reparam` returned.
        exact: find the singular vectors anew instead, as after weights were replaced.

    Examples:
        >>> layer = SigmaLinear(4, 4)
        >>> with torch.no_grad():
        ...     _ = layer.parametrizations.weight.original.copy_(torch.diag(torch.arange(1.0, 5)))
        >>> update_sigma(layer, exact=True)
        >>> round(torch.linalg.matrix_norm(layer.weight, 2).item(), 5)
        1.0

    Source: Zhai et al. 2023 (arXiv 2303.06296), algorithm 1.
    """
    for _, module, tensor, parametrization in _reparametrized(model):
        original = getattr(module.parametrizations, tensor).original
        parametrization.update(original, exact=exact)


def fuse(model: Model) -> Model:
    """Bakes every reparametrised weight into a plain layer, in place: inference then costs nothing.

    Examples:
        >>> layer = SigmaLinear(8, 4).eval()
        >>> x = torch.randn(2, 8)
        >>> expected = layer(x)
        >>> type(fuse(layer)).__name__, torch.equal(layer(x), expected)
        ('Linear', True)

    Source: Zhai et al. 2023 (arXiv 2303.06296), section 3.2.
    """
    for _, module, tensor, parametrization in list(_reparametrized(model)):
        parametrization.eval()
        parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
        if type(module) in _PLAIN:
            module.__class__ = _PLAIN[type(module)]
    return model


def spectral_norms(model: nn.Module) -> dict[str, tuple[list[float], list[float]]]:
    """sigma(W) and gamma of every reparametrised weight, by name; lists over its parts.

    Examples:
        >>> norms = spectral_norms(sigma_reparam(nn.Sequential(nn.Linear(4, 2))))
        >>> list(norms), norms["0.weight"][1]
        (['0.weight'], [1.0])

    Source: Zhai et al. 2023 (arXiv 2303.06296), section 3.2.
    """
    found = {}
    with torch.no_grad():
        for name, module, tensor, parametrization in _reparametrized(model):
            sigma = parametrization.sigma(getattr(module.parametrizations, tensor).original)
            whole = f"{name}.{tensor}" if name else tensor
            found[whole] = (sigma.tolist(), parametrization.sigma_scale.tolist())
    return found


def _reparametrized(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, SigmaReparam]]:
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for tensor, steps in module.parametrizations.items():
                for step in steps:
                    if isinstance(step, SigmaReparam):
                        yield name, module, tensor, step


_PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    SigmaLinear: nn.Linear,
    SigmaConv2d: nn.Conv2d,
}


def _start(layer: nn.Linear | nn.Conv2d, gamma_init: GammaInit, power_iters: int) -> None:
    nn.init.trunc_normal_(layer.weight, std=_STD, a=-2 * _STD, b=2 * _STD)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    parametrization = SigmaReparam(layer.weight, gamma_init, power_iters)
    parametrize.register_parametrization(layer, "weight", parametrization)


def _weights(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Names of the linear maps a module holds itself, and how many are stacked in each."""
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            yield "in_proj_weight", 3
        else:
            yield from ((f"{which}_proj_weight", 1) for which in "qkv")
    elif isinstance(module, (nn.Linear, nn.Conv2d)) or _is_conv1d(module):
        yield "weight", 1


def _is_conv1d(module: nn.Module) -> bool:
    kinds = type(module).__mro__
    return any(k.__name__ == "Conv1D" and k.__module__.startswith("transformers.") for k in kinds)


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.rpartition(".")[2] == pattern or fnmatch(name, pattern)


def _remove_norms(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _NORMS) or type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, nn.Identity())


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Each matrix times its vector."""
    return (matrices @ vectors[..., None])[..., 0]


def _unit(x: Tensor) -> Tensor:
    return nn.functional.normalize(x, dim=-1)


def _top_singular(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The largest singular value of each matrix and its right vector, in float32 or better.

    By the eigenvectors of the smaller Gram matrix: half of the digits of float64 are enough for a
    start, and the head of a language model has a hundred thousand rows.
    """
    exact = matrices.double()
    tall = exact.shape[-2] >= exact.shape[-1]
    gram = exact.mT @ exact if tall else exact @ exact.mT
    top = torch.linalg.eigh(gram).eigenvectors[..., -1]
    right = top if tall else _unit(_times(exact.mT, top))
    sigma = torch.linalg.vector_norm(_times(exact, right), dim=-1)
    return sigma.to(matrices.dtype), right.to(matrices.dtype)


def _check_options(gamma_init: str, power_iters: int, parts: int) -> None:
    if gamma_init not in get_args(GammaInit):
        raise ValueError(f"gamma_init must be 'one' or 'spectral', but is {gamma_init!r}")
    for name, count in (("power_iters", power_iters), ("parts", parts)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, but is {count!r}")


def _check_weight(weight: Tensor, parts: int, transposed: bool, name: str) -> None:
    if not weight.is_floating_point():
        raise TypeError(f"{name} must be floating, but is {weight.dtype}")
    if weight.ndim < 2:
        raise ValueError(f"{name} must have at least two axes, but has shape {tuple(weight.shape)}")
    out = weight.shape[1 if transposed else 0]
    if out % parts:
        raise ValueError(f"{name} has {out} outputs, which do not divide into {parts} parts")
    if not weight.isfinite().all():
        raise ValueError(f"{name} must be finite")
    flat = (weight.T if transposed else weight.flatten(1)).unflatten(0, (parts, -1))
    if not flat.flatten(1).any(1).all():
        raise ValueError(f"{name} must not be zero: it has no direction to scale")
