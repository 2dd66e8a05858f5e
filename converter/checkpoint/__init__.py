"""What a model is: its files, configuration, weights on their lattice, tokenizer and templates, checked and
read."""
