"""Where figures can go beside the run's own file: TensorBoard, Weights & Biases; imported when asked for."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from macmoe.config import nearest
from macmoe.errors import UsageError


class Tracker(Protocol):
    """Takes figures by step."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Record figures."""
        ...

    def close(self) -> None:
        """Write what is held."""
        ...


class TensorBoard:
    """Event files in the folder of the run.

    Args:
        library: The module tensorboardX.
        folder: The folder of the run.
    """

    def __init__(self, library: Any, folder: Path) -> None:
        self._writer = library.SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Record figures."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is held."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases with the name of the folder; a resumed run goes on with it.

    Args:
        library: The module wandb.
        folder: The folder of the run.
    """

    def __init__(self, library: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        self._run = library.init(
            project="macmoe", name=folder.name, id=identity, dir=str(folder), resume="allow"
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Record figures."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Write what is held."""
        self._run.finish()


# Name -> module, extra of this package, tracker.
TRACKERS: dict[str, tuple[str, str, Callable[[Any, Path], Tracker]]] = {
    "tensorboard": ("tensorboardX", "tensorboard", TensorBoard),
    "wandb": ("wandb", "wandb", WeightsAndBiases),
}


def open_trackers(names: Sequence[str], folder: Path) -> list[Tracker]:
    """Return the trackers of a run.

    Raises:
        UsageError: A name is unknown, or its library is not installed.
    """
    return [TRACKERS[name][2](library, folder) for name, library in zip(names, libraries(names), strict=True)]


def libraries(names: Sequence[str]) -> list[Any]:
    """Return the modules that trackers write with, without opening any tracker.

    Raises:
        UsageError: A name is unknown, or its library is not installed.
    """
    found = []
    for name in names:
        if name not in TRACKERS:
            raise UsageError(
                f"'{name}' is no tracker; there are {', '.join(TRACKERS)}{nearest(name, list(TRACKERS))}"
            )
        module, extra, _ = TRACKERS[name]
        try:
            found.append(importlib.import_module(module))
        except ImportError:
            raise UsageError(
                f"{name} needs {module}, which is not installed: pip install 'macmoe[{extra}]'"
            ) from None
    return found
