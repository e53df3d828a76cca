"""Measure whether a folder of mlx-lm loads as fast where it lies as its conversion does.

    python tests/bench/in_place.py [RUNS] [LAYERS]

The folder has Qwen3-30B-A3B's shapes in 4 bits and fewer layers (3 GB with 8 of them); gate and up of its
experts are joined while it is loaded. Each run is a process of its own, the two folders take turns, and files
are in the page cache.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx

from macmoe.inspection import published_config
from macmoe_converters import open_conversion

MODEL = "qwen3-30b-a3b"
GROUP, BITS = 64, 4
RUN = """
import sys, time
from pathlib import Path
from macmoe.session import load_model
begin = time.perf_counter()
load_model(Path(sys.argv[1]), "bfloat16")
print(time.perf_counter() - begin)
"""


def packed(name: str, *shape: int) -> dict[str, mx.array]:
    """Draw a packed matrix."""
    *rows, width = shape
    codes = mx.random.randint(0, 2**31 - 1, (*rows, width * BITS // 32)).astype(mx.uint32)
    scales = mx.random.normal((*rows, width // GROUP)).astype(mx.bfloat16)
    return {f"{name}.weight": codes, f"{name}.scales": scales, f"{name}.biases": scales}


def layer(prefix: str, config: dict[str, int]) -> dict[str, mx.array]:
    """Draw a layer."""
    dim, head = config["hidden_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    experts, hidden = config["num_experts"], config["moe_intermediate_size"]
    matrices: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (heads, dim),
        "self_attn.k_proj": (kv_heads, dim),
        "self_attn.v_proj": (kv_heads, dim),
        "self_attn.o_proj": (dim, heads),
        "mlp.gate": (experts, dim),
        "mlp.switch_mlp.gate_proj": (experts, hidden, dim),
        "mlp.switch_mlp.up_proj": (experts, hidden, dim),
        "mlp.switch_mlp.down_proj": (experts, dim, hidden),
    }
    norms = {"input_layernorm": dim, "post_attention_layernorm": dim}
    norms |= {"self_attn.q_norm": head, "self_attn.k_norm": head}
    arrays = {f"{prefix}{name}.weight": mx.ones(width, mx.bfloat16) for name, width in norms.items()}
    for name, shape in matrices.items():
        arrays |= packed(prefix + name, *shape)
    return arrays


def write(folder: Path, layers: int) -> None:
    """Write the folder."""
    config = published_config(MODEL)
    assert config is not None
    config |= {"num_hidden_layers": layers, "quantization": {"group_size": GROUP, "bits": BITS}}
    frame = (config["vocab_size"], config["hidden_size"])
    arrays = packed("model.embed_tokens", *frame) | packed("lm_head", *frame)
    arrays["model.norm.weight"] = mx.ones(config["hidden_size"], mx.bfloat16)
    for i in range(layers):
        arrays |= layer(f"model.layers.{i}.", config)
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))


def seconds(folder: Path) -> float:
    """Load a folder in a process of its own."""
    command = [sys.executable, "-c", RUN, str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Make the folders, measure, print."""
    runs, layers = (int(value) for value in (*sys.argv[1:], *("5", "8")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as place:
        lies, converted = Path(place) / "mlx", Path(place) / "converted"
        write(lies, layers)
        open_conversion(lies).write(converted, hashes=False)
        pairs = [(seconds(lies), seconds(converted)) for _ in range(runs)]
    print(f"{mx.default_device()}, {layers} layers of {MODEL} in {BITS} bits")
    for label, times in zip(("where it lies", "converted"), zip(*pairs, strict=True), strict=True):
        print(f"{label}: {statistics.median(times):.2f} s ({', '.join(f'{each:.2f}' for each in times)})")


if __name__ == "__main__":
    main()
