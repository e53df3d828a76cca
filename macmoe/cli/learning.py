"""Recipes of `macmoe convert` whose scales are learned from a text, with mlx-lm's DWQ."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from macmoe.checkpoint import MARKER, is_macmoe_folder, load_weights
from macmoe.cli.quality import own_words
from macmoe.cli.terminal import note, progress_bar, size
from macmoe.cli.unknown_keys import open_conversion, unknown_keys_allowed
from macmoe.config import load_json
from macmoe.errors import MemoryLimitError, UsageError
from macmoe.families import family_of
from macmoe.files import refuse_pointer
from macmoe.session import Session, load_folder
from macmoe.shards import Shards
from macmoe.tuning.plan import memory_limit
from macmoe_converters import LEARNED, Conversion
from macmoe_converters.draft import draft_folder
from macmoe_converters.learned import BATCH, learn
from macmoe_converters.sink import check_target

if TYPE_CHECKING:
    from pathlib import Path

PASSAGE = 256  # tokens
COPIES = 5  # of scales in float32: values, gradients, two moments, and the next values
KEPT = "learned.safetensors"  # in the draft of the output, until that is complete


def open_learned(
    folder: Path, recipe: str, text: Path | None, out: Path, *, resume: bool, force: bool
) -> Conversion:
    """Open a conversion whose scales are learned; what was learned before it was stopped is used again.

    Args:
        folder: The source.
        recipe: A name of LEARNED.
        text: What to learn from, a text or JSON lines with a "text"; None: what the model writes itself.
        out: The folder to make; if it was made before, the scales are taken from it.
        resume: Whether an earlier run may be continued.
        force: Whether the output may be replaced.

    Raises:
        UsageError: mlx-lm is missing, the text is none, or the output exists.
        MemoryLimitError: Model and packed model do not fit into memory together.
    """
    packed = open_conversion(folder, recipe=LEARNED[recipe])
    identity = _identity(packed, text)
    kept = draft_folder(out) / KEPT
    if is_macmoe_folder(out) and load_json(out / MARKER).get("recipe") == recipe and not force:
        shards = Shards(out)
        names = [name for name in shards.tensors if name.endswith((".scales", ".biases"))]
        learned = {name: shards.read(name) for name in names}
    elif resume and (found := _kept(kept, identity)) is not None:
        learned = found
    else:
        check_target(out, folder, force=force)
        learned = _learn(folder, packed, text)
        kept.parent.mkdir(parents=True, exist_ok=True)
        mx.save_safetensors(str(kept), {**learned, "end": mx.zeros(1)}, {"identity": identity})
    return open_conversion(folder, recipe=recipe, learned=learned)


def _identity(packed: Conversion, text: Path | None) -> str:
    content = text.read_bytes() if text else b""
    return hashlib.sha256(packed.identity.encode() + content).hexdigest()


def _kept(path: Path, identity: str) -> dict[str, mx.array] | None:
    """Return what an earlier run learned from the same model and text."""
    if not path.exists():
        return None
    try:
        loaded: Any = mx.load(str(path), return_metadata=True)
    except (RuntimeError, ValueError):  # a power cut left a part of it
        return None
    arrays, metadata = loaded
    known = metadata.get("identity") == identity and arrays.pop("end", None) is not None
    return arrays if known else None


def _learn(folder: Path, packed: Conversion, text: Path | None) -> dict[str, mx.array]:
    _check_memory(packed)
    session = load_folder(folder, allow_unknown_keys=unknown_keys_allowed())
    passages = _passages(session, text) if text else [each.tokens for each in own_words(session)]
    student = family_of(packed.config).build(packed.config)
    load_weights(student, packed)
    with progress_bar("learning") as progress:
        learned = learn(session.model, student, passages, progress)
    note(f"{folder}: learned from {len(passages):,} passages, {sum(map(len, passages)):,} tokens")
    return learned


def _check_memory(packed: Conversion) -> None:
    weights = sum(info.nbytes for info in packed.infos.values())
    scales = sum(info.nbytes for name, info in packed.infos.items() if name.endswith((".scales", ".biases")))
    logits = BATCH * PASSAGE * packed.config["vocab_size"] * 4 * 4
    needed, limit = packed.source_bytes + weights + 2 * COPIES * scales + logits, memory_limit()
    if needed > limit:
        raise MemoryLimitError(
            f"{packed.folder}: learning holds the model and its packed form, about {size(needed)}, and "
            f"{size(limit)} can be used; take --quantize {LEARNED['dwq4']}, or a machine with more memory"
        )


def _passages(session: Session, path: Path) -> list[list[int]]:
    """Cut a text into passages."""
    refuse_pointer(path, UsageError)
    try:
        content = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            content = "\n".join(json.loads(line)["text"] for line in content.splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a text ({error})") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise UsageError(f'{path}: each line has to be an object with a "text"') from None
    tokens = session.tokenizer.encode(content)
    found = [tokens[begin : begin + PASSAGE] for begin in range(0, len(tokens), PASSAGE)]
    passages = [passage for passage in found if len(passage) > 1]
    if not passages:
        raise UsageError(f"{path}: is empty; a calibration text needs words")
    return passages
