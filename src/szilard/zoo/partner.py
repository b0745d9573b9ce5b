"""A small model of Gemma 3 270M's vocabulary, made on the spot: for methods that need a pair."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from szilard.zoo.cache import cached
from szilard.zoo.language import LanguageModel, load_language_model, tiny_language_model
from szilard.zoo.text import corpus

PARTNER = "gemma3-270m-partner"

_WIDTH = 128
_SETTINGS: dict[str, Any] = {
    "width": _WIDTH,
    "layers": 2,
    "steps": 450,
    "rows": 16,
    "tokens": 64,
    "lr": 3e-3,
    "sampled": (1024, 512),
    "seed": 0,
}


def gemma_partner() -> LanguageModel:
    """A model of 34 million parameters that shares Gemma 3 270M's tokens, and that tokenizer.

    Its embeddings are Gemma's, cut to their first 127 principal directions, with one coordinate that
    marks the tokens Moby-Dick holds; two blocks and the embeddings of those tokens are then trained on
    the novel for about a minute of one core. It writes words in a plausible order and no sense: a
    partner to try methods for two models with, not a model to use for itself.

    Returns:
        The model in evaluation mode, and Gemma's tokenizer. The first call makes the model and keeps
        170 MB in the cache.

    Raises:
        ImportError: the `models` extra is not installed.
        OSError: the novel is not in the cache and could not be fetched.
    """
    folder = cached(PARTNER, {**_SETTINGS, "torch": torch.__version__}, _build)
    return load_language_model(str(folder))


def _build(folder: Path) -> None:
    gemma, tokenizer = load_language_model()
    text = torch.tensor(tokenizer("\n\n".join(corpus()))["input_ids"])
    table = gemma.get_input_embeddings().weight.detach()
    partner = tiny_language_model(
        "llama",
        vocab=tokenizer,
        hidden=_WIDTH,
        layers=_SETTINGS["layers"],
        tied=True,
        positions=2048,
        seed=_SETTINGS["seed"],
    )
    seen = torch.zeros(len(table), dtype=torch.bool)
    seen[text] = True
    weight = partner.get_input_embeddings().weight
    weight.data.copy_(_principal(table, seen))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SETTINGS["seed"])
        _train(partner, text, seen)
    partner.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _principal(table: Tensor, seen: Tensor) -> Tensor:
    """The table in its principal directions, and in front whether a token is seen in training."""
    _, directions = torch.linalg.eigh((table.T @ table).double())
    reduced = table @ directions.flip(1)[:, : _WIDTH - 1].float()
    reduced *= 0.5 / reduced.std()
    mark = torch.where(seen, 1.0, -4.0)
    return torch.cat((mark[:, None], reduced), 1) / math.sqrt(_WIDTH)


def _train(model: Any, text: Tensor, seen: Tensor) -> None:
    """Next-token training on a softmax over the batch's tokens and a sample of the others.

    A sampled token stands for all those of its kind, seen in the text or not, that were not drawn:
    its logit rises by the logarithm of how many.
    """
    steps, rows, tokens = (_SETTINGS[name] for name in ("steps", "rows", "tokens"))
    table = model.get_input_embeddings().weight
    kinds = [torch.nonzero(seen)[:, 0], torch.nonzero(~seen)[:, 0]]
    weights = [
        kind.numel() / count for kind, count in zip(kinds, _SETTINGS["sampled"], strict=True)
    ]
    # Dense updates of the whole table would take most of the time: only the seen tokens' rows move.
    known = torch.nn.Parameter(table.data[kinds[0]].clone())
    place = torch.full((len(table),), -1)
    place[kinds[0]] = torch.arange(len(kinds[0]))
    others = [p for p in model.parameters() if p is not table]
    optimizer = torch.optim.AdamW([*others, known], lr=_SETTINGS["lr"], betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _SETTINGS["lr"], total_steps=steps)
    model.train()
    for _ in range(steps):
        starts = torch.randint(len(text) - tokens - 1, (rows, 1))
        batch = text[starts + torch.arange(tokens + 1)]
        hidden = model.model(inputs_embeds=known[place[batch[:, :-1]]]).last_hidden_state
        present, target = batch[:, 1:].unique(return_inverse=True)
        drawn = [
            kind[torch.randint(len(kind), (count,))]
            for kind, count in zip(kinds, _SETTINGS["sampled"], strict=True)
        ]
        logits = torch.cat(
            (
                hidden @ known[place[present]].T,
                (hidden @ known[place[drawn[0]]].T + math.log(weights[0])).masked_fill(
                    torch.isin(drawn[0], present), -torch.inf
                ),
                hidden @ table.data[drawn[1]].T + math.log(weights[1]),
            ),
            -1,
        )
        loss = cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*others, known], 1.0)
        optimizer.step()
        schedule.step()
    table.data[kinds[0]] = known.data
    model.eval()
