import numpy as np
import pandas as pd
import pytest

from szilard.experiments.maxent_mechanics import (
    EQUILIBRIUM,
    GENERIC,
    METHOD,
    Channel,
    experiment,
    moved,
)

SMOKE = experiment.presets["smoke"]


def silent(*_) -> None:
    pass


@pytest.fixture(scope="module")
def smoke() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {**row, "arm": arm, "seed": seed}
            for seed in range(SMOKE.seeds)
            for arm in experiment.arms(SMOKE)
            for row in experiment.run(SMOKE, arm, seed, silent)
        ]
    )


def test_smoke_ends_with_every_claim_and_figure(smoke):
    claims = experiment.claims(SMOKE, smoke)
    assert len(claims) == 12
    assert all(claim.measured is not None for claim in claims)
    figures = experiment.figures(SMOKE, smoke)
    assert len(figures) == 4
    assert all(len(figure.plot.data) > 0 for figure in figures)


def test_a_unit_is_a_pure_function_of_config_arm_and_seed(smoke):
    again = pd.DataFrame(experiment.run(SMOKE, METHOD, 1, silent))
    before = smoke[(smoke.arm == METHOD) & (smoke.seed == 1)]
    np.testing.assert_array_equal(again.value, before.value)


def test_stages_of_the_channel_gain_what_they_should(smoke):
    rows = smoke[(smoke.arm == METHOD) & (smoke.seed == 0)]
    kl = rows[rows.metric == "kl"].sort_values("step").value
    expected = [1.1616, 0.7203, 0.4894, 0.4819, 0.3119, 0.0654, 0.0274]
    np.testing.assert_allclose(kl, expected, atol=6e-5)  # the figures' own rounding
    gains = rows[rows.metric == "gain"].sort_values("step").value
    np.testing.assert_allclose(gains, [0.4412, 0.2309, 0.0075, 0.1700, 0.2465, 0.0381], atol=6e-5)


def test_a_generic_optimiser_agrees_with_the_dual(smoke):
    rows = smoke[(smoke.arm == GENERIC) & (smoke.metric == "difference")]
    assert rows.value.max() < 1e-3  # the peer's own accuracy


def test_the_equilibrium_formula_errs_with_the_drive(smoke):
    rows = smoke[(smoke.arm == EQUILIBRIUM) & (smoke.metric == "response error")]
    errors = rows[rows.seed == 0].sort_values("drive").value.to_numpy()
    assert errors[0] > 1  # at a drive of -3
    assert errors[-1] < 1e-9  # at rest it is exact


def test_a_moved_well_keeps_probability_and_detailed_balance():
    kernels, start = moved(40, 20)
    np.testing.assert_allclose(kernels.sum(-1), 1, rtol=1e-12)
    assert (kernels >= 0).all()
    assert start.sum() == pytest.approx(1)
    centre = 10 + 20 * 1 / 20
    weights = np.exp(-0.08 * (np.arange(40) - centre) ** 2)
    flow = weights[:, None] * kernels[0]
    np.testing.assert_allclose(flow, flow.T, atol=1e-12)


def test_a_channel_of_ones_own_is_read_and_checked(tmp_path):
    path = tmp_path / "channel.csv"
    path.write_text("state,count\n0000,10\n0102,30\n1010,60\n")
    config = SMOKE.model_copy(update={"counts": path})
    channel = Channel(config)
    assert channel.truth.max() == pytest.approx(0.6)
    rows = experiment.run(config, METHOD, 0, silent)
    left = [row["value"] for row in rows if row["metric"] == "kl"]
    assert left[-1] < left[0]
    for line, number in (("0103,x", 2), ("01,5", 2), ("0102,-1", 2), ("0102", 2)):
        path.write_text(f"state,count\n{line}\n")
        with pytest.raises(ValueError, match=f"counts: line {number}"):
            Channel(config)
    path.write_text("state,count\n")
    with pytest.raises(ValueError, match="holds no counts"):
        Channel(config)
