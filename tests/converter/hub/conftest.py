"""A Hub with one model, the only one that the test knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.hub_model import REPO, use_only, write_model
from support.hub_server import HubServer


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Its model lies in ``tmp_path / "repository"``."""
    with HubServer({REPO: write_model(tmp_path / "repository")}) as server:
        use_only(server, tmp_path, monkeypatch)
        yield server
