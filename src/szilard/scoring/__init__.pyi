from .calibration import CalibratedScorer, CalibratedTest
from .curves import Estimate, Separation, prediction_rejection_ratio, separation
from .texts import TokenScores, score_texts

__all__ = [
    # texts
    "score_texts",
    "TokenScores",
    # tests calibrated on a null sample
    "CalibratedScorer",
    "CalibratedTest",
    # curves
    "separation",
    "Separation",
    "Estimate",
    "prediction_rejection_ratio",
]
