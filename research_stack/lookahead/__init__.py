"""Confidence lookahead: language models that predict what their own next choice will cost them."""
