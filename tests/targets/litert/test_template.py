"""The chat template of a bundle: what is edited for LiteRT-LM, and what must not be.

What LiteRT-LM makes of edited templates is tested in ``validation/runtimes/test_litert_lm.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from support.gemma4_template import gemma4_template

pytest.importorskip("transformers")

from converter.checkpoint.chats import conversations
from converter.checkpoint.opened import open_checkpoint
from converter.checkpoint.rendering import render
from converter.demo import DEMO
from targets.litert.template import (
    PRELUDE,
    LiteRtTemplate,
    minijinja_template,
    received,
    sent,
    template_for,
    unknown_methods,
)

TOKENIZER = open_checkpoint(DEMO).tokenizer
#: As Gemma 3's: parts and texts, no tools, no thinking.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}<|turn>{{ message.role }}\n"
    "{% if message.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{% if message.content is string %}{{ message.content | trim }}"
    "{% else %}{% for part in message.content %}{{ part.text | trim }}{% endfor %}{% endif %}<turn|>\n"
    "{% endfor %}"
)


def edited(template: str) -> LiteRtTemplate:
    made = template_for(replace(TOKENIZER, chat_template=template))
    assert made is not None
    return made


def test_code_loses_what_minijinja_does_not_know() -> None:
    text, edits = minijinja_template("{{ m.get('role') }} {% if m.get(\"a\") %}")
    assert text == "{{ m['role'] }} {% if m[\"a\"] %}"
    assert edits == ("x.get('y') is x['y']",)
    text, edits = minijinja_template("a {%- generation -%} b {% endgeneration %}")
    assert text == "a {#- -#} b {# #}"
    assert len(edits) == 1


@pytest.mark.parametrize(
    "template",
    [
        "{{ m.get('a', 'b') }}",
        "text.get('a') of {# a comment.get('a') #} a template",
        "{{ \"a string's }}.get('a')\" }}",
        "{{ 'it\\'s.get(\"a\")' }}",
        "{{ unfinished.get('a'",
    ],
)
def test_nothing_else_changes(template: str) -> None:
    assert minijinja_template(template) == (template, ())


def test_methods_that_the_runtime_does_not_have_are_named() -> None:
    code = "{{ m.get('x') | upper }} {{ m.strip().split('.title()') }} {%- if m.get('a', 1) %}{{ m.keys() }}"
    assert unknown_methods(f"text.lower() {code}") == ["get", "keys"]


def test_a_template_that_takes_parts_stays_as_it_is() -> None:
    made = edited(PLAIN)
    assert made == LiteRtTemplate(PLAIN)
    assert not made.thinking
    assert not made.function_calling


def test_the_demos_is_edited_for_parts_and_results() -> None:
    assert TOKENIZER.chat_template is not None
    made = template_for(TOKENIZER)
    assert made is not None
    assert len(made.edits) == 2
    assert made.kept == ""
    assert made.thinking
    assert made.function_calling
    assert made.text.endswith(minijinja_template(TOKENIZER.chat_template)[0])


@pytest.mark.parametrize(("responses", "place"), [(True, "not string"), (False, "if false")])
def test_results_go_where_a_template_takes_them(responses: bool, place: str) -> None:
    """As in the one of Gemma 4 that writes a turn for a message of the role ``tool``."""
    results = "{% for one in message.tool_responses or [] %}{{ one.response | tojson }}{% endfor %}"
    template = PLAIN.replace("{{ raise_exception('no tools') }}", "result").replace(
        "<turn|>", f"{results if responses else ''}{{{{ message.tool_calls | default([]) | tojson }}}}<turn|>"
    )
    made = edited(template)
    assert len(made.edits) == 1
    assert place in made.text
    assert made.function_calling is False


def test_without_a_template_there_is_none_to_edit() -> None:
    assert template_for(replace(TOKENIZER, chat_template=None)) is None


@pytest.mark.parametrize(
    ("change", "thinking", "function_calling"),
    [
        (("enable_thinking is defined and enable_thinking", "false"), False, True),
        (("{{- declared(tool) -}}", ""), True, False),
        (("{{- returned(result.name, result.text) -}}", ""), True, False),
    ],
    ids=["no thinking", "no declarations", "no results"],
)
def test_what_a_template_supports_is_what_it_writes(
    change: tuple[str, str], thinking: bool, function_calling: bool
) -> None:
    assert TOKENIZER.chat_template is not None
    assert change[0] in TOKENIZER.chat_template
    made = edited(TOKENIZER.chat_template.replace(*change))
    assert (made.thinking, made.function_calling) == (thinking, function_calling)


def test_an_edit_that_changes_a_prompt_is_not_kept() -> None:
    """``get`` of what is not there is none, a subscript is undefined."""
    template = PLAIN + "{{ messages[0].get('name') is none }}"
    made = edited(template)
    assert (made.text, made.edits) == (template, ())
    assert made.kept == "x.get('y') is x['y']: prompts would change"


def test_a_prelude_that_loses_something_is_not_kept() -> None:
    """LiteRT-LM sends no ids of calls with results."""
    template = "{% for message in messages %}{{ message.content ~ message.tool_call_id }}{% endfor %}"
    made = edited(template)
    assert made.text == template
    assert made.kept.endswith("become texts first: prompts would change")


def test_a_template_that_runs_on_is_left_as_it_is() -> None:
    template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    made = edited(template)
    assert (made.text, made.edits) == (template, ())
    assert made.kept == "transformers: the chat template fails: it takes longer than 5 seconds"


def test_results_are_sent_as_parts_behind_the_call() -> None:
    (chat,) = (one for one in conversations() if one.name == "a result with fields")
    call, result = sent(chat).messages[-2:]
    assert "tool_responses" not in call
    (part,) = result["content"]
    assert (result["role"], part["type"], part["name"]) == ("tool", "tool_response", "get_weather")
    assert part["response"]["degrees"] == 18
    assert received(chat).messages[0]["content"] == [{"type": "text", "text": "Rome?"}]


@pytest.mark.parametrize("google", [False, True], ids=["demo", "google"])
def test_the_prompt_does_not_depend_on_the_form_of_a_chat(google: bool) -> None:
    """Nor on whether several results came in one message, and whether texts among them are mixed with
    fields; checked by transformers, with the original as the measure."""
    template = gemma4_template() if google else TOKENIZER.chat_template
    made = edited(str(template))
    assert len(made.edits) == 2
    assert made.text.startswith(PRELUDE[:80])
    base = next(one for one in conversations() if one.name == "two calls and an answer")
    parts = [
        {"type": "tool_response", "name": "get_weather", "response": {"sky": "rain"}},
        {"type": "tool_response", "name": "clock", "response": "12:30"},
    ]
    responses = [{"name": part["name"], "response": part["response"]} for part in parts]
    *begin, call = base.messages[:3]
    due = [*begin, {**call, "tool_responses": responses}, *base.messages[5:]]
    forms = [
        [*begin, call, {"role": "tool", "content": parts}, *base.messages[5:]],
        [*begin, call, *({"role": "tool", "content": [part]} for part in parts), *base.messages[5:]],
    ]

    def prompt(template: str, messages: list[Any]) -> str:
        chat = replace(base, messages=messages)
        request = {"templates": [template], "special": {}, "chats": [chat.request()], "what": "it"}
        made: Any = render(request, lambda done, total: None)["prompts"]
        return str(made[0][0]["text"])

    expected = prompt(str(template), due)
    assert "rain" in expected
    assert [prompt(made.text, form) for form in forms] == [expected] * 2
