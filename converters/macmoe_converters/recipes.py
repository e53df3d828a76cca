"""What `--quantize` offers: for each recipe, how the matrices of which roles are packed.

A recipe is read from its first line to its last: the first line whose roles a matrix has decides. A matrix
that is packed already is packed again only if that makes it smaller, so published MXFP4 experts stay as they
are under every recipe of four bits or more. Routers, norms, sinks and biases are never packed.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from macmoe.config import Quantization

KEEP = "keep"

EXPERTS, DOWN, EMBEDDING, EDGE, REST = "experts", "down", "embedding", "edge", "rest"
PATTERNS = {
    EXPERTS: r"\.mlp\.experts\.",
    DOWN: r"\.down_proj$",
    EMBEDDING: r"^(model\.embed_tokens|lm_head|mtp\.\d+\.(embed_tokens|shared_head\.head))$",
    REST: r"",
}
# A small error there sends a token to other experts.
NEVER = re.compile(r"\.(router|gate)$")
LAYER = re.compile(r"^model\.layers\.(\d+)\.")
EDGE_SHARE = 16  # one layer in so many at either end is an edge, and at least one


def affine(bits: int) -> Quantization:
    """Return the affine packing that MLX uses by default: groups of 64."""
    return Quantization(group_size=64, bits=bits, mode="affine")


MXFP4 = Quantization(group_size=32, bits=4, mode="mxfp4")
MXFP8 = Quantization(group_size=32, bits=8, mode="mxfp8")
NVFP4 = Quantization(group_size=16, bits=4, mode="nvfp4", global_scale=True)

# Finds how the matrix at a path is to be packed; None: as it is.
Choice = Callable[[str], Quantization | None]
Table = Mapping[tuple[str, ...], Quantization]

# MLX decodes rows of an embedding in MXFP or NVFP to bfloat16, whatever the model's type: those stay affine.
RECIPES: dict[str, Table] = {
    KEEP: {},
    "8bit": {(REST,): affine(8)},
    "6bit": {(REST,): affine(6)},
    "5bit": {(REST,): affine(5)},
    "4bit": {(REST,): affine(4)},
    "mxfp8": {(EMBEDDING,): affine(8), (REST,): MXFP8},
    "mxfp4": {(EMBEDDING,): affine(8), (REST,): MXFP4},
    "nvfp4": {(EMBEDDING,): affine(8), (REST,): NVFP4},
    "mixed4-6": {(EMBEDDING,): affine(6), (EDGE,): affine(6), (DOWN,): affine(6), (REST,): affine(4)},
    "mixed3-6": {(EMBEDDING,): affine(6), (EDGE,): affine(6), (DOWN,): affine(6), (REST,): affine(3)},
    "experts4-rest8": {(EXPERTS,): affine(4), (REST,): affine(8)},
    "experts4-rest6": {(EXPERTS,): affine(4), (REST,): affine(6)},
    "experts3-rest8": {
        (EXPERTS, EDGE): affine(4),
        (EXPERTS, DOWN): affine(4),
        (EXPERTS,): affine(3),
        (REST,): affine(8),
    },
    "experts2-rest8": {
        (EXPERTS, EDGE): affine(4),
        (EXPERTS, DOWN): affine(3),
        (EXPERTS,): affine(2),
        (REST,): affine(8),
    },
    "experts-mxfp4-rest8": {(EXPERTS,): MXFP4, (REST,): affine(8)},
    "experts-nvfp4-rest8": {(EXPERTS,): NVFP4, (REST,): affine(8)},
}

# Recipes whose scales are learned -> the recipe that packs before.
LEARNED = {"dwq4": "4bit"}


def allows(path: str) -> bool:
    """Return whether a matrix may be packed with loss."""
    return not NEVER.search(path)


def roles(path: str, layers: int) -> set[str]:
    """Return the roles of the matrix at a path, in a model with so many layers."""
    found = {role for role, pattern in PATTERNS.items() if re.search(pattern, path)}
    layer, width = LAYER.match(path), max(1, layers // EDGE_SHARE)
    at_edge = layer is not None and not width <= int(layer[1]) < layers - width
    return found | {EDGE} if at_edge else found


def suitable(how: Quantization, width: int) -> Quantization | None:
    """Return a packing with groups that divide rows of this width (affine ones may shrink to 32), or None."""
    sizes = (how.group_size, 32) if how.mode == "affine" else (how.group_size,)
    fitting = (size for size in sizes if width % size == 0)
    size = next(fitting, None)
    return replace(how, group_size=size) if size else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to pack a model; a `Choice`.

    Attributes:
        name: What macmoe.json calls it.
        table: Roles -> packing, for a whole class of models.
        paths: Path -> packing, for one model; goes before the table.
        layers: Number of decoder layers.
    """

    name: str
    table: Table
    paths: Mapping[str, Quantization]
    layers: int

    def __call__(self, path: str) -> Quantization | None:
        """Return how the matrix at a path is to be packed; None: as it is."""
        if not allows(path):
            return None
        own = roles(path, self.layers)
        lines = (how for needed, how in self.table.items() if own.issuperset(needed))
        return self.paths.get(path) or next(lines, None)
