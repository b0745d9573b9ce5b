"""The schemes build what they say, and a run from units to claims."""

import numpy as np
import pandas as pd
import pydantic
import pytest
import torch

from szilard.experiments.sigma_reparam import (
    SCHEMES,
    SigmaConfig,
    _data,
    bounds,
    build,
    experiment,
    updates,
)
from szilard.lab.experiment import Verdict
from szilard.layers.sigma import spectral_norms

SMOKE = experiment.presets["smoke"]


@pytest.fixture(scope="module")
def table():
    rows = [
        {**row, "arm": arm, "seed": seed}
        for arm in experiment.arms(SMOKE)
        for seed in range(SMOKE.seeds)
        for row in experiment.run(SMOKE, arm, seed, lambda fraction, message: None)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_runs_and_has_gradients(scheme):
    torch.manual_seed(0)
    model = build(SMOKE, scheme, 10, 1)
    logits = model(pixel_values=torch.randn(2, 1, 8, 8)).logits
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    grads = [p.grad for name, p in model.named_parameters() if p.requires_grad]
    assert sum(g is not None for g in grads) == len(grads)


def test_the_method_reaches_every_linear_map_and_its_bare_form_has_no_norm():
    assert len(spectral_norms(build(SMOKE, "sigma, pre-LN", 10, 1))) == 1 + 6 * SMOKE.layers + 1
    bare = build(SMOKE, "sigma, no norm", 10, 1)
    assert not any(isinstance(m, torch.nn.LayerNorm) for m in bare.modules())


def test_post_norm_normalises_what_leaves_a_layer():
    model = build(SMOKE, "post-LN", 10, 1)
    hidden = model.vit.layers[0](3 * torch.randn(2, 17, SMOKE.width))
    torch.testing.assert_close(hidden.var(-1, correction=0), torch.ones(2, 17), atol=1e-3, rtol=0)


def test_batches_are_the_same_for_every_scheme_and_cover_the_data():
    data = _data(SMOKE)
    first, again = ([labels for _, labels in data.batches(SMOKE, 3, "cpu")] for _ in range(2))
    assert len(first) == SMOKE.steps
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert sum(len(labels) for _, labels in data.test(SMOKE, "cpu")) == 359


def test_the_exact_part_is_exact():
    for row in bounds(200, 0):
        if row["metric"] == "least slack":
            assert row["value"] > -1e-12
        else:
            assert row["value"] < 1e-10
    norms = [row["value"] for row in updates(0)]
    assert np.all(np.diff(norms) > -0.2)


def test_a_run_ends_with_claims_and_figures(table):
    claims = experiment.claims(SMOKE, table)
    assert len(claims) == 12
    assert [claim.verdict for claim in claims[:2]] == [Verdict.HOLDS] * 2
    figures = experiment.figures(SMOKE, table)
    assert all(figure.plot.data for figure in figures)


def test_unknown_schemes_are_refused():
    with pytest.raises(pydantic.ValidationError, match="schemes"):
        SigmaConfig(schemes=("sigma, pre-LN", "hope"))
