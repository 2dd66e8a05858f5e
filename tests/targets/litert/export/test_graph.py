"""The graph without weights: its inputs are the checkpoint's weights, and it computes what transformers does.

The interpreter is given the checkpoint's float values as inputs, so that nothing but the graph is measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("litert_torch")
import torch
import transformers
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from converter.checkpoint.directory import Directory
from converter.checkpoint.opened import Checkpoint, open_checkpoint
from converter.errors import TargetError
from targets.litert.export import request as graph
from targets.litert.export.request import Wanted, export_graphs, needed_memory
from targets.litert.sections import EMBEDDER, PER_LAYER_EMBEDDER, PREFILL_DECODE

#: The target's defaults, so that its bundles have the same graphs.
PREFILL, CONTEXT = 128, 4096
LENGTH = PREFILL + 12
#: Lattices, some with negative scales, and layouts of the configuration.
VARIANTS = {
    "e2b": ("extremum8", "transformers"),
    "26b-a4b": ("extremum8", "hub"),
    "12b": ("max7", "hub"),
    "gemma3": ("max7", "hub"),
}


@dataclass(frozen=True)
class Exported:
    checkpoint: Checkpoint
    paths: Mapping[str, Path]
    steps: tuple[tuple[int, int], ...]

    @property
    def path(self) -> Path:
        return self.paths[PREFILL_DECODE]


@pytest.fixture(scope="session")
def exported(checkpoint_factory, tmp_path_factory):
    """``exported(variant)`` is the graph that the target's plan asks for, exported once a session."""

    def export(variant: str, **options: object) -> Exported:
        scheme, layout = VARIANTS[variant]
        other = {} if layout == "hub" else {"layout": layout}
        checkpoint = open_checkpoint(checkpoint_factory(variant, scheme, **other))
        steps: list[tuple[int, int]] = []
        paths = export_graphs(
            checkpoint,
            Wanted([PREFILL], CONTEXT, **options),
            tmp_path_factory.mktemp(f"graph-{variant}"),
            lambda done, total: steps.append((done, total)),
        )
        return Exported(checkpoint, paths, tuple(steps))

    return export


def matrices(checkpoint):
    return {name: weight for name, weight in checkpoint.weights.items() if len(weight.shape) > 1}


def inputs(exported, interpreter):
    """The checkpoint's values of every weight that is an input."""
    values = {}
    details = {}
    for key in interpreter.get_signature_list():
        details |= interpreter.get_signature_runner(key).get_input_details()
    for name, detail in details.items():
        weight = exported.checkpoint.weights.get(name)
        if weight is None:
            continue
        floats = weight.floats(0, weight.rows)
        if name.endswith("experts.down_proj"):
            floats = floats.reshape(weight.shape).transpose(1, 0, 2)
        values[name] = np.ascontiguousarray(floats.reshape(detail["shape"]))
    return values


def interpreter_of(path):
    return Interpreter(
        model_path=str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )


class Decoder:
    def __init__(self, exported: Exported) -> None:
        self.interpreter = interpreter_of(exported.path)
        self.weights = inputs(exported, self.interpreter)
        details = self.interpreter.get_signature_runner("decode").get_input_details()
        self.cache = {
            name: np.zeros(detail["shape"], np.float32)
            for name, detail in details.items()
            if name.startswith("kv_cache")
        }

    def run(self, signature, tokens, position, cache, **embedded):
        runner = self.interpreter.get_signature_runner(signature)
        mask = np.full((1, 1, len(tokens), CONTEXT), -2.4e38, np.float32)
        for row in range(len(tokens)):
            mask[0, 0, row, : position + row + 1] = 0
        given = {
            "tokens": np.array([tokens], np.int32),
            "input_pos": np.arange(position, position + len(tokens), dtype=np.int32),
            "mask": mask,
            **cache,
            **embedded,
            **self.weights,
        }
        wanted = runner.get_input_details()
        output = runner(**{name: value for name, value in given.items() if name in wanted})
        return output.get("logits"), {key: output[key] for key in output if key.startswith("kv_cache")}


def tokens_of(checkpoint):
    return np.random.default_rng(1).integers(5, checkpoint.architecture.vocabulary - 70, LENGTH).tolist()


def reference(checkpoint, tokens):
    config = transformers.AutoConfig.from_pretrained(checkpoint.source.directory())
    unified = config.model_type == "gemma4_unified"
    kind = transformers.AutoModelForMultimodalLM if unified else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(checkpoint.source.directory(), dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_prefill_then_decode_computes_what_transformers_does(variant, exported):
    made = exported(variant)
    tokens = tokens_of(made.checkpoint)
    expected = reference(made.checkpoint, tokens)
    decoder = Decoder(made)
    nothing, cache = decoder.run(f"prefill_{PREFILL}", tokens[:PREFILL], 0, decoder.cache)
    assert nothing is None  # LiteRT-LM does not read the logits of a prefill
    for position in range(PREFILL, LENGTH):
        logits, cache = decoder.run("decode", [tokens[position]], position, cache)
        assert np.abs(logits[0, 0] - expected[position]).max() < 2e-4


def test_externalised_embedders_feed_the_decoder(exported):
    made = exported("e2b", externalize_embedder=True)
    assert set(made.paths) == {PREFILL_DECODE, EMBEDDER, PER_LAYER_EMBEDDER}
    tokens = tokens_of(made.checkpoint)
    expected = reference(made.checkpoint, tokens)
    decoder = Decoder(made)
    tables = {
        "embeddings": (EMBEDDER, "embedder"),
        "per_layer_embeddings": (PER_LAYER_EMBEDDER, "per_layer_embedder"),
    }
    embedders = {name: (interpreter_of(made.paths[kind]), label) for name, (kind, label) in tables.items()}

    def embedded(phase, suffix, ids):
        found = {}
        for name, (interpreter, label) in embedders.items():
            runner = interpreter.get_signature_runner(f"{phase}_{label}{suffix}")
            weights = inputs(made, interpreter)
            found[name] = runner(token_ids=np.array([ids], np.int32), **weights)["embeddings"]
        return found

    start = tokens[:PREFILL]
    given = embedded("prefill", f"_{PREFILL}", start)
    _, cache = decoder.run(f"prefill_{PREFILL}", start, 0, decoder.cache, **given)
    for position in range(PREFILL, LENGTH):
        token = [tokens[position]]
        logits, cache = decoder.run("decode", token, position, cache, **embedded("decode", "", token))
        assert np.abs(logits[0, 0] - expected[position]).max() < 2e-4


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_matrix_is_an_input_of_its_name(variant, exported):
    made = exported(variant)
    interpreter = Interpreter(model_path=str(made.path))
    details = interpreter.get_signature_runner("decode").get_input_details()
    weights = {name for name in details if "." in name}
    assert weights == set(matrices(made.checkpoint))
    for name, weight in matrices(made.checkpoint).items():
        shape = tuple(details[name]["shape"])
        if name.endswith("experts.down_proj"):
            assert shape == (weight.shape[1], weight.shape[0] * weight.shape[2])
        else:
            assert shape == (weight.rows, weight.columns)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_the_file_holds_no_matrix(variant, exported):
    from ai_edge_litert import schema_py_generated as schema

    made = exported(variant)
    model = schema.Model.GetRootAs(made.path.read_bytes(), 0)
    sizes = [model.Buffers(index).DataLength() for index in range(model.BuffersLength())]
    assert max(sizes) <= 4 * CONTEXT  # the positions of the caches
    assert sum(sizes) < sum(4 * weight.size for weight in matrices(made.checkpoint).values()) / 10


def test_progress_counts_to_its_total(exported):
    assert exported("e2b").steps == ((1, 4), (2, 4), (3, 4), (4, 4))


def test_a_tied_head_is_the_embedding(exported):
    details = Interpreter(model_path=str(exported("12b").path)).get_signature_runner("decode")
    assert "lm_head.weight" not in details.get_input_details()


def test_a_failure_of_the_child_is_one_line(checkpoint_factory, tmp_path):
    directory = checkpoint_factory("text")
    checkpoint = open_checkpoint(directory)
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in directory.iterdir():
        (broken / file.name).symlink_to(file)
    config = json.loads((directory / "config.json").read_text())
    (broken / "config.json").unlink()
    (broken / "config.json").write_text(json.dumps({**config, "hidden_size": 192}))
    moved = replace(checkpoint, source=Directory(broken))
    with pytest.raises(TargetError, match=r": lm_head is \[1280, 192\] in transformers' model, ") as caught:
        export_graphs(moved, Wanted([PREFILL], CONTEXT), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_killed_child_is_told_from_a_failed_one(checkpoint_factory, tmp_path, monkeypatch):
    (tmp_path / "killed.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(graph, "_MODULE", "killed")
    with pytest.raises(TargetError, match="killed, most likely for want of memory"):
        export_graphs(open_checkpoint(checkpoint_factory("text")), Wanted([PREFILL], CONTEXT), tmp_path)


def test_needed_memory_does_not_grow_with_the_width(checkpoint_factory):
    small = open_checkpoint(checkpoint_factory("text")).architecture
    assert needed_memory(small, [8]) == needed_memory(small, [1024])
    assert needed_memory(small, [8, 128]) > needed_memory(small, [8])
    assert 900 < needed_memory(small, [8]) / 2**20 < 1300
