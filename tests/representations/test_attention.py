from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from szilard.representations import AttentionEntropyRecorder, CollapseWarning

transformers = pytest.importorskip("transformers")


def llama(implementation: str = "sdpa", **more: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation=implementation,
        **more,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():  # attention that is not all but flat
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(30)
            layer.self_attn.k_proj.weight.mul_(30)
    return model


def expected(maps: tuple[Tensor, ...], mask: Tensor) -> list[Tensor]:
    """Means over the counted queries of each head, from the maps themselves."""
    return [
        (torch.special.entr(weights).sum(-1) * mask[:, None]).sum((0, 2)) / mask.sum()
        for weights in maps
    ]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("padded", [False, True])
def test_entropies_are_those_of_the_maps(implementation: str, padded: bool) -> None:
    ids = torch.arange(14).view(2, 7) + 1
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :3] = 0
    maps = llama("eager")(ids, attention_mask=mask, output_attentions=True).attentions
    model = llama(implementation)
    plain = model(ids, attention_mask=mask).logits
    with AttentionEntropyRecorder(model) as recorder:
        recorded = model(ids, attention_mask=mask).logits
    assert torch.equal(plain, recorded)
    assert [*recorder.layers] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    for layer, entropy in zip(recorder.layers.values(), expected(maps, mask), strict=True):
        torch.testing.assert_close(layer.entropy, entropy, atol=1e-5, rtol=1e-5)
        assert ((layer.ratio >= 0) & (layer.ratio <= 1)).all()
    with torch.no_grad():
        model(ids)  # closed, nothing is added
    assert recorder.lowest == pytest.approx(
        min(float(e.min()) for e in expected(maps, mask)), abs=1e-5
    )


def test_one_key_more_at_each_query_of_flat_causal_attention() -> None:
    model = llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    with AttentionEntropyRecorder(model, base=2) as recorder:
        model(torch.arange(8)[None])
    mean = sum(math.log2(i) for i in range(1, 9)) / 8
    for layer in recorder.layers.values():
        torch.testing.assert_close(layer.entropy, torch.full((4,), mean))
        torch.testing.assert_close(layer.ratio, torch.ones(4))


def test_generation_with_a_cache_adds_every_token() -> None:
    model, ids = llama(), torch.arange(6)[None] + 1
    with AttentionEntropyRecorder(model) as recorder:
        text = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    with AttentionEntropyRecorder(model) as whole:
        model(text[:, :-1])
    for one, other in zip(recorder.layers.values(), whole.layers.values(), strict=True):
        torch.testing.assert_close(one.entropy, other.entropy, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", ["", "keys", "causal", "per head"])
def test_torchs_attention_is_measured_as_its_own_weights_say(
    batch_first: bool, masked: str
) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=batch_first, dropout=0.5)
    nn.init.normal_(layer.in_proj_weight, std=1.5)
    x = torch.randn(3, 5, 8)
    masks: dict[str, Tensor] = {}
    if masked == "keys":
        masks["key_padding_mask"] = torch.tensor(
            [[False] * 5, [False] * 5, [False] * 3 + [True] * 2]
        )
    if masked == "causal":
        masks["attn_mask"] = torch.ones(5, 5).triu(1).bool()
    if masked == "per head":
        masks["attn_mask"] = torch.ones(6, 5, 5).triu(2).bool()
    call = x if batch_first else x.transpose(0, 1)
    weights = layer.eval()(call, call, call, average_attn_weights=False, **masks)[1]
    with AttentionEntropyRecorder(layer.train()) as recorder:  # dropout does not show
        layer(call, call, call, need_weights=False, **masks)
    counted = torch.ones(3, 5)
    if masked == "keys":
        counted[2, 3:] = 0
    (found,) = expected((weights.detach(),), counted)
    torch.testing.assert_close(recorder.layers[""].entropy, found, atol=1e-5, rtol=1e-5)


def test_torchs_encoder_layer_is_recorded_in_evaluation_too() -> None:
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
    ).eval()
    with torch.no_grad(), AttentionEntropyRecorder(model) as recorder:
        model(torch.randn(2, 4, 8))
    assert [*recorder.layers] == ["layers.0.self_attn", "layers.1.self_attn"]


def test_everything_is_put_back_when_the_model_raises() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.llama import modeling_llama

    before = ALL_ATTENTION_FUNCTIONS["sdpa"], modeling_llama.eager_attention_forward
    model = llama()
    with pytest.raises(IndexError), AttentionEntropyRecorder(model):
        model(torch.full((1, 3), 99))
    assert before == (ALL_ATTENTION_FUNCTIONS["sdpa"], modeling_llama.eager_attention_forward)
    layer = nn.MultiheadAttention(4, 1)
    with pytest.raises(AssertionError), AttentionEntropyRecorder(layer):
        layer(torch.zeros(2, 1, 4), torch.zeros(3, 1, 4), torch.zeros(2, 1, 4))
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize("padded", [False, True])
def test_queries_are_looked_at_after_their_temperatures(padded: bool) -> None:
    from szilard.layers import AttentionEntropyReport, convert_softmax_only

    settings = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 23}
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)).eval()
    convert_softmax_only(model)
    ids = torch.arange(20).view(2, 10)
    mask = torch.ones_like(ids)
    mask[0, :3] = 1 - int(padded)
    found = []
    for shift in (0.0, -4.0):
        with torch.no_grad():
            for block in model.transformer.h:
                block.attn.c_attn.weight.normal_(0, 10, generator=torch.Generator().manual_seed(1))
                block.attn.temperature.raw += shift + torch.rand(2, 16)
        with AttentionEntropyRecorder(model) as recorder, AttentionEntropyReport(model) as report:
            model(ids, attention_mask=mask if padded else None)
        # What the layer hands out, whose share of ln T is of the same queries.
        for layer, fill in zip(recorder.layers.values(), report.fill, strict=True):
            torch.testing.assert_close(layer.entropy, fill * math.log(10), atol=1e-5, rtol=1e-5)
        found.append(recorder.lowest)
    assert found[1] < 0.5 * found[0]


def test_generation_with_temperatures_adds_every_token() -> None:
    from szilard.layers import convert_softmax_only

    settings = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 23}
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)).eval()
    block = convert_softmax_only(model).transformer.h[0]
    with torch.no_grad():
        block.attn.c_attn.weight.normal_(0, 10)
        block.attn.temperature.raw.normal_()
    ids = torch.arange(9)[None]
    recorder = AttentionEntropyRecorder(model)
    with recorder, torch.no_grad():
        model(ids)
    (whole,) = recorder.layers.values()
    recorder.clear()
    cache = None
    with recorder, torch.no_grad():
        for i in range(9):
            cache = model(ids[:, i : i + 1], past_key_values=cache, use_cache=True).past_key_values
    (stepped,) = recorder.layers.values()
    torch.testing.assert_close(stepped.entropy, whole.entropy, atol=1e-5, rtol=1e-5)


def test_another_model_is_not_recorded() -> None:
    model, other = llama(), llama()
    with AttentionEntropyRecorder(model) as recorder:
        other(torch.arange(4)[None])
    assert recorder.layers == {}
    with pytest.raises(ValueError, match="nothing was recorded"):
        _ = recorder.lowest


def test_a_trainer_logs_it_and_warns_of_a_collapse(tmp_path: Any) -> None:
    model = llama().train()
    recorder = AttentionEntropyRecorder(model)
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=2,
        logging_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    rows = [{"input_ids": torch.arange(6) + i, "labels": torch.arange(6) + i} for i in range(8)]
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=rows,
        callbacks=[recorder.callback(every=2, threshold=9, patience=2)],
    )
    with pytest.warns(CollapseWarning, match="below 9"):
        trainer.train()
    own = [row for row in trainer.state.log_history if "attention_entropy/min" in row]
    assert [row["step"] for row in own if "loss" not in row] == [2, 4]
    assert "attention_entropy/model.layers.1.self_attn/mean" in own[-1]


def test_bad_input_names_the_argument() -> None:
    with pytest.raises(ValueError, match="model has no attention"):
        AttentionEntropyRecorder(nn.Linear(2, 2))
    layer = nn.MultiheadAttention(4, 1)
    with pytest.raises(ValueError, match="base"):
        AttentionEntropyRecorder(layer, base=1)
    with pytest.raises(ValueError, match="every"):
        AttentionEntropyRecorder(layer).callback(every=0)
    recorder, x = AttentionEntropyRecorder(layer), torch.zeros(2, 1, 4)
    with recorder, pytest.raises(RuntimeError, match="open already"):
        recorder.__enter__()
    with recorder, pytest.raises(ValueError, match="attn_mask adds to scores"):
        layer(x, x, x, attn_mask=torch.ones(2, 2))
