"""Rewards of completions: of one interface, batched, and their weighted sums."""
