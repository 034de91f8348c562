"""Attention in FastReID's models: where it stands, without changing a key of stock checkpoints.

An attention is a submodule, called ``attention``, of the module that it stands after (the last
block of a stage), before (a head) or inside (a transformer block's projection to queries and keys).
So it is a parameter of the model before the optimizer is made, is copied with its block, and
whoever takes a backbone apart takes it along.
"""
