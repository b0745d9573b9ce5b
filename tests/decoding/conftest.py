"""Untrained models a few numbers wide, made anew for whoever asks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="session")
def llama() -> Callable[..., PreTrainedModel]:
    """Makes a model of which every layer sees all."""

    def make(seed: int = 0, **settings: Any) -> PreTrainedModel:
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**SIZES | settings)).eval()

    return make


@pytest.fixture(scope="session")
def gemma() -> Callable[..., PreTrainedModel]:
    """Makes a model of which two layers see six tokens back, the third all."""
    windows = {"head_dim": 8, "sliding_window": 6, "sliding_window_pattern": 3}

    def make(seed: int = 0, **settings: Any) -> PreTrainedModel:
        torch.manual_seed(seed)
        return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES | windows | settings)).eval()

    return make


@pytest.fixture(
    scope="session", params=["llama", "gemma"], ids=["full attention", "sliding windows"]
)
def either(request: pytest.FixtureRequest) -> Callable[..., PreTrainedModel]:
    """Makes one, then the other."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def encoder_decoder() -> PreTrainedModel:
    """What is no causal language model."""
    return T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
