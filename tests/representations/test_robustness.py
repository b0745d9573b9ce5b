import math

import numpy as np
import pytest
from scipy import stats

from szilard.representations import Effect, combine_effects, robustness_slope

EPS = np.array([0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3])


def test_the_slope_is_least_squares_over_the_start():
    F = np.array([20.0, 22, 19, 18, 17, 18, 13, 15])
    line = stats.linregress(EPS, F)
    found = robustness_slope(EPS, F)
    assert found.value == pytest.approx(line.slope / 21)
    assert found.error == pytest.approx(line.stderr / 21)
    assert found.z == pytest.approx(line.slope / line.stderr)


def test_layers_weigh_as_many_parameters_as_they_have():
    F = np.array([10 - 10 * EPS, 40 + 20 * EPS])
    assert robustness_slope(EPS, F, [3, 1]).value == pytest.approx(0.75 * -1 + 0.25 * 0.5)
    assert robustness_slope(EPS, F).value == pytest.approx(-0.25)


def test_the_scale_of_f_does_not_count():
    F = np.array([20.0, 22, 19, 18, 17, 18, 13, 15])
    a, b = robustness_slope(EPS, F), robustness_slope(EPS, 7 * F)
    assert (a.value, a.error) == pytest.approx((b.value, b.error))


def test_equal_effects_combine_to_themselves_with_a_smaller_error():
    found = combine_effects([Effect(-0.7, 0.2)] * 4)
    assert (found.value, found.error) == pytest.approx((-0.7, 0.1))


def test_the_published_z_scores_follow_from_their_errors():
    assert Effect(-0.745, 0.122).z == pytest.approx(-6.11, abs=0.01)
    assert Effect(1.0, 0.0).z == math.inf
    assert math.isnan(Effect(0.0, 0.0).z)


@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize(
    ("eps", "features", "parameters", "message"),
    [
        ([0, 0.1, 0.2], [1.0, 1], None, "a value for each of the 3 eps"),
        ([0.1, 0.2, 0.3], [1.0, 1, 1], None, "eps must hold 0"),
        ([0, 0, 0], [1.0, 1, 1], None, "another strength"),
        ([0, 0.1], [1.0, 1], None, "three runs"),
        ([0, 0.1, 0.2], [1.0, math.nan, 1], None, "finite"),
        ([0, 0.1, 0.2], [0.0, 1, 1], None, "positive mean"),
        ([0, 0.1, 0.2], [1.0, 1, 1], [1, 2], "1 non-negative weights"),
    ],
)
def test_bad_input_is_refused(eps, features, parameters, message):
    with pytest.raises(ValueError, match=message):
        robustness_slope(np.array(eps, dtype=float), np.array(features), parameters)


def test_effects_need_errors():
    with pytest.raises(ValueError, match="at least one effect"):
        combine_effects([])
    with pytest.raises(ValueError, match="positive finite errors"):
        combine_effects([Effect(1.0, 0.0)])
