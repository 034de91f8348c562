"""Data sets that the project makes itself, in FastReID's dataset registry."""
