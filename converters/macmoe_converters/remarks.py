"""What a conversion does otherwise than one could expect, a line each: left out, not packed, unpacked.

Nothing of it is an error; whoever asked for four bits and gets a copy wants to know.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from macmoe.shards import first_five
from macmoe_converters.account import take_account
from macmoe_converters.conversion import MACMOE, Conversion
from macmoe_converters.recipes import suitable
from macmoe_converters.targets import Written, stored_type


def remarks(conversion: Conversion, to: str = MACMOE) -> list[str]:
    """Return the lines.

    Args:
        conversion: The conversion.
        to: The layout that is written.
    """
    if to == MACMOE:
        return [*_left_out(conversion, to), *_kept_packings(conversion)]
    weights = conversion.written(to)
    return [
        *_left_out(conversion, to, weights),
        *_kept_packings(conversion),
        *_unpacked(conversion, weights),
        *_declared_type(conversion, weights),
    ]


def _left_out(conversion: Conversion, to: str, weights: Sequence[Written] = ()) -> Iterator[str]:
    names = [each.name for each in conversion.parameters]
    placed = {name for name in names if not conversion.target(to).leaves_out(name)}
    account = take_account(conversion, proven=placed, lossy=(), to=to)
    again = {each.name for each in weights}  # layouts that hold copies get them
    if copies := [name for name in account.copies if name not in again]:
        yield f"equal copies of other matrices, not kept: {first_five(copies)}"
    for reason, some in account.reasons.items():
        yield f"left out, because {reason}: {first_five(some)}"


def _counted(packings: Iterable[str]) -> str:
    return ", ".join(f"{count:,} in {how}" for how, count in Counter(packings).most_common())


def _kept_packings(conversion: Conversion) -> Iterator[str]:
    """Say what another recipe was asked for, and which packing stays."""
    kept = []
    for each in conversion.parameters:
        how, asked = each.tensor.packing, conversion.asked(each.path)
        if how and asked and each.exact is None and how != suitable(asked, each.tensor.shape[-1]):
            kept.append(f"{how.mode} {how.bits} bit")
    if not kept:
        return
    whole = all(each.exact is None for each in conversion.parameters)
    result = "; nothing else was packed, so this is a copy" if whole else ""
    yield (
        f"matrices that stay as they are: {_counted(kept)}; they are packed already, and "
        f"{conversion.recipe} would not make them smaller{result}"
    )


def _unpacked(conversion: Conversion, weights: Iterable[Written]) -> Iterator[str]:
    packed = {each.name for each in conversion.parameters if each.tensor.packing}
    reasons: dict[str, list[str]] = defaultdict(list)
    for each in weights:
        if each.packing is None and each.remark and packed.intersection(each.parameters):
            reasons[each.remark].append(each.name)
    for reason, names in reasons.items():
        yield f"{reason}: {first_five(names)}"


def _declared_type(conversion: Conversion, weights: Iterable[Written]) -> Iterator[str]:
    declared = conversion.config.get("dtype", conversion.config.get("torch_dtype"))
    found = stored_type(weights)
    if declared and found and declared != found:
        yield (
            f"config.json of the source says {declared}, and most weights are written as {found}; "
            f"config.json of the result says {found}"
        )
