from .reading import CachedReader
from .trace import EntropyRecorder, TokenTrace
from .typical import LocalTypicality, local_typicality, typical_mask, typical_sample
from .typical_processor import TypicalLogitsProcessor

__all__ = [
    "TypicalLogitsProcessor",
    "typical_mask",
    "typical_sample",
    "local_typicality",
    "LocalTypicality",
    "EntropyRecorder",
    "TokenTrace",
    "CachedReader",
]
