"""Families are found by entry points, each loaded when a model is of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.checkpoint.architecture import read_architecture
from converter.checkpoint.architecture.gemma4 import FAMILY
from converter.errors import CheckpointError, ExtensionError
from converter.system.extensions import load, registered
from support.distributions import write_distribution

GROUP = "qatconvert.families"
INVENTED = """
from dataclasses import replace
from converter.checkpoint.architecture import Family, gemma3

def read(config, model_type):
    return replace(gemma3.read(config, model_type), family="invented")

FAMILY = Family(("invented",), read)
"""
BROKEN = "raise RuntimeError('no such\\nlibrary')"

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """``install(name, entry_points, modules)``: a distribution is there while the test runs."""

    def install(name: str, *what: dict[str, dict[str, str]] | dict[str, str]) -> Path:
        path = write_distribution(tmp_path / name, name, *what)  # type: ignore[arg-type]
        monkeypatch.syspath_prepend(path)
        return path

    return install


def test_a_family_of_another_distribution(install: Install) -> None:
    install("outside", {GROUP: {"invented": "invented_family:FAMILY"}}, {"invented_family": INVENTED})
    found = read_architecture({"model_type": "invented"})
    assert (found.family, found.model_type, len(found.layers)) == ("invented", "invented", 26)


def test_one_that_breaks_is_named_where_it_may_be_meant(install: Install) -> None:
    install("outside", {GROUP: {"broken": "broken_family:FAMILY"}}, {"broken_family": BROKEN})
    with pytest.raises(CheckpointError) as caught:
        read_architecture({"model_type": "broken_text"})
    assert str(caught.value) == (
        "config.json: model_type 'broken_text' is unknown; the known ones are gemma3, gemma3_text, gemma4, "
        "gemma4_text, gemma4_unified, gemma4_unified_text; entry point 'broken' of qatconvert.families, "
        "which 'outside' registers, cannot be loaded: RuntimeError: no such library"
    )


@pytest.mark.parametrize("name", ["broken", "gemma", "a"])
def test_one_that_breaks_is_not_loaded_for_other_models(name: str, install: Install) -> None:
    install("outside", {GROUP: {name: "broken_family:FAMILY"}}, {"broken_family": BROKEN})
    assert read_architecture({"model_type": "gemma4_text"}).family == "gemma4"
    assert "broken_family" not in sys.modules


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_module:FAMILY", "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("converter.errors:FAMILY", "cannot be loaded: AttributeError"),
        ("converter.filenames:CONFIG", "is no Family, but str"),
        ("ending_family:FAMILY", "cannot be loaded: SystemExit: 7"),
        ("???", "cannot be loaded: "),
    ],
)
def test_what_cannot_be_loaded_is_named(value: str, message: str, install: Install) -> None:
    install("outside", {GROUP: {"other": value}}, {"ending_family": "raise SystemExit(7)"})
    with pytest.raises(ExtensionError) as caught:
        load(GROUP, "other", type(FAMILY))
    told = str(caught.value)
    assert told.startswith("entry point 'other' of qatconvert.families, which 'outside' registers, ")
    assert message in told
    assert "\n" not in told


def test_a_name_that_two_distributions_register_means_neither(install: Install) -> None:
    install("outside", {GROUP: {"gemma4": "invented_family:FAMILY"}}, {"invented_family": INVENTED})
    with pytest.raises(CheckpointError, match="registered by 'outside' and 'qatconvert': uninstall one"):
        read_architecture({"model_type": "gemma4_text"})
    assert registered(GROUP) == ("gemma3", "gemma4")


def test_the_front_and_the_command_line_load_none() -> None:
    script = (
        "import contextlib, sys\nimport converter\nfrom converter.cli import main\n"
        "with contextlib.suppress(SystemExit):\n    main(['--help'])\n"
        "print([name for name in sys.modules if 'gemma' in name])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def assistant_types() -> set[str]:
    """The ``model_type`` of drafters with a repository of their own, by transformers."""
    from transformers import Gemma4AssistantConfig, Gemma4UnifiedAssistantConfig

    return {Gemma4AssistantConfig.model_type, Gemma4UnifiedAssistantConfig.model_type}


def test_a_drafter_by_itself_is_refused_for_what_it_is() -> None:
    assert set(FAMILY.drafters) == assistant_types()
    for model_type in FAMILY.drafters:
        with pytest.raises(CheckpointError) as caught:
            read_architecture({"model_type": model_type})
        assert str(caught.value) == (
            f"config.json: model_type '{model_type}' is a drafter's, which proposes tokens to another model "
            "and answers nothing by itself: give the model that it belongs to"
        )
