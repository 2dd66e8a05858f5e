"""What onnxruntime-genai's template engine does with the constructs of Gemma's chat templates.

docs/onnx.md lists what it does not do. A test here that fails for a newer version shortens that list.
"""

from __future__ import annotations

import json

import onnxruntime_genai as genai
import pytest

MESSAGES = [
    {"role": "user", "content": "a<|c|>b", "name": "x"},
    {"role": "assistant", "content": [{"type": "text", "text": " \u00e9 "}]},
]
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
]


@pytest.fixture(scope="module")
def render(demo_checkpoint, convert):
    """``render(template, tools=None)``: what onnxruntime-genai and what transformers make of it; an exception
    where it is refused."""
    from transformers import AutoTokenizer

    directory = convert(demo_checkpoint, "onnx").artifact.parent
    tokenizer, expected = genai.Tokenizer(str(directory)), AutoTokenizer.from_pretrained(directory)

    def both(template, tools=None):
        right = expected.apply_chat_template(
            MESSAGES, tools=tools, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        words = {"tools": json.dumps(tools)} if tools else {}
        try:
            found = tokenizer.apply_chat_template(json.dumps(MESSAGES), template_str=template, **words)
        except Exception as error:  # its exceptions have no common base of their own
            return error, right
        return found, right

    return both


@pytest.mark.parametrize(
    "template",
    [
        "{% macro m(x, y=2) %}[{{ x }}{{ y }}]{% endmacro %}{{ m(1) }}{{ m(1, y=3) | trim }}",
        "{% macro m(x) %}{{ x }}{% if x > 0 %}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(3) }}",
        "{% set n = namespace(a=0) %}{% for m in messages %}{% set n.a = n.a + 1 %}{% endfor %}{{ n.a }}",
        "{% if messages[0].get('x') %}y{% else %}n{% endif %}{{ messages[0].get('x', 'z') }}",
        "{{ messages[0] is mapping }}{{ messages is mapping }}{{ messages[0].content is string }}",
        "{{ messages[1].content is sequence and messages[1].content is not string }}",
        "{% for key, value in messages[0].items() %}{{ key }}={{ value }};{% endfor %}",
        "{% for key, value in messages[0] | dictsort %}{{ key }}={{ value }};{% endfor %}",
        "{% for key in messages[0] %}{{ key }};{% endfor %}{{ 'role' in messages[0] }}{{ 1 in [1, 2] }}",
        "{% for part in messages[1].content %}{{ part['type'] }}{{ part.text | trim }}{% endfor %}",
        "{% for part in messages[0].content.split('<|c|>') %}{{ part }};{% endfor %}",
        "{% for m in messages if m.name == 'x' %}{{ loop.first }}{{ loop.previtem is defined }}{% endfor %}",
        "{% for m in messages[1:] %}{{ loop.index0 }}{{ loop.last }}{% break %}{% endfor %}",
        "{% set x %}abc{% endset %}{{ x }}{{ messages[::-1] | map(attribute='role') | join(',') }}",
        "{{ messages[0] | tojson }}{{ add_generation_prompt }}{{ enable_thinking | default(false) }}",
    ],
)
def test_constructs_that_it_knows_are_written_as_by_transformers(template, render):
    found, expected = render(template)
    assert found == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'a' | upper }}", "Value is not callable: null"),
        ("{{ ['a'] | map('upper') | list }}", "Undefined filter: 'upper'"),
        ("{{ 'ab' | replace('b', '') }}", "Value is not callable: null"),
        ("{{ 'ab'.replace('b', '') }}", "Unknown method: replace"),
        ("{{ 'ab'.upper() }}", "Unknown method: upper"),
        ("{{ messages | first }}", "Value is not callable: null"),
        ("{{ messages[0].keys() | list }}", "Unknown method: keys"),
        ("{{ messages[1].content | trim }}", "get<T> not defined for this value type"),
        ("{% set a, b = 1, 2 %}{{ a }}", "Expected closing block tag"),
        ("{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}x{% endcall %}", "Expected block keyword"),
    ],
)
def test_constructs_that_it_does_not_know_are_refused(template, message, render):
    found, expected = render(template)
    assert isinstance(found, Exception)
    assert message in str(found)
    assert expected


@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("{{ '<|c|>' in messages[0].content }}", "False"),
        ("{{ messages[0].get('x') is none }}", "False"),
        ("{{ none }}", ""),
        ("{{ 'x' is sequence }}", "False"),
        ("{{ 7 / 2 }}", "3"),
        ("{{ '\u00e9' | length }}", "2"),
        ("a\n{% if true %}\nb\n{% endif %}\n", "a\n\nb\n"),
        ("{{ tools is defined }}", "False"),
        ("{% macro m() %}{% set x = 1 %}{% endmacro %}{% set x = 2 %}{{ m() }}{{ x }}", "1"),
        ("{% macro m(x) %}{% endmacro %}{% set x = 2 %}{{ m(3) }}{{ x }}", "3"),
    ],
)
def test_constructs_that_it_writes_otherwise(template, written, render):
    """Without an error: the more reason to compare prompts, as the gate ``engine_same_prompts`` does."""
    found, expected = render(template)
    assert found == written
    assert found != expected


def test_tools_reach_a_template_without_the_wrapping_that_it_expects(render):
    names = "{% for tool in tools %}{{ tool['function']['name'] }}{% endfor %}"
    found, expected = render(names, TOOLS)
    assert expected == "f"
    assert "Trying to access property ''name'' on null" in str(found)
    found, _ = render("{% for tool in tools %}{{ tool['name'] }}{% endfor %}", TOOLS)
    assert found == "f"
