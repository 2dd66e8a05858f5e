"""Bundles as the assets of an Android app: what fits, what is written, and what is left alone."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace

import pytest

pytest.importorskip("litert_lm_builder")

from converter.errors import CheckpointError, DestinationError
from targets.litert.bundle import Section, write_bundle
from targets.litert.devices import android
from targets.litert.devices.android import check_assets, check_directory, write_assets
from targets.litert.sections import PREFILL_DECODE

MODEL = "gemma4-demo"
SECTIONS = (Section("LlmMetadataProto", b"metadata"), Section("TFLiteModel", b"model" * 9000, PREFILL_DECODE))


@pytest.fixture
def bundle(tmp_path):
    path = tmp_path / "model.litertlm"
    write_bundle(path, SECTIONS)
    return path


@pytest.fixture
def parts(monkeypatch):
    """Parts of 20,000 bytes, of which the bundle needs four."""
    monkeypatch.setattr(android, "PART", 20_000)


def write(bundle, directory, **options):
    path = write_assets(bundle, directory, model=MODEL, context_length=4096, **options)
    return json.loads(path.read_text(encoding="utf-8"))


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize(
    ("size", "delivery", "warning"),
    [
        (1, "base-module", None),
        (200_000_000, "base-module", None),
        (200_000_001, "asset-pack", "more than an app's base module holds (200 MB): put the assets into an"),
        (1_450_000_000, "asset-pack", "more than an app's base module holds"),
        (1_450_000_001, "asset-packs", "the assets are in 2 parts, each for an asset pack of its own"),
        (4_000_000_000, "asset-packs", "the assets are in 3 parts"),
    ],
)
def test_the_size_says_how_an_app_is_to_deliver_it(size, delivery, warning):
    warnings = check_assets(MODEL, size)
    assert len(warnings) == (warning is not None)
    assert all(warning in one and "\n" not in one for one in warnings)
    assert android._delivery(size) == delivery


def test_what_no_app_can_hold_is_refused_with_what_to_do_instead():
    with pytest.raises(DestinationError) as failure:
        check_assets("gemma4-31b", 17_300_000_000)
    message = str(failure.value)
    assert "17.3 GB is too large" in message
    assert "up to 4 GB" in message
    assert "let the app download the bundle" in message
    assert "\n" not in message


def test_a_part_fits_an_asset_pack_and_a_zip_file_and_the_parts_an_app():
    assert android.PART < android.ASSET_PACK < 1 << 31
    assert android.APP < 1 << 32
    assert -(-android.APP // android.PART) <= android._MOST_PARTS


def test_the_assets_are_the_bundle_and_a_manifest_that_describes_it(bundle, tmp_path):
    content, steps = bundle.read_bytes(), []
    manifest = write(bundle, tmp_path / "assets", progress=lambda *step: steps.append(step))
    digest = hashlib.sha256(content).hexdigest()
    assert names(tmp_path / "assets") == [f"{MODEL}.litertlm", f"{MODEL}.litertlm.json"]
    assert (tmp_path / "assets" / f"{MODEL}.litertlm").read_bytes() == content
    assert manifest == {
        "schema": 1,
        "written_by": manifest["written_by"],
        "model": MODEL,
        "file": f"{MODEL}.litertlm",
        "bytes": len(content),
        "sha256": digest,
        "parts": [{"file": f"{MODEL}.litertlm", "bytes": len(content), "sha256": digest}],
        "context_length": 4096,
        "processor": None,
        "delivery": "base-module",
        "sections": [
            {"kind": "LlmMetadataProto", "model_type": None, "bytes": 8},
            {"kind": "TFLiteModel", "model_type": PREFILL_DECODE, "bytes": 45_000},
        ],
        "warnings": [],
    }
    assert manifest["written_by"].startswith("qatconvert ")
    assert steps[-1] == (len(content), len(content))


def test_a_large_bundle_is_in_parts_that_make_it_up(bundle, tmp_path, parts):
    manifest = write(bundle, tmp_path / "assets", processor="qualcomm:SM8750")
    stored = [(tmp_path / "assets" / part["file"]).read_bytes() for part in manifest["parts"]]
    assert b"".join(stored) == bundle.read_bytes()
    assert [len(part) for part in stored] == [part["bytes"] for part in manifest["parts"]]
    assert max(map(len, stored)) == 20_000
    assert [hashlib.sha256(one).hexdigest() for one in stored] == [one["sha256"] for one in manifest["parts"]]
    assert (manifest["delivery"], manifest["processor"]) == ("asset-packs", "qualcomm:SM8750")
    assert len(manifest["warnings"]) == 1
    assert names(tmp_path / "assets") == sorted(
        [f"{MODEL}.litertlm.json", *(part["file"] for part in manifest["parts"])]
    )


def test_the_same_bundle_gives_the_same_bytes(bundle, tmp_path):
    for place in ("one", "two"):
        write(bundle, tmp_path / place)
    for name in names(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_earlier_assets_are_replaced_and_other_files_stay(bundle, tmp_path, monkeypatch):
    assets = tmp_path / "assets"
    with monkeypatch.context() as patched:
        patched.setattr(android, "PART", 20_000)
        write(bundle, assets)
    (assets / "theirs.json").write_text("{}")
    (assets / f"{MODEL}2.litertlm").write_text("theirs")
    write(bundle, assets)
    kept = [f"{MODEL}.litertlm", f"{MODEL}.litertlm.json", f"{MODEL}2.litertlm", "theirs.json"]
    assert names(assets) == sorted(kept)
    assert (assets / f"{MODEL}2.litertlm").read_text() == "theirs"


@pytest.mark.parametrize("name", [f"{MODEL}.litertlm", f"{MODEL}.litertlm.json", f"{MODEL}.part1.litertlm"])
@pytest.mark.parametrize("content", ["theirs", '{"written_by": "another tool 1.0", "model": "gemma4-demo"}'])
def test_a_file_of_others_is_never_replaced(name, content, bundle, tmp_path):
    assets = tmp_path / "assets"
    assets.mkdir()
    (assets / name).write_text(content)
    with pytest.raises(DestinationError, match="was not written by qatconvert") as failure:
        check_directory(assets, MODEL)
    assert "\n" not in str(failure.value)
    with pytest.raises(DestinationError, match="--android-assets"):
        write(bundle, assets)
    assert (assets / name).read_text() == content
    assert names(assets) == [name]


def test_a_manifest_cannot_make_other_files_ours(bundle, tmp_path):
    assets = tmp_path / "assets"
    write(bundle, assets)
    manifest = json.loads((assets / f"{MODEL}.litertlm.json").read_text())
    manifest["parts"] += [{"file": name} for name in ("../precious", "precious", 7, None)]
    (assets / f"{MODEL}.litertlm.json").write_text(json.dumps(manifest))
    for place in (tmp_path / "precious", assets / "precious"):
        place.write_text("precious")
    write(bundle, assets)
    assert (tmp_path / "precious").read_text() == (assets / "precious").read_text() == "precious"


def test_a_failure_leaves_no_assets_that_look_whole(bundle, tmp_path, monkeypatch):
    assets = tmp_path / "assets"
    write(bundle, assets)
    before = {name: (assets / name).read_bytes() for name in names(assets)}

    def fail(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(bundle, assets, progress=fail)
    assert {name: (assets / name).read_bytes() for name in names(assets)} == before
    with pytest.raises(KeyboardInterrupt):
        write(bundle, tmp_path / "others", progress=fail)
    assert names(tmp_path) == ["assets", "model.litertlm"]


def test_a_place_that_is_a_file_or_too_small_is_one_line(bundle, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(DestinationError, match="is a file: choose another directory with --android-assets"):
        check_directory(tmp_path / "file", MODEL)
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=0))
    with pytest.raises(
        DestinationError, match="0 B free; make room there or choose another --android-assets"
    ):
        write(bundle, tmp_path / "assets")
    assert names(tmp_path) == ["file", "model.litertlm"]


def test_a_bundle_that_is_none_is_refused(tmp_path):
    path = tmp_path / "model.litertlm"
    path.write_bytes(b"not a bundle")
    with pytest.raises(CheckpointError, match="does not begin with LITERTLM"):
        write(path, tmp_path / "assets")
    assert names(tmp_path) == ["model.litertlm"]


def test_bundles_for_processors_are_assets_of_their_own(bundle, tmp_path, checkpoint_factory):
    from converter.checkpoint.opened import open_checkpoint
    from targets.litert import target

    assets, output = tmp_path / "assets", tmp_path / "out"
    options = {"npu": ["qualcomm:SM8750"], "android_assets": assets}
    plan = target.plan(open_checkpoint(checkpoint_factory("text")), MODEL, options)
    compiled = f"{MODEL}_qualcomm_sm8750"
    assert set(plan.companions) == {f"litert/{compiled}.litertlm"}
    for file in (*plan.artifacts, *plan.companions):
        (output / file).parent.mkdir(parents=True, exist_ok=True)
        (output / file).write_bytes(bundle.read_bytes())
    (told,) = target.deliver(plan, output, options, passed=False)
    assert "a gate failed" in told
    assert not assets.exists()
    assert target.deliver(plan, output, options, passed=True) == ()
    assert names(assets) == sorted(
        f"{name}.litertlm{end}" for name in (MODEL, compiled) for end in ("", ".json")
    )
    for name, processor in ((MODEL, None), (compiled, "qualcomm:SM8750")):
        manifest = json.loads((assets / f"{name}.litertlm.json").read_text())
        assert (manifest["processor"], manifest["context_length"]) == (
            processor,
            plan.options["context_length"],
        )
