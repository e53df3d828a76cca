"""`macmoe convert`: a checkpoint in any known layout becomes one in the macmoe layout, or in another."""

from __future__ import annotations

import logging
import re
import resource
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import click

from macmoe.cli.learning import open_learned
from macmoe.cli.loading import offline_option
from macmoe.cli.options import Finite, check_plot
from macmoe.cli.paths import UserPath, check_file
from macmoe.cli.quality import open_within, write_quality
from macmoe.cli.terminal import note, progress_bar, size, table
from macmoe.cli.unknown_keys import allow_unknown_keys_option, open_conversion
from macmoe.errors import UsageError
from macmoe.location import find_model
from macmoe.shards import first_five
from macmoe.tokenizer import Tokenizer
from macmoe_converters import KEEP, LEARNED, RECIPES, Conversion
from macmoe_converters.account import Account
from macmoe_converters.conversion import MACMOE
from macmoe_converters.remarks import remarks
from macmoe_converters.sink import SHARD_BYTES, Output, check_target, free_bytes
from macmoe_converters.targets import ENCODERS
from macmoe_converters.verify import is_made_so, verify

logger = logging.getLogger(__name__)

LAYOUTS = (MACMOE, *ENCODERS)
UNITS = {"": 1, "K": 1_000, "M": 1_000_000, "G": 1_000_000_000, "T": 1_000_000_000_000}


class Bytes(click.ParamType):
    """A number of bytes, such as 5GB, 500MB or 1.5G; units are powers of 1000, as file sizes on the hub."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number; an integer is one already."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)B?", str(value), re.IGNORECASE)
        if found is None or not (number := int(float(found[1]) * UNITS[found[2].upper()])):
            self.fail(f"{value!r} is no size such as 5GB or 500MB", param, ctx)
        return number


FILE = UserPath()


def _check_out(_: click.Context, __: click.Parameter, out: Path | None) -> Path | None:
    if out is not None and out.name in ("", ".."):
        raise UsageError(f"{out}: is no name of a new folder; the result needs one")
    return out


@click.command()
@offline_option
@click.argument("source")
@click.option("--out", type=FILE, callback=_check_out, help="Folder to create.")
@click.option(
    "--quantize",
    "recipe",
    type=click.Choice([*RECIPES, *LEARNED]),
    default=KEEP,
    show_default=True,
    help="Quantization recipe; what is quantized already stays so unless the recipe is smaller.",
)
@click.option(
    "--to", type=click.Choice(LAYOUTS), default=MACMOE, show_default=True, help="Layout of the output."
)
@click.option(
    "--bits-per-weight",
    "budget",
    type=Finite(min=0, min_open=True),
    metavar="BITS",
    help="Instead of a recipe: an average number of bits, spent where the model needs them most.",
)
@click.option(
    "--calibration",
    type=UserPath(exists=True, dir_okay=False),
    help="Calibration text for --bits-per-weight and dwq4; by default the model writes its own.",
)
@click.option(
    "--report", "report_file", type=FILE, callback=check_file, help="Write errors to this JSON file."
)
@click.option("--plot", type=FILE, callback=check_plot, help="Draw error and bits of each layer (PNG, PDF).")
@click.option(
    "--shard-size",
    type=Bytes(),
    default=f"{SHARD_BYTES // UNITS['G']}GB",
    show_default=True,
    help="Largest size of a weights file.",
)
@click.option("--hashes/--no-hashes", default=True, help="Record the SHA-256 of each file in macmoe.json.")
@click.option("--resume", is_flag=True, help="Continue where an earlier run was stopped.")
@click.option("--verify", "proves", is_flag=True, help="Read source and output again and prove every tensor.")
@click.option("--force", is_flag=True, help="Replace an existing folder or an unfinished conversion.")
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be written.")
@allow_unknown_keys_option
def command(
    *,
    source: str,
    out: Path | None,
    recipe: str,
    to: str,
    budget: float | None,
    calibration: Path | None,
    report_file: Path | None,
    plot: Path | None,
    shard_size: int,
    hashes: bool,
    resume: bool,
    proves: bool,
    force: bool,
    dry_run: bool,
) -> None:
    """Convert a checkpoint to the macmoe layout.

    SOURCE is a folder in the layout of the hub, of mlx-lm or of macmoe, or a hub id. The result appears under
    its name when it is complete. What was stopped, by Ctrl-C, a kill or a full disk, is continued by the same
    command with --resume. With --verify, a folder that this command made before is only verified.
    """
    _refuse(
        {
            "Missing option '--out' (or '--dry-run').": out is None and not dry_run,
            "Give either --quantize or --bits-per-weight.": budget is not None and recipe != KEEP,
            "--calibration is for --bits-per-weight and dwq4 only.": calibration is not None
            and budget is None
            and recipe not in LEARNED,
        }
    )
    begin = time.monotonic()
    folder = find_model(source)
    _check_target(None if dry_run else out, folder, continues=resume or proves, force=force)
    if recipe in LEARNED and out and not dry_run:
        conversion = open_learned(folder, recipe, calibration, out, resume=resume, force=force)
    else:
        conversion = _open(folder, recipe, budget, calibration)
    if conversion.layout == to == MACMOE and conversion.recipe == KEEP:
        raise UsageError(
            f"{source}: is a macmoe checkpoint already; use it as it is, or pack it smaller with --quantize"
        )
    output = conversion.output(shard_size, to)
    _check_tokenizer(output)
    if out is None or dry_run:
        _say_remarks(conversion, to)
        click.echo(summary(conversion, output, free_bytes(out or Path.cwd() / "out")))
        return
    if not (proves and is_made_so(output, out, to, force=force)):
        _say_remarks(conversion, to)
        _write(
            out,
            partial(
                conversion.write,
                to=to,
                shard_bytes=shard_size,
                hashes=hashes,
                resume=resume,
                force=force,
            ),
        )
        note(f"{out}: {report(conversion, output, time.monotonic() - begin)}")
    if proves:
        _prove(conversion, out, to)
    if report_file or plot:
        click.echo(write_quality(conversion, report_file, plot))


def _refuse(mistakes: Mapping[str, bool]) -> None:
    for message, made in mistakes.items():
        if made:
            raise click.UsageError(message)


def _open(folder: Path, recipe: str, budget: float | None, calibration: Path | None) -> Conversion:
    if budget:
        return open_within(folder, budget, calibration)
    return open_conversion(folder, recipe=LEARNED.get(recipe, recipe))  # what is learned changes no size


def _say_remarks(conversion: Conversion, to: str) -> None:
    for line in remarks(conversion, to):
        note(f"{conversion.folder}: {line}")


def _check_target(out: Path | None, folder: Path, *, continues: bool, force: bool) -> None:
    """Refuse an output that exists before anything is measured; what such a run made can be gone on with."""
    if out and not (continues and (out / "config.json").is_file()):
        check_target(out, folder, force=force)


def _check_tokenizer(output: Output) -> None:
    """Warn of a checkpoint without a tokenizer.

    Raises:
        CheckpointError: It has one that is damaged.
    """
    folder = next((each for each in output.companions if (each / "tokenizer.json").is_file()), None)
    if folder is None:
        logger.warning("%s: no tokenizer.json, without which it answers nothing", output.companions[0])
    else:
        Tokenizer.from_folder(folder)


def _prove(conversion: Conversion, out: Path, to: str) -> None:
    with progress_bar("verifying", in_bytes=True) as progress:
        proof = verify(conversion, out, progress, to=to)
    note(f"{out}: {describe(proof.account)}")


def describe(account: Account) -> str:
    """Say in one line what became of all tensors of a source."""
    copies = [f"{name} of {original}" for name, original in account.copies.items()]
    parts = [
        f"{len(account.equal):,} equal" if account.equal else "",
        f"{len(account.within):,} as close as their packing allows" if account.within else "",
        f"equal copies of others: {first_five(copies)}" if copies else "",
        *(f"left out, because {reason}: {first_five(names)}" for reason, names in account.reasons.items()),
    ]
    return f"{account.total:,} source tensors: {'; '.join(filter(None, parts))}"


def _write(out: Path, write: Callable[..., None]) -> None:
    """Write with a bar; Ctrl-C says how to continue."""
    try:
        with progress_bar("converting", in_bytes=True) as progress:
            write(out, progress=progress)
    except KeyboardInterrupt:
        note(f"{out}: stopped; the same command with --resume continues")
        raise


def stored_bytes(output: Output) -> Counter[str]:
    """Return the bytes of all tensors, by their type."""
    stored: Counter[str] = Counter()
    for shard in output.shards:
        for tensor in shard.tensors.values():
            stored[tensor.rows.dtype] += tensor.rows.info.nbytes
    return stored


def bits_per_weight(conversion: Conversion, output: Output) -> float:
    """Return the stored bits per weight, scales included."""
    return 8 * stored_bytes(output).total() / conversion.weights


def count_of_tensors(output: Output) -> int:
    """Return how many tensors there are in all files."""
    return sum(len(shard.tensors) for shard in output.shards)


def peak_memory() -> int:
    """Return the most memory that this process has held, in bytes."""
    status = Path("/proc/self/status")  # Linux, whose getrusage counts what the parent held before exec, too
    if status.exists():
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def report(conversion: Conversion, output: Output, seconds: float) -> str:
    """Say in one line what a conversion did."""
    stored, bits = size(stored_bytes(output).total()), bits_per_weight(conversion, output)
    return (
        f"{count_of_tensors(output):,} tensors, {size(conversion.source_bytes)} in, "
        f"{stored} out, {bits:.2f} bits per weight, "
        f"peak memory {size(peak_memory())}, {seconds:.1f} s"
    )


def summary(conversion: Conversion, output: Output, free: int) -> str:
    """Describe what a conversion reads and would write to a disk with so many free bytes."""
    stored = stored_bytes(output)
    packings: Mapping[str, object] = output.documents["config.json"].get("quantization", {})
    packed = Counter(f"{how['mode']} {how['bits']} bit" for how in packings.values() if isinstance(how, dict))
    rows = [
        ("model type", str(conversion.config["model_type"])),
        ("layout", conversion.layout),
        ("read", size(conversion.source_bytes)),
        ("tensors", f"{count_of_tensors(output):,}"),
        ("files", f"{len(output.shards):,}"),
        ("stored", size(stored.total())),
        *((f"  {dtype}", size(count)) for dtype, count in sorted(stored.items())),
        *((f"matrices in {how}", f"{count:,}") for how, count in sorted(packed.items())),
        ("bits per weight", f"{bits_per_weight(conversion, output):.2f}"),
        ("memory, about", size(output.peak_memory)),
        ("free on the disk", size(free) + ("" if output.nbytes < free else ": too little")),
    ]
    return table(rows)
