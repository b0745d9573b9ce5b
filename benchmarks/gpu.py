"""Token statistics on a GPU, from logits and from the layer before them, in bfloat16.

Every answer is first compared with float64. *copy* moves as many bytes as the work has to: the
forward pass reads the logits once, the backward pass reads them and writes as many; 85 % of that
bandwidth is the target. TRL's `entropy_from_logits` gives the entropy, Liger-Kernel's selective
log-softmax the log-probability alone; Szilard gives both with varentropy and peak. In the linear case
TRL's `ChunkedLogProbFunction` runs as its trainers call it, 32,768 words a chunk. Device memory is
what a call adds to the allocator's peak, results included.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from harness import Case
from szilard.measures import linear_token_statistics, token_statistics

BATCH, TOKENS, VOCABULARY, WIDTH = 8, 1024, 151_936, 4096
CHUNK = 32_768
BANDWIDTH = 0.85
Answer = Mapping[str, Tensor]


def machine() -> dict[str, str]:
    """The device, its driver and the versions of who takes part."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    drivers = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    known = {
        "device": torch.cuda.get_device_name(),
        "driver": drivers[torch.cuda.current_device()],
        "cuda": str(torch.version.cuda),
    }
    for package in ("triton", "trl", "liger-kernel"):
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            known[package] = "absent"
    return known


def waited(run: Callable[[], Any]) -> Callable[[], Any]:
    """The call with the device's work done when it returns."""

    def call() -> Any:
        answer = run()
        torch.cuda.synchronize()
        return answer

    return call


def device_memory(run: Callable[[], Any]) -> str:
    """By how much a call, warmed up, lifts the allocator's peak."""
    waited(run)()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    waited(run)()
    return f"{(torch.cuda.max_memory_allocated() - before) / 2**20:,.0f} MiB"


def furthest(ours: Answer, theirs: Answer) -> float:
    """Largest difference of what both answer, over the largest value."""
    errors = []
    for name in ours.keys() & theirs.keys():
        x, y = ours[name].double(), theirs[name].double()
        errors.append(float((x - y).abs().max() / y.abs().max()))
    return max(errors)


def statistics(logits: Tensor, targets: Tensor) -> Answer:
    stats = token_statistics(logits, targets)
    assert stats.logprob is not None
    return {"logprob": stats.logprob, "entropy": stats.entropy, "varentropy": stats.varentropy}


def double(logits: Tensor, targets: Tensor) -> Answer:
    log_p = logits.double().log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1)
    return {
        "logprob": log_p.gather(-1, targets[..., None])[..., 0],
        "entropy": entropy,
        "varentropy": (p * (log_p + entropy[..., None]).square()).sum(-1),
    }


def trl_entropy(logits: Tensor, _: Tensor) -> Answer:
    from trl.trainer.utils import entropy_from_logits

    return {"entropy": entropy_from_logits(logits)}


def plain(logits: Tensor, targets: Tensor) -> Answer:
    log_p = logits.float().log_softmax(-1)
    return {
        "logprob": log_p.gather(-1, targets[..., None])[..., 0],
        "entropy": -(log_p.exp() * log_p).sum(-1),
    }


def liger(logits: Tensor, targets: Tensor) -> Answer:
    """Liger-Kernel reads the first L - 1 of L positions."""
    from liger_kernel.ops.grpo_loss import fused_selective_log_softmax

    return {"logprob": fused_selective_log_softmax(logits, targets, 1.0)}


def logits_of(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(*shape, dtype=torch.bfloat16, device="cuda", generator=generator).mul_(3)
    targets = torch.randint(shape[-1], shape[:-1], device="cuda", generator=generator)
    return logits, targets


def gradient(
    statistic: Callable[[Tensor, Tensor], Answer], logits: Tensor, targets: Tensor
) -> Callable[[], Answer]:
    """The backward pass alone, from the entropy, on a graph made now."""
    leaf = logits.detach().requires_grad_()
    entropy = statistic(leaf, targets)["entropy"]
    up = torch.ones_like(entropy)
    return lambda: {"gradient": torch.autograd.grad(entropy, leaf, up, retain_graph=True)[0]}


def against_float64() -> Case:
    logits, targets = logits_of(256, VOCABULARY)
    # From flat to nearly certain.
    logits *= torch.logspace(-3, 1, 256, device="cuda")[:, None]
    return Case(
        "gpu",
        f"agreement with float64, 256 x {VOCABULARY:,}",
        waited(partial(statistics, logits, targets)),
        {"float64": waited(partial(double, logits, targets))},
        error=furthest,
        tolerance=1e-5,
    )


def forward() -> Case:
    # Liger-Kernel leaves the last position of each sequence out, and so does everyone here.
    whole, _ = logits_of(BATCH, TOKENS + 1, VOCABULARY)
    logits = whole[:, :-1]
    targets = torch.randint(VOCABULARY, (BATCH, TOKENS), device="cuda")
    peers = {
        "TRL": waited(partial(trl_entropy, logits, targets)),
        "plain": waited(partial(plain, logits, targets)),
    }
    if machine()["liger-kernel"] != "absent":
        peers["Liger-Kernel"] = waited(partial(liger, whole, targets))
    half = whole.view(-1)[: logits.numel() // 2]
    return Case(
        "gpu",
        f"forward, {BATCH * TOKENS:,} x {VOCABULARY:,}",
        waited(partial(statistics, logits, targets)),
        peers,
        error=furthest,
        # TRL and the plain form sum 151,936 terms in float32.
        tolerance=1e-3,
        # Half the bytes read and as many written are the bytes of one read.
        limit=("copy", waited(partial(torch.empty_like(half).copy_, half))),
        at_most_limit=1 / BANDWIDTH,
        faster_than={"TRL": 1, "plain": 5},
    )


def backward() -> Case:
    logits, targets = logits_of(BATCH * TOKENS, VOCABULARY)
    return Case(
        "gpu",
        f"backward, {BATCH * TOKENS:,} x {VOCABULARY:,}",
        waited(gradient(statistics, logits, targets)),
        {
            "TRL": waited(gradient(trl_entropy, logits, targets)),
            "plain": waited(gradient(plain, logits, targets)),
        },
        error=furthest,
        tolerance=1e-2,  # of entries below 1, rounded to bfloat16
        limit=("copy", waited(partial(torch.empty_like(logits).copy_, logits))),
        at_most_limit=1 / BANDWIDTH,
        faster_than={"plain": 3},
    )


def decoding(rows: int) -> Case:
    logits, targets = logits_of(rows, VOCABULARY)
    return Case(
        "gpu",
        f"forward, {rows} x {VOCABULARY:,}",
        waited(partial(statistics, logits, targets)),
        {
            "TRL": waited(partial(trl_entropy, logits, targets)),
            "plain": waited(partial(plain, logits, targets)),
        },
        error=furthest,
        tolerance=1e-3,
        sweep=("rows", rows),
    )


def linear(backwards: bool) -> Case:
    from trl.kernels import ChunkedLogProbFunction

    generator = torch.Generator("cuda").manual_seed(0)
    normal = partial(torch.randn, dtype=torch.bfloat16, device="cuda", generator=generator)
    hidden = normal(BATCH * TOKENS, WIDTH).requires_grad_(backwards)
    # Logits of standard deviation 3.
    weight = normal(VOCABULARY, WIDTH).mul_(3 / WIDTH**0.5).requires_grad_(backwards)
    targets = torch.randint(VOCABULARY, (len(hidden),), device="cuda", generator=generator)

    def answer(logprob: Tensor, entropy: Tensor) -> Answer:
        if not backwards:
            return {"logprob": logprob, "entropy": entropy}
        loss = (entropy - logprob).mean()
        to_hidden, to_weight = torch.autograd.grad(loss, (hidden, weight))
        return {"hidden": to_hidden, "weight": to_weight}

    def ours() -> Answer:
        stats = linear_token_statistics(hidden, weight, targets)
        assert stats.logprob is not None
        return answer(stats.logprob, stats.entropy)

    def trl() -> Answer:
        apply = ChunkedLogProbFunction.apply
        result = apply(hidden, weight, None, targets, 1.0, CHUNK, None, 1.0, ("entropy",))
        return answer(*result[:2])

    def product() -> None:
        """As many products as the passes hold, in pieces that both have memory for."""
        for _ in range(4 if backwards else 1):
            for words in weight.detach().split(CHUNK):
                hidden.detach() @ words.T

    memory = f"szilard {device_memory(ours)}, TRL {device_memory(trl)}"
    return Case(
        "gpu",
        f"linear, {'forward and backward' if backwards else 'forward'}, "
        f"{len(hidden):,} x {WIDTH:,} by {VOCABULARY:,}; device memory: {memory}",
        waited(ours),
        {"TRL": waited(trl)},
        error=furthest,
        # TRL rounds the logits to bfloat16, a 256th of values up to 16.
        tolerance=5e-2,
        limit=("products", waited(product)),
        faster_than={"TRL": 1},
    )


def cases() -> Iterator[Case]:
    if not torch.cuda.is_available():
        print("gpu: skipped, for torch sees no CUDA device")
        return
    yield against_float64()
    yield forward()
    yield backward()
    for rows in (1, 8, 64):
        yield decoding(rows)
    for backwards in (False, True):
        yield linear(backwards)
