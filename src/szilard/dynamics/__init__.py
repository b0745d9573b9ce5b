"""Time series and the dynamics behind them: estimators on arrays."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from szilard.dynamics.peccary import (
        HCCurves,
        Peccary,
        UndersampledWarning,
        delay_of_pattern_time,
        hc_curves,
        hc_region,
        natural_timescale,
        periodic_bounds,
        uniform_step,
    )

_EXPORTS = {
    "Peccary": "peccary",
    "HCCurves": "peccary",
    "UndersampledWarning": "peccary",
    "delay_of_pattern_time": "peccary",
    "hc_curves": "peccary",
    "hc_region": "peccary",
    "natural_timescale": "peccary",
    "periodic_bounds": "peccary",
    "uniform_step": "peccary",
}

__all__ = [
    "Peccary",
    "HCCurves",
    "UndersampledWarning",
    "delay_of_pattern_time",
    "hc_curves",
    "hc_region",
    "natural_timescale",
    "periodic_bounds",
    "uniform_step",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"szilard.dynamics.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
