"""RIB in FastReID's meta-architectures, and which embedding it takes."""
