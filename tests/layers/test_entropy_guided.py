from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from layers import guided_rank
from szilard.layers import (
    AttentionEntropyReport,
    AttentionTemperature,
    EntropyBand,
    EntropyGuidedTrainer,
    ScaledFusedFFN,
    convert_softmax_only,
    fuse_softmax_only,
    guide_entropy,
    private_cost,
    spared_parameters,
)
from szilard.layers.entropy_report import EntropyTap, attentions
from szilard.measures import attention_entropy, attention_entropy_from_qk

transformers = pytest.importorskip("transformers")

VOCABULARY, POSITIONS = 23, 16


@pytest.fixture(scope="module", autouse=True)
def second_rank(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The other one of two processes that train together, and where they meet.

    To import takes it as long as many tests do, so it starts before them and then waits.
    """
    store = tmp_path_factory.mktemp("ranks") / "store"
    command = [sys.executable, str(Path(__file__).with_name("guided_rank.py")), str(store)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    yield process, store
    process.kill()
    process.communicate()


def gpt2(seed: int = 0, **options: Any) -> Any:
    settings = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": POSITIONS}
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **settings | options
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.GPT2LMHeadModel(config).eval()
        for parameter in model.parameters():  # far from the even attention of a new model
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def tokens(batch: int = 2, length: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, VOCABULARY, (batch, length), generator=generator)


def scattered(model: Any) -> Any:
    """A converted model whose temperatures and scales are not those of the start."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name in spared_parameters(model):
            parameter = model.get_parameter(name)
            parameter += 0.5 * torch.rand(parameter.shape, generator=generator)
    return model


def entropies_of(model: Any, *args: Any, **kwargs: Any) -> list[Tensor]:
    tap = EntropyTap()
    for attention in attentions(model):
        attention.taps.append(tap)
    model(*args, **kwargs)
    for attention in attentions(model):
        attention.taps.remove(tap)
    return [tap.layers[layer] for layer in sorted(tap.layers)]


# --- the band -------------------------------------------------------------------------------------


def uniform_and_identity() -> list[Tensor]:
    return [torch.stack([torch.arange(1.0, 5).double().log(), torch.zeros(4).double()])[None]]


def test_uniform_causal_rows_have_the_logarithm_of_their_keys_and_identity_rows_nothing() -> None:
    uniform = torch.ones(4, 4).tril() / torch.arange(1, 5)[:, None]
    rows = attention_entropy(torch.stack([uniform, torch.eye(4)]).double())
    torch.testing.assert_close(rows[None], uniform_and_identity()[0], atol=1e-6, rtol=1e-6)


def test_the_penalty_of_a_uniform_and_an_identity_head_is_known() -> None:
    summed = EntropyBand(1, 2, coef=1.0, reduction="code").double()
    assert summed(uniform_and_identity()).item() == pytest.approx(1.5235600187, abs=1e-9)
    band = EntropyBand(1, 2, coef=1.0).double()
    penalty = band(uniform_and_identity())
    assert penalty.item() == pytest.approx(0.3808900047, abs=1e-9)
    penalty.backward()
    expected = torch.tensor([[-0.1405235, 0.9609060]], dtype=torch.float64)
    torch.testing.assert_close(band.theta.grad, expected, atol=1e-6, rtol=1e-6)


def test_inside_the_band_there_is_no_loss_and_no_gradient() -> None:
    band = EntropyBand(2, 3).double()
    centre = 0.5 * torch.tensor(5.0).double().log()
    entropies = [
        (centre * torch.rand(2, 3, 5).double().mul(0.2).add(0.9)).requires_grad_() for _ in range(2)
    ]
    penalty = band(entropies)
    penalty.backward()
    assert penalty.item() == 0
    assert not band.theta.grad.any()
    assert not any(entropy.grad.any() for entropy in entropies)


def reference(entropies: Tensor, theta: Tensor, counted: Tensor, ceiling: Tensor, gamma: float):
    """The penalty of one query after another: a list of those that count."""
    layers, batch, heads, queries = entropies.shape
    found = []
    for layer in range(layers):
        for head in range(heads):
            for row in range(batch):
                for query in range(queries):
                    if counted[row, query]:
                        most = ceiling[row, query]
                        delta = entropies[layer, row, head, query] - theta[layer, head] * most
                        found.append(delta**2 if abs(delta) > gamma * most else 0 * delta)
    return torch.stack(found)


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from(["context", "causal"]),
    st.sampled_from([0.0, 0.2, 0.7]),
    st.booleans(),
)
@settings(max_examples=25)
def test_the_band_is_its_definition(
    layers: int, batch: int, heads: int, queries: int, emax: Any, gamma: float, padded: bool
) -> None:
    generator = torch.Generator().manual_seed(layers + 10 * queries)
    entropies = 3 * torch.rand(
        layers, batch, heads, queries, generator=generator, dtype=torch.float64
    )
    mask = torch.ones(batch, queries, dtype=torch.bool)
    if padded:
        mask[0, : queries // 2] = False
    seen = mask.cumsum(1)
    counted = mask & (seen > 4) if emax == "causal" else mask
    ceiling = seen.clamp(min=1) if emax == "causal" else torch.full_like(seen, queries)
    ceiling = ceiling.double().log()
    found = {}
    for reduction in ("mean", "code"):
        band = EntropyBand(layers, heads, gamma, 1.0, emax=emax, reduction=reduction).double()  # type: ignore[arg-type]
        with torch.no_grad():
            band.theta.copy_(torch.rand(layers, heads, generator=generator))
        found[reduction] = float(band(list(entropies), mask if padded else None).detach())
        if not counted.any():
            assert found[reduction] == 0
            continue
        rows = reference(entropies, band.theta, counted, ceiling, gamma)
        total = rows.sum() / (layers * heads)
        expected = total if reduction == "code" else rows.mean()
        assert found[reduction] == pytest.approx(float(expected), rel=1e-9, abs=1e-12)


def test_sum_and_mean_agree_through_the_published_weights() -> None:
    entropies = [torch.rand(128, 2, 128) * 5]
    ratio = EntropyBand(1, 2)(entropies) / EntropyBand(1, 2, reduction="code")(entropies)
    assert ratio.item() == pytest.approx(1.0, rel=1e-5)


def test_the_band_passes_the_finite_difference_check_off_its_edge() -> None:
    band = EntropyBand(2, 2, coef=1.0).double()
    generator = torch.Generator().manual_seed(3)
    shape = (2, 2, 2, 6)
    entropies = 2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    most = torch.tensor(6.0).double().log()
    edge = ((entropies - 0.5 * most).abs() - 0.2 * most).abs()
    assert edge.min() > 1e-4

    def penalty(entropies: Tensor, theta: Tensor) -> Tensor:
        return torch.func.functional_call(band, {"theta": theta}, (list(entropies),))

    start = band.theta.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(penalty, (entropies.requires_grad_(), start))


def test_entropies_with_their_penalty_pass_the_finite_difference_check() -> None:
    band = EntropyBand(1, 2, gamma=0.0, coef=1.0, emax="causal").double()
    generator = torch.Generator().manual_seed(4)
    query, key = torch.randn(2, 2, 2, 7, 3, generator=generator, dtype=torch.float64)
    temperature = AttentionTemperature(2, 7).double()
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, :2] = False

    def penalty(query: Tensor, key: Tensor, raw: Tensor) -> Tensor:
        divided = torch.func.functional_call(temperature, {"raw": raw}, (query,))
        entropy = attention_entropy_from_qk(divided, key, causal=True, key_padding_mask=mask)
        return band([entropy], mask)

    start = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (query, key, start)]
    assert torch.autograd.gradcheck(penalty, inputs)


# --- temperature and feed-forward ---------------------------------------------------------------


def test_dividing_queries_divides_scores() -> None:
    temperature = scattered(nn.Sequential(AttentionTemperature(2, 5)))[0]
    query, key = torch.randn(2, 3, 2, 5, 4)
    t = temperature.temperature[None, :, :, None]
    torch.testing.assert_close(temperature(query) @ key.mT, query @ key.mT / t)


@given(st.integers(0, 50))
@settings(max_examples=15)
def test_a_larger_temperature_never_lowers_an_entropy(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 1, 1, 6, 4, generator=generator, dtype=torch.float64) * 3
    found = [
        attention_entropy_from_qk(
            AttentionTemperature(1, 6, init=t).double()(query), key, causal=True
        )
        for t in (0.2, 0.7, 1.0, 3.0, 40.0)
    ]
    for low, high in pairwise(found):
        assert (high - low).min() > -1e-12


def test_the_start_is_what_was_asked_for_and_positions_beyond_the_table_use_its_last() -> None:
    for init in (0.05, 1.0, 25.0, 80.0):
        table = AttentionTemperature(2, 3, init=init)
        torch.testing.assert_close(table.temperature, torch.full((2, 3), init))
    table = scattered(nn.Sequential(AttentionTemperature(1, 3))).eval()[0]
    query = torch.ones(1, 1, 5, 2)
    t = 1 / table(query)[0, 0, :, 0]
    assert torch.equal(t[2:], t[2].expand(3))
    one = torch.ones(2, 1, 1, 2)
    places = torch.tensor([[1], [9]])
    torch.testing.assert_close(1 / table(one, places)[:, 0, 0, 0], t[[1, 2]])


def test_the_fused_layer_is_two_matrices_without_activation() -> None:
    first, second = nn.Linear(6, 24, bias=False), nn.Linear(24, 6, bias=False)
    layer = ScaledFusedFFN(6)
    with torch.no_grad():
        layer.linear.weight.copy_(second.weight @ first.weight)
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x), x + second(first(x)))
    assert layer.linear.weight.numel() == 6**2
    assert first.weight.numel() + second.weight.numel() == 8 * 6**2


@pytest.mark.parametrize("in_residual", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_fused_layer_is_one_plain_layer(in_residual: bool, bias: bool) -> None:
    layer = ScaledFusedFFN(6, bias=bias, in_residual=in_residual)
    with torch.no_grad():
        layer.alpha.fill_(0.3)
        layer.beta.fill_(-1.7)
        if bias:
            layer.linear.bias.normal_()
    x = torch.randn(4, 6)
    expected = -1.7 * x + layer.linear(x) / 0.3 - in_residual * x
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.to_linear()(x), expected)


def test_alpha_stays_positive() -> None:
    layer, x = ScaledFusedFFN(4), torch.randn(2, 4)
    with torch.no_grad():
        layer.alpha.fill_(-3.0)
    torch.testing.assert_close(layer(x), x + layer.linear(x) / 0.05)


# --- conversion ---------------------------------------------------------------------------------


def test_with_norms_and_activation_it_is_gpt2() -> None:
    model = gpt2()
    stock = copy.deepcopy(model)
    convert_softmax_only(model, norm="ln", ffn="gelu")
    torch.testing.assert_close(model(tokens()).logits, stock(tokens()).logits, atol=1e-5, rtol=1e-5)


def test_fused_and_unfused_linear_layers_start_as_the_same_function() -> None:
    fused = convert_softmax_only(gpt2())
    plain = convert_softmax_only(gpt2(), ffn="linear")
    torch.testing.assert_close(fused(tokens()).logits, plain(tokens()).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("norm", "ffn", "gone"),
    [("ln", "gelu", ()), ("none", "relu", ("ln_1", "ln_2")), ("none", "linear", ("ln_1", "ln_2"))],
)
def test_states_of_gpt2_load_but_for_what_was_taken_out(norm: str, ffn: str, gone: Any) -> None:
    model = convert_softmax_only(gpt2(), norm=norm, ffn=ffn)
    report = model.load_state_dict(gpt2(5).state_dict(), strict=False)
    assert all("temperature.raw" in name for name in report.missing_keys)
    assert all(any(part in name for part in gone) for name in report.unexpected_keys)


def test_a_saved_state_comes_back(tmp_path: Path) -> None:
    model = scattered(convert_softmax_only(gpt2()))
    model.save_pretrained(tmp_path)
    config = transformers.GPT2Config.from_pretrained(tmp_path)
    again = transformers.GPT2LMHeadModel(config)
    for block in again.transformer.h:  # a bias of the fused layer stands where theirs are not zero
        block.mlp.c_proj.bias.data += 1
    convert_softmax_only(again, **config.softmax_only)
    from safetensors.torch import load_file

    report = again.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert report.missing_keys in ([], ["lm_head.weight"])
    again.tie_weights()
    torch.testing.assert_close(again.eval()(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("ffn_norm", ["weight", "spectral"])
@pytest.mark.parametrize("ffn", ["linear", "scaled_fused"])
def test_weights_of_the_feed_forward_layers_can_have_norms(ffn: str, ffn_norm: str) -> None:
    model = convert_softmax_only(gpt2(), ffn=ffn, ffn_norm=ffn_norm)
    mlp = model.transformer.h[0].mlp
    matrix = mlp.c_fc if ffn == "linear" else mlp.linear
    if ffn_norm == "spectral":
        # Torch starts with 15 power iterations.
        assert torch.linalg.matrix_norm(matrix.weight, 2).item() == pytest.approx(1, abs=0.05)
    else:
        scale = matrix.parametrizations.weight.original0
        norms = matrix.weight.norm(dim=0 if ffn == "linear" else 1)
        torch.testing.assert_close(norms, scale.flatten())
    expected = model(tokens()).logits
    fuse_softmax_only(model)
    torch.testing.assert_close(model(tokens()).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ffn", ["gelu", "linear", "scaled_fused"])
def test_a_fused_model_computes_the_same(ffn: str) -> None:
    model = convert_softmax_only(gpt2(), ffn=ffn)
    guide_entropy(model, EntropyBand(2, 2))
    with torch.no_grad():
        for attention in attentions(model):
            attention.temperature.raw += torch.tensor([[0.5], [-0.4]])
    expected = model(tokens()).logits
    fuse_softmax_only(model)
    assert model.config._attn_implementation == "sdpa"
    assert not any(isinstance(m, AttentionTemperature | EntropyBand) for m in model.modules())
    assert isinstance(model.transformer.h[0].mlp, nn.Linear) == (ffn != "gelu")
    torch.testing.assert_close(model(tokens()).logits, expected, atol=1e-4, rtol=1e-4)


def test_temperatures_that_differ_between_positions_are_not_folded() -> None:
    model = scattered(convert_softmax_only(gpt2()))
    expected = model(tokens()).logits
    fuse_softmax_only(model)
    assert all(attention.temperature is not None for attention in attentions(model))
    torch.testing.assert_close(model(tokens()).logits, expected, atol=1e-4, rtol=1e-4)


# --- entropies ----------------------------------------------------------------------------------


def eager_entropies(model: Any, ids: Tensor, mask: Tensor | None) -> list[Tensor]:
    """By the maps that the eager path of GPT-2 returns, from temperatures folded into queries."""
    model = fuse_softmax_only(copy.deepcopy(model))
    model.set_attn_implementation("eager")
    maps = model(ids, attention_mask=mask, output_attentions=True).attentions
    return [-torch.special.xlogy(weights, weights).sum(-1) for weights in maps]


@pytest.mark.parametrize("padded", [None, "left", "right"])
def test_entropies_are_those_of_the_maps(padded: str | None) -> None:
    model = convert_softmax_only(gpt2())
    with torch.no_grad():
        for attention in attentions(model):
            attention.temperature.raw += torch.tensor([[0.8], [-0.4]])
    ids, mask = tokens(), None
    if padded:
        mask = torch.ones_like(ids)
        mask[0, : 4 if padded == "left" else None] = 0
        if padded == "right":
            mask[0] = torch.tensor([1] * 6 + [0] * 4)
    found = entropies_of(model, ids, attention_mask=mask)
    counted = torch.ones_like(ids).bool() if mask is None else mask.bool()
    for ours, theirs in zip(found, eager_entropies(model, ids, mask), strict=True):
        gap = (ours - theirs).abs() * counted[:, None]
        # Sums of float32 products in another order.
        assert gap.max() < 2e-5


def test_the_report_counts_heads_by_their_ceilings() -> None:
    model = convert_softmax_only(gpt2())
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    report = AttentionEntropyReport(model)
    with report:
        model(ids, attention_mask=mask)
        model(ids[1:])
    found = entropies_of(model, ids, attention_mask=mask)
    seen = mask.cumsum(1)
    for layer, entropy in enumerate(found):
        total = (entropy * mask[:, None]).sum((0, 2)) + entropy[1].sum(-1)
        ceiling = (seen.clamp(min=1).log() * mask).sum() + seen[1].log().sum()
        context = (mask.sum() + mask[1].sum()) * torch.tensor(10.0).log()
        torch.testing.assert_close(report.ceiling[layer], total / ceiling, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(report.fill[layer], total / context, atol=1e-5, rtol=1e-5)
    shares = report()
    assert sum(value for name, value in shares.items() if name.startswith("heads")) == 1
    assert not any(attention.taps for attention in attentions(model))
    report.clear()
    with pytest.raises(ValueError, match="nothing was recorded"):
        report()


def test_uniform_attention_is_overload_and_attention_to_one_key_is_collapse() -> None:
    model = convert_softmax_only(gpt2())
    for factor, share in ((0.0, "overload"), (1e4, "collapse")):
        with torch.no_grad():
            for attention in attentions(model):
                attention.c_attn.weight[:, :16] *= factor
                attention.c_attn.bias[:16] *= factor
        with AttentionEntropyReport(model) as report:
            model(tokens())
        assert report()[share] == 1
        model = convert_softmax_only(gpt2())


# --- generation -----------------------------------------------------------------------------------


def test_cached_decoding_is_the_whole_forward_at_every_position() -> None:
    model = scattered(convert_softmax_only(gpt2(), positions=6))
    ids = tokens(1, 12)
    whole = model(ids).logits
    cache, rows = None, []
    for i in range(ids.shape[1]):
        step = model(ids[:, i : i + 1], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        rows.append(step.logits)
    torch.testing.assert_close(torch.cat(rows, 1), whole, atol=1e-4, rtol=1e-4)


def test_a_batch_with_left_padding_generates_what_each_row_does() -> None:
    model = scattered(convert_softmax_only(gpt2()))
    ids = tokens(2, 6)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    both = model.generate(ids, attention_mask=mask, **options)
    short = model.generate(ids[:1, 2:], **options)
    assert torch.equal(both[0, 2:], short[0])


# --- training -----------------------------------------------------------------------------------


def guided(**options: Any) -> Any:
    model = convert_softmax_only(gpt2(resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0))
    return guide_entropy(model, EntropyBand(2, 2, **{"coef": 1.0} | options)).train()


def test_the_penalty_is_that_of_the_entropies_and_reaches_all_that_makes_them() -> None:
    model, ids = guided(gamma=0.0), tokens()
    out = model(ids, labels=ids)
    expected = model.entropy_band(entropies_of(model, ids))
    torch.testing.assert_close(out.entropy_penalty, expected)
    out.entropy_penalty.backward()
    attention = model.transformer.h[0].attn
    assert attention.c_attn.weight.grad.any()
    assert attention.temperature.raw.grad[:, 1:10].all()
    assert model.entropy_band.theta.grad.all()
    plain = model.eval()(ids, labels=ids)
    assert "entropy_penalty" not in plain
    torch.testing.assert_close(plain.loss, out.loss)


def test_padded_queries_do_not_pay() -> None:
    model, ids = guided(), tokens()
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    first = model(ids, attention_mask=mask).entropy_penalty
    ids = torch.where(mask.bool(), ids, 3)
    torch.testing.assert_close(model(ids, attention_mask=mask).entropy_penalty, first)


def test_guiding_draws_heads_into_the_band() -> None:
    model = convert_softmax_only(gpt2(resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0)).train()
    guide_entropy(model, EntropyBand(2, 2, gamma=0.0, coef=1.0, emax="causal", learnable=False))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    penalties = []
    for _ in range(40):
        penalty = model(tokens()).entropy_penalty
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        penalties.append(float(penalty.detach()))
    assert penalties[-1] < 0.2 * penalties[0]
    assert not model.entropy_band.theta.grad


def test_a_recomputed_forward_has_the_same_gradients() -> None:
    ids, found = tokens(), []
    for again in (False, True):
        model = guided(gamma=0.0)
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        out = model(ids, labels=ids)
        (out.loss + out.entropy_penalty).backward()
        found.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_reentrant_checkpointing_is_refused() -> None:
    model = guided()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(ValueError, match="reentrant"):
        model(tokens())


def test_under_autocast_entropies_are_single_precision() -> None:
    model, ids = guided(gamma=0.0), tokens()
    exact = model(ids).entropy_penalty
    with torch.autocast("cpu", torch.bfloat16):
        out = model(ids, labels=ids)
    assert out.entropy_penalty.dtype == torch.float32
    # Queries and keys have eight bits.
    torch.testing.assert_close(out.entropy_penalty, exact, rtol=0.05, atol=0.01)
    (out.loss + out.entropy_penalty).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.usefixtures("unhooked")
def test_it_compiles_whole_where_it_is_not_guided_and_in_parts_where_it_is() -> None:
    ids, options = (
        tokens(),
        {"n_layer": 1, "resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0},
    )
    model = scattered(convert_softmax_only(gpt2(**options)))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids).logits, model(ids).logits)
    torch._dynamo.reset()
    guide_entropy(model, EntropyBand(1, 2, gamma=0.0, coef=1.0)).train()
    expected = model(ids, labels=ids)
    found = torch.compile(model, backend="aot_eager")(ids, labels=ids)
    torch.testing.assert_close(found.entropy_penalty, expected.entropy_penalty)
    torch.testing.assert_close(found.loss, expected.loss)
    torch._dynamo.reset()


def test_a_copy_has_taps_of_its_own() -> None:
    model, ids = guided(), tokens()
    twin = copy.deepcopy(model)
    first = twin(ids).entropy_penalty
    torch.testing.assert_close(first, model(ids).entropy_penalty)
    first.backward()
    assert model.entropy_band.theta.grad is None
    assert twin.entropy_band.theta.grad is not None


def test_processes_keep_the_same_thresholds_and_temperatures(
    second_rank: tuple[subprocess.Popen[str], Path],
) -> None:
    process, store = second_rank
    with torch.random.fork_rng():
        first = guided_rank.train(0, str(store))
    second = json.loads(process.communicate(timeout=120)[0].splitlines()[-1])
    for a, b in zip(first, second, strict=True):
        assert a[:2] == b[:2]
        assert a[2] != b[2]  # they saw other batches
        assert a[0] != [[0.5, 0.5], [0.5, 0.5]]


# --- the trainer ----------------------------------------------------------------------------------


def trainer(folder: Path, model: Any, **options: Any) -> EntropyGuidedTrainer:
    rows = [{"input_ids": row, "labels": row} for row in tokens(8, 12)]
    arguments = transformers.TrainingArguments(
        folder,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        **{"max_steps": 2, "learning_rate": 1e-2, "optim": "sgd", "max_grad_norm": 0.0} | options,
    )
    return EntropyGuidedTrainer(
        model, arguments, train_dataset=rows, eval_dataset=rows, band=EntropyBand(2, 2, coef=1.0)
    )


def plain_gpt2() -> Any:
    return convert_softmax_only(gpt2(resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0))


def test_the_trainer_adds_the_penalty_in_training_alone(tmp_path: Path) -> None:
    model = plain_gpt2()
    runner = trainer(tmp_path, model, weight_decay=0.1)
    stock = transformers.Trainer(plain_gpt2(), runner.args, eval_dataset=runner.eval_dataset)
    found, expected = (one.evaluate()["eval_loss"] for one in (runner, stock))
    assert found == pytest.approx(expected)
    runner.train()
    logged = [row for row in runner.state.log_history if "entropy_penalty" in row]
    assert len(logged) == 2
    assert all(row["entropy_penalty"] > 0 for row in logged)
    assert not torch.equal(model.entropy_band.theta, torch.full((2, 2), 0.5))
    spared = [g for g in runner.optimizer.param_groups if g["weight_decay"] == 0]
    for name in spared_parameters(model):
        assert any(model.get_parameter(name) is p for group in spared for p in group["params"])


def test_accumulated_micro_batches_step_as_one_batch_does(tmp_path: Path) -> None:
    found = []
    for size, parts in ((8, 1), (2, 4)):
        model = plain_gpt2()
        runner = trainer(
            tmp_path,
            model,
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
        )
        runner.train()
        found.append(model)
    for whole, split in zip(found[0].parameters(), found[1].parameters(), strict=True):
        torch.testing.assert_close(whole, split, atol=1e-5, rtol=1e-4)


def test_the_report_joins_the_trainer_s_log(tmp_path: Path) -> None:
    from szilard.representations import MeasureLogger

    model = plain_gpt2()
    runner = trainer(tmp_path, model)
    report = AttentionEntropyReport(model)
    logger = MeasureLogger(report, every=2, recorder=report)
    runner.add_callback(logger.callback())
    runner.train()
    assert [row["step"] for row in logger.history] == [2]
    assert 0 <= logger.history[0]["overload"] <= 1


# --- cost -----------------------------------------------------------------------------------------


def test_the_cost_of_gpt2_small_is_the_published_one() -> None:
    config = transformers.GPT2Config()
    before = private_cost(config, 128)
    after = private_cost(config, 128, norm="none", ffn="scaled_fused")
    assert before["ffn_flops"] == 14_495_514_624
    assert after["ffn_flops"] == 1_811_939_328
    assert (before["softmax"], before["softmax_elements"]) == (144, 144 * 128 * 128)
    assert (before["layer_norm"], before["gelu"], before["relu"]) == (24, 12, 0)
    assert (after["softmax"], after["layer_norm"], after["gelu"], after["relu"]) == (144, 0, 0, 0)
    assert before["gelu_elements"] == 12 * 128 * 3072


def test_a_converted_model_s_configuration_says_what_it_costs() -> None:
    model = convert_softmax_only(gpt2(), ffn="relu")
    cost = private_cost(model.config, 10)
    assert (cost["layer_norm"], cost["relu"], cost["gelu"]) == (0, 2, 0)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unhooked")
def test_bad_input_names_the_argument() -> None:
    with pytest.raises(ValueError, match="gamma must lie in"):
        EntropyBand(1, 1, gamma=1.0)
    with pytest.raises(ValueError, match="theta_init"):
        EntropyBand(1, 1, theta_init=1.5)
    with pytest.raises(ValueError, match="n_heads"):
        EntropyBand(1, 0)
    with pytest.raises(ValueError, match="coef"):
        EntropyBand(1, 1, coef=float("nan"))
    with pytest.raises(ValueError, match="emax must be one of"):
        EntropyBand(1, 1, emax="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduction"):
        EntropyBand(1, 1, reduction="max")  # type: ignore[arg-type]
    band = EntropyBand(2, 3)
    with pytest.raises(ValueError, match="of 2 layers, but are of 1"):
        band([torch.zeros(1, 3, 4)])
    with pytest.raises(ValueError, match="3 heads"):
        band([torch.zeros(1, 2, 4)] * 2)
    with pytest.raises(ValueError, match="one shape"):
        band([torch.zeros(1, 3, 4), torch.zeros(1, 3, 5)])
    with pytest.raises(ValueError, match="key_padding_mask"):
        band([torch.zeros(1, 3, 4)] * 2, torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="init"):
        AttentionTemperature(1, 1, init=0.0)
    with pytest.raises(ValueError, match="positions"):
        AttentionTemperature(1, 0)
    with pytest.raises(ValueError, match="2 heads"):
        AttentionTemperature(2, 4)(torch.zeros(1, 3, 4, 2))
    with pytest.raises(ValueError, match="5 positions in training"):
        AttentionTemperature(2, 4)(torch.zeros(1, 2, 5, 2))
    with pytest.raises(ValueError, match="width"):
        ScaledFusedFFN(0)
    with pytest.raises(ValueError, match="tokens"):
        private_cost(transformers.GPT2Config(), 0)
    with pytest.raises(ValueError, match="ffn must be one of"):
        private_cost(transformers.GPT2Config(), 4, ffn="swish")


def test_models_that_cannot_be_converted_are_refused_and_unchanged() -> None:
    with pytest.raises(TypeError, match="GPT2LMHeadModel"):
        convert_softmax_only(nn.Linear(2, 2))
    model = gpt2()
    names = set(model.state_dict())
    for options, said in (
        ({"norm": "rms"}, "norm must be one of"),
        ({"ffn": "swish"}, "ffn must be one of"),
        ({"norm": "ln"}, "norm must be 'none' where ffn"),
        ({"ffn_norm": "batch"}, "ffn_norm"),
        ({"positions": 0}, "positions"),
    ):
        with pytest.raises(ValueError, match=said):
            convert_softmax_only(model, **options)  # type: ignore[arg-type]
    model.transformer.h[1] = model.transformer.h[0]
    with pytest.raises(ValueError, match="shares blocks"):
        convert_softmax_only(model)
    assert set(gpt2().state_dict()) == names
    with pytest.raises(ValueError, match="add_cross_attention"):
        convert_softmax_only(gpt2(add_cross_attention=True))
    with pytest.raises(ValueError, match="reorder_and_upcast_attn"):
        convert_softmax_only(gpt2(reorder_and_upcast_attn=True))
    model = gpt2()
    model.transformer.h[1].attn.c_proj.weight = model.transformer.h[0].attn.c_proj.weight
    with pytest.raises(ValueError, match="parameters between blocks"):
        convert_softmax_only(model)
    with pytest.raises(ValueError, match="already"):
        convert_softmax_only(convert_softmax_only(gpt2()))


def test_models_that_do_not_hand_out_entropies_are_refused() -> None:
    for refused in (AttentionEntropyReport, EntropyGuidedTrainer, fuse_softmax_only):
        with pytest.raises(ValueError, match="convert_softmax_only"):
            refused(gpt2())
    model = convert_softmax_only(gpt2())
    with pytest.raises(ValueError, match="2 layers of 2 heads"):
        guide_entropy(model, EntropyBand(2, 3))
    guide_entropy(model, EntropyBand(2, 2))
    with pytest.raises(ValueError, match="an entropy band already"):
        guide_entropy(model, EntropyBand(2, 2))
    model.train()
    with pytest.raises(ValueError, match="return_dict"):
        model(tokens(), return_dict=False)
    with pytest.raises(ValueError, match="not causal with padding"):
        model(tokens(1, 6), position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]), use_cache=False)
    with pytest.raises(ValueError, match="positions in training"):
        convert_softmax_only(gpt2(), positions=4).train()(tokens())


def test_a_report_opens_once() -> None:
    report = AttentionEntropyReport(convert_softmax_only(gpt2()))
    with report, pytest.raises(RuntimeError, match="open already"), report:
        pass
