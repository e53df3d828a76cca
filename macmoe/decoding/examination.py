"""Whether a model's kernels are right and faster: each kind of sublayer is compared, and a whole token timed.

One sequence takes other kernels than several, so each kind is compared for one and for two, of which one is
padded, and kernels that are wrong for several only are used for one. Attention is also compared after a long
cache, which is cut into more parts. The time that decides is that of one sequence.
Both the kernels and the modules round; the judge is the same module in float32. Kernels are right where their
error is no larger than rounding in that type explains: about as large as that of the modules. What does not
run, because the device does not compile a kernel or has no memory for the comparison, counts as wrong.
"""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from macmoe.decoding.comparisons import PAST, TOKENS, Run, Runs, comparisons, dtype_of, mixtures
from macmoe.decoding.launches import Judged
from macmoe.decoding.step import DecodeStep
from macmoe.families import Model
from macmoe.kernels.source import product_type
from macmoe.nn.cache import ModelCache

MOST_OF_A_FAILURE = 300  # characters of what MLX says: a compiler's list of complaints has no end
MARGIN = 1.5  # how much larger than the modules' the kernels' error may be
# Relative errors that are nothing to worry about, whatever the modules' are.
FLOORS = {mx.float32: 1e-4, mx.float16: 2e-3, mx.bfloat16: 1e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check(Judged):
    """What was found of one kind of sublayer; its error is relative to the module in float32 (median token).

    Attributes:
        rows: Tokens at once from which on it matters: 1, or 2 for what concerns several only.
        seconds: With kernels, waiting for the device included.
        plain_seconds: In the module.
        failure: What MLX said where this did not run, in one line.
    """

    rows: int
    seconds: float
    plain_seconds: float
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an examination found.

    Attributes:
        checks: By kind of sublayer.
        seconds: Of one token through the whole model with kernels.
        plain_seconds: Of one token without.
    """

    checks: dict[str, Check]
    seconds: float
    plain_seconds: float

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Verdict":
        """Take what `dataclasses.asdict` made of a verdict."""
        checks = {kind: Check(**check) for kind, check in data["checks"].items()}
        return cls(**{**data, "checks": checks})

    @property
    def wrong(self) -> dict[str, Check]:
        """The checks that failed."""
        return {kind: check for kind, check in self.checks.items() if not check.right}

    @property
    def complete(self) -> bool:
        """Whether everything ran: what did not may do so another time."""
        return not any(check.failure for check in self.checks.values())

    def use(self, rows: int) -> bool:
        """Return whether to use the kernels for so many tokens at once."""
        right = all(check.rows > rows for check in self.wrong.values())
        return right and self.seconds < self.plain_seconds


def _check(compare: Callable[[], Runs], rows: int, dtype: mx.Dtype) -> Check:
    try:
        kernels, modules, exact = compare()
        return Check(
            rows=rows,
            error=kernels.error(exact),
            bound=max(FLOORS[product_type(dtype)], MARGIN * modules.error(exact)),
            seconds=statistics.median(kernels.seconds),
            plain_seconds=statistics.median(modules.seconds),
        )
    except (RuntimeError, ValueError) as error:  # a text that does not compile, too many threads, no memory
        said = " ".join(str(error).split())[:MOST_OF_A_FAILURE]
        never = {"error": math.inf, "seconds": math.inf, "plain_seconds": math.inf}
        return Check(rows=rows, bound=0.0, failure=said, **never)


def examine(model: Model, step: DecodeStep, cache_bits: int | None = None) -> Verdict:
    """Judge the kernels of a model, one sublayer of each kind, and time one token both ways.

    All that is compared has a cache of `cache_bits`, see `LanguageModel.make_cache`.
    """
    for experts in mixtures(model):
        experts.use_kernels = False  # the modules are what the kernels are compared with
    checks: dict[str, Check] = {}
    for kind, rows, compare in comparisons(model, step, cache_bits):
        if kind not in checks:
            checks[kind] = _check(compare, rows, dtype_of(model))
    failed = Verdict(checks=checks, seconds=math.inf, plain_seconds=math.inf)
    if not failed.complete:
        return failed
    seconds, plain_seconds = _times(model, step, cache_bits)
    return Verdict(checks=checks, seconds=seconds, plain_seconds=plain_seconds)


def with_past(model: Model, cache_bits: int | None = None) -> ModelCache:
    """Return a cache that holds some tokens."""
    cache: ModelCache = model.make_cache(bits=cache_bits)
    mx.eval(model.hidden(mx.zeros((1, PAST), dtype=mx.uint32), cache))
    return cache


def _times(model: Model, step: DecodeStep, cache_bits: int | None) -> tuple[float, float]:
    cache = with_past(model, cache_bits)
    token = mx.zeros((1,), dtype=mx.uint32)

    def with_kernels() -> mx.array:
        return step(token, cache)

    def plain() -> mx.array:
        return model.logits(model.hidden(token[None], cache))

    kernels, modules = Run(), Run()
    for _ in range(1 + TOKENS):  # the first one compiles
        kernels.take(with_kernels)
    for _ in range(1 + TOKENS):
        modules.take(plain)
    return statistics.median(kernels.last.seconds), statistics.median(modules.last.seconds)
