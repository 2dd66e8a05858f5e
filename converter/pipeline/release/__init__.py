"""Releases: one file describes which models become which artifacts, and what each must pass."""
