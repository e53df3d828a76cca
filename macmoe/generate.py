"""The token loop: token ids in, token ids out. Nothing here knows text."""

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from macmoe.errors import ContextError, UsageError
from macmoe.families import Model
from macmoe.kernels import source
from macmoe.nn.cache import ModelCache
from macmoe.pacing import in_step
from macmoe.protocols import Cache, LanguageModel
from macmoe.sampling import Sampler

CHUNKS = (4096, 2048, 1024, 512)  # tokens per forward pass over a prompt
# What a pass may hold beside weights and cache: more brings little, experts are read once per pass anyway.
PREFILL_BYTES = 5 * 2**28
# What it may hold before it waits for the GPU: less, because what is handed over last comes on top.
AHEAD_BYTES = 2**28

ROOM = 1024  # tokens for which a cache makes room at first, if the answer may be that long

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token and its log-probability under the model, before temperature and cuts."""

    id: int
    logprob: float


def check_prompt(model: LanguageModel, prompt: Sequence[int], offset: int = 0) -> None:
    """Refuse a prompt that the model cannot process.

    Raises:
        UsageError: It is empty, or has ids outside the vocabulary.
        ContextError: It is longer than the model's positions.
    """
    if not prompt:
        raise UsageError("the prompt is empty: there is nothing to continue")
    config = model.config
    if offset + len(prompt) > config.max_position_embeddings:
        raise ContextError(offset + len(prompt), config.max_position_embeddings)
    wrong = [token for token in prompt if not 0 <= token < config.vocab_size]
    if wrong:
        raise UsageError(f"token id {wrong[0]} is outside the vocabulary of {config.vocab_size} ids")


def prefill_chunk(model: LanguageModel) -> int:
    """Return how many tokens of a prompt to process at once: the most that stay within `PREFILL_BYTES`."""
    per_token = model.config.prefill_bytes
    return next((chunk for chunk in CHUNKS if chunk * per_token <= PREFILL_BYTES), CHUNKS[-1])


def prefill(
    model: LanguageModel,
    tokens: mx.array,
    cache: Cache,
    *,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> mx.array:
    """Process prompts [batch, length] in chunks and return the logits [batch, vocab] after their last tokens.

    Args:
        model: The model.
        tokens: Token ids; shorter prompts are padded on the left, as `cache` knows.
        cache: Filled with the prompts.
        chunk: Tokens of each per forward pass; None: so many that all have `prefill_chunk`.
        progress: Called with (tokens done, tokens in all) of each, after each chunk.
    """
    batch, length = tokens.shape
    chunk = chunk or max(1, prefill_chunk(model) // batch)
    begin = 0
    while begin + chunk < length:
        with in_step(AHEAD_BYTES):
            model.hidden(tokens[:, begin : begin + chunk], cache)
            mx.eval(cache.state)
        mx.clear_cache()
        begin += chunk
        if progress is not None:
            progress(begin, length)
    with in_step(AHEAD_BYTES):
        hidden = model.hidden(tokens[:, begin:], cache)
        logits = model.logits(hidden[:, -1:])[:, -1]
        mx.eval(logits)
    if progress is not None:
        progress(length, length)
    return logits


def generate(
    model: LanguageModel,
    prompt: Sequence[int],
    sampler: Sampler,
    *,
    max_tokens: int,
    stop_ids: Collection[int] = (),
    cache: Cache | None = None,
    known: Sequence[int] = (),
    answer_from: int | None = None,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> Generator[Token, None, None]:
    """Yield tokens until a stop id (which is yielded), `max_tokens`, or the model's last position.

    While a token is handed out the device already computes the next one. However the loop ends, the cache
    then holds the prompt and all yielded tokens but the last: pass that one first to continue.

    Args:
        model: The model.
        prompt: Token ids after what `cache` holds.
        sampler: Chooses the tokens.
        max_tokens: At most this many.
        stop_ids: End the answer.
        cache: Continue after its content; None starts afresh.
        known: The tokens that it holds, for penalties.
        answer_from: Where the answer begins in `known` and `prompt` together; None: after them.
        chunk: Tokens per forward pass over the prompt; None: `prefill_chunk`.
        progress: Called with (tokens done, tokens in all) during the prompt.

    Raises:
        UsageError: See `check_prompt`.
    """
    if cache is None:
        cache = model.make_cache()
    start = cache.offset
    check_prompt(model, prompt, start)
    max_tokens = min(max_tokens, model.config.max_position_embeddings - start - len(prompt) + 1)
    if max_tokens < 1:
        return
    cache.reserve(start + len(prompt) + min(max_tokens, ROOM))
    tokens = [*known, *prompt]
    sampler.begin(tokens[:answer_from], [] if answer_from is None else tokens[answer_from:])
    current = sampler(prefill(model, mx.array(list(prompt))[None], cache, chunk=chunk, progress=progress))
    mx.async_eval(current)
    following = following_logits(model, cache)
    yielded = 0
    try:
        while True:
            ahead = _next(following, sampler, current) if yielded + 1 < max_tokens else current
            token = Token(cast("int", current[0].item()), cast("float", current[1].item()))
            yielded += 1
            yield token
            if token.id in stop_ids or yielded == max_tokens:
                return
            current = ahead
    finally:
        cache.trim(cache.offset - (start + len(prompt) + max(yielded, 1) - 1))


def following_logits(model: LanguageModel, cache: Cache) -> Callable[[mx.array], mx.array]:
    """Return what maps a token of each sequence to the logits after it, and adds it to the cache.

    [batch] -> [batch, vocab]. The cache holds the prompts, whose computation is over.
    """
    if source.enabled():
        from macmoe.decoding.choice import decode_step  # noqa: PLC0415 - nothing for a CPU to load

        step = decode_step(cast("Model", model), cast("ModelCache", cache))
        if step is not None:
            return lambda tokens: step(tokens, cast("ModelCache", cache))
    return lambda tokens: model.logits(model.hidden(tokens[:, None], cache))[:, -1]


def _next(
    following: Callable[[mx.array], mx.array], sampler: Sampler, current: tuple[mx.array, mx.array]
) -> tuple[mx.array, mx.array]:
    """Start computing the token after `current` without waiting for either."""
    ahead = sampler(following(current[0]))
    mx.async_eval(ahead)
    return ahead
