"""Gemma 4 with a drafter in its checkpoint, and a family that names the drafter's tensors."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from converter.checkpoint.architecture import Architecture, Family, gemma4
from converter.checkpoint.directory import Directory
from converter.checkpoint.lattice import bf16_bits
from converter.checkpoint.parts import DRAFTER, Part
from converter.checkpoint.stored.unquantized import form
from converter.filenames import CONFIG, WEIGHTS
from converter.system.untrusted import Settings
from support.raw_safetensors import write_tensors

MODEL_TYPE: Final = "gemma4_drafted"
#: A tensor of the drafter's.
PROJECTION: Final = "mtp.pre_projection.weight"
_PART: Final = Part(DRAFTER, {"mtp.layers.": "drafter layers", "mtp.": "drafter projection"})
_SHAPES: Final = {
    PROJECTION: (32, 256),
    "mtp.post_projection.weight": (128, 32),
    "mtp.layers.0.mlp.up_proj.weight": (64, 32),
    "mtp.layers.0.input_layernorm.weight": (32,),
}
#: Entry points by which a test registers family and form.
ENTRY_POINTS: Final = {
    "qatconvert.families": {MODEL_TYPE: "support.drafted:FAMILY"},
    "qatconvert.forms": {"bf16-drafted": "support.drafted:FORM"},
}


def _read(config: Settings, model_type: str) -> Architecture:
    found = gemma4.read(config, "gemma4")
    return replace(found, model_type=model_type, parts=(*found.parts, _PART))


FAMILY: Final = Family((MODEL_TYPE,), _read)
#: transformers knows no such model, so the reference is computed of its text model's numbers.
FORM: Final = replace(
    form,
    name="bf16-drafted",
    recognises=lambda config: config.get("model_type") == MODEL_TYPE,
    last_resort=False,
    loads_as_stored=False,
)


def write_drafted(source: Path, directory: Path) -> Path:
    """The Gemma 4 in ``source`` with tensors of a drafter beside its own."""
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    random = np.random.default_rng(0)
    tensors: dict[str, Any] = {
        name: tensor.read_rows(0, tensor.rows).reshape(tensor.shape)
        for name, tensor in Directory(source).tensors().tensors.items()
    }
    for name, shape in _SHAPES.items():
        values = random.normal(size=(int(np.prod(shape[:-1])), shape[-1])).astype(np.float32)
        tensors[name] = bf16_bits(values).reshape(shape)
    write_tensors(directory / WEIGHTS, tensors)
    config = json.loads((directory / CONFIG).read_text("utf-8"))
    (directory / CONFIG).write_text(json.dumps({**config, "model_type": MODEL_TYPE}), "utf-8")
    return directory
