"""ONNX models in onnxruntime.

It runs in a child (``onnxruntime_model``), where its memory can be told from the tool's own and a
crash of native code is one line. The checker of the onnx package goes first. Beside the logits of whole
sequences, the child decodes one sequence token by token through the cache and compares both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from converter.checkpoint.excerpt import Excerpt
from converter.errors import UsageError, ValidationError
from converter.system.child import run_worker
from converter.system.progress import StageProgress, no_progress
from targets.options import Option
from validation.runners import AS_IT_IS, CPU, Engine, Runtime, TextRuntime
from validation.runtimes.genai_text import text
from validation.runtimes.onnxruntime_declared import OPTIONS

#: ONNX's type of norms in a graph that computes in it.
_HALF: Final = "FLOAT16"
_SUFFIX: Final = "executionprovider"
#: Not offered: it sends a model's inputs to a server, and runs what the server does not know on the CPU.
_REMOTE: Final = "azure"
#: Short names that are not onnxruntime's own without its suffix.
_ALIASES: Final = {"directml": "dml"}


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """The runner for ONNX models; see ``validation.runners.Runner``."""

    name: str = "onnxruntime"
    extra: str = "onnx"
    modules: tuple[str, ...] = ("onnx", "onnxruntime")
    libraries: tuple[str, ...] = ("onnxruntime", "onnxruntime-genai")
    engine: Engine | None = None
    text: TextRuntime | None = text
    #: Without rounding, everything is float32: 6e-13 to 4e-11 measured, also on a real model of 0.27 B.
    allowances: Mapping[str, float] = field(
        default_factory=lambda: {"graph_kld": 1e-7, "mean_kld": 0.0085, "same_top_p": 0.88}
    )
    float16_gelu: bool = False
    weights_held: int = 1
    stepwise: bool = False
    options: Sequence[Option] = OPTIONS.options
    #: Of onnxruntime, in any spelling.
    provider: str = CPU

    def configured(self, options: Mapping[str, object]) -> OnnxRuntime:
        """The runner on the ``provider`` of ``options``.

        Raises ``UsageError`` that lists the providers of the installed onnxruntime if it is none of them. The
        CPU's is always there, and asking for it imports nothing.
        """
        provider = str(options.get("provider", self.provider))
        if short_name(provider) != CPU:
            find_provider(provider)
        return replace(self, provider=provider)

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
        """Run ``artifact`` (the .onnx file beside its data) on ``sequences``; see the protocol.

        ``firsts`` gives for each sequence the index from which on logits are written (default: all). The
        sequence that is decoded token by token is the longest of those whose logits are all written. Where
        there is none, ``decode`` is ``None``.

        Of ``choice``, ``accuracy_level`` counts, and ``static_activations`` and ``decode``: false for a graph
        without its static grids, and for no decoding token by token. ``settings`` of the result:

        * ``provider``
        * ``accuracy_level`` of MatMulNBits: ``None`` without it, a list if they differ
        * ``rounded_activations``
        * ``threads``
        * ``peak_bytes``: most memory that the process held
        * ``decode``:

          * ``positions``
          * ``mean_kld``, ``max_kld``, ``max_abs`` of token-by-token decoding against the prefill; ``None``
            where not finite
          * ``tokens_per_second``, of the median step, and ``fastest_tokens_per_second``
        """
        request: Mapping[str, object] = {
            "artifact": str(artifact.resolve()),
            "sequences": [list(ids) for ids in sequences],
            "vocabulary": vocabulary,
            "output": str(output),
            "provider": self.provider,
            "accuracy_level": choice.get("accuracy_level"),
            "static_activations": choice.get("static_activations", True),
            "decode": choice.get("decode", True),
            "firsts": list(firsts) if firsts is not None else [0] * len(sequences),
        }
        result = run_worker(
            "validation.runtimes.onnxruntime_model", request, progress, what=f"onnxruntime on {artifact.name}"
        )
        level = result["settings"]["accuracy_level"]
        way = {"accuracy_level": level} if isinstance(level, int) else AS_IT_IS
        return Runtime(self.name, result["version"], result["settings"], way)

    def unrounded_bytes(self, artifact: Path, excerpt: Excerpt | None = None) -> int:
        """None, since the artifact itself computes without rounding to integers. For an excerpt they are
        those of its codes and floats. See the protocol."""
        return 0 if excerpt is None else _excerpt(artifact, excerpt, None, no_progress)

    def unrounded(
        self, artifact: Path, directory: Path, progress: StageProgress, excerpt: Excerpt | None = None
    ) -> tuple[Path, Mapping[str, object]]:
        """The artifact, or a copy of the nodes and weights of an excerpt, at accuracy level 0, at which
        products are computed in float32, and without static grids.

        Raises ``ValidationError`` for a graph that computes in float16, which rounds everywhere, and
        ``CheckpointError`` for a damaged one.
        """
        from targets.onnx.protobuf import read_graph

        tensors = read_graph(artifact).initializers.values()
        if any(one.dtype == _HALF and "norm" in one.name for one in tensors):
            raise ValidationError(
                f"{artifact.name}: computes in float16, which rounds every activation, so it cannot be run "
                "without rounding; convert with --onnx-dtype float32 to have the graph measured"
            )
        path = artifact
        if excerpt is not None:
            path = directory / "excerpt.onnx"
            _excerpt(artifact, excerpt, path, progress)
        return path, {"accuracy_level": 0, "static_activations": False, "decode": False}


def _excerpt(artifact: Path, excerpt: Excerpt, output: Path | None, progress: StageProgress) -> int:
    """Bytes of an excerpt, which is written to ``output`` if that is given. Raises ``ValidationError``."""
    request: Mapping[str, object] = {
        "artifact": str(artifact.resolve()),
        "output": None if output is None else str(output),
        **asdict(excerpt),
    }
    result = run_worker(
        "validation.runtimes.onnxruntime_excerpt", request, progress, what=f"an excerpt of {artifact.name}"
    )
    size: int = result["bytes"]
    return size


def short_name(provider: str) -> str:
    """``cuda`` of ``CUDAExecutionProvider``, of ``CUDA`` and of ``cuda``."""
    name = provider.strip().lower().removesuffix(_SUFFIX)
    return _ALIASES.get(name, name)


def find_provider(provider: str) -> str:
    """onnxruntime's own name of a provider, given in any spelling. Raises ``UsageError``."""
    import onnxruntime

    names: dict[str, str] = {short_name(name): name for name in onnxruntime.get_available_providers()}
    names.pop(_REMOTE, None)
    if found := names.get(short_name(provider)):
        return found
    raise UsageError(
        f"provider {provider!r} is not in this onnxruntime ({onnxruntime.__version__});"
        f" available: {', '.join(sorted(names))}"
    )


runner = OnnxRuntime()
