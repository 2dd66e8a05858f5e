"""Characters that Ollama keeps of a Modelfile, and what becomes of the others in a licence."""

from __future__ import annotations

import pytest

from converter.checkpoint.opened import open_checkpoint
from converter.errors import UsageError
from targets.gguf import target
from targets.ollama import Modelfile, parse_modelfile, printed, write_modelfile

KEPT = {
    "e acute": "\u00e9",
    "combining acute": "e\u0301",
    "emoji": "\U0001f600",
    "emoji of Unicode 15": "\U0001fae8",
    "ideograph of Unicode 15": "\U00031350",
    "variation selector": "\u2603\ufe0f",
    "replacement character": "\ufffd",
    "lower block": "\u2581",
    "tab": "a\tb",
    "lone carriage return": "a\rb",
    "line ends": "a\r\nb\n",
}
LOST = {
    "no-break space": ("a\u00a0b", "a b"),
    "ideographic space": ("a\u3000b", "a b"),
    "line separator": ("a\u2028b", "a\nb"),
    "paragraph separator": ("a\u2029b", "a\n\nb"),
    "soft hyphen": ("a\u00adb", "ab"),
    "zero width joiner": ("\U0001f469\u200d\U0001f467", "\U0001f469\U0001f467"),
    "zero width space": ("a\u200bb", "ab"),
    "byte order mark": ("a\ufeffb", "ab"),
    "form feed": ("a\fb", "ab"),
    "escape": ("a\x1bb", "ab"),
    "delete": ("a\x7fb", "ab"),
    "nul": ("a\0b", "ab"),
    "private use": ("a\ue000b", "ab"),
    "unassigned": ("a\U000e0fffb", "ab"),
}


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_what_go_prints_comes_back(text):
    modelfile = Modelfile("m", system=f"x {text} y", licenses=(text,))
    assert parse_modelfile(write_modelfile(modelfile)) == modelfile
    assert printed(text) == text


@pytest.mark.parametrize(("text", "left"), LOST.values(), ids=LOST)
def test_what_go_does_not_print_is_refused_in_a_prompt_and_replaced_in_a_licence(text, left):
    with pytest.raises(UsageError, match=r"SYSTEM cannot hold the character U\+"):
        write_modelfile(Modelfile("m", system=text))
    assert printed(text) == left
    assert parse_modelfile(write_modelfile(Modelfile("m", licenses=(printed(text),)))).licenses == (left,)


def test_a_licence_with_other_spaces_converts_with_a_warning(checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    texts = {"other": "Copyright\u00a0\u00a9 2026\f", "plain": "Copyright \u00a9 2026"}
    warnings = {
        name: target.plan(checkpoint, "m", {"licenses": [text]}).warnings for name, text in texts.items()
    }
    assert any("characters that Ollama drops" in line for line in warnings["other"])
    assert not any("characters that Ollama drops" in line for line in warnings["plain"])
    plan = target.plan(checkpoint, "m", {"licenses": [texts["other"]]})
    target.write(checkpoint, plan, tmp_path)
    found = parse_modelfile((tmp_path / "ollama" / "Modelfile").read_text(encoding="utf-8"))
    assert found.licenses == (texts["plain"],)
    assert target.differences(tmp_path / plan.artifacts[0], checkpoint, plan) == []
