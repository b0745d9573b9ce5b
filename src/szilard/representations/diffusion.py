"""Diffusion spectral entropy as an estimator, and a monitor of it while a network trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Real, Shaped
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from szilard.measures._checks import log_base
from szilard.measures.spectral import (
    Bandwidth,
    Normalization,
    Seed,
    check_kernel,
    cluster_labels,
    diffusion_spectral_mutual_information,
    diffusion_spectrum,
)
from szilard.representations.recorder import ActivationRecorder, Reduce
from szilard.representations.training import MeasureLogger

if TYPE_CHECKING:
    from transformers import TrainerCallback


class DiffusionSpectralEntropy(BaseEstimator):
    """Diffusion spectral entropy of a point cloud, in the manner of scikit-learn.

    Args:
        sigma: bandwidth in the units of the points, "median" or "mean_norm".
        t: diffusion time, any positive number.
        max_n: a larger cloud is subsampled to this many rows.
        normalization: "code", "half" or "one".
        base: unit of the entropy, None for nats; the paper's is 2.
        rng: seed or generator of the subsampling; None refuses to subsample.

    Attributes:
        entropy_: the entropy of the fitted points.
        eigenvalues_: the diffusion spectrum, descending, float64 array.
        sigma_: the bandwidth as a number.
        n_features_in_: coordinates of a point.

    Examples:
        >>> Z = np.repeat(np.eye(4), 10, axis=0) * 1e3
        >>> round(DiffusionSpectralEntropy(base=2).fit(Z).entropy_, 9)
        2.0

    Source: Liao et al., Assessing Neural Network Representations During Training Using
    Noise-Resilient Diffusion Spectral Entropy (2024), arXiv 2312.04823.
    """

    def __init__(
        self,
        sigma: Bandwidth = 10.0,
        t: float = 1,
        *,
        max_n: int = 10_000,
        normalization: Normalization = "code",
        base: float | None = None,
        rng: Seed | None = 0,
    ) -> None:
        self.sigma = sigma
        self.t = t
        self.max_n = max_n
        self.normalization = normalization
        self.base = base
        self.rng = rng

    def fit(
        self, Z: Real[Tensor, "n d"] | Real[np.ndarray, "n d"], y: object = None
    ) -> DiffusionSpectralEntropy:
        """Measures the points.

        Args:
            Z: n points with d coordinates.
            y: not used, there for scikit-learn's pipelines.

        Raises:
            ValueError: as `szilard.measures.spectral.diffusion_spectral_entropy`.
        """
        spectrum = diffusion_spectrum(
            Z, self.sigma, normalization=self.normalization, max_n=self.max_n, rng=self.rng
        )
        self.entropy_ = spectrum.entropy(self.t, base=self.base).item()
        self.eigenvalues_ = spectrum.eigenvalues.detach().cpu().numpy()
        self.sigma_ = spectrum.sigma
        self.n_features_in_ = Z.shape[1]
        return self

    def score(self, Z: Real[Tensor, "n d"] | Real[np.ndarray, "n d"], y: object = None) -> float:
        """Entropy of other points at the bandwidth of the fitted ones, in the unit of `base`.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: other points with another number of coordinates, or as `fit`.
        """
        check_is_fitted(self)
        if Z.shape[1] != self.n_features_in_:
            raise ValueError(f"Z must have {self.n_features_in_} columns, but has {Z.shape[1]}")
        spectrum = diffusion_spectrum(
            Z, self.sigma_, normalization=self.normalization, max_n=self.max_n, rng=self.rng
        )
        return spectrum.entropy(self.t, base=self.base).item()


@dataclass(frozen=True, slots=True)
class RepresentationRecord:
    """What a monitor measured once.

    Attributes:
        step: training steps taken.
        entropy: diffusion spectral entropy of the layer on the validation inputs.
        mutual_information: with the validation labels; None without labels.
        sigma: bandwidth used, in the units of the activations.
    """

    step: int
    entropy: float
    mutual_information: float | None
    sigma: float


class RepresentationMonitor:
    """Measures a layer's diffusion spectral entropy, and its information on labels, during training.

    Call `step()` after each optimiser step of any loop (in Lightning: in `on_train_batch_end`), or give
    `callback()` to a transformers or TRL trainer. The model is run on the validation inputs without
    gradients in evaluation mode, and its mode is restored.

    Args:
        model: the network in training.
        layer: dotted name of the layer to watch, as in `model.named_modules()`.
        X_val: validation inputs: a tensor, or a mapping of tensors passed as keyword arguments.
        y_val: labels, scalars or vectors of the inputs; None measures the entropy alone. Clusters of
            vectors are computed once.
        every: steps between two measurements.
        batch_size: inputs a forward pass.
        reduce: maps the layer's output for a batch to (batch, features); flattens by default. For a
            language model, `lambda h: h.mean(1)` or `lambda h: h[:, -1]`.
        sigma: bandwidth. At a fixed number the entropy follows the growth of the activations' norm too;
            "mean_norm" and "median" take it out.
        t: diffusion time.
        max_n: more inputs than this are subsampled.
        normalization: "code", "half" or "one".
        base: unit of the results, None for nats; the paper's is 2.
        rng: seed of the subsets; the same at each measurement, so that curves are comparable.

    Attributes:
        history: the records so far.

    Raises:
        ValueError: no such layer, inputs of unequal lengths, labels of another length, or every or
            batch_size below 1.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> monitor = RepresentationMonitor(model, "1", torch.randn(30, 4), sigma="median", every=2)
        >>> [monitor.step() is None for _ in range(4)]
        [True, False, True, False]
        >>> [record.step for record in monitor.history]
        [2, 4]
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        X_val: Tensor | Mapping[str, Tensor],
        y_val: Shaped[Tensor, "n *dims"] | Shaped[np.ndarray, "n *dims"] | None = None,
        *,
        every: int = 1,
        batch_size: int = 256,
        reduce: Reduce = lambda output: output.flatten(1),
        sigma: Bandwidth = 10.0,
        t: float = 1,
        max_n: int = 10_000,
        normalization: Normalization = "code",
        base: float | None = None,
        rng: int = 0,
    ) -> None:
        for name, value in (("every", every), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        inputs = X_val if isinstance(X_val, Mapping) else {"": X_val}
        lengths = {len(tensor) for tensor in inputs.values()}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError(f"X_val must hold equally many inputs a key, but holds {lengths}")
        self._n = lengths.pop()
        if y_val is not None and len(y_val) != self._n:
            raise ValueError(f"y_val must have {self._n} rows as X_val, but has {len(y_val)}")
        self._labels = None if y_val is None else cluster_labels(y_val)
        if self._labels is not None and np.unique(self._labels, return_counts=True)[1].max() < 2:
            raise ValueError("y_val must have a class with at least two points, but has none")
        check_kernel(sigma, t, normalization, max_n)
        log_base(base)
        self._model = model
        self._recorder = ActivationRecorder(model, layer, reduce=reduce)
        self._layer = layer
        self._inputs = X_val
        self._every = every
        self._batch_size = batch_size
        self._sigma: Bandwidth = sigma
        self._t = t
        self._max_n = max_n
        self._normalization: Normalization = normalization
        self._base = base
        self._rng = rng
        self._steps = 0
        self.history: list[RepresentationRecord] = []

    def step(self) -> RepresentationRecord | None:
        """Counts a training step; measures on each `every`-th and returns the record, else None."""
        self._steps += 1
        return self.measure() if self._steps % self._every == 0 else None

    def measure(self, step: int | None = None) -> RepresentationRecord:
        """Measures now and appends to `history`.

        Args:
            step: the step to record; by default the number of calls of `step()`.

        Raises:
            ValueError: the activations are not finite: training diverged.
        """
        activations = self.activations()
        spectrum = diffusion_spectrum(
            activations,
            self._sigma,
            normalization=self._normalization,
            max_n=self._max_n,
            rng=self._rng,
        )
        information = None
        if self._labels is not None:
            information = diffusion_spectral_mutual_information(
                activations,
                self._labels,
                spectrum.sigma,
                self._t,
                discrete=True,
                max_n=self._max_n,
                normalization=self._normalization,
                rng=self._rng,
                base=self._base,
            ).value
        record = RepresentationRecord(
            self._steps if step is None else step,
            spectrum.entropy(self._t, base=self._base).item(),
            information,
            spectrum.sigma,
        )
        self.history.append(record)
        return record

    def activations(self) -> Tensor:
        """The layer's output on the validation inputs, one row an input."""
        parameter = next(self._model.parameters(), None)
        device = None if parameter is None else parameter.device
        training = {module: module.training for module in self._model.modules()}
        self._recorder.clear()
        self._model.eval()
        try:
            with torch.no_grad(), self._recorder:
                for start in range(0, self._n, self._batch_size):
                    rows = slice(start, start + self._batch_size)
                    if isinstance(self._inputs, Mapping):
                        self._model(**{k: v[rows].to(device) for k, v in self._inputs.items()})
                    else:
                        self._model(self._inputs[rows].to(device))
            return self._recorder[self._layer]
        finally:
            self._recorder.clear()
            for module, mode in training.items():
                module.training = mode

    def callback(self) -> TrainerCallback:
        """A callback for `transformers.Trainer` and the trainers built on it.

        Every `every` optimiser steps it measures and adds `dse` (and `dsmi`) to the trainer's log
        history and to the next line the trainer logs.

        Raises:
            ImportError: transformers is not installed.
        """

        def measure(step: int) -> dict[str, float]:
            record = self.measure(step)
            figures = {"dse": record.entropy}
            if record.mutual_information is not None:
                figures["dsmi"] = record.mutual_information
            return figures

        return MeasureLogger(measure, every=self._every).callback()
