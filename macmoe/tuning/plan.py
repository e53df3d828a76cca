"""What a run would train and need, before anything is loaded; and the cheapest change where it does not fit.

The estimate is made of the weights as they are stored, four numbers per trained parameter and optimizer slot,
the layer inputs that are kept, the inside of the layers that are computed again one at a time (of all, if
they are not), the pieces of matrices that are unpacked where that is faster, and the logits of one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from macmoe.adapters.attach import adaptable, select
from macmoe.adapters.lora import LoraSpec, matrix_shape, packing_of
from macmoe.errors import MemoryLimitError
from macmoe.nn.quantized import ExpertLinear, HeadLinear
from macmoe.nn.unpacking import PIECE
from macmoe.tuning.config import LoraOptions, TrainOptions
from macmoe.tuning.loss import CHUNK
from macmoe.tuning.unpacking import training_unpacks

FLOAT32 = 4
# Factors, their gradient, the sum of gradients, the updated factors; then what each optimizer remembers.
COPIES = 4
SLOTS = {"adamw": 2, "lion": 1, "muon": 2}
# What a matrix's inputs and outputs cost in a layer and in its gradient, in copies.
INSIDE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the memory depends on; `fixed`: there is an adapter already, whose shape cannot change."""

    lora: LoraOptions
    train: TrainOptions
    row_length: int
    fixed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes at the peak of a run.

    Attributes:
        trainable: Number of trained parameters.
        weights: Of the base.
        training: Factors, gradients, optimizer.
        activations: Kept for the gradient.
        logits: Of one chunk of the loss.
    """

    trainable: int
    weights: int
    training: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.training + self.activations + self.logits


def factor_count(shape: tuple[int, ...], path: str, spec: LoraSpec, *, heads: bool) -> int:
    """Return the parameters of the adapter of one matrix [..., out, in]."""
    *stack, outputs, inputs = shape
    copies = stack[0] if stack else 1
    a, b = spec.rank * inputs, spec.rank * outputs
    if heads:
        return copies * b + (a if path.endswith("k_up_proj") else 0)
    if stack and spec.shared:
        return a * copies + b if path.endswith("down_proj") else a + b * copies
    return copies * (a + b) + (outputs if spec.dora else 0)


def estimate(model: Any, settings: Settings, weights: int, itemsize: int) -> Estimate:
    """Estimate the peak of a run.

    Args:
        model: The model; its arrays need not be computed.
        settings: The settings.
        weights: Bytes of the model's weights.
        itemsize: Bytes of an activation's element.

    Raises:
        UsageError: The targets do not fit the model.
    """
    lora, train = settings.lora, settings.train
    modules = adaptable(model)
    specs = select(model, lora.targets, lora.spec, lora.overrides())
    trainable = sum(
        factor_count(matrix_shape(modules[path]), path, spec, heads=isinstance(modules[path], HeadLinear))
        for path, spec in specs.items()
    )
    tokens = train.rows * settings.row_length
    layers = len(model.model.layers)
    dim = model.model.norm.weight.size
    inside = max(_inside(model, i, modules, settings) for i in range(layers)) * itemsize
    kept = layers * tokens * dim * itemsize
    sizes = [math.prod(matrix_shape(each)) * itemsize for each in modules.values() if packing_of(each)]
    piece = min(PIECE, max(sizes, default=0)) if training_unpacks() else 0  # two: one in use, one leaving
    return Estimate(
        trainable=trainable,
        weights=weights,
        training=trainable * FLOAT32 * (COPIES + SLOTS[train.optimizer]),
        activations=kept + inside * (1 if train.recompute else layers) + 2 * piece,
        logits=INSIDE * min(tokens, CHUNK) * model.config.vocab_size * FLOAT32 + 4 * tokens * dim * FLOAT32,
    )


def _inside(model: Any, layer: int, modules: Mapping[str, Any], settings: Settings) -> int:
    """Return the numbers that one layer and its gradient hold at once."""
    config = model.config
    moe = getattr(config, "moe", None) or config
    tokens = settings.train.rows * settings.row_length
    widths = 0
    for path, module in modules.items():
        if path.startswith(f"model.layers.{layer}."):
            shape = matrix_shape(module)
            times = moe.num_experts_per_tok if isinstance(module, ExpertLinear) else 1
            times = shape[0] if isinstance(module, HeadLinear) else times
            widths += times * (shape[-1] + shape[-2])
    scores = config.num_attention_heads * settings.row_length * tokens
    return INSIDE * (tokens * widths + scores)


def changes(settings: Settings) -> Iterator[tuple[str, Settings]]:
    """Yield what would need less memory, the cheapest for the result first; each adds to those before."""
    train, lora = settings.train, settings.lora
    if not train.recompute:
        train = replace(train, recompute=True)
        yield "recompute = true", replace(settings, train=train)
    if train.rows > 1:
        text = f"rows = 1 and accumulate = {train.accumulate * train.rows}"
        train = replace(train, rows=1, accumulate=train.accumulate * train.rows)
        yield text, replace(settings, train=train)
    if not (lora.shared or settings.fixed) and any("experts" in target for target in lora.targets):
        lora = replace(lora, shared=True)
        yield "shared = true", replace(settings, train=train, lora=lora)
    length = settings.row_length
    while length > 256:
        length //= 2
        yield f"max_length = {length}", replace(settings, train=train, lora=lora, row_length=length)


def check_fits(model: Any, settings: Settings, weights: int, itemsize: int, limit: int) -> Estimate:
    """Return the estimate of a run that fits.

    Raises:
        MemoryLimitError: It does not; the message names the cheapest change with which it would.
        UsageError: The targets do not fit the model.
    """
    needed = estimate(model, settings, weights, itemsize)
    if needed.total <= limit:
        return needed
    done: list[str] = []
    for change, changed in changes(settings):
        done = [*(text for text in done if text.split(" = ")[0] != change.split(" = ")[0]), change]
        if estimate(model, changed, weights, itemsize).total <= limit:
            raise MemoryLimitError(f"{_too_much(needed, limit)}; it would with {', '.join(done)}")
    raise MemoryLimitError(
        f"{_too_much(needed, limit)}; it would not with smaller settings either, so take a smaller or packed "
        "model"
    )


def _too_much(needed: Estimate, limit: int) -> str:
    return f"does not fit: training needs about {needed.total / 2**30:.4g} of {limit / 2**30:.4g} GiB"
