"""Sparse autoencoders small enough to train on the spot, any number of them in one tensor program."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from szilard.measures._checks import as_tensor, check_finite

Loss = Literal["mean", "sum"]
Normalize = Literal["rms", "standard"]


@dataclass(frozen=True, slots=True)
class SAEReport:
    """How a sparse autoencoder was trained, and what came of it.

    Attributes:
        fvu: fraction of the activations' variance that the reconstruction misses, one a model.
        l0: active units a row, one a model.
        dead: fraction of units that no row activates, one a model.
        best_loss: least mean training loss of an epoch, one a model.
        best_epoch: the epoch that had it, counted from 1; the weights are those at its end.
        l1: weight of the sparsity term, in the convention of `loss`.
        loss: "mean" or "sum".
        normalize: None, "rms" or "standard".
        rows: training rows.
    """

    fvu: Float[Tensor, "*models"]
    l0: Float[Tensor, "*models"]
    dead: Float[Tensor, "*models"]
    best_loss: Float[Tensor, "*models"]
    best_epoch: Tensor
    l1: Float[Tensor, "*models"]
    loss: Loss
    normalize: Normalize | None
    rows: int


class TiedSAE(nn.Module):
    """A sparse autoencoder whose decoder is its encoder's transpose: z = ReLU(W x + b), x' = W^T z.

    W starts uniform (Xavier), b at 0. With `models`, that many autoencoders of one size live in one
    module, and are trained together without touching each other.

    Args:
        n: coordinates of an activation.
        d: units of the dictionary.
        models: leading shape, () for one autoencoder, (40,) for forty. All start alike.
        seed: of the starting weights.

    Attributes:
        report_: what `fit` found; there once it was called.

    Raises:
        ValueError: n or d below 1.

    Examples:
        >>> sae = TiedSAE(3, 6)
        >>> sae.encode(torch.ones(5, 3)).shape, sae(torch.ones(5, 3)).shape
        (torch.Size([5, 6]), torch.Size([5, 3]))

    Source: Bereska et al., Superposition as Lossy Compression (2025), arXiv 2512.13568, eqs. of
    section 3.
    """

    shift: Tensor
    scale: Tensor
    report_: SAEReport

    def __init__(self, n: int, d: int, *, models: tuple[int, ...] = (), seed: int = 0) -> None:
        super().__init__()
        for name, value in (("n", n), ("d", d)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        self.n, self.d, self.models = n, d, tuple(models)
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(self._xavier(generator))
        self.bias = nn.Parameter(torch.zeros(*self.models, d))
        self.register_buffer("shift", torch.zeros(*self.models, n))
        self.register_buffer("scale", torch.ones(*self.models, n))
        self._begin(generator)

    def _begin(self, generator: torch.Generator) -> None:
        """Further weights of a subclass."""

    def _xavier(self, generator: torch.Generator) -> Tensor:
        bound = math.sqrt(6 / (self.n + self.d))
        drawn = bound * (2 * torch.rand(self.d, self.n, generator=generator) - 1)
        return drawn.expand(*self.models, self.d, self.n).clone()

    def encode(self, x: Float[Tensor, "*rows n"]) -> Float[Tensor, "*codes d"]:
        """The codes z of activations x, one row each."""
        return self._codes((x - self.shift[..., None, :]) / self.scale[..., None, :])

    def decode(self, z: Float[Tensor, "*codes d"]) -> Float[Tensor, "*rows n"]:
        """The activations that codes stand for."""
        return self._activations(z) * self.scale[..., None, :] + self.shift[..., None, :]

    def forward(self, x: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        """The reconstruction of x."""
        return self.decode(self.encode(x))

    def losses(
        self,
        x: Float[Tensor, "*models rows n"],
        l1: Float[Tensor, "*models"] | float = 0.1,
        loss: Loss = "mean",
    ) -> Float[Tensor, "*models"]:
        """Reconstruction error plus sparsity, one value a model, on rows in the units W sees.

        Args:
            x: activations, after the normalisation if there is one.
            l1: weight of the sparsity term.
            loss: "mean" averages squares over rows and the n coordinates and |z| over rows and the d
                units, as the authors' program does. "sum" is the paper's formula, |x - x'|^2 + l1 |z|_1
                averaged over rows. "mean" with l1 equals "sum" with l1 n / d, up to the factor n.

        Examples:
            >>> sae = TiedSAE(2, 3)
            >>> with torch.no_grad():
            ...     _ = sae.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
            >>> x = torch.tensor([[1.0, 2.0]])
            >>> [round(sae.losses(x, 0.1, loss).item(), 5) for loss in ("mean", "sum")]
            [9.2, 18.6]
        """
        z = self._codes(x)
        error, activity = (x - self._activations(z)).square(), z.abs()
        if loss == "mean":
            return error.mean((-2, -1)) + l1 * activity.mean((-2, -1))
        return error.sum(-1).mean(-1) + l1 * activity.sum(-1).mean(-1)

    def fit(
        self,
        X: Float[Tensor, "*models rows n"],
        *,
        l1: Float[Tensor, "*models"] | float = 0.1,
        loss: Loss = "mean",
        epochs: int = 800,
        patience: int = 10,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        normalize: Normalize | None = None,
        seed: int = 0,
    ) -> TiedSAE:
        """Trains with Adam, each model until no epoch improves, and keeps each model's best weights.

        Args:
            X: activations, `models` first if the module holds several.
            l1: weight of the sparsity term, one for all or one a model.
            loss: convention of the loss, see `losses`.
            epochs: at most so many passes over X.
            patience: a model ends after so many epochs without a better mean training loss.
            batch_size: rows a step.
            learning_rate: of Adam.
            normalize: None, as published: the scale of X then decides how much `l1` bites. "rms"
                divides by the root mean square of X, "standard" gives each coordinate mean 0 and
                variance 1; both make layers and networks comparable, neither is the paper's.
            seed: of the order of the rows; the same order for all models.

        Returns:
            The module itself, with `report_`.

        Raises:
            ValueError: X is not finite or has another shape, an unknown `loss` or `normalize`, a
                setting out of range, or a loss that is not finite.
        """
        expected = (*self.models, X.shape[-2] if X.ndim > 1 else 0, self.n)
        if tuple(X.shape) != expected or 0 in X.shape:
            raise ValueError(
                f"X must have shape {(*self.models, 'rows', self.n)} and rows, "
                f"but has {tuple(X.shape)}"
            )
        check_finite(X, "X")
        _check_choice("loss", loss, ("mean", "sum"))
        _check_choice("normalize", normalize, (None, "rms", "standard"))
        _check_settings(l1, epochs, patience, batch_size, learning_rate)
        device = self.weight.device
        X = X.detach().to(device, self.weight.dtype)
        weight_of_l1 = torch.as_tensor(l1, dtype=X.dtype, device=device).expand(self.models)
        X = self._normalised(X, normalize)
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.Adam(self.parameters(), lr=learning_rate, fused=True)
        best = {name: p.detach().clone() for name, p in self.named_parameters()}
        best_loss = torch.full(self.models, math.inf, device=device)
        best_epoch = torch.zeros(self.models, dtype=torch.long, device=device)
        running = torch.ones(self.models, dtype=torch.bool, device=device)
        for epoch in range(1, epochs + 1):
            mean_loss = torch.zeros(self.models, device=device)
            order = torch.randperm(X.shape[-2], generator=generator).to(device)
            for rows in order.split(batch_size):
                losses = self.losses(X.index_select(-2, rows), weight_of_l1, loss)
                optimiser.zero_grad()
                losses.sum().backward()
                optimiser.step()
                mean_loss += losses.detach() * (len(rows) / len(order))
            if not bool(torch.isfinite(mean_loss).all()):
                raise ValueError(
                    f"the loss is not finite in epoch {epoch}: lower learning_rate "
                    f"({learning_rate}) or set normalize='rms'"
                )
            better = running & (mean_loss < best_loss)
            best_loss = torch.where(better, mean_loss, best_loss)
            best_epoch[better] = epoch
            with torch.no_grad():
                for name, p in self.named_parameters():
                    chosen = better.reshape(*self.models, *[1] * (p.ndim - len(self.models)))
                    best[name] = torch.where(chosen, p, best[name])
            running &= epoch - best_epoch < patience
            if not bool(running.any()):
                break
        with torch.no_grad():
            for name, p in self.named_parameters():
                p.copy_(best[name])
        fvu, l0, dead = self._quality(X)
        self.report_ = SAEReport(
            fvu, l0, dead, best_loss, best_epoch, weight_of_l1.clone(), loss, normalize, X.shape[-2]
        )
        return self

    def _codes(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.weight.mT + self.bias[..., None, :])

    def _activations(self, z: Tensor) -> Tensor:
        return z @ self.weight

    def _normalised(self, X: Tensor, normalize: Normalize | None) -> Tensor:
        if normalize == "standard":
            shift, scale = X.mean(-2), X.std(-2, correction=0)
        else:
            shift = torch.zeros_like(self.shift)
            rms = X.square().mean((-2, -1)).sqrt() if normalize == "rms" else X.new_ones(())
            scale = rms[..., None].expand_as(self.scale)
        self.shift.copy_(shift)
        # A coordinate without variance, or a model without activity, stays as it is.
        self.scale.copy_(torch.where(scale > 0, scale, 1.0))
        return (X - self.shift[..., None, :]) / self.scale[..., None, :]

    @torch.no_grad()
    def _quality(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """FVU, L0 and the fraction of dead units, in blocks that bound the memory of the codes."""
        missed = active = torch.zeros(self.models, dtype=torch.float64, device=X.device)
        ever = torch.zeros(*self.models, self.d, dtype=torch.bool, device=X.device)
        block = max(1, 2**22 // (self.d * math.prod(self.models)))
        for x in X.split(block, dim=-2):
            z = self._codes(x)
            missed = missed + (x - self._activations(z)).square().sum((-2, -1), dtype=torch.float64)
            active = active + (z > 0).sum((-2, -1))
            ever |= (z > 0).any(-2)
        spread = (X - X.mean(-2, keepdim=True)).square().sum((-2, -1), dtype=torch.float64)
        return missed / spread, active / X.shape[-2], 1 - ever.double().mean(-1)


class UntiedSAE(TiedSAE):
    """A sparse autoencoder with a decoder of its own, biased: z = ReLU(W x + b), x' = V^T z + c.

    Takes the arguments of `TiedSAE`. V starts as another Xavier draw, c at 0.

    Examples:
        >>> UntiedSAE(3, 6)(torch.ones(5, 3)).shape
        torch.Size([5, 3])

    Source: Bereska et al., Superposition as Lossy Compression (2025), arXiv 2512.13568: what the
    authors' programs for dropout and dictionary size train.
    """

    def _begin(self, generator: torch.Generator) -> None:
        self.decoder = nn.Parameter(self._xavier(generator))
        self.decoder_bias = nn.Parameter(torch.zeros(*self.models, self.n))

    def _activations(self, z: Tensor) -> Tensor:
        return z @ self.decoder + self.decoder_bias[..., None, :]


def train_sae(
    X: Float[Tensor, "*models rows n"] | Float[np.ndarray, "*models rows n"],
    expansion: float = 4,
    l1: Float[Tensor, "*models"] | float = 0.1,
    loss: Loss = "mean",
    epochs: int = 800,
    patience: int = 10,
    seed: int = 0,
    device: str | torch.device | None = None,
    *,
    tied: bool = True,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    normalize: Normalize | None = None,
) -> TiedSAE:
    """Trains a sparse autoencoder on activations; or one for each of several sets of equal size.

    Args:
        X: activations, one row each. Leading axes are separate sets with an autoencoder each.
        expansion: units of the dictionary over coordinates, at least 1; the paper's is 4, and 8 for toy
            models.
        l1: weight of the sparsity term; 0.1 with `loss="mean"` is what published figures used.
        loss: "mean" or "sum", see `TiedSAE.losses`.
        epochs: at most so many passes over X.
        patience: ends after so many epochs without a better mean training loss.
        seed: of the starting weights and of the order of rows; equal for all sets.
        device: where to train; None trains where X is.
        tied: False gives the decoder weights and a bias of its own.
        batch_size: rows a step.
        learning_rate: of Adam.
        normalize: None (the paper's), "rms" or "standard", see `TiedSAE.fit`.

    Returns:
        The autoencoder, with `report_`.

    Raises:
        ValueError: expansion below 1, or as `TiedSAE.fit`.

    Warns:
        UserWarning: fewer rows than units: the dictionary can learn them by heart.

    Examples:
        >>> X = torch.rand(200, 4, generator=torch.Generator().manual_seed(0))
        >>> sae = train_sae(X, epochs=100, l1=0.01)
        >>> sae.d, bool(sae.report_.fvu < 0.1)
        (16, True)

    Source: Bereska et al., Superposition as Lossy Compression (2025), arXiv 2512.13568, section 3.
    """
    rows = as_tensor(X)
    if rows.ndim < 2:
        raise ValueError(f"X must have rows and coordinates, but has shape {tuple(rows.shape)}")
    if not (expansion >= 1 and math.isfinite(expansion)):
        raise ValueError(f"expansion must be at least 1, but is {expansion}")
    n = rows.shape[-1]
    d = max(n, round(expansion * n))
    if rows.shape[-2] < d:
        warnings.warn(
            f"X has {rows.shape[-2]} rows for a dictionary of {d} units; give more rows",
            stacklevel=2,
        )
    sae = (TiedSAE if tied else UntiedSAE)(n, d, models=tuple(rows.shape[:-2]), seed=seed)
    return sae.to(rows.device if device is None else device).fit(
        rows,
        l1=l1,
        loss=loss,
        epochs=epochs,
        patience=patience,
        batch_size=batch_size,
        learning_rate=learning_rate,
        normalize=normalize,
        seed=seed,
    )


def _check_choice(name: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, but is {value!r}")


def _check_settings(
    l1: Tensor | float, epochs: int, patience: int, batch_size: int, learning_rate: float
) -> None:
    weights = torch.as_tensor(l1)
    if not bool(((weights >= 0) & torch.isfinite(weights)).all()):
        raise ValueError(f"l1 must be non-negative and finite, but is {l1}")
    for name, value in (("epochs", epochs), ("patience", patience), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, but is {value}")
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise ValueError(f"learning_rate must be positive and finite, but is {learning_rate}")
