"""What a ``.litertlm`` file says beside its model: tokens, sampling, chat template, caches and tokenizer.

The messages are LiteRT-LM's (``runtime/proto/llm_metadata.proto``, ``executor_metadata.proto``), filled as
litert-torch's ``build_llm_metadata`` does, but in a fixed order, with the checkpoint's own sampling, and with
the stop tokens by id.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from converter.checkpoint.documents import TOKENIZER_BYTES, Documents
from converter.checkpoint.generation import end_tokens
from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.special_tokens import BOS
from converter.checkpoint.tokenizer import Tokenizer
from converter.checkpoint.tokenizer_pipeline import OF_THE_LIBRARY, OF_THE_TOKENS, Step
from converter.errors import CheckpointError, TargetError
from converter.filenames import SENTENCEPIECE, TOKENIZER
from targets.litert.bundle import Section, read_sections
from targets.litert.family import litert_family
from targets.litert.sections import EXECUTOR_METADATA, JSON_TOKENIZER, METADATA, SENTENCEPIECE_TOKENIZER
from targets.litert.template import template_for, unknown_methods
from targets.tokenization import refuse_steps, steps_beside

if TYPE_CHECKING:
    from litert_lm_builder.runtime.proto.llm_metadata_pb2 import LlmMetadata

#: Files of tokenizers that LiteRT-LM does not read.
_OTHER_TOKENIZERS: Final = ("vocab.txt", "vocab.json", "merges.txt", "tiktoken.model", "tekken.json")
#: Most bytes of metadata that are read; a template has at most 4 MB.
_METADATA_BYTES: Final = 16 << 20
#: Of zlib; named, so that equal tokenizers give equal bytes whatever the library's default is.
_COMPRESSION: Final = 6


def metadata_sections(checkpoint: Checkpoint, context: int) -> tuple[Section, ...]:
    """The sections in front of a bundle's models: metadata of the model and of its caches, and the tokenizer.

    ``context`` is the length of the caches in tokens. Raises ``CheckpointError`` for a damaged file and
    ``TargetError`` for a tokenizer that LiteRT-LM does not read.
    """
    return (
        Section(METADATA, llm_metadata(checkpoint, context)),
        Section(EXECUTOR_METADATA, executor_metadata(checkpoint, context)),
        tokenizer_section(checkpoint.documents),
    )


def llm_metadata(checkpoint: Checkpoint, context: int) -> bytes:
    """The message ``LlmMetadata`` for caches of ``context`` tokens; equal checkpoints give equal bytes."""
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    message = llm_metadata_pb2.LlmMetadata()
    tokenizer = checkpoint.tokenizer
    if tokenizer.bos is not None and _begins_with_bos(tokenizer):
        message.start_token.token_str = tokenizer.tokens[tokenizer.bos]
    if tokenizer.pad is not None:
        message.pad_token.token_str = tokenizer.tokens[tokenizer.pad]
    for id in end_tokens(checkpoint.architecture, tokenizer):
        message.stop_tokens.add().token_ids.ids.append(id)
    if checkpoint.generation.suppressed:
        message.suppress_tokens.ids.extend(checkpoint.generation.suppressed)
    _add_sampling(message, checkpoint)
    litert_family(checkpoint.architecture).add_metadata(message, set(tokenizer.tokens))
    template = template_for(tokenizer)
    if template is not None:
        message.jinja_prompt_template = template.text
    # both are mandatory for litert-lm-builder, and a runtime takes a field that is not set for no
    message.supports_thinking = template is not None and template.thinking
    message.supports_function_calling = template is not None and template.function_calling
    message.max_num_tokens = context
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def executor_metadata(checkpoint: Checkpoint, context: int) -> bytes:
    """The message ``ExecutorMetadata``, which names the caches of the graph's signatures.

    A key cache is ``[1, heads, context, head size]``, a value cache ``[1, heads, head size, context]``.
    """
    from litert_lm_builder.runtime.proto import executor_metadata_pb2

    kinds = executor_metadata_pb2.StateBuffer
    message = executor_metadata_pb2.ExecutorMetadata()
    message.llm_executor_metadata.max_history_size = context
    for name in cache_names(checkpoint):
        keys = name.startswith("kv_cache_k")
        message.llm_executor_metadata.state_buffers.add(
            prefill_input_name=name,
            prefill_output_name=name,
            decode_input_name=name,
            decode_output_name=name,
            type=kinds.TYPE_GLOBAL_KEY_CACHE if keys else kinds.TYPE_GLOBAL_VALUE_CACHE,
            sequence_axis=2 if keys else 3,
            maximum_sequence_length=context,
        )
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def cache_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names of the caches, as litert-torch gives them to inputs and outputs: two for each layer with keys and
    values of its own."""
    owners = sum(layer.kv_source is None for layer in checkpoint.architecture.layers)
    return tuple(f"kv_cache_{part}_{index}" for index in range(owners) for part in "kv")


def tokenizer_section(documents: Documents) -> Section:
    """The tokenizer of a checkpoint: ``tokenizer.json``, or the SentencePiece model ``tokenizer.model`` if
    there is no such file.

    Raises ``TargetError`` for a kind that LiteRT-LM does not read and ``CheckpointError`` for a file that
    cannot be read.
    """
    name = tokenizer_file(documents)
    data = documents.content(name, TOKENIZER_BYTES)
    if name == SENTENCEPIECE:
        return Section(SENTENCEPIECE_TOKENIZER, data)
    return Section(JSON_TOKENIZER, len(data).to_bytes(8, "little") + zlib.compress(data, _COMPRESSION))


def tokenizer_file(documents: Documents) -> str:
    """Name of the file with the tokenizer, found without reading it whole. Raises as ``tokenizer_section``
    does, so that a kind that LiteRT-LM does not read is refused before any work."""
    if TOKENIZER in documents:
        return TOKENIZER
    if SENTENCEPIECE in documents:
        _check_sentencepiece(documents)
        return SENTENCEPIECE
    others = [name for name in _OTHER_TOKENIZERS if name in documents]
    found = f" ({' and '.join(others)})" if others else ""
    raise TargetError(
        f"{documents}: LiteRT-LM holds tokenizers of {TOKENIZER} or SentencePiece's {SENTENCEPIECE}; "
        f"here is neither{found}"
    )


def lacking_steps(checkpoint: Checkpoint) -> Sequence[Step]:
    """The steps of the tokenizer that LiteRT-LM would do otherwise than transformers.

    It has the library ``tokenizers`` in it (tried with 0.18.1), and so does all that ``tokenizer.json`` says.
    transformers does not where its class makes the family's pipeline itself. Raises ``TargetError`` for a
    family that is not known.
    """
    tokenizer, family = checkpoint.tokenizer, litert_family(checkpoint.architecture)
    known = OF_THE_TOKENS if tokenizer.class_name in family.pipeline_classes else OF_THE_LIBRARY
    return steps_beside(known, tokenizer)


def check_tokenizer(checkpoint: Checkpoint) -> None:
    """Raise ``TargetError`` for a tokenizer that LiteRT-LM would run otherwise than transformers, and for a
    family that is not known."""
    problem = "in which LiteRT-LM and transformers differ"
    refuse_steps("litert", problem, checkpoint, lacking_steps(checkpoint))


def stored_template(path: Path) -> str | None:
    """The chat template of a ``.litertlm`` file, ``None`` without one. Raises ``CheckpointError`` for a
    damaged file."""
    from google.protobuf.message import DecodeError
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    section = next((one for one in read_sections(path) if one.kind == METADATA), None)
    if section is None:
        return None
    with path.open("rb") as stream:
        stream.seek(section.offset)
        data = stream.read(min(section.size, _METADATA_BYTES))
    try:
        message = llm_metadata_pb2.LlmMetadata.FromString(data)
    except DecodeError as error:
        raise CheckpointError(f"{path}: its metadata are no message of LiteRT-LM's") from error
    return str(message.jinja_prompt_template) if message.HasField("jinja_prompt_template") else None


def template_warnings(checkpoint: Checkpoint) -> list[str]:
    """What LiteRT-LM will not make of the chat template, in one line: it fails at methods that it does not
    have when it comes to them."""
    methods = unknown_methods(checkpoint.tokenizer.chat_template or "")
    if not methods:
        return []
    names = ", ".join(f".{name}()" for name in methods)
    return [f"litert: the chat template calls {names}, which LiteRT-LM's template engine does not have"]


def edit_warnings(checkpoint: Checkpoint) -> list[str]:
    """What LiteRT-LM needs of the chat template and does not get, in one line; transformers runs it in a
    child process."""
    template = template_for(checkpoint.tokenizer)
    if template is None or not template.kept:
        return []
    return [f"litert: the chat template is not edited for LiteRT-LM ({template.kept})"]


def _check_sentencepiece(documents: Documents) -> None:
    """Refuse a ``tokenizer.model`` of another kind (tiktoken's is text).

    SentencePiece's ``ModelProto`` begins with a piece (field 1), which begins with its text (field 1)."""
    data = documents.content(SENTENCEPIECE, TOKENIZER_BYTES)
    if data[:1] != b"\x0a" or data[2:3] != b"\x0a":
        where = documents.where(SENTENCEPIECE)
        raise TargetError(f"{where}: is no SentencePiece model, which LiteRT-LM needs without {TOKENIZER}")


def _begins_with_bos(tokenizer: Tokenizer) -> bool:
    """Whether the model ever sees the begin token: LiteRT-LM puts the start token before every prompt."""
    template = tokenizer.chat_template or ""
    return tokenizer.add_bos or BOS in template


def _add_sampling(message: LlmMetadata, checkpoint: Checkpoint) -> None:
    """Sampling as the checkpoint asks; what is recommended where it says nothing.

    LiteRT-LM wants both limits and a temperature. A top_k of 0 means none; no sampling, and a top_p or a
    temperature of 0, leave the likeliest token alone.
    """
    from litert_lm_builder.runtime.proto import sampler_params_pb2

    sampling = {**checkpoint.architecture.sampling, **checkpoint.generation.sampling}
    vocabulary = checkpoint.architecture.vocabulary
    parameters = message.sampler_params
    parameters.type = sampler_params_pb2.SamplerParameters.TOP_P
    if sampling["top_p"] > 0 and sampling["temperature"] > 0:
        parameters.k = min(int(sampling["top_k"]) or vocabulary, vocabulary)
        parameters.p = sampling["top_p"]
        parameters.temperature = sampling["temperature"]
    else:
        parameters.k, parameters.p, parameters.temperature = 1, 1.0, 1.0
