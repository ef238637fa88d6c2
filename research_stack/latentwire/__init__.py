"""LatentWire: a context as a few bytes that different frozen language models read."""
