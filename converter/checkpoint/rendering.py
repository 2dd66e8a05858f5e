"""Chat templates, run in the sandboxed Jinja environment of ``transformers``, and in child processes alone.

A template is a program that comes with a checkpoint. Every chat has bounds on time, memory and length.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from converter.errors import ValidationError
from converter.system.bounds import bounded
from converter.system.child import serve
from converter.system.progress import StageProgress

#: What a chat may take: seconds, bytes, and characters of text that a template makes of it. The sandbox keeps
#: a template from other objects, but not from running on and on.
_SECONDS: Final = 5
_MEMORY: Final = 1 << 30
_LONGEST: Final = 1 << 20


class RefusedError(Exception):
    """What a chat template says where it fails, one line."""


def write_chats(
    apply: Callable[..., Any], chats: Sequence[Mapping[str, Any]], what: str
) -> list[dict[str, str]]:
    """The prompt for the next answer in each of ``chats``: ``{"text"}``, or ``{"error"}``, a line. A text has
    ``"left_out"`` with it where it lacks something that the chat's template should write
    (``Conversation.shows``).

    ``apply`` is called as ``apply_chat_template``. A chat is what ``Conversation.request`` gives. Raises as
    ``write_chat`` does.
    """
    written = []
    for chat in chats:
        options: dict[str, object] = {"add_generation_prompt": True}
        if chat.get("tools"):
            options["tools"] = chat["tools"]
        if chat.get("thinking") is not None:
            options["enable_thinking"] = chat["thinking"]
        try:
            one = {"text": write_chat(partial(apply, **options), chat["messages"], what)}
        except RefusedError as error:
            one = {"error": str(error)}
        else:
            missing = [text for text in chat.get("shows", ()) if text not in one["text"]]
            if missing:
                one["left_out"] = missing[0]
        written.append(one)
    return written


def write_chat(apply: Callable[..., Any], messages: Sequence[Mapping[str, Any]], what: str) -> str:
    """A chat as text. Raises ``RefusedError`` where the template fails. Raises ``ValidationError``, in which
    ``what`` names the template, where it takes too long, too much memory or makes too much text."""
    print(f"rendering {what}", file=sys.stderr, flush=True)  # told if the process ends
    try:
        with bounded(_SECONDS, _MEMORY):
            text = str(apply(messages))
    except (TimeoutError, MemoryError) as error:
        raise ValidationError(f"{what} fails: {error}") from error
    except Exception as error:  # a template may raise anything
        raise RefusedError(" ".join(str(error).split()) or type(error).__name__) from error
    if len(text) > _LONGEST:
        raise ValidationError(f"{what} makes {len(text)} characters of one chat")
    return text


def render(request: dict[str, Any], progress: StageProgress) -> Mapping[str, object]:
    """Task of the child process: the prompts of ``chats`` by each of ``templates``, without a tokenizer.

    ``special`` are the texts of special tokens by the names that templates know. Answer: ``prompts``, for
    every template what ``write_chats`` gives.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    def apply(template: str, messages: list[Mapping[str, Any]], **options: Any) -> str:
        texts, _ = render_jinja_template([messages], chat_template=template, **request["special"], **options)
        return str(texts[0])

    prompts = []
    for template in request["templates"]:
        prompts.append(write_chats(partial(apply, template), request["chats"], request["what"]))
        progress(len(prompts), len(request["templates"]))
    return {"prompts": prompts}


if __name__ == "__main__":
    serve(render)
