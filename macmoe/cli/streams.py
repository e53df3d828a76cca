"""Standard streams that the shell closed (`<&-`, `>&-`): whatever is opened next would take their places."""

from __future__ import annotations

import io
import os
import sys

from macmoe.cli import Failure


class ClosedOutput(io.TextIOBase):
    """Takes the place of a closed standard output: what is written there fails instead of getting lost."""

    def write(self, text: str) -> int:
        """Refuse it."""
        raise Failure("standard output is closed, so this would get lost; send it to a file, or to /dev/null")


def open_closed_streams() -> None:
    """Let nothing else get the descriptors 0 to 2: MLX takes a file that got 0 for one that is missing.

    A closed standard input is empty then, and nothing can be written to a closed standard output.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest that is free
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, encoding="utf-8")
    if sys.stdout is None:
        sys.stdout = ClosedOutput()
