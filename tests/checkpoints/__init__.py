"""Checkpoints for tests and benchmarks: how the shipped one is trained, and a generator of random ones."""

from __future__ import annotations

from pathlib import Path

#: The bfloat16 model that the shipped checkpoint was trained from.
DEMO_BASE = Path(__file__).parent / "gemma4-demo-base"
