"""llama.cpp tokenises as the checkpoint's own tokenizer does, from the vocabulary in the GGUF."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import gguf
import pytest
from tokenizers import Tokenizer as ReferenceTokenizer

from converter.checkpoint.directory import Directory
from converter.checkpoint.documents import Documents
from converter.checkpoint.opened import open_description
from converter.checkpoint.tokenizer import AddedToken, read_tokenizer
from converter.errors import TargetError
from targets.gguf import target
from targets.gguf.gemma_tokenizer import VISIBLE, merge_scores, scores_suffice
from targets.gguf.vocabulary import token_types

HARD = [
    "",
    " ",
    "Hello, world!",
    "  leading and trailing  ",
    "a    b  c\td\t\te\n\n\n\nf\r\ng",
    "\n" * 40,
    "\t \n \t",
    "café naïve Ångström Straße",
    "e\u0301 o\u0308 combining, ﬁ ligature",
    "日本語の文章、中文字符\uff0c한국어 문장",
    "Привет мир — تجربة עברית ไทย हिन्दी",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 emoji",
    "\u2581 a literal \u2581\u2581 lower block",
    "zero\u200bwidth\u00a0nbsp\ufeff",
    "\U0001f9ff\U00010348 astral",
    "\x00\x01\x7f control",
    "<0x41> is no byte token <unused7> <",
    "<bos>text<eos> <|turn>user\nHi<turn|>\n<|turn>model\n",
    "<|channel>thought\nx<channel|><|tool_call>call:f{a:<|\"|>b<|\"|>}<tool_call|>",
    "<|turn><|turn>||turn|><turn|",
    "def f(x):\n    return x ** 2  # square\n\n\n",
    "1234567890 3.14159e-10 0xDEADBEEF",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ababababababab",
]  # fmt: skip


def hard_texts() -> list[str]:
    source = random.Random(3)
    alphabet = "abcdeorst  \n\t.,()=_-éü日😀▁<|>"
    return HARD + ["".join(source.choices(alphabet, k=60)) for _ in range(60)]


def expected(directory, texts):
    reference = ReferenceTokenizer.from_file(str(directory / "tokenizer.json"))
    return [reference.encode(text).ids for text in texts]


@pytest.mark.parametrize("variant", ["text", "gemma3"])
def test_token_ids_equal_the_checkpoint_s_tokenizer(variant, checkpoint_factory, convert, llama):
    directory = checkpoint_factory(variant)
    found = llama(convert(directory).artifact, hard_texts(), run=False)
    for text, theirs, ours in zip(hard_texts(), expected(directory, hard_texts()), found["ids"], strict=True):
        assert ours == theirs, repr(text)


def test_token_ids_equal_for_the_shipped_checkpoint(demo_checkpoint, convert, llama):
    found = llama(convert(demo_checkpoint).artifact, hard_texts(), run=False)
    assert found["ids"] == expected(demo_checkpoint, hard_texts())


def test_text_survives_tokenisation(checkpoint_factory, convert, llama):
    texts = [text for text in hard_texts() if text and "\u2581" not in text]
    assert llama(convert(checkpoint_factory("text")).artifact, texts, run=False)["pieces"] == texts


def sentencepiece_checkpoint(directory, source):
    """A Gemma 3 checkpoint whose merges come from scores, as in the published ones."""
    for file in source.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    ranks = {left + right: rank for rank, (left, right) in reversed(list(enumerate(model["merges"])))}
    merges = [
        (ranks[piece], len(piece[:cut]), [piece[:cut], piece[cut:]])
        for piece in ranks
        for cut in range(1, len(piece))
        if piece[:cut] in model["vocab"] and piece[cut:] in model["vocab"]
    ]
    model["merges"] = [pair for _, _, pair in sorted(merges)]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return directory


def test_gemma3_with_sentencepiece_merges_is_written_as_scores(checkpoint_factory, convert, llama, tmp_path):
    directory = sentencepiece_checkpoint(tmp_path, checkpoint_factory("gemma3"))
    found = llama(convert(directory).artifact, hard_texts(), run=False)
    assert found["metadata"]["tokenizer.ggml.model"] == "llama"
    assert found["ids"] == expected(directory, hard_texts())


def test_a_space_before_the_text_is_known_with_scores_alone(checkpoint_factory, convert, llama, tmp_path):
    directory = sentencepiece_checkpoint(tmp_path, checkpoint_factory("gemma3"))
    document = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    prefix = {"type": "Prepend", "prepend": "\u2581"}
    document["normalizer"] = {"type": "Sequence", "normalizers": [prefix, document["normalizer"]]}
    (directory / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    found = llama(convert(directory).artifact, hard_texts(), run=False)
    assert found["metadata"]["tokenizer.ggml.add_space_prefix"] == "true"
    assert found["ids"] == expected(directory, hard_texts())
    document["normalizer"] = {"type": "Sequence", "normalizers": [prefix, {"type": "NFC"}]}
    document["pre_tokenizer"] = {"type": "Metaspace", "prepend_scheme": "first", "split": False}
    (directory / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(TargetError, match=r"normalizers\[1\] is NFC \(1 more like it\)"):
        target.check_model(open_description(directory), {})


def test_scores_order_tokens_as_merges_do(checkpoint_factory):
    tokenizer = read_tokenizer(Documents(Directory(checkpoint_factory("text"))))
    scores = dict(zip(tokenizer.tokens, merge_scores(tokenizer), strict=True))
    made = list(dict.fromkeys(left + right for left, right in tokenizer.merges))
    assert sorted(made, key=lambda token: -scores[token]) == made
    assert scores["<bos>"] == -1000.0


def test_merges_that_scores_cannot_describe_are_noticed(checkpoint_factory):
    tokenizer = read_tokenizer(Documents(Directory(checkpoint_factory("text"))))
    few = replace(tokenizer, tokens=("a", "b", "c", "ab", "bc", "abc"), merges=(("a", "b"), ("b", "c")))
    assert not scores_suffice(replace(few, merges=(*few.merges, ("ab", "c"))))
    assert scores_suffice(replace(few, merges=(*few.merges, ("a", "bc"), ("ab", "c"))))
    assert not scores_suffice(replace(few, merges=(("a", "bc"), *few.merges, ("ab", "c"))))


def test_token_types(checkpoint_factory):
    tokenizer = read_tokenizer(Documents(Directory(checkpoint_factory("gemma3"))))
    first = tokenizer.tokens.index("the")
    tokenizer = replace(
        tokenizer,
        added={**tokenizer.added, first: AddedToken("the", special=False)},
        fillers=frozenset({first + 1}),
    )
    types = dict(zip(tokenizer.tokens, token_types(tokenizer, VISIBLE), strict=True))
    assert types["<bos>"] == types["<turn|>"] == gguf.TokenType.CONTROL
    assert {types[token] for token in VISIBLE} == {gguf.TokenType.USER_DEFINED}
    assert types["<0x0A>"] == gguf.TokenType.BYTE
    assert types["the"] == gguf.TokenType.USER_DEFINED
    assert types[tokenizer.tokens[first + 1]] == gguf.TokenType.UNUSED
    assert types["a"] == gguf.TokenType.NORMAL
