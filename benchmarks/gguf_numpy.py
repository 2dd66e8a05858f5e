"""The path without this project: every matrix through gguf-py's own NumPy Q4_0, tensor by tensor.

    python benchmarks/gguf_numpy.py CHECKPOINT OUTPUT.gguf

Reads safetensors through memory maps, quantises each matrix anew and writes a GGUF without a vocabulary: what
a converter pays that uses the library as it comes. It serves for timing only; llama.cpp cannot run the file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np


def tensors(shard: Path):
    """Names and float32 values of a safetensors file's tensors, one at a time."""
    data = np.memmap(shard, np.uint8, "r")
    header_bytes = int(data[:8].view(np.uint64)[0])
    header = json.loads(bytes(data[8 : 8 + header_bytes]))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, stop = (8 + header_bytes + offset for offset in entry["data_offsets"])
        raw = data[start:stop]
        if entry["dtype"] == "BF16":
            values = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = raw.view(np.float32)
        yield name, values.reshape(entry["shape"])


def main() -> None:
    """Quantise every matrix whose rows divide into blocks, keep the rest as float32."""
    checkpoint, output = Path(sys.argv[1]), Path(sys.argv[2])
    writer = gguf.GGUFWriter(output, "gemma4")
    q4_0 = gguf.GGMLQuantizationType.Q4_0
    for shard in sorted(checkpoint.glob("*.safetensors")):
        for name, values in tensors(shard):
            if values.ndim > 1 and values.shape[-1] % 32 == 0:
                writer.add_tensor(
                    name.removeprefix("model.language_model."),
                    gguf.quants.quantize(values, q4_0),
                    raw_dtype=q4_0,
                )
            else:
                writer.add_tensor(name.removeprefix("model.language_model."), np.atleast_1d(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
