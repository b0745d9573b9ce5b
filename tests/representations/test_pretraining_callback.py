import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from szilard.representations import DynamicsCallback, DynamicsTable


class Killed(RuntimeError):
    pass


ROWS = [{"input_ids": row, "labels": row} for row in torch.randint(0, 11, (64, 8))]


def tiny() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_dropout=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def loss(model):
    assert not model.training
    batch = torch.stack([row["input_ids"] for row in ROWS[:16]])
    torch.rand(7)  # an evaluation that draws must not move the run
    return float(model(input_ids=batch, labels=batch).loss), 0.01


def train(folder, callback=None, resume=None, steps=12, **more):
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        save_steps=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        **more,
    )
    callbacks = [] if callback is None else [callback]
    trainer = Trainer(model=tiny(), args=args, train_dataset=ROWS, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer.model


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_is_evaluated_on_its_schedule_and_is_the_same_as_without(tmp_path):
    callback = DynamicsCallback(
        {"loss": loss, "parameters": lambda model: 1.0},
        out=tmp_path / "out" / "run.jsonl",
        model="tiny",
        n=5,
        tokens_per_step=32,
        lower_is_better=["loss"],
    )
    watched = train(tmp_path / "a", callback)
    assert callback.schedule == [1, 2, 3, 6, 12]
    found = lines(callback.out)
    assert [(row["step"], row["task"]) for row in found] == [
        (step, task) for step in callback.schedule for task in ("loss", "parameters")
    ]
    assert {row["n_params"] for row in found} == {watched.num_parameters()}
    table = callback.table()
    assert isinstance(table, DynamicsTable)
    assert table.records.tokens.max() == 12 * 32
    alone = train(tmp_path / "b")
    for a, b in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_killed_run_goes_on_in_the_same_file(tmp_path):
    out = tmp_path / "run.jsonl"
    schedule = [2, 6, 8, 12]

    def callback(kill_at=None):
        calls = []

        def evaluation(model):
            calls.append(1)
            if len(calls) == kill_at:
                raise Killed
            return loss(model)

        return DynamicsCallback(
            {"loss": evaluation}, out=out, schedule=schedule, tokens_per_step=32
        )

    whole = tmp_path / "whole.jsonl"
    train(
        tmp_path / "whole",
        DynamicsCallback({"loss": loss}, out=whole, schedule=schedule, tokens_per_step=32),
    )
    with pytest.raises(Killed):
        train(tmp_path / "run", callback(kill_at=3))  # at step 8, after the checkpoint of step 4
    with out.open("a") as file:
        file.write('{"model": "run", "step": 8, "to')  # the last words of a killed process
    assert len(DynamicsTable.from_jsonl(out).records) == 2
    train(tmp_path / "run", callback(), resume=str(tmp_path / "run" / "checkpoint-4"))
    assert [row["step"] for row in lines(out)] == schedule
    # The resumed run sees the batches that the whole one saw.
    for a, b in zip(lines(out), lines(whole), strict=True):
        assert a["value"] == pytest.approx(b["value"], rel=1e-5)


def test_tokens_are_counted_by_the_trainer_unless_given(tmp_path):
    callback = DynamicsCallback({"loss": loss}, out=tmp_path / "run.jsonl", schedule=[1, 3])
    train(tmp_path / "a", callback, steps=3, include_num_input_tokens_seen="all")
    assert [row["tokens"] for row in lines(callback.out)] == [32, 96]
    with pytest.raises(ValueError, match="tokens_per_step"):
        train(tmp_path / "b", DynamicsCallback({"loss": loss}, out=tmp_path / "x"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eval_fns": {}}, "eval_fns"),
        ({"schedule": [0, 1]}, "schedule"),
        ({"schedule": []}, "schedule"),
        ({"n": 1}, "n must be"),
        ({"lower_is_better": ["accuracy"]}, "lower_is_better"),
    ],
)
def test_arguments_without_sense_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        DynamicsCallback(**{"eval_fns": {"loss": loss}, "out": tmp_path / "x"} | arguments)
