"""Maximum-entropy inference: the least committal distribution with the averages that were measured.

With prior weights g_s, features f_sk and measured averages F_k:

1. p_s = g_s exp(-f_s . lambda) / Z(lambda): the sign makes lambda an inverse temperature where f is
   an energy.
2. lambda minimises the convex dual Gamma(lambda) = ln Z(lambda) + lambda . F, whose gradient is
   F - <f> and whose Hessian is the covariance of the features: Newton steps with backtracking.
3. Averages outside the convex hull of the features' rows: no distribution has them, and a separating
   direction proves it. On the boundary of the hull: the states of its face carry all probability.

Source: Rogers, Beck, Rempe, Information Theory and Statistical Mechanics Revisited (arXiv 1105.5662;
J. Stat. Phys. 145:385, 2011), and Jaynes, Phys. Rev. 106:620 (1957), on which it builds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import optimize, sparse
from torch import Tensor

from szilard.physics._dual import MAX_STEPS, InfeasibleError, Point, minimise

Array = np.ndarray | Tensor
Relation = Literal["==", "<=", ">="]

# Where a state is this much rarer than under the prior, the averages may sit on the hull's boundary,
# where multipliers run away: -ln of about 1e-7.
_SUSPICIOUS = 16.0
_LP_TOLERANCE = 1e-7


class BoundaryWarning(UserWarning):
    """The averages sit on the boundary of what is possible: some states get probability 0."""


@dataclass(frozen=True)
class MaxEntModel:
    """A maximum-entropy distribution and what its dual says about the measurements.

    Attributes:
        names: of the features.
        p: probability of each state, shape (states,).
        multipliers: lambda, shape (features,); 0 where a feature was `dropped`.
        log_partition: ln Z, with the prior's weights as they were given (counting weights give the
            physical partition function).
        averages: F, as asked for, shape (features,).
        means: <f> under p, shape (features,).
        covariance: of the features under p, shape (features, features): minus the susceptibility,
            d<f>/dlambda = -covariance.
        sensitivity: dlambda/dF, shape (features, features); minus the inverse of the covariance, to
            which the variances of noisy averages are added; 0 where a feature was dropped.
        sigma: standard errors of the averages, None where they are exact.
        support: the states that may occur, shape (states,).
        dropped: names of the features that the others and the constant determine.
        iterations: Newton steps.
        gain: information that the last stage added, KL from the model before to this one, in nats;
            from the prior for a first stage.
    """

    names: tuple[str, ...]
    p: Float[Array, " states"]
    multipliers: Float[Array, " features"]
    log_partition: float
    averages: Float[Array, " features"]
    means: Float[Array, " features"]
    covariance: Float[Array, "features features"]
    sensitivity: Float[Array, "features features"]
    sigma: Float[Array, " features"] | None
    support: Bool[Array, " states"]
    dropped: tuple[str, ...]
    iterations: int
    gain: float
    features: Float[Array, "states features"]
    prior: Float[Array, " states"]
    relations: tuple[Relation, ...]

    @cached_property
    def entropy(self) -> float:
        """Shannon entropy of p, -sum p ln p, in nats."""
        p = torch.as_tensor(self.p)
        return float(torch.special.entr(p).sum())

    @cached_property
    def divergence(self) -> float:
        """Information about the states that the averages hold, KL(p || prior), in nats."""
        return divergence(self.p, self.prior)

    @property
    def multiplier_errors(self) -> Float[Array, " features"]:
        """Standard errors of the multipliers that `sigma` implies, 0 for exact averages."""
        if self.sigma is None:
            return 0 * self.multipliers
        squares: Any = (self.sensitivity * self.sigma[None, :]) ** 2
        return squares.sum(1) ** 0.5

    def extend(
        self,
        features: Array | Mapping[str, Array],
        averages: Array | Sequence[float],
        sigma: Array | Sequence[float] | None = None,
        *,
        relations: Sequence[Relation] | None = None,
    ) -> MaxEntModel:
        """The model with more measurements, found from this one; its `gain` is what they added.

        Where the averages are exact and come from one and the same truth, gains over successive
        stages add up to the divergence from the prior (Pythagoras).

        Args:
            features: the new features, as for `MaxEnt`.
            averages: their averages.
            sigma: their standard errors; where left out, they are exact.
            relations: as for `MaxEnt.fit`.

        Returns:
            A new model with the earlier features first.

        Raises:
            ValueError: as `MaxEnt` and `MaxEnt.fit`, and for a name that is taken.
        """
        columns, names = _columns(features, None, len(self.p), start=len(self.names))
        if taken := set(names) & set(self.names):
            raise ValueError(f"features must have new names, but {sorted(taken)} are taken")
        _check_length("averages", averages, len(names))
        problem = MaxEnt(
            _like(torch.cat([_float64(self.features), columns], dim=1), self.p),
            self.prior,
            (*self.names, *names),
        )
        old, new = self.sigma, sigma
        errors = None
        if old is not None or new is not None:
            errors = torch.cat(
                [
                    torch.zeros(len(self.names)) if old is None else _float64(old),
                    torch.zeros(len(names)) if new is None else _float64(new),
                ]
            )
        model = problem.fit(
            torch.cat([_float64(self.averages), _float64(averages)]),
            errors,
            relations=(*self.relations, *(relations or _equalities(len(names)))),
            start=torch.cat([_float64(self.multipliers), torch.zeros(len(names)).double()]),
        )
        return replace(model, gain=divergence(model.p, self.p))

    def plot(self, labels: Sequence[str] | None = None, top: int = 40) -> Any:
        """The most likely states beside their prior, and the multipliers with their errors.

        Args:
            labels: names of the states; their numbers by default.
            top: how many states are shown.

        Returns:
            A plotly Figure.
        """
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        p, prior = np.asarray(self.p), np.asarray(self.prior)
        order = np.argsort(-p, kind="stable")[:top]
        shown = [labels[i] if labels is not None else str(i) for i in order]
        figure = make_subplots(1, 2, subplot_titles=("probability", "multipliers"))
        figure.add_bar(x=shown, y=p[order], name="model", row=1, col=1)
        weights = prior[order] / prior.sum()
        figure.add_scatter(x=shown, y=weights, mode="markers", name="prior", row=1, col=1)
        figure.add_trace(
            go.Scatter(
                x=list(self.names),
                y=np.asarray(self.multipliers),
                error_y={"type": "data", "array": np.asarray(self.multiplier_errors)},
                mode="markers",
                showlegend=False,
            ),
            row=1,
            col=2,
        )
        return figure


class MaxEnt:
    """The states, what can be measured on them, and what is known of them before.

    Args:
        features: f, shape (states, features), one column a feature; or a mapping from a feature's
            name to its values, shape (states,). Tensors stay on their device; all is float64.
        prior: weights g >= 0 of the states, such as degeneracies or quadrature weights, shape
            (states,); all 1 by default. They need not sum to 1; a state of weight 0 never occurs.
        names: of the columns; numbers by default.

    Raises:
        ValueError: shapes that don't fit, NaN or infinity, negative weights or none, names twice.

    Examples:
        A die whose mean is 4.5, and how much hotter than a fair one it is:

        >>> die = MaxEnt({"eyes": np.arange(1.0, 7)}).fit([4.5])
        >>> die.p.round(4)
        array([0.0544, 0.0788, 0.1142, 0.1654, 0.2398, 0.3475])
        >>> float(die.multipliers[0].round(4)), round(die.entropy, 4)
        (-0.371, 1.6136)

    Source: Rogers, Beck, Rempe 2011 (arXiv 1105.5662); Jaynes 1957, section 2.
    """

    def __init__(
        self,
        features: Array | Mapping[str, Array],
        prior: Array | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        columns, self.names = _columns(features, names, None)
        example = next(iter(features.values())) if isinstance(features, Mapping) else features
        weights = torch.ones_like(columns[:, 0]) if prior is None else _float64(prior)
        if weights.shape != columns.shape[:1]:
            raise ValueError(
                f"prior must have one weight for each of {columns.shape[0]} states, "
                f"but has the shape {tuple(weights.shape)}"
            )
        if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
            raise ValueError("prior must be finite and not negative")
        if not bool((weights > 0).any()):
            raise ValueError("prior must give at least one state a weight above 0")
        self._features, self._prior = columns, weights
        self._example = example

    def fit(
        self,
        averages: Array | Sequence[float],
        sigma: Array | Sequence[float] | None = None,
        *,
        relations: Sequence[Relation] | None = None,
        start: Array | None = None,
    ) -> MaxEntModel:
        """The distribution of least information relative to the prior that has the averages.

        Args:
            averages: F, one for each feature, in its unit.
            sigma: standard errors of the averages, 0 where one is exact; the dual then carries
                sum sigma^2 lambda^2 / 2, as for a Gaussian likelihood of the averages.
            relations: whether <f> is to be "==" to the average, at most it ("<="), or at least it
                (">="); all "==" by default.
            start: multipliers to begin with.

        Returns:
            The model.

        Raises:
            InfeasibleError: a ValueError: no distribution on the states has these averages; its
                `direction` proves it.
            ValueError: shapes that don't fit, NaN, a negative sigma or an unknown relation.

        Warns:
            BoundaryWarning: the averages are possible only if some states never occur, as the
                frequencies of a finite sample often are; give `sigma` where they are noisy.
        """
        target = self._argument("averages", averages)
        errors = torch.zeros_like(target) if sigma is None else self._argument("sigma", sigma)
        if bool((errors < 0).any()):
            raise ValueError("sigma must not be negative")
        relations = _equalities(len(self.names)) if relations is None else tuple(relations)
        _check_length("relations", relations, len(self.names))
        if unknown := set(relations) - {"==", "<=", ">="}:
            raise ValueError(f'relations must be "==", "<=" or ">=", but hold {sorted(unknown)}')
        start_at = torch.zeros_like(target) if start is None else self._argument("start", start)
        support = self._prior > 0
        solution = _solve(
            self._features[support], self._prior[support], target, errors, relations, start_at
        )
        if solution is None or solution.suspicious:
            possible = _possible(self._features[support], target, errors, relations, self.names)
            if not bool(possible.all()):
                warnings.warn(
                    f"averages lie on the boundary of what is possible: {int((~possible).sum())} of "
                    f"{len(possible)} states get probability 0 and multipliers hold only on the "
                    "others; if the averages are noisy, give sigma",
                    BoundaryWarning,
                    stacklevel=2,
                )
                support = support.clone()
                support[support.clone()] = possible
                solution = _solve(
                    self._features[support],
                    self._prior[support],
                    target,
                    errors,
                    relations,
                    torch.zeros_like(target),
                )
        if solution is None:
            raise RuntimeError(
                f"no convergence within {MAX_STEPS} Newton steps: averages are possible, but too "
                "close to the boundary of what is; give sigma"
            )
        p = torch.zeros_like(self._prior)
        p[support] = solution.p
        used = self._features[support]
        means = solution.p @ used
        centered = used - means
        covariance = centered.T @ (solution.p[:, None] * centered)
        sensitivity = torch.zeros_like(covariance)
        kept = solution.kept
        if kept.numel():
            block = kept[:, None], kept
            hessian = covariance[block] + torch.diag(errors[kept] ** 2)
            scale = hessian.diagonal().clamp(min=torch.finfo(hessian.dtype).tiny).sqrt()
            inverse = torch.linalg.pinv(hessian / scale[:, None] / scale, hermitian=True)
            sensitivity[block] = -inverse / scale[:, None] / scale
        left = set(range(len(self.names))) - set(kept.tolist())
        model = MaxEntModel(
            names=self.names,
            p=self._out(p),
            multipliers=self._out(solution.multipliers),
            log_partition=solution.log_partition,
            averages=self._out(target),
            means=self._out(means),
            covariance=self._out(covariance),
            sensitivity=self._out(sensitivity),
            sigma=None if sigma is None else self._out(errors),
            support=self._out(support),
            dropped=tuple(self.names[k] for k in sorted(left)),
            iterations=solution.iterations,
            gain=0.0,
            features=self._out(self._features),
            prior=self._out(self._prior),
            relations=relations,
        )
        return replace(model, gain=model.divergence)

    def _argument(self, name: str, values: Array | Sequence[float]) -> Tensor:
        _check_length(name, values, len(self.names))
        x = _float64(values).to(self._features.device)
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{name} must be finite, but is {x.tolist()}")
        return x

    def _out(self, x: Tensor) -> Any:
        return _like(x, self._example)


def divergence(p: Float[Array, " states"], q: Float[Array, " states"]) -> float:
    """KL(p || q) in nats, +inf where p has a state that q lacks; q may be unnormalised weights.

    Examples:
        >>> round(divergence(np.array([1.0, 0.0]), np.array([2.0, 2.0])), 4)
        0.6931
    """
    a, b = _float64(p), _float64(q)
    b = b / b.sum()
    if bool(((a > 0) & (b == 0)).any()):
        return float("inf")
    terms = torch.where(a > 0, a * (a.log() - b.log()), 0.0)
    return max(0.0, float(terms.sum()))


def product_states(*alphabets: Sequence[float]) -> Float[np.ndarray, "states sites"]:
    """All joint states of several sites, the last one changing fastest; features are columns of it.

    Examples:
        >>> product_states([0, 1], [0, 1, 2]).shape
        (6, 2)
    """
    return np.array(list(product(*alphabets)), dtype=np.float64).reshape(-1, len(alphabets))


def push_forward(
    prior: Float[np.ndarray, " microstates"],
    label: Callable[[int], Any] | Sequence[Any] | np.ndarray,
) -> tuple[list[Any], Float[np.ndarray, " labels"]]:
    """The prior over reduced descriptions: the summed weight of the microstates of each label.

    Counting what cannot be told apart is all that indistinguishability asks for: when N labelled
    particles are described by their number in a small part of the volume, the 1/n! of Gibbs appears by
    itself.

    Args:
        prior: weights of the microstates.
        label: the description of each microstate, as a sequence or as a function of its index.

    Returns:
        The labels, sorted, and their weights.

    Raises:
        ValueError: not as many labels as weights.

    Examples:
        >>> push_forward(np.full(4, 0.25), [0, 1, 1, 2])
        ([0, 1, 2], array([0.25, 0.5 , 0.25]))

    Source: Rogers et al. 2011, on distinguishable and indistinguishable particles.
    """
    weights = np.asarray(prior, dtype=np.float64)
    labels = [label(i) for i in range(len(weights))] if callable(label) else list(label)
    if len(labels) != len(weights):
        raise ValueError(
            f"label must have one entry for each of {len(weights)} microstates, but has {len(labels)}"
        )
    kinds = sorted(set(labels))
    place = {kind: i for i, kind in enumerate(kinds)}
    index: Int[np.ndarray, " microstates"] = np.array([place[kind] for kind in labels])
    return kinds, np.bincount(index, weights=weights, minlength=len(kinds))


def quadrature(
    low: float, high: float, points: int = 400
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Gauss-Legendre nodes and weights: a continuous variable as states and their prior.

    A density is the model's p over these weights. Entropies of densities depend on the unit of x, so
    only `divergence` and differences of entropies mean something.

    Examples:
        >>> x, dx = quadrature(-8, 8)
        >>> normal = MaxEnt({"x": x, "x^2": x**2}, dx).fit([0, 1])
        >>> normal.multipliers.round(6) + 0.0
        array([0. , 0.5])
    """
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"low must be below high and both finite, but they are {low} and {high}")
    if points < 2:
        raise ValueError(f"points must be at least 2, but is {points}")
    x, w = np.polynomial.legendre.leggauss(points)
    half = (high - low) / 2
    return low + half * (x + 1), half * w


@dataclass(frozen=True)
class _Solution:
    p: Tensor
    multipliers: Tensor
    log_partition: float
    kept: Tensor
    iterations: int
    suspicious: bool


def _solve(
    features: Tensor,
    prior: Tensor,
    averages: Tensor,
    sigma: Tensor,
    relations: Sequence[Relation],
    start: Tensor,
) -> _Solution | None:
    """Newton on the dual; None where it does not converge, as for averages outside the hull."""
    # Centred and scaled to a range of 1; ">=" is "<=" of the feature's negative.
    middle = (features.amax(0) + features.amin(0)) / 2
    scale = (features.amax(0) - features.amin(0)).clone()
    constant = scale <= 1e-12 * features.abs().amax(0)
    scale[constant] = 1.0
    for k, relation in enumerate(relations):
        if relation == ">=":
            scale[k] = -scale[k]
    f = (features - middle) / scale
    target = (averages - middle) / scale
    noise = (sigma / scale) ** 2
    one_sided = torch.tensor([r != "==" for r in relations], device=f.device)
    kept = _independent(f, (noise == 0) & ~one_sided)
    if not _consistent(f, target, kept, (noise == 0) & ~one_sided):
        return None
    f, target, noise, one_sided = f[:, kept], target[kept], noise[kept], one_sided[kept]
    log_prior = prior.log()
    lam = (start * scale)[kept]

    def dual(at: np.ndarray) -> Point:
        lam = torch.from_numpy(at).to(f.device)
        log_weights = log_prior - f @ lam
        log_z = torch.logsumexp(log_weights, 0)
        p = (log_weights - log_z).exp()
        means = p @ f

        def hessian() -> np.ndarray:
            centered = f - means
            return (centered.T @ (p[:, None] * centered) + torch.diag(noise)).cpu().numpy()

        value = log_z + lam @ target + (noise * lam**2).sum() / 2
        return Point(float(value), (target - means + noise * lam).cpu().numpy(), hessian)

    found = minimise(dual, lam.cpu().numpy(), one_sided.cpu().numpy())
    if found is None:
        return None
    lam = torch.from_numpy(found[0]).to(f.device)
    log_weights = log_prior - f @ lam
    p = (log_weights - torch.logsumexp(log_weights, 0)).exp()
    multipliers = torch.zeros_like(averages)
    multipliers[kept] = lam / scale[kept]
    log_z = float(torch.logsumexp(log_prior - features @ multipliers, 0))
    share = p.log() - (log_prior - torch.logsumexp(log_prior, 0))
    return _Solution(p, multipliers, log_z, kept, found[1], bool(share.min() < -_SUSPICIOUS))


def _independent(f: Tensor, exact: Tensor) -> Tensor:
    """Features that earlier ones and the constant do not determine; noisy ones count as independent."""
    columns = torch.cat([torch.ones_like(f[:, :1]), f], dim=1)
    kept: list[int] = []
    basis = columns[:, :1] / columns[:, :1].norm()
    for k in range(f.shape[1]):
        column = f[:, k]
        left = column
        for _ in range(2):  # twice: once leaves rounding along the basis
            left = left - basis @ (basis.T @ left)
        if not bool(exact[k]):
            kept.append(k)
        elif float(left.norm()) > 1e-9 * max(float(column.norm()), 1e-300):
            kept.append(k)
            basis = torch.cat([basis, (left / left.norm())[:, None]], dim=1)
    return torch.tensor(kept, dtype=torch.long, device=f.device)


def _consistent(f: Tensor, target: Tensor, kept: Tensor, exact: Tensor) -> bool:
    """Whether features that were dropped are asked for what the others imply."""
    dropped = [k for k in range(f.shape[1]) if k not in set(kept.tolist())]
    if not dropped:
        return True
    used = kept[exact[kept]]
    basis = torch.cat([torch.ones_like(f[:, :1]), f[:, used]], dim=1)
    implied = torch.cat([torch.ones_like(target[:1]), target[used]])
    driver = "gelsd" if f.device.type == "cpu" else None
    weights = torch.linalg.lstsq(basis, f[:, dropped], driver=driver).solution
    return bool((implied @ weights - target[dropped]).abs().max() < 1e-8)


def _possible(
    features: Tensor,
    averages: Tensor,
    sigma: Tensor,
    relations: Sequence[Relation],
    names: Sequence[str],
) -> Tensor:
    """Which states can occur at all given the exact averages, by linear programs.

    Raises:
        InfeasibleError: no distribution has the averages.
    """
    exact = (sigma == 0).cpu().numpy()
    f_all = features.cpu().numpy()
    possible = torch.ones(len(f_all), dtype=torch.bool, device=features.device)
    if not exact.any():
        return possible
    f, target = f_all[:, exact], averages.cpu().numpy()[exact]
    low, high = f.min(0), f.max(0)
    middle, scale = (low + high) / 2, np.where(high > low, high - low, 1.0)
    f, target = (f - middle) / scale, (target - middle) / scale
    kinds = [relation for relation, yes in zip(relations, exact, strict=True) if yes]
    states, count = f.shape
    # Separating direction: c . f <= b on every state, c . F - b as large as can be; moving an average
    # in the way that its relation allows must not help.
    limits = {"==": (-1, 1), "<=": (-1, 0), ">=": (0, 1)}
    found = optimize.linprog(
        np.append(-target, 1.0),
        A_ub=np.hstack([f, -np.ones((states, 1))]),
        b_ub=np.zeros(states),
        bounds=[*(limits[kind] for kind in kinds), (None, None)],
        method="highs",
    )
    if -found.fun > _LP_TOLERANCE:
        raise _infeasible(found.x[:count], f_all, averages, exact, scale, names)
    # The largest set of states that can have mass together: scaled masses q >= t, 0 <= t <= 1.
    equal = np.array([kind == "==" for kind in kinds])
    rows = np.hstack([(f - target).T, (f - target).T])
    signs = np.where([kind == ">=" for kind in kinds], -1.0, 1.0)[:, None]
    found = optimize.linprog(
        np.concatenate([-np.ones(states), np.zeros(states)]),
        A_eq=sparse.csr_array(rows[equal]) if equal.any() else None,
        b_eq=np.zeros(equal.sum()) if equal.any() else None,
        A_ub=sparse.csr_array((signs * rows)[~equal]) if not equal.all() else None,
        b_ub=np.zeros((~equal).sum()) if not equal.all() else None,
        bounds=[(0, 1)] * states + [(0, None)] * states,
        method="highs",
    )
    return torch.from_numpy(found.x[:states] > 0.5).to(features.device)


def _infeasible(
    c: np.ndarray,
    features: np.ndarray,
    averages: Tensor,
    exact: np.ndarray,
    scale: np.ndarray,
    names: Sequence[str],
) -> InfeasibleError:
    direction = np.zeros(features.shape[1])
    direction[exact] = c / scale
    direction /= np.abs(direction).max()
    direction[np.abs(direction) < 1e-9] = 0
    bound = float((features @ direction).max())
    asked = float(averages.cpu().numpy() @ direction)
    terms = " + ".join(
        f"{weight:.4g} {name}" for weight, name in zip(direction, names, strict=True) if weight
    )
    return InfeasibleError(
        f"averages: no distribution on these states has them: {terms} is at most {bound:.6g} on "
        f"every state, but would have to average {asked:.6g}",
        direction,
        bound,
        asked,
    )


def _columns(
    features: Array | Mapping[str, Array],
    names: Sequence[str] | None,
    states: int | None,
    start: int = 0,
) -> tuple[Tensor, tuple[str, ...]]:
    if isinstance(features, Mapping):
        if names is not None:
            raise ValueError("names must be left out where features is a mapping")
        if not features:
            raise ValueError("features must hold at least one feature")
        parts = {name: _float64(values) for name, values in features.items()}
        size = len(next(iter(parts.values())).reshape(-1)) if states is None else states
        for name, part in parts.items():
            if part.shape != (size,):
                raise ValueError(
                    f"features[{name!r}] must have the shape ({size},), but has {tuple(part.shape)}"
                )
        matrix, found = torch.stack(list(parts.values()), dim=1), tuple(parts)
    else:
        matrix = _float64(features)
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise ValueError(
                f"features must have the shape (states, features), but has {tuple(matrix.shape)}"
            )
        if states is not None and len(matrix) != states:
            raise ValueError(f"features must have {states} rows, but has {len(matrix)}")
        found = tuple(names or map(str, range(start, start + matrix.shape[1])))
    if len(found) != matrix.shape[1]:
        raise ValueError(
            f"names must name {matrix.shape[1]} features, but there are {len(found)} of them"
        )
    if len(set(found)) != len(found):
        raise ValueError(f"names must differ, but are {list(found)}")
    if not bool(torch.isfinite(matrix).all()):
        bad = [
            name
            for name, fine in zip(found, torch.isfinite(matrix).all(0), strict=True)
            if not fine
        ]
        raise ValueError(f"features must be finite, but {bad} are not")
    return matrix, found


def _check_length(name: str, values: Any, count: int) -> None:
    shape = tuple(np.shape(values)) if not isinstance(values, Tensor) else tuple(values.shape)
    if shape != (count,):
        raise ValueError(
            f"{name} must have one entry for each of {count} features, but has the shape {shape}"
        )


def _float64(x: Any) -> Tensor:
    return (
        x.detach().double()
        if isinstance(x, Tensor)
        else torch.from_numpy(np.array(x, dtype=np.float64))
    )


def _like(x: Tensor, example: Any) -> Any:
    """A tensor where one came in, an array otherwise."""
    return x if isinstance(example, Tensor) else x.numpy()


def _equalities(count: int) -> tuple[Relation, ...]:
    equal: Relation = "=="
    return (equal,) * count
