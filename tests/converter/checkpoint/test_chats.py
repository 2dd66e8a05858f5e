"""The conversations by which templates are compared, and how they are written in a child process."""

from __future__ import annotations

from typing import Any

import pytest

from converter.system.progress import no_progress

pytest.importorskip("transformers")

from converter.checkpoint.chats import Conversation, conversations
from converter.checkpoint.rendering import render, write_chats
from converter.errors import ValidationError
from converter.system.child import run_worker


def written(template: str, *chats: Conversation) -> list[dict[str, str]]:
    request = {
        "templates": [template],
        "special": {"bos_token": "<bos>"},
        "chats": [chat.request() for chat in chats],
        "what": "a template",
    }
    made: Any = render(request, no_progress)["prompts"]
    found: list[dict[str, str]] = made[0]
    return found


def test_the_next_answer_is_always_the_models() -> None:
    names = [chat.name for chat in conversations()]
    assert len(set(names)) == len(names)
    for chat in conversations():
        last = chat.messages[-1]
        assert last["role"] in ("user", "tool") or last["tool_responses"], chat.name


def test_they_have_what_templates_can_differ_in() -> None:
    chats = conversations()
    roles = {message["role"] for chat in chats for message in chat.messages}
    assert roles == {"system", "user", "assistant", "tool"}
    assert {chat.thinking for chat in chats} == {None, False, True}
    assert any(chat.tools and chat.thinking for chat in chats)
    fields = {key for chat in chats for message in chat.messages for key in message}
    assert fields > {"tool_calls", "tool_responses", "tool_call_id", "reasoning_content"}
    assert {type(message["content"]) for chat in chats for message in chat.messages} == {str, list}
    text = "".join(str(message["content"]) for chat in chats for message in chat.messages)
    for special in ("\u00a0", "\u2028", "\U0001f469", '"', "<turn|>", "{{", "\t", "<|channel>"):
        assert special in text


def test_a_chat_tells_what_its_template_refuses_or_leaves_out() -> None:
    user = ({"role": "user", "content": "x"},)
    tool = {"type": "function", "function": {"name": "clock"}}
    chat = Conversation("a", user, (tool,), True, ("clock",))
    (whole,) = written("{{ bos_token }}{{ tools[0].function.name }}{{ enable_thinking }}", chat)
    assert whole == {"text": "<bos>clockTrue"}
    (less,) = written("{{ messages[0].content }}{{ add_generation_prompt }}", chat)
    assert less == {"text": "xTrue", "left_out": "clock"}
    (none,) = written("{{ raise_exception('not\n so') }}", chat)
    assert none == {"error": "not so"}
    (plain,) = written(
        "{{ tools is none or tools is undefined }} {{ enable_thinking is defined }}", Conversation("b", user)
    )
    assert plain == {"text": "True False"}


def test_a_prompt_without_end_is_an_error() -> None:
    with pytest.raises(ValidationError, match="it makes 2097152 characters of one chat"):
        write_chats(lambda messages, **options: "x" * (2 << 20), [conversations()[0].request()], "it")


def test_templates_run_in_a_child_process_and_in_a_sandbox() -> None:
    request = {
        "templates": ["{{ messages.__class__.__mro__ }}", "{{ messages[0].content }}"],
        "special": {},
        "chats": [conversations()[0].request()],
        "what": "it",
    }
    refused, fine = run_worker("converter.checkpoint.rendering", request, no_progress, what="transformers")[
        "prompts"
    ]
    assert "unsafe" in refused[0]["error"]
    assert fine == [{"text": "What is the capital of France?"}]
