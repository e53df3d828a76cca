"""The machine: what `macmoe doctor` says of it, and of the kernels on it."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from macmoe.bench.run import versions
from macmoe.decoding.choice import remembered_verdict
from macmoe.decoding.examination import Verdict, with_past
from macmoe.decoding.launches import KernelCheck, KernelChecks, check_kernels
from macmoe.decoding.remembered import form_of, remembered
from macmoe.decoding.step import DecodeStep
from macmoe.families import Model
from macmoe.kernels import source

WRONG, SLOWER, OK = "wrong", "slower", "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What macmoe runs on.

    Attributes:
        system: Operating system with its version.
        processor: Kind and number of cores.
        python: Version.
        versions: Of the packages.
        device: MLX's default device.
        limits: What MLX says of the device, memory in bytes.
    """

    system: str
    processor: str
    python: str
    versions: dict[str, str]
    device: str
    limits: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The kernels for one model; no verdict where they have no form of it, such as some packings.

    Attributes:
        model: What it is called.
        verdict: By kind of layer: it says whether the kernels are used.
        kernels: Each kernel of a token; none where something does not run.
    """

    model: str
    verdict: Verdict | None
    kernels: tuple[KernelCheck, ...] = ()

    @property
    def outcome(self) -> str:
        """What the check means."""
        if self.verdict is None:
            return "none for this model"
        if self.verdict.wrong:
            return WRONG
        return OK if self.verdict.use(1) else SLOWER

    def to_json(self) -> dict[str, Any]:
        """Return everything for JSON, in which errors and times that are not finite are null."""
        verdict = self.verdict
        used = {} if verdict is None else {"used": verdict.use(1), "used_for_several": verdict.use(2)}
        figures = {} if verdict is None else asdict(verdict) | used
        kernels = [asdict(kernel) for kernel in self.kernels]
        found = {"model": self.model, "outcome": self.outcome} | figures | {"kernels": kernels}
        return tree_map(_finite, found)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def this_machine() -> Machine:
    """Describe this machine."""
    mac = platform.mac_ver()[0]
    return Machine(
        system=f"macOS {mac}" if mac else platform.platform(),
        processor=f"{platform.machine()}, {os.cpu_count()} cores",
        python=platform.python_version(),
        versions=versions(),
        device=str(mx.default_device()),
        limits=dict(mx.device_info()),
    )


def kernels_off() -> str | None:
    """Return why no kernels are used on this machine, None if they may be."""
    if source.backend() is None:
        return "kernels need a GPU; plain operations are used"
    if os.environ.get(source.SWITCH) == "0":
        return f"turned off ({source.SWITCH}=0); plain operations are used"
    return None


def check(name: str, model: Model, *, fresh: bool, cache_bits: int | None = None) -> Checked:
    """Check the kernels on a model; what is found is remembered for this device and MLX.

    Args:
        name: What to call the model.
        model: The model.
        fresh: Check again whatever is remembered.
        cache_bits: Of the cache, see `LanguageModel.make_cache`.
    """
    step = DecodeStep.of(model)
    if step is None:
        return Checked(model=name, verdict=None)
    verdict = remembered_verdict(model, step, cache_bits, fresh=fresh)
    if not verdict.complete:
        return Checked(model=name, verdict=verdict)
    kernels = remembered(
        f"{form_of(model, cache_bits)}-each",
        lambda: check_kernels(step, with_past(model, cache_bits)),
        KernelChecks.from_dict,
        fresh=fresh,
    )
    return Checked(model=name, verdict=verdict, kernels=kernels.checks)
