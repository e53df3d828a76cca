"""Who quantized a checkpoint, where it was not the family's publisher: named first, because all else follows.

What is read: FP8 with a scale for each block of weights (DeepSeek, Qwen3-FP8), MXFP4 (GPT-OSS), and what
mlx-lm and macmoe write.
"""

from collections.abc import Mapping
from typing import Any

READ = ("fp8", "mxfp4")
# quant_method -> its name. Others are named as they are written.
NAMES = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "eetq": "EETQ",
    "exl2": "EXL2",
    "exl3": "EXL3",
    "fbgemm_fp8": "FBGEMM FP8",
    "gptq": "GPTQ",
    "gptqmodel": "GPTQ",
    "hqq": "HQQ",
    "intel/auto-round": "AutoRound",
    "modelopt": "ModelOpt",
    "modelopt_fp4": "ModelOpt",
    "quanto": "Quanto",
    "quark": "Quark",
    "torchao": "TorchAO",
    "vptq": "VPTQ",
}
# A key that only this method writes -> the method, for files that do not name it.
SIGNS = {
    "autoround_version": "AutoRound",
    "quant_algo": "ModelOpt",
    "kv_cache_quant_algo": "ModelOpt",
    "config_groups": "compressed-tensors",
    "load_in_4bit": "bitsandbytes",
    "load_in_8bit": "bitsandbytes",
    "_load_in_4bit": "bitsandbytes",
    "_load_in_8bit": "bitsandbytes",
    "bnb_4bit_quant_type": "bitsandbytes",
    "zero_point": "AWQ",
    "w_bit": "AWQ",
    "q_group_size": "AWQ",
    "desc_act": "GPTQ",
    "damp_percent": "GPTQ",
    "checkpoint_format": "GPTQ",
    "quant_type": "TorchAO",
}
FP8_SIGNS = ("weight_block_size", "activation_scheme", "fmt")
# Files beside config.json that some methods put their settings into.
BESIDE = {
    "hf_quant_config.json": "ModelOpt",
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
}


def unsupported(settings: Any) -> str | None:
    """Return the name of the method behind a `quantization_config`; None where it can be read.

    Args:
        settings: The object, or whatever stands in its place.
    """
    if not isinstance(settings, Mapping):
        return None if not settings else f"an unknown method ({settings!r})"
    said = {key: value for key, value in settings.items() if value not in (None, "", "none")}
    method = said.get("quant_method")
    if not isinstance(method, str):
        sign = next((name for key, name in SIGNS.items() if key in said), None)
        producer = said.get("producer")
        if sign or (isinstance(producer, Mapping) and producer.get("name") == "modelopt"):
            return _with_algorithm(sign if sign != "compressed-tensors" or not producer else "ModelOpt", said)
        method = "fp8" if any(key in said for key in FP8_SIGNS) else None
    if method is None:
        return "a method without a name" if said.keys() - {"modules_to_not_convert"} else None
    if method not in READ:
        known = method.lower().removesuffix("_marlin").replace("_", "-")
        return _with_algorithm(NAMES.get(method.lower(), NAMES.get(known, repr(method))), said)
    return _per_tensor(said) if method == "fp8" else None


def _with_algorithm(name: str | None, said: Mapping[str, Any]) -> str:
    algorithm = said.get("quant_algo")
    return f"{name or 'ModelOpt'} ({algorithm})" if isinstance(algorithm, str) else name or "ModelOpt"


def _per_tensor(said: Mapping[str, Any]) -> str | None:
    if said.get("activation_scheme") == "static":
        return "static FP8 (scales for activations)"
    if said.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        return f"FP8 in the form {said['fmt']!r}"
    return None if "weight_block_size" in said else "FP8 with one scale for each tensor"


def unsupported_beside(file: str, settings: Mapping[str, Any]) -> str | None:
    """Return the name of the method whose file lies beside config.json; None if it left the weights alone.

    Args:
        file: A name of `BESIDE`.
        settings: What stands in it.
    """
    inner = settings.get("quantization")
    if file == "hf_quant_config.json" and isinstance(inner, Mapping):
        return _with_algorithm("ModelOpt", inner) if inner.get("quant_algo") else None
    return BESIDE[file]
