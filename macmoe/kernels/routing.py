"""Routers: the choice of experts and their weights from the logits of all, in float32.

The three choices are those of macmoe.nn.routing, which are also the references: top-k then softmax (GPT-OSS),
softmax then top-k (Qwen3), sigmoid + bias within the best groups (DeepSeek, arXiv 2412.19437, section 2.1.2).
Equal scores go to the lower expert. An extra slot, for a shared expert, is number `experts` with weight 1.
"""

from dataclasses import dataclass

import mlx.core as mx

from macmoe.kernels.source import Kernel, launch

TOP_K_SOFTMAX, SOFTMAX_TOP_K, GROUPED_SIGMOID = range(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How a family chooses experts.

    Attributes:
        kind: TOP_K_SOFTMAX, SOFTMAX_TOP_K or GROUPED_SIGMOID.
        top_k: Experts per token.
        normalize: Whether the weights are rescaled to sum to one.
        scale: Multiplies them.
        groups: Groups of experts; 1 without groups.
        top_groups: Groups that a token may use.
        shared: Whether a shared expert is appended.
    """

    kind: int
    top_k: int
    normalize: bool = True
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    shared: bool = False

    @property
    def slots(self) -> int:
        """Experts of a token, the shared one included."""
        return self.top_k + self.shared


CHOICE = Kernel(
    name="route",
    body="""
  const uint lane = thread_index_in_simdgroup;
  const uint token = threadgroup_position_in_grid.x;
  float score[PER_LANE];    // what decides
  float worth[PER_LANE];    // what is handed out
  for (int i = 0; i < PER_LANE; i++) {
    const uint expert = i * 32 + lane;
    const float logit = expert < EXPERTS ? logits[token * EXPERTS + expert] : -INFINITY;
#if KIND == 2
    worth[i] = 1.0f / (1.0f + metal::exp(-logit));
    score[i] = expert < EXPERTS ? worth[i] + correction[expert] : -INFINITY;
#else
    worth[i] = score[i] = logit;
#endif
  }
#if KIND == 2 && TOP_GROUPS < GROUPS
  threadgroup float shared_scores[EXPERTS];
  threadgroup float group_worth[GROUPS];
  for (int i = 0; i < PER_LANE; i++) {
    if (i * 32 + lane < EXPERTS) shared_scores[i * 32 + lane] = score[i];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint g = lane; g < GROUPS; g += 32) {
    float best = -INFINITY, second = -INFINITY;
    for (int i = 0; i < EXPERTS / GROUPS; i++) {
      const float value = shared_scores[g * (EXPERTS / GROUPS) + i];
      second = metal::max(second, metal::min(best, value));
      best = metal::max(best, value);
    }
    group_worth[g] = best + second;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = 0; i < PER_LANE; i++) {
    const uint expert = i * 32 + lane;
    if (expert < EXPERTS) {
      const uint own = expert / (EXPERTS / GROUPS);
      uint better = 0;
      for (uint g = 0; g < GROUPS; g++) {
        better += group_worth[g] > group_worth[own] || (group_worth[g] == group_worth[own] && g < own);
      }
      if (better >= TOP_GROUPS) score[i] = -INFINITY;
    }
  }
#endif
  float chosen[TOP_K];      // the same in every lane
  float total = 0.0f;
#if KIND == 1
  float highest = -INFINITY;
  for (int i = 0; i < PER_LANE; i++) highest = metal::max(highest, score[i]);
  highest = simd_max(highest);
  float all = 0.0f;
  for (int i = 0; i < PER_LANE; i++) all += metal::exp(worth[i] - highest);
  all = simd_sum(all);
#endif
  for (int k = 0; k < TOP_K; k++) {
    float best = -INFINITY;
    uint place = EXPERTS;
    float own = 0.0f;
    for (int i = 0; i < PER_LANE; i++) {
      if (score[i] > best) {
        best = score[i];
        place = i * 32 + lane;
        own = worth[i];
      }
    }
    const float winner = simd_max(best);
    // NaN wins nothing; an expert is named all the same.
    const uint expert = metal::min(simd_min(best == winner ? place : uint(EXPERTS)), uint(EXPERTS - 1));
    chosen[k] = simd_sum(expert == place ? own : 0.0f);
    for (int i = 0; i < PER_LANE; i++) {
      if (i * 32 + lane == expert) score[i] = -INFINITY;
    }
    if (lane == 0) experts[token * SLOTS + k] = expert;
  }
#if KIND == 0
  const float highest = chosen[0];  // they come in descending order
#endif
  for (int k = 0; k < TOP_K; k++) {
#if KIND == 0
    chosen[k] = metal::exp(chosen[k] - highest);
#elif KIND == 1
    chosen[k] = metal::exp(chosen[k] - highest) / all;
#endif
    total += chosen[k];
  }
#if NORMALIZE
  const float factor = SCALE / (total + (KIND == 2 ? 1e-20f : 0.0f));
#else
  const float factor = SCALE;
#endif
  if (lane == 0) {
    for (int k = 0; k < TOP_K; k++) weights[token * SLOTS + k] = chosen[k] * factor;
#if SLOTS > TOP_K
    experts[token * SLOTS + TOP_K] = EXPERTS;
    weights[token * SLOTS + TOP_K] = 1.0f;
#endif
  }
""",
)


def route(logits: mx.array, choice: Choice, correction: mx.array | None = None) -> tuple[mx.array, mx.array]:
    """Return the experts [tokens, slots] (uint32) and their weights [tokens, slots] (float32).

    Args:
        logits: [tokens, experts], float32.
        choice: How to choose.
        correction: [experts], float32, added to decide but not to weigh (DeepSeek).
    """
    tokens, experts = logits.shape
    inputs = {"logits": logits} | ({} if correction is None else {"correction": correction})
    constants = {
        "EXPERTS": experts,
        "PER_LANE": -(-experts // 32),
        "KIND": choice.kind,
        "TOP_K": choice.top_k,
        "SLOTS": choice.slots,
        "NORMALIZE": choice.normalize,
        "SCALE": float(choice.scale),
        "GROUPS": choice.groups,
        "TOP_GROUPS": choice.top_groups,
    }
    shape = (tokens, choice.slots)
    chosen, weights = launch(
        CHOICE,
        inputs,
        {"experts": (shape, mx.uint32), "weights": (shape, mx.float32)},
        constants,
        groups=(tokens, 1, 1),
        threads=32,
    )
    return chosen, weights
