r"""Entropy-guided attention: a band for each head's entropy, and the parts of a block that needs it.

Without layer norm and activation, attention heads of a decoder either collapse on one key or stay at
the entropy of a uniform row. Each head h of layer l is given a trainable share theta of the largest
entropy E_max, and pays for leaving a band about it:

    delta = E - theta E_max,    penalty = delta^2 where |delta| > gamma E_max, else 0,

with the whole square, not the excess. The block is X_SA = X + MHA(X) with a temperature t for every
head and query position, and the two matrices of a feed-forward layer without activation as one:

    a_ij = softmax_j(q_i k_j / (t_i sqrt d_k)),    X_out = beta X_SA + X_SA W_F / alpha.

Source: Jha, Reagen, Entropy-Guided Attention for Private LLMs (PPAI workshop at AAAI 2025; arXiv
2501.03489).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

Ceiling = Literal["context", "causal"]
Reduction = Literal["mean", "code"]

NORMS = ("none", "ln")
FFNS = ("gelu", "relu", "linear", "scaled_fused")
COEFFICIENTS: dict[Reduction, float] = {"mean": 0.16384, "code": 1e-5}
"""The published weight, of a sum over 128 sequences of 128 queries, and what it is on their mean."""
_LEAST_TEMPERATURE = 1e-2
_LEAST_ALPHA = 0.05
_FIRST_ROWS = 4  # queries that see too few keys for a band of the causal ceiling


class EntropyBand(nn.Module):
    """The penalty on heads whose attention entropy leaves a band, with a trainable centre each.

    Entropies in nats. The switch at the edge of the band is hard: the penalty jumps there from 0 to the
    whole square, and the centre follows the head as the head follows the centre.

    Args:
        n_layers: layers, L.
        n_heads: heads of each, H.
        gamma: half the width of the band as a share of E_max, in [0, 1); 0 is a squared error.
        coef: weight of the penalty; None for the published one, 0.16384 on a mean and 1e-5 on a sum.
        theta_init: centre of the band at the start, as a share of E_max, in [0, 1].
        emax: the largest entropy is the logarithm of the number of queries ("context"), or of the keys
            that a query sees ("causal"), where queries that see four keys or fewer do not count. With
            "context" the first queries are always below the band, which draws theta down.
        reduction: "mean" over layers, heads, sequences and queries; or as the published code does,
            "code", a sum over sequences and queries, which grows with the batch and its length.
        learnable: whether theta is trained.

    Attributes:
        theta: centres, (layers, heads). Weight decay has no business with them.

    Raises:
        ValueError: an argument out of its range.

    Examples:
        >>> band = EntropyBand(n_layers=1, n_heads=2, coef=1.0)
        >>> uniform, identity = torch.arange(1.0, 5).log(), torch.zeros(4)
        >>> round(float(band([torch.stack([uniform, identity])[None]])), 6)
        0.38089

    Source: Jha and Reagen 2025 (arXiv 2501.03489), the entropy regularisation and its algorithm.
    """

    def __init__(
        self,
        n_layers: int,
        n_heads: int,
        gamma: float = 0.2,
        coef: float | None = None,
        theta_init: float = 0.5,
        emax: Ceiling = "context",
        reduction: Reduction = "mean",
        *,
        learnable: bool = True,
    ) -> None:
        super().__init__()
        for name, count in (("n_layers", n_layers), ("n_heads", n_heads)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, but is {count}")
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma must lie in [0, 1), but is {gamma!r}")
        if not 0 <= theta_init <= 1:
            raise ValueError(f"theta_init must lie in [0, 1], but is {theta_init!r}")
        _check_choice("emax", emax, get_args(Ceiling))
        _check_choice("reduction", reduction, get_args(Reduction))
        coef = COEFFICIENTS[reduction] if coef is None else coef
        if not (coef >= 0 and math.isfinite(coef)):
            raise ValueError(f"coef must be finite and at least 0, but is {coef!r}")
        self.gamma, self.coef, self.emax, self.reduction = gamma, coef, emax, reduction
        self.theta = nn.Parameter(
            torch.full((n_layers, n_heads), float(theta_init)), requires_grad=learnable
        )

    def forward(
        self,
        entropies: Sequence[Float[Tensor, "batch heads queries"]],
        key_padding_mask: Bool[Tensor, "batch queries"] | None = None,
    ) -> Float[Tensor, ""]:
        """The weighted penalty.

        Args:
            entropies: of every layer, nats, with their gradients; causal attention of as many keys as
                queries.
            key_padding_mask: True at tokens that count.

        Raises:
            ValueError: shapes that do not fit theta or one another.
        """
        layers, heads = self.theta.shape
        if len(entropies) != layers:
            raise ValueError(f"entropies must be of {layers} layers, but are of {len(entropies)}")
        shapes = {tuple(entropy.shape) for entropy in entropies}
        if len(shapes) > 1 or len(entropies[0].shape) != 3 or entropies[0].shape[1] != heads:
            raise ValueError(
                f"entropies must all have one shape (batch, {heads} heads, queries), but have "
                f"{sorted(shapes)}"
            )
        entropy = torch.stack(list(entropies))
        batch, _, queries = entropies[0].shape
        if key_padding_mask is None:
            key_padding_mask = torch.ones(batch, queries, dtype=torch.bool, device=entropy.device)
        elif key_padding_mask.shape != (batch, queries):
            raise ValueError(
                f"key_padding_mask must have shape {(batch, queries)}, but has "
                f"{tuple(key_padding_mask.shape)}"
            )
        counted = key_padding_mask
        ceiling = entropy.new_tensor(queries).log().expand(batch, queries)
        if self.emax == "causal":
            seen = key_padding_mask.cumsum(-1)
            ceiling = seen.clamp(min=1).to(entropy.dtype).log()
            counted = counted & (seen > _FIRST_ROWS)
        ceiling, counted = ceiling[:, None], counted[:, None]
        deviation = entropy - self.theta[:, None, :, None] * ceiling
        outside = (deviation.abs() > self.gamma * ceiling) & counted
        penalty = torch.where(outside, deviation.square(), 0).sum() / (layers * heads)
        if self.reduction == "mean":
            penalty = penalty / counted.sum().clamp(min=1)
        return self.coef * penalty

    def extra_repr(self) -> str:
        layers, heads = self.theta.shape
        return (
            f"n_layers={layers}, n_heads={heads}, gamma={self.gamma:g}, coef={self.coef:g}, "
            f"emax={self.emax!r}, reduction={self.reduction!r}"
        )


class AttentionTemperature(nn.Module):
    """A trainable temperature for every head and query position, by which queries are divided.

    That is the same as to divide the scores, and needs nothing of what computes the attention.
    t = softplus(raw) + 0.01. Positions beyond the table have the temperature of its last.

    Args:
        heads: attention heads, H.
        positions: query positions with a temperature of their own, T.
        init: t at the start, above 0.01.

    Attributes:
        raw: (heads, positions). Weight decay has no business with it.

    Raises:
        ValueError: an argument out of its range.

    Examples:
        >>> temperature = AttentionTemperature(heads=2, positions=4, init=2.0)
        >>> temperature(torch.ones(1, 2, 3, 5)).unique()
        tensor([0.5000], grad_fn=...)

    Source: Jha and Reagen 2025 (arXiv 2501.03489), the parametrised attention.
    """

    def __init__(self, heads: int, positions: int, init: float = 1.0) -> None:
        super().__init__()
        for name, count in (("heads", heads), ("positions", positions)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, but is {count}")
        if not (init > _LEAST_TEMPERATURE and math.isfinite(init)):
            raise ValueError(f"init must be finite and above {_LEAST_TEMPERATURE}, but is {init!r}")
        rest = init - _LEAST_TEMPERATURE
        start = math.log(math.expm1(rest)) if rest < 30 else rest
        self.raw = nn.Parameter(torch.full((heads, positions), start))

    @property
    def temperature(self) -> Float[Tensor, "heads positions"]:
        """T."""
        return nn.functional.softplus(self.raw) + _LEAST_TEMPERATURE

    def forward(
        self,
        query: Float[Tensor, "batch heads queries width"],
        positions: Integer[Tensor, "rows queries"] | None = None,
    ) -> Float[Tensor, "batch heads queries width"]:
        """The queries over their temperatures; their dtype is kept.

        Args:
            query: of every head.
            positions: absolute position of each query, one row for all sequences or one each; None for
                0, 1, 2, ...

        Raises:
            ValueError: other heads than the table's; in training, more queries than it has positions.
        """
        heads, length = self.raw.shape
        if query.shape[1] != heads:
            raise ValueError(f"query must have {heads} heads, but has shape {tuple(query.shape)}")
        if self.training and query.shape[2] > length:
            raise ValueError(
                f"query: {query.shape[2]} positions in training, but temperatures for {length}"
            )
        if positions is None:
            positions = torch.arange(query.shape[2], device=query.device)[None]
        at = positions.clamp(0, length - 1)
        t = self.temperature[:, at].transpose(0, 1)[..., None]
        return (query / t).to(query.dtype)

    def extra_repr(self) -> str:
        return f"heads={self.raw.shape[0]}, positions={self.raw.shape[1]}"


class ScaledFusedFFN(nn.Module):
    """A feed-forward layer without activation, as one matrix with two trainable scales.

    X_out = beta X + X W_F / alpha, alpha and beta starting at 1. alpha acts as no less than 0.05.

    Args:
        width: of the residual stream, d.
        bias: whether the map has one.
        in_residual: the layer stands where X is added to what it returns: it then returns X_out - X.
        dropout: probability, of the map's output.

    Attributes:
        linear: the map, weight (d, d).
        alpha: scalar. Weight decay has no business with it, nor with beta.
        beta: scalar.

    Raises:
        ValueError: width below 1; a dropout out of range.

    Examples:
        >>> layer = ScaledFusedFFN(8)
        >>> x = torch.randn(2, 8)
        >>> torch.allclose(layer(x), x + layer.linear(x), atol=1e-6)
        True

    Source: Jha and Reagen 2025 (arXiv 2501.03489), the scaled feed-forward network, fused.
    """

    def __init__(
        self,
        width: int,
        *,
        bias: bool = False,
        in_residual: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, but is {width}")
        self.in_residual = in_residual
        self.linear = nn.Linear(width, width, bias=bias)
        nn.init.normal_(self.linear.weight, std=0.02)
        if bias:
            nn.init.zeros_(self.linear.bias)
        self.alpha = nn.Parameter(torch.ones(()))
        self.beta = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """X_out, or what is to be added to X for it."""
        direct, scale = self._scales()
        return direct * x + self.dropout(self.linear(x)) * scale

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """The same map as one plain layer, exact but for rounding; dropout is left out.

        Examples:
            >>> layer, x = ScaledFusedFFN(8), torch.randn(2, 8)
            >>> torch.allclose(layer.to_linear()(x), layer(x), atol=1e-6)
            True
        """
        direct, scale = self._scales()
        weight = self.linear.weight
        width = len(weight)
        plain = nn.Linear(width, width, bias=self.linear.bias is not None).to(weight)
        eye = torch.eye(width, dtype=weight.dtype, device=weight.device)
        plain.weight.copy_(weight * scale + direct * eye)
        if plain.bias is not None:
            plain.bias.copy_(self.linear.bias * scale)
        return plain

    def _scales(self) -> tuple[Tensor, Tensor]:
        direct = self.beta - 1 if self.in_residual else self.beta
        return direct, 1 / self.alpha.clamp(min=_LEAST_ALPHA)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha.item():.4g}, beta={self.beta.item():.4g}, in_residual={self.in_residual}"


def private_cost(
    config: Any, tokens: int, *, norm: str | None = None, ffn: str | None = None
) -> dict[str, int]:
    """What private inference pays for: non-linear operations, and the arithmetic of the linear ones.

    The blocks alone: embedding, final layer norm and head are the same in every design. FLOPs are two
    for each multiplication with its addition.

    Args:
        config: of a GPT-2.
        tokens: length of the input, T.
        norm: "ln" or "none", as of `convert_softmax_only`; None for what the configuration says, which
            is "ln" unless its model was converted.
        ffn: "gelu", "relu", "linear" or "scaled_fused"; None likewise, else "gelu".

    Returns:
        Numbers of operations (`softmax`, `layer_norm`, `gelu`, `relu`), of elements in all of each
        (`..._elements`), and FLOPs of attention and feed-forward layers.

    Raises:
        ValueError: an argument out of its range.

    Examples:
        >>> from transformers import GPT2Config
        >>> cost = private_cost(GPT2Config(), 128)
        >>> cost["softmax"], cost["layer_norm"], cost["gelu"], cost["ffn_flops"]
        (144, 24, 12, 14495514624)
        >>> private_cost(GPT2Config(), 128, norm="none", ffn="scaled_fused")["ffn_flops"]
        1811939328

    Source: Jha and Reagen 2025 (arXiv 2501.03489), the table of latency and communication.
    """
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, but is {tokens}")
    design = getattr(config, "softmax_only", None) or {"norm": "ln", "ffn": "gelu"}
    norm, ffn = norm or design["norm"], ffn or design["ffn"]
    _check_choice("norm", norm, NORMS)
    _check_choice("ffn", ffn, FFNS)
    layers, heads, width = config.n_layer, config.n_head, config.n_embd
    inner = config.n_inner or 4 * width
    norms = 2 * layers * (norm == "ln")
    active = {kind: layers * (ffn == kind) for kind in ("gelu", "relu")}
    macs = tokens * (width * width if ffn == "scaled_fused" else 2 * width * inner)
    return {
        "softmax": layers * heads,
        "softmax_elements": layers * heads * tokens * tokens,
        "layer_norm": norms,
        "layer_norm_elements": norms * tokens * width,
        "gelu": active["gelu"],
        "gelu_elements": active["gelu"] * tokens * inner,
        "relu": active["relu"],
        "relu_elements": active["relu"] * tokens * inner,
        "attention_flops": 2 * layers * (4 * tokens * width * width + 2 * tokens * tokens * width),
        "ffn_flops": 2 * layers * macs,
    }


def spared_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay has no business with: theta, t, alpha and beta.

    Examples:
        >>> sorted(spared_parameters(nn.Sequential(ScaledFusedFFN(4), EntropyBand(1, 2))))
        ['0.alpha', '0.beta', '1.theta']
    """
    kinds: dict[type[nn.Module], tuple[str, ...]] = {
        EntropyBand: ("theta",),
        AttentionTemperature: ("raw",),
        ScaledFusedFFN: ("alpha", "beta"),
    }
    return {
        f"{name}.{parameter}" if name else parameter
        for name, module in model.named_modules()
        for parameter in kinds.get(type(module), ())
    }


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, but is {value!r}")
