"""The text side of GGUF files: llama.cpp's own tokenizer over the vocabulary that the file holds.

llama.cpp reads the vocabulary alone, in a child (``llamacpp_text_model``). Its C interface has no
engine for chat templates, so a file's template is run by transformers, and the prompt that it writes is
tokenised by llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from converter.checkpoint import Checkpoint
from converter.tokenizer import Tokenizer
from converter.worker import Progress, Worker
from targets.gguf.vocabulary import VISIBLE, lost_ends
from validation.runners import Chat, Ids, Reading, Render, TextAccount

TEMPLATE: Final = "tokenizer.chat_template"
#: Texts of tokens at which llama.cpp ends an answer whatever a file says (``llama_vocab::impl::load``), which
#: it also hides; found by trying each in xllamacpp 2026.10.11549.
ENDS_BY_TEXT: Final = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"}
    | {"<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "</s>", "<eos>"}
    | {"<|end_of_text|>", "<end_of_utterance>", "<turn|>", "<|tool_response>", "[e~["}
    | {"<\N{FULLWIDTH VERTICAL LINE}end\u2581of\u2581sentence\N{FULLWIDTH VERTICAL LINE}>"}
    # ends of pieces of code that is filled in
    | {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>"}
    | {"<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"}
)
#: What llama.cpp's converter takes for special by its text (``does_token_look_special``).
_UNUSED: Final = re.compile(r"<unused\d+>|<\|.*\|>|<pad>|<mask>|<2mass>|\[@BOS@\]")


@dataclass(frozen=True, slots=True)
class LlamaCppText:
    """llama.cpp's tokenizer; see ``validation.runners.TextRuntime``."""

    name: str = "llama.cpp"

    def missing(self) -> str:
        """Nothing: what runs the artifact reads it too."""
        return ""

    def takes(self, artifact: Path) -> bool:
        """Always: llama.cpp loads no GGUF model without a vocabulary."""
        return True

    def read(
        self,
        artifact: Path,
        checkpoint: Checkpoint,
        texts: Sequence[str],
        chats: Sequence[Chat],
        render: Render,
        scratch: Path,
        progress: Progress,
    ) -> TextAccount:
        """See the protocol. There is no other reading to compare with: a vocabulary must be in a GGUF before
        llama.cpp reads it."""
        what = f"llama.cpp on the vocabulary of {artifact.name}"
        with Worker("validation.runtimes.llamacpp_text_model") as worker:
            found = worker.call(
                {"artifact": str(artifact.resolve()), "texts": list(texts)}, progress, what=what
            )
            prompts = self._prompts(artifact, found, chats, render, worker, progress, what)
        tokenizer = checkpoint.tokenizer
        neither = tokenizer.fillers | _hidden_by_some(tokenizer)
        by_rule = frozenset(id for id, one in enumerate(tokenizer.tokens) if one in ENDS_BY_TEXT)
        return TextAccount(
            found["version"],
            Reading(tuple(map(tuple, found["tokens"])), prompts, tuple(found["ends"])),
            ends_by_rule=by_rule,
            ends_lost=frozenset(lost_ends(checkpoint.architecture, tokenizer)),
            hidden=frozenset(found["hidden"]) - by_rule - neither,
            hidden_by_right=_hidden(tokenizer) - by_rule - neither,
        )

    def _prompts(
        self,
        artifact: Path,
        found: Mapping[str, Any],
        chats: Sequence[Chat],
        render: Render,
        worker: Worker,
        progress: Progress,
        what: str,
    ) -> tuple[Ids, ...]:
        template = found["template"]
        if template is None:
            return (f"the file has no {TEMPLATE}",) * len(chats)
        written = render(template, found["special"], chats, f"{TEMPLATE} of {artifact.name}")
        texts = [one["text"] for one in written if "text" in one]
        made = worker.call({"artifact": str(artifact.resolve()), "texts": texts}, progress, what=what)
        tokens = iter(made["tokens"])
        return tuple(tuple(next(tokens)) if "text" in one else one["error"] for one in written)


def _hidden(tokenizer: Tokenizer) -> frozenset[int]:
    """Special tokens of the checkpoint, but for those that llama.cpp shows to whoever reads chats."""
    return frozenset(
        id for id, token in tokenizer.added.items() if token.special and token.content not in VISIBLE
    )


def _hidden_by_some(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens without use that llama.cpp's own converter hides by their text, special or not."""
    return frozenset(
        id for id, token in tokenizer.added.items() if not token.special and _UNUSED.fullmatch(token.content)
    )


text = LlamaCppText()
