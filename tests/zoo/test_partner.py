"""The small partner of Gemma: one vocabulary, seen tokens learned, unseen ones kept down."""

from pathlib import Path

import pytest
import torch

from szilard.zoo import partner
from szilard.zoo.language import (
    LanguageModel,
    character_tokenizer,
    load_language_model,
    tiny_language_model,
)


def test_a_partner_learns_the_text_and_keeps_unseen_tokens_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = character_tokenizer("abcdefghijklmnopqrstuvwxyz\n")
    large = LanguageModel(tiny_language_model(vocab=tokenizer, hidden=32, layers=1), tokenizer)
    settings = {"steps": 200, "rows": 8, "tokens": 16, "sampled": (4, 8)}
    monkeypatch.setenv("SZILARD_CACHE", str(tmp_path))
    monkeypatch.setattr(partner, "_WIDTH", 16)
    monkeypatch.setattr(partner, "_SETTINGS", partner._SETTINGS | settings | {"width": 16})
    monkeypatch.setattr(partner, "corpus", lambda: ["abcd" * 200])
    monkeypatch.setattr(
        partner, "load_language_model", lambda *name: load_language_model(*name) if name else large
    )
    state = torch.get_rng_state()
    small, shared = partner.gemma_partner()
    assert torch.equal(torch.get_rng_state(), state)
    assert shared.get_vocab() == tokenizer.get_vocab()
    with torch.no_grad():
        p = small(**tokenizer("abcdab", return_tensors="pt")).logits[0, -1].softmax(-1)
    ids = tokenizer.convert_tokens_to_ids
    assert p[ids("c")] > 0.8
    assert p[[ids(letter) for letter in "efghijklmnop"]].sum() < 0.05


@pytest.mark.slow
def test_the_partner_shares_gemma_s_tokens_and_reads_english() -> None:
    small, tokenizer = partner.gemma_partner()
    large, theirs = load_language_model()
    assert tokenizer.get_vocab() == theirs.get_vocab()
    assert small.num_parameters() / large.num_parameters() == pytest.approx(0.127, abs=0.001)
    ids = tokenizer("The captain stood on the deck of the ship.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = small(ids, labels=ids).loss
    # A uniform guess over the vocabulary costs 12.5 nats a token.
    assert loss < 7
