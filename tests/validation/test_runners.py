"""What validates a target, and what to install when it cannot."""

from __future__ import annotations

import subprocess
import sys

import pytest

from converter.errors import UsageError
from validation.runners import check_available, check_provider, find_runner
from validation.runtimes import llamacpp, onnxruntime


def test_every_target_has_its_runtime() -> None:
    assert find_runner("gguf") is llamacpp.runner
    assert find_runner("onnx") is onnxruntime.runner
    check_available(["gguf", "onnx"])


def test_a_provider_must_be_there_for_the_targets_that_take_one() -> None:
    check_provider(["gguf"], "rknpu")
    check_provider(["gguf", "onnx"], "cpu")
    with pytest.raises(UsageError, match="provider 'rknpu' is not in this onnxruntime"):
        check_provider(["gguf", "onnx"], "rknpu")


def test_a_target_without_a_runtime_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"target 'tape' \(known: gguf, litert, onnx\); use --no-validate"):
        check_available(["gguf", "tape"])


@pytest.mark.parametrize(
    ("absent", "extras"),
    [
        (["xllamacpp", "llama_cpp"], "llamacpp"),
        (["transformers"], "reference"),
        (["torch", "xllamacpp", "llama_cpp"], "reference,llamacpp"),
        (["onnxruntime"], "onnx"),
        (["onnx", "onnxruntime", "xllamacpp", "llama_cpp"], "llamacpp,onnx"),
        (["ai_edge_litert"], "litert"),
    ],
)
def test_a_missing_extra_is_named_before_any_work(
    absent: list[str], extras: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in absent:
        monkeypatch.setitem(sys.modules, module, None)  # Python's own way to say: not installed
    with pytest.raises(UsageError) as caught:
        check_available(["gguf", "onnx", "litert"])
    assert f"pip install 'qatconvert[{extras}]'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_check_imports_no_library() -> None:
    script = (
        "import sys; from validation.runners import check_available, check_provider;"
        "targets = ['gguf', 'litert', 'onnx']; check_available(targets); check_provider(targets, 'cpu');"
        "libraries = ('torch', 'transformers', 'xllamacpp', 'llama_cpp', 'onnx', 'onnxruntime',"
        " 'ai_edge_litert');"
        "print([name for name in libraries if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
