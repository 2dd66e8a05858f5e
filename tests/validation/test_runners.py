"""What validates a target, and what to install when it cannot."""

from __future__ import annotations

import subprocess
import sys

import pytest

from converter.errors import UsageError
from validation.llamacpp import runner
from validation.runners import check_available, find_runner


def test_gguf_runs_in_llama_cpp() -> None:
    assert find_runner("gguf") is runner
    check_available(["gguf"])


def test_a_target_without_a_runtime_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"target 'tape' \(known: gguf\); use --no-validate"):
        check_available(["gguf", "tape"])


@pytest.mark.parametrize(
    ("absent", "extras"),
    [
        (["llama_cpp"], "llamacpp"),
        (["transformers"], "reference"),
        (["torch", "llama_cpp"], "reference,llamacpp"),
    ],
)
def test_a_missing_extra_is_named_before_any_work(
    absent: list[str], extras: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in absent:
        monkeypatch.setitem(sys.modules, module, None)  # Python's own way to say: not installed
    with pytest.raises(UsageError) as caught:
        check_available(["gguf"])
    assert f"pip install 'qatconvert[{extras}]'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_check_imports_no_library() -> None:
    script = (
        "import sys; from validation.runners import check_available; check_available(['gguf']);"
        "print([name for name in ('torch', 'transformers', 'llama_cpp') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
