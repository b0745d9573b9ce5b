"""Rows of a unit, checked and turned into a table."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

RESERVED = ("arm", "seed")


class RowError(ValueError):
    """An experiment returned a row that is not one."""


def to_table(arm: str, seed: int, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Checks the rows of one unit and makes them a table.

    Args:
        arm: value of the first column.
        seed: value of the second column.
        rows: observations with `metric` (str), `value` (number, finite or NaN) and own keys, whose
            values are numbers, strings, booleans or None.

    Returns:
        Columns arm, seed, metric, value and the rows' own in order of appearance; a key that a row
        lacks is null there.

    Raises:
        RowError: there are no rows, or one is not as above.

    Examples:
        >>> to_table("typical", 0, [{"metric": "rep", "value": 0.5}]).column_names
        ['arm', 'seed', 'metric', 'value']
    """
    if not rows:
        raise RowError("the unit returned no rows")
    for i, row in enumerate(rows):
        _check(i, row)
    own = dict.fromkeys(key for row in rows for key in row if key not in ("metric", "value"))
    columns = {
        "arm": pa.array([arm] * len(rows), pa.string()),
        "seed": pa.array([seed] * len(rows), pa.int64()),
        "metric": pa.array([row["metric"] for row in rows], pa.string()),
        "value": pa.array([float(row["value"]) for row in rows], pa.float64()),
    }
    for key in own:
        try:
            columns[key] = pa.array([_plain(row.get(key)) for row in rows])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise RowError(f"column {key!r} mixes types: {error}") from error
    return pa.table(columns)


def _check(i: int, row: Mapping[str, Any]) -> None:
    if not isinstance(row, Mapping):
        raise RowError(f"row {i} is a {type(row).__name__}, must be a mapping")
    if not isinstance(row.get("metric"), str):
        raise RowError(f"row {i}: metric is {row.get('metric')!r}, must be a string")
    value = row.get("value")
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real | np.number):
        raise RowError(f"row {i} ({row['metric']}): value is {value!r}, must be a number")
    if math.isinf(value):
        raise RowError(f"row {i} ({row['metric']}): value is {value}, must be finite or NaN")
    for key, content in row.items():
        if not isinstance(key, str) or key in RESERVED:
            raise RowError(f"row {i} ({row['metric']}): key {key!r} is reserved or no string")
        if key not in ("metric", "value") and not isinstance(
            content, str | numbers.Real | np.generic | None
        ):
            raise RowError(
                f"row {i} ({row['metric']}): {key} is a {type(content).__name__}, "
                f"must be a number, string, boolean or None"
            )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
