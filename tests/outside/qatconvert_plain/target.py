"""Plain numbers in one safetensors file, which the public package ``safetensors`` reads: weights by the names
that transformers has for a text model, and the model's configuration in the file's metadata."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.tokenizer_pipeline import Step
from converter.checkpoint.weight import Weight
from converter.errors import CheckpointError, DestinationError, UsageError
from converter.system.progress import Progress, counted, no_progress, stage_of
from qatconvert_plain.options import OPTIONS, TYPES
from targets.options import Option
from targets.storing import Holdings
from targets.target import Difference, Plan, PlannedFile, PlannedTensor, Stored, StoredTensor

CONFIG = "config"


class PlainTarget:
    """Option: ``plain_type`` (``float32``, ``float16``)."""

    name = "plain-numbers"
    suffix = ".plain.safetensors"
    extra = ""
    modules = ("safetensors",)
    libraries = ("numpy", "safetensors")
    options: Sequence[Option] = OPTIONS.options

    def check(self, options: Mapping[str, object]) -> None:
        """Raise ``UsageError`` for a type that is not known."""
        type_of(options)

    def check_model(self, checkpoint: Checkpoint, options: Mapping[str, object]) -> None:
        """Every model has plain numbers."""

    def lacking_steps(self, checkpoint: Checkpoint) -> Sequence[Step]:
        """All: a file holds no tokenizer."""
        return checkpoint.tokenizer.steps

    def plan(
        self,
        checkpoint: Checkpoint,
        name: str,
        options: Mapping[str, object],
        progress: Progress = no_progress,
    ) -> Plan:
        """One type for all weights, but for what the rule for storing keeps in float32."""
        chosen = type_of(options)
        held = holdings(chosen)
        return Plan(
            target=self.name,
            files=(PlannedFile(f"plain/{name}{self.suffix}"),),
            tensors=tuple(
                PlannedTensor(
                    weight.name,
                    stored_name(weight.name),
                    weight.shape,
                    held.type_of(weight),
                    weight.rows * held.row_bytes(held.type_of(weight), weight.columns),
                    held.is_exact(weight, held.type_of(weight)),
                )
                for weight in checkpoint.weights.values()
            ),
            options={"name": name, "plain_type": chosen},
            scales="float32",
        )

    def write(
        self, checkpoint: Checkpoint, plan: Plan, directory: Path, progress: Progress = no_progress
    ) -> Stored:
        """Write the file. Raises ``DestinationError``."""
        advance = counted(stage_of(progress, f"writing {self.name}"), checkpoint.stored_bytes)
        path = directory / plan.artifacts[0]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            tensors = {}
            for planned in plan.tensors:
                weight = checkpoint.weights[planned.weight]
                tensors[planned.stored_as] = numbers(weight, planned.type)
                advance(weight.stored_bytes)
            save_file(tensors, path, metadata(checkpoint))
        except OSError as error:
            raise DestinationError(f"{path}: cannot be written: {error.strerror}") from error
        return Stored()

    def deliver(self, plan, output, options, passed, progress=no_progress) -> Sequence[str]:  # type: ignore[no-untyped-def]
        """Nothing is to be done."""
        return ()

    def choices(self, plan: Plan) -> Sequence[Mapping[str, object]]:
        """None: there is one way to run it."""
        return ()

    def written(self, plan: Plan, choice: Mapping[str, object]) -> Plan:
        """No choice takes another artifact."""
        return plan

    def choose(self, artifact: Path, choice: Mapping[str, object]) -> None:
        """Nothing is to be done."""

    def files(self, artifact: Path) -> Sequence[Path]:
        """The one file."""
        if not artifact.is_file():
            raise CheckpointError(f"{artifact}: is missing")
        return (artifact,)

    def describe(self, artifact: Path, checkpoint: Checkpoint) -> Mapping[str, StoredTensor]:
        """Each weight that the file has."""
        tensors, _ = read(artifact)
        found = {}
        for weight in checkpoint.weights.values():
            name = stored_name(weight.name)
            if name not in tensors or tensors[name].shape != weight.shape:
                raise CheckpointError(f"{artifact}: has no tensor {name} of shape {list(weight.shape)}")
            found[weight.name] = stored(weight, name, tensors[name])
        return found

    def recognises(self, artifact: Path) -> bool:
        """Whether the file's metadata have a configuration."""
        try:
            return CONFIG in read(artifact)[1]
        except CheckpointError:
            return False

    def infer_options(self, artifact: Path, checkpoint: Checkpoint) -> Mapping[str, object]:
        """The type of most numbers."""
        counted: Counter[str] = Counter()
        for values in read(artifact)[0].values():
            counted[str(values.dtype)] += values.size
        return {"plain_type": counted.most_common(1)[0][0]}

    def differences(
        self, artifact: Path, checkpoint: Checkpoint, plan: Plan, progress: Progress = no_progress
    ) -> Sequence[Difference]:
        """Names, numbers and metadata that are not what ``write`` makes."""
        tensors, described = read(artifact)
        expected = {planned.stored_as: planned for planned in plan.tensors}
        found = [Difference(name, "a tensor", "none") for name in sorted(expected.keys() - tensors.keys())]
        found += [Difference(name, "none", "a tensor") for name in sorted(tensors.keys() - expected.keys())]
        advance = counted(stage_of(progress, f"comparing {self.name}"), checkpoint.stored_bytes)
        for name in expected.keys() & tensors.keys():
            weight = checkpoint.weights[expected[name].weight]
            right, there = numbers(weight, expected[name].type), tensors[name]
            if right.dtype != there.dtype or right.shape != there.shape or right.tobytes() != there.tobytes():
                found.append(Difference(name, "the checkpoint's numbers", "others"))
            advance(weight.stored_bytes)
        if described != metadata(checkpoint):
            found.append(Difference("metadata", "the checkpoint's configuration", "another"))
        return found


def type_of(options: Mapping[str, object]) -> str:
    """The option; raises ``UsageError`` for a type that is not known."""
    given = options.get("plain_type") or TYPES[0]
    if given not in TYPES:
        raise UsageError(f"--plain-type {given}: give {' or '.join(TYPES)}")
    return str(given)


def holdings(chosen: str) -> Holdings:
    """What a file holds: numbers alone, of the type that was ``chosen``."""
    return Holdings("plain-numbers", (), {"F32": "float32", "F16": "float16"}, chosen, chosen)


def stored_name(name: str) -> str:
    """A weight's name in transformers' class for text."""
    return name if name.startswith("lm_head.") else f"model.{name}"


def numbers(weight: Weight, dtype: str) -> NDArray[Any]:
    """All values of a weight, in its shape. Raises ``TargetError`` for one that the type does not hold."""
    values = np.concatenate([weight.floats(start, stop) for start, stop in weight.row_ranges()])
    holdings(dtype).check_numbers(weight, dtype, values)
    return values.astype(dtype).reshape(weight.shape)


def metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """What the file says of the model."""
    config: Any = checkpoint.config.get("text_config", checkpoint.config)
    kept = {key: value for key, value in config.items() if key != "quantization_config"}
    return {CONFIG: json.dumps({**kept, "tie_word_embeddings": checkpoint.architecture.tied_head})}


def read(artifact: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The file's tensors and metadata; raises ``CheckpointError`` for a damaged file."""
    try:
        with safe_open(artifact, framework="np") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{artifact}: cannot be read: {error}") from error


def stored(weight: Weight, name: str, values: NDArray[Any]) -> StoredTensor:
    """A tensor of the file, by rows of the checkpoint's weight."""
    rows = values.reshape(weight.rows, weight.columns)
    dtype = str(values.dtype)
    return StoredTensor(
        weight.name,
        name,
        dtype,
        weight.shape,
        values.nbytes,
        lambda start, stop: rows[start:stop].astype(np.float32),
        lambda start, stop: weight.floats(start, stop).astype(dtype).astype(np.float32),
    )


target = PlainTarget()
