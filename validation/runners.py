"""Which runtime runs a target's artifacts, and whether what it needs is installed.

A runner is one module with an object that has the protocol below, and one line in ``_RUNNERS``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

from converter.errors import UsageError
from converter.excerpt import Excerpt
from converter.worker import Progress

#: Target name to ``module:object``. Modules are imported only when their target is validated.
_RUNNERS = {
    "gguf": "validation.runtimes.llamacpp:runner",
    "litert": "validation.runtimes.litert:runner",
    "onnx": "validation.runtimes.onnxruntime:runner",
}
#: What the reference needs, and the extra that installs it.
_REFERENCE = ("torch", "transformers", "accelerate")
#: The provider that every runtime has.
CPU: Final = "cpu"
#: The choice of an artifact that is run as it was written.
AS_IT_IS: Final[Mapping[str, object]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Runtime:
    """The runtime that made logits: name, version, and the settings that bear on the figures."""

    name: str
    version: str
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """An engine's text after a prompt: ``pieces`` as they came, most of them of one token each, ``tokens``,
    the ids that its own tokenizer makes of the text, and whether it is ``whole``: an engine may break off
    where bytes are no characters."""

    pieces: tuple[str, ...]
    tokens: tuple[int, ...]
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Scores:
    """Natural logarithms of the probabilities of a sequence's tokens from the index ``first`` on, each behind
    all tokens before it."""

    first: int
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Account:
    """What an engine made of texts: ``tokens`` of every text, an answer to every prompt and scores of every
    sequence (``None`` where it can give none)."""

    version: str
    tokens: tuple[tuple[int, ...], ...]
    answers: tuple[Answer, ...]
    scores: tuple[Scores | None, ...]


class Engine(Protocol):
    """The program of a runtime that takes and gives text, with the artifact's own tokenizer."""

    @property
    def name(self) -> str:
        """What the program is called."""

    def takes(self, artifact: Path) -> bool:
        """Whether ``artifact`` is of the kind that the engine opens."""

    def run(
        self,
        artifact: Path,
        texts: Sequence[str],
        prompts: Sequence[str],
        sequences: Sequence[Sequence[int]],
        begin: str,
        count: int,
        progress: Progress,
    ) -> Account:
        """Tokenise ``texts``, continue each of ``prompts`` by at least ``count`` of the likeliest tokens or
        to its end, and score ``sequences`` of token ids, which begin with BOS. Prompts are plain text: no
        template is applied, and the engine puts BOS before them, with the text ``begin`` if it would not of
        itself. Raises ``ValidationError`` when the engine cannot load or run the artifact, however it ends.
        """


class Runner(Protocol):
    """One runtime. ``extra`` installs it, ``modules`` is what must then be importable, one of them where
    several stand together; ``engine`` is the runtime's program for text, ``None`` if artifacts are not run in
    one; ``allowances`` are limits of gates for dense models that suit its arithmetic: wider ones where it
    costs more than the general ones allow, narrower ones where it costs so little that they would hide
    something."""

    extra: str
    modules: tuple[str | tuple[str, ...], ...]
    engine: Engine | None
    allowances: Mapping[str, float]

    def check_provider(self, provider: str) -> None:
        """Raise ``UsageError`` if the installed runtime cannot run on ``provider`` (``cpu``, ``cuda``);
        a runtime that knows but one way takes any."""

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
        firsts: Sequence[int] | None = None,
    ) -> Runtime:
        """Write float32 logits ``[positions, vocabulary]`` of every position of ``sequences`` to ``output``
        (.npy), each sequence on its own and with exactly these token ids, and of each from its index in
        ``firsts`` on (default: all). ``choice`` is one of the target's ``choices``, which the runtime applies
        without changing the artifact.

        A runtime that also decodes token by token says so in the settings of the result: ``decode`` with
        ``positions``, ``mean_kld``, ``max_kld``, ``max_abs`` (against its own logits of the same positions)
        and ``tokens_per_second``. Raises ``ValidationError`` when the runtime cannot load or run the
        artifact, however it ends."""

    def unrounded_bytes(self, artifact: Path, excerpt: Excerpt | None = None) -> int:
        """Bytes of temporary files that ``unrounded`` writes. Raises ``ValidationError`` for a damaged
        artifact and for one of which the runner makes no excerpts."""

    def unrounded(
        self, artifact: Path, directory: Path, progress: Progress, excerpt: Excerpt | None = None
    ) -> tuple[Path, Mapping[str, object]]:
        """The artifact in a form that the runtime runs without rounding to integers, and the choice by which
        ``logits`` does: a file in ``directory`` with the artifact's own metadata, graph and weights, the
        weights widened to floats, or the artifact itself; with ``excerpt``, of these layers of the model
        alone. Raises ``ValidationError`` if there is no such form."""


def find_runner(target: str) -> Runner:
    """The runner for a target's artifacts; raises ``UsageError`` when there is none."""
    if target not in _RUNNERS:
        known = ", ".join(sorted(_RUNNERS))
        raise UsageError(
            f"no runtime is known that validates target {target!r} (known: {known}); use --no-validate"
        )
    module, _, name = _RUNNERS[target].partition(":")
    runner: Runner = getattr(import_module(module), name)
    return runner


def check_available(targets: Iterable[str]) -> None:
    """Raise ``UsageError`` naming what to install if a target of ``targets`` cannot be validated here.

    Imports none of the libraries, so that it can be called before any work is done.
    """
    extras = ["reference"] if _missing(_REFERENCE) else []
    for target in targets:
        runner = find_runner(target)
        if _missing(runner.modules):
            extras.append(runner.extra)
    if extras:
        wanted = ",".join(dict.fromkeys(extras))
        raise UsageError(
            f"validation needs packages that are not installed: pip install 'qatconvert[{wanted}]'"
            " (or convert with --no-validate)"
        )


def check_provider(targets: Iterable[str], provider: str) -> None:
    """Raise ``UsageError`` if ``provider`` is not there for one of ``targets``, whose runtimes are."""
    for target in targets:
        find_runner(target).check_provider(provider)


def _missing(modules: Iterable[str | tuple[str, ...]]) -> bool:
    alternatives = ((module,) if isinstance(module, str) else module for module in modules)
    return any(all(find_spec(module) is None for module in one_of) for one_of in alternatives)
