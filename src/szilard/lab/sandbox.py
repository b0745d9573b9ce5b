"""Runs programs nobody vouches for: no network, no files written, no new processes, bounded time.

A program runs in a process of its own, started isolated from this one's modules, environment and
folder. Before its first line the process gives up, for good, every system call but those that
compute, read files and write to the streams it was given (seccomp), and bounds its memory and CPU
time. Its wall time is bounded from here.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_RUNNER = Path(__file__).with_name("_sandboxed.py")
_OUTPUT_BYTES = 1 << 16

Status = Literal["passed", "failed", "timeout", "memory"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: "passed" where its last line was reached; "memory" where it asked for more than it
            may have; "timeout" past its CPU or wall time; "failed" on any other exception, an exit
            of its own or a signal.
        error: the end of what it wrote to its error stream: the traceback.
        seconds: wall time.
    """

    status: Status
    error: str
    seconds: float


def available() -> bool:
    """Whether this machine can contain a program: Linux on x86-64 or 64-bit ARM."""
    return sys.platform == "linux" and platform.machine() in {"x86_64", "aarch64"}


def run_sandboxed(
    program: str,
    *,
    wall_seconds: float = 10.0,
    cpu_seconds: int = 5,
    memory_bytes: int = 1 << 29,
) -> Outcome:
    """Runs a Python program to its end or its limits.

    The program may import the standard library and compute. It can't open a socket, start a process
    or a thread, write, rename or delete a file, or signal another process: each raises
    PermissionError in it. It can read files; what it reads has nowhere to go.

    Args:
        program: Python source.
        wall_seconds: longest wall time, > 0.
        cpu_seconds: longest CPU time, >= 1.
        memory_bytes: largest address space, at least 64 MiB (the interpreter needs about 30).

    Returns:
        How it ended.

    Raises:
        RuntimeError: this machine can't contain a program (see `available`).
        ValueError: a limit out of its range.

    Examples:
        >>> run_sandboxed("assert sorted([2, 1]) == [1, 2]").status
        'passed'
        >>> run_sandboxed("import socket; socket.socket()").status
        'failed'
    """
    if not wall_seconds > 0:
        raise ValueError(f"wall_seconds must be positive, but is {wall_seconds!r}")
    if cpu_seconds < 1:
        raise ValueError(f"cpu_seconds must be at least 1, but is {cpu_seconds!r}")
    if memory_bytes < 1 << 26:
        raise ValueError(f"memory_bytes must be at least 64 MiB, but is {memory_bytes!r}")
    if not available():
        raise RuntimeError(
            "generated code is run on Linux (x86-64 or 64-bit ARM) alone, where a process can give "
            f"up its system calls; this is {platform.system()} on {platform.machine()}"
        )
    proof = secrets.token_hex(16)
    order = {"program": program, "proof": proof, "cpu": cpu_seconds, "memory": memory_bytes}
    order["output"] = _OUTPUT_BYTES
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryFile() as said:
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(_RUNNER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
            cwd=empty,
            env={},
            start_new_session=True,
        )
        timed_out = False
        try:
            process.communicate(json.dumps(order).encode(), timeout=wall_seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        seconds = time.monotonic() - began
        said.seek(0)
        error = said.read(_OUTPUT_BYTES).decode(errors="replace")
    if timed_out or process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return Outcome("timeout", error, seconds)
    if process.returncode == 0 and error.endswith(proof):
        return Outcome("passed", error.removesuffix(proof), seconds)
    last = error.rstrip().rsplit("\n", 1)[-1]
    return Outcome("memory" if last.startswith("MemoryError") else "failed", error, seconds)
