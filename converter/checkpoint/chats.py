"""The conversations by which chat templates are compared, one with the other and from runtime to runtime.

They lie in ``chats.json``, as ``transformers.apply_chat_template`` takes them: contents are texts or lists of
parts, calls of tools stand in the assistant's message, and their results are messages of the role ``tool``,
or, where a result has fields, ``tool_responses`` of the message that calls, which is Gemma 4's own form.
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
    """A chat whose next answer is the model's.

    ``name`` tells what is particular to it, ``messages`` and ``tools`` are those of ``apply_chat_template``,
    ``thinking`` the value of its ``enable_thinking``, ``None`` where it is not given. ``shows`` are texts
    that stand in the prompt of every template that knows of all that the chat has.
    """

    name: str
    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    thinking: bool | None = None
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
    """A ``chat`` that a runtime cannot be given, and in a few words ``why``."""

    chat: Conversation
    why: str


@lru_cache(maxsize=1)
def conversations() -> tuple[Conversation, ...]:
    """All of them, in order."""
    return tuple(Conversation(**one) for one in json.loads(_FILE.read_text("utf-8")))
