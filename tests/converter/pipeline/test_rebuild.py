"""An output is what its source gives, byte for byte, whatever its manifest says of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from converter.demo import DEMO
from converter.errors import CheckpointError, DestinationError
from converter.filenames import REPORTS
from converter.pipeline.conversion import Conversion, convert
from converter.pipeline.opening import open_model
from converter.pipeline.rebuild import rebuild
from converter.pipeline.verification import Rebuild, Verification, verify
from support.altered_output import edit_manifest, list_again, tamper
from targets.target import find_target

pytestmark = pytest.mark.slow

TARGETS = ("gguf", "onnx", "litert")
GGUF = "gguf/gemma4-demo-q4_0.gguf"
OPTIONS = {"litert": {"keep_tflite": True}}


def converted(model: object, targets, output: Path, **options: object) -> Path:
    convert(
        Conversion(str(model), list(targets), output, options=options, validation=None),
        warn=lambda line: None,
    )
    return output


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> dict[str, Path]:
    """What the conversion of the demo to each target leaves."""
    folder = tmp_path_factory.mktemp("rebuild")
    return {
        name: converted("gemma4-demo", [name], folder / name, **OPTIONS.get(name, {})) for name in TARGETS
    }


@pytest.fixture
def output(outputs, tmp_path) -> Path:
    """A copy of the demo's GGUF that the test may change."""
    return shutil.copytree(outputs["gguf"], tmp_path / "out")


def again(output: Path, **options: object) -> Rebuild:
    """``verify``, which must find nothing, then ``rebuild``."""
    found: Verification = verify(output)
    assert found.findings == []
    told = options.pop("told", [])
    assert isinstance(told, list)
    return rebuild(found, tell=told.append, **options)


def problems(output: Path, **options: object) -> dict[str, str]:
    return {finding.path: finding.problem for finding in again(output, **options).findings}


def artifacts(output: Path) -> list[str]:
    return sorted(set(verify(output).manifest.files) - set(REPORTS))


@pytest.mark.parametrize("target", TARGETS)
def test_the_demo_gives_the_same_bytes_again(outputs, target):
    found = again(outputs[target])
    assert found.findings == []
    assert list(found.same) == artifacts(outputs[target])
    assert set(found.apart) == set(REPORTS)
    assert found.versions == []
    assert found.options[target]["name"] == "gemma4-demo"


@pytest.mark.parametrize("target", TARGETS)
def test_every_file_that_was_changed_with_its_digest_is_found(outputs, target, tmp_path):
    output = shutil.copytree(outputs[target], tmp_path / "out")
    names = artifacts(output)
    tamper(output, *names)
    found = again(output)
    assert sorted(finding.path for finding in found.findings) == names
    assert found.same == []
    for finding in found.findings:
        middle = (outputs[target] / finding.path).stat().st_size // 2
        assert finding.problem == f"is not what the source gives, from byte {middle} on"
        assert not finding.versions_differ


def test_a_file_that_was_cut_is_found(output):
    data = (output / GGUF).read_bytes()
    (output / GGUF).write_bytes(data[:-64])
    list_again(output, GGUF)
    assert problems(output) == {GGUF: f"is not what the source gives, from byte {len(data) - 64} on"}


def test_a_file_that_was_removed_with_its_entry_is_found(output):
    (output / "ollama" / "Modelfile").unlink()
    list_again(output, "ollama/Modelfile")
    (output / "ollama").rmdir()
    assert problems(output) == {
        "ollama/Modelfile": "is not there or not listed, and the source gives such a file"
    }


def test_a_file_that_was_added_with_an_entry_is_found(output):
    (output / "gguf" / "mmproj.gguf").write_text("x")
    list_again(output, "gguf/mmproj.gguf")
    assert problems(output) == {"gguf/mmproj.gguf": "is made by none of the manifest's targets"}


def test_files_of_a_target_that_was_taken_out_of_the_manifest_are_found(output):
    edit_manifest(output, lambda content: content["targets"].pop("gguf"))
    assert problems(output) == dict.fromkeys(
        [GGUF, "ollama/Modelfile"], "is made by none of the manifest's targets"
    )


# options and choices


@pytest.mark.parametrize(
    ("target", "variant", "options"),
    [
        ("gguf", "latent", {"off_lattice": "bf16"}),
        ("gguf", "max7", {"split_max_size": "100K"}),
        ("gguf", "max7", {"system": 'Say "yes".\n', "licenses": ["Apache-2.0", "b"], "num_ctx": 512}),
        ("onnx", "latent", {"off_lattice": "f16", "onnx_scales": "f16"}),
        ("onnx", "max7", {"onnx_dtype": "float16"}),
        ("onnx", "max7", {"accuracy_level": 4}),
    ],
)
def test_options_are_taken_from_the_manifest(checkpoint_factory, target, variant, options, tmp_path):
    model = checkpoint_factory("text", variant)
    output = converted(model, [target], tmp_path / "out", **options)
    found = again(output, reference=str(model))
    assert found.findings == []
    assert list(found.same) == artifacts(output)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("gguf", {}),
        ("gguf", {"off_lattice": "F16", "split_max_size": "1m", "system": "x", "num_ctx": 3}),
        ("onnx", {}),
        ("onnx", {"onnx_dtype": "float16", "off_lattice": "Q4_0", "accuracy_level": 0}),
        ("litert", {}),
        ("litert", {"prefill_lengths": (64, 16), "context_length": 256, "externalize_embedder": True}),
        ("litert", {"off_lattice": "bf16", "keep_tflite": True, "npu": ["qualcomm:sm8750"]}),
    ],
)
def test_a_plan_of_recorded_options_is_the_same_plan(target, options):
    checkpoint, format = open_model("gemma4-demo").checkpoint, find_target(target)
    given = {**options, "repo": "owner/name", "revision": "0" * 40}
    plan = format.plan(checkpoint, "demo", given)
    recorded = json.loads(json.dumps(dict(plan.options)))
    assert json.loads(json.dumps(format.plan(checkpoint, "demo", recorded).as_dict())) == json.loads(
        json.dumps(plan.as_dict())
    )


def test_the_chosen_level_is_taken_from_the_manifest(outputs, tmp_path):
    """Another level would be another graph, and one that nobody could choose is refused."""
    output = shutil.copytree(outputs["onnx"], tmp_path / "out")
    assert json.loads((output / "manifest.json").read_text())["targets"]["onnx"]["chosen"] == {
        "accuracy_level": 0
    }
    edit_manifest(output, lambda content: content["targets"]["onnx"].update(chosen={"accuracy_level": 4}))
    assert list(problems(output)) == ["onnx/model.onnx"]
    edit_manifest(output, lambda content: content["targets"]["onnx"].update(chosen={"accuracy_level": 3}))
    with pytest.raises(CheckpointError, match=r"targets\.onnx\.chosen is .*3.*, which is no way to run it"):
        again(output)
    edit_manifest(output, lambda content: content["targets"]["onnx"].pop("chosen"))
    with pytest.raises(CheckpointError, match=r"targets\.onnx\.chosen is None"):
        again(output)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda plan: plan["options"].update(foreign=1), "options.foreign"),
        (lambda plan: plan["options"].update(repo="owner/name"), "options.repo"),
        (lambda plan: plan["options"].pop("split_max_size"), None),
        (lambda plan: plan["tensors"][3].update(exact=False), "tensors"),
        (lambda plan: plan.update(bits_per_weight=4.0), "bits_per_weight"),
        (lambda plan: plan.update(bytes=1), "bytes"),
    ],
)
def test_a_plan_that_the_manifest_tells_otherwise_is_found(output, change, place):
    edit_manifest(output, lambda content: change(content["targets"]["gguf"]))
    expected = [] if place is None else [f"manifest.json: targets.gguf.{place}"]
    found = problems(output)
    assert [name for name in found if name.startswith("manifest.json")] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan["options"].update(name="../../out"), "has no model's name for its files"),
        (lambda plan: plan["options"].update(name="/tmp/x"), "has no model's name for its files"),
        (lambda plan: plan["options"].update(name=3), "has no model's name for its files"),
        (lambda plan: plan.update(options=3), "has no model's name for its files"),
        (lambda plan: plan["options"].update(off_lattice="q2"), r"targets\.gguf\.options: off-lattice type"),
        (lambda plan: plan["options"].update(split_max_size="x"), r"targets\.gguf\.options: split size"),
        (lambda plan: plan["options"].update(system="\x07"), r"SYSTEM cannot hold the character U\+0007"),
        (lambda plan: plan.update(chosen={"level": 1}), r"targets\.gguf\.chosen is .*, which is no way"),
    ],
)
def test_options_that_no_conversion_has_are_one_line(output, change, message):
    edit_manifest(output, lambda content: change(content["targets"]["gguf"]))
    with pytest.raises(CheckpointError, match=message) as raised:
        again(output)
    assert "\n" not in str(raised.value)
    assert [path.name for path in output.parent.iterdir()] == ["out"]


def test_nothing_is_written_where_the_manifest_says(output, tmp_path):
    assets = tmp_path / "assets"
    edit_manifest(
        output, lambda content: content["targets"]["gguf"]["options"].update(android_assets=str(assets))
    )
    assert list(problems(output)) == ["manifest.json: targets.gguf.options.android_assets"]
    assert not assets.exists()


def test_a_target_that_is_none_is_one_line(output):
    edit_manifest(output, lambda content: content["targets"].update(other={}))
    with pytest.raises(CheckpointError, match=r"target 'other' is none \(known: gguf, "):
        again(output)


def test_a_bundle_for_a_processor_whose_sdk_is_not_installed_is_told_and_the_rest_is_compared(
    outputs, tmp_path
):
    """The SDKs cannot be installed everywhere: that one file is not made again, and that is no success."""
    output = shutil.copytree(outputs["litert"], tmp_path / "out")
    bundle = "litert/gemma4-demo_qualcomm_sm8750.litertlm"
    (output / bundle).write_text("x")
    list_again(output, bundle)
    edit_manifest(
        output, lambda content: content["targets"]["litert"]["options"].update(npu=["qualcomm:SM8750"])
    )
    found = again(output)
    (finding,) = found.findings
    assert finding.path == bundle
    assert finding.problem.startswith("was not made again: ")
    assert "pip install ai-edge-litert-sdk-qualcomm" in finding.problem
    assert "litert/gemma4-demo.litertlm" in found.same


# versions


def as_by(output: Path, name: str, version: str | None) -> None:
    """Let the manifest name another version."""

    def change(content: dict) -> None:
        if name == "qatconvert":
            content["tool"]["version"] = version
        elif version is None:
            del content["libraries"][name]
        else:
            content["libraries"][name] = version

    edit_manifest(output, change)


@pytest.mark.parametrize(
    ("name", "version", "line"),
    [
        ("gguf", "0.18.0", "gguf 0.18.0, {} is installed"),
        ("qatconvert", "0.0.9", "qatconvert 0.0.9, {} is installed"),
        ("numpy", None, "an unrecorded numpy, {} is installed"),
    ],
)
def test_another_version_is_named_before_the_work_and_is_no_tampering_by_itself(output, name, version, line):
    from importlib.metadata import version as installed

    as_by(output, name, version)
    line = line.format(installed(name))
    told: list[str] = []
    order: list[str] = []
    found = verify(output)
    result = rebuild(
        found,
        tell=lambda text: (told.append(text), order.append("told")),
        progress=lambda stage, done, total: order.append("work"),
    )
    assert told == [f"this was written by {line}: bytes may differ for that reason"]
    assert order[0] == "told"
    assert "work" in order
    assert (list(result.versions), result.findings) == ([line], [])

    tamper(output, GGUF)
    (finding,) = again(output).findings
    assert finding.versions_differ
    assert f"but versions differ ({line}): no sign of tampering by itself" in finding.problem


def test_versions_of_what_writes_no_bytes_of_the_target_excuse_nothing(output):
    for name in ("torch", "litert-torch", "llama-cpp-python", "onnx"):
        as_by(output, name, "0.0.1")
    tamper(output, GGUF)
    found = again(output)
    assert found.versions == []
    assert not found.findings[0].versions_differ


def test_every_library_that_a_target_names_is_recorded_in_manifests(outputs):
    for name in TARGETS:
        recorded = json.loads((outputs[name] / "manifest.json").read_text())["libraries"]
        assert set(find_target(name).libraries) <= set(recorded)


# the source


def test_a_local_directory_must_be_given(checkpoint_factory, tmp_path):
    model = checkpoint_factory("text")
    output = converted(model, ["gguf"], tmp_path / "out")
    with pytest.raises(
        CheckpointError, match=f"only as the directory {model.name}, .* with --reference MODEL"
    ):
        again(output)
    moved = shutil.copytree(model, tmp_path / "moved")
    assert problems(output, reference=str(moved)) == {}


def test_another_source_is_one_line_that_names_the_first_file(checkpoint_factory, output, tmp_path):
    other = checkpoint_factory("text")
    with pytest.raises(CheckpointError, match=r"is not the source that was converted: .* differs"):
        again(output, reference=str(other))
    changed = shutil.copytree(DEMO, tmp_path / "changed")
    (changed / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"generation_config\.json is not in it"):
        again(output, reference=str(changed))
    shutil.copy(DEMO / "generation_config.json", changed)
    (changed / "special_tokens_map.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"special_tokens_map\.json is new in it"):
        again(output, reference=str(changed))


def test_source_files_that_the_manifest_tells_otherwise_are_one_line(output):
    edit_manifest(output, lambda content: content["source"]["files"][0].update(sha256="0" * 64))
    with pytest.raises(
        CheckpointError, match=r"gemma4-demo, as it ships with this version, is not the source"
    ):
        again(output)


@pytest.mark.parametrize("repo", ["/etc", "gemma4-demo", "a/b/c", "./x", "https://x/y"])
def test_a_repository_that_is_none_is_one_line(output, repo):
    edit_manifest(output, lambda content: content["source"].update(repo=repo, revision="0" * 40, path=None))
    with pytest.raises(CheckpointError, match=r"manifest\.json: source"):
        again(output)


# the temporary directory


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_temporary_directory_lies_beside_the_output_and_goes(output, monkeypatch):
    seen: set[str] = set()
    target = find_target("gguf")
    write = type(target).write

    def watched(self, checkpoint, plan, directory, *rest):
        seen.update(listing(output.parent))
        return write(self, checkpoint, plan, directory, *rest)

    monkeypatch.setattr(type(target), "write", watched)
    assert problems(output) == {}
    assert ".out.rebuild.partial" in seen
    assert listing(output.parent) == ["out"]


def test_it_goes_after_an_interruption_too(output, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("converter.pipeline.rebuild._first_difference", interrupted)
    with pytest.raises(KeyboardInterrupt):
        again(output)
    assert listing(output.parent) == ["out"]


def free(monkeypatch, **bytes_of: int) -> None:
    """Let directories have so many bytes left, by their names; others have plenty."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(
        "shutil.disk_usage", lambda place: usage._replace(free=bytes_of.get(Path(place).name, 1 << 40))
    )


def test_where_there_is_no_room_beside_the_output_tmpdir_is_used(output, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    free(monkeypatch, **{output.parent.name: 1000})
    assert problems(output) == {}
    assert listing(tmp_path) == ["elsewhere", "out"]
    assert listing(tmp_path / "elsewhere") == []


def test_no_room_anywhere_is_told_before_the_work(output, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    free(monkeypatch, **{output.parent.name: 1000, "elsewhere": 2000})
    with pytest.raises(DestinationError, match=r"1\.\d+ MB needed to convert again, 1 kB free, and 2 kB in"):
        again(output)
