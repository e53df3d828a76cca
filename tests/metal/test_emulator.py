"""The emulator itself: what it computes, against NumPy."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from tests.metal.emulator import ORDERS, KernelError, missing
from tests.metal.small import ID, LANES, RANDOM, numbers, run, same

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
LANE = np.arange(LANES)

# Scalars


@pytest.mark.parametrize("name", ["half", "bfloat16_t"])
def test_all_16_bit_numbers_convert_to_float_and_back(name):
    dtype = mx.float16 if name == "half" else mx.bfloat16
    x = mx.arange(65536, dtype=mx.uint32).astype(mx.uint16).view(dtype)
    body = ID + f"wide[i] = float(x[i]); back[i] = {name}(wide[i]);"
    wide, back = run(
        body,
        {"x": x},
        {"wide": (x.shape, mx.float32), "back": (x.shape, dtype)},
        grid=(65536, 1, 1),
        threadgroup=(1024, 1, 1),
    )
    same(wide, x.astype(mx.float32))
    same(back.astype(mx.float32), x.astype(mx.float32))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_floats_round_to_the_nearest_even(dtype):
    count = 8192
    bits = RANDOM.integers(0, 2**32, size=count, dtype=np.uint32)
    near = (np.arange(count, dtype=np.uint32) << 12) + RANDOM.integers(
        0, 3, size=count, dtype=np.uint32
    ) * 2048
    x = np.where(np.arange(count) % 2, bits, near + 0x33000000).astype(np.uint32).view(np.float32)
    x = np.where(np.isnan(x), 1, x)
    got = run(
        ID + "y[i] = T(x[i]);",
        {"x": x},
        {"y": ((count,), dtype)},
        grid=(count, 1, 1),
        threadgroup=(256, 1, 1),
        constants={"T": dtype},
    )
    same(got.astype(mx.float32), mx.array(x).astype(dtype).astype(mx.float32))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_16_bit_arithmetic_rounds_after_every_operation(dtype):
    a, b, c = (mx.array(numbers()).astype(dtype) for _ in range(3))
    body = ID + "y[i] = a[i] * b[i] + c[i]; z[i] = float(a[i]) * b[i]; w[i] = a[i] / b[i] - 3;"
    y, z, w = run(
        body,
        {"a": a, "b": b, "c": c},
        {"y": (a.shape, dtype), "z": (a.shape, mx.float32), "w": (a.shape, dtype)},
    )
    same(y.astype(mx.float32), (a * b + c).astype(mx.float32))
    same(z, a.astype(mx.float32) * b.astype(mx.float32))
    same(w.astype(mx.float32), (a / b - 3).astype(mx.float32))


def test_products_and_sums_are_not_contracted_and_literals_are_floats():
    a, b, c = numbers(), numbers(), numbers()
    body = ID + "y[i] = a[i] * b[i] + c[i]; f[i] = metal::fma(a[i], b[i], c[i]); l[i] = a[i] * 0.1;"
    shape = ((LANES,), mx.float32)
    y, f, literal = run(body, {"a": a, "b": b, "c": c}, {"y": shape, "f": shape, "l": shape})
    same(y, a * b + c)
    same(f, (a.astype(np.float64) * b + c).astype(np.float32))
    same(literal, a * np.float32(0.1))


FUNCTIONS = {
    "exp": np.exp,
    "fast::exp": np.exp,
    "precise::exp": np.exp,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sqrt": np.sqrt,
    "abs": np.abs,
    "tanh": np.tanh,
    "cos": np.cos,
    "sin": np.sin,
    "log": np.log,
    "log2": np.log2,
    "exp2": np.exp2,
    "floor": np.floor,
    "ceil": np.ceil,
    "rint": np.rint,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_one_number(name):
    x = np.abs(numbers()) + 0.1
    got = run(ID + f"y[i] = metal::{name}(x[i]);", {"x": x}, {"y": (x.shape, mx.float32)})
    np.testing.assert_allclose(np.array(got), FUNCTIONS[name](x.astype(np.float64)), rtol=3e-7)


def test_functions_of_several_numbers():
    x, y = numbers(), numbers()
    x[3], y[5] = np.inf, np.nan
    body = """
    float4 r = float4(max(x[i], y[i]), min(x[i], y[i]), clamp(x[i], -0.5f, 0.5f), 0);
    r.w = select(x[i], y[i], x[i] > 0);
    for (int k = 0; k < 4; k++) out[4 * i + k] = r[k];
    flags[i] = uint(isinf(x[i])) + 2 * uint(isnan(y[i])) + 4 * uint(popcount(i) == 1u) + 8 * max(int(i), 3);
    """
    out, flags = run(
        ID + body, {"x": x, "y": y}, {"out": ((LANES, 4), mx.float32), "flags": ((LANES,), mx.uint32)}
    )
    wanted = [np.fmax(x, y), np.fmin(x, y), np.clip(x, -0.5, 0.5), np.where(x > 0, y, x)]
    same(out, np.stack(wanted, axis=-1))
    powers = np.isin(LANE, [1, 2, 4, 8, 16])
    same(flags, (LANE == 3) + 2 * (LANE == 5) + 4 * powers + 8 * np.maximum(LANE, 3))


# Vectors, atomics, matrices


def test_vectors():
    x = RANDOM.integers(0, 2**32, size=(LANES, 4), dtype=np.uint32)
    body = """
    const uint4 v = *(const device uint4*)(x + 4 * i);
    const uint4 w = v.wzyx_is_not_here;
    """
    with pytest.raises(KernelError, match="wzyx_is_not_here"):
        run(ID + body, {"x": x}, {"y": (x.shape, mx.uint32)})
    body = """
    uint4 v = *(const device uint4*)(x + 4 * i);
    v += uint4(v.y, v[0], uint2(7, 8)) * 3u;
    v.xy = v.zw ^ uint2(1);
    *(device uint4*)(y + 4 * i) = (v >> 3) & 255u;
    const float4 f = float4(half4(float4(v.x & 7u, 1, 2, 3))) / 2.0f;
    d[i] = dot(f, float4(1)) + float(as_type<half2>(v.z).y == half(0));
    """
    y, d = run(ID + body, {"x": x}, {"y": (x.shape, mx.uint32), "d": ((LANES,), mx.float32)})
    v = x + 3 * np.stack([x[:, 1], x[:, 0], np.full(LANES, 7), np.full(LANES, 8)], axis=-1).astype(np.uint32)
    v[:, :2] = v[:, 2:] ^ 1
    same(y, (v >> 3) & 255)
    zero = (v[:, 2] >> 16 & 0x7FFF) == 0
    same(d, (v[:, 0] & 7) / 2 + 3 + zero)


def test_atomics_collect_from_all_threadgroups():
    body = """
    threadgroup atomic_int here;
    const uint t = thread_index_in_threadgroup;
    if (t == 0) atomic_store_explicit(&here, 0, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    atomic_fetch_add_explicit(&here, 1, memory_order_relaxed);
    device atomic_uint* all = (device atomic_uint*)counts;
    const uint before = atomic_fetch_max_explicit(all + 1, i, memory_order_relaxed);
    atomic_fetch_add_explicit(all, before < 1000u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (t == 0) y[threadgroup_position_in_grid.x] = atomic_load_explicit(&here, memory_order_relaxed);
    """
    counts = mx.zeros((8,), dtype=mx.uint32)
    for order in ORDERS:
        counts = mx.zeros((8,), dtype=mx.uint32)
        y = run(
            ID + body,
            {"counts": counts},
            {"y": ((3,), mx.int32)},
            grid=(100, 1, 1),
            threadgroup=(40, 1, 1),
            order=order,
            writes=("counts",),
        )
        same(y, [40, 40, 20])
        same(counts[:2], [100, 99])


@pytest.mark.parametrize(
    ("dtype", "name"), [(mx.float32, "float"), (mx.float16, "half"), (mx.bfloat16, "bfloat")]
)
def test_matrices_multiply_and_lie_in_lanes_as_on_apples_gpus(dtype, name):
    a, b = (mx.array(numbers((8, 12))).astype(dtype) for _ in range(2))
    body = f"""
    simdgroup_matrix<{name}, 8, 8> left, right;
    simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
    simdgroup_load(left, a, 12, ulong2(2, 0));
    simdgroup_load(right, b, 12, ulong2(0, 0), true);
    simdgroup_multiply_accumulate(sum, left, right, sum);
    simdgroup_store(sum, y, 8);
    const uint row = (i / 4 & 4) + i / 2 % 4, column = (i / 4 & 2) * 2 + i % 2 * 2;
    where[2 * i] = float(left.thread_elements()[0]) - float(a[row * 12 + column + 2]);
    where[2 * i + 1] = float(left.thread_elements()[1]) - float(a[row * 12 + column + 3]);
    """
    y, where = run(ID + body, {"a": a, "b": b}, {"y": ((8, 8), mx.float32), "where": ((64,), mx.float32)})
    left, right = (np.array(m.astype(mx.float32)) for m in (a, b))
    np.testing.assert_allclose(np.array(y), 1 + left[:, 2:10] @ right[:, :8].T, rtol=1e-5, atol=1e-6)
    same(where, np.zeros(64))


# Threads


def test_positions_in_a_grid_with_smaller_threadgroups_at_its_ends():
    body = """
    const uint3 p = thread_position_in_grid, g = threads_per_grid;
    device uint* out = y + 8 * (p.x + g.x * (p.y + g.y * p.z));
    out[0] = thread_index_in_threadgroup;
    out[1] = thread_index_in_simdgroup + 32 * simdgroup_index_in_threadgroup;
    out[2] = threads_per_threadgroup.x * threads_per_threadgroup.y * threads_per_threadgroup.z;
    out[3] = dispatch_threads_per_threadgroup.x;
    const uint3 t = threadgroup_position_in_grid, n = threadgroups_per_grid;
    out[4] = t.x + n.x * (t.y + n.y * t.z);
    out[5] = thread_position_in_threadgroup.y;
    out[6] = simdgroups_per_threadgroup;
    out[7] = threads_per_simdgroup;
    """
    y = np.array(run(body, {}, {"y": ((3, 5, 18, 8), mx.uint32)}, grid=(18, 5, 3), threadgroup=(8, 4, 2)))
    z, row, x = np.meshgrid(np.arange(3), np.arange(5), np.arange(18), indexing="ij")
    width, height, depth = (
        np.minimum(8, 18 - x // 8 * 8),
        np.minimum(4, 5 - row // 4 * 4),
        np.minimum(2, 3 - z // 2 * 2),
    )
    index = x % 8 + width * (row % 4 + height * (z % 2))
    size = width * height * depth
    group = x // 8 + 3 * (row // 4 + 2 * (z // 2))
    wanted = [index, index, size, np.full_like(x, 8), group, row % 4, (size + 31) // 32, np.full_like(x, 32)]
    same(y, np.stack(wanted, axis=-1))


SIMD = {
    "simd_sum(x[i])": np.sum,
    "simd_max(x[i])": np.max,
    "simd_min(x[i])": np.min,
    "simd_product(x[i] & 3)": lambda x: (x & 3).prod(),
    "simd_or(x[i])": np.bitwise_or.reduce,
    "simd_xor(x[i])": np.bitwise_xor.reduce,
    "simd_shuffle(x[i], (l * 7) % 32)": lambda x: x[LANE * 7 % 32],
    "simd_shuffle_xor(x[i], 5)": lambda x: x[LANE ^ 5],
    "simd_shuffle_down(x[i], 3)": lambda x: np.where(LANE + 3 < 32, x[(LANE + 3) % 32], x),
    "simd_shuffle_up(x[i], 3)": lambda x: np.where(LANE >= 3, x[LANE - 3], x),
    "simd_broadcast(x[i], 9)": lambda x: x[9],
    "simd_broadcast_first(x[i])": lambda x: x[0],
    "simd_prefix_exclusive_sum(x[i])": lambda x: np.cumsum(x) - x,
    "simd_prefix_inclusive_sum(x[i])": np.cumsum,
    "int(simd_all(x[i] >= 0))": lambda x: np.all(x >= 0),
    "int(simd_any(x[i] > 1000))": lambda x: np.any(x > 1000),
    "int(simd_ballot(x[i] > 50).bits >> l & 1)": lambda x: x > 50,
}


@pytest.mark.parametrize("operation", SIMD)
def test_simd_operations_in_every_order(operation):
    x = RANDOM.integers(0, 100, size=96, dtype=np.int32)
    body = ID + f"const uint l = thread_index_in_simdgroup;\ny[i] = {operation};"
    wanted = [np.broadcast_to(SIMD[operation](part), (LANES,)).astype(np.int32) for part in np.split(x, 3)]
    for order in ORDERS:
        y = run(
            body, {"x": x}, {"y": (x.shape, mx.int32)}, grid=(96, 1, 1), threadgroup=(96, 1, 1), order=order
        )
        same(y, np.concatenate(wanted))


def test_absent_lanes_take_no_part():
    y = run(ID + "y[i] = simd_sum(1);", {}, {"y": ((40,), mx.int32)}, grid=(40, 1, 1), threadgroup=(40, 1, 1))
    same(y, [32] * 32 + [8] * 8)


def test_threadgroup_memory_is_shared_by_a_threadgroup_and_begins_anew_in_the_next():
    body = """
    threadgroup float values[N], reversed[2][N / 2];
    const uint t = thread_index_in_threadgroup;
    values[t] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    reversed[t / (N / 2)][t % (N / 2)] = values[N - 1 - t];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const threadgroup float* row = reversed[0];
    y[i] = row[t];
    """
    x = numbers(256)
    for order in ORDERS:
        y = run(
            ID + body,
            {"x": x},
            {"y": (x.shape, mx.float32)},
            grid=(256, 1, 1),
            threadgroup=(64, 1, 1),
            constants={"N": 64},
            order=order,
        )
        same(y, x.reshape(4, 64)[:, ::-1].reshape(-1))


def test_inputs_are_passed_as_mlx_passes_them():
    body = ID + "y[i] = scale * few[i % 3] + x[i * x_shape[1] + 1] + x_strides[0] + x_ndim;"
    inputs = {"scale": 2.0, "few": np.array([1, 2, 3], np.float32), "x": mx.array(numbers((2, LANES))).T}
    y = run(body, inputs, {"y": ((LANES,), mx.float32)})
    few = np.resize(inputs["few"], LANES)
    same(y, np.float32(2) * few + np.array(inputs["x"])[:, 1] + 2 + 2)


def test_in_place_writes_reach_the_array_and_its_views():
    cache = mx.zeros((2, LANES), dtype=mx.bfloat16)
    view = cache.reshape(-1)
    mx.eval(cache, view)
    body = ID + "((device bfloat16_t*)cache)[32 + i] = bfloat16_t(float(i)); y[i] = 1.0f;"
    run(body, {"cache": cache}, {"y": ((LANES,), mx.float32)}, writes=("cache",))
    same(cache.astype(mx.float32), np.stack([np.zeros(LANES), np.arange(LANES)]))
    same(view.astype(mx.float32)[LANES:], np.arange(LANES))
