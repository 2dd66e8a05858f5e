"""Proof of an export: reference logits, real runtimes, metrics, gates and reports."""
