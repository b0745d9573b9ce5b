"""The exact part against independent figures, and a run on a tiny model from units to claims."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pydantic
import pytest
import torch

from szilard.experiments.typical_sampling import (
    TypicalConfig,
    _up_to_the_end,
    experiment,
    parse_rule,
    processors,
    zipf_rows,
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


# Computed independently in float64, four digits.
@pytest.mark.parametrize(
    ("rule", "size", "drift"),
    [
        ("ancestral", 1.5997, 0.0),
        ("typical-0.2", 0.3489, -0.0570),
        ("typical-0.95", 1.4698, -0.1804),
        ("nucleus-0.9", 1.3720, -0.4038),
        ("nucleus-0.95", 1.4644, -0.2189),
        ("top-k-30", 1.4411, -1.0080),
    ],
)
def test_expected_deviation_over_zipf_rows_has_its_closed_form_value(rule, size, drift):
    found = {row["metric"]: row["value"] for row in zipf_rows(rule, 64, 512)}
    assert found["exact mean |epsilon|"] == pytest.approx(size, abs=1e-4)
    assert found["exact mean epsilon"] == pytest.approx(drift, abs=1e-4)


def test_at_a_small_mass_no_zipf_row_keeps_its_mode_and_at_a_large_one_most_do():
    small = {row["metric"]: row["value"] for row in zipf_rows("typical-0.2", 64, 512)}
    large = {row["metric"]: row["value"] for row in zipf_rows("typical-0.95", 64, 512)}
    assert small["exact mode kept"] == 0
    assert small["exact kept mass"] == pytest.approx(0.2206, abs=1e-4)
    assert large["exact mode kept"] == pytest.approx(59 / 64)


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("ancestral", 6),
        ("greedy", 1),
        ("top-k-2", 2),
        ("nucleus-0.6", 2),
        ("min-p-0.3", 3),
        ("temperature-0.5", 6),
        ("eta-0.9", 2),
        ("typical-0.99", 6),
    ],
)
def test_each_rule_keeps_its_tokens(rule, kept):
    scores = torch.tensor([[0.4, 0.25, 0.15, 0.1, 0.06, 0.04]]).log()
    for processor in processors(rule):
        scores = processor(torch.zeros(1, 1, dtype=torch.long), scores)
    assert scores.isfinite().sum() == kept


@pytest.mark.parametrize(
    "rule", ["typcal-0.2", "typical", "typical-1", "top-k-0", "top-k-1.5", "temperature-0", "eta-2"]
)
def test_an_unknown_rule_or_value_is_refused_before_the_run(rule):
    with pytest.raises(ValueError, match=rule):
        parse_rule(rule)
    with pytest.raises(pydantic.ValidationError, match=rule):
        TypicalConfig(rules=("ancestral", rule))


def test_a_text_counts_up_to_and_including_its_first_end():
    tokens = torch.tensor([[5, 2, 5, 2], [5, 5, 5, 5], [3, 5, 5, 5]])
    assert _up_to_the_end(tokens, [2, 3]).sum(1).tolist() == [2, 4, 1]
    assert _up_to_the_end(tokens, 2).sum(1).tolist() == [2, 4, 4]
    assert _up_to_the_end(tokens, None).all()


def test_a_unit_depends_on_its_seed_alone_and_leaves_the_global_one(table):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = pd.DataFrame(experiment.run(SMOKE, "typical-0.2", 1, silent))
    assert torch.equal(torch.get_rng_state(), state)
    first = table[(table.arm == "typical-0.2") & (table.seed == 1)]
    np.testing.assert_array_equal(again.value, first.value)
    other = table[(table.arm == "typical-0.2") & (table.seed == 0) & (table.metric == "characters")]
    assert list(again[again.metric == "characters"].text) != list(other.text)


def test_greedy_writes_its_texts_once(table):
    written = table[(table.arm == "greedy") & (table.metric == "characters")]
    assert set(written.seed) == {0}
    assert len(written) == SMOKE.sources[0].prompts


def test_epsilon_is_surprisal_minus_entropy_of_the_untruncated_model(table):
    tokens = table[table.metric == "epsilon"]
    by_text = tokens.groupby(["arm", "seed", "prompt"])
    texts = table.set_index(["arm", "seed", "prompt"])
    surprisal = by_text.apply(lambda rows: (rows.value + rows.entropy).mean())
    expected = texts[texts.metric == "surprisal"].value
    np.testing.assert_allclose(surprisal.sort_index(), expected.sort_index(), rtol=1e-5)
    lengths = texts[texts.metric == "length"].value
    assert (by_text.size().sort_index() == lengths.sort_index()).all()


def test_claims_and_figures_are_made_of_a_run(table):
    claims = experiment.claims(SMOKE, table)
    assert len(claims) == 7
    exact = [claim for claim in claims if claim.measured and claim.measured.level == 1]
    assert [claim.verdict for claim in exact] == [Verdict.HOLDS, Verdict.HOLDS]
    assert claims[-1].verdict is Verdict.NOT_MEASURABLE
    for figure in experiment.figures(SMOKE, table):
        assert figure.plot.data
        assert figure.caption


def test_claims_speak_only_of_the_rules_that_ran(table):
    two = table[table.arm.isin(["typical-0.2", "greedy"])]
    quantities = [claim.quantity for claim in experiment.claims(SMOKE, two)]
    assert any("greedy" in quantity for quantity in quantities)
    assert not any("nucleus" in quantity or "top-k" in quantity for quantity in quantities)
    assert experiment.claims(SMOKE, table[table.arm.isin(["greedy"])]) == []


def test_a_rule_that_repeats_more_than_top_k_fails_its_claim(table):
    worse = table.copy()
    ours = (worse.arm == "typical-0.2") & (worse.metric == "repetition")
    worse.loc[ours, "value"] = 1.0
    verdicts = {c.quantity: c.verdict for c in experiment.claims(SMOKE, worse)}
    assert verdicts["REP(typical-0.2) - REP(top-k-30)"] is Verdict.FAILS
    assert verdicts["REP(greedy) - REP(typical-0.2)"] is Verdict.FAILS


def test_mauve_is_judged_where_it_was_measured(table):
    mauve = [
        {"metric": "mauve", "value": value, "arm": arm, "seed": seed, "source": "stories"}
        for arm, value in (("typical-0.2", 0.9), ("nucleus-0.9", 0.85))
        for seed in range(2)
    ]
    claims = experiment.claims(SMOKE, pd.concat([table, pd.DataFrame(mauve)]))
    assert claims[-1].verdict is Verdict.HOLDS


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """A data set of prompts and stories, and tiny models to continue them, as folders."""
    from transformers import BartConfig, BartForConditionalGeneration

    from szilard.zoo.language import character_tokenizer, tiny_language_model

    folder = tmp_path_factory.mktemp("stories")
    rows = [{"prompt": "a cat sat" + "." * i, "story": "on a mat, and sat."} for i in range(6)]
    (folder / "data").mkdir()
    for split in ("train", "test"):
        lines = "\n".join(json.dumps(row) for row in rows)
        (folder / "data" / f"{split}.jsonl").write_text(lines)
    tokenizer = character_tokenizer("".join(sorted(set("".join(map(str, rows))))))
    causal = tiny_language_model(vocab=tokenizer, hidden=16, layers=1)
    special = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        seq2seq = BartForConditionalGeneration(
            BartConfig(
                vocab_size=len(tokenizer),
                d_model=16,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=32,
                decoder_ffn_dim=32,
                max_position_embeddings=64,
                decoder_start_token_id=tokenizer.bos_token_id,
                forced_eos_token_id=None,
                **special,
            )
        )
    for name, model in (("causal", causal), ("seq2seq", seq2seq)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("architecture", ["causal", "seq2seq"])
def test_the_paper_preset_runs_from_its_configuration_with_other_models_and_data(
    stories: Path, tmp_path, monkeypatch, architecture
):
    monkeypatch.setenv("SZILARD_CACHE", str(tmp_path))
    paper = experiment.presets["paper"]
    source = next(s for s in paper.sources if s.architecture == architecture)
    small = {
        "model": str(stories / architecture),
        "dataset": str(stories / "data"),
        "subset": "",
        "prompt_column": "prompt",
        "reference_column": "story",
        "prompts": 3,
        "prompt_tokens": 16,
        "finetune_steps": min(source.finetune_steps, 2),
        "finetune_batch": 2,
        "finetune_tokens": 24,
    }
    config = paper.model_copy(
        update={
            "sources": (source.model_copy(update=small),),
            "new_tokens": 4,
            "batch_size": 2,
            "mauve": False,
        }
    )
    rows = experiment.run(config, "typical-0.2", 0, silent)
    lengths = [row["value"] for row in rows if row["metric"] == "length"]
    assert len(lengths) == 3
    assert all(1 <= length <= 4 for length in lengths)
    assert {row["source"] for row in rows if "source" in row} == {source.name}


def test_without_any_text_the_exact_claims_and_figures_are_left():
    rows = [
        {**row, "arm": arm, "seed": 0}
        for arm in SMOKE.rules
        for row in zipf_rows(arm, SMOKE.zipf_rows, SMOKE.zipf_vocabulary)
    ]
    bare = pd.DataFrame(rows)
    assert all(claim.measured.level == 1 for claim in experiment.claims(SMOKE, bare))
    assert experiment.figures(SMOKE, bare)
