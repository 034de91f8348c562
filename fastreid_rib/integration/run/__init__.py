"""A run: its start, its ranks, its output folder, its seed, its checkpoints."""
