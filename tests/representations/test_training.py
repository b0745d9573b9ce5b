import pytest
import torch
from torch import nn

from szilard.representations import ActivationRecorder, MeasureLogger


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_each_measured_step_sees_its_own_batches_alone():
    model, batches = network(), torch.randn(6, 2, 5, 4)
    recorder = ActivationRecorder(model, "1")
    seen = []
    logger = MeasureLogger(
        lambda step: seen.append(recorder["1"]) or {"rows": len(seen[-1])},
        every=3,
        recorder=recorder,
    )
    for micro in batches:
        with logger.step():
            for batch in micro:
                model(batch)
    assert logger.history == [{"rows": 10, "step": 3}, {"rows": 10, "step": 6}]
    for rows, micro in zip(seen, batches[[2, 5]], strict=True):
        torch.testing.assert_close(rows, torch.relu(model[0](micro.flatten(0, 1))).detach())


def test_a_step_that_raises_leaves_no_hook_and_is_not_measured():
    model = network()
    recorder = ActivationRecorder(model, "1")
    logger = MeasureLogger(lambda step: {"x": 1.0}, every=1, recorder=recorder)
    with pytest.raises(RuntimeError, match="shapes"), logger.step():
        model(torch.ones(2, 5))
    assert hooks(model) == 0
    assert logger.history == []
    with logger.step():
        model(torch.ones(2, 4))
    assert [row["step"] for row in logger.history] == [1]


def test_figures_join_the_trainer_s_log(tmp_path):
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x, labels):
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    model = Classifier()
    recorder = ActivationRecorder(model, "net.1")
    logger = MeasureLogger(
        lambda step: {"active": float((recorder["net.1"] > 0).float().mean())},
        every=2,
        recorder=recorder,
    )
    rows = [{"x": torch.randn(4), "labels": i % 2} for i in range(8)]
    arguments = TrainingArguments(
        tmp_path,
        max_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    printed = []

    class Printer(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            printed.append((state.global_step, dict(logs)))

    callbacks = [logger.callback(), Printer()]
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=callbacks)
    trainer.train()
    assert [row["step"] for row in logger.history] == [2, 4]
    assert all(0 <= row["active"] <= 1 for row in logger.history)
    assert [step for step, logs in printed if "active" in logs and "loss" in logs] == [2, 4]
    kept = [row for row in trainer.state.log_history if "active" in row]
    assert kept == logger.history
    assert hooks(model) == 0


def test_every_below_one_is_refused():
    with pytest.raises(ValueError, match="every must be at least 1, but is 0"):
        MeasureLogger(lambda step: {}, every=0)
