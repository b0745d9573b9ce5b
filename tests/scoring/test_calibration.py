import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError

from szilard.scoring import CalibratedScorer


class Value(CalibratedScorer):
    def __init__(self, tail="upper"):
        self.tail = tail

    def score(self, texts):
        return np.array([float(text) for text in texts])


@given(st.integers(0, 2**32 - 1), st.sampled_from(["upper", "lower", "two-sided"]))
def test_the_level_is_held_by_exchangeable_scores(seed, tail):
    rng = np.random.default_rng(seed)
    # Ties, which must not cost validity: averaged over 400 tests of one sample the rejections are at
    # most those of the worst place the null's quantile can lie, 5 standard errors above.
    null, new = rng.integers(0, 15, 199).tolist(), rng.integers(0, 15, 400).tolist()
    test = Value(tail).fit(null).test(new, alpha=0.1)
    assert test.reject.mean() <= 0.1 + 5 * np.sqrt(0.1 * 0.9 * (1 / 400 + 1 / 199))
    assert ((test.p_value > 0) & (test.p_value <= 1)).all()


def test_p_values_are_ranks_by_hand():
    scorer = Value().fit([1, 2, 3, 4])
    assert scorer.test([5, 4, 0], 0.5).p_value.tolist() == [0.2, 0.4, 1.0]
    assert Value("lower").fit([1, 2, 3, 4]).test([0, 1], 0.5).p_value.tolist() == [0.2, 0.4]
    assert Value("two-sided").fit([1, 2, 3, 4]).test([0, 2.5], 0.5).p_value.tolist() == [0.4, 1.0]


@pytest.mark.parametrize("tail", ["upper", "lower"])
def test_thresholds_are_where_the_test_begins_to_reject(tail):
    null = np.random.default_rng(0).normal(size=99).tolist()
    scorer = Value(tail).fit(null)
    edge = scorer.threshold(0.05)
    outwards = 1e-9 if tail == "upper" else -1e-9
    test = scorer.test([edge + outwards, edge - 5 * outwards - outwards], 0.05)
    assert test.reject[0]
    with pytest.raises(ValueError, match=r"fpr must be at least 0\.01"):
        scorer.threshold(0.005)
    with pytest.raises(ValueError, match="one tail"):
        Value("two-sided").fit(null).threshold(0.05)


def test_groups_are_calibrated_apart():
    scorer = Value().fit([1, 2, 3, 10, 20, 30], groups=list("aaabbb"))
    test = scorer.test([5, 5], 0.5, groups=["a", "b"])
    assert test.p_value.tolist() == [0.25, 1.0]
    with pytest.raises(ValueError, match="'c'"):
        scorer.test([5], groups=["c"])
    with pytest.raises(ValueError, match="as many"):
        scorer.test([5], groups=["a", "b"])


def test_a_missing_score_is_nan_and_never_rejected():
    scorer = Value().fit([1, 2, float("nan")])
    assert len(scorer.null_scores_["all"]) == 2
    test = scorer.test([float("nan"), 9], 0.5)
    assert np.isnan(test.p_value[0])
    assert test.reject.tolist() == [False, True]


def test_bad_input_is_refused_and_hopeless_levels_are_said():
    with pytest.raises(ValueError, match="null must hold"):
        Value().fit([])
    with pytest.raises(ValueError, match="has none"):
        Value().fit([float("nan")])
    with pytest.raises(NotFittedError):
        Value().test([1])
    with pytest.raises(ValueError, match="alpha"):
        Value().fit([1]).test([1], alpha=1.5)
    with pytest.warns(UserWarning, match="nothing can be rejected"):
        Value().fit([1, 2]).test([3], alpha=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Value().fit(range(100)).test([3], alpha=0.05)
