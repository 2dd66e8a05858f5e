"""What the user reads when the Hub refuses or cannot be reached: one line that says what to do."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.errors import HubError
from converter.hub import download
from converter.names import add_model, resolve
from support.hub_model import DOWNLOAD, REPO, SHARDS, run_python, write_model
from support.hub_server import PLAIN, TOKEN, HubServer

pytestmark = pytest.mark.slow


@pytest.fixture
def refusal(hub: HubServer) -> Callable[[str], str]:
    """The one line with which the download of a model fails."""

    def message(name: str, **options: object) -> str:
        with pytest.raises(HubError) as caught:
            download(resolve(name), waits=(), **options)  # type: ignore[arg-type]
        text = str(caught.value)
        assert text.isprintable()
        assert TOKEN not in text
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
        return text

    return message


def test_an_unpublished_size_lists_the_published_ones_and_how_to_map_it(
    refusal: Callable[[str], str],
) -> None:
    text = refusal("gemma4-7b")
    assert "no repository google/gemma-4-7B-it-qat-q4_0-unquantized" in text
    assert "published sizes: E2B, E4B, 12B, 26B-A4B, 31B" in text
    assert text.endswith("qatconvert models add gemma4-7b OWNER/NAME")


@pytest.mark.parametrize("body", [set(), {"json"}])
def test_a_bare_404_is_a_missing_repository_too(
    hub: HubServer, refusal: Callable[[str], str], body: set[str]
) -> None:
    hub.without |= PLAIN | body
    text = refusal("gemma4-7b")
    assert "no repository google/gemma-4-7B-it-qat-q4_0-unquantized" in text
    assert "published sizes: E2B, E4B, 12B, 26B-A4B, 31B" in text
    assert text.endswith("qatconvert models add gemma4-7b OWNER/NAME")
    assert f"{REPO} with a branch, tag or commit v9" in refusal(f"{REPO}@v9")


def test_a_bare_401_without_a_token_is_a_missing_repository_too(
    hub: HubServer, refusal: Callable[[str], str]
) -> None:
    hub.without |= {"codes", "json"}
    hub.failing["/api/"] = (401, -1)
    assert refusal("gemma4-7b").endswith("qatconvert models add gemma4-7b OWNER/NAME")


def test_the_mapping_that_was_proposed_is_the_remedy(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["my-team/gemma"] = hub.repositories.pop(REPO)
    with pytest.raises(HubError, match="models add gemma4-9b OWNER/NAME"):
        download(resolve("gemma4-9b"))
    add_model("gemma4-9b", "my-team/gemma")
    assert download(resolve("gemma4-9b")).repo == "my-team/gemma"


def test_a_missing_repository_may_be_a_mistyped_directory(refusal: Callable[[str], str]) -> None:
    text = refusal("models/gemma")
    assert "no repository models/gemma" in text
    assert "private" in text
    assert "no local directory of this name" in text


def test_a_member_of_the_hub_is_not_told_to_log_in(
    hub: HubServer, refusal: Callable[[str], str], monkeypatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    text = refusal("models/gemma")
    assert "no repository models/gemma" in text
    assert "HF_TOKEN" not in text


def test_a_private_repository_opens_with_the_token(
    hub: HubServer, refusal: Callable[[str], str], monkeypatch
) -> None:
    hub.private.add(REPO)
    assert "set HF_TOKEN or run `hf auth login`" in refusal(REPO)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert download(resolve(REPO)).repo == REPO


def test_a_gated_repository_says_where_to_accept_and_how_to_log_in(
    hub: HubServer, refusal: Callable[[str], str]
) -> None:
    hub.gated.add(REPO)
    text = refusal("gemma4-9b")
    assert f"accept its licence at {hub.endpoint}/{REPO}" in text
    assert "HF_TOKEN" in text
    assert "hf auth login" in text


def test_a_token_without_access_to_a_gated_repository_says_so(hub: HubServer, refusal, monkeypatch) -> None:
    hub.gated.add(REPO)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    text = refusal(REPO)
    assert f"your token has no access: accept its licence at {hub.endpoint}/{REPO}" in text
    assert "fine-grained" in text


def test_a_gated_repository_opens_to_a_member(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated.add(REPO)
    hub.members.add(TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert download(resolve(REPO)).repo == REPO


def test_a_gated_repository_is_refused_before_any_weights_are_asked_for(hub: HubServer, refusal) -> None:
    hub.gated.add(REPO)
    refusal(REPO)
    assert not [name for name in hub.names_asked_for() if name.endswith(".safetensors")]


def test_a_rejected_token_is_to_be_renewed(
    refusal: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    text = refusal(REPO)
    assert "rejects the token: renew it" in text
    assert "hf_expired" not in text


@pytest.mark.parametrize("token", ["hf_ümlaut", "hf_a b", "hf_\x07bell"])
def test_a_token_with_impossible_characters_is_refused_unsent(
    hub: HubServer, refusal, monkeypatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    text = refusal(REPO)
    assert "copy it again" in text
    assert token not in text
    assert hub.requests == []


def test_a_missing_revision_is_named(hub: HubServer, refusal: Callable[[str], str]) -> None:
    text = refusal(f"{REPO}@v9")
    assert text == f"{REPO} has no branch, tag or commit v9: see {hub.endpoint}/{REPO}/commits/main"


def test_a_refused_connection_is_named_with_the_address(refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert refusal(REPO).startswith(f"cannot reach {address} (Connection refused: check the network")


def test_an_unknown_host_is_named(refusal: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    assert refusal(REPO).startswith("cannot reach http://hub.invalid (")


@pytest.mark.parametrize("endpoint", ["ftp://hub.invalid", "hub.invalid", "http://[", "http://127.0.0.1:x"])
def test_an_endpoint_that_is_no_address_is_named(
    refusal, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert "check HF_ENDPOINT" in refusal(REPO)


def test_a_password_in_the_endpoint_is_not_repeated(
    hub: HubServer, refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint.replace("//", "//user:secret@"))
    assert "secret" not in refusal("nobody/nothing")


def test_a_server_in_trouble_is_asked_again_then_named(hub: HubServer, refusal: Callable[[str], str]) -> None:
    hub.failing["/api/models"] = (503, 2)
    assert download(resolve(REPO), waits=(0.0, 0.0)).repo == REPO
    hub.failing["/api/models"] = (502, -1)
    assert refusal(REPO) == f"{hub.endpoint} has an error of its own (502 Bad Gateway): try again later"


def test_trouble_during_a_file_is_waited_out(hub: HubServer, refusal: Callable[[str], str]) -> None:
    hub.failing["/resolve/"] = (500, 2)
    assert download(resolve(REPO), waits=(0.0, 0.0)).repo == REPO


def test_too_many_requests_are_named(hub: HubServer, refusal: Callable[[str], str]) -> None:
    hub.failing["/api/models"] = (429, -1)
    assert "limits your requests" in refusal(REPO)


def test_a_server_that_is_no_hub_is_named(hub: HubServer, refusal: Callable[[str], str]) -> None:
    for answer in (
        b"<html>hotel login</html>",
        b"[]",
        b"{}",
        b'{"sha": "main", "siblings": {"a": 1}}',
        b"[" * 100_000,
    ):
        hub.edit_listing = lambda listing, answer=answer: answer  # type: ignore[misc]
        assert "check HF_ENDPOINT" in refusal(REPO)


def test_a_disk_that_is_too_small_is_noticed_before_any_weights_are_asked_for(
    hub: HubServer, refusal
) -> None:
    hub.announced[SHARDS[0]] = 3 * 10**15
    text = refusal(REPO)
    assert f"too little room: {REPO} needs 3 PB more" in text
    assert "HF_HOME" in text
    assert not [name for name in hub.names_asked_for() if name.endswith(".safetensors")]


def test_room_is_needed_for_the_missing_bytes_only(hub: HubServer, tmp_path: Path, refusal) -> None:
    single = write_model(tmp_path / "single", sharded=False, seed=1)
    hub.repositories[REPO].publish(single)
    size = (single / "model.safetensors").stat().st_size
    assert "too little room" in refusal(REPO, free_bytes=lambda folder: size - 1)
    hub.drop_after["model.safetensors"] = size - 1000
    assert "broke off" in refusal(REPO)
    hub.drop_after.clear()
    assert download(resolve(REPO), free_bytes=lambda folder: 10_000).repo == REPO
    assert download(resolve(REPO), free_bytes=lambda folder: 0).repo == REPO


def test_no_token_reaches_an_error_a_log_or_the_storage_host(hub: HubServer, tmp_path: Path) -> None:
    hub.gated.add(REPO)
    loud = f"import logging; logging.basicConfig(level=logging.DEBUG)\n{DOWNLOAD}"
    environment = hub.environment(tmp_path, TOKEN)
    refused = run_python(loud, environment, REPO)
    hub.members.add(TOKEN)
    granted = run_python(loud, environment, REPO)
    assert (refused.returncode, granted.returncode) == (1, 0)
    for output in (refused.stdout, refused.stderr, granted.stdout, granted.stderr):
        assert TOKEN not in output
        assert "X-Signature" not in output
    assert {request.token for request in hub.requests if request.host == "hub"} == {TOKEN}
    assert {request.token for request in hub.requests if request.host == "storage"} == {None}
