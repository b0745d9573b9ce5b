"""Information-shaped Koopman models: a linear latent dynamics kept coherent and kept full.

An encoder f, a decoder and one matrix K with z_{t+1} = K z_t (+ B a_t), trained on

    L = L_rec + L_forecast - alpha I_NCE(z_{t-n}; z_t) + beta |z_{t+1} - K z_t|^2 - gamma S(C / tr C)

1. I_NCE, a contrastive bound on the information between neighbouring times, makes the latent
   predictable; alone it may use few dimensions.
2. S, the von Neumann entropy of the latent covariance C over its trace, keeps dimensions alive;
   exp(S) is how many are in use.
3. Both are *maximised*. (Code that adds +gamma S to the loss empties the latent instead.)

Source: Cheng et al., Information Shapes Koopman Representation (ICLR 2026; arXiv 2510.13025).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from szilard.measures.spectral import effective_rank, von_neumann_entropy

Operator = Literal["learned", "ridge"]
Positives = Literal["sum", "mean"]
Valid = Literal["inner", "all"]

RIDGE = 0.1
_ENTROPY_RIDGE = 1e-8


def temporal_infonce(
    z: Float[Tensor, "batch time latent"],
    k: int = 3,
    tau: float = 0.1,
    positives: Positives = "sum",
    valid: Valid = "inner",
) -> Float[Tensor, ""]:
    """Contrastive loss that tells a step's neighbours in time from other steps, in nats.

    Minus this loss is, up to the logarithm of the number of candidates, a lower bound on the mutual
    information of latents at most k steps apart.

    Args:
        z: latent sequences.
        k: half the window: steps n - k to n + k but n itself are positives of step n.
        tau: temperature of the cosine similarities.
        positives: "sum", the share of all positives together among the steps of the same sequence; or
            "mean", the mean over positives of each one's share among all steps of the batch.
        valid: "inner", anchors whose window lies within the sequence; or "all" steps.

    Returns:
        The mean over anchors.

    Raises:
        ValueError: k or tau out of range, or sequences of at most 2k steps.

    Examples:
        >>> round(temporal_infonce(torch.ones(1, 10, 3), k=2).item(), 6)
        0.81093

    Source: Cheng et al. 2026 (arXiv 2510.13025), temporal coherence term.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, but is {k!r}")
    if not tau > 0:
        raise ValueError(f"tau must be positive, but is {tau!r}")
    if positives not in ("sum", "mean"):
        raise ValueError(f"positives must be 'sum' or 'mean', but is {positives!r}")
    if valid not in ("inner", "all"):
        raise ValueError(f"valid must be 'inner' or 'all', but is {valid!r}")
    batch, time, _ = z.shape
    if time <= 2 * k:
        raise ValueError(f"z must have more than 2 k = {2 * k} steps, but has {time}")
    unit = F.normalize(z, dim=-1)
    steps = torch.arange(time, device=z.device)
    apart = (steps[:, None] - steps).abs()
    near = (apart > 0) & (apart <= k)
    anchors = slice(k, time - k) if valid == "inner" else slice(None)
    same = (unit @ unit.mT / tau).masked_fill(apart == 0, -torch.inf)[:, anchors]
    near = near[anchors]
    if positives == "sum":
        of_near = same.masked_fill(~near, -torch.inf).logsumexp(-1)
        return (same.logsumexp(-1) - of_near).mean()
    everything = torch.einsum("btd,cud->btcu", unit[:, anchors], unit) / tau
    own = torch.eye(batch, dtype=torch.bool, device=z.device)[:, None, :, None]
    itself = own & (apart == 0)[anchors][None, :, None, :]
    total = everything.masked_fill(itself, -torch.inf).flatten(2).logsumexp(-1)
    # Each anchor's mean over its own positives: at the ends a window holds fewer.
    share = near.to(z.dtype) / near.sum(-1, keepdim=True)
    return (total - (same.masked_fill(~near, 0.0) * share).sum(-1)).mean()


def latent_entropy(z: Float[Tensor, "*batch latent"]) -> Float[Tensor, ""]:
    """Von Neumann entropy of the latent covariance over its trace, in nats, between 0 and ln d.

    Its gradient is -(log P + S) / tr C in closed form, which equal eigenvalues do not disturb.

    Args:
        z: latents; all leading axes are samples.

    Returns:
        The entropy, float64.

    Raises:
        ValueError: fewer than two samples or dimensions.

    Examples:
        >>> rows = torch.tensor([[3.0, 0, 0], [0, 2, 0], [0, 0, 1]])
        >>> round(latent_entropy(torch.cat([rows, -rows])).item(), 6)
        0.830472

    Source: Cheng et al. 2026 (arXiv 2510.13025), entropy term.
    """
    rows = z.reshape(-1, z.shape[-1]).double()
    count, dimension = rows.shape
    if count < 2 or dimension < 2:
        raise ValueError(
            f"z must have two samples and two dimensions, but has {count} and {dimension}"
        )
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred / (count - 1)
    # Relative to its size: a latent that is rescaled must keep its entropy.
    size = covariance.diagonal().mean().detach().clamp(min=torch.finfo(torch.float64).tiny)
    covariance = covariance / size + _ENTROPY_RIDGE * torch.eye(dimension, device=z.device).double()
    covariance = (covariance + covariance.T) / 2
    return torch.as_tensor(von_neumann_entropy(covariance / covariance.trace()))


def effective_dimension(z: Float[Tensor, "*batch latent"]) -> Float[Tensor, ""]:
    """How many dimensions the latents use: exp of their covariance's entropy, 1 to d.

    Examples:
        >>> rows = torch.tensor([[3.0, 0, 0], [0, 2, 0], [0, 0, 1]])
        >>> round(effective_dimension(torch.cat([rows, -rows])).item(), 6)
        2.294401

    Source: Cheng et al. 2026 (arXiv 2510.13025).
    """
    return effective_rank(z.reshape(-1, z.shape[-1]), of="covariance")


def ridge_operator(
    z: Float[Tensor, "batch time latent"],
    actions: Float[Tensor, "batch steps control"] | None = None,
    ridge: float = RIDGE,
) -> tuple[Float[Tensor, "latent latent"], Float[Tensor, "latent control"] | None]:
    """K, and B where there are actions, by ridge regression in every sequence, averaged.

    Args:
        z: latent sequences.
        actions: a_t that act between steps t and t + 1, shape (batch, time - 1, control).
        ridge: added to the diagonal; it pulls eigenvalues inwards.

    Returns:
        K and B with z_{t+1} = K z_t + B a_t.

    Examples:
        >>> z = 0.5 ** torch.arange(6.0)[None, :, None] * torch.tensor([1.0, 2.0])
        >>> K, _ = ridge_operator(z, ridge=0.0)
        >>> bool(torch.allclose(z[:, :-1] @ K.T, z[:, 1:], atol=1e-5))
        True

    Source: Cheng et al. 2026 (arXiv 2510.13025), the released operator.
    """
    if ridge < 0:
        raise ValueError(f"ridge must not be negative, but is {ridge!r}")
    before, after = z[:, :-1], z[:, 1:]
    if actions is not None:
        before = torch.cat([before, actions], dim=-1)
    rows, width = before.shape[-2:]
    if ridge == 0:
        found = torch.linalg.pinv(before) @ after
    elif rows < width:  # the smaller of the two systems
        gram = before @ before.mT + ridge * torch.eye(rows, dtype=z.dtype, device=z.device)
        found = before.mT @ torch.linalg.solve(gram, after)
    else:
        gram = before.mT @ before + ridge * torch.eye(width, dtype=z.dtype, device=z.device)
        found = torch.linalg.solve(gram, before.mT @ after)
    mean, latent = found.mean(0).mT, z.shape[-1]
    return mean[:, :latent], (None if actions is None else mean[:, latent:])


def linear_gaussian_information(
    K: Float[np.ndarray, "d d"], Q: Float[np.ndarray, "d d"], lag: int = 1
) -> float:
    """I(z_{t-n}; z_t) of a stationary z_{t+1} = K z_t + noise of covariance Q, in nats.

    1/2 log(det C / det M_n), with C the stationary covariance and M_n = sum_{i<n} K^i Q K^iT.

    Raises:
        ValueError: a lag below 1, or eigenvalues of K on or beyond the unit circle.

    Examples:
        >>> K, Q = np.array([[0.95, 0.1], [0.0, 0.5]]), np.diag([0.1, 0.2])
        >>> [round(linear_gaussian_information(K, Q, lag), 6) for lag in (1, 5, 20)]
        [1.342818, 0.474147, 0.070581]

    Source: Cheng et al. 2026 (arXiv 2510.13025), for the linear-Gaussian latent.
    """
    from scipy.linalg import solve_discrete_lyapunov

    if lag < 1:
        raise ValueError(f"lag must be at least 1, but is {lag!r}")
    if np.abs(np.linalg.eigvals(K)).max() >= 1:
        raise ValueError("K must have all eigenvalues within the unit circle")
    stationary = solve_discrete_lyapunov(K, Q)
    step = np.linalg.matrix_power(K, lag)
    unpredicted = stationary - step @ stationary @ step.T
    return float(np.linalg.slogdet(stationary)[1] - np.linalg.slogdet(unpredicted)[1]) / 2


def water_filling(
    gains: Float[np.ndarray, " modes"], gamma: float = 0.0
) -> Float[np.ndarray, " modes"]:
    """Shares p of unit power that maximise sum 1/2 log(1 + g_i p_i) + gamma S(p).

    Without the entropy S, weak modes get nothing: information alone collapses a latent. With it every
    mode keeps a share.

    Args:
        gains: signal-to-noise ratios of the modes, positive.
        gamma: weight of the entropy, not negative.

    Returns:
        Shares, summing to 1.

    Raises:
        ValueError: gains that are not positive, or a negative gamma.

    Examples:
        >>> water_filling(np.array([10.0, 5.0, 1.0, 0.5])).round(6).tolist()
        [0.55, 0.45, 0.0, 0.0]

    Source: Cheng et al. 2026 (arXiv 2510.13025), the argument for the entropy term.
    """
    g = np.asarray(gains, dtype=np.float64)
    if g.ndim != 1 or not len(g) or not (np.isfinite(g) & (g > 0)).all():
        raise ValueError(f"gains must be one axis of positive numbers, but is {g.tolist()}")
    if gamma < 0:
        raise ValueError(f"gamma must not be negative, but is {gamma!r}")

    def shares(price: float) -> np.ndarray:
        """Where each mode's marginal value has fallen to `price`."""
        if gamma == 0:
            return np.clip(1 / (2 * price) - 1 / g, 0.0, None)
        low, high = np.full(len(g), -700.0), np.zeros(len(g))  # of log p
        for _ in range(80):
            middle = (low + high) / 2
            value = g / (2 * (1 + g * np.exp(middle))) - gamma * (middle + 1)
            low, high = np.where(value > price, middle, low), np.where(value > price, high, middle)
        return np.exp((low + high) / 2)

    low, high = (1e-12 if gamma == 0 else -gamma), g.max() / 2 + 700 * gamma
    for _ in range(200):
        price = (low + high) / 2
        low, high = (price, high) if shares(price).sum() > 1 else (low, price)
    p = shares((low + high) / 2)
    return p / p.sum()


class InformationKoopmanLoss(nn.Module):
    """The information-shaped terms of the loss, for any model with a linear latent step.

    Args:
        alpha: weight of the contrastive information.
        beta: weight of the latent one-step error, over the latents' variance.
        gamma: weight of the entropy; negative values minimise it.
        k: half the contrastive window, in steps.
        tau: temperature of the contrastive term.
        positives: see `temporal_infonce`.

    Examples:
        >>> z = torch.randn(4, 12, 3, generator=torch.Generator().manual_seed(0))
        >>> terms = InformationKoopmanLoss()(z, z[:, :-1], torch.tensor(0.5))
        >>> sorted(terms)
        ['coherence', 'entropy', 'latent', 'loss', 'reconstruction']

    Source: Cheng et al. 2026 (arXiv 2510.13025), Algorithm 2.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 1.0,
        gamma: float = 0.1,
        *,
        k: int = 3,
        tau: float = 0.1,
        positives: Positives = "sum",
    ) -> None:
        super().__init__()
        if alpha < 0 or beta < 0:
            raise ValueError(f"alpha and beta must not be negative, but are {alpha} and {beta}")
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.k, self.tau, self.positives = k, tau, positives

    def forward(
        self,
        z: Float[Tensor, "batch time latent"],
        z_next_pred: Float[Tensor, "batch steps latent"],
        reconstruction: Float[Tensor, ""],
    ) -> dict[str, Tensor]:
        """All terms, and under "loss" what is to be minimised.

        Args:
            z: latents.
            z_next_pred: K z_t of every step but the last, shape (batch, time - 1, latent).
            reconstruction: the error in the data, to which the terms are added.
        """
        if len(z) * z.shape[1] < 4 * z.shape[2]:
            warnings.warn(
                f"{len(z) * z.shape[1]} latents in {z.shape[2]} dimensions bias the entropy low: "
                "give at least four a dimension",
                stacklevel=2,
            )
        # Unscaled, the encoder would shrink z to make the error small.
        variance = z.flatten(0, 1).var(0).mean().clamp(min=torch.finfo(z.dtype).tiny)
        latent = F.mse_loss(z_next_pred, z[:, 1:]) / variance
        zero = z.new_zeros(())
        coherence = temporal_infonce(z, self.k, self.tau, self.positives) if self.alpha else zero
        entropy = latent_entropy(z).to(z.dtype) if self.gamma else zero
        loss = reconstruction + self.alpha * coherence + self.beta * latent - self.gamma * entropy
        return {
            "loss": loss,
            "reconstruction": reconstruction,
            "coherence": coherence,
            "latent": latent,
            "entropy": entropy,
        }


class InformationKoopman(nn.Module):
    """A Koopman autoencoder whose latent is shaped by information.

    Args:
        encoder: maps observations (n, ...) to (n, latent_dim), or to twice that where probabilistic.
        decoder: maps (n, latent_dim) to observations.
        latent_dim: d.
        alpha: weight of the contrastive information.
        beta: weight of the latent one-step error.
        gamma: weight of the entropy.
        operator: "learned", one matrix that starts at the identity; or "ridge", regressed anew in
            every batch, without gradient, and over all windows at the end of `fit`.
        control_dim: length of the actions, 0 for none.
        horizon: decoded forecasts of 1 step, and the mean of those up to this many, are trained on.
        probabilistic: encoder gives means and log-variances; the latent step is then scored by its
            log-likelihood under N(K z, Sigma) plus the encoder's entropy, and the posterior by its
            divergence from N(0, I).
        k: half the contrastive window, in steps.
        tau: temperature of the contrastive term.
        positives: see `temporal_infonce`.

    Raises:
        ValueError: an argument out of its range.

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> t = torch.linspace(0, 20, 100)
        >>> x = torch.stack([t.sin(), t.cos()], -1).unfold(0, 40, 20).mT
        >>> model = InformationKoopman(nn.Linear(2, 2), nn.Linear(2, 2), 2, alpha=0.0)
        >>> model = model.fit(x, epochs=2, window=10)
        >>> model.forecast(x[:, 0], horizon=5).shape
        torch.Size([4, 5, 2])

    Source: Cheng et al., Information Shapes Koopman Representation (ICLR 2026; arXiv 2510.13025).
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int,
        *,
        alpha: float = 2.0,
        beta: float = 1.0,
        gamma: float = 0.1,
        operator: Operator = "learned",
        control_dim: int = 0,
        horizon: int = 1,
        probabilistic: bool = False,
        k: int = 3,
        tau: float = 0.1,
        positives: Positives = "sum",
    ) -> None:
        super().__init__()
        if latent_dim < 2:
            raise ValueError(f"latent_dim must be at least 2, but is {latent_dim}")
        if operator not in ("learned", "ridge"):
            raise ValueError(f"operator must be 'learned' or 'ridge', but is {operator!r}")
        if control_dim < 0:
            raise ValueError(f"control_dim must not be negative, but is {control_dim}")
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, but is {horizon}")
        self.encoder, self.decoder = encoder, decoder
        self.latent_dim, self.control_dim = latent_dim, control_dim
        self.operator, self.horizon, self.probabilistic = operator, horizon, probabilistic
        self.shaping = InformationKoopmanLoss(alpha, beta, gamma, k=k, tau=tau, positives=positives)
        self.K: Tensor
        self.B: Tensor
        kernel, control = torch.eye(latent_dim), torch.zeros(latent_dim, control_dim)
        if operator == "learned":
            self.K, self.B = nn.Parameter(kernel), nn.Parameter(control)
        else:
            self.register_buffer("K", kernel)
            self.register_buffer("B", control)
        self.log_noise = nn.Parameter(torch.zeros(latent_dim)) if probabilistic else None
        self.history_: list[dict[str, float]] = []

    def encode(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch latent"]:
        """Latents of observations; means where probabilistic."""
        return self.encoder(x)[..., : self.latent_dim]

    def step(
        self,
        z: Float[Tensor, "*batch latent"],
        actions: Float[Tensor, "*batch control"] | None = None,
    ) -> Float[Tensor, "*batch latent"]:
        """K z, plus B a where there are actions."""
        return _advance(z, self.K, self.B, actions)

    @torch.no_grad()
    def forecast(
        self,
        x0: Float[Tensor, "batch *shape"],
        horizon: int,
        actions: Float[Tensor, "batch horizon control"] | None = None,
    ) -> Float[Tensor, "batch horizon *shape"]:
        """Decoded K^h f(x0) for h = 1 ... horizon.

        Raises:
            ValueError: a horizon below 1, or actions that don't fit.
        """
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, but is {horizon}")
        self._check_actions(actions, len(x0), horizon)
        z, found = self.encode(x0), []
        for h in range(horizon):
            z = self.step(z, None if actions is None else actions[:, h])
            found.append(self.decoder(z))
        return torch.stack(found, dim=1)

    @torch.no_grad()
    def eigenvalues(self) -> torch.Tensor:
        """Eigenvalues of K, complex, the slowest to decay first: e^{(decay + i frequency) dt}."""
        values = torch.linalg.eigvals(self.K)
        return values[values.abs().argsort(descending=True)]

    def loss(
        self,
        x: Float[Tensor, "batch time *shape"],
        actions: Float[Tensor, "batch steps control"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The terms of the loss on windows of trajectories.

        Args:
            x: windows, more than 2 k and than `horizon` steps long.
            actions: shape (batch, time - 1, control).
            generator: of the latent noise where probabilistic.

        Returns:
            Terms, and under "loss" what is to be minimised.

        Raises:
            ValueError: windows too short, NaN, or actions that don't fit.
        """
        batch, time = x.shape[:2]
        if time <= self.horizon or (self.shaping.alpha and time <= 2 * self.shaping.k):
            raise ValueError(
                f"x must have more than horizon = {self.horizon} and 2 k = {2 * self.shaping.k} steps, "
                f"but has {time}"
            )
        if not bool(torch.isfinite(x).all()):
            raise ValueError("x must be finite")
        self._check_actions(actions, batch, time - 1)
        encoded = self.encoder(x.flatten(0, 1)).unflatten(0, (batch, time))
        posterior = encoded[..., : self.latent_dim]
        z = posterior
        if self.probabilistic:
            log_variance = encoded[..., self.latent_dim :]
            noise = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
            z = posterior + (log_variance / 2).exp() * noise
        K, B = self.K, self.B
        if self.operator == "ridge":
            with torch.no_grad():
                K, found = ridge_operator(z, actions)
                B = self.B if found is None else found
        ahead = _advance(z[:, :-1], K, B, actions)
        decoded = self._decode(z)
        error = F.mse_loss(decoded, x) + F.mse_loss(self._decode(ahead), x[:, 1:])
        if self.horizon > 1:
            starts = time - self.horizon
            far, ahead_by = z[:, :starts], []
            for h in range(self.horizon):
                acting = None if actions is None else actions[:, h : starts + h]
                far = _advance(far, K, B, acting)
                ahead_by.append(far)
            seen = x.unfold(1, starts, 1)[:, 1:].movedim(-1, 2)  # [batch, horizon, starts, ...]
            found = self._decode(torch.stack(ahead_by, 1).flatten(1, 2))
            error = error + F.mse_loss(found, seen.flatten(1, 2))
        terms = self.shaping(z, ahead, error)
        if not self.probabilistic:
            return terms
        # E[-log q(z'|z)] - H[p(z|x)] takes the place of the squared error, and the posterior's
        # divergence from N(0, I) is added.
        assert self.log_noise is not None
        precision = (-2 * self.log_noise).exp()
        surprise = (
            (z[:, 1:] - ahead) ** 2 * precision / 2 + self.log_noise + math.log(2 * math.pi) / 2
        ).sum(-1)
        entropy = (log_variance[:, 1:] + 1 + math.log(2 * math.pi)).sum(-1) / 2
        transition = (surprise - entropy).mean()
        prior = (log_variance.exp() + posterior**2 - 1 - log_variance).sum(-1).mean() / 2
        scale = x[0, 0].numel()  # of errors that are means over the entries of x
        loss = (
            terms["loss"]
            - self.shaping.beta * terms["latent"]
            + (self.shaping.beta * transition + prior) / scale
        )
        return terms | {"loss": loss, "transition": transition, "prior": prior}

    def fit(
        self,
        trajectories: Float[Tensor, "n time *shape"] | Float[np.ndarray, "n time *shape"],
        actions: Float[Tensor, "n steps control"] | None = None,
        *,
        epochs: int = 300,
        batch_size: int = 16,
        window: int = 16,
        learning_rate: float = 1e-3,
        schedule: Literal["step", "cosine"] = "step",
        clip: float = 1.0,
        validation: float = 0.0,
        patience: int = 50,
        generator: torch.Generator | None = None,
        progress: Callable[[float, str], None] | None = None,
    ) -> InformationKoopman:
        """Trains on random windows of the trajectories; an epoch draws as many as do not overlap.

        Args:
            trajectories: observations, standardised.
            actions: shape (n, time - 1, control).
            epochs: passes.
            batch_size: windows a step.
            window: steps of a window.
            learning_rate: of Adam.
            schedule: "step", times 0.8 every 20 epochs; or "cosine" to 0.
            clip: largest norm of the gradient.
            validation: share of the trajectories kept for choosing the best epoch; 0 keeps the last.
            patience: epochs without improvement before training stops.
            generator: of windows and noise.
            progress: called with the fraction done and a message after each epoch.

        Returns:
            The fitted model.

        Raises:
            ValueError: trajectories too short, NaN, or an argument out of its range.
        """
        x = torch.as_tensor(trajectories)
        device = self.K.device
        x = x.to(device, self.K.dtype)
        n, time = x.shape[:2]
        if not bool(torch.isfinite(x).all()):
            raise ValueError("trajectories must be finite")
        if time < window:
            raise ValueError(
                f"trajectories must have at least window = {window} steps, but have {time}"
            )
        if not 0 <= validation < 1:
            raise ValueError(f"validation must lie in [0, 1), but is {validation!r}")
        if schedule not in ("step", "cosine"):
            raise ValueError(f"schedule must be 'step' or 'cosine', but is {schedule!r}")
        self._check_actions(actions, n, time - 1)
        held = round(validation * n)
        optimiser = torch.optim.Adam(self.parameters(), lr=learning_rate)
        steps = max(1, (n - held) * (time // window) // batch_size)
        scheduler = (
            torch.optim.lr_scheduler.StepLR(optimiser, 20 * steps, 0.8)
            if schedule == "step"
            else torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * steps)
        )
        offsets = torch.arange(window)
        best, best_state, waited = math.inf, None, 0
        self.history_ = []
        for epoch in range(epochs):
            self.train()
            sums: dict[str, float] = {}
            for _ in range(steps):
                which = torch.randint(n - held, (batch_size,), generator=generator)
                starts = torch.randint(time - window + 1, (batch_size,), generator=generator)
                at = starts[:, None] + offsets
                acting = None if actions is None else actions[which[:, None], at[:, :-1]]
                terms = self.loss(x[which[:, None], at], acting, generator=generator)
                optimiser.zero_grad(set_to_none=True)
                terms["loss"].backward()
                nn.utils.clip_grad_norm_(self.parameters(), clip)
                optimiser.step()
                scheduler.step()
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + float(value.detach()) / steps
            self.history_.append(sums)
            if progress is not None:
                progress((epoch + 1) / epochs, f"epoch {epoch + 1} of {epochs}")
            if not held:
                continue
            self.eval()
            with torch.no_grad():
                chosen = None if actions is None else actions[n - held :]
                score = float(
                    self.loss(x[n - held :], chosen, generator=generator)["reconstruction"]
                )
            if score < best:
                best, best_state, waited = score, copy.deepcopy(self.state_dict()), 0
            else:
                waited += 1
                if waited >= patience:
                    break
        if best_state is not None:
            self.load_state_dict(best_state)
        self.eval()
        if self.operator == "ridge":
            self._regress(x[: n - held], None if actions is None else actions[: n - held])
        radius = float(self.eigenvalues().abs()[0])
        if radius > 1.02:
            warnings.warn(
                f"the spectral radius of K is {radius:.3f}: long forecasts will grow", stacklevel=2
            )
        return self

    @torch.no_grad()
    def _regress(self, x: Tensor, actions: Tensor | None) -> None:
        z = self.encode(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        K, B = ridge_operator(z, actions)
        self.K.copy_(K)
        if B is not None:
            self.B.copy_(B)

    def _decode(self, z: Tensor) -> Tensor:
        return self.decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2])

    def _check_actions(self, actions: Tensor | None, batch: int, steps: int) -> None:
        if (actions is None) != (self.control_dim == 0):
            raise ValueError(
                f"actions must {'not ' if not self.control_dim else ''}be given: "
                f"control_dim is {self.control_dim}"
            )
        wanted = (batch, steps, self.control_dim)
        if actions is not None and tuple(actions.shape) != wanted:
            raise ValueError(
                f"actions must have the shape {wanted}, but has {tuple(actions.shape)}"
            )

    def plot(self) -> Any:
        """Eigenvalues of K over the unit circle: a plotly Figure."""
        import plotly.graph_objects as go

        angle = np.linspace(0, 2 * np.pi, 200)
        values = self.eigenvalues().cpu().numpy()
        figure = go.Figure()
        figure.add_scatter(x=np.cos(angle), y=np.sin(angle), mode="lines", name="unit circle")
        figure.add_scatter(x=values.real, y=values.imag, mode="markers", name="eigenvalues of K")
        figure.update_yaxes(scaleanchor="x", title="imaginary")
        figure.update_xaxes(title="real")
        return figure


def _advance(z: Tensor, K: Tensor, B: Tensor, actions: Tensor | None) -> Tensor:
    ahead = z @ K.mT
    return ahead if actions is None else ahead + actions @ B.mT
