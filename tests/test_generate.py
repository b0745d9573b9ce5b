"""`szilard generate`: the same seed writes the same text, and an explanation tells of each token."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from szilard.cli import app
from szilard.cli.console import UserError
from szilard.cli.writers import WRITERS, parse_setting
from szilard.zoo.language import character_tokenizer, tiny_language_model


def saved(folder: Path, letters: str, **settings: int) -> str:
    """An untrained model of letters, as a folder."""
    tokenizer = character_tokenizer(letters)
    model = tiny_language_model(vocab=tokenizer, layers=1, hidden=16, heads=2, **settings)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("letters"), "abcdefgh ", positions=64)


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["generate", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_same_seed_writes_the_same_text(model: str) -> None:
    written = [
        call("abc", "--model", model, "-n", "12", "--seed", seed).stdout for seed in ("1", "1", "2")
    ]
    assert written[0] == written[1] != written[2]
    assert written[0].startswith("abc")


def test_greedy_text_does_not_depend_on_the_seed(model: str) -> None:
    written = {
        call("abc", "--model", model, "-n", "8", "--greedy", "--seed", seed).stdout
        for seed in ("1", "2")
    }
    assert len(written) == 1


def test_typical_sampling_takes_its_settings(model: str) -> None:
    arguments = ("abc", "--model", model, "-n", "8", "--method", "typical-sampling", "--explain")
    few = call(*arguments, "--set", "mass=0.05").stdout
    assert "tokens kept on average 1.0" in few
    assert "entropy 0" in few
    with pytest.raises(UserError, match="did you mean 'mass'"):
        call(*arguments, "--set", "mas=0.05")
    with pytest.raises(UserError, match="mass must"):
        call(*arguments, "--set", "mass=2")


def test_entropy_adaptive_decoding_says_who_wrote_each_token(model: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    arguments = ("abc", "--model", model, "-n", "9", "--method", "entropy-adaptive-decoding")
    pair = ("--set", f"small={model}", "--set", "min_dwell=1")
    shown = call(*arguments, *pair, "--set", "tau_bits=0", "--explain", "--html", str(page)).stdout
    # The untrained model is never certain: the large one takes over after the first token.
    assert "underlined: model small (1 of" in shown
    assert "of the FLOPs" in shown
    assert "rolling bits" in page.read_text()
    alone = call(*arguments, *pair, "--set", "tau_bits=1e9").stdout
    assert alone == call(*arguments, *pair, "--set", "tau_bits=0").stdout
    with pytest.raises(UserError, match="tau_bits must"):
        call(*arguments, *pair, "--set", "tau_bits=-1")
    with pytest.raises(UserError, match="small=/no/such"):
        call(*arguments, "--set", "small=/no/such/folder")


def test_two_models_of_different_tokens_are_refused(model: str, tmp_path: Path) -> None:
    other = saved(tmp_path, "hgfedcba ")
    with pytest.raises(UserError, match="8 tokens differ"):
        call(
            *("abc", "--model", model, "--method", "entropy-adaptive-decoding"),
            *("--set", f"small={other}"),
        )


def test_uscd_contrasts_with_the_prompt_without_its_examples(model: str) -> None:
    arguments = ("abc ab", "--model", model, "-n", "6", "--method", "uscd", "--explain", "--greedy")
    shown = call(*arguments, "--set", "lame=hg", "--set", "eta=0", "--set", "collision=1").stdout
    assert "underlined: contrast" in shown
    assert "4 characters shorter" in shown
    assert "contrasted" in shown
    closed = call(*arguments, "--set", "lame=hg", "--set", "collision=0.001").stdout
    assert "contrast (0 of" in closed
    assert "no worked example was found" in call(*arguments).stdout
    with pytest.raises(UserError, match="alpha must"):
        call(*arguments, "--set", "alpha=-1")
    with pytest.raises(UserError, match="did you mean 'lame'"):
        call(*arguments, "--set", "lam=hg")


def test_a_page_holds_every_token_and_needs_no_network(model: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    call("abc", "--model", model, "-n", "9", "--method", "typical-sampling", "--html", str(page))
    text = page.read_text()
    assert "tokens kept" in text
    said = re.search(r"<b>(\d+)</b> tokens", text)
    held = re.search(r"const TOKENS = (.*);", text)
    assert said is not None
    assert held is not None
    # The untrained model may end its text before the ninth token.
    assert 1 <= int(said[1]) == len(json.loads(held[1])) <= 9
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((" ",), "prompt is empty"),
        (("a", "--method", "typical-samplin"), "did you mean 'typical-sampling'"),
        (("a", "--temperature", "0"), "must be positive"),
        (("a", "--html", "/no/such/folder/x.html"), "no folder"),
    ],
)
def test_bad_arguments_are_refused_before_a_model_is_loaded(
    arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        call(*arguments, "--model", "no-such-model")


def test_diffadapt_tells_its_strategy_and_asks_for_a_probe(tmp_path: Path) -> None:
    import numpy as np

    from szilard.decoding import DifficultyProbe

    model = saved(tmp_path, "abcdefgh ")
    h = np.random.default_rng(0).normal(size=(30, 16))
    probe = tmp_path / "probe.safetensors"
    DifficultyProbe(hidden=4, epochs=2).fit(h, np.arange(30) % 3).save(probe)
    arguments = ("abc", "--model", model, "-n", "10", "--method", "diffadapt", "--explain")
    with pytest.raises(UserError, match=r"--set probe=FILE.*collect"):
        call(*arguments)
    with pytest.raises(UserError, match="there is no"):
        call(*arguments, "--set", "probe=nowhere.safetensors")
    shown = call(*arguments, "--set", f"probe={probe}").stdout
    assert re.search(r"strategy (easy|normal|hard)", shown)
    assert re.search(r"probabilities easy 0\.\d\d, normal 0\.\d\d, hard 0\.\d\d", shown)
    assert re.search(r"tokens \d+ of 10", shown)
    assert call(*arguments, "--set", f"probe={probe}").stdout == shown


def test_reasoning_utility_stops_and_says_where(model: str) -> None:
    arguments = ("abc", "--model", model, "-n", "12", "--method", "reasoning-utility", "--explain")
    settings = ("--set", "boundary=[a-h]", "--set", "lead_in= ", "--set", "answer_tokens=2")
    shown = call(*arguments, *settings, "--set", "h_stop=9").stdout
    assert re.search(r"stopped after step 1, token \d+", shown)
    assert "underlined: stopped (1 of" in shown
    assert "steps 1" in shown
    whole = call(*arguments, *settings, "--set", "h_stop=0", "--set", "patience=null").stdout
    assert "stopped not before the end" in whole
    assert "underlined: stopped (0 of" in whole
    with pytest.raises(UserError, match="h_stop must"):
        call(*arguments, "--set", "h_stop=-1")


def test_a_prompt_longer_than_the_context_is_refused(model: str) -> None:
    with pytest.raises(UserError, match="64 tokens"):
        call("abc" * 21, "--model", model, "-n", "8")


def test_every_writer_is_a_method_of_the_catalogue_or_plain() -> None:
    from szilard.catalog import METHODS

    assert set(WRITERS) - {"plain"} <= {method.slug for method in METHODS}


def test_a_setting_needs_an_equals_sign() -> None:
    assert parse_setting("a=[1, 2]") == ("a", [1, 2])
    with pytest.raises(UserError, match="KEY=VALUE"):
        parse_setting("mass")
