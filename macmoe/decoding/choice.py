"""Whether the kernels are used: they must be wanted, possible, right and faster, here and for this model.

A model's kernels are examined once; the verdict is kept per device, MLX version, kernel texts and form of the
model.
"""

import hashlib
import json
import logging
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from macmoe.decoding.examination import Verdict, examine, mixtures
from macmoe.decoding.step import DecodeStep
from macmoe.families import Model
from macmoe.kernels import source
from macmoe.location import cache_folder
from macmoe.nn.cache import ModelCache
from macmoe.version import __version__

logger = logging.getLogger(__name__)


def decode_step(model: Model, cache: ModelCache) -> DecodeStep | None:
    """Return the step for one conversation, None where the model's modules have to do.

    Args:
        model: The model; a translation of it is kept on it.
        cache: Of one sequence, without padding, already holding a prompt.
    """
    if not source.enabled() or cache.left_padding is not None or cache.bits:
        return None
    if model.translation is None or model.translation[0] != identity(model):
        step = DecodeStep.of(model)
        use = step is not None and _accepted(remembered_verdict(model, step))
        for experts in mixtures(model):
            experts.use_kernels = use
        model.translation = (identity(model), step if use else None)
    return model.translation[1]


def _accepted(verdict: Verdict) -> bool:
    """Return whether to use the kernels; say so if they are wrong, which nobody expects."""
    if verdict.wrong:
        found = ", ".join(
            f"{kind} {check.error:.1e}, allowed {check.bound:.1e}" for kind, check in verdict.wrong.items()
        )
        logger.warning(
            "kernels are not used for this model: their errors are too large on this device (%s); "
            "plain operations give the same answers, slower (`macmoe doctor` has the details)",
            found,
        )
    return verdict.use


def identity(model: Model) -> tuple[int, ...]:
    """Return what changes when adapters or weights are exchanged."""
    return tuple(id(array) for _, array in tree_flatten(model.parameters()))


def remembered_verdict(model: Model, step: DecodeStep, *, fresh: bool = False) -> Verdict:
    """Return the verdict for this device and form of model, from the cache folder if it is there.

    Args:
        model: The model.
        step: Its translation.
        fresh: Check again whatever is there.
    """
    folder = cache_folder()
    if folder is None:
        return examine(model, step)
    path = folder / "kernels" / f"{_form(model)}.json"
    known = None if fresh else _read_verdict(path)
    if known is not None:
        return known
    verdict = examine(model, step)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(verdict)), encoding="utf-8")
    except OSError:  # a read-only home is no reason to fail: the next run checks again
        pass
    return verdict


def _read_verdict(path: Path) -> Verdict | None:
    try:
        return Verdict.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # none yet, or not ours
        return None


def _form(model: Model) -> str:
    """Return a hash of everything a verdict hangs on."""
    parameters: Any = tree_flatten(model.parameters())
    shapes = sorted({(str(array.shape), str(array.dtype)) for _, array in parameters})
    device = str(mx.device_info().get("device_name", mx.default_device()))
    facts = [device, version("mlx"), __version__, str(source.backend()), repr(model.config), repr(shapes)]
    digest = hashlib.sha256("\n".join(facts).encode())
    for folder in (
        Path(source.__file__).parent,
        Path(__file__).parent,
    ):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:24]
