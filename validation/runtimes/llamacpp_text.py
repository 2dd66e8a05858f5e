"""The text side of GGUF files: llama.cpp's own tokenizer over the vocabulary that the file holds.

llama.cpp reads the vocabulary alone, in a child (``llamacpp_text_model``). A file's template is run by
llama.cpp's server (``llamacpp_server``), or by transformers where there is none, and the prompt that it
writes is tokenised as the server does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from converter.checkpoint.chats import Conversation, Inexpressible
from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.tokenizer import Tokenizer
from converter.system.child import Worker
from converter.system.progress import StageProgress
from targets.gguf.ends import ENDS_BY_TEXT
from targets.gguf.family import gguf_family
from targets.gguf.tokenizer_model import TEMPLATE
from targets.gguf.vocabulary import lost_ends
from validation.runners import Ids, Reading, Render, Template, TextAccount
from validation.runtimes.llamacpp_server import ENGINE, given, has_server, server_prompts

#: What runs templates where the installed library has no server.
_NO_SERVER: Final = "transformers"
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

    def given(self, chat: Conversation) -> Conversation | Inexpressible:
        """A chat as llama.cpp's server takes it, whether that is there or not."""
        return given(chat)

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
        """See the protocol. There is no other reading to compare tokens with: a vocabulary must be in a GGUF
        before llama.cpp reads it. But a text that llama.cpp would have to normalize is read normalized
        too."""
        tokenizer = checkpoint.tokenizer
        model = gguf_family(checkpoint.architecture).tokenizer_model(tokenizer)
        changed = {at: model.normalized(text) for at, text in enumerate(texts)}
        changed = {at: text for at, text in changed.items() if text != texts[at]}
        what = f"llama.cpp on the vocabulary of {artifact.name}"
        with Worker("validation.runtimes.llamacpp_text_model") as worker:
            found = worker.call(
                {"artifact": str(artifact.resolve()), "texts": list(texts)}, progress, what=what
            )

            def tokens_of(prompts: Sequence[str], *, begin: bool) -> Sequence[Sequence[int]]:
                request = {"artifact": str(artifact.resolve()), "texts": list(prompts), "begin": begin}
                made: Sequence[Sequence[int]] = worker.call(request, progress, what=what)["tokens"]
                return made

            normalized = dict(zip(changed, tokens_of(list(changed.values()), begin=False), strict=True))
            side = _Prompts(artifact, tokenizer, found, chats, render, tokens_of)
            prompts, own_prompts = side.read(scratch, progress)
        neither = tokenizer.fillers | _hidden_by_some(tokenizer)
        by_rule = frozenset(id for id, one in enumerate(tokenizer.tokens) if one in ENDS_BY_TEXT)
        return TextAccount(
            found["version"],
            Reading(tuple(map(tuple, found["tokens"])), prompts, tuple(found["ends"])),
            normalized={at: tuple(ids) for at, ids in normalized.items()},
            own_prompts=own_prompts,
            template=side.template,
            ends_by_rule=by_rule,
            ends_lost=frozenset(lost_ends(checkpoint.architecture, tokenizer)),
            hidden=frozenset(found["hidden"]) - by_rule - neither,
            hidden_by_right=_hidden(tokenizer, model.visible) - by_rule - neither,
        )


@dataclass(frozen=True, slots=True)
class _Prompts:
    """Prompts of ``chats`` by the template of ``artifact``."""

    artifact: Path
    tokenizer: Tokenizer
    #: What ``llamacpp_text_model`` says of the artifact.
    found: Mapping[str, Any]
    chats: Sequence[Conversation]
    render: Render
    #: Tokenises with the artifact's vocabulary, and puts BOS in front if it is to ``begin``.
    tokens_of: Callable[..., Sequence[Sequence[int]]]

    @property
    def template(self) -> Template | None:
        """The artifact's template and what runs it."""
        text = self.found["template"]
        return None if text is None else Template(text, ENGINE if has_server() else _NO_SERVER)

    def read(self, scratch: Path, progress: StageProgress) -> tuple[tuple[Ids, ...], tuple[Ids, ...] | None]:
        """Token ids of the prompts by the artifact's template, and by the checkpoint's where llama.cpp makes
        another text of it than transformers does."""
        template, own = self.found["template"], self.tokenizer.chat_template
        if template is None:
            return (f"the file has no {TEMPLATE}",) * len(self.chats), None
        if not self.chats:
            return (), None
        # one of unknown origin is first tried where it is bounded best
        what = f"{TEMPLATE} of {self.artifact.name}"
        tried = self.render(template, self.found["special"], self.chats, what)
        if not has_server() or all("error" in one for one in tried):
            return self._ids(tried, begin=False), None
        written = server_prompts(self.artifact, None, self.chats, scratch, progress)
        others = written
        if own is not None and own != template:
            others = server_prompts(self.artifact, own, self.chats, scratch, progress)
        return self._ids(written, begin=True), self._excuses(others)

    def _excuses(self, others: Sequence[Mapping[str, str]]) -> tuple[Ids, ...] | None:
        """``others``, prompts by the checkpoint's template, as far as llama.cpp writes another text than
        transformers, or puts BOS, if there is one, before one that has none. Elsewhere there is a line that
        is no prompt."""
        own = self.tokenizer.chat_template
        if own is None:
            return None
        begin = "" if self.tokenizer.bos is None else self.tokenizer.tokens[self.tokenizer.bos]
        right = self.render(own, {}, self.chats, "the checkpoint's chat template")
        return tuple(
            ids
            if "text" not in due
            or not due["text"].startswith(begin)
            or one.get("text", "").removeprefix(begin) != due["text"].removeprefix(begin)
            else "as transformers has it"
            for ids, one, due in zip(self._ids(others, begin=True), others, right, strict=True)
        )

    def _ids(self, written: Sequence[Mapping[str, str]], *, begin: bool) -> tuple[Ids, ...]:
        tokens = iter(self.tokens_of([one["text"] for one in written if "text" in one], begin=begin))
        return tuple(tuple(next(tokens)) if "text" in one else one["error"] for one in written)


def _hidden(tokenizer: Tokenizer, visible: Collection[str]) -> frozenset[int]:
    """Special tokens of the checkpoint, but for those that llama.cpp shows to whoever reads chats."""
    return frozenset(
        id for id, token in tokenizer.added.items() if token.special and token.content not in visible
    )


def _hidden_by_some(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens without use that llama.cpp's own converter hides by their text, special or not."""
    return frozenset(
        id for id, token in tokenizer.added.items() if not token.special and _UNUSED.fullmatch(token.content)
    )


text = LlamaCppText()
