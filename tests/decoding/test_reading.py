"""A text read piece by piece is read as it would be in one go."""

from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from szilard.decoding.reading import CachedReader, check_prompt

Make: TypeAlias = Callable[..., PreTrainedModel]


@pytest.fixture
def model(either: Make) -> PreTrainedModel:
    return either()


def text(rows: int, tokens: int) -> torch.Tensor:
    return torch.randint(1, 40, (rows, tokens), generator=torch.Generator().manual_seed(tokens))


@torch.no_grad()
def in_one_go(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    return model(ids, use_cache=False).logits


@pytest.mark.parametrize("rewinds", [False, True])
def test_pieces_give_the_logits_of_the_whole(model: PreTrainedModel, rewinds: bool) -> None:
    ids, reader = text(2, 20), CachedReader(model, rewinds=rewinds)
    logits = [
        reader.read(piece, keep=piece.shape[-1]).logits for piece in ids.split([9, 1, 7, 3], 1)
    ]
    # Sums in another order: float32.
    torch.testing.assert_close(torch.cat(logits, 1), in_one_go(model, ids), atol=2e-5, rtol=1e-4)
    assert (reader.length, reader.fed, reader.forwards) == (20, 20, 4)


def test_left_padding_changes_nothing(model: PreTrainedModel) -> None:
    ids = text(1, 14)
    padded = torch.cat((torch.zeros(1, 5, dtype=torch.long), ids[:, :9]), 1)
    mask = torch.cat((torch.zeros(1, 5, dtype=torch.long), torch.ones(1, 9, dtype=torch.long)), 1)
    reader = CachedReader(model)
    first = reader.read(padded, mask).logits[:, -1]
    then = reader.read(ids[:, 9:], keep=5).logits
    whole = in_one_go(model, ids)
    torch.testing.assert_close(first, whole[:, 8], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(then, whole[:, 9:], atol=2e-5, rtol=1e-4)


def test_a_question_is_answered_in_context_and_leaves_no_trace(model: PreTrainedModel) -> None:
    ids, question = text(2, 20), text(2, 4)
    reader = CachedReader(model, rewinds=True)
    reader.read(ids[:, :11])
    for seen in (11, 15):
        asked = reader.ask(question, keep=4).logits
        whole = in_one_go(model, torch.cat((ids[:, :seen], question), 1))
        torch.testing.assert_close(asked, whole[:, -4:], atol=2e-5, rtol=1e-4)
        assert reader.length == seen
        after = reader.read(ids[:, seen : seen + 4], keep=4).logits
        torch.testing.assert_close(
            after, in_one_go(model, ids)[:, seen : seen + 4], atol=2e-5, rtol=1e-4
        )


def test_what_is_read_aside_is_read_in_context_and_forgotten(model: PreTrainedModel) -> None:
    ids, aside = text(2, 20), text(2, 9)
    reader = CachedReader(model, rewinds=True)
    reader.read(ids[:, :11])
    with reader.aside():
        logits = [reader.read(piece, keep=3).logits for piece in aside.split(3, 1)]
    whole = in_one_go(model, torch.cat((ids[:, :11], aside), 1))
    torch.testing.assert_close(torch.cat(logits, 1), whole[:, 11:], atol=2e-5, rtol=1e-4)
    after = reader.read(ids[:, 11:], keep=9).logits
    torch.testing.assert_close(after, in_one_go(model, ids)[:, 11:], atol=2e-5, rtol=1e-4)


def test_generate_goes_on_from_the_reader_s_cache(model: PreTrainedModel) -> None:
    ids, reader = text(1, 12), CachedReader(model)
    reader.read(ids[:, :-1])
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(
        model.generate(ids, past_key_values=reader.cache, **settings),
        model.generate(ids, **settings),
    )


def test_a_reader_not_made_to_forget_says_so(model: PreTrainedModel) -> None:
    reader = CachedReader(model)
    reader.read(text(1, 3))
    with pytest.raises(ValueError, match="rewinds=False"):
        reader.ask(text(1, 2))


def test_a_question_needs_something_to_be_asked_about(llama: Make) -> None:
    with pytest.raises(ValueError, match="read something"):
        CachedReader(llama(), rewinds=True).ask(text(1, 2))


def test_what_does_not_fit_the_context_is_refused_before_it_is_read(llama: Make) -> None:
    reader = CachedReader(llama())
    reader.read(text(1, 56))
    with pytest.raises(ValueError, match=r"64 tokens .* come to 65"):
        reader.read(text(1, 9))
    assert reader.length == 56


def test_no_tokens_are_refused(llama: Make) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        CachedReader(llama()).read(torch.zeros(1, 0, dtype=torch.long))


def test_models_that_can_not_be_read_in_pieces_are_refused(
    llama: Make, encoder_decoder: PreTrainedModel
) -> None:
    with pytest.raises(ValueError, match="causal language model"):
        CachedReader(encoder_decoder)

    class Forgetful(LlamaForCausalLM):
        def forward(self, input_ids: torch.Tensor) -> None:
            raise AssertionError("is not called")

    with pytest.raises(ValueError, match="key-value cache"):
        CachedReader(Forgetful(llama().config))


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.long), None, "at least one token"),
        (torch.zeros(0, 4, dtype=torch.long), None, "at least one prompt"),
        (text(2, 3), torch.tensor([[1, 1, 1], [0, 0, 0]]), "padding alone"),
        (text(2, 3), torch.tensor([[1, 1, 1], [1, 1, 0]]), "on the left"),
        (text(2, 3), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1]]), "shape of input_ids"),
        (text(1, 61), None, "64 tokens"),
    ],
)
@pytest.mark.usefixtures("unhooked")
def test_prompts_nothing_can_follow_are_refused(
    llama: Make, ids: torch.Tensor, mask: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_prompt(llama(), ids, mask, new_tokens=4)
