"""Which form a row of a data set has: its fields under macmoe's names, and its conversation.

What holds nothing (null, a blank text, an empty list or object) is absent, as data sets with a column for
everything write it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from macmoe.config import nearest
from macmoe.errors import DatasetError, UsageError
from macmoe.tuning.spellings import (
    ANSWER,
    FIELD_OF,
    FORMS,
    MAIN_FORMS,
    PAIRS,
    QUESTION,
    RATINGS,
    RECORD_FIELDS,
)


def check_columns(columns: Mapping[str, Any]) -> None:
    """Refuse names of columns that make no sense.

    Args:
        columns: Which column is which field, as `DataOptions.columns`.

    Raises:
        UsageError: A field is unknown, or two columns would be the same one.
    """
    for column, field in columns.items():
        if not isinstance(field, str) or field not in FIELD_OF:
            raise UsageError(
                f"columns: {column!r} cannot be {field!r}; a column can be {', '.join(RECORD_FIELDS)}"
                f"{nearest(str(field), list(FIELD_OF))}"
            )
    fields = [FIELD_OF[field] for field in columns.values()]
    twice = next((field for field in fields if fields.count(field) > 1), None)
    if twice:
        both = [column for column, field in columns.items() if FIELD_OF[field] == twice]
        raise UsageError(f"columns: {' and '.join(map(repr, both))} cannot both be the {twice}; keep one")


def parse_columns(text: str) -> dict[str, str]:
    """Read `instruction=prompt,output=completion`.

    Raises:
        UsageError: It is not of this form, or makes no sense.
    """
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    columns = {column.strip(): field.strip() for column, _, field in pairs}
    complete = all(equals and column.strip() for column, equals, _ in pairs)
    if not columns or len(columns) < len(pairs) or not complete:
        raise UsageError(
            f"columns: {text!r} does not say which column is which field; write COLUMN=FIELD,COLUMN=FIELD, "
            "such as instruction=prompt,output=completion"
        )
    check_columns(columns)
    return columns


def read_fields(
    row: Mapping[str, Any], columns: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a row under macmoe's names, and the columns that no field has.

    Args:
        row: The row.
        columns: Which of its columns are which fields, where the names do not say it.

    Raises:
        DatasetError: The row has no known form, or says something twice and differently.
    """
    named, ignored = _renamed(row, columns or {})
    filled = {key: value for key, value in named.items() if not _is_empty(value)}
    given = {key: value for key, value in named.items() if value is not None}
    for fields in (filled, given):
        form = _form(fields)
        if form:
            _refuse_bad_rating(fields, form)
            needed, optional = form
            table = {name: RECORD_FIELDS[name] for name in (*needed, *optional)}
            used, others = spelled(fields, table, hint=True)
            absent = {name for name in optional if _is_empty(used.get(name))}
            used = {name: value for name, value in used.items() if name not in absent}
            return used, ignored + [key for key in others if not _is_empty(named[key])]
    known = ", ".join(" + ".join(needed) for needed in MAIN_FORMS)
    raise DatasetError(
        pair_in(row)
        or f"has none of the forms {known}, but {', '.join(map(repr, row)) or 'nothing'}"
        + _way_on(row, columns)
    )


def conversation(fields: Mapping[str, Any]) -> list[Any]:
    """Return the messages of a record of any form but a text, still as dictionaries."""
    items = [{"role": "system", "content": text_of(fields["system"], "system")}] if "system" in fields else []
    if "messages" in fields:
        return items + list_of(fields["messages"], "messages")
    items += _history(fields.get("history", ()))
    items += _question([name for name in QUESTION if name in fields], fields)
    completion = next((fields[name] for name in ANSWER if name in fields), None)
    if isinstance(completion, str):
        return [*items, {"role": "assistant", "content": completion, "reasoning": fields.get("reasoning")}]
    if "reasoning" in fields:
        raise DatasetError("reasoning stands beside a completion that is a list; put it into its message")
    if isinstance(completion, Mapping):
        return [*items, completion]
    return items if completion is None else items + list_of(completion, "completion")


def spelled(
    data: Mapping[str, Any], table: Mapping[str, Sequence[str]], *, hint: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a table under macmoe's names, and the other keys; null means absent.

    Raises:
        DatasetError: A field is given twice, and differently; with `hint` it says how columns are chosen.
    """
    fields: dict[str, Any] = {}
    others = {key: value for key, value in data.items() if value is not None}
    for name, spellings in table.items():
        given = [key for key in others if _plain(key) in spellings]
        values = [others.pop(key) for key in given]
        if any(value != values[0] for value in values):
            way = f"; `--columns {given[-1]}={name}` chooses one" if hint else ""
            raise DatasetError(f"{' and '.join(map(repr, given))} both give the {name}, and differ{way}")
        if values:
            fields[name] = values[0]
    return fields, [str(key) for key in others]


def pair_in(row: Mapping[str, Any]) -> str:
    """Say that a row holds a better and a worse answer, and what to do; empty if it does not."""
    keys = {_plain(key): key for key, value in row.items() if not _is_empty(value)}
    pair = next((pair for pair in PAIRS if keys.keys() >= set(pair)), None)
    if pair is None:
        return ""
    better, worse = (keys[name] for name in pair)
    way = _chosen_side(row, keys, better)
    what = f"it is a preference pair ({better!r} and {worse!r}, for DPO), which is not trained on here yet"
    return f"{what}; " + (
        f"`--columns {way}` trains on the {better} side" if way else "write its better side as messages"
    )


def text_of(value: Any, name: str) -> str:
    """Return a text that is not empty; DatasetError for anything else."""
    if not isinstance(value, str) or not value.strip():
        raise DatasetError(f"{name} must be text that is not empty, not {str(value)[:60]!r}")
    return value


def list_of(value: Any, name: str) -> list[Any]:
    """Return a list that may be written as JSON, as data sets do where a column must be text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{name} is text but no JSON list ({error})") from None
    if not isinstance(value, list | tuple):
        raise DatasetError(f"{name} must be a list, not {type(value).__name__}")
    return list(value)


def _plain(key: Any) -> str:
    return str(key).strip().lower().replace(" ", "_").replace("-", "_")


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, Mapping | list | tuple) and not value)


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Give the named columns the names of their fields; other columns of these fields are left out."""
    chosen = {_target(column, field): row[column] for column, field in columns.items() if column in row}
    rest = {key: value for key, value in row.items() if key not in columns}
    taken = {FIELD_OF[field] for column, field in columns.items() if column in row}
    others = {key: value for key, value in rest.items() if FIELD_OF.get(_plain(key)) not in taken}
    return {**others, **chosen}, [key for key in rest if key not in others and not _is_empty(rest[key])]


def _target(column: str, field: str) -> str:
    """Return the field that a column becomes: an instruction stays one, with the input beside it."""
    name = FIELD_OF[field]
    return "instruction" if name == "prompt" and FIELD_OF.get(_plain(column)) == "instruction" else name


def _form(fields: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    given = {FIELD_OF.get(_plain(key)) for key in fields}
    return next((form for form in FORMS if given.issuperset(form[0])), None)


def _way_on(row: Mapping[str, Any], columns: Mapping[str, str] | None) -> str:
    missing = [column for column in columns or {} if column not in row]
    if missing:
        return f"; it does not have {' and '.join(map(repr, missing))}, which --columns names"
    return "; `--columns COLUMN=prompt,COLUMN=completion` says what its columns are" if row else ""


def _refuse_bad_rating(fields: Mapping[str, Any], form: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
    """Refuse an answer that the row itself calls bad; it would be learned like a good one."""
    bad = next((key for key, value in fields.items() if _plain(key) in RATINGS and value is False), None)
    if bad is not None and (set(form[0]) & {"messages", *ANSWER}):
        raise DatasetError(
            f"{bad!r} is false, which calls the answer a bad one (for KTO, not trained on here yet), and it "
            "would be learned; leave such rows out, as --skip-bad does, or the column if it says other things"
        )


def _chosen_side(row: Mapping[str, Any], keys: Mapping[str, str], better: str) -> str:
    """Return the columns that make a sample of the better side of a pair; empty if there are none."""
    chosen = row[better]
    first = chosen[0] if isinstance(chosen, list | tuple) else chosen
    if isinstance(first, Mapping) and first.get("role", first.get("from")) not in ("assistant", "gpt", None):
        return f"{better}=messages"
    for field in ("messages", "prompt", "instruction"):
        key = next((keys[name] for name in RECORD_FIELDS[field] if name in keys), None)
        if key is not None:
            return f"{key}=prompt,{better}=completion" if field == "messages" else f"{better}=completion"
    return ""


def _history(value: Any) -> list[Any]:
    """Return earlier turns: pairs of question and answer as LLaMA-Factory has them, or messages."""
    messages: list[Any] = []
    for turn in list_of(value, "history"):
        if isinstance(turn, Mapping):
            messages.append(turn)
        elif isinstance(turn, list | tuple) and len(turn) == 2:
            roles = zip(("user", "assistant"), turn, strict=True)
            messages += [{"role": role, "content": text} for role, text in roles if text is not None]
        else:
            raise DatasetError(f"history must hold pairs of question and answer, not {str(turn)[:60]!r}")
    return messages


def _question(names: Sequence[str], fields: Mapping[str, Any]) -> list[Any]:
    if len(names) == 1 and not isinstance(fields[names[0]], str):
        return list_of(fields[names[0]], names[0])
    text = "\n\n".join(text_of(fields[name], name) for name in names)
    return [{"role": "user", "content": text}]
