"""The typical-sampling processor against transformers' own."""

from collections.abc import Iterator
from functools import partial

import torch
from transformers import TypicalLogitsWarper

from harness import Case
from szilard.decoding import TypicalLogitsProcessor

VOCABULARY = 262_144


def cases() -> Iterator[Case]:
    for rows in (1, 8, 64):
        generator = torch.Generator().manual_seed(rows)
        # Spread of a real model's logits: a few nats of entropy over a large vocabulary.
        scores = 3 * torch.randn(rows, VOCABULARY, generator=generator)
        ids = torch.zeros(rows, 1, dtype=torch.long)
        for mass in (0.2, 0.95):
            ours, theirs = TypicalLogitsProcessor(mass), TypicalLogitsWarper(mass)
            yield Case(
                "typical",
                f"{rows} x {VOCABULARY:,}, mass {mass}",
                partial(ours, ids, scores),
                {"transformers": partial(theirs, ids, scores)},
                error=partial(disputed_mass, scores.softmax(-1)),
                # The peer's running float32 sum over 262,144 tokens is up to 1e-4 off, so that it
                # sometimes stops short of the mass asked for.
                tolerance=5e-4,
                limit=("clone", scores.clone),
                faster_than={"transformers": 5},
            )


def disputed_mass(probs: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest probability of a row's tokens that only one of the two keeps."""
    return float((probs * (ours.isfinite() != theirs.isfinite())).sum(-1).max())
