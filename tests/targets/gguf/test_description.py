"""What a GGUF says of its model, and what its file is called."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import xllamacpp
from transformers import AutoTokenizer

from converter.checkpoint.card import Card
from converter.checkpoint.opened import open_checkpoint
from targets.gguf import target
from targets.gguf.header import Header

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "support" / "llama_process.py"


def written(checkpoint, directory, name="model", **options):
    plan = target.plan(checkpoint, name, options)
    target.write(checkpoint, plan, directory)
    return plan, directory / plan.artifacts[0]


def values(artifact):
    return {name: field.contents() for name, field in gguf.GGUFReader(artifact).fields.items()}


@pytest.fixture
def checkpoint(checkpoint_factory):
    return open_checkpoint(checkpoint_factory("text"))


def test_the_model_card_is_told(checkpoint, tmp_path):
    card = Card(
        license="other",
        license_name="gemma",
        license_link="https://ai.google.dev/gemma/terms",
        languages=("en", "de"),
        tags=("qat", "text-generation"),
        base_models=("google/gemma-4-E2B-it", "https://example.org/x", "mine", "a/b-1.5"),
    )
    found = values(written(replace(checkpoint, card=card), tmp_path)[1])
    assert {key: value for key, value in found.items() if "base_model" in key or "license" in key} == {
        "general.license": "other",
        "general.license.name": "gemma",
        "general.license.link": "https://ai.google.dev/gemma/terms",
        "general.base_model.count": 4,
        "general.base_model.0.name": "Gemma 4 E2B It",
        "general.base_model.0.organization": "Google",
        "general.base_model.0.repo_url": "https://huggingface.co/google/gemma-4-E2B-it",
        "general.base_model.1.repo_url": "https://example.org/x",
        "general.base_model.2.name": "mine",
        "general.base_model.3.name": "B 1.5",
        "general.base_model.3.organization": "A",
        "general.base_model.3.version": "1.5",
        "general.base_model.3.repo_url": "https://huggingface.co/a/b-1.5",
    }
    assert found["general.languages"] == ["en", "de"]
    assert found["general.tags"] == ["qat", "text-generation"]


@pytest.mark.parametrize(
    ("name", "repo", "own", "title"),
    [
        ("gemma4-demo", None, None, "Gemma4 Demo"),
        ("gemma4-e2b", "google/gemma-4-E2B-it-qat-q4_0-unquantized", None, None),
        ("mine", "a/b", "Of the card", "Of the card"),
        ("phi-3-like", None, None, "Phi 3 Like"),
        ("model", "a/phi3-gemma", None, "Model"),  # llama.cpp would take spaces from tokens
        ("phi3", None, "Modern-BERT", "Gemma"),
    ],
)
def test_the_name_is_readable(name, repo, own, title, checkpoint, tmp_path):
    options = {"repo": repo} if repo else {}
    described = replace(checkpoint, card=Card(name=own))
    found = values(written(described, tmp_path, name, **options)[1])["general.name"]
    # gguf-py's own rule
    assert found == (title or gguf.Metadata.id_to_title(str(repo).partition("/")[2]))


@pytest.mark.parametrize("variant", ["e2b", "26b-a4b", "gemma3"])
def test_the_size_is_what_gguf_py_computes(variant, checkpoint_factory, convert):
    artifact = convert(checkpoint_factory(variant)).artifact
    header = Header(None, "gemma4")
    for tensor in gguf.GGUFReader(artifact).tensors:
        header.add_tensor_info(tensor.name, tuple(reversed(tensor.shape.tolist())), np.float32, 0)
    expected = gguf.size_label(*header.get_total_parameter_count())
    assert values(artifact)["general.size_label"] == expected
    assert ("x" in expected) == (variant == "26b-a4b")


def test_sampling_and_mask_token_without_generation_config(checkpoint_factory, tmp_path):
    model = shutil.copytree(checkpoint_factory("text"), tmp_path / "model")
    (model / "generation_config.json").unlink()
    opened = open_checkpoint(model)
    found = values(written(opened, tmp_path / "out")[1])
    assert found["general.sampling.temp"] == 1.0
    assert found["general.sampling.top_p"] == pytest.approx(0.95)
    assert found["general.sampling.top_k"] == 64
    assert opened.tokenizer.tokens[found["tokenizer.ggml.mask_token_id"]] == "<mask>"


def test_a_mask_token_that_is_not_named_is_not_written(checkpoint, tmp_path):
    nameless = replace(checkpoint, tokenizer=replace(checkpoint.tokenizer, mask=None))
    assert "tokenizer.ggml.mask_token_id" not in values(written(nameless, tmp_path)[1])


@pytest.mark.parametrize(
    ("variant", "scheme", "off_lattice", "suffix", "type"),
    [
        ("text", "max7", "q8_0", "q4_0", "MOSTLY_Q4_0"),
        ("e2b", "max7", "f32", "q4_0", "MOSTLY_Q4_0"),
        ("text", "latent", "q8_0", "q8_0", "MOSTLY_Q8_0"),
        ("text", "latent", "bf16", "bf16", "MOSTLY_BF16"),
        ("text", "latent", "f16", "f16", "MOSTLY_F16"),
        ("text", "latent", "q4_0", "q4_0", "MOSTLY_Q4_0"),
        ("text", "latent", "f32", "f32", "ALL_F32"),
    ],
)
def test_the_file_is_named_after_the_type_of_most_bytes(
    variant, scheme, off_lattice, suffix, type, checkpoint_factory, tmp_path
):
    opened = open_checkpoint(checkpoint_factory(variant, scheme))
    plan, artifact = written(opened, tmp_path, off_lattice=off_lattice)
    assert plan.artifacts == (f"gguf/model-{suffix}.gguf",)
    assert values(artifact)["general.file_type"] == gguf.LlamaFileType[type]
    assert (tmp_path / "ollama" / "Modelfile").read_text().startswith(f"FROM ../gguf/model-{suffix}.gguf\n")
    inferred = target.infer_options(artifact, opened)
    assert inferred["name"] == "model"
    assert target.differences(artifact, opened, target.plan(opened, "model", inferred)) == []


def test_the_first_versions_that_run_it_are_told(checkpoint_factory):
    def requires(variant):
        plan = target.plan(open_checkpoint(checkpoint_factory(variant)), "m", {})
        assert plan.as_dict()["requires"] == plan.requires
        return plan.requires

    assert requires("e2b") == {"llama.cpp": "b8665", "ollama": "0.30.0"}
    assert requires("gemma3") == {"llama.cpp": "b8665"}  # merges that scores do not describe


def loaded(artifact, text="a"):
    """What llama.cpp says when it loads a file, and its tokens of a text with those that it adds."""
    request = f'{{"path": "{artifact}", "texts": ["{text}"], "run": false}}'
    done = subprocess.run([sys.executable, SCRIPT], input=request, capture_output=True, text=True, check=True)
    return done.stderr, done.stdout


def test_llama_cpp_loads_it_without_a_word_about_the_begin_token(checkpoint, tmp_path):
    artifact = written(checkpoint, tmp_path)[1]
    said, answer = loaded(artifact)
    assert "add_bos_token' to 'true'" not in said
    assert f'"ids": [[{checkpoint.tokenizer.bos}, ' in answer
    key = b"tokenizer.ggml.add_bos_token" + (7).to_bytes(4, "little")
    data = artifact.read_bytes()
    assert key + b"\x01" in data
    artifact.write_bytes(data.replace(key + b"\x01", key + b"\x00"))
    assert "add_bos_token' to 'true'" in loaded(artifact)[0]


def test_a_chat_has_one_begin_token_in_llama_cpps_server(demo_checkpoint, tmp_path):
    artifact = written(open_checkpoint(demo_checkpoint), tmp_path)[1]
    params = xllamacpp.CommonParams()
    params.model.path = os.fspath(artifact)
    params.n_ctx = 256
    params.cpuparams.n_threads = 1
    chat = [{"role": "user", "content": "What is a list?"}]
    answer = xllamacpp.Server(params).handle_chat_completions(
        # the server turns thinking on by itself
        {"messages": chat, "max_tokens": 1, "chat_template_kwargs": {"enable_thinking": False}}
    )
    tokenizer = AutoTokenizer.from_pretrained(demo_checkpoint)
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert answer["usage"]["prompt_tokens"] == len(ids)
