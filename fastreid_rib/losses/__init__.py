"""Losses and information measures in plain PyTorch: usable in any training loop."""
