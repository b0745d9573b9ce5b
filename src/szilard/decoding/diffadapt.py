"""DiffAdapt: a probe on the prompt's hidden state picks one of three ways to answer each question.

Easy questions are answered shortly, hopeless ones cut short, the rest get the whole budget. The
model is frozen: it labels questions by its own samples, and a small probe learns the labels.

Source: Liu, Hu, Chu, Choi, DiffAdapt: Difficulty-Adaptive Reasoning for Token-Efficient LLM Inference
(2025; arXiv 2510.19669).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from szilard._extras import require
from szilard.decoding.difficulty import (
    CLASSES,
    NORMAL,
    DifficultyProbe,
    SuggestedThresholds,
    label_difficulty,
    suggest_thresholds,
)
from szilard.decoding.reading import CachedReader, check_context, check_model, check_prompt
from szilard.decoding.streaming import streamer_of_call
from szilard.decoding.trace import TokenTrace
from szilard.measures.tokens import token_statistics

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer

Checker = Callable[[str, str], bool]
"""`checker(question, reply)` says whether the reply is right."""


# Strategies ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Strategy:
    """A way to answer: what is said after the question, how boldly to sample, how much to write.

    Args:
        name: what it is called.
        prompt_suffix: the sentence that follows the question; may be empty.
        temperature: divides the logits; > 0. Without a meaning where decoding is greedy.
        budget_ratio: share of the largest reply that may be written, in (0, 1].
        top_p: nucleus mass in (0, 1]; None leaves that to the call of `generate`.

    Raises:
        ValueError: an argument out of its range.
    """

    name: str
    prompt_suffix: str
    temperature: float
    budget_ratio: float
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name must not be empty")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive, but is {self.temperature!r}")
        if not 0 < self.budget_ratio <= 1:
            raise ValueError(f"budget_ratio must lie in (0, 1], but is {self.budget_ratio!r}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], but is {self.top_p!r}")

    def budget(self, max_new_tokens: int) -> int:
        """Tokens a reply may have where the largest may have `max_new_tokens`, rounded down.

        Raises:
            ValueError: less than one.

        Examples:
            >>> [strategy.budget(1000) for strategy in DEFAULT_STRATEGIES]
            [400, 1000, 500]
        """
        # 0.29 * 100 is 28.999...: the product's rounding must not cost a token.
        budget = math.floor(self.budget_ratio * max_new_tokens + 1e-9)
        if budget < 1:
            raise ValueError(
                f"max_new_tokens must leave strategy {self.name!r} at least 1 token, but "
                f"{self.budget_ratio:g} of {max_new_tokens} is {budget}"
            )
        return budget

    def vllm_arguments(self, max_new_tokens: int) -> dict[str, float]:
        """What vLLM's `SamplingParams` takes for a request of this strategy, its sentence aside.

        Raises:
            ValueError: a budget below one token.

        Examples:
            >>> DEFAULT_STRATEGIES[0].vllm_arguments(1000)
            {'temperature': 0.5, 'max_tokens': 400}
        """
        arguments = {
            "temperature": self.temperature,
            "max_tokens": self.budget(max_new_tokens),
        }
        return arguments if self.top_p is None else {**arguments, "top_p": self.top_p}


DEFAULT_STRATEGIES = (
    Strategy(
        "easy",
        "Answer directly in a few lines, and check the result once.",
        temperature=0.5,
        budget_ratio=0.4,
    ),
    Strategy(
        "normal",
        "Work through the problem step by step and systematically.",
        temperature=0.8,
        budget_ratio=1.0,
    ),
    Strategy(
        "hard",
        "There is little room: outline a method, then give the best answer you can.",
        temperature=0.4,
        budget_ratio=0.5,
    ),
)
"""Easy, Normal and Hard with the paper's temperatures and budgets; the sentences follow its intent."""


def chat_layout(tokenizer: PreTrainedTokenizerBase) -> str:
    """A layout for `DiffAdapt` of a tokenizer's chat template: question, then strategy, then reply.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ValueError("tokenizer must have a chat template, but has none")
    message = {"role": "user", "content": "{question}\n\n{strategy}"}
    return str(tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False))


# What comes out -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DiffAdaptOutput:
    """A reply, and how it came about.

    Attributes:
        text: the reply.
        strategy: name of the strategy it was written with.
        probs: what the probe held each strategy to be, by name; empty where none was asked.
        trace: its tokens, the last of which may be the end-of-sequence token, with their entropies
            (nats, of the model's logits before any rule or temperature).
        truncated: whether the budget ended it.
    """

    text: str
    strategy: str
    probs: Mapping[str, float]
    trace: TokenTrace
    truncated: bool

    @property
    def n_tokens(self) -> int:
        """Tokens written."""
        return len(self.trace.token_ids)

    @property
    def entropy(self) -> float:
        """Mean entropy of its tokens, nats."""
        return float(self.trace.entropy.mean())


@dataclass(frozen=True, slots=True)
class Collected:
    """What a model's own samples say about questions, and the hidden states to learn it from.

    Attributes:
        hidden: last layer's hidden state at the last token of each question.
        accuracy: share of the samples that were right.
        entropy: mean over a sample's tokens, then over samples, nats.
        tokens: mean length of the samples.
        truncated: share of the samples that the budget ended; they count as they were checked.
    """

    hidden: Float[np.ndarray, "questions d"]
    accuracy: Float[np.ndarray, "questions"]
    entropy: Float[np.ndarray, "questions"]
    tokens: Float[np.ndarray, "questions"]
    truncated: Float[np.ndarray, "questions"]


@dataclass(frozen=True, slots=True)
class _Written:
    """Replies of one strategy: ids padded on the right, which count, entropies, who hit the budget."""

    ids: Int[Tensor, "rows tokens"]
    mask: Bool[Tensor, "rows tokens"]
    entropy: Float[Tensor, "rows tokens"]
    truncated: Bool[Tensor, "rows"]


@dataclass(frozen=True, slots=True)
class _Rules:
    """What `generate` prepared for a decoding loop."""

    processors: Sequence[Any] = ()
    stops: Sequence[Any] = ()
    do_sample: bool = True
    pad: int = 0
    streamer: BaseStreamer | None = None


# The method ---------------------------------------------------------------------------------------


class DiffAdapt:
    """Answers each question with the strategy that a probe reads off its prompt.

    A question is read once. The probe sees the last layer's hidden state at its last token; the
    chosen strategy's sentence and the reply go on from the same key-value cache. In a batch the
    rows of one strategy are written together.

    `generate` answers texts. As `custom_generate` the object works in the model's own `generate`:
    greedy or sampling, processors, stopping criteria and streamers as always; there the prompt is
    the layout up to its strategy, `max_new_tokens` the whole budget, and the strategy's temperature
    (and top_p) replaces the call's. What is returned is prompts and replies, without the
    strategies' sentences; `outputs` tells the rest.

    Args:
        model: a causal language model of transformers; it is never changed.
        tokenizer: its tokenizer.
        probe: a trained probe, or one for `fit` to train; a `DifficultyProbe` by default. Any classifier of
            scikit-learn with `predict_proba`, whose classes are 0 Easy, 1 Normal and 2 Hard, will do.
        strategies: Easy, Normal and Hard.
        max_new_tokens: the whole budget.
        fallback_confidence: below this probability of its choice the probe is not believed and Normal
            taken.
        layout: the prompt, question first. What stands before {strategy} is read for the probe.
        generator: source of the draws; torch's global one by default, as in `generate`.

    Attributes:
        outputs: of the latest call, a reply a question.
        readers: of the latest call, what read the questions and, by strategy, what went on there.

    Raises:
        ValueError: not three strategies, budgets below one token, a layout without its two places,
            a confidence outside [0, 1], a probe trained on hidden states of another size, or a model without
            a key-value cache.

    Examples:
        >>> from szilard.zoo.language import character_tokenizer, tiny_language_model
        >>> tokenizer = character_tokenizer("0123456789+=?")
        >>> model = tiny_language_model(vocab=tokenizer, hidden=16, layers=1, heads=2)
        >>> h = np.random.default_rng(0).normal(size=(30, 16))
        >>> probe = DifficultyProbe(hidden=4, epochs=2).fit(h, np.arange(30) % 3)
        >>> method = DiffAdapt(model, tokenizer, probe, max_new_tokens=10, layout="{question}{strategy}")
        >>> replies = method.generate(["1+1=", "2+3+4="])
        >>> [reply.n_tokens <= 10 for reply in replies], sum(replies[0].probs.values())
        ([True, True], 1.0)

    Source: Liu et al. 2025, DiffAdapt: Difficulty-Adaptive Reasoning for Token-Efficient LLM Inference
        (arXiv 2510.19669).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        probe: Any = None,
        strategies: Sequence[Strategy] = DEFAULT_STRATEGIES,
        max_new_tokens: int = 1024,
        fallback_confidence: float | None = None,
        *,
        layout: str = "{question}\n{strategy}\n",
        generator: torch.Generator | None = None,
    ) -> None:
        check_model(model)
        if len(strategies) != len(CLASSES):
            raise ValueError(
                f"strategies must be three, Easy, Normal and Hard, but are {len(strategies)}"
            )
        for strategy in strategies:
            strategy.budget(max_new_tokens)
        if fallback_confidence is not None and not 0 <= fallback_confidence <= 1:
            raise ValueError(
                f"fallback_confidence must lie in [0, 1], but is {fallback_confidence!r}"
            )
        before, place, self._after = layout.partition("{strategy}")
        if not place or "{question}" not in before:
            raise ValueError(
                f"layout must hold {{question}} and after it {{strategy}}, but is {layout!r}"
            )
        self._before = before
        self.model = model
        self.tokenizer = tokenizer
        self.probe = DifficultyProbe() if probe is None else probe
        self._check_probe()
        self.strategies = tuple(strategies)
        for strategy in strategies:
            if not self._tail(strategy):
                raise ValueError(
                    f"layout must put a token between question and reply, but strategy "
                    f"{strategy.name!r} puts none"
                )
        self.max_new_tokens = max_new_tokens
        self.fallback_confidence = fallback_confidence
        self.generator = generator
        self.outputs: list[DiffAdaptOutput] = []
        self.readers: dict[str, CachedReader] = {}

    # Stages 1 and 2: samples, labels, probe

    @torch.no_grad()
    def collect(
        self,
        questions: Sequence[str],
        checker: Checker,
        n: int = 10,
        *,
        temperature: float | None = None,
        batch_size: int = 32,
    ) -> Collected:
        """Samples replies under Normal, and takes the hidden states that the probe will see.

        A question is read once for all its samples. Entropy is that of the raw logits at temperature 1, whatever
        the temperature of sampling.

        Args:
            questions: to learn from.
            checker: says which replies are right.
            n: samples a question.
            temperature: of sampling; Normal's by default.
            batch_size: questions at once; as many replies as `n` times that are written together.

        Raises:
            ValueError: no questions, fewer than one sample, or a question that does not fit.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, but is {n}")
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature must be positive, but is {temperature!r}")
        normal = self.strategies[NORMAL]
        warm = normal.temperature if temperature is None else temperature
        # No truncation: what is sampled is what the entropy is of, but for the temperature.
        rules = _Rules((), self._ends(), True, self._pad())
        hidden: list[Tensor] = []
        figures: list[list[float]] = []
        asked = iter(questions)
        for ids, mask in self._prompts(questions, batch_size, self.max_new_tokens):
            reader, states = self._read(ids, mask)
            hidden.append(states)
            rows = torch.arange(len(ids), device=ids.device).repeat_interleave(n)
            written = self._write(
                reader.select(rows), ids[rows], normal, self.max_new_tokens, rules, warm
            )
            replies = self._outputs(written, normal, [{}] * len(rows))
            for i in range(0, len(replies), n):
                question, mine = next(asked), replies[i : i + n]
                each = [
                    (bool(checker(question, r.text)), r.entropy, r.n_tokens, r.truncated)
                    for r in mine
                ]
                figures.append(np.mean(each, axis=0).tolist())
        return Collected(torch.cat(hidden).numpy(), *np.array(figures).T)

    def fit(
        self,
        collected: Collected,
        alpha: float = 0.85,
        beta: float | None = None,
        gamma: float = 0.60,
        *,
        merge: Mapping[str, str] | None = None,
    ) -> SuggestedThresholds | None:
        """Labels the questions and trains the probe on them.

        Args:
            collected: what `collect` returned.
            alpha: accuracy from which a question is solved.
            beta: entropy up to which it is solved surely, nats; `suggest_thresholds` by default.
            gamma: accuracy below which it is hopeless.
            merge: classes to be labelled as another, {"easy": "normal"} for example, where there are
                too few questions of one.

        Returns:
            The thresholds where they were suggested here, with what they rest on; else None.

        Raises:
            ValueError: thresholds out of range, or a class without a question.
        """
        suggested = None
        if beta is None:
            suggested = suggest_thresholds(
                collected.accuracy, collected.entropy, alpha=alpha, gamma=gamma
            )
            beta = suggested.beta
        labels = label_difficulty(collected.accuracy, collected.entropy, alpha, beta, gamma)
        merge = {} if merge is None else merge
        for name in (*merge, *merge.values()):
            if name not in CLASSES:
                raise ValueError(f"merge must name classes among {CLASSES}, but names {name!r}")
        if set(merge) & set(merge.values()):
            raise ValueError(f"merge must not merge into a class that is merged itself: {merge}")
        for name, into in merge.items():
            labels[labels == CLASSES.index(name)] = CLASSES.index(into)
        for i, name in enumerate(CLASSES):
            if name not in merge and not (labels == i).any():
                raise ValueError(
                    f"collected must hold a question of each class, but none is labelled {name}; "
                    f"change the thresholds, or merge={{{name!r}: ...}}"
                )
        self.probe.fit(collected.hidden, labels)
        return suggested

    # Stage 3: inference

    def generate(
        self,
        questions: Sequence[str],
        *,
        strategy: str | None = None,
        batch_size: int = 8,
        **settings: Any,
    ) -> list[DiffAdaptOutput]:
        """Answers questions.

        Args:
            questions: texts, put into the layout here.
            strategy: name of one to answer all with, without asking the probe.
            batch_size: questions read at once, padded on the left.
            **settings: whatever the model's `generate` takes. Sampling is on, and top_k and top_p
                are off, unless they say otherwise.

        Returns:
            A reply a question, in their order.

        Raises:
            ValueError: no questions, an unknown strategy, a question that does not fit the context,
                or a setting that can't be honoured.
        """
        taken = None if strategy is None else self._index(strategy)
        settings = {
            "do_sample": True,
            "top_k": 0,
            "top_p": 1.0,
            "max_new_tokens": self.max_new_tokens,
            "pad_token_id": self._pad(),
            **settings,
        }
        replies: list[DiffAdaptOutput] = []

        def decode(model: PreTrainedModel, input_ids: Tensor, **prepared: Any) -> Any:
            return self._decode(model, input_ids, taken, **prepared)

        for ids, mask in self._prompts(questions, batch_size, settings["max_new_tokens"]):
            self.model.generate(ids, attention_mask=mask, custom_generate=decode, **settings)
            replies += self.outputs
        self.outputs = replies
        return replies

    def __call__(
        self, model: PreTrainedModel, input_ids: Integer[Tensor, "batch tokens"], **prepared: Any
    ) -> Any:
        """What the model's `generate` calls in place of its own decoding loop.

        Returns:
            Prompts and replies, padded on the right, as ids or, where `return_dict_in_generate` asks
            for it, as transformers' output.

        Raises:
            ValueError: as `generate`.
        """
        return self._decode(model, input_ids, None, **prepared)

    @torch.no_grad()
    def _decode(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        taken: int | None,
        *,
        logits_processor: Sequence[Any],
        stopping_criteria: Sequence[Any],
        generation_config: Any,
        **others: Any,
    ) -> Any:
        mask = others.pop("attention_mask", None)
        mask = torch.ones_like(input_ids) if mask is None else mask
        self._check_call(model, generation_config, others)
        budget = generation_config.max_length - input_ids.shape[-1]
        check_prompt(model, input_ids, mask, self._room(budget))
        pad = generation_config._pad_token_tensor
        rules = _Rules(
            logits_processor,
            _without_lengths(stopping_criteria),
            generation_config.do_sample,
            0 if pad is None else int(pad),
            others.get("streamer") or streamer_of_call(inspect.currentframe()),
        )
        reader, hidden = self._read(input_ids, mask)
        self.readers = {"": reader}
        probs, choice = self._choose(hidden, taken)
        outputs: dict[int, DiffAdaptOutput] = {}
        for i, strategy in enumerate(self.strategies):
            rows = [row for row, chosen in enumerate(choice) if chosen == i]
            if not rows:
                continue
            index = torch.tensor(rows, device=input_ids.device)
            mine = self.readers[strategy.name] = reader.select(index)
            written = self._write(mine, input_ids[index], strategy, budget, rules)
            replies = self._outputs(written, strategy, [probs[row] for row in rows])
            outputs |= dict(zip(rows, replies, strict=True))
        if rules.streamer is not None:
            rules.streamer.end()
        self.outputs = [outputs[row] for row in range(len(input_ids))]
        padded = pad_sequence(
            [output.trace.token_ids for output in self.outputs],
            batch_first=True,
            padding_value=rules.pad,
        )
        sequences = torch.cat((input_ids, padded.to(input_ids.device)), -1)
        if not generation_config.return_dict_in_generate:
            return sequences
        output = require("transformers.generation", extra="language").GenerateDecoderOnlyOutput
        return output(sequences=sequences)

    def _read(self, ids: Tensor, mask: Tensor) -> tuple[CachedReader, Tensor]:
        """Reads the questions, and takes h_L at their last tokens."""
        reader = CachedReader(self.model)
        output = reader.read(ids, mask, keep=0, output_hidden_states=True)
        return reader, output.hidden_states[-1][:, -1].float().cpu()

    def _choose(
        self, hidden: Tensor, taken: int | None
    ) -> tuple[list[dict[str, float]], list[int]]:
        """The probe's probabilities and a strategy for each row."""
        if taken is not None:
            return [{}] * len(hidden), [taken] * len(hidden)
        found = self.probe.predict_proba(hidden.numpy())
        by_class = np.zeros((len(hidden), len(CLASSES)))
        by_class[:, self.probe.classes_] = found
        choice = by_class.argmax(-1)
        if self.fallback_confidence is not None:
            choice[by_class.max(-1) < self.fallback_confidence] = NORMAL
        names = [strategy.name for strategy in self.strategies]
        return [dict(zip(names, row.tolist(), strict=True)) for row in by_class], choice.tolist()

    def _write(
        self,
        reader: CachedReader,
        prompts: Tensor,
        strategy: Strategy,
        max_new_tokens: int,
        rules: _Rules,
        temperature: float | None = None,
    ) -> _Written:
        """The strategy's sentence, then tokens until every row has ended or the budget is spent."""
        processors = _warped(
            rules.processors,
            strategy.temperature if temperature is None else temperature,
            strategy.top_p,
            rules.do_sample,
        )
        tail = torch.tensor(self._tail(strategy), device=prompts.device)
        reads = reader.read(tail.expand(len(prompts), -1))
        ids, alive = prompts, torch.ones(len(prompts), dtype=torch.bool, device=prompts.device)
        counted, entropies = [], []
        budget = strategy.budget(max_new_tokens)
        for step in range(budget):
            logits = reads.logits[:, -1].float()
            entropies.append(token_statistics(logits).entropy)
            scores = logits
            for processor in processors:
                scores = processor(ids, scores)
            if rules.do_sample:
                token = torch.multinomial(scores.softmax(-1), 1, generator=self.generator)
            else:
                token = scores.argmax(-1, keepdim=True)
            token = token.where(alive[:, None], rules.pad)
            ids = torch.cat((ids, token), -1)
            counted.append(alive)
            if rules.streamer is not None:
                rules.streamer.put(token[:, 0].cpu())
            for stop in rules.stops:
                alive = alive & ~stop(ids, None)
            if step + 1 == budget or not alive.any():
                break
            reads = reader.read(token)
        return _Written(
            ids[:, prompts.shape[-1] :].cpu(),
            torch.stack(counted, -1).cpu(),
            torch.stack(entropies, -1).cpu(),
            alive.cpu(),
        )

    def _outputs(
        self, written: _Written, strategy: Strategy, probs: Sequence[Mapping[str, float]]
    ) -> list[DiffAdaptOutput]:
        ids = [row[keep] for row, keep in zip(written.ids, written.mask, strict=True)]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [
            DiffAdaptOutput(
                texts[i],
                strategy.name,
                probs[i],
                TokenTrace(ids[i], written.entropy[i][written.mask[i]]),
                bool(written.truncated[i]),
            )
            for i in range(len(ids))
        ]

    # The rest

    def _prompts(
        self, questions: Sequence[str], batch_size: int, max_new_tokens: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of what stands before the strategy, padded on the left; all checked beforehand."""
        if isinstance(questions, str) or not questions:
            raise ValueError(f"questions must be a list of texts, but is {questions!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but is {batch_size}")
        for question in questions:
            if not question.strip():
                raise ValueError("questions must hold no empty text, but one is empty")
        texts = [self._before.replace("{question}", question) for question in questions]
        # A chat template begins with that token itself.
        begun = bool(self.tokenizer.bos_token) and texts[0].startswith(self.tokenizer.bos_token)
        rows = self.tokenizer(texts, add_special_tokens=not begun)["input_ids"]
        check_context(self.model, max(map(len, rows)) + self._room(max_new_tokens))
        device = self.model.device

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for start in range(0, len(rows), batch_size):
                chosen = [torch.tensor(row) for row in rows[start : start + batch_size]]
                ids, mask = (
                    pad_sequence(side, batch_first=True, padding_value=fill, padding_side="left")
                    for side, fill in (
                        (chosen, self._pad()),
                        ([torch.ones_like(row) for row in chosen], 0),
                    )
                )
                yield ids.to(device), mask.to(device)

        return batches()

    def _room(self, max_new_tokens: int) -> int:
        """Tokens that may follow a question: the longest of the strategies' sentences and replies."""
        return max(len(self._tail(s)) + s.budget(max_new_tokens) for s in self.strategies)

    def _tail(self, strategy: Strategy) -> list[int]:
        """What stands between a question and its reply."""
        ids = self.tokenizer(strategy.prompt_suffix + self._after, add_special_tokens=False)
        return list(ids["input_ids"])

    def _pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int((self.tokenizer.eos_token_id or 0) if pad is None else pad)

    def _ends(self) -> list[Any]:
        """Stops at the model's end-of-sequence tokens, or the tokenizer's."""
        ends = self.model.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        if ends is None:
            return []
        stop = require("transformers", extra="language").EosTokenCriteria
        return [stop(eos_token_id=ends)]

    def _index(self, name: str) -> int:
        names = [strategy.name for strategy in self.strategies]
        if name not in names:
            raise ValueError(f"strategy must be one of {names}, but is {name!r}")
        return names.index(name)

    def _check_probe(self) -> None:
        size = self.model.config.get_text_config(decoder=True).hidden_size
        trained = getattr(self.probe, "n_features_in_", size)
        if trained != size:
            raise ValueError(
                f"probe must be trained on hidden states of the model's size, {size}, "
                f"but was on {trained}"
            )
        classes = getattr(self.probe, "classes_", np.arange(len(CLASSES)))
        if not set(classes.tolist()) <= set(range(len(CLASSES))):
            raise ValueError(
                f"probe must tell 0 Easy, 1 Normal and 2 Hard apart, but its classes are {classes}"
            )

    def _check_call(
        self, model: PreTrainedModel, generation_config: Any, others: Mapping[str, Any]
    ) -> None:
        if model is not self.model:
            raise ValueError("generate must be called on the model that DiffAdapt was made for")
        if generation_config.num_beams > 1:
            raise ValueError(f"num_beams must be 1, but is {generation_config.num_beams}")
        if not others.get("use_cache", True):
            raise ValueError("use_cache must be True: the reply goes on from the question's cache")
        cache = others.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            raise ValueError("past_key_values must be left out or empty: the question is read here")
        for name in ("scores", "logits", "attentions", "hidden_states"):
            if generation_config.return_dict_in_generate and getattr(
                generation_config, f"output_{name}"
            ):
                raise ValueError(f"output_{name} must be False: strategies are written apart")
        prepared = {"use_cache", "past_key_values", "position_ids", "logits_to_keep"}
        prepared |= {"cache_position", "synced_gpus", "streamer"}
        foreign = sorted(k for k, v in others.items() if k not in prepared and v is not None)
        if foreign:
            raise ValueError(f"{foreign[0]} must be left out: strategies are written apart")


def _warped(
    processors: Sequence[Any], temperature: float, top_p: float | None, do_sample: bool
) -> list[Any]:
    """The call's processors with the strategy's temperature, and top_p if it has one, as theirs."""
    if not do_sample:
        return list(processors)
    transformers = require("transformers", extra="language")
    replaced: tuple[type, ...] = (transformers.TemperatureLogitsWarper,)
    last = []
    if top_p is not None:
        replaced += (transformers.TopPLogitsWarper,)
        last = [transformers.TopPLogitsWarper(float(top_p))]
    kept = [processor for processor in processors if not isinstance(processor, replaced)]
    # Penalties and bans see raw logits; whatever truncates comes after the temperature.
    warpers = (i for i, one in enumerate(kept) if type(one).__name__.endswith("LogitsWarper"))
    first = next(warpers, len(kept))
    warm = transformers.TemperatureLogitsWarper(float(temperature))
    return [*kept[:first], warm, *kept[first:], *last]


def _without_lengths(criteria: Sequence[Any]) -> list[Any]:
    """Stopping criteria but those of length, for which there are budgets."""
    length = require("transformers", extra="language").MaxLengthCriteria
    return [criterion for criterion in criteria if not isinstance(criterion, length)]
