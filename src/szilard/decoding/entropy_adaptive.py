"""Entropy adaptive decoding: a small and a large model take turns writing one text.

The active model's next-token entropy, averaged over the last few tokens, says whose turn is next:
the large model's above the threshold tau, the small one's otherwise. Nothing is verified, a token
once written is final; a model that takes over first reads what the other wrote, in one forward.

Source: Simonds, Entropy Adaptive Decoding: Dynamic Model Switching for Efficient Inference (2025;
arXiv 2502.06833).
"""

from __future__ import annotations

import inspect
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Int8, Integer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from szilard.decoding.reading import CachedReader, check_model, check_prompt
from szilard.decoding.streaming import streamer_of_call
from szilard.measures.tokens import token_statistics

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer

ModelName = Literal["small", "large"]
Commit = Literal["after", "before"]
NAMES: tuple[ModelName, ModelName] = ("small", "large")

# A switch at more than one token in five: the threshold lies between the models' own entropies.
_OSCILLATION = 0.2
_ENOUGH_TOKENS = 20


# Whose turn it is ---------------------------------------------------------------------------------


class RollingEntropyController:
    """Decides from a stream of entropies which model writes, without any model.

    With Hbar_t the mean of the last `window` entropies, whichever model they are of, the large model
    is wanted where Hbar_t > tau and the small one elsewhere. A model that is wanted takes over once
    the active one has written `min_dwell` tokens; the first switch need not wait.

    Args:
        tau_bits: the threshold, in bits; 0 or more, infinity included.
        window: entropies averaged; while there are fewer, those that are there.
        min_dwell: tokens a model writes before it may be relieved; 1 lets it switch at any token.
        start: the model that writes first.

    Attributes:
        active: the model whose turn it is.
        rolling_bits: Hbar of the last update; NaN before the first.

    Raises:
        ValueError: an argument out of its range.

    Examples:
        >>> controller = RollingEntropyController(tau_bits=1.0, window=2, min_dwell=1)
        >>> [controller.update(bits) for bits in (0.5, 1.0, 3.0, 0.2, 0.1)]
        ['small', 'small', 'large', 'large', 'small']

    Source: Simonds 2025 (arXiv 2502.06833), the switching rule.
    """

    def __init__(
        self,
        tau_bits: float,
        window: int = 5,
        min_dwell: int = 5,
        start: ModelName = "small",
    ) -> None:
        check_rule(tau_bits, window, min_dwell, start)
        self.tau_bits = tau_bits
        self.min_dwell = min_dwell
        self.active: ModelName = start
        self.rolling_bits = math.nan
        self._window: deque[float] = deque(maxlen=window)
        self._written = 0
        self._switched = False

    def update(self, entropy_bits: float) -> ModelName:
        """The active model wrote a token from a distribution of this entropy: who writes the next?

        Raises:
            ValueError: an entropy that is negative or not finite.
        """
        self.count()
        return self.decide(entropy_bits)

    def count(self) -> None:
        """The active model wrote a token."""
        self._written += 1

    def decide(self, entropy_bits: float) -> ModelName:
        """Takes in an entropy and hands the turn over where the rule says so.

        Raises:
            ValueError: an entropy that is negative or not finite.
        """
        if not 0 <= entropy_bits < math.inf:
            raise ValueError(f"entropy_bits must be finite and at least 0, but is {entropy_bits!r}")
        self._window.append(entropy_bits)
        self.rolling_bits = math.fsum(self._window) / len(self._window)
        wanted = NAMES[self.rolling_bits > self.tau_bits]
        may_switch = self._written >= self.min_dwell or not self._switched
        if wanted != self.active and may_switch:
            self.active, self._written, self._switched = wanted, 0, True
        return self.active


def check_rule(tau_bits: float, window: int, min_dwell: int, start: str) -> None:
    """Refuses a switching rule that is none.

    Raises:
        ValueError: naming the argument.
    """
    if not tau_bits >= 0:
        raise ValueError(f"tau_bits must be 0 or more, but is {tau_bits!r}")
    for name, count in (("window", window), ("min_dwell", min_dwell)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, but is {count!r}")
    if start not in NAMES:
        raise ValueError(f"start must be 'small' or 'large', but is {start!r}")


def route_trace(
    small_bits: Sequence[float],
    large_bits: Sequence[float],
    tau_bits: float,
    window: int = 5,
    min_dwell: int = 5,
    start: ModelName = "small",
    commit: Commit = "after",
) -> str:
    """Replays recorded entropies: who would have written each token.

    Args:
        small_bits: the small model's entropy at each token, bits.
        large_bits: the large model's.
        tau_bits: the threshold, in bits.
        window: entropies averaged.
        min_dwell: tokens a model writes before it may be relieved; the first switch need not wait.
        start: the model that writes first.
        commit: whether a decision holds from the next token on ("after") or for this one ("before").

    Returns:
        A letter a token, S for the small model and L for the large one.

    Raises:
        ValueError: traces of different length, or an argument out of its range.

    Examples:
        >>> route_trace([0.1, 3, 3, 3, 0.1], [0.1, 2, 2, 2, 0.1], tau_bits=1, window=1, min_dwell=1)
        'SSLLL'

    Source: Simonds 2025 (arXiv 2502.06833), the switching rule.
    """
    check_commit(commit)
    if len(small_bits) != len(large_bits):
        raise ValueError(
            f"large_bits must be as long as small_bits, {len(small_bits)}, but has {len(large_bits)}"
        )
    controller = RollingEntropyController(tau_bits, window, min_dwell, start)
    route = ""
    for pair in zip(small_bits, large_bits, strict=True):
        bits = dict(zip(NAMES, pair, strict=True))
        if commit == "before":
            controller.decide(bits[controller.active])
        writer = controller.active
        controller.count()
        route += writer[0].upper()
        if commit == "after":
            controller.decide(bits[writer])
    return route


def check_commit(commit: str) -> None:
    """Refuses anything but the two moments a decision can hold from."""
    if commit not in ("after", "before"):
        raise ValueError(f"commit must be 'after' or 'before', but is {commit!r}")


# What it costs ------------------------------------------------------------------------------------


def paper_cost(large_share: float, parameter_ratio: float) -> float:
    """The paper's account: C = f + (1 - f) P_S / P_L, in units of the large model writing all.

    It counts neither the prompt nor the reading that a switch takes, so it is no FLOP count and no
    latency.

    Args:
        large_share: f, the share of tokens the large model wrote.
        parameter_ratio: P_S / P_L.

    Raises:
        ValueError: a share outside [0, 1] or a negative ratio.

    Examples:
        >>> round(1 - paper_cost(0.43, 3 / 11), 3)
        0.415

    Source: Simonds 2025 (arXiv 2502.06833), the reported savings.
    """
    if not 0 <= large_share <= 1:
        raise ValueError(f"large_share must lie in [0, 1], but is {large_share!r}")
    if not parameter_ratio >= 0:
        raise ValueError(f"parameter_ratio must be 0 or more, but is {parameter_ratio!r}")
    return large_share + (1 - large_share) * parameter_ratio


def forward_flops(parameters: int, tokens_fed: int) -> int:
    """FLOPs of reading tokens: two a parameter and token, attention over the past left out.

    Examples:
        >>> forward_flops(1000, 3)
        6000
    """
    return 2 * parameters * tokens_fed


def weight_traffic(model_bytes: int, forwards: int) -> int:
    """Bytes of weights that forwards stream from memory, which bounds the time of short ones.

    Examples:
        >>> weight_traffic(4000, 3)
        12000
    """
    return model_bytes * forwards


def reading_ledger(route: str, prompt_tokens: int) -> dict[ModelName, list[int]]:
    """How many tokens each forward of each model reads when a text is written along a route.

    Args:
        route: a letter a token, S or L, as `route_trace` writes it.
        prompt_tokens: length of the prompt.

    Returns:
        For each model the tokens read by its forwards, in order; the first reads the prompt with all
        that was written before, a later one what was written since the model's last.

    Raises:
        ValueError: a letter that is neither, or no prompt.

    Examples:
        >>> reading_ledger("SSLLS", prompt_tokens=10)
        {'small': [10, 1, 3], 'large': [12, 1]}
    """
    if set(route) - {"S", "L"}:
        raise ValueError(f"route must be made of S and L, but is {route!r}")
    if prompt_tokens < 1:
        raise ValueError(f"prompt_tokens must be at least 1, but is {prompt_tokens!r}")
    fed: dict[ModelName, list[int]] = {"small": [], "large": []}
    for written, letter in enumerate(route):
        mine = fed["small" if letter == "S" else "large"]
        mine.append(prompt_tokens + written - sum(mine))
    return fed


@dataclass(frozen=True, slots=True)
class ModelWork:
    """What one model did for a text, or for all texts of a batch.

    Attributes:
        parameters: of the model.
        bytes: of its weights.
        written: tokens of the text that are the model's.
        fed: tokens it read, the prompt and what it caught up on included.
        forwards: forward passes.
    """

    parameters: int
    bytes: int
    written: int
    fed: int
    forwards: int


@dataclass(frozen=True, slots=True)
class EADCost:
    """Four accounts of what a text cost, which answer different questions.

    (a) `paper` weighs written tokens by model size, as the published savings do. (b) `flops` counts
    all reading: a large model that joins late has the prompt and the text to catch up on. (c)
    `traffic` counts forwards by the bytes of weights, which decides latency where decoding waits for
    memory. (d) `seconds` is the clock's.

    Attributes:
        small: the small model's work.
        large: the large model's work.
        large_only_fed: tokens the large model would have read to write the same lengths alone.
        seconds: wall time of the decoding loop.

    Source: Simonds 2025 (arXiv 2502.06833) for (a).
    """

    small: ModelWork
    large: ModelWork
    large_only_fed: int
    seconds: float

    @property
    def large_share(self) -> float:
        """f, the share of tokens the large model wrote."""
        return self.large.written / max(1, self.large.written + self.small.written)

    @property
    def paper(self) -> float:
        """(a), in units of the large model writing all."""
        return paper_cost(self.large_share, self.small.parameters / self.large.parameters)

    @property
    def flops(self) -> int:
        """(b), of both models."""
        return sum(forward_flops(work.parameters, work.fed) for work in (self.small, self.large))

    @property
    def relative_flops(self) -> float:
        """(b), in units of the large model writing all; above 1 where catching up ate the saving."""
        return self.flops / forward_flops(self.large.parameters, max(1, self.large_only_fed))

    @property
    def flops_saved(self) -> float:
        """The share of FLOPs saved against the large model alone; negative where it cost more."""
        return 1 - self.relative_flops

    @property
    def traffic(self) -> int:
        """(c), bytes of weights streamed by all forwards."""
        return sum(weight_traffic(work.bytes, work.forwards) for work in (self.small, self.large))

    @property
    def relative_traffic(self) -> float:
        """(c), in units of the large model writing all, a forward a token."""
        written = self.small.written + self.large.written
        return self.traffic / weight_traffic(self.large.bytes, max(1, written))


# The text -----------------------------------------------------------------------------------------


class Switch(NamedTuple):
    """A change of writer: the first token of the new one, and both."""

    token: int
    before: ModelName
    after: ModelName


@dataclass(frozen=True, slots=True)
class EADOutput:
    """Texts, who wrote each token, and what that cost.

    Attributes:
        sequences: prompts and texts, padded on the right where a row ended early.
        model_ids: 0 where the small model wrote a token, 1 where the large one did, -1 after the end.
        entropy_bits: of the distribution a decision was taken on, bits: raw logits, before any
            processor or temperature; NaN after the end.
        rolling_bits: mean of the last `window` of them; NaN after the end.
        cost: of all rows together.
    """

    sequences: Int[Tensor, "batch tokens"]
    model_ids: Int8[Tensor, "batch new"]
    entropy_bits: Float[Tensor, "batch new"]
    rolling_bits: Float[Tensor, "batch new"]
    cost: EADCost

    @property
    def large_share(self) -> float:
        """The share of all written tokens that are the large model's."""
        return self.cost.large_share

    def writers(self, row: int = 0) -> list[ModelName]:
        """Who wrote each token of a row, up to its end."""
        ids = self.model_ids[row]
        return [NAMES[i] for i in ids[ids >= 0].tolist()]

    def switches(self, row: int = 0) -> list[Switch]:
        """Every change of writer in a row."""
        writers = self.writers(row)
        pairs = enumerate(pairwise(writers), start=1)
        return [Switch(t, before, after) for t, (before, after) in pairs if before != after]


@dataclass(frozen=True, slots=True)
class _Row:
    """One written text, the prompt's padding included, and its record."""

    ids: Tensor
    writers: list[int]
    entropy_bits: list[float]
    rolling_bits: list[float]
    readers: dict[ModelName, CachedReader]


class EntropyAdaptiveDecoder:
    """Hands generation back and forth between two models of one vocabulary.

    Give it to either model's `generate` as `custom_generate=decoder`: greedy or sampling, processors,
    stopping criteria and streamers work as always, and `decoder.output` then tells who wrote what.
    Sampling settings and end-of-sequence tokens are those of the call. `decoder.generate` is the
    same call on the large model and returns that record at once.

    Rows of a batch part ways at the first switch, so they are written one after another, each with
    caches of its own: a batch is a convenience here, not a speed-up.

    Args:
        small: the cheap model.
        large: the competent model.
        tau_bits: threshold on the rolling entropy, in bits; 0 or more, infinity included.
        window: entropies averaged.
        min_dwell: tokens a model writes before it may be relieved; the first switch need not wait.
        start: the model that writes first.
        commit: "after" lets a decision hold from the next token on; "before" for the token itself,
            at the price of a forward thrown away at each switch.
        tokenizers: of the small and the large model, to be compared token by token. Without them
            both models must put out logits of the same width.
        generator: source of the draws; torch's global one by default, as in `generate`.

    Attributes:
        output: the record of the latest call; None before the first.

    Raises:
        ValueError: an argument out of its range, vocabularies that differ, an encoder-decoder model,
            or one without a key-value cache.

    Examples:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=16, num_hidden_layers=1, num_attention_heads=2)
        >>> small, large = (
        ...     LlamaForCausalLM(LlamaConfig(hidden_size=h, intermediate_size=h, **sizes)).eval()
        ...     for h in (4, 8)
        ... )
        >>> decoder = EntropyAdaptiveDecoder(small, large, tau_bits=1.0, min_dwell=1)
        >>> text = large.generate(
        ...     torch.tensor([[1, 5]]), custom_generate=decoder, max_new_tokens=4, pad_token_id=0,
        ...     eos_token_id=None,
        ... )
        >>> text.shape, decoder.output.writers()
        (torch.Size([1, 6]), ['small', 'large', 'large', 'large'])

    Source: Simonds, Entropy Adaptive Decoding: Dynamic Model Switching for Efficient Inference (2025;
        arXiv 2502.06833).
    """

    def __init__(
        self,
        small: PreTrainedModel,
        large: PreTrainedModel,
        tau_bits: float,
        window: int = 5,
        min_dwell: int = 5,
        start: ModelName = "small",
        commit: Commit = "after",
        *,
        tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_rule(tau_bits, window, min_dwell, start)
        check_commit(commit)
        check_model(small, "small")
        check_model(large, "large")
        self.models: dict[ModelName, PreTrainedModel] = {"small": small, "large": large}
        self.vocabulary = common_vocabulary(small, large, tokenizers)
        self.tau_bits = tau_bits
        self.window = window
        self.min_dwell = min_dwell
        self.start: ModelName = start
        self.commit = commit
        self.generator = generator
        self.output: EADOutput | None = None

    def generate(
        self,
        input_ids: Integer[Tensor, "batch tokens"],
        attention_mask: Integer[Tensor, "batch tokens"] | None = None,
        **settings: Any,
    ) -> EADOutput:
        """`generate` of the large model with this decoder.

        Args:
            input_ids: prompts, padded on the left.
            attention_mask: 0 where a token is padding.
            **settings: whatever `generate` takes: `max_new_tokens`, `do_sample`, `temperature`,
                `generation_config`, `logits_processor`, `stopping_criteria`, `streamer`, ...

        Returns:
            The texts and the record.

        Raises:
            ValueError: an empty prompt, one that does not fit either context, beams, a setting that
                two models can't share, or logits that define no distribution.
        """
        self._check_prompt(input_ids, attention_mask)
        if attention_mask is not None:
            settings["attention_mask"] = attention_mask
        self.models["large"].generate(input_ids, custom_generate=self, **settings)
        assert self.output is not None
        return self.output

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Integer[Tensor, "batch tokens"],
        *,
        logits_processor: Callable[[Tensor, Tensor], Tensor],
        stopping_criteria: Callable[..., Tensor],
        generation_config: Any,
        streamer: BaseStreamer | None = None,
        **others: Any,
    ) -> EADOutput | Int[Tensor, "batch longer"]:
        """What `generate` calls in place of its own decoding loop.

        Returns:
            The sequences, or the record with them where `return_dict_in_generate` asks for it.

        Raises:
            ValueError: as `generate`.
        """
        if streamer is None:
            streamer = streamer_of_call(inspect.currentframe())
        # Not a parameter of its own: `generate` would then take it out of what it prepares.
        attention_mask = others.pop("attention_mask", None)
        self._check_call(model, generation_config, others)
        new_tokens = generation_config.max_length - input_ids.shape[-1]
        self._check_prompt(input_ids, attention_mask, new_tokens)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        begun = time.perf_counter()
        rows = [
            self._write(
                input_ids[[i]],
                int((mask[i] == 0).sum()),
                logits_processor,
                stopping_criteria,
                generation_config.do_sample,
                streamer,
            )
            for i in range(len(input_ids))
        ]
        seconds = time.perf_counter() - begun
        if streamer is not None:
            streamer.end()
        self.output = self._record(rows, input_ids, mask, generation_config, seconds)
        _warn_of_oscillation(self.output)
        return self.output if generation_config.return_dict_in_generate else self.output.sequences

    def _write(
        self,
        ids: Tensor,
        padding: int,
        logits_processor: Callable[[Tensor, Tensor], Tensor],
        stopping_criteria: Callable[..., Tensor],
        do_sample: bool,
        streamer: BaseStreamer | None,
    ) -> _Row:
        controller = RollingEntropyController(
            self.tau_bits, self.window, self.min_dwell, self.start
        )
        readers = {name: CachedReader(model) for name, model in self.models.items()}
        row = _Row(ids, [], [], [], readers)

        def think() -> tuple[Tensor, float]:
            """The active model reads all it has not read, and says what may come next."""
            name = controller.active
            unread = ids[:, padding + readers[name].length :]
            logits = readers[name].read(unread.to(self.models[name].device)).logits[:, -1]
            logits = logits[:, : self.vocabulary].float().to(ids.device)
            try:
                return logits, token_statistics(logits, base=2).entropy.item()
            except ValueError as error:
                step = len(row.writers)
                raise ValueError(f"the {name} model's logits at token {step}: {error}") from error

        done = False
        while not done:
            logits, bits = think()
            if self.commit == "before":
                active = controller.active
                if controller.decide(bits) != active:
                    logits, _ = think()
            row.writers.append(NAMES.index(controller.active))
            controller.count()
            scores = logits_processor(ids, logits)
            if do_sample:
                token = torch.multinomial(scores.softmax(-1), 1, generator=self.generator)
            else:
                token = scores.argmax(-1, keepdim=True)
            ids = torch.cat((ids, token), -1)
            if streamer is not None:
                streamer.put(token[0].cpu())
            if self.commit == "after":
                controller.decide(bits)
            row.entropy_bits.append(bits)
            row.rolling_bits.append(controller.rolling_bits)
            done = bool(stopping_criteria(ids, None).all())
        return _Row(ids, row.writers, row.entropy_bits, row.rolling_bits, readers)

    def _record(
        self,
        rows: Sequence[_Row],
        prompts: Tensor,
        mask: Tensor,
        generation_config: Any,
        seconds: float,
    ) -> EADOutput:
        end = generation_config._pad_token_tensor
        sequences = _stack([row.ids[0] for row in rows], 0 if end is None else end.item())
        writers = _stack([torch.tensor(row.writers, dtype=torch.int8) for row in rows], -1)
        work = {
            name: ModelWork(
                parameters=model.num_parameters(),
                bytes=sum(weight.numel() * weight.element_size() for weight in model.parameters()),
                written=int((writers == NAMES.index(name)).sum()),
                fed=sum(row.readers[name].fed for row in rows),
                forwards=sum(row.readers[name].forwards for row in rows),
            )
            for name, model in self.models.items()
        }
        # Alone, the large model reads the prompt and all it writes but the last token.
        alone = int(mask.sum()) + sum(len(row.writers) - 1 for row in rows)
        return EADOutput(
            sequences,
            writers,
            _stack([torch.tensor(row.entropy_bits) for row in rows], math.nan),
            _stack([torch.tensor(row.rolling_bits) for row in rows], math.nan),
            EADCost(work["small"], work["large"], alone, seconds),
        )

    def _check_prompt(
        self, input_ids: Tensor, attention_mask: Tensor | None, new_tokens: int = 0
    ) -> None:
        for model in self.models.values():
            check_prompt(model, input_ids, attention_mask, new_tokens)
        if int(input_ids.max()) >= self.vocabulary:
            raise ValueError(
                f"input_ids must be below {self.vocabulary}, the vocabulary both models share, "
                f"but reach {int(input_ids.max())}"
            )

    def _check_call(
        self, model: PreTrainedModel, generation_config: Any, others: dict[str, Any]
    ) -> None:
        if all(model is not known for known in self.models.values()):
            raise ValueError(
                "generate must be called on the small or the large model of the decoder"
            )
        if generation_config.num_beams > 1:
            raise ValueError(f"num_beams must be 1, but is {generation_config.num_beams}")
        if not others.get("use_cache", True):
            raise ValueError("use_cache must be True: each model reads on from its own cache")
        cache = others.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            raise ValueError("past_key_values must be left out or empty: each model keeps its own")
        for name in ("scores", "logits", "attentions", "hidden_states"):
            if generation_config.return_dict_in_generate and getattr(
                generation_config, f"output_{name}"
            ):
                raise ValueError(f"output_{name} must be False: two models share the text")
        prepared = {"use_cache", "past_key_values", "position_ids", "logits_to_keep"}
        prepared |= {"cache_position", "synced_gpus"}
        foreign = sorted(k for k, v in others.items() if k not in prepared and v is not None)
        if foreign:
            raise ValueError(f"{foreign[0]} must be left out: two models share the text")


def common_vocabulary(
    small: PreTrainedModel,
    large: PreTrainedModel,
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase] | None = None,
) -> int:
    """How many tokens two models share, or what keeps them from sharing any.

    Args:
        small: one model.
        large: the other.
        tokenizers: theirs, in that order. Where they map every token to the same id, the models' logits
            may be padded to different widths.

    Returns:
        The tokens that both can read and write; ids below it.

    Raises:
        ValueError: a token that one tokenizer lacks or maps elsewhere, or logits of different width
            and no tokenizers to tell padding from tokens.
    """
    widths = [m.config.get_text_config(decoder=True).vocab_size for m in (small, large)]
    if tokenizers is None:
        if widths[0] != widths[1]:
            raise ValueError(
                f"small and large must share a vocabulary, but put out logits over {widths[0]} and "
                f"{widths[1]} tokens; where that is padding alone, give both tokenizers"
            )
        return widths[0]
    ours, theirs = (tokenizer.get_vocab() for tokenizer in tokenizers)
    differing = sorted(
        (t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t)),
        key=lambda token: (min(ours.get(token, math.inf), theirs.get(token, math.inf)), token),
    )
    if differing:
        token = differing[0]
        said = [
            f"id {ids[token]}" if token in ids else "no token of that name"
            for ids in (ours, theirs)
        ]
        raise ValueError(
            f"small and large must share a vocabulary, but {len(differing)} tokens differ, {token!r} "
            f"for one: {said[0]} for the small model, {said[1]} for the large one"
        )
    return min(*widths, max(ours.values()) + 1)


def _stack(rows: list[Tensor], fill: float) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=fill)


def _warn_of_oscillation(output: EADOutput) -> None:
    written = int((output.model_ids >= 0).sum())
    switches = sum(len(output.switches(row)) for row in range(len(output.model_ids)))
    if written >= _ENOUGH_TOKENS and switches > _OSCILLATION * written:
        warnings.warn(
            f"the models changed places {switches} times in {written} tokens: tau_bits lies between "
            "the entropies of the two; another threshold or a larger min_dwell keeps them apart",
            stacklevel=4,
        )
