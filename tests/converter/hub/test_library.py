"""What huggingface_hub leaves to this project: each test fails once the library can do it.

Beside each stands what this project does in the same place, with the same server.
"""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from converter.errors import HubError
from converter.hub import connection, download
from converter.names import resolve
from support.hub_model import DOWNLOAD, REPO, run_python, use_only, write_model
from support.hub_server import HubServer

pytestmark = pytest.mark.slow

WEIGHTS = "model.safetensors"
DROP = 100_003
FETCH = f"import sys, huggingface_hub as hub; print(hub.hf_hub_download(sys.argv[1], '{WEIGHTS}'))"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    repository = write_model(tmp_path / "repository", sharded=False, rows=256)
    with HubServer({REPO: repository}) as server:
        use_only(server, tmp_path, monkeypatch)
        yield server
        server.drip_after.clear()


def whole(tmp_path: Path) -> bytes:
    return (tmp_path / "repository" / WEIGHTS).read_bytes()


def ranges(hub: HubServer) -> list[str | None]:
    return [request.headers.get("range") for request in hub.asked_for(WEIGHTS)]


def killed_halfway(hub: HubServer, folder: Path, code: str) -> None:
    """Run `code` until the weights have begun to arrive, and kill it."""
    hub.requests.clear()
    hub.drip_after[WEIGHTS] = DROP
    with subprocess.Popen([sys.executable, "-c", code, REPO], env=hub.environment(folder)) as process:
        try:
            deadline = time.monotonic() + 30
            while not hub.asked_for(WEIGHTS) and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.5)  # which is time for many times the bytes before the drip
        finally:
            process.send_signal(signal.SIGKILL)
    assert ranges(hub) == [None]
    hub.drip_after.clear()
    hub.requests.clear()


def test_the_library_begins_a_killed_download_anew(hub: HubServer, tmp_path: Path) -> None:
    killed_halfway(hub, tmp_path, FETCH)
    assert run_python(FETCH, hub.environment(tmp_path), REPO).returncode == 0
    assert ranges(hub) == [None]
    killed_halfway(hub, tmp_path / "ours", DOWNLOAD)
    assert run_python(DOWNLOAD, hub.environment(tmp_path / "ours"), REPO).returncode == 0
    (asked,) = ranges(hub)
    assert asked is not None
    assert int(asked.removeprefix("bytes=").rstrip("-")) > 10**4


def test_the_library_takes_content_that_has_another_digest(hub: HubServer, tmp_path: Path) -> None:
    hub.corrupt.add(WEIGHTS)
    taken = Path(run_python(FETCH, hub.environment(tmp_path), REPO).stdout.strip())
    assert taken.read_bytes() != whole(tmp_path)
    with pytest.raises(HubError, match=f"{WEIGHTS}: .* digest"):
        download(resolve(REPO), cache_dir=tmp_path / "ours")


def test_the_library_appends_another_part_than_it_asked_for(hub: HubServer, tmp_path: Path) -> None:
    from huggingface_hub.file_download import http_get

    hub.shift_ranges.add(WEIGHTS)
    stream = io.BytesIO(whole(tmp_path)[:DROP])
    stream.seek(DROP)
    http_get(f"{hub.endpoint}/{REPO}/resolve/main/{WEIGHTS}", stream, resume_size=DROP)
    assert stream.getvalue() != whole(tmp_path)
    hub.drop_after[WEIGHTS] = DROP
    with pytest.raises(HubError, match=f"{WEIGHTS}: the server answers with another part of the file"):
        download(resolve(REPO), waits=(0.0,))


def test_the_library_sleeps_as_long_as_a_server_says(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import _http

    asked: list[float] = []

    class Clock:
        """Notes how long it should be slept, and does not."""

        def sleep(self, seconds: float) -> None:
            asked.append(seconds)

    hub.retry_after = "86400"
    hub.failing[f"/{WEIGHTS}"] = (429, 1)
    monkeypatch.setattr(_http, "time", Clock())
    http_get(f"{hub.endpoint}/{REPO}/resolve/main/{WEIGHTS}", io.BytesIO())
    assert max(asked) > 86400
    hub.failing[f"/{WEIGHTS}"] = (429, 1)
    monkeypatch.setattr(connection, "_LONGEST_WAIT", 0.2)
    begin = time.monotonic()
    assert (download(resolve(REPO), waits=(0.0,)).path / WEIGHTS).read_bytes() == whole(tmp_path)
    assert time.monotonic() - begin > 0.2


def test_the_library_reads_a_listing_of_any_length(hub: HubServer) -> None:
    from huggingface_hub import HfApi

    hub.edit_listing = lambda listing: b" " * (65 << 20) + json.dumps(listing).encode()
    assert HfApi(hub.endpoint).model_info(REPO, files_metadata=True).sha == hub.commit(REPO)
    with pytest.raises(HubError, match="the list of the repository's files is too long to be one"):
        download(resolve(REPO))


@pytest.mark.parametrize("lacking", [{"queries"}, {"revision"}, {"model", "revision"}])
def test_the_library_lists_no_files_of_a_server_that_speaks_less(hub: HubServer, lacking: set[str]) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub.without |= lacking | {"codes"}
    with pytest.raises(HfHubHTTPError):
        HfApi(hub.endpoint).model_info(REPO, revision="main", files_metadata=True)
    assert download(resolve(REPO)).revision == hub.commit(REPO)


def test_the_library_takes_xet_where_it_is_offered(hub: HubServer, tmp_path: Path) -> None:
    """This project does not: what arrived over Xet is neither resumed nor compared with the SHA-256."""
    pytest.importorskip("hf_xet")
    hub.xet = True
    environment = hub.environment(tmp_path)
    theirs = run_python(FETCH, environment, REPO)
    assert theirs.returncode != 0  # the server has no storage of that kind
    assert any("/xet-read-token/" in request.path for request in hub.requests)
    hub.requests.clear()
    code = f"{DOWNLOAD}; print('hf_xet' in sys.modules, snapshot.path)"
    ours = run_python(code, environment, REPO)
    imported, path = ours.stdout.split()
    assert imported == "False"
    assert (Path(path) / WEIGHTS).read_bytes() == whole(tmp_path)
    assert not any("/xet-read-token/" in request.path for request in hub.requests)


def test_xet_is_not_taken_from_a_server_that_lists_only_names(hub: HubServer, tmp_path: Path) -> None:
    hub.xet = True
    hub.without |= {"blobs", "tree"}
    snapshot = download(resolve(REPO))
    assert (snapshot.path / WEIGHTS).read_bytes() == whole(tmp_path)
    assert snapshot.checks[WEIGHTS].kind == "sha256"
    assert not any("/xet-read-token/" in request.path for request in hub.requests)
