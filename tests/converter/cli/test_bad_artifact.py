"""Damaged and hostile GGUF files: one line, a status, and no report of them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from support.directories import listing
from support.forked import PROGRAM

BEL = "\x1b]0;title\x07"


@pytest.fixture(scope="module")
def gguf(reference, tmp_path_factory) -> Path:
    """The artifact of ``reference``; nobody may change it."""
    out = tmp_path_factory.mktemp("gguf") / "out"
    command = [PROGRAM, str(reference), "--no-validate", "-o", str(out)]
    assert subprocess.run(command, timeout=300, capture_output=True).returncode == 0
    (path,) = (out / "gguf").iterdir()
    return path


DAMAGE = {
    "empty": lambda data: b"",
    "another format": lambda data: b"PK\x03\x04" + data[4:],
    "cut off in its header": lambda data: data[:500],
    "cut off in a tensor": lambda data: data[:-1000],
    "too many tensors": lambda data: data[:8] + b"\xff" * 16 + data[24:],
}


@pytest.fixture(params=DAMAGE)
def damaged(request, gguf, tmp_path) -> Path:
    path = tmp_path / f"bad{BEL}.gguf"
    path.write_bytes(DAMAGE[request.param](gguf.read_bytes()))
    return path


def test_a_damaged_artifact_is_not_validated(qatconvert, error_of, reference, damaged, tmp_path):
    done = qatconvert("validate", damaged, "--reference", reference, "-o", tmp_path / "out", seconds=60)
    assert r"bad\x1b]0;title\x07.gguf: " in error_of(done)
    assert listing(tmp_path) == [damaged.name, "work"]


def test_a_damaged_artifact_has_no_modelfile(qatconvert, error_of, damaged, tmp_path):
    done = qatconvert("modelfile", damaged, "-o", "out", seconds=60)
    assert r"bad\x1b]0;title\x07.gguf: " in error_of(done)
    assert listing(tmp_path) == [damaged.name, "work"]


def test_an_artifact_of_another_model_is_not_validated(qatconvert, error_of, checkpoint_factory, gguf):
    done = qatconvert("validate", gguf, "--reference", checkpoint_factory("gemma3-text"))
    assert "tensor blk.2.attn_q.weight has shape (256, 128), not (128, 128)" in error_of(done)


def test_an_artifact_that_lacks_a_tensor_is_not_validated(qatconvert, error_of, reference, gguf, tmp_path):
    data = gguf.read_bytes().replace(b"blk.5.attn_q.weight", b"blk.5.attn_x.weight")
    (tmp_path / "bad.gguf").write_bytes(data)
    done = qatconvert("validate", tmp_path / "bad.gguf", "--reference", reference)
    assert "bad.gguf: tensor blk.5.attn_q.weight is missing" in error_of(done)


@pytest.mark.parametrize("command", ["validate", "modelfile"])
def test_a_pipe_for_an_artifact_is_not_waited_for(qatconvert, error_of, reference, tmp_path, command):
    os.mkfifo(tmp_path / "pipe.gguf")
    options = ["--reference", reference] if command == "validate" else []
    done = qatconvert(command, tmp_path / "pipe.gguf", *options, seconds=60)
    assert "pipe.gguf: " in error_of(done)


def test_a_file_of_no_target_is_wrong_usage(qatconvert, error_of, reference, tmp_path):
    (tmp_path / f"model.{BEL}").touch()
    done = qatconvert("validate", tmp_path / f"model.{BEL}", "--reference", reference)
    assert "no target writes such files (known: gguf, litert, onnx)" in error_of(done, 2)


def test_a_crash_of_llama_cpp_is_one_line_and_leaves_no_report(
    qatconvert, error_of, reference, gguf, tmp_path
):
    """llama.cpp aborts where fewer than two layers have keys of their own."""
    data, key = bytearray(gguf.read_bytes()), b"gemma4.attention.shared_kv_layers"
    place = data.index(key) + len(key) + 4
    data[place : place + 4] = (5).to_bytes(4, "little")
    (tmp_path / "bad.gguf").write_bytes(data)
    options = ["--reference", reference, "--positions", 8, "-o", tmp_path / "out"]
    done = qatconvert("validate", tmp_path / "bad.gguf", *options)
    assert "llama.cpp on bad.gguf: the process ended with SIGABRT" in error_of(done)
    assert {path.name for path in tmp_path.iterdir()} == {"bad.gguf", "home", "work"}
    assert listing(tmp_path / "work") == []


def test_reports_put_beside_an_artifact_leave_it_there(qatconvert, reference, tmp_path):
    out = tmp_path / "out"
    assert qatconvert(reference, "--no-validate", "-o", out).returncode == 0
    (artifact,) = (out / "gguf").iterdir()
    content = artifact.read_bytes()
    options = ["--reference", reference, "--positions", 8, "--gate", "same_top_p=0", "-o", out, "--force"]
    done = qatconvert("validate", artifact, *options)
    assert done.returncode == 0, done.stderr
    assert artifact.read_bytes() == content
    manifest = json.loads((out / "manifest.json").read_text())
    sizes = {entry["path"]: entry["bytes"] for entry in manifest["artifacts"]}
    files = [name for name in listing(out) if (out / name).is_file() and name != "manifest.json"]
    assert sizes == {name: (out / name).stat().st_size for name in files}


def test_a_foreign_artifacts_differences_are_listed_and_not_judged(qatconvert, reference, gguf, tmp_path):
    """The key is one that llama.cpp does not compute with here: only the list can tell."""
    path = tmp_path / "other.gguf"
    path.write_bytes(gguf.read_bytes().replace(b"general.file_type", b"general.file_tYpe", 1))
    options = ("--reference", reference, "--positions", "64", "-o", "out")
    done = qatconvert("validate", path, *options, "--foreign")
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if "  differs in  key general.file_t" in line]
    assert len(told) == 2
    assert all(": expected " in line and ", found " in line for line in told)
    work = tmp_path / "work" / "out"
    entry = json.loads((work / "report.json").read_text())["targets"]["gguf"]
    assert entry["foreign"] is True
    assert entry["differences"]["deciding"] == 2
    assert "same_as_built" not in [gate["name"] for gate in entry["gates"]]
    for name in ("report.md", "report.html"):
        assert "tYpe" in (work / name).read_text()
    judged = qatconvert("validate", path, *options, "--force")
    assert judged.returncode == 3
    assert "same_as_built failed: 2, the limit is 0" in judged.stdout
    assert "differs in" not in judged.stdout


def test_a_target_that_writes_no_such_files_is_one_line(qatconvert, error_of, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    words = ("validate", tmp_path / "m.gguf", "--reference", "gemma4-demo", "--target", "onnx")
    line = error_of(qatconvert(*words), status=2)
    assert line.endswith("m.gguf: target onnx writes no such files, but .onnx")
