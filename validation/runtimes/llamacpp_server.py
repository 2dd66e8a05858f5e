"""Prompts of chats by llama.cpp's server, which runs chat templates in llama.cpp's own Jinja.

The C function ``llama_chat_apply_template`` runs no Jinja at all: it guesses a known format. The server is
that of the wheel ``xllamacpp``; llama-cpp-python has none of llama.cpp's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from converter.checkpoint.chats import Conversation, Inexpressible
from converter.system.child import run_worker
from converter.system.progress import StageProgress
from targets.gguf.tokenizer_model import write_tokenizer_model
from validation.runtimes.llamacpp_library import find_library

#: What runs the templates.
ENGINE: Final = "llama.cpp's server"
_RESPONSES: Final = "tool_responses"


def has_server() -> bool:
    """Whether what runs the artifacts has llama.cpp's server."""
    return find_library().path is not None


def given(chat: Conversation) -> Conversation | Inexpressible:
    """A chat as the server can be given it.

    It always says whether to think, since the server by itself says yes. Results of tools are texts.
    """
    if any(_RESPONSES in message for message in chat.messages):
        return Inexpressible(chat, "results of tools with fields")
    return replace(chat, thinking=bool(chat.thinking))


def server_prompts(
    artifact: Path,
    template: str | None,
    chats: Sequence[Conversation],
    scratch: Path,
    progress: StageProgress,
) -> list[dict[str, str]]:
    """The prompt for the next answer in every chat, ``{"text"}``, or ``{"error"}``, by the templates of
    ``artifact``, or by another ``template``. The server leaves out the BOS token in front of prompts before
    which llama.cpp puts it.

    ``scratch`` is a directory for a file as large as the vocabulary. Raises ``CheckpointError`` for a damaged
    artifact, ``ValidationError`` when the server does not start or runs on.
    """
    model = scratch / "tokenizer.gguf"
    write_tokenizer_model(artifact, model, template)
    request = {"model": str(model.resolve()), "chats": [_body(chat) for chat in chats]}
    what = f"{ENGINE} on the template of {artifact.name}"
    try:
        made = run_worker("validation.runtimes.llamacpp_server_model", request, progress, what=what)
    finally:
        model.unlink()
    prompts: list[dict[str, str]] = made["prompts"]
    return prompts


def _body(chat: Conversation) -> dict[str, object]:
    """A request to ``/apply-template``: messages as OpenAI's interface has them, in which arguments of calls
    are a text of JSON."""
    body: dict[str, object] = {
        "messages": [_message(message) for message in chat.messages],
        "chat_template_kwargs": {"enable_thinking": bool(chat.thinking)},
    }
    return {**body, "tools": list(chat.tools)} if chat.tools else body


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    return {**message, "tool_calls": calls} if calls else dict(message)
