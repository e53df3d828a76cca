"""What packing with loss did to the weights: relative errors by matrix, by kind of matrix, by layer.

The relative error of a matrix is |W - packed(W)| / |W| in the Frobenius norm; several are taken as one long
matrix. What a model loses by it, `macmoe score --against` measures.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from macmoe.config import Quantization
from macmoe_converters.conversion import Conversion
from macmoe_converters.packing import decode
from macmoe_converters.parameters import Parameter
from macmoe_converters.recipes import LAYER
from macmoe_converters.rows import cast

WORST = 10  # matrices named in a report


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What packing did to one matrix.

    Attributes:
        path: Where it stands in the model.
        how: Its packing; None for a plain one.
        weights: Number of its weights.
        bits: What it takes in all.
        squared_error: Sum of the squared differences to what it was.
        squared_norm: Sum of the squares of what it was.
    """

    path: str
    how: Quantization | None
    weights: int
    bits: float
    squared_error: float
    squared_norm: float

    @property
    def kind(self) -> str:
        """The path without numbers: matrices of one kind are reported together."""
        return re.sub(r"\d+", "*", self.path)

    @property
    def layer(self) -> int | None:
        """The decoder layer, if it is in one."""
        found = LAYER.match(self.path)
        return int(found[1]) if found else None


def _loss(parameter: Parameter) -> Loss:
    bits = 8 * sum(rows.info.nbytes for rows in parameter.arrays.values())
    error = norm = 0.0
    if parameter.exact is not None:
        before, after = (cast(decode(each, "").weight, "F32") for each in (parameter.exact, parameter.tensor))
        for begin, end in before.slices():
            exact = before.read(begin, end).astype(np.float64)
            error += float(np.square(exact - after.read(begin, end)).sum())
            norm += float(np.square(exact).sum())
    return Loss(
        path=parameter.path,
        how=parameter.tensor.packing,
        weights=math.prod(parameter.tensor.shape),
        bits=bits,
        squared_error=error,
        squared_norm=norm,
    )


def losses(conversion: Conversion, progress: Callable[[int, int], None] | None = None) -> list[Loss]:
    """Return the loss of every matrix; the source is read once more for it."""
    matrices = [
        each for each in conversion.parameters if each.name.endswith(".weight") and each.tensor.shape[1:]
    ]
    found = []
    for done, parameter in enumerate(matrices):
        found.append(_loss(parameter))
        if progress:
            progress(done + 1, len(matrices))
    return found


def relative_error(some: Iterable[Loss]) -> float:
    """Return the relative error of the matrices that were packed with loss, all together."""
    some = list(some)
    norm = math.fsum(each.squared_norm for each in some)
    return math.sqrt(math.fsum(each.squared_error for each in some) / norm) if norm else 0.0


def bits_per_weight(some: Iterable[Loss]) -> float:
    """Return the stored bits per weight of some matrices, scales included."""
    some = list(some)
    return math.fsum(each.bits for each in some) / sum(each.weights for each in some)


def _together(some: Sequence[Loss]) -> dict[str, Any]:
    return {
        "matrices": len(some),
        "bits_per_weight": bits_per_weight(some),
        "relative_error": relative_error(some),
    }


def report(conversion: Conversion, found: Sequence[Loss]) -> dict[str, Any]:
    """Return a report: the whole, kinds of matrices, layers, and the worst matrices."""
    kinds = {each.kind: [other for other in found if other.kind == each.kind] for each in found}
    layers = sorted({each.layer for each in found if each.layer is not None})
    worst = sorted(found, key=lambda each: -relative_error([each]))[:WORST]
    stored = sum(info.nbytes for info in conversion.infos.values())
    return {
        "recipe": conversion.recipe,
        "stored_bytes": stored,
        "bits_per_weight": 8 * stored / conversion.weights,
        "relative_error": relative_error(found),
        "kinds": {kind: _together(some) for kind, some in kinds.items()},
        "layers": [_together([each for each in found if each.layer == layer]) for layer in layers],
        "worst": [
            {
                "matrix": each.path,
                "packing": each.how.entry() if each.how else None,
                "relative_error": relative_error([each]),
            }
            for each in worst
            if each.squared_error
        ],
    }
