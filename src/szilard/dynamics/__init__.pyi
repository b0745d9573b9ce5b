from .peccary import (
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

__all__ = [
    "Peccary",
    "natural_timescale",
    "delay_of_pattern_time",
    "hc_curves",
    "HCCurves",
    "hc_region",
    "periodic_bounds",
    "uniform_step",
    "UndersampledWarning",
]
