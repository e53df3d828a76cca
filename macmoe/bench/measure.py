"""Times and memory of cases, of one side or of two in turn.

Decoding after a context, one sequence or several; reading a prompt; or verifying: several tokens at once
after a context.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import mlx.core as mx

from macmoe.bench.sides import Passes, Side

WARM_UP = 16  # tokens decoded before the clock starts
# Tokens of the prompt before the first timed one: several chunks of either side, for all their kernels.
WARM_UP_PROMPT = 8_192
WARM_UP_PASSES = 4  # over several tokens, before the clock starts
DECODE, PREFILL, VERIFY, BATCH = "decode", "prefill", "verify", "batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to measure.

    Attributes:
        tokens: Decoded in a round, after the warm-up.
        passes: Over several tokens in a round, after the warm-up; few, because each makes the cache longer.
        rounds: Measurements of each side, in turn.
        time_limit: Seconds for one case; no round begins after them.
    """

    tokens: int = 64
    passes: int = 16
    rounds: int = 3
    time_limit: float | None = None


@dataclass(slots=True, kw_only=True)
class Times:
    """One side of a case.

    Attributes:
        seconds: Of each round: all tokens of a decode, all passes over several tokens, or until the first
            token after a prompt.
        tokens: Tokens of a round.
        ids: What the side chose in the warm-up.
        peak_bytes: Most memory held in a round, as if the side were alone: its weights and what came on top.
        cache_bytes: Of the cache that the next token reads.
        failure: Why the side has no times, or fewer.
    """

    tokens: int
    seconds: list[float] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    peak_bytes: int = 0
    cache_bytes: int = 0
    failure: str = ""

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each round."""
        return [self.tokens / seconds for seconds in self.seconds]

    @property
    def rate(self) -> float | None:
        """The median of the rounds; None if there are none."""
        return statistics.median(self.rates) if self.seconds else None

    def to_json(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": {
                "median": self.rate,
                "lowest": min(self.rates, default=None),
                "highest": max(self.rates, default=None),
            },
            "peak_bytes": self.peak_bytes or None,
            "cache_bytes": self.cache_bytes,
            "not_measured": self.failure or None,
        }


@dataclass(slots=True, kw_only=True)
class Case:
    """What was measured.

    Attributes:
        kind: One of `DECODE`, `PREFILL`, `VERIFY` and `BATCH`.
        size: Tokens in the cache (decode), in the prompt (prefill) or in a draft (verify); sequences (batch).
        context: Tokens in the cache at first.
        sides: The figures by side.
    """

    kind: str
    size: int
    context: int
    sides: dict[str, Times]

    def ratio(self, ours: str, other: str) -> float | None:
        """Return how many times as fast as the other one a side is."""
        rates = [self.sides[name].rate if name in self.sides else None for name in (ours, other)]
        return rates[0] / rates[1] if rates[0] and rates[1] else None

    @property
    def same_tokens(self) -> int | None:
        """How many tokens all sides chose alike before the first difference; None for one side alone.

        In 16 bits near ties fall either way, so a small number alone says little.
        """
        if len(self.sides) < 2:
            return None
        chosen = list(zip(*(times.ids for times in self.sides.values()), strict=False))
        return next((number for number, ids in enumerate(chosen) if len(set(ids)) > 1), len(chosen))

    def to_json(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {
            "kind": self.kind,
            "size": self.size,
            "context": self.context,
            "same_tokens": self.same_tokens,
            "sides": {name: times.to_json() for name, times in self.sides.items()},
        }


def random_prompt(vocab: int, tokens: int) -> list[int]:
    """Return a prompt of random tokens, the same at every call."""
    ids: Any = mx.random.randint(0, vocab, (tokens,), key=mx.random.key(0)).tolist()
    return ids


def random_passes(vocab: int, sequences: int, tokens: int, plan: Plan) -> list[list[list[int]]]:
    """Return random tokens [passes, sequences, tokens] for a round and its warm-up, always the same."""
    ids = iter(random_prompt(vocab, sequences * tokens * (WARM_UP_PASSES + plan.passes)))
    rows = [list(islice(ids, tokens)) for _ in range(sequences * (WARM_UP_PASSES + plan.passes))]
    return [rows[begin : begin + sequences] for begin in range(0, len(rows), sequences)]


def decode_case(sides: Mapping[str, Side], context: int, plan: Plan) -> Case:
    """Measure decoding after `context` tokens."""

    def warm_up(side: Side) -> list[int]:
        return list(side.decode(context, WARM_UP))

    def seconds(side: Side) -> float:
        tokens = side.decode(context, WARM_UP + plan.tokens + 1)  # the last one has nobody to overlap with
        return _seconds(tokens, WARM_UP, plan.tokens)

    times = _times(sides, plan.tokens, context)
    _take(sides, times, warm_up, seconds, plan)
    return Case(kind=DECODE, size=context, context=context, sides=times)


def prefill_case(sides: Mapping[str, Side], prompt: Sequence[int], plan: Plan) -> Case:
    """Measure the time from a prompt to the first token."""

    def warm_up(side: Side) -> list[int]:
        return [side.first_token(prompt[:WARM_UP_PROMPT])]

    def seconds(side: Side) -> float:
        return _seconds(map(side.first_token, [prompt]), 0, 1)

    times = _times(sides, len(prompt), len(prompt))
    _take(sides, times, warm_up, seconds, plan)
    return Case(kind=PREFILL, size=len(prompt), context=0, sides=times)


def verify_case(sides: Mapping[str, Side], vocab: int, context: int, tokens: int, plan: Plan) -> Case:
    """Measure passes over drafts of so many tokens after `context` others."""
    times = _of_passes(sides, context, random_passes(vocab, 1, tokens, plan), plan)
    return Case(kind=VERIFY, size=tokens, context=context, sides=times)


def batch_case(sides: Mapping[str, Side], vocab: int, context: int, sequences: int, plan: Plan) -> Case:
    """Measure passes over one token of each of so many sequences, after `context` tokens each."""
    times = _of_passes(sides, context, random_passes(vocab, sequences, 1, plan), plan)
    return Case(kind=BATCH, size=sequences, context=context, sides=times)


def _of_passes(sides: Mapping[str, Side], context: int, passes: Passes, plan: Plan) -> dict[str, Times]:
    """Measure passes over given tokens, so that all sides read the same whatever they choose."""

    def warm_up(side: Side) -> list[int]:
        return list(chain.from_iterable(side.passes(context, passes)))

    def seconds(side: Side) -> float:
        return _seconds(side.passes(context, passes), WARM_UP_PASSES, plan.passes)

    sequences = len(passes[0])
    times = _times(sides, sequences * len(passes[0][0]) * plan.passes, context, sequences)
    _take(sides, times, warm_up, seconds, plan)
    return times


def _times(sides: Mapping[str, Side], tokens: int, cached: int, sequences: int = 1) -> dict[str, Times]:
    """Return times to be filled, of rounds of `tokens`; the caches hold `cached` tokens of each sequence."""
    return {
        name: Times(tokens=tokens, cache_bytes=sequences * side.cache_bytes(cached))
        for name, side in sides.items()
    }


def _seconds(steps: Iterator[Any], before: int, timed: int) -> float:
    """Return the seconds that `timed` steps take after `before` others."""
    for _ in range(before):
        next(steps)
    began = time.perf_counter()
    for _ in range(timed):
        next(steps)
    return time.perf_counter() - began


def _take(
    sides: Mapping[str, Side],
    times: Mapping[str, Times],
    warm_up: Callable[[Side], list[int]],
    seconds: Callable[[Side], float],
    plan: Plan,
) -> None:
    """Fill `times`: every side warms up, then they take turns."""
    began = time.perf_counter()
    for number in range(plan.rounds + 1):
        for name, side in sides.items():
            mine = times[name]
            if mine.failure:
                continue
            left = (
                float("inf") if plan.time_limit is None else plan.time_limit - (time.perf_counter() - began)
            )
            if left < max(mine.seconds, default=0.0):
                mine.failure = f"the time limit of {plan.time_limit:.0f} s is reached"
                continue
            _round(mine, side, None if number else warm_up, seconds)


def _round(
    mine: Times,
    side: Side,
    warm_up: Callable[[Side], list[int]] | None,
    seconds: Callable[[Side], float],
) -> None:
    held = settle()
    try:
        if warm_up is not None:
            mine.ids = warm_up(side)
        else:
            mine.seconds.append(seconds(side))
            mine.peak_bytes = max(mine.peak_bytes, mx.get_peak_memory() - held + side.weight_bytes)
    except Exception as error:  # noqa: BLE001 - out of memory has many types, and the other cases go on
        mine.failure = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    settle()


def settle() -> int:
    """Let everything finish, give back what is not used, and return the bytes still held."""
    mx.synchronize()
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    return mx.get_active_memory()
