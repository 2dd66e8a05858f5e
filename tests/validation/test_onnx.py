"""ONNX artifacts as the pipeline proves them: each way to run them measured, one chosen, files that match."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from converter.errors import ValidationError
from converter.pipeline.conversion import Conversion, convert
from support.forked import PROGRAM
from targets.onnx.accuracy import accuracy_levels, with_accuracy_level
from validation.limits import ANSWERS, DENSE
from validation.proof import Artifact, inferred_plan, prove, validate
from validation.settings import Settings, prepare

LEVELS = [{"accuracy_level": 4}, {"accuracy_level": 0}]


@pytest.fixture(scope="module")
def artifact(
    checkpoint_factory: Callable[..., Path],
    write_onnx: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """The ONNX model of a random checkpoint; nobody may change it."""
    return write_onnx(checkpoint_factory("text"), tmp_path_factory.mktemp("onnx"), accuracy_level=4)


def check_files(out: Path, level: int) -> None:
    """That what lies in ``out`` runs at ``level`` and is what its manifest and report say."""
    manifest = json.loads((out / "manifest.json").read_text())
    listed = {file["path"]: (file["bytes"], file["sha256"]) for file in manifest["artifacts"]}
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    del found["manifest.json"]
    assert listed == {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in found.items()}
    assert accuracy_levels(found["onnx/model.onnx"]) == (level,)
    entry = json.loads(found["report.json"])["targets"]["onnx"]
    assert entry["bytes"] == len(found["onnx/model.onnx"]) + len(found["onnx/model.onnx.data"])
    assert {"onnx", "onnxruntime", "mobius-onnx"} <= set(manifest["libraries"])


def converted(checkpoint: Path, out: Path, home: Path, **settings: Any) -> Any:
    """The outcome of a conversion to ONNX."""
    options = settings.pop("options", {})
    validation = {"cache": home, **settings}
    return convert(Conversion(str(checkpoint), ["onnx"], out, options=options, validation=validation))


def test_the_demo_is_measured_at_both_levels_and_passes_its_gates(
    demo_checkpoint: Path, tmp_path: Path
) -> None:
    settings = {"cache": tmp_path / "cache"}
    outcome = convert(Conversion(str(demo_checkpoint), ["onnx"], tmp_path / "out", validation=settings))
    assert outcome.exit_status == 0
    entry = outcome.report["targets"]["onnx"]
    names = [gate["name"] for gate in entry["gates"]]
    assert set(names) == {"same_as_built", *(name for name in DENSE if name not in ANSWERS)}
    assert len(names) == len(set(names))
    assert entry["weights"]["exact_fraction"] == 1.0
    rounded, exact = entry["alternatives"]
    assert (rounded["accuracy_level"], exact["accuracy_level"]) == (4, 0)
    assert rounded["passed"]
    assert exact["passed"]
    assert [one["chosen"] for one in (rounded, exact)].count(True) == 1
    assert exact["mean_kld"] < rounded["mean_kld"] / 3
    assert exact["decode_mean_kld"] < 1e-9 < rounded["decode_mean_kld"]
    chosen = rounded if rounded["chosen"] else exact
    assert entry["logits"]["mean_kld"] == chosen["mean_kld"]
    assert entry["gates"][: len(chosen["gates"])] == chosen["gates"]
    assert entry["runtime"]["accuracy_level"] == chosen["accuracy_level"]
    assert entry["runtime"]["decode"]["tokens_per_second"] == chosen["decode_tokens_per_second"]
    assert entry["runtime"]["mean_kld_same_weights"] == pytest.approx(chosen["mean_kld"], rel=0.9)
    check_files(tmp_path / "out", chosen["accuracy_level"])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["targets"]["onnx"]["chosen"] == {"accuracy_level": chosen["accuracy_level"]}
    for name in ("report.md", "report.html"):
        text = (tmp_path / "out" / name).read_text("utf-8")
        assert "Ways to run it" in text
        assert f"accuracy level {chosen['accuracy_level']} (chosen)" in text


def test_a_level_that_fails_a_gate_gives_way_to_the_one_that_passes(
    checkpoint_factory: Callable[..., Path], home: Path, tmp_path: Path
) -> None:
    outcome = converted(checkpoint_factory("text"), tmp_path / "out", home, gates={"mean_kld": 0.002})
    rounded, exact = outcome.report["targets"]["onnx"]["alternatives"]
    assert [gate["name"] for gate in rounded["gates"] if not gate["passed"]] == ["mean_kld"]
    assert (rounded["passed"], exact["passed"], exact["chosen"]) == (False, True, True)
    assert outcome.exit_status == 0
    check_files(tmp_path / "out", 0)


def test_if_no_level_passes_the_closest_is_written_and_the_gate_fails(
    checkpoint_factory: Callable[..., Path], home: Path, tmp_path: Path
) -> None:
    outcome = converted(checkpoint_factory("text"), tmp_path / "out", home, gates={"max_kld": 1e-9})
    entry = outcome.report["targets"]["onnx"]
    assert [one["chosen"] for one in entry["alternatives"]] == [False, True]
    assert entry["runtime"]["accuracy_level"] == 0
    assert outcome.exit_status == 3
    check_files(tmp_path / "out", 0)


@pytest.mark.parametrize("level", [0, 4])
def test_a_level_that_is_asked_for_is_not_chosen(
    level: int, checkpoint_factory: Callable[..., Path], home: Path, tmp_path: Path
) -> None:
    options = {"accuracy_level": level}
    outcome = converted(checkpoint_factory("text"), tmp_path / "out", home, options=options)
    entry = outcome.report["targets"]["onnx"]
    assert "alternatives" not in entry
    assert entry["runtime"]["accuracy_level"] == level
    check_files(tmp_path / "out", level)


def test_without_validation_the_most_accurate_level_is_written(
    checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    convert(Conversion(str(checkpoint_factory("text")), ["onnx"], tmp_path / "out", validation=None))
    check_files(tmp_path / "out", 0)


def test_what_cannot_be_validated_has_the_most_accurate_level(
    checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    """The files of logits are larger than a process may write, and those of the artifact are not."""
    done = subprocess.run(
        [PROGRAM, checkpoint_factory("text"), "--target", "onnx", "-o", tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "QATCONVERT_HOME": str(tmp_path / "home")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000)),
    )
    assert done.returncode == 1
    assert "onnx/model.onnx could not be validated: " in done.stderr
    check_files(tmp_path / "out", 0)


def test_the_gguf_beside_it_is_proven_as_ever(
    checkpoint_factory: Callable[..., Path], home: Path, tmp_path: Path
) -> None:
    validation = {"cache": home, "same_weights": False, "positions": 64}
    conversion = Conversion(
        str(checkpoint_factory("text")), ["gguf", "onnx"], tmp_path / "out", validation=validation
    )
    targets = convert(conversion).report["targets"]
    assert "alternatives" not in targets["gguf"]
    assert "decode_mean_kld" not in {gate["name"] for gate in targets["gguf"]["gates"]}
    assert "decode_mean_kld" in {gate["name"] for gate in targets["onnx"]["gates"]}
    check_files(tmp_path / "out", targets["onnx"]["runtime"]["accuracy_level"])


def test_an_artifact_that_exists_is_run_as_it_is(artifact: Any, home: Path, tmp_path: Path) -> None:
    entry = validate(artifact.checkpoint, "onnx", artifact.path, cache=home)["entry"]
    assert entry["passed"] is True
    assert "alternatives" not in entry
    assert entry["runtime"]["accuracy_level"] == 4


def test_a_way_that_the_runtime_refuses_is_told_and_another_is_chosen(artifact: Any, home: Path) -> None:
    choices = [{"accuracy_level": "high"}, {"accuracy_level": 0}]
    settings = Settings(positions=64, cache=home, same_weights=False)
    with prepare(artifact.checkpoint, settings) as prepared:
        plan = inferred_plan("onnx", artifact.path, artifact.checkpoint)
        proof = prove(prepared, Artifact(artifact.path, plan, choices))
        with pytest.raises(ValidationError, match="accuracy_level"):
            prove(prepared, Artifact(artifact.path, plan, choices[:1] * 2))
    assert proof.choice == {"accuracy_level": 0}
    refused, kept = proof.entry["alternatives"]
    assert (refused["accuracy_level"], refused["passed"], refused["chosen"]) == ("high", False, False)
    assert "accuracy_level" in refused["error"]
    assert kept["chosen"]


def test_other_work_ends_before_the_runtime_is_timed_and_the_reference_is_computed_once(
    artifact: Any, home: Path, tmp_path: Path
) -> None:
    happened: list[str] = []
    settings = Settings(positions=48, cache=tmp_path / "cache")
    with prepare(artifact.checkpoint, settings) as prepared:
        proof = prove(
            prepared,
            Artifact(artifact.path, inferred_plan("onnx", artifact.path, artifact.checkpoint), LEVELS),
            settle=lambda: happened.append("settled"),
            progress=lambda stage, done, total: happened.append(stage) if 0 < done == total else None,
        )
    in_order = list(dict.fromkeys(happened))
    runs = [f"running onnxruntime, accuracy level {level}" for level in (4, 0)]
    reference = "reference logits (transformers)"
    assert [stage for stage in in_order if stage in ("settled", reference, *runs)] == [
        reference,
        "settled",
        *runs,
    ]
    for stage in ("settled", "checking weights (onnx)", "transformers on onnx's weights"):
        assert happened.count(stage) == 1
    assert proof.entry["runtime"]["mean_kld_same_weights"] > 0


def without_memory(model: bytes) -> bytes:
    """The model with zeros in place of all keys and values that it is given: only decoding shows it."""
    proto = onnx.ModelProto.FromString(model)
    caches = [one.name for one in proto.graph.input if one.name.startswith("past_key_values.")]
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if name in caches:
                node.input[index] = f"{name}.forgotten"
    zero = numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    proto.graph.initializer.append(zero)
    for name in caches:
        proto.graph.node.insert(0, helper.make_node("Mul", [name, "zero"], [f"{name}.forgotten"]))
    changed: bytes = proto.SerializeToString()
    return changed


@pytest.mark.parametrize("level", [0, 4])
def test_a_cache_that_is_lost_fails_the_gate_of_decoding_alone(
    level: int, artifact: Any, home: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(with_accuracy_level(without_memory(artifact.path.read_bytes()), level))
    (tmp_path / "model.onnx.data").write_bytes(artifact.path.with_name("model.onnx.data").read_bytes())
    entry = validate(artifact.checkpoint, "onnx", model, cache=home, foreign=True)["entry"]
    assert entry["passed"] is False
    (failed,) = (gate for gate in entry["gates"] if not gate["passed"])
    assert failed["name"] == "decode_mean_kld"
    assert failed["value"] > 40 * failed["limit"]
