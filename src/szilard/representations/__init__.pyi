from .attention import AttentionEntropyRecorder, CollapseWarning, HeadEntropy
from .diffusion import DiffusionSpectralEntropy, RepresentationMonitor, RepresentationRecord
from .recorder import ActivationRecorder
from .training import MeasureLogger

__all__ = [
    "DiffusionSpectralEntropy",
    "RepresentationMonitor",
    "RepresentationRecord",
    "ActivationRecorder",
    "MeasureLogger",
    "AttentionEntropyRecorder",
    "HeadEntropy",
    "CollapseWarning",
]
