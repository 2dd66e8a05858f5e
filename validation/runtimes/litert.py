"""LiteRT bundles in LiteRT's interpreter, whose products XNNPACK computes.

It runs in a child (``litert_model``), where its memory can be told from the tool's own and a crash
of native code is one line. The interpreter takes files, so the models of a bundle are copied to a directory
beside the logits, which is gone at the end.

A prefill gives no logits, only keys and values. So the logits of a position are those of its token, decoded
over the keys and values of the tokens before it. The prefill of the whole sequence made these, so that both
signatures bear on every row. Beside that, the child decodes one sequence from an empty cache and compares
both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from converter.checkpoint.excerpt import Excerpt
from converter.errors import CheckpointError, DestinationError, QatconvertError, ValidationError
from converter.system.child import run_worker, without_directories
from converter.system.progress import StageProgress, counted
from targets.litert.bundle import Section, read_sections, write_bundle
from targets.litert.reading import open_models
from targets.litert.sections import MODEL
from targets.litert.widening import coded_values, widen, widened_bytes, widened_length
from targets.options import Option
from targets.writing import destination_error
from validation.runners import AS_IT_IS, Engine, Runtime, TextRuntime
from validation.runtimes.litert_lm import engine


@dataclass(frozen=True, slots=True)
class LiteRt:
    """The runner for LiteRT bundles; see ``validation.runners.Runner``."""

    name: str = "LiteRT"
    extra: str = "litert"
    modules: tuple[str, ...] = ("ai_edge_litert.interpreter", "litert_lm")
    libraries: tuple[str, ...] = ("ai-edge-litert", "litert-lm")
    engine: Engine | None = engine
    text: TextRuntime | None = None
    #: One scale for a whole row of activations costs small random models like E4B up to 0.016.
    #: Without rounding, everything is float32: 7e-13 to 2e-11 measured.
    allowances: Mapping[str, float] = field(
        default_factory=lambda: {
            "graph_kld": 1e-7,
            "mean_kld": 0.006,
            "same_top_p": 0.89,
            "decode_mean_kld": 1e-3,
        }
    )
    float16_gelu: bool = False
    weights_held: int = 2  # XNNPACK packs a copy of every weight
    stepwise: bool = True
    options: Sequence[Option] = ()

    def configured(self, options: Mapping[str, object]) -> LiteRt:
        """Itself, as there is nothing to be set."""
        return self

    def logits(
        self,
        artifact: Path,
        sequences: Sequence[Sequence[int]],
        vocabulary: int,
        output: Path,
        progress: StageProgress,
        *,
        choice: Mapping[str, object] = AS_IT_IS,
        firsts: Sequence[int] | None = None,
    ) -> Runtime:
        """Run ``artifact`` (a ``.litertlm`` or a ``.tflite``) on ``sequences``; see the protocol.

        ``firsts`` has an index for each sequence. Logits of its positions from that index on are written, of
        all positions by default. So there is a row for each of these positions. A prefill reads the
        whole sequence in any case. The sequence that is also decoded from an empty cache is the longest one
        whose first is 0. Without one there is no ``decode``. ``choice`` is not used.

        ``settings`` of the result:

        * ``provider``
        * ``signatures``: names
        * ``context_length``: tokens that the caches hold
        * ``rounded_activations``
        * ``threads``
        * ``peak_bytes``: most memory that the process held
        * ``decode``:

          * ``positions``
          * ``mean_kld``, ``max_kld``, ``max_abs`` of decoding from an empty cache against decoding behind a
            prefill; ``None`` where not finite
          * ``tokens_per_second``, of the median step, and ``fastest_tokens_per_second``
        """
        with tempfile.TemporaryDirectory(prefix=".litert-", dir=output.parent) as scratch:
            request: Mapping[str, object] = {
                "artifact": str(artifact.resolve()),
                "sequences": [list(ids) for ids in sequences],
                "firsts": [0] * len(sequences) if firsts is None else list(firsts),
                "vocabulary": vocabulary,
                "output": str(output),
                "scratch": scratch,
            }
            result = run_worker(
                "validation.runtimes.litert_model", request, progress, what=f"LiteRT on {artifact.name}"
            )
        return Runtime(self.name, result["version"], result["settings"])

    def unrounded_bytes(self, artifact: Path, excerpt: Excerpt | None = None) -> int:
        """Bytes of the file that ``unrounded`` writes, and of the models that ``logits`` copies again.

        Raises ``ValidationError`` for a damaged artifact and one of which ``excerpt`` cannot be made.
        """
        try:
            models = open_models(artifact)
            copied = models if len(models) > 1 else []
            return sum(widened_bytes(model, excerpt) for model in models) + sum(
                widened_length(model, excerpt) for model in copied
            )
        except CheckpointError as error:
            raise _explained(error, artifact) from error

    def unrounded(
        self, artifact: Path, directory: Path, progress: StageProgress, excerpt: Excerpt | None = None
    ) -> tuple[Path, Mapping[str, object]]:
        """The artifact's graphs with its codes as float32, for which XNNPACK rounds nothing; see
        ``validation.runners.Runner``.

        The file is a ``.tflite``, or a bundle of the models where there are several. ``progress`` counts
        values.
        """
        try:
            return _widened(artifact, directory, progress, excerpt), AS_IT_IS
        except (CheckpointError, DestinationError) as error:
            raise _explained(error, artifact) from error


def _widened(artifact: Path, directory: Path, progress: StageProgress, excerpt: Excerpt | None) -> Path:
    models = open_models(artifact)
    values = sum(coded_values(model, excerpt) for model in models)
    advance = counted(progress, values)
    path = directory / f"{artifact.stem}-unrounded.tflite"
    if len(models) == 1:
        try:
            with path.open("wb") as output:
                widen(models[0], output, advance, excerpt)
        except OSError as error:
            raise destination_error(path, error) from error
        return path
    kinds = [section.model_type for section in read_sections(artifact) if section.kind == MODEL]
    path = path.with_suffix(".litertlm")
    write_bundle(
        path,
        [
            Section(MODEL, partial(widen, model, progress=advance, excerpt=excerpt), kind)
            for model, kind in zip(models, kinds, strict=True)
        ],
    )
    return path


def _explained(error: QatconvertError, artifact: Path) -> ValidationError:
    cause = without_directories(str(error)).removeprefix(f"{artifact.name}: ")
    return ValidationError(f"LiteRT on {artifact.name}: {cause}")


runner = LiteRt()
