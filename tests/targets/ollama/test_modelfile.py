"""Modelfiles are read as Ollama reads them, and written so that nothing is lost."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import CheckpointError, UsageError
from targets.ollama import Modelfile, parse_modelfile, write_modelfile

#: Letters that the grammar could trip over, and ordinary ones.
TEXTS = st.text(st.sampled_from('ab"" \n\t\r#:é日😀{<|' + "'")) | st.text(st.characters(codec="utf-8"))
WORDS = st.text(string.ascii_letters + string.digits + "_", min_size=1)


def modelfiles():
    optional = st.none() | TEXTS
    return st.builds(
        Modelfile,
        model=TEXTS,
        parameters=st.lists(st.tuples(WORDS, TEXTS), max_size=3).map(tuple),
        renderer=optional,
        parser=optional,
        template=optional,
        system=optional,
        adapter=optional,
        requires=st.none() | st.sampled_from(["0.20.0", "v1.2.3-rc1"]),
        licenses=st.lists(TEXTS, max_size=2).map(tuple),
        messages=st.lists(st.tuples(st.sampled_from(["user", "system", "assistant"]), TEXTS), max_size=2).map(
            tuple
        ),
    )


@given(modelfiles())
def test_what_is_written_is_read_back(modelfile):
    try:
        text = write_modelfile(modelfile)
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert parse_modelfile(text) == modelfile


@given(st.text(st.characters(codec="utf-8")).filter(lambda text: '"' not in text))
def test_every_printable_value_without_quotes_can_be_written(text):
    kept = "".join(letter for letter in text if letter.isprintable() or letter in "\n\r\t")
    assert parse_modelfile(write_modelfile(Modelfile("m", system=kept))).system == kept


@pytest.mark.parametrize(
    "value",
    [
        "",
        " leading and trailing ",
        'a "quoted" word',
        '"in quotes"',
        'two\nlines',
        'one "\nquote at a line end',
        '"""three""" quotes within a line',
        'ends in three """',
        "# no comment",
        "line\n# no comment either\n",
        "PARAMETER temperature 2",
        "a\nFROM other\n",
        "\ttab\t",
        '"',
        '""',
        "<|turn>\n{{ .System }}<turn|>\r\n",
    ],
)  # fmt: skip
def test_awkward_values_survive(value):
    modelfile = Modelfile("./m.gguf", system=value, licenses=(value,), parameters=(("stop", value),))
    assert parse_modelfile(write_modelfile(modelfile)) == modelfile


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('a"""\nb "\nc', "cannot be quoted"),
        ("zero\u200bwidth", r"U\+200B"),
        ("no\u00a0break", r"U\+00A0"),
        ("bell\x07", r"U\+0007"),
    ],
)
def test_a_value_that_no_modelfile_can_hold_is_refused(value, message):
    with pytest.raises(UsageError, match=message):
        write_modelfile(Modelfile("m", system=value))


def test_plain_words_stand_bare_and_text_in_quotes():
    modelfile = Modelfile(
        "../gguf/gemma4-demo-q4_0.gguf",
        renderer="gemma4",
        parameters=(("temperature", "1.0"), ("stop", "<turn|>")),
        system='Say "yes".\nAlways.',
        requires="0.20.0",
    )
    assert write_modelfile(modelfile).splitlines() == [
        "FROM ../gguf/gemma4-demo-q4_0.gguf",
        "RENDERER gemma4",
        "PARAMETER temperature 1.0",
        'PARAMETER stop "<turn|>"',
        'SYSTEM """Say "yes".',
        'Always."""',
        "REQUIRES 0.20.0",
    ]


def test_the_documented_forms_are_understood():
    text = (
        "# a comment\n\n"
        "from llama3.2\n"
        "\tParameter  temperature\t1\n"
        "PARAMETER stop AI assistant:\n"
        'TEMPLATE """{{ if .System }}\n{{ .System }}"""   \n'
        "SYSTEM You are Mario, acting as an assistant.\n"
        "MESSAGE user Is Toronto in Canada?\nMESSAGE assistant yes\n"
        'LICENSE """\nfirst\n"""\nLICENSE second'
    )
    with pytest.raises(CheckpointError, match="line 4"):
        parse_modelfile(text)  # two spaces leave the parameter without a name
    found = parse_modelfile(text.replace("  temperature", " temperature"))
    assert found == Modelfile(
        "llama3.2",
        parameters=(("temperature", "1"), ("stop", "AI assistant:")),
        template="{{ if .System }}\n{{ .System }}",
        system="You are Mario, acting as an assistant.",
        messages=(("user", "Is Toronto in Canada?"), ("assistant", "yes")),
        licenses=("\nfirst\n", "second"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SYSTEM hello\n", "no FROM line"),
        ("FROM m\nTEMPERATURE 1\n", "line 2: 'TEMPERATURE' is no command"),
        ("FROM m\nSYSTEM\n", "line 2: a space must follow"),
        ('FROM m\nSYSTEM "unfinished\n', "line 2: a quoted value does not end"),
        ("FROM m\nMESSAGE tool x\n", "line 2: 'tool' is no role"),
    ],
)
def test_what_ollama_refuses_is_refused(text, message):
    with pytest.raises(CheckpointError, match=message):
        parse_modelfile(text)


@pytest.mark.parametrize(
    "modelfile",
    [
        Modelfile("m", parameters=(("two words", "1"),)),
        Modelfile("m", messages=(("tool", "x"),)),
        Modelfile("m", requires="latest"),
    ],
)
def test_names_that_ollama_would_refuse_are_not_written(modelfile):
    with pytest.raises(UsageError):
        write_modelfile(modelfile)
