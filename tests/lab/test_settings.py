import pytest

from szilard.catalog import Method
from szilard.lab.experiment import Experiment
from szilard.lab.settings import SettingError, configure, difference
from szilard.lab.store import config_hash
from szilard.lab.units import load_experiment


@pytest.fixture
def experiment(coin: Method) -> Experiment:
    return load_experiment(coin.experiment)


def test_values_are_json_or_bare_strings(experiment: Experiment) -> None:
    config = configure(
        experiment, "quick", ["flips=7", "coin.label=dime", "coin.bias=0.1", "fail=3"], seeds=9
    )
    assert (config.flips, config.seeds) == (7, 9)
    assert config.coin.model_dump() == {"bias": 0.1, "label": "dime"}
    # "3" is JSON for a number, but the field is a string.
    assert config.fail == "3"


def test_a_group_may_be_given_whole(experiment: Experiment) -> None:
    assert configure(experiment, "quick", ['coin={"bias": 0.2}']).coin.bias == 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("quik", []), "no preset 'quik'; did you mean 'quick'"),
        (("quick", ["flip=3"]), "no setting 'flip'; did you mean 'flips'"),
        (("quick", ["coin.bais=3"]), r"no setting 'coin.bais'; did you mean 'bias'"),
        (("quick", ["flips=many"]), "flips: got 'many'.*of type int: flips a unit"),
        (("quick", ["flips=0"]), "flips: got 0.*greater than or equal to 1"),
        (("quick", ["coin.bias=2"]), "coin.bias: got 2"),
        (("quick", ["flips.x=2"]), "flips is a value, not a group"),
        (("quick", ["flips"]), "must be key=value"),
    ],
)
def test_what_is_wrong_is_named_with_the_nearest(
    experiment: Experiment, arguments: tuple, message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        configure(experiment, *arguments)


def test_no_seeds_are_refused(experiment: Experiment) -> None:
    with pytest.raises(SettingError, match="seeds: got 0"):
        configure(experiment, "quick", [], seeds=0)


def test_the_hash_names_everything_but_the_seeds(experiment: Experiment) -> None:
    base = configure(experiment, "quick")
    assert config_hash(configure(experiment, "quick", seeds=8)) == config_hash(base)
    assert config_hash(configure(experiment, "quick", ["coin.bias=0.1"])) != config_hash(base)
    assert difference(base, configure(experiment, "quick", ["flips=1"], seeds=9)) == {"flips": 1}
