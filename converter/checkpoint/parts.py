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
    """A part beside the text model, as a family stores it."""

    #: One of the names above.
    name: str
    #: What its tensors are for a reader (``vision projection``), by what their names in a checkpoint begin
    #: with. Projections into the text model are among them.
    tensors: Mapping[str, str]
