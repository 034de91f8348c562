"""The parts of ``tools/visualize_attention.py``."""


class InputError(ValueError):
    """Something that the user gave cannot be used; the message says what, and what to do."""
