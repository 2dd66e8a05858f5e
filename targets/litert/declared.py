"""The options of the ``litert`` target, as data."""

from __future__ import annotations

from typing import Final

from targets.options import OFF_LATTICE, WRITTEN, Option, OptionGroup

OPTIONS: Final = OptionGroup(
    "LiteRT",
    (
        OFF_LATTICE,
        Option(
            "prefill_lengths",
            "Numbers of tokens in which a LiteRT bundle reads prompts, as in 128,1024; each takes memory and "
            "time to export.",
            ("--prefill-lengths",),
            kind="lengths",
            default_text="128",
        ),
        Option(
            "context_length",
            "Tokens that a LiteRT bundle's caches hold, prompt and answer together.",
            ("--context-length",),
            kind="integer",
            metavar="N",
            default_text="4096, or what the model was trained for",
        ),
        Option(
            "externalize_embedder",
            "Put the embeddings of a LiteRT bundle into models of their own.",
            ("--externalize-embedder",),
            kind="flag",
        ),
        Option(
            "activations",
            "Rows in which a LiteRT bundle's products take their input, each rounded by its own scale: 1, 2, "
            "layers (2, and 1 in the output head), or the projections that take 2, as in down_proj,v_proj. "
            "More are more accurate, fewer faster. Or static, to round to the checkpoint's own static grids. "
            "Default: the fastest that passes the gates is kept.",
            ("--litert-activations",),
            metavar="ROWS",
        ),
        Option(
            "keep_tflite",
            "Keep a LiteRT bundle's models as .tflite files beside it.",
            ("--keep-tflite",),
            kind="flag",
            commands=WRITTEN,
            extra_files=True,
        ),
        Option(
            "npu",
            "Also compile a LiteRT bundle for a neural processor, such as qualcomm:SM8750 or "
            "mediatek:MT6991; needs the vendor's SDK. Repeatable.",
            ("--npu",),
            metavar="VENDOR:SOC",
            repeatable=True,
            commands=WRITTEN,
            extra_files=True,
        ),
        Option(
            "android_assets",
            "Also lay a LiteRT bundle out as assets of an Android app in this directory.",
            ("--android-assets",),
            kind="path",
            commands=WRITTEN,
            outside=True,
        ),
    ),
)
