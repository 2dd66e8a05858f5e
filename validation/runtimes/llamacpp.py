"""GGUF files in llama.cpp, through the shared library of xllamacpp or through llama-cpp-python.

llama.cpp ends its process on a failed assertion, so it runs in a child (``llamacpp_model``).
Nothing but the weights is quantised: the KV cache is float32, and flash attention, which works in float16,
is off. What remains is the arithmetic of its matrix kernels, which round activations to 8 bits. With weights
widened to float32 (``unrounded``) they round nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from converter.checkpoint.excerpt import Excerpt
from converter.errors import CheckpointError, DestinationError, ValidationError
from converter.system.child import run_worker
from converter.system.progress import StageProgress
from targets.gguf.widening import widen, widened_bytes
from targets.options import Option
from validation.runners import AS_IT_IS, Engine, Runtime, TextRuntime
from validation.runtimes.llamacpp_library import MODULES, find_library
from validation.runtimes.llamacpp_text import text


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """The runner for GGUF files; see ``validation.runners.Runner``."""

    name: str = "llama.cpp"
    extra: str = "llamacpp"
    modules: tuple[str | tuple[str, ...], ...] = (MODULES,)
    libraries: tuple[str, ...] = ("xllamacpp", "llama-cpp-python")
    engine: Engine | None = None
    text: TextRuntime | None = text
    #: Beside what its GELU costs a model (``validation.unrounded``), without rounding: 2e-9 on the shipped
    #: model.
    allowances: Mapping[str, float] = field(default_factory=lambda: {"graph_kld": 1e-7})
    float16_gelu: bool = True
    weights_held: int = 1
    stepwise: bool = False
    options: Sequence[Option] = ()

    def configured(self, options: Mapping[str, object]) -> LlamaCpp:
        """Itself, as there is nothing to be set. Raises ``UsageError`` for a library that was not tested."""
        find_library()
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
        """Run ``artifact`` (the first file of a split model) on ``sequences``, always on the CPU; see the
        protocol. With ``firsts``, an index for every sequence, only logits of positions from that index on
        are written: ``sum(length - first)`` rows."""
        request: Mapping[str, object] = {
            "artifact": str(artifact.resolve()),
            "sequences": [list(ids) for ids in sequences],
            "firsts": None if firsts is None else list(firsts),
            "output": str(output),
        }
        result = run_worker(
            "validation.runtimes.llamacpp_model", request, progress, what=f"llama.cpp on {artifact.name}"
        )
        if result["vocabulary"] != vocabulary:
            raise ValidationError(
                f"{artifact.name}: has a vocabulary of {result['vocabulary']},"
                f" the checkpoint one of {vocabulary}"
            )
        return Runtime(self.name, result["version"], result["settings"])

    def unrounded_bytes(self, artifact: Path, excerpt: Excerpt | None = None) -> int:
        """See the protocol."""
        try:
            return widened_bytes(artifact, excerpt)
        except CheckpointError as error:
            raise ValidationError(str(error)) from error

    def unrounded(
        self, artifact: Path, directory: Path, progress: StageProgress, excerpt: Excerpt | None = None
    ) -> tuple[Path, Mapping[str, object]]:
        """See the protocol: a GGUF file with the artifact's metadata and its weights as float32."""
        path = directory / "unrounded.gguf"
        try:
            widen(artifact, path, progress, excerpt)
        except (CheckpointError, DestinationError) as error:
            raise ValidationError(str(error)) from error
        return path, AS_IT_IS


runner = LlamaCpp()
