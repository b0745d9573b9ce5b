"""What simple classifiers read from codes: nearest neighbours, pairwise logistic regression, k-means.

Codes stay packed: a block of rows at a time is unpacked into the cache and multiplied there, so that
60,000 codes of 4,096 units take 30 MB instead of the gigabyte of their matrix. Real features take the
same path, without the unpacking.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Integer, Shaped
from torch import Tensor
from torch.nn import functional as F

from szilard.measures.spectral import Seed
from szilard.representations.neural_code import PackedCodes

Features: TypeAlias = PackedCodes | Float[np.ndarray, "_ features"]
Matching = Literal["hungarian", "greedy"]

_BLOCK = 1 << 22  # numbers of a block that is unpacked and multiplied at once: 16 MiB
_MEMORY = 10  # steps that L-BFGS looks back
_HALVINGS = 40


def encoding_report(
    train: Features,
    y: Shaped[np.ndarray, " n"],
    test: Features,
    y_test: Shaped[np.ndarray, " m"],
    *,
    neighbors: int = 9,
    matching: Matching = "hungarian",
    restarts: int = 3,
    rng: Seed = 9,
    base: float | None = None,
) -> dict[str, float]:
    """How well codes tell inputs apart, and how well simple classifiers tell classes from them.

    Everything is learned from the training inputs and scored on the test inputs: nearest neighbours,
    one-against-one logistic regression, and k-means with as many clusters as classes, which sees no
    label until its clusters are matched to classes on the training inputs. Units that are constant
    over both sets are left out.

    Args:
        train: codes, or real features for comparison (Euclidean instead of Hamming neighbours).
        y: classes of the training inputs.
        test: codes of the same units, or as many features.
        y_test: classes of the test inputs.
        neighbors: neighbours that vote; of tied classes the smallest wins.
        matching: "hungarian" gives each class one cluster; "greedy" gives each cluster its most
            frequent class, several clusters perhaps the same: it reads higher.
        restarts: runs of k-means, of which the one with the tightest clusters counts.
        rng: seed or generator of k-means.
        base: unit of the entropies (2 for bits); nats by default.

    Returns:
        `knn`, `logistic` and `kmeans`, accuracies on the test inputs; for codes also `redundancy`,
        `entropy`, `deficit` and `collisions` with the endings `_train` and `_test`.

    Raises:
        ValueError: labels of another length, codes of another width, fewer than two classes or
            training inputs than neighbours, features that are not finite, or an unknown matching.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> y = np.arange(60) % 2
        >>> bits = rng.random((60, 24)) < np.where(y, 0.8, 0.2)[:, None]
        >>> codes = PackedCodes.from_bits(bits)
        >>> report = encoding_report(codes[:40], y[:40], codes[40:], y[40:])
        >>> report["knn"], report["logistic"], report["kmeans"], report["redundancy_train"]
        (1.0, 1.0, 1.0, 0.0)

    Source: He, Lei, Ji & Tao (2021), Neural networks behave as hash encoders: An empirical study,
    arXiv 2101.05490, section 3.2.
    """
    y, y_test = np.asarray(y), np.asarray(y_test)
    for name, features, labels in (("y", train, y), ("y_test", test, y_test)):
        if labels.shape != (len(features),):
            raise ValueError(
                f"{name} must hold {len(features)} labels, but has shape {labels.shape}"
            )
    if isinstance(train, PackedCodes) != isinstance(test, PackedCodes):
        raise ValueError("train and test must both be codes or both features")
    if _width(train) != _width(test):
        raise ValueError(f"test must have {_width(train)} units, but has {_width(test)}")
    if matching not in ("hungarian", "greedy"):
        raise ValueError(f"matching must be 'hungarian' or 'greedy', but is {matching!r}")
    if not 1 <= neighbors <= len(train):
        raise ValueError(f"neighbors must be from 1 to {len(train)}, but is {neighbors}")
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1, but is {restarts}")
    classes, known = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y must hold at least two classes, but holds {len(classes)}")
    report: dict[str, float] = {}
    if isinstance(train, PackedCodes) and isinstance(test, PackedCodes):
        for ending, codes in (("train", train), ("test", test)):
            report |= {
                f"redundancy_{ending}": codes.redundancy(),
                f"entropy_{ending}": codes.entropy(base=base),
                f"deficit_{ending}": codes.deficit(base=base),
            }
            if len(codes) > 1:
                report[f"collisions_{ending}"] = codes.collisions()
        train, test = _without_constants(train, test)
    else:
        for name, features in (("train", train), ("test", test)):
            if not np.isfinite(np.asarray(features)).all():
                raise ValueError(f"{name} must be finite, but is not everywhere")
    predictions = {
        "knn": neighbor_classes(train, known, test, neighbors),
        "logistic": PairwiseLogistic.fit(train, known).predict(test),
    }
    clusters = KMeans.fit(train, len(classes), rng=rng, restarts=restarts)
    match = match_clusters(clusters.labels, known, matching=matching)
    predictions["kmeans"] = match[clusters.predict(test)]
    for name, predicted in predictions.items():
        report[name] = float(np.mean(classes[predicted] == y_test))
    return report


def neighbor_classes(
    train: Features, y: Integer[np.ndarray, " n"], test: Features, k: int
) -> Int[np.ndarray, " m"]:
    """The most frequent class among each test input's k nearest; of tied classes the smallest.

    Args:
        train: codes (Hamming distance) or real features (Euclidean).
        y: classes as numbers from 0 on.
        test: as train.
        k: neighbours that vote. Of codes at the same distance, the first are the nearer.
    """
    if isinstance(train, PackedCodes) and isinstance(test, PackedCodes):
        near = train.nearest(test, k)[1]
    else:
        from sklearn.neighbors import NearestNeighbors

        near = NearestNeighbors(n_neighbors=k).fit(train).kneighbors(test, return_distance=False)
    votes = np.zeros((len(near), int(y.max()) + 1), dtype=np.int64)
    for column in near.T:
        votes[np.arange(len(near)), y[column]] += 1
    return votes.argmax(1)


def match_clusters(
    clusters: Integer[np.ndarray, " n"],
    y: Integer[np.ndarray, " n"],
    *,
    matching: Matching = "hungarian",
) -> Int[np.ndarray, " clusters"]:
    """The class that each cluster stands for.

    Args:
        clusters: cluster of each input, from 0 on.
        y: class of each input, from 0 on; at most as many classes as clusters for "hungarian".
        matching: "hungarian", one cluster a class so that most inputs are right, or "greedy", each
            cluster's most frequent class.

    Examples:
        >>> match_clusters(np.array([0, 0, 1, 1, 1]), np.array([1, 1, 1, 1, 0]))
        array([1, 0])
        >>> match_clusters(np.array([0, 0, 1, 1, 1]), np.array([1, 1, 1, 1, 0]), matching="greedy")
        array([1, 1])
    """
    from scipy.optimize import linear_sum_assignment

    size = int(max(clusters.max(), y.max())) + 1
    table = np.zeros((size, size), dtype=np.int64)
    np.add.at(table, (clusters, y), 1)
    if matching == "greedy":
        return table.argmax(1)
    return linear_sum_assignment(table, maximize=True)[1]


@dataclass(frozen=True, eq=False)
class KMeans:
    """k-means on codes that stay packed, or on real features; distances of codes are Hamming's.

    Attributes:
        centers: mean code of each cluster.
        labels: cluster of each input that was fitted.
        inertia: sum of squared distances to the centers.

    Source: Lloyd (1982), Least squares quantization in PCM; Arthur & Vassilvitskii (2007),
    k-means++, with several candidates a step of which the best is taken.
    """

    centers: Float32[Tensor, "clusters width"]
    labels: Int[np.ndarray, " n"]
    inertia: float

    @classmethod
    def fit(
        cls,
        features: Features,
        clusters: int,
        *,
        rng: Seed = 0,
        restarts: int = 3,
        max_iter: int = 300,
        tol: float = 1e-4,
    ) -> KMeans:
        """Runs Lloyd's iteration from k-means++ seeds, and keeps the tightest of the restarts.

        Args:
            features: at least as many as clusters.
            clusters: how many.
            rng: seed or generator of the seeding.
            restarts: runs.
            max_iter: iterations of a run at most.
            tol: a run ends when the centers' squared shift is below this times the mean variance.

        Raises:
            ValueError: fewer inputs than clusters.
        """
        if not 1 <= clusters <= len(features):
            raise ValueError(f"clusters must be from 1 to {len(features)}, but is {clusters}")
        rng = np.random.default_rng(rng)
        norms = _squared_norms(features)
        runs = (
            cls._run(features, norms, _seeds(features, norms, clusters, rng), max_iter, tol)
            for _ in range(restarts)
        )
        return min(runs, key=lambda run: run.inertia)

    @classmethod
    def _run(
        cls, features: Features, norms: Tensor, centers: Tensor, max_iter: int, tol: float
    ) -> KMeans:
        clusters, n = len(centers), len(features)
        labels = torch.full((n,), -1)
        limit = None
        for _ in range(max_iter):
            before = labels.clone()
            sums, counts = torch.zeros_like(centers), torch.zeros(clusters)
            nearest = torch.empty(n)
            for rows, block in _blocks(features):
                score = block @ centers.mT - centers.square().sum(1) / 2
                best, labels[rows] = score.max(1)
                nearest[rows] = (norms[rows] - 2 * best).clamp(min=0)
                chosen = F.one_hot(labels[rows], clusters).float()
                sums += chosen.mT @ block
                counts += chosen.sum(0)
            # A cluster that lost all its inputs begins anew at the input farthest from its center.
            empty = (counts == 0).nonzero()[:, 0]
            for cluster, row in zip(empty, nearest.argsort(descending=True), strict=False):
                sums[cluster], counts[cluster] = _rows(features, row[None])[0], 1
            if limit is None:
                mean = sums.sum(0) / n
                limit = tol * float(norms.double().mean() - mean.square().sum()) / len(mean)
            moved = sums / counts[:, None]
            shift = float((moved - centers).square().sum())
            if bool((labels == before).all()) or (shift <= limit and not len(empty)):
                break
            centers = moved
        return cls(centers, labels.numpy(), float(nearest.double().sum()))

    def predict(self, features: Features) -> Int[np.ndarray, " m"]:
        """The nearest center of each input."""
        offset = self.centers.square().sum(1) / 2
        found = [(block @ self.centers.mT - offset).argmax(1) for _, block in _blocks(features)]
        return torch.cat(found).numpy()


def _seeds(features: Features, norms: Tensor, clusters: int, rng: np.random.Generator) -> Tensor:
    """k-means++: an input is drawn by its squared distance to what was drawn before."""
    n = len(features)
    trials = 2 + int(np.log(clusters))
    centers = _rows(features, torch.tensor([int(rng.integers(n))]))
    nearest = _squared_distances(features, norms, centers)[:, 0]
    while len(centers) < clusters:
        edges = nearest.double().cumsum(0)
        drawn = torch.from_numpy(rng.random(trials)) * edges[-1]
        candidates = _rows(features, torch.searchsorted(edges, drawn, right=True).clamp(max=n - 1))
        after = torch.minimum(nearest[:, None], _squared_distances(features, norms, candidates))
        best = int(after.double().sum(0).argmin())
        centers, nearest = torch.cat([centers, candidates[best : best + 1]]), after[:, best]
    return centers


@dataclass(frozen=True, eq=False)
class PairwiseLogistic:
    """Logistic regression of every class against every other, on codes that stay packed or features.

    Each pair of classes (a, b) minimises C sum log(1 + exp(-s m)) + |w|^2 / 2 over its inputs, with
    the margin m = w x + c and s = 1 for b, -1 for a. All pairs are solved together by L-BFGS, so
    that a pass over the inputs serves them all. Classes are predicted by vote, ties by margins.

    Attributes:
        weights: one column a pair, in the order (0, 1), (0, 2), ..., (1, 2), ...
        intercepts: one a pair.
        classes: how many.
        iterations: steps that were taken.

    Source: Liu & Nocedal (1989), On the limited memory BFGS method for large scale optimization.
    """

    weights: Float32[Tensor, "width pairs"]
    intercepts: Float32[Tensor, " pairs"]
    classes: int
    iterations: int

    @classmethod
    def fit(
        cls,
        features: Features,
        y: Integer[np.ndarray, " n"],
        *,
        C: float = 1.0,
        tol: float = 1e-4,
        max_iter: int = 100,
    ) -> PairwiseLogistic:
        """Solves all pairs.

        Args:
            features: inputs.
            y: classes, numbers from 0 on, each of them seen.
            C: weight of the loss against the penalty.
            tol: a pair is done when no derivative of its loss, averaged over its inputs, is larger.
            max_iter: steps at most.

        Raises:
            ValueError: a class below the largest that has no input, or only one class.
        """
        sizes = np.bincount(y)
        if len(sizes) < 2 or not sizes.all():
            raise ValueError(
                f"y must hold the classes 0 to k - 1, at least two, but counts {sizes}"
            )
        problem = _Pairs(features, y, C)
        theta = torch.zeros(problem.width + 1, len(problem.pairs))
        margins = torch.zeros(len(features), len(sizes) - 1)
        loss, residuals = problem.loss(margins, theta)
        gradient = problem.gradient(residuals, theta)
        history: list[tuple[Tensor, Tensor]] = []
        steps = 0
        for steps in range(max_iter + 1):
            active = gradient.abs().amax(0) > tol * C * problem.sizes
            if steps == max_iter or not bool(active.any()):
                break
            direction = -_inverse_hessian(gradient, history)
            change = problem.margins(direction)
            slope = _dot(gradient, direction)
            # To the minimum of the parabola that touches the loss here, then back while it is too far.
            step = torch.where(active, -slope / problem.curvature(margins, change, direction), 0)
            for _ in range(_HALVINGS):
                tried = margins + step[problem.which] * change
                moved = theta + step * direction
                lower, residuals = problem.loss(tried, moved)
                worse = active & (lower > loss + 1e-4 * step * slope)
                if not bool(worse.any()):
                    break
                step = torch.where(worse, step / 2, step)
            turned = problem.gradient(residuals, moved)
            history = [*history[1 - _MEMORY :], (moved - theta, turned - gradient)]
            theta, margins, loss, gradient = moved, tried, lower, turned
        return cls(theta[:-1], theta[-1], len(sizes), steps)

    def margins(self, features: Features) -> Float32[np.ndarray, "m pairs"]:
        """Margin of every pair, positive for its second class."""
        found = [block @ self.weights + self.intercepts for _, block in _blocks(features)]
        return torch.cat(found).numpy()

    def predict(self, features: Features) -> Int[np.ndarray, " m"]:
        """The class with most votes; of equal ones that with the largest sum of margins."""
        margins = self.margins(features)
        votes = np.zeros((len(margins), self.classes))
        sums = np.zeros((len(margins), self.classes))
        for pair, (a, b) in enumerate(combinations(range(self.classes), 2)):
            votes[:, a] += margins[:, pair] <= 0
            votes[:, b] += margins[:, pair] > 0
            sums[:, a] -= margins[:, pair]
            sums[:, b] += margins[:, pair]
        # Squeezed to less than half a vote, sums decide between equal votes alone.
        return (votes + sums / (3 * (np.abs(sums) + 1))).argmax(1)


class _Pairs:
    """The problems of all pairs of classes; an input takes part in those of its own class.

    Margins and residuals are (input, other class): a column for each pair that the input's class is in.
    """

    def __init__(self, features: Features, y: np.ndarray, C: float) -> None:
        order = np.argsort(y, kind="stable")
        self._features = features[order]
        self._bounds = np.cumsum([0, *np.bincount(y)]).tolist()
        self._C = C
        classes = len(self._bounds) - 1
        self.width = _width(features)
        self.pairs = list(combinations(range(classes), 2))
        self._columns = torch.tensor(
            [[i for i, pair in enumerate(self.pairs) if c in pair] for c in range(classes)]
        )
        signs = [
            [1.0 if pair[1] == c else -1.0 for pair in self.pairs if c in pair]
            for c in range(classes)
        ]
        sorted_y = torch.from_numpy(y[order])
        self.which = self._columns[sorted_y]
        self._signs = torch.tensor(signs)[sorted_y]
        counts = np.bincount(y)
        self.sizes = torch.tensor([float(counts[a] + counts[b]) for a, b in self.pairs])

    def _class_blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows of one class, themselves, and the columns of its pairs."""
        for c, columns in enumerate(self._columns):
            begin, end = self._bounds[c : c + 2]
            for rows, block in _blocks(self._features[begin:end]):
                yield slice(begin + rows.start, begin + rows.stop), block, columns

    def margins(self, theta: Tensor) -> Tensor:
        out = torch.empty(self.which.shape)
        for rows, block, columns in self._class_blocks():
            out[rows] = block @ theta[:-1, columns] + theta[-1, columns]
        return out

    def loss(self, margins: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """A loss a pair, and the derivative of every margin."""
        signed = (self._signs * margins).double()
        loss = self._C * self._sums(F.softplus(-signed)) + theta[:-1].double().square().sum(0) / 2
        return loss, (-self._C * self._signs * torch.sigmoid(-signed)).float()

    def gradient(self, residuals: Tensor, theta: Tensor) -> Tensor:
        out = theta.clone()
        out[-1] = 0
        for rows, block, columns in self._class_blocks():
            out[:-1, columns] += block.mT @ residuals[rows]
            out[-1, columns] += residuals[rows].sum(0)
        return out

    def curvature(self, margins: Tensor, change: Tensor, direction: Tensor) -> Tensor:
        """Second derivative of each loss along the direction."""
        p = torch.sigmoid(margins.double())
        bent = self._C * self._sums(p * (1 - p) * change.double().square())
        return (bent + direction[:-1].double().square().sum(0)).float()

    def _sums(self, values: Tensor) -> Tensor:
        """Sums over the inputs of each pair."""
        out = torch.zeros(len(self.pairs), dtype=torch.float64)
        return out.index_add_(0, self.which.flatten(), values.flatten())


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(0)


def _inverse_hessian(gradient: Tensor, history: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The two loops of L-BFGS, for all columns at once; a pair without curvature changes nothing."""
    q = gradient.clone()
    kept = []
    for s, t in reversed(history):
        bend = _dot(s, t)
        rho = torch.where(bend > 0, 1 / bend, 0)
        a = rho * _dot(s, q)
        q -= a * t
        kept.append((s, t, rho, a))
    if history:
        s, t = history[-1]
        bend = _dot(s, t)
        q *= torch.where(bend > 0, bend / _dot(t, t), 1)
    for s, t, rho, a in reversed(kept):
        q += s * (a - rho * _dot(t, q))
    return q


def _width(features: Features) -> int:
    return features.width if isinstance(features, PackedCodes) else features.shape[1]


def _without_constants(train: PackedCodes, test: PackedCodes) -> tuple[PackedCodes, PackedCodes]:
    """Without the units that never change over both; one stays where none changes."""
    ends = PackedCodes(np.concatenate([train.packed[:1], test.packed[:1]]), train.width, {})
    keep = train.varying() | test.varying() | ends.varying()
    keep[0] |= not keep.any()
    return train.units(keep), test.units(keep)


def _blocks(features: Features) -> Iterator[tuple[slice, Tensor]]:
    """Rows as float32, some at a time; a block is overwritten by the next."""
    from szilard.kernels import codes

    rows = max(1, _BLOCK // _width(features))
    room = np.empty((min(rows, len(features)), _width(features)), np.float32)
    for start in range(0, len(features), rows):
        part = slice(start, min(start + rows, len(features)))
        if isinstance(features, PackedCodes):
            block = room[: part.stop - part.start]
            codes.unpack(features.packed[part], block)
            yield part, torch.from_numpy(block)
        else:
            yield part, torch.from_numpy(np.asarray(features[part], dtype=np.float32))


def _rows(features: Features, index: Tensor) -> Tensor:
    chosen: Any = features[index.numpy()]
    return torch.cat([block.clone() for _, block in _blocks(chosen)])


def _squared_norms(features: Features) -> Tensor:
    return torch.cat([block.square().sum(1) for _, block in _blocks(features)])


def _squared_distances(features: Features, norms: Tensor, centers: Tensor) -> Tensor:
    out = torch.empty(len(features), len(centers))
    for rows, block in _blocks(features):
        out[rows] = norms[rows, None] - 2 * (block @ centers.mT) + centers.square().sum(1)
    return out.clamp(min=0)
