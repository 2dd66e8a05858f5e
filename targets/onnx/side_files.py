"""What lies beside ``model.onnx``: ``genai_config.json`` for onnxruntime-genai, the checkpoint's own
``config.json`` for transformers and what uses it, and the tokenizer's files.

The keys are those of onnxruntime-genai's configuration parser (``src/config.cpp``), which refuses others.
What it does with them, checked with 0.18:

* A family's model type (``targets.onnx.family``) must mean a decoder that takes ``input_ids``.
* Caches are made for the graph's ``past_key_values`` inputs, each with the heads and the head size that its
  input declares. The sizes in the configuration count only where an input leaves them open.
* A ``sliding_window`` entry makes the caches smaller than the text, or slides the inputs, which only a graph
  made for it survives. The window is the graph's own business, and there is no such entry.
* With ``past_present_share_buffer`` the caches are allocated for the search's ``max_length`` before the
  first token, whatever a layer's window is. Without it they grow with the text, but ``rewind_to`` refuses
  every model whose layers differ in heads or head size, and the last token of any other. So it is on, with a
  length that small machines have room for. A client may set any other up to the context.
* Unless told otherwise it uses half of the processor's cores; 0 leaves the number to onnxruntime.

Its tokenizer (onnxruntime-extensions) knows classes by name, reads the chat template either from
``tokenizer_config.json`` or, if that has none, from ``chat_template.jinja``, and fails at the first ``null``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

from converter.checkpoint.architecture import Architecture, Layer
from converter.checkpoint.documents import TOKENIZER_BYTES
from converter.checkpoint.generation import end_tokens
from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.special_tokens import BOS_ID, EOS_ID, PAD_ID
from converter.checkpoint.tokenizer import Tokenizer
from converter.checkpoint.tokenizer_pipeline import LENGTH, RIGHT_STRIP, Step
from converter.errors import CheckpointError
from converter.filenames import (
    CHAT_TEMPLATE,
    CONFIG,
    GENAI_CONFIG,
    GENERATION_CONFIG,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
)
from converter.system.untrusted import Settings
from targets.onnx.family import onnx_family
from targets.target import KVCache
from targets.tokenization import refuse_steps, steps_beside

#: Tokens of a search, prompt and answer together, unless its client asks for others or the model ends before.
SEARCH_LENGTH: Final = 4096
#: What its search can be told beyond temperature, top_p, top_k and end tokens.
_HELD: Final = ("repetition_penalty",)
#: Files that are copied byte for byte, where the checkpoint has them.
_COPIED: Final = (TOKENIZER, SPECIAL_TOKENS, GENERATION_CONFIG)
#: The class under which onnxruntime-extensions merges as Gemma's tokenizers do.
_TOKENIZER_CLASS: Final = "GemmaTokenizer"
#: The one that GroupQueryAttention computes with; Gemma's tokenizers say ``left``.
_PADDING_SIDE: Final = "right"
#: What ``tokenizer_config.json`` must not ask of whoever loads it: another file, or code.
_REFUSED: Final = ("auto_map", "chat_template", "tiktoken_file")
#: What ``config.json`` must not tell whoever loads it: code to run, or a form that these weights lack.
_NOT_TOLD: Final = ("auto_map", "custom_pipelines", "quantization_config")
#: Where onnxruntime-extensions cuts a text before it merges: at spaces and line ends after anything else.
_CUT: Final = re.compile("[^ \n\r\u2581][ \n\r\u2581]")


def generation_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Name and content of every file that onnxruntime-genai and transformers need beside ``model.onnx``.

    Equal checkpoints give equal bytes. Raises ``CheckpointError`` for a damaged ``tokenizer_config.json``,
    for a ``config.json`` with what JSON cannot hold, and for a file that is not what it was when the
    checkpoint was opened.
    """
    documents = checkpoint.documents
    where = documents.where(CONFIG)
    files = {
        GENAI_CONFIG: _encoded(genai_config(checkpoint), GENAI_CONFIG),
        CONFIG: _encoded(_model_config(checkpoint.config), where),
    }
    for name in _COPIED:
        if name in documents:
            files[name] = documents.content(name, TOKENIZER_BYTES)
    files[TOKENIZER_CONFIG] = _tokenizer_config(checkpoint)
    if checkpoint.tokenizer.chat_template is not None:
        files[CHAT_TEMPLATE] = checkpoint.tokenizer.chat_template.encode("utf-8")
    return files


def lacking_steps(tokenizer: Tokenizer) -> Sequence[Step]:
    """The steps of a tokenizer that onnxruntime-genai does not do: whatever ``tokenizer.json`` says, it takes
    those of byte-fallback BPE, as tried with 0.18."""
    return steps_beside({LENGTH, RIGHT_STRIP}, tokenizer)


def check_tokenizer(checkpoint: Checkpoint) -> None:
    """Raise ``TargetError`` for a tokenizer that onnxruntime-genai would run otherwise."""
    problem = "which onnxruntime-genai does not follow"
    refuse_steps("onnx", problem, checkpoint, lacking_steps(checkpoint.tokenizer))


def generation_warnings(checkpoint: Checkpoint) -> list[str]:
    """What onnxruntime-genai will do otherwise than the checkpoint asks, one line each."""
    warnings = []
    tokenizer = checkpoint.tokenizer
    suppressed = checkpoint.generation.suppressed
    if suppressed:
        warnings.append(
            f"onnx: {len(suppressed)} tokens must never be generated, which onnxruntime-genai cannot be told"
        )
    warnings += checkpoint.generation.limits("onnx", "onnxruntime-genai", _HELD)
    cut = [
        text
        for id, text in enumerate(tokenizer.tokens)
        if _CUT.search(text) and id not in tokenizer.added and id not in tokenizer.fillers
    ]
    if cut:
        warnings.append(
            f"onnx: {len(cut)} tokens such as {cut[0]!r} have a space or newline after other text; "
            "onnxruntime-genai's tokenizer may miss them"
        )
    return warnings


def kv_cache(architecture: Architecture, item_bytes: int) -> KVCache:
    """What onnxruntime-genai allocates for one sequence of a search's default length: keys and values
    ``[kv_heads, tokens, head_dim]``, ``item_bytes`` a number, for every layer that has its own cache."""
    tokens = _length(architecture)
    numbers = sum(2 * layer.kv_heads * layer.head_dim for layer in _owners(architecture))
    return KVCache(tokens, tokens * numbers * item_bytes)


def _length(architecture: Architecture) -> int:
    return min(SEARCH_LENGTH, architecture.context)


def _owners(architecture: Architecture) -> list[Layer]:
    """Layers with a cache of their own."""
    return [layer for layer in architecture.layers if layer.kv_source is None]


def _model_config(values: Mapping[str, object]) -> dict[str, object]:
    """The checkpoint's ``config.json`` in its own order, it and its parts without what is not told."""
    return {key: _told(value) if isinstance(value, dict) else value for key, value in _told(values).items()}


def _told(values: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if key not in _NOT_TOLD}


def genai_config(checkpoint: Checkpoint) -> dict[str, object]:
    """``genai_config.json``; raises ``TargetError`` for a model of no known family."""
    architecture = checkpoint.architecture
    ends = end_tokens(architecture, checkpoint.tokenizer)
    ids: dict[str, object] = {
        BOS_ID: _first(checkpoint.tokenizer.bos, architecture.bos),
        EOS_ID: ends or None,
        PAD_ID: _first(checkpoint.tokenizer.pad, architecture.pad, *ends),
    }
    return {
        "model": {
            "type": onnx_family(architecture).model_type,
            **{key: value for key, value in ids.items() if value is not None},
            "vocab_size": architecture.vocabulary,
            "context_length": architecture.context,
            "decoder": _decoder(architecture),
        },
        "search": _search(checkpoint),
    }


def _decoder(architecture: Architecture) -> dict[str, object]:
    owners = _owners(architecture)
    return {
        "filename": "model.onnx",
        "session_options": {"intra_op_num_threads": 0, "provider_options": []},
        "hidden_size": architecture.hidden,
        "num_attention_heads": owners[0].heads,
        # of the first cache, and the number of caches
        "num_key_value_heads": owners[0].kv_heads,
        "head_size": owners[0].head_dim,
        "num_hidden_layers": len(owners),
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }


def _search(checkpoint: Checkpoint) -> dict[str, object]:
    """Defaults of a search. Here top_k may not exceed the vocabulary, and a top_p of 0, which elsewhere
    leaves the likeliest token alone, means none."""
    architecture = checkpoint.architecture
    sampling = {**architecture.sampling, **checkpoint.generation.sampling}
    penalties = checkpoint.generation.penalties
    return {
        "do_sample": sampling["temperature"] > 0 and sampling["top_p"] > 0,
        "temperature": sampling["temperature"],
        "top_k": min(int(sampling["top_k"]), architecture.vocabulary),
        "top_p": sampling["top_p"],
        "max_length": _length(architecture),
        **{key: value for key, value in penalties.items() if key in _HELD},
        "past_present_share_buffer": True,
    }


def _tokenizer_config(checkpoint: Checkpoint) -> bytes:
    """``tokenizer_config.json`` as the checkpoint has it, but for the side of the padding and for what would
    not load (see above)."""
    tokenizer, stored = checkpoint.tokenizer, checkpoint.documents.optional(TOKENIZER_CONFIG)
    values = {key: value for key, value in stored.values.items() if not (value is None or key in _REFUSED)}
    values["tokenizer_class"] = _TOKENIZER_CLASS
    values["padding_side"] = _PADDING_SIDE
    for key in ("clean_up_tokenization_spaces", "add_bos_token", "add_eos_token"):
        if not isinstance(values.get(key, False), bool):
            del values[key]
    if not isinstance(values.get("model_max_length", 0), int | float):
        del values["model_max_length"]
    for name in ("bos", "eos", "pad", "unk"):
        values.pop(f"{name}_token", None)
        id = getattr(tokenizer, name)
        if id is not None:
            values[f"{name}_token"] = tokenizer.tokens[id]
    decoder = Settings(values, stored.where).section("added_tokens_decoder")
    if decoder is not None:
        values["added_tokens_decoder"] = {key: _plain(token) for key, token in decoder.values.items()}
    return _encoded(dict(sorted(values.items())), stored.where)


def _plain(token: object) -> dict[str, object]:
    """An added token's text and flags."""
    values = token if isinstance(token, dict) else {}
    flags = {key: value for key, value in values.items() if isinstance(value, bool)}
    return {"content": values.get("content"), **flags}


def _encoded(values: Mapping[str, object], where: str) -> bytes:
    """JSON that any parser takes; raises ``CheckpointError`` for what Python alone reads as JSON."""
    try:
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return text.encode("utf-8")
    except (ValueError, RecursionError) as error:  # a UnicodeEncodeError is a ValueError
        raise CheckpointError(f"{where}: holds what JSON cannot: {error}") from error


def _first(*ids: int | None) -> int | None:
    return next((id for id in ids if id is not None), None)
