"""The tokenizer as data agrees with the tokenizers library, and hostile files get one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.checkpoint.directory import Directory
from converter.checkpoint.documents import Documents
from converter.checkpoint.tokenizer import AddedToken, Tokenizer, read_tokenizer
from converter.checkpoint.tokenizer_pipeline import (
    BYTE_LEVEL,
    BYTES,
    DECODER,
    NORMALIZER,
    PRE_TOKENIZER,
    SPACE_PREFIX,
)
from converter.errors import CheckpointError
from support.errors import refusal_of

Files = dict[str, Any]


def small() -> dict[str, Any]:
    """A tokenizer of eight tokens, one of them special."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "b", "ab", "aba"]
    return {
        "added_tokens": [{"id": 2, "content": "<bos>", "special": True}],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "model": {
            "type": "BPE",
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": [["a", "b"], ["ab", "a"]],
            "byte_fallback": True,
            "unk_token": "<unk>",
        },
    }


def read(directory: Path, tokenizer: object, vocabulary: int | None = None, **files: object) -> Tokenizer:
    """Read a tokenizer written there; ``files`` are others by stem, as JSON."""
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    for stem, content in files.items():
        (directory / f"{stem}.json").write_text(json.dumps(content))
    return read_tokenizer(Documents(Directory(directory)), vocabulary)


refusal = partial(refusal_of, CheckpointError, read)


def test_tokens_merges_and_special_tokens_are_those_of_the_library(demo_checkpoint: Path) -> None:
    tokenizer = read_tokenizer(Documents(Directory(demo_checkpoint)))
    library = tokenizers.Tokenizer.from_file(str(demo_checkpoint / "tokenizer.json"))
    assert len(tokenizer.tokens) == library.get_vocab_size()
    assert tokenizer.tokens == tuple(library.id_to_token(id) for id in range(len(tokenizer.tokens)))
    decoder = library.get_added_tokens_decoder()
    assert tokenizer.added == {id: AddedToken(one.content, one.special) for id, one in decoder.items()}
    model = json.loads((demo_checkpoint / "tokenizer.json").read_text())["model"]
    assert tokenizer.merges == tuple((first, second) for first, second in model["merges"])
    assert (tokenizer.kind, tokenizer.byte_fallback, tokenizer.space_prefix) == ("BPE", True, False)
    assert tokenizer.fillers == frozenset()


def of_bytes(**parts: object) -> tokenizers.Tokenizer:
    """A byte-level BPE of a few merges; ``parts`` of it are others."""
    pieces = tokenizers.pre_tokenizers
    found = tokenizers.Tokenizer(tokenizers.models.BPE())
    found.pre_tokenizer = pieces.ByteLevel(add_prefix_space=False, use_regex=False)
    found.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=pieces.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator(["the café of the 日本 "] * 9, trainer)
    for name, part in parts.items():
        setattr(found, name, part)
    return found


def read_of_bytes(directory: Path, **parts: object) -> Tokenizer:
    return read(directory, json.loads(of_bytes(**parts).to_str()))


def test_tokens_of_bytes_stand_for_the_librarys_bytes(tmp_path: Path) -> None:
    tokenizer, library = read_of_bytes(tmp_path), of_bytes()
    assert tokenizer.byte_level
    assert not tokenizer.byte_fallback
    assert [step.kind for step in tokenizer.steps] == [BYTE_LEVEL]
    text = "the café 日本 \n\x00\u00ad<|end|> é"
    found = b"".join(map(tokenizer.bytes_of, library.encode(text).ids))
    assert found.decode() == text
    known = {tokenizer.bytes_of(id) for id in range(1, 257)}
    assert known == {bytes([byte]) for byte in range(256)}


def test_tokens_with_fallback_stand_for_text_and_bytes(demo_checkpoint: Path) -> None:
    tokenizer = read_tokenizer(Documents(Directory(demo_checkpoint)))
    library = tokenizers.Tokenizer.from_file(str(demo_checkpoint / "tokenizer.json"))
    assert not tokenizer.byte_level
    text = "  The quick\n\U00010348 é<turn|>"
    ids = library.encode(text, add_special_tokens=False).ids
    assert b"".join(map(tokenizer.bytes_of, ids)).decode() == text


SPLIT = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\p{N}"), "isolated")
CUT_AND_BYTES = [SPLIT, tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


@pytest.mark.parametrize(
    ("parts", "kind", "what"),
    [
        ({"normalizer": tokenizers.normalizers.NFC()}, NORMALIZER, "NFC"),
        (
            {"pre_tokenizer": tokenizers.pre_tokenizers.Sequence(CUT_AND_BYTES)},
            PRE_TOKENIZER,
            r"a Split at '\\p{N}'",
        ),
        (
            {"pre_tokenizer": tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)},
            PRE_TOKENIZER,
            "a ByteLevel that cuts the text by an expression of its own",
        ),
        (
            {"pre_tokenizer": tokenizers.pre_tokenizers.ByteLevel(use_regex=False)},
            SPACE_PREFIX,
            "a ByteLevel that puts a space before the text",
        ),
        ({"decoder": None}, DECODER, "without ByteLevel"),
        ({"decoder": tokenizers.decoders.Fuse()}, DECODER, "without ByteLevel"),
    ],
)
def test_what_a_tokenizer_of_bytes_does_beside_is_a_step(
    parts: dict[str, object], kind: str, what: str, tmp_path: Path
) -> None:
    steps = read_of_bytes(tmp_path, **parts).steps
    assert (kind, what) in [(step.kind, step.what) for step in steps]


def test_bytes_without_a_token_are_a_step(tmp_path: Path) -> None:
    document = json.loads(of_bytes().to_str())
    vocabulary = document["model"]["vocab"]
    del vocabulary["\u0100"]
    (step,) = [step for step in read(tmp_path, document).steps if step.kind == BYTES]
    assert step.what == "without 1 tokens of bytes, such as \u0100"


def test_special_ids_and_template_are_those_of_transformers(demo_checkpoint: Path) -> None:
    tokenizer = read_tokenizer(Documents(Directory(demo_checkpoint)))
    reference = transformers.AutoTokenizer.from_pretrained(demo_checkpoint)
    assert tokenizer.bos == reference.bos_token_id
    assert tokenizer.eos == reference.eos_token_id
    assert tokenizer.pad == reference.pad_token_id
    assert tokenizer.unk == reference.unk_token_id
    assert tokenizer.chat_template == reference.chat_template
    assert tokenizer.add_bos == (reference("text")["input_ids"][0] == reference.bos_token_id)


def test_all_files_that_were_read_are_listed(demo_checkpoint: Path) -> None:
    names = ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
    assert [path.name for path in read_tokenizer(Documents(Directory(demo_checkpoint))).files] == names


def test_both_forms_of_merges_are_read(tmp_path: Path) -> None:
    tokenizer = small()
    pairs = read(tmp_path, tokenizer).merges
    tokenizer["model"]["merges"] = ["a b", "ab a"]
    assert read(tmp_path, tokenizer).merges == pairs == (("a", "b"), ("ab", "a"))


def test_ids_without_a_token_are_filled_up_to_the_vocabulary(tmp_path: Path) -> None:
    document = small()
    document["model"]["vocab"]["[PAD9]"] = 11
    tokenizer = read(tmp_path, document, 14)
    assert tokenizer.tokens[8:] == ("[PAD8]", "[[PAD9]]", "[PAD10]", "[PAD9]", "[PAD12]", "[PAD13]")
    assert tokenizer.fillers == {8, 9, 10, 12, 13}
    assert len(set(tokenizer.tokens)) == 14


def test_added_tokens_without_an_embedding_lie_beyond(tmp_path: Path) -> None:
    document = small()
    document["added_tokens"].append({"id": 8, "content": "<image>", "special": True})
    tokenizer = read(tmp_path, document, 8)
    assert len(tokenizer.tokens) == 8
    assert tokenizer.beyond == {8: AddedToken("<image>", True)}
    assert 8 not in tokenizer.added


def test_added_tokens_of_the_configuration_count(tmp_path: Path) -> None:
    config = {
        "added_tokens_decoder": {"8": {"content": "<turn|>", "special": False}, "2": {"content": "<bos>"}}
    }
    tokenizer = read(tmp_path, small(), tokenizer_config=config)
    assert tokenizer.tokens[8] == "<turn|>"
    assert tokenizer.added == {2: AddedToken("<bos>", True), 8: AddedToken("<turn|>", False)}


def test_special_tokens_come_from_the_first_file_that_names_them(tmp_path: Path) -> None:
    tokenizer = read(
        tmp_path,
        small(),
        tokenizer_config={"eos_token": {"content": "ab", "special": True}, "pad_token": None},
        special_tokens_map={"eos_token": "a", "pad_token": "b"},
    )
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.unk) == (2, 6, 5, 3)


def test_generation_ends_at_every_listed_id(tmp_path: Path) -> None:
    assert read(tmp_path, small()).end_ids == (1,)
    assert read(tmp_path, small(), generation_config={"eos_token_id": [1, 6, 1]}).end_ids == (1, 6)
    assert read(tmp_path, small(), generation_config={"eos_token_id": 6}).end_ids == (6,)


TEMPLATE = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}]}


@pytest.mark.parametrize(
    ("config", "processor", "expected"),
    [
        ({"add_bos_token": True}, None, True),
        ({"add_bos_token": False}, TEMPLATE, False),
        ({}, TEMPLATE, True),
        ({}, {"type": "Sequence", "processors": [TEMPLATE]}, True),
        ({}, None, False),
    ],
)
def test_the_begin_token_is_added_as_the_files_say(
    tmp_path: Path, config: object, processor: object, expected: bool
) -> None:
    assert (
        read(tmp_path, {**small(), "post_processor": processor}, tokenizer_config=config).add_bos is expected
    )


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({}, False),
        ({"normalizer": {"type": "Prepend", "prepend": "▁"}}, True),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]}}, True),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}}, True),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}}, False),
        ({"pre_tokenizer": {"type": "Metaspace", "add_prefix_space": False}}, False),
    ],
)
def test_a_space_before_the_text_is_noticed(tmp_path: Path, parts: dict[str, Any], expected: bool) -> None:
    assert read(tmp_path, {**small(), **parts}).space_prefix is expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer_config": {"chat_template": "config"}}, "config"),
        ({"tokenizer_config": {"chat_template": "config"}, "chat_template": {"chat_template": "own"}}, "own"),
        ({"tokenizer_config": {"chat_template": [{"name": "tool", "template": "t"}]}}, None),
        (
            {
                "tokenizer_config": {
                    "chat_template": [
                        {"name": ["x"]},
                        {"name": "tool", "template": "t"},
                        {"name": "default", "template": "d"},
                    ]
                }
            },
            "d",
        ),
    ],
)
def test_the_chat_template_is_found(tmp_path: Path, files: dict[str, Any], expected: str | None) -> None:
    assert read(tmp_path, small(), **files).chat_template == expected


def test_a_template_file_wins_and_is_copied_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ undefined() }}\r\n ☃", encoding="utf-8", newline="")
    tokenizer = read(tmp_path, small(), tokenizer_config={"chat_template": "config"})
    assert tokenizer.chat_template == "{{ undefined() }}\r\n ☃"


def change(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        *way, last = path.split("/")
        place: Any = document
        for key in way:
            place = place[key]
        place[last] = value

    return apply


def add(*tokens: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["added_tokens"].extend(tokens)


HOSTILE: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (change("model", None), "model is missing"),
    (change("model", []), "model is a list, expected an object"),
    (change("model/type", "Unigram"), "model.type is 'Unigram'; only BPE tokenizers are read"),
    (change("model/type", None), "model.type is None, expected a string"),
    (change("model/vocab", None), "model.vocab is missing"),
    (change("model/vocab", []), "model.vocab is a list"),
    (change("model/vocab", {}), "merges[0] is ['a', 'b'], whose parts or result are no tokens"),
    (change("model/vocab/x", -1), "model.vocab.'x' has id -1"),
    (change("model/vocab/x", 1 << 40), "model.vocab.'x' has id 1099511627776, expected 0..2097151"),
    (change("model/vocab/x", 3.0), "model.vocab.'x' has id 3.0"),
    (change("model/vocab/x", True), "model.vocab.'x' has id True"),
    (change("model/vocab/x", 3), "model.vocab.'x' has id 3, which '<unk>' has as well"),
    (change("model/vocab/x", 9), "token 'x' has id 9, but the model has 9 embeddings"),
    (change("model/vocab/\ud800", 8), r"is not Unicode text"),
    (change("model/vocab/" + "x" * 1025, 8), "has 1025 characters, more than 1024"),
    (change("model/merges", None), "merges is null, expected a list"),
    (change("model/merges", {"a": "b"}), "merges is an object, expected a list"),
    (change("model/merges", ["ab"]), "merges[0] is 'ab', expected two tokens"),
    (change("model/merges", ["a b a"]), "merges[0] is 'a b a', expected two tokens"),
    (change("model/merges", [["a", "b", "a"]]), "merges[0] is ['a', 'b', 'a'], expected two tokens"),
    (change("model/merges", [["a", 3]]), "merges[0] is ['a', 3], expected two tokens"),
    (change("model/merges", [["a", "b"], ["b", "b"]]), "merges[1] is ['b', 'b'], whose parts or result"),
    (change("model/byte_fallback", "yes"), "byte_fallback is 'yes'"),
    (change("added_tokens", {}), "added_tokens is an object, expected a list"),
    (add(3), "added_tokens[1] is an integer, expected an object"),
    (add({"content": "x"}), "added_tokens[1].id is missing"),
    (add({"id": -1, "content": "x"}), "added_tokens[1].id is -1"),
    (add({"id": 8}), "added_tokens[1].content is missing or empty"),
    (add({"id": 8, "content": ["x"]}), "added_tokens[1].content is ['x']"),
    (add({"id": 8, "content": "x", "special": 1}), "added_tokens[1].special is 1"),
    (add({"id": 2, "content": "<bos>"}), "added_tokens[1].id is 2, which an earlier added token has as well"),
    (add({"id": 4, "content": "x"}), "id 4 is both 'a' and added token 'x'"),
    (add({"id": 8, "content": "a"}), "added token 'a' has ids 8 and 4"),
]


@pytest.mark.parametrize(("alter", "message"), HOSTILE, ids=[message[:40] for _, message in HOSTILE])
def test_hostile_tokenizers_are_named(
    tmp_path: Path, alter: Callable[[dict[str, Any]], None], message: str
) -> None:
    document = small()
    alter(document)
    told = refusal(tmp_path, document, 9)
    assert message in told
    assert told.startswith(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": []}, "tokenizer_config.json: holds a list"),
        ({"tokenizer_config": {"bos_token": "nothing"}}, "bos_token is 'nothing', which is no token"),
        ({"tokenizer_config": {"bos_token": ["<bos>"]}}, "bos_token is ['<bos>'], which is no token"),
        ({"tokenizer_config": {"add_bos_token": "no"}}, "add_bos_token is 'no'"),
        ({"tokenizer_config": {"chat_template": 3}}, "chat_template is an integer, expected a string"),
        ({"tokenizer_config": {"added_tokens_decoder": []}}, "added_tokens_decoder is a list"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {}}}}, "'x' is not an id with an added token"),
        ({"tokenizer_config": {"added_tokens_decoder": {"8": None}}}, "'8' is not an id with an added token"),
        ({"special_tokens_map": {"eos_token": {"content": 3}}}, "special_tokens_map.json: eos_token is 3"),
        ({"generation_config": {"eos_token_id": [8]}}, "eos_token_id is [8], expected ids below 8"),
        ({"generation_config": {"eos_token_id": "1"}}, "eos_token_id is '1', expected ids below 8"),
    ],
)
def test_hostile_configurations_are_named(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    assert message in refusal(tmp_path, small(), **files)


def test_a_token_that_is_spelled_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0, "a": 1}}}')
    with pytest.raises(CheckpointError, match="key 'a' appears twice"):
        read_tokenizer(Documents(Directory(tmp_path)))


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
)
def test_a_pipe_is_not_waited_for_and_a_link_to_nowhere_is_no_absent_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(small()))
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name}: is not a regular file"):
        read_tokenizer(Documents(Directory(tmp_path)))
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("absent")
    with pytest.raises(CheckpointError, match=f"{name}: cannot be read: No such file"):
        read_tokenizer(Documents(Directory(tmp_path)))


def test_a_file_of_very_many_values_is_refused_before_they_are_made(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": [' + "[]," * 2_500_000 + "[]]}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: holds more than 3145728 values"):
        read_tokenizer(Documents(Directory(tmp_path)))


def test_an_endless_template_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "chat_template.jinja").open("wb") as stream:
        stream.truncate(1 << 40)
    assert "chat_template.jinja: larger than the 4194304 bytes" in refusal(tmp_path, small())


def test_a_template_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"ab\xff")
    assert "chat_template.jinja: not UTF-8 at byte 2" in refusal(tmp_path, small())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 20) | st.floats() | st.text("ab<>", max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "id", "content", "type", "vocab", "merges", "special", "8"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
FILES = ("tokenizer_config", "special_tokens_map", "generation_config", "chat_template")
KEYS = ("bos_token", "eos_token_id", "chat_template", "added_tokens_decoder", "add_bos_token", "unk_token")


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_invented_tokenizers_raise_nothing_but_checkpoint_errors(data: st.DataObject) -> None:
    document = small()
    place = data.draw(st.sampled_from([document, document["model"], document["added_tokens"][0]]))
    place[data.draw(st.sampled_from([*place, "post_processor"]))] = data.draw(json_values)
    files = {name: {data.draw(st.sampled_from(KEYS)): data.draw(json_values)} for name in FILES}
    with TemporaryDirectory() as directory:
        try:
            tokenizer = read(Path(directory), document, 12, **files)
        except CheckpointError:
            assert refusal(Path(directory), document, 12, **files)
        else:
            assert len(tokenizer.tokens) == len(set(tokenizer.tokens)) == 12
