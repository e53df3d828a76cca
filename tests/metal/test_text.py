"""What the emulator compiles is what MLX gives to Metal."""

from __future__ import annotations

import re

import mlx.core as mx
import pytest

from macmoe.kernels.source import LAUNCHERS, Kernel, Launch
from tests.metal.text import TYPES, KernelError, metal_text, with_threadgroup_variables

METAL = LAUNCHERS["metal"]


def printed_by_mlx(capfd, launch, inputs, output_dtypes):
    """Return the text that MLX would compile on a Mac: it prints it when a kernel is exported."""

    def call(*arrays):
        return METAL(launch)(
            inputs=list(arrays),
            output_shapes=[(1,) for _ in output_dtypes],
            output_dtypes=output_dtypes,
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            verbose=True,
        )

    capfd.readouterr()
    mx.export_function("/dev/null", call, *inputs)
    return re.search(r"```\n(.*)\n```", capfd.readouterr().out, re.DOTALL)[1]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_the_texts_of_all_kernels_are_mlxs(capfd, launches, dtype):
    for launch in launches(dtype):
        assert metal_text(*launch) == printed_by_mlx(capfd, *launch)


def test_the_text_of_arguments_of_every_kind_is_mlxs(capfd):
    names = [f"x{i}" for i in range(len(TYPES))]
    inputs = [mx.zeros((1, 7 + i % 2) if i % 3 else (), dtype=dtype) for i, dtype in enumerate(TYPES)]
    used = "".join(f"{name}_shape; {name}_ndim; {name}_strides;\n" for name in names[::2])
    body = used + "dispatch_threads_per_threadgroup; thread_position_in_grid; threads_per_grid;"
    launch = Launch(
        kernel=Kernel(name="all", body=body), inputs=tuple(names), outputs=("y", "z"), constants=()
    )
    dtypes = [mx.int32, mx.bfloat16]
    assert metal_text(launch, inputs, dtypes) == printed_by_mlx(capfd, launch, inputs, dtypes)


def test_variables_in_threadgroup_memory_are_found():
    body = """
    threadgroup float one, two[4], three[A ? 2 : 3][B(1, 2)];
    threadgroup metal::vec<float, 4>
        four[2];
    const threadgroup float* row = two;
    function((threadgroup float*)two);
    """
    changed = with_threadgroup_variables(body)
    assert re.findall(r"typedef ([^;]*);", changed) == [
        "float one_in_threadgroup",
        "float two_in_threadgroup[4]",
        "float three_in_threadgroup[A ? 2 : 3][B(1, 2)]",
        "metal::vec<float, 4> four_in_threadgroup[2]",
    ]
    assert changed.count("\n") == body.count("\n")
    assert changed.split("\n")[4:] == body.split("\n")[4:]


@pytest.mark.parametrize("declared", ["float x[4] = {0};", "float x(1);", "Pair<Pair<int>> x;"])
def test_a_variable_in_threadgroup_memory_that_is_not_understood_is_an_error(declared):
    with pytest.raises(KernelError, match="not plainly declared: threadgroup"):
        with_threadgroup_variables(f"threadgroup {declared}")
