"""The feed-forward half of a layer for one token per sequence: norm, router and experts, or a dense layer.

It starts where attention's output joins the residual stream. Before experts, that sum, its norm and the
router's logits are one launch.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macmoe.decoding.matrices import Matrix, alone, join
from macmoe.kernels import experts as expert_kernels
from macmoe.kernels import routing
from macmoe.kernels.add_norm import Joint, add_norm, add_norm_logits
from macmoe.kernels.experts import Stack
from macmoe.kernels.routing import Choice
from macmoe.models import deepseek_v3, gpt_oss, qwen3
from macmoe.nn.mlp import MLP, swiglu
from macmoe.nn.moe import Experts, few_tokens, kernel_activation


@dataclass(frozen=True, slots=True, kw_only=True)
class Gated:
    """down(silu(gate x) * up x), gate and up in one product."""

    gate_up: Matrix
    down: Matrix

    def __call__(self, x: mx.array) -> mx.array:
        """Map the normed stream [tokens, dim] to what is added to it."""
        large = self.gate_up.large(x)
        if large is not None:
            return self.down(alone(large, x, expert_kernels.SWIGLU))
        gate, up = mx.split(self.gate_up(x), 2, axis=-1)
        return self.down(swiglu(gate, up))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """Norm and one gated MLP."""

    joint: Joint
    mlp: Gated

    def __call__(self, x: mx.array, delta: mx.array) -> tuple[mx.array, mx.array]:
        """Map the stream and attention's output to their sum and what is added to it, all [tokens, dim]."""
        x, normed = add_norm(x, delta, self.joint)
        return x, self.mlp(normed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """Matrix and choice; `bias` is added to the logits, `correction` to decide, not to weigh."""

    weight: mx.array
    choice: Choice
    bias: mx.array | None = None
    correction: mx.array | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertStacks:
    """The matrices of all experts; a shared one has stacks of one."""

    gate_up: Stack
    down: Stack

    @property
    def both(self) -> tuple[Stack, Stack]:
        """The two, in the order of their use."""
        return self.gate_up, self.down

    def same_form(self, other: "ExpertStacks") -> bool:
        """Return whether both can be read by one kernel."""
        pairs = ((self.gate_up, other.gate_up), (self.down, other.down))
        return all(a.packing == b.packing and a.weight.shape[1:] == b.weight.shape[1:] for a, b in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparse:
    """Norm, router, chosen experts, weighted sum; a shared expert is one more choice, or stands beside."""

    joint: Joint
    router: Router
    experts: ExpertStacks
    activation: int
    limit: float = 0.0
    shared: ExpertStacks | None = None
    beside: Gated | None = None

    @property
    def most_tokens(self) -> int:
        """Tokens of one call that the expert kernels are made for."""
        return expert_kernels.MAX_PAIRS // self.router.choice.slots

    def __call__(self, x: mx.array, delta: mx.array) -> tuple[mx.array, mx.array]:
        """Map the stream and attention's output to their sum and what is added to it, all [tokens, dim]."""
        router = self.router
        x, normed, logits = add_norm_logits(x, delta, self.joint, router.weight, router.bias)
        chosen, weights = routing.route(logits, router.choice, router.correction)
        y = (self._one if len(x) == 1 else self._several)(normed, chosen, weights)
        return x, y if self.beside is None else y + self.beside(normed)

    def _one(self, x: mx.array, chosen: mx.array, weights: mx.array) -> mx.array:
        shared = self.shared
        hidden = expert_kernels.expert_rows(
            self.experts.gate_up,
            x,
            chosen,
            activation=self.activation,
            limit=self.limit,
            shared=shared.gate_up if shared else None,
        )
        return expert_kernels.expert_sum(
            self.experts.down, hidden, chosen, weights, shared.down if shared else None
        )

    def _several(self, x: mx.array, chosen: mx.array, weights: mx.array) -> mx.array:
        shared = self.shared.both if self.shared else None
        activation = (self.activation, self.limit)
        return few_tokens(self.experts.both, x, chosen, weights, activation, shared)


def _gated(module: MLP, dtype: mx.Dtype) -> Gated | None:
    gate_up = join([module.gate_proj, module.up_proj], dtype)
    down = join([module.down_proj], dtype)
    return None if gate_up is None or down is None else Gated(gate_up=gate_up, down=down)


def dense(module: MLP, joint: Joint, dtype: mx.Dtype) -> Dense | None:
    """Translate a dense layer."""
    mlp = _gated(module, dtype)
    return None if mlp is None else Dense(joint=joint, mlp=mlp)


def _stacks(experts: Experts, dtype: mx.Dtype) -> ExpertStacks | None:
    stacks = experts.stacks(dtype)
    return None if stacks is None else ExpertStacks(gate_up=stacks[0], down=stacks[1])


def _router(module: Any, choice: Choice, dtype: mx.Dtype) -> Router | None:
    if type(module) not in {nn.Linear, deepseek_v3.Router} or module.weight.dtype != dtype:
        return None
    return Router(
        weight=module.weight,
        choice=choice,
        bias=module.get("bias"),
        correction=module.get("e_score_correction_bias"),
    )


def gpt_oss_mlp(module: gpt_oss.SparseMLP, joint: Joint, dtype: mx.Dtype) -> Sparse | None:
    """Translate GPT-OSS's mixture."""
    router = _router(module.router, Choice(kind=routing.TOP_K_SOFTMAX, top_k=module.top_k), dtype)
    experts = _stacks(module.experts, dtype)
    if router is None or experts is None:
        return None
    activation = kernel_activation(module.experts.activation)
    assert activation is not None, "without one the kernels know there are no stacks"
    return Sparse(joint=joint, router=router, experts=experts, activation=activation[0], limit=activation[1])


def qwen3_mlp(module: qwen3.SparseMLP, joint: Joint, dtype: mx.Dtype) -> Sparse | None:
    """Translate Qwen3's mixture."""
    choice = Choice(kind=routing.SOFTMAX_TOP_K, top_k=module.top_k, normalize=module.normalize)
    router, experts = _router(module.gate, choice, dtype), _stacks(module.experts, dtype)
    if router is None or experts is None:
        return None
    return Sparse(joint=joint, router=router, experts=experts, activation=expert_kernels.SWIGLU)


def deepseek_v3_mlp(module: deepseek_v3.SparseMLP, joint: Joint, dtype: mx.Dtype) -> Sparse | None:
    """Translate DeepSeek's mixture."""
    config = module.gate.config
    experts, beside = _stacks(module.experts, dtype), _gated(module.shared_experts, dtype)
    if experts is None or beside is None:
        return None
    gate_up, down = beside.gate_up.single, beside.down.single
    shared = None if gate_up is None or down is None else ExpertStacks(gate_up=gate_up, down=down)
    joins = shared is not None and experts.same_form(shared)
    choice = Choice(
        kind=routing.GROUPED_SIGMOID,
        top_k=config.num_experts_per_tok,
        normalize=config.norm_topk_prob,
        scale=config.routed_scaling_factor,
        groups=config.n_group,
        top_groups=config.topk_group,
        shared=joins,
    )
    router = _router(module.gate, choice, dtype)
    if router is None:
        return None
    return Sparse(
        joint=joint,
        router=router,
        experts=experts,
        activation=expert_kernels.SWIGLU,
        shared=shared if joins else None,
        beside=None if joins else beside,
    )
