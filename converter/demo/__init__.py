"""The shipped demonstration model: how it is trained, and a generator of random checkpoints for tests."""

from __future__ import annotations

from pathlib import Path

#: The QAT checkpoint that ships in the distribution under the alias ``gemma4-demo``.
DEMO = Path(__file__).parent / "gemma4-demo"
#: The bfloat16 model it was trained from (in the repository only).
DEMO_BASE = Path(__file__).parent / "gemma4-demo-base"
