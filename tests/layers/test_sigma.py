from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from szilard.layers import (
    SigmaConv2d,
    SigmaLinear,
    SigmaReparam,
    fuse,
    sigma_reparam,
    update_sigma,
)
from szilard.layers.sigma import spectral_norms
from szilard.measures import attention_entropy, attention_entropy_floor


def original(layer: nn.Module) -> nn.Parameter:
    return layer.parametrizations.weight.original  # type: ignore[union-attr,return-value]


def norm(weight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.detach().flatten(1), 2))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 2, stride=2), nn.Flatten(2), nn.Linear(9, 12), nn.GELU(), nn.Linear(12, 3)
    )


# --- what the weight is -------------------------------------------------------------------------


@given(
    st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 10), st.sampled_from(["one", "spectral"])
)
@settings(max_examples=25)
def test_the_norm_is_gamma(rows: int, columns: int, gamma: float, start: Any) -> None:
    torch.manual_seed(rows * 10 + columns)
    layer = nn.Linear(columns, rows, dtype=torch.float64)
    before = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", SigmaReparam(layer.weight, start))
    scale = layer.parametrizations.weight[0].sigma_scale  # type: ignore[union-attr,index]
    assert scale.item() == pytest.approx(1.0 if start == "one" else norm(before))
    with torch.no_grad():
        scale.fill_(gamma)
    # The start by the Gram matrix keeps half of the digits of float64, then iterated once more.
    assert norm(layer.weight) == pytest.approx(gamma, rel=1e-7)


def test_power_iteration_finds_a_norm_it_did_not_start_from() -> None:
    layer = SigmaLinear(20, 30)
    with torch.no_grad():
        original(layer).copy_(torch.randn(30, 20))
    for _ in range(200):
        layer(torch.zeros(1, 20))
    assert norm(layer.weight) == pytest.approx(1, abs=1e-5)


def test_the_estimate_is_never_above_the_norm() -> None:
    layer = SigmaLinear(20, 30)
    for _ in range(20):
        with torch.no_grad():
            original(layer).copy_(torch.randn(30, 20))
        assert spectral_norms(layer)["weight"][0][0] <= norm(original(layer)) * (1 + 1e-6)


def test_the_scale_of_the_original_does_not_matter() -> None:
    layer = SigmaLinear(6, 5).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    expected = layer(x)
    with torch.no_grad():
        original(layer).mul_(7.5)
    torch.testing.assert_close(layer(x), expected)


def test_the_gradient_is_orthogonal_to_the_original() -> None:
    layer = SigmaLinear(6, 5).double()
    layer(torch.randn(3, 6, dtype=torch.float64)).square().sum().backward()
    weight = original(layer)
    assert weight.grad is not None
    assert abs(float((weight.grad * weight.detach()).sum())) < 1e-12 * float(weight.grad.norm())


def test_the_gradient_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    layer = SigmaLinear(6, 5, gamma_init="spectral").double().eval()
    upstream = torch.randn(5, 6, dtype=torch.float64)
    (layer.weight * upstream).sum().backward()
    w, step = original(layer), layer.parametrizations.weight[0]  # type: ignore[union-attr,index]
    left, values, right = torch.linalg.svd(w.detach())
    sigma, inner = values[0], (upstream * w.detach()).sum()
    gamma = step.sigma_scale.detach()
    outer = torch.outer(left[:, 0], right[0])
    # v is known to half of the digits: it came from float32.
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(w.grad, gamma / sigma * (upstream - inner / sigma * outer), **close)
    torch.testing.assert_close(step.sigma_scale.grad, (inner / sigma)[None], **close)


def test_gradients_pass_the_finite_difference_check_where_the_vectors_stand_still() -> None:
    # Diagonal, the singular vectors do not move to first order with the largest entry alone in its
    # row and column, so that the constant u and v are exact.
    weight = torch.diag(torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)).requires_grad_()
    step = SigmaReparam(weight).double().eval()
    assert torch.autograd.gradcheck(step, weight)


def test_with_gamma_one_it_is_torchs_spectral_norm() -> None:
    torch.manual_seed(1)
    ours = SigmaLinear(7, 4).double()
    theirs = nn.Linear(7, 4).double()
    theirs.load_state_dict({"weight": original(ours).detach(), "bias": torch.zeros(4)})
    parametrizations.spectral_norm(theirs, n_power_iterations=50)
    x = torch.randn(3, 7, dtype=torch.float64)
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(original(ours).grad, original(theirs).grad, rtol=1e-6, atol=1e-8)


def test_parts_have_norms_of_their_own() -> None:
    model = sigma_reparam(nn.ModuleDict({"qkv": nn.Linear(8, 24)}), split_fused={"qkv": 3})
    for part in model["qkv"].weight.chunk(3):
        assert norm(part) == pytest.approx(1, abs=1e-5)
    assert len(spectral_norms(model)["qkv.weight"][0]) == 3


def test_a_convolutions_norm_is_that_of_its_patches() -> None:
    layer = SigmaConv2d(4, 6, 3, padding=1, stride=2, dilation=2, groups=2, bias=False)
    assert norm(layer.weight) == pytest.approx(1, abs=1e-5)
    assert layer(torch.zeros(1, 4, 9, 9)).shape == (1, 6, 4, 4)


# --- training and evaluation --------------------------------------------------------------------


def test_evaluation_forgets() -> None:
    layer = SigmaLinear(6, 5).eval()
    with torch.no_grad():
        original(layer).copy_(torch.randn(5, 6))
    x = torch.randn(2, 6)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))


def test_a_recomputed_pass_sees_the_same_sigma() -> None:
    torch.manual_seed(0)
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        model = sigma_reparam(network(), advance=False)
        with torch.no_grad():  # the vectors lag behind the weight
            original(model[2]).add_(torch.randn_like(original(model[2])))
        x = torch.randn(4, 1, 6, 6)
        out = checkpoint(model, x, use_reentrant=False) if again else model(x)
        out.square().sum().backward()
        found.append([p.grad for p in model.parameters()])
        before = model[2].parametrizations.weight[0].right.clone()  # type: ignore[union-attr,index]
        update_sigma(model)
        assert not torch.equal(model[2].parametrizations.weight[0].right, before)  # type: ignore[union-attr,index]
    for plain, checkpointed in zip(*found, strict=True):
        assert torch.equal(plain, checkpointed)


def test_statistics_only_leaves_the_model_as_it_is() -> None:
    model, plain = network(), network()
    sigma_reparam(model, stats_only=True)
    x = torch.randn(2, 1, 6, 6)
    assert torch.equal(model(x), plain(x))
    assert spectral_norms(model)["4.weight"][0][0] == pytest.approx(norm(plain[4].weight), rel=1e-5)
    assert not any("sigma_scale" in name for name, p in model.named_parameters() if p.requires_grad)


def test_autocast_keeps_sigma_in_single_precision() -> None:
    layer = SigmaLinear(64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.weight.dtype == torch.float32
        assert layer(torch.randn(2, 64)).dtype == torch.bfloat16
    assert norm(layer.weight) == pytest.approx(1, abs=1e-5)
    halved = SigmaLinear(64, 64).to(torch.bfloat16)
    assert halved.weight.dtype == torch.bfloat16


def test_it_compiles_without_a_break() -> None:
    layer = SigmaLinear(6, 5)
    with torch.no_grad():
        original(layer).copy_(torch.randn(5, 6))
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 6)
    for _ in range(3):
        # Fused or not, the same float32 products in another order.
        torch.testing.assert_close(compiled(x), layer(x))
    torch.testing.assert_close(
        twin.parametrizations.weight[0].right,  # type: ignore[union-attr,index]
        layer.parametrizations.weight[0].right,  # type: ignore[union-attr,index]
    )


# --- models -------------------------------------------------------------------------------------


def test_spectral_start_keeps_outputs_and_fusing_keeps_them_too() -> None:
    model = network().eval()
    x = torch.randn(4, 1, 6, 6)
    expected, parameters = model(x), sum(p.numel() for p in model.parameters())
    sigma_reparam(model, gamma_init="spectral")
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in model.parameters()) == parameters + 3
    for name in ("weight", "bias"):
        with torch.no_grad():
            getattr(model[4], name).add_(0)
    before = model(x)
    fuse(model)
    assert not any(parametrize.is_parametrized(m) for m in model.modules())
    assert set(model.state_dict()) == set(network().state_dict())
    torch.testing.assert_close(model(x), before)


def test_the_state_comes_back() -> None:
    torch.manual_seed(2)
    model, fresh = (sigma_reparam(network()) for _ in range(2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 1, 6, 6)).square().sum().backward()
        optimizer.step()
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 6, 6)
    assert torch.equal(fresh.eval()(x), model.eval()(x))


def test_gpt2_is_converted_whole_but_for_embeddings_and_head() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=40, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.arange(8)[None]
    expected = model(ids).logits
    sigma_reparam(model, gamma_init="spectral", split_fused={"c_attn": 3})
    # 12 maps of 16 inputs in a row, each rounded in float32.
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=1e-4)
    norms = spectral_norms(model)
    assert len(norms) == 8
    assert {len(s) for name, (s, _) in norms.items() if "c_attn" in name} == {3}
    assert not any("wte" in name or "lm_head" in name for name in norms)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    text = model.eval().generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(
        fuse(model).generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0), text
    )


@pytest.mark.parametrize("same_width", [True, False])
def test_torchs_multihead_attention_is_protected(same_width: bool) -> None:
    torch.manual_seed(0)
    widths = {} if same_width else {"kdim": 6, "vdim": 5}
    layer = nn.MultiheadAttention(8, 2, batch_first=True, **widths)
    q, k, v = torch.randn(2, 3, 8), torch.randn(2, 4, layer.kdim), torch.randn(2, 4, layer.vdim)
    expected = layer(q, k, v)[0]
    sigma_reparam(layer, gamma_init="spectral")
    torch.testing.assert_close(layer(q, k, v)[0], expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        for step in layer.parametrizations.values():  # type: ignore[union-attr]
            step.original.mul_(50)  # what an exploding update would do
        for step in layer.out_proj.parametrizations.values():  # type: ignore[union-attr]
            step.original.mul_(50)
    torch.testing.assert_close(layer(q, k, v)[0], expected, atol=1e-4, rtol=1e-4)


def test_norms_can_go() -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.RMSNorm(4))
    sigma_reparam(model, remove_norms=True)
    assert [type(m).__name__ for m in model] == [
        "Identity",
        "ParametrizedLinear",
        "Identity",
        "Identity",
    ]


RANK = """
import json, sys, torch
from torch import nn
from szilard.layers import sigma_reparam

rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(rank)
model = nn.parallel.DistributedDataParallel(sigma_reparam(nn.Sequential(nn.Linear(6, 4))))
optimizer = torch.optim.SGD(model.parameters(), 0.5)
for _ in range(4):
    optimizer.zero_grad()
    model(torch.randn(5, 6)).square().mean().backward()
    optimizer.step()
print(json.dumps({name: value.tolist() for name, value in model.module.state_dict().items()}))
torch.distributed.destroy_process_group()
"""


def test_ranks_keep_the_same_buffers(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    states = [json.loads(rank.communicate(timeout=120)[0].splitlines()[-1]) for rank in ranks]
    assert "0.parametrizations.weight.0.right" in states[0]
    assert states[0] == states[1]


# --- the bound on attention entropy -------------------------------------------------------------


@pytest.mark.parametrize(
    ("s", "n", "expected"),
    [
        (1, 2, 0.4941999170),
        (1, 16, 2.7168012140),
        (5, 16, 0.4902879552),
        (8, 49, 0.1327603548),
        (0, 7, 1.9459101491),
        (3, 1, 0.0),
        (float("inf"), 9, 0.0),
    ],
)
def test_the_floor_has_its_known_values(s: float, n: int, expected: float) -> None:
    floor = attention_entropy_floor(torch.tensor(s, dtype=torch.float64), n)
    assert floor.item() == pytest.approx(expected, abs=1e-9)


@given(st.integers(2, 200), st.floats(0, 30))
def test_one_high_key_attains_the_floor(n: int, s: float) -> None:
    logits = torch.full((n,), -s / (n * (n - 1)) ** 0.5, dtype=torch.float64)
    logits[0] = s * ((n - 1) / n) ** 0.5
    entropy = attention_entropy(logits.softmax(0)[None, None])[0, 0]
    floor = attention_entropy_floor(logits.norm(), n)
    torch.testing.assert_close(entropy, floor, rtol=1e-9, atol=1e-12)


def test_no_row_lies_below_its_floor() -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (2, 3, 16, 197):
        logits = torch.randn(2_000, n, generator=generator, dtype=torch.float64)
        logits = (logits**3) * torch.logspace(-2, 2, 2_000, dtype=torch.float64)[:, None]
        entropy = attention_entropy(logits.softmax(-1)[None])[0]
        floor = attention_entropy_floor((logits - logits.mean(-1, keepdim=True)).norm(dim=-1), n)
        assert float((entropy - floor).min()) > -1e-12


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("unhooked")
def test_bad_input_names_the_argument() -> None:
    linear = nn.Linear(4, 6)
    with pytest.raises(ValueError, match="gamma_init"):
        sigma_reparam(linear, gamma_init="two")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="power_iters"):
        SigmaLinear(4, 4, power_iters=0)
    with pytest.raises(ValueError, match="do not divide into 4 parts"):
        sigma_reparam(nn.ModuleDict({"a": linear}), split_fused={"a": 4})
    with pytest.raises(ValueError, match="no linear map"):
        sigma_reparam(nn.Sequential(nn.ReLU()))
    with pytest.raises(TypeError, match="floating"):
        SigmaReparam(torch.ones(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="two axes"):
        SigmaReparam(torch.ones(2))
    with pytest.raises(ValueError, match="finite"):
        SigmaReparam(torch.full((2, 2), torch.nan))
    with pytest.raises(ValueError, match="zero"):
        SigmaReparam(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="norm"):
        attention_entropy_floor(torch.tensor(-1.0), 3)
    with pytest.raises(ValueError, match="keys"):
        attention_entropy_floor(torch.tensor(1.0), 0)


def test_a_refused_model_is_unchanged() -> None:
    tied = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "first": nn.Linear(4, 4)})
    tied["head"] = nn.Linear(4, 5, bias=False)
    tied["head"].weight = tied["embedding"].weight
    with pytest.raises(ValueError, match=r"head\.weight is tied .*embedding\.weight"):
        sigma_reparam(tied)
    assert not any(parametrize.is_parametrized(m) for m in tied.modules())
    sigma_reparam(tied, exclude=("head",))
    with pytest.raises(ValueError, match="already"):
        sigma_reparam(tied, exclude=("head",))
