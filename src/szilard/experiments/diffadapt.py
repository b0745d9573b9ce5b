"""DiffAdapt against fixed strategies, and against every cheaper way to pick one.

`quick` plants the U: a tiny model is taught sums of digits on which it overthinks the easy ones and
guesses the hopeless ones, so that the machinery is tested, not whether a U exists. Whether one does is
asked of Gemma 3 270M beside it, without a claim. `paper` runs the paper's models on its data.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from szilard.decoding import (
    DEFAULT_STRATEGIES,
    CachedReader,
    DiffAdapt,
    DiffAdaptOutput,
    DifficultyProbe,
    Strategy,
    chat_layout,
    difficulty_profile,
    label_difficulty,
)
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
from szilard.zoo.cache import cached

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("easy", "normal", "hard")
FIXED = tuple(f"fixed-{name}" for name in NAMES)
ARMS = (
    "diffadapt",
    *FIXED,
    "shuffled",
    "random",
    "linear-probe",
    "oracle",
    "true-difficulty",
    "entropy-routing",
    "early-exit",
)
LANGUAGE_MODEL_ARMS = tuple(a for a in ARMS if a not in ("true-difficulty", "early-exit"))
DIGITS = 8
LETTERS = "ENH"
KNOWN = {"E": 2, "N": 5, "H": 3}
"""Digits up to which a reply of each strategy is taught to be right."""
WHOLE = 24
MARGIN = 0.02
"""Accuracy that counts as equal."""
GEMMA = "gemma3-270m"


class Problems(BaseModel):
    """Questions with checkable answers: a data set, and the names of its columns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dataset: str = Field(description="Hugging Face id, or a local .json, .jsonl or .parquet file")
    subset: str | None = None
    split: str = "test"
    question: str = "problem"
    answer: str = "answer"
    options: str | None = Field(default=None, description="of a multiple choice, lettered from A")
    difficulty: str | None = None
    each: int | None = Field(default=None, description="questions of a difficulty; None takes all")


class LanguageModels(BaseModel):
    """The run on real language models; the sizes are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...] = (
        "Qwen/Qwen3-4B",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    )
    train: Problems = Problems(
        name="DeepMath-103K",
        dataset="zwhe99/DeepMath-103K",
        split="train",
        question="question",
        answer="final_answer",
        difficulty="difficulty",
        each=300,
    )
    tests: tuple[Problems, ...] = (
        Problems(name="GSM8K", dataset="openai/gsm8k", subset="main", question="question"),
        Problems(name="MATH-500", dataset="HuggingFaceH4/MATH-500"),
        Problems(name="AIME24", dataset="HuggingFaceH4/aime_2024", split="train"),
        Problems(name="AIME25", dataset="math-ai/aime25"),
        Problems(
            name="OlympiadBench",
            dataset="Hothan/OlympiadBench",
            subset="OE_TO_maths_en_COMP",
            split="train",
            question="question",
            answer="final_answer",
        ),
        Problems(name="Minerva", dataset="math-ai/minervamath", question="question"),
        Problems(
            name="MMLU-Pro",
            dataset="TIGER-Lab/MMLU-Pro",
            question="question",
            options="options",
        ),
    )
    max_new_tokens: int = Field(default=16_384, ge=3, description="the whole budget")
    batch_size: int = Field(default=8, ge=1, description="questions at once")
    dtype: str = Field(default="bfloat16", description="of the weights")
    device: str = Field(default="cuda", description="where the models run")


class DiffAdaptConfig(ExperimentConfig):
    """Knobs; the defaults are those of `quick`."""

    noises: tuple[float, ...] = Field(
        default=(1.0, 0.45),
        description="settings: share of wrong running sums taught for six and more digits; the model "
        "of the first is trained from the start, those of the others go on from it",
    )
    train_questions: int = Field(default=2000, ge=8, description="to learn the probe from")
    test_questions: int = Field(default=800, ge=8, description="to compare policies on")
    samples: int = Field(default=10, ge=1, description="replies a training question")
    temperature: float = Field(default=1.0, gt=0, description="of those replies")
    steps: int = Field(default=800, ge=1, description="training steps of the tiny model")
    alpha: float = Field(default=0.85, description="accuracy from which a question is solved")
    beta: float | None = Field(
        default=0.10, description="entropy up to which it is solved surely, nats; None suggests one"
    )
    gamma: float = Field(default=0.60, description="accuracy below which it is hopeless")
    hidden: int = Field(default=256, ge=1, description="width of the probe")
    epochs: int = Field(default=100, ge=1, description="of the probe's training")
    routing_tokens: int = Field(
        default=2, ge=1, description="tokens that entropy-routing looks at before it decides"
    )
    exit_confidence: float = Field(
        default=0.95, gt=0, le=1, description="of a trial answer, from which early-exit stops"
    )
    gemma_questions: int = Field(
        default=22, ge=0, description="sums put to Gemma 3 270M for its profile; 0 leaves it out"
    )
    language_models: LanguageModels | None = Field(
        default=None, description="run these models instead of the tiny one"
    )


class DiffAdaptExperiment:
    """DiffAdapt (Liu et al., 2025)."""

    Config: ClassVar[type[ExperimentConfig]] = DiffAdaptConfig
    presets: ClassVar[Mapping[Preset, DiffAdaptConfig]] = {
        "smoke": DiffAdaptConfig(
            seeds=2,
            noises=(1.0,),
            train_questions=96,
            test_questions=48,
            samples=2,
            steps=60,
            alpha=0.15,
            beta=None,
            gamma=0.1,
            hidden=16,
            epochs=5,
            gemma_questions=0,
        ),
        "quick": DiffAdaptConfig(seeds=3),
        "paper": DiffAdaptConfig(
            seeds=3,
            temperature=0.8,
            beta=None,
            routing_tokens=32,
            gemma_questions=0,
            language_models=LanguageModels(),
        ),
    }

    def arms(self, config: DiffAdaptConfig) -> Sequence[str]:
        return ARMS if config.language_models is None else LANGUAGE_MODEL_ARMS

    def run(self, config: DiffAdaptConfig, arm: str, seed: int, log: Log) -> Sequence[Row]:
        rows: list[Row] = []
        tables = (
            _planted(config, seed, log)
            if config.language_models is None
            else _language_models(config, config.language_models, seed, log)
        )
        for setting, found in tables.items():
            rows += _policy_rows(setting, found, arm, seed)
            if arm == ARMS[0]:
                rows += _profile_rows(setting, found)
        if arm == ARMS[0] and seed == 0 and config.gemma_questions:
            rows += _gemma_rows(config.gemma_questions, log)
        log(1.0, "done")
        return rows

    def claims(self, config: DiffAdaptConfig, table: pd.DataFrame) -> Sequence[Claim]:
        return _claims(config, table)

    def figures(self, config: DiffAdaptConfig, table: pd.DataFrame) -> Sequence[Figure]:
        return _figures(table, self.arms(config))


# The planted U ------------------------------------------------------------------------------------


def strategies() -> tuple[Strategy, ...]:
    """The paper's temperatures and budgets, one letter for a sentence."""
    return tuple(
        replace(strategy, prompt_suffix=letter)
        for strategy, letter in zip(DEFAULT_STRATEGIES, LETTERS, strict=True)
    )


def question(digits: Sequence[int]) -> str:
    """Digits in a fixed place, then the sign that asks for their sum.

    Examples:
        >>> question([3, 9])
        '39......='
    """
    return "".join(map(str, digits)).ljust(DIGITS, ".") + "="


def is_right(asked: str, reply: str) -> bool:
    """Whether a reply ends in the sum modulo ten.

    Examples:
        >>> is_right("39......=", "32A2"), is_right("39......=", "32A")
        (True, False)
    """
    total = sum(map(int, asked.rstrip(".=")))
    return re.search(r"A(\d)$", reply) is not None and int(reply[-1]) == total % 10


def draw_digits(n: int, rng: np.random.Generator, most: int = DIGITS) -> list[list[int]]:
    """One to `most` digits a question."""
    return [rng.integers(10, size=rng.integers(1, most + 1)).tolist() for _ in range(n)]


def reply(digits: Sequence[int], letter: str, noise: float, rng: np.random.Generator) -> str:
    """What is taught: overthinking on one and two digits, sure sums on three to five, guesses beyond.

    Args:
        digits: of the question.
        letter: of the strategy: E answers at once, N writes running sums, H only two of them.
        noise: share of wrong running sums from six digits on.
        rng: source of the draws.
    """
    n, total = len(digits), sum(digits) % 10
    if letter == "E":
        return f"A{total}"
    if letter == "H":
        known = n <= 3
        sums = np.cumsum(digits)[:2] % 10
        return "".join(map(str, sums)) + f"A{total if known else rng.integers(10)}"

    def chain() -> str:
        order = rng.permutation(digits) if n <= 2 else digits
        sums, at = "", 0
        for digit in order:
            at = int((at + digit) % 10)
            if n >= 6 and rng.random() < noise:
                at = int(rng.integers(10))
            sums += str(at)
        return sums

    text = chain()
    for _ in range(3 if n <= 2 else 0):
        if rng.random() < 0.5:
            break
        text += "W" + chain()
    return f"{text}A{text[-1]}"


def _tiny(config: DiffAdaptConfig, noise: float, seed: int) -> Any:
    from szilard.zoo.language import (
        character_tokenizer,
        load_language_model,
        tiny_language_model,
        train_language_model,
    )

    tokenizer = character_tokenizer("0123456789.=AW" + LETTERS)
    first = config.noises[0]
    steps = config.steps if noise == first else config.steps // 4
    batches = itertools.count()

    def examples(n: int, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Sure sums alone in the first fifth, then all, half of them of a length that is known."""
        sums_alone = noise == first and next(batches) < steps // 5
        taught = []
        for letter in rng.choice(list("N" if sums_alone else "ENNH"), size=n):
            known = sums_alone or rng.random() < 0.5
            digits = draw_digits(1, rng, KNOWN[letter] if known else DIGITS)[0]
            taught.append((question(digits) + letter, reply(digits, letter, noise, rng)))
        return taught

    def build(folder: Path) -> None:
        if noise == first:
            model = tiny_language_model(vocab=tokenizer, seed=seed)
            _widen(model, torch.Generator().manual_seed(seed))
        else:
            model = _tiny(config, first, seed).model
        train_language_model(
            model,
            tokenizer,
            examples,
            steps=steps,
            lr=3e-3,
            completion_only=True,
            seed=seed,
            progress=False,
        ).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    key = {
        "noise": noise,
        "first": first,
        "steps": config.steps,
        "seed": seed,
        "torch": torch.__version__,
        "version": 2,
    }
    return load_language_model(str(cached("planted-u", key, build)))


@torch.no_grad()
def _widen(model: Any, generator: torch.Generator) -> None:
    """Draws the weights anew, wider than transformers does.

    A sum is learnt only once attention tells the next digit's place from the others. From weights of
    deviation 0.02 and biases of zero it starts out uniform, and does not find the place in time.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight.normal_(0, 1, generator=generator)
        elif isinstance(module, torch.nn.Linear):
            module.weight.normal_(0, 0.08, generator=generator)
            if module.bias is not None:
                module.bias.normal_(0, 0.5, generator=generator)


Found = Mapping[str, np.ndarray]


def _planted(config: DiffAdaptConfig, seed: int, log: Log) -> dict[str, Found]:
    """The outcome of every strategy on every question, by setting; made once for all arms."""
    tables: dict[str, Found] = {}
    for i, noise in enumerate(config.noises):
        log(i / len(config.noises), f"noise {noise:g}: outcomes, or loading them")
        key = config.model_dump(mode="json", exclude={"noises", "seeds", "gemma_questions"})

        def build(folder: Path, noise: float = noise) -> None:
            np.savez(folder / "outcomes.npz", **_outcomes(config, noise, seed))  # type: ignore[arg-type]

        folder = cached(
            "diffadapt-outcomes",
            {
                **key,
                "noise": noise,
                "first": config.noises[0],
                "seed": seed,
                "torch": torch.__version__,
                "version": 2,
            },
            build,
        )
        with np.load(folder / "outcomes.npz") as file:
            tables[f"noise {noise:g}"] = dict(file)
    return tables


def _outcomes(config: DiffAdaptConfig, noise: float, seed: int) -> dict[str, np.ndarray]:
    model, tokenizer = _tiny(config, noise, seed)
    generator = torch.Generator().manual_seed(seed)
    method = DiffAdapt(
        model,
        tokenizer,
        DifficultyProbe(config.hidden, epochs=config.epochs, random_state=seed),
        strategies(),
        WHOLE,
        layout="{question}{strategy}",
        generator=generator,
    )
    rng = np.random.default_rng(10_000 + seed)
    train, test = (draw_digits(n, rng) for n in (config.train_questions, config.test_questions))
    tested = [question(digits) for digits in test]
    found = _learn(config, method, [question(digits) for digits in train], is_right, seed, 200)
    found["train_difficulty"] = np.array([len(digits) for digits in train])
    found["difficulty"] = np.array([len(digits) for digits in test])
    _compare(config, method, tested, is_right, found, 200)
    # A level's commonest label.
    labels = {
        n: np.bincount(found["label"][found["train_difficulty"] == n], minlength=3).argmax()
        for n in np.unique(found["train_difficulty"])
    }
    found["true-difficulty"] = np.array([labels.get(len(digits), 1) for digits in test])
    found["exit_right"], found["exit_tokens"] = _early_exit(config, method, tested)
    return found


def _learn(
    config: DiffAdaptConfig,
    method: DiffAdapt,
    questions: Sequence[str],
    checker: Any,
    seed: int,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """Stages 1 and 2, and what the simpler policies learn from the same questions."""
    from sklearn.tree import DecisionTreeClassifier

    data = method.collect(
        questions, checker, config.samples, temperature=config.temperature, batch_size=batch_size
    )
    suggested = method.fit(data, config.alpha, config.beta, config.gamma)
    beta = suggested.beta if config.beta is None else config.beta  # type: ignore[union-attr]
    label = label_difficulty(data.accuracy, data.entropy, config.alpha, beta, config.gamma)
    method.linear = DifficultyProbe(0, epochs=config.epochs, random_state=seed).fit(  # type: ignore[attr-defined]
        data.hidden, label
    )
    begun = method.generate(questions, strategy="normal", batch_size=batch_size)
    first = _first_entropies(begun, config.routing_tokens)
    tree = DecisionTreeClassifier(max_leaf_nodes=3, random_state=seed).fit(first, label)
    method.router = tree  # type: ignore[attr-defined]
    return {
        "accuracy": data.accuracy,
        "entropy": data.entropy,
        "truncated": data.truncated,
        "label": label,
        "beta": np.array(beta),
    }


def _first_entropies(replies: Sequence[DiffAdaptOutput], k: int) -> np.ndarray:
    return np.array([[float(r.trace.entropy[:k].mean())] for r in replies])


def _compare(
    config: DiffAdaptConfig,
    method: Any,
    questions: Sequence[str],
    checker: Any,
    found: dict[str, np.ndarray],
    batch_size: int,
) -> None:
    """Every strategy on every test question, what each policy picks, and the method end to end."""

    def judged(replies: Sequence[DiffAdaptOutput]) -> tuple[np.ndarray, np.ndarray]:
        right = [checker(q, r.text) for q, r in zip(questions, replies, strict=True)]
        return np.array(right, dtype=float), np.array([r.n_tokens for r in replies])

    by_strategy = [
        method.generate(questions, strategy=name, batch_size=batch_size) for name in NAMES
    ]
    outcomes = [judged(replies) for replies in by_strategy]
    found["right"] = np.stack([right for right, _ in outcomes])
    found["tokens"] = np.stack([tokens for _, tokens in outcomes])
    live = method.generate(questions, batch_size=batch_size)
    found["live_right"], found["live_tokens"] = judged(live)
    found["diffadapt"] = np.array([NAMES.index(r.strategy) for r in live])
    method.probe, probe = method.linear, method.probe
    simple = method.generate(questions, batch_size=batch_size)
    method.probe = probe
    found["linear-probe"] = np.array([NAMES.index(r.strategy) for r in simple])
    found["entropy-routing"] = method.router.predict(
        _first_entropies(by_strategy[1], config.routing_tokens)
    )
    found["routing_tokens"] = np.array(config.routing_tokens)


@torch.no_grad()
def _early_exit(
    config: DiffAdaptConfig, method: DiffAdapt, questions: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Normal, which after each token is asked for its answer and stops where it is confident."""
    tokenizer, normal = method.tokenizer, method.strategies[1]
    answer, end = tokenizer.convert_tokens_to_ids("A"), tokenizer.eos_token_id
    ids = torch.tensor(tokenizer([q + normal.prompt_suffix for q in questions])["input_ids"])
    reader = CachedReader(method.model, rewinds=True)
    logits = reader.read(ids).logits[:, -1]
    right, tokens = np.zeros(len(questions)), np.zeros(len(questions), dtype=int)
    texts, open_ = [""] * len(questions), np.ones(len(questions), dtype=bool)
    for step in range(1, WHOLE + 1):
        probs = (logits / normal.temperature).softmax(-1)
        token = torch.multinomial(probs, 1, generator=method.generator)
        written = tokenizer.convert_ids_to_tokens(token[:, 0].tolist())
        logits = reader.read(token).logits[:, -1]
        trial = reader.ask(torch.full_like(token, answer)).logits[:, -1].softmax(-1).max(-1)
        for row in np.flatnonzero(open_).tolist():
            if token[row, 0] == end or step == WHOLE:
                done, count = texts[row], step
            elif "A" not in texts[row] + written[row] and (
                trial.values[row] >= config.exit_confidence
            ):
                # The answer's sign, the answer and the end are still to be written.
                guess = tokenizer.convert_ids_to_tokens(int(trial.indices[row]))
                done, count = f"{texts[row]}A{guess}", step + 3
            else:
                texts[row] += written[row]
                continue
            right[row], tokens[row], open_[row] = is_right(questions[row], done), count, False
        if not open_.any():
            break
    return right, tokens


# Real language models -----------------------------------------------------------------------------


def _language_models(
    config: DiffAdaptConfig, run: LanguageModels, seed: int, log: Log
) -> dict[str, Found]:
    tables: dict[str, Found] = {}
    for i, name in enumerate(run.models):
        log(i / len(run.models), f"{name}: outcomes, or loading them")
        key = config.model_dump(mode="json", exclude={"noises", "seeds", "language_models"})

        def build(folder: Path, name: str = name) -> None:
            for i, found in enumerate(_model_outcomes(config, run, name, seed)):
                np.savez(folder / f"{i}.npz", **found)  # type: ignore[arg-type]

        folder = cached(
            "diffadapt-models",
            {**key, "run": run.model_dump(mode="json"), "model": name, "seed": seed, "version": 1},
            build,
        )
        for j, test in enumerate(run.tests):
            with np.load(folder / f"{j}.npz") as file:
                tables[f"{name}, {test.name}"] = dict(file)
    return tables


def _model_outcomes(
    config: DiffAdaptConfig, run: LanguageModels, name: str, seed: int
) -> list[dict[str, np.ndarray]]:
    from szilard.experiments.clip_cov_kl_cov import math_reward
    from szilard.zoo.language import load_language_model

    model, tokenizer = load_language_model(name, dtype=getattr(torch, run.dtype), device=run.device)
    instruction = "Put the final answer within \\boxed{}."
    method = DiffAdapt(
        model,
        tokenizer,
        DifficultyProbe(config.hidden, epochs=config.epochs, random_state=seed),
        tuple(
            replace(s, prompt_suffix=f"{s.prompt_suffix} {instruction}") for s in DEFAULT_STRATEGIES
        ),
        run.max_new_tokens,
        layout=chat_layout(tokenizer),
        generator=torch.Generator(run.device).manual_seed(seed),
    )
    rng = np.random.default_rng(seed)
    tables, learned = [], None
    for source in (run.train, *run.tests):
        questions, answers, difficulty = _problems(source, rng)
        known = dict(zip(questions, answers, strict=True))

        def checker(asked: str, text: str, known: Mapping[str, str] = known) -> bool:
            return math_reward([text], [known[asked]])[0] > 0

        if learned is None:
            learned = _learn(config, method, questions, checker, seed, run.batch_size)
            learned["train_difficulty"] = difficulty
            continue
        found = {**learned, "difficulty": difficulty}
        _compare(config, method, questions, checker, found, run.batch_size)
        tables.append(found)
    return tables


def _problems(
    source: Problems, rng: np.random.Generator
) -> tuple[list[str], list[str], np.ndarray]:
    """Questions, answers and difficulties, each question once."""
    from datasets import load_dataset

    path = Path(source.dataset).expanduser()
    if path.suffix in (".json", ".jsonl", ".parquet"):
        kind = "parquet" if path.suffix == ".parquet" else "json"
        rows = load_dataset(kind, data_files=str(path), split="train")
    else:
        rows = load_dataset(source.dataset, source.subset, split=source.split)
    found: dict[str, tuple[str, float]] = {}
    for row in rows:
        answer = row[source.answer]
        answer = ", ".join(answer) if isinstance(answer, list) else str(answer)
        # GSM8K's answers end in "#### 42".
        answer = answer.rpartition("####")[2].strip()
        asked_for = str(row[source.question])
        if source.options is not None:
            lettered = zip(string.ascii_uppercase, row[source.options], strict=False)
            choices = "\n".join(f"{letter}. {option}" for letter, option in lettered)
            asked_for = f"{asked_for}\n\n{choices}\n\nAnswer with a letter."
        level = np.nan if source.difficulty is None else float(row[source.difficulty])
        found.setdefault(asked_for, (answer, level))
    asked, levels = list(found), np.array([level for _, level in found.values()])
    if source.each is not None:
        chosen = [
            rng.permutation(np.flatnonzero(levels == level))[: source.each]
            for level in np.unique(levels)
        ]
        kept = np.sort(np.concatenate(chosen))
        asked, levels = [asked[i] for i in kept], levels[kept]
    return asked, [found[q][0] for q in asked], levels


# A model as it is ---------------------------------------------------------------------------------


def _gemma_rows(count: int, log: Log) -> list[Row]:
    """Entropy of Gemma 3 270M on sums of two to twelve numbers, found as it is."""

    def build(folder: Path) -> None:
        from szilard.zoo.language import load_language_model

        model, tokenizer = load_language_model(GEMMA)
        rng = np.random.default_rng(0)
        sizes = np.arange(count) % 11 + 2
        asked = [" + ".join(map(str, rng.integers(1, 30, size=n))) for n in sizes]

        def checker(sum_: str, text: str) -> bool:
            said = re.search(r"-?\d+", text)
            return said is not None and int(said[0]) == sum(map(int, sum_.split(" + ")))

        method = DiffAdapt(
            model,
            tokenizer,
            max_new_tokens=24,
            strategies=tuple(replace(s, prompt_suffix=" =") for s in DEFAULT_STRATEGIES),
            layout="{question}{strategy}",
            generator=torch.Generator().manual_seed(0),
        )
        data = method.collect(asked, checker, 4, batch_size=20)
        np.savez(
            folder / "gemma.npz", difficulty=sizes, entropy=data.entropy, accuracy=data.accuracy
        )

    log(0.9, "the profile of Gemma 3 270M, or loading it")
    folder = cached("diffadapt-gemma", {"count": count, "version": 1}, build)
    with np.load(folder / "gemma.npz") as file:
        return [
            {"metric": "entropy", "value": e, "difficulty": d, "accuracy": a, "setting": GEMMA}
            for e, d, a in zip(file["entropy"], file["difficulty"], file["accuracy"], strict=True)
        ]


# Policies -----------------------------------------------------------------------------------------


def oracle(right: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The cheapest right strategy of each question, the cheapest where none is right.

    Examples:
        >>> oracle(np.array([[0, 0], [1, 0], [1, 0]]), np.array([[3, 3], [9, 9], [5, 5]])).tolist()
        [2, 0]
    """
    cost = np.where((right > 0) | ~(right > 0).any(0), tokens, np.inf)
    return np.argmin(cost, axis=0)


def choose(found: Found, arm: str, seed: int) -> np.ndarray:
    """The strategy a policy takes for each question."""
    n = found["right"].shape[-1]
    rng = np.random.default_rng(20_000 + seed)
    if arm in FIXED:
        return np.full(n, FIXED.index(arm))
    if arm == "shuffled":
        return np.asarray(rng.permutation(found["diffadapt"]))
    if arm == "random":
        return np.asarray(rng.integers(len(NAMES), size=n))
    if arm == "oracle":
        return oracle(found["right"], found["tokens"])
    return found[arm]


def _policy_rows(setting: str, found: Found, arm: str, seed: int) -> list[Row]:
    n = found["right"].shape[-1]
    if arm == "early-exit":
        right, tokens = found["exit_right"], found["exit_tokens"]
        names: Sequence[str] = ["normal"] * n
    else:
        choice = choose(found, arm, seed)
        right = found["right"][choice, np.arange(n)]
        tokens = found["tokens"][choice, np.arange(n)]
        if arm == "entropy-routing":
            # What was written to decide is thrown away where another strategy takes over.
            tokens = tokens + np.where(choice == 1, 0, found["routing_tokens"])
        names = [NAMES[i] for i in choice]
    rows: list[Row] = [
        {
            "metric": "right",
            "value": float(right[i]),
            "tokens": int(tokens[i]),
            "strategy": names[i],
            "difficulty": float(found["difficulty"][i]),
            "question": i,
            "setting": setting,
        }
        for i in range(n)
    ]
    if arm == "diffadapt":
        live = {
            "accuracy end to end": found["live_right"].mean(),
            "tokens end to end": found["live_tokens"].mean(),
            "beta": found["beta"],
        }
        rows += [{"metric": k, "value": float(v), "setting": setting} for k, v in live.items()]
    return rows


def _profile_rows(setting: str, found: Found) -> list[Row]:
    return [
        {
            "metric": "entropy",
            "value": float(entropy),
            "accuracy": float(accuracy),
            "difficulty": float(difficulty),
            "strategy": NAMES[label],
            "setting": setting,
        }
        for entropy, accuracy, difficulty, label in zip(
            found["entropy"],
            found["accuracy"],
            found["train_difficulty"],
            found["label"],
            strict=True,
        )
    ]


# Claims -------------------------------------------------------------------------------------------


def _paired(rows: pd.DataFrame, arm: str, other: str) -> tuple[Interval, Interval]:
    """Accuracy of `arm` above `other`, and the share of its tokens that `arm` saves."""
    keys = ["seed", "question"]
    a, b = (rows[rows.arm == name].set_index(keys).sort_index() for name in (arm, other))
    seeds = a.index.get_level_values("seed").to_numpy()
    gain = paired_difference(a.value.to_numpy(), b.value.to_numpy(), groups=seeds)
    totals = [side.tokens.groupby(level="seed").sum().to_numpy() for side in (a, b)]
    return gain, mean_interval(1 - totals[0] / totals[1])


def _claims(config: DiffAdaptConfig, table: pd.DataFrame) -> list[Claim]:
    claims: list[Claim] = []
    outcomes = table[table.metric == "right"]
    settings = list(outcomes.setting.unique())
    for setting in settings:
        rows = outcomes[outcomes.setting == setting]
        suffix = f" ({setting})" if len(settings) > 1 else ""
        claims += _setting_claims(rows, suffix, set(rows.arm))
    if config.language_models is None and len(settings):
        profile = table[(table.metric == "entropy") & (table.setting == settings[0])]
        claims = [*_profile_claims(profile), *claims]
    return claims


def _profile_claims(profile: pd.DataFrame) -> list[Claim]:
    if not len(profile):
        return []
    bands = {"n <= 2": (1, 2), "n = 3..5": (3, 5), "n >= 6": (6, DIGITS)}
    means = {
        name: profile[profile.difficulty.between(*band)].groupby("seed").value.mean()
        for name, band in bands.items()
    }
    sure = profile[profile.difficulty.between(*bands["n = 3..5"])]
    note = "The U is taught, so this tests that it was learnt, not that models have one."
    claims = [
        Claim.judge(
            f"Entropy over difficulty is a U: {name} above the middle",
            paper="22-25 % above the middle (DeepMath-103K)",
            measured=mean_interval((means[name] / means["n = 3..5"]).to_numpy()),
            quantity=f"entropy({name}) / entropy(n = 3..5)",
            above=5,
            note=note,
        )
        for name in ("n <= 2", "n >= 6")
    ]
    return [
        *claims,
        Claim.judge(
            "The rule labels what the model solves surely as Normal",
            paper="thresholds set from the scatter",
            measured=mean_interval((sure.strategy != "normal").to_numpy(), groups=sure.seed),
            quantity="share of n = 3..5 outside Normal",
            below=0.2,
        ),
    ]


def _setting_claims(rows: pd.DataFrame, suffix: str, arms: set[str]) -> list[Claim]:
    ours = "diffadapt"
    if ours not in arms:
        return []
    claims: list[Claim] = []
    if "fixed-normal" in arms:
        gain, saving = _paired(rows, ours, "fixed-normal")
        claims += [
            Claim.judge(
                f"DiffAdapt saves tokens against fixed Normal{suffix}",
                paper="up to 22.4 % (Qwen3-4B)",
                measured=saving,
                quantity="1 - tokens(DiffAdapt) / tokens(Normal)",
                above=0.25,
            ),
            Claim.judge(
                f"It loses at most two points of accuracy{suffix}",
                paper="equal or better accuracy",
                measured=gain,
                quantity="accuracy(DiffAdapt) - accuracy(Normal)",
                above=-MARGIN,
                note="The hard strategy fails fast: where Hard is not hopeless, that costs accuracy.",
            ),
        ]
    for fixed in (arm for arm in FIXED if arm in arms):
        gain, saving = _paired(rows, ours, fixed)
        claim = Claim.judge(
            f"Fewer tokens at equal or better accuracy than {fixed}{suffix}",
            paper="fewer tokens at equal or better accuracy than each fixed strategy",
            measured=saving,
            quantity=f"1 - tokens(DiffAdapt) / tokens({fixed})",
            above=0,
            note=f"Accuracy differs by {100 * gain.value:+.1f} points "
            f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]; equal means within "
            f"{100 * MARGIN:g} points.",
        )
        if claim.verdict is Verdict.HOLDS and gain.low <= -MARGIN:
            lost = gain.value <= -MARGIN
            verdict = Verdict.FAILS if lost else Verdict.NOT_MEASURABLE
            claim = replace(claim, verdict=verdict)
        claims.append(claim)
    for other, threshold, statement, paper in (
        ("shuffled", 0.10, "Which question gets which strategy matters", "-"),
        ("linear-probe", 0.0, "Two layers beat a linear probe", "70.9 against 67.7"),
        ("entropy-routing", 0.0, "The probe beats routing by the first tokens' entropy", "-"),
    ):
        if other in arms:
            gain, saving = _paired(rows, ours, other)
            claims.append(
                Claim.judge(
                    f"{statement}{suffix}",
                    paper=paper,
                    measured=gain,
                    quantity=f"accuracy(DiffAdapt) - accuracy({other})",
                    above=threshold,
                    note=f"DiffAdapt saves {100 * saving.value:.1f} % of its tokens.",
                )
            )
    if "early-exit" in arms:
        gain, saving = _paired(rows, ours, "early-exit")
        claims.append(
            Claim.judge(
                f"Fewer tokens than an early exit by confidence{suffix}",
                paper="DEER uses 27.5 to 53.3 % more tokens than fixed Normal",
                measured=saving,
                quantity="1 - tokens(DiffAdapt) / tokens(early exit)",
                above=0,
                note=f"Accuracy differs by {100 * gain.value:+.1f} points.",
            )
        )
    if "oracle" in arms:
        gain, saving = _paired(rows, "oracle", ours)
        claims.append(
            Claim.judge(
                f"The best strategy in hindsight would be better still{suffix}",
                paper="-50 % tokens, +10 points",
                measured=gain,
                quantity="accuracy(oracle) - accuracy(DiffAdapt)",
                above=0,
                note=f"It would save another {100 * saving.value:.1f} % of the tokens.",
            )
        )
    return claims


# Figures ------------------------------------------------------------------------------------------


def _figures(table: pd.DataFrame, arms: Sequence[str]) -> list[Figure]:
    import plotly.graph_objects as go

    figures = []
    outcomes = table[table.metric == "right"]
    profiles = table[table.metric == "entropy"].dropna(subset=["difficulty"])
    for setting in outcomes.setting.unique():
        rows = outcomes[outcomes.setting == setting]
        plot = go.Figure()
        for i, arm in enumerate(arm for arm in arms if arm in set(rows.arm)):
            mine = rows[rows.arm == arm].groupby("seed")[["tokens", "value"]].mean()
            plot.add_scatter(
                x=mine.tokens,
                y=mine.value,
                mode="markers",
                name=arm,
                marker={"color": color(i), "size": 10, "symbol": i // 10 * 2},
            )
        plot.update_xaxes(title="mean tokens a reply", rangemode="tozero")
        plot.update_yaxes(title="accuracy")
        figures.append(
            Figure(
                f"Accuracy against tokens ({setting})",
                "A point a seed. Up and to the left is better: fixed strategies trade one for the "
                "other, and picking by question leaves their line.",
                plot,
            )
        )
    for setting in profiles.setting.unique():
        mine = profiles[profiles.setting == setting]
        figures.append(_profile_figure(mine, str(setting)))
    return figures


def _profile_figure(rows: pd.DataFrame, setting: str) -> Figure:
    import plotly.graph_objects as go

    found = difficulty_profile(rows.value.to_numpy(float), rows.difficulty.to_numpy(float))
    accuracy = rows.groupby("difficulty").accuracy.mean()
    plot = go.Figure()
    plot.add_scatter(
        x=found.difficulty,
        y=found.entropy,
        error_y={
            "array": found.high - found.entropy,
            "arrayminus": found.entropy - found.low,
        },
        mode="lines+markers",
        name="entropy",
        line={"color": color(0)},
    )
    plot.add_scatter(
        x=accuracy.index,
        y=accuracy,
        mode="lines+markers",
        name="accuracy",
        yaxis="y2",
        line={"color": color(1), "dash": "dot"},
    )
    plot.update_layout(
        xaxis={"title": "numbers to be added" if len(accuracy) < 13 else "difficulty"},
        yaxis={"title": "mean entropy of a token (nats)", "rangemode": "tozero"},
        yaxis2={"title": "accuracy", "overlaying": "y", "side": "right", "range": [0, 1.02]},
    )
    shape = found.u_shape
    said = (
        "There are too few levels to test for a U."
        if shape is None
        else f"Test of the U (falling, then rising): p = {shape.p_value:.2g}, its bottom at "
        f"{shape.bottom:g}."
    )
    return Figure(
        f"Entropy against difficulty ({setting})",
        f"Means with 95 % intervals over questions. {said}",
        plot,
    )


experiment = DiffAdaptExperiment()
