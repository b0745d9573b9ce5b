"""What the benchmark harness promises: equal answers first, then honest ratios."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    spec = spec_from_file_location("benchmark_harness", BENCHMARKS / "harness.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def case(harness: ModuleType, answer: float, **more: object) -> object:
    return harness.Case(
        "arithmetic",
        "one sum",
        ours=lambda: sum(range(10)),
        peers={"peer": lambda: answer},
        error=lambda ours, theirs: abs(ours - theirs),
        tolerance=0.5,
        **more,
    )


def test_a_peer_with_another_answer_stops_the_benchmark(harness: ModuleType) -> None:
    with pytest.raises(AssertionError, match="peer differs by 1"):
        harness.measure(case(harness, 46.0))


def test_the_difference_of_the_answers_is_reported(harness: ModuleType) -> None:
    result = harness.measure(case(harness, 45.25))
    assert result.errors == {"peer": 0.25}
    assert set(result.seconds) == {"szilard", "peer"}


def test_every_contender_is_called_equally_often_and_not_always_in_the_same_place(
    harness: ModuleType,
) -> None:
    calls: list[str] = []
    harness.measure(
        harness.Case(
            "order",
            "calls",
            ours=lambda: calls.append("szilard") or 0,
            peers={"peer": lambda: calls.append("peer") or 0},
            error=lambda ours, theirs: 0.0,
            tolerance=0.0,
        )
    )
    timed = calls[-2 * harness.ROUNDS :]
    assert timed.count("szilard") == timed.count("peer") == harness.ROUNDS
    assert {tuple(timed[i : i + 2]) for i in range(0, len(timed), 2)} == {
        ("szilard", "peer"),
        ("peer", "szilard"),
    }


def test_a_target_is_missed_on_the_wrong_side_of_its_ratio(harness: ModuleType) -> None:
    def result(**targets: tuple[float, float]) -> object:
        named = {name.replace("_", " / "): pair for name, pair in targets.items()}
        return harness.Result("k", "w", {}, {}, {}, None, named, {}, None)

    assert result(peer_szilard=(12.0, 10.0), szilard_sum=(1.5, 2.0)).missed == []
    assert result(peer_szilard=(8.0, 10.0)).missed == ["peer / szilard"]
    assert result(szilard_sum=(2.5, 2.0)).missed == ["szilard / sum"]


def test_what_takes_long_is_timed_fewer_times_and_says_so(
    harness: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "SLOW_PEER", 0.0)
    result = harness.measure(case(harness, 45.0, slow=0.0))
    assert result.rounds == {"szilard": harness.SLOW_ROUNDS, "peer": harness.SLOW_ROUNDS}


def test_an_endless_peer_is_timed_by_its_first_call_alone(
    harness: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "ENDLESS", 0.0)
    assert harness.measure(case(harness, 45.0)).rounds == {"szilard": harness.ROUNDS, "peer": 1}


def test_extra_memory_has_a_target_of_its_own(harness: ModuleType) -> None:
    result = harness.measure(case(harness, 45.0, at_most_memory=2.0**40))
    assert result.targets["extra MiB"][1] == 2.0**20
    assert result.missed == []
