"""A data file that grows by blocks, and a journal beside it that says how far it is complete.

A killed run leaves at most one unfinished block, which the next run cuts off and makes again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from macmoe.errors import DatasetError

# What settings are called where "another NAME" is not enough, and those whose values say nothing to a reader.
WORDS = {"source": "another model", "questions": "other questions"}
HASHED = ("questions",)


class Journal:
    """Blocks of JSON lines in `path`, with a line of notes on each block in `path`.journal.

    Args:
        path: The data file. It is made with the first block, or continued if its journal has the same
            settings.
        settings: What the blocks depend on.

    Attributes:
        notes: Of the blocks that are complete.

    Raises:
        DatasetError: The file exists without a journal, with one of other settings, or was changed; or it has
            no folder.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, dict(settings)
        self._path = path.with_name(f"{path.name}.journal")
        self.notes: list[dict[str, Any]] = []
        if self._path.exists():
            self._resume()
        elif path.exists():
            raise DatasetError(f"{path}: exists, and is not overwritten; choose another name")
        elif not path.parent.is_dir():
            raise DatasetError(f"{path}: its folder does not exist; make it, or choose another output")

    def add(self, rows: Sequence[Mapping[str, Any]], notes: Mapping[str, Any]) -> None:
        """Append a block; the first one makes the files, so that a run that fails before it leaves none."""
        if not self._path.exists():
            self.path.touch()
            _append(self._path, [{"settings": self.settings, "bytes": 0}])
        _append(self.path, rows)
        _append(self._path, [{**notes, "bytes": self.path.stat().st_size}])
        self.notes.append(dict(notes))

    def _resume(self) -> None:
        """Read the journal, and cut what is not complete off both files."""
        content = self._path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        try:
            first, *blocks = map(json.loads, complete.splitlines())
            known, size = first["settings"], (blocks or [first])[-1]["bytes"]
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{self._path}: not a journal ({error}); choose another output") from None
        if known != self.settings:
            raise DatasetError(
                f"{self.path}: was begun with {' and '.join(_differences(known, self.settings))}; "
                "finish it with the same settings, choose another output, or "
                f"delete {self.path} and {self._path} to begin anew"
            )
        if not self.path.exists() or self.path.stat().st_size < size:
            raise DatasetError(f"{self.path}: is shorter than its journal says; choose another output")
        os.truncate(self._path, len(complete))
        os.truncate(self.path, size)
        self.notes = [{key: value for key, value in block.items() if key != "bytes"} for block in blocks]


def _differences(known: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs, with both values; of settings in groups those that do."""
    for key, value in given.items():
        before = known.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            yield from _differences(before, value)
        elif value != before:
            values = "" if key in HASHED else f" ({before!r}, not {value!r})"
            yield f"{WORDS.get(key, f'another {key}')}{values}"


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON lines to the end of a file and wait until they are on the disk."""
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
