import math
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

from szilard.experiments import diffusion_spectral_entropy as module
from szilard.experiments.diffusion_spectral_entropy import (
    CORRUPTION,
    DIMENSION,
    RANKING,
    DSEConfig,
    experiment,
)
from szilard.lab.experiment import Verdict


def silent(fraction: float, message: str) -> None:
    assert 0 <= fraction <= 1


def table(config: DSEConfig, arms=None) -> pd.DataFrame:
    rows = [
        {"arm": arm, "seed": seed, **row}
        for arm in (arms or experiment.arms(config))
        for seed in range(config.seeds)
        for row in experiment.run(config, arm, seed, silent)
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def smoke() -> pd.DataFrame:
    return table(experiment.presets["smoke"])


def tiny(**changes) -> DSEConfig:
    return DSEConfig(**{**experiment.presets["smoke"].model_dump(), "seeds": 1, **changes})


def test_smoke_judges_every_claim_and_draws_every_figure(smoke):
    config = experiment.presets["smoke"]
    claims = experiment.claims(config, smoke)
    assert len({claim.statement for claim in claims}) == len(claims) == 14
    figures = experiment.figures(config, smoke)
    assert len(figures) == 5
    for figure in figures:
        assert figure.plot.to_json()
        axes = [a for a in figure.plot.layout if a.startswith(("xaxis", "yaxis"))]
        assert all(figure.plot.layout[axis].title.text for axis in axes)


def test_a_unit_depends_on_nothing_but_its_configuration_arm_and_seed(smoke):
    config = experiment.presets["smoke"]
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    again = pd.DataFrame(experiment.run(config, "random labels", 1, silent))
    assert torch.equal(torch.random.get_rng_state(), state)
    before = smoke[(smoke.arm == "random labels") & (smoke.seed == 1)]
    assert np.array_equal(again.value, before.value)


def test_corrupted_labels_lose_their_information_and_dimension_raises_entropy(smoke):
    claims = {
        claim.statement: claim for claim in experiment.claims(experiment.presets["smoke"], smoke)
    }
    dimension = claims["DSE increases with the intrinsic dimension of the data"]
    assert dimension.verdict is Verdict.HOLDS
    falls = claims["DSMI falls steadily with label corruption (d = 20)"]
    assert falls.verdict is Verdict.HOLDS


def test_a_table_with_arms_missing_makes_claims_not_measurable_and_draws_the_rest(smoke):
    config = experiment.presets["smoke"]
    part = smoke[smoke.arm == DIMENSION]
    verdicts = [claim.verdict for claim in experiment.claims(config, part)]
    assert verdicts.count(Verdict.HOLDS) == 1
    assert verdicts.count(Verdict.NOT_MEASURABLE) == len(verdicts) - 1
    assert len(experiment.figures(config, part)) == 1
    bare = part[["arm", "seed", "metric", "value", "dimension"]]
    assert len(experiment.claims(config, bare)) == len(verdicts)
    training = smoke[smoke.arm == "true labels"]
    assert len(experiment.claims(config, training)) == len(verdicts)


def test_true_labels_generalise_and_random_ones_do_not(smoke):
    last = smoke[(smoke.metric == "accuracy") & (smoke.step == 3)].groupby("arm").value.mean()
    # Chance is 0.1; on 150 images its standard error is 0.025.
    assert last["true labels"] > 0.35
    assert last["random labels"] < 0.25


def test_the_channel_s_information_is_that_of_a_symmetric_channel():
    assert module._channel_information(0.0, 3) == pytest.approx(math.log2(3))
    assert module._channel_information(1.0, 3) == pytest.approx(0.0)
    assert module._channel_information(1.0, 2) == pytest.approx(0.0)
    # Keep with probability 3/4: 1 - h(1/4).
    assert module._channel_information(0.5, 2) == pytest.approx(0.188721875)


def test_the_information_baselines_find_separated_blobs_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 150)
    blobs = rng.normal(size=(300, 2)) + 20 * labels[:, None]
    noise = rng.normal(size=(300, 2))
    # Kozachenko-Leonenko on 150 points in the plane has a standard error of about 0.1 bits.
    assert module._knn_information(blobs, labels) == pytest.approx(1.0, abs=0.15)
    assert module._knn_information(noise, labels) == pytest.approx(0.0, abs=0.3)
    assert module._gram_information(blobs, labels, 5.0) == pytest.approx(1.0, abs=0.1)
    assert module._gram_information(noise, labels, 5.0) == pytest.approx(0.0, abs=0.1)
    assert module._mine(blobs, labels, 2, 300, 0) > 0.7
    assert module._mine(noise, labels, 2, 300, 0) < 0.1


def test_the_contrastive_loss_is_least_when_each_view_matches_its_partner_alone():
    z = torch.eye(4)
    matched = module._nt_xent(torch.cat([z, z]), 0.1)
    mixed = module._nt_xent(torch.cat([z, z.roll(1, 0)]), 0.1)
    # Partner at similarity 10, six others at 0.
    assert matched.item() == pytest.approx(math.log(1 + 6 * math.exp(-10)), rel=1e-4)
    assert mixed > matched


def test_views_keep_shape_range_and_finiteness():
    with module._seeded(0):
        for channels in (1, 3):
            x = torch.rand(5, channels, 12, 12)
            view = module._augment(x)
            assert view.shape == x.shape
            assert view.isfinite().all()
            assert (view >= 0).all()


class Conv(nn.Module):
    """A network with the parts of a timm model that the experiment uses."""

    num_features = 6

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.default_cfg = {"input_size": (3, 16, 16)}
        self.conv = nn.Conv2d(channels, 6, 3)
        self.classifier = nn.Linear(6, classes) if classes else nn.Identity()

    def forward_features(self, x):
        assert x.shape[-1] == 16
        return self.conv(x)

    def forward_head(self, x, pre_logits=False):
        pooled = x.relu().mean((2, 3))
        return pooled if pre_logits else self.classifier(pooled)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for timm, and a data set with image and label columns in place of the hub's."""
    timm = types.ModuleType("timm")
    timm.create_model = lambda name, num_classes=4, in_chans=3, pretrained=False: Conv(
        in_chans, num_classes
    )
    timm.list_models = lambda pretrained: ["a", "b", "c"]

    def to_tensor(picture):
        return torch.from_numpy(np.array(picture.resize((16, 16)))).permute(2, 0, 1) / 255

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
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"img": pictures, "label": labels.tolist()}, features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: data)


def test_the_paper_s_path_starts_from_configuration_alone(hub):
    paper = experiment.presets["paper"]
    config = paper.model_copy(
        update={
            "seeds": 1,
            "datasets": paper.datasets[1:2],
            "backbones": paper.backbones[:1],
            "train_size": 60,
            "test_size": 60,
            "epochs": 1,
            "measured_epochs": (0, 1),
            "ranked_epochs": (0, 1),
            "batch_size": 20,
            "input_clusters": 4,
            "ranking_images": 100,
        }
    )
    arms = [a for a in experiment.arms(config) if a not in (CORRUPTION, DIMENSION)]
    assert len(arms) == 3 * 1 * 1 + 1
    rows = table(config, arms)
    assert set(rows.regime.dropna()) == {"true labels", "random labels", "contrastive"}
    assert set(rows[rows.arm == RANKING].model) == {"a", "b", "c"}
    assert np.isfinite(rows.value).all()
    # The entropies, the baselines, the spectrum, and the ranking.
    assert len(experiment.figures(config, rows)) == 4
    claims = {claim.quantity: claim for claim in experiment.claims(config, rows)}
    ranking = claims["Pearson correlation of DSMI and top-1 accuracy over models"]
    assert ranking.measured is not None


def test_the_mlp_learns_contrastively_on_the_same_configuration():
    config = tiny(regimes=("contrastive",), epochs=1, measured_epochs=(0, 1), ranked_epochs=(0, 1))
    rows = table(config, ["contrastive"])
    assert np.isfinite(rows.value).all()


def test_the_standard_deviation_of_the_initial_weights_is_the_configured_one():
    config = tiny(init_std=0.1, hidden=(256, 64))
    with module._seeded(0):
        model = module.Backbone(config, "mlp", torch.zeros(1, 8, 8), 10)
    assert model.features[1].weight.std().item() == pytest.approx(0.1, rel=0.05)


def test_a_missing_timm_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    config = tiny(backbones=("resnet50",))
    with pytest.raises(ImportError, match="pip install timm torchvision"):
        experiment.run(config, "true labels", 0, silent)


def test_a_data_set_without_images_is_refused(monkeypatch):
    data = datasets.Dataset.from_dict({"text": ["a"], "label": [0]})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: data)
    with pytest.raises(ValueError, match=r"column \('image', 'img'\)"):
        module.load_images("some/text", "train", 1, 0)


def test_inconsistent_configurations_and_unknown_arms_are_refused():
    with pytest.raises(ValidationError, match="measured_epochs must hold 0, 1 and epochs=5"):
        tiny(epochs=5)
    with pytest.raises(ValidationError, match="ranked_epochs must be among"):
        tiny(ranked_epochs=(0, 9))
    with pytest.raises(ValueError, match="arm: got 'no such'"):
        experiment.run(tiny(), "no such", 0, silent)
