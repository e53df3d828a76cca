"""Small kernels for tests of the emulator."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from macmoe.kernels.source import Kernel, Launch
from tests.metal.emulator import emulated

LANES = 32
ID = "const uint i = thread_position_in_grid.x;\n"
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);\n"
RANDOM = np.random.default_rng(0)


def run(body, inputs, outputs, *, grid=(LANES, 1, 1), threadgroup=(LANES, 1, 1), order="forward", **kernel):
    """Launch a text: inputs are arrays, outputs (shape, type), by name. Return all outputs, or the one."""
    arrays = [value if isinstance(value, mx.array) else mx.array(value) for value in inputs.values()]
    constants = tuple(kernel.pop("constants", {}).items())
    launch = Launch(
        kernel=Kernel(name="text", body=body, **kernel),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        constants=constants,
    )
    results = emulated(launch, order)(
        inputs=arrays,
        output_shapes=[shape for shape, _ in outputs.values()],
        output_dtypes=[dtype for _, dtype in outputs.values()],
        grid=grid,
        threadgroup=threadgroup,
    )
    return results[0] if len(results) == 1 else results


def numbers(count=LANES, dtype=np.float32):
    return RANDOM.normal(size=count).astype(dtype)


def same(got, wanted):
    np.testing.assert_array_equal(np.array(got), np.asarray(wanted))
