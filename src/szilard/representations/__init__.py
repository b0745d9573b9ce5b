"""What a network's representations hold: entropies of activations, and the recorder that collects them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from szilard.measures.spectral import (
        DiffusionSpectrum,
        DSMIResult,
        diffusion_spectral_entropy,
        diffusion_spectral_mutual_information,
        diffusion_spectrum,
    )
    from szilard.representations.diffusion import (
        DiffusionSpectralEntropy,
        RepresentationMonitor,
        RepresentationRecord,
    )
    from szilard.representations.recorder import ActivationRecorder

_HOMES = {
    "DiffusionSpectralEntropy": "szilard.representations.diffusion",
    "RepresentationMonitor": "szilard.representations.diffusion",
    "RepresentationRecord": "szilard.representations.diffusion",
    "ActivationRecorder": "szilard.representations.recorder",
    "DiffusionSpectrum": "szilard.measures.spectral",
    "DSMIResult": "szilard.measures.spectral",
    "diffusion_spectrum": "szilard.measures.spectral",
    "diffusion_spectral_entropy": "szilard.measures.spectral",
    "diffusion_spectral_mutual_information": "szilard.measures.spectral",
}

__all__ = [
    "DiffusionSpectralEntropy",
    "RepresentationMonitor",
    "RepresentationRecord",
    "ActivationRecorder",
    "diffusion_spectral_entropy",
    "diffusion_spectral_mutual_information",
    "diffusion_spectrum",
    "DiffusionSpectrum",
    "DSMIResult",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
