import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from torch import nn
from torch.nn import functional as F

from szilard.representations import (
    ChannelSums,
    NeuralCode,
    NeuralCodeEncoder,
    PackedCodes,
    expressivity,
    phase_chart,
    random_redundancy,
)


def random_bits(n: int, width: int, seed: int = 0, p: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).random((n, width)) < p


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def network(inputs: int = 4, hidden: int = 12) -> nn.Sequential:
    return seeded(
        lambda: nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(hidden, 5),
            nn.LeakyReLU(),
            nn.Linear(5, 2),
        )
    )


def inputs(n: int = 30, d: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


class Functional(nn.Module):
    """ReLUs as functions and a module that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 6), nn.Linear(6, 6), nn.ReLU()

    def forward(self, x):
        x = F.relu(self.a(x))
        x = self.act(self.b(x))
        x = self.act(self.b(x))
        return torch.relu(-x) + self.b(x).relu_()


def line() -> nn.Sequential:
    """The units x + 1, -x and x - 2 of a number x."""
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0], [1.0]]))
        model[0].bias.copy_(torch.tensor([1.0, 0.0, -2.0]))
    return model


# --- oracles ------------------------------------------------------------------------------------


def test_random_codes_collide_as_often_as_birthdays_do():
    for n, width, expected in ((6000, 10, 0.8298), (6000, 20, 0.002855), (60_000, 20, 0.02807)):
        assert random_redundancy(n, width) == pytest.approx(expected, rel=2e-4)
    n, width = 6000, 12
    drawn = [PackedCodes.from_bits(random_bits(n, width, s)).redundancy() for s in range(10)]
    # The standard deviation of one draw is about 0.004.
    assert np.mean(drawn) == pytest.approx(random_redundancy(n, width), abs=0.005)


@given(st.integers(1, 10**6), st.integers(1, 4000))
def test_expected_redundancy_is_a_share_that_falls_with_width(n, width):
    r = random_redundancy(n, width)
    assert 0 <= r < 1
    assert random_redundancy(n, width + 1) <= r + 1e-15  # rounding where both are 0
    # At the seam of the two formulas they agree.
    share = 2.0**-width
    if 1e-7 < n * share < 1e-5:
        assert r == pytest.approx((n - 1) / 2 * share, rel=1e-4, abs=1e-12)


def test_a_line_through_three_units_gives_its_seven_codes():
    x = torch.tensor([-3.0, -2, -0.5, 0.3, 1, 3, 5])[:, None]
    codes = NeuralCode(line()).encode(x)
    found = ["".join(map(str, row)) for row in codes.unpack().astype(int)]
    assert found == ["010", "010", "110", "100", "100", "101", "101"]
    assert codes.redundancy() == pytest.approx(3 / 7)
    assert codes.counts().tolist() == [2, 1, 2, 2]
    assert codes.collisions() == pytest.approx(6 / 42)


def test_inputs_of_one_code_see_the_same_affine_map_and_so_does_what_lies_between():
    model = network(inputs=2).eval()
    x = inputs(2000, 2)
    codes = NeuralCode(model).encode(x)
    first = codes._first
    pairs = [(i, j) for j, i in enumerate(first) if i != j][:20]
    assert pairs
    for i, j in pairs:
        one = lambda point: model(point[None])[0]
        a, b = (torch.autograd.functional.jacobian(one, x[row]) for row in (i, j))
        torch.testing.assert_close(a, b)
        steps = torch.linspace(0, 1, 7)[:, None]
        between = NeuralCode(model).encode(x[i] + steps * (x[j] - x[i])).layer("2")
        assert len(between.counts()) == 1


@given(st.integers(0, 2**32 - 1))
def test_hashing_measures_ignore_order_sign_copies_and_constants_of_units(seed):
    rng = np.random.default_rng(seed)
    bits = random_bits(50, 6, seed)
    plain = PackedCodes.from_bits(bits)
    column = np.zeros((50, 1), dtype=bool)
    for other in (bits[:, rng.permutation(6)], ~bits, np.hstack([bits, bits, column, ~column])):
        changed = PackedCodes.from_bits(other)
        assert changed.redundancy() == plain.redundancy()
        assert changed.entropy() == pytest.approx(plain.entropy(), abs=1e-12)
        assert changed.collisions() == plain.collisions()


def test_rescaling_hidden_units_changes_no_code():
    model, x = network().eval(), inputs()
    before = NeuralCode(model).encode(x)
    with torch.no_grad():
        # A power of two: the products round alike.
        model[1].weight.mul_(4)
        model[1].bias.mul_(4)
        model[4].weight.div_(4)
    np.testing.assert_array_equal(NeuralCode(model).encode(x).packed, before.packed)


@given(st.integers(1, 80), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_entropy_lies_between_one_code_for_all_and_one_each(n, width, seed):
    codes = PackedCodes.from_bits(random_bits(n, width, seed))
    counts = codes.counts()
    h = codes.entropy()
    assert counts.sum() == n
    assert codes.redundancy() == pytest.approx(1 - len(counts) / n)
    # The same sum by another route; sums of up to 80 terms round to 1e-13.
    assert h == pytest.approx(math.log(n) - (counts * np.log(counts)).sum() / n, abs=1e-12)
    assert codes.deficit() == pytest.approx(math.log(n) - h, abs=1e-12)
    assert h <= math.log(len(counts)) + 1e-12
    equal = len(set(counts.tolist())) == 1
    assert (abs(h - math.log(len(counts))) < 1e-12) == equal
    assert (codes.redundancy() == 0) == (abs(h - math.log(n)) < 1e-12)
    assert codes.entropy(base=2) == pytest.approx(h / math.log(2))
    # Rényi entropies fall with their order, and of order 2 is that of two draws with replacement.
    p = counts / n
    assert codes.entropy(order=2) == pytest.approx(-math.log((p**2).sum()), abs=1e-12)
    assert codes.entropy(order=2) <= h + 1e-12


@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_distances_of_packed_codes_are_those_of_their_bits(width, seed):
    a, b = random_bits(12, width, seed), random_bits(9, width, seed + 1, 0.2)
    packed_a, packed_b = PackedCodes.from_bits(a), PackedCodes.from_bits(b)
    naive = (a[:, None] != b[None]).sum(-1)
    np.testing.assert_array_equal(packed_a.hamming(packed_b), naive)
    assert packed_a.hamming().trace() == 0
    # On bits, the squared Euclidean distance is the Hamming distance.
    distance, index = packed_b.nearest(packed_a, 3)
    squared = ((a[:, None].astype(float) - b[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(distance, np.sort(squared, axis=1)[:, :3])
    np.testing.assert_array_equal(np.take_along_axis(squared, index, 1), distance)


# --- packed codes -------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_packing_is_lossless(n, width, seed):
    bits = random_bits(n, width, seed)
    codes = PackedCodes.from_bits(bits)
    np.testing.assert_array_equal(codes.unpack(), bits)
    keep = random_bits(1, width, seed + 1)[0]
    keep[0] = True
    np.testing.assert_array_equal(codes.units(keep).unpack(), bits[:, keep])
    np.testing.assert_array_equal(codes[::2].unpack(), bits[::2])
    np.testing.assert_array_equal(codes.varying(), bits.any(0) & ~bits.all(0))


def test_layers_are_slices_of_the_code():
    codes = NeuralCode(network()).encode(inputs())
    assert codes.layers == {"2": slice(0, 12), "5": slice(12, 17)}
    whole = codes.unpack()
    np.testing.assert_array_equal(codes.layer(1).unpack(), whole[:, 12:])
    np.testing.assert_array_equal(codes.layer("2").unpack(), whole[:, :12])
    assert codes.layer(1).layers == {"5": slice(0, 5)}
    with pytest.raises(KeyError):
        codes.layer("7")
    with pytest.raises(IndexError):
        codes.layer(2)


def test_unfit_codes_are_refused(unhooked):
    codes = PackedCodes.from_bits(random_bits(4, 9))
    with pytest.raises(ValueError, match="boolean matrix"):
        PackedCodes.from_bits(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="boolean matrix"):
        PackedCodes.from_bits(np.zeros((0, 3), dtype=bool))
    with pytest.raises(ValueError, match="must have 9 units"):
        codes.hamming(PackedCodes.from_bits(random_bits(4, 8)))
    with pytest.raises(ValueError, match="k must be from 1 to the 4"):
        codes.nearest(codes, 5)
    with pytest.raises(ValueError, match="keep must hold 9"):
        codes.units(np.zeros(9, dtype=bool))
    with pytest.raises(ValueError, match="two inputs"):
        codes[:1].collisions()


# --- recording ----------------------------------------------------------------------------------


def test_the_code_says_which_units_are_on_in_evaluation_mode_and_modes_come_back():
    model, x = network().train(), inputs()
    model[3].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    codes = NeuralCode(model, batch_size=7).encode(x)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model.eval()
    hidden = model[1](model[0](x)) > 0
    second = model[4](model[:3](x.clone())) > 0
    np.testing.assert_array_equal(codes.unpack(), torch.cat([hidden, second], 1).numpy())


def test_functions_and_repeated_modules_are_recorded_call_by_call():
    model, x = Functional(), inputs()
    codes = NeuralCode(model).encode(x)
    assert list(codes.layers) == ["", "act", "act#2", "#2", "#3"]
    a = model.a(x).relu()
    b = model.b(a).relu()
    c = model.b(b).relu()
    expected = torch.cat([a, b, c, (-c).relu(), model.b(c).relu()], 1) > 0
    np.testing.assert_array_equal(codes.unpack(), expected.numpy())


def test_modules_by_name_and_by_type_are_recorded_in_the_order_of_execution():
    model, x = Functional(), inputs()
    codes = NeuralCode(model, ["act", "a"]).encode(x)
    assert list(codes.layers) == ["a", "act", "act#2"]
    np.testing.assert_array_equal(codes.layer("a").unpack(), (model.a(x) > 0).numpy())
    gelu = nn.Sequential(nn.Linear(4, 6), nn.GELU())
    by_type = NeuralCode(gelu, nn.GELU).encode(x)
    # GELU keeps the sign of its input.
    np.testing.assert_array_equal(by_type.unpack(), (gelu[0](x) > 0).numpy())
    assert NeuralCode(gelu, (nn.GELU, nn.SiLU)).encode(x).width == 6


def test_a_threshold_moves_the_border():
    model, x = network(), inputs()
    codes = NeuralCode(model, ["2"], threshold=0.5).encode(x)
    np.testing.assert_array_equal(codes.unpack(), (model.eval()[:3](x) > 0.5).numpy())


def test_convolutions_give_all_their_units_or_channel_sums():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4), nn.ReLU())
    x = inputs(10, 36).view(10, 1, 6, 6)
    codes = NeuralCode(model).encode(x)
    assert codes.layers == {"1": slice(0, 48), "4": slice(48, 52)}
    sums = NeuralCode(model, batch_size=3).encode(x, aggregate="sum")
    assert isinstance(sums, ChannelSums)
    hidden = model[:2](x).detach()
    last = model(x).detach()
    expected = torch.cat([hidden.sum((2, 3)), last], 1).numpy()
    # Sums of 16 numbers in another order of rounding.
    np.testing.assert_allclose(sums.values, expected, rtol=1e-5, atol=1e-6)
    scaled = sums.scaled()
    assert np.ptp(scaled[:, :3]) == pytest.approx(1, abs=1e-6)
    assert np.ptp(scaled[:, 3:]) == pytest.approx(1, abs=1e-6)
    other = NeuralCode(model).encode(2 * x, aggregate="sum")
    np.testing.assert_allclose(
        other.scaled(sums)[:, :3] * np.ptp(sums.values[:, :3]), other.values[:, :3], rtol=1e-5
    )
    with pytest.raises(ValueError, match="like must have the layers"):
        sums.scaled(ChannelSums(sums.values, {"x": slice(0, 7)}))


def test_every_way_of_giving_inputs_gives_the_same_codes():
    model, x = network(), inputs()
    expected = NeuralCode(model).encode(x).packed
    dataset = torch.utils.data.TensorDataset(x, torch.zeros(30))
    loader = torch.utils.data.DataLoader(dataset, batch_size=8)
    for given_x in (x.double().numpy(), loader, [x[:11], x[11:]], iter([x.numpy()])):
        np.testing.assert_array_equal(NeuralCode(model).encode(given_x).packed, expected)

    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, *, values):
            return self.inner(values)

    by_name = NeuralCode(Keywords(), batch_size=9).encode({"values": x})
    np.testing.assert_array_equal(by_name.packed, expected)


def test_pre_activations_next_to_nothing_are_counted_also_before_a_relu_in_place():
    model = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))
    x = torch.tensor([[1e-7, 1.0, -1e-8, -1.0], [0.0, 2.0, 3.0, -4.0]])
    codes = NeuralCode(model).encode(x)
    assert codes.near_zero == 3 / 8
    assert codes.unpack().astype(int).tolist() == [[1, 1, 0, 0], [0, 1, 1, 0]]
    assert math.isnan(NeuralCode(model, ["1"]).encode(x).near_zero)


def test_a_transformer_s_feed_forward_units_are_seen():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    codes = NeuralCode(layer).encode(inputs(6, 24).view(6, 3, 8))
    assert codes.width == 3 * 16


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_scikit_learn_s_perceptron_is_read_from_its_weights():
    x, y = inputs(60).numpy().astype(float), np.arange(60) % 3

    model = MLPClassifier((7, 5), max_iter=5, random_state=0).fit(x, y)
    tanh = MLPClassifier((7,), activation="tanh", max_iter=5, random_state=0).fit(x, y)
    codes = NeuralCode(model).encode(x)
    assert codes.layers == {"hidden 1": slice(0, 7), "hidden 2": slice(7, 12)}
    hidden = np.maximum(x @ model.coefs_[0] + model.intercepts_[0], 0)
    np.testing.assert_array_equal(codes.layer(0).unpack(), hidden > 0)
    logits = np.maximum(hidden @ model.coefs_[1] + model.intercepts_[1], 0)
    np.testing.assert_array_equal(codes.layer(1).unpack(), logits > 0)
    with pytest.raises(ValueError, match="activation is 'tanh'"):
        NeuralCode(tanh)
    with pytest.raises(NotFittedError):
        NeuralCode(MLPClassifier())
    with pytest.raises(ValueError, match="MLPClassifier"):
        NeuralCode(LogisticRegression())
    with pytest.raises(ValueError, match="layers must be 'relu'"):
        NeuralCode(model, ["hidden 1"])


def test_what_cannot_be_encoded_is_refused_and_leaves_no_hooks(unhooked):
    model, x = network(), inputs()
    with pytest.raises(ValueError, match="no ReLU-like"):
        NeuralCode(nn.Linear(4, 2)).encode(x)
    with pytest.raises(ValueError, match="at least one input"):
        NeuralCode(model).encode(x[:0])
    with pytest.raises(ValueError, match="at least one input"):
        NeuralCode(model).encode(iter([]))
    broken = x.clone()
    broken[3, 0] = torch.nan
    with pytest.raises(ValueError, match="'2' has activations that are not finite"):
        NeuralCode(model).encode(broken)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(ValueError, match="no layer 'no such'"):
        NeuralCode(model, ["no such"])
    with pytest.raises(ValueError, match="no module of"):
        NeuralCode(model, nn.GELU)
    with pytest.raises(ValueError, match="threshold must be finite"):
        NeuralCode(model, threshold=math.inf)
    with pytest.raises(ValueError, match="batch_size"):
        NeuralCode(model, batch_size=0)
    with pytest.raises(ValueError, match="aggregate must be"):
        NeuralCode(model).encode(x, aggregate="mean")
    with pytest.raises(ValueError, match="equally many"):
        NeuralCode(model).encode({"a": x, "b": x[:2]})
    folded = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.Flatten(0, 1), nn.ReLU())
    with pytest.raises(ValueError, match="first axis of '3' must be the 30 inputs"):
        NeuralCode(folded).encode(x)
    conv = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU())
    with pytest.raises(ValueError, match="same layers"):
        NeuralCode(conv).encode([torch.zeros(2, 1, 8), torch.zeros(2, 1, 9)])


# --- scikit-learn -------------------------------------------------------------------------------


def test_the_encoder_follows_the_conventions_of_scikit_learn():
    model, x = network(), inputs().numpy()
    encoder = NeuralCodeEncoder(model, batch_size=11)
    with pytest.raises(NotFittedError):
        encoder.transform(x)
    bits = encoder.fit_transform(x)
    np.testing.assert_array_equal(bits, NeuralCode(model).encode(x).unpack())
    assert bits.dtype == bool
    assert encoder.get_feature_names_out()[[0, 12]].tolist() == ["2[0]", "5[0]"]
    copy = clone(encoder)
    assert copy.batch_size == 11
    np.testing.assert_array_equal(copy.fit(x).transform(x), bits)
    pipeline = make_pipeline(NeuralCodeEncoder(model), LogisticRegression())
    assert pipeline.fit(x, x[:, 0] > 0).score(x, x[:, 0] > 0) > 0.8


# --- phases -------------------------------------------------------------------------------------


def test_phases_follow_their_thresholds():
    assert [expressivity(r) for r in (1.0, 0.501, 0.5, 0.011, 0.01, 0.0)] == [
        "under", "under", "critical", "critical", "sufficient", "sufficient",
    ]  # fmt: skip
    assert expressivity(0.3, under=0.2) == "under"
    assert expressivity(0.3, under=0.5, sufficient=0.4) == "sufficient"
    with pytest.raises(ValueError, match="redundancy must be in"):
        expressivity(1.1)
    with pytest.raises(ValueError, match="must hold"):
        expressivity(0.1, under=0.1, sufficient=0.2)


def test_a_phase_chart_colours_each_cell_and_leaves_gaps_empty(unhooked):
    chart = phase_chart([1, 2], ["a"], np.array([[0.7, np.nan]]))
    (cells,) = chart.data
    assert cells.z[0, 0] == 0
    assert np.isnan(cells.z[0, 1])
    assert cells.text.tolist() == [["0.7", ""]]
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        phase_chart([1, 2], ["a"], np.zeros((2, 2)))
