"""Labels of difficulty, the U of entropy over it, and the probe that learns them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from szilard.decoding.difficulty import (
    EASY,
    HARD,
    NORMAL,
    DifficultyProbe,
    difficulty_profile,
    label_difficulty,
    suggest_thresholds,
)

QUICK = {"hidden": 16, "epochs": 30, "lr": 1e-2}


def pairs(least: int = 1) -> st.SearchStrategy[list[tuple[float, float]]]:
    return st.lists(st.tuples(st.floats(0, 1), st.floats(0, 5)), min_size=least, max_size=20)


# Labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("acc", "entropy", "label"),
    [
        (1, 0.30, NORMAL),
        (1, 0.36, EASY),
        (0.85, 0.35, NORMAL),
        (0.80, 0.10, EASY),
        (0.60, 0.90, EASY),
        (0.59, 0.10, HARD),
        (0, 0, HARD),
        (0.84, 0.20, EASY),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_rule_labels_the_worked_examples(acc, entropy, label, dtype):
    found = label_difficulty(
        np.array([acc], dtype), np.array([entropy], dtype), alpha=0.85, beta=0.35, gamma=0.60
    )
    assert found.tolist() == [label]


@given(pairs())
def test_every_question_gets_one_label_and_the_limits_empty_a_class(points):
    acc, entropy = np.array(points).T
    labels = label_difficulty(acc, entropy)
    assert set(labels.tolist()) <= {EASY, NORMAL, HARD}
    boundless = label_difficulty(acc, entropy, beta=np.inf)
    assert not (boundless[acc >= 0.85] == EASY).any()
    assert not (label_difficulty(acc, entropy, gamma=0.0) == HARD).any()


@given(pairs(), st.floats(0, 3), st.floats(0, 3))
def test_a_larger_beta_only_turns_easy_into_normal(points, one, other):
    acc, entropy = np.array(points).T
    few, many = (label_difficulty(acc, entropy, beta=b) for b in sorted((one, other)))
    changed = few != many
    assert (few[changed] == EASY).all()
    assert (many[changed] == NORMAL).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 0.9}, "gamma must not exceed alpha"),
        ({"alpha": 1.1}, "alpha must lie"),
        ({"gamma": -0.1}, "gamma must lie"),
        ({"beta": -1.0}, "beta must be"),
        ({"beta": float("nan")}, "beta must be"),
        ({"acc": np.array([1.2])}, "acc must lie"),
        ({"acc": np.array([np.nan])}, "acc must lie"),
        ({"entropy": np.array([np.nan])}, "entropy must be finite"),
        ({"entropy": np.array([-0.1])}, "entropy must be finite"),
    ],
)
def test_thresholds_and_samples_out_of_range_are_refused(arguments, message):
    good = {"acc": np.array([0.5]), "entropy": np.array([0.5])}
    with pytest.raises(ValueError, match=message):
        label_difficulty(**{**good, **arguments})


@pytest.mark.usefixtures("unhooked")
def test_accuracies_and_entropies_come_in_pairs():
    with pytest.raises(ValueError, match="entropy must have the shape of acc"):
        label_difficulty(np.ones(3), np.ones(2))


# The profile --------------------------------------------------------------------------------------


def curve(shape, noise=0.2, each=30, seed=0):
    difficulty = np.repeat(np.arange(1.0, 11.0), each)
    noise = np.random.default_rng(seed).normal(0, noise, len(difficulty))
    return np.maximum(shape(difficulty) + noise, 0), difficulty


def test_a_planted_u_is_found_with_its_bottom():
    profile = difficulty_profile(*curve(lambda d: 0.5 + 0.05 * (d - 5) ** 2))
    assert profile.u_shape.bottom in (4, 5, 6)
    assert profile.u_shape.p_value < 1e-3
    assert profile.u_shape.left_slope < 0 < profile.u_shape.right_slope
    assert profile.count.tolist() == [30] * 10


@pytest.mark.parametrize(
    "shape", [lambda d: 0.1 * d + 1, lambda d: 3 - 0.1 * d, lambda d: 1 + 0 * d]
)
def test_a_line_is_no_u(shape):
    profile = difficulty_profile(*curve(shape))
    assert profile.u_shape.p_value > 0.05


def test_the_test_of_the_u_keeps_its_level_on_flat_data():
    # Both sides must be significant, so that chance alone gives far fewer than 5 %.
    found = [
        difficulty_profile(*curve(lambda d: 1 + 0 * d, each=8, seed=seed), resamples=2).u_shape
        for seed in range(200)
    ]
    assert sum(shape.p_value < 0.05 for shape in found) <= 10


def test_means_are_the_levels_means_and_lie_within_their_intervals():
    entropy, difficulty = curve(lambda d: d)
    profile = difficulty_profile(entropy, difficulty)
    means = entropy.reshape(10, 30).mean(1)
    np.testing.assert_allclose(profile.entropy, means, rtol=1e-12)
    assert ((profile.low < means) & (means < profile.high)).all()
    # Thirty draws of sd 0.2: the interval is about 4 * 0.2 / sqrt(30) = 0.146 wide.
    assert np.mean(profile.high - profile.low) == pytest.approx(0.14, abs=0.03)


def test_the_order_of_questions_moves_no_mean_and_too_few_levels_give_no_test():
    entropy, difficulty = curve(lambda d: d)
    order = np.random.default_rng(1).permutation(len(entropy))
    shuffled = difficulty_profile(entropy[order], difficulty[order])
    np.testing.assert_allclose(
        shuffled.entropy, difficulty_profile(entropy, difficulty).entropy, rtol=1e-12
    )
    assert difficulty_profile(np.ones(6), np.repeat([1, 2], 3)).u_shape is None
    assert difficulty_profile(np.ones(3), np.arange(3)).u_shape is None


@pytest.mark.parametrize(
    ("entropy", "level", "message"),
    [
        (np.zeros(0), 0.95, "not empty"),
        (np.array([np.nan]), 0.95, "finite"),
        (np.ones(1), 1.0, "level must"),
    ],
)
def test_a_profile_of_nothing_or_nan_is_refused(entropy, level, message):
    with pytest.raises(ValueError, match=message):
        difficulty_profile(entropy, np.ones(len(entropy)), level=level)


# Thresholds ---------------------------------------------------------------------------------------


def test_beta_parts_two_groups_of_entropies_between_them():
    rng = np.random.default_rng(0)
    sure, unsure = rng.normal(0.1, 0.02, 60).clip(0), rng.normal(0.6, 0.05, 40)
    entropy = np.concatenate([sure, unsure, np.full(30, 1.5)])
    acc = np.concatenate([np.ones(100), np.zeros(30)])
    found = suggest_thresholds(acc, entropy)
    assert sure.max() < found.beta < unsure.min()
    assert found.report.separation > 0.9
    assert found.report.shares == pytest.approx((40 / 130, 60 / 130, 30 / 130))
    assert found.report.usable is None


def test_beta_maximises_the_variance_between_its_sides():
    rng = np.random.default_rng(3)
    entropy = rng.gamma(2, 0.2, 40)
    beta = suggest_thresholds(np.ones(40), entropy).beta

    def between(cut: float) -> float:
        low, high = entropy[entropy <= cut], entropy[entropy > cut]
        return len(low) * len(high) * (high.mean() - low.mean()) ** 2

    cuts = np.sort(entropy)[:-1]
    assert between(beta) == pytest.approx(max(map(between, cuts)))


def test_without_a_u_the_report_says_that_the_rule_is_of_no_use():
    rising, difficulty = curve(lambda d: 0.1 * d)
    acc = np.where(difficulty < 7, 1.0, 0.1)
    assert suggest_thresholds(acc, rising, difficulty).report.usable is False
    bent, difficulty = curve(lambda d: 0.5 + 0.05 * (d - 5) ** 2)
    assert suggest_thresholds(acc, bent, difficulty).report.usable is True


def test_thresholds_need_two_solved_questions():
    with pytest.raises(ValueError, match="at least 2 questions"):
        suggest_thresholds(np.array([1.0, 0.0]), np.ones(2))
    assert suggest_thresholds(np.ones(3), np.full(3, 0.2)).report.separation == 0


# The probe ----------------------------------------------------------------------------------------


def test_the_probe_computes_the_worked_example():
    probe = DifficultyProbe(hidden=3, epochs=1).fit(np.eye(3, 2), [0, 1, 2])
    probe.mean_, probe.scale_ = np.zeros(2), np.ones(2)
    first, _, second = probe.network_
    first.weight.data = torch.tensor([[1.0, -1], [0.5, 2], [-1, 0]])
    first.bias.data = torch.tensor([0.0, 0.1, 0.2])
    second.weight.data = torch.tensor([[1.0, 0, -1], [0, 1, 0.5], [-0.5, 0.25, 1]])
    second.bias.data = torch.tensor([0.0, 0.1, -0.1])
    found = probe.predict_proba([[0.3, -0.2]])
    # Six digits, the weights being float32.
    np.testing.assert_allclose(found, [[0.476705, 0.319545, 0.203751]], atol=1e-6)


def xor(n, seed):
    rng = np.random.default_rng(seed)
    corner = rng.integers(2, size=(n, 2))
    h = rng.normal(0, 0.5, (n, 16))
    h[:, :2] += 4 * corner - 2
    return h, corner[:, 0] ^ corner[:, 1]


def test_the_probe_learns_xor_and_a_linear_one_can_not():
    train, test = xor(600, 0), xor(400, 1)
    assert DifficultyProbe(epochs=30).fit(*train).score(*test) > 0.95
    assert DifficultyProbe(hidden=0, epochs=30).fit(*train).score(*test) < 0.70


def test_balanced_weights_keep_a_rare_class():
    rng = np.random.default_rng(0)
    h = rng.normal(size=(400, 4))
    y = np.zeros(400, dtype=int)
    y[:20] = 1
    h[:20, 0] += 1.5
    plain = DifficultyProbe(**QUICK).fit(h, y).predict(h)
    balanced = DifficultyProbe(**QUICK, class_weight="balanced").fit(h, y).predict(h)
    assert balanced[:20].mean() > plain[:20].mean()


def test_training_depends_on_its_seed_alone_and_leaves_the_global_one():
    data = xor(100, 0)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two = (DifficultyProbe(**QUICK).fit(*data).predict_proba(data[0]) for _ in range(2))
    other = DifficultyProbe(**QUICK, random_state=1).fit(*data).predict_proba(data[0])
    np.testing.assert_array_equal(one, two)
    assert abs(one - other).max() > 1e-6
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("labels", [[2, 0, 1], ["normal", "easy", "hard"]])
def test_a_saved_probe_is_the_same_probe(tmp_path: Path, labels):
    h, y = np.random.default_rng(0).normal(size=(60, 5)), np.array(labels)[np.arange(60) % 3]
    probe = DifficultyProbe(**QUICK).fit(h, y)
    path = tmp_path / "probe.safetensors"
    probe.save(path)
    again = DifficultyProbe.load(path)
    np.testing.assert_array_equal(again.predict_proba(h), probe.predict_proba(h))
    assert again.predict(h).tolist() == probe.predict(h).tolist()
    assert again.get_params() == probe.get_params()
    assert os.listdir(tmp_path) == ["probe.safetensors"]


def test_a_probe_that_can_not_be_written_leaves_the_old_one_alone(tmp_path: Path, monkeypatch):
    h, y = np.random.default_rng(0).normal(size=(20, 5)), np.arange(20) % 2
    probe = DifficultyProbe(**QUICK).fit(h, y)
    path = tmp_path / "probe.safetensors"
    probe.save(path)
    before = path.read_bytes()

    def fail(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        probe.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["probe.safetensors"]


def test_what_is_no_probe_is_not_loaded(tmp_path: Path):
    with pytest.raises(ValueError, match="there is no"):
        DifficultyProbe.load(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match="no safetensors"):
        DifficultyProbe.load(tmp_path / "text")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no difficulty probe"):
        DifficultyProbe.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "parameters",
    [
        {"hidden": -1},
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"weight_decay": -1.0},
        {"class_weight": "even"},
    ],
)
@pytest.mark.usefixtures("unhooked")
def test_a_parameter_out_of_range_is_named(parameters):
    (name,) = parameters
    with pytest.raises(ValueError, match=f"{name} must"):
        DifficultyProbe(**parameters).fit(np.eye(2), [0, 1])


def test_nan_one_class_another_size_and_no_training_are_refused(tmp_path: Path):
    probe = DifficultyProbe(**QUICK)
    with pytest.raises(NotFittedError):
        probe.predict(np.eye(2))
    with pytest.raises(NotFittedError):
        probe.save(tmp_path / "probe.safetensors")
    with pytest.raises(ValueError, match="NaN"):
        probe.fit(np.array([[np.nan], [1.0]]), [0, 1])
    with pytest.raises(ValueError, match="1 class"):
        probe.fit(np.eye(2), [1, 1])
    probe.fit(np.eye(2), [0, 1])
    with pytest.raises(ValueError, match="features"):
        probe.predict(np.eye(3))


# The checks set parameters of every type.
@pytest.mark.usefixtures("unhooked")
@parametrize_with_checks([DifficultyProbe(hidden=32, epochs=60, lr=1e-2)])
def test_the_probe_is_an_estimator_of_scikit_learn(estimator, check):
    check(clone(estimator))
