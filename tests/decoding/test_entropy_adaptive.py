"""Entropy adaptive decoding: the rule on traces, the text against one model or no cache, the books."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    PreTrainedModel,
)

import szilard.decoding.entropy_adaptive as module
from szilard.decoding.entropy_adaptive import (
    EADOutput,
    EntropyAdaptiveDecoder,
    RollingEntropyController,
    Switch,
    common_vocabulary,
    forward_flops,
    paper_cost,
    reading_ledger,
    route_trace,
    weight_traffic,
)
from szilard.zoo.language import character_tokenizer

# Twenty steps: a hard stretch where both models are unsure, a second where one is.
SMALL = [0.1, 0.1, 0.2, 3, 3, 3, 3, 3, *[0.1] * 7, 2.5, *[0.1] * 4]
LARGE = [0.1, 0.1, 0.1, 2, 2, 2, 2, 2, *[0.1] * 7, 1, *[0.1] * 4]
# Thresholds are chosen so that models change places often.
pytestmark = pytest.mark.filterwarnings("ignore:the models changed places")

PLAIN = {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None}


def llama(hidden: int, seed: int, vocab: int = 40, scale: float = 0.3) -> PreTrainedModel:
    """An untrained model whose distributions are far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=scale,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def small() -> PreTrainedModel:
    return llama(8, 0)


@pytest.fixture(scope="module")
def large() -> PreTrainedModel:
    return llama(16, 1)


def prompt(rows: int = 1, tokens: int = 6) -> torch.Tensor:
    return torch.randint(3, 40, (rows, tokens), generator=torch.Generator().manual_seed(tokens))


def restless(
    small: PreTrainedModel, large: PreTrainedModel, commit: Any = "after"
) -> EntropyAdaptiveDecoder:
    """Switches often: the threshold lies in the midst of the entropies."""
    tau = 4.45 if isinstance(large, LlamaForCausalLM) else 3.6
    return EntropyAdaptiveDecoder(small, large, tau, window=1, min_dwell=1, commit=commit)


def write(decoder: EntropyAdaptiveDecoder, ids: torch.Tensor, **settings: Any) -> EADOutput:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return decoder.generate(ids, **{**PLAIN, **settings})


def plain(model: PreTrainedModel, ids: torch.Tensor, **settings: Any) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return model.generate(ids, **{**PLAIN, **settings})


# The rule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tau", "window", "route"),
    [
        (1.0, 5, "SSSSSLLLLLLSSSSSSSSS"),
        (1.0, 1, "SSSSLLLLLSSSSSSSLSSS"),
        (0.5, 5, "SSSSLLLLLLLLSSSSLLLL"),
    ],
)
def test_a_recorded_trace_is_routed_as_by_hand(tau: float, window: int, route: str) -> None:
    assert route_trace(SMALL, LARGE, tau, window, min_dwell=1) == route


def test_a_model_stays_for_its_dwell_but_the_first_switch_need_not_wait() -> None:
    # After the first token the large model is wanted, from then on the small one.
    assert route_trace([9] + [0] * 7, [0] * 8, 1, window=1, min_dwell=4) == "SLLLLSSS"
    assert route_trace([9] * 8, [0] * 8, 1, window=1, min_dwell=3) == "SLLLSSSL"


def test_a_decision_may_hold_for_the_token_it_was_taken_on() -> None:
    after = route_trace(SMALL, LARGE, 1.0, 5, min_dwell=1)
    before = route_trace(SMALL, LARGE, 1.0, 5, min_dwell=1, commit="before")
    assert after.find("L") == before.find("L") + 1


bits = st.lists(st.floats(0, 8), min_size=1, max_size=40)


@given(trace=bits, window=st.integers(1, 6), dwell=st.integers(1, 6))
def test_no_entropy_is_above_infinity_and_every_positive_one_above_zero(
    trace: list[float], window: int, dwell: int
) -> None:
    lifted = [x + 1e-3 for x in trace]
    assert set(route_trace(trace, trace, math.inf, window, dwell)) == {"S"}
    assert set(route_trace(lifted, lifted, 0.0, window, dwell, start="large")) == {"L"}


@given(trace=bits, window=st.integers(1, 6), tau=st.floats(0, 8))
def test_with_equal_entropies_and_no_dwell_the_route_is_the_thresholded_mean(
    trace: list[float], window: int, tau: float
) -> None:
    route = route_trace(trace, trace, tau, window, min_dwell=1)
    means = [
        math.fsum(part) / len(part)
        for part in (trace[max(0, t + 1 - window) : t + 1] for t in range(len(trace)))
    ]
    assert route == "S" + "".join("SL"[mean > tau] for mean in means[:-1])


@given(trace=bits, dwell=st.integers(1, 6), tau=st.floats(0, 8))
def test_every_stretch_but_the_first_and_last_is_as_long_as_the_dwell(
    trace: list[float], dwell: int, tau: float
) -> None:
    route = route_trace(trace, trace[::-1], tau, 2, dwell)
    stretches = "".join(
        letter if letter == before else f" {letter}"
        for before, letter in zip(route[0] + route, route, strict=False)
    ).split()
    assert all(len(stretch) >= dwell for stretch in stretches[1:-1])


# The costs ----------------------------------------------------------------------------------------


def test_the_published_savings_follow_from_share_and_sizes() -> None:
    assert paper_cost(0.43, 3 / 11) == pytest.approx(0.585455, abs=1e-6)
    assert paper_cost(0.25, 1.5 / 14) == pytest.approx(0.330357, abs=1e-6)
    assert paper_cost(0, 0.2) == 0.2
    assert paper_cost(1, 0.2) == 1


def test_the_ledger_of_a_route_is_the_one_by_hand() -> None:
    fed = reading_ledger("SSSSLLLSSLLSSSS", prompt_tokens=10)
    assert fed == {"small": [10, 1, 1, 1, 4, 1, 3, 1, 1, 1], "large": [14, 1, 1, 3, 1]}
    assert (sum(fed["small"]), sum(fed["large"])) == (24, 20)


class Scripted(RollingEntropyController):
    """Follows a route, whatever the entropies are."""

    route = "SSSSLLLSSLLSSSS"

    def decide(self, entropy_bits: float) -> Any:
        super().decide(entropy_bits)
        self.step = getattr(self, "step", 0) + 1
        self.active = "small" if (self.route + "S")[self.step] == "S" else "large"
        return self.active


def count_fed(model: PreTrainedModel, fed: list[int]) -> Any:
    return model.register_forward_pre_hook(
        lambda _module, _args, kwargs: fed.append(kwargs["input_ids"].shape[-1]), with_kwargs=True
    )


def test_no_token_is_read_twice_and_every_forward_writes_one(
    small: PreTrainedModel, large: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RollingEntropyController", Scripted)
    fed: dict[str, list[int]] = {"small": [], "large": []}
    hooks = [count_fed(small, fed["small"]), count_fed(large, fed["large"])]
    out = write(restless(small, large), prompt(1, 10), max_new_tokens=15, do_sample=True)
    for hook in hooks:
        hook.remove()
    assert fed == reading_ledger(Scripted.route, 10)
    assert "".join(name[0].upper() for name in out.writers()) == Scripted.route
    assert out.switches() == [
        Switch(4, "small", "large"),
        Switch(7, "large", "small"),
        Switch(9, "small", "large"),
        Switch(11, "large", "small"),
    ]
    cost = out.cost
    assert (cost.small.fed, cost.large.fed) == (24, 20)
    assert cost.small.forwards + cost.large.forwards == 15
    assert (cost.small.written, cost.large.written) == (10, 5)
    # All four accounts by hand.
    p_small, p_large = small.num_parameters(), large.num_parameters()
    assert cost.paper == pytest.approx(1 / 3 + 2 / 3 * p_small / p_large)
    assert cost.flops == 2 * (24 * p_small + 20 * p_large)
    assert cost.flops_saved == pytest.approx(1 - cost.flops / (2 * p_large * 24))
    assert cost.traffic == 4 * (10 * p_small + 5 * p_large)
    assert cost.relative_traffic == pytest.approx(cost.traffic / (4 * p_large * 15))
    assert cost.seconds > 0


@given(route=st.text("SL", min_size=1, max_size=30), tokens=st.integers(1, 9))
def test_a_ledger_reads_each_model_up_to_its_last_token(route: str, tokens: int) -> None:
    for name, fed in reading_ledger(route, tokens).items():
        letter = name[0].upper()
        assert len(fed) == route.count(letter)
        assert sum(fed) == (tokens + route.rindex(letter) if letter in route else 0)


# The text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("do_sample", [False, True])
def test_at_its_limits_it_is_one_model_alone(
    small: PreTrainedModel, large: PreTrainedModel, do_sample: bool
) -> None:
    ids = prompt()
    never = EntropyAdaptiveDecoder(small, large, tau_bits=math.inf)
    always = EntropyAdaptiveDecoder(small, large, tau_bits=0, start="large")
    settings = {"do_sample": do_sample, "top_k": 0}
    assert torch.equal(write(never, ids, **settings).sequences, plain(small, ids, **settings))
    assert torch.equal(write(always, ids, **settings).sequences, plain(large, ids, **settings))
    assert (never.output.large_share, always.output.large_share) == (0, 1)
    assert always.output.cost.paper == always.output.cost.relative_flops == 1
    assert never.output.cost.large.fed == always.output.cost.small.fed == 0


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_model_that_takes_turns_with_itself_writes_its_own_text(
    large: PreTrainedModel, do_sample: bool
) -> None:
    ids, settings = prompt(), {"do_sample": do_sample, "temperature": 0.8, "top_k": 10}
    if not do_sample:
        settings = {"do_sample": False}
    out = write(restless(large, large), ids, **settings)
    assert torch.equal(out.sequences, plain(large, ids, **settings))
    assert len(out.switches()) > 2


@torch.no_grad()
def without_a_cache(
    decoder: EntropyAdaptiveDecoder, ids: torch.Tensor, tokens: int
) -> tuple[torch.Tensor, list[str]]:
    """The whole context through the active model at each step, greedily."""
    controller = RollingEntropyController(
        decoder.tau_bits, decoder.window, decoder.min_dwell, decoder.start
    )
    writers = []
    for _ in range(tokens):
        writers.append(controller.active)
        logits = decoder.models[controller.active](ids, use_cache=False).logits[0, -1]
        p = logits.double().softmax(-1)
        ids = torch.cat((ids, logits.argmax().view(1, 1)), 1)
        controller.update(float(-(p * p.log2()).sum()))
    return ids, writers


@pytest.mark.parametrize("pair", ["full attention", "sliding windows"])
def test_caches_change_nothing(
    small: PreTrainedModel, large: PreTrainedModel, gemma: Any, pair: str
) -> None:
    windows = [gemma(seed, initializer_range=0.3) for seed in (4, 7)]
    models = (small, large) if pair == "full attention" else windows
    decoder = restless(*models)
    out = write(decoder, prompt(), max_new_tokens=30, do_sample=False)
    ids, writers = without_a_cache(decoder, prompt(), 30)
    assert torch.equal(out.sequences, ids)
    assert out.writers() == writers
    assert len(out.switches()) > 2


def test_the_entropy_is_that_of_raw_logits_in_bits(large: PreTrainedModel) -> None:
    class Flat(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(scores)

    uniform = llama(16, 1, vocab=64)
    torch.nn.init.zeros_(uniform.lm_head.weight)
    out = write(EntropyAdaptiveDecoder(uniform, uniform, tau_bits=1), prompt())
    assert out.entropy_bits.tolist() == [[6.0] * 12]
    first = [
        write(restless(large, large), prompt(), do_sample=True, **settings).entropy_bits[0, 0]
        for settings in (
            {},
            {"temperature": 0.2},
            {"top_k": 1},
            {"repetition_penalty": 3.0},
            {"logits_processor": [Flat()]},
        )
    ]
    assert len({float(x) for x in first}) == 1


def test_the_rolling_entropy_is_the_mean_of_the_last_entropies(
    small: PreTrainedModel, large: PreTrainedModel
) -> None:
    decoder = EntropyAdaptiveDecoder(small, large, tau_bits=4.4, window=3, min_dwell=2)
    out = write(decoder, prompt())
    entropy = out.entropy_bits[0]
    means = torch.stack([entropy[max(0, t - 2) : t + 1].mean() for t in range(12)])
    torch.testing.assert_close(out.rolling_bits[0], means)


def test_a_decision_before_the_token_costs_the_forward_it_throws_away(
    small: PreTrainedModel, large: PreTrainedModel
) -> None:
    decoder = restless(small, large, commit="before")
    out = write(decoder, prompt())
    wrong = [
        (b > 4.45) != (w == "large")
        for b, w in zip(out.entropy_bits[0], out.writers(), strict=True)
    ]
    assert not any(wrong)
    forwards = out.cost.small.forwards + out.cost.large.forwards
    assert forwards == 12 + len(out.switches()) + (out.writers()[0] == "large")


def test_padded_logits_are_cut_to_the_common_vocabulary() -> None:
    tokenizer = character_tokenizer("abcdefghijkl")
    small, large = llama(8, 0, vocab=16), llama(16, 1, vocab=24)
    with torch.no_grad():
        large.lm_head.weight[16:] = 100 * large.lm_head.weight[:8]
    decoder = EntropyAdaptiveDecoder(
        small, large, tau_bits=0, start="large", tokenizers=(tokenizer, tokenizer)
    )
    out = write(decoder, prompt() % 16, max_new_tokens=20, do_sample=True)
    assert int(out.sequences.max()) < 16
    assert float(out.entropy_bits.max()) <= 4


# Inside generate ----------------------------------------------------------------------------------


def test_generate_takes_it_and_the_same_seed_writes_the_same_text(
    small: PreTrainedModel, large: PreTrainedModel
) -> None:
    decoder, ids = restless(small, large), prompt()
    texts = [plain(large, ids, custom_generate=decoder, do_sample=True, top_k=0) for _ in range(2)]
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], decoder.output.sequences)
    record = plain(large, ids, custom_generate=decoder, return_dict_in_generate=True)
    assert isinstance(record, EADOutput)
    own = EntropyAdaptiveDecoder(
        small, large, tau_bits=4.45, generator=torch.Generator().manual_seed(3)
    )
    state = torch.get_rng_state()
    own.generate(ids, do_sample=True, **PLAIN)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_left_padded_batch_writes_what_its_rows_write_alone(
    small: PreTrainedModel, large: PreTrainedModel, do_sample: bool
) -> None:
    decoder = restless(small, large)
    rows = [prompt(1, 4), prompt(1, 9)]
    ids = torch.cat((torch.cat((torch.zeros(1, 5, dtype=torch.long), rows[0]), 1), rows[1]))
    mask = (torch.arange(9) >= torch.tensor([[5], [0]])).long()
    batch = write(decoder, ids, attention_mask=mask, do_sample=do_sample, top_k=0)
    assert batch.model_ids.shape == (2, 12)
    torch.testing.assert_close(batch.sequences[:, :9], ids)
    alone = write(decoder, rows[0], do_sample=do_sample, top_k=0)
    assert torch.equal(batch.sequences[0, 9:], alone.sequences[0, 4:])
    assert torch.equal(batch.model_ids[0], alone.model_ids[0])
    if not do_sample:
        second = write(decoder, rows[1], do_sample=False)
        assert torch.equal(batch.sequences[1], second.sequences[0])
        assert batch.cost.flops == alone.cost.flops + second.cost.flops


def test_rows_that_end_early_are_padded_and_marked(
    small: PreTrainedModel, large: PreTrainedModel
) -> None:
    decoder, ids = restless(small, large), prompt(2, 6)
    whole = write(decoder, ids, do_sample=False)
    # The third token of the first row is made the end of a text.
    end = int(whole.sequences[0, 8])
    out = write(decoder, ids, do_sample=False, eos_token_id=end, pad_token_id=39)
    first = whole.sequences[0, 6:].tolist().index(end) + 1
    assert out.sequences[0, 6 : 6 + first].tolist() == whole.sequences[0, 6 : 6 + first].tolist()
    assert (out.model_ids[0] >= 0).sum() == first
    rest = out.sequences.shape[1] - 6 - first
    assert out.sequences[0, 6 + first :].tolist() == [39] * rest
    assert out.entropy_bits[0].isnan().sum() == rest == (out.model_ids[0] == -1).sum()
    assert len(out.writers(0)) == first


def test_stopping_criteria_and_processors_are_honoured(
    small: PreTrainedModel, large: PreTrainedModel
) -> None:
    class Only(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            kept = torch.full_like(scores, -torch.inf)
            kept[:, input_ids.shape[-1]] = 0
            return kept

    out = write(
        restless(small, large),
        prompt(),
        do_sample=True,
        logits_processor=[Only()],
        stopping_criteria=[lambda ids, scores: torch.tensor([ids.shape[-1] >= 11])],
    )
    assert out.sequences[0, 6:].tolist() == [6, 7, 8, 9, 10]


class Streamer:
    def __init__(self) -> None:
        self.pieces: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.pieces.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("through_generate", [True, False])
def test_a_streamer_sees_the_prompt_then_each_token_then_the_end(
    small: PreTrainedModel, large: PreTrainedModel, through_generate: bool
) -> None:
    decoder, streamer, ids = restless(small, large), Streamer(), prompt()
    if through_generate:
        plain(large, ids, custom_generate=decoder, streamer=streamer)
    else:
        write(decoder, ids, streamer=streamer)
    assert streamer.pieces[0] == ids[0].tolist()
    assert streamer.pieces[1:] == [[token] for token in decoder.output.sequences[0, 6:].tolist()]
    assert streamer.ended == 1


def test_models_that_keep_changing_places_are_warned_of(
    small: PreTrainedModel, large: PreTrainedModel
) -> None:
    with pytest.warns(UserWarning, match="changed places"):
        write(restless(large, large), prompt(), max_new_tokens=40, do_sample=True, top_k=0)


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("tau_bits", -0.1),
        ("tau_bits", math.nan),
        ("window", 0),
        ("min_dwell", 0),
        ("start", "medium"),
        ("commit", "later"),
    ],
)
@pytest.mark.usefixtures("unhooked")
def test_a_rule_that_is_none_is_refused(
    small: PreTrainedModel, large: PreTrainedModel, argument: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=f"{argument} must"):
        EntropyAdaptiveDecoder(small, large, **{"tau_bits": 1.0, argument: value})


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_an_entropy_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="entropy_bits must"):
        RollingEntropyController(1.0).update(value)


def test_traces_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="large_bits must be as long"):
        route_trace([1.0], [1.0, 2.0], 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paper_cost(1.5, 0.1), "large_share must"),
        (lambda: paper_cost(0.5, math.nan), "parameter_ratio must"),
        (lambda: reading_ledger("SXL", 3), "route must"),
        (lambda: reading_ledger("SL", 0), "prompt_tokens must"),
    ],
)
def test_costs_of_nothing_sensible_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_costs_of_one_forward() -> None:
    assert forward_flops(10, 4) == 80
    assert weight_traffic(10, 4) == 40


def test_vocabularies_that_differ_are_refused_naming_the_difference() -> None:
    small, large = llama(8, 0, vocab=40), llama(16, 1, vocab=48)
    with pytest.raises(ValueError, match="over 40 and 48 tokens"):
        EntropyAdaptiveDecoder(small, large, tau_bits=1)
    ours, theirs = character_tokenizer("abc"), character_tokenizer("acb")
    with pytest.raises(ValueError, match=r"2 tokens differ, 'b' for one: id 5 .* id 6"):
        EntropyAdaptiveDecoder(small, large, tau_bits=1, tokenizers=(ours, theirs))
    with pytest.raises(ValueError, match=r"'d' for one: no token .* id 7"):
        common_vocabulary(small, large, (ours, character_tokenizer("abcd")))
    assert common_vocabulary(small, large, (ours, ours)) == 7


def test_models_that_read_no_text_piece_by_piece_are_refused(
    small: PreTrainedModel, encoder_decoder: PreTrainedModel
) -> None:
    with pytest.raises(ValueError, match="large must be a causal"):
        EntropyAdaptiveDecoder(small, encoder_decoder, tau_bits=1)

    class Forgetful(LlamaForCausalLM):
        def forward(self, input_ids: torch.Tensor) -> Any:
            return super().forward(input_ids)

    with pytest.raises(ValueError, match="small must keep a key-value cache"):
        EntropyAdaptiveDecoder(Forgetful(small.config), small, tau_bits=1)


@pytest.mark.parametrize(
    ("ids", "settings", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.long), {}, "at least one token"),
        (prompt(1, 70), {}, "64 tokens .* come to"),
        (prompt(1, 60), {}, "64 tokens .* come to 72"),
        (prompt(), {"num_beams": 2}, "num_beams must be 1"),
        (prompt(), {"use_cache": False}, "use_cache must"),
        (
            prompt(),
            {"return_dict_in_generate": True, "output_scores": True},
            "output_scores must",
        ),
    ],
)
def test_a_call_that_can_t_be_served_is_refused_before_a_model_is_run(
    small: PreTrainedModel, large: PreTrainedModel, ids: torch.Tensor, settings: Any, message: str
) -> None:
    fed: list[int] = []
    hooks = [count_fed(model, fed) for model in (small, large)]
    decoder = restless(small, large)
    with pytest.raises(ValueError, match=message):
        write(decoder, ids, **settings)
    with pytest.raises(ValueError, match=message):
        plain(large, ids, custom_generate=decoder, **settings)
    for hook in hooks:
        hook.remove()
    assert fed == []
    assert decoder.output is None


def test_the_smaller_context_counts_too(large: PreTrainedModel) -> None:
    short = llama(8, 0)
    short.config.max_position_embeddings = 16
    with pytest.raises(ValueError, match=r"16 tokens .* come to 18"):
        write(EntropyAdaptiveDecoder(short, large, tau_bits=1), prompt())


def test_a_model_that_is_neither_of_the_two_is_refused(
    small: PreTrainedModel, large: PreTrainedModel
) -> None:
    with pytest.raises(ValueError, match="called on the small or the large"):
        plain(llama(16, 5), prompt(), custom_generate=restless(small, large))


def test_logits_that_are_no_distribution_are_reported_with_model_and_token(
    large: PreTrainedModel,
) -> None:
    broken = llama(8, 0)
    torch.nn.init.constant_(broken.lm_head.weight, math.nan)
    with pytest.raises(ValueError, match="small model's logits at token 0"):
        write(EntropyAdaptiveDecoder(broken, large, tau_bits=1), prompt())
