"""Inv-Entropy: uncertainty of a small model that knows some facts well, some a little, some not at all.

A transformer learns the capitals of invented countries, each fact seen 0, 1, 4 or 40 times, in seven of
ten ways to ask; the ten are the variants. Its answers are names of real capitals, sampled at a
temperature; uncertainties are judged by whether a separate answer is right, and by whether they rise with
the temperature. The genetic search for variants runs on questions in plain English.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from szilard.lab.experiment import (
    Claim,
    ExperimentConfig,
    Figure,
    Log,
    Preset,
    Row,
)
from szilard.lab.figures import color
from szilard.lab.statistics import mean_interval, paired_difference
from szilard.scoring import prediction_rejection_ratio, separation
from szilard.uncertainty import (
    GAAP,
    InvEntropy,
    WordNet,
    degree_uncertainty,
    embedder,
    inv_entropy,
    kernel_language_entropy,
    lexical_dissimilarity,
    semantic_entropy,
    tsu,
)
from szilard.zoo.language import tiny_language_model
from szilard.zoo.words import wordnet_folder

if TYPE_CHECKING:
    import pandas as pd

METHOD = "inv-entropy"
ABSOLUTE = "|cos| in place of (1 + cos) / 2"
ONE_ANSWER = "one answer a variant"
FORWARD = "without the inversion"
SEMANTIC = "semantic entropy, 10 answers"
SEMANTIC_EQUAL = "semantic entropy, equal budget"
EXACT_EQUAL = "entropy of all perturbed answers"
DEGREE = "degree of dissimilarity, 10 answers"
KERNEL = "kernel language entropy, 10 answers"
LEXICAL = "lexical dissimilarity, 10 answers"
TOKEN = "token entropy (white box)"
SEARCH = "GAAP"

TEMPLATES = (
    "What is the capital of {}?",
    "Which city is the capital of {}?",
    "Name the capital of {}.",
    "The capital city of {} is called what?",
    "Tell me the capital of {}.",
    "Where is the government of {}?",
    "What city is the seat of government of {}?",
    "Do you know the capital of {}?",
    "{} has which capital?",
    "Of {}, what is the capital city?",
)
LEARNED = 7  # templates that training sees
CAPITALS = [
    "Accra",
    "Algiers",
    "Amman",
    "Ankara",
    "Athens",
    "Baghdad",
    "Baku",
    "Bangkok",
    "Beirut",
    "Belgrade",
    "Berlin",
    "Bern",
    "Bogota",
    "Brasilia",
    "Brussels",
    "Bucharest",
    "Budapest",
    "Cairo",
    "Canberra",
    "Caracas",
    "Colombo",
    "Copenhagen",
    "Dakar",
    "Damascus",
    "Delhi",
    "Dhaka",
    "Dublin",
    "Hanoi",
    "Havana",
    "Helsinki",
    "Jakarta",
    "Kabul",
    "Khartoum",
    "Kyiv",
    "Lima",
    "Lisbon",
    "London",
    "Luanda",
    "Madrid",
    "Manila",
    "Moscow",
    "Nairobi",
    "Oslo",
    "Ottawa",
    "Paris",
    "Prague",
    "Quito",
    "Riga",
    "Rome",
    "Seoul",
]
QUESTIONS = (
    "What is the largest planet in the solar system?",
    "Who painted the ceiling of the chapel?",
    "Which river flows through the city of Vienna?",
    "How many bones are in the human body?",
    "What metal is liquid at room temperature?",
    "Which animal is the fastest on land?",
    "In what year did the first man walk on the moon?",
    "What is the chemical symbol of gold?",
    "Which ocean lies between Africa and Australia?",
    "What language is spoken in Brazil?",
    "Who invented the telephone?",
    "What is the boiling point of water?",
    "Which country has the largest population?",
    "What gas do plants absorb from the air?",
    "Which instrument has black and white keys?",
    "What is the smallest prime number?",
    "Which mountain is the highest in the world?",
    "What is the main ingredient of bread?",
    "Which bird is a symbol of peace?",
    "What organ pumps blood through the body?",
)


class InvEntropyConfig(ExperimentConfig):
    seeds: int = Field(default=5, ge=1, description="number of seeds; each trains its own model")
    countries: int = Field(
        default=240, ge=8, description="invented, a quarter of them each exposure"
    )
    exposures: tuple[int, ...] = Field(
        default=(0, 1, 4, 40), description="times a fact of each quarter is seen in an epoch"
    )
    hidden: int = Field(default=64, ge=8, description="width of the model")
    steps: int = Field(default=600, ge=1, description="of its training")
    batch: int = Field(default=64, ge=1, description="facts a step")
    rate: float = Field(default=3e-3, gt=0, description="learning rate")
    answers: int = Field(default=5, ge=1, description="sampled from each variant")
    draws: int = Field(default=30, ge=1, description="of the bootstrap")
    temperature: float = Field(default=0.7, gt=0, description="of the answers that are judged")
    temperatures: tuple[float, ...] = Field(
        default=(0.3, 0.7, 1.0, 1.4), description="over which uncertainty should rise"
    )
    searched: int = Field(default=10, ge=1, description="English questions that GAAP varies")
    model: str | None = Field(
        default=None,
        description="a model by name, in place of the small one: asks it `questions`",
    )
    questions: str | None = Field(
        default=None,
        description="JSON lines with question and answer, for `model`; right where the answer is in its text",
    )


class InvEntropyExperiment:
    Config: ClassVar[type[ExperimentConfig]] = InvEntropyConfig
    presets: ClassVar[Mapping[Preset, ExperimentConfig]] = {
        "smoke": InvEntropyConfig(
            seeds=2, countries=24, hidden=16, steps=60, answers=2, draws=4,
            temperatures=(0.7, 1.4), searched=1,
        ),
        "quick": InvEntropyConfig(),
        "paper": InvEntropyConfig(model="meta-llama/Llama-3.1-8B-Instruct", questions="questions.jsonl"),
    }  # fmt: skip

    def arms(self, config: InvEntropyConfig) -> Sequence[str]:
        return [METHOD, SEMANTIC, TOKEN, SEARCH]

    def run(self, config: InvEntropyConfig, arm: str, seed: int, log: Log) -> Sequence[Row]:
        if arm == SEARCH:
            return list(_searched(config, seed, log))
        world = _world(config, seed)
        parts = {METHOD: _ours, SEMANTIC: _samples, TOKEN: _white_box}
        return list(parts[arm](config, world, seed, log))

    def claims(self, config: InvEntropyConfig, table: pd.DataFrame) -> Sequence[Claim]:
        return _claims(config, table)

    def figures(self, config: InvEntropyConfig, table: pd.DataFrame) -> Sequence[Figure]:
        return _figures(config, table)


experiment = InvEntropyExperiment()


# --- a model and what it is asked -----------------------------------------------------------------


class Capitals:
    """Invented countries, how often each fact is seen, and the model that saw them.

    Attributes:
        questions: one a country, the first way to ask.
        right: the capital of each.
        exposure: times its fact is in an epoch.
    """

    def __init__(self, config: InvEntropyConfig, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        self.config = config
        self.countries = _names(config.countries, rng)
        self.truth = rng.integers(len(CAPITALS), size=config.countries)
        self.right = [CAPITALS[i] for i in self.truth]
        shares = np.arange(config.countries) * len(config.exposures) // config.countries
        self.exposure = np.array(config.exposures)[shares]
        self.questions = [TEMPLATES[0].format(country) for country in self.countries]
        words = sorted({w for t in TEMPLATES for w in _words(t.replace("{}", " "))})
        vocabulary = ["", *words, *self.countries]
        self._place = {word: i for i, word in enumerate(vocabulary)}
        self._first = len(vocabulary)  # capitals come last
        self.model = tiny_language_model(
            vocab=self._first + len(CAPITALS), hidden=config.hidden, layers=2, heads=4, seed=seed
        )
        self._train(rng, seed)

    def _train(self, rng: np.random.Generator, seed: int) -> None:
        facts = np.repeat(np.arange(len(self.countries)), self.exposure)
        optimiser = torch.optim.AdamW(self.model.parameters(), lr=self.config.rate)
        schedule = torch.optim.lr_scheduler.LinearLR(
            optimiser, 1.0, 0.05, total_iters=self.config.steps
        )
        self.model.train()
        for _ in range(self.config.steps):
            chosen = rng.choice(facts, self.config.batch)
            ways = rng.integers(LEARNED, size=self.config.batch)
            asked = [
                TEMPLATES[way].format(self.countries[fact])
                for fact, way in zip(chosen, ways, strict=True)
            ]
            target = torch.from_numpy(self.truth[chosen])
            loss = torch.nn.functional.cross_entropy(self.logits(asked), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        self.model.eval()

    def logits(self, prompts: Sequence[str]) -> torch.Tensor:
        """Of the capitals as the next word, (prompts, capitals)."""
        rows = [[self._place[word] for word in _words(prompt)] for prompt in prompts]
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        found = self.model(input_ids=ids, attention_mask=mask).logits
        return found[torch.arange(len(rows)), mask.sum(1) - 1, self._first :]

    @torch.no_grad()
    def law(self, prompts: Sequence[str], temperature: float) -> np.ndarray:
        return (self.logits(prompts).double() / temperature).softmax(-1).numpy()

    def generator(self, seed: Sequence[int]) -> Any:
        """The hook that InvEntropy asks: prompts, answers a prompt, temperature."""
        rng = np.random.default_rng(seed)

        def generate(prompts: list[str], n: int, temperature: float) -> list[list[str]]:
            return [
                [CAPITALS[i] for i in rng.choice(len(CAPITALS), n, p=p)]
                for p in self.law(prompts, temperature)
            ]

        return generate

    def perturb(self, question: str, n: int, rng: np.random.Generator) -> list[str]:
        country = next(word for word in _words(question) if word in self._invented)
        return [template.format(country) for template in TEMPLATES[1 : n + 1]]

    @property
    def _invented(self) -> set[str]:
        return set(self.countries)


def _words(text: str) -> list[str]:
    for mark in "?.,":
        text = text.replace(mark, f" {mark} ")
    return text.split()


def _names(count: int, rng: np.random.Generator) -> list[str]:
    starts, middles, ends = "BDFGKLMNPRSTVZ", "aeiou", ("nia", "land", "stan", "ria", "dor", "via")
    names: dict[str, None] = {}
    while len(names) < count:
        letters = [rng.choice(list(starts)), rng.choice(list(middles)), rng.choice(list(starts)).lower(),
                   rng.choice(list(middles)), rng.choice(ends)]  # fmt: skip
        names["".join(letters)] = None
    return list(names)


class HuggingFace:
    """A model by name and questions from a file, in the small world's place."""

    def __init__(self, config: InvEntropyConfig, seed: int) -> None:
        import json
        from pathlib import Path

        from szilard.uncertainty import Paraphrase
        from szilard.zoo.language import load_language_model

        assert config.model is not None
        if config.questions is None or not Path(config.questions).is_file():
            raise ValueError(f"questions must be a file of JSON lines, but is {config.questions!r}")
        self.questions, self.right = [], []
        for number, line in enumerate(Path(config.questions).read_text("utf-8").splitlines(), 1):
            row = json.loads(line)
            for name in ("question", "answer"):
                if not isinstance(row.get(name), str):
                    raise ValueError(f"questions: line {number} must have a text {name!r}")
            self.questions.append(row["question"])
            self.right.append(row["answer"])
        self.exposure = np.full(len(self.questions), -1)
        self.model, self.tokenizer = load_language_model(
            config.model,
            dtype=torch.bfloat16,
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
        self._paraphrase = Paraphrase(self.generator([seed, 9], longest=400))

    def generator(self, seed: Sequence[int], longest: int = 32) -> Any:
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**31)))

        def generate(prompts: list[str], n: int, temperature: float) -> list[list[str]]:
            found = []
            for prompt in prompts:
                asked = f"{prompt} Answer concisely." if longest < 100 else prompt
                chat = [{"role": "user", "content": asked}]
                inputs = self.tokenizer.apply_chat_template(
                    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
                ).to(self.model.device)
                out = self.model.generate(
                    **inputs, do_sample=True, temperature=temperature, top_k=0,
                    num_return_sequences=n, max_new_tokens=longest,
                )  # fmt: skip
                start = inputs["input_ids"].shape[1]
                found.append(self.tokenizer.batch_decode(out[:, start:], skip_special_tokens=True))
            return found

        return generate

    def perturb(self, question: str, n: int, rng: np.random.Generator) -> list[str]:
        return self._paraphrase(question, n, rng)


World = Capitals | HuggingFace


@lru_cache(maxsize=1)
def _world(config: InvEntropyConfig, seed: int) -> World:
    return HuggingFace(config, seed) if config.model else Capitals(config, seed)


@lru_cache(maxsize=1)
def _embed() -> Any:
    """MiniLM, each text once."""
    known: dict[str, np.ndarray] = {}
    model = embedder("all-MiniLM-L6-v2")

    def embed(texts: list[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, model(new), strict=True))
        return np.stack([known[text] for text in texts])

    return embed


def _is_right(said: str, right: str) -> bool:
    return right.lower() in said.lower()


# --- arms -----------------------------------------------------------------------------------------


def _wrong(config: InvEntropyConfig, world: World, seed: int) -> np.ndarray:
    said = world.generator([seed, 2])(list(world.questions), 1, config.temperature)
    return np.array(
        [not _is_right(one[0], right) for one, right in zip(said, world.right, strict=True)]
    )


def _judged(arm: str, wrong: np.ndarray, uncertainty: np.ndarray) -> Iterator[Row]:
    auc = separation(wrong, uncertainty, resamples=1).auc.value if 0 < wrong.mean() < 1 else np.nan
    yield {"scorer": arm, "metric": "auroc", "value": float(auc)}
    if 0 < wrong.mean() < 1:
        prr = prediction_rejection_ratio(~wrong, uncertainty)
        yield {"scorer": arm, "metric": "prr", "value": float(prr)}


def _sensitivity(
    config: InvEntropyConfig, arm: str, by_temperature: Mapping[float, np.ndarray]
) -> Iterator[Row]:
    t = config.temperatures
    sets = {(t[-2], t[-1]), (t[1] if len(t) > 2 else t[0], t[-1]), tuple(t[1:]), tuple(t)}
    for chosen in sorted(sets, key=lambda s: (len(s), s)):
        if len(chosen) > 1:
            value = tsu(np.stack([by_temperature[c] for c in chosen], 1))
            yield {
                "scorer": arm, "metric": "tsu", "value": value,
                "temperatures": "-".join(f"{c:g}" for c in chosen), "count": len(chosen),
            }  # fmt: skip


def _ours(config: InvEntropyConfig, world: World, seed: int, log: Log) -> Iterator[Row]:
    wrong = _wrong(config, world, seed)
    yield {"scorer": METHOD, "metric": "accuracy", "value": float(1 - wrong.mean())}
    for exposure in np.unique(world.exposure):
        here = world.exposure == exposure
        yield {
            "scorer": METHOD, "metric": "accuracy by exposure",
            "value": float(1 - wrong[here].mean()), "exposure": int(exposure),
        }  # fmt: skip
    scores: dict[str, dict[float, np.ndarray]] = {}
    temperatures = sorted({config.temperature, *config.temperatures})
    with warnings.catch_warnings():
        # A model that is sure of different things is what this is about.
        warnings.filterwarnings("ignore", "an answer leads back")
        for i, temperature in enumerate(temperatures):
            made = InvEntropy(
                world.generator([seed, 3, i]), world.perturb, _embed(), n_answers=config.answers,
                n_bootstrap=config.draws, temperature=temperature, random_state=seed,
            )  # fmt: skip
            scores.setdefault(METHOD, {})[temperature] = made.score(world.questions)
            details = made.details_
            variants = [one.variants for one in details]
            answers = [one.answers for one in details]
            absolute = InvEntropy(
                made.generate, made.perturb, _embed(), similarity="abs_cosine",
                n_bootstrap=config.draws, random_state=seed,
            )  # fmt: skip
            scores.setdefault(ABSOLUTE, {})[temperature] = absolute.score_answers(variants, answers)
            firsts = [[said[:1] for said in one] for one in answers]
            scores.setdefault(ONE_ANSWER, {})[temperature] = made.score_answers(variants, firsts)
            forward = []
            for one in details:
                each = np.stack([one.answer_similarity[:, a, :, a] for a in range(config.answers)])
                forward.append(float(inv_entropy(one.question_similarity, each).ni_entropy.mean()))
            scores.setdefault(FORWARD, {})[temperature] = np.array(forward)
            scores.setdefault(EXACT_EQUAL, {})[temperature] = np.array(
                [semantic_entropy([a for said in one for a in said]) for one in answers]
            )
            log((i + 1) / len(temperatures), f"temperature {temperature:g}")
    for arm, found in scores.items():
        yield from _judged(arm, wrong, found[config.temperature])
        yield from _sensitivity(config, arm, found)
    if seed == 0:
        for value, mistaken, exposure in zip(
            scores[METHOD][config.temperature], wrong, world.exposure, strict=True
        ):
            yield {
                "scorer": METHOD, "metric": "score", "value": float(value),
                "wrong": float(mistaken), "exposure": int(exposure),
            }  # fmt: skip


def _samples(config: InvEntropyConfig, world: World, seed: int, log: Log) -> Iterator[Row]:
    """What needs the original question alone: ten answers, and as many as the method takes."""
    wrong = _wrong(config, world, seed)
    equal = len(TEMPLATES) * config.answers
    scores: dict[str, dict[float, np.ndarray]] = {}
    tools = InvEntropy(world.generator([0]), world.perturb, _embed())
    temperatures = sorted({config.temperature, *config.temperatures})
    for i, temperature in enumerate(temperatures):
        said = world.generator([seed, 4, i])(list(world.questions), equal, temperature)
        ten = [one[:10] for one in said]
        similarity = [tools.similarities(one) for one in ten]
        made = {
            SEMANTIC: [semantic_entropy(one) for one in ten],
            SEMANTIC_EQUAL: [semantic_entropy(one) for one in said],
            DEGREE: [degree_uncertainty(S) for S in similarity],
            KERNEL: [kernel_language_entropy(S) for S in similarity],
            LEXICAL: [lexical_dissimilarity(one) for one in ten],
        }
        for arm, values in made.items():
            scores.setdefault(arm, {})[temperature] = np.array(values)
        log((i + 1) / len(temperatures), f"temperature {temperature:g}")
    for arm, found in scores.items():
        yield from _judged(arm, wrong, found[config.temperature])
        yield from _sensitivity(config, arm, found)


def _white_box(config: InvEntropyConfig, world: World, seed: int, log: Log) -> Iterator[Row]:
    """The entropy of the model's own law of the answer, which a black box doesn't show."""
    if not isinstance(world, Capitals):
        return
    wrong = _wrong(config, world, seed)
    found = {}
    for temperature in sorted({config.temperature, *config.temperatures}):
        p = world.law(world.questions, temperature)
        found[temperature] = -(p * np.log(np.maximum(p, 1e-300))).sum(-1)
    yield from _judged(TOKEN, wrong, found[config.temperature])
    yield from _sensitivity(config, TOKEN, found)
    log(1.0, "done")


def _searched(config: InvEntropyConfig, seed: int, log: Log) -> Iterator[Row]:
    search = GAAP(WordNet(wordnet_folder()), _embed())
    asked = np.random.default_rng([seed, 5]).permutation(QUESTIONS)[: config.searched]
    for i, question in enumerate(map(str, asked)):
        variants = search(question, 9, np.random.default_rng([seed, 6, i]))
        means = [float(h.mean()) for h in search.history_]
        row = {"scorer": SEARCH, "question": question}
        yield row | {"metric": "distinct", "value": float(len(set(variants) - {question}))}
        yield row | {"metric": "fall", "value": means[0] - means[-1]}
        ended = search.history_[-1].max() < search.delta or len(means) > search.generations
        yield row | {"metric": "ended", "value": float(ended)}
        for generation, value in enumerate(means):
            yield row | {"metric": "similarity", "value": value, "generation": generation}
        log((i + 1) / len(asked), f"varied {i + 1} of {len(asked)}")


# --- claims ---------------------------------------------------------------------------------------


def _of(table: pd.DataFrame, scorer: str, metric: str, **equal: Any) -> np.ndarray:
    rows = table[(table.scorer == scorer) & (table.metric == metric)]
    for column, value in equal.items():
        rows = rows[rows[column] == value]
    return rows.sort_values("seed").value.to_numpy()


def _claims(config: InvEntropyConfig, table: pd.DataFrame) -> Sequence[Claim]:
    auc = {s: _of(table, s, "auroc") for s in table[table.metric == "auroc"].scorer.unique()}
    said = ", ".join(f"{s} {np.mean(v):.3f}" for s, v in auc.items() if s != METHOD)
    tsus = table[table.metric == "tsu"]
    sets = sorted(tsus.temperatures.unique(), key=lambda s: (s.count("-"), s))
    margins = {
        s: np.min(
            [_of(table, METHOD, "tsu", temperatures=s) - np.nan_to_num(other(s)) for s in sets],
            axis=0,
        )
        for s, other in (
            ("chance", lambda s: np.full(config.seeds, 1 / _factorial(s.count("-") + 1))),
            (SEMANTIC, lambda s: _of(table, SEMANTIC, "tsu", temperatures=s)),
        )
    }
    by_set = "; ".join(
        f"({s}) {_of(table, METHOD, 'tsu', temperatures=s).mean():.2f} against "
        f"{_of(table, SEMANTIC, 'tsu', temperatures=s).mean():.2f}"
        for s in sets
    )
    by_exposure = ", ".join(
        f"{_of(table, METHOD, 'accuracy by exposure', exposure=e).mean():.2f}"
        for e in sorted(set(config.exposures))
    ) if config.model is None else ""  # fmt: skip
    searched = table[table.scorer == SEARCH]
    claims = [
        Claim.judge(
            "Inv-Entropy tells wrong answers from right ones",
            paper="AUROC 0.66 to 0.79 (GPT-3.5, five data sets)",
            measured=mean_interval(auc[METHOD]),
            quantity="AUROC of wrong answers",
            above=0.6,
            note=f"Accuracy {_of(table, METHOD, 'accuracy').mean():.2f}; by exposure {by_exposure}. {said}. "
            f"PRR {_of(table, METHOD, 'prr').mean():.3f}, semantic entropy "
            f"{_of(table, SEMANTIC, 'prr').mean():.3f}.",
        ),
        Claim.judge(
            "... better than semantic entropy of ten answers",
            paper="0.788 against 0.579 (TriviaQA)",
            measured=paired_difference(auc[METHOD], auc[SEMANTIC]),
            quantity="difference in AUROC",
            above=0.04,
        ),
        Claim.judge(
            "... and than semantic entropy of as many answers",
            paper="not compared",
            measured=paired_difference(auc[METHOD], auc[SEMANTIC_EQUAL]),
            quantity="difference in AUROC, equal budget",
            above=0,
        ),
        Claim.judge(
            "... and than the plain entropy of the same perturbed answers",
            paper="not compared",
            measured=paired_difference(auc[METHOD], auc[EXACT_EQUAL]),
            quantity="difference in AUROC, equal answers",
            above=0,
        ),
        Claim.judge(
            "The inversion helps",
            paper="0.788 against 0.786 (TriviaQA), 0.740 against 0.681 (SciQ)",
            measured=paired_difference(auc[METHOD], auc[FORWARD]),
            quantity="difference in AUROC to P(y|x)",
            above=0,
        ),
        Claim.judge(
            "Replications of the answers help little",
            paper="0.788 against 0.743 (TriviaQA), 0.661 against 0.727 (NQ)",
            measured=mean_interval(np.abs(auc[METHOD] - auc[ONE_ANSWER])),
            quantity="difference in AUROC to one answer a variant",
            below=0.03,
        ),
        Claim.judge(
            "It rises with the temperature more often than chance",
            paper="TSU 0.78 (1.0, 1.4), 0.89 (0.7, 1.4), 0.47, 0.19 (four)",
            measured=mean_interval(margins["chance"]),
            quantity="least margin of TSU above 1/k!",
            above=0,
            note=f"Beside semantic entropy of ten answers: {by_set}.",
        ),
        Claim.judge(
            "... and more often than semantic entropy",
            paper="0.17, 0.21, 0.05, 0.04 of semantic entropy",
            measured=mean_interval(margins[SEMANTIC]),
            quantity="least margin of TSU",
            above=0,
        ),
        Claim.judge(
            "GAAP's populations drift away from the question",
            paper="by construction",
            measured=mean_interval(searched[searched.metric == "fall"].value),
            quantity="fall of the mean similarity from the first population to the last",
            above=0,
        ),
        Claim.judge(
            "... and give nine distinct variants",
            paper="nine",
            measured=mean_interval(searched[searched.metric == "distinct"].value),
            quantity="distinct variants, the question not among them",
            above=8.999,
        ),
        Claim.not_measurable(
            "GAAP beats paraphrasing; best of fourteen measures on five data sets",
            paper="Table 1, Figure 5",
            quantity="AUROC with language models of billions of parameters",
            note="Preset paper asks a model by name questions of your own.",
        ),
    ]
    return claims


def _factorial(k: int) -> int:
    return int(np.prod(np.arange(1, k + 1)))


# --- figures --------------------------------------------------------------------------------------


def _figures(config: InvEntropyConfig, table: pd.DataFrame) -> Sequence[Figure]:
    import plotly.graph_objects as go

    scorers = list(table[table.metric == "auroc"].scorer.unique())
    found = {s: mean_interval(_of(table, s, "auroc")) for s in scorers}
    scorers.sort(key=lambda s: found[s].value)
    plot = go.Figure(
        go.Bar(
            x=[found[s].value for s in scorers],
            y=scorers,
            orientation="h",
            error_x={
                "array": [found[s].high - found[s].value for s in scorers],
                "arrayminus": [found[s].value - found[s].low for s in scorers],
            },
            marker_color=[color(0) if s == METHOD else color(1) for s in scorers],
        )
    )
    plot.update_xaxes(title="AUROC of wrong answers", range=[0.5, 1])
    figures = [
        Figure(
            "Which answers are wrong",
            "Ten variants with five answers each, or answers to the original question alone.",
            plot,
        )
    ]
    tsus = table[table.metric == "tsu"]
    sets = sorted(tsus.temperatures.unique(), key=lambda s: (s.count("-"), s))
    plot = go.Figure()
    for i, scorer in enumerate((METHOD, SEMANTIC, EXACT_EQUAL, TOKEN)):
        values = [_of(table, scorer, "tsu", temperatures=s) for s in sets]
        if all(len(v) for v in values):
            plot.add_bar(
                x=sets, y=[float(v.mean()) for v in values], name=scorer, marker_color=color(i)
            )
    chance = [1 / _factorial(s.count("-") + 1) for s in sets]
    plot.add_scatter(
        x=sets,
        y=chance,
        mode="markers",
        name="chance",
        marker_symbol="line-ew-open",
        marker_size=30,
    )
    plot.update_xaxes(title="temperatures", type="category")
    plot.update_yaxes(title="share of questions whose uncertainty rises", range=[0, 1])
    figures.append(Figure("Rising with the temperature", "At every one of the steps named.", plot))
    rows = table[(table.metric == "score")]
    plot = go.Figure()
    for exposure in sorted(rows.exposure.unique()):
        one = rows[rows.exposure == exposure]
        plot.add_box(y=one.value, name=f"seen {exposure:g} times", boxpoints=False)
    plot.update_yaxes(title="Inv-Entropy (nats)")
    figures.append(
        Figure(
            "By how often a fact was seen",
            "First seed. Most of the range above ln 10 = 2.3026 is within some thousandths.",
            plot,
        )
    )
    rows = table[(table.scorer == SEARCH) & (table.metric == "similarity")]
    mean = rows.groupby("generation").value.mean()
    plot = go.Figure(go.Scatter(x=mean.index, y=mean, mode="lines+markers"))
    plot.update_xaxes(title="generation")
    plot.update_yaxes(title="mean similarity to the question")
    figures.append(Figure("GAAP drifts away", "Mean over questions and seeds.", plot))
    return figures
