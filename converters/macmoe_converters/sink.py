"""Writes a checkpoint slice by slice, into a draft that gets its name when it is complete.

Types and shapes are known beforehand, so every file is written from its first byte to its last: one thread
reads and computes, a second one writes, a third one hashes, and a few slices are all that is in memory.
"""

import json
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from macmoe.checkpoint import MARKER, NAN_SCALE, is_macmoe_folder, warn_of_bad_weights
from macmoe.config import load_json
from macmoe.errors import CheckpointError, ConversionError, UsageError
from macmoe_converters.draft import WAITING, Draft, draft_folder
from macmoe_converters.rows import FILES, Array, Rows

SHARD_BYTES = 5_000_000_000
PROGRAM_BYTES = 100 << 20  # resident before the first slice
CHECKED = 1 << 18  # elements looked at together: a block that stays in the cache
HEADROOM = 1 << 20  # for the small files
# Copied as they are. Programs in a model folder are not.
COMPANIONS = (
    "LICENSE",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
TEMPLATES = ("additional_chat_templates", "chat_templates")  # folders with templates that have a name

Progress = Callable[[int, int], None]


# Type -> (mask, limit): an element is NaN or infinite if its bits under the mask reach the limit.
NOT_FINITE: dict[str, tuple[Any, int]] = {
    "F32": (np.uint32(0x7FFF_FFFF), 0x7F80_0000),
    "BF16": (np.uint16(0x7FFF), 0x7F80),
    "F16": (np.uint16(0x7FFF), 0x7C00),
    "F8_E4M3": (np.uint8(0x7F), 0x7F),
    "F8_E8M0": (np.uint8(0xFF), NAN_SCALE),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One tensor of the output.

    Attributes:
        rows: Its type, shape and bytes.
        holds: The type whose NaN and infinity to look for, a key of NOT_FINITE; None: any bits are weights.
        fatal: Whether one of them is an error: on scales hang whole groups of weights.
    """

    rows: Rows
    holds: str | None = None
    fatal: bool = False

    def bad(self, array: Array) -> int:
        """Count what is not finite."""
        if self.holds is None or not array.size:
            return 0
        mask, limit = NOT_FINITE[self.holds]
        flat = array.reshape(-1).view(mask.dtype)
        blocks = (flat[i : i + CHECKED] & mask for i in range(0, flat.size, CHECKED))
        return sum(int((block >= limit).sum()) for block in blocks if block.max() >= limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of the output: a header, then the tensors in this order."""

    name: str
    tensors: Mapping[str, Stored]

    @property
    def header(self) -> bytes:
        """The file's first bytes."""
        header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
        position = 0
        for name, stored in self.tensors.items():
            info = stored.rows.info
            end = position + info.nbytes
            header[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [position, end]}
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.header) + sum(stored.rows.info.nbytes for stored in self.tensors.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a conversion writes.

    Attributes:
        shards: Files of weights.
        documents: JSON files, by name.
        marker: What macmoe.json says (the hashes are added); nothing: the folder gets none.
        companions: Folders that may hold the tokenizer and its like; the first that has a file gives it.
        identity: What is converted, and how.
    """

    shards: Sequence[Shard]
    documents: Mapping[str, Mapping[str, Any]]
    marker: Mapping[str, Any]
    companions: Sequence[Path]
    identity: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all files of weights."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def peak_memory(self) -> int:
        """Bytes of memory that writing takes, about: the program, and the largest slices on their way."""
        tensors = (stored.rows for shard in self.shards for stored in shard.tensors.values())
        largest = max(rows.piece_bytes for rows in tensors)
        return PROGRAM_BYTES + (FILES * (WAITING + 1) + 5) * largest


def plan_shards(weights: Iterable[Mapping[str, Stored]], limit: int) -> list[Shard]:
    """Distribute weights, in order, to files of at most `limit` bytes; a larger weight gets its own.

    Files are about equally large: those that are written together are then done together.

    Args:
        weights: The tensors of one weight each: codes, scales, biases.
        limit: Bytes of a file, its header aside.
    """
    weights = list(weights)
    total = sum(map(_nbytes, weights))
    share = total / max(1, -(-total // limit))
    shards: list[list[Mapping[str, Stored]]] = [[]]
    size = before = 0  # of the last file; of all
    for weight in weights:
        nbytes = _nbytes(weight)
        if shards[-1] and (size + nbytes > limit or before + nbytes / 2 > share * len(shards)):
            shards.append([])
            size = 0
        shards[-1].append(weight)
        size += nbytes
        before += nbytes
    return [
        Shard(name=f"model-{i + 1:05}-of-{len(shards):05}.safetensors", tensors=_aligned(shard))
        for i, shard in enumerate(shards)
    ]


def _nbytes(weight: Mapping[str, Stored]) -> int:
    return sum(stored.rows.info.nbytes for stored in weight.values())


def _aligned(weights: Sequence[Mapping[str, Stored]]) -> dict[str, Stored]:
    """Order tensors so that each begins at a multiple of its element size.

    Weights of whole 4-byte words come first, the codes of each before its scales; then the few others, the
    widest type first.
    """
    tensors: dict[str, Stored] = {}
    others: dict[str, Stored] = {}
    for weight in weights:
        (others if _nbytes(weight) % 4 else tensors).update(weight)
    return tensors | dict(sorted(others.items(), key=lambda item: -item[1].rows.item_bytes))


def index_of(shards: Sequence[Shard]) -> dict[str, Any]:
    """Return model.safetensors.index.json."""
    where = {name: shard.name for shard in shards for name in shard.tensors}
    total = sum(_nbytes(shard.tensors) for shard in shards)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}


def _slices(shard: Shard, position: int, where: Path) -> Iterator[memoryview]:
    """Yield the bytes of a file from `position` on.

    Raises:
        CheckpointError: Scales are not finite, or the source cannot be read.
    """
    begin = len(shard.header)
    if position < begin:
        yield memoryview(shard.header)[position:]
    for name, stored in shard.tensors.items():
        bad = 0
        for size, read in stored.rows.pieces():
            end = begin + size
            if end > position:
                array = np.ascontiguousarray(read())
                bad += stored.bad(array)
                yield array.reshape(-1).view(np.uint8).data[max(0, position - begin) :]
            begin = end
            if bad and stored.fatal:
                raise CheckpointError(
                    f"{where}: tensor {name} holds NaN or infinity; download or convert it again"
                )
        warn_of_bad_weights(name, bad, where)


def _write_shard(
    shard: Shard, draft: Draft, where: Path, found: dict[str, str]
) -> Generator[int, None, None]:
    """Write a file of weights, or what an earlier run left to write, and find its digest.

    Yields the bytes that were there, and then those of each piece.
    """
    with closing(draft.grow(shard.name)) as file:
        yield file.position
        for data in _slices(shard, file.position, where):
            file.append(data)
            yield len(data)
    found[shard.name] = file.digest


def _in_turns(tasks: Iterable[Generator[int, None, None]], count: int) -> Generator[int, None, None]:
    """Go on with `count` tasks in turns, the next one taking the place of one that is done."""
    waiting = iter(tasks)
    running = deque(islice(waiting, count))
    try:
        while running:
            try:
                yield next(running[0])
                running.rotate(-1)
            except StopIteration:
                running.popleft()
                running.extend(islice(waiting, 1))
    finally:
        for task in running:
            task.close()


def _write_shards(output: Output, draft: Draft, where: Path, progress: Progress | None) -> dict[str, str]:
    """Write all files of weights, a few at a time; return their digests."""
    found: dict[str, str] = {}
    done, total = 0, output.nbytes
    files = (_write_shard(shard, draft, where, found) for shard in output.shards)
    with closing(_in_turns(files, FILES)) as steps:
        for step in steps:
            done += step
            if progress:
                progress(done, total)
    return {shard.name: found[shard.name] for shard in output.shards}


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file, as readable as the hub's."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy_companions(folders: Sequence[Path], out: Path) -> None:
    """Copy the tokenizer and its like from the first folder that has each."""
    for name in COMPANIONS:
        found = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if found:
            shutil.copyfile(found, out / name)
    for name in TEMPLATES:
        files = next(filter(None, (sorted(folder.glob(f"{name}/*.jinja")) for folder in folders)), [])
        for path in files:
            (out / name).mkdir(exist_ok=True)
            shutil.copyfile(path, out / name / path.name)


def is_finished(output: Output, out: Path) -> bool:
    """Return whether a folder is what such a conversion made, as its documents say."""
    if not output.marker:
        documents = json.loads(json.dumps(output.documents))
        return all(
            (out / name).is_file() and load_json(out / name) == data for name, data in documents.items()
        )
    if not is_macmoe_folder(out):
        return False
    marker = load_json(out / MARKER)
    return all(marker.get(key) == value for key, value in output.marker.items())


def check_target(out: Path, source: Path, *, force: bool) -> None:
    """Refuse an output that is the source, or exists.

    Raises:
        UsageError: It is, or does.
    """
    if out.resolve() == source.resolve():
        raise UsageError(f"{out}: source and output are the same folder; choose another output")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise UsageError(f"{out}: exists already; choose another folder, or --force to replace it")
    if not is_macmoe_folder(out):
        raise UsageError(
            f"{out}: is no macmoe checkpoint, so --force does not replace it; remove it yourself"
        )


def free_bytes(out: Path) -> int:
    """Return the free space where a folder is to be made."""
    return shutil.disk_usage(next(folder for folder in out.resolve().parents if folder.is_dir())).free


def space(output: Output, out: Path) -> tuple[int, int]:
    """Return the bytes to write, beside what an unfinished conversion left, and those that are free."""
    there = sum(path.stat().st_size for path in draft_folder(out).rglob("*") if path.is_file())
    return output.nbytes + HEADROOM - there, free_bytes(out)


def _check_space(output: Output, out: Path) -> None:
    needed, free = space(output, out)
    if needed > free:
        scale, unit = (1e9, "GB") if needed >= 1e9 else (1e6, "MB")
        raise ConversionError(
            f"{out}: {needed / scale:.2f} {unit} are needed and {free / scale:.2f} {unit} are free; make "
            "room, or choose another disk (nothing was written)"
        )


def write_output(
    output: Output,
    out: Path,
    *,
    source: Path,
    force: bool = False,
    resume: bool = False,
    hashes: bool = True,
    progress: Progress | None = None,
) -> None:
    """Write a checkpoint; it gets its name when it is complete.

    Args:
        output: What to write.
        out: The folder to make.
        source: The folder it is made from.
        force: Replace a macmoe checkpoint at `out`, and what an unfinished conversion left.
        resume: Continue an unfinished conversion, if there is one.
        hashes: Record the SHA-256 of the files of weights in macmoe.json.
        progress: Called with the bytes written so far and in all.

    Raises:
        UsageError: `out` exists, or is the source, or is being written by another process.
        CheckpointError: The source cannot be read, or its scales are not finite; nothing is kept.
        ConversionError: The files cannot be written; what was written can be resumed.
    """
    draft = Draft(out, output.identity, hashes=hashes)
    if resume and is_finished(output, out):
        draft.remove()
        return
    check_target(out, source, force=force)
    try:
        _check_space(output, out)
        with draft.open(resume=resume, restart=force and not resume):
            found = _write_shards(output, draft, source, progress)
            for name, data in output.documents.items():
                write_json(draft.content / name, data)
            _copy_companions(output.companions, draft.content)
            if output.marker:
                recorded = {"sha256": found} if hashes else {}
                write_json(draft.content / MARKER, {**output.marker, **recorded})
            draft.finish()
    except CheckpointError as error:
        if not isinstance(error, ConversionError):
            draft.remove()
        raise
    except OSError as error:
        kept = (
            "; what was written is kept: repeat the command with --resume" if draft.content.exists() else ""
        )
        raise ConversionError(f"{out}: cannot be written ({error.strerror or error}){kept}") from None
