"""A checkpoint: architecture, weights, tokenizer and what else it holds, checked against each other."""

from __future__ import annotations

import os
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from converter.checkpoint.architecture import Architecture, read_architecture
from converter.checkpoint.card import Card, read_card
from converter.checkpoint.documents import EVALUATION_TEXT, MODEL_CONFIG, Documents, evaluation_text
from converter.checkpoint.generation import Generation, read_generation
from converter.checkpoint.parts import TEXT
from converter.checkpoint.safetensors import INDEX, SINGLE, Shards, SourceTensor, open_shards, read_index
from converter.checkpoint.source import CheckpointSource, Directory
from converter.checkpoint.stored import find_format
from converter.checkpoint.stored.unquantized import NUMBERS, number_weight
from converter.checkpoint.tokenizer import Tokenizer, read_tokenizer
from converter.checkpoint.weight import Weight
from converter.errors import CheckpointError
from converter.system.untrusted import Settings, shown

_HEAD: Final = "lm_head.weight"
_EMBEDDING: Final = "embed_tokens.weight"
_CLIP_BOUNDS: Final = ("input_min", "input_max", "output_min", "output_max")
_COMPARED_VALUES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A tensor that is no weight of the text model: its name in the checkpoint, what is stored, the part that
    it belongs to, and why a text model does without it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    reason: str
    part: str = TEXT


@dataclass(frozen=True, slots=True)
class PartSize:
    """How many ``tensors`` of a checkpoint belong to a part, and the ``bytes`` that they take there."""

    tensors: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint: all that it holds, read and checked.

    ``source`` is where it came from. ``format`` is the stored format's name, ``config`` is ``config.json`` as
    read. ``weights`` maps canonical names to the text model's weights, in model order; ``left_out`` lists
    every other tensor. ``parts`` has the weights of other parts that are stored as numbers, by part and name
    in the checkpoint. ``tokenizer`` has the chat template, ``generation`` how answers are sampled.
    ``documents`` are the files beside the weights, as read; ``card`` is the model card. A checkpoint of which
    only the description was read has no ``weights``.
    """

    source: CheckpointSource
    format: str
    config: Mapping[str, object]
    architecture: Architecture
    weights: Mapping[str, Weight]
    left_out: tuple[LeftOut, ...]
    tokenizer: Tokenizer
    generation: Generation
    documents: Documents
    card: Card = field(default_factory=Card)
    parts: Mapping[str, Mapping[str, Weight]] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that was read, and the text to be judged on where there is one."""
        return tuple(self.source.files)

    def evaluation(self) -> Settings | None:
        """The text that the checkpoint brings to be judged on, ``None`` without one: the JSON object of its
        file, which is read only here. Raises ``CheckpointError``."""
        return evaluation_text(self.documents)

    @property
    def parameters(self) -> int:
        """Number of values over all weights."""
        return sum(weight.size for weight in self.weights.values())

    @property
    def part_sizes(self) -> dict[str, PartSize]:
        """What the checkpoint holds of each part, the text model first."""
        text = [weight.stored_bytes for weight in self.weights.values()]
        sizes = {TEXT: text}
        for item in self.left_out:
            sizes.setdefault(item.part, []).append(item.bytes)
        return {part: PartSize(len(found), sum(found)) for part, found in sizes.items()}

    def parts_left_out(self, stored: Collection[str] = ()) -> list[dict[str, object]]:
        """What is not converted, as reports have it: the ``part`` for a reader, how many ``tensors`` and
        ``bytes``, and the part that they are ``of``. Tensors in ``stored`` are converted after all."""
        found: dict[tuple[str, str], list[int]] = {}
        for item in self.left_out:
            if item.name not in stored:
                key = item.reason.removesuffix(" (clip bound)"), item.part
                found.setdefault(key, []).append(item.bytes)
        return [
            {"part": reason, "tensors": len(sizes), "bytes": sum(sizes), "of": part}
            for (reason, part), sizes in found.items()
        ]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all weights as the files hold them."""
        return sum(weight.stored_bytes for weight in self.weights.values())


def open_checkpoint(path: Path) -> Checkpoint:
    """Open the checkpoint in a directory: headers, configuration, tokenizer and samples of the weights.

    Raises ``CheckpointError`` for a file that is missing, damaged, hostile or of a kind that is not
    read, and for tensors that do not fit the configuration: missing, unexpected or of another shape.
    """
    shards, documents = open_shards(path), Documents(path)
    config = documents.settings(MODEL_CONFIG).values
    stored = find_format(config)
    tensors, left_out, architecture = _settle_head(*_sort_out(shards, read_architecture(config)))
    weights, rest = stored.weights(tensors, architecture.tensors)
    _check(shards, architecture, weights)
    left_out += tuple(_unused(architecture, name, tensors[name]) for name in rest)
    opened = _opened(path, documents, config, stored.name, architecture, shards.files)
    return replace(opened, weights=weights, left_out=left_out, parts=_parts(shards, left_out))


def open_description(path: Path) -> Checkpoint:
    """Open what describes the checkpoint in a directory, which need not have its weights yet: configuration,
    tokenizer, and the names of its tensors if they have an index.

    Raises ``CheckpointError`` for what would make ``open_checkpoint`` fail, as far as it shows there.
    """
    documents = Documents(path)
    config = documents.settings(MODEL_CONFIG).values
    stored, architecture = find_format(config), read_architecture(config)
    index = path / INDEX
    described = os.path.lexists(index) and not os.path.lexists(path / SINGLE)
    opened = _opened(path, documents, config, stored.name, architecture, (index,) if described else ())
    if described:
        _check_index(index, architecture)
    return opened


def _opened(
    path: Path,
    documents: Documents,
    config: Mapping[str, object],
    form: str,
    architecture: Architecture,
    files: tuple[Path, ...],
) -> Checkpoint:
    """The checkpoint with what stands beside its weights, whose ``files`` are given, and without these."""
    tokenizer, card = read_tokenizer(documents, architecture.vocabulary), read_card(path)
    evaluation = (documents.path(EVALUATION_TEXT),) if EVALUATION_TEXT in documents else ()
    files = (documents.path(MODEL_CONFIG), *files, *tokenizer.files, *_card_files(card), *evaluation)
    return Checkpoint(
        source=Directory(path, files),
        format=form,
        config=config,
        architecture=architecture,
        weights={},
        left_out=(),
        tokenizer=tokenizer,
        generation=read_generation(documents, architecture.vocabulary),
        documents=documents,
        card=card,
    )


def _card_files(card: Card) -> tuple[Path, ...]:
    return () if card.file is None else (card.file,)


def _check_index(index: Path, architecture: Architecture) -> None:
    """Refuse an index without a tensor that the architecture needs, or with one that it has no place for."""
    listed = [name for name in read_index(index) if _outside(name, architecture) is None]
    names = {canonical_name(name, architecture): name for name in listed}
    if _HEAD in names and architecture.tied_head:
        names.setdefault(_EMBEDDING, names.pop(_HEAD))  # either serves as both
    if not architecture.tensors.keys() <= names.keys():
        raise _missing(str(index), architecture, names)
    for name, source in names.items():
        if name not in architecture.tensors and name not in architecture.unused:
            raise _unexpected(f"{index}: tensor {shown(source)}", architecture)


def _parts(shards: Shards, left_out: Iterable[LeftOut]) -> dict[str, dict[str, Weight]]:
    """The weights of other parts than the text model, by part; of tensors that are stored as numbers."""
    found: dict[str, dict[str, Weight]] = {}
    for item in left_out:
        if item.part != TEXT and item.dtype in NUMBERS:
            found.setdefault(item.part, {})[item.name] = number_weight(shards.tensors[item.name])
    return found


Sorted = tuple[dict[str, SourceTensor], tuple[LeftOut, ...], Architecture]


def _sort_out(shards: Shards, architecture: Architecture) -> Sorted:
    """The text model's tensors by canonical name, and what lies outside the text model."""
    tensors: dict[str, SourceTensor] = {}
    left_out: list[LeftOut] = []
    for tensor in shards.tensors.values():
        outside = _outside(tensor.name, architecture)
        if outside is not None:
            part, reason = outside
            left_out.append(_left_out(tensor, reason, part))
            continue
        name = canonical_name(tensor.name, architecture)
        if name in tensors:
            raise CheckpointError(f"{tensor.where} is {name}, which {shown(tensors[name].name)} is as well")
        tensors[name] = tensor
    return tensors, tuple(left_out), architecture


def _outside(name: str, architecture: Architecture) -> tuple[str, str] | None:
    """The part of a tensor outside the text model's weights, and what it is there; ``None`` for a weight."""
    bound = name.rpartition(".")[2] in _CLIP_BOUNDS
    for part in architecture.parts:
        for start, what in part.tensors.items():
            if name.startswith(start):
                return part.name, f"{what} (clip bound)" if bound else what
    return (TEXT, "clip bound, which the text model does not use") if bound else None


def canonical_name(name: str, architecture: Architecture) -> str:
    """The canonical name of a text tensor: without prefix, and without a clippable linear's ``.linear``."""
    start = next(prefix for prefix in architecture.prefixes if name.startswith(prefix))
    bare = name.removeprefix(start)
    plain = bare.removesuffix(".linear.weight") + ".weight" if bare.endswith(".linear.weight") else bare
    return plain if plain in architecture.tensors or plain in architecture.unused else bare


def _settle_head(
    tensors: dict[str, SourceTensor], left_out: tuple[LeftOut, ...], model: Architecture
) -> Sorted:
    """Decide what a stored output head is where the configuration ties it to the embedding.

    As transformers 5.23 does on load: one that equals the embedding is the embedding, one that
    differs unties them, and one that is stored alone serves as both.
    """
    head, embedding = tensors.get(_HEAD), tensors.get(_EMBEDDING)
    if head is None or not model.tied_head:
        return tensors, left_out, model
    rest = {name: tensor for name, tensor in tensors.items() if name != _HEAD}
    if embedding is None:
        return {**rest, _EMBEDDING: head}, left_out, model
    shape = (model.vocabulary, model.hidden)
    if head.shape == shape and _same(head, embedding):
        return rest, (*left_out, _left_out(head, "equal to the embedding it is tied to")), model
    return tensors, left_out, replace(model, tied_head=False, tensors={**model.tensors, _HEAD: shape})


def _same(one: SourceTensor, other: SourceTensor) -> bool:
    """Whether two tensors hold the same bits."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    step = max(1, _COMPARED_VALUES // max(1, one.columns))
    for start in range(0, one.rows, step):
        stop = min(start + step, one.rows)
        first, second = (tensor.read_rows(start, stop).view(np.uint8) for tensor in (one, other))
        if not np.array_equal(first, second):
            return False
    return True


def _check(shards: Shards, architecture: Architecture, weights: Mapping[str, Weight]) -> None:
    """Every expected tensor is there and has the shape that the configuration asks for."""
    for name, shape in architecture.tensors.items():
        if name not in weights:
            raise _missing(str(shards.files[0]), architecture, weights)
        weight = weights[name]
        if weight.shape != shape:
            source = shards.tensors.get(weight.source)
            where = source.where if source else f"{shards.files[0]}: tensor {shown(weight.source)}"
            raise CheckpointError(
                f"{where} has shape {list(weight.shape)}, config.json asks for {list(shape)}"
            )


def _missing(where: str, architecture: Architecture, names: Container[str]) -> CheckpointError:
    first, *others = [name for name in architecture.tensors if name not in names]
    more = f" and {len(others)} more" if others else ""
    return CheckpointError(
        f"{where}: tensor {first!r}{more} is missing; "
        f"config.json describes a {architecture.model_type} of {len(architecture.layers)} layers"
    )


def _unexpected(where: str, architecture: Architecture) -> CheckpointError:
    return CheckpointError(
        f"{where} is unexpected: config.json describes a {architecture.model_type} of "
        f"{len(architecture.layers)} layers without it"
    )


def _unused(architecture: Architecture, name: str, tensor: SourceTensor) -> LeftOut:
    """A text tensor that went into no weight: one that the architecture does without, or an error."""
    reason = architecture.unused.get(name)
    if reason is None:
        raise _unexpected(tensor.where, architecture)
    return _left_out(tensor, reason)


def _left_out(tensor: SourceTensor, reason: str, part: str = TEXT) -> LeftOut:
    if not tensor.name.isprintable():  # it will stand in reports, which no terminal should obey
        raise CheckpointError(f"{tensor.where} has a name with unprintable characters; refused")
    return LeftOut(tensor.name, tensor.shape, tensor.dtype, tensor.bytes, reason, part)
