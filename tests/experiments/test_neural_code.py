import sys
import types

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn

from szilard.experiments import neural_code as module
from szilard.experiments.neural_code import (
    FEATURES,
    METHOD,
    NOISE,
    PIXELS,
    PROJECTIONS,
    SAMPLES,
    SUMS,
    UNTRAINED,
    NeuralCodeConfig,
    experiment,
)
from szilard.lab.experiment import Verdict

SMOKE = experiment.presets["smoke"]


def rows_of(config, arm, seed):
    rows = experiment.run(config, arm, seed, lambda fraction, message: None)
    return [{**row, "arm": arm, "seed": seed} for row in rows]


def table(config, arms=None) -> pd.DataFrame:
    return pd.DataFrame(
        [
            row
            for arm in arms or experiment.arms(config)
            for seed in range(config.seeds)
            for row in rows_of(config, arm, seed)
        ]
    )


@pytest.fixture(scope="module")
def smoke() -> pd.DataFrame:
    return table(SMOKE)


def tiny(**changes) -> NeuralCodeConfig:
    return NeuralCodeConfig(**{**SMOKE.model_dump(), "seeds": 1, **changes})


def test_smoke_judges_every_claim_and_draws_every_figure(smoke):
    claims = experiment.claims(SMOKE, smoke)
    assert len({claim.statement for claim in claims}) == len(claims) == 10
    assert claims[-1].verdict is Verdict.NOT_MEASURABLE
    assert all(claim.measured is not None for claim in claims[:-1])
    figures = experiment.figures(SMOKE, smoke)
    assert len(figures) == 6
    assert all(figure.plot.to_json() and len(figure.plot.data) for figure in figures)


def test_every_code_is_read_by_every_classifier_at_every_width(smoke):
    for metric in module.READERS:
        rows = smoke[smoke.metric == metric]
        for code in (METHOD, UNTRAINED, PROJECTIONS, FEATURES):
            assert sorted(rows[rows.code == code].width.unique()) == [6, 12, 24]
        assert set(rows[rows.code == PIXELS].width) == {64}
    assert smoke.value.between(0, 10).all()


def test_a_unit_depends_on_nothing_but_its_configuration_arm_and_seed(smoke):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = pd.DataFrame(rows_of(SMOKE, METHOD, 1))
    assert torch.equal(torch.get_rng_state(), state)
    before = smoke[(smoke.arm == METHOD) & (smoke.seed == 1)]
    np.testing.assert_array_equal(again.value, before.value)


def test_before_the_first_epoch_a_trained_network_is_the_untrained_one(smoke):
    trained = smoke[(smoke.arm == METHOD) & (smoke.epoch == 0) & (smoke.metric == "entropy")]
    untrained = smoke[(smoke.arm == UNTRAINED) & (smoke.metric == "entropy")]
    keys = ["seed", "width", "part"]
    pd.testing.assert_series_equal(
        trained.set_index(keys).value.sort_index(), untrained.set_index(keys).value.sort_index()
    )


def test_wider_networks_share_fewer_codes(smoke):
    rows = smoke[
        (smoke.metric == "redundancy") & (smoke.part == "train") & (smoke.code == UNTRAINED)
    ]
    means = rows.groupby("width").value.mean()
    assert means.is_monotonic_decreasing


def test_units_are_shared_among_layers_and_all_noise_is_noise():
    sizes = [m.out_features for m in module._network(9, 23, 5, 10, 0) if isinstance(m, nn.Linear)]
    assert sizes[:-1] == [4, 5, 4, 5, 5]
    assert sizes[-1] == 10
    noisy = tiny(noises=(1.0,), epochs=1, measured_epochs=(0, 1))
    rows = pd.DataFrame(rows_of(noisy, NOISE, 0))
    # Chance is 0.1; of 150 guesses the standard error is 0.025.
    assert rows[rows.metric == "network"].value.item() < 0.3


def test_few_inputs_are_repeated_to_as_many_steps():
    config = tiny(sample_sizes=(20,))
    seen = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x):
            seen.append(len(x))
            return self.inner(x)

    x, y = torch.zeros(20, 3), torch.zeros(20, dtype=torch.long)
    module._train(config, Counting(), x, y, 0, l2=0.0)
    assert sum(seen) == config.epochs * config.train_size


def test_a_training_that_does_not_improve_ends_early_and_is_still_measured_to_the_end():
    config = tiny(epochs=8, measured_epochs=(0, 1, 8), patience=2)
    measured = []
    x, y = torch.zeros(30, 3), torch.zeros(30, dtype=torch.long)
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([1e4, 0.0]))  # nothing is left to learn
    module._train(config, model, x, y, 0, l2=0.0, after=measured.append)
    assert measured == list(range(9))


def test_arms_without_a_case_are_left_out_with_their_claims_and_figures(smoke):
    config = tiny(seeds=2, sample_sizes=(), noises=(), decays=())
    arms = experiment.arms(config)
    assert arms == [METHOD, UNTRAINED, PROJECTIONS, PIXELS]
    part = smoke[smoke.arm.isin(arms)]
    assert len(experiment.claims(config, part)) == 6
    assert len(experiment.figures(config, part)) == 3
    assert SAMPLES not in arms


def test_the_preset_of_the_paper_runs_at_tiny_size_on_two_data_sets():
    paper = experiment.presets["paper"]
    config = NeuralCodeConfig(
        **{
            **paper.model_dump(),
            "seeds": 2,
            "datasets": ("digits", "digits"),
            "widths": ((5, 10), (50, 100)),
            "train_size": 100,
            "test_size": 50,
            "epochs": 2,
            "measured_epochs": (0, 1, 2),
            "sample_sizes": (10,),
            "noise_width": 50,
            "noises": (),
            "decays": (1e-4,),
            "jump_widths": (),
            "backbones": (),
        }
    )
    rows = pd.DataFrame(rows_of(config, METHOD, 0))
    assert set(rows.width) == {5, 10, 50, 100}
    assert np.isfinite(rows.value).all()


def test_channel_sums_of_pretrained_networks_are_read(monkeypatch):
    def create_model(name, pretrained):
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())

    def to_tensor(picture):
        return torch.from_numpy(np.array(picture.resize((8, 8)))).permute(2, 0, 1) / 255

    timm = types.ModuleType("timm")
    timm.create_model = create_model
    timm.data = types.SimpleNamespace(
        create_transform=lambda **kwargs: to_tensor, resolve_model_data_config=lambda model: {}
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 4
    pictures = [
        Image.fromarray((rng.random((8, 8, 3)) * 60 + 60 * label).clip(0, 255).astype(np.uint8))
        for label in labels
    ]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"image": pictures, "label": labels.tolist()}, features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: data)
    config = tiny(backbones=("resnet50",), backbone_images=100, batch_size=16)
    assert experiment.arms(config)[-1] == SUMS
    rows = pd.DataFrame(rows_of(config, SUMS, 0))
    assert set(rows.metric) == set(module.READERS)
    # Brightness tells the four classes apart.
    assert rows[rows.metric == "knn"].value.item() > 0.6
    claim = module._sums_claim(config, rows)
    assert claim.measured is not None


def test_a_missing_timm_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        rows_of(tiny(backbones=("resnet50",)), SUMS, 0)


def test_inconsistent_configurations_are_refused():
    with pytest.raises(ValidationError, match="one entry a data set"):
        tiny(depths=(1, 5))
    with pytest.raises(ValidationError, match="widths must ascend"):
        tiny(widths=((20, 10),))
    with pytest.raises(ValidationError, match="widths must ascend"):
        tiny(depths=(7,))
    with pytest.raises(ValidationError, match="measured_epochs must hold"):
        tiny(epochs=5)
