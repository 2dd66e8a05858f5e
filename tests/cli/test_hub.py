"""The command line against a server that speaks the Hub's protocol."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hub_server import PLAIN, TOKEN, HubServer

PROGRAM = str(Path(sys.executable).with_name("qatconvert"))
REPO = "google/gemma-4-9B-it-qat-q4_0-unquantized"


def run(server: HubServer, folder: Path, *words: str, token: str | None = None):
    environment = {**server.environment(folder, token=token), "QATCONVERT_HOME": str(folder / "own")}
    return subprocess.run(
        [PROGRAM, *words], capture_output=True, text=True, env=environment, cwd=folder, timeout=600
    )


@pytest.fixture
def published(checkpoint_factory):
    with HubServer({REPO: checkpoint_factory("text", shards=2)}) as server:
        yield server


def test_gemma4_9b_converts_the_day_its_repository_exists(published, tmp_path):
    done = run(published, tmp_path, "gemma4-9b", "--target", "gguf")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "gemma4-9b-qatconvert"
    report = json.loads((out / "report.json").read_text())
    assert report["source"]["repo"] == REPO
    assert report["source"]["revision"] == published.commit(REPO)
    assert report["targets"]["gguf"]["artifact"] == "gguf/gemma4-9b-q4_0.gguf"
    assert report["targets"]["gguf"]["passed"] is True
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["source"]["revision"] == published.commit(REPO)
    assert {entry["path"] for entry in manifest["source"]["files"]} >= {
        "config.json",
        "tokenizer.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }


def test_gemma4_9b_without_a_repository_lists_the_sizes_and_how_to_map_the_name(tmp_path):
    with HubServer({}) as server:
        done = run(server, tmp_path, "gemma4-9b", "--target", "gguf")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert REPO in line
    for size in ("E2B", "E4B", "12B", "26B-A4B", "31B"):
        assert size in line
    assert "qatconvert models add gemma4-9b OWNER/NAME" in line
    assert not list(tmp_path.glob("gemma4-9b*"))


def test_a_mapped_name_converts_the_repository_it_stands_for(checkpoint_factory, tmp_path):
    with HubServer({"my-team/gemma": checkpoint_factory("text")}) as server:
        assert run(server, tmp_path, "models", "add", "gemma4-9b", "my-team/gemma").returncode == 0
        done = run(server, tmp_path, "gemma4-9b", "--no-validate", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["source"]["repo"] == "my-team/gemma"


def test_offline_uses_what_was_downloaded_and_says_what_is_missing(published, tmp_path):
    refused = run(published, tmp_path, "gemma4-9b", "--offline", "--no-validate")
    assert refused.returncode == 1
    assert "run once without --offline" in refused.stderr
    assert run(published, tmp_path, "gemma4-9b", "--no-validate", "-o", "first").returncode == 0
    asked = len(published.requests)
    done = run(published, tmp_path, "gemma4-9b", "--offline", "--no-validate", "-o", "second")
    assert done.returncode == 0, done.stderr
    assert len(published.requests) == asked
    gguf = "gguf/gemma4-9b-q4_0.gguf"
    assert (tmp_path / "first" / gguf).read_bytes() == (tmp_path / "second" / gguf).read_bytes()


def test_a_modelfile_needs_no_weights(published, tmp_path):
    done = run(published, tmp_path, "modelfile", "gemma4-9b")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("FROM ../gguf/gemma4-9b-q4_0.gguf\n")
    assert not [name for name in published.names_asked_for() if name.endswith(".safetensors")]


def test_a_gated_model_names_the_page_and_the_token_and_never_shows_it(checkpoint_factory, tmp_path):
    with HubServer({REPO: checkpoint_factory("text")}) as server:
        server.gated.add(REPO)
        done = run(server, tmp_path, "gemma4-9b", token=TOKEN)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert REPO in line
    assert "licence" in line
    assert TOKEN not in done.stdout + done.stderr


def test_gemma4_9b_converts_from_a_server_that_lists_only_names(published, tmp_path):
    published.without |= PLAIN
    done = run(published, tmp_path, "gemma4-9b", "--no-validate", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["source"]["revision"] == published.commit(REPO)


def test_a_directory_that_is_no_checkpoint_is_one_line_even_where_a_repository_has_its_name(tmp_path):
    (tmp_path / "my-team" / "gemma").mkdir(parents=True)
    with HubServer({}) as server:
        for words in (["my-team/gemma"], ["inspect", "my-team/gemma"]):
            done = run(server, tmp_path, *words)
            assert done.returncode == 1
            (line,) = done.stderr.strip().splitlines()
            assert "my-team/gemma" in line


def test_a_directory_that_is_a_checkpoint_is_told_from_the_repository_of_its_name(
    checkpoint_factory, tmp_path
):
    (tmp_path / "my-team").mkdir()
    (tmp_path / "my-team" / "gemma").symlink_to(checkpoint_factory("text"))
    with HubServer({}) as server:
        done = run(server, tmp_path, "inspect", "my-team/gemma", "--quiet")
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "my-team/gemma is read as the local directory" in line
