"""Decoding speed, memory, size and exactness of the ONNX artifact beside its float32 form and a rounded one.

Makes a text-only lattice checkpoint in E2B's proportions, converts it (timed, the memory measured), makes the
peers of ``onnx_peers.py``, and runs all of them in onnxruntime in turn, each run in a process of its own.
Prints medians of the runs and ratios within this run.

    python benchmarks/onnx_decoding.py [--scale 0.25] [--runs 3] [--positions 192] [--directory DIR]
    python benchmarks/onnx_decoding.py --experts     decoding of a mixture of 8, 32 and 128 experts
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import generator  # noqa: F401 (checkpoints is found by it)
import numpy as np
from gguf_conversion import HERE, make_checkpoint, measure

from converter.checkpoint.opened import open_checkpoint
from converter.system.child import Worker
from validation.logits import next_tokens
from validation.metrics import compare
from validation.reference.logits import Computation, Model, reference_logits
from validation.runtimes.onnxruntime import runner
from validation.text import Tokens


@dataclass(frozen=True)
class Artifact:
    """A model to run: its graph, the ``accuracy_level`` it is run at, and the bytes that it takes."""

    path: Path
    level: int | None
    bytes: int


@dataclass(frozen=True)
class Result:
    """Decode steps per second, peak resident bytes, and mean KLD from the reference."""

    speed: float
    peak: int
    kld: float


def size(artifact: Path) -> int:
    """Bytes of a graph and its data."""
    return sum(file.stat().st_size for file in artifact.parent.glob(f"{artifact.name}*"))


def make(checkpoint: Path, work: Path) -> dict[str, Artifact]:
    """Convert the checkpoint and make its peers; prints what the conversion took."""
    qatconvert = str(Path(sys.executable).with_name("qatconvert"))
    ours = work / "ours"
    command = [qatconvert, str(checkpoint), "-t", "onnx", "--no-validate", "-o", str(ours)]
    measure([qatconvert, "--help"])  # compiled modules are there
    run = measure(command)
    print(f"conversion: {run.seconds:.2f} s, {run.megabytes:.0f} MB resident at most")
    for kind in ("float32", "rtn"):
        peer = [sys.executable, str(HERE / "onnx_peers.py"), kind, str(checkpoint), str(work / kind)]
        done = subprocess.run(peer, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{kind} could not be made:\n{done.stderr[-2000:]}")
    graph = Path("onnx") / "model.onnx"
    return {
        f"{name}{'' if level is None else f', level {level}'}": Artifact(
            work / directory / graph, level, size(work / directory / graph)
        )
        for name, directory, level in (
            ("qatconvert", "ours", 4),
            ("qatconvert", "ours", 0),
            ("float32", "float32", None),
            ("round to nearest", "rtn", 4),
            ("round to nearest", "rtn", 0),
        )
    }


def compare_all(
    checkpoint: Path, artifacts: Mapping[str, Artifact], work: Path, runs: int, positions: int
) -> dict[str, Result]:
    """Every artifact's median figures over ``runs`` runs, taken in turn."""
    opened = open_checkpoint(checkpoint)
    vocabulary = opened.architecture.vocabulary
    ids = np.random.default_rng(5).integers(300, vocabulary, positions - 1)
    sequences = [[2, *ids.tolist()]]
    model = Model(checkpoint, tuple(left.name for left in opened.left_out), vocabulary)
    with Worker("validation.reference.process") as worker:
        reference = reference_logits(model, Tokens.of(sequences), Computation(worker), work)
    found: dict[str, list[Result]] = {name: [] for name in artifacts}
    for _ in range(runs):
        for name, artifact in artifacts.items():
            output = work / "logits.npy"
            choice = {} if artifact.level is None else {"accuracy_level": artifact.level}
            runtime = runner.logits(
                artifact.path, sequences, vocabulary, output, lambda done, total: None, choice=choice
            )
            metrics = compare(reference, np.load(output, mmap_mode="r"), next_tokens(sequences))
            speed = runtime.settings["decode"]["tokens_per_second"]
            found[name].append(Result(speed, runtime.settings["peak_bytes"], metrics.mean_kld))
    return {
        name: Result(
            statistics.median(one.speed for one in results),
            max(one.peak for one in results),
            results[0].kld,
        )
        for name, results in found.items()
    }


def show(artifacts: Mapping[str, Artifact], results: Mapping[str, Result]) -> None:
    """One line per artifact, with ratios to float32."""
    plain = results["float32"]
    plain_bytes = artifacts["float32"].bytes
    print(f"{'':<26}{'MB':>8}{'/ f32':>8}{'tokens/s':>10}{'x f32':>7}{'peak MB':>9}{'mean KLD':>12}")
    for name, result in results.items():
        taken = artifacts[name].bytes
        print(
            f"{name:<26}{taken / 1e6:>8.0f}{taken / plain_bytes:>8.4f}{result.speed:>10.2f}"
            f"{result.speed / plain.speed:>7.2f}{result.peak / 1e6:>9.0f}{result.kld:>12.3g}"
        )


def experts(counts: Sequence[int], work: Path) -> None:
    """Decoding of a small mixture whose number of experts grows and whose number of active ones does not."""
    from checkpoints.generate import write_checkpoint

    print(f"{'experts':>8}{'active':>8}{'MB':>8}{'tokens/s':>10}")
    for count in counts:
        checkpoint = work / f"experts-{count}"
        text = {"num_experts": count, "top_k_experts": 4, "moe_intermediate_size": 704, "hidden_size": 1408}
        write_checkpoint(checkpoint, "26b-a4b", text=text)
        output = work / f"output-{count}"
        qatconvert = str(Path(sys.executable).with_name("qatconvert"))
        command = [qatconvert, str(checkpoint), "-t", "onnx", "--no-validate", "-o", str(output)]
        subprocess.run([*command, "--accuracy-level", "4"], check=True, capture_output=True)
        artifact = output / "onnx" / "model.onnx"
        vocabulary = open_checkpoint(checkpoint).architecture.vocabulary
        ids = [[2, *np.random.default_rng(5).integers(300, vocabulary, 127).tolist()]]
        speeds = [
            runner.logits(artifact, ids, vocabulary, work / "logits.npy", lambda done, total: None).settings[
                "decode"
            ]["tokens_per_second"]
            for _ in range(3)
        ]
        print(f"{count:>8}{4:>8}{size(artifact) / 1e6:>8.0f}{statistics.median(speeds):>10.2f}")


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=0.25, help="E2B's widths times this (default 0.25)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each artifact (default 3)")
    parser.add_argument("--positions", type=int, default=192, help="tokens (default 192)")
    parser.add_argument("--directory", type=Path, help="where to work (default: the temporary directory)")
    parser.add_argument("--experts", action="store_true", help="measure a mixture of experts instead")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        work = Path(directory)
        if arguments.experts:
            return experts((8, 32, 128), work)
        checkpoint = work / "checkpoint"
        gigabytes = make_checkpoint(checkpoint, arguments.scale, "text")
        print(f"checkpoint: {gigabytes:.2f} GB, {gigabytes / 2:.2f} billion parameters")
        artifacts = make(checkpoint, work)
        show(artifacts, compare_all(checkpoint, artifacts, work, arguments.runs, arguments.positions))
    return None


if __name__ == "__main__":
    main()
