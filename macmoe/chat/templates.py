"""Tell whether a checkpoint's chat template is one that a chat format knows, without running it.

Templates are edited on their way: guards are added, loops written anew, comments put before them. What stays
is what they write: tags and sentences. A template that has a tag or a sentence of its own asks for prompts
that no format here writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_STRING = r"'(?:\\.|[^'\\])*+'|\"(?:\\.|[^\"\\])*+\""
_BLOCK = re.compile(rf"\{{[{{%](?:{_STRING}|(?![%}}]\}})[^'\"])*+[%}}]\}}", re.DOTALL)
_TEXT = re.compile(_STRING, re.DOTALL)
_COMPLAINT = re.compile(rf"raise_exception\(\s*(?:{_STRING})", re.DOTALL)
_ESCAPE = re.compile(r"\\[ntr]")
TAG = re.compile(r"<\|[^|<>\s]+\|>|<｜[^｜<>\s]+｜>|</?[A-Za-z][\w-]*(?:=[\w-]*)?>")
# Words of Latin script count one each, so do the letters of other scripts: some do without spaces.
_WORD = re.compile(r"[A-Za-z']+|[^\W\d_a-zA-Z]")
_SENTENCE = 3  # words; shorter texts are roles, names of keys and the like


def without_comments(template: str) -> str:
    """Return a template without its comments."""
    kept, place = [], 0
    while (begin := template.find("{#", place)) >= 0 and (end := template.find("#}", begin + 2)) >= 0:
        kept.append(template[place:begin])
        place = end + 2
    return "".join([*kept, template[place:]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """What the known templates of a format write.

    Attributes:
        needed: Texts that each of them has.
        tags: What they may write besides; None: anything, because `needed` says enough.
        sentences: All they say.
    """

    needed: tuple[str, ...]
    tags: tuple[str, ...] | None = None
    sentences: str = ""

    def knows(self, template: str) -> bool:
        """Tell whether a template writes nothing but what the known ones do."""
        template = _COMPLAINT.sub("", without_comments(template))
        if not all(text in template for text in self.needed):
            return False
        if self.tags is None:
            return True
        known = " ".join(_words(self.sentences))
        return set(TAG.findall(template)) <= {*self.needed, *self.tags} and all(
            " ".join(sentence) in known for sentence in _sentences(template)
        )


def _sentences(template: str) -> Iterator[list[str]]:
    """Yield the words of each text that a template could write and that is long enough to be a sentence."""
    texts = [_BLOCK.sub(" \0 ", template)]  # what stands between the blocks
    texts += [string[1:-1] for block in _BLOCK.findall(template) for string in _TEXT.findall(block)]
    for part in "\0".join(texts).split("\0"):
        words = _words(part)
        if len(words) >= _SENTENCE:
            yield words


def _words(text: str) -> list[str]:
    return _WORD.findall(TAG.sub(" ", _ESCAPE.sub(" ", text)))
