"""Entropies of attention and of windows of a sequence against what one writes in torch.

Attention from query and key: the plain form scores one head at a time, softmax and -sum p log p; the
form that scores all heads at once is there where it fits. The floor is the product of queries and
keys alone, without a look at its result. Attention from maps: the floor is a sum of the maps. Token
entropy in windows has two plain forms: every window sorted and its runs counted, and the one that
does not grow with the window, where one sort of the sequence tells how often the token that comes and
the token that goes stand in each window, and cumulative sums do the rest.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from harness import Case
from szilard.measures import (
    attention_entropy,
    attention_entropy_from_qk,
    sliding_window_mean,
    sliding_window_token_entropy,
    token_statistics,
)

WIDTH = 64
MEMORY = 24 * 2**20  # a few blocks a thread and the result, whatever heads x queries x keys


def entropy_of(weights: Tensor) -> Tensor:
    return torch.special.entr(weights).sum(-1)


def by_head(query: Tensor, key: Tensor, causal: bool = False) -> Tensor:
    rows = []
    for q, k in zip(query, key, strict=True):
        scores = (q @ k.T) / WIDTH**0.5
        if causal:
            scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        rows.append(entropy_of(scores.softmax(-1)))
    return torch.stack(rows)


def at_once(query: Tensor, key: Tensor) -> Tensor:
    return entropy_of(((query @ key.mT) / WIDTH**0.5).softmax(-1))


def products(query: Tensor, key: Tensor, out: Tensor) -> None:
    for q, k in zip(query, key, strict=True):
        torch.mm(q, k.T, out=out)


def from_log_softmax(query: Tensor, key: Tensor) -> Tensor:
    rows = []
    for q, k in zip(query, key, strict=True):
        log_p = ((q @ k.T) / WIDTH**0.5).log_softmax(-1)
        rows.append(-(log_p.exp() * log_p).sum(-1))
    return torch.stack(rows)


def gradients(entropy: Callable[[Tensor, Tensor], Tensor], query: Tensor, key: Tensor) -> Tensor:
    leaves = query.detach().requires_grad_(), key.detach().requires_grad_()
    return torch.cat(torch.autograd.grad(entropy(*leaves).sum(), leaves))


def every_window_sorted(tokens: Tensor, window: int) -> Tensor:
    padded = torch.nn.functional.pad(tokens, (window - 1, 0), value=-1)
    blocks = []
    for block in padded.unfold(-1, window, 1).split(max(1, (1 << 22) // window), 1):
        ordered = block.sort(-1).values
        new = torch.ones_like(ordered, dtype=torch.bool)
        new[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
        counts = torch.zeros(ordered.shape).scatter_add_(
            -1, new.cumsum(-1) - 1, (ordered >= 0).float()
        )
        blocks.append(entropy_of(counts / counts.sum(-1, keepdim=True)))
    return torch.cat(blocks, 1)


def one_sort(tokens: Tensor, window: int) -> Tensor:
    length = tokens.shape[-1]
    at = torch.arange(length)
    order = (tokens * length + at).sort(-1)
    place = torch.empty_like(order.indices).scatter_(-1, order.indices, at.expand_as(tokens))
    first = torch.searchsorted(order.values, tokens * length + (at - window + 1).clamp(min=0))
    last = torch.searchsorted(
        order.values, tokens * length + (at + window).clamp(max=length)
    )  # of those before the token's own removal
    term = torch.arange(window + 1, dtype=torch.float64)
    term = torch.xlogy(term, term)
    come = place - first + 1
    go = last - place
    added = (term[come] - term[come - 1]).cumsum(-1)
    removed = (term[go] - term[go - 1]).cumsum(-1)
    total = (at + 1).clamp(max=window)
    added[:, window:] -= removed[:, :-window]
    return (total.double().log() - added / total).float()


def entropy_then_mean(logits: Tensor, window: int) -> Tensor:
    return sliding_window_mean(token_statistics(logits).entropy, window)


def plain_entropy_then_mean(logits: Tensor, window: int) -> Tensor:
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    padded = torch.nn.functional.pad(entropy, (window - 1, 0))
    counts = torch.arange(1, len(entropy) + 1).clamp(max=window)
    return padded.unfold(-1, window, 1).sum(-1) / counts


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def case(
    work: str,
    ours: Callable[[], Tensor],
    peers: dict[str, Callable[[], Tensor]],
    limit: tuple[str, Callable[[], object]] | None = None,
    memory: float | None = None,
    sweep: tuple[str, float] | None = None,
    ratio: float | None = 3,
) -> Case:
    # Sums of 4,096 float32 terms, theirs and ours.
    return Case(
        "attention",
        work,
        ours,
        peers,
        difference,
        1e-4,
        limit,
        {} if ratio is None else {"plain torch": ratio},
        at_most_memory=memory,
        sweep=sweep,
    )


def qk(heads: int, length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    return torch.randn(2, heads, length, WIDTH, generator=generator).unbind()


def cases() -> Iterator[Case]:
    for length in (512, 1024, 2048):
        query, key = qk(8, length)
        yield case(
            f"query and key, 8 heads x {length:,} x {length:,}",
            partial(attention_entropy_from_qk, query, key),
            {
                "plain torch": partial(by_head, query, key),
                "all heads at once": partial(at_once, query, key),
            },
            ("q @ k.T", partial(products, query, key, torch.empty(length, length))),
            memory=MEMORY,
            sweep=("queries and keys", length),
            ratio=None,  # a few milliseconds, of which starting threads is a part
        )
    query, key = qk(64, 4096)
    out = torch.empty(4096, 4096)
    yield case(
        "query and key, 64 heads x 4,096 x 4,096",
        partial(attention_entropy_from_qk, query, key),
        {"plain torch": partial(by_head, query, key)},
        ("q @ k.T", partial(products, query, key, out)),
        memory=MEMORY,
    )
    query, key = query[:8].clone(), key[:8].clone()
    yield case(
        "query and key, 8 heads x 4,096 x 4,096",
        partial(attention_entropy_from_qk, query, key),
        {"plain torch": partial(by_head, query, key)},
        ("q @ k.T", partial(products, query, key, out)),
        memory=MEMORY,
        sweep=("queries and keys", 4096),
    )
    yield case(
        "query and key, causal, 8 heads x 4,096 x 4,096",
        partial(attention_entropy_from_qk, query, key, causal=True),
        {"plain torch": partial(by_head, query, key, causal=True)},
        ("q @ k.T", partial(products, query, key, out)),
        memory=MEMORY,
    )
    query, key = query[:2].clone(), key[:2].clone()
    yield case(
        "query and key, forward and backward, 2 heads x 4,096 x 4,096",
        partial(gradients, attention_entropy_from_qk, query, key),
        {"plain torch": partial(gradients, from_log_softmax, query, key)},
        ("q @ k.T", partial(products, query, key, out)),
        memory=MEMORY,
        ratio=1.5,  # three products a score in both, and ours are no faster than theirs
    )
    for dtype in (torch.float32, torch.bfloat16):
        generator = torch.Generator().manual_seed(0)
        weights = (2 * torch.randn(8, 4096, 4096, generator=generator)).softmax(-1).to(dtype)
        yield case(
            f"maps, 8 x 4,096 x 4,096, {str(dtype).removeprefix('torch.')}",
            partial(attention_entropy, weights),
            {"plain torch": lambda weights=weights: entropy_of(weights.float())},
            ("sum", weights.sum),
            memory=MEMORY,
        )
        del weights
    generator = torch.Generator().manual_seed(0)
    # A few tokens often and most of them rarely, as in text.
    tokens = (torch.rand(8, 32_768, generator=generator).double() ** 6 * 151_936).long()
    yield case(
        "tokens, 8 x 32,768, windows of 64",
        partial(sliding_window_token_entropy, tokens, 64),
        {
            "plain torch": partial(every_window_sorted, tokens, 64),
            "one sort": partial(one_sort, tokens, 64),
        },
    )
    yield case(
        "tokens, 8 x 32,768, windows of 1,024",
        partial(sliding_window_token_entropy, tokens, 1024),
        {"plain torch": partial(one_sort, tokens, 1024)},
    )
    logits = 3 * torch.randn(32_768, 1024, generator=generator)
    yield case(
        "logits to mean entropy, 32,768 x 1,024, windows of 64",
        partial(entropy_then_mean, logits, 64),
        {"plain torch": partial(plain_entropy_then_mean, logits, 64)},
        ("sum", logits.sum),
        memory=MEMORY,
    )
