"""Networks as hash encoders: how rarely two inputs share an activation pattern, and what it tells.

Networks of several widths learn; along the way the patterns of all their ReLUs are recorded, and at
the end simple classifiers read them. Baselines are the same networks untrained, random projections of
as many bits, binarised pixels and the real activations. Further arms vary the number of training
inputs, the noise of the labels and the weight decay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from szilard._extras import require
from szilard.experiments.diffusion_spectral_entropy import load_images
from szilard.lab.experiment import (
    Claim,
    ExperimentConfig,
    Figure,
    Interval,
    Log,
    Preset,
    Row,
)
from szilard.lab.statistics import mean_interval
from szilard.representations import (
    NeuralCode,
    PackedCodes,
    encoding_report,
    neighbor_classes,
    phase_chart,
    random_redundancy,
)

if TYPE_CHECKING:
    import pandas as pd

METHOD = "trained codes"
UNTRAINED = "untrained codes"
PROJECTIONS = "random projections"
PIXELS = "binarised pixels"
FEATURES = "real activations"
SAMPLES = "sample size"
NOISE = "label noise"
DECAY = "weight decay"
SUMS = "channel sums"
READERS = {"knn": "k-NN", "logistic": "logistic regression", "kmeans": "k-means"}
BITS = 2


class NeuralCodeConfig(ExperimentConfig):
    datasets: tuple[str, ...] = Field(
        default=("mnist",),
        description='"mnist", "digits", or Hugging Face data sets with an image and a label column',
    )
    widths: tuple[tuple[int, ...], ...] = Field(
        default=((10, 20, 40, 80),),
        description="hidden units in all of each network, ascending; one list a data set",
    )
    depths: tuple[int, ...] = Field(
        default=(1,), description="hidden layers that share the units; one number a data set"
    )
    train_size: int = Field(default=6_000, ge=20, description="training inputs")
    test_size: int = Field(default=2_000, ge=20, description="test inputs")
    epochs: int = Field(default=12, ge=1, description="of training")
    measured_epochs: tuple[int, ...] = Field(
        default=(0, 1, 2, 3, 6, 12), description="0 is initialisation"
    )
    learning_rate: float = Field(default=1e-2, gt=0, description="of Adam")
    decay_epochs: tuple[int, ...] = Field(
        default=(8,), description="epochs after which the learning rate is a tenth"
    )
    batch_size: int = Field(default=64, ge=2, description="inputs a step")
    l2: float = Field(default=1e-6, ge=0, description="penalty of the squared weights, in the loss")
    patience: int | None = Field(
        default=None, ge=1, description="epochs without a lower training loss that end a training"
    )
    jump_widths: tuple[int, ...] = Field(
        default=(20, 40), description="widths whose redundancy is compared after the first epoch"
    )
    sample_sizes: tuple[int, ...] = Field(
        default=(60, 300, 1_500),
        description="distinct training inputs, repeated to the full number of steps; none: no such arm",
    )
    noise_width: int = Field(
        default=40, ge=1, description="units of the networks with noise or decay"
    )
    noises: tuple[float, ...] = Field(
        default=(0.2, 0.4, 0.6), description="shares of the training labels that are redrawn"
    )
    decays: tuple[float, ...] = Field(
        default=(0.0, 1e-4, 1e-2), description="penalties instead of l2"
    )
    neighbors: int = Field(default=9, ge=1, description="neighbours that vote")
    under: float = Field(
        default=0.5, description="redundancy above which a network is under-expressive"
    )
    sufficient: float = Field(
        default=0.01, description="redundancy up to which it is sufficiently expressive"
    )
    backbones: tuple[str, ...] = Field(
        default=(),
        description="pretrained timm models whose channel sums are read; none: no such arm",
    )
    backbone_dataset: str = Field(
        default="ILSVRC/imagenet-1k", description="labelled images for them, a Hugging Face id"
    )
    backbone_images: int = Field(
        default=20_000, ge=40, description="of them, half to train and half to test the classifiers"
    )

    @model_validator(mode="after")
    def _lists_agree(self) -> NeuralCodeConfig:
        if not len(self.datasets) == len(self.widths) == len(self.depths):
            raise ValueError(
                f"widths and depths must have one entry a data set ({len(self.datasets)}), but have "
                f"{len(self.widths)} and {len(self.depths)}"
            )
        for widths, depth in zip(self.widths, self.depths, strict=True):
            if not widths or depth < 1 or min(widths) < depth or sorted(set(widths)) != [*widths]:
                raise ValueError(
                    f"widths must ascend and have a unit a layer at least, but are {widths} at depth {depth}"
                )
        if {0, 1, self.epochs} - set(self.measured_epochs) or max(
            self.measured_epochs
        ) > self.epochs:
            raise ValueError(
                f"measured_epochs must hold 0, 1 and epochs={self.epochs} and nothing beyond, but is "
                f"{self.measured_epochs}"
            )
        return self


class NeuralCodeExperiment:
    Config: ClassVar[type[ExperimentConfig]] = NeuralCodeConfig
    presets: ClassVar[Mapping[Preset, ExperimentConfig]] = {
        "smoke": NeuralCodeConfig(
            seeds=2,
            datasets=("digits",),
            widths=((6, 12, 24),),
            train_size=300,
            test_size=150,
            epochs=2,
            measured_epochs=(0, 1, 2),
            decay_epochs=(),
            jump_widths=(12,),
            sample_sizes=(60,),
            noise_width=12,
            noises=(0.5,),
            decays=(1e-2,),
        ),
        "quick": NeuralCodeConfig(seeds=5),
        "paper": NeuralCodeConfig(
            seeds=10,
            datasets=("mnist", "uoft-cs/cifar10"),
            widths=(
                (3, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 100),
                (50, 100, 150, 200, 300, 400, 500, 600, 700, 800, 900, 1000),
            ),
            depths=(1, 5),
            train_size=48_000,
            test_size=10_000,
            epochs=200,
            measured_epochs=(0, 1, 3, 6, *range(10, 201, 10)),
            decay_epochs=tuple(range(20, 200, 20)),
            patience=10,
            sample_sizes=(10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000),
            backbones=(
                "vgg19",
                "resnet18",
                "resnet50",
                "resnext50_32x4d",
                "wide_resnet50_2",
            ),
        ),
    }

    def arms(self, config: NeuralCodeConfig) -> Sequence[str]:
        optional = {
            SAMPLES: config.sample_sizes,
            NOISE: config.noises,
            DECAY: config.decays,
            SUMS: config.backbones,
        }
        return [METHOD, UNTRAINED, PROJECTIONS, PIXELS, *(arm for arm in optional if optional[arm])]

    def run(self, config: NeuralCodeConfig, arm: str, seed: int, log: Log) -> Sequence[Row]:
        if arm == SUMS:
            return list(_channel_sums(config, seed, log))
        part = _PARTS[arm]
        return [
            {**row, "dataset": dataset}
            for dataset, widths, depth in zip(
                config.datasets, config.widths, config.depths, strict=True
            )
            for row in part(config, Split(config, dataset, seed), widths, depth, seed, log)
        ]

    def claims(self, config: NeuralCodeConfig, table: pd.DataFrame) -> Sequence[Claim]:
        return [
            claim
            for dataset, widths in zip(config.datasets, config.widths, strict=True)
            for claim in _claims(config, table[table.dataset == dataset], dataset, widths)
        ] + [_sums_claim(config, table)]

    def figures(self, config: NeuralCodeConfig, table: pd.DataFrame) -> Sequence[Figure]:
        return [
            figure
            for dataset in config.datasets
            for figure in _figures(config, table[table.dataset == dataset], dataset)
        ]


experiment = NeuralCodeExperiment()


# --- data and training ----------------------------------------------------------------------------


class Split:
    """Flat images in [0, 1] and their classes."""

    def __init__(self, config: NeuralCodeConfig, name: str, seed: int) -> None:
        train = load_images(name, "train", config.train_size, seed)
        test = load_images(name, "test", config.test_size, seed)
        self.train_x, self.test_x = (part.pixels.flatten(1).float() / 255 for part in (train, test))
        self.train_y, self.test_y = train.labels, test.labels
        self.classes = int(max(self.train_y.max(), self.test_y.max())) + 1


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Weights draw from torch's global generator: seeded inside, restored after."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _network(inputs: int, width: int, depth: int, classes: int, seed: int) -> nn.Sequential:
    """Dense layers with batch normalisation and ReLU, `width` hidden units in all."""
    with _seeded(seed):
        sizes = [inputs, *(width * (i + 1) // depth - width * i // depth for i in range(depth))]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def _train(
    config: NeuralCodeConfig,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    seed: int,
    *,
    l2: float,
    after: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Trains in place; inputs are repeated to `train_size`, so that every training takes as many steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    x, y = x.to(device), y.to(device)
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    # The derivative of l2 |w|^2 is 2 l2 w.
    groups: list[dict[str, Any]] = [
        {"params": kernels, "weight_decay": 2 * l2},
        {"params": others},
    ]
    optimiser = torch.optim.Adam(groups, lr=config.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, list(config.decay_epochs))
    rng = np.random.default_rng([seed, 1])
    least, since = float("inf"), 0
    after(0)
    for epoch in range(1, config.epochs + 1):
        order = torch.from_numpy(rng.permutation(max(config.train_size, len(y))) % len(y)).to(
            device
        )
        model.train()
        total = torch.zeros((), device=device)
        for rows in order.split(config.batch_size):
            if len(rows) < 2:  # batch normalisation has no variance of one
                continue
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.detach() * len(rows)
        schedule.step()
        after(epoch)
        least, since = (float(total), 0) if float(total) < least else (least, since + 1)
        if config.patience is not None and since >= config.patience:
            # What would have been measured later is what is there now.
            for later in range(epoch + 1, config.epochs + 1):
                after(later)
            break


@torch.no_grad()
def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    device = next(model.parameters()).device
    return float((model(x.to(device)).argmax(1).cpu() == y).double().mean())


# --- arms -----------------------------------------------------------------------------------------


def _trained(
    config: NeuralCodeConfig,
    split: Split,
    widths: Sequence[int],
    depth: int,
    seed: int,
    log: Log,
) -> Iterator[Row]:
    for i, width in enumerate(widths):
        model = _network(split.train_x.shape[1], width, depth, split.classes, seed)
        rows: list[Row] = []

        def measure(epoch: int, model: nn.Module = model, rows: list[Row] = rows) -> None:
            if epoch in config.measured_epochs:
                for part, x in (("train", split.train_x), ("test", split.test_x)):
                    found = _codes(model, x)
                    rows.extend(_hash_rows(found, part, epoch=epoch))

        _train(config, model, split.train_x, split.train_y, seed, l2=config.l2, after=measure)
        model.cpu()
        train, test = (_codes(model, x) for x in (split.train_x, split.test_x))
        rows += _read(config, METHOD, train, test, split)
        real = [_activations(model, x) for x in (split.train_x, split.test_x)]
        rows += _read(config, FEATURES, real[0], real[1], split)
        network = _accuracy(model, split.test_x, split.test_y)
        rows.append({"metric": "network", "value": network, "code": METHOD})
        rows.append({"metric": "near zero", "value": train.near_zero, "code": METHOD})
        yield from ({**row, "width": width} for row in rows)
        log((i + 1) / len(widths), f"width {width}")


def _untrained(
    config: NeuralCodeConfig,
    split: Split,
    widths: Sequence[int],
    depth: int,
    seed: int,
    log: Log,
) -> Iterator[Row]:
    for i, width in enumerate(widths):
        model = _network(split.train_x.shape[1], width, depth, split.classes, seed)
        train, test = (_codes(model, x) for x in (split.train_x, split.test_x))
        yield from ({**row, "width": width} for row in _read(config, UNTRAINED, train, test, split))
        log((i + 1) / len(widths), f"width {width}")


def _projections(
    config: NeuralCodeConfig,
    split: Split,
    widths: Sequence[int],
    depth: int,
    seed: int,
    log: Log,
) -> Iterator[Row]:
    """Signs of random projections of the centred inputs (SimHash)."""
    mean = split.train_x.mean(0)
    generator = torch.Generator().manual_seed(seed)
    for i, width in enumerate(widths):
        directions = torch.randn(split.train_x.shape[1], width, generator=generator)
        train, test = (
            PackedCodes.from_bits(((x - mean) @ directions > 0).numpy())
            for x in (split.train_x, split.test_x)
        )
        rows = _read(config, PROJECTIONS, train, test, split)
        yield from ({**row, "width": width} for row in rows)
        log((i + 1) / len(widths), f"width {width}")


def _pixels(
    config: NeuralCodeConfig,
    split: Split,
    widths: Sequence[int],
    depth: int,
    seed: int,
    log: Log,
) -> Iterator[Row]:
    train, test = (PackedCodes.from_bits((x > 0.5).numpy()) for x in (split.train_x, split.test_x))
    yield from ({**row, "width": train.width} for row in _read(config, PIXELS, train, test, split))


def _samples(
    config: NeuralCodeConfig,
    split: Split,
    widths: Sequence[int],
    depth: int,
    seed: int,
    log: Log,
) -> Iterator[Row]:
    """Trainings on the first inputs alone; every network is measured on the same test inputs."""
    cases = [(size, width) for size in config.sample_sizes for width in widths]
    for i, (size, width) in enumerate(cases):
        model = _network(split.train_x.shape[1], width, depth, split.classes, seed)
        x, y = split.train_x[:size], split.train_y[:size]
        _train(config, model, x, y, seed, l2=config.l2)
        rows = _varied(config, model, split)
        yield from ({**row, "width": width, "size": size} for row in rows)
        log((i + 1) / len(cases), f"{size} inputs, width {width}")


def _noise(
    config: NeuralCodeConfig,
    split: Split,
    widths: Sequence[int],
    depth: int,
    seed: int,
    log: Log,
) -> Iterator[Row]:
    """Trainings with some labels redrawn from all classes."""
    for i, noise in enumerate(config.noises):
        rng = np.random.default_rng([seed, 2])
        y = split.train_y.numpy().copy()
        spoilt = rng.permutation(len(y))[: round(noise * len(y))]
        y[spoilt] = rng.integers(split.classes, size=len(spoilt))
        width = config.noise_width
        model = _network(split.train_x.shape[1], width, depth, split.classes, seed)
        _train(config, model, split.train_x, torch.from_numpy(y), seed, l2=config.l2)
        rows = _varied(config, model, split)
        yield from ({**row, "width": width, "noise": noise} for row in rows)
        log((i + 1) / len(config.noises), f"noise {noise:g}")


def _decays(
    config: NeuralCodeConfig,
    split: Split,
    widths: Sequence[int],
    depth: int,
    seed: int,
    log: Log,
) -> Iterator[Row]:
    for i, l2 in enumerate(config.decays):
        width = config.noise_width
        model = _network(split.train_x.shape[1], width, depth, split.classes, seed)
        _train(config, model, split.train_x, split.train_y, seed, l2=l2)
        rows = _varied(config, model, split)
        yield from ({**row, "width": width, "l2": l2} for row in rows)
        log((i + 1) / len(config.decays), f"l2 {l2:g}")


_PARTS = {
    METHOD: _trained,
    UNTRAINED: _untrained,
    PROJECTIONS: _projections,
    PIXELS: _pixels,
    SAMPLES: _samples,
    NOISE: _noise,
    DECAY: _decays,
}


def _codes(model: nn.Module, x: Tensor) -> PackedCodes:
    """In batches of one size everywhere: another rounds differently, and may flip a bit near 0."""
    return NeuralCode(model, batch_size=1000).encode(x)


def _hash_rows(codes: PackedCodes, part: str, **keys: Any) -> Iterator[Row]:
    keys |= {"part": part}
    yield {"metric": "redundancy", "value": codes.redundancy(), **keys}
    yield {"metric": "entropy", "value": codes.entropy(base=BITS), **keys}
    yield {"metric": "deficit", "value": codes.deficit(base=BITS), **keys}


def _read(config: NeuralCodeConfig, code: str, train: Any, test: Any, split: Split) -> list[Row]:
    """What the classifiers read, and for codes how well they hash."""
    report = encoding_report(
        train, split.train_y.numpy(), test, split.test_y.numpy(), neighbors=config.neighbors
    )
    rows: list[Row] = [{"metric": name, "value": report[name], "code": code} for name in READERS]
    if isinstance(train, PackedCodes) and code != METHOD:
        for part, codes in (("train", train), ("test", test)):
            rows += _hash_rows(codes, part, code=code)
    return rows


def _varied(config: NeuralCodeConfig, model: nn.Module, split: Split) -> Iterator[Row]:
    model.cpu()
    train, test = _codes(model, split.train_x), _codes(model, split.test_x)
    yield from _hash_rows(test, "test")
    found = neighbor_classes(train, split.train_y.numpy(), test, config.neighbors)
    yield {"metric": "knn", "value": float((found == split.test_y.numpy()).mean())}
    yield {"metric": "network", "value": _accuracy(model, split.test_x, split.test_y)}


@torch.no_grad()
def _activations(model: nn.Sequential, x: Tensor) -> np.ndarray:
    """What the last hidden layer gives to the last one."""
    model.eval()
    return model[:-1](x).numpy()


def _channel_sums(config: NeuralCodeConfig, seed: int, log: Log) -> Iterator[Row]:
    """Classifiers on the channel sums of pretrained convolutional networks."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            "backbones are timm models: pip install timm torchvision (matching your torch), or set "
            "backbones to []"
        ) from error
    source = require("datasets", extra="language").load_dataset(
        config.backbone_dataset, split="validation"
    )
    order = np.random.default_rng(seed).permutation(len(source))[: config.backbone_images]
    chosen = source.select(order)
    labels = np.asarray(chosen["label"])
    half = len(labels) // 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for i, name in enumerate(config.backbones):
        model = timm.create_model(name, pretrained=True).to(device)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))

        def batches(begin: int, end: int, transform: Any = transform) -> Iterator[Tensor]:
            for start in range(begin, end, config.batch_size):
                pictures = chosen[start : min(end, start + config.batch_size)]["image"]
                yield torch.stack([transform(picture.convert("RGB")) for picture in pictures])

        code = NeuralCode(model)
        train = code.encode(batches(0, half), aggregate="sum")
        test = code.encode(batches(half, len(labels)), aggregate="sum")
        report = encoding_report(
            train.scaled(),
            labels[:half],
            test.scaled(train),
            labels[half:],
            neighbors=config.neighbors,
        )
        for metric in READERS:
            yield {"metric": metric, "value": report[metric], "code": SUMS, "model": name}
        log((i + 1) / len(config.backbones), name)


# --- claims ---------------------------------------------------------------------------------------


def _redundancy(table: pd.DataFrame, part: str = "train") -> pd.DataFrame:
    """Redundancy of the trained networks: (width, epoch) down, seeds across."""
    rows = table[(table.arm == METHOD) & (table.metric == "redundancy") & (table.part == part)]
    return rows.pivot(index=["width", "epoch"], columns="seed", values="value")


def _final(table: pd.DataFrame, code: str, metric: str) -> pd.DataFrame:
    """What a reader makes of a code: widths down, seeds across."""
    rows = table[(table.metric == metric) & (table.code == code)]
    return rows.pivot(index="width", columns="seed", values="value").sort_index()


def _varying(table: pd.DataFrame, arm: str, key: str, metric: str) -> pd.DataFrame:
    rows = table[(table.arm == arm) & (table.metric == metric)]
    if key not in table or rows.empty:
        return table.iloc[:0].pivot_table(index="seed", columns="arm", values="value")
    return rows.pivot(index=[key, "width"], columns="seed", values="value").sort_index()


def _claims(
    config: NeuralCodeConfig, table: pd.DataFrame, dataset: str, widths: Sequence[int]
) -> Iterator[Claim]:
    redundancy = _redundancy(table)
    last = redundancy.xs(config.epochs, level="epoch").sort_index()
    yield Claim.judge(
        f"Redundancy falls monotonically with width ({dataset})",
        paper="MNIST, train: about 1.0 up to width 10, 0.77 at 20, 0.10 at 40, < 0.01 from 70 (plot)",
        measured=mean_interval((-last.diff()).min()),
        quantity="smallest fall of R between successive widths, training inputs",
        above=0,
    )
    for width in config.jump_widths:
        if width not in widths:
            continue
        curve = redundancy.loc[width]
        for other, name in ((0, "at initialisation"), (config.epochs, "at the end")):
            yield Claim.judge(
                f"Redundancy after the first epoch exceeds that {name} (width {width}, {dataset})",
                paper="starts near 0, jumps after epoch 1, then decays (plot)",
                measured=mean_interval(curve.loc[1] - curve.loc[other]),
                quantity=f"R after epoch 1 - R {name}, training inputs",
                above=0,
            )
    gap = (_final(table, METHOD, "knn") - _final(table, UNTRAINED, "knn")).min()
    yield Claim.judge(
        f"Trained codes classify better than untrained ones of the same width ({dataset})",
        paper="codes classify: k-NN 0.95 on MNIST at width 100; untrained codes not reported",
        measured=mean_interval(gap),
        quantity="k-NN accuracy of trained - untrained codes, least of all widths",
        above=0.05,
    )
    deficit = table[
        (table.arm == METHOD)
        & (table.metric == "deficit")
        & (table.part == "train")
        & (table.epoch == config.epochs)
    ].pivot(index="width", columns="seed", values="value")
    yield Claim.judge(
        f"Redundancy and entropy deficit rank the widths alike ({dataset})",
        paper="not examined; the entropy is this library's addition",
        measured=mean_interval(
            [_rank_correlation(last[seed], deficit.sort_index()[seed]) for seed in last.columns]
        ),
        quantity="Spearman correlation over widths, training inputs",
        above=0.99,
    )
    yield from _sample_claims(config, table, dataset)
    yield from _noise_claims(config, table, dataset)


def _rank_correlation(a: Any, b: Any) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def _sample_claims(config: NeuralCodeConfig, table: pd.DataFrame, dataset: str) -> Iterator[Claim]:
    if not config.sample_sizes:
        return
    least = min(config.sample_sizes)
    full = _redundancy(table, "test").xs(config.epochs, level="epoch").sort_index()
    few = _varying(table, SAMPLES, "size", "redundancy").loc[least].sort_index()
    yield Claim.judge(
        f"More training inputs lower the redundancy of test inputs ({dataset})",
        paper="MNIST, width 40: 0.77 at 10 inputs, 0.05 at 60,000 (plot)",
        measured=mean_interval((few - full).mean()),
        quantity=f"R after {least} - after {config.train_size} inputs, mean over widths",
        above=0,
    )
    gain = _final(table, METHOD, "knn") - _varying(table, SAMPLES, "size", "knn").loc[least]
    yield Claim.judge(
        f"More training inputs make codes classify better ({dataset})",
        paper="rises (plot)",
        measured=mean_interval(gain.mean()),
        quantity=f"k-NN accuracy after {config.train_size} - after {least} inputs, mean over widths",
        above=0,
        note="The neighbours are the same training inputs in both; the network alone saw fewer.",
    )


def _noise_claims(config: NeuralCodeConfig, table: pd.DataFrame, dataset: str) -> Iterator[Claim]:
    last = _redundancy(table, "test").xs(config.epochs, level="epoch")
    over_widths = last.max() - last.min()
    for arm, key, name in ((NOISE, "noise", "Label noise"), (DECAY, "l2", "Weight decay")):
        varied = _varying(table, arm, key, "redundancy")
        if varied.empty:
            continue
        if config.noise_width in last.index:
            varied = _concatenated(varied, last.loc[[config.noise_width]])
        yield Claim.judge(
            f"{name} matters less for redundancy than width ({dataset})",
            paper="regularisation and noise matter less than size, time and sample count (abstract)",
            measured=mean_interval((varied.max() - varied.min()) - over_widths),
            quantity=f"range of R over {key} at width {config.noise_width} - range over widths, test inputs",
            below=0,
        )


def _concatenated(*parts: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    return pd.concat([part.reset_index(drop=True) for part in parts])


def _sums_claim(config: NeuralCodeConfig, table: pd.DataFrame) -> Claim:
    statement = "Channel sums of large networks classify images"
    paper = "VGG, ResNet, ResNeXt on CIFAR-10, TinyImageNet and ImageNet"
    quantity = "k-NN accuracy on channel sums, least over models"
    rows = table[(table.arm == SUMS) & (table.metric == "knn")]
    if rows.empty:
        note = "needs pretrained models and their images: preset paper"
        return Claim.not_measurable(statement, paper=paper, quantity=quantity, note=note)
    return Claim.judge(
        statement,
        paper=paper,
        measured=mean_interval(rows.groupby("seed").value.min()),
        quantity=quantity,
        above=0.01,
        note="Chance is 0.001 with the classes of ImageNet.",
    )


# --- figures --------------------------------------------------------------------------------------


def _figures(config: NeuralCodeConfig, table: pd.DataFrame, dataset: str) -> Iterator[Figure]:
    yield _time_figure(config, table, dataset)
    yield _reader_figure(table, dataset)
    thresholds = {"under": config.under, "sufficient": config.sufficient}
    drawn = (
        f"Redundancy of the test inputs, mean over seeds, and the phase by it: under-expressive above "
        f"{config.under:g}, sufficiently expressive up to {config.sufficient:g}. The thresholds are ours: "
        "the paper draws its regions by eye."
    )
    times = _redundancy(table, "test").mean(axis=1).unstack("epoch")
    chart = phase_chart(list(times.columns), list(times.index), times.to_numpy(), **thresholds)
    chart.update_xaxes(title="epoch")
    chart.update_yaxes(title="width (units)")
    yield Figure(f"Phases over size and time ({dataset})", drawn, chart)
    if config.sample_sizes:
        sizes = _varying(table, SAMPLES, "size", "redundancy").mean(axis=1).unstack("size")
        sizes[float(config.train_size)] = times[config.epochs]
        chart = phase_chart(
            [int(size) for size in sizes.columns], list(sizes.index), sizes.to_numpy(), **thresholds
        )
        chart.update_xaxes(title="training inputs")
        chart.update_yaxes(title="width (units)")
        yield Figure(f"Phases over size and training inputs ({dataset})", drawn, chart)
    yield from _varied_figures(config, table, dataset)


def _whiskers(intervals: Sequence[Interval]) -> dict[str, Any]:
    """Values with their intervals, where there are any."""
    shown = [(i.value, i.low, i.high) if np.isfinite(i.low) else (i.value,) * 3 for i in intervals]
    return {
        "y": [value for value, _, _ in shown],
        "error_y": {
            "array": [high - value for value, _, high in shown],
            "arrayminus": [value - low for value, low, _ in shown],
        },
    }


def _time_figure(config: NeuralCodeConfig, table: pd.DataFrame, dataset: str) -> Figure:
    import plotly.graph_objects as go

    from szilard.lab.figures import color

    redundancy = _redundancy(table)
    plot = go.Figure()
    for i, width in enumerate(redundancy.index.unique("width")):
        curve = redundancy.loc[width]
        intervals = [mean_interval(values) for values in curve.to_numpy()]
        plot.add_scatter(
            x=curve.index, name=f"{width:g} units", line={"color": color(i)}, **_whiskers(intervals)
        )
        if dataset == config.datasets[0] and width <= 24:
            chance = random_redundancy(config.train_size, int(width))
            plot.add_hline(y=chance, line={"dash": "dot", "color": color(i), "width": 1})
    plot.update_xaxes(title="epoch")
    plot.update_yaxes(title="redundancy of the training inputs")
    return Figure(
        f"Redundancy while networks learn ({dataset})",
        "Share of inputs whose code another one has already; means with 95 % intervals over seeds. Dotted: "
        "what as many independent fair bits would have, for the narrow networks; it vanishes for the others.",
        plot,
    )


def _reader_figure(table: pd.DataFrame, dataset: str) -> Figure:
    from plotly.subplots import make_subplots

    from szilard.lab.figures import color

    plot = make_subplots(rows=1, cols=3, subplot_titles=list(READERS.values()), shared_yaxes=True)
    for column, reader in enumerate(READERS, 1):
        for i, code in enumerate((METHOD, UNTRAINED, PROJECTIONS, FEATURES)):
            found = _final(table, code, reader)
            plot.add_scatter(
                x=found.index,
                name=code,
                legendgroup=code,
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": color(i)},
                row=1,
                col=column,
                **_whiskers([mean_interval(values) for values in found.to_numpy()]),
            )
        pixels = _final(table, PIXELS, reader)
        if not pixels.empty:
            plot.add_hline(
                y=float(pixels.to_numpy().mean()),
                line={"dash": "dot", "color": color(7)},
                annotation_text=f"pixels, {int(pixels.index[0])} bits",
                row=1,
                col=column,
            )
    plot.update_xaxes(title="bits (units)", type="log")
    plot.update_yaxes(title="test accuracy (fraction)", col=1)
    plot.update_layout(legend={"orientation": "h", "yanchor": "bottom", "y": 1.12, "x": 0})
    return Figure(
        f"What simple classifiers read ({dataset})",
        "Everything is learned on the training inputs. Real activations are those of the trained network's last "
        "hidden layer, numbers instead of bits. Means with 95 % intervals over seeds.",
        plot,
    )


def _varied_figures(
    config: NeuralCodeConfig, table: pd.DataFrame, dataset: str
) -> Iterator[Figure]:
    import plotly.graph_objects as go

    for arm, key, title in (
        (NOISE, "noise", "share of labels redrawn"),
        (DECAY, "l2", "penalty of the squared weights"),
    ):
        plot = go.Figure()
        for metric, name in (
            ("redundancy", "redundancy"),
            ("knn", "k-NN on the codes"),
            ("network", "the network"),
        ):
            varied = _varying(table, arm, key, metric)
            if varied.empty:
                continue
            plot.add_scatter(
                x=[f"{value:g}" for value, _ in varied.index],
                name=name,
                mode="lines+markers",
                **_whiskers([mean_interval(values) for values in varied.to_numpy()]),
            )
        if plot.data:
            plot.update_xaxes(title=title, type="category")
            plot.update_yaxes(title="fraction of the test inputs")
            caption = f"At {config.noise_width} units. Means with 95 % intervals over seeds."
            yield Figure(f"{arm.capitalize()} ({dataset})", caption, plot)
