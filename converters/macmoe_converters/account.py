"""What became of the tensors of a source: each is in the output, or a copy, or left out for a reason."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from macmoe_converters.conversion import MACMOE, Conversion


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The tensors of a source's files, each in one place.

    Attributes:
        equal: Those that the output holds, bit for bit or decoded exactly.
        within: Those that it holds as close as their packing allows.
        copies: Those that are equal to another one, by name, and that one.
        left_out: Those that it does not hold, by name, and why.
    """

    equal: tuple[str, ...]
    within: tuple[str, ...]
    copies: dict[str, str]
    left_out: dict[str, str]

    @property
    def total(self) -> int:
        """How many there are."""
        return len(self.equal) + len(self.within) + len(self.copies) + len(self.left_out)

    @property
    def reasons(self) -> dict[str, list[str]]:
        """Why tensors are left out, and which."""
        found: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            found.setdefault(reason, []).append(name)
        return found


def take_account(
    conversion: Conversion, *, proven: Collection[str], lossy: Collection[str], to: str = MACMOE
) -> Account:
    """Say what became of every tensor.

    Args:
        conversion: The conversion.
        proven: The parameters that the output holds.
        lossy: Those of them that were packed with loss.
        to: The layout of the output.
    """
    originals = {copy.name: copy.original for copy in conversion.copies if copy.equal}
    used = {
        part: step.targets
        for step in conversion.steps
        if step.targets
        for name in step.sources
        for part in conversion.parts(name)
    }
    held = {part: targets for part, targets in used.items() if all(name in proven for name in targets)}
    within = {part for part, targets in held.items() if any(name in lossy for name in targets)}
    return Account(
        equal=tuple(part for part in held if part not in within),
        within=tuple(part for part in held if part in within),
        copies={part: original for name, original in originals.items() for part in conversion.parts(name)},
        left_out=dict.fromkeys((part for part in used if part not in held), conversion.target(to).why)
        | dict(_dropped(conversion, originals)),
    )


def _dropped(conversion: Conversion, copies: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the tensors that a rule drops, but copies, and its reason."""
    for step in conversion.steps:
        for name in step.sources:
            if not step.targets and name not in copies:
                for part in conversion.parts(name):
                    yield part, step.rule.reason
