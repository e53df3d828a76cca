"""Data sets: a file, a folder or a hub id becomes records, and every bad row is an error with its place.

| a row has | it is |
|---|---|
| `messages` | a conversation; each answer with a weight is learned, with its `reasoning` |
| `prompt`, `completion`, perhaps `reasoning` | a conversation of one question |
| `prompt` | a question without an answer, for `macmoe lora distill` |
| `text` | a plain text, learned as a whole, without a chat format |

Other spellings of these names (ShareGPT, OpenAI, Alpaca, ...) are listed in macmoe/tuning/spellings.py; of a
data set with others, `columns` says which is which.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from macmoe.config import nearest
from macmoe.downloads import download
from macmoe.errors import CheckpointError, DatasetError
from macmoe.location import HUB_ID
from macmoe.paths import expand_home
from macmoe.tuning.forms import check_columns
from macmoe.tuning.records import Record, read_record
from macmoe.tuning.rows import READERS, Rejections, as_object, read_rows

# The splits of a folder, by the first word of a file's name, or of the name of the folder it lies in.
SPLITS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev", "eval"),
    "test": ("test",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The records of one split.

    Attributes:
        records: In the order of the files.
        ignored: How many rows had each column that says nothing a record could hold.
        rejected: A line for each bad row that was left out.
        unused: Data files in the folder that belong to no split.
    """

    records: tuple[Record, ...]
    ignored: Counter[str]
    rejected: tuple[str, ...]
    unused: tuple[str, ...]

    def notes(self) -> Iterator[str]:
        """Yield a line for columns and files that are passed over."""
        if self.ignored:
            names, counts = (
                ", ".join(map(str, part)) for part in (map(repr, self.ignored), self.ignored.values())
            )
            are = "column {} is" if len(self.ignored) == 1 else "columns {} are"
            yield f"{are.format(names)} not used ({counts} rows)"
        for file in self.unused:
            yield f"{file} is not used: its name begins with no split"


def read_dataset(
    name: str, split: str = "train", *, skip_bad: bool = False, columns: Mapping[str, str] | None = None
) -> Dataset:
    """Read one split of a data set.

    Args:
        name: A file (.jsonl, .json, .parquet), a folder of files whose names begin with train, valid or test,
            or a hub id such as "owner/name". A single file is the split train.
        split: "train", "valid" or "test".
        skip_bad: Leave bad rows out and list them, instead of failing at the first.
        columns: Which columns are which fields ({"instruction": "prompt"}), where their names do not say it.

    Raises:
        DatasetError: There is no such data set, split or column, it is empty, or a row is bad.
        UsageError: `columns` makes no sense.
    """
    check_columns(columns or {})
    splits = find_files(name)
    files = splits.get(split)
    if not files:
        raise DatasetError(f"{name}: has no split {split!r}; name a file {split}.jsonl")
    rejections, ignored, records = Rejections(skip=skip_bad), Counter[str](), []
    known: dict[str, None] = {}  # columns, in order
    for path in files:
        for place, row in read_rows(path):
            with rejections.at(place):
                data = as_object(row)
                known.update(dict.fromkeys(data))
                record, unused = read_record(data, place, columns)
                records.append(record)
                ignored.update(unused)
    _check_known(name, columns or {}, known)
    if not records:
        left_out = f", only {len(rejections.reasons)} bad ones" if rejections.reasons else ""
        raise DatasetError(f"{name}: has no rows{left_out}; there is nothing to learn from")
    return Dataset(
        records=tuple(records),
        ignored=ignored,
        rejected=tuple(rejections.reasons),
        unused=tuple(map(str, splits.get("", ()))),
    )


def _check_known(name: str, columns: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a column that no row has: most likely its name is wrong, and what is meant would be left out."""
    missing = [column for column in columns if column not in known]
    if missing and known:
        raise DatasetError(
            f"{name}: no row has the column {missing[0]!r}; there are {', '.join(known)}"
            f"{nearest(missing[0], list(known))}"
        )


def find_files(name: str) -> dict[str, list[Path]]:
    """Return the files of each split of a data set, sorted; one on the hub is downloaded first.

    Files without the name of a split are listed under "", unless no file has one: then all are train.

    Raises:
        DatasetError: There is no such data set, or it holds no data files.
    """
    path = expand_home(name)
    if path.is_file():
        return {"train": [path]}
    if not path.is_dir():
        if path.exists() or _is_data(path) or not HUB_ID.fullmatch(name):
            raise DatasetError(f"{name}: no such file or folder, and not a hub id of the form owner/name")
        path = _download(name)
    files = sorted(file for file in path.rglob("*") if _is_data(file) and _is_visible(file, path))
    if not files:
        raise DatasetError(f"{name}: holds no files that end in {', '.join(READERS)}")
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file, path), []).append(file)
    return splits if splits.keys() - {""} else {"train": files}


def hold_out(records: Sequence[Record], share: float) -> tuple[list[Record], list[Record]]:
    """Part records into those to learn and a held-out share, by their first question alone.

    Records that ask the same, and all turns of a conversation, stay on one side; the choice never changes.

    Raises:
        DatasetError: One side would be empty.
    """
    parts: tuple[list[Record], list[Record]] = ([], [])
    for record in records:
        question = record.text or next((m.content for m in record.messages if m.role == "user"), "")
        digest = zlib.crc32(question.encode("utf-8", "surrogatepass"))
        parts[digest < share * 2**32].append(record)
    if share and not all(parts):
        raise DatasetError(f"{len(records)} records cannot give up {share:.0%} and keep a rest; add more")
    return parts


def _split_of(file: Path, folder: Path) -> str:
    """Return the split that the name of a file, or of its folder, begins with; empty if none."""
    names = [part.lower() for part in reversed(file.relative_to(folder).parts)]
    words = [name.replace(".", "-").replace("_", "-").split("-")[0] for name in names]
    return next((split for word in words for split, spelled in SPLITS.items() if word in spelled), "")


def _is_data(file: Path) -> bool:
    return file.suffix.lower() in READERS


def _is_visible(file: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _download(repo: str) -> Path:
    try:
        return download(repo, tuple(f"*{suffix}" for suffix in READERS), kind="dataset")
    except CheckpointError as error:
        raise DatasetError(str(error)) from error
