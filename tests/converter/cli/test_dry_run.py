"""``convert --dry-run`` tells what the conversion then does, and writes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from converter.filenames import MANIFEST, REPORTS
from converter.pipeline.opening import open_model
from support.distributions import write_distribution
from support.hub_server import HubServer
from support.stages import without_stages
from targets.estimates import Linear, estimate
from targets.target import find_target

PROGRAM = str(Path(sys.executable).with_name("qatconvert"))
REPO = "google/gemma-4-9B-it-qat-q4_0-unquantized"
#: How much of an ONNX artifact the graph is at most, whose size is told as none: the shipped model's is 9 %.
GRAPH_SHARE = 0.1


def told(done) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def written(output: Path) -> dict[str, int]:
    found = (path for path in output.rglob("*") if path.is_file())
    return {path.relative_to(output).as_posix(): path.stat().st_size for path in found}


@pytest.mark.parametrize(
    "options",
    [
        ("-t", "gguf,onnx"),
        ("--split-max-size", "500K"),
        ("-t", "onnx", "--onnx-scales", "f16"),
        ("-t", "gguf", "--off-lattice", "f16", "--system", "Be brief."),
    ],
)
def test_files_and_sizes_are_those_of_the_conversion(qatconvert, tmp_path, options):
    words = ("gemma4-demo", "--no-validate", *options, "--json", "-o", tmp_path / "out")
    expected = told(qatconvert(*words, "--dry-run"))
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "work").iterdir()) == []
    told(qatconvert(*words))
    files = [file for target in expected["targets"].values() for file in target["files"]]
    found = written(tmp_path / "out")
    assert {*expected["files"], *(file["path"] for file in files)} == set(found)
    assert set(expected["files"]) == {MANIFEST, *REPORTS}
    for file in files:
        if file["exact"]:
            assert file["bytes"] == found[file["path"]], file
    vague = [file["path"] for file in files if not file["exact"]]
    assert vague == (["onnx/model.onnx"] if "onnx" in expected["targets"] else [])
    assert all(found[path] < GRAPH_SHARE * sum(found.values()) for path in vague)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    for name, target in expected["targets"].items():
        assert target["tensors"] == manifest["targets"][name]["tensors"]


def test_the_short_form_tells_it_in_words(qatconvert):
    done = qatconvert("gemma4-demo", "-t", "gguf,onnx", "--dry-run", "-o", "x")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    for part in (
        "gemma4-demo: a dry run, nothing is written",
        "output x: is new",
        "beside manifest.json, report.json, report.md, report.html",
        "download nothing",
        "file gguf/gemma4-demo-q4_0.gguf, 1.53 MB",
        "file onnx/model.onnx, small, not known before",
        "with the proof",
        "mlp.down_proj 9 128 x 320",
        "Time and memory are estimates, measured on two cores",
    ):
        assert part in text, part
    assert "with the proof" not in qatconvert("gemma4-demo", "--dry-run", "--no-validate").stdout


def test_what_lies_in_the_output_is_refused_as_it_will_be(qatconvert, error_of, tmp_path):
    out = tmp_path / "out"
    assert qatconvert("gemma4-demo", "--no-validate", "-o", out).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    words = ("gemma4-demo", "--no-validate", "-o", out)
    line = error_of(qatconvert(*words, "--dry-run"))
    assert "it holds gguf already" in line
    assert line == error_of(qatconvert(*words))
    found = told(qatconvert(*words, "--dry-run", "--force", "--json"))["output"]
    assert (found["replaces"], found["keeps"], found["exists"]) == (["gguf"], [], True)
    found = told(qatconvert(*words, "-t", "onnx", "--dry-run", "--json"))["output"]
    assert (found["replaces"], found["keeps"]) == ([], ["gguf"])
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_another_checkpoint_in_the_output_is_refused_as_it_will_be(
    qatconvert, error_of, checkpoint_factory, tmp_path
):
    out = tmp_path / "out"
    assert qatconvert("gemma4-demo", "--no-validate", "-o", out).returncode == 0
    words = (checkpoint_factory("text"), "--no-validate", "-t", "onnx", "-o", out)
    line = error_of(qatconvert(*words, "--dry-run"))
    assert "of another checkpoint" in line
    assert line == error_of(qatconvert(*words))


@pytest.mark.parametrize("options", [("-t", "ggfu"), ("--num-ctx", "0"), ("-t", "onnx", "--num-ctx", "1")])
def test_wrong_usage_is_told_as_it_will_be(qatconvert, error_of, options):
    words = ("gemma4-demo", *options)
    assert error_of(qatconvert(*words, "--dry-run"), 2) == error_of(qatconvert(*words), 2)


def test_of_a_repository_no_weights_are_downloaded(checkpoint_factory, tmp_path):
    model = checkpoint_factory("e2b")
    with HubServer({REPO: model}) as server:
        environment = {**server.environment(tmp_path), "QATCONVERT_HOME": str(tmp_path / "own")}

        def run(*words: str) -> dict:
            command = [PROGRAM, "gemma4-9b", "-t", "gguf,onnx,litert", "-o", "out", "--no-validate", *words]
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
            )
            assert done.returncode == 0, done.stderr
            assert without_stages(done.stderr).count("left out") == 0
            return json.loads(done.stdout)

        before = run("--dry-run", "--json")
        assert not server.asked_for("model.safetensors")
        weights = (model / "model.safetensors").stat().st_size
        assert before["download"] == {"bytes": weights, "of": weights}
        assert before["weights_read"] is False
        environment["HF_HUB_OFFLINE"] = "1"
        command = [PROGRAM, "gemma4-9b", "--dry-run"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 1
        assert "lacks model.safetensors" in done.stderr
        del environment["HF_HUB_OFFLINE"]
        subprocess.run([PROGRAM, "inspect", "gemma4-9b", "-q"], env=environment, check=True, cwd=tmp_path)
        after = run("--dry-run", "--json")
    assert after["download"] == {"bytes": 0, "of": weights}
    assert after["weights_read"] is True
    for name, target in before["targets"].items():
        assert target["files"] == after["targets"][name]["files"], name
        assert target["tensors"] == after["targets"][name]["tensors"], name
    assert not (tmp_path / "out").exists()


def test_a_target_without_estimates_says_so(qatconvert, tmp_path):
    modules = {
        "bare": """
            from targets.gguf import target as gguf

            class Bare:
                name = "bare"
                options = ()

                def __getattr__(self, name):
                    if name in ("costs", "file_sizes"):
                        raise AttributeError(name)
                    return getattr(gguf, name)

            target = Bare()
        """
    }
    site = write_distribution(
        tmp_path / "site", "bare", {"qatconvert.targets": {"bare": "bare:target"}}, modules
    )
    words = ("gemma4-demo", "-t", "bare", "--dry-run", "--no-validate")
    done = qatconvert(*words, environment={"PYTHONPATH": str(site)})
    assert done.returncode == 0, done.stderr
    assert "time     unknown" in done.stdout
    assert "memory   unknown" in done.stdout


def test_estimates_grow_with_the_model(checkpoint_factory):
    small = open_model(str(checkpoint_factory("31b"))).checkpoint
    larger = open_model("gemma4-demo").checkpoint
    assert small.stored_bytes < larger.stored_bytes
    for name in ("gguf", "onnx", "litert"):
        target = find_target(name)
        one, other = (estimate(target, found, 1 << 40) for found in (small, larger))
        assert 0 < one.alone.seconds < other.alone.seconds
        assert 0 < one.with_proof.seconds < other.with_proof.seconds
        assert 0 < one.with_proof.memory < other.with_proof.memory
        assert other.with_proof.memory > other.alone.memory
        # weights beyond it are read from disk
        limited = estimate(target, larger, 1000)
        assert limited.with_proof.memory < other.with_proof.memory


def test_a_line_goes_through_what_was_measured():
    line = Linear.through((10, 3), (20, 5))
    assert (line.of(10), line.of(20), line.of(0)) == (3, 5, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_to_expect_is_near_what_a_conversion_takes(tmp_path):
    expected = estimate(find_target("gguf"), open_model("gemma4-demo").checkpoint, 1 << 40)
    command = [PROGRAM, "gemma4-demo", "--no-validate", "-q", "-o", str(tmp_path / "out")]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ}) as process:
        while process.poll() is None:
            peak = max(peak, held(process.pid))
            time.sleep(0.01)
    assert process.returncode == 0
    assert expected.alone.memory / 2 < peak < expected.alone.memory * 2


def held(pid: int) -> int:
    """Bytes of memory that a process holds, pages that it shares with others in part."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
