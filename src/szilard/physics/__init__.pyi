from ._dual import InfeasibleError
from .ensembles import Ensemble, canonical, grand_canonical, isothermal_isobaric
from .maxent import (
    BoundaryWarning,
    MaxEnt,
    MaxEntModel,
    divergence,
    product_states,
    push_forward,
    quadrature,
)
from .process import InformationLoss, Process, ProcessRun
from .tree import TreeMaxEnt, TreeModel

__all__ = [
    "MaxEnt",
    "MaxEntModel",
    "InfeasibleError",
    "BoundaryWarning",
    "divergence",
    "product_states",
    "push_forward",
    "quadrature",
    "TreeMaxEnt",
    "TreeModel",
    "Ensemble",
    "canonical",
    "grand_canonical",
    "isothermal_isobaric",
    "Process",
    "ProcessRun",
    "InformationLoss",
]
