"""Bundles in LiteRT-LM's engine: those that are right, those that are another model's, and damaged ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.system.progress import no_progress
from validation.runners import Questions

pytest.importorskip("litert_torch")
pytest.importorskip("litert_lm")
from converter.checkpoint.chats import conversations
from converter.checkpoint.opened import open_checkpoint
from converter.checkpoint.rendering import write_chats
from converter.checkpoint.tokenizer import Tokenizer
from converter.demo import DEMO
from converter.errors import ValidationError
from support.gemma4_template import gemma4_template
from support.litert_repacking import TOKENIZER, edit_tokenizer, repack
from targets.litert.metadata import llm_metadata
from targets.litert.template import sent, template_for
from validation.engine import measure_engine
from validation.gates import judge_engine
from validation.limits import DENSE
from validation.logits import map_logits
from validation.proof import validate
from validation.reference.logits import Cache, Computation, Model, reference_logits
from validation.runtimes import litert, llamacpp, onnxruntime
from validation.runtimes.litert_lm import engine
from validation.runtimes.litert_lm_engine import run_engine
from validation.settings import Settings, prepare
from validation.tokenization import TEXTS

REQUEST = {"texts": [], "prompts": [], "sequences": [], "begin": "", "count": 4}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """``measured(checkpoint's directory, bundle)``: what the engine makes of it beside that checkpoint."""
    home = tmp_path_factory.mktemp("engine-reference")

    def measure(directory: Path, artifact: Path) -> dict[str, Any]:
        checkpoint, scratch = open_checkpoint(directory), tmp_path_factory.mktemp("engine")
        with prepare(checkpoint, Settings(cache=home)) as prepared:
            reference = reference_logits(
                Model(directory, tuple(left.name for left in checkpoint.left_out), 1280),
                prepared.tokens,
                Computation(prepared.worker),
                scratch,
                Cache(home, {"path": str(directory)}),
            )
            return measure_engine(prepared, engine, artifact, reference, scratch, no_progress)

    return measure


@pytest.fixture(scope="module")
def demo(litert_bundle: Callable[..., Path]) -> Path:
    return litert_bundle("demo")


@pytest.fixture(scope="module")
def found(measured: Callable[..., dict[str, Any]], demo: Path) -> dict[str, Any]:
    return measured(DEMO, demo)


#: What those of random weights lose is another matter: limits of this kind that are relative in a proof.
RANDOM = {**DENSE, "engine_gap": 0.85, "engine_mean_abs": 0.15}


def failed(found: dict[str, Any], limits: Any = DENSE) -> set[str]:
    return {gate.name for gate in judge_engine(limits, found) if not gate.passed}


def test_only_bundles_have_an_engine(demo: Path) -> None:
    assert litert.runner.engine is engine
    assert engine.takes(demo)
    assert not engine.takes(demo.with_suffix(".tflite"))
    assert llamacpp.runner.engine is None
    assert onnxruntime.runner.engine is None


def test_the_shipped_model_passes_with_room(found: dict[str, Any]) -> None:
    assert found["name"] == "LiteRT-LM"
    assert failed(found) == set()
    assert found["greedy"]["largest_gap"] < DENSE["engine_gap"] / 5
    assert found["scores"]["mean_abs"] < DENSE["engine_mean_abs"] / 10
    assert found["scores"]["tokens"] > 400
    json.dumps(found, allow_nan=False)


def test_every_text_has_the_checkpoints_tokens(found: dict[str, Any]) -> None:
    tokens = found["tokenizer"]
    assert tokens["texts"] == tokens["equal"] > len(TEXTS) + 20
    assert (tokens["equal_fraction"], tokens["difference"]) == (1, None)


def test_every_chat_has_the_checkpoints_prompt_and_answers_end_where_its_do(found: dict[str, Any]) -> None:
    prompts, ends = found["prompts"], found["ends"]
    assert prompts["chats"] == prompts["equal"] == len(conversations())
    assert prompts["runtime_limits"] == prompts["not_expressible"] == []
    assert prompts["template"]["sha256"] != prompts["template"]["artifact_sha256"]
    assert len(prompts["template"]["edits"]) == 2
    assert ends["checkpoint"] == ends["engine"] == [1, 16]


def edit_metadata(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    """A change to the message ``LlmMetadata`` of a bundle."""

    def edited(content: bytes) -> bytes:
        from litert_lm_builder.runtime.proto import llm_metadata_pb2

        message = llm_metadata_pb2.LlmMetadata.FromString(content)
        change(message)
        return message.SerializeToString(deterministic=True)

    return edited


def other_template(message: Any) -> None:
    message.jinja_prompt_template = message.jinja_prompt_template.replace("<turn|>", "<turn|> ")


def other_calls(message: Any) -> None:
    message.jinja_prompt_template = message.jinja_prompt_template.replace("<|tool_call>call", "<|tool_call>")


def other_thinking(message: Any) -> None:
    message.jinja_prompt_template = message.jinja_prompt_template.replace("<|think|>", "<|think|> ")


def unedited_template(message: Any) -> None:
    message.jinja_prompt_template = open_checkpoint(DEMO).tokenizer.chat_template


def other_stop(message: Any) -> None:
    message.stop_tokens[0].token_ids.ids[0] = 3


@pytest.mark.parametrize(
    ("change", "gate"), [(other_template, "engine_same_prompts"), (other_stop, "engine_same_ends")]
)
def test_other_metadata_fail_their_gate(
    change: Callable[[Any], None],
    gate: str,
    demo: Path,
    measured: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    wrong = repack(demo, tmp_path / "wrong.litertlm", "LlmMetadataProto", edit_metadata(change))
    assert failed(measured(DEMO, wrong)) == {gate}


@pytest.mark.parametrize(
    ("change", "chats"),
    [
        (other_calls, {"a call and its result", "two calls and an answer", "a result with fields"}),
        (other_thinking, {"thinking on"}),
        (unedited_template, {chat.name for chat in conversations()} - {"thinking with tools"}),
    ],
)
def test_a_template_with_another_part_makes_other_prompts_of_its_chats(
    change: Callable[[Any], None], chats: set[str], demo: Path, tmp_path: Path
) -> None:
    """Not by the engine's doing: by the converter's template it makes the right ones."""
    wrong = repack(demo, tmp_path / "wrong.litertlm", "LlmMetadataProto", edit_metadata(change))
    tokenizer = open_checkpoint(DEMO).tokenizer
    given = conversations()
    account = engine.run(wrong, Questions([], [], [], "<bos>", 4, given, tokenizer), no_progress)
    assert account.own_prompts is not None
    pairs = zip(given, account.reading.prompts, account.own_prompts, strict=True)
    assert {chat.name for chat, made, own in pairs if made != own} == chats | {"thinking with tools"}
    assert account.template is not None
    assert account.template.edits == ()


def test_googles_template_makes_its_own_prompts(demo: Path, measured_prompts: Callable[..., Any]) -> None:
    """In the engine, edited, of every chat what transformers makes of it as it is."""
    tokenizer = replace(open_checkpoint(DEMO).tokenizer, chat_template=gemma4_template())
    made = template_for(tokenizer)
    assert made is not None
    assert (made.kept, made.thinking, made.function_calling) == ("", True, True)
    found = measured_prompts(tokenizer, made.text)
    assert [name for name, (due, theirs) in found.items() if due != theirs] == []
    assert len(found) == len(conversations())
    unedited = measured_prompts(tokenizer, tokenizer.chat_template)
    assert unedited["a system message"][1] == "the chat template writes nothing"


@pytest.fixture
def measured_prompts(demo: Path) -> Callable[..., dict[str, tuple[Any, Any]]]:
    """``measured_prompts(tokenizer, template)``: by chat the token ids of transformers' prompt by the
    tokenizer's template, and those of the engine's by ``template``."""

    def measure(tokenizer: Tokenizer, template: str) -> dict[str, tuple[Any, Any]]:
        from transformers import AutoTokenizer

        own = AutoTokenizer.from_pretrained(DEMO)
        chats = conversations()
        apply = partial(own.apply_chat_template, tokenize=False, chat_template=tokenizer.chat_template)
        due = write_chats(apply, [chat.request() for chat in chats], "it")
        ids = [own(one["text"], add_special_tokens=False)["input_ids"] for one in due]
        sent_chats = [sent(chat).request() for chat in chats]
        request = {**REQUEST, "artifact": str(demo), "chats": sent_chats, "template": template}
        made = run_engine(request, no_progress)["own_prompts"]
        return dict(zip((chat.name for chat in chats), zip(ids, made, strict=True), strict=True))

    return measure


@pytest.mark.parametrize("google", [False, True], ids=["demo", "google"])
@pytest.mark.parametrize("thinking", [False, True])
def test_a_chat_goes_on_behind_results_of_tools(google: bool, thinking: bool, demo: Path) -> None:
    """The engine breaks off where a longer chat's prompt does not begin with that of the chat so far."""
    import litert_lm

    template = None
    if google:
        made = template_for(replace(open_checkpoint(DEMO).tokenizer, chat_template=gemma4_template()))
        assert made is not None
        template = made.text
    chat = next(one for one in conversations() if one.name == "two calls and an answer")
    result: dict[str, Any] = {"type": "tool_response", "name": "get_weather", "response": "fog"}
    fields = {**result, "response": {"sky": "sun"}}
    with (
        litert_lm.Engine(str(demo), backend=litert_lm.Backend.CPU(), cache_dir=":nocache") as opened,
        opened.create_conversation(
            messages=[*sent(chat).messages, chat.messages[2]],
            automatic_tool_calling=False,
            chat_template=template,
            max_output_tokens=4,
            thinking_config=litert_lm.ThinkingConfig(thinking),
        ) as conversation,
    ):
        for message in (
            {"role": "tool", "content": [fields, result]},
            {"role": "user", "content": "Really?"},
        ):
            before = conversation.token_count
            conversation.send_message(message)
            assert conversation.token_count > before + 4
        prompt = conversation.render_message_to_string({"role": "user", "content": "Thanks"})
    assert prompt.startswith("<|turn>user\nThanks<turn|>\n<|turn>model\n")


def test_litert_lm_describes_a_model_that_thinks_and_calls(demo: Path) -> None:
    """``ModelInfo`` is what the command ``litert-lm describe`` prints."""
    import litert_lm
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    with litert_lm.ModelInfo(str(demo)) as info:
        assert info.llm.supports_thinking()
        assert info.llm.supports_function_calling()
    message = llm_metadata_pb2.LlmMetadata.FromString(llm_metadata(open_checkpoint(DEMO), 2048))
    assert message.HasField("supports_thinking")
    assert message.HasField("supports_function_calling")


def test_the_text_is_the_references_up_to_a_near_tie(found: dict[str, Any]) -> None:
    greedy = found["greedy"]
    assert greedy["prompts"] == len(greedy["texts"]) == 4
    assert {one["kind"] for one in greedy["texts"]} == {"help topics", "chats"}
    assert greedy["equal_characters"] > greedy["characters"] / 2
    for one in greedy["texts"]:
        at = one["equal_characters"]
        assert one["reference"][:at] == one["engine"][:at]
        if one["divergence"] is None:
            assert at == len(one["reference"])
        else:
            assert one["divergence"]["character"] <= at < len(one["reference"])


def test_the_engine_leaves_no_cache_beside_the_bundle(found: dict[str, Any], demo: Path) -> None:
    assert [path.name for path in demo.parent.iterdir()] == [demo.name]


def swap(text: bytes) -> bytes:
    """Another tokenizer: two words have changed places."""
    document = json.loads(text)
    vocabulary = document["model"]["vocab"]
    vocabulary["▁the"], vocabulary["▁of"] = vocabulary["▁of"], vocabulary["▁the"]
    return json.dumps(document).encode()


def test_another_tokenizer_fails_its_gate_and_the_validation(demo: Path, tmp_path: Path) -> None:
    wrong = repack(demo, tmp_path / "wrong.litertlm", TOKENIZER, edit_tokenizer(swap))
    checkpoint = open_checkpoint(DEMO)
    settings = {"positions": 128, "same_weights": False, "cache": tmp_path / "cache"}
    entry = validate(checkpoint, "litert", wrong, scratch=tmp_path, **settings)["entry"]
    assert not entry["passed"]
    gates = {gate["name"]: gate["passed"] for gate in entry["gates"]}
    assert gates["exact_fraction"]
    assert gates["mean_kld"]
    found = entry["runtime"]["engine"]
    assert not gates["engine_same_tokens"]
    tokens = found["tokenizer"]
    assert 0 < tokens["equal"] < tokens["texts"]
    first = tokens["difference"]
    assert first["checkpoint"][0] != first["engine"][0]
    assert "of" in first["text"] or "the" in first["text"]


def test_the_weights_of_another_scheme_fail_though_the_tokens_are_equal(
    measured: Callable[..., dict[str, Any]],
    checkpoint_factory: Callable[..., Path],
    litert_bundle: Callable[..., Path],
) -> None:
    bundle = litert_bundle("e2b", "extremum8", "transformers")
    right = measured(checkpoint_factory("e2b", "extremum8", layout="transformers"), bundle)
    assert failed(right, RANDOM) == set()
    wrong = measured(checkpoint_factory("e2b"), bundle)
    assert {"engine_mean_abs", "engine_gap"} == failed(wrong, RANDOM)
    assert wrong["scores"]["mean_abs"] > 5 * right["scores"]["mean_abs"]


def test_scores_are_those_of_the_tokens_behind_all_before_them(demo: Path, tmp_path: Path) -> None:
    """litert-lm 0.18.1 forgets the token before a prompt's last; the filler is what it may forget."""
    import litert_lm

    ids = [460, 382, 353, 407, 521, 390, 392, 356, 348, 523, 417, 346, 359, 466, 379, 435]
    litert.runner.logits(demo, [[2, *ids]], 1280, tmp_path / "rows.npy", no_progress)
    rows = map_logits(tmp_path / "rows.npy", len(ids) + 1).astype(np.float64)
    expected = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    request = {**REQUEST, "artifact": str(demo), "sequences": [[2, *ids]]}
    scored = run_engine(request, no_progress)["scores"][0]
    first, values = scored["first"], np.array(scored["values"])
    wanted = np.array([expected[index - 1, [2, *ids][index]] for index in range(first, len(ids) + 1)])
    assert np.abs(values - wanted).max() < 0.05
    with (
        litert_lm.Engine(str(demo), backend=litert_lm.Backend.CPU(), cache_dir=":nocache") as opened,
        opened.create_session(apply_prompt_template=False) as session,
    ):
        session.run_prefill([opened.detokenize(ids[:8])])
        plain = session.run_text_scoring([opened.detokenize(ids[8:])]).token_scores[0]
    assert abs(plain[0] - expected[8, ids[8]]) > 0.5


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:5000],
        lambda data: b"x" * 100_000,
        lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    ],
    ids=["cut off", "another format", "zeros for weights"],
)
def test_a_damaged_bundle_is_one_line(damage: Callable[[bytes], bytes], demo: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.litertlm"
    path.write_bytes(damage(demo.read_bytes()))
    with pytest.raises(ValidationError) as caught:
        engine.run(path, Questions(["a"], ["def"], [[2, 460, 382, 353]], "<bos>", 4), no_progress)
    told = str(caught.value)
    assert told.startswith("LiteRT-LM on m.litertlm: ")
    assert "\n" not in told
    assert str(tmp_path) not in told
    assert len(told) > len("LiteRT-LM on m.litertlm: RuntimeError")


def test_what_the_engine_logs_explains_its_error(demo: Path) -> None:
    with pytest.raises(ValidationError, match="Exceeding the maximum number of tokens allowed"):
        engine.run(demo, Questions([], ["word " * 9000], [], "<bos>", 4), no_progress)
