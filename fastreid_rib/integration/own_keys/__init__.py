"""What FastReID's own keys must be, where it cannot train or evaluate with every value."""
