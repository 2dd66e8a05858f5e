"""LiteRT bundles in LiteRT-LM's engine, the program that runs them on phones, here on the processor.

It runs in a child (``litert_lm_engine``), where its memory can be told from the tool's own and a
crash of native code is one line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from converter.checkpoint.chats import Conversation, Inexpressible
from converter.errors import CheckpointError, ValidationError
from converter.system.child import run_worker, without_directories
from converter.system.progress import StageProgress
from targets.litert.metadata import stored_template
from targets.litert.template import sent, template_for
from validation.runners import Account, Answer, Ids, Questions, Reading, Scores, Template

#: The kind of file that the engine opens.
SUFFIX: Final = ".litertlm"
#: What runs the templates.
_ENGINE: Final = "LiteRT-LM's minijinja"
#: A line of the engine's log about an error: severity, date, time, thread, place in its source, message.
_ERROR: Final = re.compile(r"^E\d{4} [^\]]*\] (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class LiteRtLm:
    """The engine for ``.litertlm`` files; see ``validation.runners.Engine``."""

    name: str = "LiteRT-LM"

    def takes(self, artifact: Path) -> bool:
        """Whether ``artifact`` is a bundle: a model alone (``.tflite``) has no tokenizer."""
        return artifact.suffix == SUFFIX

    def given(self, chat: Conversation) -> Conversation | Inexpressible:
        """Every chat as it is; ``run`` sends results of tools as an app does."""
        return chat

    def run(self, artifact: Path, questions: Questions, progress: StageProgress) -> Account:
        """Run ``artifact``; see the protocol. The engine writes no cache beside it, or anywhere."""
        tokenizer = questions.tokenizer
        template, own = _stored_template(artifact), template_for(tokenizer) if tokenizer else None
        same = own is not None and own.text == template
        request: Mapping[str, object] = {
            "artifact": str(artifact.resolve()),
            "texts": list(questions.texts),
            "prompts": list(questions.prompts),
            "sequences": [list(ids) for ids in questions.sequences],
            "begin": questions.begin,
            "count": questions.count,
            "chats": [sent(chat).request() for chat in questions.chats],
            "template": None if own is None or same else own.text,
        }
        what = f"{self.name} on {artifact.name}"
        try:
            result = run_worker("validation.runtimes.litert_lm_engine", request, progress, what=what)
        except ValidationError as error:
            raise _explained(error, what) from error
        written = _prompts(result["prompts"])
        others = result["own_prompts"]
        return Account(
            result["version"],
            Reading(tuple(map(tuple, result["tokens"])), written, tuple(result["ends"])),
            tuple(
                Answer(tuple(one["pieces"]), tuple(one["tokens"]), one["whole"]) for one in result["answers"]
            ),
            tuple(one and Scores(one["first"], tuple(one["values"])) for one in result["scores"]),
            written if same else others and _prompts(others),
            Template(template, _ENGINE, own.edits if own and same else (), own.kept if own and same else "")
            if template is not None
            else None,
        )


def _stored_template(artifact: Path) -> str | None:
    """The bundle's template, ``None`` also for a damaged bundle, of which the engine has to tell."""
    try:
        return stored_template(artifact)
    except CheckpointError:
        return None


def _prompts(found: Sequence[Sequence[int] | str]) -> tuple[Ids, ...]:
    return tuple(one if isinstance(one, str) else tuple(one) for one in found)


def _explained(error: ValidationError, what: str) -> ValidationError:
    """The error with the reason that the engine's log tells: its exceptions say only which call failed."""
    log = "\n".join(getattr(error, "__notes__", ()))
    told = _ERROR.findall(log) if "RuntimeError" in str(error) else []
    cause = told[-1].strip() if told else str(error).removeprefix(f"{what}: ")
    explained = ValidationError(f"{what}: {without_directories(cause)}")
    explained.add_note(log)
    return explained


engine = LiteRtLm()
