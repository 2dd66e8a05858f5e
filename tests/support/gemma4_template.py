"""Google's own chat template of Gemma 4, from the source archive of llama-cpp-python; it is not committed."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from validation.reference.logits import default_cache

#: A later archive may have another template; this one is what the tests were written with.
PACKAGE = "llama-cpp-python==0.3.36"
_MEMBER = "vendor/llama.cpp/models/templates/google-gemma-4-31B-it.jinja"
_SECONDS = 120


def gemma4_template() -> str:
    """The template; the test is skipped where the archive cannot be downloaded."""
    kept = default_cache().parent / "tests" / "google-gemma-4-31B-it.jinja"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as directory:
            unfinished = Path(directory) / kept.name
            unfinished.write_bytes(_downloaded(Path(directory)))
            unfinished.replace(kept)
    return kept.read_text("utf-8")


def _downloaded(directory: Path) -> bytes:
    name = PACKAGE.partition("==")[0]
    options = ["--quiet", "--no-deps", "--retries", "0", "--no-binary", name, "--dest", str(directory)]
    command = [sys.executable, "-m", "pip", "download", *options, PACKAGE]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
        (archive,) = directory.glob("*.tar.gz")
    except (OSError, subprocess.SubprocessError, ValueError):
        pytest.skip(f"the source archive of {PACKAGE} cannot be downloaded")
    with tarfile.open(archive) as files:
        member = next(one for one in files if one.name.endswith(_MEMBER))
        stream = files.extractfile(member)
        assert stream is not None
        return stream.read()
