"""The GGUF in llama.cpp: exact token ids in, all logits out, and every way it can end."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from converter.errors import ValidationError
from converter.system.progress import no_progress
from validation.logits import map_logits
from validation.runtimes.llamacpp import runner
from validation.runtimes.llamacpp_library import find_library

# the first is longer than a batch and than the sliding window
SEQUENCES = [[2, *(7 + 11 * i % 1000 for i in range(300))], [2, 900, 5, 7, 11], [2, *range(300, 320)]]
POSITIONS = sum(map(len, SEQUENCES))


@pytest.fixture(scope="module")
def logits(e2b: Any, tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.float32]:
    output = tmp_path_factory.mktemp("logits") / "logits.npy"
    runner.logits(e2b.path, SEQUENCES, e2b.checkpoint.architecture.vocabulary, output, no_progress)
    return map_logits(output, POSITIONS)


def patched(source: Path, directory: Path, key: str, value: int) -> Path:
    """A copy of a GGUF with another value of one number in its metadata."""
    copy = directory / "patched.gguf"
    shutil.copyfile(source, copy)
    field = gguf.GGUFReader(copy, "r+").fields[key]
    field.parts[field.data[0]][0] = value
    return copy


def test_logits_are_those_of_llama_cpp_python_to_the_last_bit(e2b: Any, tmp_path: Path) -> None:
    """Its own evaluation, with declarations that are not ours; the kernels are the same only where both see
    batches of one size."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="it is compiled, and no extra needs it")
    runner.logits(e2b.path, [SEQUENCES[0][:64]], 1280, tmp_path / "logits.npy", no_progress)
    model = llama_cpp.Llama(
        str(e2b.path),
        n_ctx=64,
        n_batch=64,
        n_ubatch=64,
        logits_all=True,
        type_k=0,
        type_v=0,
        flash_attn=False,
        op_offload=False,
        verbose=False,
    )
    model.eval(SEQUENCES[0][:64])
    assert np.array_equal(map_logits(tmp_path / "logits.npy", 64), model.scores[:64])


def test_logits_from_an_index_on_are_the_last_rows_of_each_sequence(
    e2b: Any, logits: NDArray[np.float32], tmp_path: Path
) -> None:
    """The first sequence has two batches, the first of which gives no row; of the second, all are wanted."""
    runner.logits(e2b.path, SEQUENCES, 1280, tmp_path / "l.npy", no_progress, firsts=[290, 0, 19])
    last = map_logits(tmp_path / "l.npy", 11 + 5 + 2)
    rows = [*range(290, 301), *range(301, 306), *range(325, 327)]
    # the head's kernel is another one for another number of rows, so not bit for bit
    np.testing.assert_allclose(last, logits[rows], atol=2e-2)


def test_a_sequence_longer_than_the_context_is_refused(e2b: Any, tmp_path: Path) -> None:
    short = patched(e2b.path, tmp_path, "gemma4.context_length", 16)
    runner.logits(short, [[2] * 16], 1280, tmp_path / "logits.npy", no_progress)
    with pytest.raises(ValidationError, match="a sequence of 17 tokens is longer than the context of 16"):
        runner.logits(short, [[2] * 17], 1280, tmp_path / "logits.npy", no_progress)


def test_no_sequence_sees_the_one_before_it(e2b: Any, logits: NDArray[np.float32], tmp_path: Path) -> None:
    vocabulary = e2b.checkpoint.architecture.vocabulary
    runner.logits(e2b.path, SEQUENCES[1:2], vocabulary, tmp_path / "alone.npy", no_progress)
    alone = map_logits(tmp_path / "alone.npy", 5)
    # another size of the context may choose other kernels, so not bit for bit
    np.testing.assert_allclose(alone, logits[301:306], atol=2e-2)


def test_a_split_model_is_loaded_whole(
    checkpoint_factory: Callable[..., Path],
    write_gguf: Callable[..., Any],
    logits: NDArray[np.float32],
    tmp_path: Path,
) -> None:
    artifact = write_gguf(checkpoint_factory("e2b"), tmp_path, split_max_size="500K")
    assert "-00001-of-0000" in artifact.path.name
    output = tmp_path / "logits.npy"
    runner.logits(artifact.path, SEQUENCES, logits.shape[1], output, no_progress)
    np.testing.assert_allclose(map_logits(output, POSITIONS), logits, atol=2e-2)


def test_runtime_and_progress_are_reported(e2b: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    runtime = runner.logits(
        e2b.path,
        SEQUENCES[1:],
        e2b.checkpoint.architecture.vocabulary,
        tmp_path / "logits.npy",
        lambda done, total: seen.append((done, total)),
    )
    assert runtime.name == "llama.cpp"
    installed = find_library()
    assert re.match(r"\d+\.\d+\.\d+", runtime.version), "llama.cpp's own"
    assert runtime.version.endswith(f"{installed.package} {installed.version}")
    assert runtime.settings == {"kv_cache": "f32", "flash_attention": False}
    assert seen == [(5, 26), (26, 26)]


def test_a_failed_assertion_of_llama_cpp_is_one_line(e2b: Any, tmp_path: Path) -> None:
    # the last two layers with keys and values of their own must exist; llama.cpp aborts where they do not
    damaged = patched(e2b.path, tmp_path, "gemma4.attention.shared_kv_layers", 5)
    with pytest.raises(
        ValidationError, match=r"SIGABRT: llama-model\.cpp:\d+: GGML_ASSERT\(.*\) failed"
    ) as caught:
        runner.logits(damaged, [[2, 5]], 1280, tmp_path / "logits.npy", no_progress)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("gemma4.embedding_length", 64, "cannot load the model .*'token_embd.weight' has wrong shape"),
        ("gemma4.block_count", 5, "cannot load the model .*wrong array length"),
    ],
)
def test_a_model_that_does_not_load_is_one_line(
    key: str, value: int, message: str, e2b: Any, tmp_path: Path
) -> None:
    changed = patched(e2b.path, tmp_path, key, value)
    with pytest.raises(ValidationError, match=message) as caught:
        runner.logits(changed, [[2, 5]], 1280, tmp_path / "l.npy", no_progress)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_one_line(e2b: Any, tmp_path: Path) -> None:
    (tmp_path / "half.gguf").write_bytes(e2b.path.read_bytes()[: e2b.path.stat().st_size // 2])
    with pytest.raises(
        ValidationError, match=r"llama\.cpp on half\.gguf: cannot load the model \("
    ) as caught:
        runner.logits(tmp_path / "half.gguf", [[2, 5]], 1280, tmp_path / "l.npy", no_progress)
    assert "\n" not in str(caught.value)


def test_another_vocabulary_is_another_model(e2b: Any, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="has a vocabulary of 1280, the checkpoint one of 7"):
        runner.logits(e2b.path, [[2, 5]], 7, tmp_path / "l.npy", no_progress)
    with pytest.raises(ValidationError, match="token 1280 is outside its vocabulary of 1280"):
        runner.logits(e2b.path, [[2, 1280]], 1280, tmp_path / "l.npy", no_progress)
