"""The demonstration model's tokenizer: byte-fallback BPE with Gemma 4's conventions, trained on the topics.

Spaces become U+2581, characters outside the vocabulary become byte tokens ``<0x00>`` to ``<0xFF>``,
and no piece mixes newlines with other text, since llama.cpp's ``gemma4`` pre-tokenizer cuts there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from converter.demo import DEMO

#: Gemma 4's special tokens, each with the key of ``tokenizer_config.json`` that names it.
SPECIAL_TOKENS = {
    "<pad>": "pad_token",
    "<eos>": "eos_token",
    "<bos>": "bos_token",
    "<unk>": "unk_token",
    "<mask>": "mask_token",
    "<|tool>": "std_token",
    "<tool|>": "etd_token",
    "<|tool_call>": "stc_token",
    "<tool_call|>": "etc_token",
    "<|tool_response>": "str_token",
    "<tool_response|>": "etr_token",
    '<|"|>': "escape_token",
    "<|think|>": "think_token",
    "<|channel>": "soc_token",
    "<channel|>": "eoc_token",
    "<|turn>": "sot_token",
    "<turn|>": "eot_token",
    "<|image>": "boi_token",
    "<image|>": "eoi_token",
    "<|image|>": "image_token",
    "<|audio>": "boa_token",
    "<audio|>": "eoa_token",
    "<|audio|>": "audio_token",
    "<|video|>": "video_token",
}
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))

#: A word with the space before it, one digit, a run of newlines, of spaces or of punctuation.
_PIECES = Regex(r"\n+|▁+(?=▁)|▁?\p{L}+|\p{N}|▁|[^▁\n\p{L}\p{N}]+")

#: Written by hand; it lies with the checkpoint that it is a part of.
CHAT_TEMPLATE = (DEMO / "chat_template.jinja").read_text(encoding="utf-8")


def train_tokenizer(texts: Sequence[str], size: int, alphabet: int = 100) -> Tokenizer:
    """A tokenizer of ``size`` tokens trained on ``texts``.

    Printable ASCII and the most frequent other characters, ``alphabet`` in all, get a token each; rarer
    ones stay byte sequences. Words
    are cut apart only while merges are learned: like Gemma's, the finished tokenizer merges freely,
    and no merge crosses a word because none was learned.
    """
    learner = Tokenizer(BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(_PIECES, behavior="isolated")
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL_TOKENS, *BYTE_TOKENS],
        limit_alphabet=alphabet,
        initial_alphabet=["\n", "▁", *map(chr, range(33, 127))],
        max_token_length=16,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    return assemble_tokenizer(learned["vocab"], [(left, right) for left, right in learned["merges"]])


def assemble_tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """A Gemma-style tokenizer of the given pieces (id by token) and merges, special tokens included."""
    model = BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    # A no-op after the normaliser, written because the family's tokenizers carry it.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, directory: Path, context: int) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``."""
    tokenizer.save(str(directory / "tokenizer.json"))
    settings: dict[str, object] = {
        **{key: token for token, key in SPECIAL_TOKENS.items()},
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "padding_side": "left",
        "tokenizer_class": "GemmaTokenizer",
    }
    text = json.dumps(dict(sorted(settings.items())), indent=2, ensure_ascii=False)
    (directory / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
