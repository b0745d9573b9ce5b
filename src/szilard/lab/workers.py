"""Spawned worker processes, each fed one unit at a time over its own pipe.

One pipe a worker says exactly which unit was lost when a process dies, which a shared pool can't.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import pyarrow as pa

from szilard.lab.store import Failure, Unit

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_SECONDS_BETWEEN_LOGS = 0.1


@dataclass(frozen=True, slots=True)
class Started:
    unit: Unit


@dataclass(frozen=True, slots=True)
class Progressed:
    unit: Unit
    fraction: float
    message: str


@dataclass(frozen=True, slots=True)
class Finished:
    unit: Unit
    table: pa.Table
    seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    unit: Unit
    failure: Failure


Event = Started | Progressed | Finished | Failed


def compute(module: str, config_json: str, units: Sequence[Unit], workers: int) -> Iterator[Event]:
    """Computes units in `workers` processes and yields what happens, as it happens.

    A process that dies fails the unit it had and is replaced; the others go on.

    Args:
        module: dotted name of the experiment's module.
        config_json: its configuration.
        units: what to compute, handed out in this order.
        workers: how many processes.
    """
    waiting = deque(units)
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool: dict[Connection, _Worker] = {}
    try:
        while waiting or pool:
            while waiting and len(pool) < workers:
                worker = _Worker(module, config_json, threads)
                pool[worker.pipe] = worker
                worker.give(waiting.popleft())
                yield Started(worker.unit)
            for pipe in wait(list(pool)):
                assert isinstance(pipe, Connection)
                worker = pool[pipe]
                event = worker.receive()
                yield event
                if isinstance(event, Progressed):
                    continue
                if waiting and worker.alive:
                    worker.give(waiting.popleft())
                    yield Started(worker.unit)
                else:
                    pool.pop(pipe).stop()
    finally:
        for worker in pool.values():
            worker.kill()


class _Worker:
    """A process and the unit it has."""

    def __init__(self, module: str, config_json: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_serve, args=(theirs, module, config_json, threads), daemon=True
        )
        self.process.start()
        # Ours must be the only copy of their end left when they die, or the pipe never closes.
        theirs.close()
        self.unit: Unit
        self.alive = True

    def give(self, unit: Unit) -> None:
        self.unit = unit
        # Where it died in between, `receive` meets the closed pipe and says so.
        with contextlib.suppress(OSError):
            self.pipe.send((unit.arm, unit.seed))

    def receive(self) -> Event:
        try:
            kind, *content = self.pipe.recv()
        except (EOFError, OSError):
            return self._died()
        if kind == "progress":
            return Progressed(self.unit, *content)
        if kind == "finished":
            return Finished(self.unit, *content)
        return Failed(self.unit, Failure(self.unit, *content))

    def _died(self) -> Failed:
        self.alive = False
        self.process.join()
        code = self.process.exitcode or 0
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += " (out of memory?)"
        else:
            how = f"ended with exit code {code}"
        return Failed(self.unit, Failure(self.unit, f"the worker process {how}", ""))

    def stop(self) -> None:
        self.pipe.close()
        self.process.join()

    def kill(self) -> None:
        self.process.kill()
        self.stop()


def _serve(pipe: Connection, module: str, config_json: str, threads: int) -> None:
    """A worker's whole life: units come in, tables go out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Read by torch, NumPy and numba when they are first imported, which is below. What the caller
    # has set stays.
    for name in _THREAD_VARIABLES:
        os.environ.setdefault(name, str(threads))
    from szilard.lab.units import run_unit

    last = 0.0

    def log(fraction: float, message: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LOGS:
            last = time.monotonic()
            pipe.send(("progress", float(fraction), str(message)))

    while True:
        try:
            arm, seed = pipe.recv()
        except (EOFError, OSError):
            return
        started = time.monotonic()
        try:
            table = run_unit(module, config_json, arm, seed, log)
        except (Exception, SystemExit) as error:
            pipe.send(("failed", describe(error), traceback.format_exc()))
        else:
            pipe.send(("finished", table, time.monotonic() - started))


def describe(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def _end_with_parent() -> None:
    """Ends this process when its parent is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
