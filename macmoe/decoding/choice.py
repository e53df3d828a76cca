"""Whether the kernels are used: they must be wanted, possible, right and faster, here and for this model.

A model's kernels are checked once: each kind of layer against its modules, and a whole token for time. The
verdict is kept per device, MLX version, kernel texts and form of the model.
"""

import hashlib
import json
import logging
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from macmoe.decoding.step import DecodeStep, Layer
from macmoe.families import Model
from macmoe.kernels import source
from macmoe.location import cache_folder
from macmoe.nn.cache import ModelCache
from macmoe.nn.moe import Experts
from macmoe.nn.positions import Positions
from macmoe.version import __version__

logger = logging.getLogger(__name__)

PAST = 40  # tokens in the cache of a check
TOKENS = 5  # checked per layer, and timed
# Relative error of a sublayer in the median token: rounding of the modules in that type, with a margin.
BOUNDS = {mx.float32: 1e-4, mx.float16: 1e-2, mx.bfloat16: 5e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a check found.

    Attributes:
        errors: Relative error by kind of sublayer.
        bound: What they may be at most.
        seconds: Of one token with kernels.
        plain_seconds: Of one token without.
    """

    errors: dict[str, float]
    bound: float
    seconds: float
    plain_seconds: float

    @property
    def right(self) -> bool:
        """Whether every sublayer is within the bound."""
        return not self.wrong

    @property
    def wrong(self) -> dict[str, float]:
        """The errors beyond the bound."""
        return {kind: error for kind, error in self.errors.items() if not error <= self.bound}

    @property
    def use(self) -> bool:
        """Whether to use the kernels."""
        return self.right and self.seconds < self.plain_seconds


def decode_step(model: Model, cache: ModelCache) -> DecodeStep | None:
    """Return the step for one conversation, None where the model's modules have to do.

    Args:
        model: The model; a translation of it is kept on it.
        cache: Of one sequence, without padding, already holding a prompt.
    """
    if not source.enabled() or cache.left_padding is not None:
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
        found = ", ".join(f"{kind} {error:.1e}" for kind, error in verdict.wrong.items())
        logger.warning(
            "kernels are not used for this model: their errors (%s) are beyond %.0e on this device; "
            "plain operations give the same answers, slower (`macmoe doctor` has the details)",
            found,
            verdict.bound,
        )
    return verdict.use


def mixtures(model: Model) -> list[Experts]:
    """Return the mixtures of experts of a model, whose modules use kernels for a few tokens."""
    return [module for _, module in model.named_modules() if isinstance(module, Experts)]


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
        return Verdict(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none yet, or not ours
        return None


def _form(model: Model) -> str:
    """Return a hash of everything a verdict hangs on."""
    parameters: Any = tree_flatten(model.parameters())
    shapes = sorted({(str(array.shape), str(array.dtype)) for _, array in parameters})
    device = str(mx.device_info().get("device_name", mx.default_device()))
    facts = [device, version("mlx"), __version__, str(source.backend()), repr(model.config), repr(shapes)]
    digest = hashlib.sha256("\n".join(facts).encode())
    for path in sorted(Path(source.__file__).parent.glob("*.py")):  # the kernels' texts
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def examine(model: Model, step: DecodeStep) -> Verdict:
    """Compare the kernels with the modules, layer by layer, and time one token both ways."""
    dtype = model.model.norm.weight.dtype
    errors: dict[str, float] = {}
    for index, layer in enumerate(step.layers):
        kinds = (f"attention, window {layer.window}", type(layer.feed_forward).__name__.lower())
        if kinds[0] not in errors:
            errors[kinds[0]] = _attention_error(model, index, layer, dtype)
        if kinds[1] not in errors:
            errors[kinds[1]] = _feed_forward_error(model, index, layer, dtype)
    for experts in mixtures(model)[:1]:
        errors["several tokens"] = _several_tokens_error(experts, dtype)
    seconds, plain_seconds = _times(model, step)
    return Verdict(errors=errors, bound=BOUNDS[dtype], seconds=seconds, plain_seconds=plain_seconds)


def _noise(shape: tuple[int, ...], seed: int, dtype: mx.Dtype) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def _difference(got: mx.array, wanted: mx.array) -> float:
    got, wanted = got.astype(mx.float32).flatten(), wanted.astype(mx.float32).flatten()
    error: Any = (mx.linalg.norm(got - wanted) / mx.maximum(mx.linalg.norm(wanted), 1e-30)).item()
    return math.inf if math.isnan(error) else float(error)


def _attention_error(model: Model, index: int, layer: Layer, dtype: mx.Dtype) -> float:
    module, dim = model.model.layers[index].self_attn, model.model.norm.weight.shape[0]
    caches = [list(model.make_cache())[index] for _ in range(2)]
    past = Positions(offset=0, length=PAST, left_padding=None, start=0)
    for cache in caches:
        mx.eval(module(_noise((1, PAST, dim), 0, dtype), past.mask(layer.window), past, cache))
    errors = []
    for token in range(TOKENS):
        x = _noise((1, 1, dim), token + 1, dtype)
        here = Positions(offset=PAST + token, length=1, left_padding=None, start=PAST + token)
        wanted_output = module(x, here.mask(layer.window), here, caches[0])
        room = caches[1].open(1)
        places = mx.array([PAST + token, room.row, room.first], dtype=mx.int32)
        got = layer.attention(x[0], room.buffers, places)
        if layer.attention.output.bias is not None:
            got = got + layer.attention.output.bias
        errors.append(_difference(got, wanted_output))
        caches[1].advance(1)
    return statistics.median(errors)


def _feed_forward_error(model: Model, index: int, layer: Layer, dtype: mx.Dtype) -> float:
    dim = model.model.norm.weight.shape[0]
    inputs = [_noise((1, dim), token, dtype) for token in range(TOKENS)]
    module = model.model.layers[index].mlp
    # The median: a token whose experts are nearly tied may be sent to others by rounding.
    return statistics.median(_difference(layer.feed_forward(x), module(x[None])) for x in inputs)


def _several_tokens_error(experts: Experts, dtype: mx.Dtype) -> float:
    count, dim = experts.gate_up_proj.weight.shape[0], experts.down_proj.weight.shape[1]
    x, weights = _noise((TOKENS, dim), 0, dtype), mx.ones((TOKENS, 2))
    chosen = mx.random.randint(0, count, (TOKENS, 2), key=mx.random.key(1)).astype(mx.uint32)
    stacks = experts.stacks(dtype)
    assert stacks is not None, "a model with a translation has stacks"
    experts.use_kernels = False
    return _difference(experts.few(x, chosen, weights, stacks), experts(x, chosen, weights))


def _times(model: Model, step: DecodeStep) -> tuple[float, float]:
    cache = model.make_cache()
    mx.eval(model.hidden(mx.zeros((1, PAST), dtype=mx.uint32), cache))
    token = mx.zeros((1,), dtype=mx.uint32)

    def with_kernels() -> mx.array:
        return step(token, cache)

    def plain() -> mx.array:
        return model.logits(model.hidden(token[None], cache))

    return _median_seconds(with_kernels), _median_seconds(plain)


def _median_seconds(compute: Callable[[], mx.array]) -> float:
    mx.eval(compute())  # compiles
    seconds = []
    for _ in range(TOKENS):
        began = time.perf_counter()
        mx.eval(compute())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
