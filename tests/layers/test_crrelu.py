import copy
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import grad, vmap
from torch.nn import functional as F

from szilard.layers import (
    MONOTONE_EPS,
    CRReLU,
    crrelu,
    functional_activations,
    learned_eps,
    parameter_groups,
    register_activations,
    replace_activation,
)


def reference(x, eps):
    return x.clamp_min(0) + eps * x * torch.exp(-x * x / 2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=generator(seed))


# --- oracles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "eps", "value"),
    [(1, 0.01, 1.0060653066), (-1, 0.01, -0.0060653066), (3, -0.2, 2.9933346021), (0, 7.0, 0)],
)
def test_closed_values(x, eps, value):
    found = crrelu(torch.tensor([x], dtype=torch.float64), eps)
    assert found.item() == pytest.approx(value, abs=5e-11)  # the digits given


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_eps_zero_is_relu_bit_for_bit(dtype):
    x = torch.cat([8 * draw(1000), torch.tensor([0.0, -0.0, 1e4, -1e4])]).to(dtype)
    x = torch.cat([x, torch.tensor([math.inf, -math.inf], dtype=dtype)])
    found = crrelu(x, 0.0)
    assert found.dtype == dtype
    assert torch.equal(found, torch.relu(x))


def test_gradients_are_those_of_finite_differences_twice():
    x = draw(3, 4).requires_grad_()
    for eps in (torch.tensor(0.3, dtype=torch.float64), draw(4, seed=1)):
        eps.requires_grad_()
        assert torch.autograd.gradcheck(crrelu, (x, eps))
        assert torch.autograd.gradgradcheck(crrelu, (x, eps))


def test_the_slope_at_zero_is_eps():
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    crrelu(x, 0.25).sum().backward()
    assert x.grad.item() == 0.25


def test_second_moment_under_a_normal_input():
    x = draw(10_000_000, dtype=torch.float32)
    eps = 0.4
    squares = crrelu(x, eps).square().double()
    expected = 0.5 + eps / (2 * math.sqrt(2)) + eps**2 / (3 * math.sqrt(3))
    error = squares.std().item() / math.sqrt(len(x))
    assert squares.mean().item() == pytest.approx(expected, abs=3 * error)
    mean = crrelu(x, eps).double().mean().item()
    assert mean == pytest.approx(1 / math.sqrt(2 * math.pi), abs=3 / math.sqrt(len(x)))


def test_the_positive_branch_increases_within_its_bounds_only():
    x = torch.linspace(0, 6, 6001, dtype=torch.float64)
    low, high = MONOTONE_EPS
    for eps, increases in ((low, True), (high, True), (low - 0.01, False), (high + 0.01, False)):
        rises = crrelu(x, eps).diff()
        assert bool((rises > -1e-9).all()) == increases


# --- properties -----------------------------------------------------------------------------------


@given(st.floats(-60000, 60000, width=16), st.floats(-3, 3))
def test_half_precision_is_finite_and_is_float32_rounded(x, eps):
    at = torch.tensor([x], dtype=torch.float16, requires_grad=True)
    e = torch.tensor(eps, requires_grad=True)
    value = crrelu(at, e)
    value.sum().backward()
    assert at.grad.isfinite().all()
    assert e.grad.isfinite()
    torch.testing.assert_close(value, crrelu(at.detach().float(), e).half(), rtol=0, atol=0)


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=20), st.floats(-2, 2))
def test_agrees_with_the_plain_formula(values, eps):
    x = torch.tensor(values, dtype=torch.float64)
    # Beyond 13 the bell is below 1e-36 and counts as constant.
    torch.testing.assert_close(crrelu(x, eps), reference(x, eps), rtol=1e-14, atol=1e-34)


@given(st.floats(0, 50), st.floats(-2, 2))
def test_the_correction_is_odd(x, eps):
    at = torch.tensor([x, -x], dtype=torch.float64)
    correction = crrelu(at, eps) - at.relu()
    torch.testing.assert_close(correction[0], -correction[1], rtol=1e-9, atol=1e-14)


def test_strides_and_empty_tensors():
    x = draw(6, 8)
    torch.testing.assert_close(crrelu(x.T[::2], 0.1), reference(x, 0.1).T[::2])
    assert crrelu(x[:0], 0.1).shape == (0, 8)
    assert crrelu(x[0, 0], 0.1).shape == ()


def test_nan_stays_nan_and_infinity_is_relu():
    found = crrelu(torch.tensor([math.nan, math.inf, -math.inf]), -0.5)
    assert found[0].isnan()
    torch.testing.assert_close(found[1:], torch.tensor([math.inf, 0.0]))


def test_vmap_over_models_gives_each_its_own_gradients():
    x, eps = draw(5, 7), draw(5, seed=1)
    of_x, of_eps = vmap(grad(lambda x, e: crrelu(x, e).square().sum(), (0, 1)))(x, eps)
    for i in range(5):
        a, b = x[i].clone().requires_grad_(), eps[i].clone().requires_grad_()
        crrelu(a, b).square().sum().backward()
        torch.testing.assert_close(of_x[i], a.grad)
        torch.testing.assert_close(of_eps[i], b.grad)
    shared = vmap(grad(lambda e: crrelu(x[0], e).sum()))(eps)
    torch.testing.assert_close(
        shared,
        torch.full((5,), float((x[0] * (-(x[0] ** 2) / 2).exp()).sum()), dtype=torch.float64),
    )


def test_only_the_input_is_kept_for_the_backward_pass():
    kept = []
    x = draw(64, 64).requires_grad_()
    eps = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        crrelu(x, eps)
    assert [t.data_ptr() for t in kept] == [x.data_ptr(), eps.data_ptr()]


COMPILE = """
import torch
from torch import nn
from szilard.layers import CRReLU

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 6), CRReLU(0.3), nn.Linear(6, 6), CRReLU(0.2, channels=6))
x, parameters = torch.randn(5, 4), list(model.parameters())
expected = torch.autograd.grad(model(x).sum(), parameters)
for backend in ("eager", "aot_eager"):
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), parameters), expected)
"""


def test_compiles_in_one_graph():
    # In a process of its own: the run-time shape checks that tests install can't be traced.
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_autocast_keeps_the_dtype_that_arrives_and_a_float32_eps():
    model = nn.Sequential(nn.Linear(4, 6), CRReLU())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(draw(5, 4, dtype=torch.float32))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert model[1].eps.grad.dtype == torch.float32


# --- the module -----------------------------------------------------------------------------------


def test_one_eps_a_channel_on_either_axis():
    x = draw(2, 3, 5, 5, dtype=torch.float32)
    module = CRReLU(channels=3, channel_axis=1)
    with torch.no_grad():
        module.eps.copy_(torch.tensor([0.1, 0.2, 0.3]))
    for c in range(3):
        torch.testing.assert_close(module(x)[:, c], crrelu(x[:, c], 0.1 * (c + 1)))
    behind = copy.deepcopy(module)
    behind.channel_axis = -3
    torch.testing.assert_close(behind(x), module(x))
    last = CRReLU(channels=5)
    assert last(x).shape == x.shape


def test_state_dict_round_trip():
    trained = CRReLU(0.7, channels=4)
    other = CRReLU(channels=4)
    other.load_state_dict(trained.state_dict())
    torch.testing.assert_close(other.eps, trained.eps)
    assert list(trained.state_dict()) == ["eps"]


def test_an_eps_that_is_not_trained_gets_no_gradient():
    module = CRReLU(trainable=False)
    x = draw(3, dtype=torch.float32).requires_grad_()
    module(x).sum().backward()
    assert module.eps.grad is None
    assert x.grad is not None


def test_every_replaced_module_gets_an_eps_of_its_own_even_if_it_was_shared():
    shared = nn.GELU()
    model = nn.Sequential(nn.Linear(2, 2), shared, nn.Linear(2, 2), shared, nn.Tanh(), nn.ReLU())
    model.eval()
    changed, names = replace_activation(model)
    assert changed is model
    assert names == ["1", "3", "5"]
    assert len({id(module.eps) for module in model if isinstance(module, CRReLU)}) == 3
    assert not model[1].training
    assert list(learned_eps(model)) == ["1", "3", "5"]


def test_other_kinds_and_other_replacements():
    model = nn.Sequential(nn.Tanh(), nn.ReLU())
    assert replace_activation(model, (nn.Tanh,), nn.Mish)[1] == ["0"]
    assert isinstance(model[0], nn.Mish)
    alone, names = replace_activation(nn.ReLU())
    assert isinstance(alone, CRReLU)
    assert names == [""]


def test_with_eps_zero_a_converted_relu_network_is_unchanged():
    model = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2))
    x = draw(7, 4, dtype=torch.float32)
    before = model(x)
    torch.testing.assert_close(CRReLU.convert(model, eps_init=0.0)(x), before, rtol=0, atol=0)


def test_activations_called_as_functions_are_found():
    class Inner(nn.Module):
        def forward(self, x):
            return F.gelu(x) + torch.relu(x) + x.relu()

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.module, self.ours = Inner(), nn.GELU(), CRReLU()

        def forward(self, x):
            return F.silu(self.ours(self.module(self.inner(x))))

    model = Outer()
    found = functional_activations(model, torch.zeros(2))
    assert found == [("inner", "gelu"), ("inner", "relu"), ("", "silu")]
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(TypeError):
        functional_activations(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_optimiser_spares_eps_from_decay():
    model = nn.Sequential(nn.Linear(2, 2), CRReLU(), CRReLU(trainable=False))
    model[0].bias.requires_grad_(False)
    decayed, spared = parameter_groups(model, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(model[0].weight)]
    assert [id(p) for p in spared["params"]] == [id(model[1].eps)]
    optimiser = torch.optim.AdamW([decayed, spared], lr=0.1)
    model[1].eps.grad = torch.zeros(())
    optimiser.step()
    assert model[1].eps.item() == pytest.approx(0.01)


# --- in transformers ------------------------------------------------------------------------------


def tiny_gpt2(activation):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2,
        activation_function=activation, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(config)


def test_gpt2_trains_with_an_eps_a_layer_and_comes_back_from_its_folder(tmp_path):
    register_activations()
    model = tiny_gpt2("crrelu")
    assert list(learned_eps(model)) == [f"transformer.h.{i}.mlp.act" for i in range(2)]
    ids = torch.randint(32, (4, 16), generator=generator())
    optimiser = torch.optim.AdamW(parameter_groups(model, 0.01), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    eps = list(learned_eps(model).values())
    assert all(e != 0.01 for e in eps)
    assert eps[0] != eps[1]
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    model.eval()
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_weights_of_another_activation_are_converted_and_come_back(tmp_path):
    register_activations()
    tiny_gpt2("gelu_new").save_pretrained(tmp_path / "gelu")
    model = type(tiny_gpt2("relu")).from_pretrained(tmp_path / "gelu")
    CRReLU.convert(model, eps_init=0.3)
    model.config.activation_function = "crrelu"
    model.save_pretrained(tmp_path / "ours")
    again = type(model).from_pretrained(tmp_path / "ours")
    assert [eps.item() for eps in learned_eps(again).values()] == pytest.approx([0.3, 0.3])


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu", "gelu_pytorch_tanh"])
def test_the_activations_of_a_gpt2_are_replaced(activation):
    model = tiny_gpt2(activation)
    assert replace_activation(model)[1] == [f"transformer.h.{i}.mlp.act" for i in range(2)]
    assert functional_activations(model, torch.zeros(1, 3, dtype=torch.long)) == []


# --- bad input ------------------------------------------------------------------------------------


def test_integers_are_refused(unhooked):
    with pytest.raises(
        TypeError, match=r"x must have a floating-point dtype, but has torch\.int64"
    ):
        crrelu(torch.arange(3), 0.1)
    with pytest.raises(TypeError, match="floating-point"):
        CRReLU()(torch.arange(3))


def test_an_eps_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="eps must be a number"):
        crrelu(torch.zeros(3), math.nan)
    with pytest.raises(ValueError, match=r"eps must broadcast to x of shape \(2, 3\)"):
        crrelu(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="eps must broadcast"):
        crrelu(torch.zeros(3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="eps must broadcast"):
        CRReLU(channels=4)(torch.zeros(2, 3))


@pytest.mark.parametrize("eps", [math.nan, math.inf])
def test_a_start_that_is_not_finite_is_refused(eps):
    with pytest.raises(ValueError, match="eps_init must be finite"):
        CRReLU(eps)


def test_impossible_channels_and_decay_are_refused():
    with pytest.raises(ValueError, match="channels must be None or at least 1"):
        CRReLU(channels=0)
    with pytest.raises(ValueError, match="weight_decay must be at least 0"):
        parameter_groups(CRReLU(), -0.1)


def test_a_model_without_activations_is_refused():
    with pytest.raises(ValueError, match="no module of the kinds"):
        replace_activation(nn.Linear(2, 2))
