"""Bringing a model from the Hub: this project's transfer beside huggingface_hub's, over HTTP and over Xet.

Serves random shards on this machine: as files, and as xorbs by Xet's protocol
(https://huggingface.co/docs/xet). Each way is a process of its own with an empty cache, in turn: its seconds
and its peak of memory, and the seconds of a pass of SHA-256 over the files, which this project alone has done
by then. "Xet streams" is hf_xet without huggingface_hub: its streams can begin at any byte. After that each
is killed half-way and run again, which shows how much is fetched twice; and each is given one wrong bit,
which shows who notices.

    python benchmarks/hub_transfer.py [--shards 4] [--size 512] [--runs 3] [--rate 0] [--earlier DIR]
        [--directory DIR]

Sizes are in MiB; ``--rate`` bounds each connection to as many MiB/s, as a distant server does.
``--earlier`` has another copy of this project's sources measured too. The disk needs room for three times the
files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

REPO = "owner/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MIB = 1 << 20
BLOCK = 1 << 18
#: A chunk of Xet's is 8 to 128 KiB, 64 on average, after a header of 8 bytes; a xorb is 64 MiB at most.
CHUNK, HEADER, CHUNKS = 1 << 16, 8, 1000
XORB = CHUNK * CHUNKS

OWN = f"""from converter.hub import download; from converter.names import resolve
folder = download(resolve('{REPO}')).path"""
LIBRARY = f"from huggingface_hub import snapshot_download\nfolder = snapshot_download('{REPO}')"
STREAMS = f"""import os, pathlib, hf_xet
from concurrent.futures import ThreadPoolExecutor
from huggingface_hub import HfApi, constants, get_session
folder = pathlib.Path(constants.HF_HOME)
folder.mkdir(exist_ok=True)
address = constants.ENDPOINT + '/api/models/{REPO}/xet-read-token/{COMMIT}'
headers = get_session().get(address).headers
group = hf_xet.XetSession().new_download_stream_group(
    endpoint=headers['X-Xet-Cas-Url'],
    token=headers['X-Xet-Access-Token'],
    token_expiry_unix_secs=int(headers['X-Xet-Token-Expiration']),
)
def bring(file):
    with open(folder / file.path, 'ab') as stream:
        if stream.tell() < file.size:
            info = hf_xet.XetFileInfo(file.xet_hash, file.size)
            for piece in group.download_stream(info, start=stream.tell()):
                stream.write(piece)
with ThreadPoolExecutor(4) as threads:
    list(threads.map(bring, [file for file in HfApi().list_repo_tree('{REPO}') if file.xet_hash]))"""
MEASURE = """
import hashlib, json, pathlib, resource, time
from concurrent.futures import ThreadPoolExecutor
begin = time.perf_counter()
{download}
taken = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def digest(path):
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
begin = time.perf_counter()
with ThreadPoolExecutor(4) as threads:
    digests = list(threads.map(digest, sorted(pathlib.Path(folder).glob("*.safetensors"))))
hashing = time.perf_counter() - begin
print(json.dumps({{"seconds": taken, "MiB": peak, "hashing": hashing, "digests": digests}}))
"""


@dataclass(frozen=True)
class Way:
    """A way to download: code, and the directory that it runs in."""

    name: str
    code: str
    directory: Path = Path(__file__).parents[1]


@dataclass(frozen=True)
class Shard:
    """A file of random bytes, plain and as a sequence of uncompressed chunks; `key` is its hash of Xet's."""

    name: str
    path: Path
    chunks: Path
    size: int
    sha256: str
    key: str

    def flip(self) -> None:
        """Change one bit in the middle, in both; again, and it is as before."""
        at = self.size // 2
        for path, offset in ((self.path, at), (self.chunks, at + HEADER * (at // CHUNK + 1))):
            with path.open("r+b") as stream:
                stream.seek(offset)
                byte = stream.read(1)[0]
                stream.seek(offset)
                stream.write(bytes([byte ^ 1]))


def make_shards(folder: Path, count: int, size: int) -> list[Shard]:
    """Write `count` files of `size` bytes, a multiple of a chunk."""
    shards = []
    for number in range(1, count + 1):
        name = f"model-{number:05}-of-{count:05}.safetensors"
        path, chunks = folder / name, folder / f"{name}.chunks"
        digest = hashlib.sha256()
        with path.open("wb") as plain, chunks.open("wb") as framed:
            for _ in range(size // CHUNK):
                data = os.urandom(CHUNK)
                length = CHUNK.to_bytes(3, "little")
                digest.update(data)
                plain.write(data)
                framed.write(b"\0" + length + b"\0" + length + data)
        shards.append(Shard(name, path, chunks, size, digest.hexdigest(), f"{number:064x}"))
    return shards


class Server(ThreadingHTTPServer):
    """A Hub and its storage at one address; `sent` counts the bytes of weights."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, shards: list[Shard], rate: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.shards = {shard.name: shard for shard in shards}
        self.rate = rate
        self.sent = 0
        self.lock = threading.Lock()
        self.address = f"http://127.0.0.1:{self.server_port}"
        weight_map = {f"weight.{number}": shard.name for number, shard in enumerate(shards)}
        index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
        self.small = {"config.json": b"{}", "model.safetensors.index.json": index}

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is part of the measurement."""


class _Handler(BaseHTTPRequestHandler):
    """What huggingface_hub, hf_xet and this project ask."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith(f"/api/models/{REPO}/revision/"):
            self.json({"id": REPO, "sha": COMMIT, "siblings": list(self.siblings())})
        elif path.startswith(f"/api/models/{REPO}/tree/"):
            self.json(list(self.tree()))
        elif path.startswith(f"/api/models/{REPO}/xet-read-token/"):
            expires = str(int(time.time()) + 3600)
            names = {"Cas-Url": self.server.address, "Access-Token": "xet", "Token-Expiration": expires}
            self.json({}, {f"X-Xet-{name}": value for name, value in names.items()})
        elif path.startswith(f"/{REPO}/resolve/"):
            self.resolve(path.rsplit("/", 1)[-1])
        elif path.startswith("/v1/reconstructions/"):
            self.reconstruction(path.rsplit("/", 1)[-1])
        elif path.startswith("/xorb/"):
            name, number = path.split("/")[2:]
            chunks = self.server.shards[name].chunks
            begin = int(number) * (CHUNK + HEADER) * CHUNKS
            self.content(chunks, begin, min((CHUNK + HEADER) * CHUNKS, chunks.stat().st_size - begin), {})
        else:
            self.answer(404)

    def siblings(self) -> Iterator[dict[str, object]]:
        for name, content in self.server.small.items():
            yield {"rfilename": name, "size": len(content), "blobId": git_name(content)}
        for shard in self.server.shards.values():
            large = {"sha256": shard.sha256, "size": shard.size, "pointerSize": 134}
            yield {"rfilename": shard.name, "size": shard.size, "blobId": "0" * 40, "lfs": large}

    def tree(self) -> Iterator[dict[str, object]]:
        for name, content in self.server.small.items():
            yield {"type": "file", "path": name, "size": len(content), "oid": git_name(content)}
        for shard in self.server.shards.values():
            large = {"oid": shard.sha256, "size": shard.size, "pointerSize": 134}
            entry = {"type": "file", "path": shard.name, "size": shard.size, "oid": "0" * 40, "lfs": large}
            yield {**entry, "xetHash": shard.key}

    def resolve(self, name: str) -> None:
        commit = {"X-Repo-Commit": COMMIT}
        if content := self.server.small.get(name):
            self.answer(200, {**commit, "ETag": f'"{git_name(content)}"'}, content)
        elif shard := self.server.shards.get(name):
            route = f"{self.server.address}/api/models/{REPO}/xet-read-token/{COMMIT}"
            xet = {"X-Xet-Hash": shard.key, "Link": f'<{route}>; rel="xet-auth"'}
            self.content(shard.path, 0, shard.size, {**commit, **xet, "ETag": f'"{shard.sha256}"'})
        else:
            self.answer(404, {"X-Error-Code": "EntryNotFound"})

    def reconstruction(self, key: str) -> None:
        shard = next(shard for shard in self.server.shards.values() if shard.key == key)
        first, last = self.range(shard.size)
        if first >= shard.size:
            return self.answer(416)
        terms, fetch = [], {}
        for number in range(first // XORB, last // XORB + 1):
            length = min(XORB, shard.size - number * XORB)
            xorb = f"{shard.key[-8:]:0>48}{number:016x}"
            chunks = {"start": 0, "end": length // CHUNK}
            terms.append({"hash": xorb, "unpacked_length": length, "range": chunks})
            url = f"{self.server.address}/xorb/{shard.name}/{number}"
            stored = {"start": 0, "end": length // CHUNK * (CHUNK + HEADER) - 1}
            fetch[xorb] = [{"range": chunks, "url": url, "url_range": stored}]
        self.json({"offset_into_first_range": first % XORB, "terms": terms, "fetch_info": fetch})

    def range(self, size: int) -> tuple[int, int]:
        """The first and the last byte that are asked for."""
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if found is None:
            return 0, size - 1
        return int(found[1]), min(int(found[2] or size - 1), size - 1)

    def content(self, path: Path, begin: int, size: int, headers: Mapping[str, str]) -> None:
        first, last = self.range(size)
        partial = "Range" in self.headers
        ranged = {"Content-Range": f"bytes {first}-{last}/{size}"} if partial else {}
        length = {"Content-Length": str(last - first + 1), "Accept-Ranges": "bytes"}
        self.answer(206 if partial else 200, {**headers, **ranged, **length})
        if self.command == "HEAD":
            return
        started, done = time.perf_counter(), 0
        with path.open("rb") as stream:
            while done <= last - first:
                count = min(BLOCK, last - first + 1 - done)
                self.connection.sendfile(stream, begin + first + done, count)
                done += count
                with self.server.lock:
                    self.server.sent += count
                if self.server.rate:
                    ahead = done / (self.server.rate * MIB) - (time.perf_counter() - started)
                    time.sleep(max(0.0, ahead))

    def json(self, document: object, headers: Mapping[str, str] | None = None) -> None:
        self.answer(
            200, {**(headers or {}), "Content-Type": "application/json"}, json.dumps(document).encode()
        )

    def answer(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def git_name(content: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def begun(way: Way, server: Server, home: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that downloads the model in one of the ways."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    own = {
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "0" if way.name == "hub, Xet" else "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_XET_CLIENT_RECONSTRUCTION_API_VERSION": "1",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-c", MEASURE.format(download=way.code)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=way.directory, env=kept | own, stdout=pipe, stderr=pipe, text=True
    ) as process:
        yield process


def result(way: Way, server: Server, home: Path) -> dict[str, object] | None:
    """What a download measured; None if it failed."""
    with begun(way, server, home) as process:
        output, errors = process.communicate()
    if process.returncode:
        print(f"  {way.name}: {errors.strip().splitlines()[-1][:200]}")
        return None
    return json.loads(output.splitlines()[-1])


def compare(ways: Sequence[Way], server: Server, folder: Path, runs: int) -> None:
    """Run the ways in turn and print medians."""
    found: dict[Way, list[dict[str, object]]] = {way: [] for way in ways}
    for _ in range(runs):
        for way in ways:
            one = result(way, server, folder / "home")
            shutil.rmtree(folder / "home")
            if one is not None:
                assert one["digests"] == [shard.sha256 for shard in server.shards.values()]
                found[way].append(one)
    total = sum(shard.size for shard in server.shards.values()) / MIB
    print(f"{total:.0f} MiB in {len(server.shards)} shards, {runs} runs in turn, medians")
    print(f"{'':<12}{'seconds':>9}{'MiB/s':>9}{'SHA-256':>9}{'peak MiB':>10}   all runs")
    for way, ones in found.items():
        if not ones:
            continue
        taken, hashing, peak = (median(one[key] for one in ones) for key in ("seconds", "hashing", "MiB"))
        every = " ".join(f"{one['seconds']:.1f}" for one in ones)
        print(f"{way.name:<12}{taken:>9.2f}{total / taken:>9.0f}{hashing:>9.2f}{peak:>10.0f}   {every}")


def resume(ways: Sequence[Way], server: Server, folder: Path) -> None:
    """Kill each way half-way, run it again and print what was sent the second time."""
    total = sum(shard.size for shard in server.shards.values())
    for way in ways:
        server.sent = 0
        with begun(way, server, folder / "home") as process:
            while process.poll() is None and server.sent < total // 2:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        time.sleep(1)  # what is still under way fails
        first, server.sent = server.sent, 0
        one = result(way, server, folder / "home")
        whole = one is not None and one["digests"] == [s.sha256 for s in server.shards.values()]
        again = f"{server.sent / total:.0%} sent again, {'whole' if whole else 'NOT whole'}"
        print(f"{way.name:<12} killed after {first / total:.0%}: {again}")
        shutil.rmtree(folder / "home")


def damage(ways: Sequence[Way], server: Server, folder: Path) -> None:
    """Serve one wrong bit and print who took it."""
    shard = next(iter(server.shards.values()))
    shard.flip()
    for way in ways:
        one = result(way, server, folder / "home")
        print(f"{way.name:<12} one wrong bit: {'refused' if one is None else 'taken for the model'}")
        shutil.rmtree(folder / "home")
    shard.flip()


def main() -> None:
    """Make the shards, serve them, measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--earlier", type=Path)
    parser.add_argument("--directory", type=Path)
    given = parser.parse_args()
    ways = [Way("qatconvert", OWN), Way("hub, HTTP", LIBRARY), Way("hub, Xet", LIBRARY)]
    ways.append(Way("Xet streams", STREAMS))
    if given.earlier:
        ways.insert(1, Way("earlier", OWN, given.earlier.absolute()))
    with tempfile.TemporaryDirectory(dir=given.directory) as name:
        folder = Path(name)
        server = Server(make_shards(folder, given.shards, given.size * MIB), given.rate)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        compare(ways, server, folder, given.runs)
        resume(ways, server, folder)
        damage(ways, server, folder)
        server.shutdown()


if __name__ == "__main__":
    main()
