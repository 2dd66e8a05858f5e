"""The reference: the checkpoint in transformers, in a child process, and the cache of its logits."""
