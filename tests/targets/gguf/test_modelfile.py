"""The Modelfile beside the GGUF."""

from __future__ import annotations

import pytest

from converter.checkpoint.opened import open_checkpoint
from converter.errors import UsageError
from targets.gguf import target
from targets.ollama import parse_modelfile


def written(checkpoint, directory, **options):
    plan = target.plan(checkpoint, "m", options)
    target.write(checkpoint, plan, directory)
    path = directory / "ollama" / "Modelfile"
    return path, parse_modelfile(path.read_text(encoding="utf-8"))


def test_it_names_the_gguf_by_a_path_relative_to_itself(checkpoint_factory, tmp_path):
    path, modelfile = written(open_checkpoint(checkpoint_factory("e2b")), tmp_path)
    assert (path.parent / modelfile.model).resolve() == tmp_path / "gguf" / "m-q4_0.gguf"


def test_it_names_the_directory_of_a_split_model(checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("e2b"))
    path, modelfile = written(checkpoint, tmp_path, split_max_size="100K")
    assert (path.parent / modelfile.model).resolve() == tmp_path / "gguf"


def test_system_and_licences_are_kept(checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    _, modelfile = written(
        checkpoint, tmp_path, system='Say "yes".\n', licenses=("Apache-2.0", "Terms:\n..."), num_ctx=1024
    )
    assert modelfile.system == 'Say "yes".\n'
    assert modelfile.licenses == ("Apache-2.0", "Terms:\n...")
    assert ("num_ctx", "1024") in modelfile.parameters


def test_a_system_message_that_cannot_be_quoted_is_refused_by_the_plan(checkpoint_factory):
    with pytest.raises(UsageError, match="SYSTEM cannot be quoted"):
        target.plan(open_checkpoint(checkpoint_factory("text")), "m", {"system": 'a"""\nb "\nc'})
