"""Shared set-up: deterministic property tests, one thread, and a switch for the shape checks."""

import os
from collections.abc import Iterator

# Triton looks when it is imported, which torch and transformers may do at any time: kernels for the
# GPU are tested on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "szilard",
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("szilard")
torch.set_num_threads(1)


@pytest.fixture
def unhooked() -> Iterator[None]:
    """Switches the run-time shape checks off, as they are for a user, so that the library's own
    error is the one that is seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
