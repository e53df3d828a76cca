"""What the emulator is for: mistakes planted into the kernels are found."""

from __future__ import annotations

import dataclasses
import random

import mlx.core as mx
import pytest

from tests.kernels.cases import wrong
from tests.kernels.shapes import small_cases
from tests.metal.emulator import ORDERS, KernelError

BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
# Case, text, and what a mistake makes of it.
FAULTS = {
    "no barrier in add_norm": ("add_norm", BARRIER, ""),
    "no barrier between norm and logits": ("add_norm_logits", f"{BARRIER}\n  squares", "squares"),
    "no barrier in logits": ("add_norm_logits", f"{BARRIER}\n  if (thread_index", "if (thread_index"),
    "no barrier before experts' sum": (
        "experts mxfp4",
        f"{BARRIER}\n  const uint thread_index",
        "const uint thread_index",
    ),
    "no barrier in attention": ("attention", f"{BARRIER}\n\n  const ulong base", "const ulong base"),
    "no barrier after packing": (
        "attention packed 128, odd cache",
        f"#if MODE != PLAIN\n  {BARRIER}",
        "#if MODE != PLAIN",
    ),
    "the scale of the next group": (
        "attention packed 64, sinks",
        "rows.scales[place / GROUP])",
        "rows.scales[place / GROUP + 1])",
    ),
    "numbers in the wrong order": ("latent packed cache", "<< (8 * i)", "<< (24 - 8 * i)"),
    "part of a group is not packed": ("latent packed cache", "lane < GROUP / 4)", "lane < GROUP / 4 - 1)"),
    "the smallest number of half a group": (
        "attention packed 128, odd cache",
        "low = simd_min(low);",
        "low = metal::min(low, simd_shuffle_xor(low, 1));",
    ),
    "part of a cache is not unpacked": ("latent packed cache", "place < numbers", "place < numbers - WIDTH"),
    "no barrier in absorb": (
        "latent plain",
        f"{BARRIER}\n  for (uint i = thread_index; i < LATENT",
        "for (uint i = thread_index; i < LATENT",
    ),
    "one row too many": (
        "experts affine4",
        "const device W* matrix = ",
        "const device W* matrix = ROW_WORDS(COLUMNS) + ",
    ),
    "write behind the end": ("add_norm", "store_floats(normed + row", "store_floats(normed + row + 1"),
    "the logits of one pass": ("add_norm_logits 2880", "own[pass][i], logit", "own[0][i], logit"),
    "another token's logits": (
        "add_norm_logits",
        "logits[threadgroup_position_in_grid.y * EXPERTS",
        "logits[(1 - threadgroup_position_in_grid.y) * EXPERTS",
    ),
    "one chunk too many": ("experts plain", "chunk < COLUMNS / 32;", "chunk <= COLUMNS / 32;"),
    "one key too many": ("attention", "sub < to;", "sub <= to;"),
    "the place of another sequence": (
        "attention 3 sequences",
        "uint(places[sequence * 3 + 1])",
        "uint(places[1])",
    ),
    "the position of another sequence": (
        "attention 3 sequences, window",
        "float(places[sequence * 3])",
        "float(places[0])",
    ),
    "padding is seen": (
        "attention 3 sequences in parts, bias, sinks",
        "uint(places[sequence * 3 + 2])",
        "uint(places[2])",
    ),
    "the cache of another sequence": (
        "attention 3 sequences, packed 128, odd cache",
        "(ulong(sequence) * KV_HEADS + kv) * keys_shape[2]",
        "ulong(kv) * keys_shape[2]",
    ),
    "the queries of another sequence": (
        "attention 3 sequences",
        "sequence * (HEADS + 2 * KV_HEADS) * HEAD_DIM + column",
        "column",
    ),
    "the sink of another head": (
        "attention 3 sequences in parts, bias, sinks",
        "sinks[head % HEADS]",
        "sinks[head / (threadgroups_per_grid.x / HEADS)]",
    ),
    "one key too few": (
        "latent plain",
        "uint(places[sequence * 3 + 1]) + 1",
        "uint(places[sequence * 3 + 1])",
    ),
    "the latents of another sequence": (
        "latent packed cache, 3 sequences",
        "ulong(sequence) * cache_shape[2] + places",
        "places",
    ),
    "the row of another sequence": (
        "latent 3 sequences",
        "* cache_shape[2] + places[sequence * 3 + 1]",
        "* cache_shape[2] + places[1]",
    ),
    "keys turned to another sequence's position": (
        "latent 3 sequences",
        "rotate(&even, &odd, float(places[sequence * 3]) * (1.0f / wavelengths[pair]));\n    row",
        "rotate(&even, &odd, float(places[0]) * (1.0f / wavelengths[pair]));\n    row",
    ),
    "queries turned to another sequence's position": (
        "latent 3 sequences",
        "rotate(&even, &odd, float(places[sequence * 3]) * (1.0f / wavelengths[pair]));\n    target",
        "rotate(&even, &odd, float(places[0]) * (1.0f / wavelengths[pair]));\n    target",
    ),
    "padding is weighed": ("latent 3 sequences", "uint(places[sequence * 3 + 2])", "uint(places[2])"),
    "rows of another sequence are weighed": (
        "latent 3 sequences",
        "uint(places[sequence * 3 + 1]) + 1",
        "uint(places[1]) + 1",
    ),
    "the wrong scale": ("experts mxfp8", "? 16384.0f : 256.0f", "? 16384.0f : 128.0f"),
    "the low nibble twice": ("experts affine4", "word >> (4 * i)", "word >> (4 * (i / 2))"),
    "a lane leaves before a sum": (
        "add_norm_logits",
        "  logit = simd_sum(logit);",
        "  if (thread_index_in_simdgroup == 7) return;\n  logit = simd_sum(logit);",
    ),
    "lanes take different ways": (
        "add_norm_logits",
        "logit = simd_sum(logit);",
        "logit = thread_index_in_simdgroup < 16 ? simd_sum(logit) : simd_max(logit);",
    ),
    "not every thread reaches the barrier": (
        "add_norm bias, 3 tokens, 2880",
        BARRIER,
        f"if (simdgroup_index_in_threadgroup != 1) {BARRIER}",
    ),
    "a part of the result is not written": (
        "latent plain",
        "target[i] = T(total * SCALE);",
        "if (i != 3) target[i] = T(total * SCALE);",
    ),
    "rows before the first one seen are weighed": ("latent weights", "place + i >= begin &&", ""),
    "no barrier in weights": ("latent weights", f"{BARRIER}\n  highest = LOWEST", "highest = LOWEST"),
    "sums of earlier rounds stay as they were": (
        "latent weights, three rounds",
        "norm *= metal::fast::exp(highest - higher);",
        "",
    ),
    "sums of SIMD groups stay as they were": (
        "latent weights",
        "sums[i] * metal::fast::exp(highs[i] - highest)",
        "sums[i]",
    ),
    "the scores of another round": (
        "latent weights, three rounds",
        "load_floats(row + place,",
        "load_floats(row + place % (8 * THREADS),",
    ),
    "only whole vectors are stored": ("latent weights", "own < capacity", "own + 8 <= capacity"),
    "tokens of an expert in one place": ("experts plain, 9 tokens", "simd_prefix_exclusive_sum(same)", "0"),
}


def planted(find, replacement):
    """Return what changes the kernels that contain a text."""

    def change(launch):
        kernel = launch.kernel
        return dataclasses.replace(
            launch,
            kernel=dataclasses.replace(
                kernel,
                body=kernel.body.replace(find, replacement),
                header=kernel.header.replace(find, replacement),
            ),
        )

    return change


def found(emulate, case, change):
    """Return whether a mistake shows: as an error, as a wrong result, or as one that hangs on the order."""
    results = []
    for order in ORDERS:
        emulate(order, change)
        mx.random.seed(0)
        try:
            pairs = case()
        except KernelError:
            return True
        if wrong(pairs):
            return True
        results.append([got for got, _ in pairs])
    return not all(
        mx.array_equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True)
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_mistake_is_found(emulate, fault):
    name, find, replacement = FAULTS[fault]
    case = small_cases(mx.float32)[name]
    seen = []

    def change(launch):
        changed = planted(find, replacement)(launch)
        seen.append(changed != launch)
        return changed

    assert found(emulate, case, change)
    assert any(seen), "the mistake was not planted: the text has changed"


def test_without_a_mistake_nothing_is_found(emulate):
    for name in random.Random(0).sample(sorted(small_cases(mx.float32)), 3):
        assert not found(emulate, small_cases(mx.float32)[name], lambda launch: launch)
