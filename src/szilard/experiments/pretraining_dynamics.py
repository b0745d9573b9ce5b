"""Capability curves of the public Pythia models, and of small models pretrained on the spot.

Pythia: shapes, orders, forecasts and unseen tasks at four sizes, against the last value, a smaller model's
curve, the loss alone, rank correlation and a trend in time alone. On the spot: Llamas of three sizes on one
stream of chains of known entropy, facts, copying and sums. At the paper's scale: any list of checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from szilard.lab.experiment import (
    Claim,
    ExperimentConfig,
    Figure,
    Interval,
    Log,
    Preset,
    Row,
)
from szilard.lab.figures import color
from szilard.lab.statistics import mean_interval
from szilard.measures import kl_divergence
from szilard.representations.pretraining_curves import log_schedule

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure as Plot

    from szilard.representations import DynamicsTable

METHOD = "pretraining-dynamics"
LAST, SMALLER, LOSS, TIME, RANK = (
    "last value",
    "smaller model",
    "loss only",
    "time only",
    "rank correlation",
)
STEP = 2_097_152  # tokens of a step of Pythia
PYTHIA = ("pythia-1.4b", "pythia-2.8b", "pythia-6.9b", "pythia-12b")
LPPL = "lambada_log_perplexity"
TASKS = ("lambada", "sciq", "piqa", "arc_easy", "arc_challenge", "winogrande")
BASIC, COMPLEX = ("lambada", "sciq"), ("arc_challenge", "winogrande")
DOMAINS: dict[str, dict[str, tuple[str, ...]]] = {
    "arc_easy": {"same": ("arc_challenge", "sciq"), "other": ("piqa", "winogrande")},
    "arc_challenge": {"same": ("arc_easy", "sciq"), "other": ("piqa", "winogrande")},
    "piqa": {"same": ("winogrande",), "other": ("sciq",)},
    "winogrande": {"same": ("piqa",), "other": ("arc_easy",)},
}
TRANSFERS = (("pythia-1.4b", "pythia-6.9b"), ("pythia-2.8b", "pythia-12b"))

CHAINS, FACTS = ("chain A", "chain B"), ("facts s r o", "facts r s o")
LOCAL_TASKS = (*CHAINS, *FACTS, "copying", "sums", "loss")
LOWER = (*CHAINS, "loss")
MISSING = "no checkpoints in this preset; --preset paper, or --set checkpoints=..."


class Checkpoints(BaseModel):
    """A run whose checkpoints exist."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="Hugging Face id, or a folder with one folder a checkpoint")
    revisions: tuple[str, ...] = Field(
        description="its checkpoints, each with a number in its name"
    )
    tokens_per_step: float = Field(
        default=1, gt=0, description="tokens that one such number stands for"
    )
    metric: str = Field(default="acc", description="which of the harness's metrics")


class DynamicsConfig(ExperimentConfig):
    cuts: tuple[int, ...] = Field(
        default=(33_000, 53_000, 73_000, 93_000),
        description="steps of Pythia up to which a forecast may look",
    )
    resamples: int = Field(default=200, ge=1, description="of the bootstrap of a forecast")
    permutations: int = Field(default=10_000, ge=1, description="of the task labels")
    sizes: tuple[int, ...] = Field(default=(32, 64, 96), description="widths of the small models")
    layers: int = Field(default=2, ge=1, description="of the small models")
    steps: int = Field(default=1000, ge=10, description="training steps of the small models")
    batch_size: int = Field(default=24, ge=1, description="rows of 64 tokens a step")
    learning_rate: float = Field(default=3e-3, gt=0, description="of AdamW; a cosine to zero")
    looks: int = Field(default=14, ge=8, description="checkpoints, log-spaced from step 3")
    early_looks: int = Field(
        default=9, ge=4, description="checkpoints that a forecast of recall sees"
    )
    test_rows: int = Field(default=128, ge=1, description="held-out rows at a checkpoint")
    checkpoints: tuple[Checkpoints, ...] = Field(default=(), description="runs to evaluate")
    tasks: tuple[str, ...] = Field(
        default=(
            "piqa",
            "arc_easy",
            "arc_challenge",
            "hellaswag",
            "winogrande",
            "boolq",
            "race",
            "mmlu",
        ),
        description="tasks of lm-evaluation-harness for them",
    )
    few_shot: int = Field(default=0, ge=0, description="examples in the harness's prompts")
    limit: int | None = Field(default=None, description="questions a task; all by default")
    device: str = Field(default="auto", description="where those checkpoints run")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of their weights"
    )


def _pythia_runs() -> tuple[Checkpoints, ...]:
    steps = (64, 128, 256, 512, 1000, 3000, *range(13_000, 143_001, 10_000))
    revisions = tuple(f"step{step}" for step in steps)
    return tuple(
        Checkpoints(model=f"EleutherAI/{name}", revisions=revisions, tokens_per_step=STEP)
        for name in PYTHIA
    )


class PretrainingDynamicsExperiment:
    Config: ClassVar[type[ExperimentConfig]] = DynamicsConfig
    presets: ClassVar[Mapping[Preset, ExperimentConfig]] = {
        "smoke": DynamicsConfig(
            seeds=2,
            cuts=(33_000, 93_000),
            resamples=10,
            permutations=200,
            sizes=(16, 32),
            layers=1,
            steps=40,
            batch_size=8,
            looks=10,
            early_looks=7,
            test_rows=16,
        ),
        "quick": DynamicsConfig(),
        "paper": DynamicsConfig(
            device="auto",
            precision="bfloat16",
            checkpoints=(
                *_pythia_runs(),
                Checkpoints(
                    model="LLM360/Amber",
                    revisions=tuple(
                        f"ckpt_{i:03d}" for i in (1, 3, 7, 15, 30, 60, *range(90, 359, 30))
                    ),
                    tokens_per_step=3.5e9,
                ),
                Checkpoints(
                    model="m-a-p/Amber-Reproduce",
                    revisions=tuple(
                        f"m-a-p/Amber-Reproduce-{billions}B"
                        for billions in ("41.94", "901.78", "998.24", "1098.91")
                    ),
                    tokens_per_step=1e9,
                ),
            ),
        ),
    }

    def arms(self, config: DynamicsConfig) -> Sequence[str]:
        small = [_small(size) for size in config.sizes]
        return [
            METHOD,
            LAST,
            SMALLER,
            LOSS,
            TIME,
            RANK,
            *small,
            *(c.model for c in config.checkpoints),
        ]

    def run(self, config: DynamicsConfig, arm: str, seed: int, log: Log) -> Sequence[Row]:
        runs = {_small(size): size for size in config.sizes}
        if arm in runs:
            return list(_pretrain(config, runs[arm], seed, log))
        for checkpoints in config.checkpoints:
            if arm == checkpoints.model:
                # Evaluations have no seed: the first one's are every one's.
                return list(_evaluate(config, checkpoints)) if seed == 0 else []
        return list(_PYTHIA_ARMS[arm](config, seed))

    def claims(self, config: DynamicsConfig, table: pd.DataFrame) -> Sequence[Claim]:
        return [*_pythia_claims(config, table), *_local_claims(config, table), _scale_claim(table)]

    def figures(self, config: DynamicsConfig, table: pd.DataFrame) -> Sequence[Figure]:
        return [
            _curves_figure(table),
            _pairs_figure(table),
            _order_figure(table),
            _forecast_figure(table),
            _local_figure(config, table),
        ]


experiment = PretrainingDynamicsExperiment()


def _small(size: int) -> str:
    return f"llama {size}"


# --- Pythia ---------------------------------------------------------------------------------------


def _pythia() -> DynamicsTable:
    from szilard.representations import DynamicsTable

    return DynamicsTable.pythia()


def _analysis(config: DynamicsConfig, seed: int) -> Iterator[Row]:
    table = _pythia()
    report = table.similarity(TASKS, n_perm=config.permutations, rng=seed, force=True)
    yield {"metric": "auc", "value": report.auc}
    yield {"metric": "p", "value": report.p}
    yield {"metric": "residual correlation, same task", "value": report.same_residual}
    yield {"metric": "residual correlation, other tasks", "value": report.cross_residual}
    for pair in report.pairs.to_dict("records"):
        yield {"metric": "distance", "value": pair["distance"], **_names(pair)}
    for model in PYTHIA:
        for task in TASKS:
            g = table.progress(model, task, force=True)
            for tokens, share in g.items():
                step = round(tokens / STEP)
                yield {
                    "metric": "progress",
                    "value": share,
                    "model": model,
                    "task": task,
                    "step": step,
                }
            half = table.half_rise(model, task, force=True) / STEP
            yield {"metric": "half-rise", "value": half, "model": model, "task": task}
        for row in table.against_loss(model, "lambada", LPPL).to_dict("records"):
            flagged = float(row["flag"] != "")
            yield {"metric": "loss tells another story", "value": flagged, "model": model} | {
                "phase": row["phase"],
                "flag": row["flag"],
            }
    yield {"metric": "order agreement", "value": table.order_agreement(TASKS)}
    for cut, model, task in _forecasts(config):
        truth = table.value(model, task)
        made = table.forecast(
            model, task, upto=cut * STEP, resamples=config.resamples, rng=seed, force=True
        )
        yield {
            "metric": "forecast error",
            "value": abs(made.value - truth),
            "model": model,
            "task": task,
            "cut": cut,
            "covered": float(made.low <= truth <= made.high),
            "reliable": float(made.reliable),
        }
    for kind in ("same", "other"):
        for task, domains in DOMAINS.items():
            yield from _unseen(table, task, domains[kind], f"known: {kind} domain")


def _names(pair: Mapping[str, Any]) -> dict[str, Any]:
    return {k: pair[k] for k in ("kind", "model", "task", "other_model", "other_task")}


def _forecasts(config: DynamicsConfig) -> Iterator[tuple[int, str, str]]:
    for cut in config.cuts:
        for model in PYTHIA:
            for task in TASKS:
                yield cut, model, task


def _unseen(table: DynamicsTable, task: str, known: Sequence[str], kind: str) -> Iterator[Row]:
    for source, target in TRANSFERS:
        found = table.predict_unseen(task, known, source, target)
        yield {
            "metric": "unseen error",
            "value": found.mae,
            "kind": kind,
            "task": task,
            "model": target,
        }


def _last_value(config: DynamicsConfig, seed: int) -> Iterator[Row]:
    table = _pythia()
    for cut, model, task in _forecasts(config):
        now = table.records.query("model == @model and task == @task and tokens <= @cut * @STEP")
        error = abs(now["value"].iloc[-1] - table.value(model, task))
        yield {"metric": "forecast error", "value": error, "model": model, "task": task, "cut": cut}


def _smaller_model(config: DynamicsConfig, seed: int) -> Iterator[Row]:
    table = _pythia()
    for task, domains in DOMAINS.items():
        for source, target in TRANSFERS:
            error = table.predict_unseen(task, domains["same"], source, target).copy_mae
            yield {
                "metric": "unseen error",
                "value": error,
                "kind": "copy",
                "task": task,
                "model": target,
            }


def _loss_only(config: DynamicsConfig, seed: int) -> Iterator[Row]:
    for task in DOMAINS:
        yield from _unseen(_pythia(), task, (LPPL,), "loss")


def _time_only(config: DynamicsConfig, seed: int) -> Iterator[Row]:
    report = _pythia().similarity(TASKS, n_perm=1, force=True)
    yield {"metric": "distance from the common trend", "value": report.time_only}


def _rank_correlation(config: DynamicsConfig, seed: int) -> Iterator[Row]:
    report = _pythia().similarity(TASKS, n_perm=1, force=True)
    yield {"metric": "auc", "value": report.rank_auc}
    for pair in report.pairs.to_dict("records"):
        yield {"metric": "rank correlation", "value": pair["rank"], **_names(pair)}


_PYTHIA_ARMS = {
    METHOD: _analysis,
    LAST: _last_value,
    SMALLER: _smaller_model,
    LOSS: _loss_only,
    TIME: _time_only,
    RANK: _rank_correlation,
}


# --- checkpoints that exist -----------------------------------------------------------------------


def _evaluate(config: DynamicsConfig, checkpoints: Checkpoints) -> Iterator[Row]:
    from szilard.representations import evaluate_checkpoints
    from szilard.zoo.cache import cache_folder

    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = evaluate_checkpoints(
        checkpoints.model,
        checkpoints.revisions,
        config.tasks,
        cache=cache_folder() / "checkpoint-evaluations",
        tokens_per_step=checkpoints.tokens_per_step,
        metric=checkpoints.metric,
        settings={"num_fewshot": config.few_shot, "limit": config.limit},
        dtype=getattr(torch, config.precision),
        device=device,
    )
    for row in found.records.to_dict("records"):
        keys = ("model", "n_params", "tokens", "task", "stderr", "higher_is_better")
        yield {"metric": "evaluation", "value": row["value"], **{k: row[k] for k in keys}}


# --- small models on the spot ---------------------------------------------------------------------


class Stream:
    """Rows of 64 tokens: segments of two Markov chains, of facts, of copying and of sums.

    Args:
        seed: of the chains and the facts.

    Attributes:
        transition: (2, 12, 12), the chains' conditional probabilities.
        entropy: (2,), bits a token of the chains.
        facts: (160, 3), subject, relation and object as tokens.
    """

    width, segment = 64, 10
    chain, subject, relation, thing, digit = 1, 25, 65, 69, 89
    plus, equals, copy, paste = 94, 95, 96, 97
    vocabulary = 98
    things, digits = slice(thing, thing + 20), slice(digit, digit + 5)
    shares = (0.15, 0.15, 0.3, 0.3, 0.1)  # of the segments: chains A and B, facts, copying, sums
    least, longest = 3, 14  # tokens of a segment

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        self.transition = rng.dirichlet(np.full(12, 0.25), size=(2, 12))
        logs = np.log2(self.transition, where=self.transition > 0, out=np.zeros((2, 12, 12)))
        values, vectors = np.linalg.eig(self.transition.transpose(0, 2, 1))
        stationary = np.stack(
            [v[:, np.argmax(w.real)].real for w, v in zip(values, vectors, strict=True)]
        )
        stationary /= stationary.sum(1, keepdims=True)
        self.entropy = -np.einsum("ki,kij,kij->k", stationary, self.transition, logs)
        subjects, relations = np.divmod(np.arange(160), 4)
        things = rng.integers(20, size=160)
        self.facts = np.stack(
            [self.subject + subjects, self.relation + relations, self.thing + things], 1
        )
        popularity = np.repeat(1 / np.arange(1, 41), 4)
        self._popularity = popularity / popularity.sum()

    def rows(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (n, 64), and what each is to be predicted as: the index of a task plus one, or 0.

        Positions inside a chain count from its second token on; the two word orders of facts, what is
        copied, and the result of a sum.
        """
        count = self.width // self.least + 1
        shape = n, count
        kind = rng.choice(5, size=shape, p=self.shares)
        tokens = np.zeros((*shape, self.longest), dtype=np.int64)
        role, length = np.zeros_like(tokens), np.zeros(shape, dtype=np.int64)

        chained = kind < 2
        which = kind[chained]
        tokens[chained, : self.segment] = self._chain(which, rng)
        role[chained, 1 : self.segment] = which[:, None] + 1
        length[chained] = self.segment

        told = kind == 2
        fact = self.facts[rng.choice(160, size=told.sum(), p=self._popularity)]
        turned = rng.random(len(fact)) < 0.5
        tokens[told, :3] = np.where(turned[:, None], fact[:, [1, 0, 2]], fact)
        role[told, 2] = 3 + turned
        length[told] = 3

        copied = kind == 3
        size = rng.integers(3, 7, size=copied.sum())
        what = self.thing + rng.integers(20, size=(len(size), 6))
        rows = np.zeros((len(size), self.longest), dtype=np.int64)
        place = np.arange(6)
        rows[:, 0] = self.copy
        rows[:, 1:7] = what
        rows[np.arange(len(size)), size + 1] = self.paste
        inside = place < size[:, None]
        at = size[:, None] + 2 + place
        line = np.broadcast_to(np.arange(len(size))[:, None], at.shape)
        rows[line[inside], at[inside]] = what[inside]
        roles = np.zeros_like(rows)
        roles[line[inside], at[inside]] = 5
        tokens[copied], role[copied], length[copied] = rows, roles, 2 * size + 2

        summed = kind == 4
        terms = rng.integers(5, size=(summed.sum(), 3))
        three = rng.random(len(terms)) < 0.5
        total = (terms[:, 0] + terms[:, 1] + np.where(three, terms[:, 2], 0)) % 5
        marks = np.full(len(terms), self.plus), np.full(len(terms), self.equals)
        a, b, d = (self.digit + terms).T
        short = np.stack([a, marks[0], b, marks[1], self.digit + total, 0 * a, 0 * a], 1)
        long = np.stack([a, marks[0], b, marks[0], d, marks[1], self.digit + total], 1)
        tokens[summed, :7] = np.where(three[:, None], long, short)
        length[summed] = np.where(three, 7, 5)
        answers = np.zeros((len(terms), self.longest), dtype=np.int64)
        answers[np.arange(len(terms)), length[summed] - 1] = 6
        role[summed] = answers

        padding = (np.arange(self.longest) >= length[..., None]).reshape(n, -1)
        order = np.argsort(padding, axis=1, kind="stable")[:, : self.width]
        return (
            np.take_along_axis(tokens.reshape(n, -1), order, 1),
            np.take_along_axis(role.reshape(n, -1), order, 1),
        )

    def _chain(self, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        cumulative = self.transition.cumsum(-1)
        states = np.empty((len(which), self.segment), dtype=np.int64)
        states[:, 0] = rng.integers(12, size=len(which))
        for i in range(1, self.segment):
            u = rng.random((len(which), 1))
            states[:, i] = (u > cumulative[which, states[:, i - 1]]).sum(1).clip(max=11)
        return self.chain + 12 * which[:, None] + states


def excess_bits(log_p: Tensor, truth: Tensor) -> Tensor:
    """KL divergence of a model from the source at each position, in bits: never negative.

    Args:
        log_p: the model's log-probabilities of the source's tokens, in nats; may sum to less than 1.
        truth: the source's probabilities.
    """
    rest = torch.log1p(-log_p.exp().sum(-1, keepdim=True).clamp(max=1))
    whole = torch.cat([log_p, rest], -1)
    return kl_divergence(F.pad(truth, (0, 1)), log_q=whole, base=2)


def _pretrain(config: DynamicsConfig, size: int, seed: int, log: Log) -> Iterator[Row]:
    from szilard.zoo.language import tiny_language_model

    stream = Stream(seed)
    model = tiny_language_model(
        "llama",
        vocab=Stream.vocabulary,
        hidden=size,
        layers=config.layers,
        heads=4,
        intermediate=2 * size,
        positions=Stream.width,
        tied=True,
        seed=seed,
    )
    # One stream for all sizes of a seed.
    rng = np.random.default_rng([seed, 1])
    held_out = stream.rows(config.test_rows, np.random.default_rng([seed, 2]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    looks = log_schedule(config.looks, config.steps, first=3)
    keys = {"model": _small(size), "n_params": model.num_parameters()}
    for chain, entropy in zip(CHAINS, stream.entropy, strict=True):
        yield {"metric": "entropy", "value": float(entropy), "task": chain, **keys}
    model.train()
    for step in range(1, config.steps + 1):
        tokens = torch.from_numpy(stream.rows(config.batch_size, rng)[0])
        loss = F.cross_entropy(
            _logits(model, tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step in looks:
            own = keys | {"step": step, "tokens": float(step * config.batch_size * Stream.width)}
            for row in _look(model, stream, held_out):
                yield {"metric": "evaluation", **row, **own}
            log(step / config.steps, f"step {step} of {config.steps}")


def _logits(model: Any, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits


@torch.no_grad()
def _look(model: Any, stream: Stream, held_out: tuple[np.ndarray, np.ndarray]) -> Iterator[Row]:
    """Every task's metric at this moment, with its standard error and what guessing would give."""
    model.eval()
    tokens, role = (torch.from_numpy(part) for part in held_out)
    log_p = _logits(model, tokens[:, :-1]).log_softmax(-1)
    before, after, role = tokens[:, :-1], tokens[:, 1:], role[:, 1:]
    for i, chain in enumerate(CHAINS):
        here = role == i + 1
        first = Stream.chain + 12 * i
        truth = torch.from_numpy(stream.transition[i])[before[here] - first]
        bits = excess_bits(log_p[here][:, first : first + 12].double(), truth)
        yield _score(chain, bits, chance=math.log2(12) - float(stream.entropy[i]))
    orders = ([0, 1, 2], [1, 0, 2])
    for order, name in zip(orders, FACTS, strict=True):
        asked = torch.from_numpy(stream.facts[:, order])
        yield _choice(name, _logits(model, asked[:, :2])[:, -1], asked[:, 2], Stream.things)
    for name, part, answers in (("copying", 5, Stream.things), ("sums", 6, Stream.digits)):
        yield _choice(name, log_p[role == part], after[role == part], answers)
    yield _score("loss", -log_p.gather(-1, after[..., None]).flatten().double(), chance=math.nan)
    model.train()


def _choice(task: str, logits: Tensor, truth: Tensor, answers: slice) -> Row:
    """Accuracy of the likeliest of a task's own answers."""
    # Among all tokens an untrained model scores 0, and to come up to chance would look like a rise.
    right = logits[:, answers].argmax(-1) + answers.start == truth
    return _score(task, right.double(), chance=1 / (answers.stop - answers.start))


def _score(task: str, values: Tensor, *, chance: float) -> Row:
    stderr = float(values.std() / math.sqrt(len(values)))
    mean = float(values.mean())
    return {
        "task": task,
        "value": mean,
        "stderr": stderr,
        "chance": chance,
        "higher_is_better": task not in LOWER,
    }


# --- claims ---------------------------------------------------------------------------------------


def _of(table: pd.DataFrame, metric: str, arm: str | None = None, **equal: Any) -> pd.DataFrame:
    """Rows of the first seed, which are those of every seed: Pythia's evaluations have none."""
    rows = table[(table.metric == metric) & (table.seed == table.seed.min())]
    rows = rows if arm is None else rows[rows.arm == arm]
    for column, value in equal.items():
        rows = rows[rows[column] == value]
    return rows


def _pythia_claims(config: DynamicsConfig, table: pd.DataFrame) -> Iterator[Claim]:
    pairs = _of(table, "distance", METHOD)
    same, cross = pairs[pairs.kind == "same"], pairs[pairs.kind == "cross"]
    p = float(_of(table, "p", METHOD).value.iloc[0])
    trend = float(_of(table, "distance from the common trend").value.iloc[0])
    # One difference a task: how far it is from other tasks, less how far it is from itself elsewhere.
    gaps = [
        cross[(cross.task == task) | (cross.other_task == task)].value.mean()
        - same[same.task == task].value.mean()
        for task in TASKS
    ]
    yield Claim.judge(
        "A task's curve has the same shape at every size (Pythia, 1.4 to 12 billion parameters)",
        paper="similar training dynamics across sizes, no number",
        measured=mean_interval(gaps),
        quantity="shape distance to other tasks of one size - to the same task at other sizes, over tasks",
        above=0,
        note=f"Same task {same.value.mean():.4f}, other tasks {cross.value.mean():.4f}, permutation "
        f"p = {p:.2g}; the mean distance from one common trend in time is {trend:.4f}.",
    )
    ours = float(_of(table, "auc", METHOD).value.iloc[0])
    ranks = _of(table, "rank correlation", RANK)
    theirs = float(_of(table, "auc", RANK).value.iloc[0])
    cross_rank = ranks[ranks.kind == "cross"].value.mean()
    yield Claim.judge(
        "Shape distance tells the same task from another better than rank correlation does",
        paper="-",
        measured=Interval.exact(ours - theirs),
        quantity="AUC of shape distance - AUC of rank correlation, 36 against 60 pairs",
        above=0,
        note=f"AUC {ours:.3f} against {theirs:.3f}. Curves of different tasks have a mean rank "
        f"correlation of {cross_rank:.3f}, because both rise.",
    )
    half = _of(table, "half-rise", METHOD).pivot(index="model", columns="task", values="value")
    margins = np.log(half[list(COMPLEX)].min(axis=1) / half[list(BASIC)].max(axis=1))
    tau = float(_of(table, "order agreement", METHOD).value.iloc[0])
    yield Claim.judge(
        "Basic abilities (LAMBADA, SciQ) come before complex ones (ARC challenge, WinoGrande)",
        paper="basic abilities rise early, complex ones follow",
        measured=mean_interval(margins.to_numpy()),
        quantity="ln(earliest complex half-rise / latest basic one), over sizes",
        above=0,
        note=f"Kendall tau of the order of all six tasks between sizes: {tau:.2f}.",
    )
    made = _of(table, "forecast error", METHOD).set_index(["cut", "model", "task"])
    last = _of(table, "forecast error", LAST).set_index(["cut", "model", "task"])
    for cut in config.cuts:
        gain = (last.value - made.value).loc[cut]
        at = made.loc[cut]
        yield Claim.judge(
            f"A power law up to step {cut:,} of 143,000 forecasts the final score better than its last value",
            paper="a scaling-law view of the metrics, no number",
            measured=mean_interval(gain.to_numpy(), groups=gain.index.get_level_values("task")),
            quantity="mean absolute error of the last value - of the forecast, 24 curves",
            above=0,
            note=f"{at.value.mean():.4f} against {last.value.loc[cut].mean():.4f}; the 90 % interval holds "
            f"the truth in {100 * at.covered.mean():.0f} % of the curves.",
        )
    errors = table[(table.metric == "unseen error") & (table.seed == table.seed.min())]
    by = errors.pivot_table(index=["task", "model"], columns="kind", values="value")
    same_domain, other = by["known: same domain"], by["known: other domain"]
    statements = (
        (
            "Tasks of the same domain predict an unseen one better than the loss alone",
            by["loss"],
            "loss - same domain",
        ),
        (
            "Tasks of the same domain predict an unseen one better than a smaller model's curve does",
            by["copy"],
            "copy - same domain",
        ),
        (
            "Tasks of the same domain predict an unseen one better than other tasks",
            other,
            "other - same domain",
        ),
    )
    for statement, baseline, words in statements:
        gain = baseline - same_domain
        yield Claim.judge(
            statement,
            paper="known tasks of a domain predict unseen ones, no number",
            measured=mean_interval(gain.to_numpy(), groups=gain.index.get_level_values("task")),
            quantity=f"mean absolute error: {words}, four tasks in two transfers",
            above=0,
            note=f"{baseline.mean():.4f} against {same_domain.mean():.4f}.",
        )


def _local(table: pd.DataFrame, seed: int) -> DynamicsTable:
    from szilard.representations import DynamicsTable
    from szilard.representations.pretraining import COLUMNS

    rows = table[
        (table.metric == "evaluation") & (table.seed == seed) & table.task.isin(LOCAL_TASKS)
    ]
    return DynamicsTable.from_pandas(rows[list(COLUMNS)])


def _early(config: DynamicsConfig) -> float:
    looks = log_schedule(config.looks, config.steps, first=3)
    return float(looks[config.early_looks - 1] * config.batch_size * Stream.width)


def _local_summary(config: DynamicsConfig, table: pd.DataFrame) -> dict[str, list[float]]:
    """What each seed's models show; NaN where a seed can't say."""
    found: dict[str, list[float]] = {
        key: []
        for key in (
            "same",
            "domain",
            "cross",
            "order",
            "earlier",
            "sums",
            "copying",
            "unreliable",
            "miss",
        )
    }
    for seed in sorted(table.seed.unique()):
        curves = _local(table, seed)
        models = [_small(size) for size in config.sizes]
        taught = (*CHAINS, *FACTS)

        def mean_distance(
            pairs: Sequence[tuple[tuple[str, str], tuple[str, str]]], curves: Any
        ) -> float:
            return float(np.mean([curves.distance(a, b, force=True) for a, b in pairs]))

        same = [
            ((a, task), (b, task))
            for i, a in enumerate(models)
            for b in models[i + 1 :]
            for task in taught
        ]
        domain = [((m, a), (m, b)) for m in models for a, b in (CHAINS, FACTS)]
        cross = [((m, a), (m, b)) for m in models for a in CHAINS for b in FACTS]
        for name, pairs in (("same", same), ("domain", domain), ("cross", cross)):
            found[name].append(mean_distance(pairs, curves))
        half = {(m, t): curves.half_rise(m, t, force=True) for m in models for t in taught}
        found["order"].append(
            min(
                math.log(min(half[m, f] for f in FACTS) / max(half[m, c] for c in CHAINS))
                for m in models
            )
        )
        reached = [_recalls_half(table, m, seed) for m in models]
        found["earlier"].append(math.log(reached[0] / reached[-1]))
        signal = curves.signal().set_index(["model", "task"])
        found["sums"].append(1 - signal.has_signal.xs("sums", level="task").mean())
        refused = [
            not row["has_signal"]
            for row in _prefixes(curves, "copying")
            if row["above_chance"] <= 3
        ]
        found["copying"].append(float(np.mean(refused)) if refused else math.nan)
        flags, misses = [], []
        for m in models:
            for task in FACTS:
                made = curves.forecast(
                    m,
                    task,
                    upto=_early(config),
                    resamples=config.resamples,
                    rng=int(seed),
                    force=True,
                )
                flags.append(not made.reliable)
                misses.append(abs(made.value - curves.value(m, task)))
        found["unreliable"].append(float(np.mean(flags)))
        found["miss"].append(float(np.mean(misses)))
    return found


def _prefixes(curves: DynamicsTable, task: str) -> Iterator[dict[str, Any]]:
    """The signal test of a task at each checkpoint that has seven before it, model by model."""
    tokens = np.unique(curves.records.tokens)
    for upto in tokens[7:]:
        signal = curves.signal(upto=upto)
        yield from signal[signal.task == task].to_dict("records")


def _recalls_half(table: pd.DataFrame, model: str, seed: int) -> float:
    """Step at which a model recalls half of the facts, interpolated in ln step; the last if it never does."""
    rows = table[(table.metric == "evaluation") & (table.seed == seed) & (table.model == model)]
    recall = rows[rows.task.isin(FACTS)].groupby("step").value.mean()
    steps, values = recall.index.to_numpy(float), recall.to_numpy()
    above = np.flatnonzero(values >= 0.5)
    if len(above) == 0:
        return float(steps[-1])
    i = above[0]
    if i == 0:
        return float(steps[0])
    share = (0.5 - values[i - 1]) / (values[i] - values[i - 1])
    return float(steps[i - 1] * (steps[i] / steps[i - 1]) ** share)


def _local_claims(config: DynamicsConfig, table: pd.DataFrame) -> Iterator[Claim]:
    found = _local_summary(config, table)
    sizes = f"widths {', '.join(map(str, config.sizes))}"
    gap = np.subtract(found["cross"], found["same"])
    yield Claim.judge(
        "Small models of several sizes share the shape of a task's curve",
        paper="similar training dynamics across sizes, no number",
        measured=mean_interval(found["same"]),
        quantity=f"shape distance of one task between {sizes}, over seeds",
        below=0.1,
        note=f"Distance of chains and facts less this: {gap.mean():.3f}.",
    )
    yield Claim.judge(
        "Tasks of one domain share a shape within a small model",
        paper="tasks of a domain move together, no number",
        measured=mean_interval(found["domain"]),
        quantity="shape distance of two chains, and of two word orders of facts, over seeds",
        below=0.1,
    )
    yield Claim.judge(
        "Tasks of two domains do not",
        paper="-",
        measured=mean_interval(found["cross"]),
        quantity="shape distance of chains and facts within a model, over seeds",
        above=0.3,
    )
    yield Claim.judge(
        "Language comes before facts at every size",
        paper="basic abilities rise early, complex ones follow",
        measured=mean_interval(found["order"]),
        quantity="least ln(half-rise of facts / of chains) over sizes, over seeds",
        above=0,
    )
    yield Claim.judge(
        "A larger model recalls half of the facts earlier",
        paper="scale shifts the curves, no number",
        measured=mean_interval(found["earlier"]),
        quantity=f"ln(step of recall 0.5 at width {config.sizes[0]} / at {config.sizes[-1]}), over seeds",
        above=0,
    )
    yield Claim.judge(
        "The signal test refuses a task that no model learns (sums)",
        paper="-",
        measured=mean_interval(found["sums"]),
        quantity="share of models in which sums are refused, over seeds",
        above=0.999,
    )
    yield _copying_claim(found["copying"])
    yield Claim.judge(
        "A forecast of final recall from before the rise is said to be unreliable",
        paper="-",
        measured=mean_interval(found["unreliable"]),
        quantity=f"share of forecasts from the first {config.early_looks} checkpoints that are flagged",
        above=0.999,
        note=f"They miss the final recall by {np.mean(found['miss']):.2f} on average.",
    )


def _copying_claim(shares: Sequence[float]) -> Claim:
    statement = "The signal test refuses copying wherever it is at chance"
    quantity = "share refused of the checkpoints within three standard errors of chance, over seeds"
    known = [share for share in shares if not math.isnan(share)]
    if not known:
        note = "Every model copied better than chance from its eighth checkpoint on."
        return Claim.not_measurable(statement, paper="-", quantity=quantity, note=note)
    return Claim.judge(
        statement, paper="-", measured=mean_interval(known), quantity=quantity, above=0.999
    )


def _scale_claim(table: pd.DataFrame) -> Claim:
    from szilard.representations import DynamicsTable
    from szilard.representations.pretraining import COLUMNS

    statement = "A task's curve has the same shape up to 67 billion parameters"
    paper = "specific downstream metrics, up to 67 billion parameters"
    quantity = (
        "shape distance to other tasks of one run - to the same task in other runs, over tasks"
    )
    rows = table[(table.metric == "evaluation") & ~table.task.isin(LOCAL_TASKS)]
    if rows.empty:
        return Claim.not_measurable(statement, paper=paper, quantity=quantity, note=MISSING)
    curves = DynamicsTable.from_pandas(rows[[c for c in COLUMNS if c in rows]])
    signal = curves.signal()
    everywhere = signal.groupby("task").has_signal.agg(["all", "size"])
    tasks = everywhere[
        everywhere["all"] & (everywhere["size"] == len(curves.models))
    ].index.tolist()
    if len(tasks) < 2 or len(curves.models) < 2:
        note = f"Two tasks with signal in each of two runs are needed; there are {len(tasks)}."
        return Claim.not_measurable(statement, paper=paper, quantity=quantity, note=note)
    pairs = curves.similarity(tasks, n_perm=1).pairs
    same, cross = pairs[pairs.kind == "same"], pairs[pairs.kind == "cross"]
    gaps = [
        cross[(cross.task == task) | (cross.other_task == task)].distance.mean()
        - same[same.task == task].distance.mean()
        for task in tasks
    ]
    return Claim.judge(
        statement,
        paper=paper,
        measured=mean_interval(gaps),
        quantity=quantity,
        above=0,
        note=f"Runs: {', '.join(curves.models)}.",
    )


# --- figures --------------------------------------------------------------------------------------


def _plot(**layout: Any) -> Plot:
    import plotly.graph_objects as go

    return go.Figure(layout=layout)


def _curves_figure(table: pd.DataFrame) -> Figure:
    rows = _of(table, "progress", METHOD)
    plot = _plot(xaxis={"type": "log", "title": "step"}, yaxis_title="share of the rise behind it")
    dashes = ("dot", "dash", "dashdot", "solid")
    for i, task in enumerate(TASKS):
        for model, dash in zip(PYTHIA, dashes, strict=True):
            one = rows[(rows.task == task) & (rows.model == model)].sort_values("step")
            plot.add_scatter(
                x=one.step,
                y=one.value,
                mode="lines",
                name=task,
                legendgroup=task,
                showlegend=dash == "solid",
                line={"color": color(i), "dash": dash},
                hovertext=model,
            )
    return Figure(
        "Progress of six tasks in four Pythia models",
        "Lines of one colour are one task, dotted at 1.4 to solid at 12 billion parameters. They lie close "
        "together; tasks do not.",
        plot,
    )


def _pairs_figure(table: pd.DataFrame) -> Figure:
    plot = _plot(yaxis_title="of a pair of curves", boxmode="group")
    words = {"same": "same task, two sizes", "cross": "two tasks, same size"}
    for i, (kind, name) in enumerate(words.items()):
        found = [
            (label, value)
            for label, metric, arm in (
                ("shape distance", "distance", METHOD),
                ("rank correlation", "rank correlation", RANK),
            )
            for value in _of(table, metric, arm, kind=kind).value
        ]
        plot.add_box(
            x=[label for label, _ in found],
            y=[value for _, value in found],
            name=name,
            marker_color=color(i),
            boxpoints="all",
        )
    return Figure(
        "What tells one task from another",
        "Shape distance is small for one task at two sizes and larger for two tasks at one size. Rank "
        "correlation is close to 1 for both: whatever rises correlates.",
        plot,
    )


def _order_figure(table: pd.DataFrame) -> Figure:
    rows = _of(table, "half-rise", METHOD)
    plot = _plot(xaxis={"type": "log", "title": "step of the half-rise"})
    for i, model in enumerate(PYTHIA):
        one = rows[rows.model == model].set_index("task").loc[list(TASKS)]
        plot.add_scatter(
            x=one.value, y=one.index, mode="markers", name=model, marker_color=color(i)
        )
    return Figure(
        "In which order abilities come",
        "Each mark is where a task has half of its rise behind it: SciQ and LAMBADA first, ARC challenge "
        "and WinoGrande last, at every size.",
        plot,
    )


def _forecast_figure(table: pd.DataFrame) -> Figure:
    plot = _plot(
        xaxis_title="steps seen, of 143,000", yaxis_title="mean absolute error of the final score"
    )
    for i, arm in enumerate((METHOD, LAST)):
        mean = _of(table, "forecast error", arm).groupby("cut").value.mean()
        plot.add_scatter(x=mean.index, y=mean, mode="lines+markers", name=arm, line_color=color(i))
    return Figure(
        "Forecasts of the final score",
        "24 curves (six tasks, four sizes). The power law errs less than taking the last value for the "
        "final one, at every cut.",
        plot,
    )


def _local_figure(config: DynamicsConfig, table: pd.DataFrame) -> Figure:
    from plotly.subplots import make_subplots

    rows = table[(table.metric == "evaluation") & table.task.isin(LOCAL_TASKS)]
    panels = {
        "chains: excess bits": CHAINS,
        "facts: recall": FACTS,
        "copying: accuracy": ("copying",),
        "sums: accuracy": ("sums",),
    }
    plot = make_subplots(2, 2, subplot_titles=list(panels))
    for panel, tasks in enumerate(panels.values()):
        where = {"row": panel // 2 + 1, "col": panel % 2 + 1}
        for i, size in enumerate(config.sizes):
            one = rows[(rows.model == _small(size)) & rows.task.isin(tasks)]
            mean = one.groupby("step").value.mean()
            plot.add_scatter(
                x=mean.index,
                y=mean,
                mode="lines+markers",
                name=_small(size),
                legendgroup=size,
                showlegend=panel == 0,
                line_color=color(i),
                **where,
            )
    plot.update_xaxes(type="log", title_text="step")
    return Figure(
        "Small models pretrained on the spot",
        "Mean over seeds. Chains are learned first, facts later and the earlier the larger the model; sums "
        "stay at chance (0.2).",
        plot,
    )
