"""Reasoning utility: does a falling entropy over the answer tell right chains of thought from wrong ones?

`quick` plants how informative each step is: an answer has four slots, a step reveals one of them, says
what is true only three times in four, or says nothing. The Bayes-optimal curve is then known in closed
form, and a small judge trained on such chains is measured against it. A few word problems are read by a
real language model beside that, to be looked at. `paper` lets a language model write chains on MATH and
another judge them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from szilard.decoding.reasoning_utility import ReasoningUtility, UtilityProfile, stopping_step
from szilard.lab.experiment import Claim, ExperimentConfig, Figure, Interval, Log, Preset, Row
from szilard.lab.figures import color
from szilard.lab.statistics import mean_interval, paired_difference
from szilard.measures.tokens import token_statistics

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What is thought to be higher for right chains.
SCORES = {
    "utility": "U = H_0 - H_K",
    "slope": "-slope of H_k",
    "final-entropy": "-H_K",
    "positive-share": "share of steps that lower H",
    "nll-drop": "N_0 - N_K",
    "final-nll": "-N_K",
    "chain-entropy": "-mean entropy of the chain's own tokens",
    "answer-logprob": "log p(the chain's own answer)",
    "length": "-number of steps",
    "random": "random",
}
FOREIGN, EARLY, PROBLEMS = "foreign-steps", "early-stopping", "word-problems"
POSITIONS = 11


class TextStudy(BaseModel):
    """Chains on real problems: who writes them, who judges them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    judge: str = Field(default="Qwen/Qwen3-8B", description="Hugging Face id or local folder")
    writer: str = Field(
        default="Qwen/Qwen2.5-32B-Instruct",
        description="Hugging Face id or local folder; or a .jsonl file of stored chains, with the "
        "columns problem, chain and answer",
    )
    dataset: str = Field(default="EleutherAI/hendrycks_math", description="id, folder or file")
    subsets: tuple[str, ...] = Field(
        default=(
            "algebra",
            "counting_and_probability",
            "geometry",
            "intermediate_algebra",
            "number_theory",
            "prealgebra",
            "precalculus",
        ),
        description="its configurations; empty for a data set that has none",
    )
    split: str = "test"
    question: str = "problem"
    solution: str = Field(default="solution", description="ends with the answer in \\boxed{}")
    problems: int | None = Field(default=None, ge=1, description="of each subset; None takes all")
    new_tokens: int = Field(default=2048, ge=1, description="longest chain")
    batch_size: int = Field(default=16, ge=1, description="chains written at once")
    packed: bool = Field(default=True, description="one forward pass a chain")
    device: str = Field(default="auto", description='"auto", "cpu", "cuda", ...')


class Settings(ExperimentConfig):
    """Knobs of the planted chains, the word problems, and the real study."""

    chains: int = Field(default=1000, ge=20, description="judged chains a seed")
    slots: int = Field(default=4, ge=2, description="tokens of the answer")
    symbols: int = Field(default=8, ge=2, description="values a slot can take")
    unreliable: float = Field(default=0.2, ge=0, le=1, description="share of unreliable steps")
    reliability: float = Field(default=0.75, gt=0, lt=1, description="how often those are true")
    training_steps: int = Field(default=500, ge=1, description="of the judge")
    batch_size: int = Field(default=128, ge=1, description="chains in a training step")
    hidden: int = Field(default=48, ge=8, description="width of the judge")
    stopped_chains: int = Field(default=200, ge=10, description="chains read for early stopping")
    h_stop: float = Field(default=0.1, gt=0, description="early stopping, nats")
    problems: int = Field(default=7, ge=0, description="word problems a seed")
    problem_judge: str = Field(default="gemma3-270m", description="who reads them")
    resamples: int = Field(default=500, ge=1, description="of the bootstrap")
    text: TextStudy | None = Field(default=None, description="judge real chains instead")


class ReasoningUtilityExperiment:
    """Measuring Reasoning Utility in LLMs via Conditional Entropy Reduction (Guo, 2025)."""

    Config: ClassVar[type[ExperimentConfig]] = Settings
    presets: ClassVar[Mapping[Preset, ExperimentConfig]] = {
        "smoke": Settings(
            seeds=2, chains=40, training_steps=20, batch_size=32, stopped_chains=10, problems=0
        ),
        "quick": Settings(seeds=3),
        "paper": Settings(seeds=1, problems=0, text=TextStudy()),
    }

    def arms(self, config: Settings) -> Sequence[str]:
        if config.text is not None:
            return list(SCORES)
        return [*SCORES, FOREIGN, EARLY, *([PROBLEMS] if config.problems else [])]

    def run(self, config: Settings, arm: str, seed: int, log: Log) -> Sequence[Row]:
        if arm == PROBLEMS:
            return _word_problems(config, seed, log)
        if arm == FOREIGN:
            return _foreign(config, seed, log)
        if arm == EARLY:
            return _early(config, seed, log)
        log(0.0, "reading the chains, or recalling them")
        judged = _judged(config, seed)
        rows: list[Row] = [
            {"metric": "score", "value": float(value), "chain": i, "right": bool(right)}
            for i, (value, right) in enumerate(zip(judged.scores[arm], judged.right, strict=True))
        ]
        if arm == "utility":
            rows += _curves(judged.curves, judged.right, "wrong", "right", config.resamples)
            rows += [
                {"metric": "error", "value": float(error), "chain": i}
                for i, error in enumerate(judged.errors)
            ]
            rows.append({"metric": "posterior auroc", "value": judged.posterior_auroc})
        return rows

    def claims(self, config: Settings, table: pd.DataFrame) -> Sequence[Claim]:
        return _claims(config, table)

    def figures(self, config: Settings, table: pd.DataFrame) -> Sequence[Figure]:
        return _figures(config, table)


# Planted chains -----------------------------------------------------------------------------------


class Chain(NamedTuple):
    """A planted chain: slot and told value of each step, None where it says nothing."""

    truth: tuple[int, ...]
    own: tuple[int, ...]
    """The chain's own answer: what it was told, a guess elsewhere."""
    steps: tuple[tuple[int, int, bool] | None, ...]
    """(slot, value, reliable)."""

    @property
    def right(self) -> bool:
        return self.own == self.truth


def draw_chain(config: Settings, rng: np.random.Generator) -> Chain:
    """Half of the chains are told every slot, with few empty steps; the others few, with many."""
    slots, symbols = config.slots, config.symbols
    truth = rng.integers(symbols, size=slots)
    good = rng.random() < 0.5
    told = slots if good else int(rng.integers(1, slots))
    empty = int(rng.integers(0, 3) if good else rng.integers(2, 5))
    own = rng.integers(symbols, size=slots)
    steps: list[tuple[int, int, bool] | None] = [None] * empty
    for slot in rng.permutation(slots)[:told]:
        reliable = rng.random() >= config.unreliable
        value = int(truth[slot])
        if not reliable and rng.random() >= config.reliability:
            value = (value + int(rng.integers(1, symbols))) % symbols
        own[slot] = value
        steps.append((int(slot), value, reliable))
    order = rng.permutation(len(steps))
    return Chain(tuple(map(int, truth)), tuple(map(int, own)), tuple(steps[i] for i in order))


def exact_curve(config: Settings, chain: Chain) -> np.ndarray:
    """The Bayes-optimal H_k: a mean over slots of what is not known about each, nats.

    Examples:
        >>> chain = Chain((0, 0, 0, 0), (0, 0, 0, 0), ((1, 0, True), None, (2, 0, False)))
        >>> exact_curve(Settings(), chain).round(4).tolist()
        [2.0794, 1.5596, 1.5596, 1.3019]
    """
    r, symbols = config.reliability, config.symbols
    doubt = -r * math.log(r) - (1 - r) * math.log((1 - r) / (symbols - 1))
    known = np.full(config.slots, math.log(symbols))
    curve = [known.mean()]
    for step in chain.steps:
        if step is not None:
            known[step[0]] = 0.0 if step[2] else doubt
        curve.append(known.mean())
    return np.array(curve)


class Alphabet:
    """A character for each step that can be taken and each symbol of each slot.

    Symbols of different slots differ, so that an answer's last token says which slot comes next.
    """

    def __init__(self, config: Settings) -> None:
        self.slots, self.symbols = config.slots, config.symbols
        count = 3 * self.slots * self.symbols + 2
        # Letters from the Latin Extended block on.
        self.characters = "".join(chr(0x100 + i) for i in range(count))
        self.empty, self.ask = self.characters[-2], self.characters[-1]

    def _pick(self, block: int, slot: int, value: int) -> str:
        return self.characters[(block * self.slots + slot) * self.symbols + value]

    def answer(self, values: Sequence[int]) -> str:
        return "".join(self._pick(0, slot, value) for slot, value in enumerate(values))

    def steps(self, chain: Chain) -> list[str]:
        return [
            self.empty if step is None else self._pick(1 + step[2], step[0], step[1])
            for step in chain.steps
        ]


@lru_cache(maxsize=4)
def _planted_judge(config: Settings, seed: int) -> tuple[ReasoningUtility, Alphabet]:
    from szilard.zoo.language import cached_tiny, character_tokenizer

    alphabet = Alphabet(config)

    def examples(n: int, rng: np.random.Generator) -> list[tuple[str, str]]:
        drawn = []
        for _ in range(n):
            chain = draw_chain(config, rng)
            steps = alphabet.steps(chain)
            cut = int(rng.integers(0, len(steps) + 1))
            drawn.append(("".join(steps[:cut]) + alphabet.ask, alphabet.answer(chain.truth)))
        return drawn

    tokenizer = character_tokenizer(alphabet.characters)
    model, _ = cached_tiny(
        "reasoning-utility",
        examples,
        tokenizer=tokenizer,
        data=config.model_dump(include={"slots", "symbols", "unreliable", "reliability"}),
        model={"hidden": config.hidden, "positions": 64, "seed": seed},
        training={
            "steps": config.training_steps,
            "batch_size": config.batch_size,
            "lr": 6e-3,
            # Steps come in random order: there is nothing to be learnt from foretelling them.
            "completion_only": True,
            "seed": seed,
            "progress": False,
        },
    )
    judge = ReasoningUtility(
        model,
        tokenizer,
        lead_in=alphabet.ask,
        separator="",
        answer_tokens=config.slots,
        packed=True,
    )
    return judge, alphabet


def _planted_chains(config: Settings, seed: int) -> list[Chain]:
    rng = np.random.default_rng([10_000, seed])
    return [draw_chain(config, rng) for _ in range(config.chains)]


# Judged chains ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """What a judge thought of the chains of one seed."""

    scores: Mapping[str, np.ndarray]
    right: np.ndarray
    curves: np.ndarray
    """H at 11 positions along each chain."""
    errors: np.ndarray
    """Mean |H_k - exact| of each chain; empty where the truth is not known."""
    posterior_auroc: float


# Every score is read off the same profiles: a process reads the chains once.
@lru_cache(maxsize=4)
def _judged(config: Settings, seed: int) -> Judged:
    if config.text is not None:
        return _judged_texts(config.text, seed)
    judge, alphabet = _planted_judge(config, seed)
    chains = _planted_chains(config, seed)
    right = np.array([chain.right for chain in chains])
    exact = [exact_curve(config, chain) for chain in chains]
    profiles, own = [], []
    for chain in chains:
        steps = alphabet.steps(chain)
        profiles.append(judge.profile("", steps, alphabet.answer(chain.truth)))
        own.append(_own_reading(judge, "", "".join(steps), alphabet.answer(chain.own)))
    errors = [np.abs(p.entropy.numpy() - e).mean() for p, e in zip(profiles, exact, strict=True)]
    posterior = auroc(np.array([-curve[-1] for curve in exact]), right)
    return _scored(profiles, own, right, np.array(errors), posterior, seed)


def _scored(
    profiles: Sequence[UtilityProfile],
    own: Sequence[tuple[float, float]],
    right: np.ndarray,
    errors: np.ndarray,
    posterior: float,
    seed: int,
) -> Judged:
    at = torch.linspace(0, 1, POSITIONS, dtype=torch.float64)
    scores = {
        "utility": [p.total for p in profiles],
        "slope": [-p.slope for p in profiles],
        "final-entropy": [-float(p.entropy[-1]) for p in profiles],
        "positive-share": [p.positive_share for p in profiles],
        "nll-drop": [p.nll_drop for p in profiles],
        "final-nll": [-float(p.nll[-1]) for p in profiles],
        "chain-entropy": [-entropy for entropy, _ in own],
        "answer-logprob": [logprob for _, logprob in own],
        "length": [-float(len(p.steps)) for p in profiles],
        "random": np.random.default_rng([20_000, seed]).random(len(profiles)),
    }
    return Judged(
        {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()},
        right,
        np.stack([p.at(at).numpy() for p in profiles]),
        errors,
        posterior,
    )


@torch.no_grad()
def _own_reading(
    judge: ReasoningUtility, problem: str, chain: str, answer: str
) -> tuple[float, float]:
    """Mean entropy of the chain's own tokens, and log-probability of the answer it ends with."""

    def encode(text: str, special: bool) -> list[int]:
        ids: list[int] = judge.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    prompt, steps = encode(problem, True), encode(chain, False)
    question, end = encode(judge.lead_in, False), encode(answer, False)
    ids = torch.tensor([prompt + steps + question + end], device=judge.model.device)
    logits = judge.model(ids, use_cache=False).logits[0, :-1]
    found = token_statistics(logits[len(prompt) - 1 :], ids[0, len(prompt) :])
    assert found.logprob is not None
    own = found.logprob[len(steps) + len(question) :]
    # A chain that ends without an answer ranks below all that have one.
    logprob = float(own.sum()) if end else -math.inf
    return float(found.entropy[: len(steps)].mean()), logprob


def _curves(
    curves: np.ndarray, second: np.ndarray, first_name: str, second_name: str, resamples: int
) -> list[Row]:
    """Mean curve of each of two kinds of chain with its bootstrap band over chains."""
    rows: list[Row] = []
    for kind, name in ((False, first_name), (True, second_name)):
        mine = curves[second == kind]
        if len(mine) < 2:
            continue
        for i, x in enumerate(np.linspace(0, 1, POSITIONS)):
            band = mean_interval(mine[:, i], resamples=resamples)
            rows.append(
                {"metric": "curve", "value": band.value, "low": band.low, "high": band.high}
                | {"position": float(x), "kind": name}
            )
    return rows


def auroc(score: np.ndarray, right: np.ndarray) -> float:
    """How often a right chain scores above a wrong one, ties counted half; NaN without both kinds.

    Examples:
        >>> auroc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True]))
        0.875
    """
    from scipy.stats import rankdata

    positive, negative = int(right.sum()), int((~right).sum())
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(score)[right].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


def auroc_interval(scores: pd.DataFrame, resamples: int) -> Interval:
    """Mean AUROC over seeds; seeds are resampled, and within each the chains."""
    rng = np.random.default_rng(0)
    seeds = [
        (mine.value.to_numpy(), mine.right.to_numpy(dtype=bool))
        for _, mine in scores.groupby("seed")
    ]
    value = float(np.mean([auroc(*mine) for mine in seeds]))
    draws = []
    for _ in range(resamples):
        means = []
        for s in rng.integers(len(seeds), size=len(seeds)):
            score, right = seeds[s]
            chosen = rng.integers(len(score), size=len(score))
            means.append(auroc(score[chosen], right[chosen]))
        draws.append(np.mean(means))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value, float(low), float(high))


# Controls -----------------------------------------------------------------------------------------


def _foreign(config: Settings, seed: int, log: Log) -> list[Row]:
    """Every chain's steps under the next problem: about another answer."""
    log(0.0, "reading other problems' steps")
    judge, alphabet = _planted_judge(config, seed)
    chains = _planted_chains(config, seed)
    rows: list[Row] = []
    for i, chain in enumerate(chains):
        other = chains[(i + 1) % len(chains)]
        profile = judge.profile("", alphabet.steps(chain), alphabet.answer(other.truth))
        rows.append({"metric": "foreign utility", "value": profile.total, "chain": i})
        rows.append({"metric": "foreign nll drop", "value": profile.nll_drop, "chain": i})
        if i % 100 == 0:
            log(i / len(chains), f"chain {i}")
    return rows


def _early(config: Settings, seed: int, log: Log) -> list[Row]:
    """Without the reference: the judge answers for itself after each step, and stops when certain."""
    log(0.0, "reading with answers of the judge's own")
    judge, alphabet = _planted_judge(config, seed)
    rows: list[Row] = []
    chains = _planted_chains(config, seed)[: config.stopped_chains]
    for i, chain in enumerate(chains):
        profile = judge.profile("", alphabet.steps(chain))
        steps = len(chain.steps)
        stop = stopping_step(profile.entropy.tolist(), h_stop=config.h_stop, patience=None)
        at = steps if stop is None else stop
        told = {step[0] for step in chain.steps if step is not None and step[2]}
        last = max(k for k, step in enumerate(chain.steps, 1) if step is not None)
        truth = alphabet.answer(chain.truth)
        values = {
            "right read whole": float(profile.answers[-1] == truth),
            "right when stopped": float(profile.answers[at] == truth),
            "steps saved": (steps - at) / steps,
            "stopped": float(stop is not None),
        }
        # Steps that say nothing after all slots are told, by steps that never lie.
        if len(told) == config.slots and last < steps:
            values["skippable steps skipped"] = min(steps - at, steps - last) / (steps - last)
        rows += [{"metric": name, "value": value, "chain": i} for name, value in values.items()]
        if i % 20 == 0:
            log(i / len(chains), f"chain {i}")
    return rows


# Word problems ------------------------------------------------------------------------------------

_PEOPLE = ("Mia", "Omar", "Lena", "Tariq", "Nora")
_THINGS = ("apples", "marbles", "stamps", "coins", "pencils")
_OPERATIONS = {
    "+": ("gets {n} more", lambda a, n: a + n),
    "-": ("gives away {n}", lambda a, n: a - n),
    "*": ("then has {n} times as many", lambda a, n: a * n),
}


class WordProblem(NamedTuple):
    """A problem, a right chain and one with a slip that later steps go on from, and the answer."""

    problem: str
    right: tuple[str, ...]
    slip: tuple[str, ...]
    answer: str


def word_problem(rng: np.random.Generator) -> WordProblem:
    """Two to four operations on a number of things; the answer has two digits or more.

    Examples:
        >>> found = word_problem(np.random.default_rng(0))
        >>> len(found.right) == len(found.slip), found.right[-1] != found.slip[-1]
        (True, True)
    """
    who, what = rng.choice(_PEOPLE), rng.choice(_THINGS)
    start = int(rng.integers(21, 60))
    count = int(rng.integers(2, 5))
    operations = []
    for kind in rng.choice(list(_OPERATIONS), size=count, p=[0.4, 0.4, 0.2]):
        n = int(rng.integers(2, 4) if kind == "*" else rng.integers(3, 10))
        operations.append((str(kind), n))

    def solve(error_at: int | None, error: int) -> tuple[tuple[str, ...], int]:
        lines, value = [], start
        for i, (kind, n) in enumerate(operations):
            result = _OPERATIONS[kind][1](value, n) + (error if i == error_at else 0)
            said = _OPERATIONS[kind][0].format(n=n)
            lines.append(f"{who} {said}: {value} {kind} {n} = {result}.")
            value = result
        return tuple(lines), value

    told = " ".join(f"{who} {_OPERATIONS[kind][0].format(n=n)}." for kind, n in operations)
    right, answer = solve(None, 0)
    slip, _ = solve(int(rng.integers(count)), int(rng.choice([-2, -1, 1, 2])))
    problem = f"{who} has {start} {what}. {told} How many {what} does {who} have in the end?"
    return WordProblem(problem, right, slip, str(answer))


def _word_problems(config: Settings, seed: int, log: Log) -> list[Row]:
    from szilard.zoo.language import load_language_model

    log(0.0, f"loading {config.problem_judge}")
    judge = ReasoningUtility(*load_language_model(config.problem_judge), separator="\n")
    rng = np.random.default_rng([30_000, seed])
    at = torch.linspace(0, 1, POSITIONS, dtype=torch.float64)
    curves, slips = [], []
    rows: list[Row] = []
    for i in range(config.problems):
        problem = word_problem(rng)
        for kind, chain in (("right", problem.right), ("slip", problem.slip)):
            profile = judge.profile(problem.problem, chain, problem.answer)
            curves.append(profile.at(at).numpy())
            slips.append(kind == "slip")
            values = {
                "text utility": profile.total,
                "text slope": profile.slope,
                "text final entropy": float(profile.entropy[-1]),
                "text nll drop": profile.nll_drop,
            }
            rows += [
                {"metric": name, "value": value, "chain": i, "kind": kind}
                for name, value in values.items()
            ]
        log((i + 1) / config.problems, f"problem {i + 1}")
    return rows + _curves(np.stack(curves), np.array(slips), "right", "slip", config.resamples)


# Real chains --------------------------------------------------------------------------------------


def _judged_texts(study: TextStudy, seed: int) -> Judged:
    from szilard.experiments.clip_cov_kl_cov import math_reward

    chains = _chains(study, seed)
    judge = ReasoningUtility(*_load(study.judge, study.device), packed=study.packed)
    profiles, own, right = [], [], []
    for problem, chain, answer in chains:
        profiles.append(judge.profile(problem, chain, answer))
        right.append(bool(math_reward([chain], [answer])[0]))
        own.append(_own_reading(judge, problem, chain, boxed(chain)))
    return _scored(profiles, own, np.array(right), np.array([]), float("nan"), seed)


def boxed(text: str) -> str:
    r"""What the last \boxed{...} of a text holds; nothing where there is none.

    Examples:
        >>> boxed(r"so \boxed{\frac{1}{2}}.")
        '\\frac{1}{2}'
    """
    start = text.rfind("\\boxed{")
    if start < 0:
        return ""
    begin = start + len("\\boxed{")
    depth = 1
    for match in re.finditer(r"[{}]", text[begin:]):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return text[begin : begin + match.start()]
    return ""


def _load(name: str, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from szilard.zoo.language import load_language_model

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    return load_language_model(name, dtype=dtype, device=device)


def _chains(study: TextStudy, seed: int) -> list[tuple[str, str, str]]:
    """(problem, chain, reference answer), each problem as the judge reads it."""
    from datasets import concatenate_datasets, load_dataset

    if study.writer.endswith(".jsonl"):
        rows = load_dataset("json", data_files=study.writer, split="train")
        return [(row["problem"] + "\n\n", row["chain"], row["answer"]) for row in rows]
    parts = [
        load_dataset(study.dataset, subset or None, split=study.split)
        for subset in study.subsets or ("",)
    ]
    if study.problems is not None:
        parts = [part.select(range(min(study.problems, len(part)))) for part in parts]
    rows = concatenate_datasets(parts)
    known = [(row[study.question], boxed(row[study.solution])) for row in rows]
    known = [(problem, answer) for problem, answer in known if answer]
    texts = _write(study, [problem for problem, _ in known], seed)
    return [
        (problem + "\n\n", text, answer)
        for (problem, answer), text in zip(known, texts, strict=True)
        if text.strip()
    ]


@torch.no_grad()
def _write(study: TextStudy, problems: Sequence[str], seed: int) -> list[str]:
    model, tokenizer = _load(study.writer, study.device)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    instruction = "\nReason step by step, and put the final answer within \\boxed{}."
    asked = [problem + instruction for problem in problems]
    if tokenizer.chat_template:
        asked = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
            for text in asked
        ]
    texts: list[str] = []
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for i in range(0, len(asked), study.batch_size):
            batch = tokenizer(
                asked[i : i + study.batch_size],
                return_tensors="pt",
                padding=True,
                add_special_tokens=not tokenizer.chat_template,
                return_token_type_ids=False,
            ).to(model.device)
            out = model.generate(
                **batch,
                max_new_tokens=study.new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
            texts += tokenizer.batch_decode(
                out[:, batch["input_ids"].shape[-1] :], skip_special_tokens=True
            )
    return texts


# Claims -------------------------------------------------------------------------------------------


def _claims(config: Settings, table: pd.DataFrame) -> list[Claim]:
    scores = table[table.metric == "score"]
    claims = []
    for arm in ("utility", "slope"):
        mine = scores[scores.arm == arm]
        if len(mine):
            claims.append(
                Claim.judge(
                    "A falling entropy over the answer goes with right chains"
                    + (" (total fall)" if arm == "utility" else " (steepness)"),
                    paper="qualitative (curves)",
                    measured=auroc_interval(mine, config.resamples),
                    quantity=f"AUROC of {SCORES[arm]} for the chain being right",
                    above=0.85 if config.text is None else 0.5,
                )
            )
    final = scores[scores.arm == "final-entropy"]
    if len(final):
        claims.append(
            Claim.judge(
                "Wrong chains leave the judge less certain",
                paper="direction",
                measured=_between(final, sign=-1.0),
                quantity="H_K of wrong chains - H_K of right chains, nats",
                above=0.5 if config.text is None else 0.0,
            )
        )
    drop = scores[(scores.arm == "utility")]
    wrong = drop[~drop.right.astype(bool)] if len(drop) else drop
    if len(wrong):
        note = (
            "Planted: wrong chains are told one to four slots, so their entropy falls too, only less."
            if config.text is None
            else ""
        )
        claims.append(
            Claim.judge(
                "Along wrong chains the entropy stays flat or rises",
                paper="qualitative (curves)",
                measured=mean_interval(wrong.value, groups=wrong.seed),
                quantity="U of wrong chains, nats",
                below=0.1,
                note=note,
            )
        )
    if config.text is not None:
        length = scores[scores.arm == "length"]
        if len(length):
            claims.append(
                Claim.judge(
                    "Wrong chains are longer",
                    paper="direction",
                    measured=auroc_interval(length, config.resamples),
                    quantity="AUROC of -K for the chain being right",
                    above=0.5,
                )
            )
        return claims
    return claims + _planted_claims(config, table)


def _planted_claims(config: Settings, table: pd.DataFrame) -> list[Claim]:
    claims = []
    error = table[table.metric == "error"]
    if len(error):
        claims.append(
            Claim.judge(
                "The judge's curve is the Bayes-optimal one",
                paper="-",
                measured=mean_interval(error.value, groups=error.seed),
                quantity="mean |H_k - exact|, nats",
                below=0.06,
                note="What the other figures rest on, not the paper's claim.",
            )
        )
    foreign = table[table.arm == FOREIGN]
    own = table[(table.metric == "score") & (table.arm == "utility")]
    if len(foreign) and len(own):
        theirs = foreign[foreign.metric == "foreign utility"].groupby("seed").value.mean()
        mine = own.groupby("seed").value.mean()
        claims.append(
            Claim.judge(
                "Entropy does not notice steps about another answer",
                paper="-",
                measured=mean_interval((theirs / mine - 1).abs().dropna()),
                quantity="|mean U(foreign answer) / mean U(own answer) - 1|",
                below=0.1,
                note="A limit of the measure, planted to be seen.",
            )
        )
        nll = foreign[foreign.metric == "foreign nll drop"]
        claims.append(
            Claim.judge(
                "The answer's own surprisal does notice",
                paper="-",
                measured=mean_interval(nll.value, groups=nll.seed),
                quantity="N_0 - N_K under another problem's steps, nats",
                below=0.0,
            )
        )
    early = table[table.arm == EARLY]
    if len(early):
        skipped = early[early.metric == "skippable steps skipped"]
        by = early.set_index(["seed", "chain"]).sort_index()
        whole = by[by.metric == "right read whole"].value
        stopped = by[by.metric == "right when stopped"].value
        if len(skipped):
            claims.append(
                Claim.judge(
                    f"Stopping at H_k < {config.h_stop:g} skips what follows the last informative step",
                    paper="- (ours)",
                    measured=mean_interval(skipped.value, groups=skipped.seed),
                    quantity="share of steps after the last informative one that are skipped",
                    above=0.9,
                )
            )
        claims.append(
            Claim.judge(
                "Early stopping loses no right answers",
                paper="- (ours)",
                measured=paired_difference(
                    whole, stopped, groups=whole.index.get_level_values("seed")
                ),
                quantity="share right, read whole - stopped",
                below=0.01,
            )
        )
    claims.append(
        Claim.not_measurable(
            "Wrong chains are longer",
            paper="direction",
            quantity="steps of wrong chains - steps of right chains",
            note="Planted chains are equally long by construction; `paper` measures it on MATH.",
        )
    )
    return claims


def _between(scores: pd.DataFrame, sign: float) -> Interval:
    """Mean over seeds of the difference wrong - right, with a bootstrap over seeds and chains."""
    rng = np.random.default_rng(0)
    seeds = [
        [mine.value[mine.right.astype(bool) == kind].to_numpy() * sign for kind in (False, True)]
        for _, mine in scores.groupby("seed")
    ]

    def difference(draw: Any) -> float:
        return float(
            np.mean([draw(w).mean() - draw(r).mean() for w, r in seeds if len(w) * len(r)])
        )

    draws = []
    for _ in range(500):
        chosen = rng.integers(len(seeds), size=len(seeds))
        means = [
            np.mean(rng.choice(seeds[s][0], len(seeds[s][0])))
            - np.mean(rng.choice(seeds[s][1], len(seeds[s][1])))
            for s in chosen
            if len(seeds[s][0]) * len(seeds[s][1])
        ]
        draws.append(np.mean(means) if means else np.nan)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Interval(difference(lambda values: values), float(low), float(high))


# Figures ------------------------------------------------------------------------------------------


def _figures(config: Settings, table: pd.DataFrame) -> list[Figure]:
    figures = []
    curves = table[table.metric == "curve"]
    main = curves[curves.arm == "utility"]
    if len(main):
        figures.append(
            _curve_figure(
                main,
                "Entropy over the answer along right and wrong chains",
                "Mean H_k over all seeds' chains, shaded its 95 % band over the chains of a seed. Wrong "
                "chains leave the judge in doubt: their entropy falls less.",
            )
        )
    scores = table[table.metric == "score"]
    if len(scores):
        figures.append(_auroc_figure(config, scores))
        figures.append(_spread_figure(scores))
    text = curves[curves.arm == PROBLEMS]
    if len(text):
        figures.append(
            _curve_figure(
                text,
                f"Word problems read by {config.problem_judge}",
                f"{config.problems} templated problems a seed, each with a right chain and one with a slip "
                "that later steps go on from. To be looked at: no direction is promised at this size.",
            )
        )
    return figures


def _curve_figure(curves: pd.DataFrame, title: str, caption: str) -> Figure:
    import plotly.graph_objects as go

    plot = go.Figure()
    for i, (kind, rows) in enumerate(curves.groupby("kind")):
        mean = rows.groupby("position")[["value", "low", "high"]].mean()
        x = mean.index.to_numpy()
        shade = color(i)
        plot.add_scatter(
            x=np.concatenate([x, x[::-1]]),
            y=np.concatenate([mean.high, mean.low[::-1]]),
            fill="toself",
            fillcolor=shade,
            opacity=0.2,
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
        plot.add_scatter(x=x, y=mean.value, name=str(kind), line={"color": shade, "width": 2.5})
    plot.update_xaxes(title="position along the chain, k / K")
    plot.update_yaxes(title="H_k (nats)", rangemode="tozero")
    return Figure(title, caption, plot)


def _auroc_figure(config: Settings, scores: pd.DataFrame) -> Figure:
    import plotly.graph_objects as go

    shown = [arm for arm in SCORES if arm in set(scores.arm)]
    found = [auroc_interval(scores[scores.arm == arm], config.resamples) for arm in shown]
    plot = go.Figure(
        go.Bar(
            x=[interval.value for interval in found],
            y=[f"{arm}: {SCORES[arm]}" if arm != "random" else arm for arm in shown],
            orientation="h",
            marker={"color": [color(i) for i in range(len(shown))]},
            error_x={
                "symmetric": False,
                "array": [interval.high - interval.value for interval in found],
                "arrayminus": [interval.value - interval.low for interval in found],
            },
        )
    )
    plot.add_vline(x=0.5, line={"dash": "dot", "color": "#748091"})
    plot.update_yaxes(autorange="reversed", automargin=True)
    plot.update_xaxes(title="AUROC for the chain being right", range=[0, 1])
    plot.update_layout(showlegend=False)
    return Figure(
        "Which score tells right chains from wrong ones",
        "Bars end at the mean over seeds, with 95 % bootstrap intervals over seeds and chains. The "
        "scores with N know the reference answer and say most; the entropies need it only to be read "
        "along.",
        plot,
    )


def _spread_figure(scores: pd.DataFrame) -> Figure:
    import plotly.graph_objects as go

    mine = scores[scores.arm == "utility"]
    plot = go.Figure()
    for i, (right, name) in enumerate(((True, "right"), (False, "wrong"))):
        plot.add_histogram(
            x=mine.value[mine.right.astype(bool) == right],
            name=name,
            opacity=0.65,
            nbinsx=50,
            marker={"color": color(i)},
        )
    plot.update_layout(barmode="overlay")
    plot.update_xaxes(title="U = H_0 - H_K (nats)")
    plot.update_yaxes(title="chains")
    return Figure(
        "What a chain is worth",
        "The utility of each chain. Wrong chains among the highest were told something false that they "
        "had every reason to believe.",
        plot,
    )


experiment = ReasoningUtilityExperiment()
