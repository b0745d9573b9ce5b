import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from szilard.lab.rows import RowError, to_table
from szilard.lab.store import Unit


def test_keys_that_a_row_lacks_are_null() -> None:
    table = to_table(
        "a",
        3,
        [{"metric": "x", "value": 1}, {"metric": "y", "value": np.float32(2), "step": np.int64(5)}],
    )
    assert table.column("step").to_pylist() == [None, 5]
    assert table.column("seed").to_pylist() == [3, 3]


def test_nan_is_a_value() -> None:
    table = to_table("a", 0, [{"metric": "x", "value": math.nan}])
    assert math.isnan(table.column("value")[0].as_py())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        (["x"], "must be a mapping"),
        ([{"value": 1.0}], "metric is None"),
        ([{"metric": 3, "value": 1.0}], "metric is 3"),
        ([{"metric": "x"}], "value is None"),
        ([{"metric": "x", "value": "1"}], "value is '1'"),
        ([{"metric": "x", "value": True}], "value is True"),
        ([{"metric": "x", "value": math.inf}], "finite or NaN"),
        ([{"metric": "x", "value": 1.0, "arm": "b"}], "reserved"),
        ([{"metric": "x", "value": 1.0, "k": [1]}], "k is a list"),
        (
            [{"metric": "x", "value": 1.0, "k": 1}, {"metric": "x", "value": 1.0, "k": "b"}],
            "'k' mixes types",
        ),
    ],
)
def test_a_row_that_is_none_is_named(rows: list, message: str) -> None:
    with pytest.raises(RowError, match=message):
        to_table("a", 0, rows)


@given(st.text(min_size=1, max_size=300), st.text(min_size=1, max_size=300))
def test_any_arm_name_makes_a_file_name_of_its_own(one: str, other: str) -> None:
    names = [Unit(arm, 0).name for arm in (one, other)]
    assert (names[0] == names[1]) == (one == other)
    assert all("/" not in name and "\0" not in name and len(name) < 140 for name in names)
