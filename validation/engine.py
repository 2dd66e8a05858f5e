"""An artifact in its runtime's engine: the program that users run, with the artifact's own tokenizer.

Whether its tokens, prompts and ends of answers are the checkpoint's is compared as for every runtime
(``tokenization``). Beside that it is measured whether it says what the reference says where both take the
likeliest token, and how likely it holds the tokens of the text that the artifact is judged on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.generation import end_tokens
from converter.system.progress import Progress, stage_of
from validation.continuation import Continuation, Vocabulary, comparison, largest_gap
from validation.logits import map_logits
from validation.reference.source import DEQUANTIZING, reference_model
from validation.runners import Account, Engine, Questions, Scores
from validation.settings import Prepared
from validation.text import Tokens
from validation.tokenization import (
    Chats,
    compare_ends,
    compare_prompts,
    compare_tokens,
    compared_texts,
    describe_prompts,
    spell,
)

#: Tokens of a prompt behind BOS, and of its continuation.
PROMPT: Final = 24
COUNT: Final = 32
#: Parameters of a model whose engine takes seconds for every sequence.
_LARGE: Final = 1_000_000_000
#: Prompts, each of another kind of text as far as there are kinds.
_PROMPTS: Final = 4


@dataclass(frozen=True, slots=True)
class _Prompt:
    kind: str
    text: str
    ids: tuple[int, ...]


def measure_engine(
    prepared: Prepared,
    engine: Engine,
    artifact: Path,
    reference: NDArray[np.float32],
    scratch: Path,
    progress: Progress,
    *,
    grids: bool = False,
) -> dict[str, Any]:
    """The ``engine`` of the report's ``runtime`` block.

    It has ``name``, ``version``, ``tokenizer``, ``prompts`` (``None`` without a chat template), ``ends``,
    ``greedy`` and ``scores`` (``None`` without any).

    ``reference`` holds the logits of ``prepared``'s sequences, ``[positions, vocabulary]``. Those of
    ``scored_sequences`` are scored. ``grids`` says that the reference rounds to static grids, in its
    continuations too. Raises ``ValidationError`` when the engine or the reference fails.
    """
    checkpoint = prepared.checkpoint
    texts = compared_texts(prepared)
    chats = Chats.given_to(engine)
    spelled = spell(prepared, texts, progress, [ids for _, ids in _beginnings(prepared)], chats.given)
    prompts = [
        _Prompt(kind, one["text"], tuple(one["ids"]))
        for (kind, _), one in zip(_beginnings(prepared), spelled["prompts"], strict=True)
        if one is not None
    ]
    tokens = prepared.tokens
    scored = scored_sequences(prepared)
    questions = Questions(
        texts,
        [prompt.text for prompt in prompts],
        [tokens.sequences[index] for index in scored],
        "".join(checkpoint.tokenizer.tokens[id] for id in _begin(prepared)),
        COUNT,
        chats.given if spelled["chats"] is not None else (),
        checkpoint.tokenizer,
    )
    account = engine.run(artifact, questions, stage_of(progress, f"generating text ({engine.name})"))
    scores = dict(zip(scored, account.scores, strict=True))
    greedy = _greedy(prepared, prompts, account, scratch, progress, grids)
    return {
        "name": engine.name,
        "version": account.version,
        "tokenizer": compare_tokens(texts, spelled["ids"], account.reading.tokens, checkpoint.tokenizer),
        "prompts": describe_prompts(
            compare_prompts(chats, spelled["chats"], account.reading.prompts, account.own_prompts),
            checkpoint.tokenizer.chat_template,
            account.template,
        ),
        "ends": compare_ends(
            end_tokens(checkpoint.architecture, checkpoint.tokenizer),
            account.reading.ends,
            checkpoint.tokenizer,
        ),
        "greedy": greedy,
        "scores": _compare_scores(tokens, reference, list(map(scores.get, range(len(tokens.sequences))))),
    }


def scored_sequences(prepared: Prepared) -> list[int]:
    """Which sequences an engine scores.

    They are those of which no more than half is context, since it takes as long for context as for the rest.
    Of a model of more than 1e9 parameters they are the first four of these.
    """
    tokens = prepared.tokens
    found = [index for index, ids in enumerate(tokens.sequences) if 2 * tokens.firsts[index] <= len(ids)]
    return found[:_PROMPTS] if prepared.checkpoint.parameters > _LARGE else found


def scored_positions(prepared: Prepared) -> NDArray[np.intp] | None:
    """The rows of logits before the tokens that an engine scores, ``None`` if these are all that there
    are."""
    tokens, scored = prepared.tokens, set(scored_sequences(prepared))
    if len(scored) == len(tokens.sequences):
        return None
    rows, start = [np.empty(0, np.intp)], 0
    for index, (ids, first) in enumerate(zip(tokens.sequences, tokens.firsts, strict=True)):
        if index in scored:
            rows.append(np.arange(start, start + len(ids) - first - 1, dtype=np.intp))
        start += len(ids) - first
    return np.concatenate(rows)


def _beginnings(prepared: Prepared) -> list[tuple[str, list[int]]]:
    """Kind and first token ids, without BOS, of the sequences that prompts are made of."""
    tokens = prepared.tokens.whole
    sequences = list(zip(tokens.kinds, tokens.sequences, strict=True))
    firsts = {kind: ids for kind, ids in reversed(sequences)}
    chosen = [(kind, firsts[kind]) for kind in dict.fromkeys(tokens.kinds)]
    chosen += [one for one in sequences if one not in chosen]
    begin = len(_begin(prepared))
    return [(kind, list(ids[begin : begin + PROMPT])) for kind, ids in chosen[:_PROMPTS] if len(ids) > begin]


def _greedy(
    prepared: Prepared,
    prompts: Sequence[_Prompt],
    account: Account,
    scratch: Path,
    progress: Progress,
    grids: bool,
) -> dict[str, Any]:
    """The reference's continuations of the prompts, and the engine's beside them."""
    checkpoint = prepared.checkpoint
    ends = end_tokens(checkpoint.architecture, checkpoint.tokenizer)
    compared = []
    if prompts:
        continued = _continue(prepared, prompts, account, ends, scratch, progress, grids)
        vocabulary = Vocabulary(checkpoint.tokenizer, ends)
        compared = [
            comparison(prompt.text, prompt.kind, one, answer, vocabulary)
            for prompt, one, answer in zip(prompts, continued, account.answers, strict=True)
        ]
    return {
        "prompts": len(prompts),
        "tokens": sum(one["tokens"] for one in compared),
        "characters": sum(len(one["reference"]) for one in compared),
        "equal_characters": sum(one["equal_characters"] for one in compared),
        "diverging": sum(one["divergence"] is not None for one in compared),
        "largest_gap": largest_gap(compared),
        "texts": compared,
    }


def _continue(
    prepared: Prepared,
    prompts: Sequence[_Prompt],
    account: Account,
    ends: Sequence[int],
    scratch: Path,
    progress: Progress,
    grids: bool,
) -> list[Continuation]:
    checkpoint, output = prepared.checkpoint, scratch / "continuations.npy"
    offload = scratch / "offload"
    offload.mkdir()
    model = reference_model(checkpoint, scratch, progress=partial(progress, DEQUANTIZING))
    with model.files() as directory:
        result = prepared.worker.call(
            {
                "task": "continue",
                "model": str(directory.resolve()),
                "left_out": list(model.left_out),
                "untied": model.untied,
                "grids": grids,
                "prompts": [[*_begin(prepared), *prompt.ids] for prompt in prompts],
                "drafts": [list(answer.tokens) for answer in account.answers],
                "count": COUNT,
                "ends": list(ends),
                "banned": list(checkpoint.generation.suppressed),
                "output": str(output),
                "dtype": prepared.settings.reference_dtype,
                "max_memory": prepared.settings.max_memory,
                "scratch": str(offload),
            },
            stage_of(progress, "generating text (transformers)"),
            what="reference",
        )
    logits = map_logits(output, len(prompts) * COUNT)
    return [
        Continuation(tuple(one["tokens"]), tuple(one["texts"]), logits[index * COUNT :])
        for index, one in enumerate(result["continuations"])
    ]


def _begin(prepared: Prepared) -> tuple[int, ...]:
    """What sequences begin with: BOS, or nothing."""
    return prepared.tokens.sequences[0][: prepared.checkpoint.tokenizer.bos is not None]


def _compare_scores(
    tokens: Tokens, reference: NDArray[np.float32], scores: Sequence[Scores | None]
) -> dict[str, Any] | None:
    """The engine's log-probabilities of the sequences' tokens beside the reference's, in nats.

    A token is compared if the logits at the position before it are.
    """
    differences: list[float] = []
    start = 0
    for ids, context, found in zip(tokens.sequences, tokens.firsts, scores, strict=True):
        for index, value in enumerate(found.values, found.first) if found else ():
            if index <= context:
                continue
            row = reference[start + index - 1 - context].astype(np.float64)
            row -= row.max()
            differences.append(abs(value - float(row[ids[index]] - math.log(np.exp(row).sum()))))
        start += len(ids) - context
    if not differences:
        return None
    sound = all(map(math.isfinite, differences))
    return {
        "tokens": len(differences),
        "mean_abs": sum(differences) / len(differences) if sound else None,
        "max_abs": max(differences) if sound else None,
    }
