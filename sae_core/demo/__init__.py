"""The embedded default: tokenizer, sample text, and the recipe that made them."""
