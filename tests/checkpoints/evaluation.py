"""The text that the demonstration model is judged on: excerpts of the held-out topics.

    PYTHONPATH=.:tests python -m checkpoints.evaluation

writes ``evaluation_text.json`` into the shipped checkpoints. The text follows the topics that the model was
trained on and is none of them, so that it says what rounding costs; on a text that the model does not know,
rounded weights may well come out better.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from checkpoints.text import conversations, held_out_topics, opening
from converter.demo import DEMO, DEMO_MOBILE
from converter.filenames import EVALUATION_TEXT
from validation.evaluation import WITH_GRIDS

#: The topics that are read as they are, the longest ones, and the characters of each.
TOPICS: Final = 4
TOPIC_CHARACTERS: Final = 1800
#: The chats, of those about the other topics the longest.
CHATS: Final = 4
SEED: Final = 4
Limits = Mapping[str, Mapping[str, float]]
#: Limits of the shipped models, where they lose so little that the general ones would hide something: at most
#: twice what a right artifact measures.
LIMITS: Final[Limits] = {
    "gguf": {"mean_kld": 1.2e-4, "same_top_p": 0.98},
    "litert": {"mean_kld": 1.8e-4, "same_top_p": 0.985, "engine_gap": 0.1, "engine_mean_abs": 0.016},
    "onnx": {"mean_kld": 1.2e-4, "same_top_p": 0.98, "decode_mean_kld": 1e-4},
}
#: Those of the mobile form. On its static grids two programs that are right are a step apart here and there.
MOBILE_LIMITS: Final[Limits] = {
    "gguf": {"mean_kld": 2.5e-4, "same_top_p": 0.977},
    "litert": {"mean_kld": 2.7e-4, "same_top_p": 0.977, "engine_gap": 0.1, "engine_mean_abs": 0.02},
    f"litert{WITH_GRIDS}": {
        "mean_kld": 2.6e-3,
        "same_top_p": 0.973,
        "engine_gap": 0.1,
        "engine_mean_abs": 0.04,
    },
    "onnx": {"mean_kld": 2.9e-4, "same_top_p": 0.988, "decode_mean_kld": 2.9e-4},
    f"onnx{WITH_GRIDS}": {"mean_kld": 5.7e-4, "same_top_p": 0.98, "decode_mean_kld": 2.1e-3},
}
ABOUT: Final = (
    "Excerpts of pydoc_data.topics, which ships with CPython. Copyright 2001 Python Software Foundation;"
    " all rights reserved; Python Software Foundation License Version 2."
)


def evaluation_text(limits: Limits = LIMITS) -> dict[str, object]:
    """The content of the file of a model with these ``limits``. The topics are those of the running Python:
    another version words some otherwise."""
    topics = held_out_topics()
    longest = sorted(topics, key=lambda name: (-len(topics[name]), name))[:TOPICS]
    passages: list[dict[str, object]] = [
        {"kind": "help topics", "text": opening(topics[name], TOPIC_CHARACTERS)} for name in sorted(longest)
    ]
    others = {name: text for name, text in topics.items() if name not in longest}
    chats = conversations(others, random.Random(SEED))
    chats.sort(key=lambda turns: -sum(len(turn["content"]) for turn in turns))
    passages += [{"kind": "chats", "turns": turns} for turns in chats[:CHATS]]
    return {"about": ABOUT, "passages": passages, "gates": limits}


def write_evaluation_text(directory: Path, limits: Limits = LIMITS) -> None:
    """Write the file into a checkpoint's directory."""
    text = json.dumps(evaluation_text(limits), indent=1, ensure_ascii=False)
    (directory / EVALUATION_TEXT).write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Write the files of the shipped checkpoints."""
    argparse.ArgumentParser(
        prog="python -m checkpoints.evaluation", description="Write the demonstration models' own text."
    ).parse_args()
    write_evaluation_text(DEMO)
    write_evaluation_text(DEMO_MOBILE, MOBILE_LIMITS)


if __name__ == "__main__":
    main()
