"""Names of files that more than one room reads or writes."""

from __future__ import annotations

from typing import Final

# A checkpoint, as the Hub and transformers have it.
CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"
#: The weights in one file, or the list of the files that hold them.
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
SPECIAL_TOKENS: Final = "special_tokens_map.json"
#: SentencePiece's own form of a tokenizer.
SENTENCEPIECE: Final = "tokenizer.model"
#: The chat template as text; some checkpoints have it in JSON.
CHAT_TEMPLATE: Final = "chat_template.jinja"
CHAT_TEMPLATE_JSON: Final = "chat_template.json"
#: A checkpoint's own text to be judged on; this project's.
EVALUATION_TEXT: Final = "evaluation_text.json"

# What a conversion leaves beside its artifacts.
MANIFEST: Final = "manifest.json"
REPORT: Final = "report.json"
REPORT_MARKDOWN: Final = "report.md"
REPORT_HTML: Final = "report.html"
#: What holds measured figures: no conversion makes the same ones again.
REPORTS: Final = (REPORT, REPORT_MARKDOWN, REPORT_HTML)

#: Settings of onnxruntime-genai beside a graph.
GENAI_CONFIG: Final = "genai_config.json"
