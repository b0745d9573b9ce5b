import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from szilard.representations import TiedSAE, UntiedSAE, train_sae


def rows(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def sparse_rows(rows_, n, features, seed=0):
    """Sparse non-negative combinations of random directions."""
    g = torch.Generator().manual_seed(seed)
    active = torch.rand(rows_, features, generator=g) * (
        torch.rand(rows_, features, generator=g) < 0.1
    )
    return active @ torch.nn.functional.normalize(torch.randn(features, n, generator=g), dim=1)


# --- oracles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "value"), [("mean", 9.2), ("sum", 18.6)])
def test_losses_of_a_case_by_hand(loss, value):
    sae = TiedSAE(2, 3)
    with torch.no_grad():
        sae.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
    x = torch.tensor([[1.0, 2.0]])
    assert sae.encode(x).tolist() == [[1, 2, 3]]
    assert sae(x).tolist() == [[4, 5]]
    assert sae.losses(x, 0.1, loss).item() == pytest.approx(value, rel=1e-6)  # float32


@given(st.integers(1, 6), st.integers(1, 9), st.floats(0, 2))
def test_the_two_conventions_differ_by_n_and_by_n_over_d_in_l1(n, d, l1):
    sae, x = TiedSAE(n, d, seed=n), rows(5, n, seed=d)
    summed, mean = sae.losses(x, l1 * n / d, "sum"), sae.losses(x, l1, "mean")
    torch.testing.assert_close(summed, n * mean, rtol=1e-5, atol=1e-6)


def test_starting_weights_are_uniform_within_xavier_s_bound_and_biases_zero():
    sae = TiedSAE(30, 120)
    bound = (6 / 150) ** 0.5
    assert sae.weight.abs().max() <= bound
    assert sae.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)  # 3,600 draws
    assert not sae.bias.any()


def test_training_recovers_sparse_directions():
    X = sparse_rows(2000, 6, 10)
    sae = train_sae(X, expansion=3, l1=0.01, epochs=60)
    report = sae.report_
    assert report.fvu < 0.05
    assert 0 < report.l0 < sae.d
    assert report.rows == 2000
    assert report.loss == "mean"


def test_the_report_is_what_the_returned_weights_give():
    X = sparse_rows(500, 5, 8)
    sae = train_sae(X, epochs=5)
    z = sae.encode(X)
    missed = (X - sae(X)).square().sum() / (X - X.mean(0)).square().sum()
    assert sae.report_.fvu.item() == pytest.approx(missed.item(), rel=1e-5)
    assert sae.report_.l0.item() == pytest.approx((z > 0).float().sum(1).mean().item())
    assert sae.report_.dead.item() == pytest.approx((~(z > 0).any(0)).float().mean().item())


@pytest.mark.parametrize("tied", [True, False])
def test_models_trained_together_are_those_trained_alone(tied):
    X = torch.stack([sparse_rows(200, 4, 6, seed) for seed in range(3)])
    l1 = torch.tensor([0.0, 0.1, 1.0])
    settings = {"epochs": 12, "tied": tied, "normalize": "rms"}
    together = train_sae(X, l1=l1, **settings)
    for i in range(3):
        alone = train_sae(X[i], l1=float(l1[i]), **settings)
        # Batched products add up in another order.
        torch.testing.assert_close(together.weight[i], alone.weight, rtol=1e-3, atol=1e-4)
        assert together.report_.best_epoch[i] == alone.report_.best_epoch
        torch.testing.assert_close(together.encode(X)[i], alone.encode(X[i]), rtol=1e-3, atol=1e-3)


def test_the_best_epoch_s_weights_come_back_not_the_last():
    X = sparse_rows(128, 4, 6)
    # One step an epoch, far too long: the loss jumps about.
    settings = {"learning_rate": 0.8, "patience": 100}
    long = train_sae(X, epochs=30, **settings)
    best = int(long.report_.best_epoch)
    assert best < 30
    short = train_sae(X, epochs=best, **settings)
    assert torch.equal(long.weight, short.weight)


def test_it_ends_after_patience_epochs_without_a_better_one():
    X = sparse_rows(128, 4, 6)
    sae = train_sae(X, epochs=10_000, patience=1, learning_rate=0.8)
    assert sae.report_.best_epoch < 100


def test_one_seed_gives_one_result_and_touches_no_global_state():
    X = rows(100, 3)
    state = torch.get_rng_state()
    first, again, other = (train_sae(X, epochs=3, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


def test_unit_rms_makes_the_scale_of_the_activations_irrelevant():
    X = sparse_rows(300, 4, 6)
    plain, large = (train_sae(c * X, epochs=5, normalize="rms") for c in (1.0, 64.0))
    assert torch.equal(plain.encode(X), large.encode(64 * X))
    torch.testing.assert_close(large(64 * X), 64 * plain(X))


def test_standardised_coordinates_may_have_any_scale_and_origin():
    X = sparse_rows(300, 4, 6)
    scale, shift = torch.tensor([1.0, 8.0, 0.5, 2.0]), torch.tensor([0.0, 4.0, -2.0, 1.0])
    plain = train_sae(X, epochs=5, normalize="standard")
    moved = train_sae(X * scale + shift, epochs=5, normalize="standard")
    # Sums round differently after the shift.
    torch.testing.assert_close(moved.encode(X * scale + shift), plain.encode(X), rtol=0, atol=1e-3)


def test_arrays_strides_and_silent_activations():
    X = rows(40, 8)
    sae = train_sae(X.numpy()[:, ::2], epochs=2)
    assert sae.n == 4
    assert torch.equal(sae.weight, train_sae(X[:, ::2], epochs=2).weight)
    zero = train_sae(torch.zeros(40, 4), epochs=2, normalize="rms")
    assert not zero.encode(torch.zeros(1, 4)).any()


def test_a_state_dict_carries_the_normalisation():
    X = 5 + rows(60, 3)
    for kind in (TiedSAE, UntiedSAE):
        sae = kind(3, 6).fit(X, epochs=2, normalize="standard")
        copy = kind(3, 6, seed=9)
        copy.load_state_dict(sae.state_dict())
        assert torch.equal(copy(X), sae(X))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expansion": 0.5}, "expansion must be at least 1, but is 0.5"),
        ({"l1": -0.1}, "l1 must be non-negative"),
        ({"loss": "median"}, "loss must be one of"),
        ({"normalize": "max"}, "normalize must be one of"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
    ],
)
@pytest.mark.usefixtures("unhooked")
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        train_sae(rows(40, 4), **change)


@pytest.mark.usefixtures("unhooked")
def test_activations_that_cannot_be_learned_are_refused():
    with pytest.raises(ValueError, match="X must be finite"):
        train_sae(torch.full((40, 4), torch.nan))
    with pytest.raises(ValueError, match="rows and coordinates"):
        train_sae(rows(4))
    with pytest.raises(ValueError, match="X must have shape"):
        TiedSAE(3, 6).fit(rows(40, 4))
    with pytest.raises(ValueError, match="d must be at least 1"):
        TiedSAE(3, 0)
    with pytest.raises(ValueError, match="the loss is not finite in epoch 1"):
        train_sae(1e25 * rows(40, 4), epochs=2)


def test_fewer_rows_than_units_warn():
    with pytest.warns(UserWarning, match="10 rows for a dictionary of 16 units"):
        train_sae(rows(10, 4), epochs=1)


def test_float64_stays_float64_when_asked():
    X = np.random.default_rng(0).random((50, 3))
    sae = TiedSAE(3, 6).double().fit(torch.from_numpy(X), epochs=2)
    assert sae.encode(torch.from_numpy(X)).dtype == torch.float64
