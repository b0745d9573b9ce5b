import numpy as np
import pytest

from szilard.uncertainty import GAAP, Paraphrase, WordNet

QUESTION = "What is the capital city of France?"


def embed(texts):
    words = ["what", "is", "the", "capital", "city", "of", "france"]
    # A substitute is a letter's worth of nothing in common.
    return np.array(
        [[1.0 * (w in text.lower().rstrip("?").split()) for w in words] + [0.1] for text in texts]
    )


def substitutes(word):
    return [f"{word}{i}" for i in range(6)]


def test_paraphrases_are_cleaned_distinct_and_asked_for_again():
    said = iter([
        "Here are some:\n1. Which city?\n2. Which city?",
        "- \"What town?\"\n3) What place?",
    ])  # fmt: skip
    asked = []

    def generate(prompts, n, temperature):
        asked.append((prompts[0], temperature))
        return [[next(said)]]

    found = Paraphrase(generate, temperature=0.3)("Where?", 3, np.random.default_rng(0))
    assert found == ["Which city?", "What town?", "What place?"]
    assert len(asked) == 2
    assert "Where?" in asked[0][0]
    assert asked[0][1] == 0.3
    with pytest.raises(ValueError, match="question"):
        Paraphrase(generate, prompt="nothing")


def test_genetic_variants_are_distinct_never_the_question_and_drift_away():
    search = GAAP(substitutes, embed)
    found = search(QUESTION, 9, np.random.default_rng(0))
    assert len(found) == len(set(found)) == 9
    assert QUESTION not in found
    means = [float(h.mean()) for h in search.history_]
    assert means[-1] < means[0]
    assert all(len(h) <= 50 for h in search.history_)
    assert len(search.history_) == 11 or search.history_[-1].max() < 0.7
    assert found == GAAP(substitutes, embed)(QUESTION, 9, np.random.default_rng(0))


def test_the_first_population_substitutes_one_key_word():
    search = GAAP(substitutes, embed, generations=1, rho=0.3, population=500, delta=1.1)
    found = search(QUESTION, 500, np.random.default_rng(0))
    # Two of eight words and marks, each with six substitutes and its deletion.
    assert len(search.history_) == 1
    assert len(found) == 14


def test_the_search_ends_where_everything_is_far_enough():
    search = GAAP(substitutes, embed, delta=1.1, generations=5)
    search(QUESTION, 3, np.random.default_rng(0))
    assert len(search.history_) == 1


def test_questions_without_substitutes_are_refused():
    with pytest.raises(ValueError, match="substitute"):
        GAAP(lambda word: [], embed)(QUESTION, 9, np.random.default_rng(0))
    with pytest.raises(ValueError, match="must have words"):
        GAAP(substitutes, embed)("?!", 9, np.random.default_rng(0))
    with pytest.raises(ValueError, match="rho"):
        GAAP(substitutes, embed, rho=0.0)
    with pytest.raises(ValueError, match="generations"):
        GAAP(substitutes, embed, generations=0)
    with pytest.raises(ValueError, match="population"):
        GAAP(substitutes, embed, population=1)


# --- a dictionary of four words, in WordNet's format ----------------------------------------------


@pytest.fixture
def dictionary(tmp_path):
    lines = [
        "{0} 03 n 02 dog 0 domestic_dog 0 002 @ {2} n 0000 ~ {1} n 0000 | a dog",
        "{1} 03 n 01 Great_Dane 0 001 @ {0} n 0000 | large",
        "{2} 03 n 01 canine 0 001 ~ {0} n 0000 | an animal",
    ]
    places, at = [], 0
    for line in lines:
        places.append(at)
        at += len(line.format(*["00000000"] * 3)) + 1
    text = "\n".join(line.format(*(f"{p:08d}" for p in places)) for line in lines) + "\n"
    (tmp_path / "data.noun").write_text(text)
    (tmp_path / "index.noun").write_text(
        "  1 a licence\n"
        f"dog n 1 2 @ ~ 1 1 {places[0]:08d}  \ncanine n 1 1 ~ 1 0 {places[2]:08d}  \n"
    )
    for part in ("verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text("")
        (tmp_path / f"index.{part}").write_text("")
    return tmp_path


def test_wordnets_files_give_synonyms_hypernyms_and_hyponyms(dictionary):
    net = WordNet(dictionary)
    assert net("dog") == ["domestic dog", "canine", "Great Dane"]
    assert net("Dogs") == ["dog", "domestic dog", "canine", "Great Dane"]
    assert net("canine") == ["dog", "domestic dog"]
    assert net("cat") == []


def test_a_folder_without_a_dictionary_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data\.noun"):
        WordNet(tmp_path)
