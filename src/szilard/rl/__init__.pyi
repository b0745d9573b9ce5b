from .advantages import group_advantages
from .covariance import (
    SelectionBudget,
    clip_cov_loss,
    clip_cov_select,
    first_order_entropy_change,
    kl_cov_loss,
    kl_cov_select,
    selection_metrics,
    token_covariance,
)
from .entropy_law import EntropyLaw

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
