"""Kernels as texts, and their launch on the GPU at hand.

    outputs = launch(kernel, {"x": x}, {"y": (x.shape, x.dtype)}, {"DIM": 64}, groups=(8, 1, 1), threads=128)

Constants become macros, so a text has no run-time branches on them, and each combination is compiled once.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from macmoe.kernels.dialect import CUDA_PREAMBLE, METAL_PREAMBLE, METAL_TYPES, to_cuda

Constant = int | float | mx.Dtype
Shaped = tuple[tuple[int, ...], mx.Dtype]
SWITCH = "MACMOE_KERNELS"  # an environment variable; "0" turns the kernels off
SHARED_BYTES = 32 * 1024  # that a threadgroup may have in common on Metal


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One text.

    Attributes:
        name: What profilers and error messages show.
        body: Statements; inputs and outputs are pointers under their names, constants are macros.
        header: Functions for the body.
        writes: Inputs into which the kernel writes, in place.
    """

    name: str
    body: str
    header: str = ""
    writes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One instance of a kernel: everything but the arrays, so that it can be compiled and kept."""

    kernel: Kernel
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: tuple[tuple[str, Constant], ...]

    @property
    def header(self) -> str:
        """The constants as macros, and the kernel's functions."""
        lines = [f"#define {name} {_spelled(value)}" for name, value in self.constants]
        return "\n".join([*lines, self.kernel.header])

    @property
    def name(self) -> str:
        """A name that belongs to this instance alone: MLX keeps compiled kernels by their names."""
        identity = repr((self.kernel.body, self.header, self.inputs, self.outputs))
        return f"{self.kernel.name}_{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A launch with its arrays: called, it launches the kernel and returns its outputs, not yet evaluated."""

    launch: Launch
    arguments: Mapping[str, Any]

    @property
    def inputs(self) -> dict[str, mx.array]:
        """The arrays by name."""
        return dict(zip(self.launch.inputs, self.arguments["inputs"], strict=True))

    @property
    def constants(self) -> dict[str, Any]:
        """The constants by name."""
        return dict(self.launch.constants)

    def __call__(self) -> list[mx.array]:
        """Launch the kernel."""
        return _compiled(self.launch, _where())(**self.arguments)


_RECORD: ContextVar[list[Call] | None] = ContextVar("record", default=None)


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """Collect the calls that are made meanwhile; a compiled function makes them only when it is traced."""
    calls: list[Call] = []
    token = _RECORD.set(calls)
    try:
        yield calls
    finally:
        _RECORD.reset(token)


def _spelled(value: Constant) -> str:
    if isinstance(value, mx.Dtype):
        return METAL_TYPES[value]
    return f"{value!r}f" if isinstance(value, float) else str(int(value))


LAUNCHERS: dict[str, Callable[[Launch], Any]] = {
    "metal": lambda launch: mx.fast.metal_kernel(
        launch.name, launch.inputs, launch.outputs, launch.kernel.body, METAL_PREAMBLE + launch.header
    ),
    "cuda": lambda launch: mx.fast.cuda_kernel(
        launch.name,
        launch.inputs,
        launch.outputs,
        to_cuda(launch.kernel.body),
        CUDA_PREAMBLE + to_cuda(launch.header),
    ),
}


def backend() -> str | None:
    """Return for which kind of GPU kernels are compiled here: "metal", "cuda", or None on a CPU."""
    if mx.default_device() == mx.Device(mx.cpu):
        return None
    return "metal" if mx.metal.is_available() else "cuda"


def on_cuda() -> bool:
    """Return whether MLX computes on a CUDA GPU."""
    return backend() == "cuda"


def product_type(dtype: mx.Dtype) -> mx.Dtype:
    """Return the type whose precision MLX's products have: on CUDA those of float32 keep ten bits (TF32)."""
    ten_bits = dtype == mx.float32 and on_cuda() and os.environ.get("MLX_ENABLE_TF32") != "0"
    return mx.float16 if ten_bits else dtype


def enabled() -> bool:
    """Return whether kernels can run here and are not turned off."""
    return backend() is not None and os.environ.get(SWITCH) != "0"


@functools.cache
def _compiled(launch: Launch, where: str) -> Any:
    return LAUNCHERS[where](launch)


def launch(
    kernel: Kernel,
    inputs: Mapping[str, mx.array],
    outputs: Mapping[str, Shaped],
    constants: Mapping[str, Constant],
    *,
    groups: tuple[int, int, int],
    threads: int,
) -> list[mx.array]:
    """Return the outputs of a kernel, not yet evaluated.

    Args:
        kernel: The text.
        inputs: Arrays by name; those that the text does not need with these constants are left out.
        outputs: Shape and type by name.
        constants: Macros by name.
        groups: Number of threadgroups.
        threads: Threads of one threadgroup, a multiple of 32.
    """
    instance = Launch(
        kernel=kernel, inputs=tuple(inputs), outputs=tuple(outputs), constants=tuple(constants.items())
    )
    arguments: dict[str, Any] = {
        "inputs": list(inputs.values()),
        "output_shapes": [shape for shape, _ in outputs.values()],
        "output_dtypes": [dtype for _, dtype in outputs.values()],
        "grid": (groups[0] * threads, groups[1], groups[2]),
        "threadgroup": (threads, 1, 1),
    }
    call = Call(launch=instance, arguments=arguments)
    record = _RECORD.get()
    if record is not None:
        record.append(call)
    return call()


def _where() -> str:
    where = backend()
    assert where is not None, "kernels are launched on a GPU only"
    return where
