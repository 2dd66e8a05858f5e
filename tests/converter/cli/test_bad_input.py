"""Damaged and hostile checkpoints: one line, a status, and nothing left, whatever the files hold.

The readers have tests of their own for every rule; here is what a user sees of them.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.raw_safetensors import header_of, write_raw, write_shards, write_tensors

SHARD = "model.safetensors"
INDEX = "model.safetensors.index.json"
BEL = "\x1b]0;title\x07"


def tensors_of(model: Path) -> dict[str, Any]:
    """The tensors of a checkpoint in one file, as bfloat16 bit patterns."""
    content = (model / SHARD).read_bytes()
    length = int.from_bytes(content[:8], "little")
    data = content[8 + length :]
    header = json.loads(content[8 : 8 + length])
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], np.uint16).reshape(entry["shape"]).copy()
        for name, entry in header.items()
        if name != "__metadata__"
    }


def with_tensors(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = tensors_of(model)
    change(tensors)
    write_tensors(model / SHARD, tensors)


def with_header(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The same bytes behind a header that does not fit them."""
    tensors = tensors_of(model)
    header: dict[str, Any] = header_of(tensors)
    change(header)
    write_raw(model / SHARD, header, b"".join(array.tobytes() for array in tensors.values()))


def with_settings(model: Path, file: str = "config.json", **settings: object) -> None:
    path = model / file
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**values, **settings}))


def as_shards(model: Path, **renamed: str) -> None:
    """The checkpoint in two shards; ``renamed`` maps tensors to other files in the index."""
    tensors = tensors_of(model)
    (model / SHARD).unlink()
    names = sorted(tensors)
    halves = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    write_shards(model, {file: {name: tensors[name] for name in part} for file, part in halves.items()})
    index = json.loads((model / INDEX).read_text())
    index["weight_map"].update(renamed)
    (model / INDEX).write_text(json.dumps(index))


# shards


def test_a_truncated_shard(refused, model):
    os.truncate(model / SHARD, (model / SHARD).stat().st_size - 1)
    assert "model.safetensors: tensor 'model.norm.weight' ends at byte" in refused(model)


def test_a_header_larger_than_the_file(refused, model):
    (model / SHARD).write_bytes((10**6).to_bytes(8, "little") + b"{}")
    assert "model.safetensors: header of 1000000 bytes is larger than the file" in refused(model)


def test_overlapping_offsets(refused, model):
    def overlap(header: dict[str, Any]) -> None:
        header["model.norm.weight"]["data_offsets"] = [0, 256]

    with_header(model, overlap)
    assert "overlaps the tensor before it" in refused(model)


@pytest.mark.parametrize("offsets", [[1 << 62, (1 << 62) + 256], [-256, 0]])
def test_offsets_out_of_range(refused, model, offsets):
    with_header(model, lambda header: header["model.norm.weight"].update(data_offsets=offsets))
    assert "tensor 'model.norm.weight'" in refused(model)


def test_a_wrong_shape_for_the_architecture(refused, model):
    def turn(tensors: dict[str, Any]) -> None:
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = tensors[name].T.copy()

    with_tensors(model, turn)
    assert "tensor 'model.layers.0.mlp.up_proj.weight' has shape [128, 256]" in refused(model)


def test_a_row_larger_than_memory_is_not_read(refused, model):
    entry = {"dtype": "BF16", "shape": [1, 1 << 38], "data_offsets": [0, 1 << 39]}
    write_raw(model / SHARD, {"model.embed_tokens.weight": entry})
    os.truncate(model / SHARD, (model / SHARD).stat().st_size + (1 << 39))
    assert "has shape [1, 274877906944], config.json asks for" in refused(model)


def test_a_missing_tensor(refused, model):
    with_tensors(model, lambda tensors: tensors.pop("model.norm.weight"))
    assert "tensor 'norm.weight' is missing" in refused(model)


def test_a_missing_tensor_beside_a_large_file_does_not_wait_for_its_digest(refused, model):
    """40 GB would take 20 seconds to read."""
    rows, columns = 20_000, 1_000_000
    entry = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, 2 * rows * columns]}
    write_raw(model / SHARD, {"vision_tower.large": entry})
    os.truncate(model / SHARD, (model / SHARD).stat().st_size + 2 * rows * columns)
    before = time.monotonic()
    assert "is missing" in refused(model)
    assert time.monotonic() - before < 15


def test_an_unexpected_tensor_whose_name_would_steer_a_terminal(refused, model):
    with_tensors(model, lambda tensors: tensors.update({f"model.{BEL}\n\x9b31m": np.zeros(3, np.uint16)}))
    assert r"tensor 'model.\x1b]0;title\x07\n\x9b31m' is unexpected" in refused(model)


@pytest.mark.parametrize("name", [f"vision_tower.{BEL}", "vision_tower.\ud800", "vision_tower.\u202e"])
def test_a_name_that_no_report_should_hold(refused, model, name):
    with_tensors(model, lambda tensors: tensors.update({name: np.zeros(3, np.uint16)}))
    assert "has a name with unprintable characters; refused" in refused(model)


@pytest.mark.parametrize(
    ("name", "place", "bits"),
    [
        ("model.norm.weight", 5, 0x7FC0),
        ("model.layers.0.mlp.up_proj.weight", (200, 70), 0xFF80),
        ("model.embed_tokens.weight", (1279, 127), 0x7F80),
    ],
)
def test_a_weight_that_is_no_number(refused, model, name, place, bits):
    with_tensors(model, lambda tensors: tensors[name].__setitem__(place, bits))
    assert f"tensor '{name}' has a value that is infinite or not a number in row" in refused(model)


def test_weights_beyond_what_the_format_can_hold(refused, model):
    def enlarge(tensors: dict[str, Any]) -> None:
        bits = tensors["model.embed_tokens.weight"]
        bits[bits & 0x7FFF != 0] += 30 << 7  # 30 binary orders of magnitude

    with_tensors(model, enlarge)
    told = refused(model)
    assert "embed_tokens.weight: a value is beyond the range of Q4_0's float16 scales" in told


# shards by their index


@pytest.mark.parametrize("name", ["../one.safetensors", "/etc/passwd", f"{BEL}.safetensors", "a.bin"])
def test_a_shard_of_a_hostile_name(refused, model, name):
    as_shards(model, **{"model.norm.weight": name})
    assert "model.safetensors.index.json: shard " in refused(model)


def test_a_shard_with_a_very_long_name(refused, model):
    as_shards(model, **{"model.norm.weight": "x" * 4000 + ".safetensors"})
    assert "x.safetensors: " in refused(model)


def test_a_shard_that_is_not_there(refused, model):
    as_shards(model)
    (model / "two.safetensors").unlink()
    assert "two.safetensors: is missing; model.safetensors.index.json names it" in refused(model)


def test_an_index_of_many_values_is_not_built(refused, model):
    as_shards(model)
    (model / INDEX).write_text('{"weight_map": [' + "[]," * 6_000_000 + "[]]}")
    assert "index.json: holds more than 3145728 values" in refused(model)


# what is no checkpoint


def test_a_pickle_checkpoint(refused, model):
    (model / SHARD).rename(model / "pytorch_model.bin")
    assert "pytorch_model.bin: pickle checkpoints are not read" in refused(model)


def test_an_empty_directory(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty").endswith("empty: is empty")


def test_an_unknown_model_type(refused, model):
    with_settings(model, model_type="llama")
    assert "model_type 'llama' is unknown; the known ones are gemma3" in refused(model)


# configuration


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("vocab_size", 10**12),
        ("hidden_size", 0),
        ("head_dim", -1),
        ("intermediate_size", "256"),
        ("num_attention_heads", 1.5),
        ("sliding_window", [512]),
        ("rms_norm_eps", 1e300),
        ("final_logit_softcapping", float("nan")),
        ("layer_types", {"a": 1}),
        ("rope_parameters", {f"{BEL}": {}}),
    ],
)
def test_a_setting_of_the_wrong_kind_or_size(refused, model, key, value):
    with_settings(model, **{key: value})
    assert f"config.json: {key}" in refused(model)


@pytest.mark.parametrize("text", ["", "{", "[" * 10**6, '{"a":' * 10**6, "\udcff", "9" * 5000])
def test_a_configuration_that_is_no_json(refused, model, text):
    (model / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "config.json: " in refused(model)


# tokenizer and other files


def with_tokenizer(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = model / "tokenizer.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_damaged_tokenizer(refused, model):
    os.truncate(model / "tokenizer.json", 5000)
    assert "tokenizer.json: not valid JSON" in refused(model)


def test_a_deeply_nested_tokenizer(refused, model):
    (model / "tokenizer.json").write_text("[" * 10**6)
    assert "tokenizer.json: JSON nested too deeply" in refused(model)


def test_a_tokenizer_without_end(refused, model):
    os.truncate(model / "tokenizer.json", 1 << 40)
    assert "tokenizer.json: larger than the 67108864 bytes" in refused(model)


def test_a_token_of_a_million_characters(refused, checkpoint_factory, tmp_path):
    """Whether scores can describe merges is a question whose cost grows with the square of a token."""
    model = shutil.copytree(checkpoint_factory("gemma3-text"), tmp_path / "model")

    def grow(document: dict[str, Any]) -> None:
        vocabulary = document["model"]["vocab"]
        vocabulary["x" * 10**6] = vocabulary.popitem()[1]
        document["model"]["merges"] = []

    with_tokenizer(model, grow)
    assert "has 1000000 characters, more than 1024" in refused(model)


def test_an_id_far_beyond_the_vocabulary(refused, model):
    with_tokenizer(model, lambda document: document["model"]["vocab"].update({BEL: 10**12}))
    assert r"vocab.'\x1b]0;title\x07' has id 1000000000000" in refused(model)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 1e300}, {"temperature": -1}, {"top_k": 1 << 31}, {"suppress_tokens": [BEL * 999]}],
)
def test_generation_settings_that_no_artifact_can_hold(refused, model, settings):
    with_settings(model, "generation_config.json", **settings)
    assert f"generation_config.json: {next(iter(settings))}" in refused(model)


def test_a_chat_template_is_copied_and_never_run(qatconvert, model, tmp_path):
    template = f"{{% for a in range(10**12) %}}{{{{ ''.__class__.__mro__ }}}}{{% endfor %}}{BEL}\x00\r\n"
    (model / "chat_template.jinja").write_bytes(template.encode())
    done = qatconvert(model, "--no-validate", "-o", tmp_path / "out", seconds=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    (artifact,) = (tmp_path / "out" / "gguf").iterdir()
    assert template.encode() in artifact.read_bytes()


def test_a_chat_template_that_never_ends_ends_the_validation(qatconvert, model, tmp_path):
    loops = "{% for a in range(99999) %}" * 3 + "{% set x = a %}" + "{% endfor %}" * 3
    (model / "chat_template.jinja").write_text(loops)
    done = qatconvert(model, "-o", tmp_path / "out", seconds=120)
    assert done.returncode == 1
    assert "chat template fails: it takes longer than 5 seconds" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "work"]


def test_a_drafter_without_its_model(refused, model):
    with_settings(model, model_type="gemma4_assistant", backbone_hidden_size=1536)
    assert "model_type 'gemma4_assistant' is a drafter's, which proposes tokens to another" in refused(model)


# what only looks like a file


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", [pipe, Path.mkdir, loop, nowhere, device])
@pytest.mark.parametrize("name", [SHARD, "config.json"])
def test_what_is_no_regular_file_is_not_waited_for(refused, model, name, kind):
    (model / name).unlink()
    kind(model / name)
    assert name in refused(model)


@pytest.mark.parametrize("name", [INDEX, "one.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_a_pipe_is_not_waited_for(refused, model, name):
    as_shards(model)
    (model / name).unlink()
    pipe(model / name)
    assert f"{name}: is not a regular file" in refused(model)
