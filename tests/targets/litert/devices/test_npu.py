"""Bundles compiled for neural processors, as far as it goes without a vendor's SDK.

The vendors' compilers are not to be had here. Where one is needed, a program takes its place that is called
as ai-edge-litert calls its own and leaves the model as it is.
"""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest

pytest.importorskip("litert_torch")
from converter.checkpoint.opened import open_checkpoint
from converter.errors import CheckpointError, DestinationError, TargetError, UsageError
from support.litert_graph import graph
from targets.litert.bundle import Section, find_section, read_section, read_sections, write_bundle
from targets.litert.devices.npu import (
    SDKS,
    Npu,
    check_installed,
    compile_bundle,
    known_socs,
    parse,
    parse_all,
)
from targets.litert.metadata import metadata_sections
from targets.litert.sections import EMBEDDER, PREFILL_DECODE

#: Takes the options of ``apply_plugin_main``; what it is to do is in a file beside it.
COMPILER = """#!{python}
import json, pathlib, sys
options = dict(one.lstrip("-").partition("=")[::2] for one in sys.argv[1:])
here = pathlib.Path(__file__).parent
with open(here / "calls", "a") as calls:
    calls.write(json.dumps(options) + "\\n")
content = pathlib.Path(options["model"]).read_bytes()
pathlib.Path(options["o"]).write_bytes(content + (here / "added").read_bytes())
"""


@pytest.fixture(scope="module")
def bundle(demo_checkpoint, tmp_path_factory) -> Path:
    """A bundle with the demo's metadata and two small models."""
    path = tmp_path_factory.mktemp("bundle") / "model.litertlm"
    model = graph(lambda f: f.multiply("layers.0.mlp.down_proj.weight", 32, 32, 4))
    sections = [
        *metadata_sections(open_checkpoint(demo_checkpoint), 128),
        Section("TFLiteModel", model, PREFILL_DECODE),
        Section("TFLiteModel", b"embedder, which no processor computes", EMBEDDER),
    ]
    write_bundle(path, sections)
    return path


@pytest.fixture
def sdks(tmp_path, monkeypatch) -> Path:
    """A directory of packages that are installed beside the rest: the vendors' SDKs, without libraries."""
    packages = tmp_path / "packages"
    for name in SDKS.values():
        package = packages / name.replace("-", "_")
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(
            "import pathlib\n\ndef path_to_sdk_libs(*version):\n    return pathlib.Path(__file__).parent\n"
        )
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.syspath_prepend(str(packages))
    return packages


@pytest.fixture
def compiler(sdks) -> Path:
    """The directory of a program in the place of ``apply_plugin_main``."""
    tools = sdks / "litert" / "tools"
    tools.mkdir(parents=True)
    (sdks / "litert" / "__init__.py").touch()
    program = tools / "apply_plugin_main"
    program.write_text(COMPILER.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tools / "added").write_bytes(b"")
    return tools


@pytest.mark.parametrize(
    ("text", "npu"),
    [
        ("qualcomm:SM8750", Npu("qualcomm", "SM8750")),
        ("MediaTek:mt6991", Npu("mediatek", "MT6991")),
        (" qualcomm : sm8850 ", Npu("qualcomm", "SM8850")),
    ],
)
def test_a_processor_is_its_vendor_and_its_soc(text, npu):
    assert parse(text) == npu
    assert parse(str(npu)) == npu


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("qualcomm", "expected VENDOR:SOC with VENDOR one of mediatek, qualcomm"),
        ("apple:A19", "expected VENDOR:SOC"),
        ("", "expected VENDOR:SOC"),
        ("qualcomm:SM9999", "unknown SoC; known of qualcomm: SA8255, .*SM8750"),
        ("qualcomm:ALL", "unknown SoC"),
        ("mediatek:SM8750", "unknown SoC; known of mediatek: MT6853, .*MT6993"),
        ("qualcomm:SM8750\nx", "unknown SoC"),
    ],
)
def test_an_unknown_processor_is_one_line_that_lists_the_known_ones(text, problem):
    with pytest.raises(UsageError, match=problem) as failure:
        parse(text)
    assert "\n" not in str(failure.value)


def test_a_processor_that_is_named_twice_is_compiled_for_once():
    assert parse_all(["qualcomm:SM8750", "mediatek:MT6991", "Qualcomm:sm8750"]) == (
        Npu("qualcomm", "SM8750"),
        Npu("mediatek", "MT6991"),
    )


def test_every_known_soc_can_be_named():
    names = [f"{backend}:{soc}" for backend in SDKS for soc in known_socs(backend)]
    assert [str(parse(name)) for name in names] == names
    assert len(names) > 20


def test_bundles_of_two_processors_have_two_names():
    assert parse("qualcomm:SM8750").file_name("gemma4-e2b") == "gemma4-e2b_qualcomm_sm8750.litertlm"


def test_a_missing_sdk_is_one_line_that_names_the_package():
    with pytest.raises(UsageError, match=r"pip install ai-edge-litert-sdk-qualcomm$") as failure:
        check_installed([Npu("qualcomm", "SM8750"), Npu("qualcomm", "SM8850")])
    assert "\n" not in str(failure.value)
    check_installed([])


def test_an_installed_sdk_is_found(sdks):
    check_installed([Npu("qualcomm", "SM8750"), Npu("mediatek", "MT6991")])


def test_a_compiled_bundle_has_the_same_parts_and_the_same_bytes_every_time(bundle, compiler, tmp_path):
    output, steps = tmp_path / "out" / "compiled.litertlm", []
    output.parent.mkdir()
    compile_bundle(bundle, Npu("qualcomm", "SM8750"), output, lambda *step: steps.append(step))
    assert output.read_bytes() == bundle.read_bytes()
    assert steps == [(1, 2), (2, 2)]
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    (call,) = map(json.loads, (compiler / "calls").read_text().splitlines())
    assert (call["cmd"], call["soc_manufacturer"], call["soc_model"]) == ("apply", "Qualcomm", "SM8750")


def test_the_decoder_alone_is_compiled(bundle, compiler, tmp_path):
    (compiler / "added").write_bytes(b"instructions")
    output = tmp_path / "compiled.litertlm"
    compile_bundle(bundle, Npu("mediatek", "MT6993"), output)
    sections, before = read_sections(output), read_sections(bundle)
    changed = [
        old.model_type
        for old, new in zip(before, sections, strict=True)
        if read_section(bundle, old, 1 << 20) != read_section(output, new, 1 << 20)
    ]
    assert changed == [PREFILL_DECODE]
    model = find_section(output, sections, "TFLiteModel", PREFILL_DECODE)
    assert read_section(output, model, 1 << 20).endswith(b"instructions")


@pytest.mark.parametrize(
    ("npu", "cause"),
    [
        (Npu("qualcomm", "SM8750"), "libQnnHtp.so: cannot open shared object file"),
        (Npu("mediatek", "MT6991"), "Failed to load NeuronAdapter shared library"),
    ],
    ids=str,
)
def test_what_the_vendors_compiler_misses_is_told_in_one_line(npu, cause, bundle, sdks, tmp_path):
    output = tmp_path / "out" / "compiled.litertlm"
    output.parent.mkdir()
    with pytest.raises(TargetError, match=cause) as failure:
        compile_bundle(bundle, npu, output)
    message = str(failure.value)
    assert message.startswith(f"litert: compiling for {npu} failed: ")
    assert "\n" not in message
    assert "Starting Load Plugins" in failure.value.__notes__[0]
    assert not list(output.parent.iterdir())


def test_a_bundle_that_is_none_is_refused_before_the_work(tmp_path):
    path = tmp_path / "model.litertlm"
    path.write_bytes(b"LITERTLM")
    with pytest.raises(CheckpointError, match="the header is cut off"):
        compile_bundle(path, Npu("qualcomm", "SM8750"), tmp_path / "compiled.litertlm")
    assert list(tmp_path.iterdir()) == [path]


def test_too_little_room_is_told_before_the_work(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("targets.litert.devices.npu._COPIES", 1 << 50)
    with pytest.raises(DestinationError, match=r"needed, .* free"):
        compile_bundle(bundle, Npu("qualcomm", "SM8750"), tmp_path / "compiled.litertlm")
    assert not list(tmp_path.iterdir())
