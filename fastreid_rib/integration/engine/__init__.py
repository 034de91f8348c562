"""What surrounds the training: start, seeds, ranks that agree, output folder, checkpoints."""
