import json
import math

import numpy as np
import pandas as pd
import pytest

from szilard.representations import DynamicsTable

STEP = 2_097_152
MODELS = ("pythia-1.4b", "pythia-2.8b", "pythia-6.9b", "pythia-12b")
TASKS = ("lambada", "sciq", "piqa", "arc_easy", "arc_challenge", "winogrande")


@pytest.fixture(scope="module")
def pythia() -> DynamicsTable:
    return DynamicsTable.pythia()


@pytest.fixture(scope="module")
def report(pythia):
    return pythia.similarity(TASKS, n_perm=2000, force=True)


def rows(y, model="m", task="t", x=None, **more):
    x = np.geomspace(1, 1000, len(y)) if x is None else x
    return [
        {"model": model, "task": task, "tokens": a, "value": b} | more
        for a, b in zip(x, y, strict=True)
    ]


# --- the public evaluations of Pythia ---------------------------------------------------------------


def test_pythia_shapes_of_one_task_are_close_and_of_two_tasks_are_not(report):
    # Published digits, to two in the last place.
    same = report.pairs[report.pairs.kind == "same"].groupby("task").distance.mean()
    expected = {
        "lambada": 0.0196,
        "sciq": 0.0177,
        "piqa": 0.0368,
        "arc_easy": 0.0225,
        "arc_challenge": 0.0532,
        "winogrande": 0.0872,
    }
    for task, value in expected.items():
        assert same[task] == pytest.approx(value, abs=2e-4)
    cross = report.pairs[report.pairs.kind == "cross"].groupby("model").distance.mean()
    for model, value in zip(MODELS, (0.1457, 0.1277, 0.1591, 0.1495), strict=True):
        assert cross[model] == pytest.approx(value, abs=2e-4)
    assert report.same == pytest.approx(0.0395, abs=2e-4)
    assert report.cross == pytest.approx(0.1455, abs=2e-4)
    assert report.auc == pytest.approx(0.915, abs=2e-3)
    assert report.pairs.kind.value_counts().to_dict() == {"cross": 60, "same": 36}
    assert report.p == 1 / 2001


def test_pairs_are_measured_as_two_curves_are(pythia, report):
    for pair in report.pairs.iloc[::13].to_dict("records"):
        a, b = (pair["model"], pair["task"]), (pair["other_model"], pair["other_task"])
        assert pythia.distance(a, b, force=True) == pytest.approx(pair["distance"], abs=1e-12)


def test_rank_correlation_is_high_for_whatever_rises(report):
    assert report.cross_rank > 0.85
    assert report.same_rank > report.cross_rank
    assert report.same_residual > report.cross_residual
    assert report.same < report.time_only


@pytest.mark.parametrize(
    ("task", "steps"),
    [
        ("sciq", (1461, 1620, 1679, 1526)),
        ("lambada", (2802, 3490, 3761, 3954)),
        ("piqa", (3215, 4561, 4946, 4676)),
        ("arc_easy", (4219, 3892, 4692, 5164)),
        ("arc_challenge", (16305, 16805, 20371, 16101)),
        ("winogrande", (35846, 19943, 27057, 26382)),
    ],
)
def test_pythia_half_rises(pythia, task, steps):
    for model, step in zip(MODELS, steps, strict=True):
        assert pythia.half_rise(model, task, force=True) / STEP == pytest.approx(step, abs=2)


def test_pythia_learns_in_one_order_at_every_size(pythia):
    frame = pythia.half_rises(TASKS)
    assert list(frame.index[:2]) == ["sciq", "lambada"]
    assert set(frame.index[-2:]) == {"arc_challenge", "winogrande"}
    assert pythia.order_agreement(TASKS) > 0.7


@pytest.mark.parametrize(
    ("cut", "ours", "last"),
    [
        (33_000, 0.0220, 0.0513),
        (53_000, 0.0106, 0.0314),
        (73_000, 0.0064, 0.0179),
        (93_000, 0.0039, 0.0104),
    ],
)
def test_pythia_forecasts(pythia, cut, ours, last):
    errors, naive = [], []
    for model in MODELS:
        for task in TASKS:
            truth = pythia.value(model, task)
            made = pythia.forecast(model, task, upto=cut * STEP, resamples=1, force=True)
            errors.append(abs(made.value - truth))
            records = pythia.records.query("model == @model and task == @task")
            seen = records[records.tokens <= cut * STEP]
            naive.append(abs(seen.value.iloc[-1] - truth))
    assert np.mean(naive) == pytest.approx(last, abs=5e-4)
    assert np.mean(errors) == pytest.approx(ours, abs=5e-4)


@pytest.mark.parametrize(
    ("task", "same", "other", "errors"),
    [
        ("arc_easy", ("arc_challenge", "sciq"), ("piqa", "winogrande"), (0.0114, 0.0160, 0.0498, 0.0510)),
        ("arc_challenge", ("arc_easy", "sciq"), ("piqa", "winogrande"), (0.0141, 0.0133, 0.0365, 0.0320)),
        ("piqa", ("winogrande",), ("sciq",), (0.0309, 0.0208, 0.0239, 0.0247)),
        ("winogrande", ("piqa",), ("arc_easy",), (0.0277, 0.0245, 0.0396, 0.0328)),
    ],
)  # fmt: skip
def test_pythia_unseen_tasks(pythia, task, same, other, errors):
    transfers = (("pythia-1.4b", "pythia-6.9b"), ("pythia-2.8b", "pythia-12b"))
    loss = ("lambada_log_perplexity",)
    found = [
        np.mean([pythia.predict_unseen(task, known, a, b).mae for a, b in transfers])
        for known in (same, other, loss)
    ]
    copies = [pythia.predict_unseen(task, same, a, b).copy_mae for a, b in transfers]
    np.testing.assert_allclose([*found, np.mean(copies)], errors, atol=5e-4)


def test_winogrande_has_signal_at_12b(pythia):
    signal = pythia.signal().set_index(["model", "task"]).loc[("pythia-12b", "winogrande")]
    assert signal["rise"] == pytest.approx(0.145, abs=5e-4)
    assert signal["noise"] == pytest.approx(0.0135, abs=5e-5)
    assert signal["has_signal"]


def test_loss_and_ability_tell_two_stories(pythia):
    for model in MODELS:
        story = pythia.against_loss(model, "lambada", "lambada_log_perplexity").set_index("phase")
        assert story.flag["after"] == "moves while the loss is flat"
        assert story.per_bit["after"] > 10 * story.per_bit["before"]
    first = pythia.against_loss(MODELS[0], "lambada", "lambada_log_perplexity").set_index("phase")
    assert first.flag["before"] == "still while the loss moves"
    assert first.fallen["before"] > 4


# --- curves of one's own ------------------------------------------------------------------------------


def test_shape_distance_ignores_units_and_scales(pythia):
    frame = pythia.records[pythia.records.task == "sciq"].copy()
    frame["value"] = 100 * frame["value"] + 7
    frame["stderr"] *= 100
    frame["tokens"] *= 4
    other = DynamicsTable.from_pandas(frame)
    pair = ("pythia-1.4b", "sciq"), ("pythia-12b", "sciq")
    assert other.distance(*pair) == pytest.approx(pythia.distance(*pair), abs=1e-12)


def test_a_lower_is_better_metric_is_its_negative(pythia):
    losses = DynamicsTable.from_records(
        rows(np.linspace(3, 1, 12), higher_is_better=False, stderr=0.01)
    )
    gains = DynamicsTable.from_records(rows(np.linspace(-3, -1, 12), stderr=0.01))
    assert losses.half_rise("m", "t") == gains.half_rise("m", "t")
    ahead = losses.forecast("m", "t", upto=500.0, at=2000.0)
    assert 0 <= ahead.low <= ahead.value <= ahead.high
    assert ahead.value < 2
    negative = gains.forecast("m", "t", upto=500.0, at=2000.0, limits=(-math.inf, 0.0))
    assert negative.value == pytest.approx(-ahead.value)


def test_a_noiseless_power_law_is_forecast_and_its_parameters_found():
    x = np.geomspace(10, 1000, 12)
    curve = 0.8 - 0.2 * (x / 1000) ** -0.5
    table = DynamicsTable.from_records(rows(curve, x=x))
    made = table.forecast("m", "t", upto=x[8], at=1000.0, limits=(0, 1))
    assert made.value == pytest.approx(0.6, abs=1e-4)
    np.testing.assert_allclose(made.params, (0.8, 0.2, 0.5), atol=1e-4)
    assert made.at_bound == ()
    assert made.reliable
    assert made.low == pytest.approx(made.high, abs=1e-6)


def test_intervals_of_forecasts_hold_the_truth_nine_times_in_ten():
    rng = np.random.default_rng(0)
    x = np.geomspace(20, 1000, 16)
    held = []
    for i in range(60):
        noisy = 0.8 - 0.1 * (x / 1000) ** -0.4 + 0.01 * rng.normal(size=16)
        table = DynamicsTable.from_records(rows(noisy, x=x, stderr=0.01))
        made = table.forecast("m", "t", upto=x[12], limits=(0, 1), resamples=100, rng=i)
        held.append(made.low <= table.value("m", "t") <= made.high)
    # Binomial with 60 draws: 0.9 +- 0.08 at two deviations, and a bootstrap of few points runs short.
    assert 0.75 <= np.mean(held) <= 1


def test_a_curve_that_has_not_begun_to_bend_has_no_reliable_forecast():
    x = np.geomspace(10, 1000, 12)
    table = DynamicsTable.from_records(
        rows(0.1 + 0.1 * np.log(x / 10) ** 2 / 10, x=x, stderr=0.001)
    )
    assert not table.forecast("m", "t", upto=300.0).reliable


def test_a_flat_curve_has_no_signal():
    table = DynamicsTable.from_records(rows(np.full(10, 0.25), stderr=0.01))
    for call in (
        lambda: table.forecast("m", "t"),
        lambda: table.half_rise("m", "t"),
        lambda: table.distance(("m", "t"), ("m", "t")),
    ):
        with pytest.raises(ValueError, match="no signal"):
            call()
    assert table.phases("m").phase.tolist() == ["no signal"]
    assert not table.phases("m").watch.any()


def test_phases_tell_what_rises_from_what_is_done():
    x = np.geomspace(1, 1000, 14)
    up = np.clip(0.1 * np.log(x), 0, None)
    done = 0.9 - 0.8 / x
    flat = 0.25 + 0.005 * np.resize([1, -1], 14)
    table = DynamicsTable.from_records(
        [
            *rows(up, task="up", x=x, stderr=0.005),
            *rows(done, task="done", x=x, stderr=0.01),
            *rows(flat, task="flat", x=x, stderr=0.01),
        ]
    )
    phases = table.phases("m").set_index("task")
    assert phases.phase.to_dict() == {"up": "rising", "done": "saturated", "flat": "no signal"}
    assert phases.watch.to_dict() == {"up": True, "done": False, "flat": False}


def test_a_drawdown_is_reported_though_progress_hides_it():
    y = np.array([0.0, 0, 0, 0, 0.1, 0.233, 0.19, 0.185, 0.185])
    table = DynamicsTable.from_records(rows(y, stderr=0.006))
    assert table.signal().drawdown[0] == pytest.approx(0.233 - (0.19 + 0.185 + 0.185) / 3)
    assert table.progress("m", "t").iloc[-1] == 1


def test_above_chance_counts_standard_errors():
    table = DynamicsTable.from_records(rows(np.full(6, 0.3), stderr=0.02, chance=0.2))
    assert table.signal().above_chance[0] == pytest.approx(5)


def test_an_unseen_task_may_never_have_been_measured_in_the_target():
    x = np.geomspace(1, 1000, 8)
    known = np.linspace(0, 1, 8)
    table = DynamicsTable.from_records(
        [
            *rows(known, "a", "k", x),
            *rows(0.5 * known + 0.1, "a", "u", x),
            *rows(known**2, "b", "k", x),
        ]
    )
    made = table.predict_unseen("u", ["k"], "a", "b", ridge=0.0)
    np.testing.assert_allclose(made.values, 0.5 * known[-len(made.values) :] ** 2 + 0.1)
    assert math.isnan(made.mae)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"model": "m", "tokens": 1, "task": "t"}], "lack"),
        ([{"model": "m", "tokens": 1, "task": "t", "value": 0.0, "std": 1}], "have"),
        ([{"model": "m", "tokens": 1, "task": "t", "value": math.nan}], "value must be finite"),
        ([{"model": "m", "tokens": 0, "task": "t", "value": 0.0}], "tokens must be"),
        ([{"model": "m", "tokens": 1, "task": "t", "value": 0.0}] * 2, "more than once"),
    ],
)
def test_bad_rows_are_refused(records, message):
    with pytest.raises(ValueError, match=message):
        DynamicsTable.from_records(records)


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        DynamicsTable(pd.DataFrame(columns=["model", "tokens", "task", "value"]))


def test_questions_without_an_answer_are_refused(pythia):
    short = DynamicsTable.from_records(rows([0.1, 0.2, 0.3]))
    with pytest.raises(ValueError, match="at least 4 checkpoints"):
        short.half_rise("m", "t")
    with pytest.raises(ValueError, match="no curve of model 'gpt'"):
        pythia.half_rise("gpt", "sciq")
    with pytest.raises(ValueError, match="leave at least 3"):
        pythia.forecast("pythia-12b", "sciq", upto=14_000 * STEP)
    with pytest.raises(ValueError, match="level"):
        pythia.forecast("pythia-12b", "sciq", level=1.0)
    with pytest.raises(ValueError, match="known must name"):
        pythia.predict_unseen("sciq", ["sciq"], "pythia-1.4b", "pythia-12b")
    with pytest.raises(ValueError, match="models must be at least 2"):
        pythia.similarity(TASKS, ["pythia-12b"])
    with pytest.raises(ValueError, match="model must be one of"):
        pythia.phases("gpt")


def test_what_goes_in_comes_out_sorted(pythia):
    shuffled = pythia.records.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(DynamicsTable(shuffled).records, pythia.records)
    assert set(DynamicsTable(shuffled).models) == set(MODELS)


def test_results_of_the_evaluation_harness_are_read(tmp_path):
    for model in ("a", "b"):
        for step, acc in ((10, 0.3), (20, 0.4)):
            folder = tmp_path / model
            folder.mkdir(exist_ok=True)
            new = {"acc,none": acc, "acc_stderr,none": 0.01, "acc_norm,none": 0.9, "alias": "piqa"}
            old = {"ppl": 10 - acc, "ppl_stderr": 0.1}
            content = {
                "results": {"piqa": new, "lambada": old},
                "higher_is_better": {"lambada": {"ppl": False}},
            }
            (folder / f"step{step}.json").write_text(json.dumps(content))
    table = DynamicsTable.from_lm_eval(
        f"{tmp_path}/*/step*.json",
        r"(?P<model>\w)/step(?P<step>\d+)",
        tokens_per_step=100,
        metric={"piqa": "acc", "lambada": "ppl"},
    )
    assert table.models == ["a", "b"]
    frame = table.records.set_index(["model", "task", "tokens"])
    assert frame.value["a", "piqa", 2000.0] == 0.4
    assert frame.stderr["b", "lambada", 1000.0] == 0.1
    assert not frame.higher_is_better["a", "lambada", 1000.0]
    with pytest.raises(ValueError, match="matches none"):
        DynamicsTable.from_lm_eval(f"{tmp_path}/*.none", r"(\d+)")
    with pytest.raises(ValueError, match="finds no step"):
        DynamicsTable.from_lm_eval(f"{tmp_path}/*/step*.json", r"ckpt(\d+)")
    with pytest.raises(ValueError, match="in no task"):
        DynamicsTable.from_lm_eval(f"{tmp_path}/*/step*.json", r"step(\d+)", metric="bleu")
