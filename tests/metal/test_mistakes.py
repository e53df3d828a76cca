"""Mistakes in a text are errors, which say what and where."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from tests.metal.emulator import ORDERS, KernelError, missing
from tests.metal.small import BARRIER, ID, LANES, numbers, run, same

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

# Body, and what the error says. x has 32 numbers, odd 9, small 3, y 32.
MISTAKES = {
    "a read beyond the end": (
        ID + "y[i] = x[i + 1];",
        r"text: reads beyond the end of x \(byte 128 of 128\)",
    ),
    "a read before the start": (ID + "y[i] = x[int(i) - 5000];", "reads before the start of x"),
    "a read just before the start": (ID + "y[i] = x[int(i) - 1];", "hangs on memory that nobody has written"),
    "a read beyond an odd end": (
        ID + "y[i] = i < 4 ? odd[i] : odd[i % 10];",
        "hangs on memory that nobody has written",
    ),
    "a write beyond the end": (ID + "y[i + 1] = x[i]; y[0] = 0;", "writes beyond the end of y"),
    "a write before the start": (ID + "y[i] = x[i]; if (i == 0) y[-1] = 0;", "writes outside y"),
    "a write into an input": (ID + "((device float*)x)[i] = 0; y[i] = 0;", "writes into the input x"),
    "null": (ID + "y[i] = *((const device float*)0 + i);", "reads memory outside every buffer"),
    "an unwritten element": (
        ID + "if (i != 7) y[i] = x[i];",
        "first at byte 28 of 128; 4 bytes of it are not written",
    ),
    "an unwritten variable in threadgroup memory": (
        ID + "threadgroup float t[32]; y[i] = t[i];",
        "hangs on memory that nobody has written",
    ),
    "an index beyond a local array": (
        ID + "float v[4] = {1, 2, 3, 4}; y[i] = v[i];",
        "text:2: outside of an array",
    ),
    "an index beyond a threadgroup array": (
        ID + "threadgroup float t[16]; t[i] = 0; y[i] = 0;",
        "text:2: outside of an array, index 16",
    ),
    "a pointer beyond a threadgroup array": (
        ID + "threadgroup float t[16]; threadgroup float* p = t; p[i] = 0; y[i] = 0;",
        "writes beyond the end of t",
    ),
    "too much threadgroup memory": (
        ID + "threadgroup float t[8193]; t[i] = 0; y[i] = 0;",
        "threadgroup memory",
    ),
    "a misaligned load": (
        ID + "y[i] = float((*(const device uint4*)(x + i % 2)).x);",
        "text:2: misaligned access",
    ),
    "a shift by 32": (ID + "y[i] = float(1u << (i + 1));", "text:2: shift by 32"),
    "a division by zero": (ID + "y[i] = float(5u / i);", "text:2: division by 0"),
    "different SIMD operations": (
        ID + "y[i] = i < 16 ? simd_sum(x[i]) : simd_max(x[i]);",
        r"divergent SIMD operation: of SIMD group 0, lane 0 waits in simd_sum \(line 2\), lane 16 in",
    ),
    "a SIMD operation that some lanes skip": (
        ID + "float v = 0;\nif (i < 16) v = simd_sum(x[i]);\ny[i] = simd_sum(v);",
        r"lane 0 waits in simd_sum \(line 3\), lane 16 in simd_sum \(line 4\)",
    ),
    "a lane that has left": (
        ID + "y[i] = 0; if (i == 3) return;\ny[i] = simd_sum(x[i]);",
        "lane 3 has returned",
    ),
    "a barrier that some threads skip": (
        ID + f"if (i < 16) {BARRIER} y[i] = 0;",
        "divergent barrier: .* returned",
    ),
    "two barriers": (ID + f"if (i < 16) {BARRIER} else {BARRIER} y[i] = 0;", "divergent"),
    "a barrier beside a SIMD operation": (
        ID + f"y[i] = 0; if (i < 16) {BARRIER}\nelse y[i] = simd_sum(x[i]);",
        "lane 0 waits in threadgroup_barrier",
    ),
    "too many numbers in a thread": (
        ID + "float v[100000]; v[i] = 1; y[i] = v[i * 2];",
        "KB of thread memory",
    ),
    "double": (ID + "double d = x[i]; y[i] = d;", "double"),
    "a small input as device memory": (ID + "y[i] = *(const device float*)small;", "Constant<float>"),
    "an attribute in a helper": (ID + "y[i] = helper();", "thread_index_in_simdgroup"),
    "a bfloat from a float without a conversion": (ID + "bfloat16_t v = x[i]; y[i] = v;", "bfloat"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_error(mistake):
    body, message = MISTAKES[mistake]
    header = "inline float helper() { return thread_index_in_simdgroup; }" if "helper()" in body else ""
    inputs = {"x": numbers(), "odd": numbers(9), "small": numbers(3)}
    with pytest.raises(KernelError, match=message):
        run(body, inputs, {"y": ((LANES,), mx.float32)}, header=header)


def test_a_missing_barrier_changes_the_result_with_the_order():
    body = ID + "threadgroup float t[64];\nconst uint k = i;\nt[k] = x[k];\n%s y[k] = t[%s];"
    x = numbers(64)
    outputs = {"y": (x.shape, mx.float32)}
    size = {"grid": (64, 1, 1), "threadgroup": (64, 1, 1)}
    with pytest.raises(KernelError, match="hangs on memory"):
        run(body % ("", "63 - k"), {"x": x}, outputs, **size)
    for order in ORDERS:
        same(run(body % (BARRIER, "63 - k"), {"x": x}, outputs, order=order, **size), x[::-1])
    # What was written before the missing barrier, so that no poison shows it.
    twice = body % (BARRIER, "k") + "\nt[k] = -x[k];\n%s y[k] = t[k ^ 32];"
    got = [np.array(run(twice % "", {"x": x}, outputs, order=order, **size)) for order in ORDERS]
    assert not all(np.array_equal(got[0], other) for other in got[1:])
    got = [np.array(run(twice % BARRIER, {"x": x}, outputs, order=order, **size)) for order in ORDERS]
    assert all(np.array_equal(got[0], other) for other in got[1:])


def test_a_non_contiguous_array_cannot_be_written_in_place():
    cache = mx.zeros((LANES, 2))[:, :1]
    with pytest.raises(KernelError, match="cache is not contiguous"):
        run(ID + "y[i] = 0;", {"cache": cache}, {"y": ((LANES,), mx.float32)}, writes=("cache",))


def test_an_error_leaves_the_emulator_usable():
    with pytest.raises(KernelError):
        run(ID + "y[i] = x[i + 1];", {"x": numbers()}, {"y": ((LANES,), mx.float32)})
    same(run(ID + "y[i] = 2;", {"x": numbers()}, {"y": ((LANES,), mx.float32)}), [2] * LANES)
