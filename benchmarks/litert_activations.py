"""What rows of activations cost and give in LiteRT: a table of ways, each measured in the real runtime.

    python benchmarks/litert_activations.py CHECKPOINT [--ways 1 down_proj layers 2] [--turns 3]

CHECKPOINT is a directory, such as one that ``real_gemma.py --keep DIR`` leaves. Every way (a value of
``--litert-activations``) is converted and run in LiteRT's interpreter beside transformers' logits of the same
text. Speeds are those of ``litert-lm benchmark`` with 128 tokens of prompt and 64 decoded ones, the ways in
turn; the best of ``--turns`` counts, since other work on the machine only slows one down.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from converter.checkpoint.opened import open_checkpoint
from targets.target import find_target
from validation.logits import map_logits, next_tokens
from validation.metrics import LogitMetrics, compare
from validation.reference.logits import Computation, Model, reference_logits
from validation.runners import find_runner
from validation.settings import Settings, prepare

_SPEED = re.compile(r"(Prefill|Decode) speed:\s*([0-9.]+) tokens/s")


def convert(checkpoint: Path, ways: Sequence[str], directory: Path) -> dict[str, Path]:
    """A bundle for every way."""
    model, target = open_checkpoint(checkpoint), find_target("litert")
    bundles = {}
    for way in ways:
        plan = target.plan(model, "model", {"activations": way})
        place = directory / way
        place.mkdir()
        target.write(model, plan, place)
        bundles[way] = place / plan.artifacts[0]
    return bundles


def measure(checkpoint: Path, bundles: dict[str, Path], directory: Path) -> dict[str, LogitMetrics]:
    """Each bundle's logits beside transformers'."""
    model, runner, found = open_checkpoint(checkpoint), find_runner("litert"), {}
    with prepare(model, Settings(), lambda stage, done, total: None) as prepared:
        tokens = prepared.tokens
        reference = reference_logits(
            Model(model.source.directory(), (), model.architecture.vocabulary),
            tokens,
            Computation(prepared.worker),
            directory,
        )
        following = next_tokens(tokens.sequences, tokens.firsts)
        for way, bundle in bundles.items():
            output = directory / "logits.npy"
            vocabulary, firsts = reference.shape[1], tokens.firsts
            runner.logits(
                bundle, tokens.sequences, vocabulary, output, lambda done, total: None, firsts=firsts
            )
            found[way] = compare(reference, map_logits(output, tokens.positions), following)
    return found


def speeds(bundle: Path) -> tuple[float, float]:
    """Tokens per second, of the prompt and decoded."""
    program = str(Path(sys.executable).with_name("litert-lm"))
    command = [program, "benchmark", str(bundle), "-p", "128", "-d", "64", "--cache", "no"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = {kind: float(number) for kind, number in _SPEED.findall(done.stdout + done.stderr)}
    return told["Prefill"], told["Decode"]


def main() -> None:
    """Convert, measure, print the table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--ways", nargs="+", default=["1", "down_proj", "layers", "2"])
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        bundles = convert(given.checkpoint, given.ways, directory)
        metrics = measure(given.checkpoint, bundles, directory)
        runs: dict[str, list[tuple[float, float]]] = {way: [] for way in bundles}
        for _ in range(given.turns):
            for way, bundle in bundles.items():
                runs[way].append(speeds(bundle))
    best = {way: tuple(map(max, zip(*one, strict=True))) for way, one in runs.items()}
    print("| activations | mean KLD | same top | PPL | prompt, tokens/s | decoded, tokens/s | times slower |")
    print("|---|---|---|---|---|---|---|")
    first = best[given.ways[0]]
    for way, one in metrics.items():
        prompt, decoded = best[way]
        slower = " / ".join(f"{base / speed:.2f}" for base, speed in zip(first, best[way], strict=True))
        figures = f"{one.mean_kld:.4f} | {one.same_top_p:.1%} | {one.ppl:.2f} | {prompt:.0f} | {decoded:.1f}"
        print(f"| `{way}` | {figures} | {slower} |")
    print(f"\nreference: PPL {next(iter(metrics.values())).ppl_reference:.2f}")


if __name__ == "__main__":
    main()
