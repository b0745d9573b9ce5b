"""Capability curves written while a network trains in a `transformers.Trainer`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from szilard._extras import require
from szilard.representations.pretraining import DynamicsTable, complete_lines
from szilard.representations.pretraining_curves import log_schedule

if TYPE_CHECKING:
    from transformers import TrainerCallback
else:
    TrainerCallback = require("transformers", extra="language").TrainerCallback

Evaluation = Callable[[nn.Module], float | tuple[float, float]]
"""Maps a model in evaluation mode to a metric, or to the metric and its standard error."""


class DynamicsCallback(TrainerCallback):
    """Evaluates the model at chosen steps of a training run, and appends what it found to a file.

    The file has one JSON object a line and is complete after every evaluated step. A run that was killed
    and goes on, from a checkpoint or from the start, skips what is already there. The model is run
    without gradients in evaluation mode; its modes and torch's random state are restored, so that the
    run is the same with and without the callback.

    Args:
        eval_fns: evaluations by task; each maps the model to a metric, or to (metric, standard error).
        out: the file.
        model: name of the run in the file.
        schedule: "log", or the steps themselves.
        n: how many steps of the logarithmic schedule.
        first: its first step.
        tokens_per_step: tokens of an optimiser step; by default the trainer counts them, which needs
            `TrainingArguments(include_num_input_tokens_seen="all")`.
        lower_is_better: names of the tasks of which less is better, the loss for one.

    Raises:
        ValueError: no evaluation, an unknown name in lower_is_better, a step below 1, n below 2, or, when
            training begins, neither tokens_per_step nor a trainer that counts.

    Examples:
        >>> callback = DynamicsCallback({"zero": lambda model: 0.0}, out="run.jsonl", schedule=[10, 100])
        >>> callback.schedule
        [10, 100]
    """

    def __init__(
        self,
        eval_fns: Mapping[str, Evaluation],
        *,
        out: str | PathLike[str],
        model: str = "run",
        schedule: Literal["log"] | Sequence[int] = "log",
        n: int = 20,
        first: int = 1,
        tokens_per_step: float | None = None,
        lower_is_better: Sequence[str] = (),
    ) -> None:
        if not eval_fns:
            raise ValueError("eval_fns must hold at least one evaluation, but is empty")
        unknown = set(lower_is_better) - set(eval_fns)
        if unknown:
            raise ValueError(f"lower_is_better must name tasks of eval_fns, but has {unknown}")
        if n < 2:
            raise ValueError(f"n must be at least 2, but is {n}")
        if schedule != "log" and (not schedule or min(schedule) < 1):
            raise ValueError(f"schedule must be 'log' or steps from 1 on, but is {schedule!r}")
        self.out = Path(out)
        self.model = model
        self.schedule: list[int] = [] if schedule == "log" else sorted(set(schedule))
        self._eval_fns = dict(eval_fns)
        self._spread = (n, first) if schedule == "log" else None
        self._tokens_per_step = tokens_per_step
        self._lower = set(lower_is_better)
        self._done: set[tuple[int, str]] = set()

    def table(self) -> DynamicsTable:
        """What the file holds so far."""
        return DynamicsTable.from_jsonl(self.out)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Lays out the schedule and reads what an earlier part of the run has written."""
        if self._tokens_per_step is None and args.include_num_input_tokens_seen == "no":
            raise ValueError(
                "tokens_per_step must be given, or the trainer must count tokens: "
                'TrainingArguments(include_num_input_tokens_seen="all")'
            )
        if self._spread is not None:
            n, first = self._spread
            self.schedule = log_schedule(n, state.max_steps, min(first, state.max_steps))
        self._done = set()
        if self.out.exists():
            rows = complete_lines(self.out)
            self._done = {(row["step"], row["task"]) for row in rows if row["model"] == self.model}

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Evaluates, if the step is on the schedule."""
        step = state.global_step
        tasks = [task for task in self._eval_fns if (step, task) not in self._done]
        if step not in self.schedule or not tasks:
            return
        seen = state.num_input_tokens_seen
        tokens = seen if self._tokens_per_step is None else self._tokens_per_step * step
        rows = [
            {
                "model": self.model,
                "n_params": sum(p.numel() for p in model.parameters()),
                "step": step,
                "tokens": tokens,
                "task": task,
                "value": value,
                "stderr": stderr,
                "higher_is_better": task not in self._lower,
            }
            for task, (value, stderr) in _evaluate(model, self._eval_fns, tasks).items()
        ]
        self._done |= {(step, task) for task in tasks}
        if state.is_world_process_zero:
            _append(self.out, rows)


def _evaluate(
    model: nn.Module, eval_fns: Mapping[str, Evaluation], tasks: Sequence[str]
) -> dict[str, tuple[float, float]]:
    modes = {module: module.training for module in model.modules()}
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            found = {task: eval_fns[task](model) for task in tasks}
    finally:
        for module, mode in modes.items():
            module.training = mode
    return {
        task: (float(score[0]), float(score[1]))
        if isinstance(score, tuple)
        else (float(score), math.nan)
        for task, score in found.items()
    }


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Appends the rows at once, after the last complete line: what a killed run half wrote goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        file.flush()
        os.fsync(file.fileno())
