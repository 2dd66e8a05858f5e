"""Stored formats: one module each, tried in order."""

from __future__ import annotations

from collections.abc import Mapping

from converter.checkpoint.stored import unquantized as bf16_lattice
from converter.checkpoint.stored.form import StoredFormat, quantization_of
from converter.errors import CheckpointError
from converter.system.untrusted import shown

__all__ = ["FORMATS", "StoredFormat", "find_format"]

#: A new stored format is one module and one entry here.
FORMATS: tuple[StoredFormat, ...] = (bf16_lattice.FORMAT,)


def find_format(config: Mapping[str, object]) -> StoredFormat:
    """The format that recognises the checkpoint; raises ``CheckpointError`` that names what is not read."""
    for stored in FORMATS:
        if stored.recognises(config):
            return stored
    where, section = quantization_of(config) or ("quantization_config", None)
    method = section.get("quant_method") if isinstance(section, Mapping) else section
    read = "; ".join(stored.describes for stored in FORMATS)
    raise CheckpointError(
        f"config.json: {where} has quant_method {shown(method)}, which is not read; read are: {read}"
    )
