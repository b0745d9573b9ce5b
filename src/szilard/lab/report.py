"""A run as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from szilard.catalog import Method
from szilard.lab.results import Results
from szilard.lab.templating import render


def render_report(
    method: Method, manifest: Mapping[str, Any], results: Results, *, plotly_js: str | None = None
) -> str:
    """The report of a run.

    Args:
        method: whose run.
        manifest: its manifest.
        results: what it found.
        plotly_js: address of plotly.js relative to the page; None puts it into the page, which then
            needs no other file.
    """
    return render(
        "report.html.j2", method=method, manifest=manifest, results=results, plotly_js=plotly_js
    )
