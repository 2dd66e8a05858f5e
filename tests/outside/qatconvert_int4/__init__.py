"""A stored form of int4 codes in groups of 128."""
