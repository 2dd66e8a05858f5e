"""Prompts of chats by llama.cpp's server."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from converter.checkpoint.chats import Conversation, Inexpressible, conversations
from converter.checkpoint.rendering import write_chats
from converter.demo import DEMO
from converter.system.progress import no_progress
from support.gemma4_template import gemma4_template
from validation.runtimes.genai_text import text as genai
from validation.runtimes.llamacpp_server import given, has_server, server_prompts

pytestmark = pytest.mark.skipif(not has_server(), reason="llama-cpp-python has no server of llama.cpp's own")
#: Both runtimes trim ASCII's white space alone.
OTHERWISE = ["a no-break space at an end"]


@pytest.fixture(scope="module")
def demo(write_gguf: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = write_gguf(DEMO, tmp_path_factory.mktemp("gguf")).path
    return path


def expressible(take: Callable[[Conversation], Conversation | Inexpressible]) -> list[Conversation]:
    return [chat for chat in map(take, conversations()) if isinstance(chat, Conversation)]


def expected(template: str, chats: Sequence[Conversation]) -> list[str]:
    """What transformers writes."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    apply = partial(tokenizer.apply_chat_template, tokenize=False, chat_template=template)
    written = write_chats(apply, [chat.request() for chat in chats], "it")
    assert [one for one in written if "left_out" in one] == []
    return [one["text"] for one in written]


def test_results_with_fields_cannot_be_given_and_thinking_always_is() -> None:
    found = {chat.name: given(chat) for chat in conversations()}
    assert [name for name, one in found.items() if isinstance(one, Inexpressible)] == ["a result with fields"]
    chats = [one for one in found.values() if isinstance(one, Conversation)]
    assert {chat.name for chat in chats if chat.thinking} == {"thinking on", "thinking with tools"}
    assert all(chat.thinking is not None for chat in chats)


def test_googles_template_makes_its_own_prompts(demo: Path, tmp_path: Path) -> None:
    template, chats = gemma4_template(), expressible(given)
    made = server_prompts(demo, template, chats, tmp_path, no_progress)
    due = [text.removeprefix("<bos>") for text in expected(template, chats)]
    pairs = zip(chats, made, due, strict=True)
    assert [chat.name for chat, one, text in pairs if one.get("text") != text] == OTHERWISE
    assert list(tmp_path.iterdir()) == []


def test_googles_template_makes_its_own_prompts_in_onnxruntime_genai(tmp_path: Path) -> None:
    """As far as they can be expressed there."""
    from onnxruntime_genai import Tokenizer

    from converter.checkpoint.opened import open_checkpoint
    from validation.runtimes.genai_text import _write_own

    template, chats = gemma4_template(), expressible(genai.given)
    _write_own(open_checkpoint(DEMO), tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template, "utf-8")
    tokenizer = Tokenizer(str(tmp_path))
    made = [tokenizer.apply_chat_template(json.dumps(chat.messages)) for chat in chats]
    pairs = zip(chats, made, expected(template, chats), strict=True)
    assert [chat.name for chat, one, text in pairs if one != text] == OTHERWISE


def test_thinking_is_what_the_server_turns_on_by_itself(demo: Path, tmp_path: Path) -> None:
    """Why it is always told. Once this fails, a chat that does not say may be given as it is."""
    chat = expressible(given)[0]
    on, off = (
        server_prompts(demo, None, [replace(chat, thinking=thinking)], tmp_path, no_progress)[0]["text"]
        for thinking in (True, False)
    )
    assert on.startswith("<|turn>system\n<|think|>")
    assert "<|think|>" not in off


def test_why_a_template_fails_is_told(demo: Path, tmp_path: Path) -> None:
    chats = expressible(given)[:2]
    refusing = "{{ raise_exception('no\nprime') if 'prime' in messages[0]['content'] }}a"
    for template, first, second in (
        (refusing, {"text": "a"}, "the chat template fails: "),
        ("{% for %}", None, "the server does not take the template: "),
    ):
        made = server_prompts(demo, template, chats, tmp_path, no_progress)
        assert made[0] == first or first is None
        assert made[1]["error"].startswith(second)
        assert "\n" not in made[1]["error"]
