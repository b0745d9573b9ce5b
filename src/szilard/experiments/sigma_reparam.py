"""Sigma-reparametrisation against other ways to keep a vision transformer from collapsing.

Part A is exact: the bound on attention entropy over random and worst rows, and how far a sign-like
update moves the spectral norm of a matrix. Part B trains one transformer under each scheme without
warm-up, at learning rates up to ones that are too high, with the attention entropy of every head
recorded on the way, and holds the bound against the heads that come out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from szilard._extras import require
from szilard.lab.experiment import Claim, ExperimentConfig, Figure, Interval, Log, Preset, Row
from szilard.lab.figures import color
from szilard.lab.statistics import mean_interval, paired_difference

if TYPE_CHECKING:
    import pandas as pd

OURS = "sigma, pre-LN"
BARE = "sigma, no norm"
PLAIN = "pre-LN"
SCHEMES = (
    OURS,
    BARE,
    PLAIN,
    "post-LN",
    "pre-LN, warm-up",
    "pre-LN, clipping",
    "spectral norm",
    "weight norm",
    "QK-norm",
)
_TRANSIENT = 20  # steps after which entropies count: before, weights are next to random


class SigmaConfig(ExperimentConfig):
    schemes: tuple[str, ...] = Field(
        default=SCHEMES, min_length=2, description=f"any of: {'; '.join(SCHEMES)}"
    )
    swept: tuple[str, ...] = Field(
        default=(OURS, BARE, PLAIN),
        description="schemes that train at every learning rate; the others at the highest alone",
    )
    learning_rates: tuple[float, ...] = Field(
        default=(3e-3, 1e-2, 3e-2), min_length=1, description="of Adam, constant, ascending"
    )
    steps: int = Field(default=300, ge=_TRANSIENT + 1, description="optimiser steps")
    batch_size: int = Field(default=32, ge=1, description="images a step")
    record_every: int = Field(default=10, ge=1, description="steps between two entropies")
    probe: int = Field(default=8, ge=1, description="images of a batch that entropies are read on")
    warmup: float = Field(default=0.1, gt=0, lt=1, description="share of the steps, of that scheme")
    clip: float = Field(default=1.0, gt=0, description="gradient norm, of that scheme")
    data: str = Field(
        default="digits", description='"digits" (scikit-learn\'s), or a Hugging Face id of images'
    )
    image_size: int = Field(default=8, ge=1, description="pixels, height and width")
    patch_size: int = Field(default=2, ge=1, description="pixels")
    width: int = Field(default=48, ge=1, description="hidden units")
    layers: int = Field(default=4, ge=1, description="transformer layers")
    heads: int = Field(default=4, ge=1, description="attention heads")
    rows: int = Field(default=2000, ge=1, description="random rows a norm, part A")
    device: str = Field(default="auto", description='"auto", "cpu", "cuda", ...')
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of products, under autocast"
    )

    @field_validator("schemes", "swept")
    @classmethod
    def _known(cls, schemes: tuple[str, ...]) -> tuple[str, ...]:
        for scheme in schemes:
            if scheme not in SCHEMES:
                raise ValueError(f"schemes: {scheme!r} is none of {'; '.join(SCHEMES)}")
        return schemes

    def rates(self, scheme: str) -> tuple[float, ...]:
        """The learning rates that a scheme trains at."""
        return self.learning_rates if scheme in self.swept else self.learning_rates[-1:]


class SigmaExperiment:
    """Stabilizing Transformer Training by Preventing Attention Entropy Collapse (Zhai et al., 2023)."""

    Config = SigmaConfig
    presets: ClassVar[Mapping[Preset, SigmaConfig]] = {
        "smoke": SigmaConfig(
            seeds=2,
            schemes=(OURS, PLAIN, "post-LN", "QK-norm"),
            learning_rates=(1e-2,),
            steps=24,
            batch_size=16,
            width=16,
            layers=2,
            heads=2,
            rows=50,
        ),
        "quick": SigmaConfig(),
        "paper": SigmaConfig(
            data="ILSVRC/imagenet-1k",
            learning_rates=(5e-4, 1e-3),
            steps=375_000,
            batch_size=1024,
            record_every=2500,
            image_size=224,
            patch_size=16,
            width=768,
            layers=12,
            heads=12,
            precision="bfloat16",
        ),
    }

    def arms(self, config: SigmaConfig) -> Sequence[str]:
        return list(config.schemes)

    def run(self, config: SigmaConfig, arm: str, seed: int, log: Log) -> Sequence[Row]:
        rows: list[Row] = []
        if arm == config.schemes[0]:
            log(0.0, "bounds")
            rows += bounds(config.rows, seed) + updates(seed)
        rates = config.rates(arm)
        for i, rate in enumerate(rates):

            def log_rate(fraction: float, i: int = i, rate: float = rate) -> None:
                log((i + fraction) / len(rates), f"training at {rate:g}")

            rows += trained(config, arm, rate, seed, log_rate)
        return rows

    def claims(self, config: SigmaConfig, table: pd.DataFrame) -> Sequence[Claim]:
        return [*_exact_claims(table), *_training_claims(config, table)]

    def figures(self, config: SigmaConfig, table: pd.DataFrame) -> Sequence[Figure]:
        arms = [arm for arm in config.schemes if arm in set(table.arm)]
        return [
            _accuracies(config, table, arms),
            _entropies(config, table, arms),
            _courses(config, table),
            _heads(config, table),
            _floor(config, table),
        ]


# Exact parts ----------------------------------------------------------------------------------------


def bounds(rows: int, seed: int) -> list[Row]:
    """How far random rows of logits lie above the floor, and how near the worst ones come to it."""
    from szilard.measures import attention_entropy, attention_entropy_floor

    generator = torch.Generator().manual_seed(seed)
    found: list[Row] = []
    for keys in (16, 197, 1024):
        norms = torch.logspace(-1, 2, rows, dtype=torch.float64)
        random = torch.randn(rows, keys, generator=generator, dtype=torch.float64) ** 3
        random -= random.mean(-1, keepdim=True)
        random *= (norms / random.norm(dim=-1))[:, None]
        worst = (-norms / math.sqrt(keys * (keys - 1)))[:, None].repeat(1, keys)
        worst[:, 0] = norms * math.sqrt((keys - 1) / keys)
        floor = attention_entropy_floor(norms, keys)
        for name, logits in (("least slack", random), ("slack of the worst rows", worst)):
            slack = attention_entropy(logits.softmax(-1)[None])[0] - floor
            value = slack.min() if name == "least slack" else slack.abs().max()
            found.append({"metric": name, "value": float(value), "keys": keys})
    return found


def updates(seed: int) -> list[Row]:
    """Spectral norms of the signs of random gradients, as Adam's first update is, over sqrt(width)."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Row] = []
    for width in (64, 128, 256, 512, 1024):
        # Entries with means as large as their noise: a gradient has a direction.
        mean = torch.randn(width, 1, generator=generator) @ torch.randn(
            1, width, generator=generator
        )
        sign = (mean + torch.randn(width, width, generator=generator)).sign()
        value = float(torch.linalg.matrix_norm(sign, 2)) / math.sqrt(width)
        found.append({"metric": "update norm over sqrt(width)", "value": value, "width": width})
    return found


# Training -------------------------------------------------------------------------------------------


class PostNorm(nn.Module):
    """A layer of the vision transformer with its norms after the residual sums."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.attention, self.mlp = layer.attention, layer.mlp
        self.after_attention, self.after_mlp = layer.layernorm_before, layer.layernorm_after

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Tensor:
        mixed, _ = self.attention(hidden_states, attention_mask, **kwargs)
        hidden_states = self.after_attention(hidden_states + mixed)
        return self.after_mlp(hidden_states + self.mlp(hidden_states))


class HeadNorm(nn.Module):
    """A norm of each head's queries or keys."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width // heads)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.unflatten(-1, (self.heads, -1))).flatten(-2)


def build(config: SigmaConfig, scheme: str, classes: int, channels: int) -> Any:
    """A vision transformer under a scheme, initialised as the official code does."""
    from szilard.layers import sigma_reparam

    transformers = require("transformers", "language")
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            num_channels=channels,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.width,
            num_labels=classes,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.02,
        )
    )
    linear = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    if scheme in (OURS, BARE):
        sigma_reparam(model, remove_norms=scheme == BARE)
    elif scheme == "post-LN":
        model.vit.layers = nn.ModuleList(PostNorm(layer) for layer in model.vit.layers)
        model.vit.layernorm = nn.Identity()
    elif scheme == "spectral norm":
        for layer in linear:
            parametrizations.spectral_norm(layer)
    elif scheme == "weight norm":
        for layer in linear:
            parametrizations.weight_norm(layer)
    elif scheme == "QK-norm":
        for layer in model.vit.layers:
            for name in ("q_proj", "k_proj"):
                whole = getattr(layer.attention, name), HeadNorm(config.heads, config.width)
                setattr(layer.attention, name, nn.Sequential(*whole))
    return model


def trained(
    config: SigmaConfig, scheme: str, rate: float, seed: int, log: Callable[[float], None]
) -> list[Row]:
    """Trains a model; its accuracy, losses and entropies."""
    from szilard.representations import AttentionEntropyRecorder

    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    data = _data(config)
    with torch.random.fork_rng(devices=[] if device == "cpu" else None):
        torch.manual_seed(seed)
        model = build(config, scheme, data.classes, data.channels).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), rate, fused=True)
    warm = config.warmup * config.steps if "warm-up" in scheme else 0
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm) if warm else 1.0
    )
    recorder = AttentionEntropyRecorder(model)
    half = config.precision == "bfloat16"
    own = {"rate": rate}
    rows: list[Row] = []
    losses: list[float] = []
    lowest = math.inf
    for step, (images, labels) in enumerate(data.batches(config, seed, device), 1):
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            logits = model(pixel_values=images).logits
        loss = nn.functional.cross_entropy(logits.float(), labels)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        if "clipping" in scheme:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        schedule.step()
        if step % config.record_every == 0 or step == config.steps:
            heads = _entropy_of_heads(model, recorder, images[: config.probe])
            if heads is None:
                losses.append(math.nan)
                break
            least = float(heads.mean(1).min())
            rows.append({"metric": "entropy", "value": least, "step": step, **own})
            rows.append({"metric": "loss", "value": losses[-1], "step": step, **own})
            rows += [
                {"metric": "head entropy", "value": float(heads[layer, head]), "step": step}
                | {"layer": layer, "head": head, **own}
                for layer, head in np.ndindex(*heads.shape)
            ]
            if step > _TRANSIENT:
                lowest = min(lowest, least)
            log(step / config.steps)
    if not math.isfinite(losses[-1]):
        accuracy, lowest, last = 0.0, 0.0, 1e3
    else:
        rows += [{**row, **own} for row in trained_heads(model.eval(), images[: config.probe])]
        accuracy = _accuracy(model, data, config, device)
        last = min(float(np.mean(losses[-10:])), 1e3)
    return [
        *rows,
        {"metric": "accuracy", "value": accuracy, **own},
        {"metric": "least entropy", "value": lowest, **own},
        {"metric": "final loss", "value": last, **own},
    ]


def _entropy_of_heads(model: Any, recorder: Any, images: Tensor) -> np.ndarray | None:
    """Mean attention entropy, (layers, heads); None where the scores are no longer finite."""
    recorder.clear()
    try:
        with torch.no_grad(), recorder:
            model.eval()(pixel_values=images)
    except ValueError:
        return None
    finally:
        model.train()
    return torch.stack([layer.entropy for layer in recorder.layers.values()]).cpu().numpy()


@torch.no_grad()
def trained_heads(model: Any, images: Tensor) -> list[Row]:
    """How far the rows of a trained model's attention lie above what their logits allow.

    Once by the norm of a row's logits and once, where the projections are plain linear maps, by the
    product of spectral norms |W_K W_Q^T| |X X^T|; of each head, its row of least entropy too.
    """
    from szilard.measures import attention_entropy, attention_entropy_floor

    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(module: nn.Module, args: Any, out: Tensor) -> None:
        seen[module] = args[0].double(), out.double()

    maps = [(m.attention.q_proj, m.attention.k_proj) for m in model.vit.layers]
    handles = [m.register_forward_hook(keep) for pair in maps for m in pair]
    try:
        model(pixel_values=images)
    finally:
        for handle in handles:
            handle.remove()
    heads = model.config.num_attention_heads
    rows: list[Row] = []
    for query, key in maps:
        q, k = (seen[m][1].unflatten(-1, (heads, -1)).transpose(1, 2) for m in (query, key))
        logits = q @ k.mT / math.sqrt(q.shape[-1])
        norms = (logits - logits.mean(-1, keepdim=True)).norm(dim=-1)
        entropy, keys = attention_entropy(logits.softmax(-1)), logits.shape[-1]
        slack = entropy - attention_entropy_floor(norms, keys)
        rows.append({"metric": "slack of a trained head", "value": float(slack.min())})
        if isinstance(query, nn.Linear):
            whole = _product_norm(query, key, seen[query][0], heads)[..., None]
            slack = entropy - attention_entropy_floor(whole.expand_as(entropy), keys)
            rows.append({"metric": "slack by spectral norms", "value": float(slack.min())})
            ratio = float((whole / norms).median())
            rows.append({"metric": "spectral norms over row norm", "value": ratio})
        for head in range(heads):
            least = int(entropy[:, head].argmin())
            rows.append(
                {
                    "metric": "row of least entropy",
                    "value": float(entropy[:, head].flatten()[least]),
                    "norm": float(norms[:, head].flatten()[least]),
                    "keys": keys,
                }
            )
    return rows


def _product_norm(query: Any, key: Any, inputs: Tensor, heads: int) -> Tensor:
    """|W_K W_Q^T| |X X^T| over sqrt(width) of each image and head; biases are an input of 1."""
    ones = torch.ones_like(inputs[..., :1])
    x = torch.cat([inputs, ones], -1)
    w_q, w_k = (
        torch.cat([m.weight, m.bias[:, None]], 1).double().unflatten(0, (heads, -1))
        for m in (query, key)
    )
    weights = torch.linalg.matrix_norm(w_k.mT @ w_q, 2) / math.sqrt(w_q.shape[1])
    return torch.linalg.matrix_norm(x, 2).square()[:, None] * weights


def _accuracy(model: Any, data: _Images, config: SigmaConfig, device: str) -> float:
    right = total = 0
    with torch.inference_mode():
        for images, labels in data.test(config, device):
            right += int((model(pixel_values=images).logits.argmax(-1) == labels).sum())
            total += len(labels)
    return right / total


class _Images:
    """Images with their classes, from scikit-learn or a hub data set, one or three channels."""

    def __init__(self, classes: int, channels: int, train: Any, test: Any) -> None:
        self.classes, self.channels = classes, channels
        self._train, self._test = train, test

    def batches(
        self, config: SigmaConfig, seed: int, device: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As many as there are steps; the same for every scheme."""
        rng = np.random.default_rng(seed)
        size, order = len(self._train), np.empty(0, dtype=np.int64)
        for _ in range(config.steps):
            while len(order) < config.batch_size:
                order = np.concatenate([order, rng.permutation(size)])
            chosen, order = order[: config.batch_size], order[config.batch_size :]
            yield self._load(self._train, chosen, device, rng)

    def test(self, config: SigmaConfig, device: str) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self._test), config.batch_size):
            chosen = np.arange(start, min(start + config.batch_size, len(self._test)))
            yield self._load(self._test, chosen, device, None)

    @staticmethod
    def _load(
        data: Any, chosen: np.ndarray, device: str, rng: np.random.Generator | None
    ) -> tuple[Tensor, Tensor]:
        images, labels = data.load(chosen, rng)
        return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)


class _Digits:
    def __init__(self, split: str) -> None:
        from szilard.zoo.images import digits

        data = digits(split)
        self._images = (data.images[:, None] / np.float32(127.5) - 1).astype(np.float32)
        self._labels = data.labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self._labels)

    def load(self, chosen: np.ndarray, rng: Any) -> tuple[np.ndarray, np.ndarray]:
        return self._images[chosen], self._labels[chosen]


class _Hub:
    """Pictures cropped to a square: at random and mirrored at random in training, else the middle."""

    def __init__(self, name: str, split: str, size: int) -> None:
        datasets = require("datasets", "language")
        self._data = datasets.load_dataset(name, split=split)
        self._size = size
        self.classes = self._data.features["label"].num_classes

    def __len__(self) -> int:
        return len(self._data)

    def load(self, chosen: np.ndarray, rng: Any) -> tuple[np.ndarray, np.ndarray]:
        rows = self._data[chosen.tolist()]
        pictures = [self._square(image.convert("RGB"), rng) for image in rows["image"]]
        images = np.stack(pictures).transpose(0, 3, 1, 2) / np.float32(127.5) - 1
        return images.astype(np.float32), np.array(rows["label"], dtype=np.int64)

    def _square(self, image: Any, rng: np.random.Generator | None) -> np.ndarray:
        short = min(image.size)
        share = 0.875 if rng is None else math.sqrt(rng.uniform(0.08, 1.0))
        side = max(1, round(short * share))
        free = [extent - side for extent in image.size]
        left, top = (f // 2 if rng is None else int(rng.integers(f + 1)) for f in free)
        box = (left, top, left + side, top + side)
        pixels = np.asarray(image.resize((self._size, self._size), box=box))
        return pixels[:, ::-1] if rng is not None and rng.random() < 0.5 else pixels


def _data(config: SigmaConfig) -> _Images:
    if config.data == "digits":
        return _Images(10, 1, _Digits("train"), _Digits("test"))
    train, test = (_Hub(config.data, split, config.image_size) for split in ("train", "validation"))
    return _Images(train.classes, 3, train, test)


# Claims ---------------------------------------------------------------------------------------------


def _exact_claims(table: pd.DataFrame) -> list[Claim]:
    claims = []
    slack, worst = (
        table[table.metric == m].value for m in ("least slack", "slack of the worst rows")
    )
    if len(slack):
        claims += [
            Claim.judge(
                "Attention entropy never lies below the bound that the norm of its logits sets.",
                paper="theorem 3.1",
                measured=Interval.exact(slack.min()),
                quantity="least entropy above the bound, random rows of 16 to 1,024 keys, nats",
                above=-1e-9,
            ),
            Claim.judge(
                "The bound is tight.",
                paper="theorem 3.1",
                measured=Interval.exact(worst.max()),
                quantity="largest distance of the worst rows from the bound, nats",
                below=1e-9,
            ),
        ]
    trained_slack = table[
        table.metric.isin(["slack of a trained head", "slack by spectral norms"])
    ].value
    if len(trained_slack):
        claims.append(
            Claim.judge(
                "Nor do the heads of trained models.",
                paper="theorem 3.1",
                measured=Interval.exact(trained_slack.min()),
                quantity="least entropy above the bound, all schemes and rates, nats",
                above=-1e-9,
            )
        )
    norms = table[table.metric == "update norm over sqrt(width)"]
    if len(norms):
        wide = norms.pivot(index="seed", columns="width", values="value")
        claims.append(
            Claim.judge(
                "Updates of Adam's kind raise the spectral norm at least as fast as the root of the "
                "width.",
                paper="proposition 3.2",
                measured=mean_interval(wide[wide.columns.max()] / wide[wide.columns.min()]),
                quantity="norm over sqrt(width) at 1,024, over the same at 64",
                above=0.9,
            )
        )
    return claims


def _by_rate(table: pd.DataFrame, metric: str, rate: float) -> pd.DataFrame:
    rows = table[(table.metric == metric) & (table.rate == rate)]
    return rows.pivot(index="seed", columns="arm", values="value")


def _usable(config: SigmaConfig, table: pd.DataFrame) -> pd.DataFrame:
    """How many rates give at least half of a seed's best accuracy, by seed and scheme."""
    found = table[(table.metric == "accuracy") & table.arm.isin([OURS, PLAIN])]
    best = found.groupby("seed").value.transform("max")
    return (found.value >= best / 2).groupby([found.seed, found.arm]).sum().unstack("arm")


def _training_claims(config: SigmaConfig, table: pd.DataFrame) -> list[Claim]:
    high = config.learning_rates[-1]
    entropy, loss, accuracy = (
        _by_rate(table, metric, high) for metric in ("least entropy", "final loss", "accuracy")
    )
    if not {OURS, PLAIN} <= set(entropy):
        return []
    claims = [
        Claim.judge(
            "At too high a learning rate the attention entropy of a plain transformer collapses.",
            paper="to about 0 in some layers at twice the learning rate",
            measured=mean_interval(entropy[PLAIN]),
            quantity=f"least mean entropy of a layer at {high:g}, nats",
            below=0.1,
        ),
        Claim.judge(
            "Its training fails with it.",
            paper="the loss stays near 6.9, that of a guess among 1,000",
            measured=mean_interval(loss[PLAIN]),
            quantity=f"training loss over the last ten steps at {high:g}, nats",
            above=1.0,
        ),
    ]
    for rate in config.learning_rates[-2:]:
        least = _by_rate(table, "least entropy", rate)
        claims.append(
            Claim.judge(
                f"Sigma-reparametrisation prevents the collapse at {rate:g}.",
                paper="entropies of all layers stay high",
                measured=paired_difference(least[OURS], 5 * least[PLAIN]),
                quantity="least mean entropy less five times that of pre-LN, nats",
                above=0,
            )
        )
    lower = config.learning_rates[-2:][0]
    claims.append(
        Claim.judge(
            f"No layer collapses under it at {lower:g}.",
            paper="entropies of all layers stay high",
            measured=mean_interval(_by_rate(table, "least entropy", lower)[OURS]),
            quantity=f"least mean entropy of a layer at {lower:g}, nats",
            above=0.1,
        )
    )
    usable = _usable(config, table)
    claims.append(
        Claim.judge(
            "It can be trained at more learning rates.",
            paper="trains at rates where the plain transformer fails",
            measured=paired_difference(usable[OURS], usable[PLAIN]),
            quantity="learning rates tried with at least half of the best accuracy, "
            "less those of pre-LN",
            above=0,
        )
    )
    claims.append(
        Claim.judge(
            f"It still learns at {high:g}.",
            paper="competitive without warm-up",
            measured=paired_difference(accuracy[OURS], accuracy[PLAIN]),
            quantity=f"test accuracy less that of pre-LN at {high:g}",
            above=0.2,
        )
    )
    others = [arm for arm in accuracy if arm not in (OURS, BARE, PLAIN)]
    if others:
        best = max(others, key=lambda arm: accuracy[arm].mean())
        claims.append(
            Claim.judge(
                "No other remedy does better there.",
                paper="no comparison at this learning rate",
                measured=paired_difference(accuracy[OURS], accuracy[best]),
                quantity=f"test accuracy less that of {best}, the best of the others, at {high:g}",
                above=-0.02,
            )
        )
    if config.data == "digits":
        claims.append(
            Claim.not_measurable(
                "A vision transformer trains to competitive accuracy without layer norm, warm-up, "
                "weight decay or an adaptive optimiser.",
                paper="ViT-B on ImageNet-1k",
                quantity="top-1 accuracy",
                note="A few hundred steps of a small net tell nothing of it: the paper preset does.",
            )
        )
    return claims


# Figures --------------------------------------------------------------------------------------------


def _accuracies(config: SigmaConfig, table: pd.DataFrame, arms: Sequence[str]) -> Figure:
    import plotly.graph_objects as go

    plot = go.Figure()
    for arm in arms:
        own = config.rates(arm)
        found = [mean_interval(_by_rate(table, "accuracy", rate)[arm]) for rate in own]
        plot.add_scatter(
            x=[f"{rate:g}" for rate in own],
            y=[i.value for i in found],
            error_y={
                "array": [min(i.high, 1) - i.value for i in found],
                "arrayminus": [i.value - max(i.low, 0) for i in found],
                "thickness": 1.2,
            },
            name=arm,
            line={"color": color(arms.index(arm)), "width": 4 if arm == OURS else 1.5},
        )
    order = [f"{rate:g}" for rate in config.learning_rates]
    plot.update_xaxes(
        title="learning rate", type="category", categoryorder="array", categoryarray=order
    )
    plot.update_yaxes(title="test accuracy", range=[0, 1])
    return Figure(
        "Accuracy over the learning rate",
        "How far each scheme's range of usable learning rates reaches without warm-up (but for the "
        "one that has it). Bars are 95 % bootstrap intervals over seeds.",
        plot,
    )


def _entropies(config: SigmaConfig, table: pd.DataFrame, arms: Sequence[str]) -> Figure:
    import plotly.graph_objects as go

    high = config.learning_rates[-1]
    rows = table[(table.metric == "entropy") & (table.rate == high)]
    plot = go.Figure()
    for arm in arms:
        curve = rows[rows.arm == arm].groupby("step").value.mean()
        width = 4 if arm == OURS else 1.5
        line = {"color": color(arms.index(arm)), "width": width}
        plot.add_scatter(x=curve.index, y=curve.to_numpy(), name=arm, line=line)
    plot.update_xaxes(title="optimiser step")
    plot.update_yaxes(title="mean attention entropy of the lowest layer (nats)", rangemode="tozero")
    return Figure(
        f"Attention entropy at learning rate {high:g}",
        "The layer with the least entropy, as training goes on; means over seeds. Near 0 every query "
        "looks at one key.",
        plot,
    )


def _courses(config: SigmaConfig, table: pd.DataFrame) -> Figure:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    high, first = config.learning_rates[-1], table.seed.min()
    rows = table[(table.metric == "head entropy") & (table.rate == high) & (table.seed == first)]
    shown = [arm for arm in (OURS, PLAIN) if arm in set(rows.arm)]
    plot = make_subplots(cols=max(1, len(shown)), subplot_titles=shown or None, shared_yaxes=True)
    for column, arm in enumerate(shown, 1):
        for (layer, head), curve in rows[rows.arm == arm].groupby(["layer", "head"]):
            line = go.Scatter(
                x=curve.step,
                y=curve.value,
                name=f"layer {layer:.0f}",
                legendgroup=f"{layer:.0f}",
                showlegend=bool(column == 1 and head == 0),
                hovertext=f"layer {layer:.0f}, head {head:.0f}",
                line={"color": color(int(layer)), "width": 1.2},
            )
            plot.add_trace(line, row=1, col=column)
        plot.update_xaxes(title="optimiser step", row=1, col=column)
    plot.update_yaxes(rangemode="tozero")
    plot.update_yaxes(title="mean attention entropy (nats)", row=1, col=1)
    return Figure(
        f"Every head over training, learning rate {high:g}",
        "A line a head, its layer's colour; one seed. Heads that fall to 0 look at one key.",
        plot,
    )


def _heads(config: SigmaConfig, table: pd.DataFrame) -> Figure:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    high = config.learning_rates[-1]
    rows = table[(table.metric == "head entropy") & (table.rate == high)]
    rows = rows[rows.step == config.steps]
    shown = [arm for arm in (OURS, PLAIN) if arm in set(rows.arm)]
    plot = make_subplots(cols=max(1, len(shown)), subplot_titles=shown or None)
    top = float(rows.value.max()) if len(rows) else 1.0
    for column, arm in enumerate(shown, 1):
        grid = rows[rows.arm == arm].pivot_table(index="layer", columns="head", values="value")
        heat = go.Heatmap(
            z=grid, zmin=0, zmax=top, colorscale="Viridis", showscale=column == len(shown)
        )
        plot.add_trace(heat, row=1, col=column)
        plot.update_xaxes(title="head", dtick=1, row=1, col=column)
        plot.update_yaxes(title="layer", dtick=1, row=1, col=column)
    return Figure(
        f"Every head at the end, learning rate {high:g}",
        "Mean attention entropy in nats, mean over seeds. Dark heads have collapsed.",
        plot,
    )


def _floor(config: SigmaConfig, table: pd.DataFrame) -> Figure:
    import plotly.graph_objects as go

    from szilard.measures import attention_entropy_floor

    rows = table[table.metric == "row of least entropy"]
    keys = sorted({int(n) for n in rows["keys"]} | {197, 1024}) if len(rows) else [197, 1024]
    # What collapsed lies far to the right of where the floor is seen to fall.
    norms = torch.logspace(-1, 3, 300, dtype=torch.float64)
    plot = go.Figure()
    for i, n in enumerate(keys):
        floor = attention_entropy_floor(norms, n)
        plot.add_scatter(
            x=norms.tolist(), y=floor.tolist(), name=f"least, {n:,} keys", line_color=color(i)
        )
    for i, arm in enumerate((OURS, PLAIN), len(keys)):
        points = rows[rows.arm == arm]
        plot.add_scatter(
            x=points.norm, y=points.value, name=arm, mode="markers", marker_color=color(i)
        )
    plot.update_xaxes(title="norm of the logits less their mean", type="log")
    plot.update_yaxes(title="attention entropy (nats)", rangemode="tozero")
    return Figure(
        "The bound, and trained heads above it",
        "Lines: the least entropy that a row of attention can have, given the norm of its logits. "
        "It falls exponentially, so that a bounded spectral norm keeps it up. Points: of every head "
        "after training, at all rates and seeds, the row of least entropy.",
        plot,
    )


experiment = SigmaExperiment()
