"""One real GRPO step against the framework-free losses: the test that catches TRL's next release."""

import math

import pytest
import torch

trl = pytest.importorskip("trl")
from datasets import Dataset  # noqa: E402
from trl import GRPOConfig  # noqa: E402

from szilard.integrations.trl import (  # noqa: E402
    ClipCovTrainer,
    KLCovTrainer,
    TokenShapedGRPOTrainer,
)
from szilard.rl import clip_cov_loss, kl_cov_loss  # noqa: E402
from szilard.zoo.language import character_tokenizer, tiny_language_model  # noqa: E402

WIDTH = 8
LOSS_TYPES = ("dapo", "grpo", "bnpo", "dr_grpo")


def lengths(completions, **_):
    return [float(len(c)) for c in completions]


def make(trainer, tmp_path, config, **kwargs):
    settings = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "steps_per_generation": 2,
        "max_completion_length": WIDTH,
        "max_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 3,
    } | config
    tokenizer = character_tokenizer("01+=")
    return trainer(
        model=tiny_language_model("qwen2", vocab=tokenizer, hidden=32, layers=2, heads=2, seed=1),
        reward_funcs=lengths,
        args=GRPOConfig(**settings),
        train_dataset=Dataset.from_dict({"prompt": ["0+1=", "1+1="] * 8}),
        processing_class=tokenizer,
        **kwargs,
    )


def micro_batch(trainer, tool_mask=False):
    """What TRL hands to `_compute_loss`, with old log-probabilities a real distance away."""
    g = torch.Generator().manual_seed(5)
    rows = 8
    mask = torch.arange(WIDTH) < torch.randint(3, WIDTH + 1, (rows, 1), generator=g)
    inputs = {
        "prompt_ids": torch.randint(4, 8, (rows, 4), generator=g),
        "prompt_mask": torch.ones(rows, 4, dtype=torch.long),
        "completion_ids": torch.randint(4, 8, (rows, WIDTH), generator=g),
        "completion_mask": mask.long(),
        "advantages": torch.randn(rows, generator=g),
        "num_items_in_batch": 2 * mask.sum(),
    }
    if tool_mask:
        inputs["tool_mask"] = (torch.rand(rows, WIDTH, generator=g) < 0.7).long()
        mask = mask & inputs["tool_mask"].bool()
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    logp, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, attention, WIDTH)
    noise = 0.3 * torch.randn(rows, WIDTH, generator=g)
    inputs["old_per_token_logps"] = (logp.detach() + noise).masked_fill(~mask, 0.0)
    return inputs, logp, mask


def gradients(trainer, loss):
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, parameters, retain_graph=True)


def as_trl_reduces(each, mask, loss_type):
    """TRL's normalisers, one micro-batch an accumulation window."""
    return {
        "dapo": each.sum() / mask.sum(),
        "bnpo": each.sum() / mask.sum(),
        "grpo": (each.sum(-1) / mask.sum(-1)).mean(),
        "dr_grpo": each.sum() / (len(each) * WIDTH),
    }[loss_type]


def assert_same_gradient(trainer, inputs, reference):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    ours = gradients(trainer, trainer._compute_loss(trainer.model, inputs))
    expected = gradients(trainer, reference)
    largest = max(g.abs().max() for g in expected)
    assert largest > 1e-3
    for a, b in zip(ours, expected, strict=True):
        # float32 sums of 64 tokens in two orders: 1e-6 of gradients of order 0.1.
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("tool_mask", [False, True])
def test_clip_cov_has_the_gradient_of_its_loss(tmp_path, loss_type, tool_mask):
    config = {"epsilon": 1.0, "epsilon_high": 1.0, "loss_type": loss_type}
    bounds, ratio = (0.02, 5.0), 0.3
    trainer = make(ClipCovTrainer, tmp_path, config, ratio=ratio, bounds=bounds)
    inputs, logp, mask = micro_batch(trainer, tool_mask)
    if tool_mask:
        inputs["num_items_in_batch"] = 2 * mask.sum()
    each, metrics = clip_cov_loss(
        logp,
        inputs["old_per_token_logps"],
        inputs["advantages"],
        mask,
        ratio,
        bounds,
        generator=torch.Generator().manual_seed(3),
        reduction="none",
    )
    assert metrics["selected"] > 0
    assert_same_gradient(trainer, inputs, as_trl_reduces(each, mask, loss_type))
    logged = trainer._metrics["train"]
    assert logged["covariance/selected"] == [pytest.approx(metrics["selected"].item())]
    assert logged["covariance/covariance"] == [
        pytest.approx(metrics["covariance"].item(), abs=1e-6)
    ]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_kl_cov_has_the_gradient_of_its_loss(tmp_path, loss_type):
    config = {"epsilon": 1e9, "loss_type": loss_type}
    trainer = make(KLCovTrainer, tmp_path, config, fraction=0.2, beta=2.0)
    inputs, logp, mask = micro_batch(trainer)
    old, adv = inputs["old_per_token_logps"], inputs["advantages"]
    each, metrics = kl_cov_loss(logp, old, adv, mask, 0.2, 2.0, reduction="none")
    assert_same_gradient(trainer, inputs, as_trl_reduces(each, mask, loss_type))
    assert trainer._metrics["train"]["covariance/kl_penalty"] == [
        pytest.approx(metrics["kl_penalty"].item(), rel=1e-5)
    ]


def test_the_base_class_alone_is_grpo(tmp_path):
    trainer = make(TokenShapedGRPOTrainer, tmp_path, {})
    inputs, logp, mask = micro_batch(trainer)
    r = (logp - inputs["old_per_token_logps"]).exp()
    adv = inputs["advantages"][:, None]
    each = torch.maximum(-adv * r, -adv * r.clamp(0.8, 1.2)).masked_fill(~mask, 0.0)
    assert_same_gradient(trainer, inputs, each.sum() / mask.sum())


def test_a_buffered_micro_batch_is_not_changed(tmp_path):
    trainer = make(KLCovTrainer, tmp_path, {"epsilon": 1e9}, fraction=0.5)
    inputs, _, _ = micro_batch(trainer)
    before = inputs["advantages"].clone()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, inputs)
    assert inputs["advantages"].shape == before.shape
    assert torch.equal(inputs["advantages"], before)


def test_a_micro_batch_without_any_token_is_harmless(tmp_path):
    trainer = make(ClipCovTrainer, tmp_path, {"epsilon": 1.0})
    inputs, _, _ = micro_batch(trainer)
    inputs["completion_mask"] = torch.zeros_like(inputs["completion_mask"])
    inputs["old_per_token_logps"] = torch.zeros_like(inputs["old_per_token_logps"])
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    assert trainer._compute_loss(trainer.model, inputs).item() == 0


@pytest.mark.parametrize(
    ("trainer", "config", "options"),
    [
        (ClipCovTrainer, {"epsilon": 1.0}, {"ratio": 0.2, "bounds": (0.0, 5.0)}),
        (KLCovTrainer, {"epsilon": 1e9}, {"fraction": 0.2}),
    ],
)
def test_trains_and_logs_the_meter(tmp_path, trainer, config, options):
    trained = make(trainer, tmp_path, config, **options)
    trained.train()
    logs = [entry for entry in trained.state.log_history if "covariance/covariance" in entry]
    assert len(logs) == 2
    for entry in logs:
        shares = [v for k, v in entry.items() if k.startswith("covariance/selected_in/")]
        assert sum(shares) == pytest.approx(1.0) or sum(shares) == 0
        assert math.isfinite(entry["covariance/selected"])
    assert any(entry["covariance/selected"] > 0 for entry in logs)


def test_the_dose_does_not_depend_on_the_micro_batch_size(tmp_path):
    doses = []
    for size, accumulation in ((8, 1), (4, 2)):
        trainer = make(
            KLCovTrainer,
            tmp_path,
            {
                "epsilon": 1e9,
                "per_device_train_batch_size": size,
                "gradient_accumulation_steps": accumulation,
                "steps_per_generation": 2 * accumulation,
            },
            fraction=0.1,
        )
        inputs, _, mask = micro_batch(trainer)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = accumulation
        chosen = 0
        for start in range(0, 8, size):
            part = {k: v[start : start + size] if v.dim() else v for k, v in inputs.items()}
            trainer._compute_loss(trainer.model, part)
            share = trainer._metrics["train"]["covariance/selected"][-1]
            chosen += round(share * part["completion_mask"].sum().item())
        doses.append(chosen)
    assert doses == [int(0.1 * mask.sum().item())] * 2


class TestRefusals:
    @pytest.mark.parametrize(
        ("config", "named"),
        [
            ({}, "epsilon=0.2"),
            ({"epsilon": 1.0, "epsilon_high": 0.28}, "epsilon_high=0.28"),
            ({"epsilon": 1.0, "delta": 4.0}, "delta=4.0"),
            ({"epsilon": 1.0, "loss_type": "cispo"}, "loss_type='cispo'"),
            (
                {"epsilon": 1.0, "importance_sampling_level": "sequence"},
                "importance_sampling_level",
            ),
        ],
    )
    def test_settings_that_make_another_method_of_clip_cov(self, tmp_path, config, named):
        with pytest.raises(ValueError, match=f"ClipCovTrainer: args.{named}"):
            make(ClipCovTrainer, tmp_path, config)

    def test_a_narrower_ratio_clip_must_be_asked_for_twice(self, tmp_path):
        make(ClipCovTrainer, tmp_path, {"epsilon": 0.2, "epsilon_high": 0.28}, eps=(0.2, 0.28))

    def test_a_ratio_clip_in_kl_cov(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"KLCovTrainer: args.epsilon=0.2; set it to 1000000000"
        ):
            make(KLCovTrainer, tmp_path, {})

    @pytest.mark.parametrize(
        "config", [{"steps_per_generation": 1}, {"gradient_accumulation_steps": 2}]
    )
    def test_on_policy_kl_cov_says_what_to_set(self, tmp_path, config):
        with pytest.raises(
            ValueError, match=r"set args\.steps_per_generation .*num_iterations > 1"
        ):
            make(KLCovTrainer, tmp_path, {"epsilon": 1e9} | config)

    def test_several_iterations_make_kl_cov_off_policy(self, tmp_path):
        config = {"epsilon": 1e9, "steps_per_generation": 1, "num_iterations": 2}
        make(KLCovTrainer, tmp_path, config)

    def test_doses_out_of_range(self, tmp_path):
        with pytest.raises(ValueError, match="beta"):
            make(KLCovTrainer, tmp_path, {"epsilon": 1e9}, beta=-1.0)
        with pytest.raises(ValueError, match="fraction"):
            make(KLCovTrainer, tmp_path, {"epsilon": 1e9}, fraction=0.0)
        with pytest.raises(ValueError, match="bounds"):
            make(ClipCovTrainer, tmp_path, {"epsilon": 1.0}, bounds=(5.0, 1.0))
