"""What a GGUF says about its model, and how damaged files are told apart."""

from __future__ import annotations

import json
import os
import struct

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.checkpoint.opened import open_checkpoint
from converter.errors import CheckpointError
from targets.gguf import target
from targets.gguf.metadata import read_contents, read_metadata


def values(made):
    """Every metadata entry, by gguf-py's reader."""
    fields = gguf.GGUFReader(made.artifact).fields
    return {name: field.contents() for name, field in fields.items()}


def test_e2b_has_its_per_layer_arrays(checkpoint_factory, convert):
    directory = checkpoint_factory("e2b")
    text = json.loads((directory / "config.json").read_text())["text_config"]
    found = values(convert(directory))
    layers, shared = text["num_hidden_layers"], text["num_kv_shared_layers"]
    wide = [text["intermediate_size"]] * (layers - shared) + [2 * text["intermediate_size"]] * shared
    assert found["general.architecture"] == "gemma4"
    assert found["gemma4.block_count"] == layers
    assert found["gemma4.feed_forward_length"] == wide
    assert found["gemma4.attention.shared_kv_layers"] == shared
    assert found["gemma4.attention.sliding_window_pattern"] == [
        kind == "sliding_attention" for kind in text["layer_types"]
    ]
    assert found["gemma4.attention.key_length"] == text["global_head_dim"]
    assert found["gemma4.attention.key_length_swa"] == text["head_dim"]
    assert found["gemma4.embedding_length_per_layer_input"] == text["hidden_size_per_layer_input"]
    assert found["gemma4.final_logit_softcapping"] == text["final_logit_softcapping"]
    assert found["gemma4.context_length"] == text["max_position_embeddings"]
    assert found["tokenizer.chat_template"] == (directory / "chat_template.jinja").read_text()


def test_global_kv_heads_and_experts(checkpoint_factory, convert):
    directory = checkpoint_factory("26b-a4b")
    text = json.loads((directory / "config.json").read_text())["text_config"]
    found = values(convert(directory))
    heads = {
        "sliding_attention": text["num_key_value_heads"],
        "full_attention": text["num_global_key_value_heads"],
    }
    assert found["gemma4.attention.head_count_kv"] == [heads[kind] for kind in text["layer_types"]]
    assert found["gemma4.expert_count"] == text["num_experts"]
    assert found["gemma4.expert_used_count"] == text["top_k_experts"]
    assert found["gemma4.expert_feed_forward_length"] == text["moe_intermediate_size"]


def test_rope_factors_still_the_pairs_that_do_not_rotate(checkpoint_factory, convert):
    made = convert(checkpoint_factory("text"))
    factors = next(one for one in gguf.GGUFReader(made.artifact).tensors if one.name == "rope_freqs.weight")
    assert factors.data.tolist() == pytest.approx([1.0] * 8 + [1e30] * 24)


def test_general_entries(checkpoint_factory, convert):
    options = {"license": "apache-2.0", "repo": "owner/name", "revision": "abc123"}
    found = values(convert(checkpoint_factory("text"), **options))
    assert found["general.name"] == "Name"
    assert found["general.license"] == "apache-2.0"
    assert found["general.source.repo_url"] == "https://huggingface.co/owner/name"
    assert found["general.source.url"] == "https://huggingface.co/owner/name/tree/abc123"
    assert found["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_0
    assert found["general.quantization_version"] == gguf.GGML_QUANT_VERSION


def test_special_tokens(checkpoint_factory, convert):
    made = convert(checkpoint_factory("text"))
    found, tokens = values(made), made.checkpoint.tokenizer.tokens
    for key, text in (
        ("bos", "<bos>"),
        ("eos", "<eos>"),
        ("padding", "<pad>"),
        ("unknown", "<unk>"),
        ("eot", "<turn|>"),
    ):
        assert tokens[found[f"tokenizer.ggml.{key}_token_id"]] == text
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert found["tokenizer.ggml.add_space_prefix"] is False


def test_generation_settings_are_llama_cpp_s_defaults(checkpoint_factory, tmp_path):
    for file in checkpoint_factory("12b").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "suppress_tokens": [5, 9]}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    checkpoint = open_checkpoint(tmp_path)
    plan = target.plan(checkpoint, "m", {})
    target.write(checkpoint, plan, tmp_path / "out")
    fields = gguf.GGUFReader(tmp_path / "out" / plan.artifacts[0]).fields
    assert fields["general.sampling.temp"].contents() == 0.5
    assert fields["general.sampling.top_p"].contents() == pytest.approx(0.9)
    assert fields["general.sampling.top_k"].contents() == 40
    assert fields["tokenizer.ggml.suppress_tokens"].contents() == [5, 9]


def test_a_token_to_suppress_that_is_none_is_one_line(checkpoint_factory, tmp_path):
    for file in checkpoint_factory("12b").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"suppress_tokens": [10**6]}))
    with pytest.raises(CheckpointError, match="suppress_tokens holds 1000000"):
        open_checkpoint(tmp_path)


def test_metadata_is_read_without_the_vocabulary(checkpoint_factory, convert):
    made = convert(checkpoint_factory("text"), license="apache-2.0")
    found = read_metadata(made.artifact)
    assert (found.architecture, found.name, found.context, found.splits) == ("gemma4", "Model", 4096, 1)
    assert found.license == "apache-2.0"
    assert found.chat_template
    assert found.parameters == sum(one.size for one in made.checkpoint.weights.values()) + 32
    assert "tokenizer.ggml.tokens" not in found.values


def test_the_table_of_tensors_is_gguf_py_s(checkpoint_factory, convert):
    made = convert(checkpoint_factory("26b-a4b"))
    ours = {one.name: (one.type, one.shape, one.offset, one.bytes) for one in read_contents(made.artifact)[1]}
    assert ours == {
        one.name: (one.tensor_type, tuple(reversed(one.shape.tolist())), one.data_offset, one.n_bytes)
        for one in gguf.GGUFReader(made.artifact).tensors
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends too early"),
        (b"PK\x03\x04" + b"\x00" * 40, "magic"),
        (b"GGUF" + struct.pack("<I", 1), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0), "claims 1099511627776 tensors"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 40), "string has"),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 40),
            "longer than",
        ),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 1), "items of type 9"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77), "unknown type 77"),
    ],
)
def test_a_damaged_file_is_one_line(data, message, tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as error:
        read_metadata(path)
    assert "bad.gguf" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        read_metadata(tmp_path / "pipe.gguf")


def test_an_endless_array_of_strings_is_not_walked_through(tmp_path):
    path = tmp_path / "sparse.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 36))
    os.truncate(path, 1 << 40)
    with pytest.raises(CheckpointError, match="an array has 68719476736 strings"):
        read_metadata(path)


def test_no_file_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_metadata(tmp_path / "none.gguf")


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 4000), place=st.integers(0, 3000), byte=st.integers(0, 255))
def test_no_damage_leads_to_another_exception(cut, place, byte, small_header, tmp_path_factory):
    data = bytearray(small_header[: max(24, cut)])
    data[place % len(data)] = byte
    path = tmp_path_factory.getbasetemp() / "fuzzed.gguf"
    path.write_bytes(data)
    try:
        read_metadata(path)
    except CheckpointError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


@pytest.fixture(scope="module")
def small_header(tmp_path_factory):
    path = tmp_path_factory.mktemp("header") / "small.gguf"
    writer = gguf.GGUFWriter(path, "gemma4")
    writer.add_context_length(128)
    writer.add_token_list([f"token{index}" for index in range(100)])
    writer.add_token_scores([0.5] * 100)
    writer.add_tensor_info("t", (4, 32), float, 512, gguf.GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path.read_bytes()
