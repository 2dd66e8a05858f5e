"""A checkpoint of more files than a process may have open."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.checkpoint.directory import Directory
from support.forked import PROGRAM
from support.raw_safetensors import write_raw

COMMAND = str(Path(sys.executable).with_name("qatconvert"))
SHARDS = 200
DESCRIPTORS = 64


@pytest.fixture(scope="module")
def checkpoint(
    checkpoint_factory: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A checkpoint in one file, and the same in 200."""
    whole = checkpoint_factory("31b", text={"num_hidden_layers": 24})
    place = tmp_path_factory.mktemp("many") / whole.name
    place.mkdir()
    for file in whole.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, place)
    files: dict[str, str] = {}
    tensors = list(Directory(whole).tensors().tensors.values())
    for number in range(SHARDS):
        header, data = {}, b""
        for tensor in tensors[number:] if number == SHARDS - 1 else tensors[number : number + 1]:
            begin, data = len(data), data + tensor.read_raw(0, tensor.bytes).tobytes()
            offsets = [begin, len(data)]
            header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
            files[tensor.name] = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        write_raw(place / files[next(iter(header))], header, data)
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert len(set(files.values())) == SHARDS
    return whole, place


def run(*arguments: str | Path, program: str = PROGRAM) -> str:
    """What the command prints where few files may be open."""
    done = subprocess.run(
        [program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS)),
    )
    assert done.returncode in (0, 3), done.stderr
    return done.stdout


def test_it_is_inspected(checkpoint: tuple[Path, Path]) -> None:
    whole, many = (json.loads(run("inspect", place, "--json")) for place in checkpoint)
    assert many["lattice"] == whole["lattice"]


def test_it_is_converted_to_the_same_bytes_and_verified(
    checkpoint: tuple[Path, Path], tmp_path: Path
) -> None:
    made = []
    for number, place in enumerate(checkpoint):
        output = tmp_path / str(number)
        run("convert", place, "--target", "gguf,onnx", "--no-validate", "--output", output)
        made.append([(output / name).read_bytes() for name in ("onnx/model.onnx.data", "ollama/Modelfile")])
        made[-1] += [file.read_bytes() for file in sorted((output / "gguf").iterdir())]
    assert made[0] == made[1]
    run("verify", tmp_path / "1", "--rebuild", "--reference", checkpoint[1])


@pytest.mark.slow
def test_it_is_proven(checkpoint: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a process with transformers of its own: a server of the tests may have open what it likes."""
    monkeypatch.setenv("QATCONVERT_HOME", str(tmp_path / "home"))  # without logits of an earlier proof
    output = tmp_path / "out"
    run("convert", checkpoint[1], "--positions", "64", "--output", output, program=COMMAND)
    report = json.loads((output / "report.json").read_text())
    assert report["targets"]["gguf"]["weights"]["exact_fraction"] == 1.0
    assert report["reference"]["positions"] == 64
