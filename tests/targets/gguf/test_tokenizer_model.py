"""A model that stands for another where only its tokenizer and its templates matter."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.demo import DEMO
from converter.errors import CheckpointError, DestinationError
from converter.system.child import Worker
from converter.system.progress import no_progress
from support.tampering import GgufFile
from targets.gguf.metadata import read_entries
from targets.gguf.tokenizer_model import TEMPLATE, write_tokenizer_model


@pytest.fixture
def demo(demo_output: Path) -> Path:
    (path,) = (demo_output / "gguf").glob("*.gguf")
    return path


def test_llama_cpp_reads_the_same_tokenizer_and_template(demo: Path, tmp_path: Path) -> None:
    path = tmp_path / "standin.gguf"
    write_tokenizer_model(demo, path)
    with Worker("validation.runtimes.llamacpp_text_model") as worker:
        own, other = (
            worker.call(
                {"artifact": str(one), "texts": ["Lists <b>é</b>", "<|turn>user\n"]}, no_progress, what="it"
            )
            for one in (demo, path)
        )
    assert own == other
    assert own["template"] == (DEMO / "chat_template.jinja").read_text("utf-8")


def test_its_size_is_that_of_the_vocabulary(demo: Path, tmp_path: Path) -> None:
    path = tmp_path / "standin.gguf"
    write_tokenizer_model(demo, path)
    contents = read_entries(path)
    assert {key.partition(".")[0] for key, _ in contents.entries} == {"general", "llama", "tokenizer"}
    assert {tensor.name for tensor in contents.tensors} > {"token_embd.weight", "blk.0.ffn_up.weight"}
    assert path.stat().st_size == contents.data + sum(tensor.bytes for tensor in contents.tensors)
    assert sum(tensor.bytes for tensor in contents.tensors) < 200 * 1280


def test_another_template_can_be_put_in(demo: Path, tmp_path: Path) -> None:
    path = tmp_path / "standin.gguf"
    write_tokenizer_model(demo, path, "{{ 'é' }}")
    templates = [value for key, value in read_entries(path).entries if key == TEMPLATE]
    assert [value[12:].decode() for value in templates] == ["{{ 'é' }}"]


def test_a_file_without_a_vocabulary_and_a_place_that_is_none_are_refused(demo: Path, tmp_path: Path) -> None:
    file = GgufFile.read(demo)
    file.keys = [(key, value) for key, value in file.keys if key != "tokenizer.ggml.tokens"]
    file.write(tmp_path / "bare.gguf")
    with pytest.raises(CheckpointError, match=r"bare\.gguf: has no tokenizer\.ggml\.tokens"):
        write_tokenizer_model(tmp_path / "bare.gguf", tmp_path / "standin.gguf")
    with pytest.raises(DestinationError):
        write_tokenizer_model(demo, tmp_path / "nowhere" / "standin.gguf")
