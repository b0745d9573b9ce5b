"""USCD: its figures by hand, its identities, and `generate` against a branch read from scratch."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessor,
    PreTrainedModel,
    TextIteratorStreamer,
)

from szilard.decoding import (
    USCDLogitsProcessor,
    collision_to_std,
    std_to_collision,
    strip_examples,
    uscd_combine,
)
from szilard.decoding.uscd import collision_probability

P = torch.tensor([0.40, 0.30, 0.15, 0.10, 0.04, 0.01], dtype=torch.float64)
Q = torch.tensor([0.60, 0.05, 0.20, 0.10, 0.04, 0.01], dtype=torch.float64)

seeds = st.integers(0, 2**31)


def distributions(seed: int, rows: int = 2, vocabulary: int = 12, spread: float = 2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, rows, vocabulary, dtype=torch.float64, generator=generator)
    return (spread * logits).softmax(-1)


# The combination ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "eta", "expected"),
    [
        (0.3, 1 / 3, (0.330827, 0.428571, 0.135338, 0.105263, 0, 0)),
        (0.7, 1 / 3, (0, 0.868852, 0.032787, 0.098361, 0, 0)),
        (0.7, 2 / 3, (0, 0.963636, 0.036364, 0, 0, 0)),
        (0.0, 1 / 3, (0.421053, 0.315789, 0.157895, 0.105263, 0, 0)),
    ],
)
def test_contrasted_probabilities_are_those_computed_by_hand(alpha, eta, expected):
    mixed, gate = uscd_combine(P, Q, alpha, eta)
    assert gate
    # Six digits are given.
    torch.testing.assert_close(mixed, torch.tensor(expected).double(), atol=5e-7, rtol=0)


def test_a_peaked_distribution_is_left_alone_bit_for_bit():
    p = torch.tensor([0.95, 0.03, 0.01, 0.005, 0.003, 0.002])
    mixed, gate = uscd_combine(p, Q.float())
    assert collision_probability(p).item() == pytest.approx(0.903538, abs=1e-6)
    assert not gate
    assert torch.equal(mixed, p)


@given(seeds, st.floats(0, 0.99))
def test_without_a_difference_the_choice_among_kept_tokens_stays(seed, alpha):
    p, _ = distributions(seed)
    mixed, _ = uscd_combine(p, p, alpha, collision=1)
    kept = torch.where(p >= 1 / 3 / 12, p, 0)
    torch.testing.assert_close(mixed, kept / kept.sum(-1, keepdim=True))
    assert torch.equal(mixed.argmax(-1), p.argmax(-1))


@given(seeds, st.floats(0, 0.6), st.floats(0, 0.3))
def test_raising_alpha_moves_weight_to_tokens_the_lame_prompt_favours_less(seed, alpha, more):
    p, q = distributions(seed)
    low, _ = uscd_combine(p, q, alpha, 0, 1)
    high, _ = uscd_combine(p, q, alpha + more, 0, 1)
    order = (q / p).argsort(-1)
    low, high = low.gather(-1, order), high.gather(-1, order)
    # p'_v / p'_w of neighbours in that order, cross-multiplied; rounding of products below 1.
    assert (high[..., :-1] * low[..., 1:] - low[..., :-1] * high[..., 1:] > -1e-12).all()


@given(seeds, st.floats(0, 3), st.floats(0, 3), st.floats(0.01, 1))
def test_the_result_is_a_distribution_and_no_row_is_empty(seed, alpha, eta, collision):
    p, q = distributions(seed)
    mixed, gate = uscd_combine(p, q, alpha, eta, collision)
    torch.testing.assert_close(mixed.sum(-1), torch.ones(2).double())
    assert (mixed >= 0).all()
    assert torch.equal(mixed[~gate], p[~gate])
    assert torch.equal(gate, p.square().sum(-1) <= collision)


def test_where_nothing_positive_is_left_the_distribution_stays():
    mixed, gate = uscd_combine(P, P, alpha=1.0)
    assert gate
    assert torch.equal(mixed, P)
    assert torch.equal(uscd_combine(P, Q, eta=1000.0)[0], P)


def test_rows_are_combined_one_by_one_whatever_the_batch():
    p, q = distributions(3, rows=6)
    whole, gate = uscd_combine(p.view(2, 3, 12), q.view(2, 3, 12), collision=0.3)
    assert gate.any()
    assert not gate.all()
    for i in range(6):
        alone, opened = uscd_combine(p[i], q[i], collision=0.3)
        assert torch.equal(whole.view(6, 12)[i], alone)
        assert gate.view(6)[i] == opened


@pytest.mark.parametrize("vocabulary", [2, 24, 32016])
def test_the_variance_over_the_vocabulary_is_the_collision_probability(vocabulary):
    p = distributions(0, 5, vocabulary)[0]
    found = (vocabulary - 1) * p.std(-1) ** 2 + 1 / vocabulary
    torch.testing.assert_close(found, collision_probability(p), atol=1e-12, rtol=0)
    for row in p:
        theta = collision_to_std(collision_probability(row).item(), vocabulary)
        assert theta == pytest.approx(row.std().item(), abs=1e-12)
        back = std_to_collision(theta, vocabulary)
        assert back == pytest.approx(collision_probability(row).item(), abs=1e-12)


def test_the_papers_thresholds_are_collision_probabilities():
    assert collision_to_std(0.8, 32016) == pytest.approx(0.00499873, abs=5e-9)
    assert std_to_collision(0.0035, 32016) == pytest.approx(0.39221, abs=5e-6)
    assert std_to_collision(0.005, 32016) == pytest.approx(0.8004, abs=5e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"eta": -1}, "eta"),
        ({"collision": 0}, "collision"),
        ({"collision": 1.01}, "collision"),
    ],
)
def test_weights_and_thresholds_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        uscd_combine(P, Q, **{name: float(value) for name, value in settings.items()})


def test_a_standard_deviation_no_distribution_reaches_is_refused():
    for vocabulary in (49152, 262144):
        with pytest.raises(ValueError, match="never closes"):
            std_to_collision(0.005, vocabulary)
    with pytest.raises(ValueError, match="vocabulary"):
        std_to_collision(0.1, 1)
    with pytest.raises(ValueError, match="collision"):
        collision_to_std(0.01, 10)


@pytest.mark.usefixtures("unhooked")
def test_what_is_no_pair_of_distributions_is_refused():
    with pytest.raises(ValueError, match="shape"):
        uscd_combine(P, Q[:5])
    with pytest.raises(ValueError, match="p must sum to 1"):
        uscd_combine(P * 2, Q)
    with pytest.raises(ValueError, match="q must"):
        uscd_combine(P, -Q)


# The lame prompt ----------------------------------------------------------------------------------

DOCTEST = '''from typing import List


def mean(xs: List[float]) -> float:
    """ Mean of the numbers.
    The list is not empty.

    >>> mean([1.0, 2.0])
    1.5
    >>> mean(
    ...     [3.0])
    3.0

    An exact sum is not needed.
    """
'''


def test_doctests_go_with_what_they_print_and_prose_stays():
    assert strip_examples(DOCTEST) == DOCTEST.replace(
        DOCTEST[DOCTEST.index("    >>>") : DOCTEST.index("    An exact")], ""
    )


@pytest.mark.parametrize(
    "examples",
    [
        "    For example:\n    f(2) => 4\n    f(3) => 6\n",
        "    Examples\n    f(2) ➞ 4\n\n    f(3) ➞ 6\n",
        "    Example 1:\n        Input: 2\n        Output: 4\n\n    Example 2:\n        Input: 3\n",
        "    f(2) == 4\n    f(3) == 6\n",
        "    for example:\n    For x = 2 the output should be 4\n",
        "    * f(2) -> 4\n",
        "    f(2) should return 4.\n",
    ],
)
@pytest.mark.parametrize("quotes", ['"""', "'''"])
def test_blocks_under_a_heading_and_single_calls_are_examples(examples, quotes):
    start, end = f"def f(x):\n    {quotes}Twice x -> exactly.\n", f"    {quotes}\n"
    assert strip_examples(start + "\n" + examples + end) == start + end
    note = "\n    Note:\n        x is finite\n"
    assert strip_examples(start + "\n" + examples + note + end) == start + note + end


def test_a_prompt_without_examples_and_code_outside_docstrings_stay_as_they_are():
    prompt = 'def f(x) -> int:\n    """Twice x, for example of an int."""\n    y = f(2) == 4\n'
    assert strip_examples(prompt) == prompt
    assert strip_examples("f(2) => 4") == "f(2) => 4"


def test_comments_of_other_languages_are_stripped_alike():
    prompt = "// Twice x.\n// >>> f(2)\n// 4\nfunction f(x) {\n"
    assert strip_examples(prompt, "javascript") == "// Twice x.\nfunction f(x) {\n"
    assert strip_examples(prompt.replace("//", "#"), "ruby") == "# Twice x.\nfunction f(x) {\n"
    with pytest.raises(ValueError, match="language must be one of"):
        strip_examples(prompt, "cobol")


@given(st.text(max_size=200))
def test_stripping_never_adds_a_line_and_is_done_once(text):
    prompt = f'def f():\n    """{text}"""\n'
    once = strip_examples(prompt)
    assert set(once.split("\n")) <= set(prompt.split("\n")) | {once.split("\n")[-1]}
    assert len(once) <= len(prompt)


# Through generate ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(either) -> PreTrainedModel:
    # Large weights: peaked and flat distributions both occur.
    return either(initializer_range=0.9, tie_word_embeddings=False, eos_token_id=2, pad_token_id=0)


STANDARD = {
    "input_ids": torch.tensor([[0, 0, 1, 5, 9, 9, 17], [1, 4, 30, 30, 8, 21, 6]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]]),
}
LAME = {
    "lame_input_ids": torch.tensor([[1, 5, 9, 17], [0, 1, 4, 6]]),
    "lame_attention_mask": torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]),
}
RULE = {"alpha": 0.6, "eta": 0.1, "collision": 0.3}


def write(model, rule, inputs=STANDARD, tokens=12, seed=None, **settings):
    processors = [] if rule is None else [rule]
    with torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        settings = {"max_new_tokens": tokens, "do_sample": seed is not None} | settings
        if settings["do_sample"]:
            settings = {"top_k": 0, "top_p": 1.0} | settings
        return model.generate(**inputs, logits_processor=processors, **settings)


def rows(tensors, row):
    """One row without its padding."""
    mask = next(value for name, value in tensors.items() if "mask" in name)[row].bool()
    return {name: value[row : row + 1, mask] for name, value in tensors.items()}


class FromScratch(LogitsProcessor):
    """Two passes a step: the lame prompt and all that was written, read anew each time."""

    def __init__(self, model):
        self.model, self.given, self.scores = model, STANDARD["input_ids"].shape[-1], []

    @torch.no_grad()
    def __call__(self, input_ids, scores):
        written = input_ids[:, self.given :]
        ids = torch.cat((LAME["lame_input_ids"], written), -1)
        mask = torch.cat((LAME["lame_attention_mask"], torch.ones_like(written)), -1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        q = self.model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        p = scores.softmax(-1)
        mixed, _ = uscd_combine(p, q[:, -1].softmax(-1), **RULE)
        self.scores.append(mixed)
        return mixed.log()


class Watched(USCDLogitsProcessor):
    def __call__(self, input_ids, scores):
        found = super().__call__(input_ids, scores)
        self.seen = [*getattr(self, "seen", []), found.softmax(-1)]
        return found


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("seed", [None, 7])
def test_text_and_scores_are_those_of_reading_both_prompts_from_scratch(model, lazy, seed):
    expected, rule = FromScratch(model), Watched(model, **LAME, **RULE, lazy=lazy)
    wanted = write(model, expected, seed=seed)
    assert torch.equal(write(model, rule, seed=seed), wanted)
    gate = rule.record.gate
    assert gate.any()
    assert not gate.all()
    # Cached and whole sequences add float32 numbers up in another order.
    torch.testing.assert_close(
        torch.stack(rule.seen), torch.stack(expected.scores), atol=1e-5, rtol=0
    )
    # Had nothing been subtracted, the text would be another.
    assert not torch.equal(write(model, None, seed=seed)[:, : wanted.shape[1]], wanted)


@pytest.mark.parametrize("seed", [None, 7])
def test_one_batch_of_both_prompts_writes_the_same_text(model, seed):
    own = USCDLogitsProcessor(model, **LAME, **RULE)
    paired = USCDLogitsProcessor(model, **LAME, **RULE)
    wanted = write(model, own, seed=seed)
    with paired.in_one_batch():
        found = write(model, paired, seed=seed)
    assert torch.equal(found, wanted)
    assert torch.equal(paired.record.gate, own.record.gate)
    assert paired.lame.forwards == 0
    # The hooks are gone.
    assert torch.equal(
        write(model, None, tokens=2), model.generate(**STANDARD, max_new_tokens=2, do_sample=False)
    )


def test_one_batch_takes_prompts_as_wide_as_the_lame_ones(model):
    rule = USCDLogitsProcessor(model, STANDARD["input_ids"], **RULE)
    short = {name: value[:, -3:] for name, value in STANDARD.items()}
    with rule.in_one_batch(), pytest.raises(ValueError, match="width of lame_input_ids"):
        write(model, rule, short)


def test_the_lame_branch_reads_every_token_once_and_lazily_only_at_open_gates(model):
    lazy = USCDLogitsProcessor(model, **LAME, **RULE)
    eager = USCDLogitsProcessor(model, **LAME, **RULE, lazy=False)
    for rule in (lazy, eager):
        write(model, rule)
    gate = lazy.record.gate
    steps, opened = gate.shape[1], gate.any(0)
    assert not opened.all()
    prompt = LAME["lame_input_ids"].shape[-1]
    assert (eager.lame.forwards, eager.lame.fed) == (steps, prompt + steps - 1)
    assert lazy.lame.forwards == opened.sum()
    assert lazy.lame.fed == prompt + opened.nonzero().max()


def test_a_gate_that_never_opens_reads_nothing_and_changes_nothing(model):
    rule = USCDLogitsProcessor(model, **LAME, collision=1e-9)
    assert torch.equal(write(model, rule), write(model, None))
    assert rule.lame.forwards == 0
    scores = torch.randn(2, 40)
    fresh = USCDLogitsProcessor(model, **LAME, collision=1e-9)
    assert fresh(STANDARD["input_ids"], scores) is scores


@pytest.mark.parametrize("paired", [False, True])
def test_a_left_padded_batch_writes_what_each_prompt_does_alone(model, paired):
    together = USCDLogitsProcessor(model, **LAME, **RULE)
    both = write(model, together)[:, 7:]
    for i in range(2):
        rule = USCDLogitsProcessor(model, **rows(LAME, i), **RULE)
        inputs = rows(STANDARD, i)
        if paired:
            with rule.in_one_batch():
                alone = write(model, rule, inputs)
        else:
            alone = write(model, rule, inputs)
        written = alone[0, inputs["input_ids"].shape[-1] :]
        assert torch.equal(both[i, : len(written)], written)
        assert torch.equal(together.record.gate[i, : len(written)], rule.record.gate[0])


def test_the_record_says_what_was_seen_at_each_step(model):
    rule = USCDLogitsProcessor(model, **LAME, **RULE, lazy=False)
    scores = torch.randn(2, 40, generator=torch.Generator().manual_seed(1)).mul(3)
    with torch.no_grad():
        ids, mask = LAME["lame_input_ids"], LAME["lame_attention_mask"]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        q = model(ids, attention_mask=mask, position_ids=positions).logits[:, -1].softmax(-1)
    rule(STANDARD["input_ids"], scores)
    p, record = scores.softmax(-1), rule.record
    m = (p + q) / 2
    divergence = sum((x * (x / m).log()).nansum(-1) for x in (p.double(), q.double())) / 2
    torch.testing.assert_close(record.std[:, 0], p.std(-1))
    torch.testing.assert_close(record.collision[:, 0], p.square().sum(-1))
    # Rounded in float32.
    torch.testing.assert_close(record.divergence[:, 0].double(), divergence, atol=1e-6, rtol=1e-5)
    kept = p >= 0.1 / 40
    opened = record.gate[:, 0]
    assert torch.equal(record.kept[opened, 0], kept.sum(-1)[opened])
    assert torch.equal(record.negative[opened, 0], (kept & (p <= 0.6 * q)).sum(-1)[opened])
    assert (record.kept[~opened] == 0).all()


def test_lazily_divergence_is_unknown_where_the_branch_was_not_read(model):
    rule = USCDLogitsProcessor(model, **LAME, **RULE)
    assert rule.record.gate.shape == (0, 0)
    write(model, rule)
    record = rule.record
    assert torch.equal(record.divergence.isnan(), ~record.gate.any(0).expand(2, -1))


def test_a_threshold_on_the_standard_deviation_is_that_on_the_collision_probability(model):
    theta = collision_to_std(RULE["collision"], 40)
    by_std = USCDLogitsProcessor(model, **LAME, alpha=0.6, eta=0.1, theta=theta)
    by_collision = USCDLogitsProcessor(model, **LAME, **RULE)
    assert torch.equal(write(model, by_std), write(model, by_collision))
    with pytest.raises(ValueError, match="theta"):
        USCDLogitsProcessor(model, **LAME, theta=1 / math.sqrt(40))


def test_tokens_that_do_not_exist_have_no_share(model):
    rule = USCDLogitsProcessor(model, **LAME, alpha=0.6, eta=0.1, collision=1.0, vocabulary=30)
    again = USCDLogitsProcessor(model, **LAME, alpha=0.6, eta=0.1, collision=1.0, vocabulary=30)
    scores = torch.randn(2, 40)
    other = torch.cat((scores[:, :30], 50 + scores[:, 30:]), -1)
    found, same = rule(STANDARD["input_ids"], scores), again(STANDARD["input_ids"], other)
    assert torch.equal(found, same)
    assert (found[:, 30:] == -torch.inf).all()
    assert collision_to_std(rule.record.collision[0, 0].item(), 30) == pytest.approx(
        scores[0, :30].softmax(-1).std().item(), rel=1e-5
    )
    fresh = USCDLogitsProcessor(model, **LAME, collision=1.0, vocabulary=30)
    assert (write(model, fresh)[:, 7:] < 30).all()


def test_a_banned_token_stays_banned(model):
    rule = USCDLogitsProcessor(model, **LAME, alpha=0.6, eta=0.0, collision=1.0)
    scores = torch.randn(2, 40)
    scores[:, 5] = -torch.inf
    assert (rule(STANDARD["input_ids"], scores)[:, 5] == -torch.inf).all()


def test_temperature_acts_on_the_contrasted_distribution(model):
    rule = Watched(model, **LAME, **RULE)
    out = write(
        model, rule, seed=3, temperature=0.5, return_dict_in_generate=True, output_scores=True
    )
    for contrasted, sampled in zip(rule.seen, out.scores, strict=True):
        expected = contrasted.square() / contrasted.square().sum(-1, keepdim=True)
        torch.testing.assert_close(sampled.softmax(-1), expected, atol=1e-5, rtol=1e-4)


def test_the_same_seed_writes_the_same_text_and_streams_it(model):
    class Words:
        def decode(self, ids, **_):
            return " ".join(map(str, torch.as_tensor(ids).reshape(-1).tolist())) + " "

    texts = []
    for _ in range(2):
        rule = USCDLogitsProcessor(model, **rows(LAME, 1), **RULE)
        streamer = TextIteratorStreamer(Words(), skip_prompt=True)
        ids = write(model, rule, rows(STANDARD, 1), seed=5, streamer=streamer)[0, 7:]
        assert [int(word) for word in "".join(streamer).split()] == ids.tolist()
        texts.append(ids)
    assert torch.equal(*texts)


def test_what_beam_search_or_other_rows_would_do_to_the_cache_is_refused(model):
    with pytest.raises(ValueError, match="num_beams must be 1"):
        write(model, USCDLogitsProcessor(model, **LAME), num_beams=2)
    one = rows(STANDARD, 1)
    twice = USCDLogitsProcessor(model, *(torch.cat((x, x)) for x in rows(LAME, 1).values()), **RULE)
    with pytest.raises(ValueError, match="num_beams"):
        # Beams of one prompt have as many rows as there are lame rows, until they are reordered.
        write(model, twice, one, num_beams=2, do_sample=True, seed=1)
    rule = USCDLogitsProcessor(model, **LAME)
    write(model, rule, tokens=2)
    with pytest.raises(ValueError, match="one call of generate"):
        write(model, rule, tokens=2)


def test_several_samples_of_a_prompt_take_as_many_lame_rows(model):
    lame = {name: value.repeat(3, 1) for name, value in rows(LAME, 1).items()}
    rule = USCDLogitsProcessor(model, **lame, **RULE)
    out = write(model, rule, rows(STANDARD, 1), seed=2, num_return_sequences=3)
    assert rule.record.gate.shape == (3, out.shape[1] - 7)


@pytest.mark.usefixtures("unhooked")
def test_bad_prompts_models_and_scores_are_refused_by_name(model):
    ids = LAME["lame_input_ids"]
    with pytest.raises(ValueError, match="lame_input_ids must hold at least one"):
        USCDLogitsProcessor(model, ids[:, :0])
    with pytest.raises(ValueError, match="lame_input_ids must be padded on the left"):
        USCDLogitsProcessor(model, ids, LAME["lame_attention_mask"].flip(-1))
    with pytest.raises(ValueError, match="lame_attention_mask must have the shape"):
        USCDLogitsProcessor(model, ids, LAME["lame_attention_mask"][:, :2])
    with pytest.raises(ValueError, match="64 tokens"):
        USCDLogitsProcessor(model, torch.ones(1, 65, dtype=torch.long))
    with pytest.raises(ValueError, match=r"2\.\.40"):
        USCDLogitsProcessor(model, ids, vocabulary=41)
    with pytest.raises(ValueError, match="alpha"):
        USCDLogitsProcessor(model, ids, alpha=-1.0)
    rule = USCDLogitsProcessor(model, **LAME)
    with pytest.raises(ValueError, match="over the 40 tokens"):
        rule(STANDARD["input_ids"], torch.zeros(2, 39))
    with pytest.raises(ValueError, match="NaN"):
        rule(STANDARD["input_ids"], torch.full((2, 40), math.nan))
    with pytest.raises(ValueError, match="generated, but have 2"):
        rule(STANDARD["input_ids"][:1], torch.zeros(1, 40))
