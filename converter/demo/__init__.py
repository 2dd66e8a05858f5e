"""The shipped demonstration model. It is trained by ``tests/checkpoints``, which does not ship."""

from __future__ import annotations

from pathlib import Path

#: The QAT checkpoint that ships in the distribution under the alias ``gemma4-demo``.
DEMO = Path(__file__).parent / "gemma4-demo"
