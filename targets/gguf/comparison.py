"""A GGUF beside what the converter makes of its checkpoint: every key, every tensor, every byte.

Deciding is what llama.cpp or Ollama read to compute, tokenise, prompt or find the tensors, and any key that
is not known here: they may read it one day. Descriptive is what they only show.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.weight import Weight
from converter.errors import CheckpointError
from converter.system.progress import Progress, counted, stage_of
from converter.system.untrusted import read_text, shown
from targets.comparison import Bytes, Rows, differing_tensors
from targets.gguf.description import NAMES_THAT_DECIDE
from targets.gguf.family import gguf_family
from targets.gguf.header import Header, padded
from targets.gguf.metadata import Contents, Tensor, decoded, first_difference, read_entries
from targets.gguf.reading import File, split_files
from targets.gguf.storage import GGML
from targets.gguf.writing import encode
from targets.ollama import Modelfile, parse_modelfile
from targets.target import Difference, Plan, PlannedTensor
from targets.writing import RANGE

#: Keys that llama.cpp and Ollama only show, or do not know at all (``llama-arch.cpp``; Ollama's ``fs/ggml``).
#: All others decide, these too: ``general.architecture``, ``general.type`` (Ollama tells adapters and
#: projectors by it), ``general.alignment``, ``general.quantization_version`` (how blocks are laid out) and
#: ``general.file_type`` (Ollama quantises again, or refuses to, by it).
DESCRIPTIVE: Final = re.compile(
    r"general\.(name|author|version|organization|finetune|basename|description|quantized_by|size_label|doi|uuid|url"
    r"|repo_url|license(\.name|\.link)?|tags|languages|source\..+|base_model\..+|datasets?(\..+)?)"
)
_NAME: Final = "general.name"
#: Where a file of a split model stands in it; the sizes at which it is cut decide nothing.
_SPLIT: Final = "split."
_VERSION: Final = 3
#: From the directory that holds the artifact's.
MODELFILE: Final = "ollama/Modelfile"
#: Commands of a Modelfile whose fields are called otherwise.
_COMMANDS: Final = {"model": "FROM", "parameters": "PARAMETER", "licenses": "LICENSE", "messages": "MESSAGE"}
_PIECE: Final = 1 << 20
_LARGEST_MODELFILE: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class _Part:
    """One file of the artifact."""

    file: File
    contents: Contents


def differences(
    artifact: Path,
    checkpoint: Checkpoint,
    plan: Plan,
    header: Header,
    modelfile: str | None,
    progress: Progress,
) -> list[Difference]:
    """See ``targets.target.Target.differences``; ``header`` holds the metadata and ``modelfile`` the text
    that belong to ``plan``, ``None`` if there should be no Modelfile."""
    parts = [_Part(File(path), read_entries(path)) for path in split_files(artifact)]
    found = [*_keys(parts, header), *_split_keys(parts), *_tensor_table(parts, plan)]
    for part in parts:
        found += _unused_bytes(part)
    found += differing_tensors(
        _rows(parts, checkpoint, plan), counted(stage_of(progress, "comparing gguf"), checkpoint.stored_bytes)
    )
    return [*found, *_modelfile(artifact, parts, modelfile)]


def is_deciding(key: str, *values: object) -> bool:
    """Whether a difference in the key decides; ``values`` are what stands there on both sides."""
    if key == _NAME:
        return any(word in str(value).lower() for value in values for word in NAMES_THAT_DECIDE)
    return DESCRIPTIVE.fullmatch(key) is None


def packed_values(header: Header) -> dict[str, bytes]:
    """Every key of a header with its type and value as the writer packs them."""
    return {
        key: header._pack_val(value.value, value.type, add_vtype=True, sub_type=value.sub_type)
        for key, value in header.kv_data[0].items()
    }


def _keys(parts: list[_Part], header: Header) -> Iterator[Difference]:
    """The keys of the first file, and those of others, which should have none but ``split.*``."""
    for part in parts:
        name, version = part.file.path.name, part.contents.version
        if version != _VERSION:
            yield Difference(f"{name}: GGUF version", str(_VERSION), str(version))
        for key, count in Counter(key for key, _ in part.contents.entries).items():
            if count > 1:
                yield Difference(f"key {key}", "once", f"{count} times in {name}")
    expected = packed_values(header)
    found = {key: value for key, value in parts[0].contents.entries if not key.startswith(_SPLIT)}
    for key in dict.fromkeys([*expected, *found]):
        if expected.get(key) != found.get(key):
            yield _key_difference(key, expected.get(key), found.get(key))
    for part in parts[1:]:
        for key, value in part.contents.entries:
            if not key.startswith(_SPLIT):
                yield _key_difference(key, None, value)


def _key_difference(key: str, expected: bytes | None, found: bytes | None) -> Difference:
    index = None if expected is None or found is None else first_difference(expected, found)
    values = ["nothing" if value is None else decoded(value, index) for value in (expected, found)]
    texts = [shown(value) for value in values]
    if texts[0] == texts[1]:  # a long text, or another type
        texts = [_bytes_shown(expected, found), _bytes_shown(found, expected)]
    where = f"key {key}" if index is None else f"key {key}[{index}]"
    return Difference(where, texts[0], texts[1], is_deciding(key, *values))


def _bytes_shown(value: bytes | None, other: bytes | None) -> str:
    """The type of a value, and its bytes around the first that the other has not."""
    ours, theirs = value or b"", other or b""
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(theirs))
    return f"type {int.from_bytes(ours[:4], 'little')}, byte {place}: {shown(ours[place : place + 8])}"


def _split_keys(parts: list[_Part]) -> Iterator[Difference]:
    """``split.*`` of every file, which must tell its place among those that there are."""
    tensors = sum(len(part.contents.tensors) for part in parts)
    for index, part in enumerate(parts):
        expected: dict[str, object] = {}
        if len(parts) > 1:
            expected = {"split.no": index, "split.count": len(parts), "split.tensors.count": tensors}
        found = {key: decoded(value) for key, value in part.contents.entries if key.startswith(_SPLIT)}
        for key in dict.fromkeys([*expected, *found]):
            if expected.get(key) != found.get(key) or isinstance(found.get(key), bool):
                ours, theirs = (shown(side.get(key, "nothing")) for side in (expected, found))
                yield Difference(f"{part.file.path.name}: key {key}", ours, theirs)


def _tensor_table(parts: list[_Part], plan: Plan) -> Iterator[Difference]:
    """Names, types and dimensions of all tensors, and whether they lie one behind the other, as llama.cpp
    demands."""
    found = [tensor for part in parts for tensor in part.contents.tensors]
    for name, count in Counter(tensor.name for tensor in found).items():
        if count > 1:
            yield Difference(f"tensor {shown(name)}", "once", f"{count} times")
    by_name = {tensor.name: tensor for tensor in found}
    for planned in plan.tensors:
        tensor = by_name.pop(planned.stored_as, None)
        if tensor is None or not _fits(tensor, planned):
            theirs = "no such tensor" if tensor is None else _described(tensor.type.name, tensor.shape)
            yield Difference(
                f"tensor {planned.stored_as}", _described(planned.type, planned.shape or (1,)), theirs
            )
    for tensor in by_name.values():
        yield Difference(
            f"tensor {shown(tensor.name)}", "no such tensor", _described(tensor.type.name, tensor.shape)
        )
    for part in parts:
        place = part.contents.data
        for tensor in part.contents.tensors:
            if tensor.offset != place:
                where = f"{part.file.path.name}: place of tensor {shown(tensor.name)}"
                yield Difference(where, f"byte {place}", f"byte {tensor.offset}")
            place = tensor.offset + padded(tensor.bytes)


def _fits(tensor: Tensor, planned: PlannedTensor) -> bool:
    return (tensor.type.name, tensor.shape) == (planned.type, planned.shape or (1,))


def _described(type: str, shape: tuple[int, ...]) -> str:
    return f"{type} {list(shape)}"


def _unused_bytes(part: _Part) -> Iterator[Difference]:
    """Bytes of a file that belong to no key and no tensor: zeros up to the alignment, and none behind."""
    contents, name = part.contents, part.file.path.name
    used = sorted((tensor.offset, tensor.offset + tensor.bytes) for tensor in contents.tensors)
    place = contents.table_end
    end = max([contents.data, *(padded(stop) for _, stop in used)])
    for start, stop in [*used, (contents.size, contents.size)]:
        wrong = _first_other(part.file, place, max(place, start))
        if wrong is not None:
            yield Difference(f"{name}: padding", "zeros", f"another value in byte {wrong}")
        place = max(place, stop)
    if contents.size != end:
        yield Difference(f"{name}: size", f"{end} bytes", f"{contents.size} bytes")


def _first_other(file: File, start: int, stop: int) -> int | None:
    """The first byte from ``start`` on that is not zero."""
    for place in range(start, stop, _PIECE):
        other = np.flatnonzero(file.read(place, min(_PIECE, stop - place)))
        if other.size:
            return place + int(other[0])
    return None


def _rows(parts: list[_Part], checkpoint: Checkpoint, plan: Plan) -> Iterator[Rows]:
    """Rows of every tensor that has the type and the shape of the plan."""
    found = {tensor.name: (part.file, tensor) for part in parts for tensor in part.contents.tensors}
    for planned in plan.tensors:
        file, tensor = found.get(planned.stored_as, (None, None))
        if file is None or tensor is None or not _fits(tensor, planned):
            continue
        if planned.weight is None:
            factors = gguf_family(checkpoint.architecture).rope_factors(checkpoint.architecture)
            assert factors is not None
            made = (factors.view(np.uint8)[None],)
            yield Rows(
                planned.stored_as, 0, partial(tuple, made), _reader(file, tensor, 0, 1, tensor.bytes), 0
            )
            continue
        yield from _weight_rows(checkpoint, checkpoint.weights[planned.weight], file, tensor)


def _weight_rows(checkpoint: Checkpoint, weight: Weight, file: File, tensor: Tensor) -> Iterator[Rows]:
    type_name, add = tensor.type.name, checkpoint.architecture.offset_of(weight.name)
    size = GGML.row_bytes(type_name, weight.columns)
    for start, stop in weight.row_ranges(RANGE):
        yield Rows(
            tensor.name,
            start,
            partial(_rule, weight, type_name, start, stop, add),
            _reader(file, tensor, start, stop, size),
            weight.bytes_of(weight.columns * (stop - start)),
        )


def _rule(weight: Weight, type_name: str, start: int, stop: int, add: float) -> tuple[Bytes]:
    return (encode(weight, type_name, start, stop, add)[0].reshape(stop - start, -1),)


def _reader(file: File, tensor: Tensor, start: int, stop: int, size: int) -> Callable[[], tuple[Bytes]]:
    def read() -> tuple[Bytes]:
        data = file.read(tensor.offset + start * size, (stop - start) * size)
        return (data.reshape(stop - start, size),)

    return read


def _modelfile(artifact: Path, parts: list[_Part], text: str | None) -> Iterator[Difference]:
    """The Modelfile that a conversion leaves beside the artifact's directory, where there is one."""
    path = artifact.parent.parent / MODELFILE
    if artifact.parent.name != "gguf" or not os.path.lexists(path):
        return
    if text is None:
        yield Difference(MODELFILE, "no such file", "a Modelfile")
        return
    expected = parse_modelfile(text)
    try:
        written = read_text(path, _LARGEST_MODELFILE)
        found = parse_modelfile(written)
    except CheckpointError as error:
        yield Difference(MODELFILE, "what the converter writes", f"what Ollama does not read: {error}")
        return
    whole = artifact if len(parts) == 1 else artifact.parent
    if os.path.realpath(path.parent / found.model) == os.path.realpath(whole):
        expected = replace(expected, model=found.model)
    for field in fields(Modelfile):
        ours, theirs = getattr(expected, field.name), getattr(found, field.name)
        if ours != theirs:
            where = f"{MODELFILE}: {_COMMANDS.get(field.name, field.name.upper())}"
            yield Difference(where, _shown(ours), _shown(theirs), field.name != "licenses")
    if expected == found and written != text and found.model == parse_modelfile(text).model:
        yield Difference(MODELFILE, "as the converter writes it", "the same, written otherwise", False)
    if whole != artifact:  # Ollama takes all files of the directory
        names = {part.file.path.name for part in parts}
        for other in sorted(artifact.parent.glob("*.gguf")):
            if other.name not in names:
                yield Difference(f"gguf/{other.name}", "no such file", "a file that Ollama reads")


def _shown(value: object) -> str:
    return "nothing" if value in (None, ()) else shown(value)
