"""Measure what finding a converted model costs, for a checkpoint as large as DeepSeek-V3 that holds nothing.

    python tests/bench/finding.py [RUNS]

The source has the published names and shapes, 163 files with 91,991 tensors (codes and scales), all of them
holes of sparse files; its conversion is a folder that only says that it is one. Each run is a process of its
own; the seconds are of the CPU. "twice" is what `lora train` does: plan, then load.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from make_checkpoint import CONFIGS, ITEM_BYTES, Spec, deepseek_v3

from macmoe.converted import key_of

SHARDS = 163
RUN = """
import time
from pathlib import Path
from macmoe.opening import prepare
begin = time.process_time()
for _ in range({times}):
    found = prepare({folder!r})
print(time.process_time() - begin, found.folder)
"""


def write_sparse(folder: Path) -> int:
    """Write headers of all tensors, each file as long as its data would make it; return their number."""
    config = json.loads((CONFIGS / "deepseek-v3.json").read_text())
    specs = list(deepseek_v3(config))
    folder.mkdir(parents=True)
    names = [f"model-{i + 1:05}-of-{SHARDS:06}.safetensors" for i in range(SHARDS)]
    each = -(-len(specs) // SHARDS)
    where = {}
    for i, name in enumerate(names):
        shard = specs[i * each : (i + 1) * each]
        _write(folder / name, shard)
        where |= {spec[0]: name for spec in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text(json.dumps(config))
    return len(specs)


def _write(path: Path, specs: list[Spec]) -> None:
    header, position = {}, 0
    for name, dtype, shape in specs:
        size = ITEM_BYTES[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)


def main() -> None:
    """Make the folders, measure, print."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as place:
        source, cache = Path(place) / "DeepSeek-V3", Path(place) / "cache"
        count = write_sparse(source)
        os.environ["MACMOE_CACHE"] = str(cache)
        made = cache / str(key_of(source, "keep"))
        made.mkdir(parents=True)
        (made / "macmoe.json").write_text('{"format_version": 1}')
        print(f"{count:,} tensors in {SHARDS} files, {source}")
        for label, times in (("once", 1), ("twice", 2)):
            code = RUN.format(times=times, folder=str(source))
            outputs = [
                subprocess.run(
                    [sys.executable, "-c", code], check=True, capture_output=True, text=True
                ).stdout
                for _ in range(runs)
            ]
            assert all(Path(output.split()[1]) == made for output in outputs)
            seconds = [float(output.split()[0]) for output in outputs]
            middle, low, high = statistics.median(seconds), min(seconds), max(seconds)
            print(f"{label}: {middle:.3f} s of CPU ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
