"""Which form a row of a data set has: its fields under macmoe's names.

What holds nothing (null, a blank text, an empty list or object) is absent, as data sets with a column for
everything write it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from macmoe.chat.history import medium_of
from macmoe.config import nearest
from macmoe.errors import DatasetError, UsageError
from macmoe.tuning.spellings import (
    ANSWER,
    ASKS,
    FIELD_OF,
    FORMS,
    MAIN_FORMS,
    PAIRS,
    QUESTION,
    RATINGS,
    RECORD_FIELDS,
    RIVALS,
)
from macmoe.tuning.turns import is_empty, is_whole

_Form = tuple[tuple[str, ...], tuple[str, ...]]


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
    filled = {key: value for key, value in named.items() if not is_empty(value)}
    given = {key: value for key, value in named.items() if value is not None}
    for fields in (filled, given):
        form = _form(fields)
        if form:
            _refuse_bad_rating(fields, form)
            _refuse_rival(fields, form, columns or {})
            needed, optional = form
            table = {name: RECORD_FIELDS[name] for name in (*needed, *optional)}
            used, others = spelled(fields, table, hint=True)
            absent = {name for name in optional if is_empty(used.get(name))}
            used = {name: value for name, value in used.items() if name not in absent}
            unused = ignored + [key for key in others if not is_empty(named[key])]
            _refuse_media(unused)
            return used, unused
    known = ", ".join(" + ".join(needed) for needed in MAIN_FORMS)
    raise DatasetError(
        pair_in(row)
        or f"has none of the forms {known}, but {', '.join(map(repr, row)) or 'nothing'}"
        + _way_on(row, columns)
    )


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
    keys = {_plain(key): key for key, value in row.items() if not is_empty(value)}
    pair = next((pair for pair in PAIRS if keys.keys() >= set(pair)), None)
    if pair is None:
        return ""
    better, worse = (keys[name] for name in pair)
    way = _chosen_side(row, keys, better)
    what = f"it is a preference pair ({better!r} and {worse!r}, for DPO), which is not trained on here yet"
    return f"{what}; " + (
        f"`--columns {way}` trains on the {better} side" if way else "write its better side as messages"
    )


def _plain(key: Any) -> str:
    return str(key).strip().lower().replace(" ", "_").replace("-", "_")


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Give the columns the names of their fields; others of the fields that were named are left out."""
    chosen = {column: FIELD_OF[field] for column, field in columns.items() if column in row}
    filled = {key: FIELD_OF.get(_plain(key)) for key, value in row.items() if not is_empty(value)}
    given = {chosen.get(key, field) for key, field in filled.items()}
    named: dict[str, Any] = {}
    unused = []
    for key, value in row.items():
        if key in chosen:
            named[_target(key, value, chosen[key], given)] = value
            continue
        name = _beside(key, value, given, set(chosen.values()))
        if name:
            named[name] = value
        elif key in filled:
            unused.append(key)
    return named, unused


def _target(column: str, value: Any, field: str, given: set[str | None]) -> str:
    """Return the field that a column becomes: an instruction stays one, with the input beside it."""
    if field == "prompt" and FIELD_OF.get(_plain(column)) == "instruction":
        return "instruction"
    alone = field == "completion" and not given & {"messages", *ASKS}
    return "messages" if alone and is_whole(value) else field


def _beside(key: str, value: Any, given: set[str | None], chosen: set[str]) -> str:
    """Return the name of a column that was not chosen, beside those that were; empty to leave it out."""
    field = FIELD_OF.get(_plain(key))
    if field in chosen:
        return ""
    if field == "messages" and "completion" in chosen:  # an answer apart: these come before it
        return "" if given & ASKS else "prompt"
    is_thought = isinstance(value, str) and len(value.split()) > 1  # no mode has two words
    if _plain(key) == "thinking" and is_thought and not given & {"messages", "reasoning"}:
        return "thinking_text"
    return key


def _form(fields: Mapping[str, Any]) -> _Form | None:
    given = {FIELD_OF.get(_plain(key)) for key in fields}
    return next((form for form in FORMS if given.issuperset(form[0])), None)


def _way_on(row: Mapping[str, Any], columns: Mapping[str, str] | None) -> str:
    missing = [column for column in columns or {} if column not in row]
    if missing:
        return f"; it does not have {' and '.join(map(repr, missing))}, which --columns names"
    return "; `--columns COLUMN=prompt,COLUMN=completion` says what its columns are" if row else ""


def _refuse_media(columns: Iterable[str]) -> None:
    """Refuse what a question may be about and no model can see; a file may just be its source."""
    held = ((column, medium_of(column)) for column in columns)
    column, medium = next(((name, kind) for name, kind in held if kind not in (None, "a file")), ("", None))
    if medium:
        raise DatasetError(
            f"holds {medium} ({column!r}), and these models read text only; leave such rows out, as "
            "--skip-bad does, or remove the column"
        )


def _refuse_bad_rating(fields: Mapping[str, Any], form: _Form) -> None:
    """Refuse an answer that the row itself calls bad; it would be learned like a good one."""
    bad = next((key for key, value in fields.items() if _plain(key) in RATINGS and value is False), None)
    if bad is not None and (set(form[0]) & {"messages", *ANSWER}):
        raise DatasetError(
            f"{bad!r} is false, which calls the answer a bad one (for KTO, not trained on here yet), and it "
            "would be learned; leave such rows out, as --skip-bad does, or the column if it says other things"
        )


def _refuse_rival(fields: Mapping[str, Any], form: _Form, columns: Mapping[str, str]) -> None:
    """Refuse a question that is said twice, or has a part that would be lost, unless columns choose."""
    main, known = form[0][0], {name for names in form for name in names}
    if main not in QUESTION or {FIELD_OF[field] for field in columns.values()} & {*QUESTION}:
        return
    by_field = {FIELD_OF.get(_plain(key)): key for key in fields}
    asked = by_field[main]
    for field, key in by_field.items():
        value = fields[key]
        if field in RIVALS and field not in known and isinstance(value, str):
            _refuse_part(field, key, value, asked, fields[asked])


def _refuse_part(field: str, key: str, value: str, asked: str, question: Any) -> None:
    """Refuse a column beside a question that does not hold it already."""
    if field == "instruction" and value != question:
        raise DatasetError(
            f"{asked!r} and {key!r} both give the question, and differ; `--columns {key}=prompt` takes "
            f"{key!r}, with an input beside it, `--columns {asked}=prompt` takes {asked!r}"
        )
    if value not in str(question):
        raise DatasetError(
            f"{key!r} stands beside {asked!r} and would be left out; `--columns {asked}=instruction` "
            f"joins the two, `--columns {asked}=prompt` leaves it out"
        )


def _chosen_side(row: Mapping[str, Any], keys: Mapping[str, str], better: str) -> str:
    """Return the columns that make a sample of the better side of a pair; empty if there are none."""
    asks = any(FIELD_OF.get(name) in ("messages", *ASKS) for name in keys)
    return f"{better}=completion" if asks or is_whole(row[better]) else ""
