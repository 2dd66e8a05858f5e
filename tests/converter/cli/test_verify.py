"""``qatconvert verify`` as a pipeline runs it: exit status, what is printed, and how quickly."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.altered_output import edit_manifest, tamper
from support.hub_server import HubServer

PROGRAM = str(Path(sys.executable).with_name("qatconvert"))
GGUF = "gguf/gemma4-demo-q4_0.gguf"
REPO = "google/gemma-4-9B-it-qat-q4_0-unquantized"


@pytest.fixture
def out(demo_output, tmp_path) -> Path:
    """A copy in the directory where the command runs."""
    (tmp_path / "work").mkdir()
    return shutil.copytree(demo_output, tmp_path / "work" / "out")


def test_an_output_as_it_was_written_is_status_0_with_one_clear_line(qatconvert, out):
    from importlib.metadata import version

    done = qatconvert("verify", "out")
    assert (done.returncode, done.stderr) == (0, "")
    *notes, last = done.stdout.splitlines()
    assert notes == ["the report says: gguf: not validated"]
    assert last.startswith("out: 5 files (1.5")
    assert last.endswith(
        f"are as its manifest says; written by qatconvert {version('qatconvert')} from the directory "
        "gemma4-demo, which has no commit"
    )


def test_a_difference_is_status_3_and_the_first_is_named(qatconvert, out):
    (out / "ollama" / "Modelfile").unlink()
    (out / "a").write_text("x")
    done = qatconvert("verify", "out")
    assert (done.returncode, done.stderr) == (3, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["a: is a file that the manifest does not list", "ollama/Modelfile: is missing"]
    assert lines[-1].startswith("out: 2 differences, the first in a; written by qatconvert ")


def test_json_has_every_difference(qatconvert, out):
    for number in range(60):
        (out / f"{number:02}").write_text("x")
    done = qatconvert("verify", "out", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 3
    assert found["passed"] is False
    assert [one["path"] for one in found["differences"]] == [f"{number:02}" for number in range(60)]
    assert found["rebuild"] is None
    assert found["source"] == {"repo": None, "revision": None, "path": "gemma4-demo"}
    shown = qatconvert("verify", "out").stdout.splitlines()
    assert "and 10 more (--json lists them)" in shown
    assert shown[-1].startswith("out: 60 differences, the first in 00; ")


def test_a_report_that_failed_is_told_and_is_no_difference(qatconvert, model, tmp_path):
    out = tmp_path / "work" / "out"
    assert qatconvert(model, "--positions", 16, "--gate", "mean_kld=0", "-o", out).returncode == 3
    done = qatconvert("verify", out)
    assert done.returncode == 0
    assert "the report says: gguf: failed" in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["absent"], 1, "absent: no such directory"),
        (["out/manifest.json"], 1, "is not a directory"),
        (["out/gguf"], 1, "has no manifest.json"),
        ([], 2, "Missing argument 'OUT'"),
        (["out", "--reference", "gemma4-demo"], 2, "--reference has no effect without --rebuild"),
        (["out", "--offline"], 2, "--offline has no effect without --rebuild"),
        (["out", "more"], 2, "unexpected extra argument"),
    ],
)
def test_what_cannot_be_verified_is_one_line(qatconvert, error_of, out, words, status, message):
    assert message in error_of(qatconvert("verify", *words), status)


def test_no_name_or_version_of_a_stranger_reaches_the_terminal_as_a_command(qatconvert, out):
    (out / "\x1b]0;title\x07").write_text("x")
    done = qatconvert("verify", "out")
    assert done.returncode == 3
    assert all(line.isprintable() for line in done.stdout.splitlines())


def test_it_imports_no_model_code(demo_output):
    script = (
        "import sys\nfrom converter.cli import group\n"
        f"assert group(['verify', {str(demo_output)!r}], standalone_mode=False) == 0\n"
        "heavy = {'torch', 'transformers', 'numba', 'numpy', 'gguf', 'onnx', 'huggingface_hub'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_converting_again_imports_neither_torch_nor_transformers(demo_output):
    script = (
        "import sys\nfrom converter.cli import group\n"
        f"assert group(['verify', {str(demo_output)!r}, '--rebuild'], standalone_mode=False) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_converting_again_says_by_which_options(qatconvert, out):
    done = qatconvert("verify", "out", "--rebuild")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-2:] == [
        'gguf: off_lattice "q8_0"',
        "converted again: the same bytes in 2 files; 3 reports of measured figures are not made again",
    ]


def test_a_tampering_that_the_manifest_hides_is_status_3(qatconvert, out):
    tamper(out, GGUF)
    assert qatconvert("verify", "out").returncode == 0
    done = qatconvert("verify", "out", "--rebuild")
    assert done.returncode == 3
    assert f"{GGUF}: is not what the source gives, from byte " in done.stdout
    assert f"out: 1 difference, the first in {GGUF}; written" in done.stdout


def test_a_difference_by_other_versions_says_so(qatconvert, out):
    tamper(out, GGUF)
    edit_manifest(out, lambda content: content["libraries"].update(gguf="0.18.0"))
    done = qatconvert("verify", "out", "--rebuild")
    assert done.returncode == 3
    assert "warning: this was written by gguf 0.18.0, " in done.stderr
    assert "other versions wrote these files, and may be the whole reason" in done.stdout


def test_the_source_is_the_recorded_commit_from_the_cache(checkpoint_factory, tmp_path):
    """Also once the branch has moved on, and without a network."""
    first, second = (checkpoint_factory("text", shards=2), checkpoint_factory("text", seed=5))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, *words], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300
        )

    with HubServer({REPO: first}) as server:
        environment = {**server.environment(tmp_path), "QATCONVERT_HOME": str(tmp_path / "own")}
        commit = server.commit(REPO)
        assert run("gemma4-9b", "--no-validate", "-o", "out").returncode == 0
        server.repositories[REPO].publish(second)
        done = run("verify", "out", "--rebuild")
        assert done.returncode == 0, (done.stdout, done.stderr)
        assert f"from {REPO} at commit {commit}" in done.stdout
    done = run("verify", "out", "--rebuild", "--offline")
    assert done.returncode == 0, (done.stdout, done.stderr)
    done = run("verify", "out", "--rebuild", "--reference", str(second))
    assert done.returncode == 1
    assert "is not the source that was converted" in done.stderr
