"""Which library of llama.cpp is used: a tested one, whose parameters lie where they are declared."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tomllib
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from converter.errors import UsageError, ValidationError
from converter.system.child import run_worker
from validation.runners import check_available, find_runner
from validation.runtimes import llamacpp_library
from validation.runtimes.llamacpp_library import (
    CONTEXT_DEFAULTS,
    TESTED,
    ContextParams,
    check_defaults,
    find_library,
    open_library,
)

ROOT = Path(__file__).parents[3]
VERSION = max(TESTED)


def install(directory: Path, version: str) -> None:
    """A package xllamacpp whose shared library is none of the tested ones."""
    (directory / "xllamacpp").mkdir()
    (directory / "xllamacpp" / "__init__.py").write_text("raise AssertionError('imported')")
    (directory / "xllamacpp" / "xllamacpp.abi3.so").write_bytes(b"another build")
    information = directory / f"xllamacpp-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: xllamacpp\nVersion: {version}\n")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory from which packages are taken before all others; llama-cpp-python is not installed."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "xllamacpp", raising=False)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    return tmp_path


def test_the_tested_prebuilt_library_comes_first() -> None:
    installed = find_library()
    assert (installed.package, installed.version) == ("xllamacpp", VERSION)
    assert open_library().version.endswith(f"), xllamacpp {VERSION}")


def test_the_extra_installs_a_tested_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pinned = project["optional-dependencies"]["llamacpp"][0]
    assert pinned.split(";")[0] in {f"xllamacpp=={version}" for version in TESTED}
    assert f"xllamacpp=={VERSION}" in (ROOT / "converter/constraints.txt").read_text("utf-8").splitlines()


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("2026.1.1", "xllamacpp 2026.1.1 is not a version that was tested"),
        (VERSION, rf"xllamacpp\.abi3\.so: not the tested library of xllamacpp {VERSION} \(its SHA-256 is"),
    ],
    ids=["version", "bytes"],
)
def test_any_other_library_is_refused_before_any_work(version: str, message: str, elsewhere: Path) -> None:
    install(elsewhere, version)
    check_available(["gguf"])
    with pytest.raises(UsageError, match=message) as caught:
        find_runner("gguf").configured({})
    assert f"tested: xllamacpp {VERSION}" in str(caught.value)
    assert f"pip install --force-reinstall --no-deps xllamacpp=={VERSION}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_child_refuses_such_a_library_too(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(elsewhere, VERSION)
    (elsewhere / "sitecustomize.py").write_text("import sys; sys.modules['llama_cpp'] = None")
    monkeypatch.setenv("PYTHONPATH", f"{elsewhere}:{ROOT}")
    request = {"artifact": "absent.gguf", "sequences": [[2]], "output": "absent.npy"}
    with pytest.raises(ValidationError, match=r"on it: .*not the tested library"):
        run_worker(
            "validation.runtimes.llamacpp_model", request, lambda done, total: None, what="llama.cpp on it"
        )


def test_llama_cpp_python_serves_where_no_tested_library_is(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(elsewhere, "2026.1.1")
    module = ModuleType("llama_cpp")
    module.__spec__ = ModuleSpec("llama_cpp", None)
    monkeypatch.setitem(sys.modules, "llama_cpp", module)  # Python's own way to say: installed
    assert find_library().package == "llama-cpp-python"


def test_default_values_are_the_recorded_ones() -> None:
    library = ctypes.CDLL(str(find_library().path))
    params = check_defaults(library.llama_context_default_params, ContextParams, CONTEXT_DEFAULTS)
    assert params.n_ctx == 512  # type: ignore[attr-defined]
    with pytest.raises(ValidationError, match=r"ContextParams\.n_batch is 2048 by default, not 2049"):
        check_defaults(
            library.llama_context_default_params, ContextParams, {**CONTEXT_DEFAULTS, "n_batch": 2049}
        )


@pytest.mark.parametrize("lacking", ["since_0_6", "n_rs_seq", "n_threads", "offload_kqv"])
def test_a_structure_without_one_of_its_fields_shows_in_the_values(lacking: str) -> None:
    """``since_0_6`` came to llama.cpp between llama-cpp-python 0.3.36 and the tested build."""
    fields = [field for field in ContextParams._fields_ if field[0] != lacking]
    moved = type("Moved", (ctypes.Structure,), {"_fields_": fields})
    library = ctypes.CDLL(str(find_library().path))
    with pytest.raises(ValidationError, match=r"Moved\.\w+ is .* by default, not .* laid out as declared"):
        check_defaults(library.llama_context_default_params, moved, CONTEXT_DEFAULTS)


def test_nothing_is_imported_to_find_the_library() -> None:
    assert llamacpp_library.MODULES == ("xllamacpp", "llama_cpp")
    code = (
        "import sys; from validation.runtimes.llamacpp_library import find_library; find_library();"
        "assert 'xllamacpp' not in sys.modules and 'llama_cpp' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
