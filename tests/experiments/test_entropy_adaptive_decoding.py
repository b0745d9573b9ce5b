"""The source and its scores by hand, writing in step against the decoder, and a run to its claims."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pydantic
import pytest
import torch

from szilard.decoding import EntropyAdaptiveDecoder
from szilard.experiments.entropy_adaptive_decoding import (
    ARMS,
    EASY,
    KEYS,
    SYMBOLS,
    EADConfig,
    Pair,
    PlantedBlocks,
    Task,
    TextPair,
    boxed,
    experiment,
    follow,
    in_step,
    switching,
)
from szilard.lab.experiment import Verdict
from szilard.zoo.language import character_tokenizer, tiny_language_model

SMOKE = experiment.presets["smoke"]


def silent(fraction: float, message: str) -> None:
    assert 0 <= fraction <= 1
    assert message


def run(config: EADConfig, arms: tuple[str, ...] = ARMS) -> pd.DataFrame:
    return pd.DataFrame(
        {**row, "arm": arm, "seed": seed}
        for seed in range(config.seeds)
        for arm in arms
        for row in experiment.run(config, arm, seed, silent)
    )


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return run(SMOKE)


@pytest.fixture(scope="module")
def sharp() -> Pair:
    """Untrained models of the source's tokens, far from uniform."""
    tokenizer = character_tokenizer(SYMBOLS + KEYS)
    models = []
    for seed, hidden in ((0, 8), (1, 16)):
        model = tiny_language_model(
            "llama", vocab=tokenizer, hidden=hidden, layers=1, heads=2, seed=seed
        )
        torch.nn.init.normal_(
            model.lm_head.weight, std=0.8, generator=torch.Generator().manual_seed(seed)
        )
        models.append(model)
    return Pair(*models, tokenizer)


# The source ---------------------------------------------------------------------------------------


def test_easy_blocks_have_one_successor_and_hard_ones_four() -> None:
    allowed = PlantedBlocks.of(0).allowed
    assert (allowed.sum(-1) == np.array([1, 4, 4, 4])[:, None]).all()
    assert allowed[0, 63, 0]
    assert not np.array_equal(allowed, PlantedBlocks.of(1).allowed)


def test_a_document_of_the_source_is_legal_throughout_and_half_easy() -> None:
    source, rng = PlantedBlocks.of(0), np.random.default_rng(0)
    texts = source.documents(400, rng)
    keys = np.array([[KEYS.index(t[i]) for i in range(3)] for t in texts])
    start = np.array([SYMBOLS.index(t[3]) for t in texts])
    written = np.array([[SYMBOLS.find(c) for c in t[4:]] for t in texts])
    assert source.legal(keys, start, written).all()
    # 1,200 fair coins: four standard deviations are 0.058.
    assert np.mean(keys == KEYS.index(EASY)) == pytest.approx(0.5, abs=0.058)
    # The four successors come up equally often: 2 bits a hard symbol.
    hard = [(t, b) for i, t in enumerate(texts) for b in range(3) if keys[i, b] > 0]
    ranks = [
        np.flatnonzero(source.allowed[KEYS.index(t[4 + 13 * b]), SYMBOLS.index(t[5 + 13 * b])])
        .tolist()
        .index(SYMBOLS.index(t[6 + 13 * b]))
        for t, b in hard
    ]
    assert np.bincount(ranks, minlength=4).min() > 0.15 * len(ranks)


def test_an_error_counts_once_at_its_own_place() -> None:
    source = PlantedBlocks.of(0)
    keys, start = np.zeros((1, 3), dtype=int), np.array([5])
    chain = (5 + 1 + np.arange(36)).reshape(3, 12) % 64
    written = np.concatenate((np.full((3, 1), -1), chain), 1).reshape(1, -1)
    assert source.legal(keys, start, written).all()
    # One symbol skipped: what follows goes on from there.
    later = written.copy()
    later[0, 16:] = np.where(later[0, 16:] >= 0, (later[0, 16:] + 1) % 64, -1)
    assert (~source.legal(keys, start, later)).nonzero()[1:] == (np.array([1]), np.array([2]))
    # A key where a symbol belongs is wrong, and nothing can follow it.
    broken = written.copy()
    broken[0, 20] = -1
    assert (~source.legal(keys, start, broken)).sum() == 2


# Writing in step ----------------------------------------------------------------------------------


@torch.no_grad()
def uniforms_of(
    pair: Pair, prompts: torch.Tensor, written: torch.Tensor, by_large: torch.Tensor
) -> torch.Tensor:
    """Random numbers that lead to these tokens: the middle of each one's step in the CDF."""
    whole = torch.cat((prompts, written), 1)
    small, large = (
        model(whole).logits[:, prompts.shape[1] - 1 : -1].double().softmax(-1)
        for model in (pair.small, pair.large)
    )
    q = torch.where(by_large[:, :, None], large, small)
    chosen = written[:, :, None]
    return (q.cumsum(-1) - q / 2).gather(-1, chosen)[:, :, 0]


@pytest.mark.filterwarnings("ignore:the models changed places")
@pytest.mark.parametrize("dwell", [1, 5])
def test_writing_in_step_takes_the_routes_and_texts_of_the_decoder(sharp: Pair, dwell: int) -> None:
    prompts = torch.randint(4, 72, (6, 5), generator=torch.Generator().manual_seed(0))
    tau, steps = 2.9, 20

    generator = torch.Generator().manual_seed(0)
    decoder = EntropyAdaptiveDecoder(sharp.small, sharp.large, tau, 5, dwell, generator=generator)
    texts = decoder.generate(
        prompts, max_new_tokens=steps, do_sample=True, top_k=0, eos_token_id=None, pad_token_id=0
    )
    # Replayed: uniforms that lead to the tokens that the decoder drew.
    written = texts.sequences[:, 5:]
    assert written.shape == (6, steps)
    assert texts.model_ids.unique().tolist() == [0, 1]
    choose = switching(tau, dwell, 6)
    uniforms = uniforms_of(sharp, prompts, written, texts.model_ids.bool())
    again = in_step(
        sharp, prompts, np.zeros(6, dtype=bool), torch.full((6, steps), -1), uniforms, choose
    )
    np.testing.assert_array_equal(again.tokens, written.numpy())
    np.testing.assert_array_equal(again.by_large, texts.model_ids.numpy() == 1)
    # Batched sums in float32.
    np.testing.assert_allclose(again.bits, texts.entropy_bits.numpy(), atol=1e-4)


def test_a_route_laid_down_is_followed_and_announced_tokens_stand(sharp: Pair) -> None:
    mask = np.random.default_rng(0).random((3, 9)) < 0.5
    prompts = torch.randint(4, 72, (3, 5), generator=torch.Generator().manual_seed(0))
    uniforms = torch.rand(3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = torch.full((3, 9), -1)
    given[:, 4] = torch.tensor([7, 8, 9])
    written = in_step(sharp, prompts, mask[:, 0], given, uniforms, follow(mask))
    np.testing.assert_array_equal(written.by_large, mask)
    assert written.tokens[:, 4].tolist() == [7, 8, 9]


# A run --------------------------------------------------------------------------------------------


def test_a_unit_depends_on_its_seed_alone_and_leaves_the_global_one(table: pd.DataFrame) -> None:
    state = torch.get_rng_state()
    for arm in ("ead", "random-tokens", "assisted"):
        again = pd.DataFrame(experiment.run(SMOKE, arm, 1, silent))
        first = table[(table.arm == arm) & (table.seed == 1)]
        np.testing.assert_array_equal(again.value, first.value)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_arm_writes_the_same_documents_and_the_ends_are_the_models(
    table: pd.DataFrame,
) -> None:
    share = table[table.metric == "share"].groupby("arm").value.mean()
    assert (share["small"], share["large"]) == (0, 1)
    assert share["alternation"] == pytest.approx(19 / 39)
    cost = table[table.arm == "large"].groupby("metric").value.mean()
    assert cost["cost"] == cost["flops"] == cost["traffic"] == 1
    counts = table[(table.metric == "legal") & (table.arm != "assisted")].groupby("arm").document
    assert (counts.nunique() == SMOKE.documents).all()


def test_random_stretches_have_the_method_s_share_and_switches(table: pd.DataFrame) -> None:
    for metric in ("share", "switches"):
        mean = table[table.metric == metric].groupby(["arm", "seed", "tau"]).value.mean()
        pd.testing.assert_series_equal(mean["ead"], mean["random-stretches"])


def test_claims_and_figures_are_made_of_a_run(table: pd.DataFrame) -> None:
    claims = experiment.claims(SMOKE, table)
    exact = [claim for claim in claims if "f + (1 - f)" in claim.statement]
    assert [claim.verdict for claim in exact] == [Verdict.HOLDS]
    assert claims[-1].verdict is Verdict.NOT_MEASURABLE
    for figure in experiment.figures(SMOKE, table):
        assert figure.plot.data
        assert figure.caption


def test_thresholds_must_rise() -> None:
    with pytest.raises(pydantic.ValidationError, match="taus must rise"):
        EADConfig(taus=(1.0, 0.5))
    with pytest.raises(pydantic.ValidationError, match="taus must rise"):
        EADConfig(taus=(-1.0, 0.5))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{7}", "7"),
        (r"\boxed{1} no, \boxed{\dfrac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{ x + 1 }", "x+1"),
        (r"\boxed{7", None),
        ("7", None),
    ],
)
def test_the_last_box_holds_the_answer(text: str, answer: str | None) -> None:
    assert boxed(text) == answer


def test_the_paper_preset_runs_from_its_configuration_with_other_models_and_problems(
    tmp_path: Path,
) -> None:
    tokenizer = character_tokenizer(SYMBOLS + KEYS + " .,?{}\\$\n")
    for name, hidden in (("small", 8), ("large", 16)):
        tiny_language_model(
            "llama", vocab=tokenizer, hidden=hidden, layers=1, heads=2, positions=256
        ).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    rows = [{"problem": f"What is {i}?", "answer": str(i)} for i in range(4)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    pair = TextPair(
        name="Llama, tiny",
        small=str(tmp_path / "small"),
        large=str(tmp_path / "large"),
        dataset=str(tmp_path / "data"),
        prompts=2,
        new_tokens=4,
        seeds=2,
        taus=(1.0, 9.0),
        temperature=0.7,
    )
    config = SMOKE.model_copy(update={"pairs": (pair,), "device": "cpu"})
    found = run(
        config, ("ead", "ead-dwell-5", "random-tokens", "random-stretches", "small", "large")
    )
    texts = found[found.metric == "text correct"]
    assert len(texts) == 2 * 2 * (2 + 1 + 1)
    claims = experiment.claims(config, found)
    assert "score at tau" in claims[-1].quantity
    assert len(experiment.figures(config, found)) == 5


def test_plans_are_the_same_for_every_arm_and_differ_between_seeds() -> None:
    first, again, other = (Task.of(SMOKE, seed) for seed in (0, 0, 1))
    assert torch.equal(first.prompts, again.prompts)
    assert not torch.equal(first.prompts, other.prompts)
