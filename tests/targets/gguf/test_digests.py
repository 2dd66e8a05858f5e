"""The bytes of GGUF files stay what they are, whatever becomes of the code that writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from digests import CASES, OPTIONS, digests, write_case

pytestmark = pytest.mark.slow

KNOWN = json.loads(Path(__file__).with_name("gguf_digests.json").read_text("utf-8"))["gguf"]


@pytest.mark.parametrize("name", ["demo", *CASES])
def test_files_have_the_bytes_that_they_had(name: str, tmp_path: Path) -> None:
    model = write_case(name, tmp_path)
    for index, options in enumerate(OPTIONS["gguf"]):
        scratch = tmp_path / str(index)
        scratch.mkdir()
        assert digests(model, name, "gguf", options, scratch) == KNOWN[name][json.dumps(options)]
