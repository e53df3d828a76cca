r"""Markdown as models write it, with what is no markdown left as it was written: formulas, line breaks, tags.

A model's `\[`, `\(`, `\,`, `\{` and `\\` are LaTeX, although markdown takes them for escapes; what is copied
from the screen has to be right.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, ClassVar

from markdown_it import MarkdownIt
from rich.console import COLOR_SYSTEMS, Console
from rich.markdown import Heading, HorizontalRule
from rich.markdown import Markdown as RichMarkdown
from rich.rule import Rule
from rich.segment import Segment
from rich.theme import Theme

from macmoe.cli.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token
    from rich.console import ConsoleOptions, RenderResult
    from rich.markdown import MarkdownElement

# What a backslash takes its meaning from in markdown; before anything else it is LaTeX.
ESCAPED = frozenset("*_`~#+-.<>$|")
# Bounded, so that delimiters that never close are not looked for over and over. Amounts ($5 and $6) are none.
FORMULA = re.compile(
    r"\\\([\s\S]{1,2000}?\\\)|\\\[[\s\S]{1,2000}?\\\]|\$\$[\s\S]{1,2000}?\$\$"
    r"|\$(?![\s$])(?:\\[\s\S]|[^$`\\]){1,500}?(?<!\s)\$(?![0-9A-Za-z$])"
)
# Colors that are readable on light and dark backgrounds alike.
STYLES = {
    **{f"markdown.h{level}": "bold underline" if level < 3 else "bold" for level in range(1, 7)},
    "markdown.code": "cyan",
    "markdown.link": "none",
    "markdown.link_url": "blue",
    "markdown.block_quote": "italic",
    "markdown.item": "none",
}


class Markdown:
    """A block of markdown that rich can print, and that cannot control the terminal.

    What is printed is made harmless after rendering, because entities such as `&#13;` become characters
    there. Links show their address: sequences that hide it would be written by the model.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the rendered segments."""
        for segment in console.render(_Document(self._text), options):
            yield Segment(printable(segment.text), segment.style)


class _LeftHeading(Heading):
    """A heading that stands where text stands."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the text alone."""
        self.text.justify = "left"
        yield self.text


class _Rule(HorizontalRule):
    """A thin line."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the line."""
        yield Rule(style="dim")


class _Document(RichMarkdown):
    """Parsed by our rules."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **RichMarkdown.elements,
        "heading_open": _LeftHeading,
        "hr": _Rule,
    }

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = list(_with_breaks(_parser().parse(text)))


@functools.cache
def _parser() -> MarkdownIt:
    """Return a parser to which tags and definitions of links, which would not be shown, are text.

    Lists are cut into items before (`macmoe.cli.parts`); here a line of a formula may begin like one.
    """
    parser = MarkdownIt("commonmark", {"html": False})
    parser.enable(["strikethrough", "table"]).disable(["reference", "code", "list"])
    parser.inline.ruler.at("escape", _backslash)
    parser.inline.ruler.before("escape", "formula", _formula)
    return parser


def _formula(state: StateInline, silent: bool) -> bool:
    """Take a formula as it is."""
    if state.src[state.pos] not in "\\$":
        return False
    found = FORMULA.match(state.src, state.pos, state.posMax)
    if found is None:
        return False
    if not silent:
        state.push("code_inline", "code", 0).content = found.group()
    state.pos = found.end()
    return True


def _backslash(state: StateInline, silent: bool) -> bool:
    """Take a backslash for an escape where it is no LaTeX."""
    pair = state.src[state.pos : min(state.pos + 2, state.posMax)]
    if len(pair) < 2 or pair[0] != "\\":
        return False
    if not silent and pair[1] == "\n":
        state.push("hardbreak", "br", 0)
    elif not silent:
        token = state.push("text_special", "", 0)
        token.content, token.markup, token.info = pair[1:] if pair[1] in ESCAPED else pair, pair, "escape"
    state.pos += 2
    return True


def _with_breaks(tokens: Iterable[Token]) -> Iterator[Token]:
    """Let lines end where the model ended them: in verses and addresses it means that."""
    for token in tokens:
        if token.children:
            token.children = list(_with_breaks(token.children))
        if token.type == "softbreak":
            token.type = "hardbreak"
        yield token


@functools.cache
def console() -> Console:
    """Return what renders for the terminal."""
    return Console(theme=Theme(STYLES), highlight=False)


def rows(text: str, width: int) -> list[str]:
    """Render a block into rows of at most `width` cells, with their colors and without blanks at the end."""
    target = console()
    options = target.options.update(width=max(width, 1), height=None)
    lines = target.render_lines(Markdown(text), options, pad=False)
    written = [_row(line) for line in lines]
    while written and not written[0]:
        del written[0]
    while written and not written[-1]:
        del written[-1]
    return written


def _row(segments: list[Segment]) -> str:
    """Write the segments of a row, without blanks at its end."""
    while segments and not segments[-1].text.strip():
        segments = segments[:-1]
    if segments:
        last = segments[-1]
        segments = [*segments[:-1], Segment(last.text.rstrip(), last.style)]
    return colored(segments)


def colored(segments: Iterable[Segment]) -> str:
    """Write segments with the colors that the terminal has."""
    target = console()
    system = COLOR_SYSTEMS.get(target.color_system or "")
    shown = Segment.remove_color(segments) if target.no_color else segments
    return "".join(
        style.render(text, color_system=system) if style is not None and system is not None else text
        for text, style, _ in shown
    )
