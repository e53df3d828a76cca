"""JSON files that are no lines of rows: rows over several lines, a list, rows under the keys of an object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from macmoe.errors import DatasetError
from macmoe.tuning.spellings import FIELD_OF

_WRITE = "write rows, as pandas does with to_json(..., orient='records', lines=True)"


def rows_in(text: str) -> list[Any] | None:
    """Return the rows of a file; None where it is no sequence of objects, but perhaps lines with bad ones.

    Raises:
        DatasetError: It holds columns, or several lists of rows.
    """
    values = _values(text)
    if values is None:
        return None
    if len(values) == 1:
        return values[0] if isinstance(values[0], list) else _rows_of(values[0])
    return values if all(isinstance(value, dict) for value in values) else None


def _values(text: str) -> list[Any] | None:
    """Return the JSON values that stand one after another; None where anything else stands between them."""
    decoder, values, place = json.JSONDecoder(), [], 0
    text = text.strip()
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            if text.startswith("[") and not values:
                raise DatasetError(
                    f"not valid JSON ({error.msg} at line {error.lineno}); a list ends with ]"
                ) from None
            return None
        except RecursionError:
            return None
        values.append(value)
        while place < len(text) and text[place].isspace():
            place += 1
    return values


def _rows_of(value: Any) -> list[Any] | None:
    """Return the rows of a file that is one value: itself, or what stands under its keys."""
    if not isinstance(value, dict):
        return None
    if any(FIELD_OF.get(key.lower()) for key in value):
        _refuse_columns(value)
        return [value]
    lists = {key: found for key, found in value.items() if _are_objects(found)}
    if len(lists) > 1:
        raise DatasetError(
            f"holds several lists of rows ({', '.join(map(repr, lists))}); write each to a file of its own, "
            "such as train.json and valid.json in one folder"
        )
    if lists:
        return next(iter(lists.values()))
    objects = list(value.values())
    return objects if _are_objects(objects) else [value]


def _refuse_columns(value: Mapping[str, Any]) -> None:
    """Refuse a table that is written column by column: it would look like one long row."""
    columns = [found for key, found in value.items() if FIELD_OF.get(key.lower())]
    by_index = all(isinstance(found, dict) and found and all(map(str.isdigit, found)) for found in columns)
    as_lists = all(isinstance(found, list) and found and _are_texts(found) for found in columns)
    if by_index or as_lists:
        raise DatasetError(f"holds columns ({', '.join(map(repr, value))}) and not rows; {_WRITE}")


def _are_texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _are_objects(value: Any) -> bool:
    """Tell whether a value is a list of rows; one of messages is a part of a row."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and not item.keys() & {"role", "from"} for item in value)
    )
