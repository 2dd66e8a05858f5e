"""The command in a report: run again, it makes the same, and it names no place of this machine."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from converter.pipeline.command import convert_command, validate_command
from converter.pipeline.opening import Model, open_model
from converter.pipeline.running import Conversion


@pytest.fixture(scope="module")
def demo() -> Model:
    return open_model("gemma4-demo")


def command(
    model: Model, *, targets: tuple[str, ...] = ("gguf",), validation: Any = None, **options: Any
) -> str:
    request = Conversion("gemma4-demo", targets, Path("/some/where"), True, True, options, validation)
    return convert_command(request, model)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ""),
        ({"num_ctx": 4096}, " --num-ctx 4096"),
        ({"system": "it's a\tb"}, r" --system $'it\'s a\011b'"),
        ({"system": "é"}, " --system 'é'"),
        ({"licenses": ["the text", "another"]}, " --license FILE --license FILE"),
        ({"license": "MIT"}, ""),  # Python's alone
    ],
)
def test_options_of_targets_stand_as_the_command_line_has_them(
    demo: Model, options: dict[str, Any], words: str
) -> None:
    told = command(demo, **options)
    assert told == f"qatconvert convert gemma4-demo --target gguf{words} --no-validate"


def test_other_kinds_of_options(demo: Model) -> None:
    told = command(
        demo,
        targets=("litert", "onnx", "litert"),
        prefill_lengths=(128, 1024),
        keep_tflite=True,
        npu=["qualcomm:SM8750", "mediatek:MT6991"],
        android_assets=Path("/home/me/app"),
        accuracy_level=0,
    )
    assert shlex.split(told) == [
        "qatconvert", "convert", "gemma4-demo", "--target", "litert", "--target", "onnx",
        "--prefill-lengths", "128,1024", "--keep-tflite", "--npu", "qualcomm:SM8750",
        "--npu", "mediatek:MT6991", "--accuracy-level", "0", "--no-validate",
    ]  # fmt: skip


def test_settings_of_a_validation_stand_where_they_are_no_defaults(demo: Model) -> None:
    whole = {
        "positions": 64,
        "text": Path("/home/me/some text.txt"),
        "gates": {"mean_kld": 0.005},
        "reference_dtype": "bfloat16",
        "max_memory": 1_500_000_000,
        "baseline": "naive-q4_0",
        "same_weights": False,
        "runtimes": {"gguf": "llamacpp"},
        "allow_unrun": ("graph_kld",),
        "cache": Path("/home/me/cache"),
        "provider": "cuda",
    }
    assert shlex.split(command(demo, validation=whole))[5:] == [
        "--positions", "64", "--text", "some text.txt", "--reference-dtype", "bfloat16",
        "--max-memory", "1.5", "--gate", "mean_kld=0.005", "--allow-unrun", "graph_kld",
        "--baseline", "naive-q4_0", "--no-same-weights", "--runtime", "gguf.llamacpp", "--provider", "cuda",
    ]  # fmt: skip
    default = {"positions": 512, "gates": {}, "baseline": None, "same_weights": True, "provider": "cpu"}
    assert command(demo, validation=default) == command(demo, validation={})
    assert command(demo, validation={}) == "qatconvert convert gemma4-demo --target gguf"


def test_a_validation_names_the_artifact_and_the_reference(demo: Model) -> None:
    told = validate_command([Path("/home/me/out/gguf/a b.gguf")], demo, {"foreign": True})
    assert told == "qatconvert validate 'a b.gguf' --reference gemma4-demo --foreign"


def test_a_directory_stands_by_its_own_name(checkpoint_factory: Any) -> None:
    directory = checkpoint_factory("text")
    assert command(open_model(str(directory))).split()[2] == f"./{directory.name}"


def test_run_again_it_makes_the_same(tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("qatconvert"))
    words = ["gemma4-demo", "--no-validate", "-q", "--split-max-size", "1M"]
    words += ["--system", "a 'b'\n$c \"é\" \\", "--num-ctx", "4096"]
    subprocess.run([program, *words, "-o", "one"], cwd=tmp_path, check=True)
    told = json.loads((tmp_path / "one" / "report.json").read_text("utf-8"))["command"]
    assert told.isprintable()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    again = ["bash", "-c", f"{told} -q -o two"]
    subprocess.run(again, cwd=tmp_path, check=True, env={**os.environ, "PATH": path})
    for name in ("manifest.json", "report.json", "ollama/Modelfile"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
