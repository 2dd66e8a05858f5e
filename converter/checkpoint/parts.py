"""Parts of a model: its text model, and the encoders or the drafter that a checkpoint may hold beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

#: Names of parts, which stand in reports and manifests. Whatever belongs to no other part is the text
#: model's. A drafter proposes tokens that the text model then accepts or not.
TEXT: Final = "text"
VISION: Final = "vision"
AUDIO: Final = "audio"
DRAFTER: Final = "drafter"


@dataclass(frozen=True, slots=True)
class Part:
    """A part beside the text model, as a family stores it.

    ``name`` is one of the names above. ``tensors`` maps the beginnings of the names of its tensors in a
    checkpoint, projections into the text model among them, to what they are for a reader
    (``vision projection``).
    """

    name: str
    tensors: Mapping[str, str]
