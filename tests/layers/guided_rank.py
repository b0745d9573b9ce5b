"""One of two processes that train a guided model together; as a program, the second of them."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from transformers import GPT2Config, GPT2LMHeadModel

from szilard.layers import EntropyBand, convert_softmax_only, guide_entropy


def train(rank: int, store: str) -> list[list[Any]]:
    """Thresholds, temperatures and the sum of the last batch, for each way to look for gradients."""
    waiting = timedelta(seconds=120)
    distributed.init_process_group(
        "gloo", f"file://{store}", rank=rank, world_size=2, timeout=waiting
    )
    states: list[list[Any]] = []
    for unused in (False, True):
        torch.manual_seed(rank)
        config = GPT2Config(
            n_layer=2,
            n_head=2,
            n_embd=8,
            n_positions=16,
            vocab_size=23,
            bos_token_id=0,
            eos_token_id=0,
        )
        model = convert_softmax_only(GPT2LMHeadModel(config)).train()
        guide_entropy(model, EntropyBand(2, 2, coef=1.0))
        parallel: Any = torch.nn.parallel.DistributedDataParallel(
            model, find_unused_parameters=unused
        )
        optimizer = torch.optim.SGD(parallel.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            ids = torch.randint(23, (2, 12))
            out = parallel(ids, labels=ids)
            (out.loss + out.entropy_penalty).backward()
            optimizer.step()
        theta = model.entropy_band.theta.tolist()
        raw = model.transformer.h[1].attn.temperature.raw.tolist()
        states.append([theta, raw, float(ids.sum())])
    distributed.destroy_process_group()
    return states


if __name__ == "__main__":
    print(json.dumps(train(1, sys.argv[1])))
