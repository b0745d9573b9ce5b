"""GPT-2 with softmax as its only non-linearity, and what trains it with attention in an entropy band.

Source: Jha, Reagen, Entropy-Guided Attention for Private LLMs (PPAI workshop at AAAI 2025; arXiv
2501.03489).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from szilard._extras import require
from szilard.layers.entropy_guided import (
    FFNS,
    NORMS,
    AttentionTemperature,
    EntropyBand,
    ScaledFusedFFN,
    _check_choice,
    spared_parameters,
)
from szilard.layers.entropy_report import EntropyTap, attentions, tap_entropies

require("transformers", extra="language")
from transformers import AttentionInterface, GPT2LMHeadModel, Trainer  # noqa: E402
from transformers.activations import ACT2FN  # noqa: E402
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask  # noqa: E402
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions  # noqa: E402
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # noqa: E402
from transformers.utils import ModelOutput  # noqa: E402

Model = TypeVar("Model", bound=nn.Module)

ATTENTION = "szilard_tempered"
"""Name of the attention function that transformers looks up."""
_KERNEL = "sdpa"
FFN_NORMS = ("weight", "spectral")
_ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "linear": "linear"}


def convert_softmax_only(
    model: Model,
    norm: str = "none",
    ffn: str = "scaled_fused",
    temperature: bool = True,
    *,
    ffn_norm: str | None = None,
    positions: int | None = None,
) -> Model:
    """Takes layer norms and activations out of a GPT-2's blocks, in place; its weights stay.

    The final layer norm stays too. The matrix of a scaled and fused feed-forward layer starts as the
    product of the two that it replaces, so that it computes what `ffn="linear"` does; it has a bias
    where theirs are not zero. Afterwards the model's attention can hand out its entropies, with
    gradient, whatever the design: `norm="ln", ffn="gelu", temperature=False` is GPT-2 as it was.

    Args:
        model: a `GPT2LMHeadModel` of transformers, changed in place.
        norm: "ln" keeps the norms of the blocks, "none" takes them out.
        ffn: "gelu", "relu", "linear" for two matrices without activation, "scaled_fused" for
            `ScaledFusedFFN`, which needs `norm="none"`.
        temperature: give every head and query position a temperature, `AttentionTemperature`.
        ffn_norm: None; or "weight" or "spectral" for that norm of torch on each matrix of the
            feed-forward layers.
        positions: query positions with a temperature of their own; None for the model's context.

    Returns:
        The model.

    Raises:
        TypeError: a model of another class.
        ValueError: an argument out of its range; a model that is converted already, shares blocks or
            parameters between them, attends to an encoder, or scales scores by itself
            (`reorder_and_upcast_attn`). The model is then unchanged.

    Examples:
        >>> from transformers import GPT2Config
        >>> config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=16)
        >>> model = convert_softmax_only(GPT2LMHeadModel(config))
        >>> model.transformer.h[0].mlp
        ScaledFusedFFN(
          alpha=1, beta=1, in_residual=True
          (linear): Linear(in_features=8, out_features=8, bias=False)
          (dropout): Dropout(p=0.1, inplace=False)
        )

    Source: Jha and Reagen 2025 (arXiv 2501.03489), the architecture's figure.
    """
    if not isinstance(model, GPT2LMHeadModel):
        raise TypeError(f"model must be a GPT2LMHeadModel, but is a {type(model).__name__}")
    _check_choice("norm", norm, NORMS)
    _check_choice("ffn", ffn, FFNS)
    if ffn == "scaled_fused" and norm == "ln":
        raise ValueError("norm must be 'none' where ffn is 'scaled_fused', but is 'ln'")
    if ffn_norm is not None:
        _check_choice("ffn_norm", ffn_norm, FFN_NORMS)
    if positions is not None and positions < 1:
        raise ValueError(f"positions must be at least 1, but is {positions}")
    gpt2: Any = model
    config = gpt2.config
    _check_model(gpt2)
    AttentionInterface.register(ATTENTION, tempered_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    for block in gpt2.transformer.h:
        weight = block.attn.c_attn.weight
        if norm == "none":
            block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
        if ffn == "scaled_fused":
            block.mlp = _fused(block.mlp)
        else:
            block.mlp.act = ACT2FN[_ACTIVATIONS[ffn]]
        if ffn_norm is not None:
            for matrix in _matrices(block.mlp):
                _normalise(matrix, ffn_norm)
        block.attn.taps = []
        block.attn.temperature = None
        if temperature:
            table = AttentionTemperature(config.n_head, positions or config.n_positions)
            block.attn.temperature = table.to(weight.device, weight.dtype)
        block.train(gpt2.training)
    if ffn in _ACTIVATIONS:
        config.activation_function = _ACTIVATIONS[ffn]
    config.softmax_only = {
        "norm": norm,
        "ffn": ffn,
        "temperature": temperature,
        "ffn_norm": ffn_norm,
        "positions": positions,
    }
    gpt2.set_attn_implementation(ATTENTION)
    return model


def tempered_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of transformers with queries over their temperatures, by torch's fused kernel.

    Args:
        module: the attention module, whose `temperature` may be None and whose `taps` get entropies.
        query: (batch, heads, queries, width).
        key: (batch, heads, keys, width).
        value: (batch, heads, keys, width).
        attention_mask: None or (batch, 1, queries, keys).
        **kwargs: the rest, `position_ids` among it.
    """
    if module.temperature is not None:
        positions = kwargs.get("position_ids")
        if positions is None:
            first = key.shape[2] - query.shape[2]
            positions = torch.arange(first, key.shape[2], device=query.device)[None]
        query = module.temperature(query, positions)
    if module.taps:
        tap_entropies(module, query, key, attention_mask, kwargs.get("scaling"))
    kernel = ALL_ATTENTION_FUNCTIONS[_KERNEL]
    return kernel(module, query, key, value, attention_mask, **kwargs)


# Who records queries on their way to be scored has to look there: here they are not tempered yet.
tempered_attention.scored_by = _KERNEL  # type: ignore[attr-defined]


@dataclass
class GuidedOutput(CausalLMOutputWithCrossAttentions):
    """What a guided model returns in training.

    Attributes:
        entropy_penalty: of its `EntropyBand`, a scalar that `loss` does not include.
    """

    entropy_penalty: Tensor | None = None


class _Guide(EntropyTap):
    """Puts the band's penalty into what the model returns in training."""

    @torch.compiler.disable
    def hook(self, model: Any, args: Any, output: Any) -> GuidedOutput | None:
        if not model.training:
            return None
        if not isinstance(output, ModelOutput):
            raise ValueError("return_dict must be True while a guided model trains")
        entropies = [self.layers[layer] for layer in sorted(self.layers)]
        recomputed = any(block.gradient_checkpointing for block in model.transformer.h)
        if recomputed and not entropies[0].requires_grad:
            raise ValueError(
                "gradient checkpointing must not be reentrant: "
                "gradient_checkpointing_kwargs={'use_reentrant': False}"
            )
        penalty = model.entropy_band(entropies, self.padding)
        self.clear()
        return GuidedOutput(**output, entropy_penalty=penalty)


def guide_entropy(model: Model, band: EntropyBand) -> Model:
    """Makes a converted model return the band's penalty with every forward in training, in place.

    `out = model(ids, labels=ids)` then has `out.entropy_penalty`, to be added to `out.loss`. The band
    becomes the submodule `entropy_band`: it is saved, moved and synchronised with the model.

    Args:
        model: from `convert_softmax_only`.
        band: for its layers and heads.

    Returns:
        The model.

    Raises:
        ValueError: a model that was not converted or has a band already; a band for other layers or
            heads than the model's.

    Examples:
        >>> from transformers import GPT2Config
        >>> config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=16)
        >>> model = convert_softmax_only(GPT2LMHeadModel(config).train())
        >>> ids = torch.arange(10)[None]
        >>> out = guide_entropy(model, EntropyBand(n_layers=1, n_heads=2))(ids, labels=ids)
        >>> (out.loss + out.entropy_penalty).backward()
        >>> model.entropy_band.theta.grad.shape
        torch.Size([1, 2])

    Source: Jha and Reagen 2025 (arXiv 2501.03489), the entropy regularisation.
    """
    modules = attentions(model)
    if hasattr(model, "entropy_band"):
        raise ValueError("model has an entropy band already")
    shape = len(modules), modules[0].num_heads
    if tuple(band.theta.shape) != shape:
        raise ValueError(
            f"band must be for {shape[0]} layers of {shape[1]} heads, but theta has shape "
            f"{tuple(band.theta.shape)}"
        )
    model.entropy_band = band.to(next(model.parameters()).device)
    guide = _Guide(training_only=True)
    for module in modules:
        module.taps.append(guide)
    model.register_forward_hook(guide.hook)
    return model


@torch.no_grad()
def fuse_softmax_only(model: Model) -> Model:
    """Makes a trained model as cheap as it can be without changing what it computes, in place.

    A feed-forward layer without activation becomes one `nn.Linear`, norms on its weights are baked in,
    and temperatures that are the same at all positions of a head go into its query projection; those
    that differ stay. The entropy band is dropped. For inference: dropout between what is fused goes.

    Args:
        model: from `convert_softmax_only`.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: a model that was not converted.

    Examples:
        >>> from transformers import GPT2Config
        >>> config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=16)
        >>> fuse_softmax_only(convert_softmax_only(GPT2LMHeadModel(config))).transformer.h[0].mlp
        Linear(in_features=8, out_features=8, bias=False)

    Source: Jha and Reagen 2025 (arXiv 2501.03489), the fused feed-forward network.
    """
    modules = attentions(model)
    gpt2: Any = model.eval()
    if hasattr(gpt2, "entropy_band"):
        del gpt2.entropy_band
        for handle, hook in list(gpt2._forward_hooks.items()):
            if isinstance(getattr(hook, "__self__", None), _Guide):
                del gpt2._forward_hooks[handle]
    for block, attention in zip(gpt2.transformer.h, modules, strict=True):
        attention.taps.clear()
        for matrix in _matrices(block.mlp):
            if parametrize.is_parametrized(matrix, "weight"):
                parametrize.remove_parametrizations(matrix, "weight", leave_parametrized=True)
        if isinstance(block.mlp, ScaledFusedFFN):
            block.mlp = block.mlp.to_linear()
        elif gpt2.config.softmax_only["ffn"] == "linear" and not isinstance(block.mlp, nn.Linear):
            weight, bias = _product(block.mlp)
            block.mlp = _linear(weight, bias)
        _fold_temperature(attention)
    if all(attention.temperature is None for attention in modules):
        gpt2.set_attn_implementation(_KERNEL)
    return model


class EntropyGuidedTrainer(Trainer):
    """`transformers.Trainer` that adds a model's entropy penalty to its loss, in training only.

    The penalty is that of each micro-batch, averaged over gradient accumulation and over processes,
    however the loss itself is normalised. It joins the log as `entropy_penalty`. Weight decay leaves
    theta, t, alpha and beta alone.

    Args:
        model: from `convert_softmax_only`.
        *args: as of `transformers.Trainer`.
        band: the penalty; None for the one that the model has, else a default one.
        **kwargs: as of `transformers.Trainer`.

    Raises:
        ValueError: a model that was not converted, or one model over several GPUs of one process.

    Source: Jha and Reagen 2025 (arXiv 2501.03489), the entropy regularisation.
    """

    def __init__(
        self, model: Any, *args: Any, band: EntropyBand | None = None, **kwargs: Any
    ) -> None:
        modules = attentions(model)
        if band is not None or not hasattr(model, "entropy_band"):
            guide_entropy(model, band or EntropyBand(len(modules), modules[0].num_heads))
        super().__init__(model, *args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError("model: start one process for each GPU (torchrun, accelerate launch)")
        self._penalties: list[Tensor] = []

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The model's loss, and in training the penalty on top."""
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if model.training:
            penalty = outputs["entropy_penalty"]
            self._penalties.append(penalty.detach())
            # A loss over the items of all micro-batches is not divided by their number afterwards.
            whole = self.loss_is_scaled_for_ga
            if whole is None:
                whole = self.compute_loss_func is not None or (
                    self.model_accepts_loss_kwargs and num_items_in_batch is not None
                )
            loss = loss + penalty / (self.current_gradient_accumulation_steps if whole else 1)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the mean penalty since the last time."""
        if "loss" in logs and self._penalties:
            logs["entropy_penalty"] = float(torch.stack(self._penalties).mean())
            self._penalties.clear()
        super().log(logs, *args, **kwargs)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """All that a `transformers.Trainer` decays but theta, t, alpha and beta."""
        spared = spared_parameters(model)
        return [name for name in super().get_decay_parameter_names(model) if name not in spared]


def _check_model(model: Any) -> None:
    config, blocks = model.config, list(model.transformer.h)
    if hasattr(blocks[0].attn, "taps"):
        raise ValueError("model is converted already")
    if config.add_cross_attention:
        raise ValueError(
            "model attends to an encoder (add_cross_attention), which is not supported"
        )
    if config.reorder_and_upcast_attn:
        raise ValueError("model scales scores by itself (reorder_and_upcast_attn), not supported")
    owned = [id(p) for block in blocks for p in block.parameters()]
    if len(set(map(id, blocks))) < len(blocks) or len(set(owned)) < len(owned):
        raise ValueError(
            "model shares blocks, or parameters between blocks, which is not supported"
        )


def _matrices(mlp: nn.Module) -> list[nn.Module]:
    if isinstance(mlp, ScaledFusedFFN):
        return [mlp.linear]
    return [] if isinstance(mlp, nn.Linear) else [mlp.c_fc, mlp.c_proj]  # type: ignore[list-item]


def _normalise(matrix: nn.Module, kind: str) -> None:
    if kind == "spectral":
        parametrizations.spectral_norm(matrix)
    else:
        # One norm an output: a Linear has outputs first, transformers' Conv1D last.
        parametrizations.weight_norm(matrix, dim=0 if isinstance(matrix, nn.Linear) else 1)


def _product(mlp: Any) -> tuple[Tensor, Tensor]:
    """Weight, (out, in), and bias of two matrices in a row without activation."""
    weight = (mlp.c_fc.weight @ mlp.c_proj.weight).T
    return weight, mlp.c_fc.bias @ mlp.c_proj.weight + mlp.c_proj.bias


@torch.no_grad()
def _fused(mlp: Any) -> ScaledFusedFFN:
    weight, bias = _product(mlp)
    fused = ScaledFusedFFN(
        len(weight), bias=bool(bias.any()), in_residual=True, dropout=mlp.dropout.p
    ).to(weight)
    fused.linear.weight.copy_(weight)
    if fused.linear.bias is not None:
        fused.linear.bias.copy_(bias)
    return fused


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(*weight.T.shape).to(weight)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer


def _fold_temperature(attention: Any) -> None:
    """Divides the query projection by temperatures that do not depend on the position."""
    if attention.temperature is None:
        return
    t = attention.temperature.temperature
    if not torch.equal(t, t[:, :1].expand_as(t)):
        return
    columns = t[:, 0].repeat_interleave(attention.head_dim)
    queries = slice(0, len(columns))
    attention.c_attn.weight[:, queries] /= columns
    attention.c_attn.bias[queries] /= columns
    attention.temperature = None
