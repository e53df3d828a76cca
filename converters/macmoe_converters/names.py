"""Names of tensors as rules know them, whatever the program that saved the model had wrapped around it.

A save holds the names of the modules that hold the model: `_orig_mod.` of torch.compile, `module.` of a
parallel wrapper, `base_model.model.` of PEFT; and a save of the decoder alone lacks `model.`. Wrappers that
can stand around any module are taken out wherever they are; the others only where every tensor has them.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from macmoe.errors import ConversionError
from macmoe.shards import first_five
from macmoe_converters.packing import FLOATS

# Around any module: torch.compile, checkpointed activations, FSDP. No parameter has such a name.
ANYWHERE = re.compile(r"(?<![^.])(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
# Around the whole model: DataParallel, DDP and DeepSpeed; PEFT.
OUTSIDE = ("module.", "base_model.model.")
# In a save of a model with PEFT around its matrices.
ADAPTED = re.compile(r"\.(?:base_layer|lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)\b")
MODEL = "model."
HEAD = "lm_head."
EMBEDDING = "model.embed_tokens."
# What a decoder holds, which a save of it alone has at the top; OpenAI's original has a norm there, too.
DECODER = ("embed_tokens.", "layers.")
NORM = "norm."
BLOCKS = "_blocks"  # of MXFP4, which are bytes


def _without_wrappers(names: Mapping[str, str]) -> dict[str, str]:
    """Take off what is around the whole model, however often."""
    while names:
        prefix = next((each for each in (*OUTSIDE, MODEL) if _wraps(each, names.values())), None)
        if prefix is None:
            break
        names = {name: found.removeprefix(prefix) for name, found in names.items()}
    return dict(names)


def _wraps(prefix: str, names: Iterable[str]) -> bool:
    """Return whether a prefix is around all names, and is not the model's own."""
    inner = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    own = prefix == MODEL and not any(name.startswith((MODEL, HEAD)) for name in inner)
    return len(inner) == len(list(names)) and not own


def _with_model(names: Mapping[str, str]) -> dict[str, str]:
    """Give the tensors of a decoder that was saved alone the place that they have in a model."""
    found = names.values()
    if any(name.startswith(MODEL) for name in found) or not any(name.startswith(DECODER) for name in found):
        return dict(names)
    alone = (*DECODER, NORM)
    return {name: MODEL + found if found.startswith(alone) else found for name, found in names.items()}


def _with_embedding(names: Mapping[str, str]) -> dict[str, str]:
    """Take the head for the embedding where a tied model was saved with the first name of the two only."""
    if any(found.startswith(EMBEDDING) for found in names.values()):
        return dict(names)
    return {
        name: EMBEDDING + found.removeprefix(HEAD) if found.startswith(HEAD) else found
        for name, found in names.items()
    }


def decoded_names(names: Mapping[str, str], types: Mapping[str, str]) -> dict[str, str]:
    """Call experts in floats by their own name where transformers 5 saved them as the blocks they came from.

    Args:
        names: The names that rules know, by those that are stored.
        types: The type of each tensor, by its stored name.
    """
    return {
        name: found.removesuffix(BLOCKS) if found.endswith(BLOCKS) and types[name] in FLOATS else found
        for name, found in names.items()
    }


def plain_names(names: Iterable[str], folder: Path, *, tied: bool = False) -> dict[str, str]:
    """Return the name that rules know by the name that is stored, in the same order.

    Args:
        names: The names that are stored.
        folder: What to call the source in errors.
        tied: Whether embedding and head are one matrix, which may then be stored as either.

    Raises:
        ConversionError: Some tensors have a wrapper's name and others do not, two get the same name, or some
            are those of an adapter.
    """
    names = list(names)
    if adapted := [name for name in names if ADAPTED.search(name)]:
        raise ConversionError(
            f"{folder}: {first_five(adapted)} tensors are of an adapter that is not merged into the weights; "
            "merge it (merge_and_unload of PEFT) and save again, or name model and adapter apart (--adapter)"
        )
    found = _with_model(_without_wrappers({name: ANYWHERE.sub("", name) for name in names}))
    found = _with_embedding(found) if tied else found
    mixed = [name for name, plain in found.items() if plain.startswith((*OUTSIDE, *DECODER))]
    times = Counter(found.values())
    twice = [name for name, plain in found.items() if times[plain] > 1]
    if mixed or twice:
        raise ConversionError(
            f"{folder}: {first_five(mixed or twice)} tensors are named in another way than the others, as if "
            "two saves had been mixed; which of them is meant cannot be known, so save the model again"
        )
    return found
