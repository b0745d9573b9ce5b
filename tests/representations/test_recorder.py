import pytest
import torch
from torch import nn

from szilard.representations import ActivationRecorder


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_records_the_layer_s_own_output_of_every_batch_in_order():
    model, x = network(), torch.randn(7, 4)
    with ActivationRecorder(model, "1") as recorder:
        model(x[:5])
        model(x[5:])
    expected = torch.relu(model[0](x)).detach()
    torch.testing.assert_close(recorder["1"], expected)
    assert not recorder["1"].requires_grad


def test_an_in_place_layer_that_follows_does_not_change_what_was_recorded():
    model, x = network(), torch.randn(7, 4)
    with ActivationRecorder(model, ["0", "1"]) as recorder:
        model(x)
    torch.testing.assert_close(recorder["0"], model[0](x).detach())
    assert (recorder["0"] < 0).any()


def test_hooks_are_gone_after_the_context_also_when_the_model_raises():
    model = network()
    with ActivationRecorder(model, "1"):
        model(torch.ones(2, 4))
        assert hooks(model) == 1
    assert hooks(model) == 0
    with pytest.raises(RuntimeError), ActivationRecorder(model, "1"):
        model(torch.ones(2, 5))
    assert hooks(model) == 0


def test_reduce_decides_what_is_kept_and_training_is_undisturbed():
    model = network()
    x = torch.randn(3, 5, 4)
    with ActivationRecorder(model, "1", reduce=lambda h: h.mean(1)) as recorder:
        model(x).sum().backward()
    assert recorder["1"].shape == (3, 6)
    assert model[0].weight.grad is not None
    recorder.clear()
    with pytest.raises(KeyError, match="has not run"):
        recorder["1"]


def test_a_layer_that_returns_several_outputs_gives_its_first_tensor():
    model = nn.LSTM(4, 3, batch_first=True)
    with ActivationRecorder(model, "") as recorder:
        output, _ = model(torch.randn(2, 5, 4))
    torch.testing.assert_close(recorder[""], output.detach().flatten(1))


def test_a_transformers_block_is_recorded_by_its_name():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=11, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).eval()
    tokens = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(0))
    with ActivationRecorder(model, "transformer.h.0", reduce=lambda h: h[:, -1]) as recorder:
        states = model(tokens, output_hidden_states=True).hidden_states
    torch.testing.assert_close(recorder["transformer.h.0"], states[1][:, -1].detach())


def test_an_unknown_layer_is_refused_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"no layer 'encoder\.layr'"):
        ActivationRecorder(
            nn.ModuleDict({"encoder": nn.ModuleDict({"layer": nn.ReLU()})}), "encoder.layr"
        )
    with pytest.raises(ValueError, match="at least one layer"):
        ActivationRecorder(network(), [])


def test_a_recorder_is_not_entered_twice():
    recorder = ActivationRecorder(network(), "1")
    with recorder, pytest.raises(RuntimeError, match="open already"):
        recorder.__enter__()


def test_a_layer_without_tensors_is_refused():
    class Words(nn.Module):
        def forward(self, x):
            return ("no", "tensor")

    with (
        pytest.raises(TypeError, match="must return a tensor"),
        ActivationRecorder(w := Words(), ""),
    ):
        w(1)


def test_fold_keeps_one_state_a_layer_and_equals_what_all_batches_give():
    model, batches = network(), torch.randn(6, 5, 4)
    total = ActivationRecorder(
        model, ["0", "1"], reduce=lambda h: h.sum(0), fold=lambda s, h: h if s is None else s + h
    )
    with total, ActivationRecorder(model, ["0", "1"]) as whole:
        for batch in batches:
            model(batch)
    for layer in ("0", "1"):
        torch.testing.assert_close(total[layer], whole[layer].sum(0))
    total.clear()
    with pytest.raises(KeyError, match="has not run"):
        total["0"]
