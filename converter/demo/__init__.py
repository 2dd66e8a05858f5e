"""The shipped demonstration models. They are trained by ``tests/checkpoints``, which does not ship."""

from __future__ import annotations

from pathlib import Path

#: The QAT checkpoint that ships in the distribution under the alias ``gemma4-demo``.
DEMO = Path(__file__).parent / "gemma4-demo"
#: The same in Gemma's mobile form (``gemma4-demo-mobile``).
DEMO_MOBILE = Path(__file__).parent / "gemma4-demo-mobile"
