"""The adapter against a stand-in of vLLM's V1 interface: same names, signatures and semantics."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from importlib import import_module
from types import ModuleType, SimpleNamespace

import pytest
import torch

from szilard.decoding import typical_mask


class MoveDirectionality(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


@dataclass(frozen=True)
class BatchUpdate:
    batch_size: int
    removed: tuple = ()
    added: tuple = ()
    moved: tuple = ()


class LogitsProcessor(ABC):
    @classmethod
    def validate_params(cls, sampling_params):
        return None

    @abstractmethod
    def __init__(self, vllm_config, device, is_pin_memory): ...

    @abstractmethod
    def apply(self, logits): ...

    @abstractmethod
    def is_argmax_invariant(self): ...

    @abstractmethod
    def update_state(self, batch_update): ...


def params(**extra_args):
    return SimpleNamespace(extra_args=extra_args or None)


def added(index, **extra_args):
    return index, params(**extra_args), [1, 2], []


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    home = "vllm.v1.sample.logits_processor"
    parts = home.split(".")
    for depth in range(1, len(parts) + 1):
        monkeypatch.setitem(
            sys.modules, ".".join(parts[:depth]), ModuleType(".".join(parts[:depth]))
        )
    interface = sys.modules[home]
    interface.LogitsProcessor = LogitsProcessor
    interface.MoveDirectionality = MoveDirectionality
    interface.BatchUpdate = BatchUpdate
    monkeypatch.delitem(sys.modules, "szilard.integrations.vllm", raising=False)
    yield import_module("szilard.integrations.vllm").TypicalVLLMLogitsProcessor
    sys.modules.pop("szilard.integrations.vllm", None)


@pytest.fixture
def processor(adapter):
    return adapter(vllm_config=None, device=torch.device("cpu"), is_pin_memory=False)


def logits(rows=4, vocab=50):
    return 2 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0))


def expected(z, masses):
    rows = [
        row if mass is None else row.masked_fill(~typical_mask(row, mass), -torch.inf)
        for row, mass in zip(z, masses, strict=True)
    ]
    return torch.stack(rows)


def test_it_is_a_concrete_processor_that_may_change_the_argmax(adapter, processor):
    assert issubclass(adapter, LogitsProcessor)
    assert processor.is_argmax_invariant() is False


def test_the_class_is_the_same_each_time_it_is_asked_for(adapter):
    assert getattr(import_module(adapter.__module__), adapter.__qualname__) is adapter


def test_without_requests_nothing_changes(processor):
    z = logits()
    processor.update_state(None)
    assert torch.equal(processor.apply(z.clone()), z)


def test_each_request_gets_its_own_mass_and_the_others_are_left_alone(processor):
    z = logits()
    processor.update_state(
        BatchUpdate(
            4,
            added=(added(0, typical_mass=0.2), added(1), added(2, typical_mass=0.9), added(3, x=1)),
        )
    )
    assert torch.equal(processor.apply(z.clone()), expected(z, [0.2, None, 0.9, None]))


def test_it_follows_removals_moves_and_swaps(processor):
    z = logits()
    processor.update_state(
        BatchUpdate(4, added=(added(0, typical_mass=0.2), added(1), added(3, typical_mass=0.9)))
    )
    processor.update_state(
        BatchUpdate(3, removed=(0,), moved=((3, 0, MoveDirectionality.UNIDIRECTIONAL),))
    )
    assert torch.equal(processor.apply(z[:3].clone()), expected(z[:3], [0.9, None, None]))
    processor.update_state(BatchUpdate(3, moved=((0, 2, MoveDirectionality.SWAP),)))
    assert torch.equal(processor.apply(z[:3].clone()), expected(z[:3], [None, None, 0.9]))
    processor.update_state(BatchUpdate(3, added=(added(2),)))
    assert torch.equal(processor.apply(z[:3].clone()), z[:3])


def test_two_typical_requests_swap_their_masses(processor):
    z = logits(2)
    processor.update_state(
        BatchUpdate(2, added=(added(0, typical_mass=0.2), added(1, typical_mass=0.7)))
    )
    processor.update_state(BatchUpdate(2, moved=((0, 1, MoveDirectionality.SWAP),)))
    assert torch.equal(processor.apply(z.clone()), expected(z, [0.7, 0.2]))


def test_ties_and_tokens_to_keep_are_taken_from_the_request(processor):
    z = torch.zeros(2, 10)
    processor.update_state(
        BatchUpdate(
            2,
            added=(
                added(0, typical_mass=0.25, typical_ties="minimal"),
                added(1, typical_mass=0.25, typical_ties="minimal", typical_min_tokens_to_keep=7),
            ),
        )
    )
    assert processor.apply(z.clone()).isfinite().sum(-1).tolist() == [3, 7]


@pytest.mark.parametrize(
    ("extra_args", "named"),
    [
        ({"typical_mass": 0.0}, "mass"),
        ({"typical_mass": 1.0}, "mass"),
        ({"typical_mass": "0.2"}, "typical_mass"),
        ({"typical_mass": 0.2, "typical_ties": "some"}, "ties"),
        ({"typical_mass": 0.2, "typical_min_tokens_to_keep": 0}, "min_tokens_to_keep"),
        ({"typical_mass": 0.2, "typical_min_tokens_to_keep": 1.5}, "min_tokens_to_keep"),
    ],
)
def test_a_request_out_of_range_is_refused_by_name(adapter, extra_args, named):
    with pytest.raises(ValueError, match=named):
        adapter.validate_params(params(**extra_args))


def test_a_request_without_arguments_is_valid(adapter):
    adapter.validate_params(params())
    adapter.validate_params(params(typical_mass=0.2))
