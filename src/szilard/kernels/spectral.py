"""Entropy of a large positive semi-definite matrix's spectrum without its eigenvalues.

With f(x) = x^t and g(x) = -x^t log x^t, the entropy of the weights f(x_i) / sum_j f(x_j) of the
eigenvalues x_i is log S + G / S, where S = tr f(A) and G = tr g(A). Three steps give both traces:

1. A block Krylov subspace. Of its Ritz pairs (theta, u) those are kept whose residual r = |Au - theta u|
   is small: there u'g(A)u is g(theta) up to t^2 r^2 / theta (Jensen's gap of g, exact at t = 1).
2. Stochastic Lanczos quadrature on their complement: for random signs z, projected onto it, z'g(A)z is
   read off the Lanczos matrix of z by the Gauss rule and by the Gauss-Radau rule with a node at 0. They
   err to opposite sides, because the high derivatives of f and g keep their signs on (0, 1].
3. Control variates. The traces of I, A and A^2 are known, hence those of any parabola. Only what the
   best parabola leaves of g is left to chance.

Sources: Golub & Meurant, Matrices, Moments and Quadrature (1994), for the two rules; Ubaru, Chen & Saad,
Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature (2017); Musco & Musco, Randomized Block
Krylov Methods for Stronger and Faster Approximate SVD (2015); Meyer, Musco, Musco & Woodruff, Hutch++
(2021), for the projection.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

# Vectors multiplied at once, blocks of them that span the Krylov subspace, Lanczos steps between checks.
_WIDTH, _BLOCKS, _STEPS, _MOST_STEPS = 32, 12, 8, 64
# Shares of the tolerance: of the Ritz pairs, and of the rules before more steps give way to more probes.
_RITZ_SHARE, _RULES_SHARE = 0.1, 0.25
# Relative rounding of the known traces, which the coefficients of a parabola multiply.
_ROUNDING = 1e-14


@dataclass(frozen=True, slots=True)
class EntropyEstimate:
    """An entropy, what it may be wrong by, and what it cost.

    Attributes:
        entropy: in nats.
        error: both truncations plus three standard errors of the random part, in nats.
        products: products of the matrix with a block of vectors.
    """

    entropy: float
    error: float
    products: int

    def meets(self, tolerance: float, n: int) -> bool:
        """Whether the error is within the relative tolerance, or the rounding of n eigenvalues."""
        return self.error <= max(tolerance * self.entropy, _ROUNDING * n)


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known before any probe: S and G on the Ritz pairs, the rest of three traces.

    Attributes:
        t: power of the eigenvalues.
        trace: of the matrix.
        power, plogp: f and g summed over the Ritz pairs.
        error: what the Ritz pairs may add to S log S + G.
        moments: traces of I, A and A^2 on the complement of the Ritz vectors.
        rounding: of the moments.
    """

    t: float
    trace: float
    power: float
    plogp: float
    error: float
    moments: Float[Tensor, "3"]
    rounding: Float[Tensor, "3"]


def entropy_estimate(
    matrix: Float[Tensor, "n n"],
    t: float,
    tolerance: float,
    rng: np.random.Generator,
    *,
    max_products: int,
) -> EntropyEstimate:
    """Entropy of the t-th powers of a matrix's eigenvalues.

    Args:
        matrix: symmetric float64, eigenvalues in [0, 1] up to rounding, the largest 1.
        t: power, at least 1.
        tolerance: relative error at which to stop.
        rng: generator of start vectors and probes.
        max_products: block products after which to stop all the same.

    Returns:
        The estimate; `meets` tells whether it arrived at the tolerance.
    """
    n = len(matrix)
    flat = matrix.reshape(-1)
    trace, square = matrix.diagonal().sum().item(), torch.dot(flat, flat).item()

    theta, vectors, residual = _ritz_pairs(matrix, rng)
    products = -(-len(theta) // _WIDTH)
    f, g = _functions(theta, t)
    total = trace if t == 1 else f.sum().item()
    at_least = math.log(max(total, 1.0)) + g.sum().item() / total
    allowed = max(tolerance * at_least, _ROUNDING * n) * total
    # Of g, and of f times the weight |1 - G / S| < log n at which it enters the entropy.
    gap = t**2 / theta.clamp(min=1e-300)
    if t != 1:
        gap += math.log(n) * t * (t - 1) * theta.clamp(min=1e-300) ** (min(t, 2) - 2)
    slack = (gap * residual**2).cumsum(0)
    kept = int((slack <= _RITZ_SHARE * allowed).sum())
    theta, vectors, residual = theta[:kept], vectors[:kept], residual[:kept]
    # |Au|^2 = theta^2 + r^2.
    left = (n - kept, trace - theta.sum().item(), square - (theta**2 + residual**2).sum().item())
    known = _Known(
        t,
        trace,
        power=f[:kept].sum().item(),
        plogp=g[:kept].sum().item(),
        error=slack[kept - 1].item() if kept else 0.0,
        moments=torch.tensor(left, dtype=torch.float64),
        rounding=_ROUNDING * torch.tensor([0.0, trace, square], dtype=torch.float64),
    )
    if kept == n:
        entropy = math.log(known.power) + known.plogp / known.power
        return EntropyEstimate(entropy, known.error / known.power, products)

    nodes, weights = torch.empty(2, 0, 2, _MOST_STEPS, dtype=torch.float64)
    while True:
        for more in _probe(matrix, vectors, rng):
            products += _STEPS
            tried = torch.cat([nodes, more[0]]), torch.cat([weights, more[1]])
            entropy, error, truncation = _combine(*tried, known)
            estimate = EntropyEstimate(entropy, error, products)
            if estimate.meets(tolerance, n) or products + _STEPS > max_products:
                return estimate
            if truncation <= _RULES_SHARE * tolerance * entropy:
                break
        nodes, weights = tried


def _functions(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """The functions f and g; eigenvalues below zero are rounding."""
    power = x.clamp(min=0) ** t
    return power, torch.special.entr(power)


def _ritz_pairs(
    matrix: Float[Tensor, "n n"], rng: np.random.Generator
) -> tuple[Float[Tensor, "k"], Float[Tensor, "k n"], Float[Tensor, "k"]]:
    """Values, vectors (as rows) and residuals, values in descending order."""
    n = len(matrix)
    width = min(_WIDTH, n)
    block = _to(matrix, rng.standard_normal((width, n)))
    basis = images = block[:0]
    for _ in range(max(1, min(_BLOCKS, n // (2 * width)))):
        block = _orthonormal(block, basis)
        basis = torch.cat([basis, block])
        block = block @ matrix
        images = torch.cat([images, block])
    projected = basis @ images.mT
    theta, rotation = torch.linalg.eigh((projected + projected.mT) / 2)
    rotation = rotation.flip(1).mT
    vectors, theta = rotation @ basis, theta.flip(0)
    return theta.cpu(), vectors, (rotation @ images - theta[:, None] * vectors).norm(dim=1).cpu()


def _orthonormal(block: Float[Tensor, "b n"], basis: Float[Tensor, "k n"]) -> Float[Tensor, "b n"]:
    # Twice is enough, also where the subspace is exhausted and the block is rounding.
    for _ in range(2):
        block = torch.linalg.qr(_complement(block, basis).mT).Q.mT
    return block


def _complement(block: Float[Tensor, "b n"], basis: Float[Tensor, "k n"]) -> Float[Tensor, "b n"]:
    return block - (block @ basis.mT) @ basis


def _probe(
    matrix: Float[Tensor, "n n"], vectors: Float[Tensor, "k n"], rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rules of a block of probes, better every `_STEPS` steps of Lanczos' recurrence."""
    start = _to(matrix, rng.integers(0, 2, (_WIDTH, len(matrix))) * 2.0 - 1.0)
    start = _complement(_complement(start, vectors), vectors)
    length = start.norm(dim=1, keepdim=True)
    before, current = torch.zeros_like(start), start / length
    beta = torch.zeros_like(length)
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for step in range(1, _MOST_STEPS + 1):
        after = current @ matrix - beta * before
        alpha = (after * current).sum(1, keepdim=True)
        after -= alpha * current
        diagonal.append(alpha.cpu())
        if step % _STEPS == 0:
            nodes, weights = _rules(torch.cat(diagonal, 1), torch.cat(beside, 1))
            yield nodes, weights * length.cpu()[:, :, None] ** 2
        beta = after.norm(dim=1, keepdim=True)
        beside.append(beta.cpu())
        before, current = current, after / beta.clamp(min=1e-300)


def _rules(
    alpha: Float[Tensor, "b m"], beta: Float[Tensor, "b m-1"]
) -> tuple[Float[Tensor, "b 2 steps"], Float[Tensor, "b 2 steps"]]:
    """Nodes and weights of the Gauss and the Gauss-Radau rule, padded with nodes of weight 0."""
    # The last entry at which 0 is an eigenvalue of the Lanczos matrix, by its LDL' pivots.
    pivot = alpha[:, 0]
    for j in range(1, alpha.shape[1] - 1):
        pivot = (alpha[:, j] - beta[:, j - 1] ** 2 / pivot.clamp(min=1e-300)).clamp(min=0)
    last = torch.minimum(beta[:, -1] ** 2 / pivot.clamp(min=1e-300), alpha[:, -1])
    both = torch.stack([alpha, torch.cat([alpha[:, :-1], last[:, None]], 1)], 1)
    off = beta[:, None].expand(-1, 2, -1)
    nodes, vectors = torch.linalg.eigh(both.diag_embed() + off.diag_embed(1) + off.diag_embed(-1))
    room = (0, _MOST_STEPS - alpha.shape[1])
    pad = torch.nn.functional.pad
    return pad(nodes, room), pad(vectors[..., 0, :] ** 2, room)


def _combine(
    nodes: Float[Tensor, "p 2 steps"], weights: Float[Tensor, "p 2 steps"], known: _Known
) -> tuple[float, float, float]:
    """Entropy, its error, and the part of it that is the rules', from all probes so far."""
    probes = len(nodes)
    weights = weights[..., None] / (2 * probes)
    largest = nodes.max().clamp(min=1e-300)
    scale = largest ** torch.arange(3)
    monomials = (nodes / largest)[..., None] ** torch.arange(3)
    functions = torch.stack(_functions(nodes, known.t), -1)
    gauss, radau = (weights * functions).sum((0, 2))
    candidates = []
    for terms in (1, 2, 3):
        parabola = monomials[..., :terms]
        root = weights.sqrt()
        fit = torch.linalg.lstsq(
            (root * parabola).reshape(-1, terms), (root * functions).reshape(-1, 2)
        ).solution
        power, plogp = ((known.moments / scale)[:terms] @ fit).tolist()
        total = known.trace if known.t == 1 else known.power + power
        mean = (known.plogp + plogp) / total
        # d(log S + G / S) = (dG + (1 - G / S) dS) / S, and S is known at t = 1.
        slope = torch.tensor([0.0 if known.t == 1 else 1 - mean, 1.0], dtype=torch.float64)
        truncation = ((gauss - radau).abs() @ slope.abs()).item()
        # The residuals of a least-squares fit with a constant add up to zero: their spread is left.
        chance = ((weights * (functions - parabola @ fit)).sum((1, 2)) @ slope).norm().item()
        chance *= 3 * math.sqrt(probes / (probes - terms))
        rounding = ((known.rounding / scale)[:terms] @ (fit @ slope).abs()).item()
        error = (chance + truncation + rounding + known.error) / total
        candidates.append((math.log(total) + mean, error, truncation / total))
    return min(candidates, key=lambda candidate: candidate[1])


def _to(matrix: Tensor, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(matrix.device)
