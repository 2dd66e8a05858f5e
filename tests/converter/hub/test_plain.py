"""Servers that speak less of the Hub's protocol than the Hub, as far as huggingface_hub needs it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from converter.errors import HubError
from converter.hub import download
from converter.names import resolve
from support.hub_model import REPO, SHARDS, assert_whole, run_python, use_only, write_model
from support.hub_server import PLAIN, HubServer, content_id, sha256

pytestmark = pytest.mark.slow

DROP = 50_003
FETCH_ALL = "import sys, huggingface_hub as hub; print(hub.snapshot_download(sys.argv[1]))"
FETCH_ONE = "import sys, huggingface_hub as hub; print(hub.hf_hub_download(sys.argv[1], 'config.json'))"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer({REPO: write_model(tmp_path / "repository")}) as server:
        server.without |= PLAIN
        use_only(server, tmp_path, monkeypatch)
        yield server


def plain_sha1(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


LACKING = [
    set(),
    {"queries"},
    {"queries", "revision"},
    {"branches"},
    {"length"},
    {"head"},
    {"head", "length"},
    {"json"},
]


@pytest.mark.parametrize("lacking", LACKING, ids=lambda names: "-".join(sorted(names)) or "plain")
def test_a_list_of_names_and_the_files_will_do(hub: HubServer, tmp_path: Path, lacking: set[str]) -> None:
    hub.without |= lacking
    assert_whole(download(resolve(REPO)), tmp_path)
    asked = len(hub.requests)
    assert_whole(download(resolve(REPO), offline=True), tmp_path)
    assert len(hub.requests) == asked


@pytest.mark.parametrize("ranges", [True, False])
def test_huggingface_hub_and_qatconvert_both_download_from_a_plain_server(
    hub: HubServer, tmp_path: Path, ranges: bool
) -> None:
    hub.without.discard("tree")  # huggingface_hub 2.x lists a repository by its tree
    hub.ignore_ranges = not ranges
    theirs = run_python(FETCH_ALL, hub.environment(tmp_path / "theirs"), REPO)
    assert theirs.returncode == 0, theirs.stderr
    snapshot = download(resolve(REPO))
    assert_whole(snapshot, tmp_path)
    for path in snapshot.files:
        assert (Path(theirs.stdout.strip()) / path.name).resolve().name == path.resolve().name
    (name,) = {path.name for path in snapshot.path.parent.iterdir()}
    assert Path(theirs.stdout.strip()).name == name == hub.commit(REPO)


@pytest.mark.parametrize("routes", [{"blobs"}, {"model", "revision"}])
def test_a_tree_is_as_good_as_a_description(hub: HubServer, tmp_path: Path, routes: set[str]) -> None:
    hub.without |= routes
    hub.without.discard("tree")
    hub.edit_listing = lambda listing: {"id": REPO, "sha": listing["sha"]}
    assert_whole(download(resolve(REPO)), tmp_path)
    assert_whole(download(resolve(f"{REPO}@{hub.commit(REPO)}")), tmp_path)


ETAGS: dict[str, Callable[[Path], str]] = {
    "unquoted": content_id,
    "weak": lambda path: f'W/"{content_id(path)}"',
    "sha256": lambda path: f'"{sha256(path)}"',
    "sha1": lambda path: f'"{plain_sha1(path)}"',
    "sha1-of-name": lambda path: f'"{hashlib.sha1(path.name.encode()).hexdigest()}"',
    "name": lambda path: f'"etag-{path.name}"',
}


@pytest.mark.parametrize("kind", ETAGS)
def test_any_etag_is_the_name_of_a_blob(hub: HubServer, tmp_path: Path, kind: str) -> None:
    hub.etag = ETAGS[kind]
    snapshot = download(resolve(REPO))
    assert_whole(snapshot, tmp_path)
    ours = (snapshot.path / "config.json").resolve().name
    theirs = run_python(FETCH_ONE, hub.environment(tmp_path / "theirs"), REPO)
    assert Path(theirs.stdout.strip()).resolve().name == ours


def test_an_etag_that_is_a_sha256_is_checked(hub: HubServer) -> None:
    hub.corrupt.add(SHARDS[0])
    with pytest.raises(HubError, match=rf"{SHARDS[0]}: .* digest .* deleted"):
        download(resolve(REPO))


@pytest.mark.parametrize("commit", ["abc123", "main", "v1.0-final", "A" * 40])
def test_a_commit_need_not_look_like_gits(hub: HubServer, tmp_path: Path, commit: str) -> None:
    def edit(listing: dict[str, Any]) -> dict[str, Any]:
        return listing | {"sha": commit}

    hub.repositories[REPO].commits[commit] = tmp_path / "repository"
    hub.edit_listing = edit
    snapshot = download(resolve(REPO))
    assert_whole(snapshot, tmp_path)
    assert snapshot.revision == commit
    assert download(resolve(REPO), offline=True) == snapshot


def test_a_commit_that_is_no_digest_may_come_to_mean_something_else(hub: HubServer, tmp_path: Path) -> None:
    hub.edit_listing = lambda listing: listing | {"sha": "main"}
    download(resolve(REPO))
    config = tmp_path / "repository" / "config.json"
    config.write_text(config.read_text().replace('"seed": 0', '"seed": 9'))
    assert_whole(download(resolve(REPO)), tmp_path)


@pytest.mark.parametrize("kind", ["unquoted", "sha1", "name"])
def test_a_broken_off_file_goes_on_where_it_stopped(hub: HubServer, tmp_path: Path, kind: str) -> None:
    hub.etag = ETAGS[kind]
    hub.drop_after[SHARDS[0]] = DROP
    with pytest.raises(HubError, match=r"broke off at .* of .*: run the same command again"):
        download(resolve(REPO), waits=())
    hub.drop_after.clear()
    assert_whole(download(resolve(REPO), waits=()), tmp_path)
    requests = [request for request in hub.asked_for(SHARDS[0]) if request.sent]
    assert [request.headers.get("range") for request in requests] == [None, f"bytes={DROP}-"]


def test_a_file_of_unknown_size_goes_on_within_the_run(hub: HubServer, tmp_path: Path) -> None:
    hub.without.add("head")
    hub.drop_after[SHARDS[0]] = DROP
    calls: list[tuple[int, int]] = []
    snapshot = download(resolve(REPO), waits=(0.0,), progress=lambda *call: calls.append(call))
    assert_whole(snapshot, tmp_path)
    assert f"bytes={DROP}-" in [request.headers.get("range") for request in hub.asked_for(SHARDS[0])]
    assert calls[-1][0] == calls[-1][1]


def test_a_damaged_partial_file_is_noticed_by_an_etag_that_is_gits_digest(
    hub: HubServer, tmp_path: Path
) -> None:
    name = "tokenizer_config.json"
    hub.drop_after[name] = 10
    with pytest.raises(HubError, match="broke off"):
        download(resolve(REPO), waits=())
    hub.drop_after.clear()
    (partial,) = (tmp_path / "huggingface").rglob(f"{content_id(tmp_path / 'repository' / name)}.incomplete")
    partial.write_bytes(bytes(10))
    assert_whole(download(resolve(REPO), waits=()), tmp_path)
