"""LiteRT bundles in LiteRT's interpreter, whose products XNNPACK computes.

It runs in a child (``litert_model``), where its memory can be told from the tool's own and a crash
of native code is one line. The interpreter takes files, so the models of a bundle are copied to a directory
beside the logits, which is gone at the end.

A prefill gives no logits, only keys and values. So the logits of a position are those of its token decoded
over the keys and values that the prefill of the whole sequence made of the tokens before it: both signatures
bear on every row. Beside that, the child decodes one sequence from an empty cache and compares both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from converter.errors import UsageError
from converter.worker import Progress, run_worker
from validation.runners import AS_IT_IS, CPU, Engine, Runtime
from validation.runtimes.litert_lm import engine


@dataclass(frozen=True, slots=True)
class LiteRt:
    """The runner for LiteRT bundles; see ``validation.runners.Runner``."""

    extra: str = "litert"
    modules: tuple[str, ...] = ("ai_edge_litert", "litert_lm")
    engine: Engine | None = engine
    #: One scale for a whole row of activations costs small random models like E4B up to 0.016.
    allowances: Mapping[str, float] = field(default_factory=lambda: {"mean_kld": 0.018})

    def check_provider(self, provider: str) -> None:
        """Raise ``UsageError`` for anything but the CPU."""
        if provider.strip().lower() != CPU:
            raise UsageError(f"provider {provider!r} does not run LiteRT bundles here; available: {CPU}")

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
        """Run ``artifact`` (a ``.litertlm`` or a ``.tflite``) on ``sequences``; see the protocol.

        ``choice`` is not used. ``settings`` of the result: ``provider``, ``signatures`` (names),
        ``context_length`` (tokens that the caches hold), ``rounded_activations``, ``threads``, ``peak_bytes``
        (most memory that the process held), ``decode``: ``positions``, ``mean_kld``, ``max_kld``, ``max_abs``
        of decoding from an empty cache against decoding behind a prefill (``None`` where not finite),
        ``tokens_per_second`` (of the median step) and ``fastest_tokens_per_second``.
        """
        with tempfile.TemporaryDirectory(prefix=".litert-", dir=output.parent) as scratch:
            request: Mapping[str, object] = {
                "artifact": str(artifact.resolve()),
                "sequences": [list(ids) for ids in sequences],
                "vocabulary": vocabulary,
                "output": str(output),
                "scratch": scratch,
            }
            result = run_worker(
                "validation.runtimes.litert_model", request, progress, what=f"LiteRT on {artifact.name}"
            )
        return Runtime("LiteRT", result["version"], result["settings"])


runner = LiteRt()
