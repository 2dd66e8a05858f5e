"""What Ollama knows of a family of models, and the Modelfile that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from targets.families import family_of, known_families
from targets.ollama.modelfile import Modelfile
from targets.ollama.printable import printed

#: Context of a new model in tokens, where nothing else is asked for: Ollama reserves memory for all of it.
CONTEXT: Final = 8192


@dataclass(frozen=True, slots=True)
class Commands:
    """Values of a Modelfile's commands that depend on the model, ``None`` for one that it does not need."""

    #: With one, Ollama makes the prompts itself.
    renderer: str | None = None
    #: With one, Ollama takes answers apart.
    parser: str | None = None
    #: The first Ollama that runs the model.
    requires: str | None = None


@dataclass(frozen=True, slots=True)
class OllamaFamily:
    """An object of the entry-point group ``qatconvert.families.ollama``."""

    #: The text that always ends an answer.
    end_of_turn: str
    #: The ``temperature``, ``top_p`` and ``top_k`` that are recommended where the model says nothing.
    sampling: Mapping[str, float]
    #: ``commands(parameters, per_layer_embeddings)`` gives the commands for a model of so many weights, with
    #: embeddings for each layer or without.
    commands: Callable[[int, bool], Commands] = lambda parameters, per_layer_embeddings: Commands()


def has_modelfile(family: str) -> bool:
    """Whether a family has a Modelfile."""
    return family in known_families("ollama")


@dataclass(frozen=True, slots=True)
class Model:
    """What a Modelfile goes by."""

    #: The name of the model's family.
    family: str
    #: The number of weights.
    parameters: int
    #: Whether there are embeddings for each layer (E2B, E4B).
    per_layer_embeddings: bool
    #: The trained context length in tokens, ``None`` where it is not known.
    context: int | None = None
    #: Values of temperature, top_p and top_k; the family's recommended ones stand for the others.
    sampling: Mapping[str, float] = field(default_factory=dict)
    #: Texts of tokens that end an answer beside the family's end of a turn.
    stops: Sequence[str] = ()
    #: Values of min_p and repetition_penalty where they change anything, and of repeat_last_n where it is not
    #: the whole text.
    penalties: Mapping[str, float] = field(default_factory=dict)


def family_modelfile(
    path: str,
    model: Model,
    *,
    num_ctx: int | None = None,
    system: str | None = None,
    licenses: Sequence[str] = (),
) -> Modelfile:
    """The Modelfile of a model.

    ``path`` is that of the GGUF relative to the Modelfile (of its directory, if it has several files).
    ``num_ctx`` defaults to 8192 or the trained context, whichever is less. Of ``licenses``, which only people
    read, what Ollama would drop is replaced (``printed``). Raises ``TargetError`` for a family of which
    Ollama's commands are not known.
    """
    known = family_of("ollama", model.family, OllamaFamily)
    commands = known.commands(model.parameters, model.per_layer_embeddings)
    values: dict[str, object] = {**known.sampling, **model.sampling}
    values["num_ctx"] = num_ctx or min(CONTEXT, model.context or CONTEXT)
    penalties = model.penalties
    if "min_p" in penalties:
        values["min_p"] = penalties["min_p"]
    if "repetition_penalty" in penalties:  # over the whole text, as in transformers
        last = int(penalties.get("repeat_last_n", -1))
        values |= {"repeat_penalty": penalties["repetition_penalty"], "repeat_last_n": last}
    # a stop from the Modelfile replaces the one that Ollama sets by itself, so it is always given
    return Modelfile(
        model=path,
        renderer=commands.renderer,
        parser=commands.parser,
        parameters=(
            *((name, str(value)) for name, value in values.items()),
            *(("stop", text) for text in _stops(known.end_of_turn, model.stops)),
        ),
        system=system,
        requires=commands.requires,
        licenses=tuple(printed(text) for text in licenses),
    )


def _stops(turn: str, stops: Sequence[str]) -> list[str]:
    """Each text once, the end of a turn last: of a parameter, some readers keep the last."""
    return [*(text for text in dict.fromkeys(stops) if text != turn), turn]
