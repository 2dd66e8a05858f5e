"""Servers that send next to nothing: they are given up, and what arrived is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from converter.errors import HubError
from converter.hub import download
from converter.hub.connection import SLOWEST, Rate
from converter.names import resolve
from support.hub_model import REPO, WEIGHTS, partial_weights, use_only, write_model
from support.hub_server import HubServer

pytestmark = pytest.mark.slow

#: A server of these tests sends 20 bytes a second where it drips.
QUICK = Rate(1000, 0.5)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    from huggingface_hub import constants

    repository = write_model(tmp_path / "repository", sharded=False, rows=256)
    with HubServer({REPO: repository}) as server:
        use_only(server, tmp_path, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2)
        yield server
        server.drip_after.clear()


@pytest.mark.parametrize("before", [0, 100_000])
def test_a_file_that_drips_ends_with_one_line_and_is_gone_on_from(
    hub: HubServer, tmp_path: Path, before: int
) -> None:
    hub.drip_after[WEIGHTS] = before
    began = time.monotonic()
    with pytest.raises(
        HubError,
        match=rf"^{WEIGHTS}: the server all but stopped sending at .* of .*: run the same command again",
    ):
        download(resolve(REPO), waits=(0.0, 0.0), slowest=QUICK)
    assert time.monotonic() - began < 30
    arrived = partial_weights(tmp_path).stat().st_size
    assert arrived > before
    hub.drip_after.clear()
    snapshot = download(resolve(REPO), slowest=QUICK)
    assert hub.asked_for(WEIGHTS)[-1].headers["range"] == f"bytes={arrived}-"
    assert (snapshot.path / WEIGHTS).read_bytes() == (tmp_path / "repository" / WEIGHTS).read_bytes()


def test_a_file_that_drips_is_asked_for_again_as_often_as_any_transient_failure(hub: HubServer) -> None:
    hub.drip_after[WEIGHTS] = 0
    with pytest.raises(HubError, match="all but stopped"):
        download(resolve(REPO), waits=(0.0, 0.0, 0.0), slowest=QUICK)
    assert len(hub.asked_for(WEIGHTS)) == 4


def test_a_server_that_breaks_off_after_each_few_bytes_ends_as_well(hub: HubServer) -> None:
    hub.drop_after[WEIGHTS] = 10
    with pytest.raises(HubError, match="broke off at 30 B"):
        download(resolve(REPO), waits=(0.0, 0.0), slowest=QUICK)


@pytest.mark.parametrize("what", ["listing", "headers"])
def test_what_is_said_of_a_repository_may_not_drip_either(hub: HubServer, what: str) -> None:
    hub.drip_after[what] = 0
    began = time.monotonic()
    with pytest.raises(HubError, match=r"^cannot reach .* \(it all but stopped sending: try again later\)$"):
        download(resolve(REPO), waits=(0.0,), slowest=QUICK)
    assert time.monotonic() - began < 30


def test_a_slow_server_that_sends_enough_is_waited_for(hub: HubServer, tmp_path: Path) -> None:
    hub.drip_after["tokenizer.json"] = 0
    snapshot = download(resolve(REPO), slowest=Rate(1, 0.2))
    assert (snapshot.path / "tokenizer.json").stat().st_size == (
        tmp_path / "repository" / "tokenizer.json"
    ).stat().st_size


def test_the_limit_is_a_kilobyte_a_second() -> None:
    assert SLOWEST.bytes / SLOWEST.seconds == 1000
