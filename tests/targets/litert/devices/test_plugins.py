"""What vendors' compiler plugins say of a plan: really asked where their libraries are there."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("litert_torch")
from converter.checkpoint.opened import open_checkpoint
from converter.demo import DEMO, DEMO_MOBILE
from converter.pipeline.inspection import inspect
from converter.pipeline.opening import open_model
from support.schemas import check
from targets.accelerators import Cell
from targets.litert.devices import plugins
from targets.litert.devices.plugins import VENDORS, ask_all, cells_of
from targets.litert.devices.probes import write_probes
from targets.litert.reading import open_models
from targets.litert.schema import OPERATORS
from targets.target import Plan, find_target

#: Answers as apply_plugin_main does, for the functions in the file ``taken`` beside it.
PROGRAM = """#!{python}
import pathlib, sys
here = pathlib.Path(__file__).parent
for index, taken in enumerate((here / "taken").read_text().split()):
    print(f"Partitioned subgraph<{{index}}>, selected {{taken}} ops, from a total of 3 ops. resulted in")
print((here / "printed").read_text(), file=sys.stderr)
sys.exit(int((here / "status").read_text()))
"""


@pytest.fixture(scope="module")
def plan() -> Plan:
    return find_target("litert").plan(open_checkpoint(DEMO_MOBILE), "model", {})


def test_the_ways_are_those_of_the_plan(plan: Plan) -> None:
    ways = [(cell.operator, cell.type, cell.input) for cell in cells_of(plan)]
    products = [
        ("FULLY_CONNECTED", f"INT{bits} per row", way)
        for bits in (2, 4, 8)
        for way in ("static int8", "float32")
    ]
    looked_up = [("EMBEDDING_LOOKUP", f"INT{bits} per row", "") for bits in (2, 4)]
    assert ways == looked_up + products
    without = find_target("litert").plan(open_checkpoint(DEMO), "model", {})
    assert [cell.input for cell in cells_of(without)] == ["", "float32"]


def test_a_probe_is_what_the_writer_makes(plan: Plan, tmp_path: Path) -> None:
    cells = cells_of(plan)
    write_probes(cells, tmp_path / "probes.tflite")
    (model,) = open_models(tmp_path / "probes.tflite")
    made = [[OPERATORS[one.code] for one in graph.operators] for graph in model.subgraphs]
    static = ["QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE"]
    assert made == [static if cell.input == "static int8" else [cell.operator] for cell in cells]


def test_what_could_not_be_asked_says_what_is_missing(plan: Plan) -> None:
    found = {one.vendor: one for one in ask_all(plan)}
    assert tuple(found) == VENDORS
    for vendor, missing in {
        "qualcomm": "libQnnHtp.so is not installed (pip install ai-edge-litert-sdk-qualcomm)",
        "mediatek": "Failed to load NeuronAdapter shared library (pip install ai-edge-litert-sdk-mediatek)",
        "google_tensor": "liblitert_plugin_compiler.so is not installed",
    }.items():
        one = found[vendor]
        assert one.untried == missing
        assert one.processor
        assert {cell.taken for cell in one.cells} == {None}


def test_a_plugin_with_its_libraries_answers(plan: Plan) -> None:
    """Intel's, whose libraries are a package of PyPI."""
    pytest.importorskip("openvino")
    (found,) = (one for one in ask_all(plan) if one.vendor == "intel_openvino")
    assert (found.processor, found.untried) == ("PTL", None), version("openvino")
    assert [replace(cell, taken=None) for cell in found.cells] == cells_of(plan)
    assert {cell.taken for cell in found.cells} == {True}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program that asks a plugin, in whose place another one stands."""
    path = tmp_path / "apply"
    path.write_text(PROGRAM.format(python=sys.executable))
    path.chmod(0o755)
    for name, text in (("taken", ""), ("printed", ""), ("status", "0")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(plugins, "_PROGRAM", str(path))
    monkeypatch.setattr(plugins, "VENDORS", ("qualcomm",))
    return tmp_path


def test_an_operator_of_which_a_part_is_left_falls_back(plan: Plan, program: Path) -> None:
    (program / "taken").write_text("3 3 3 2 3 0 3 3")
    (found,) = ask_all(plan)
    assert found.untried is None
    assert [cell.taken for cell in found.cells] == [True, True, True, False, True, False, True, True]


@pytest.mark.parametrize(
    ("printed", "status", "told"),
    [
        ("", "9", "its plugin gave no answer (status 9)"),
        ("", "0", "its plugin gave no answer (status 0)"),
        ("ERROR: [a.cc:3] It\x1b[31m is\\nnot there", "1", "It [31m is"),
        ("ERROR: " + "x" * 500, "1", "x" * 157 + "..."),
        ("lib/x.so: undefined symbol: _Zabc.", "0", "its plugin does not load: undefined symbol _Zabc"),
    ],
)
def test_a_plugin_that_fails_is_told_in_a_short_printable_line(
    printed: str, status: str, told: str, plan: Plan, program: Path
) -> None:
    (program / "printed").write_text(printed.replace("\\n", "\n"))
    (program / "status").write_text(status)
    (found,) = ask_all(plan)
    assert found.untried == f"{told} (pip install ai-edge-litert-sdk-qualcomm)"
    assert found.untried.isprintable()


def test_without_the_package_nothing_is_asked(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "find_spec", lambda name: None)
    assert {one.untried for one in ask_all(plan)} == {
        "ai-edge-litert is not installed: pip install 'qatconvert[litert]'"
    }


def test_an_inspection_asks_for_a_target_that_is_named(program: Path) -> None:
    (program / "taken").write_text("1 3")
    named = inspect(open_model("gemma4-demo"), ["litert"])
    check("inspect", named)
    (found,) = named["targets"]["litert"]["accelerators"]
    assert found["vendor"] == "qualcomm"
    assert [cell["taken"] for cell in found["cells"]] == [False, True]
    assert "accelerators" not in inspect(open_model("gemma4-demo"))["targets"]["litert"]
    assert Cell(**found["cells"][0]) == Cell("EMBEDDING_LOOKUP", "INT4", "", False)


def test_a_bundle_for_a_neural_processor_applies_the_checkpoints_grids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = find_target("litert")
    npu = {"npu": ["qualcomm:SM8750"]}
    plan = target.plan(open_checkpoint(DEMO_MOBILE), "model", npu)
    assert (plan.options["activations"], plan.applies_grids, target.choices(plan)) == ("static", True, ())
    assert (
        target.plan(open_checkpoint(DEMO_MOBILE), "model", {**npu, "activations": "1"}).applies_grids is False
    )
    assert target.plan(open_checkpoint(DEMO), "model", npu).applies_grids is False
