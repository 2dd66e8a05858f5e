"""``qatconvert MODEL``: what a conversion leaves, and what it never leaves."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from converter.errors import DestinationError
from converter.system.output import check_space
from support.forked import PROGRAM
from support.schemas import check_output
from support.stages import without_stages


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The error, which must be one line of the tool's own."""
    lines = without_stages(done.stderr).strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("qatconvert: ")
    return lines[0]


def files(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def tiny(checkpoint_factory) -> Path:
    return checkpoint_factory("text")


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """The conversion of the README, with validation and the naive baseline."""
    out = tmp_path_factory.mktemp("demo") / "out"
    targets = ["--target", "gguf", "--target", "onnx", "--target", "litert"]
    log = ["--log-file", str(out.with_name("log"))]
    command = [PROGRAM, "gemma4-demo", *targets, "--baseline", "naive-q4_0", "-o", str(out), *log]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert without_stages(done.stderr) == ""
    check_output(out)
    return out


@pytest.mark.slow
def test_the_demo_leaves_artifact_modelfile_reports_and_manifest(demo):
    assert files(demo) == [
        "gguf/gemma4-demo-q4_0.gguf",
        "litert/gemma4-demo.litertlm",
        "manifest.json",
        "ollama/Modelfile",
        "onnx/chat_template.jinja",
        "onnx/config.json",
        "onnx/genai_config.json",
        "onnx/generation_config.json",
        "onnx/model.onnx",
        "onnx/model.onnx.data",
        "onnx/tokenizer.json",
        "onnx/tokenizer_config.json",
        "report.html",
        "report.json",
        "report.md",
    ]
    assert not any(path.name.endswith(".partial") for path in demo.parent.iterdir())


@pytest.mark.slow
def test_litert_exports_one_graph_for_the_artifact_its_comparison_and_the_baseline(demo):
    told = re.findall(r"graphs (\w+): (.*)", demo.with_name("log").read_text())
    assert [what for _, what in told] == ["to be exported", "kept", "kept"]
    assert len({key for key, _ in told}) == 1


@pytest.mark.slow
def test_the_demos_report_has_every_key_of_the_contract(demo):
    report = json.loads((demo / "report.json").read_text())
    assert report["schema"] == 1
    assert report["model"] == "gemma4-demo"
    assert report["source"] == {
        "repo": None,
        "revision": None,
        "path": "gemma4-demo",
        "date": None,
        "format": "bf16-lattice",
        "stored_as": "unquantized safetensors (BF16, F16 or F32)",
        "files": {"read": report["source"]["files"]["read"], "compared": 0},
    }
    assert {"runtime", "version", "dtype", "positions"} <= set(report["reference"])
    assert report["reference"]["positions"] >= 512
    entry = report["targets"]["gguf"]
    assert entry["artifact"] == "gguf/gemma4-demo-q4_0.gguf"
    assert entry["bytes"] == (demo / entry["artifact"]).stat().st_size
    assert {"tensors", "blocks", "exact_blocks", "exact_fraction", "max_ulp"} <= set(entry["weights"])
    assert {
        "positions", "mean_kld", "p999_kld", "max_kld", "same_top_p", "rms_delta_p", "max_abs", "ppl",
        "ppl_reference",
    } <= set(entry["logits"])  # fmt: skip
    assert {"name", "version", "mean_kld_same_weights"} <= set(entry["runtime"])
    assert entry["runtime"]["runner"] == "gguf.llamacpp"
    assert {gate["name"] for gate in entry["gates"]} == {
        "exact_fraction", "exact_values", "on_lattice_fraction", "mean_kld", "same_top_p",
        "graph_kld", "same_as_built", "engine_same_tokens", "engine_same_prompts", "engine_same_ends",
    }  # fmt: skip
    assert all(set(gate) - {"note"} == {"name", "limit", "value", "passed"} for gate in entry["gates"])


@pytest.mark.slow
def test_the_demo_is_exact_and_ten_times_closer_than_naive_q4_0(demo):
    targets = json.loads((demo / "report.json").read_text())["targets"]
    assert list(targets) == ["gguf", "onnx", "litert"]
    for entry in targets.values():
        assert entry["passed"] is True
        assert entry["weights"]["exact_fraction"] == 1.0
        assert entry["weights"]["max_ulp"] == 0
        assert entry["logits"]["mean_kld"] * 10 <= entry["baseline"]["logits"]["mean_kld"]
        assert entry["runtime"]["mean_kld_same_weights"] < entry["logits"]["mean_kld"] * 1.5


@pytest.mark.slow
def test_the_manifest_describes_what_lies_beside_it(demo):
    manifest = json.loads((demo / "manifest.json").read_text())
    assert {entry["path"] for entry in manifest["artifacts"]} == set(files(demo)) - {"manifest.json"}
    for entry in manifest["artifacts"]:
        data = (demo / entry["path"]).read_bytes()
        assert entry["bytes"] == len(data)
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    from converter.demo import DEMO

    for entry in manifest["source"]["files"]:
        assert entry["sha256"] == hashlib.sha256((DEMO / entry["path"]).read_bytes()).hexdigest()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        entry["path"] for entry in manifest["source"]["files"]
    }
    formats = {tensor["stored_as"]: tensor["format"] for tensor in manifest["targets"]["gguf"]["tensors"]}
    assert formats["token_embd.weight"] == "Q4_0"
    assert manifest["tool"]["name"] == "qatconvert"
    assert manifest["options"]["validation"]["baseline"] == "naive-q4_0"
    assert manifest["options"]["validation"]["positions"] == 512
    assert manifest["targets"]["gguf"]["options"]["off_lattice"] == "q8_0"
    assert {"gguf", "numpy", "numba"} <= set(manifest["libraries"])


@pytest.mark.slow
def test_nothing_written_names_this_machine_or_a_time(demo):
    for name in ("manifest.json", "report.json", "report.md", "report.html", "ollama/Modelfile"):
        text = (demo / name).read_text()
        assert os.uname().nodename not in text
        assert str(demo.parent) not in text
        assert str(Path.home()) + "/" not in text
        assert not re.search(r"20\d\d-\d\d-\d\dT\d\d", text)


def test_the_same_input_gives_the_same_bytes(qatconvert, tiny, tmp_path):
    for name in ("one", "two"):
        assert qatconvert(tiny, "--no-validate", "-o", tmp_path / name).returncode == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")
    for name in files(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_without_validation_the_report_claims_nothing(qatconvert, tiny, tmp_path):
    done = qatconvert(tiny, "--no-validate", "--json", "-o", tmp_path / "out")
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["reference"] is None
    assert report["targets"]["gguf"]["passed"] is None


def test_the_conversion_imports_neither_torch_nor_transformers(tiny, tmp_path):
    script = (
        "import sys\nfrom converter.cli import group\n"
        f"group([{str(tiny)!r}, '--no-validate', '-o', {str(tmp_path / 'out')!r}], standalone_mode=False)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "manifest.json").exists()


def test_a_failed_gate_is_status_3_and_the_artifact_is_there(qatconvert, tiny, tmp_path):
    done = qatconvert(tiny, "--gate", "mean_kld=0", "--positions", "32", "-o", tmp_path / "out")
    assert done.returncode == 3, done.stderr
    assert "mean_kld failed: " in done.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["targets"]["gguf"]["passed"] is False
    assert (tmp_path / "out" / report["targets"]["gguf"]["artifact"]).exists()


@pytest.mark.parametrize("gate", ["speed=1", "mean_kld", "mean_kld=-1", "mean_kld=nan"])
def test_a_gate_that_does_not_exist_is_wrong_usage(qatconvert, tiny, gate):
    done = qatconvert(tiny, "--gate", gate)
    assert done.returncode == 2
    assert "mean_kld=0.01" in done.stderr


def test_existing_output_is_refused_and_left_alone(qatconvert, tiny, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    done = qatconvert(tiny, "--no-validate", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "--force" in one_line(done)
    assert files(tmp_path / "out") == ["mine"]
    assert qatconvert(tiny, "--no-validate", "--force", "-o", tmp_path / "out").returncode == 0
    assert {"mine", "manifest.json"} <= set(files(tmp_path / "out"))


def test_the_default_output_is_named_after_the_model(qatconvert, tiny, tmp_path):
    model = tmp_path / "My Model"
    shutil.copytree(tiny, model)
    done = qatconvert(model, "--no-validate")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["My-Model-qatconvert"]


def test_a_full_destination_is_refused_before_anything_is_written(tiny, tmp_path):
    """A file system of 64 kB, in a mount namespace of its own."""
    out, listing = tmp_path / "out", tmp_path / "listing"
    out.mkdir()
    script = 'mount -t tmpfs -o size=64k tmpfs "$0" && "$@"; status=$?; ls -A "$0" >&3; exit $status'
    namespace = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        # A container may forbid namespaces; the check itself needs none.
        with pytest.raises(
            DestinationError, match=r"[0-9.]+ [kMGTP]?B needed, [0-9.]+ [kMGTP]?B free; make room"
        ):
            check_space(out, 10**18)
        return
    with listing.open("wb") as stream:
        command = ["bash", "-c", f"exec 3>&{stream.fileno()}; {script}", str(out), PROGRAM, str(tiny)]
        done = subprocess.run(
            [*namespace, *command, "--no-validate", "-o", str(out)],
            capture_output=True,
            text=True,
            timeout=300,
            pass_fds=[stream.fileno()],
        )
    assert done.returncode == 1
    assert re.search(r"[0-9.]+ [kMGTP]?B needed, [0-9.]+ [kMGTP]?B free", one_line(done))
    assert listing.read_text() == ""


def test_a_disk_that_refuses_to_go_on_leaves_nothing(tiny, tmp_path):
    """Files may have 500 kB, a third of what is planned."""
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 500; exec "$@"', "-", PROGRAM, str(tiny), "--no-validate", "-o", "out"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 1
    assert "File too large" in one_line(done)
    assert list(tmp_path.iterdir()) == []


def test_a_destination_that_cannot_be_written_is_one_line(qatconvert, tiny):
    done = qatconvert(tiny, "--no-validate", "-o", "/proc/out")
    assert done.returncode == 1
    assert "/proc" in one_line(done)


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_output_and_the_same_command_completes_it(tiny, tmp_path, signal_number):
    out, scratch = tmp_path / "out", tmp_path / ".out.partial"
    command = [PROGRAM, str(tiny), "-o", str(out), "--positions", "64"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts background jobs with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # The artifact is whole under its temporary name and is being validated.
    wait_for(lambda: any(scratch.glob("gguf/*.gguf")))
    os.kill(process.pid, signal_number)
    _, errors = process.communicate(timeout=60)
    assert not out.exists()
    if signal_number != signal.SIGKILL:
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[signal_number]
        assert without_stages(errors).strip() == "qatconvert: interrupted"
        assert not scratch.exists()
    assert subprocess.run(command, capture_output=True, timeout=600).returncode == 0
    assert (out / "manifest.json").exists()
    assert not scratch.exists()


def test_an_artifact_is_validated_by_its_name_in_the_working_directory(qatconvert, demo_output, tmp_path):
    (tmp_path / "work").mkdir()
    (file,) = (demo_output / "gguf").iterdir()
    shutil.copy(file, tmp_path / "work" / "x.gguf")
    words = ("validate", "x.gguf", "--reference", "gemma4-demo", "--positions", "64", "--json", "-q")
    done = qatconvert(*words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["targets"]["gguf"]["passed"]


def test_an_output_within_the_checkpoint_is_no_part_of_the_source(qatconvert, model):
    done = qatconvert(model, "--no-validate", "-o", model / "out", "-q")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((model / "out" / "manifest.json").read_text("utf-8"))
    listed = {entry["path"] for entry in manifest["source"]["files"]}
    assert "model.safetensors" in listed
    assert not [path for path in listed if path.startswith((".", "out"))]
