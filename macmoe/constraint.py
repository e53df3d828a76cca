"""Tokens that only certain words may follow, enforced on the device, without waiting for the tokens."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

FREE, AFTER = 0, 1  # the first two states; the others are words begun


class WordConstraint:
    """After one token, only one of a few words: GPT-OSS names a channel after `<|channel|>`.

    The words are a trie, and the trie a table of states by tokens, so that a step is two look-ups.

    Args:
        after: The token that a word has to follow.
        words: The words as token ids; none is the beginning of another.
        vocab: Number of columns of the logits.
    """

    def __init__(self, after: int, words: Sequence[Sequence[int]], vocab: int) -> None:
        children: list[dict[int, int]] = [{after: AFTER}, {}]
        for word in words:
            state = AFTER
            for token in word[:-1]:
                if token not in children[state]:
                    children[state][token] = len(children)
                    children.append({})
                state = children[state][token]
            children[state][word[-1]] = FREE
        self._children = children
        following = np.zeros((len(children), vocab), dtype=np.uint32)
        allowed = np.zeros((len(children), vocab), dtype=bool)
        allowed[FREE] = True
        for state, tokens in enumerate(children):
            for token, child in tokens.items():
                following[state, token] = child
                allowed[state, token] = True
        self._following, self._allowed = mx.array(following), mx.array(allowed)
        self._state = mx.array([FREE])

    def begin(self, tokens: Sequence[int]) -> None:
        """Start after these tokens, whatever came before them."""
        self.begin_rows([tokens])

    def begin_rows(self, rows: Sequence[Sequence[int]]) -> None:
        """Start after the tokens of each of several sequences."""
        self._state = mx.array([self._after(tokens[-len(self._children) :]) for tokens in rows])

    def _after(self, tokens: Sequence[int]) -> int:
        state = FREE
        for token in tokens:
            state = self._children[state].get(token, FREE)
        return state

    def mask(self, logprobs: mx.array) -> mx.array:
        """Set the entries [batch, vocab] of tokens that may not come next to -inf."""
        return mx.where(self._allowed[self._state], logprobs, -mx.inf)

    def advance(self, tokens: mx.array) -> None:
        """Take note of the chosen tokens [batch]."""
        self._state = self._following[self._state, tokens]
