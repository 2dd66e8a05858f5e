"""A source of checkpoints: one uncompressed ZIP file."""
