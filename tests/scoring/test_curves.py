import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from szilard.scoring import prediction_rejection_ratio, separation


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 8))
def test_areas_are_scikit_learns_also_with_ties(seed, n, kinds):
    rng = np.random.default_rng(seed)
    labels = np.r_[True, False, rng.random(n) < 0.4]
    score = rng.integers(0, kinds, len(labels)).astype(float)
    found = separation(labels, score, resamples=5)
    assert found.auc.value == pytest.approx(roc_auc_score(labels, score))
    assert found.average_precision.value == pytest.approx(average_precision_score(labels, score))
    assert found.fpr[[0, -1]].tolist() == [0, 1]
    assert (np.diff(found.tpr) >= 0).all()


def test_intervals_cover_chance_as_often_as_they_say():
    rng = np.random.default_rng(0)
    labels = np.arange(60) < 30
    covered = 0
    for _ in range(200):
        auc = separation(labels, rng.random(60), resamples=200, rng=rng).auc
        covered += auc.low <= 0.5 <= auc.high
    # 95 %, less what a percentile bootstrap of 30 + 30 lacks, and four standard errors.
    assert covered / 200 > 0.87


def test_rates_at_low_false_positive_rates_are_read_off_the_curve():
    labels = np.arange(200) < 100
    score = np.where(labels, np.arange(200), 49.5)  # half of the positives above all negatives
    found = separation(labels, score, at=(0.0, 0.01, 1.0))
    assert [found.tpr_at[rate].value for rate in (0.0, 0.01, 1.0)] == [0.5, 0.5, 1.0]
    assert found.tpr_at[1.0].low == 1.0


def test_what_has_no_score_is_counted_and_left_out():
    found = separation([1, 1, 0, 0], [2.0, float("nan"), 1.0, 0.0])
    assert (found.auc.value, found.missing) == (1.0, 1)


def test_rejection_ratio_is_one_for_the_oracle_and_zero_on_average_for_noise():
    rng = np.random.default_rng(0)
    correct = rng.random(400) < 0.6
    assert prediction_rejection_ratio(correct, ~correct) == pytest.approx(1)
    assert prediction_rejection_ratio(correct, correct) < -0.5
    assert prediction_rejection_ratio(correct, np.zeros(400)) == pytest.approx(0, abs=1e-12)
    noise = [prediction_rejection_ratio(correct, rng.random(400)) for _ in range(200)]
    assert abs(np.mean(noise)) < 4 * np.std(noise) / np.sqrt(200)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="score must have shape"):
        separation([True, False], [1.0])
    with pytest.raises(ValueError, match="both kinds"):
        separation([True, True], [1.0, 2.0])
    with pytest.raises(ValueError, match="True and False only"):
        separation([2, 0], [1.0, 2.0])
    with pytest.raises(ValueError, match="at must hold rates"):
        separation([1, 0], [1.0, 2.0], at=(2.0,))
    with pytest.raises(ValueError, match="level, resamples"):
        separation([1, 0], [1.0, 2.0], level=2.0)
    with pytest.raises(ValueError, match="must be finite"):
        prediction_rejection_ratio([1, 0], [float("nan"), 1])
    with pytest.raises(ValueError, match="nothing to gain"):
        prediction_rejection_ratio([1, 1], [0, 1])
    with pytest.raises(ValueError, match="uncertainty must have shape"):
        prediction_rejection_ratio([1, 0], [1])


def test_a_separation_plots():
    figure = separation([1, 1, 0], [3.0, 2.0, 1.0]).plot()
    assert figure.data[0].name == "AUC 1.000 [1.000, 1.000]"
