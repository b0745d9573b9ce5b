"""Rewards for TRL: called as its trainer calls them, and by its trainer."""

import pytest

from szilard.decoding import ReasoningUtility
from szilard.integrations.rewards import reasoning_utility_reward
from szilard.zoo.language import character_tokenizer, tiny_language_model

TOKENIZER = character_tokenizer("0123456789+=. {}")
JUDGE = ReasoningUtility(tiny_language_model(vocab=TOKENIZER), TOKENIZER, lead_in=" {")
PROMPTS = ["1+9. ", "8+8. "]
CHAINS = ["1+9=10. So 10.", "8+8=16."]
COLUMNS = {"answer": ["10", "16"], "completion_ids": [[5], [6]], "trainer_state": object()}


def test_a_reward_is_a_statistic_of_the_profile() -> None:
    profiles = JUDGE.profile_batch(zip(PROMPTS, CHAINS, COLUMNS["answer"], strict=True))
    expected = {
        "utility": [p.total for p in profiles],
        "slope": [-p.slope for p in profiles],
        "entropy": [-float(p.entropy[-1]) for p in profiles],
        "nll": [p.nll_drop for p in profiles],
    }
    for score, values in expected.items():
        reward = reasoning_utility_reward(JUDGE, score)
        assert reward(prompts=PROMPTS, completions=CHAINS, **COLUMNS) == values
        assert reward.__name__ == f"reasoning_{score}"


def test_conversations_are_read_as_the_template_writes_them() -> None:
    tokenizer = character_tokenizer("0123456789+=. {}")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    judge = ReasoningUtility(JUDGE.model, tokenizer, lead_in=" {")
    chat = reasoning_utility_reward(judge)(
        prompts=[[{"role": "user", "content": "1+9."}]],
        completions=[[{"role": "assistant", "content": CHAINS[0]}]],
        answer=["10"],
    )
    assert chat == reasoning_utility_reward(judge)(PROMPTS[:1], CHAINS[:1], ["10"])


def test_a_completion_without_text_gets_the_reward_it_was_given() -> None:
    reward = reasoning_utility_reward(JUDGE, without_steps=-1.0)
    assert reward(PROMPTS, ["", " "], ["10", "16"]) == [-1.0, -1.0]


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(ValueError, match="utility, slope, entropy, nll"):
        reasoning_utility_reward(JUDGE, "length")  # type: ignore[arg-type]


def test_grpo_trains_with_it(tmp_path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    trainer = trl.GRPOTrainer(
        model=tiny_language_model(vocab=TOKENIZER, hidden=16, layers=1, heads=2),
        reward_funcs=reasoning_utility_reward(JUDGE),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=6,
            max_steps=1,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 4, "answer": ["10", "16"] * 4}),
        processing_class=TOKENIZER,
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "reward" in row]
    assert "rewards/reasoning_utility/mean" in logged[0]
