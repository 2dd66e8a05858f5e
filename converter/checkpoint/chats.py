"""The conversations by which chat templates are compared, one with the other and from runtime to runtime.

They lie in ``chats.json``, as ``transformers.apply_chat_template`` takes them. Contents are texts or lists of
parts. Calls of tools stand in the assistant's message, and their results are messages of the role ``tool``.
Where a result has fields, it stands in ``tool_responses`` of the message that calls, which is Gemma 4's own
form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

_FILE: Final = Path(__file__).with_suffix(".json")


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat whose next answer is the model's."""

    #: It tells what is particular to the chat.
    name: str
    #: ``messages`` and ``tools`` are those of ``apply_chat_template``.
    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    #: The value of ``enable_thinking`` there, ``None`` where it is not given.
    thinking: bool | None = None
    #: Texts that stand in the prompt of every template that knows of all that the chat has.
    shows: Sequence[str] = ()

    def request(self) -> dict[str, object]:
        """What a child process is told of it: anything that JSON can hold."""
        return {
            "messages": list(self.messages),
            "tools": list(self.tools),
            "thinking": self.thinking,
            "shows": list(self.shows),
        }


@dataclass(frozen=True, slots=True)
class Inexpressible:
    """A chat that a runtime cannot be given."""

    chat: Conversation
    #: In a few words.
    why: str


@lru_cache(maxsize=1)
def conversations() -> tuple[Conversation, ...]:
    """All of them, in order."""
    return tuple(Conversation(**one) for one in json.loads(_FILE.read_text("utf-8")))
