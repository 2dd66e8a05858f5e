"""``qatconvert modelfile``: printed or written, of a checkpoint or of a GGUF."""

from __future__ import annotations

from pathlib import Path

import pytest

from targets.ollama import parse_modelfile


@pytest.fixture
def gguf(qatconvert, checkpoint_factory, tmp_path) -> Path:
    out = tmp_path / "out"
    assert qatconvert(checkpoint_factory("text"), "--no-validate", "-o", out).returncode == 0
    return next((out / "gguf").iterdir())


def test_a_checkpoints_modelfile_has_what_ollama_needs(qatconvert):
    done = qatconvert("modelfile", "gemma4-demo")
    assert done.returncode == 0
    found = parse_modelfile(done.stdout)
    assert found.model == "../gguf/gemma4-demo-q4_0.gguf"
    assert (found.renderer, found.parser, found.requires) == ("gemma4-small", "gemma4", "0.21.0")
    parameters = dict(found.parameters)
    assert float(parameters["temperature"]) == 1.0
    assert float(parameters["top_p"]) == 0.95
    assert int(parameters["top_k"]) == 64
    assert parameters["stop"] == "<turn|>"
    assert int(parameters["num_ctx"]) > 0


def test_texts_with_quotes_and_newlines_come_back_as_they_were(qatconvert, tmp_path):
    licence = tmp_path / "LICENSE"
    licence.write_text('Line one\n"quoted" """thrice"\n')
    system = "Say \"yes\"\nor 'no' # always "
    done = qatconvert("modelfile", "gemma4-demo", "--system", system, "--license", licence, "--num-ctx", 2048)
    found = parse_modelfile(done.stdout)
    assert found.system == system
    assert found.licenses == (licence.read_text(),)
    assert dict(found.parameters)["num_ctx"] == "2048"


def test_a_gguf_is_named_relative_to_the_modelfile(qatconvert, gguf, tmp_path):
    target = tmp_path / "ollama" / "Modelfile"
    done = qatconvert("modelfile", gguf, "-o", target)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    model = parse_modelfile(target.read_text()).model
    assert (target.parent / model).resolve() == gguf.resolve()


def test_an_existing_modelfile_is_refused_without_force(qatconvert, tmp_path):
    target = tmp_path / "Modelfile"
    target.write_text("mine")
    done = qatconvert("modelfile", "gemma4-demo", "-o", target)
    assert done.returncode == 1
    assert "--force" in done.stderr
    assert target.read_text() == "mine"
    assert qatconvert("modelfile", "gemma4-demo", "-o", target, "--force").returncode == 0
    assert target.read_text().startswith("FROM ")


def test_a_damaged_gguf_is_one_line(qatconvert, gguf):
    damaged = gguf.with_name("damaged.gguf")
    damaged.write_bytes(gguf.read_bytes()[:200])
    done = qatconvert("modelfile", damaged)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "damaged.gguf" in done.stderr
