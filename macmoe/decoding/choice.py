"""Whether the kernels are used: they must be wanted, possible, right and faster, here and for this model.

A model's kernels are examined once for each kind of cache; the verdict is kept per device, MLX version,
kernel texts, form of the model and bits of the cache.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from macmoe.decoding.comparisons import mixtures
from macmoe.decoding.examination import Verdict, examine
from macmoe.decoding.remembered import form_of, remembered
from macmoe.decoding.step import DecodeStep
from macmoe.families import Model
from macmoe.kernels import source
from macmoe.nn.cache import ModelCache

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

    def find() -> Verdict:
        logger.info("checking the kernels for this device and form of model, once")
        return examine(model, step, cache_bits)

    return remembered(
        form_of(model, cache_bits),
        find,
        Verdict.from_dict,
        lambda verdict: verdict.complete,
        fresh=fresh,
    )
