"""A whole validation, of the shipped model and of artifacts that are not what they should be."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from converter.checkpoint.opened import open_checkpoint
from converter.errors import UsageError
from converter.system.progress import no_progress
from validation.proof import validate
from validation.reference.ahead import _hashed

LOGITS = {
    "positions",
    "mean_kld",
    "p999_kld",
    "max_kld",
    "same_top_p",
    "rms_delta_p",
    "max_abs",
    "ppl",
    "ppl_reference",
}


def test_a_checkpoint_is_told_from_others_by_its_files(
    checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    def identity(directory: Path) -> list[str]:
        return _hashed(open_checkpoint(directory), no_progress)

    whole = checkpoint_factory("text")
    damaged = shutil.copytree(whole, tmp_path / "damaged")
    with (damaged / "model.safetensors").open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"\x01")
    assert identity(whole) == identity(whole) != identity(damaged)


@pytest.fixture(scope="module")
def artifact(
    demo_checkpoint: Path, write_gguf: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    return write_gguf(demo_checkpoint, tmp_path_factory.mktemp("demo-gguf"))


@pytest.fixture(scope="module")
def stages() -> list[tuple[str, int, int]]:
    return []


@pytest.fixture(scope="module")
def found(artifact: Any, home: Path, stages: list[tuple[str, int, int]]) -> dict[str, Any]:
    """The demo's validation beside the naive baseline."""
    return validate(
        artifact.checkpoint,
        "gguf",
        artifact.path,
        baseline="naive-q4_0",
        cache=home,
        progress=lambda stage, done, total: stages.append((stage, done, total)),
    )


def damaged(artifact: Any, directory: Path, name: str, data: bytes, row: int = 0) -> Path:
    """A copy of the artifact in which ``data`` replaces the beginning of a row of a Q4_0 tensor."""
    copy = directory / artifact.path.name
    shutil.copyfile(artifact.path, copy)
    tensor = next(t for t in gguf.GGUFReader(copy).tensors if t.name == name)
    with copy.open("r+b") as file:
        file.seek(int(tensor.data_offset) + row * tensor.data.shape[-1])
        file.write(data)
    return copy


def test_the_demo_passes_every_gate_with_room(found: dict[str, Any]) -> None:
    entry = found["entry"]
    assert entry["passed"] is True
    gates = {gate["name"]: gate for gate in entry["gates"]}
    assert list(gates) == [
        "exact_fraction",
        "exact_values",
        "on_lattice_fraction",
        "mean_kld",
        "same_top_p",
        "graph_kld",
        "same_as_built",
        "engine_same_tokens",
        "engine_same_prompts",
        "engine_same_ends",
    ]
    assert gates["exact_fraction"]["value"] == gates["exact_values"]["value"] == 1.0
    assert gates["graph_kld"]["value"] < gates["graph_kld"]["limit"] / 10
    assert entry["differences"] == {"deciding": 0, "descriptive": 0, "listed": []}
    assert gates["mean_kld"]["value"] < gates["mean_kld"]["limit"] / 1.3
    assert 1 - gates["same_top_p"]["value"] < (1 - gates["same_top_p"]["limit"]) / 1.3


def test_the_naive_baseline_would_fail_and_is_ten_times_worse(found: dict[str, Any]) -> None:
    entry, naive = found["entry"], found["entry"]["baseline"]
    assert naive["name"] == "naive-q4_0"
    assert naive["weights"]["exact_fraction"] < 0.9999
    limits = {gate["name"]: gate["limit"] for gate in entry["gates"]}
    assert naive["logits"]["mean_kld"] > limits["mean_kld"]
    assert naive["logits"]["mean_kld"] > 10 * entry["logits"]["mean_kld"]
    assert naive["logits"]["same_top_p"] < limits["same_top_p"]
    assert naive["logits"]["ppl_reference"] == entry["logits"]["ppl_reference"]


def test_the_demo_predicts_its_text_and_naive_rounding_predicts_it_worse(found: dict[str, Any]) -> None:
    ours, naive = found["entry"]["logits"], found["entry"]["baseline"]["logits"]
    assert ours["ppl_reference"] < 10
    assert abs(ours["ppl"] - ours["ppl_reference"]) < 0.05 < naive["ppl"] - ours["ppl"]


def test_the_entry_has_every_key_of_the_contract(found: dict[str, Any]) -> None:
    entry, reference = found["entry"], found["reference"]
    assert {"passed", "weights", "logits", "runtime", "gates"} <= set(entry)
    assert {"tensors", "blocks", "exact_blocks", "exact_fraction", "max_ulp"} <= set(entry["weights"])
    assert set(entry["logits"]) >= LOGITS
    assert {"name", "version", "mean_kld_same_weights"} <= set(entry["runtime"])
    assert all(set(gate) - {"note"} == {"name", "limit", "value", "passed"} for gate in entry["gates"])
    assert {"runtime", "version", "dtype", "positions"} <= set(reference)
    assert reference["runtime"] == "transformers"
    assert reference["positions"] == entry["logits"]["positions"] == len(entry["logits"]["kld"]) == 512
    kinds = [sequence["kind"] for sequence in reference["sequences"]]
    assert set(kinds) == {"help topics", "chats", "beyond the window"}
    assert reference["sequences"][-1] == {"kind": "beyond the window", "positions": 64, "context": 64}
    json.dumps(found, allow_nan=False)


def test_all_that_remains_is_the_runtimes_arithmetic(found: dict[str, Any]) -> None:
    entry = found["entry"]
    assert entry["weights"]["max_ulp"] == 0
    assert entry["runtime"]["mean_kld_same_weights"] == pytest.approx(entry["logits"]["mean_kld"], rel=0.5)
    assert entry["runtime"]["mean_kld_same_weights"] > 0


def test_every_stage_reaches_its_end(found: dict[str, Any], stages: list[tuple[str, int, int]]) -> None:
    last = {stage: (done, total) for stage, done, total in stages}
    assert {
        "tokenizing text (transformers)",
        "reference logits (transformers)",
        "checking weights (gguf)",
        "running llama.cpp",
        "comparing logits (gguf)",
        "dequantizing gguf's weights",
        "transformers on gguf's weights",
        "writing the baseline (gguf)",
    } <= set(last)
    assert all(done == total for done, total in last.values())


def test_the_same_artifact_gives_the_same_figures_from_the_cache(
    artifact: Any, found: dict[str, Any], home: Path
) -> None:
    (entry,) = home.glob("*.npy")
    before = entry.stat().st_ino
    again = validate(artifact.checkpoint, "gguf", artifact.path, cache=home, same_weights=False)
    assert entry.stat().st_ino == before
    assert again["entry"]["logits"] == found["entry"]["logits"]
    assert again["reference"] == found["reference"]


def test_a_limit_that_is_not_kept_fails_the_artifact(
    artifact: Any, found: dict[str, Any], home: Path
) -> None:
    strict = validate(
        artifact.checkpoint, "gguf", artifact.path, cache=home, same_weights=False, gates={"max_kld": 1e-9}
    )["entry"]
    assert strict["passed"] is False
    assert [gate["name"] for gate in strict["gates"] if gate["passed"] is False] == ["max_kld"]


def test_without_logits_of_its_own_weights_an_artifact_is_not_fully_proven(
    artifact: Any, found: dict[str, Any], home: Path
) -> None:
    entry = validate(artifact.checkpoint, "gguf", artifact.path, cache=home, same_weights=False)["entry"]
    assert entry["passed"] is None
    (unrun,) = (gate for gate in entry["gates"] if gate["passed"] is None)
    assert (unrun["name"], unrun["value"]) == ("graph_kld", None)
    assert unrun["note"].startswith("did not run: --no-same-weights")


def test_logits_that_are_not_numbers_fail_and_say_so(
    artifact: Any, found: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    # the scale of a block of the tied head, as float16: one logit is NaN everywhere
    bad = damaged(artifact, tmp_path, "token_embd.weight", struct.pack("<e", math.nan), row=1000)
    entry = validate(artifact.checkpoint, "gguf", bad, cache=home)["entry"]
    assert entry["passed"] is False
    notes = {gate["name"]: gate.get("note") for gate in entry["gates"]}
    assert notes["mean_kld"].startswith("NaN or infinite logits of the artifact at 512 of 512 positions; ")
    assert entry["logits"]["mean_kld"] is None
    assert entry["runtime"]["mean_kld_same_weights"] is None
    json.dumps(entry, allow_nan=False)


def test_a_changed_weight_shows_in_weights_but_not_in_the_runtimes_error(
    artifact: Any, found: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    bad = damaged(artifact, tmp_path, "blk.2.ffn_down.weight", bytes(18 * 2000))
    entry = validate(artifact.checkpoint, "gguf", bad, cache=home)["entry"]
    assert entry["gates"][0]["passed"] is False
    assert 0 < entry["weights"]["blocks"] - entry["weights"]["exact_blocks"] <= 2000
    assert entry["logits"]["mean_kld"] > 5 * found["entry"]["logits"]["mean_kld"]
    assert entry["runtime"]["mean_kld_same_weights"] < 3 * found["entry"]["runtime"]["mean_kld_same_weights"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"gates": {"speed": 1.0}}, "unknown gate 'speed'"),
        ({"baseline": "q2"}, "unknown baseline 'q2'"),
        ({"reference_dtype": "int8"}, "unknown reference dtype 'int8'"),
        ({"text": Path("/nowhere.txt")}, "cannot be read"),
    ],
)
def test_options_that_mean_nothing_are_refused_at_once(
    option: dict[str, Any], message: str, artifact: Any
) -> None:
    with pytest.raises(UsageError, match=message):
        validate(artifact.checkpoint, "gguf", artifact.path, **option)
