"""CRReLU against seven activations, and the theory that it comes from against quadrature.

Theory: entropies of activations under a normal input, the worst activations, correction steps, and the
sign of CRReLU's eps. Parity: the same small vision transformer trained with each activation, all else
equal. Stress: a plain deep network with the worst activations themselves.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from szilard._extras import require
from szilard.lab.experiment import (
    Claim,
    ExperimentConfig,
    Figure,
    Interval,
    Log,
    Preset,
    Row,
    Verdict,
)
from szilard.lab.statistics import mean_interval
from szilard.layers import CRReLU, eafo, learned_eps, replace_activation

if TYPE_CHECKING:
    import pandas as pd

METHOD = "crrelu"
THEORY = "theory"
VISION: dict[str, Callable[[], nn.Module]] = {
    METHOD: CRReLU,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "celu": nn.CELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
}
NAMES = {
    "relu": "ReLU",
    "gelu": "GELU",
    "prelu": "PReLU",
    "elu": "ELU",
    "celu": "CELU",  # with alpha = 1 the same function as ELU
    "silu": "SiLU",
    "mish": "Mish",
}
WORST = {"wafbc [0, 1]": 0.0, "wafbc [-1, 1]": -1.0}


class Worst(nn.Module):
    """The activation of most output entropy between `low` and 1 under a normal input."""

    def __init__(self, low: float) -> None:
        super().__init__()
        self._function = eafo.wafbc("normal", low, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self._function(x)


STRESS: dict[str, Callable[[], nn.Module]] = {
    METHOD: CRReLU,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    **{name: (lambda low=low: Worst(low)) for name, low in WORST.items()},  # type: ignore[misc]
}
INCREASING: dict[str, tuple[eafo.Function, float, float]] = {
    "identity": (lambda u: u, -math.inf, math.inf),
    "softplus": (F.softplus, 0, math.inf),
    "asinh": (torch.asinh, -math.inf, math.inf),
    "sigmoid": (torch.sigmoid, 0, 1),
    "tanh": (torch.tanh, -1, 1),
    "wafbc [0, 1]": (eafo.wafbc(), 0, 1),
    "wafbc [-1, 1]": (eafo.wafbc(low=-1), -1, 1),
}


class CRReLUConfig(ExperimentConfig):
    seeds: int = Field(default=5, ge=1, description="number of seeds; seed i runs as i")
    backbones: tuple[str, ...] = Field(
        default=("tiny",), description='"tiny", or names of timm vision transformers'
    )
    datasets: tuple[str, ...] = Field(
        default=("digits",),
        description='"digits", or Hugging Face data sets with images that fit in memory',
    )
    image_size: int = Field(default=32, ge=8, description="of the timm models")
    patch_size: int = Field(default=4, ge=1, description="of the timm models")
    train_size: int = Field(default=1000, ge=10, description="training images of the digits")
    steps: int = Field(default=250, ge=1, description="training steps")
    warmup: int = Field(default=40, ge=0, description="steps of linear warm-up; then a cosine")
    batch_size: int = Field(default=32, ge=1, description="images a step")
    learning_rate: float = Field(default=2e-3, gt=0, description="of AdamW, at its highest")
    weight_decay: float = Field(default=0.01, ge=0, description="of matrices; vectors have none")
    eps_init: float = Field(default=0.01, description="CRReLU's start")
    depth: int = Field(default=6, ge=1, description="hidden layers of the plain network")
    width: int = Field(default=48, ge=1, description="of the plain network")
    stress_steps: int = Field(default=300, ge=0, description="of Adam at 1e-3; 0: no stress test")
    eafo_eps: float = Field(default=1e-3, gt=0, description="size of a correction step")
    eafo_steps: int = Field(default=2, ge=1, description="correction steps from each activation")
    language_model: str = Field(default="openai-community/gpt2", description="fine-tuned by DPO")
    preferences: tuple[str, ...] = Field(
        default=(),
        description="preference data sets for DPO, Hugging Face ids or folders; none: no DPO",
    )
    preference_pairs: int = Field(default=20_000, ge=4, description="pairs of a preference set")


class CRReLUExperiment:
    Config: ClassVar[type[ExperimentConfig]] = CRReLUConfig
    presets: ClassVar[Mapping[Preset, ExperimentConfig]] = {
        "smoke": CRReLUConfig(
            seeds=2,
            train_size=100,
            steps=4,
            warmup=1,
            batch_size=16,
            stress_steps=4,
            width=16,
        ),
        "quick": CRReLUConfig(),
        "paper": CRReLUConfig(
            seeds=3,
            backbones=(
                "vit_tiny_patch16_224",
                "deit_tiny_patch16_224",
                "tnt_s_legacy_patch16_224",
            ),
            datasets=("uoft-cs/cifar10", "uoft-cs/cifar100"),
            steps=19_600,  # 100 epochs of 50,000 images
            warmup=980,
            batch_size=256,
            learning_rate=1e-3,
            weight_decay=0.05,
            preferences=("Anthropic/hh-rlhf", "stanfordnlp/SHP"),
        ),
    }

    def arms(self, config: CRReLUConfig) -> Sequence[str]:
        stress = [arm for arm in STRESS if arm not in VISION] if config.stress_steps else []
        return [*VISION, *stress, THEORY]

    def run(self, config: CRReLUConfig, arm: str, seed: int, log: Log) -> Sequence[Row]:
        if arm == THEORY:
            return list(_theory(config))
        rows: list[Row] = []
        if arm in STRESS and config.stress_steps:
            rows += _stress(config, arm, seed, log)
        if arm in VISION:
            for backbone in config.backbones:
                for dataset in config.datasets:
                    keys = {"backbone": backbone, "dataset": dataset}
                    found = _vision(config, arm, backbone, dataset, seed, log)
                    rows += [{**row, **keys} for row in found]
        if arm in (METHOD, "gelu"):
            for name in config.preferences:
                rows += _preferences(config, arm, name, seed)
        return rows

    def claims(self, config: CRReLUConfig, table: pd.DataFrame) -> Sequence[Claim]:
        return [
            *_theory_claims(config, table),
            *_vision_claims(config, table),
            *_stress_claims(config, table),
            *_preference_claims(table),
        ]

    def figures(self, config: CRReLUConfig, table: pd.DataFrame) -> Sequence[Figure]:
        figures = [_entropy_figure(table), _sign_figure(table), *_accuracy_figures(table)]
        return [*figures, _eps_figure(config, table)]


experiment = CRReLUExperiment()


# --- theory ---------------------------------------------------------------------------------------


def _theory(config: CRReLUConfig) -> Iterator[Row]:
    for name, (f, low, high) in INCREASING.items():
        bound = math.log(high - low) if math.isfinite(high - low) else math.inf
        entropy = eafo.output_entropy(f)
        yield {"metric": "entropy", "activation": name, "value": entropy, "bound": bound}
    for name in ("sigmoid", "tanh"):
        f = INCREASING[name][0]
        for step in range(config.eafo_steps):
            corrected = eafo.step(f, config.eafo_eps)
            fallen = eafo.output_entropy(f) - eafo.output_entropy(corrected)
            promised = -config.eafo_eps * eafo.entropy_slope(f)
            yield {
                "metric": "correction step",
                "activation": name,
                "step": step + 1,
                "value": fallen / promised,
                "fallen": fallen,
            }
            f = corrected
    straight = eafo.output_entropy(lambda u: u)
    for eps in [*np.linspace(-0.5, 0.5, 21).tolist(), config.eps_init]:
        value = eafo.output_entropy(_branch(eps)) - straight
        yield {"metric": "entropy of the branch", "eps": eps, "value": value}


def _branch(eps: float) -> eafo.Function:
    """CRReLU's positive branch, on the whole line."""
    return lambda u: u + eps * u * torch.exp(-0.5 * u * u)


# --- training -------------------------------------------------------------------------------------


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(self.before_attention(x)).view(n, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        x = x + self.out(mixed)
        return x + self.mlp(self.before_mlp(x))


class TinyViT(nn.Module):
    """Four blocks of width 32 with two heads and MLPs of 64, on 16 patches of 2 x 2 pixels."""

    def __init__(self, classes: int, width: int = 32, depth: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class Split:
    """Training and test images in [-1, 1] with their classes; `digits` are divided anew by a seed."""

    def __init__(self, config: CRReLUConfig, name: str, seed: int) -> None:
        self.train_x, self.train_y, self.test_x, self.test_y = (
            _digits(config, seed) if name == "digits" else _hub_images(config, name)
        )
        self.classes = int(max(self.train_y.max(), self.test_y.max())) + 1


def _digits(config: CRReLUConfig, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from szilard.zoo.images import digits

    parts = digits("train"), digits("test")
    x = torch.from_numpy(np.concatenate([part.images for part in parts]))[:, None] / 127.5 - 1
    y = torch.from_numpy(np.concatenate([part.labels for part in parts])).long()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
    train, test = order[: config.train_size], order[config.train_size :]
    return x[train], y[train], x[test], y[test]


def _hub_images(config: CRReLUConfig, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    datasets = require("datasets", extra="language")
    found: list[Tensor] = []
    for split in ("train", "test"):
        source = datasets.load_dataset(name, split=split)
        image = "img" if "img" in source.column_names else "image"
        label = "fine_label" if "fine_label" in source.column_names else "label"
        size = (config.image_size, config.image_size)
        pixels = [np.asarray(one.convert("RGB").resize(size)) for one in source[image]]
        x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        found += [x / 127.5 - 1, torch.tensor(source[label])]
    return found[0], found[1], found[2], found[3]


def _network(config: CRReLUConfig, arm: str, backbone: str, classes: int) -> nn.Module:
    if backbone == "tiny":
        model: nn.Module = TinyViT(classes)
    else:
        try:
            import timm
        except ImportError as error:
            raise ImportError(
                "this backbone is a timm model: pip install timm torchvision (matching your torch), "
                'or set backbones to ["tiny"]'
            ) from error
        size = {"img_size": config.image_size, "patch_size": config.patch_size}
        model = timm.create_model(backbone, num_classes=classes, **size)
    build = VISION[arm]
    if arm == METHOD:
        build = lambda: CRReLU(config.eps_init)  # noqa: E731
    return replace_activation(model, (nn.ReLU, nn.GELU), build)[0]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Weights and dropout draw from torch's global generator: seeded inside, restored after."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _vision(
    config: CRReLUConfig, arm: str, backbone: str, dataset: str, seed: int, log: Log
) -> Iterator[Row]:
    split = Split(config, dataset, seed)
    with _seeded(seed):
        model = _network(config, arm, backbone, split.classes)
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices},
            {"params": vectors, "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: _rate(step, config.warmup, config.steps)
        )
        _train(model, split, config.steps, config.batch_size, seed, optimiser, schedule.step, log)
    yield {"metric": "accuracy", "value": _accuracy(model, split)}
    for layer, eps in enumerate(learned_eps(model).values()):
        yield {"metric": "eps", "layer": layer + 1, "value": float(eps)}


def _rate(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _stress(config: CRReLUConfig, arm: str, seed: int, log: Log) -> Iterator[Row]:
    split = Split(config, "digits", seed)
    with _seeded(seed):
        sizes = [split.train_x[0].numel(), *[config.width] * config.depth]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in pairwise(sizes):
            linear = nn.Linear(fan_in, fan_out)
            nn.init.kaiming_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers += [linear, STRESS[arm]()]
        model = nn.Sequential(*layers, nn.Linear(config.width, split.classes))
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        _train(
            model, split, config.stress_steps, config.batch_size, seed, optimiser, lambda: None, log
        )
    yield {"metric": "stress accuracy", "value": _accuracy(model, split)}


def _train(
    model: nn.Module,
    split: Split,
    steps: int,
    batch_size: int,
    seed: int,
    optimiser: torch.optim.Optimizer,
    after_step: Callable[[], None],
    log: Log,
) -> None:
    """The same batches for every arm of a seed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    rng = np.random.default_rng([seed, 1])
    for step in range(steps):
        rows = torch.from_numpy(rng.integers(len(split.train_y), size=batch_size))
        loss = F.cross_entropy(
            model(split.train_x[rows].to(device)), split.train_y[rows].to(device)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        after_step()
        if step % 20 == 0:
            log(step / steps, f"step {step} of {steps}")


@torch.no_grad()
def _accuracy(model: nn.Module, split: Split) -> float:
    model.eval()
    device = next(model.parameters()).device
    right = [
        (model(x.to(device)).argmax(-1).cpu() == y).sum()
        for x, y in zip(split.test_x.split(1000), split.test_y.split(1000), strict=True)
    ]
    return float(sum(right)) / len(split.test_y)


def _preferences(config: CRReLUConfig, arm: str, name: str, seed: int) -> Iterator[Row]:
    """Fine-tunes a language model by DPO with its own activation, or with CRReLU in its place."""
    import tempfile

    transformers = require("transformers", extra="language")
    trl = require("trl", extra="rl")
    pairs = (
        require("datasets", extra="language")
        .load_dataset(name, split="train")
        .shuffle(seed=seed)
        .map(_pair)
    )
    pairs = pairs.select(range(min(config.preference_pairs, len(pairs))))
    pairs = pairs.select_columns(
        [c for c in ("prompt", "chosen", "rejected") if c in pairs.column_names]
    ).train_test_split(0.1, seed=seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.language_model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = transformers.AutoModelForCausalLM.from_pretrained(config.language_model)
    if arm == METHOD:
        CRReLU.convert(model, eps_init=config.eps_init)
    with tempfile.TemporaryDirectory() as folder:
        settings = trl.DPOConfig(
            bf16=torch.cuda.is_available(),
            output_dir=folder,
            num_train_epochs=1,
            seed=seed,
            report_to=[],
            save_strategy="no",
        )
        trainer = trl.DPOTrainer(
            model,
            ref_model=copy.deepcopy(model),
            args=settings,
            train_dataset=pairs["train"],
            eval_dataset=pairs["test"],
            processing_class=tokenizer,
        )
        trainer.train()
        value = trainer.evaluate()["eval_rewards/accuracies"]
    yield {"metric": "preference accuracy", "dataset": name, "value": float(value)}


def _pair(row: dict[str, Any]) -> dict[str, str]:
    """A row of SHP as prompt, chosen and rejected; others have these columns already."""
    if "human_ref_A" not in row:
        return {}
    answers = row["human_ref_B"], row["human_ref_A"]
    best = int(row["labels"])
    return {"prompt": row["history"], "chosen": answers[best], "rejected": answers[1 - best]}


# --- claims ---------------------------------------------------------------------------------------


def _theory_claims(config: CRReLUConfig, table: pd.DataFrame) -> Iterator[Claim]:
    rows = table[table.arm == THEORY]
    steps = rows[rows.metric == "correction step"]
    yield Claim.judge(
        "A correction step lowers the output's entropy by eps times the integral of eta squared",
        paper="first-order term of the functional",
        measured=Interval.exact((steps.value - 1).abs().max()),
        quantity=f"largest relative deviation over {config.eafo_steps} steps from sigmoid and tanh",
        below=0.01,
    )
    bounded = rows[(rows.metric == "entropy") & np.isfinite(rows.bound.astype(float))]
    others = bounded[~bounded.activation.isin(WORST)]
    gap = (others.bound - others.value).min()
    yield Claim.judge(
        "Of increasing activations with fixed bounds, the input's CDF has the most output entropy",
        paper="theorem",
        measured=Interval.exact(gap),
        quantity="smallest entropy below the bound's, ln(b - a), of sigmoid and tanh (nats)",
        above=0,
    )
    curve = rows[rows.metric == "entropy of the branch"].drop_duplicates("eps").set_index("eps")
    yield Claim.judge(
        f"At its published start, eps = +{config.eps_init:g}, the correction lowers the entropy of "
        "ReLU's positive branch",
        paper="derived as the direction that lowers entropy; its sign is absorbed into eps",
        measured=Interval.exact(curve.value[config.eps_init]),
        quantity="entropy of u + eps u exp(-u^2/2) above that of u, normal input (nats)",
        below=0,
        note="The slope at 0 is +1/(2 sqrt 2) = 0.354 nats a unit of eps; negative eps lower it.",
    )


def _by_seed(table: pd.DataFrame, arm: str, metric: str) -> pd.Series:
    rows = table[(table.arm == arm) & (table.metric == metric)]
    return rows.groupby("seed").value.mean().sort_index()


def _difference(table: pd.DataFrame, a: str, b: str, metric: str) -> Interval:
    # Equal accuracies must differ by 0, not by a rounding that decides a verdict.
    gap = (_by_seed(table, a, metric) - _by_seed(table, b, metric)).round(9)
    return mean_interval(gap)


def _vision_claims(config: CRReLUConfig, table: pd.DataFrame) -> Iterator[Claim]:
    toy = config.backbones == ("tiny",)
    parity = _difference(table, METHOD, "relu", "accuracy")
    inside = abs(parity.value) < 0.015
    verdict = (
        Verdict.FAILS
        if not inside
        else Verdict.HOLDS
        if parity.low > -0.015 and parity.high < 0.015
        else Verdict.NOT_MEASURABLE
    )
    yield Claim(
        "CRReLU trains as well as ReLU where both are small",
        "not claimed; a check of the implementation",
        parity,
        "accuracy of CRReLU - ReLU, paired seeds",
        "within +-0.015",
        verdict,
    )
    eps = table[(table.arm == METHOD) & (table.metric == "eps")]
    moved = (eps.value - config.eps_init).abs().groupby(eps.seed).max()
    yield Claim.judge(
        "Training moves eps",
        paper="eps is learned",
        measured=mean_interval(moved),
        quantity=f"largest |eps - {config.eps_init:g}| over layers",
        above=0.02,
    )
    for baseline, name in NAMES.items():
        statement = f"CRReLU beats {name} from scratch"
        paper = "CRReLU first on CIFAR-10, CIFAR-100 and ImageNet (ViT, DeiT, TNT)"
        measured = _difference(table, METHOD, baseline, "accuracy")
        quantity = f"accuracy of CRReLU - {name}, paired seeds"
        if toy:
            note = "Not resolved at this scale, whatever the sign: preset paper judges it."
            yield Claim(statement, paper, measured, quantity, "> 0", Verdict.NOT_MEASURABLE, note)
        else:
            yield Claim.judge(statement, paper=paper, measured=measured, quantity=quantity, above=0)


def _stress_claims(config: CRReLUConfig, table: pd.DataFrame) -> Iterator[Claim]:
    if not config.stress_steps:
        return
    for worst, other in (("wafbc [0, 1]", "sigmoid"), ("wafbc [-1, 1]", "tanh")):
        yield Claim.judge(
            f"The activation of most output entropy, {worst}, trains worse than {other}",
            paper="not measured; what calling it the worst activation suggests",
            measured=_difference(table, worst, other, "stress accuracy"),
            quantity=f"accuracy of {worst} - {other}, plain network, paired seeds",
            below=0,
        )


def _preference_claims(table: pd.DataFrame) -> Iterator[Claim]:
    statement = "CRReLU beats GELU in fine-tuning GPT-2 by DPO"
    paper, quantity = "small gain on SHP and HH", "accuracy of the implicit reward, CRReLU - GELU"
    if not (table.metric == "preference accuracy").any():
        note = "needs GPT-2 and preference data: preset paper"
        yield Claim.not_measurable(statement, paper=paper, quantity=quantity, note=note)
    else:
        measured = _difference(table, METHOD, "gelu", "preference accuracy")
        note = "GPT-2's weights were pretrained with GELU."
        yield Claim.judge(
            statement, paper=paper, measured=measured, quantity=quantity, above=0, note=note
        )


# --- figures --------------------------------------------------------------------------------------


def _entropy_figure(table: pd.DataFrame) -> Figure:
    import plotly.graph_objects as go

    rows = table[(table.arm == THEORY) & (table.metric == "entropy")].drop_duplicates("activation")
    plot = go.Figure(go.Bar(x=rows.activation, y=rows.value, name="entropy"))
    finite = rows[np.isfinite(rows.bound.astype(float))]
    marker = {"symbol": "line-ew-open", "size": 34}
    plot.add_scatter(
        x=finite.activation, y=finite.bound, mode="markers", marker=marker, name="ln(b - a)"
    )
    plot.update_yaxes(title="differential entropy of the output (nats)")
    return Figure(
        "Output entropy under a standard normal input",
        "No increasing activation with bounds a and b exceeds ln(b - a); the two worst activations reach "
        "it. Activations with other bounds are not comparable: doubling one adds ln 2.",
        plot,
    )


def _sign_figure(table: pd.DataFrame) -> Figure:
    import plotly.graph_objects as go

    rows = table[(table.arm == THEORY) & (table.metric == "entropy of the branch")]
    rows = rows.drop_duplicates("eps").sort_values("eps")
    plot = go.Figure(go.Scatter(x=rows.eps, y=rows.value, mode="lines+markers", name="quadrature"))
    slope = rows.eps / (2 * math.sqrt(2))
    plot.add_scatter(x=rows.eps, y=slope, mode="lines", line={"dash": "dot"}, name="eps/(2 sqrt 2)")
    plot.update_xaxes(title="eps")
    plot.update_yaxes(title="entropy above that of the identity (nats)")
    return Figure(
        "Which sign of eps lowers the entropy",
        "u + eps u exp(-u^2/2) under a standard normal input. The published start, +0.01, lies on the side "
        "where entropy rises.",
        plot,
    )


def _accuracy_figures(table: pd.DataFrame) -> Iterator[Figure]:
    import plotly.graph_objects as go

    for metric, title, arms in (
        ("accuracy", "Vision transformers trained from scratch", VISION),
        ("stress accuracy", "A plain deep network", STRESS),
    ):
        rows = table[table.metric == metric]
        if rows.empty:
            continue
        plot = go.Figure()
        intervals = {arm: mean_interval(_by_seed(table, arm, metric)) for arm in arms}
        shown = {arm: i for arm, i in intervals.items() if math.isfinite(i.low)}
        plot.add_scatter(
            x=list(shown),
            y=[i.value for i in shown.values()],
            error_y={
                "array": [i.high - i.value for i in shown.values()],
                "arrayminus": [i.value - i.low for i in shown.values()],
            },
            mode="markers",
            marker={"size": 11, "symbol": "diamond"},
            name="mean",
        )
        plot.add_scatter(
            x=rows.arm, y=rows.value, mode="markers", marker={"opacity": 0.45}, name="a seed"
        )
        plot.update_yaxes(title="test accuracy (fraction)")
        yield Figure(title, "Means with 95 % intervals over seeds, and every seed.", plot)


def _eps_figure(config: CRReLUConfig, table: pd.DataFrame) -> Figure:
    import plotly.graph_objects as go

    rows = table[(table.arm == METHOD) & (table.metric == "eps")]
    plot = go.Figure()
    for (backbone, dataset), one in rows.groupby(["backbone", "dataset"]):
        name = f"{backbone} on {dataset}"
        plot.add_scatter(x=one.layer, y=one.value, mode="markers", name=name)
    plot.add_hline(y=config.eps_init, line_dash="dot", annotation_text="start")
    plot.update_xaxes(title="layer", dtick=1)
    plot.update_yaxes(title="eps after training")
    return Figure("What was learned", "One point a seed and layer.", plot)
