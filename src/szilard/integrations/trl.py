"""TRL trainers: `GRPOTrainer` with the token losses of `szilard.rl`.

Each method is a detached change of the advantage, in which TRL's surrogate is linear, token by token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from szilard._extras import require
from szilard.rl import SelectionBudget, clip_cov_select, kl_cov_select, selection_metrics

require("trl", extra="rl")
from trl import GRPOTrainer  # noqa: E402


class TokenShapedGRPOTrainer(GRPOTrainer):
    """GRPO whose advantages a subclass reshapes token by token, log-probabilities in hand."""

    _live: dict[str, Any] | None = None

    def shape_advantages(self, logp: Tensor, entropy: Tensor, adv: Tensor, inputs: dict) -> Tensor:
        """Returns the advantages to train on; here, those it is given.

        All are (batch, tokens), detached, in nats: log-probabilities and entropies of the current
        policy. `inputs` is TRL's micro-batch with `mask` (True where a token counts) and `old_logp`.
        """
        return adv

    def _compute_loss(self, model: Any, inputs: dict) -> Tensor:
        self._live = dict(inputs)  # a copy, for TRL reuses `inputs` when num_iterations > 1
        try:
            return super()._compute_loss(model, self._live)
        finally:
            self._live = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        logp, entropy, aux_loss = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        # Old-policy and reference passes come through here too, outside of `_compute_loss`.
        if (live := self._live) is not None and self.model.training:
            old = live.get("old_per_token_logps")
            mask = (live["completion_mask"] * live.get("tool_mask", 1)).bool()
            view = live | {"mask": mask, "old_logp": logp.detach() if old is None else old}
            adv = live["advantages"].view(len(logp), -1).expand_as(logp)
            live["advantages"] = self.shape_advantages(logp.detach(), entropy.detach(), adv, view)
        return logp, entropy, aux_loss


class _CovarianceTrainer(TokenShapedGRPOTrainer):
    """Selects tokens by their covariance over the micro-batches of all processes together; how many is
    decided on the running count of all tokens, so that no batch size changes the dose.
    """

    def __init__(self, *args: Any, share: float, eps: tuple[float, float], **kwargs: Any) -> None:
        self._budget, config = SelectionBudget(share), kwargs["args"]
        legal = {
            "epsilon": eps[:1],
            "epsilon_high": (eps[1], None) if eps[0] == eps[1] else eps[1:],
            "delta": (None,),
            "loss_type": ("dapo", "grpo", "bnpo", "dr_grpo"),
            "importance_sampling_level": ("token",),
        }
        for key, values in legal.items():  # under any other it would be another method
            if (value := getattr(config, key)) not in values:
                needed = f"args.{key}={value!r}; set it to {' or '.join(map(repr, values))}"
                raise ValueError(f"{type(self).__name__}: {needed}")
        super().__init__(*args, **kwargs)
        # One seed everywhere: all processes draw the same tokens of the same gathered batch.
        self._draws = torch.Generator(self.accelerator.device).manual_seed(config.seed)

    def _choose(self, logp: Tensor, adv: Tensor, inputs: dict, select: Callable) -> Tensor:
        local = {"logp": logp, "old_logp": inputs["old_logp"], "adv": adv, "mask": inputs["mask"]}
        pad, gather = self.accelerator.pad_across_processes, self.accelerator.gather
        batch = {key: gather(pad(value.contiguous(), dim=1)) for key, value in local.items()}
        if not (tokens := int(batch["mask"].sum())):  # every completion truncated and masked out
            return torch.zeros_like(inputs["mask"])
        selected = select(**batch, count=self._budget.take(tokens))
        for key, value in selection_metrics(**batch, selected=selected).items():
            self._metrics["train"][f"covariance/{key}"].append(value.item())
        return selected[self.accelerator.process_index * len(logp) :][: len(logp), : logp.shape[1]]


class ClipCovTrainer(_CovarianceTrainer):
    """GRPO with Clip-Cov: a few tokens of high covariance are left out of every update.

    Takes what `trl.GRPOTrainer` takes; `args` must set epsilon = eps[0] and epsilon_high = eps[1].
    `ratio` is the share of all tokens to remove, `bounds` the covariances between which one may be
    removed; the ratio clip is [1 - eps[0], 1 + eps[1]], the paper's [0, 2].

    Raises:
        ValueError: settings out of range, or `args` that would make it another method.

    Source: arXiv 2505.22617, eq. 10-11.
    """

    def __init__(self, *model_and_rewards: Any, args: Any, ratio: float = 2e-4,
                 bounds: tuple[float, float] = (1.0, 5.0),
                 eps: tuple[float, float] = (1.0, 1.0), **kwargs: Any) -> None:  # fmt: skip
        if not bounds[0] < bounds[1]:
            raise ValueError(f"bounds: {bounds!r}; must increase")
        self._settings: dict[str, Any] = {"bounds": bounds, "eps": eps}
        super().__init__(*model_and_rewards, args=args, share=ratio, eps=eps, **kwargs)

    def shape_advantages(self, logp: Tensor, entropy: Tensor, adv: Tensor, inputs: dict) -> Tensor:
        select = partial(clip_cov_select, generator=self._draws, **self._settings)
        return adv.masked_fill(self._choose(logp, adv, inputs, select), 0.0)


class KLCovTrainer(_CovarianceTrainer):
    """GRPO with KL-Cov: tokens of highest covariance are held near the policy that sampled them.

    Takes what `trl.GRPOTrainer` takes; `args` must set epsilon = epsilon_high = 1e9 (there is no
    ratio clip) and several optimiser steps a rollout. `fraction` is the share of all tokens to
    penalise, `beta` the penalty's weight (not TRL's, of the KL to a reference model). The gradient is
    `kl_cov_loss`'s; TRL's logged loss omits the penalty, which is `covariance/kl_penalty`.

    Raises:
        ValueError: settings out of range, or `args` that would make it another method.

    Source: arXiv 2505.22617, eq. 12-13.
    """

    def __init__(self, *model_and_rewards: Any, args: Any, fraction: float = 2e-3,
                 beta: float = 1.0, **kwargs: Any) -> None:  # fmt: skip
        if not beta >= 0:
            raise ValueError(f"beta: {beta!r}; must be 0 or more")
        every, window = args.steps_per_generation, args.gradient_accumulation_steps
        if window % (every * args.num_iterations) == 0:
            raise ValueError(
                "KLCovTrainer: with one optimiser step a rollout its penalty has no effect; set args."
                f"steps_per_generation (it was {every}) > gradient_accumulation_steps (it was "
                f"{window}), or args.num_iterations > 1"
            )
        self._beta, eps = beta, (1e9, 1e9)
        super().__init__(*model_and_rewards, args=args, share=fraction, eps=eps, **kwargs)

    def shape_advantages(self, logp: Tensor, entropy: Tensor, adv: Tensor, inputs: dict) -> Tensor:
        held = self._choose(logp, adv, inputs, lambda old_logp, **rest: kl_cov_select(**rest))
        distance = torch.where(held, logp - inputs["old_logp"], 0.0)
        totals = torch.stack([self._beta * distance.abs().sum(), inputs["mask"].sum()])
        penalty, tokens = self.accelerator.reduce(totals, reduction="sum").tolist()
        self._metrics["train"]["covariance/kl_penalty"].append(penalty / max(tokens, 1))
        # With A' = A - beta sign(d) e^-d, detached, -r A' has the gradient of -r A + beta |d|.
        return adv - self._beta * distance.sign() * (-distance).exp()
