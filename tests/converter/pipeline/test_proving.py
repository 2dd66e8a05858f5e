"""The reference that is computed while artifacts are written, given up with the conversion."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from converter.errors import DestinationError
from converter.pipeline.opening import open_model
from converter.pipeline.proving import Proving, prepared_for, reference_ahead
from converter.system.digests import Digests
from converter.system.progress import no_progress


def test_an_error_while_artifacts_are_written_waits_for_no_digests(
    checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    model = open_model(str(checkpoint_factory("text")))
    others = [tmp_path / "one", tmp_path / "other"]
    for path in others:
        with path.open("wb") as file:
            file.truncate(1 << 34)  # without content, and a minute of work for both threads
    settings = {"positions": 64, "cache": tmp_path / "cache"}
    with closing(Digests()) as digests, prepared_for(model, settings, [], None, no_progress) as prepared:
        digests.add(others)
        digests.add(model.checkpoint.files)
        proving = Proving(prepared, model, digests, no_progress)
        began = time.monotonic()
        with pytest.raises(DestinationError, match="no room"), reference_ahead(proving):
            raise DestinationError("no room")
        assert time.monotonic() - began < 10
