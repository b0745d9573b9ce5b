import json

import numpy as np
import pandas as pd
import pytest

from szilard.experiments.inv_entropy import (
    CAPITALS,
    METHOD,
    SEMANTIC,
    TEMPLATES,
    Capitals,
    HuggingFace,
    experiment,
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
    assert len(claims) == 11
    assert sum(claim.measured is None for claim in claims) == 1
    figures = experiment.figures(SMOKE, smoke)
    assert len(figures) == 4
    assert all(len(figure.plot.data) > 0 for figure in figures)


def test_a_unit_is_a_pure_function_of_config_arm_and_seed(smoke):
    again = pd.DataFrame(experiment.run(SMOKE, SEMANTIC, 1, silent))
    before = smoke[(smoke.arm == SEMANTIC) & (smoke.seed == 1)]
    np.testing.assert_array_equal(again.value, before.value)


def test_the_model_knows_what_it_saw_often():
    config = SMOKE.model_copy(update={"steps": 300, "hidden": 32})
    world = Capitals(config, 0)
    p = world.law(world.questions, 1.0)
    right = p[np.arange(len(p)), world.truth]
    assert right[world.exposure == 40].mean() > 0.8
    assert right[world.exposure == 0].mean() < 0.3
    assert len(set(CAPITALS)) == 50
    asked = world.perturb(world.questions[3], 9, np.random.default_rng(0))
    assert len({world.questions[3], *asked}) == len(TEMPLATES)


def test_a_file_of_ones_own_questions_is_checked_before_a_model_is_loaded(tmp_path):
    path = tmp_path / "questions.jsonl"
    config = SMOKE.model_copy(update={"model": "none", "questions": str(path)})
    with pytest.raises(ValueError, match="questions must be a file"):
        HuggingFace(config, 0)
    path.write_text(json.dumps({"question": "a?", "answer": "b"}) + "\n" + '{"question": "c?"}\n')
    with pytest.raises(ValueError, match="line 2 must have a text 'answer'"):
        HuggingFace(config, 0)


def test_scores_are_of_the_method(smoke):
    rows = smoke[(smoke.scorer == METHOD) & (smoke.metric == "auroc")]
    assert len(rows) == SMOKE.seeds
    assert rows.value.between(0, 1).all()
