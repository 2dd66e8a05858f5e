"""A checkpoint: architecture, weights, tokenizer and what else it holds, checked against each other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from converter.checkpoint.architecture import Architecture, read_architecture
from converter.checkpoint.assembly import Assembly, LeftOut, assemble, check_index, expected_weights
from converter.checkpoint.canonical_names import HEAD
from converter.checkpoint.card import Card, read_card
from converter.checkpoint.documents import Documents, evaluation_text
from converter.checkpoint.generation import Generation, read_generation
from converter.checkpoint.parts import TEXT
from converter.checkpoint.source import CheckpointSource, open_source
from converter.checkpoint.stored import Form, find_form
from converter.checkpoint.tokenizer import Tokenizer, read_tokenizer
from converter.checkpoint.weight import Scales, Weight
from converter.errors import CheckpointError
from converter.filenames import CONFIG, EVALUATION_TEXT, INDEX, TOKENIZER, WEIGHTS
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
    #: The weights of other parts by part and name in the checkpoint: numbers, and what the form makes of
    #: packed tensors.
    parts: Mapping[str, Mapping[str, Weight]] = field(default_factory=dict)
    #: Those of activations and caches by module (``layers.0.self_attn``), where the stored form has any.
    scales: Mapping[str, Scales] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that was read, and the text to be judged on where there is one."""
        return tuple(self.source.files)

    @property
    def grids(self) -> dict[str, Scales]:
        """The scales of what modules of the text model take and give, by module (``lm_head``): of those that
        have either. A head is a module whether it has weights of its own or not."""
        modules = {name.rpartition(".")[0] for name in (*self.weights, HEAD)}
        return {
            module: scales
            for module, scales in self.scales.items()
            if module in modules and (scales.input is not None or scales.output is not None)
        }

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
        ``bytes``, and the part that they are ``of``. Tensors of the weights in ``stored`` are converted after
        all."""
        found: dict[tuple[str, str], list[int]] = {}
        for item in self.left_out:
            if item.weight not in stored:
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


@dataclass(frozen=True, slots=True)
class Description:
    """What a checkpoint says of its model, whatever it holds of it."""

    architecture: Architecture
    #: ``None`` without ``tokenizer.json``.
    tokenizer: Tokenizer | None
    #: How answers are sampled.
    generation: Generation
    #: ``has_weights()`` says whether all its weights are there, so that ``open_checkpoint`` can read them. It
    #: raises ``CheckpointError`` for a damaged index.
    has_weights: Callable[[], bool]


def read_description(path: Path) -> Description:
    """Read what the checkpoint at ``path`` says of its model. Neither weights nor tokenizer need be there,
    and weights may be stored in a form that is not read.

    Raises ``CheckpointError`` for a file that is damaged, hostile or describes no known model.
    """
    source = open_source(path)
    documents = Documents(source)
    architecture = read_architecture(documents.settings(CONFIG).values)
    tokenizer = None
    if TOKENIZER in documents:
        tokenizer = read_tokenizer(documents, architecture.vocabulary)
    generation = read_generation(documents, architecture.vocabulary)
    return Description(architecture, tokenizer, generation, source.has_weights)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open the checkpoint at ``path``, a directory or another kind of source: headers, configuration,
    tokenizer and samples of the weights.

    Raises ``CheckpointError`` for a file that is missing, damaged, hostile or of a kind that is not read. It
    raises it too for tensors that do not fit the configuration: missing, unexpected or of another shape.
    """
    source = open_source(path)
    shards, documents = source.tensors(), Documents(source)
    config = documents.settings(CONFIG).values
    form = find_form(config)
    assembly = assemble(shards, read_architecture(config), form.layout(config))
    return _opened(source, documents, config, form, assembly, shards.files)


def open_description(path: Path) -> Checkpoint:
    """Open what describes the checkpoint at ``path``: configuration, tokenizer, and the names of its tensors
    if they have an index. The weights need not be there yet.

    Raises ``CheckpointError`` for what would make ``open_checkpoint`` fail, as far as it shows there.
    """
    source = open_source(path)
    documents = Documents(source)
    config = documents.settings(CONFIG).values
    form = find_form(config)
    architecture, layout = read_architecture(config), form.layout(config)
    described = INDEX in source and WEIGHTS not in source
    bare = Assembly(architecture, {}, {}, (), {})
    opened = _opened(source, documents, config, form, bare, (source.path(INDEX),) if described else ())
    if described:
        check_index(source, architecture, layout)
    return opened


def open_expected(path: Path) -> Checkpoint:
    """``open_description`` with the weights as they are to be expected and zeros for their values: so a
    target can plan what is not downloaded yet.

    Raises ``CheckpointError`` also for a form that does not tell what to expect.
    """
    described = open_description(path)
    expected = described.form.layout(described.config).expected
    if expected is None:
        raise CheckpointError(
            f"{path.name}: how {described.form.describes} will be stored shows only in the weights, which "
            "are not downloaded"
        )
    return replace(described, weights=expected_weights(described.architecture, expected))


def _opened(
    source: CheckpointSource,
    documents: Documents,
    config: Mapping[str, object],
    form: Form,
    assembly: Assembly,
    files: tuple[Path, ...],
) -> Checkpoint:
    """The checkpoint with what stands beside its weights, whose ``files`` are given."""
    architecture = assembly.architecture
    tokenizer, card = read_tokenizer(documents, architecture.vocabulary), read_card(source)
    evaluation = (documents.path(EVALUATION_TEXT),) if EVALUATION_TEXT in documents else ()
    files = (documents.path(CONFIG), *files, *tokenizer.files, *_card_files(card), *evaluation)
    return Checkpoint(
        source=source.with_files(files),
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
