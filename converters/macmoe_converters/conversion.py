"""One conversion: a source folder, seen as a macmoe checkpoint. Nothing is computed before it is needed."""

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from macmoe.checkpoint import FLOAT32_ONLY, FORMAT_VERSION, parameters_of, warn_of_bad_weights
from macmoe.config import Quantization
from macmoe.errors import ConversionError, UsageError
from macmoe.families import family_of
from macmoe.nn.quantized import PACKED
from macmoe.shards import INDEX, first_five
from macmoe.version import __version__
from macmoe_converters import deepseek_v3, gpt_oss, qwen3
from macmoe_converters.copies import settle_copies
from macmoe_converters.packing import DECODED, MXFP8, Tensor, decode, quantize
from macmoe_converters.parameters import WEIGHT, Parameter, to_store
from macmoe_converters.plan import Step, make_plan, settle_counts
from macmoe_converters.quantizing import NORM, scale_dtype
from macmoe_converters.recipes import KEEP, LEARNED, RECIPES, Recipe, allows
from macmoe_converters.rows import cast, held
from macmoe_converters.rules import RuleTable, Shape
from macmoe_converters.sink import (
    SHARD_BYTES,
    Output,
    Progress,
    index_of,
    plan_shards,
    space,
    write_output,
)
from macmoe_converters.source import Source
from macmoe_converters.targets import (
    ENCODERS,
    WITHOUT_GLOBAL_SCALES,
    Target,
    Written,
    quantization_entries,
)

logger = logging.getLogger(__name__)

TABLES: dict[str, RuleTable] = {
    "deepseek_v3": deepseek_v3.TABLE,
    "gpt_oss": gpt_oss.TABLE,
    "qwen3": qwen3.TABLE,
}
MACMOE = "macmoe"  # the layout of one's own
SMALL_FORM = " (`--quantize 8bit` gives a small form)"
FP8_NAN = 0x7F  # without the sign


class Conversion:
    """A source folder under macmoe's names; a `macmoe.checkpoint.WeightSource`.

    Attributes:
        folder: The source folder.
        layout: What kind of folder it is: "hub", "original", "mlx" or "macmoe".
        config: config.json of the result; `quantization` lists every packed matrix.
        steps: Which of the source's tensors become which parameters.
        parameters: The parameters of the model, as they will be stored.
        infos: Types and shapes of the resulting tensors, by name.
        learned: Scales and biases that were learned, by name.
        copies: Tensors that should be copies of others, and whether they are.
    """

    def __init__(
        self,
        folder: Path,
        recipe: str = KEEP,
        packings: Mapping[str, Quantization] | None = None,
        learned: Mapping[str, mx.array] | None = None,
        *,
        allow_unknown_keys: bool = False,
    ) -> None:
        """Open a folder and check that it maps onto a model completely.

        Args:
            folder: The source folder.
            recipe: A name of RECIPES, or a name for `packings`.
            packings: How matrices are packed, by path; instead of a recipe.
            learned: Scales and biases that were learned, by name; they go before what packing gives.
            allow_unknown_keys: Warn of unknown keys in config.json instead of refusing them.

        Raises:
            UsageError: There is no such recipe.
            ConfigError: config.json is missing, invalid or describes an unsupported model.
            CheckpointError: The weights are missing or damaged.
            ConversionError: Tensors and model do not fit together.
        """
        packs = recipe if learned is None else LEARNED.get(recipe, "")
        if packings is None and packs not in RECIPES:
            raise UsageError(f"no recipe '{recipe}'; there are {', '.join(RECIPES)}")
        self.learned = dict(learned or {})
        self._source = source = Source(folder, allow_unknown_keys=allow_unknown_keys)
        self.folder, self.layout = source.folder, source.layout
        where = str(self.folder / "config.json")
        family = family_of(source.config, where)
        self._family, table = family.name, TABLES[family.name]
        family.build(source.config, where)  # refuses a config without sense before anything is counted
        config = settle_counts(table, source.names, source.config)
        config, self.copies = settle_copies(table, source, config)
        model = family.build(config, where)
        self._shapes: dict[str, Shape] = {name: array.shape for name, array in parameters_of(model).items()}
        self._packable = {path for path, module in model.named_modules() if type(module) in PACKED}
        self.steps = make_plan(table, source.names, self._shapes, config, str(self.folder))
        self._recipe = Recipe(
            name=recipe,
            table=RECIPES.get(packs, {}),
            paths=packings or {},
            layers=config["num_hidden_layers"],
        )
        (norm,) = next(step.sources for step in self.steps if NORM in step.targets)
        self._scale_dtype = scale_dtype(source.read(norm).weight.dtype)
        self.parameters = list(self._convert())
        self.infos = {
            name: rows.info for parameter in self.parameters for name, rows in parameter.arrays.items()
        }
        packings = {each.path: how for each in self.parameters if (how := each.tensor.packing)}
        self.config = _result_config(config, packings)
        self._warn()

    def _warn(self) -> None:
        """Say what is no copy although it should be one, and what could not be packed, and why."""
        for copy in self.copies:
            if not copy.equal:
                logger.warning(
                    "%s: %s is another matrix than %s, of which it should be a copy; it is used as it is",
                    self.folder,
                    copy.name,
                    copy.original,
                )
        remarks: dict[str, list[str]] = {}
        for parameter in self.parameters:
            if parameter.tensor.remark and not parameter.tensor.packing:
                remarks.setdefault(parameter.tensor.remark, []).append(parameter.name)
        for remark, names in remarks.items():
            hint = SMALL_FORM if remark.startswith(DECODED) else ""
            logger.warning("%s: %s%s: %s", self.folder, remark, hint, first_five(names))

    def _run(self, step: Step) -> list[Tensor]:
        """Apply one rule.

        Raises:
            ConversionError: The shapes of the sources do not fit the parameters.
        """
        inputs = [self._source.read(name) for name in step.sources]
        shapes = [self._shapes[target] for target in step.targets]
        try:
            tensors = step.rule.operation(inputs, shapes)
        except (ValueError, IndexError):
            tensors = []
        if [tensor.shape for tensor in tensors] != shapes:
            raise ConversionError(
                f"{self.folder}: {first_five(step.sources)} of shape {list(inputs[0].shape)} cannot become "
                f"{', '.join(step.targets)} of shape {', '.join(str(list(shape)) for shape in shapes)}; "
                "config.json and weights do not belong together"
            )
        return tensors

    def _finish(self, name: str, tensor: Tensor) -> Parameter:
        """Give a parameter its final form."""
        path = name.removesuffix(WEIGHT)
        if name.endswith(FLOAT32_ONLY):
            tensor = tensor.map(lambda rows: cast(rows, "F32"))
        elif path not in self._packable:
            tensor = decode(tensor, "the model computes with it unpacked")
        elif how := self._recipe(path):
            small = quantize(tensor, how, self._scale_dtype)
            if small.packing != tensor.packing:
                return Parameter(name=name, tensor=self._taught(path, small), exact=tensor)
            return Parameter(name=name, tensor=small)
        return Parameter(name=name, tensor=tensor)

    def _taught(self, path: str, tensor: Tensor) -> Tensor:
        """Give a packed matrix the scales and biases that were learned for it.

        Raises:
            ConversionError: They are of another model.
        """
        parts = dict(tensor.parts)
        for part in ("scales", "biases"):
            array = self.learned.get(f"{path}.{part}")
            if array is not None:
                if array.shape != parts[part].shape:
                    raise ConversionError(f"{self.folder}: {path}.{part} was learned for another model")
                parts[part] = held(array, parts[part].dtype)
        return replace(tensor, parts=parts)

    def _convert(self) -> Iterator[Parameter]:
        for step in self.steps:
            if step.targets:
                for target, tensor in zip(step.targets, self._run(step), strict=True):
                    yield self._finish(target, tensor)

    def can_pack(self, path: str) -> bool:
        """Return whether the matrix at a path may be packed with loss."""
        return path in self._packable and allows(path)

    def asked(self, path: str) -> Quantization | None:
        """Return how the recipe wants a matrix to be packed; None: as it is."""
        return self._recipe(path) if path in self._packable else None

    def parts(self, name: str) -> tuple[str, ...]:
        """Return what the source's files hold for a tensor of `steps`: one name, or codes and scales."""
        return self._source.parts(name)

    @property
    def identity(self) -> str:
        """What tells this conversion from others: its source's files, the recipe, the version."""
        return json.dumps(self.output().identity)

    def fits(self, out: Path) -> bool:
        """Return whether the disk of `out` has room for the result, or for the rest of an unfinished one."""
        needed, free = space(self.output(), out)
        return needed <= free

    @property
    def recipe(self) -> str:
        """The name of the recipe."""
        return self._recipe.name

    @property
    def source_bytes(self) -> int:
        """Size of the source's files of weights."""
        return sum(path.stat().st_size for path in self._source.files.values())

    @property
    def weights(self) -> int:
        """Number of the model's weights."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    def tensors(self) -> Iterator[tuple[str, mx.array]]:
        """Yield the resulting tensors, weight by weight."""
        for parameter in self.parameters:
            arrays = {name: rows.array() for name, rows in parameter.arrays.items()}
            if parameter.tensor.packing == MXFP8:
                codes = arrays[f"{parameter.path}.weight"].view(mx.uint8) & FP8_NAN
                warn_of_bad_weights(parameter.name, int((codes == FP8_NAN).sum()), self.folder)
            yield from arrays.items()

    def output(self, shard_bytes: int = SHARD_BYTES, to: str = MACMOE) -> Output:
        """Return the files to write: a checkpoint folder in macmoe's layout, or in another one.

        Raises:
            UsageError: There is no such layout, or the recipe has packings that it does not have.
        """
        if to != MACMOE:
            return self._written_backwards(shard_bytes, to)
        weights = [
            {name: to_store(parameter, name, rows) for name, rows in parameter.arrays.items()}
            for parameter in self.parameters
        ]
        shards = plan_shards(weights, shard_bytes)
        marker = {
            "format_version": FORMAT_VERSION,
            "macmoe_version": __version__,
            "source": self._source.name,
            "layout": self.layout,
            "recipe": self._recipe.name,
            "source_fingerprint": self._source.fingerprint,
        }
        return Output(
            shards=shards,
            documents={INDEX: index_of(shards), "config.json": self.config},
            marker=marker,
            companions=self._source.companions,
            identity=marker | self._options(shard_bytes),
        )

    def _options(self, shard_bytes: int) -> dict[str, Any]:
        """Return what a resumed conversion must have in common with the one that was stopped."""
        learned = {name: hash_of(array) for name, array in sorted(self.learned.items())}
        return {
            "learned": hashlib.sha256(json.dumps(learned).encode()).hexdigest() if learned else "",
            "shard_bytes": shard_bytes,
            "modified": self._source.modified,
            "packings": {path: how.entry() for path, how in self._recipe.paths.items()},
        }

    def target(self, to: str) -> Target:
        """Return how another layout is written."""
        return Target(family=self._family, layout=to, table=TABLES[self._family], config=self.config)

    def written(self, to: str) -> list[Written]:
        """Return what another layout stores; what it has no such packing for is packed anew if it can be."""
        by_name = {each.name: each for each in self.parameters}

        def pack(step: Step) -> list[Tensor]:
            """Pack what cannot be transposed packed, after that."""
            first = by_name[step.sources[0]]
            if first.exact is None or first.tensor.packing is None or step.rule.inverse is None:
                return []
            how = replace(first.tensor.packing, global_scale=False)
            exact = [by_name[name].exact or by_name[name].tensor for name in step.sources]
            return [
                quantize(tensor, how, self._scale_dtype)
                for tensor in step.rule.inverse(exact, len(step.targets))
            ]

        tensors = {name: self._for_layout(each, to) for name, each in by_name.items()}
        return self.target(to).weights(tensors, pack)

    def _for_layout(self, parameter: Parameter, to: str) -> Tensor:
        tensor, exact, how = parameter.tensor, parameter.exact, parameter.tensor.packing
        if to not in WITHOUT_GLOBAL_SCALES or not (how and how.global_scale):
            return tensor
        if exact is None and self.asked(parameter.path) != how:
            return tensor  # it was packed before, and is to stay so
        return quantize(exact or decode(tensor, ""), replace(how, global_scale=False), self._scale_dtype)

    def _written_backwards(self, shard_bytes: int, to: str) -> Output:
        """Return the files of a folder in another layout."""
        if to not in ENCODERS:
            raise UsageError(f"no layout '{to}' to write; there are {', '.join((MACMOE, *ENCODERS))}")
        if to == "hub" and self._recipe.name != KEEP:
            raise UsageError(
                "the hub's layout has no packings of MLX, so nothing would stay quantized there; leave "
                "--quantize out, or write --to mlx-lm"
            )
        target = self.target(to)
        weights = self.written(to)
        shards = plan_shards([weight.tensors for weight in weights], shard_bytes)
        return Output(
            shards=shards,
            documents={INDEX: index_of(shards), "config.json": target.result_config(weights)},
            marker={},
            companions=self._source.companions,
            identity={
                "to": to,
                "recipe": self._recipe.name,
                "macmoe_version": __version__,
                "source_fingerprint": self._source.fingerprint,
                **self._options(shard_bytes),
            },
        )

    def write(
        self,
        out: Path,
        *,
        to: str = MACMOE,
        shard_bytes: int = SHARD_BYTES,
        force: bool = False,
        resume: bool = False,
        hashes: bool = True,
        progress: Progress | None = None,
    ) -> None:
        """Write the checkpoint; it gets its name when it is complete.

        Args:
            out: The folder to make.
            to: Its layout: "macmoe", "mlx-lm" or "hub".
            shard_bytes: Size of the files of weights.
            force: Replace the macmoe checkpoint at `out`, and what an unfinished conversion left.
            resume: Continue an unfinished conversion, if there is one.
            hashes: Record the SHA-256 of the files of weights in macmoe.json.
            progress: Called with the bytes written so far and in all.

        Raises:
            UsageError: `out` exists, or another process is writing it.
            CheckpointError: Scales are not numbers, or the files cannot be read or written.
        """
        output = self.output(shard_bytes, to)
        write_output(
            output,
            Path(out),
            source=self.folder,
            force=force,
            resume=resume,
            hashes=hashes,
            progress=progress,
        )


def hash_of(array: mx.array) -> str:
    """Return a hash of an array's bytes."""
    return hashlib.sha256(np.array(mx.contiguous(array).view(mx.uint8)).tobytes()).hexdigest()


def _result_config(config: Mapping[str, Any], packings: Mapping[str, Quantization]) -> dict[str, Any]:
    """Return config.json with the result's packings."""
    result = {
        key: value for key, value in config.items() if key not in ("quantization", "quantization_config")
    }
    return result | ({"quantization": quantization_entries(packings)} if packings else {})
