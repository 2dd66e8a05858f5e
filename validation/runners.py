"""Which runtime runs a target's artifacts, and whether what it needs is installed.

A runner is one module with an object that has the protocol below, and an entry point in the group
``qatconvert.runtimes``, called ``TARGET.RUNTIME``. A target may have several: unless one is chosen, its
artifacts run in the one that comes in the target's own distribution, or else in the first by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

from converter.checkpoint.chats import Conversation, Inexpressible
from converter.checkpoint.excerpt import Excerpt
from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.tokenizer import Tokenizer
from converter.errors import UsageError
from converter.system.extensions import entries, load
from converter.system.progress import StageProgress
from targets.options import RUNTIMES, TARGETS, Option, meant

#: What the reference needs, and the extra that installs it.
REFERENCE: Final = ("torch", "transformers", "accelerate")
REFERENCE_EXTRA: Final = "reference"
#: The provider that every runtime has.
CPU: Final = "cpu"
#: The choice of an artifact that is run as it was written.
AS_IT_IS: Final[Mapping[str, object]] = MappingProxyType({})
#: Every target in the runtime that it prefers.
NO_CHOICE: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Runtime:
    """The runtime that made logits."""

    name: str
    version: str
    #: Those that bear on the figures.
    settings: Mapping[str, object] = field(default_factory=dict)
    #: The way in which it ran, as a choice by which another artifact runs in the same.
    way: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Questions:
    """What an engine is asked of an artifact."""

    #: Texts to tokenise.
    texts: Sequence[str]
    #: Prompts to continue, plain text to which no template is applied.
    prompts: Sequence[str]
    #: Sequences of token ids to score; they begin with BOS.
    sequences: Sequence[Sequence[int]]
    #: The text of BOS, for an engine that would not put it before a prompt of itself.
    begin: str
    #: Each prompt is continued by at least this many of the likeliest tokens, or to its end.
    count: int
    #: Chats that become prompts: by the artifact's own template, and by the one that the converter makes of
    #: ``tokenizer``.
    chats: Sequence[Conversation] = ()
    #: The checkpoint's.
    tokenizer: Tokenizer | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An engine's text after a prompt."""

    #: The text as it came, most pieces of one token each.
    pieces: tuple[str, ...]
    #: The ids that the engine's own tokenizer makes of the text.
    tokens: tuple[int, ...]
    #: Whether the text is whole: an engine may break off where bytes are no characters.
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Scores:
    """How likely an engine holds the tokens of a sequence."""

    #: The index of the first token that has a value.
    first: int
    #: Natural logarithms of the tokens' probabilities, each behind all tokens before it.
    values: tuple[float, ...]


#: Token ids, or in a line why there are none.
Ids = tuple[int, ...] | str


@dataclass(frozen=True, slots=True)
class Reading:
    """What a runtime makes of text with a tokenizer and a chat template."""

    #: The tokens of every text and no more.
    tokens: tuple[tuple[int, ...], ...]
    #: The prompt for the next answer in every chat.
    prompts: tuple[Ids, ...]
    #: Ids of tokens that end an answer.
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """The chat template of an artifact."""

    text: str
    #: What runs it in the comparison.
    engine: str
    #: The edits that make it of the checkpoint's template, in a few words each.
    edits: tuple[str, ...] = ()
    #: Why an edit that the runtime needs was not made; empty if there is none.
    kept: str = ""


@dataclass(frozen=True, slots=True)
class Account:
    """What an engine made of texts."""

    version: str
    #: Of texts and chats.
    reading: Reading
    #: One to every prompt.
    answers: tuple[Answer, ...]
    #: Of every sequence, ``None`` where the engine can give none.
    scores: tuple[Scores | None, ...]
    #: Prompts of the chats by the checkpoint's template instead of the artifact's; ``None`` where the
    #: checkpoint has none.
    own_prompts: tuple[Ids, ...] | None = None
    #: The artifact's.
    template: Template | None = None


@dataclass(frozen=True, slots=True)
class TextAccount:
    """What a runtime's text side made of an artifact."""

    version: str
    #: With the artifact's tokenizer, template and ends.
    reading: Reading
    #: The same runtime's reading with the checkpoint's own files, ``None`` where it cannot read them. What
    #: differs from the checkpoint there too is the runtime's doing.
    own: Reading | None = None
    #: Tokens of texts, by their index, after the checkpoint's normalization, which the runtime does not do
    #: itself. A text that has the right ones then is the runtime's limit, not the artifact's fault.
    normalized: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    #: Prompts by the checkpoint's template, from a runtime that reads no other files.
    own_prompts: tuple[Ids, ...] | None = None
    #: The artifact's.
    template: Template | None = None
    #: Ids at which the runtime ends an answer whatever the artifact says.
    ends_by_rule: frozenset[int] = frozenset()
    #: The checkpoint's ends for which the artifact's format has no place.
    ends_lost: frozenset[int] = frozenset()
    #: Ids of tokens that the runtime does not show; ``None`` where the artifact does not say.
    hidden: frozenset[int] | None = None
    #: Ids of tokens that it should not show; ``None`` where the artifact does not say.
    hidden_by_right: frozenset[int] | None = None


class Render(Protocol):
    """A chat template of an artifact, run by transformers in a bounded child process."""

    def __call__(
        self, template: str, special: Mapping[str, str], chats: Sequence[Conversation], what: str
    ) -> Sequence[Mapping[str, str]]:
        """For every chat ``{"text": prompt}``, or ``{"error": line}`` where ``template`` refuses it.

        ``special`` are texts of special tokens by the name that templates know (``bos_token``). ``what``
        names the template in errors. Raises ``ValidationError`` for a template that takes too long or too
        much memory, or makes too much text.
        """


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

    def run(self, artifact: Path, questions: Questions, progress: StageProgress) -> Account:
        """Run ``artifact``: tokenise texts, continue prompts, score sequences. BOS is put before each prompt.

        Raises ``ValidationError`` when the engine cannot load or run the artifact, however it ends.
        """


class Runner(Protocol):
    """One runtime."""

    #: What users know it as.
    name: str
    #: The extra that installs it.
    extra: str
    #: What must then be importable. Of several that stand together, one is enough.
    modules: tuple[str | tuple[str, ...], ...]
    #: Distributions whose versions can change its figures, which the manifest records.
    libraries: tuple[str, ...]
    #: The runtime's program for text, ``None`` if artifacts are not run in one.
    engine: Engine | None
    #: Its text side where there is no such program.
    text: TextRuntime | None
    #: Limits of gates for trained dense models that suit its arithmetic (``limits``), where the general ones
    #: would hide something.
    allowances: Mapping[str, float]
    #: Whether its GELU goes through float16. Transformers on the artifact's own weights then does so too.
    float16_gelu: bool
    #: How many times it holds the weights of an unrounded form, the pages of its file among them.
    weights_held: int
    #: Whether it reads these weights anew for every position that is compared.
    stepwise: bool
    #: What a user may give it. An entry point ``TARGET.RUNTIME`` in the group ``qatconvert.options`` brings
    #: the same to the command line.
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
        """Write float32 logits ``[positions, vocabulary]`` of ``sequences`` to ``output`` (.npy).

        Each sequence is run on its own, with exactly these token ids. The positions are all of its own, or
        those from its index in ``firsts`` on. ``choice`` is one of the target's ``choices``, which the
        runtime applies without changing the artifact.

        A runtime that also decodes token by token says so in the settings of the result. ``decode`` there has
        ``positions``, ``mean_kld``, ``max_kld``, ``max_abs`` (against its own logits of the same positions)
        and ``tokens_per_second``. Raises ``ValidationError`` when the runtime cannot load or run the
        artifact, however it ends.
        """

    def unrounded_bytes(self, artifact: Path, excerpt: Excerpt | None = None) -> int:
        """Bytes of temporary files that ``unrounded`` writes. Raises ``ValidationError`` for a damaged
        artifact and for one of which the runner makes no excerpts."""

    def unrounded(
        self, artifact: Path, directory: Path, progress: StageProgress, excerpt: Excerpt | None = None
    ) -> tuple[Path, Mapping[str, object]]:
        """The artifact in a form that the runtime runs without rounding, neither to integers nor to static
        grids of activations, and the choice by which ``logits`` does.

        The form is a file in ``directory`` with the artifact's own metadata, graph and weights, the weights
        widened to floats, or it is the artifact itself. With ``excerpt``, it has these layers of the model
        alone. Raises ``ValidationError`` if there is no such form.
        """


def known_runtimes() -> Mapping[str, tuple[str, ...]]:
    """Names of the registered runtimes by target, both sorted. Imports none."""
    found: dict[str, list[str]] = {}
    for entry in entries(RUNTIMES):
        target, _, runtime = entry.name.partition(".")
        found.setdefault(target, []).append(runtime)
    return {target: tuple(sorted(found[target])) for target in sorted(found)}


def runtime_of(target: str, runtime: str | None = None) -> str:
    """The registered name, ``TARGET.RUNTIME``, of ``runtime`` for a target's artifacts.

    By default it is the one of the target's own distribution, else the first by name. Raises ``UsageError``
    when there is none.
    """
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
    homes = {_home(entry) for entry in entries(TARGETS).select(name=target)}
    own = [
        name
        for name in runtimes
        for entry in entries(RUNTIMES).select(name=f"{target}.{name}")
        if _home(entry) in homes
    ]
    return (own or runtimes)[0]


def _home(entry: EntryPoint) -> str | None:
    return entry.dist.name if entry.dist else None


def find_runner(target: str, runtime: str | None = None) -> Runner:
    """The runner of ``runtime_of`` the same. Raises ``UsageError`` when there is none, and ``ExtensionError``
    for one that cannot be loaded."""
    runner: Runner = load(RUNTIMES, runtime_of(target, runtime))
    return runner


def read_runtimes(names: Iterable[str]) -> dict[str, str]:
    """Runtimes by target, of names as they are registered (``gguf.llamacpp``).

    Raises ``UsageError``, which lists the known, for another name, and for two runtimes of one target.
    """
    known = [f"{target}.{runtime}" for target, found in known_runtimes().items() for runtime in found]
    read: dict[str, str] = {}
    for name in names:
        if name not in known:
            raise UsageError(f"unknown runtime {name!r}{meant(name, known)}; known: {', '.join(known)}")
        target, _, runtime = name.partition(".")
        if read.setdefault(target, runtime) != runtime:
            raise UsageError(f"runtimes {target}.{read[target]} and {name} are of one target: give one")
    return read


def check_available(targets: Iterable[str], runtimes: Mapping[str, str] = NO_CHOICE) -> None:
    """Raise ``UsageError`` naming what to install if a target of ``targets`` cannot be validated here.

    ``runtimes`` are those that are chosen, by target. Imports none of the libraries, so that it can be called
    before any work is done.
    """
    extras = [REFERENCE_EXTRA] if lacking(REFERENCE) else []
    for target in targets:
        runner = find_runner(target, runtimes.get(target))
        if lacking(runner.modules):
            extras.append(runner.extra)
    if extras:
        wanted = ",".join(dict.fromkeys(extras))
        raise UsageError(
            f"validation needs packages that are not installed: pip install 'qatconvert[{wanted}]'"
            " (or convert with --no-validate)"
        )


def lacking(modules: Iterable[str | tuple[str, ...]]) -> tuple[str, ...]:
    """Those of ``modules`` that are not installed; of several that stand together and are all missing, the
    first. Nothing is imported."""
    found = ((module,) if isinstance(module, str) else module for module in modules)
    return tuple(one_of[0] for one_of in found if not any(map(_is_there, one_of)))


def present(modules: Iterable[str | tuple[str, ...]]) -> tuple[str, ...]:
    """Those of ``modules`` that are installed; of several that stand together, the first that is."""
    found = ((module,) if isinstance(module, str) else module for module in modules)
    return tuple(there for one_of in found if (there := next(filter(_is_there, one_of), None)) is not None)


def _is_there(module: str) -> bool:
    """Whether a module is installed, perhaps one within packages: they are searched and not imported."""
    top, *within = module.split(".")
    spec, name = find_spec(top), top
    for part in within:
        if spec is None or spec.submodule_search_locations is None:
            return False
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, spec.submodule_search_locations)
    return spec is not None
