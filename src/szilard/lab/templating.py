"""Jinja templates of the report, the board and the reading, and how they write numbers."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

from szilard.lab.experiment import Interval


def render(template: str, **context: Any) -> str:
    """Renders one of the package's templates."""
    return _environment().get_template(template).render(**context)


def number(value: float) -> str:
    """A number to four significant digits.

    Examples:
        >>> number(0.123456), number(12345.6), number(float("nan"))
        ('0.1235', '12346', 'n/a')
    """
    if math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"
    return text.replace("-", "−")


def interval(measured: Interval | None) -> str:
    """A value with its interval.

    Examples:
        >>> interval(Interval(0.5, 0.4, 0.6))
        '0.5 [0.4, 0.6]'
        >>> interval(Interval.exact(2.0))
        '2 (exact)'
    """
    if measured is None:
        return "–"
    if measured.low == measured.high and measured.level == 1:
        return f"{number(measured.value)} (exact)"
    if math.isinf(measured.low) and math.isinf(measured.high):
        return f"{number(measured.value)} (one seed: no interval)"
    return f"{number(measured.value)} [{number(measured.low)}, {number(measured.high)}]"


def spread(measured: Interval) -> bool:
    """Whether an interval has a width that can be shown."""
    return measured.low < measured.high and math.isfinite(measured.low)


def plain(value: Any) -> str:
    """A setting as it would be typed."""
    return value if isinstance(value, str) else json.dumps(value)


def script_json(content: Any) -> Markup:
    """JSON that may stand inside a script element."""
    text = json.dumps(content, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def plotly_source() -> Markup:
    """plotly.js itself, from the installed package."""
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("szilard.lab"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "interval": interval,
        "script_json": script_json,
        "plain": plain,
    }
    environment.tests["spread"] = spread
    environment.globals |= {"plotly_source": plotly_source}
    return environment
