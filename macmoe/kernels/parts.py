"""The parts into which an attention is cut, so that it fills a GPU, joined again."""

import mlx.core as mx

from macmoe.kernels.source import Kernel, launch

THREADS = 256  # of the threadgroup that joins the parts of a head

LIMITS = """
#define LOWEST -3.0e38f  // below every score; unlike infinity it may be taken from itself
"""

COMBINE = Kernel(
    name="combine_parts",
    header=LIMITS,
    body="""
  threadgroup float weights[PARTS];
  threadgroup float sums[SETS * WIDTH];
  const uint lane = thread_index_in_simdgroup;
  const uint head = threadgroup_position_in_grid.x;  // of one sequence after the other
#if HAS_SINKS
  const float sink = float(sinks[head % HEADS]);
#else
  const float sink = LOWEST;
#endif
  float highest = sink;
  for (uint part = lane; part < PARTS; part += 32) {
    highest = metal::max(highest, bounds[(head * PARTS + part) * 2]);
  }
  highest = simd_max(highest);
  float all = 0.0f;
  for (uint part = lane; part < PARTS; part += 32) {
    const uint slot = head * PARTS + part;
    const float weight = metal::exp(bounds[slot * 2] - highest);
    all += bounds[slot * 2 + 1] * weight;
    if (simdgroup_index_in_threadgroup == 0) weights[part] = weight;
  }
  all = simd_sum(all) + (HAS_SINKS ? metal::exp(sink - highest) : 0.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  // Sets of threads share the parts, and each of their threads has a column.
  const uint column = thread_index_in_threadgroup % WIDTH;
  const uint set = thread_index_in_threadgroup / WIDTH;
  if (set < SETS) {
    float total = 0.0f;
    for (uint part = set; part < PARTS; part += SETS) {
      total = metal::fma(partial[(head * PARTS + part) * WIDTH + column], weights[part], total);
    }
    sums[set * WIDTH + column] = total;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (set == 0) {
    float total = 0.0f;
    for (uint s = 0; s < SETS; s++) total += sums[s * WIDTH + column];
    y[head * WIDTH + column] = T(total / all);
  }
""",
)


def combine(partial: mx.array, bounds: mx.array, dtype: mx.Dtype, sinks: mx.array | None = None) -> mx.array:
    """Join the parts of an attention.

    Args:
        partial: [sequences, heads, parts, width], float32: sums of weighted values, not normalized.
        bounds: [sequences, heads, parts, 2], float32: a part's highest score, and the sum of its weights.
        dtype: Of the result.
        sinks: One more logit per head [heads].

    Returns:
        [sequences, heads * width].
    """
    sequences, heads, parts, width = partial.shape
    threads = max(THREADS, -(-width // 32) * 32)
    inputs = {"partial": partial, "bounds": bounds} | ({} if sinks is None else {"sinks": sinks})
    constants = {
        "T": dtype,
        "HEADS": heads,
        "PARTS": parts,
        "WIDTH": width,
        "SETS": threads // width,
        "HAS_SINKS": sinks is not None,
    }
    outputs = {"y": ((sequences, heads * width), dtype)}
    groups = (sequences * heads, 1, 1)
    return launch(COMBINE, inputs, outputs, constants, groups=groups, threads=threads)[0]
