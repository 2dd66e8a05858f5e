"""Options of a conversion to GGUF, inferred from the file that it left."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from converter.checkpoint.opened import Checkpoint
from targets.gguf.description import HUB
from targets.gguf.metadata import Tensor, read_contents
from targets.gguf.names import tensor_names
from targets.gguf.reading import split_files
from targets.gguf.storage import OFF_LATTICE, TYPES, holdings
from targets.off_lattice import inferred_off_lattice

#: Names that can be part of a file's name; another one is none that a conversion wrote.
_NAME: Final = re.compile(r"[\w.+-][\w.+ -]{0,199}")
_FILE_NAME: Final = re.compile(
    rf"(.+?)(-({'|'.join(map(str.lower, TYPES))}))?(-[0-9]{{5}}-of-[0-9]{{5}})?\.gguf", re.DOTALL
)


def inferred_options(artifact: Path, checkpoint: Checkpoint) -> dict[str, object]:
    """See ``targets.target.Target.infer_options``: ``name``, ``off_lattice``, and where they are told
    ``split_max_size``, ``license``, ``repo`` and ``revision``. Raises ``CheckpointError`` for a damaged
    file."""
    contents = [read_contents(file) for file in split_files(artifact)]
    types = {tensor.name: tensor.type.name for _, tensors in contents for tensor in tensors}
    names = tensor_names(checkpoint.architecture, checkpoint.weights)
    metadata = contents[0][0]
    found: dict[str, object] = {
        "name": _name(artifact),
        "off_lattice": inferred_off_lattice(
            checkpoint.weights.values(),
            {key: types[name] for key, name in names.items() if name in types},
            {option: holdings(option) for option in OFF_LATTICE},
        ),
    }
    if len(contents) > 1:
        found["split_max_size"] = _split_size([tensors for _, tensors in contents])
    if metadata.license:
        found["license"] = metadata.license
    repo = metadata.values.get("general.source.repo_url")
    if isinstance(repo, str) and repo.startswith(f"{HUB}/"):
        found["repo"] = repo.removeprefix(f"{HUB}/")
        url = metadata.values.get("general.source.url")
        if isinstance(url, str) and url.startswith(f"{repo}/tree/"):
            found["revision"] = url.removeprefix(f"{repo}/tree/")
    return found


def _name(artifact: Path) -> str:
    match = _FILE_NAME.fullmatch(artifact.name)
    return match[1] if match and _NAME.fullmatch(match[1]) else "model"


def _split_size(files: Sequence[Sequence[Tensor]]) -> int:
    """A size at which the same files come about: that of the largest with several tensors, if any has."""
    sizes = [sum(tensor.bytes for tensor in tensors) for tensors in files if len(tensors) > 1]
    return max(sizes or [min(sum(tensor.bytes for tensor in tensors) for tensors in files)], default=1) or 1
