"""The tokenizer as data: vocabulary, merges, special tokens and chat template, from plain JSON.

Neither ``tokenizers`` nor ``transformers`` is imported, and the chat template is text that is copied,
never run. Layout of ``tokenizer.json``: https://huggingface.co/docs/tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from converter.checkpoint.byte_level import decoded
from converter.checkpoint.documents import TOKENIZER_BYTES, Documents
from converter.checkpoint.special_tokens import EOS_ID
from converter.checkpoint.tokenizer_pipeline import SPACE, Step, Vocabulary, further_steps, is_byte_level
from converter.errors import CheckpointError
from converter.filenames import (
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_JSON,
    GENERATION_CONFIG,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
)
from converter.system.untrusted import Settings, kind, shown

#: Longest token in characters; some work on a vocabulary grows with the square of it.
_LONGEST_TOKEN: Final = 1024
_TEMPLATE_BYTES: Final = 4 << 20
_LARGEST_VOCABULARY: Final = 1 << 21
#: Gemma 4 has half as many.
_MOST_MERGES: Final = 1 << 20
_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")
_NAMES: Final = ("bos", "eos", "pad", "unk", "mask")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is cut out of the text before merging."""

    content: str
    #: Not shown to a user.
    special: bool


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A BPE tokenizer, by bytes or with fallback to them."""

    #: Indexed by id and as long as the model's vocabulary. Ids that name no token hold a filler.
    tokens: tuple[str, ...]
    #: In order of priority.
    merges: tuple[tuple[str, str], ...]
    added: Mapping[int, AddedToken]
    #: The ids that name no token.
    fillers: frozenset[int]
    #: Added tokens whose ids the model has no embedding for.
    beyond: Mapping[int, AddedToken]
    #: Characters without a token become tokens of bytes, ``<0x00>`` to ``<0xFF>``.
    byte_fallback: bool
    #: Tokens are of bytes, each written as a character (``byte_level``).
    byte_level: bool
    kind: str
    #: ``bos`` to ``mask`` are ids or ``None``.
    bos: int | None
    eos: int | None
    pad: int | None
    unk: int | None
    mask: int | None
    #: All ids that end a generated text.
    end_ids: tuple[int, ...]
    chat_template: str | None
    #: Encoding begins with ``bos``.
    add_bos: bool
    #: A space is put before the text.
    space_prefix: bool
    #: What ``tokenizer.json`` does to text and tokens that not every runtime does.
    steps: tuple[Step, ...]
    #: transformers' class for it, if the configuration names one. Some make a pipeline of their own and take
    #: the tokens alone from ``tokenizer.json``.
    class_name: str | None
    #: Those that were read.
    files: tuple[Path, ...]

    def bytes_of(self, id: int) -> bytes:
        """The text of a token, in UTF-8; not always whole characters."""
        token = self.tokens[id]
        if self.byte_level:
            return token.encode("utf-8") if id in self.added else decoded(token)
        if _BYTE.fullmatch(token):
            return bytes([int(token[3:5], 16)])
        return token.replace(SPACE, " ").encode("utf-8")


def read_tokenizer(documents: Documents, vocabulary: int | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint.

    ``vocabulary`` is the number of the model's token embeddings; without it the largest id decides.
    Raises ``CheckpointError`` for files that are missing, damaged or of another kind than BPE.
    """
    where = documents.where(TOKENIZER)
    if TOKENIZER not in documents:
        raise CheckpointError(f"{where}: is missing; the vocabulary is read from it")
    document = documents.settings(TOKENIZER, TOKENIZER_BYTES)
    model = _model(document)
    config, names, generation = (
        documents.optional(name) for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS, GENERATION_CONFIG)
    )
    ids = _vocabulary(model)
    added = {**_config_added(config), **_added(document)}
    tokens, fillers, beyond = _by_id(where, ids, added, vocabulary)
    by_content = {content: id for id, content in enumerate(tokens) if id not in fillers}
    special = {name: _special(name, model, config, names, by_content) for name in _NAMES}
    merges, bos = _merges(model, ids), special["bos"]
    contents = frozenset(token.content for token in added.values())
    found = Vocabulary(ids, merges, contents, None if bos is None else tokens[bos])
    return Tokenizer(
        tokens=tokens,
        merges=merges,
        added={id: token for id, token in sorted(added.items()) if id < len(tokens)},
        fillers=fillers,
        beyond=beyond,
        byte_fallback=model.flag("byte_fallback", False),
        byte_level=is_byte_level(document),
        kind="BPE",
        **special,
        end_ids=_end_ids(generation, special["eos"], len(tokens)),
        chat_template=_chat_template(documents, config),
        add_bos=_adds_bos(document, config, bos, tokens),
        space_prefix=_prefixes_space(document),
        steps=further_steps(document, config, found),
        class_name=_class_name(config),
        files=tuple(documents.path(name) for name in _files(documents) if name in documents),
    )


def _model(document: Settings) -> Settings:
    model = document.section("model")
    if model is None:
        raise document.error("model", "is missing")
    # files from before the field existed have none; their merges tell
    name = model.text("type", "BPE" if "merges" in model.values else "")
    if name != "BPE":
        raise model.error("type", f"is {shown(name)}; only BPE tokenizers are read")
    return model


def _parts(document: Settings, key: str) -> Iterator[Settings]:
    """The steps of a normalizer, pre-tokenizer or post-processor, which may be a sequence."""
    part = document.section(key)
    if part is None:
        return
    yield part
    for name in ("normalizers", "pretokenizers", "processors"):
        steps = part.values.get(name)
        if isinstance(steps, list):
            for index, step in enumerate(steps):
                if isinstance(step, dict):
                    yield Settings(step, f"{part.where}.{name}[{index}]")


def _vocabulary(model: Settings) -> dict[str, int]:
    """Token to id, every id once."""
    vocabulary = model.section("vocab")
    if vocabulary is None:
        raise model.error("vocab", "is missing")
    ids = vocabulary.values
    if {type(id) for id in ids.values()} <= {int} and len(set(ids.values())) == len(ids):
        found = cast(dict[str, int], ids)
        if not found or (min(found.values()) >= 0 and max(found.values()) < _LARGEST_VOCABULARY):
            return found
    raise _wrong_id(vocabulary)


def _wrong_id(vocabulary: Settings) -> CheckpointError:
    """What is wrong with a vocabulary's ids: apart from the check, which has to be fast."""
    seen: dict[object, str] = {}
    for token, id in vocabulary.values.items():
        if type(id) is not int or not 0 <= id < _LARGEST_VOCABULARY:
            return vocabulary.error(
                shown(token), f"has id {shown(id)}, expected 0..{_LARGEST_VOCABULARY - 1}"
            )
        if id in seen:
            return vocabulary.error(shown(token), f"has id {id}, which {shown(seen[id])} has as well")
        seen[id] = token
    raise AssertionError("the vocabulary's ids are in order")


def _added(document: Settings) -> dict[int, AddedToken]:
    listed = document.values.get("added_tokens")
    if listed is None:
        return {}
    if not isinstance(listed, list):
        raise document.error("added_tokens", f"is {kind(listed)}, expected a list")
    added: dict[int, AddedToken] = {}
    for index, entry in enumerate(listed):
        where = f"{document.where}: added_tokens[{index}]"
        if not isinstance(entry, dict):
            raise CheckpointError(f"{where} is {kind(entry)}, expected an object")
        settings = Settings(entry, where)
        id = settings.integer("id", low=0, high=_LARGEST_VOCABULARY - 1)
        if id in added:
            raise settings.error("id", f"is {id}, which an earlier added token has as well")
        added[id] = _added_token(settings)
    return added


def _config_added(config: Settings) -> dict[int, AddedToken]:
    """Added tokens of ``tokenizer_config.json``, which ``tokenizer.json`` overrides."""
    decoder = config.section("added_tokens_decoder") or Settings({}, config.where)
    added: dict[int, AddedToken] = {}
    for key in decoder.values:
        entry = decoder.section(key)
        if not (key.isascii() and key.isdigit() and len(key) <= 9) or entry is None:
            raise decoder.error(shown(key), "is not an id with an added token")
        added[int(key)] = _added_token(entry)
    return added


def _added_token(settings: Settings) -> AddedToken:
    content = settings.text("content", "")
    if not content:
        raise settings.error("content", "is missing or empty")
    return AddedToken(content, settings.flag("special", False))


def _by_id(
    where: str, ids: Mapping[str, int], added: Mapping[int, AddedToken], vocabulary: int | None
) -> tuple[tuple[str, ...], frozenset[int], dict[int, AddedToken]]:
    """Tokens by id up to ``vocabulary``, the ids of fillers, and the added tokens beyond."""
    contents = {id: token for token, id in ids.items()}
    for id, token in added.items():
        if contents.setdefault(id, token.content) != token.content:
            raise CheckpointError(
                f"{where}: id {id} is both {shown(contents[id])} and added token {shown(token.content)}"
            )
        if ids.get(token.content, id) != id:
            raise CheckpointError(
                f"{where}: added token {shown(token.content)} has ids {id} and {ids[token.content]}"
            )
    if not contents:
        raise CheckpointError(f"{where}: has no tokens")
    size = vocabulary or max(contents) + 1
    for id, content in contents.items():
        if id >= size and id not in added:
            raise CheckpointError(
                f"{where}: token {shown(content)} has id {id}, but the model has {size} embeddings"
            )
    longest = max(contents.values(), key=len)
    if len(longest) > _LONGEST_TOKEN:
        raise CheckpointError(
            f"{where}: token {shown(longest)} has {len(longest)} characters, more than {_LONGEST_TOKEN}"
        )
    _check_encodable("".join(contents.values()), where)
    taken = set(contents.values())
    fillers = frozenset(id for id in range(size) if id not in contents)
    tokens = tuple(contents[id] if id not in fillers else _filler(id, taken) for id in range(size))
    return tokens, fillers, {id: added[id] for id in sorted(added) if id >= size}


def _check_encodable(text: str, where: str) -> None:
    """Refuse half a surrogate pair, which JSON can spell but no file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        part = text[max(0, error.start - 8) : error.start + 8]
        raise CheckpointError(f"{where}: {shown(part)} is not Unicode text") from error


def _filler(id: int, taken: set[str]) -> str:
    """A name for an id without a token, in the form that llama.cpp's own converter uses."""
    name = f"[PAD{id}]"
    while name in taken:
        name = f"[{name}]"
    return name


def _merges(model: Settings, ids: Mapping[str, int]) -> tuple[tuple[str, str], ...]:
    """Merges from either form: ``["a", "b"]`` or the older ``"a b"``."""
    listed = model.values.get("merges")
    if not isinstance(listed, list):
        raise model.error("merges", f"is {kind(listed)}, expected a list")
    if len(listed) > _MOST_MERGES:
        raise model.error("merges", f"has {len(listed)} merges, more than the {_MOST_MERGES} that are read")
    # the vocabulary's own strings: those of half a million merges are as large as the file
    tokens = {token: token for token in ids}
    merges: list[tuple[str, str]] = []
    for index, entry in enumerate(listed):
        pair = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(pair, list) or len(pair) != 2:
            raise model.error(f"merges[{index}]", f"is {shown(entry)}, expected two tokens")
        first, second = pair
        if not isinstance(first, str) or not isinstance(second, str):
            raise model.error(f"merges[{index}]", f"is {shown(entry)}, expected two tokens")
        if first not in ids or second not in ids or first + second not in ids:
            raise model.error(f"merges[{index}]", f"is {shown(entry)}, whose parts or result are no tokens")
        merges.append((tokens[first], tokens[second]))
    return tuple(merges)


def _special(
    name: str, model: Settings, config: Settings, names: Settings, ids: Mapping[str, int]
) -> int | None:
    """Id of the begin, end, padding, unknown or mask token, by its name in the configuration files. All but
    the last, which no text model needs, are found by their usual text too."""
    key = f"{name}_token"
    for settings in (config, names):
        value = settings.values.get(key)
        content = value.get("content") if isinstance(value, dict) else value
        if content is None:
            continue
        if not isinstance(content, str) or content not in ids:
            if name == "mask":
                continue
            raise settings.error(key, f"is {shown(content)}, which is no token")
        return ids[content]
    unknown = model.values.get(key) if name == "unk" else None
    if isinstance(unknown, str) and unknown in ids:
        return ids[unknown]
    return None if name == "mask" else ids.get(f"<{name}>")


def _end_ids(generation: Settings, eos: int | None, size: int) -> tuple[int, ...]:
    """Ids that end a generated text, from ``generation_config.json``, or ``eos`` alone."""
    value = generation.values.get(EOS_ID)
    listed = value if isinstance(value, list) else [] if value is None else [value]
    for id in listed:
        if type(id) is not int or not 0 <= id < size:
            raise generation.error(EOS_ID, f"is {shown(value)}, expected ids below {size}")
    return tuple(dict.fromkeys(listed)) or (() if eos is None else (eos,))


def _class_name(config: Settings) -> str | None:
    value = config.values.get("tokenizer_class")
    return value if isinstance(value, str) else None


def _files(documents: Documents) -> tuple[str, ...]:
    """The files that are read, where they are there: of the template's two the one that counts."""
    template = CHAT_TEMPLATE if CHAT_TEMPLATE in documents else CHAT_TEMPLATE_JSON
    return (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, GENERATION_CONFIG, template)


def _chat_template(documents: Documents, config: Settings) -> str | None:
    """The chat template, from a file of its own or from ``tokenizer_config.json``."""
    if CHAT_TEMPLATE in documents:
        return documents.text(CHAT_TEMPLATE, _TEMPLATE_BYTES)
    own = documents.optional(CHAT_TEMPLATE_JSON)
    for settings in (own, config):
        value = settings.values.get("chat_template")
        if isinstance(value, list):  # several named ones
            named = [one for one in value if isinstance(one, dict) and one.get("name") == "default"]
            value = named[0].get("template") if named else None
        if value is None:
            continue
        if not isinstance(value, str):
            raise settings.error("chat_template", f"is {kind(value)}, expected a string")
        _check_encodable(value, settings.where)
        return value
    return None


def _adds_bos(document: Settings, config: Settings, bos: int | None, tokens: tuple[str, ...]) -> bool:
    """Whether encoding begins with ``bos``: as the configuration says, else as the post-processor does."""
    if config.values.get("add_bos_token") is not None:
        return config.flag("add_bos_token", True)
    if bos is None:
        return False
    for part in _parts(document, "post_processor"):
        single = part.values.get("single")
        first = single[0] if isinstance(single, list) and single else None
        token = first.get("SpecialToken") if isinstance(first, dict) else None
        if isinstance(token, dict) and token.get("id") == tokens[bos]:
            return True
    return False


def _prefixes_space(document: Settings) -> bool:
    """Whether a space is put before the text, by a normalizer or a pre-tokenizer."""
    if any(part.values.get("type") == "Prepend" for part in _parts(document, "normalizer")):
        return True
    for part in _parts(document, "pre_tokenizer"):
        if part.values.get("type") == "Metaspace":
            scheme = part.values.get("prepend_scheme")
            return scheme != "never" if scheme is not None else part.flag("add_prefix_space", True)
    return False
