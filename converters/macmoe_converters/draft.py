"""An unfinished output: a folder beside it, locked, with a journal that lets a later run continue.

Files only grow. After every SPAN_BYTES the journal gets a line with the SHA-256 of the file up to there (its
CRC-32, if nobody wants hashes). What a kill, a full disk or a power cut left behind is read again when the
conversion is resumed, and kept as far as it agrees with the journal: nothing needs to be forced to the disk
on the way. At the end everything is, since nobody reads a finished output again to see whether it is whole.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol, Self

from macmoe.errors import UsageError

SPAN_BYTES = 64 << 20
READ_BYTES = 4 << 20
WRITE_BYTES = 128 << 10  # in a call: more at once was seen to be slower (docs/decisions/0017)
WAITING = 4  # pieces of a file that were handed over and are not yet written


class Digest(Protocol):
    """What of hashlib's objects is used here."""

    def update(self, data: memoryview | bytes, /) -> None:
        """Take in further bytes."""

    def copy(self) -> Self:
        """Return a digest that goes on from here."""
        ...

    def hexdigest(self) -> str:
        """Return the digest of all bytes so far."""
        ...


class Crc32:
    """A CRC-32 with the methods of hashlib: it finds damage, not forgery, at a third of the work."""

    def __init__(self, value: int = 0) -> None:
        self._value = value

    def update(self, data: memoryview | bytes, /) -> None:
        """Take in further bytes."""
        self._value = zlib.crc32(data, self._value)

    def copy(self) -> "Crc32":
        """Return a digest that goes on from here."""
        return Crc32(self._value)

    def hexdigest(self) -> str:
        """Return the digest of all bytes so far."""
        return f"{self._value:08x}"


class Draft:
    """The folder `.NAME.partial` beside an output NAME: `content/` becomes the output.

    Args:
        out: The output.
        identity: What is converted, and how; a draft is resumed only if it was begun with the same.
        hashes: Whether files are hashed with SHA-256, else with CRC-32.

    Attributes:
        content: Where the files of the output are written.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], *, hashes: bool = True) -> None:
        self._out, self._identity = out, json.loads(json.dumps({**identity, "hashes": hashes}))
        self._empty: Digest = hashlib.sha256() if hashes else Crc32()
        self._root = draft_folder(out)
        self._replaced = self._root / "replaced"
        self.content = self._root / "content"
        self._sums: dict[str, dict[int, str]] = {}  # file -> length -> digest of so much of it

    @contextmanager
    def open(self, *, resume: bool, restart: bool) -> Iterator[Self]:
        """Lock the draft, new or as it was left.

        Args:
            resume: Continue what an earlier run left, if there is anything.
            restart: Throw away what an earlier run left.

        Raises:
            UsageError: Another process is writing it; or an earlier run left something, and it is neither to
                be resumed nor to be thrown away, or was begun with another identity.
            OSError: The folder cannot be made.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        with (self._root / "journal").open("a+", encoding="utf-8") as journal:
            self._lock(journal)
            self._restore_replaced()
            self._read(journal, resume=resume, restart=restart)
            self._journal = journal
            self.content.mkdir(exist_ok=True)
            yield self

    def _lock(self, journal: IO[str]) -> None:
        """Lock the journal; it must still be the one in the folder, which its owner may have just removed."""
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(journal.fileno()), (self._root / "journal").stat())
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            raise UsageError(f"{self._out}: another process is converting to it; wait for it, or stop it")

    def _restore_replaced(self) -> None:
        """Put back the old output if a run was killed between the two renames at its end."""
        if self._out.exists():
            shutil.rmtree(self._replaced, ignore_errors=True)
        elif self._replaced.exists():
            self._replaced.rename(self._out)

    def _read(self, journal: IO[str], *, resume: bool, restart: bool) -> None:
        """Read the journal up to a line that was cut off; begin it if there is none."""
        journal.seek(0)
        texts = list(_whole_lines(journal.read()))
        journal.truncate(sum(map(len, texts)))  # json.dumps writes ASCII
        lines = [json.loads(text) for text in texts]
        if restart or not lines:
            shutil.rmtree(self.content, ignore_errors=True)
            journal.truncate(0)
            journal.write(json.dumps(self._identity) + "\n")
            journal.flush()
            lines = []
        elif not resume:
            raise UsageError(
                f"{self._out}: an earlier conversion was not finished; --resume continues it, "
                "--force begins again"
            )
        elif lines[0] != self._identity:
            raise UsageError(
                f"{self._out}: the unfinished conversion there is of another source, or has other options; "
                "repeat its options, or begin again with --force"
            )
        for line in lines[1:]:
            self._sums.setdefault(line["file"], {})[line["length"]] = line["digest"]

    def grow(self, name: str) -> "GrowingFile":
        """Open a file to append to what agrees with the journal; the rest is cut off."""
        path = self.content / name
        path.touch()
        digest, position = self._empty.copy(), 0
        with path.open("r+b", buffering=0) as file:
            for length, expected in sorted(self._sums.get(name, {}).items()):
                further = digest.copy()
                for piece in _pieces(file, length - position):
                    further.update(piece)
                if further.hexdigest() != expected:
                    break
                digest, position = further, length
            file.truncate(position)
        return GrowingFile(path, position, digest, self._journal)

    def finish(self) -> None:
        """Force the content to the disk and give it its name; what was there before goes.

        Raises:
            OSError: The disk is full, or fails.
        """
        for path in (*self.content.rglob("*"), self.content):
            _force_to_disk(path)
        if self._out.exists():
            self._out.rename(self._replaced)
        self.content.rename(self._out)
        self.remove()

    def remove(self) -> None:
        """Remove the draft."""
        shutil.rmtree(self._root, ignore_errors=True)


def draft_folder(out: Path) -> Path:
    """Return the folder in which an output is prepared."""
    return out.with_name(f".{out.name}.partial")


def _force_to_disk(path: Path) -> None:
    """Return when a file, or the names in a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if sys.platform == "darwin":  # where the drive may still hold it in a cache of its own
            with suppress(OSError):  # network drives cannot
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    finally:
        os.close(descriptor)


def _whole_lines(text: str) -> Iterator[str]:
    """Yield the lines before one that a kill or a power cut damaged."""
    for line in text.splitlines(keepends=True):
        try:
            json.loads(line)
        except json.JSONDecodeError:
            return
        if line.endswith("\n"):
            yield line


def _pieces(file: IO[bytes], size: int) -> Iterator[bytes]:
    while size > 0 and (piece := file.read(min(size, READ_BYTES))):
        size -= len(piece)
        yield piece


class GrowingFile:
    """A file of the draft; every span of it that is complete gets a line in the journal.

    One thread writes and another one hashes, while the caller reads what comes next.

    Attributes:
        position: Bytes that the file had when it was opened.
    """

    def __init__(self, path: Path, position: int, digest: Digest, journal: IO[str]) -> None:
        self.position = self._length = self._noted = position
        self._file = path.open("ab", buffering=0)
        self._name, self._journal, self._digest = path.name, journal, digest
        self._writer, self._hasher = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._waiting: deque[tuple[int, Future[None], Future[str]]] = deque()

    @property
    def digest(self) -> str:
        """Digest of the file, once it is closed."""
        return self._digest.hexdigest()

    def append(self, data: memoryview) -> None:
        """Write all of the data, soon.

        Raises:
            OSError: The disk is full, or fails; perhaps for what was handed over before.
        """
        writing, hashing = self._writer.submit(self._write, data), self._hasher.submit(self._hash, data)
        self._waiting.append((len(data), writing, hashing))
        if len(self._waiting) > WAITING:
            self._settle()

    def _hash(self, data: memoryview) -> str:
        self._digest.update(data)
        return self._digest.hexdigest()

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[self._file.write(data[:WRITE_BYTES]) :]

    def _settle(self) -> None:
        """Wait until the oldest piece is written and hashed; note it where a span is complete."""
        size, writing, hashing = self._waiting.popleft()
        writing.result()
        digest = hashing.result()
        self._length += size
        if self._length - self._noted >= SPAN_BYTES:
            self._note(digest)

    def _note(self, digest: str) -> None:
        line = {"file": self._name, "length": self._length, "digest": digest}
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()
        self._noted = self._length

    def close(self) -> None:
        """Write and note what was handed over.

        Raises:
            OSError: The disk is full, or fails.
        """
        with self._file, self._writer, self._hasher:
            while self._waiting:
                self._settle()
            if self._length > self._noted:
                self._note(self.digest)
