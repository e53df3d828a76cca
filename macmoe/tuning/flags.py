"""The switches that Qwen3's hybrid models read in the text of a conversation: `/think` and `/no_think`.

The last flag in a user or system message counts; without one, the model thinks (arXiv:2505.09388, section
4.3). A flag acts only where the prompt leaves the choice to the model. After `/no_think` the model writes an
empty block itself, so that the block belongs to what is learned.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from macmoe.chat.messages import Message
from macmoe.errors import UsageError

THINK, NO_THINK = "/think", "/no_think"
FLAGS = {True: THINK, False: NO_THINK}
_FLAG = re.compile(r"(?<!\S)/(?:no_)?think(?!\S)")
_READERS = ("user", "system")

# The models, by `ChatFormat.model`, that follow the flags.
FLAGGED_MODELS = ("Qwen3",)


def check_reads_flags(model: str) -> None:
    """Refuse a model, by `ChatFormat.model`, to which the flags are words like others.

    Raises:
        UsageError: It is one.
    """
    if model not in FLAGGED_MODELS:
        raise UsageError(f"{model} reads no /think flags; only {', '.join(FLAGGED_MODELS)} does")


def last_flag(messages: Sequence[Message]) -> str | None:
    """Return the flag that counts after these messages."""
    found = (_FLAG.findall(message.content) for message in reversed(messages) if message.role in _READERS)
    return next((flags[-1] for flags in found if flags), None)
