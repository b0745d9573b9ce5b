"""Locally typical sampling in vLLM (V1 engine): a batch-level logits processor.

    from vllm import LLM, SamplingParams
    from szilard.integrations.vllm import TypicalVLLMLogitsProcessor

    llm = LLM(model, logits_processors=[TypicalVLLMLogitsProcessor])
    llm.generate(prompt, SamplingParams(extra_args={"typical_mass": 0.2}))

The server takes the class by name, `--logits-processors
szilard.integrations.vllm:TypicalVLLMLogitsProcessor`, and a request's fields as `vllm_xargs`.
Requests without `typical_mass` are left as they are.

Since the rule may remove the likeliest token, vLLM runs it before penalties and temperature: the
entropy is that of the untempered model, as with `TypicalLogitsProcessor(entropy_from="input")`.
"""

from types import new_class
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from szilard.decoding.typical import (
    Ties,
    check_mass,
    check_min_tokens_to_keep,
    check_ties,
    typical_mask,
)

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate


class _Rule(NamedTuple):
    mass: float
    ties: Ties
    min_tokens_to_keep: int


def _rule(params: "SamplingParams") -> _Rule | None:
    arguments: dict[str, Any] = getattr(params, "extra_args", None) or {}
    mass = arguments.get("typical_mass")
    if mass is None:
        return None
    ties = arguments.get("typical_ties", "all")
    count = arguments.get("typical_min_tokens_to_keep", 1)
    if isinstance(mass, bool) or not isinstance(mass, int | float):
        raise ValueError(f"typical_mass must be a number in (0, 1), but is {mass!r}")
    if isinstance(count, bool) or not isinstance(count, int):
        raise ValueError(f"typical_min_tokens_to_keep must be an integer, but is {count!r}")
    check_mass(mass)
    check_ties(ties)
    check_min_tokens_to_keep(count)
    return _Rule(float(mass), cast(Ties, ties), count)


class TypicalRequests:
    """What `TypicalVLLMLogitsProcessor` does, short of vLLM's base class.

    Removes all but the locally typical tokens of the requests that ask for it. A
    request asks through `SamplingParams.extra_args`: `typical_mass` in (0, 1), and optionally
    `typical_ties` ("all" or "minimal") and `typical_min_tokens_to_keep`.

    Source: Meister et al. 2023, Locally Typical Sampling, section 5.
    """

    @classmethod
    def validate_params(cls, sampling_params: "SamplingParams") -> None:
        """Refuses a request whose extra_args are out of their range, before it is scheduled.

        Raises:
            ValueError: naming the argument.
        """
        _rule(sampling_params)

    def __init__(
        self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool
    ) -> None:
        self._device = device
        self._by_request: dict[int, _Rule] = {}
        self._rows: dict[_Rule, Tensor] = {}

    def is_argmax_invariant(self) -> bool:
        """No: the mode is removed where it is less surprising than the entropy asks for."""
        return False

    def update_state(self, batch_update: "BatchUpdate | None") -> None:
        """Follows requests as they enter, leave and move within the persistent batch."""
        if batch_update is None:
            return
        rules = self._by_request
        for index in batch_update.removed:
            rules.pop(index, None)
        for index, params, _, _ in batch_update.added:
            self._put(index, _rule(params))
        for source, target, direction in batch_update.moved:
            moved, replaced = rules.pop(source, None), rules.pop(target, None)
            self._put(target, moved)
            if direction.name == "SWAP":
                self._put(source, replaced)
        groups: dict[_Rule, list[int]] = {}
        for index, rule in sorted(rules.items()):
            groups.setdefault(rule, []).append(index)
        self._rows = {
            rule: torch.tensor(rows, device=self._device) for rule, rows in groups.items()
        }

    def apply(self, logits: Tensor) -> Tensor:
        """Masks the rows of the requests that ask for it, in place."""
        for rule, rows in self._rows.items():
            scores = logits[rows]
            kept = typical_mask(
                scores, rule.mass, rule.ties, min_tokens_to_keep=rule.min_tokens_to_keep
            )
            logits[rows] = scores.masked_fill(~kept, -torch.inf)
        return logits

    def _put(self, index: int, rule: _Rule | None) -> None:
        if rule is None:
            self._by_request.pop(index, None)
        else:
            self._by_request[index] = rule


def __getattr__(name: str) -> Any:
    # vLLM checks that the class is a subclass of its own; making it here leaves the module
    # importable without vLLM.
    if name != "TypicalVLLMLogitsProcessor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vllm.v1.sample.logits_processor import LogitsProcessor

    made = new_class(
        name,
        (TypicalRequests, LogitsProcessor),
        exec_body=lambda body: body.update(__module__=__name__, __doc__=TypicalRequests.__doc__),
    )
    globals()[name] = made
    return made
