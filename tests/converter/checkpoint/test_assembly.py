"""Weights are assembled by what the architecture says of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from converter.checkpoint.assembly import assemble
from converter.checkpoint.opened import open_checkpoint
from converter.checkpoint.weight import Weight
from targets.gguf.storage import GGML
from targets.litert.activations import projections

MATRIX = "layers.0.mlp.up_proj.weight"


def test_a_router_by_any_name_is_neither_coded_nor_quantised(
    checkpoint_factory: Callable[..., Path],
) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    architecture = replace(checkpoint.architecture, routers=(MATRIX,))

    def told(weight: Weight) -> tuple[bool, bool, str]:
        return weight.router, weight.coded, GGML.type_of(weight)

    assert told(checkpoint.weights[MATRIX]) == (False, True, "Q4_0")
    layout = checkpoint.form.layout(checkpoint.config)
    weights = assemble(checkpoint.source.tensors(), architecture, layout).weights
    assert told(weights[MATRIX]) == (True, False, "F32")
    assert [name for name, weight in weights.items() if weight.router] == [MATRIX]


def test_a_product_with_a_router_rounds_nothing(checkpoint_factory: Callable[..., Path]) -> None:
    architecture = open_checkpoint(checkpoint_factory("text")).architecture
    routers = tuple(name for name in architecture.tensors if name.endswith("up_proj.weight"))
    assert set(projections(architecture)) - set(projections(replace(architecture, routers=routers))) == {
        "up_proj"
    }
