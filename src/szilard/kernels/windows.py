"""Entropy of the tokens in every window of a sequence, by counts that change one token at a step.

With n_c occurrences of token c among the N tokens of a window, N H = N log N - sum_c n_c log n_c. The
terms n log n come from a table of 64-bit integers, n log n in units of 2^-bits nats, so that adding
and removing tokens is exact: a window's entropy depends on its content alone, however far the
window has moved. At 1,024 tokens a unit is 2e-15 nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from szilard.kernels.compiled import _compiled

_RANGE = 1 << 20  # span of token ids that a table of counts may have whatever the text's length
_SERIAL = 1 << 15  # steps below which another thread costs more than it saves
_BLOCK = 1 << 22  # tokens of windows the torch path holds at once


def window_entropies(tokens: Tensor, mask: Tensor | None, window: int, ahead: int) -> Tensor:
    """Nats of the counted tokens at t + ahead - window + 1 .. t + ahead, for every t.

    Args:
        tokens: integer, (rows, tokens).
        mask: boolean, of the same shape; True counts.
        window: at least 1; it is cut at the ends of a row.
        ahead: how many positions after t a window goes on.

    Returns:
        (rows, tokens) float64 (float32 where the device has nothing better); 0 for a window
        without counted tokens.
    """
    # Only what of a window can reach into the row.
    beyond = max(0, ahead - tokens.shape[-1] + 1)
    ahead, window = ahead - beyond, min(window - beyond, tokens.shape[-1] + ahead - beyond)
    ids, distinct = _identities(tokens, mask)
    table, unit = _n_log_n(min(window, tokens.shape[-1]))
    if tokens.device.type == "cpu":
        out = np.empty(tokens.shape)
        arguments = (ids.numpy(), distinct, window, ahead, table.numpy(), unit, out)
        _spread(_entropies, tokens.numel(), *arguments)
        return torch.from_numpy(out)
    return _entropies_torch(ids, distinct, window, ahead, table.to(tokens.device), unit)


def _identities(tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, int]:
    """Ids from 0 on, -1 for a token that does not count; and how many there are at most."""
    counted = tokens if mask is None else tokens[mask]
    if counted.numel() == 0:
        return torch.full(tokens.shape, -1, device=tokens.device), 0
    low, high = int(counted.min()), int(counted.max())
    if high - low < max(_RANGE, 2 * tokens.numel()):
        ids, distinct = tokens.long() - low, high - low + 1
    else:
        values, ids = tokens.unique(return_inverse=True)
        distinct = len(values)
    return ids if mask is None else torch.where(mask, ids, -1), distinct


def _n_log_n(largest: int) -> tuple[Tensor, float]:
    """Table of n log n for n = 0 .. largest, as integers, and the unit they are in."""
    n = torch.arange(largest + 1, dtype=torch.float64)
    exact = torch.xlogy(n, n)
    bits = 62 - math.ceil(math.log2(float(exact[-1]) + 1))
    return (exact * 2.0**bits).round().long(), 2.0**-bits


@_compiled()
def _entropies(
    ids: Any,
    distinct: int,
    window: int,
    ahead: int,
    table: Any,
    unit: float,
    out: Any,
    begin: int,
    end: int,
) -> None:
    """Steps begin..end of all rows one after another."""
    length = ids.shape[1]
    counts = np.zeros(distinct, np.int32)
    while begin < end:
        row, first = begin // length, begin % length
        last = min(length, first + end - begin)
        text = ids[row]
        # The window of position t holds the tokens left .. right - 1.
        left = right = min(length, max(0, first + ahead + 1 - window))
        total, terms = 0, 0
        for t in range(first, last):
            while right < min(length, t + ahead + 1):
                c = text[right]
                right += 1
                if c >= 0:
                    total += 1
                    terms += table[counts[c] + 1] - table[counts[c]]
                    counts[c] += 1
            while left < t + ahead + 1 - window:
                c = text[left]
                left += 1
                if c >= 0:
                    total -= 1
                    counts[c] -= 1
                    terms -= table[counts[c] + 1] - table[counts[c]]
            out[row, t] = (table[total] - terms) * unit / max(total, 1)
        for i in range(left, right):
            if text[i] >= 0:
                counts[text[i]] = 0
        begin += last - first


def _entropies_torch(
    ids: Tensor, distinct: int, window: int, ahead: int, table: Tensor, unit: float
) -> Tensor:
    """Blocks of windows, sorted: the r-th occurrence of a token adds r log r - (r-1) log (r-1)."""
    ids = torch.where(ids < 0, distinct, ids)  # what does not count is sorted last
    padded = torch.nn.functional.pad(ids, (window - 1 - ahead, ahead), value=distinct)
    steps = table.diff(prepend=table[:1])
    place = torch.arange(window, device=ids.device)
    blocks = []
    for block in padded.unfold(-1, window, 1).split(max(1, _BLOCK // (window * len(ids))), 1):
        in_order = block.sort(-1).values
        starts = torch.ones_like(in_order, dtype=torch.bool)
        starts[..., 1:] = in_order.diff() != 0
        rank = place - torch.where(starts, place, 0).cummax(-1).values + 1
        counted = in_order < distinct
        terms = steps[torch.where(counted, rank, 0)].sum(-1)
        total = counted.sum(-1)
        acc = torch.float32 if ids.device.type == "mps" else torch.float64
        blocks.append((table[total] - terms).to(acc) * unit / total.clamp(min=1))
    return torch.cat(blocks, 1)


def _spread(kernel: Callable[..., None], steps: int, *args: Any) -> None:
    threads = max(1, min(torch.get_num_threads(), steps // _SERIAL))
    bounds = [steps * i // threads for i in range(threads + 1)]
    if threads == 1:
        kernel(*args, 0, steps)
        return
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(kernel, *args, begin, end) for begin, end in pairwise(bounds)]
        for job in jobs:
            job.result()
