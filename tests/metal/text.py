"""The text that MLX gives to Metal for a kernel, and the program that runs this text on a CPU."""

from __future__ import annotations

import re

import mlx.core as mx

from macmoe.kernels.dialect import METAL_PREAMBLE
from macmoe.kernels.source import Launch

TYPES = {
    mx.bool_: "bool",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.uint32: "uint32_t",
    mx.uint64: "uint64_t",
    mx.int8: "int8_t",
    mx.int16: "int16_t",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.float16: "float16_t",
    mx.bfloat16: "bfloat16_t",
    mx.float32: "float",
}
CONSTANT_SIZE = 8  # inputs with fewer elements lie in the constant address space
# What MLX declares if the name occurs in the body, in its order: type, and where an emulated lane has it.
ATTRIBUTES = {
    "dispatch_simdgroups_per_threadgroup": ("uint", "lane->dispatched_simdgroups"),
    "dispatch_threads_per_threadgroup": ("uint3", "lane->dispatched_threads"),
    "simdgroup_index_in_threadgroup": ("uint", "lane->simdgroup_index"),
    "simdgroups_per_threadgroup": ("uint", "lane->simdgroups"),
    "thread_execution_width": ("uint", "EMULATED_WIDTH"),
    "thread_index_in_simdgroup": ("uint", "lane->index"),
    "thread_index_in_threadgroup": ("uint", "lane->index_in_threadgroup"),
    "thread_position_in_grid": ("uint3", "lane->position_in_grid"),
    "thread_position_in_threadgroup": ("uint3", "lane->position_in_threadgroup"),
    "threadgroup_position_in_grid": ("uint3", "lane->threadgroup_position"),
    "threadgroups_per_grid": ("uint3", "lane->threadgroups"),
    "threads_per_grid": ("uint3", "lane->threads"),
    "threads_per_simdgroup": ("uint", "EMULATED_WIDTH"),
    "threads_per_threadgroup": ("uint3", "lane->threads_per_threadgroup"),
}
PLACES = {
    "_shape": "const constant int* ",
    "_strides": "const constant int64_t* ",
    "_ndim": "const constant int& ",
}

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
# Variables in threadgroup memory: the keyword, a type, names with their dimensions. Not pointers.
DECLARED = r"\w+(?:\s*\[[^\];]*\])*"
VARIABLES = re.compile(
    rf"\bthreadgroup\s+((?:\w+::)?\w+(?:<[^<>;]*>)?)\s+({DECLARED}(?:\s*,\s*{DECLARED})*)\s*;"
)
NOT_POINTER = re.compile(r"\bthreadgroup\b[^;,(){}=*&]*[;,(){}=]")
NAME = re.compile(r"\s*(\w+)\s*(.*?)\s*", re.DOTALL)


class KernelError(Exception):
    """A kernel did what no GPU could do, or what a GPU would do silently."""


def attributes_of(body: str) -> list[str]:
    """Return the names of the attributes that a kernel takes as arguments."""
    return [name for name in ATTRIBUTES if name in body]


def places_of(body: str, name: str, array: mx.array) -> list[str]:
    """Return which of an input's shape, strides and number of axes a kernel takes as arguments."""
    return [place for place in PLACES if array.ndim and name + place in body]


def function_name(launch: Launch, inputs: list[mx.array], output_dtypes: list[mx.Dtype]) -> str:
    """Return the kernel's name, which tells how each argument is passed."""
    kinds = ["s" if not array.ndim else "c" if array.size < CONSTANT_SIZE else "" for array in inputs]
    parts = [TYPES[array.dtype] + kind for array, kind in zip(inputs, kinds, strict=True)]
    return "_".join(["custom_kernel", launch.name, *parts, *(TYPES[dtype] for dtype in output_dtypes)])


def metal_text(launch: Launch, inputs: list[mx.array], output_dtypes: list[mx.Dtype]) -> str:
    """Return what MLX compiles for Metal (mlx/backend/common/metal_kernel.cpp): header, signature, body."""
    body = launch.kernel.body
    arguments = []
    for name, array in zip(launch.inputs, inputs, strict=True):
        space = "constant" if array.size < CONSTANT_SIZE else "device"
        arguments.append(f"const {space} {TYPES[array.dtype]}{'*' if array.ndim else '&'} {name}")
        arguments += [f"{PLACES[place]}{name}{place}" for place in places_of(body, name, array)]
    outputs = zip(launch.outputs, output_dtypes, strict=True)
    arguments += [f"device {TYPES[dtype]}* {name}" for name, dtype in outputs]
    listed = [f"  {argument} [[buffer({i})]]" for i, argument in enumerate(arguments)]
    listed += [f"  {ATTRIBUTES[name][0]} {name} [[{name}]]" for name in attributes_of(body)]
    signature = f"[[kernel]] void {function_name(launch, inputs, output_dtypes)}(\n"
    return METAL_PREAMBLE + launch.header + signature + ",\n".join(listed) + ") {\n" + body + "\n}\n"


def program(launch: Launch, inputs: list[mx.array], output_dtypes: list[mx.Dtype]) -> str:
    """Return C++ whose `emulated_entry` runs one thread of a kernel: Metal's text with two changes.

    Variables in threadgroup memory become references to memory that the emulator gives, and inputs in the
    constant address space get a type that does not turn into a pointer to device memory.
    """
    name = function_name(launch, inputs, output_dtypes)
    text = metal_text(launch, inputs, output_dtypes)
    text = COMMENT.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    head, body = text.split(f"[[kernel]] void {name}(", 1)
    signature, body = body.split(") {\n", 1)
    signature = re.sub(r"const constant (\w+)\* ", r"metal::emulated::Constant<\1> ", signature)
    lines = [
        f'#line 1 "{launch.kernel.name} (header)"',
        f"{head}static void {name}({signature}) {{",
        f'#line 1 "{launch.kernel.name}"',
        with_threadgroup_variables(body),
        'extern "C" void emulated_entry(void* const* buffers, const EmulatedLane* lane) {',
        f"  {name}({', '.join(_passed(launch, inputs, output_dtypes))});",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _passed(launch: Launch, inputs: list[mx.array], output_dtypes: list[mx.Dtype]) -> list[str]:
    """Return the arguments of the call; buffers stand in the order of the arguments."""
    body = launch.kernel.body
    values: list[str] = []

    def add(pattern: str) -> None:
        values.append(pattern.format(f"buffers[{len(values)}]"))

    for name, array in zip(launch.inputs, inputs, strict=True):
        kind = TYPES[array.dtype]
        if not array.ndim:
            add(f"*(const {kind}*){{}}")
        elif array.size < CONSTANT_SIZE:
            add(f"{{{{(const {kind}*){{}}}}}}")
        else:
            add(f"(const {kind}*){{}}")
        for place in places_of(body, name, array):
            integer = "int64_t" if place == "_strides" else "int"
            add(f"*(const {integer}*){{}}" if place == "_ndim" else f"{{{{(const {integer}*){{}}}}}}")
    for dtype in output_dtypes:
        add(f"({TYPES[dtype]}*){{}}")
    for name in attributes_of(body):
        kind, value = ATTRIBUTES[name]
        values.append(f"uint3({value}[0], {value}[1], {value}[2])" if kind == "uint3" else value)
    return values


def with_threadgroup_variables(body: str) -> str:
    """Return a body whose threadgroup variables are references: `float (&x)[8]` to memory of the emulator.

    Raises:
        KernelError: A variable is declared in a way that is not understood here, as with an initial value.
    """
    count = 0

    def declared(found: re.Match[str]) -> str:
        nonlocal count
        parts = []
        for one in re.split(r",(?![^\[]*\])", found[2]):
            name, dimensions = NAME.fullmatch(one).groups()  # pyright: ignore[reportOptionalMemberAccess]
            kind = f"{name}_in_threadgroup"
            memory = f'metal::emulated::threadgroup_variable<{kind}>({count}, "{name}")'
            parts.append(f"typedef {found[1]} {kind}{dimensions}; {kind}& {name} = {memory};")
            count += 1
        return " ".join(parts) + "\n" * found[0].count("\n")

    changed = VARIABLES.sub(declared, body)
    if found := NOT_POINTER.search(changed):
        raise KernelError(f"a variable in threadgroup memory that is not plainly declared: {found[0]}")
    return changed
