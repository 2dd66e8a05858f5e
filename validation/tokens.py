"""Token ids by the checkpoint's tokenizer in ``transformers``; a task of ``validation.reference_process``.

Chat templates are programs that come with the checkpoint. They are rendered here, in a child process and
in the sandboxed Jinja environment of ``transformers``, and nowhere else in this project.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
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
    """Token ids of ``texts``, none added, and texts that have just the token ids of ``prompts``.

    Answer: ``ids`` of every text, and ``prompts``, for each ``{"text", "ids"}``: the longest beginning of its
    ids that a text has, ``None`` if none is found within ``_SHORTER`` ids from the end.
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
    return {"ids": [encode(text) for text in texts], "prompts": found}


def load_tokenizer(model: str) -> Any:
    """The checkpoint's tokenizer, within the bounds on what its files may make transformers do."""
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
    turns = [{"role": role, "content": content} for role, content in passage["turns"]]
    print("rendering the checkpoint's chat template", file=sys.stderr, flush=True)
    try:
        with bounded(_SECONDS, _MEMORY):
            text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception as error:  # a template may raise anything
        raise ValidationError(
            f"the checkpoint's chat template fails: {str(error) or type(error).__name__}"
        ) from error
    if len(text) > _LONGEST:
        raise ValidationError(f"the checkpoint's chat template makes {len(text)} characters of one chat")
    return text
