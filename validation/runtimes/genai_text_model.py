"""Child process of ``genai_text``: what onnxruntime-genai makes of text with a model's side files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from converter.errors import ValidationError
from converter.system.bounds import (
    LOADING_MEMORY,
    LOADING_SECONDS,
    TEMPLATE_MEMORY,
    TEMPLATE_SECONDS,
    bounded,
)
from converter.system.child import serve, without_directories
from converter.system.progress import StageProgress


def read(request: dict[str, Any], progress: StageProgress) -> Mapping[str, object]:
    """``reading`` (``tokens``, ``prompts``, ``ends``) by the files in the directory ``artifact``, and ``own``
    by those in ``checkpoint``, ``None`` where the tokenizer does not load them."""
    import onnxruntime_genai

    reading = _read(request["artifact"], request)
    progress(1, 2)
    try:
        own = _read(request["checkpoint"], request)
    except ValidationError:
        own = None
    return {"version": onnxruntime_genai.__version__, "reading": reading, "own": own}


def _read(directory: str, request: Mapping[str, Any]) -> dict[str, object]:
    from onnxruntime_genai import Tokenizer

    with bounded(LOADING_SECONDS, LOADING_MEMORY):
        try:
            tokenizer = Tokenizer(directory)
        except Exception as error:  # its exceptions have no common base of their own
            raise ValidationError(f"cannot load the tokenizer: {_line(error)}") from error
        tokens = [_encode(tokenizer, text) for text in request["texts"]]
    print("rendering chat_template.jinja", file=sys.stderr, flush=True)  # told if the process ends
    with bounded(TEMPLATE_SECONDS, TEMPLATE_MEMORY):
        prompts = [_prompt(tokenizer, chat) for chat in request["chats"]]
    return {"tokens": tokens, "prompts": prompts, "ends": [int(id) for id in tokenizer.eos_token_ids]}


def _encode(tokenizer: Any, text: str) -> list[int]:
    try:
        return [int(id) for id in tokenizer.encode(text)]
    except Exception as error:  # as above
        raise ValidationError(f"cannot tokenise a text: {_line(error)}") from error


def _prompt(tokenizer: Any, chat: list[dict[str, Any]]) -> list[int] | str:
    """Token ids of the prompt for the next answer, or why there are none."""
    try:
        text = tokenizer.apply_chat_template(json.dumps(chat), add_generation_prompt=True)
    except Exception as error:  # as above
        return f"the chat template fails: {_line(error)}"
    return _encode(tokenizer, text)


def _line(error: Exception) -> str:
    """The first line of a message, without the directories of this machine."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return without_directories(lines[0])


if __name__ == "__main__":
    serve(read)
