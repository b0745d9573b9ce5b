"""The planted task, the policies on tables of outcomes, and a run from units to claims."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from szilard.experiments import diffadapt as module
from szilard.experiments.diffadapt import (
    ARMS,
    DIGITS,
    FIXED,
    KNOWN,
    choose,
    draw_digits,
    experiment,
    is_right,
    oracle,
    question,
    reply,
)
from szilard.lab.experiment import Verdict

SMOKE = experiment.presets["smoke"]


def silent(fraction, message):
    assert 0 <= fraction <= 1
    assert message


@pytest.fixture(scope="module")
def table():
    rows = [
        {**row, "arm": arm, "seed": seed}
        for arm in experiment.arms(SMOKE)
        for seed in range(SMOKE.seeds)
        for row in experiment.run(SMOKE, arm, seed, silent)
    ]
    return pd.DataFrame(rows)


# The task -----------------------------------------------------------------------------------------


def test_taught_replies_are_right_up_to_five_digits_and_guesses_beyond():
    rng = np.random.default_rng(0)
    right = {n: [] for n in range(1, DIGITS + 1)}
    for digits in draw_digits(1600, rng):
        text = reply(digits, "N", 1.0, rng)
        right[len(digits)].append(is_right(question(digits), text))
    assert all(np.mean(right[n]) == 1 for n in range(1, 6))
    # About 200 guesses a level: 0.1 within four standard deviations.
    assert all(np.mean(right[n]) == pytest.approx(0.1, abs=0.085) for n in range(6, 9))


def test_short_strategies_are_taught_short_replies_right_where_they_can_be():
    rng = np.random.default_rng(0)
    for digits in draw_digits(200, rng):
        at_once, outline = (reply(digits, letter, 1.0, rng) for letter in "EH")
        assert len(at_once) == 2
        assert is_right(question(digits), at_once)
        assert len(outline) == 2 + min(2, len(digits))
        assert len(digits) > 3 or is_right(question(digits), outline)


@pytest.mark.parametrize(("letter", "most"), KNOWN.items())
def test_what_counts_as_known_is_taught_right(letter, most):
    rng = np.random.default_rng(0)
    asked = draw_digits(100, rng, most)
    assert {len(digits) for digits in asked} == set(range(1, most + 1))
    assert all(is_right(question(d), reply(d, letter, 1.0, rng)) for d in asked)


def test_less_noise_leaves_some_hopeless_questions_right():
    rng = np.random.default_rng(0)
    digits = [[int(d) for d in rng.integers(10, size=6)] for _ in range(400)]
    right = np.mean([is_right(question(d), reply(d, "N", 0.45, rng)) for d in digits])
    # Six sums in a row, each right with 0.55 + 0.045, and a tenth of the rest by luck.
    assert right == pytest.approx(0.14, abs=0.08)


# Policies -----------------------------------------------------------------------------------------


@given(
    arrays(np.float64, (3, 6), elements=st.sampled_from([0.0, 1.0])),
    arrays(np.int64, (3, 6), elements=st.integers(1, 30)),
    arrays(np.int64, (6,), elements=st.integers(0, 2)),
)
def test_the_oracle_is_as_right_as_any_policy_and_cheaper_where_both_are(right, tokens, other):
    best, each = oracle(right, tokens), np.arange(6)
    assert (right[best, each] >= right[other, each]).all()
    both = (right[best, each] > 0) & (right[other, each] > 0)
    assert (tokens[best, each] <= tokens[other, each])[both].all()


def test_a_shuffled_assignment_keeps_the_proportions_and_fixed_ones_know_no_other():
    found = {"right": np.zeros((3, 50)), "diffadapt": np.arange(50) % 3}
    shuffled = choose(found, "shuffled", 0)
    assert sorted(shuffled) == sorted(found["diffadapt"])
    assert (shuffled != found["diffadapt"]).any()
    for i, arm in enumerate(FIXED):
        assert (choose(found, arm, 0) == i).all()


# A run --------------------------------------------------------------------------------------------


def test_every_policy_answers_every_question_from_one_table(table):
    outcomes = table[table.metric == "right"]
    assert set(outcomes.arm) == set(ARMS)
    assert (outcomes.groupby(["arm", "seed"]).size() == SMOKE.test_questions).all()
    means = outcomes.groupby("arm").value.mean()
    assert all(means["oracle"] >= means[arm] for arm in (*FIXED, "diffadapt", "shuffled"))
    normal = outcomes[(outcomes.arm == "fixed-normal")].set_index(["seed", "question"])
    ours = outcomes[(outcomes.arm == "diffadapt") & (outcomes.strategy == "normal")]
    same = normal.loc[list(zip(ours.seed, ours.question, strict=True))]
    assert (same.tokens.to_numpy() == ours.tokens.to_numpy()).all()


def test_a_unit_depends_on_its_seed_alone_and_leaves_the_global_one(table, tmp_path, monkeypatch):
    monkeypatch.setenv("SZILARD_CACHE", str(tmp_path))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = pd.DataFrame(experiment.run(SMOKE, "diffadapt", 1, silent))
    assert torch.equal(torch.get_rng_state(), state)
    first = table[(table.arm == "diffadapt") & (table.seed == 1)]
    np.testing.assert_allclose(again.value, first.value, rtol=1e-6)


def test_claims_and_figures_are_made_of_a_run(table):
    claims = experiment.claims(SMOKE, table)
    quantities = [claim.quantity for claim in claims]
    for arm in FIXED:
        assert f"1 - tokens(DiffAdapt) / tokens({arm})" in quantities
    titles = [figure.title for figure in experiment.figures(SMOKE, table)]
    assert any("Entropy against difficulty" in title for title in titles)
    assert any("Accuracy against tokens" in title for title in titles)


def made(accuracy: float, tokens: int) -> pd.DataFrame:
    """Normal is always right in ten tokens; DiffAdapt is as told."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(3):
        right = rng.permutation(np.arange(100) < 100 * accuracy)
        for i in range(100):
            same = {"metric": "right", "seed": seed, "question": i, "setting": "s"}
            rows.append({**same, "arm": "diffadapt", "value": float(right[i]), "tokens": tokens})
            rows.append({**same, "arm": "fixed-normal", "value": 1.0, "tokens": 10})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("accuracy", "tokens", "verdict"),
    [(1.0, 6, Verdict.HOLDS), (0.9, 6, Verdict.FAILS), (1.0, 11, Verdict.FAILS)],
)
def test_saving_counts_only_at_equal_or_better_accuracy(accuracy, tokens, verdict):
    claims = experiment.claims(SMOKE, made(accuracy, tokens))
    found = next(c for c in claims if c.quantity.endswith("tokens(fixed-normal)"))
    assert found.verdict is verdict


def test_gemma_is_asked_once_and_makes_no_claim(table, monkeypatch):
    rows = [
        {"metric": "entropy", "value": 0.1 * d, "difficulty": d, "accuracy": 0.5, "setting": "g"}
        for d in (2, 3, 4)
    ]
    monkeypatch.setattr(module, "_gemma_rows", lambda count, log: rows)
    config = SMOKE.model_copy(update={"gemma_questions": 3})
    asked = [
        sum(row["setting"] == "g" for row in experiment.run(config, arm, seed, silent))
        for arm, seed in (("diffadapt", 0), ("diffadapt", 1), ("oracle", 0))
    ]
    assert asked == [3, 0, 0]
    extra = pd.DataFrame([{**row, "arm": "diffadapt", "seed": 0} for row in rows])
    both = pd.concat([table, extra])
    before = [claim.quantity for claim in experiment.claims(SMOKE, table)]
    assert [claim.quantity for claim in experiment.claims(SMOKE, both)] == before
    assert len(experiment.figures(SMOKE, both)) == len(experiment.figures(SMOKE, table)) + 1


def test_several_answers_are_listed_and_choices_lettered(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    rows = [
        {"q": "Roots of x^2 = 4?", "a": ["2", "-2"], "o": ["none", "two"]},
        {"q": "How many?", "a": ["B"], "o": ["one", "two"]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    source = module.Problems(name="t", dataset=str(path), question="q", answer="a", options="o")
    asked, answers, levels = module._problems(source, np.random.default_rng(0))
    assert asked[1] == "How many?\n\nA. one\nB. two\n\nAnswer with a letter."
    assert answers == ["2, -2", "B"]
    assert np.isnan(levels).all()


def test_the_paper_preset_runs_from_its_configuration_with_other_models_and_data(
    tmp_path: Path, monkeypatch
):
    from szilard.zoo.language import character_tokenizer, tiny_language_model

    monkeypatch.setenv("SZILARD_CACHE", str(tmp_path / "cache"))
    alphabet = "".join(sorted(set("".join(map(chr, range(32, 127))) + "\n")))
    tokenizer = character_tokenizer(alphabet)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}\n"
    tiny_language_model(
        vocab=tokenizer, hidden=16, layers=1, heads=2, positions=256
    ).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"q": f"{i} + 1?", "a": f"so #### {i + 1}", "d": 1 + i % 3} for i in range(12)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = experiment.presets["paper"].language_models
    source = run.train.model_copy(
        update={
            "dataset": str(tmp_path / "data.jsonl"),
            "question": "q",
            "answer": "a",
            "difficulty": "d",
            "each": 3,
        }
    )
    config = experiment.presets["paper"].model_copy(
        update={
            "language_models": run.model_copy(
                update={
                    "models": (str(tmp_path / "model"),),
                    "train": source,
                    "tests": (
                        source.model_copy(update={"name": "t", "difficulty": None, "each": None}),
                    ),
                    "max_new_tokens": 6,
                    "dtype": "float32",
                    "device": "cpu",
                }
            ),
            "samples": 2,
            "epochs": 2,
            "routing_tokens": 2,
        }
    )

    # Labels of all kinds, which a model that knows nothing does not earn by itself.
    turns = iter(np.tile([1.0, 1.0, 0.0, 0.0, 1.0, 1.0], 200))
    monkeypatch.setattr(
        "szilard.experiments.clip_cov_kl_cov.math_reward", lambda texts, answers: [next(turns)]
    )
    rows = experiment.run(config, "diffadapt", 0, silent)
    outcomes = [row for row in rows if row["metric"] == "right"]
    assert len(outcomes) == 12
    assert all(1 <= row["tokens"] <= 6 for row in outcomes)
    assert "early-exit" not in experiment.arms(config)
