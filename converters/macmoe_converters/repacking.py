"""Whether a folder has to be repacked, told from config.json and the names of its tensors alone.

Where every rule only renames tensors or puts whole matrices beside each other, loading the folder as it lies
takes about as long as loading its conversion (tests/bench/in_place.py): a copy of it would only take disk.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from macmoe.families import family_of
from macmoe_converters.conversion import TABLES
from macmoe_converters.original import is_original
from macmoe_converters.plan import Matcher

# In names of tensors that are not as MLX has them: MXFP4 blocks, FP8 blocks, one matrix per expert.
REPACKED = re.compile(r"[._]blocks$|_scale_inv$|\.experts\.\d+\.")


def needs_repacking(config: Mapping[str, Any], names: Iterable[str], where: str) -> bool:
    """Return whether tensors of these names have to be computed anew, or collected one by one, to be loaded.

    Args:
        config: config.json of the folder.
        names: Its tensors.
        where: The file, for errors.

    Raises:
        ConfigError: The family is not supported.
    """
    if is_original(config):
        return True
    matcher = Matcher(TABLES[family_of(config, where).name], config)
    return any(
        REPACKED.search(name) or not all(rule.moves_only for rule, _ in matcher.find(name)) for name in names
    )
