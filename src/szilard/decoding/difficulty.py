"""How hard a question is to a model: its own samples say so, and a probe reads it off the prompt.

A model that overthinks is least sure on easy and on hopeless questions: over difficulty its entropy
is a U. Labels come from that profile; `DifficultyProbe` learns to tell them from a hidden state.

Source: Liu, Hu, Chu, Choi, DiffAdapt (2025; arXiv 2510.19669), stages 1 and 2.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from scipy.stats import linregress
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from szilard._extras import require

EASY, NORMAL, HARD = 0, 1, 2
CLASSES = ("easy", "normal", "hard")

_FORMAT = "szilard difficulty probe, version 1"
_MIN_SIDE = 3


# Labels -------------------------------------------------------------------------------------------


def label_difficulty(
    acc: Float[np.ndarray, "questions"],
    entropy: Float[np.ndarray, "questions"],
    alpha: float = 0.85,
    beta: float = 0.35,
    gamma: float = 0.60,
) -> Int[np.ndarray, "questions"]:
    """Easy, Normal or Hard, from how often and how surely a model solves each question.

    Normal where acc >= alpha and entropy <= beta; Hard where acc < gamma; Easy elsewhere. What is
    solved often enough but with much entropy is thus Easy: there the model overthinks.

    Args:
        acc: share of a question's samples that were right.
        entropy: mean entropy of their tokens, nats.
        alpha: accuracy from which a question is solved.
        beta: entropy up to which it is solved surely, nats; infinity leaves that to alpha.
        gamma: accuracy below which it is hopeless.

    Returns:
        0 Easy, 1 Normal, 2 Hard.

    Raises:
        ValueError: thresholds out of [0, 1] or negative, gamma above alpha, accuracies outside
            [0, 1], negative or NaN entropies.

    Examples:
        >>> label_difficulty(np.array([1.0, 1.0, 0.1]), np.array([0.3, 0.9, 1.2]))
        array([1, 0, 2])

    Source: Liu et al. 2025 (arXiv 2510.19669), data labelling; the defaults are those for the
    DeepSeek-R1 family.
    """
    check_thresholds(alpha, beta, gamma)
    _check_samples(acc, entropy)
    labels = np.full(len(acc), EASY)
    labels[(acc >= alpha) & (entropy <= beta)] = NORMAL
    labels[acc < gamma] = HARD
    return labels


def check_thresholds(alpha: float, beta: float, gamma: float) -> None:
    """Refuses thresholds that label nothing.

    Raises:
        ValueError: naming the threshold.
    """
    for name, value in (("alpha", alpha), ("gamma", gamma)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], but is {value!r}")
    if not beta >= 0:
        raise ValueError(f"beta must be 0 or more, but is {beta!r}")
    if gamma > alpha:
        raise ValueError(f"gamma must not exceed alpha, {alpha!r}, but is {gamma!r}")


def _check_samples(acc: np.ndarray, entropy: np.ndarray) -> None:
    if acc.shape != entropy.shape:
        raise ValueError(f"entropy must have the shape of acc, {acc.shape}, not {entropy.shape}")
    if not ((acc >= 0) & (acc <= 1)).all():
        raise ValueError(f"acc must lie in [0, 1], but spans [{acc.min()}, {acc.max()}]")
    if not (np.isfinite(entropy) & (entropy >= 0)).all():
        raise ValueError("entropy must be finite and at least 0 everywhere, but is not")


# The profile --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UShape:
    """Whether entropy falls and then rises with difficulty.

    Attributes:
        bottom: the difficulty at which the two sides meet.
        left_slope: of the easier side, nats a unit of difficulty.
        right_slope: of the harder side.
        p_left: one-sided p-value of a falling left side.
        p_right: one-sided p-value of a rising right side.
        drop: share of the entropy lost between the easiest level and the lowest one.
    """

    bottom: float
    left_slope: float
    right_slope: float
    p_left: float
    p_right: float
    drop: float

    @property
    def p_value(self) -> float:
        """Of the hypothesis that one side or the other is missing."""
        return max(self.p_left, self.p_right)


@dataclass(frozen=True, slots=True)
class DifficultyProfile:
    """Mean entropy at each level of difficulty.

    Attributes:
        difficulty: the levels, ascending.
        entropy: mean over the questions of a level, nats.
        low: lower end of its interval.
        high: upper end.
        count: questions of a level.
        u_shape: the test; None where there are too few levels or questions for two sides.
    """

    difficulty: Float[np.ndarray, "levels"]
    entropy: Float[np.ndarray, "levels"]
    low: Float[np.ndarray, "levels"]
    high: Float[np.ndarray, "levels"]
    count: Int[np.ndarray, "levels"]
    u_shape: UShape | None


def difficulty_profile(
    entropy: Float[np.ndarray, "questions"],
    difficulty: Num[np.ndarray, "questions"],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    rng: np.random.Generator | None = None,
) -> DifficultyProfile:
    """Entropy against difficulty, with intervals and a test of the U.

    The intervals are percentile bootstraps over the questions of a level. The test is that of two
    lines: the bottom is found on every other question of a level, and on the others entropy has to
    fall before it and to rise after it. As the bottom is not chosen on the data that are tested, its
    p-value keeps its level.

    Args:
        entropy: of each question, nats.
        difficulty: its known difficulty, on any scale; equal values form a level.
        level: confidence level.
        resamples: of the bootstrap.
        rng: source of them; a fixed one by default.

    Raises:
        ValueError: no questions, NaN, or a level outside (0, 1).

    Examples:
        >>> hard = np.repeat(np.arange(1.0, 8.0), 20)
        >>> wiggle = np.tile(np.linspace(-0.1, 0.1, 20), 7)
        >>> profile = difficulty_profile((hard - 4) ** 2 / 10 + 0.3 + wiggle, hard)
        >>> profile.u_shape.bottom, profile.u_shape.p_value < 0.01
        (4.0, True)

    Source: Liu et al. 2025 (arXiv 2510.19669), the U-shaped entropy pattern; the test is Simonsohn's
    (2018), Two lines.
    """
    if len(entropy) == 0 or entropy.shape != difficulty.shape:
        raise ValueError(
            "entropy and difficulty must be equally long and not empty, but have shapes "
            f"{entropy.shape} and {difficulty.shape}"
        )
    if not (np.isfinite(entropy).all() and np.isfinite(difficulty).all()):
        raise ValueError("entropy and difficulty must be finite everywhere, but are not")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), but is {level!r}")
    rng = np.random.default_rng(0) if rng is None else rng
    levels, where, count = np.unique(difficulty, return_inverse=True, return_counts=True)
    tails = [(1 - level) / 2, (1 + level) / 2]
    means, low, high = (np.empty(len(levels)) for _ in range(3))
    for i in range(len(levels)):
        here = entropy[where == i].astype(np.float64)
        means[i] = here.mean()
        drawn = here[rng.integers(len(here), size=(resamples, len(here)))].mean(1)
        low[i], high[i] = np.quantile(drawn, tails)
    shape = _two_lines(entropy, where, levels.astype(np.float64), means)
    return DifficultyProfile(levels.astype(np.float64), means, low, high, count, shape)


def _two_lines(
    entropy: np.ndarray, where: np.ndarray, levels: np.ndarray, means: np.ndarray
) -> UShape | None:
    if len(levels) < _MIN_SIDE:
        return None
    finding = np.zeros(len(entropy), dtype=bool)
    for i in range(len(levels)):
        finding[np.flatnonzero(where == i)[::2]] = True
    inner = [entropy[finding & (where == i)].mean() for i in range(1, len(levels) - 1)]
    bottom = 1 + int(np.argmin(inner))
    sides = [~finding & (where <= bottom), ~finding & (where >= bottom)]
    if any(side.sum() < _MIN_SIDE or len(np.unique(where[side])) < 2 for side in sides):
        return None
    left, right = (
        linregress(levels[where[side]], entropy[side], alternative=alternative)
        for side, alternative in zip(sides, ("less", "greater"), strict=True)
    )
    return UShape(
        bottom=float(levels[bottom]),
        left_slope=float(left.slope),
        right_slope=float(right.slope),
        p_left=float(left.pvalue),
        p_right=float(right.pvalue),
        drop=float(1 - means[bottom] / means[0]) if means[0] > 0 else 0.0,
    )


# Thresholds ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ThresholdReport:
    """What thresholds rest on.

    Attributes:
        shares: share of the questions labelled Easy, Normal and Hard.
        separation: share of the solved questions' variance of entropy that lies between the two
            sides of beta, in [0, 1]; below about 0.6 there are hardly two groups to part.
        u_shape: the test over known difficulties; None where they are not known or too few.
    """

    shares: tuple[float, float, float]
    separation: float
    u_shape: UShape | None

    @property
    def usable(self) -> bool | None:
        """Whether a U was found (p < 0.05), without which easy questions are labelled Normal and
        nothing is saved on them; None where no difficulties were given.
        """
        return None if self.u_shape is None else self.u_shape.p_value < 0.05


class SuggestedThresholds(NamedTuple):
    """Thresholds for `label_difficulty`, and the evidence."""

    alpha: float
    beta: float
    gamma: float
    report: ThresholdReport


def suggest_thresholds(
    acc: Float[np.ndarray, "questions"],
    entropy: Float[np.ndarray, "questions"],
    difficulty: Num[np.ndarray, "questions"] | None = None,
    *,
    alpha: float = 0.85,
    gamma: float = 0.60,
) -> SuggestedThresholds:
    """Thresholds for a model, from its scatter of accuracy and entropy.

    beta parts the entropies of the solved questions in two so that the variance between the parts is
    largest; alpha and gamma are taken as given. Look at the scatter before trusting it, and check the
    labels on a few questions.

    Args:
        acc: share of a question's samples that were right.
        entropy: mean entropy of their tokens, nats.
        difficulty: known difficulty, for the test of the U.
        alpha: accuracy from which a question is solved.
        gamma: accuracy below which it is hopeless.

    Raises:
        ValueError: as `label_difficulty`, or fewer than two solved questions.

    Examples:
        >>> acc = np.array([1.0, 1.0, 1.0, 0.9, 0.0])
        >>> round(suggest_thresholds(acc, np.array([0.8, 0.6, 0.1, 0.2, 2.0])).beta, 3)
        0.4

    Source: Liu et al. 2025 (arXiv 2510.19669) set thresholds by eye; the cut is Otsu's (1979).
    """
    check_thresholds(alpha, 0.0, gamma)
    _check_samples(acc, entropy)
    solved = np.sort(entropy[acc >= alpha].astype(np.float64))
    if len(solved) < 2:
        raise ValueError(
            f"acc must reach alpha, {alpha:g}, on at least 2 questions, but does on {len(solved)}"
        )
    below = np.arange(1, len(solved))
    total = solved.cumsum()
    gap = (total[-1] - total[:-1]) / (len(solved) - below) - total[:-1] / below
    between = below * (len(solved) - below) * gap**2 / len(solved) ** 2
    cut = int(between.argmax())
    beta = float(solved[cut : cut + 2].mean())
    differ = solved[0] < solved[-1]
    labels = label_difficulty(acc, entropy, alpha, beta, gamma)
    shares = np.bincount(labels, minlength=len(CLASSES)) / len(labels)
    shape = None if difficulty is None else difficulty_profile(entropy, difficulty).u_shape
    report = ThresholdReport(
        (float(shares[0]), float(shares[1]), float(shares[2])),
        float(between[cut] / solved.var()) if differ else 0.0,
        shape,
    )
    return SuggestedThresholds(alpha, beta, gamma, report)


# The probe ----------------------------------------------------------------------------------------


class DifficultyProbe(ClassifierMixin, BaseEstimator):
    """Two layers that tell a question's difficulty from the hidden state after reading it.

    d_hat = softmax(W2 relu(W1 h + b1) + b2), trained by cross-entropy with AdamW; the inputs are
    standardised. An estimator of scikit-learn with torch inside.

    Args:
        hidden: width of the hidden layer; 0 leaves it out, which makes the probe linear.
        lr: learning rate.
        epochs: passes over the data.
        batch_size: examples a step.
        weight_decay: decoupled weight decay.
        class_weight: "balanced" weighs classes by the inverse of their frequency; a mapping gives
            their weights.
        random_state: seed of initial weights and order.

    Attributes:
        classes_: the labels seen.
        n_features_in_: size of the hidden states.
        network_: the layers.
        mean_: of the inputs.
        scale_: standard deviation of the inputs, 1 where they are constant.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> h = rng.normal(size=(120, 4)) + 4 * np.repeat(np.eye(3, 4), 40, 0)
        >>> probe = DifficultyProbe(hidden=8, lr=0.01).fit(h, np.repeat([0, 1, 2], 40))
        >>> probe.predict(4 * np.eye(3, 4))
        array([0, 1, 2])

    Source: Liu et al. 2025 (arXiv 2510.19669), the probe.
    """

    def __init__(
        self,
        hidden: int = 256,
        lr: float = 1e-3,
        epochs: int = 100,
        batch_size: int = 64,
        weight_decay: float = 0.01,
        class_weight: Literal["balanced"] | Mapping[Any, float] | None = None,
        random_state: int = 0,
    ) -> None:
        self.hidden = hidden
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.class_weight = class_weight
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> DifficultyProbe:
        """Learns labels from hidden states.

        Args:
            X: hidden states, (questions, d).
            y: labels, (questions,).

        Raises:
            ValueError: a parameter out of its range, NaN, lengths that differ, or fewer than two
                classes.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, targets = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold at least 2 classes, but holds 1 class: {self.classes_}")
        generator = torch.Generator().manual_seed(self.random_state)
        self.mean_ = X.mean(0, dtype=np.float64)
        spread = X.std(0, dtype=np.float64)
        self.scale_ = np.where(spread > 0, spread, 1.0)
        inputs = torch.from_numpy(((X - self.mean_) / self.scale_).astype(np.float32))
        labels = torch.from_numpy(targets)
        weight = None
        if self.class_weight is not None:
            balance = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
            weight = torch.from_numpy(balance.astype(np.float32))
        self.network_ = _layers(X.shape[1], self.hidden, len(self.classes_))
        _initialise(self.network_, generator)
        loss = nn.CrossEntropyLoss(weight)
        optimizer = torch.optim.AdamW(
            self.network_.parameters(), lr=self.lr, weight_decay=self.weight_decay
        )
        with torch.enable_grad():
            for _ in range(self.epochs):
                for rows in torch.randperm(len(X), generator=generator).split(self.batch_size):
                    optimizer.zero_grad()
                    loss(self.network_(inputs[rows]), labels[rows]).backward()
                    optimizer.step()
        self.network_.requires_grad_(False)
        return self

    def predict_proba(self, X: Any) -> Float[np.ndarray, "questions classes"]:
        """d_hat of each row, in the order of `classes_`.

        Raises:
            ValueError: NaN, or another size than the probe was trained on.
        """
        check_is_fitted(self, "network_")
        X = validate_data(self, X, reset=False, dtype=np.float64)
        values = torch.from_numpy((X - self.mean_) / self.scale_)
        # Doubles, so that a row's probabilities don't depend on the rows beside it.
        for layer in self.network_:
            if isinstance(layer, nn.Linear):
                values = values @ layer.weight.double().T + layer.bias.double()
            else:
                values = layer(values)
        return values.softmax(-1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest label of each row."""
        likeliest = self.predict_proba(X).argmax(-1)
        return self.classes_[likeliest]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the probe as safetensors; the file is there whole or not at all.

        Raises:
            sklearn.exceptions.NotFittedError: the probe was not trained.
        """
        check_is_fitted(self, "network_")
        save_file = require("safetensors.torch", extra="language").save_file
        tensors: dict[str, Tensor] = {
            "mean": torch.from_numpy(self.mean_),
            "scale": torch.from_numpy(self.scale_),
            **{f"network.{name}": value for name, value in self.network_.state_dict().items()},
        }
        described = {
            "format": _FORMAT,
            "classes": json.dumps(self.classes_.tolist()),
            "parameters": json.dumps(self.get_params()),
        }
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            save_file(tensors, partial, metadata=described)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DifficultyProbe:
        """Reads what `save` wrote.

        Raises:
            ValueError: no such file, or one that holds no probe.
        """
        safetensors = require("safetensors", extra="language")
        if not Path(path).is_file():
            raise ValueError(f"path must be a probe's file, but there is no {str(path)!r}")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                described = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise ValueError(f"path {str(path)!r} is no safetensors file: {error}") from error
        if described.get("format") != _FORMAT:
            raise ValueError(f"path {str(path)!r} holds no difficulty probe that is known here")
        probe = cls(**json.loads(described["parameters"]))
        probe.classes_ = np.array(json.loads(described["classes"]))
        probe.mean_, probe.scale_ = tensors.pop("mean").numpy(), tensors.pop("scale").numpy()
        probe.n_features_in_ = len(probe.mean_)
        probe.network_ = _layers(probe.n_features_in_, probe.hidden, len(probe.classes_))
        probe.network_.load_state_dict(
            {name.removeprefix("network."): value for name, value in tensors.items()}
        )
        probe.network_.requires_grad_(False)
        return probe

    def _check_parameters(self) -> None:
        for name, least in (("hidden", 0), ("epochs", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, but is {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, but is {self.lr!r}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be 0 or more, but is {self.weight_decay!r}")
        weight = self.class_weight
        if not (weight is None or isinstance(weight, Mapping) or weight == "balanced"):
            raise ValueError(
                f"class_weight must be None, 'balanced' or a mapping, but is {weight!r}"
            )


def _layers(size: int, hidden: int, classes: int) -> nn.Sequential:
    # Empty layers draw nothing from the global generator.
    empty = nn.utils.skip_init
    if hidden == 0:
        return nn.Sequential(empty(nn.Linear, size, classes))
    return nn.Sequential(
        empty(nn.Linear, size, hidden), nn.ReLU(), empty(nn.Linear, hidden, classes)
    )


@torch.no_grad()
def _initialise(network: nn.Sequential, generator: torch.Generator) -> None:
    for layer in network:
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)
