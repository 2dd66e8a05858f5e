"""LiteRT on the command line: options, packages, neural processors, Android assets, damaged bundles."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.forked import PROGRAM
from support.hub_server import HubServer

PACKAGES = (
    "litert_torch",
    "litert_lm",
    "litert_lm_builder",
    "ai_edge_litert",
    "litert_converter",
    "flatbuffers",
)
REPO = "google/gemma-4-9B-it-qat-q4_0-unquantized"


@pytest.fixture(scope="module")
def nine(checkpoint_factory, tmp_path_factory) -> Path:
    """What ``qatconvert gemma4-9b --target litert`` leaves the day the Hub has such a repository; the
    assets of an app lie beside it."""
    folder = tmp_path_factory.mktemp("nine")
    options = ["--keep-tflite", "--android-assets", "assets"]
    with HubServer({REPO: checkpoint_factory("text", shards=2)}) as server:
        environment = {**server.environment(folder), "QATCONVERT_HOME": str(folder / "own")}
        done = subprocess.run(
            [PROGRAM, "gemma4-9b", "--target", "litert", *options],
            capture_output=True,
            text=True,
            env=environment,
            cwd=folder,
            timeout=900,
        )
        assert done.returncode == 0, (done.stdout, done.stderr)
        report = json.loads((folder / "gemma4-9b-qatconvert" / "report.json").read_text())
        assert report["source"]["revision"] == server.commit(REPO)
    return folder / "gemma4-9b-qatconvert"


def test_gemma4_9b_converts_to_litert_and_passes_every_gate(nine):
    entry = json.loads((nine / "report.json").read_text())["targets"]["litert"]
    assert entry["artifact"] == "litert/gemma4-9b.litertlm"
    assert entry["bytes"] == (nine / entry["artifact"]).stat().st_size
    assert entry["passed"] is True
    assert entry["weights"]["exact_fraction"] == 1.0
    assert {"exact_fraction", "mean_kld", "same_top_p", "decode_mean_kld"} <= {
        gate["name"] for gate in entry["gates"]
    }


def test_the_manifest_has_the_plan_and_every_file(nine):
    manifest = json.loads((nine / "manifest.json").read_text())
    plan = manifest["targets"]["litert"]
    assert plan["options"]["prefill_lengths"] == [128]
    assert plan["options"]["context_length"] >= 128
    assert "INT4" in plan["operators"]["FULLY_CONNECTED"]
    assert "android_assets" not in plan["options"]
    assert {"ai-edge-litert", "litert-converter", "litert-lm", "litert-torch"} <= set(manifest["libraries"])
    assert {entry["path"] for entry in manifest["artifacts"]} >= {
        "litert/gemma4-9b.litertlm",
        "litert/gemma4-9b.tflite",
    }
    for entry in manifest["artifacts"]:
        assert hashlib.sha256((nine / entry["path"]).read_bytes()).hexdigest() == entry["sha256"]


def test_an_output_with_assets_elsewhere_is_as_its_manifest_says(nine):
    from converter.pipeline.verification import verify

    assert verify(nine).findings == []


def test_the_model_that_is_kept_is_that_of_the_bundle(nine):
    bundle, model = ((nine / "litert" / f"gemma4-9b{end}").read_bytes() for end in (".litertlm", ".tflite"))
    assert model[4:8] == b"TFL3"
    place = bundle.find(model)
    assert place > 0
    assert place % (16 << 10) == 0


def test_the_assets_of_the_app_are_the_bundle(nine):
    assets = nine.parent / "assets"
    bundle = (nine / "litert" / "gemma4-9b.litertlm").read_bytes()
    manifest = json.loads((assets / "gemma4-9b.litertlm.json").read_text())
    assert (assets / "gemma4-9b.litertlm").read_bytes() == bundle
    assert manifest["sha256"] == hashlib.sha256(bundle).hexdigest()
    assert manifest["delivery"] == "base-module"
    assert sorted(path.name for path in assets.iterdir()) == ["gemma4-9b.litertlm", "gemma4-9b.litertlm.json"]


@pytest.mark.parametrize("validate", [True, False])
def test_packages_that_writing_needs_are_named_before_any_work(
    without, validate, error_of, reference, tmp_path
):
    options = [] if validate else ["--no-validate"]
    done = without(PACKAGES, reference, "--target", "litert", "-o", tmp_path / "out", *options)
    assert error_of(done, 2) == (
        "qatconvert: target litert needs packages that are not installed: pip install 'qatconvert[litert]'"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_is_planned_shows_without_the_packages(without, reference):
    done = without(PACKAGES, "inspect", reference, "--target", "litert")
    assert done.returncode == 0, done.stderr
    assert "FULLY_CONNECTED   " in done.stdout
    assert "EMBEDDING_LOOKUP  " in done.stdout
    assert "to write it" in done.stdout


def test_the_plan_says_which_tensors_have_negative_scales(qatconvert, checkpoint_factory):
    done = qatconvert("inspect", checkpoint_factory("text", "extremum8"), "--target", "litert", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["targets"]["litert"]
    formats = {tensor["stored_as"]: tensor["format"] for tensor in plan["tensors"]}
    assert formats["layers.0.mlp.down_proj.weight"] == "INT4+sums"
    assert formats["embed_tokens_per_layer.weight"] == "INT4"  # it is looked up only
    count = list(formats.values()).count("INT4+sums")
    products = plan["operators"]["FULLY_CONNECTED"]
    assert products["INT4"] == products["FLOAT"] == count
    assert any(line.startswith(f"litert: {count} of ") for line in plan["warnings"])


@pytest.mark.slow
def test_what_scales_lose_is_counted_in_the_report(checkpoint_factory, tmp_path):
    from converter.pipeline.conversion import Conversion, convert

    model = str(checkpoint_factory("text", "max7-f32"))
    told: list[str] = []
    outcome = convert(Conversion(model, ["litert"], tmp_path / "out", validation=None), warn=told.append)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert outcome.report == report
    warnings = report["targets"]["litert"]["warnings"]
    assert warnings == told
    rounded, narrowed = (
        re.search(rf"(\d+) of (\d+) blocks have a scale that {why}", "\n".join(warnings))
        for why in ("float16, LiteRT's type", "is exact in the file and that XNNPACK")
    )
    assert rounded is not None
    assert narrowed is not None
    assert 0 < int(rounded[1]) < int(rounded[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--context-length", "32"], "--context-length 32: shorter than the model's sliding window"),
        (["--context-length", "100000000"], "the model is trained for "),
        (["--context-length", "0"], "no number of tokens"),
        (
            ["--context-length", "256", "--prefill-lengths", "64,512"],
            "--prefill-lengths 512: longer than the context of 256 tokens; give at most 256",
        ),
        (["--prefill-lengths", "128,0"], "--prefill-lengths 0: no number of tokens"),
        (["--prefill-lengths", "many"], "give numbers of tokens, as in 128,1024"),
        (["--prefill-lengths", "1_0"], "give numbers of tokens, as in 128,1024"),
        (["--npu", "qualcomm:SM1"], "unknown SoC; known of qualcomm: SA8255, "),
        (["--npu", "tensor:G5"], "expected VENDOR:SOC with VENDOR one of mediatek, qualcomm"),
        (["--npu", "qualcomm:SM8750"], "pip install ai-edge-litert-sdk-qualcomm"),
        (["--npu", "mediatek:mt6991"], "pip install ai-edge-litert-sdk-mediatek"),
        (["--android-assets", ""], "the path is empty"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message, refused, reference):
    assert message in refused(reference, "--target", "litert", *options, status=2)


def test_a_context_too_short_for_the_validation_is_told_before_the_export(
    qatconvert, error_of, reference, tmp_path
):
    options = ["--context-length", "64", "--prefill-lengths", "16", "-o", tmp_path / "out"]
    done = qatconvert(reference, "--target", "litert", *options, seconds=60)
    assert "more than the context of 64: give a longer context, fewer --positions" in error_of(done, 2)
    assert list(tmp_path.glob(".*")) == []
    assert not (tmp_path / "out").exists()


def test_a_missing_sdk_is_told_before_a_model_is_downloaded(qatconvert, error_of):
    done = qatconvert("owner/name", "--target", "litert", "--npu", "qualcomm:SM8750", seconds=60)
    assert "pip install ai-edge-litert-sdk-qualcomm" in error_of(done, 2)


def test_a_tokenizer_that_the_runtime_cannot_hold_is_refused(refused, model):
    tokenizer = model / "tokenizer.json"
    shutil.copy(tokenizer, model / "vocab.json")
    os.rename(tokenizer, model / "tokenizer.bak")
    line = refused(model, "--target", "litert")
    assert "tokenizer.json" in line


def test_too_little_memory_is_told_before_the_export_starts(monkeypatch, checkpoint_factory, tmp_path):
    from converter.errors import TargetError
    from converter.pipeline.conversion import Conversion, convert

    monkeypatch.setattr("converter.system.memory.free_memory", lambda: 100_000_000)
    conversion = Conversion(str(checkpoint_factory("text")), ["litert"], tmp_path / "out", validation=None)
    with pytest.raises(TargetError, match=r"litert: the export takes up to .* and 100 MB are free"):
        convert(conversion)
    assert list(tmp_path.iterdir()) == []


def test_room_for_the_models_that_are_kept_is_looked_for_before_the_export_starts(
    monkeypatch, checkpoint_factory, tmp_path
):
    from converter.errors import DestinationError
    from converter.pipeline.conversion import Conversion, convert

    size = (checkpoint_factory("text") / "model.safetensors").stat().st_size
    usage = shutil.disk_usage(tmp_path)._replace(free=size // 2)  # room for the bundle, not for two
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    conversion = Conversion(
        str(checkpoint_factory("text")),
        ["litert"],
        tmp_path / "out",
        options={"keep_tflite": True},
        validation=None,
    )
    with pytest.raises(DestinationError, match=r"needed, .* free"):
        convert(conversion)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_assets_that_cannot_be_written_leave_what_is_proven(monkeypatch, checkpoint_factory, tmp_path):
    from converter.errors import DestinationError
    from converter.pipeline.conversion import Conversion, convert
    from targets.target import find_target

    def fail(*arguments: object) -> None:
        raise DestinationError("the disk is full")

    target = find_target("gguf")  # whose export takes no time
    monkeypatch.setattr(type(target), "deliver", fail)
    model = str(checkpoint_factory("text"))
    outcome = convert(Conversion(model, ["gguf"], tmp_path / "out", validation=None))
    assert (outcome.errors, outcome.exit_status) == (["the disk is full"], 1)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == outcome.report


def test_a_file_in_the_way_of_the_assets_is_told_before_the_export_starts(refused, reference, tmp_path):
    assets = tmp_path / "assets"
    assets.mkdir()
    (assets / f"{reference.name}.litertlm").write_text("mine")
    line = refused(reference, "--target", "litert", "--android-assets", assets)
    assert "is in the way and was not written by qatconvert" in line
    assert (assets / f"{reference.name}.litertlm").read_text() == "mine"


@pytest.mark.parametrize("place", ["out", "out/litert", "work/../out"])
def test_assets_within_the_output_are_told_before_the_export_starts(place, refused, reference, tmp_path):
    line = refused(reference, "--target", "litert", "--android-assets", tmp_path / place)
    assert f"is in the output directory {tmp_path / 'out'}: choose a place outside of it" in line


def test_a_bundle_is_validated_by_its_directory(qatconvert, nine, reference):
    options = ["--positions", "64", "--json"]
    done = qatconvert("validate", nine / "litert", "--reference", reference, *options)
    assert done.returncode == 0, done.stderr
    entry = json.loads(done.stdout)["targets"]["litert"]
    assert entry["artifact"] == "gemma4-9b.litertlm"
    assert entry["weights"]["exact_fraction"] == 1.0


def cut(bundle: Path) -> None:
    os.truncate(bundle, bundle.stat().st_size - 100_000)


def emptied(bundle: Path) -> None:
    os.truncate(bundle, 0)


def another_format(bundle: Path) -> None:
    bundle.write_bytes(b"PK\x03\x04" * 500)


def without_model(bundle: Path) -> None:
    data = bytearray(bundle.read_bytes())
    place = data.find(b"TFL3")
    data[place : place + 4] = b"TFL9"
    bundle.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, emptied, another_format, without_model])
def test_a_damaged_bundle_is_one_line_that_names_the_file(
    damage: Callable[[Path], None], qatconvert, error_of, reference, nine, tmp_path
):
    bundle = Path(shutil.copy(nine / "litert" / "gemma4-9b.litertlm", tmp_path))
    damage(bundle)
    done = qatconvert("validate", bundle, "--reference", reference, "-o", tmp_path / "out", seconds=60)
    assert "gemma4-9b.litertlm: " in error_of(done)
    assert not (tmp_path / "out").exists()
