"""Entropy production of driven many-particle systems, particle by particle, from a learned score.

A system dz = b(z) dt + sqrt(2 D) dW with a stationary density rho has the probability current
v = b - D grad log rho. What breaks time reversal is v:

1. sigma = sum_c v_c^2 / D_c, whose mean is the total rate of entropy production;
2. div v, the system's own part, whose stationary mean is 0;
3. E[b D^-1 b] + E[div b], the same total without a score: the check of every score.

Entropies are in nats per unit of time, k_B = 1; all coordinates are even under time reversal.

Source: Boffi & Vanden-Eijnden, Deep learning probability flows and entropy production rates in active
matter (PNAS 121, 2024; arXiv 2309.12991).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_ALMOST_NOTHING = 1e-2
"""What is left of attention at the reach, cubed: a logarithm must stay finite."""

GAP = 0.05
"""Share of the score-free total that the learned one may differ by before a warning."""


@runtime_checkable
class System(Protocol):
    """What entropy production needs to know: drift, noise, and what is known of the score."""

    @property
    def D(self) -> Tensor:
        """Diffusion of each coordinate of a particle."""
        ...

    def terms(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Drift, its own-coordinate derivatives, a first guess of the score, and its derivatives."""
        ...


class DiffusionSystem:
    """Any diffusion with diagonal, constant noise; states (batch, particles, coordinates).

    Args:
        drift: maps states to b(z), with torch operations unless `divergence` is given.
        D: diffusion of each coordinate, (coordinates,).
        divergence: d b_c / d z_c of each coordinate; by autograd when None, one backward pass for each
            particle and coordinate.
        shift: what is known of the score and its derivatives, which a network then completes; 0 when
            None.

    Raises:
        ValueError: D not one axis of finite numbers that aren't negative.

    Examples:
        >>> system = DiffusionSystem(lambda z: -2 * z, torch.ones(1))
        >>> [float(part) for part in system.terms(torch.tensor([[[3.0]]]))[:2]]
        [-6.0, -2.0]

    Source: Boffi & Vanden-Eijnden 2024 (arXiv 2309.12991).
    """

    def __init__(
        self,
        drift: Callable[[Tensor], Tensor],
        D: Float[Tensor, " coordinates"],
        divergence: Callable[[Tensor], Tensor] | None = None,
        shift: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        if D.ndim != 1 or not bool((torch.isfinite(D) & (D >= 0)).all()):
            raise ValueError(f"D must be one axis of numbers >= 0, but is {D.tolist()}")
        self.drift, self.D, self.divergence, self.shift = drift, D, divergence, shift

    def terms(
        self, z: Float[Tensor, "batch n coordinates"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Drift, its own-coordinate derivatives, what is known of the score, and its derivatives."""
        drift = self.drift(z)
        divergence = self.divergence(z) if self.divergence else self._autograd(z)
        known, own = self.shift(z) if self.shift else (torch.zeros_like(z), torch.zeros_like(z))
        return drift, divergence, known, own

    def _autograd(self, z: Tensor) -> Tensor:
        leaf = z.detach().requires_grad_()
        with torch.enable_grad():
            b = self.drift(leaf).flatten(1)
            found = [
                torch.autograd.grad(b[:, i].sum(), leaf, retain_graph=True)[0].flatten(1)[:, i]
                for i in range(b.shape[1])
            ]
        return torch.stack(found, 1).reshape(z.shape)


def gaussian_entropy_production(
    M: Float[np.ndarray, "n n"], D: Float[np.ndarray, " n"]
) -> tuple[float, Float[np.ndarray, "n n"]]:
    """Entropy production and covariance of dz = M z dt + sqrt(2 D) dW, in closed form.

    Args:
        M: drift, all eigenvalues with negative real parts.
        D: diffusion of each coordinate, positive.

    Returns:
        Tr[V^T D^-1 V C] with V = M + D C^-1, nats per unit of time; and C.

    Raises:
        ValueError: an unstable M, or a D that isn't positive.

    Examples:
        >>> rate, C = gaussian_entropy_production(np.array([[-0.05, 0.2], [0, -0.1]]), np.array([0.1, 0.1]))
        >>> round(rate, 6), C.round(5).tolist()
        (0.266667, [[7.33333, 1.33333], [1.33333, 1.0]])

    Source: Boffi & Vanden-Eijnden 2024 (arXiv 2309.12991), for linear drifts.
    """
    from scipy.linalg import solve_continuous_lyapunov

    if np.linalg.eigvals(M).real.max() >= 0:
        raise ValueError(
            "M must have eigenvalues with negative real parts: there is no stationary state"
        )
    if not (D > 0).all():
        raise ValueError(f"D must be positive, but is {D.tolist()}")
    C = solve_continuous_lyapunov(M, -2 * np.diag(D))
    V = M + np.diag(D) @ np.linalg.inv(C)
    return float(np.trace(V.T @ np.diag(1 / D) @ V @ C)), C


class ScoreNetwork(nn.Module):
    """A network whose output at a particle depends on that particle's own state and on the others'.

    Subclasses implement `local(own, others)`, in which the output at particle i reads own[i] but of
    `own` nothing else. That is what makes the divergence of all particles cost one backward pass for each
    coordinate: `own` and `others` are the same numbers, and only `own` is differentiated.
    """

    def local(self, own: Tensor, others: Tensor) -> Tensor:
        """(batch, n, coordinates) from two copies of the states."""
        raise NotImplementedError

    def forward(
        self, z: Float[Tensor, "batch n coordinates"]
    ) -> Float[Tensor, "batch n coordinates"]:
        """Output at each particle."""
        return self.local(z, z)

    def with_divergence(self, z: Tensor, *, create_graph: bool = False) -> tuple[Tensor, Tensor]:
        """Output, and its derivative d s_c / d z_c along each particle's own coordinates."""
        own = z.detach().requires_grad_()
        with torch.enable_grad():
            s = self.local(own, z.detach())
            last = s.shape[-1] - 1
            parts = [
                torch.autograd.grad(
                    s[..., c].sum(),
                    own,
                    create_graph=create_graph,
                    retain_graph=create_graph or c < last,
                )[0][..., c]
                for c in range(s.shape[-1])
            ]
        return s, torch.stack(parts, -1)


class ScoreMLP(ScoreNetwork):
    """A multilayer perceptron on each particle by itself, for one particle or independent ones.

    Args:
        coordinates: of a particle.
        widths: of the hidden layers.
        period: for each coordinate its period, 0 where it has none; periodic ones enter as cosine and sine.
        odd: s(-z) = -s(z), by construction.

    Examples:
        >>> ScoreMLP(2, (8,))(torch.zeros(3, 1, 2)).shape
        torch.Size([3, 1, 2])

    Source: Boffi & Vanden-Eijnden 2024 (arXiv 2309.12991), networks of the low-dimensional examples.
    """

    def __init__(
        self,
        coordinates: int,
        widths: Sequence[int] = (256, 256, 256, 256),
        *,
        period: Sequence[float] | None = None,
        odd: bool = False,
    ) -> None:
        super().__init__()
        period = (0.0,) * coordinates if period is None else tuple(period)
        if len(period) != coordinates or min(period) < 0:
            raise ValueError(
                f"period must be {coordinates} numbers >= 0, one a coordinate, but is {period}"
            )
        self.period, self.odd = period, odd
        sizes = [coordinates + sum(p > 0 for p in period), *widths]
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.GELU()]
        self.net = nn.Sequential(*layers, _zero(nn.Linear(sizes[-1], coordinates)))

    def local(self, own: Tensor, others: Tensor) -> Tensor:
        """Output at each particle; there are no others."""
        if not self.odd:
            return self.net(self._features(own))
        return (self.net(self._features(own)) - self.net(self._features(-own))) / 2

    def _features(self, z: Tensor) -> Tensor:
        columns = []
        for c, period in enumerate(self.period):
            if period:
                angle = 2 * torch.pi / period * z[..., c]
                columns += [angle.cos(), angle.sin()]
            else:
                columns.append(z[..., c])
        return torch.stack(columns, -1)


class LocalScoreTransformer(ScoreNetwork):
    """Attention of each particle over its nearest neighbours; permutation equivariant, any N.

    Token 0 is the particle itself with zero displacement, the others its neighbours; a token is the
    embedded propulsion beside the embedded displacement, and the output is read off token 0. In a trap
    the particle's own position enters beside its propulsion; on a torus positions enter as displacements
    alone.

    Args:
        d: dimensions of space; a state has 2 d coordinates.
        neighbours: how many each particle sees, at most N - 1.
        half_width: w of the torus; None in a trap.
        width: of tokens.
        layers: post-norm encoder blocks.
        heads: of each.
        embedding_layers: hidden layers of each of the two embeddings.
        reach: distance over which attention to a neighbour fades to nothing, so that the score stays smooth
            where the list of neighbours changes; None attends to all alike, as the paper's.
        contact: (2 r, beta) of a soft repulsion, which a token then holds beside the displacement: over a
            contact's width the score changes faster than layers of it soon learn. None as the paper's.

    Raises:
        ValueError: sizes that don't fit.

    Examples:
        >>> net = LocalScoreTransformer(d=2, neighbours=3, width=16, layers=1, heads=2, embedding_layers=1)
        >>> net(torch.randn(2, 5, 4)).shape
        torch.Size([2, 5, 4])

    Source: Boffi & Vanden-Eijnden 2024 (arXiv 2309.12991), local transformer.
    """

    def __init__(
        self,
        d: int = 2,
        neighbours: int = 64,
        *,
        half_width: float | None = None,
        width: int = 256,
        layers: int = 4,
        heads: int = 4,
        embedding_layers: int = 4,
        reach: float | None = None,
        contact: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if reach is not None and not reach > 0:
            raise ValueError(f"reach must be positive, but is {reach}")
        if neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, but is {neighbours}")
        if width % (2 * heads):
            raise ValueError(f"width must be a multiple of 2 heads = {2 * heads}, but is {width}")
        self.d, self.neighbours, self.half_width = d, neighbours, half_width
        self.heads, self.reach, self.contact = heads, reach, contact
        own = d if half_width is not None else 2 * d
        self.embed_g = _embedding(own, width // 2, embedding_layers)
        self.embed_x = _embedding(d if contact is None else 2 * d, width // 2, embedding_layers)
        block = nn.TransformerEncoderLayer(
            width, heads, width, dropout=0.0, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.read = _zero(nn.Linear(width, 2 * d))

    def local(self, own: Tensor, others: Tensor) -> Tensor:
        """Output at each particle, of its own copy of the state and its neighbours' other one."""
        batch, n, _ = own.shape
        if n <= self.neighbours:
            raise ValueError(
                f"z must hold more than neighbours = {self.neighbours} particles, but holds {n}"
            )
        near = nearest(others[..., : self.d], self.neighbours, self.half_width)
        rows = torch.arange(batch, device=own.device)[:, None, None]
        seen = others[rows, near]  # [batch, n, neighbours, 2 d]
        apart = own[..., None, : self.d] - seen[..., : self.d]
        if self.half_width is not None:
            side = 2 * self.half_width
            apart = apart - side * (apart / side).round()
        g = torch.cat([own[..., None, self.d :], seen[..., self.d :]], 2)
        apart = torch.cat([torch.zeros_like(apart[..., :1, :]), apart], 2)
        if self.half_width is None:
            # Where a token is: the particle's own position less the displacement.
            g = torch.cat([own[..., None, : self.d] - apart, g], -1)
        near_by = apart if self.contact is None else torch.cat([apart, self._push(apart)], -1)
        tokens = torch.cat([self.embed_g(g), self.embed_x(near_by)], -1).flatten(0, 1)
        from torch.nn.attention import SDPBackend, sdpa_kernel

        # Fused attention has no second derivative, which the divergence in a loss needs.
        with sdpa_kernel(SDPBackend.MATH):
            read = self.encoder(tokens, self._fading(apart))[:, 0]
        return self.read(read).unflatten(0, (batch, n))

    def _push(self, apart: Tensor) -> Tensor:
        """Repulsion along each displacement, 0 of a particle from itself."""
        assert self.contact is not None
        diameter, beta = self.contact
        square = apart.square().sum(-1, keepdim=True)
        here = square == 0  # a root has no derivative there
        r = square.where(~here, torch.ones_like(square)).sqrt()
        size = nn.functional.softplus(diameter - r, beta=beta) / r
        return apart * size.where(~here, torch.zeros_like(size))

    def _fading(self, apart: Tensor) -> Tensor | None:
        """Logarithm of a weight of each neighbour that falls smoothly from 1 to (almost) 0 at `reach`."""
        if self.reach is None:
            return None
        far = (apart.square().sum(-1) / self.reach**2).clamp(max=1).flatten(0, 1)
        weight = 3 * (1 - far + _ALMOST_NOTHING).log()
        length = weight.shape[-1]
        return weight[:, None, None].expand(-1, self.heads, length, length).flatten(0, 1)


def nearest(x: Float[Tensor, "batch n d"], k: int, half_width: float | None = None) -> Tensor:
    """Indices of the k nearest others of each particle, (batch, n, k), nearest first.

    Args:
        x: positions.
        k: below n.
        half_width: w of a torus, None for open space.
    """
    from scipy.spatial import cKDTree

    points = x.detach().cpu().double().numpy()
    side = None if half_width is None else 2 * half_width
    if side is not None:
        points = points % side
        points[points >= side] = 0.0  # rounding of a tiny negative number
    found = np.empty((*points.shape[:2], k), np.int64)
    for b, cloud in enumerate(points):
        which = cKDTree(cloud, boxsize=side).query(cloud, k + 1)[1]
        # The particle itself comes first, or not, where others lie at its place.
        other = which != np.arange(len(cloud))[:, None]
        other[other.all(1), -1] = False
        found[b] = which[other].reshape(-1, k)
    return torch.from_numpy(found).to(x.device)


def _zero(layer: nn.Linear) -> nn.Linear:
    """A last layer that starts at 0: the score starts as the equilibrium one."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _embedding(inputs: int, width: int, hidden: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(hidden):
        layers += [nn.Linear(inputs if i == 0 else width, width), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(width if hidden else inputs, width))


@dataclass(frozen=True)
class EntropyProduction:
    """Entropy production of snapshots, in nats per unit of time.

    Attributes:
        total: mean over snapshots of the sum over particles.
        per_particle: sum over a particle's coordinates of v^2 / D, (batch, n).
        by_coordinate: the mean over snapshots and particles, by coordinate.
        velocity: v = b - D s, (batch, n, coordinates).
        system_part: div v of each particle, (batch, n); its stationary mean is 0.
        v_dot_s: mean over snapshots of v . s; 0 for a true score and stationary snapshots where all
            coordinates count.
        score_free: the same total from E[b D^-1 b] + E[div b]; NaN where not all coordinates count.
        positions: the first half of the coordinates, to draw maps with.
    """

    total: float
    per_particle: Float[np.ndarray, "batch n"]
    by_coordinate: Float[np.ndarray, " counted"]
    velocity: Float[np.ndarray, "batch n coordinates"]
    system_part: Float[np.ndarray, "batch n"]
    v_dot_s: float
    score_free: float
    positions: Float[np.ndarray, "batch n d"]

    def plot(self, snapshot: int = 0) -> Figure:
        """Map of local entropy production over one configuration: a plotly Figure."""
        import plotly.graph_objects as go

        x = self.positions[snapshot]
        if x.shape[-1] < 2:
            raise ValueError("positions must have two dimensions for a map, but have one")
        sigma = self.per_particle[snapshot]
        plot = go.Figure(
            go.Scatter(
                x=x[:, 0],
                y=x[:, 1],
                mode="markers",
                marker={
                    "color": sigma,
                    "colorscale": "Viridis",
                    "colorbar": {"title": "nats / time"},
                    "size": max(3, 120 / len(x) ** 0.5),
                },
                text=[f"{value:.3g}" for value in sigma],
            )
        )
        plot.update_yaxes(scaleanchor="x")
        return plot


def entropy_production(
    system: System,
    score: Callable[[Tensor], tuple[Tensor, Tensor]],
    snapshots: Float[Tensor, "batch n coordinates"] | Float[np.ndarray, "batch n coordinates"],
    *,
    coordinates: Sequence[int] | None = None,
    batch_size: int = 64,
) -> EntropyProduction:
    """Total, per-particle and per-coordinate entropy production of stationary snapshots.

    Args:
        system: drift and noise.
        score: maps states to the score and to its derivatives d s_c / d z_c; what `ScoreTrainer.fit`
            returns, or a formula.
        snapshots: states.
        coordinates: which count; all by default. Without noise in a coordinate its entropy production is
            not defined: name the others.
        batch_size: snapshots at once.

    Returns:
        See `EntropyProduction`.

    Raises:
        ValueError: no noise in a coordinate that counts, a shape that does not fit, or a NaN.

    Examples:
        >>> system = DiffusionSystem(lambda z: -z, torch.ones(1))
        >>> z = torch.randn(500, 1, 1, generator=torch.Generator().manual_seed(0))
        >>> exact = lambda z: (-z, -torch.ones_like(z))
        >>> entropy_production(system, exact, z / z.std()).total
        0.0

    Source: Boffi & Vanden-Eijnden 2024 (arXiv 2309.12991), entropy production from the score.
    """
    z = torch.as_tensor(snapshots)
    D = system.D.to(z)
    _check(z, len(D), "snapshots")
    chosen = list(range(len(D))) if coordinates is None else list(coordinates)
    if not chosen or not set(chosen) <= set(range(len(D))):
        raise ValueError(f"coordinates must be some of 0 to {len(D) - 1}, but is {chosen}")
    silent = [c for c in chosen if D[c] == 0]
    if silent:
        noisy = [c for c in range(len(D)) if D[c] > 0]
        raise ValueError(
            f"coordinates {silent} have no noise (D is 0), so that their entropy production is not "
            f"defined; give coordinates={noisy}"
        )
    parts: list[tuple[Tensor, ...]] = []
    for rows in z.split(batch_size):
        b, slope, _, _ = system.terms(rows)
        s, own = (part.detach() for part in score(rows))
        v = b - D * s
        free = (b**2 / D + slope)[..., chosen].sum((1, 2))
        parts.append((v, slope - D * own, (v * s)[..., chosen].sum((1, 2)), free))
    v, change, along, free = (torch.cat(part).double() for part in zip(*parts, strict=True))
    sigma = (v**2 / D.double())[..., chosen]
    total, score_free = float(sigma.sum((1, 2)).mean()), float(free.mean())
    if len(chosen) < len(D):  # the identity holds for all coordinates together
        score_free = math.nan
    elif abs(total - score_free) > GAP * max(abs(score_free), 1e-6 * z.shape[1]):
        warnings.warn(
            f"the total {total:.4g} and the score-free one {score_free:.4g} differ by more than "
            f"{GAP:.0%}: the score, the snapshots' stationarity or the time step is at fault",
            stacklevel=2,
        )
    return EntropyProduction(
        total=total,
        per_particle=sigma.sum(-1).numpy(),
        by_coordinate=sigma.mean((0, 1)).numpy(),
        velocity=v.numpy(),
        system_part=change[..., chosen].sum(-1).numpy(),
        v_dot_s=float(along.mean()),
        score_free=score_free,
        positions=z[..., : max(1, len(D) // 2)].double().cpu().numpy(),
    )


def _check(z: Tensor, coordinates: int, name: str) -> None:
    if z.ndim != 3 or z.shape[-1] != coordinates or not len(z):
        raise ValueError(
            f"{name} must have the shape (batch, particles, {coordinates}), but has {tuple(z.shape)}"
        )
    if not bool(torch.isfinite(z).all()):
        raise ValueError(f"{name} must be finite, but hold a NaN or an infinity")
