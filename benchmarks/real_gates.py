"""Which gates fail on a real model for wrong artifacts: naive rounding, another tokenizer, another template.

    python benchmarks/real_gates.py CHECKPOINT [--targets gguf onnx litert] [--wrong naive tokenizer template]

CHECKPOINT is one that ``benchmarks/real_gemma.py --keep DIR`` left, or any of two bytes a value in one file.
As a base model has no chat template, it gets that of the generated checkpoints. A wrong artifact is converted
from a copy in which one thing is other, and proven against the checkpoint:

* ``naive``: every matrix in llama.cpp's Q4_0 rounding instead of the trained codes;
* ``tokenizer``: two common tokens have changed places;
* ``template``: a chat template that leaves out the line end behind the role.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from generator import generate

TARGETS = ("gguf", "onnx", "litert")
#: Tokens that change places; a Gemma's vocabulary has both, and English text too.
SWAPPED = ("\u2581the", "\u2581and")
MATCHES = {"gguf": "*.gguf", "onnx": "model.onnx", "litert": "*.litertlm"}


def copy(source: Path, directory: Path, changed: str) -> Path:
    """A checkpoint like ``source`` but for a file that is written anew."""
    directory.mkdir()
    for file in source.iterdir():
        if file.name != changed:
            os.link(file.resolve(), directory / file.name)
    return directory


def naive(source: Path, directory: Path) -> None:
    """Every matrix rounded to Q4_0."""
    from safetensors.torch import load_file, save_file

    from targets.gguf.storage import Q4_0

    name = "model.safetensors"
    copy(source, directory, name)
    tensors = load_file(source / name)
    for key, tensor in tensors.items():
        if tensor.ndim == 2 and tensor.shape[1] % Q4_0.block == 0:
            rows = Q4_0.rounded(tensor.float().numpy())
            values = rows.codes * rows.scales.repeat(Q4_0.block, axis=1)
            tensors[key] = tensor.new_tensor(values)
    save_file(tensors, directory / name, {"format": "pt"})


def tokenizer(source: Path, directory: Path) -> None:
    """Two tokens in each other's place."""
    name = "tokenizer.json"
    copy(source, directory, name)
    document = json.loads((source / name).read_text("utf-8"))
    vocabulary = document["model"]["vocab"]
    one, other = SWAPPED
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (directory / name).write_text(json.dumps(document), "utf-8")


def template(source: Path, directory: Path) -> None:
    """No line end behind the role."""
    name = "chat_template.jinja"
    copy(source, directory, name)
    text = (source / name).read_text("utf-8")
    cut = text.replace("+ '\\n'", "", 1) if "+ '\\n'" in text else text.replace("\\n", "", 1)
    if cut == text:
        sys.exit(f"{source / name}: has no line end to leave out")
    (directory / name).write_text(cut, "utf-8")


WRONG: Mapping[str, Callable[[Path, Path], None]] = {
    "naive": naive,
    "tokenizer": tokenizer,
    "template": template,
}


def failing(target: str, wrong: Path, reference: Path, work: Path) -> list[str]:
    """Names of the gates that an artifact of ``wrong`` fails as one of ``reference``."""
    qatconvert = str(Path(sys.executable).with_name("qatconvert"))
    made, proof = work / "made", work / "proof"
    for directory in (made, proof):
        shutil.rmtree(directory, ignore_errors=True)
    arguments = ["--target", target, "--no-validate", "--output", str(made)]
    subprocess.run([qatconvert, "convert", str(wrong), *arguments], check=True, stdout=subprocess.DEVNULL)
    (artifact,) = (made / target).glob(MATCHES[target])
    done = subprocess.run(
        [qatconvert, "validate", str(artifact), "--reference", str(reference), "-o", str(proof)],
        stdout=subprocess.DEVNULL,
    )
    if done.returncode not in (0, 3):
        sys.exit(f"validation of {artifact.name} ended with status {done.returncode}")
    entry = json.loads((proof / "report.json").read_text("utf-8"))["targets"][target]
    return [gate["name"] for gate in entry["gates"] if gate["passed"] is False]


def main() -> None:
    """Make the wrong checkpoints, convert and prove each, print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--wrong", nargs="+", choices=sorted(WRONG), default=sorted(WRONG))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.checkpoint.parent) as name:
        work = Path(name)
        reference = copy(given.checkpoint, work / given.checkpoint.name, "chat_template.jinja")
        own = given.checkpoint / "chat_template.jinja"
        if own.exists():
            shutil.copyfile(own, reference / own.name)
        else:
            generate(work / "generated", "gemma3-text")
            shutil.copyfile(work / "generated" / own.name, reference / own.name)
        print("| wrong | target | gates that fail |\n|---|---|---|")
        for kind in given.wrong:
            directory = work / kind / given.checkpoint.name
            directory.parent.mkdir()
            WRONG[kind](reference, directory)
            for target in given.targets:
                found = ", ".join(failing(target, directory, reference, work)) or "NONE"
                print(f"| {kind} | {target} | {found} |", flush=True)


if __name__ == "__main__":
    main()
