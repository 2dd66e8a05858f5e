"""Torch's graphs of a model's signatures, of which one is in memory at a time; in the child alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from litert_torch._convert import core
from litert_torch._convert.signature import Signature

from converter.system.memory import release_memory


class Programs(Sequence[Any]):
    """The exported programs of ``signatures``, each made when it is asked for and emptied behind that.

    litert-torch 0.10.0 takes them from a sequence, one after the other, and lowers each to MLIR before the
    next. Its own driver makes all of them first and keeps them until the end, which takes 5 MB for every
    layer and signature.
    """

    def __init__(self, signatures: Sequence[Signature]) -> None:
        self._signatures = signatures

    def __len__(self) -> int:
        return len(self._signatures)

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("programs are made in order")

    def __iter__(self) -> Iterator[Any]:
        for signature in self._signatures:
            # The lowering decomposes what torch gives; doing so before it too only takes time.
            program = core.export_torch_signature(signature, strict_export=False, run_decompositions=False)
            program = core._run_convert_passes(program)
            yield program
            vars(program).clear()  # whoever iterates holds it still
            release_memory()
