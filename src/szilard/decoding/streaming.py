"""Streaming from a decoding loop that `generate` was given as `custom_generate`."""

from __future__ import annotations

from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer


def streamer_of_call(frame: FrameType | None) -> BaseStreamer | None:
    """The streamer of the `generate` call that is under way.

    transformers hands a callable all it prepared except for this one argument, after it gave the
    streamer the prompt: who reads from it would wait for ever for the text.

    Args:
        frame: where to look from, `inspect.currentframe()` of the callable.
    """
    while frame is not None:
        inside = frame.f_globals.get("__name__") == "transformers.generation.utils"
        if inside and frame.f_code.co_name == "generate":
            streamer: BaseStreamer | None = frame.f_locals.get("streamer")
            return streamer
        frame = frame.f_back
    return None
