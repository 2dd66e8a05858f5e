"""Which text a model is judged on, and what a checkpoint's own file may hold."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from converter.checkpoint.directory import Directory
from converter.checkpoint.documents import EVALUATION_BYTES, Documents, evaluation_text
from converter.checkpoint.opened import open_checkpoint, open_description
from converter.demo import DEMO
from converter.errors import CheckpointError, UsageError, ValidationError
from converter.filenames import EVALUATION_TEXT
from converter.system.child import Worker
from validation.evaluation import MOST_PASSAGES, OWN, SHIPPED, Evaluation, find_evaluation
from validation.report.texts import facts
from validation.settings import Settings, prepare, reference_entry
from validation.text import LONG, read_passages

PASSAGE = {"kind": "prose", "text": "A bridge carries the road."}
TURNS = [{"role": "user", "content": "Which bridge?"}, {"role": "assistant", "content": "The old one."}]


def write(directory: Path, content: object) -> Path:
    path = directory / EVALUATION_TEXT
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def found_in(directory: Path, text: Path | None = None) -> Evaluation:
    """The text to judge the checkpoint in a directory on."""
    return find_evaluation(partial(evaluation_text, Documents(Directory(directory))), text)


def test_the_users_text_goes_before_the_checkpoints_and_that_before_the_shipped_one(tmp_path: Path) -> None:
    assert found_in(tmp_path).passages == read_passages()
    assert found_in(tmp_path).name == SHIPPED
    write(tmp_path, {"passages": [PASSAGE], "gates": {"gguf": {"mean_kld": 1e-5}}})
    own = found_in(tmp_path)
    assert (own.name, [passage.text for passage in own.passages]) == (OWN, [PASSAGE["text"]])
    assert own.limits == {"gguf": {"mean_kld": 1e-5}}
    text = tmp_path / "text"
    text.write_text("Something else.")
    given = found_in(tmp_path, text)
    assert [passage.text for passage in given.passages] == ["Something else."]
    assert (given.name, given.limits) == ("--text", {})
    assert len({found_in(DEMO).sha256, own.sha256, given.sha256}) == 3


def test_a_text_of_the_users_does_without_a_checkpoints_that_is_none(tmp_path: Path) -> None:
    write(tmp_path, "no text")
    text = tmp_path / "text"
    text.write_text("Something else.")
    assert found_in(tmp_path, text).name == "--text"
    with pytest.raises(UsageError, match="cannot be read"):
        found_in(tmp_path, tmp_path / "none")


def test_passages_are_text_or_chats(tmp_path: Path) -> None:
    write(tmp_path, {"about": "us", "passages": [PASSAGE, {"kind": "chat", "turns": TURNS}]})
    found = found_in(tmp_path)
    assert [passage.kind for passage in found.passages] == ["prose", "chat"]
    assert found.passages[1].turns == (("user", "Which bridge?"), ("assistant", "The old one."))
    assert found.limits == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "holds a list, expected a JSON object"),
        ('{"passages": [], "passages": []}', "key 'passages' appears twice"),
        ("[" * 100_000, "JSON nested too deeply"),
        ({}, "passages is missing, expected a list that is not empty"),
        ({"passages": []}, "passages is a list, expected a list that is not empty"),
        ({"passages": [PASSAGE] * (MOST_PASSAGES + 1)}, "passages has 65 entries, more than 64"),
        ({"passages": ["text"]}, "passages[0] is a string, expected an object"),
        ({"passages": [{"kind": "a"}]}, "passages[0].text and turns: one of both is expected"),
        ({"passages": [{**PASSAGE, "turns": TURNS}]}, "passages[0].text and turns: one of both is expected"),
        ({"passages": [{"kind": "a", "text": 5}]}, "passages[0].text is 5, expected a string"),
        ({"passages": [{"kind": "a", "text": " \n"}]}, "passages[0].text holds no text"),
        ({"passages": [{"text": "a"}]}, "passages[0].kind holds no text"),
        ({"passages": [{**PASSAGE, "kind": "a\nb"}]}, "passages[0].kind is no name"),
        ({"passages": [{**PASSAGE, "kind": "x" * 41}]}, "passages[0].kind is no name"),
        ('{"passages": [{"kind": "a", "text": "\\ud800"}]}', "half a surrogate pair at character 0"),
        ({"passages": [{"kind": "a", "turns": {}}]}, "passages[0].turns is an object"),
        ({"passages": [{"kind": "a", "turns": [5]}]}, "passages[0].turns[0] is an integer"),
        ({"passages": [{"kind": "a", "turns": [{"role": "user"}]}]}, "turns[0].content holds no text"),
        ({"passages": [PASSAGE], "gate": {}}, "gate is unknown; known: about, passages, gates"),
        ({"passages": [PASSAGE], "a\x1b[2J": 1}, r"a\x1b[2J is unknown"),
        ({"passages": [PASSAGE], "gates": {"gguf": {"speed": 1}}}, "gates.gguf.speed is no gate"),
        ({"passages": [PASSAGE], "gates": {"gguf": {"mean_kld": "0"}}}, "mean_kld is '0', expected a number"),
        ('{"passages": [{"kind": "a", "text": "b"}], "gates": {"gguf": {"mean_kld": NaN}}}', "finite number"),
        ({"passages": [PASSAGE], "gates": {"gguf": 1}}, "gates.gguf is an integer, expected an object"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_line(content: object, message: str, tmp_path: Path) -> None:
    write(tmp_path, content)
    with pytest.raises(CheckpointError) as caught:
        found_in(tmp_path)
    told = str(caught.value)
    assert message in told
    assert told.isprintable()
    assert EVALUATION_TEXT in told
    assert len(told) < 500 + len(str(tmp_path))


def test_a_file_that_is_too_large_no_file_or_leads_nowhere_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, " " * (EVALUATION_BYTES + 1))
    with pytest.raises(CheckpointError, match=f"larger than the {EVALUATION_BYTES} bytes"):
        found_in(path.parent)
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="cannot be read"):
        found_in(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="not a regular file"):
        found_in(tmp_path)


def test_the_largest_file_is_read_in_no_time(tmp_path: Path) -> None:
    content = '{"passages": [' + "[" * 500 + "]" * 500 + ", 1" * (EVALUATION_BYTES // 4) + "]}"
    path = write(tmp_path, content[:EVALUATION_BYTES])
    begin = time.perf_counter()
    with pytest.raises(CheckpointError):
        found_in(path.parent)
    assert time.perf_counter() - begin < 5


def test_a_checkpoints_own_file_is_one_of_its_files(
    checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    path = DEMO / EVALUATION_TEXT
    assert path in open_checkpoint(DEMO).files
    assert path in open_description(DEMO).files
    model = shutil.copytree(checkpoint_factory("text"), tmp_path / "model")
    assert model / EVALUATION_TEXT not in open_checkpoint(model).files


def test_the_manifest_has_it(demo_output: Path) -> None:
    manifest = json.loads((demo_output / "manifest.json").read_text("utf-8"))
    listed = {file["path"]: file["sha256"] for file in manifest["source"]["files"]}
    assert listed[EVALUATION_TEXT] == hashlib.sha256((DEMO / EVALUATION_TEXT).read_bytes()).hexdigest()


def test_the_report_names_it(worker: Worker) -> None:
    with prepare(open_checkpoint(DEMO), Settings(), worker=worker) as prepared:
        entry = reference_entry(prepared)
    assert (entry["text_name"], entry["text"]) == (OWN, found_in(DEMO).sha256)
    assert [one["kind"] for one in entry["sequences"]] == ["help topics"] * 4 + ["chats"] * 4 + [LONG]
    assert entry["positions"] == 512
    assert dict(facts({"source": {"path": "x"}, "reference": entry}))["text"] == (
        f"512 positions of {OWN} (help topics, chats, {LONG})"
    )


def test_a_chat_that_its_template_refuses_is_an_error_before_anything_is_written(
    worker: Worker, tmp_path: Path
) -> None:
    model = shutil.copytree(DEMO, tmp_path / "model")
    write(model, {"passages": [{"kind": "chat", "turns": [{"role": "nobody", "content": "Hello?"}]}]})
    with (
        pytest.raises(ValidationError, match="unknown role: nobody"),
        prepare(open_checkpoint(model), Settings(), worker=worker),
    ):
        pass
