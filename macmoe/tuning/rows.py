"""Rows of data files as they stand: JSON in any layout, and Parquet, each with its place."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macmoe.errors import DatasetError, MacmoeError
from macmoe.files import refuse_pointer
from macmoe.tuning.layouts import rows_in


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row comes from; `line` counts from 1, and counts rows where these are no lines of their own."""

    file: str
    line: int

    def __str__(self) -> str:
        """Write it as compilers do."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejections:
    """What becomes of bad rows: the first is an error or, with `skip`, each one is left out and listed.

    Attributes:
        skip: Whether to go on after a bad row.
        reasons: One line for each row that was left out: its place, and what is wrong with it.
    """

    skip: bool = False
    reasons: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def at(self, place: Place) -> Iterator[None]:
        """Take every expected failure inside the block for one of the row at this place.

        Raises:
            DatasetError: There was one, and `skip` is off.
        """
        try:
            yield
        except MacmoeError as error:
            reason = f"{place}: {error}"
            if not self.skip:
                raise DatasetError(reason) from error
            self.reasons.append(reason)


def read_rows(path: Path) -> Iterator[tuple[Place, Any]]:
    """Yield the rows of one file, in order, for `as_object` to look into.

    Raises:
        DatasetError: The file is of an unknown kind, a pointer of Git LFS, or cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise DatasetError(f"{path}: not a file of training data, which end in {', '.join(READERS)}")
    refuse_pointer(path, DatasetError)
    try:
        for line, row in READERS[suffix](path):
            yield Place(str(path), line), row
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}") from error


def as_object(row: Any) -> dict[str, Any]:
    """Return a row as the JSON object it has to be; DatasetError where it is none."""
    value = _parse(row) if isinstance(row, bytes) else row
    if not isinstance(value, dict):
        raise DatasetError(f"a row must be a JSON object, not {type(value).__name__}")
    return value


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    """Read JSON lines as they come; a file that is no such lines is read as a whole."""
    with path.open("rb") as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        start = list(itertools.islice(lines, 2))
        whole = None if len(start) == 2 and _is_row(start[0][1]) else _read_whole(path)
        yield from itertools.chain(start, lines) if whole is None else enumerate(whole, start=1)


def _read_whole(path: Path) -> list[Any] | None:
    """Return the rows of a file of another layout; None where lines are the better guess."""
    try:
        return rows_in(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError:
        return None  # the line that is not text is named then
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(_parse(line), dict)
    except DatasetError:
        return False


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415 - optional, and slow to import
    except ImportError:
        raise DatasetError(
            f"{path}: Parquet needs pyarrow, which is not installed: pip install 'macmoe[data]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(batch_size=1024) for row in batch.to_pylist())
            yield from enumerate(rows, start=1)
    except ArrowException as error:
        raise DatasetError(f"{path}: not a readable Parquet file ({error}); fetch it again") from error


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DatasetError(f"not UTF-8 ({error.reason} at byte {error.start}); convert it") from None
    except (ValueError, RecursionError) as error:
        found = isinstance(error, json.JSONDecodeError)
        reason = f"{error.msg} at character {error.pos + 1}" if found else error
        raise DatasetError(f"not valid JSON ({reason}); a row is one line, a file one list of rows") from None


READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
