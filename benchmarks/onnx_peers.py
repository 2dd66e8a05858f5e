"""Peers of the ONNX artifact, made from the same checkpoint.

    python benchmarks/onnx_peers.py float32 CHECKPOINT OUTPUT   this project's graph, every matrix in float32
    python benchmarks/onnx_peers.py rtn CHECKPOINT OUTPUT       mobius's graph, rounded to the nearest int4

mobius has no quantiser of its own; what its users run on its float32 graph is onnxruntime's
``MatMulNBitsQuantizer`` (symmetric, blocks of 32, projections and embeddings), and so does this script.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from converter.checkpoint.opened import open_checkpoint
from targets.onnx import target


def float32(checkpoint: Path, output: Path) -> None:
    """The graph of the target with all weights as the checkpoint's values in float32."""
    opened = open_checkpoint(checkpoint)
    weights = {
        name: dataclasses.replace(weight, lattice=None, codes=None) for name, weight in opened.weights.items()
    }
    plain = dataclasses.replace(opened, weights=weights)
    plan = target.plan(plain, "float32", {"off_lattice": "f32"})
    target.write(plain, plan, output)


def rounded(checkpoint: Path, output: Path) -> None:
    """mobius's float32 graph through onnxruntime's round-to-nearest quantiser."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )
    from onnxruntime.quantization.quant_utils import QuantFormat

    directory = output / "mobius"
    mobius_float32(checkpoint, directory)
    config = DefaultWeightOnlyQuantConfig(
        block_size=32,
        is_symmetric=True,
        accuracy_level=4,
        quant_format=QuantFormat.QOperator,
        op_types_to_quantize=("MatMul", "Gather"),
        quant_axes=(("MatMul", 0), ("Gather", 1)),
    )
    quantizer = MatMulNBitsQuantizer(onnx.load(directory / "model.onnx"), algo_config=config)
    quantizer.process()
    (output / "onnx").mkdir(parents=True)
    quantizer.model.save_model_to_file(str(output / "onnx" / "model.onnx"), use_external_data_format=True)


def mobius_float32(checkpoint: Path, output: Path) -> None:
    """mobius's own build of a text-only Gemma 4, with its weights, for the CPU provider."""
    import mobius
    import onnx_ir
    from mobius.models import Gemma4CausalLMModel
    from safetensors.torch import load_file
    from transformers import AutoConfig

    settings = AutoConfig.from_pretrained(checkpoint)
    # transformers' heterogeneous configuration refuses what mobius asks it
    settings.allow_global_per_layer_attribute_access = True
    settings.global_head_dim = open_checkpoint(checkpoint).architecture.layers[-1].head_dim
    config = dataclasses.replace(
        mobius.Gemma4Config.from_transformers(settings), dtype=onnx_ir.DataType.FLOAT
    )
    module = Gemma4CausalLMModel(config)
    package = mobius.build_from_module(module, config, "gemma4-text-generation", execution_provider="cpu")
    state = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        state |= load_file(shard)
    mobius.apply_weights(package["model"], module.preprocess_weights(state))
    package.save(str(output), progress_bar=False)


def main() -> None:
    """Make one peer."""
    kind, checkpoint, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    {"float32": float32, "rtn": rounded}[kind](checkpoint, output)


if __name__ == "__main__":
    main()
