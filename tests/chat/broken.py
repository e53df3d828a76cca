"""Outputs that break the formats, made of sound ones, and what must be true of their reading all the same."""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby, pairwise
from random import Random

from macmoe.chat import ToolCallEvent
from tests.chat.generated import PIECES, TOKENS, Writer, random_sample, read
from tests.chat.records import merged

# After these, GPT-OSS has no text before the next `<|message|>`: the words of a header may be dropped.
HEADER_BEGINS = ("<|channel|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|endoftext|>")
WORD = re.compile(r"w\d+")

Piece = tuple[str, bool]
"""A text, and whether it is a control token."""


def pieces_of(writer: Writer, ids: list[int]) -> list[Piece]:
    """Return texts and control tokens of an output."""
    tokenizer = writer.vocabulary()
    control = {tokenizer.token_id(token) for token in TOKENS} - {None}
    pieces: list[Piece] = []
    for is_token, group in groupby(ids, key=control.__contains__):
        run = list(group)
        texts = [[token_id] for token_id in run] if is_token else [run]
        pieces += [(tokenizer.decode(each), is_token) for each in texts]
    return pieces


def ids_of(writer: Writer, pieces: list[Piece]) -> list[int]:
    """Return the ids of texts and control tokens."""
    tokenizer = writer.vocabulary()
    return [token_id for text, is_token in pieces for token_id in tokenizer.encode(text, control=is_token)]


def break_pieces(random: Random, writer: Writer, pieces: list[Piece]) -> list[Piece]:
    """Return pieces with a few faults: tokens and texts lost, repeated, moved, spelled out, or cut."""
    tokenizer = writer.vocabulary()
    tokens = [token for token in TOKENS if tokenizer.token_id(token) is not None]
    for _ in range(random.randrange(1, 5)):
        pieces = _split(random, pieces)
        place, fault = random.randrange(len(pieces) + 1), random.randrange(7)
        if fault == 0:
            pieces.insert(place, (random.choice(tokens), True))
        elif fault == 1:
            pieces.insert(place, (random.choice(PIECES), False))
        elif fault == 2:
            pieces = pieces[:place]
        elif place < len(pieces):
            text, is_token = pieces[place]
            changed = [[], [(text, is_token)] * 2, [(text, False)], pieces[place : place + 3][::-1]][
                fault - 3
            ]
            pieces[place : place + (3 if fault == 6 else 1)] = changed
    return pieces


def _split(random: Random, pieces: list[Piece]) -> list[Piece]:
    """Cut one text in two, but no word."""
    place = random.randrange(len(pieces)) if pieces else 0
    if not pieces or pieces[place][1]:
        return list(pieces)
    text, _ = pieces[place]
    ends = [match.end() for match in re.finditer(r"w\d+|\W|[^\Ww]", text)]
    ends = [end for end in ends if not text[end : end + 1].isdigit()]  # it could continue another word
    end = random.choice(ends) if ends else 0
    return [*pieces[:place], (text[:end], False), (text[end:], False), *pieces[place + 1 :]]


def words_to_keep(pieces: list[Piece], start: str) -> list[str]:
    """Return the words that have to be delivered, in order."""
    words, in_header = [], start == "header"
    for text, is_token in pieces:
        if is_token:
            in_header = text in HEADER_BEGINS or (in_header and text != "<|message|>")
        elif not in_header:
            words += WORD.findall(text)
    return words


def words_of(events: list) -> list[str]:
    """Return the words that events deliver, in order."""
    texts = (
        f"{event.name} {event.raw}" if isinstance(event, ToolCallEvent) else event.text for event in events
    )
    return WORD.findall("".join(texts))


def recut(random: Random, writer: Writer, pieces: list[Piece]) -> list[int]:
    """Return ids of the same pieces, their texts cut into tokens elsewhere."""
    tokenizer, ids = writer.vocabulary(), []
    for text, is_token in pieces:
        ends = [] if is_token else sorted(random.randrange(len(text) + 1) for _ in range(random.randrange(4)))
        for begin, end in pairwise([0, *ends, len(text)]):
            ids += tokenizer.encode(text[begin:end], control=is_token)
    return ids


def check_broken(random: Random, writer: Writer) -> None:
    """Fail where a broken output raises, loses a word, or is read otherwise when fed otherwise."""
    sample = random_sample(random, writer)
    pieces = break_pieces(random, writer, pieces_of(writer, sample.ids))
    events = read(writer, sample.prompt, ids_of(writer, pieces))
    assert merged(events) == merged(read(writer, sample.prompt, recut(random, writer, pieces)))
    delivered = words_of(events)
    # A word may be delivered that could have been dropped, so the kept ones are looked for in order.
    rest = iter(delivered)
    kept = words_to_keep(pieces, writer.format.start_of(sample.prompt))
    assert all(word in rest for word in kept), f"{pieces} lost a word: {events}"
    every = Counter(word for text, is_token in pieces if not is_token for word in WORD.findall(text))
    assert Counter(delivered) <= every, f"{pieces} repeated a word: {events}"
