"""Token statistics from logits against TRL, torch.distributions and the plain form."""

from collections.abc import Iterator
from functools import partial

import torch
from trl.trainer.utils import entropy_from_logits

from harness import Case
from szilard.measures import token_statistics


def entropy(logits: torch.Tensor) -> torch.Tensor:
    return token_statistics(logits).entropy


def plain(logits: torch.Tensor) -> torch.Tensor:
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def categorical(logits: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Categorical(logits=logits.float(), validate_args=False).entropy()


def cases() -> Iterator[Case]:
    for rows, vocabulary in ((512, 131_072), (8_192, 32_000)):
        for dtype in (torch.float32, torch.bfloat16):
            generator = torch.Generator().manual_seed(0)
            logits = (3 * torch.randn(rows, vocabulary, generator=generator)).to(dtype)
            yield Case(
                "tokens",
                f"{rows:,} x {vocabulary:,}, {str(dtype).removeprefix('torch.')}",
                partial(entropy, logits),
                {
                    "TRL": partial(entropy_from_logits, logits),
                    "torch.distributions": partial(categorical, logits),
                    "log-softmax": partial(plain, logits),
                },
                error=lambda ours, theirs: float((ours - theirs.float()).abs().max()),
                # Sums of 131,072 float32 terms keep about four digits; TRL answers in
                # bfloat16, whose resolution at 7 nats is 0.03.
                tolerance=1e-3 if dtype == torch.float32 else 0.25,
                limit=("sum", logits.sum),
                faster_than={"TRL": 10},
                at_most_limit=2,
            )
