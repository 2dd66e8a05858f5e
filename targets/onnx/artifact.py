"""The ``onnx`` target: plan, write and describe models for onnxruntime and onnxruntime-genai."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.tokenizer_pipeline import Step
from converter.errors import CheckpointError
from converter.filenames import CHAT_TEMPLATE
from converter.system.progress import Progress, counted, no_progress, stage_of
from converter.system.replacing import write_whole
from targets.estimates import Costs
from targets.onnx.accuracy import with_accuracy_level
from targets.onnx.costs import COSTS
from targets.onnx.declared import OPTIONS
from targets.onnx.family import check_family
from targets.onnx.grids import grid_warnings, grids_of
from targets.onnx.layout import lay_out
from targets.onnx.side_files import (
    check_tokenizer,
    generation_files,
    generation_warnings,
    kv_cache,
    lacking_steps,
)
from targets.onnx.storage import Storage, is_unpacked, read_options, stored_name
from targets.onnx.writing import write_data
from targets.options import Option
from targets.publishing import InPlace, Usage
from targets.target import (
    COMPANION,
    SHARD,
    Difference,
    Plan,
    PlannedFile,
    Stored,
    StoredTensor,
    check_installed,
)
from targets.trying import quoted
from targets.writing import destination_error

MODEL: Final = "onnx/model.onnx"
DATA: Final = "onnx/model.onnx.data"
_QUESTION: Final = "What are lists?"
_CHAT: Final = (
    f't.apply_chat_template(\'[{{"role": "user", "content": "{_QUESTION}"}}]\', add_generation_prompt=True)'
)
#: Statements of one line that have onnxruntime-genai answer; the argument is the model's directory.
_TRY: Final = (
    "import sys, onnxruntime_genai as og; m = og.Model(sys.argv[1]); t = og.Tokenizer(m); "
    "p = og.GeneratorParams(m); p.set_search_options(max_length=256); g = og.Generator(m, p); "
    "g.append_tokens(t.encode({prompt})); "
    "[g.generate_next_token() for _ in range(200) if not g.is_done()]; print(t.decode(g.get_sequence(0)))"
)
#: Options that end up in the file's metadata as they are given.
_GENERAL: Final = ("license", "repo", "revision")


class OnnxTarget(InPlace):
    """onnxruntime's format. Beside its ``options`` a plan takes ``repo`` and ``revision`` of the Hub, and
    ``off_lattice`` may be ``f32`` too."""

    name = "onnx"
    suffix = ".onnx"
    extra = "onnx"
    modules: tuple[str, ...] = ("mobius", "onnx", "onnx_ir")
    libraries: tuple[str, ...] = (
        "mobius-onnx",
        "numba",
        "numpy",
        "onnx",
        "onnx-ir",
        "onnxscript",
        "protobuf",
    )
    options: Sequence[Option] = OPTIONS.options
    library = "onnx"
    costs: Costs = COSTS

    def check(self, options: Mapping[str, object]) -> None:
        """See ``targets.target.Target``."""
        read_options(options)

    def check_model(self, checkpoint: Checkpoint, options: Mapping[str, object]) -> None:
        """See ``targets.target.Target``."""
        check_family(checkpoint.architecture)
        check_tokenizer(checkpoint)
        generation_files(checkpoint)
        generation_warnings(checkpoint)

    def lacking_steps(self, checkpoint: Checkpoint) -> Sequence[Step]:
        """See ``targets.target.Target``."""
        check_family(checkpoint.architecture)
        return lacking_steps(checkpoint.tokenizer)

    def plan(
        self,
        checkpoint: Checkpoint,
        name: str,
        options: Mapping[str, object],
        progress: Progress = no_progress,
    ) -> Plan:
        """See ``targets.target.Target``. Raises ``UsageError`` for a bad option, also for static grids that
        the checkpoint does not have. Raises ``TargetError`` for a model of no known family and for a
        tokenizer that onnxruntime-genai would run otherwise."""
        storage = read_options(options)
        check_family(checkpoint.architecture)
        check_tokenizer(checkpoint)
        kept = {key: options[key] for key in _GENERAL if options.get(key)}
        held, grids = storage.held, grids_of(checkpoint, storage)
        tensors = tuple(
            held.planned(weight, stored_name(weight.name), held.type_of(weight))
            for weight in checkpoint.weights.values()
        )
        return Plan(
            target=self.name,
            files=(
                PlannedFile(MODEL),
                PlannedFile(DATA, SHARD, sum(tensor.bytes for tensor in tensors)),
                *(PlannedFile(f"onnx/{file}", COMPANION) for file in generation_files(checkpoint)),
            ),
            tensors=tensors,
            warnings=(
                *storage.held.warnings(checkpoint.weights.values()),
                *grid_warnings(checkpoint, storage),
                *generation_warnings(checkpoint),
            ),
            scales="float16" if storage.scales == "FLOAT16" else "float32",
            kv_cache=kv_cache(checkpoint.architecture, storage.held.row_bytes(storage.dtype, 1)),
            options={
                "name": name,
                "onnx_dtype": "float16" if storage.dtype == "FLOAT16" else "float32",
                "onnx_scales": "f16" if storage.scales == "FLOAT16" else "f32",
                "off_lattice": storage.off_lattice,
                "accuracy_level": storage.accuracy_level,
                **({"static_activations": True} if grids else {}),
                **kept,
            },
            choices_by_speed=any(is_unpacked(held, tensor.type) for tensor in tensors),
            applies_grids=bool(grids),
        )

    def write(
        self, checkpoint: Checkpoint, plan: Plan, directory: Path, progress: Progress = no_progress
    ) -> Stored:
        """See ``targets.target.Target``. Raises ``DestinationError`` for a file that cannot be written."""
        from targets.onnx.graph import serialized_graph

        storage = read_options(plan.options)
        layout = lay_out(plan.tensors, storage)
        grids = grids_of(checkpoint, storage)
        graph = serialized_graph(checkpoint.architecture, layout, storage, plan.options, grids)
        files = generation_files(checkpoint)
        (directory / MODEL).parent.mkdir(parents=True, exist_ok=True)
        for path, content in {MODEL: graph, **{f"onnx/{file}": files[file] for file in files}}.items():
            _write(directory / path, content)
        advance = counted(stage_of(progress, "writing onnx"), checkpoint.stored_bytes)
        written = write_data(directory / DATA, layout, checkpoint.weights, storage, advance)
        remedy = "--onnx-scales f32" if storage.dtype == "FLOAT" else "--onnx-dtype float32"
        why = f"float16 does not hold and that is rounded; {remedy} keeps them"
        return Stored(storage.held.losses(checkpoint.weights, written, why), written.counts)

    def try_it(self, plan: Plan, output: Path) -> Sequence[str]:
        """See ``targets.trying.Tryable``: with onnxruntime-genai's Python package."""
        return (_tried((output / MODEL).parent, plan.companions),)

    def usage(self, repo: str, paths: Sequence[str]) -> Sequence[Usage]:
        """See ``targets.publishing.Publishable``."""
        name = repo.rpartition("/")[2].lower()
        download = f"hf download {repo} --include 'onnx/*' --local-dir {name}"
        return (Usage("onnxruntime-genai", (download, _tried(Path(name, "onnx"), paths))),)

    def files(self, artifact: Path) -> Sequence[Path]:
        """See ``targets.target.Target``."""
        from targets.onnx.reading import files

        return files(artifact)

    def describe(self, artifact: Path, checkpoint: Checkpoint) -> Mapping[str, StoredTensor]:
        """See ``targets.target.Target``. Raises ``CheckpointError`` for a damaged file."""
        from targets.onnx.reading import describe

        return describe(artifact, checkpoint)

    def recognises(self, artifact: Path) -> bool:
        """See ``targets.target.Target``."""
        from targets.onnx.protobuf import read_graph

        try:
            read_graph(artifact)
        except CheckpointError:
            return False
        return True

    def infer_options(self, artifact: Path, checkpoint: Checkpoint) -> Mapping[str, object]:
        """See ``targets.target.Target``."""
        from targets.onnx.inferred import inferred_options

        return inferred_options(artifact, checkpoint)

    def differences(
        self, artifact: Path, checkpoint: Checkpoint, plan: Plan, progress: Progress = no_progress
    ) -> Sequence[Difference]:
        """See ``targets.target.Target``. Where the model lies in a directory with any of the files that
        belong beside it, other files there that a runtime would read are differences too. Raises
        ``UsageError`` where what builds the graph is not installed."""
        check_installed([self])
        from targets.onnx.comparison import differences

        return differences(artifact, checkpoint, plan, progress)

    def file_sizes(self, checkpoint: Checkpoint, plan: Plan) -> Mapping[str, int]:
        """See ``targets.estimates.Estimated``: all but the graph, which takes seconds to build."""
        files = {f"onnx/{name}": len(content) for name, content in generation_files(checkpoint).items()}
        return {DATA: lay_out(plan.tensors, read_options(plan.options)).size, **files}

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

    def choices(self, plan: Plan) -> Sequence[Mapping[str, object]]:
        """See ``targets.target.Target``: int8 activations, which are fast, and float32 ones, which are
        accurate, unless the option says which."""
        quantised = any(Storage().held.find(tensor.type) for tensor in plan.tensors)
        if plan.options["accuracy_level"] is not None or not quantised:
            return ()
        return ({"accuracy_level": 4}, {"accuracy_level": 0})

    def written(self, plan: Plan, choice: Mapping[str, object]) -> Plan:
        """See ``targets.target.Target``: no choice takes another artifact."""
        return plan

    def choose(self, artifact: Path, choice: Mapping[str, object]) -> None:
        """See ``targets.target.Target``: rewrites the graph, which is small, and not the data."""
        level = choice["accuracy_level"]
        assert isinstance(level, int)
        _write(artifact, with_accuracy_level(artifact.read_bytes(), level))


def _write(path: Path, content: bytes) -> None:
    """Put a whole small file in its place."""
    try:
        write_whole(path, content)
    except OSError as error:
        raise destination_error(path, error) from error


def _tried(folder: Path, files: Sequence[str]) -> str:
    """A line for a shell that asks the model in ``folder`` something, in a turn if it has a template."""
    chat = f"onnx/{CHAT_TEMPLATE}" in files
    program = _TRY.format(prompt=_CHAT if chat else repr(_QUESTION))
    return f"python -c {shlex.quote(program)} {quoted(folder)}"
