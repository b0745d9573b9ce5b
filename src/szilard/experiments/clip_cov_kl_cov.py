"""Clip-Cov and KL-Cov against entropy collapse, at matched reward.

`quick` trains a two-layer model on sums that may be added in any order: 24 correct answers a prompt, so that
diversity can be counted, not only measured as entropy. `paper` trains the paper's language model through
TRL with the paper's configuration.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from szilard.lab.experiment import Claim, ExperimentConfig, Figure, Interval, Log, Preset, Row
from szilard.rl import (
    EntropyLaw,
    clip_cov_loss,
    clip_cov_select,
    group_advantages,
    kl_cov_loss,
    token_covariance,
)

if TYPE_CHECKING:
    import pandas as pd

BASELINE = "grpo"
METHODS = (
    "clip-cov",
    "kl-cov",
    "grpo",
    "clip-higher",
    "entropy-bonus",
    "top-entropy",
    "random-clip",
)
QUADRANTS = ("likely_good", "likely_bad", "unlikely_good", "unlikely_bad")
PAPER_DOSES = "ratio 2e-4, bounds (1, 5); fraction 2e-3, beta 1"


class Benchmark(BaseModel):
    """A set of problems with checkable answers; columns may be dotted paths into nested fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dataset: str = Field(description="Hugging Face id, or a local .json, .jsonl or .parquet file")
    subset: str | None = None
    split: str = "test"
    question: str = "problem"
    answer: str = "answer"


class LanguageModelTraining(BaseModel):
    """Knobs of the run on a real language model through TRL; the sizes are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(default="Qwen/Qwen2.5-7B", description="Hugging Face id or local folder")
    train: Benchmark = Benchmark(
        name="DAPO-Math-17k",
        dataset="BytedTsinghua-SIA/DAPO-Math-17k",
        split="train",
        question="prompt.0.content",
        answer="reward_model.ground_truth",
    )
    benchmarks: tuple[Benchmark, ...] = (
        Benchmark(name="MATH-500", dataset="HuggingFaceH4/MATH-500"),
        Benchmark(name="AIME24", dataset="HuggingFaceH4/aime_2024", split="train"),
        Benchmark(name="AIME25", dataset="math-ai/aime25"),
        Benchmark(name="AMC23", dataset="math-ai/amc23", question="question"),
        Benchmark(
            name="OlympiadBench",
            dataset="Hothan/OlympiadBench",
            subset="OE_TO_maths_en_COMP",
            split="train",
            question="question",
            answer="final_answer.0",
        ),
        Benchmark(name="Minerva", dataset="math-ai/minervamath", question="question"),
    )
    max_completion: int = Field(default=8192, ge=1, description="tokens")
    eval_temperature: float = Field(default=0.6, gt=0, description="of the benchmarks")
    processes: int = Field(default=8, ge=1, description="one a GPU, on this machine")
    batch_per_process: int = Field(default=4, ge=1, description="completions in a forward pass")
    vllm: bool = Field(default=True, description="generate with vLLM, in the training processes")
    vllm_memory: float = Field(default=0.3, gt=0, le=1, description="share of the GPU for vLLM")


class Settings(ExperimentConfig):
    """Knobs shared by both runs, and those of the small model."""

    methods: tuple[str, ...] = Field(default=METHODS, description="the arms; grpo must be one")
    rollouts: int = Field(default=80, ge=1, description="length of the training")
    evaluate_every: int = Field(default=8, ge=1, description="rollouts between evaluations")
    prompts: int = Field(default=24, ge=1, description="prompts a rollout")
    samples: int = Field(default=8, ge=2, description="responses a prompt")
    minibatches: int = Field(default=8, ge=2, description="optimiser steps a rollout")
    learning_rate: float = Field(default=7e-5, gt=0, description="of Adam, constant")
    ratio: float = Field(default=0.2, gt=0, le=1, description="Clip-Cov: share of tokens removed")
    bounds: tuple[float, float] = Field(default=(0.05, 5.0), description="Clip-Cov: covariances")
    fraction: float = Field(default=0.1, gt=0, le=1, description="KL-Cov: share of tokens held")
    beta: float = Field(default=1.0, ge=0, description="KL-Cov: weight of |log ratio|")
    entropy_bonus: float = Field(default=0.01, ge=0, description="weight of the entropy bonus")
    pretraining_steps: int = Field(default=400, ge=1, description="supervised steps of 256 traces")
    modulus: int = Field(default=5, ge=2, le=10, description="of the sums")
    operands: int = Field(default=4, ge=1, le=26, description="numbers a prompt adds")
    corrupt: float = Field(default=0.3, ge=0, le=1, description="wrong running sums in the traces")
    eval_prompts: int = Field(default=64, ge=1, description="held-out prompts")
    eval_samples: int = Field(default=16, ge=2, description="responses a held-out prompt")
    language_model: LanguageModelTraining | None = Field(
        default=None, description="train this language model instead of the small one"
    )


class ClipCovKLCov:
    """The entropy mechanism: does restraining high-covariance tokens keep diversity at equal reward?"""

    Config: ClassVar[type[ExperimentConfig]] = Settings
    presets: ClassVar[Mapping[Preset, ExperimentConfig]] = {
        "smoke": Settings(
            seeds=1,
            rollouts=4,
            evaluate_every=1,
            prompts=8,
            samples=4,
            minibatches=2,
            pretraining_steps=80,
            modulus=2,
            operands=2,
            eval_prompts=4,
            eval_samples=4,
        ),
        "quick": Settings(seeds=2),
        "paper": Settings(
            seeds=1,
            methods=("clip-cov", "kl-cov", "grpo", "clip-higher"),
            rollouts=300,
            evaluate_every=1,
            prompts=256,
            samples=8,
            minibatches=8,
            learning_rate=5e-7,
            ratio=2e-4,
            bounds=(1.0, 5.0),
            fraction=2e-3,
            beta=1.0,
            eval_samples=8,
            language_model=LanguageModelTraining(),
        ),
    }

    def arms(self, config: Settings) -> Sequence[str]:
        unknown = set(config.methods) - set(METHODS)
        if unknown or BASELINE not in config.methods:
            raise ValueError(
                f"methods: {config.methods}; must hold {BASELINE!r} and be among {METHODS}"
            )
        return config.methods

    def run(self, config: Settings, arm: str, seed: int, log: Log) -> Sequence[Row]:
        rows = (
            _train_small(config, arm, seed, log)
            if config.language_model is None
            else _train_language_model(config, arm, seed, log)
        )
        return [*rows, *_law_rows(rows)]

    def claims(self, config: Settings, table: pd.DataFrame) -> Sequence[Claim]:
        return _claims(config, table)

    def figures(self, config: Settings, table: pd.DataFrame) -> Sequence[Figure]:
        return _figures(config, table)


# --- the small model ------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Sampled responses, the mask up to and including `<eos>`; log-probabilities and entropies in nats."""

    ids: Tensor
    mask: Tensor
    logp: Tensor
    entropy: Tensor


def _train_small(config: Settings, arm: str, seed: int, log: Log) -> list[Row]:
    from szilard.zoo.language import cached_tiny
    from szilard.zoo.tasks import FreeOrderSum

    task = FreeOrderSum(config.modulus, config.operands)
    log(0.0, "pretraining, or loading it")

    def traces(n: int, rng: np.random.Generator) -> list[tuple[str, str]]:
        prompts = task.prompts(n, rng)
        return list(zip(prompts, task.traces(prompts, rng, corrupt=config.corrupt), strict=True))

    model, tokenizer = cached_tiny(
        "free-order-sum",
        traces,
        tokenizer=task.tokenizer(),
        data=config.model_dump(include={"modulus", "operands", "corrupt"}),
        model={"seed": seed},
        training={
            "steps": config.pretraining_steps,
            "batch_size": 256,
            "completion_only": True,
            "seed": seed,
            "progress": False,
        },
    )
    rng = np.random.default_rng(seed)
    held_out = task.prompts(config.eval_prompts, np.random.default_rng(10_000 + seed))
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)

    def sample(prompts: Sequence[str], samples: int) -> tuple[Tensor, Batch, list[str]]:
        encoded = torch.tensor(tokenizer([p for p in prompts for _ in range(samples)])["input_ids"])
        batch = _sample(model, encoded, task.completion_length + 1, tokenizer, draws)
        return encoded, batch, tokenizer.batch_decode(batch.ids)

    def evaluate(step: int) -> list[Row]:
        _, batch, texts = sample(held_out, config.eval_samples)
        groups = [
            texts[i : i + config.eval_samples] for i in range(0, len(texts), config.eval_samples)
        ]
        orders = [{task.order(t) for t in group} - {None} for group in groups]
        rewards = [task.reward(p, t) for p, ts in zip(held_out, groups, strict=True) for t in ts]
        values = {
            "reward": float(np.mean(rewards)),
            "entropy": batch.entropy[batch.mask].mean().item(),
            "orders": float(np.mean([len(distinct) for distinct in orders])),
        }
        return [{"metric": key, "value": value, "step": step} for key, value in values.items()]

    rows = evaluate(0)
    for step in range(1, config.rollouts + 1):
        prompts = task.prompts(config.prompts, rng)
        encoded, batch, texts = sample(prompts, config.samples)
        asked = [p for p in prompts for _ in range(config.samples)]
        rewards = torch.tensor([task.reward(p, t) for p, t in zip(asked, texts, strict=True)])
        adv = group_advantages(rewards.view(config.prompts, config.samples))
        # A unanimous group has nothing to teach; its advantages are exactly zero.
        groups = adv.any(-1).nonzero()[:, 0]
        if len(groups):
            groups = groups[torch.randperm(len(groups), generator=draws)]
            learned = _update(config, arm, model, optimizer, encoded, batch, adv, groups, draws)
            rows += [
                {"metric": key, "value": value, "step": step} for key, value in learned.items()
            ]
        if step % config.evaluate_every == 0 or step == config.rollouts:
            rows += evaluate(step)
            log(step / config.rollouts, f"rollout {step}: reward {rows[-3]['value']:.2f}")
    return rows


@torch.no_grad()
def _sample(
    model: Any, prompts: Tensor, length: int, tokenizer: Any, generator: torch.Generator
) -> Batch:
    """Samples at temperature 1 from the full distribution, all prompts being equally long."""
    columns: list[tuple[Tensor, ...]] = []
    past, fed, alive = None, prompts, torch.ones(len(prompts), dtype=torch.bool)
    for _ in range(length):
        out = model(fed, past_key_values=past, use_cache=True)
        past, log_pi = out.past_key_values, out.logits[:, -1].log_softmax(-1)
        token = torch.multinomial(log_pi.exp(), 1, generator=generator)[:, 0]
        token = torch.where(alive, token, tokenizer.pad_token_id)
        logp = log_pi.gather(-1, token[:, None])[:, 0]
        columns.append((token, alive, logp, -(log_pi.exp() * log_pi).sum(-1)))
        alive = alive & (token != tokenizer.eos_token_id)
        fed = token[:, None]
    return Batch(*(torch.stack(column, 1) for column in zip(*columns, strict=True)))


def _score(model: Any, prompts: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the sampled tokens and entropies at their positions, nats."""
    logits = model(torch.cat([prompts, ids], 1), use_cache=False).logits
    log_pi = logits[:, prompts.shape[1] - 1 : -1].log_softmax(-1)
    return log_pi.gather(-1, ids[..., None])[..., 0], -(log_pi.exp() * log_pi).sum(-1)


def _update(
    config: Settings,
    arm: str,
    model: Any,
    optimizer: torch.optim.Optimizer,
    prompts: Tensor,
    batch: Batch,
    adv: Tensor,
    groups: Tensor,
    generator: torch.Generator,
) -> dict[str, float]:
    """One optimiser step a mini-batch of whole groups; returns the meter's means over them."""
    seen: list[dict[str, float]] = []
    members = torch.arange(adv.numel()).view_as(adv)
    for chosen in groups.tensor_split(min(config.minibatches, len(groups))):
        part = members[chosen].flatten()
        logp, entropy = _score(model, prompts[part], batch.ids[part])
        # The first mini-batch is on-policy: its log ratio is 0, not the rounding between two passes.
        old_logp = batch.logp[part] if seen else logp.detach()
        tokens = Tokens(logp, old_logp, adv[chosen].flatten(), batch.mask[part], entropy)
        loss, metrics = _LOSSES[arm](config, tokens, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen.append({key: value.item() for key, value in metrics.items()})
    means = {key: float(np.mean([one[key] for one in seen])) for key in seen[0]}
    return means | {"covariance_positive": float(np.mean([one["covariance"] > 0 for one in seen]))}


class Tokens(NamedTuple):
    """A mini-batch as the losses see it."""

    logp: Tensor
    old_logp: Tensor
    adv: Tensor
    mask: Tensor
    entropy: Tensor


Loss = tuple[Tensor, dict[str, Tensor]]


def _grpo(t: Tokens, eps: tuple[float, float]) -> Loss:
    """The clipped surrogate, with the covariance meter beside it."""
    return clip_cov_loss(*t[:4], eps=eps, count=0, reduction="none")


def _clip_cov(config: Settings, t: Tokens, generator: torch.Generator) -> Loss:
    return clip_cov_loss(*t[:4], config.ratio, config.bounds, generator=generator)


def _kl_cov(config: Settings, t: Tokens, generator: torch.Generator) -> Loss:
    return kl_cov_loss(*t[:4], config.fraction, config.beta)


def _random_clip(config: Settings, t: Tokens, generator: torch.Generator) -> Loss:
    """Clip-Cov with as many tokens as it would have removed, drawn from all."""
    detached = (t.logp.detach(), *t[1:4])
    count = int(clip_cov_select(*detached, config.ratio, config.bounds, generator=generator).sum())
    keys = torch.rand(t.mask.shape, generator=generator).masked_fill(~t.mask, -1.0).flatten()
    removed = torch.zeros(t.mask.numel(), dtype=torch.bool)
    removed[keys.topk(count).indices] = True
    each, metrics = _grpo(t, eps=(1.0, 1.0))
    metrics["selected"] = removed.sum() / t.mask.sum()
    return each.masked_fill(removed.view_as(t.mask), 0.0).sum() / t.mask.sum(), metrics


def _plain(eps: tuple[float, float]) -> Callable[[Settings, Tokens, torch.Generator], Loss]:
    def loss(config: Settings, t: Tokens, generator: torch.Generator) -> Loss:
        each, metrics = _grpo(t, eps)
        return each.sum() / t.mask.sum(), metrics

    return loss


def _entropy_bonus(config: Settings, t: Tokens, generator: torch.Generator) -> Loss:
    each, metrics = _grpo(t, eps=(0.2, 0.2))
    bonus = torch.where(t.mask, t.entropy, 0.0)
    return (each - config.entropy_bonus * bonus).sum() / t.mask.sum(), metrics


def _top_entropy(config: Settings, t: Tokens, generator: torch.Generator) -> Loss:
    """Learns on the fifth of the tokens where the policy is least sure."""
    each, metrics = _grpo(t, eps=(0.2, 0.2))
    threshold = t.entropy.detach()[t.mask].quantile(0.8)
    return each.masked_fill(t.entropy < threshold, 0.0).sum() / t.mask.sum(), metrics


_LOSSES: Mapping[str, Callable[[Settings, Tokens, torch.Generator], Loss]] = {
    "clip-cov": _clip_cov,
    "kl-cov": _kl_cov,
    "grpo": _plain((0.2, 0.2)),
    "clip-higher": _plain((0.2, 0.28)),
    "entropy-bonus": _entropy_bonus,
    "top-entropy": _top_entropy,
    "random-clip": _random_clip,
}


# --- a language model -----------------------------------------------------------------------------


def math_reward(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    r"""1 where the last boxed (or "Answer:") expression of a completion equals the answer, else 0.

    Examples:
        >>> math_reward([r"so \boxed{\frac{1}{2}}", "Answer: 3"], ["0.5", "4"])
        [1.0, 0.0]
    """
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [float(_same(_final_answer(t), a)) for t, a in zip(texts, answer, strict=True)]


def _final_answer(text: str) -> str:
    start = text.rfind(r"\boxed{")
    if start < 0:
        found = re.findall(r"[Aa]nswer\s*(?::|is)\s*([^\n]+)", text)
        return found[-1] if found else ""
    depth, begin = 1, start + len(r"\boxed{")
    for end in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[begin:end]
    return ""


def _same(given: str, wanted: str) -> bool:
    a, b = _normal(given), _normal(wanted)
    if a == b:
        return bool(a)
    try:
        return Fraction(a) == Fraction(b)
    except (ValueError, ZeroDivisionError):
        return False


def _normal(answer: str) -> str:
    answer = re.sub(r"\\[dt]?frac\{(-?\d+)\}\{(-?\d+)\}", r"\1/\2", answer)
    answer = re.sub(r"\\(?:text|mathrm|mbox)\{([^}]*)\}", r"\1", answer)
    answer = re.sub(r"\\left|\\right|\\[!,;: ]|\\\$|\^\\circ|\\%|[$%\s]", "", answer)
    answer = re.sub(r"(?<=\d),(?=\d{3}\b)", "", answer)
    return answer.rstrip(".").lower()


def _problems(source: Benchmark) -> Any:
    """The benchmark as rows of `prompt` (chat) and `answer`, each problem once."""
    from datasets import Dataset, load_dataset

    path = Path(source.dataset).expanduser()
    if path.suffix in (".json", ".jsonl", ".parquet"):
        kind = "parquet" if path.suffix == ".parquet" else "json"
        rows = load_dataset(kind, data_files=str(path), split="train")
    else:
        rows = load_dataset(source.dataset, source.subset, split=source.split)
    instruction = "\nReason step by step, and put the final answer within \\boxed{}."
    problems: dict[str, str] = {}
    for row in rows:
        problems.setdefault(str(_field(row, source.question)), str(_field(row, source.answer)))
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": q + instruction}] for q in problems],
            "answer": list(problems.values()),
        }
    )


def _field(row: Any, path: str) -> Any:
    for key in path.split("."):
        row = row[int(key) if isinstance(row, Sequence) else key]
    return row


def training_arguments(config: Settings, arm: str, seed: int, output: str) -> Any:
    """The GRPOConfig of one arm: the paper's training context in TRL's terms.

    One optimiser step sees `prompts / minibatches` groups, one generation `prompts` groups. TRL keeps
    groups that are all right or all wrong, with advantage 0; the paper resamples them.
    """
    from trl import GRPOConfig

    lm = config.language_model
    assert lm is not None
    per_pass = lm.processes * lm.batch_per_process
    responses = config.prompts * config.samples
    if responses % (config.minibatches * per_pass):
        raise ValueError(
            f"prompts * samples = {responses}; must be a multiple of minibatches * processes * "
            f"batch_per_process = {config.minibatches * per_pass}"
        )
    cuda = torch.cuda.is_available()
    ratio_clip = {"clip-cov": (1.0, 1.0), "kl-cov": (1e9, 1e9), "clip-higher": (0.2, 0.28)}
    low, high = ratio_clip.get(arm, (0.2, 0.2))
    return GRPOConfig(
        output_dir=output,
        seed=seed,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        max_steps=config.rollouts * config.minibatches,
        per_device_train_batch_size=lm.batch_per_process,
        per_device_eval_batch_size=config.eval_samples,
        gradient_accumulation_steps=responses // config.minibatches // per_pass,
        steps_per_generation=responses // per_pass,
        num_generations=config.samples,
        num_generations_eval=config.eval_samples,
        max_completion_length=lm.max_completion,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        epsilon=low,
        epsilon_high=high,
        beta=0.0,
        loss_type="dapo",
        scale_rewards="group",
        entropy_coef=config.entropy_bonus if arm == "entropy-bonus" else 0.0,
        top_entropy_quantile=0.2 if arm == "top-entropy" else 1.0,
        use_vllm=lm.vllm,
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=lm.vllm_memory,
        use_cpu=not cuda,
        bf16=cuda,
        fsdp="full_shard auto_wrap" if lm.processes > 1 and cuda else None,
        logging_steps=config.minibatches * config.evaluate_every,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _train_language_model(config: Settings, arm: str, seed: int, log: Log) -> list[Row]:
    """Trains here with one process, else in as many as configured, started with torchrun."""
    lm = config.language_model
    assert lm is not None
    if arm == "random-clip":
        raise ValueError("methods: 'random-clip' is an ablation of the small model only")
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "rows.json"
        if lm.processes == 1:
            _train_in_process(config, arm, seed, output, log)
        else:
            log(0.0, f"training in {lm.processes} processes")
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += ["--nproc-per-node", str(lm.processes), "-m", __spec__.name]
            command += [config.model_dump_json(), arm, str(seed), str(output)]
            subprocess.run(command, check=True)
        rows: list[Row] = json.loads(output.read_text())
    return rows


def _train_in_process(config: Settings, arm: str, seed: int, output: Path, log: Log) -> None:
    from transformers import TrainerCallback

    from szilard.integrations.trl import ClipCovTrainer, KLCovTrainer, TokenShapedGRPOTrainer

    class Metered(TokenShapedGRPOTrainer):
        """GRPO with the covariance meter beside it."""

        def shape_advantages(
            self, logp: Tensor, entropy: Tensor, adv: Tensor, inputs: dict[str, Any]
        ) -> Tensor:
            if inputs["mask"].any():
                meter = token_covariance(logp, adv, inputs["mask"]).sum() / inputs["mask"].sum()
                self._metrics["train"]["covariance/covariance"].append(meter.item())
            return adv

    class Progress(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            log(state.global_step / state.max_steps, f"step {state.global_step}")

    lm = config.language_model
    assert lm is not None
    choices: dict[str, tuple[Any, dict[str, Any]]] = {
        "clip-cov": (ClipCovTrainer, {"ratio": config.ratio, "bounds": config.bounds}),
        "kl-cov": (KLCovTrainer, {"fraction": config.fraction, "beta": config.beta}),
    }
    kind, dose = choices.get(arm, (Metered, {}))
    trainer = kind(
        lm.model,
        math_reward,
        args=training_arguments(config, arm, seed, str(output.parent / "trainer")),
        train_dataset=_problems(lm.train),
        callbacks=[Progress()],
        **dose,
    )
    trainer.train()
    rows = _logged(trainer.state.log_history, config.minibatches)
    with _sampling_at(trainer, lm.eval_temperature):
        for benchmark in lm.benchmarks:
            score = trainer.evaluate(_problems(benchmark))["eval_reward"]
            rows.append({"metric": "accuracy", "value": score, "benchmark": benchmark.name})
    if trainer.accelerator.is_main_process:
        output.write_text(json.dumps(rows))


def _logged(history: Sequence[Mapping[str, Any]], minibatches: int) -> list[Row]:
    """TRL's log as the small model's rows: one step a rollout, training reward and entropy."""
    return [
        {
            "metric": key.removeprefix("covariance/"),
            "value": float(value),
            "step": entry["step"] // minibatches,
        }
        for entry in history
        for key, value in entry.items()
        if key in ("reward", "entropy") or key.startswith("covariance/")
    ]


@contextmanager
def _sampling_at(trainer: Any, temperature: float) -> Iterator[None]:
    """Lets a TRL trainer generate at another temperature than it was trained with."""
    sampler = trainer.vllm_generation if trainer.use_vllm else trainer.generation_config
    before, sampler.temperature = sampler.temperature, temperature
    try:
        yield
    finally:
        sampler.temperature = before


# --- what was measured ----------------------------------------------------------------------------


def _law_rows(rows: Sequence[Row]) -> list[Row]:
    curve = {
        name: {row["step"]: row["value"] for row in rows if row["metric"] == name}
        for name in ("entropy", "reward")
    }
    entropy = np.array(list(curve["entropy"].values()))
    if len(entropy) < 8 or np.ptp(entropy) == 0:  # too few points to fit a law on
        return []
    law = EntropyLaw().fit(entropy, np.array([curve["reward"][step] for step in curve["entropy"]]))
    fitted = {"a": law.a_, "b": law.b_, "ceiling": law.ceiling_, "r2": law.r2_, "rmse": law.rmse_}
    return [{"metric": f"law_{key}", "value": value} for key, value in fitted.items()]


def _curves(table: pd.DataFrame, arm: str, seed: int) -> pd.DataFrame:
    """Evaluations of one run: a row a step, a column a metric."""
    of_run = table[(table["arm"] == arm) & (table["seed"] == seed) & table["step"].notna()]
    wide = of_run.pivot(index="step", columns="metric", values="value").sort_index()
    return wide[wide["reward"].notna()]


def at_reward(reward: Sequence[float], values: Sequence[float], target: float) -> float:
    """`values` where a run first reaches `target` reward, interpolated between evaluations.

    Examples:
        >>> round(at_reward([0.2, 0.6, 0.8], [1.0, 0.6, 0.2], 0.7), 12)
        0.4
    """
    first = next(i for i, r in enumerate(reward) if r >= target)
    if first == 0:
        return float(values[0])
    share = (target - reward[first - 1]) / (reward[first] - reward[first - 1])
    return float(values[first - 1] + share * (values[first] - values[first - 1]))


def matched(table: pd.DataFrame, arm: str, metric: str) -> list[tuple[float, float, float]]:
    """(reward, arm's value, GRPO's value) at the highest reward that both reach, one a seed."""
    points = []
    for seed in sorted(table["seed"].unique()):
        ours, theirs = (_curves(table, name, seed) for name in (arm, BASELINE))
        target = min(ours["reward"].max(), theirs["reward"].max())
        own, base = (at_reward(list(c["reward"]), list(c[metric]), target) for c in (ours, theirs))
        points.append((float(target), own, base))
    return points


def _claims(config: Settings, table: pd.DataFrame) -> list[Claim]:
    from szilard.lab.statistics import mean_interval, paired_difference

    small = config.language_model is None
    seeds = sorted(table["seed"].unique())
    scaled = (
        f"Doses scaled to short traces: ratio {config.ratio:g}, bounds {config.bounds}; fraction "
        f"{config.fraction:g}, beta {config.beta:g} (paper: {PAPER_DOSES})."
        if small
        else f"Doses: the paper's ({PAPER_DOSES})."
    )
    grpo = [_curves(table, BASELINE, seed) for seed in seeds]
    lost = [1 - c["entropy"].iloc[-1] / c["entropy"].iloc[0] for c in grpo]
    meter = "covariance_positive" if small else "covariance"
    updates = table[(table["arm"] == BASELINE) & (table["metric"] == meter)]
    positive = updates.assign(value=updates["value"] if small else updates["value"] > 0)
    share = positive.groupby("seed")["value"].mean().to_numpy(dtype=float)
    claims = [
        Claim.judge(
            "Without intervention the policy's entropy collapses.",
            paper="the first 800 of 2400 gradient steps use 94 % of the entropy (mean of 11 models)",
            measured=mean_interval(lost),
            quantity=f"share of the entropy GRPO has lost after {config.rollouts} rollouts",
            above=0.5,
        ),
    ]
    about_meter: dict[str, Any] = {
        "statement": "The covariance of log-probability and advantage is positive, so entropy falls.",
        "paper": "stays positive throughout training",
        "quantity": "share of GRPO's updates with positive covariance",
    }
    claims.append(
        Claim.judge(**about_meter, measured=mean_interval(share), above=0.8)
        if len(share)
        else Claim.not_measurable(**about_meter, note="No group had both right and wrong answers.")
    )
    thresholds = {
        "clip-cov": {"orders": 2.0, "entropy": 0.03},
        "kl-cov": {"orders": 0.7, "entropy": 0.015},
    }
    published = {
        "clip-cov": "above the baseline's; no figure at hand",
        "kl-cov": "plateau entropy over 10 times the baseline's at 32B",
    }
    units = {"orders": f"distinct orders among {config.eval_samples}", "entropy": "entropy (nats)"}
    metrics = ("orders", "entropy") if small else ("entropy",)

    def difference(arm: str, metric: str) -> Interval:
        ours, theirs = zip(*((a, b) for _, a, b in matched(table, arm, metric)), strict=True)
        return paired_difference(ours, theirs)

    for arm in [a for a in thresholds if a in config.methods]:
        title = {"clip-cov": "Clip-Cov", "kl-cov": "KL-Cov"}[arm]
        claims += [
            Claim.judge(
                f"At equal reward {title} keeps more {'diversity' if metric == 'orders' else metric}.",
                paper=published[arm],
                measured=difference(arm, metric),
                quantity=f"{units[metric]}, {title} - GRPO at the highest reward both reach",
                above=thresholds[arm][metric],
                note=scaled,
            )
            for metric in metrics
        ]
    if "random-clip" in config.methods:
        claims += [
            Claim.judge(
                "Removing as many tokens at random keeps nothing: it is the choice that counts.",
                paper="(ablation that must lose)",
                measured=difference("random-clip", metric),
                quantity=f"{units[metric]}, random clip - GRPO at the highest reward both reach",
                below=thresholds["kl-cov"][metric],
                note="Removes exactly as many tokens as Clip-Cov would at the same update.",
            )
            for metric in metrics
        ]
    claims.append(_law_claim(table))
    claims.append(_benchmark_claim(config, table))
    return claims


def _law_claim(table: pd.DataFrame) -> Claim:
    statement = "Reward is paid for with entropy, R = -a e^H + b, whatever the algorithm."
    paper = "tight fit over 11 models, more than 200 points"
    quantity = "smallest R^2 over arms and seeds"
    fits = table[table["metric"] == "law_r2"]["value"]
    if fits.empty:
        note = "Fewer than 8 evaluations a run; the quick preset has 11."
        return Claim.not_measurable(statement, paper=paper, quantity=quantity, note=note)
    ceilings = table[table["metric"] == "law_ceiling"]["value"]
    return Claim.judge(
        statement,
        paper=paper,
        measured=Interval.exact(fits.min()),
        quantity=quantity,
        above=0.9,
        note=f"Ceilings b - a range from {ceilings.min():.2f} to {ceilings.max():.2f}; one above 1 is no "
        "bound: entropy over equally good answers need not be paid for with reward.",
    )


def _benchmark_claim(config: Settings, table: pd.DataFrame) -> Claim:
    from szilard.lab.statistics import paired_difference

    statement = "Kept entropy trains better models: KL-Cov beats GRPO on mathematics."
    paper = "+2.0 % (7B) and +6.4 % (32B) on average over seven benchmarks"
    quantity = "mean accuracy over benchmarks, KL-Cov - GRPO"
    scores = table[table["metric"] == "accuracy"]
    if scores.empty or "kl-cov" not in config.methods:
        note = "Needs a language model and its benchmarks: the paper preset."
        return Claim.not_measurable(statement, paper=paper, quantity=quantity, note=note)
    by = scores.pivot(index=["seed", "benchmark"], columns="arm", values="value")
    return Claim.judge(
        statement,
        paper=paper,
        measured=paired_difference(by["kl-cov"], by[BASELINE]),
        quantity=quantity,
        above=0.0,
        note="Pairs are benchmarks; six of the paper's seven, without OMNI-MATH.",
    )


def _figures(config: Settings, table: pd.DataFrame) -> list[Figure]:
    import plotly.graph_objects as go

    from szilard.lab.figures import color

    seeds = sorted(table["seed"].unique())
    arms = list(config.methods)
    small = config.language_model is None
    reward_title = "reward (share of right answers)"
    entropy_title = "token entropy (nats)"

    def lines(x: str, y: str, x_title: str, y_title: str, law: bool = False) -> go.Figure:
        plot = go.Figure()
        for i, arm in enumerate(arms):
            runs = [_curves(table, arm, seed) for seed in seeds]
            mean = sum(run.reset_index()[[x, y]] for run in runs) / len(runs)
            style = {"color": color(i), "width": 3 if arm in arms[:3] else 1.5}
            plot.add_scatter(
                x=mean[x], y=mean[y], name=arm, mode="lines+markers", line=style, legendgroup=arm
            )
            if law and len(mean) >= 8 and arm in arms[:3]:
                fit = EntropyLaw().fit(mean[x].to_numpy(), mean[y].to_numpy())
                grid = np.linspace(0.0, mean[x].max(), 60)
                dashed = {"color": color(i), "width": 1, "dash": "dash"}
                plot.add_scatter(
                    x=grid,
                    y=fit.predict(grid),
                    mode="lines",
                    line=dashed,
                    legendgroup=arm,
                    showlegend=False,
                    name=f"{arm}: law",
                )
        return plot.update_layout(xaxis_title=x_title, yaxis_title=y_title)

    figures = [
        Figure(
            "What reward costs in entropy",
            "Each line is an arm's path through training, from the right to the left (mean over "
            "seeds); higher at the same entropy, or further right at the same reward, is better. Dashed: the "
            "fitted law R = -a e^H + b, which runs to its ceiling at H = 0.",
            lines("entropy", "reward", entropy_title, reward_title, law=True),
        ),
        Figure(
            "Entropy during training",
            "Mean token entropy at each evaluation (mean over seeds).",
            lines("step", "entropy", "rollout", entropy_title),
        ),
        Figure(
            "Reward during training",
            "A method that keeps entropy may also learn more slowly: compare at equal reward, not at "
            "equal rollouts.",
            lines("step", "reward", "rollout", reward_title),
        ),
    ]
    if small:
        bars = go.Figure()
        others = [arm for arm in arms if arm != BASELINE]
        gains = {arm: [a - b for _, a, b in matched(table, arm, "orders")] for arm in others}
        for arm in others:
            colour = color(arms.index(arm))
            bars.add_bar(x=[arm], y=[np.mean(gains[arm])], name=arm, marker_color=colour)
        bars.add_scatter(
            x=[arm for arm in others for _ in gains[arm]],
            y=[gain for arm in others for gain in gains[arm]],
            mode="markers",
            marker={"color": "gray", "symbol": "line-ew-open", "size": 14},
            name="seeds",
        )
        bars.update_layout(
            xaxis_title="arm", yaxis_title=f"distinct orders of {config.eval_samples}, arm - GRPO"
        )
        figures.insert(
            1,
            Figure(
                "Diversity at equal reward",
                "Distinct orders among the responses to one held-out prompt, against GRPO at the highest "
                "reward both reach. Bars: mean; dashes: seeds. Random clipping removes as many tokens "
                "as Clip-Cov.",
                bars,
            ),
        )
    meter = go.Figure()
    for i, arm in enumerate(arms):
        values = table[(table["arm"] == arm) & (table["metric"] == "covariance")]
        smooth = (
            values.groupby("step")["value"].mean().rolling(5, min_periods=1, center=True).mean()
        )
        meter.add_scatter(
            x=smooth.index, y=smooth, name=arm, mode="lines", line={"color": color(i)}
        )
    meter.update_layout(
        xaxis_title="rollout", yaxis_title="mean token covariance (nats × advantage)"
    )
    figures.append(
        Figure(
            "The covariance meter",
            "Covariance of advantage and log-probability over a mini-batch's tokens: above zero, the "
            "next step lowers entropy (running mean of five rollouts, over seeds).",
            meter,
        )
    )
    quadrants = go.Figure()
    for name in QUADRANTS:
        shares = table[table["metric"] == f"selected_in/{name}"].groupby("arm")["value"].mean()
        chosen = [arm for arm in ("clip-cov", "kl-cov") if arm in shares.index]
        label = name.replace("_", " token, ") + " response"
        quadrants.add_bar(x=chosen, y=[shares[arm] for arm in chosen], name=label)
    quadrants.update_layout(
        barmode="stack", xaxis_title="arm", yaxis_title="share of the selected tokens"
    )
    figures.append(
        Figure(
            "Which tokens are restrained",
            "Positive covariance has two sources: likely tokens of good responses and unlikely tokens of "
            "bad ones (against the batch's means).",
            quadrants,
        )
    )
    return figures


experiment = ClipCovKLCov()


if __name__ == "__main__":
    _config, _arm, _seed, _output = sys.argv[1:]
    _train_in_process(
        Settings.model_validate_json(_config), _arm, int(_seed), Path(_output), lambda *_: None
    )
