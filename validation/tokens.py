"""Token ids by the checkpoint's tokenizer in ``transformers``; a task of ``validation.reference_process``.

Chat templates are programs that come with the checkpoint. They are rendered here, in a child process and
in the sandboxed Jinja environment of ``transformers``, and nowhere else in this project.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from converter.errors import ValidationError
from converter.worker import Progress
from validation.bounds import LOADING_MEMORY, LOADING_SECONDS, bounded

#: What a chat template may take: seconds, bytes, and characters of text that it makes. The sandbox keeps it
#: from other objects, but not from running on and on.
_SECONDS: Final = 5
_MEMORY: Final = 1 << 30
_LONGEST: Final = 1 << 20
#: How many ids are left off until the rest is what a text has: a character may take several.
_SHORTER: Final = 16


def tokenize(request: dict[str, Any], progress: Progress) -> Mapping[str, object]:
    """``{"bos": id, "ids": [ids without BOS | None, ...]}`` for the passages of the request.

    ``None`` stands for a chat that cannot be rendered because the checkpoint has no chat template.
    """
    tokenizer = load_tokenizer(request["model"])
    bos = tokenizer.bos_token_id
    if bos is None:
        raise ValidationError("the checkpoint's tokenizer names no BOS token")
    passages = request["passages"]
    ids: list[list[int] | None] = []
    for index, passage in enumerate(passages):
        text = _render(tokenizer, passage)
        made = None if text is None else list(tokenizer(text, add_special_tokens=False)["input_ids"])
        ids.append(made[1:] if made and made[0] == bos else made)
        progress(index + 1, len(passages))
    return {"bos": bos, "ids": ids}


def spell(request: dict[str, Any], progress: Progress) -> Mapping[str, object]:
    """Token ids of ``texts``, none added, and of ``chats``; and texts that have just the ids of ``prompts``.

    Answer: ``ids`` of every text; ``prompts``, for each ``{"text", "ids"}``: the longest beginning of its
    ids that a text has, ``None`` if none is found within ``_SHORTER`` ids from the end; and ``chats``, the
    ids of the prompt for the next answer in each, ``None`` where the chat template refuses it, or ``None``
    for all if there is no chat template.
    """
    tokenizer = load_tokenizer(request["model"])

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    texts, prompts = request["texts"], request["prompts"]
    found: list[dict[str, object] | None] = []
    for ids in prompts:
        for end in range(len(ids), max(len(ids) - _SHORTER, 0), -1):
            text = decode(tokenizer, ids[:end])
            if encode(text) == ids[:end]:
                found.append({"text": text, "ids": ids[:end]})
                break
        else:
            found.append(None)
        progress(len(found), len(prompts))
    chats: list[list[int] | None] | None = None
    if tokenizer.chat_template is not None:
        written = _write_all(tokenizer, request.get("chats", ()), "the checkpoint's chat template")
        chats = [encode(one["text"]) if "text" in one else None for one in written]
    return {"ids": [encode(text) for text in texts], "prompts": found, "chats": chats}


def render(request: dict[str, Any], progress: Progress) -> Mapping[str, object]:
    """The prompt for the next answer in each of ``chats`` by an artifact's ``template``.

    ``special`` are the texts of special tokens that a template may write (``bos_token``, ...), ``what`` names
    the template in errors. Answer: ``prompts``, for each chat ``{"text"}``, or ``{"error"}``, a line, where
    the template refuses it.
    """
    tokenizer = load_tokenizer(request["model"])
    return {
        "prompts": _write_all(
            tokenizer,
            request["chats"],
            request["what"],
            chat_template=request["template"],
            **request["special"],
        )
    }


@lru_cache(maxsize=1)
def load_tokenizer(model: str) -> Any:
    """The checkpoint's tokenizer, within the bounds on what its files may make transformers do; it is kept
    for the next task, since one of 262,144 tokens takes two seconds."""
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()
    with bounded(LOADING_SECONDS, LOADING_MEMORY):
        return AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens and white space included."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _render(tokenizer: Any, passage: Mapping[str, Any]) -> str | None:
    if not passage["turns"]:
        return str(passage["text"])
    if tokenizer.chat_template is None:
        return None
    what = "the checkpoint's chat template"
    try:
        return _write(tokenizer, passage["turns"], what)
    except _RefusedError as error:
        raise ValidationError(f"{what} fails: {error}") from error


class _RefusedError(Exception):
    """What a chat template says where it fails, one line."""


def _write_all(
    tokenizer: Any, chats: Sequence[Sequence[Sequence[str]]], what: str, **options: object
) -> list[dict[str, str]]:
    """``{"text"}`` of every chat with the prompt for the next answer, or ``{"error"}``."""
    written = []
    for turns in chats:
        try:
            text = _write(tokenizer, turns, what, add_generation_prompt=True, **options)
            written.append({"text": text})
        except _RefusedError as error:
            written.append({"error": str(error)})
    return written


def _write(tokenizer: Any, turns: Sequence[Sequence[str]], what: str, **options: object) -> str:
    """A chat as text. Raises ``_RefusedError`` where the template fails, and ``ValidationError`` where it
    takes too long, too much memory or makes too much text."""
    messages = [{"role": role, "content": content} for role, content in turns]
    print(f"rendering {what}", file=sys.stderr, flush=True)
    try:
        with bounded(_SECONDS, _MEMORY):
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except (TimeoutError, MemoryError) as error:
        raise ValidationError(f"{what} fails: {error}") from error
    except Exception as error:  # a template may raise anything
        raise _RefusedError(" ".join(str(error).split()) or type(error).__name__) from error
    if len(text) > _LONGEST:
        raise ValidationError(f"{what} makes {len(text)} characters of one chat")
    return text
