import itertools
import math
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from szilard.zoo.tasks import Arithmetic, FreeOrderSum, HiddenMarkovSource, MarkovSource


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_the_entropy_rate_is_the_limit_of_block_entropy_differences(order):
    source = MarkovSource(order, "abc", seed=3, concentration=0.7)

    def block_entropy(length):
        total = 0.0
        for text in map("".join, itertools.product("abc", repeat=length)):
            start = int("".join(str("abc".index(c)) for c in text[:order]) or "0", 3)
            p = source.stationary[start] * math.exp(-source.surprisals(text).sum())
            total -= p * math.log(p) if p else 0.0
        return total

    rate = block_entropy(order + 2) - block_entropy(order + 1)
    assert source.entropy_rate == pytest.approx(rate, abs=1e-10)


def test_the_stationary_distribution_is_the_eigenvector_of_the_chain():
    source = MarkovSource(2, "abc", seed=1)
    chain = np.zeros((9, 9))
    for context, character in itertools.product(range(9), range(3)):
        chain[context, (context * 3 + character) % 9] += source.transitions[context, character]
    assert np.allclose(source.stationary @ chain, source.stationary, atol=1e-12)
    assert source.stationary.sum() == pytest.approx(1)


def test_a_two_state_chain_has_the_closed_form():
    source = MarkovSource(1, "ab", seed=5)
    (_, p), (q, _) = source.transitions
    assert np.allclose(source.stationary, np.array([q, p]) / (p + q))


@pytest.mark.parametrize("source", [MarkovSource(2, seed=2), HiddenMarkovSource(3, "abc", seed=2)])
def test_the_mean_surprisal_of_a_long_text_is_the_entropy_rate(source):
    texts = source.sample(20, 2000, rng())
    means = [source.surprisals(text).mean() for text in texts]
    # Four standard errors of the mean over independent texts.
    tolerance = 4 * np.std(means) / math.sqrt(len(means)) + 1e-3
    rate = (
        source.entropy_rate
        if isinstance(source, MarkovSource)
        else np.mean(source.entropy_rate_bounds())
    )
    assert np.mean(means) == pytest.approx(rate, abs=tolerance)
    assert all(len(text) == 2000 for text in texts)


def test_texts_are_stationary_from_their_first_character():
    source = MarkovSource(2, "abc", seed=4)
    texts = source.sample(20000, 3, rng())
    marginal = source.stationary.reshape(3, 3).sum(axis=1)
    for position in range(3):
        share = np.array([sum(text[position] == c for text in texts) for c in "abc"]) / 20000
        assert np.allclose(share, marginal, atol=0.015)  # four standard errors of a half
    assert [len(text) for text in source.sample(2, 1, rng())] == [1, 1]


def test_exact_conditionals_agree_with_counts():
    source = MarkovSource(1, "ab", seed=0, concentration=2.0)
    (text,) = source.sample(1, 50_000, rng())
    after_a = [y for x, y in itertools.pairwise(text) if x == "a"]
    share = after_a.count("b") / len(after_a)
    assert source.next_probabilities("a")[-1, 1] == pytest.approx(share, abs=0.02)
    assert source.next_probabilities("ab").shape == (2, 2)
    assert np.allclose(source.next_probabilities("ba"), source.transitions[[1, 0]])


@given(st.integers(0, 50), st.floats(0.2, 20))
def test_an_entropy_rate_lies_between_zero_and_log_k(seed, concentration):
    rate = MarkovSource(1, "abcd", seed=seed, concentration=concentration).entropy_rate
    assert 0 <= rate <= math.log(4) + 1e-12


@given(st.integers(0, 50))
def test_bounds_of_a_hidden_chain_close_in_from_both_sides(seed):
    source = HiddenMarkovSource(2, "abc", seed=seed)
    bounds = [source.entropy_rate_bounds(n) for n in (1, 2, 3, 5, 8)]
    lower, upper = np.array(bounds).T
    slack = 1e-10  # rounding of differences of entropies
    assert np.all(np.diff(lower) >= -slack)
    assert np.all(np.diff(upper) <= slack)
    assert np.all(lower <= upper + slack)


def test_one_hidden_state_leaves_independent_characters():
    source = HiddenMarkovSource(1, "abc", seed=0)
    p = source.emission[0]
    assert source.entropy_rate_bounds(4) == pytest.approx((-(p * np.log(p)).sum(),) * 2)


def test_hidden_bounds_agree_with_sums_over_all_paths():
    source = HiddenMarkovSource(2, "ab", seed=7)
    p = {}
    for states in itertools.product(range(2), repeat=3):
        path = source.stationary[states[0]]
        path *= source.transition[states[0], states[1]] * source.transition[states[1], states[2]]
        for text in itertools.product(range(2), repeat=3):
            emitted = math.prod(source.emission[x, y] for x, y in zip(states, text, strict=True))
            p[states[0], text] = p.get((states[0], text), 0.0) + path * emitted

    def entropy(keep):
        table = {}
        for (state, text), value in p.items():
            table[keep(state, text)] = table.get(keep(state, text), 0.0) + value
        return -sum(value * math.log(value) for value in table.values())

    upper = entropy(lambda s, y: y) - entropy(lambda s, y: y[:2])
    lower = entropy(lambda s, y: (s, y)) - entropy(lambda s, y: (s, y[:2]))
    assert source.entropy_rate_bounds(3) == pytest.approx((lower, upper), abs=1e-12)


def test_hidden_surprisals_add_up_to_the_probability_of_the_text():
    source = HiddenMarkovSource(3, "ab", seed=1)
    total = sum(
        math.exp(-source.surprisals("".join(text)).sum())
        for text in itertools.product("ab", repeat=6)
    )
    assert total == pytest.approx(1)


@pytest.mark.parametrize("source", [MarkovSource(), HiddenMarkovSource()])
def test_sources_are_functions_of_their_seeds(source):
    assert source.sample(3, 10, rng(1)) == source.sample(3, 10, rng(1))
    assert source.sample(3, 10, rng(1)) != source.sample(3, 10, rng(2))
    other = type(source)(seed=1)
    assert not np.allclose(source.next_probabilities("ab"), other.next_probabilities("ab"))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: MarkovSource(order=-1), "order must"),
        (lambda: MarkovSource(order=12, alphabet="abcdef"), "order must"),
        (lambda: MarkovSource(alphabet="aa"), "alphabet must"),
        (lambda: MarkovSource(concentration=0.0), "concentration must"),
        (lambda: HiddenMarkovSource(states=0), "states must"),
        (lambda: HiddenMarkovSource(alphabet="a"), "alphabet must"),
        (lambda: HiddenMarkovSource().entropy_rate_bounds(99), "n must lie between 1 and"),
        (lambda: MarkovSource().sample(1, 0, rng()), "length"),
        (lambda: MarkovSource().next_probabilities("axb"), "text must be made of"),
        (lambda: MarkovSource().next_probabilities("a"), "at least 2 characters"),
    ],
)
def test_sources_refuse_what_they_cannot_be(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@given(
    st.integers(0, 1000),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from(["+", "-", "*", "+-", "+-*"]),
    st.sampled_from([None, 2, 7]),
)
def test_exercises_are_worked_from_left_to_right(seed, digits, steps, operations, modulus):
    task = Arithmetic((digits,), (steps,), operations, modulus, chain=True)
    prompt, difficulty = task._exercise(rng(seed))
    flat = prompt.replace("(", "").replace(")", "")[:-1]
    numbers = [int(n) for n in "".join(c if c.isdigit() else " " for c in flat).split()]
    compute = {"+": operator.add, "-": operator.sub, "*": operator.mul, "%": operator.mod}
    value = numbers[0]
    for sign, number in zip([c for c in flat if c in compute], numbers[1:], strict=True):
        value = compute[sign](value, number)
    assert task.solution(prompt) == str(value)
    chain = task.solution(prompt, chain=True)
    assert len(chain.split(";")) == steps + (modulus is not None)
    assert all(eval(line.replace("=", "==")) for line in chain.split(";"))
    assert task.check(prompt, chain)
    assert task.check(prompt, chain, steps=True)
    assert task.check(prompt, str(value) + "<eos><pad>")
    assert not task.check(prompt, str(value + 1))
    assert not task.check(prompt, "")
    assert difficulty == digits * steps


def test_an_exercise_data_set_has_its_columns_and_known_characters():
    task = Arithmetic(digits=(1, 2, 3), steps=(1, 2), operations="+-*", modulus=10, chain=True)
    data = task.dataset(50, rng())
    assert data.column_names == ["prompt", "completion", "answer", "difficulty"]
    assert len(data) == 50
    assert set(data["difficulty"]) == {1, 2, 3, 4, 6}
    for row in data:
        assert set(row["prompt"] + row["completion"]) <= set(task.alphabet)
        assert task.check(row["prompt"], row["completion"])
        assert row["completion"].split("=")[-1] == row["answer"]
    assert data[:] == task.dataset(50, rng())[:]
    assert task.tokenizer()("1+2=").input_ids[0] == 1


def test_a_wrong_step_with_the_right_answer_passes_only_the_plain_check():
    assert Arithmetic.check("1+2+3=", "1+2=4;4+3=6")
    assert not Arithmetic.check("1+2+3=", "1+2=4;4+3=6", steps=True)


@pytest.mark.parametrize(
    "prompt", ["", "1+1", "1+=", "2**3=", "1%0=", "abs(1)=", "1.5+1=", "__import__('os')=", "True="]
)
def test_a_prompt_that_is_no_exercise_is_refused(prompt):
    with pytest.raises(ValueError, match="prompt must be an exercise"):
        Arithmetic.check(prompt, "1")


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"digits": ()}, "digits must"),
        ({"steps": (0,)}, "steps must"),
        ({"operations": "/"}, "operations must"),
        ({"modulus": 1}, "modulus must"),
    ],
)
def test_arithmetic_refuses_settings_it_cannot_use(setting, named):
    with pytest.raises(ValueError, match=named):
        Arithmetic(**setting)


def test_an_uncorrupted_trace_is_right_in_any_of_the_orders():
    task = FreeOrderSum()
    prompts = task.prompts(2000, rng())
    traces = task.traces(prompts, rng(1))
    assert all(len(trace) == task.completion_length == 12 for trace in traces)
    assert all(task.reward(p, t) == 1.0 for p, t in zip(prompts, traces, strict=True))
    assert len({task.order(trace) for trace in traces}) == 24
    for prompt, trace in zip(prompts[:50], traces, strict=False):
        total = 0
        for letter, digit, running in zip(trace[::3], trace[1::3], trace[2::3], strict=True):
            assert digit == prompt["abcd".index(letter)]
            total = (total + int(digit)) % 5
            assert int(running) == total


@pytest.mark.parametrize("corrupt", [0.1, 0.3, 1.0])
def test_corruption_lowers_the_reward_by_its_formula(corrupt):
    task = FreeOrderSum()
    prompts = task.prompts(20_000, rng())
    rewards = [
        task.reward(p, t)
        for p, t in zip(prompts, task.traces(prompts, rng(1), corrupt), strict=True)
    ]
    # Four standard errors of a share of one half.
    assert np.mean(rewards) == pytest.approx(0.2 + 0.8 * (1 - corrupt) ** 4, abs=0.015)


@pytest.mark.parametrize(
    ("completion", "order", "reward"),
    [
        ("b11d23a31c40", (1, 3, 0, 2), 1.0),
        ("b11d23a31c40<eos><pad>", (1, 3, 0, 2), 1.0),
        ("b00d00a00c00", (1, 3, 0, 2), 1.0),
        ("b11d23a31c41", (1, 3, 0, 2), 0.0),
        ("b11b12a30c40", None, 0.0),
        ("b11d23a31", None, 0.0),
        ("b11d23a31c400", None, 0.0),
        ("", None, 0.0),
        ("111d23a31c40", None, 0.0),
    ],
)
def test_only_a_permutation_with_the_right_sum_is_rewarded(completion, order, reward):
    task = FreeOrderSum()
    assert task.order(completion) == order
    assert task.reward("3142=", completion) == reward


def test_free_order_sums_pass_through_their_tokenizer():
    task = FreeOrderSum()
    tokenizer = task.tokenizer()
    (prompt,) = task.prompts(1, rng())
    trace = task.trace(prompt, rng(), corrupt=0.3)
    ids = tokenizer(prompt + trace).input_ids
    assert len(ids) == 1 + 5 + 12
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == prompt + trace


@pytest.mark.parametrize("prompt", ["", "3142", "314=", "3162=", "31425="])
def test_a_text_that_is_no_sum_is_refused(prompt):
    with pytest.raises(ValueError, match="prompt must be 4 digits"):
        FreeOrderSum().reward(prompt, "b11d23a31c40")


@pytest.mark.parametrize(
    "make",
    [
        lambda: FreeOrderSum(modulus=1),
        lambda: FreeOrderSum(operands=0),
        lambda: FreeOrderSum().traces(["1234="], rng(), corrupt=1.5),
        lambda: FreeOrderSum().prompts(-1, rng()),
    ],
)
def test_free_order_sums_refuse_settings_out_of_range(make):
    with pytest.raises(ValueError, match="must"):
        make()
