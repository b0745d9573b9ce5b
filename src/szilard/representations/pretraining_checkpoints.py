"""Evaluations of a list of checkpoints, each done once."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch

from szilard._extras import require
from szilard.representations.pretraining import DynamicsTable, lm_eval_scores

Score = float | tuple[float, float]
Backend = Callable[[Any, Any, Sequence[str]], Mapping[str, Score]]
"""Maps a model, its tokenizer (None where there is none) and tasks to metrics, or to (metric, stderr)."""


def evaluate_checkpoints(
    model_id: str,
    revisions: Sequence[str],
    tasks: Sequence[str],
    backend: Literal["lm_eval"] | Backend = "lm_eval",
    *,
    cache: str | PathLike[str],
    name: str | None = None,
    tokens: Mapping[str, float] | Callable[[str], float] | None = None,
    tokens_per_step: float = 1,
    metric: str | Mapping[str, str] = "acc",
    lower_is_better: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> DynamicsTable:
    """Evaluates checkpoints of one run, one after the other, keeping each result.

    A result is written as soon as a checkpoint is done; what the cache holds is not evaluated again, and
    a checkpoint with nothing left to evaluate is not loaded. Weights are safetensors, or what torch reads
    with `weights_only=True`; code that comes with a model is never run.

    Args:
        model_id: a Hugging Face id, or a folder with one folder a checkpoint.
        revisions: the checkpoints: revisions of the id, folders within the folder, folders of their own,
            or (with a slash) Hugging Face ids of their own.
        tasks: names that the backend knows.
        backend: "lm_eval" for lm-evaluation-harness (`pip install lm-eval`), or a function of the model,
            its tokenizer and the tasks that returns metrics by task.
        cache: folder of the results. A changed function behind `backend` does not show: give it another.
        name: of the run in the table, `model_id` by default.
        tokens: seen by a checkpoint, by revision; by default the last number in a revision's name times
            tokens_per_step.
        tokens_per_step: for those numbers.
        metric: which of a task's metrics lm-eval's results are read for, for all tasks or by task.
        lower_is_better: tasks of a function of which less is better.
        settings: further arguments of `lm_eval.simple_evaluate`, such as num_fewshot.
        dtype: of the weights.
        device: where the model runs.

    Returns:
        The table of all checkpoints and tasks.

    Raises:
        ImportError: the backend is lm_eval, and it is not installed.
        ValueError: no revision or task, one twice, a revision without a number, or a task that the
            backend did not score.

    Source: Yang et al., The Fine Line (2024), arXiv 2404.01204, compares models in this way.
    """
    for argument, names in (("revisions", revisions), ("tasks", tasks)):
        if not names or len(set(names)) < len(names):
            raise ValueError(f"{argument} must name at least one, each once, but are {list(names)}")
    seen = {revision: _tokens(revision, tokens, tokens_per_step) for revision in revisions}
    run_name = (
        "lm_eval"
        if backend == "lm_eval"
        else getattr(backend, "__qualname__", type(backend).__qualname__)
    )
    score = (
        _lm_eval(metric, settings or {})
        if backend == "lm_eval"
        else _called(backend, lower_is_better)
    )
    folder = Path(cache)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for revision in revisions:
        source = _source(model_id, revision)
        key = json.dumps(
            [source, _written(source), run_name, metric, settings, str(dtype)],
            sort_keys=True,
            default=str,
        )
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', revision)}-{digest}.json"
        known = json.loads(path.read_text()) if path.exists() else {"n_params": None, "scores": {}}
        missing = [task for task in tasks if task not in known["scores"]]
        if missing:
            model, tokenizer = _load(source, dtype, device)
            with torch.no_grad():
                scores = score(model, tokenizer, missing)
            lost = [task for task in missing if task not in scores]
            if lost:
                raise ValueError(f"tasks must be scored by the backend, but {lost} were not")
            known["n_params"] = sum(p.numel() for p in model.parameters())
            known["scores"] |= {task: scores[task] for task in missing}
            _replace(path, json.dumps(known))
            del model
        for task in tasks:
            value, stderr, higher = known["scores"][task]
            rows.append(
                {
                    "model": name or model_id,
                    "n_params": known["n_params"],
                    "tokens": seen[revision],
                    "task": task,
                    "value": value,
                    "stderr": math.nan if stderr is None else stderr,
                    "higher_is_better": higher,
                }
            )
    return DynamicsTable.from_records(rows)


_Scores = Mapping[str, tuple[float, float | None, bool]]


def _called(backend: Any, lower_is_better: Sequence[str]) -> Callable[..., _Scores]:
    def score(model: Any, tokenizer: Any, tasks: Sequence[str]) -> _Scores:
        found: dict[str, tuple[float, float | None, bool]] = {}
        for task, result in backend(model, tokenizer, tasks).items():
            value, stderr = result if isinstance(result, tuple) else (result, None)
            error = None if stderr is None else float(stderr)
            found[task] = float(value), error, task not in lower_is_better
        return found

    return score


def _lm_eval(
    metric: str | Mapping[str, str], settings: Mapping[str, Any]
) -> Callable[..., _Scores]:
    try:
        lm_eval = import_module("lm_eval")
        wrap = import_module("lm_eval.models.huggingface").HFLM
    except ImportError as error:
        raise ImportError(
            'backend "lm_eval" needs lm-evaluation-harness: pip install lm-eval; '
            "or give a function of (model, tokenizer, tasks)"
        ) from error

    def score(model: Any, tokenizer: Any, tasks: Sequence[str]) -> _Scores:
        wrapped = wrap(pretrained=model, tokenizer=tokenizer)
        results = lm_eval.simple_evaluate(model=wrapped, tasks=list(tasks), **settings)
        return lm_eval_scores(results, metric)

    return score


def _tokens(
    revision: str, tokens: Mapping[str, float] | Callable[[str], float] | None, per_step: float
) -> float:
    if callable(tokens):
        return float(tokens(revision))
    if tokens is not None:
        if revision not in tokens:
            raise ValueError(f"tokens must hold every revision, but lacks {revision!r}")
        return float(tokens[revision])
    numbers = re.findall(r"\d+(?:\.\d+)?", revision)
    if not numbers:
        raise ValueError(f"revisions must end in a number, or give tokens; {revision!r} has none")
    return float(numbers[-1]) * per_step


def _source(model_id: str, revision: str) -> tuple[str, str | None]:
    """What to load, and which revision of it."""
    for folder in (Path(model_id) / revision, Path(revision)):
        if folder.is_dir():
            return str(folder.resolve()), None
    return (revision, None) if "/" in revision else (model_id, revision)


def _written(source: tuple[str, str | None]) -> int:
    """When a local checkpoint was last written: one that is trained again is evaluated again."""
    folder = Path(source[0])
    if not folder.is_dir():
        return 0
    return max((file.stat().st_mtime_ns for file in folder.iterdir()), default=0)


def _load(
    source: tuple[str, str | None], dtype: torch.dtype, device: str | torch.device
) -> tuple[Any, Any]:
    transformers = require("transformers", extra="language")
    where, revision = source
    chosen: dict[str, Any] = {"trust_remote_code": False}
    if revision is not None:
        chosen["revision"] = revision
    # Early revisions of older suites have no safetensors.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        where, dtype=dtype, weights_only=True, **chosen
    )
    local = Path(where)
    bare = local.is_dir() and not any(local.glob("tokenizer*"))
    tokenizer = None if bare else transformers.AutoTokenizer.from_pretrained(where, **chosen)
    return model.to(device).eval(), tokenizer


def _replace(path: Path, text: str) -> None:
    """Writes a file that is either whole or not there."""
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(text)
    draft.replace(path)
