"""Is it any good? Held-out loss in full, in units that compare across tokenizers."""
