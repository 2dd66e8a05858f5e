"""onnxruntime-genai runs what the ``onnx`` target writes, and gives the tokens that others give."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnxruntime_genai as genai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from converter.checkpoint.directory import Directory
from converter.checkpoint.documents import Documents
from converter.checkpoint.tokenizer import read_tokenizer
from converter.pipeline.conversion import Conversion
from converter.pipeline.conversion import convert as convert_model
from support.greedy import batch_by_genai, by_genai, by_onnxruntime, by_transformers

pytestmark = pytest.mark.slow

MESSAGES = [
    {"role": "system", "content": "Answer in one sentence."},
    {"role": "user", "content": "What does the following function return, and why does it end at all?"},
    {"role": "assistant", "content": "A list.\n\nIt ends because the input does."},
    {
        "role": "user",
        "content": "def first(items):\n    return [item for item in items if item]  # \u00e9 \U0001f600",
    },
]
#: More tokens than the sliding window of the generated checkpoints and of the demo checkpoint (64).
COUNT = 80


@pytest.fixture(scope="module")
def demo(demo_checkpoint, tmp_path_factory):
    """The directory of the demo checkpoint's artifact, made as a user makes it."""
    output = tmp_path_factory.mktemp("demo") / "output"
    convert_model(Conversion(str(demo_checkpoint), ["onnx"], output=output, validation=None))
    return output / "onnx"


@pytest.fixture(scope="module")
def tokenizer(demo):
    return genai.Tokenizer(genai.Model(str(demo)))


@pytest.fixture(scope="module")
def exact(demo):
    """The same tokenizer in Hugging Face's library."""
    return Tokenizer.from_file(str(demo / "tokenizer.json"))


def encoded(tokenizer, text):
    return [int(id) for id in tokenizer.encode(text)]


def test_answers_to_a_chat_are_the_same_everywhere(demo, demo_checkpoint, tokenizer):
    text = tokenizer.apply_chat_template(json.dumps(MESSAGES), add_generation_prompt=True)
    prompt, ends = encoded(tokenizer, text), tokenizer.eos_token_ids
    answer = by_genai(demo, prompt, COUNT)
    assert len(answer) == COUNT
    assert answer == by_onnxruntime(demo, prompt, COUNT, ends)
    assert answer == by_transformers(demo_checkpoint, prompt, COUNT, ends)
    assert tokenizer.decode(np.array(answer, np.int32)).strip()


@pytest.mark.parametrize("variant", ["e2b", "12b", "26b-a4b", "31b", "gemma3", "gemma3-text", "text"])
def test_every_architecture_answers_as_in_transformers(variant, checkpoint_factory, convert):
    """Caches of other heads and head sizes in some layers, and none in layers with shared keys and values.
    The weights are float32: codes mean numbers that the checkpoint rounded, and random models nearly tie."""
    made = convert(checkpoint_factory(variant, "latent"), "onnx", off_lattice="f32")
    directory = made.artifact.parent
    ends = json.loads((directory / "genai_config.json").read_text())["model"]["eos_token_id"]
    prompt = [2, *np.random.default_rng(1).integers(300, 1200, 70).tolist()]
    answer = by_genai(directory, prompt, 20)
    assert answer == by_onnxruntime(directory, prompt, 20, ends)
    assert answer == by_transformers(made.checkpoint.source.directory(), prompt, 20, ends)


def test_float16_activations_and_caches_run_too(demo_checkpoint, convert):
    directory = convert(demo_checkpoint, "onnx", onnx_dtype="float16").artifact.parent
    prompt = [2, *range(300, 370)]
    assert by_genai(directory, prompt, 30) == by_onnxruntime(directory, prompt, 30, [1, 16])


def test_an_answer_ends_where_its_turn_ends(demo, demo_checkpoint):
    prompt, ends = [2, 300, 301, 400, 555], [1, 16]
    answer = by_genai(demo, prompt, COUNT)
    assert len(answer) < COUNT
    assert answer == by_onnxruntime(demo, prompt, COUNT, ends)
    assert answer == by_transformers(demo_checkpoint, prompt, COUNT, ends)


def test_prompts_of_different_lengths_do_not_disturb_each_other(demo):
    prompts = [[2, 300, 301, 400, 555], [2, 610, 700], [2, *range(300, 370)]]
    assert batch_by_genai(demo, prompts, 30) == [by_genai(demo, prompt, 30) for prompt in prompts]


def test_one_buffer_for_the_cache_changes_nothing(demo):
    prompt = [2, *range(300, 370)]
    growing = by_genai(demo, prompt, COUNT, past_present_share_buffer=False)
    assert by_genai(demo, prompt, COUNT) == growing


def test_a_conversation_can_go_on(demo):
    """Tokens appended to a running generator continue its positions."""
    prompt = [2, *range(300, 380)]
    model = genai.Model(str(demo))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=120)
    generator = genai.Generator(model, parameters)
    for part in (prompt[:3], prompt[3:70], prompt[70:]):
        generator.append_tokens(np.array(part, np.int32))
    for _ in range(20):
        generator.generate_next_token()
    found = [int(id) for id in generator.get_sequence(0)]
    assert found == [*prompt, *by_genai(demo, prompt, 20)]


@pytest.mark.parametrize(
    "generation",
    [
        {"temperature": 0.0},
        {"top_p": 0.0},
        {"top_k": 0, "top_p": 1.0},
        {"top_k": 0, "top_p": 0.5},
        {"top_k": 1 << 30, "temperature": 3e38},
        {"temperature": 2e-38},
    ],
)
def test_every_sampling_that_a_checkpoint_may_ask_for_runs(generation, demo_checkpoint, convert, tmp_path):
    directory = tmp_path / "checkpoint"
    shutil.copytree(demo_checkpoint, directory)
    (directory / "generation_config.json").write_text(json.dumps(generation))
    made = convert(directory, "onnx")
    model = genai.Model(str(made.artifact.parent))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=8)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([2, 300], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert len(generator.get_sequence(0)) > 2


def test_sampling_defaults_reach_the_search(demo):
    options = genai.GeneratorParams(genai.Model(str(demo))).get_search_options()
    found = {name: options[name] for name in ("do_sample", "temperature", "top_k", "top_p", "max_length")}
    expected = {"do_sample": True, "temperature": 1.0, "top_k": 64, "top_p": 0.95, "max_length": 2048}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    "messages",
    [
        MESSAGES,
        MESSAGES[1:2],
        [{"role": "user", "content": [{"type": "text", "text": " a"}, {"type": "text", "text": "b "}]}],
        [{"role": "developer", "content": "x"}, {"role": "user", "content": ' "\\ \t<turn|> \u2028x'}],
        [{"role": "user", "content": ""}],
    ],
)
@pytest.mark.parametrize("prompted", [True, False])
def test_chats_are_written_as_transformers_writes_them(messages, prompted, demo, tokenizer):
    from transformers import AutoTokenizer

    expected = AutoTokenizer.from_pretrained(demo).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=prompted
    )
    found = tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=prompted)
    assert found == expected


def test_special_tokens_are_the_checkpoints(tokenizer, demo_checkpoint):
    expected = read_tokenizer(Documents(Directory(demo_checkpoint)))
    assert tokenizer.bos_token_id == expected.bos
    assert tokenizer.pad_token_id == expected.pad
    assert list(tokenizer.eos_token_ids) == list(expected.end_ids)


HARD = [
    "",
    " ",
    " " * 40,
    "\n" * 40,
    "  two  spaces  ",
    " \n \n\n x\t\ty\r\n",
    "e\u0301 \u00e9 \ufb01 \uff21",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001d518\ufffd",
    "\u2581 \u2581\u2581a\u2581b \u00a0\u200b\ufeff\u2028",
    "<bos><|turn>user\nhi<turn|>\n <turn|> a<turn|>b <turn| <|turn",
    "<0x41><0xE9><unk><pad>[PAD1]<|image|>",
    "def f(x):\n    if a<b and c>d:\n        return {'x': [i+1]}  # ok\n",
    "don't 3.14159 \u201cquotes\u201d\u2014dash\u2026 \\n \x01\x7f",
]


@pytest.mark.parametrize("text", HARD)
def test_hard_texts_have_the_same_tokens(text, tokenizer, exact):
    assert encoded(tokenizer, text) == exact.encode(text, add_special_tokens=False).ids


PIECES = st.sampled_from(
    [*"ab .,<|>\n\t\r0", "the", "ing", "  ", "\u2581", "\u00e9", "\u0301", "\u65e5", "\U0001f600", "<turn|>"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=40).map("".join))
def test_any_text_has_the_same_tokens(tokenizer, exact, text):
    assert encoded(tokenizer, text) == exact.encode(text, add_special_tokens=False).ids


def test_runs_of_more_than_a_hundred_characters_are_cut(tokenizer, exact):
    """onnxruntime-genai 0.18 merges no further than that where no space or line end comes. Whoever needs the
    exact tokens of such texts makes them with another tokenizer; once this fails, nobody has to."""
    words = "attribute" * 60
    found, expected = encoded(tokenizer, words), exact.encode(words, add_special_tokens=False).ids
    assert found != expected
    ids = np.array(found, np.int32)
    assert tokenizer.decode(ids) == words
