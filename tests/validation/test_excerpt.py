"""A model for which there is no room is run without rounding as an excerpt, which is said."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from converter.checkpoint.architecture import SLIDING
from converter.checkpoint.excerpt import find_excerpt
from converter.checkpoint.opened import open_checkpoint
from converter.demo import DEMO
from support.derivations import DERIVATIONS, GRAPH, Derivation
from support.tampering import GgufFile
from targets.target import find_target
from validation.excerpt import cut_checkpoint
from validation.own_weights import needed_disk
from validation.proof import Artifact, prove
from validation.reference.ahead import Identity
from validation.room import Room
from validation.runners import find_runner
from validation.settings import Prepared, Settings, prepare

pytestmark = pytest.mark.slow


def twice(sliding: list[str]) -> dict[str, Any]:
    """Keys of a model of which the second half is like the first."""
    kinds = [*sliding, "full_attention"] * 2
    return {"num_hidden_layers": len(kinds), "layer_types": kinds}


MODELS: dict[str, dict[str, Any]] = {
    "e2b": {},
    "26b-a4b": {"text": twice(["sliding_attention"] * 2)},
    "gemma3-text": {"text": twice(["sliding_attention"] * 5)},
}
#: Of the mistakes that ``test_derivations`` tries in whole models, of each sort one: LiteRT's graph of one
#: takes half a minute.
MISTAKES = {
    "gguf": ("rotated-pairs", "epsilon-1e-3", "window-65", "kv-source", "per-layer-input-factor"),
    "onnx": ("epsilon-1e-3", "window-65", "kv-source", "per-layer-input-factor"),
    "litert": ("window-65",),
}
ENDLESS = 1 << 40
SAID = "; what is wrong in other layers does not show"


@dataclass(frozen=True)
class Case:
    """A prepared proof of a model and its right artifact, for which the room of ``little`` holds an excerpt
    and not the whole."""

    prepared: Prepared
    artifact: Path
    target: str = "gguf"

    @property
    def little(self) -> Room:
        """For GGUF and LiteRT the memory lacks, for ONNX the disk, for the logits of its own weights."""
        if self.target != "onnx":
            runner = find_runner(self.target)
            return Room(ENDLESS, runner.weights_held * runner.unrounded_bytes(self.artifact) - 1)
        return Room(needed_disk(self.prepared.checkpoint, self.prepared.tokens.ids) - 1, ENDLESS)

    def prove(self, room: Room, artifact: Path | None = None, **settings: Any) -> dict[str, Any]:
        """The entry of the report, of another artifact of the model if one is given."""
        checkpoint = self.prepared.checkpoint
        changed = replace(self.prepared.settings, room=lambda directory: room, **settings)
        plan = find_target(self.target).plan(checkpoint, "model", {})
        return prove(
            replace(self.prepared, settings=changed),
            Artifact(artifact or self.artifact, plan),
            identity=Identity(lambda: [str(checkpoint.source.directory())]),  # known to this cache alone
        ).entry


Make = Callable[..., Case]
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def case(
    checkpoint_factory: Callable[..., Path],
    write_gguf: Callable[..., Any],
    write_onnx: Callable[..., Any],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Make]:
    """``case(model, target)``: ``demo`` or a key of ``MODELS``, made once; for LiteRT ``demo`` alone, whose
    graph other tests have exported too."""
    made: dict[tuple[str, str], Case] = {}
    cache = tmp_path_factory.mktemp("reference-cache")
    with ExitStack() as stack:

        def make(model: str, target: str = "gguf") -> Case:
            if (model, target) not in made:
                directory = DEMO if model == "demo" else checkpoint_factory(model, **MODELS[model])
                if target == "litert":
                    litert_bundle = request.getfixturevalue("litert_bundle")  # slow, and seldom needed
                    checkpoint, path = open_checkpoint(directory), litert_bundle(model)
                else:
                    write = write_gguf if target == "gguf" else write_onnx
                    written = write(directory, tmp_path_factory.mktemp(f"{model}-{target}"))
                    checkpoint, path = written.checkpoint, written.path
                settings = Settings(foreign=True, cache=cache)
                prepared = stack.enter_context(prepare(checkpoint, settings))
                made[model, target] = Case(prepared, path, target)
            return made[model, target]

        yield make


def gate(entry: dict[str, Any]) -> dict[str, Any]:
    return next(one for one in entry["gates"] if one["name"] == "graph_kld")


def edited(artifact: Path, path: Path, key: str, value: bytes) -> Path:
    """A copy of a GGUF with another value of a key."""
    parsed = GgufFile.read(artifact)
    assert key in dict(parsed.keys)
    parsed.keys = [(name, value if name == key else old) for name, old in parsed.keys]
    parsed.write(path)
    return path


@pytest.mark.parametrize(
    ("model", "target", "layers", "of", "told"),
    [
        ("demo", "gguf", [0, 1, 2, 6, 8], 9, "layers 0-2, 6 and 8 of 9"),
        ("e2b", "gguf", [0, 1, 2, 3, 5], 6, "layers 0-3 and 5 of 6"),
        ("26b-a4b", "gguf", [0, 1, 2], 6, "layers 0-2 of 6"),
        ("demo", "onnx", [0, 1, 2, 6, 8], 9, "layers 0-2, 6 and 8 of 9"),
        ("gemma3-text", "onnx", [0, 1, 2, 3, 4, 5], 12, "layers 0-5 of 12"),
        ("26b-a4b", "onnx", [0, 1, 2], 6, "layers 0-2 of 6"),
        pytest.param("demo", "litert", [0, 1, 2, 6, 8], 9, "layers 0-2, 6 and 8 of 9", marks=SLOW),
    ],
)
def test_the_right_artifact_passes_and_the_report_says_what_was_run(
    model: str, target: str, layers: list[int], of: int, told: str, case: Make
) -> None:
    found = case(model, target)
    entry = found.prove(found.little)
    judged, graph = gate(entry), entry["runtime"]["graph"]
    assert judged["passed"] is True
    assert judged["value"] < judged["limit"]
    lack = (
        "the run without rounding needs" if target != "onnx" else "logits of the artifact's own weights need"
    )
    assert judged["note"].startswith(f"run on {told} alone, since {lack} ")
    assert judged["note"].endswith(SAID)
    assert (graph["layers"], graph["layers_of"]) == (layers, of)
    assert graph["form"] == f"an excerpt, {told}"
    assert graph["positions"] == 512
    assert (entry["runtime"]["mean_kld_same_weights"] is None) == (
        target == "onnx"
    )  # for that there was room


@pytest.mark.parametrize(
    ("derivation", "target"),
    [
        pytest.param(one, target, id=f"{one.name}-{target}", marks=[SLOW] if target == "litert" else [])
        for one in DERIVATIONS
        for target in ("gguf", "onnx", "litert")
        if one.model == "demo" and one.gates.get(target) == GRAPH and one.name in MISTAKES[target]
    ],
)
def test_a_mistake_fails_it(derivation: Derivation, target: str, case: Make, tmp_path: Path) -> None:
    demo = case("demo", target)
    wrong = derivation.write(target, demo.prepared.checkpoint, tmp_path)
    entry = demo.prove(demo.little, wrong)
    judged = gate(entry)
    assert (judged["passed"], entry["passed"]) == (False, False)
    assert "metadata or graph are not those of the checkpoint" in judged["note"]
    assert SAID in judged["note"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gemma4.rope.freq_base", struct.pack("<If", 6, 1.1e6)),
        ("gemma4.attention.sliding_window", struct.pack("<II", 4, 65)),
        ("gemma4.attention.layer_norm_rms_epsilon", struct.pack("<If", 6, 1e-3)),
    ],
)
def test_a_wrong_number_fails_it(key: str, value: bytes, case: Make, tmp_path: Path) -> None:
    e2b = case("e2b")
    wrong = edited(e2b.artifact, tmp_path / "wrong.gguf", key, value)
    assert gate(e2b.prove(e2b.little, wrong))["passed"] is False


def test_experts_that_are_too_few_fail_it(case: Make, tmp_path: Path) -> None:
    mixture = case("26b-a4b")
    one = struct.pack("<II", 4, 1)
    wrong = edited(mixture.artifact, tmp_path / "wrong.gguf", "gemma4.expert_used_count", one)
    assert gate(mixture.prove(mixture.little, wrong))["passed"] is False


def test_what_is_wrong_in_a_layer_that_is_left_out_does_not_show(case: Make, tmp_path: Path) -> None:
    gemma3 = case("gemma3-text")
    sliding = [one.attention == SLIDING for one in gemma3.prepared.checkpoint.architecture.layers]
    sliding[7] = False
    pattern = struct.pack("<IIQ12?", 9, 7, 12, *sliding)
    key = "gemma3.attention.sliding_window_pattern"
    wrong = edited(gemma3.artifact, tmp_path / "wrong.gguf", key, pattern)
    assert gate(gemma3.prove(Room(ENDLESS, ENDLESS), wrong))["passed"] is False
    assert gate(gemma3.prove(gemma3.little, wrong))["passed"] is True


def test_a_disk_that_is_too_small_for_its_own_logits_leaves_room_for_those_of_the_excerpt(
    case: Make,
) -> None:
    mixture = case("26b-a4b")
    whole = needed_disk(mixture.prepared.checkpoint, mixture.prepared.tokens.ids)
    entry = mixture.prove(Room(whole - 1, ENDLESS))
    assert entry["runtime"]["mean_kld_same_weights"] is None
    assert entry["runtime"]["note"].startswith("not measured: logits of the artifact's own weights need ")
    assert entry["runtime"]["graph"]["layers"] == [0, 1, 2]
    assert gate(entry)["passed"] is True


@pytest.mark.parametrize("lacking", ["disk", "memory"])
def test_without_room_for_the_excerpt_the_gate_does_not_run(lacking: str, case: Make) -> None:
    demo = case("demo")
    excerpt = find_excerpt(demo.prepared.checkpoint.architecture)
    assert excerpt is not None
    cut = cut_checkpoint(demo.prepared.checkpoint, excerpt)
    disk = needed_disk(cut, demo.prepared.tokens.ids)
    memory = find_runner("gguf").unrounded_bytes(demo.artifact, excerpt)
    enough = Room(disk, memory)
    assert gate(demo.prove(enough))["passed"] is True
    entry = demo.prove(replace(enough, **{lacking: getattr(enough, lacking) - 1}))
    assert entry["passed"] is None
    assert (gate(entry)["value"], gate(entry)["passed"]) == (None, None)
    assert gate(entry)["note"].startswith("did not run: ")
    assert "; for layers 0-2, 6 and 8 of 9 alone, " in gate(entry)["note"]
    assert "graph" not in entry["runtime"]


def test_a_model_of_which_no_layer_can_be_left_out_is_not_cut(
    checkpoint_factory: Callable[..., Path], write_gguf: Callable[..., Any], tmp_path: Path
) -> None:
    written = write_gguf(checkpoint_factory("31b"), tmp_path)
    with prepare(written.checkpoint, Settings(cache=tmp_path / "cache")) as prepared:
        entry = Case(prepared, written.path).prove(Room(ENDLESS, 1000))
    assert gate(entry)["passed"] is None
    assert gate(entry)["note"].endswith("may take 1 kB; no layer can be left out")


@pytest.mark.parametrize(
    ("memory", "status", "told"),
    [
        (8_000_000, 0, "  graph_kld passed (run on layers 0-2, 6 and 8 of 9 alone, since "),
        (3_000_000, 3, "  graph_kld did not run: the run without rounding needs "),
    ],
)
def test_the_command_says_it(memory: int, status: int, told: str, demo_output: Path, tmp_path: Path) -> None:
    artifact = next((demo_output / "gguf").glob("*.gguf"))
    words = ["validate", str(artifact), "--reference", "gemma4-demo", "-o", str(tmp_path / "out"), "-q"]
    script = (
        "import sys\nfrom converter.cli import group\nfrom validation import room\n"
        f"room.free_memory = lambda: {memory}\n"
        f"sys.exit(group({words!r}, standalone_mode=False))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    assert told in done.stdout
    for page in ("report.md", "report.html"):
        assert "layers 0-2, 6 and 8 of 9" in (tmp_path / "out" / page).read_text("utf-8")


@pytest.mark.parametrize("enough", [True, False])
def test_a_runtime_that_fails_on_the_unrounded_form_leaves_the_gate_unrun(
    enough: bool, case: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of the artifact is not lost, whatever a runtime does with a form that nobody ships."""
    demo = case("demo")
    original = type(find_runner("gguf")).unrounded

    def cut_off(self: Any, *arguments: Any) -> Any:
        path, choice = original(self, *arguments)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        return path, choice

    monkeypatch.setattr(type(find_runner("gguf")), "unrounded", cut_off)
    entry = demo.prove(Room(ENDLESS, ENDLESS) if enough else demo.little)
    assert entry["passed"] is None
    assert entry["logits"]["mean_kld"] > 0
    assert "did not run: " in gate(entry)["note"]
    assert "cannot load the model" in gate(entry)["note"]
    assert str(demo.artifact.parent) not in gate(entry)["note"]
