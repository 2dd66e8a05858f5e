"""The tokenization pipeline of ``tokenizer.json``: what it does beside what every one of its kind does.

There are two kinds. Byte-fallback BPE cuts added tokens out of the text, turns spaces into U+2581, merges,
and puts at most the begin token in front. Its decoder undoes that. Byte-level BPE merges the bytes of UTF-8,
each written as a character, and leaves spaces as they are. That it does so is a step of its own.

Runtimes that have a pipeline built in give other ids or text where a file asks for more. Layout and meaning
of the components are those of the library ``tokenizers``
(https://huggingface.co/docs/tokenizers/pipeline). Components of byte-fallback BPE that change nothing with
the vocabulary at hand are not told.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Final

from converter.checkpoint.byte_level import BYTES as ALPHABET
from converter.filenames import TOKENIZER, TOKENIZER_CONFIG
from converter.system.untrusted import Settings, shown

SPACE: Final = "\u2581"
#: Kinds of steps, as far as runtimes differ in them.
BYTE_LEVEL: Final = "byte level"
NORMALIZER: Final = "normalizer"
SPACE_PREFIX: Final = "space prefix"
PRE_TOKENIZER: Final = "pre-tokenizer"
POST_PROCESSOR: Final = "post-processor"
DECODER: Final = "decoder"
MODEL: Final = "model"
BYTES: Final = "tokens of bytes"
DROPOUT: Final = "dropout"
ADDED_TOKEN: Final = "added token"
RIGHT_STRIP: Final = "added token that takes the space behind it"
CONFIGURED: Final = "added token with flags of the configuration"
LENGTH: Final = "length"

#: What runtimes with the library ``tokenizers`` in them do as transformers does. That leaves out limits to
#: length that a file sets; tokens behind a text are added on demand; dropout is chance.
OF_THE_LIBRARY: Final = frozenset(
    {NORMALIZER, SPACE_PREFIX, PRE_TOKENIZER, DECODER, MODEL, BYTES, ADDED_TOKEN, RIGHT_STRIP}
)
#: What of it is left where transformers makes the pipeline itself.
OF_THE_TOKENS: Final = frozenset({BYTES, ADDED_TOKEN, RIGHT_STRIP})

_STEPS: Final = {NORMALIZER: "normalizers", PRE_TOKENIZER: "pretokenizers", POST_PROCESSOR: "processors"}
_STEPS_OF_DECODER: Final = "decoders"
#: Bytes that occur in UTF-8 beside ASCII.
_BYTES_OF_UTF8: Final = (*range(0x80, 0xC0), *range(0xC2, 0xF5))
_FLAGS: Final = ("lstrip", "rstrip", "single_word")
_NAME: Final = re.compile(r"[A-Za-z]{1,40}")
_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")
_DECODERS: Final = ("Replace", "ByteFallback", "Fuse")
#: The name of a pre-tokenizer, a decoder and a post-processor.
_BYTE_LEVEL: Final = "ByteLevel"
#: Most components of a kind; each is held against the whole vocabulary.
_MOST: Final = 64


@dataclass(frozen=True, slots=True)
class Step:
    """A component that not every runtime has."""

    kind: str
    #: Where it stands in the ``file``, as a message names it.
    where: str
    #: What it is or does, as a message names it.
    what: str
    file: str = TOKENIZER
    #: The component itself, of normalizers and pre-tokenizers.
    component: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What decides whether a component changes anything."""

    #: Tokens of the model by their texts.
    ids: Mapping[str, int]
    #: The pairs that are merged.
    merges: Collection[tuple[str, str]]
    #: Contents of added tokens.
    added: Collection[str]
    #: The begin token's text.
    bos: str | None

    def merged(self) -> Iterator[str]:
        """Texts that come about by merging and are not cut out before."""
        return (left + right for left, right in self.merges if left + right not in self.added)


def is_byte_level(document: Settings) -> bool:
    """Whether a ``tokenizer.json`` merges bytes, each written as a character."""
    parts = _flat(document, "pre_tokenizer", _STEPS[PRE_TOKENIZER])
    return any(_type(part) == _BYTE_LEVEL for _, part in parts)


def further_steps(document: Settings, config: Settings, vocabulary: Vocabulary) -> tuple[Step, ...]:
    """Every step of ``tokenizer.json`` (``document``, its model a BPE) that not every one of its kind has.
    Among them is where ``tokenizer_config.json`` (``config``) has other flags for added tokens, which
    transformers follows. Raises ``CheckpointError`` for components of the wrong type."""
    byte_level = is_byte_level(document)
    of_kind = _byte_level if byte_level else _byte_fallback
    return (
        *of_kind(document, vocabulary),
        *_model(document, vocabulary),
        *_added_tokens(document, byte_level),
        *_configured(document, config),
        *_post_processor(document, vocabulary.bos),
        *(_decoder_of_bytes(document) if byte_level else _decoder(document)),
        *(
            Step(LENGTH, key, f"set ({shown(document.values[key])})")
            for key in ("truncation", "padding")
            if document.values.get(key) is not None
        ),
    )


def _byte_fallback(document: Settings, vocabulary: Vocabulary) -> Iterator[Step]:
    """The steps before the model, and what the model lacks of the kind."""
    yield from _normalizer(document)
    yield from _pre_tokenizer(document, vocabulary)
    model = document.section("model") or Settings({}, document.where)
    if not model.flag("byte_fallback", False):
        yield Step(MODEL, "model.byte_fallback", "false")
        return
    plain = (code for code in range(0x80) if chr(code) not in vocabulary.ids and chr(code) != " ")
    yield from _lacking(vocabulary, [f"<0x{code:02X}>" for code in (*plain, *_BYTES_OF_UTF8)])


def _byte_level(document: Settings, vocabulary: Vocabulary) -> Iterator[Step]:
    """The same for byte-level BPE, of which every normalizer and pre-tokenizer is told."""
    for where, part in _flat(document, "pre_tokenizer", _STEPS[PRE_TOKENIZER]):
        kind = _type(part)
        if kind != _BYTE_LEVEL:
            what = _split(part)[1] if kind == "Split" else kind
            yield Step(PRE_TOKENIZER, where, what, component=part.values)
            continue
        yield Step(BYTE_LEVEL, where, _BYTE_LEVEL)
        if part.flag("use_regex", True):
            what = "a ByteLevel that cuts the text by an expression of its own"
            yield Step(PRE_TOKENIZER, where, what, component=part.values)
        if part.flag("add_prefix_space", True):
            yield Step(SPACE_PREFIX, where, "a ByteLevel that puts a space before the text")
    for where, part in _flat(document, "normalizer", _STEPS[NORMALIZER]):
        yield Step(NORMALIZER, where, _type(part), component=part.values)
    model = document.section("model") or Settings({}, document.where)
    if model.flag("byte_fallback", False):
        yield Step(MODEL, "model.byte_fallback", "true")
    yield from _lacking(vocabulary, ALPHABET)


def _lacking(vocabulary: Vocabulary, needed: Iterable[str]) -> Iterator[Step]:
    """The tokens that a byte of text may need and that there are not."""
    if lacking := [text for text in needed if text not in vocabulary.ids]:
        yield Step(BYTES, "model.vocab", f"without {len(lacking)} tokens of bytes, such as {lacking[0]}")


def _flat(document: Settings, key: str, steps: str) -> Iterator[tuple[str, Settings]]:
    """The components under a key one by one, sequences taken apart, each with its place."""
    part = document.section(key)
    waiting = [] if part is None else [(key, part)]
    count = 0
    while waiting:
        where, part = waiting.pop()
        if (count := count + 1) > _MOST:
            raise document.error(key, f"has more than {_MOST} steps")
        listed = part.values.get(steps)
        if part.values.get("type") != "Sequence" or not isinstance(listed, list):
            yield where, part
            continue
        inner = [(f"{where}.{steps}[{index}]", one) for index, one in enumerate(listed)]
        waiting += [
            (place, Settings(one if isinstance(one, dict) else {"type": one}, f"{document.where}: {place}"))
            for place, one in reversed(inner)
        ]


def _type(part: Settings) -> str:
    kind = part.values.get("type")
    return kind if isinstance(kind, str) and _NAME.fullmatch(kind) else f"of the type {shown(kind)}"


def _pattern(part: Settings) -> tuple[str | None, str | None]:
    """The text and the regular expression of a pattern, either ``None``."""
    pattern = part.values.get("pattern")
    values = pattern if isinstance(pattern, dict) else {}
    text, expression = values.get("String"), values.get("Regex")
    if expression == " ":
        return " ", None
    return text if isinstance(text, str) else None, expression if isinstance(expression, str) else None


def _normalizer(document: Settings) -> Iterator[Step]:
    replaced = any(_is_metaspace(part) for _, part in _flat(document, "pre_tokenizer", _STEPS[PRE_TOKENIZER]))
    spaces = True
    for where, part in _flat(document, "normalizer", _STEPS[NORMALIZER]):
        kind, text = _type(part), _pattern(part)[0]
        if kind == "Replace" and text is not None:
            content = part.values.get("content")
            if text == content or (" " in text and not spaces):
                continue
            if text == " " and content == SPACE:
                replaced, spaces = True, False
                continue
            yield Step(NORMALIZER, where, f"a Replace of {shown(text)} by {shown(content)}")
        elif kind == "Prepend" and part.values.get("prepend") in ("", SPACE):
            if part.values["prepend"]:
                yield Step(SPACE_PREFIX, where, "a Prepend that puts a space before the text")
        elif kind == "Strip" and not (part.flag("strip_left", True) or part.flag("strip_right", True)):
            continue
        else:
            yield Step(NORMALIZER, where, kind)
    if not replaced:
        yield Step(NORMALIZER, "normalizer", "without the step that turns spaces into U+2581")


def _is_metaspace(part: Settings) -> bool:
    """Whether a pre-tokenizer turns spaces into U+2581, as a normalizer may."""
    return _type(part) == "Metaspace" and part.values.get("replacement", SPACE) == SPACE


def _pre_tokenizer(document: Settings, vocabulary: Vocabulary) -> Iterator[Step]:
    for where, part in _flat(document, "pre_tokenizer", _STEPS[PRE_TOKENIZER]):
        is_cut, what = _cutting(part)
        if is_cut is None or any(len(text) > 1 and is_cut(text) for text in vocabulary.merged()):
            yield Step(PRE_TOKENIZER, where, what)


def _cutting(part: Settings) -> tuple[Callable[[str], bool] | None, str]:
    """Whether a pre-tokenizer may cut a token in two, told by the token's text, and what it is. ``None`` for
    one that is not known here, or takes something out of the text."""
    kind = _type(part)
    if kind == "Split":
        return _split(part)
    if kind == "Digits":
        alone = part.flag("individual_digits", False)
        return partial(_is_mixed, _is_number, 1 if alone else 2), kind
    if kind == "Punctuation" and part.values.get("behavior") != "Removed":
        return partial(_is_mixed, _is_punctuation, 1), kind
    if kind == "CharDelimiterSplit" and part.values.get("delimiter") == " ":
        return _never, kind
    if _is_metaspace(part):
        scheme = part.values.get("prepend_scheme")
        if scheme != "never" and (scheme is not None or part.flag("add_prefix_space", True)):
            return None, "a Metaspace that puts a space before the text"
        return (_has_inner_space if part.flag("split", True) else _never), kind
    return None, kind


def _split(part: Settings) -> tuple[Callable[[str], bool] | None, str]:
    text, expression = _pattern(part)
    what = f"a Split at {shown(expression if text is None else text)}"
    if part.flag("invert", False):
        return None, f"{what}, inverted"
    if text is not None and " " in text:  # there are none any more
        return _never, what
    if part.values.get("behavior") == "Removed":
        return None, f"{what}, which takes it out"
    if text:
        return partial(_has_any, frozenset(text)), what
    if expression in (r"\n+", r"[\n]+"):
        return partial(_is_mixed, "\n".__eq__, 2), what
    if expression in (r"\d", r"\p{N}", r"\p{Nd}"):
        return partial(_is_mixed, _is_number, 1), what
    return None, what


def _never(text: str) -> bool:
    return False


def _has_any(letters: frozenset[str], text: str) -> bool:
    return not letters.isdisjoint(text)


def _has_inner_space(text: str) -> bool:
    return SPACE in text[1:]


def _is_mixed(is_one: Callable[[str], bool], kinds: int, text: str) -> bool:
    """Whether a text has characters of a class, and others too if ``kinds`` is 2."""
    found = set(map(is_one, text))
    return True in found and len(found) >= kinds


def _is_number(letter: str) -> bool:
    return unicodedata.category(letter).startswith("N")


def _is_punctuation(letter: str) -> bool:
    category = unicodedata.category(letter)
    return category.startswith("P") or (letter.isascii() and category.startswith("S"))


def _model(document: Settings, vocabulary: Vocabulary) -> Iterator[Step]:
    model = document.section("model") or Settings({}, document.where)
    if dropout := model.optional_number("dropout") if model.values.get("dropout") else None:
        yield Step(DROPOUT, "model.dropout", f"{dropout:g}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if text := model.values.get(key):
            yield Step(MODEL, f"model.{key}", shown(text))
    if model.values.get("ignore_merges"):
        ranks = {pair: rank for rank, pair in reversed(list(enumerate(vocabulary.merges)))}
        apart = (text for text in vocabulary.ids if text not in vocabulary.added)
        text = next((text for text in apart if not _is_reached(text, ranks)), None)
        if text is not None:
            yield Step(MODEL, "model.ignore_merges", f"true, and {shown(text)} is no result of merges")


def _is_reached(text: str, ranks: Mapping[tuple[str, str], int]) -> bool:
    """Whether the merges, by rank, make a token of its characters."""
    if _BYTE.fullmatch(text):
        return True
    parts = list(text)
    while len(parts) > 1:
        last = len(ranks)
        rank, place = min((ranks.get(pair, last), place) for place, pair in enumerate(pairwise(parts)))
        if rank == last:
            return False
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return True


def _added_tokens(document: Settings, byte_level: bool) -> Iterator[Step]:
    normalized = byte_level and document.section("normalizer") is not None
    for index, values in enumerate(_listed(document)):
        content = str(values.get("content", ""))
        for key in _FLAGS:
            if values.get(key):
                kind = RIGHT_STRIP if key == "rstrip" else ADDED_TOKEN
                yield Step(kind, f"added_tokens[{index}]", f"{shown(content)} with {key}")
        if values.get("normalized") and normalized:
            what = f"{shown(content)}, which is looked for in the normalized text"
            yield Step(ADDED_TOKEN, f"added_tokens[{index}]", what)
        elif values.get("normalized") and not byte_level and (SPACE in content or " " in content):
            what = f"{shown(content)}, which is looked for among spaces that became U+2581"
            yield Step(ADDED_TOKEN, f"added_tokens[{index}]", what)


def _listed(document: Settings) -> list[Mapping[str, object]]:
    listed = document.values.get("added_tokens")
    return [one if isinstance(one, dict) else {} for one in (listed if isinstance(listed, list) else ())]


def _configured(document: Settings, config: Settings) -> Iterator[Step]:
    own = {str(values.get("id")): values for values in _listed(document)}
    decoder = config.values.get("added_tokens_decoder")
    for id, values in decoder.items() if isinstance(decoder, dict) else ():
        for key in _FLAGS if isinstance(values, dict) else ():
            wanted = bool(values.get(key))
            if wanted != bool(own.get(id, {}).get(key)):
                what = f"{shown(values.get('content'))} {'with' if wanted else 'without'} {key}"
                where = f"added_tokens_decoder.{shown(id)[1:-1]}"
                yield Step(CONFIGURED, where, what, TOKENIZER_CONFIG)


def _post_processor(document: Settings, bos: str | None) -> Iterator[Step]:
    before = 0
    for where, part in _flat(document, "post_processor", _STEPS[POST_PROCESSOR]):
        kind = _type(part)
        if kind == _BYTE_LEVEL:  # about offsets alone
            continue
        if kind != "TemplateProcessing":
            yield Step(POST_PROCESSOR, where, f"a {kind}, which adds tokens")
            continue
        for index, token in enumerate(_template_tokens(part)):
            if token is not None and (index or token != bos or before):
                yield Step(POST_PROCESSOR, where, f"a TemplateProcessing that adds {shown(token)}")
        before += 1


def _template_tokens(part: Settings) -> Iterable[str | None]:
    """The items of a template for one text: special tokens, and ``None`` for the text."""
    single = part.values.get("single")
    for item in single if isinstance(single, list) else ():
        token = item.get("SpecialToken") if isinstance(item, dict) else None
        yield str(token.get("id")) if isinstance(token, dict) else None


def _decoder_of_bytes(document: Settings) -> Iterator[Step]:
    """Every decoder but the one that turns characters into bytes."""
    found = list(_flat(document, "decoder", _STEPS_OF_DECODER))
    if not any(_type(part) == _BYTE_LEVEL for _, part in found):
        yield Step(DECODER, "decoder", f"without {_BYTE_LEVEL}")
    for where, part in found:
        if (kind := _type(part)) != _BYTE_LEVEL:
            yield Step(DECODER, where, kind)


def _decoder(document: Settings) -> Iterator[Step]:
    """Every decoder but that of byte-fallback BPE, which turns U+2581 into spaces, byte tokens into bytes,
    and joins them."""
    found = list(_flat(document, "decoder", _STEPS_OF_DECODER))
    if not found:
        yield Step(DECODER, "decoder", "missing")
    kinds = [_type(part) for _, part in found]
    for (where, part), kind in zip(found, kinds, strict=True):
        known = kind in _DECODERS
        if kind == "Replace":
            known = (_pattern(part)[0], part.values.get("content")) == (SPACE, " ")
        if kind == "Strip" and [part.values.get(key) for key in ("content", "start", "stop")] == [" ", 1, 0]:
            yield Step(SPACE_PREFIX, where, "a Strip of a leading space")
        elif not known:
            yield Step(DECODER, where, kind)
    for name in ("Replace", "ByteFallback"):
        if found and name not in kinds:
            yield Step(DECODER, "decoder", f"without {name}")
