"""What tests share: servers, decoders, generators of damage."""
