"""Which runtime runs a target's artifacts, and whether what it needs is installed.

A runner is one module with an object that has the protocol below, and an entry point in the group
``qatconvert.runtimes``, called ``TARGET.RUNTIME``. A target may have several: unless one is chosen, its
artifacts run in the one that comes in the target's own distribution, or else in the first by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

from converter.checkpoint.chats import Conversation, Inexpressible
from converter.checkpoint.excerpt import Excerpt
from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.tokenizer import Tokenizer
from converter.errors import UsageError
from converter.system.extensions import load
from converter.system.progress import StageProgress
from targets.options import Option

#: Entry points of runners, which are imported only when they are needed.
_GROUP: Final = "qatconvert.runtimes"
_TARGETS: Final = "qatconvert.targets"
#: What the reference needs, and the extra that installs it.
_REFERENCE = ("torch", "transformers", "accelerate")
#: The provider that every runtime has.
CPU: Final = "cpu"
#: The choice of an artifact that is run as it was written.
AS_IT_IS: Final[Mapping[str, object]] = MappingProxyType({})
#: Every target in the runtime that it prefers.
NO_CHOICE: Final[Mapping[str, str]] = MappingProxyType({})


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


#: Token ids, or in a line why there are none.
Ids = tuple[int, ...] | str


@dataclass(frozen=True, slots=True)
class Reading:
    """What a runtime makes of text with a tokenizer and a chat template: ``tokens`` of every text and no
    more, ``prompts`` for the next answer in every chat, and ``ends``, ids of tokens that end an answer."""

    tokens: tuple[tuple[int, ...], ...]
    prompts: tuple[Ids, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """The chat template of an artifact: its ``text``, what runs it in the comparison (``engine``), and
    ``edits``, in a few words each, that make it of the checkpoint's; ``kept`` says why one that the runtime
    needs was not made, empty if there is none."""

    text: str
    engine: str
    edits: tuple[str, ...] = ()
    kept: str = ""


@dataclass(frozen=True, slots=True)
class Account:
    """What an engine made of texts: a ``reading`` of texts and chats, an answer to every prompt and scores of
    every sequence (``None`` where it can give none). ``own_prompts`` are those of the chats by the
    checkpoint's template instead of the artifact's, ``None`` where it has none; ``template`` is the
    artifact's."""

    version: str
    reading: Reading
    answers: tuple[Answer, ...]
    scores: tuple[Scores | None, ...]
    own_prompts: tuple[Ids, ...] | None = None
    template: Template | None = None


@dataclass(frozen=True, slots=True)
class TextAccount:
    """What a runtime's text side made of an artifact: a ``reading`` with its tokenizer, template and ends.

    ``own`` is the same runtime's reading with the checkpoint's own files, ``None`` where it cannot read
    them: what differs from the checkpoint there too is the runtime's doing. ``own_prompts`` are those by the
    checkpoint's template of a runtime that reads no other files. ``template`` is the artifact's.
    ``ends_by_rule`` are ids at which
    the runtime ends an answer whatever the artifact says, ``ends_lost`` the checkpoint's ends for which the
    artifact's format has no place. ``hidden`` are the ids of tokens that the runtime does not show, and
    ``hidden_by_right`` those that it should not; both are ``None`` where the artifact does not say."""

    version: str
    reading: Reading
    own: Reading | None = None
    own_prompts: tuple[Ids, ...] | None = None
    template: Template | None = None
    ends_by_rule: frozenset[int] = frozenset()
    ends_lost: frozenset[int] = frozenset()
    hidden: frozenset[int] | None = None
    hidden_by_right: frozenset[int] | None = None


class Render(Protocol):
    """A chat template of an artifact, run by transformers in a bounded child process."""

    def __call__(
        self, template: str, special: Mapping[str, str], chats: Sequence[Conversation], what: str
    ) -> Sequence[Mapping[str, str]]:
        """For every chat ``{"text": prompt}``, or ``{"error": line}`` where ``template`` refuses it.
        ``special`` are texts of special tokens by the name that templates know (``bos_token``); ``what``
        names the template in errors. Raises ``ValidationError`` for a template that takes too long, too much
        memory, or makes too much text."""


class TextRuntime(Protocol):
    """A runtime's text side, which needs none of the weights: tokenizer, chat template and ends of answers,
    all as the artifact has them."""

    @property
    def name(self) -> str:
        """What the program is called."""

    def missing(self) -> str:
        """What to install before it can read anything, in a line, empty if nothing."""

    def takes(self, artifact: Path) -> bool:
        """Whether ``artifact`` has a tokenizer that the runtime looks for."""

    def given(self, chat: Conversation) -> Conversation | Inexpressible:
        """A chat as the runtime can be given it, or that it cannot."""

    def read(
        self,
        artifact: Path,
        checkpoint: Checkpoint,
        texts: Sequence[str],
        chats: Sequence[Conversation],
        render: Render,
        scratch: Path,
        progress: StageProgress,
    ) -> TextAccount:
        """Tokenise ``texts`` and the prompts of ``chats``, and tell the ends of answers. ``render`` is for a
        runtime whose library has no template engine to call, ``scratch`` an empty directory. Raises
        ``ValidationError`` when the runtime cannot read the artifact, however it ends."""


class Engine(Protocol):
    """The program of a runtime that takes and gives text, with the artifact's own tokenizer."""

    @property
    def name(self) -> str:
        """What the program is called."""

    def takes(self, artifact: Path) -> bool:
        """Whether ``artifact`` is of the kind that the engine opens."""

    def given(self, chat: Conversation) -> Conversation | Inexpressible:
        """A chat as the engine can be given it, or that it cannot."""

    def run(
        self,
        artifact: Path,
        texts: Sequence[str],
        prompts: Sequence[str],
        sequences: Sequence[Sequence[int]],
        begin: str,
        count: int,
        progress: StageProgress,
        *,
        chats: Sequence[Conversation] = (),
        tokenizer: Tokenizer | None = None,
    ) -> Account:
        """Tokenise ``texts``, continue each of ``prompts`` by at least ``count`` of the likeliest tokens or
        to its end, and score ``sequences`` of token ids, which begin with BOS. Prompts are plain text: no
        template is applied, and the engine puts BOS before them, with the text ``begin`` if it would not of
        itself. ``chats`` become prompts by the artifact's own template, and by the one that the converter
        makes of the checkpoint's ``tokenizer``.
        Raises ``ValidationError`` when the engine cannot load or run the artifact, however it ends.
        """


class Runner(Protocol):
    """One runtime. ``extra`` installs it, ``modules`` is what must then be importable, one of them where
    several stand together; ``engine`` is the runtime's program for text, ``None`` if artifacts are not run in
    one, ``text`` its text side where there is no such program; ``allowances`` are limits of gates for trained
    dense models that suit its arithmetic (``limits``), where the general ones would hide something.
    ``float16_gelu`` says that its GELU goes through float16, which transformers on the artifact's own weights
    then does too. ``weights_held`` is how many times it holds the weights of an unrounded form, the pages of
    its file among them, and ``stepwise`` says that it reads them anew for every position that is compared.
    ``options`` are what a user may give it; an entry point ``TARGET.RUNTIME`` in the group
    ``qatconvert.options`` brings the same to the command line."""

    extra: str
    modules: tuple[str | tuple[str, ...], ...]
    engine: Engine | None
    text: TextRuntime | None
    allowances: Mapping[str, float]
    float16_gelu: bool
    weights_held: int
    stepwise: bool
    options: Sequence[Option]

    def configured(self, options: Mapping[str, object]) -> Runner:
        """The runner with values of its ``options``, as far as they are given. Raises ``UsageError`` if the
        installed runtime cannot run so, or not at all."""

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
        self, artifact: Path, directory: Path, progress: StageProgress, excerpt: Excerpt | None = None
    ) -> tuple[Path, Mapping[str, object]]:
        """The artifact in a form that the runtime runs without rounding to integers, and the choice by which
        ``logits`` does: a file in ``directory`` with the artifact's own metadata, graph and weights, the
        weights widened to floats, or the artifact itself; with ``excerpt``, of these layers of the model
        alone. Raises ``ValidationError`` if there is no such form."""


def known_runtimes() -> Mapping[str, tuple[str, ...]]:
    """Names of the registered runtimes by target, both sorted; imports none."""
    found: dict[str, list[str]] = {}
    for entry in entry_points(group=_GROUP):
        target, _, runtime = entry.name.partition(".")
        found.setdefault(target, []).append(runtime)
    return {target: tuple(sorted(found[target])) for target in sorted(found)}


def runtime_of(target: str, runtime: str | None = None) -> str:
    """The registered name, ``TARGET.RUNTIME``, of ``runtime`` for a target's artifacts (default: the one of
    the target's own distribution, else the first by name); raises ``UsageError`` when there is none."""
    known = known_runtimes()
    if target not in known:
        raise UsageError(
            f"no runtime is known that validates target {target!r} (known: {', '.join(known)}); "
            "use --no-validate"
        )
    name = runtime or _preferred(target, known[target])
    if name not in known[target]:
        raise UsageError(f"unknown runtime {name!r} for target {target}; known: {', '.join(known[target])}")
    return f"{target}.{name}"


def _preferred(target: str, runtimes: Sequence[str]) -> str:
    homes = {_home(entry) for entry in entry_points(group=_TARGETS, name=target)}
    own = [
        name
        for name in runtimes
        for entry in entry_points(group=_GROUP, name=f"{target}.{name}")
        if _home(entry) in homes
    ]
    return (own or runtimes)[0]


def _home(entry: EntryPoint) -> str | None:
    return entry.dist.name if entry.dist else None


def find_runner(target: str, runtime: str | None = None) -> Runner:
    """The runner of ``runtime_of`` the same; raises ``UsageError`` when there is none, and ``ExtensionError``
    for one that cannot be loaded."""
    runner: Runner = load(_GROUP, runtime_of(target, runtime))
    return runner


def read_runtimes(names: Iterable[str]) -> dict[str, str]:
    """Runtimes by target, of names as they are registered (``gguf.llamacpp``); raises ``UsageError``, which
    lists the known, for another name, and for two runtimes of one target."""
    known = [f"{target}.{runtime}" for target, found in known_runtimes().items() for runtime in found]
    read: dict[str, str] = {}
    for name in names:
        if name not in known:
            raise UsageError(f"unknown runtime {name!r}; known: {', '.join(known)}")
        target, _, runtime = name.partition(".")
        if read.setdefault(target, runtime) != runtime:
            raise UsageError(f"runtimes {target}.{read[target]} and {name} are of one target: give one")
    return read


def check_available(targets: Iterable[str], runtimes: Mapping[str, str] = NO_CHOICE) -> None:
    """Raise ``UsageError`` naming what to install if a target of ``targets`` cannot be validated here.

    ``runtimes`` are those that are chosen, by target. Imports none of the libraries, so that it can be called
    before any work is done.
    """
    extras = ["reference"] if _missing(_REFERENCE) else []
    for target in targets:
        runner = find_runner(target, runtimes.get(target))
        if _missing(runner.modules):
            extras.append(runner.extra)
    if extras:
        wanted = ",".join(dict.fromkeys(extras))
        raise UsageError(
            f"validation needs packages that are not installed: pip install 'qatconvert[{wanted}]'"
            " (or convert with --no-validate)"
        )


def _missing(modules: Iterable[str | tuple[str, ...]]) -> bool:
    alternatives = ((module,) if isinstance(module, str) else module for module in modules)
    return any(all(find_spec(module) is None for module in one_of) for one_of in alternatives)
