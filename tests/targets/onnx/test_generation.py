"""The files beside ``model.onnx``: what they say, and what onnxruntime-genai makes of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from checkpoints.variants import VARIANTS
from converter.checkpoint.opened import open_checkpoint
from converter.errors import CheckpointError
from targets.onnx.side_files import generation_files, generation_warnings
from targets.target import KVCache

pytestmark = pytest.mark.slow


@pytest.fixture
def altered(checkpoint_factory, tmp_path):
    """``altered(files, variant)``: a checkpoint with other files; ``None`` removes one."""

    def make(files, variant="e2b"):
        directory = tmp_path / "checkpoint"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(checkpoint_factory(variant), directory)
        for name, content in files.items():
            if content is None:
                (directory / name).unlink()
            else:
                text = content if isinstance(content, str) else json.dumps(content)
                (directory / name).write_text(text, encoding="utf-8")
        return open_checkpoint(directory)

    return make


def stored(checkpoint, name="tokenizer_config.json"):
    return json.loads((checkpoint.source.directory() / name).read_text(encoding="utf-8"))


def config_of(checkpoint):
    return json.loads(generation_files(checkpoint)["genai_config.json"])


def tokenizer_config_of(checkpoint):
    return json.loads(generation_files(checkpoint)["tokenizer_config.json"])


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_names_and_sizes_are_those_of_the_graph(variant, checkpoint_factory, convert):
    made = convert(checkpoint_factory(variant), "onnx")
    graph = onnx.load(made.artifact, load_external_data=False).graph
    decoder = config_of(made.checkpoint)["model"]["decoder"]
    inputs, outputs = decoder["inputs"], decoder["outputs"]
    caches = range(decoder["num_hidden_layers"])
    assert {value.name for value in graph.input} == {
        *(inputs[name] for name in ("input_ids", "attention_mask", "position_ids")),
        *(inputs[name] % index for name in ("past_key_names", "past_value_names") for index in caches),
    }
    assert {value.name for value in graph.output} == {
        outputs["logits"],
        *(outputs[name] % index for name in ("present_key_names", "present_value_names") for index in caches),
    }
    first = next(value for value in graph.input if value.name == "past_key_values.0.key")
    sizes = [dimension.dim_value for dimension in first.type.tensor_type.shape.dim]
    assert [decoder["num_key_value_heads"], decoder["head_size"]] == [sizes[1], sizes[3]]


@pytest.mark.parametrize(("variant", "type"), [("12b", "gemma4_text"), ("gemma3", "gemma3_text")])
def test_the_model_is_a_text_model_whatever_the_checkpoint_is(variant, type, checkpoint_factory):
    model = config_of(open_checkpoint(checkpoint_factory(variant)))["model"]
    assert model["type"] == type


def test_ids_and_sizes_are_the_checkpoints(demo_checkpoint):
    model = config_of(open_checkpoint(demo_checkpoint))["model"]
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (2, [1, 16], 0)
    assert (model["vocab_size"], model["context_length"]) == (1280, 2048)


def test_logits_beyond_the_tokenizer_count(checkpoint_factory):
    """Gemma 3's multimodal embedding has more rows than the tokenizer has tokens."""
    checkpoint = open_checkpoint(checkpoint_factory("gemma3"))
    assert config_of(checkpoint)["model"]["vocab_size"] == checkpoint.architecture.vocabulary


def test_an_answer_ends_with_the_turn_even_if_no_file_says_so(altered):
    checkpoint = altered({"generation_config.json": None})
    turn = checkpoint.tokenizer.tokens.index("<turn|>")
    assert config_of(checkpoint)["model"]["eos_token_id"] == [1, turn]


def test_a_padding_token_is_found_by_its_usual_name(altered):
    config = stored(altered({}))
    config.pop("pad_token")
    checkpoint = altered({"tokenizer_config.json": config})
    assert config_of(checkpoint)["model"]["pad_token_id"] == 0


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (None, {"do_sample": True, "temperature": 1.0, "top_k": 64, "top_p": 0.95}),
        ({}, {"do_sample": True, "temperature": 1.0, "top_k": 64, "top_p": 0.95}),
        ({"temperature": 0.5, "top_p": None}, {"temperature": 0.5, "top_k": 64, "top_p": 0.95}),
        ({"do_sample": False}, {"do_sample": False}),
        ({"do_sample": None}, {"do_sample": True}),
        ({"top_k": 0, "top_p": 1.0}, {"do_sample": True, "top_k": 0, "top_p": 1.0}),
        ({"top_p": 0.0}, {"do_sample": False}),
        ({"top_k": 1 << 30}, {"top_k": 1280}),
    ],
)
def test_sampling_is_what_the_checkpoint_asks_for(generation, expected, altered):
    search = config_of(altered({"generation_config.json": generation}))["search"]
    assert {key: search[key] for key in expected} == expected


@pytest.mark.parametrize(
    "generation",
    [
        {"temperature": "hot"},
        {"temperature": -1},
        {"temperature": 1e300},
        {"top_p": 1.5},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_k": 1 << 40},
        {"do_sample": "yes"},
        '{"temperature": NaN}',
        '{"top_k": 1, "top_k": 2}',
    ],
)
def test_absurd_sampling_is_refused_by_name(generation, altered):
    with pytest.raises(CheckpointError, match=r"generation_config.json.*(temp|top_|do_sample)") as error:
        altered({"generation_config.json": generation})
    assert "\n" not in str(error.value)


def test_no_window_is_told(checkpoint_factory):
    """It would shrink the caches or slide the inputs, for which the graph is not made."""
    assert "sliding_window" not in config_of(open_checkpoint(checkpoint_factory("e2b")))["model"]["decoder"]


def test_a_search_has_the_room_of_small_machines_unless_the_model_ends_before(checkpoint_factory, altered):
    """Caches are allocated at once: for a search of this length, not for the context."""
    values = stored(open_checkpoint(checkpoint_factory("text")), "config.json")
    for context, length in ((131072, 4096), (4096, 4096), (512, 512)):
        longer = altered({"config.json": {**values, "max_position_embeddings": context}}, "text")
        config = config_of(longer)
        assert config["search"]["past_present_share_buffer"] is True
        assert (config["model"]["context_length"], config["search"]["max_length"]) == (context, length)


@pytest.mark.parametrize(
    ("variant", "dtype"), [*((variant, "float32") for variant in sorted(VARIANTS)), ("e2b", "float16")]
)
def test_the_plan_tells_the_memory_of_the_caches_that_the_graph_takes(
    variant, dtype, checkpoint_factory, convert
):
    made = convert(checkpoint_factory(variant), "onnx", onnx_dtype=dtype)
    graph = onnx.load(made.artifact, load_external_data=False).graph
    inputs = [value.type.tensor_type for value in graph.input if value.name.startswith("past_key_values.")]
    heads, head_size = 1, 3
    numbers = sum(one.shape.dim[heads].dim_value * one.shape.dim[head_size].dim_value for one in inputs)
    item = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2}[inputs[0].elem_type]
    tokens = config_of(made.checkpoint)["search"]["max_length"]
    assert made.plan.kv_cache == KVCache(tokens, tokens * numbers * item)
    assert made.plan.as_dict()["kv_cache"] == {"tokens": tokens, "bytes": tokens * numbers * item}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_config_json_is_the_checkpoints_and_opens_in_transformers(variant, checkpoint_factory, convert):
    from transformers import AutoConfig, AutoTokenizer

    made = convert(checkpoint_factory(variant), "onnx")
    directory = made.artifact.parent
    assert stored(made.checkpoint, "config.json") == json.loads((directory / "config.json").read_text())
    config = AutoConfig.from_pretrained(directory)
    assert config.get_text_config().vocab_size == made.checkpoint.architecture.vocabulary
    text = "Lists are <turn|> \n\n x"
    expected = AutoTokenizer.from_pretrained(made.checkpoint.source.directory()).encode(text)
    assert AutoTokenizer.from_pretrained(directory).encode(text) == expected


def test_config_json_neither_runs_code_nor_tells_another_form_of_the_weights(altered):
    values = stored(altered({}), "config.json")
    told = {"auto_map": {"AutoConfig": "code.Config"}, "custom_pipelines": {"x": {"impl": "code.X"}}}
    inner = {**values["vision_config"], **told, "quantization_config": {"quant_method": "other"}}
    checkpoint = altered({"config.json": {**values, **told, "vision_config": inner}})
    assert json.loads(generation_files(checkpoint)["config.json"]) == values


def test_a_config_json_that_no_other_parser_reads_is_refused(altered):
    values = stored(altered({}), "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json: holds what JSON cannot") as error:
        generation_files(altered({"config.json": {**values, "extra": [float("inf")]}}))
    assert "\n" not in str(error.value)


def test_files_are_copied_byte_for_byte(altered):
    special = '{\n    "bos_token" :  "<bos>" }'
    checkpoint = altered({"special_tokens_map.json": special})
    files = generation_files(checkpoint)
    copied = ("tokenizer.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja")
    for name in copied:
        assert files[name] == (checkpoint.source.directory() / name).read_bytes()
    assert set(files) == {*copied, "config.json", "genai_config.json", "tokenizer_config.json"}


def test_the_tokenizers_settings_are_kept(demo_checkpoint):
    checkpoint = open_checkpoint(demo_checkpoint)
    assert tokenizer_config_of(checkpoint) == {**stored(checkpoint), "padding_side": "right"}


@pytest.mark.parametrize("name", [None, "Gemma4Tokenizer", "TokenizersBackend", 3])
def test_the_class_is_one_that_merges_as_gemma_does(name, altered):
    config = stored(altered({}))
    config = altered({"tokenizer_config.json": {**config, "tokenizer_class": name}})
    assert tokenizer_config_of(config)["tokenizer_class"] == "GemmaTokenizer"


def test_without_settings_the_vocabulary_makes_them(altered):
    config = tokenizer_config_of(altered({"tokenizer_config.json": None}))
    assert config == {
        "tokenizer_class": "GemmaTokenizer",
        "padding_side": "right",
        **{f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")},
    }


def test_settings_that_lead_elsewhere_or_run_code_are_left_out(altered):
    config = stored(altered({}))
    harmful = {"tiktoken_file": "../../secret", "auto_map": {"AutoTokenizer": "code.Tokenizer"}}
    assert not harmful.keys() & tokenizer_config_of(altered({"tokenizer_config.json": {**config, **harmful}}))


@pytest.mark.parametrize("place", ["one", "several", "null"])
def test_the_chat_template_gets_a_file_of_its_own(place, altered):
    before = altered({})
    template = before.tokenizer.chat_template
    listed = {
        "one": template,
        "several": [{"name": "tools", "template": "x"}, {"name": "default", "template": template}],
        "null": None,
    }
    config = {**stored(before), "chat_template": listed[place]}
    checkpoint = altered(
        {
            "tokenizer_config.json": config,
            **({} if place == "null" else {"chat_template.jinja": None}),
        }
    )
    files = generation_files(checkpoint)
    assert files["chat_template.jinja"].decode() == template
    assert b'"chat_template"' not in files["tokenizer_config.json"]


@pytest.mark.parametrize("value", ['"\\ud800"', "NaN", "[1, {}, Infinity]"])
def test_settings_that_no_other_parser_reads_are_refused(value, altered):
    text = json.dumps(stored(altered({})))
    checkpoint = altered({"tokenizer_config.json": f'{text[:-1]}, "extra": {value}}}'})
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: holds what JSON cannot") as error:
        generation_files(checkpoint)
    assert "\n" not in str(error.value)


def test_what_genai_cannot_be_told_is_said(altered):
    assert generation_warnings(altered({})) == []
    checkpoint = altered({"generation_config.json": {"suppress_tokens": [19, 22]}})
    assert generation_warnings(checkpoint) == [
        "onnx: 2 tokens must never be generated, which onnxruntime-genai cannot be told"
    ]


def test_tokens_across_words_are_said(altered):
    checkpoint = altered({})
    document = stored(checkpoint, "tokenizer.json")
    vocabulary = document["model"]["vocab"]
    dropped = next(token for token in reversed(vocabulary) if len(token) > 3 and token.isalpha())
    document["model"]["merges"] = [
        pair for pair in document["model"]["merges"] if dropped not in ("".join(pair), *pair)
    ]
    vocabulary["a\u2581"] = vocabulary.pop(dropped)
    document["model"]["merges"].append(["a", "\u2581"])
    (warning,) = generation_warnings(altered({"tokenizer.json": document}))
    assert "1 tokens such as 'a\u2581'" in warning


def test_planning_needs_no_runtime(demo_checkpoint):
    code = (
        "import sys; from pathlib import Path\n"
        "for name in ('onnxruntime', 'onnxruntime_genai', 'mobius', 'onnx', 'transformers', 'tokenizers'):\n"
        "    sys.modules[name] = None\n"
        "from converter.checkpoint.opened import open_checkpoint\n"
        "from targets.onnx.side_files import generation_files\n"
        "print(*generation_files(open_checkpoint(Path(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, demo_checkpoint],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert "genai_config.json" in done.stdout.split()
