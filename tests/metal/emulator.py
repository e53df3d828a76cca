"""Run the Metal text of a kernel on a CPU: g++ compiles it with a library that stands for Metal's (include/).

What a GPU would not tell is an error here (runtime/): access outside of a buffer or of an array, writing an input
that `Kernel.writes` does not name, misaligned access, SIMD operations and barriers that not all threads reach.
Memory that nobody has written holds a poison, and each launch runs with two poisons: results that differ hang on such
memory. Threads run in an order that a test chooses, so that a missing barrier changes the result.

Not like a GPU: libm's functions, no contraction of a product and a sum, one thread at a time. Pointers to `thread`,
`threadgroup` and `device` memory are of one type here, which Metal would refuse to mix.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from macmoe.kernels.source import Launch
from tests.metal.text import places_of, program

FOLDER = Path(__file__).parent
FLAGS = ["-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", "-w"]
RUNTIME_FLAGS = [*FLAGS, "-O2"]
CHECKS = "alignment,bounds,shift,integer-divide-by-zero"
KERNEL_FLAGS = [
    *FLAGS,
    "-O1",
    "-fno-math-errno",
    "-fsingle-precision-constant",  # 1.0 is a float in Metal
    f"-fsanitize={CHECKS}",
    f"-fno-sanitize-recover={CHECKS}",
    "-nodefaultlibs",  # the runtime has what the checks call
    "-lm",
    f"-I{FOLDER / 'include'}",
]
ORDERS = ("forward", "backward", "shuffled")
POISONS = (0xFF, 0xCD)  # NaN in every floating-point type; a number
MESSAGE_BYTES = 1024


class KernelError(Exception):
    """A kernel did what no GPU could do, or what a GPU would do silently."""


class Request(ctypes.Structure):
    """One run; see `Launch` in runtime/runtime.cpp."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("entry", ctypes.c_void_p),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("grid", ctypes.c_uint * 3),
        ("threadgroup", ctypes.c_uint * 3),
        ("order", ctypes.c_int),
        ("seed", ctypes.c_uint64),
        ("poison", ctypes.c_uint8),
        ("message", ctypes.c_char_p),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """One argument of a kernel: bytes that it may read and, if `result`, are taken from it."""

    name: str
    content: bytes | int  # an output has only a size
    result: bool


def missing() -> str | None:
    """Return why nothing can be emulated here, None if it can."""
    if platform.system() != "Linux":
        return "kernels are emulated on Linux only"
    return None if shutil.which("g++") else "there is no g++ to compile Metal texts with"


def _cache_folder() -> Path:
    """Return where compiled kernels are kept; named after the headers, so that a change of them is seen."""
    sources = b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*/**/*")) if path.is_file())
    name = hashlib.sha256(sources + repr((KERNEL_FLAGS, RUNTIME_FLAGS)).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"macmoe-metal-{os.getuid()}" / name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _built(source: Path, flags: list[str], built: Path) -> Path:
    """Compile unless that was done. Two test processes may build the same.

    Raises:
        KernelError: g++ refuses the source.
    """
    if not built.exists():
        draft = built.with_suffix(f".{os.getpid()}")
        command = ["g++", str(source), *flags, "-o", str(draft)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise KernelError(run.stderr[:4000])
        draft.replace(built)
    return built


@functools.cache
def _runtime() -> ctypes.CDLL:
    path = _built(FOLDER / "runtime" / "runtime.cpp", RUNTIME_FLAGS, _cache_folder() / "runtime.so")
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    library.emulated_buffer.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint8]
    library.emulated_buffer.restype = ctypes.c_void_p
    library.emulated_protect.argtypes = [ctypes.c_void_p]
    return library


@functools.cache
def _entry(text: str) -> int:
    """Return the address of a program's `emulated_entry`."""
    _runtime()
    folder = _cache_folder()
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "kernel.cpp"
        source.write_text(text, encoding="utf-8")
        _built(source, KERNEL_FLAGS, path)
    address = ctypes.cast(ctypes.CDLL(str(path)).emulated_entry, ctypes.c_void_p).value
    assert address is not None
    return address


def _run(entry: int, buffers: list[Buffer], request: Request) -> list[bytes]:
    """Run a kernel once and return its results.

    Raises:
        KernelError: In one line.
    """
    runtime = _runtime()
    addresses = (ctypes.c_void_p * len(buffers))()
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    request.entry, request.message = entry, ctypes.cast(message, ctypes.c_char_p)
    request.arguments = ctypes.cast(addresses, ctypes.POINTER(ctypes.c_void_p))
    try:
        for i, buffer in enumerate(buffers):
            content = buffer.content
            size = content if isinstance(content, int) else len(content)
            addresses[i] = runtime.emulated_buffer(buffer.name.encode(), size, request.poison)
            if isinstance(content, bytes):
                ctypes.memmove(addresses[i], content, size)
            if not buffer.result:
                runtime.emulated_protect(addresses[i])
        if runtime.emulated_run(ctypes.byref(request)):
            raise KernelError(f"{request.name.decode()}: {message.value.decode()}")
        results = [(addresses[i], buffer.content) for i, buffer in enumerate(buffers) if buffer.result]
        return [ctypes.string_at(a, content if isinstance(content, int) else len(content)) for a, content in results]
    finally:
        runtime.emulated_release()


def _memory_of(array: mx.array) -> np.ndarray:
    """Return the memory of an evaluated array on the CPU, as bytes, not a copy."""
    mx.eval(array)
    return np.asarray((array if array.ndim else array.reshape(1)).view(mx.uint8))


def _integers(values: tuple[int, ...], dtype: type[np.integer]) -> bytes:
    return np.array(values, dtype=dtype).tobytes()


def _inputs(launch: Launch, inputs: list[mx.array]) -> list[Buffer]:
    """Return the inputs as arguments, each followed by what the text asks for about it."""
    buffers = []
    for name, array in zip(launch.inputs, inputs, strict=True):
        in_place = name in launch.kernel.writes
        if in_place and not memoryview(array).c_contiguous:
            raise KernelError(f"{launch.kernel.name}: {name} is written in place but is not contiguous: MLX copies it")
        content = _memory_of(mx.contiguous(array)).tobytes()
        buffers.append(Buffer(name=name, content=content, result=in_place))
        strides = [int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
        about = {
            "_shape": _integers(array.shape, np.int32),
            "_strides": _integers(tuple(strides), np.int64),
            "_ndim": _integers((array.ndim,), np.int32),
        }
        places = places_of(launch.kernel.body, name, array)
        buffers += [Buffer(name=name + place, content=about[place], result=False) for place in places]
    return buffers


def emulated(launch: Launch, order: str = "forward", seed: int = 0):  # noqa: ANN201 - a launcher
    """Return a launcher as macmoe.kernels.source.LAUNCHERS has them, which runs at once."""

    def run(
        *,
        inputs: list[mx.array],
        output_shapes: list[tuple[int, ...]],
        output_dtypes: list[mx.Dtype],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
    ) -> list[mx.array]:
        mx.eval(inputs)
        buffers = _inputs(launch, inputs)
        for name, shape, dtype in zip(launch.outputs, output_shapes, output_dtypes, strict=True):
            buffers.append(Buffer(name=name, content=int(np.prod(shape)) * dtype.size, result=True))
        entry = _entry(program(launch, inputs, output_dtypes))
        size = tuple(min(pair) for pair in zip(grid, threadgroup, strict=True))
        if int(np.prod(size)) > 1024:
            raise KernelError(f"{launch.kernel.name}: {size} are more than 1024 threads in a threadgroup")
        runs = []
        for poison in POISONS:
            request = Request(name=launch.kernel.name.encode(), grid=grid, threadgroup=size, poison=poison, seed=seed)
            request.order = ORDERS.index(order)
            runs.append(_run(entry, buffers, request))
        names = [buffer.name for buffer in buffers if buffer.result]
        for name, first, second in zip(names, *runs, strict=True):
            _hold_equal(f"{launch.kernel.name}: {name}", first, second)
        in_place = [array for name, array in zip(launch.inputs, inputs, strict=True) if name in launch.kernel.writes]
        for array, content in zip(in_place, runs[0], strict=False):
            _memory_of(array).reshape(-1)[:] = np.frombuffer(content, dtype=np.uint8)
        outputs = runs[0][len(in_place) :]
        return [
            mx.array(np.frombuffer(content, dtype=np.uint8)).view(dtype).reshape(shape)
            for content, dtype, shape in zip(outputs, output_dtypes, output_shapes, strict=True)
        ]

    return run


def _hold_equal(what: str, first: bytes, second: bytes) -> None:
    """Check that a result does not hang on what unwritten memory held.

    Raises:
        KernelError: It does.
    """
    if first == second:
        return
    a, b = (np.frombuffer(content, dtype=np.uint8) for content in (first, second))
    place = int(np.flatnonzero(a != b)[0])
    unwritten = int(((a == POISONS[0]) & (b == POISONS[1])).sum())
    raise KernelError(
        f"{what} hangs on memory that nobody has written, first at byte {place} of {len(first)}"
        + (f"; {unwritten} bytes of it are not written" if unwritten else "")
    )
