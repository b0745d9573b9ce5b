"""The typical-sampling processor against transformers' own."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from transformers import TypicalLogitsWarper

from harness import Case
from szilard.decoding import TypicalLogitsProcessor

VOCABULARY = 262_144


def cases() -> Iterator[Case]:
    for rows in (1, 8, 64):
        for mass in (0.2, 0.95):
            yield case(rows, VOCABULARY, mass)
    for vocabulary in (4_096, 16_384, 65_536, VOCABULARY, 1_048_576):
        yield case(4, vocabulary, 0.95, sweep=("vocabulary (4 rows)", vocabulary))


def case(rows: int, vocabulary: int, mass: float, **more: Any) -> Case:
    # Spread of a real model's logits: a few nats of entropy over a large vocabulary.
    scores = 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(rows))
    ids = torch.zeros(rows, 1, dtype=torch.long)
    ours, theirs = TypicalLogitsProcessor(mass), TypicalLogitsWarper(mass)
    return Case(
        "typical",
        f"{rows} x {vocabulary:,}, mass {mass}",
        partial(ours, ids, scores),
        {"transformers": partial(theirs, ids, scores)},
        error=partial(disputed_mass, scores.softmax(-1)),
        # The peer's running float32 sum over the vocabulary is up to 1e-4 off, so that it
        # sometimes stops short of the mass asked for.
        tolerance=5e-4,
        limit=("clone", scores.clone),
        faster_than={"transformers": 5} if vocabulary == VOCABULARY else {},
        **more,
    )


def disputed_mass(probs: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest probability of a row's tokens that only one of the two keeps."""
    return float((probs * (ours.isfinite() != theirs.isfinite())).sum(-1).max())
