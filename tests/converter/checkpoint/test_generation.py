"""What ``generation_config.json`` says is read and checked once, when the checkpoint is opened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.checkpoint.directory import Directory
from converter.checkpoint.documents import Documents
from converter.checkpoint.generation import Generation, read_generation
from converter.checkpoint.opened import open_checkpoint, open_description
from converter.errors import CheckpointError


def read(directory: Path, settings: dict[str, object]) -> Generation:
    (directory / "generation_config.json").write_text(json.dumps(settings))
    return read_generation(Documents(Directory(directory)), 100)


def test_without_a_file_nothing_is_asked_for(tmp_path: Path) -> None:
    assert read_generation(Documents(Directory(tmp_path)), 100) == Generation()


def test_every_setting_has_its_place(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        {"temperature": 0.5, "top_k": 3, "min_p": 0.1, "num_beams": 4, "suppress_tokens": [5, 99]},
    )
    assert found == Generation(
        {"temperature": 0.5, "top_k": 3}, {"min_p": 0.1}, (5, 99), ("min_p", "num_beams")
    )
    assert found.limits("t", "Runtime", ("min_p",)) == [
        "t: generation_config.json sets num_beams, which Runtime cannot be told"
    ]
    assert found.limits("t", "Runtime", ("min_p", "num_beams")) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": "hot"}, r"temperature is 'hot', expected a number"),
        ({"temperature": -1}, r"temperature is -1\.0, outside 0\.\.inf"),
        ({"top_p": 1.5}, r"top_p is 1\.5, outside 0\.\.1"),
        ({"min_p": 2}, r"min_p is 2\.0, outside 0\.\.1"),
        ({"suppress_tokens": 5}, "suppress_tokens is not a list of token ids"),
        ({"suppress_tokens": [100]}, "suppress_tokens holds 100, which is no token id"),
        ({"suppress_tokens": [True]}, "suppress_tokens holds True, which is no token id"),
    ],
)
def test_a_damaged_file_is_refused_at_opening(
    settings: dict[str, object], message: str, tmp_path: Path, checkpoint_factory: Callable[..., Path]
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, settings)
    model = shutil.copytree(checkpoint_factory("text"), tmp_path / "model")
    values = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(
        json.dumps({**values, **settings}).replace("100", "100000000")
    )
    for opening in (open_checkpoint, open_description):
        with pytest.raises(CheckpointError, match=rf"generation_config\.json: {next(iter(settings))}"):
            opening(model)
