"""A program on a terminal of its own, which a test types into and reads from."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

from tests.conftest import ROOT

PATIENCE = 60.0  # seconds; only a failing test waits so long
# Makes standard input the controlling terminal, whose Ctrl-C is a signal, and becomes the program. The signal
# is ignored by what runs in the background of a shell, and would stay so.
ON_ITS_TERMINAL = (
    "import os, signal, sys; os.login_tty(0); signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
# Colors and cursor movements, and the beginning of one whose end is still to come.
SEQUENCE = re.compile(r"\x1b\[[0-9;?]*(?:[A-Za-z]|\Z)|\x1b\Z")


class PseudoTerminal:
    """Run `python ARGUMENTS` on a terminal of 80 columns; leaving the context kills what still runs."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.output = ""  # everything, with control sequences
        self._seen = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._fd, inner = pty.openpty()
        self.resize(80)
        self._process = subprocess.Popen(
            [sys.executable, "-ISc", ON_ITS_TERMINAL, sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", **environment},
            stdin=inner,
            stdout=inner,
            stderr=inner,
        )
        os.close(inner)

    def __enter__(self) -> PseudoTerminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

    def resize(self, columns: int, lines: int = 24) -> None:
        """Change the size of the window, as a user who drags its corner."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._fd, text.encode())

    def expect(self, text: str) -> str:
        """Wait until a text appears after what was expected before, and return what came up to it."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.new.find(text)) < 0:
            more = time.monotonic() < deadline and self._read()
            assert more, f"{text!r} does not come; there is {self.new!r}"
        before = self.new[:found]
        self._seen += found + len(text)
        return before

    @property
    def new(self) -> str:
        """The text after what was expected last, without control sequences."""
        return SEQUENCE.sub("", self.output)[self._seen :]

    def leave(self) -> int:
        """Press Ctrl-D at the prompt, and return the exit code."""
        self.expect(">")
        self.type("\x04")
        return self.end()

    def end(self) -> int:
        """Wait until the program ends, and return its exit code."""
        deadline = time.monotonic() + PATIENCE
        while self._read():
            assert time.monotonic() < deadline, f"the program does not end; there is {self.new!r}"
        return self._process.wait(PATIENCE)

    def _read(self) -> bool:
        """Take what there is, waiting a little; False at the end."""
        if not select.select([self._fd], [], [], 0.5)[0]:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # Linux reports the end so
            return False
        self.output += self._decoder.decode(data)
        return bool(data)
