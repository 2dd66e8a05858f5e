"""The options of the runtime ``onnx.onnxruntime``, as data."""

from __future__ import annotations

from typing import Final

from targets.options import VALIDATED, Option, OptionGroup

OPTIONS: Final = OptionGroup(
    "ONNX",
    (
        Option(
            "provider",
            "Execution provider of onnxruntime that runs an ONNX artifact: cpu, cuda, tensorrt, dml, coreml, "
            "openvino, qnn, webgpu, xnnpack or another that is installed.",
            ("--provider",),
            metavar="NAME",
            default="cpu",
            commands=VALIDATED,
        ),
    ),
)
