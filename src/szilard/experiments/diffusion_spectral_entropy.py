"""Diffusion spectral entropy and mutual information of representations during training.

Networks learn true labels, memorise random ones, or learn without labels, while the entropy of their
penultimate layer and its information on labels and inputs are followed, once at the paper's fixed
bandwidth and once relative to the activations' norm. Two further parts have known answers: blobs whose
labels are corrupted, and clouds of rising intrinsic dimension.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
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
    Log,
    Preset,
    Row,
)
from szilard.measures.estimators import kozachenko_leonenko
from szilard.measures.spectral import (
    Bandwidth,
    binned_entropy,
    cluster_labels,
    diffusion_spectral_mutual_information,
    diffusion_spectrum,
    effective_rank,
    gram_entropy,
    size_matched_mutual_information,
)
from szilard.representations import ActivationRecorder

if TYPE_CHECKING:
    import pandas as pd

Regime = Literal["true labels", "random labels", "contrastive"]
CORRUPTION = "label corruption"
DIMENSION = "intrinsic dimension"
RANKING = "ranking of pretrained models"
CHANNEL = "labels' channel"
BITS = 2


class DSEConfig(ExperimentConfig):
    backbones: tuple[str, ...] = Field(
        default=("mlp",), description='"mlp", or names of timm models (trained from scratch)'
    )
    datasets: tuple[str, ...] = Field(
        default=("mnist",),
        description='"mnist", "digits", or Hugging Face data sets with an image and a label column',
    )
    regimes: tuple[Regime, ...] = Field(
        default=("true labels", "random labels"), description="how the networks are trained"
    )
    train_size: int = Field(default=2_000, ge=20, description="training images")
    test_size: int = Field(default=1_000, ge=20, description="test images that are measured")
    epochs: int = Field(default=40, ge=1, description="length of the training")
    measured_epochs: tuple[int, ...] = Field(
        default=(0, 1, 2, 3, 4, 6, 8, 12, 16, 22, 28, 34, 40), description="0 is initialisation"
    )
    ranked_epochs: tuple[int, ...] = Field(
        default=(0, 1, 4, 16, 40), description="epochs of the rank correlation with accuracy"
    )
    hidden: tuple[int, ...] = Field(default=(256, 64), description="layers of the mlp; last is Z")
    learning_rate: float = Field(default=1e-3, gt=0, description="of Adam")
    batch_size: int = Field(default=100, ge=2, description="images a training step")
    init_std: float | None = Field(
        default=None, gt=0, description="standard deviation of the initial weights; None: default"
    )
    sigma: float = Field(default=10.0, gt=0, description="the paper's fixed bandwidth")
    t: float = Field(default=1.0, gt=0, description="diffusion time")
    input_clusters: int = Field(
        default=10, ge=2, description="spectral clusters that stand for the input in DSMI(Z; X)"
    )
    blob_points: int = Field(default=600, ge=30, description="points of the three blobs")
    blob_dimensions: tuple[int, ...] = Field(default=(20, 100), description="of the blobs")
    corruptions: tuple[float, ...] = Field(
        default=(0.0, 0.1, 0.25, 0.5, 0.75, 1.0), description="shares of the blobs' labels redrawn"
    )
    mine_steps: int = Field(default=200, ge=0, description="0 leaves the MINE baseline out")
    intrinsic_points: int = Field(default=500, ge=10, description="points of a normal cloud")
    intrinsic_dimensions: tuple[int, ...] = Field(
        default=(1, 2, 4, 8, 16, 32), description="of the normal clouds"
    )
    intrinsic_sigma: float = Field(default=3.0, gt=0, description="bandwidth for the clouds")
    ranking_models: tuple[str, ...] = Field(
        default=(),
        description='pretrained timm models to rank; "all" is every one; none: no ranking',
    )
    ranking_dataset: str = Field(
        default="ILSVRC/imagenet-1k", description="images of the ranking, a Hugging Face id"
    )
    ranking_images: int = Field(default=10_000, ge=100, description="images of the ranking")

    @model_validator(mode="after")
    def _epochs_are_consistent(self) -> DSEConfig:
        if {0, 1, self.epochs} - set(self.measured_epochs) or max(
            self.measured_epochs
        ) > self.epochs:
            raise ValueError(
                f"measured_epochs must hold 0, 1 and epochs={self.epochs} and nothing beyond, "
                f"but is {self.measured_epochs}"
            )
        if set(self.ranked_epochs) - set(self.measured_epochs):
            raise ValueError(
                f"ranked_epochs must be among measured_epochs={self.measured_epochs}, "
                f"but is {self.ranked_epochs}"
            )
        return self


class DiffusionSpectralEntropyExperiment:
    Config: ClassVar[type[ExperimentConfig]] = DSEConfig
    presets: ClassVar[Mapping[Preset, ExperimentConfig]] = {
        "smoke": DSEConfig(
            seeds=2,
            datasets=("digits",),
            train_size=200,
            test_size=150,
            epochs=3,
            measured_epochs=(0, 1, 2, 3),
            ranked_epochs=(0, 1, 2, 3),
            hidden=(32, 16),
            batch_size=20,
            learning_rate=1e-2,
            blob_points=120,
            blob_dimensions=(20,),
            corruptions=(0.0, 1.0),
            mine_steps=5,
            intrinsic_points=60,
            intrinsic_dimensions=(1, 2, 4),
        ),
        "quick": DSEConfig(),
        "paper": DSEConfig(
            seeds=3,
            backbones=(
                "resnet50",
                "resnext50_32x4d",
                "convnext_tiny",
                "vit_small_patch16_224",
                "swin_tiny_patch4_window7_224",
                "xcit_tiny_12_p16_224",
            ),
            datasets=("mnist", "uoft-cs/cifar10", "tanganke/stl10"),
            regimes=("true labels", "random labels", "contrastive"),
            train_size=50_000,
            test_size=10_000,
            epochs=200,
            measured_epochs=tuple(range(201)),
            ranked_epochs=tuple(range(201)),
            batch_size=256,
            ranking_models=("all",),
        ),
    }

    def arms(self, config: DSEConfig) -> Sequence[str]:
        runs = [
            _arm(config, backbone, dataset, regime)
            for backbone in config.backbones
            for dataset in config.datasets
            for regime in config.regimes
        ]
        return [*runs, CORRUPTION, DIMENSION, *([RANKING] if config.ranking_models else [])]

    def run(self, config: DSEConfig, arm: str, seed: int, log: Log) -> Sequence[Row]:
        with warnings.catch_warnings():
            # A fixed bandwidth is known to saturate at initialisation: that is a finding here.
            warnings.filterwarnings("ignore", "entropy within 2 %")
            warnings.filterwarnings("ignore", "Graph is not fully connected")
            if arm == CORRUPTION:
                return list(_corruption(config, seed, log))
            if arm == DIMENSION:
                return list(_intrinsic_dimension(config, seed, log))
            if arm == RANKING:
                return list(_ranking(config, seed, log))
            for backbone in config.backbones:
                for dataset in config.datasets:
                    for regime in config.regimes:
                        if arm == _arm(config, backbone, dataset, regime):
                            keys = {"backbone": backbone, "dataset": dataset, "regime": regime}
                            rows = _training(config, backbone, dataset, regime, seed, log)
                            return [{**row, **keys} for row in rows]
            raise ValueError(f"arm: got {arm!r}, must be one of {self.arms(config)}")

    def claims(self, config: DSEConfig, table: pd.DataFrame) -> Sequence[Claim]:
        return _claims(config, table)

    def figures(self, config: DSEConfig, table: pd.DataFrame) -> Sequence[Figure]:
        return _figures(config, table)


experiment = DiffusionSpectralEntropyExperiment()


def _arm(config: DSEConfig, backbone: str, dataset: str, regime: str) -> str:
    single = len(config.backbones) == len(config.datasets) == 1
    return regime if single else f"{regime} / {backbone} / {dataset}"


# --- training runs --------------------------------------------------------------------------------


class Images:
    """Images as bytes with their classes; `batch` turns rows into network input on a device."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        pixels = pixels[:, None] if pixels.ndim == 3 else np.moveaxis(pixels, -1, 1)
        self.pixels = torch.from_numpy(np.ascontiguousarray(pixels))
        self.labels = torch.from_numpy(labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Tensor | slice, size: int | None, device: torch.device) -> Tensor:
        x = self.pixels[rows].to(device).float() / 255
        return x if size is None else F.interpolate(x, (size, size), mode="bilinear")


def load_images(name: str, split: Literal["train", "test"], n: int, seed: int) -> Images:
    """The first n images of a seeded shuffle of a split."""
    rng = np.random.default_rng(seed)
    if name in ("mnist", "digits"):
        from szilard.zoo import images

        data = images.mnist(split) if name == "mnist" else images.digits(split)
        rows = rng.permutation(len(data.labels))[:n]
        return Images(data.images[rows], data.labels[rows])
    datasets = require("datasets", extra="language")
    source = datasets.load_dataset(name, split=split)
    columns = {kind: _column(source, kind) for kind in ("image", "label")}
    rows = rng.permutation(len(source))[:n]
    chosen = source.select(rows)
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in chosen[columns["image"]]])
    return Images(pixels, np.asarray(chosen[columns["label"]]))


def _column(source: Any, kind: str) -> str:
    accepted = {"image": ("image", "img"), "label": ("label", "labels", "fine_label")}[kind]
    for name in accepted:
        if name in source.column_names:
            return name
    raise ValueError(f"the data set must have a column {accepted}, but has {source.column_names}")


class Backbone(nn.Module):
    """A network in two parts: `features` gives the penultimate layer, `head` the logits."""

    def __init__(self, config: DSEConfig, name: str, sample: Tensor, classes: int) -> None:
        super().__init__()
        self.image_size: int | None = None
        if name == "mlp":
            sizes = [sample.numel(), *config.hidden]
            layers: list[nn.Module] = [nn.Flatten()]
            for a, b in pairwise(sizes):
                layers += [nn.Linear(a, b), nn.ReLU()]
            self.features: nn.Module = nn.Sequential(*layers)
            self.head: nn.Module = nn.Linear(sizes[-1], classes)
            width = sizes[-1]
        else:
            timm = _timm()
            network: Any = timm.create_model(name, num_classes=0, in_chans=len(sample))
            self.features, width = network, network.num_features
            self.image_size = network.default_cfg["input_size"][-1]
            self.head = nn.Linear(width, classes)
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 64))
        if config.init_std is not None:
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    nn.init.normal_(module.weight, std=config.init_std)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            "this backbone is a timm model: pip install timm torchvision (matching your torch), "
            'or set backbones to ["mlp"]'
        ) from error
    return timm


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Weights and dropout draw from torch's global generator: seeded inside, restored after."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _training(
    config: DSEConfig, backbone: str, dataset: str, regime: Regime, seed: int, log: Log
) -> Iterator[Row]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train = load_images(dataset, "train", config.train_size, seed)
    test = load_images(dataset, "test", config.test_size, seed)
    targets = train.labels
    if regime == "random labels":
        order = np.random.default_rng(seed).permutation(len(train))
        targets = targets[torch.from_numpy(order)]
    inputs = test.pixels.flatten(1).double() / 255
    clusters = cluster_labels(inputs, discrete=False, n_clusters=config.input_clusters)
    with _seeded(seed):
        classes = int(max(train.labels.max(), test.labels.max())) + 1
        model = Backbone(config, backbone, train.pixels[0], classes).to(device)
        optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        for epoch in range(config.epochs + 1):
            if epoch:
                _train_epoch(config, model, optimiser, train, targets, regime, device)
            if epoch in config.measured_epochs:
                for row in _measure(config, model, train, targets, test, clusters, epoch, device):
                    yield {**row, "step": epoch}
            log((epoch + 1) / (config.epochs + 1), f"epoch {epoch} of {config.epochs}")


def _train_epoch(
    config: DSEConfig,
    model: Backbone,
    optimiser: torch.optim.Optimizer,
    train: Images,
    targets: Tensor,
    regime: Regime,
    device: torch.device,
) -> None:
    model.train()
    for rows in torch.randperm(len(train)).split(config.batch_size):
        x = train.batch(rows, model.image_size, device)
        if regime == "contrastive":
            views = torch.cat([_augment(x), _augment(x)])
            loss = _nt_xent(model.projection(model.features(views)))
        else:
            loss = F.cross_entropy(model(x), targets[rows].to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _augment(x: Tensor) -> Tensor:
    """A random crop of 70 to 100 % of each side, resized, brighter or darker, flipped if coloured."""
    n, channels = x.shape[:2]
    scale = 0.7 + 0.3 * torch.rand(n, device=x.device)
    shift = (1 - scale)[:, None] * (2 * torch.rand(n, 2, device=x.device) - 1)
    mirror = torch.ones(n, device=x.device)
    if channels == 3:
        mirror = 1 - 2 * torch.randint(2, (n,), device=x.device).float()
    zero = torch.zeros_like(scale)
    rows = [scale * mirror, zero, shift[:, 0], zero, scale, shift[:, 1]]
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(x.shape), align_corners=False)
    view = F.grid_sample(x, grid, align_corners=False)
    return view * (0.6 + 0.8 * torch.rand(n, 1, 1, 1, device=x.device))


def _nt_xent(z: Tensor, temperature: float = 0.5) -> Tensor:
    """SimCLR's loss: each view must recognise the other view of its image among all views."""
    z = F.normalize(z, dim=1)
    similarity = (z @ z.mT / temperature).fill_diagonal_(-math.inf)
    n = len(z) // 2
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(similarity, partner)


def _features(
    model: Backbone, data: Images, batch_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Penultimate activations and predicted classes of all images."""
    model.eval()
    predicted = []
    with torch.no_grad(), ActivationRecorder(model, "features", device="cpu") as recorder:
        for start in range(0, len(data), batch_size):
            x = data.batch(slice(start, start + batch_size), model.image_size, device)
            predicted.append(model(x).argmax(1).cpu())
    return recorder["features"], torch.cat(predicted)


def _measure(
    config: DSEConfig,
    model: Backbone,
    train: Images,
    targets: Tensor,
    test: Images,
    clusters: np.ndarray,
    epoch: int,
    device: torch.device,
) -> Iterator[Row]:
    z, predicted = _features(model, test, config.batch_size, device)
    z_train, predicted_train = _features(model, train, config.batch_size, device)
    yield _row("accuracy", (predicted == test.labels).double().mean())
    yield _row("training accuracy", (predicted_train == targets).double().mean())
    yield _row("linear probe", _linear_probe(z_train, train, z, test))
    yield _row("mean norm", z.norm(dim=1).mean())
    yield _row("effective rank", effective_rank(z, of="covariance"))
    yield _row("binned MI", _binned_information(z, test.labels))
    bandwidths: dict[str, Bandwidth] = {"fixed": config.sigma, "relative": "mean_norm"}
    for scale, sigma in bandwidths.items():
        spectrum = diffusion_spectrum(z, sigma)
        yield _row("dse", spectrum.entropy(config.t, base=BITS), scale=scale, sigma=spectrum.sigma)
        for metric, y in (("dsmi", test.labels.numpy()), ("dsmi with input", clusters)):
            result = diffusion_spectral_mutual_information(
                z, y, spectrum.sigma, config.t, base=BITS, discrete=True
            )
            yield _row(metric, result.value, scale=scale, sigma=spectrum.sigma)
        if epoch in (1, config.epochs):
            ranks = np.unique(np.geomspace(1, len(z), 60).astype(int))
            for rank in ranks:
                yield _row(
                    "eigenvalue", spectrum.eigenvalues[rank - 1], scale=scale, rank=int(rank)
                )


def _linear_probe(z_train: Tensor, train: Images, z: Tensor, test: Images) -> float:
    """Test accuracy of a ridge classifier fitted on the frozen features and the true labels."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), RidgeClassifier())
    probe.fit(z_train.numpy(), train.labels.numpy())
    return float(probe.score(z.numpy(), test.labels.numpy()))


def _row(metric: str, value: float | Tensor | np.ndarray, **keys: Any) -> Row:
    return {"metric": metric, "value": float(value), **keys}


# --- blobs with corrupted labels ------------------------------------------------------------------


def _corruption(config: DSEConfig, seed: int, log: Log) -> Iterator[Row]:
    from sklearn.datasets import make_blobs

    classes = 3
    cases = [(d, c) for d in config.blob_dimensions for c in config.corruptions]
    for i, (dimension, corruption) in enumerate(cases):
        rng = np.random.default_rng(seed)
        points, truth = make_blobs(
            config.blob_points, dimension, centers=classes, random_state=seed
        )
        spoilt = rng.permutation(len(truth))[: round(corruption * len(truth))]
        labels = truth.copy()
        labels[spoilt] = rng.integers(classes, size=len(spoilt))
        for metric, value in _label_information(config, points, labels, classes, seed).items():
            yield _row(metric, value, dimension=dimension, corruption=corruption)
        yield _row(
            CHANNEL,
            _channel_information(corruption, classes),
            dimension=dimension,
            corruption=corruption,
        )
        log((i + 1) / len(cases), f"dimension {dimension}, corruption {corruption:g}")


def _label_information(
    config: DSEConfig, points: np.ndarray, labels: np.ndarray, classes: int, seed: int
) -> dict[str, float]:
    """Every estimate of the information between points and labels, in bits."""
    dsmi = diffusion_spectral_mutual_information(
        points, labels, config.sigma, config.t, rng=seed, base=BITS
    )
    estimates = {
        "DSMI": dsmi.value,
        "binned MI": _binned_information(points, labels, seed),
        "kNN MI": _knn_information(points, labels),
        "matrix Rényi MI": _gram_information(points, labels, config.sigma),
    }
    if config.mine_steps:
        estimates["MINE"] = _mine(points, labels, classes, config.mine_steps, seed)
    return estimates


def _binned_information(
    points: np.ndarray | Tensor, labels: np.ndarray | Tensor, seed: int = 0
) -> float:
    return size_matched_mutual_information(
        lambda z: binned_entropy(z, base=BITS), points, labels, discrete=True, rng=seed
    ).value


def _knn_information(points: np.ndarray, labels: np.ndarray) -> float:
    """Difference of Kozachenko-Leonenko entropies, h(Z) - sum_c p_c h(Z | Y = c), as in NPEET."""
    conditional = sum(
        (labels == c).mean() * kozachenko_leonenko(points[labels == c], base=BITS)
        for c in np.unique(labels)
    )
    return float(kozachenko_leonenko(points, base=BITS) - conditional)


def _gram_information(points: np.ndarray, labels: np.ndarray, sigma: float) -> float:
    """Matrix-based Rényi information of order 2: S(A) + S(B) - S(A o B)."""
    z = torch.from_numpy(points)
    kernel = (-torch.cdist(z, z).square() / (2 * sigma**2)).exp()
    same = torch.from_numpy(labels[:, None] == labels).double()
    a, b, joint = (gram_entropy(g, alpha=2, base=BITS) for g in (kernel, same, kernel * same))
    return float(a + b - joint)


def _mine(points: np.ndarray, labels: np.ndarray, classes: int, steps: int, seed: int) -> float:
    """MINE: the Donsker-Varadhan bound of a small network, on the half it was not trained on."""
    rng = np.random.default_rng(seed)
    z = torch.from_numpy((points - points.mean(0)) / points.std(0)).float()
    y = F.one_hot(torch.from_numpy(labels).long(), classes).float()
    order = torch.from_numpy(rng.permutation(len(z)))
    halves = [(z[half], y[half]) for half in order.chunk(2)]
    with _seeded(seed):
        critic = nn.Sequential(nn.Linear(z.shape[1] + classes, 64), nn.ReLU(), nn.Linear(64, 1))
        optimiser = torch.optim.Adam(critic.parameters(), lr=1e-3)

        def bound(z: Tensor, y: Tensor) -> Tensor:
            joint = critic(torch.cat([z, y], 1)).mean()
            shuffled = critic(torch.cat([z, y[torch.randperm(len(y))]], 1))
            return joint - shuffled.logsumexp(0).squeeze() + math.log(len(y))

        for _ in range(steps):
            optimiser.zero_grad()
            (-bound(*halves[0])).backward()
            optimiser.step()
        with torch.no_grad():
            held_out = torch.stack([bound(*halves[1]) for _ in range(10)]).mean()
    return float(held_out) / math.log(BITS)


def _channel_information(corruption: float, classes: int) -> float:
    """Information of true class and label: a symmetric channel, the most any estimate can find."""
    wrong = corruption / classes
    p = np.array([1 - corruption + wrong, *[wrong] * (classes - 1)])
    return math.log2(classes) + float(sum(q * math.log2(q) for q in p if q > 0))


# --- intrinsic dimension --------------------------------------------------------------------------


def _intrinsic_dimension(config: DSEConfig, seed: int, log: Log) -> Iterator[Row]:
    for i, dimension in enumerate(config.intrinsic_dimensions):
        points = np.random.default_rng(seed).normal(size=(config.intrinsic_points, dimension))
        entropy = diffusion_spectrum(points, config.intrinsic_sigma).entropy(config.t, base=BITS)
        yield _row("dse", entropy, dimension=dimension)
        log((i + 1) / len(config.intrinsic_dimensions), f"dimension {dimension}")


# --- pretrained models ----------------------------------------------------------------------------


def _ranking(config: DSEConfig, seed: int, log: Log) -> Iterator[Row]:
    """DSE, DSMI and top-1 accuracy of pretrained models on the same labelled images."""
    timm = _timm()
    datasets = require("datasets", extra="language")
    names = config.ranking_models
    if names == ("all",):
        names = tuple(timm.list_models(pretrained=True))
    source = datasets.load_dataset(config.ranking_dataset, split="validation")
    rows = np.random.default_rng(seed).permutation(len(source))[: config.ranking_images]
    chosen = source.select(rows)
    image, label = _column(source, "image"), _column(source, "label")
    labels = np.asarray(chosen[label])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for i, name in enumerate(names):
        model = timm.create_model(name, pretrained=True).eval().to(device)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        features, correct = [], []
        with torch.no_grad():
            for start in range(0, len(chosen), config.batch_size):
                part = chosen[start : start + config.batch_size]
                x = torch.stack([transform(picture.convert("RGB")) for picture in part[image]])
                hidden = model.forward_features(x.to(device))
                features.append(model.forward_head(hidden, pre_logits=True).cpu())
                predicted = model.forward_head(hidden).argmax(1).cpu()
                correct.append((predicted == torch.as_tensor(part[label])).double())
        z = torch.cat(features)
        spectrum = diffusion_spectrum(z, config.sigma)
        information = diffusion_spectral_mutual_information(
            z, labels, config.sigma, config.t, discrete=True, base=BITS
        )
        yield _row("accuracy", torch.cat(correct).mean(), model=name)
        yield _row("dse", spectrum.entropy(config.t, base=BITS), model=name)
        yield _row("dsmi", information.value, model=name)
        log((i + 1) / len(names), name)


# --- claims ---------------------------------------------------------------------------------------

UNIT = ["backbone", "dataset", "seed"]


def _curve(table: pd.DataFrame, regime: str, metric: str, scale: str | None = None) -> pd.DataFrame:
    """Epochs down, runs (backbone, dataset, seed) across."""
    if "regime" not in table:
        return table.iloc[:0].pivot_table(index="seed", columns="arm", values="value")
    rows = table[(table.metric == metric) & (table.regime == regime)]
    if scale is not None:
        rows = rows[rows.scale == scale]
    return rows.pivot(index="step", columns=UNIT, values="value")


def _claims(config: DSEConfig, table: pd.DataFrame) -> Sequence[Claim]:
    return [
        *_growth_claims(config, table),
        *_label_claims(config, table),
        *_input_claims(config, table),
        *_corruption_claims(config, table),
        *_dimension_claims(config, table),
        *_scale_of_the_paper_claims(config, table),
    ]


def _judge(
    values: Sequence[float] | np.ndarray, statement: str, *, paper: str, quantity: str, **test: Any
) -> Claim:
    from szilard.lab.statistics import mean_interval

    if len(values) == 0:
        note = "this configuration runs no arm that shows it"
        return Claim.not_measurable(statement, paper=paper, quantity=quantity, note=note)
    return Claim.judge(
        statement, paper=paper, measured=mean_interval(values), quantity=quantity, **test
    )


def _growth_claims(config: DSEConfig, table: pd.DataFrame) -> Iterator[Claim]:
    for regime in config.regimes:
        dse = _curve(table, regime, "dse", "fixed")
        gain = () if dse.empty else (dse.loc[config.epochs] - dse.loc[1]).to_numpy()
        yield _judge(
            gain,
            f"DSE at the paper's fixed bandwidth rises in training ({regime})",
            paper="rises in every run, also when overfitting random labels (plots)",
            quantity="DSE at the last epoch - at epoch 1, bits",
            above=0,
        )
    dse = _curve(table, "true labels", "dse", "relative")
    gain = () if dse.empty else (dse.loc[config.epochs] - dse.loc[0]).to_numpy()
    norm = _curve(table, "true labels", "mean norm")
    note = ""
    if not norm.empty:
        first, last = dse.loc[0].mean(), dse.loc[config.epochs].mean()
        note = (
            f"The norm of the activations grew {(norm.loc[config.epochs] / norm.loc[0]).mean():.1f}-"
            f"fold; with that taken out, DSE went from {first:.2f} to {last:.2f} bits. Where this "
            "fails, the rise at a fixed bandwidth is largely growth of the norm."
        )
    yield _judge(
        gain,
        "DSE rises from initialisation also when the bandwidth follows the activations' norm",
        paper="not examined: sigma was fixed at 10",
        quantity="DSE at the last epoch - at initialisation, sigma = 0.3 mean norms, bits",
        above=0,
        note=note,
    )


def _label_claims(config: DSEConfig, table: pd.DataFrame) -> Iterator[Claim]:
    for scale, name in (("fixed", "fixed bandwidth"), ("relative", "relative bandwidth")):
        true = _curve(table, "true labels", "dsmi", scale)
        random = _curve(table, "random labels", "dsmi", scale)
        present = not true.empty and not random.empty
        gap = (true.loc[config.epochs] - random.loc[config.epochs]).dropna() if present else ()
        yield _judge(
            np.asarray(gap),
            f"Learning that generalises ends with more DSMI with the labels than memorising ({name})",
            paper="rises when generalising, stays flat when overfitting (plots)",
            quantity="DSMI(true labels) - DSMI(random labels) at the last epoch, bits",
            above=0.4,
        )
    dsmi = _curve(table, "true labels", "dsmi", "relative")
    accuracy = _curve(table, "true labels", "accuracy")
    ranked = list(config.ranked_epochs)
    everywhere = _rank_correlations(dsmi, accuracy)
    note = f"Over epochs {ranked}."
    if len(everywhere):
        note += f" Over all measured epochs: {everywhere.mean():.2f}."
    yield _judge(
        _rank_correlations(dsmi.reindex(ranked).dropna(), accuracy.reindex(ranked).dropna()),
        "DSMI with the labels follows validation accuracy along training",
        paper="both curves rise together (plots)",
        quantity="Spearman correlation of DSMI (relative bandwidth) and accuracy, true labels",
        above=0.5,
        note=note,
    )


def _rank_correlations(a: pd.DataFrame, b: pd.DataFrame) -> np.ndarray:
    from scipy.stats import spearmanr

    if len(a) < 3:
        return np.empty(0)
    return np.array([spearmanr(a[run], b[run]).statistic for run in a.columns])


def _input_claims(config: DSEConfig, table: pd.DataFrame) -> Iterator[Claim]:
    dsmi = _curve(table, "true labels", "dsmi with input", "fixed")
    if not dsmi.empty:
        dsmi = dsmi.loc[:, dsmi.columns.get_level_values("dataset") == "mnist"]
    gain = () if dsmi.empty else (dsmi.loc[config.epochs] - dsmi.loc[0]).to_numpy()
    yield _judge(
        gain,
        "DSMI with the input rises in training on MNIST",
        paper="up on MNIST; peaks, then falls on CIFAR-10 and STL-10 (plots)",
        quantity="DSMI with input clusters at the last epoch - at initialisation, bits",
        above=0,
        note="At the paper's fixed bandwidth, where growth of the norm takes part.",
    )


def _corruption_claims(config: DSEConfig, table: pd.DataFrame) -> Iterator[Claim]:
    blobs = table[table.arm == CORRUPTION]
    top = max(config.blob_dimensions)
    if not blobs.empty:
        blobs = blobs[blobs.dimension == top]
    dsmi = blobs[blobs.metric == "DSMI"]
    residue = dsmi[dsmi.corruption == 1.0].value.abs() if not dsmi.empty else ()
    yield _judge(
        np.asarray(residue),
        f"DSMI vanishes when all labels of the blobs are corrupted (d = {top})",
        paper="falls to 0 (d = 100)",
        quantity="|DSMI| at full corruption, bits",
        below=0.03,
    )
    falls = [-_rank_correlation(group.corruption, group.value) for _, group in dsmi.groupby("seed")]
    yield _judge(
        falls,
        f"DSMI falls steadily with label corruption (d = {top})",
        paper="falls smoothly from 1.04 (d = 100)",
        quantity="- Spearman correlation of DSMI and corruption",
        above=0.8,
    )
    clean = blobs[blobs.corruption == 0.0] if not blobs.empty else blobs
    least = min((c for c in config.corruptions if c > 0), default=0.0)
    spoilt = blobs[blobs.corruption == least] if not blobs.empty else blobs
    for name in ("binned MI", "kNN MI"):
        values = clean[clean.metric == name].value
        after = spoilt[spoilt.metric == name].value.mean()
        yield _judge(
            values.to_numpy(),
            f"{name} misses the information of clean labels in d = {top}",
            paper="binned MI and NPEET sit at 0 (d = 100)",
            quantity=f"{name} at no corruption, bits",
            below=0.1,
            note=f"With {least:.0%} of the labels corrupted it is {after:.2f} bits.",
        )


def _rank_correlation(a: Any, b: Any) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def _dimension_claims(config: DSEConfig, table: pd.DataFrame) -> Iterator[Claim]:
    rows = table[table.arm == DIMENSION]
    steps = (
        rows.pivot(index="dimension", columns="seed", values="value").sort_index().diff().min()
        if len(rows)
        else ()
    )
    yield _judge(
        np.asarray(steps),
        "DSE increases with the intrinsic dimension of the data",
        paper="increases (plot)",
        quantity="smallest rise of DSE between successive dimensions, bits",
        above=0,
    )


def _scale_of_the_paper_claims(config: DSEConfig, table: pd.DataFrame) -> Iterator[Claim]:
    statement = "DSMI with the labels tracks ImageNet accuracy of pretrained models"
    paper = "Pearson 0.216 (top-1) over 962 models: weak, though p < 0.001"
    quantity = "Pearson correlation of DSMI and top-1 accuracy over models"
    rows = table[table.arm == RANKING]
    if rows.empty:
        note = "needs pretrained models and ImageNet: preset paper"
        yield Claim.not_measurable(statement, paper=paper, quantity=quantity, note=note)
    else:
        values = [
            group.pivot(index="model", columns="metric", values="value")[["dsmi", "accuracy"]]
            .corr()
            .iloc[0, 1]
            for _, group in rows.groupby("seed")
        ]
        note = "Weak correlation: no predictor of accuracy."
        yield _judge(values, statement, paper=paper, quantity=quantity, above=0, note=note)
    yield Claim.not_measurable(
        "A low initial DSE helps: initial weights of std 0.01 beat 0.1",
        paper="ResNet on CIFAR-10 and STL-10 (plot)",
        quantity="difference of final accuracy",
        note="compare two runs of preset paper that differ in init_std",
    )


# --- figures --------------------------------------------------------------------------------------


def _figures(config: DSEConfig, table: pd.DataFrame) -> Sequence[Figure]:
    figures = []
    if "regime" in table:
        for backbone, dataset in _pairs(table):
            pair = table[(table.backbone == backbone) & (table.dataset == dataset)]
            name = f"{backbone} on {dataset}"
            figures += [_entropy_figure(pair, name), _baseline_figure(pair, name)]
            figures.append(_spectrum_figure(config, pair, name))
    if (table.arm == CORRUPTION).any():
        figures.append(_corruption_figure(config, table[table.arm == CORRUPTION]))
    if (table.arm == DIMENSION).any():
        figures.append(_dimension_figure(config, table[table.arm == DIMENSION]))
    if (table.arm == RANKING).any():
        figures.append(_ranking_figure(table[table.arm == RANKING]))
    return figures


def _pairs(table: pd.DataFrame) -> Sequence[tuple[str, str]]:
    pairs = table[["backbone", "dataset"]].dropna().drop_duplicates()
    return list(pairs.itertuples(index=False, name=None))


def _lines(rows: pd.DataFrame, x: str, name: str, index: int, shown: bool = True) -> list[Any]:
    """Mean over seeds as a line with the range over seeds as a band."""
    import plotly.graph_objects as go

    from szilard.lab.figures import color

    summary = rows.groupby(x).value.agg(["mean", "min", "max"]).reset_index()
    red, green, blue = (int(color(index)[i : i + 2], 16) for i in (1, 3, 5))
    band = go.Scatter(
        x=[*summary[x], *summary[x][::-1]],
        y=[*summary["max"], *summary["min"][::-1]],
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.18)",
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
    )
    line = go.Scatter(
        x=summary[x],
        y=summary["mean"],
        name=name,
        mode="lines+markers",
        line={"color": color(index)},
        legendgroup=name,
        showlegend=shown,
    )
    return [band, line]


def _grid(titles: Sequence[str], x: str, ys: Sequence[str], columns: int) -> Any:
    from plotly.subplots import make_subplots

    rows = -(-len(titles) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=titles,
        horizontal_spacing=0.24 / columns,
        vertical_spacing=0.32 / rows,
    )
    for i, y in enumerate(ys):
        row, column = divmod(i, columns)
        figure.update_xaxes(title_text=x, row=row + 1, col=column + 1)
        figure.update_yaxes(title_text=y, row=row + 1, col=column + 1)
    legend = {"orientation": "h", "yanchor": "bottom", "y": 1.12 if rows == 1 else 1.06, "x": 0}
    figure.update_layout(height=340 * rows + 80, legend=legend, margin={"t": 110})
    return figure


def _regime_panels(
    pair: pd.DataFrame, panels: Sequence[tuple[str, str, str | None, str]], columns: int
) -> Any:
    figure = _grid(
        [title for title, *_ in panels], "epoch", [panel[3] for panel in panels], columns
    )
    for i, (_, metric, scale, _) in enumerate(panels):
        for index, regime in enumerate(pair.regime.unique()):
            rows = pair[(pair.metric == metric) & (pair.regime == regime)]
            rows = rows if scale is None else rows[rows.scale == scale]
            for trace in _lines(rows, "step", regime, index, shown=i == 0):
                figure.add_trace(trace, row=i // columns + 1, col=i % columns + 1)
    return figure


def _entropy_figure(pair: pd.DataFrame, name: str) -> Figure:
    fixed, relative = "sigma = 10", "sigma = 0.3 mean norms"
    panels = [
        (f"DSE, {fixed}", "dse", "fixed", "bits"),
        (f"DSE, {relative}", "dse", "relative", "bits"),
        (f"DSMI with labels, {fixed}", "dsmi", "fixed", "bits"),
        (f"DSMI with labels, {relative}", "dsmi", "relative", "bits"),
        (f"DSMI with input, {fixed}", "dsmi with input", "fixed", "bits"),
        (f"DSMI with input, {relative}", "dsmi with input", "relative", "bits"),
    ]
    return Figure(
        f"Entropy and information of the penultimate layer ({name})",
        "Left, the paper's fixed bandwidth: the curves also follow the growth of the activations' norm. "
        "Right, the bandwidth is tied to the norm: what remains is the change of shape. Epoch 0 is "
        "initialisation. Lines: mean over seeds; bands: their range.",
        _regime_panels(pair, panels, 2),
    )


def _baseline_figure(pair: pd.DataFrame, name: str) -> Figure:
    panels = [
        ("Test accuracy", "accuracy", None, "fraction"),
        ("Accuracy on the labels trained with", "training accuracy", None, "fraction"),
        ("Linear probe", "linear probe", None, "fraction"),
        ("Effective rank", "effective rank", None, "dimensions"),
        ("Mean norm", "mean norm", None, "activation units"),
        ("Binned MI with labels", "binned MI", None, "bits"),
    ]
    return Figure(
        f"The same runs by other measures ({name})",
        "The linear probe is fitted on the true labels of the training images in every arm; binned MI "
        "is size-matched like DSMI. Lines: mean over seeds; bands: their range.",
        _regime_panels(pair, panels, 3),
    )


def _spectrum_figure(config: DSEConfig, pair: pd.DataFrame, name: str) -> Figure:
    figure = _grid(
        ["sigma = 10", "sigma = 0.3 mean norms"],
        "rank",
        ["eigenvalue (dimensionless)", "eigenvalue (dimensionless)"],
        2,
    )
    eigenvalues = pair[pair.metric == "eigenvalue"]
    for i, scale in enumerate(("fixed", "relative")):
        curves = [(r, e) for r in pair.regime.unique() for e in (1, config.epochs)]
        for index, (regime, epoch) in enumerate(curves):
            rows = eigenvalues[
                (eigenvalues.scale == scale)
                & (eigenvalues.regime == regime)
                & (eigenvalues.step == epoch)
            ]
            for trace in _lines(rows, "rank", f"{regime}, epoch {epoch}", index, shown=i == 0):
                trace.mode = "lines"
                figure.add_trace(trace, row=1, col=i + 1)
    figure.update_xaxes(type="log", dtick=1)
    figure.update_yaxes(type="log", range=[-6, 0.1], dtick=1, exponentformat="power")
    return Figure(
        f"Diffusion spectrum ({name})",
        "Eigenvalues in descending order. DSE counts, on a logarithmic scale, how many matter: the "
        "slower the fall, the higher the entropy.",
        figure,
    )


def _corruption_figure(config: DSEConfig, rows: pd.DataFrame) -> Figure:
    dimensions = config.blob_dimensions
    figure = _grid(
        [f"d = {d}" for d in dimensions],
        "corrupted labels (fraction)",
        ["bits"] * len(dimensions),
        len(dimensions),
    )
    for i, dimension in enumerate(dimensions):
        part = rows[rows.dimension == dimension]
        for index, metric in enumerate(part.metric.unique()):
            for trace in _lines(part[part.metric == metric], "corruption", metric, index, i == 0):
                if metric == CHANNEL:
                    trace.line.dash = "dot"
                figure.add_trace(trace, row=1, col=i + 1)
    figure.update_yaxes(range=[-1, 1.8])
    return Figure(
        "Three Gaussian blobs with corrupted labels",
        "What each estimator finds between points and labels. The labels' channel is the information "
        "that the corrupted labels carry about the blob; DSMI counts blobs at the kernel's scale and "
        "need not equal it, but must vanish with it. Bands: range over seeds; the axis stops at -1 bit, "
        "below which binned and kNN estimates go on.",
        figure,
    )


def _dimension_figure(config: DSEConfig, rows: pd.DataFrame) -> Figure:
    import plotly.graph_objects as go

    from szilard.lab.figures import color

    figure = go.Figure(_lines(rows, "dimension", "DSE", 0, shown=False))
    ceiling = math.log2(config.intrinsic_points)
    figure.add_hline(
        y=ceiling,
        line={"dash": "dot", "color": color(7)},
        annotation_text=f"log2 n = {ceiling:.2f} bits",
    )
    figure.update_xaxes(title_text="intrinsic dimension", type="log", dtick=math.log10(2))
    figure.update_yaxes(title_text="DSE (bits)", rangemode="tozero")
    return Figure(
        "DSE against intrinsic dimension",
        f"{config.intrinsic_points} standard normal points at sigma = {config.intrinsic_sigma:g}: "
        "entropy grows with dimension until every point is a place of its own. Band: range over seeds.",
        figure,
    )


def _ranking_figure(rows: pd.DataFrame) -> Figure:
    import plotly.graph_objects as go

    wide = rows.pivot_table(index="model", columns="metric", values="value")
    points = go.Scatter(x=wide.dsmi, y=wide.accuracy, text=wide.index, mode="markers")
    figure = go.Figure(points)
    figure.update_xaxes(title_text="DSMI with labels (bits)")
    figure.update_yaxes(title_text="top-1 accuracy (fraction)")
    return Figure("Pretrained models", "One point a model: the correlation is weak.", figure)
