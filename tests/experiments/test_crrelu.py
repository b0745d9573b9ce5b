import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from szilard.experiments import crrelu
from szilard.experiments.crrelu import METHOD, STRESS, VISION, experiment
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
    assert len(claims) == 15
    theory = [claim.verdict for claim in claims[:3]]
    # The published sign of eps raises the entropy: that claim fails at any scale.
    assert theory == [Verdict.HOLDS, Verdict.HOLDS, Verdict.FAILS]
    figures = experiment.figures(SMOKE, smoke)
    assert len(figures) == 5
    assert all(len(figure.plot.data) > 0 for figure in figures)


def test_every_arm_reports_what_it_trains(smoke):
    trained = smoke[smoke.metric == "accuracy"].arm
    assert set(trained) == set(VISION)
    assert set(smoke[smoke.metric == "stress accuracy"].arm) == set(STRESS)
    assert sorted(smoke[smoke.metric == "eps"].layer.unique()) == [1, 2, 3, 4]


def test_a_unit_is_a_pure_function_of_config_arm_and_seed(smoke):
    state = torch.get_rng_state()
    again = pd.DataFrame(rows_of(SMOKE, METHOD, 1))
    assert torch.equal(torch.get_rng_state(), state)
    before = smoke[(smoke.arm == METHOD) & (smoke.seed == 1)]
    np.testing.assert_array_equal(again.value, before.value)


def test_arms_of_a_seed_differ_in_their_activation_alone():
    with crrelu._seeded(3):
        ours = crrelu._network(SMOKE, METHOD, "tiny", 10)
    with crrelu._seeded(3):
        relu = crrelu._network(SMOKE, "relu", "tiny", 10)
    weights = dict(relu.named_parameters())
    extra = set(dict(ours.named_parameters())) - set(weights)
    assert extra == {f"blocks.{i}.mlp.1.eps" for i in range(4)}
    assert all(torch.equal(p, weights[n]) for n, p in ours.named_parameters() if n not in extra)


def test_equal_accuracies_decide_nothing(smoke):
    rows = smoke.copy()
    tie = rows.metric == "stress accuracy"
    rows.loc[tie, "value"] = 0.1 + 0.2  # a sum that is not exactly 0.3
    rows.loc[tie & (rows.arm == "tanh"), "value"] = 0.3
    last = experiment.claims(SMOKE, rows)[-2]
    assert last.measured.value == 0
    assert last.verdict == Verdict.FAILS


def test_parity_fails_beyond_its_band_and_is_open_where_the_interval_leaves_it(smoke):
    def verdict(*gaps):
        rows = smoke[(smoke.metric != "accuracy")]
        accuracy = [
            {"arm": arm, "seed": seed, "metric": "accuracy", "value": 0.5 + (arm == METHOD) * gap}
            for arm in VISION
            for seed, gap in enumerate(gaps)
        ]
        table = pd.concat([rows, pd.DataFrame(accuracy)], ignore_index=True)
        return experiment.claims(SMOKE, table)[3].verdict

    assert verdict(0.0, 0.01) == Verdict.HOLDS
    assert verdict(0.0, 0.02) == Verdict.NOT_MEASURABLE
    assert verdict(-0.05, -0.02) == Verdict.FAILS


def test_the_learning_rate_rises_then_falls_to_nothing():
    rates = [crrelu._rate(step, 4, 20) for step in range(20)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < 0.01


def test_a_scale_of_the_paper_judges_the_ordering(smoke):
    config = SMOKE.model_copy(update={"backbones": ("vit_tiny_patch16_224",)})
    claims = [c for c in experiment.claims(config, smoke) if c.statement.startswith("CRReLU beats")]
    assert all(claim.criterion == "> 0" for claim in claims[:-1])


def test_fine_tuning_by_preferences_runs_from_configuration_alone(tmp_path):
    pytest.importorskip("trl")
    transformers = pytest.importorskip("transformers")
    from szilard.zoo.language import character_tokenizer

    tokenizer = character_tokenizer("abcdefghijklmnopqrstuvwxyz 0123456789")
    gpt2 = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=512,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(gpt2).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "pairs").mkdir()
    lines = [
        {"history": f"ask {i}", "human_ref_A": "yes", "human_ref_B": "no", "labels": i % 2}
        for i in range(20)
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / "pairs" / "train.jsonl").write_text(text)
    config = SMOKE.model_copy(
        update={
            "language_model": str(tmp_path / "model"),
            "preferences": (str(tmp_path / "pairs"),),
        }
    )
    (row,) = crrelu._preferences(config, METHOD, str(tmp_path / "pairs"), 0)
    assert row["metric"] == "preference accuracy"
    assert 0 <= row["value"] <= 1
    assert not math.isnan(row["value"])


def test_a_preference_of_shp_names_the_better_answer():
    row = {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}
    assert crrelu._pair(row) == {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert crrelu._pair({**row, "labels": 0})["chosen"] == "b"
    assert crrelu._pair({"chosen": "x", "rejected": "y"}) == {}
