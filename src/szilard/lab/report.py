"""A run as one self-contained HTML page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from szilard.catalog import Method
from szilard.lab.experiment import Verdict
from szilard.lab.figures import PALETTE
from szilard.lab.results import Results
from szilard.lab.templating import render


def render_report(
    method: Method,
    manifest: Mapping[str, Any],
    results: Results,
    *,
    plotly_js: str | None = None,
    home: str | None = None,
) -> str:
    """The report of a run.

    Args:
        method: whose run.
        manifest: its manifest.
        results: what it found.
        plotly_js: address of plotly.js relative to the page; None puts it into the page, which then
            needs no other file.
        home: address of the board relative to the page, where it is part of one.
    """
    levels = [c.measured.level for c in results.claims if c.measured and c.measured.level < 1]
    return render(
        "report.html.j2",
        method=method,
        manifest=manifest,
        results=results,
        command=command(manifest),
        level=levels[0] if levels else 0.95,
        coverage=1 - 2.0 ** (1 - len(manifest["seeds"])),
        verdicts=list(Verdict),
        palette=PALETTE,
        plotly_js=plotly_js,
        home=home,
    )


def command(manifest: Mapping[str, Any]) -> str:
    """The command line that computes a run.

    Examples:
        >>> command({"slug": "peccary", "preset": "quick", "changed": {"n": 3}, "seeds": [0, 1]})
        'szilard run peccary --preset quick --set n=3 --seeds 2'
    """
    words = ["szilard", "run", manifest["slug"], "--preset", manifest["preset"]]
    for key, value in manifest["changed"].items():
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join([*words, "--seeds", str(len(manifest["seeds"]))])
