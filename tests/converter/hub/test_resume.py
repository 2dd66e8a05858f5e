"""Downloads that break off: what arrived is kept, counted once, and gone on from."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from converter.errors import HubError
from converter.hub import download
from converter.names import resolve
from support.hub_model import DOWNLOAD, REPO, WEIGHTS, partial_weights, run_python, use_only, write_model
from support.hub_server import HubServer

pytestmark = pytest.mark.slow

DROP = 100_003


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    repository = write_model(tmp_path / "repository", sharded=False, rows=256)
    with HubServer({REPO: repository}) as server:
        use_only(server, tmp_path, monkeypatch)
        yield server


def size(tmp_path: Path) -> int:
    return (tmp_path / "repository" / WEIGHTS).stat().st_size


def sent(hub: HubServer) -> int:
    return sum(request.sent for request in hub.asked_for(WEIGHTS))


def test_the_next_run_asks_for_the_missing_range_only(hub: HubServer, tmp_path: Path) -> None:
    hub.drop_after[WEIGHTS] = DROP
    with pytest.raises(HubError, match=r"broke off at .* of .*: run the same command again"):
        download(resolve(REPO), waits=())
    hub.drop_after.clear()
    snapshot = download(resolve(REPO), waits=())
    first, second = hub.asked_for(WEIGHTS)
    assert (first.headers.get("range"), second.headers.get("range")) == (None, f"bytes={DROP}-")
    assert second.status == 206
    assert sent(hub) == size(tmp_path)
    assert (snapshot.path / WEIGHTS).read_bytes() == (tmp_path / "repository" / WEIGHTS).read_bytes()


def test_a_run_that_is_killed_leaves_what_arrived_to_the_next(hub: HubServer, tmp_path: Path) -> None:
    hub.drop_after[WEIGHTS] = DROP
    environment = hub.environment(tmp_path)
    patient = DOWNLOAD.replace("sys.argv[1])", "sys.argv[1]), waits=(60,)")
    with subprocess.Popen([sys.executable, "-c", patient, REPO], env=environment) as process:
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            if partial_weights(tmp_path).exists() and partial_weights(tmp_path).stat().st_size:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    arrived = partial_weights(tmp_path).stat().st_size
    assert 0 < arrived <= DROP
    hub.drop_after.clear()
    assert run_python(DOWNLOAD, environment, REPO).returncode == 0
    assert hub.asked_for(WEIGHTS)[-1].headers["range"] == f"bytes={arrived}-"


def test_a_dropped_connection_is_taken_up_within_the_run(hub: HubServer, tmp_path: Path) -> None:
    hub.drop_after[WEIGHTS] = DROP
    snapshot = download(resolve(REPO), waits=(0.0,))
    requests = hub.asked_for(WEIGHTS)
    assert [request.headers.get("range") for request in requests[:3]] == [
        None,
        f"bytes={DROP}-",
        f"bytes={2 * DROP}-",
    ]
    assert sent(hub) == size(tmp_path)
    assert (snapshot.path / WEIGHTS).stat().st_size == size(tmp_path)


def test_nothing_unfinished_has_the_name_of_a_finished_file(hub: HubServer, tmp_path: Path) -> None:
    hub.drop_after[WEIGHTS] = DROP
    with pytest.raises(HubError):
        download(resolve(REPO), waits=())
    assert not list((tmp_path / "huggingface").rglob(WEIGHTS))
    assert partial_weights(tmp_path).stat().st_size == DROP


def test_progress_begins_with_what_arrived_before(hub: HubServer) -> None:
    hub.drop_after[WEIGHTS] = DROP
    with pytest.raises(HubError):
        download(resolve(REPO), waits=())
    hub.drop_after.clear()
    calls: list[tuple[int, int]] = []
    download(resolve(REPO), progress=lambda *call: calls.append(call))
    assert DROP in [later[0] - earlier[0] for earlier, later in itertools.pairwise(calls)]
    assert calls[-1][0] == calls[-1][1]


def test_a_server_without_ranges_is_read_from_the_start(hub: HubServer, tmp_path: Path) -> None:
    hub.drop_after[WEIGHTS] = DROP
    with pytest.raises(HubError):
        download(resolve(REPO), waits=())
    hub.drop_after.clear()
    hub.ignore_ranges = True
    calls: list[tuple[int, int]] = []
    snapshot = download(resolve(REPO), progress=lambda *call: calls.append(call))
    assert (snapshot.path / WEIGHTS).read_bytes() == (tmp_path / "repository" / WEIGHTS).read_bytes()
    assert calls[-1][0] == calls[-1][1]


def test_content_that_is_not_the_listed_one_is_refused_and_not_kept(hub: HubServer, tmp_path: Path) -> None:
    hub.corrupt.add(WEIGHTS)
    with pytest.raises(HubError, match=rf"{WEIGHTS}: .* digest .* deleted"):
        download(resolve(REPO))
    assert not partial_weights(tmp_path).exists()
    hub.corrupt.clear()
    assert (download(resolve(REPO)).path / WEIGHTS).stat().st_size == size(tmp_path)


def test_small_files_are_checked_by_gits_digest(hub: HubServer) -> None:
    hub.corrupt.add("tokenizer_config.json")
    with pytest.raises(HubError, match=r"tokenizer_config\.json: .* digest"):
        download(resolve(REPO))


def test_a_damaged_partial_file_is_noticed_and_the_run_after_is_whole(hub: HubServer, tmp_path: Path) -> None:
    hub.drop_after[WEIGHTS] = DROP
    with pytest.raises(HubError):
        download(resolve(REPO), waits=())
    hub.drop_after.clear()
    partial_weights(tmp_path).write_bytes(bytes(DROP))
    with pytest.raises(HubError, match="digest"):
        download(resolve(REPO))
    assert (download(resolve(REPO)).path / WEIGHTS).stat().st_size == size(tmp_path)


def test_a_cached_file_of_the_wrong_size_is_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    path = download(resolve(REPO)).path / WEIGHTS
    os.truncate(path, 10)
    assert (download(resolve(REPO)).path / WEIGHTS).read_bytes() == (
        tmp_path / "repository" / WEIGHTS
    ).read_bytes()


def test_a_disk_that_refuses_the_bytes_is_named(hub: HubServer, tmp_path: Path) -> None:
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n{DOWNLOAD}"
    run = run_python(code, hub.environment(tmp_path), REPO)
    assert run.returncode == 1
    assert "HubError" in run.stderr.splitlines()[-1]
    assert "incomplete: File too large: the cache is where HF_HOME" in run.stderr.splitlines()[-1]
    assert run_python(DOWNLOAD, hub.environment(tmp_path), REPO).returncode == 0
    assert sent(hub) < 2 * size(tmp_path)


def test_a_cache_that_cannot_be_made_is_named(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HubError, match="Not a directory: the cache is where HF_HOME"):
        download(resolve(REPO), cache_dir=tmp_path / "file" / "cache")
