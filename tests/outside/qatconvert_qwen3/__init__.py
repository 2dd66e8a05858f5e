"""The family Qwen3: what is true of its models, and what llama.cpp knows of it."""
