import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from szilard.rl import EntropyLaw

H = np.linspace(0.05, 1.2, 12)


def test_exact_data_return_their_coefficients():
    law = EntropyLaw().fit(H, -0.21 * np.exp(H) + 0.74)
    assert law.a_ == pytest.approx(0.21, abs=1e-10)
    assert law.b_ == pytest.approx(0.74, abs=1e-10)
    assert law.ceiling_ == pytest.approx(0.53, abs=1e-10)
    assert law.r2_ == pytest.approx(1.0)
    assert law.rmse_ < 1e-12


@given(st.floats(-3, 3), st.floats(0.1, 10), st.integers(0, 1000))
def test_the_fit_follows_an_affine_change_of_the_reward(shift, scale, seed):
    reward = np.random.default_rng(seed).normal(size=len(H))
    law, moved = EntropyLaw().fit(H, reward), EntropyLaw().fit(H, scale * reward + shift)
    assert moved.a_ == pytest.approx(scale * law.a_, abs=1e-9)
    assert moved.ceiling_ == pytest.approx(scale * law.ceiling_ + shift, abs=1e-9)
    assert moved.r2_ == pytest.approx(law.r2_, abs=1e-9)


def test_residuals_are_orthogonal_to_the_design():
    reward = np.random.default_rng(1).normal(size=len(H))
    residual = reward - EntropyLaw().fit(H, reward).predict(H)
    assert abs(residual.sum()) < 1e-12
    assert abs(residual @ np.exp(H)) < 1e-12


def test_predicts_the_ceiling_at_zero_entropy():
    law = EntropyLaw().fit(H, np.sin(H))
    assert law.predict(np.zeros(1))[0] == pytest.approx(law.ceiling_)


def test_a_constant_reward_has_no_variance_to_explain():
    law = EntropyLaw().fit(H, np.full_like(H, 0.5))
    assert math.isnan(law.r2_)
    assert law.a_ == pytest.approx(0.0, abs=1e-12)


def test_few_points_warn():
    with pytest.warns(UserWarning, match="5 points"):
        EntropyLaw().fit(H[:5], H[:5])


@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize(
    ("entropy", "reward", "message"),
    [
        (H, H[:-1], "shapes"),
        (H[:2], H[:2], "2 points"),
        (H * np.nan, H, "entropy: holds"),
        (H, H * np.inf, "reward: holds"),
        (np.ones(9), H[:9], "every value"),
    ],
)
def test_bad_input_is_named(entropy, reward, message):
    with pytest.raises(ValueError, match=message):
        EntropyLaw().fit(entropy, reward)


def test_prediction_needs_a_fit():
    with pytest.raises(AttributeError, match="not fitted"):
        EntropyLaw().predict(H)
