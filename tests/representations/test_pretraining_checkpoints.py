import os
import sys
import types

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from szilard.representations import DynamicsTable, evaluate_checkpoints


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four checkpoints of a tiny model whose output layer grows."""
    folder = tmp_path_factory.mktemp("run")
    config = LlamaConfig(
        vocab_size=7, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    for step in (1, 10, 100, 1000):
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            model.lm_head.weight.fill_(step)
        model.save_pretrained(folder / f"checkpoint-{step}")
    return folder


REVISIONS = [f"checkpoint-{step}" for step in (1, 10, 100, 1000)]


class Backend:
    def __init__(self, scale=1.0):
        self.__qualname__ = "backend"
        self.calls = []
        self.scale = scale

    def __call__(self, model, tokenizer, tasks):
        assert not model.training
        assert tokenizer is None
        weight = float(model.lm_head.weight.detach().mean())
        self.calls.append((weight, tuple(tasks)))
        return {task: (self.scale * weight, 0.1) if task == "head" else -weight for task in tasks}


def test_each_checkpoint_is_evaluated_once(run, tmp_path):
    backend = Backend()
    table = evaluate_checkpoints(
        str(run), REVISIONS, ["head"], backend, cache=tmp_path, tokens_per_step=1000, name="tiny"
    )
    assert isinstance(table, DynamicsTable)
    assert table.models == ["tiny"]
    assert table.records.tokens.tolist() == [1e3, 1e4, 1e5, 1e6]
    assert table.records.value.tolist() == [1, 10, 100, 1000]
    assert set(table.records.stderr) == {0.1}
    assert (table.records.n_params > 100).all()
    again = evaluate_checkpoints(
        str(run), REVISIONS, ["head"], backend, cache=tmp_path, tokens_per_step=1000, name="tiny"
    )
    assert len(backend.calls) == 4
    assert again.records.equals(table.records)


def test_a_further_task_is_all_that_is_evaluated_anew(run, tmp_path):
    backend = Backend()
    evaluate_checkpoints(str(run), REVISIONS, ["head"], backend, cache=tmp_path)
    table = evaluate_checkpoints(
        str(run), REVISIONS, ["head", "minus"], backend, cache=tmp_path, lower_is_better=["minus"]
    )
    assert [tasks for _, tasks in backend.calls] == [("head",)] * 4 + [("minus",)] * 4
    lower = table.records[table.records.task == "minus"]
    assert not lower.higher_is_better.any()


def test_a_run_that_dies_keeps_what_it_has(run, tmp_path):
    backend = Backend()

    def dies(model, tokenizer, tasks):
        if len(backend.calls) == 2:
            raise KeyboardInterrupt
        return backend(model, tokenizer, tasks)

    dies.__qualname__ = "backend"
    with pytest.raises(KeyboardInterrupt):
        evaluate_checkpoints(str(run), REVISIONS, ["head"], dies, cache=tmp_path)
    evaluate_checkpoints(str(run), REVISIONS, ["head"], backend, cache=tmp_path)
    assert [weight for weight, _ in backend.calls] == [1, 10, 100, 1000]


def test_a_checkpoint_written_again_is_evaluated_again(run, tmp_path):
    backend = Backend()
    evaluate_checkpoints(str(run), REVISIONS[:1], ["head"], backend, cache=tmp_path)
    touched = run / REVISIONS[0] / "config.json"
    later = touched.stat().st_mtime_ns + 10**9
    os.utime(touched, ns=(later, later))
    evaluate_checkpoints(str(run), REVISIONS[:1], ["head"], backend, cache=tmp_path)
    assert len(backend.calls) == 2


def test_folders_may_stand_for_themselves(run, tmp_path):
    folders = [str(run / revision) for revision in REVISIONS]
    table = evaluate_checkpoints(
        "a run", folders, ["head"], Backend(), cache=tmp_path, tokens=lambda r: len(r) * 2.0
    )
    assert table.records.value.tolist() == [1, 10, 100, 1000]
    assert table.records.tokens.is_monotonic_increasing


def test_the_harness_is_handed_the_model_and_read(run, tmp_path, monkeypatch):
    seen = []

    def simple_evaluate(model, tasks, **settings):
        seen.append((tasks, settings))
        weight = float(model.pretrained.lm_head.weight.detach().mean())
        return {"results": {t: {"acc,none": weight, "acc_stderr,none": 0.2} for t in tasks}}

    harness = types.ModuleType("lm_eval")
    harness.simple_evaluate = simple_evaluate
    models = types.ModuleType("lm_eval.models")
    huggingface = types.ModuleType("lm_eval.models.huggingface")
    huggingface.HFLM = lambda pretrained, tokenizer: types.SimpleNamespace(pretrained=pretrained)
    for module in (harness, models, huggingface):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    table = evaluate_checkpoints(
        str(run), REVISIONS, ["piqa"], cache=tmp_path, settings={"num_fewshot": 5}
    )
    assert seen == [(["piqa"], {"num_fewshot": 5})] * 4
    assert table.records.value.tolist() == [1, 10, 100, 1000]
    # Another setting is another evaluation.
    evaluate_checkpoints(
        str(run), REVISIONS[:1], ["piqa"], cache=tmp_path, settings={"num_fewshot": 0}
    )
    assert len(seen) == 5


def test_without_the_harness_the_error_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match="pip install lm-eval"):
        evaluate_checkpoints(str(run), REVISIONS, ["piqa"], cache=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"revisions": []}, "revisions"),
        ({"tasks": ["head", "head"]}, "tasks"),
        ({"revisions": ["main"]}, "number"),
        ({"tokens": {"checkpoint-1": 5.0}}, "lacks"),
        ({"backend": lambda model, tokenizer, tasks: {}}, "not"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(run, tmp_path, arguments, message):
    settings = {"revisions": REVISIONS, "tasks": ["head"], "backend": Backend(), "cache": tmp_path}
    with pytest.raises(ValueError, match=message):
        evaluate_checkpoints(str(run), **settings | arguments)
