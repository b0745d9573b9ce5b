import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from szilard.representations import (
    DeadDictionary,
    FeatureBudget,
    MeasureLogger,
    TiedSAE,
    effective_features,
    measure_superposition,
    train_sae,
)


def rows(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@st.composite
def codes(draw):
    samples, d = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    z = rows(samples, d, seed=draw(st.integers(0, 10_000)))
    z[:, 1:] *= torch.tensor(draw(st.lists(st.booleans(), min_size=d - 1, max_size=d - 1)))
    return z


# --- oracles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 7, 1000])
def test_k_equal_features_count_as_k(k):
    assert pytest.approx(k, rel=1e-12) == effective_features(torch.ones(3, k)).F


def test_known_distributions():
    assert (
        pytest.approx(3.5961154666, abs=5e-11)
        == effective_features(np.array([0.4, 0.3, 0.2, 0.1])).F
    )
    halves = 0.5 ** torch.arange(1, 200, dtype=torch.float64)
    assert pytest.approx(4, rel=1e-12) == effective_features(halves).F
    zipf = 1 / torch.arange(1, 1001, dtype=torch.float64)
    assert pytest.approx(179.6500934, abs=5e-8) == effective_features(zipf).F


def test_one_hot_codes_are_one_feature():
    result = effective_features(torch.tensor([[0.0, 3.0], [0.0, 1.0]]), n=4)
    assert (result.F, result.psi, result.hill2, result.live) == (1.0, 0.25, 1.0, 1)


def test_an_orthonormal_dictionary_gives_the_entropy_of_the_column_means():
    X = rows(50, 6)
    sae = TiedSAE(6, 6).double()
    with torch.no_grad():
        sae.weight.copy_(torch.eye(6))
    means = X.mean(0) / X.mean(0).sum()
    expected = math.exp(-float((means * means.log()).sum()))
    assert pytest.approx(expected, rel=1e-12) == effective_features(sae.encode(X)).F


def test_eps_adds_what_it_says():
    z = torch.tensor([[1.0, 0.0, 0.0, 3.0]], dtype=torch.float64)
    p = np.array([0.25, 0, 0, 0.75]) + 0.01
    p /= p.sum()
    expected = math.exp(-(p * np.log(p)).sum())
    assert pytest.approx(expected, rel=1e-12) == effective_features(z, 0.01).F
    assert pytest.approx(effective_features(z).F, rel=1e-7) == effective_features(z, 1e-10).F


# --- properties -----------------------------------------------------------------------------------


@given(codes(), st.floats(1e-30, 1e30), st.integers(0, 100))
def test_scale_order_repetition_and_silent_features_do_not_count(z, scale, seed):
    F = effective_features(z).F
    g = torch.Generator().manual_seed(seed)
    shuffled = z[torch.randperm(len(z), generator=g)][:, torch.randperm(z.shape[1], generator=g)]
    for same in (scale * z, shuffled, torch.cat([z, z]), torch.cat([z, torch.zeros_like(z)], 1)):
        assert pytest.approx(F, rel=1e-12) == effective_features(same).F


@given(codes(), st.sampled_from([1.0, 0.5]))
def test_every_feature_twice_is_twice_as_many(z, share):
    doubled = torch.cat([share * z, share * z], 1)
    expected = 2 * effective_features(z).F
    assert pytest.approx(expected, rel=1e-12) == effective_features(doubled).F


@given(codes())
def test_hill_numbers_are_ordered(z):
    result = effective_features(z)
    chain = [1, result.hill2, result.F, result.live, z.shape[1]]
    assert all(a <= b * (1 + 1e-12) for a, b in pairwise(chain))
    assert pytest.approx(math.exp(result.entropy_nats)) == result.F
    assert float(result.p.sum()) == pytest.approx(1)


@given(codes(), st.integers(1, 4))
def test_a_stream_of_chunks_is_one_shot(z, size):
    budget = FeatureBudget(z.shape[1])
    for chunk in z.split(size):
        budget.update(chunk)
    assert budget.rows == len(z)
    assert pytest.approx(effective_features(z).F, rel=1e-12) == budget.result(3).F
    assert budget.result(3).psi == pytest.approx(budget.result(3).F / 3)


def test_half_precision_is_added_up_in_double():
    z = torch.ones(5000, 2, dtype=torch.bfloat16)
    budget = FeatureBudget(2).update(z)
    assert budget.total.tolist() == [5000, 5000]


# --- a layer of a model ---------------------------------------------------------------------------


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 2))


def test_a_layer_is_measured_as_by_hand():
    model, x = network(), rows(300, 4).float()
    settings = {"epochs": 4, "l1": 0.02}
    result = measure_superposition(model, x.split(64), "1", settings)
    H = torch.relu(model[0](x)).detach()
    sae = train_sae(H, **settings)
    by_hand = effective_features(sae.encode(H).detach(), n=6)
    assert pytest.approx(by_hand.F, rel=1e-5) == result.F  # rows in other batches round otherwise
    assert result.psi == pytest.approx(by_hand.psi, rel=1e-5)
    assert (result.layer, result.n, result.rows) == ("1", 6, 300)
    assert result.report.l1 == pytest.approx(0.02)
    again = measure_superposition(model, x.split(50), model[1], result.sae)
    assert pytest.approx(result.F, rel=1e-5) == again.F
    assert again.report is None
    assert model.training
    assert hooks(model) == 0


def test_a_convolution_s_rows_are_its_positions():
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU())
    x = rows(7, 2, 6, 6).float()
    h = model(x).detach()
    by_hand = [h[b, :, i, j] for b in range(7) for i in range(4) for j in range(4)]
    sae = TiedSAE(5, 10)
    result = measure_superposition(model, [x], "1", sae)
    expected = effective_features(sae.encode(torch.stack(by_hand)).detach()).F
    assert result.rows == 7 * 16
    assert result.n == 5
    assert pytest.approx(expected, rel=1e-6) == result.F


def test_channels_and_functions_choose_the_rows():
    model = nn.Conv1d(2, 5, 1)
    x = rows(3, 2, 8).float()
    assert measure_superposition(model, [x], "", TiedSAE(5, 5), reduce="channels").rows == 24
    assert measure_superposition(model, [x], "", TiedSAE(8, 8)).n == 8
    pooled = measure_superposition(model, [x], "", TiedSAE(5, 5), reduce=lambda h: h.mean(2))
    assert (pooled.rows, pooled.n) == (3, 5)


def test_padding_does_not_count_in_a_language_model():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=16, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
    ids = torch.randint(1, 20, (4, 10), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    loader = [{"input_ids": ids, "attention_mask": mask, "name": "not a tensor"}]
    sae = TiedSAE(8, 32, seed=1)
    layer = "transformer.h.1.mlp"
    result = measure_superposition(model, loader, layer, sae)
    assert result.rows == 37
    kept = torch.cat([ids[[0, 2, 3]].reshape(-1)])
    assert len(kept) == 30
    whole = [{"input_ids": ids[[0, 2, 3]]}, {"input_ids": ids[1:2, :7]}]
    expected = measure_superposition(model, whole, layer, sae)
    assert expected.rows == 37
    assert pytest.approx(expected.F, rel=1e-4) == result.F  # attention kernels differ with a mask


class Published:
    """What SAELens's dictionaries look like: a dtype, and codes from `encode`."""

    dtype = torch.float32

    def __init__(self) -> None:
        self.weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(3))

    def encode(self, x):
        assert x.dtype == self.dtype
        return torch.relu(x @ self.weight)


def test_a_published_dictionary_is_used_as_it_is_and_one_pass_is_enough():
    model = network().to(torch.bfloat16)
    batches = iter(rows(4, 20, 4).bfloat16())
    result = measure_superposition(model, batches, "1", Published())
    assert result.rows == 80
    assert len(result.features.p) == 24


def test_the_training_sample_is_uniform_and_seeded():
    model = nn.Identity()
    x = torch.arange(1000.0)[:, None]
    picked = []

    def sample(seed):
        result = measure_superposition(
            model, x.split(64), "", {"epochs": 1, "expansion": 8}, max_rows=100, seed=seed
        )
        return result.report.rows, result.F

    assert sample(0) == sample(0)
    from szilard.representations.effective_features import _Sample

    for seed in range(50):
        reservoir = _Sample(100, seed)
        for chunk in x.split(64):
            reservoir.add(None, chunk)
        assert len(reservoir.rows) == 100
        assert torch.equal(reservoir.rows, reservoir.rows.sort(0).values)
        picked.append(reservoir.rows.mean())
    # 5,000 draws of a uniform on 0..999: three standard errors of their mean.
    assert float(torch.stack(picked).mean()) == pytest.approx(499.5, abs=3 * 289 / 5000**0.5)


def test_one_line_logs_the_features_of_a_layer_while_it_trains():
    model, x = network(), rows(128, 4).float()
    logger = MeasureLogger(
        lambda step: {"F": measure_superposition(model, [x], "1", {"epochs": 2}).F}, every=2
    )
    for _ in range(4):
        with logger.step():
            model(x).mean().backward()
    assert [row["step"] for row in logger.history] == [2, 4]
    assert all(1 <= row["F"] <= 24 for row in logger.history)
    assert model.training


# --- bad input ------------------------------------------------------------------------------------


def test_a_silent_dictionary_has_a_name():
    with pytest.raises(DeadDictionary, match="all 3 features are silent on all 2 rows"):
        effective_features(torch.zeros(2, 3))
    assert issubclass(DeadDictionary, ValueError)


def test_negative_codes_count_with_their_magnitude_and_warn():
    z = torch.tensor([[-1.0, 2.0]])
    with pytest.warns(UserWarning, match="negative codes"):
        result = effective_features(z)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert result.F == effective_features(z.abs()).F


@pytest.mark.usefixtures("unhooked")
def test_bad_codes_are_refused():
    with pytest.raises(ValueError, match="Z must be finite"):
        effective_features(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(ValueError, match=r"Z must be \[samples, d\] or \[d\]"):
        effective_features(torch.ones(2, 2, 2))
    with pytest.raises(ValueError, match="n must be at least 1"):
        effective_features(torch.ones(2, 2), n=0)
    with pytest.raises(ValueError, match="eps must be at least 0"):
        effective_features(torch.ones(2, 2), -1.0)
    with pytest.raises(ValueError, match="rows of 3 codes"):
        FeatureBudget(3).update(torch.ones(2, 4))
    with pytest.raises(ValueError, match="d must be at least 1"):
        FeatureBudget(0)


@pytest.mark.usefixtures("unhooked")
def test_bad_models_loaders_and_dictionaries_are_refused():
    model, x = network(), rows(40, 4).float()
    for change, error, message in (
        ({"layer": "9"}, ValueError, "no layer '9'"),
        ({"layer": nn.ReLU()}, ValueError, "layer must be a module of the model"),
        ({"max_rows": 0}, ValueError, "max_rows must be at least 1"),
        ({"reduce": "rows"}, ValueError, "reduce must be"),
        ({"sae": 3}, TypeError, "sae must have a method encode"),
        ({"sae": {"expansion": 0.5}}, ValueError, "expansion must be at least 1"),
        ({"loader": iter([x])}, TypeError, "loader is gone through twice"),
        ({"loader": []}, ValueError, "loader must yield batches"),
        ({"loader": [x * math.nan]}, ValueError, "output of layer '1' must be finite"),
    ):
        arguments = {"loader": [x], "layer": "1"} | change
        with pytest.raises(error, match=message):
            measure_superposition(model, **arguments)
        assert hooks(model) == 0
        assert model.training
