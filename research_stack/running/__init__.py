"""A run: its stages, its processes and devices, what stops it and what it leaves behind."""
