"""The reference's likeliest text, and texts that are spelled with just the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from converter.demo import DEMO
from converter.system.child import Worker
from converter.system.progress import no_progress
from support.greedy import by_transformers

pytestmark = pytest.mark.slow

PROMPTS = [[2, 1233, 914, 348, 288, 345, 292, 405, 950, 280], [2, 460, 382]]
ENDS = [1, 16]
COUNT = 12


@pytest.fixture(scope="module")
def continued(worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``continued(**request)``: continuations of the prompts, and logits ``[prompts, COUNT, tokens]``."""

    def run(**changes: object) -> tuple[list[Any], np.ndarray, bool]:
        scratch = tmp_path_factory.mktemp("continued")
        request: dict[str, object] = {
            "task": "continue",
            "model": str(DEMO),
            "left_out": [],
            "untied": False,
            "grids": False,
            "prompts": PROMPTS,
            "drafts": [[], []],
            "count": COUNT,
            "ends": ENDS,
            "banned": [],
            "output": str(scratch / "rows.npy"),
            "dtype": "float32",
            "max_memory": None,
            "scratch": str(scratch),
        }
        result = worker.call(request | changes, no_progress, what="reference")
        rows = np.load(scratch / "rows.npy")
        return result["continuations"], rows.reshape(len(PROMPTS), COUNT, -1), result["offloaded"]

    return run


def test_the_text_is_that_of_transformers_own_search(continued: Callable[..., Any]) -> None:
    found, rows, offloaded = continued()
    assert not offloaded
    for prompt, one, logits in zip(PROMPTS, found, rows, strict=True):
        assert [id for id in one["tokens"] if id not in ENDS] == by_transformers(DEMO, prompt, COUNT, ENDS)
        assert logits[: len(one["tokens"])].argmax(axis=1).tolist() == one["tokens"]
        assert len(one["texts"]) == len([id for id in one["tokens"] if id not in ENDS]) + 1
        assert one["texts"][0] == ""
        assert one["texts"][-1].startswith(one["texts"][1])


def test_an_end_and_a_banned_token_are_the_checkpoints_business(continued: Callable[..., Any]) -> None:
    free, _, _ = continued()
    third = free[0]["tokens"][2]
    ended, _, _ = continued(ends=[third])
    assert ended[0]["tokens"] == free[0]["tokens"][:3]
    banned, rows, _ = continued(banned=[third])
    assert third not in banned[0]["tokens"]
    assert int(rows[0, 2].argmax()) == third


def test_a_model_on_disk_reads_drafts_in_one_pass_up_to_the_first_other_token(
    continued: Callable[..., Any],
) -> None:
    free, rows, _ = continued()
    right = free[0]["tokens"]
    wrong = [*free[1]["tokens"][:2], 999]
    checked, again, offloaded = continued(drafts=[right, wrong], max_memory=2_000_000)
    assert offloaded
    assert checked[0]["tokens"] == right
    assert checked[1]["tokens"] == free[1]["tokens"][:3]
    np.testing.assert_allclose(again[0], rows[0], atol=1e-4)


def test_a_prompt_is_cut_until_a_text_has_its_tokens(worker: Worker) -> None:
    request = {"task": "spell", "model": str(DEMO), "texts": ["", "def add(a, b):\n", "<bos>é"]}
    whole = [914, 348, 288, 252, 213, 184]  # the bytes of a Chinese character come last
    result = worker.call(request | {"prompts": [whole, whole[:4], [252]]}, no_progress, what="tokenizer")
    assert result["ids"][0] == []
    assert result["ids"][1] == PROMPTS[0][1:]
    assert result["ids"][2][0] == 2
    assert [one and one["ids"] for one in result["prompts"]] == [whole, whole[:3], None]
