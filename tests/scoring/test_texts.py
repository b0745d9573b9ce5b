import numpy as np
import pytest
import torch

from szilard.measures import token_statistics
from szilard.scoring import score_texts
from szilard.zoo.language import character_tokenizer, tiny_language_model

TEXTS = ["abba", "cab", "a", "bacabacabacab", "cc", "abcabcabcabc abc"]


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer("abc ")


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_language_model(vocab=tokenizer, hidden=16, layers=2, heads=2)


def by_hand(model, ids, first):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, first - 1 : -1].double()
    return token_statistics(logits, torch.tensor(ids[first:]))


def begin(tokenizer):
    return [tokenizer.bos_token_id] if tokenizer("a").input_ids[0] == tokenizer.bos_token_id else []


@pytest.mark.parametrize("batch_tokens", [1, 20, 4096])
def test_scores_are_those_of_each_text_alone_whatever_the_batch(model, tokenizer, batch_tokens):
    texts = [text for text in TEXTS if len(text) > 1]
    scores = score_texts(model, tokenizer, texts, batch_tokens=batch_tokens)
    before = begin(tokenizer)
    for text, found in zip(texts, scores, strict=True):
        ids = before + tokenizer(text, add_special_tokens=False).input_ids
        expected = by_hand(model, ids, max(len(before), 1))
        assert found.ids.tolist() == ids[max(len(before), 1) :]
        # float32 passes in batches of other shapes.
        np.testing.assert_allclose(found.logprob, expected.logprob, atol=2e-5)
        np.testing.assert_allclose(found.entropy, expected.entropy, atol=2e-5)
        np.testing.assert_allclose(found.varentropy, expected.varentropy, atol=1e-4)
        assert [text[a:b] for a, b in found.spans] == list(text)[-len(found) :]


def test_contexts_are_read_and_not_scored(model, tokenizer):
    (alone,) = score_texts(model, tokenizer, ["abcab"])
    (after,) = score_texts(model, tokenizer, ["ab"], contexts=["abc"])
    np.testing.assert_allclose(after.logprob, alone.logprob[-2:], atol=2e-5)
    ids = tokenizer("ab", add_special_tokens=False).input_ids
    (given,) = score_texts(model, tokenizer, [ids], contexts=["abc"])
    np.testing.assert_allclose(given.logprob, after.logprob, atol=1e-6)
    assert given.spans is None


def test_later_tokens_are_left_out(model, tokenizer):
    (whole,) = score_texts(model, tokenizer, ["abcabcab"])
    (part,) = score_texts(model, tokenizer, ["abcabcab"], max_tokens=4)
    np.testing.assert_allclose(part.logprob, whole.logprob[: len(part)], atol=2e-5)


@pytest.mark.parametrize("plain", [True, False])
def test_own_statistics_read_the_logits_in_blocks(model, tokenizer, plain, monkeypatch):
    monkeypatch.setattr("szilard.scoring.texts.BLOCK", 30)
    if not plain:  # a model whose logits are more than its head's product
        monkeypatch.setattr("szilard.scoring.texts._Head._is_all", lambda *_: False)

    def rank(logits, targets):
        above = logits > logits.gather(-1, targets[:, None])
        return {"rank": above.sum(-1) + 1, "logits": logits[:, :2]}

    texts = TEXTS[:2] + TEXTS[3:]
    scores = score_texts(model, tokenizer, texts, statistics=rank, batch_tokens=40)
    for found in scores:
        assert found.more["rank"].shape == (len(found),)
        assert found.more["logits"].shape == (len(found), 2)
        first = found.more["rank"] == 1
        # The likeliest token has at least the mean log-probability.
        assert (found.logprob[first] >= -found.entropy[first] - 1e-6).all()


def test_gemma_style_caps_are_applied(tokenizer):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    (found,) = score_texts(model, tokenizer, ["abcab"])
    ids = begin(tokenizer) + tokenizer("abcab", add_special_tokens=False).input_ids
    expected = by_hand(model, ids, max(len(begin(tokenizer)), 1))
    np.testing.assert_allclose(found.logprob, expected.logprob, atol=2e-5)


def test_a_model_that_scales_its_logits_is_read_by_its_logits(tokenizer):
    from transformers import CohereConfig, CohereForCausalLM

    torch.manual_seed(0)
    config = CohereConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, logit_scale=30.0, pad_token_id=0,
    )  # fmt: skip
    model = CohereForCausalLM(config).eval()
    (found,) = score_texts(model, tokenizer, ["abcab"])
    ids = begin(tokenizer) + tokenizer("abcab", add_special_tokens=False).input_ids
    expected = by_hand(model, ids, max(len(begin(tokenizer)), 1))
    np.testing.assert_allclose(found.logprob, expected.logprob, atol=2e-4)


def test_a_tokenizer_that_knows_no_letters_still_begins_with_its_token(model):
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<s>": 0, "abc": 1, "cab": 2}, unk_token="<s>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("..."), behavior="isolated")
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>")
    (found,) = score_texts(model, tokenizer, ["abccababc"])
    assert found.ids.tolist() == [1, 2, 1]


def test_bad_texts_are_named(model, tokenizer):
    with pytest.raises(ValueError, match="texts must be a list"):
        score_texts(model, tokenizer, [])
    with pytest.raises(ValueError, match="texts must be a list"):
        score_texts(model, tokenizer, "abc")
    with pytest.raises(ValueError, match=r"texts\[1\] must not be empty"):
        score_texts(model, tokenizer, ["ab", ""])
    with pytest.raises(ValueError, match=r"texts\[0\] must have ids below"):
        score_texts(model, tokenizer, [[1, 99]])
    with pytest.raises(ValueError, match="contexts must be as many"):
        score_texts(model, tokenizer, ["ab"], contexts=["a", "b"])
    with pytest.raises(ValueError, match="give max_tokens"):
        score_texts(model, tokenizer, ["ab" * 10_000])
    with pytest.raises(ValueError, match="batch_tokens"):
        score_texts(model, tokenizer, ["ab"], batch_tokens=0)
    with pytest.raises(ValueError, match="max_tokens"):
        score_texts(model, tokenizer, ["ab"], max_tokens=0)
