"""How the demonstration model is trained: an honest split, chats, and gradients through the lattice."""

from __future__ import annotations

import random

import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from checkpoints.quantisation import naive_q4_0, on_lattice, straight_through
from checkpoints.text import (
    conversations,
    held_out_documents,
    is_held_out,
    other_scripts,
    training_documents,
)
from checkpoints.train import training_stream, varied_ids
from converter.checkpoint.lattice import bf16_bits, recover
from converter.checkpoint.weight import EXACT
from converter.demo import DEMO


def test_no_paragraph_is_both_trained_on_and_held_out() -> None:
    held_out = {part for text in held_out_documents() for part in text.split("\n\n")}
    trained = {part for text in training_documents().values() for part in text.split("\n\n")}
    assert not held_out & trained
    assert not any(is_held_out(name) for name in training_documents())
    assert 0.05 < sum(map(len, held_out)) / sum(map(len, trained)) < 0.25


def test_the_same_seed_gives_the_same_conversations() -> None:
    documents = training_documents()
    chats = conversations(documents, random.Random(1))
    assert chats == conversations(documents, random.Random(1))
    assert {turn["role"] for chat in chats for turn in chat} == {"system", "user", "assistant"}
    assert all(chat[-1]["role"] == "assistant" for chat in chats)


def test_cut_texts_are_still_the_same_texts() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    text = "<bos><|turn>user\nWhat is a generator expression?<turn|>\n"
    once, again = (varied_ids(tokenizer, text, random.Random(seed)) for seed in (1, 2))
    assert tokenizer.decode(once) == tokenizer.decode(again) == text
    assert once != again


def test_training_meets_byte_tokens_and_whole_special_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    stream = training_stream(tokenizer, random.Random(1))
    assert torch.equal(stream, training_stream(tokenizer, random.Random(1)))
    counts = torch.bincount(stream, minlength=len(tokenizer))
    used = tokenizer(" ".join(other_scripts(random.Random(1))), add_special_tokens=False)["input_ids"]
    assert (counts[used] > 0).float().mean() > 0.95
    for token in ("<bos>", "<eos>", "<|turn>", "<turn|>"):
        assert counts[tokenizer.convert_tokens_to_ids(token)] > 50


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-6, 1e3))
def test_what_is_saved_is_exactly_the_lattice_that_was_trained_on(seed: int, std: float) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)) * std
    saved = on_lattice(weight)
    assert torch.equal(on_lattice(weight), straight_through(weight).detach().bfloat16().float())
    assert torch.equal(saved, saved.bfloat16().float())
    found = recover(bf16_bits(saved.numpy()))
    assert (found.status == EXACT).all()


def test_gradients_pass_the_rounding_unchanged() -> None:
    weight = torch.randn(4, 32, requires_grad=True)
    gradient = torch.randn(4, 32)
    straight_through(weight).backward(gradient)
    assert weight.grad is not None
    assert torch.equal(weight.grad, gradient)


def test_the_naive_conversion_is_ggufs_own() -> None:
    matrix, norm = torch.randn(4, 64), torch.randn(64)
    stored = quantize(matrix.numpy(), GGMLQuantizationType.Q4_0)
    converted = naive_q4_0({"matrix": matrix, "norm": norm})
    assert torch.equal(converted["norm"], norm)
    assert (converted["matrix"].numpy() == dequantize(stored, GGMLQuantizationType.Q4_0)).all()
