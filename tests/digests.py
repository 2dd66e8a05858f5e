"""SHA-256 of what is written for the demo and for every kind of generated checkpoint, by target.

    PYTHONPATH=.:tests python -m digests [--targets gguf onnx litert] [--write FILE | --compare FILE]

What a change of the code's shape must not change. GGUF's are in ``targets/gguf/gguf_digests.json`` and are
tested; those of ONNX and LiteRT depend on the libraries that build the graphs, so they are compared in one
environment, with the accuracy level and the rows of activations fixed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints.generate import write_checkpoint
from converter.checkpoint.opened import open_checkpoint
from converter.demo import DEMO
from targets.target import find_target

#: By name: variant, scheme, and what else is asked of the generator.
CASES: Mapping[str, tuple[str, str, Mapping[str, object]]] = {
    **{
        f"{variant}-max7": (variant, "max7", {})
        for variant in ("12b", "26b-a4b", "31b", "e2b", "e4b", "gemma3", "gemma3-text", "text")
    },
    **{
        f"text-{scheme}": ("text", scheme, {})
        for scheme in ("extremum8", "latent", "learned", "learned-f32", "max7-f32", "max8")
    },
    "e2b-extremum8-transformers": ("e2b", "extremum8", {"layout": "transformers"}),
    "26b-a4b-extremum8": ("26b-a4b", "extremum8", {}),
    "text-f16": ("text", "max8", {"stored": "F16"}),
    "text-f32": ("text", "latent", {"stored": "F32"}),
    "text-odd": ("text", "latent", {"text": {"intermediate_size": 200}}),
}
#: Choices that a conversion would otherwise measure, or that show more of the rule for storing.
OPTIONS: Mapping[str, tuple[Mapping[str, object], ...]] = {
    "gguf": ({}, {"off_lattice": "q4_0"}, {"off_lattice": "bf16"}),
    "onnx": ({"accuracy_level": 4}, {"onnx_dtype": "float16", "off_lattice": "q4_0", "accuracy_level": 0}),
    "litert": (
        {"activations": "2", "prefill_lengths": [64], "context_length": 512},
        {"activations": "1", "prefill_lengths": [64], "context_length": 512, "externalize_embedder": True},
    ),
}


def write_case(name: str, directory: Path) -> Path:
    """The checkpoint of a case."""
    if name == "demo":
        return DEMO
    variant, scheme, options = CASES[name]
    return write_checkpoint(directory / name, variant, scheme, **options)  # type: ignore[arg-type]


def digests(
    model: Path, name: str, target: str, options: Mapping[str, object], scratch: Path
) -> dict[str, str]:
    """SHA-256 of every file of a conversion, by path."""
    checkpoint, found = open_checkpoint(model), find_target(target)
    plan = found.plan(checkpoint, name, options)
    found.write(checkpoint, plan, scratch)
    return {
        file: hashlib.sha256((scratch / file).read_bytes()).hexdigest()
        for file in sorted((*plan.artifacts, *plan.companions))
    }


def all_digests(targets: list[str], names: list[str]) -> dict[str, Any]:
    """Digests by target, case and options."""
    made: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            model = write_case(name, Path(directory))
            for target in targets:
                for options in OPTIONS[target]:
                    with tempfile.TemporaryDirectory(dir=directory) as scratch:
                        one = digests(model, name, target, options, Path(scratch))
                    made.setdefault(target, {}).setdefault(name, {})[json.dumps(options)] = one
                print(f"{target} {name}", file=sys.stderr)
    return made


def main() -> None:
    """Parse the arguments; write or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", nargs="+", choices=sorted(OPTIONS), default=sorted(OPTIONS))
    parser.add_argument("--cases", nargs="+", choices=["demo", *CASES], default=["demo", *CASES])
    parser.add_argument("--write", type=Path)
    parser.add_argument("--compare", type=Path)
    given = parser.parse_args()
    made = all_digests(given.targets, given.cases)
    if given.write is not None:
        given.write.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", "utf-8")
    if given.compare is None:
        return
    known = json.loads(given.compare.read_text("utf-8"))
    other = [
        f"{target} {name} {options}"
        for target, cases in made.items()
        for name, by_options in cases.items()
        for options, found in by_options.items()
        if known[target][name][options] != found
    ]
    print("\n".join(other) or "equal")
    sys.exit(1 if other else 0)


if __name__ == "__main__":
    main()
