"""A Hub is a stranger: what it lists is checked before anything is written or read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from converter.errors import HubError
from converter.hub import download
from converter.names import resolve
from support.hub_model import INDEX, REPO, SHARDS, write_model
from support.hub_server import PLAIN, HubServer, blob_id, files_of

pytestmark = pytest.mark.slow


def change(hub: HubServer, name: str, **values: object) -> None:
    """Let the listing of `name` have other values."""

    def edit(listing: dict[str, Any]) -> dict[str, Any]:
        siblings = [entry | values if entry["rfilename"] == name else entry for entry in listing["siblings"]]
        return listing | {"siblings": siblings}

    hub.edit_listing = edit


NAMES = [
    "../../x",
    "/etc/x.safetensors",
    "a/../x.json",
    "..",
    "",
    "a//b",
    "./x",
    "a\\..\\x",
    "C:x",
    "x\x1b[2J.safetensors",
    "x\n.json",
    "x\0",
    "\u202ex",
    7,
    None,
    ["x"],
]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_name_that_could_lead_elsewhere_is_refused(
    hub: HubServer, tmp_path: Path, name: object
) -> None:
    change(hub, "tokenizer.json", rfilename=name)
    with pytest.raises(HubError, match=r"lists a file named .* refused") as caught:
        download(resolve(REPO))
    assert str(caught.value).isprintable()
    assert hub.names_asked_for() == set()
    assert not (tmp_path / "huggingface").exists()


@pytest.mark.parametrize("digest", ["../../../x", "A" * 40, "abc", None, 7, "0" * 65])
def test_a_listed_digest_that_is_none_names_no_file(hub: HubServer, tmp_path: Path, digest: object) -> None:
    change(hub, "config.json", blobId=digest)
    path = download(resolve(REPO)).path / "config.json"
    assert path.resolve().name == blob_id(tmp_path / "repository" / "config.json")


@pytest.mark.parametrize("etag", ['"../../../x"', "/etc/x", "..", '"a b"', '"x.incomplete"', '""', "a" * 999])
def test_an_etag_that_could_lead_elsewhere_names_no_file(hub: HubServer, tmp_path: Path, etag: str) -> None:
    hub.without |= PLAIN
    hub.etag = lambda path: etag
    snapshot = download(resolve(REPO))
    blobs = {path.resolve() for path in snapshot.files}
    assert len(blobs) == len(snapshot.files)
    assert {blob.parent for blob in blobs} == {snapshot.path.parents[1] / "blobs"}
    assert all(blob.name.startswith("unnamed-") for blob in blobs)


@pytest.mark.parametrize("size", [-1, 1.5, "7", None, True])
def test_a_listed_size_that_is_none_is_asked_for(hub: HubServer, tmp_path: Path, size: object) -> None:
    change(hub, SHARDS[0], lfs={"size": size, "sha256": "0" * 64, "pointerSize": 134})
    path = download(resolve(REPO)).path / SHARDS[0]
    assert path.read_bytes() == (tmp_path / "repository" / SHARDS[0]).read_bytes()


@pytest.mark.parametrize("commit", ["../../../../x", "..", "a/b", "", "a" * 200, ".a", "a\n", None, 7])
def test_a_commit_that_is_none_is_refused(hub: HubServer, commit: object) -> None:
    hub.edit_listing = lambda listing: listing | {"sha": commit}
    with pytest.raises(HubError, match="names no commit"):
        download(resolve(REPO))


@pytest.mark.parametrize("date", [None, 7, "yesterday", "2026-04-02T12:34:56.000Z\n", "2026-04-02", "<b>"])
def test_a_date_that_is_none_is_not_taken(hub: HubServer, date: object) -> None:
    hub.edit_listing = lambda listing: listing | {"lastModified": date}
    assert download(resolve(REPO)).date is None
    assert download(resolve(REPO), offline=True).date is None


def test_a_server_that_sends_more_than_it_listed_is_cut_off(hub: HubServer, tmp_path: Path) -> None:
    hub.announced[SHARDS[0]] = 1000
    with pytest.raises(HubError, match=f"{SHARDS[0]}: the server sends more than the 1000 bytes"):
        download(resolve(REPO))
    assert sum(path.stat().st_size for path in (tmp_path / "huggingface").rglob("*.incomplete")) < 10**6


def test_a_server_that_sends_less_than_it_listed_is_not_asked_for_ever(hub: HubServer) -> None:
    hub.announced["config.json"] = 1000
    with pytest.raises(HubError, match=r"config\.json"):
        download(resolve(REPO), waits=(0.0, 0.0))
    assert len(hub.asked_for("config.json")) <= 4


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/x.safetensors", "sub/x.safetensors", "pytorch_model.bin", 7]
)
def test_an_index_that_names_something_else_than_a_shard_is_refused(
    hub: HubServer, tmp_path: Path, shard: object
) -> None:
    replace_index(hub, tmp_path, json.dumps({"weight_map": {"a": SHARDS[0], "b": shard}}))
    with pytest.raises(HubError, match=f"{INDEX} names a shard .* refused"):
        download(resolve(REPO))


def test_an_index_that_names_an_absent_shard_is_refused(hub: HubServer, tmp_path: Path) -> None:
    replace_index(hub, tmp_path, json.dumps({"weight_map": {"a": "model-00003-of-00003.safetensors"}}))
    with pytest.raises(HubError, match=f"{INDEX} names the shard model-00003-of-00003.safetensors, which"):
        download(resolve(REPO))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000, "\0"]
)
def test_a_damaged_index_is_refused(hub: HubServer, tmp_path: Path, text: str) -> None:
    replace_index(hub, tmp_path, text)
    with pytest.raises(HubError, match=INDEX) as caught:
        download(resolve(REPO))
    assert str(caught.value).isprintable()


def replace_index(hub: HubServer, tmp_path: Path, text: str) -> None:
    directory = write_model(tmp_path / "changed")
    (directory / INDEX).write_text(text)
    hub.repositories[REPO].publish(directory)


def publish_without(hub: HubServer, directory: Path, *suffixes: str) -> None:
    for name, path in files_of(write_model(directory)).items():
        if name.endswith(suffixes):
            path.unlink()
    hub.repositories[REPO].publish(directory)


def test_a_repository_of_pickles_is_refused_by_name_before_anything_is_fetched(
    hub: HubServer, tmp_path: Path
) -> None:
    publish_without(hub, tmp_path / "pickles", ".safetensors", INDEX)
    with pytest.raises(
        HubError, match=rf"{REPO} holds its weights as pytorch_model\.bin, not as safetensors"
    ):
        download(resolve(REPO))
    assert hub.names_asked_for() == set()


def test_a_repository_of_gguf_files_says_what_to_do_with_them(hub: HubServer, tmp_path: Path) -> None:
    publish_without(hub, tmp_path / "gguf", ".safetensors", ".bin", INDEX)
    with pytest.raises(
        HubError, match=r"no model\.safetensors.*; .* download model-q4_0\.gguf and give the path"
    ):
        download(resolve(REPO))


def test_a_repository_without_configuration_is_no_checkpoint(hub: HubServer, tmp_path: Path) -> None:
    publish_without(hub, tmp_path / "bare", "config.json")
    with pytest.raises(HubError, match=r"no checkpoint: it has no config\.json"):
        download(resolve(REPO))
