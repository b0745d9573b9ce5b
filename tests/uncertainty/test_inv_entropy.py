import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from szilard.uncertainty import (
    InvEntropy,
    bootstrapped,
    degree_uncertainty,
    inv_entropy,
    kernel_language_entropy,
    lexical_dissimilarity,
    plot_uncertainty,
    semantic_entropy,
    tsu,
)


def alike(n: int, apart: float) -> np.ndarray:
    return np.full((n, n), 1 - apart) + apart * np.eye(n)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(2, 12))
    found = []
    for _ in range(2):
        x = rng.normal(size=(n, 3))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        found.append((1 + np.clip(x @ x.T, -1, 1)) / 2)
    return found[0], found[1]


# --- closed forms ---------------------------------------------------------------------------------


@given(pairs())
def test_one_answer_gives_the_mean_columns_and_ln_n_for_even_questions(case):
    S_x, _ = case
    n = len(S_x)
    found = inv_entropy(S_x, np.ones((n, n)))
    c = np.diagonal(found.p_x_given_y)
    np.testing.assert_allclose(c, (S_x / S_x.sum(1, keepdims=True)).mean(0), atol=1e-12)
    assert c.sum() == pytest.approx(1)
    for apart in (0.1, 0.9):
        even = inv_entropy(alike(n, apart), np.ones((n, n)))
        assert float(even.inv_entropy) == pytest.approx(math.log(n))


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0.3, 0.3, 2.322269),
        (0.3, 0.6, 2.364280),
        (0.3, 1.0, 2.723116),
        (1.0, 0.0, math.log(10)),
        (0.0, 0.0, math.log(10)),
        (1.0, 1.0, 0.0),
    ],
)
def test_equal_correlations_follow_the_formula(x, y, expected):
    n = 9
    c = (1 + n * (1 - x) * (1 - y)) / ((n + 1 - n * x) * (n + 1 - n * y))
    found = inv_entropy(alike(10, x), alike(10, y))
    np.testing.assert_allclose(np.diagonal(found.p_x_given_y), c, atol=1e-12)
    assert float(found.inv_entropy) == pytest.approx(expected, abs=1.1e-6)  # the figures' rounding


@given(pairs())
def test_the_joint_is_a_joint(case):
    S_x, S_y = case
    found = inv_entropy(S_x, S_y)
    np.testing.assert_allclose(found.p_x_given_y.sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(found.p_y_given_x.sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(found.p_y @ found.p_x_given_y, found.p_x, atol=1e-12)
    back = found.p_y_given_x.T * found.p_x / found.p_y[:, None]
    np.testing.assert_allclose(back, found.p_x_given_y, atol=1e-12)
    assert float(found.wd) == pytest.approx(wasserstein_distance(found.p_x, found.p_y), abs=1e-14)
    # Not the shorter walk, pi P_y P_x, that a sentence of the paper has.
    P_x, P_y = (S / S.sum(1, keepdims=True) for S in (S_x, S_y))
    np.testing.assert_allclose(found.p_x, P_y.mean(0) @ P_y @ P_x, atol=1e-12)


@given(pairs(), st.integers(0, 2**32 - 1), st.floats(0.1, 50))
def test_order_and_scale_do_not_matter_and_the_bound_holds(case, seed, scale):
    S_x, S_y = case
    found = inv_entropy(S_x, S_y)
    order = np.random.default_rng(seed).permutation(len(S_x))
    moved = inv_entropy(scale * S_x[np.ix_(order, order)], S_y[np.ix_(order, order)] * 3)
    for name in ("inv_entropy", "ni_entropy", "wd", "max_p_y", "max_p_y_given_x"):
        assert float(getattr(moved, name)) == pytest.approx(float(getattr(found, name)), abs=1e-12)
    assert float(found.inv_entropy) <= len(S_x) / math.e + 1e-12


def test_batches_are_their_members():
    rng = np.random.default_rng(0)
    S_x, S_y = alike(5, 0.4), rng.random((3, 2, 5, 5)) + np.eye(5)
    found = inv_entropy(S_x, S_y)
    assert found.inv_entropy.shape == found.wd.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            one = inv_entropy(S_x, S_y[i, j])
            assert float(found.inv_entropy[i, j]) == pytest.approx(float(one.inv_entropy))
            assert float(found.wd[i, j]) == pytest.approx(float(one.wd))


def test_draws_are_random_choices_of_an_answer_of_each_variant():
    rng = np.random.default_rng(1)
    n, r = 4, 2
    S = rng.random((n * r, n * r)) + np.eye(n * r)
    S_y = S.reshape(n, r, n, r)
    S_x = alike(n, 0.5)
    every = {
        round(float(inv_entropy(S_x, S[np.ix_(rows, rows)]).inv_entropy), 10)
        for choice in np.ndindex(*(r,) * n)
        for rows in [[i * r + a for i, a in enumerate(choice)]]
    }
    draws = bootstrapped(S_x, S_y, 400, np.random.default_rng(2))
    assert {round(float(d), 10) for d in draws} == every  # all sixteen, and no others
    np.testing.assert_array_equal(draws, bootstrapped(S_x, S_y, 400, np.random.default_rng(2)))


# --- temperature sensitivity ----------------------------------------------------------------------


def test_noise_has_the_sensitivity_of_chance():
    uncertainty = np.random.default_rng(0).random((100_000, 3))
    assert tsu(uncertainty) == pytest.approx(1 / 6, abs=0.004)
    assert tsu(np.ones((5, 3))) == 0
    with pytest.raises(ValueError, match="two temperatures"):
        tsu(np.ones((5, 1)))
    with pytest.raises(ValueError, match="NaN"):
        tsu(np.array([[1.0, np.nan]]))
    assert len(plot_uncertainty(uncertainty[:7], [0.1, 0.5, 1.0]).data) == 7
    with pytest.raises(ValueError, match="temperatures must be 3"):
        plot_uncertainty(uncertainty, [0.1])


# --- the estimator --------------------------------------------------------------------------------


def embed(texts):
    """Bags of letters."""
    return np.array(
        [[text.lower().count(c) + 0.01 for c in "abcdefghijklmnopqrstuvwxyz"] for text in texts]
    )


def perturb(question, n, rng):
    return [f"{question} {'really ' * i}" for i in range(1, n + 1)]


class Model:
    """Sure of what it knows, else guesses."""

    def __init__(self, seed=0):
        self.rng, self.asked = np.random.default_rng(seed), []

    def __call__(self, prompts, n, temperature):
        self.asked += [(prompt, temperature) for prompt in prompts]
        guesses = ["Bern", "Quito", "Hanoi", "Lagos", "Cork", "Jinx", "Zwolle"]
        return [
            ["Rome"] * n if "Italy" in prompt else list(self.rng.choice(guesses, n))
            for prompt in prompts
        ]


def test_a_model_that_guesses_is_less_certain_than_one_that_knows():
    model = Model()
    estimator = InvEntropy(model, perturb, embed)
    known, guessed = estimator.score(["Capital of Italy?", "Capital of Nowhere?"])
    assert known < guessed - 1e-6
    detail = estimator.details_[1]
    assert len(detail.variants) == len(detail.answers) == 10
    assert detail.variants[0] == "Capital of Nowhere?"
    assert detail.answer_similarity.shape == (10, 5, 10, 5)
    assert len(detail.draws) == 30
    assert len(model.asked) == 20
    assert {temperature for _, temperature in model.asked} == {0.7}


def test_scores_follow_the_seed_and_may_come_from_answers_that_are_there():
    first = InvEntropy(Model(), perturb, embed, random_state=3)
    scores = first.score(["Capital of Italy?", "Capital of Nowhere?"])
    again = InvEntropy(Model(), perturb, embed, random_state=3).score(
        ["Capital of Italy?", "Capital of Nowhere?"]
    )
    np.testing.assert_array_equal(scores, again)
    given = InvEntropy(Model(), perturb, embed, n_bootstrap=2000)
    there = given.score_answers(
        [one.variants for one in first.details_], [one.answers for one in first.details_]
    )
    # Means of 30 and of 2,000 draws of the same answers.
    spread = np.array([one.draws.std() for one in first.details_])
    assert (np.abs(there - scores) <= 5 * spread / np.sqrt(30) + 1e-12).all()


@pytest.mark.parametrize("count", [1, 4, 40])
def test_any_number_of_variants_becomes_the_same(count):
    def some(question, n, rng):
        return [f"{question} {i}" for i in range(count)]

    estimator = InvEntropy(Model(), some, embed, n_perturb=9)
    estimator.score(["Capital of Italy?"])
    assert len(estimator.details_[0].variants) == 10


def test_similarities_are_as_asked_for():
    texts = ["abc", "cab", "xyz", "abc"]
    plain = InvEntropy(Model(), perturb, embed).similarities(texts)
    squared = InvEntropy(Model(), perturb, embed, similarity="abs_cosine").similarities(texts)
    np.testing.assert_allclose(plain, (1 + squared) / 2, atol=1e-12)  # no angle is obtuse here
    assert plain[0, 3] == plain[0, 0] == 1
    own = InvEntropy(
        Model(),
        perturb,
        embed,
        similarity=lambda a, b: np.array([[float(x == y) for y in b] for x in a]),
    )
    assert own.similarities(texts)[0].tolist() == [1, 0, 0, 1]


def test_the_packaged_embeddings_need_no_network():
    estimator = InvEntropy(Model(), perturb)
    S = estimator.similarities(["The capital is Rome.", "Rome", "A recipe for soup"])
    assert S[0, 1] > S[0, 2]


def test_where_the_measure_falls_with_dispersion_it_says_so():
    with pytest.warns(UserWarning, match="fewer than 4"):
        InvEntropy(Model(), perturb, embed, n_perturb=2).score(["Capital of Italy?"])

    def far(question, n, rng):
        return ["aaaa", "bbbb", "cccc", "dddd", "eeee", "ffff", "gggg", "hhhh", "iiii"]

    def apart(texts):
        return np.eye(26)[[ord(text[0].lower()) % 26 for text in texts]]

    with pytest.warns(UserWarning, match="1/e"):
        InvEntropy(
            lambda prompts, n, t: [[prompt] * n for prompt in prompts],
            far,
            apart,
            similarity="abs_cosine",
        ).score(["zzzz"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InvEntropy(Model(), perturb, embed).score(["Capital of Italy?"])


@pytest.mark.usefixtures("unhooked")
def test_bad_input_is_named():
    good = alike(4, 0.5)
    with pytest.raises(ValueError, match="S_x must be square"):
        inv_entropy(np.ones((3, 4)), good)
    with pytest.raises(ValueError, match="S_y must be finite"):
        inv_entropy(good, -good)
    with pytest.raises(ValueError, match="row of zeros"):
        inv_entropy(good, np.zeros((4, 4)))
    with pytest.raises(ValueError, match="S_y must be of 4 variants"):
        inv_entropy(good, alike(5, 0.5))
    with pytest.raises(ValueError, match="two variants"):
        inv_entropy(np.ones((1, 1)), np.ones((1, 1)))
    with pytest.raises(ValueError, match="draws must be"):
        bootstrapped(good, np.ones((4, 1, 4, 1)), 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="questions must be"):
        InvEntropy(Model(), perturb, embed).score([])
    with pytest.raises(ValueError, match=r"questions\[1\]"):
        InvEntropy(Model(), perturb, embed).score(["a?", " "])
    with pytest.raises(ValueError, match="n_answers"):
        InvEntropy(Model(), perturb, embed, n_answers=0).score(["a?"])
    with pytest.raises(ValueError, match="perturb must give"):
        InvEntropy(Model(), lambda q, n, rng: [], embed).score(["a?"])
    with pytest.raises(ValueError, match="answers must be as many"):
        InvEntropy(lambda p, n, t: [["a"], ["a", "b"]] * 5, perturb, embed).score(["a?"])
    with pytest.raises(ValueError, match="answers must be of 1 questions"):
        InvEntropy(Model(), perturb, embed).score_answers([["a", "b"]], [])
    with pytest.warns(UserWarning, match="empty"):
        InvEntropy(lambda p, n, t: [["", "b"]] * len(p), perturb, embed).score(["a?"])


# --- what it is compared with ---------------------------------------------------------------------


@pytest.mark.usefixtures("unhooked")
def test_baselines_are_zero_for_one_answer_and_largest_for_strangers():
    assert semantic_entropy(["a", "A ", "a"]) == 0
    assert semantic_entropy(["a", "b", "c", "d"]) == pytest.approx(math.log(4))
    linked = np.array([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1.0]])
    assert semantic_entropy(["x", "y", "z"], linked) == pytest.approx(
        math.log(3) - 2 / 3 * math.log(2)
    )
    assert degree_uncertainty(np.eye(4)) == 0.75
    # A connected graph: one zero eigenvalue, and 4 of K_4 for the others.
    weight = np.exp(-0.3 * 4)
    p = np.array([1, weight, weight, weight]) / (1 + 3 * weight)
    assert kernel_language_entropy(np.ones((4, 4))) == pytest.approx(-(p * np.log(p)).sum())
    assert lexical_dissimilarity(["the red cat sat", "the cat sat down"]) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="answers must hold"):
        semantic_entropy([])
    with pytest.raises(ValueError, match="two at least"):
        lexical_dissimilarity(["a"])
    with pytest.raises(ValueError, match="square and finite"):
        degree_uncertainty(np.ones((2, 3)))
    with pytest.raises(ValueError, match="time"):
        kernel_language_entropy(np.eye(2), time=-1.0)


def test_the_published_program_gives_the_same_on_the_same_draws():
    """Its own lines for one draw, on matrices of |cos|."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(2, 10, 6))
    simX, simY = (np.abs(v @ v.T / np.outer(*[np.linalg.norm(v, axis=1)] * 2)) for v in (x, y))
    px, py = simX / simX.sum(1, keepdims=True), simY / simY.sum(1, keepdims=True)
    c = np.diag((py @ px).T)
    expected = -np.sum(c * np.log(c))
    assert float(inv_entropy(simX, simY).inv_entropy) == pytest.approx(expected, abs=1e-12)
