"""Components of ``tokenizer.json`` beyond Gemma's, and the targets whose runtimes do as it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]
Edit = Callable[[Document], object]

ALL = frozenset({"gguf", "onnx", "litert"})
#: LiteRT-LM has the library ``tokenizers`` in it.
LIBRARY = frozenset({"litert"})
NONE: frozenset[str] = frozenset()

SPACE = "\u2581"
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
CUT_AT_SPACES = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
_TEXT = {"Sequence": {"id": "A", "type_id": 0}}
_TOKENS = {"<bos>": 2, "<eos>": 1}


@dataclass(frozen=True)
class Component:
    """An ``edit`` of Gemma's ``tokenizer.json``, the targets that ``take`` the result, and what the refusal
    of the others ``names``."""

    edit: Edit
    take: frozenset[str]
    names: str = ""


def _set(key: str, value: object) -> Edit:
    return lambda document: document.update({key: value})


def _model(**values: object) -> Edit:
    return lambda document: document["model"].update(values)


def _normalizers(*steps: object) -> Edit:
    return _set("normalizer", {"type": "Sequence", "normalizers": list(steps)})


def _split(pattern: object, behavior: str = "Isolated", invert: bool = False) -> Edit:
    step = {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}
    return _set("pre_tokenizer", step)


def _metaspace(scheme: str, split: bool) -> Edit:
    step = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split}
    return _set("pre_tokenizer", step)


def _template(*items: str | None) -> dict[str, Any]:
    single = [_TEXT if item is None else {"SpecialToken": {"id": item, "type_id": 0}} for item in items]
    special = {name: {"id": name, "ids": [id], "tokens": [name]} for name, id in _TOKENS.items()}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}


def _token(content: str, **flags: bool) -> Edit:
    """Flags of an added token, which becomes one if it is a mere piece."""

    def edit(document: Document) -> None:
        listed = document["added_tokens"]
        found = next((one for one in listed if one["content"] == content), None)
        if found is None:
            found = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
            found |= {"id": document["model"]["vocab"][content], "content": content}
            listed.append(found)
            listed.sort(key=lambda one: one["id"])
        found.update(flags)

    return edit


def _without_bytes(start: str) -> Edit:
    def edit(document: Document) -> None:
        vocabulary = document["model"]["vocab"]
        renamed = {f"~{id}" if token.startswith(start) else token: id for token, id in vocabulary.items()}
        document["model"]["vocab"] = renamed

    return edit


def _unreachable(ignore_merges: bool) -> Edit:
    """The last piece becomes one that no merge makes."""

    def edit(document: Document) -> None:
        model = document["model"]
        last = max(model["vocab"], key=model["vocab"].__getitem__)
        model["vocab"][UNREACHABLE] = model["vocab"].pop(last)
        model["merges"] = [pair for pair in model["merges"] if last not in (*pair, "".join(pair))]
        model["ignore_merges"] = ignore_merges

    return edit


UNREACHABLE = f"the{SPACE}other"

COMPONENTS: Mapping[str, Component] = {
    "as it is": Component(lambda document: None, ALL),
    # normalizers
    "spaces in a sequence": Component(_normalizers(SPACES), ALL),
    "spaces by an expression": Component(
        _normalizers({**SPACES, "pattern": {"Regex": " "}}, {**SPACES, "content": "x"}), ALL
    ),
    "nothing stripped": Component(
        _normalizers({"type": "Strip", "strip_left": False, "strip_right": False}, SPACES), ALL
    ),
    "no normalizer": Component(_set("normalizer", None), LIBRARY, "normalizer is without the step"),
    "lowercase": Component(_normalizers({"type": "Lowercase"}, SPACES), LIBRARY, "[0] is Lowercase"),
    "lowercase inside": Component(
        _normalizers({"type": "Sequence", "normalizers": [SPACES, {"type": "Lowercase"}]}),
        LIBRARY,
        "normalizer.normalizers[0].normalizers[1] is Lowercase",
    ),
    "nfc": Component(_normalizers({"type": "NFC"}, SPACES), LIBRARY, "[0] is NFC"),
    "nfkc": Component(_normalizers(SPACES, {"type": "NFKC"}), LIBRARY, "[1] is NFKC"),
    "nfd and accents": Component(
        _normalizers({"type": "NFD"}, {"type": "StripAccents"}, SPACES), LIBRARY, "is NFD (1 more like it)"
    ),
    "strip": Component(
        _normalizers({"type": "Strip", "strip_left": True, "strip_right": True}, SPACES), LIBRARY, "is Strip"
    ),
    "prepend": Component(
        _normalizers({"type": "Prepend", "prepend": SPACE}, SPACES), LIBRARY, "puts a space before the text"
    ),
    "another replacement": Component(
        _normalizers({"type": "Replace", "pattern": {"String": "`"}, "content": "'"}, SPACES),
        LIBRARY,
        "a Replace of '`' by \"'\"",
    ),
    "bytes": Component(_set("normalizer", {"type": "ByteLevel"}), LIBRARY, "normalizer is ByteLevel"),
    # pre-tokenizers
    "no pre-tokenizer": Component(_set("pre_tokenizer", None), ALL),
    "spaces cut in a sequence": Component(
        _set("pre_tokenizer", {"type": "Sequence", "pretokenizers": [CUT_AT_SPACES]}), ALL
    ),
    "digits, of which no token has two": Component(
        _set("pre_tokenizer", {"type": "Digits", "individual_digits": True}), ALL
    ),
    "digits by an expression": Component(_split({"Regex": r"\d"}), ALL),
    "runs of newlines": Component(_split({"Regex": r"\n+"}), ALL),
    "spaces turned twice": Component(_metaspace("never", False), ALL),
    "spaces cut": Component(_metaspace("never", True), LIBRARY, "is Metaspace"),
    "a space before the text": Component(
        _metaspace("always", False), LIBRARY, "puts a space before the text"
    ),
    "a letter cut": Component(_split({"String": "e"}), LIBRARY, "a Split at 'e'"),
    "an expression": Component(_split({"Regex": r"[a-m]+|\S"}), LIBRARY, "a Split at '[a-m]+"),
    "inverted": Component(_split({"String": " "}, "Isolated", True), LIBRARY, "inverted"),
    "whitespace": Component(_set("pre_tokenizer", {"type": "Whitespace"}), LIBRARY, "is Whitespace"),
    "punctuation": Component(
        _set("pre_tokenizer", {"type": "Punctuation", "behavior": "Isolated"}), LIBRARY, "is Punctuation"
    ),
    "scripts after spaces": Component(
        _set(
            "pre_tokenizer",
            {"type": "Sequence", "pretokenizers": [CUT_AT_SPACES, {"type": "UnicodeScripts"}]},
        ),
        LIBRARY,
        "pre_tokenizer.pretokenizers[1] is UnicodeScripts",
    ),
    "bytes as characters": Component(
        _set("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}),
        NONE,
        "pre_tokenizer is ByteLevel",
    ),
    # post-processors
    "no post-processor": Component(_set("post_processor", None), ALL),
    "an end": Component(_set("post_processor", _template("<bos>", None, "<eos>")), NONE, "that adds '<eos>'"),
    "an end inside": Component(
        _set("post_processor", {"type": "Sequence", "processors": [_template("<bos>", None, "<eos>")]}),
        NONE,
        "post_processor.processors[0] is a TemplateProcessing that adds '<eos>'",
    ),
    "two beginnings": Component(
        _set("post_processor", _template("<bos>", "<bos>", None)), NONE, "that adds '<bos>'"
    ),
    "Bert's": Component(
        _set("post_processor", {"type": "BertProcessing", "sep": ["<eos>", 1], "cls": ["<bos>", 2]}),
        NONE,
        "a BertProcessing",
    ),
    # added tokens
    "a normalized token": Component(_token("<|turn>", normalized=True), ALL),
    "a word": Component(_token("the"), ALL),
    "space before": Component(_token("<|turn>", lstrip=True), LIBRARY, "'<|turn>' with lstrip"),
    "space behind": Component(_token("<|turn>", rstrip=True), LIBRARY | {"onnx"}, "'<|turn>' with rstrip"),
    "a word alone": Component(_token("the", single_word=True), LIBRARY, "'the' with single_word"),
    "a word with its space": Component(
        _token(f"{SPACE}the", normalized=True), LIBRARY, f"'{SPACE}the', which is looked for"
    ),
    # the model
    "no dropout": Component(_model(dropout=0.0), ALL),
    "dropout": Component(_model(dropout=0.5), NONE, "model.dropout is 0.5"),
    "merges left aside": Component(_model(ignore_merges=True), ALL),
    "an unreachable token": Component(_unreachable(False), ALL),
    "an unreachable token reached": Component(_unreachable(True), LIBRARY, "is no result of merges"),
    "no bytes": Component(_model(byte_fallback=False), LIBRARY, "byte"),
    "bytes without tokens": Component(_without_bytes("<0xE"), LIBRARY, "without 16 tokens of bytes"),
    "bytes that no text has": Component(_without_bytes("<0xFF"), ALL),
    "unknown apart": Component(_model(fuse_unk=False, unk_token=None), ALL),
    "empty affixes": Component(_model(continuing_subword_prefix="", end_of_word_suffix=""), ALL),
    # decoders
    "no decoder": Component(_set("decoder", None), LIBRARY, "decoder is missing"),
    "decoded as bytes": Component(_set("decoder", {"type": "ByteLevel"}), LIBRARY, "decoder is ByteLevel"),
    # limits that transformers leaves out
    "truncation": Component(
        _set("truncation", {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}),
        frozenset({"gguf", "onnx"}),
        "truncation is set",
    ),
    "padding": Component(
        _set(
            "padding",
            {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None}
            | {"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"},
        ),
        frozenset({"gguf", "onnx"}),
        "padding is set",
    ),
}

TEXTS = (
    "Hello, World! The THE the other",
    "  leading and   double  spaces ",
    "naïve café e\u0301 \ufb01 \u2163 \uff21\uff22\uff23",
    "1234567890 007 3.14",
    "a\n\n\nb\r\nc \n d\t\te",
    "`quoted` \"x\" 'y'",
    "日本語の文章 한국어 \U0001f600\U0001f469\u200d\U0001f467",
    "<|turn>user\nHi <|turn> there<turn|> \n<|turn>  model\n",
    "the there  the",
    "the other",
    f"{SPACE} a {SPACE}{SPACE} b",
    "def f(x):\n    return x ** 2",
    "e" * 50,
)
