"""Reinforcement learning of language models: token losses and meters on (batch, tokens) tensors.

Everything here is framework-free; `szilard.integrations` plugs it into TRL and verl.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from szilard.rl.advantages import group_advantages
    from szilard.rl.covariance import (
        SelectionBudget,
        clip_cov_loss,
        clip_cov_select,
        first_order_entropy_change,
        kl_cov_loss,
        kl_cov_select,
        selection_metrics,
        token_covariance,
    )
    from szilard.rl.entropy_law import EntropyLaw

_HOMES = {
    "group_advantages": "advantages",
    "token_covariance": "covariance",
    "clip_cov_select": "covariance",
    "kl_cov_select": "covariance",
    "clip_cov_loss": "covariance",
    "kl_cov_loss": "covariance",
    "selection_metrics": "covariance",
    "first_order_entropy_change": "covariance",
    "SelectionBudget": "covariance",
    "EntropyLaw": "entropy_law",
}

__all__ = [
    "token_covariance",
    "clip_cov_select",
    "kl_cov_select",
    "clip_cov_loss",
    "kl_cov_loss",
    "selection_metrics",
    "SelectionBudget",
    "first_order_entropy_change",
    "EntropyLaw",
    "group_advantages",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
