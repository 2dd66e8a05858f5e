"""What Ollama knows of a family of models, and the Modelfile that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


def family_modelfile(
    model: str,
    family: str,
    parameters: int,
    *,
    per_layer_embeddings: bool,
    context: int | None = None,
    num_ctx: int | None = None,
    sampling: Mapping[str, float] | None = None,
    system: str | None = None,
    licenses: Sequence[str] = (),
    stops: Sequence[str] = (),
    penalties: Mapping[str, float] | None = None,
) -> Modelfile:
    """The Modelfile of a model.

    ``model`` is the path of the GGUF relative to the Modelfile (of its directory, if it has several files).
    ``family`` is the name of the model's family, ``parameters`` the number of weights.
    ``per_layer_embeddings`` says whether the model has such (E2B, E4B). ``context`` is the trained context
    length. ``num_ctx`` defaults to 8192 or the trained context, whichever is less. ``sampling`` has the
    values of temperature, top_p and top_k (default: the recommended). ``stops`` are the texts of tokens that
    end an answer beside the family's end of a turn. ``penalties`` has the values of min_p and
    repetition_penalty where they change anything, and of repeat_last_n where it is not the whole text. Of
    ``licenses``, which only people read, what Ollama would drop is replaced (``printed``). Raises
    ``TargetError`` for a family of which Ollama's commands are not known.
    """
    known = family_of("ollama", family, OllamaFamily)
    commands = known.commands(parameters, per_layer_embeddings)
    values: dict[str, object] = {**known.sampling, **(sampling or {})}
    values["num_ctx"] = num_ctx or min(CONTEXT, context or CONTEXT)
    penalties = penalties or {}
    if "min_p" in penalties:
        values["min_p"] = penalties["min_p"]
    if "repetition_penalty" in penalties:  # over the whole text, as in transformers
        last = int(penalties.get("repeat_last_n", -1))
        values |= {"repeat_penalty": penalties["repetition_penalty"], "repeat_last_n": last}
    # a stop from the Modelfile replaces the one that Ollama sets by itself, so it is always given
    return Modelfile(
        model=model,
        renderer=commands.renderer,
        parser=commands.parser,
        parameters=(
            *((name, str(value)) for name, value in values.items()),
            *(("stop", text) for text in _stops(known.end_of_turn, stops)),
        ),
        system=system,
        requires=commands.requires,
        licenses=tuple(printed(text) for text in licenses),
    )


def _stops(turn: str, stops: Sequence[str]) -> list[str]:
    """Each text once, the end of a turn last: of a parameter, some readers keep the last."""
    return [*(text for text in dict.fromkeys(stops) if text != turn), turn]
