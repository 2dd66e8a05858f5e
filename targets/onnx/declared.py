"""The options of the ``onnx`` target, as data."""

from __future__ import annotations

from typing import Final

from targets.options import LICENSE, OFF_LATTICE, WRITTEN, Option, OptionGroup

OPTIONS: Final = OptionGroup(
    "ONNX",
    (
        OFF_LATTICE,
        Option(
            "onnx_scales",
            "Type of the scales in an ONNX model.",
            ("--onnx-scales",),
            kind="choice",
            choices=("f32", "f16"),
            default_text="f32, with --onnx-dtype float16 f16",
        ),
        Option(
            "onnx_dtype",
            "Type in which an ONNX model computes; float16 is for GPU providers.",
            ("--onnx-dtype",),
            kind="choice",
            choices=("float32", "float16"),
            default_text="float32",
        ),
        Option(
            "accuracy_level",
            "How onnxruntime multiplies by quantised weights: 0 in the activations' own type, 4 in int8. "
            "Default: both are measured, and the fastest that passes the gates is kept.",
            ("--accuracy-level",),
            kind="integer",
            least=0,
            most=4,
            commands=WRITTEN,
        ),
        Option(
            "static_activations",
            "Round activations of an ONNX model to the static grids that a mobile checkpoint was trained "
            "with, by QuantizeLinear and DequantizeLinear.",
            ("--static-activations",),
            kind="flag",
        ),
        LICENSE,
    ),
)
