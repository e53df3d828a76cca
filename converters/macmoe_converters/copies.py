"""Tensors that should be copies of others, compared before one of the two is left out.

A tied model has one matrix for embedding and head; the prediction layers of DeepSeek borrow both. A merged
adapter, or training, can have changed one of them, with nothing in config.json that says so. Bytes are
compared first, and values where they differ: the same numbers in another type, or packed, are a copy as well.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from macmoe.checkpoint import DTYPES
from macmoe_converters.packing import FLOATS, Tensor, decode
from macmoe_converters.plan import Matcher
from macmoe_converters.rows import Array, Rows, cast, to_mlx
from macmoe_converters.rules import RuleTable
from macmoe_converters.source import Source

EMBEDDING = "model.embed_tokens.weight"
MATRIX = ("vocab", "dim")  # what all of these are


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A tensor that should be a copy.

    Attributes:
        name: The tensor.
        original: What it should be a copy of.
        equal: Whether it is one.
    """

    name: str
    original: str
    equal: bool


def same_values(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors hold the same numbers, up to rounding to the type of one of them."""
    if first.shape != second.shape or len(first.shape) != len(MATRIX):
        return False
    return _same_bytes(first, second) or _same_numbers(first, second)


def _same_bytes(first: Tensor, second: Tensor) -> bool:
    infos = [{part: rows.info for part, rows in each.parts.items()} for each in (first, second)]
    alike = first.packing == second.packing and infos[0] == infos[1]
    return alike and all(_equal_rows(rows, second.parts[part]) for part, rows in first.parts.items())


def _equal_rows(first: Rows, second: Rows) -> bool:
    pieces = zip(first.slices(), second.slices(), strict=True)
    return all(np.array_equal(_bytes(first, *a), _bytes(second, *b)) for a, b in pieces)


def _bytes(rows: Rows, begin: int, end: int) -> Array:
    return np.ascontiguousarray(rows.read(begin, end)).reshape(-1).view(np.uint8)


def _same_numbers(first: Tensor, second: Tensor) -> bool:
    types = [each.weight.dtype if each.packing is None else "F32" for each in (first, second)]
    values = [cast(decode(each, "").weight, "F32") for each in (first, second)]
    pairs = ([to_mlx(rows.read(*piece), "F32") for rows in values] for piece in values[0].slices())
    return all(any(_agree(a, b, dtype) for dtype in types if dtype in FLOATS) for a, b in pairs)


def _agree(first: mx.array, second: mx.array, dtype: str) -> bool:
    return bool(mx.array_equal(first.astype(DTYPES[dtype]), second.astype(DTYPES[dtype])).item())


def settle_copies(
    table: RuleTable, source: Source, config: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Copy]]:
    """Compare what should be copies; return the config with the switches of those that are none, and all.

    Args:
        table: The family's rules.
        source: The folder.
        config: Its config.json, its counts settled.
    """
    found = list(_copies(table, source, config))
    switches = {
        rule.when[0]: not rule.when[1]
        for copy in found
        if not copy.equal
        for rule, _ in Matcher(table, config).find(copy.name)
        if rule.when
    }
    return {**config, **switches}, found


def _copies(table: RuleTable, source: Source, config: Mapping[str, Any]) -> Iterator[Copy]:
    copied = {rule.copy_of for rule in table.rules if rule.copy_of}
    rules = tuple(rule for rule in table.rules if rule.copy_of or copied.issuperset(rule.targets or ("",)))
    matcher = Matcher(replace(table, rules=rules), config)
    tails = tuple({source.rpartition("}")[2] for rule in rules for source in rule.sources})
    found = [(name, rule) for name in source.names if name.endswith(tails) for rule, _ in matcher.find(name)]
    made = {rule.targets[0]: name for name, rule in found if rule.targets}
    for name, rule in found:
        # Where a tied model has no head, its embedding is the head.
        original = made.get(rule.copy_of) or made.get(EMBEDDING)
        if rule.copy_of and original:
            equal = same_values(source.read(name), source.read(original))
            yield Copy(name=name, original=original, equal=equal)
