"""Text that is piped in beside a prompt: never dropped without a word, and never waited for without end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from macmoe.cli import texts
from macmoe.cli.texts import given_text, piped_text, refuse_late_text
from macmoe.errors import UsageError
from tests.conftest import ROOT


@pytest.fixture
def pipe(monkeypatch):
    """Make a pipe the standard input, with little patience, and return its other end."""
    read_end, write_end = os.pipe()
    monkeypatch.setattr(texts, "QUIET", 0.01)
    monkeypatch.setattr(texts, "PATIENCE", 0.01)
    with os.fdopen(read_end) as stdin, os.fdopen(write_end, "wb", buffering=0) as other:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield other


@pytest.fixture
def file(tmp_path) -> Path:
    """Return a file with a prompt, as an editor with a byte order mark leaves it."""
    path = tmp_path / "prompt.txt"
    path.write_text("From a file.\n", encoding="utf-8-sig")
    return path


def test_a_pipe_follows_the_prompt_after_an_empty_line(pipe):
    pipe.write("Grüße\n\nvon hier\n".encode())
    pipe.close()
    assert given_text("Translate:") == "Translate:\n\nGrüße\n\nvon hier\n"


@pytest.mark.parametrize("nothing", [b"", b"\n", b" \n\t\n", b"\xef\xbb\xbf"])
def test_a_pipe_with_nothing_in_it_adds_nothing(pipe, nothing):
    pipe.write(nothing)
    pipe.close()
    assert given_text("Hello \n") == "Hello \n"
    assert given_text("") == ""


def test_a_pipe_alone_is_the_text_as_it_is(pipe):
    pipe.write(b"\n a\n\n")
    pipe.close()
    assert given_text(None) == "\n a\n\n"


@pytest.mark.parametrize("argument", ["-", None])
def test_asked_for_standard_input_is_waited_for(pipe, argument):
    script = "import sys, time; time.sleep(0.2); print('late')"
    with subprocess.Popen([sys.executable, "-c", script], stdout=pipe):
        pipe.close()
        assert given_text(argument) == "late\n"


def test_files_come_between_prompt_and_pipe(pipe, file):
    pipe.write(b"From a pipe.")
    pipe.close()
    assert given_text("A prompt.", (file, file)) == (
        "A prompt.\n\nFrom a file.\n\nFrom a file.\n\nFrom a pipe."
    )


def test_a_file_may_be_standard_input(pipe, file):
    pipe.write(b"From a pipe.\n")
    pipe.close()
    assert given_text(None, (Path("-"), file)) == "From a pipe.\n\nFrom a file.\n"


@pytest.mark.usefixtures("pipe")
def test_a_pipe_that_stays_open_and_says_nothing_is_left_out_with_a_warning(caplog, capsys):
    assert given_text("Hello") == "Hello"
    assert "nothing came through standard input" in caplog.text
    assert "waiting for standard input to end" in capsys.readouterr().err
    refuse_late_text()  # nothing has come since, either


def test_text_that_comes_after_it_was_left_out_is_an_error(pipe):
    assert piped_text(waits=False) == ""
    pipe.write(b"late")
    with pytest.raises(UsageError, match="too late"):
        refuse_late_text()


def test_an_end_that_comes_late_is_none(pipe):
    assert piped_text(waits=False) == ""
    pipe.close()
    refuse_late_text()


def test_a_closed_input_adds_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert given_text("Hello") == "Hello"
    refuse_late_text()


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "latin"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match=r"latin: is not UTF-8 \(unexpected end of data at byte 3\)"):
        given_text("Hello", (path,))


def test_a_real_pipe_reaches_the_model(macmoe):
    ask = ["generate", "--temperature", "0", "--thinking", "off"]
    asked = subprocess.run(
        [sys.executable, "-m", "macmoe", *ask, "What is"],
        input="17 + 25?\n",
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.stdout == macmoe(*ask, "What is\n\n17 + 25?").stdout != ""
