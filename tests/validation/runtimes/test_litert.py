"""LiteRT bundles in LiteRT's interpreter: all logits out, decoding against a prefill, every way to end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.system.progress import no_progress

pytest.importorskip("ai_edge_litert")
from converter.checkpoint.excerpt import Excerpt
from converter.errors import ValidationError
from support.litert_decoder import CONTEXT, POISON, VOCABULARY, at_once, write_decoder, write_embedder
from targets.litert.bundle import Section, read_sections, write_bundle
from targets.litert.sections import EMBEDDER, MODEL, PREFILL_DECODE
from validation.decoding import DECODED
from validation.logits import map_logits
from validation.runtimes import litert_session
from validation.runtimes.litert import runner
from validation.runtimes.litert_session import open_decoder, prefill_runs

#: One that fills the caches, one that is shorter than a prefill, one of a single token.
SEQUENCES = [[2, *(7 + 11 * i % 190 for i in range(CONTEXT - 1))], [2, 90, 5, 7, 11], [2]]


def run(model: Path, directory: Path, sequences: list[list[int]] = SEQUENCES, **options: Any) -> Any:
    """The runtime and the logits of ``sequences``."""
    output = directory / "logits.npy"
    runtime = runner.logits(model, sequences, VOCABULARY, output, no_progress, **options)
    return runtime, map_logits(output, sum(map(len, sequences)))


def expected(sequences: list[list[int]] = SEQUENCES) -> Any:
    return np.concatenate([at_once(ids) for ids in sequences])


def write_sections(path: Path, **models: Path) -> Path:
    """A bundle of models by the type under which they are found."""

    def section(kind: str, model: Path) -> Section:
        return Section(MODEL, lambda stream: stream.write(model.read_bytes()), kind)

    write_bundle(path, [Section("LlmMetadataProto", b"x"), *(section(*item) for item in models.items())])
    return path


def failure(model: Path, directory: Path, sequences: list[list[int]] | None = None) -> str:
    """What running ``model`` ends with, in one line that names no directory; no file is left."""
    directory = directory / "run"
    directory.mkdir()
    with pytest.raises(ValidationError) as caught:
        run(model, directory, sequences or [[2, 5]])
    line = str(caught.value)
    assert "\n" not in line
    assert str(model.parent) not in line
    assert not list(directory.glob(".litert*"))
    prefix = f"LiteRT on {model.name}: "
    assert line.startswith(prefix)
    return line.removeprefix(prefix)


# the second leaves no room for another prefill behind two, the third holds all that fits
@pytest.mark.parametrize("lengths", [(4, 16), (20,), (CONTEXT,)])
def test_logits_are_those_of_each_sequence_computed_at_once(lengths: tuple[int, ...], tmp_path: Path) -> None:
    model = write_decoder(tmp_path / "model.tflite", lengths=lengths)
    runtime, logits = run(model, tmp_path)
    np.testing.assert_allclose(logits, expected(), atol=1e-4)
    assert runtime.settings["signatures"] == sorted(["decode", *(f"prefill_{n}" for n in lengths)])
    assert runtime.settings["decode"]["positions"] == CONTEXT < DECODED
    assert runtime.settings["decode"]["max_kld"] < 1e-9


def test_logits_are_written_from_the_first_position_that_is_wanted(tmp_path: Path) -> None:
    model = write_decoder(tmp_path / "model.tflite")
    output, firsts = tmp_path / "logits.npy", [40, 0, 0]
    runtime = runner.logits(model, SEQUENCES, VOCABULARY, output, no_progress, firsts=firsts)
    wanted = np.concatenate([at_once(ids)[first:] for ids, first in zip(SEQUENCES, firsts, strict=True)])
    np.testing.assert_allclose(map_logits(output, len(wanted)), wanted, atol=1e-4)
    assert runtime.settings["decode"]["positions"] == len(SEQUENCES[1])  # type: ignore[index]
    runtime = runner.logits(model, SEQUENCES[:1], VOCABULARY, output, no_progress, firsts=[40])
    assert "decode" not in runtime.settings


def test_a_model_in_a_bundle_is_run_from_a_copy_that_goes(tmp_path: Path) -> None:
    model = write_decoder(tmp_path / "model.tflite")
    path = write_sections(tmp_path / "model.litertlm", **{PREFILL_DECODE: model})
    (tmp_path / "run").mkdir()
    _, logits = run(path, tmp_path / "run")
    np.testing.assert_allclose(logits, expected(), atol=1e-4)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["logits.npy"]


def test_a_model_behind_4_gigabytes_of_a_bundle_is_run(tmp_path: Path) -> None:
    model = write_decoder(tmp_path / "model.tflite")
    path = tmp_path / "model.litertlm"
    far = Section("GenericBinaryData", lambda stream: stream.truncate((1 << 32) + 4096))  # a hole on the disk
    near = Section(MODEL, lambda stream: stream.write(model.read_bytes()), PREFILL_DECODE)
    write_bundle(path, [far, near])
    assert read_sections(path)[1].offset > 1 << 32
    _, logits = run(path, tmp_path, SEQUENCES[1:])
    np.testing.assert_allclose(logits, expected(SEQUENCES[1:]), atol=1e-4)


def test_embedders_feed_the_decoder(tmp_path: Path) -> None:
    decoder = write_decoder(tmp_path / "decoder.tflite", lengths=(4, 16), embedded=True)
    embedder = write_embedder(tmp_path / "embedder.tflite", lengths=(4, 16))
    models = {PREFILL_DECODE: decoder, EMBEDDER: embedder}
    runtime, logits = run(write_sections(tmp_path / "model.litertlm", **models), tmp_path)
    np.testing.assert_allclose(logits, expected(), atol=1e-4)
    assert {"decode", "decode_embedder", "prefill_embedder_4"} < set(runtime.settings["signatures"])


@given(st.integers(1, 300), st.sets(st.integers(2, 200), min_size=1), st.integers(0, 100))
def test_prefills_cover_every_token_and_never_leave_the_caches(
    count: int, lengths: set[int], room: int
) -> None:
    runs = list(prefill_runs(count, tuple(lengths), count + room))
    assert [start for start, _ in runs] == [sum(n for _, n in runs[:index]) for index in range(len(runs))]
    assert all(length in lengths | {1} for _, length in runs)
    (*_, (start, length)) = runs
    assert start < count <= start + length <= count + room


@pytest.mark.parametrize(
    ("count", "lengths", "context", "runs"),
    [
        (300, (128, 1024), 4096, [(0, 1024)]),
        (300, (32, 128), 4096, [(0, 128), (128, 128), (256, 128)]),
        (270, (128, 32), 4096, [(0, 128), (128, 128), (256, 32)]),
        (300, (32, 128), 300, [(0, 128), (128, 128), (256, 32), *((n, 1) for n in range(288, 300))]),
    ],
)
def test_prefills_are_chosen_as_the_engine_does(
    count: int, lengths: tuple[int, ...], context: int, runs: list[tuple[int, int]]
) -> None:
    assert list(prefill_runs(count, lengths, context)) == runs


def test_keys_and_values_that_a_prefill_loses_show(tmp_path: Path) -> None:
    runtime, logits = run(write_decoder(tmp_path / "lost.tflite", fault="lost"), tmp_path)
    assert runtime.settings["decode"]["mean_kld"] > 0.05
    assert np.abs(logits - expected()).max() > 1


def test_logits_that_are_no_numbers_are_none(tmp_path: Path) -> None:
    runtime, logits = run(write_decoder(tmp_path / "nan.tflite", fault="nan"), tmp_path)
    decode = runtime.settings["decode"]
    assert (decode["mean_kld"], decode["max_kld"], decode["max_abs"]) == (None, None, None)
    bad = np.isnan(logits).any(axis=1)
    assert bad.tolist() == [position == POISON for ids in SEQUENCES for position in range(len(ids))]


def test_runtime_and_progress_are_reported(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = write_decoder(tmp_path / "model.tflite")
    runtime = runner.logits(
        model,
        SEQUENCES[1:],
        VOCABULARY,
        tmp_path / "l.npy",
        lambda done, total: seen.append((done, total)),
    )
    assert (runtime.name, runtime.version) == ("LiteRT", version("ai-edge-litert"))
    settings = runtime.settings
    assert set(settings) == {
        "provider", "signatures", "context_length", "rounded_activations", "threads", "peak_bytes", "decode",
    }  # fmt: skip
    assert (settings["provider"], settings["context_length"]) == ("cpu", CONTEXT)
    assert settings["rounded_activations"] is False
    assert 20 << 20 < settings["peak_bytes"] < 1 << 30  # type: ignore[operator]
    assert seen == [(done, 11) for done in range(1, 12)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": {"decode": "generate"}}, "has no signature decode (only: generate, prefill_16)"),
        ({"names": {"prefill_16": "fill_16"}}, "has no signature prefill_N, which fills the caches"),
        ({"fault": "context"}, "prefill_16: input mask is float32 [1, 1, 16, 24], expected float32 [1, 1, "),
        ({"fault": "input"}, "prefill_16 has an input pixels, which a decoder with caches has not"),
        ({"vocabulary": 120}, "gives logits of 120 tokens where the checkpoint has 200"),
        ({"embedded": True}, "its decoder takes embeddings, and there is no model tf_lite_embedder that"),
    ],
)
def test_a_model_of_another_kind_is_one_line(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert failure(write_decoder(tmp_path / "model.tflite", **options), tmp_path).startswith(message)


def test_an_embedder_of_other_lengths_is_one_line(tmp_path: Path) -> None:
    decoder = write_decoder(tmp_path / "decoder.tflite", embedded=True)
    embedder = write_embedder(tmp_path / "embedder.tflite", lengths=(8,))
    models = {PREFILL_DECODE: decoder, EMBEDDER: embedder}
    line = failure(write_sections(tmp_path / "model.litertlm", **models), tmp_path)
    assert line == "prefill_16 takes embeddings as float32 [1, 16, 16], tf_lite_embedder makes none"


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([2, 200], "token 200 is outside the vocabulary of 200"),
        ([5] * (CONTEXT + 1), "a sequence of 49 positions does not fit its context of 48; validate fewer"),
    ],
)
def test_tokens_that_do_not_fit_are_one_line(tokens: list[int], message: str, tmp_path: Path) -> None:
    assert failure(write_decoder(tmp_path / "model.tflite"), tmp_path, [tokens]).startswith(message)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" * 100, b"\x08\0\0\0TFL3" + b"\xff" * 200])
def test_a_file_that_is_no_model_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(content)
    line = failure(tmp_path / "model.tflite", tmp_path)
    assert "not a TFLite model" in line or "not a whole TFLite model" in line


def test_a_model_that_is_cut_off_is_one_line(tmp_path: Path) -> None:
    model = write_decoder(tmp_path / "model.tflite")
    os.truncate(model, model.stat().st_size // 2)
    assert failure(model, tmp_path).startswith("not a whole TFLite model")


def test_a_bundle_that_is_cut_off_is_one_line(tmp_path: Path) -> None:
    model = write_decoder(tmp_path / "model.tflite")
    path = write_sections(tmp_path / "model.litertlm", **{PREFILL_DECODE: model})
    os.truncate(path, path.stat().st_size - 1)
    assert failure(path, tmp_path).startswith("not a whole .litertlm file: section 'TFLiteModel' reaches")


def test_a_bundle_without_a_decoder_is_one_line(tmp_path: Path) -> None:
    path = write_sections(tmp_path / "model.litertlm", **{EMBEDDER: write_embedder(tmp_path / "e")})
    assert failure(path, tmp_path) == "has 0 sections TFLiteModel tf_lite_prefill_decode, expected 1"


def test_room_that_is_lacking_for_a_copy_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_decoder(tmp_path / "model.tflite")
    path = write_sections(tmp_path / "model.litertlm", **{PREFILL_DECODE: model})
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(litert_session.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValidationError, match=r"copies of its models need \S+ kB for temporary .* 1 kB are"):
        open_decoder(path, tmp_path)


def refuse(*_: object) -> int:
    raise OSError("not between these file systems")


@pytest.mark.parametrize("copy", [getattr(os, "copy_file_range", refuse), refuse, lambda *_: 0])
def test_a_section_is_copied_whole_with_the_kernels_help_and_without(
    copy: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_decoder(tmp_path / "model.tflite")
    path = write_sections(tmp_path / "model.litertlm", **{PREFILL_DECODE: model})
    monkeypatch.setattr(litert_session, "_PIECE", 1000)
    monkeypatch.setattr(os, "copy_file_range", copy, raising=False)
    open_decoder(path, tmp_path)
    (copied,) = tmp_path.glob(f"{PREFILL_DECODE}.tflite")
    assert copied.read_bytes() == model.read_bytes()
    assert read_sections(path)[1].size == model.stat().st_size


def test_a_graph_without_layers_is_not_cut_to_some_of_them(tmp_path: Path) -> None:
    excerpt = Excerpt((0,), 2, 2, ("full", "full"))
    model = write_decoder(tmp_path / "model.tflite")
    for ask in (
        lambda: runner.unrounded_bytes(model, excerpt),
        lambda: runner.unrounded(model, tmp_path, no_progress, excerpt),
    ):
        with pytest.raises(
            ValidationError, match=r"model\.tflite: the graph cannot be cut to some of its layers: no norm"
        ):
            ask()
