"""Early stopping inside `generate`: evaluated where steps end, each token read once."""

import pytest
import torch

from szilard.decoding import ReasoningUtility, UtilityStoppingCriteria, stopping_step
from szilard.zoo.language import character_tokenizer, tiny_language_model

TOKENIZER = character_tokenizer("ab.\n {}S")
LEAD = " S{"


def language_model(positions: int = 256):
    """Writes letters, stops and line breaks; more certain than at initialisation."""
    model = tiny_language_model(
        vocab=TOKENIZER, hidden=16, layers=2, heads=2, positions=positions, seed=5
    )
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
    return model


MODEL = language_model()
SETTINGS = {"lead_in": LEAD, "boundary": r"[.\n]\s*$", "answer_tokens": 4}
PROMPTS = TOKENIZER(["a b.", "ab"], padding=True, return_tensors="pt")


def write(stop: UtilityStoppingCriteria | None, rows: slice = slice(None), **how: object):
    torch.manual_seed(1)
    return MODEL.generate(
        input_ids=PROMPTS["input_ids"][rows],
        attention_mask=PROMPTS["attention_mask"][rows],
        pad_token_id=0,
        # Special tokens, the end among them.
        suppress_tokens=[0, 1, 2, 3],
        **{"max_new_tokens": 60, "do_sample": True, "top_k": 0, "stopping_criteria": [stop] if stop else None}
        | how,
    )  # fmt: skip


def never(**settings: object) -> UtilityStoppingCriteria:
    settings = SETTINGS | {"h_stop": None, "patience": None} | settings
    return UtilityStoppingCriteria(MODEL, TOKENIZER, PROMPTS["attention_mask"], **settings)


@pytest.mark.parametrize("how", [{}, {"do_sample": False}], ids=["sampling", "greedy"])
def test_a_criterion_that_never_stops_changes_no_text(how: dict) -> None:
    stop = never()
    assert torch.equal(write(stop, **how), write(None, **how))
    assert stop.stopped == [False, False]
    assert all(len(h) == len(s) + 1 for h, s in zip(stop.entropy, stop.steps_at, strict=True))


def test_entropies_are_those_of_the_profile_of_what_was_written() -> None:
    stop = never()
    texts = write(stop)
    assert min(map(len, stop.steps_at)) >= 2
    width = PROMPTS["input_ids"].shape[-1]
    judge = ReasoningUtility(MODEL, TOKENIZER, LEAD, answer_tokens=4)
    for row, prompt in enumerate(["a b.", "ab"]):
        ends = stop.steps_at[row]
        pieces, before = [], 0
        for end in ends:
            text = TOKENIZER.decode(texts[row, width : width + end]).rstrip()
            pieces.append(text[before:])
            before = len(text)
        judge.separator = ""
        profile = judge.profile(prompt, pieces)
        # Sums in another order: float32.
        assert stop.entropy[row] == pytest.approx(profile.entropy.tolist(), abs=1e-5)
        assert tuple(stop.answers[row]) == profile.answers


def test_rows_stop_by_themselves_and_where_the_rule_says() -> None:
    free = never()
    texts = write(free)
    threshold = sorted(h for row in free.entropy for h in row[1:])[0] + 1e-4
    stop = never(h_stop=threshold)
    stopped = write(stop)
    width = PROMPTS["input_ids"].shape[-1]
    for row in range(2):
        k = stopping_step(free.entropy[row], threshold, patience=None)
        assert stop.stopped[row] == (k is not None)
        end = texts.shape[-1] if k is None else width + free.steps_at[row][k - 1]
        # The other row may end the call later: what follows here is padding.
        if not stopped.shape[-1] < end:
            assert torch.equal(stopped[row, :end], texts[row, :end])
            assert not stopped[row, end:].any()
    assert any(stop.stopped)


def test_each_row_of_a_padded_batch_is_judged_as_alone() -> None:
    stop = never()
    texts = write(stop)
    for row, prompt in enumerate(["a b.", "ab"]):
        ids = texts[row, -texts.shape[-1] + PROMPTS["input_ids"].shape[-1] :]
        alone = UtilityStoppingCriteria(
            MODEL, TOKENIZER, **SETTINGS | {"h_stop": None, "patience": None}
        )
        whole = torch.cat([TOKENIZER(prompt, return_tensors="pt")["input_ids"][0], ids])
        start = len(whole) - len(ids)
        for end in range(start + 1, len(whole) + 1):
            alone(whole[None, :end])
        assert alone.entropy[0] == pytest.approx(stop.entropy[row], abs=1e-5)


def test_its_readers_read_each_token_once() -> None:
    stop = never(answer_tokens=1)
    write(stop)
    for row, reader in enumerate(stop.readers):
        states = len(stop.entropy[row])
        # A question of one token's answer feeds the lead-in alone.
        assert reader.fed == reader.length + states * len(LEAD)
        padding = int((PROMPTS["attention_mask"][row] == 0).sum())
        read = PROMPTS["input_ids"].shape[-1] - padding + stop.steps_at[row][-1]
        assert reader.length <= read


def test_it_streams() -> None:
    class Streamer:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.seen += value.flatten().tolist()

        def end(self) -> None:
            self.seen.append(-1)

    streamer = Streamer()
    stop = UtilityStoppingCriteria(MODEL, TOKENIZER, **SETTINGS, h_stop=100)
    text = write(stop, slice(0, 1), streamer=streamer)
    assert streamer.seen == [*text[0].tolist(), -1]
    assert stop.stopped == [True]
    assert text.shape[-1] == PROMPTS["input_ids"].shape[-1] + stop.steps_at[0][0]


def test_a_number_of_steps_can_be_had_in_any_case() -> None:
    stop = UtilityStoppingCriteria(MODEL, TOKENIZER, **SETTINGS, h_stop=100, min_steps=3)
    write(stop, slice(0, 1))
    assert len(stop.steps_at[0]) == 3


def test_a_step_without_room_for_the_question_is_not_asked_about() -> None:
    short = language_model(positions=24)
    stop = UtilityStoppingCriteria(
        short, TOKENIZER, **SETTINGS | {"boundary": "."}, h_stop=None, patience=None
    )
    ids = TOKENIZER("ab", return_tensors="pt")["input_ids"]
    short.generate(
        ids, max_new_tokens=20, do_sample=False, pad_token_id=0, stopping_criteria=[stop]
    )
    question = len(LEAD) + 4
    assert stop.readers[0].length <= 24 - question
    fresh = UtilityStoppingCriteria(short, TOKENIZER, **SETTINGS)
    with pytest.raises(ValueError, match="24 tokens"):
        fresh(torch.full((1, 23), 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"h_stop": -0.1}, "h_stop"),
        ({"eps": float("inf")}, "eps"),
        ({"patience": 0}, "patience"),
        ({"min_steps": 0}, "min_steps"),
        ({"boundary": "["}, "boundary must be a regular expression"),
        ({"lead_in": ""}, "lead_in"),
        ({"answer_tokens": 0}, "answer_tokens"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UtilityStoppingCriteria(MODEL, TOKENIZER, **settings)


def test_a_text_that_does_not_go_on_is_refused() -> None:
    stop = never()
    write(stop)
    with pytest.raises(ValueError, match="one criterion serves one call"):
        write(stop)
    with pytest.raises(ValueError, match="attention_mask must have the shape"):
        write(never(), slice(0, 1))
