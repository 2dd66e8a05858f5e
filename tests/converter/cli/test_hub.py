"""The command line against a server that speaks the Hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import gguf
import pytest

from support.forked import PROGRAM
from support.hub_server import PLAIN, TOKEN, HubServer
from support.stages import without_stages

REPO = "google/gemma-4-9B-it-qat-q4_0-unquantized"


def run(server: HubServer, folder: Path, *words: str, token: str | None = None):
    environment = {**server.environment(folder, token=token), "QATCONVERT_HOME": str(folder / "own")}
    done = subprocess.run(
        [PROGRAM, *words], capture_output=True, text=True, env=environment, cwd=folder, timeout=600
    )
    done.stderr = without_stages(done.stderr)
    return done


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
    commit = published.commit(REPO)
    assert report["source"]["revision"] == commit
    assert report["source"]["date"] == "2026-04-02T12:34:56Z"
    assert report["source"]["files"]["read"] == report["source"]["files"]["compared"] >= 4
    assert report["command"] == f"qatconvert convert gemma4-9b@{commit} --target gguf"
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


def test_the_model_card_comes_along_and_describes_the_gguf(checkpoint_factory, tmp_path):
    model = shutil.copytree(checkpoint_factory("text"), tmp_path / "model")
    text = (
        "---\nlicense: gemma\nlanguage: [en, no]\nbase_model: google/gemma-4-9B\ntags: {a: b}\n---\n# Card\n"
    )
    (model / "README.md").write_text(text)
    with HubServer({REPO: model}) as server:
        done = run(server, tmp_path, "gemma4-9b", "--target", "gguf", "--no-validate", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert "README.md: tags is left out where it is an object" in done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    entries = {entry["path"]: entry for entry in manifest["source"]["files"]}
    assert entries["README.md"]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert entries["README.md"]["verified"] == "git"
    artifact = tmp_path / "out" / "gguf" / "gemma4-9b-q4_0.gguf"
    fields = {name: field.contents() for name, field in gguf.GGUFReader(artifact).fields.items()}
    assert fields["general.name"] == "Gemma 4 9B It Qat Q4_0 Unquantized"
    assert fields["general.license"] == "gemma"
    assert fields["general.languages"] == ["en", "no"]
    assert fields["general.base_model.0.repo_url"] == "https://huggingface.co/google/gemma-4-9B"
    assert "general.tags" not in fields


def test_a_tokenizer_that_the_target_cannot_hold_is_refused_before_the_weights(checkpoint_factory, tmp_path):
    model = shutil.copytree(checkpoint_factory("text"), tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, tokenizer["normalizer"]]}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with HubServer({REPO: model}) as server:
        done = run(server, tmp_path, "gemma4-9b", "--target", "gguf", "-o", "out")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "gguf: tokenizer.json: normalizer.normalizers[0] is NFKC, which llama.cpp does not follow" in line
    assert not list((tmp_path / "huggingface").rglob("*.safetensors"))
    assert not (tmp_path / "out").exists()


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
        done = run(server, tmp_path, "inspect", "my-team/gemma")
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "my-team/gemma is read as the local directory" in line


def blobs(folder):
    """What lies in the cache under the names of a snapshot."""
    return {path.name: path for path in folder.rglob("snapshots/*/*")}


def damage(path):
    """Change one bit near the end, and leave size and times as they were."""
    blob = path.resolve()
    before, content = blob.stat(), bytearray(blob.read_bytes())
    content[-2] ^= 1
    blob.write_bytes(content)
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))


def gguf_of(out):
    return (out / "gguf" / "gemma4-9b-q4_0.gguf").read_bytes()


SHARD = "model-00001-of-00002.safetensors"


def test_nothing_is_converted_from_a_damaged_cache(published, tmp_path):
    assert run(published, tmp_path, "gemma4-9b", "--no-validate", "-o", "first").returncode == 0
    damage(blobs(tmp_path)[SHARD])
    offline = run(published, tmp_path, "gemma4-9b", "--offline", "--no-validate", "-o", "offline")
    assert offline.returncode == 1
    (line,) = offline.stderr.strip().splitlines()
    assert f"{SHARD}: is damaged" in line
    assert "run once without --offline" in line
    assert not (tmp_path / "offline").exists()
    done = run(published, tmp_path, "gemma4-9b", "--no-validate", "-o", "second")
    assert done.returncode == 0, done.stderr
    assert len(published.asked_for(SHARD)) == 2
    assert gguf_of(tmp_path / "first") == gguf_of(tmp_path / "second")


def test_every_command_that_reads_the_cache_names_what_is_damaged(published, tmp_path):
    assert run(published, tmp_path, "gemma4-9b", "--no-validate", "-o", "out").returncode == 0
    artifact = "out/gguf/gemma4-9b-q4_0.gguf"
    damage(blobs(tmp_path)[SHARD])
    for words in (["inspect", "gemma4-9b"], ["validate", artifact, "--reference", "gemma4-9b"]):
        done = run(published, tmp_path, *words, "--offline")
        assert done.returncode == 1
        (line,) = done.stderr.strip().splitlines()
        assert f"{SHARD}: is damaged" in line
    assert run(published, tmp_path, "modelfile", "gemma4-9b", "--offline").returncode == 0
    damage(blobs(tmp_path)["generation_config.json"])
    done = run(published, tmp_path, "modelfile", "gemma4-9b", "--offline")
    assert done.returncode == 1
    assert "generation_config.json: is damaged" in done.stderr


def test_the_manifest_says_how_each_file_was_compared(published, checkpoint_factory, tmp_path):
    def verified(out):
        manifest = json.loads((tmp_path / out / "manifest.json").read_text())
        return {entry["path"]: entry["verified"] for entry in manifest["source"]["files"]}

    expected = {
        **dict.fromkeys(["config.json", "generation_config.json", "tokenizer_config.json"], "git"),
        **dict.fromkeys([SHARD, SHARD.replace("00001", "00002", 1), "tokenizer.json"], "sha256"),
    }
    for words in (["-o", "online"], ["-o", "again"], ["--offline", "-o", "offline"]):
        assert run(published, tmp_path, "gemma4-9b", "--no-validate", *words).returncode == 0
        assert expected.items() <= verified(words[-1]).items()
    assert (
        run(published, tmp_path, str(checkpoint_factory("text")), "--no-validate", "-o", "local").returncode
        == 0
    )
    assert set(verified("local").values()) == {None}
    manifest = json.loads((tmp_path / "offline" / "manifest.json").read_text())
    for entry in manifest["source"]["files"]:
        content = blobs(tmp_path)[entry["path"]].read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_server_without_digests_is_not_said_to_have_been_compared_with(published, tmp_path):
    published.without |= PLAIN
    published.etag = lambda path: f'"etag-of-{path.name}"'
    assert run(published, tmp_path, "gemma4-9b", "--no-validate", "-o", "out").returncode == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {entry["verified"] for entry in manifest["source"]["files"]} == {None}


def changed(directory, tmp_path, name, **values):
    """A copy of a checkpoint whose JSON file `name` has other values."""
    copy = shutil.copytree(directory, tmp_path / "changed")
    document = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps({**document, **values}))
    return copy


def assert_refused_without_weights(server, folder, *words):
    """The one line of a refusal before which no byte of weights was sent."""
    done = run(server, folder, *words)
    assert done.returncode in (1, 2)
    sent = [request.sent for name in ("model.safetensors", SHARD) for request in server.asked_for(name)]
    assert sum(sent) == 0
    assert not [name for name in server.names_asked_for() if name.endswith(".safetensors")]
    (line,) = done.stderr.strip().splitlines()
    return line


MOBILE = "google/gemma-4-E2B-it-qat-mobile-transformers"
QUANTISED = {"quantization_config": {"quant_method": "awq", "bits": 4}}


@pytest.mark.parametrize("words", [["convert"], ["inspect"]])
def test_a_form_that_is_not_read_is_refused_without_its_weights(checkpoint_factory, tmp_path, words):
    with HubServer(
        {REPO: changed(checkpoint_factory("text"), tmp_path, "config.json", **QUANTISED)}
    ) as server:
        line = assert_refused_without_weights(server, tmp_path, *words, "gemma4-9b")
    assert "quant_method 'awq', which is not read" in line


def test_a_rule_that_is_not_read_is_refused_without_weights(checkpoint_factory, tmp_path):
    rules = {"quant_method": "gemma", "module_quant_configs": {"(": {"num_bits": 2}}}
    other = changed(checkpoint_factory("text"), tmp_path, "config.json", quantization_config=rules)
    with HubServer({MOBILE: other}) as server:
        line = assert_refused_without_weights(server, tmp_path, "gemma4-e2b-mobile")
    assert "module_quant_configs: '(' is not a regular expression" in line


def test_an_unknown_architecture_is_refused_without_its_weights(checkpoint_factory, tmp_path):
    with HubServer(
        {REPO: changed(checkpoint_factory("text"), tmp_path, "config.json", model_type="llama")}
    ) as hub:
        line = assert_refused_without_weights(hub, tmp_path, "gemma4-9b")
    assert "model_type 'llama' is unknown" in line


def test_a_tokenizer_that_the_target_cannot_hold_is_refused_without_its_weights(checkpoint_factory, tmp_path):
    source = checkpoint_factory("text")
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    other = changed(source, tmp_path, "tokenizer.json", model={**model, "byte_fallback": False})
    with HubServer({REPO: other}) as server:
        line = assert_refused_without_weights(server, tmp_path, "gemma4-9b")
    assert "gguf: tokenizer.json: model.byte_fallback is false, which llama.cpp does not follow" in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--target", "litert", "--context-length", "10000000"], "the model is trained for"),
        (["--target", "litert", "--context-length", "1"], "--context-length 1: shorter than"),
        (["--target", "gguf", "--system", "\a"], "SYSTEM cannot hold the character U+0007"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused_without_its_weights(published, tmp_path, words, told):
    assert told in assert_refused_without_weights(published, tmp_path, "gemma4-9b", *words)


@pytest.mark.parametrize("target", ["gguf", "onnx", "litert"])
def test_a_damaged_generation_config_is_refused_without_weights(checkpoint_factory, tmp_path, target):
    values = {"suppress_tokens": "all"}
    with HubServer(
        {REPO: changed(checkpoint_factory("text"), tmp_path, "generation_config.json", **values)}
    ) as hub:
        line = assert_refused_without_weights(hub, tmp_path, "gemma4-9b", "--target", target)
    assert "generation_config.json: suppress_tokens" in line


@pytest.mark.parametrize(
    ("rename", "told"),
    [
        (lambda name: None if name.endswith("layers.0.mlp.up_proj.weight") else name, "is missing"),
        (
            lambda name: name + "_packed" if name.endswith("layers.0.mlp.up_proj.weight") else name,
            "is missing",
        ),
    ],
)
def test_an_index_that_lacks_tensors_is_refused_without_its_weights(
    checkpoint_factory, tmp_path, rename, told
):
    source, index = checkpoint_factory("text", shards=2), "model.safetensors.index.json"
    listed = json.loads((source / index).read_text())["weight_map"]
    renamed = {rename(name): file for name, file in listed.items() if rename(name)}
    with HubServer({REPO: changed(source, tmp_path, index, weight_map=renamed)}) as server:
        line = assert_refused_without_weights(server, tmp_path, "gemma4-9b")
    assert "layers.0.mlp.up_proj.weight" in line
    assert told in line


def test_an_index_with_tensors_that_have_no_place_is_refused_without_its_weights(
    checkpoint_factory, tmp_path
):
    source, index = checkpoint_factory("text", shards=2), "model.safetensors.index.json"
    listed = json.loads((source / index).read_text())["weight_map"]
    more = {**listed, "model.layers.0.mlp.up_proj.weight_scale": SHARD}
    with HubServer({REPO: changed(source, tmp_path, index, weight_map=more)}) as server:
        line = assert_refused_without_weights(server, tmp_path, "gemma4-9b")
    assert "'model.layers.0.mlp.up_proj.weight_scale' is unexpected" in line


def test_logits_of_a_damaged_file_are_not_found_for_the_one_that_was_repaired(checkpoint_factory, tmp_path):
    """What an earlier version kept of a damaged file lies under the commit, or under other digests."""
    whole = checkpoint_factory("text", shards=2)
    broken = shutil.copytree(whole, tmp_path / "broken")
    damage(broken / SHARD)
    few = ["--positions", "16", "--target", "gguf"]
    with HubServer({REPO: broken}) as server:
        run(server, tmp_path, "gemma4-9b", *few, "-o", "first")
        server.repositories[REPO].commits[server.commit(REPO)] = whole  # the same commit, other bytes
        run(server, tmp_path, "gemma4-9b", *few, "-o", "second")
        kept = list((tmp_path / "own" / "reference").glob("*.npy"))
        assert len(kept) == 2
        run(
            server,
            tmp_path,
            "validate",
            "second/gguf/gemma4-9b-q4_0.gguf",
            "--reference",
            "gemma4-9b",
            *few[:3],
        )
        assert len(list((tmp_path / "own" / "reference").glob("*.npy"))) == 2  # found by its digests
    reports = [json.loads((tmp_path / out / "report.json").read_text()) for out in ("first", "second")]
    assert reports[0]["source"]["revision"] == reports[1]["source"]["revision"]
