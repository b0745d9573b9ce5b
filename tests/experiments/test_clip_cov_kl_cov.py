import json

import numpy as np
import pandas as pd
import pytest
import torch

from szilard.experiments.clip_cov_kl_cov import (
    METHODS,
    Benchmark,
    LanguageModelTraining,
    Settings,
    Tokens,
    _random_clip,
    at_reward,
    experiment,
    matched,
    math_reward,
    training_arguments,
)
from szilard.lab.experiment import Verdict
from szilard.rl import clip_cov_select

ARMS = ("clip-cov", "kl-cov", "grpo", "random-clip")


def quiet(fraction, message):
    pass


def synthetic(gain, seeds=3):
    """Runs on exact laws: every arm goes from reward 0.4 to 0.9, the method `gain` nats higher."""
    rows = []
    for seed in range(seeds):
        for arm in ARMS:
            kept = gain if arm in ("clip-cov", "kl-cov") else 0.0
            for step, reward in enumerate(np.linspace(0.4, 0.9, 11)):
                entropy = np.log((1.2 - reward) / 0.5) + kept + 0.01 * seed
                values = {
                    "reward": reward,
                    "entropy": entropy,
                    "orders": 4 + 100 * kept,
                    "covariance": 0.1,
                    "covariance_positive": 0.9,
                }
                rows += [
                    {"arm": arm, "seed": seed, "step": step, "metric": m, "value": v}
                    for m, v in values.items()
                ]
            rows.append({"arm": arm, "seed": seed, "metric": "law_r2", "value": 0.95})
            rows.append({"arm": arm, "seed": seed, "metric": "law_ceiling", "value": 0.7})
    return pd.DataFrame(rows)


def test_the_smoke_preset_runs_to_its_claims_and_figures(tmp_path, monkeypatch):
    monkeypatch.setenv("SZILARD_CACHE", str(tmp_path))
    config = experiment.presets["smoke"].model_copy(update={"pretraining_steps": 20})
    rows = [
        {**row, "arm": arm, "seed": 0}
        for arm in experiment.arms(config)
        for row in experiment.run(config, arm, 0, quiet)
    ]
    table = pd.DataFrame(rows)
    assert set(table["arm"]) == set(METHODS)
    assert np.isfinite(table["value"]).all()
    assert len(experiment.claims(config, table)) == 10
    for figure in experiment.figures(config, table):
        assert figure.plot.layout.xaxis.title.text
        assert figure.plot.layout.yaxis.title.text


def test_a_unit_is_a_pure_function_of_configuration_arm_and_seed(tmp_path, monkeypatch):
    monkeypatch.setenv("SZILARD_CACHE", str(tmp_path))
    config = experiment.presets["smoke"].model_copy(update={"pretraining_steps": 20, "rollouts": 2})
    assert experiment.run(config, "clip-cov", 0, quiet) == experiment.run(
        config, "clip-cov", 0, quiet
    )


def test_claims_hold_where_the_method_keeps_entropy_at_equal_reward():
    config = Settings(methods=ARMS)
    verdicts = [claim.verdict for claim in experiment.claims(config, synthetic(0.05))]
    assert verdicts[:-1] == [Verdict.HOLDS] * 9
    assert verdicts[-1] is Verdict.NOT_MEASURABLE


def test_claims_fail_where_it_keeps_none():
    config = Settings(methods=ARMS)
    verdicts = [claim.verdict for claim in experiment.claims(config, synthetic(0.0))]
    assert verdicts[2:6] == [Verdict.FAILS] * 4


def test_comparison_is_at_the_highest_reward_both_reach():
    assert at_reward([0.2, 0.6, 0.8], [1.0, 0.6, 0.2], 0.7) == pytest.approx(0.4)
    assert at_reward([0.5, 0.6], [3.0, 2.0], 0.4) == 3.0
    table = synthetic(0.05)
    for reward, ours, theirs in matched(table, "clip-cov", "entropy"):
        assert reward == pytest.approx(0.9)
        assert ours - theirs == pytest.approx(0.05)


def test_random_clipping_removes_as_many_tokens_as_clip_cov_would():
    g = torch.Generator().manual_seed(0)
    logp = -3 * torch.rand(6, 12, generator=g)
    mask = torch.rand(6, 12, generator=g) < 0.8
    tokens = Tokens(logp, logp - 0.1, torch.randn(6, generator=g), mask, torch.ones(6, 12))
    config = Settings(ratio=0.3)
    wanted = clip_cov_select(*tokens[:4], config.ratio, config.bounds)
    _, metrics = _random_clip(config, tokens, torch.Generator().manual_seed(1))
    assert metrics["selected"].item() == pytest.approx((wanted.sum() / mask.sum()).item())


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        (r"thus \boxed{42}", "42", True),
        (r"first \boxed{1}, no: \boxed{\frac{3}{4}}", "0.75", True),
        (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}", True),
        (r"\boxed{1,024}", "1024", True),
        (r"\boxed{\text{Evelyn}}", "evelyn", True),
        (r"\boxed{\sqrt{2}}", r"\sqrt{2}", True),
        ("Answer: 7.", "7", True),
        (r"\boxed{43}", "42", False),
        (r"\boxed{4", "4", False),
        ("42", "42", False),
        ("", "", False),
    ],
)
def test_the_reward_checks_the_final_answer(text, answer, right):
    assert math_reward([text], [answer]) == [float(right)]
    assert math_reward([[{"role": "assistant", "content": text}]], [answer]) == [float(right)]


class TestLanguageModel:
    @pytest.mark.parametrize("arm", ["clip-cov", "kl-cov", "grpo", "clip-higher"])
    def test_the_paper_preset_alone_makes_the_papers_training_context(self, arm, tmp_path):
        pytest.importorskip("trl")
        config = experiment.presets["paper"]
        args = training_arguments(config, arm, 0, str(tmp_path))
        processes = config.language_model.processes
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
        assert per_step == 32 * 8
        assert args.steps_per_generation == 8 * args.gradient_accumulation_steps
        assert (args.temperature, args.top_p, args.top_k) == (1.0, 1.0, 0)
        assert (args.learning_rate, args.max_grad_norm, args.beta) == (5e-7, 1.0, 0.0)
        assert args.loss_type == "dapo"

    def test_batches_that_do_not_divide_are_named(self, tmp_path):
        config = experiment.presets["paper"].model_copy(update={"prompts": 100})
        with pytest.raises(ValueError, match="prompts \\* samples = 800"):
            training_arguments(config, "grpo", 0, str(tmp_path))

    def test_one_rollout_of_every_arm_trains_and_is_evaluated(self, tmp_path):
        pytest.importorskip("trl")
        from szilard.zoo.language import character_tokenizer, tiny_language_model

        tokenizer = character_tokenizer("0123456789+=?\\boxed{}")
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        model = tiny_language_model("qwen2", vocab=tokenizer, hidden=16, layers=1, heads=2)
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        rows = [{"q": [{"content": f"{i}+{i}=?"}], "a": {"truth": str(2 * i)}} for i in range(8)]
        (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows + rows)))
        data = Benchmark(
            name="sums",
            dataset=str(tmp_path / "data.jsonl"),
            question="q.0.content",
            answer="a.truth",
        )
        config = experiment.presets["paper"].model_copy(
            update={
                "rollouts": 1,
                "prompts": 4,
                "samples": 2,
                "minibatches": 2,
                "ratio": 0.1,
                "fraction": 0.1,
                "eval_samples": 2,
                "language_model": LanguageModelTraining(
                    model=str(tmp_path / "model"),
                    train=data,
                    benchmarks=(data,),
                    max_completion=4,
                    processes=1,
                    batch_per_process=4,
                    vllm=False,
                ),
            }
        )
        table = pd.DataFrame(
            [
                {**row, "arm": arm, "seed": 0}
                for arm in experiment.arms(config)
                for row in experiment.run(config, arm, 0, quiet)
            ]
        )
        for arm in config.methods:
            of_arm = table[table["arm"] == arm]
            assert {"reward", "entropy", "covariance", "accuracy"} <= set(of_arm["metric"])
        assert len(experiment.claims(config, table)) == 6
        assert experiment.figures(config, table)


def test_methods_are_checked():
    with pytest.raises(ValueError, match="methods"):
        experiment.arms(Settings(methods=("clip-cov",)))
    paper = experiment.presets["paper"]
    with pytest.raises(ValueError, match="random-clip"):
        experiment.run(paper, "random-clip", 0, quiet)
