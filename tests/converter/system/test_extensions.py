"""Entry points of what is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.system.extensions import load, registered
from support.distributions import write_distribution

GROUP = "qatconvert.nothing"


def test_what_is_installed_meanwhile_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert registered(GROUP) == ()
    write_distribution(tmp_path, "first", {GROUP: {"one": "math:pi"}})
    assert registered(GROUP) == ("one",)
    write_distribution(tmp_path, "second", {GROUP: {"two": "math:e"}})
    assert registered(GROUP) == ("one", "two")
    assert load(GROUP, "two", float) == pytest.approx(2.718, abs=1e-3)
