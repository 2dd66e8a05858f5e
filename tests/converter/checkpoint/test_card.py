"""The model card's front matter, which strangers write."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.checkpoint.card import LONGEST, Card, read_card
from converter.checkpoint.directory import Directory
from converter.checkpoint.opened import open_checkpoint, open_description


def card(directory, front, text="\n# A model\n"):
    (directory / "README.md").write_text(f"---\n{front}\n---\n{text}", encoding="utf-8")
    return read_card(Directory(directory))


def test_what_a_card_says(tmp_path):
    found = card(
        tmp_path,
        "license: other\nlicense_name: gemma\nlicense_link: https://ai.google.dev/gemma/terms\n"
        "language:\n- en\n- no\n- en\ntags: [gemma, qat]\npipeline_tag: text-generation\n"
        "base_model: google/gemma-4-E2B-it\nmodel_name: Gemma 4 E2B\nlibrary_name: transformers",
    )
    assert found == Card(
        name="Gemma 4 E2B",
        license="other",
        license_name="gemma",
        license_link="https://ai.google.dev/gemma/terms",
        languages=("en", "no"),
        tags=("gemma", "qat", "text-generation"),
        base_models=("google/gemma-4-E2B-it",),
        file=tmp_path / "README.md",
    )


def test_several_licences_and_models(tmp_path):
    found = card(tmp_path, "license: [mit, apache-2.0]\nbase_model:\n- a/b\n- c/d")
    assert (found.license, found.base_models) == ("mit,apache-2.0", ("a/b", "c/d"))


@pytest.mark.parametrize("text", ["", "# A model\n", "--\na: b\n---\n", "---\n---\n", "---\nlicense:\n---\n"])
def test_a_card_without_front_matter_is_empty(text, tmp_path):
    (tmp_path / "README.md").write_text(text)
    assert read_card(Directory(tmp_path)) == Card(file=tmp_path / "README.md")


def test_no_card_is_none(tmp_path):
    assert read_card(Directory(tmp_path)) == Card()


def test_line_ends_a_byte_order_mark_and_tabs_do_not_matter(tmp_path):
    (tmp_path / "README.md").write_bytes(b"\xef\xbb\xbf---\r\nlicense:\tmit\r\n---\r\n")
    assert read_card(Directory(tmp_path)).license == "mit"


@pytest.mark.parametrize(
    ("front", "warning"),
    [
        ("license: {a: b}", "license is left out where it is an object"),
        ("license: [[mit]]", "license is left out where it is a list"),
        ("language: [en, {a: b}]", "language is left out where it is an object"),
        ('tags: ["a\\nb"]', "tags is left out where it is 'a\\nb'"),
        ('license: "\\ud800"', "license is left out where it is '\\ud800'"),
        ('license: "\\e[2Jx"', "license is left out where it is '\\x1b[2Jx'"),
        ("license: " + "x" * 2000, "license is left out where it is 'xxx"),
        ("a: b: c", "line 2: mapping values are not allowed here"),
        ("- license", "it is no mapping"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("tags: &t [*t]", "recursive"),
        ("? [a]\n: b", "unhashable key"),
        ('license: "\\UFFFFFFFF"', "too large"),
    ],
)
def test_what_cannot_be_used_is_left_out_with_a_line(front, warning, tmp_path):
    found = card(tmp_path, front)
    (line,) = found.warnings
    assert warning in line
    assert "\n" not in line
    assert len(line) < 200
    assert (found.license, found.base_models) == (None, ())


def test_the_rest_of_a_card_stays(tmp_path):
    found = card(tmp_path, "license: mit\nlanguage: [en, [de]]")
    assert (found.license, found.languages, len(found.warnings)) == ("mit", ("en",), 1)


def test_no_tag_makes_an_object(tmp_path):
    marker = tmp_path / "made"
    found = card(tmp_path, f"license: !!python/object/apply:os.mkdir ['{marker}']\ntags: !!binary aGk=")
    assert not marker.exists()
    assert found.tags == ("aGk=",)


def test_what_stands_for_itself_many_times_is_not_written_out(tmp_path):
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)), "tags: *a59"]
    begin = time.monotonic()
    (line,) = card(tmp_path, "\n".join(lines)).warnings
    assert time.monotonic() - begin < 5
    assert line == "README.md: tags is left out where it is a list"


def test_front_matter_without_end_or_bound_is_left_out(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n")
    assert "does not end" in read_card(Directory(tmp_path)).warnings[0]
    assert "more than 65536 bytes" in card(tmp_path, "a: " + "x" * LONGEST).warnings[0]
    assert card(tmp_path, "license: mit", "é" * LONGEST).license == "mit"


def test_what_is_no_readable_file_is_said(tmp_path):
    os.mkfifo(tmp_path / "README.md")
    assert read_card(Directory(tmp_path)) == Card(warnings=("README.md: is not a regular file",))
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").symlink_to("nowhere")
    assert read_card(Directory(tmp_path)).warnings == (
        "README.md: cannot be read: No such file or directory",
    )
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert "utf-8" in read_card(Directory(tmp_path)).warnings[0]


def test_the_card_is_one_of_the_checkpoints_files(demo_checkpoint):
    for opened in (open_checkpoint(demo_checkpoint), open_description(demo_checkpoint)):
        assert opened.card.license == "apache-2.0"
        assert opened.card.languages == ("en",)
        assert demo_checkpoint / "README.md" in opened.files


@settings(max_examples=200, deadline=None)
@given(text=st.text("abc:-[]{}&*!?|>'\"\\%#,~\n \t\u00e9\x00\ud800", max_size=60) | st.text(max_size=40))
def test_no_front_matter_raises(text, tmp_path_factory):
    directory = tmp_path_factory.getbasetemp() / "card"
    directory.mkdir(exist_ok=True)
    (directory / "README.md").write_bytes(f"---\nlicense: {text}\n---\n".encode("utf-8", "surrogatepass"))
    found = read_card(Directory(directory))
    assert all("\n" not in line for line in found.warnings)
    assert found.license is None or found.license.isprintable()
