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
from converter.demo import DEMO
from support.forked import PROGRAM
from support.raw_safetensors import write_raw

COMMAND = str(Path(sys.executable).with_name("qatconvert"))
SHARDS = 200
DESCRIPTORS = 64


def split(whole: Path, place: Path, most: int = sys.maxsize) -> Path:
    """The checkpoint in ``whole`` in a file for each tensor, the last of ``most`` with all that are left."""
    place.mkdir()
    for file in whole.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, place)
    files: dict[str, str] = {}
    tensors = list(Directory(whole).tensors().tensors.values())
    count = min(most, len(tensors))
    for number in range(count):
        header, data = {}, b""
        for tensor in tensors[number:] if number == count - 1 else tensors[number : number + 1]:
            begin, data = len(data), data + tensor.read_raw(0, tensor.bytes).tobytes()
            offsets = [begin, len(data)]
            header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
            files[tensor.name] = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        write_raw(place / files[next(iter(header))], header, data)
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert len(set(files.values())) == count > DESCRIPTORS
    return place


@pytest.fixture(scope="module")
def checkpoint(
    checkpoint_factory: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A checkpoint in one file, and the same in 200."""
    whole = checkpoint_factory("31b", text={"num_hidden_layers": 24})
    return whole, split(whole, tmp_path_factory.mktemp("many") / whole.name, SHARDS)


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
def test_the_demo_is_converted_to_litert(tmp_path: Path) -> None:
    """From a file for each tensor, to the bytes that one file gives."""
    pytest.importorskip("litert_torch")
    (tmp_path / "many").mkdir()
    made = []
    for place in (DEMO, split(DEMO, tmp_path / "many" / DEMO.name)):
        output = tmp_path / str(len(made))
        run("convert", place, "--target", "litert", "--no-validate", "--output", output)
        made.append((output / "litert" / f"{DEMO.name}.litertlm").read_bytes())
    assert made[0] == made[1]


@pytest.mark.slow
def test_it_is_proven(checkpoint: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a process with transformers of its own: a server of the tests may have open what it likes."""
    monkeypatch.setenv("QATCONVERT_HOME", str(tmp_path / "home"))  # without logits of an earlier proof
    output = tmp_path / "out"
    run("convert", checkpoint[1], "--positions", "64", "--output", output, program=COMMAND)
    report = json.loads((output / "report.json").read_text())
    assert report["targets"]["gguf"]["weights"]["exact_fraction"] == 1.0
    assert report["reference"]["positions"] == 64
