"""What a run needs to go on exactly, in one file: factors, optimizer and counts.

There is no random state to keep: the first factors come from the seed, the order of samples from the seed and
the number of the epoch, and nothing else is random.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from macmoe.adapters.files import MARKER, read_arrays, write_arrays
from macmoe.errors import CheckpointError, UsageError

STATE = "state.safetensors"
_PARTS = ("factors", "optimizer")
BEGUN_WITH = "adapter to begin with"  # the one fact that not every run has
# Facts whose values are hashes: what an error says of another one instead.
OTHERS = {
    "data": "other data to learn",
    "validation data": "other validation data",
    "base model": "another base model",
    "adapted matrices": "other adapted matrices (--adapter, --targets, --rank, --alpha, ...)",
    BEGUN_WITH: "another adapter, or with none (--adapter)",
}
# Facts that are options under another name.
NAMES = {"places of a row": "max_length", "machines": "machines (mlx.launch)"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        step: Updates done; it decides the learning rate and the next batch.
        best: Lowest validation loss so far, or None.
        waited: Evaluations since then.
        due: Whether the evaluation after the last update, and the answers that go with it, are still to come.
    """

    step: int = 0
    best: float | None = None
    waited: int = 0
    due: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A saved run.

    Attributes:
        progress: How far it is.
        identity: What has to be the same when it goes on, by name.
        factors: The adapter's arrays.
        optimizer: The optimizer's arrays.
    """

    progress: Progress
    identity: Mapping[str, Any]
    factors: Mapping[str, mx.array]
    optimizer: Mapping[str, mx.array]

    def save(self, folder: Path) -> None:
        """Write the state file; the one before it is there until this one is complete.

        Raises:
            CheckpointError: It cannot be written.
        """
        parts = {part: getattr(self, part) for part in _PARTS}
        arrays = {f"{part}:{name}": array for part, found in parts.items() for name, array in found.items()}
        facts = {"progress": asdict(self.progress), "identity": dict(self.identity)}
        write_arrays(folder / STATE, arrays, {"macmoe": json.dumps(facts)})

    @classmethod
    def load(cls, folder: Path, identity: Mapping[str, Any], free: Sequence[str] = ()) -> RunState:
        """Read the state file of a run.

        Args:
            folder: Of the run.
            identity: What has to be the same, by name.
            free: Names of what may differ all the same.

        Raises:
            CheckpointError: It is missing or damaged.
            UsageError: The run was another one: other data, model or settings.
        """
        check_saved(folder)
        path = folder / STATE
        arrays = read_arrays(path)
        facts = _metadata(path)
        for name, value in identity.items():
            if name not in facts["identity"] and name != BEGUN_WITH:
                raise UsageError(
                    f"{path}: an earlier macmoe did not note the {name} of this run, so it cannot be told "
                    "whether it would go on exactly; choose another folder and begin anew"
                )
            before = facts["identity"].get(name)
            if before != value and name not in free:
                raise UsageError(_another(path, name, before, value))
        parts: dict[str, dict[str, mx.array]] = {part: {} for part in _PARTS}
        for name, array in arrays.items():
            part, _, rest = name.partition(":")
            parts[part][rest] = array
        return cls(progress=Progress(**facts["progress"]), identity=facts["identity"], **parts)


def _another(path: Path, name: str, was: Any, given: Any) -> str:
    """Say that a run cannot go on because of one setting, and what can be done."""
    begun = f"{path}: this run was begun with{_values(name, was, given)}"
    if name not in ("epochs", "steps"):
        return f"{begun}; go on with the same settings and data, or choose another folder"
    return f"{begun}, and its learning rate follows from its length; {further(path.parent)}"


def _values(name: str, was: Any, given: Any) -> str:
    """Say what was given before and what is now, behind "with"."""
    if name in OTHERS:
        return f" {OTHERS[name]}"
    name = NAMES.get(name, name)
    if was is None:
        return f"out {name}, not with {name} = {given!r}"
    return f" {name} = {was!r}, not {'without' if given is None else repr(given)}"


def further(folder: Path) -> str:
    """Say how the adapter of a run is trained beyond its end."""
    begin = f"--adapter {shlex.quote(str(folder))} --out {shlex.quote(f'{folder}-more')}"
    return f"the same command with `{begin}` instead of --resume trains its adapter further"


def check_fresh(folder: Path) -> None:
    """Refuse a folder in which a run was saved, or which is an adapter.

    Raises:
        UsageError: It holds one, which would be overwritten.
    """
    if (folder / STATE).exists():
        raise UsageError(
            f"{folder}: holds a run already; resume it with --resume, or choose another folder (--out)"
        )
    found = next((name for name in (MARKER, "adapter_config.json") if (folder / name).exists()), None)
    if found:
        raise UsageError(
            f"{folder}: holds an adapter already ({found}), which would be overwritten; choose another one; "
            f"`--adapter {folder}` begins with this one"
        )


def check_saved(folder: Path) -> None:
    """Refuse a folder in which no run was saved, where one is to go on.

    Raises:
        CheckpointError: It holds none.
    """
    if not (folder / STATE).is_file():
        raise CheckpointError(
            f"{folder}: holds no run to resume; leave out --resume to begin one, or choose another folder"
        )


def _metadata(path: Path) -> dict[str, Any]:
    loaded: Any = mx.load(str(path), format="safetensors", return_metadata=True)
    try:
        return json.loads(loaded[1]["macmoe"])
    except (KeyError, ValueError):
        raise CheckpointError(f"{path}: not the state of a training run") from None
