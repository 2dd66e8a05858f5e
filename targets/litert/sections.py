"""LiteRT-LM's names of what a ``.litertlm`` file holds: kinds of sections and types of models."""

from __future__ import annotations

from typing import Final

#: The kind of a section with a model, and the types under which LiteRT-LM finds the models of a bundle.
MODEL: Final = "TFLiteModel"
PREFILL_DECODE: Final = "tf_lite_prefill_decode"
EMBEDDER: Final = "tf_lite_embedder"
PER_LAYER_EMBEDDER: Final = "tf_lite_per_layer_embedder"
#: What stands beside the models: metadata of the model and of its caches, and the tokenizer, which is
#: SentencePiece's or a compressed ``tokenizer.json``.
METADATA: Final = "LlmMetadataProto"
EXECUTOR_METADATA: Final = "ExecutorMetadataProto"
SENTENCEPIECE_TOKENIZER: Final = "SP_Tokenizer"
JSON_TOKENIZER: Final = "HF_Tokenizer_Zlib"
#: Kinds of sections, in the order of the schema's ``AnySectionDataType``.
KINDS: Final = (
    "NONE",
    "GenericBinaryData",
    "Deprecated",
    MODEL,
    SENTENCEPIECE_TOKENIZER,
    METADATA,
    JSON_TOKENIZER,
    "TFLiteWeights",
    "EmbeddingMetadataProto",
    EXECUTOR_METADATA,
    "TtsMetadataProto",
    "AsrMetadataProto",
)
