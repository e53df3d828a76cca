"""Pointers in all kernels name the memory that they point to, as Metal demands."""

from __future__ import annotations

import re

import mlx.core as mx
import pytest

from tests.metal.text import metal_text

pytest.importorskip("clang", reason="libclang is not installed: address spaces are not checked")

from tests.metal.addresses import mistakes

PREAMBLE = "#include <metal_stdlib>\nusing namespace metal;\n"
HELPER = "inline float first(const device float* p) { return p[0]; }\n"
KERNEL = "[[kernel]] void f(const device float* x, const constant float* few, device float* y) {\n%s\n}"
WRONG = {
    "a device pointer without a word": ("float* p = (device float*)x;", "5: cannot initialize"),
    "threadgroup memory for device memory": (
        "threadgroup float t[4]; y[0] = first(t);",
        "no matching function",
    ),
    "constant memory for device memory": ("y[0] = first(few);", "no matching function"),
    "a cast of constant memory": ("y[0] = *(const device float*)few;", "a cast from address space 2 to 1"),
    "a local array for device memory": ("float t[4] = {0}; y[0] = first(t);", "no matching function"),
    "a pointer without a word": ("float t[4] = {0}; const float* p = t; y[0] = p[0];", "p is a pointer"),
    "a double": ("double d = 1;", "poisoned"),
    "maximum of two types": ("y[0] = max(1u, 2);", "ambiguous"),
    "writing an input": ("x[0] = 1;", "read-only|const"),
}
RIGHT = """
  threadgroup float t[4], u;
  threadgroup float* row = t;
  float local[2] = {1, 2};
  thread float* one = local;
  const threadgroup float& reference = u;
  uint4 words = *(const device uint4*)x + uint4(1, 2, 3, 4);
  y[0] = first(x) + row[1] + one[1] + reference + float(as_type<half2>(words.y).x);
  y[1] = max(float(words.x), few[2]);
  ((device float*)x)[1] = simd_sum(y[0]);
"""


@pytest.mark.parametrize("mistake", WRONG)
def test_what_metal_would_refuse_is_found(mistake):
    statement, message = WRONG[mistake]
    assert re.search(message, "\n".join(mistakes(PREAMBLE + HELPER + KERNEL % statement)))


def test_what_metal_accepts_is_accepted():
    assert mistakes(PREAMBLE + HELPER + KERNEL % RIGHT) == []


@pytest.mark.parametrize("dtype", [mx.bfloat16, pytest.param(mx.float32, marks=pytest.mark.long)])
def test_all_kernels_are_accepted(launches, dtype):
    for launch in launches(dtype):
        assert mistakes(metal_text(*launch)) == [], launch[0].kernel.name
