"""A small model repository on disk, and a process or test that knows only a given Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from converter.hub import Snapshot
from support.hub_server import HubServer, sha256

REPO = "google/gemma-4-9B-it-qat-q4_0-unquantized"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
BESIDE = (
    "config.json",
    "evaluation_text.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",
)
#: Every file of a sharded model that a conversion reads.
NEEDED = (*BESIDE, "LICENSE", INDEX, *SHARDS)
#: The file of a model that is not sharded.
WEIGHTS = "model.safetensors"
UNUSED = (
    "picture.png",
    "pytorch_model.bin",
    "model-q4_0.gguf",
    "onnx/model.onnx",
    "original/a.safetensors",
)

DOWNLOAD = (
    "import sys; from converter.hub import download; from converter.names import resolve\n"
    "snapshot = download(resolve(sys.argv[1]))"
)


def write_model(directory: Path, *, sharded: bool = True, rows: int = 64, seed: int = 0) -> Path:
    """A repository with what real ones have, needed or not; each shard holds `rows` x 1024 float32."""
    random = np.random.default_rng(seed)
    for name in (*BESIDE, *UNUSED):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"file": name, "seed": seed}))
    (directory / "LICENSE").write_text("Apache-2.0\n")
    names = SHARDS if sharded else (WEIGHTS,)
    for number, name in enumerate(names):
        values = random.standard_normal((rows, 1024), dtype=np.float32)
        save_file({f"weight.{number}": values}, directory / name)
    if sharded:
        weight_map = {f"weight.{number}": name for number, name in enumerate(names)}
        (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        save_file({"left.over": np.zeros(4, np.float32)}, directory / "old.safetensors")
    return directory


def use_only(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, token: str | None = None
) -> None:
    """Let this process know `server` as its Hub, and nothing of the user who runs the tests."""
    from huggingface_hub import close_session, constants

    environment = server.environment(folder, token)
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "huggingface" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "huggingface" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    close_session()


def assert_whole(snapshot: Snapshot, folder: Path) -> None:
    """What was downloaded is all that is needed of the model in ``folder / "repository"``, as it is there."""
    assert {path.name for path in snapshot.files} == set(NEEDED)
    for path in snapshot.files:
        assert path.read_bytes() == (folder / "repository" / path.name).read_bytes()


def partial_weights(folder: Path) -> Path:
    """Where what has arrived of `WEIGHTS` of the model in ``folder / "repository"`` lies."""
    blobs = folder / "huggingface" / "hub" / f"models--{REPO.replace('/', '--')}" / "blobs"
    return blobs / f"{sha256(folder / 'repository' / WEIGHTS)}.incomplete"


def run_python(code: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
