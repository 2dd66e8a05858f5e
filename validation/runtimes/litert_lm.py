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

from converter.errors import ValidationError
from converter.worker import Progress, run_worker, without_directories
from targets.litert.metadata import minijinja_template
from validation.runners import Account, Answer, Chat, Ids, Reading, Scores

#: The kind of file that the engine opens.
SUFFIX: Final = ".litertlm"
#: A line of the engine's log about an error: severity, date, time, thread, place in its source, message.
_ERROR: Final = re.compile(r"^E\d{4} [^\]]*\] (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class LiteRtLm:
    """The engine for ``.litertlm`` files; see ``validation.runners.Engine``."""

    name: str = "LiteRT-LM"

    def takes(self, artifact: Path) -> bool:
        """Whether ``artifact`` is a bundle: a model alone (``.tflite``) has no tokenizer."""
        return artifact.suffix == SUFFIX

    def run(
        self,
        artifact: Path,
        texts: Sequence[str],
        prompts: Sequence[str],
        sequences: Sequence[Sequence[int]],
        begin: str,
        count: int,
        progress: Progress,
        *,
        chats: Sequence[Chat] = (),
        template: str | None = None,
    ) -> Account:
        """Run ``artifact``; see the protocol. The engine writes no cache beside it, or anywhere."""
        request: Mapping[str, object] = {
            "artifact": str(artifact.resolve()),
            "texts": list(texts),
            "prompts": list(prompts),
            "sequences": [list(ids) for ids in sequences],
            "begin": begin,
            "count": count,
            "chats": [[{"role": role, "content": content} for role, content in chat] for chat in chats],
            "template": None if template is None else minijinja_template(template),
        }
        what = f"{self.name} on {artifact.name}"
        try:
            result = run_worker("validation.runtimes.litert_lm_engine", request, progress, what=what)
        except ValidationError as error:
            raise _explained(error, what) from error
        own = result["own_prompts"]
        return Account(
            result["version"],
            Reading(tuple(map(tuple, result["tokens"])), _prompts(result["prompts"]), tuple(result["ends"])),
            tuple(
                Answer(tuple(one["pieces"]), tuple(one["tokens"]), one["whole"]) for one in result["answers"]
            ),
            tuple(one and Scores(one["first"], tuple(one["values"])) for one in result["scores"]),
            own and _prompts(own),
        )


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
