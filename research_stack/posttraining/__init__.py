"""Post-training of language models: supervised tuning, group-relative policy optimisation, set objectives, reward
models.
"""
