"""What a bundle says beside its model: read with LiteRT-LM's own messages."""

from __future__ import annotations

import io
import json
import shutil
import zlib

import pytest

from converter.checkpoint.directory import Directory
from converter.checkpoint.documents import Documents
from converter.checkpoint.opened import open_checkpoint
from converter.errors import CheckpointError, TargetError
from targets.litert.bundle import read_sections, write_bundle
from targets.litert.metadata import (
    cache_names,
    edit_warnings,
    executor_metadata,
    llm_metadata,
    metadata_sections,
    template_warnings,
    tokenizer_file,
    tokenizer_section,
)
from targets.litert.template import minijinja_template, template_for

llm_metadata_pb2 = pytest.importorskip("litert_lm_builder.runtime.proto.llm_metadata_pb2")


@pytest.fixture
def altered(demo_checkpoint, tmp_path):
    """``altered(name, **values)``: the shipped checkpoint with other values in a file; ``None`` removes one,
    and no values remove the file."""

    def make(name="generation_config.json", **values):
        directory = tmp_path / "checkpoint"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(demo_checkpoint, directory)
        content = {**json.loads((directory / name).read_text(encoding="utf-8")), **values}
        kept = {key: value for key, value in content.items() if value is not None}
        (directory / name).write_text(json.dumps(kept), encoding="utf-8")
        if not values:
            (directory / name).unlink()
        return open_checkpoint(directory)

    return make


def message_of(checkpoint, context=512):
    return llm_metadata_pb2.LlmMetadata.FromString(llm_metadata(checkpoint, context))


def sampling_of(checkpoint):
    parameters = message_of(checkpoint).sampler_params
    assert parameters.Type.Name(parameters.type) == "TOP_P"
    return parameters.k, round(parameters.p, 4), round(parameters.temperature, 4)


def test_tokens_and_context_are_the_checkpoints(demo_checkpoint):
    message = message_of(open_checkpoint(demo_checkpoint), 768)
    assert (message.start_token.token_str, message.pad_token.token_str) == ("<bos>", "<pad>")
    assert [list(stop.token_ids.ids) for stop in message.stop_tokens] == [[1], [16]]
    assert message.max_num_tokens == 768


def test_an_answer_ends_with_the_turn_even_if_no_file_says_so(altered):
    message = message_of(altered())
    assert [list(stop.token_ids.ids) for stop in message.stop_tokens] == [[1], [16]]


def test_a_model_that_never_sees_the_begin_token_is_not_given_it(altered, demo_checkpoint):
    checkpoint = altered("tokenizer_config.json", add_bos_token=False)
    template = checkpoint.source.directory() / "chat_template.jinja"
    assert message_of(checkpoint).start_token.token_str == "<bos>", "the template begins with it"
    template.write_text("{{ messages[0].content }}", encoding="utf-8")
    assert not message_of(open_checkpoint(checkpoint.source.directory())).HasField("start_token")


def test_gemma_4_is_told_with_its_tools_and_thoughts(demo_checkpoint):
    message = message_of(open_checkpoint(demo_checkpoint))
    assert message.llm_model_type.WhichOneof("model_type") == "gemma4"
    kind = message.llm_model_type.gemma4
    assert (kind.code_fence_start, kind.code_fence_end) == ("<|tool_call>", "<tool_call|>")
    assert (kind.open_quote, kind.close_quote) == ('<|"|>', '<|"|>')
    assert kind.function_response_start == "<|tool_response>"
    (channel,) = message.channels
    assert (channel.channel_name, channel.start, channel.end) == (
        "thought",
        "<|channel>thought\n",
        "<channel|>",
    )


def test_gemma_3_is_told_as_such(checkpoint_factory):
    message = message_of(open_checkpoint(checkpoint_factory("gemma3")))
    assert message.llm_model_type.WhichOneof("model_type") == "gemma3"
    assert not message.channels


def test_sampling_is_the_checkpoints(altered):
    assert sampling_of(altered(temperature=0.7, top_p=0.9, top_k=20)) == (20, 0.9, 0.7)


def test_sampling_is_googles_recommendation_where_the_checkpoint_says_nothing(altered):
    assert sampling_of(altered()) == (64, 0.95, 1.0)


def test_no_top_k_means_the_whole_vocabulary(altered):
    assert sampling_of(altered(top_k=0)) == (1280, 0.95, 1.0)
    assert sampling_of(altered(top_k=1_000_000)) == (1280, 0.95, 1.0)


@pytest.mark.parametrize("greedy", [{"do_sample": False}, {"temperature": 0.0}, {"top_p": 0.0}])
def test_an_answer_that_is_not_sampled_is_the_likeliest(altered, greedy):
    assert sampling_of(altered(**greedy))[0] == 1


def test_tokens_that_must_not_be_generated_are_told(altered):
    assert list(message_of(altered(suppress_tokens=[7, 9])).suppress_tokens.ids) == [7, 9]


def test_a_damaged_generation_config_is_one_line(altered):
    with pytest.raises(CheckpointError, match=r"top_p is 1\.5, outside 0\.\.1") as failure:
        altered(top_p=1.5)
    assert "\n" not in str(failure.value)


def test_the_chat_template_is_the_one_for_litert_lm(demo_checkpoint):
    checkpoint = open_checkpoint(demo_checkpoint)
    message = message_of(checkpoint)
    assert message.jinja_prompt_template == template_for(checkpoint.tokenizer).text
    assert message.jinja_prompt_template != checkpoint.tokenizer.chat_template


def test_thinking_and_calls_are_supported_where_the_template_writes_them(demo_checkpoint, altered):
    """``litert-lm-builder`` wants both fields set, whatever they say."""
    message = message_of(open_checkpoint(demo_checkpoint))
    assert (message.supports_thinking, message.supports_function_calling) == (True, True)
    checkpoint = altered()
    for text in ("{{ messages[0].content }}", None):
        (checkpoint.source.directory() / "chat_template.jinja").unlink()
        if text is not None:
            (checkpoint.source.directory() / "chat_template.jinja").write_text(text, encoding="utf-8")
        message = message_of(open_checkpoint(checkpoint.source.directory()))
        for field in ("supports_thinking", "supports_function_calling"):
            assert message.HasField(field)
            assert getattr(message, field) is False


def test_an_edit_that_cannot_be_made_is_told(demo_checkpoint, altered):
    assert edit_warnings(open_checkpoint(demo_checkpoint)) == []
    checkpoint = altered()
    template = checkpoint.source.directory() / "chat_template.jinja"
    template.write_text("{{ messages[0].get('name') is none }}{{ messages | length }}", encoding="utf-8")
    assert edit_warnings(open_checkpoint(checkpoint.source.directory())) == [
        "litert: the chat template is not edited for LiteRT-LM (x.get('y') is x['y']: prompts would change)"
    ]
    template.unlink()
    assert edit_warnings(open_checkpoint(checkpoint.source.directory())) == []


def test_methods_that_the_runtime_does_not_have_are_told(demo_checkpoint, altered):
    assert template_warnings(open_checkpoint(demo_checkpoint)) == []
    checkpoint = altered()
    template = checkpoint.source.directory() / "chat_template.jinja"
    template.write_text(
        "text.lower() {{ m.get('x') | upper }} {{ m.strip().split('.title()') }} {%- if m.get('a', 1) %}"
        "{%- set x = m.keys() -%}{% endif %}",
        encoding="utf-8",
    )
    assert template_warnings(open_checkpoint(checkpoint.source.directory())) == [
        "litert: the chat template calls .get(), .keys(), which LiteRT-LM's template engine does not have"
    ]


def test_white_space_beside_a_generation_tag_goes_as_it_did():
    jinja2 = pytest.importorskip("jinja2")
    text = "a \n {%- generation -%} \n b {% endgeneration %} c"
    plain = text.replace("endgeneration", "endfor").replace("generation", "for i in [0]")
    expected = jinja2.Template(plain).render()
    assert jinja2.Template(minijinja_template(text)[0]).render() == expected == "ab  c"


def test_caches_are_those_of_layers_with_keys_of_their_own(demo_checkpoint):
    executor_metadata_pb2 = pytest.importorskip("litert_lm_builder.runtime.proto.executor_metadata_pb2")
    checkpoint = open_checkpoint(demo_checkpoint)
    data = executor_metadata(checkpoint, 512)
    message = executor_metadata_pb2.ExecutorMetadata.FromString(data).llm_executor_metadata
    buffers = {
        one.decode_input_name: (one.sequence_axis, one.maximum_sequence_length)
        for one in message.state_buffers
    }
    assert len(checkpoint.architecture.layers) == 9
    assert set(buffers) == {f"kv_cache_{part}_{index}" for part in "kv" for index in range(6)}
    assert set(buffers) == set(cache_names(checkpoint))
    assert (buffers["kv_cache_k_5"], buffers["kv_cache_v_5"]) == ((2, 512), (3, 512))


def test_the_tokenizer_is_compressed_behind_its_length(demo_checkpoint):
    section = tokenizer_section(Documents(Directory(demo_checkpoint)))
    text = (demo_checkpoint / "tokenizer.json").read_bytes()
    assert section.kind == "HF_Tokenizer_Zlib"
    assert int.from_bytes(section.content[:8], "little") == len(text)
    assert zlib.decompress(section.content[8:]) == text


def test_a_sentencepiece_model_serves_where_there_is_no_tokenizer_json(tmp_path):
    spm = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(["a little house by the river", "the river by a house"]),
        model_writer=model,
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    section = tokenizer_section(Documents(Directory(tmp_path)))
    assert (section.kind, section.content) == ("SP_Tokenizer", model.getvalue())
    assert spm.SentencePieceProcessor(model_proto=section.content).encode("a house")


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "here is neither$"),
        ({"vocab.txt": b"a\nb\n"}, r"here is neither \(vocab.txt\)"),
        ({"vocab.json": b"{}", "merges.txt": b""}, r"here is neither \(vocab.json and merges.txt\)"),
        ({"tokenizer.model": b"IQ== 0\nIg== 1\n"}, "is no SentencePiece model"),  # tiktoken's
        ({"tokenizer.model": b""}, "is no SentencePiece model"),
    ],
)
def test_another_tokenizer_is_refused_in_one_line(tmp_path, files, problem):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for refuse in (tokenizer_file, tokenizer_section):
        with pytest.raises(TargetError, match=problem) as failure:
            refuse(Documents(Directory(tmp_path)))
        assert "\n" not in str(failure.value)


def test_the_librarys_own_reader_takes_the_sections(demo_checkpoint, tmp_path):
    peek = pytest.importorskip("litert_lm_builder.litertlm_peek")
    path = tmp_path / "model.litertlm"
    write_bundle(path, metadata_sections(open_checkpoint(demo_checkpoint), 512))
    output = io.StringIO()
    peek.peek_litertlm_file(str(path), None, output)
    assert "max_num_tokens: 512" in output.getvalue()
    assert "kv_cache_v_5" in output.getvalue()
    assert [one.kind for one in read_sections(path)] == [
        "LlmMetadataProto",
        "ExecutorMetadataProto",
        "HF_Tokenizer_Zlib",
    ]


def test_equal_checkpoints_give_equal_bytes(demo_checkpoint):
    first, second = (metadata_sections(open_checkpoint(demo_checkpoint), 512) for _ in range(2))
    assert first == second
