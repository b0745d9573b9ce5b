from .diffadapt import (
    DEFAULT_STRATEGIES,
    Collected,
    DiffAdapt,
    DiffAdaptOutput,
    Strategy,
    chat_layout,
)
from .difficulty import (
    DifficultyProbe,
    DifficultyProfile,
    SuggestedThresholds,
    ThresholdReport,
    UShape,
    difficulty_profile,
    label_difficulty,
    suggest_thresholds,
)
from .entropy_adaptive import (
    EADCost,
    EADOutput,
    EntropyAdaptiveDecoder,
    RollingEntropyController,
    paper_cost,
    route_trace,
)
from .reading import CachedReader
from .reasoning_utility import (
    ReasoningUtility,
    Step,
    UtilityProfile,
    answer_entropy,
    answer_nll,
    packed_profile,
    should_stop,
    split_steps,
    stopping_step,
)
from .trace import EntropyRecorder, TokenTrace
from .typical import LocalTypicality, local_typicality, typical_mask, typical_sample
from .typical_processor import TypicalLogitsProcessor
from .uscd import collision_to_std, std_to_collision, strip_examples, uscd_combine
from .uscd_processor import USCDLogitsProcessor, USCDRecord
from .utility_stopping import UtilityStoppingCriteria

__all__ = [
    "EntropyAdaptiveDecoder",
    "RollingEntropyController",
    "EADOutput",
    "EADCost",
    "route_trace",
    "paper_cost",
    "TypicalLogitsProcessor",
    "typical_mask",
    "typical_sample",
    "local_typicality",
    "LocalTypicality",
    "USCDLogitsProcessor",
    "USCDRecord",
    "uscd_combine",
    "strip_examples",
    "std_to_collision",
    "collision_to_std",
    "ReasoningUtility",
    "UtilityProfile",
    "UtilityStoppingCriteria",
    "answer_entropy",
    "answer_nll",
    "packed_profile",
    "split_steps",
    "Step",
    "should_stop",
    "stopping_step",
    "DiffAdapt",
    "DiffAdaptOutput",
    "Strategy",
    "DEFAULT_STRATEGIES",
    "chat_layout",
    "Collected",
    "DifficultyProbe",
    "label_difficulty",
    "suggest_thresholds",
    "SuggestedThresholds",
    "ThresholdReport",
    "difficulty_profile",
    "DifficultyProfile",
    "UShape",
    "EntropyRecorder",
    "TokenTrace",
    "CachedReader",
]
