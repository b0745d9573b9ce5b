"""Entropies of spectra: density and Gram matrices, and the diffusion spectrum of a point cloud.

Every function returns nats unless `base=` says otherwise; the diffusion papers print bits, `base=2`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args, overload

import numpy as np
import torch
from jaxtyping import Float, Inexact, Integer, Real, Shaped
from torch import Tensor

from szilard.kernels.spectral import entropy_estimate
from szilard.measures._checks import log_base

Normalization = Literal["code", "half", "one"]
Bandwidth = float | Literal["median", "mean_norm"]
Seed = np.random.Generator | int

# A block of this many distances is diagonalised at once (128 MiB in float64).
_BATCH_ENTRIES = 2**24
_FEATURE_BLOCK = 4096
# An estimate pays from here on; it gives up after n // 100 products, a sixth of the exact path's cost.
_ESTIMATE_FROM, _ROWS_A_PRODUCT = 2000, 100


@dataclass(frozen=True, slots=True)
class DiffusionSpectrum:
    """Eigenvalues of a diffusion operator and the bandwidth they were computed at.

    Attributes:
        eigenvalues: float64, descending, the first is 1.
        sigma: bandwidth of the Gaussian kernel, in the units of the points.
    """

    eigenvalues: Float[Tensor, "n"]
    sigma: float

    def entropy(self, t: float = 1, *, base: float | None = None) -> Float[Tensor, ""]:
        """Entropy of the spectrum after `t` diffusion steps, in [0, log n].

        Args:
            t: diffusion time, any positive number; larger forgets small eigenvalues.
            base: unit of the result, None for nats.

        Returns:
            -sum a_i log a_i with a_i = |lambda_i|^t / sum_j |lambda_j|^t.

        Raises:
            ValueError: t is not positive.

        Warns:
            UserWarning: the entropy is within 2 % of 0 or log n.

        Examples:
            >>> spectrum = DiffusionSpectrum(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), 1.0)
            >>> round(spectrum.entropy(base=2).item(), 12)
            1.0
        """
        unit = log_base(base)
        entropy = _powered_entropy(self.eigenvalues, _check_time(t))
        _warn_at_the_ends(entropy.item() / math.log(len(self.eigenvalues)), self.sigma)
        return entropy * unit


@dataclass(frozen=True, slots=True)
class DSMIResult:
    """A mutual information by subtraction of entropies of equally many points.

    Attributes:
        value: the mutual information; may be slightly negative.
        per_class: the difference of entropies for each class in `classes`.
        classes: the labels that had at least two points.
        sizes: points of each class.
        clusters: the label of every row; pass it as `Y` to reuse clusters of a continuous `Y`.
        sigma: bandwidth of the kernel in the units of the points; None for an entropy without one.
    """

    value: float
    per_class: Float[np.ndarray, "classes"]
    classes: Shaped[np.ndarray, "classes"]
    sizes: Integer[np.ndarray, "classes"]
    clusters: Shaped[np.ndarray, "n"]
    sigma: float | None


# --- density and Gram matrices --------------------------------------------------------------------


@overload
def von_neumann_entropy(
    density: Inexact[Tensor, "*batch d d"], *, base: float | None = None
) -> Float[Tensor, "*batch"]: ...
@overload
def von_neumann_entropy(
    density: Inexact[np.ndarray, "*batch d d"], *, base: float | None = None
) -> Float[np.ndarray, "*batch"]: ...
def von_neumann_entropy(
    density: Inexact[Tensor, "*batch d d"] | Inexact[np.ndarray, "*batch d d"],
    *,
    base: float | None = None,
) -> Float[Tensor, "*batch"] | Float[np.ndarray, "*batch"]:
    """Von Neumann entropy -tr(rho log rho) of density matrices, in [0, log d].

    Differentiable: the gradient -V (log L + 1) V* needs no gap between eigenvalues. On the null space,
    where the derivative is infinite, it is taken as zero.

    Args:
        density: Hermitian, positive semi-definite, trace 1; real or complex.
        base: unit of the result, None for nats.

    Returns:
        One entropy a matrix, float64.

    Raises:
        ValueError: not finite, not square, not Hermitian, a negative eigenvalue, or a trace that is
            not 1.

    Examples:
        >>> round(von_neumann_entropy(torch.eye(4, dtype=torch.float64) / 4, base=2).item(), 12)
        2.0

    Source: von Neumann, Mathematische Grundlagen der Quantenmechanik (1932), ch. V.
    """
    unit = log_base(base)
    rho, tolerance = _check_hermitian(density, "density")
    trace = rho.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    if bool(((trace - 1).abs() > tolerance).any()):
        worst = trace.detach().flatten()[(trace - 1).abs().argmax()].item()
        raise ValueError(f"density must have trace 1, but has trace {worst:.6g}")
    return _like(_entropy(_psd_eigenvalues(rho, "density", tolerance)) * unit, density)


@overload
def gram_entropy(
    gram: Inexact[Tensor, "*batch n n"], *, alpha: float = 1, base: float | None = None
) -> Float[Tensor, "*batch"]: ...
@overload
def gram_entropy(
    gram: Inexact[np.ndarray, "*batch n n"],
    *,
    alpha: float = 1,
    base: float | None = None,
) -> Float[np.ndarray, "*batch"]: ...
def gram_entropy(
    gram: Inexact[Tensor, "*batch n n"] | Inexact[np.ndarray, "*batch n n"],
    *,
    alpha: float = 1,
    base: float | None = None,
) -> Float[Tensor, "*batch"] | Float[np.ndarray, "*batch"]:
    """Matrix-based Rényi entropy log(tr A^alpha) / (1 - alpha), with A = gram / tr(gram).

    The joint entropy of two variables is that of the elementwise product of their Gram matrices.

    Args:
        gram: Hermitian positive semi-definite with a positive trace, such as a kernel matrix.
        alpha: order, positive; 1 is the von Neumann entropy, the limit.
        base: unit of the result, None for nats.

    Returns:
        One entropy a matrix, in [0, log n], float64.

    Raises:
        ValueError: not finite, square, Hermitian or positive semi-definite, a trace that is not
            positive, or alpha not positive.

    Examples:
        >>> round(gram_entropy(torch.eye(8, dtype=torch.float64), alpha=2, base=2).item(), 12)
        3.0

    Source: Sanchez Giraldo, Rao & Principe, Measures of Entropy from Data Using Infinitely Divisible
    Kernels (2015), definition 2 (arXiv 1211.2459).
    """
    unit = log_base(base)
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha must be a positive finite number, but is {alpha!r}")
    matrix, tolerance = _check_hermitian(gram, "gram")
    trace = matrix.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    if bool((trace <= 0).any()):
        raise ValueError(f"gram must have a positive trace, but has {trace.min().item():.6g}")
    spectrum = _psd_eigenvalues(matrix / trace[..., None, None], "gram", tolerance)
    if alpha == 1:
        return _like(_entropy(spectrum) * unit, gram)
    return _like(_power(spectrum, alpha).sum(-1).log() / (1 - alpha) * unit, gram)


@overload
def effective_rank(
    matrix: Real[Tensor, "*batch n d"], *, of: Literal["singular", "covariance"] = "singular"
) -> Float[Tensor, "*batch"]: ...
@overload
def effective_rank(
    matrix: Real[np.ndarray, "*batch n d"], *, of: Literal["singular", "covariance"] = "singular"
) -> Float[np.ndarray, "*batch"]: ...
def effective_rank(
    matrix: Real[Tensor, "*batch n d"] | Real[np.ndarray, "*batch n d"],
    *,
    of: Literal["singular", "covariance"] = "singular",
) -> Float[Tensor, "*batch"] | Float[np.ndarray, "*batch"]:
    """Effective rank: the exponential of a spectrum's entropy, between 1 and min(n, d).

    Args:
        matrix: n rows (points) of d columns (features).
        of: "singular" normalises the singular values of `matrix` as it is (Roy & Vetterli);
            "covariance" the eigenvalues of its rows' covariance (centred, squared singular values).

    Returns:
        One dimensionless number a matrix, float64; 0 for a matrix that is zero (or has no variance).

    Raises:
        ValueError: not finite, empty, or an unknown `of`.

    Examples:
        >>> round(effective_rank(torch.eye(5)).item(), 9)
        5.0

    Source: Roy & Vetterli, The effective rank (EUSIPCO 2007), definition 1.
    """
    if of not in ("singular", "covariance"):
        raise ValueError(f"of must be 'singular' or 'covariance', but is {of!r}")
    x = _as_float64(matrix, "matrix")
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ValueError(f"matrix must have rows and columns, but has shape {tuple(x.shape)}")
    spectrum = torch.linalg.svdvals(x - x.mean(-2, keepdim=True) if of == "covariance" else x)
    # Centring leaves rounding where the rows coincide.
    cells = x.shape[-2] * x.shape[-1]
    scale = torch.finfo(torch.float64).eps * math.sqrt(cells) * x.detach().abs().amax((-2, -1))
    if of == "covariance":
        spectrum = torch.where(spectrum > scale[..., None], spectrum, 0.0) ** 2
    total = spectrum.sum(-1)
    rank = _entropy(spectrum / torch.where(total > 0, total, 1.0)[..., None]).exp()
    return _like(torch.where(total > 0, rank, 0.0), matrix)


# --- the diffusion spectrum -----------------------------------------------------------------------


def diffusion_spectrum(
    Z: Real[Tensor, "n d"] | Real[np.ndarray, "n d"],
    sigma: Bandwidth = 10.0,
    *,
    normalization: Normalization = "code",
    max_n: int = 10_000,
    rng: Seed | None = 0,
) -> DiffusionSpectrum:
    """Spectrum of the diffusion operator of a point cloud.

        G_ij = exp(-|z_i - z_j|^2 / (2 sigma^2)),   r_i = sum_j G_ij,   K = R^(-1/2) G R^(-1/2)

    K is similar to the row-stochastic R^-1 G: its eigenvalues lie in [0, 1] and the largest is 1. Costs
    O(n^2 d) for the distances, O(n^3) for the eigenvalues, two n x n float64 matrices of memory.

    Args:
        Z: n points with d coordinates.
        sigma: bandwidth in the units of Z; "median" is the median positive distance between points,
            "mean_norm" 0.3 times the mean norm of the rows. Both follow the scale of Z, a number does
            not.
        normalization: "code" as above, the convention behind the published results; "half" and "one"
            are the paper's text: R^-a G R^-a with a = 1/2 or 1, then made Markov by its own row sums.
            Their eigenvalues differ from "code".
        max_n: a larger cloud is subsampled to this many rows without replacement.
        rng: seed or generator of the subsampling; None refuses to subsample.

    Returns:
        Eigenvalues in descending order (differentiable in Z, on its device) and the sigma used.

    Raises:
        ValueError: Z is not finite or has fewer than two rows, sigma is not positive, an unknown
            normalization, max_n < 2, or n > max_n while rng is None.

    Examples:
        >>> pair = diffusion_spectrum(np.array([[0.0], [1.0]]), sigma=1.0)
        >>> g = math.exp(-1 / 2)
        >>> bool(torch.isclose(pair.eigenvalues[1], torch.tensor((1 - g) / (1 + g)).double()))
        True

    Source: Liao et al., Assessing Neural Network Representations During Training Using
    Noise-Resilient Diffusion Spectral Entropy (2024), arXiv 2312.04823, section III.
    """
    check_kernel(sigma, 1, normalization, max_n)
    points = _subsample(_check_points(Z), max_n, rng)
    squared, width = _distances_and_bandwidth(points, sigma)
    operator = _diffusion_operator(squared, width, normalization)
    return DiffusionSpectrum(_eigenvalues(operator).flip(-1), width)


@overload
def diffusion_spectral_entropy(
    Z: Real[Tensor, "n d"],
    sigma: Bandwidth = 10.0,
    t: float = 1,
    *,
    max_n: int = 10_000,
    normalization: Normalization = "code",
    tolerance: float | None = None,
    rng: Seed | None = 0,
    base: float | None = None,
) -> Float[Tensor, ""]: ...
@overload
def diffusion_spectral_entropy(
    Z: Real[np.ndarray, "n d"],
    sigma: Bandwidth = 10.0,
    t: float = 1,
    *,
    max_n: int = 10_000,
    normalization: Normalization = "code",
    tolerance: float | None = None,
    rng: Seed | None = 0,
    base: float | None = None,
) -> float: ...
def diffusion_spectral_entropy(
    Z: Real[Tensor, "n d"] | Real[np.ndarray, "n d"],
    sigma: Bandwidth = 10.0,
    t: float = 1,
    *,
    max_n: int = 10_000,
    normalization: Normalization = "code",
    tolerance: float | None = None,
    rng: Seed | None = 0,
    base: float | None = None,
) -> Float[Tensor, ""] | float:
    """Diffusion spectral entropy (DSE): log of the number of places the kernel can tell apart.

    0 for coinciding points, log n for points pairwise far apart, log k for k tight far clusters
    whatever their sizes. Grows with n until it saturates: compare clouds of equal n only. At a fixed
    sigma it also grows with the scale of Z, since DSE(cZ, c sigma) = DSE(Z, sigma).

    Args:
        Z: n points with d coordinates, such as activations.
        sigma: bandwidth of the kernel; see `diffusion_spectrum`.
        t: diffusion time, any positive number. A rule of thumb: raise it until about 1 % of the
            powered eigenvalues exceed 0.01.
        max_n: a larger cloud is subsampled to this many rows.
        normalization: "code", "half" or "one"; see `diffusion_spectrum`.
        tolerance: None for exact eigenvalues, in O(n^3). A number in (0, 1), such as 1e-3, is a
            relative error of the entropy that will do: clouds of 2,000 points and more are then
            measured by traces of the operator, in O(n^2) a product, one n x n matrix of memory, without
            gradients. Its own error estimate, bounds of all truncations plus three standard errors of
            what is random, has to meet the tolerance, else the eigenvalues are computed after all.
        rng: seed or generator of the subsampling and of the estimate's probes; None refuses to
            subsample and takes seed 0 for the probes.
        base: unit of the result, None for nats; the paper's is 2.

    Returns:
        The entropy in [0, log n]: a 0-d float64 tensor, differentiable, for a tensor, else a float.

    Raises:
        ValueError: as `diffusion_spectrum`, t is not positive, or with a tolerance: it is outside
            (0, 1), t is below 1 or Z requires gradients.

    Warns:
        UserWarning: the entropy is within 2 % of 0 or log n, where sigma no longer resolves the cloud.

    Examples:
        >>> Z = np.array([[0.0], [1.0]])
        >>> round(diffusion_spectral_entropy(Z, sigma=1.0, base=2), 10)
        0.7153491667

    Source: Liao et al. (2024), arXiv 2312.04823, definition of diffusion spectral entropy. With a
    tolerance: stochastic Lanczos quadrature (Ubaru, Chen & Saad, 2017) on the complement of a Krylov
    subspace (Meyer, Musco, Musco & Woodruff, Hutch++, 2021).
    """
    unit = log_base(base)
    check_kernel(sigma, t, normalization, max_n)
    _check_tolerance(tolerance, t, Z)
    points = _subsample(_check_points(Z), max_n, rng)
    squared, width = _distances_and_bandwidth(points, sigma)
    operator = _diffusion_operator(squared, width, normalization)
    del squared
    probes = np.random.default_rng(0 if rng is None else rng)
    entropy = _operator_entropy(operator, t, tolerance, probes)
    _warn_at_the_ends(entropy.item() / math.log(len(points)), width)
    entropy = entropy * unit
    return entropy if isinstance(Z, Tensor) else entropy.item()


def diffusion_spectral_mutual_information(
    Z: Real[Tensor, "n d"] | Real[np.ndarray, "n d"],
    Y: Shaped[Tensor, "n *dims"] | Shaped[np.ndarray, "n *dims"],
    sigma: Bandwidth = 10.0,
    t: float = 1,
    *,
    discrete: bool | None = None,
    n_clusters: int = 10,
    repeats: int = 5,
    max_n: int = 10_000,
    normalization: Normalization = "code",
    tolerance: float | None = None,
    rng: Seed = 0,
    base: float | None = None,
) -> DSMIResult:
    """Diffusion spectral mutual information (DSMI) between points and labels, scalars or vectors.

        DSMI = sum_c p_c (mean over draws DSE(Z*_c) - DSE(Z | Y = c))

    with Z*_c as many rows as class c has, drawn from all rows without replacement: entropies of
    different numbers of points are never compared. One distance matrix serves every subset.

    Args:
        Z: n points with d coordinates.
        Y: what they are compared with, one entry or row a point; see `cluster_labels`.
        sigma: bandwidth of the kernel, resolved once on all points; see `diffusion_spectrum`.
        t: diffusion time.
        discrete: whether Y holds labels; None decides by its dtype.
        n_clusters: bins of a continuous scalar Y, clusters of a vector Y.
        repeats: random subsets averaged for each class.
        max_n: more rows than this are subsampled, together with Y.
        normalization: "code", "half" or "one"; see `diffusion_spectrum`.
        tolerance: None for exact eigenvalues; a number is the relative error that will do for each of
            the entropies (not their difference), as in `diffusion_spectral_entropy`.
        rng: seed or generator of the subsets and probes; every class starts from the same seed.
        base: unit of the result, None for nats; the paper's is 2.

    Returns:
        The mutual information, its terms and the clusters. Noisy for small classes, where slightly
        negative values are normal; never clipped.

    Raises:
        ValueError: as `diffusion_spectral_entropy` (gradients are of no concern here: the result has
            none), Y of another length, or no class with two points.

    Warns:
        UserWarning: a class has one point (it is left out, the weights renormalised), or the
            unconditional entropies are within 2 % of 0 or their maximum.

    Examples:
        >>> Z = np.repeat([[0.0], [1e3]], 6, axis=0)
        >>> Y = np.repeat([0, 1], 6)
        >>> round(diffusion_spectral_mutual_information(Z, Y, base=2).value, 9)
        1.0

    Source: Liao et al. (2024), arXiv 2312.04823, definition of DSMI, in the size-matched form in which
    its results were computed.
    """
    unit = log_base(base)
    check_kernel(sigma, t, normalization, max_n)
    points = _check_points(Z).detach()
    _check_tolerance(tolerance, t, points)
    labels = _check_labels(points, Y, discrete, n_clusters, repeats)
    seed = _as_seed(rng)
    rows = _subsample_rows(len(points), max_n, seed)
    squared, width = _distances_and_bandwidth(points[rows], sigma)

    def entropies(subsets: np.ndarray) -> np.ndarray:
        index = torch.from_numpy(subsets).to(squared.device)
        chunk = max(1, _BATCH_ENTRIES // index.shape[1] ** 2)
        parts = []
        for i in index.split(chunk):
            block = squared[i[:, :, None], i[:, None, :]]
            operator = _diffusion_operator(block, width, normalization)
            probes = np.random.default_rng(seed)
            parts.append(_operator_entropy(operator, t, tolerance, probes))
        return torch.cat(parts).cpu().numpy()

    value, per_class, classes, sizes, unconditional = _size_matched(
        entropies, labels[rows.numpy()], repeats, seed
    )
    _warn_at_the_ends(unconditional / float(np.average(np.log(sizes), weights=sizes)), width)
    return DSMIResult(value * unit, per_class * unit, classes, sizes, labels, width)


def cluster_labels(
    Y: Shaped[Tensor, "n *dims"] | Shaped[np.ndarray, "n *dims"],
    *,
    discrete: bool | None = None,
    n_clusters: int = 10,
) -> Shaped[np.ndarray, "n"]:
    """Discrete labels of the rows of Y, as the mutual information with Y conditions on.

    Args:
        Y: labels (one axis, or n x 1), continuous scalars, or vectors (further axes are flattened).
        discrete: whether Y holds labels; None: integers and booleans of one column do.
        n_clusters: equal-width bins of the min-max scaled scalar, or spectral clusters of the vectors
            (nearest-neighbour affinity, cluster_qr assignment, seed 0).

    Returns:
        Labels as given, bin numbers, or cluster numbers.

    Raises:
        TypeError: Y is no tensor or array.
        ValueError: no rows, NaN or infinities in a continuous Y, discrete with several columns,
            n_clusters < 1, or fewer vectors than clusters.

    Examples:
        >>> cluster_labels(np.array([0.0, 0.05, 0.95, 1.0]), n_clusters=10).tolist()
        [0, 0, 9, 9]
    """
    if n_clusters < 1:
        raise ValueError(f"n_clusters must be at least 1, but is {n_clusters}")
    _check_array(Y, "Y")
    values = Y.detach().cpu().numpy() if isinstance(Y, Tensor) else Y
    if values.ndim == 0 or len(values) == 0:
        raise ValueError(f"Y must have at least one row, but has shape {values.shape}")
    values = values.reshape(len(values), -1)
    scalar = values.shape[1] == 1
    if discrete is None:
        discrete = scalar and not np.issubdtype(values.dtype, np.inexact)
    if discrete and not scalar:
        raise ValueError(f"Y holds labels: it must have one column, but has {values.shape[1]}")
    if discrete:
        return values[:, 0]
    if not np.isfinite(values).all():
        raise ValueError("Y must be finite, but holds NaN or inf")
    if scalar:
        scaled = values[:, 0] - values.min()
        span = scaled.max()
        bins = np.floor(scaled / span * n_clusters) if span > 0 else np.zeros(len(scaled))
        return np.minimum(bins, n_clusters - 1).astype(np.int64)
    if len(values) <= n_clusters:
        raise ValueError(f"Y must have more rows than n_clusters={n_clusters}, has {len(values)}")

    from sklearn.cluster import SpectralClustering

    clustering = SpectralClustering(
        n_clusters,
        affinity="nearest_neighbors",
        n_neighbors=min(10, len(values)),
        assign_labels="cluster_qr",
        random_state=0,
    )
    return clustering.fit_predict(values.astype(np.float64)).astype(np.int64)


# --- the alternatives it is compared with ---------------------------------------------------------


def size_matched_mutual_information(
    entropy: Callable[[Float[Tensor, "m d"]], float | Float[Tensor, ""]],
    Z: Real[Tensor, "n d"] | Real[np.ndarray, "n d"],
    Y: Shaped[Tensor, "n *dims"] | Shaped[np.ndarray, "n *dims"],
    *,
    discrete: bool | None = None,
    n_clusters: int = 10,
    repeats: int = 5,
    rng: Seed = 0,
) -> DSMIResult:
    """The mutual information of DSMI's form for any entropy of a point cloud.

    Args:
        entropy: maps points (float64) to their entropy; its unit is the result's.
        Z: n points with d coordinates.
        Y: labels, scalars or vectors; see `cluster_labels`.
        discrete: whether Y holds labels; None decides by its dtype.
        n_clusters: bins or clusters of a continuous Y.
        repeats: random subsets averaged for each class.
        rng: seed or generator of the subsets.

    Returns:
        As `diffusion_spectral_mutual_information`, with sigma None.

    Raises:
        ValueError: Z is not finite, Y of another length, or no class with two points.

    Examples:
        >>> Z, Y = np.array([[0.0], [0.1], [1.0], [0.9]]), np.array([0, 0, 1, 1])
        >>> size_matched_mutual_information(binned_entropy, Z, np.zeros(4, dtype=int)).value
        0.0
    """
    points = _check_points(Z).detach()
    labels = _check_labels(points, Y, discrete, n_clusters, repeats)

    def entropies(subsets: np.ndarray) -> np.ndarray:
        return np.array([float(entropy(points[torch.from_numpy(i)])) for i in subsets])

    value, per_class, classes, sizes, _ = _size_matched(entropies, labels, repeats, _as_seed(rng))
    return DSMIResult(value, per_class, classes, sizes, labels, None)


def binned_entropy(
    Z: Real[Tensor, "n d"] | Real[np.ndarray, "n d"],
    *,
    bins: int = 2,
    base: float | None = None,
) -> float:
    """Plug-in Shannon entropy of points binned along every dimension between its extremes.

    Saturates at log n as soon as every point has a cell of its own, at d of about 16 for 500 points.

    Args:
        Z: n points with d coordinates.
        bins: equal-width bins a dimension.
        base: unit of the result, None for nats.

    Returns:
        The entropy of the occupied cells, in [0, log n].

    Raises:
        ValueError: Z is not finite or has fewer than two rows, or bins < 1.

    Examples:
        >>> round(binned_entropy(np.array([[0.0], [0.1], [0.9], [1.0]]), base=2), 12)
        1.0
    """
    unit = log_base(base)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, but is {bins}")
    points = _check_points(Z).detach()
    low = points.amin(0)
    span = points.amax(0) - low
    cells = ((points - low) / torch.where(span > 0, span, 1.0) * bins).floor().clamp(max=bins - 1)
    counts = torch.unique(cells, dim=0, return_counts=True)[1].double()
    return _entropy(counts / counts.sum()).item() * unit


def matrix_entry_entropy(
    Z: Real[Tensor, "n d"] | Real[np.ndarray, "n d"],
    sigma: Bandwidth = 10.0,
    *,
    base: float | None = None,
) -> float:
    """Entropy of the entries, not the eigenvalues, of the Markov matrix P of the diffusion kernel.

    Args:
        Z: n points with d coordinates.
        sigma: bandwidth of the kernel; see `diffusion_spectrum`.
        base: unit of the result, None for nats.

    Returns:
        -sum_ij p_ij log p_ij with p = P / n, in [log n, 2 log n].

    Raises:
        ValueError: Z is not finite or has fewer than two rows, or sigma is not positive.

    Examples:
        >>> round(matrix_entry_entropy(np.zeros((4, 2)), base=2), 12)
        4.0
    """
    unit = log_base(base)
    check_kernel(sigma)
    kernel = _kernel(*_distances_and_bandwidth(_check_points(Z).detach(), sigma))
    kernel = _rescale(kernel, 0.5)
    markov = kernel / kernel.sum(-1, keepdim=True)
    return _entropy((markov / len(markov)).flatten()).item() * unit


def adjacency_spectral_entropy(
    Z: Real[Tensor, "n d"] | Real[np.ndarray, "n d"],
    sigma: Bandwidth = 10.0,
    *,
    neighbors: int | None = None,
    base: float | None = None,
) -> float:
    """Entropy of the spectrum of an adjacency matrix that is not normalised to a diffusion.

    Args:
        Z: n points with d coordinates.
        sigma: bandwidth of the Gaussian adjacency; unused with `neighbors`.
        neighbors: None for the Gaussian adjacency; k for the binary one that joins each point to its k
            nearest, itself included (10 in the paper's code). Its eigenvalues may be complex: their
            moduli count.
        base: unit of the result, None for nats.

    Returns:
        The entropy of |lambda_i| / sum_j |lambda_j|, in [0, log n].

    Raises:
        ValueError: as `diffusion_spectral_entropy`, or neighbors outside 1..n.

    Examples:
        >>> round(adjacency_spectral_entropy(np.array([[0.0], [1e6]]), base=2), 12)
        1.0
    """
    unit = log_base(base)
    check_kernel(sigma)
    points = _check_points(Z).detach()
    if neighbors is not None and not 1 <= neighbors <= len(points):
        raise ValueError(f"neighbors must be in 1..{len(points)} (n), but is {neighbors}")
    squared, width = _distances_and_bandwidth(points, sigma)
    if neighbors is None:
        eigenvalues = _eigenvalues(_kernel(squared, width))
    else:
        reach = squared.kthvalue(neighbors, dim=-1, keepdim=True).values
        eigenvalues = torch.linalg.eigvals((squared <= reach).double())
    return _powered_entropy(eigenvalues, 1).item() * unit


def check_kernel(
    sigma: Bandwidth,
    t: float = 1,
    normalization: Normalization = "code",
    max_n: int = 10_000,
) -> None:
    """Refuses parameters of a diffusion spectral entropy that mean nothing.

    Raises:
        ValueError: sigma or t not positive and finite, an unknown name, or max_n < 2.
    """
    _check_time(t)
    if isinstance(sigma, str):
        if sigma not in ("median", "mean_norm"):
            raise ValueError(f"sigma must be a number, 'median' or 'mean_norm', but is {sigma!r}")
    elif not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma must be a positive finite number, but is {sigma!r}")
    if normalization not in get_args(Normalization):
        choices = ", ".join(get_args(Normalization))
        raise ValueError(f"normalization must be one of {choices}, but is {normalization!r}")
    if max_n < 2:
        raise ValueError(f"max_n must be at least 2, but is {max_n}")


# --- parts ----------------------------------------------------------------------------------------


def _squared_distances(points: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    # float64 throughout: in float32 the Gram form cannot tell near-duplicates far from the centre.
    # Blocks of features keep the float64 copy small when d is in the hundreds of thousands.
    gram = points.new_zeros(len(points), len(points), dtype=torch.float64)
    for block in points.split(_FEATURE_BLOCK, dim=1):
        centred = block.double() - block.double().mean(0)
        gram.addmm_(centred, centred.mT)
    norms = gram.diagonal().clone()
    # What lies below the rounding of the Gram form, negatives included, is no distance.
    floor = 1e-13 * norms.detach().max().item()
    squared = gram.mul_(-2).add_(norms[:, None]).add_(norms)
    return torch.threshold_(squared, floor, 0.0)


def _distances_and_bandwidth(
    points: Float[Tensor, "n d"], sigma: Bandwidth
) -> tuple[Float[Tensor, "n n"], float]:
    squared = _squared_distances(points)
    if sigma == "median":
        # Each pair once: the lower median is that of all pairs counted twice.
        pairs = torch.cat([row[i + 1 :] for i, row in enumerate(squared.detach())])
        apart = pairs[pairs > 0]
        width = apart.median().sqrt().item() if len(apart) else 0.0
    elif sigma == "mean_norm":
        width = 0.3 * points.detach().double().norm(dim=1).mean().item()
    else:
        width = float(sigma)
    # Points that all coincide have entropy 0 at every bandwidth.
    return squared, width if width > 0 else 1.0


def _kernel(squared: Float[Tensor, "*batch n n"], sigma: float) -> Float[Tensor, "*batch n n"]:
    """The Gaussian kernel, in the memory of the distances."""
    return squared.div_(-2 * sigma**2).exp_()


def _rescale(kernel: Float[Tensor, "*batch n n"], power: float) -> Float[Tensor, "*batch n n"]:
    """R^-power K R^-power with R the row sums of K; in its memory where no gradient needs K."""
    scale = kernel.sum(-1) ** -power
    rows, columns = scale[..., :, None], scale[..., None, :]
    return rows * kernel * columns if kernel.requires_grad else kernel.mul_(rows).mul_(columns)


def _diffusion_operator(
    squared: Float[Tensor, "*batch n n"], sigma: float, normalization: Normalization
) -> Float[Tensor, "*batch n n"]:
    """The symmetric operator, in the memory of the distances."""
    kernel = _rescale(_kernel(squared, sigma), 1.0 if normalization == "one" else 0.5)
    # D^-1 K is similar to the symmetric D^-1/2 K D^-1/2.
    return kernel if normalization == "code" else _rescale(kernel, 0.5)


def _operator_entropy(
    operator: Float[Tensor, "*batch n n"],
    t: float,
    tolerance: float | None,
    rng: np.random.Generator,
) -> Float[Tensor, "*batch"]:
    n = operator.shape[-1]
    if tolerance is None or n < _ESTIMATE_FROM:
        return _powered_entropy(_eigenvalues(operator).flip(-1), t)
    entropies = []
    for matrix in operator.reshape(-1, n, n):
        estimate = entropy_estimate(matrix, t, tolerance, rng, max_products=n // _ROWS_A_PRODUCT)
        entropies.append(
            operator.new_tensor(estimate.entropy)
            if estimate.meets(tolerance, n)
            else _powered_entropy(_eigenvalues(matrix).flip(-1), t)
        )
    return torch.stack(entropies).reshape(operator.shape[:-2])


def _entropy(p: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Entropy in nats; zeros, and rounding below them, count nothing and get no gradient."""
    return torch.special.entr(torch.where(p > 0, p, 1.0)).sum(-1)


def _power(x: Float[Tensor, "*batch n"], exponent: float) -> Float[Tensor, "*batch n"]:
    """x^exponent with derivative zero, not infinite, at x = 0."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0) ** exponent, 0.0)


def _powered_entropy(eigenvalues: Inexact[Tensor, "*batch n"], t: float) -> Float[Tensor, "*batch"]:
    weights = _power(eigenvalues.abs(), t)
    return _entropy(weights / weights.sum(-1, keepdim=True))


def _size_matched(
    entropies: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    repeats: int,
    seed: int,
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray, float]:
    """sum_c p_c (mean_draws H(S_draw) - H(class c)); also the mean of the first term."""
    classes, sizes = np.unique(labels, return_counts=True)
    large = sizes >= 2
    if not large.any():
        raise ValueError("Y must have a class with at least two points, but every class has one")
    if not large.all():
        names = ", ".join(str(c) for c in classes[~large][:5])
        warnings.warn(
            f"classes with a single point have no entropy and are left out: {names}", stacklevel=3
        )
        classes, sizes = classes[large], sizes[large]
    per_class, unconditional = np.empty(len(classes)), np.empty(len(classes))
    for i, (label, size) in enumerate(zip(classes, sizes, strict=True)):
        rng = np.random.default_rng(seed)
        draws = [rng.choice(len(labels), size, replace=False) for _ in range(repeats)]
        entropy = entropies(np.stack([np.flatnonzero(labels == label), *draws]))
        unconditional[i] = entropy[1:].mean()
        per_class[i] = unconditional[i] - entropy[0]
    weights = sizes / sizes.sum()
    value, mean = float(weights @ per_class), float(weights @ unconditional)
    return value, per_class, classes, sizes, mean


def _warn_at_the_ends(fraction: float, sigma: float) -> None:
    """Warns where an entropy, given as a fraction of its maximum, says nothing about the points."""
    if fraction > 0.98:
        end, cure = "log n", "larger"
    elif fraction < 0.02:
        end, cure = "0", "smaller"
    else:
        return
    warnings.warn(
        f"entropy within 2 % of {end}: sigma={sigma:.3g} does not resolve these points; "
        f"a {cure} sigma (or sigma='median') may",
        stacklevel=3,
    )


def _check_array(x: object, name: str) -> None:
    if not isinstance(x, Tensor | np.ndarray):
        raise TypeError(f"{name} must be a torch.Tensor or numpy.ndarray, but is {type(x)}")


def _tensor(x: Tensor | np.ndarray) -> Tensor:
    """The same memory as a tensor; a copy of an array that torch cannot share."""
    if isinstance(x, Tensor):
        return x
    return torch.from_numpy(np.require(x, requirements=["C", "W"]))


def _as_float64(x: Tensor | np.ndarray, name: str) -> Float[Tensor, "..."]:
    _check_array(x, name)
    values = _tensor(x).double()
    if not bool(values.isfinite().all()):
        bad = int((~values.isfinite()).sum())
        raise ValueError(f"{name} must be finite, but holds {bad} NaN or inf")
    return values


def _check_points(Z: Tensor | np.ndarray) -> Float[Tensor, "n d"]:
    _check_array(Z, "Z")
    if Z.ndim != 2 or Z.shape[0] < 2 or Z.shape[1] < 1:
        raise ValueError(
            f"Z must be (n >= 2 points, d >= 1 coordinates), but has shape {tuple(Z.shape)}"
        )
    points = _tensor(Z)
    if not points.is_floating_point():
        points = points.double()
    if not bool(points.isfinite().all()):
        bad = int((~points.isfinite()).sum())
        raise ValueError(f"Z must be finite, but holds {bad} NaN or inf")
    return points


def _check_labels(
    points: Tensor,
    Y: Tensor | np.ndarray,
    discrete: bool | None,
    n_clusters: int,
    repeats: int,
) -> np.ndarray:
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, but is {repeats}")
    _check_array(Y, "Y")
    if Y.ndim == 0 or len(Y) != len(points):
        raise ValueError(f"Y must have a row for each of Z's {len(points)}, has {tuple(Y.shape)}")
    return cluster_labels(Y, discrete=discrete, n_clusters=n_clusters)


def _check_time(t: float) -> float:
    if not (t > 0 and math.isfinite(t)):
        raise ValueError(f"t must be a positive finite number, but is {t!r}")
    return t


def _check_tolerance(tolerance: float | None, t: float, Z: Tensor | np.ndarray) -> None:
    if tolerance is None:
        return
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be None or between 0 and 1, but is {tolerance!r}")
    if t < 1:
        raise ValueError(f"t must be at least 1 with a tolerance, but is {t!r}")
    if isinstance(Z, Tensor) and Z.requires_grad and torch.is_grad_enabled():
        raise ValueError("Z must not require gradients with a tolerance: an estimate has none")


def _check_hermitian(
    x: Tensor | np.ndarray, name: str
) -> tuple[Inexact[Tensor, "*batch n n"], float]:
    """The matrix in double precision, and the tolerance that its own dtype calls for."""
    _check_array(x, name)
    tensor = _tensor(x)
    if tensor.ndim < 2 or tensor.shape[-1] != tensor.shape[-2] or tensor.shape[-1] == 0:
        raise ValueError(f"{name} must be square, but has shape {tuple(tensor.shape)}")
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise TypeError(f"{name} must be real or complex floating, but has {tensor.dtype}")
    eps = torch.finfo(tensor.dtype).eps
    matrix = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
    if not bool(matrix.isfinite().all()):
        raise ValueError(f"{name} must be finite, but holds NaN or inf")
    tolerance = max(1e-10, 8 * eps * math.sqrt(tensor.shape[-1]))
    gap = (matrix - matrix.mH).detach().abs().amax((-2, -1))
    if bool((gap > tolerance * matrix.detach().abs().amax((-2, -1))).any()):
        raise ValueError(
            f"{name} must be Hermitian, but differs from its adjoint by {gap.max().item():.3g}"
        )
    return matrix, tolerance


def _psd_eigenvalues(
    matrix: Inexact[Tensor, "*batch n n"], name: str, tolerance: float
) -> Float[Tensor, "*batch n"]:
    eigenvalues = _eigenvalues(matrix)
    if bool((eigenvalues < -tolerance).any()):
        lowest = eigenvalues.detach().min().item()
        raise ValueError(f"{name} must be positive semi-definite, but has eigenvalue {lowest:.3g}")
    return eigenvalues.clamp(min=0)


def _as_seed(rng: Seed) -> int:
    return int(rng.integers(2**63)) if isinstance(rng, np.random.Generator) else rng


def _subsample_rows(n: int, max_n: int, rng: Seed) -> Integer[Tensor, "m"]:
    if n <= max_n:
        return torch.arange(n)
    chosen = np.random.default_rng(rng).choice(n, max_n, replace=False)
    return torch.from_numpy(np.sort(chosen))


def _subsample(points: Float[Tensor, "n d"], max_n: int, rng: Seed | None) -> Tensor:
    if len(points) <= max_n:
        return points
    if rng is None:
        raise ValueError(
            f"Z has {len(points)} rows, more than max_n={max_n}, and rng=None forbids to subsample: "
            "give a seed or raise max_n"
        )
    return points[_subsample_rows(len(points), max_n, rng)]


def _like(result: Float[Tensor, "*batch"], x: Tensor | np.ndarray) -> Tensor | np.ndarray:
    return result if isinstance(x, Tensor) else result.detach().numpy()


def _eigenvalues(matrix: Tensor) -> Tensor:
    """Of symmetric matrices, ascending."""
    if matrix.device.type == "cpu" and not matrix.requires_grad:
        # NumPy's LAPACK takes two thirds of the time of the one in torch on some machines.
        return torch.from_numpy(np.linalg.eigvalsh(matrix.numpy()))
    return torch.linalg.eigvalsh(matrix)
