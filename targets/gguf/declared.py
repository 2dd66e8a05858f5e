"""The options of the ``gguf`` target, as data."""

from __future__ import annotations

from typing import Final

from targets.options import LICENSE, OFF_LATTICE, WRITTEN, Option, OptionGroup

_MODELFILE: Final = ("convert", "modelfile")

#: What a Modelfile says beyond the model itself.
MODELFILE: Final = (
    Option("system", "System prompt in the Modelfile.", ("--system",), commands=_MODELFILE),
    Option(
        "licenses",
        "File with a licence text for the Modelfile. Repeatable.",
        ("--license",),
        kind="file",
        repeatable=True,
        commands=_MODELFILE,
    ),
    Option(
        "num_ctx",
        "Context length in the Modelfile.",
        ("--num-ctx",),
        kind="integer",
        least=1,
        commands=_MODELFILE,
    ),
)

OPTIONS: Final = OptionGroup(
    "GGUF and Ollama",
    (
        OFF_LATTICE,
        Option(
            "split_max_size",
            "Split the GGUF into files of at most SIZE (2G, 500M).",
            ("--split-max-size",),
            metavar="SIZE",
            commands=WRITTEN,
        ),
        *MODELFILE,
        LICENSE,
    ),
)
