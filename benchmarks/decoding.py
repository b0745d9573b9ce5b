"""What a decoding method adds to `generate` of transformers: both write as many tokens with one model.

The model is as large as Gemma 3 270M and in float32, its weights random: what it would write does not
matter for the time, and nothing has to be loaded. *generate* is the same call without the method, read
as the limit. Methods that read one token a forward pass may add 5 %. Those that read every token twice
may take 2.1 times as long: USCD with its gate open at every token, entropy adaptive decoding between
two models of this one size, who follow each other at every switch, and the stopping rule that asks for
the answer after every fourth token, its judge the model itself. Times include the prompt of 64 tokens,
and for DiffAdapt the sentence that its strategy adds, which the plain call is given with its prompt;
reading prompt and sentence one after the other costs one pass more an answer, of 48 tokens there and of
12 elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast
from transformers.utils import logging

from harness import Case
from szilard.decoding import (
    DiffAdapt,
    DifficultyProbe,
    EntropyAdaptiveDecoder,
    EntropyRecorder,
    Strategy,
    TypicalLogitsProcessor,
    USCDLogitsProcessor,
    UtilityStoppingCriteria,
)
from szilard.zoo.language import SPECIAL_TOKENS, character_tokenizer

PROMPT, NEW, LONGER = 64, 12, 48
ONE_PASS, TWO_PASSES = 1.05, 2.1


@cache
def model(peaked: bool) -> Gemma3ForCausalLM:
    """With random weights; `peaked` tells how sure of its next token it is."""
    config = Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2_048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        max_position_embeddings=32_768,
        sliding_window=512,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Gemma3ForCausalLM(config).eval()
    # Gemma's norm multiplies by one more than its weight.
    made.model.norm.weight.data.fill_(99 if peaked else 0)
    return made


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return character_tokenizer("abcdefghijklmnopqrstuvwxyz {}.")


def write(*, prompt: int = PROMPT, new: int = NEW, **more: Any) -> Any:
    """`generate` of exactly `new` tokens; greedy unless told otherwise."""
    ids = torch.arange(4, 4 + prompt)[None] % 30 + 4
    torch.manual_seed(0)
    settings = {"do_sample": False} | more
    return model(False).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        min_new_tokens=new,
        pad_token_id=0,
        **settings,
    )


def case(
    work: str, ours: Callable[[], Any], at_most: float, plain: Callable[[], Any] = write
) -> Case:
    return Case(
        "decoding",
        work,
        ours,
        peers={},
        error=lambda ours, theirs: 0.0,
        tolerance=0.0,
        limit=("generate", plain),
        at_most_limit=at_most,
        slow=60.0,
    )


def cases() -> Iterator[Case]:
    logging.set_verbosity_error()
    for peaked in (False, True):  # before anyone is timed
        model(peaked)
    drawn = partial(write, do_sample=True, top_k=0)
    yield case("entropy recorder", lambda: write(logits_processor=[EntropyRecorder()]), ONE_PASS)
    yield case(
        "typical sampling, against sampling",
        lambda: drawn(logits_processor=[TypicalLogitsProcessor()]),
        ONE_PASS,
        drawn,
    )
    adapted, sentence = difficulty()
    yield case("DiffAdapt", adapted, ONE_PASS, partial(write, prompt=PROMPT + sentence, new=LONGER))
    yield case("USCD, contrast at every token", contrasted, TWO_PASSES)
    yield case("entropy adaptive decoding, two models of this size", switching, TWO_PASSES)
    yield case("reasoning utility, asked after every fourth token", asked, TWO_PASSES, spelled)


def difficulty() -> tuple[Callable[[], Tensor], int]:
    """The method, and how many tokens the sentence has that every strategy of it adds."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(30, 640, generator=generator).numpy()
    probe = DifficultyProbe(epochs=1).fit(states, [0, 1, 2] * 10)
    sentence = "Work through the problem step by step and systematically."
    method = DiffAdapt(
        model(False),
        tokenizer(),
        probe,
        [Strategy(name, sentence, 1.0, 1.0) for name in ("easy", "normal", "hard")],
        max_new_tokens=LONGER,
    )
    return lambda: write(custom_generate=method, new=LONGER), len(
        tokenizer()(sentence.lower())["input_ids"]
    )


def contrasted() -> Tensor:
    lame = torch.arange(4, 4 + PROMPT // 2)[None]
    rule = USCDLogitsProcessor(model(False), lame, torch.ones_like(lame), collision=1)
    return write(logits_processor=[rule])


def switching() -> Any:
    # The small one is never sure, the large one always: each gives way as soon as it may.
    decoder = EntropyAdaptiveDecoder(model(False), model(True), 6.0)
    write(custom_generate=decoder)
    return decoder.output


def asked() -> Tensor:
    criterion = UtilityStoppingCriteria(
        model(False),
        tokenizer(),
        h_stop=None,
        patience=None,
        lead_in=" ",
        answer_tokens=1,
        boundary=".{4}$",
    )
    return spelled(stopping_criteria=[criterion])


def spelled(**more: Any) -> Any:
    """`generate` that keeps to the tokens that have letters."""
    return write(logits_processor=[_letters], **more)


def _letters(_: Tensor, scores: Tensor) -> Tensor:
    scores[:, : len(SPECIAL_TOKENS)] = scores[:, len(tokenizer()) :] = -torch.inf
    return scores
