"""The manifest: what was read, how every tensor was stored, what was written, by which versions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from converter.checkpoint.assembly import LeftOut

#: Version of the manifest's layout.
SCHEMA: Final = 1
#: Largest manifest that is read; that of a model of 10,000 tensors has 3 MB.
LARGEST: Final = 64 << 20
#: Packages that can change the bytes of an artifact or the figures of a report.
_LIBRARIES = (
    "ai-edge-litert",
    "flatbuffers",
    "gguf",
    "huggingface-hub",
    "litert-converter",
    "litert-lm",
    "litert-lm-builder",
    "litert-torch",
    "llama-cpp-python",
    "mobius-onnx",
    "numba",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-genai",
    "onnxscript",
    "protobuf",
    "torch",
    "transformers",
    "xllamacpp",
)


def library_versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Installed versions of the libraries that matter for the result, and of ``more``, which targets and
    runtimes name."""
    found = {}
    for name in sorted({*_LIBRARIES, *more}):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def build(
    options: Mapping[str, object],
    source: Mapping[str, object],
    targets: Mapping[str, Mapping[str, object]],
    left_out: Iterable[LeftOut],
    artifacts: Sequence[Mapping[str, object]],
    runtimes: Iterable[str] = (),
) -> dict[str, object]:
    """The manifest of a conversion; holds no time, host or outside path.

    ``options`` concern the whole conversion. ``source`` says what was read, with the digests of its
    ``files``, and ``artifacts`` are the digests of what was written. ``targets`` maps each target to its
    storage plan and its own options. ``left_out`` are the tensors that no target has a place for.
    ``runtimes`` are the distributions of what ran the artifacts.
    """
    from targets.target import find_target  # loads what a verification does without

    return {
        "schema": SCHEMA,
        "tool": {"name": "qatconvert", "version": version("qatconvert")},
        "libraries": library_versions(
            (*runtimes, *(library for name in targets for library in find_target(name).libraries))
        ),
        "options": dict(options),
        "source": dict(source),
        "targets": dict(targets),
        "left_out": [
            {
                "name": item.name,
                "shape": list(item.shape),
                "dtype": item.dtype,
                "reason": item.reason,
                "part": item.part,
            }
            for item in left_out
        ],
        "artifacts": list(artifacts),
    }


def files_of(directory: Path) -> list[Path]:
    """Every file in a directory and those below it."""
    return [path for path in directory.rglob("*") if path.is_file()]


def renewed(earlier: Mapping[str, object], artifacts: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """``earlier`` for a conversion in which ``artifacts`` replace files of the same name; empty if it is no
    manifest."""
    listed = earlier.get("artifacts")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        return {}
    names = {entry["path"] for entry in artifacts}
    entries = [*artifacts, *(entry for entry in listed if entry.get("path") not in names)]
    return {**earlier, "artifacts": sorted(entries, key=lambda entry: str(entry.get("path")))}


def write(path: Path, content: Mapping[str, object]) -> None:
    """Write the manifest; the same content gives the same bytes."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
