"""Token ids by the checkpoint's tokenizer in ``transformers``; a task of ``validation.reference.process``.

Chat templates are rendered as ``converter.checkpoint.rendering`` does, with the checkpoint's own special
tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final

from converter.checkpoint.rendering import RefusedError, write_chat, write_chats
from converter.errors import ValidationError
from converter.system.bounds import LOADING_MEMORY, LOADING_SECONDS, bounded
from converter.system.progress import StageProgress

_OWN_TEMPLATE: Final = "the checkpoint's chat template"
#: How many ids are left off until the rest is what a text has: a character may take several.
_SHORTER: Final = 16


def tokenize(request: dict[str, Any], progress: StageProgress) -> Mapping[str, object]:
    """``{"bos": id | None, "ids": [ids without BOS | None, ...]}`` for the passages of the request.

    The tokenizer may name no BOS. Among the ids, ``None`` stands for a chat that cannot be rendered because
    the checkpoint has no chat template.
    """
    tokenizer = load_tokenizer(request["model"])
    bos = tokenizer.bos_token_id
    passages = request["passages"]
    ids: list[list[int] | None] = []
    for index, passage in enumerate(passages):
        text = _render(tokenizer, passage)
        made = None if text is None else list(tokenizer(text, add_special_tokens=False)["input_ids"])
        ids.append(made[1:] if made and bos is not None and made[0] == bos else made)
        progress(index + 1, len(passages))
    return {"bos": bos, "ids": ids}


def spell(request: dict[str, Any], progress: StageProgress) -> Mapping[str, object]:
    """Token ids of ``texts``, none added, and of ``chats``; and texts that have just the ids of ``prompts``.

    Answer:

    * ``ids`` of every text
    * ``prompts``, for each ``{"text", "ids"}``: the longest beginning of its ids that a text has, ``None`` if
      none is found within ``_SHORTER`` ids from the end
    * ``chats``, the prompt for the next answer in each: ``{"text", "ids"}``, with ``"left_out"`` or as
      ``{"error"}`` as ``rendering.write_chats`` has it, or ``None`` for all if there is no chat template
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
    chats: list[dict[str, object]] | None = None
    if tokenizer.chat_template is not None:
        chats = []
        for one in write_chats(_apply(tokenizer), request.get("chats", ()), _OWN_TEMPLATE):
            chats.append({**one, "ids": encode(one["text"])} if "text" in one else dict(one))
    return {"ids": [encode(text) for text in texts], "prompts": found, "chats": chats}


def render(request: dict[str, Any], progress: StageProgress) -> Mapping[str, object]:
    """The prompt for the next answer in each of ``chats`` by an artifact's ``template``.

    ``special`` are the texts of special tokens that a template may write (``bos_token``, ...), ``what`` names
    the template in errors. Answer: ``prompts``, for each chat what ``rendering.write_chats`` gives.
    """
    apply = _apply(load_tokenizer(request["model"]), chat_template=request["template"], **request["special"])
    return {"prompts": write_chats(apply, request["chats"], request["what"])}


@lru_cache(maxsize=1)
def load_tokenizer(model: str) -> Any:
    """The checkpoint's tokenizer, within the bounds on what its files may make transformers do. It is kept
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
    messages = [{"role": role, "content": content} for role, content in passage["turns"]]
    try:
        return write_chat(_apply(tokenizer), messages, _OWN_TEMPLATE)
    except RefusedError as error:
        raise ValidationError(f"{_OWN_TEMPLATE} fails: {error}") from error


def _apply(tokenizer: Any, **options: object) -> partial[Any]:
    return partial(tokenizer.apply_chat_template, tokenize=False, **options)
