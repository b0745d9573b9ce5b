"""The record of a text has one entry a token, and recording changes nothing."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from szilard.decoding import EntropyRecorder, TokenTrace


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("sample", [False, True])
def test_generate_records_what_the_model_thought_before_temperature_and_truncation(
    sample: bool,
) -> None:
    lm, recorder, ids = model(), EntropyRecorder(), torch.tensor([[1, 5, 9], [2, 3, 4]])
    settings = {"max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0, "do_sample": sample}
    if sample:
        settings |= {"temperature": 0.3, "top_k": 4}
    torch.manual_seed(1)
    recorded = lm.generate(ids, logits_processor=[recorder], **settings)
    torch.manual_seed(1)
    assert torch.equal(recorded, lm.generate(ids, **settings))
    with torch.no_grad():
        log_p = lm(recorded).logits[:, 2:-1].log_softmax(-1)
    # One pass over the text adds up in another order than one token at a time.
    torch.testing.assert_close(recorder.entropy, -(log_p.exp() * log_p).sum(-1), atol=1e-5, rtol=0)
    trace = recorder.trace(recorded[:, 3:], row=1, place=list(range(6)))
    assert torch.equal(trace.token_ids, recorded[1, 3:])
    assert torch.equal(trace.entropy, recorder.entropy[1])


def test_a_uniform_step_holds_the_logarithm_of_the_vocabulary() -> None:
    recorder = EntropyRecorder()
    scores = torch.zeros(2, 8)
    assert recorder(torch.ones(2, 1, dtype=torch.long), scores) is scores
    assert recorder.entropy.flatten().tolist() == pytest.approx([math.log(8)] * 2)


def test_columns_as_long_as_the_text_are_asked_for() -> None:
    with pytest.raises(ValueError, match="who must have an entry for each of the 2 tokens"):
        TokenTrace(torch.tensor([1, 2]), torch.zeros(2), {"who": ["small"]})
    with pytest.raises(ValueError, match="0 tokens that were recorded"):
        EntropyRecorder().trace(torch.tensor([[1]]))
