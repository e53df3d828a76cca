"""Which bits per weight a model can be packed to, known from its shapes, before anything is measured."""

import math
from collections.abc import Iterator

from macmoe.errors import UsageError
from macmoe_converters.conversion import Conversion
from macmoe_converters.parameters import Parameter
from macmoe_converters.sensitivity import candidates


def _bits(parameter: Parameter) -> int:
    return 8 * sum(rows.info.nbytes for rows in parameter.arrays.values())


def _choices(conversion: Conversion, parameter: Parameter) -> Iterator[float]:
    """Yield what a parameter may take, as it is first."""
    yield _bits(parameter)
    if conversion.can_pack(parameter.path):
        for how in candidates(parameter.path, parameter.tensor.shape[-1]):
            yield how.bits_per_weight * math.prod(parameter.tensor.shape)


def reachable(conversion: Conversion) -> tuple[float, float]:
    """Return the fewest and the most bits per weight that a choice of packings can take.

    Args:
        conversion: The source, packed as it is.
    """
    least = math.fsum(min(_choices(conversion, each)) for each in conversion.parameters)
    most = math.fsum(map(_bits, conversion.parameters))
    return least / conversion.weights, most / conversion.weights


def check_budget(conversion: Conversion, bits_per_weight: float) -> None:
    """Refuse bits per weight that no choice of packings takes.

    Raises:
        UsageError: They are too few, or so many that nothing would be packed.
    """
    least, most = reachable(conversion)
    if bits_per_weight >= most:
        raise UsageError(
            f"{conversion.folder}: takes {most:.2f} bits per weight as it is, so nothing would be packed for "
            f"{bits_per_weight:g}; ask for fewer, or convert it without --bits-per-weight"
        )
    if bits_per_weight < least:
        raise UsageError(
            f"{conversion.folder}: takes {least:.2f} bits per weight at least, with the smallest packing "
            f"everywhere, so {bits_per_weight:g} cannot be reached; ask for more"
        )
