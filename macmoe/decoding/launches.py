"""Each kernel of a token by itself: whether it is right, and what a launch takes.

The launches of one token are recorded with their arrays. One of each form is compared with plain operations
(macmoe.decoding.references); then all of a form run again, each layer's with its own weights, so often that
waiting for the device does not count. They do not wait for each other as they do in a token, so a GPU may
overlap them; the host's part in a launch is included.
"""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from macmoe.decoding.references import pairs
from macmoe.decoding.step import DecodeStep
from macmoe.kernels.source import Call, product_type
from macmoe.nn.cache import ModelCache

AT_ONCE = 64  # launches that are timed together, at least
ROUNDS = 5
# Largest difference over the largest wanted value: two units of the last place for 16 bits. Float32 sums come
# in another order, and a GPU's exponentials are its own.
BOUNDS = {mx.float32: 1e-4, mx.float16: 2.0**-9, mx.bfloat16: 2.0**-6}
MATRICES = ("w", "scales", "offsets", "router")  # inputs that are matrices, in the texts' names


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An error, and what it may be at most."""

    error: float
    bound: float

    @property
    def right(self) -> bool:
        """Whether the error is within the bound."""
        return self.error <= self.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCheck(Judged):
    """What was found of one kernel; its error is the largest difference over the largest value.

    Attributes:
        kernel: Its name, and the shape of its first output.
        launches: How many a token needs.
        seconds: Of one launch among many.
        matrix_bytes: What one launch reads of matrices; 0 where it reads none.
    """

    kernel: str
    launches: int
    seconds: float
    matrix_bytes: int

    @property
    def bandwidth(self) -> float | None:
        """Bytes of matrices per second, None where it reads none."""
        return self.matrix_bytes / self.seconds if self.matrix_bytes and self.seconds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelChecks:
    """What was found of the kernels of a token, one of each form."""

    checks: tuple[KernelCheck, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "KernelChecks":
        """Take what `dataclasses.asdict` made of them."""
        return cls(checks=tuple(KernelCheck(**check) for check in data["checks"]))


def check_kernels(step: DecodeStep, cache: ModelCache) -> KernelChecks:
    """Check and time the kernels of one more token; `cache`, which holds some, is spoiled."""
    by_form: dict[str, list[Call]] = {}
    for call in step.calls(mx.zeros((1,), dtype=mx.uint32), cache):
        by_form.setdefault(_form(call), []).append(call)
    checks = tuple(_check(form, calls) for form, calls in by_form.items())
    mx.clear_cache()  # unpacked experts are large
    return KernelChecks(checks=checks)


def _form(call: Call) -> str:
    return f"{call.launch.kernel.name} {list(call.arguments['output_shapes'][0])}"


def _check(form: str, calls: Sequence[Call]) -> KernelCheck:
    variants = {call.launch: call for call in calls}  # with and without a bias, for example
    errors = [error for call in variants.values() for error in errors_of(call, call())]
    error, bound = max(errors, key=lambda pair: pair[0] / pair[1])
    return KernelCheck(
        kernel=form,
        launches=len(calls),
        error=error,
        bound=bound,
        seconds=_seconds(calls),
        matrix_bytes=sum(map(_matrix_bytes, calls)) // len(calls),
    )


def errors_of(call: Call, outputs: list[mx.array]) -> list[tuple[float, float]]:
    """Return error and bound of everything that a launch wrote."""
    return [(_error(got, wanted), BOUNDS[product_type(got.dtype)]) for got, wanted in pairs(call, outputs)]


def _error(got: mx.array, wanted: mx.array) -> float:
    scale = mx.maximum(mx.abs(wanted).max(), 1e-30)
    error: Any = (mx.abs(got.astype(mx.float32) - wanted).max() / scale).item()
    return math.inf if math.isnan(error) else float(error)


def _seconds(calls: Sequence[Call]) -> float:
    """Return the seconds of one launch, the median of some rounds; the first one is left out."""
    repeats = math.ceil(AT_ONCE / len(calls))
    seconds = []
    for _ in range(1 + ROUNDS):
        outputs = [call() for _ in range(repeats) for call in calls]
        began = time.perf_counter()
        mx.eval(outputs)
        seconds.append((time.perf_counter() - began) / len(outputs))
    return statistics.median(seconds[1:])


def _matrix_bytes(call: Call) -> int:
    """Return the bytes of matrices that a launch reads: of one token's experts those that are chosen."""
    c = call.constants
    chosen = (c["SLOTS"] - c["SHARED"]) / c["EXPERTS"] if "SHARED" in c else 1
    return round(
        sum(
            array.nbytes * (1 if name.endswith("_shared") else chosen)
            for name, array in call.inputs.items()
            if name.removesuffix("_shared") in MATRICES and array.ndim > 1
        )
    )
