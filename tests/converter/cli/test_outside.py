"""A form, a family and a target that another distribution brings, as a user sees them."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unicodedata import is_normalized

import gguf
import numpy as np
import pytest
from qatconvert_int4.testing import tensors_of, write_packed
from qatconvert_plain.options import OPTIONS, RUNTIME
from qatconvert_qwen3.testing import write_qwen3
from safetensors.numpy import load_file

from support.distributions import write_distribution
from support.outside import BROUGHT, OUTSIDE
from support.tampering import GgufFile
from validation.tokenization import TEXTS

MERGES = "tokenizer.ggml.merges"
#: A family that only reads models, as Gemma 3's.
INVENTED = """
from dataclasses import replace
from converter.checkpoint.architecture import Family, gemma3

def read(config, model_type):
    return replace(gemma3.read(config, model_type), family="invented")

FAMILY = Family(("invented",), read)
"""


@dataclass(frozen=True)
class Proven:
    """A conversion with its proof."""

    output: Path
    #: The target's, of the report.
    entry: dict[str, Any]
    #: What stands on standard error.
    told: str


@pytest.fixture(scope="module")
def outside(tmp_path_factory) -> dict[str, str]:
    """The environment of a command that finds the distribution ``qatconvert-outside`` installed."""
    directory = tmp_path_factory.mktemp("outside")
    source = shutil.copytree(OUTSIDE, directory / "source")
    options = [
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--target",
        directory / "packages",
    ]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, source], check=True)
    return {"PYTHONPATH": str(directory / "packages")}


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory) -> Path:
    return write_qwen3(tmp_path_factory.mktemp("qwen3") / "model")


@pytest.fixture(scope="module")
def proven(outside, qwen3, tmp_path_factory) -> Proven:
    """The model's conversion to GGUF."""
    work = tmp_path_factory.mktemp("proven")
    program = str(Path(sys.executable).with_name("qatconvert"))
    words = [program, "convert", qwen3, "--target", "gguf", "-o", work / "out", "--json"]
    environment = {**os.environ, **outside, "QATCONVERT_HOME": str(work / "home")}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Proven(work / "out", json.loads(done.stdout)["targets"]["gguf"], done.stderr)


def test_a_model_of_another_family_is_converted_and_proven(proven):
    assert "no Modelfile is written: ollama: the family qwen3 is not known" in proven.told
    assert not (proven.output / "ollama").exists()
    found = proven.entry
    assert found["passed"]
    assert found["weights"]["exact_fraction"] == 1
    assert found["logits"]["mean_kld"] < 1e-3
    (graph,) = (gate for gate in found["gates"] if gate["name"] == "graph_kld")
    assert graph["value"] < 1e-9


def test_its_tokenizer_of_bytes_makes_transformers_tokens_and_prompts_in_llama_cpp(proven):
    (file,) = (proven.output / "gguf").iterdir()
    fields = gguf.GGUFReader(file).fields
    stored = {name: fields[f"tokenizer.ggml.{name}"].contents() for name in ("model", "pre", "add_bos_token")}
    assert stored == {"model": "gpt2", "pre": "qwen2", "add_bos_token": False}
    engine = proven.entry["runtime"]["engine"]
    for part in ("tokenizer", "prompts", "ends"):
        assert engine[part]["equal_fraction"] == 1
    assert engine["tokenizer"]["texts"] > len(TEXTS)
    assert engine["prompts"]["equal"] > 5
    assert engine["prompts"]["runtime_limits"] == []
    assert len(engine["ends"]["engine"]) == 2


def test_a_text_that_llama_cpp_would_have_to_compose_is_told(proven):
    assert "gguf: llama.cpp composes no characters (NFC)" in proven.told
    limits = proven.entry["runtime"]["engine"]["tokenizer"]["runtime_limits"]
    assert len(limits) == sum(not is_normalized("NFC", text) for text in TEXTS) > 0
    assert all("e\u0301" in limit["text"] for limit in limits)


def reverse_merges(file: GgufFile) -> None:
    """The last that was learned goes first."""
    value = dict(file.keys)[MERGES]
    texts, place = [], 16
    while place < len(value):
        stop = place + 8 + int.from_bytes(value[place : place + 8], "little")
        texts.append(value[place:stop])
        place = stop
    replace_key(file, MERGES, value[:16] + b"".join(reversed(texts)))


def cut_as_gpt2(file: GgufFile) -> None:
    """``pre``, a text."""
    replace_key(file, "tokenizer.ggml.pre", struct.pack("<IQ", 8, 5) + b"gpt-2")


def begin(file: GgufFile) -> None:
    """Prompts begin with BOS."""
    replace_key(file, "tokenizer.ggml.add_bos_token", struct.pack("<I?", 7, True))


def replace_key(file: GgufFile, name: str, value: bytes) -> None:
    assert dict(file.keys)[name] != value
    file.keys = [(key, value if key == name else old) for key, old in file.keys]


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        (reverse_merges, "engine_same_tokens"),
        (cut_as_gpt2, "engine_same_tokens"),
        (begin, "engine_same_prompts"),
    ],
)
def test_a_tokenizer_that_is_not_the_checkpoints_fails_the_proof(
    change, gate, qatconvert, outside, qwen3, proven, tmp_path
):
    (made,) = (proven.output / "gguf").iterdir()
    file = GgufFile.read(made)
    change(file)
    file.write(tmp_path / "m.gguf")
    words = ("validate", tmp_path / "m.gguf", "--reference", qwen3, "--json", "-q")
    done = qatconvert(*words, environment=outside)
    assert done.returncode == 3, done.stderr
    gates = json.loads(done.stdout)["targets"]["gguf"]["gates"]
    assert gate in {one["name"] for one in gates if one["passed"] is False}


def cut_threes(document: Any) -> None:
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\p{N}{1,3}"}


def cut_nothing(document: Any) -> None:
    del document["pre_tokenizer"]["pretokenizers"][0]


def lower(document: Any) -> None:
    document["normalizer"] = {"type": "Lowercase"}


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (cut_threes, "pretokenizers[0] is a Split at '\\\\p{N}{1,3}', which llama.cpp does not follow"),
        (cut_nothing, "gguf: the tokenizer cuts text otherwise than Qwen2's"),
        (lower, "gguf: tokenizer.json: normalizer is Lowercase, which llama.cpp does not follow"),
    ],
)
def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(
    edit, told, qatconvert, outside, qwen3, tmp_path, error_of
):
    model = shutil.copytree(qwen3, tmp_path / "model")
    document = json.loads((model / "tokenizer.json").read_text("utf-8"))
    edit(document)
    (model / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    words = ("convert", model, "--target", "gguf", "-o", tmp_path / "out", "--no-validate")
    assert told in error_of(qatconvert(*words, environment=outside))


def test_what_is_not_known_of_it_is_one_line(qatconvert, outside, qwen3, tmp_path, error_of):
    for target in ("onnx", "litert"):
        words = ("convert", qwen3, "--target", target, "-o", tmp_path / "out", "--no-validate")
        line = error_of(qatconvert(*words, environment=outside))
        assert f"{target}: the family qwen3 is not known; known: gemma3, gemma4" in line
    line = error_of(qatconvert("modelfile", qwen3, environment=outside))
    assert "ollama: the family qwen3 is not known; known: gemma3, gemma4" in line
    assert not (tmp_path / "out").exists()


def test_inspection_tells_what_each_target_makes_of_it_and_which_cannot(qatconvert, outside, qwen3):
    done = qatconvert("inspect", qwen3, "--json", environment=outside)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["targets"]
    assert found["gguf"]["bytes"] > 0
    assert found["onnx"] == {"error": "onnx: the family qwen3 is not known; known: gemma3, gemma4"}
    told = qatconvert("inspect", qwen3, environment=outside).stdout
    assert "the family qwen3 is not known" in told
    assert "gguf, planned" in told
    done = qatconvert("inspect", qwen3, "--target", "onnx", environment=outside)
    assert done.returncode == 1


@pytest.mark.parametrize("target", ["gguf", "onnx", "litert"])
def test_a_family_that_no_target_knows(target, qatconvert, checkpoint_factory, tmp_path, error_of):
    group = {"qatconvert.families": {"invented": "invented_family:FAMILY"}}
    packages = write_distribution(tmp_path / "packages", "outside", group, {"invented_family": INVENTED})
    model = shutil.copytree(checkpoint_factory("gemma3-text"), tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "invented"}))
    words = ("convert", model, "--target", target, "-o", tmp_path / "out")
    line = error_of(qatconvert(*words, environment={"PYTHONPATH": str(packages)}))
    assert line == f"qatconvert: {target}: the family invented is not known; known: gemma3, gemma4"
    assert not (tmp_path / "out").exists()


def test_a_broken_distribution_is_one_line_where_its_family_is_meant(
    qatconvert, checkpoint_factory, qwen3, tmp_path, error_of
):
    group = {"qatconvert.families": {"qwen3": "broken_module:FAMILY"}}
    modules = {"broken_module": "raise RuntimeError('\\x1b]0;no such\\nlibrary')"}
    packages = write_distribution(tmp_path / "packages", "other", group, modules)
    paths = {"PYTHONPATH": str(packages)}
    line = error_of(qatconvert("inspect", qwen3, environment=paths))
    assert "entry point 'qwen3' of qatconvert.families, which 'other' registers, cannot be loaded" in line
    words = ("inspect", checkpoint_factory("text"), "--target", "gguf")
    assert qatconvert(*words, environment=paths).returncode == 0


def test_without_the_distribution_the_model_is_unknown(qatconvert, qwen3, error_of):
    assert "model_type 'qwen3' is unknown" in error_of(qatconvert("inspect", qwen3))


@pytest.fixture(scope="module")
def packed(tmp_path_factory, checkpoint_factory) -> Path:
    """A checkpoint of int4 codes in groups of 128, which transformers does not load."""
    source = checkpoint_factory("31b")
    return write_packed(source, tmp_path_factory.mktemp("packed") / "model", tensors_of(source, "float16"))


def test_a_form_of_another_distribution_is_converted_and_proven(qatconvert, outside, packed, tmp_path):
    words = ("convert", packed, "--target", "gguf", "-o", tmp_path / "out", "--json", "-q")
    done = qatconvert(*words, environment=outside)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["source"]["format"] == "int4-groups"
    found = report["targets"]["gguf"]
    assert found["passed"]
    assert found["weights"]["exact_fraction"] == 1
    assert found["weights"]["equal_code_blocks"] == found["weights"]["blocks"] > 1000
    (graph,) = (gate for gate in found["gates"] if gate["name"] == "graph_kld")
    assert graph["value"] < 1e-9


def test_codes_that_are_not_the_checkpoints_fail_the_proof_of_such_a_form(
    qatconvert, outside, packed, tmp_path
):
    words = ("convert", packed, "--target", "gguf", "-o", tmp_path / "out", "--no-validate", "-q")
    assert qatconvert(*words, environment=outside).returncode == 0
    (file,) = (tmp_path / "out" / "gguf").glob("*.gguf")
    (tensor,) = (one for one in gguf.GGUFReader(file).tensors if one.name == "blk.0.ffn_up.weight")
    content = bytearray(file.read_bytes())
    content[tensor.data_offset + 2] ^= 1
    file.write_bytes(content)
    done = qatconvert("validate", file, "--reference", packed, "--json", "-q", environment=outside)
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)["targets"]["gguf"]
    assert found["weights"]["exact_fraction"] < 1


def test_a_target_of_another_distribution_is_written_proven_and_read_by_its_own_package(
    qatconvert, outside, packed, tmp_path
):
    words = ("convert", packed, "--target", "plain-numbers", "--plain-type", "float32", "--plain-memory", "1")
    done = qatconvert(*words, "-o", tmp_path / "out", "--json", "-q", environment=outside)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["targets"]["plain-numbers"]
    assert found["passed"]
    assert found["weights"]["exact_fraction"] == 1
    assert found["logits"]["mean_kld"] < 1e-9
    assert found["runtime"]["runner"] == "plain-numbers.transformers"
    assert found["runtime"]["plain_memory"] == 1
    tensors = load_file(tmp_path / "out" / found["artifact"])
    assert tensors["model.norm.weight"].dtype == np.float32
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["libraries"]["safetensors"] == version("safetensors")  # its runner's
    verified = qatconvert("verify", tmp_path / "out", "--rebuild", "--reference", packed, environment=outside)
    assert verified.returncode == 0, verified.stderr


def test_another_target_is_added_beside_it(qatconvert, outside, demo_checkpoint, tmp_path):
    for target in ("plain-numbers", "gguf"):
        words = ("convert", demo_checkpoint, "--target", target, "--no-validate", "-o", tmp_path / "out")
        done = qatconvert(*words, "-q", environment=outside)
        assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert list(manifest["targets"]) == ["gguf", "plain-numbers"]
    assert qatconvert("verify", tmp_path / "out", environment=outside).returncode == 0


def test_a_number_that_its_type_does_not_hold_is_refused(
    qatconvert, outside, checkpoint_factory, tmp_path, error_of
):
    model = shutil.copytree(checkpoint_factory("gemma3-text"), tmp_path / "model")
    content = bytearray((model / "model.safetensors").read_bytes())
    (length,) = struct.unpack_from("<Q", content)
    begin = json.loads(content[8 : 8 + length])["model.norm.weight"]["data_offsets"][0]
    struct.pack_into("<H", content, 8 + length + begin, 0x4974)  # a million in bfloat16
    (model / "model.safetensors").write_bytes(content)
    words = ("convert", model, "--target", "plain-numbers", "--plain-type", "float16", "--no-validate")
    line = error_of(qatconvert(*words, "-o", tmp_path / "out", "-q", environment=outside))
    assert "plain-numbers: norm.weight: a value is beyond the range of float16" in line


def test_a_wrong_number_in_its_artifact_fails_the_proof(qatconvert, outside, demo_checkpoint, tmp_path):
    words = (
        "convert",
        demo_checkpoint,
        "--target",
        "plain-numbers",
        "--no-validate",
        "-o",
        tmp_path / "out",
        "-q",
    )
    assert qatconvert(*words, environment=outside).returncode == 0
    (file,) = (tmp_path / "out" / "plain").iterdir()
    content = bytearray(file.read_bytes())
    content[-2] ^= 0x40  # the exponent of the last value
    file.write_bytes(content)
    words = ("validate", file, "--reference", demo_checkpoint, "--json", "-q")
    done = qatconvert(*words, environment=outside)
    assert done.returncode == 3, done.stderr
    gates = json.loads(done.stdout)["targets"]["plain-numbers"]["gates"]
    assert "same_as_built" in {gate["name"] for gate in gates if not gate["passed"]}


def test_its_options_stand_in_the_help_and_belong_to_it(qatconvert, outside, tmp_path, error_of):
    told = qatconvert("convert", "--help", environment=outside).stdout
    assert "Plain numbers" in told
    assert "--plain-type" in told
    assert "--plain-memory" in told
    words = ("convert", "gemma4-demo", "-o", tmp_path / "out", "--plain-type", "float16")
    line = error_of(qatconvert(*words, environment=outside), status=2)
    assert "--plain-type has no effect without target plain-numbers" in line
    assert "--plain-type" not in qatconvert("convert", "--help").stdout


#: Folders of a checkout; what else there is, is not ours.
ROOMS = (".ci", "benchmarks", "converter", "docs", "targets", "tests", "validation")
#: Who may name what the distribution brings: itself, this file, and the page that shows its lines.
WITHIN = ("tests/outside/", "tests/converter/cli/test_outside.py", "docs/extending.md")


def brought_names() -> re.Pattern[str]:
    """Whatever the distribution registers, its packages and their options, and the family's name."""
    entries = {name for group in BROUGHT.values() for name in group}
    modules = {value.partition(".")[0] for group in BROUGHT.values() for value in group.values()}
    options = {option.name for group in (OPTIONS, RUNTIME) for option in group.options}
    spelled = {name.replace("-", "_") for name in entries}
    return re.compile(
        "|".join(map(re.escape, entries | modules | options | spelled | {"qwen"})), re.IGNORECASE
    )


def naming(root: Path) -> list[str]:
    """The files of a checkout, named from ``root``, that name any of it."""
    names = brought_names()
    files = [file for room in ROOMS for file in (root / room).rglob("*") if "__pycache__" not in file.parts]
    named = [file.relative_to(root).as_posix() for file in (*root.iterdir(), *files) if file.is_file()]
    return [
        name
        for name in named
        if not name.startswith(WITHIN)
        and names.search(f"{name}\n{(root / name).read_text(errors='replace')}")
    ]


@pytest.mark.slow
def test_no_file_outside_the_distribution_names_what_it_brings():
    root = OUTSIDE.parents[1]
    assert all((root / room).is_dir() for room in ROOMS)
    assert naming(root) == []


@pytest.mark.parametrize(
    "line",
    [
        "from qatconvert_int4.form import FORM",
        "METHOD = 'int4-groups'",
        "int4_groups = 3",
        'find_target("plain-numbers")',
        "--runtime plain-numbers.transformers",
        "plain_memory = 1",
        "# as Qwen2's",
        "family == 'qwen3'",
    ],
)
def test_a_file_that_names_any_of_it_is_found(line, tmp_path):
    places = ["README.md", "converter/a.py", "tests/support/b.py", "docs/c.md", "tests/outside/d.py"]
    for name in places:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"plain text\n{line}\n")
    assert sorted(naming(tmp_path)) == sorted(places[:-1])
