"""ONNX for onnxruntime: the trained codes in ``MatMulNBits`` and ``GatherBlockQuantized``."""

from __future__ import annotations

from targets.onnx.artifact import OnnxTarget

__all__ = ["OnnxTarget", "target"]

#: The object of the entry point ``onnx``.
target = OnnxTarget()
