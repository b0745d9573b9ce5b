"""Maximum entropy on chains and trees of sites, by transfer matrices.

Where every feature is a sum of terms of single sites and of neighbours on a tree, ln Z is a leaf-to-root
recursion of one q x q matrix an edge, and 2^1000 states cost no more than a thousand small products.

Source: the dual of Rogers, Beck, Rempe (arXiv 1105.5662, 2011); the recursion is the transfer-matrix
method (Kramers, Wannier, Phys. Rev. 60:252, 1941).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from szilard.physics._dual import InfeasibleError, Point, minimise


@dataclass(frozen=True)
class TreeModel:
    """A maximum-entropy distribution on a tree.

    Attributes:
        multipliers: lambda, shape (features,).
        log_partition: ln Z over all levels**sites states, each counted once.
        means: <f>, shape (features,).
        covariance: of the features, shape (features, features).
        sensitivity: dlambda/dF, shape (features, features).
        site_marginals: shape (sites, levels).
        pair_marginals: of each site but the first (its level first) and its parent, shape (sites - 1,
            levels, levels).
        entropy: of the whole distribution, in nats.
        iterations: Newton steps.
    """

    multipliers: Float[np.ndarray, " features"]
    log_partition: float
    means: Float[np.ndarray, " features"]
    covariance: Float[np.ndarray, "features features"]
    sensitivity: Float[np.ndarray, "features features"]
    site_marginals: Float[np.ndarray, "sites levels"]
    pair_marginals: Float[np.ndarray, "edges levels levels"]
    entropy: float
    iterations: int


class TreeMaxEnt:
    """Features that are sums over the sites and edges of a tree; a chain by default.

    Args:
        site: what each site adds to each feature at each of its levels, shape (features, sites,
            levels).
        pair: what each site but the first adds together with its parent, shape (features, sites - 1,
            levels of the site, levels of the parent); none by default.
        parents: the parent of every site but the first, each before its child; the site before it by
            default, a chain.
        device: where the recursion runs.

    Raises:
        ValueError: shapes that don't fit, NaN, or a parent that does not come before its child.

    Examples:
        A chain of twenty two-level sites, 2^20 states, with its mean occupancy and neighbours known:

        >>> site = np.zeros((2, 20, 2))
        >>> site[0, :, 1] = 1
        >>> pair = np.zeros((2, 19, 2, 2))
        >>> pair[1, :, 1, 1] = 1
        >>> model = TreeMaxEnt(site, pair).fit([10.0, 3.0])
        >>> model.means.round(6), round(model.entropy, 4)
        (array([10.,  3.]), 12.6613)

    Source: Rogers et al. 2011 (arXiv 1105.5662), with transfer matrices.
    """

    def __init__(
        self,
        site: ArrayLike,
        pair: ArrayLike | None = None,
        parents: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        alone = torch.tensor(np.asarray(site, dtype=np.float64), device=device)
        if alone.ndim != 3 or 0 in alone.shape:
            raise ValueError(
                f"site must have the shape (features, sites, levels), but has {tuple(alone.shape)}"
            )
        features, sites, levels = alone.shape
        shape = (features, sites - 1, levels, levels)
        together = (
            torch.zeros(shape, dtype=torch.float64, device=device)
            if pair is None
            else torch.tensor(np.asarray(pair, dtype=np.float64), device=device)
        )
        if tuple(together.shape) != shape:
            raise ValueError(f"pair must have the shape {shape}, but has {tuple(together.shape)}")
        for name, x in (("site", alone), ("pair", together)):
            if not bool(torch.isfinite(x).all()):
                raise ValueError(f"{name} must be finite")
        self._parents = list(range(sites - 1)) if parents is None else list(parents)
        if len(self._parents) != sites - 1 or any(
            not 0 <= parent <= child for child, parent in enumerate(self._parents)
        ):
            raise ValueError(
                f"parents must name for each of {sites - 1} sites after the first one that comes "
                f"before it, but is {self._parents}"
            )
        self._site, self._pair = alone, together

    def fit(self, averages: ArrayLike, sigma: ArrayLike | None = None) -> TreeModel:
        """The distribution of most entropy with the averages.

        Args:
            averages: F, shape (features,).
            sigma: standard errors of the averages, as for `MaxEnt.fit`; exact by default.

        Returns:
            The model.

        Raises:
            InfeasibleError: a ValueError: the multipliers run away, since no distribution has the
                averages, or none that gives every state a chance.
            ValueError: a shape that doesn't fit, NaN, or a negative sigma.
        """
        count = len(self._site)
        target = np.array(averages, dtype=np.float64)
        noise = np.zeros(count) if sigma is None else np.array(sigma, dtype=np.float64)
        for name, x in (("averages", target), ("sigma", noise)):
            if x.shape != (count,) or not np.isfinite(x).all():
                raise ValueError(f"{name} must be {count} finite numbers, but is {x.tolist()}")
        if (noise < 0).any():
            raise ValueError("sigma must not be negative")

        def dual(lam: np.ndarray) -> Point:
            at = torch.tensor(lam, device=self._site.device, requires_grad=True)
            log_z = self._log_partition(*self._potentials(at))
            (slope,) = torch.autograd.grad(log_z, at, create_graph=True)

            def hessian() -> np.ndarray:
                rows = [torch.autograd.grad(g, at, retain_graph=True)[0] for g in slope]
                return torch.stack(rows).cpu().numpy() + np.diag(noise**2)

            value = float(log_z.detach()) + lam @ target + (noise**2 * lam**2).sum() / 2
            return Point(
                float(value), slope.detach().cpu().numpy() + target + noise**2 * lam, hessian
            )

        found = minimise(dual, np.zeros(count))
        if found is None:
            raise InfeasibleError(
                "averages: no distribution that leaves every state a chance has them; "
                "if they are noisy, give sigma"
            )
        return self._model(*found, dual, noise)

    def _potentials(self, lam: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.einsum("k,kiq->iq", lam, self._site), -torch.einsum(
            "k,kiqr->iqr", lam, self._pair
        )

    def _log_partition(self, alone: Tensor, together: Tensor) -> Tensor:
        messages = list(alone)
        for child in range(len(messages) - 1, 0, -1):
            parent = self._parents[child - 1]
            sent = torch.logsumexp(messages[child][:, None] + together[child - 1], 0)
            messages[parent] = messages[parent] + sent
        return torch.logsumexp(messages[0], 0)

    def _model(
        self,
        lam: np.ndarray,
        iterations: int,
        dual: Callable[[np.ndarray], Point],
        noise: np.ndarray,
    ) -> TreeModel:
        at = torch.tensor(lam, device=self._site.device)
        alone, together = (x.requires_grad_() for x in self._potentials(at))
        log_z = self._log_partition(alone, together)
        # Marginals are the derivatives of ln Z in the potentials.
        single, pairs = torch.autograd.grad(log_z, (alone, together), allow_unused=True)
        pairs = torch.zeros_like(together) if pairs is None else pairs
        means = torch.einsum("iq,kiq->k", single, self._site) + torch.einsum(
            "iqr,kiqr->k", pairs, self._pair
        )
        hessian = dual(lam).hessian()
        means_ = means.cpu().numpy()
        return TreeModel(
            multipliers=lam,
            log_partition=float(log_z.detach()),
            means=means_,
            covariance=hessian - np.diag(noise**2),
            sensitivity=-np.linalg.pinv(hessian, hermitian=True),
            site_marginals=single.cpu().numpy(),
            pair_marginals=pairs.cpu().numpy(),
            entropy=float(log_z.detach()) + float(lam @ means_),
            iterations=iterations,
        )
