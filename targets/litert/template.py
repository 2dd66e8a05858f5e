"""The chat template of a ``.litertlm`` file: the checkpoint's, edited where LiteRT-LM needs it.

LiteRT-LM runs templates in minijinja. As tried with litert-lm 0.18.1, maps have none of Python's methods
there, every content is a list of parts (``{"type": "text", "text"}``), of system messages too, and the
result of a tool is a part ``{"type": "tool_response", "name", "response"}`` of a message of the role
``tool``. Templates are written for what transformers hands over: Gemma 4's prints a list as it stands, and
leaves out parts that it does not know.

So calls of ``get`` become subscripts, and in front of a template that needs it stands a ``PRELUDE``, which
puts the messages into the form that transformers takes. An edit is kept only if the edited template makes
the prompt of the original in transformers of every conversation, in either form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from converter.checkpoint.chats import Conversation, conversations
from converter.checkpoint.special_tokens import BOS, EOS, PAD
from converter.checkpoint.tokenizer import Tokenizer
from converter.errors import QatconvertError
from converter.system.child import run_worker
from converter.system.progress import no_progress

#: A comment, which stays as it is, or a tag with its code; quotes may hold the end of a tag.
_TAG: Final = re.compile(
    r"\{#.*?#\}|\{(?:%|\{)(?:'(?:[^'\\]|\\.)*+'|\"(?:[^\"\\]|\\.)*+\"|(?!%\}|\}\})[^'\"])*+(?:%\}|\}\})",
    re.DOTALL,
)
_GENERATION_TAG: Final = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")
_STRING: Final = r"'(?:[^'\\]|\\.)*+'|\"(?:[^\"\\]|\\.)*+\""
_GET: Final = re.compile(rf"(?P<text>{_STRING})|\.get\(\s*(?P<key>{_STRING})\s*\)", re.DOTALL)
_LITERAL: Final = re.compile(_STRING, re.DOTALL)
_METHOD: Final = re.compile(r"\.\s*(\w+)\s*\(")
#: Methods that LiteRT-LM's minijinja has, as tried with litert-lm 0.18.1 (no upper, lower, title or keys).
_METHODS: Final = frozenset(
    ["endswith", "items", "lstrip", "replace", "rstrip", "split", "startswith", "strip"]
)
#: The field of a message in which Gemma 4's templates take results that are no text.
_RESPONSES: Final = "tool_responses"
#: Puts messages as LiteRT-LM sends them into the form that transformers takes: a content of one text becomes
#: that text, and so do all texts of a system message; a result becomes an entry of ``tool_responses`` of the
#: message that called, if the test ``AS_RESPONSE`` holds, and else a message of the role ``tool``. What is of
#: another form already stays as it is. A message is treated by itself and those before it alone: LiteRT-LM
#: refuses to go on with a chat whose prompt so far would change.
PRELUDE: Final = """\
{#- Messages as LiteRT-LM sends them become messages as this template takes them. -#}
{%- set litert_lm = namespace(messages=[], results=[], text='', texts=true) -%}
{%- for message in messages -%}
    {%- set litert_lm.results = [] -%}
    {%- set litert_lm.text = '' -%}
    {%- set litert_lm.texts = message.content is sequence and message.content is not string -%}
    {%- if litert_lm.texts -%}
        {%- for part in message.content -%}
            {%- if part.type == 'text' -%}
                {%- set litert_lm.text = litert_lm.text ~ part.text -%}
            {%- else -%}
                {%- set litert_lm.texts = false -%}
                {%- if part.type == 'tool_response' -%}
                    {%- set litert_lm.results = litert_lm.results + [part] -%}
                {%- endif -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {%- for part in litert_lm.results -%}
        {%- set last = litert_lm.messages[-1] -%}
        {%- if AS_RESPONSE -%}
            {%- set results = (last.tool_responses or []) + [part] -%}
            {%- set litert_lm.messages = litert_lm.messages[:-1] + [dict(last, tool_responses=results)] -%}
        {%- else -%}
            {%- set text = part.response if part.response is string else part.response | tojson -%}
            {%- set result = dict(message, content=text, name=part.name) -%}
            {%- set litert_lm.messages = litert_lm.messages + [result] -%}
        {%- endif -%}
    {%- endfor -%}
    {%- if litert_lm.results -%}
    {%- elif litert_lm.texts
        and (message.content | length == 1 or message.role in ['system', 'developer']) -%}
        {%- set litert_lm.messages = litert_lm.messages + [dict(message, content=litert_lm.text)] -%}
    {%- else -%}
        {%- set litert_lm.messages = litert_lm.messages + [message] -%}
    {%- endif -%}
{%- endfor -%}
{%- set messages = litert_lm.messages -%}
"""
#: Where results go, the first that keeps all prompts: where the template takes ``tool_responses``, all of
#: them, or those that are no text as long as no message lies between; nowhere else.
_AS_RESPONSE: Final = ("last", "last and last.role != 'tool' and part.response is not string")
_NEVER: Final = ("false",)
_GENERATION_EDIT: Final = "tags 'generation', which transformers alone knows, are comments"
_GET_EDIT: Final = "x.get('y') is x['y']"
_PRELUDE_EDIT: Final = "contents and results of tools, which LiteRT-LM sends as parts, become texts first"
_PROBE: Final = Conversation("whether thinking matters", ({"role": "user", "content": "x"},))


@dataclass(frozen=True, slots=True)
class LiteRtTemplate:
    """A chat template for LiteRT-LM."""

    text: str
    #: Those that make it of the checkpoint's.
    edits: tuple[str, ...] = ()
    #: Why an edit that LiteRT-LM needs was not made; empty if none was left.
    kept: str = ""
    #: Whether prompts depend on ``enable_thinking``.
    thinking: bool = False
    #: Whether prompts hold tools, their calls and results.
    function_calling: bool = False


def template_for(tokenizer: Tokenizer) -> LiteRtTemplate | None:
    """The template for a checkpoint's tokenizer, ``None`` if that has none. Templates are run by transformers
    in a child process; one that runs on, or fails there at everything, is left as it is."""
    if tokenizer.chat_template is None:
        return None
    ids = {BOS: tokenizer.bos, EOS: tokenizer.eos, PAD: tokenizer.pad}
    special = tuple((name, tokenizer.tokens[id]) for name, id in ids.items() if id is not None)
    return _edited(tokenizer.chat_template, special)


def sent(chat: Conversation) -> Conversation:
    """A conversation as an app sends it to LiteRT-LM, by its own form for results of tools."""
    messages: list[Mapping[str, Any]] = []
    for message in chat.messages:
        results = message.get(_RESPONSES, ())
        if message["role"] == "tool":
            results = [{"name": message["name"], "response": message["content"]}]
        else:
            messages.append({key: value for key, value in message.items() if key != _RESPONSES})
        messages += [{"role": "tool", "content": [{"type": "tool_response", **one}]} for one in results]
    return replace(chat, messages=tuple(messages))


def received(chat: Conversation) -> Conversation:
    """A conversation as LiteRT-LM hands it to a template: every content is a list of parts."""
    messages = [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in sent(chat).messages
    ]
    return replace(chat, messages=tuple(messages))


def minijinja_template(template: str) -> tuple[str, tuple[str, ...]]:
    """A chat template without what minijinja does not know, and the edits that took it out.

    As litert-torch does, the ``generation`` tags, which only transformers knows, go, and ``x.get('y')``
    becomes ``x['y']``. Unlike there, an empty comment stays where a tag was, which takes the white space
    beside it as the tag did. Nothing changes outside of code.
    """
    plain = _TAG.sub(lambda tag: _GENERATION_TAG.sub(r"{#\1 \2#}", tag[0]), template)
    text = _TAG.sub(lambda tag: tag[0] if tag[0].startswith("{#") else _GET.sub(_subscript, tag[0]), plain)
    edits = [_GENERATION_EDIT] * (plain != template) + [_GET_EDIT] * (text != plain)
    return text, tuple(edits)


def unknown_methods(template: str) -> list[str]:
    """Methods that a template calls and LiteRT-LM's engine does not have: it fails when it comes to one."""
    tags = (tag for tag in _TAG.findall(minijinja_template(template)[0]) if not tag.startswith("{#"))
    return sorted({name for tag in tags for name in _METHOD.findall(_LITERAL.sub("''", tag))} - _METHODS)


def _subscript(found: re.Match[str]) -> str:
    return found["text"] or f"[{found['key']}]"


@lru_cache(maxsize=8)
def _edited(template: str, special: tuple[tuple[str, str], ...]) -> LiteRtTemplate:
    plain, edits = minijinja_template(template)
    places = _AS_RESPONSE if _RESPONSES in template else _NEVER
    whole = [PRELUDE.replace("AS_RESPONSE", place) + plain for place in places]
    try:
        prompts = _Prompts.of((template, plain, *whole), dict(special))
    except QatconvertError as error:
        return LiteRtTemplate(template, kept=f"{error}")
    found = LiteRtTemplate(template, thinking=prompts.thinking(), function_calling=prompts.function_calling())
    if not prompts.equal(1, sent=False):
        return replace(found, kept=f"{'; '.join(edits)}: prompts would change")
    if prompts.equal(1, sent=True):
        return replace(found, text=plain, edits=edits)
    for index, text in enumerate(whole, start=2):
        if prompts.equal(index, sent=False) and prompts.equal(index, sent=True):
            return replace(found, text=text, edits=(*edits, _PRELUDE_EDIT))
    return replace(found, text=plain, edits=edits, kept=f"{_PRELUDE_EDIT}: prompts would change")


@dataclass(frozen=True, slots=True)
class _Prompts:
    """What transformers makes of every conversation by several templates, of which the first is the original.
    Each is as ``rendering.write_chats`` gives it."""

    #: Of conversations as they are.
    plain: Sequence[Sequence[Mapping[str, str]]]
    #: Of conversations as LiteRT-LM hands them over.
    sent: Sequence[Sequence[Mapping[str, str]]]
    #: Without and with thinking.
    probes: Sequence[Mapping[str, str]]

    @classmethod
    def of(cls, templates: Sequence[str], special: Mapping[str, str]) -> _Prompts:
        """Run ``templates`` in a child process. Raises ``QatconvertError`` if one runs on."""
        chats = conversations()
        probes = [replace(_PROBE, thinking=thinking) for thinking in (False, True)]
        request = {
            "templates": list(templates),
            "special": dict(special),
            "chats": [chat.request() for chat in (*chats, *map(received, chats), *probes)],
            "what": "the chat template",
        }
        made = run_worker("converter.checkpoint.rendering", request, no_progress, what="transformers")
        count = len(chats)
        return cls(
            [one[:count] for one in made["prompts"]],
            [one[count : 2 * count] for one in made["prompts"]],
            made["prompts"][0][2 * count :],
        )

    def equal(self, template: int, *, sent: bool) -> bool:
        """Whether a template makes the original's prompts. What the original refuses must be refused, and of
        chats as LiteRT-LM sends them only those count that the original knows all of."""
        return all(
            ("error" in one) == ("error" in due) and one.get("text") == due.get("text")
            for due, one in zip(self.plain[0], (self.sent if sent else self.plain)[template], strict=True)
            if not sent or not ("error" in due or "left_out" in due)
        )

    def thinking(self) -> bool:
        """Whether the original's prompts depend on ``enable_thinking``."""
        without, with_ = self.probes
        return "text" in with_ and without != with_

    def function_calling(self) -> bool:
        """Whether the original's prompts hold tools, their calls and their results, where these are texts."""
        written = [
            one
            for chat, one in zip(conversations(), self.plain[0], strict=True)
            if chat.tools and not any(_RESPONSES in message for message in chat.messages)
        ]
        return all("text" in one and "left_out" not in one for one in written)
