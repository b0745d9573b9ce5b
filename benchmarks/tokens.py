"""Token statistics from logits, and their gradient, against TRL, torch.distributions and the plain form.

Logits are Gaussian with standard deviation 3. *Targets and mask* adds the log-probability of a random
token and leaves out a random quarter of the rows, which the peers cannot. *Backward* is the gradient of
the sum of entropies and log-probabilities from statistics already computed, the graph kept; TRL's graph
holds the entropy alone. Its floor is a copy of the logits into fresh memory, because the gradient has to
be written somewhere. The peaks of memory of a backward pass include that gradient.

Twice the time of *sum* is out of reach on two AVX2 cores: exp2 by a polynomial of degree five and three
sums take ten cycles for eight logits, whatever their dtype (measured on blocks in the first-level cache),
0.19 ns a logit on two cores, while a sum takes 0.13 ns in float32 and 0.08 ns in bfloat16. Together
with the first pass for the maximum and with what of the reading is not hidden behind the arithmetic,
that is 2.1 to 2.8 times in float32 and 3.1 to 4.4 times in bfloat16, as one run or the other has it;
3 and 5 are what is asked for here. A polynomial of degree four would
gain an eighth and cost a factor of 40 in accuracy.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from trl.trainer.utils import entropy_from_logits

from harness import Case, Contender
from szilard.measures import token_statistics

SLACK = 2 << 20
"""Bytes that torch's allocator, row numbers and threads' stacks take whatever the logits' size."""


def entropy(logits: torch.Tensor) -> torch.Tensor:
    return token_statistics(logits).entropy


def masked(logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return token_statistics(logits, targets, mask=mask).entropy


def plain(logits: torch.Tensor) -> torch.Tensor:
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def plain_both(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    log_p = logits.float().log_softmax(-1)
    return log_p.gather(-1, targets[:, None])[:, 0] - (log_p.exp() * log_p).sum(-1)


def both(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    stats = token_statistics(logits, targets)
    assert stats.logprob is not None
    return stats.logprob + stats.entropy


def categorical(logits: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Categorical(logits=logits.float(), validate_args=False).entropy()


def backward(value: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor) -> Contender:
    leaf = logits.detach().requires_grad_()
    total = value(leaf).sum()
    return lambda: torch.autograd.grad(total, leaf, retain_graph=True)[0]


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs.float()).abs().max())


def counted_error(mask: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return error(ours[mask], theirs[mask])


def sample(rows: int, vocabulary: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(rows, vocabulary, generator=generator)).to(dtype)


def cases() -> Iterator[Case]:
    for rows, vocabulary in ((512, 131_072), (8_192, 32_000)):
        for dtype in (torch.float32, torch.bfloat16):
            yield from forward(rows, vocabulary, dtype)
    for dtype in (torch.float32, torch.bfloat16):
        yield gradient(512, 131_072, dtype)
    for vocabulary in (1_024, 4_096, 32_768, 131_072, 262_144):
        logits = sample((1 << 23) // vocabulary, vocabulary, torch.float32)
        yield Case(
            "tokens",
            f"{len(logits):,} x {vocabulary:,}, float32",
            partial(entropy, logits),
            {"TRL": partial(entropy_from_logits, logits), "log-softmax": partial(plain, logits)},
            error=error,
            tolerance=1e-3,
            limit=("sum", logits.sum),
            sweep=("vocabulary, 8.4 million logits", vocabulary),
        )


def forward(rows: int, vocabulary: int, dtype: torch.dtype) -> Iterator[Case]:
    logits = sample(rows, vocabulary, dtype)
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    mask = torch.rand(rows, generator=generator) < 0.75
    work = f"{rows:,} x {vocabulary:,}, {str(dtype).removeprefix('torch.')}"
    trl = {"TRL": partial(entropy_from_logits, logits)}
    # They take four times the logits' memory, and seconds each where that is a gigabyte.
    others = (
        {}
        if logits.numel() > 1 << 27
        else {
            "torch.distributions": partial(categorical, logits),
            "log-softmax": partial(plain, logits),
        }
    )
    for name, ours, peers, compare in (
        (work, partial(entropy, logits), trl | others, error),
        (
            f"{work}, targets and mask",
            partial(masked, logits, targets, mask),
            trl,
            partial(counted_error, mask),
        ),
    ):
        yield Case(
            "tokens",
            name,
            ours,
            peers,
            error=compare,
            # Sums of 131,072 float32 terms keep about four digits; TRL answers in bfloat16, whose
            # resolution at 7 nats is 0.03.
            tolerance=1e-3 if dtype == torch.float32 else 0.25,
            limit=("sum", logits.sum),
            # At 32,000 words TRL's blocks of 128 rows fit the last cache, at 131,072 they do not.
            faster_than={"TRL": 10 if vocabulary > 1 << 16 else 5},
            at_most_limit=3 if dtype == torch.float32 else 5,
            at_most_memory=0.01 * logits.nbytes,
        )


def gradient(rows: int, vocabulary: int, dtype: torch.dtype) -> Case:
    logits = sample(rows, vocabulary, dtype)
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    return Case(
        "tokens",
        f"{rows:,} x {vocabulary:,}, {str(dtype).removeprefix('torch.')}, backward",
        backward(partial(both, targets=targets), logits),
        {
            "TRL": backward(entropy_from_logits, logits),
            "log-softmax": backward(partial(plain_both, targets=targets), logits),
        },
        # Without the log-probability's gradient, TRL's differs by up to 1 at the targets.
        error=error,
        tolerance=1.01,
        limit=("copy", lambda: torch.empty_like(logits).copy_(logits)),
        at_most_memory=1.01 * logits.nbytes + SLACK,
    )
