"""Downloads from a Hub: which files, at which commit, with what progress."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from converter.errors import HubError
from converter.hub import download
from converter.names import resolve
from support.hub_model import BESIDE, DOWNLOAD, INDEX, REPO, SHARDS, run_python, write_model
from support.hub_server import HubServer, files_of

pytestmark = pytest.mark.slow


def test_only_the_files_that_make_the_model_are_fetched(hub: HubServer) -> None:
    snapshot = download(resolve(REPO))
    expected = {*BESIDE, "LICENSE", INDEX, *SHARDS}
    assert {path.name for path in snapshot.files} == expected
    assert hub.names_asked_for() == expected
    assert set(files_of(snapshot.path)) == expected


def test_the_content_is_the_repositorys(hub: HubServer, tmp_path: Path) -> None:
    snapshot = download(resolve(REPO))
    for path in snapshot.files:
        assert path.read_bytes() == (tmp_path / "repository" / path.name).read_bytes()


def test_an_alias_of_an_unpublished_size_downloads_the_repository_of_that_name(hub: HubServer) -> None:
    snapshot = download(resolve("gemma4-9b"))
    assert (snapshot.repo, snapshot.revision) == (REPO, hub.commit(REPO))


def test_a_repository_with_one_weights_file_needs_no_index(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories[REPO].publish(write_model(tmp_path / "single", sharded=False))
    snapshot = download(resolve(REPO))
    assert {path.name for path in snapshot.files} == {*BESIDE, "LICENSE", "model.safetensors"}


def test_a_branch_is_resolved_once_and_everything_comes_from_that_commit(hub: HubServer) -> None:
    commit = hub.commit(REPO)
    assert download(resolve(REPO)).revision == commit
    listings = [request.path for request in hub.requests if request.path.startswith("/api/")]
    contents = [request.path for request in hub.requests if "/resolve/" in request.path]
    assert listings == [f"/api/models/{REPO}/revision/main"]
    assert all(f"/resolve/{commit}/" in path for path in contents)


def test_a_tag_and_a_commit_can_be_asked_for(hub: HubServer, tmp_path: Path) -> None:
    old = hub.commit(REPO)
    hub.repositories[REPO].references["release/v1.0"] = old
    new = hub.repositories[REPO].publish(write_model(tmp_path / "newer", seed=1))
    assert download(resolve(f"{REPO}@release/v1.0")).revision == old
    assert download(resolve(f"gemma4-9b@{old}")).revision == old
    assert download(resolve("gemma4-9b")).revision == new


def test_a_second_download_fetches_nothing_but_the_listing(hub: HubServer) -> None:
    first = download(resolve(REPO))
    hub.requests.clear()
    assert download(resolve(REPO)) == first
    assert [request.path for request in hub.requests] == [f"/api/models/{REPO}/revision/main"]


def test_a_complete_commit_needs_no_network(hub: HubServer) -> None:
    first = download(resolve(REPO))
    hub.requests.clear()
    assert download(resolve(f"{REPO}@{first.revision}")) == first
    assert hub.requests == []


def test_a_new_commit_fetches_only_what_changed(hub: HubServer, tmp_path: Path) -> None:
    download(resolve(REPO))
    hub.requests.clear()
    newer = write_model(tmp_path / "newer")
    (newer / "config.json").write_text('{"changed": true}')
    hub.repositories[REPO].publish(newer)
    snapshot = download(resolve(REPO))
    assert hub.names_asked_for() == {"config.json"}
    assert (snapshot.path / "config.json").read_text() == '{"changed": true}'


def test_what_describes_the_model_comes_without_its_weights(hub: HubServer) -> None:
    snapshot = download(resolve("gemma4-9b"), weights=False)
    assert (snapshot.path / "config.json").exists()
    assert not any("safetensors" in name for name in hub.names_asked_for() if not name.endswith(".json"))
    with pytest.raises(HubError, match=r"lacks model-00001-of-00002\.safetensors"):
        download(resolve("gemma4-9b"), offline=True)
    assert download(resolve("gemma4-9b"), weights=False, offline=True).path == snapshot.path


def test_progress_counts_every_byte_once(hub: HubServer) -> None:
    calls: list[tuple[int, int]] = []
    snapshot = download(resolve(REPO), progress=lambda done, total: calls.append((done, total)))
    size = sum(path.stat().st_size for path in snapshot.files)
    done = [count for count, _ in calls]
    assert {total for _, total in calls} == {size}
    assert done == sorted(done)
    assert done[-1] == size


def test_huggingface_hub_finds_what_was_downloaded(hub: HubServer) -> None:
    from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

    snapshot = download(resolve(REPO))
    cache = constants.HF_HUB_CACHE
    assert try_to_load_from_cache(REPO, "config.json", cache_dir=cache) == str(snapshot.path / "config.json")
    assert snapshot_download(REPO, local_files_only=True, cache_dir=cache) == str(snapshot.path)


def test_what_is_written_is_readable_to_those_who_share_the_cache(hub: HubServer, tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    path = download(resolve(REPO)).path
    written = [path for path in path.parents[1].rglob("*") if path.is_file()]
    assert {"main", f"{hub.commit(REPO)}.json", "config.json"} < {path.name for path in written}
    assert {path.stat().st_mode for path in written} == {ordinary.stat().st_mode}


def test_what_huggingface_hub_downloaded_is_not_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    fetched = run_python(
        "import sys, huggingface_hub as hub; print(hub.snapshot_download(sys.argv[1]))",
        hub.environment(tmp_path),
        REPO,
    )
    assert fetched.returncode == 0, fetched.stderr
    hub.requests.clear()
    assert str(download(resolve(REPO)).path) == fetched.stdout.strip()
    assert hub.names_asked_for() == set()


def test_a_download_imports_neither_torch_nor_transformers(hub: HubServer, tmp_path: Path) -> None:
    code = f"{DOWNLOAD}; print(sorted({{'torch', 'transformers', 'numba'}} & set(sys.modules)))"
    run = run_python(code, hub.environment(tmp_path), "gemma4-9b")
    assert (run.stdout, run.stderr) == ("[]\n", "")


def test_telemetry_is_never_sent(hub: HubServer, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path)
    del environment["HF_HUB_DISABLE_TELEMETRY"]
    assert run_python(DOWNLOAD, environment, "gemma4-9b").returncode == 0
    assert {request.headers["user-agent"] for request in hub.requests} == {"qatconvert"}
    assert not [request for request in hub.requests if "harness" in request.path]


def test_the_libraries_loggers_are_left_as_they_were(hub: HubServer) -> None:
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    hub.failing["/api/"] = (503, -1)
    with pytest.raises(HubError):
        download(resolve(REPO), waits=())
    assert logger.level == before


def test_a_directory_is_no_repository() -> None:
    with pytest.raises(ValueError, match="not a repository"):
        download(resolve("."))
