"""The planted noise in closed form, the benchmark's problems, the sandbox, and a run to its claims."""

import math

import numpy as np
import pandas as pd
import pydantic
import pytest
import torch

from szilard.experiments.uscd import (
    ARMS,
    KINDS,
    USCDConfig,
    decode,
    experiment,
    favourites,
    humaneval,
    right_answer,
    target,
    until_stop,
)
from szilard.lab.experiment import Verdict
from szilard.lab.sandbox import available, run_sandboxed

SMOKE = experiment.presets["smoke"]


def silent(fraction, message):
    assert 0 <= fraction <= 1
    assert message


# Planted noise ------------------------------------------------------------------------------------


def exact(arm, kind, shown_is_favourite=False):
    """Probability of the right answer at a perfectly trained model."""
    family, favourite = KINDS.index(kind), 5
    shown = favourite if shown_is_favourite else 9
    p = torch.from_numpy(target(family, shown, favourite))[None]
    q = torch.from_numpy(target(family, None, favourite))[None]
    mixed, _ = decode(arm, p, q, alpha=0.7, eta=0.01, collision=0.8)
    return mixed[0, right_answer(family, shown, favourite)].item()


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("standard", (0.980, 0.358, 0.920)),
        ("uscd", (0.980, 1.000, 0.920)),
        ("always-contrast", (1.000, 1.000, 0.757)),
    ],
)
def test_a_perfectly_trained_model_answers_as_the_closed_form_says(arm, expected):
    found = [exact(arm, kind) for kind in KINDS]
    # Three digits are given.
    assert found == pytest.approx(expected, abs=6e-4)


def test_greedy_takes_the_right_noisy_answer_from_alpha_0_1405():
    p = torch.from_numpy(target(1, 9, 5))[None]
    q = torch.from_numpy(target(1, None, 5))[None]
    for alpha, best in ((0.0, 5), (0.14, 5), (0.141, 9), (0.7, 9)):
        assert decode("uscd", p, q, alpha, 0.01, 0.8)[0].argmax() == best


def test_every_target_is_a_distribution_and_every_family_has_its_own_habit():
    for seed in range(3):
        habit = favourites(seed)
        assert len(set(habit)) == 12
        for family in range(12):
            for shown in (None, 0, 23):
                assert target(family, shown, habit[family]).sum() == pytest.approx(1)


def test_a_random_gate_opens_as_often_and_the_formulas_of_the_baselines_hold():
    p, q = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1)
    ours, gate = decode("uscd", p, q, 0.5, 0.1, 0.6)
    _, random = decode("random-gate", p, q, 0.5, 0.1, 0.6, seed=1)
    assert random.sum() == gate.sum()
    assert not torch.equal(random, gate)
    always, everywhere = decode("always-contrast", p, q, 0.5, 0.1, 0.6)
    assert everywhere.all()
    assert torch.equal(always[gate], ours[gate])
    kept = p >= 0.1 / 8
    logs = torch.where(kept, p / q**0.5, 0)
    torch.testing.assert_close(
        decode("log-space", p, q, 0.5, 0.1, 0.6)[0], logs / logs.sum(-1, keepdim=True)
    )
    guided = p**1.5 / q**0.5
    torch.testing.assert_close(
        decode("context-aware", p, q, 0.5, 0.1, 0.6)[0], guided / guided.sum(-1, keepdim=True)
    )
    with pytest.raises(ValueError, match="arm must be one of"):
        decode("greedy", p, q, 0.5, 0.1, 0.6)


# HumanEval ----------------------------------------------------------------------------------------


def test_every_problem_is_given_without_its_examples_and_ends_alike():
    problems = humaneval()
    assert len(problems) == 164
    # Four have none, two of them because they show code that is to be inverted.
    unchanged = [p.task for p in problems if p.lame == p.prompt]
    assert unchanged == [f"HumanEval/{i}" for i in (38, 41, 50, 83)]
    for problem in problems:
        assert ">>>" not in problem.lame
        assert problem.lame.split("\n")[-1] == problem.prompt.split("\n")[-1]
        compile(problem.lame + "\n    pass", problem.task, "exec")


@pytest.mark.skipif(not available(), reason="this machine can't contain a program")
def test_canonical_solutions_pass_in_the_sandbox_and_broken_ones_fail():
    for i in (0, 13, 32, 67, 163):
        problem = humaneval()[i]
        assert run_sandboxed(problem.program(problem.solution)).status == "passed"
        assert run_sandboxed(problem.program("\n    return None")).status == "failed"
        assert run_sandboxed(problem.program("\n    return (")).status == "failed"
    endless = problem.program("\n    while True:\n        pass")
    assert run_sandboxed(endless, cpu_seconds=1).status == "timeout"


def test_a_completion_ends_where_something_else_begins():
    body = "\n    return 1\n"
    assert until_stop(f"{body}\ndef g():\n    pass\nclass A:") == body
    assert until_stop(f"{body}print(f(1))") == body.rstrip("\n")
    assert until_stop("    if x:\n        return 1") == "    if x:\n        return 1"


# A run --------------------------------------------------------------------------------------------


def run(config, arms=ARMS):
    return pd.DataFrame(
        [
            {**row, "arm": arm, "seed": seed}
            for arm in arms
            for seed in range(config.seeds)
            for row in experiment.run(config, arm, seed, silent)
        ]
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SZILARD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield run(SMOKE)


def test_claims_and_figures_are_made_of_a_run(table):
    claims = experiment.claims(SMOKE, table)
    assert len(claims) == 10
    by_quantity = {claim.quantity: claim for claim in claims}
    closed = by_quantity["largest change of a probability at a closed gate"]
    assert closed.verdict is Verdict.HOLDS
    assert closed.measured.value == 0
    assert claims[-1].verdict is Verdict.NOT_MEASURABLE
    assert "--allow-code-execution" in claims[-1].note
    figures = experiment.figures(SMOKE, table)
    assert len(figures) == 4
    assert all(figure.plot.data and figure.caption for figure in figures)


def test_no_program_is_written_or_run_unless_it_is_allowed(table):
    assert "passed" not in set(table.metric)
    assert not USCDConfig().allow_code_execution


@pytest.mark.skipif(not available(), reason="this machine can't contain a program")
def test_where_allowed_programs_are_run_and_their_share_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("SZILARD_CACHE", str(tmp_path))
    config = SMOKE.model_copy(
        update={"allow_code_execution": True, "positions_problems": 0, "seeds": 2}
    )
    rows = run(config, ("uscd", "standard", "lame"))
    passed = rows[rows.metric == "passed"]
    assert set(passed.seed) == {0}
    assert len(passed) == 3 * config.code_problems
    assert (passed.value == 0).all()
    claim = experiment.claims(config, rows)[-1]
    assert claim.verdict is Verdict.NOT_MEASURABLE
    assert claim.measured.value == 0
    assert "uscd 0.0%, standard 0.0%, lame 0.0%" in claim.note
    assert any("pass their tests" in figure.title for figure in experiment.figures(config, rows))


def test_pass_at_one_is_judged_where_there_are_enough_problems(table):
    rng = np.random.default_rng(0)
    rows = [
        {"metric": "passed", "value": float(rng.random() < chance), "arm": arm, "seed": 0}
        | {"model": "tiny", "benchmark": "humaneval", "task": str(i)}
        for arm, chance in (("uscd", 0.9), ("standard", 0.1))
        for i in range(164)
    ]
    claims = experiment.claims(SMOKE, pd.concat([table, pd.DataFrame(rows)]))
    assert claims[-1].verdict is Verdict.HOLDS


def test_positions_are_those_of_both_prompts_distributions(table):
    rows = table[table.metric.isin(["top-1", "p(y)"])]
    assert set(rows.rule) == {"uscd", "standard", "lame"}
    closed = rows[~rows.gated.astype(bool)]
    by_rule = closed.pivot(index=["metric", "task", "position"], columns="rule", values="value")
    if len(by_rule):
        assert (by_rule.uscd == by_rule.standard).all()
    divergence = table[table.metric == "divergence"].value
    assert divergence.between(0, math.log(2)).all()


def test_the_global_seed_is_left_alone(table):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    experiment.run(SMOKE.model_copy(update={"positions_problems": 0}), "lame", 0, silent)
    assert torch.equal(torch.get_rng_state(), state)


def test_impossible_settings_are_refused():
    for wrong in ({"alpha": -1}, {"collision": 0}, {"top_p": 2}, {"no_such": 1}):
        with pytest.raises(pydantic.ValidationError):
            USCDConfig(**wrong)
