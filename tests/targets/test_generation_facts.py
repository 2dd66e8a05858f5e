"""What ``generation_config.json`` says of ends, suppressed tokens and sampling reaches every runtime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import onnxruntime_genai as genai
import pytest

from converter.checkpoint.opened import Checkpoint, open_checkpoint
from targets.gguf.vocabulary import vocabulary_warnings
from targets.litert.metadata import llm_metadata
from targets.ollama import parse_modelfile
from targets.target import find_target

pytestmark = pytest.mark.slow

#: Ends that the demo's own files name: ``<eos>`` and ``<turn|>``.
ENDS = [1, 16]


@pytest.fixture
def asking(demo_checkpoint, tmp_path):
    """``asking(**settings)``: the demo with these settings in its ``generation_config.json``."""

    def make(**settings: object) -> Checkpoint:
        directory = tmp_path / "model"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(demo_checkpoint, directory)
        path = directory / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
        return open_checkpoint(directory)

    return make


def write(checkpoint: Checkpoint, target: str, directory: Path) -> tuple[Path, tuple[str, ...]]:
    """The main artifact, and what was warned of before."""
    plan = find_target(target).plan(checkpoint, "m", {})
    find_target(target).write(checkpoint, plan, directory)
    return directory / plan.artifacts[0], plan.warnings


def named(checkpoint: Checkpoint, *texts: str) -> list[int]:
    return [checkpoint.tokenizer.tokens.index(text) for text in texts]


@pytest.fixture
def ordinary(demo_checkpoint) -> list[int]:
    """Ids of ordinary tokens, which no runtime takes for an end of itself."""
    return [400, 555, 700]


# llama.cpp


def test_llama_cpp_ends_at_a_third_id(asking, ordinary, llama, tmp_path):
    path, warnings = write(asking(eos_token_id=[*ENDS, ordinary[0]]), "gguf", tmp_path)
    found = llama(path, run=False)
    assert {*ENDS, ordinary[0]} <= set(found["ends"])
    assert ordinary[1] not in found["ends"]
    assert found["metadata"]["tokenizer.ggml.eom_token_id"] == str(ordinary[0])
    assert warnings == ()


def test_llama_cpp_ends_where_the_files_name_no_third_id(asking, llama, tmp_path):
    """Beside them at what it knows by its text, as its own converter's files do."""
    checkpoint = asking()
    path, _ = write(checkpoint, "gguf", tmp_path)
    found = llama(path, run=False)
    by_text = [id for id in found["ends"] if id not in ENDS]
    assert {checkpoint.tokenizer.tokens[id] for id in by_text} <= {"<|tool_response>"}
    assert "tokenizer.ggml.eom_token_id" not in found["metadata"]


def test_the_official_ends_leave_the_third_place_to_another(asking, ordinary, llama, tmp_path):
    """Gemma 4's own: end of a text, of a turn, and a tool's response, which llama.cpp knows by its text."""
    checkpoint = asking()
    if "<|tool_response>" not in checkpoint.tokenizer.tokens:
        pytest.skip("the demo has no such token")
    response = named(checkpoint, "<|tool_response>")
    path, warnings = write(asking(eos_token_id=[*ENDS, *response, ordinary[0]]), "gguf", tmp_path)
    assert {*ENDS, *response, ordinary[0]} <= set(llama(path, run=False)["ends"])
    assert warnings == ()


def test_ends_beyond_what_llama_cpp_holds_are_named(asking, ordinary, llama, tmp_path):
    path, warnings = write(asking(eos_token_id=[*ENDS, *ordinary]), "gguf", tmp_path)
    ends = set(llama(path, run=False)["ends"])
    assert set(ordinary) & ends == {ordinary[0]}
    (line,) = warnings
    assert line.startswith("gguf: tokens 555, 700 end an answer too, for which llama.cpp has no place")


def test_ollama_is_told_every_end_by_id_and_by_text(asking, ordinary, tmp_path):
    checkpoint = asking(eos_token_id=[*ENDS, *ordinary])
    path, _ = write(checkpoint, "gguf", tmp_path)
    field = gguf.GGUFReader(path).fields["tokenizer.ggml.eos_token_ids"]
    assert field.contents() == [*ENDS, *ordinary]
    modelfile = parse_modelfile((tmp_path / "ollama" / "Modelfile").read_text("utf-8"))
    # an ordinary token's text may be a part of other words
    assert [value for name, value in modelfile.parameters if name == "stop"] == ["<eos>", "<turn|>"]


def test_llama_cpp_suppresses_what_the_checkpoint_suppresses(asking, llama, tmp_path):
    path, _ = write(asking(suppress_tokens=[5, 9]), "gguf", tmp_path)
    assert llama(path, run=False)["suppressed"] == [5, 9]
    path, _ = write(asking(), "gguf", tmp_path / "none")
    assert llama(path, run=False)["suppressed"] == []


def test_a_vocabulary_without_a_further_end_gives_no_warning(asking):
    checkpoint = asking()
    assert vocabulary_warnings(checkpoint.architecture, checkpoint.tokenizer) == []


# onnxruntime-genai


def test_onnxruntime_genai_ends_at_every_id(asking, ordinary, tmp_path):
    checkpoint = asking(eos_token_id=[*ENDS, *ordinary])
    path, warnings = write(checkpoint, "onnx", tmp_path)
    assert list(genai.Tokenizer(genai.Model(str(path.parent))).eos_token_ids) == [*ENDS, *ordinary]
    assert warnings == ()


def test_onnxruntime_genai_takes_a_penalty_and_no_min_p_or_suppressed_tokens(asking, tmp_path):
    path, warnings = write(
        asking(repetition_penalty=1.25, min_p=0.1, suppress_tokens=[5, 9]), "onnx", tmp_path
    )
    parameters = genai.GeneratorParams(genai.Model(str(path.parent)))
    assert parameters.get_search_options()["repetition_penalty"] == 1.25
    assert sorted(warnings) == [
        "onnx: 2 tokens must never be generated, which onnxruntime-genai cannot be told",
        "onnx: generation_config.json sets min_p, which onnxruntime-genai cannot be told",
    ]


@pytest.mark.parametrize("key", ["suppress_tokens", "min_p"])
def test_onnxruntime_genai_refuses_what_it_cannot_be_told(asking, tmp_path, key):
    """Once this fails, the setting can be written."""
    path, _ = write(asking(), "onnx", tmp_path)
    config = path.parent / "genai_config.json"
    content = json.loads(config.read_text())
    content["search"][key] = [5] if key == "suppress_tokens" else 0.1
    config.write_text(json.dumps(content))
    with pytest.raises(Exception, match=f'Unknown value "{key}"'):
        genai.Model(str(path.parent))


# LiteRT-LM


def test_litert_lm_is_told_ends_and_suppressed_tokens(asking, ordinary):
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    checkpoint = asking(eos_token_id=[*ENDS, *ordinary], suppress_tokens=[5, 9])
    message = llm_metadata_pb2.LlmMetadata.FromString(llm_metadata(checkpoint, 128))
    assert [list(stop.token_ids.ids) for stop in message.stop_tokens] == [[id] for id in [*ENDS, *ordinary]]
    assert list(message.suppress_tokens.ids) == [5, 9]


# sampling


def test_no_sampling_is_the_likeliest_token_everywhere(asking, tmp_path):
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    checkpoint = asking(do_sample=False)
    path, _ = write(checkpoint, "gguf", tmp_path)
    assert gguf.GGUFReader(path).fields["general.sampling.temp"].contents() == 0.0
    modelfile = parse_modelfile((tmp_path / "ollama" / "Modelfile").read_text("utf-8"))
    assert dict(modelfile.parameters)["temperature"] == "0.0"
    path, _ = write(checkpoint, "onnx", tmp_path)
    model = genai.Model(str(path.parent))
    answers = []
    for _ in range(2):
        generator = genai.Generator(model, genai.GeneratorParams(model))
        generator.append_tokens(np.array([2, 300, 301], np.int32))
        for _ in range(12):
            generator.generate_next_token()
        answers.append(list(generator.get_sequence(0)))
    assert answers[0] == answers[1]
    message = llm_metadata_pb2.LlmMetadata.FromString(llm_metadata(checkpoint, 128))
    assert message.sampler_params.k == 1


def test_llama_cpp_and_ollama_take_min_p_and_a_penalty(asking, llama, tmp_path):
    path, warnings = write(asking(min_p=0.1, repetition_penalty=1.25), "gguf", tmp_path)
    found = llama(path, run=False)["metadata"]
    assert float(found["general.sampling.min_p"]) == pytest.approx(0.1)
    assert float(found["general.sampling.penalty_repeat"]) == 1.25
    assert found["general.sampling.penalty_last_n"] == "-1"
    modelfile = dict(parse_modelfile((tmp_path / "ollama" / "Modelfile").read_text("utf-8")).parameters)
    assert (modelfile["min_p"], modelfile["repeat_penalty"], modelfile["repeat_last_n"]) == (
        "0.1",
        "1.25",
        "-1",
    )
    assert warnings == ()


def test_what_a_runtime_cannot_be_told_is_a_warning(asking):
    checkpoint = asking(begin_suppress_tokens=[5], no_repeat_ngram_size=3, max_new_tokens=64, typical_p=0.9)
    for name, runtime in (("gguf", "llama.cpp"), ("onnx", "onnxruntime-genai"), ("litert", "LiteRT-LM")):
        lines = [line for line in find_target(name).plan(checkpoint, "m", {}).warnings if "sets" in line]
        assert lines == [
            f"{name}: generation_config.json sets begin_suppress_tokens, max_new_tokens, "
            f"no_repeat_ngram_size, typical_p, which {runtime} cannot be told"
        ]


@pytest.mark.parametrize(
    "settings",
    [
        {"min_p": None, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1},
        {"begin_suppress_tokens": [], "bad_words_ids": None, "typical_p": 1.0, "min_length": 0},
    ],
)
def test_settings_that_change_nothing_are_no_warning(asking, settings):
    assert asking(**settings).generation.limits("litert", "LiteRT-LM") == []


def test_a_temperature_counts_only_where_there_is_sampling(asking):
    assert asking(do_sample=False, temperature=0.7).generation.sampling["temperature"] == 0.0
    assert asking(do_sample=None, temperature=0.7).generation.sampling["temperature"] == 0.7
