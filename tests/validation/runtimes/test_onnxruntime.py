"""An ONNX decoder in onnxruntime: all logits out, decoding against prefill, and every way it can end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import CheckpointFactory
from numpy.typing import NDArray

from converter.checkpoint.opened import open_checkpoint
from converter.errors import UsageError, ValidationError
from converter.system.progress import no_progress
from support.onnx_decoder import LAYERS, VOCABULARY, write_decoder
from targets.target import find_target
from validation.decoding import DECODED
from validation.logits import map_logits
from validation.runtimes.onnxruntime import find_provider, runner, short_name
from validation.runtimes.onnxruntime_session import check_started

# the first is longer than one run of the model and than its window
SEQUENCES = [[2, 90, 5, 7, 11], [2, *(7 + 11 * i % 190 for i in range(300))], [2, *range(30, 50)]]
POSITIONS = sum(map(len, SEQUENCES))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder without faults; nobody may change it."""
    return write_decoder(tmp_path_factory.mktemp("decoder"), level=4)


def run(model: Path, directory: Path, sequences: list[list[int]] = SEQUENCES, **options: Any) -> Any:
    """The runtime and the logits of ``sequences``."""
    output = directory / "logits.npy"
    runtime = runner.logits(model, sequences, VOCABULARY, output, no_progress, **options)
    return runtime, map_logits(output, sum(map(len, sequences)))


def at_once(model: Path, tokens: list[int]) -> NDArray[np.float32]:
    """Logits of one sequence in a session of its own, in one run."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    feed = {
        "input_ids": np.array([tokens]),
        "attention_mask": np.ones((1, len(tokens)), np.int64),
        "position_ids": np.arange(len(tokens))[None],
    }
    for index, (heads, size) in enumerate(LAYERS):
        for part in ("key", "value"):
            feed[f"past_key_values.{index}.{part}"] = np.zeros((1, heads, 0, size), np.float32)
    logits: NDArray[np.float32] = session.run(["logits"], feed)[0][0]
    return logits


def failure(model: Path, directory: Path, **options: Any) -> str:
    """The line that running ``model`` ends with."""
    with pytest.raises(ValidationError) as caught:
        run(model, directory, [[2, 5]], **options)
    line = str(caught.value)
    assert "\n" not in line
    assert str(directory) not in line
    return line


def test_logits_are_those_of_each_sequence_run_at_once(decoder: Path, tmp_path: Path) -> None:
    _, logits = run(decoder, tmp_path)
    start = 0
    for ids in SEQUENCES:
        np.testing.assert_allclose(logits[start : start + len(ids)], at_once(decoder, ids), atol=1e-4)
        start += len(ids)


def test_decoding_runs_the_longest_sequence_and_agrees_with_the_prefill(
    decoder: Path, tmp_path: Path
) -> None:
    runtime, _ = run(decoder, tmp_path)
    decode = runtime.settings["decode"]
    assert decode["positions"] == DECODED < len(SEQUENCES[1])
    assert decode["mean_kld"] <= decode["max_kld"] < 1e-9
    assert decode["max_abs"] < 1e-4
    assert decode["tokens_per_second"] > 10
    short, _ = run(decoder, tmp_path, SEQUENCES[:1])
    assert short.settings["decode"]["positions"] == len(SEQUENCES[0])


@pytest.mark.parametrize("fault", ["cache", "window"])
def test_decoding_that_differs_from_the_prefill_shows(fault: str, tmp_path: Path) -> None:
    runtime, logits = run(write_decoder(tmp_path / fault, fault=fault), tmp_path)
    assert runtime.settings["decode"]["mean_kld"] > 0.05
    assert runtime.settings["decode"]["max_abs"] > 1
    assert np.isfinite(logits).all()


def test_decoded_logits_that_are_no_numbers_are_none(tmp_path: Path) -> None:
    runtime, logits = run(write_decoder(tmp_path / "nan", fault="nan"), tmp_path)
    decode = runtime.settings["decode"]
    assert (decode["mean_kld"], decode["max_kld"], decode["max_abs"]) == (None, None, None)
    assert np.isfinite(logits).all()


def test_runtime_and_progress_are_reported(decoder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    runtime = runner.logits(
        decoder,
        SEQUENCES[::2],
        VOCABULARY,
        tmp_path / "logits.npy",
        lambda done, total: seen.append((done, total)),
    )
    assert (runtime.name, runtime.version) == ("onnxruntime", onnxruntime.__version__)
    assert set(runtime.settings) == {
        "provider", "accuracy_level", "rounded_activations", "threads", "peak_bytes", "decode",
    }  # fmt: skip
    assert runtime.settings["provider"] == "cpu"
    assert 20 << 20 < runtime.settings["peak_bytes"] < 1 << 30  # type: ignore[operator]
    assert seen == [(5, 47), *((done, 47) for done in range(26, 48))]


def test_the_accuracy_level_is_applied_without_changing_the_file(decoder: Path, tmp_path: Path) -> None:
    before = decoder.read_bytes()
    rounded, logits = run(decoder, tmp_path)
    rounded_logits = np.array(logits)
    exact, logits = run(decoder, tmp_path, choice={"accuracy_level": 0})
    assert (rounded.settings["accuracy_level"], exact.settings["accuracy_level"]) == (4, 0)
    assert 1e-4 < np.abs(logits - rounded_logits).max() < 0.1
    assert decoder.read_bytes() == before


def test_a_float16_decoder_has_a_float16_cache_and_float32_logits(tmp_path: Path) -> None:
    model = write_decoder(tmp_path / "half", dtype=np.float16)
    runtime, logits = run(model, tmp_path)
    _, single = run(write_decoder(tmp_path / "single"), tmp_path)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, single, atol=0.05)
    assert 0 < runtime.settings["decode"]["mean_kld"] < 1e-5


def test_memory_does_not_grow_with_the_positions(tmp_path: Path) -> None:
    """All logits of the longer run take 268 MB, those of one run of the model 34 MB."""
    model = write_decoder(tmp_path / "wide", vocabulary=1 << 16)
    peaks = []
    for count in (1, 8):
        sequences = [[2, *range(5, 132)]] * count
        runtime = runner.logits(model, sequences, 1 << 16, tmp_path / "logits.npy", no_progress)
        peaks.append(runtime.settings["peak_bytes"])
    assert peaks[1] - peaks[0] < 90e6  # type: ignore[operator]


def test_a_data_file_that_is_missing_is_one_line(decoder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(decoder.read_bytes())
    line = failure(tmp_path / "model.onnx", tmp_path)
    assert line.startswith("onnxruntime on model.onnx: model.onnx.data, where its weights lie, is missing")


@pytest.mark.parametrize("left", [0, 1000])
def test_a_data_file_that_is_cut_off_is_one_line(left: int, tmp_path: Path) -> None:
    model = write_decoder(tmp_path)
    os.truncate(tmp_path / "model.onnx.data", left)
    assert f"model.onnx.data is cut off: it has {left:,} bytes, and tensor " in failure(model, tmp_path)


def elsewhere(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../other/model.onnx.data"


def unordered(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, model.graph.node.pop())


def no_number(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "offset":
                entry.value = "first"


def without_cache(model: onnx.ModelProto) -> None:
    del model.graph.output[-1]


def other_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, [1]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, [1]))


def misfit(model: onnx.ModelProto) -> None:
    (tensor,) = (one for one in model.graph.initializer if one.name == "head.weight")
    tensor.dims[0] -= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (elsewhere, "the onnx checker refuses it: "),
        (unordered, "the onnx checker refuses it: Nodes in a graph must be topologically sorted"),
        (no_number, "is no ONNX model or damaged (invalid literal"),
        (without_cache, "has no output present.1.value, which a decoder with a cache has"),
        (other_inputs, "input pixels is tensor(float) [1]; a cache is float [batch, heads, past, head size]"),
        (misfit, "cannot load it: "),
    ],
)
def test_a_damaged_or_foreign_model_is_one_line(
    change: Callable[[onnx.ModelProto], None], message: str, tmp_path: Path
) -> None:
    path = write_decoder(tmp_path / "model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.onnx.data").write_bytes((path.parent / "model.onnx.data").read_bytes())
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    assert f"onnxruntime on model.onnx: {message}" in failure(path, tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" * 100])
def test_a_file_that_is_no_model_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert failure(tmp_path / "model.onnx", tmp_path).startswith("onnxruntime on model.onnx: ")


def test_another_vocabulary_is_another_model(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"gives logits \[2, 200\] where the checkpoint has \[2, 7\]"):
        runner.logits(decoder, [[2, 5]], 7, tmp_path / "l.npy", no_progress)
    with pytest.raises(ValidationError, match="token 200 is outside the vocabulary of 200"):
        runner.logits(decoder, [[2, 200]], VOCABULARY, tmp_path / "l.npy", no_progress)


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider"])
def test_a_provider_has_a_short_and_a_full_name(name: str, decoder: Path, tmp_path: Path) -> None:
    assert find_provider(name) == "CPUExecutionProvider"
    chosen = runner.configured({"provider": name})
    runtime = chosen.logits(decoder, [[2, 5]], VOCABULARY, tmp_path / "logits.npy", no_progress)
    assert runtime.settings["provider"] == "cpu"
    assert short_name("DirectML") == short_name("DmlExecutionProvider") == "dml"


@pytest.mark.parametrize("name", ["qnn", "RKNPUExecutionProvider", "quantum", "azure", ""])
def test_a_provider_that_this_onnxruntime_lacks_is_a_usage_error_that_lists_the_others(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        runner.configured({"provider": name})
    message = f"provider '{name}' is not in this onnxruntime ({onnxruntime.__version__}); available: "
    assert str(caught.value).startswith(message)
    assert "cpu" in str(caught.value).removeprefix(message).split(", ")


def test_a_provider_that_does_not_start_is_not_replaced_in_silence() -> None:
    check_started("CUDAExecutionProvider", ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(ValidationError, match=r"provider cuda does not start on this machine \(only: cpu\)"):
        check_started("CUDAExecutionProvider", ["CPUExecutionProvider"])


def test_logits_are_written_from_the_first_position_that_is_asked_for(decoder: Path, tmp_path: Path) -> None:
    _, whole = run(decoder, tmp_path)
    firsts = [0, 290, 21]  # of the last, nothing
    output = tmp_path / "some.npy"
    runtime = runner.logits(decoder, SEQUENCES, VOCABULARY, output, no_progress, firsts=firsts)
    counts = [len(ids) - first for ids, first in zip(SEQUENCES, firsts, strict=True)]
    some = map_logits(output, sum(counts))
    np.testing.assert_array_equal(some[:5], whole[:5])
    np.testing.assert_array_equal(some[5:], whole[5 + 290 : 5 + len(SEQUENCES[1])])
    assert runtime.settings["decode"]["positions"] == len(SEQUENCES[0])
    assert runtime.settings["decode"]["mean_kld"] < 1e-4


def test_without_a_whole_sequence_nothing_is_decoded(decoder: Path, tmp_path: Path) -> None:
    output = tmp_path / "some.npy"
    runtime = runner.logits(decoder, [SEQUENCES[0]], VOCABULARY, output, no_progress, firsts=[1])
    assert map_logits(output, len(SEQUENCES[0]) - 1).shape == (len(SEQUENCES[0]) - 1, VOCABULARY)
    assert runtime.settings["decode"] is None


def test_a_model_runs_unrounded_as_it_is_at_the_level_of_float32(decoder: Path, tmp_path: Path) -> None:
    assert runner.unrounded_bytes(decoder) == 0
    path, choice = runner.unrounded(decoder, tmp_path, no_progress)
    runtime, _ = run(path, tmp_path, choice=choice)
    assert (path, runtime.settings["rounded_activations"]) == (decoder, False)


def test_a_model_of_float16_activations_cannot_run_unrounded(
    checkpoint_factory: CheckpointFactory, tmp_path: Path
) -> None:
    checkpoint, onnx_target = open_checkpoint(checkpoint_factory("e2b")), find_target("onnx")
    plan = onnx_target.plan(checkpoint, "model", {"onnx_dtype": "float16"})
    onnx_target.write(checkpoint, plan, tmp_path)
    with pytest.raises(ValidationError, match=r"model\.onnx: computes in float16.*--onnx-dtype float32"):
        runner.unrounded(tmp_path / plan.artifacts[0], tmp_path, no_progress)
