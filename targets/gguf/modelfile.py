"""The Modelfile of a GGUF: of one that a conversion writes, and of any file that is there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import gguf
import numpy as np

from converter.checkpoint.architecture import Architecture
from converter.checkpoint.generation import is_stop
from converter.errors import CheckpointError, TargetError
from targets.families import known_families
from targets.gguf.declared import MODELFILE
from targets.gguf.family import family_named
from targets.gguf.metadata import Metadata, decoded, item_count, read_entries, read_metadata
from targets.gguf.reading import split_files
from targets.ollama import Model, Modelfile, family_modelfile, printed

#: Options that concern the Modelfile alone.
OPTIONS: Final = tuple(option.name for option in MODELFILE)
_SAMPLING: Final = {"temp": "temperature", "top_p": "top_p", "top_k": "top_k"}
_PENALTIES: Final = {
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
    "penalty_last_n": "repeat_last_n",
}
_ENDS: Final = ("eos", "eot", "eom")
_WITH_TEXT: Final = (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)


def modelfile(
    path: str,
    architecture: Architecture,
    sampling: Mapping[str, float] | None,
    options: Mapping[str, object],
    stops: Sequence[str] = (),
    penalties: Mapping[str, float] | None = None,
) -> Modelfile:
    """The Modelfile of a model whose GGUF lies at ``path`` as seen from the Modelfile; of ``options``,
    ``system``, ``licenses`` and ``num_ctx`` count. See ``targets.ollama.Model`` for the rest, and
    ``family_modelfile`` for what is raised."""
    model = Model(
        architecture.family,
        sum(math.prod(shape) for shape in architecture.tensors.values()),
        architecture.per_layer_input is not None,
        architecture.context,
        sampling or {},
        stops,
        penalties or {},
    )
    return _modelfile(path, model, options)


def modelfile_of_gguf(file: Path, path: str, options: Mapping[str, object]) -> Modelfile:
    """The Modelfile of a GGUF ``file`` (of several, the first), by what it says itself: renderer, context,
    sampling and the tokens that end an answer. ``path`` and ``options`` are as in ``modelfile``.

    Raises ``CheckpointError`` for a damaged file and ``TargetError`` for a model of no known family.
    """
    files = split_files(file)
    contents = read_entries(files[0])
    metadata = contents.metadata
    found = family_named(metadata.architecture)
    if found is None:
        raise TargetError(
            f"ollama: no Modelfile is known for architecture {metadata.architecture!r} "
            f"(known: {', '.join(known_families('ollama'))})"
        )
    table = metadata.values.get(f"{metadata.architecture}.embedding_length_per_layer_input")
    model = Model(
        found[0],
        metadata.parameters + sum(read_metadata(other).parameters for other in files[1:]),
        isinstance(table, int) and table > 0,
        metadata.context,
        _sampling(file, metadata, _SAMPLING),
        _stops(dict(contents.entries)),
        _sampling(file, metadata, _PENALTIES),
    )
    return _modelfile(path, model, options)


def _modelfile(path: str, model: Model, options: Mapping[str, object]) -> Modelfile:
    num_ctx = options.get("num_ctx")
    return family_modelfile(
        path,
        model,
        num_ctx=num_ctx if isinstance(num_ctx, int) else None,
        system=str(options["system"]) if options.get("system") else None,
        licenses=_licenses(options),
    )


def licence_warnings(options: Mapping[str, object]) -> list[str]:
    """A line if the licences are not what Ollama will show."""
    if all(printed(text) == text for text in _licenses(options)):
        return []
    return ["the licence has characters that Ollama drops: spaces became plain ones, the rest is left out"]


def _licenses(options: Mapping[str, object]) -> list[str]:
    given = options.get("licenses")
    return [str(text) for text in given] if isinstance(given, list | tuple) else []


def _sampling(file: Path, metadata: Metadata, names: Mapping[str, str]) -> dict[str, float]:
    """Values of ``general.sampling``, by our names; raises ``CheckpointError`` for what is no number."""
    found: dict[str, float] = {}
    for name, ours in names.items():
        key = f"general.sampling.{name}"
        value = metadata.values.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise CheckpointError(f"{file}: {key} is {value!r}, expected a number")
        # the shortest number that float32 takes for the same: 0.95, not 0.949999988079071
        found[ours] = float(str(np.float32(value))) if isinstance(value, float) else value
    return found


def _stops(entries: Mapping[str, bytes]) -> list[str]:
    """Texts of the tokens that end an answer, as ``converter.checkpoint.generation.end_texts`` gives them."""
    tokens, types = (entries.get(f"tokenizer.ggml.{key}", b"") for key in ("tokens", "token_type"))
    listed = entries.get("tokenizer.ggml.eos_token_ids", b"")
    ids = [decoded(listed, index) for index in range(item_count(listed))]
    if not ids:
        keys = [f"tokenizer.ggml.{name}_token_id" for name in _ENDS]
        ids = [decoded(entries[key]) for key in keys if key in entries]
    count = min(item_count(tokens), item_count(types))
    known = [id for id in ids if isinstance(id, int) and 0 <= id < count]
    texts = [str(decoded(tokens, id)) for id in known if decoded(types, id) in _WITH_TEXT]
    return [text for text in dict.fromkeys(texts) if is_stop(text)]
