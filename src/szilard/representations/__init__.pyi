from .attention import AttentionEntropyRecorder, CollapseWarning, HeadEntropy
from .diffusion import DiffusionSpectralEntropy, RepresentationMonitor, RepresentationRecord
from .recorder import ActivationRecorder

__all__ = [
    "DiffusionSpectralEntropy",
    "RepresentationMonitor",
    "RepresentationRecord",
    "ActivationRecorder",
    "AttentionEntropyRecorder",
    "HeadEntropy",
    "CollapseWarning",
]
