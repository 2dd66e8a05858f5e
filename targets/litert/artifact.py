"""The ``litert`` target: plan, write and describe bundles for LiteRT-LM."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.tokenizer_pipeline import Step
from converter.checkpoint.weight import Weight
from converter.system.progress import Progress, counted, no_progress, stage_of
from targets.accelerators import Accelerator
from targets.estimates import Costs
from targets.litert.activations import STATIC, Grid, split_products, static_grids, two_rows, ways
from targets.litert.bundle import MAGIC, Section, StoredSection, copy_section, write_bundle
from targets.litert.costs import COSTS
from targets.litert.declared import OPTIONS
from targets.litert.devices.android import check_assets, check_directory, write_assets
from targets.litert.devices.npu import Npu, check_installed, compile_bundle
from targets.litert.export.request import KeptGraphs, Wanted, export_graphs, graph_key, needed_memory
from targets.litert.family import litert_family
from targets.litert.metadata import (
    check_tokenizer,
    edit_warnings,
    lacking_steps,
    metadata_sections,
    template_warnings,
    tokenizer_file,
)
from targets.litert.options import Options, fitted, read_options
from targets.litert.sections import EMBEDDER, MODEL, PER_LAYER_EMBEDDER, PREFILL_DECODE
from targets.litert.storage import (
    LITERT,
    holdings,
    negative_warnings,
    negative_weights,
    off_lattice_option,
    operators,
    planned_tensors,
)
from targets.options import Option
from targets.publishing import InPlace, Usage
from targets.target import (
    COMPANION,
    Difference,
    Plan,
    PlannedFile,
    PlannedTensor,
    Stored,
    StoredTensor,
    begins_with,
)
from targets.trying import quoted
from targets.writing import Written, destination_error

#: What the name of a model's own file ends with, by its type.
_TFLITE: Final = {PREFILL_DECODE: "", EMBEDDER: "-embedder", PER_LAYER_EMBEDDER: "-per-layer-embedder"}

#: Of this process.
_GRAPHS: Final = KeptGraphs()


class LitertTarget(InPlace):
    """LiteRT-LM's format. Of its ``options``, ``off_lattice`` may be ``f32`` too."""

    name = "litert"
    suffix = ".litertlm"
    library = "litert-lm"
    extra = "litert"
    modules: tuple[str, ...] = ("litert_torch", "litert_lm_builder", "transformers")
    libraries: tuple[str, ...] = (
        "ai-edge-litert",
        "flatbuffers",
        "litert-converter",
        "litert-lm-builder",
        "litert-torch",
        "numba",
        "numpy",
        "protobuf",
        "torch",
        "transformers",
    )
    options: Sequence[Option] = OPTIONS.options
    costs: Costs = COSTS

    def check(self, options: Mapping[str, object]) -> None:
        """See ``targets.target.Target``."""
        check_installed(read_options(options).npus)

    def check_model(self, checkpoint: Checkpoint, options: Mapping[str, object]) -> None:
        """See ``targets.target.Target``."""
        litert_family(checkpoint.architecture)
        fitted(read_options(options), checkpoint)
        tokenizer_file(checkpoint.documents)
        check_tokenizer(checkpoint)

    def lacking_steps(self, checkpoint: Checkpoint) -> Sequence[Step]:
        """See ``targets.target.Target``."""
        return lacking_steps(checkpoint)

    def plan(
        self,
        checkpoint: Checkpoint,
        name: str,
        options: Mapping[str, object],
        progress: Progress = no_progress,
    ) -> Plan:
        """See ``targets.target.Target``. Reads the matrices once, as a negative scale anywhere decides how
        one is stored. Raises ``TargetError`` for a model of no known family and for a tokenizer that
        LiteRT-LM cannot hold, and ``UsageError`` for a bad option."""
        architecture, weights = checkpoint.architecture, checkpoint.weights
        self.check_model(checkpoint, options)
        chosen = fitted(read_options(options), checkpoint)
        grids = static_grids(checkpoint)
        if chosen.npus and grids and chosen.activations is None:
            chosen = replace(chosen, activations=STATIC)  # what neural processors compute with
        tensors = planned_tensors(
            weights,
            negative_weights(weights.values(), stage_of(progress, "planning litert")),
            tied_head=architecture.tied_head,
            own_head=chosen.externalize_embedder,
            off_lattice=chosen.off_lattice,
        )
        bundle = f"litert/{_bundle_name(name, None)}"
        models = tuple(_model_types(checkpoint, chosen)) if chosen.keep_tflite else ()
        size = sum(tensor.bytes for tensor in tensors)
        return Plan(
            target=self.name,
            files=(
                PlannedFile(bundle, bytes=size),
                *(PlannedFile(_tflite(bundle, kind), COMPANION, size // len(models)) for kind in models),
                *(PlannedFile(f"litert/{_bundle_name(name, npu)}", COMPANION, size) for npu in chosen.npus),
            ),
            tensors=tensors,
            warnings=(
                *holdings(chosen.off_lattice).warnings(weights.values()),
                *negative_warnings(tensors),
                *template_warnings(checkpoint),
                *checkpoint.generation.limits("litert", "LiteRT-LM"),
                *_assets_warnings(name, chosen.npus, size, options),
            ),
            options={
                "name": name,
                "prefill_lengths": list(chosen.prefill_lengths),
                "context_length": chosen.context,
                "externalize_embedder": chosen.externalize_embedder,
                "keep_tflite": chosen.keep_tflite,
                "off_lattice": off_lattice_option(options),
                "npu": [str(npu) for npu in chosen.npus],
                "activations": chosen.activations,
            },
            operators=operators(tensors, tied_head=architecture.tied_head),
            context=chosen.context,
            elsewhere=_assets(options),
            memory=needed_memory(architecture, chosen.prefill_lengths),
            has_grids=bool(grids),
            applies_grids=chosen.activations == STATIC,
        )

    def write(
        self, checkpoint: Checkpoint, plan: Plan, directory: Path, progress: Progress = no_progress
    ) -> Stored:
        """See ``targets.target.Target``; the stage ``exporting the graph (litert)`` counts steps. Raises
        ``DestinationError`` for a file that cannot be written and ``TargetError`` if litert-torch cannot
        export the graph."""
        chosen = read_options(plan.options)
        path = directory / plan.artifacts[0]
        types = _types(plan)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            graphs = _graphs(checkpoint, plan, directory, progress)
        except OSError as error:
            raise destination_error(path, error) from error
        advance = counted(stage_of(progress, "writing litert"), _read_bytes(plan.tensors, checkpoint.weights))
        models = _Models(
            checkpoint.weights, types, _split(checkpoint, plan), _grids(checkpoint, plan), advance
        )
        sections = [
            *metadata_sections(checkpoint, chosen.context),
            *(Section(MODEL, partial(models.write, graph), kind) for kind, graph in graphs.items()),
        ]
        stored = write_bundle(path, sections)
        if chosen.keep_tflite:
            for section in stored:
                if section.kind == MODEL and section.model_type is not None:
                    _extract(path, section, directory / _tflite(plan.artifacts[0], section.model_type))
        for npu in chosen.npus:
            compiled = path.with_name(_bundle_name(str(plan.options["name"]), npu))
            compile_bundle(path, npu, compiled, stage_of(progress, f"compiling for {npu}"))
        return Stored([*models.warnings(), *edit_warnings(checkpoint)], models.written.counts)

    def file_sizes(self, checkpoint: Checkpoint, plan: Plan) -> Mapping[str, int]:
        """See ``targets.estimates.Estimated``: none, since the graph is part of the bundle."""
        return {}

    def deliver(
        self,
        plan: Plan,
        output: Path,
        options: Mapping[str, object],
        passed: bool,
        progress: Progress = no_progress,
    ) -> Sequence[str]:
        """See ``targets.target.Target``: the assets of an Android app. Raises ``DestinationError``."""
        directory = _assets(options)
        if directory is None:
            return ()
        if not passed:
            return (f"litert: a gate failed, so nothing was written to {directory}",)
        chosen = read_options(plan.options)
        bundle = output / plan.artifacts[0]
        for processor in (None, *chosen.npus):
            name = _bundle_name(str(plan.options["name"]), processor)
            write_assets(
                bundle.with_name(name),
                directory,
                model=name.removesuffix(self.suffix),
                context_length=chosen.context,
                processor=str(processor) if processor else None,
                progress=stage_of(progress, "copying Android assets"),
            )
        return ()

    def try_it(self, plan: Plan, output: Path) -> Sequence[str]:
        """See ``targets.trying.Tryable``: with LiteRT-LM's command line, which leaves no cache beside the
        bundle then."""
        bundle = quoted(output / plan.artifacts[0])
        return (f"litert-lm run {bundle} --cache no --prompt 'What are lists?'",)

    def usage(self, repo: str, paths: Sequence[str]) -> Sequence[Usage]:
        """See ``targets.publishing.Publishable``: LiteRT-LM's command line downloads by itself."""
        bundle = quoted(Path(paths[0]))
        line = f"litert-lm run --from-huggingface-repo {repo} {bundle} --prompt 'What are lists?'"
        return (Usage("LiteRT-LM", (line,)),)

    def accelerators(self, plan: Plan) -> Sequence[Accelerator]:
        """See ``targets.accelerators.Accelerated``: neural processors, by the plugins of ai-edge-litert."""
        from targets.litert.devices.plugins import ask_all

        return ask_all(plan)

    def choices(self, plan: Plan) -> Sequence[Mapping[str, object]]:
        """See ``targets.target.Target``: rows of activations, or static grids, where nothing was given and a
        product rounds."""
        return ways(plan.tensors, static=plan.has_grids) if plan.options["activations"] is None else ()

    def written(self, plan: Plan, choice: Mapping[str, object]) -> Plan:
        """See ``targets.target.Target``: other operators in the graph for every choice."""
        options = {**plan.options, **choice}
        return replace(plan, options=options, applies_grids=options["activations"] == STATIC)

    def choose(self, artifact: Path, choice: Mapping[str, object]) -> None:
        """See ``targets.target.Target``: nothing is to be done."""

    def files(self, artifact: Path) -> Sequence[Path]:
        """See ``targets.target.Target``."""
        return (artifact,)

    def describe(self, artifact: Path, checkpoint: Checkpoint) -> Mapping[str, StoredTensor]:
        """See ``targets.target.Target``. Raises ``CheckpointError`` for a damaged file."""
        from targets.litert.reading import describe

        return describe(artifact, checkpoint)

    def recognises(self, artifact: Path) -> bool:
        """See ``targets.target.Target``."""
        return begins_with(artifact, MAGIC)

    def infer_options(self, artifact: Path, checkpoint: Checkpoint) -> Mapping[str, object]:
        """See ``targets.target.Target``. Raises ``CheckpointError`` for a damaged file."""
        from targets.litert.inferred import infer_options

        return infer_options(artifact, checkpoint.weights)

    def differences(
        self, artifact: Path, checkpoint: Checkpoint, plan: Plan, progress: Progress = no_progress
    ) -> Sequence[Difference]:
        """See ``targets.target.Target``; the stage ``exporting the graph (litert)`` counts steps if
        the graph of the checkpoint is not at hand. A model alone (``.tflite``) is told by its name, as
        ``keep_tflite`` gives it."""
        from targets.litert.comparison import bundle_differences, expect, model_differences

        with tempfile.TemporaryDirectory(prefix="qatconvert-") as scratch:
            graphs = _graphs(checkpoint, plan, Path(scratch), progress)
        sections = metadata_sections(checkpoint, read_options(plan.options).context)
        split, grids = _split(checkpoint, plan), _grids(checkpoint, plan)
        expected = expect(sections, graphs, checkpoint.weights, _types(plan), split, grids)
        advance = counted(
            stage_of(progress, "comparing litert"), _read_bytes(plan.tensors, checkpoint.weights)
        )
        if artifact.suffix == self.suffix:
            return bundle_differences(artifact, expected, advance)
        endings = {kind: f"{ending}.tflite" for kind, ending in _TFLITE.items() if kind in graphs}
        kind = max(
            (kind for kind, ending in endings.items() if artifact.name.endswith(ending)),
            key=lambda kind: len(endings[kind]),
            default=PREFILL_DECODE,
        )
        return model_differences(artifact, kind, expected, advance)


def _types(plan: Plan) -> dict[str, str]:
    return {tensor.stored_as: tensor.type for tensor in plan.tensors}


def _split(checkpoint: Checkpoint, plan: Plan) -> frozenset[str]:
    """The matrices whose products split their input."""
    activations = read_options(plan.options).activations
    return split_products(plan.tensors, two_rows(activations, checkpoint.architecture))


def _grids(checkpoint: Checkpoint, plan: Plan) -> Mapping[str, Grid]:
    """The static grids that the artifact applies, by matrix."""
    return static_grids(checkpoint) if plan.applies_grids else {}


def _graphs(checkpoint: Checkpoint, plan: Plan, scratch: Path, progress: Progress) -> Mapping[str, bytes]:
    """The graphs of a plan by model type; they are exported once for all that need them."""
    chosen = read_options(plan.options)
    wanted = Wanted(chosen.prefill_lengths, chosen.context, chosen.externalize_embedder)

    def export(directory: Path) -> Mapping[str, Path]:
        stage = stage_of(progress, "exporting the graph (litert)")
        return export_graphs(checkpoint, wanted, directory, stage)

    return _GRAPHS.get(graph_key(checkpoint, wanted), export, scratch)


class _Models:
    """Fills graphs with weights, and remembers what that lost."""

    def __init__(
        self,
        weights: Mapping[str, Weight],
        types: Mapping[str, str],
        two_rows: Collection[str],
        grids: Mapping[str, Grid],
        advance: Callable[[int], None],
    ) -> None:
        self._weights, self._types, self._advance = weights, types, advance
        self._two_rows, self._grids = two_rows, grids
        self._blocks = self._rounded = 0
        self._off_lattice: Counter[str] = Counter()
        self._off_values: Counter[str] = Counter()
        self._narrowed: Counter[str] = Counter()

    def write(self, graph: bytes, output: BinaryIO) -> None:
        """Write the model of a graph where ``output`` stands."""
        from targets.litert.filling import fill

        filled = fill(
            graph,
            self._weights,
            self._types,
            output,
            self._advance,
            two_rows=self._two_rows,
            grids=self._grids,
        )
        self._blocks += filled.blocks
        self._rounded += filled.rounded
        self._off_lattice.update(filled.off_lattice)
        self._off_values.update(filled.off_values)
        self._narrowed.update(filled.narrowed)

    @property
    def written(self) -> Written:
        """What the writer saw in all of them."""
        return Written(self._blocks, self._off_lattice, self._off_values, self._rounded)

    def warnings(self) -> list[str]:
        """A line for each loss."""
        why = "float16, LiteRT's type for scales, does not hold and that is rounded"
        told = LITERT.losses(self._weights, self.written, why)
        if lost := self._narrowed.total():
            told.append(
                f"litert: {lost} of {self._blocks} blocks have a scale that is exact in the file and that "
                "XNNPACK, LiteRT's library for processors, rounds to bfloat16 when it loads it"
            )
        return told


def _bundle_name(model: str, processor: Npu | None) -> str:
    """Name of the file of a model's bundle, of that for a neural processor if one is given."""
    return processor.file_name(model) if processor else f"{model}.litertlm"


def _assets(options: Mapping[str, object]) -> Path | None:
    """The directory for the assets of an Android app, if any are wanted."""
    given = options.get("android_assets")
    return None if given is None else Path(str(given))


def _assets_warnings(
    model: str, npus: Iterable[Npu], size: int, options: Mapping[str, object]
) -> Sequence[str]:
    """What is to be said of assets of about ``size`` bytes, if any are wanted; raises ``DestinationError``
    if they cannot be written."""
    directory = _assets(options)
    if directory is None:
        return ()
    for processor in (None, *npus):
        name = _bundle_name(model, processor).removesuffix(".litertlm")
        check_directory(directory, name)
    return check_assets(model, size)


def _model_types(checkpoint: Checkpoint, options: Options) -> Iterable[str]:
    """LiteRT-LM's types of the models in the bundle."""
    if not options.externalize_embedder:
        return (PREFILL_DECODE,)
    if checkpoint.architecture.per_layer_input:
        return (PREFILL_DECODE, EMBEDDER, PER_LAYER_EMBEDDER)
    return (PREFILL_DECODE, EMBEDDER)


def _tflite(bundle: str, kind: str) -> str:
    """Name of the file that holds one model of a bundle alone."""
    return f"{bundle.removesuffix('.litertlm')}{_TFLITE[kind]}.tflite"


def _read_bytes(tensors: Iterable[PlannedTensor], weights: Mapping[str, Weight]) -> int:
    """Bytes of checkpoint that are read while a bundle is written: of matrices, as the graph has vectors."""
    return sum(
        weights[tensor.weight].stored_bytes for tensor in tensors if tensor.weight and len(tensor.shape) > 1
    )


def _extract(path: Path, section: StoredSection, output: Path) -> None:
    """Write a section of a bundle as a file of its own; raises ``DestinationError``."""
    try:
        with output.open("wb") as stream:
            copy_section(path, section, stream)
    except OSError as error:
        raise destination_error(output, error, section.size) from error
