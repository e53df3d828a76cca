"""Run the Metal text of a kernel on a CPU: g++ compiles it with a library that stands for Metal's (include/).

What a GPU would not tell is an error here (runtime/): access outside of a buffer or of an array, writing an
input that `Kernel.writes` does not name, misaligned access, SIMD operations and barriers that not all threads
reach. Memory that nobody has written holds a poison, and each launch runs with two poisons: results that
differ hang on such memory. Threads run in an order that a test chooses, so that a missing barrier changes the
result.

Not like a GPU: libm's functions, no contraction of a product and a sum, one thread at a time. Pointers to
`thread`, `threadgroup` and `device` memory are of one type here, which Metal would refuse to mix.
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
from tests.metal.text import KernelError, places_of, program

FOLDER = Path(__file__).parent
FLAGS = ["-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", "-w"]
RUNTIME_FLAGS = [*FLAGS, "-O2"]
CHECKS = "alignment,bounds,shift,integer-divide-by-zero"
KERNEL_FLAGS = [
    *FLAGS,
    "-O1",
    "-fno-math-errno",
    "-fstack-clash-protection",  # a thread with too much memory meets the page below its stack
    "-fsingle-precision-constant",  # 1.0 is a float in Metal
    f"-fsanitize={CHECKS}",
    f"-fno-sanitize-recover={CHECKS}",
    "-nodefaultlibs",  # the runtime has what the checks call
    "-lm",
    f"-I{FOLDER / 'include'}",
]
ORDERS = ("forward", "backward", "shuffled")
POISONS = (0xFF, 0xCD)  # NaN in every floating-point type; a number
MESSAGE_BYTES = MAX_THREADS = 1024  # as in runtime/runtime.cpp


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
    """One argument of a kernel: memory that it may read or, if it is a result, is taken from it."""

    name: str
    size: int
    content: bytes | None = None
    result: bool = False


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
            addresses[i] = runtime.emulated_buffer(buffer.name.encode(), buffer.size, request.poison)
            if buffer.content is not None:
                ctypes.memmove(addresses[i], buffer.content, buffer.size)
            if not buffer.result:
                runtime.emulated_protect(addresses[i])
        if runtime.emulated_run(ctypes.byref(request)):
            raise KernelError(f"{request.name.decode()}: {message.value.decode()}")
        results = [(addresses[i], buffer.size) for i, buffer in enumerate(buffers) if buffer.result]
        return [ctypes.string_at(a, size) for a, size in results]
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
            raise KernelError(
                f"{launch.kernel.name}: {name} is not contiguous: MLX would write into a copy of it"
            )
        content = _memory_of(mx.contiguous(array)).tobytes()
        buffers.append(Buffer(name=name, size=len(content), content=content, result=in_place))
        strides = [int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
        about = {
            "_shape": np.array(array.shape, dtype=np.int32).tobytes(),
            "_strides": np.array(strides, dtype=np.int64).tobytes(),
            "_ndim": np.array(array.ndim, dtype=np.int32).tobytes(),
        }
        places = places_of(launch.kernel.body, name, array)
        buffers += [
            Buffer(name=name + place, size=len(about[place]), content=about[place]) for place in places
        ]
    return buffers


def _in_both_poisons(launch: Launch, entry: int, buffers: list[Buffer], request: Request) -> dict[str, bytes]:
    """Return the results by name.

    Raises:
        KernelError: They hang on what unwritten memory held.
    """
    names = [buffer.name for buffer in buffers if buffer.result]
    runs = []
    for poison in POISONS:
        request.poison = poison
        runs.append(dict(zip(names, _run(entry, buffers, request), strict=True)))
    for name in names:
        first, second = (np.frombuffer(results[name], dtype=np.uint8) for results in runs)
        if np.array_equal(first, second):
            continue
        place = int(np.flatnonzero(first != second)[0])
        unwritten = int(((first == POISONS[0]) & (second == POISONS[1])).sum())
        raise KernelError(
            f"{launch.kernel.name}: {name} hangs on memory that nobody has written, first at byte {place} of"
            f" {first.size}" + (f"; {unwritten} bytes of it are not written" if unwritten else "")
        )
    return runs[0]


def emulated(launch: Launch, order: str = "forward", seed: int = 0):
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
        outputs = list(zip(launch.outputs, output_shapes, output_dtypes, strict=True))
        buffers = _inputs(launch, inputs)
        for name, shape, dtype in outputs:
            buffers.append(Buffer(name=name, size=int(np.prod(shape)) * dtype.size, result=True))
        size = tuple(min(pair) for pair in zip(grid, threadgroup, strict=True))
        if np.prod(size) > MAX_THREADS:
            raise KernelError(
                f"{launch.kernel.name}: {size} are more than {MAX_THREADS} threads in a threadgroup"
            )
        request = Request(
            name=launch.kernel.name.encode(),
            grid=grid,
            threadgroup=size,
            order=ORDERS.index(order),
            seed=seed,
        )
        entry = _entry(program(launch, inputs, output_dtypes))
        results = _in_both_poisons(launch, entry, buffers, request)
        for name, array in zip(launch.inputs, inputs, strict=True):
            if name in launch.kernel.writes:
                _memory_of(array).reshape(-1)[:] = np.frombuffer(results[name], dtype=np.uint8)
        return [
            mx.array(np.frombuffer(results[name], dtype=np.uint8)).view(dtype).reshape(shape)
            for name, shape, dtype in outputs
        ]

    return run
