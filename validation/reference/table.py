"""Gemma 4's table of per-layer embeddings, left in the checkpoint's files.

It is half of the weights of a model like E2B, and a text needs the rows of its tokens alone. For the child
process that holds ``transformers``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from converter.filenames import INDEX, WEIGHTS

_MODULE: Final = "embed_tokens_per_layer"
_ROWS: Final = "vocab_size_per_layer_input"


@dataclass(frozen=True, slots=True)
class Table:
    """A tensor ``[rows, columns]`` of a safetensors file."""

    file: Path
    #: Of the tensor.
    name: str
    rows: int
    columns: int

    def model_class(self, config: Any, dtype: Any) -> Any:
        """The class that ``transformers`` has for text models of ``config``, but without the table.

        Its rows are looked up in the file and given in a torch ``dtype``. Loading neither reads the tensor
        nor asks for it.
        """
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

        known = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]

        def begin(model: Any, config: Any, *arguments: Any) -> None:
            known.__init__(model, config, *arguments)
            scale = getattr(model.model, _MODULE).scalar_embed_scale
            setattr(model.model, _MODULE, _rows_of(self, scale, dtype))

        return type(known.__name__, (known,), {"__init__": begin, "__module__": known.__module__})


def find_table(directory: Path, text: Any) -> Table | None:
    """The table of the checkpoint in ``directory`` that the configuration ``text`` asks for.

    ``None`` where it asks for none, and where the files hold it otherwise than it says: loading will tell.
    """
    from safetensors import SafetensorError, safe_open

    size, rows = getattr(text, "hidden_size_per_layer_input", 0), getattr(text, _ROWS, 0)
    if not size or not rows:
        return None
    columns = size * text.num_hidden_layers
    with suppress(OSError, ValueError, KeyError, AttributeError, SafetensorError):
        for file, name in _places(directory):
            with safe_open(file, framework="pt") as opened:
                names = [name] if name else [one for one in opened.keys() if _is_table(one)]  # noqa: SIM118
                if len(names) == 1 and opened.get_slice(names[0]).get_shape() == [rows, columns]:
                    return Table(file, names[0], rows, columns)
    return None


def _is_table(name: str) -> bool:
    return name.endswith(f".{_MODULE}.weight")


def _places(directory: Path) -> list[tuple[Path, str | None]]:
    """The file that holds the table, and its name there if the index says it: as ``transformers`` looks for
    them, a single file first."""
    if os.path.lexists(directory / WEIGHTS):
        return [(directory / WEIGHTS, None)]
    listed: Mapping[str, str] = json.loads((directory / INDEX).read_text("utf-8"))["weight_map"]
    found: list[tuple[Path, str | None]] = [
        (directory / file, name) for name, file in listed.items() if _is_table(name)
    ]
    return found if len(found) == 1 else []


def _rows_of(table: Table, scale: float, dtype: Any) -> Any:
    """A module in the place of the embedding, which takes rows from the file when they are asked for, times
    ``scale``."""
    import torch
    from safetensors import safe_open

    class Rows(torch.nn.Module):
        """Rows of a table on the disk: int ids ``[...]`` to ``dtype`` ``[..., columns]``."""

        def __init__(self) -> None:
            super().__init__()
            self.opened: Any = safe_open(table.file, framework="pt")

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            """Raises ``IndexError`` for an id that the table has no row for."""
            wanted, places = torch.unique(ids, return_inverse=True)
            if len(wanted) and not 0 <= int(wanted[0]) <= int(wanted[-1]) < table.rows:
                raise IndexError(f"{table.name} has {table.rows} rows, not one for token {int(wanted[-1])}")
            stored = self.opened.get_slice(table.name)
            rows = torch.cat([stored[int(row) : int(row) + 1] for row in wanted]).to(dtype)
            return rows[places] * torch.tensor(scale, dtype=dtype)

    return Rows()
