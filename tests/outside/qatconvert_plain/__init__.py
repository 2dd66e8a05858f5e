"""A target of plain numbers in safetensors, and transformers as its runtime."""
