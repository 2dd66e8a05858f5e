"""ONNX for onnxruntime: the trained codes in ``MatMulNBits`` and ``GatherBlockQuantized``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from targets.onnx.artifact import OnnxTarget

    #: The object of the entry point ``onnx``.
    target: OnnxTarget

__all__ = ["OnnxTarget", "target"]


def __getattr__(name: str) -> object:
    """Load the target when it is asked for: what declares its options, beside it, does not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from targets.onnx.artifact import OnnxTarget

    globals().update(OnnxTarget=OnnxTarget, target=OnnxTarget())
    return globals()[name]
