"""Writes the texts, figures and pictures of docs/decoding.md: one prompt, every decoding method.

python docs/one_prompt.py            Gemma 3 270M on one core; two minutes, five the first time

Each part stands between a line that names its method and one that ends it. DiffAdapt's probe is
trained on the spot and kept in the cache, as are the models.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from string import Template

import torch

from szilard.cli.generate import marks_of, pieces_of
from szilard.cli.writers import WRITERS, Request, Written, parse_setting
from szilard.decoding import DiffAdapt
from szilard.decoding.difficulty import CLASSES
from szilard.zoo.cache import cached
from szilard.zoo.language import LanguageModel, load_language_model

PAGE = Path(__file__).with_name("decoding.md")
ASKED = "Question: What is the capital of {}?"
EXAMPLE = f"""\
{ASKED.format("Thailand")}
Answer: Thailand is a country in Asia. Its capital is Bangkok. The answer is Bangkok.

"""
QUESTION = ASKED.format("Portugal")
TOKENS, SEED = 40, 0
SETTINGS: dict[str, Sequence[str]] = {
    "plain": (),
    "typical-sampling": ("mass=0.2",),
    "uscd": ("lame=$QUESTION", "alpha=0.3"),
    "entropy-adaptive-decoding": ("tau_bits=6",),
    "diffadapt": ("probe=$PROBE",),
    "reasoning-utility": (
        "h_stop=0.5",
        r"boundary=[.?]\s*$",
        "lead_in= The answer is",
        "closing=.",
    ),
}
# Entropy at which the colour is full, nats; the same for all, so that pictures can be compared.
TOP = 5.0
NOT_REPEATABLE = {"seconds"}
WRAP = " \\\n    "

# What the probe learns from: countries everyone has heard of, and others.
SAMPLES = 4
CAPITALS = {
    **{
        "France": "Paris",
        "Italy": "Rome",
        "Spain": "Madrid",
        "Germany": "Berlin",
        "Japan": "Tokyo",
    },
    **{"China": "Beijing", "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens"},
    **{"Austria": "Vienna", "England": "London", "Poland": "Warsaw", "Cuba": "Havana"},
    **{"Iraq": "Baghdad", "Peru": "Lima", "Kenya": "Nairobi", "Norway": "Oslo", "Iran": "Tehran"},
    **{"Canada": "Ottawa", "Australia": "Canberra", "Brazil": "Bras", "Turkey": "Ankara"},
    **{"Bhutan": "Thimphu", "Palau": "Ngerulmud", "Nauru": "Yaren", "Tuvalu": "Funafuti"},
    **{"Vanuatu": "Port Vila", "Comoros": "Moroni", "Lesotho": "Maseru", "Eritrea": "Asmara"},
    **{"Suriname": "Paramaribo", "Malawi": "Lilongwe"},
}


def train_probe(folder: Path) -> None:
    """The model's own samples label the questions, and the probe learns the labels."""
    model, tokenizer = load_language_model()
    method = DiffAdapt(
        model, tokenizer, max_new_tokens=TOKENS, generator=torch.Generator().manual_seed(0)
    )
    capitals = {EXAMPLE + ASKED.format(country): name for country, name in CAPITALS.items()}

    def right(question: str, reply: str) -> bool:
        return capitals[question] in reply.split("\nQuestion")[0]

    collected = method.collect(list(capitals), right, SAMPLES, batch_size=8)
    suggested = method.fit(collected)
    assert suggested is not None
    method.probe.save(folder / "probe.safetensors")
    shares = suggested.report.shares
    counts = {
        name: round(share * len(capitals)) for name, share in zip(CLASSES, shares, strict=True)
    }
    known = {"labels": counts, "beta": suggested.beta, "right": float(collected.accuracy.mean())}
    known["names"] = dict(zip(CAPITALS, collected.accuracy.tolist(), strict=True))
    (folder / "labels.json").write_text(json.dumps(known))


def picture(parts: Sequence[str], written: Written) -> str:
    """The text with each token's entropy as its colour and events as lines below it."""
    marked = marks_of(written.trace)
    spans = []
    for i, part in enumerate(parts):
        entropy = float(written.trace.entropy[i])
        told = [f"entropy {entropy:.2f} nats"]
        told += [f"{name} {column[i]}" for name, column in written.trace.events.items()]
        shade = min(1.0, entropy / TOP)
        under = " ".join(f"m{k}" for k, column in enumerate(marked.values()) if column[i])
        name = f' class="{under}"' if under else ""
        text = escape(part or "▫").replace("\n", "↵<br>")
        spans.append(f'<span{name} style="--h:{shade:.2f}" title="{"; ".join(told)}">{text}</span>')
    keys = [
        f'<i class="m{k}">{escape(name)}</i> ({sum(column)} of {len(column)} tokens)'
        for k, (name, column) in enumerate(marked.items())
    ]
    under = f"<p>underlined: {', '.join(keys)}</p>\n" if keys else ""
    return f'<div class="tokens">{"".join(spans)}</div>\n{under}'


def part(method: str, written: Written, parts: Sequence[str]) -> str:
    """The command, what it says of the text, and the picture."""
    settings = "".join(f"{WRAP}--set {quoted(s)}" for s in SETTINGS[method])
    chosen = "" if method == "plain" else f"{WRAP}--method {method}{settings}"
    facts = {
        "tokens": str(len(parts)),
        "entropy": f"{written.trace.entropy.mean():.2f} nats a token",
    }
    facts |= {k: v for k, v in written.facts.items() if k not in NOT_REPEATABLE}
    lines = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    command = f'szilard generate "$EXAMPLE$QUESTION"{chosen}{WRAP}-n {TOKENS} --explain --html {method}.html'
    return f"```bash\n{command}\n```\n\n{picture(parts, written)}\n{lines}"


def quoted(setting: str) -> str:
    """As a shell wants it: only the variables of the page are to be filled in."""
    if re.search(r"\$[A-Z]", setting):
        return f'"{setting}"'
    return setting if re.fullmatch(r"[\w=.]+", setting) else f"'{setting}'"


def main() -> None:
    torch.set_num_threads(1)
    key = {"capitals": CAPITALS, "example": EXAMPLE, "samples": SAMPLES, "tokens": TOKENS}
    probe = cached("one-prompt-probe", {**key, "torch": torch.__version__}, train_probe)
    known = {"QUESTION": QUESTION, "PROBE": str(probe / "probe.safetensors")}
    language: LanguageModel = load_language_model()
    labels = json.loads((probe / "labels.json").read_text())
    made = {"prompt": f"```bash\nEXAMPLE='{EXAMPLE}'\nQUESTION='{QUESTION}'\n```"}
    for method, settings in SETTINGS.items():
        filled = [Template(setting).safe_substitute(known) for setting in settings]
        request = Request(
            EXAMPLE + QUESTION, *language, TOKENS, 1.0, SEED, dict(map(parse_setting, filled))
        )
        written = WRITERS[method](request)
        if method == "diffadapt":
            counts = ", ".join(f"{n} {name}" for name, n in labels["labels"].items())
            found = (
                f"{counts} (beta {labels['beta']:.2f} nats; {labels['right']:.0%} of replies right)"
            )
            written = replace(written, facts={"trained on": found, **written.facts})
        made[method] = part(method, written, pieces_of(request, written.trace))
    page = PAGE.read_text()
    for name, text in made.items():
        begin, end = f"<!-- {name}: written by docs/one_prompt.py -->", f"<!-- /{name} -->"
        head, _, rest = page.partition(begin)
        _, _, tail = rest.partition(end)
        page = f"{head}{begin}\n\n{text}\n\n{end}{tail}"
    PAGE.write_text(page)
    print(f"PROBE={known['PROBE']}")


if __name__ == "__main__":
    main()
