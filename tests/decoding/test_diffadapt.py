"""DiffAdapt: strategies and budgets, the hidden state read, what is fed to the model, `generate`."""

import itertools
from functools import wraps
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    TextIteratorStreamer,
)

from szilard.decoding.diffadapt import (
    DEFAULT_STRATEGIES,
    Collected,
    DiffAdapt,
    Strategy,
    chat_layout,
)
from szilard.decoding.difficulty import DifficultyProbe
from szilard.decoding.reading import CachedReader
from szilard.decoding.trace import EntropyRecorder
from szilard.zoo.language import character_tokenizer, tiny_language_model

QUESTIONS = ["12+3=", "4=", "1+2+3+4+5=", "9+9="]
LAYOUT = "{question}{strategy}"
# One-letter sentences, the middle one three letters long.
STRATEGIES = (
    Strategy("easy", "e", 0.5, 0.4),
    Strategy("normal", "nnn", 0.8, 1.0),
    Strategy("hard", "h", 0.4, 0.5),
)


class Always:
    """A probe that believes what it is told."""

    def __init__(self, *probs: float, size: int = 16) -> None:
        self.probs, self.classes_, self.n_features_in_ = probs, np.arange(3), size
        self.seen: list[np.ndarray] = []

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        self.seen.append(X)
        return np.tile(self.probs, (len(X), 1))


class Alternating(Always):
    """Easy, Normal, Hard, Easy, ... down the rows."""

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        self.seen.append(X)
        return np.eye(3)[np.arange(len(X)) % 3]


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer("0123456789+=enh\n")


@pytest.fixture(scope="module")
def model(tokenizer):
    model = tiny_language_model(vocab=tokenizer, hidden=16, layers=2, heads=2, positions=64)
    with torch.no_grad():
        # An untrained head is all but uniform; ends come early enough to be seen.
        model.get_input_embeddings().weight.mul_(12)
    return model


def make(model: Any, tokenizer: Any, probe: Any = None, **settings: Any) -> DiffAdapt:
    defaults = {"strategies": STRATEGIES, "max_new_tokens": 12, "layout": LAYOUT}
    return DiffAdapt(model, tokenizer, probe or Alternating(), **{**defaults, **settings})


def seeded(call: Any, *arguments: Any, seed: int = 3, **settings: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return call(*arguments, **settings)


# Strategies ---------------------------------------------------------------------------------------


def test_budgets_are_the_ratios_rounded_down():
    assert [s.budget(1000) for s in DEFAULT_STRATEGIES] == [400, 1000, 500]
    assert [s.budget(7) for s in DEFAULT_STRATEGIES] == [2, 7, 3]
    assert [s.temperature for s in DEFAULT_STRATEGIES] == [0.5, 0.8, 0.4]


@given(st.integers(1, 100), st.integers(1, 5000))
def test_a_budget_is_the_exact_floor(percent, whole):
    strategy = Strategy("s", "", 1.0, percent / 100)
    expected = percent * whole // 100
    if expected == 0:
        with pytest.raises(ValueError, match="at least 1 token"):
            strategy.budget(whole)
    else:
        assert strategy.budget(whole) == expected


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": ""}, "name must"),
        ({"temperature": 0.0}, "temperature must"),
        ({"budget_ratio": 0.0}, "budget_ratio must"),
        ({"budget_ratio": 1.5}, "budget_ratio must"),
        ({"top_p": 0.0}, "top_p must"),
    ],
)
def test_a_strategy_out_of_range_is_refused(changed, message):
    good = {"name": "s", "prompt_suffix": "", "temperature": 1.0, "budget_ratio": 1.0}
    with pytest.raises(ValueError, match=message):
        Strategy(**{**good, **changed})


@pytest.mark.parametrize("do_sample", [True, False])
def test_no_reply_exceeds_its_strategys_budget(model, tokenizer, do_sample):
    method = make(model, tokenizer)
    replies = seeded(method.generate, QUESTIONS, do_sample=do_sample)
    assert [reply.strategy for reply in replies] == ["easy", "normal", "hard", "easy"]
    budgets = {s.name: s.budget(12) for s in STRATEGIES}
    for reply in replies:
        assert 1 <= reply.n_tokens <= budgets[reply.strategy]
        ended = reply.trace.token_ids[-1] == tokenizer.eos_token_id
        assert reply.truncated == (not ended)
        assert not reply.truncated or reply.n_tokens == budgets[reply.strategy]


def test_a_probe_that_always_says_normal_saves_nothing(model, tokenizer):
    method = make(model, tokenizer, Always(0, 1, 0))
    ours = seeded(method.generate, QUESTIONS)
    fixed = seeded(method.generate, QUESTIONS, strategy="normal")
    assert [r.text for r in ours] == [r.text for r in fixed]
    assert sum(r.n_tokens for r in ours) == sum(r.n_tokens for r in fixed)
    assert fixed[0].probs == {}
    assert ours[0].probs == {"easy": 0, "normal": 1, "hard": 0}


def test_below_the_fallback_confidence_normal_is_taken(model, tokenizer):
    unsure = Always(0.45, 0.2, 0.35)
    assert make(model, tokenizer, unsure).generate(["1="])[0].strategy == "easy"
    careful = make(model, tokenizer, unsure, fallback_confidence=0.5)
    assert careful.generate(["1="])[0].strategy == "normal"
    sure = make(model, tokenizer, Always(0.0, 0.4, 0.6), fallback_confidence=0.5)
    assert sure.generate(["1="])[0].strategy == "hard"


# What the probe sees, and what the model reads ----------------------------------------------------


def test_the_probe_sees_the_last_hidden_state_at_the_last_prompt_token(model, tokenizer):
    probe = Always(1, 0, 0)
    method = make(model, tokenizer, probe)
    method.generate(QUESTIONS, batch_size=4)
    method.generate(QUESTIONS, batch_size=1)
    batched, single = probe.seen[0], np.concatenate(probe.seen[1:])
    # Padding only reorders float32 sums.
    np.testing.assert_allclose(batched, single, atol=1e-5)
    for question, found in zip(QUESTIONS, single, strict=True):
        ids = tokenizer(question, return_tensors="pt")["input_ids"]
        output = model(ids, output_hidden_states=True)
        expected = output.hidden_states[-1][0, -1].detach().numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_selected_rows_go_on_by_themselves(model):
    ids = torch.randint(4, 20, (3, 9), generator=torch.Generator().manual_seed(0))
    reader = CachedReader(model)
    with pytest.raises(ValueError, match="must have read something"):
        reader.select(torch.tensor([0]))
    reader.read(ids[:, :5])
    rows = torch.tensor([2, 0, 2])
    chosen = reader.select(rows)
    found = chosen.read(ids[rows, 5:], keep=4).logits
    assert (reader.length, chosen.length, chosen.fed) == (5, 9, 4)
    whole = model(ids).logits[:, 5:].detach()
    torch.testing.assert_close(found, whole[rows], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(reader.read(ids[:, 5:], keep=4).logits, whole, atol=1e-4, rtol=1e-4)


def test_questions_are_read_once_and_each_token_after_them_once(model, tokenizer, monkeypatch):
    fed: list[tuple[int, int]] = []
    body = type(model.base_model)
    forward = body.forward

    @wraps(forward)
    def counting(self, input_ids=None, **rest):
        fed.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(body, "forward", counting)
    replies = seeded(make(model, tokenizer).generate, QUESTIONS)
    width = max(len(tokenizer(question)["input_ids"]) for question in QUESTIONS)
    expected = [(4, width)]
    for strategy in STRATEGIES:
        mine = [r.n_tokens for r in replies if r.strategy == strategy.name]
        expected.append((len(mine), len(strategy.prompt_suffix)))
        # The last token of the longest reply is never read.
        expected += [(len(mine), 1)] * (max(mine) - 1)
    assert fed == expected


def test_samples_of_a_question_share_one_reading(model, tokenizer, monkeypatch):
    fed: list[int] = []
    body = type(model.base_model)
    forward = body.forward

    @wraps(forward)
    def counting(self, input_ids=None, **rest):
        fed.append(input_ids.shape[0])
        return forward(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(body, "forward", counting)
    make(model, tokenizer).collect(QUESTIONS[:3], lambda q, r: True, n=5, batch_size=3)
    assert fed[0] == 3
    assert set(fed[1:]) == {15}


# Against the model's own generate -----------------------------------------------------------------


@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize("name", ["easy", "normal", "hard"])
def test_a_strategy_writes_what_generate_writes_after_its_sentence(
    model, tokenizer, name, do_sample
):
    strategy = next(s for s in STRATEGIES if s.name == name)
    method = make(model, tokenizer)
    ours = seeded(method.generate, QUESTIONS, strategy=name, do_sample=do_sample)
    prompts = [question + strategy.prompt_suffix for question in QUESTIONS]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    recorder = EntropyRecorder()
    theirs = seeded(
        model.generate,
        **inputs,
        do_sample=do_sample,
        top_k=0,
        temperature=strategy.temperature,
        max_new_tokens=strategy.budget(12),
        logits_processor=LogitsProcessorList([recorder]),
    )[:, inputs["input_ids"].shape[-1] :]
    assert [r.text for r in ours] == tokenizer.batch_decode(theirs, skip_special_tokens=True)
    for row, reply in enumerate(ours):
        expected = recorder.entropy[row, : reply.n_tokens]
        torch.testing.assert_close(reply.trace.entropy, expected, atol=1e-4, rtol=1e-4)


def test_each_row_of_a_batch_reads_as_it_would_alone(model, tokenizer):
    method = make(model, tokenizer, Alternating())
    together = method.generate(QUESTIONS, do_sample=False, batch_size=4)
    for reply, question in zip(together, QUESTIONS, strict=True):
        alone = method.generate([question], do_sample=False, strategy=reply.strategy)[0]
        assert alone.text == reply.text
        torch.testing.assert_close(alone.trace.entropy, reply.trace.entropy, atol=1e-4, rtol=1e-4)


def test_the_same_seed_writes_the_same_replies_and_a_generator_leaves_the_global_one(
    model, tokenizer
):
    def replies(seed: int) -> list[str]:
        method = make(model, tokenizer, generator=torch.Generator().manual_seed(seed))
        return [reply.text for reply in method.generate(QUESTIONS)]

    torch.manual_seed(11)
    state = torch.get_rng_state()
    assert replies(0) == replies(0) != replies(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_in_the_models_own_generate_it_returns_prompts_and_replies(model, tokenizer):
    method = make(model, tokenizer)
    inputs = tokenizer(QUESTIONS, return_tensors="pt", padding=True)
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": 12, "custom_generate": method}
    found = seeded(model.generate, **inputs, **settings)
    width = inputs["input_ids"].shape[-1]
    assert torch.equal(found[:, :width], inputs["input_ids"])
    texts = tokenizer.batch_decode(found[:, width:], skip_special_tokens=True)
    assert texts == [output.text for output in method.outputs]
    assert texts == [r.text for r in seeded(method.generate, QUESTIONS)]
    as_output = seeded(model.generate, **inputs, **settings, return_dict_in_generate=True)
    assert torch.equal(as_output.sequences, found)


def test_processors_and_stopping_criteria_of_the_call_are_honoured(model, tokenizer):
    method = make(model, tokenizer)
    banned = tokenizer.convert_tokens_to_ids(["e", "n", "h", "+"])
    replies = method.generate(QUESTIONS, bad_words_ids=[[i] for i in banned], top_k=5)
    assert not set("".join(r.text for r in replies)) & set("enh+")

    def first(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.ones(len(ids), dtype=torch.bool)

    stopped = method.generate(QUESTIONS, stopping_criteria=[first])
    assert [reply.n_tokens for reply in stopped] == [1] * 4
    assert not any(reply.truncated for reply in stopped)


def test_the_strategys_temperature_comes_before_truncation_and_its_top_p_last(model, tokenizer):
    nearly_greedy = Strategy("cold", "e", 1e-4, 1.0)
    narrow = Strategy("narrow", "e", 5.0, 1.0, top_p=1e-6)
    method = make(model, tokenizer, strategies=(nearly_greedy, narrow, STRATEGIES[2]))
    settings = {"temperature": 3.0, "top_p": 0.999, "top_k": 10}
    cold = method.generate(QUESTIONS, strategy="cold", **settings)
    thin = method.generate(QUESTIONS, strategy="narrow", **settings)
    greedy = method.generate(QUESTIONS, strategy="cold", do_sample=False)
    assert [r.text for r in cold] == [r.text for r in greedy] == [r.text for r in thin]


def test_a_reply_is_streamed_token_by_token(model, tokenizer):
    method = make(model, tokenizer)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    reply = seeded(method.generate, ["12+3="], streamer=streamer)[0]
    assert "".join(streamer) == reply.text
    assert reply.n_tokens > 1


def test_a_sliding_window_model_goes_on_from_its_cache(gemma, tokenizer):
    model = gemma(vocab_size=len(tokenizer), initializer_range=0.3, eos_token_id=None)
    method = make(model, tokenizer, Alternating())
    for reply, question in zip(
        method.generate(QUESTIONS, do_sample=False, eos_token_id=None), QUESTIONS, strict=True
    ):
        strategy = next(s for s in STRATEGIES if s.name == reply.strategy)
        ids = tokenizer(question + strategy.prompt_suffix, return_tensors="pt")["input_ids"]
        new = strategy.budget(12)
        plain = model.generate(ids, do_sample=False, max_new_tokens=new, pad_token_id=0)
        assert torch.equal(reply.trace.token_ids, plain[0, ids.shape[-1] :])


# Samples, labels, probe ---------------------------------------------------------------------------


def test_collecting_takes_means_over_samples(model, tokenizer):
    method = make(model, tokenizer, generator=torch.Generator().manual_seed(0))
    turn = itertools.count()
    found = method.collect(QUESTIONS, lambda q, r: next(turn) % 2 == 0, n=4, batch_size=3)
    assert found.hidden.shape == (4, 16)
    assert found.accuracy.tolist() == [0.5] * 4
    assert ((found.tokens >= 1) & (found.tokens <= 12)).all()
    assert ((found.truncated >= 0) & (found.truncated <= 1)).all()
    # All the text there is can't be less certain than a uniform draw.
    assert (found.entropy <= np.log(len(tokenizer)) + 1e-6).all()


def test_the_checker_gets_each_question_with_its_replies(model, tokenizer):
    asked: list[str] = []
    method = make(model, tokenizer)
    method.collect(QUESTIONS, lambda q, r: bool(asked.append(q)), n=2, batch_size=3)
    assert asked == [question for question in QUESTIONS for _ in range(2)]


def collected(accuracy: list[float], entropy: list[float]) -> Collected:
    n = len(accuracy)
    hidden = np.random.default_rng(0).normal(size=(n, 16)).astype(np.float32)
    return Collected(hidden, np.array(accuracy), np.array(entropy), np.ones(n), np.zeros(n))


def test_fitting_labels_by_the_rule_and_suggests_beta_where_none_is_given(model, tokenizer):
    method = make(model, tokenizer, DifficultyProbe(hidden=8, epochs=5))
    data = collected([1, 1, 1, 1, 0.1, 0], [0.1, 0.12, 0.8, 0.9, 2, 2])
    assert method.fit(data, beta=0.35) is None
    assert method.probe.classes_.tolist() == [0, 1, 2]
    suggested = method.fit(data)
    assert 0.12 < suggested.beta < 0.8
    assert method.generate(QUESTIONS)[0].probs.keys() == {"easy", "normal", "hard"}


def test_a_class_without_questions_is_named_and_merged_only_when_told(model, tokenizer):
    method = make(model, tokenizer, DifficultyProbe(hidden=8, epochs=5))
    data = collected([1, 1, 0.1], [0.1, 0.9, 2])
    with pytest.raises(ValueError, match="none is labelled easy"):
        method.fit(data, beta=1.0)
    method.fit(data, beta=1.0, merge={"easy": "normal"})
    assert method.probe.classes_.tolist() == [1, 2]
    assert method.generate(["1="])[0].probs["easy"] == 0
    with pytest.raises(ValueError, match="merge must name"):
        method.fit(data, beta=1.0, merge={"simple": "normal"})
    with pytest.raises(ValueError, match="merged itself"):
        method.fit(data, merge={"easy": "normal", "normal": "hard"})


# Layouts ------------------------------------------------------------------------------------------


def test_a_chat_template_puts_question_before_strategy(tokenizer):
    chatty = character_tokenizer("0123456789+=enh\n")
    with pytest.raises(ValueError, match="chat template"):
        chat_layout(chatty)
    chatty.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}={% endif %}"
    )
    assert chat_layout(chatty) == "<bos>{question}\n\n{strategy}="


def test_a_layout_that_begins_with_the_token_of_beginning_gets_no_second(model, tokenizer):
    one, two = (
        make(model, tokenizer, layout=layout)
        for layout in ("<bos>{question}{strategy}", "{question}{strategy}")
    )
    ours, theirs = (m.generate(["1+2="], do_sample=False)[0] for m in (one, two))
    assert ours.text == theirs.text


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategies": STRATEGIES[:2]}, "strategies must be three"),
        ({"max_new_tokens": 2}, "at least 1 token"),
        ({"fallback_confidence": 1.5}, "fallback_confidence must"),
        ({"layout": "{question}"}, "layout must hold"),
        ({"layout": "{strategy}{question}"}, "layout must hold"),
        ({"probe": Always(1, 0, 0, size=8)}, "hidden states of the model's size, 16"),
        ({"strategies": (Strategy("easy", "", 1, 1), *STRATEGIES[1:])}, "layout must put a token"),
    ],
)
def test_what_can_not_work_is_refused_at_once(model, tokenizer, settings, message):
    with pytest.raises(ValueError, match=message):
        make(model, tokenizer, **settings)


def test_a_probe_of_other_classes_is_refused(model, tokenizer):
    probe = DifficultyProbe(hidden=2, epochs=1).fit(np.eye(16), np.arange(16) % 4)
    with pytest.raises(ValueError, match="its classes are"):
        make(model, tokenizer, probe)


def test_an_encoder_decoder_model_is_refused(encoder_decoder, tokenizer):
    with pytest.raises(ValueError, match="causal"):
        make(encoder_decoder, tokenizer)


@pytest.mark.parametrize(
    ("questions", "settings", "message"),
    [
        ([], {}, "questions must be a list"),
        ([" "], {}, "no empty text"),
        (["1="], {"batch_size": 0}, "batch_size must"),
        (["1" * 60], {}, "64 tokens of"),
        (["1="], {"strategy": "simple"}, "strategy must be one of"),
        (["1="], {"num_beams": 2}, "num_beams must be 1"),
        (["1="], {"use_cache": False}, "use_cache must be True"),
        (["1="], {"max_new_tokens": 2}, "at least 1 token"),
        (["1="], {"return_dict_in_generate": True, "output_scores": True}, "output_scores"),
    ],
)
def test_a_call_that_can_not_be_honoured_is_refused(model, tokenizer, questions, settings, message):
    with pytest.raises(ValueError, match=message):
        make(model, tokenizer).generate(questions, **settings)


def test_a_long_question_is_refused_before_a_short_one_is_answered(model, tokenizer):
    probe = Always(1, 0, 0)
    with pytest.raises(ValueError, match="64 tokens of"):
        make(model, tokenizer, probe).generate(["1=", "1" * 60], batch_size=1)
    assert probe.seen == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n must"),
        ({"temperature": 0.0}, "temperature must"),
        ({"batch_size": 0}, "batch"),
    ],
)
def test_collecting_nothing_is_refused(model, tokenizer, settings, message):
    with pytest.raises(ValueError, match=message):
        make(model, tokenizer).collect(["1="], lambda q, r: True, **settings)


def test_another_model_is_refused_and_an_empty_prompt(model, tokenizer):
    method = make(model, tokenizer)
    other = tiny_language_model(vocab=tokenizer, hidden=16, layers=1, heads=2)
    ids = torch.tensor([[1, 5]])
    with pytest.raises(ValueError, match="the model that DiffAdapt was made for"):
        other.generate(ids, custom_generate=method, max_new_tokens=12)
    padding = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="no empty prompt"):
        model.generate(
            ids, attention_mask=padding, custom_generate=method, max_new_tokens=12, pad_token_id=0
        )
