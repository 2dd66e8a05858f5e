"""Token ids by the checkpoint's tokenizer in ``transformers``; a task of ``validation.reference_process``.

Chat templates are programs that come with the checkpoint. They are rendered here, in a child process and
in the sandboxed Jinja environment of ``transformers``, and nowhere else in this project.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converter.errors import ValidationError
from validation.worker import Progress


def tokenize(request: dict[str, Any], progress: Progress) -> Mapping[str, object]:
    """``{"bos": id, "ids": [ids without BOS | None, ...]}`` for the passages of the request.

    ``None`` stands for a chat that cannot be rendered because the checkpoint has no chat template.
    """
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(
        request["model"], local_files_only=True, trust_remote_code=False
    )
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


def _render(tokenizer: Any, passage: Mapping[str, Any]) -> str | None:
    if not passage["turns"]:
        return str(passage["text"])
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": role, "content": content} for role, content in passage["turns"]]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception as error:  # a template may raise anything
        raise ValidationError(f"the checkpoint's chat template fails: {error}") from error
