"""The planted chains have the curve they were planted with, and claims are judged on what was run."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from szilard.experiments.reasoning_utility import (
    PROBLEMS,
    SCORES,
    Alphabet,
    Chain,
    Settings,
    _judged,
    _planted_chains,
    auroc,
    auroc_interval,
    draw_chain,
    exact_curve,
    experiment,
    word_problem,
)
from szilard.lab.experiment import Verdict

SMOKE = experiment.presets["smoke"]


def silent(fraction: float, message: str) -> None:
    assert 0 <= fraction <= 1


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SZILARD_CACHE", str(tmp_path_factory.mktemp("cache")))
        rows = [
            {**row, "arm": arm, "seed": seed}
            for arm in experiment.arms(SMOKE)
            for seed in range(SMOKE.seeds)
            for row in experiment.run(SMOKE, arm, seed, silent)
        ]
    return pd.DataFrame(rows)


def test_the_doubt_of_an_unreliable_step_has_its_closed_form() -> None:
    chain = Chain((0,) * 4, (0,) * 4, ((0, 0, False), (1, 0, True), None))
    curve = exact_curve(Settings(), chain)
    h = -0.75 * math.log(0.75) - 0.25 * math.log(0.25 / 7)
    assert h == pytest.approx(1.0488, abs=5e-5)
    full = math.log(8)
    expected = [full, (3 * full + h) / 4, (2 * full + h) / 4, (2 * full + h) / 4]
    np.testing.assert_allclose(curve, expected, rtol=1e-12)


def test_the_closed_form_is_the_entropy_of_chains_that_were_drawn() -> None:
    """Unreliable steps are true as often as is said, so that a Bayesian has that much doubt."""
    rng = np.random.default_rng(0)
    told = [
        (step[1] == chain.truth[step[0]], step[2])
        for chain in (draw_chain(Settings(), rng) for _ in range(4000))
        for step in chain.steps
        if step is not None
    ]
    true = np.array([t for t, reliable in told if not reliable])
    # Three standard errors.
    assert abs(true.mean() - 0.75) < 3 * math.sqrt(0.75 * 0.25 / len(true))
    assert all(t for t, reliable in told if reliable)
    assert abs(np.mean([not reliable for _, reliable in told]) - 0.2) < 0.015


def test_chains_are_as_many_steps_as_planned_and_right_if_their_own_answer_is() -> None:
    rng = np.random.default_rng(1)
    chains = [draw_chain(Settings(), rng) for _ in range(500)]
    assert {len(chain.steps) for chain in chains} <= set(range(3, 8))
    for chain in chains:
        for step in chain.steps:
            if step is not None:
                assert chain.own[step[0]] == step[1]
    assert 0.35 < np.mean([chain.right for chain in chains]) < 0.5


def test_every_step_and_symbol_has_a_character_of_its_own() -> None:
    alphabet = Alphabet(Settings())
    assert len(set(alphabet.characters)) == 3 * 4 * 8 + 2
    chain = Chain((0, 1, 2, 3), (0, 1, 2, 3), ((0, 5, True), (0, 5, False), None))
    assert len({*alphabet.steps(chain), *alphabet.answer(chain.truth), alphabet.ask}) == 8


def test_auroc_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    score, right = rng.integers(10, size=200).astype(float), rng.random(200) < 0.4
    assert auroc(score, right) == pytest.approx(roc_auc_score(right, score), abs=1e-12)
    frame = pd.DataFrame({"seed": np.arange(200) % 2, "value": score, "right": right})
    interval = auroc_interval(frame, 200)
    assert interval.low < interval.value < interval.high


def test_a_slip_is_carried_on() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        problem = word_problem(rng)
        pairs = list(zip(problem.right, problem.slip, strict=True))
        first = next(i for i, (a, b) in enumerate(pairs) if a != b)
        assert all(a != b for a, b in pairs[first:])
        assert problem.right[-1].endswith(f"= {problem.answer}.")
        assert len(problem.answer) >= 2


def test_word_problems_are_read_right_and_with_a_slip_at_every_seed(tmp_path) -> None:
    from szilard.zoo.language import character_tokenizer, tiny_language_model

    tokenizer = character_tokenizer("".join(map(chr, range(32, 127))) + "\n")
    tiny_language_model(vocab=tokenizer, hidden=16, layers=1, heads=2).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = SMOKE.model_copy(update={"problems": 2, "problem_judge": str(tmp_path)})
    assert PROBLEMS in experiment.arms(config)
    for seed in range(SMOKE.seeds):
        rows = pd.DataFrame(experiment.run(config, PROBLEMS, seed, silent))
        utility = rows[rows.metric == "text utility"]
        assert sorted(utility.kind) == ["right", "right", "slip", "slip"]
    assert experiment.figures(config, rows.assign(arm=PROBLEMS, seed=0))


def test_a_run_has_every_score_of_every_chain(table: pd.DataFrame) -> None:
    scores = table[table.metric == "score"]
    assert set(scores.arm) == set(SCORES)
    assert (scores.groupby(["arm", "seed"]).size() == SMOKE.chains).all()
    utility = scores[scores.arm == "utility"].sort_values(["seed", "chain"])
    foreign = table[table.metric == "foreign utility"]
    assert len(foreign) == len(utility)
    assert (table[table.metric == "error"].value >= 0).all()


def test_the_same_seed_measures_the_same(table: pd.DataFrame, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SZILARD_CACHE", str(tmp_path))
    assert [c.truth for c in _planted_chains(SMOKE, 0)] != [
        c.truth for c in _planted_chains(SMOKE, 1)
    ]
    again = pd.DataFrame(experiment.run(SMOKE, "nll-drop", 0, silent))
    first = table[(table.arm == "nll-drop") & (table.seed == 0)]
    np.testing.assert_array_equal(again.value, first.value)


def test_claims_and_figures_are_made_of_a_run(table: pd.DataFrame) -> None:
    claims = experiment.claims(SMOKE, table)
    # Twenty steps of training need not find a chain whose slots are all told.
    assert len(claims) in (9, 10)
    assert claims[-1].verdict is Verdict.NOT_MEASURABLE
    for figure in experiment.figures(SMOKE, table):
        assert figure.plot.data
        assert figure.caption


def test_claims_speak_only_of_the_arms_that_ran(table: pd.DataFrame) -> None:
    few = table[table.arm.isin(["slope", "random"])]
    quantities = [claim.quantity for claim in experiment.claims(SMOKE, few)]
    assert len(quantities) == 2
    assert "slope" in quantities[0]


def test_a_judge_that_is_no_better_than_chance_fails_the_claim(table: pd.DataFrame) -> None:
    chance = table.copy()
    mine = (chance.arm == "utility") & (chance.metric == "score")
    chance.loc[mine, "value"] = np.random.default_rng(0).random(int(mine.sum()))
    claim = experiment.claims(SMOKE, chance)[0]
    assert claim.verdict is Verdict.FAILS


def test_the_paper_preset_runs_from_its_configuration_with_other_models_and_data(
    tmp_path, monkeypatch
) -> None:
    from szilard.zoo.language import character_tokenizer, tiny_language_model

    monkeypatch.setenv("SZILARD_CACHE", str(tmp_path))
    text = "ab 0123456789+=.\\boxed{}TheFinalnswrijcuvqgkp\n,;S"
    tokenizer = character_tokenizer("".join(dict.fromkeys(text)))
    tiny_language_model(
        vocab=tokenizer, hidden=16, layers=1, heads=2, positions=256
    ).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    rows = [{"problem": f"{i}+1", "solution": f"\\boxed{{{i + 10}}}"} for i in range(6)]
    (tmp_path / "data" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stored = [
        {
            "problem": f"{i}+1",
            "answer": str(i + 10),
            "chain": f"a. {i}. \\boxed{{{i + 10 + i % 2}}}",
        }
        for i in range(6)
    ]
    (tmp_path / "chains.jsonl").write_text("\n".join(map(json.dumps, stored)))
    paper = experiment.presets["paper"]
    for writer in (tmp_path / "model", tmp_path / "chains.jsonl"):
        study = paper.text.model_copy(
            update={
                "judge": str(tmp_path / "model"),
                "writer": str(writer),
                "dataset": str(tmp_path / "data"),
                "subsets": (),
                "problems": 5,
                "new_tokens": 12,
                "batch_size": 3,
                "device": "cpu",
            }
        )
        config = paper.model_copy(update={"text": study, "resamples": 20})
        found = pd.DataFrame(
            {**row, "arm": arm, "seed": 0}
            for arm in experiment.arms(config)
            for row in experiment.run(config, arm, 0, silent)
        )
        _judged.cache_clear()
        assert set(found[found.metric == "score"].arm) == set(SCORES)
        claims = experiment.claims(config, found)
    # The stored chains: every other answer is wrong.
    assert list(found[found.arm == "random"].right) == [True, False] * 3
    assert "Wrong chains are longer" in [claim.statement for claim in claims]
