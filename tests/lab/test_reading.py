import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from szilard.lab.reading import read_text, reading_html


class Unigram:
    """A model that gives every token the same distribution, whatever came before."""

    def __init__(self, probabilities: list[float], limit: int = 64) -> None:
        self.logits = torch.tensor(probabilities).log()
        config = SimpleNamespace(max_position_embeddings=limit, vocab_size=len(probabilities))
        self.config = SimpleNamespace(get_text_config=lambda: config)
        self.device = torch.device("cpu")
        self.windows: list[list[int]] = []

    def __call__(self, input_ids: Tensor, use_cache: bool) -> Any:
        self.windows.append(input_ids[0].tolist())
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


class Letters:
    """A tokenizer of the letters a, b, c; id 3 begins a text."""

    is_fast = True

    def __init__(self, bos: int | None = 3) -> None:
        self.bos_token_id = bos

    def __call__(self, text: str, **options: Any) -> Any:
        found = [(i, letter) for i, letter in enumerate(text) if letter in "abc"]
        ids = ["abc".index(letter) for _, letter in found]
        offsets = [(i, i + 1) for i, _ in found]
        return {"input_ids": ids, "offset_mapping": offsets}


PROBABILITIES = [0.5, 0.25, 0.125, 0.125]


def test_surprisal_and_entropy_are_those_of_the_model() -> None:
    reading = read_text(Unigram(PROBABILITIES), Letters(), "abc", base=2.0)  # type: ignore[arg-type]
    # float32 statistics.
    assert reading.surprisals == pytest.approx([1, 2, 3], abs=1e-5)
    assert reading.entropies == pytest.approx([1.75] * 3, abs=1e-5)
    assert reading.unit == "bits"


def test_nats_are_the_default() -> None:
    reading = read_text(Unigram(PROBABILITIES), Letters(), "a")  # type: ignore[arg-type]
    assert reading.surprisals == pytest.approx([math.log(2)], abs=1e-5)
    assert reading.unit == "nats"


def test_without_a_bos_token_the_first_token_has_no_surprisal() -> None:
    model = Unigram(PROBABILITIES)
    reading = read_text(model, Letters(bos=None), "abca")  # type: ignore[arg-type]
    assert reading.tokens[0].surprisal is None
    assert len(reading.surprisals) == 3
    assert "no begin-of-text token" in reading.context


@pytest.mark.parametrize("bos", [3, None])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 12, 13, 50])
def test_windows_cover_a_long_text_once(bos: int | None, length: int) -> None:
    text = ("abccba" * 10)[:length]
    model = Unigram(PROBABILITIES)
    reading = read_text(model, Letters(bos), text, base=2.0, window=8)  # type: ignore[arg-type]
    expected = [{"a": 1.0, "b": 2.0, "c": 3.0}[letter] for letter in text]
    assert reading.surprisals == pytest.approx(expected if bos else expected[1:], abs=1e-5)
    assert all(len(window) <= 8 for window in model.windows)
    assert all(window[0] == bos for window in model.windows if bos)
    # Every token but those of the first window has at least half a window before it.
    assert all(len(window) > 4 for window in model.windows[1:])


def test_the_pieces_joined_are_the_text() -> None:
    text = "  a - bb!c?"
    reading = read_text(Unigram(PROBABILITIES), Letters(), text)  # type: ignore[arg-type]
    assert "".join(token.text for token in reading.tokens) == text
    assert reading.characters == len(text)


def test_the_page_holds_every_token_and_no_address() -> None:
    reading = read_text(Unigram(PROBABILITIES), Letters(), "a</script>b")  # type: ignore[arg-type]
    page = reading_html(reading, "unigram")
    assert page.count("</script>") == page.count("<script")
    assert "http" not in page


@pytest.mark.parametrize(
    ("text", "window", "message"),
    [("", None, "text: is empty"), ("?", None, "no token"), ("a", 3, "window"), ("a", 65, "4..64")],
)
def test_impossible_arguments_are_named(text: str, window: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_text(Unigram(PROBABILITIES), Letters(), text, window=window)  # type: ignore[arg-type]
