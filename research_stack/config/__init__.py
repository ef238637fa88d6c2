"""From groups and overrides to one checked config, and from its nodes to objects. No torch, no numpy."""
