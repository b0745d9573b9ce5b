"""Times Szilard against named peers: same arrays, same process, alternating order.

A file of this folder holds the cases of one kernel family in `cases()`. Every case first checks that
all answers agree, then times each contender seven times after a warm-up, in an order that rotates,
and keeps the medians. Who takes longer than `SLOW` seconds, a peer longer than `SLOW_PEER`, is timed
`SLOW_ROUNDS` times, a peer that takes longer than `ENDLESS` by its first call, and the table says so:
noise of milliseconds does not reach such a ratio, and the whole ends in a quarter of an hour. What counts is the ratio within
one run; absolute times are the machine's.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

ROUNDS = 7
SLOW, SLOW_PEER, SLOW_ROUNDS = 1.5, 0.3, 3
ENDLESS = 5.0
Contender = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One piece of work and everyone who does it.

    Attributes:
        kernel: the family.
        work: what is computed, on what size.
        ours: Szilard's way.
        peers: theirs, by name.
        error: how far a peer's answer is from ours, in the unit of the measure.
        tolerance: the largest error that still counts as the same answer.
        limit: a bare read of the same bytes (or another floor), by name.
        faster_than: target ratio peer / ours, by peer.
        at_most_limit: target ratio ours / limit.
        at_most_memory: target for our peak extra memory, in bytes.
        sweep: axis and place on it, for the plot of time over problem size.
        slow: seconds a call above which we and the limit are timed `SLOW_ROUNDS` times only.
    """

    kernel: str
    work: str
    ours: Contender
    peers: Mapping[str, Contender]
    error: Callable[[Any, Any], float]
    tolerance: float
    limit: tuple[str, Contender] | None = None
    faster_than: Mapping[str, float] = field(default_factory=dict)
    at_most_limit: float | None = None
    at_most_memory: float | None = None
    sweep: tuple[str, float] | None = None
    slow: float = SLOW


@dataclass(frozen=True)
class Result:
    """Medians in seconds, our peak extra memory in bytes, and what was asked of them."""

    kernel: str
    work: str
    seconds: dict[str, float]
    memory: int
    errors: dict[str, float]
    limit: str | None
    targets: dict[str, tuple[float, float]]
    """What was compared: (measured ratio, ratio asked for)."""
    rounds: dict[str, int]
    sweep: tuple[str, float] | None

    @property
    def missed(self) -> list[str]:
        return [
            name
            for name, (measured, asked) in self.targets.items()
            if (measured < asked if name.endswith("/ szilard") else measured > asked)
        ]


def measure(case: Case) -> Result:
    contenders = {"szilard": case.ours, **case.peers}
    case.ours()
    answer, memory, took = _called(case.ours)
    # What the allocator keeps for later calls is not what each call takes.
    memory = min(memory, _called(case.ours)[1]) if took < case.slow else memory
    first, rounds, errors = {"szilard": took}, {"szilard": _rounds(took, case.slow)}, {}
    for name, peer in case.peers.items():
        theirs, _, first[name] = _called(peer)
        rounds[name] = 1 if first[name] >= ENDLESS else _rounds(first[name], SLOW_PEER)
        errors[name] = case.error(answer, theirs)
        if not errors[name] <= case.tolerance:
            raise AssertionError(
                f"{case.kernel}, {case.work}: {name} differs by {errors[name]:.3g}, "
                f"more than {case.tolerance:.3g}"
            )
    if case.limit is not None:
        name, contenders[case.limit[0]] = case.limit
        first[name] = _called(case.limit[1])[2]
        rounds[name] = _rounds(first[name], case.slow)
    times = {name: [took] if rounds[name] == 1 else [] for name, took in first.items()}
    order = [name for name in first if rounds[name] > 1]
    for round_ in range(max(rounds.values())):
        for name in order:
            if round_ < rounds[name]:
                began = time.perf_counter()
                contenders[name]()
                times[name].append(time.perf_counter() - began)
        order = order[1:] + order[:1]
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    ours = seconds["szilard"]
    targets = {
        f"{peer} / szilard": (seconds[peer] / ours, ratio)
        for peer, ratio in case.faster_than.items()
    }
    if case.limit is not None and case.at_most_limit is not None:
        targets[f"szilard / {case.limit[0]}"] = (ours / seconds[case.limit[0]], case.at_most_limit)
    if case.at_most_memory is not None:
        targets["extra MiB"] = (memory / 2**20, case.at_most_memory / 2**20)
    return Result(
        case.kernel,
        case.work,
        seconds,
        memory,
        errors,
        case.limit and case.limit[0],
        targets,
        rounds,
        case.sweep,
    )


def _rounds(took: float, slow: float) -> int:
    return ROUNDS if took < slow else SLOW_ROUNDS


def _called(run: Contender) -> tuple[Any, int, float]:
    """A call's answer, how far it lifted the process's resident memory at its worst, and its time.

    Memory is read on Linux.
    """
    began = time.perf_counter()
    answer, memory = _peak(run)
    return answer, memory, time.perf_counter() - began


def _peak(run: Contender) -> tuple[Any, int]:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return run(), 0
    before = _status("VmRSS")
    answer = run()
    return answer, max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0


def machine() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "cores": str(os.cpu_count()),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def save(results: list[Result], path: Path, device: dict[str, str]) -> None:
    """Writes the results of one kernel family as JSON, with the machine and device they are from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(result) for result in results]
    path.write_text(json.dumps({"machine": machine() | device, "results": rows}, indent=1) + "\n")
