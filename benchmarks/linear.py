"""Token statistics of a language-model head against TRL's chunked function and the plain form.

Log-probability, entropy, varentropy and peak of softmax(hidden @ weight.T), forward and backward, in
float32. TRL's `ChunkedLogProbFunction` runs as its trainers call it (32,768 words a chunk, entropy
asked for); the plain form makes all logits and their log-softmax. *product* is `hidden @ weight.T`
alone, written to memory that is already there: the work no method can avoid. The backward pass is
timed alone, on a graph made before, with gradients to the log-probability and the entropy; it makes
the logits again, so that it is three such products. *memory* counts results, which are as large as
hidden and weight in the backward pass. With BENCH=full in the environment every layer meets 2,048
tokens; else all but one meet 64 to 256, as the table says, and the widest goes forward only. The
plain form takes part in forward passes of up to 131,072 words.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction

from harness import Case
from szilard.measures import linear_token_statistics

CHUNK = 32_768
SPARE = 64 << 20
WHOLE = 131_072
"""Words up to which the plain form takes part: it holds several copies of all logits."""


def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    stats = linear_token_statistics(hidden, weight, targets)
    assert stats.logprob is not None
    return stats.logprob, stats.entropy


def trl(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    apply = ChunkedLogProbFunction.apply
    return apply(hidden, weight, None, targets, 1.0, CHUNK, None, 1.0, ("entropy",))[:2]


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    log_p = (hidden @ weight.T).log_softmax(-1)
    return log_p.gather(-1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def furthest(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def inputs(tokens: int, width: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator)
    # Logits of standard deviation 3: about 8 of the 12.5 nats of a uniform choice.
    weight = torch.randn(vocabulary, width, generator=generator).mul_(3 / width**0.5)
    return hidden, weight, torch.randint(vocabulary, (tokens,), generator=generator)


def forward(
    tokens: int, width: int, vocabulary: int, sweep: tuple[str, float] | None = None
) -> Case:
    hidden, weight, _ = arguments = inputs(tokens, width, vocabulary)
    peers = {"TRL": partial(trl, *arguments)}
    if vocabulary <= WHOLE:
        peers["plain"] = partial(plain, *arguments)
    return Case(
        "linear",
        f"forward, {tokens:,} x {width:,} by {vocabulary:,}",
        partial(ours, *arguments),
        peers,
        error=furthest,
        # Peers sum up to 262,144 float32 terms one after the other in lanes.
        tolerance=1e-3,
        limit=(
            "product",
            partial(torch.mm, hidden, weight.T, out=torch.empty(tokens, vocabulary)),
        ),
        at_most_limit=None if sweep else 1.15,
        at_most_memory=SPARE,
        sweep=sweep,
    )


def backward(tokens: int, width: int, vocabulary: int) -> Case:
    hidden, weight, targets = inputs(tokens, width, vocabulary)
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    generator = torch.Generator().manual_seed(1)
    upstream = tuple(torch.randn(tokens, generator=generator) for _ in range(2))

    def gradient(of: tuple[Tensor, Tensor]) -> partial[tuple[Tensor, ...]]:
        return partial(torch.autograd.grad, of, leaves, upstream, retain_graph=True)

    return Case(
        "linear",
        f"backward, {tokens:,} x {width:,} by {vocabulary:,}",
        gradient(ours(hidden, weight, targets)),
        {"TRL": gradient(trl(hidden, weight, targets))},
        error=furthest,
        # Gradients of up to some ten units, sums of up to 262,144 float32 products.
        tolerance=1e-3,
        faster_than={"TRL": 1 / 1.3},
        at_most_memory=4 * (hidden.numel() + weight.numel()) + SPARE,
    )


def cases() -> Iterator[Case]:
    full = os.environ.get("BENCH") == "full"
    sizes = [
        (2_048, 640, 32_000),
        (2_048 if full else 256, 2_048, 32_000),
        (2_048 if full else 128, 640, 262_144),
        (2_048 if full else 64, 2_048, 262_144),
    ]
    for size in sizes:
        yield forward(*size)
        if full or size is not sizes[-1]:
            yield backward(*size)
    for vocabulary in (4_096, 16_384, 65_536):
        yield forward(512, 256, vocabulary, sweep=("vocabulary", vocabulary))
