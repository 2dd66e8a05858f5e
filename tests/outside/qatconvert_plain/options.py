"""Options of the target and of its runtime, as data."""

from __future__ import annotations

from targets.options import VALIDATED, Option, OptionGroup

TYPES = ("float32", "float16")
OPTIONS = OptionGroup(
    "Plain numbers",
    (
        Option(
            "plain_type",
            "Type of the numbers in a plain file.",
            ("--plain-type",),
            kind="choice",
            choices=TYPES,
            default_text="float32",
        ),
    ),
)
RUNTIME = OptionGroup(
    "Plain numbers in transformers",
    (
        Option(
            "plain_memory",
            "Megabytes of weights that transformers keeps in memory; it reads the rest from disk.",
            ("--plain-memory",),
            kind="integer",
            least=1,
            commands=VALIDATED,
        ),
    ),
)
