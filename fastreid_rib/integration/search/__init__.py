"""The search for a backbone's widths: spaces, the supernet, the trainer, what comes out."""
