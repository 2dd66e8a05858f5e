"""Several sequences in one run of plain onnxruntime, the shorter ones padded at their ends."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

pytestmark = pytest.mark.slow

#: Lengths of the prompts, on both sides of the sliding window of the generated checkpoints (64).
LENGTHS = (100, 40, 7)


def run(artifact, ids, positions, mask, cache=None):
    """Logits, and the cache that the next run takes."""
    session = onnxruntime.InferenceSession(artifact, providers=["CPUExecutionProvider"])
    cache = cache or {
        one.name: np.zeros([len(ids), one.shape[1], 0, one.shape[3]], np.float32)
        for one in session.get_inputs()
        if one.name.startswith("past_key_values.")
    }
    names = [one.name.replace("present", "past_key_values") for one in session.get_outputs()[1:]]
    inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
    logits, *present = session.run(None, inputs | cache)
    return logits, dict(zip(names, present, strict=True))


def ones(lengths, width):
    return (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)


@pytest.fixture
def prompts():
    random = np.random.default_rng(3)
    return [random.integers(300, 1200, length + 1) for length in LENGTHS]


@pytest.mark.parametrize("variant", ["e2b", "26b-a4b", "gemma3"])
def test_rows_of_different_lengths_do_not_disturb_each_other(variant, prompts, checkpoint_factory, convert):
    """Neither in the prompt, nor when every row goes on from its own end."""
    artifact = convert(checkpoint_factory(variant), "onnx", accuracy_level=0).artifact
    longest = max(LENGTHS)
    padded = np.stack([np.resize(np.append(ids[:-1], [0] * longest), longest) for ids in prompts])
    places = np.arange(longest)[None].repeat(len(prompts), 0)
    logits, cache = run(artifact, padded, places, ones(LENGTHS, longest))
    last = np.array([ids[-1:] for ids in prompts])
    grown = [length + 1 for length in LENGTHS]
    following, _ = run(artifact, last, np.array(LENGTHS)[:, None], ones(grown, longest + 1), cache)
    for row, ids in enumerate(prompts):
        alone, _ = run(artifact, ids[None], np.arange(len(ids))[None], ones([len(ids)], len(ids)))
        together = np.concatenate([logits[row, : len(ids) - 1], following[row]])
        np.testing.assert_allclose(together, alone[0], atol=1e-3)
