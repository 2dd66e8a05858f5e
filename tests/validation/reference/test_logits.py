"""Reference logits: transformers' own, cached safely, computed from disk where memory is short."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, modeling_utils

from converter.checkpoint.directory import Directory
from converter.checkpoint.opened import open_checkpoint
from converter.checkpoint.safetensors import open_shards
from converter.checkpoint.stored.modules import as_floats
from converter.errors import UsageError, ValidationError
from converter.filenames import INDEX
from converter.system.child import Worker
from support.raw_safetensors import write_tensors
from validation.reference.logits import (
    Cache,
    Computation,
    Model,
    _clear_offload,
    _ingredients,
    _lookup,
    _prune,
    default_cache,
    reference_logits,
)
from validation.reference.model import batches, load_model
from validation.reference.table import Table, find_table
from validation.text import Tokens

pytestmark = pytest.mark.slow

Make = Callable[..., Path]
SEQUENCES = [[2, *range(40, 80)], [2, 900, 5, 7, 11], [2, *range(300, 320)]]
TOKENS = Tokens.of(SEQUENCES)
SOURCE = {"files": ["0" * 64]}


def model_of(directory: Path) -> Model:
    checkpoint = open_checkpoint(directory)
    left_out = tuple(left.name for left in checkpoint.left_out)
    return Model(directory, left_out, checkpoint.architecture.vocabulary)


def straight(directory: Path) -> NDArray[np.float32]:
    """The same logits by the class that transformers chooses for the whole checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.inference_mode():
        return np.concatenate([model(input_ids=torch.tensor([ids])).logits[0].numpy() for ids in SEQUENCES])


@pytest.fixture(scope="module")
def model(checkpoint_factory: Make) -> Model:
    return model_of(checkpoint_factory("text"))


@pytest.fixture(scope="module")
def filled(model: Model, worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with one entry, the logits of ``model``."""
    cache = tmp_path_factory.mktemp("filled")
    reference_logits(model, TOKENS, Computation(worker), cache, Cache(cache, SOURCE))
    return cache


@pytest.mark.parametrize("variant", ["e2b", "12b", "26b-a4b", "31b", "gemma3"])
def test_logits_are_those_of_the_whole_model_in_memory_and_from_disk(
    variant: str, checkpoint_factory: Make, worker: Worker, tmp_path: Path
) -> None:
    directory = checkpoint_factory(variant)
    expected = straight(directory)
    found, steps = {}, {}
    for name, limit, most in (("memory", None, None), ("disk", 2_000_000, None), ("batches", 2_000_000, 1)):
        scratch = tmp_path / name
        scratch.mkdir()
        seen: list[tuple[int, int]] = []
        found[name] = reference_logits(
            model_of(directory),
            TOKENS,
            Computation(worker, max_memory=limit, batch_bytes=most),
            scratch,
            progress=lambda done, total, seen=seen: seen.append((done, total)),  # type: ignore[misc]
        )
        steps[name] = seen
        assert not list(scratch.glob("offload-*"))
    np.testing.assert_allclose(found["memory"], expected, atol=2e-5)
    # from disk in padded batches, so that float32 sums in another order
    one_by_one = [(0, 0), (41, 67), (46, 67), (67, 67)]
    assert steps == {"memory": one_by_one, "disk": [(0, 0), (67, 67)], "batches": one_by_one}
    for name in ("disk", "batches"):
        np.testing.assert_allclose(found[name], expected, atol=1e-3)
        assert np.abs(found[name] - expected).mean() < 2e-6


@pytest.mark.parametrize(("limit", "most"), [(None, None), (2_000_000, None), (2_000_000, 1)])
def test_positions_before_the_first_wanted_are_context_alone(
    limit: int | None, most: int | None, checkpoint_factory: Make, worker: Worker, tmp_path: Path
) -> None:
    directory = checkpoint_factory("e2b")
    whole = straight(directory)
    found = reference_logits(
        model_of(directory),
        Tokens.of(SEQUENCES, [38, 0, 20]),
        Computation(worker, max_memory=limit, batch_bytes=most),
        tmp_path,
    )
    expected = np.concatenate([whole[38:41], whole[41:46], whole[66:67]])
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (10**9, [[3, 2, 5, 1]]),
        (10, [[3, 2], [5, 1]]),
        (9, [[3, 2], [5], [1]]),
        (6, [[3, 2], [5], [1]]),
        (0, [[3], [2], [5], [1]]),
    ],
)
def test_a_batch_holds_what_fits_padded_or_one_sequence(most: int, expected: list[list[int]]) -> None:
    found = batches([[0] * length for length in (3, 2, 5, 1)], most)
    assert [[len(ids) for ids in batch] for batch in found] == expected


def test_a_cached_entry_needs_no_model(filled: Path, worker: Worker, model: Model, tmp_path: Path) -> None:
    gone = replace(model, directory=tmp_path / "gone")
    logits = reference_logits(gone, TOKENS, Computation(worker), tmp_path, Cache(filled, SOURCE))
    assert np.array_equal(logits, straight(model.directory))


def test_an_entry_belongs_to_one_source_text_and_dtype(worker: Worker) -> None:
    entries = [
        _ingredients(TOKENS, SOURCE, Computation(worker)),
        _ingredients(TOKENS, SOURCE, Computation(worker, "float16")),
        _ingredients(TOKENS, SOURCE, Computation(worker, grids=True)),
        _ingredients(Tokens.of(SEQUENCES[:2]), SOURCE, Computation(worker)),
        _ingredients(Tokens.of(SEQUENCES, [0, 0, 2]), SOURCE, Computation(worker)),
        _ingredients(TOKENS, {**SOURCE, "files": ["1" * 64]}, Computation(worker)),
    ]
    assert all(a != b for a, b in combinations(entries, 2))
    assert entries[0]["versions"] == {"torch": torch.__version__, "transformers": transformers.__version__}


def test_a_damaged_entry_is_computed_anew(filled: Path, worker: Worker, model: Model, tmp_path: Path) -> None:
    cache = shutil.copytree(filled, tmp_path / "cache")
    (entry,) = cache.glob("*.npy")
    with entry.open("r+b") as file:
        file.seek(-7, os.SEEK_END)
        file.write(b"\x55")
    logits = reference_logits(model, TOKENS, Computation(worker), tmp_path, Cache(cache, SOURCE))
    assert np.array_equal(logits, np.load(next(filled.glob("*.npy"))))
    assert entry.read_bytes() == next(filled.glob("*.npy")).read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry, note: entry.unlink(),
        lambda entry, note: note.unlink(),
        lambda entry, note: note.write_text("{"),
        lambda entry, note: note.write_text("[]"),
        lambda entry, note: entry.write_bytes(b""),
        lambda entry, note: os.truncate(entry, entry.stat().st_size - 4),
    ],
)
def test_a_damaged_entry_is_not_found(
    damage: Callable[[Path, Path], object], filled: Path, model: Model, tmp_path: Path
) -> None:
    cache = shutil.copytree(filled, tmp_path / "cache")
    (entry,) = cache.glob("*.npy")
    positions = sum(map(len, SEQUENCES))
    assert _lookup(cache, entry.stem, positions, model.vocabulary) is not None
    damage(entry, entry.with_suffix(".json"))
    assert _lookup(cache, entry.stem, positions, model.vocabulary) is None


def test_a_cache_that_cannot_be_written_is_done_without(model: Model, worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a directory should be")
    logits = reference_logits(
        model,
        TOKENS,
        Computation(worker, "bfloat16"),
        tmp_path,
        Cache(tmp_path / "cache", SOURCE),
    )
    assert logits.dtype == np.float32
    assert 0 < np.abs(logits - straight(model.directory)).mean() < 0.2


def test_the_cache_keeps_the_newest_entries(tmp_path: Path) -> None:
    now = time.time()
    for number in range(10):
        for suffix in (".npy", ".json"):
            path = tmp_path / f"{number}{suffix}"
            path.write_text("entry")
            os.utime(path, (now - number, now - number))
    for age in (60, 100_000):
        for name in (f".{age}.npy.0.partial", f"undescribed-{age}.npy"):
            (tmp_path / name).write_text("half")
            os.utime(tmp_path / name, (now - age, now - age))
    _prune(tmp_path)
    assert {path.stem for path in tmp_path.glob("*.npy")} == {*map(str, range(8)), "undescribed-60"}
    assert [path.name for path in tmp_path.glob("*.partial")] == [".60.npy.0.partial"]
    assert {path.stem for path in tmp_path.glob("*.json")} == set(map(str, range(8)))


def test_an_unknown_dtype_is_a_usage_error(tmp_path: Path, worker: Worker) -> None:
    with pytest.raises(UsageError, match="'float8'; known: float32, bfloat16, float16"):
        reference_logits(Model(tmp_path, (), 9), TOKENS, Computation(worker, "float8"), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, name: tensors.pop(name), "has no model.layers.0.self_attn.q_proj.weight"),
        (
            lambda tensors, name: tensors.update({name.replace("q_proj", "z_proj"): tensors[name]}),
            "has an unknown model.layers.0.self_attn.z_proj.weight",
        ),
        (
            lambda tensors, name: tensors.update({name: tensors[name][:-1]}),
            "another shape of model.layers.0.self_attn.q_proj.weight",
        ),
    ],
)
def test_weights_that_are_not_the_checkpoints_are_never_made_up(
    change: Callable[..., object], message: str, checkpoint_factory: Make, worker: Worker, tmp_path: Path
) -> None:
    source = checkpoint_factory("e2b")
    model = model_of(source)
    shutil.copytree(source, tmp_path / "model")
    found = open_shards(Directory(source)).tensors
    tensors = {name: one.read_rows(0, one.rows).reshape(one.shape) for name, one in found.items()}
    change(
        tensors,
        next(name for name in tensors if name.endswith("language_model.layers.0.self_attn.q_proj.weight")),
    )
    write_tensors(tmp_path / "model" / "model.safetensors", tensors)
    with pytest.raises(ValidationError, match=message) as caught:
        reference_logits(
            Model(tmp_path / "model", model.left_out, model.vocabulary),
            TOKENS,
            Computation(worker),
            tmp_path,
        )
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.npy"))


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QATCONVERT_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/reference")
    monkeypatch.delenv("QATCONVERT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_cache() == Path("/caches/qatconvert/reference")


OFFLOADING = """
import sys, time
from pathlib import Path
from validation.reference.logits import _offload
with _offload(Path(sys.argv[1])) as name:
    Path(name, "weights").write_bytes(bytes(1000))
    print(name, flush=True)
    time.sleep(600)
"""


def test_weights_that_a_killed_run_left_on_the_disk_are_removed_and_those_in_use_are_not(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", OFFLOADING, str(tmp_path)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second,
    ):
        killed, running = (Path((run.stdout or sys.stdin).readline().strip()) for run in (first, second))
        try:
            first.kill()
            first.wait(10)
            assert (killed / "weights").exists()
            _clear_offload(tmp_path)
            assert not killed.exists()
            assert (running / "weights").exists()
        finally:
            second.kill()


def test_a_directory_for_weights_without_a_lock_goes_when_it_is_a_day_old(tmp_path: Path) -> None:
    for name, age in (("offload-new", 60), ("offload-old", 100_000), ("other", 100_000)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / "offload-link").symlink_to(tmp_path / "other")
    _clear_offload(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["offload-link", "offload-new", "other"]


@pytest.fixture
def texts_rows(checkpoint_factory: Make) -> tuple[Path, Table]:
    """A checkpoint with a table of per-layer embeddings, and the table."""
    directory = checkpoint_factory("e2b")
    table = find_table(directory, AutoConfig.from_pretrained(directory).get_text_config())
    assert table is not None
    return directory, table


def test_the_table_of_per_layer_embeddings_stays_on_the_disk(texts_rows: tuple[Path, Table]) -> None:
    directory, table = texts_rows
    options = {"dtype": "float32", "max_memory": None, "scratch": None, "grids": False, "untied": False}
    model = load_model({"model": directory, "left_out": model_of(directory).left_out, **options})
    assert not any("embed_tokens_per_layer" in name for name, _ in model.named_parameters())
    rows = model.model.embed_tokens_per_layer
    ids = torch.tensor([[5, 900, 5], [table.rows - 1, 0, 7]])
    stored = open_shards(Directory(directory)).tensors[table.name]
    whole = torch.tensor(as_floats(stored.read_rows(0, table.rows)))
    scale = model.config.hidden_size_per_layer_input**0.5
    assert torch.equal(rows(ids), whole[ids] * scale)
    with pytest.raises(IndexError, match=f"has {table.rows} rows, not one for token {table.rows}"):
        rows(torch.tensor([table.rows]))


@pytest.mark.parametrize("key", ["hidden_size_per_layer_input", "vocab_size_per_layer_input"])
def test_a_table_of_another_shape_is_left_to_transformers_which_refuses_it(
    key: str, texts_rows: tuple[Path, Table]
) -> None:
    directory, _ = texts_rows
    text = AutoConfig.from_pretrained(directory).get_text_config()
    setattr(text, key, getattr(text, key) + 1)
    assert find_table(directory, text) is None


def test_no_file_is_mapped_while_a_model_is_loaded(
    checkpoint_factory: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = checkpoint_factory("31b")
    mapped: list[bool] = []

    def opened(file: str, **options: object) -> object:
        found = safe_open(file, **options)
        mapped.append(str(file) in Path("/proc/self/maps").read_text("utf-8"))
        return found

    monkeypatch.setattr(modeling_utils, "safe_open", opened)
    options = {"dtype": "float32", "max_memory": None, "scratch": None, "grids": False, "untied": False}
    load_model({"model": directory, "left_out": model_of(directory).left_out, **options})
    assert mapped == [False]
    AutoModelForCausalLM.from_pretrained(directory)  # what transformers does of itself
    assert mapped == [False, True]


@pytest.mark.parametrize("metadata", [{}, {"metadata": None}], ids=["none", "null"])
def test_an_index_of_files_needs_no_metadata(
    metadata: dict[str, None], checkpoint_factory: Make, tmp_path: Path
) -> None:
    whole = checkpoint_factory("text", shards=2)
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    for path in whole.iterdir():
        (directory / path.name).symlink_to(path)
    listed = json.loads((whole / INDEX).read_text("utf-8"))
    (directory / INDEX).unlink()
    (directory / INDEX).write_text(json.dumps({"weight_map": listed["weight_map"], **metadata}), "utf-8")
    options = {"dtype": "float32", "max_memory": None, "scratch": None, "grids": False, "untied": False}
    found = load_model({"model": directory, "left_out": model_of(directory).left_out, **options})
    expected = load_model({"model": whole, "left_out": model_of(whole).left_out, **options}).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
    with pytest.raises((KeyError, TypeError)):  # what transformers makes of it by itself
        AutoModelForCausalLM.from_pretrained(directory)
