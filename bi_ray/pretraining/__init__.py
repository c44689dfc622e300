"""The tiny base model: its tokenizer, its drills, its training."""
