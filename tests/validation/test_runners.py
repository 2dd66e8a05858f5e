"""What validates a target, and what to install when it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from converter.errors import UsageError
from validation.runners import check_available, find_runner, lacking, present, read_runtimes, runtime_of
from validation.runtimes import llamacpp, onnxruntime
from validation.settings import check_runtimes, read_settings


def test_every_target_has_its_runtime() -> None:
    assert find_runner("gguf") is llamacpp.runner
    assert find_runner("onnx") is onnxruntime.runner
    check_available(["gguf", "onnx"])


def test_a_provider_must_be_there_for_the_targets_that_take_one() -> None:
    check_runtimes(read_settings({"provider": "cpu"}), ["gguf", "onnx"])
    with pytest.raises(UsageError, match="provider 'rknpu' is not in this onnxruntime"):
        check_runtimes(read_settings({"provider": "rknpu"}), ["gguf", "onnx"])


@pytest.mark.parametrize("target", ["gguf", "litert"])
def test_a_provider_has_no_effect_in_runtimes_that_know_none(target: str) -> None:
    check_runtimes(
        read_settings({"provider": "cpu"}), [target]
    )  # the default, which the command line hands on
    with pytest.raises(
        UsageError, match=rf"--provider is an option of runtime .* and has no effect in {target}\."
    ):
        check_runtimes(read_settings({"provider": "cuda"}), [target])


def test_a_setting_that_no_runtime_has_is_named_with_the_one_that_may_be_meant() -> None:
    with pytest.raises(UsageError, match=r"unknown option 'providr'; did you mean 'provider'\?"):
        read_settings({"providr": "cpu"})
    with pytest.raises(UsageError, match=r"unknown option 'position'; did you mean 'positions'\?"):
        read_settings({"position": 8})


def test_a_runtime_is_chosen_by_its_registered_name() -> None:
    assert read_runtimes(["gguf.llamacpp", "onnx.onnxruntime"]) == {"gguf": "llamacpp", "onnx": "onnxruntime"}
    assert runtime_of("gguf") == runtime_of("gguf", "llamacpp") == "gguf.llamacpp"
    known = "known: gguf.llamacpp, litert.litert, onnx.onnxruntime"
    with pytest.raises(UsageError, match=rf"'gguf.onnxruntime' \(did you mean onnx.onnxruntime\?\); {known}"):
        read_runtimes(["gguf.onnxruntime"])


def test_a_chosen_runtime_has_no_effect_without_its_target() -> None:
    with pytest.raises(UsageError, match="a runtime of onnx has no effect without target onnx"):
        check_runtimes(read_settings({"runtimes": {"onnx": "onnxruntime"}}), ["gguf"])


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
        "import sys; from validation.settings import check_runtimes, read_settings;"
        "check_runtimes(read_settings({'provider': 'cpu'}), ['gguf', 'litert', 'onnx']);"
        "libraries = ('torch', 'transformers', 'xllamacpp', 'llama_cpp', 'onnx', 'onnxruntime',"
        " 'ai_edge_litert');"
        "print([name for name in libraries if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_module_within_a_package_is_looked_for_without_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_a_runtime").mkdir()
    (tmp_path / "half_a_runtime" / "__init__.py").write_text("raise ImportError")
    (tmp_path / "half_a_runtime" / "there.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = ("half_a_runtime.there", "half_a_runtime.gone", ("gone", "half_a_runtime"), ("gone", "lost"))
    assert lacking(modules) == ("half_a_runtime.gone", "gone")
    assert present(modules) == ("half_a_runtime.there", "half_a_runtime")
