"""A model that writes what a test tells it to, on the small vocabulary of a family."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from macmoe.chat import FORMATS
from macmoe.defaults import Defaults
from macmoe.families import FAMILIES
from macmoe.sampling import SamplingOptions
from macmoe.session import Session
from tests.vocabularies import small


@dataclass(frozen=True)
class Config:
    vocab_size: int
    max_position_embeddings: int = 4096
    prefill_bytes: int = 1


class Transcript:
    """A cache that is just the list of tokens processed so far."""

    left_padding = None
    nbytes = 0
    state = ()

    def __init__(self):
        self.tokens = []

    offset = trimmable = property(lambda self: len(self.tokens))

    def __iter__(self):
        return iter([self])

    def reserve(self, tokens):
        pass

    def snapshot(self, offset):  # noqa: ARG002 - the protocol's argument
        return None

    def trim(self, tokens):
        del self.tokens[len(self.tokens) - tokens :]


class ScriptedModel:
    """Answers the prompts that it has learned, and no others.

    Where its thinking is closed for it, it goes on with the answer that comes after the thinking.
    """

    def __init__(self, family):
        self.family = family
        self.tokenizer = small(family)
        self.chat = FORMATS[family].for_model(self.tokenizer)
        self.config = Config(self.tokenizer.vocab_size)
        self.closing = self.tokenizer.encode_segments(self.chat.close_thinking())
        self.scripts = {}

    def learn(self, messages, answer, *, tools=(), thinking=None):
        """Answer these messages with this one; return the ids of the prompt and of what will be written."""
        target = self.chat.render_target([*messages, answer], tools=tools, thinking=thinking)
        prompt = self.tokenizer.encode_segments([part for part in target if not part.trainable])
        script = self.tokenizer.encode_segments([part for part in target if part.trainable])
        reply = self.tokenizer.encode(answer.content) + script[-1:]
        self.scripts[tuple(prompt)] = script, reply
        return prompt, script

    def session(self):
        """Return a session with this model."""
        defaults = Defaults(sampling=SamplingOptions(), stop_ids=frozenset())
        return Session(FAMILIES[self.family], self, self.tokenizer, defaults)

    def make_cache(self, bits=None):  # noqa: ARG002 - the protocol's argument
        return Transcript()

    def hidden(self, tokens, cache):
        cache.tokens += tokens[0].tolist()
        return mx.array(self.next_token(cache.tokens)).reshape(1, 1)

    def logits(self, hidden):
        return mx.where(mx.arange(self.config.vocab_size) == hidden[..., None], 0.0, -1e9)

    def next_token(self, tokens):
        known = [prompt for prompt in self.scripts if list(prompt) == tokens[: len(prompt)]]
        assert known, f"no script for {self.tokenizer.decode(tokens)!r}"
        prompt = max(known, key=len)
        script, reply = self.scripts[prompt]
        written = tokens[len(prompt) :]
        size = len(self.closing)
        closed = [end for end in range(size, len(written) + 1) if written[end - size : end] == self.closing]
        script, done = (reply, len(written) - closed[0]) if closed else (script, len(written))
        return script[min(done, len(script) - 1)]
