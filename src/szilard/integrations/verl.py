"""verl policy losses: registers `szilard_clip_cov` and `szilard_kl_cov`.

Every worker must know them, so let verl import this module itself:

    export VERL_USE_EXTERNAL_MODULES=szilard.integrations.verl
    python -m verl.trainer.main_ppo actor_rollout_ref.actor.policy_loss.loss_mode=szilard_clip_cov ...

The settings are those of verl's own `PolicyLossConfig`, whose defaults are not the paper's: set
`policy_loss.ppo_kl_coef=1` (verl: 0.1), `kl_cov_ratio=2e-3` at 7B (verl: 2e-4) and, for Clip-Cov,
`actor.clip_ratio_low=1 actor.clip_ratio_high=1` (verl: 0.2).

Centring and ranking see one micro-batch of one rank, as in verl's own losses: larger micro-batches are
nearer the paper. How many tokens are selected does not depend on the micro-batch's size: each rank
carries the unspent remainder of the share from one micro-batch to the next.

KL-Cov does nothing with one optimiser step a rollout: it needs `data.train_batch_size` above
`actor.ppo_mini_batch_size`, or `actor.ppo_epochs > 1`. A loss can't see the former, so watch
`actor/abs_log_ratio`, which then stays at rounding error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from szilard.rl import SelectionBudget, clip_cov_loss, kl_cov_loss

_ALGORITHMS = "verl.trainer.ppo.core_algos"
_Loss = tuple[Tensor, dict[str, Any]]


def register() -> None:
    """Registers the losses; importing this module does so where verl is installed.

    Raises:
        ImportError: verl is not installed.
    """
    try:
        algorithms = import_module(_ALGORITHMS)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error.name} is not installed; these losses need: pip install verl"
        ) from error
    algorithms.register_policy_loss("szilard_clip_cov")(_clip_cov())
    algorithms.register_policy_loss("szilard_kl_cov")(_kl_cov())


def _clip_cov() -> Callable[..., _Loss]:
    budgets: dict[float, SelectionBudget] = {}

    def loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> _Loss:
        settings = config.policy_loss
        low, high = (
            config.clip_ratio if side is None else side
            for side in (config.clip_ratio_low, config.clip_ratio_high)
        )
        if (low, high) != (1, 1):
            warnings.warn(
                f"szilard_clip_cov with clip_ratio_low={low}, clip_ratio_high={high}; the paper's is 1, 1",
                stacklevel=2,
            )
        return _aggregated(
            clip_cov_loss,
            budgets.setdefault(settings.clip_cov_ratio, SelectionBudget(settings.clip_cov_ratio)),
            (log_prob, old_log_prob, advantages, response_mask),
            (loss_agg_mode, config, rollout_is_weights),
            bounds=(settings.clip_cov_lb, settings.clip_cov_ub),
            eps=(low, high),
        )

    return loss


def _kl_cov() -> Callable[..., _Loss]:
    budgets: dict[float, SelectionBudget] = {}

    def loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> _Loss:
        settings = config.policy_loss
        return _aggregated(
            kl_cov_loss,
            budgets.setdefault(settings.kl_cov_ratio, SelectionBudget(settings.kl_cov_ratio)),
            (log_prob, old_log_prob, advantages, response_mask),
            (loss_agg_mode, config, rollout_is_weights),
            beta=settings.ppo_kl_coef,
        )

    return loss


def _aggregated(
    method: Callable[..., _Loss],
    budget: SelectionBudget,
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
    aggregation: tuple[str, Any, Tensor | None],
    **settings: Any,
) -> _Loss:
    """Runs the method on one micro-batch and reduces its token losses the way verl is configured to."""
    logp, old, adv, response_mask = batch
    mode, config, weights = aggregation
    mask = response_mask > 0
    if mask.any():
        count = budget.take(int(mask.sum()))
        each, metrics = method(logp, old, adv, mask, count=count, reduction="none", **settings)
    else:  # a micro-batch of masked responses must still take part in the backward pass
        each, metrics = logp * 0.0, {}
    if weights is not None:
        each = each * torch.where(mask, weights, 0.0)
    loss = import_module(_ALGORITHMS).agg_loss(
        loss_mat=each, loss_mask=response_mask, loss_agg_mode=mode, **config.global_batch_info
    )
    return loss, {f"actor/{name}": value.item() for name, value in metrics.items()}


if find_spec("verl") is not None:
    register()
