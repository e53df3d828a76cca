"""Proof of a written checkpoint: source and output are read again and compared, slice by slice."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from macmoe.checkpoint import MARKER, is_macmoe_folder
from macmoe.config import Quantization, load_json
from macmoe.errors import CheckpointError, UsageError
from macmoe.shards import Shards
from macmoe_converters.account import Account, take_account
from macmoe_converters.conversion import MACMOE, Conversion
from macmoe_converters.draft import draft_folder
from macmoe_converters.packing import Tensor, decode, packed
from macmoe_converters.rows import Array, Rows, cast, stored
from macmoe_converters.sink import Output, Progress, is_finished

# Largest root mean square error of a group, as a share of its largest weight: half the distance of two codes,
# or what a scale that was rounded downwards cuts off.
FLOAT_BOUNDS = {"mxfp4": 0.3, "nvfp4": 0.3, "mxfp8": 0.3}
SCALE_ROUNDING = 2.0**-8  # of affine scales and biases, which may be bfloat16
CONFIG = "config.json"
# What macmoe.json says of how a folder was made -> what to do where it is something else.
MADE_WITH = {
    "recipe": "verify with the options that it was made with, or choose another folder",
    "source": "name the source that it was made of, or choose another folder",
}
UNDERFLOW = 2.0**-16  # of the largest weight around: NVFP4's scales end there


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was compared.

    Attributes:
        equal: Weights of the output that are equal bit for bit.
        within: Those within their packing's error.
        account: What became of every tensor of the source.
    """

    equal: int
    within: int
    account: Account


def bound(how: Quantization, groups: Array) -> Array:
    """Return the largest permissible root mean square error of each group [..., group_size].

    An affine group of b bits is spanned by 2^b equal steps: rounding loses at most half of one, and fitting
    scale and bias only lowers the sum of squares.
    """
    largest = np.abs(groups).max(axis=-1)
    if how.mode == "affine":
        steps = np.ptp(groups, axis=-1) / (2**how.bits - 1)
        return steps / 2 + largest * SCALE_ROUNDING
    return largest * FLOAT_BOUNDS[how.mode] + np.abs(groups).max(initial=0) * UNDERFLOW


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a written folder has to hold of one weight.

    Attributes:
        name: Its name there.
        arrays: What is stored for it, by name.
        weight: What that stands for.
        exact: What it has to be close to; None if it has to be equal, as what was learned has to be.
        parameters: The parameters that it is made of.
    """

    name: str
    arrays: Mapping[str, Rows]
    weight: Tensor
    exact: Tensor | None
    parameters: tuple[str, ...]


def claims(conversion: Conversion, to: str = MACMOE) -> Iterator[Claim]:
    """Yield what a folder that a conversion wrote has to hold, weight by weight."""
    if to == MACMOE:
        for each in conversion.parameters:
            exact = None if conversion.learned else each.exact
            yield Claim(
                name=each.name,
                arrays=each.arrays,
                weight=each.tensor,
                exact=exact,
                parameters=(each.name,),
            )
        return
    written = conversion.written(to)
    before = conversion.target(to).weights(
        {each.name: each.exact or each.tensor for each in conversion.parameters}
    )
    for each, other in zip(written, before, strict=True):
        lossy = each.packing not in (None, other.packing) and not conversion.learned
        yield Claim(
            name=each.name,
            arrays={name: stored.rows for name, stored in each.tensors.items()},
            weight=each.weight,
            exact=other.weight if lossy else None,
            parameters=each.parameters,
        )


def is_made_so(output: Output, out: Path, to: str, *, force: bool = False) -> bool:
    """Return whether there is a folder to verify, which such a conversion made.

    Args:
        output: What the conversion makes.
        out: The folder.
        to: Its layout.
        force: Whether it may be replaced if it was made in another way.

    Raises:
        UsageError: It was made in another way, which it says.
    """
    if is_finished(output, out):
        return True
    if force or not (out / CONFIG).is_file() or draft_folder(out).exists():
        return False
    if is_macmoe_folder(out) != (to == MACMOE):
        raise UsageError(f"{out}: is not in the layout of {to}; verify with the --to that it was made with")
    found = load_json(out / MARKER) if output.marker else {}
    for key, remedy in MADE_WITH.items():
        if output.marker and found.get(key) != output.marker[key]:
            raise UsageError(f"{out}: made with {found.get(key)}, not {output.marker[key]}; {remedy}")
    same_source = found.get("source_fingerprint") == output.marker.get("source_fingerprint")
    if output.marker and same_source:
        return True  # by another version: the proof will tell
    raise UsageError(
        f"{out}: made with other options or of another source than this command names; repeat those that it "
        "was made with, or choose another folder"
    )


class Verifier:
    """Compares a written folder, in a layout, with the conversion that made it."""

    def __init__(self, conversion: Conversion, out: Path, to: str) -> None:
        self._conversion, self._out, self._to = conversion, out, to
        self._output, self._claims = conversion.output(to=to), list(claims(conversion, to))
        self._shards = Shards(out)

    def _fail(self, name: str, why: str) -> CheckpointError:
        return CheckpointError(f"{self._out}: tensor {name} {why}; convert again with --force")

    def _equal(self, name: str, rows: Rows) -> None:
        begin = 0
        for size, read in rows.pieces():
            expected = np.ascontiguousarray(read()).reshape(-1).view(np.uint8)
            if not np.array_equal(expected, self._shards.read_bytes(name, begin, begin + size)):
                raise self._fail(name, f"differs from its source in bytes {begin} to {begin + size}")
            begin += size

    def _within(self, claim: Claim, exact: Tensor) -> None:
        how = claim.weight.packing
        assert how is not None
        names = zip(claim.weight.parts, claim.arrays, strict=True)
        parts = {part: stored(self._shards, name) for part, name in names}
        source, found = (cast(decode(each, "").weight, "F32") for each in (exact, packed(parts, how)))
        for begin, end in source.slices():
            groups, values = (rows.read(begin, end).reshape(-1, how.group_size) for rows in (source, found))
            error = np.sqrt(np.square(groups - values).mean(axis=-1))
            if not np.all(error <= bound(how, groups)):
                raise self._fail(claim.name, f"is further from its source than {how.mode} may be")

    def run(self, progress: Progress | None = None) -> Proof:
        """Compare everything.

        Raises:
            CheckpointError: A tensor, a type, a shape, a hash or the config is not what it has to be.
        """
        arrays = {name: rows.info for claim in self._claims for name, rows in claim.arrays.items()}
        config = json.loads(json.dumps(self._output.documents[CONFIG]))
        if self._shards.tensors != arrays or load_json(self._out / CONFIG) != config:
            raise CheckpointError(
                f"{self._out}: was not made of {self._conversion.folder} with this recipe; check both"
            )
        self._check_hashes()
        done = 0
        total = sum(info.nbytes for info in arrays.values())
        for claim in self._claims:
            if claim.exact is None:
                for name, rows in claim.arrays.items():
                    self._equal(name, rows)
            else:
                self._within(claim, claim.exact)
            done += sum(rows.info.nbytes for rows in claim.arrays.values())
            if progress:
                progress(done, total)
        within = [claim for claim in self._claims if claim.exact is not None]
        return Proof(
            equal=len(self._claims) - len(within),
            within=len(within),
            account=take_account(
                self._conversion,
                proven={name for claim in self._claims for name in claim.parameters},
                lossy={name for claim in within for name in claim.parameters},
                to=self._to,
            ),
        )

    def _check_hashes(self) -> None:
        marker = load_json(self._out / MARKER) if self._output.marker else {}
        for name, expected in marker.get("sha256", {}).items():
            with (self._out / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    raise CheckpointError(
                        f"{self._out / name}: its SHA-256 is not that of {MARKER}; convert again with --force"
                    )


def verify(conversion: Conversion, out: Path, progress: Progress | None = None, *, to: str = MACMOE) -> Proof:
    """Read source and output again; prove that bits are equal, or errors as small as their packing allows.

    Args:
        conversion: The conversion.
        out: What it wrote.
        progress: Called with the bytes compared so far and in all.
        to: The layout of `out`.

    Raises:
        CheckpointError: The output is not the conversion of the source.
    """
    return Verifier(conversion, Path(out), to).run(progress)
