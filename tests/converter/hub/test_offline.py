"""Without a network: the cache alone, and only when the model in it is complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.errors import HubError
from converter.hub import download
from converter.names import resolve
from support.hub_model import DOWNLOAD, INDEX, REPO, SHARDS, run_python
from support.hub_server import HubServer

pytestmark = pytest.mark.slow


def test_a_downloaded_model_is_found_without_any_request(hub: HubServer) -> None:
    online = download(resolve(REPO))
    assert online.date == "2026-04-02T12:34:56Z"
    hub.requests.clear()
    assert download(resolve(REPO), offline=True) == online
    assert download(resolve(f"{REPO}@{online.revision}"), offline=True) == online
    assert hub.requests == []


def test_a_model_that_was_never_downloaded_is_named(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(
        HubError, match=rf"{REPO}@main is not in the cache {tmp_path}.*run once without --offline"
    ):
        download(resolve("gemma4-9b"), offline=True)
    assert hub.requests == []


def test_another_revision_than_the_cached_one_is_named(hub: HubServer) -> None:
    download(resolve(REPO))
    with pytest.raises(HubError, match=f"{REPO}@v2 is not in the cache"):
        download(resolve(f"{REPO}@v2"), offline=True)


@pytest.mark.parametrize("name", [SHARDS[1], "tokenizer.json", INDEX, "config.json"])
def test_a_missing_file_is_named(hub: HubServer, name: str) -> None:
    (download(resolve(REPO)).path / name).unlink()
    with pytest.raises(HubError, match=rf"lacks {name} \(commit .*run once without --offline"):
        download(resolve(REPO), offline=True)


def test_a_truncated_shard_counts_as_missing(hub: HubServer) -> None:
    (download(resolve(REPO)).path / SHARDS[0]).resolve().write_bytes(b"short")
    with pytest.raises(HubError, match=f"lacks {SHARDS[0]}"):
        download(resolve(REPO), offline=True)


def test_a_broken_off_download_is_not_taken_for_the_model(hub: HubServer) -> None:
    hub.drop_after[SHARDS[1]] = 1000
    with pytest.raises(HubError, match="broke off"):
        download(resolve(f"{REPO}@{hub.commit(REPO)}"), waits=())
    with pytest.raises(HubError, match=rf"lacks .*{SHARDS[1]}"):
        download(resolve(f"{REPO}@{hub.commit(REPO)}"), offline=True)


def fill_by_huggingface_hub(hub: HubServer, tmp_path: Path, *patterns: str) -> None:
    code = "import sys, huggingface_hub as h; h.snapshot_download(sys.argv[1], allow_patterns=sys.argv[2:])"
    assert run_python(code, hub.environment(tmp_path), REPO, *patterns).returncode == 0


def test_what_huggingface_hub_downloaded_is_found(hub: HubServer, tmp_path: Path) -> None:
    fill_by_huggingface_hub(hub, tmp_path, "*")
    snapshot = download(resolve(REPO), offline=True)
    assert {INDEX, *SHARDS} < {path.name for path in snapshot.files}
    assert "old.safetensors" not in {path.name for path in snapshot.files}


def test_a_shard_that_huggingface_hub_did_not_download_is_named(hub: HubServer, tmp_path: Path) -> None:
    fill_by_huggingface_hub(hub, tmp_path, "*.json", SHARDS[0])
    with pytest.raises(HubError, match=f"lacks {SHARDS[1]}"):
        download(resolve(REPO), offline=True)


def test_a_configuration_alone_is_no_model(hub: HubServer, tmp_path: Path) -> None:
    fill_by_huggingface_hub(hub, tmp_path, "config.json")
    with pytest.raises(HubError, match=r"lacks model\.safetensors"):
        download(resolve(REPO), offline=True)


def test_huggingface_hubs_own_switch_means_offline(hub: HubServer, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path) | {"HF_HUB_OFFLINE": "1"}
    run = run_python(DOWNLOAD, environment, REPO)
    assert f"{REPO}@main is not in the cache" in run.stderr.splitlines()[-1]
    assert hub.requests == []


def test_an_unreachable_hub_is_never_replaced_by_the_cache_but_the_cache_is_pointed_to(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    download(resolve(REPO))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"cannot reach .*a complete copy is in the cache: use --offline"):
        download(resolve(REPO))


def test_a_date_that_was_told_once_stays_known(hub: HubServer) -> None:
    told = download(resolve(REPO)).date
    hub.edit_listing = lambda listing: {key: value for key, value in listing.items() if key != "lastModified"}
    assert download(resolve(REPO)).date == download(resolve(REPO), offline=True).date == told is not None
