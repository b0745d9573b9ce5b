"""Reward functions for TRL's trainers and for verl: callables, bound to what they need.

TRL calls a reward function with the columns of a batch by name; verl's custom reward functions call
it from their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from szilard.decoding import ReasoningUtility

Score = Literal["utility", "slope", "entropy", "nll"]
RewardFunction = Callable[..., list[float]]


def reasoning_utility_reward(
    judge: ReasoningUtility, score: Score = "utility", *, without_steps: float = 0.0
) -> RewardFunction:
    """How much a completion tells a judge about the answer, as a reward.

    The function takes `prompts`, `completions` and the data set's column `answer`, plain or
    conversational, and returns a reward for each completion; other columns are ignored. An answer of
    None is the judge's own.

    Entropy is blind to truth: a policy can raise the utility by being persuasive. Give it beside a
    reward for being right, or take "nll".

    Args:
        judge: who reads.
        score: "utility" H_0 - H_K, "slope" the negative slope of H_k on k / K, "entropy" -H_K, or "nll"
            N_0 - N_K; nats, or the judge's unit.
        without_steps: the reward of a completion without text.

    Raises:
        ValueError: no such score; when called, as `ReasoningUtility.profile`.

    Examples:
        >>> from szilard.zoo.language import character_tokenizer, tiny_language_model
        >>> tokenizer = character_tokenizer("0123456789+=. {}")
        >>> judge = ReasoningUtility(tiny_language_model(vocab=tokenizer), tokenizer, lead_in=" {")
        >>> reward = reasoning_utility_reward(judge)
        >>> rewards = reward(prompts=["1+9. "], completions=["1+9=10."], answer=["10"])
        >>> len(rewards), isinstance(rewards[0], float)
        (1, True)

    Source: the chain utility of arXiv 2508.20395; its use as a reward is ours.
    """
    if score not in _SCORES:
        raise ValueError(f"score must be one of {', '.join(_SCORES)}, not {score!r}")

    def reasoning_utility_reward(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        answer: Sequence[str | None],
        **columns: Any,
    ) -> list[float]:
        rewards = []
        for prompt, completion, wanted in zip(prompts, completions, answer, strict=True):
            problem, chain = _problem(judge, prompt), _text(completion)
            if not chain.strip():
                rewards.append(without_steps)
                continue
            rewards.append(_SCORES[score](judge.profile(problem, chain, wanted)))
        return rewards

    # The name that trainers log.
    reasoning_utility_reward.__name__ = f"reasoning_{score}"
    return reasoning_utility_reward


_SCORES: dict[str, Callable[[Any], float]] = {
    "utility": lambda profile: profile.total,
    "slope": lambda profile: -profile.slope,
    "entropy": lambda profile: -float(profile.entropy[-1]),
    "nll": lambda profile: profile.nll_drop,
}


def _problem(judge: ReasoningUtility, prompt: Any) -> str:
    """The prompt as the policy's template writes it, up to where its answer begins."""
    if isinstance(prompt, str):
        return prompt
    text: str = judge.tokenizer.apply_chat_template(
        prompt, tokenize=False, add_generation_prompt=True
    )
    return text


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"])
