"""Entropy-guided attention: GPT-2 with its non-linearities taken out one after another, and repaired.

The same small language model of Python's own source is trained in every design, with the same weights
at the start and the same batches: with layer norm and without, with GELU, with ReLU and with neither, with
the feed-forward layers fused and scaled, with temperatures, and with every head's attention entropy in
a trainable band. Measured are the validation loss and how near each head is to uniform attention, or to
attention to one key, which softmax alone comes to when it learns too fast.
"""

from __future__ import annotations

import itertools
import math
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from szilard._extras import require
from szilard.lab.experiment import Claim, ExperimentConfig, Figure, Interval, Log, Preset, Row
from szilard.lab.figures import color
from szilard.lab.statistics import mean_interval, paired_difference

if TYPE_CHECKING:
    import pandas as pd


class Design(NamedTuple):
    """What a model has."""

    norm: str
    ffn: str
    temperature: bool = False
    ffn_norm: str | None = None
    band: str = ""
    rate: float = 1.0  # learning rate over that of the others


OURS = "EReg(SM(t)+ScFuFFN)"
FUSED = "SM+ScFuFFN"
DESIGNS = {
    OURS: Design("none", "scaled_fused", temperature=True, band="learned"),
    "SM(t)+ScFuFFN": Design("none", "scaled_fused", temperature=True),
    FUSED: Design("none", "scaled_fused"),
    "SM": Design("none", "linear"),
    "SM+R": Design("none", "relu"),
    "SM+G": Design("none", "gelu"),
    "SM+LN": Design("ln", "linear"),
    "SM+LN+R": Design("ln", "relu"),
    "SM+LN+G": Design("ln", "gelu"),
    "SM+weight norm": Design("none", "linear", ffn_norm="weight"),
    "SM+spectral norm": Design("none", "linear", ffn_norm="spectral"),
    "entropy penalty": Design("none", "scaled_fused", temperature=True, band="plain"),
    "SM, rate x 5": Design("none", "linear", rate=5.0),
    "SM+LN+G, rate x 5": Design("ln", "gelu", rate=5.0),
}
_PLAIN = ("SM+weight norm", "SM+spectral norm", "entropy penalty")
_STRESS = tuple(name for name, design in DESIGNS.items() if design.rate > 1)
_LIBRARY = "library"


class EntropyGuidedConfig(ExperimentConfig):
    seeds: int = Field(default=2, ge=1, description="number of seeds; seed i runs as i")
    designs: tuple[str, ...] = Field(
        default=tuple(name for name in DESIGNS if name not in _PLAIN),
        min_length=2,
        description=f"any of: {'; '.join(DESIGNS)}",
    )
    data: str = Field(
        default=_LIBRARY,
        description='"library", the characters of Python\'s own; or a Hugging Face data set or folder',
    )
    validation: str = Field(default="", description="data set for validation, of another set")
    tokenizer: str = Field(default="", description="a Hugging Face tokenizer, of another set")
    documents: int = Field(default=600_000, ge=1, description="training documents of another set")
    context: int = Field(default=64, ge=2, description="tokens of a sequence, T")
    layers: int = Field(default=4, ge=1, description="transformer layers")
    heads: int = Field(default=4, ge=1, description="attention heads")
    width: int = Field(default=64, ge=1, description="of the residual stream")
    batch_size: int = Field(default=8, ge=1, description="sequences of a micro-batch")
    accumulation: int = Field(default=1, ge=1, description="micro-batches of a step")
    steps: int = Field(default=500, ge=1, description="optimiser steps")
    learning_rate: float = Field(default=2e-3, gt=0, description="of AdamW, at its highest")
    weight_decay: float = Field(default=0.1, ge=0, description="of matrices")
    warmup: float = Field(default=0.0, ge=0, lt=1, description="share of the steps, linear")
    decay: Literal["constant", "linear"] = Field(
        default="constant", description="of the learning rate, after the warm-up"
    )
    clip: float = Field(default=1.0, gt=0, description="gradient norm")
    gamma: float = Field(
        default=0.2, ge=0, lt=1, description="half the width of the band over E_max"
    )
    coef: float = Field(default=0.16384, ge=0, description="weight of the penalty, of its mean")
    emax: Literal["context", "causal"] = Field(default="context", description="E_max of the band")
    eval_batches: int = Field(default=8, ge=1, description="batches of the validation")
    eval_points: int = Field(default=5, ge=1, description="validations of a training")
    device: str = Field(default="auto", description='"auto", "cpu", "cuda", ...')
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of products, under autocast"
    )

    @field_validator("designs")
    @classmethod
    def _known(cls, designs: tuple[str, ...]) -> tuple[str, ...]:
        for design in designs:
            if design not in DESIGNS:
                raise ValueError(f"designs: {design!r} is none of {'; '.join(DESIGNS)}")
        return designs


class EntropyGuidedExperiment:
    """Entropy-Guided Attention for Private LLMs (Jha and Reagen, 2025)."""

    Config: ClassVar[type[ExperimentConfig]] = EntropyGuidedConfig
    presets: ClassVar[Mapping[Preset, EntropyGuidedConfig]] = {
        "smoke": EntropyGuidedConfig(
            designs=tuple(DESIGNS),
            context=16,
            layers=2,
            heads=2,
            width=8,
            batch_size=4,
            steps=6,
            eval_batches=2,
            eval_points=2,
        ),
        "quick": EntropyGuidedConfig(),
        "paper": EntropyGuidedConfig(
            seeds=3,
            designs=tuple(name for name in DESIGNS if name not in _STRESS),
            data="huggingface-course/codeparrot-ds-train",
            validation="huggingface-course/codeparrot-ds-valid",
            tokenizer="huggingface-course/code-search-net-tokenizer",
            context=128,
            layers=12,
            heads=12,
            width=768,
            batch_size=128,
            accumulation=4,
            steps=32_000,  # 2.1 billion tokens
            learning_rate=1e-3,
            warmup=0.05,
            decay="linear",
            eval_batches=100,
            eval_points=20,
            precision="bfloat16",
        ),
    }

    def arms(self, config: EntropyGuidedConfig) -> Sequence[str]:
        return list(config.designs)

    def run(self, config: EntropyGuidedConfig, arm: str, seed: int, log: Log) -> Sequence[Row]:
        rows = list(cost(arm)) if seed == 0 else []
        return [*rows, *trained(config, arm, seed, lambda done: log(done, "training"))]

    def claims(self, config: EntropyGuidedConfig, table: pd.DataFrame) -> Sequence[Claim]:
        return [*_cost_claims(table), *_head_claims(table), *_loss_claims(config, table)]

    def figures(self, config: EntropyGuidedConfig, table: pd.DataFrame) -> Sequence[Figure]:
        arms = [arm for arm in config.designs if arm in set(table.arm)]
        return [
            _heads(table, arms),
            _losses(table, arms),
            _curves(table, arms),
            _thresholds(table),
            _costs(table, arms),
        ]


# Training -------------------------------------------------------------------------------------------


def build(config: EntropyGuidedConfig, arm: str, seed: int, vocabulary: int) -> Any:
    """The GPT-2 of a design; the same weights for all designs of a seed, as far as they have them."""
    from szilard.layers import EntropyBand, convert_softmax_only, guide_entropy

    transformers = require("transformers", extra="language")
    settings = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_positions=config.context,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    design = DESIGNS[arm]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.GPT2LMHeadModel(settings)
        convert_softmax_only(
            model, design.norm, design.ffn, design.temperature, ffn_norm=design.ffn_norm
        )
    if design.band:
        plain: dict[str, Any] = {"gamma": 0.0, "theta_init": 0.0, "learnable": False}
        options = plain if design.band == "plain" else {"gamma": config.gamma}
        band = EntropyBand(
            config.layers, config.heads, coef=config.coef, emax=config.emax, **options
        )
        guide_entropy(model, band)
    return model


def trained(
    config: EntropyGuidedConfig, arm: str, seed: int, log: Callable[[float], None]
) -> list[Row]:
    """Trains the model of a design: its losses, the entropies of its heads, what it learned."""
    from szilard.layers import spared_parameters

    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    corpus = _corpus(config)
    model = build(config, arm, seed, corpus.vocabulary).to(device)
    spared = spared_parameters(model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if p.ndim > 1 and name not in spared]
    others = [p for name, p in named if p.ndim < 2 or name in spared]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups,
        lr=config.learning_rate * DESIGNS[arm].rate,
        weight_decay=config.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(config, step))
    batches = corpus.train(config, seed)
    points = {
        round(config.steps * i / config.eval_points) for i in range(1, config.eval_points + 1)
    }
    rows: list[Row] = []
    for step in range(1, config.steps + 1):
        model.train()
        optimizer.zero_grad()
        total = 0.0
        for _ in range(config.accumulation):
            loss = _loss(config, model, next(batches), device) / config.accumulation
            loss.backward()
            total += float(loss.detach())
        norm = nn.utils.clip_grad_norm_([p for _, p in named], config.clip)
        if not (math.isfinite(total) and math.isfinite(norm)):
            return [*rows, {"metric": "diverged", "value": 1.0, "step": step}]
        optimizer.step()
        schedule.step()
        if step in points:
            found = validated(config, model, corpus, device)
            rows += [{**row, "step": step} for row in found]
            log(step / config.steps)
    last = [{**row, "metric": f"final {row['metric']}"} for row in found]
    return [*rows, *last, *_learned(model), {"metric": "diverged", "value": 0.0, "step": step}]


def _loss(config: EntropyGuidedConfig, model: Any, ids: Tensor, device: str) -> Tensor:
    """The language model's loss and, where the design has a band and trains, the penalty."""
    ids = ids.to(device)
    half = config.precision == "bfloat16"
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
        out = model(ids, labels=ids, use_cache=False)
    loss: Tensor = out.loss.float()
    return loss + out.entropy_penalty if "entropy_penalty" in out else loss


def _rate(config: EntropyGuidedConfig, step: int) -> float:
    rise = config.warmup * config.steps
    if step < rise:
        return (step + 1) / (rise + 1)
    if config.decay == "constant":
        return 1.0
    return max(0.0, (config.steps - step) / max(1.0, config.steps - rise))


@torch.no_grad()
def validated(config: EntropyGuidedConfig, model: Any, corpus: _Corpus, device: str) -> list[Row]:
    """Loss a token and every head's share of its ceiling, on the same text for all."""
    from szilard.layers import AttentionEntropyReport

    model.eval()
    with AttentionEntropyReport(model) as report:
        losses = [float(_loss(config, model, ids, device)) for ids in corpus.validation(config)]
    shares = report()
    rows: list[Row] = [
        {"metric": "validation loss", "value": float(np.mean(losses))},
        {"metric": "overload", "value": shares["overload"]},
        {"metric": "collapse", "value": shares["collapse"]},
    ]
    return rows + [
        {"metric": "head", "value": float(value), "layer": layer, "head": head}
        for layer, heads in enumerate(report.ceiling)
        for head, value in enumerate(heads)
    ]


def _learned(model: Any) -> Iterator[Row]:
    from szilard.layers import AttentionTemperature, ScaledFusedFFN

    if hasattr(model, "entropy_band"):
        for layer, heads in enumerate(model.entropy_band.theta.tolist()):
            for head, value in enumerate(heads):
                yield {"metric": "theta", "value": value, "layer": layer, "head": head}
    for layer, block in enumerate(model.transformer.h):
        if isinstance(block.attn.temperature, AttentionTemperature):
            t = block.attn.temperature.temperature.detach().mean(1)
            for head, value in enumerate(t.tolist()):
                yield {"metric": "temperature", "value": value, "layer": layer, "head": head}
        if isinstance(block.mlp, ScaledFusedFFN):
            yield {"metric": "alpha", "value": float(block.mlp.alpha.detach()), "layer": layer}
            yield {"metric": "beta", "value": float(block.mlp.beta.detach()), "layer": layer}


def cost(arm: str) -> Iterator[Row]:
    """What a GPT-2 small of the design costs in private inference of 128 tokens."""
    from szilard.layers import private_cost

    config = require("transformers", extra="language").GPT2Config()
    design = DESIGNS[arm]
    found = private_cost(config, 128, norm=design.norm, ffn=design.ffn)
    for name, value in found.items():
        yield {"metric": f"cost: {name}", "value": float(value)}


# Text -----------------------------------------------------------------------------------------------


class _Corpus(NamedTuple):
    """Sequences of tokens: endless for training, and the same for every validation."""

    vocabulary: int
    train: Callable[[EntropyGuidedConfig, int], Iterator[Tensor]]
    validation: Callable[[EntropyGuidedConfig], Iterator[Tensor]]


def _corpus(config: EntropyGuidedConfig) -> _Corpus:
    if config.data == _LIBRARY:
        return _Corpus(128, _library_train, _library_validation)
    transformers = require("transformers", extra="language")
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.tokenizer)
    return _Corpus(
        len(tokenizer),
        lambda config, seed: _packed(config, tokenizer, config.data, config.documents, seed),
        lambda config: itertools.islice(
            _packed(config, tokenizer, config.validation, None, 0), config.eval_batches
        ),
    )


@cache
def _library(part: str) -> Tensor:
    """The top modules of Python's standard library as ASCII; every tenth is for validation."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    chosen = [p for i, p in enumerate(paths) if (i % 10 == 9) == (part == "validation")]
    text = "".join(path.read_text(encoding="utf-8") for path in chosen)
    return torch.from_numpy(np.frombuffer(text.encode("ascii", "replace"), np.uint8).copy())


def _windows(config: EntropyGuidedConfig, part: str, rng: np.random.Generator) -> Tensor:
    characters = _library(part)
    starts = rng.integers(len(characters) - config.context, size=config.batch_size)
    return torch.stack([characters[i : i + config.context] for i in starts]).long()


def _library_train(config: EntropyGuidedConfig, seed: int) -> Iterator[Tensor]:
    rng = np.random.default_rng(seed)
    while True:
        yield _windows(config, "train", rng)


def _library_validation(config: EntropyGuidedConfig) -> Iterator[Tensor]:
    rng = np.random.default_rng(0)
    for _ in range(config.eval_batches):
        yield _windows(config, "validation", rng)


def _packed(
    config: EntropyGuidedConfig, tokenizer: Any, name: str, documents: int | None, seed: int
) -> Iterator[Tensor]:
    """Documents in random order, over and over, each with its end, cut into sequences."""
    data = require("datasets", extra="language").load_dataset(name, split="train")
    size = len(data) if documents is None else min(documents, len(data))
    rng = np.random.default_rng(seed)
    wanted = config.batch_size * config.context
    buffer: list[int] = []
    while True:
        for i in rng.permutation(size):
            row = data[int(i)]
            text = row["content"] if "content" in row else row["text"]
            buffer += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
            while len(buffer) >= wanted:
                yield torch.tensor(buffer[:wanted]).view(config.batch_size, -1)
                buffer = buffer[wanted:]


# Claims ---------------------------------------------------------------------------------------------


def _cost_claims(table: pd.DataFrame) -> Iterator[Claim]:
    costs = table[table.metric.str.startswith("cost")].pivot_table(
        index="metric", columns="arm", values="value"
    )
    if not {OURS, "SM+LN+G"} <= set(costs):
        return
    flops = costs.loc["cost: ffn_flops"]
    yield Claim.judge(
        "Fusing the feed-forward layers takes seven eighths of their arithmetic.",
        paper="14.5 to 1.8 billion operations",
        measured=Interval.exact(flops["SM+LN+G"] / flops[OURS]),
        quantity="FLOPs of GPT-2 small's feed-forward layers at 128 tokens, before over after",
        above=7.99,
    )
    others = ("layer_norm", "gelu", "relu")
    yield Claim.judge(
        "Softmax is the only non-linearity that is left in the blocks.",
        paper="24 layer norms and 12 GELU go, 144 softmax stay",
        measured=Interval.exact(sum(costs.loc[f"cost: {name}", OURS] for name in others)),
        quantity="layer norms and activations in the blocks",
        below=0.5,
    )


def by_seed(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A column for each arm, a row for each seed; seeds that an arm did not end are NaN."""
    rows = table[table.metric == metric]
    return rows.pivot_table(index="seed", columns="arm", values="value")


def _head_claims(table: pd.DataFrame) -> Iterator[Claim]:
    overload = by_seed(table, "final overload")
    if {OURS, FUSED} <= set(overload):
        yield Claim.judge(
            "The entropy band takes heads out of overload.",
            paper="most heads in the middle of the range, none near the maximum",
            measured=paired_difference(overload[FUSED], overload[OURS]),
            quantity=f"share of heads above 0.9 of their ceiling, {FUSED} less {OURS}",
            above=0.4,
        )
    normed, bare = (
        [
            arm
            for arm in overload
            if DESIGNS[arm].norm == norm and not DESIGNS[arm].band and arm not in _STRESS
        ]
        for norm in ("ln", "none")
    )
    plain = [arm for arm in bare if DESIGNS[arm].ffn_norm is None]
    if normed and plain:
        yield Claim.judge(
            "Without layer norm more heads are overloaded, whatever the activation.",
            paper="entropic overload in early layers without layer norm",
            measured=paired_difference(overload[plain].min(axis=1), overload[normed].max(axis=1)),
            quantity="share of overloaded heads: the least without less the most with layer norm",
            above=0,
        )


def _loss_claims(config: EntropyGuidedConfig, table: pd.DataFrame) -> Iterator[Claim]:
    toy = config.data == _LIBRARY
    loss = by_seed(table, "final validation loss")
    if {"SM+R", "SM+G"} <= set(loss):
        yield Claim.judge(
            "Without layer norm ReLU learns better than GELU.",
            paper="perplexity 2.94 against 3.20",
            measured=paired_difference(loss["SM+G"], loss["SM+R"]),
            quantity="validation loss of SM+G less that of SM+R, nats a token",
            above=0,
        )
    if {OURS, FUSED} <= set(loss):
        yield Claim.judge(
            "The entropy band costs next to nothing.",
            paper="it gains",
            measured=mean_interval(loss[OURS] / loss[FUSED] - 1),
            quantity=f"validation loss of {OURS} over that of {FUSED}, less 1",
            below=0.02,
        )
        statement = "Temperatures and the band lower the perplexity."
        gain = mean_interval(1 - np.exp(loss[OURS] - loss[FUSED]))
        paper, quantity = "3.48 to 3.21, by 7.8 %", f"perplexity, share below that of {FUSED}"
        if toy:
            yield Claim.not_measurable(
                statement,
                paper=paper,
                quantity=quantity,
                note=f"Measured here: {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]; a few hundred "
                "steps of four layers do not decide it. Preset paper judges it.",
            )
        else:
            yield Claim.judge(statement, paper=paper, measured=gain, quantity=quantity, above=0.03)
    diverged = table[(table.metric == "diverged") & (table.arm == "SM")].value
    if len(diverged):
        statement, paper = "With softmax alone training ends in NaN.", "NaN, in twelve layers"
        quantity = "share of seeds whose loss is not finite"
        if toy:
            note = f"{int(diverged.sum())} of {len(diverged)} runs did; four layers are not deep."
            yield Claim.not_measurable(statement, paper=paper, quantity=quantity, note=note)
        else:
            yield Claim.judge(
                statement,
                paper=paper,
                measured=mean_interval(diverged),
                quantity=quantity,
                above=0.5,
            )


# Figures --------------------------------------------------------------------------------------------


def _heads(table: pd.DataFrame, arms: Sequence[str]) -> Figure:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    rows = table[table.metric == "head"]
    rows = rows[rows.step == rows.groupby(["arm", "seed"]).step.transform("max")]
    shown = [arm for arm in arms if arm in set(rows.arm)]
    columns = 4
    plot = make_subplots(
        rows=max(1, -(-len(shown) // columns)),
        cols=columns,
        subplot_titles=shown or None,
        vertical_spacing=0.12,
    )
    for i, arm in enumerate(shown):
        grid = rows[rows.arm == arm].pivot_table(index="layer", columns="head", values="value")
        heat = go.Heatmap(
            z=grid,
            zmin=0,
            zmax=1,
            colorscale=[
                [0, "#000000"],
                [0.1, "#000000"],
                [0.1, "#31688e"],
                [0.5, "#35b779"],
                [0.9, "#fde725"],
                [0.9, "#d9480f"],
                [1, "#b3001b"],
            ],
            showscale=i == 0,
        )
        at = {"row": i // columns + 1, "col": i % columns + 1}
        plot.add_trace(heat, **at)
        plot.update_xaxes(title="head", dtick=1, **at)
        plot.update_yaxes(title="layer" if i % columns == 0 else None, dtick=1, **at)
    plot.update_layout(height=230 * max(1, -(-len(shown) // columns)) + 80)
    return Figure(
        "Every head's attention entropy over its ceiling",
        "On validation text after training, or the last time before a loss was not finite; mean over "
        "seeds. Red heads, above 0.9, average over everything they see: overload. Black ones, below "
        "0.1, look at one key: collapse.",
        plot,
    )


def _losses(table: pd.DataFrame, arms: Sequence[str]) -> Figure:
    import plotly.graph_objects as go

    loss = by_seed(table, "final validation loss")
    shown = [arm for arm in arms if arm in set(loss)]
    found = {arm: mean_interval(loss[arm].dropna()) for arm in shown}
    finite = [arm for arm in shown if math.isfinite(found[arm].low)]
    rows = table[table.metric == "final validation loss"]
    plot = go.Figure()
    plot.add_scatter(
        x=finite,
        y=[found[arm].value for arm in finite],
        error_y={
            "array": [found[arm].high - found[arm].value for arm in finite],
            "arrayminus": [found[arm].value - found[arm].low for arm in finite],
        },
        mode="markers",
        marker={"size": 11, "symbol": "diamond"},
        name="mean",
    )
    plot.add_scatter(
        x=rows.arm, y=rows.value, mode="markers", marker={"opacity": 0.45}, name="a seed"
    )
    plot.update_xaxes(categoryorder="array", categoryarray=list(arms))
    plot.update_yaxes(title="validation loss (nats a token)")
    return Figure("Validation loss", "Means with 95 % intervals over seeds, and every seed.", plot)


def _curves(table: pd.DataFrame, arms: Sequence[str]) -> Figure:
    from plotly.subplots import make_subplots

    shares = {"overload": "above 0.9 of their ceiling", "collapse": "below 0.1"}
    plot = make_subplots(cols=2, subplot_titles=[f"heads {where}" for where in shares.values()])
    for column, metric in enumerate(shares, start=1):
        rows = table[table.metric == metric]
        for i, arm in enumerate(arms):
            curve = rows[rows.arm == arm].groupby("step").value.mean()
            plot.add_scatter(
                x=curve.index,
                y=curve.to_numpy(),
                name=arm,
                legendgroup=arm,
                showlegend=column == 1,
                line={
                    "color": color(i),
                    "width": 4 if arm == OURS else 1.5,
                    "dash": "dot" if arm in _STRESS else "solid",
                },
                row=1,
                col=column,
            )
        plot.update_xaxes(title="optimiser step", row=1, col=column)
        plot.update_yaxes(title="share" if column == 1 else None, range=[-0.02, 1.02], col=column)
    return Figure(
        "Overload and collapse as training goes on",
        "New heads are all uniform; the question is how many of them ever learn where to look, and "
        "whether they then look at one key alone. Means over seeds; a line ends where its loss was not "
        "finite any more.",
        plot,
    )


def _thresholds(table: pd.DataFrame) -> Figure:
    import plotly.graph_objects as go

    rows = table[table.arm == OURS]
    theta = rows[rows.metric == "theta"].set_index(["seed", "layer", "head"]).value
    heads = rows[rows.metric == "final head"].set_index(["seed", "layer", "head"]).value
    plot = go.Figure()
    for layer in sorted(set(theta.index.get_level_values("layer"))):
        centre = theta.xs(layer, level="layer")
        at = heads.xs(layer, level="layer").reindex(centre.index)
        plot.add_scatter(x=centre, y=at, mode="markers", name=f"layer {int(layer)}")
    plot.update_xaxes(title="theta: centre of the band over ln T")
    plot.update_yaxes(title="entropy over its ceiling", range=[0, 1.02])
    return Figure(
        "Where bands and heads ended",
        "One point a head and seed. Centres start at 0.5; each moves towards its head as the head moves "
        "towards it.",
        plot,
    )


def _costs(table: pd.DataFrame, arms: Sequence[str]) -> Figure:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    costs = table[table.metric.str.startswith("cost")].pivot_table(
        index="arm", columns="metric", values="value"
    )
    costs = costs.reindex([arm for arm in arms if arm in costs.index])
    plot = make_subplots(
        cols=2, subplot_titles=["elements of non-linear operations", "FLOPs of linear ones"]
    )
    kinds = ("softmax_elements", "layer_norm_elements", "gelu_elements", "relu_elements")
    for i, kind in enumerate((*kinds, "attention_flops", "ffn_flops")):
        bar = go.Bar(
            x=costs.index,
            y=costs[f"cost: {kind}"],
            name=kind.replace("_", " "),
            marker_color=color(i),
        )
        plot.add_trace(bar, row=1, col=1 if kind in kinds else 2)
    plot.update_layout(barmode="stack")
    return Figure(
        "What private inference would pay for",
        "GPT-2 small, blocks alone, 128 tokens: counts, not measured times. Non-linear elements are what "
        "encrypted inference pays for in communication, each kind at a price of its own.",
        plot,
    )


experiment = EntropyGuidedExperiment()
