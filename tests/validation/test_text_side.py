"""The text side of runtimes: tokens, prompts and ends of answers by what the artifact holds."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from converter.checkpoint.chats import Conversation, Inexpressible, conversations
from converter.checkpoint.opened import open_checkpoint
from converter.checkpoint.tokenizer import AddedToken
from converter.demo import DEMO
from converter.system.child import Worker
from converter.system.progress import no_progress
from support.tampering import GgufFile
from targets.gguf.ends import ENDS_BY_TEXT
from validation import gates
from validation.limits import DENSE
from validation.proof import validate
from validation.runners import Template, find_runner
from validation.settings import Prepared, Settings, prepare
from validation.tokenization import (
    TEXTS,
    Chats,
    compare_ends,
    compare_prompts,
    compare_tokens,
    describe_prompts,
    read_text_side,
)

TEMPLATE = "tokenizer.chat_template"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def prepared() -> Iterator[Prepared]:
    with prepare(open_checkpoint(DEMO), Settings()) as made:
        yield made


Read = Callable[[str, Path], dict[str, Any]]


@pytest.fixture
def read(prepared: Prepared, tmp_path: Path) -> Read:
    """``read(target, artifact)``: what the target's runtime makes of the text side of an artifact."""

    def measure(target: str, artifact: Path) -> dict[str, Any]:
        runtime = find_runner(target).text
        assert runtime is not None
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        return read_text_side(prepared, runtime, artifact, scratch, no_progress)

    return measure


@pytest.fixture(scope="module")
def gguf(write_gguf: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = write_gguf(DEMO, tmp_path_factory.mktemp("gguf")).path
    return path


@pytest.fixture(scope="module")
def onnx(write_onnx: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = write_onnx(DEMO, tmp_path_factory.mktemp("onnx")).path
    return path


def with_template(gguf: Path, destination: Path, template: str | None) -> Path:
    """A copy of a GGUF file with another chat template, or none."""
    file = GgufFile.read(gguf)
    at = [name for name, _ in file.keys].index(TEMPLATE)
    if template is None:
        del file.keys[at]
    else:
        text = template.encode()
        file.keys[at] = (TEMPLATE, struct.pack("<IQ", 8, len(text)) + text)
    file.write(destination)
    return destination


def test_the_shipped_model_reads_as_the_checkpoint_in_llama_cpp(gguf: Path, read: Read) -> None:
    found = read("gguf", gguf)
    tokens, prompts, ends = (found[key] for key in ("tokenizer", "prompts", "ends"))
    assert found["name"] == "llama.cpp"
    assert tokens["texts"] == tokens["equal"] > len(TEXTS)
    assert tokens["runtime_limits"] == tokens["hidden"]["wrong"] == []
    assert (prompts["chats"], prompts["equal"]) == (15, 14)
    assert [one["chat"] for one in prompts["not_expressible"]] == ["a result with fields"]
    assert prompts["template"]["engine"] == "llama.cpp's server"
    assert (ends["checkpoint"], ends["engine"]) == ([1, 16], [1, 9, 16])
    assert [one["text"] for one in ends["by_rule"]] == ["<|tool_response>"]
    json.dumps(found, allow_nan=False)


def test_the_shipped_model_reads_as_the_checkpoint_in_onnxruntime_genai(onnx: Path, read: Read) -> None:
    """But for one text: onnxruntime-genai 0.18 merges runs of a hundred characters apart."""
    found = read("onnx", onnx)
    tokens, prompts, ends = (found[key] for key in ("tokenizer", "prompts", "ends"))
    assert found["name"] == "onnxruntime-genai"
    assert tokens["equal"] == tokens["texts"] - 1
    assert [one["text"][:9] for one in tokens["runtime_limits"]] == ["========="]
    assert (prompts["chats"], prompts["equal"]) == (9, 8)
    assert {one["why"] for one in prompts["not_expressible"]} == {"tools", "enable_thinking"}
    assert len(prompts["not_expressible"]) == len(conversations()) - 9
    assert ends["checkpoint"] == ends["engine"] == [1, 16]
    assert all(gate.passed for gate in gates.judge_engine(DENSE, found))


def test_another_part_for_tools_fails_where_no_tools_can_be_given(
    onnx: Path, read: Read, tmp_path: Path
) -> None:
    directory = tmp_path / "onnx"
    shutil.copytree(onnx.parent, directory)
    path = directory / "chat_template.jinja"
    path.write_text(path.read_text("utf-8").replace("<|tool>declaration", "<|tool>"), "utf-8")
    found = read("onnx", directory / onnx.name)
    assert [gate.name for gate in gates.judge_engine(DENSE, found) if not gate.passed] == [
        "engine_same_prompts"
    ]
    prompts = found["prompts"]
    assert prompts["chats"] - prompts["equal"] == 1 + 5
    assert prompts["difference"]["chat"] == "tools"
    assert "in transformers" in prompts["difference"]["error"]
    assert {one["why"] for one in prompts["not_expressible"]} == {"enable_thinking"}


def test_a_limit_of_the_runtime_excuses_no_other_tokens_of_the_same_text(
    onnx: Path, read: Read, tmp_path: Path
) -> None:
    directory = tmp_path / "onnx"
    shutil.copytree(onnx.parent, directory)
    path = directory / "tokenizer.json"
    document = json.loads(path.read_text("utf-8"))
    merges = document["model"]["merges"]
    document["model"]["merges"] = [pair for pair in merges if "=" not in pair[0]]
    path.write_text(json.dumps(document), "utf-8")
    tokens = read("onnx", directory / onnx.name)["tokenizer"]
    assert tokens["runtime_limits"] == []
    assert tokens["equal"] < tokens["texts"] - 1


@pytest.mark.parametrize(
    ("change", "chat"),
    [
        (("<|tool_call>call:", "<|tool_call>calls:"), "a call and its result"),
        (("<|think|>\\n", "<|think|>"), "thinking on"),
        (('"<|channel>thought\\n"', '"<|channel>\\n"'), "thinking with tools"),
        (('messages[0]["content"] | trim', 'messages[0]["content"]'), "white space"),
        (("{{- spoken(part", "{{- 1 ~ spoken(part"), "content in parts"),
    ],
    ids=["calls", "thinking", "thoughts", "system", "parts"],
)
def test_a_template_with_another_part_fails(
    change: tuple[str, str], chat: str, gguf: Path, read: Read, tmp_path: Path
) -> None:
    template = (DEMO / "chat_template.jinja").read_text("utf-8")
    assert change[0] in template
    wrong = with_template(gguf, tmp_path / "wrong.gguf", template.replace(*change))
    found = read("gguf", wrong)
    failed = [gate.name for gate in gates.judge_engine(DENSE, found) if not gate.passed]
    assert failed == ["engine_same_prompts"]
    prompts = found["prompts"]
    assert prompts["difference"]["chat"] == chat
    assert [one["chat"] for one in prompts["runtime_limits"]] == ["a no-break space at an end"]
    assert prompts["template"]["artifact_sha256"] != prompts["template"]["sha256"]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (None, f"the file has no {TEMPLATE}"),
        ("{{ raise_exception('never\nagain') }}", "never again"),
        ("{% for %}", "Expected"),
    ],
)
def test_a_template_that_writes_no_prompt_says_why(
    template: str | None, why: str, gguf: Path, read: Read, tmp_path: Path
) -> None:
    prompts = read("gguf", with_template(gguf, tmp_path / "wrong.gguf", template))["prompts"]
    assert prompts["equal"] == 0
    assert why in prompts["difference"]["error"]


def test_a_template_that_runs_on_fails_the_gates_in_one_line(gguf: Path, tmp_path: Path) -> None:
    wrong = with_template(gguf, tmp_path / "wrong.gguf", ENDLESS)
    settings = {"positions": 64, "same_weights": False, "foreign": True, "cache": tmp_path / "cache"}
    entry = validate(open_checkpoint(DEMO), "gguf", wrong, **settings)["entry"]
    judged = {gate["name"]: gate for gate in entry["gates"] if gate["name"] in gates.TEXT}
    assert [gate["passed"] for gate in judged.values()] == [False] * 3
    note = judged["engine_same_prompts"]["note"]
    assert note == f"transformers: {TEMPLATE} of wrong.gguf fails: it takes longer than 5 seconds"


def text_gates(onnx: Path, tmp_path: Path, **settings: Any) -> list[dict[str, Any]]:
    chosen = {"positions": 64, "same_weights": False, "foreign": True, "cache": tmp_path / "cache"}
    entry = validate(open_checkpoint(DEMO), "onnx", onnx, **chosen, **settings)["entry"]
    return [gate for gate in entry["gates"] if gate["name"] in gates.TEXT]


def test_a_damaged_tokenizer_fails_the_gates_in_one_line(onnx: Path, tmp_path: Path) -> None:
    directory = tmp_path / "onnx"
    shutil.copytree(onnx.parent, directory)
    (directory / "tokenizer.json").write_text("{", "utf-8")
    judged = text_gates(directory / onnx.name, tmp_path)
    assert [gate["passed"] for gate in judged] == [False] * 3
    assert {gate["note"].count("\n") for gate in judged} == {0}
    assert judged[0]["note"].startswith(
        "onnxruntime-genai on the files beside model.onnx: cannot load the tokenizer:"
    )
    assert str(tmp_path) not in judged[0]["note"]


def test_a_template_that_runs_on_in_the_runtimes_own_engine_fails_the_gates(
    onnx: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "onnx"
    shutil.copytree(onnx.parent, directory)
    (directory / "chat_template.jinja").write_text(ENDLESS, "utf-8")
    judged = text_gates(directory / onnx.name, tmp_path)
    assert [gate["passed"] for gate in judged] == [False] * 3
    assert judged[0]["note"].endswith("the process ended with SIGXCPU: rendering chat_template.jinja")


def test_tools_and_thinking_cannot_be_given_to_onnxruntime_genai(onnx: Path) -> None:
    """Once this fails, ``GenAiText.given`` may let more chats through."""
    from onnxruntime_genai import Tokenizer

    tokenizer = Tokenizer(str(onnx.parent))
    chat = next(one for one in conversations() if one.name == "tools")
    messages, tools = json.dumps(chat.messages), json.dumps(chat.tools)
    with pytest.raises(Exception, match="null"):
        tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True)
    with pytest.raises(TypeError):
        tokenizer.apply_chat_template(messages, enable_thinking=True)


def test_a_model_without_the_runtimes_configuration_has_no_text_side(onnx: Path, tmp_path: Path) -> None:
    directory = tmp_path / "onnx"
    shutil.copytree(onnx.parent, directory)
    (directory / "genai_config.json").unlink()
    assert text_gates(directory / onnx.name, tmp_path) == []


def test_without_onnxruntime_genai_the_gates_do_not_run(
    onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)  # Python's own way to say: not installed
    judged = text_gates(onnx, tmp_path, allow_unrun=("engine_same_ends",))
    assert [gate["passed"] for gate in judged] == [None] * 3
    assert [gate.get("allowed", False) for gate in judged] == [False, False, True]
    assert judged[0]["note"].endswith("pip install onnxruntime-genai")


def test_the_ends_that_llama_cpp_knows_by_text_are_its_own(gguf: Path, tmp_path: Path) -> None:
    """Each of them, as the text of a token that nothing else names, ends an answer; a text of no kind does
    not. ``</s>``, which llama.cpp takes back in Gemma 4's vocabularies, is left aside. Once this fails,
    llama.cpp has another table."""
    with Worker("validation.runtimes.llamacpp_text_model") as worker:
        for index, text in enumerate([*sorted(ENDS_BY_TEXT - {"</s>"}), "<|of no kind|>"]):
            path, token = renamed(gguf, tmp_path / f"{index}.gguf", text)
            ends = worker.call({"artifact": str(path), "texts": []}, no_progress, what="llama.cpp")["ends"]
            assert (token in ends) == (text in ENDS_BY_TEXT), text


def renamed(gguf: Path, destination: Path, text: str) -> tuple[Path, int]:
    """A copy of a GGUF file that has the last token named ``text``, and its id; whichever token had that
    name has another."""
    file = GgufFile.read(gguf)
    keys = dict(file.keys)
    data = keys["tokenizer.ggml.tokens"]
    names, at = [], 16  # behind the types of array and elements and the number of elements
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        names.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    names = [b"\x01other" if name == text.encode() else name for name in names]
    names[-1] = text.encode()
    changed = data[:16] + b"".join(struct.pack("<Q", len(name)) + name for name in names)
    file.keys = [(key, changed if key == "tokenizer.ggml.tokens" else value) for key, value in file.keys]
    file.write(destination)
    return destination, len(names) - 1


def test_tokens_without_use_may_be_hidden_or_not(prepared: Prepared) -> None:
    from validation.runtimes.llamacpp_text import _hidden_by_some

    tokenizer = prepared.checkpoint.tokenizer
    added = {**tokenizer.added, 40: AddedToken("<unused7>", False), 41: AddedToken("<unused8>", True)}
    assert _hidden_by_some(replace(tokenizer, added=added)) - _hidden_by_some(tokenizer) == {40}


def test_what_differs_in_the_runtime_alone_is_its_limit(prepared: Prepared) -> None:
    texts, known, tokenizer = ["aa", "bb", "cc", "dd"], [[1], [2], [3], [4]], prepared.checkpoint.tokenizer
    found = compare_tokens(texts, known, [[1], [9], [8], [4]], tokenizer, [[1], [9], [3], [7]])
    assert (found["equal"], found["equal_fraction"]) == (2, 0.75)
    assert [one["text"] for one in found["runtime_limits"]] == ["bb"]
    assert found["difference"] == {"text": "cc", "token": 0, "checkpoint": [3], "engine": [8]}
    found = compare_tokens(texts, known, [[1], [9], [8], [4]], tokenizer, None, {1: [2], 2: [7]})
    assert [one["text"] for one in found["runtime_limits"]] == ["bb"]
    assert found["equal_fraction"] == 0.75


def test_a_chat_that_the_checkpoint_refuses_or_does_not_show_is_not_compared() -> None:
    chats = Chats(
        tuple(Conversation(name, ()) for name in "abcdef"), (Inexpressible(Conversation("g", ()), "tools"),)
    )
    due = {"text": "x", "ids": [1, 2]}
    known = [{"error": "no"}, {**due, "left_out": "tools"}, due, due, due, due]
    made = ["refused", (1, 2), (1, 3), "fails", (1, 2), (1, 4)]
    found = compare_prompts(chats, known, made, ["", (), (1, 2), "fails", (1, 2), (1, 4)])
    assert found is not None
    assert (found["refused"], found["left_out"], found["chats"], found["equal"]) == (1, 1, 4, 1)
    assert found["equal_fraction"] == 1 - 1 / 4
    assert found["difference"] == {"chat": "c", "token": 1, "checkpoint": [2], "engine": [3]}
    limits = [{"chat": "d", "error": "fails"}, {"chat": "f", "token": 1, "checkpoint": [2], "engine": [4]}]
    assert found["runtime_limits"] == limits
    assert found["not_expressible"] == [{"chat": "g", "why": "tools"}]


def test_without_a_chat_template_there_are_no_prompts_to_compare() -> None:
    assert compare_prompts(Chats(()), None, ()) is None


def test_both_hashes_of_a_template_are_told_with_its_edits() -> None:
    compared = {"chats": 1}
    found = describe_prompts(compared, "a", Template("b", "an engine", ("edited",), "not kept"))
    assert found is not None
    told = found["template"]
    assert told["sha256"] == hashlib.sha256(b"a").hexdigest()
    assert told["artifact_sha256"] == hashlib.sha256(b"b").hexdigest()
    assert (told["engine"], told["edits"], told["kept"]) == ("an engine", ["edited"], "not kept")
    without = describe_prompts(compared, "a", None)
    assert without is not None
    assert without["template"]["artifact_sha256"] is None
    assert describe_prompts(None, None, None) is None


def test_ends_are_the_checkpoints_the_runtimes_own_or_wrong(prepared: Prepared) -> None:
    found = compare_ends([1, 16, 20, 21], [1, 3, 9], prepared.checkpoint.tokenizer, {9}, {20})
    ids = {key: [one["id"] for one in found[key]] for key in ("missing", "extra", "by_rule", "lost")}
    assert ids == {"missing": [16, 21], "extra": [3], "by_rule": [9], "lost": [20]}
    assert found["equal_fraction"] == 0.25
