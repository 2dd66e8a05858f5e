"""Codes and scales put into a LiteRT model by this project, and by ai-edge-quantizer, handed the same ones.

    python benchmarks/litert_quantizer.py [--matrices 24] [--size 2048] [--directory DIR]

ai-edge-quantizer takes exact codes and scales from an algorithm that is registered with it; it reads a model
with all weights as float32. Prints, for scales that bfloat16 holds and for scales that float16 alone holds,
the share of blocks whose every value is the lattice's own in the written file, seconds, and by how much
memory grew at most while each worked. Needs Linux.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.lattice import bf16_bits, bf16_floats
from converter.checkpoint.weight import EXACT, Lattice, LatticeRows, Weight

BLOCK = 32
MIB = 1 << 20


def lattice(index: int, size: int, scales: str) -> Weight:
    """A matrix of random codes; its scales have as many bits as bfloat16 or float16 has."""
    random = np.random.default_rng(index)
    codes = random.integers(-7, 8, (size, size)).astype(np.int8)
    factors = random.uniform(0.01, 0.02, (size, size // BLOCK)).astype(np.float32)
    narrow = bf16_floats(bf16_bits(factors)) if scales == "bfloat16" else factors.astype(np.float16)
    factors = narrow.astype(np.float32)

    def rows(start: int, stop: int) -> LatticeRows:
        status = np.full((stop - start, size // BLOCK), EXACT, np.uint8)
        return LatticeRows(codes[start:stop], factors[start:stop], status)

    def floats(start: int, stop: int) -> NDArray[np.float32]:
        return codes[start:stop] * np.repeat(factors[start:stop], BLOCK, axis=1)

    name = f"layers.{index}.mlp.down_proj.weight"
    return Weight(name, name, (size, size), "F32", floats, Lattice(4, BLOCK), rows)


def graph(weights: list[Weight]) -> bytes:
    """A model of one product for each weight."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from support import litert_graph

    def build(function: litert_graph.Function) -> None:
        for weight in weights:
            function.multiply(weight.name, weight.rows, weight.columns, 4)

    content: bytes = litert_graph.graph(build)
    return content


def write(path: Path, weights: list[Weight], format: str) -> None:
    """Fill the model's weights in, as this project does."""
    from targets.litert.filling import fill

    with path.open("wb") as output:
        names = {weight.name: weight for weight in weights}
        fill(graph(weights), names, dict.fromkeys(names, format), output)


def quantize(source: Path, output: Path, weights: list[Weight]) -> None:
    """Have ai-edge-quantizer put the codes and scales in; it takes known names of algorithms alone."""
    from ai_edge_quantizer import algorithm_manager, default_policy, qtyping, quantizer
    from ai_edge_quantizer.algorithms.uniform_quantize import common_quantize, naive_min_max_quantize

    known = {weight.floats(0, 1).tobytes(): weight for weight in weights}

    def parameters(operation: object, config: object, content: object = None, found: object = None) -> object:
        if content is None:
            return naive_min_max_quantize.get_tensor_quant_params(operation, config, content, found)
        weight = known[np.asarray(content)[:1].tobytes()]
        assert weight.codes is not None
        rows = weight.codes(0, weight.rows)
        zeros = np.zeros(rows.scales.shape, np.int32)
        return qtyping.UniformQuantParams(4, 1, rows.scales, zeros, True, rows.codes, BLOCK)

    name, kind = "OCTAV", qtyping.TFLOperationName.FULLY_CONNECTED
    algorithm_manager.register_op_quant_config_validation_func(
        name, common_quantize.check_op_quantization_config
    )
    algorithm_manager.register_config_check_policy_func(name, default_policy.DEFAULT_CONFIG_CHECK_POLICY)
    algorithm_manager.register_quantized_op(
        name,
        kind,
        naive_min_max_quantize.init_qsvs,
        calibration_func=naive_min_max_quantize.min_max_calibrate,
        materialize_func=functools.partial(common_quantize.materialize_fc_conv, parameters),
    )
    tensors = {"num_bits": 4, "symmetric": True, "granularity": "BLOCKWISE_32", "dtype": "INT"}
    config = {"weight_tensor_config": tensors, "compute_precision": "INTEGER", "min_weight_elements": 0}
    config |= {"explicit_dequantize": False, "skip_checks": False}
    recipe = [{"regex": ".*", "operation": kind.value, "algorithm_key": name, "op_config": config}]
    made = quantizer.Quantizer(str(source), recipe).quantize(enable_progress_report=False)
    made.export_model(str(output), overwrite=True)


def exact(path: Path, weights: list[Weight]) -> float:
    """Share of the blocks whose values are the lattice's own, as they are read back."""
    from targets.litert.reading import describe_models, open_models

    stored = describe_models(open_models(path), {weight.name: weight for weight in weights})
    same = [
        (stored[weight.name].floats(0, weight.rows) == weight.floats(0, weight.rows))
        .reshape(-1, BLOCK)
        .all(axis=1)
        for weight in weights
    ]
    return float(np.mean(same))


def memory(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process in bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return next(int(line[1]) << 10 for line in lines if line[0] == f"{field}:")


def child(kind: str, path: Path, count: int, size: int, scales: str) -> None:
    """One of the two ways, in a process of its own."""
    import ai_edge_quantizer.quantizer  # noqa: F401 (not part of what is measured)

    import targets.litert.filling  # noqa: F401

    weights = [lattice(index, size, scales) for index in range(count)]
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = memory("VmRSS"), time.perf_counter()
    if kind == "ours":
        write(path / "ours.tflite", weights, "INT4")
    else:
        quantize(path / "float.tflite", path / "theirs.tflite", weights)
    print(json.dumps({"seconds": time.perf_counter() - start, "peak": memory("VmHWM") - before}))


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--matrices", type=int, default=24)
    parser.add_argument("--size", type=int, default=2048, help="rows and columns of each (default 2048)")
    parser.add_argument("--directory", type=Path, help="where to work (default: the temporary directory)")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    count, size = arguments.matrices, arguments.size
    if arguments.child:
        kind, path, scales = arguments.child
        child(kind, Path(path), count, size, scales)
        return
    values = count * size * size
    print(f"{values / 1e6:.0f} M values")
    print(f"{'':<34}{'exact blocks':>13}{'seconds':>9}{'MiB':>7}{'bytes/value':>13}")
    with tempfile.TemporaryDirectory(dir=arguments.directory) as work:
        for scales in ("bfloat16", "float16"):
            weights = [lattice(index, size, scales) for index in range(count)]
            write(Path(work) / "float.tflite", weights, "FLOAT")
            for kind, name in (("ours", "qatconvert"), ("theirs", "ai-edge-quantizer")):
                command = [sys.executable, __file__, "--matrices", str(count), "--size", str(size)]
                command += ["--child", kind, work, scales]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found = json.loads(done.stdout.splitlines()[-1])
                share, peak = exact(Path(work) / f"{kind}.tflite", weights), found["peak"]
                print(
                    f"{scales + ' scales, ' + name:<34}{share:>13.2%}{found['seconds']:>9.1f}"
                    f"{peak / MIB:>7.0f}{peak / values:>13.2f}"
                )


if __name__ == "__main__":
    main()
