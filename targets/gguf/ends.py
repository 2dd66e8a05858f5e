"""Tokens at which llama.cpp ends an answer by their text: a list of its own, as it is."""

from __future__ import annotations

from typing import Final

#: Texts of tokens at which llama.cpp ends an answer whatever a file says (``llama_vocab::impl::load``), which
#: it also hides; found by trying each in xllamacpp 2026.10.11549.
ENDS_BY_TEXT: Final = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"}
    | {"<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "</s>", "<eos>"}
    | {"<|end_of_text|>", "<end_of_utterance>", "<turn|>", "<|tool_response>", "[e~["}
    | {"<\N{FULLWIDTH VERTICAL LINE}end\u2581of\u2581sentence\N{FULLWIDTH VERTICAL LINE}>"}
    # ends of pieces of code that is filled in
    | {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>"}
    | {"<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"}
)
