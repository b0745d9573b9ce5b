import pytest
import torch

from szilard.zoo.superposition import ToySuperposition


def test_features_have_the_density_and_are_uniform_where_active():
    densities = torch.tensor([1.0, 0.3, 0.01])
    f = ToySuperposition(densities).draw(20_000, torch.Generator().manual_seed(0))
    active = f > 0
    # 400,000 draws: three standard errors are below 0.003.
    torch.testing.assert_close(active.float().mean((1, 2)), densities, rtol=0, atol=0.003)
    assert f[1][active[1]].mean().item() == pytest.approx(0.5, abs=0.005)
    assert 0 <= f.min() <= f.max() <= 1


def test_outputs_are_those_of_the_formula():
    toy = ToySuperposition(torch.tensor([0.5, 0.1]), features=3, neurons=2)
    f = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(0))
    for i in range(2):
        W, b = toy.weight[i], toy.bias[i]
        torch.testing.assert_close(toy(f)[i], torch.relu(f[i] @ W.T @ W + b))


def test_sparse_features_share_neurons_and_dense_ones_do_not():
    toy = ToySuperposition(torch.tensor([0.999, 0.01]), features=6, neurons=2).fit(steps=1500)
    dense, sparse = toy.weight.detach().square().sum((1, 2)) / 2
    assert dense == pytest.approx(1, abs=0.2)
    assert sparse > 1.5


def test_training_is_seeded_and_touches_no_global_state():
    state = torch.get_rng_state()
    first, again = (ToySuperposition(torch.tensor([0.1])).fit(steps=3) for _ in range(2))
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_densities_and_sizes_are_refused():
    for densities in ([0.0], [1.5]):
        with pytest.raises(ValueError, match=r"densities must lie in \(0, 1\]"):
            ToySuperposition(torch.tensor(densities))
    with pytest.raises(ValueError, match="neurons must be at least 1"):
        ToySuperposition(torch.tensor([0.5]), neurons=0)
