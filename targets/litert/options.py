"""Options of the ``litert`` target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from converter.checkpoint.opened import Checkpoint
from converter.errors import UsageError
from targets.litert.activations import check_activations, read_activations
from targets.litert.devices.npu import Npu, parse_all
from targets.litert.storage import OFF_LATTICE, off_lattice_option

#: Tokens that a prompt is read in, unless the option says otherwise: enough to keep a phone's cores busy.
PREFILL: Final = 128
#: Tokens of the caches, unless the option says otherwise or the model ends before.
CONTEXT: Final = 4096
#: More signatures than any user wants; each takes memory and time to export.
_MOST_LENGTHS: Final = 16


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for."""

    #: In tokens, ascending; empty for what suits the model.
    prefill_lengths: tuple[int, ...]
    #: In tokens; ``None`` for what suits the model.
    context_length: int | None
    externalize_embedder: bool
    keep_tflite: bool
    #: The type of matrices on no lattice.
    off_lattice: str
    #: The neural processors to compile for as well.
    npus: tuple[Npu, ...]
    #: What ``activations.read_activations`` gives.
    activations: str | None = None

    @property
    def context(self) -> int:
        """Tokens of the caches, once they are fitted to a model."""
        assert self.context_length is not None
        return self.context_length


def read_options(options: Mapping[str, object]) -> Options:
    """The options that are right whatever the model is; raises ``UsageError`` for one that is not."""
    context = options.get("context_length")
    read = Options(
        _lengths(options.get("prefill_lengths")),
        None if context is None else _tokens("--context-length", context),
        bool(options.get("externalize_embedder")),
        bool(options.get("keep_tflite")),
        OFF_LATTICE[off_lattice_option(options)],
        _npus(options.get("npu")),
        read_activations(options.get("activations")),
    )
    if read.context_length is not None:
        _check_prefill(read.prefill_lengths, read.context_length)
    return read


def fitted(options: Options, checkpoint: Checkpoint) -> Options:
    """The options with the lengths that suit a model where none were given.

    Raises ``UsageError`` for a context shorter than the model's sliding window or longer than the model's
    own, for a prefill longer than the context, and for projections or grids that the model does not have.
    """
    check_activations(options.activations, checkpoint)
    architecture = checkpoint.architecture
    context = options.context_length
    if context is None:
        context = min(CONTEXT, architecture.context)
    elif context > architecture.context:
        raise UsageError(
            f"--context-length {context}: the model is trained for {architecture.context} tokens; "
            f"give at most {architecture.context}"
        )
    window = architecture.sliding_window
    if any(layer.attention == "sliding" for layer in architecture.layers) and context < window:
        raise UsageError(
            f"--context-length {context}: shorter than the model's sliding window; give at least {window}"
        )
    lengths = options.prefill_lengths or (min(PREFILL, context),)
    _check_prefill(lengths, context)
    return replace(options, prefill_lengths=lengths, context_length=context)


def _npus(given: object) -> tuple[Npu, ...]:
    texts = given if isinstance(given, list | tuple) else [] if given is None else [given]
    return parse_all(str(text) for text in texts)


def _lengths(given: object) -> tuple[int, ...]:
    if given is None:
        return ()
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise UsageError(f"--prefill-lengths {given!r}: give numbers of tokens, as in 128,1024")
    if len(given) > _MOST_LENGTHS:
        raise UsageError(f"--prefill-lengths: {len(given)} lengths; give at most {_MOST_LENGTHS}")
    return tuple(sorted({_tokens("--prefill-lengths", length) for length in given}))


def _tokens(option: str, given: object) -> int:
    if type(given) is not int or given < 1:
        raise UsageError(f"{option} {given}: no number of tokens, which begins at 1")
    return given


def _check_prefill(lengths: Sequence[int], context: int) -> None:
    if lengths and lengths[-1] > context:
        raise UsageError(
            f"--prefill-lengths {lengths[-1]}: longer than the context of {context} tokens; "
            f"give at most {context}"
        )
