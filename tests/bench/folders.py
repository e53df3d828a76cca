"""Say what macmoe makes of folders: read (with parameters and longest context), or refused, and why.

    python -m tests.bench.folders DIR...

Weights are not looked at. A folder need not be complete: what it lacks of a configuration is taken from the
published Qwen3-0.6B, and an adapter's settings are read for whatever base they name.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from macmoe.adapters.mlx_lm import _settings as read_mlx_lm
from macmoe.adapters.peft_import import PeftConfig
from macmoe.config import load_config, load_json
from macmoe.defaults import Defaults
from macmoe.errors import ConfigError, MacmoeError
from macmoe.families import known_config
from macmoe.inspection import CONFIGS, describe

PUBLISHED = CONFIGS / "qwen3-0.6b.json"
CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
ADAPTER = "adapter_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of a folder.

    Attributes:
        read: Whether it is read.
        why: The refusal, or what was read.
        millions: Parameters of its model, without a prediction layer; None without a config.json.
        longest: Its longest context.
    """

    read: bool
    why: str
    millions: float | None = None
    longest: int | None = None

    def __str__(self) -> str:
        """Return it as a line."""
        return f"{'read' if self.read else 'refused'}: {self.why}"


def judge(folder: Path) -> Verdict:
    """Read all that there is in a folder but weights."""
    try:
        return _read(folder)
    except MacmoeError as error:
        return Verdict(read=False, why=str(error))


def _read(folder: Path) -> Verdict:
    known = [name for name in (CONFIG, GENERATION, TOKENIZER, ADAPTER) if (folder / name).is_file()]
    if not known:
        raise ConfigError(f"{folder}: holds no configuration")
    if ADAPTER in known:
        peft = "peft_type" in load_json(folder / ADAPTER)
        (PeftConfig.read if peft else read_mlx_lm)(folder)
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place)
        shutil.copyfile(PUBLISHED, whole / CONFIG)
        for name in known:
            shutil.copyfile(folder / name, whole / name)
        Defaults.read(whole).options({})
        if TOKENIZER in known:
            load_json(folder / TOKENIZER)
    if CONFIG not in known:
        return Verdict(read=True, why=", ".join(known))
    config = known_config(load_config(folder), str(folder / CONFIG))
    model = describe(folder.name, config)
    counts = model.parameters
    millions = (counts.embedding + counts.head + counts.body) / 1e6
    why = f"{millions:,.2f} million parameters, longest context {model.max_positions:,}"
    return Verdict(read=True, why=why, millions=millions, longest=model.max_positions)


def main(folders: list[str]) -> None:
    """Print a line for each folder."""
    for name in folders:
        print(f"{name}: {judge(Path(name))}")


if __name__ == "__main__":
    main(sys.argv[1:])
