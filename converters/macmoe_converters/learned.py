"""Scales that are learned: a packed model is taught the predictions of the model that it was made from.

The codes stay as they are. Scales and biases of affine matrices are trained to lower KL(model || packed one)
on a text, by mlx-lm's DWQ (mlx_lm.quant.dwq), which is imported only here.
"""

import io
import logging
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from itertools import cycle, islice
from typing import Any, cast

import mlx.core as mx
import mlx.optimizers as optimizers
from mlx.utils import tree_flatten

from macmoe.errors import UsageError
from macmoe.families import Model
from macmoe.scoring import divergence

logger = logging.getLogger(__name__)

STEPS = 200
BATCH = 4
CHECKED = 8  # one passage in so many is not learned from: it shows whether learning helped
# Adam moves a number by about this much at each step, as a share of the mean scale.
STEP_SHARE = 1e-3
SEED = 0

Progress = Callable[[int, int], None]
Tokens = Sequence[int]


def _dwq() -> Any:
    try:
        return import_module("mlx_lm.quant.dwq").dwq_quantize
    except ImportError:
        raise UsageError("--quantize dwq4 learns with mlx-lm; install it (`pip install mlx-lm`)") from None


def _divergence(teacher: Model, student: Model, passages: Sequence[Tokens]) -> float:
    """Return the mean KL(teacher || student) over the tokens of some passages."""
    total = 0.0
    for tokens in passages:
        first, second = (
            model(mx.array(list(tokens))[None])[0].astype(mx.float32) for model in (teacher, student)
        )
        first, second = (logits - mx.logsumexp(logits, axis=-1, keepdims=True) for logits in (first, second))
        total += cast("float", divergence(first, second).sum().item())
    return total / sum(map(len, passages))


def _scales(model: Model) -> dict[str, mx.array]:
    """Return scales and biases of the matrices that DWQ trains."""
    named: Any = tree_flatten(model.parameters())
    arrays = dict(named)
    trained = {
        path
        for path, module in model.named_modules()
        if getattr(module, "mode", None) == "affine" and getattr(module, "bits", 8) < 8
    }
    return {
        name: array
        for name, array in arrays.items()
        if name.rpartition(".")[0] in trained and name.endswith((".scales", ".biases"))
    }


def _mean_scale(model: Model) -> float:
    means = [
        mx.abs(array.astype(mx.float32)).mean()
        for name, array in _scales(model).items()
        if name.endswith(".scales")
    ]
    return cast("float", mx.stack(means).mean().item())


def learn(
    teacher: Model, student: Model, passages: Sequence[Tokens], progress: Progress | None = None
) -> dict[str, mx.array]:
    """Teach a packed model, and return its scales and biases by name; nothing if that did not help.

    Args:
        teacher: The model as it was.
        student: The same, packed; it is changed.
        passages: Token ids to learn from.
        progress: Called with the steps made so far and in all.

    Raises:
        UsageError: mlx-lm is not installed, or there are too few passages.
    """
    checked = list(passages[::CHECKED])
    learned_from = [each for i, each in enumerate(passages) if i % CHECKED]
    if not learned_from:
        raise UsageError("the text to learn from has a single passage; give a longer one")
    dwq = _dwq()
    batch = min(BATCH, len(learned_from))
    rows = [(list(tokens), 0) for tokens in islice(cycle(learned_from), STEPS * batch)]
    before, steps = _divergence(teacher, student, checked), 0

    def target(tokens: mx.array, _: int, split: str) -> mx.array:
        nonlocal steps
        steps += split == "train"
        if progress and split == "train":
            progress(steps, STEPS)
        return teacher(tokens)

    schedule = optimizers.cosine_decay(STEP_SHARE * _mean_scale(student), STEPS)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it reports to the terminal
        dwq(
            student,
            target,
            optimizers.Adam(learning_rate=schedule, bias_correction=True),
            rows,
            [(list(tokens), 0) for tokens in islice(cycle(checked), batch)],
            batch_size=batch,
            max_seq_length=max(map(len, passages)),
            seed=SEED,
            dtype=student.model.norm.weight.dtype,
        )
    student.eval()
    after = _divergence(teacher, student, checked)
    if not after < before:
        logger.warning(
            "learning did not help (divergence %.3g before, %.3g after): the scales stay as they were",
            before,
            after,
        )
        return {}
    return _scales(student)
