import numpy as np
import pandas as pd
import pytest
import torch

from szilard.experiments import effective_features as ours
from szilard.experiments.effective_features import (
    ADVERSARIAL,
    GROKKING,
    LANGUAGE,
    PARITY,
    REFERENCE,
    TOY,
    TOY_MEASURES,
    experiment,
)
from szilard.lab.experiment import Verdict

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
    assert len(claims) == 12
    figures = experiment.figures(SMOKE, smoke)
    assert len(figures) == 6
    assert all(len(figure.plot.data) > 0 for figure in figures)


def test_every_part_reports_what_it_measures(smoke):
    assert set(smoke[smoke.arm == TOY].metric) == {*TOY_MEASURES, REFERENCE}
    dictionary = smoke[smoke.metric == "F by dictionary"]
    assert sorted(dictionary.d.unique()) == [16, 32, 64, 128, 256, 512]
    assert sorted(dictionary.l1.unique()) == [0.01, 0.1, 1.0]
    assert (smoke[smoke.metric.isin(["F", "image F", "F under dropout"])].value >= 1).all()


def test_a_unit_is_a_pure_function_of_config_arm_and_seed(smoke):
    state = torch.get_rng_state()
    for arm in (TOY, GROKKING):
        again = pd.DataFrame(rows_of(SMOKE, arm, 1))
        before = smoke[(smoke.arm == arm) & (smoke.seed == 1)]
        np.testing.assert_array_equal(again.value, before.value)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_parity_task_has_all_inputs_with_their_answers():
    x, y = ours._parity_data()
    assert x.shape == (12_288, 15)
    assert len(torch.unique(x, dim=0)) == len(x)
    for i in (0, 5_000, 9_999, 12_287):
        task = int(x[i, :3].argmax())
        assert y[i] == x[i, 3 + 4 * task : 7 + 4 * task].sum() % 2


def test_dropout_masks_in_training_alone_and_keeps_the_mean():
    networks = ours.ParityNetworks(15, 8, (0.0, 0.5), seed=0)
    x = ours._parity_data()[0][:4]
    g = torch.Generator().manual_seed(0)
    drawn = torch.stack([networks(x, g) for _ in range(200)])
    assert torch.equal(drawn[0, 0], networks(x)[0])
    assert drawn[:, 1].std(0).min() > 0
    assert drawn[:, 0].std(0).max() == 0


def test_a_transition_lies_between_below_half_and_above_95_percent():
    def rows(*accuracies):
        return pd.DataFrame(
            {"metric": "test accuracy", "step": range(len(accuracies)), "value": accuracies}
        )

    assert ours._transition(rows(0.1, 0.4, 0.6, 0.97, 1.0)) == (1, 3)
    assert ours._transition(rows(0.1, 0.4, 0.9)) is None
    assert ours._transition(rows(0.6, 0.97)) is None


def test_grokking_is_judged_on_the_seeds_that_have_a_transition(smoke):
    steps = [625, 1250]
    accuracy = {"arm": GROKKING, "metric": "test accuracy"}
    effective = {"arm": GROKKING, "metric": "F"}
    rows = smoke[smoke.arm != GROKKING].to_dict("records")
    for seed, after in enumerate((10.0, 12.0)):
        for step, right, F in zip(steps, (0.1, 1.0), (20.0, after), strict=True):
            rows.append({**accuracy, "seed": seed, "step": step, "value": right})
            for scale in ("as it is", "unit RMS"):
                rows.append({**effective, "seed": seed, "step": step, "scale": scale, "value": F})
    (claim,) = [c for c in experiment.claims(SMOKE, pd.DataFrame(rows)) if "groks" in c.statement]
    assert claim.verdict == Verdict.HOLDS
    assert claim.measured.value == pytest.approx(0.55)


def test_an_attack_stays_within_its_cube_and_raises_the_loss():
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(20, 6, generator=g), torch.arange(20) % 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Linear(6, 3)
    moved = ours._attack(model, x, y, 0.1, 5)
    assert (moved - x).abs().max() <= 0.1 + 1e-6
    assert 0 <= moved.min() <= moved.max() <= 1
    loss = torch.nn.functional.cross_entropy
    assert loss(model(moved), y) > loss(model(x), y)
    assert ours._attack(model, x, y, 0.0, 5) is x


def test_the_paper_s_residual_network_is_measured_by_stages():
    config = SMOKE.model_copy(
        update={"image_network": "resnet18", "image_widths": (0.05,), "image_rows": 120}
    )
    config = config.model_copy(update={"image_classes": (2,)})
    rows = pd.DataFrame(rows_of(config, ADVERSARIAL, 0))
    found = rows[rows.metric == "image F"]
    assert sorted(found.layer.unique()) == [f"stages.{i}" for i in range(4)]
    assert (found.value >= 1).all()


def test_a_language_model_is_measured_from_configuration_alone(tmp_path):
    transformers = pytest.importorskip("transformers")
    from szilard.zoo.language import character_tokenizer

    tokenizer = character_tokenizer(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 \n.,:;()[]{}'\"`_-+*/=<>"
    )
    gpt2 = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=8,
        n_layer=2,
        n_head=2,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(gpt2).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = SMOKE.model_copy(
        update={
            "parts": (LANGUAGE,),
            "language_model": str(tmp_path),
            "language_layers": ("h.0.mlp", "h.1"),
            "language_tokens": 512,
            "language_epochs": 2,
        }
    )
    table = pd.DataFrame(rows_of(config, LANGUAGE, 0))
    final = table[table.metric == "language F"].groupby("layer").rows.max()
    windows = 512 // 128
    assert set(final) == {windows * 127}
    assert len(experiment.figures(config, table)) == 1
    assert len(experiment.claims(config, table)) == 4


def test_published_dictionaries_say_what_to_install():
    pytest.importorskip("torch")
    try:
        import sae_lens  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="pip install sae-lens"):
            ours._published("release/id", torch.device("cpu"))


def test_parts_and_first_values_are_checked():
    for change in (
        {"parts": ("none such",)},
        {"parity_dropouts": (0.1, 0.2)},
        {"attack_eps": (0.1,)},
        {"dictionaries": ("a/b",)},
    ):
        with pytest.raises(ValueError, match="must"):
            ours.EffectiveFeaturesConfig(**change)


def test_presets_have_every_part_but_smoke_s_language_model():
    assert set(experiment.arms(SMOKE)) == {TOY, PARITY, GROKKING, ADVERSARIAL}
    assert set(experiment.arms(experiment.presets["quick"])) == {
        TOY,
        PARITY,
        GROKKING,
        ADVERSARIAL,
        LANGUAGE,
    }
