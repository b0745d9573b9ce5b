"""Locally typical sampling against other decoding rules: exact on Zipf rows, and on written text.

Part A needs no model: 64 next-token distributions of known shape, every expectation in closed form.
Part B lets a language model continue story openings under each rule and measures what comes out:
repetition, diversity, perplexity, and how far each token lies from the conditional entropy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from szilard._extras import require
from szilard.lab.experiment import Claim, ExperimentConfig, Figure, Interval, Log, Preset, Row
from szilard.lab.figures import color
from szilard.lab.statistics import mean_interval, paired_difference

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_RULE = re.compile(r"(ancestral|greedy)|(typical|nucleus|top-k|temperature|eta|min-p)-(\d*\.?\d+)")
_TINY = "tiny"
_EMBEDDED = "gemma3-270m"

OPENINGS = (
    "The lighthouse had been dark for eleven years when the letter arrived, and",
    "Nobody in the valley would say who had built the second bridge, but",
    "On the morning of her hundredth birthday, Agnes decided that",
    "The train stopped between two stations, and after an hour the conductor came through and said",
    "My brother collected maps of places that did not exist. One winter evening",
    "It was the third time that week that the piano had played by itself, so",
    "When the river finally froze, the children of the lower town",
    "The old astronomer looked away from the eyepiece and whispered that",
)


def parse_rule(rule: str) -> tuple[str, float]:
    """The kind of a decoding rule and its value.

    Raises:
        ValueError: no such rule, or a value out of its range.

    Examples:
        >>> parse_rule("typical-0.2"), parse_rule("greedy")
        (('typical', 0.2), ('greedy', 0.0))
    """
    match = _RULE.fullmatch(rule)
    if match is None:
        raise ValueError(
            f"{rule!r} must be ancestral, greedy, or typical-, nucleus-, top-k-, temperature-, "
            f"eta- or min-p- and a number"
        )
    if match[1]:
        return match[1], 0.0
    kind, value = match[2], float(match[3])
    if kind == "top-k":
        legal, what = value >= 1 and value.is_integer(), "an integer of at least 1"
    elif kind == "temperature":
        legal, what = value > 0, "positive"
    else:
        legal, what = 0 < value < 1, "in (0, 1)"
    if not legal:
        raise ValueError(f"{rule!r}: the value of {kind} must be {what}")
    return kind, value


class Source(BaseModel):
    """What is continued, and by which model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "stories"
    model: str = _EMBEDDED
    """"gemma3-270m", "tiny", or a Hugging Face id or folder."""
    architecture: Literal["causal", "seq2seq"] = "causal"
    dataset: str = ""
    """Hugging Face id; empty for the openings of the configuration."""
    subset: str = ""
    split: str = "test"
    prompt_column: str = "prompt"
    reference_column: str = "story"
    prompts: int = Field(default=len(OPENINGS), ge=1)
    prompt_tokens: int = Field(default=256, ge=1)
    finetune_steps: int = Field(default=0, ge=0)
    """Steps of fine-tuning on the data set's train split, 0 to take the model as it is."""
    finetune_tokens: int = Field(default=512, ge=2)
    finetune_batch: int = Field(default=16, ge=1)
    finetune_lr: float = Field(default=5e-5, gt=0)


class TypicalConfig(ExperimentConfig):
    rules: tuple[str, ...] = Field(
        default=(
            "typical-0.2",
            "typical-0.95",
            "nucleus-0.9",
            "nucleus-0.95",
            "top-k-30",
            "ancestral",
            "greedy",
        ),
        min_length=2,
        description=(
            "decoding rules: ancestral, greedy, or typical-, nucleus-, top-k-, temperature-, eta- "
            "or min-p- and a value"
        ),
    )
    sources: tuple[Source, ...] = Field(
        default=(Source(),), description="models and prompts of part B"
    )
    openings: tuple[str, ...] = Field(
        default=OPENINGS, min_length=1, description="story openings of a source without a data set"
    )
    new_tokens: int = Field(default=80, ge=2, description="longest continuation, tokens")
    batch_size: int = Field(default=8, ge=1, description="prompts in one left-padded batch")
    zipf_rows: int = Field(default=64, ge=2, description="distributions of part A")
    zipf_vocabulary: int = Field(default=512, ge=64, description="tokens of each of them")
    device: str = Field(default="auto", description='"auto", "cpu", "cuda", ...')
    mauve: bool = Field(default=False, description="MAUVE against the references (mauve-text)")

    @field_validator("rules")
    @classmethod
    def _known_rules(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        for rule in rules:
            parse_rule(rule)
        return rules


class TypicalExperiment:
    """Locally Typical Sampling (Meister et al., TACL 2023)."""

    Config = TypicalConfig
    presets: ClassVar[Mapping[Preset, TypicalConfig]] = {
        "smoke": TypicalConfig(
            seeds=2,
            rules=("typical-0.2", "nucleus-0.9", "top-k-30", "greedy"),
            sources=(Source(model=_TINY, prompts=3),),
            new_tokens=8,
            zipf_rows=8,
            zipf_vocabulary=128,
        ),
        "quick": TypicalConfig(seeds=2),
        "paper": TypicalConfig(
            seeds=3,
            rules=(
                *TypicalConfig().rules,
                "top-k-40",
                "temperature-0.5",
                "eta-0.0009",
                "min-p-0.1",
            ),
            sources=(
                *(
                    Source(
                        name=f"WritingPrompts, {model}",
                        model=f"openai-community/{model}",
                        dataset="euclaise/writingprompts",
                        prompts=1000,
                        finetune_steps=10_000,
                    )
                    for model in ("gpt2-medium", "gpt2-large")
                ),
                Source(
                    name="CNN/DailyMail, bart-large-cnn",
                    model="facebook/bart-large-cnn",
                    architecture="seq2seq",
                    dataset="abisee/cnn_dailymail",
                    subset="3.0.0",
                    prompt_column="article",
                    reference_column="highlights",
                    prompts=1000,
                    prompt_tokens=1024,
                ),
            ),
            new_tokens=256,
            batch_size=32,
            mauve=True,
        ),
    }

    def arms(self, config: TypicalConfig) -> Sequence[str]:
        return list(config.rules)

    def run(self, config: TypicalConfig, arm: str, seed: int, log: Log) -> Sequence[Row]:
        log(0.0, "exact expectations")
        rows = zipf_rows(arm, config.zipf_rows, config.zipf_vocabulary)
        # Greedy decoding does not depend on the seed: it writes its texts once.
        if arm == "greedy" and seed > 0:
            return rows
        for i, source in enumerate(config.sources):

            def log_source(fraction: float, message: str, i: int = i) -> None:
                log((i + fraction) / len(config.sources), message)

            rows += _written(config, source, arm, seed, log_source)
        return rows

    def claims(self, config: TypicalConfig, table: pd.DataFrame) -> Sequence[Claim]:
        claims = _exact_claims(table)
        texts = table[table.metric == "repetition"]
        names = _sources(texts)
        for name in names:
            suffix = f" ({name})" if len(names) > 1 else ""
            claims += _text_claims(table[table.source == name], suffix)
        return claims

    def figures(self, config: TypicalConfig, table: pd.DataFrame) -> Sequence[Figure]:
        arms = [arm for arm in config.rules if arm in set(table.arm)]
        figures = []
        texts = table[table.metric == "repetition"]
        names = _sources(texts)
        for name in names:
            suffix = f" ({name})" if len(names) > 1 else ""
            mine = table[table.source == name]
            figures += [
                _repetition_against_perplexity(mine, arms, suffix),
                _deviation_by_rule(mine, arms, suffix),
                _surprisal_against_entropy(mine, arms, suffix),
            ]
            if not next(source for source in config.sources if source.name == name).dataset:
                figures.append(_continuations(mine, arms, config.openings))
        return [*figures, _kept_band(config), _exact_deviation(table, arms)]


def _sources(texts: pd.DataFrame) -> list[str]:
    """Names of the sources that were written from; none where every such unit failed."""
    return list(texts.source.unique()) if len(texts) else []


# Rules --------------------------------------------------------------------------------------------


def processors(rule: str) -> list[Any]:
    """The logits processors that make a decoding rule of plain sampling."""
    kind, value = parse_rule(rule)
    transformers = require("transformers", "language")
    if kind == "ancestral":
        return []
    if kind == "greedy":
        return [transformers.TopKLogitsWarper(1)]
    if kind == "typical":
        from szilard.decoding import TypicalLogitsProcessor

        return [TypicalLogitsProcessor(value)]
    if kind == "top-k":
        return [transformers.TopKLogitsWarper(int(value))]
    warper = {
        "nucleus": transformers.TopPLogitsWarper,
        "temperature": transformers.TemperatureLogitsWarper,
        "eta": transformers.EtaLogitsWarper,
        "min-p": transformers.MinPLogitsWarper,
    }[kind]
    return [warper(value)]


def zipf_rows(rule: str, rows: int, vocabulary: int) -> list[Row]:
    """Part A: expectations over q_i ~ i^-a, a = 0.6 .. 1.8, under the rule's renormalised row.

    Epsilon is taken with respect to the original row; every figure is a mean over rows, in nats.
    """
    exponent = torch.linspace(0.6, 1.8, rows, dtype=torch.float64)[:, None]
    rank = torch.arange(1, vocabulary + 1, dtype=torch.float64)
    logq = (-exponent * rank.log()).log_softmax(dim=-1)
    q = logq.exp()
    epsilon = -logq - torch.special.entr(q).sum(dim=-1, keepdim=True)
    scores = logq
    for processor in processors(rule):
        scores = processor(torch.zeros(rows, 1, dtype=torch.long), scores)
    kept = scores.isfinite()
    p = scores.softmax(dim=-1)
    measured = {
        "exact mean |epsilon|": (p * epsilon.abs()).sum(dim=-1),
        "exact mean epsilon": (p * epsilon).sum(dim=-1),
        "exact kept mass": (q * kept).sum(dim=-1),
        "exact mode kept": kept[:, 0].double(),
    }
    return [{"metric": name, "value": float(value.mean())} for name, value in measured.items()]


# Texts --------------------------------------------------------------------------------------------


def _written(config: TypicalConfig, source: Source, rule: str, seed: int, log: Log) -> list[Row]:
    from szilard.decoding import local_typicality
    from szilard.measures.repetition import ngram_diversity, repetition, zipf_coefficient

    log(0.0, f"loading {source.model}")
    model, tokenizer = _load(config, source)
    prompts, references = _prompts(config, source)
    batches = [
        prompts[i : i + config.batch_size] for i in range(0, len(prompts), config.batch_size)
    ]
    rows: list[Row] = []
    texts: list[str] = []
    pooled: list[np.ndarray] = []
    cuda = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.inference_mode():
        torch.manual_seed(seed)
        for b, batch in enumerate(batches):

            def log_step(step: int, b: int = b) -> None:
                done = (b + step / config.new_tokens) / len(batches)
                log(done, f"writing, token {step} of {config.new_tokens}")

            tokens, logits = _generate(config, source, model, tokenizer, batch, rule, log_step)
            counts = _up_to_the_end(tokens, model.generation_config.eos_token_id)
            steps = [
                local_typicality(step[:, None], tokens[:, [t]], counts[:, [t]])
                for t, step in enumerate(logits)
            ]
            del logits
            surprisal = torch.cat([step.surprisal for step in steps], dim=1).cpu().numpy()
            entropy = torch.cat([step.entropy for step in steps], dim=1).cpu().numpy()
            ids, mask = tokens.cpu().numpy(), counts.cpu().numpy()
            texts += [
                tokenizer.decode(row[keep], skip_special_tokens=True)
                for row, keep in zip(ids, mask, strict=True)
            ]
            pooled += [row[keep] for row, keep in zip(ids, mask, strict=True)]
            epsilon = surprisal - entropy
            by_text = {
                "repetition": repetition(ids, mask=mask),
                "diversity": ngram_diversity(ids, mask=mask),
                "surprisal": _masked_mean(surprisal, mask),
                "mean |epsilon|": _masked_mean(np.abs(epsilon), mask),
                "mean epsilon": _masked_mean(epsilon, mask),
                "length": mask.sum(axis=1),
            }
            for r in range(len(batch)):
                prompt = b * config.batch_size + r
                own = {"source": source.name, "prompt": prompt}
                rows += [{"metric": m, "value": float(v[r]), **own} for m, v in by_text.items()]
                text = texts[-len(batch) + r]
                rows.append({"metric": "characters", "value": len(text), **own, "text": text})
                if prompt < config.batch_size:
                    rows += [
                        {"metric": "epsilon", "value": float(epsilon[r, t]), **own}
                        | {"position": t, "entropy": float(entropy[r, t])}
                        for t in np.flatnonzero(mask[r])
                    ]
    distinct = len(np.unique(np.concatenate(pooled)))
    if distinct > 1:
        zipf = zipf_coefficient(np.concatenate(pooled))
        rows.append({"metric": "zipf coefficient", "value": zipf, "source": source.name})
    if config.mauve and references:
        log(1.0, "MAUVE")
        rows.append({"metric": "mauve", "value": _mauve(references, texts), "source": source.name})
    return rows


def _generate(
    config: TypicalConfig,
    source: Source,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    rule: str,
    log_step: Any,
) -> tuple[Tensor, Sequence[Tensor]]:
    """Tokens written after the prompts, and the model's own logits at each step, untruncated."""
    from transformers import LogitsProcessorList

    def progress(input_ids: Tensor, scores: Tensor) -> Tensor:
        progress.step += 1  # type: ignore[attr-defined]
        log_step(progress.step)  # type: ignore[attr-defined]
        return scores

    progress.step = 0  # type: ignore[attr-defined]
    encoded = tokenizer(
        list(prompts),
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=source.prompt_tokens,
        return_token_type_ids=False,
    ).to(model.device)
    # Everything else that could reshape the distribution is off, whatever the model's own
    # generation settings say.
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if rule != "greedy" else {}
    out = model.generate(
        **encoded,
        **plain,
        do_sample=rule != "greedy",
        num_beams=1,
        no_repeat_ngram_size=0,
        min_length=0,
        max_new_tokens=config.new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        logits_processor=LogitsProcessorList([progress, *processors(rule)]),
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.sequences[:, -len(out.logits) :], out.logits


def _up_to_the_end(tokens: Tensor, eos: int | list[int] | None) -> Tensor:
    """True up to and including each text's first end-of-sequence token."""
    ends = torch.tensor([] if eos is None else eos, dtype=torch.long, device=tokens.device)
    ended = torch.isin(tokens, ends.reshape(-1))
    return ended.cumsum(dim=1) - ended.long() == 0


def _masked_mean(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask, values, 0).sum(axis=1) / mask.sum(axis=1)


# One model is kept: a process has many units of the same one.
@lru_cache(maxsize=1)
def _load(config: TypicalConfig, source: Source) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from szilard.zoo.cache import cached
    from szilard.zoo.language import (
        character_tokenizer,
        load_language_model,
        tiny_language_model,
        train_language_model,
    )

    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if source.model == _TINY:
        tokenizer: Any = character_tokenizer("".join(sorted(set("".join(config.openings)))))
        model: Any = tiny_language_model(vocab=tokenizer, hidden=32, layers=1)
        return model.to(device), tokenizer
    if source.architecture == "seq2seq":
        transformers = require("transformers", "language")
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.model)
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
            source.model, use_safetensors=True
        )
        return model.to(device).eval(), tokenizer
    name = source.model
    if source.finetune_steps:

        def build(folder: Any) -> None:
            base, words = load_language_model(source.model, device=device)
            words.pad_token = words.pad_token or words.eos_token
            train_language_model(
                base,
                words,
                _training_texts(source, words),
                steps=source.finetune_steps,
                batch_size=source.finetune_batch,
                lr=source.finetune_lr,
            )
            base.save_pretrained(folder)
            words.save_pretrained(folder)

        name = str(cached("typical-sampling", source.model_dump(exclude={"prompts"}), build))
    model, tokenizer = load_language_model(name, device=device)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    return model, tokenizer


def _prompts(config: TypicalConfig, source: Source) -> tuple[Sequence[str], Sequence[str]]:
    """Prompts, and the references people wrote for them where there are any."""
    if not source.dataset:
        return config.openings[: source.prompts], ()
    data = _dataset(source, source.split).select(range(source.prompts))
    return list(data[source.prompt_column]), list(data[source.reference_column])


def _training_texts(source: Source, tokenizer: PreTrainedTokenizerBase) -> Sequence[str]:
    needed = source.finetune_steps * source.finetune_batch
    data = _dataset(source, "train").shuffle(seed=0)
    texts = []
    for row in data.select(range(min(needed, len(data)))):
        text = f"{row[source.prompt_column]}\n{row[source.reference_column]}"
        ids = tokenizer(text, truncation=True, max_length=source.finetune_tokens)["input_ids"]
        texts.append(tokenizer.decode(ids, skip_special_tokens=True))
    return texts


def _dataset(source: Source, split: str) -> Any:
    datasets = require("datasets", "language")
    return datasets.load_dataset(source.dataset, source.subset or None, split=split)


def _mauve(references: Sequence[str], texts: Sequence[str]) -> float:
    mauve = require("mauve", "mauve")
    device = 0 if torch.cuda.is_available() else -1
    found = mauve.compute_mauve(
        p_text=list(references), q_text=list(texts), device_id=device, verbose=False
    )
    return float(found.mauve)


# Claims -------------------------------------------------------------------------------------------


def _exact(table: pd.DataFrame, metric: str) -> dict[str, float]:
    rows = table[table.metric == metric]
    return rows.groupby("arm").value.first().to_dict()


def _samples(arm: str) -> bool:
    return arm != "greedy"


def _exact_claims(table: pd.DataFrame) -> list[Claim]:
    size = _exact(table, "exact mean |epsilon|")
    drift = _exact(table, "exact mean epsilon")
    others = [arm for arm in size if not arm.startswith("typical")]
    claims = []
    if "typical-0.2" in size and others:
        closest = min(others, key=lambda arm: size[arm])
        claims.append(
            Claim.judge(
                "Typical sampling keeps tokens near the conditional entropy: at mass 0.2 they "
                "deviate from it at least three times less than under any other rule.",
                paper="by construction; no figure",
                measured=Interval.exact(size[closest] / size["typical-0.2"]),
                quantity=f"E|eps| of {closest}, the closest, over that of typical-0.2, Zipf rows",
                above=3,
                note="Exact expectations, no sampling.",
            )
        )
    if {"typical-0.2", "nucleus-0.9"} <= set(drift):
        claims.append(
            Claim.judge(
                "It does so without the drift below the entropy that truncating the tail brings.",
                paper="direction only",
                measured=Interval.exact(abs(drift["nucleus-0.9"] / drift["typical-0.2"])),
                quantity="|E eps| of nucleus-0.9 over that of typical-0.2, Zipf rows",
                above=4,
                note="Exact expectations, no sampling.",
            )
        )
    return claims


def _by_text(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row a (prompt, seed), one column a rule; greedy's one text stands for every seed."""
    wide = table[table.metric == metric].pivot(
        index=["prompt", "seed"], columns="arm", values="value"
    )
    if "greedy" in wide:
        wide["greedy"] = wide.groupby(level="prompt")["greedy"].transform("first")
    return wide


def _difference(wide: pd.DataFrame, first: str, second: str, factor: float = 1.0) -> Interval:
    """Paired on prompt and seed; prompts are resampled, since texts from one prompt are alike."""
    pairs = wide[[first, second]].dropna()
    prompts = pairs.index.get_level_values("prompt")
    return paired_difference(pairs[first], factor * pairs[second], groups=prompts)


def _text_claims(table: pd.DataFrame, suffix: str) -> list[Claim]:
    rep, deviation = _by_text(table, "repetition"), _by_text(table, "mean |epsilon|")
    claims: list[Claim] = []
    if "typical-0.2" not in rep:
        return claims
    if "greedy" in rep:
        claims.append(
            Claim.judge(
                f"Typical sampling avoids the loops of greedy decoding{suffix}.",
                paper="direction only",
                measured=_difference(rep, "greedy", "typical-0.2"),
                quantity="REP(greedy) - REP(typical-0.2)",
                above=0.2,
            )
        )
    if "top-k-30" in rep:
        claims.append(
            Claim.judge(
                f"Typical sampling repeats itself less than top-k sampling{suffix}.",
                paper="consistently fewer degenerate repetitions",
                measured=_difference(rep, "typical-0.2", "top-k-30"),
                quantity="REP(typical-0.2) - REP(top-k-30)",
                below=0,
            )
        )
    if "nucleus-0.9" in rep:
        claims.append(
            Claim.judge(
                f"It repeats itself no more than nucleus sampling{suffix}.",
                paper="consistently fewer degenerate repetitions",
                measured=_difference(rep, "typical-0.2", "nucleus-0.9"),
                quantity="REP(typical-0.2) - REP(nucleus-0.9)",
                below=0.02,
            )
        )
    others = [arm for arm in deviation if _samples(arm) and not arm.startswith("typical-0.2")]
    if others:
        closest = min(others, key=lambda arm: deviation[arm].mean())
        claims.append(
            Claim.judge(
                f"Its tokens lie less than half as far from the entropy as those of any other "
                f"sampling rule{suffix}.",
                paper="by construction; no figure",
                measured=_difference(deviation, "typical-0.2", closest, 0.5),
                quantity=f"mean |eps| of typical-0.2 minus half that of {closest}, nats",
                below=0,
            )
        )
    return [*claims, _quality(table, suffix)]


def _quality(table: pd.DataFrame, suffix: str) -> Claim:
    statement = f"Quality is on a par with nucleus and top-k sampling{suffix}."
    paper = "competitive in human ratings and MAUVE"
    quantity = "MAUVE of the better typical rule minus that of the better baseline"
    rows = table[table.metric == "mauve"]
    wide = rows.pivot(index="seed", columns="arm", values="value")
    ours = [arm for arm in wide if arm.startswith("typical")]
    theirs = [arm for arm in wide if arm.startswith(("nucleus", "top-k"))]
    if not ours or not theirs:
        return Claim.not_measurable(
            statement,
            paper=paper,
            quantity=quantity,
            note="Needs references and thousands of texts: the paper preset measures MAUVE.",
        )
    best, rival = (max(group, key=lambda arm: wide[arm].mean()) for group in (ours, theirs))
    return Claim.judge(
        statement,
        paper=paper,
        measured=paired_difference(wide[best], wide[rival]),
        quantity=f"MAUVE({best}) - MAUVE({rival})",
        above=-0.02,
        note="No human ratings.",
    )


# Figures ------------------------------------------------------------------------------------------


def _interval(wide: pd.DataFrame, arm: str) -> Interval:
    values = wide[arm].dropna()
    return mean_interval(values, groups=values.index.get_level_values("prompt"))


def _repetition_against_perplexity(table: pd.DataFrame, arms: Sequence[str], suffix: str) -> Figure:
    import plotly.graph_objects as go

    rep, surprisal = _by_text(table, "repetition"), _by_text(table, "surprisal")
    plot = go.Figure()
    for arm in (arm for arm in arms if arm in rep):
        y, x = _interval(rep, arm), _interval(surprisal, arm)
        low, value, high = np.exp([x.low, x.value, x.high])
        typical = arm.startswith("typical")
        plot.add_scatter(
            x=[value],
            y=[y.value],
            error_x={"array": [high - value], "arrayminus": [value - low], "thickness": 1.2},
            error_y={
                "array": [y.high - y.value],
                "arrayminus": [y.value - y.low],
                "thickness": 1.2,
            },
            mode="markers",
            marker={
                "size": 15 if typical else 10,
                "symbol": "diamond" if typical else "circle",
                "color": color(arms.index(arm)),
            },
            name=arm,
            hovertemplate=f"{arm}<br>REP %{{y:.3f}}<br>perplexity %{{x:.2f}}<extra></extra>",
        )
    plot.update_xaxes(
        title="self-perplexity of the text (log scale)",
        type="log",
        tickvals=[1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 200, 500, 1000],
    )
    plot.update_yaxes(title="REP: share of tokens that repeat", rangemode="tozero")
    return Figure(
        f"Repetition against perplexity{suffix}",
        "Each rule's texts: how often a token already stood among the 16, 32 or 128 before it, "
        "against the model's own perplexity of the text. Low and left is what one wants; the two "
        "trade off. Bars are 95 % bootstrap intervals over openings.",
        plot,
    )


def _deviation_by_rule(table: pd.DataFrame, arms: Sequence[str], suffix: str) -> Figure:
    import plotly.graph_objects as go

    tokens = table[table.metric == "epsilon"]
    plot = go.Figure()
    for arm in arms:
        values = tokens[tokens.arm == arm].value
        if len(values):
            plot.add_violin(
                y=values,
                name=arm,
                line_color=color(arms.index(arm)),
                box_visible=True,
                meanline_visible=True,
                points=False,
                spanmode="hard",
                scalemode="width",
            )
    plot.update_yaxes(title="epsilon: surprisal minus entropy (nats)")
    plot.update_xaxes(title="decoding rule")
    plot.update_layout(showlegend=False)
    return Figure(
        f"How far tokens lie from the entropy{suffix}",
        "Surprisal minus conditional entropy of every token written, under the untruncated "
        "distribution. Locally typical sampling at mass 0.2 holds it near zero; every other rule "
        "lets it range over several nats, and greedy decoding stays below.",
        plot,
    )


def _surprisal_against_entropy(table: pd.DataFrame, arms: Sequence[str], suffix: str) -> Figure:
    from plotly.subplots import make_subplots

    tokens = table[table.metric == "epsilon"]
    shown = [a for a in ("typical-0.2", "nucleus-0.9", "ancestral") if a in set(tokens.arm)]
    plot = make_subplots(
        cols=len(shown), shared_yaxes=True, subplot_titles=shown, horizontal_spacing=0.03
    )
    top = float(tokens.entropy.max())
    for column, arm in enumerate(shown, start=1):
        mine = tokens[tokens.arm == arm]
        plot.add_scatter(
            x=mine.entropy,
            y=mine.entropy + mine.value,
            mode="markers",
            marker={"size": 4, "opacity": 0.5, "color": color(arms.index(arm))},
            name=arm,
            hovertemplate="entropy %{x:.2f}, surprisal %{y:.2f} nats<extra></extra>",
            row=1,
            col=column,
        )
        plot.add_scatter(
            x=[0, top],
            y=[0, top],
            mode="lines",
            line={"dash": "dot", "width": 1.5, "color": "#748091"},
            hoverinfo="skip",
            row=1,
            col=column,
        )
    plot.update_xaxes(title="entropy (nats)")
    plot.update_yaxes(title="surprisal (nats)", col=1)
    plot.update_layout(showlegend=False, margin={"t": 40})
    return Figure(
        f"Surprisal against entropy, token by token{suffix}",
        "Each point is one token written. On the dotted line a token is exactly as surprising as "
        "its distribution leads one to expect.",
        plot,
    )


def _kept_band(config: TypicalConfig) -> Figure:
    from plotly.subplots import make_subplots

    size = 1000
    logq = (-torch.arange(1, size + 1, dtype=torch.float64).log()).log_softmax(dim=-1)
    entropy = float(torch.special.entr(logq.exp()).sum())
    rank = np.arange(1, size + 1)
    grey = "#748091"
    plot = make_subplots(rows=2, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.05)
    curve = {"x": rank, "y": -logq.numpy(), "mode": "lines", "line": {"color": grey, "width": 2}}
    plot.add_scatter(**curve, name="surprisal of each token", row=1, col=1)
    flat = {"x": [1, size], "y": [entropy] * 2, "mode": "lines"}
    plot.add_scatter(**flat, line={"color": grey, "dash": "dot"}, name="entropy H", row=1, col=1)
    wanted = ("typical-0.2", "typical-0.95", "nucleus-0.9", "top-k-30")
    shown = [rule for rule in wanted if rule in config.rules]
    for rule in reversed(shown):
        scores = logq[None]
        for processor in processors(rule):
            scores = processor(torch.zeros(1, 1, dtype=torch.long), scores)
        kept = scores[0].isfinite().numpy()
        first, last = rank[kept][[0, -1]]
        plot.add_scatter(
            x=[first, last],
            y=[rule, rule],
            mode="lines",
            line={"width": 16, "color": color(config.rules.index(rule))},
            hovertemplate=f"{rule} keeps ranks {first} to {last}<extra></extra>",
            showlegend=False,
            row=2,
            col=1,
        )
        if rule == "typical-0.2":
            band = -logq.numpy()[kept]
            plot.add_hrect(
                y0=band.min(),
                y1=band.max(),
                fillcolor=color(config.rules.index(rule)),
                opacity=0.25,
                line_width=0,
                row=1,
                col=1,
            )
    plot.update_xaxes(type="log", dtick=1, range=[0, 3])
    plot.update_xaxes(title="rank of the token (log scale)", row=2, col=1)
    plot.update_yaxes(title="surprisal (nats)", row=1, col=1)
    plot.update_yaxes(title="kept by", range=[-0.6, len(shown) - 0.4], row=2, col=1)
    plot.update_layout(height=460)
    return Figure(
        "What each rule keeps of one distribution",
        "A thousand tokens, q proportional to 1/rank. Nucleus and top-k keep the likeliest tokens; "
        "locally typical sampling keeps the band of surprisals around the entropy (shaded for mass "
        "0.2) and leaves out the head as well as the tail.",
        plot,
    )


def _continuations(table: pd.DataFrame, arms: Sequence[str], openings: Sequence[str]) -> Figure:
    import plotly.graph_objects as go

    texts = table[(table.metric == "characters") & (table.prompt == 0) & (table.seed == 0)]
    texts = texts.set_index("arm").text
    shown = [arm for arm in arms if arm in texts]
    clear, rule = "rgba(0,0,0,0)", "rgba(128,128,128,0.35)"
    plot = go.Figure(
        go.Table(
            columnwidth=[1, 7],
            header={
                "values": ["rule", "continuation"],
                "align": "left",
                "fill": {"color": clear},
                "line": {"color": rule},
            },
            cells={
                "values": [shown, [" ".join(texts[arm].split()) for arm in shown]],
                "align": "left",
                "fill": {"color": clear},
                "line": {"color": rule},
                "font": {"size": 12},
                "height": 22,
            },
        )
    )
    plot.update_layout(height=50 + 68 * len(shown), margin={"l": 0, "r": 0, "t": 8, "b": 8})
    return Figure(
        "One opening under each rule",
        f"“{openings[0]} …”, continued with seed 0.",
        plot,
    )


def _exact_deviation(table: pd.DataFrame, arms: Sequence[str]) -> Figure:
    import plotly.graph_objects as go

    plot = go.Figure()
    for metric, label in (
        ("exact mean |epsilon|", "E|eps|: how far"),
        ("exact mean epsilon", "E eps: which way"),
    ):
        found = _exact(table, metric)
        plot.add_bar(x=list(arms), y=[found[arm] for arm in arms], name=label)
    plot.update_xaxes(title="decoding rule")
    plot.update_yaxes(title="nats")
    return Figure(
        "Expected deviation from the entropy, exactly",
        "Expectations over Zipf distributions with exponents 0.6 to 1.8, no sampling involved.",
        plot,
    )


experiment = TypicalExperiment()
