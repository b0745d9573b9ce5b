import numpy as np
import pandas as pd
import pytest
import torch

from szilard.experiments.entropy_production import (
    CROWD,
    METHOD,
    RING,
    TRAP,
    experiment,
    ring,
    ring_truth,
)
from szilard.lab.experiment import Verdict
from szilard.physics import entropy_production

SMOKE = experiment.presets["smoke"]


def rows_of(config, arm, seed):
    rows = experiment.run(config, arm, seed, lambda *_: None)
    return [{**row, "arm": arm, "seed": seed} for row in rows]


@pytest.fixture(scope="module")
def smoke() -> pd.DataFrame:
    arms = experiment.arms(SMOKE)
    return pd.DataFrame(
        [row for seed in range(2) for arm in arms for row in rows_of(SMOKE, arm, seed)]
    )


def test_smoke_ends_with_every_claim_and_figure(smoke):
    claims = experiment.claims(SMOKE, smoke)
    assert len(claims) == 10
    assert claims[-1].verdict == Verdict.NOT_MEASURABLE
    figures = experiment.figures(SMOKE, smoke)
    assert len(figures) == 5
    assert all(len(figure.plot.data) > 0 for figure in figures)
    assert {TRAP, RING, CROWD} <= set(smoke[smoke.arm == METHOD].problem)


def test_a_unit_is_a_pure_function_of_config_arm_and_seed(smoke):
    state = torch.get_rng_state()
    again = pd.DataFrame(rows_of(SMOKE, METHOD, 1))
    assert torch.equal(torch.get_rng_state(), state)
    before = smoke[(smoke.arm == METHOD) & (smoke.seed == 1)]
    np.testing.assert_array_equal(again.value, before.value)


def test_the_grid_converges_to_the_rings_entropy_production():
    found = [ring_truth(cells) for cells in ((128, 64), (256, 128))]
    total = [truth["x part"] + truth["g part"] for truth in found]
    # 0.3967 and 0.3968 on finer grids; second order in the cells.
    assert abs(total[1] - 0.3968) < abs(total[0] - 0.3968) < 0.002
    size = 2 * 8.0 / 256 * 10 / 128
    assert found[1]["rho"].min() > -1e-12
    assert abs(found[1]["rho"].sum() * size - 1) < 1e-9


def test_the_grids_density_agrees_with_the_total_that_needs_no_score():
    truth = ring_truth((256, 128))
    x, g = np.meshgrid(truth["x"], truth["g"], indexing="ij")
    z = torch.from_numpy(np.stack([x.ravel(), g.ravel()], -1))[:, None]
    b, slope, _, _ = ring().terms(z)
    D = ring().D
    each = (b**2 / D + slope).sum((1, 2)).numpy()
    weight = truth["rho"].ravel() / truth["rho"].sum()
    assert abs((each * weight).sum() - truth["x part"] - truth["g part"]) < 0.002


def test_the_grids_own_score_has_the_grids_entropy_production():
    truth = ring_truth((256, 128))
    rho = np.maximum(truth["rho"], 1e-9 * truth["rho"].max())
    s = np.stack(np.gradient(np.log(rho), truth["x"], truth["g"]), -1)
    x, g = np.meshgrid(truth["x"], truth["g"], indexing="ij")
    z = np.stack([x.ravel(), g.ravel()], -1)[:, None]
    rng = np.random.default_rng(0)
    weight = truth["rho"].clip(0).ravel()
    drawn = rng.choice(len(weight), 50_000, p=weight / weight.sum())
    score = torch.from_numpy(s.reshape(-1, 1, 2)[drawn])
    place = iter(score.split(64))

    def of_grid(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return next(place), torch.zeros_like(part)

    found = entropy_production(ring(), of_grid, z[drawn])
    # Differences of the logarithm across the steep centre cost some per cent.
    assert found.total == pytest.approx(truth["x part"] + truth["g part"], rel=0.05)
