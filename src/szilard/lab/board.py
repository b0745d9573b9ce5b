"""All methods on one page: a static site over the finished runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from szilard import catalog
from szilard.catalog import Method
from szilard.lab.experiment import Verdict
from szilard.lab.figures import PALETTE
from szilard.lab.report import render_report
from szilard.lab.results import Results
from szilard.lab.store import runs
from szilard.lab.templating import plotly_source, render

_PRESETS = ("smoke", "quick", "paper")


@dataclass(frozen=True, slots=True)
class Card:
    """A method on the board; without a finished run it has no manifest and no results."""

    method: Method
    manifest: Mapping[str, Any] | None = None
    results: Results | None = None


def build_board(root: Path, folder: Path) -> Path:
    """Writes `index.html`, one page a run and plotly.js, shared by them.

    Args:
        root: the folder of all runs.
        folder: where the site goes; created where it is missing.

    Returns:
        Path of the index.
    """
    (folder / "reports").mkdir(parents=True, exist_ok=True)
    (folder / "plotly.min.js").write_text(plotly_source(), encoding="utf-8")
    cards = [_card(root, method) for method in catalog.METHODS]
    for card in cards:
        if card.manifest is not None and card.results is not None:
            page = render_report(
                card.method,
                card.manifest,
                card.results,
                plotly_js="../plotly.min.js",
                home="../index.html",
            )
            (folder / "reports" / f"{card.method.slug}.html").write_text(page, encoding="utf-8")
    finished = [card.results for card in cards if card.results is not None]
    index = folder / "index.html"
    index.write_text(
        render(
            "board.html.j2",
            families={
                family: (purpose, [card for card in cards if card.method.family == family])
                for family, purpose in catalog.FAMILIES.items()
            },
            methods=len(cards),
            ready=sum(card.method.status == "ready" for card in cards),
            finished=len(finished),
            counts={verdict: sum(r.count(verdict) for r in finished) for verdict in Verdict},
            verdicts=list(Verdict),
            palette=PALETTE,
        ),
        encoding="utf-8",
    )
    return index


def _card(root: Path, method: Method) -> Card:
    """The newest finished run of the method's highest preset; a changed preset counts below all."""
    best: tuple[tuple[int, str], Card] | None = None
    for run in runs(root, method.slug):
        manifest, results = run.read_json("manifest.json"), run.read_json("results.json")
        if manifest is None or results is None or manifest.get("status") != "finished":
            continue
        preset = -1 if manifest["changed"] else _PRESETS.index(manifest["preset"])
        rank = (preset, str(manifest["finished"]))
        if best is None or rank > best[0]:
            best = rank, Card(method, manifest, Results.from_json(results))
    return best[1] if best else Card(method)
