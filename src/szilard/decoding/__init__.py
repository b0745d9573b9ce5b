"""Methods that act while text is being generated: logits processors for `generate`, and the rules
they apply as plain functions on tensors and arrays.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from szilard.decoding.typical import (
        LocalTypicality,
        local_typicality,
        typical_mask,
        typical_sample,
    )
    from szilard.decoding.typical_processor import TypicalLogitsProcessor

__all__ = [
    "LocalTypicality",
    "TypicalLogitsProcessor",
    "local_typicality",
    "typical_mask",
    "typical_sample",
]

_HOME = {
    "LocalTypicality": "typical",
    "TypicalLogitsProcessor": "typical_processor",
    "local_typicality": "typical",
    "typical_mask": "typical",
    "typical_sample": "typical",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
