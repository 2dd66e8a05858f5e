"""The likeliest continuation of prompts in ``transformers``; a task of ``validation.reference.process``.

No sampling, and none of the checkpoint's own settings of generation but two: what ends an answer and what is
never said. Each token is the one with the largest logit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.system.processors import processors
from converter.system.progress import StageProgress
from validation.logits import LogitRows
from validation.reference.model import forward, is_offloaded, load_model
from validation.reference.tokens import decode, load_tokenizer

#: Bytes of a model that is too slow to be asked for one token after the other.
_LARGE = 4_000_000_000
#: A row of logits to the likeliest token that may be said.
_Choose = Callable[[NDArray[np.float32]], int]


def continue_prompts(request: dict[str, Any], progress: StageProgress) -> Mapping[str, object]:
    """Continue every prompt by at most ``count`` tokens.

    Request: as of ``validation.reference.model.write_logits``, but with ``prompts`` for ``sequences``, and
    these beside:

    * ``prompts``: token ids, BOS first
    * ``drafts``: token ids that may follow each
    * ``count``
    * ``ends``: ids that end an answer
    * ``banned``: ids that are never chosen

    ``output`` (.npy) gets a row of float32 logits for each token, from row ``index * count`` on for the
    prompt ``index``. Other rows are zeros.

    Answer: ``offloaded``, and ``continuations`` with ``tokens`` and ``texts`` for each prompt. The token of
    ``ends`` is included if it came. The texts are those of the first 0, 1, 2, ... tokens. A model that is
    read from disk for each pass, or that is larger than 4 GB, makes one pass over all drafts: its
    continuation ends with the first token that is not the draft's.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(processors())
    tokenizer, model = load_tokenizer(request["model"]), load_model(request)
    prompts, count, ends = request["prompts"], request["count"], set(request["ends"])
    banned = list(request["banned"])
    vocabulary = model.config.get_text_config().vocab_size

    def choose(row: NDArray[np.float32]) -> int:
        allowed = row.copy()
        allowed[banned] = -np.inf
        return int(allowed.argmax())

    found = []
    with (
        torch.inference_mode(),
        LogitRows(Path(request["output"]), len(prompts) * count, vocabulary) as rows,
    ):
        drafts = [draft[:count] for draft in request["drafts"]]
        slow = is_offloaded(model) or _size(model) > _LARGE
        checked = list(_checked(model, prompts, drafts)) if slow else []
        for index, prompt in enumerate(prompts):
            if checked:
                tokens, made = _agreed(checked[index], drafts[index], choose, ends, count)
            else:
                tokens, made = _said(model, prompt, choose, ends, count)
            blank = np.zeros((count - len(made), vocabulary), np.float32)
            rows.write(np.concatenate([np.stack(made), blank]))
            said = [token for token in tokens if token not in ends]
            texts = [decode(tokenizer, said[:end]) for end in range(len(said) + 1)]
            found.append({"tokens": tokens, "texts": texts})
            progress(index + 1, len(prompts))
    return {"continuations": found, "offloaded": is_offloaded(model), "vocabulary": vocabulary}


def _size(model: Any) -> int:
    """Bytes of a model's weights."""
    return sum(one.numel() * one.element_size() for one in model.parameters())


def _said(
    model: Any, prompt: Sequence[int], choose: _Choose, ends: set[int], count: int
) -> tuple[list[int], list[NDArray[np.float32]]]:
    """Tokens and their rows of logits, one pass for each token over the cache of those before."""
    import torch

    tokens: list[int] = []
    rows: list[NDArray[np.float32]] = []
    new, cache = list(prompt), None
    while len(tokens) < count:
        result = model(input_ids=torch.tensor([new]), past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        rows.append(result.logits[0, -1].float().numpy().copy())
        tokens.append(choose(rows[-1]))
        if tokens[-1] in ends:
            break
        new = tokens[-1:]
    return tokens, rows


def _checked(
    model: Any, prompts: Sequence[Sequence[int]], drafts: Sequence[Sequence[int]]
) -> list[NDArray[np.float32]]:
    """Logits of one pass over all prompts and drafts: of each prompt's last token and of its draft's."""
    whole = [[*prompt, *draft] for prompt, draft in zip(prompts, drafts, strict=True)]
    return [
        logits[len(prompt) - 1 :].float().numpy().copy()
        for prompt, logits in zip(prompts, forward(model, whole), strict=True)
    ]


def _agreed(
    logits: NDArray[np.float32], draft: Sequence[int], choose: _Choose, ends: set[int], count: int
) -> tuple[list[int], list[NDArray[np.float32]]]:
    """As ``_said``, as far as the draft is right and one token more."""
    tokens: list[int] = []
    for index, row in enumerate(logits[:count]):
        tokens.append(choose(row))
        if tokens[-1] in ends or index >= len(draft) or tokens[-1] != draft[index]:
            break
    return tokens, list(logits[: len(tokens)])
