"""Colours of the plots: one palette that reads on white and on near-black alike."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Every colour has a contrast of at least 3.4 against both of the report's backgrounds.
PALETTE = (
    "#2f80d0",
    "#d9660f",
    "#14976a",
    "#cf4257",
    "#8a63d2",
    "#a07030",
    "#c8549f",
    "#748091",
    "#839116",
    "#1592a6",
)
# What plotly.express writes into traces when nobody chose a colour.
_PLOTLY_DEFAULTS = (
    "#636efa",
    "#EF553B",
    "#00cc96",
    "#ab63fa",
    "#FFA15A",
    "#19d3f3",
    "#FF6692",
    "#B6E880",
    "#FF97FF",
    "#FECB52",
)


def color(index: int) -> str:
    """The colour of the arm with this index.

    Examples:
        >>> color(0) == color(10)
        True
    """
    return PALETTE[index % len(PALETTE)]


def plot_json(figure: go.Figure) -> dict[str, Any]:
    """A figure as JSON without a theme, for a page that sets one light or dark."""
    text = figure.to_json()
    for default, ours in zip(_PLOTLY_DEFAULTS, PALETTE, strict=True):
        text = text.replace(default, ours)
    content: dict[str, Any] = json.loads(text)
    content["layout"].pop("template", None)
    content["layout"].pop("width", None)
    return content
