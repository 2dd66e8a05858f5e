"""A checkpoint: architecture, weights, tokenizer and what else it holds, checked against each other."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from converter.checkpoint.architecture import Architecture, read_architecture
from converter.checkpoint.assembly import Assembly, LeftOut, assemble, check_index
from converter.checkpoint.card import Card, read_card
from converter.checkpoint.documents import Documents, evaluation_text
from converter.checkpoint.generation import Generation, read_generation
from converter.checkpoint.parts import TEXT
from converter.checkpoint.safetensors import open_shards
from converter.checkpoint.source import CheckpointSource, Directory
from converter.checkpoint.stored import Form, find_form
from converter.checkpoint.tokenizer import Tokenizer, read_tokenizer
from converter.checkpoint.weight import Scales, Weight
from converter.filenames import CONFIG, EVALUATION_TEXT, INDEX, WEIGHTS
from converter.system.untrusted import Settings


@dataclass(frozen=True, slots=True)
class PartSize:
    """How many ``tensors`` of a checkpoint belong to a part, and the ``bytes`` that they take there."""

    tensors: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint: all that it holds, read and checked."""

    #: Where it came from.
    source: CheckpointSource
    #: How it stores weights.
    form: Form
    #: ``config.json`` as read.
    config: Mapping[str, object]
    architecture: Architecture
    #: The text model's weights by canonical name, in model order. There are none where only the description
    #: was read.
    weights: Mapping[str, Weight]
    #: Every other tensor.
    left_out: tuple[LeftOut, ...]
    #: It has the chat template.
    tokenizer: Tokenizer
    #: How answers are sampled.
    generation: Generation
    #: The files beside the weights, as read.
    documents: Documents
    #: The model card.
    card: Card = field(default_factory=Card)
    #: The weights of other parts that are stored as numbers, by part and name in the checkpoint.
    parts: Mapping[str, Mapping[str, Weight]] = field(default_factory=dict)
    #: Those of activations and caches by module (``layers.0.self_attn``), where the stored form has any.
    scales: Mapping[str, Scales] = field(default_factory=dict)

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

    Raises ``CheckpointError`` for a file that is missing, damaged, hostile or of a kind that is not read. It
    raises it too for tensors that do not fit the configuration: missing, unexpected or of another shape.
    """
    shards, documents = open_shards(path), Documents(path)
    config = documents.settings(CONFIG).values
    form = find_form(config)
    assembly = assemble(shards, read_architecture(config), form.layout(config))
    return _opened(path, documents, config, form, assembly, shards.files)


def open_description(path: Path) -> Checkpoint:
    """Open what describes the checkpoint in a directory: configuration, tokenizer, and the names of its
    tensors if they have an index. The directory need not have the weights yet.

    Raises ``CheckpointError`` for what would make ``open_checkpoint`` fail, as far as it shows there.
    """
    documents = Documents(path)
    config = documents.settings(CONFIG).values
    form = find_form(config)
    architecture, layout = read_architecture(config), form.layout(config)
    index = path / INDEX
    described = os.path.lexists(index) and not os.path.lexists(path / WEIGHTS)
    bare = Assembly(architecture, {}, {}, (), {})
    opened = _opened(path, documents, config, form, bare, (index,) if described else ())
    if described:
        check_index(index, architecture, layout)
    return opened


def _opened(
    path: Path,
    documents: Documents,
    config: Mapping[str, object],
    form: Form,
    assembly: Assembly,
    files: tuple[Path, ...],
) -> Checkpoint:
    """The checkpoint with what stands beside its weights, whose ``files`` are given."""
    architecture = assembly.architecture
    tokenizer, card = read_tokenizer(documents, architecture.vocabulary), read_card(path)
    evaluation = (documents.path(EVALUATION_TEXT),) if EVALUATION_TEXT in documents else ()
    files = (documents.path(CONFIG), *files, *tokenizer.files, *_card_files(card), *evaluation)
    return Checkpoint(
        source=Directory(path, files),
        form=form,
        config=config,
        architecture=architecture,
        weights=assembly.weights,
        left_out=assembly.left_out,
        parts=assembly.parts,
        tokenizer=tokenizer,
        generation=read_generation(documents, architecture.vocabulary),
        documents=documents,
        card=card,
        scales=assembly.scales,
    )


def _card_files(card: Card) -> tuple[Path, ...]:
    return () if card.file is None else (card.file,)
