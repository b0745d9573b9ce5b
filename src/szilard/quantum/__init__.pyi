from .bit_flips import bitflip, effective_rate, mixture_rate
from .counts import Shots, hellinger_fidelity, normalized_entropy, read_counts
from .error_rate import EffectiveErrorRate, circuit_features, success_probability
from .qcluster import HighEntropyWarning, QCluster
from .twirling import suppression_options, twirl, untwirl

__all__ = [
    "QCluster",
    "HighEntropyWarning",
    "Shots",
    "read_counts",
    "hellinger_fidelity",
    "normalized_entropy",
    "bitflip",
    "effective_rate",
    "mixture_rate",
    "EffectiveErrorRate",
    "circuit_features",
    "success_probability",
    "twirl",
    "untwirl",
    "suppression_options",
]
