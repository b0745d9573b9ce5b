"""Effective features where the truth is known, where it should move, and where nobody knows it.

Toy models whose superposition their weights show; sparse parity under dropout, over dictionary sizes
and sparsities; a network that groks modular addition; adversarial training; a language model's MLPs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
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
from szilard.measures import effective_rank
from szilard.representations import (
    ActivationRecorder,
    FeatureBudget,
    TiedSAE,
    UntiedSAE,
    effective_features,
    robustness_slope,
    train_sae,
)
from szilard.representations.sae import Loss, Normalize
from szilard.zoo.superposition import ToySuperposition

if TYPE_CHECKING:
    import pandas as pd

TOY = "toy models"
PARITY = "sparse parity with dropout"
GROKKING = "grokking"
LANGUAGE = "language model"
ADVERSARIAL = "adversarial training"
FROM_CODES = "ours, codes"
TOY_MEASURES = (
    FROM_CODES,
    "ours, codes, unit RMS",
    "ours, codes, summed loss",
    "ours, codes, summed loss, unit RMS",
    "Hill number of order 2, codes",
    "active features",
    "L0",
    "effective rank",
    "participation ratio",
    "Frobenius, model's weights",
    "ours, SAE's weights",
    "Frobenius, SAE's weights",
)
REFERENCE = "ours, model's weights"


class EffectiveFeaturesConfig(ExperimentConfig):
    parts: tuple[str, ...] = Field(
        default=(TOY, PARITY, GROKKING, LANGUAGE, ADVERSARIAL), description="the arms to run"
    )
    toy_models: int = Field(default=40, ge=5, description="toy models, one a density")
    toy_steps: int = Field(default=4000, ge=1, description="of Adam at 3e-3")
    toy_batch: int = Field(default=512, ge=1, description="samples a step")
    toy_rows: int = Field(default=10_000, ge=40, description="samples to train dictionaries on")
    toy_epochs: int = Field(default=38, ge=1, description="of the toys' dictionaries (8x)")
    parity_hidden: tuple[int, ...] = Field(default=(32,), description="hidden units")
    parity_dropouts: tuple[float, ...] = Field(
        default=(0.0, 0.2, 0.5), description="dropout probabilities, 0 first"
    )
    parity_steps: int = Field(default=6000, ge=1, description="of Adam")
    parity_batch: int = Field(default=512, ge=1, description="inputs a step")
    parity_rate: float = Field(default=3e-3, gt=0, description="learning rate")
    parity_rows: int = Field(default=1000, ge=16, description="inputs to train dictionaries on")
    parity_epochs: int = Field(default=300, ge=1, description="of the dictionaries")
    parity_l1: tuple[float, ...] = Field(
        default=(0.1, 1.0),
        description="sparsity weights of the comparison of dropouts, gated first",
    )
    expansions: tuple[float, ...] = Field(
        default=(0.5, 1, 2, 4, 8, 16), description="dictionary over layer, without dropout"
    )
    scaling_l1: tuple[float, ...] = Field(
        default=(0.01, 0.1, 1.0), description="sparsity weights of the dictionaries by size"
    )
    modulus: int = Field(default=53, ge=3, description="of the addition to grok")
    grokking_hidden: int = Field(default=48, ge=1, description="hidden units")
    grokking_steps: int = Field(default=6_000, ge=1, description="of AdamW at 5e-3, batch 128")
    grokking_decay: float = Field(default=0.3, ge=0, description="weight decay")
    grokking_fraction: float = Field(default=0.5, gt=0, lt=1, description="of pairs to train on")
    checkpoints: int = Field(default=16, ge=2, description="measured while it trains")
    grokking_rows: int = Field(default=1024, ge=16, description="pairs to train dictionaries on")
    grokking_epochs: int = Field(default=100, ge=1, description="of the dictionaries")
    language_model: str = Field(
        default="gemma3-270m", description="as in szilard.zoo.language.load_language_model"
    )
    language_layers: tuple[str, ...] = Field(
        default=("layers.1.mlp", "layers.8.mlp", "layers.16.mlp"),
        description="dotted names within the base model",
    )
    language_text: str = Field(
        default="docstrings", description='"docstrings" of Python\'s library, or a hub data set'
    )
    language_tokens: int = Field(default=2048, ge=64, description="tokens, in windows of 128")
    language_expansion: float = Field(default=2, ge=1, description="dictionary over layer")
    language_epochs: int = Field(default=24, ge=1, description="of the dictionaries")
    dictionaries: tuple[str, ...] = Field(
        default=(),
        description="SAELens dictionaries as release/id, one a layer; none: trained here",
    )
    images: str = Field(default="digits", description='"digits", "mnist" or a hub data set')
    image_network: Literal["mlp", "resnet18"] = Field(default="mlp", description="what is attacked")
    image_widths: tuple[float, ...] = Field(
        default=(1.0,), description="multiples of 64 hidden units, or of ResNet-18's channels"
    )
    image_classes: tuple[int, ...] = Field(default=(2, 10), description="first classes to tell")
    attack_eps: tuple[float, ...] = Field(
        default=(0.0, 0.1, 0.2), description="largest change of a pixel in training, 0 first"
    )
    attack_steps: int = Field(default=7, ge=1, description="of projected gradient descent")
    image_epochs: int = Field(default=30, ge=1, description="of adversarial training")
    image_rows: int = Field(
        default=280, ge=16, description="rows to train dictionaries on, as many for every network"
    )
    image_sae_epochs: int = Field(default=100, ge=1, description="of the dictionaries")

    @model_validator(mode="after")
    def _consistent(self) -> EffectiveFeaturesConfig:
        known = (TOY, PARITY, GROKKING, LANGUAGE, ADVERSARIAL)
        if not self.parts or not set(self.parts) <= set(known):
            raise ValueError(f"parts must be some of {known}, but is {self.parts}")
        if self.parity_dropouts[0] != 0 or self.attack_eps[0] != 0:
            raise ValueError("parity_dropouts and attack_eps must start with 0")
        if self.dictionaries and len(self.dictionaries) != len(self.language_layers):
            raise ValueError("dictionaries must be as many as language_layers")
        return self


class EffectiveFeaturesExperiment:
    Config: ClassVar[type[ExperimentConfig]] = EffectiveFeaturesConfig
    presets: ClassVar[Mapping[Preset, ExperimentConfig]] = {
        "smoke": EffectiveFeaturesConfig(
            seeds=2,
            parts=(TOY, PARITY, GROKKING, ADVERSARIAL),
            toy_models=6,
            toy_steps=30,
            toy_rows=200,
            toy_epochs=2,
            parity_steps=20,
            parity_rows=200,
            parity_epochs=2,
            grokking_steps=20,
            checkpoints=2,
            grokking_rows=256,
            grokking_epochs=2,
            attack_eps=(0.0, 0.2),
            attack_steps=1,
            image_epochs=1,
            image_sae_epochs=1,
        ),
        "quick": EffectiveFeaturesConfig(),
        "paper": EffectiveFeaturesConfig(
            seeds=5,
            toy_models=100,
            toy_steps=20_000,
            toy_epochs=800,
            parity_hidden=(16, 32, 64, 128),
            parity_dropouts=(0.0, 0.1, 0.2, 0.5),
            parity_steps=20_000,
            grokking_steps=25_000,
            checkpoints=100,
            grokking_rows=2809,
            grokking_epochs=800,
            language_model="EleutherAI/pythia-70m-deduped",
            language_layers=tuple(f"layers.{i}.mlp" for i in range(6)),
            language_text="monology/pile-uncopyrighted",
            language_tokens=100_000,
            dictionaries=tuple(
                f"pythia-70m-deduped-mlp-sm/blocks.{i}.hook_mlp_out" for i in range(6)
            ),
            images="uoft-cs/cifar10",
            image_network="resnet18",
            image_widths=(0.25, 0.5, 1.0, 2.0),
            attack_eps=(0.0, 2 / 255, 4 / 255, 8 / 255),
            attack_steps=10,
            image_epochs=100,
            image_rows=10_000,
            image_sae_epochs=800,
        ),
    }

    def arms(self, config: EffectiveFeaturesConfig) -> Sequence[str]:
        return config.parts

    def run(self, config: EffectiveFeaturesConfig, arm: str, seed: int, log: Log) -> Sequence[Row]:
        part = {
            TOY: _toy,
            PARITY: _parity,
            GROKKING: _grokking,
            LANGUAGE: _language,
            ADVERSARIAL: _adversarial,
        }[arm]
        return list(part(config, seed, log))

    def claims(self, config: EffectiveFeaturesConfig, table: pd.DataFrame) -> Sequence[Claim]:
        return [
            *_toy_claims(table),
            *_parity_claims(config, table),
            *_grokking_claims(table),
            *_adversarial_claims(table),
            *_other_claims(),
        ]

    def figures(self, config: EffectiveFeaturesConfig, table: pd.DataFrame) -> Sequence[Figure]:
        return [
            *_toy_figures(table),
            *_parity_figures(table),
            *_grokking_figures(table),
            *_language_figures(table),
            *_adversarial_figures(table),
        ]


experiment = EffectiveFeaturesExperiment()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _uniform(*shape: int, fan_in: int, generator: torch.Generator) -> nn.Parameter:
    """Weights as torch's linear layers start with."""
    return nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(fan_in))


def _effective(sae: TiedSAE, X: Tensor) -> list[float]:
    """F of each of the autoencoders in one module, on the activations of each."""
    with torch.no_grad():
        budgets = [FeatureBudget(sae.d) for _ in range(len(X))]
        for rows in X.split(1024, dim=1):
            for budget, codes in zip(budgets, sae.encode(rows), strict=True):
                budget.update(codes)
    return [budget.result().F for budget in budgets]


# --- toy models -----------------------------------------------------------------------------------


def _toy(config: EffectiveFeaturesConfig, seed: int, log: Log) -> Iterator[Row]:
    densities = torch.logspace(0, -3, config.toy_models).clamp(max=0.999)
    toys = ToySuperposition(densities, seed=seed).to(_device())
    toys.fit(steps=config.toy_steps, batch_size=config.toy_batch, seed=seed)
    log(0.5, "toy models trained")
    with torch.no_grad():
        X = toys.hidden(toys.draw(config.toy_rows, _generator(seed + 1)))
        weights = toys.weight.detach()
    n = weights.shape[1]
    saes = {}
    losses: tuple[Loss, ...] = ("mean", "sum")
    scales: tuple[Normalize | None, ...] = (None, "rms")
    for loss, normalize in product(losses, scales):
        saes[loss, normalize] = train_sae(
            X, 8, loss=loss, epochs=config.toy_epochs, seed=seed, normalize=normalize
        )
        log(0.5 + len(saes) / 8, f"dictionaries with loss {loss}, scale {normalize}")
    plain = saes["mean", None]
    values = {
        FROM_CODES: _effective(plain, X),
        "ours, codes, unit RMS": _effective(saes["mean", "rms"], X),
        "ours, codes, summed loss": _effective(saes["sum", None], X),
        "ours, codes, summed loss, unit RMS": _effective(saes["sum", "rms"], X),
        "effective rank": effective_rank(X, of="covariance").tolist(),
        "participation ratio": [_participation_ratio(x) for x in X],
        "L0": plain.report_.l0.tolist(),
        "active features": (plain.d * (1 - plain.report_.dead)).tolist(),
        "Frobenius, model's weights": weights.square().sum((1, 2)).tolist(),
        REFERENCE: [effective_features(norms).F for norms in weights.norm(dim=1)],
        "Frobenius, SAE's weights": plain.weight.detach().square().sum((1, 2)).tolist(),
        "ours, SAE's weights": [
            effective_features(norms).F for norms in plain.weight.detach().norm(dim=2)
        ],
    }
    with torch.no_grad():
        values["Hill number of order 2, codes"] = [
            effective_features(codes).hill2 for codes in plain.encode(X)
        ]
    for metric, found in values.items():
        for density, value in zip(densities.tolist(), found, strict=True):
            yield {"metric": metric, "density": density, "value": value / n}


def _participation_ratio(x: Tensor) -> float:
    """(sum of variances)^2 over the sum of squared variances along the principal axes."""
    variances = torch.linalg.eigvalsh(torch.cov(x.double().T))
    return float(variances.sum() ** 2 / variances.square().sum())


# --- sparse parity --------------------------------------------------------------------------------


def _parity_data(tasks: int = 3, bits: int = 4) -> tuple[Tensor, Tensor]:
    """All inputs: which task (one-hot), and the bits of all tasks; the answer is that task's parity."""
    codes = torch.arange(2 ** (tasks * bits))
    digits = codes[:, None] >> torch.arange(tasks * bits) & 1
    task = torch.eye(tasks).repeat_interleave(len(codes), 0)
    x = torch.cat([task, digits.float().repeat(tasks, 1)], 1)
    parity = digits.reshape(-1, tasks, bits).sum(-1) % 2
    return x, parity.T.flatten().float()


class ParityNetworks(nn.Module):
    """One hidden layer with dropout before its ReLU; a network for each dropout probability."""

    def __init__(self, inputs: int, hidden: int, dropouts: Sequence[float], seed: int) -> None:
        super().__init__()
        g, models = _generator(seed), len(dropouts)
        self.first = _uniform(models, inputs, hidden, fan_in=inputs, generator=g)
        self.bias = _uniform(models, 1, hidden, fan_in=inputs, generator=g)
        self.last = _uniform(models, hidden, 1, fan_in=hidden, generator=g)
        self.last_bias = _uniform(models, 1, 1, fan_in=hidden, generator=g)
        self.register_buffer("kept", 1 - torch.tensor(dropouts)[:, None, None])
        self.kept: Tensor

    def hidden(self, x: Tensor) -> Tensor:
        """Pre-activations, [models, rows, hidden]."""
        return x @ self.first + self.bias

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        h = self.hidden(x)
        if generator is not None:
            u = torch.rand(h.shape[1:], generator=generator).to(h.device)
            h = torch.where(u < self.kept, h / self.kept, 0.0)
        return (torch.relu(h) @ self.last + self.last_bias)[..., 0]


def _parity(config: EffectiveFeaturesConfig, seed: int, log: Log) -> Iterator[Row]:
    x, y = (t.to(_device()) for t in _parity_data())
    for hidden in config.parity_hidden:
        g = _generator(seed)
        networks = ParityNetworks(x.shape[1], hidden, config.parity_dropouts, seed).to(x.device)
        optimiser = torch.optim.Adam(networks.parameters(), lr=config.parity_rate, fused=True)
        models = len(config.parity_dropouts)
        for step in range(config.parity_steps):
            rows = torch.randint(len(x), (config.parity_batch,), generator=g).to(x.device)
            logits = networks(x[rows], g)
            target = y[rows].expand_as(logits)
            loss = models * F.binary_cross_entropy_with_logits(logits, target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if step % 500 == 0:
                log(0.5 * step / config.parity_steps, f"{hidden} units, step {step}")
        with torch.no_grad():
            right = ((networks(x) > 0) == y.bool()).float().mean(1)
            rows = torch.randperm(len(x), generator=g)[: config.parity_rows].to(x.device)
            X = networks.hidden(x[rows])
        settings: dict[str, Any] = {"epochs": config.parity_epochs, "seed": seed}
        for i, dropout in enumerate(config.parity_dropouts):
            keys = {"hidden": hidden, "dropout": dropout}
            yield {"metric": "parity accuracy", "value": float(right[i]), **keys}
        for l1 in config.parity_l1:
            sae = train_sae(X, 4, l1=l1, tied=False, **settings)
            for dropout, found in zip(config.parity_dropouts, _effective(sae, X), strict=True):
                keys = {"hidden": hidden, "dropout": dropout, "l1": l1}
                yield {"metric": "F under dropout", "value": found, **keys}
        weights = torch.tensor(config.scaling_l1)
        plain = X[:1].expand(len(weights), -1, -1)
        for i, expansion in enumerate(config.expansions):
            d = max(1, round(expansion * hidden))
            # Dictionaries smaller than the layer belong to the curve, so none is refused here.
            sae = UntiedSAE(hidden, d, models=(len(weights),), seed=seed).to(X.device)
            sae.fit(plain, l1=weights.to(X.device), **settings)
            for l1, found in zip(config.scaling_l1, _effective(sae, plain), strict=True):
                yield {
                    "metric": "F by dictionary",
                    "value": found,
                    "hidden": hidden,
                    "d": d,
                    "l1": l1,
                }
            log(0.5 + 0.5 * (i + 1) / len(config.expansions), f"{hidden} units, dictionary {d}")


# --- grokking -------------------------------------------------------------------------------------


class TwoPathMLP(nn.Module):
    """(a, b) -> logits of (a + b) mod p: embeddings, one path each into the hidden layer, GELU."""

    def __init__(self, modulus: int, hidden: int, embedding: int = 12) -> None:
        super().__init__()
        self.embedding = nn.Embedding(modulus, embedding)
        self.left = nn.Linear(embedding, hidden)
        self.right = nn.Linear(embedding, hidden)
        self.out = nn.Linear(hidden, modulus, bias=False)

    def hidden(self, pairs: Tensor) -> Tensor:
        a, b = self.embedding(pairs).unbind(1)
        return F.gelu(self.left(a) + self.right(b))

    def forward(self, pairs: Tensor) -> Tensor:
        return self.out(self.hidden(pairs))


def _grokking(config: EffectiveFeaturesConfig, seed: int, log: Log) -> Iterator[Row]:
    p, g = config.modulus, _generator(seed)
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    sums = pairs.sum(1) % p
    order = torch.randperm(len(pairs), generator=g)
    cut = int(config.grokking_fraction * len(pairs))
    train, test = order[:cut], order[cut:]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TwoPathMLP(p, config.grokking_hidden)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=5e-3, weight_decay=config.grokking_decay, fused=True
    )
    marks = np.linspace(0, config.grokking_steps, config.checkpoints + 1).round().astype(int)
    hidden: list[Tensor] = []
    for step in range(1, config.grokking_steps + 1):
        rows = train[torch.randint(cut, (128,), generator=g)]
        loss = F.cross_entropy(model(pairs[rows]), sums[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step in marks[1:]:
            with torch.no_grad():
                right = (model(pairs).argmax(1) == sums).float()
                hidden.append(model.hidden(pairs))
            keys = {"step": step}
            yield {"metric": "train accuracy", "value": float(right[train].mean()), **keys}
            yield {"metric": "test accuracy", "value": float(right[test].mean()), **keys}
            yield {"metric": "rms", "value": float(hidden[-1].square().mean().sqrt()), **keys}
            rank = float(effective_rank(hidden[-1], of="covariance"))
            yield {"metric": "effective rank", "value": rank, **keys}
            log(0.6 * step / config.grokking_steps, f"step {step}")
    rows = torch.randperm(len(pairs), generator=g)[: config.grokking_rows]
    X = torch.stack(hidden)[:, rows]
    scales: dict[str, Normalize | None] = {"as it is": None, "unit RMS": "rms"}
    for scale, normalize in scales.items():
        sae = train_sae(X, 4, epochs=config.grokking_epochs, seed=seed, normalize=normalize)
        for step, found in zip(marks[1:].tolist(), _effective(sae, X), strict=True):
            yield {"metric": "F", "scale": scale, "step": step, "value": found}
        log(0.8 if normalize is None else 1.0, f"dictionaries, scale {scale}")


def _transition(rows: pd.DataFrame) -> tuple[int, int] | None:
    """The last checkpoint of a seed below half and the first after it above 0.95 test accuracy."""
    test = rows[rows.metric == "test accuracy"].set_index("step").value.sort_index()
    learned = test[test > 0.95]
    if learned.empty:
        return None
    before = test[(test < 0.5) & (test.index < learned.index[0])]
    return None if before.empty else (int(before.index[-1]), int(learned.index[0]))


# --- a language model -----------------------------------------------------------------------------


def _language(config: EffectiveFeaturesConfig, seed: int, log: Log) -> Iterator[Row]:
    from szilard.zoo.language import load_language_model

    model, tokenizer = load_language_model(config.language_model, device=_device())
    windows = _windows(config, tokenizer, seed).to(_device())
    # The first position attracts activations of another order of magnitude in every model.
    recorder = ActivationRecorder(
        model.base_model, config.language_layers, reduce=lambda h: h[:, 1:].flatten(0, 1).float()
    )
    with torch.no_grad(), recorder:
        for window in windows.split(4):
            model.base_model(input_ids=window)
    X = torch.stack([recorder[layer] for layer in config.language_layers])
    del model
    recorder.clear()
    log(0.3, f"{X.shape[1]} rows of {X.shape[2]} neurons")
    n = X.shape[2]
    for layer, x in zip(config.language_layers, X, strict=True):
        rank = float(effective_rank(x, of="covariance"))
        yield {"metric": "language effective rank", "layer": layer, "value": rank}
    if config.dictionaries:
        encoders = [_published(name, X.device).encode for name in config.dictionaries]
    else:
        sae = train_sae(
            X,
            config.language_expansion,
            epochs=config.language_epochs,
            seed=seed,
            normalize="standard",
        )
        encoders = [lambda x, i=i: sae.encode(x)[i] for i in range(len(X))]
        for i, layer in enumerate(config.language_layers):
            for metric, value in (("FVU", sae.report_.fvu), ("L0", sae.report_.l0)):
                yield {"metric": f"language {metric}", "layer": layer, "value": float(value[i])}
            dead = float(sae.report_.dead[i])
            yield {"metric": "language dead fraction", "layer": layer, "value": dead}
    for layer, x, encode in zip(config.language_layers, X, encoders, strict=True):
        budget: FeatureBudget | None = None
        with torch.no_grad():
            for chunk in x.split(max(1, len(x) // 16)):
                codes = encode(chunk)
                budget = (budget or FeatureBudget(codes.shape[-1])).update(codes)
                found = budget.result(n)
                keys = {"layer": layer, "rows": budget.rows, "neurons": n}
                yield {"metric": "language F", "value": found.F, **keys}
        assert budget is not None
        yield {"metric": "language Hill number", "layer": layer, "value": budget.result().hill2}


def _windows(config: EffectiveFeaturesConfig, tokenizer: Any, seed: int, size: int = 128) -> Tensor:
    """Token windows of a shuffled text, another shuffle a seed."""
    if config.language_text == "docstrings":
        from szilard.zoo.text import library_docstrings

        texts: Iterator[str] = iter(
            np.random.default_rng(seed).permutation(np.array(library_docstrings(), dtype=object))
        )
    else:
        stream = require("datasets", extra="language").load_dataset(
            config.language_text, split="train", streaming=True
        )
        texts = (row["text"] for row in stream.shuffle(seed=seed, buffer_size=1000))
    count = -(-config.language_tokens // size)
    ids: list[int] = []
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    body = size - len(first)
    for text in texts:
        ids += tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) >= count * body:
            break
    count = min(count, len(ids) // body)
    return torch.tensor([first + ids[i * body : (i + 1) * body] for i in range(count)])


def _published(name: str, device: torch.device) -> Any:
    """A dictionary that SAELens knows, named release/id."""
    try:
        from sae_lens import SAE  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError(
            "published dictionaries are read by SAELens: pip install sae-lens, or set dictionaries "
            "to [] and train them"
        ) from error
    release, _, identifier = name.partition("/")
    sae = SAE.from_pretrained(release, identifier, device=str(device))
    return sae[0] if isinstance(sae, tuple) else sae


# --- adversarial training -------------------------------------------------------------------------


class ResNet18(nn.Module):
    """ResNet-18 for small images, its channels times `width`; `stages` are what is measured."""

    def __init__(self, classes: int, width: float, channels: int) -> None:
        super().__init__()
        sizes = [max(1, round(width * c)) for c in (64, 128, 256, 512)]
        self.stem = nn.Sequential(
            nn.Conv2d(channels, sizes[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(sizes[0]),
            nn.ReLU(),
        )
        stages, before = [], sizes[0]
        for i, size in enumerate(sizes):
            stages.append(
                nn.Sequential(_Residual(before, size, 1 if i == 0 else 2), _Residual(size, size, 1))
            )
            before = size
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.short: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.short = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.short(x))


def _image_network(
    config: EffectiveFeaturesConfig, classes: int, width: float, shape: torch.Size
) -> tuple[nn.Module, dict[str, int]]:
    """The network, and the layers to measure with their numbers of parameters."""
    if config.image_network == "resnet18":
        net = ResNet18(classes, width, shape[0])
        return net, {f"stages.{i}": _parameters(stage) for i, stage in enumerate(net.stages)}
    hidden = max(1, round(64 * width))
    first, second = nn.Linear(shape.numel(), hidden), nn.Linear(hidden, hidden)
    last = nn.Linear(hidden, classes)
    mlp = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), last)
    return mlp, {"2": _parameters(first), "4": _parameters(second)}


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _images(config: EffectiveFeaturesConfig) -> tuple[Tensor, Tensor]:
    if config.images in ("digits", "mnist"):
        from szilard.zoo import images

        data = getattr(images, config.images)("train")
        return torch.from_numpy(data.images)[:, None] / 255, torch.from_numpy(data.labels).long()
    source = require("datasets", extra="language").load_dataset(config.images, split="train")
    column = "img" if "img" in source.column_names else "image"
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in source[column]])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255, torch.tensor(source["label"])


def _attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """Projected gradient descent in the cube of half-width eps around x, from x itself."""
    if eps == 0:
        return x
    moved = x.clone()
    for _ in range(steps):
        moved.requires_grad_(True)
        (slope,) = torch.autograd.grad(F.cross_entropy(model(moved), y), moved)
        moved = moved.detach() + 2.5 * eps / steps * slope.sign()
        moved = moved.clamp(x - eps, x + eps).clamp(0, 1)
    return moved.detach()


def _adversarial(config: EffectiveFeaturesConfig, seed: int, log: Log) -> Iterator[Row]:
    images, labels = _images(config)
    total = len(config.image_classes) * len(config.image_widths) * len(config.attack_eps)
    done = 0
    for classes, width in product(config.image_classes, config.image_widths):
        chosen = labels < classes
        x, y = images[chosen].to(_device()), labels[chosen].to(_device())
        keys = {"classes": classes, "width": width}
        runs: list[float] = []
        found: dict[str, list[float]] = {}
        for eps in config.attack_eps:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model, layers = _image_network(config, classes, width, x.shape[1:])
            model.to(x.device)
            _train_against(config, model, x, y, eps, seed)
            done += 1
            log(done / total, f"{classes} classes, width {width:g}, eps {eps:g}")
            rows = torch.randperm(len(x), generator=_generator(seed))[: config.image_rows]
            clean, truth = x[rows.to(x.device)], y[rows.to(x.device)]
            attacked = _attack(
                model.eval(), clean, truth, config.attack_eps[-1], config.attack_steps
            )
            for inputs, given in (("clean", clean), ("attacked", attacked)):
                right = (model(given).argmax(1) == truth).float().mean()
                row = {"eps": eps, "inputs": inputs, **keys}
                yield {"metric": "image accuracy", "value": float(right), **row}
            runs += [eps, eps]
            for layer in layers:
                X = torch.stack(
                    [_layer_rows(config, model, layer, given, seed) for given in (clean, attacked)]
                )
                sae = train_sae(X, 4, epochs=config.image_sae_epochs, seed=seed)
                both = _effective(sae, X)
                found.setdefault(layer, []).extend(both)
                for inputs, value in zip(("clean", "attacked"), both, strict=True):
                    row = {"eps": eps, "inputs": inputs, "layer": layer, **keys}
                    yield {"metric": "image F", "value": value, **row}
        slope = robustness_slope(
            np.array(runs), np.array(list(found.values())), list(layers.values())
        )
        yield {"metric": "robustness slope", "value": slope.value, "error": slope.error, **keys}


def _layer_rows(
    config: EffectiveFeaturesConfig, model: nn.Module, layer: str, x: Tensor, seed: int
) -> Tensor:
    """A random sample of the layer's rows: every image, or every position of every image."""

    def rows_of(h: Tensor) -> Tensor:
        rows = h.movedim(1, -1).flatten(0, -2)
        share = min(len(rows), -(-config.image_rows * len(h) // len(x)))
        return rows[torch.randperm(len(rows), generator=_generator(seed))[:share].to(h.device)]

    recorder = ActivationRecorder(model, layer, reduce=rows_of)
    with torch.no_grad(), recorder:
        for part in x.split(256):
            model(part)
    return recorder[layer]


def _train_against(
    config: EffectiveFeaturesConfig, model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int
) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    g = _generator(seed)
    model.train()
    for _ in range(config.image_epochs):
        for rows in torch.randperm(len(x), generator=g).to(x.device).split(128):
            attacked = _attack(model, x[rows], y[rows], eps, config.attack_steps)
            loss = F.cross_entropy(model(attacked), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


# --- claims ---------------------------------------------------------------------------------------


def _correlations(table: pd.DataFrame, metric: str, reference: str = REFERENCE) -> pd.Series:
    """Pearson's r over the toy models, one a seed."""
    rows = table[(table.arm == TOY) & table.metric.isin([metric, reference])]
    wide = rows.pivot(index=["seed", "density"], columns="metric", values="value")
    # A measure that is the same for all models agrees with nothing.
    return wide.groupby("seed").apply(lambda one: one[metric].corr(one[reference])).fillna(0.0)


def _toy_claims(table: pd.DataFrame) -> Iterator[Claim]:
    if TOY not in set(table.arm):
        return
    yield Claim.judge(
        "On a toy model's own weights, F agrees with the Frobenius norm",
        paper="r = 0.99 +- 0.01",
        measured=mean_interval(_correlations(table, "Frobenius, model's weights")),
        quantity="Pearson's r over toy models of psi and |W|_F^2 / N",
        above=0.97,
    )
    yield Claim.judge(
        "F of a sparse autoencoder's codes recovers the superposition that the weights show",
        paper="r = 0.94 +- 0.02",
        measured=mean_interval(_correlations(table, FROM_CODES)),
        quantity="Pearson's r over toy models of psi from codes and psi from weights",
        above=0.85,
        note="The summed loss and unit RMS are compared in the figure.",
    )
    reference = table[(table.arm == TOY) & (table.metric == REFERENCE)].sort_values("density")
    densest = reference.groupby("seed").value.last()
    measured = mean_interval(densest)
    inside = measured.low >= 0.9 and measured.high <= 1.3
    yield Claim(
        "Dense features are not superposed",
        "psi = 1 is the limit without interference",
        measured,
        "psi from the weights of the densest toy model",
        "within [0.9, 1.3]",
        Verdict.HOLDS
        if inside
        else Verdict.NOT_MEASURABLE
        if 0.9 <= measured.value <= 1.3
        else Verdict.FAILS,
    )
    sparsest = reference.groupby("seed").value.apply(lambda psi: psi.iloc[:5].min())
    yield Claim.judge(
        "Sparse features are",
        paper="psi rises with sparsity (plot)",
        measured=mean_interval(sparsest),
        quantity="psi from the weights, least of the sparsest five toy models",
        above=2.2,
    )


def _drops(table: pd.DataFrame, l1: float) -> pd.Series:
    """Mean F at dropouts of 0.2 and more over F without, one a seed, averaged over widths."""
    rows = table[(table.metric == "F under dropout") & (table.l1 == l1)]
    without = rows[rows.dropout == 0].groupby(["seed", "hidden"]).value.mean()
    under = rows[rows.dropout >= 0.2].groupby(["seed", "hidden"]).value.mean()
    return (under / without).groupby("seed").mean()


def _log_slopes(table: pd.DataFrame, l1: float) -> pd.Series:
    """Slope of ln F over ln D, one a seed, averaged over widths."""
    rows = table[(table.metric == "F by dictionary") & (table.l1 == l1)]
    slopes = rows.groupby(["seed", "hidden"]).apply(
        lambda one: np.polyfit(np.log(one.d.astype(float)), np.log(one.value), 1)[0]
    )
    return slopes.groupby("seed").mean()


def _parity_claims(config: EffectiveFeaturesConfig, table: pd.DataFrame) -> Iterator[Claim]:
    if PARITY not in set(table.arm):
        return
    l1 = config.parity_l1[0]
    others = ", ".join(
        f"{_drops(table, other).mean():.2f} at {other:g}" for other in config.parity_l1[1:]
    )
    yield Claim.judge(
        "Dropout lowers the number of effective features",
        paper="52 without, 23 at 0.2, 22 at 0.5 (32 units)",
        measured=mean_interval(_drops(table, l1)),
        quantity=f"mean F at dropout >= 0.2 over F without, sparsity weight {l1:g}",
        below=0.85,
        note=f"The same ratio with other sparsity weights: {others}." if others else "",
    )
    low, high = min(config.scaling_l1), max(config.scaling_l1)
    yield Claim.judge(
        "With little sparsity F grows with the dictionary",
        paper="27 to 690 for D = 32 to 1024 at sparsity weight 0.01 (plot)",
        measured=mean_interval(_log_slopes(table, low)),
        quantity=f"slope of ln F over ln D at sparsity weight {low:g}",
        above=0.7,
    )
    yield Claim.judge(
        "With enough sparsity F levels off",
        paper="18 to 33 at sparsity weight 1 (plot)",
        measured=mean_interval(_log_slopes(table, high)),
        quantity=f"slope of ln F over ln D at sparsity weight {high:g}",
        below=0.5,
    )


def _after_over_before(table: pd.DataFrame, scale: str) -> list[float]:
    """F after the transition over F before it, of each seed that has one."""
    ratios = []
    for _, rows in table[table.arm == GROKKING].groupby("seed"):
        steps = _transition(rows)
        if steps is not None:
            F_of = rows[(rows.metric == "F") & (rows.scale == scale)].set_index("step").value
            ratios.append(float(F_of[steps[1]] / F_of[steps[0]]))
    return ratios


def _grokking_claims(table: pd.DataFrame) -> Iterator[Claim]:
    if GROKKING not in set(table.arm):
        return
    statement = "F drops where a network groks"
    paper = "drops at the transition; r = 0.908 with the local learning coefficient"
    quantity = "F just after the transition (test accuracy > 0.95) over F just before (< 0.5)"
    ratios = _after_over_before(table, "as it is")
    if not ratios:
        note = "No seed reached a test accuracy of 0.95 after one below 0.5."
        yield Claim.not_measurable(statement, paper=paper, quantity=quantity, note=note)
        return
    scaled = float(np.mean(_after_over_before(table, "unit RMS")))
    yield Claim.judge(
        statement,
        paper=paper,
        measured=mean_interval(ratios),
        quantity=quantity,
        below=1.0,
        note=f"{len(ratios)} seeds have a transition. On activations of unit RMS: {scaled:.2f}.",
    )


def _adversarial_claims(table: pd.DataFrame) -> Iterator[Claim]:
    rows = table[table.metric == "robustness slope"]
    for column, statement, paper in (
        ("classes", "Adversarial training lowers F more where there are more classes", "-0.745"),
        ("width", "Adversarial training raises F more in wider networks", "0.220"),
    ):
        quantity = f"robustness slope at the most {column} less that at the fewest"
        note = "The paper itself lists inversions; ResNet-18 on CIFAR-10 is preset paper."
        steps = sorted(rows[column].unique()) if len(rows) else []
        if len(steps) < 2:
            yield Claim.not_measurable(
                statement, paper=f"slope {paper} a log unit", quantity=quantity, note=note
            )
            continue
        by_seed = rows.groupby([column, "seed"]).value.mean()
        measured = mean_interval(by_seed[steps[-1]] - by_seed[steps[0]])
        yield Claim(
            statement,
            f"slope {paper} a log unit",
            measured,
            quantity,
            "< 0" if column == "classes" else "> 0",
            Verdict.NOT_MEASURABLE,
            note,
        )


def _other_claims() -> Iterator[Claim]:
    yield Claim.not_measurable(
        "The second MLP of Pythia-70M has the most features, and 20,000 samples suffice",
        paper="about 10,000 features, 20 times its width",
        quantity="F by layer and by samples, published dictionaries",
        note="Preset paper. Here the figure shows the embedded language model.",
    )
    yield Claim.not_measurable(
        "Transformers compiled from algorithms have at most one feature a neuron",
        paper="F = 12 (reversal), 10 (sorting)",
        quantity="psi",
        note="Needs compiled weights, which are not part of this library.",
    )


# --- figures --------------------------------------------------------------------------------------


def _toy_figures(table: pd.DataFrame) -> Iterator[Figure]:
    import plotly.graph_objects as go

    rows = table[table.arm == TOY]
    if rows.empty:
        return
    wide = rows.pivot(index=["seed", "density"], columns="metric", values="value")
    plot = go.Figure()
    for metric in (FROM_CODES, "Frobenius, model's weights", "participation ratio"):
        plot.add_scatter(x=wide[REFERENCE], y=wide[metric], mode="markers", name=metric)
    ends = [float(wide[REFERENCE].min()), float(wide[REFERENCE].max())]
    plot.add_scatter(x=ends, y=ends, mode="lines", line={"dash": "dot"}, name="equal")
    plot.update_xaxes(title="psi from the toy model's weights")
    plot.update_yaxes(title="features a neuron by the measure")
    yield Figure(
        "Toy models, whose superposition is known",
        "One point a toy model. The participation ratio of the activations can't exceed 1.",
        plot,
    )
    intervals = {metric: mean_interval(_correlations(table, metric)) for metric in TOY_MEASURES}
    plot = go.Figure(
        go.Bar(
            x=[i.value for i in intervals.values()],
            y=list(intervals),
            orientation="h",
            error_x=_bars(list(intervals.values())),
        )
    )
    plot.update_xaxes(title="Pearson's r with psi from the weights")
    plot.update_yaxes(autorange="reversed")
    yield Figure("Which measure follows it", "95 % intervals over seeds.", plot)


def _bars(intervals: Sequence[Interval]) -> dict[str, Any]:
    """Error bars; none where one seed tells nothing of the spread."""

    def length(end: float, value: float) -> float:
        return abs(end - value) if math.isfinite(end) else 0.0

    return {
        "array": [length(i.high, i.value) for i in intervals],
        "arrayminus": [length(i.low, i.value) for i in intervals],
    }


def _curve(plot: Any, rows: pd.DataFrame, x: str, name: str, **style: Any) -> None:
    """Means over seeds with intervals, by the column x."""
    groups = {at: mean_interval(one.groupby("seed").value.mean()) for at, one in rows.groupby(x)}
    plot.add_scatter(
        x=list(groups),
        y=[i.value for i in groups.values()],
        error_y=_bars(list(groups.values())),
        mode="lines+markers",
        name=name,
        **style,
    )


def _parity_figures(table: pd.DataFrame) -> Iterator[Figure]:
    import plotly.graph_objects as go

    rows = table[table.arm == PARITY]
    if rows.empty:
        return
    plot = go.Figure()
    for (hidden, l1), one in rows[rows.metric == "F under dropout"].groupby(["hidden", "l1"]):
        _curve(plot, one, "dropout", f"{hidden:g} units, sparsity weight {l1:g}")
    plot.update_xaxes(title="dropout probability")
    plot.update_yaxes(title="effective features F")
    accuracy = rows[rows.metric == "parity accuracy"].groupby("dropout").value.mean()
    said = ", ".join(f"{value:.2f} at {dropout:g}" for dropout, value in accuracy.items())
    yield Figure("Dropout", f"Sparse parity; accuracy {said}.", plot)
    plot = go.Figure()
    for (hidden, l1), one in rows[rows.metric == "F by dictionary"].groupby(["hidden", "l1"]):
        _curve(plot, one, "d", f"{hidden:g} units, sparsity weight {l1:g}")
    plot.update_xaxes(title="units of the dictionary D", type="log")
    plot.update_yaxes(title="effective features F", type="log")
    yield Figure("How F depends on its dictionary", "The same layer for every point.", plot)


def _grokking_figures(table: pd.DataFrame) -> Iterator[Figure]:
    import plotly.graph_objects as go

    rows = table[table.arm == GROKKING]
    if rows.empty:
        return
    plot = go.Figure()
    for scale, one in rows[rows.metric == "F"].groupby("scale"):
        _curve(plot, one, "step", f"F, activations {scale}")
    _curve(plot, rows[rows.metric == "effective rank"], "step", "effective rank")
    for metric in ("train accuracy", "test accuracy"):
        style = {"yaxis": "y2", "line": {"dash": "dot"}}
        _curve(plot, rows[rows.metric == metric], "step", metric, **style)
    plot.update_layout(
        yaxis={"title": "effective number", "rangemode": "tozero"},
        yaxis2={"title": "accuracy", "overlaying": "y", "side": "right", "range": [0, 1.05]},
    )
    plot.update_xaxes(title="step")
    yield Figure("Grokking", "Addition modulo a prime; a dictionary a checkpoint.", plot)


def _language_figures(table: pd.DataFrame) -> Iterator[Figure]:
    import plotly.graph_objects as go

    rows = table[(table.arm == LANGUAGE) & (table.metric == "language F")]
    if rows.empty:
        return
    plot = go.Figure()
    for layer, one in rows.groupby("layer", sort=False):
        _curve(plot, one, "rows", str(layer))
    plot.update_xaxes(title="tokens measured")
    plot.update_yaxes(title="effective features F", rangemode="tozero")
    yield Figure(
        "A language model's layers",
        f"{rows.neurons.iloc[0]:g} neurons a layer. One dictionary a layer and seed, trained on all of "
        "the tokens; F of the first so many.",
        plot,
    )


def _adversarial_figures(table: pd.DataFrame) -> Iterator[Figure]:
    import plotly.graph_objects as go

    rows = table[table.metric == "image F"]
    if rows.empty:
        return
    plot = go.Figure()
    for keys, one in rows.groupby(["classes", "width", "layer"]):
        classes, width, layer = keys
        _curve(plot, one, "eps", f"{classes:g} classes, width {width:g}, layer {layer}")
    plot.update_xaxes(title="eps of adversarial training")
    plot.update_yaxes(title="effective features F", rangemode="tozero")
    yield Figure("Adversarial training", "Clean and attacked inputs averaged.", plot)
