"""How `szilard generate` writes with each method: a function a method, from a request to a text."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch

from szilard.cli.console import UserError
from szilard.decoding.reading import check_prompt
from szilard.decoding.trace import EntropyRecorder, TokenTrace

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer


@dataclass(frozen=True)
class Request:
    """What is to be written, and by whom."""

    prompt: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    temperature: float | None
    """None picks the likeliest token each time."""
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    streamer: BaseStreamer | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The prompt's ids and mask, checked."""
        encoded = self.tokenizer(self.prompt, return_tensors="pt").to(self.model.device)
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        check_prompt(self.model, ids, mask, self.max_new_tokens)
        return {"input_ids": ids, "attention_mask": mask}

    @property
    def generation(self) -> dict[str, Any]:
        """What every method hands to `generate`."""
        pad = self.tokenizer.pad_token_id
        arguments: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.temperature is not None,
            "pad_token_id": self.tokenizer.eos_token_id if pad is None else pad,
            "streamer": self.streamer,
        }
        if self.temperature is not None:
            # The model's own top_k and top_p would hide what the method does.
            arguments |= {"temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        return arguments

    def make(self, factory: Callable[..., Any], *fixed: Any) -> Any:
        """The method's object, from `--set`.

        Raises:
            UserError: a setting the method does not have, or a value it refuses.
        """
        names = list(inspect.signature(factory).parameters)[len(fixed) :]
        for name in self.settings:
            if name not in names:
                near = get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(names)}"
                raise UserError(f"--set {name}: the method has no such setting; {hint}")
        return factory(*fixed, **self.settings)


@dataclass(frozen=True)
class Written:
    """The text, what happened at each of its tokens, and figures about the whole."""

    trace: TokenTrace
    facts: Mapping[str, str] = field(default_factory=dict)


def plain(request: Request) -> Written:
    """The model as it is."""
    if request.settings:
        raise UserError("--set: plain decoding has no settings")
    return _with_processors(request)


def typical_sampling(request: Request) -> Written:
    """Locally typical sampling."""
    from szilard.decoding import TypicalLogitsProcessor

    if request.temperature is None:
        raise UserError("--greedy: typical sampling draws at random; leave it out")
    kept = _Kept()
    written = _with_processors(request, request.make(TypicalLogitsProcessor), kept)
    events = {"tokens kept": kept.counts}
    mean = sum(kept.counts) / max(1, len(kept.counts))
    trace = TokenTrace(written.trace.token_ids, written.trace.entropy, events)
    return Written(trace, {"tokens kept on average": f"{mean:.1f}"})


def entropy_adaptive_decoding(request: Request) -> Written:
    """Entropy adaptive decoding; the small model is a setting."""
    from szilard.decoding.entropy_adaptive import Commit, EntropyAdaptiveDecoder, ModelName

    def make(
        small: str = "gemma3-270m-partner",
        tau_bits: float = 6.0,
        window: int = 5,
        min_dwell: int = 5,
        start: ModelName = "small",
        commit: Commit = "after",
    ) -> EntropyAdaptiveDecoder:
        partner, tokenizer = _partner(small)
        return EntropyAdaptiveDecoder(
            partner.to(request.model.device),
            request.model,
            tau_bits,
            window,
            min_dwell,
            start,
            commit,
            tokenizers=(tokenizer, request.tokenizer),
        )

    decoder = request.make(make)
    torch.manual_seed(request.seed)
    out = decoder.generate(**request.inputs, **request.generation)
    ids = out.sequences[0, -len(out.writers()) :]
    bits = [round(value, 2) for value in out.rolling_bits[0].tolist()]
    events = {"model": out.writers(), "rolling bits": bits}
    cost = out.cost
    facts = {
        "large model": f"{out.large_share:.0%} of the tokens, {len(out.switches())} switches",
        "saved": f"{1 - cost.paper:.0%} by the paper's account, {cost.flops_saved:.0%} of the FLOPs, "
        f"{1 - cost.relative_traffic:.0%} of the weight traffic",
        "seconds": f"{cost.seconds:.1f}",
    }
    return Written(TokenTrace(ids.cpu(), out.entropy_bits[0] * math.log(2), events), facts)


def _partner(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The small model of a pair, by its name or folder."""
    try:
        from szilard.zoo.language import load_language_model
        from szilard.zoo.partner import PARTNER, gemma_partner

        return gemma_partner() if name == PARTNER else load_language_model(name)
    except (ValueError, ImportError, OSError) as error:
        raise UserError(f"--set small={name}: {error}") from None


def uscd(request: Request) -> Written:
    """USCD; the lame prompt is a setting, by default the prompt without its worked examples."""
    from szilard.decoding import USCDLogitsProcessor, strip_examples

    def make(
        lame: str | None = None,
        alpha: float = 0.7,
        eta: float = 1 / 3,
        collision: float = 0.8,
        theta: float | None = None,
        language: str = "python",
    ) -> tuple[str, USCDLogitsProcessor]:
        text = strip_examples(request.prompt, language) if lame is None else str(lame)
        encoded = request.tokenizer(text, return_tensors="pt").to(request.model.device)
        width = request.model.config.get_text_config(decoder=True).vocab_size
        return text, USCDLogitsProcessor(
            request.model,
            encoded["input_ids"],
            encoded["attention_mask"],
            alpha,
            eta,
            collision,
            theta,
            # Read at every step, the lame branch tells how far apart the prompts are everywhere.
            lazy=False,
            vocabulary=min(len(request.tokenizer), width),
        )

    text, rule = request.make(make)
    written = _with_processors(request, rule)
    record = rule.record
    gate = record.gate[0].tolist()
    events = {
        "contrast": gate,
        "collision": [round(value, 4) for value in record.collision[0].tolist()],
        "divergence (nats)": [round(value, 5) for value in record.divergence[0].tolist()],
    }
    fewer = len(request.prompt) - len(text)
    facts = {
        "lame prompt": "the prompt itself: no worked example was found in it, so that nothing is "
        "contrasted; give another with --set lame=..."
        if text == request.prompt
        else f"{abs(fewer)} characters {'shorter' if fewer > 0 else 'longer'} than the prompt",
        "contrasted": f"{sum(gate)} of {len(gate)} tokens",
        "divergence on average": f"{record.divergence.mean():.4f} nats",
    }
    return Written(TokenTrace(written.trace.token_ids, written.trace.entropy, events), facts)


def diffadapt(request: Request) -> Written:
    """DiffAdapt; the trained probe's file is a setting."""
    from szilard.decoding import DiffAdapt, DifficultyProbe

    def make(
        probe: str,
        fallback_confidence: float | None = None,
        layout: str = "{question}\n{strategy}\n",
    ) -> DiffAdapt:
        return DiffAdapt(
            request.model,
            request.tokenizer,
            DifficultyProbe.load(probe),
            max_new_tokens=request.max_new_tokens,
            fallback_confidence=fallback_confidence,
            layout=layout,
        )

    if "probe" not in request.settings:
        raise UserError(
            "--set probe=FILE.safetensors: diffadapt needs a probe trained on this model's own "
            "replies; make one with DiffAdapt(model, tokenizer): data = collect(questions, checker), "
            "fit(data), probe.save(FILE)"
        )
    method = request.make(make)
    torch.manual_seed(request.seed)
    reply = method.generate([request.prompt], **request.generation)[0]
    facts = {
        "strategy": reply.strategy,
        "probabilities": ", ".join(f"{name} {p:.2f}" for name, p in reply.probs.items()),
        "tokens": f"{reply.n_tokens} of {request.max_new_tokens}"
        + (", where its budget ended" if reply.truncated else ""),
    }
    return Written(reply.trace, facts)


def reasoning_utility(request: Request) -> Written:
    """Stops a chain of thought when the model is certain of its answer or gets no further."""
    from szilard.decoding import UtilityStoppingCriteria

    mask = request.inputs["attention_mask"]
    stop = request.make(UtilityStoppingCriteria, request.model, request.tokenizer, mask)
    written = _with_processors(request, stopping_criteria=[stop])
    tokens = len(written.trace.token_ids)
    entropy, ends, stopped = stop.entropy[0], stop.steps_at[0], stop.stopped[0]
    events = {
        "answer entropy (nats)": [
            round(entropy[sum(end <= t for end in ends)], 4) for t in range(1, tokens + 1)
        ],
        "step ends": [t in ends for t in range(1, tokens + 1)],
        "stopped": [stopped and t == tokens for t in range(1, tokens + 1)],
    }
    facts = {
        "steps": str(len(ends)),
        "answer entropy": f"{entropy[0]:.3f} nats before, {entropy[-1]:.3f} after the last step",
        "stopped": f"after step {len(ends)}, token {tokens}" if stopped else "not before the end",
        "answer then": repr(stop.answers[0][-1]),
    }
    return Written(replace(written.trace, events=events), facts)


def _with_processors(request: Request, *processors: Any, **generation: Any) -> Written:
    """`generate` with the processors behind a recorder, and further arguments."""
    recorder = EntropyRecorder()
    inputs = request.inputs
    torch.manual_seed(request.seed)
    ids = request.model.generate(
        **inputs,
        **request.generation,
        **generation,
        logits_processor=[recorder, *processors],
    )
    return Written(recorder.trace(ids[:, inputs["input_ids"].shape[-1] :]))


class _Kept:
    """Counts the tokens that a row of scores leaves to be drawn."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.counts.append(int(scores[0].isfinite().sum()))
        return scores


WRITERS: dict[str, Callable[[Request], Written]] = {
    "plain": plain,
    "typical-sampling": typical_sampling,
    "diffadapt": diffadapt,
    "entropy-adaptive-decoding": entropy_adaptive_decoding,
    "uscd": uscd,
    "reasoning-utility": reasoning_utility,
}


def parse_setting(assignment: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as JSON where it is some, else as text.

    Raises:
        UserError: no equals sign.

    Examples:
        >>> parse_setting("mass=0.2"), parse_setting("ties=minimal")
        (('mass', 0.2), ('ties', 'minimal'))
    """
    key, sign, value = assignment.partition("=")
    if not sign or not key:
        raise UserError(f"--set {assignment}: must be KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value
