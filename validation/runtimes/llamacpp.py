"""GGUF files in llama.cpp, through llama-cpp-python.

llama.cpp ends its process on a failed assertion, so it runs in a child (``llamacpp_model``).
Nothing but the weights is quantised: the KV cache is float32, and flash attention, which works in float16,
is off. What remains is the arithmetic of its matrix kernels, which round activations to 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from converter.errors import ValidationError
from converter.worker import Progress, run_worker
from validation.runners import AS_IT_IS, CPU, Engine, Runtime


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """The runner for GGUF files; see ``validation.runners.Runner``."""

    extra: str = "llamacpp"
    modules: tuple[str, ...] = ("llama_cpp",)
    engine: Engine | None = None
    allowances: Mapping[str, float] = field(default_factory=dict)

    def check_provider(self, provider: str) -> None:
        """Take any: this runs on the CPU, and providers are onnxruntime's."""

    def logits(
        self,
        artifact: Path,
        sequences: Sequence[Sequence[int]],
        vocabulary: int,
        output: Path,
        progress: Progress,
        *,
        provider: str = CPU,
        choice: Mapping[str, object] = AS_IT_IS,
    ) -> Runtime:
        """Run ``artifact`` (the first file of a split model) on ``sequences``, always on the CPU; see the
        protocol."""
        request: Mapping[str, object] = {
            "artifact": str(artifact.resolve()),
            "sequences": [list(ids) for ids in sequences],
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
        return Runtime("llama.cpp", result["version"], result["settings"])


runner = LlamaCpp()
