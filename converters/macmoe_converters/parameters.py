"""The parameters of a conversion: what is stored for each, and what it was before it was packed."""

from dataclasses import dataclass

from macmoe.checkpoint import FLOAT32_ONLY
from macmoe_converters.packing import MXFP8, Tensor
from macmoe_converters.rows import Rows
from macmoe_converters.sink import NOT_FINITE, Stored

WEIGHT = ".weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter of the model.

    Attributes:
        name: Where it stands in the model.
        tensor: Its tensor, as it is stored.
        exact: The tensor before it was packed with loss; None if it was not.
    """

    name: str
    tensor: Tensor
    exact: Tensor | None = None

    @property
    def path(self) -> str:
        """Path of the module that has the parameter."""
        return self.name.removesuffix(WEIGHT)

    @property
    def arrays(self) -> dict[str, Rows]:
        """The arrays that are stored, by name."""
        if self.tensor.packing is None:
            return {self.name: self.tensor.weight}
        return {f"{self.path}.{part}": rows for part, rows in self.tensor.parts.items()}


def to_store(parameter: Parameter, name: str, rows: Rows) -> Stored:
    """Say what to look for in a tensor: NaN and infinity among weights, or, which is fatal, among scales."""
    scales = parameter.tensor.packing is not None and not name.endswith(".weight")
    if parameter.tensor.packing == MXFP8 and not scales:
        holds = "F8_E4M3"
    elif rows.dtype == "U8":
        holds = "F8_E8M0"
    else:
        holds = rows.dtype if rows.dtype in NOT_FINITE else None
    fatal = rows.dtype == "U8" or name.endswith(FLOAT32_ONLY)
    return Stored(rows=rows, holds=holds, fatal=fatal)
