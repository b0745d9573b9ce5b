"""Entropy adaptive decoding against its rivals: on a source of known entropy, and on written text.

Part A: documents whose easy stretches both models know (0 bits a symbol) and whose hard ones only the
large model knows (2 bits a symbol), so that every emitted symbol is right or wrong beyond doubt. Both
models are trained on the spot. Every rival writes the same documents from the same random numbers.
Part B: a pair of real models writes with the decoder itself, inside `generate`.
"""

from __future__ import annotations

import re
import string
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from szilard.lab.experiment import Claim, ExperimentConfig, Figure, Interval, Log, Preset, Row
from szilard.lab.figures import color
from szilard.lab.statistics import mean_interval, paired_difference

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ARMS = (
    "ead",
    "ead-dwell-5",
    "random-tokens",
    "random-stretches",
    "alternation",
    "query",
    "assisted",
    "small",
    "large",
)
# The arm that writes with real models: at a dwell of one token most pairs change places at each.
_ON_TEXT = "ead-dwell-5"
CONTROLS = ("random-tokens", "random-stretches")

SYMBOLS = string.ascii_letters + string.digits + "_-"
EASY, HARD = "+", "*%&"
KEYS = EASY + HARD
BLOCKS, BLOCK, CHOICES = 3, 12, 4
WRITTEN = BLOCKS * (1 + BLOCK)
_QUERY_TOKENS = 32
_WINDOW = 5
_PARTNER = "gemma3-270m-partner"

OPENINGS = (
    "The old sailor looked out over the water and",
    "In the morning the captain called all hands and said that",
    "It was a cold night in the harbour, and the men",
    "The letter that reached the ship that evening said",
)


class TextPair(BaseModel):
    """Two models of one vocabulary, and what they are to write."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "Gemma 3 270M"
    small: str = _PARTNER
    """"gemma3-270m-partner", or a Hugging Face id or folder."""
    large: str = "gemma3-270m"
    dataset: str = ""
    """Hugging Face id of problems with boxed answers; empty for the built-in openings."""
    split: str = "test"
    prompt_column: str = "problem"
    answer_column: str = "answer"
    prompts: int = Field(default=len(OPENINGS), ge=1)
    new_tokens: int = Field(default=40, ge=2)
    taus: tuple[float, ...] = (4.0, 6.0, 8.0)
    seeds: int = Field(default=1, ge=1)
    """How many of the run's seeds write texts."""
    temperature: float = Field(default=1.0, ge=0)
    """0 takes the likeliest token."""


class EADConfig(ExperimentConfig):
    taus: tuple[float, ...] = Field(
        default=(0.25, 0.5, 1.0, 1.5),
        min_length=2,
        description="thresholds of part A, bits, rising",
    )
    documents: int = Field(default=200, ge=4, description="documents written by each arm")
    small_width: int = Field(default=14, ge=2, description="width of the small model, one layer")
    large_width: int = Field(default=96, ge=8, description="width of the large model, two layers")
    steps: int = Field(default=450, ge=1, description="training steps of each")
    batch_size: int = Field(default=64, ge=1, description="documents in a training step")
    assisted_documents: int = Field(
        default=20, ge=0, description="documents written by assisted generation, one by one"
    )
    pairs: tuple[TextPair, ...] = Field(default=(), description="pairs of models of part B")
    device: str = Field(default="auto", description='of part B: "auto", "cpu", "cuda", ...')

    @field_validator("taus")
    @classmethod
    def _rising(cls, taus: tuple[float, ...]) -> tuple[float, ...]:
        if min(taus) < 0 or list(taus) != sorted(set(taus)):
            raise ValueError(f"taus must rise from 0 or more, but are {taus}")
        return taus


_MATH: dict[str, Any] = {"dataset": "HuggingFaceH4/MATH-500", "prompts": 500}
_SWEEP = tuple(np.linspace(0.1, 2, 8).round(3).tolist())


class EADExperiment:
    """Entropy Adaptive Decoding (Simonds 2025)."""

    Config = EADConfig
    presets: ClassVar[Mapping[Preset, EADConfig]] = {
        "smoke": EADConfig(
            seeds=2,
            taus=(0.5, 6.0),
            documents=4,
            large_width=16,
            steps=4,
            batch_size=8,
            assisted_documents=1,
        ),
        "quick": EADConfig(pairs=(TextPair(),)),
        "paper": EADConfig(
            seeds=3,
            documents=1000,
            assisted_documents=100,
            pairs=(
                TextPair(
                    name="Llama 3.2, 3B and 11B",
                    small="meta-llama/Llama-3.2-3B-Instruct",
                    large="meta-llama/Llama-3.2-11B-Vision-Instruct",
                    new_tokens=1024,
                    seeds=3,
                    taus=_SWEEP,
                    temperature=0.7,
                    **_MATH,
                ),
                TextPair(
                    name="Qwen2.5, 1.5B and 14B",
                    small="Qwen/Qwen2.5-1.5B-Instruct",
                    large="Qwen/Qwen2.5-14B-Instruct",
                    new_tokens=1024,
                    seeds=3,
                    taus=_SWEEP,
                    temperature=0.7,
                    **_MATH,
                ),
            ),
        ),
    }

    def arms(self, config: EADConfig) -> Sequence[str]:
        return ARMS

    def run(self, config: EADConfig, arm: str, seed: int, log: Log) -> Sequence[Row]:
        log(0.0, "training the pair, once a seed")
        rows = _known_source(config, arm, seed, log)
        for pair in config.pairs:
            rows += _text(config, pair, arm, seed, log)
        return rows

    def claims(self, config: EADConfig, table: pd.DataFrame) -> Sequence[Claim]:
        claims = _source_claims(config, table)
        for pair in config.pairs:
            claims += _text_claims(pair, table)
        return [*claims, *_published(config, table)]

    def figures(self, config: EADConfig, table: pd.DataFrame) -> Sequence[Figure]:
        figures = [
            _score_against_cost(config, table),
            _document_trace(config, table),
            _switches(config, table),
        ]
        for pair in config.pairs:
            figures += _text_figures(pair, table)
        return figures


# The source ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlantedBlocks:
    """Documents of a plan, a start symbol, and three blocks of a key and twelve symbols.

    The keys repeat the plan and are given to the writer, so that a block lost is not a text lost.
    After the easy key the next symbol is the one that follows in the alphabet. After a hard key it is
    one of four, equally likely, which depend on key and symbol.
    """

    allowed: np.ndarray
    """May `next` follow `symbol` under `key`? (4, 64, 64) booleans."""

    @classmethod
    def of(cls, seed: int) -> PlantedBlocks:
        rng, n = np.random.default_rng([seed, 64]), len(SYMBOLS)
        allowed = np.zeros((len(KEYS), n, n), dtype=bool)
        allowed[0, np.arange(n), (np.arange(n) + 1) % n] = True
        for key in range(1, len(KEYS)):
            for symbol in range(n):
                allowed[key, symbol, rng.choice(n, CHOICES, replace=False)] = True
        return cls(allowed)

    def plans(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Keys of the blocks, (count, 3), and start symbols."""
        hard = rng.integers(1, len(KEYS), (count, BLOCKS))
        keys = np.where(rng.random((count, BLOCKS)) < 0.5, 0, hard)
        return keys, rng.integers(len(SYMBOLS), size=count)

    def documents(self, count: int, rng: np.random.Generator) -> list[str]:
        """Whole documents, as texts."""
        keys, symbol = self.plans(count, rng)
        text = [plan(k, s) for k, s in zip(keys, symbol, strict=True)]
        for b in range(BLOCKS):
            text = [t + KEYS[k] for t, k in zip(text, keys[:, b], strict=True)]
            for _ in range(BLOCK):
                odds = self.allowed[keys[:, b], symbol]
                symbol = (rng.random(odds.shape) * odds).argmax(1)
                text = [t + SYMBOLS[s] for t, s in zip(text, symbol, strict=True)]
        return text

    def legal(self, keys: np.ndarray, start: np.ndarray, written: np.ndarray) -> np.ndarray:
        """Whether each symbol may follow the one before it, under its block's key.

        Args:
            keys: of the plans, (documents, 3).
            start: symbols the documents begin with.
            written: what was written as indices of symbols, -1 where it is none, (documents, 39).

        Returns:
            (documents, 3, 12); an error counts once, at its own place.
        """
        blocks = written.reshape(-1, BLOCKS, 1 + BLOCK)
        before = np.empty((len(written), BLOCKS, BLOCK), dtype=int)
        before[:, 0, 0], before[:, 1:, 0] = start, blocks[:, :-1, -1]
        before[:, :, 1:] = blocks[:, :, 1:-1]
        after = blocks[:, :, 1:]
        fits = self.allowed[keys[:, :, None], before, after]
        return fits & (before >= 0) & (after >= 0)


def plan(keys: np.ndarray, start: int) -> str:
    """What a document begins with."""
    return "".join(KEYS[k] for k in keys) + SYMBOLS[start]


@dataclass(frozen=True)
class Pair:
    """Two models and their tokenizer."""

    small: PreTrainedModel
    large: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@lru_cache(maxsize=1)
def trained_pair(config: EADConfig, seed: int) -> Pair:
    """The models of part A, from the cache or trained now."""
    from szilard.zoo.language import cached_tiny, character_tokenizer

    source = PlantedBlocks.of(seed)
    made = {}
    for name, width, layers, heads, lr in (
        ("small", config.small_width, 1, 1, 5e-3),
        ("large", config.large_width, 2, 4, 3e-3),
    ):
        made[name] = cached_tiny(
            f"planted-blocks-{name}",
            source.documents,
            tokenizer=character_tokenizer(SYMBOLS + KEYS),
            data={"source": "planted blocks", "seed": seed},
            model={
                "architecture": "llama",
                "hidden": width,
                "layers": layers,
                "heads": heads,
                "positions": 64,
                "seed": seed,
            },
            training={
                "steps": config.steps,
                "batch_size": config.batch_size,
                "lr": lr,
                "append_eos": False,
                "seed": seed,
            },
        )
    return Pair(made["small"].model, made["large"].model, made["small"].tokenizer)


# Writing with two models in step ------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """Texts of one length, who wrote each token, and the active model's entropies in bits."""

    tokens: np.ndarray
    by_large: np.ndarray
    bits: np.ndarray


Choose = Callable[[int, np.ndarray, np.ndarray], np.ndarray]
"""(step, active model's entropies, who is active) -> who writes the next token."""


@torch.no_grad()
def in_step(
    pair: Pair, prompts: Tensor, first: np.ndarray, given: Tensor, uniforms: Tensor, choose: Choose
) -> Written:
    """Writes all documents at once, both models reading everything.

    A token depends on the whole context and the model that writes it, so the texts are those of the
    decoder, which reads no more than it must; what that reading costs follows from the routes.
    A token of `given` that is not negative is announced: it stands there whatever was drawn.
    """
    from szilard.decoding.reading import CachedReader
    from szilard.measures.tokens import token_statistics

    readers = [CachedReader(pair.small), CachedReader(pair.large)]
    unread, active = prompts, first
    tokens, routes, entropies = [], [], []
    for step in range(uniforms.shape[1]):
        both = torch.stack([reader.read(unread).logits[:, -1] for reader in readers], 1)
        logits = both[torch.arange(len(prompts)), torch.from_numpy(active).long()]
        bits = token_statistics(logits, base=2).entropy.numpy()
        cumulative = logits.double().softmax(-1).cumsum(-1)
        drawn = (cumulative <= uniforms[:, [step]] * cumulative[:, -1:]).sum(-1)
        drawn = torch.where(given[:, step] < 0, drawn, given[:, step])
        tokens.append(drawn.numpy())
        routes.append(active)
        entropies.append(bits)
        active, unread = choose(step, bits, active), drawn[:, None]
    return Written(np.stack(tokens, 1), np.stack(routes, 1), np.stack(entropies, 1))


def follow(mask: np.ndarray) -> Choose:
    """Follows a route laid down beforehand."""
    return lambda step, bits, active: mask[:, min(step + 1, mask.shape[1] - 1)]


def switching(tau: float, dwell: int, documents: int) -> Choose:
    """Entropy adaptive decoding, a controller a document."""
    from szilard.decoding import RollingEntropyController

    rules = [RollingEntropyController(tau, _WINDOW, dwell) for _ in range(documents)]

    def choose(step: int, bits: np.ndarray, active: np.ndarray) -> np.ndarray:
        turns = [rule.update(float(b)) for rule, b in zip(rules, bits, strict=True)]
        return np.array([turn == "large" for turn in turns])

    return choose


@dataclass(frozen=True)
class Task:
    """The documents of a seed: the same plans and the same random numbers for every arm."""

    pair: Pair
    source: PlantedBlocks
    keys: np.ndarray
    start: np.ndarray
    prompts: Tensor
    given: Tensor
    """The announced keys at the blocks' first places, -1 elsewhere."""
    uniforms: Tensor

    @classmethod
    def of(cls, config: EADConfig, seed: int) -> Task:
        pair, source = trained_pair(config, seed), PlantedBlocks.of(seed)
        rng = np.random.default_rng([seed, 1])
        keys, start = source.plans(config.documents, rng)
        texts = [plan(k, s) for k, s in zip(keys, start, strict=True)]
        prompts = pair.tokenizer(texts, return_tensors="pt")["input_ids"]
        given = torch.full((config.documents, WRITTEN), -1)
        key_ids = pair.tokenizer.convert_tokens_to_ids(list(KEYS))
        given[:, :: 1 + BLOCK] = torch.tensor(key_ids)[torch.from_numpy(keys)]
        uniforms = torch.from_numpy(rng.random((config.documents, WRITTEN)))
        return cls(pair, source, keys, start, prompts, given, uniforms)

    def write(self, mask: np.ndarray) -> Written:
        return in_step(self.pair, self.prompts, mask[:, 0], self.given, self.uniforms, follow(mask))

    def alone(self, large: bool) -> Written:
        return self.write(np.full(self.uniforms.shape, large))

    def ead(self, tau: float, dwell: int = 1) -> Written:
        count = len(self.prompts)
        first, rule = np.zeros(count, dtype=bool), switching(tau, dwell, count)
        return in_step(self.pair, self.prompts, first, self.given, self.uniforms, rule)

    def symbols(self, tokens: np.ndarray) -> np.ndarray:
        """Indices of symbols, -1 for any other token."""
        index = np.full(len(self.pair.tokenizer), -1)
        index[self.pair.tokenizer.convert_tokens_to_ids(list(SYMBOLS))] = np.arange(len(SYMBOLS))
        return index[tokens]


def _known_source(config: EADConfig, arm: str, seed: int, log: Log) -> list[Row]:
    task = Task.of(config, seed)
    log(0.3, "writing")
    if arm in ("small", "large"):
        written = task.alone(arm == "large")
        bits = written.bits.reshape(-1, BLOCKS, 1 + BLOCK)[:, :, 1:]
        hard = task.keys > 0
        entropies: list[Row] = [
            {"metric": f"bits {kind}", "value": float(bits[which].mean())}
            for kind, which in (("hard", hard), ("easy", ~hard))
            if which.any()
        ]
        return _scored(task, written) + entropies
    if arm == "alternation":
        turns = np.arange(WRITTEN) // _WINDOW % 2 == 1
        return _scored(task, task.write(np.tile(turns, (len(task.prompts), 1))))
    if arm == "assisted":
        return _assisted(config, task, seed)
    rows: list[Row] = []
    for i, tau in enumerate(config.taus):
        log(0.3 + 0.6 * i / len(config.taus), f"writing, tau {tau:g}")
        rows += [{**row, "tau": tau} for row in _routed(config, task, arm, tau, seed)]
    return rows


@lru_cache(maxsize=16)
def _ead(config: EADConfig, seed: int, tau: float, dwell: int) -> Written:
    return Task.of(config, seed).ead(tau, dwell)


@lru_cache(maxsize=4)
def _draft(config: EADConfig, seed: int) -> Written:
    return Task.of(config, seed).alone(False)


def _routed(config: EADConfig, task: Task, arm: str, tau: float, seed: int) -> list[Row]:
    """Rows of one arm at one threshold, rivals at the share that the method has there."""
    ead = _ead(config, seed, tau, 5 if arm == "ead-dwell-5" else 1)
    if arm.startswith("ead"):
        return _scored(task, ead) + (_traced(task, ead) if arm == "ead" and seed == 0 else [])
    rng = np.random.default_rng([seed, 2])
    share = ead.by_large.mean()
    if arm == "random-tokens":
        return _scored(task, task.write(rng.random(ead.by_large.shape) < share))
    if arm == "random-stretches":
        # Another document's route: stretches as long as the method's, at places of no meaning here.
        return _scored(task, task.write(np.roll(ead.by_large, 1, axis=0)))
    draft = _draft(config, seed)
    doubt = draft.bits[:, :_QUERY_TOKENS].mean(1)
    chosen = np.zeros(len(doubt), dtype=bool)
    chosen[np.argsort(-doubt)[: round(share * len(doubt))]] = True
    mask = np.repeat(chosen[:, None], WRITTEN, axis=1)
    return _scored(task, task.write(mask), drafts=np.where(chosen, _QUERY_TOKENS, 0))


def _scored(task: Task, written: Written, drafts: np.ndarray | None = None) -> list[Row]:
    from szilard.decoding.entropy_adaptive import reading_ledger

    legal = task.source.legal(task.keys, task.start, task.symbols(written.tokens))
    p_small, p_large = task.pair.small.num_parameters(), task.pair.large.num_parameters()
    prompt, new = task.prompts.shape[1], written.tokens.shape[1]
    rows: list[Row] = []
    for d in range(len(legal)):
        mine = written.by_large[d]
        fed = reading_ledger("".join("SL"[int(x)] for x in mine), prompt)
        small_fed, small_forwards = sum(fed["small"]), len(fed["small"])
        if drafts is not None and drafts[d]:
            small_fed, small_forwards = prompt + int(drafts[d]) - 1, int(drafts[d])
        flops = p_small * small_fed + p_large * sum(fed["large"])
        traffic = p_small * small_forwards + p_large * len(fed["large"])
        hard = task.keys[d] > 0
        values = {
            "legal": legal[d].mean(),
            "share": mine.mean(),
            "cost": np.where(mine, p_large, p_small).sum() / (p_large * new),
            "ratio": p_small / p_large,
            "flops": flops / (p_large * (prompt + new - 1)),
            "traffic": traffic / (p_large * new),
            "switches": (mine[1:] != mine[:-1]).sum(),
        }
        values |= {
            f"legal {kind}": legal[d][which].mean()
            for kind, which in (("hard", hard), ("easy", ~hard))
            if which.any()
        }
        rows += [{"metric": m, "value": float(v), "document": d} for m, v in values.items()]
    return rows


def _traced(task: Task, written: Written) -> list[Row]:
    """Token by token, the first document that has both kinds of block."""
    mixed = (task.keys > 0).any(1) & (task.keys == 0).any(1)
    d = int(mixed.argmax())
    legal = task.source.legal(task.keys, task.start, task.symbols(written.tokens))[d]
    right = np.concatenate((np.ones((BLOCKS, 1), dtype=bool), legal), 1).ravel()
    return [
        {
            "metric": "trace",
            "value": float(written.bits[d, t]),
            "token": t,
            "writer": "large" if written.by_large[d, t] else "small",
            "key": KEYS[task.keys[d, t // (1 + BLOCK)]],
            "text": task.pair.tokenizer.decode([int(written.tokens[d, t])]),
            "right": bool(right[t]),
        }
        for t in range(WRITTEN)
    ]


def _assisted(config: EADConfig, task: Task, seed: int) -> list[Row]:
    """Assisted generation of transformers: the large model's distribution, drafts by the small."""
    pair = task.pair
    rows: list[Row] = []
    p_small, p_large = pair.small.num_parameters(), pair.large.num_parameters()
    for d in range(min(config.assisted_documents, len(task.prompts))):
        with torch.random.fork_rng(devices=[]), _Counting(pair.small, pair.large) as counts:
            torch.manual_seed(1000 * seed + d)
            text = pair.large.generate(
                task.prompts[[d]],
                assistant_model=pair.small,
                max_new_tokens=WRITTEN,
                eos_token_id=None,
                logits_processor=[_Announced(task.given[d], task.prompts.shape[1])],
                **_plain_sampling(pair.tokenizer, 1.0),
            )
        prompt = task.prompts.shape[1]
        written = task.symbols(text[:, prompt:].numpy())
        legal = task.source.legal(task.keys[[d]], task.start[[d]], written)[0]
        (small_fed, small_calls), (large_fed, large_calls) = counts.totals
        values = {
            "legal": legal.mean(),
            "flops": (p_small * small_fed + p_large * large_fed)
            / (p_large * (prompt + WRITTEN - 1)),
            "traffic": (p_small * small_calls + p_large * large_calls) / (p_large * WRITTEN),
        }
        rows += [{"metric": m, "value": float(v), "document": d} for m, v in values.items()]
    return rows


class _Announced:
    """Leaves a place's announced token, where there is one, as the only choice."""

    def __init__(self, given: Tensor, prompt: int) -> None:
        self.given, self.prompt = given, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[-1] - self.prompt
        # A draft may reach past the last place.
        token = self.given[step] if step < len(self.given) else -1
        if token < 0:
            return scores
        only = torch.full_like(scores, -torch.inf)
        only[:, token] = 0
        return only


class _Counting:
    """Counts tokens fed to models and their forwards, while it is open."""

    def __init__(self, *models: PreTrainedModel) -> None:
        self.models = models
        self.totals = [[0, 0] for _ in models]

    def __enter__(self) -> _Counting:
        def count(total: list[int]) -> Any:
            def hook(_module: Any, _args: Any, kwargs: Mapping[str, Any]) -> None:
                total[0] += kwargs["input_ids"].shape[-1]
                total[1] += 1

            return hook

        self._handles = [
            model.register_forward_pre_hook(count(total), with_kwargs=True)
            for model, total in zip(self.models, self.totals, strict=True)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def _plain_sampling(tokenizer: PreTrainedTokenizerBase, temperature: float) -> dict[str, Any]:
    """Nothing between the model and the draw; 0 takes the likeliest token."""
    pad = {"pad_token_id": tokenizer.pad_token_id or tokenizer.eos_token_id}
    if temperature == 0:
        return {**pad, "do_sample": False}
    return {**pad, "do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


# Text by real models ------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _load(small: str, large: str, device: str) -> tuple[Pair, PreTrainedTokenizerBase]:
    from szilard.zoo.language import load_language_model
    from szilard.zoo.partner import gemma_partner

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    if small == _PARTNER:
        partner = gemma_partner()
        first = partner._replace(model=partner.model.to(device, dtype))
    else:
        first = load_language_model(small, dtype=dtype, device=device)
    second = load_language_model(large, dtype=dtype, device=device)
    return Pair(first.model, second.model, second.tokenizer), first.tokenizer


def _problems(pair: TextPair, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Tensor], list[str]]:
    """Prompts as ids, and their answers where there are some."""
    if not pair.dataset:
        texts = [OPENINGS[i % len(OPENINGS)] for i in range(pair.prompts)]
        return [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts], []
    from szilard._extras import require

    data = require("datasets", "language").load_dataset(pair.dataset, split=pair.split)
    chosen = data.select(range(min(pair.prompts, len(data))))
    ask = "Reason step by step, and put your final answer within \\boxed{}."
    ids = []
    for problem in chosen[pair.prompt_column]:
        text = f"{problem}\n{ask}"
        if tokenizer.chat_template:
            turn = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        special = not tokenizer.chat_template
        ids.append(tokenizer(text, return_tensors="pt", add_special_tokens=special)["input_ids"])
    return ids, list(chosen[pair.answer_column])


def boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{}, without its spaces; None where there is none.

    Examples:
        >>> boxed(r"so it is \boxed{\frac{1}{2}}.")
        '\\frac{1}{2}'
    """
    begin = text.rfind("\\boxed{")
    if begin < 0:
        return None
    depth, rest = 1, text[begin + len("\\boxed{") :]
    for end, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return re.sub(r"\s+|\\left|\\right|\\!|\$", "", rest[:end]).replace("dfrac", "frac")
    return None


def _text(config: EADConfig, pair: TextPair, arm: str, seed: int, log: Log) -> list[Row]:
    from szilard.decoding import EntropyAdaptiveDecoder

    settings: dict[str, dict[str, Any]] = {
        "small": {"tau_bits": float("inf")},
        "large": {"tau_bits": 0.0, "start": "large"},
    }
    settings = {arm: settings[arm]} if arm in settings else {}
    if arm == _ON_TEXT:
        settings = {f"{tau:g}": {"tau_bits": tau, "min_dwell": 5} for tau in pair.taus}
    if not settings or seed >= pair.seeds:
        return []
    log(0.0, f"loading {pair.small} and {pair.large}")
    models, small_tokenizer = _load(pair.small, pair.large, config.device)
    prompts, answers = _problems(pair, models.tokenizer)
    rows: list[Row] = []
    done = 0
    for rule in settings.values():
        decoder = EntropyAdaptiveDecoder(
            models.small, models.large, **rule, tokenizers=(small_tokenizer, models.tokenizer)
        )
        for p, ids in enumerate(prompts):
            log(done / len(prompts) / len(settings), f"{pair.name}: text {p + 1}")
            done += 1
            decoder.generator = torch.Generator(models.large.device).manual_seed(1000 * seed + p)
            own = {"pair": pair.name, "prompt": p, "tau": rule["tau_bits"]}
            rows += [{**row, **own} for row in _one_text(pair, models, decoder, ids, answers, p)]
    return rows


def _one_text(
    pair: TextPair, models: Pair, decoder: Any, ids: Tensor, answers: Sequence[str], p: int
) -> list[Row]:
    settings = {**_plain_sampling(models.tokenizer, pair.temperature)}
    if not answers:
        # Texts of one length: their perplexities compare.
        settings["eos_token_id"] = None
    with warnings.catch_warnings():
        # Switches are counted; a threshold that makes many of them is part of the sweep.
        warnings.filterwarnings("ignore", message="the models changed places")
        out = decoder.generate(
            ids.to(models.large.device), max_new_tokens=pair.new_tokens, **settings
        )
    prompt = ids.shape[1]
    new = out.sequences[0, prompt:]
    text = models.tokenizer.decode(new, skip_special_tokens=True)
    with torch.no_grad():
        logits = models.large(out.sequences, logits_to_keep=len(new) + 1).logits[0, :-1]
    surprisal = torch.nn.functional.cross_entropy(logits.float(), new)
    values = {
        "text surprisal": float(surprisal),
        "text share": out.large_share,
        "text cost": out.cost.paper,
        "text flops": out.cost.relative_flops,
        "text traffic": out.cost.relative_traffic,
        "text seconds": out.cost.seconds / len(new),
        "text switches": len(out.switches()),
        "text length": len(new),
    }
    if answers:
        values["text correct"] = float(boxed(text) == boxed(f"\\boxed{{{answers[p]}}}"))
    rows: list[Row] = [{"metric": m, "value": float(v)} for m, v in values.items()]
    rows[0] = {**rows[0], "text": text}
    if p == 0:
        rows += [
            {
                "metric": "text trace",
                "value": float(out.entropy_bits[0, t]),
                "token": t,
                "writer": writer,
                "rolling": float(out.rolling_bits[0, t]),
                "text": models.tokenizer.decode([int(new[t])]),
            }
            for t, writer in enumerate(out.writers())
        ]
    return rows


# Claims -------------------------------------------------------------------------------------------


def _by_document(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row a document and seed, one column an arm and threshold."""
    rows = table[table.metric == metric]
    return rows.pivot(index=["seed", "document"], columns=["arm", "tau"], values="value")


def _unrouted(wide: pd.DataFrame, arm: str) -> pd.Series:
    return wide[arm].iloc[:, 0]


def _seeds(values: pd.Series) -> str:
    """The mean at each seed, for a note."""
    means = values.groupby(level="seed").mean()
    return "By seed: " + ", ".join(f"{mean:.3f}" for mean in means) + "."


def _source_claims(config: EADConfig, table: pd.DataFrame) -> list[Claim]:
    legal, share = _by_document(table, "legal"), _by_document(table, "share")
    low, high = config.taus[0], config.taus[-1]
    large = _unrouted(legal, "large")
    claims = [
        Claim.judge(
            "The threshold steers quality: the more the large model writes, the better the text.",
            paper="curve of MATH score against large-model share",
            measured=paired_difference(legal["ead", low], legal["ead", high]),
            quantity=f"share of legal symbols at tau {low:g} minus at tau {high:g} bits",
            above=0,
            note=_seeds(legal["ead", low] - legal["ead", high]),
        ),
        Claim.judge(
            "At the lowest threshold it comes near the large model.",
            paper="96.7 % and 92.9 % of the large model's score",
            measured=paired_difference(large, legal["ead", low]),
            quantity=f"legal symbols of the large model minus those at tau {low:g} bits",
            below=0.1,
        ),
    ]
    for tau in (0.5, 1.0):
        if tau not in config.taus:
            continue
        rival = max(CONTROLS, key=lambda arm: legal[arm, tau].mean())
        lead = legal["ead", tau] - legal[rival, tau]
        claims.append(
            Claim.judge(
                f"At tau {tau:g} bits entropy picks better moments than chance at the same share.",
                paper="implied; no random control in the paper",
                measured=mean_interval(lead),
                quantity=f"legal symbols minus those of {rival}, the better random control",
                above=0.05,
                note=_seeds(lead),
            )
        )
    small = _unrouted(legal, "small")
    leads = {}
    for tau in config.taus:
        f = share["ead", tau].groupby(level="seed").transform("mean")
        leads[tau] = legal["ead", tau] - (small + f * (large - small))
    best = max(leads, key=lambda tau: leads[tau].mean())
    cost = table[(table.metric == "cost") & (table.arm == "ead")]
    keys = ["seed", "document", "tau"]
    parts = {
        name: table[(table.metric == name) & (table.arm == "ead")].set_index(keys).value
        for name in ("share", "ratio")
    }
    formula = parts["share"] + (1 - parts["share"]) * parts["ratio"]
    worst = float((cost.set_index(keys).value - formula).abs().max())
    steps = [
        share["ead", a] - share["ead", b]
        for a, b in zip(config.taus, config.taus[1:], strict=False)
    ]
    least = min(steps, key=lambda step: step.mean())
    claims += [
        Claim.judge(
            "It lies above the straight line between the two models for some threshold.",
            paper="falsified otherwise",
            measured=mean_interval(leads[best]),
            quantity=f"legal symbols at tau {best:g} bits minus those on the line at its share",
            above=0,
        ),
        Claim.judge(
            "Counted token by token the paper's cost is f + (1 - f) P_S / P_L.",
            paper="published savings follow from it to the digit",
            measured=Interval.exact(worst),
            quantity="largest difference between the two, over documents",
            below=1e-12,
        ),
        Claim.judge(
            "The large model's share falls as the threshold rises.",
            paper="direction only",
            measured=mean_interval(least),
            quantity="smallest fall of the share between neighbouring thresholds",
            above=0,
        ),
    ]
    middle = 0.5 if 0.5 in config.taus else config.taus[0]
    flops, traffic = _by_document(table, "flops"), _by_document(table, "traffic")
    switches = _by_document(table, "switches")
    claims += [
        Claim.judge(
            "It saves FLOPs even with prompt and catching up counted.",
            paper="savings of 41.5 % and 67 %, which leave both out",
            measured=mean_interval(flops["ead", middle]),
            quantity=f"FLOPs at tau {middle:g} bits, in units of the large model alone",
            below=1,
            note="A large model that is called late still reads all that came before.",
        ),
        Claim.judge(
            "It saves weight traffic, which bounds the time of a token.",
            paper="not reported",
            measured=mean_interval(traffic["ead", middle]),
            quantity=f"bytes streamed at tau {middle:g} bits, in units of the large model alone",
            below=0.9,
        ),
        Claim.judge(
            "A dwell of five tokens makes switches rarer.",
            paper="the reason of the stability condition",
            measured=paired_difference(switches["ead", middle], switches["ead-dwell-5", middle]),
            quantity=f"switches a document at tau {middle:g}, dwell 1 minus dwell 5",
            above=0,
        ),
    ]
    return claims


def _by_text(pair: TextPair, table: pd.DataFrame, metric: str) -> pd.DataFrame:
    rows = table[table.metric == metric]
    rows = rows[rows.pair == pair.name]
    return rows.pivot(index=["prompt", "seed"], columns=["arm", "tau"], values="value")


def _text_claims(pair: TextPair, table: pd.DataFrame) -> list[Claim]:
    surprisal = _by_text(pair, table, "text surprisal")
    share = _by_text(pair, table, "text share")
    middle = pair.taus[len(pair.taus) // 2]
    prompts = surprisal.index.get_level_values("prompt")
    small = _unrouted(surprisal, "small")
    falls = [
        share[_ON_TEXT, a] - share[_ON_TEXT, b]
        for a, b in zip(pair.taus, pair.taus[1:], strict=False)
    ]
    least = min(falls, key=lambda fall: fall.mean())
    return [
        Claim.judge(
            f"What it writes is likelier to the large model than what the small one writes "
            f"({pair.name}).",
            paper="direction only",
            measured=paired_difference(small, surprisal[_ON_TEXT, middle], groups=prompts),
            quantity=f"nats a token under the large model, small alone minus tau {middle:g} bits",
            above=0,
        ),
        Claim.judge(
            f"The large model's share falls as the threshold rises ({pair.name}).",
            paper="direction only",
            measured=mean_interval(least, groups=prompts),
            quantity="smallest fall of the share between neighbouring thresholds",
            above=0,
        ),
    ]


def _published(config: EADConfig, table: pd.DataFrame) -> list[Claim]:
    """The paper's own headline, for the pairs that solve problems."""
    statement = "Most of the large model's score is kept at a fraction of its tokens"
    paper = "Llama: 96.7 % at a share of 43 %; Qwen: 92.9 % at a share of 25 %"
    quantity = "score at the threshold of the nearest share, over the large model's"
    solving = [pair for pair in config.pairs if pair.dataset]
    if not solving or "text correct" not in set(table.metric):
        return [
            Claim.not_measurable(
                f"{statement}.",
                paper=paper,
                quantity=quantity,
                note="Needs instruction-tuned pairs and MATH: the paper preset.",
            )
        ]
    claims = []
    for pair in solving:
        correct, share = _by_text(pair, table, "text correct"), _by_text(pair, table, "text share")
        aim = 0.43 if "Llama" in pair.name else 0.25
        tau = min(pair.taus, key=lambda t: abs(share[_ON_TEXT, t].mean() - aim))
        kept = correct[_ON_TEXT, tau] - 0.9 * _unrouted(correct, "large")
        claims.append(
            Claim.judge(
                f"{statement} ({pair.name}).",
                paper=paper,
                measured=mean_interval(kept, groups=kept.index.get_level_values("prompt")),
                quantity=f"score at tau {tau:g} minus 0.9 of the large model's score",
                above=0,
                note=f"Share of the large model there: {share[_ON_TEXT, tau].mean():.2f}.",
            )
        )
    return claims


# Figures ------------------------------------------------------------------------------------------

_LABELS = {
    "share": "large model's share of tokens",
    "cost": "paper cost (a)",
    "flops": "FLOPs with all reading (b)",
    "traffic": "weight traffic (c)",
}


def _score_against_cost(config: EADConfig, table: pd.DataFrame) -> Figure:
    from plotly.subplots import make_subplots

    plot = make_subplots(rows=2, cols=2, shared_yaxes=True, vertical_spacing=0.16)
    legal = table[table.metric == "legal"].groupby(["arm", "tau"], dropna=False).value
    score = legal.mean()
    spread = table[table.metric == "legal"].groupby(["arm", "tau", "seed"], dropna=False).value
    seeds = spread.mean().groupby(["arm", "tau"], dropna=False)
    for panel, (metric, label) in enumerate(_LABELS.items()):
        place = {"row": panel // 2 + 1, "col": panel % 2 + 1}
        mean = table[table.metric == metric].groupby(["arm", "tau"], dropna=False).value.mean()
        ends = [(mean[arm].iloc[0], score[arm].iloc[0]) for arm in ("small", "large")]
        plot.add_scatter(
            x=[x for x, _ in ends],
            y=[y for _, y in ends],
            mode="lines",
            line={"dash": "dot", "color": "#748091"},
            hoverinfo="skip",
            showlegend=panel == 0,
            name="the line between both",
            **place,
        )
        for i, arm in enumerate(a for a in ARMS if a in mean.index.get_level_values("arm")):
            x, y = mean[arm], score[arm]
            low, high = seeds.min()[arm], seeds.max()[arm]
            plot.add_scatter(
                x=x,
                y=y,
                error_y={"array": high - y, "arrayminus": y - low, "thickness": 1},
                mode="lines+markers",
                line={"color": color(i), "width": 2.5 if arm == "ead" else 1.2},
                marker={"size": 10 if arm == "ead" else 7},
                name=arm,
                legendgroup=arm,
                showlegend=panel == 0,
                text=[f"tau {tau:g}" if tau == tau else "" for tau in x.index],
                hovertemplate=f"{arm} %{{text}}<br>%{{x:.3f}}, %{{y:.3f}}<extra></extra>",
                **place,
            )
        plot.update_xaxes(title=label, **place)
    plot.update_yaxes(title="legal symbols", col=1)
    plot.update_layout(height=720)
    return Figure(
        "Quality against what it costs, four accounts",
        "Share of emitted symbols that the source allows, on the known-entropy source; a point a "
        "threshold, bars from the lowest to the highest seed. Costs are in units of the large model "
        "alone. Rivals have the method's share. Above the dotted line a method picks its moments; "
        "the paper's account leaves out catching up, which FLOPs count.",
        plot,
    )


def _document_trace(config: EADConfig, table: pd.DataFrame) -> Figure:
    import plotly.graph_objects as go

    traces = table[table.metric == "trace"]
    tau = min(traces.tau.unique(), key=lambda t: abs(t - 0.5))
    rows = traces[traces.tau == tau].sort_values("token")
    rolling = rows.value.rolling(_WINDOW, min_periods=1).mean()
    plot = go.Figure()
    plot.add_bar(
        x=rows.token,
        y=rows.value,
        marker_color=[color(1) if writer == "large" else color(0) for writer in rows.writer],
        text=[
            text if right else f"<b>{text}✗</b>"
            for text, right in zip(rows.text, rows.right, strict=True)
        ],
        textposition="outside",
        hovertemplate="%{text}: %{y:.2f} bits<extra></extra>",
        name="entropy of the writer",
        showlegend=False,
    )
    for i, name in enumerate(("small", "large")):
        plot.add_bar(x=[None], y=[None], marker_color=color(i), name=f"{name} model writes")
    plot.add_scatter(
        x=rows.token, y=rolling, mode="lines", line={"color": "#748091"}, name="rolling mean"
    )
    plot.add_hline(y=tau, line={"dash": "dot", "color": "#748091"}, annotation_text=f"tau {tau:g}")
    for b in range(BLOCKS):
        key = rows.key.iloc[b * (1 + BLOCK)]
        kind = "easy" if key == EASY else "hard"
        begin = b * (1 + BLOCK) - 0.5
        plot.add_vline(x=begin, line={"width": 1, "color": "#748091"})
        plot.add_annotation(
            x=begin, y=1.04, yref="paper", text=f"{key} {kind}", showarrow=False, xanchor="left"
        )
    plot.update_xaxes(title="token")
    plot.update_yaxes(title="bits")
    return Figure(
        "One document, token by token",
        "Bars are the entropy of whoever writes, coloured by the writer, with the symbol above; a "
        "cross marks one the source does not allow. The line is the rolling mean that decides.",
        plot,
    )


def _switches(config: EADConfig, table: pd.DataFrame) -> Figure:
    import plotly.graph_objects as go

    plot = go.Figure()
    rows = table[table.metric == "switches"]
    for arm in ("ead", "ead-dwell-5", "random-tokens"):
        mean = rows[rows.arm == arm].groupby("tau").value.mean()
        plot.add_bar(
            x=[f"{tau:g}" for tau in mean.index],
            y=mean,
            name=arm,
            marker_color=color(ARMS.index(arm)),
        )
    plot.update_xaxes(title="tau (bits)", type="category")
    plot.update_yaxes(title=f"switches in {WRITTEN} tokens")
    return Figure(
        "How often the pen changes hands",
        "Changes of writer a document, with a dwell of one token and of five.",
        plot,
    )


def _text_figures(pair: TextPair, table: pd.DataFrame) -> list[Figure]:
    import plotly.graph_objects as go

    traces = table[table.metric == "text trace"]
    traces = traces[(traces.pair == pair.name) & (traces.arm == _ON_TEXT) & (traces.seed == 0)]
    tau = pair.taus[len(pair.taus) // 2]
    rows = traces[traces.tau == tau].sort_values("token")
    plot = go.Figure()
    for i, name in enumerate(("small", "large")):
        mine = rows[rows.writer == name]
        plot.add_bar(
            x=mine.token,
            y=mine.value,
            marker_color=color(i),
            customdata=mine.text,
            hovertemplate="%{customdata}: %{y:.2f} bits<extra></extra>",
            name=f"{name} model writes",
        )
    plot.add_scatter(
        x=rows.token,
        y=rows["rolling"],
        mode="lines",
        line={"color": "#748091"},
        name="rolling mean",
    )
    plot.add_hline(y=tau, line={"dash": "dot", "color": "#748091"}, annotation_text=f"tau {tau:g}")
    plot.update_xaxes(
        title="token",
        tickvals=rows.token,
        ticktext=[text.replace("\n", "⏎") for text in rows.text],
        tickangle=-60,
    )
    plot.update_yaxes(title="bits")
    written = Figure(
        f"A text and who wrote it ({pair.name})",
        f"After the first opening, at tau {tau:g} bits: entropy of whoever writes.",
        plot,
    )
    return [written, _text_table(pair, table)]


def _text_table(pair: TextPair, table: pd.DataFrame) -> Figure:
    import plotly.graph_objects as go

    columns = {
        "large share": ("text share", ".2f"),
        "switches": ("text switches", ".1f"),
        "paper cost (a)": ("text cost", ".2f"),
        "FLOPs (b)": ("text flops", ".2f"),
        "traffic (c)": ("text traffic", ".2f"),
        "s a token (d)": ("text seconds", ".3f"),
        "nats under the large": ("text surprisal", ".2f"),
    }
    wide = {label: _by_text(pair, table, metric).mean() for label, (metric, _) in columns.items()}
    index = next(iter(wide.values())).index
    order = sorted(index, key=lambda key: (ARMS.index(key[0]), key[1]))
    names = [arm if arm in ("small", "large") else f"{arm}, tau {tau:g}" for arm, tau in order]
    cells = [
        [f"{wide[label][key]:{form}}" for key in order] for label, (_, form) in columns.items()
    ]
    clear, rule = "rgba(0,0,0,0)", "rgba(128,128,128,0.35)"
    style = {"align": "left", "fill": {"color": clear}, "line": {"color": rule}}
    plot = go.Figure(
        go.Table(
            columnwidth=[2] + [1] * len(cells),
            header={"values": ["arm", *columns], **style},
            cells={"values": [names, *cells], **style, "height": 24},
        )
    )
    plot.update_layout(height=70 + 26 * len(names), margin={"l": 0, "r": 0, "t": 8, "b": 8})
    return Figure(
        f"What the texts cost ({pair.name})",
        "Means over openings and seeds; (a), (b) and (c) in units of the large model alone.",
        plot,
    )


experiment = EADExperiment()
