"""Whether the kernels are used: they must be wanted, possible, right and faster, here and for this model.

A model's kernels are examined once for each kind of cache; the verdict is kept per device, MLX version,
kernel texts, form of the model and bits of the cache.
"""

import hashlib
import json
import logging
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from macmoe.decoding.comparisons import mixtures
from macmoe.decoding.examination import Verdict, examine
from macmoe.decoding.step import DecodeStep
from macmoe.families import Model
from macmoe.kernels import source
from macmoe.location import cache_folder
from macmoe.nn.cache import ModelCache
from macmoe.version import __version__

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Translation:
    """What has been made of a model.

    Attributes:
        arrays: The weights that it was made of, held, so that no other array can take their place unseen.
        step: The model in kernels; None where it has no translation.
        verdicts: By bits of the cache.
    """

    arrays: tuple[mx.array, ...]
    step: DecodeStep | None
    verdicts: dict[int | None, Verdict] = field(default_factory=dict)


def decode_step(model: Model, cache: ModelCache) -> DecodeStep | None:
    """Return the step for a few sequences, None where the model's modules have to do.

    Args:
        model: The model; a translation of it is kept on it.
        cache: Of the sequences, already holding their prompts.
    """
    if not source.enabled():
        return None
    if model.translation is None or not _same(model.translation.arrays, arrays_of(model)):
        step = DecodeStep.of(model)
        model.translation = Translation(arrays_of(model), step)
    translation: Translation = model.translation
    step = translation.step
    if step is None:
        return None
    if cache.bits not in translation.verdicts:
        verdict = remembered_verdict(model, step, cache.bits)
        _warn(verdict)
        translation.verdicts[cache.bits] = verdict
        for experts in mixtures(model):
            experts.use_kernels = any(each.use(2) for each in translation.verdicts.values())
    usable = translation.verdicts[cache.bits].use(cache.sequences) and step.fits(cache.sequences)
    return step if usable else None


def _warn(verdict: Verdict) -> None:
    """Say so if kernels are wrong, which nobody expects."""
    if verdict.wrong:
        found = "; ".join(
            f"{kind}: {check.failure or f'error {check.error:.1e}, allowed {check.bound:.1e}'}"
            for kind, check in verdict.wrong.items()
        )
        logger.warning(
            "kernels are not used for %s of this model: on this device they are wrong (%s); "
            "plain operations give the same answers, slower (`macmoe doctor` has the details)",
            "several tokens at once" if verdict.use(1) else "any token",
            found,
        )


def arrays_of(model: Model) -> tuple[mx.array, ...]:
    """Return what changes when adapters or weights are exchanged."""
    named: Any = tree_flatten(model.parameters())
    return tuple(array for _, array in named)


def _same(some: tuple[mx.array, ...], others: tuple[mx.array, ...]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def remembered_verdict(
    model: Model, step: DecodeStep, cache_bits: int | None = None, *, fresh: bool = False
) -> Verdict:
    """Return the verdict for this device and form of model, from the cache folder if it is there.

    Args:
        model: The model.
        step: Its translation.
        cache_bits: Of the cache, see `LanguageModel.make_cache`.
        fresh: Check again whatever is there.
    """
    folder = cache_folder()
    if folder is None:
        return examine(model, step, cache_bits)
    path = folder / "kernels" / f"{_form(model, cache_bits)}.json"
    known = None if fresh else _read_verdict(path)
    if known is not None:
        return known
    verdict = examine(model, step, cache_bits)
    if not verdict.complete:
        return verdict
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


def _form(model: Model, cache_bits: int | None) -> str:
    """Return a hash of everything a verdict hangs on."""
    parameters: Any = tree_flatten(model.parameters())
    shapes = sorted({(str(array.shape), str(array.dtype)) for _, array in parameters})
    device = str(mx.device_info().get("device_name", mx.default_device()))
    system = platform.mac_ver()[0] or platform.release()  # compiler and driver come with it
    packages = [version("mlx"), __version__]
    facts = [
        device,
        system,
        *packages,
        str(source.backend()),
        repr(model.config),
        repr(shapes),
        repr(cache_bits),
    ]
    digest = hashlib.sha256("\n".join(facts).encode())
    for folder in (
        Path(source.__file__).parent,
        Path(__file__).parent,
    ):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:24]
