"""LiteRT for LiteRT-LM: the trained codes in blockwise int4 of a ``.litertlm`` bundle."""
