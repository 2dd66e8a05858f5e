"""Bundles compiled ahead of time for the neural processor (NPU) of one system on a chip (SoC).

litert-torch 0.10.0 has a compiler for whole bundles, ``compile_litertlm``; it needs the vendor's SDK, which
is a package of its own. It packs what it made with a random number and the time of day, so only the models
are taken from its bundle. The rest is the given bundle's, and equal models give equal bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from converter.errors import TargetError, UsageError
from converter.system.output import check_space, scratch_directory
from converter.system.progress import StageProgress, no_progress
from targets.litert.bundle import Section, StoredSection, copy_section, read_sections, write_bundle
from targets.litert.export.child import ask
from targets.litert.sections import MODEL
from targets.writing import destination_error

#: Vendors that ``compile_litertlm`` compiles for, and the package of each one's SDK.
SDKS: Final[Mapping[str, str]] = {
    "mediatek": "ai-edge-litert-sdk-mediatek",
    "qualcomm": "ai-edge-litert-sdk-qualcomm",
}
#: Copies of a bundle that lie on the disk at once: its parts, the compiler's bundle and ours.
_COPIES: Final = 4
_MODULE: Final = "targets.litert.devices.npu_process"


@dataclass(frozen=True, slots=True, order=True)
class Npu:
    """A neural processor: vendor and SoC, as in ``qualcomm:SM8750``."""

    backend: str
    soc: str

    def __str__(self) -> str:
        return f"{self.backend}:{self.soc}"

    def file_name(self, model: str) -> str:
        """Name of a model's bundle for this processor, such as ``gemma4-e2b_qualcomm_sm8750.litertlm``."""
        return f"{model}_{self.backend}_{self.soc.lower()}.litertlm"


def parse(text: str) -> Npu:
    """``vendor:SoC`` in letters of either case; raises ``UsageError`` that lists what is known.

    The SoCs are those of the installed ai-edge-litert.
    """
    vendor, colon, soc = (part.strip() for part in text.partition(":"))
    if vendor.lower() not in SDKS or not colon:
        raise UsageError(f"--npu {text!r}: expected VENDOR:SOC with VENDOR one of {', '.join(SDKS)}")
    npu = Npu(vendor.lower(), soc.upper())
    known = known_socs(npu.backend)
    if npu.soc not in known:
        raise UsageError(f"--npu {text!r}: unknown SoC; known of {npu.backend}: {', '.join(known)}")
    return npu


def parse_all(texts: Iterable[str]) -> tuple[Npu, ...]:
    """Each processor once, in order; raises as ``parse`` does."""
    return tuple(dict.fromkeys(parse(text) for text in texts))


def known_socs(backend: str) -> tuple[str, ...]:
    """Names of a vendor's SoCs; raises ``UsageError`` where ai-edge-litert is not installed."""
    try:
        if backend == "mediatek":
            from ai_edge_litert.aot.vendors.mediatek import target
        else:
            from ai_edge_litert.aot.vendors.qualcomm import target
    except ImportError as error:
        raise UsageError(
            "--npu needs packages that are not installed: pip install 'qatconvert[litert]'"
        ) from error
    return tuple(sorted(one.value for one in target.SocModel if one.value != "ALL"))


def check_installed(npus: Iterable[Npu]) -> None:
    """Raise ``UsageError`` that says what to install if the SDK of one of ``npus`` is not there."""
    packages = dict.fromkeys(SDKS[npu.backend] for npu in npus)
    lacking = [name for name in packages if find_spec(name.replace("-", "_")) is None]
    if lacking:
        raise UsageError(
            f"--npu needs the vendor's SDK, which is not installed: pip install {' '.join(lacking)}"
        )


def compile_bundle(bundle: Path, npu: Npu, output: Path, progress: StageProgress = no_progress) -> None:
    """Compile the models of a ``.litertlm`` for ``npu`` into ``output``, which appears when it is whole.

    ``progress(done, total)`` counts two steps, of which the first takes long. Raises ``TargetError`` of one
    line, with the compiler's log as a note, and ``CheckpointError`` for a damaged bundle. Raises
    ``DestinationError`` where there is too little room or where ``output`` cannot be written.
    """
    sections = read_sections(bundle)
    check_space(output.parent, _COPIES * bundle.stat().st_size)
    with scratch_directory(output, f"compilation for {npu}") as scratch:
        compiled = scratch / "compiled.litertlm"
        request = {
            "bundle": str(bundle.absolute()),
            "backend": npu.backend,
            "soc": npu.soc,
            "directory": str((scratch / "parts").absolute()),
            "compiled": str(compiled.absolute()),
        }
        ask(_MODULE, request, no_progress, work=f"compiling for {npu}", directory=scratch)
        progress(1, 2)
        whole = scratch / "whole.litertlm"
        write_bundle(whole, _with_models(bundle, sections, compiled, npu))
        try:
            os.replace(whole, output)
        except OSError as error:
            raise destination_error(output, error) from error
    progress(2, 2)


def _with_models(
    bundle: Path, sections: tuple[StoredSection, ...], compiled: Path, npu: Npu
) -> list[Section]:
    """The sections of ``bundle`` with the models of ``compiled``, in the same order."""
    kinds = [(one.kind, one.model_type) for one in sections]
    made = read_sections(compiled)
    if [(one.kind, one.model_type) for one in made] != kinds:
        found = ", ".join(one.model_type or one.kind for one in made)
        raise TargetError(f"litert: compiling for {npu} gave a bundle of other sections: {found}")
    taken = [
        (compiled, new) if new.kind == MODEL else (bundle, old)
        for old, new in zip(sections, made, strict=True)
    ]
    return [Section(one.kind, partial(copy_section, path, one), one.model_type) for path, one in taken]
