"""FastReID's side: configuration keys, and RIB in FastReID's meta-architectures."""
