"""The text side of ONNX models: onnxruntime-genai's tokenizer over the files beside the model.

It runs in a child (``genai_text_model``), which reads neither graph nor weights. Its tokenizer and its
template engine do not do all that transformers' do, whatever files they are given. So the child reads the
checkpoint's own files too, with no more configuration than it takes to load them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from converter.checkpoint.chats import Conversation, Inexpressible
from converter.checkpoint.documents import TOKENIZER_BYTES
from converter.checkpoint.generation import end_tokens
from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.special_tokens import EOS_ID
from converter.errors import CheckpointError
from converter.filenames import CHAT_TEMPLATE, GENAI_CONFIG, TOKENIZER, TOKENIZER_CONFIG
from converter.system.child import run_worker
from converter.system.progress import StageProgress
from converter.system.untrusted import read_object, read_text
from targets.onnx.family import onnx_family
from validation.runners import Reading, Render, Template, TextAccount

_TEMPLATE_BYTES: Final = 4 << 20
_MODULE: Final = "onnxruntime_genai"
#: The class under which it merges as Gemma's tokenizers do.
_CLASS: Final = "GemmaTokenizer"


@dataclass(frozen=True, slots=True)
class GenAiText:
    """onnxruntime-genai's tokenizer; see ``validation.runners.TextRuntime``."""

    name: str = "onnxruntime-genai"

    def missing(self) -> str:
        """Where onnxruntime-genai is not installed: it has no wheel for every machine that onnxruntime has
        one for."""
        if find_spec(_MODULE) is not None:
            return ""
        return "onnxruntime-genai is not installed: pip install onnxruntime-genai"

    def takes(self, artifact: Path) -> bool:
        """Whether ``genai_config.json`` lies beside the model: a model alone has no tokenizer."""
        return artifact.with_name(GENAI_CONFIG).is_file()

    def given(self, chat: Conversation) -> Conversation | Inexpressible:
        """A chat of nothing but messages; ``apply_chat_template`` takes no ``enable_thinking``, and does not
        hand tools over as transformers does."""
        if chat.tools:
            return Inexpressible(chat, "tools")
        if chat.thinking is not None:
            return Inexpressible(chat, "enable_thinking")
        return chat

    def read(
        self,
        artifact: Path,
        checkpoint: Checkpoint,
        texts: Sequence[str],
        chats: Sequence[Conversation],
        render: Render,
        scratch: Path,
        progress: StageProgress,
    ) -> TextAccount:
        """See the protocol; templates run in onnxruntime-genai's own engine."""
        _write_own(checkpoint, scratch)
        request: Mapping[str, object] = {
            "artifact": str(artifact.parent.resolve()),
            "checkpoint": str(scratch.resolve()),
            "texts": list(texts),
            "chats": [list(chat.messages) for chat in chats],
        }
        what = f"onnxruntime-genai on the files beside {artifact.name}"
        result = run_worker("validation.runtimes.genai_text_model", request, progress, what=what)
        own = result["own"]
        template = _template(artifact.parent)
        return TextAccount(
            result["version"],
            _reading(result["reading"]),
            own and _reading(own),
            template=None if template is None else Template(template, self.name),
        )


def _reading(found: Mapping[str, Any]) -> Reading:
    return Reading(
        tuple(map(tuple, found["tokens"])),
        tuple(one if isinstance(one, str) else tuple(one) for one in found["prompts"]),
        tuple(found["ends"]),
    )


def _template(directory: Path) -> str | None:
    """The template where onnxruntime-genai looks for it, ``None`` where there is no text."""
    try:
        config = read_object(directory / TOKENIZER_CONFIG)
        found = config.get("chat_template") or read_text(directory / CHAT_TEMPLATE, _TEMPLATE_BYTES)
    except CheckpointError:
        return None
    return found if isinstance(found, str) else None


def _write_own(checkpoint: Checkpoint, directory: Path) -> None:
    """The checkpoint's tokenizer and template as they are, and the least that onnxruntime-genai asks for
    beside them.

    They are not written by the converter's rules, so that a mistake in those is not taken for the runtime's.
    """
    tokenizer = checkpoint.tokenizer
    (directory / TOKENIZER).write_bytes(checkpoint.documents.content(TOKENIZER, TOKENIZER_BYTES))
    special = {
        f"{name}_token": tokenizer.tokens[id]
        for name in ("bos", "eos", "pad", "unk")
        if (id := getattr(tokenizer, name)) is not None
    }
    model = {
        "type": onnx_family(checkpoint.architecture).model_type,
        "context_length": checkpoint.architecture.context,
        EOS_ID: end_tokens(checkpoint.architecture, tokenizer),
    }
    for name, values in ((GENAI_CONFIG, {"model": model}), (TOKENIZER_CONFIG, special)):
        document = values if name == GENAI_CONFIG else {"tokenizer_class": _CLASS, **values}
        (directory / name).write_text(json.dumps(document), "utf-8")
    if tokenizer.chat_template is not None:
        (directory / CHAT_TEMPLATE).write_text(tokenizer.chat_template, "utf-8")


text = GenAiText()
