"""What interrupts a conversion costs nothing: it is continued, and its files are the same bytes."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from macmoe.errors import ConversionError, UsageError
from macmoe_converters import draft, open_conversion
from tests.conftest import ROOT
from tests.converters import layouts
from tests.converters.samples import CONFIGS, draw, write_folder

CONFIG = CONFIGS["deepseek_v3"]
SHARD_BYTES = 200_000


@pytest.fixture(autouse=True)
def short_spans(monkeypatch):
    """Small checkpoints get many lines in their journals."""
    monkeypatch.setattr(draft, "SPAN_BYTES", 5_000)


@pytest.fixture
def source(tmp_path):
    return write_folder(tmp_path / "model", CONFIG, layouts.hub(draw(CONFIG), CONFIG))


@pytest.fixture
def expected(tmp_path, source):
    """Return the files of an uninterrupted conversion."""
    open_conversion(source).write(tmp_path / "expected", shard_bytes=SHARD_BYTES)
    return contents(tmp_path / "expected")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def convert(source, out, **options):
    open_conversion(source).write(out, shard_bytes=SHARD_BYTES, **options)


def interrupt(source, out, share):
    """Convert up to a share of the bytes."""
    with pytest.raises(KeyboardInterrupt):
        convert(source, out, progress=stopping(at=share))


def stopping(at):
    """Return a watcher of progress that stops at a share of the bytes."""

    def stop(done, total):
        if done >= at * total:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("share", [0, 0.3, 0.7, 1])
def test_interrupted_conversion_is_continued(tmp_path, source, expected, share):
    out = tmp_path / "out"
    interrupt(source, out, share)
    assert not out.exists()
    convert(source, out, resume=True)
    assert contents(out) == expected
    assert not draft.draft_folder(out).exists()


def test_what_was_written_is_not_written_again(tmp_path, source, expected, monkeypatch):
    out, written = tmp_path / "out", 0
    append = draft.GrowingFile.append

    def counted(self, data):
        nonlocal written
        written += len(data)
        append(self, data)

    interrupt(source, out, 0.6)
    monkeypatch.setattr(draft.GrowingFile, "append", counted)
    convert(source, out, resume=True)
    total = sum(len(raw) for name, raw in expected.items() if name.endswith(".safetensors"))
    assert 0.3 < written / total < 0.45
    assert contents(out) == expected


def test_two_files_grow_at_a_time(tmp_path, source):
    out = tmp_path / "out"
    interrupt(source, out, 0.1)
    begun = {path.name: path.stat().st_size for path in (draft.draft_folder(out) / "content").iterdir()}
    assert len(begun) == 2
    assert min(begun.values()) > 0


@pytest.mark.parametrize("damage", ["zeros", "cut", "journal cut", "journal lost", "file lost"])
def test_what_a_power_cut_damaged_is_written_again(tmp_path, source, expected, damage):
    out = tmp_path / "out"
    interrupt(source, out, 0.8)
    folder = draft.draft_folder(out)
    journal, file = folder / "journal", min((folder / "content").iterdir())
    raw = file.read_bytes()
    match damage:
        case "zeros":
            file.write_bytes(raw[:90_000] + bytes(4096) + raw[94_096:])
        case "cut":
            file.write_bytes(raw[:70_001])
        case "journal cut":
            journal.write_bytes(journal.read_bytes()[:-9])
        case "journal lost":
            journal.write_bytes(b"")
        case "file lost":
            file.unlink()
    convert(source, out, resume=True)
    assert contents(out) == expected


def test_everything_is_on_the_disk_before_the_output_gets_its_name(tmp_path, source, monkeypatch):
    out, forced, fsync = tmp_path / "out", set(), os.fsync

    def noted(descriptor):
        assert not out.exists()
        forced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    interrupt(source, out, 0.5)
    monkeypatch.setattr(os, "fsync", noted)
    convert(source, out, resume=True)
    assert forced == {path.stat().st_ino for path in (out, *out.iterdir())}


def test_a_disk_that_fails_at_the_end_leaves_what_can_be_continued(tmp_path, source, expected, monkeypatch):
    def failing(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(ConversionError, match=r"Input/output error.*repeat the command with --resume"):
            convert(source, tmp_path / "out")
    convert(source, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == expected


def test_conversion_without_hashes_is_continued_too(tmp_path, source, expected):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        convert(source, out, hashes=False, progress=stopping(at=0.6))
    file = max((draft.draft_folder(out) / "content").iterdir())
    file.write_bytes(file.read_bytes()[:-100] + bytes(100))
    with pytest.raises(UsageError, match="has other options"):
        convert(source, out, resume=True)
    convert(source, out, hashes=False, resume=True)
    found = contents(out)
    assert {name for name in expected if found[name] != expected[name]} == {"macmoe.json"}


def test_unfinished_conversion_is_neither_continued_nor_lost_unasked(tmp_path, source, expected):
    out = tmp_path / "out"
    interrupt(source, out, 0.5)
    before = contents(draft.draft_folder(out) / "content")
    with pytest.raises(UsageError, match="--resume continues it, --force begins again"):
        convert(source, out)
    assert contents(draft.draft_folder(out) / "content") == before
    convert(source, out, force=True)
    assert contents(out) == expected


def test_unfinished_conversion_of_something_else_is_not_continued(tmp_path, source):
    out = tmp_path / "out"
    interrupt(source, out, 0.5)
    changed = source / "model.safetensors"
    changed.write_bytes(changed.read_bytes())
    with pytest.raises(UsageError, match="of another source, or has other options"):
        convert(source, out, resume=True)


def test_finished_conversion_has_nothing_to_continue(tmp_path, source, expected):
    convert(source, tmp_path / "out")
    convert(source, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == expected


def test_second_converter_is_refused(tmp_path, source):
    out = tmp_path / "out"
    interrupt(source, out, 0.5)
    with (draft.draft_folder(out) / "journal").open() as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        for options in ({}, {"resume": True}, {"force": True}):
            with pytest.raises(UsageError, match="another process is converting to it"):
                convert(source, out, **options)
    convert(source, out, resume=True)


def test_full_disk_leaves_what_can_be_continued(tmp_path, source, expected, monkeypatch):
    out, written = tmp_path / "out", 0
    append = draft.GrowingFile.append

    def limited(self, data):
        nonlocal written
        written += len(data)
        if written > 300_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(draft.GrowingFile, "append", limited)
        with pytest.raises(ConversionError, match=r"No space left.*repeat the command with --resume"):
            convert(source, out)
    assert not out.exists()
    convert(source, out, resume=True)
    assert contents(out) == expected


LIMITED = """
import resource, sys
from macmoe.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
main()
"""


def test_file_that_may_not_grow_is_one_line(tmp_path, source):
    out = tmp_path / "out"
    command = (sys.executable, "-c", LIMITED, "convert", str(source), "--out", str(out))
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    *remarks, error = result.stderr.splitlines()
    assert [remark for remark in remarks if "no tokenizer.json" in remark]
    assert "File too large" in error
    assert "--resume" in error
    convert_cli(source, out, "--resume")
    assert out.is_dir()


def convert_cli(source, out, *options):
    command = (sys.executable, "-m", "macmoe", "convert", str(source), "--out", str(out), *options)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def test_too_little_space_is_refused_before_the_first_byte(tmp_path, source, monkeypatch):
    monkeypatch.setattr("macmoe_converters.sink.free_bytes", lambda _: 100_000)
    with pytest.raises(ConversionError, match=r"\d\.\d\d MB are needed and 0\.10 MB are free"):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("seed", range(3))
def test_killed_conversion_is_continued(tmp_path, source, seed):
    convert_cli(source, tmp_path / "expected", "--shard-size", "200KB")
    out, rng = tmp_path / "out", random.Random(seed)
    command = (sys.executable, "-m", "macmoe", "convert", str(source), "--out", str(out))
    for _ in range(3):
        process = subprocess.Popen(
            (*command, "--shard-size", "200KB", "--resume"), cwd=ROOT, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 20
        while not draft.draft_folder(out).exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.wait()
    convert_cli(source, out, "--shard-size", "200KB", "--resume")
    assert contents(out) == contents(tmp_path / "expected")
    assert not draft.draft_folder(out).exists()
