"""Special tokens: the keys under which a checkpoint's files name them, and the texts of Gemma's own."""

from __future__ import annotations

from typing import Final

#: By text, in ``tokenizer_config.json``, in ``special_tokens_map.json`` and as variables of a chat template.
BOS: Final = "bos_token"
EOS: Final = "eos_token"
PAD: Final = "pad_token"
#: By id, in ``config.json`` and ``generation_config.json``.
BOS_ID: Final = "bos_token_id"
EOS_ID: Final = "eos_token_id"
PAD_ID: Final = "pad_token_id"

#: Gemma's end of a text, and the end of a turn of Gemma 4 and of Gemma 3.
TURN_END: Final = "<turn|>"
GEMMA3_TURN_END: Final = "<end_of_turn>"
# Begin and end of what Gemma 4 says in a channel, of its calls of tools and of their results, and its quote.
CHANNEL: Final = "<|channel>"
CHANNEL_END: Final = "<channel|>"
TOOL_CALL: Final = "<|tool_call>"
TOOL_CALL_END: Final = "<tool_call|>"
TOOL_RESPONSE: Final = "<|tool_response>"
TOOL_RESPONSE_END: Final = "<tool_response|>"
QUOTE: Final = '<|"|>'
