"""The option ``off_lattice``, which every target reads alike: how matrices are stored whose codes no type
holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from converter.checkpoint.weight import Weight
from converter.errors import UsageError
from targets.storing import Holdings


def read_off_lattice(options: Mapping[str, object], target: str, types: Mapping[str, str]) -> str:
    """The option ``off_lattice``, in lower case. ``types`` are the types of ``target`` by the option's value,
    the default first. Raises ``UsageError`` for a value that is not among them."""
    given = str(options.get("off_lattice") or next(iter(types))).lower()
    if given not in types:
        raise UsageError(f"off-lattice type {given!r} is unknown to {target}; known: {', '.join(types)}")
    return given


def inferred_off_lattice(
    weights: Iterable[Weight], found: Mapping[str, str], held: Mapping[str, Holdings]
) -> str:
    """The value of the option that explains the types of most matrices whose codes are not held.

    ``found`` maps canonical names to an artifact's types. ``held`` is what the target holds with each value
    of the option. The default comes first there, and wins a tie.
    """
    fitting: Counter[str] = Counter()
    for weight in weights:  # those whose type does not depend on the option fit all its values, or none
        fitting.update(
            option for option, one in held.items() if one.type_of(weight) == found.get(weight.name)
        )
    return max(held, key=lambda option: fitting[option])
