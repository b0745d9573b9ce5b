"""Superposition in one number: how many features a layer's sparse codes spread over."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from szilard.measures import entropy, renyi_entropy
from szilard.measures._checks import as_tensor, check_finite
from szilard.representations.recorder import ActivationRecorder
from szilard.representations.sae import Loss, Normalize, SAEReport, TiedSAE, train_sae


class DeadDictionary(ValueError):
    """No feature is ever active: there is no distribution of activity to measure."""


@dataclass(frozen=True, slots=True)
class EffectiveFeatures:
    """How activity is shared among features.

    Attributes:
        F: effective number of features, exp of the entropy, in [1, d].
        entropy_nats: entropy of the shares.
        hill2: effective number of order 2, one over the sum of squared shares; at most F.
        live: features with any activity; at least F.
        p: each feature's share of all activity, float64.
        psi: features a neuron, F / n; None where n was not given.
    """

    F: float
    entropy_nats: float
    hill2: float
    live: int
    p: Float[Tensor, "d"]
    psi: float | None = None


class FeatureBudget:
    """The activity of each feature, added up over any number of batches of codes.

    Holds d float64 sums and nothing else, so that a corpus costs no more memory than a batch.

    Args:
        d: units of the dictionary.

    Attributes:
        total: sum of |z| of each feature so far.
        rows: rows so far.

    Raises:
        ValueError: d below 1.

    Examples:
        >>> budget = FeatureBudget(4)
        >>> for _ in range(3):
        ...     _ = budget.update(torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
        >>> round(budget.result().F, 9), budget.rows
        (2.0, 3)
    """

    def __init__(self, d: int) -> None:
        if d < 1:
            raise ValueError(f"d must be at least 1, but is {d}")
        self.total = torch.zeros(d, dtype=torch.float64)
        self.rows = 0

    def update(self, Z: Float[Tensor, "rows d"] | Float[np.ndarray, "rows d"]) -> FeatureBudget:
        """Adds a batch of codes.

        Args:
            Z: codes, one row a sample.

        Returns:
            The budget itself.

        Raises:
            ValueError: not finite, or not rows of d codes.

        Warns:
            UserWarning: negative codes, which count with their magnitude.
        """
        codes = as_tensor(Z).detach()
        if codes.ndim != 2 or codes.shape[1] != len(self.total):
            raise ValueError(
                f"Z must have rows of {len(self.total)} codes, but has shape {tuple(codes.shape)}"
            )
        check_finite(codes, "Z")
        if bool((codes < 0).any()):
            warnings.warn("Z has negative codes; their magnitudes are counted", stacklevel=2)
        self.total = self.total.to(codes.device)
        self.total += codes.abs().sum(0, dtype=torch.float64)
        self.rows += len(codes)
        return self

    def result(self, n: int | None = None, *, eps: float = 0.0) -> EffectiveFeatures:
        """The effective number of features of all that was added.

        Args:
            n: neurons of the layer, for psi.
            eps: added to every share, which are then normalised again; the authors' program adds
                1e-10.

        Raises:
            DeadDictionary: no feature was ever active.
            ValueError: n below 1 or eps negative.
        """
        if n is not None and n < 1:
            raise ValueError(f"n must be at least 1, but is {n}")
        if not eps >= 0:
            raise ValueError(f"eps must be at least 0, but is {eps}")
        if not bool((self.total > 0).any()):
            raise DeadDictionary(
                f"all {len(self.total)} features are silent on all {self.rows} rows: lower l1, "
                "raise the activations' scale (normalize='rms'), or train the dictionary longer"
            )
        # Dividing by the largest first keeps sums of tiny and of huge codes apart from 0 and inf.
        shares = self.total / self.total.max()
        p = shares / shares.sum()
        p = (p + eps) / (p + eps).sum()
        h = float(entropy(p))
        effective = float(np.exp(h))
        return EffectiveFeatures(
            F=effective,
            entropy_nats=h,
            hill2=float(renyi_entropy(p, alpha=2).exp()),
            live=int((p > 0).sum()),
            p=p,
            psi=None if n is None else effective / n,
        )


def effective_features(
    Z: Float[Tensor, "*rows d"] | Float[np.ndarray, "*rows d"],
    eps: float = 0.0,
    *,
    n: int | None = None,
) -> EffectiveFeatures:
    """Effective number of features F = exp(-sum p_i ln p_i), p_i the share of feature i in all activity.

    F is d when all features carry equally much and 1 when one carries everything. It does not change
    when all codes are scaled, features or samples are permuted, or silent features are added.

    Args:
        Z: codes of a sparse autoencoder, [samples, d]; or one row of any non-negative contributions
            (the shares themselves, column norms of a weight matrix), [d].
        eps: added to every share; 0 takes 0 ln 0 as 0.
        n: neurons of the layer, for psi = F / n.

    Returns:
        F, its entropy in nats, the Hill number of order 2, the number of live features, the shares.

    Raises:
        DeadDictionary: all codes are zero.
        ValueError: not finite, another number of axes, n below 1 or eps negative.

    Warns:
        UserWarning: negative codes, which count with their magnitude.

    Examples:
        >>> round(effective_features(torch.tensor([0.4, 0.3, 0.2, 0.1])).F, 6)
        3.596115
        >>> codes = torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
        >>> result = effective_features(codes, n=2)
        >>> round(result.F, 4), round(result.psi, 4), round(result.hill2, 4)
        (2.8284, 1.4142, 2.6667)

    Source: Bereska et al., Superposition as Lossy Compression: Measure with Sparse Autoencoders and
    Connect to Adversarial Vulnerability (2025), arXiv 2512.13568, section 3.
    """
    codes = as_tensor(Z)
    if codes.ndim not in (1, 2):
        raise ValueError(f"Z must be [samples, d] or [d], but has shape {tuple(codes.shape)}")
    codes = codes if codes.ndim == 2 else codes[None]
    return FeatureBudget(codes.shape[-1]).update(codes).result(n, eps=eps)


# --- a layer of a model ---------------------------------------------------------------------------


@runtime_checkable
class Encoder(Protocol):
    """Anything with `encode`, which turns activations [rows, n] into codes [rows, d]: SAELens' too."""

    def encode(self, x: Tensor, /) -> Tensor: ...


class SAEConfig(TypedDict, total=False):
    """Arguments of `train_sae`."""

    expansion: float
    l1: float
    loss: Loss
    epochs: int
    patience: int
    seed: int
    device: str | torch.device | None
    tied: bool
    batch_size: int
    learning_rate: float
    normalize: Normalize | None


Rows = Literal["auto", "last", "channels"] | Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Superposition:
    """The effective features of one layer, and what they were measured with.

    Attributes:
        features: the measurement.
        layer: dotted name of the layer.
        n: its neurons: coordinates of a row.
        rows: rows measured, all that the loader gave.
        sae: the dictionary.
        report: how it was trained; None for one that was given.
    """

    features: EffectiveFeatures
    layer: str
    n: int
    rows: int
    sae: Encoder
    report: SAEReport | None

    @property
    def F(self) -> float:
        """Effective number of features."""
        return self.features.F

    @property
    def psi(self) -> float:
        """Effective features a neuron."""
        return self.features.F / self.n


def measure_superposition(
    model: nn.Module,
    loader: Iterable[Any],
    layer: str | nn.Module,
    sae: Encoder | SAEConfig | None = None,
    max_rows: int = 10_000,
    reduce: Rows = "auto",
    *,
    seed: int = 0,
) -> Superposition:
    """Effective features of a layer: trains a dictionary on a sample of its rows, measures on all rows.

    Memory holds the sample and one batch. The model runs without gradients in evaluation mode, and its
    mode is restored. Rows where a batch's `attention_mask` is 0 do not count.

    Args:
        model: any module.
        loader: batches, gone through twice (once if a dictionary is given): tensors, tuples whose first
            item is the input, or mappings passed as keyword arguments.
        layer: the layer, or its dotted name as in `model.named_modules()`.
        sae: a trained dictionary, anything with `encode`; or arguments of `train_sae`; None for its
            defaults.
        max_rows: rows to train on, a uniform sample of all.
        reduce: turns the layer's output into rows. "last": the last axis is the neurons, as in
            transformers and linear layers. "channels": axis 1 is, as in convolutions. "auto": channels
            where there are four axes or more, else last. Or a function.
        seed: of the sample.

    Returns:
        F and psi of the layer, with the dictionary and how it was trained.

    Raises:
        ValueError: no such layer, max_rows below 1, no rows, activations that are not finite, an unknown
            `reduce`, or as `train_sae`.
        DeadDictionary: the dictionary is silent on all rows.
        TypeError: the loader can't be gone through twice, or a dictionary without `encode`.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> batches = torch.randn(8, 64, 4, generator=torch.Generator().manual_seed(0))
        >>> result = measure_superposition(model, batches, "1", {"epochs": 20})
        >>> result.n, result.rows, 1 <= result.F <= 24
        (6, 512, True)

    Source: Bereska et al., Superposition as Lossy Compression: Measure with Sparse Autoencoders and
    Connect to Adversarial Vulnerability (2025), arXiv 2512.13568, section 3.
    """
    if max_rows < 1:
        raise ValueError(f"max_rows must be at least 1, but is {max_rows}")
    if not callable(reduce) and reduce not in ("auto", "last", "channels"):
        raise ValueError(
            f"reduce must be 'auto', 'last', 'channels' or a function, but is {reduce!r}"
        )
    name = layer if isinstance(layer, str) else _name_of(model, layer)
    given = sae is not None and not isinstance(sae, Mapping)
    if given and not callable(getattr(sae, "encode", None)):
        raise TypeError(f"sae must have a method encode or be a mapping, but is {type(sae)}")
    if not given and isinstance(loader, Iterator):
        raise TypeError("loader is gone through twice: give a list or a DataLoader, no iterator")
    report = None
    if given:
        dictionary: Any = sae
    else:
        sample = _Sample(max_rows, seed)
        _stream(model, loader, name, reduce, sample.add)
        dictionary = train_sae(sample.rows, **(sae or {}))  # type: ignore[arg-type]
        report = dictionary.report_
    budget: FeatureBudget | None = None
    n = 0

    def spend(state: None, rows: Tensor) -> None:
        nonlocal budget, n
        codes = dictionary.encode(rows.to(_dtype_of(dictionary, rows)))
        budget = budget or FeatureBudget(codes.shape[-1])
        budget.update(codes)
        n = rows.shape[-1]

    _stream(model, loader, name, reduce, spend)
    assert budget is not None  # _stream has seen rows
    return Superposition(budget.result(n), name, n, budget.rows, dictionary, report)


class _Sample:
    """A uniform sample of a stream of rows: those with the largest of random keys."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._generator = torch.Generator().manual_seed(seed)
        self._keys = torch.empty(0)
        self.rows = torch.empty(0)

    def add(self, state: None, rows: Tensor) -> None:
        keys = torch.rand(len(rows), generator=self._generator, dtype=torch.float64)
        if len(self._keys):
            keys, rows = torch.cat([self._keys, keys]), torch.cat([self.rows, rows])
        if len(rows) > self._size:
            # In the order of the stream, so that a sample of everything is everything as it came.
            kept = keys.topk(self._size).indices.sort().values
            keys, rows = keys[kept], rows[kept.to(rows.device)]
        self._keys, self.rows = keys, rows


def _stream(
    model: nn.Module,
    loader: Iterable[Any],
    layer: str,
    reduce: Rows,
    fold: Callable[[None, Tensor], None],
) -> None:
    mask: Tensor | None = None
    seen = 0

    def rows_of(output: Tensor) -> Tensor:
        nonlocal seen
        rows = _rows(output, reduce)
        if mask is not None and output.ndim == 3 and output.shape[:2] == mask.shape:
            rows = rows[mask.flatten().bool().to(rows.device)]
        check_finite(rows, f"the output of layer {layer!r}")
        seen += len(rows)
        return rows

    parameter = next(model.parameters(), None)
    device = None if parameter is None else parameter.device
    with _evaluating(model), ActivationRecorder(model, layer, reduce=rows_of, fold=fold):
        for batch in loader:
            if isinstance(batch, Mapping):
                inputs = {k: v.to(device) for k, v in batch.items() if isinstance(v, Tensor)}
                mask = inputs.get("attention_mask")
                model(**inputs)
            else:
                first = batch[0] if isinstance(batch, Sequence) else batch
                model(first.to(device))
    if not seen:
        raise ValueError(f"loader must yield batches that reach layer {layer!r}, but none did")


def _rows(output: Tensor, reduce: Rows) -> Tensor:
    if callable(reduce):
        return reduce(output)
    if output.ndim < 2:
        raise ValueError(f"the layer must return rows, but returned shape {tuple(output.shape)}")
    if reduce == "channels" or (reduce == "auto" and output.ndim > 3):
        output = output.movedim(1, -1)
    return output.flatten(0, -2)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _name_of(model: nn.Module, layer: nn.Module) -> str:
    for name, module in model.named_modules():
        if module is layer:
            return name
    raise ValueError(f"layer must be a module of the model, but is another: {type(layer)}")


def _dtype_of(dictionary: Any, rows: Tensor) -> torch.dtype:
    """The dictionary's own precision: activations may come in half of it."""
    if isinstance(dictionary, TiedSAE):
        return dictionary.weight.dtype
    dtype = getattr(dictionary, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else rows.dtype
