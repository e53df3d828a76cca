"""Text to token ids and back, on the byte-level BPE that all three families use.

Two encoders share one vocabulary. Ordinary text goes through one that knows no control tokens at all, so that
nothing a user types can become one; control tokens are found only in text that a chat format wrote itself.
"""

from __future__ import annotations

import codecs
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import tokenizers

from macmoe.errors import CheckpointError, UsageError
from macmoe.files import refuse_pointer

__all__ = ["Detokenizer", "TextSegment", "Tokenizer"]


class TextSegment(Protocol):
    """A stretch of text with one origin, as the chat formats produce it."""

    @property
    def text(self) -> str:
        """The text."""
        ...

    @property
    def control(self) -> bool:
        """Whether the format wrote it, so that its token strings are control tokens."""
        ...

    @property
    def trainable(self) -> bool:
        """Whether it belongs to what the model has to write."""
        ...


def _byte_alphabet() -> dict[str, int]:
    """Return the byte behind each character of a byte-level vocabulary (the alphabet of GPT-2).

    Visible Latin-1 characters stand for themselves; the other bytes, in order, are U+0100 and following.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in visible]
    alphabet = {chr(byte): byte for byte in visible}
    return alphabet | {chr(0x100 + rank): byte for rank, byte in enumerate(hidden)}


_BYTES = _byte_alphabet()


class Detokenizer:
    """Turn token ids into text as they come, never cutting a character in half.

    The texts returned by `add` and, at the end, `finish` join to what decoding all ids at once gives.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_id: int) -> str:
        """Return the text that is certain once this token is known; may be empty."""
        return self._decoder.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        """Return U+FFFD for a character that was never completed, else nothing; then start afresh."""
        return self._decoder.decode(b"", final=True)


class Tokenizer:
    """The vocabulary of one checkpoint.

    `template` is the checkpoint's own chat template, as text. It is never run: the chat formats only look at
    it to tell apart models that share a vocabulary.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, template: str = "") -> None:
        self.template = template
        self._backend = backend
        # A second tokenizer over the same vocabulary and merges (shared, not copied), without added tokens.
        self._ordinary = tokenizers.Tokenizer(backend.model)
        if backend.normalizer is not None:
            self._ordinary.normalizer = backend.normalizer
        if backend.pre_tokenizer is not None:
            self._ordinary.pre_tokenizer = backend.pre_tokenizer
        added = backend.get_added_tokens_decoder()
        self._control_ids = {token.content: token_id for token_id, token in added.items()}
        self._known_bytes = {token_id: token.content.encode() for token_id, token in added.items()}

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Open a checkpoint's `tokenizer.json`.

        Raises CheckpointError where it is missing, damaged, or not byte-level BPE.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"{path}: missing, and text cannot become tokens without it; copy it from the model's source"
            )
        refuse_pointer(path)
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more precise
            raise CheckpointError(f"{path}: not a tokenizer ({error}); fetch the file again") from error
        if not isinstance(backend.decoder, tokenizers.decoders.ByteLevel):
            raise CheckpointError(
                f"{path}: not a byte-level vocabulary, which all supported models have; is this one?"
            )
        return cls(backend, template=_read_template(Path(folder)))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model's output may be padded beyond it."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def token_id(self, token: str) -> int | None:
        """Return the id of a token written exactly like this, or None."""
        return self._backend.token_to_id(token)

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Return the ids of a text; token strings in it become control tokens only with `control`."""
        return self._encode_run([(text, control)])

    def encode_segments(self, segments: Iterable[TextSegment]) -> list[int]:
        """Return the ids of a rendering.

        What stands between two control tokens is encoded as a whole, whoever wrote it. Only where the text to
        be learned begins there is always a token boundary, because there is one when the model generates.
        """
        runs = itertools.groupby(segments, key=lambda segment: segment.trainable)
        return [
            token_id
            for _, run in runs
            for token_id in self._encode_run([(segment.text, segment.control) for segment in run])
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids, control tokens shown; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self._token_bytes, ids)).decode("utf-8", errors="replace")

    def detokenizer(self) -> Detokenizer:
        """Return a decoder for a stream of ids."""
        return Detokenizer(self._token_bytes)

    @functools.cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._control_ids, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    def _encode_run(self, parts: Sequence[tuple[str, bool]]) -> list[int]:
        """Encode parts of (text, control), joining the ordinary text between control tokens."""
        ids: list[int] = []
        pending = ""
        for text, control in parts:
            # With one group in the pattern, split() alternates: text, token, text, ..., text.
            pieces = self._control_pattern.split(text) if control else [text]
            pending += pieces[0]
            for token, following in zip(pieces[1::2], pieces[2::2], strict=True):
                ids += self._encode_ordinary(pending)
                ids.append(self._control_ids[token])
                pending = following
        return ids + self._encode_ordinary(pending)

    def _encode_ordinary(self, text: str) -> list[int]:
        try:
            return self._ordinary.encode(text, add_special_tokens=False).ids
        except TypeError as error:  # how the library reports a str that is not Unicode text
            raise UsageError(
                "a text holds half of a UTF-16 pair, which no tokenizer can encode; "
                "it was probably not UTF-8 when it was read: convert it first"
            ) from error

    def _token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token; ids that the vocabulary does not name (padding rows) have none."""
        known = self._known_bytes.get(token_id)
        if known is None:
            known = _spelled_bytes(self._backend.id_to_token(token_id) or "")
            self._known_bytes[token_id] = known
        return known


def _spelled_bytes(token: str) -> bytes:
    """Return what a token of the vocabulary stands for; one outside the alphabet means itself."""
    if all(character in _BYTES for character in token):
        return bytes(_BYTES[character] for character in token)
    return token.encode()


def _read_template(folder: Path) -> str:
    """Return the text of the chat template that a checkpoint folder carries, or nothing."""
    separate = folder / "chat_template.jinja"
    refuse_pointer(separate)
    if separate.is_file():
        return separate.read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return ""
    refuse_pointer(path)
    try:
        template: Any = json.loads(path.read_bytes()).get("chat_template")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a JSON object ({error}); fetch the file again") from error
    return template if isinstance(template, str) else ""
