"""What a completion is worth: rewards of one interface, batched, and their weighted sums."""
