"""Texts that end an answer, found while it is written, wherever its tokens begin and end."""

from collections.abc import Iterable, Iterator, Sequence

from macmoe.chat.events import AnswerText, Event
from macmoe.errors import UsageError


def stop_texts(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return stop texts as a tuple; one may be given by itself.

    Raises:
        UsageError: One is empty, so that no answer could begin.
    """
    texts = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(text, str) and text for text in texts):
        raise UsageError(f"stop is {stop!r}; it has to be texts, none of them empty")
    return texts


class StopTexts:
    """Lets a text through up to the first stop text in it, as soon as it is certain that none begins there.

    Args:
        texts: None of them is empty.

    Attributes:
        found: Whether one has come; nothing is let through any more.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = tuple(texts)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """Return what is certain once this text is known."""
        if self.found:
            return ""
        text = self._held + text
        matches = [(begin + len(stop), begin) for stop in self._texts if (begin := text.find(stop)) >= 0]
        if matches:  # the one that is complete first, however the text comes in pieces
            self.found, self._held = True, ""
            return text[: min(matches)[1]]
        held = max((_overlap(text, stop) for stop in self._texts), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """Return what was held back, because nothing follows that could complete a stop text."""
        held, self._held = self._held, ""
        return held

    def filter(self, events: Iterable[Event]) -> Iterator[Event]:
        """Yield events up to a stop text in the answer; thinking and tool calls pass as they are."""
        for event in events:
            if self.found:
                return
            if isinstance(event, AnswerText):
                yield from _answer(self.add(event.text))
            else:
                yield from _answer(self.finish())
                yield event

    def rest(self) -> Iterator[Event]:
        """Yield what was held back as an event."""
        yield from _answer(self.finish())


def _answer(text: str) -> Iterator[Event]:
    if text:
        yield AnswerText(text)


def _overlap(text: str, stop: str) -> int:
    """Return how many of the last characters of `text` begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
