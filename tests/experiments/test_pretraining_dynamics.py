import json
import math
import sys
import types

import numpy as np
import pandas as pd
import pytest
import torch

from szilard.experiments import pretraining_dynamics
from szilard.experiments.pretraining_dynamics import (
    CHAINS,
    FACTS,
    METHOD,
    Checkpoints,
    Stream,
    excess_bits,
    experiment,
)
from szilard.lab.experiment import Verdict

SMOKE = experiment.presets["smoke"]


def rows_of(config, arm, seed):
    rows = experiment.run(config, arm, seed, lambda *_: None)
    return [{**row, "arm": arm, "seed": seed} for row in rows]


@pytest.fixture(scope="module")
def smoke() -> pd.DataFrame:
    arms = experiment.arms(SMOKE)
    return pd.DataFrame(
        [row for seed in range(2) for arm in arms for row in rows_of(SMOKE, arm, seed)]
    )


def test_smoke_ends_with_every_claim_and_figure(smoke):
    claims = experiment.claims(SMOKE, smoke)
    assert len(claims) == 17
    # What Pythia shows does not depend on the preset.
    pythia = [claim.verdict for claim in claims[:3]]
    assert pythia == [Verdict.HOLDS] * 3
    assert claims[-1].verdict == Verdict.NOT_MEASURABLE
    figures = experiment.figures(SMOKE, smoke)
    assert len(figures) == 5
    assert all(len(figure.plot.data) > 0 for figure in figures)


def test_a_unit_is_a_pure_function_of_config_arm_and_seed(smoke):
    state = torch.get_rng_state()
    again = pd.DataFrame(rows_of(SMOKE, "llama 16", 1))
    assert torch.equal(torch.get_rng_state(), state)
    before = smoke[(smoke.arm == "llama 16") & (smoke.seed == 1)]
    np.testing.assert_array_equal(again.value, before.value)


def test_a_model_equal_to_the_source_has_no_excess_bits():
    truth = torch.from_numpy(Stream(0).transition[0])
    np.testing.assert_allclose(excess_bits(truth.log(), truth), 0, atol=1e-12)


def test_a_uniform_model_has_the_excess_that_the_source_leaves():
    truth = torch.from_numpy(Stream(0).transition[1])
    uniform = torch.full((12, 12), -math.log(12), dtype=torch.float64)
    entropy = -(truth * truth.clamp(min=1e-300).log2()).sum(-1)
    np.testing.assert_allclose(excess_bits(uniform, truth), math.log2(12) - entropy, atol=1e-12)


def test_mass_outside_the_chain_is_excess_too():
    truth = torch.from_numpy(Stream(0).transition[0])
    leaking = (truth / 2).log()
    np.testing.assert_allclose(excess_bits(leaking, truth), 1, atol=1e-12)


def test_rows_hold_what_their_roles_say():
    stream = Stream(3)
    tokens, roles = stream.rows(400, np.random.default_rng(0))
    assert tokens.shape == roles.shape == (400, 64)
    assert tokens.min() >= 1
    assert tokens.max() < Stream.vocabulary
    facts = {tuple(fact) for fact in stream.facts}
    for row, role in zip(tokens, roles, strict=True):
        for i in np.flatnonzero(role):
            kind, token = role[i], row[i]
            if kind <= 2:
                first = Stream.chain + 12 * (kind - 1)
                assert stream.transition[kind - 1, row[i - 1] - first, token - first] > 0
            elif kind == 3:
                assert (row[i - 2], row[i - 1], token) in facts
            elif kind == 4:
                assert (row[i - 1], row[i - 2], token) in facts
            elif kind == 5:
                paste = np.flatnonzero(row[:i] == Stream.paste)[-1]
                copy = np.flatnonzero(row[:i] == Stream.copy)[-1]
                assert token == row[copy + i - paste]
            else:
                terms = (
                    row[i - 6 : i - 1]
                    if i > 4 and row[i - 5] == Stream.plus
                    else row[i - 4 : i - 1]
                )
                terms = terms[terms < Stream.plus]
                assert token - Stream.digit == (terms - Stream.digit).sum() % 5


def test_a_chain_follows_its_probabilities():
    stream = Stream(1)
    tokens, roles = stream.rows(3000, np.random.default_rng(0))
    for chain in (0, 1):
        first = Stream.chain + 12 * chain
        line, at = np.nonzero(roles == chain + 1)
        counts = np.zeros((12, 12))
        np.add.at(counts, (tokens[line, at - 1] - first, tokens[line, at] - first), 1)
        seen = counts.sum(1) > 500
        share = counts[seen] / counts[seen].sum(1, keepdims=True)
        # Five deviations of a binomial with 500 draws.
        np.testing.assert_allclose(share, stream.transition[chain][seen], atol=0.11)


def test_entropies_of_the_chains_lie_between_nothing_and_uniform():
    entropies = np.array([Stream(seed).entropy for seed in range(20)])
    assert (entropies > 0).all()
    assert (entropies < math.log2(12)).all()
    assert 1.8 < entropies.mean() < 2.4


def test_sizes_of_a_seed_see_one_stream(smoke):
    chains = smoke[(smoke.metric == "entropy") & (smoke.seed == 0)]
    assert chains.groupby("task").value.nunique().tolist() == [1, 1]


def test_a_model_that_never_recalls_half_counts_with_its_last_step(smoke):
    last = smoke[smoke.metric == "evaluation"].step.max()
    rows = smoke[smoke.task.isin(FACTS) & (smoke.model == "llama 16")].copy()
    rows["value"] = 0.1
    assert pretraining_dynamics._recalls_half(rows, "llama 16", 0) == last
    rows["value"] = 0.6
    assert pretraining_dynamics._recalls_half(rows, "llama 16", 0) == 3


def test_shares_of_copying_are_judged_only_where_it_is_at_chance():
    claim = pretraining_dynamics._copying_claim
    assert claim([math.nan, math.nan]).verdict == Verdict.NOT_MEASURABLE
    assert claim([1.0, math.nan, 1.0]).verdict == Verdict.HOLDS
    assert claim([0.5, 1.0, 0.0]).verdict == Verdict.FAILS


def test_any_list_of_checkpoints_is_evaluated_from_configuration_alone(
    smoke, tmp_path, monkeypatch
):
    from szilard.zoo.language import character_tokenizer, tiny_language_model

    tokenizer = character_tokenizer("ab")
    for run in ("one", "two"):
        for step in (1, 2, 4, 8, 16):
            model = tiny_language_model("llama", vocab=tokenizer, hidden=8, layers=1, heads=2)
            with torch.no_grad():
                model.lm_head.weight.fill_(step)
            folder = tmp_path / run / f"step{step}"
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    curves = {"early": lambda w: 1 - 1 / w, "late": lambda w: w / 16}

    def simple_evaluate(model, tasks, **settings):
        assert settings == {"num_fewshot": 0, "limit": None}
        weight = float(model.pretrained.lm_head.weight.detach().mean())
        value = {task: curves[task](weight) for task in tasks}
        return {"results": {t: {"acc,none": v, "acc_stderr,none": 0.01} for t, v in value.items()}}

    harness = types.ModuleType("lm_eval")
    harness.simple_evaluate = simple_evaluate
    models = types.ModuleType("lm_eval.models")
    huggingface = types.ModuleType("lm_eval.models.huggingface")
    huggingface.HFLM = lambda pretrained, tokenizer: types.SimpleNamespace(pretrained=pretrained)
    for module in (harness, models, huggingface):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("SZILARD_CACHE", str(tmp_path / "cache"))
    revisions = tuple(f"step{step}" for step in (1, 2, 4, 8, 16))
    runs = tuple(
        Checkpoints(model=str(tmp_path / run), revisions=revisions, tokens_per_step=100)
        for run in ("one", "two")
    )
    config = SMOKE.model_copy(
        update={"checkpoints": runs, "tasks": ("early", "late"), "device": "cpu"}
    )
    assert experiment.arms(config)[-2:] == [run.model for run in runs]
    assert rows_of(config, runs[0].model, 1) == []
    found = [row for run in runs for row in rows_of(config, run.model, 0)]
    assert len(found) == 20
    table = pd.concat([smoke, pd.DataFrame(found)], ignore_index=True)
    claim = experiment.claims(config, table)[-1]
    assert claim.verdict == Verdict.HOLDS
    assert claim.measured.value > 0.1


def test_the_scale_of_the_paper_is_configuration_alone():
    paper = experiment.presets["paper"]
    assert {"EleutherAI/pythia-12b", "LLM360/Amber"} < {run.model for run in paper.checkpoints}
    assert json.loads(paper.model_dump_json())["checkpoints"][0]["revisions"][0] == "step64"
    assert experiment.arms(paper)[0] == METHOD
    assert len(CHAINS) == 2
