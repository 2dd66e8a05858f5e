"""The ``gguf`` target: plan, write and describe llama.cpp's files."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Final

import gguf
import numpy as np

from converter.checkpoint.generation import end_texts
from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.tokenizer_pipeline import Step
from converter.errors import UsageError
from converter.system.progress import Progress, counted, no_progress, stage_of
from targets.estimates import Costs
from targets.families import known_families
from targets.gguf.activations import activation_warnings, add_activation_scales
from targets.gguf.comparison import MODELFILE, differences
from targets.gguf.costs import COSTS
from targets.gguf.declared import OPTIONS
from targets.gguf.description import add_description
from targets.gguf.family import gguf_family
from targets.gguf.generation import HELD, add_generation
from targets.gguf.header import Header, file_names, groups, write_header
from targets.gguf.hyperparameters import add_hyperparameters
from targets.gguf.inferred import inferred_options
from targets.gguf.limits import check, first_build
from targets.gguf.modelfile import OPTIONS as MODELFILE_OPTIONS
from targets.gguf.modelfile import licence_warnings, modelfile
from targets.gguf.names import ROPE_FREQS, tensor_names
from targets.gguf.reading import describe, split_files
from targets.gguf.storage import GGML, holdings, off_lattice_option
from targets.gguf.vocabulary import add_vocabulary, vocabulary_warnings
from targets.gguf.writing import write_data
from targets.ollama import Modelfile, has_modelfile, parse_modelfile, write_modelfile
from targets.options import Option
from targets.publishing import Usage
from targets.storing import Holdings
from targets.target import (
    COMPANION,
    MAIN,
    SHARD,
    Difference,
    Plan,
    PlannedFile,
    PlannedTensor,
    Stored,
    StoredTensor,
    begins_with,
)
from targets.trying import quoted
from targets.writing import destination_error

_SIZE: Final = re.compile(r"([1-9][0-9]*)([KMG]?)")
#: llama.cpp's own units for its ``--split-max-size``.
_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
#: What a model of Ollama is not named with.
_UNUSUAL: Final = re.compile(r"[^A-Za-z0-9._-]+")
#: Options that end up in the file: the licence, the Hub repository, its commit.
_GENERAL: Final = ("license", "repo", "revision")


class GgufTarget:
    """llama.cpp's format. Beside its ``options`` a plan takes ``repo`` and ``revision`` of the Hub, and
    ``off_lattice`` may be ``f32`` too."""

    name = "gguf"
    suffix = ".gguf"
    extra = ""
    modules: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ("gguf", "numba", "numpy")
    options: Sequence[Option] = OPTIONS.options
    library = "gguf"
    costs: Costs = COSTS

    def check(self, options: Mapping[str, object]) -> None:
        """See ``targets.target.Target``."""
        off_lattice_option(options)
        split_limit(options)

    def check_model(self, checkpoint: Checkpoint, options: Mapping[str, object]) -> None:
        """See ``targets.target.Target``."""
        architecture = checkpoint.architecture
        check(checkpoint)
        tensor_names(architecture, architecture.tensors)
        found = _modelfile(checkpoint, "../gguf", options)
        if found is not None:
            write_modelfile(found)  # a text that no Modelfile can hold is noticed here
        elif given := [name for name in MODELFILE_OPTIONS if options.get(name)]:
            raise UsageError(
                f"gguf: {given[0]} is for the Modelfile, and how Ollama runs the family "
                f"{architecture.family} is not known"
            )

    def lacking_steps(self, checkpoint: Checkpoint) -> Sequence[Step]:
        """See ``targets.target.Target``."""
        model = gguf_family(checkpoint.architecture).tokenizer_model(checkpoint.tokenizer)
        return model.lacking(checkpoint.tokenizer)

    def plan(
        self,
        checkpoint: Checkpoint,
        name: str,
        options: Mapping[str, object],
        progress: Progress = no_progress,
    ) -> Plan:
        """See ``targets.target.Target``. Raises ``TargetError`` for what llama.cpp cannot hold and
        ``UsageError`` for a bad option."""
        off_lattice = off_lattice_option(options)
        held, limit = holdings(off_lattice), split_limit(options)
        self.check_model(checkpoint, options)
        names = tensor_names(checkpoint.architecture, checkpoint.weights)
        tensors = [
            held.planned(weight, names[key], held.type_of(weight))
            for key, weight in checkpoint.weights.items()
        ]
        factors = gguf_family(checkpoint.architecture).rope_factors(checkpoint.architecture)
        if factors is not None:
            tensors.insert(0, PlannedTensor(None, ROPE_FREQS, factors.shape, "F32", factors.nbytes, True))
        kept = {key: options[key] for key in (*_GENERAL, *MODELFILE_OPTIONS) if options.get(key)}
        sizes = [sum(tensor.bytes for tensor in group) for group in groups(tensors, limit)]
        names_of_files = file_names(_stem(name, tensors), len(sizes))
        ollama = _modelfile(checkpoint, "../gguf", options)
        return Plan(
            target=self.name,
            files=(
                *(
                    PlannedFile(f"gguf/{file}", SHARD if index else MAIN, size)
                    for index, (file, size) in enumerate(zip(names_of_files, sizes, strict=True))
                ),
                *([PlannedFile(MODELFILE, COMPANION)] if ollama is not None else []),
            ),
            tensors=tuple(tensors),
            warnings=(*_warnings(checkpoint, held), *(f"gguf: {line}" for line in licence_warnings(options))),
            options={"name": name, "off_lattice": off_lattice, "split_max_size": limit, **kept},
            requires={
                "llama.cpp": first_build(checkpoint.architecture, checkpoint.tokenizer),
                **({"ollama": ollama.requires} if ollama is not None and ollama.requires else {}),
            },
        )

    def write(
        self, checkpoint: Checkpoint, plan: Plan, directory: Path, progress: Progress = no_progress
    ) -> Stored:
        """See ``targets.target.Target``. Raises ``DestinationError`` for a file that cannot be written."""
        limit = plan.options["split_max_size"]
        path = directory / "gguf" / f"{_stem(plan.options['name'], plan.tensors)}.gguf"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            layout = write_header(
                _metadata(checkpoint, plan), path, plan.tensors, limit if isinstance(limit, int) else None
            )
        except OSError as error:
            raise destination_error(path, error) from error
        factors = gguf_family(checkpoint.architecture).rope_factors(checkpoint.architecture)
        made = {} if factors is None else {ROPE_FREQS: factors.view(np.uint8)}
        advance = counted(stage_of(progress, "writing gguf"), checkpoint.stored_bytes)
        offset_of = checkpoint.architecture.offset_of
        written = write_data(layout, checkpoint.weights, made, offset_of, advance)
        text = _modelfile_text(checkpoint, plan)
        try:
            if text is not None:
                (directory / MODELFILE).parent.mkdir(exist_ok=True)
                (directory / MODELFILE).write_bytes(text.encode("utf-8"))
        except OSError as error:
            raise destination_error(directory / MODELFILE, error) from error
        why = "float16 does not hold and that is rounded"
        return Stored(GGML.losses(checkpoint.weights, written, why), written.counts)

    def file_sizes(self, checkpoint: Checkpoint, plan: Plan) -> Mapping[str, int]:
        """See ``targets.estimates.Estimated``: all files."""
        with tempfile.TemporaryDirectory(prefix="qatconvert-") as scratch:
            path = Path(scratch) / f"{_stem(plan.options['name'], plan.tensors)}.gguf"
            limit = plan.options["split_max_size"]
            layout = write_header(
                _metadata(checkpoint, plan), path, plan.tensors, limit if isinstance(limit, int) else None
            )
        text = _modelfile_text(checkpoint, plan)
        return {
            **dict(zip(plan.artifacts, layout.sizes, strict=True)),
            **({} if text is None else {MODELFILE: len(text.encode("utf-8"))}),
        }

    def deliver(
        self,
        plan: Plan,
        output: Path,
        options: Mapping[str, object],
        passed: bool,
        progress: Progress = no_progress,
    ) -> Sequence[str]:
        """See ``targets.target.Target``: nothing is to be done."""
        return ()

    def try_it(self, plan: Plan, output: Path) -> Sequence[str]:
        """See ``targets.trying.Tryable``: with llama.cpp, and with Ollama where there is a Modelfile."""
        lines = [f"llama-cli -m {quoted(output / plan.artifacts[0])}"]
        if MODELFILE in plan.companions:
            name = _UNUSUAL.sub("-", str(plan.options["name"])).strip("._-") or "model"
            lines.append(f"ollama create {name} -f {quoted(output / MODELFILE)} && ollama run {name}")
        return lines

    def place(self, path: str) -> str:
        """See ``targets.publishing.Publishable``: in the root, where llama.cpp and Ollama look for files."""
        return path.partition("/")[2]

    def published(self, path: str, content: bytes) -> bytes | None:
        """See ``targets.publishing.Publishable``: a Modelfile leads to the file beside it."""
        return _led_to(content, "./") if path == MODELFILE else None

    def original(self, path: str, content: bytes) -> bytes:
        """See ``targets.publishing.Publishable``."""
        return _led_to(content, "../gguf/") if path == MODELFILE else content

    def usage(self, repo: str, paths: Sequence[str]) -> Sequence[Usage]:
        """See ``targets.publishing.Publishable``: llama.cpp and Ollama, which both download by themselves."""
        main = self.place(paths[0])
        found = [Usage("llama.cpp", (f"llama-cli --hf-repo {repo} --hf-file {shlex.quote(main)}",))]
        if MODELFILE in paths:
            name = repo.rpartition("/")[2].lower()
            files = " ".join(shlex.quote(self.place(path)) for path in paths)
            found.append(
                Usage(
                    "Ollama",
                    (
                        f"hf download {repo} {files} --local-dir {name}",
                        f"ollama create {name} -f {name}/Modelfile && ollama run {name}",
                    ),
                )
            )
        return found

    def choices(self, plan: Plan) -> Sequence[Mapping[str, object]]:
        """See ``targets.target.Target``: none, llama.cpp itself knows one way to run a file."""
        return ()

    def written(self, plan: Plan, choice: Mapping[str, object]) -> Plan:
        """See ``targets.target.Target``: no choice takes another artifact."""
        return plan

    def choose(self, artifact: Path, choice: Mapping[str, object]) -> None:
        """See ``targets.target.Target``: nothing is to be done."""

    def files(self, artifact: Path) -> Sequence[Path]:
        """See ``targets.target.Target``."""
        return split_files(artifact)

    def describe(self, artifact: Path, checkpoint: Checkpoint) -> Mapping[str, StoredTensor]:
        """See ``targets.target.Target``. ``artifact`` is the file, or the first of several. Raises
        ``CheckpointError`` for a damaged file."""
        return describe(artifact, checkpoint)

    def recognises(self, artifact: Path) -> bool:
        """See ``targets.target.Target``."""
        return begins_with(artifact, b"GGUF")

    def infer_options(self, artifact: Path, checkpoint: Checkpoint) -> Mapping[str, object]:
        """See ``targets.target.Target``. Options of the Modelfile are not inferred."""
        return inferred_options(artifact, checkpoint)

    def differences(
        self, artifact: Path, checkpoint: Checkpoint, plan: Plan, progress: Progress = no_progress
    ) -> Sequence[Difference]:
        """See ``targets.target.Target``. How a model is split into files decides nothing; the Modelfile is
        compared where the artifact lies in a directory ``gguf`` beside ``ollama``."""
        header, text = _metadata(checkpoint, plan), _modelfile_text(checkpoint, plan)
        return differences(artifact, checkpoint, plan, header, text, progress)


def split_limit(options: Mapping[str, object]) -> int | None:
    """The option ``split_max_size`` in bytes of tensors per file, ``None`` for one file; a number with
    an optional K, M or G (powers of 1000, as in llama.cpp). Raises ``UsageError``."""
    given = options.get("split_max_size")
    if given is None:
        return None
    match = _SIZE.fullmatch(str(given).upper())
    if match is None:
        raise UsageError(f"split size {given!r} is not a number with K, M or G, such as 500M or 2G")
    return int(match[1]) * _UNITS[match[2]]


def _warnings(checkpoint: Checkpoint, held: Holdings) -> list[str]:
    warnings = held.warnings(checkpoint.weights.values())
    warnings += vocabulary_warnings(checkpoint.architecture, checkpoint.tokenizer)
    warnings += activation_warnings(checkpoint)
    warnings += [f"gguf: {line}" for line in checkpoint.card.warnings]
    family = checkpoint.architecture.family
    if not has_modelfile(family):
        known = ", ".join(known_families("ollama"))
        warnings.append(
            f"gguf: no Modelfile is written: ollama: the family {family} is not known; known: {known}"
        )
    return warnings + checkpoint.generation.limits("gguf", "llama.cpp", HELD)


def _modelfile_text(checkpoint: Checkpoint, plan: Plan) -> str | None:
    # Ollama takes a model of several files by their directory
    path = f"../{plan.artifacts[0]}" if len(plan.artifacts) == 1 else "../gguf"
    found = _modelfile(checkpoint, path, plan.options)
    return None if found is None else write_modelfile(found)


def _modelfile(checkpoint: Checkpoint, path: str, options: Mapping[str, object]) -> Modelfile | None:
    """The Modelfile, ``None`` for a family that Ollama is not known to run."""
    if not has_modelfile(checkpoint.architecture.family):
        return None
    return modelfile(
        path,
        checkpoint.architecture,
        checkpoint.generation.sampling,
        options,
        end_texts(checkpoint.architecture, checkpoint.tokenizer),
        checkpoint.generation.penalties,
    )


def _metadata(checkpoint: Checkpoint, plan: Plan) -> Header:
    family = gguf_family(checkpoint.architecture)
    header = Header(None, family.architecture_name)
    header.add_type(gguf.GGUFType.MODEL)
    add_description(header, checkpoint.card, plan.options, plan.tensors, family)
    header.add_quantization_version(gguf.GGML_QUANT_VERSION)
    most = main_format(plan.tensors)
    header.add_file_type(gguf.LlamaFileType["ALL_F32" if most == "F32" else f"MOSTLY_{most}"])
    add_hyperparameters(header, checkpoint.architecture)
    add_vocabulary(header, checkpoint.architecture, checkpoint.tokenizer)
    add_generation(header, checkpoint.generation, checkpoint.architecture)
    add_activation_scales(header, checkpoint)
    return header


def _stem(name: object, tensors: Sequence[PlannedTensor]) -> str:
    """The files' name without suffix: the model's, and the type that holds most bytes."""
    return f"{name}-{main_format(tensors).lower()}"


def main_format(tensors: Sequence[PlannedTensor]) -> str:
    """The type that holds most bytes; the file is named after it, and its ``general.file_type`` says it."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.bytes
    return max(sizes, key=lambda type_name: sizes[type_name], default="F32")


def _led_to(modelfile: bytes, folder: str) -> bytes:
    """A Modelfile that leads to the file of the same name in another folder."""
    parsed = parse_modelfile(modelfile.decode("utf-8", "replace"))
    name = PurePosixPath(parsed.model).name
    return write_modelfile(replace(parsed, model=f"{folder}{name}")).encode("utf-8")
