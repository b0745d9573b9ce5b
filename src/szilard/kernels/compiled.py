"""What the compiled kernels share: compilation, scalars of 16 bits, rows in memory, threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from threading import Barrier
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")

_SERIAL = 1 << 18  # logits below which another thread costs more than it saves
_SHARES = 4  # shares of the work a thread takes one after another: masked rows take no time


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    def wrap(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # no folder to keep compiled code in is writable
            return numba.njit(nogil=True, **options)(function)

    return wrap


@intrinsic
def _as_float(_context: Any, x: Any) -> Any:
    """The float32 of these bits; 16 bits are the upper half, a bfloat16."""

    def lower(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        bits = args[0]
        if x == types.uint16:
            word = ir.IntType(32)
            bits = builder.shl(builder.zext(bits, word), ir.Constant(word, 16))
        return bits if x == types.float32 else builder.bitcast(bits, ir.FloatType())

    return (types.float32(x), lower) if x in {types.float32, types.uint16, types.int32} else None


@intrinsic
def _as_bits(_context: Any, x: Any) -> Any:
    """The bits of a float32."""

    def lower(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return (types.int32(x), lower) if x == types.float32 else None


@intrinsic
def _stored(_context: Any, value: Any, like: Any) -> Any:
    """A finite float32 in the form of `like`: itself, or rounded to the nearest even bfloat16."""

    def lower(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        if like == types.float32:
            return args[0]
        word = ir.IntType(32)
        bits, half = builder.bitcast(args[0], word), ir.Constant(word, 16)
        odd = builder.and_(builder.lshr(bits, half), ir.Constant(word, 1))
        up = builder.add(bits, builder.add(odd, ir.Constant(word, 0x7FFF)))
        return builder.trunc(builder.lshr(up, half), ir.IntType(16))

    legal = value == types.float32 and like in {types.float32, types.uint16}
    return (like(value, like), lower) if legal else None


@intrinsic
def _larger(_context: Any, x: Any, y: Any) -> Any:
    """max(x, y) in the one form that the compiler turns into a reduction in lanes."""

    def lower(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        real = ir.FloatType()
        function = builder.module.declare_intrinsic(
            "llvm.maxnum", [real], ir.FunctionType(real, [real, real])
        )
        return builder.call(function, args, fastmath=("nnan", "nsz"))

    both = x == types.float32 and y == types.float32
    return (types.float32(x, y), lower) if both else None


def _layout(logits: Tensor, mask: Tensor | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The memory that logits span, where each row begins in it, and which rows count."""
    x = logits.detach()
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        x = x.contiguous()
    offsets = torch.zeros((), dtype=torch.long)
    for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        offsets = offsets[..., None] + torch.arange(size) * stride
    offsets = offsets.reshape(-1)
    span = int(offsets[-1]) + x.shape[-1] if offsets.numel() else 0
    counts = torch.ones(len(offsets), dtype=torch.bool) if mask is None else mask
    return _numbers(x.as_strided((span,), (1,))), offsets.numpy(), counts.numpy()


def _numbers(x: Tensor) -> np.ndarray:
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(np.uint16)
    return (x.view(torch.int16) if x.dtype == torch.float16 else x).numpy()


def _spread(kernel: Callable[..., None], logits: Tensor, *args: Any, pieces: int = 1) -> None:
    """Runs the kernel over all pieces of all rows, on as many threads as torch uses and the work is worth.

    Threads of our own rather than the compiler's: those may neither be entered from two Python
    threads at once nor survive a fork.
    """
    count = logits.shape[:-1].numel() * pieces
    threads = max(1, min(torch.get_num_threads(), count, logits.numel() // _SERIAL))
    shares = 1 if threads == 1 else min(count, threads * _SHARES)
    bounds = iter([*pairwise(count * i // shares for i in range(shares + 1))])

    def work() -> None:
        for begin, end in bounds:
            kernel(*args, begin, end)

    jobs = [_threads().submit(work) for _ in range(threads - 1)]
    work()
    for job in jobs:
        job.result()


def single_threaded(work: Callable[[T], R], shares: Sequence[T]) -> list[R]:
    """The work on each share, each in a thread of its own in which torch uses no other."""

    def alone(share: T) -> R:
        with torch.no_grad():
            return work(share)

    return list(_threads().map(alone, shares))


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads in each of which torch computes on that thread alone."""
    count, torchs = os.cpu_count() or 1, torch.get_num_threads()
    pool = ThreadPoolExecutor(count, thread_name_prefix="szilard", initializer=_compute_alone)
    # All at once, as what a thread says of itself torch takes for the default of threads to come.
    all_there = Barrier(count)
    list(pool.map(lambda _: all_there.wait(), range(count)))
    torch.set_num_threads(torchs)
    return pool


def _compute_alone() -> None:
    torch.get_num_threads()  # makes torch take the default once, before it is overwritten
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)
