"""The code that the documentation shows runs as shown."""

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).resolve().parent.parent / "docs"


def code(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)


def test_the_ten_lines_of_the_readme_run(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = code("../README.md")
    shown: dict[str, object] = {}
    with torch.no_grad():
        exec(block, shown)
    assert "tensor(" in capsys.readouterr().out
    assert shown["text"].shape[-1] > shown["inputs"]["input_ids"].shape[-1]


def test_measures_in_five_minutes_runs_from_top_to_bottom() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 40)
    density = torch.diag(torch.tensor([0.5, 0.25, 0.25]))
    shown = {
        "logits": torch.randn(2, 16, 40),
        "targets": torch.randint(40, (2, 16)),
        "attention_mask": torch.ones(2, 16),
        "hidden": torch.randn(2, 16, 8, requires_grad=True),
        "head": head,
        "weights": torch.randn(2, 3, 5, 5).softmax(-1),
        "activations": torch.randn(50, 6),
        "density_matrix": density,
    }
    for block in code("measures.md"):
        exec(block, shown)
    assert head.weight.grad is not None


def test_the_experiment_shown_in_write_a_method_runs_and_judges_its_claim() -> None:
    import pandas as pd

    shown: dict[str, object] = {"__name__": "coin"}
    exec(code("write-a-method.md")[0], shown)
    experiment = shown["experiment"]
    config = experiment.presets["smoke"]
    rows = [
        {**row, "arm": arm, "seed": seed}
        for arm in experiment.arms(config)
        for seed in range(config.seeds)
        for row in experiment.run(config, arm, seed, lambda fraction, message: None)
    ]
    (claim,) = experiment.claims(config, pd.DataFrame(rows))
    assert claim.verdict == "holds"
    assert experiment.figures(config, pd.DataFrame(rows))[0].plot.data


@pytest.mark.parametrize("page", sorted(str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md")))
def test_every_python_block_of_the_docs_compiles(page: str) -> None:
    for block in code(page):
        compile(block, page, "exec")
