"""Output formats: one package per target behind the protocol of ``targets.target``."""
