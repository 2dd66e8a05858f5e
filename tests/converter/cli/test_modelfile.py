"""``qatconvert modelfile``: printed or written, of a checkpoint or of a GGUF."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from dataclasses import replace
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
    assert (found.renderer, found.parser, found.requires) == ("gemma4-small", "gemma4", "0.30.0")
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


def test_a_printed_modelfile_names_its_gguf_from_anywhere(qatconvert, gguf, tmp_path):
    done = qatconvert("modelfile", os.path.relpath(gguf, tmp_path / "work"))
    assert parse_modelfile(done.stdout).model == str(gguf.absolute())
    assert "#" not in done.stdout


def test_where_no_gguf_is_yet_it_says_where_its_path_holds(qatconvert):
    first, second, *_ = qatconvert("modelfile", "gemma4-demo").stdout.splitlines()
    assert first == "FROM ../gguf/gemma4-demo-q4_0.gguf"
    assert second.startswith("# ")
    assert "OUTPUT/ollama/Modelfile" in second
    assert "--from" in second
    given = qatconvert("modelfile", "gemma4-demo", "--from", "/models/demo.gguf").stdout
    assert given.startswith("FROM /models/demo.gguf\nRENDERER ")


def test_the_path_has_the_type_of_most_bytes(qatconvert, checkpoint_factory, tmp_path):
    def path(model):
        return parse_modelfile(qatconvert("modelfile", model).stdout).model

    for options in ({}, {"shards": 2}):
        model = checkpoint_factory("text", "latent", **options)
        assert path(model) == f"../gguf/{model.name}-q8_0.gguf"
    (tmp_path / "m").mkdir()
    for file in model.iterdir():
        if file.name != "model-00002-of-00002.safetensors":
            (tmp_path / "m" / file.name).symlink_to(file)
    assert path(tmp_path / "m") == "../gguf/m-q4_0.gguf"


@pytest.mark.parametrize(
    ("variant", "generation", "split"),
    [
        ("e2b", {"temperature": 0.3, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1}, False),
        ("e2b", {"do_sample": False, "eos_token_id": [1, 16, 17]}, True),
        ("26b-a4b", {}, True),
        ("gemma3", {"top_p": 0.8, "eos_token_id": 1}, False),
    ],
)
def test_a_gguf_says_what_its_checkpoint_said(
    variant, generation, split, qatconvert, checkpoint_factory, tmp_path
):
    model = shutil.copytree(checkpoint_factory(variant), tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps(generation))
    options = ["--split-max-size", "100K"] if split else []
    done = qatconvert(model, "--target", "gguf", "--no-validate", "-o", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    file = min((tmp_path / "out" / "gguf").iterdir())
    ours = parse_modelfile((tmp_path / "out" / "ollama" / "Modelfile").read_text())
    theirs = parse_modelfile(qatconvert("modelfile", file).stdout)
    assert theirs.model == str(file.parent if split else file)
    assert replace(theirs, model=ours.model) == ours


def test_a_gguf_whose_sampling_is_no_number_is_one_line(qatconvert, gguf):
    data = gguf.read_bytes()
    place = data.index(b"general.sampling.temp") + len(b"general.sampling.temp") + 4
    damaged = gguf.with_name("damaged.gguf")
    damaged.write_bytes(data[:place] + struct.pack("<f", math.nan) + data[place + 4 :])
    done = qatconvert("modelfile", damaged)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("general.sampling.temp is nan, expected a number")


def test_a_licence_with_other_spaces_does_not_stop_it(qatconvert, tmp_path):
    licence = tmp_path / "LICENSE"
    licence.write_text("\u00a9\u00a02026\u200b\f\n", encoding="utf-8")
    done = qatconvert("modelfile", "gemma4-demo", "--license", licence)
    assert done.returncode == 0
    assert parse_modelfile(done.stdout).licenses == ("\u00a9 2026\n",)
    assert "Ollama drops" in done.stderr


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
