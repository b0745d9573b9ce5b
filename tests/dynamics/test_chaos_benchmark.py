import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor

from szilard.dynamics import (
    ChaosBenchmark,
    LagForecaster,
    correlate,
    forecast_scores,
    plot_errors,
    rank_models,
    smape,
    spearman_interval,
)

NAMES = ["Lorenz", "Rossler", "Thomas", "SprottA"]


class Mean:
    def fit(self, y):
        self.mean = y.mean(0)

    def predict(self, h):
        return np.broadcast_to(self.mean, (h, *np.shape(self.mean))).copy()


class Wrong:
    def __init__(self, answer):
        self.answer = answer

    def fit(self, y):
        pass

    def predict(self, h):
        return self.answer(h)


class BatchedMean:
    batched = True

    def fit(self, y):
        self.mean = y.mean(-1)

    def predict(self, h):
        return np.repeat(self.mean[:, None], h, 1)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return ChaosBenchmark(NAMES, workers=1, cache=tmp_path_factory.mktemp("flows"))


@pytest.fixture(scope="module")
def results(benchmark):
    return benchmark.evaluate({"ridge": Ridge(1e-3), "mean": Mean(), "batched": BatchedMean()})


# --- scores ---------------------------------------------------------------------------------------


def test_smape_of_the_known_example_and_of_the_extremes():
    y, forecast = np.array([1.0, 2, -1, 4, 0.5]), np.array([1.1, 1.5, 1, 4, -0.5])
    assert smape(y, forecast) == pytest.approx(87.6190, abs=1e-4)
    assert smape(y, -y) == 200
    assert smape(y, y) == 0
    assert smape(np.zeros(3), np.zeros(3)) == 0


SERIES = arrays(float, 12, elements=st.floats(-1e3, 1e3).filter(lambda v: abs(v) > 1e-6))


@given(SERIES, SERIES, st.floats(0.01, 100))
def test_smape_is_bounded_symmetric_and_without_unit(y, forecast, unit):
    value = smape(y, forecast)
    assert 0 <= value <= 200 + 1e-9
    assert smape(forecast, y) == pytest.approx(value)
    assert smape(unit * y, unit * forecast) == pytest.approx(value)


def test_a_perfect_forecast_has_perfect_scores():
    rng = np.random.default_rng(0)
    y, train = rng.normal(size=30), rng.normal(size=150)
    scores = forecast_scores(y, y, train, 15)
    assert scores["smape"] == scores["mae"] == scores["mse"] == scores["nrmse"] == 0
    assert scores["r2"] == 1
    assert scores["valid_time"] == 2
    assert scores["clipped"] == scores["failed"] == 0


def test_a_forecast_is_valid_until_its_error_exceeds_two_fifths_of_the_spread():
    train = np.array([-1.0, 1.0] * 50)
    y = np.zeros(30)
    scores = forecast_scores(y, np.where(np.arange(30) < 12, 0.39, 0.41), train, 15)
    assert scores["valid_time"] == pytest.approx(12 / 15)


def test_a_forecast_that_explodes_is_cut_and_one_with_nan_is_flagged():
    train = np.array([-1.0, 1.0] * 50)
    scores = forecast_scores(np.zeros(4), np.array([0.0, 0.0, 1e9, -np.inf]), train)
    assert scores["clipped"] == 1
    assert scores["mse"] == pytest.approx(12.5)  # twice 5 squared over 4
    failed = forecast_scores(np.zeros(4), np.array([0.0, np.nan, 0, 0]), train)
    assert (failed["smape"], failed["failed"]) == (200, 1)
    assert np.isnan(failed["mse"])


# --- the protocol ---------------------------------------------------------------------------------


def test_series_are_twelve_periods_of_which_ten_are_fitted(benchmark):
    for series in benchmark:
        assert series.train.shape == (150,)
        assert series.test.shape == (30,)
        assert series.meta["dt"] == pytest.approx(series.meta["period"] / 15)
        assert 0 < series.meta["cycles_per_period"] < 7.5
    assert [series.meta["system"] for series in benchmark] == NAMES
    train, test = benchmark.series("train")[0], benchmark.series("test")[0]
    assert not np.array_equal(train.train, test.train)


def test_every_model_is_scored_on_every_system(results):
    assert len(results) == 12
    mean, batched = results.xs("mean", level="model"), results.xs("batched", level="model")
    pd.testing.assert_frame_equal(mean, batched)
    assert (results.smape.between(0, 200)).all()
    assert results.smape["Rossler", "ridge"] < results.smape["Rossler", "mean"]


def test_a_forecaster_is_fitted_to_the_first_part_alone(benchmark):
    seen = []

    class Spy(Mean):
        def fit(self, y):
            seen.append(y.copy())
            super().fit(y)

        def __deepcopy__(self, memo):
            return Spy()

    benchmark.evaluate({"spy": Spy()})
    for y, series in zip(seen, benchmark.series("test"), strict=True):
        np.testing.assert_array_equal(y, series.train)


def test_the_tuning_series_chooses_among_candidates(benchmark):
    found = benchmark.evaluate({"either": [Wrong(np.zeros), LagForecaster(Ridge(1e-3), 15)]})
    assert (found.chosen == 1).all()
    alone = benchmark.evaluate({"either": LagForecaster(Ridge(1e-3), 15)})
    np.testing.assert_array_equal(found.smape, alone.smape)


def test_several_coordinates_are_forecast_together(tmp_path):
    benchmark = ChaosBenchmark(NAMES[:2], task="multivariate", workers=1, cache=tmp_path)
    assert benchmark.series()[0].train.shape == (150, 3)
    found = benchmark.evaluate({"knn": LagForecaster(KNeighborsRegressor(3), 3), "mean": Mean()})
    assert found.nrmse["Rossler", "knn"] < found.nrmse["Rossler", "mean"]
    with pytest.raises(ValueError, match="batched; the task is multivariate"):
        benchmark.evaluate({"batched": BatchedMean()})


def test_noise_is_in_the_training_part_alone_and_drawn_once(tmp_path, benchmark):
    noisy = ChaosBenchmark(NAMES, noise=0.1, workers=1, cache=benchmark.cache)
    again = ChaosBenchmark(NAMES, noise=0.1, workers=1, cache=benchmark.cache)
    for clean, one, two in zip(benchmark, noisy, again, strict=True):
        np.testing.assert_array_equal(one.test, clean.test)
        np.testing.assert_array_equal(one.train, two.train)
        spread = (one.train - clean.train).std() / clean.train.std()
        assert spread == pytest.approx(0.1, abs=0.03)  # 150 draws


def test_another_segment_is_later_on_the_same_orbit(benchmark):
    later = ChaosBenchmark(["Rossler"], segment=1, workers=1)
    assert not np.array_equal(later.series()[0].train, benchmark.series()[1].train)
    assert later.series()[0].train.std() == pytest.approx(
        benchmark.series()[1].train.std(), rel=0.3
    )


def test_regressors_are_rolled_out():
    wave = np.sin(2 * np.pi * np.arange(150) / 15)
    forecaster = LagForecaster(Ridge(1e-8), 4).fit(wave[:135])
    np.testing.assert_allclose(forecaster.predict(15), wave[135:], atol=1e-5)  # the ridge's bias
    with pytest.raises(ValueError, match="lags: got 0"):
        LagForecaster(Ridge(), 0)
    with pytest.raises(ValueError, match="y: got 5 points"):
        LagForecaster(Ridge(), 4).fit(wave[:5])


# --- over systems ---------------------------------------------------------------------------------


def table_of(scores):
    rows = [
        {"system": f"s{i}", "model": model, "smape": value}
        for model, values in scores.items()
        for i, value in enumerate(values)
    ]
    return pd.DataFrame(rows).set_index(["system", "model"])


def test_correlation_is_spearmans_with_the_best_model_beside_the_others():
    chaos = np.arange(20.0)
    results = table_of({"follows": chaos**3, "opposes": 1e5 - chaos})
    invariants = pd.DataFrame({"lyapunov_1": chaos}, index=[f"s{i}" for i in range(20)])
    found = correlate(results, invariants)
    assert found.spearman["follows", "lyapunov_1"] == pytest.approx(1)
    assert found.spearman["opposes", "lyapunov_1"] == pytest.approx(-1)
    assert found.spearman["best of all", "lyapunov_1"] == pytest.approx(1)
    assert (found.systems == 20).all()


def test_the_interval_of_a_rank_correlation_contains_it():
    rng = np.random.default_rng(0)
    a = rng.normal(size=100)
    value, low, high = spearman_interval(a, a + rng.normal(size=100))
    assert -1 <= low < value < high <= 1
    ties = spearman_interval(np.ones(10), np.arange(10.0))
    assert ties == (0, 0, 0)


def test_ranks_of_models_and_what_difference_means_something():
    found = rank_models(
        table_of({"a": np.arange(9.0), "b": np.arange(9.0) + 1, "c": np.full(9, 50.0)})
    )
    assert found.ranks.to_dict() == {"a": 1, "b": 2, "c": 3}
    # Demsar's table: q = 2.343 for three models.
    assert found.critical_difference == pytest.approx(2.343 * np.sqrt(12 / 54), abs=1e-3)


def test_the_plot_has_a_point_for_every_score(results):
    chaos = pd.DataFrame({"lyapunov_1_per_period": [1.0, 0.4, 0.2, 0.1]}, index=NAMES)
    plot = plot_errors(results, chaos)
    assert sorted(trace.name for trace in plot.data) == ["batched", "mean", "ridge"]
    assert all(len(trace.x) == 4 for trace in plot.data)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "arguments"),
    [
        ("systems: got none", {"systems": []}),
        ("name: got 'Lorentz'", {"systems": ["Lorentz"]}),
        ("granularity: got 1", {"granularity": 1}),
        ("periods: got 2", {"periods": 2}),
        ("noise: got -1", {"noise": -1.0}),
        ("segment: got -1", {"segment": -1}),
    ],
)
def test_a_wrong_argument_is_named(match, arguments):
    with pytest.raises(ValueError, match=match):
        ChaosBenchmark(**{"systems": NAMES, **arguments})


def test_wrong_words_are_named(unhooked):
    for arguments in ({"systems": "some"}, {"granularity": "rough"}, {"task": "both"}):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))}: got"):
            ChaosBenchmark(**{"systems": NAMES, **arguments})


def test_forecasts_of_another_length_are_refused_and_nan_is_flagged(benchmark):
    with pytest.raises(ValueError, match="'short' returned \\(29,\\) for Lorenz"):
        benchmark.evaluate({"short": Wrong(lambda h: np.zeros(h - 1))})
    found = benchmark.evaluate({"nan": Wrong(lambda h: np.full(h, np.nan))})
    assert (found.smape == 200).all()
    assert (found.failed == 1).all()
    with pytest.raises(ValueError, match="forecasters: got none"):
        benchmark.evaluate({})
    with pytest.raises(ValueError, match="empty list"):
        benchmark.evaluate({"nothing": []})


def test_statistics_refuse_what_they_cannot_read(results):
    chaos = pd.DataFrame({"lyapunov_1": [1.0, 0.4]}, index=NAMES[:2])
    with pytest.raises(ValueError, match="got 2 and 2 values"):
        correlate(results, chaos)
    with pytest.raises(ValueError, match="metric: got 'score'"):
        correlate(results, chaos, metric="score")
    with pytest.raises(ValueError, match="columns: got 'entropy'"):
        correlate(results, chaos, columns=["entropy"])
    with pytest.raises(ValueError, match="must be 2 models"):
        rank_models(results.xs("mean", level="model", drop_level=False))
    with pytest.raises(ValueError, match="against: got"):
        plot_errors(results, chaos, against="chaos")
    with pytest.raises(ValueError, match="y, forecast: got NaN"):
        smape(np.array([np.nan]), np.array([1.0]))
