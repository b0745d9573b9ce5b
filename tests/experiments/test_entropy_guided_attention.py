"""The designs are what they say, and a run goes from units to claims."""

import json
import math

import numpy as np
import pandas as pd
import pydantic
import pytest
import torch

from szilard.experiments import entropy_guided_attention as module
from szilard.experiments.entropy_guided_attention import (
    DESIGNS,
    FUSED,
    OURS,
    EntropyGuidedConfig,
    build,
    experiment,
)
from szilard.lab.experiment import Verdict

pytest.importorskip("transformers")

SMOKE = experiment.presets["smoke"]


def rows_of(config, arm, seed):
    rows = experiment.run(config, arm, seed, lambda *_: None)
    return [{**row, "arm": arm, "seed": seed} for row in rows]


@pytest.fixture(scope="module")
def smoke():
    arms = experiment.arms(SMOKE)
    return pd.DataFrame(
        [row for seed in range(SMOKE.seeds) for arm in arms for row in rows_of(SMOKE, arm, seed)]
    )


def test_smoke_ends_with_every_claim_and_figure(smoke):
    claims = experiment.claims(SMOKE, smoke)
    assert len(claims) == 8
    assert [claim.verdict for claim in claims[:2]] == [Verdict.HOLDS] * 2
    assert [claim.verdict for claim in claims[-2:]] == [Verdict.NOT_MEASURABLE] * 2
    figures = experiment.figures(SMOKE, smoke)
    assert len(figures) == 5
    assert all(len(figure.plot.data) > 0 for figure in figures)


def test_every_arm_reports_what_it_trained(smoke):
    for metric in ("final validation loss", "final overload", "diverged"):
        assert len(smoke[smoke.metric == metric]) == SMOKE.seeds * len(DESIGNS)
    heads = smoke[smoke.metric == "final head"]
    assert len(heads) == SMOKE.seeds * len(DESIGNS) * SMOKE.layers * SMOKE.heads
    assert heads.value.between(0, 1 + 1e-6).all()
    assert set(smoke[smoke.metric == "theta"].arm) == {OURS, "entropy penalty"}


def test_a_unit_is_a_pure_function_of_config_arm_and_seed(smoke):
    state = torch.get_rng_state()
    again = pd.DataFrame(rows_of(SMOKE, OURS, 1))
    assert torch.equal(torch.get_rng_state(), state)
    before = smoke[(smoke.arm == OURS) & (smoke.seed == 1)]
    np.testing.assert_array_equal(again.value, before.value)


@pytest.mark.parametrize("arm", DESIGNS)
def test_designs_share_their_weights_and_have_gradients_everywhere(arm):
    model, stock = build(SMOKE, arm, 3, 128), build(SMOKE, "SM+LN+G", 3, 128)
    ours = dict(model.named_parameters())
    same = [
        name for name, p in stock.named_parameters() if name in ours and p.shape == ours[name].shape
    ]
    assert len(same) >= 8
    assert all(torch.equal(ours[name], stock.get_parameter(name)) for name in same)
    module._loss(SMOKE, model.train(), torch.randint(128, (2, SMOKE.context)), "cpu").backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name


def test_a_loss_that_is_not_finite_ends_the_training(monkeypatch):
    monkeypatch.setattr(module, "_loss", lambda *_: torch.tensor(math.nan, requires_grad=True))
    rows = module.trained(SMOKE, FUSED, 0, lambda done: None)
    assert rows == [{"metric": "diverged", "value": 1.0, "step": 1}]


def test_claims_survive_an_arm_that_diverged(smoke):
    rows = smoke[(smoke.arm != "SM") | smoke.metric.str.startswith("cost")]
    ended = pd.DataFrame(
        [{"arm": "SM", "seed": seed, "metric": "diverged", "value": 1.0} for seed in range(2)]
    )
    table = pd.concat([rows, ended], ignore_index=True)
    assert len(experiment.claims(SMOKE, table)) == 8
    assert len(experiment.figures(SMOKE, table)) == 5
    paper = SMOKE.model_copy(update={"data": "other"})
    last = experiment.claims(paper, table)[-1]
    assert (last.verdict, last.measured.value) == (Verdict.HOLDS, 1.0)


def test_the_learning_rate_rises_and_falls_as_configured():
    config = SMOKE.model_copy(update={"steps": 20, "warmup": 0.2, "decay": "linear"})
    rates = [module._rate(config, step) for step in range(20)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < 0.1
    assert {module._rate(SMOKE, step) for step in range(6)} == {1.0}


def test_the_library_s_two_parts_are_different_text_in_ascii():
    train, held = module._library("train"), module._library("validation")
    assert len(train) > 8 * len(held) > 100_000
    assert train.max() < 128
    first = next(iter(module._library_validation(SMOKE)))
    assert torch.equal(first, next(iter(module._library_validation(SMOKE))))


def test_other_data_comes_by_configuration_alone(tmp_path):
    pytest.importorskip("datasets")
    from szilard.zoo.language import character_tokenizer

    character_tokenizer("abcdefghij \n", add_bos=False).save_pretrained(tmp_path / "tokenizer")
    for part in ("train", "valid"):
        (tmp_path / part).mkdir()
        lines = [json.dumps({"content": f"abc def {'ghij' * i}"}) for i in range(8)]
        (tmp_path / part / "train.jsonl").write_text("\n".join(lines))
    config = SMOKE.model_copy(
        update={
            "data": str(tmp_path / "train"),
            "validation": str(tmp_path / "valid"),
            "tokenizer": str(tmp_path / "tokenizer"),
            "documents": 6,
            "accumulation": 2,
            "warmup": 0.05,
            "decay": "linear",
            "precision": "bfloat16",
            "device": "cpu",
        }
    )
    rows = module.trained(config, OURS, 0, lambda done: None)
    (loss,) = (row["value"] for row in rows if row["metric"] == "final validation loss")
    assert 0 < loss < 10


def test_unknown_designs_are_refused():
    with pytest.raises(pydantic.ValidationError, match="designs"):
        EntropyGuidedConfig(designs=(OURS, "hope"))
