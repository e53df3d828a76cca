"""Record a real `macmoe chat` as docs/chat.svg: `.venv/bin/python scripts/record_chat.py`.

The chat runs on a pseudo-terminal with a built-in model; what a user sees at the end is drawn. Nothing in the
picture depends on the machine: tokens are the most probable ones, and the statistics are left out.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.cli.pseudo_terminal import PseudoTerminal  # noqa: E402
from tests.cli.screen_model import Screen  # noqa: E402

PICTURE = ROOT / "docs" / "chat.svg"
COMMAND = ("chat", "--model", "tiny:qwen3", "--temperature", "0", "--no-stats")
COLUMNS, LINES = 80, 50
# What is typed, and what has to be on the screen before the next line.
TYPED = {
    "What is 347 + 586?": "The answer is 933.",
    "/thinking off": "thinking: off",
    "Is 31 > 13?": "yes.",
    "/tokens": "there is room for",
}
# A window around the rows, in the fonts that a reader has; nothing is fetched.
FORMAT = """\
<svg xmlns="http://www.w3.org/2000/svg" class="rich-terminal" viewBox="0 0 {width} {height}">
<style>
.{unique_id}-matrix {{
    font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
    font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width;
}}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: system-ui, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix" xml:space="preserve">
{matrix}
</g>
</g>
</svg>
"""


def record() -> list[str]:
    """Return the rows of the screen at the end of the chat, with their colors."""
    screen = Screen(COLUMNS, LINES)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"XDG_CONFIG_HOME": folder, "HOME": folder, "COLORTERM": "truecolor"}
        with PseudoTerminal("-m", "macmoe", *COMMAND, **settings) as chat:
            chat.resize(COLUMNS, LINES)
            chat.expect("leaves.")
            for line, sign in TYPED.items():
                chat.expect(">")
                chat.type(line + "\r")
                chat.expect(sign)
            chat.expect(">")
            screen.feed(chat.output)
    return [f"$ macmoe {' '.join(COMMAND)}", *screen.colored]


def picture(rows: list[str]) -> str:
    """Return the drawing of rows."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False)
    for row in rows:
        console.print(Text.from_ansi(row), soft_wrap=True)
    drawn = console.export_svg(title="macmoe chat", code_format=FORMAT, unique_id="chat")
    return re.sub(r"[ \t]+$", "", drawn, flags=re.MULTILINE)


if __name__ == "__main__":
    PICTURE.write_text(picture(record()), encoding="utf-8")
