"""Damage in the cache: every file is compared with the Hub's digests, whenever a model is asked for."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.errors import CheckpointError, HubError
from converter.hub import Snapshot, download
from converter.names import resolve
from support.hub_model import (
    NEEDED,
    REPO,
    SHARDS,
    assert_whole,
    run_python,
)
from support.hub_server import PLAIN, HubServer, content_id

pytestmark = pytest.mark.slow


def damage(path: Path) -> None:
    """Change one bit in the middle, and leave size and times as they were."""
    blob = path.resolve()
    before = blob.stat()
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert blob.stat().st_size == before.st_size


def record_of(tmp_path: Path, snapshot: Snapshot) -> Path:
    (record,) = (tmp_path / "huggingface").rglob(f"qatconvert/{snapshot.revision}.json")
    return record


def forget_digests(record: Path) -> None:
    """Leave the record as an earlier version wrote it."""
    document = json.loads(record.read_text())
    del document["digests"]
    record.write_text(json.dumps(document))


def forget_record(record: Path) -> None:
    """Leave the cache as another program fills it."""
    record.unlink()


def keep_record(record: Path) -> None: ...


Forget = Callable[[Path], None]
FORGET = [keep_record, forget_digests, forget_record]


@pytest.mark.parametrize("name", NEEDED)
def test_a_damaged_file_is_fetched_anew_and_no_other_is(hub: HubServer, tmp_path: Path, name: str) -> None:
    damage(download(resolve(REPO)).path / name)
    hub.requests.clear()
    assert_whole(download(resolve(REPO)), tmp_path)
    assert hub.names_asked_for() == {name}


@pytest.mark.parametrize("name", [SHARDS[1], "config.json"])
def test_a_damaged_file_of_a_pinned_commit_is_fetched_anew(hub: HubServer, tmp_path: Path, name: str) -> None:
    pinned = f"{REPO}@{hub.commit(REPO)}"
    damage(download(resolve(pinned)).path / name)
    assert_whole(download(resolve(pinned)), tmp_path)
    hub.requests.clear()
    assert_whole(download(resolve(pinned)), tmp_path)
    assert hub.requests == []


@pytest.mark.parametrize("forget", FORGET)
@pytest.mark.parametrize("name", NEEDED)
def test_offline_a_damaged_file_is_an_error_that_names_it(
    hub: HubServer, tmp_path: Path, name: str, forget: Forget
) -> None:
    snapshot = download(resolve(REPO))
    forget(record_of(tmp_path, snapshot))
    assert_whole(download(resolve(REPO), offline=True), tmp_path)
    damage(snapshot.path / name)
    with pytest.raises(HubError, match=rf"/{name}: is damaged, .* {REPO} .*run once without --offline"):
        download(resolve(REPO), offline=True)
    assert_whole(download(resolve(REPO)), tmp_path)
    assert_whole(download(resolve(REPO), offline=True), tmp_path)


@pytest.mark.parametrize("forget", FORGET)
def test_it_is_told_how_each_file_was_compared(hub: HubServer, tmp_path: Path, forget: Forget) -> None:
    snapshot = download(resolve(REPO))
    forget(record_of(tmp_path, snapshot))
    for found in (snapshot, download(resolve(REPO), offline=True), download(resolve(REPO))):
        for path in found.files:
            compared = found.checks[path.name]
            assert compared.digest == content_id(tmp_path / "repository" / path.name)
            assert compared.kind == ("git" if len(content_id(path)) == 40 else "sha256")


def test_a_damaged_cache_that_huggingface_hub_filled_is_noticed(hub: HubServer, tmp_path: Path) -> None:
    code = "import sys, huggingface_hub as hub; print(hub.snapshot_download(sys.argv[1]))"
    fetched = run_python(code, hub.environment(tmp_path), REPO)
    shard = Path(fetched.stdout.strip()) / SHARDS[0]
    damage(shard)
    with pytest.raises(HubError, match=f"{SHARDS[0]}: is damaged"):
        download(resolve(REPO), offline=True)
    assert_whole(download(resolve(REPO)), tmp_path)


def test_a_damaged_copy_in_place_of_a_link_is_replaced(hub: HubServer, tmp_path: Path) -> None:
    path = download(resolve(REPO)).path / SHARDS[0]
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    damage(path)
    hub.requests.clear()
    assert_whole(download(resolve(REPO)), tmp_path)
    assert hub.names_asked_for() == set()  # the blob is whole


def test_a_damaged_file_is_left_to_the_next_run_where_the_new_one_does_not_arrive(
    hub: HubServer, tmp_path: Path
) -> None:
    damage(download(resolve(REPO)).path / SHARDS[0])
    hub.drop_after[SHARDS[0]] = 1000
    with pytest.raises(HubError, match="broke off at"):
        download(resolve(REPO), waits=())
    hub.drop_after.clear()
    with pytest.raises(HubError, match=f"{SHARDS[0]}: is damaged"):
        download(resolve(REPO), offline=True)
    assert_whole(download(resolve(REPO)), tmp_path)
    assert hub.asked_for(SHARDS[0])[-1].headers["range"] == "bytes=1000-"


def test_room_is_needed_for_what_is_damaged(hub: HubServer) -> None:
    path = download(resolve(REPO)).path / SHARDS[0]
    damage(path)
    with pytest.raises(HubError, match="too little room"):
        download(resolve(REPO), free_bytes=lambda folder: path.stat().st_size - 1)


def test_progress_ends_at_the_total_after_damage_too(hub: HubServer) -> None:
    damage(download(resolve(REPO)).path / SHARDS[0])
    calls: list[tuple[int, int]] = []
    snapshot = download(resolve(REPO), progress=lambda *call: calls.append(call))
    assert calls[-1] == (sum(path.stat().st_size for path in snapshot.files),) * 2
    offline: list[tuple[int, int]] = []
    download(resolve(REPO), offline=True, progress=lambda *call: offline.append(call))
    assert offline[-1] == calls[-1]


def test_a_server_without_digests_leaves_nothing_to_compare_with(hub: HubServer, tmp_path: Path) -> None:
    hub.without |= PLAIN
    hub.etag = lambda path: f'"etag-of-{path.name}"'
    snapshot = download(resolve(REPO))
    assert {compared.kind for compared in snapshot.checks.values()} == {None}
    damage(snapshot.path / SHARDS[0])  # which nothing can show
    assert download(resolve(REPO), offline=True).checks[SHARDS[0]].kind is None


def test_an_etag_that_turned_out_to_be_gits_shows_damage_later(hub: HubServer, tmp_path: Path) -> None:
    hub.without |= PLAIN
    snapshot = download(resolve(REPO))
    assert snapshot.checks["config.json"].kind == "git"
    damage(snapshot.path / "config.json")
    with pytest.raises(HubError, match=r"config\.json: is damaged"):
        download(resolve(REPO), offline=True)
    assert_whole(download(resolve(REPO)), tmp_path)


def test_an_etag_that_is_no_digest_of_the_content_refuses_nothing(hub: HubServer, tmp_path: Path) -> None:
    hub.without |= PLAIN
    hub.etag = lambda path: f'"{hashlib.sha1(path.name.encode()).hexdigest()}"'
    for offline in (False, True, False):
        snapshot = download(resolve(REPO), offline=offline)
        assert_whole(snapshot, tmp_path)
        assert snapshot.checks["config.json"].kind is None


@pytest.mark.parametrize("offline", [False, True])
def test_what_describes_the_model_is_examined_before_weights_are_touched(
    hub: HubServer, tmp_path: Path, offline: bool
) -> None:
    if offline:
        damage(download(resolve(REPO)).path / SHARDS[0])
    hub.requests.clear()

    def examine(folder: Path) -> None:
        assert (folder / "config.json").read_bytes() == (tmp_path / "repository" / "config.json").read_bytes()
        raise CheckpointError("of an unknown kind")

    with pytest.raises(CheckpointError, match="of an unknown kind"):
        download(resolve(REPO), examine=examine, offline=offline)
    assert not hub.asked_for(SHARDS[0])
    assert not hub.asked_for(SHARDS[1])
