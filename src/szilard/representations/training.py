"""Any measure, logged while a network trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from szilard._extras import require

if TYPE_CHECKING:
    from transformers import TrainerCallback


@runtime_checkable
class Recorder(Protocol):
    """What looks at a model while its context is open: activations, attention or one's own."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def clear(self) -> None: ...


class MeasureLogger:
    """Measures every so many optimiser steps of any training loop, and keeps what it measured.

    In a loop of one's own, and around Lightning's `training_step`, a step is `with logger.step():`.
    `callback()` is for `transformers.Trainer` and the trainers built on it, TRL's among them: there the
    figures also join the log.

    Args:
        measure: called with the number of the step that has just ended; returns figures by name.
        every: steps from one measurement to the next.
        recorder: is cleared and opened for each step that will be measured, so that `measure` can read
            what passed through the model while it trained; all micro-batches of a step count.

    Attributes:
        history: the figures so far, each with its `step`.

    Raises:
        ValueError: every below 1.

    Examples:
        The effective number of directions that the hidden layer uses, every second step:

        >>> import torch
        >>> from szilard.measures import entropy
        >>> from szilard.representations import ActivationRecorder
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> hidden = ActivationRecorder(model, "1")
        >>> def directions(step):
        ...     variances = torch.linalg.svdvals(hidden["1"] - hidden["1"].mean(0)) ** 2
        ...     return {"directions": float(entropy(variances / variances.sum()).exp())}
        >>> logger = MeasureLogger(directions, every=2, recorder=hidden)
        >>> for x in torch.randn(4, 16, 4, generator=torch.Generator().manual_seed(0)):
        ...     with logger.step():
        ...         model(x).mean().backward()
        >>> [(row["step"], 1 < row["directions"] < 8) for row in logger.history]
        [(2, True), (4, True)]
    """

    def __init__(
        self,
        measure: Callable[[int], Mapping[str, float]],
        *,
        every: int = 50,
        recorder: Recorder | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, but is {every}")
        self.history: list[dict[str, float]] = []
        self._measure = measure
        self._every = every
        self._recorder = recorder
        self._recording = False
        self._steps = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """A step of the loop: forward, backward and whatever belongs to it."""
        self._begin(self._steps + 1)
        try:
            yield
        finally:
            self._close()
        self._steps += 1
        self._end(self._steps)

    def callback(self) -> TrainerCallback:
        """A callback for `transformers.Trainer` and the trainers built on it.

        Raises:
            ImportError: transformers is not installed.
        """
        trainer_callback: Any = require("transformers", extra="language").TrainerCallback
        logger = self

        class MeasureCallback(trainer_callback):
            def __init__(self) -> None:
                self.latest: dict[str, float] = {}

            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                logger._begin(state.global_step + 1)

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                logger._close()
                measured = logger._end(state.global_step)
                if measured is None:
                    return
                self.latest = measured
                if state.is_world_process_zero:
                    state.log_history.append(measured)

            def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                logger._close()

            def on_log(
                self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any
            ) -> None:
                if logs is not None:
                    logs.update({k: v for k, v in self.latest.items() if k != "step"})
                    self.latest = {}

        return MeasureCallback()

    def _begin(self, step: int) -> None:
        if self._recorder is not None and step % self._every == 0:
            self._recorder.clear()
            self._recorder.__enter__()
            self._recording = True

    def _close(self) -> None:
        if self._recorder is not None and self._recording:
            self._recording = False
            self._recorder.__exit__(None, None, None)

    def _end(self, step: int) -> dict[str, float] | None:
        if step % self._every:
            return None
        self.history.append({**self._measure(step), "step": step})
        return self.history[-1]
