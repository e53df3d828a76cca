"""The parser of GPT-OSS: messages with a header that names role, channel and recipient."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from macmoe.chat.events import AnswerText, CommentaryText, Event, ThinkingText, ToolCallEvent
from macmoe.chat.parser import Parser, Vocabulary
from macmoe.chat.payload import Payload, read_payload

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
END, RETURN, CALL, END_OF_TEXT = "<|end|>", "<|return|>", "<|call|>", "<|endoftext|>"

_TURN_ENDS = (START, END, RETURN, CALL, END_OF_TEXT)
_ENDS = (*_TURN_ENDS, CHANNEL)  # a new header ends a message, too
_CHANNELS: dict[str, type[ThinkingText | CommentaryText | AnswerText]] = {
    "analysis": ThinkingText,
    "commentary": CommentaryText,
    "final": AnswerText,
}
_NOT_TOOLS = ("", "user", "assistant", "all")
_CHANNEL_NAMES = "|".join(_CHANNELS)
# The word that each part of a header begins with; text may follow it without a space. The preface is what
# stands before the first control token of a header whose role is known: a recipient, or text out of place.
_OWN_WORD = {
    "preface": re.compile(""),
    "role": re.compile(
        rf"\s*(?:assistant(?![a-z])|assistant(?=to=|{_CHANNEL_NAMES})"
        r"|(?:user|system|developer|tool|functions\.[^\s{]*)(?!\w))?"
    ),
    "channel": re.compile(rf"\s*(?!to=)({_CHANNEL_NAMES}|\w*)", re.IGNORECASE),
    "type": re.compile(r"\s*(?!to=)(?:json|\w*)"),
}
# A recipient among other words of a header; where text may follow them, it is due or has its namespace.
_NAMED = r"to=\s*(?:functions\.)?(?P<name>[^\s<{]*)"
_RECIPIENT = re.compile(rf"\s*\b{_NAMED}")
_DUE_RECIPIENT = re.compile(rf"(?:\A\s*|\s*\b(?=to=\s*functions\.)){_NAMED}")
# A channel without `<|channel|>`: joined to the role, or alone behind it.
_BARE_CHANNEL = re.compile(rf"({_CHANNEL_NAMES})(.*)|\s*({_CHANNEL_NAMES})\s*()", re.DOTALL)
_ROLE_AND_CHANNEL = re.compile(rf"\s*(?:assistant)?\s*({_CHANNEL_NAMES})?\s*")
# JSON behind a recipient or a content type.
_JOINED_JSON = re.compile(r"\s*\w*\s*\{")
_WORD = re.compile(r"\s*\w*\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a header says.

    Attributes:
        kind: What the text of its message is.
        tool: Whom the message calls; empty where it is none.
        text: What the header holds of the message.
    """

    kind: type[ThinkingText | CommentaryText | AnswerText]
    tool: str
    text: str


def read_header(parts: Mapping[str, str], *, complete: bool, cut: bool = False) -> Header:
    """Read a header from its parts.

    Args:
        parts: What was written after each token of it: preface or role, channel, type.
        complete: `<|message|>` follows; other words of the header are dropped then. Else they are the text.
        cut: The output ends here, so that a last word was not meant as text.
    """
    parts = _with_channel(parts, complete=complete)
    kind, name, texts = AnswerText, "", []
    for part, written in parts.items():
        word = _OWN_WORD[part].match(written)
        own = word[0] if word else ""
        if part == "channel" and word:
            kind = _CHANNELS.get(word[1].lower(), AnswerText)
        rest = written[len(own) :]
        recipient = (_RECIPIENT if complete else _DUE_RECIPIENT).search(rest)
        name = name or (recipient["name"] if recipient else "")
        if complete:
            texts.append(_joined_text(own, rest, recipient))
        else:
            rest = rest if recipient is None else rest[: recipient.start()] + rest[recipient.end() :]
            texts.append("" if cut and _is_unfinished(part, own, rest) else rest.lstrip(" " if own else ""))
    return Header(kind=kind, tool="" if name in _NOT_TOOLS else name, text="".join(texts))


def _joined_text(own: str, rest: str, recipient: re.Match[str] | None) -> str:
    """Return what is joined to the words of a part although `<|message|>` follows."""
    if recipient is not None:
        rest = rest[recipient.end() :]
        return rest if _JOINED_JSON.match(rest) else ""
    return rest if own.strip() and (rest[:1].isalnum() or _JOINED_JSON.match(rest)) else ""


def _is_unfinished(part: str, own: str, rest: str) -> bool:
    """Tell whether the rest of a part is a word of the header that was being written."""
    if "to=".startswith(rest.lstrip()):
        return True
    joined = own.strip() and rest[0].isalnum()
    return part != "preface" and not joined and bool(_WORD.fullmatch(rest))


def _with_channel(parts: Mapping[str, str], *, complete: bool) -> Mapping[str, str]:
    """Return the parts with the channel apart, where `<|channel|>` is missing before it."""
    if "channel" in parts:
        return parts
    if complete and (found := _ROLE_AND_CHANNEL.fullmatch(parts.get("preface", "-"))):
        return {**parts, "preface": "", "channel": found[1] or ""}
    word = _OWN_WORD["role"].match(parts.get("role", ""))
    found = _BARE_CHANNEL.fullmatch(parts.get("role", ""), word.end() if word else 0)
    if found is None or not word or not word[0]:
        return parts
    return {**parts, "role": word[0], "channel": "".join(filter(None, found.groups()))}


class HarmonyParser(Parser):
    """The parser of GPT-OSS: a header, then the text of a message, and so on.

    How it reads what breaks the format:

    - The recipient may stand before or after the channel, with or without `functions.`; other words of a
      header are dropped. Without a channel, or with an unknown one, a message is answer, whoever it is from.
    - A message ends at an end token or where a new header begins. Without `<|message|>`, what a header holds
      beyond its own words is the text, with or without a space before it. Text where a header should begin is
      answer.
    - A header cut by the end of the output is no text.
    - Inside a JSON string of a call, all tokens are text, unless the string never ends.
    """

    def __init__(self, vocabulary: Vocabulary, start: str) -> None:
        super().__init__(vocabulary, (*_TURN_ENDS, CHANNEL, CONSTRAIN, MESSAGE))
        # The parts of the header so far, the last one being written; None inside a message.
        self._header: dict[str, str] | None = {"preface": ""} if start == "header" else None
        self._kind = ThinkingText if start == "thinking" else AnswerText
        self._tool = ""  # whom the message calls
        self._call = Payload()  # the text of that call

    @property
    def thinking(self) -> bool:
        """Whether the model is inside its thinking now."""
        return self._header is None and self._kind is ThinkingText and not self._tool

    @property
    def answering(self) -> bool:
        """Whether the model is inside an answer, a call or a commentary now, not in a header."""
        return self._header is None and not self.thinking

    def _text(self, text: str) -> list[Event]:
        if self._header is not None:
            self._header[next(reversed(self._header))] += text
        elif self._tool:
            self._call.add(text)
        elif text:
            return [self._kind(text)]
        return []

    def _control(self, token: str) -> list[Event]:
        if self._header is None and self._tool and self._call.in_string:
            self._call.add_token(token)
            return []
        if self._header is None and token in (MESSAGE, CONSTRAIN):
            return []
        events, header = [], self._header
        if (
            header is None
            or token in _TURN_ENDS
            or (token == CHANNEL and "channel" in header)
            or _has_prose(header, token)
        ):
            events = self._end_message(cut=False)
            header = {"role" if token == START else "preface": ""}
        self._header = header
        if token == CHANNEL:
            header["channel"] = ""
        elif token == CONSTRAIN:
            header.setdefault("type", "")
        elif token == MESSAGE:
            events += self._begin_message(read_header(header, complete=True))
        return events

    def _end(self) -> list[Event]:
        call = self._call
        if self._header is not None or not self._tool or not call.in_string:
            return self._end_message(cut=True)
        # The string was never closed: the first token in it that can end a message did.
        ends = (place for place, (text, is_token) in enumerate(call.pieces) if is_token and text in _ENDS)
        end = next(ends, len(call.pieces))
        self._call = Payload(call.pieces[:end])
        events: list[Event] = []
        for text, is_token in call.pieces[end:]:
            events += self._control(text) if is_token else self._text(text)
        return events + self._end()

    def _begin_message(self, header: Header) -> list[Event]:
        """Take channel and recipient from a header, and the text that it holds of the message."""
        self._kind, self._tool = header.kind, header.tool
        self._call, self._header = Payload(), None
        return self._text(header.text)

    def _end_message(self, *, cut: bool) -> list[Event]:
        """Deliver what the message, or a header that no message followed, holds back."""
        events: list[Event] = []
        if self._header is not None:
            header = read_header(self._header, complete=False, cut=cut)
            events = self._begin_message(header)
            if not header.text:
                return []
        if self._tool:
            events.append(ToolCallEvent(self._tool, *read_payload(self._call.text)))
            self._tool = ""
        return events


def _has_prose(header: Mapping[str, str], token: str) -> bool:
    """Tell whether text stands where a header should, so that the next token begins another message."""
    preface = header.get("preface", "")
    if not preface.strip() or _DUE_RECIPIENT.search(preface):
        return False
    return preface.strip() != "assistant" if token == CHANNEL else not _ROLE_AND_CHANNEL.fullmatch(preface)
