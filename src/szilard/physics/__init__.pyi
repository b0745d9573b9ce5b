from ._dual import InfeasibleError
from .active import ActiveOU
from .ensembles import Ensemble, canonical, grand_canonical, isothermal_isobaric
from .entropy_production import (
    DiffusionSystem,
    EntropyProduction,
    LocalScoreTransformer,
    ScoreMLP,
    ScoreNetwork,
    entropy_production,
    gaussian_entropy_production,
)
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
from .score_matching import Score, ScoreTrainer
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
    "ActiveOU",
    "DiffusionSystem",
    "EntropyProduction",
    "entropy_production",
    "gaussian_entropy_production",
    "LocalScoreTransformer",
    "Score",
    "ScoreMLP",
    "ScoreNetwork",
    "ScoreTrainer",
]
