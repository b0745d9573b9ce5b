from .crrelu import (
    MONOTONE_EPS,
    CRReLU,
    crrelu,
    functional_activations,
    learned_eps,
    parameter_groups,
    register_activations,
    replace_activation,
)
from .entropy_guided import (
    AttentionTemperature,
    EntropyBand,
    ScaledFusedFFN,
    private_cost,
    spared_parameters,
)
from .entropy_report import AttentionEntropyReport
from .sigma import SigmaConv2d, SigmaLinear, SigmaReparam, fuse, sigma_reparam, update_sigma
from .softmax_only import (
    EntropyGuidedTrainer,
    convert_softmax_only,
    fuse_softmax_only,
    guide_entropy,
)

__all__ = [
    "SigmaLinear",
    "SigmaConv2d",
    "SigmaReparam",
    "sigma_reparam",
    "update_sigma",
    "fuse",
    "CRReLU",
    "crrelu",
    "replace_activation",
    "functional_activations",
    "register_activations",
    "learned_eps",
    "parameter_groups",
    "MONOTONE_EPS",
    "EntropyBand",
    "AttentionTemperature",
    "ScaledFusedFFN",
    "convert_softmax_only",
    "guide_entropy",
    "fuse_softmax_only",
    "EntropyGuidedTrainer",
    "AttentionEntropyReport",
    "private_cost",
    "spared_parameters",
]
