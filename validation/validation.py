"""Proof of an artifact: its weights against the checkpoint, its logits in its runtime against a reference."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint import Checkpoint
from targets.plan import StoredTensor, find_target
from validation import baseline as baselines
from validation import gates as gating
from validation.logits import map_logits, next_tokens
from validation.metrics import LogitMetrics, compare
from validation.reference import Model, check_dtype, default_cache, reference_logits
from validation.reference_process import reference_worker
from validation.runners import Runner, Runtime, find_runner
from validation.same_weights import disk_shortage, write_checkpoint
from validation.text import Tokens, cut, digest, encode, read_passages
from validation.weights import TensorExactness, WeightExactness, measure
from validation.worker import Worker

#: ``progress(stage, done, total)``; the unit depends on the stage.
Progress = Callable[[str, int, int], None]


def validate(
    checkpoint: Checkpoint,
    target: str,
    artifact: Path,
    *,
    source: Mapping[str, object] | None = None,
    positions: int = 512,
    text: Path | None = None,
    gates: Mapping[str, float] | None = None,
    reference_dtype: str = "float32",
    max_memory: int | None = None,
    baseline: str | None = None,
    same_weights: bool = True,
    cache: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Measure ``artifact`` (a path; the first file of a split GGUF) and judge it by the gates.

    Returns ``{"entry": ..., "reference": ...}``: the target's entry of report.json without ``artifact``,
    ``bytes`` and ``bits_per_weight``, and the report's ``reference``. A gate that fails is a result.

    ``source`` identifies the checkpoint for the cache of reference logits: a mapping with ``revision`` (a
    commit) or ``files`` (digests); otherwise its files are hashed. ``text`` is a file to evaluate on instead
    of the shipped text, ``gates`` overrides limits by name, ``max_memory`` in bytes bounds the reference
    model's weights in memory, ``cache`` is the cache's directory (default: ``reference.default_cache()``).
    Temporary files go where ``TMPDIR`` says. Raises ``UsageError`` for an option that means nothing and
    ``ValidationError`` for what cannot be run or measured.
    """
    limits = gating.limits(gates or {}, experts=checkpoint.architecture.experts is not None)
    baselines.check_baseline(baseline)
    check_dtype(reference_dtype)
    runner = find_runner(target)
    passages = read_passages(text)
    with tempfile.TemporaryDirectory(prefix="qatconvert-") as name, reference_worker() as worker:
        scratch = Path(name)
        vocabulary = checkpoint.architecture.vocabulary
        tokens = cut(
            encode(checkpoint.path, passages, vocabulary, worker, _stage(progress, "tokens")), positions
        )
        reference = reference_logits(
            Model(checkpoint.path, tuple(left.name for left in checkpoint.left_out), vocabulary),
            tokens.sequences,
            source=_identity(checkpoint, source, _stage(progress, "checksums")),
            scratch=scratch,
            worker=worker,
            dtype=reference_dtype,
            cache=cache or default_cache(),
            max_memory=max_memory,
            progress=_stage(progress, "reference"),
        )
        bench = _Bench(checkpoint, target, runner, worker, tokens, reference, scratch, max_memory, progress)
        entry = bench.measure(artifact, limits, same_weights)
        if baseline is not None and baselines.applies(target):
            entry["baseline"] = {"name": baseline, **bench.measure_baseline(artifact)}
    return {
        "entry": entry,
        "reference": {
            "runtime": "transformers",
            "version": version("transformers"),
            "dtype": reference_dtype,
            "positions": tokens.positions,
            "torch": version("torch"),
            "text": digest(passages),
            "sequences": [
                {"kind": kind, "positions": len(ids)}
                for kind, ids in zip(tokens.kinds, tokens.sequences, strict=True)
            ],
        },
    }


@dataclass(frozen=True, slots=True)
class _Bench:
    """What an artifact and its baseline are measured with, the same for both."""

    checkpoint: Checkpoint
    target: str
    runner: Runner
    worker: Worker
    tokens: Tokens
    reference: NDArray[np.float32]
    scratch: Path
    max_memory: int | None
    progress: Progress

    def measure(self, artifact: Path, limits: Mapping[str, float], same_weights: bool) -> dict[str, Any]:
        """The artifact's entry of the report."""
        stored = find_target(self.target).describe(artifact, self.checkpoint)
        weights = measure(self.checkpoint, stored, _stage(self.progress, "weights"))
        logits, runtime = self._run(artifact, "runtime")
        metrics = self._compare(self.reference, logits, "metrics")
        judged = gating.judge(limits, weights, metrics)
        described: dict[str, Any] = {"name": runtime.name, "version": runtime.version, **runtime.settings}
        described |= self._same_weights(stored, logits) if same_weights else {"mean_kld_same_weights": None}
        return {
            "passed": all(gate.passed for gate in judged),
            "weights": weights_entry(weights),
            "logits": logits_entry(metrics),
            "runtime": described,
            "gates": [gate.entry() for gate in judged],
        }

    def measure_baseline(self, artifact: Path) -> dict[str, Any]:
        """Weights and logits of the naive requantisation, in the same runtime."""
        describe = find_target(self.target).describe
        with tempfile.TemporaryDirectory(dir=self.scratch) as directory:
            naive = baselines.write_naive_q4_0(
                artifact,
                self.checkpoint,
                describe(artifact, self.checkpoint),
                Path(directory),
                _stage(self.progress, "baseline"),
            )
            stored = describe(naive, self.checkpoint)
            weights = measure(self.checkpoint, stored, _stage(self.progress, "baseline weights"))
            logits, _ = self._run(naive, "baseline runtime")
            metrics = self._compare(self.reference, logits, "baseline metrics")
        return {"weights": weights_entry(weights), "logits": logits_entry(metrics)}

    def _run(self, artifact: Path, stage: str) -> tuple[NDArray[np.float32], Runtime]:
        output = self.scratch / f"{stage.replace(' ', '-')}.npy"
        runtime = self.runner.logits(
            artifact, self.tokens.sequences, self.reference.shape[1], output, _stage(self.progress, stage)
        )
        return map_logits(output, self.tokens.positions), runtime

    def _compare(
        self, reference: NDArray[np.float32], logits: NDArray[np.float32], stage: str
    ) -> LogitMetrics:
        return compare(reference, logits, next_tokens(self.tokens.sequences), _stage(self.progress, stage))

    def _same_weights(
        self, stored: Mapping[str, StoredTensor], logits: NDArray[np.float32]
    ) -> dict[str, object]:
        """How far the runtime is from float32 arithmetic on the artifact's own weights."""
        if shortage := disk_shortage(self.checkpoint, self.scratch):
            return {"mean_kld_same_weights": None, "note": shortage}
        with tempfile.TemporaryDirectory(dir=self.scratch) as name:
            directory = Path(name)
            write_checkpoint(self.checkpoint, stored, directory, _stage(self.progress, "same weights"))
            own = reference_logits(
                Model(directory, (), self.reference.shape[1]),
                self.tokens.sequences,
                source={},
                scratch=self.scratch,
                worker=self.worker,
                max_memory=self.max_memory,
                progress=_stage(self.progress, "same weights reference"),
            )
        metrics = self._compare(own, logits, "same weights metrics")
        return {
            "mean_kld_same_weights": _number(metrics.mean_kld),
            "max_abs_same_weights": _number(metrics.max_abs),
        }


def weights_entry(weights: WeightExactness) -> dict[str, Any]:
    """The ``weights`` block of the report: totals over lattice weights, the others apart, every tensor."""
    lattice, others = weights.lattice, weights.off_lattice
    return {
        "tensors": len(lattice),
        "blocks": sum(tensor.blocks for tensor in lattice),
        "exact_blocks": sum(tensor.exact_blocks for tensor in lattice),
        "exact_fraction": weights.exact_fraction,
        "max_ulp": max((tensor.max_ulp for tensor in lattice), default=0),
        "off_lattice": {
            "tensors": len(others),
            "values": sum(tensor.values for tensor in others),
            "exact_values": sum(tensor.exact_values for tensor in others),
            "max_ulp": max((tensor.max_ulp for tensor in others), default=0),
            "rms_error": max((tensor.rms_error for tensor in others), default=0.0),
        },
        "per_tensor": [_tensor_entry(tensor) for tensor in weights.tensors],
    }


def _tensor_entry(tensor: TensorExactness) -> dict[str, Any]:
    return {
        "name": tensor.weight,
        "stored_as": tensor.stored_as,
        "format": tensor.format,
        "lattice": tensor.block is not None,
        "values": tensor.values,
        "blocks": tensor.blocks,
        "exact_blocks": tensor.exact_blocks,
        "exact_fraction": tensor.exact_fraction,
        "max_ulp": tensor.max_ulp,
        "rms_error": _number(tensor.rms_error),
    }


def logits_entry(metrics: LogitMetrics) -> dict[str, Any]:
    """The ``logits`` block of the report, with the divergence of every position to six digits."""
    names = (
        "mean_kld",
        "p999_kld",
        "max_kld",
        "same_top_p",
        "rms_delta_p",
        "max_abs",
        "ppl",
        "ppl_reference",
    )
    return {
        "positions": metrics.positions,
        **{name: _number(getattr(metrics, name)) for name in names},
        "faulty_positions": metrics.faulty,
        "kld": [_number(float(f"{value:.6g}")) for value in metrics.kld],
        "same_top": [int(same) for same in metrics.same_top],
    }


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def _stage(progress: Progress, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(stage, done, total)


def _identity(
    checkpoint: Checkpoint, source: Mapping[str, object] | None, progress: Callable[[int, int], None]
) -> dict[str, object]:
    """What tells this checkpoint from every other: repository and commit, or the digests of its files."""
    if source and source.get("revision") is not None:
        return {"repo": source.get("repo"), "revision": source["revision"]}
    if source and source.get("files") is not None:
        return {"files": source["files"]}
    files = sorted(checkpoint.files)
    total, done = sum(file.stat().st_size for file in files), 0
    digests = []
    for file in files:
        value = hashlib.sha256()
        with file.open("rb") as stream:
            while piece := stream.read(1 << 22):
                value.update(piece)
                done += len(piece)
                progress(done, total)
        digests.append(value.hexdigest())
    return {"files": digests}
