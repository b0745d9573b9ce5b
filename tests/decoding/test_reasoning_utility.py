"""Reasoning utility: entropies of known curves, one reading of the chain, one forward with a tree mask."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from szilard.decoding import (
    CachedReader,
    ReasoningUtility,
    UtilityProfile,
    answer_entropy,
    answer_nll,
    packed_profile,
    should_stop,
    split_steps,
    stopping_step,
)
from szilard.zoo.language import character_tokenizer, tiny_language_model

pytestmark = pytest.mark.filterwarnings("ignore:the answer .* is a single token")

ALPHABET = "abcdefgh0123456789+=.\n {}S"
TOKENIZER = character_tokenizer(ALPHABET)
LEAD = " S{"


def judge_model(positions: int = 512) -> PreTrainedModel:
    model = tiny_language_model(
        vocab=TOKENIZER, hidden=16, layers=2, heads=2, positions=positions, seed=3
    )
    # Sharper than at initialisation, where every curve is flat.
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model


MODEL = judge_model()


def judge(**settings: object) -> ReasoningUtility:
    return ReasoningUtility(MODEL, TOKENIZER, **{"lead_in": LEAD, **settings})


def of(curve: list[float]) -> UtilityProfile:
    columns = [torch.tensor([h], dtype=torch.float64) for h in curve]
    return UtilityProfile(columns, columns, ["step"] * (len(curve) - 1))


# The definitions


def test_given_distributions_have_the_entropies_and_utilities_worked_out_by_hand() -> None:
    p = torch.tensor(
        [
            [[0.25, 0.25, 0.25, 0.25], [0.4, 0.3, 0.2, 0.1]],
            [[0.4, 0.3, 0.2, 0.1], [0.5, 0.3, 0.1, 0.1]],
            [[0.7, 0.1, 0.1, 0.1], [0.6, 0.2, 0.1, 0.1]],
            [[0.97, 0.01, 0.01, 0.01], [0.9, 0.05, 0.03, 0.02]],
        ],
        dtype=torch.float64,
    )
    entropy = answer_entropy(p.log())
    expected = torch.tensor([1.333074, 1.224068, 1.014674, 0.297874], dtype=torch.float64)
    # The figures are given to six digits.
    torch.testing.assert_close(entropy, expected, atol=1e-6, rtol=0)
    profile = of(entropy.tolist())
    utility = torch.tensor([0.109006, 0.209394, 0.716800], dtype=torch.float64)
    torch.testing.assert_close(profile.utility, utility, atol=1.5e-6, rtol=0)
    assert profile.total == pytest.approx(1.035200, abs=1e-6)
    # On k, where `slope` is on k / K.
    assert profile.slope / 3 == pytest.approx(-0.331499, abs=1e-6)
    assert profile.monotone
    assert profile.positive_share == 1


def test_four_revealed_bits_are_worth_the_same() -> None:
    def token(known: int) -> list[float]:
        return [[0.25] * 4, [0.5, 0.5, 0, 0], [1.0, 0, 0, 0]][known]

    states = [[token(min(2, k)), token(max(0, k - 2))] for k in range(5)]
    entropy = answer_entropy(torch.tensor(states, dtype=torch.float64).log())
    expected = math.log(4) * torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64)
    torch.testing.assert_close(entropy, expected, atol=1e-12, rtol=0)
    utility = of(entropy.tolist()).utility
    torch.testing.assert_close(utility, torch.full_like(utility, math.log(4) / 4))
    # Bits are nats over ln 2.
    bits = answer_entropy(torch.tensor(states, dtype=torch.float64).log(), base=2)
    torch.testing.assert_close(bits, entropy / math.log(2), atol=1e-12, rtol=0)


def test_shape_statistics_of_a_curve_worked_out_by_hand() -> None:
    profile = of([2.0, 1.0, 1.0, 0.0])
    assert profile.area == pytest.approx((1.5 + 1 + 0.5) / 3)
    assert profile.last_third == pytest.approx(0.5)
    assert profile.positive_share == pytest.approx(2 / 3)
    assert not profile.monotone
    assert profile.slope == pytest.approx(-1.8)
    at = profile.at(torch.tensor([0.0, 1 / 6, 0.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(at, torch.tensor([2.0, 1.5, 1.0, 0.0], dtype=torch.float64))


@given(st.lists(st.floats(0, 12), min_size=2, max_size=14))
def test_utilities_add_up_to_what_the_chain_is_worth(curve: list[float]) -> None:
    profile = of(curve)
    assert float(profile.utility.sum()) == pytest.approx(profile.total, abs=1e-12 * len(curve) * 12)
    assert min(curve) - 1e-12 <= profile.area <= max(curve) + 1e-12
    assert min(curve) - 1e-12 <= profile.last_third <= max(curve) + 1e-12


def test_an_expected_surprisal_is_an_entropy() -> None:
    """E over y ~ p of N is H for one token: the sum over the vocabulary of a real judge."""
    ids = torch.tensor([TOKENIZER("ab. 1+1" + LEAD)["input_ids"]])
    with torch.no_grad():
        logits = MODEL(ids).logits[0, -1:].double()
    every = torch.arange(logits.shape[-1])[:, None]
    surprisal = answer_nll(logits.expand(len(every), 1, -1), every)
    assert bool((surprisal >= 0).all())
    expected = (logits.softmax(-1)[0] * surprisal).sum()
    torch.testing.assert_close(expected, answer_entropy(logits), atol=1e-9, rtol=0)


# A judge on a text

PROBLEM = "ab+cd. "
CHAIN = "a=1. b=20. c=3 d=4. 1+20+3+4=28."


def separately(problem: str, pieces: list[str], lead_in: str, answer: str) -> torch.Tensor:
    """K + 1 forward passes, each over the whole of its context."""

    def encode(text: str) -> list[int]:
        return TOKENIZER(text, add_special_tokens=False)["input_ids"]

    target, rows = encode(answer), []
    for k in range(len(pieces) + 1):
        ids = TOKENIZER(problem + "".join(pieces[:k]))["input_ids"] + encode(lead_in) + target
        with torch.no_grad():
            rows.append(MODEL(torch.tensor([ids])).logits[0, -len(target) - 1 : -1])
    return torch.stack(rows)


@pytest.mark.parametrize("packed", [False, True])
def test_a_profile_is_what_separate_forwards_give(packed: bool) -> None:
    profile = judge(packed=packed).profile(PROBLEM, CHAIN, "28")
    pieces = ["a=1.", " b=20.", " c=3 d=4.", " 1+20+3+4=28."]
    logits = separately(PROBLEM, pieces, LEAD, "28")
    # Sums in another order: float32.
    expected = answer_entropy(logits).double()
    torch.testing.assert_close(profile.entropy, expected, atol=1e-5, rtol=1e-5)
    target = torch.tensor(TOKENIZER("28", add_special_tokens=False)["input_ids"])
    nll = answer_nll(logits, target.expand(5, 2)).double()
    torch.testing.assert_close(profile.nll, nll, atol=1e-5, rtol=1e-5)
    assert profile.steps == ("a=1.", "b=20.", "c=3 d=4.", "1+20+3+4=28.")
    # A curve that does not move would show nothing.
    assert float(profile.utility.abs().max()) > 0.01


@pytest.mark.parametrize("steps", range(1, 13))
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_tree_mask_reads_as_separate_forwards_do(steps: int, attention: str) -> None:
    model = judge_model()
    model.set_attn_implementation(attention)
    g = torch.Generator().manual_seed(steps)

    def some(tokens: int) -> torch.Tensor:
        return torch.randint(4, len(TOKENIZER), (tokens,), generator=g)

    prompt, lead, answer = some(5), some(1 + steps % 3), some(1 + steps % 4)
    pieces = [some(int(torch.randint(1, 8, (1,), generator=g))) for _ in range(steps)]
    rows = []
    for k in range(steps + 1):
        ids = torch.cat([prompt, *pieces[:k], lead, answer[:-1]])
        with torch.no_grad():
            rows.append(model(ids[None]).logits[0, -len(answer) :])
    packed = packed_profile(model, prompt, pieces, lead, answer)
    torch.testing.assert_close(packed, answer_entropy(torch.stack(rows)), atol=1e-5, rtol=1e-5)


def test_the_judge_reads_the_chain_once(monkeypatch: pytest.MonkeyPatch) -> None:
    readers = []

    class Counted(CachedReader):
        def __init__(self, *args: object, **settings: object) -> None:
            super().__init__(*args, **settings)
            readers.append(self)

    monkeypatch.setattr("szilard.decoding.reasoning_utility.CachedReader", Counted)
    judge().profile(PROBLEM, CHAIN, "28")
    chain, states = len(TOKENIZER(PROBLEM + CHAIN)["input_ids"]), 5
    # The last token of the answer is predicted and need not be read.
    assert readers[0].fed == chain + states * (len(LEAD) + len("28") - 1)
    assert readers[0].forwards == 2 * states


def test_sliding_windows_are_read_from_the_cache_and_refused_a_tree_mask(gemma) -> None:
    model = gemma(vocab_size=len(TOKENIZER), max_position_embeddings=128)
    profile = ReasoningUtility(model, TOKENIZER, LEAD).profile(PROBLEM, CHAIN, "28")
    ids = TOKENIZER(PROBLEM + CHAIN + LEAD + "28")["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -3:-1]
    torch.testing.assert_close(
        profile.entropy[-1], answer_entropy(logits).double(), atol=1e-5, rtol=1e-5
    )
    with pytest.raises(ValueError, match="full attention"):
        ReasoningUtility(model, TOKENIZER, LEAD, packed=True)


def test_a_judge_that_does_not_read_finds_no_step_useful() -> None:
    deaf = judge_model()
    with torch.no_grad():
        deaf.lm_head.weight.zero_()
    profile = ReasoningUtility(deaf, TOKENIZER, LEAD).profile(PROBLEM, CHAIN, "28")
    assert bool((profile.utility == 0).all())
    uniform = torch.full((5,), math.log(len(TOKENIZER)), dtype=torch.float64)
    torch.testing.assert_close(profile.entropy, uniform, atol=1e-6, rtol=0)


def test_bits_are_nats_over_ln_2() -> None:
    nats, bits = (judge(base=base).profile(PROBLEM, CHAIN, "28") for base in (None, 2))
    torch.testing.assert_close(bits.entropy * math.log(2), nats.entropy)
    torch.testing.assert_close(bits.nll * math.log(2), nats.nll)


def test_steps_given_one_by_one_are_parted_by_the_separator() -> None:
    listed = judge(separator=" ").profile("ab+cd.", ["a=1.", "", "b=20."], "21")
    whole = judge().profile("ab+cd.", " a=1. b=20.", "21")
    torch.testing.assert_close(listed.entropy, whole.entropy)
    assert listed.steps == whole.steps == ("a=1.", "b=20.")


def test_many_chains_are_read_as_each_alone() -> None:
    items = [(PROBLEM, CHAIN, "28"), (PROBLEM, ["a.", "b."], None)]
    alone = [judge().profile(*item) for item in items]
    for profile, one in zip(judge().profile_batch(items), alone, strict=True):
        torch.testing.assert_close(profile.entropy, one.entropy)


def test_a_judge_without_a_reference_is_measured_along_its_own_answer() -> None:
    mine = judge(answer_tokens=5)
    profile = mine.profile(PROBLEM, CHAIN)
    assert len(profile.answers) == 5
    for k, end in enumerate((0, 4, 10, 19, len(CHAIN))):
        ids = TOKENIZER(PROBLEM + CHAIN[:end] + LEAD)["input_ids"]
        with torch.no_grad():
            written = MODEL.generate(
                torch.tensor([ids]), max_new_tokens=5, do_sample=False, pad_token_id=0
            )
        text = TOKENIZER.decode(written[0, len(ids) :], skip_special_tokens=False)
        text = text.split("<eos>")[0]
        if profile.answers[k]:
            assert text.startswith(profile.answers[k])
        if len(profile.answers[k]) > 1:
            along = mine.profile(PROBLEM, CHAIN, profile.answers[k])
            length = len(along.token_entropy[k])
            torch.testing.assert_close(
                profile.token_entropy[k][:length], along.token_entropy[k], atol=1e-5, rtol=1e-5
            )


@pytest.mark.parametrize(
    ("text", "answer", "closed"),
    [
        ("12}", "12", True),
        ("12", "12", False),
        ("{1}{2}", "{1}{2}", False),
        ("{1}{2}} and {3}", "{1}{2}", True),
        ("}", "", True),
    ],
)
def test_an_answer_ends_at_the_brace_that_was_not_opened_in_it(
    text: str, answer: str, closed: bool
) -> None:
    assert judge()._until_closed(text) == (answer, closed)


def test_a_reference_of_one_token_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="single token"):
        judge().profile(PROBLEM, CHAIN, "2")


# Steps


@pytest.mark.parametrize(
    ("chain", "splitter", "steps"),
    [
        ("One. Two.\n\nThree.", "auto", ["One. Two.", "Three."]),
        ("Step 1: a. b.\nStep 2: c.", "auto", ["Step 1: a. b.", "Step 2: c."]),
        ("So.\n**Step 1** a.\n**Step 2** b", "auto", ["So.", "**Step 1** a.", "**Step 2** b"]),
        ("As in step 2 it is 3.5. So 7.", "auto", ["As in step 2 it is 3.5.", "So 7."]),
        ("One\nTwo\n\nThree", "lines", ["One", "Two", "Three"]),
        ("One. Two.", "paragraphs", ["One. Two."]),
        ("\n\n one \n \n\n", "auto", ["one"]),
    ],
)
def test_chains_are_split_where_their_steps_begin(
    chain: str, splitter: str, steps: list[str]
) -> None:
    found = split_steps(chain, splitter)  # type: ignore[arg-type]
    assert [step.text for step in found] == steps


@given(st.text(alphabet="ab.!\n Step12:", max_size=60))
def test_steps_stand_where_they_say_and_leave_out_white_space_alone(chain: str) -> None:
    if not chain.strip():
        return
    for splitter in ("auto", "paragraphs", "markers", "sentences", "lines"):
        end, between = 0, []
        for step in split_steps(chain, splitter):
            assert chain[step.start : step.end] == step.text == step.text.strip() != ""
            between.append(chain[end : step.start])
            end = step.end
        assert not "".join([*between, chain[end:]]).strip()


# Stopping


def test_a_chain_stops_when_it_is_certain_or_stalls() -> None:
    assert stopping_step([2, 1, 0.04, 0.01]) == 2
    assert stopping_step([2, 1, 1, 0.995, 1.2, 0]) == 4
    assert stopping_step([2, 1, 1, 0.9, 0.9, 0.9, 0.5]) is None
    assert stopping_step([0.01, 1.0]) is None
    assert stopping_step([2, 0.2, 0.2, 0.2], h_stop=None, patience=None) is None


@given(st.lists(st.floats(0, 3), min_size=2, max_size=10), st.floats(0, 1), st.integers(1, 4))
def test_a_chain_stops_at_the_first_step_at_which_it_should(
    curve: list[float], h_stop: float, patience: int
) -> None:
    found = stopping_step(curve, h_stop, 0.01, patience)
    verdicts = [should_stop(curve[: k + 1], h_stop, 0.01, patience) for k in range(len(curve))]
    assert found == (verdicts.index(True) if any(verdicts) else None)


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: judge().profile(PROBLEM, "  ", "28"), "at least one step"),
        (lambda: judge().profile(PROBLEM, [], "28"), "at least one step"),
        (lambda: judge().profile(PROBLEM, CHAIN, ""), "answer must not be empty"),
        (lambda: judge().profile(PROBLEM, CHAIN * 20, "28"), "512 tokens"),
        (lambda: judge().profile(PROBLEM, CHAIN * 16), "512 tokens"),
        (lambda: judge(lead_in=""), "lead_in"),
        (lambda: judge(closing=""), "closing"),
        (lambda: judge(answer_tokens=0), "answer_tokens"),
        (lambda: judge(splitter="words"), "splitter must be one of auto, paragraphs"),
        (lambda: split_steps("a", "words"), "splitter must be one of auto, paragraphs"),
        (lambda: should_stop([1.0, 0.5], h_stop=-1), "h_stop"),
        (lambda: should_stop([1.0, 0.5], eps=math.nan), "eps"),
        (lambda: stopping_step([1.0, 0.5], patience=0), "patience"),
        (lambda: UtilityProfile([], [], []), "at least one step"),
        (lambda: UtilityProfile([torch.ones(1)], [torch.ones(1)], ["a"]), "token_entropy must"),
    ],
)
@pytest.mark.usefixtures("unhooked")
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("empty", range(4))
@pytest.mark.usefixtures("unhooked")
def test_a_packed_profile_needs_all_its_parts(empty: int) -> None:
    ids = torch.tensor([5, 6])
    parts: list[object] = [ids, [ids], ids, ids]
    parts[empty] = [] if empty == 1 else ids[:0]
    with pytest.raises(ValueError, match="at least one"):
        packed_profile(MODEL, *parts)  # type: ignore[arg-type]


def test_an_answer_that_merges_with_the_lead_in_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({"{": 0, "1": 1, "{1": 2, "a": 3}, [("{", "1")], unk_token=None))
    merging = PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(ValueError, match=r"'1' merges with the end of lead_in"):
        ReasoningUtility(tiny_language_model(vocab=4), merging, "a{").profile("a", "a", "1")


def test_logits_that_are_no_distribution_are_refused() -> None:
    broken = judge_model()
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN"):
        ReasoningUtility(broken, TOKENIZER, LEAD).profile(PROBLEM, CHAIN, "28")
