from .attention import AttentionEntropyRecorder, CollapseWarning, HeadEntropy
from .categorization import encoding_report, match_clusters, neighbor_classes
from .diffusion import DiffusionSpectralEntropy, RepresentationMonitor, RepresentationRecord
from .effective_features import (
    DeadDictionary,
    EffectiveFeatures,
    FeatureBudget,
    Superposition,
    effective_features,
    measure_superposition,
)
from .neural_code import (
    ChannelSums,
    NeuralCode,
    NeuralCodeEncoder,
    PackedCodes,
    expressivity,
    phase_chart,
    random_redundancy,
)
from .pretraining import DynamicsTable, Forecast, SimilarityReport, UnseenPrediction
from .pretraining_callback import DynamicsCallback
from .pretraining_checkpoints import evaluate_checkpoints
from .recorder import ActivationRecorder
from .robustness import Effect, combine_effects, robustness_slope
from .sae import SAEReport, TiedSAE, UntiedSAE, train_sae
from .training import MeasureLogger

__all__ = [
    "NeuralCode",
    "NeuralCodeEncoder",
    "PackedCodes",
    "ChannelSums",
    "encoding_report",
    "neighbor_classes",
    "match_clusters",
    "random_redundancy",
    "expressivity",
    "phase_chart",
    "DiffusionSpectralEntropy",
    "RepresentationMonitor",
    "RepresentationRecord",
    "ActivationRecorder",
    "MeasureLogger",
    "AttentionEntropyRecorder",
    "HeadEntropy",
    "CollapseWarning",
    "effective_features",
    "EffectiveFeatures",
    "FeatureBudget",
    "DeadDictionary",
    "measure_superposition",
    "Superposition",
    "train_sae",
    "TiedSAE",
    "UntiedSAE",
    "SAEReport",
    "robustness_slope",
    "combine_effects",
    "Effect",
    "DynamicsTable",
    "SimilarityReport",
    "Forecast",
    "UnseenPrediction",
    "DynamicsCallback",
    "evaluate_checkpoints",
]
