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
from .sigma import SigmaConv2d, SigmaLinear, SigmaReparam, fuse, sigma_reparam, update_sigma

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
]
