"""The models that have short names: what each takes, and what it can be converted to today.

Nothing is asked of the network and no model is opened. What can be read and written is asked of the
registries of forms, families and targets. What is not known without a download is told as ``None``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from converter.checkpoint.stored import find_form
from converter.errors import CheckpointError, ExtensionError
from converter.filenames import CONFIG
from converter.names import KnownModel, known_models, resolve
from converter.system.untrusted import read_object
from targets.estimates import Estimated
from targets.families import known_families
from targets.target import find_target, known_targets

#: The family of the built-in names, and the tokens of its vocabulary.
_FAMILY: Final = "gemma4"
_VOCABULARY: Final = 262_144
#: Parameters of published checkpoints, as far as they were made known: E2B's with its per-layer embeddings.
_PARAMETERS: Final[Mapping[str, float]] = {"gemma4-e2b": 5.1e9, "gemma4-12b": 11.95e9}
#: Bytes of one in bfloat16.
_BYTES: Final = 2
#: How ``config.json`` announces what the mobile checkpoints pack.
_MOBILE: Final = {"quantization_config": {"quant_method": "gemma"}}
_MOBILE_SUFFIX: Final = "-mobile"
_CONFIG_BYTES: Final = 1 << 20


def catalogue() -> list[dict[str, Any]]:
    """Each known model as ``qatconvert models --json`` prints it. Raises ``CheckpointError`` when the user's
    list of names is damaged."""
    names = [name for name in known_targets() if _knows(name)]
    costs = {name: needed for name in names if (needed := _memory(name, _VOCABULARY)) is not None}
    return [_entry(model, names, costs) for model in known_models()]


def _entry(model: KnownModel, targets: Sequence[str], memory: Mapping[str, int]) -> dict[str, Any]:
    entry = {**asdict(model), "download": None, "about": False, "memory": None, "targets": None, "why": None}
    if model.origin == "user":
        return {**entry, "why": "not known before it is opened: convert NAME --dry-run tells"}
    entry["download"], entry["about"] = _download(model)
    try:
        find_form(_config(model))
    except CheckpointError as error:
        return {**entry, "targets": [], "why": str(error)}
    if model.repo is None:
        place = resolve(model.name).path
        vocabulary = _vocabulary(place) if place else 0
        found = {name: needed for name in targets if (needed := _memory(name, vocabulary)) is not None}
        return {**entry, "memory": found, "targets": list(targets)}
    return {**entry, "memory": dict(memory), "targets": list(targets)}


def _download(model: KnownModel) -> tuple[int | None, bool]:
    """Bytes to download, and whether that is only about right."""
    if model.repo is None:
        return 0, False
    parameters = _PARAMETERS.get(model.name)
    return (None, False) if parameters is None else (int(parameters * _BYTES), True)


def _config(model: KnownModel) -> Mapping[str, object]:
    """What is known of its ``config.json`` without it, as far as it tells the stored form."""
    return _MOBILE if model.name.endswith(_MOBILE_SUFFIX) else {}


def _vocabulary(place: Path) -> int:
    config = read_object(place / CONFIG, _CONFIG_BYTES)
    text = config.get("text_config", config)
    size = text.get("vocab_size") if isinstance(text, dict) else None
    return size if isinstance(size, int) else 0


def _knows(target: str) -> bool:
    """Whether a target takes the family, of those for which families are registered."""
    families = known_families(target)
    return not families or _FAMILY in families


def _memory(target: str, vocabulary: int) -> int | None:
    """Bytes of memory that a conversion without a proof takes."""
    try:
        found = find_target(target)
    except ExtensionError:
        return None
    return int(found.costs.memory.of(vocabulary)) if isinstance(found, Estimated) else None
