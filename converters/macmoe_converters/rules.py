"""The vocabulary of rule tables: which source tensors become which parameters, and what happens on the way.

A table is data. Names contain placeholders for numbers: `{layer}`, `{expert}`, and `{num_hidden_layers+mtp}`,
which is `{mtp}` counted from the config's num_hidden_layers on. How a tensor is packed does not matter to a
rule: all of them move whole rows, which is exact on packed matrices (only transposing is not: it decodes,
unless tiles of weights share their scales).

A rule can be read in both directions. Forwards, it makes parameters of what a layout stores; backwards, it
makes what a layout stores of parameters. `RuleTable.written` lists the rules to be read backwards.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, pairwise

import numpy as np

from macmoe_converters.packing import Tensor, combine, decode, transposed
from macmoe_converters.rows import Array, even_then_odd, stacked, together, unfolded, unstacked

Shape = tuple[int, ...]
# Sources of one rule (expert by expert if there are several) and the targets' shapes -> targets.
Operation = Callable[[Sequence[Tensor], Sequence[Shape]], list[Tensor]]

# A rule's targets, and the number of its sources -> its sources.
Inverse = Callable[[Sequence[Tensor], int], list[Tensor]]

WEIGHT_ROWS = -2  # the axis of a matrix's rows
BIAS_ROWS = -1


def _same(inputs: Sequence[Tensor], _: object) -> list[Tensor]:
    return list(inputs)


def _behind_rows(inputs: Sequence[Tensor], axis: int) -> None:
    """Refuse what would move an axis that arrays are read along."""
    if any(len(tensor.shape) + axis < 1 for tensor in inputs):
        raise ValueError("one axis more is needed, that of the experts or heads")


def _transposed(inputs: Sequence[Tensor], _: object) -> list[Tensor]:
    _behind_rows(inputs, WEIGHT_ROWS)
    return [transposed(tensor) for tensor in inputs]


def _even_then_odd(inputs: Sequence[Tensor], _: Sequence[Shape], axis: int) -> list[Tensor]:
    _behind_rows(inputs, axis)
    if any(len(tensor.shape) + axis != 1 for tensor in inputs):
        raise ValueError("these rows are not those of experts")
    return [tensor.map(even_then_odd) for tensor in inputs]


def _in_turns(inputs: Sequence[Tensor], axis: int) -> list[Tensor]:
    """Undo `_even_then_odd`."""

    def reorder(array: Array) -> Array:
        halves = np.split(array, 2, axis=axis)
        return np.stack(halves, axis=array.ndim + axis + 1).reshape(array.shape)

    return [tensor.map(lambda rows: rows.map(reorder)) for tensor in inputs]


def _transposed_even_then_odd(inputs: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
    return _even_then_odd(_transposed(inputs, shapes), shapes, WEIGHT_ROWS)


def _joined(inputs: Sequence[Tensor], _: Sequence[Shape], axis: int) -> list[Tensor]:
    _behind_rows(inputs, axis)
    return [combine(inputs, lambda arrays: together(arrays, lambda *some: np.concatenate(some, axis=axis)))]


def _parted(inputs: Sequence[Tensor], count: int, axis: int) -> list[Tensor]:
    """Undo `_joined`: cut rows into equal parts."""
    (tensor,) = inputs
    return [
        tensor.map(lambda rows, i=i: rows.map(lambda array: np.split(array, count, axis=axis)[i]))
        for i in range(count)
    ]


def _stacked(inputs: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
    """Join [rows, in] matrices to [experts, rows of one expert, in]; an expert's matrices are neighbors."""
    return [combine(inputs, lambda arrays: stacked(arrays, shapes[0][0]))]


def _unstacked(inputs: Sequence[Tensor], count: int) -> list[Tensor]:
    """Undo `_stacked`."""
    (tensor,) = inputs
    if tensor.packing and tensor.packing.global_scale:
        tensor = decode(tensor, "an expert's matrices share its global scale")
    each = count // tensor.shape[0]
    pieces = {part: unstacked(rows, each) for part, rows in tensor.parts.items()}
    return [replace(tensor, parts={part: rows[i] for part, rows in pieces.items()}) for i in range(count)]


def _heads_joined(inputs: Sequence[Tensor], _: int) -> list[Tensor]:
    """Undo `_split` of rows that belong to heads."""
    return [tensor.map(unfolded) for tensor in _joined(inputs, (), WEIGHT_ROWS)]


def _split(inputs: Sequence[Tensor], shapes: Sequence[Shape], axis: int) -> list[Tensor]:
    """Cut rows as the targets' shapes say; targets with an axis of heads take their share of each head."""
    (tensor,), heads = inputs, shapes[0][:axis]
    ends = [0, *accumulate(shape[axis] for shape in shapes)]
    if tensor.shape[0] != math.prod(heads) * ends[-1]:
        raise ValueError("these rows are not those of the targets")

    def cut(begin: int, end: int) -> Tensor:
        if heads:
            return tensor.map(lambda rows: rows.fold(heads[0]).map(lambda array: array[:, begin:end]))
        return tensor.map(lambda rows: rows.within(begin, end))

    return [cut(begin, end) for begin, end in pairwise(ends)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One line of a table.

    Attributes:
        sources: Patterns of the source tensors that are used together.
        targets: Patterns of the parameters that they become; none if they are dropped.
        operation: What happens between the two.
        reason: Why they are dropped.
        when: A switch of config.json and the position at which the rule holds; None: always.
        inverse: What happens when the rule is read backwards; None: it cannot be.
        copy_of: The parameter of which the dropped tensor has to be a copy. Where it is none, the switch in
            `when` is put to its other position, under which another rule keeps the tensor.
        rewritten: Whether the copy is made again where the rule is read backwards.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    operation: Operation = _same
    reason: str = ""
    inverse: Inverse | None = None
    copy_of: str = ""
    rewritten: bool = True
    when: tuple[str, bool] | None = None


def keep(name: str, *, when: tuple[str, bool] | None = None) -> Rule:
    """Take a tensor over as it is."""
    return Rule(sources=(name,), targets=(name,), when=when, inverse=_same)


def rename(source: str, target: str) -> Rule:
    """Take a tensor over under another name."""
    return Rule(sources=(source,), targets=(target,), inverse=_same)


def transpose(source: str, target: str) -> Rule:
    """Swap the last two axes."""
    return Rule(sources=(source,), targets=(target,), operation=_transposed, inverse=_transposed)


def deinterleave(source: str, target: str, *, axis: int = WEIGHT_ROWS) -> Rule:
    """Reorder rows: the even ones (gate), then the odd ones (up)."""
    return Rule(
        sources=(source,),
        targets=(target,),
        operation=partial(_even_then_odd, axis=axis),
        inverse=lambda inputs, _: _in_turns(inputs, axis),
    )


def transpose_deinterleave(source: str, target: str) -> Rule:
    """Swap the last two axes, then reorder rows: the even ones (gate), then the odd ones (up)."""
    return Rule(
        sources=(source,),
        targets=(target,),
        operation=_transposed_even_then_odd,
        inverse=lambda inputs, _: _transposed(_in_turns(inputs, WEIGHT_ROWS), ()),
    )


def stack(*sources: str, into: str) -> Rule:
    """Stack the matrices of all `{expert}`s; several sources are joined, in this order, in each expert."""
    return Rule(sources=sources, targets=(into,), operation=_stacked, inverse=_unstacked)


def join(*sources: str, into: str, axis: int = WEIGHT_ROWS) -> Rule:
    """Put rows below each other."""
    return Rule(
        sources=sources,
        targets=(into,),
        operation=partial(_joined, axis=axis),
        inverse=partial(_parted, axis=axis),
    )


def split(source: str, *targets: str, axis: int = WEIGHT_ROWS) -> Rule:
    """Cut rows apart, within each head if the targets have an axis of heads; the model's shapes say where."""
    return Rule(
        sources=(source,), targets=targets, operation=partial(_split, axis=axis), inverse=_heads_joined
    )


def drop(
    source: str,
    reason: str,
    *,
    when: tuple[str, bool] | None = None,
    copy_of: str = "",
    rewritten: bool = True,
) -> Rule:
    """Leave a tensor out, for a reason: for example, because it is a copy of a parameter."""
    return Rule(
        sources=(source,),
        targets=(),
        reason=reason,
        when=when,
        copy_of=copy_of,
        rewritten=rewritten,
        inverse=_same,
    )


def under(prefix: str, rules: Sequence[Rule], *, to: str | None = None) -> tuple[Rule, ...]:
    """Put a prefix before all names of some rules, another one before the targets if `to` is given."""
    return tuple(
        replace(
            rule,
            sources=tuple(prefix + name for name in rule.sources),
            targets=tuple((prefix if to is None else to) + name for name in rule.targets),
        )
        for rule in rules
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleTable:
    """All rules of a family.

    Attributes:
        rules: The rules, for every layout that the family is published in.
        counts: Placeholder -> the key of config.json that says how many there are.
        optional: Placeholders that may have no tensors at all; the config of the result then says 0.
        written: Layouts that can be written, and the rules that are read backwards for it.
        left_out: Parameters that have no place in a layout: layout -> prefix of their names, and why.
    """

    rules: tuple[Rule, ...]
    counts: Mapping[str, str]
    written: Mapping[str, tuple[Rule, ...]]
    optional: tuple[str, ...] = ()
    left_out: Mapping[str, tuple[str, str]] = field(default_factory=dict)
