"""Declarations of options: what means nothing is refused, what is the same is one."""

from __future__ import annotations

import re
from typing import Any

import pytest

from converter.errors import UsageError
from targets.options import (
    OFF_LATTICE,
    PLANNED,
    VALIDATED,
    Declaration,
    Option,
    OptionGroup,
    check_names,
    declarations,
    offered,
)

SPEED = Option("speed", "Rows a second.", ("--speed",), kind="integer")


def declared(owner: str, *options: Option) -> Declaration:
    return Declaration(owner, f"qatconvert-{owner} 1.0", OptionGroup(owner.upper(), options))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "two words"}, "option 'two words': the name is no identifier"),
        ({"flags": ("speed",)}, "option speed: a flag begins with a hyphen: speed"),
        ({"flags": ("--",)}, "option speed: a flag begins with a hyphen: --"),
        ({"kind": "number"}, "option speed: kind 'number' is none (known: text, flag, "),
        ({"kind": "choice"}, "option speed: a choice has choices, and nothing else has"),
        ({"choices": ("a",)}, "option speed: a choice has choices, and nothing else has"),
        ({"kind": "flag", "repeatable": True}, "option speed: a flag is given or not"),
        ({"kind": "flag", "default": 1}, "option speed: a flag is given or not"),
        ({"repeatable": True, "default": "1"}, "option speed: what is repeatable has no default"),
        ({"commands": ("verify",)}, "option speed: command 'verify' takes no declared options"),
    ],
)
def test_a_declaration_that_means_nothing_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        Option(**{"name": "speed", "help": "", **fields})


def test_equal_declarations_are_one_option_with_an_effect_in_each_target() -> None:
    (one, other) = offered([declared("a", OFF_LATTICE, SPEED), declared("b", OFF_LATTICE)])
    assert (one.option, one.targets, one.heading) == (OFF_LATTICE, ("a", "b"), "")
    assert (other.option, other.targets, other.heading) == (SPEED, ("a",), "A")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (declared("a", SPEED), declared("b", Option("speed", "Metres.", ("--metres",)))),
        (declared("a", SPEED), declared("b", Option("metres", "Metres.", ("--speed",)))),
        (declared("a", SPEED), declared("a.x", SPEED)),  # a target's and a runtime's
    ],
    ids=["name", "flag", "runtime"],
)
def test_declarations_that_differ_name_both_distributions(first: Declaration, second: Declaration) -> None:
    with pytest.raises(UsageError) as caught:
        offered([first, second])
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)


def test_a_name_that_no_target_takes_is_told_with_what_may_be_meant() -> None:
    owners = {"a": (SPEED,)}
    check_names(["speed"], owners)
    with pytest.raises(UsageError, match=r"^unknown option 'sped'; did you mean 'speed'\?$"):
        check_names(["sped"], owners)
    with pytest.raises(UsageError, match=r"^unknown option 'paper'; known: speed$"):
        check_names(["paper"], owners)
    with pytest.raises(UsageError, match=r"^--num-ctx has no effect without target gguf: leave it out"):
        check_names(["num_ctx"], owners)


def test_every_registered_declaration_is_read() -> None:
    found, broken = declarations()
    assert broken == []
    assert [one.owner for one in found] == ["gguf", "litert", "onnx", "onnx.onnxruntime"]
    assert {one.distribution.split()[0] for one in found} == {"qatconvert"}
    for one in found:
        commands = {option.commands for option in one.group.options}
        assert (commands == {VALIDATED}) == one.runtime
        assert one.runtime or PLANNED in commands
