"""Run the Metal text of a kernel on a CPU: g++ compiles it with a header that stands for Metal.

What a GPU would not tell is an error here: reads and writes outside of a buffer, SIMD operations that not all lanes
reach, barriers that not all threads reach. Memory that nobody has written holds NaN, and threads run in an order that
a test chooses, so that a missing barrier changes the result.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np

from macmoe.kernels.dialect import METAL_PREAMBLE
from macmoe.kernels.source import Launch

INCLUDE = Path(__file__).parent / "include"
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-w"]
TYPES = {
    mx.float32: "float",
    mx.bfloat16: "bfloat16_t",
    mx.float16: "half",
    mx.uint32: "uint",
    mx.int32: "int",
    mx.uint8: "uchar",
}
ORDERS = ("forward", "backward", "shuffled")
POISON = 0xFF  # NaN in every floating-point type


class KernelError(Exception):
    """A kernel did what no GPU could do, or what a GPU would do silently."""


class Buffer(ctypes.Structure):
    """One buffer of a launch; see include/launch.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("writable", ctypes.c_int),
        ("region", ctypes.c_void_p),
        ("region_size", ctypes.c_size_t),
    ]


READ, READ_AND_WRITE, WRITE = range(3)


def missing() -> str | None:
    """Return why nothing can be emulated here, None if it can."""
    return None if shutil.which("g++") else "there is no g++ to compile Metal texts with"


def text_of(launch: Launch, inputs: list[mx.array], output_dtypes: list[mx.Dtype]) -> str:
    """Return a program whose `launch` runs the kernel: the text that Metal would get, in a function."""
    dtypes = [array.dtype for array in inputs] + output_dtypes
    names = [*launch.inputs, *launch.outputs]
    constness = ["const "] * len(inputs) + [""] * len(output_dtypes)
    pointers = [f"{c}{TYPES[d]}* {name}" for c, d, name in zip(constness, dtypes, names, strict=True)]
    arguments = [f"({c}{TYPES[d]}*)buffers[{i}]" for i, (c, d) in enumerate(zip(constness, dtypes, strict=True))]
    return "\n".join(
        [
            '#include "runtime.h"',
            f"static void* buffers[{len(names)}];",
            METAL_PREAMBLE + launch.header,
            f"static void kernel_function({', '.join(pointers)}) {{",
            launch.kernel.body,
            "}",
            f"static void run_kernel() {{ kernel_function({', '.join(arguments)}); }}",
            '#include "launch.h"',
        ]
    )


def cache_folder() -> Path:
    """Return where compiled kernels are kept; named after the headers, so that a change of them is seen."""
    headers = b"".join(path.read_bytes() for path in sorted(INCLUDE.iterdir()))
    name = hashlib.sha256(headers + " ".join(FLAGS).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"macmoe-metal-{os.getuid()}" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def compiled(text: str) -> ctypes.CDLL:
    """Return the shared object of a program.

    Raises:
        KernelError: g++ refuses it.
    """
    path = cache_folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            source, built = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
            source.write_text(text, encoding="utf-8")
            command = ["g++", *FLAGS, f"-I{INCLUDE}", str(source), "-o", str(built)]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                raise KernelError(run.stderr[:4000])
            draft = path.with_suffix(f".{os.getpid()}")
            shutil.copy(built, draft)
            draft.replace(path)  # two test processes may build the same
    library = ctypes.CDLL(str(path))
    library.launch.restype = ctypes.c_char_p
    return library


def order_of(name: str, threads: int) -> np.ndarray:
    """Return the order in which threads run between two waits."""
    order = np.arange(threads, dtype=np.uint32)
    if name == "backward":
        return order[::-1].copy()
    return np.random.default_rng(threads).permutation(order) if name == "shuffled" else order


def memory_of(array: mx.array) -> np.ndarray:
    """Return the memory of an evaluated array on the CPU, as bytes, not a copy."""
    mx.eval(array)
    return np.asarray(array.view(mx.uint8) if array.ndim else array.reshape(1).view(mx.uint8))


def emulated(launch: Launch, order: str = "forward", poison: int = POISON):  # noqa: ANN201 - a launcher
    """Return a launcher as macmoe.kernels.source.LAUNCHERS has them, which runs at once."""

    def run(
        *,
        inputs: list[mx.array],
        output_shapes: list[tuple[int, ...]],
        output_dtypes: list[mx.Dtype],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
    ) -> list[mx.array]:
        threads = threadgroup[0]
        groups = np.array([grid[0] // threads, grid[1], grid[2]], dtype=np.uint32)
        outputs = [
            mx.zeros((int(np.prod(shape)) * dtype.size,), dtype=mx.uint8)
            for shape, dtype in zip(output_shapes, output_dtypes, strict=True)
        ]
        contiguous = [mx.contiguous(array) for array in inputs]
        memories = [memory_of(array) for array in [*contiguous, *outputs]]
        names = [*launch.inputs, *launch.outputs]
        modes = [READ_AND_WRITE if name in launch.kernel.writes else READ for name in launch.inputs]
        modes += [WRITE] * len(outputs)
        buffers = (Buffer * len(names))()
        for buffer, name, memory, mode in zip(buffers, names, memories, modes, strict=True):
            buffer.name, buffer.data = name.encode(), memory.ctypes.data
            buffer.size, buffer.writable = memory.nbytes, mode
        library = compiled(text_of(launch, inputs, output_dtypes))
        failure = library.launch(
            buffers,
            len(names),
            groups.ctypes.data_as(ctypes.c_void_p),
            threads,
            order_of(order, threads).ctypes.data_as(ctypes.c_void_p),
            poison,
        )
        if failure:
            raise KernelError(f"{launch.kernel.name}: {failure.decode()}")
        return [
            array.view(dtype).reshape(shape)
            for array, dtype, shape in zip(outputs, output_dtypes, output_shapes, strict=True)
        ]

    return run
